"""Very large dropout: fine-tuning that keeps all the features that help, not only the first that suffice.

A network that was trained on photos from one place is used at another, where some of its features mislead. Training looks
for the features that are enough on its own data and has no reason to keep any more. Ensembles and averages of weights do
better elsewhere because several trainings find several sets of features. The paper finds a cheaper way: a *pre-trained* network
has many features already; fine-tune it with a dropout of about 90 % on its last hidden layer, and every tenth of the features
must do the whole work, so that none that helps is forgotten:

    logits = W (m * phi(x) / (1 - p)) + b,    m_j = 1 with probability 1 - p, else 0;  without a mask in the test

From random weights such a dropout does not work: there are no features yet that a tenth could be chosen of.

Source: Zhang and Bottou, "Fine-tuning with Very Large Dropout", 2024 (arXiv:2403.00946).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.data.scenes import scenes
from assay.errors import AssayError
from assay.nn.convnet import classifier, plain_layers
from assay.nn.ending import last_linear
from assay.nn.weights import load_weights
from assay.paper import Curve, Higher, Lower, claim
from assay.papers.training.compute_efficient.methods import AveragedWeights
from assay.recipe import Recipe, treatment
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


class LargeDropoutHead(nn.Module):
    """A pre-trained network with a new last layer, before which nearly all features are dropped in training.

        model = LargeDropoutHead(backbone, feature_dim=2048, num_classes=65)   # then train all of it as usual

    Args:
        backbone: (B, ...) -> (B, F) features, after pooling: dropping whole maps before it would be another method.
        feature_dim: F. Of fewer than a hundred features a tenth is not enough; take a smaller ``rate`` then.
        num_classes: C.
        rate: the probability that a feature is dropped, in [0, 1); the paper takes 0.9 throughout.

    Shape: (B, ...) -> logits (B, C).
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int, rate: float = 0.9) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(_rate(rate))
        self.head = nn.Linear(feature_dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.backbone(inputs)))
        return logits


class _Dropping(nn.Linear):
    """A linear layer that drops its inputs in training; its weights keep their names, and it is still the last linear layer."""

    def __init__(self, layer: nn.Linear, rate: float) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")  # draws nothing: the weights are the layer's
        self.weight, self.bias, self.rate = layer.weight, layer.bias, rate

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.dropout(features, self.rate, self.training), self.weight, self.bias)


def dropping(model: nn.Module, rate: float = 0.9) -> nn.Module:
    """The network with a dropout before its last linear layer; weights and their names stay as they are.

    In a network of this kind already, the rate is replaced.

    Args:
        model: any network whose last linear layer gives the logits; it is changed and returned.
        rate: the probability that a feature is dropped, in [0, 1).

    Raises:
        AssayError: there is no linear layer.
    """
    _rate(rate)
    found = last_linear(model)
    if found is None:
        raise AssayError("The network has no linear layer before which features could be dropped.")
    place, layer = found
    if layer is model:
        return _Dropping(layer, rate)
    parent, _, name = place.rpartition(".")
    setattr(model.get_submodule(parent), name, _Dropping(layer, rate))
    return model


def _rate(rate: float) -> float:
    if not 0 <= rate < 1:
        raise AssayError(f"The rate of a dropout is {rate}: give a number from 0 to less than 1, as 0.9.")
    return rate


def _built(build: Callable[[], nn.Module], rate: float) -> nn.Module:
    return dropping(build(), rate)


@treatment
def very_large_dropout(recipe: Recipe, rate: float = 0.9) -> Recipe:
    """Drop nearly all features before the last linear layer in training.

    Made for fine-tuning: the recipe's network should start from pre-trained weights (:func:`pretrained`). From random weights
    it is worse than no dropout.

    Args:
        recipe: how to train; everything but the network's last layer stays.
        rate: the probability that a feature is dropped (paper: 0.9).
    """
    return recipe.replace(model=partial(_built, recipe.model, _rate(rate)))


def pretrained(build: Callable[[], nn.Module], weights: Mapping[str, Tensor], new: tuple[str, ...]) -> nn.Module:
    """A network that starts from weights of a former training, but for the layers whose names begin with one of ``new``."""
    model = build()
    load_weights(model, weights, leave=new)
    return model


# ------------------------------------------------------------------------------------------------------------ claims

_LINES = "16 M 32 M 64 M 256"
_HEAD = ("1.",)
_HELD_OUT = ("post office", "on photos")


def _net(classes: int = 10) -> nn.Sequential:
    """Four convolutions and the mean over what they see: 256 features, for pictures of 16 pixels."""
    return nn.Sequential(plain_layers(_LINES, 1, batch_norm=True), classifier(256, classes))


def _small(images: Tensor) -> Tensor:
    """28 pixels to 16, as the post office's digits have."""
    return F.interpolate(images, size=(16, 16), mode="area")


def _resized(data: Dataset) -> Dataset:
    train, test = (
        Split(_small(split.inputs), split.labels) for split in (data.train, data.test) if isinstance(split.inputs, Tensor)
    )
    nothing = train.take(torch.arange(0))
    return Dataset(f"{data.name} at 16 pixels", data.task, train, nothing, test, data.classes, data.licence)


def domains(lab: Lab) -> dict[str, Split]:
    """Digits in four manners, of different writers each: ink on paper, its negative, the post office's, and on photos."""
    count = lab.pick(smoke=60, laptop=1000, full=5000)
    paper = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    everyone = torch.cat([paper.train.inputs, paper.test.inputs]), torch.cat([paper.train.labels, paper.test.labels])  # type: ignore[list-item]
    order = torch.randperm(len(everyone[1]), generator=torch.Generator().manual_seed(0))[: 3 * count].split(count)
    first, second, third = (Split(everyone[0][rows], everyone[1][rows]) for rows in order)
    letters = lab.data("usps")
    rows = torch.randperm(len(letters.train), generator=torch.Generator().manual_seed(1))[:count]
    post = letters.train.take(rows)
    digits = Dataset("digits", "classification", third, third.take(torch.arange(0)), third.take(torch.arange(0)), paper.classes)
    pasted = scenes(digits, lab.data("cbsd68"), size=28, objects=(1, 1), scale=(1.0, 1.0), count=(count, 0, 0)).train
    assert isinstance(first.inputs, Tensor)
    assert isinstance(second.inputs, Tensor)
    assert isinstance(post.inputs, Tensor)
    return {
        "ink": Split(_small(first.inputs), first.labels),
        "negative": Split(_small(1 - second.inputs), second.labels),
        "post office": Split(_small(post.inputs), post.labels),
        "on photos": Split(_small(pasted.images), pasted.labels[:, 0]),
    }


def _leaving_out(lab: Lab, held_out: str) -> Dataset:
    """All domains but one to train on, a fifth of them to validate, the one to test on."""
    found = domains(lab)
    test = found.pop(held_out)
    inputs = torch.cat([split.inputs for split in found.values()])  # type: ignore[misc]
    both = Split(inputs, torch.cat([split.labels for split in found.values()]))
    nothing = both.take(torch.arange(0))
    classes = tuple("0123456789")
    return Dataset(f"digits but {held_out}", "classification", both, nothing, test, classes).holdout(0.2, seed=0)


def _clothes(lab: Lab) -> Trained:
    """What the networks start from: one and the same for all seeds, as a network from the net would be."""
    clothes = _resized(lab.data("fashion-mnist").subset(train=lab.pick(smoke=300, laptop=20_000, full=60_000), test=100))
    recipe = Recipe(
        clothes,
        model=_net,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=4, full=20),
        batch_size=128,
    )
    return lab.train(recipe, seed=0)


def _fine_tuned(lab: Lab, held_out: str, scratch: bool = False) -> Recipe:
    """Plain fine-tuning of the whole network, or the same training from random weights."""
    start = partial(pretrained, _net, {name: value.cpu() for name, value in _clothes(lab).model.state_dict().items()}, _HEAD)
    return Recipe(
        _leaving_out(lab, held_out),
        model=_net if scratch else start,
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=5e-5),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=12, full=60),
        batch_size=100,
        watch=("valid", "test"),
    )


def _inside(trained: Trained) -> float:
    return trained.history["valid_accuracy"][-1]


_SCALED_DOWN = (
    "A network of four convolutions pre-trained on 20,000 clothes of 16 pixels, fine-tuned for 288 steps on three manners of 800 "
    "digits; the paper has ResNet-50 from ImageNet and five collections of photos. One learning rate for all arms."
)


@claim(
    "A pre-trained network that was fine-tuned with a dropout of 90 % is more accurate on a manner of digits that it never "
    "saw (the post office's, or pasted on photos) than one fine-tuned without, and than the average of that one's weights.",
    expect=(
        Higher("post office, dropout 0.9", than="post office, none"),
        Higher("on photos, dropout 0.9", than="on photos, none"),
        Higher("on photos, dropout 0.9", than="on photos, averaged weights"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy on the manner that was held out",
    needs=("fashion-mnist", "usps", "cbsd68"),
)
def better_elsewhere(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for place in _HELD_OUT:
        plain = _fine_tuned(lab, place)
        arms[f"{place}, none"] = lab.train(plain).accuracy()
        rates = (0.5, 0.9) if place == "on photos" else (0.9,)
        for rate in rates:
            trained = lab.train(very_large_dropout(plain, rate))
            arms[f"{place}, dropout {rate}"] = trained.accuracy()
    averaged = plain.replace(hooks=(AveragedWeights(half_life=0.1),))
    arms["on photos, averaged weights"] = lab.train(averaged).accuracy()
    return arms


@claim(
    "One network fine-tuned with a dropout of 90 % is as accurate on digits pasted on photos, which none of them saw, as an "
    "ensemble of three networks that were fine-tuned without: at most a point below.",
    expect=Higher("one, dropout 0.9", than="three without", by=-0.01),
    scaled_down=_SCALED_DOWN + " An ensemble of three, of networks that differ in their order and new last layer.",
    unit="accuracy on the manner that was held out",
    needs=("fashion-mnist", "usps", "cbsd68"),
)
def as_good_as_an_ensemble(lab: Lab) -> Measured:
    plain = _fine_tuned(lab, "on photos")
    members = [lab.train(plain, seed=lab.seed + offset) for offset in (0, 1000, 2000)]
    together = torch.stack([member.logits("test").softmax(dim=1) for member in members]).mean(dim=0)
    return {
        "one, none": members[0].accuracy(),
        "three without": (together.argmax(dim=1) == plain.data.test.labels.to(together.device)).double().mean().item(),
        "one, dropout 0.9": lab.train(very_large_dropout(plain)).accuracy(),
    }


@claim(
    "From random weights the same training with a dropout of 90 % is more than three points worse on the held-out manner than "
    "without; where it would be judged, on held-out digits of the manners trained on, it is worse too.",
    expect=(
        Lower("from random weights, dropout 0.9", than="from random weights, none", by=0.03),
        Lower("inside: random weights, dropout 0.9", than="inside: random weights, none"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy on the manner that was held out; inside: on the manners trained on",
    needs=("fashion-mnist", "usps", "cbsd68"),
)
def not_from_random_weights(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for start, scratch in (("pre-trained", False), ("from random weights", True)):
        plain = _fine_tuned(lab, "on photos", scratch)
        for name, recipe in (("none", plain), ("dropout 0.9", very_large_dropout(plain))):
            trained = lab.train(recipe)
            arms[f"{start}, {name}"] = trained.accuracy()
            arms[f"inside: {start.removeprefix('from ')}, {name}"] = _inside(trained)
    return arms


@claim(
    "After fine-tuning with a dropout of 90 % the features are redundant: with a random tenth of them the network loses less "
    "than half the accuracy that the network fine-tuned without loses.",
    expect=Lower("loss with a tenth, dropout 0.9", than="loss with a tenth, none", times=0.5),
    scaled_down=_SCALED_DOWN,
    unit="accuracy lost when features are left out, on held-out digits of the manners trained on",
    needs=("fashion-mnist", "usps", "cbsd68"),
)
def features_are_redundant(lab: Lab) -> Measured:
    plain = _fine_tuned(lab, "on photos")
    kept = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
    arms: dict[str, float | Curve] = {}
    for name, recipe in (("none", plain), ("dropout 0.9", very_large_dropout(plain))):
        model = lab.train(recipe).model
        accuracy = [_with_some(model, recipe.data.valid, share, lab.generator(7)) for share in kept]
        arms[f"loss with a tenth, {name}"] = Curve(
            accuracy,
            x=kept,
            value=accuracy[0] - accuracy[kept.index(0.1)],
            x_name="share of the features kept",
            y_name="accuracy",
        )
    return arms


@torch.no_grad()
def _with_some(model: nn.Module, split: Split, share: float, generator: torch.Generator, draws: int = 10) -> float:
    """Accuracy with a random share of the features, scaled up by its inverse; the mean of several draws."""
    assert isinstance(model, nn.Sequential)
    body, head = model
    assert isinstance(head, nn.Sequential)
    assert isinstance(split.inputs, Tensor)
    device = next(model.parameters()).device
    features = head[:2](body(split.inputs.to(device)))
    draws = 1 if share == 1.0 else draws
    keep = (torch.rand(draws, 1, features.shape[1], generator=generator) < share).to(features)
    logits = head[2](features * keep / share)  # (draws, N, C)
    accuracy: float = (logits.argmax(dim=2) == split.labels.to(device)).double().mean().item()
    return accuracy
