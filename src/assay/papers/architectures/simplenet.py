"""SimpleNet: how far does a plain network get if every choice in it is an ordinary one, made with care?

By 2016 the best networks had shortcuts, branches, or a thousand layers. The paper goes back to a plain stack of thirteen
convolutions and asks of each choice only that it is sound. Its rules, as a table of layers obeys them:

- grow gradually, and not wider than needed: 64 planes first, twice as many only where the picture is halved, or later;
- groups of like layers, so that one number describes a group;
- 3x3 filters, which see neighbours together; 1x1 only at the end, where places no longer matter much;
- keep the resolution for as long as possible: four layers see the whole picture before it is halved for the first time, and maps
  do not fall below some four pixels a side before the last layers;
- halve by a maximum over 2x2, not by the stride of a convolution, and end with the maximum over the picture: what was seen
  counts, wherever it was;
- batch normalisation and dropout together, everywhere.

With 5.5 million parameters it classifies CIFAR-10 better than residual networks of 110 layers, and nearly as well as wide ones
with 36 million.

Source: Hasanpour, Rouhani, Fayyaz and Sabokrou, "Lets keep it simple, Using simple architectures to outperform deeper and more
complex architectures", arXiv:1608.06037, 2016. The paper's networks (in Caffe) and the authors' later PyTorch code differ. In the
latter the last three layers are normalised too, as they are here. In the first months of 2023 it also put zeros around the input
of 1x1 convolutions, which grows the maps by two pixels a layer; the weights published since then were learnt without them.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.nn.measure import nearest_width, parameters
from assay.nn.weights import load_weights, read_weights
from assay.paper import Configuration, Higher, Reported, claim
from assay.papers.architectures.resnet import cifar_resnet
from assay.recipe import Recipe, network_of_images, treatment
from assay.train.augment import flip_and_crop
from assay.train.schedules import one_cycle, steps_at

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

#: The networks for small pictures: planes of each layer (k1: 1x1 filters), M where a maximum halves the picture.
SMALL_PICTURES = {
    "5m": "64 128 128 128 M 128 128 256 M 256 256 M 512 2048k1 256k1 M 256",
    "460k": "32 32 32 64 M 64 64 64 M 64 64 M 96 96k1 96k1 M 100",  # the authors' name: it has 386 thousand parameters
    "310k": "64 32 32 32 M 32 32 64 M 64 64 M 128 256k1 64k1 M 64",
}
#: The networks for large pictures, whose first layers have strides.
LARGE_PICTURES = {
    "5m": "64 128 128 128 128 128 M 256 256 256 512 M 2048k1 256k1 256",
    "9m": "128 192 192 192 192 192 M 320 320 320 640 M 2560k1 320k1 320",
}
#: Mode -> which of the first layers have stride 2; a later one is more accurate and slower.
STRIDES = {1: (0, 1, 2), 2: (0, 1, 3), 3: (0, 1, 4), 4: (0, 2, 4)}


def _layers(words: str, in_channels: int, width: float, drop: float, padded: bool, everywhere: bool) -> nn.Sequential:
    """The layers of a line; their places in the row are those of the authors' code, whose names of weights are numbers."""
    line = words.split()
    layers: list[nn.Module] = []
    for word, following in zip(line, [*line[1:], "M"], strict=True):
        found = re.fullmatch(r"(\d+)(?:k(\d+))?(?:s(\d+))?", word)
        if word == "M":
            # Sizes round up, as they do in Caffe: pictures of any size get through.
            layers += [nn.MaxPool2d(2, ceil_mode=True), nn.Dropout2d(drop)]
        elif found:
            planes, kernel, stride = max(1, round(int(found[1]) * width)), int(found[2] or 3), int(found[3] or 1)
            padding = max(kernel // 2, int(padded))
            layers.append(nn.Conv2d(in_channels, planes, kernel, stride, padding))
            layers += [nn.BatchNorm2d(planes, momentum=0.05), nn.ReLU()]
            if everywhere or following != "M":
                layers.append(nn.Dropout2d(drop))
            in_channels = planes
        else:
            raise ValueError(f"{word!r} is no layer: write planes (64), with 1x1 filters (64k1), with a stride (64s2), or M")
    return nn.Sequential(*layers)


class SimpleNet(nn.Sequential):
    """A row of layers, the maximum over the picture, one linear layer: modules features, pool, drop, flatten, classifier.

    Made by :func:`simplenet` and :func:`imagenet_simplenet`; filters lie in channels_last.

    Args:
        features: the layers.
        num_classes: number of logits.
        drop: probability of dropout in front of the linear layer.

    Shape: (B, in_channels, H, W) -> (B, num_classes), any H and W.
    """

    def __init__(self, features: nn.Sequential, num_classes: int, drop: float = 0.0) -> None:
        convolutions = [module for module in features if isinstance(module, nn.Conv2d)]
        parts = OrderedDict[str, nn.Module](
            features=features,
            pool=nn.AdaptiveMaxPool2d(1),
            drop=nn.Dropout2d(drop),
            flatten=nn.Flatten(),
            classifier=nn.Linear(convolutions[-1].out_channels, num_classes),
        )
        super().__init__(parts)
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight, gain=math.sqrt(2))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def simplenet(
    config: str = "5m",
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    drop: float = 0.0,
    padded: bool = False,
) -> SimpleNet:
    """The networks for small pictures.

    Args:
        config: ``"5m"``, ``"460k"``, ``"310k"``, or a line of layers of one's own, as :data:`SMALL_PICTURES` has them.
        num_classes: number of logits.
        in_channels: channels of the input.
        width: factor of all planes.
        drop: probability with which whole planes are left out after layers, maxima and in front of the linear layer; not after a
            layer that a maximum follows. The paper has some 0.2.
        padded: put zeros around the input of 1x1 convolutions too, as the authors' code did until April 2023.

    Shape: (B, in_channels, H, W) -> (B, num_classes), any H and W; 32 in the paper.

    Raises:
        ValueError: there is no such configuration.
    """
    features = _layers(SMALL_PICTURES.get(config, config), in_channels, width, drop, padded, everywhere=False)
    return SimpleNet(features, num_classes, drop)


def imagenet_simplenet(
    config: str = "5m",
    mode: int = 2,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    drop: float = 0.0,
    padded: bool = False,
) -> SimpleNet:
    """The networks for large pictures, which the authors added in 2023.

    Args:
        config: ``"5m"`` or ``"9m"``.
        mode: which of the first layers halve the picture (:data:`STRIDES`): 1 is the fastest, 4 the most accurate.
        num_classes: number of logits.
        in_channels: channels of the input.
        width: factor of all planes: 0.5, 0.75 or 1 in published weights.
        drop: as in :func:`simplenet`, after every layer.
        padded: put zeros around the input of 1x1 convolutions too, for weights from before April 2023.

    Shape: (B, in_channels, H, W) -> (B, num_classes), any H and W; 224 in published weights.

    Raises:
        ValueError: there is no such configuration or mode.
    """
    if config not in LARGE_PICTURES or mode not in STRIDES:
        raise ValueError(f"config must be '5m' or '9m' and mode 1, 2, 3 or 4, not {config!r} and {mode!r}")
    words = LARGE_PICTURES[config].split()
    for place in STRIDES[mode]:
        words[place] += "s2"
    return SimpleNet(_layers(" ".join(words), in_channels, width, drop, padded, everywhere=True), num_classes, drop)


simplenet_cifar_310k, simplenet_cifar_460k, simplenet_cifar_5m = (partial(simplenet, name) for name in ("310k", "460k", "5m"))
simplenetv1_5m_m1, simplenetv1_5m_m2 = (partial(imagenet_simplenet, "5m", mode) for mode in (1, 2))
simplenetv1_9m_m1, simplenetv1_9m_m2 = (partial(imagenet_simplenet, "9m", mode) for mode in (1, 2))
simplenetv1_small_m1_05, simplenetv1_small_m2_05 = (partial(imagenet_simplenet, "5m", mode, width=0.5) for mode in (1, 2))
simplenetv1_small_m1_075, simplenetv1_small_m2_075 = (partial(imagenet_simplenet, "5m", mode, width=0.75) for mode in (1, 2))


def small(num_classes: int = 10, in_channels: int = 1) -> SimpleNet:
    """A small form for pictures of about 28x28: the network of 310 thousand parameters with 7 of every 16 planes."""
    return simplenet("310k", num_classes, in_channels, width=7 / 16)


def paper_training(recipe: Recipe) -> Recipe:
    """The authors' optimizer and schedule: Adadelta at a tenth of its rate, decay 1e-3, batches of 100, five drops to a tenth."""
    return recipe.replace(
        optimizer=partial(torch.optim.Adadelta, lr=0.1, rho=0.9, eps=1e-3, weight_decay=1e-3),
        schedule=partial(steps_at, at=tuple(epoch / 540 for epoch in (100, 190, 306, 390, 440)), gamma=0.1),
        batch_size=100,
    )


def load_pretrained(model: SimpleNet, source: str | Path | Mapping[str, Tensor], head: bool = True) -> SimpleNet:
    """Fill a network with weights of the authors' PyTorch code (github.com/Coderx7/SimpleNet_Pytorch); returns the network.

    Args:
        model: for weights from ImageNet the network that the file is called after, as ``simplenetv1_5m_m2()``. The weights for
            CIFAR of 2018 are of a network with one M more, before 2048k1: ``simplenet("64 128 128 128 M 128 128 256 M 256 256 M
            512 M 2048k1 256k1 M 256")`` makes it. Their layers are counted without dropouts between convolutions.
        source: a state dict, or a file of one.
        head: whether the last layer is taken too; ``False`` for other classes.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    given = source if isinstance(source, Mapping) else read_weights(source)
    places = _places_of_2018(list(model.get_submodule("features").children()))
    found = {int(name.split(".")[1]) for name in (name.removeprefix("module.") for name in given) if name.startswith("features.")}
    if found != places.keys():  # they are counted as ours are, or of another network
        places = {}

    def here(name: re.Match[str]) -> str:
        return f"features.{places.get(int(name[1]), name[1])}."

    names = ((r"^module\.", ""), (r"^features\.(\d+)\.", here))
    load_weights(model, given, names, leave=() if head else ("classifier.",))
    return model


def _places_of_2018(layers: Sequence[nn.Module]) -> dict[int, int]:
    """Where a layer with weights stood in the code of 2018, which had no dropout but behind maxima -> where it stands."""
    kept = [
        place
        for place, layer in enumerate(layers)
        if not isinstance(layer, nn.Dropout2d) or isinstance(layers[place - 1], nn.MaxPool2d)
    ]
    return {then: now for then, now in enumerate(kept) if list(layers[now].parameters())}


#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "simplenet_cifar_5m()": Configuration(
        (3, 32, 32), parameters=5_498_378, macs=652_151_296, layers=14, sees=100, activations=668_672
    ),
    "simplenet_cifar_310k()": Configuration(
        (3, 32, 32), parameters=312_362, macs=55_788_160, layers=14, sees=100, activations=212_224
    ),
    "simplenet_cifar_460k()": Configuration(
        (3, 32, 32), parameters=385_790, macs=73_189_864, layers=14, sees=100, activations=226_192
    ),
    "simplenetv1_small_m1_05()": Configuration(
        (3, 224, 224), parameters=1_506_792, macs=340_923_392, layers=14, sees=279, activations=990_976
    ),
    "simplenetv1_small_m2_05()": Configuration(
        (3, 224, 224), parameters=1_506_792, macs=427_627_520, layers=14, sees=271, activations=1_141_504
    ),
    "simplenetv1_small_m1_075()": Configuration(
        (3, 224, 224), parameters=3_287_272, macs=758_853_120, layers=14, sees=279, activations=1_486_464
    ),
    "simplenetv1_small_m2_075()": Configuration(
        (3, 224, 224), parameters=3_287_272, macs=953_937_408, layers=14, sees=271, activations=1_712_256
    ),
    "simplenetv1_5m_m1()": Configuration(
        (3, 224, 224), parameters=5_752_808, macs=1_341_761_536, layers=14, sees=279, activations=1_981_952
    ),
    "simplenetv1_5m_m2()": Configuration(
        (3, 224, 224), parameters=5_752_808, macs=1_688_578_048, layers=14, sees=271, activations=2_283_008
    ),
    "simplenetv1_9m_m1()": Configuration(
        (3, 224, 224), parameters=9_508_968, macs=2_774_249_984, layers=14, sees=279, activations=3_280_256
    ),
    "simplenetv1_9m_m2()": Configuration(
        (3, 224, 224), parameters=9_508_968, macs=3_554_587_136, layers=14, sees=271, activations=3_731_840
    ),
    "small()": Configuration((1, 28, 28), parameters=60_560, macs=8_208_760, layers=14, sees=100, activations=71_848),
}


@treatment
def simple_net(recipe: Recipe, config: str = "310k") -> Recipe:
    """A SimpleNet in place of the recipe's network, as wide as comes nearest to its number of parameters.

    Args:
        recipe: of a classifier of images.
        config: of :data:`SMALL_PICTURES`.

    Raises:
        AssayError: the data are no images or no classes, or the recipe's network is a SimpleNet already.
    """
    now, data = network_of_images(recipe, "SimpleNets", "simplenet"), recipe.data
    if any(isinstance(module, SimpleNet) for module in now.modules()):
        raise AssayError("the network of this recipe is a SimpleNet already: leave simplenet out.")
    make = partial(simplenet, config, data.num_classes, data.input_shape[0])
    sixteenths = nearest_width(lambda sixteenths: make(width=sixteenths / 16), parameters(now), range(1, 65))
    return recipe.replace(model=partial(make, width=sixteenths / 16))


# ---------------------------------------------------------------------------------------------------- claims

_LINE = SMALL_PICTURES["310k"]


def _first_maximum_after(layers: int) -> str:
    """The line of the network of 310 thousand parameters with its first maximum behind another layer."""
    words = _LINE.split()
    words.remove("M")
    return " ".join([*words[:layers], "M", *words[layers:]])


def _with_strides() -> str:
    """The same line with a stride in the last 3x3 layer of each group instead of the maxima, which ask for no parameters."""
    words = _LINE.split()
    for place, word in enumerate(words):
        if word == "M":  # a 1x1 layer with a stride would throw three of four places away
            last = max(before for before in range(place) if words[before].isdecimal())
            words[last] += "s2"
    return " ".join(word for word in words if word != "M")


def residual(width: float = 1.0, in_channels: int = 3) -> nn.Module:
    """The control: a residual network of 20 layers and 270 thousand parameters, with a share of its planes."""
    return cifar_resnet(20, width=round(16 * width), in_channels=in_channels)


# One training for every arm, and no arm was tuned. Batches are small so that few examples make many steps: with batches of 64 and
# a rate of 2e-3 the nets had hardly begun to learn (72 % on one seed, before any verdict).
def _recipe(lab: Lab, model: Callable[..., nn.Module]) -> Recipe:
    data = lab.data(lab.pick(smoke="digits", laptop="fashion-mnist", full="cifar10"))
    if lab.scale != "full":
        examples = lab.pick(smoke=(256, 100), laptop=(2000, 4000), full=(0, 0))
        data = data.subset(train=examples[0], test=examples[1], seed=lab.seed)
    return Recipe(
        data.normalise(),
        model=partial(model, width=lab.pick(smoke=1 / 16, laptop=1 / 4, full=1.0), in_channels=data.input_shape[0]),
        optimizer=partial(torch.optim.AdamW, lr=5e-3),
        schedule=one_cycle,
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=1, laptop=5, full=200),
        batch_size=lab.pick(smoke=64, laptop=32, full=128),
        watch=(),
    )


_SCALED_DOWN = (
    "2,000 Fashion-MNIST images of 28x28 instead of CIFAR-10, a quarter of the planes of the net with 310 thousand parameters "
    "(a sixteenth of the parameters), 5 epochs without augmentation or dropout, AdamW with one cycle and batches of 32 for every "
    "arm."
)


@claim(
    "A plain SimpleNet of the size of 310 thousand parameters classifies at least as well as a residual network of 20 layers and "
    "270 thousand parameters, to within half a point.",
    expect=Higher("SimpleNet", than="ResNet-20", by=-0.005),
    reported=Reported(
        "CIFAR-10 test accuracy with 310 thousand parameters, against a residual network of 32 layers with 475 thousand",
        {"SimpleNet": 0.9198, "ResNet-32": 0.916},
        where="Table of the slim versions",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def plain_matches_residual(lab: Lab) -> Measured:
    arms: dict[str, Callable[..., nn.Module]] = {"SimpleNet": partial(simplenet, _LINE), "ResNet-20": residual}
    return {arm: lab.train(_recipe(lab, model)).accuracy() for arm, model in arms.items()}


@claim(
    "With the same layers, the first maximum after four of them classifies better than after two, and than after one, which are "
    "cheaper.",
    expect=(Higher("after 4 layers", than="after 2"), Higher("after 4 layers", than="after 1")),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def late_downsampling(lab: Lab) -> Measured:
    lines = {"after 4 layers": _LINE, "after 2": _first_maximum_after(2), "after 1": _first_maximum_after(1)}
    return {arm: lab.train(_recipe(lab, partial(simplenet, line))).accuracy() for arm, line in lines.items()}


@claim(
    "With equal parameters, halving the picture by maxima classifies better than by the strides of convolutions.",
    expect=Higher("maxima", than="strides"),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def max_pool_beats_stride(lab: Lab) -> Measured:
    lines = {"maxima": _LINE, "strides": _with_strides()}
    return {arm: lab.train(_recipe(lab, partial(simplenet, line))).accuracy() for arm, line in lines.items()}
