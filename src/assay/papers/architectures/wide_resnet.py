"""Wide residual networks: fewer layers, more planes.

Residual networks had become a thousand layers deep, and each doubling of depth bought a fraction of a percent while the
layers, one after the other, took ever longer. Most residual blocks, the paper argues, then learn little. It makes the
blocks few and wide instead: a network of 16 layers with eight times the planes matches one of a thousand thin layers with as
many parameters and trains several times faster, since a processor does one wide convolution in less time than many thin ones.

``WRN-d-k`` has depth d = 6N + 4 and widening factor k: a 3x3 convolution, three groups of N pre-activation blocks with 16k,
32k and 64k planes at full, half and quarter resolution, batch normalisation, global average, one linear layer.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016. Table numbers are those of the arXiv version.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.paper import Configuration, Curve, Higher, Reported, claim
from assay.papers.architectures.resnet import ResidualBlock, ResNet, resnet
from assay.recipe import Recipe
from assay.train.augment import flip_and_crop
from assay.train.schedules import steps_at

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


class WideBlock(nn.Module):
    """The basic wide block B(3, 3): two pre-activated 3x3 convolutions with dropout between them, beside a shortcut.

    Args:
        in_planes: planes of the input.
        planes: planes of the output.
        stride: of the first convolution.
        dropout: probability of dropout between the convolutions. The paper uses 0.3 on CIFAR, 0.4 on SVHN, or 0.

    Shape: (B, in_planes, H, W) -> (B, planes, H / stride, W / stride).
    """

    def __init__(self, in_planes: int, planes: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        same = stride == 1 and in_planes == planes
        self.shortcut = None if same else nn.Conv2d(in_planes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        # Where shapes differ the shortcut projects the activated input; elsewhere it is the raw input itself.
        return out + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-d-k for small images.

    Args:
        depth: d = 6N + 4: 10, 16, 22, 28, 40 ...
        width: the widening factor k; 1 is the thin residual network that the paper compares with.
        num_classes: number of logits.
        in_channels: channels of the input.
        dropout: inside the blocks; see :class:`WideBlock`.
        base: planes of the first convolution, 16 in the paper; the groups have ``base * width`` times 1, 2 and 4.

    Shape: (B, in_channels, H, W) with H and W multiples of 4 -> (B, num_classes).
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.0,
        base: int = 16,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6N + 4 (10, 16, 22, 28, 40 ...), not {depth}")
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        groups: list[nn.Module] = []
        planes = base
        for group in range(3):
            wide = base * width * 2**group
            strides = [1 if group == 0 else 2] + [1] * (blocks - 1)
            group_blocks = []
            for stride in strides:
                group_blocks.append(WideBlock(planes, wide, stride, dropout))
                planes = wide
            groups.append(nn.Sequential(*group_blocks))
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(planes)
        self.head = nn.Linear(planes, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # fan-in, as in the authors' code
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn(self.groups(self.stem(images))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def wide_resnet(
    depth: int = 28, width: int = 10, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0
) -> WideResNet:
    """The network of the paper with 16 base planes; ``wide_resnet(28, 10)`` is its best, 36.5 M parameters."""
    return WideResNet(depth, width, num_classes, in_channels, dropout)


class _InPlace(ResidualBlock):
    """The same block, which adds in the memory of what its body returned."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.shortcut is not None:
            out += self.shortcut(x)
        active: Tensor = self.relu(out)
        return active


def wide_bottleneck(depth: int = 50, factor: int = 2, num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """A residual network for large images whose bottlenecks have ``factor`` times the planes inside (sec. 3, ImageNet).

    :func:`assay.papers.architectures.resnet.load_pretrained` fills it with torchvision's or timm's weights.

    Args:
        depth: 50, 101 or 152.
        factor: of the planes of every 3x3 convolution; 2 in the paper.
        num_classes: number of logits.
        in_channels: channels of the input.

    Raises:
        ValueError: there is no such depth.
    """
    if depth not in (50, 101, 152):
        raise ValueError(f"depth must be 50, 101 or 152, not {depth}")
    net = resnet(depth, num_classes, in_channels, widen=factor)
    # So many planes on so small maps are faster in torch's usual layout: by a tenth on pictures of 64 x 64. The rest of the time
    # goes to their memory: sums and activations in place take a few hundredths of it away.
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for stage in [part for part in net.modules() if isinstance(part, nn.Sequential) and isinstance(part[0], ResidualBlock)]:
        for place, block in enumerate(stage):
            assert isinstance(block, ResidualBlock)
            stage[place] = _InPlace(block.body, block.shortcut)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return net


wide_resnet16_8, wide_resnet28_10, wide_resnet40_4 = (partial(wide_resnet, *shape) for shape in ((16, 8), (28, 10), (40, 4)))
wide_resnet50_2, wide_resnet101_2 = (partial(wide_bottleneck, depth) for depth in (50, 101))

#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "wide_resnet16_8()": Configuration(
        (3, 32, 32), parameters=10_961_370, macs=1_548_145_664, layers=14, sees=53, activations=1_163_264
    ),
    "wide_resnet28_10()": Configuration(
        (3, 32, 32), parameters=36_479_194, macs=5_243_328_768, layers=26, sees=109, activations=2_596_864
    ),
    "wide_resnet40_4()": Configuration(
        (3, 32, 32), parameters=8_949_210, macs=1_298_582_016, layers=38, sees=165, activations=1_507_328
    ),
    "wide_resnet50_2()": Configuration(
        (3, 224, 224), parameters=68_883_240, macs=11_398_021_120, layers=50, sees=427, activations=14_400_512
    ),
    "wide_resnet101_2()": Configuration(
        (3, 224, 224), parameters=126_886_696, macs=22_753_050_624, layers=101, sees=971, activations=21_224_448
    ),
}


# What is compared. The thin networks (k = 1) were chosen before anything was trained: by the time of a step on one core, and
# by the number of parameters, each at least that of the wide one.
_WIDE, _SAME_TIME, _SAME_SIZE = (10, 4), (52, 1), (82, 1)  # (depth, width); 0.30 M, 0.19 M and 0.31 M parameters


def half_size(depth: int, width: int, in_channels: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """A network of 8 base planes on images of half the height and width: the small form that a laptop can train."""
    return nn.Sequential(nn.AvgPool2d(2), WideResNet(depth, width, 10, in_channels, dropout, base=8))


def _recipe(lab: Lab, shape: tuple[int, int], dropout: float = 0.0, train: int = 4000, epochs: int = 6) -> Recipe:
    """The paper's training (sec. 3): Nesterov momentum, weight decay 5e-4, rate 0.1 cut to a fifth at 30, 60 and 80 %."""
    depth, width = shape
    model: Callable[[], nn.Module]
    if lab.scale == "full":
        data, model = lab.data("cifar10"), partial(wide_resnet, depth, width, dropout=dropout)
    else:
        whole = lab.data(lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="cifar10"))
        examples, tests = lab.pick(smoke=(256, 100), laptop=(train, 4000), full=(50_000, 10_000))
        data = whole.subset(train=examples, test=tests, seed=lab.seed)
        model = partial(half_size, depth, width, dropout=dropout)
    return Recipe(
        data.normalise(),
        model=model,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=partial(steps_at, at=(0.3, 0.6, 0.8), gamma=0.2),
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=1, laptop=epochs, full=200),
    )


def _curve(trained: Trained) -> Curve:
    """Test accuracy against the seconds of training."""
    accuracy = trained.history["test_accuracy"]
    seconds = [trained.seconds * (epoch + 1) / len(accuracy) for epoch in range(len(accuracy))]
    return Curve(accuracy, seconds, cost=trained.cost, x_name="seconds of training", y_name="test accuracy")


_SCALED_DOWN = (
    "4,000 Fashion-MNIST images of 14x14 instead of CIFAR-10, a quarter to half of the planes, 6 epochs instead of 200, no "
    "augmentation; WRN-10-4 (8 base planes) against thin networks of 52 and 82 layers instead of WRN-16-8 against 1001."
)


@claim(
    "In the same training time a shallow wide network classifies better than a thin deep one.",
    expect=Higher("wide", than="thin, same time"),
    reported=Reported(
        "CIFAR-10 test accuracy: WRN-16-8 against the pre-activation ResNet-1001",
        {"wide": 0.9573, "thin, same time": 0.9538},
        where="Table 5",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def wide_beats_deep_at_equal_time(lab: Lab) -> Measured:
    deep = lab.pick(smoke=(16, 1), laptop=_SAME_TIME, full=(118, 1))
    wide = lab.pick(smoke=(10, 2), laptop=_WIDE, full=(16, 8))
    return {
        "wide": _curve(lab.train(_recipe(lab, wide))),
        "thin, same time": _curve(lab.train(_recipe(lab, deep))),
    }


@claim(
    "With the same number of parameters a shallow wide network classifies at least as well as a thin deep one.",
    expect=Higher("wide", than="thin, same size", by=-0.002),
    reported=Reported(
        "CIFAR-10 test accuracy: WRN-40-4 (8.9 M parameters) against the pre-activation ResNet-1001 (10.2 M)",
        {"wide": 0.9547, "thin, same size": 0.9538},
        where="Table 5",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def wide_beats_deep_at_equal_size(lab: Lab) -> Measured:
    deep = lab.pick(smoke=(16, 1), laptop=_SAME_SIZE, full=(556, 1))
    wide = lab.pick(smoke=(10, 2), laptop=_WIDE, full=(40, 4))
    return {
        "wide": _curve(lab.train(_recipe(lab, wide))),
        "thin, same size": _curve(lab.train(_recipe(lab, deep))),
    }


@claim(
    "Dropout between the convolutions of a block raises the accuracy of a wide network, batch normalisation notwithstanding.",
    expect=Higher("dropout 0.3", than="no dropout"),
    reported=Reported("CIFAR-10 test accuracy, WRN-28-10", {"dropout 0.3": 0.9611, "no dropout": 0.9600}, where="Table 6"),
    scaled_down="WRN-10-4 of 8 base planes on 2,000 Fashion-MNIST images of 14x14, 12 epochs, no augmentation.",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def dropout_in_blocks_helps(lab: Lab) -> Measured:
    shape = lab.pick(smoke=(10, 1), laptop=_WIDE, full=(28, 10))
    return {
        "dropout 0.3": _curve(lab.train(_recipe(lab, shape, dropout=0.3, train=2000, epochs=12))),
        "no dropout": _curve(lab.train(_recipe(lab, shape, train=2000, epochs=12))),
    }
