"""Inception-v3: spend multiplications where they tell most.

A block of the Inception family looks at its input through filters of several sizes side by side and puts the answers together,
after 1x1 convolutions have made the input thin. Wide filters are the dear part: 7x7 costs 49 multiplications a place and pair of
planes. Nearby activations are alike, the paper argues, so a wide filter can be taken apart with little loss: 5x5 into two of
3x3, n x n into one of 1 x n and one of n x 1 (2n instead of n^2), with ReLU between the parts. This pays on maps of 12 to 20
places a side, not on larger ones. Where the picture shrinks, a convolution and a maximum with stride 2 stand side by side, so
that no narrow place throws information away before the planes have become many.

Two things come with the network. *Label smoothing*: if the target puts a share eps of its probability on all classes, logits need
not grow without end, and the network stays able to learn. *An auxiliary classifier* on a middle layer: it was thought to carry
gradients to the early layers; the paper finds that it changes nothing early in the training, helps a little at its end, and more
so with batch normalisation, and takes it for a regulariser.

Source: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016;
table and figure numbers are those of the arXiv version. The text leaves details open; the layers are those of the authors'
released network, whose first blocks keep a filter of 5x5. Filters start as in their code, with He's variance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn.calibration import reliability
from assay.nn.convnet import ConvNorm
from assay.nn.inception import chain, dropped_classifier, factorize, mixed
from assay.nn.initialise import he_normal
from assay.nn.measure import macs, nearest_width, parameters
from assay.nn.weights import load_weights
from assay.paper import Below, Configuration, Curve, Higher, Lower, Reported, claim
from assay.papers.training.compute_efficient.methods import averaged_weights
from assay.recipe import Recipe, network_of_images, per_example, treatment, with_loss
from assay.train.augment import flip_and_crop
from assay.train.schedules import exponential, warmup_cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

# The network as a table (:mod:`assay.nn.inception` says how to read it): 299x299 pictures become maps of 35x35, 17x17, 8x8.
STEM = "32k3/2 32k3v 64k3 max 80 192k3v max"
_C = "192 | {0} {0}k1x7 192k7x1 | {0} {0}k7x1 {0}k1x7 {0}k7x1 192k1x7 | avg 192"
_E = "320 | 384 384k1x3+3x1 | 448 384k3 384k1x3+3x1 | avg 192"
STAGES = (
    tuple(f"64 | 48 64k5 | 64 96k3 96k3 | avg {pooled}" for pooled in (32, 64, 64)),
    ("384k3/2 | 64 96k3 96k3/2 | max", *(_C.format(inner) for inner in (128, 160, 160, 192))),
    ("192 320k3/2 | 192 192k1x7 192k7x1 192k3/2 | max", _E, _E),
)

# The same plan for small pictures: 28x28 become 13x13, where filters of 7x7 can be taken apart, and 6x6.
SMALL_STEM = "16k3/2"
SMALL_STAGES = (("8 | 8 8k7 | 8 8k7 8k7 | avg 8",), ("16 32k3/2 | max", "16 | 16 16k1x3+3x1 | avg 16"))


class InceptionV3(nn.Module):
    """A stem, stages of blocks, a classifier, and perhaps an auxiliary one on the last stage but one: stem, stages, head, aux.

    In training the auxiliary classifier runs beside the others, and what it returns is for those who watch the module ``aux``
    (:class:`AuxiliaryLoss` in a recipe) or call :meth:`with_aux`. In evaluation it costs nothing.

    Made by :func:`inception_v3` and :func:`small_inception`, with filters in channels_last, which is the faster layout.

    Shape: (B, in_channels, H, W) -> (B, num_classes).
    """

    def __init__(self, stem: nn.Module, stages: nn.Sequential, head: nn.Module, aux: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.stages, self.head, self.aux = stem, stages, head, aux

    def forward(self, images: Tensor) -> Tensor:
        middle = self._middle(images)
        if self.training and self.aux is not None:
            self.aux(middle)
        logits: Tensor = self.head(self.stages[-1](middle))
        return logits

    def with_aux(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both classifiers, for a training loop of one's own: ``loss(logits) + 0.4 * loss(aux)``.

        Raises:
            ValueError: the network has no auxiliary classifier.
        """
        if self.aux is None:
            raise ValueError("the network has no auxiliary classifier: make it with one")
        middle = self._middle(images)
        return self.head(self.stages[-1](middle)), self.aux(middle)

    def _middle(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stem(images)
        for place in range(len(self.stages) - 1):
            maps = self.stages[place](maps)
        return maps


def auxiliary_head(
    planes: int,
    num_classes: int,
    inner: int,
    units: int,
    pool: tuple[int, int] = (5, 3),
    kernel: int = 5,
    batch_norm: bool = True,
) -> nn.Sequential:
    """A classifier on a middle layer: mean, 1x1, a convolution without zeros around, mean over the picture, one linear layer.

    Args:
        planes: of the layer.
        num_classes: number of logits.
        inner: planes behind the 1x1 convolution.
        units: planes behind the second one.
        pool: side and stride of the first mean.
        kernel: side of the second convolution; the layer must be at least ``pool[0] + (kernel - 1) * pool[1]`` places wide.
        batch_norm: whether both convolutions are normalised, as the paper recommends.
    """

    def layer(entering: int, leaving: int, side: int) -> nn.Module:
        if batch_norm:
            return ConvNorm(entering, leaving, side, padding=0, eps=1e-3)
        return nn.Sequential(nn.Conv2d(entering, leaving, side), nn.ReLU())

    parts = OrderedDict[str, nn.Module](
        pool=nn.AvgPool2d(*pool), reduce=layer(planes, inner, 1), conv=layer(inner, units, kernel)
    )
    last = OrderedDict[str, nn.Module](mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(units, num_classes))
    return nn.Sequential(parts | last)


def _network(
    stem: str,
    stages: Sequence[Sequence[str]],
    in_channels: int,
    num_classes: int,
    width: float,
    dropout: float,
    aux: partial[nn.Sequential] | None,
) -> InceptionV3:
    first, planes = chain(stem, in_channels, width)
    made, ends = [], []
    for stage in stages:
        blocks = []
        for line in stage:
            blocks.append(mixed(line, planes, width))
            planes = blocks[-1].planes
        made.append(nn.Sequential(*blocks))
        ends.append(planes)
    net = InceptionV3(first, nn.Sequential(*made), dropped_classifier(planes, num_classes, dropout))
    he_normal(net, "fan_in")
    if aux is not None:  # comes last, so that the same seed gives the others the same weights without it
        net.aux = aux(ends[-2], num_classes)
        he_normal(net.aux, "fan_in")
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def inception_v3(
    num_classes: int = 1000, in_channels: int = 3, aux: bool = True, width: float = 1.0, dropout: float = 0.5
) -> InceptionV3:
    """The network for large images.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        aux: whether there is an auxiliary classifier, with batch normalisation, on the last map of 17x17.
        width: factor of all planes.
        dropout: before the last layer.

    Shape: (B, in_channels, H, W) -> (B, num_classes); H and W are 299 in the paper, and any of at least 75. To train with the
    auxiliary classifier takes 299 or nearly so.
    """
    side = partial(auxiliary_head, inner=max(1, round(128 * width)), units=max(1, round(768 * width))) if aux else None
    return _network(STEM, STAGES, in_channels, num_classes, width, dropout, side)


Filters = Literal["factorized", "linear", "full"]
Auxiliary = Literal["normalized", "plain"]


def small_inception(
    num_classes: int = 10,
    in_channels: int = 1,
    width: float = 1.0,
    filters: Filters = "factorized",
    aux: Auxiliary | None = None,
    stride: int = 2,
) -> InceptionV3:
    """Two blocks and a reduction for small images: 14,000 parameters and a million multiply-adds at 28x28.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        width: factor of all planes.
        filters: what stands for a filter of 7x7: 1x7 and 7x1 with ReLU between them, the same without (``"linear"``), or itself.
        aux: an auxiliary classifier, with batch normalisation or without.
        stride: of the first convolution: 2, or 1 for images of fewer than 20 pixels a side.

    Shape: (B, in_channels, H, W) -> (B, num_classes); H and W of at least 15 with stride 2, 7 with stride 1.

    Raises:
        ValueError: there are no such filters, classifier or stride.
    """
    if filters not in ("factorized", "linear", "full") or aux not in ("normalized", "plain", None) or stride not in (1, 2):
        raise ValueError(
            f"filters must be 'factorized', 'linear' or 'full', aux 'normalized', 'plain' or None, stride 1 or 2, not "
            f"{filters!r}, {aux!r}, {stride!r}"
        )
    stem = SMALL_STEM if stride == 2 else SMALL_STEM.replace("/2", "")
    table = [[line if filters == "full" else factorize(line, filters == "linear") for line in stage] for stage in SMALL_STAGES]
    inner, units = max(1, round(16 * width)), max(1, round(48 * width))
    side = partial(auxiliary_head, inner=inner, units=units, pool=(3, 2), kernel=3, batch_norm=aux == "normalized")
    return _network(stem, table, in_channels, num_classes, width, 0.0, None if aux is None else side)


#: The network for small images that is compared with other architectures: 54,000 parameters.
small = partial(small_inception, width=2.0)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, eps: float = 0.1, prior: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy with the target ``(1 - eps) label + eps prior`` (sec. 7).

    Args:
        logits: (B, C).
        labels: (B,) int64, or (B, C) float shares of the classes.
        eps: share of the target that does not depend on the label, in [0, 1].
        prior: C shares of the classes that sum to 1; ``None`` takes all classes alike, as the paper does. Torch has this case as
            ``F.cross_entropy(logits, labels, label_smoothing=eps)``; with frequencies of the classes rare ones are not favoured.
    """
    log_probs = logits.log_softmax(dim=1)
    spread = log_probs.mean(dim=1) if prior is None else log_probs @ log_probs.new_tensor(prior)  # (B,)
    return (1 - eps) * F.cross_entropy(logits, labels) - eps * spread.mean()


class AuxiliaryLoss(nn.Module):
    """Cross-entropy of the network and, by ``weight``, of its auxiliary classifier.

    Args:
        layer: name of the module that gives the auxiliary logits.
        weight: 0.4 in the authors' code; the paper does not say.
        eps: of :func:`smoothed_cross_entropy`, for both.

    Shape: logits (B, C), labels (B,) int64 or (B, C) float, layers (name -> output) -> scalar.
    """

    def __init__(self, layer: str = "aux", weight: float = 0.4, eps: float = 0.0) -> None:
        super().__init__()
        self.watches, self.weight, self.eps = (layer,), weight, eps

    def forward(self, logits: Tensor, labels: Tensor, layers: Mapping[str, Tensor]) -> Tensor:
        aside = smoothed_cross_entropy(layers[self.watches[0]], labels, self.eps)
        return smoothed_cross_entropy(logits, labels, self.eps) + self.weight * aside


_BLOCKS = {"5b": "0.0", "5c": "0.1", "5d": "0.2", **{f"6{x}": f"1.{i}" for i, x in enumerate("abcde")}}
_BLOCKS |= {"7a": "2.0", "7b": "2.1", "7c": "2.2"}
_STEM = {"1a_3x3": 0, "2a_3x3": 1, "2b_3x3": 2, "3b_1x1": 4, "4a_3x3": 5}

#: torchvision's and timm's names -> ours, for :func:`assay.nn.weights.load_weights`.
NAMES = (
    (r"^Conv2d_(\w+)\.", lambda found: f"stem.{_STEM[found[1]]}."),
    (r"^Mixed_(\w\w)\.", lambda found: f"stages.{_BLOCKS[found[1]]}."),
    (r"^AuxLogits\.conv0\.", "aux.reduce."),
    (r"^AuxLogits\.conv1\.", "aux.conv."),
    (r"^AuxLogits\.", "aux."),
    (r"^fc\.", "head.fc."),
    (r"\.bn\.", ".norm."),
    # Which branch a convolution belongs to depends on the block: the second reduction's have the names of other blocks' second.
    (r"^(stages\.[12]\.0)\.branch3x3(_1)?\.", r"\1.0.0."),
    (r"^(stages\.2\.0)\.branch3x3_2\.", r"\1.0.1."),
    (r"^(stages\.1\.0)\.branch3x3dbl_", r"\1.branch3x3_"),
    (r"\.branch7x7x3_", ".branch7x7_"),
    (r"\.branch1x1\.", ".0.0."),
    (r"\.branch_pool\.", ".3.1."),
    (r"\.branch\dx\d(dbl)?_(\d)([ab]?)", lambda f: f".{2 if f[1] else 1}.{int(f[2]) - 1}" + {"": "", "a": ".0", "b": ".1"}[f[3]]),
)


def load_pretrained(model: InceptionV3, source: str | Path | Mapping[str, Tensor], head: bool = True) -> InceptionV3:
    """Fill a network of :func:`inception_v3` with weights of torchvision or timm; returns the network.

    Args:
        model: e.g. ``inception_v3(aux=False)``. Without an auxiliary classifier, that of the source is not used.
        source: a state dict, a .safetensors (or torchvision's .pth) file, or a model that lies in the hub's cache, as
            ``"timm/inception_v3.tv_in1k"``. Images must be RGB in [0, 1], minus 0.5, over 0.5 (torchvision's ``transform_input``
            does the same to images that were normalised as for other networks).
        head: whether the last layers are taken too; ``False`` for other classes than ImageNet's.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    leave = () if model.aux is not None else ("aux.",)
    load_weights(model, source, NAMES, leave=leave if head else (*leave, "head.", "aux.fc."))
    return model


#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "inception_v3()": Configuration(
        (3, 299, 299), parameters=27_161_264, macs=5_713_216_096, layers=48, sees=1311, activations=8_967_488
    ),
    "inception_v3(aux=False)": Configuration(
        (3, 299, 299), parameters=23_834_568, macs=5_713_216_096, layers=48, sees=1311, activations=8_967_488
    ),
    "small_inception()": Configuration((1, 28, 28), parameters=14_170, macs=984_080, layers=11, sees=39, activations=22_960),
}


@treatment
def inception_net(recipe: Recipe) -> Recipe:
    """An Inception network for small images in place of the recipe's, as wide as comes nearest to its number of parameters.

    Both have what the recipe gives them: data, loss, optimizer, epochs. The price in seconds is the method's.

    Raises:
        AssayError: the data are no images or no classes, or the images are smaller than 7x7.
    """
    target, data = parameters(network_of_images(recipe, "Inception networks", "inception_v3")), recipe.data
    channels, *sides = data.input_shape
    if min(sides) < 7:
        raise AssayError(f"The images of {data.name!r} are smaller than 7x7, too small for an Inception network: leave it out.")
    make = partial(small_inception, data.num_classes, channels, stride=2 if min(sides) >= 20 else 1)
    eighths = nearest_width(lambda eighths: make(width=eighths / 8), target, range(1, 129))
    return recipe.replace(model=partial(make, width=eighths / 8))


@treatment
def label_smoothing(recipe: Recipe, eps: float = 0.1, prior: Sequence[float] | None = None) -> Recipe:
    """Train on targets of which all classes share ``eps``; see :func:`smoothed_cross_entropy`."""
    return with_loss(recipe, partial(smoothed_cross_entropy, eps=eps, prior=None if prior is None else tuple(prior)))


def paper_training(recipe: Recipe) -> Recipe:
    """The paper's training (sec. 8) for a recipe's data and network: what it sets apart from the usual momentum.

    RMSProp with decay 0.9 and eps 1 (torch adds it to the root, TensorFlow within), rate 0.045, which falls by 6 % every second
    of 100 epochs, here over however many there are; gradients no longer than 2, label smoothing, weights averaged at the end.
    """
    averaged = averaged_weights(label_smoothing(recipe))
    rms = partial(torch.optim.RMSprop, lr=0.045, alpha=0.9, eps=1.0)
    return averaged.replace(optimizer=rms, schedule=partial(exponential, final=0.94**50), clip_norm=2.0)


# ---------------------------------------------------------------------------------------------------- claims

# Chosen before anything was judged: the training (by the time that it takes), the margins, and the rate: of 0.002, 0.006 and 0.02
# the best on held-out images for the network with filters of 7x7, which is the control.
_SCALED_DOWN = (
    "A network of 14,000 parameters, with 7x7 filters on maps of 13x13, and 2,000 Fashion-MNIST images (4,000 tests) instead of "
    "Inception-v3 and ImageNet; 6 epochs of AdamW, no augmentation."
)


def _recipe(lab: Lab, filters: Filters = "factorized", aux: Auxiliary | None = None) -> Recipe:
    """The same training for every network: AdamW, whose rate rises first and then falls."""
    data = lab.data(lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="cifar10"))
    if lab.scale != "full":
        images, tests = lab.pick(smoke=(128, 100), laptop=(2000, 4000), full=(0, 0))
        data = data.subset(train=images, test=tests, seed=lab.seed)
    width = lab.pick(smoke=0.5, laptop=1.0, full=8.0)
    plain = Recipe(
        data.normalise(),
        model=partial(small_inception, 10, data.input_shape[0], width=width, filters=filters, aux=aux),
        optimizer=partial(torch.optim.AdamW, lr=0.02),
        schedule=partial(warmup_cosine, warmup=0.1),
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=1, laptop=6, full=100),
        batch_size=64,
        watch=(),
    )
    return plain if aux is None else plain.replace(loss=per_example(AuxiliaryLoss))


@claim(
    "With 1x7 and 7x1 in place of 7x7 a network needs less than 70 % of the multiplications, and classifies test images at most "
    "half a point worse.",
    expect=(
        Higher("1x7 and 7x1", than="7x7", by=-0.005),
        Below("share of the multiplications, 1x7 and 7x1", 0.7),
    ),
    reported=Reported(
        "ImageNet, one crop: top-1 accuracy before and after the 7x7 of the first layer is taken apart into three of 3x3",
        {"7x7": 0.772, "1x7 and 7x1": 0.784},
        where="Table 3",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy, or share of the multiply-adds with 7x7",
    needs=("fashion-mnist",),
)
def factorized_same_accuracy_cheaper(lab: Lab) -> Measured:
    forms: dict[str, Filters] = {"7x7": "full", "1x7 and 7x1": "factorized"}
    recipes = {arm: _recipe(lab, filters) for arm, filters in forms.items()}
    full, factorized = (macs(recipe.model(), recipe.data.input_shape) for recipe in recipes.values())
    accuracies = {arm: lab.train(recipe).accuracy() for arm, recipe in recipes.items()}
    return {**accuracies, "share of the multiplications, 1x7 and 7x1": factorized / full}


@claim(
    "ReLU between 1x7 and 7x1 makes a network classify test images better than none.",
    expect=Higher("ReLU between", than="linear between"),
    reported=Reported(
        "ImageNet: top-1 accuracy where 5x5 was taken apart into two of 3x3, after 3.86 million updates",
        {"ReLU between": 0.772, "linear between": 0.762},
        where="Figure 2",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def relu_between_the_factors(lab: Lab) -> Measured:
    arms: dict[str, Filters] = {"ReLU between": "factorized", "linear between": "linear"}
    return {arm: lab.train(_recipe(lab, filters)).accuracy() for arm, filters in arms.items()}


@claim(
    "On a network that knows its training images by heart label smoothing (0.1) raises test accuracy and halves the expected "
    "calibration error.",
    expect=(Higher("smoothed", than="plain"), Lower("calibration error, smoothed", than="calibration error, plain", times=0.5)),
    reported=Reported(
        "ImageNet, one crop: top-1 accuracy; calibration was not measured", {"plain": 0.769, "smoothed": 0.772}, where="Table 3"
    ),
    scaled_down="The network of 14,000 parameters on 500 Fashion-MNIST images (4,000 tests) for 24 epochs instead of ImageNet.",
    unit="test accuracy, or expected calibration error (15 bins)",
    needs=("fashion-mnist",),
)
def label_smoothing_helps(lab: Lab) -> Measured:
    plain = _recipe(lab)
    if lab.scale == "laptop":
        plain = plain.replace(data=plain.data.subset(train=500, seed=lab.seed), epochs=24)
    arms: dict[str, float | Curve] = {}
    for arm, recipe in (("plain", plain), ("smoothed", label_smoothing(plain))):
        trained = lab.train(recipe)
        seen = reliability(trained.logits(), recipe.data.test.labels)
        arms[arm] = trained.accuracy()
        arms[f"calibration error, {arm}"] = Curve(
            seen.accuracy.tolist(),
            seen.confidence.tolist(),
            value=seen.error,
            cost=trained.cost,
            x_name="probability of the answer",
            y_name="share of right answers",
        )
    return arms


@claim(
    "An auxiliary classifier does not speed up the start (training accuracy in the first epoch rises by less than a point), but "
    "raises final test accuracy, and more so with batch normalisation in it.",
    expect=(
        Lower("first epoch, normalised", than="first epoch, none", by=-0.01),
        Higher("normalised", than="none"),
        Higher("normalised", than="plain"),
    ),
    reported=Reported(
        "ImageNet, one crop: top-1 accuracy of the same network with a plain and a normalised auxiliary classifier",
        {"plain": 0.784, "normalised": 0.788},
        where="Table 3",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy, or training accuracy in the first epoch",
    needs=("fashion-mnist",),
)
def auxiliary_classifier_is_a_regularizer(lab: Lab) -> Measured:
    forms: dict[str, Auxiliary | None] = {"none": None, "plain": "plain", "normalised": "normalized"}
    arms: dict[str, float | Curve] = {}
    for arm, aux in forms.items():
        trained = lab.train(_recipe(lab, aux=aux))
        course = trained.history["train_accuracy"]
        arms[arm] = trained.accuracy()
        arms[f"first epoch, {arm}"] = Curve(course, value=course[0], cost=trained.cost, y_name="training accuracy")
    return arms
