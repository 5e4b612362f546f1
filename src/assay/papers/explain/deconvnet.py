"""A deconvnet shows what made one unit of a convolutional network fire; a grey square shows what the network needs.

A feature map is a grid of numbers; what pattern do they stand for? A deconvnet sends one of them back to pixels through the
network turned round: pooling puts each value where the maximum had been (the "switches" of the forward pass), ReLUs let through
what is above zero, convolutions are transposed, without biases. It differs from the gradient at the ReLUs alone: the gradient is
shut where the unit was, a deconvnet where the signal is below zero.

Such pictures show a unit, not the reason for a decision. For that the paper covers a part of the image with a grey square and
looks at the probability of the class: where it falls most, there is the object, or whatever the network takes for it.

Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. Section numbers are the paper's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from assay.data.scenes import SceneSplits, scenes
from assay.explain import gradient, occlusion
from assay.explain.backward import backward, explained
from assay.explain.curves import pointing
from assay.explain.gradients import Rectified, run_to
from assay.nn.initialise import he_normal
from assay.nn.layers import watching
from assay.paper import Curve, Higher, Lower, Reported, claim
from assay.recipe import Recipe, probe
from assay.train.schedules import cosine
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View


@probe
def project(model: nn.Module, inputs: Tensor, *, layer: nn.Module | str, channel: int | None = None) -> tuple[Tensor, Tensor]:
    """The input pattern behind the strongest unit of a layer, one for each input (section 2.1).

    Everything in the layer but that unit is set to zero, and its activation is sent back. ReLUs are caught however they are
    written.

    Args:
        model: any network with convolutions; used in evaluation mode and left as it was.
        inputs: (B, C, ...) float.
        layer: a module that gives maps (B, K, ...), or its name.
        channel: the feature map whose strongest unit is taken; ``None`` takes the strongest of all maps, for each input its own.

    Returns:
        The projections, of the inputs' shape, and the positions of the units in the flat layer (B,).

    Raises:
        AssayError: the network has no such layer, or it gives no maps.
    """
    with explained(model, inputs) as leaves:
        with Rectified():
            _, maps = run_to(model, leaves, layer)
        flat = maps.detach().flatten(1)
        if channel is not None:
            first = channel * maps[0, 0].numel()
            unit = first + flat[:, first : first + maps[0, 0].numel()].argmax(dim=1)
        else:
            unit = flat.argmax(dim=1)
        signal = torch.zeros_like(flat).scatter_(1, unit.unsqueeze(1), flat.gather(1, unit.unsqueeze(1)))
        (found,) = backward(maps, leaves, signal.view_as(maps))
    return found, unit


@torch.no_grad()
def top_activations(
    model: nn.Module, inputs: Tensor, layer: str, channel: int, k: int = 9, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """The inputs on which a feature map fires most, each with its strongest unit: the paper shows nine (figure 2).

    Args:
        model: any network with convolutions, in evaluation mode.
        inputs: (N, C, ...) to look through.
        layer: the name of a module that gives maps.
        channel: the feature map.
        k: how many.
        chunk: examples in one pass.

    Returns:
        Positions of the inputs (k,), the strongest first, and how strong they are (k,).
    """
    strongest = []
    with watching(model, [layer]) as outputs:
        for part in inputs.split(chunk):
            model(part)
            strongest.append(outputs[layer][:, channel].flatten(1).amax(dim=1))
    values, positions = torch.cat(strongest).topk(min(k, len(inputs)))
    return positions, values


def occlusion_sensitivity(
    model: nn.Module, inputs: Tensor, target: Tensor | int, *, size: int, stride: int, fill: float = 0.5
) -> Tensor:
    """By how much the probability of a class falls when a square over a place is grey (section 4.2).

    Args:
        model: maps images to logits; used in evaluation mode and left as it was.
        inputs: (B, C, H, W).
        target: the class, one for all or (B,) int64.
        size: of the square in pixels.
        stride: pixels from one square to the next.
        fill: the grey; 0 after the mean was taken out.

    Returns:
        (B, 1, H, W), the mean over all squares that cover a pixel.
    """
    return occlusion(nn.Sequential(model, nn.Softmax(dim=1)), inputs, target, window=size, stride=stride, fill=fill)[:, :1]


@probe
def units(view: View, layer: str = "", channel: int = -1, size: int = 0) -> Seen:
    """The pattern behind the strongest unit of a layer, and where covering the image costs the class its probability.

    Args:
        view: a network with convolutions, and images.
        layer: the layer whose units are shown; empty for the last convolution.
        channel: the feature map; -1 takes the strongest of all for each image.
        size: of the grey square in pixels; 0 for a quarter of the image.
    """
    view.only("images")
    view.classifier()
    found, unit = project(view.model, view.inputs, layer=view.layer(layer), channel=None if channel < 0 else channel)
    side = size or max(1, view.inputs.shape[-1] // 4)
    grey = float(view.inputs.mean())
    falls = occlusion_sensitivity(view.model, view.inputs, view.target, size=side, stride=max(1, side // 3), fill=grey)
    return Seen(
        each={"unit": unit, "largest fall of the probability": falls.flatten(1).amax(dim=1)},
        attributions={"deconvnet": found, "occlusion": falls},
    )


# ------------------------------------------------------------------------------------------------------------- claims

_SIDE = 48


def _scene_net() -> nn.Module:
    """Three convolutions and a hidden layer, for grey scenes of 48 x 48."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 36, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    he_normal(net)
    return net


def _scenes(lab: Lab) -> SceneSplits:
    count = lab.pick(smoke=(200, 0, 60), laptop=(4000, 0, 600), full=(20000, 0, 2000))
    items, photos = lab.data("fashion-mnist"), lab.data("cbsd68")
    return scenes(items, photos, size=_SIDE, objects=(1, 1), scale=(0.45, 0.6), count=count, seed=lab.seed)


def _on_scenes(lab: Lab, made: SceneSplits) -> Recipe:
    return Recipe(
        made.classification(),
        model=_scene_net,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=10, full=20),
        batch_size=64,
    )


_SCENES = "Clothes of Fashion-MNIST on crops of 68 photos, 48 x 48, and a network of three convolutions instead of ImageNet."


@claim(
    "Covered where its class loses most probability, an image is covered on the object: the most sensitive place lies in the "
    "object's box far more often than a random place, and more often than the place of the largest gradient.",
    expect=(
        Higher("occlusion", than="random place", by=0.3),
        Higher("occlusion", than="gradient magnitude"),
    ),
    scaled_down=f"{_SCENES} The paper shows three images; a grey square of 12 with stride 4.",
    unit="share of correctly classified test images whose largest value lies in the object's box",
    needs=("fashion-mnist", "cbsd68"),
)
def occlusion_finds_the_object(lab: Lab) -> Measured:
    made = _scenes(lab)
    model = lab.train(_on_scenes(lab, made)).model
    count = lab.pick(smoke=20, laptop=200, full=1000)
    images, boxes, labels = (
        one[:count].to(lab.device) for one in (made.test.images, made.test.boxes[:, 0], made.test.labels[:, 0])
    )
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    if lab.scale == "smoke":
        right |= True
    images, boxes, labels = images[right], boxes[right], labels[right]
    middle = torch.arange(_SIDE, device=lab.device) + 0.5
    across = (middle >= boxes[:, :1]) & (middle <= boxes[:, 2:3])  # (B, W)
    down = (middle >= boxes[:, 1:2]) & (middle <= boxes[:, 3:])
    inside = down.unsqueeze(2) & across.unsqueeze(1)
    pictures = {
        "occlusion": occlusion_sensitivity(model, images, labels, size=12, stride=4, fill=float(images.mean())),
        "gradient magnitude": gradient(model, images, labels).abs(),
        "deconvnet, strongest unit of the last map": project(model, images, layer="6")[0].abs(),
    }
    arms = {arm: pointing(found, inside).float().mean().item() for arm, found in pictures.items()}
    return arms | {"random place": inside.float().mean().item()}


@claim(
    "Moving an image by four pixels changes the first layer's features more than the last hidden layer's.",
    expect=Lower("last hidden layer", than="first layer"),
    scaled_down=f"{_SCENES} The paper shows layers 1 and 7 for five images, which it also turns and scales.",
    unit="Euclidean distance of the features from the unmoved image's, relative to their norm, mean over 200 test images",
    needs=("fashion-mnist", "cbsd68"),
)
def deep_layers_more_invariant(lab: Lab) -> Measured:
    made = _scenes(lab)
    model = lab.train(_on_scenes(lab, made)).model
    images = made.test.images[: lab.pick(smoke=20, laptop=200, full=1000)].to(lab.device)
    names = {"1": "first layer", "10": "last hidden layer"}
    shifts = (0, 1, 2, 3, 4)
    moved: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad(), watching(model, names) as outputs:
        model(images)
        unmoved = {name: outputs[name].flatten(1) for name in names}
        for shift in shifts:
            model(images.roll(shift, dims=3))
            for name, start in unmoved.items():
                away = (outputs[name].flatten(1) - start).norm(dim=1) / start.norm(dim=1)
                moved[name].append(away.mean().item())
    return {
        names[name]: Curve(found, x=shifts, x_name="pixels moved to the right", y_name="relative distance")
        for name, found in moved.items()
    }


def _photo_net(size: int, stride: int) -> nn.Module:
    """Three convolutions, two linear layers; only the first layer's filters and stride differ, its maps are pooled to 8 x 8."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, size, stride=stride, padding=size // 2), nn.ReLU(), nn.AdaptiveMaxPool2d(8),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    he_normal(net)
    return net


@claim(
    "Smaller filters and half the stride in the first layer, and nothing else, make a network more accurate.",
    expect=Higher("5 x 5, stride 2", than="7 x 7, stride 4", by=0.02),
    reported=Reported(
        "ImageNet, validation, one network: top-5 accuracy", {"7 x 7, stride 4": 0.818, "5 x 5, stride 2": 0.835},
        "Table 2; there 11 x 11 with stride 4 against 7 x 7 with stride 2",
    ),
    scaled_down="5,000 photos of CIFAR-10, a network of three convolutions, 8 epochs.",
    unit="test accuracy",
    needs=("cifar10-20k",),
)  # fmt: skip
def smaller_first_layer_stride(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="cifar10-20k", laptop="cifar10-20k", full="cifar10"))
    if lab.scale != "full":
        data = data.subset(train=lab.pick(smoke=200, laptop=5000, full=0), test=lab.pick(smoke=100, laptop=2000, full=0))
    recipe = Recipe(
        data,
        model=partial(_photo_net, 7, 4),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=8, full=30),
        batch_size=64,
    )
    return {
        "7 x 7, stride 4": lab.train(recipe).accuracy(),
        "5 x 5, stride 2": lab.train(recipe.replace(model=partial(_photo_net, 5, 2))).accuracy(),
    }
