"""Neural augmentation: a small network that learns to make training images, together with the classifier that learns from them.

With a few hundred images everybody augments: shifts, zooms, turns, mirrors. Which changes are good ones is guessed. Here a
second network A makes the new image out of two images of one class, laid over one another as channels, and is trained with the
classifier S by what the new image does to the classifier's loss:

    a = A(x, x'),     x' another image of the class of x
    L = alpha [ CE(S(x), y) + CE(S(a), y) ] / 2 + beta L_aug(a, t),     alpha = 0.75, beta = 0.25

where L_aug compares the new image with a third one, t, of the class: not at all, by its pixels (content), or by the products
of its feature maps (style). At test time A is gone, so that the classifier is as large and as fast as without.

Nothing forces A to make images: without L_aug it serves the classifier alone, and the easiest image to classify will do. The
paper's control feeds A the same image twice; a plainer one takes the mean of the two images and learns nothing.

Source: Perez and Wang, "The Effectiveness of Data Augmentation in Image Classification using Deep Learning", 2017. Its third
way, images restyled by CycleGANs that were trained on paintings and seasons, needs generators that do not come with the data
and is left out. How the two classification losses are weighed against each other (here evenly) and the scale of the Gram
matrices are reconstructed. That made images stay out of the running statistics of batch normalisation is our addition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn.layers import watching
from assay.paper import Close, Higher, Lower, Reported, claim
from assay.papers.training.neural_augmentation.by_hand import only_images, traditional, traditional_augmentation
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.train.mixing import Mixing

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

__all__ = [
    "NeuralAugmentation",
    "NeuralAugmenter",
    "SmallNet",
    "content_loss",
    "gram",
    "neural_augmentation",
    "same_class_pairs",
    "statistics_kept",
    "style_loss",
    "traditional",
    "traditional_augmentation",
    "two_classes",
]

Auxiliary = Literal["none", "content", "style"]


class NeuralAugmenter(nn.Module):
    """Two images of a class -> a third (the paper's augmentation network).

    Args:
        channels: of an image.
        width: maps of the hidden convolutions (paper: 16).
        depth: 3x3 convolutions; all but the last are followed by a ReLU and batch normalisation (paper: 5).

    Shape: two (B, channels, H, W) -> (B, channels, H, W). The values are not bounded.
    """

    def __init__(self, channels: int, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"an augmenter has at least two convolutions, not {depth}")
        layers: list[nn.Module] = []
        for given in (2 * channels, *(width,) * (depth - 2)):
            layers += [nn.Conv2d(given, width, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(width)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        image: Tensor = self.layers(torch.cat([first, second], dim=1))
        return image


class SmallNet(nn.Sequential):
    """The paper's classifier: three convolutions with ReLU, batch normalisation and pooling, and a hidden layer of 1024.

    Args:
        channels: of an image.
        num_classes: number of logits.
        size: height and width in pixels, at least 8.
        hidden: units of the hidden layer.
        dropout: share of them that is dropped (the paper does not say how many).

    Shape: (B, channels, size, size) -> (B, num_classes).
    """

    def __init__(self, channels: int, num_classes: int, size: int, hidden: int = 1024, dropout: float = 0.5) -> None:
        layers: list[nn.Module] = []
        for given, maps in ((channels, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(given, maps, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(maps), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(32 * (size // 8) ** 2, hidden), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(hidden, num_classes))


def same_class_pairs(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For every example of a batch another one of its class, at random; itself where it is the only one.

    Shape: labels (B,) int64 -> positions (B,) int64.
    """
    same = labels[:, None] == labels[None, :]
    alone = same.sum(dim=1) == 1
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    others[alone] = same[alone]
    return torch.multinomial(others.float(), 1, generator=generator).squeeze(1)


def content_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of the pixels; any equal shapes -> scalar."""
    return F.mse_loss(images, targets)


def gram(maps: Tensor) -> Tensor:
    """Products of feature maps, averaged over places and maps: (B, C, H, W) -> (B, C, C)."""
    flat = maps.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def style_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Squared differences of the Gram matrices of each layer, summed over entries and layers, averaged over the batch.

    Args:
        maps: of each layer (B, C, H, W), of the images.
        targets: the same of the images whose style is wanted.
    """
    apart = [(gram(one) - gram(other)).square().sum(dim=(1, 2)) for one, other in zip(maps, targets, strict=True)]
    return torch.stack(apart).sum(dim=0).mean()


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within the block batch normalisation goes by the batch, as ever, but does not add it to its running statistics.

    What a network sees at test time are real images: made ones must not enter the statistics that it uses then.
    """
    tracking = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


class NeuralAugmentation(nn.Module):
    """The joint loss, with the augmenter inside: its parameters are trained with the classifier's.

        loss = NeuralAugmentation(classifier, images[:1])
        optimizer = Adam([*classifier.parameters(), *loss.parameters()])
        loss(classifier(images), labels, images).backward()

    Args:
        model: the classifier, which is run a second time, on the new images. It is no part of this module.
        example: (1, C, H, W), for the number of channels and the device.
        auxiliary: what the new image is compared with a third one by: ``"none"``, ``"content"`` or ``"style"`` (of all
            convolutions of the classifier).
        alpha: weight of the classification where there is such a comparison; without it is 1 (paper: 0.75).
        beta: weight of the comparison (paper: 0.25).
        share: of the classification loss, what is that of the new images; 0 trains no augmenter.
        width: see :class:`NeuralAugmenter`.
        depth: see :class:`NeuralAugmenter`.

    Shape: logits (B, K) of the real images, labels (B,) int64, inputs (B, C, H, W) -> scalar. Partners come from the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        auxiliary: Auxiliary = "none",
        alpha: float = 0.75,
        beta: float = 0.25,
        share: float = 0.5,
        width: int = 16,
        depth: int = 5,
    ) -> None:
        super().__init__()
        if auxiliary not in ("none", "content", "style"):
            raise ValueError(f"auxiliary must be 'none', 'content' or 'style', not {auxiliary!r}")
        self.auxiliary, self.share = auxiliary, share
        self.alpha, self.beta = (1.0, 0.0) if auxiliary == "none" else (alpha, beta)
        self.augmenter = NeuralAugmenter(example.shape[1], width, depth).to(example.device)
        self._model = (model,)  # in a tuple, so that its parameters are not counted as this module's
        style = auxiliary == "style"
        self._filters = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)] if style else []
        if style and not self._filters:
            raise AssayError(
                "Style is compared by the network's convolutions, and it has none: take auxiliary='content' or 'none'."
            )

    def partners(self, labels: Tensor) -> Tensor:
        """Positions (B,) of the images that are laid over those of the batch."""
        return same_class_pairs(labels)

    def make(self, first: Tensor, second: Tensor) -> Tensor:
        """The new images (B, C, H, W)."""
        image: Tensor = self.augmenter(first, second)
        return image

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        if labels.dim() != 1 or labels.is_floating_point():
            raise AssayError(
                "Neural augmentation pairs images of one class, and these labels are mixtures: take one or the other."
            )
        (model,) = self._model
        images = self.make(inputs, inputs[self.partners(labels)])
        with statistics_kept(model), watching(model, self._filters) as maps:
            made = model(images)
            of_images = list(maps.values())
            fit = (1 - self.share) * F.cross_entropy(logits, labels) + self.share * F.cross_entropy(made, labels)
            if self.auxiliary == "none":
                return fit
            targets = inputs[same_class_pairs(labels)]
            if self.auxiliary == "content":
                return self.alpha * fit + self.beta * content_loss(images, targets)
            with torch.no_grad():
                model(targets)
            return self.alpha * fit + self.beta * style_loss(of_images, list(maps.values()))


@treatment
def neural_augmentation(recipe: Recipe, auxiliary: Auxiliary = "none", alpha: float = 0.75, beta: float = 0.25) -> Recipe:
    """Train with images that a second network learns to make: see :class:`NeuralAugmentation`. The classifier stays as it is.

    Raises:
        AssayError: the data are no images, or have no classes; several devices.
    """
    only_images(recipe, "Neural augmentation")
    if recipe.devices > 1:
        raise AssayError("Neural augmentation runs the network a second time within the loss, which one device alone can do.")
    return with_loss(recipe, per_example(NeuralAugmentation, auxiliary=auxiliary, alpha=alpha, beta=beta))


# -------------------------------------------------------------------------------------------------------- the claims


class _SameTwice(NeuralAugmentation):
    """The paper's control for the second network: it sees no other image."""

    def partners(self, labels: Tensor) -> Tensor:
        return torch.arange(len(labels), device=labels.device)


class _Mean(NeuralAugmentation):
    """A control for learning: the new image is the mean of the two."""

    def make(self, first: Tensor, second: Tensor) -> Tensor:
        return (first + second) / 2


def two_classes(data: Dataset, names: tuple[str, str], count: int, seed: int, pool: int = 1) -> Dataset:
    """A small set of two classes out of a larger one: so many training and validation images of each, and all others to test on.

    Args:
        data: images.
        names: of the two classes.
        count: training images of each class, and as many for validation.
        seed: which.
        pool: side of the squares whose mean is a pixel of the new images.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = (torch.cat([getattr(split, part) for split in (data.train, data.test)]) for part in ("inputs", "labels"))
    rows: list[list[Tensor]] = [[], [], []]
    for name in names:
        members = (labels[: len(data.train)] == data.classes.index(name)).nonzero().flatten()
        train, valid, rest = members[torch.randperm(len(members), generator=generator)].tensor_split([count, 2 * count])
        official = (labels[len(data.train) :] == data.classes.index(name)).nonzero().flatten() + len(data.train)
        for part, found in zip(rows, (train, valid, torch.cat([rest, official])), strict=True):
            part.append(found)
    splits = []
    for part in rows:
        chosen = torch.cat(part)
        images = F.avg_pool2d(inputs[chosen], pool) if pool > 1 else inputs[chosen]
        splits.append(Split(images, (labels[chosen] == data.classes.index(names[1])).long()))
    done = (*data.history, f"two_classes(names={names}, count={count}, seed={seed}, pool={pool})")
    return dataclasses.replace(data, train=splits[0], valid=splits[1], test=splits[2], classes=names, history=done).normalise()


def _photos(lab: Lab, names: tuple[str, str]) -> Recipe:
    """The plain training on two classes of small photographs; at smoke scale of digits, which are always there."""
    data = lab.data(lab.pick(smoke="digits16", laptop="cifar10-20k", full="cifar10"))
    names = lab.pick(smoke=("3", "8"), laptop=names, full=names)
    few = two_classes(data, names, lab.pick(smoke=20, laptop=200, full=400), lab.seed, lab.pick(smoke=1, laptop=2, full=1))
    return _plain(few, lab.pick(smoke=2, laptop=25, full=40))


def _plain(data: Dataset, epochs: int) -> Recipe:
    channels, size, _ = data.input_shape
    return Recipe(
        data,
        model=partial(SmallNet, channels, 2, size),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        epochs=epochs,
        batch_size=32,
        watch=(),
    )


def _control(recipe: Recipe, kind: type[NeuralAugmentation]) -> Recipe:
    return recipe.replace(loss=per_example(kind))


_HARD, _EASY = ("cat", "dog"), ("dog", "frog")
_WHERE = "tables of results (summaries differ on which of the two pairs is which)"
_SCALED_DOWN = (
    "200 training images of each class (CIFAR-10, 16x16 pixels, 4,000 to test on) and 325 steps of Adam at 1e-3 instead of 400 "
    "images of 64x64 pixels out of tiny-imagenet-200 and 40 epochs at 1e-4."
)


@claim(
    "With few photographs of two classes, training with learned augmentation (no auxiliary loss) is more accurate than without "
    "augmentation in as many steps, on cats and dogs and on the easier dogs and frogs, and more than with the same image twice.",
    expect=(
        Higher("cats and dogs, neural", than="cats and dogs, none"),
        Higher("cats and dogs, neural", than="cats and dogs, same image twice"),
        Higher("dogs and frogs, neural", than="dogs and frogs, none"),
    ),
    reported=(
        Reported(
            "dogs and cats: validation accuracy",
            {"cats and dogs, none": 0.705, "cats and dogs, neural": 0.765, "cats and dogs, same image twice": 0.710},
            _WHERE,
        ),
        Reported(
            "dogs and goldfish: validation accuracy", {"dogs and frogs, none": 0.855, "dogs and frogs, neural": 0.915}, _WHERE
        ),
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("cifar10-20k",),
)
def neural_beats_none(lab: Lab) -> Measured:
    plain, easy = _photos(lab, _HARD), _photos(lab, _EASY)
    arms = {
        "none": plain,
        "neural": neural_augmentation(plain),
        "same image twice": _control(plain, _SameTwice),
        "mean of the two": _control(plain, _Mean),
        "mixup": plain.replace(hooks=(Mixing(mixup=0.2, cutmix=0.0),)),
        "none, batches twice as large": plain.replace(batch_size=64, epochs=2 * plain.epochs),
    }
    scores = {f"cats and dogs, {name}": lab.train(recipe).accuracy() for name, recipe in arms.items()}
    others = {"none": easy, "neural": neural_augmentation(easy)}
    return scores | {f"dogs and frogs, {name}": lab.train(recipe).accuracy() for name, recipe in others.items()}


@claim(
    "Traditional augmentation is less than a point below the learned one with its best auxiliary loss (on validation images), in "
    "less than half the time.",
    expect=(
        Higher("traditional", than="neural, best loss", by=-0.01),
        Lower("traditional, seconds", than="neural, best loss, seconds", times=0.5),
    ),
    reported=Reported(
        "dogs and cats: validation accuracy",
        {"none": 0.705, "traditional": 0.775, "neural, none": 0.765, "neural, content": 0.770, "neural, style": 0.740},
        _WHERE,
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy, or seconds of training",
    needs=("cifar10-20k",),
)
def traditional_is_as_good(lab: Lab) -> Measured:
    plain = _photos(lab, _HARD)
    kinds: tuple[Auxiliary, ...] = ("none", "content", "style")
    neural = {kind: lab.train(neural_augmentation(plain, kind)) for kind in kinds}
    best = max(neural.values(), key=lambda trained: trained.accuracy("valid"))
    by_hand = lab.train(traditional_augmentation(plain))
    return {
        "none": lab.train(plain).accuracy(),
        "traditional": by_hand.accuracy(),
        **{f"neural, {kind}": trained.accuracy() for kind, trained in neural.items()},
        "neural, best loss": best.accuracy(),
        "traditional, seconds": by_hand.seconds,
        "neural, best loss, seconds": best.seconds,
    }


@claim(
    "On digits, 0 against 8, learned augmentation changes accuracy by less than a point, with and without the content loss.",
    expect=(Close("neural", to="none", within=0.01), Close("neural, content", to="none", within=0.01)),
    reported=Reported("MNIST, 0 and 8: validation accuracy", {"none": 0.972, "neural": 0.975, "neural, content": 0.968}, _WHERE),
    scaled_down="100 training digits of each class, 16x16 pixels, and 25 epochs at 1e-3 instead of 40 at 1e-4.",
    unit="test accuracy",
)
def digits_do_not_gain(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="digits16", laptop="digits16", full="mnist"))
    few = two_classes(data, ("0", "8"), lab.pick(smoke=20, laptop=100, full=400), lab.seed)
    plain = _plain(few, lab.pick(smoke=2, laptop=25, full=40))
    recipes = {"none": plain, "neural": neural_augmentation(plain), "neural, content": neural_augmentation(plain, "content")}
    recipes["traditional"] = traditional_augmentation(plain)
    return {name: lab.train(recipe).accuracy() for name, recipe in recipes.items()}
