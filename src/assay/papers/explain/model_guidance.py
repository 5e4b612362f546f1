"""Guiding a network by its own explanations: what speaks for a class must lie where the class is.

A network that tells ships by water is right for the wrong reason, and fails where the water is missing. If one knows roughly
where the objects are, one can say so in the loss. The explanation of the right class, A, is computed in every step,
differentiably, and asked to lie in the object's box M:

    L = classification + weight * mean over images with a box of L_loc(A, M)

    energy   1 - sum(A+ M) / sum(A+)             A+ = max(A, 0): all positive evidence inside, no matter where inside
    L1       mean |A+ / max A+ - M|              as the box is: evidence all over it
    RRR*     sum outside of M of (A / max |A|)^2     nothing outside, whatever its sign; nothing asked inside
    PPCE     cross-entropy of A+ / max A+ with 1, inside of M     much inside, nothing asked outside

A is input times gradient, or Grad-CAM, at a layer of the network: near the end it is cheap and coarse. The energy loss does
not ask for evidence on the background within the box, so that coarse boxes, and few of them, serve as well.

The paper has several labels an image, draws one that is present, and adds the localisation losses of a batch up; here an
image has one class, and they are averaged over the batch, so that the weight does not depend on its size. Maps are enlarged
first and then divided by their maximum; the released code does it the other way round.

The paper classifies by binary cross-entropy, class by class, and two of its three networks have no biases: a class that is
there needs a logit above 0, and so evidence for it. Cross-entropy over a softmax sees differences of logits alone, and a bias
gives a class its logit without evidence: large weights then drive all positive evidence away, inside the box too. The claims
use :func:`assay.train.losses.multi_label_loss` and a last layer without bias; with anything else keep the weight small.

Source: Rao, Böhle, Parchami-Araghi and Schiele, "Studying How to Efficiently and Effectively Guide Models with Explanations",
ICCV 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data.scenes import scenes
from assay.errors import AssayError
from assay.explain.curves import energy_inside
from assay.nn.convnet import ConvNorm
from assay.nn.layers import output_shapes, watching
from assay.paper import Curve, Higher, Lower, claim
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.train.hooks import InputHook
from assay.train.losses import multi_label_loss
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.data.scenes import SceneSplits
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

_NONE = 1e-7  # less positive evidence than this is none


# ------------------------------------------------------------------------------------------------------------ maps


def attribution(
    logits: Tensor,
    features: Tensor,
    classes: Tensor,
    method: Literal["ixg", "gradcam"] = "ixg",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """What speaks for a class, place by place; differentiable, so that it can be trained.

    Args:
        logits: (B, K), computed from the features within one graph.
        features: (B, C, h, w), outputs of a layer (or the inputs, if they require gradients).
        classes: (B,) int64, whose logits are explained.
        method: ``"ixg"``: features times gradient, summed over channels; ``"gradcam"``: the positive part of the features
            weighted by their mean gradients.
        size: height and width to which the map is interpolated; ``None`` leaves it as it is.

    Returns:
        (B, h, w), or (B, *size).
    """
    score = logits.gather(1, classes[:, None]).sum()
    (slope,) = torch.autograd.grad(score, features, create_graph=True)
    if method == "gradcam":
        slope = slope.mean(dim=(2, 3), keepdim=True)
    found = (features * slope).sum(dim=1, keepdim=True)
    found = found.relu() if method == "gradcam" else found
    if size is not None:
        found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)
    return found.squeeze(1)


def energy_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """1 minus the share of the positive evidence that is inside: (B, H, W), (B, H, W) of 0 and 1 -> (B,)."""
    positive = maps.relu()
    inside, whole = (positive * mask).sum(dim=(1, 2)), positive.sum(dim=(1, 2))
    # Where there is no evidence at all, there is no share: the first term then asks for some, inside.
    return 1 - torch.where(whole < _NONE, inside, inside / whole.clamp_min(_NONE))


def l1_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean difference between the normalised positive evidence and the box: (B, H, W), (B, H, W) -> (B,)."""
    return (_normalised(maps.relu(), maps) - mask).abs().mean(dim=(1, 2))


def rrr_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Squares of the normalised evidence outside, summed: (B, H, W), (B, H, W) -> (B,)."""
    return ((_normalised(maps, maps) * (1 - mask)) ** 2).sum(dim=(1, 2))


def ppce_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean over the box of -log of the normalised positive evidence: (B, H, W), (B, H, W) -> (B,)."""
    # Bounded as torch bounds the logarithms of its cross-entropy.
    cost = -_normalised(maps.relu(), maps).clamp_min(1e-12).log().clamp_min(-100)
    return (cost * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1)


def _normalised(values: Tensor, maps: Tensor) -> Tensor:
    """By the largest magnitude of each map, which stays in the graph."""
    return values / maps.abs().amax(dim=(1, 2), keepdim=True).clamp_min(_NONE)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "energy": energy_loss,
    "l1": l1_loss,
    "rrr": rrr_loss,
    "ppce": ppce_loss,
}


def box_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (B, 4): left, top, right, bottom in pixels -> (B, height, width) of 0 and 1."""
    x, y = torch.arange(width, device=boxes.device) + 0.5, torch.arange(height, device=boxes.device) + 0.5
    across = (x >= boxes[:, :1]) & (x < boxes[:, 2:3])
    down = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:])
    return (down[:, :, None] & across[:, None, :]).to(boxes.dtype)


def dilate(boxes: Tensor, share: float, height: int, width: int) -> Tensor:
    """Boxes (N, 4) made larger by ``share`` of their size, as a careless annotator draws them, within the picture."""
    grown = torch.cat([boxes[:, 2:] - boxes[:, :2]] * 2, dim=1) * share / 2 * boxes.new_tensor([-1, -1, 1, 1])
    return torch.minimum((boxes + grown).clamp_min(0), boxes.new_tensor([width, height, width, height]))


def box_iou(maps: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Overlap of the box with where the positive evidence, scaled from 0 to 1, is above a threshold: two (B, H, W) -> (B,)."""
    positive = maps.relu().flatten(1)
    low, high = positive.amin(dim=1, keepdim=True), positive.amax(dim=1, keepdim=True)
    region = ((positive - low) / (high - low).clamp_min(_NONE) > threshold).view_as(mask)
    inside = mask > 0
    return (region & inside).sum(dim=(1, 2)) / (region | inside).sum(dim=(1, 2)).clamp_min(1)


# ---------------------------------------------------------------------------------------------------------- training


class GuidanceLoss(nn.Module):
    """Cross-entropy plus a localisation loss of the right class's explanation.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels for every training example; all zero where there is none.
        model: the network; the layer is looked for in it.
        example: (1, C, H, W), one input.
        term: ``"energy"``, ``"l1"``, ``"rrr"`` or ``"ppce"``.
        weight: of the localisation loss.
        method: ``"ixg"`` or ``"gradcam"``.
        layer: whose output is explained, as ``named_modules`` has it; ``""`` takes the last that gives maps.

    Shape: logits (B, K), labels (B,) int64 or (B, K) shares, index (B,) positions in the training set, layers: name -> (B, C, h,
    w) -> scalar.
    """

    boxes: Tensor

    def __init__(
        self,
        boxes: Tensor,
        model: nn.Module,
        example: Tensor,
        term: Literal["energy", "l1", "rrr", "ppce"] = "energy",
        weight: float = 0.1,
        method: Literal["ixg", "gradcam"] = "ixg",
        layer: str = "",
    ) -> None:
        super().__init__()
        if term not in _LOSSES:
            raise ValueError(f"term must be one of {', '.join(_LOSSES)}, not {term!r}")
        self.register_buffer("boxes", boxes, persistent=False)
        self.size = (int(example.shape[2]), int(example.shape[3]))
        self.localise, self.weight, self.method = _LOSSES[term], weight, method
        self.watches = (layer or last_maps(model, example),)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, layers: dict[str, Tensor]) -> Tensor:
        fit = F.cross_entropy(logits, labels)
        boxes = self.boxes[index]
        known = (boxes[:, 2] > boxes[:, 0]).nonzero().flatten()
        features = layers[self.watches[0]]
        # Where something has frozen the network up to the layer, its explanations are what they are.
        if not len(known) or not self.weight or not features.requires_grad:
            return fit
        classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
        maps = attribution(logits, features, classes, self.method, self.size)[known]
        return fit + self.weight * self.localise(maps, box_masks(boxes[known], *self.size)).sum() / len(logits)


def last_maps(model: nn.Module, example: Tensor) -> str:
    """Name of the last module without parts that gives maps larger than one pixel.

    Raises:
        AssayError: there is none.
    """
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    found = [name for name, shape in output_shapes(model, example, leaves).items() if len(shape) == 4 and min(shape[2:]) > 1]
    if not found:
        raise AssayError("The network has no layer with maps that an explanation could be read from: guide a convolutional one.")
    return found[-1]


@treatment
def guided(
    recipe: Recipe,
    boxes: Tensor | None = None,
    term: Literal["energy", "l1", "rrr", "ppce"] = "energy",
    weight: float = 0.1,
    method: Literal["ixg", "gradcam"] = "ixg",
    layer: str = "",
    middle: float = 0.8,
) -> Recipe:
    """Train with explanations that must lie in boxes.

    Args:
        recipe: of a classifier of images.
        boxes: (N, 4) left, top, right, bottom in pixels for the training examples, in order; all zero where there is none.
            ``None`` says that objects are in the middle of the picture.
        term: ``"energy"``, ``"l1"``, ``"rrr"`` or ``"ppce"``.
        weight: of the localisation loss.
        method: ``"ixg"`` or ``"gradcam"``.
        layer: whose output is explained; ``""`` takes the last that gives maps.
        middle: without boxes, the share of height and width that counts as the middle.

    Raises:
        AssayError: the examples are no images, there are not as many boxes, or something moves the pictures under the boxes.
    """
    shape = recipe.data.input_shape
    if len(shape) != 3:
        raise AssayError(f"Guidance says where in a picture the object is, and {recipe.data.name!r} has none: leave it out.")
    if boxes is None:
        height, width = shape[1:]
        edge = torch.tensor([width, height, width, height]) * torch.tensor([1 - middle, 1 - middle, 1 + middle, 1 + middle]) / 2
        boxes = edge.expand(len(recipe.data.train), 4).clone()
    elif recipe.augment is not None or any(isinstance(hook, InputHook) for hook in recipe.hooks):
        raise AssayError("Boxes stay where they are when pictures are moved or mixed: leave the augmentation out.")
    if boxes.shape != (len(recipe.data.train), 4):
        raise AssayError(f"{len(recipe.data.train)} training examples need as many boxes (N, 4), not {tuple(boxes.shape)}.")
    loss = per_example(GuidanceLoss, boxes=boxes.float(), term=term, weight=weight, method=method, layer=layer)
    return with_loss(recipe, loss)


# ------------------------------------------------------------------------------------------------------------ claims

#: Sandal and boot. Sandals stand before what is smooth, boots before what is rough, in all training scenes.
_SHOES = (5, 9)
#: Equally many for every loss. RRR* is a sum over 2,304 pixels, the others are of the size of the cross-entropy.
_WEIGHTS = {"energy": (0.1, 0.3, 1.0), "l1": (0.1, 0.3, 1.0), "rrr": (0.001, 0.003, 0.01), "ppce": (0.1, 0.3, 1.0)}
_SCALED_DOWN = (
    "1,500 scenes of 48x48 pixels (sandals and boots of Fashion-MNIST on smooth and rough photos) and three convolutions instead "
    "of Waterbirds-100, VOC, COCO and a ResNet-50; 8 epochs plain, then 6 guided, instead of 300 and 50."
)


def small_net(num_classes: int, in_channels: int = 1) -> nn.Sequential:
    """Three convolutions, the mean over the picture, a linear layer: maps of a quarter of the picture's size.

    The last layer has no bias: a logit is the sum of its map of features times gradient, and nothing else.
    """
    body = [ConvNorm(in_channels, 16, 3, stride=2), ConvNorm(16, 32, 3, stride=2), ConvNorm(32, 32, 3)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes, bias=False))


def _scenes(lab: Lab) -> SceneSplits:
    count = lab.pick(smoke=(64, 32, 48), laptop=(1500, 500, 2000), full=(10_000, 2_000, 10_000))
    items = lab.data(lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="fashion-mnist")).holdout(0.1, seed=0)
    return scenes(
        items,
        lab.data("cbsd68"),
        objects=(1, 1),
        scale=(0.4, 0.6),
        kinds=2,
        correlation=1.0,
        classes=_SHOES,
        count=count,
        seed=lab.seed,
    )


def _plain(lab: Lab, made: SceneSplits) -> Recipe:
    """Further epochs of a network that has learnt from the same scenes without guidance."""
    before = Recipe(
        made.classification(),
        model=partial(small_net, 2),
        loss=multi_label_loss,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=8, full=20),
        batch_size=64,
        watch=(),
    )
    learnt = lab.train(before)
    return before.replace(
        model=partial(copy.deepcopy, learnt.model),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        epochs=lab.pick(smoke=1, laptop=6, full=10),
    )


def _guided(lab: Lab, made: SceneSplits, term: Literal["energy", "l1", "rrr", "ppce"]) -> tuple[Trained, float]:
    """The best of three weights, and which it is: the highest EPG + IoU on validation scenes, at two points of accuracy at most.

    Validation scenes have the training scenes' backgrounds: nobody who is misled by those has others to choose by. Where the
    evidence lies can be seen on them all the same; the paper chooses among models that are best in F1, EPG or IoU.
    """
    plain = _plain(lab, made)
    boxes = made.train.boxes[:, 0]
    least = lab.train(plain).accuracy("valid") - 0.02
    trials = [lab.train(guided(plain, boxes, term, weight)) for weight in _WEIGHTS[term]]
    quality = []
    for trained in trials:
        seen = _seen(trained, made, "valid")
        quality.append(seen["EPG"] + seen["IoU"] if trained.accuracy("valid") >= least else -1.0)
    best = quality.index(max(quality))
    return trials[best], _WEIGHTS[term][best]


def _seen(trained: Trained, made: SceneSplits, split: Literal["valid", "test"]) -> dict[str, float]:
    """Worst-group accuracy and where the explanations of the right class lie, on a split."""
    part = getattr(made, split)
    labels, model = part.labels[:, 0], trained.model
    layer = last_maps(model, part.images[:1])
    logits, maps = [], []
    with watching(model, (layer,)) as outputs:
        for images, classes in zip(part.images.split(500), labels.split(500), strict=True):
            said = model(images.requires_grad_(False))
            logits.append(said.detach())
            maps.append(attribution(said, outputs[layer], classes, size=(images.shape[2], images.shape[3])).detach())
    found, right = torch.cat(maps), torch.cat(logits).argmax(dim=1) == labels
    box = box_masks(part.boxes[:, 0], *found.shape[1:])
    positive = found.relu()
    on_object = (positive * part.masks[:, 0]).sum(dim=(1, 2)) / (positive * box).sum(dim=(1, 2)).clamp_min(_NONE)
    groups = [right[(labels == label) & (part.background == kind)] for label in range(2) for kind in range(2)]
    return {
        "worst group": min(float(group.double().mean()) for group in groups if len(group)),
        "EPG": float(energy_inside(found[:, None], box.bool()).mean()),
        "IoU": float(box_iou(found, box).double().mean()),
        "on the object": float(on_object.mean()),
    }


@claim(
    "Where the background gives the class away in training, guidance by boxes with the energy loss raises the accuracy of the "
    "worst group (class by background) of test scenes by more than 10 points, and the share of the evidence in the box by 0.2.",
    expect=(
        Higher("energy", than="no guidance", by=0.10),
        Higher("energy: EPG", than="no guidance: EPG", by=0.20),
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy of the worst group",
    needs=("fashion-mnist", "cbsd68"),
)
def energy_fixes_shortcut(lab: Lab) -> Measured:
    made = _scenes(lab)
    plain, (energy, _) = lab.train(_plain(lab, made)), _guided(lab, made, "energy")
    arms: dict[str, float | Curve] = {}
    for arm, trained in {"no guidance": plain, "energy": energy}.items():
        seen = _seen(trained, made, "test")
        arms |= {arm: seen["worst group"], f"{arm}: EPG": seen["EPG"], f"{arm}: test accuracy": trained.accuracy()}
    return arms


@claim(
    "A tenth of the boxes is enough: with boxes for every tenth training scene, energy guidance keeps more than half of what "
    "boxes for all of them gain in the accuracy of the worst group, which is more than 5 points.",
    expect=(Higher("10 %", than="halfway"), Higher("100 %", than="0 %", by=0.05)),
    scaled_down=_SCALED_DOWN,
    unit="accuracy of the worst group",
    needs=("fashion-mnist", "cbsd68"),
)
def few_boxes_suffice(lab: Lab) -> Measured:
    made = _scenes(lab)
    plain, (everyone, weight) = _plain(lab, made), _guided(lab, made, "energy")
    boxes = made.train.boxes[:, 0]
    reached = {"0 %": _seen(lab.train(plain), made, "test")["worst group"]}
    for percent in (1, 10):
        known = torch.arange(len(boxes)) % (100 // percent) == 0
        # As much guidance in all: the weight is that of all boxes, divided by the share of scenes that have one.
        some = guided(plain, boxes * known[:, None], "energy", weight * 100 / percent)
        reached[f"{percent} %"] = _seen(lab.train(some), made, "test")["worst group"]
    reached["100 %"] = _seen(everyone, made, "test")["worst group"]
    shares = Curve(list(reached.values()), x=[0, 1, 10, 100], x_name="scenes with a box, %", y_name="accuracy of the worst group")
    return {**reached, "by share of boxes": shares, "halfway": (reached["0 %"] + reached["100 %"]) / 2}


@claim(
    "Of the evidence inside the box, energy guidance has more on the object itself than L1 guidance, which covers the box better "
    "(IoU); with boxes half as large again, energy guidance loses less of its share inside the true box.",
    expect=(
        Higher("energy: on the object", than="L1: on the object"),
        Higher("L1: IoU", than="energy: IoU"),
        Lower("energy: lost by large boxes", than="L1: lost by large boxes"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="share of the positive evidence, or overlap",
    needs=("fashion-mnist", "cbsd68"),
)
def energy_focuses_object(lab: Lab) -> Measured:
    made = _scenes(lab)
    arms: dict[str, float | Curve] = {}
    names: dict[str, Literal["energy", "l1", "rrr", "ppce"]] = {"energy": "energy", "L1": "l1", "RRR*": "rrr", "PPCE": "ppce"}
    for arm, term in names.items():
        trained, weight = _guided(lab, made, term)
        seen = _seen(trained, made, "test")
        arms |= {f"{arm}: {what}": number for what, number in seen.items()}
        if term in ("energy", "l1"):
            large = guided(_plain(lab, made), dilate(made.train.boxes[:, 0], 0.5, *made.train.images.shape[2:]), term, weight)
            arms[f"{arm}: lost by large boxes"] = seen["EPG"] - _seen(lab.train(large), made, "test")["EPG"]
    return arms
