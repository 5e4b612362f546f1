"""Inception with shortcuts, and why very wide residual networks need their residuals made small.

Do shortcuts help networks whose blocks are good already? Here every Inception block becomes the residual of one:

    y = relu(x + s W concat(branches of x))

W, a 1x1 convolution without normalisation or activation, brings the branches' planes up to as many as x has. At the same price
the residual networks train far faster than the pure ones (Inception-v4 is the best of these), and end hardly better.

One thing goes wrong: with more than a thousand planes such a network dies in the course of training: its last maps become zero
for every picture, and it never recovers. Lower rates and more normalisation did not save it, the paper says. A scale s of 0.1 to
0.3 does, and costs nothing: the sum then grows slowly from block to block, and a step of the optimizer moves it little.

Source: Szegedy, Ioffe, Vanhoucke and Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
AAAI 2017; table and figure numbers are those of the arXiv version. Inception-v4 is the paper's. Inception-ResNet-v2 is the
authors' released network, which has the paper's name and a similar price, and is another: the stem of Inception-v3 and an
Inception block in place of the stem of Inception-v4, 10, 20 and 10 residual blocks in place of 5, 10 and 5, which carry 320,
1088 and 2080 planes in place of 384, 1154 and 2048, the last with scale 1 and no ReLU, and a layer of 1536 planes behind them.
The paper names a range for s; the three values are the released network's, too.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from assay.errors import AssayError, Diverged
from assay.nn.convnet import ConvNorm
from assay.nn.inception import Mixed, chain, dropped_classifier, mixed
from assay.nn.initialise import he_normal
from assay.nn.measure import nearest_width, parameters
from assay.nn.weights import load_weights
from assay.paper import Above, Below, Close, Configuration, Cost, Curve, Lower, Reported, claim
from assay.papers.architectures.inception_v3 import STEM
from assay.recipe import Recipe, network_of_images, treatment
from assay.train.augment import flip_and_crop
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured


class ResidualScale(nn.Module):
    """``relu(x + scale * expand(branches(x)))`` (sec. 3.2 and 3.3, Fig. 20).

    Args:
        branches: the block, see :func:`assay.nn.inception.mixed`.
        channels: planes of the input, and of the output.
        scale: s; 0.1 to 0.3 in the paper.
        activation: whether ReLU follows the sum.

    Shape: (B, channels, H, W) -> (B, channels, H, W).
    """

    def __init__(self, branches: Mixed, channels: int, scale: float = 0.17, activation: bool = True) -> None:
        super().__init__()
        self.branches, self.scale = branches, scale
        self.expand = nn.Conv2d(branches.planes, channels, 1)  # without normalisation, which would hide what the scale is for
        self.relu = nn.ReLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(torch.add(x, self.expand(self.branches(x)), alpha=self.scale))
        return out


# ---------------------------------------------------------------------------------- tables: see assay.nn.inception

#: Inception-v4 (Fig. 3 to 9): 299x299 pictures become maps of 35x35, 17x17, 8x8.
V4_STEM = ("32k3/2", "32k3v", "64k3", "max | 96k3/2", "64 96k3v | 64 64k1x7 64k7x1 96k3v", "192k3/2 | max")
V4_STAGES = (
    ("96 | 64 96k3 | 64 96k3 96k3 | avg 96",) * 4,
    (
        "384k3/2 | 192 224k3 256k3/2 | max",
        *("384 | 192 224k1x7 256k7x1 | 192 192k7x1 224k1x7 224k7x1 256k1x7 | avg 128",) * 7,
    ),
    (
        "192 192k3/2 | 256 256k1x7 320k7x1 320k3/2 | max",
        *("256 | 384 256k1x3+3x1 | 384 448k3x1 512k1x3 256k1x3+3x1 | avg 256",) * 3,
    ),
)

#: Inception-ResNet-v2, as released: of each stage the block that leads to it, the branches of a residual block (as in Fig. 16,
#: 17 and 19), how many.
RESNET_V2 = (
    ("96 | 48 64k5 | 64 96k3 96k3 | avg 64", "32 | 32 32k3 | 32 48k3 64k3", 10),
    ("384k3/2 | 256 256k3 384k3/2 | max", "192 | 128 160k1x7 192k7x1", 20),
    ("256 384k3/2 | 256 288k3/2 | 256 288k3 320k3/2 | max", "192 | 192 224k1x3 256k3x1", 10),
)


def _finished(stem: nn.Module, stages: Sequence[Sequence[nn.Module]], head: nn.Module) -> nn.Sequential:
    body = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
    net = nn.Sequential(OrderedDict[str, nn.Module](stem=stem, stages=body, head=head))
    he_normal(net, "fan_in")
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def inception_v4(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2) -> nn.Sequential:
    """The pure network: modules stem, stages, head; filters in channels_last, which is the faster layout.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        width: factor of all planes.
        dropout: before the last layer: 0.2, as the paper keeps 0.8.

    Shape: (B, in_channels, H, W) -> (B, num_classes); H and W are 299 in the paper, and any of at least 75.
    """
    planes, made = in_channels, list[list[nn.Module]]()
    for lines in (V4_STEM, *V4_STAGES):
        made.append([])
        for line in lines:
            block = mixed(line, planes, width, count_zeros=False)
            made[-1].append(block)
            planes = block.planes
    return _finished(nn.Sequential(*made[0]), made[1:], dropped_classifier(planes, num_classes, dropout))


def inception_resnet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    scales: tuple[float, float, float] = (0.17, 0.10, 0.20),
    width: float = 1.0,
    dropout: float = 0.2,
) -> nn.Sequential:
    """The residual network at about the price of Inception-v4, as released: modules stem, stages, head, in channels_last.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        scales: of the residuals in the three stages.
        width: factor of all planes.
        dropout: before the last layer.

    Shape: (B, in_channels, H, W) -> (B, num_classes); H and W are 299 in the paper, and any of at least 75.
    """
    stem, planes = chain(STEM, in_channels, width)
    made = list[list[nn.Module]]()
    for (lead, branches, count), scale in zip(RESNET_V2, scales, strict=True):
        first = mixed(lead, planes, width, count_zeros=False)
        planes = first.planes
        blocks = [ResidualScale(mixed(branches, planes, width), planes, scale) for _ in range(count)]
        made.append([first, *blocks])
    made[-1][-1] = ResidualScale(mixed(RESNET_V2[-1][1], planes, width), planes, scale=1.0, activation=False)
    last, planes = chain("1536", planes, width)
    made[-1].append(last[0])
    return _finished(stem, made, dropped_classifier(planes, num_classes, dropout))


def small_inception_resnet(
    num_classes: int = 10,
    in_channels: int = 1,
    width: float = 1.0,
    blocks: tuple[int, int] = (2, 4),
    residual: bool = True,
    scale: float = 0.1,
    planes: int | None = None,
    stride: int = 2,
) -> nn.Sequential:
    """The same plan for small images: blocks with 1x7 and 7x1 on maps of 13x13, a reduction, blocks with 1x3 and 3x1 on 6x6.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        width: factor of all planes.
        blocks: how many there are on either side of the reduction.
        residual: ``False`` for the pure network: no shortcut, normalisation behind the 1x1 convolution; as many multiplications.
        scale: of the residuals.
        planes: that the blocks behind the reduction carry on, in place of ``48 * width``.
        stride: of the first convolution: 2, or 1 for images of fewer than 20 pixels a side.

    Shape: (B, in_channels, H, W) -> (B, num_classes); H and W of at least 7 with stride 2, 3 with stride 1.

    Raises:
        ValueError: the stride is neither 1 nor 2.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, not {stride}")
    stem, carried = chain("16k3/2" if stride == 2 else "16k3", in_channels, width)

    def block(branches: str) -> nn.Module:
        inner = mixed(branches, carried, width)
        if residual:
            return ResidualScale(inner, carried, scale)
        # The same layers, so that a seed gives them the same weights; normalisation makes up for the lack of a shortcut.
        return nn.Sequential(inner, nn.Conv2d(inner.planes, carried, 1), nn.BatchNorm2d(carried, eps=1e-3), nn.ReLU())

    first = [block("8 | 8 8k1x7 8k7x1") for _ in range(blocks[0])]
    reduction = mixed("32k3/2 | max", carried, width)
    carried = reduction.planes
    second: list[nn.Module] = [reduction]
    if planes is not None:
        second.append(ConvNorm(carried, planes, 1, eps=1e-3))
        carried = planes
    second += [block("8 | 8 8k1x3 8k3x1") for _ in range(blocks[1])]
    return _finished(stem, [first, second], dropped_classifier(carried, num_classes, 0.0))


#: The network for small images that is compared with other architectures.
small = partial(small_inception_resnet, width=2.0)


def _block(found: re.Match[str]) -> str:
    """A number of timm's list of layers of Inception-v4 -> the stage and the place in it."""
    number = int(found[1])
    stage = bisect_right(_STARTS, number) - 1
    return f"{'stem' if stage == 0 else f'stages.{stage - 1}'}.{number - _STARTS[stage]}."


_STARTS = tuple(accumulate((len(lines) for lines in (V4_STEM, *V4_STAGES[:-1])), initial=0))
_STEM = {"1a": 0, "2a": 1, "2b": 2, "3b": 4, "4a": 5}

#: timm's names -> ours, for :func:`assay.nn.weights.load_weights`.
NAMES = (
    # Inception-v4
    (r"^features\.(\d+)\.", _block),
    (r"^(stem\.3)\.conv\.", r"\1.1.0."),
    (r"^(stem\.5)\.conv\.", r"\1.0.0."),
    (r"^(stem\.[0-2])\.", r"\1.0.0."),
    (r"^last_linear\.", "head.fc."),
    # Inception-ResNet-v2
    (r"^conv2d_(1a|2a|2b|3b|4a)\.", lambda found: f"stem.{_STEM[found[1]]}."),
    (r"^mixed_(5b|6a|7a)\.", lambda found: f"stages.{int(found[1][0]) - 5}.0."),
    (r"^repeat\.", "repeat_0."),
    (r"^block8\.", "repeat_2.9."),
    (r"^repeat_(\d)\.(\d+)\.", lambda found: f"stages.{found[1]}.{int(found[2]) + 1}.branches."),
    (r"\.branches\.conv2d\.", ".expand."),
    (r"^conv2d_7b\.", "stages.2.11."),
    (r"^classif\.", "head.fc."),
    # Both: the first convolution of a branch is numbered only where others follow, and a pair of filters has letters.
    (r"\.bn\.", ".norm."),
    (r"\.branch(\d)_?(\d)([ab]?)\.", lambda f: f".{f[1]}.{f[2]}" + {"": "", "a": ".0", "b": ".1"}[f[3]] + "."),
    (r"\.branch(\d)\.(conv|norm)\.", r".\1.0.\2."),
    (r"\.branch(\d)\.", r".\1."),
)


def load_pretrained(model: nn.Sequential, source: str | Path | Mapping[str, Tensor], head: bool = True) -> nn.Sequential:
    """Fill a network of :func:`inception_v4` or :func:`inception_resnet_v2` with timm's weights; returns the network.

    Args:
        model: e.g. ``inception_v4()``.
        source: a state dict, a .safetensors file, or a model that lies in the hub's cache, as ``"timm/inception_v4.tf_in1k"`` and
            ``"timm/inception_resnet_v2.tf_in1k"``. Images must be RGB in [0, 1], minus 0.5, over 0.5.
        head: whether the last layer is taken too; ``False`` for other classes than ImageNet's.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    load_weights(model, source, NAMES, leave=() if head else ("head.",))
    return model


#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "inception_v4()": Configuration(
        (3, 299, 299), parameters=42_679_816, macs=12_253_974_624, layers=76, sees=2071, activations=15_089_184
    ),
    "inception_resnet_v2()": Configuration(
        (3, 299, 299), parameters=55_843_464, macs=13_155_794_016, layers=176, sees=3039, activations=25_058_976
    ),
    "small_inception_resnet()": Configuration(
        (1, 28, 28), parameters=16_442, macs=943_088, layers=27, sees=63, activations=31_600
    ),
}


@treatment
def inception_resnet(recipe: Recipe, blocks: tuple[int, int] = (2, 4), scale: float = 0.1) -> Recipe:
    """An Inception-ResNet for small images in place of the recipe's network, as wide as comes nearest to its parameters.

    Both have what the recipe gives them: data, loss, optimizer, epochs. The price in seconds is the method's.

    Args:
        recipe: of a classifier of images.
        blocks: before and after the reduction.
        scale: of the residuals.

    Raises:
        AssayError: the data are no images or no classes, or the images are smaller than 3x3.
    """
    target, data = parameters(network_of_images(recipe, "Inception networks", "inception_resnet")), recipe.data
    channels, *sides = data.input_shape
    if min(sides) < 3:
        raise AssayError(f"The images of {data.name!r} are smaller than 3x3, too small for an Inception network: leave it out.")
    stride = 2 if min(sides) >= 20 else 1
    make = partial(small_inception_resnet, data.num_classes, channels, blocks=blocks, scale=scale, stride=stride)
    eighths = nearest_width(lambda eighths: make(width=eighths / 8), target, range(1, 129))
    return recipe.replace(model=partial(make, width=eighths / 8))


# ---------------------------------------------------------------------------------------------------- claims

# Chosen before anything was judged: the training (by the time that it takes), the margins, and the rate: of 0.02, 0.06, 0.2 and
# 0.6 the last two end alike on held-out images, for the pure and the residual network, and both get there sooner with 0.2.
_SCALED_DOWN = (
    "Eight blocks of 48 planes on maps of 6x6 and 1,500 Fashion-MNIST images (4,000 tests) instead of the paper's networks and "
    "ImageNet; 9 epochs of momentum, no augmentation."
)
_ARMS = {"residual": True, "pure": False}


def _recipe(lab: Lab, residual: bool) -> Recipe:
    """The same training for both."""
    data = lab.data(lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="cifar10"))
    if lab.scale != "full":
        images, tests = lab.pick(smoke=(128, 100), laptop=(1500, 4000), full=(0, 0))
        data = data.subset(train=images, test=tests, seed=lab.seed)
    blocks = lab.pick(smoke=(0, 2), laptop=(0, 8), full=(10, 30))
    width = lab.pick(smoke=0.5, laptop=1.0, full=4.0)
    return Recipe(
        data.normalise(),
        model=partial(small_inception_resnet, 10, data.input_shape[0], width=width, blocks=blocks, residual=residual),
        optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.9, weight_decay=1e-4),
        schedule=cosine,
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=2, laptop=9, full=100),
        batch_size=64,
    )


def steps_to(level: float, accuracy: Sequence[float], steps: Sequence[float]) -> float:
    """When accuracies, straight from point to point and from (0, 0), first reach a level; ``inf`` if they never do."""
    before = (0.0, 0.0)
    for step, reached in zip(steps, accuracy, strict=True):
        if reached >= level:
            return before[0] + (step - before[0]) * (level - before[1]) / (reached - before[1])
        before = (step, reached)
    return math.inf


@claim(
    "With steps of the same cost the residual network reaches 95 % of the pure network's final test accuracy in at most 0.7 "
    "times as many.",
    expect=Lower("residual", than="pure", times=0.7),
    scaled_down=_SCALED_DOWN,
    unit="steps to 95 % of the pure network's final test accuracy",
    needs=("fashion-mnist",),
)
def residual_trains_faster(lab: Lab) -> Measured:
    runs = {arm: lab.train(_recipe(lab, residual)) for arm, residual in _ARMS.items()}
    level = 0.95 * runs["pure"].history["test_accuracy"][-1]
    arms = {}
    for arm, trained in runs.items():
        accuracy, recipe = trained.history["test_accuracy"], trained.recipe
        epoch = math.ceil(len(recipe.data.train) / recipe.batch_size)
        steps = [float(epoch * place) for place in range(1, len(accuracy) + 1)]
        # One that never gets there counts as if it did with twice the steps.
        needed = min(steps_to(level, accuracy, steps), 2 * steps[-1])
        arms[arm] = Curve(accuracy, steps, value=needed, cost=trained.cost, x_name="step", y_name="test accuracy")
    return arms


@claim(
    "At the end the residual and the pure network classify test images equally well, to within a point.",
    expect=Close("residual", to="pure", within=0.01),
    reported=Reported(
        "ImageNet, one crop: top-1 accuracy of Inception-ResNet-v2 and Inception-v4",
        {"residual": 0.801, "pure": 0.800},
        where="Table 2",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def residual_is_not_the_final_accuracy(lab: Lab) -> Measured:
    return {arm: lab.train(_recipe(lab, residual)).accuracy() for arm, residual in _ARMS.items()}


@torch.no_grad()
def dead_planes(model: nn.Sequential, images: Tensor) -> float:
    """Share of the planes before the mean over the picture that are zero for every image, or not finite for any.

    Args:
        model: a network of this module, in evaluation mode.
        images: (B, C, H, W), prepared as for training.
    """
    maps = model.get_submodule("stages")(model.get_submodule("stem")(images))  # (B, planes, h, w)
    alive = maps.isfinite().all() & (maps > 0).any(dim=3).any(dim=2).any(dim=0)
    return float(1 - alive.double().mean())


#: Rates, and what they are multiplied by; scale of the residuals.
_WIDE = {"scale 1": (1.0, 1.0), "scale 0.1": (1.0, 0.1), "scale 1, a tenth of the rate": (0.1, 1.0)}
_RATES = (0.2, 0.4)
_WIDE_SCALED_DOWN = (
    "Twelve blocks with 512 planes, 1,437 digits of 8x8 and 90 steps of momentum at rates of 0.2 and 0.4 without a warm-up, "
    "instead of more than 1,000 planes and tens of thousands of steps on ImageNet."
)


def _wide(lab: Lab, arm: str) -> Curve:
    """Dead planes by rate, of a training that has diverged all; judged is their mean."""
    factor, scale = _WIDE[arm]
    data = lab.data("digits").normalise()
    blocks, planes = lab.pick(smoke=((0, 2), 64), laptop=((0, 12), 512), full=((0, 20), 1536))
    if lab.scale == "smoke":
        data = data.subset(train=64, test=100)
    dead, seconds = [], 0.0
    for rate in _RATES:
        recipe = Recipe(
            data,
            model=partial(small_inception_resnet, 10, blocks=blocks, scale=scale, planes=planes, stride=1),
            optimizer=partial(torch.optim.SGD, lr=factor * rate, momentum=0.9),
            epochs=lab.pick(smoke=1, laptop=2, full=40),
            batch_size=32,
            watch=(),
        )
        try:
            trained = lab.train(recipe)
        except Diverged:
            dead.append(1.0)
            continue
        images = data.test.inputs
        assert isinstance(images, Tensor)
        assert isinstance(trained.model, nn.Sequential)
        dead.append(dead_planes(trained.model, images.to(lab.device)))
        seconds += trained.seconds
    rates = [factor * rate for rate in _RATES]
    return Curve(dead, rates, value=sum(dead) / len(dead), cost=Cost(seconds), x_name="learning rate", y_name="dead planes")


@claim(
    "Of a residual network with 512 planes, trained at high rates, more than half of the last planes are dead with scale 1 (zero "
    "for every test image, or the training diverged), less than a tenth with scale 0.1.",
    expect=(Above("scale 1", 0.5), Below("scale 0.1", 0.1)),
    scaled_down=_WIDE_SCALED_DOWN,
    unit="share of dead planes, mean over the rates",
)
def scaling_saves_wide_nets(lab: Lab) -> Measured:
    return {arm: _wide(lab, arm) for arm in ("scale 1", "scale 0.1")}


@claim(
    "Lower rates do not save such a network: with a tenth of them more than half of the last planes are dead with scale 1.",
    expect=Above("scale 1, a tenth of the rate", 0.5),
    scaled_down=_WIDE_SCALED_DOWN,
    unit="share of dead planes, mean over the rates",
)
def lower_rates_do_not_save_wide_nets(lab: Lab) -> Measured:
    return {arm: _wide(lab, arm) for arm in ("scale 1, a tenth of the rate", "scale 0.1")}
