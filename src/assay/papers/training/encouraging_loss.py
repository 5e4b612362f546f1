"""The encouraging loss: keep pushing on examples that are classified well already.

Cross-entropy lets go of an example as it gets it right: its gradient on the logit of the true class is -(1 - p), which is
nothing at p = 1. So training turns to the hard examples, and the easy ones, which are most, do no more for the margin or for
the representation. The encouraging loss gives them a bonus b(p) = log(1 - p) that makes up for it:

    L = -log p + log(1 - p)     with gradient -1 on the true logit, however well it is classified     (full bonus)

Since the full bonus falls without end (until 1 - p reaches the guard of 1e-5), it is followed up to a probability LE (the log
end) and continued there by its tangent, so that the gradient falls again for the last stretch (conservative bonus):

    b(p) = log(1 - LE) - (p - LE) / (1 - LE)    for p > LE

Its mirror images are the focal loss and the halted loss, which let well-classified examples go even earlier.

Source: Zhao, Yang, Ren, Li, Wu and Sun, "Well-classified Examples are Underestimated in Classification with Deep Neural
Networks", AAAI 2022.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import mlp
from assay.paper import Higher, Lower, Score, claim
from assay.recipe import Recipe, treatment, with_loss
from assay.recipes import lenet_on
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

_LEAST = 1e-5  # of 1 - p: below it the full bonus stops growing, as in the authors' code


def bonus(log_probs: Tensor, log_end: float = 0.75) -> Tensor:
    """The bonus of examples whose true class has so large a log-probability: negative, and lower the better they do.

    Args:
        log_probs: any shape, at most 0.
        log_end: LE in (0, 1]; 1 is the full bonus.
    """
    rest = (-torch.expm1(log_probs)).clamp_min(_LEAST)  # 1 - p, exact where p is near 1
    if log_end == 1:
        return rest.log()
    tangent = math.log(1 - log_end) - (log_probs.exp() - log_end) / (1 - log_end)
    # The logarithm is kept from the region where it is not used: its infinite slope would spoil the gradient there.
    beyond = log_probs > math.log(log_end)
    return torch.where(beyond, tangent, torch.where(beyond, 1 - log_end, rest).log())


def encouraging_loss(logits: Tensor, labels: Tensor, log_end: float = 0.75, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with a bonus for what is classified well.

    Args:
        logits: (B, C); the loss is computed in float32 at least.
        labels: (B,) int64, or (B, C) float shares of the classes.
        log_end: probability from which the bonus grows linearly only, in (0, 1]. The paper recommends 0.75, and 0.5 where in
            doubt; 1 is the full bonus, which needs weight decay: it pushes until 1 - p is 1e-5.
        label_smoothing: share of the target that is spread over all classes; each class then brings its own bonus.

    Returns:
        A scalar, the mean over the batch. It may be negative.
    """
    if not 0 < log_end <= 1 or 1 - _LEAST < log_end < 1:
        raise ValueError(f"log_end must be in (0, {1 - _LEAST}] or 1, not {log_end}")
    log_probs = logits.log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))  # (B, C)
    if labels.dim() == 1 and not label_smoothing:
        log_probs = log_probs.gather(1, labels[:, None]).squeeze(1)  # (B,)
        return (bonus(log_probs, log_end) - log_probs).mean()
    targets = F.one_hot(labels, logits.shape[1]) if labels.dim() == 1 else labels
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return (targets * (bonus(log_probs, log_end) - log_probs)).sum(dim=1).mean()


def _true(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): log-probability of the true class, in float32 at least."""
    precision = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(dim=1, dtype=precision).gather(1, labels[:, None]).squeeze(1)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 1.0) -> Tensor:
    """The focal loss, ``-(1 - p)^gamma log p``: a control, which turns away from what is classified well."""
    log_probs = _true(logits, labels)
    rest = (-torch.expm1(log_probs)).clamp_min(torch.finfo(log_probs.dtype).tiny)  # a root has no slope at 0
    return (-(rest**gamma) * log_probs).mean()


def halted_cross_entropy(logits: Tensor, labels: Tensor, threshold: float = 0.5, rescale: bool = False) -> Tensor:
    """Cross-entropy of the examples with p up to ``threshold`` alone: the paper's ablation.

    Args:
        logits: (B, C).
        labels: (B,).
        threshold: in (0, 1].
        rescale: take the mean of those examples, instead of letting the others count as 0: as long steps as ever.
    """
    log_probs = _true(logits, labels)
    live = log_probs <= math.log(threshold)
    total = torch.where(live, -log_probs, torch.zeros_like(log_probs)).sum()
    return total / (live.sum().clamp_min(1) if rescale else len(labels))


@treatment
def encouraging(recipe: Recipe, log_end: float = 0.75) -> Recipe:
    """Train with the encouraging loss instead of the recipe's cross-entropy; label smoothing stays."""
    made = recipe.loss
    if getattr(made, "func", made) is F.cross_entropy and set(getattr(made, "keywords", {})) == {"label_smoothing"}:
        # Each class that smoothing gives a share then brings its own bonus.
        smoothing = made.keywords["label_smoothing"]  # type: ignore[union-attr]
        return recipe.replace(loss=partial(encouraging_loss, log_end=log_end, label_smoothing=smoothing))
    return with_loss(recipe, partial(encouraging_loss, log_end=log_end, label_smoothing=0.0))


# -------------------------------------------------------------------------------------------------------- the claims

_LOSSES = {
    "cross-entropy": F.cross_entropy,
    "encouraging": encouraging_loss,
    "focal": focal_loss,
    "halted": halted_cross_entropy,
}


def _digits(lab: Lab) -> Dataset:
    data = lab.data("mnist5k")
    return data.subset(train=500, test=200) if lab.scale == "smoke" else data


def _runs(lab: Lab, plain: Recipe) -> dict[str, Trained]:
    return {name: lab.train(plain.replace(loss=loss)) for name, loss in _LOSSES.items()}


def _convolutional(lab: Lab) -> Recipe:
    return lenet_on(_digits(lab), epochs=lab.pick(smoke=1, laptop=20, full=100)).replace(watch=())


@torch.no_grad()
def margin(trained: Trained) -> float:
    """How far test examples lie from the nearest border to another class in the last hidden layer, as a share of their length.

    The border between classes y and j is where (w_y - w_j) h + b_y - b_j = 0; its distance from h is that over the length of
    w_y - w_j. Negative on the wrong side. A loss that only makes weights or features longer gains nothing.
    """
    head = [module for module in trained.model.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: kept.append(given[0].cpu()))
    logits = trained.logits("test")
    handle.remove()
    features, labels = torch.cat(kept), trained.recipe.data.test.labels
    weights = head.weight.cpu()
    apart = torch.cdist(weights, weights)[labels].scatter(1, labels[:, None], 1.0)  # (N, C)
    gaps = (logits.gather(1, labels[:, None]) - logits) / apart
    nearest = gaps.scatter(1, labels[:, None], torch.inf).amin(dim=1)
    return float((nearest / features.norm(dim=1)).mean())


@claim(
    "With the same recipe the encouraging loss (LE 0.75) is no less accurate than cross-entropy by half a point, and test "
    "examples lie farther from the nearest border of the last layer, as a share of the length of their features.",
    expect=(Higher("encouraging", than="cross-entropy", by=-0.005), Higher("encouraging, margin", than="cross-entropy, margin")),
    scaled_down="MNIST 5k and a LeNet for 20 epochs instead of CIFAR and ImageNet with a ResNet-50.",
    unit="test accuracy, or mean margin",
)
def as_accurate_with_larger_margins(lab: Lab) -> Measured:
    runs = _runs(lab, _convolutional(lab))
    arms: dict[str, float] = {name: trained.accuracy() for name, trained in runs.items()}
    return {**arms, **{f"{name}, margin": margin(trained) for name, trained in runs.items()}}


@claim(
    "Well-classified examples matter: cross-entropy that lets go of every example above a probability of one half is less "
    "accurate, also if the mean is taken over the others, so that the steps do not shrink.",
    expect=(Higher("cross-entropy", than="halted"), Higher("cross-entropy", than="halted, steps as long")),
    scaled_down="MNIST 5k and a LeNet for 20 epochs instead of CIFAR-10 and a ResNet-50.",
    unit="test accuracy",
)
def well_classified_examples_matter(lab: Lab) -> Measured:
    plain = _convolutional(lab)
    arms: dict[str, Score] = {"cross-entropy": lab.train(plain).accuracy()}
    for threshold in (0.5, 0.75, 0.9):
        halted = plain.replace(loss=partial(halted_cross_entropy, threshold=threshold))
        name = "halted" if threshold == 0.5 else f"halted at {threshold:g}"
        arms[name] = lab.train(halted).accuracy()
    rescaled = plain.replace(loss=partial(halted_cross_entropy, rescale=True))
    return {**arms, "halted, steps as long": lab.train(rescaled).accuracy()}


def _balanced(logits: Tensor, labels: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Cross-entropy in which every class counts by its weight."""
    return F.cross_entropy(logits, labels, weight=logits.new_tensor(weights))


def _perceptron(data: Dataset, epochs: int, rate: float = 0.05) -> Recipe:
    return Recipe(
        data,
        model=partial(mlp, 784, 10),
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=1e-4),
        schedule=cosine,
        epochs=epochs,
        watch=(),
    )


@claim(
    "On long-tailed data (the first class 100 times as frequent as the last) the encouraging loss classifies the three rarest "
    "classes better than cross-entropy at the same rate, and at twice and four times of it.",
    expect=(
        Higher("encouraging", than="cross-entropy"),
        Higher("encouraging", than="cross-entropy, rate x2"),
        Higher("encouraging", than="cross-entropy, rate x4"),
    ),
    scaled_down="MNIST 5k made long-tailed and a perceptron for 100 epochs instead of iNaturalist and CIFAR-LT with a ResNet.",
    unit="test accuracy on the three rarest classes",
)
def helps_rare_classes(lab: Lab) -> Measured:
    data = _digits(lab).long_tail(100, seed=lab.seed)
    counts = torch.bincount(data.train.labels, minlength=10)
    epochs = lab.pick(smoke=1, laptop=100, full=300)
    runs = _runs(lab, _perceptron(data, epochs))
    for times in (2, 4):  # the bonus lengthens the steps, up to five times
        runs[f"cross-entropy, rate x{times}"] = lab.train(_perceptron(data, epochs, 0.05 * times))
    weights = tuple((counts.sum() / (10.0 * counts)).tolist())  # the usual remedy, as a further control
    balanced = partial(_balanced, weights=weights)
    runs["cross-entropy, classes balanced"] = lab.train(_perceptron(data, epochs).replace(loss=balanced))
    rare = torch.isin(data.test.labels, counts.argsort()[:3])
    arms: dict[str, float] = {}
    for name, trained in runs.items():
        right = trained.logits("test").argmax(dim=1) == data.test.labels
        arms[name] = Score(right[rare].double().mean().item(), trained.cost)
        arms[f"{name}, all classes"] = right.double().mean().item()
    return arms


@claim(
    "It is no remedy for wrong labels: with 40% of them wrong the encouraging loss ends at most 2 points above cross-entropy.",
    expect=Lower("encouraging", than="cross-entropy", by=-0.02),
    scaled_down="MNIST 5k and a perceptron for 60 epochs; a boundary of the method rather than a claim of the paper.",
    unit="test accuracy after the last epoch",
)
def no_remedy_for_wrong_labels(lab: Lab) -> Measured:
    data = _digits(lab).flip_labels(0.4, seed=lab.seed)
    runs = _runs(lab, _perceptron(data, lab.pick(smoke=1, laptop=60, full=200)))
    return {name: trained.accuracy() for name, trained in runs.items()}
