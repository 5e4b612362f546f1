"""Calibration of detectors: what a score should mean, how far it is from that, and training that brings it nearer.

A detector gives every box a score f. Two meanings are useful: the box overlaps its object by that much (y = IoU), or it is
right with that probability (y = 1 where the class is right and IoU is at least t). Either way it is calibrated where
E[y | f] = f, and

    CE_p = E |E[y | f] - f|^p                                                    (p = 1 here and in the authors' code)

says how far it is from that. E[y | f] has to be estimated. Bins do it with an error that does not go away: their number
decides the result. A ratio of kernel estimates is consistent and smooth, so that it is a measure and a loss at once:

    E^[y | f_i] = sum_{j != i} k(f_i; f_j) y_j / sum_{j != i} k(f_i; f_j)
    k(f; f_j) = BetaPDF(f; f_j / h + 1, (1 - f_j) / h + 1)

The Beta kernel lives on [0, 1] and loses nothing at the ends, where detectors' scores pile up. The bandwidth h is the one
under which the scores themselves are most likely, each left out in turn. For distributions over classes the kernel is
Dirichlet's.

The released code divides that likelihood by h as well, though the kernel is a density already, which favours small h; here
it is the likelihood as it stands. Where the released code halves large sets and averages, here rows are taken in parts,
which changes nothing.

What is not found has no score, and what is found but nothing counts with y = 0. Which detections there are depends on the
threshold below which boxes are dropped: say it beside every number.

Source: Popordanoska, Tiulpin and Blaschko, "Beyond Classification: Definition and Density-based Estimation of Calibration in
Object Detection", WACV 2024; the estimator is that of Popordanoska, Sayer and Blaschko, "A Consistent and Differentiable Lp
Canonical Calibration Error Estimator", NeurIPS 2022.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from assay.data.scenes import scenes
from assay.errors import AssayError
from assay.nn.detector import (
    Detections,
    assign,
    average_precision,
    detect,
    detection_loss,
    matches,
    paired_iou,
    predicted_boxes,
)
from assay.paper import Curve, Higher, Lower, claim
from assay.recipe import Recipe, treatment, with_loss
from assay.recipes import detector_on

if TYPE_CHECKING:
    from assay.data import Dataset, Split
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

_EDGE = 1e-7  # scores are kept this far from 0 and 1, whose logarithms the kernels take
_ROWS = 2048  # of the kernel matrix at once

#: The bandwidths that are tried: 0.001 to 0.1 in equal ratios, 0.2 to 1 in equal steps.
BANDWIDTHS = (*torch.logspace(-3, -1, 5).tolist(), *torch.linspace(0.2, 1, 5).tolist())


# --------------------------------------------------------------------------------------------------------- estimator


def kde_calibration_error(scores: Tensor, targets: Tensor, bandwidth: float | Literal["loo"] = "loo", p: float = 1.0) -> Tensor:
    """How far scores are from what they stand for; with gradients with respect to the scores.

    Args:
        scores: (n,) in [0, 1]; or (n, K), distributions over classes.
        targets: (n,) numbers in [0, 1] that the scores should be the mean of; for distributions (n,) int64 classes.
        bandwidth: h of the kernel; ``"loo"`` chooses it by :func:`select_bandwidth`.
        p: power of the differences.

    Returns:
        Scalar: the mean of ``|E[y | f] - f|^p``, for distributions summed over the classes; no p-th root is taken.

    Raises:
        ValueError: there are fewer than two scores, or shapes do not fit.
    """
    difference = (conditional_mean(scores, targets, bandwidth) - scores).abs() ** p
    return difference.mean() if scores.dim() == 1 else difference.sum(dim=1).mean()


def conditional_mean(scores: Tensor, targets: Tensor, bandwidth: float | Literal["loo"] = "loo") -> Tensor:
    """E^[y | f_i] from all others: the reliability curve at each score. Arguments as above; (n,) or (n, K)."""
    if len(scores) < 2 or len(targets) != len(scores):
        raise ValueError(f"{len(scores)} scores and {len(targets)} targets are no two pairs or more")
    if scores.dim() == 2:
        targets = F.one_hot(targets, scores.shape[1])
    h = select_bandwidth(scores) if bandwidth == "loo" else bandwidth
    kernel = _Kernel(scores)
    # exp(log k - log sum k) is a softmax: what is far from all others still has neighbours, and nothing is divided by zero.
    parts = [kernel.rows(rows, h).softmax(dim=1) @ targets.to(scores.dtype) for rows in kernel.parts()]
    return torch.cat(parts)


@torch.no_grad()
def select_bandwidth(scores: Tensor, candidates: tuple[float, ...] = BANDWIDTHS) -> float:
    """The h with the largest sum over i of log(1 / (n - 1) sum_{j != i} k_h(f_i; f_j)).

    Args:
        scores: (n,) or (n, K).
        candidates: bandwidths; the first of equally likely ones is taken.
    """
    kernel = _Kernel(scores)
    likelihood = [
        sum(float(kernel.rows(rows, h).logsumexp(dim=1).sum(dtype=torch.float64)) for rows in kernel.parts()) for h in candidates
    ]
    return candidates[likelihood.index(max(likelihood))]


class _Kernel:
    """Logarithms of Beta or Dirichlet kernels between scores.

    ``log k(f_i; f_j) = (1 / h) sum_c f_jc log f_ic - log B(f_j / h + 1)``: one matrix product for all bandwidths.
    """

    def __init__(self, scores: Tensor) -> None:
        whole = torch.stack([scores, 1 - scores], dim=1) if scores.dim() == 1 else scores
        self.points = whole.clamp(_EDGE, 1 - _EDGE)  # (n, K)

    def parts(self) -> list[range]:
        count = len(self.points)
        return [range(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]

    def rows(self, rows: range, h: float) -> Tensor:
        """(len(rows), n); what compares a score with itself is -inf: with it among them, every score would confirm itself."""
        alpha = self.points / h + 1
        log_beta = alpha.lgamma().sum(dim=1) - alpha.sum(dim=1).lgamma()
        log_kernel = self.points[rows.start : rows.stop].log() @ self.points.T / h - log_beta
        own = (
            torch.arange(len(self.points), device=alpha.device)
            == torch.arange(rows.start, rows.stop, device=alpha.device)[:, None]
        )
        return log_kernel.masked_fill(own, -math.inf)


def detection_ece_binned(scores: Tensor, targets: Tensor, bins: int = 10, equal_mass: bool = False) -> Tensor:
    """The usual estimate, by bins of the score: sum over bins of (share of the detections) x |mean target - mean score|.

    Args:
        scores: (n,) in [0, 1].
        targets: (n,) in [0, 1].
        bins: how many.
        equal_mass: whether bins hold equally many detections instead of being equally wide.
    """
    ranks = scores.argsort().argsort()
    place = ranks * bins // len(scores) if equal_mass else (scores * bins).long().clamp(0, bins - 1)
    # n_b / n |mean y - mean f| = |sum (y - f)| / n
    return scores.new_zeros(bins).index_add(0, place, targets.to(scores.dtype) - scores).abs().sum() / len(scores)


def detection_targets(
    boxes: Tensor, scores: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor, link: Literal["iou"] | float = "iou"
) -> Tensor:
    """What each detection's score should be the mean of.

    Detections are matched as COCO does: the surest first, with the free object of its class that it overlaps most.

    Args:
        boxes: (N, D, 4) left, top, right, bottom of the detections in N pictures.
        scores: (N, D).
        labels: (N, D) int64, -1 where there is no detection.
        true_boxes: (N, M, 4) of the objects.
        true_labels: (N, M) int64, -1 where there is no object.
        link: ``"iou"``: y is the overlap with the match, 0 without one; a number t: y is 1 where that is t at least, else 0.

    Returns:
        (N, D) in [0, 1], 0 where there is no detection.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ordered = Detections(boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores.gather(1, order), labels.gather(1, order))
    least = _EDGE if link == "iou" else float(link)
    which = matches(ordered, true_boxes, true_labels, (least,))[0]  # (N, D)
    partner = true_boxes.gather(1, which.clamp_min(0)[..., None].expand(-1, -1, 4))
    value = paired_iou(ordered.boxes, partner) if link == "iou" else torch.ones_like(scores)
    return torch.zeros_like(scores).scatter(1, order, value * (which >= 0))


# ---------------------------------------------------------------------------------------------------------- training


def detection_calibration_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The calibration error of a batch at the places that see an object: top score against the overlap of the predicted box.

    Where the best class is the wrong one, the target is 0. Gradients flow through the scores, not through the overlaps.

    Args:
        outputs: (B, 4 + K, h, w) of :class:`assay.nn.detector.GridDetector`.
        targets: (B, M, 5) class (-1: none), left, top, right, bottom.
    """
    seen = assign(targets, *outputs.shape[2:])
    batch, row, column = (seen >= 0).nonzero(as_tuple=True)
    if len(batch) < 2:
        return outputs.sum() * 0
    objects = targets[batch, seen[batch, row, column]]  # (P, 5)
    scores, labels = outputs[:, 4:].sigmoid().permute(0, 2, 3, 1)[batch, row, column].max(dim=1)
    overlap = paired_iou(predicted_boxes(outputs)[batch, row, column], objects[:, 1:]).detach()
    return kde_calibration_error(scores, overlap * (labels == objects[:, 0]))


def _calibrated_detection(outputs: Tensor, targets: Tensor, weight: float) -> Tensor:
    return detection_loss(outputs, targets) + weight * detection_calibration_loss(outputs, targets)


def calibrated_cross_entropy(logits: Tensor, labels: Tensor, weight: float = 0.1) -> Tensor:
    """Cross-entropy plus the calibration error of the top class's probability in the batch.

    Args:
        logits: (B, C).
        labels: (B,) int64, or (B, C) shares of the classes.
        weight: of the calibration error.
    """
    fit = F.cross_entropy(logits, labels)
    if len(logits) < 2:  # a batch of one has nothing to compare with
        return fit
    scores, said = logits.softmax(dim=1).max(dim=1)
    right = (said == labels).to(scores.dtype) if labels.dim() == 1 else labels.gather(1, said[:, None]).squeeze(1)
    return fit + weight * kde_calibration_error(scores, right)


@treatment
def calibrated(recipe: Recipe, weight: float = 0.1) -> Recipe:
    """Train scores that mean what they say: the loss plus ``weight`` times the batch's calibration error.

    Detectors (task ``"detection"``) are told how well their boxes fit, classifiers whether their top class is right. The
    error of a batch of few examples is mostly noise: use batches of 32 or more.
    """
    if recipe.data.task == "detection":
        if recipe.loss is not detection_loss:
            raise AssayError("Calibration is added to detection_loss, and this recipe has another loss: leave one of them out.")
        return recipe.replace(loss=partial(_calibrated_detection, weight=weight))
    return with_loss(recipe, partial(calibrated_cross_entropy, weight=weight))


def temperature(scores: Tensor, targets: Tensor) -> float:
    """The T for which sigmoid(logit(f) / T) fits the targets best (cross-entropy): calibration after training.

    Args:
        scores: (n,) in (0, 1), of held-out detections.
        targets: (n,) in [0, 1].
    """
    logits, targets = scores.double().logit(1e-9), targets.double()

    def misfit(log_t: float) -> float:
        return float(F.binary_cross_entropy_with_logits(logits / math.exp(log_t), targets))

    return math.exp(float(minimize_scalar(misfit, bounds=(-3, 3), method="bounded").x))


# ------------------------------------------------------------------------------------------------------------ claims

#: Clothes that a small detector tells apart: T-shirt, trousers, sneaker, bag, boot.
_CLOTHES = (0, 1, 7, 8, 9)
#: Score below which a box is no detection.
_THRESHOLD = 0.05
_WEIGHTS = (0.1, 1.0, 10.0)
_SCALED_DOWN = (
    "A detector of 60,000 weights on 4,000 scenes of 48x48 pixels (clothes of Fashion-MNIST on photos) instead of Faster R-CNN, "
    "RetinaNet and FCOS on Cityscapes, VOC and COCO."
)


def _boxes(lab: Lab) -> Dataset:
    """Scenes with one or two objects; on digits where it only has to run."""
    count = lab.pick(smoke=(96, 48, 64), laptop=(4000, 500, 1000), full=(20_000, 2_000, 5_000))
    items = lab.data(lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="fashion-mnist")).holdout(0.1, seed=0)
    made = scenes(
        items, lab.data("cbsd68"), objects=(1, 2), scale=(0.35, 0.55), classes=_CLOTHES, count=count, seed=lab.seed
    )  # the same as for other claims about detectors, so that one training serves them all
    return made.detection()


def _detector(lab: Lab) -> Trained:
    return lab.train(detector_on(_boxes(lab), epochs=lab.pick(smoke=2, laptop=8, full=20)))


def _measured(lab: Lab, trained: Trained, split: str, link: Literal["iou"] | float = "iou") -> tuple[Tensor, Tensor, float]:
    """Scores (n,) and targets (n,) of all detections of a split, and the mean average precision."""
    part: Split = getattr(trained.recipe.data, split)
    boxes, labels = part.labels[..., 1:], part.labels[..., 0].long()
    found = detect(trained.logits(split), threshold=lab.pick(smoke=0.0, laptop=_THRESHOLD, full=_THRESHOLD))
    targets = detection_targets(found.boxes, found.scores, found.labels, boxes, labels, link)
    precision = average_precision(found, boxes, labels, trained.recipe.data.num_classes).nanmean().item()
    return found.scores[found.there], targets[found.there], precision


_CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "calibrated": lambda f: f,
    "power": lambda f: f**1.5,
    "shifted": lambda f: (f.logit(1e-6) - 1).sigmoid(),
}
_BINNED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "10 bins": partial(detection_ece_binned, bins=10),
    "15 bins": partial(detection_ece_binned, bins=15),
    "15 equal bins": partial(detection_ece_binned, bins=15, equal_mass=True),
}


@claim(
    "Where E[y | f] is known (labels drawn anew for a detector's scores), the mean error of the kernel estimate at 1,000 "
    "detections is less than half of that at 100, and at 1,000 or fewer it is smaller than that of three ways to make bins.",
    expect=(
        Lower("KDE at 1,000", than="KDE at 100", times=0.5),
        Lower("KDE", than="10 bins"),
        Lower("KDE", than="15 bins"),
        Lower("KDE", than="15 equal bins"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="|mean estimate - true calibration error|, mean over three curves",
    needs=("fashion-mnist", "cbsd68"),
)
def estimator_consistent(lab: Lab) -> Measured:
    scores = _measured(lab, _detector(lab), "test")[0]
    generator = lab.generator(1)
    sizes = lab.pick(smoke=(20, 40), laptop=(100, 300, 1000), full=(100, 300, 1000, 3000))
    repeats = lab.pick(smoke=2, laptop=20, full=50)
    bias: dict[str, list[float]] = {arm: [] for arm in ("KDE", *_BINNED)}
    for size in sizes:
        errors = torch.zeros(len(bias), len(_CURVES))
        for _ in range(repeats):
            drawn = scores[torch.randint(len(scores), (size,), generator=generator)]
            # The same score twice would be its own neighbour: a hair's breadth of noise keeps drawn ones apart.
            drawn = (drawn + 1e-4 * torch.randn(size, generator=generator)).clamp(1e-3, 1 - 1e-3)
            h = select_bandwidth(drawn)  # depends on the scores alone
            for column, curve in enumerate(_CURVES.values()):
                mean = curve(drawn)
                targets = (torch.rand(size, generator=generator) < mean).float()
                true = (mean - drawn).abs().mean()
                found = [kde_calibration_error(drawn, targets, h), *(bins(drawn, targets) for bins in _BINNED.values())]
                errors[:, column] += (torch.stack(found) - true) / repeats
        for row, arm in enumerate(bias):
            bias[arm].append(errors[row].abs().mean().item())
    curves: dict[str, float | Curve] = {
        arm: Curve(line, x=sizes, value=sum(line) / len(line), x_name="detections", y_name="|bias|") for arm, line in bias.items()
    }
    return curves | {"KDE at 100": bias["KDE"][0], "KDE at 1,000": bias["KDE"][min(2, len(sizes) - 1)]}


@claim(
    "Two further epochs with the calibration loss give a detector a lower calibration error on test scenes (score against "
    "overlap), by the kernel estimate and by bins, than two without it, at an average precision at most two points lower.",
    expect=(
        Lower("KDE loss", than="plain"),
        Lower("KDE loss: 10 bins", than="plain: 10 bins"),
        Higher("KDE loss: AP", than="plain: AP", by=-0.02),
    ),
    scaled_down=_SCALED_DOWN
    + " Eight epochs, then two with or without the loss; its weight is the best of three on validation scenes.",
    unit="calibration error (score against IoU) of test detections with a score of 0.05 or more",
    needs=("fashion-mnist", "cbsd68"),
)
def loss_improves_calibration(lab: Lab) -> Measured:
    before = _detector(lab)
    tuning = before.recipe.replace(
        model=partial(copy.deepcopy, before.model),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        epochs=lab.pick(smoke=1, laptop=2, full=5),
    )
    plain = lab.train(tuning)
    least = _measured(lab, plain, "valid")[2] - 0.02
    trials = [lab.train(calibrated(tuning, weight)) for weight in _WEIGHTS]
    held_out = [_measured(lab, trained, "valid") for trained in trials]
    errors = [float(kde_calibration_error(f, y)) if ap >= least else math.inf for f, y, ap in held_out]
    # Where every weight costs too much precision, the smallest one stands for the method.
    chosen = trials[errors.index(min(errors))]
    arms: dict[str, float | Curve] = {}
    for arm, trained in {"plain": plain, "KDE loss": chosen}.items():
        scores, targets, precision = _measured(lab, trained, "test")
        arms[arm] = _reliability(scores, targets, trained)
        arms |= {f"{arm}: 10 bins": detection_ece_binned(scores, targets).item(), f"{arm}: AP": precision}
        right = _measured(lab, trained, "test", 0.5)[1]  # of the same detections
        arms[f"{arm}: right at IoU 0.5"] = kde_calibration_error(scores, right, select_bandwidth(scores)).item()
    # The cheap rival: one number, fitted on validation detections. It changes no order, so that precision stays.
    scores, targets, _ = _measured(lab, plain, "valid")
    t = temperature(scores, targets)
    scores, targets, _ = _measured(lab, plain, "test")
    arms["temperature"] = _reliability((scores.logit(1e-6) / t).sigmoid(), targets, plain)
    return arms


def _reliability(scores: Tensor, targets: Tensor, trained: Trained) -> Curve:
    """Mean overlap by score, as the kernel sees it; value: the calibration error."""
    order = scores.argsort()[:: max(1, len(scores) // 40)]
    curve = conditional_mean(scores, targets)
    value = (curve - scores).abs().mean().item()
    return Curve(
        curve[order].tolist(), x=scores[order].tolist(), value=value, cost=trained.cost, x_name="score", y_name="mean overlap"
    )
