"""Pyramidal residual networks: a few more planes in every block, instead of twice as many at once.

A residual network has few places where something drastic happens: where a stage halves the picture, the planes double. Delete
one of its blocks at test time and the network hardly notices, unless it is one of those: so much hangs on them. The paper
spreads their work over all blocks. Block k of K has

    D_k = D_0 + alpha k / K        planes, rounded (eq. 2, "additive"), or
    D_k = D_0 alpha^(k / K)        (eq. 3, "multiplicative", slightly worse in the paper),

so that the widths rise along a straight line, whatever the resolution: a pyramid instead of a staircase. With as many
parameters it is the more accurate, and no block is indispensable any more.

Along the way the block is mended. Beside an identity shortcut a ReLU at the beginning of a block lets only half of what arrives
through to the first convolution, and two ReLUs a block are one more than it takes: the first goes. A batch normalisation at the
end lets each correction find its scale before it is added. Shortcuts have no parameters: the picture is averaged where it
shrinks, and new planes are zeros behind the old ones, so that a new plane is made by the block alone.

Source: Han, Kim and Kim, "Deep Pyramidal Residual Networks", CVPR 2017. Rounding is that of the authors' code: the widths as real
numbers grow, and each is rounded for itself (equation 2 read literally would round down every step, and lose a part of alpha).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.nn.convnet import ConvNorm, classifier, imagenet_stem
from assay.nn.drop_path import residual_branches
from assay.nn.initialise import he_normal
from assay.nn.measure import nearest_width, parameters
from assay.nn.weights import load_weights
from assay.paper import Configuration, Curve, Higher, Lower, Reported, claim
from assay.papers.architectures.resnet import ZeroPadded, half_size
from assay.recipe import Recipe, network_of_images, probe, treatment
from assay.train.augment import flip_and_crop
from assay.train.schedules import steps_at, warmup_cosine
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def pyramid_widths(alpha: float, blocks: int, start: int = 16, growth: Literal["add", "mul"] = "add") -> list[int]:
    """Planes of every block, from the first to the last: ``pyramid_widths(8, 4)`` is ``[18, 20, 22, 24]``.

    Args:
        alpha: with ``"add"`` how many planes the last block has more than the first layer (at least 0), with ``"mul"`` how many
            times as many (at least 1).
        blocks: K, how many blocks the whole network has.
        start: D_0, planes of the first layer: 16 for small pictures, 64 for large ones.
        growth: equation 2 or equation 3.

    Raises:
        ValueError: there is no such growth, or the planes would get fewer.
    """
    if growth not in ("add", "mul"):
        raise ValueError(f"growth must be 'add' or 'mul', not {growth!r}")
    if alpha < (growth == "mul"):
        raise ValueError(f"alpha must be at least {int(growth == 'mul')} with growth={growth!r}, not {alpha}")
    shares = [(place + 1) / blocks for place in range(blocks)]
    return [round(start + alpha * share if growth == "add" else start * alpha**share) for share in shares]


class PyramidBlock(nn.Module):
    """``F(x) + S(x)`` with nothing after the addition; S has no parameters.

    Args:
        body: F.
        shortcut: S: the input, averaged over 2x2 where the block halves the picture, with planes of zeros behind the others.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


def _block(in_planes: int, layers: Sequence[tuple[int, int, int]], first_relu: bool, last_norm: bool) -> PyramidBlock:
    """A block of convolutions (planes, kernel, stride), each behind a normalisation and, the first aside, a ReLU."""
    parts = OrderedDict[str, nn.Module](bn1=nn.BatchNorm2d(in_planes))
    planes, shrinks = in_planes, max(stride for _, _, stride in layers) > 1
    for place, (wide, kernel, stride) in enumerate(layers, start=1):
        if place > 1 or first_relu:
            parts[f"relu{place}"] = nn.ReLU()
        parts[f"conv{place}"] = nn.Conv2d(planes, wide, kernel, stride, kernel // 2, bias=False)
        if place < len(layers) or last_norm:
            parts[f"bn{place + 1}"] = nn.BatchNorm2d(wide)
        planes = wide
    # Sizes round up, as those of the strided convolution do: a window that reaches over the border averages what there is.
    shortcut: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if shrinks else []
    shortcut += [ZeroPadded(1, planes - in_planes)] if planes > in_planes else []
    return PyramidBlock(nn.Sequential(parts), nn.Sequential(*shortcut) if shortcut else nn.Identity())


def basic(in_planes: int, width: int, stride: int = 1, first_relu: bool = False, last_norm: bool = True) -> PyramidBlock:
    """Two 3x3 convolutions (Fig. 6d): (B, in_planes, H, W) -> (B, width, H / stride, W / stride), rounded up.

    Args:
        in_planes: planes of the input, at most ``width``.
        width: planes of the output.
        stride: 1 or 2.
        first_relu: a ReLU in front of the first convolution, which the paper takes away.
        last_norm: a normalisation behind the last convolution, which the paper adds. With the first ReLU and without this it is
            the pre-activation block of He et al. (Fig. 6a).
    """
    return _block(in_planes, [(width, 3, stride), (width, 3, 1)], first_relu, last_norm)


def bottleneck(in_planes: int, width: int, stride: int = 1, first_relu: bool = False, last_norm: bool = True) -> PyramidBlock:
    """1x1, 3x3, 1x1 convolutions: (B, in_planes, H, W) -> (B, 4 width, H / stride, W / stride). Arguments as in :func:`basic`."""
    return _block(in_planes, [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)], first_relu, last_norm)


class PyramidNet(nn.Sequential):
    """A stem, groups of blocks, and a head: modules stem, stages (``stages[group][block]``) and head.

    Made by :func:`pyramidnet` and :func:`imagenet_pyramidnet`, or from any widths; filters lie in channels_last.

    Args:
        stem: the first layers, which return ``in_planes`` planes.
        in_planes: planes of the stem.
        widths: of every block, group by group; every group but the first halves the picture.
        num_classes: number of logits.
        narrow: whether blocks are bottlenecks, which return four times their width.
        first_relu: see :func:`basic`.
        last_norm: see :func:`basic`.

    Shape: (B, in_channels, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        stem: nn.Module,
        in_planes: int,
        widths: Sequence[Sequence[int]],
        num_classes: int,
        narrow: bool = False,
        first_relu: bool = False,
        last_norm: bool = True,
    ) -> None:
        planes, groups = in_planes, []
        for place, group in enumerate(widths):
            parts = []
            for block, width in enumerate(group):
                stride = 2 if place and not block else 1
                parts.append((bottleneck if narrow else basic)(planes, width, stride, first_relu, last_norm))
                planes = width * (4 if narrow else 1)
            groups.append(nn.Sequential(*parts))
        head = OrderedDict[str, nn.Module](norm=nn.BatchNorm2d(planes), relu=nn.ReLU())
        head |= OrderedDict(classifier(planes, num_classes).named_children())
        super().__init__(OrderedDict(stem=stem, stages=nn.Sequential(*groups), head=nn.Sequential(head)))
        he_normal(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _in_groups(widths: Sequence[int], counts: Sequence[int]) -> list[Sequence[int]]:
    ends = [sum(counts[: place + 1]) for place in range(len(counts))]
    return [widths[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _blocks(depth: int, narrow: bool) -> int:
    """How many blocks each of three groups has."""
    each, kind = (9, "9n + 2") if narrow else (6, "6n + 2")
    if depth < each + 2 or (depth - 2) % each:
        raise ValueError(f"depth must be {kind} ({', '.join(str(each * n + 2) for n in (1, 2, 3))} ...), not {depth}")
    return (depth - 2) // each


def pyramidnet(
    depth: int = 110,
    alpha: float = 48,
    num_classes: int = 10,
    bottleneck: bool = False,
    in_channels: int = 3,
    growth: Literal["add", "mul"] = "add",
    start: int = 16,
    first_relu: bool = False,
    last_norm: bool = True,
) -> PyramidNet:
    """The networks for small pictures (Table 1): a 3x3 convolution and three groups of n blocks.

    Args:
        depth: 6n + 2, with bottlenecks 9n + 2. The paper has 110 with basic blocks, and 164, 200, 236, 272 with bottlenecks.
        alpha: how much wider the last block is than the first layer (:func:`pyramid_widths`): 48, 84 or 270 at 110 layers.
        num_classes: number of logits.
        bottleneck: blocks of three convolutions, which return four times their width.
        in_channels: channels of the input.
        growth: widths by sum (``"add"``) or by factor (``"mul"``).
        start: planes of the first layer.
        first_relu: see :func:`basic`.
        last_norm: see :func:`basic`.

    Shape: (B, in_channels, H, W) -> (B, num_classes), any H and W of at least 4.

    Raises:
        ValueError: there is no network of this depth, or no such growth.
    """
    count = _blocks(depth, bottleneck)
    widths = _in_groups(pyramid_widths(alpha, 3 * count, start, growth), [count] * 3)
    # Unlike in other residual networks no ReLU follows the first convolution.
    stem = nn.Sequential(ConvNorm(in_channels, start, 3, active=False))
    return PyramidNet(stem, start, widths, num_classes, bottleneck, first_relu, last_norm)


pyramidnet110_a48, pyramidnet110_a84, pyramidnet110_a270 = (partial(pyramidnet, 110, alpha) for alpha in (48, 84, 270))
pyramidnet164_a270, pyramidnet200_a240, pyramidnet236_a220, pyramidnet272_a200 = (
    partial(pyramidnet, depth, alpha, bottleneck=True) for depth, alpha in ((164, 270), (200, 240), (236, 220), (272, 200))
)

#: Depth -> blocks of the four groups, all of them bottlenecks.
IMAGENET = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def imagenet_pyramidnet(depth: int = 200, alpha: float = 300, num_classes: int = 1000, in_channels: int = 3) -> PyramidNet:
    """The networks for large pictures: a 7x7 convolution, a maximum, and four groups of bottlenecks that start with 64 planes.

    Args:
        depth: 101, 152 or 200.
        alpha: 360 at 101 layers; 300 or 450 at 200.
        num_classes: number of logits.
        in_channels: channels of the input.

    Shape: (B, in_channels, H, W) -> (B, num_classes), any H and W of at least 32.

    Raises:
        ValueError: there is no network of this depth.
    """
    if depth not in IMAGENET:
        raise ValueError(f"depth must be one of {', '.join(map(str, IMAGENET))}, not {depth}: others are pyramidnet's")
    counts = IMAGENET[depth]
    widths = _in_groups(pyramid_widths(alpha, sum(counts), 64), counts)
    return PyramidNet(imagenet_stem(in_channels, 64), 64, widths, num_classes, narrow=True)


def small(num_classes: int = 10, in_channels: int = 1) -> PyramidNet:
    """A small form for pictures of about 28x28: 14 layers, 8 planes that grow to 32."""
    return pyramidnet(14, 24, num_classes, in_channels=in_channels, start=8)


#: The names of the authors' code -> ours, for :func:`assay.nn.weights.load_weights`.
NAMES = (
    (r"^module\.", ""),
    (r"^conv1\.", "stem.0.conv."),
    (r"^bn1\.", "stem.0.norm."),
    (r"^bn_final\.", "head.norm."),
    (r"^fc\.", "head.fc."),
    (r"^layer(\d)\.(\d+)\.", lambda found: f"stages.{int(found[1]) - 1}.{found[2]}.body."),
)


def load_pretrained(model: PyramidNet, source: str | Path | Mapping[str, Tensor], head: bool = True) -> PyramidNet:
    """Fill a network with weights of the authors' PyTorch code (github.com/dyhan0920/PyramidNet-PyTorch); returns the network.

    Args:
        model: of the depth, alpha and kind of block of the weights.
        source: a state dict, or a file of one.
        head: whether the last layer is taken too; ``False`` for other classes.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    load_weights(model, source, NAMES, leave=() if head else ("head.fc.",))
    return model


@torch.no_grad()
def answers_without(model: nn.Module, inputs: Tensor, chunk: int = 500) -> dict[str, Tensor]:
    """What a residual network says when each of its blocks in turn does nothing, so that its shortcut alone remains (sec. 3.1).

    Args:
        model: a classifier in evaluation mode, with branches that are added to shortcuts; it is left as it is.
        inputs: (N, ...).
        chunk: examples at a time.

    Returns:
        Name of the block's last layer -> (N,) int64 classes, in the order of the blocks.

    Raises:
        AssayError: the network has no such branches.
    """
    names = residual_branches(model)
    if not names:
        raise AssayError("Blocks can be deleted from residual networks, and this network adds no branch to a shortcut.")
    said = {}
    for name in names:
        handle = model.get_submodule(name).register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        try:
            said[name] = torch.cat([model(part).argmax(dim=1) for part in inputs.split(chunk)])
        finally:
            handle.remove()
    return said


@probe
def block_deletion(view: View) -> Seen:
    """How much a residual network hangs on single blocks: its accuracy when each in turn is deleted."""
    view.classifier()
    labels = view.answers()
    if not view.layered:
        view.layer()  # which says why not
    without = answers_without(view.model, view.inputs)
    right = {name: said == labels.to(said.device) for name, said in without.items()}  # (B,) each
    shares = {name: float(one.double().mean()) for name, one in right.items()}
    with torch.no_grad():
        whole = torch.cat([view.model(part).argmax(dim=1) for part in view.inputs.split(500)])
    worst = min(shares, key=shares.__getitem__)
    return Seen(
        numbers={
            "accuracy": float((whole == labels.to(whole.device)).double().mean()),
            "mean accuracy without a block": sum(shares.values()) / len(shares),
            "lowest accuracy without a block": shares[worst],
        },
        each={"share of the blocks it can do without": torch.stack(list(right.values())).double().mean(dim=0)},
        notes=(f"the block that is missed most ends with {worst}",),
    )


@treatment
def pyramidal_net(recipe: Recipe, depth: int = 20) -> Recipe:
    """A pyramidal network of ``depth`` layers in place of the recipe's, with the alpha that comes nearest to its parameters.

    Args:
        recipe: of a classifier of images.
        depth: 6n + 2.

    Raises:
        AssayError: the data are no images or no classes, or the recipe's network is such a network already.
    """
    now, data = network_of_images(recipe, "pyramidal networks", "pyramidnet"), recipe.data
    if any(isinstance(module, PyramidBlock) for module in now.modules()):
        raise AssayError("the network of this recipe is a pyramidal one already: leave pyramidnet out.")
    start = 16 if parameters(now) > 50_000 else 8
    make = partial(pyramidnet, depth, num_classes=data.num_classes, in_channels=data.input_shape[0], start=start)
    alpha = nearest_width(lambda alpha: make(alpha=alpha), parameters(now), range(4, 1000, 4))
    return recipe.replace(model=partial(make, alpha=alpha))


#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "pyramidnet110_a48()": Configuration(
        (3, 32, 32), parameters=1_772_706, macs=403_813_504, layers=110, sees=501, activations=1_420_288
    ),
    "pyramidnet110_a84()": Configuration(
        (3, 32, 32), parameters=3_904_446, macs=772_168_168, layers=110, sees=501, activations=1_892_608
    ),
    "pyramidnet110_a270()": Configuration(
        (3, 32, 32), parameters=28_485_477, macs=4_717_983_724, layers=110, sees=501, activations=4_332_928
    ),
    "pyramidnet164_a270()": Configuration(
        (3, 32, 32), parameters=27_216_021, macs=4_569_837_040, layers=164, sees=249, activations=13_089_856
    ),
    "pyramidnet200_a240()": Configuration(
        (3, 32, 32), parameters=26_752_702, macs=4_519_606_016, layers=200, sees=305, activations=14_440_192
    ),
    "pyramidnet236_a220()": Configuration(
        (3, 32, 32), parameters=26_969_046, macs=4_582_673_952, layers=236, sees=361, activations=15_850_048
    ),
    "pyramidnet272_a200()": Configuration(
        (3, 32, 32), parameters=26_210_842, macs=4_488_778_176, layers=272, sees=417, activations=16_920_064
    ),
    "imagenet_pyramidnet(101, 360)": Configuration(
        (3, 224, 224), parameters=42_455_070, macs=8_696_707_045, layers=101, sees=971, activations=16_093_756
    ),
    "imagenet_pyramidnet(200, 300)": Configuration(
        (3, 224, 224), parameters=62_368_168, macs=16_550_501_282, layers=200, sees=1707, activations=32_261_257
    ),
    "imagenet_pyramidnet(200, 450)": Configuration(
        (3, 224, 224), parameters=116_775_213, macs=29_196_815_629, layers=200, sees=1707, activations=41_070_526
    ),
    "small()": Configuration((1, 28, 28), parameters=53_786, macs=9_532_976, layers=14, sees=53, activations=73_304),
}


# ---------------------------------------------------------------------------------------------------- claims


def staircase(
    depth: int,
    alpha: float,
    start: int,
    num_classes: int = 10,
    in_channels: int = 3,
    first_relu: bool = False,
    last_norm: bool = True,
) -> PyramidNet:
    """The control: planes double where the picture is halved, from a first number that gives as many parameters as the pyramid.

    Blocks, shortcuts and depth are those of ``pyramidnet(depth, alpha, start=start, ...)``.
    """
    count = _blocks(depth, narrow=False)

    def doubling(tenths: int) -> PyramidNet:
        planes = [round(tenths / 10 * 2**group) for group in range(3)]
        stem = nn.Sequential(ConvNorm(in_channels, planes[0], 3, active=False))
        widths = [[wide] * count for wide in planes]
        return PyramidNet(stem, planes[0], widths, num_classes, first_relu=first_relu, last_norm=last_norm)

    with torch.device("meta"):
        pyramid = pyramidnet(depth, alpha, num_classes, False, in_channels, "add", start, first_relu, last_norm)
    return doubling(nearest_width(doubling, parameters(pyramid), range(20, 1000)))


# The depth, the widths and the training were chosen before anything was judged, by the time that they take.
def _train(lab: Lab, pyramid: bool, first_relu: bool = False, last_norm: bool = True) -> Trained:
    """The paper's training (sec. 4.1): Nesterov momentum 0.9, weight decay 1e-4, batches of 128; at small scale a cosine."""
    depth, alpha, start = lab.pick(smoke=(8, 6, 4), laptop=(14, 24, 8), full=(110, 48, 16))
    data = lab.data(lab.pick(smoke="digits", laptop="fashion-mnist", full="cifar10"))
    small_scale = lab.scale != "full"
    if small_scale:
        examples = lab.pick(smoke=(256, 100), laptop=(3000, 3000), full=(0, 0))
        data = data.subset(train=examples[0], test=examples[1], seed=lab.seed)
    net = partial(
        pyramidnet if pyramid else staircase,
        depth=depth,
        alpha=alpha,
        start=start,
        in_channels=data.input_shape[0],
        first_relu=first_relu,
        last_norm=last_norm,
    )
    recipe = Recipe(
        data.normalise(),
        model=partial(half_size, net) if lab.scale == "laptop" else net,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=partial(warmup_cosine, warmup=0.1) if small_scale else partial(steps_at, at=(0.5, 0.75), gamma=0.1),
        augment=None if small_scale else flip_and_crop,
        epochs=lab.pick(smoke=1, laptop=5, full=300),
        watch=(),
    )
    return lab.train(recipe)


def _three(lab: Lab) -> dict[str, Trained]:
    return {
        "pyramid": _train(lab, pyramid=True),
        "doubling": _train(lab, pyramid=False),
        "pre-activation ResNet": _train(lab, pyramid=False, first_relu=True, last_norm=False),
    }


_SCALED_DOWN = (
    "3,000 Fashion-MNIST images of 14x14 instead of CIFAR-10, 14 layers whose planes grow from 8 to 32 instead of 110 from 16 to "
    "64, 5 epochs without augmentation instead of 300 with it, the rate falling along a cosine after a short rise."
)


@claim(
    "With the same depth and number of parameters, planes that grow in every block classify better than planes that double where "
    "the picture is halved: with the same blocks, and with those of the pre-activation ResNet in the control.",
    expect=(Higher("pyramid", than="doubling"), Higher("pyramid", than="pre-activation ResNet")),
    reported=Reported(
        "CIFAR-10 test accuracy with 1.7 M parameters: 110 layers, alpha 48, against the pre-activation ResNet-164 as its "
        "authors report it",
        {"pyramid": 0.9542, "pre-activation ResNet": 0.9454},
        where="Table 4",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def gradual_width_beats_steps(lab: Lab) -> Measured:
    return {arm: trained.accuracy() for arm, trained in _three(lab).items()}


@claim(
    "In the same pyramid, blocks without the first ReLU and with a normalisation at their end classify better than "
    "pre-activation blocks.",
    expect=Higher("no first ReLU, last BN", than="first ReLU, no last BN"),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def fewer_relus_and_final_bn(lab: Lab) -> Measured:
    return {
        f"{'' if relu else 'no '}first ReLU, {'' if norm else 'no '}last BN": _train(lab, True, relu, norm).accuracy()
        for relu in (False, True)
        for norm in (True, False)
    }


@claim(
    "Deleting a block that halves the picture (mean over both, at test time) costs a pyramidal network less accuracy than a "
    "network whose planes double there.",
    expect=(Lower("pyramid", than="doubling"), Lower("pyramid", than="pre-activation ResNet")),
    scaled_down=_SCALED_DOWN,
    unit="test error after deleting a block; judged: its rise, mean over the blocks that halve the picture",
    needs=("fashion-mnist",),
)
def robust_to_block_deletion(lab: Lab) -> Measured:
    arms = {}
    for arm, trained in _three(lab).items():
        test = trained.recipe.data.test
        assert isinstance(test.inputs, Tensor)
        without = answers_without(trained.model, test.inputs.to(lab.device))
        errors = [(said.cpu() != test.labels).double().mean().item() for said in without.values()]
        count = len(errors) // 3  # blocks of a group, the first of which halves the picture in the second and third
        rise = (errors[count] + errors[2 * count]) / 2 - (1 - trained.accuracy())
        arms[arm] = Curve(errors, value=rise, cost=trained.cost, x_name="deleted block", y_name="test error")
    return arms
