"""Deeply-supervised nets: every hidden layer has to be good for something by itself.

A deep network is told only at its end whether it is right, and the early layers hear of it through all the others: what arrives
may be next to nothing, and nothing says that what they compute should separate the classes. So give every hidden layer m a
classifier of its own (a companion) on its output Z_m, and add what that gets wrong:

    loss(output) + sum_m alpha_m max(0, loss(companion_m(Z_m)) - gamma)                                     (P + Q of sec. 2)

Gradients reach layer m from its companion directly. Companions are a means only: one whose loss is below gamma says nothing
more, their weights alpha_m fall while the network trains, and afterwards they are thrown away, so that the network is as large
and as fast as ever. It is a regulariser, which is worth most where examples are few.

The paper's loss is the squared hinge of an SVM, for output and companions alike; softmax and cross-entropy work as well (the
authors use them beyond ten classes). The squared lengths of the classifiers that stand in the paper's objective (those of
companions within the max) are left to the optimizer's weight decay. How alpha falls is told in two ways: a rule in the paper
that makes them vanish in a few epochs if taken literally, and the authors' code, which trains with full companions first and
without any afterwards; here it falls in a straight line to 0. Companions in that code see a convolution's whole output before its
ReLU; here they see what the block as a whole gives, behind ReLU and pooling.

Source: Lee, Xie, Gallagher, Zhang and Tu, "Deeply-Supervised Nets", AISTATS 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.layers import hidden_blocks, output_shapes
from assay.paper import Above, Below, Cost, Curve, Higher, Reported, Score, claim
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.recipes import lenet_on
from assay.train.hooks import Hook, Run

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """The multi-class squared hinge loss, ``sum over k != y of max(0, 1 - (s_y - s_k))^2``, mean over the batch.

    Args:
        logits: (B, C).
        labels: (B,) int64, or (B, C) float shares of the classes, which weigh what the loss would be with each label.
    """
    if labels.dim() == 1:
        margins = (1 - logits.gather(1, labels[:, None]) + logits).relu().square()  # (B, C); 1 at the label itself
        return margins.sum(dim=1).mean() - 1
    margins = (1 - logits[:, :, None] + logits[:, None, :]).relu().square()  # (B, label, C)
    return (labels * (margins.sum(dim=2) - 1)).sum(dim=1).mean()


class Companion(nn.Module):
    """A linear classifier on what a hidden layer gives.

    Args:
        shape: of the layer's output for one example, (1, ...).
        num_classes: number of logits.
        pool: maps are averaged down to so many places along each of their axes; ``None`` takes every place, as the paper does.
        sequence: the layer gives (B, L, D), L steps of D numbers, of which the mean over steps is taken.

    Shape: (B, F), (B, L, D) or (B, C, ...) -> (B, num_classes).
    """

    def __init__(self, shape: Sequence[int], num_classes: int, pool: int | None = 4, sequence: bool = False) -> None:
        super().__init__()
        self.sequence = sequence
        self.places = tuple(side if pool is None else min(side, pool) for side in shape[2:])
        features = shape[2] if sequence else torch.Size((shape[1], *self.places)).numel()
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, output: Tensor) -> Tensor:
        if self.sequence:
            output = output.mean(dim=1)
        elif output.shape[2:] != self.places:
            output = _POOLS[output.dim()](output, self.places)
        logits: Tensor = self.classifier(output.flatten(1))
        return logits


_POOLS: dict[int, Callable[..., Tensor]] = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "squared_hinge": squared_hinge}


class DeepSupervision(nn.Module):
    """The loss of the output and of companions on hidden layers, which it owns; the network stays as it is.

        loss = DeepSupervision(net, images[:1], num_classes=10, epochs=20).to(images.device)
        optimizer = SGD([*net.parameters(), *loss.parameters()], lr=0.05)
        with watching(net, loss.watches) as layers:                        # assay.nn.layers: hooks that keep outputs
            loss(net(images), labels, layers, epoch).backward()

    Args:
        model: the network; it is looked at, not kept.
        example: (1, ...) one input.
        num_classes: number of logits.
        epochs: of the whole training.
        layers: names of the modules that get a companion; ``None`` takes :func:`assay.nn.layers.hidden_blocks`.
        weight: alpha, of each companion at the beginning; it falls linearly with the epochs. 0 trains the plain network.
        until: share of the training after which the weight is 0, in (0, 1].
        gamma: loss below which a companion is content.
        loss: ``"cross_entropy"`` or ``"squared_hinge"`` (the paper's for ten classes), for output and companions.
        pool: places along each axis that a companion sees of a map; ``None`` sees all, as in the paper, which costs memory.

    Shape: logits (B, C), labels (B,) int64 or (B, C) float, layers (name -> output), epoch (how many are over) -> scalar.

    Raises:
        ValueError: there is no such loss, the weight or gamma is negative, or ``until`` is not in (0, 1].
        AssayError: the network has no such layer, or no hidden one at all.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        num_classes: int,
        epochs: int,
        layers: Sequence[str] | None = None,
        weight: float = 0.3,
        until: float = 1.0,
        gamma: float = 0.0,
        loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy",
        pool: int | None = 4,
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, not {loss!r}")
        if weight < 0 or gamma < 0 or not 0 < until <= 1:
            raise ValueError(f"weight {weight} and gamma {gamma} must not be negative, until {until} be in (0, 1]")
        self.watches = tuple(hidden_blocks(model, example) if layers is None else layers)
        self.weight, self.gamma, self.last = weight, gamma, until * epochs
        self.loss = _LOSSES[loss]
        # (B, L, D) is a sequence where there is nothing that would give (B, channels, L).
        sequences = not any(isinstance(module, nn.Conv1d) for module in model.modules())
        shapes = output_shapes(model, example, self.watches)
        with torch.random.fork_rng(devices=[]):  # what the network draws afterwards is what it would draw without companions
            self.companions = nn.ModuleList(
                Companion(shape, num_classes, pool, sequences and len(shape) == 3)
                for shape in (shapes[name] for name in self.watches)
            )

    def forward(self, logits: Tensor, labels: Tensor, layers: Mapping[str, Tensor], epoch: int) -> Tensor:
        total = self.loss(logits, labels)
        weight = self.weight * max(0.0, 1 - epoch / self.last)
        if not weight:
            return total
        for name, companion in zip(self.watches, self.companions, strict=True):
            total = total + weight * (self.loss(companion(layers[name]), labels) - self.gamma).relu()
        return total


@treatment
def deeply_supervised(
    recipe: Recipe,
    layers: Sequence[str] | None = None,
    weight: float = 0.3,
    until: float = 1.0,
    gamma: float = 0.0,
    loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy",
    pool: int | None = 4,
) -> Recipe:
    """Train with a companion on every main block of the network; see :class:`DeepSupervision`."""
    settings = {"weight": weight, "until": until, "gamma": gamma, "loss": loss, "pool": pool}
    named = None if layers is None else tuple(layers)
    # The length is that of the training when it begins: another treatment may still change it.
    return with_loss(recipe, per_example(DeepSupervision, layers=named, **settings))


# ---------------------------------------------------------------------------------------------------- claims

_SIZES = ("few", "some", "many")


def _digits(lab: Lab, size: str) -> Recipe:
    """A LeNet on so many digits, as many epochs whatever the size."""
    images = dict(zip(_SIZES, lab.pick(smoke=(50, 100, 200), laptop=(200, 800, 3200), full=(500, 5_000, 50_000)), strict=True))
    data = lab.data(lab.pick(smoke="digits16", laptop="digits16", full="mnist"))
    data = data.subset(train=images[size], test=100 if lab.scale == "smoke" else None, seed=lab.seed)
    return lenet_on(data, epochs=lab.pick(smoke=1, laptop=20, full=50)).replace(watch=())


_SCALED_DOWN = (
    "MNIST digits of 16x16 from the 4,000 of mnist5k (all 1,000 tests), a LeNet of 16 and 32 planes with companions on both "
    "convolutions, 20 epochs whatever the number of digits (80 steps on 200, 1,000 on 3,200: a quicker start counts, too); the "
    "paper has all 60,000 of 28x28, and Network-in-Network on CIFAR."
)


@claim(
    "A LeNet that is trained on 200 digits classifies test digits better with companions than without, and the gain is larger "
    "than that on 3,200 digits.",
    expect=(Higher("supervised, few", than="plain, few"), Higher("gain, few", than="gain, many")),
    reported=Reported(
        "MNIST without augmentation: test accuracy",
        {"plain": 0.9947, "supervised": 0.9961},
        where="Table 1, where the plain network is one of the literature; the gain by size of the training set is its Figure 2",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
)
def helps_when_data_are_scarce(lab: Lab) -> Measured:
    runs = {
        arm: {size: lab.train(treat(_digits(lab, size))) for size in _SIZES}
        for arm, treat in (("plain", _untreated), ("supervised", deeply_supervised))
    }
    scores = {arm: {size: trained.accuracy() for size, trained in found.items()} for arm, found in runs.items()}
    arms: dict[str, float | Curve] = {f"{arm}, {size}": score for arm, found in scores.items() for size, score in found.items()}
    for arm, found in scores.items():
        sizes = [len(trained.recipe.data.train) for trained in runs[arm].values()]
        arms[arm] = Curve(list(found.values()), sizes, x_name="training images", y_name="test accuracy")
    gains = {f"gain, {size}": Score(scores["supervised"][size] - scores["plain"][size]) for size in _SIZES}
    return {**arms, **gains}


def _untreated(recipe: Recipe) -> Recipe:
    return recipe


def deep_tanh(
    in_channels: int, num_classes: int, size: int, depth: int = 8, planes: int = 16, std: float = 0.03
) -> nn.Sequential:
    """A plain network that is hard to train: 3x3 convolutions with tanh, started so small that signals die away.

    Args:
        in_channels: of the images.
        num_classes: number of logits.
        size: height and width of the images.
        depth: convolutions.
        planes: of each.
        std: of the first weights.
    """
    layers: list[nn.Module] = []
    for place in range(depth):
        layers += [nn.Conv2d(in_channels if place == 0 else planes, planes, 3, padding=1), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(planes * size * size, num_classes))
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return net


@dataclass(frozen=True)
class _FirstGradient(Hook):
    """Keeps how long the gradient at the first weights is, step by step."""

    def after_backward(self, run: Run) -> None:
        """One more number."""
        length = next(run.model.parameters()).grad.norm().reshape(1)  # type: ignore[union-attr]
        run.memory["gradient"] = torch.cat([run.memory.get("gradient", length[:0]), length])


@claim(
    "A network of eight tanh convolutions that starts with weights of standard deviation 0.03 classifies fewer than half of the "
    "test digits after ten epochs; with companions it classifies more than 90% of them, and in the first epoch the gradient at "
    "its first layer is at least ten times as long.",
    expect=(
        Below("plain", 0.5),
        Above("supervised", 0.9),
        Higher("gradient, supervised", than="gradient, plain", times=10),
    ),
    scaled_down="1,437 digits of 8x8 and 16 planes; the paper argues with gradients and shows no such experiment.",
    unit="test accuracy, or mean length of the gradient in the first epoch",
)
def rescues_deep_plain_nets(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="digits", laptop="digits", full="mnist"))
    if lab.scale == "smoke":
        data = data.subset(train=200, test=100)
    channels, size, _ = data.input_shape
    plain = Recipe(
        data,
        model=partial(deep_tanh, channels, data.num_classes, size),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        epochs=lab.pick(smoke=1, laptop=10, full=10),
        batch_size=64,
        hooks=(_FirstGradient(),),
        watch=(),
    )
    arms: dict[str, float | Curve] = {}
    for arm, recipe in (("plain", plain), ("supervised", deeply_supervised(plain))):
        trained = lab.train(recipe)
        lengths = trained.memory["gradient"]
        first = lengths[: len(lengths) // recipe.epochs].mean().item()
        arms[arm] = trained.accuracy()
        arms[f"gradient, {arm}"] = Curve(
            lengths.tolist(), value=first, cost=trained.cost, x_name="step", y_name="length of the gradient at the first layer"
        )
    return arms


def linear_accuracy(trained: Trained, layer: str, seed: int) -> float:
    """Test accuracy of a linear SVM on what a hidden layer gives, fitted on the training split."""
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        kept: list[Tensor] = []
        module = trained.model.get_submodule(layer)
        handle = module.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out.flatten(1).cpu()))
        trained.logits(split)
        handle.remove()
        found[split] = torch.cat(kept).numpy()
    model = make_pipeline(StandardScaler(), LinearSVC(C=0.01, random_state=seed))
    model.fit(found["train"], trained.recipe.data.train.labels.numpy())
    return float(model.score(found["test"], trained.recipe.data.test.labels.numpy()))


@claim(
    "A linear SVM on any hidden layer of a LeNet that was trained on 800 digits classifies test digits better if the network was "
    "trained with companions.",
    expect=(
        Higher("first convolution, supervised", than="first convolution, plain"),
        Higher("second convolution, supervised", than="second convolution, plain"),
        Higher("hidden units, supervised", than="hidden units, plain"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy of a linear SVM",
)
def hidden_layers_are_more_linear(lab: Lab) -> Measured:
    layers = {"first convolution": "relu1", "second convolution": "relu2", "hidden units": "relu3"}
    arms: dict[str, float] = {}
    for arm, treat in (("plain", _untreated), ("supervised", deeply_supervised)):
        trained = lab.train(treat(_digits(lab, "some")))
        cost = Cost(seconds=trained.seconds, parameters=trained.parameters)
        for label, layer in layers.items():
            arms[f"{label}, {arm}"] = Score(linear_accuracy(trained, layer, lab.seed), cost)
    return arms
