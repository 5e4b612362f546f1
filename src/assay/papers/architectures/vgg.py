"""Very deep plain networks: one small filter, stacked.

What does depth bring if nothing else changes? The paper fixes all other choices: only 3x3 convolutions with stride 1, ReLU, five
2x2 maxima after which the planes double, three linear layers at the end. Then it goes from 11 to 19 layers with weights,
and the errors fall until they level off. Two 3x3 convolutions see as much as one of 5x5, three as much as one of 7x7, but with
a nonlinearity between them and fewer weights (27 C^2 instead of 49 C^2). The regular shape made the network the standard
source of image features for years.

A trained network need not be shown crops: its linear layers are convolutions too (the first of 7x7, the others of 1x1), so it
runs over a whole picture of any size and returns a map of class scores, which is averaged (:func:`dense_predict`).

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015. The paper drew
the weights of its shallowest net from N(0, 0.01) and started the deeper ones from it; here they are drawn as He et al. do,
from which all of them learn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.convnet import plain_layers
from assay.nn.initialise import he_normal
from assay.nn.measure import nearest_width, parameters
from assay.nn.weights import load_weights, read_weights
from assay.paper import Close, Configuration, Higher, Reported, claim
from assay.recipe import Recipe, network_of_images, treatment
from assay.train.augment import flip_and_crop
from assay.train.schedules import steps_at, warmup_cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

#: Table 1: the convolutional layers of each configuration; three linear layers follow.
TABLE_1 = {
    "A": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "A-LRN": "64 LRN M 128 M 256 256 M 512 512 M 512 512 M",
    "B": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "C": "64 64 M 128 128 M 256 256 256k1 M 512 512 512k1 M 512 512 512k1 M",
    "D": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "E": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


class VGG(nn.Module):
    """Convolutional layers and a classifier; made by :func:`vgg`. Names of weights are those of torchvision.

    Shape: (B, in_channels, H, W) -> (B, num_classes). With ``head="fc"`` any H and W of at least 32, 224 in the paper (other
    sizes are brought to 7x7 before the linear layers); with ``head="gap"`` any.
    """

    def __init__(self, features: nn.Sequential, side: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.avgpool, self.classifier = features, nn.AdaptiveAvgPool2d(side), classifier
        he_normal(self)
        for module in classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits

    def score_map(self, images: Tensor) -> Tensor:
        """Class scores at every place, linear layers being used as convolutions (sec. 3.2), in evaluation mode or with dropout.

        Shape: (B, in_channels, H, W) -> (B, num_classes, h, w), one place for each 7x7 of the last map (``"gap"``: for each 1x1).
        """
        maps, side = self.features(images), int(self.avgpool.output_size)  # type: ignore[arg-type]
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                maps = F.conv2d(maps, module.weight.unflatten(1, (-1, side, side)), module.bias)
                side = 1
            else:
                maps = module(maps)
        scores: Tensor = maps
        return scores


def vgg(
    config: str = "D",
    num_classes: int = 1000,
    in_channels: int = 3,
    batch_norm: bool = False,
    width: float = 1.0,
    head: Literal["fc", "gap"] = "fc",
    dropout: float = 0.5,
) -> VGG:
    """A network of Table 1: ``vgg("D")`` is VGG-16, ``vgg("E")`` VGG-19.

    Args:
        config: ``"A"``, ``"A-LRN"``, ``"B"``, ``"C"``, ``"D"``, ``"E"``, or a line of layers of one's own
            (:func:`assay.nn.convnet.plain_layers`).
        num_classes: number of logits.
        in_channels: channels of the input.
        batch_norm: normalise between convolution and ReLU; not in the paper.
        width: factor of all planes and of the 4096 units of the linear layers.
        head: ``"fc"``: three linear layers, nine tenths of the weights; ``"gap"``: mean over the picture and one linear layer,
            for small pictures.
        dropout: behind each of the first two linear layers.

    Raises:
        ValueError: there is no such configuration or head.
    """
    if head not in ("fc", "gap"):
        raise ValueError(f"head must be 'fc' or 'gap', not {head!r}")
    features = plain_layers(TABLE_1.get(config, config), in_channels, width, batch_norm, ceil=head == "gap")
    planes = next(m.out_channels for m in reversed(features) if isinstance(m, nn.Conv2d))
    if head == "gap":
        return VGG(features, 1, nn.Sequential(nn.Linear(planes, num_classes)))
    units = max(1, round(4096 * width))
    first = (nn.Linear(planes * 7 * 7, units), nn.ReLU(), nn.Dropout(dropout))
    second = (nn.Linear(units, units), nn.ReLU(), nn.Dropout(dropout))
    return VGG(features, 7, nn.Sequential(*first, *second, nn.Linear(units, num_classes)))


vgg11, vgg13, vgg16, vgg19 = (partial(vgg, config) for config in "ABDE")
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = (partial(vgg, config, batch_norm=True) for config in "ABDE")


@torch.no_grad()
def dense_predict(model: VGG, images: Tensor, scales: Sequence[int] = (256, 384, 512)) -> Tensor:
    """Class probabilities of whole pictures (sec. 3.2 and 4.2): the score map averaged, over the mirrored picture and scales too.

    Args:
        model: a trained network in evaluation mode.
        images: (B, C, H, W), prepared as for training.
        scales: lengths of the shorter side, in pixels; at least 224 for ``head="fc"``.

    Shape: (B, C, H, W) -> (B, num_classes), rows that sum to 1.
    """
    posteriors: list[Tensor] = []
    for scale in scales:
        factor = scale / min(images.shape[2:])
        size = [round(side * factor) for side in images.shape[2:]]
        resized = images if size == list(images.shape[2:]) else F.interpolate(images, size, mode="bilinear", antialias=True)
        both = (resized, resized.flip(3))
        posteriors += [model.score_map(picture).mean(dim=(2, 3)).softmax(dim=1) for picture in both]
    return torch.stack(posteriors).mean(dim=0)


#: timm's names -> ours, which are torchvision's, for :func:`assay.nn.weights.load_weights`.
NAMES = ((r"^pre_logits\.fc1\.", "classifier.0."), (r"^pre_logits\.fc2\.", "classifier.3."), (r"^head\.fc\.", "classifier.6."))


def load_pretrained(model: VGG, source: str | Path | Mapping[str, Tensor], head: bool = True) -> VGG:
    """Fill a network with weights of torchvision or timm; returns the network.

    Args:
        model: e.g. ``vgg16_bn()``.
        source: a state dict, a .safetensors (or torchvision's .pth) file, or a model that lies in the hub's cache, as
            ``"timm/vgg16_bn.tv_in1k"``. Images must be RGB in [0, 1], minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225).
        head: whether the last layer is taken too; ``False`` for other classes than ImageNet's. With ``vgg(head="gap")``, which
            has one linear layer, the convolutions alone are taken then.

    Raises:
        AssayError: the weights are of another network, or not there.
    """
    given = source if isinstance(source, Mapping) else read_weights(source)
    # timm keeps the first two linear layers as convolutions of 7x7 and 1x1.
    flat = {name: value.flatten(1) if re.match(r"pre_logits\.fc\d\.weight", name) else value for name, value in given.items()}
    last = f"classifier.{len(model.classifier) - 1}." if len(model.classifier) > 1 else "classifier."
    load_weights(model, flat, NAMES, leave=() if head else (last,))
    return model


#: The standard networks, and what they are known to measure.
CONFIGURATIONS = {
    "vgg('A')": Configuration(
        (3, 224, 224), parameters=132_863_336, macs=7_609_090_048, layers=11, sees=150, activations=7_426_048
    ),
    "vgg('B')": Configuration(
        (3, 224, 224), parameters=133_047_848, macs=11_308_466_176, layers=13, sees=156, activations=12_242_944
    ),
    "vgg('C')": Configuration(
        (3, 224, 224), parameters=133_638_952, macs=11_770_888_192, layers=16, sees=156, activations=13_547_520
    ),
    "vgg('D')": Configuration(
        (3, 224, 224), parameters=138_357_544, macs=15_470_264_320, layers=16, sees=212, activations=13_547_520
    ),
    "vgg('E')": Configuration(
        (3, 224, 224), parameters=143_667_240, macs=19_632_062_464, layers=19, sees=268, activations=14_852_096
    ),
    "vgg('D', batch_norm=True)": Configuration(
        (3, 224, 224), parameters=138_365_992, macs=15_470_264_320, layers=16, sees=212, activations=13_547_520
    ),
}


@treatment
def plain_net(recipe: Recipe, config: str = "D") -> Recipe:
    """A VGG with batch normalisation and a small head in place of the recipe's network, with about as many parameters.

    Args:
        recipe: of a classifier of images.
        config: of Table 1; ``"D"`` has 13 convolutions.

    Raises:
        AssayError: the data are no images or no classes.
    """
    target, data = parameters(network_of_images(recipe, "VGG networks", "vgg")), recipe.data
    make = partial(vgg, config, data.num_classes, data.input_shape[0], batch_norm=True, head="gap")
    sixteenths = nearest_width(lambda sixteenths: make(width=sixteenths / 16), target, range(1, 33))
    return recipe.replace(model=partial(make, width=sixteenths / 16))


# ---------------------------------------------------------------------------------------------------- claims

_FIVE = "64k5 M 128k5 M 256k5 M 512k5 M 512k5 M"  # B with each pair of 3x3 convolutions replaced by one of 5x5 (sec. 4.1)


def _recipe(lab: Lab, config: str, batch_norm: bool = True) -> Recipe:
    """The same training for every configuration: momentum 0.9, weight decay 5e-4 (sec. 3.1), a rate that rises, then falls."""
    data = lab.data(lab.pick(smoke="digits", laptop="fashion-mnist", full="cifar10"))
    if lab.scale != "full":
        data = data.subset(
            train=lab.pick(smoke=256, laptop=2000, full=0), test=lab.pick(smoke=100, laptop=4000, full=0), seed=lab.seed
        )
    return Recipe(
        data.normalise(),
        model=partial(
            vgg,
            config,
            num_classes=10,
            in_channels=data.input_shape[0],
            batch_norm=batch_norm,
            width=lab.pick(smoke=1 / 16, laptop=1 / 8, full=1.0),
            head="gap",
        ),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=partial(steps_at, at=(0.5, 0.75), gamma=0.1) if lab.scale == "full" else partial(warmup_cosine, warmup=0.1),
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=1, laptop=6, full=160),
        batch_size=64,
        watch=(),
    )


_SCALED_DOWN = (
    "2,000 Fashion-MNIST images of 28x28 instead of ImageNet at 224x224, an eighth of the planes, mean and one linear layer "
    "instead of three linear layers, 6 epochs, no augmentation"
)
_NORMALISED = _SCALED_DOWN + "; with batch normalisation, which the paper did not have yet."


@claim(
    "With the same training, 13 convolutions (configuration D) classify better than 8 (A).",
    expect=Higher("D, 16 layers", than="A, 11 layers"),
    reported=Reported(
        "ImageNet validation, one test scale: top-1 accuracy (A and B trained at 256, D with scale jitter)",
        {"A, 11 layers": 0.704, "B, 13 layers": 0.713, "D, 16 layers": 0.744, "E, 19 layers": 0.745},
        where="Table 3",
    ),
    scaled_down=_NORMALISED,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def deeper_is_better(lab: Lab) -> Measured:
    names = {"A": "A, 11 layers", "B": "B, 13 layers", "D": "D, 16 layers"}
    return {name: lab.train(_recipe(lab, config)).accuracy() for config, name in names.items()}


@claim(
    "Two 3x3 convolutions classify better than one of 5x5 with the same field of view, in all stages of configuration B.",
    expect=Higher("two 3x3 (B)", than="one 5x5"),
    reported=Reported(
        "ImageNet: top-1 accuracy of the net with 5x5 filters, 7 points below B's", {"two 3x3 (B)": 0.713}, "Sec. 4.1"
    ),
    scaled_down=_NORMALISED,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def two_small_filters_beat_a_large_one(lab: Lab) -> Measured:
    return {arm: lab.train(_recipe(lab, config)).accuracy() for arm, config in (("two 3x3 (B)", "B"), ("one 5x5", _FIVE))}


@claim(
    "Local response normalisation after the first layer brings nothing: configuration A classifies as well without it, to within "
    "a point.",
    expect=Close("A-LRN", to="A", within=0.01),
    reported=Reported("ImageNet validation, one test scale: top-1 accuracy", {"A": 0.704, "A-LRN": 0.703}, where="Table 3"),
    scaled_down=_SCALED_DOWN + ".",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def response_normalisation_brings_nothing(lab: Lab) -> Measured:
    return {config: lab.train(_recipe(lab, config, batch_norm=False)).accuracy() for config in ("A", "A-LRN")}
