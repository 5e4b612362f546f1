"""Residual networks: layers that only have to learn what is to be changed.

More layers can do all that fewer can, yet around 2015 a plain network of 56 layers ended with a higher training error than
one of 20. This is not overfitting, and with batch normalisation it is not vanishing gradients either: the deeper net is
harder to optimise, although copying its input through the extra layers would make it as good as the shallow one. If doing
nothing is hard to learn, let it be the default. A residual block computes ``relu(F(x) + x)``: its few layers ``F`` learn a
correction, and the shortcut beside them carries ``x`` on, and gradients back, at no cost. Networks of more than a hundred
layers then train, and are the better for it.

Where a stage halves the picture and doubles the planes, the shortcut has to follow: by taking every other pixel and adding
planes of zeros (option A, no parameters), or by a 1x1 convolution (option B); option C has such a projection everywhere.

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. Table numbers are those of the
arXiv version. Two things follow today's practice: in bottlenecks the 3x3 convolution has the stride (the paper's first
1x1 has it with ``stride_at=1``), and filters are drawn with the variance that keeps gradients rather than activations.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn.convnet import ConvNorm, Stage, classifier, imagenet_stem, stages
from assay.nn.initialise import he_normal
from assay.nn.measure import nearest_width, parameters
from assay.nn.weights import load_weights
from assay.paper import Above, Below, Close, Configuration, Cost, Curve, Higher, Lower, Reported, claim
from assay.recipe import Recipe, network_of_images, treatment
from assay.train.augment import flip_and_crop
from assay.train.schedules import steps_at, warmup_cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

Option = Literal["A", "B", "C"]


class ZeroPadded(nn.Module):
    """Shortcut A: every ``stride``-th pixel, followed by ``extra`` planes of zeros: (B, C, H, W) -> (B, C + extra, ...)."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def shortcut_of(option: Option, in_planes: int, planes: int, stride: int) -> nn.Module:
    """What stands beside a block (sec. 3.3): the input itself, its zero-padded form, or a projection."""
    if option not in ("A", "B", "C"):
        raise ValueError(f"shortcut must be 'A', 'B' or 'C', not {option!r}")
    if option == "A" and planes < in_planes:
        raise ValueError(f"shortcut 'A' can only add planes, and {planes} are fewer than {in_planes}: use 'B'")
    same = stride == 1 and in_planes == planes
    if option == "C" or (option == "B" and not same):
        return ConvNorm(in_planes, planes, 1, stride, active=False)
    return nn.Identity() if same else ZeroPadded(stride, planes - in_planes)


class ResidualBlock(nn.Module):
    """``relu(F(x) + S(x))``, or ``relu(F(x))`` without a shortcut: the plain network that the paper compares with (eq. 1, 2).

    Args:
        body: F, whose last layer has no ReLU.
        shortcut: S; ``None`` for the plain form.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        active: Tensor = self.relu(out)
        return active


def basic(in_planes: int, planes: int, stride: int, shortcut: Option = "B", residual: bool = True) -> ResidualBlock:
    """Two 3x3 convolutions (Fig. 5, left): (B, in_planes, H, W) -> (B, planes, H / stride, W / stride)."""
    body = nn.Sequential(ConvNorm(in_planes, planes, 3, stride), ConvNorm(planes, planes, 3, active=False))
    return ResidualBlock(body, shortcut_of(shortcut, in_planes, planes, stride) if residual else None)


def bottleneck(
    in_planes: int,
    planes: int,
    stride: int,
    shortcut: Option = "B",
    residual: bool = True,
    stride_at: int = 3,
    widen: int = 1,
) -> ResidualBlock:
    """1x1 to a quarter of the planes, 3x3, 1x1 back (Fig. 5, right): the same shapes as :func:`basic` for less work."""
    inner = planes // 4 * widen
    first, middle = (stride, 1) if stride_at == 1 else (1, stride)
    body = nn.Sequential(
        ConvNorm(in_planes, inner, 1, first), ConvNorm(inner, inner, 3, middle), ConvNorm(inner, planes, 1, active=False)
    )
    return ResidualBlock(body, shortcut_of(shortcut, in_planes, planes, stride) if residual else None)


class ResNet(nn.Sequential):
    """A stem, stages of residual blocks, mean over the picture, one linear layer: modules stem, stages, head.

    ``stages[i][j]`` is a block; so features of several resolutions are ``net.stages[0](net.stem(x))`` and so on. Made by
    :func:`resnet` and :func:`cifar_resnet`, with filters in channels_last, which is the faster layout on processors.

    Shape: (B, in_channels, H, W) -> (B, num_classes); any H and W of at least 32 (:func:`cifar_resnet`: at least 4).
    """

    def __init__(self, stem: nn.Module, body: nn.Sequential, head: nn.Sequential, zero_init_residual: bool = False) -> None:
        super().__init__(OrderedDict(stem=stem, stages=body, head=head))
        he_normal(self)
        if zero_init_residual:
            for block in self.modules():
                if isinstance(block, ResidualBlock) and block.shortcut is not None:  # a plain block would pass nothing on
                    last = block.body[-1]
                    assert isinstance(last, ConvNorm)
                    nn.init.zeros_(last.norm.weight)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


#: Depth -> kind of block, blocks of the four stages (Table 1).
IMAGENET = {
    18: (basic, (2, 2, 2, 2)),
    34: (basic, (3, 4, 6, 3)),
    50: (bottleneck, (3, 4, 6, 3)),
    101: (bottleneck, (3, 4, 23, 3)),
    152: (bottleneck, (3, 8, 36, 3)),
}


def resnet(
    depth: int = 50,
    num_classes: int = 1000,
    in_channels: int = 3,
    shortcut: Option = "B",
    width: int = 64,
    zero_init_residual: bool = False,
    residual: bool = True,
    stride_at: int = 3,
    widen: int = 1,
) -> ResNet:
    """The networks for large images (Table 1).

    Args:
        depth: layers with weights: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        num_classes: number of logits.
        in_channels: channels of the input.
        shortcut: ``"A"`` pads with zeros, ``"B"`` projects where the shape changes, ``"C"`` projects everywhere.
        width: planes of the stem and of the first stage's 3x3 convolutions, 64 in the paper; they double with every stage.
        zero_init_residual: start every block as ``relu(S(x))``, its last scale being 0. Not in the paper; it helps large batches.
        residual: ``False`` leaves the shortcuts out: the plain network of the same depth.
        stride_at: which convolution of a bottleneck has the stride: the 3x3 (3, as in torchvision), or the first 1x1 (1, as in
            the paper, a tenth less work).
        widen: factor of the planes inside bottlenecks, for wide residual networks.

    Shape: (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: there is no network of this depth, or no such shortcut.
    """
    if depth not in IMAGENET:
        raise ValueError(f"depth must be one of {', '.join(map(str, IMAGENET))}, not {depth}: others are cifar_resnet's")
    if stride_at not in (1, 3):
        raise ValueError(f"stride_at must be 1 or 3, not {stride_at}")
    kind, counts = IMAGENET[depth]
    block = partial(kind, shortcut=shortcut, residual=residual)
    if kind is bottleneck:
        block = partial(block, stride_at=stride_at, widen=widen)
    wide = width * (4 if kind is bottleneck else 1)
    table = [Stage(wide * 2**place, count, stride=2 if place else 1) for place, count in enumerate(counts)]
    body = stages(block, width, table)
    return ResNet(imagenet_stem(in_channels, width), body, classifier(table[-1].planes, num_classes), zero_init_residual)


resnet18, resnet34, resnet50, resnet101, resnet152 = (partial(resnet, depth) for depth in IMAGENET)


def cifar_resnet(
    depth: int = 20,
    shortcut: Option = "A",
    residual: bool = True,
    width: int = 16,
    num_classes: int = 10,
    in_channels: int = 3,
    zero_init_residual: bool = False,
) -> ResNet:
    """The networks for small images (sec. 4.2): a 3x3 convolution and three stages of n basic blocks, depth 6n + 2.

    Args:
        depth: 20, 32, 44, 56, 110 or 1202 in the paper.
        shortcut: as in :func:`resnet`; the paper's choice here is A, so that plain and residual nets have equal parameters.
        residual: ``False`` for the plain network.
        width: planes of the first stage, 16 in the paper; the others have twice and four times as many.
        num_classes: number of logits.
        in_channels: channels of the input.
        zero_init_residual: as in :func:`resnet`.

    Shape: (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: the depth is not 6n + 2, or there is no such shortcut.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110 ...), not {depth}")
    table = [Stage(width * factor, (depth - 2) // 6, stride) for factor, stride in ((1, 1), (2, 2), (4, 2))]
    body = stages(partial(basic, shortcut=shortcut, residual=residual), width, table)
    return ResNet(ConvNorm(in_channels, width, 3), body, classifier(4 * width, num_classes), zero_init_residual)


#: torchvision's and timm's names -> ours, for :func:`assay.nn.weights.load_weights`.
NAMES = (
    (r"^conv1\.", "stem.0.conv."),
    (r"^bn1\.", "stem.0.norm."),
    (r"^fc\.", "head.fc."),
    (r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}."),
    (r"\.conv(\d)\.", lambda found: f".body.{int(found[1]) - 1}.conv."),
    (r"\.bn(\d)\.", lambda found: f".body.{int(found[1]) - 1}.norm."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def load_pretrained(model: ResNet, source: str | Path | Mapping[str, Tensor], head: bool = True) -> ResNet:
    """Fill a network of :func:`resnet` with weights of torchvision or timm; returns the network.

    Args:
        model: e.g. ``resnet50()``.
        source: a state dict, a .safetensors (or torchvision's .pth) file, or a model that lies in the hub's cache, as
            ``"timm/resnet50.a1_in1k"``. Images must be prepared as its card says: usually RGB in [0, 1], minus (0.485, 0.456,
            0.406), over (0.229, 0.224, 0.225).
        head: whether the last layer is taken too; ``False`` for other classes than ImageNet's.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    load_weights(model, source, NAMES, leave=() if head else ("head.",))
    return model


#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "resnet18()": Configuration(
        (3, 224, 224), parameters=11_689_512, macs=1_814_073_344, layers=18, sees=435, activations=2_483_712
    ),
    "resnet34()": Configuration(
        (3, 224, 224), parameters=21_797_672, macs=3_663_761_408, layers=34, sees=899, activations=3_738_112
    ),
    "resnet50()": Configuration(
        (3, 224, 224), parameters=25_557_032, macs=4_089_184_256, layers=50, sees=427, activations=11_113_984
    ),
    "resnet101()": Configuration(
        (3, 224, 224), parameters=44_549_160, macs=7_801_405_440, layers=101, sees=971, activations=16_231_936
    ),
    "resnet152()": Configuration(
        (3, 224, 224), parameters=60_192_808, macs=11_513_626_624, layers=152, sees=1451, activations=22_554_112
    ),
    "cifar_resnet(20)": Configuration((3, 32, 32), parameters=269_722, macs=40_551_040, layers=20, sees=81, activations=188_416),
    "cifar_resnet(32)": Configuration((3, 32, 32), parameters=464_154, macs=68_862_592, layers=32, sees=137, activations=303_104),
    "cifar_resnet(44)": Configuration((3, 32, 32), parameters=658_586, macs=97_174_144, layers=44, sees=193, activations=417_792),
    "cifar_resnet(56)": Configuration(
        (3, 32, 32), parameters=853_018, macs=125_485_696, layers=56, sees=249, activations=532_480
    ),
    "cifar_resnet(110)": Configuration(
        (3, 32, 32), parameters=1_727_962, macs=252_887_680, layers=110, sees=501, activations=1_048_576
    ),
}


@treatment
def residual_net(recipe: Recipe, depth: int = 20) -> Recipe:
    """A residual network of ``depth`` layers in place of the recipe's, as wide as comes nearest to its number of parameters.

    Both have what the recipe gives them: data, loss, optimizer, epochs. The price in seconds is the method's.

    Args:
        recipe: of a classifier of images.
        depth: 6n + 2.

    Raises:
        AssayError: the data are no images or no classes, or the recipe's network is such a network already.
    """
    now, data = network_of_images(recipe, "residual networks", "resnet"), recipe.data
    if isinstance(now, ResNet) and sum(isinstance(module, nn.Conv2d) for module in now.modules()) >= depth - 1:
        raise AssayError(f"the network of this recipe is a residual one of {depth} layers or more already: leave resnet out.")
    make = partial(cifar_resnet, depth, num_classes=data.num_classes, in_channels=data.input_shape[0])
    width = nearest_width(lambda width: make(width=width), parameters(now), range(4, 260, 4))
    return recipe.replace(model=partial(make, width=width))


# ---------------------------------------------------------------------------------------------------- claims

# Chosen before anything was judged: the training (by the time that it takes), the margins, and three rates, a half-decade apart.
RATE = 0.1


def _recipe(lab: Lab, depth: int, residual: bool, shortcut: Option = "A", pictures: str = "digits", rate: float = RATE) -> Recipe:
    """The paper's training (sec. 4.2): momentum 0.9, weight decay 1e-4, batches of 128; the rate rises first, then falls."""
    data = lab.data(lab.pick(smoke="digits", laptop=pictures, full="cifar10"))
    net = partial(cifar_resnet, depth, shortcut, residual)
    model: Callable[[], nn.Module] = partial(net, width=8, in_channels=1)
    if lab.scale == "smoke":
        data = data.subset(train=256, test=100)
    elif lab.scale == "full":
        model = net
    elif pictures == "fashion-mnist":
        data, model = data.subset(train=3000, seed=lab.seed), partial(half_size, model)
    return Recipe(
        data.normalise(),
        model=model,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=1e-4),
        schedule=partial(steps_at, at=(0.5, 0.75), gamma=0.1) if lab.scale == "full" else partial(warmup_cosine, warmup=0.1),
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=1, laptop=12 if pictures == "digits" else 6, full=164),
        watch=(),
    )


def half_size(make: Callable[[], nn.Module]) -> nn.Sequential:
    """A network on images of half the height and width."""
    return nn.Sequential(nn.AvgPool2d(2), make())


def _depths(lab: Lab) -> tuple[int, ...]:
    return lab.pick(smoke=(8, 14), laptop=(8, 20, 56), full=(20, 32, 44, 56, 110))


def _final_loss(trained: Trained) -> float:
    """Mean training loss over the last epoch, when the rate is next to nothing."""
    return trained.history["train_loss"][-1]


_SCALED_DOWN = (
    "1,437 digits of 8x8 instead of CIFAR-10, nets of 8, 16 and 32 planes instead of 16, 32 and 64, 12 epochs without "
    "augmentation instead of 164 with it, the rate falling along a cosine after a short rise instead of in two steps."
)
_FASHION = (
    "3,000 Fashion-MNIST images of 14x14 (all 10,000 tests), nets of 8, 16 and 32 planes, 6 epochs without augmentation; the "
    "paper's comparison is on ImageNet with nets of 18 and 34 layers and 64 to 512 planes."
)


@claim(
    "From 20 to 56 layers the final training loss of a plain net rises by more than 0.1, that of a residual net with as many "
    "parameters by no more than 0.02.",
    expect=(Below("residual", 0.02), Above("plain", 0.1)),
    reported=Reported(
        "CIFAR-10: in Figure 6 plain nets of 56 layers have a higher training error than those of 20, residual ones a lower one; "
        "test error of residual nets of 20, 56 and 110 layers",
        {"residual, 20": 0.0875, "residual, 56": 0.0697, "residual, 110": 0.0643},
        where="Figure 6, Table 6",
    ),
    scaled_down=_SCALED_DOWN,
    unit="training loss in the last epoch, by depth; judged: its rise from 20 to 56 layers",
)
def degradation_of_plain_nets(lab: Lab) -> Measured:
    depths = _depths(lab)
    low, high = lab.pick(smoke=(8, 14), laptop=(20, 56), full=(20, 56))
    arms = {}
    for arm, residual in (("plain", False), ("residual", True)):
        runs = {depth: lab.train(_recipe(lab, depth, residual)) for depth in depths}
        losses = {depth: _final_loss(trained) for depth, trained in runs.items()}
        arms[arm] = Curve(
            list(losses.values()),
            list(losses),
            value=losses[high] - losses[low],
            cost=Cost(seconds=sum(trained.seconds for trained in runs.values()), parameters=runs[high].parameters),
            x_name="layers",
            y_name="training loss in the last epoch",
        )
    return arms


@claim(
    "It is not the learning rate: also with the best of three rates a plain net of 56 layers ends with a training loss more than "
    "0.1 above that of a plain net of 20 layers and of a residual net of 56 layers, neither of them tuned.",
    expect=(
        Lower("residual, 56 layers", than="plain, 56 layers, best rate", by=0.1),
        Higher("plain, 56 layers, best rate", than="plain, 20 layers", by=0.1),
    ),
    scaled_down=_SCALED_DOWN + " Rates of 0.01, 0.03 and 0.1; the others have 0.1.",
    unit="training loss in the last epoch",
)
def no_rate_rescues_plain_nets(lab: Lab) -> Measured:
    low, high = lab.pick(smoke=(8, 14), laptop=(20, 56), full=(20, 56))
    tried = [lab.train(_recipe(lab, high, residual=False, rate=rate)) for rate in (0.01, 0.03, RATE)]
    runs = {
        "plain, 56 layers, best rate": min(tried, key=_final_loss),
        "plain, 20 layers": lab.train(_recipe(lab, low, residual=False)),
        "residual, 56 layers": lab.train(_recipe(lab, high, residual=True)),
    }
    return {arm: Curve(t.history["train_loss"], cost=t.cost, y_name="training loss") for arm, t in runs.items()}


@claim(
    "In nets of 20 layers shortcuts without parameters (A) classify as well as projections (B), to within a point, and more than "
    "a point better than no shortcuts.",
    expect=(Close("A: zero padding", to="B: projections", within=0.01), Higher("A: zero padding", than="no shortcuts", by=0.01)),
    reported=Reported(
        "ImageNet, 34 layers, 10 crops: top-1 accuracy",
        {"A: zero padding": 0.7497, "B: projections": 0.7548, "C: projections everywhere": 0.7581, "no shortcuts": 0.7146},
        where="Tables 2 and 3",
    ),
    scaled_down=_FASHION,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def identity_shortcuts_suffice(lab: Lab) -> Measured:
    depth = lab.pick(smoke=8, laptop=20, full=56)
    options: dict[str, tuple[bool, Option]] = {
        "A: zero padding": (True, "A"),
        "B: projections": (True, "B"),
        "no shortcuts": (False, "A"),
    }
    return {
        arm: lab.train(_recipe(lab, depth, residual, option, "fashion-mnist")).accuracy()
        for arm, (residual, option) in options.items()
    }


@claim(
    "Twelve more layers (20 instead of 8) make a residual net classify test images better, and a plain net worse.",
    expect=(
        Higher("residual, 20 layers", than="residual, 8 layers"),
        Lower("plain, 20 layers", than="plain, 8 layers"),
    ),
    reported=Reported(
        "ImageNet, 10 crops: top-1 accuracy of 18 and 34 layers",
        {"plain, 18": 0.7206, "plain, 34": 0.7146, "residual, 18": 0.7212, "residual, 34": 0.7497},
        where="Table 2",
    ),
    scaled_down=_FASHION,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def depth_pays_with_shortcuts(lab: Lab) -> Measured:
    low, high = lab.pick(smoke=(8, 14), laptop=(8, 20), full=(20, 56))
    return {
        f"{name}, {layers} layers": lab.train(_recipe(lab, depth, residual, pictures="fashion-mnist")).accuracy()
        for name, residual in (("residual", True), ("plain", False))
        for layers, depth in ((8, low), (20, high))
    }


def responses(model: nn.Module, images: Tensor) -> list[float]:
    """Standard deviation of what each 3x3 convolution returns after its normalisation, before ReLU and addition (Fig. 7).

    Normalisation is over these images, so that nothing depends on how far the running averages have got. The model is left as it
    is.

    Args:
        model: a network of this module.
        images: (B, C, H, W), prepared as for training.
    """
    shadow = copy.deepcopy(model).train()
    found: list[float] = []
    for layer in shadow.modules():
        if isinstance(layer, ConvNorm) and layer.conv.kernel_size == (3, 3):
            layer.norm.register_forward_hook(lambda _, __, out: found.append(out.std().item()))
    with torch.no_grad():
        shadow(images)
    return found


@claim(
    "Layers respond more weakly (standard deviation after normalisation, mean over layers) in residual nets than in plain ones "
    "of 20 and of 56 layers, and more weakly in residual nets of 56 layers than of 20.",
    expect=(
        Lower("residual, 20 layers", than="plain, 20 layers"),
        Lower("residual, 56 layers", than="plain, 56 layers"),
        Lower("residual, 56 layers", than="residual, 20 layers"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="standard deviation of a layer's responses",
)
def small_responses(lab: Lab) -> Measured:
    low, high = lab.pick(smoke=(8, 14), laptop=(20, 56), full=(20, 56))
    arms = {}
    for name, residual in (("plain", False), ("residual", True)):
        for layers, depth in ((20, low), (56, high)):
            trained = lab.train(_recipe(lab, depth, residual))
            images = trained.recipe.data.test.inputs
            assert isinstance(images, Tensor)
            spread = responses(trained.model, images[:1000].to(lab.device))
            arms[f"{name}, {layers} layers"] = Curve(
                spread, value=sum(spread) / len(spread), cost=trained.cost, x_name="layer", y_name="standard deviation"
            )
    return arms
