"""The networks: a table of stages, and a style that says what their layers are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.convnet import Stage
from assay.nn.drop_path import DropPath
from assay.nn.standardised import WSConv2d, lecun_normal_, variance_gain
from assay.nn.weights import load_weights, read_weights
from assay.paper import Configuration

#: Activation -> module, and the authors' gamma, an estimate from samples with which all published weights were trained.
ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "relu": (nn.ReLU, 1.7139588594436646),
    "gelu": (nn.GELU, 1.7015043497085571),
    "silu": (nn.SiLU, 1.7881293296813965),
}


def bare(planes: int, kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    """An activation and nothing else."""
    return kind()


@dataclass(frozen=True)
class Style:
    """What the layers of a network are, whatever its table of stages.

    Factors of a signal commute with convolution. So gamma and 1 / beta are multiplied into the filters that follow, where they
    cost no pass over the signals.

    Args:
        gain: gamma of the activation.
        act: ``act(planes)`` makes what stands before a convolution.
        conv: ``conv(in_planes, planes, kernel, stride, padding, groups=..., gamma=...)`` makes one.
        alpha: factor of the residual branches.
        predicted: whether branches are given h / beta; otherwise h.
        start: how a branch begins: ``"scalar"`` multiplies it by a learnable number that starts at 0, ``"gains"`` has the gains
            of its last filters start at 0, ``"full"`` does neither.
        first: gamma of filters that see no activation: the first of all, and the last of an NFNet-F.
        last: factor of the features before the classifier.
        pooled: whether a shortcut that halves the picture takes means of 2x2 pixels (2021b), or every other pixel (2021a). Means
            of pure noise have a quarter of its variance, those of real pictures most of it.
        same: pad as TensorFlow does: filters of stride 2 begin at the first pixel of pictures of even size, not before it.
    """

    gain: float
    act: Callable[[int], nn.Module] = bare
    conv: Callable[..., nn.Conv2d] = WSConv2d
    alpha: float = 0.2
    predicted: bool = True
    start: Literal["scalar", "gains", "full"] = "scalar"
    first: float = 1.0
    last: float = 1.0
    pooled: bool = False
    same: bool = False


def authors(activation: str = "gelu", alpha: float = 0.2, pooled: bool = True) -> Style:
    """The authors' networks: of 2021b, whose weights timm has by names like ``dm_nfnet_f0``; not ``pooled``, of 2021a."""
    kind, gain = _activation(activation)
    return Style(gain, partial(bare, kind=kind), alpha=alpha, last=gain, pooled=pooled, same=True)


def timms(activation: str = "relu", alpha: float = 0.2) -> Style:
    """timm's own networks: gamma stands in every convolution, also in the first; filters are guarded otherwise."""
    kind, gain = _activation(activation)
    conv = partial(WSConv2d, eps=1e-5, guard="add")
    return Style(gain, partial(bare, kind=kind), conv, alpha, start="gains", first=gain, pooled=True)


def exact(alpha: float = 0.2) -> Style:
    """The networks of 2021a, ReLU with the gamma that makes its variance 1 up to rounding, padding on all sides."""
    gain = variance_gain(F.relu)
    return Style(gain, alpha=alpha, last=gain)


def _activation(name: str) -> tuple[type[nn.Module], float]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}: make a Style for others")
    return ACTIVATIONS[name]


class PadSame(nn.Module):
    """What a filter of stride 2 needs around the picture in TensorFlow: (B, C, H, W) -> (B, C, H + a, W + b)."""

    def __init__(self, kernel: int, value: float = 0.0) -> None:
        super().__init__()
        self.before, self.behind, self.value = (kernel - 2) // 2, kernel // 2, value

    def forward(self, x: Tensor) -> Tensor:
        above, left = self.before + x.shape[2] % 2, self.before + x.shape[3] % 2
        padded: Tensor = F.pad(x, (left, self.behind, above, self.behind), value=self.value)
        return padded


def _conv(
    style: Style, name: str, in_planes: int, planes: int, kernel: int, stride: int = 1, groups: int = 1, gamma: float = 1.0
) -> OrderedDict[str, nn.Module]:
    """A convolution by its name, after its padding if that is a layer of its own."""
    parts = OrderedDict[str, nn.Module]()
    apart = style.same and stride > 1 and kernel > 1
    if apart:
        parts[f"pad_{name}"] = PadSame(kernel)
    parts[name] = style.conv(in_planes, planes, kernel, stride, 0 if apart else kernel // 2, groups=groups, gamma=gamma)
    return parts


class SqueezeExcite(nn.Module):
    """Channels are weighted by what is seen of all of them in the whole picture; twice, since a sigmoid is 1/2 at first.

    Shape: (B, planes, H, W) -> the same.
    """

    def __init__(self, planes: int, hidden: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.relu, self.fc2 = nn.Conv2d(planes, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, planes, 1)
        self.gate = nn.Sigmoid()
        for layer in (self.fc1, self.fc2):
            lecun_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))
        return x * (2 * weights)


@dataclass(frozen=True)
class Row:
    """A convolution of a branch: its name, filter, planes, and groups."""

    name: str
    kernel: int
    planes: int
    groups: int = 1


class NFBlock(nn.Module):
    """``S(h) + alpha * f(h / beta)``, activations before convolutions; S is h, or a convolution of what f sees.

    Args:
        in_planes: planes of the input.
        planes: planes of the output.
        stride: of the first 3x3 convolution.
        rows: the convolutions of f.
        style: what they are.
        beta: predicted standard deviation of the input.
        gate: whether f ends with :class:`SqueezeExcite`.
        drop_path: how probable it is in training that an example goes without f; for the others f is longer, to make up for it,
            which the authors' code leaves out.

    Shape: (B, in_planes, H, W) -> (B, planes, H / stride, W / stride), rounded up.
    """

    def __init__(
        self,
        in_planes: int,
        planes: int,
        stride: int,
        rows: Sequence[Row],
        style: Style,
        beta: float = 1.0,
        gate: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.alpha = style.alpha
        self.act = style.act(in_planes)
        self.branch = nn.Sequential()
        now, gamma, step = in_planes, style.gain / beta, stride
        for place, row in enumerate(rows):
            if place:
                self.branch.add_module(f"act{place + 1}", style.act(now))
            here, step = (step, 1) if row.kernel > 1 else (1, step)
            for name, part in _conv(style, row.name, now, row.planes, row.kernel, here, row.groups, gamma).items():
                self.branch.add_module(name, part)
            now, gamma = row.planes, style.gain
        if style.start == "gains":
            nn.init.zeros_(self.branch.get_parameter(f"{rows[-1].name}.gain"))
        if gate:
            self.branch.add_module("gate", SqueezeExcite(planes, planes // 2))
        if drop_path:
            self.branch.register_forward_hook(DropPath(drop_path))
        self.skip_gain = nn.Parameter(torch.zeros(())) if style.start == "scalar" else None
        self.shortcut: nn.Sequential | None = None
        if stride > 1 or in_planes != planes:
            means = style.pooled and stride > 1
            beside = _conv(style, "conv", in_planes, planes, 1, 1 if means else stride, gamma=style.gain / beta)
            # Of an odd size the last row and column are their own means.
            pool = {"pool": nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)} if means else {}
            self.shortcut = nn.Sequential(OrderedDict(pool | beside))

    def forward(self, x: Tensor) -> Tensor:
        active = self.act(x)
        beside = x if self.shortcut is None else self.shortcut(active)
        out = self.branch(active)
        if self.skip_gain is not None:
            out = out * self.skip_gain
        return torch.add(beside, out, alpha=self.alpha)


def bottleneck(planes: int) -> tuple[Row, ...]:
    """1x1 to a quarter of the planes, 3x3, 1x1 back: as in ResNet-50."""
    return Row("conv1", 1, planes // 4), Row("conv2", 3, planes // 4), Row("conv3", 1, planes)


def wide_bottleneck(planes: int) -> tuple[Row, ...]:
    """1x1 to half of the planes, two 3x3 in groups of 128 planes, 1x1 back: NFNet-F (2021b, Figure 3)."""
    half = planes // 2
    grouped = (Row(name, 3, half, half // 128) for name in ("conv2", "conv2b"))
    return Row("conv1", 1, half), *grouped, Row("conv3", 1, planes)


def basic(planes: int) -> tuple[Row, ...]:
    """Two 3x3 convolutions."""
    return Row("conv1", 3, planes), Row("conv2", 3, planes)


def _body(
    in_planes: int,
    table: Sequence[Stage],
    layout: Callable[[int], tuple[Row, ...]],
    style: Style,
    gate: bool = False,
    drop_path: float = 0.0,
) -> nn.Sequential:
    """The stages, each block with the standard deviation that is predicted for its input (2021a, section 4.2)."""
    variance, stages, index, blocks = 1.0, [], 0, sum(row.blocks for row in table)
    for row in table:
        made = []
        for place in range(row.blocks):
            beta, stride = variance**0.5 if style.predicted else 1.0, 1 if place else row.stride
            rate = drop_path * index / blocks
            made.append(NFBlock(in_planes, row.planes, stride, layout(row.planes), style, beta, gate, rate))
            in_planes, index = row.planes, index + 1
            # The shortcut of a stage's first block is a convolution, whose output has variance 1 again.
            variance = (variance if place else 1.0) + style.alpha**2
        stages.append(nn.Sequential(*made))
    return nn.Sequential(*stages)


class Times(nn.Module):
    """A constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class NFNet(nn.Sequential):
    """Stem, stages of :class:`NFBlock`, activation, mean over the picture, one linear layer: modules stem, stages, final, head.

    Made by :func:`nf_resnet`, :func:`nfnet` and :func:`cifar_nf_resnet`, with filters in channels_last.

    Shape: (B, in_channels, H, W) -> (B, num_classes); any H and W of at least 32 (:func:`cifar_nf_resnet`: at least 4).
    """

    def __init__(
        self,
        stem: nn.Sequential,
        body: nn.Sequential,
        final: nn.Sequential,
        features: int,
        num_classes: int,
        last: float,
        dropout: float,
    ) -> None:
        head = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        if last != 1:
            head["gain"] = Times(last)
        if dropout:
            head["dropout"] = nn.Dropout(dropout)
        head["fc"] = nn.Linear(features, num_classes)
        super().__init__(OrderedDict(stem=stem, stages=body, final=final, head=nn.Sequential(head)))
        nn.init.normal_(head["fc"].weight, std=0.01)  # type: ignore[arg-type]
        nn.init.zeros_(head["fc"].bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


#: Depth -> blocks of the four stages.
DEPTHS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}


def nf_resnet(
    depth: int = 50,
    num_classes: int = 1000,
    in_channels: int = 3,
    style: Style | None = None,
    width: int = 64,
    drop_path: float = 0.0,
    dropout: float = 0.0,
) -> NFNet:
    """A pre-activation ResNet of bottlenecks without normalisation (2021a); 4 x ``width`` planes in the first stage.

    Args:
        depth: 26, 50, 101, 152, 200, 288 or 600 layers.
        num_classes: number of logits.
        in_channels: channels of the input.
        style: ``None`` is ``timms("relu")``, of which there are weights; ``authors("relu", pooled=False)`` is the paper's.
        width: planes of the stem, 64 in the paper.
        drop_path: how probable it is in training that an example goes without a branch, times the share of all blocks that
            lie before it. 2021a: 0.1.
        dropout: before the classifier, in training. 2021a: 0.25.

    Shape: (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: there is no network of this depth.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, not {depth}: others are cifar_nf_resnet's")
    style = style or timms()
    stem = _conv(style, "conv", in_channels, width, 7, 2, gamma=style.first)
    if style.same:
        stem |= {"pad_pool": PadSame(3, -torch.inf), "pool": nn.MaxPool2d(3, 2)}
    else:
        stem["pool"] = nn.MaxPool2d(3, 2, padding=1)
    table = [Stage(4 * width * 2**place, count, stride=2 if place else 1) for place, count in enumerate(DEPTHS[depth])]
    body = _body(width, table, bottleneck, style, drop_path=drop_path)
    planes = table[-1].planes
    final = nn.Sequential(OrderedDict(act=style.act(planes)))
    return NFNet(nn.Sequential(stem), body, final, planes, num_classes, style.last, dropout)


nf_resnet26, nf_resnet50, nf_resnet101 = (partial(nf_resnet, depth) for depth in (26, 50, 101))

#: Dropout before the classifier of F0, F1 ... (2021b, Table 6).
DROPOUT = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5)


def nfnet(
    size: int = 0,
    num_classes: int = 1000,
    in_channels: int = 3,
    style: Style | None = None,
    drop_path: float = 0.0,
    dropout: float | None = None,
) -> NFNet:
    """NFNet-F0 to F6 (2021b, section 5): every size has the planes of F0 and as many times its depth.

    Args:
        size: 0 to 6, for pictures of 192, 224, 256, 320, 384, 416 and 448 pixels in training, and about a third more in tests.
        num_classes: number of logits.
        in_channels: channels of the input.
        style: ``None`` is ``authors("gelu")``, of which there are weights; ``timms("gelu")`` is what timm calls ``nfnet_f0``.
        drop_path: how probable it is in training that an example goes without a branch, times the share of all blocks that
            lie before it. The paper has 0.25 for all sizes.
        dropout: before the classifier, in training; ``None`` is the paper's: 0.2 for F0 up to 0.5.

    Shape: (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: there is no such size.
    """
    if not 0 <= size < len(DROPOUT):
        raise ValueError(f"size must be 0 to {len(DROPOUT) - 1}, not {size}")
    style = style or authors()
    stem, now = OrderedDict[str, nn.Module](), in_channels
    for place, (planes, stride) in enumerate(((16, 2), (32, 1), (64, 1), (128, 2)), start=1):
        if place > 1:
            stem[f"act{place}"] = style.act(now)
        stem |= _conv(style, f"conv{place}", now, planes, 3, stride, gamma=style.gain if place > 1 else style.first)
        now = planes
    counts = [count * (size + 1) for count in (1, 2, 6, 3)]
    rows = zip((256, 512, 1536, 1536), counts, (1, 2, 2, 2), strict=True)
    table = [Stage(planes, count, stride) for planes, count, stride in rows]
    body = _body(now, table, wide_bottleneck, style, gate=True, drop_path=drop_path)
    planes, features = table[-1].planes, 2 * table[-1].planes
    final = _conv(style, "conv", planes, features, 1, gamma=style.first) | {"act": style.act(features)}
    dropout = DROPOUT[size] if dropout is None else dropout
    return NFNet(nn.Sequential(stem), body, nn.Sequential(final), features, num_classes, style.last, dropout)


nfnet_f0, nfnet_f1, nfnet_f2, nfnet_f3, nfnet_f4, nfnet_f5, nfnet_f6 = (partial(nfnet, size) for size in range(7))


def cifar_nf_resnet(
    depth: int = 20, width: int = 16, num_classes: int = 10, in_channels: int = 3, style: Style | None = None
) -> NFNet:
    """A network for small images: a 3x3 convolution and three stages of n basic blocks, depth 6n + 2.

    Args:
        depth: 20, 32, 44, 56, 110 ...
        width: planes of the first stage, 2 or more with standardised filters; the others have twice and four times as many.
        num_classes: number of logits.
        in_channels: channels of the input.
        style: ``None`` is ``exact()``.

    Shape: (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110 ...), not {depth}")
    style = style or exact()
    stem = nn.Sequential(_conv(style, "conv", in_channels, width, 3, gamma=style.first))
    table = [Stage(width * factor, (depth - 2) // 6, stride) for factor, stride in ((1, 1), (2, 2), (4, 2))]
    final = nn.Sequential(OrderedDict(act=style.act(4 * width)))
    return NFNet(stem, _body(width, table, basic, style), final, 4 * width, num_classes, style.last, dropout=0.0)


def small(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """20 layers of 8, 16 and 32 planes on half of the height and width: the form that is compared with others on 28x28."""
    return nn.Sequential(nn.AvgPool2d(2), cifar_nf_resnet(20, 8, num_classes, in_channels))


def selu_mlp(in_features: int, num_classes: int, hidden: Sequence[int] = (256,) * 8, dropout: float = 0.0) -> nn.Sequential:
    """A perceptron that keeps itself at mean 0 and variance 1: SELU, weights of variance 1 / fan-in, no normalisation.

    Args:
        in_features: numbers of one example, in any shape; they must be standardised.
        num_classes: number of logits.
        hidden: units of each hidden layer.
        dropout: of the alpha dropout behind each, which keeps mean and variance; 0.05 or 0.1 in the paper.

    Shape: (B, ...) -> (B, num_classes).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (*hidden, None):
        linear = nn.Linear(in_features, num_classes if width is None else width)
        lecun_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if width is not None:
            layers += [nn.SELU(), nn.AlphaDropout(dropout)] if dropout else [nn.SELU()]
            in_features = width
    return nn.Sequential(*layers)


#: timm's names -> ours, for :func:`assay.nn.weights.load_weights`.
NAMES = (
    (r"^(stages\.\d+\.\d+)\.conv", r"\1.branch.conv"),
    (r"\.attn_last\.", ".branch.gate."),
    (r"\.downsample\.", ".shortcut."),
    (r"\.skipinit_gain$", ".skip_gain"),
    (r"^final_conv\.", "final.conv."),
)


def load_pretrained(model: NFNet, source: str | Path | Mapping[str, Tensor], head: bool = True) -> NFNet:
    """Fill a network with weights of timm, which has the authors' too; returns the network.

    Args:
        model: ``nf_resnet50()``, ``nfnet_f0()`` ... ``nfnet_f6()``.
        source: a state dict, a .safetensors file, or a model that lies in the hub's cache: ``"timm/nf_resnet50.ra2_in1k"``,
            ``"timm/dm_nfnet_f0.dm_in1k"``. Images must be prepared as its card says.
        head: whether the last layer is taken too; ``False`` for other classes than ImageNet's.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    state = source if isinstance(source, Mapping) else read_weights(source)
    state = {name: value.flatten() if name.endswith(".gain") else value for name, value in state.items()}  # (O, 1, 1, 1) there
    load_weights(model, state, NAMES, leave=() if head else ("head.",))
    return model


#: The standard networks, and what they are known to measure. Parameters and multiply-adds of NFNet-F are those of 2021b, Table 3,
#: at its test sizes; the gates count as layers, and let every place see the whole picture.
CONFIGURATIONS = {
    "nf_resnet26()": Configuration(
        (3, 224, 224), parameters=15_995_176, macs=2_342_256_640, layers=26, sees=195, activations=7_350_784
    ),
    "nf_resnet50()": Configuration(
        (3, 224, 224), parameters=25_557_032, macs=4_089_184_256, layers=50, sees=427, activations=11_113_984
    ),
    "nf_resnet101()": Configuration(
        (3, 224, 224), parameters=44_549_160, macs=7_801_405_440, layers=101, sees=971, activations=16_231_936
    ),
    "nfnet_f0()": Configuration((3, 256, 256), parameters=71_489_284, macs=12_384_198_656, layers=78, activations=18_045_056),
    "nfnet_f1()": Configuration((3, 320, 320), parameters=132_634_256, macs=35_538_968_576, layers=150, activations=46_765_312),
    "nfnet_f2()": Configuration((3, 352, 352), parameters=193_779_228, macs=62_592_978_944, layers=222, activations=79_056_768),
    "nfnet_f3()": Configuration((3, 416, 416), parameters=254_924_200, macs=114_763_501_568, layers=294, activations=141_780_224),
    "nfnet_f4()": Configuration((3, 512, 512), parameters=316_069_172, macs=215_241_187_328, layers=366, activations=262_257_280),
    "nfnet_f5()": Configuration((3, 544, 544), parameters=377_214_144, macs=289_757_106_176, layers=438, activations=349_710_336),
    "nfnet_f6()": Configuration((3, 576, 576), parameters=438_359_116, macs=377_280_307_200, layers=510, activations=452_203_392),
    "cifar_nf_resnet(20)": Configuration(
        (3, 32, 32), parameters=272_483, macs=40_813_184, layers=20, sees=81, activations=200_704
    ),
    "cifar_nf_resnet(32)": Configuration(
        (3, 32, 32), parameters=466_921, macs=69_124_736, layers=32, sees=137, activations=315_392
    ),
    "cifar_nf_resnet(56)": Configuration(
        (3, 32, 32), parameters=855_797, macs=125_747_840, layers=56, sees=249, activations=544_768
    ),
}
