"""Which few of a network's thousand filters make it say "rose"? They are found without annotations, and explain decisions.

*Selection* (sec. 3.1): every filter of every layer is described by how strongly it responds to each training image; a sparse
linear model, one for each class, then says by which of them the class is told from the others. *Interpretation* (sec. 3.2): such
a filter is shown as the average of the patches that excite it most. *Explanation* (sec. 3.3): of the filters that belong to the
class that the network says, those that responded most are projected back to the pixels by guided backpropagation.

Going back through a layer with a stride leaves a grid: between any two signals there are stride - 1 zeros. Repeating each signal
instead (nearest neighbour) and going back as if the stride were one takes the grid away (sec. 3.3, fig. 3).

Whether a heat map is right can be measured where the discriminative part is known (sec. 4, an8Flower): flowers of which only one
part differs between classes, with a mask of it.

Source: Oramas, Wang and Tuytelaars, "Visual Explanation by Interpretation: Improving Visual Feedback Capabilities of Deep Neural
Networks", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import lars_path
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.explain import grad_cam, gradient, guided_backprop
from assay.explain.backward import Back, Call, Rule, explained
from assay.explain.curves import iou_curve
from assay.explain.gradients import Rectified
from assay.nn.frozen import frozen
from assay.nn.layers import watching
from assay.paper import Curve, Higher, Lower, claim
from assay.recipe import Recipe, probe
from assay.recipes import lenet_on
from assay.train.schedules import cosine
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View

# ------------------------------------------------------------------------------------------------ which filters matter


def filter_layers(model: nn.Module) -> list[str]:
    """Names of all layers with filters, convolutions and linear ones, but for the last, whose outputs are the classes."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return names[:-1]


def responses(model: nn.Module, inputs: Tensor, layers: Sequence[str] | None = None, chunk: int = 256) -> dict[str, Tensor]:
    """How strongly each filter responds to each input: the length of its rectified map, of the layer's lengths taken to 1.

    Without the last step a layer with large values would be all that a linear model sees.

    Args:
        model: maps images to logits.
        inputs: (N, C, H, W).
        layers: names of the layers that are looked at; all with filters but the last if it is left out.
        chunk: images in one pass.

    Returns:
        Layer -> (N, filters).
    """
    layers = filter_layers(model) if layers is None else list(layers)
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with frozen(model, inputs), torch.no_grad():
        for part in inputs.split(chunk):
            with watching(model, layers) as seen:
                model(part)
            for layer in layers:
                length = seen[layer].clamp(min=0).flatten(2).norm(dim=2) if seen[layer].dim() > 2 else seen[layer].clamp(min=0)
                parts[layer].append(F.normalize(length, dim=1))
    return {layer: torch.cat(found) for layer, found in parts.items()}


@dataclass(frozen=True)
class Selection:
    """The filters by which each class is told from the others.

    Args:
        filters: (layer, channel) of each of the m filters that were looked at.
        weights: (C, m), almost all zero.
    """

    filters: tuple[tuple[str, int], ...]
    weights: Tensor

    def of(self, label: int) -> list[tuple[str, int, float]]:
        """Layer, channel and weight of the filters of a class, the heaviest first."""
        row = self.weights[label]
        order = [place for place in row.abs().argsort(descending=True).tolist() if row[place] != 0]
        return [(*self.filters[place], float(row[place])) for place in order]


def select(
    model: nn.Module, inputs: Tensor, labels: Tensor, num_classes: int, mu: float = 10.0, layers: Sequence[str] | None = None
) -> Selection:
    """The relevant filters of every class: argmin_w ||X'w - l||^2 with ||w||_1 <= mu (eq. 1).

    Responses and labels are centred, so that no filter has to stand for a constant. The lasso's path is piecewise linear, so the
    solution for a bound on the sum of the weights is exact.

    Args:
        model: maps images to logits.
        inputs: (N, C, H, W), training images.
        labels: (N,) int64.
        num_classes: C.
        mu: bound on the sum of the absolute weights of a class; the paper has 10.
        layers: see :func:`responses`.

    Raises:
        AssayError: mu is not above zero.
    """
    if mu <= 0:
        raise AssayError(f"mu={mu:g} leaves no filter: give a bound above 0.")
    found = responses(model, inputs, layers)
    measured = torch.cat(list(found.values()), dim=1).double()
    table = (measured - measured.mean(dim=0)).cpu().numpy()
    gram, weights = table.T @ table, []
    for label in range(num_classes):
        wanted = (labels == label).double().cpu().numpy()
        _, _, path = lars_path(table, wanted - wanted.mean(), Gram=gram, method="lasso", max_iter=2 * table.shape[1])
        weights.append(_bounded(path, mu))
    filters = tuple((layer, channel) for layer, values in found.items() for channel in range(values.shape[1]))
    return Selection(filters, torch.from_numpy(np.stack(weights)).float())


def _bounded(path: NDArray[np.float64], mu: float) -> NDArray[np.float64]:
    """The point of a lasso's path (m, knots) at which the weights' absolute values sum to ``mu``; the end if they never do."""
    sums = np.abs(path).sum(axis=0)
    beyond = np.flatnonzero(sums > mu)
    if not len(beyond):
        return path[:, -1]
    after = int(beyond[0])
    share = (mu - sums[after - 1]) / (sums[after] - sums[after - 1])
    weights: NDArray[np.float64] = (1 - share) * path[:, after - 1] + share * path[:, after]
    return weights


def average_patch(model: nn.Module, inputs: Tensor, layer: str, channel: int, side: int, top: int = 100) -> Tensor:
    """What a filter looks for: the mean of the patches around its strongest responses (sec. 3.2).

    Args:
        model: maps images to logits.
        inputs: (N, C, H, W).
        layer: of the filter.
        channel: of the layer.
        side: of the patch in pixels; the receptive field, or less of it. Patches at an edge are padded with zeros.
        top: images in the mean, one patch of each.

    Returns:
        (C, side, side); for a filter of a linear layer the mean image (C, H, W).
    """
    maps = []
    with frozen(model, inputs), torch.no_grad():
        for part in inputs.split(256):
            with watching(model, [layer]) as seen:
                model(part)
            maps.append(seen[layer][:, channel])
    found = torch.cat(maps)
    most, place = found.flatten(1).max(dim=1)
    best = most.topk(min(top, len(most))).indices
    if found.dim() == 1:
        return inputs[best].mean(dim=0)
    height, width = inputs.shape[2:]
    rows = ((place[best] // found.shape[2] + 0.5) * height / found.shape[1]).long()
    columns = ((place[best] % found.shape[2] + 0.5) * width / found.shape[2]).long()
    padded = F.pad(inputs[best], (side // 2, side, side // 2, side))
    steps = torch.arange(side, device=inputs.device)
    picked = padded[
        torch.arange(len(best))[:, None, None], :, (rows[:, None] + steps)[:, :, None], (columns[:, None] + steps)[:, None, :]
    ]  # (top, side, side, C)
    return picked.mean(dim=0).permute(2, 0, 1)


# ------------------------------------------------------------------------------------------------ going back without a grid


class NearestBack(Rectified):
    """Guided backpropagation that repeats signals where a layer has a stride, with no zeros set between them (sec. 3.3)."""

    def __init__(self) -> None:
        super().__init__(guided=True)

    def rule(self, call: Call) -> Rule | None:
        """A strided convolution's or pooling's; a ReLU's; None for anything else."""
        if call.name == "conv2d" and call.places == [0]:
            return _strided(call)
        if call.name in ("max_pool2d", "avg_pool2d"):
            return partial(_pooled, call)
        return super().rule(call)


def _strided(call: Call) -> Rule | None:
    args, kwargs = call.arguments(*call.carriers)
    given = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False)) | kwargs
    down, across = _pair(given.get("stride", 1))
    if (down, across) == (1, 1) or isinstance(given.get("padding", 0), str):
        return None
    edges = _pair(given.get("padding", 0))

    def rule(value: Tensor) -> tuple[Tensor, Back]:
        def back(coming: Tensor) -> tuple[Tensor]:
            repeated = coming.repeat_interleave(down, dim=2).repeat_interleave(across, dim=3) / (down * across)
            dense = F.conv_transpose2d(
                repeated, given["weight"], padding=edges, dilation=given.get("dilation", 1), groups=given.get("groups", 1)
            )
            # Repeating to the right and below moves everything by half a stride, which is taken back.
            top, left = (down - 1) // 2, (across - 1) // 2
            height, width = value.shape[2:]
            dense = dense[:, :, top : top + height, left : left + width]
            return (F.pad(dense, (0, width - dense.shape[3], 0, height - dense.shape[2])),)

        return call.run(value), back

    return rule


def _pooled(call: Call, value: Tensor) -> tuple[Tensor, Back]:
    out = call.run(value)
    share = out.shape[2] * out.shape[3] / (value.shape[2] * value.shape[3])
    return out, lambda coming: (F.interpolate(coming, value.shape[2:], mode="nearest") * share,)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


@dataclass(frozen=True)
class Explanation:
    """Where the filters of the class that the network says found it.

    Args:
        heat: (B, 1, H, W), none below zero.
        maps: (B, k, H, W), those of the single filters, each with a largest value of 1.
        chosen: (B, k) positions in the selection's filters, the strongest first; -1 where no further filter speaks for the class.
    """

    heat: Tensor
    maps: Tensor
    chosen: Tensor


def explain(
    model: nn.Module, inputs: Tensor, selection: Selection, k: int = 5, target: Tensor | None = None, nearest: bool = True
) -> Explanation:
    """Heat maps from the selected filters that responded most to each image (sec. 3.3).

    Args:
        model: maps images to logits; used in evaluation mode.
        inputs: (B, C, H, W).
        selection: see :func:`select`.
        k: filters an image.
        target: (B,) int64; the class that the network says if it is left out.
        nearest: go back without a grid.
    """
    layers = list(dict.fromkeys(layer for layer, _ in selection.filters))
    if target is None:
        with frozen(model, inputs), torch.no_grad():
            target = torch.cat([model(part).argmax(dim=1) for part in inputs.split(256)])
    strength = torch.cat([values.cpu() for values in responses(model, inputs, layers).values()], dim=1)
    relevant = strength * selection.weights[target.cpu()]  # r = w_j * x
    largest, chosen = relevant.topk(min(k, relevant.shape[1]), dim=1)
    chosen = torch.where(largest > 0, chosen, -1)
    maps = torch.stack([_back(model, inputs, selection, layers, rank, nearest) for rank in chosen.T], dim=1)
    maps = maps / maps.flatten(2).amax(dim=2).clamp(min=1e-12)[:, :, None, None]
    return Explanation(maps.sum(dim=1, keepdim=True), maps, chosen)


def _back(model: nn.Module, inputs: Tensor, selection: Selection, layers: Sequence[str], chosen: Tensor, nearest: bool) -> Tensor:
    """Size of what arrives at each pixel from one filter of each image, which sends its own map: (B, H, W)."""
    rows = torch.arange(len(inputs))
    with explained(model, inputs) as (leaf,):
        with NearestBack() if nearest else Rectified(guided=True), watching(model, layers) as seen:
            model(leaf)
        outputs = [seen[layer] for layer in layers]
        signals = []
        for layer, output in zip(layers, outputs, strict=True):
            signal = torch.zeros_like(output)
            here = torch.tensor([place >= 0 and selection.filters[place][0] == layer for place in chosen.tolist()])
            channels = torch.tensor([selection.filters[place][1] for place in chosen[here].tolist()], dtype=torch.int64)
            signal[rows[here], channels] = output.detach()[rows[here], channels].clamp(min=0)
            signals.append(signal)
        (found,) = torch.autograd.grad(outputs, leaf, signals)
    return found.abs().sum(dim=1)


@probe
def selected_filters(view: View, mu: float = 10.0, k: int = 5) -> Seen:
    """Where the few filters that tell the class from the others found it.

    Args:
        view: a classifier of images with layers; the filters are selected on its background.
        mu: bound on the sum of the weights of a class.
        k: filters an image.
    """
    view.only("images")
    classes = view.classifier()
    view.layer()
    if len(view.background) < 2 * classes:
        raise AssayError(f"filters are selected on further examples, and there are {len(view.background)} of them")
    labels = view.background_labels
    if labels is None:
        with torch.no_grad():
            labels = torch.cat([view.model(part).argmax(dim=1) for part in view.background.split(256)])
    selection = select(view.model, view.background, labels, classes, mu)
    found = explain(view.model, view.inputs, selection, k, view.target)
    count = (selection.weights != 0).sum(dim=1).double()
    return Seen(
        numbers={"filters": float(len(selection.filters)), "filters that a class needs": count.mean().item()},
        each={"filters that speak for the class": (found.chosen >= 0).sum(dim=1).double()},
        attributions={"selected filters": found.heat},
    )


# ------------------------------------------------------------------------------------------------ flowers of known parts

Part = Literal["petals", "centre", "stem"]
#: Colours of the parts that all classes share.
_USUAL = {"stem": (0.25, 0.5, 0.2), "petals": (0.85, 0.8, 0.85), "centre": (0.45, 0.3, 0.15)}


def flowers(count: int, part: Part = "centre", classes: int = 6, size: int = 48, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Flowers of which one part tells the class by its colour, and a mask of that part: a drawn stand-in for an8Flower.

    A flower is a stem, five to eight petals and a centre, at a random place, turned and scaled, on a tinted background with
    noise. The other parts have one colour in all classes, as in an8Flower, a little different in each flower.

    Args:
        count: images.
        part: that differs between classes.
        classes: colours of it, evenly spaced in hue.
        size: of the sides in pixels.
        seed: of everything random.

    Returns:
        Images (N, 3, S, S) in [0, 1], labels (N,), masks (N, S, S).
    """
    drawn = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=drawn)

    labels = torch.randint(classes, (count,), generator=drawn)
    across = (torch.arange(size) + 0.5) / size
    x, y = across.view(1, 1, -1), across.view(1, -1, 1)
    cx, cy, scale, turn = (uniform(*ends).view(-1, 1, 1) for ends in ((0.35, 0.65), (0.3, 0.5), (0.75, 1.15), (0.0, 6.2832)))
    petals = torch.randint(5, 9, (count, 1, 1), generator=drawn)
    blossom = torch.zeros(count, size, size, dtype=torch.bool)
    for number in range(8):
        angle = turn + 6.2832 * number / petals
        dx, dy = x - cx - 0.17 * scale * angle.cos(), y - cy - 0.17 * scale * angle.sin()
        along, beside = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        blossom |= ((along / (0.14 * scale)) ** 2 + (beside / (0.075 * scale)) ** 2 < 1) & (number < petals)
    centre = (x - cx) ** 2 + (y - cy) ** 2 < (0.09 * scale) ** 2
    lean = uniform(-0.15, 0.15).view(-1, 1, 1)
    stem = ((x - cx - lean * (y - cy)).abs() < 0.03 * scale) & (y > cy)
    masks = {"stem": stem & ~blossom & ~centre, "petals": blossom & ~centre, "centre": centre}
    own = _colour(labels / classes)
    images = uniform(0.35, 0.65, 3).view(-1, 3, 1, 1) * torch.ones(1, 1, size, size)
    for name, mask in masks.items():
        colour = own if name == part else torch.tensor(_USUAL[name]) + uniform(-0.1, 0.1, 3)
        images = torch.where(mask.unsqueeze(1), colour.view(-1, 3, 1, 1), images)
    noise = 0.05 * torch.randn(images.shape, generator=drawn)
    return (images + noise).clamp(0, 1), labels, masks[part]


def _colour(hue: Tensor) -> Tensor:
    """Strong colours (N, 3) of hues in [0, 1)."""
    wheel = (hue.unsqueeze(1) * 6 - torch.tensor([3.0, 2.0, 4.0])).abs()
    red, green, blue = (wheel[:, 0] - 1), (2 - wheel[:, 1]), (2 - wheel[:, 2])
    return 0.15 + 0.75 * torch.stack([red, green, blue], dim=1).clamp(0, 1)


def strided_net(in_channels: int = 3, num_classes: int = 6, size: int = 48) -> nn.Sequential:
    """Four convolutions of stride 2 and two linear layers: small, and with as many grids to mend as a large one."""
    widths = (in_channels, 16, 32, 32, 64)
    layers: list[nn.Module] = []
    for one, other in pairwise(widths):
        layers += [nn.Conv2d(one, other, 3, stride=2, padding=1), nn.ReLU()]
    side = -(-size // 16)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * side**2, 64), nn.ReLU(), nn.Linear(64, num_classes))


# ------------------------------------------------------------------------------------------------------------ claims


def _ablated_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, filters: Sequence[tuple[str, int]]) -> Tensor:
    """Whether each example is classified correctly (N,) with these filters silent."""
    modules, handles = dict(model.named_modules()), []

    def silence(channels: list[int], _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        silent = output.clone()
        silent[:, channels] = 0
        return silent

    for layer in {layer for layer, _ in filters}:
        channels = [channel for one, channel in filters if one == layer]
        handles.append(modules[layer].register_forward_hook(partial(silence, channels)))
    try:
        with torch.no_grad():
            return torch.cat([model(part).argmax(dim=1) for part in inputs.split(512)]) == labels
    finally:
        for handle in handles:
            handle.remove()


@claim(
    "Silencing the filters that were selected for a class lowers the accuracy on this class by 0.1 more than silencing as many "
    "random filters of the same layers, and by 0.1 more than it lowers the accuracy on the other classes.",
    expect=(
        Higher("selected", than="random", by=0.10),
        Higher("selected", than="selected, other classes", by=0.10),
    ),
    scaled_down="MNIST 5k and a LeNet instead of ImageNet and a VGG-F; mu = 3, as a LeNet has 176 filters and not thousands; "
    "five draws of random filters.",
    unit="accuracy lost on a class, mean over classes",
)
def selected_filters_matter(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    data = data.subset(train=300, test=100) if lab.scale == "smoke" else data
    model = lab.train(lenet_on(data, epochs=lab.pick(smoke=1, laptop=8, full=8))).model
    train, test = data.train, data.test
    assert isinstance(train.inputs, Tensor)
    assert isinstance(test.inputs, Tensor)
    some = torch.randperm(len(train), generator=lab.generator())[:1000]
    chosen = select(model, train.inputs[some].to(lab.device), train.labels[some], data.num_classes, mu=3.0)
    found = responses(model, train.inputs[some].to(lab.device))
    sizes = {layer: values.shape[1] for layer, values in found.items()}
    usual = {layer: values.mean(dim=0).argsort(descending=True).tolist() for layer, values in found.items()}
    few = torch.randperm(len(test), generator=lab.generator(1))[: lab.pick(smoke=60, laptop=500, full=10_000)]
    images, labels = test.inputs[few].to(lab.device), test.labels[few].to(lab.device)
    before = _ablated_accuracy(model, images, labels, ()).double()
    lost: dict[str, list[float]] = {"selected": [], "random": [], "largest mean response": [], "selected, other classes": []}
    draws = lab.generator(2)
    for label in range(data.num_classes):
        own = labels == label
        filters = [(layer, channel) for layer, channel, weight in chosen.of(label) if weight > 0]
        counts = {layer: sum(one == layer for one, _ in filters) for layer in sizes}
        fall = before - _ablated_accuracy(model, images, labels, filters).double()
        lost["selected"].append(fall[own].mean().item())
        lost["selected, other classes"].append(fall[~own].mean().item())
        largest = [(layer, channel) for layer, count in counts.items() for channel in usual[layer][:count]]
        fall = before - _ablated_accuracy(model, images, labels, largest).double()
        lost["largest mean response"].append(fall[own].mean().item())
        for _ in range(5):
            drawn = [
                (layer, channel)
                for layer, count in counts.items()
                for channel in torch.randperm(sizes[layer], generator=draws)[:count].tolist()
            ]
            fall = before - _ablated_accuracy(model, images, labels, drawn).double()
            lost["random"].append(fall[own].mean().item())
    return {arm: float(np.nanmean(values)) for arm, values in lost.items()}


def _garden(lab: Lab) -> tuple[Recipe, Tensor]:
    """A recipe on flowers, and the masks of its test images."""
    train, test = lab.pick(smoke=200, laptop=2000, full=10_000), lab.pick(smoke=40, laptop=300, full=2000)
    images, labels, masks = flowers(train + test, seed=lab.seed)
    data = Dataset(
        "flowers",
        "classification",
        train=Split(images[:train], labels[:train]),
        valid=Split(images[:0], labels[:0]),
        test=Split(images[train:], labels[train:]),
        classes=tuple(f"colour {number}" for number in range(6)),
        source="drawn",
    )
    recipe = Recipe(
        data,
        model=strided_net,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=2, laptop=8, full=20),
        batch_size=50,
    )
    return recipe, masks[train:]


def _grown(lab: Lab) -> tuple[nn.Module, Tensor, Tensor, Selection]:
    """A network that knows the flowers, test images that it classifies correctly with their masks, and its filters."""
    recipe, masks = _garden(lab)
    model, train, test = lab.train(recipe).model, recipe.data.train, recipe.data.test
    assert isinstance(train.inputs, Tensor)
    assert isinstance(test.inputs, Tensor)
    images = test.inputs.to(lab.device)
    with torch.no_grad():
        right = model(images).argmax(dim=1).cpu() == test.labels
    right = right if right.any() else torch.ones_like(right)
    some = slice(lab.pick(smoke=200, laptop=1000, full=5000))
    chosen = select(model, train.inputs[some].to(lab.device), train.labels[some], 6)
    return model, images[right], masks[right].to(lab.device), chosen


def _cover(heat: Tensor, mask: Tensor) -> Curve:
    """IoU with the part over thresholds; value: the mean."""
    thresholds = torch.linspace(0.05, 1, 20)
    found = iou_curve(heat, mask, thresholds).mean(dim=0)
    return Curve(
        found.tolist(), x=thresholds.tolist(), value=found.mean().item(), x_name="threshold, part of the maximum", y_name="IoU"
    )


@claim(
    "On flowers of which only the centre tells the class, heat maps from the selected filters cover the centre better (mean IoU "
    "over thresholds) than guided backpropagation from the class, Grad-CAM and the gradient.",
    expect=(
        Higher("selected filters", than="guided backpropagation"),
        Higher("selected filters", than="Grad-CAM"),
        Higher("selected filters", than="gradient"),
    ),
    scaled_down="2,300 drawn flowers of 48 x 48 and a network of four strided convolutions instead of an8Flower's rendered ones "
    "of 250 x 250 and an AlexNet.",
    unit="mean over thresholds of the IoU with the discriminative part",
)
def hits_true_part(lab: Lab) -> Measured:
    model, images, masks, chosen = _grown(lab)
    with torch.no_grad():
        said = model(images).argmax(dim=1)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    guided, slope = guided_backprop(model, images, said), gradient(model, images, said)
    assert isinstance(guided, Tensor)
    assert isinstance(slope, Tensor)
    return {
        "selected filters": _cover(explain(model, images, chosen).heat, masks),
        "selected filters, with the grid": _cover(explain(model, images, chosen, nearest=False).heat, masks),
        "guided backpropagation": _cover(guided.abs(), masks),
        "Grad-CAM": _cover(grad_cam(model, images, said, layer=convolutions[-1]), masks),
        "Grad-CAM, second layer": _cover(grad_cam(model, images, said, layer=convolutions[1]), masks),
        "gradient": _cover(slope.abs(), masks),
    }


def grid_share(maps: Tensor, stride: int = 2) -> Tensor:
    """Share of a map's power, its mean aside, at the frequencies of a grid of this stride: (B,).

    Args:
        maps: (B, H, W).
        stride: from one line of the grid to the next, in pixels.
    """
    power = torch.fft.fft2(maps - maps.mean(dim=(1, 2), keepdim=True)).abs().square()
    along = [(torch.fft.fftfreq(side).abs() - 1 / stride).abs() < 1.5 / side for side in maps.shape[1:]]
    grid = (along[0][:, None] | along[1]).to(maps.device)
    share: Tensor = (power * grid).sum(dim=(1, 2)) / power.sum(dim=(1, 2)).clamp(min=1e-12)
    return share


@claim(
    "Repeating signals in strided layers takes away at least half of the power that heat maps have at the frequency of the "
    "stride, and covers the discriminative part no worse.",
    expect=(
        Lower("nearest neighbour", than="zeros between", times=0.5),
        Higher("IoU, nearest neighbour", than="IoU, zeros between", by=-0.01),
    ),
    scaled_down="2,300 drawn flowers of 48 x 48 and a network of four strided convolutions.",
    unit="share of the maps' power at one half per pixel; IoU: mean over thresholds",
)
def nearest_removes_grid(lab: Lab) -> Measured:
    model, images, masks, chosen = _grown(lab)
    arms: dict[str, float | Curve] = {}
    for arm, nearest in (("nearest neighbour", True), ("zeros between", False)):
        found = explain(model, images, chosen, nearest=nearest)
        arms[arm] = grid_share(found.heat[:, 0]).mean().item()
        arms[f"IoU, {arm}"] = _cover(found.heat, masks).number
    return arms
