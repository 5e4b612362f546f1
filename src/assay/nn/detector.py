"""A small object detector: network, targets, loss, detections, and how good they are.

One grid of places over the picture, eight pixels apart. Every place says for each class how sure it is that an object of it is
centred nearby (a logit; there is no further "objectness"), and how far the four sides of its box are (their logarithms, in
units of eight pixels). It learns on a core in half a minute and is meant for experiments about detectors: calibration,
attacks, explanations. The parts are those of one-stage detectors without anchors (Tian et al. 2019, FCOS); average precision
is COCO's.

    data = scenes(...).detection()                      # assay.data.scenes
    trained = lab.train(detector_on(data))              # assay.recipes
    found = detect(trained.logits("test"))
    boxes, labels = data.test.labels[..., 1:], data.test.labels[..., 0].long()
    average_precision(found, boxes, labels, data.num_classes).nanmean()

Boxes are left, top, right, bottom in pixels of the input everywhere. Objects of a picture are padded with the class -1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.convnet import ConvNorm

#: Pixels between two places of the grid.
STRIDE = 8

#: Intersections over union at which COCO calls a detection right.
COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class GridDetector(nn.Module):
    """Three convolutions of stride 2, one that looks around, one that says what is where.

    Args:
        num_classes: K.
        in_channels: channels of the picture.
        planes: of the four convolutions (3x3).

    Shape: (B, in_channels, H, W) with H and W multiples of 8 -> (B, 4 + K, H / 8, W / 8): logarithms of the distances to the
    left, top, right, bottom side of the box in units of 8 pixels, then the logits of the classes.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, planes: tuple[int, int, int, int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        a, b, c, d = planes
        self.body = nn.Sequential(
            ConvNorm(in_channels, a, 3, stride=2), ConvNorm(a, b, 3, stride=2), ConvNorm(b, c, 3, stride=2), ConvNorm(c, d, 3)
        )
        self.head = nn.Conv2d(d, 4 + num_classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        # At first nearly nothing is seen anywhere (Lin et al. 2017), and boxes reach one place to each side.
        start = torch.cat([torch.zeros(4), torch.full((num_classes,), -math.log(99))])
        self.head.bias = nn.Parameter(start)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(images))
        return outputs


def places(height: int, width: int) -> Tensor:
    """Centres of the grid's places in pixels: (height, width, 2), x and y."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y], dim=2) + 0.5) * STRIDE


def predicted_boxes(outputs: Tensor) -> Tensor:
    """What box each place says: (B, 4 + K, h, w) -> (B, h, w, 4)."""
    # Bounded at e^5 places: an exponential that overflows would spoil the whole batch.
    reach = outputs[:, :4].permute(0, 2, 3, 1).clamp(-5, 5).exp() * STRIDE
    at = places(*outputs.shape[2:]).to(outputs)
    return torch.cat([at - reach[..., :2], at + reach[..., 2:]], dim=3)


# ------------------------------------------------------------------------------------------------------------ learning


def assign(targets: Tensor, height: int, width: int) -> Tensor:
    """Which object each place is to see: those less than one step from its centre do; of several objects, the smallest.

    Args:
        targets: (B, M, 5) class (-1: none), left, top, right, bottom.
        height: of the grid.
        width: of the grid.

    Returns:
        (B, height, width) int64 positions among the M objects, or -1.
    """
    boxes = targets[..., 1:]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (B, M, 2)
    away = places(height, width).to(boxes) - centre[:, :, None, None, :]  # (B, M, h, w, 2)
    near = (away.abs() < STRIDE).all(dim=4) & (targets[..., 0] >= 0)[:, :, None, None]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2)[:, :, None, None].expand(near.shape)
    smallest, which = area.masked_fill(~near, math.inf).min(dim=1)
    return torch.where(smallest.isfinite(), which, -1)


def detection_loss(outputs: Tensor, targets: Tensor, box_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of all classes at all places, and 1 - generalised IoU of the boxes at places that see an object.

    Both are divided by the number of such places in the batch.

    Args:
        outputs: (B, 4 + K, h, w) of a :class:`GridDetector`.
        targets: (B, M, 5) class (-1: none), left, top, right, bottom.
        box_weight: weight of the boxes' term.
    """
    seen = assign(targets, *outputs.shape[2:])  # (B, h, w)
    positive = seen >= 0
    objects = _objects_at(targets, seen)  # (P, 5)
    logits = outputs[:, 4:].permute(0, 2, 3, 1)  # (B, h, w, K)
    right = torch.zeros_like(logits)
    right[positive] = F.one_hot(objects[:, 0].long(), logits.shape[3]).to(right.dtype)
    number = max(1, len(objects))
    classes = F.binary_cross_entropy_with_logits(logits, right, reduction="sum") / number
    boxes = (1 - generalised_iou(predicted_boxes(outputs)[positive], objects[:, 1:])).sum() / number
    return classes + box_weight * boxes


def _objects_at(targets: Tensor, seen: Tensor) -> Tensor:
    """The objects that the places see which see one: (P, 5), in the order of ``x[seen >= 0]``."""
    batch, row, column = (seen >= 0).nonzero(as_tuple=True)
    return targets[batch, seen[batch, row, column]]


# --------------------------------------------------------------------------------------------------------------- boxes


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes, pair by pair: (..., 4), (..., 4) that broadcast -> (...). Of empty boxes it is 0."""
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp_min(0)
    both = inner.prod(dim=-1)
    union = _area(first) + _area(second) - both
    return both / union.clamp_min(1e-9)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU minus the share of the smallest box around both that neither covers (Rezatofighi et al. 2019): from -1 to 1."""
    hull = (torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])).prod(dim=-1)
    iou = paired_iou(first, second)
    union = (_area(first) + _area(second)) / (1 + iou)
    return iou - (hull - union) / hull.clamp_min(1e-9)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1)


# ---------------------------------------------------------------------------------------------------------- detections


@dataclass(frozen=True)
class Detections:
    """What was found in N pictures, at most D in each, the surest first; the rest has score 0 and label -1.

    Attributes:
        boxes: (N, D, 4).
        scores: (N, D) in [0, 1].
        labels: (N, D) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def there(self) -> Tensor:
        """(N, D): which are detections."""
        return self.labels >= 0


@torch.no_grad()
def detect(outputs: Tensor, threshold: float = 0.05, iou: float = 0.5, most: int = 20) -> Detections:
    """Read detections off the outputs: each place's best class, without those that a surer one of the class overlaps.

    Args:
        outputs: (N, 4 + K, h, w).
        threshold: least score of a detection. It is applied before anything else; what is measured of detections depends on it.
        iou: a detection is dropped where one of its class with a higher score overlaps it by more (non-maximum suppression).
        most: detections of a picture.
    """
    scores, labels = outputs[:, 4:].sigmoid().flatten(2).max(dim=1)  # (N, h w)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    labels = labels.gather(1, order)
    boxes = predicted_boxes(outputs).flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 4))
    height, width = (side * STRIDE for side in outputs.shape[2:])
    edge = torch.tensor([width, height, width, height]).to(boxes)
    boxes = torch.minimum(boxes.clamp_min(0), edge)
    kept = suppress(boxes, labels, scores >= threshold, iou)
    # What is kept moves to the front; the order stays.
    front = (~kept).int().argsort(dim=1, stable=True)[:, :most]
    kept = kept.gather(1, front)
    return Detections(
        boxes=boxes.gather(1, front[..., None].expand(-1, -1, 4)) * kept[..., None],
        scores=scores.gather(1, front) * kept,
        labels=torch.where(kept, labels.gather(1, front), -1),
    )


def suppress(boxes: Tensor, labels: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Greedy non-maximum suppression, class by class, in many pictures at once.

    Args:
        boxes: (N, D, 4), the surest first.
        labels: (N, D).
        valid: (N, D) bool, which of them count.
        iou: what overlaps a kept one of its class by more is dropped.

    Returns:
        (N, D) bool: which are kept.
    """
    clash = paired_iou(boxes[:, :, None], boxes[:, None]) > iou
    clash &= labels[:, :, None] == labels[:, None]
    kept = valid.clone()
    for place in range(boxes.shape[1] - 1):
        beaten = clash[:, place, place + 1 :] & kept[:, place, None]
        kept[:, place + 1 :] &= ~beaten
    return kept


# ------------------------------------------------------------------------------------------------------------- quality


def matches(
    found: Detections, boxes: Tensor, labels: Tensor, thresholds: tuple[float, ...] = COCO_THRESHOLDS, classes: bool = True
) -> Tensor:
    """Which object each detection finds, as COCO counts: the surest detection chooses first, each object is found once.

    A detection takes the object of its class with the greatest IoU among those that are free, if that is at least the threshold.

    Args:
        found: in N pictures, the surest first.
        boxes: (N, M, 4) the objects.
        labels: (N, M), -1 where there is none.
        thresholds: T intersections over union.
        classes: whether the class must be right.

    Returns:
        (T, N, D) int64 positions among the M objects, or -1.
    """
    overlap = paired_iou(found.boxes.double()[:, :, None], boxes.double()[:, None])  # (N, D, M)
    possible = found.there[:, :, None] & (labels >= 0)[:, None]
    if classes:
        possible &= found.labels[:, :, None] == labels[:, None]
    overlap = overlap.masked_fill(~possible, -1.0).flip(2)  # of equal overlaps COCO takes the last object
    least = torch.tensor(thresholds, dtype=overlap.dtype, device=overlap.device)
    free = torch.ones(len(thresholds), *labels.shape, dtype=torch.bool, device=labels.device)
    chosen = []
    for place in range(overlap.shape[1]):
        best, which = overlap[None, :, place].where(free, -1.0).max(dim=2)  # (T, N)
        right = best >= least[:, None]
        free.scatter_(2, which[..., None], free.gather(2, which[..., None]) & ~right[..., None])
        chosen.append(torch.where(right, labels.shape[1] - 1 - which, -1))
    return torch.stack(chosen, dim=2)


def average_precision(
    found: Detections, boxes: Tensor, labels: Tensor, num_classes: int, thresholds: tuple[float, ...] = COCO_THRESHOLDS
) -> Tensor:
    """Average precision by class, as COCO's: the mean over recalls 0, 0.01, ..., 1 of the best precision at that recall or more.

    Args:
        found: in N pictures, the surest first. COCO counts at most 100 of a picture and class.
        boxes: (N, M, 4) the objects.
        labels: (N, M), -1 where there is none.
        num_classes: K.
        thresholds: T intersections over union.

    Returns:
        (T, K) float64, NaN for classes of which there is no object. ``nanmean()`` is the usual single number.
    """
    hit = (matches(found, boxes, labels, thresholds) >= 0).flatten(1)  # (T, N D)
    scores, classes = found.scores.flatten(), found.labels.flatten()
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order] >= 0]
    # numpy's, as in COCO's code: torch's differ in the last place, which counts where a recall is exactly 0.2.
    recalls = torch.as_tensor(np.linspace(0, 1, 101), device=scores.device)
    result = torch.full((len(thresholds), num_classes), math.nan, dtype=torch.float64, device=scores.device)
    for one in range(num_classes):
        objects = int((labels == one).sum())
        if not objects:
            continue
        right = hit[:, order[classes[order] == one]].double()  # (T, D')
        result[:, one] = 0.0
        if not right.shape[1]:
            continue
        found_so_far = right.cumsum(dim=1)
        precision = found_so_far / torch.arange(1, right.shape[1] + 1, device=right.device)
        best = precision.flip(1).cummax(dim=1).values.flip(1)
        at = torch.searchsorted(found_so_far / objects, recalls.expand(len(thresholds), -1).contiguous())  # (T, 101)
        reached = at < right.shape[1]
        result[:, one] = (best.gather(1, at.clamp_max(right.shape[1] - 1)) * reached).mean(dim=1)
    return result


def recall(found: Detections, boxes: Tensor, labels: Tensor, iou: float = 0.5) -> float:
    """Share of the objects that are found with the right class and at least this IoU.

    Args:
        found: in N pictures; drop the unsure ones first (``detect(threshold=...)``).
        boxes: (N, M, 4) the objects.
        labels: (N, M), -1 where there is none.
        iou: least intersection over union.
    """
    return int((matches(found, boxes, labels, (iou,)) >= 0).sum()) / max(1, int((labels >= 0).sum()))
