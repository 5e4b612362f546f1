"""Weights for rare labels: let every label, or every class, count by how seldom it is.

A network that minimises a mean over examples serves whoever is frequent. The oldest remedy is to weigh the loss. With n_c
of N examples carrying label c, f_c = n_c / N, this paper compares, for sentences of code comments which may carry several
labels each,

    inverse frequency    w_c = 1 / f_c, divided by their sum
    ranked               the labels in order of frequency, and the frequencies handed out in reverse: the most frequent label
                         gets the smallest one, the rarest the largest
    L = mean over examples and labels of  w_c BCE(z_c, y_c)

The ranked weights need no division, so that one very rare label cannot take all the weight. Two things are easily
overlooked. The weight scales a label's whole loss, its positives and negatives alike: where a label's optimum can be reached
on its own, it stays where it was. (A linear model has a row of parameters for every label, and Adam does not notice how long
a gradient is: there the weights change nothing at all.) What they shift is whom the *shared* layers serve. ``pos_weight``,
which scales the positives only, moves the threshold instead, and a threshold is easily moved afterwards
(:func:`tune_thresholds`): that is what weights have to be compared with. Secondly, weights as they are written change the
size of the loss, and so the step of plain SGD and what a bound on the gradient does; compare them with a mean of one.

With one class an example, cross-entropy takes the same weights, each example by its class. There the *effective number* of
examples, (1 - b^n) / (1 - b), in place of n says that the thousandth example of a class brings less than the tenth.

Source: Mock, Borsani, Di Fatta and Russo, "Optimizing Deep Learning Models to Address Class Imbalance in Code Comment
Classification", NLBSE 2025 (its third weighting, FAMO, is a paper of its own). The authors' code writes f_c in per cent and
rounds 1 / f_c to two decimals; here it is not rounded. Effective number: Cui, Jia, Lin, Song and Belongie, "Class-Balanced
Loss Based on Effective Number of Samples", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import mlp
from assay.paper import Close, Cost, Curve, Higher, Reported, Score, claim
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.recipe import Recipe, treatment, with_loss
from assay.train.augment import flip_and_crop
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

Scheme = Literal["ranked", "inverse_frequency", "effective_number"]


def class_weights(counts: Tensor, examples: int, scheme: Scheme = "ranked", beta: float = 0.999) -> Tensor:
    """Weights as the papers write them; see :func:`of_mean_one` before you compare them.

    Args:
        counts: (C,) how many examples carry each label: ``targets.sum(dim=0)`` or ``torch.bincount(labels)``.
        examples: N, of all examples; a multi-label sum of counts may be larger.
        scheme: ``"ranked"`` (as percentages, as in the paper), ``"inverse_frequency"`` (sums to one) or ``"effective_number"``.
        beta: b of the effective number, in [0, 1): 0 makes all weights one, towards 1 they come near the inverse counts.
            Cui et al. choose among 0.9, 0.99, 0.999 and 0.9999.

    Returns:
        (C,) float64, all positive.

    Raises:
        ValueError: a label has no example, or more than there are; there is no such scheme; beta is outside [0, 1).
    """
    n = counts.double()
    if not len(n) or bool((n <= 0).any()) or bool((n > examples).any()):
        raise ValueError(f"counts must be from 1 to {examples}, the number of examples, and are {counts.tolist()}")
    frequency = n / examples
    if scheme == "inverse_frequency":
        return (1 / frequency) / (1 / frequency).sum()
    if scheme == "effective_number":
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), not {beta}")
        return (1 - beta) / (1 - beta**n)
    if scheme != "ranked":
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}, not {scheme!r}")
    sorted_frequency, place = frequency.sort(stable=True)
    weights = torch.empty_like(frequency)
    weights[place] = 100 * sorted_frequency.flip(0)
    # Labels that are equally frequent get the same weight, whichever came first.
    equal = (frequency[:, None] == frequency[None, :]).double()  # (C, C)
    return equal @ weights / equal.sum(dim=1)


def of_mean_one(weights: Tensor, shares: Tensor | None = None) -> Tensor:
    """The weights (C,) scaled so that the loss keeps its size, and a learning rate its meaning.

    Args:
        weights: (C,).
        shares: (C,) how often each weight is used. ``None``, all alike, is right for many labels an example; with one class
            an example give the counts.
    """
    used = torch.ones_like(weights) if shares is None else shares.to(weights)
    return weights * used.sum() / (weights * used).sum()


def weighted_binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """For many labels an example: mean over examples and labels of ``w_c BCE(z_c, y_c)``.

    Shape: logits (B, C), targets (B, C) in [0, 1], C weights -> scalar.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, weight=logits.new_tensor(weights))


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Sequence[float]) -> Tensor:
    """For one class an example: mean over examples of ``w_y CE(z, y)``.

    torch's own mean divides by the weights of the batch instead of its size, so that an example counts for less the rarer
    the classes beside it are. Targets that are distributions take ``- sum_c w_c t_c log p_c``.

    Shape: logits (B, C), labels (B,) int64 or (B, C) float, C weights -> scalar.
    """
    return F.cross_entropy(logits, labels, weight=logits.new_tensor(weights), reduction="sum") / len(logits)


def tune_thresholds(logits: Tensor, targets: Tensor) -> Tensor:
    """For every label the threshold with the best F1 on held-out data: (N, C), (N, C) -> (C,); say yes above it.

    A label that no example carries gets an infinite threshold. Of equally good thresholds the highest is taken. Thresholds are
    float64: between neighbouring numbers of a narrower type there is none of that type.
    """
    values, order = logits.double().sort(dim=0, descending=True)
    hits = targets.double().gather(0, order).cumsum(dim=0)  # (N, C) true positives if the first k are said
    said = torch.arange(1, len(logits) + 1, dtype=torch.float64, device=logits.device)[:, None]
    f1 = 2 * hits / (said + hits[-1])
    below = torch.cat([values[1:], values[-1:] - 1])
    f1[values == below] = -1  # between equal values there is no threshold
    best = f1.argmax(dim=0, keepdim=True)
    thresholds = ((values + below) / 2).gather(0, best).squeeze(0)
    return thresholds.masked_fill(hits[-1] == 0, torch.inf)


def f1_per_label(said: Tensor, targets: Tensor) -> Tensor:
    """F1 of every label, 0 where nothing is right: (N, C) bool, (N, C) zeros and ones -> (C,) float64."""
    right = (said & (targets > 0)).sum(dim=0).double()
    return 2 * right / (said.sum(dim=0) + (targets > 0).sum(dim=0)).clamp_min(1)


@treatment
def class_weighted(recipe: Recipe, scheme: Scheme = "ranked", beta: float = 0.999) -> Recipe:
    """Let every training example count by its class; the weights have a mean of one over the examples.

    Where an example may have several labels, every label counts by its weight; the weights have a mean of one over the labels.

    Args:
        recipe: how to train a classifier. Losses that other methods brought stay, with the weights as a correction; for
            several labels an example the loss must be binary cross-entropy.
        scheme: as in :func:`class_weights`.
        beta: as there.
    """
    data = recipe.data
    if data.task not in ("classification", "multilabel"):
        raise AssayError(f"Class weights are for classification, and {data.name!r} is a {data.task} data set.")
    several = data.task == "multilabel"
    if several and recipe.loss is not F.binary_cross_entropy_with_logits:
        raise AssayError(
            f"{data.name!r} has several labels an example: weights need binary_cross_entropy_with_logits as the loss."
        )
    labels = data.train.labels
    counts = labels.sum(dim=0) if several else torch.bincount(labels, minlength=data.num_classes)
    if int(counts.min()) == 0:
        missing = data.classes[int(counts.argmin())]
        raise AssayError(f"The class {missing!r} of {data.name!r} has no training example, so it can have no weight.")
    weights = of_mean_one(class_weights(counts, len(data.train), scheme, beta), None if several else counts)
    if bool((weights - 1).abs().max() < 1e-9):  # all classes are equally frequent
        return recipe
    if several:
        return recipe.replace(loss=partial(weighted_binary_cross_entropy, weights=tuple(weights.tolist())))
    return with_loss(recipe, partial(weighted_cross_entropy, weights=tuple(weights.tolist())))


# -------------------------------------------------------------------------------------------------------- the claims

_FEATURES = 3000
_LANGUAGES = ("pharo", "java", "python")
_ARMS = ("unweighted", "weighted", "positives weighted")


def _comments(data: Dataset, seed: int) -> Dataset:
    """Comments, split anew 60:20:20, as TF-IDF of words and pairs of words that is weighed on the training sentences.

    A fixed test has eight sentences with the rarest label: which these are would decide more than the method does.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = (*data.train.inputs, *data.test.inputs)
    labels = torch.cat([data.train.labels, data.test.labels])
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    fifth = len(texts) // 5
    parts = order.split([len(texts) - 2 * fifth, fifth, fifth])
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES, token_pattern=r"\w+|[^\w\s]")
    tfidf.fit([texts[row] for row in parts[0].tolist()])
    inputs = torch.from_numpy(tfidf.transform(texts).toarray()).float()
    train, valid, test = (Split(inputs[rows], labels[rows]) for rows in parts)
    history = (*data.history, f"split(seed={seed})", f"tfidf(features={_FEATURES})")
    return replace(data, train=train, valid=valid, test=test, history=history)


def _positive_weighted(logits: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """The usual remedy: only the positives of a label are weighed."""
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=logits.new_tensor(weights))


def _trials(plain: Recipe, arm: str) -> list[Recipe]:
    """Recipes among which an arm may choose, as many for each arm: four rates, or two weightings at two rates."""
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    recipes = [plain]
    if arm == "weighted":
        rates, recipes = (2e-3, 4e-3), [class_weighted(plain, "ranked"), class_weighted(plain, "inverse_frequency")]
    if arm == "positives weighted":
        n, rows = plain.data.train.labels.sum(dim=0), len(plain.data.train)
        recipes = [plain.replace(loss=partial(_positive_weighted, weights=tuple(((rows - n) / n).tolist())))]
    return [recipe.replace(optimizer=partial(torch.optim.Adam, lr=rate)) for recipe in recipes for rate in rates]


def _judged(trained: Trained, tuned: bool) -> tuple[float, Tensor, float]:
    """Mean F1 on the validation sentences, F1 of every label on the test sentences, and what the training cost."""
    data, logits = trained.recipe.data, trained.logits("valid")
    thresholds = tune_thresholds(logits, data.valid.labels) if tuned else torch.zeros(data.num_classes)
    held_out = f1_per_label(logits > thresholds, data.valid.labels).mean().item()
    return held_out, f1_per_label(trained.logits("test") > thresholds, data.test.labels), trained.seconds


def _f1(lab: Lab, tuned: bool) -> dict[str, float | Curve]:
    """For every arm F1 of all labels, the rarest first (their mean over the rarest third counts), and of the others."""
    languages = lab.pick(smoke=_LANGUAGES[:1], laptop=_LANGUAGES, full=_LANGUAGES)
    sets = [_comments(lab.data(f"comments-{language}"), lab.seed) for language in languages]
    share = torch.cat([torch.cat([d.train.labels, d.valid.labels, d.test.labels]).mean(dim=0) for d in sets])
    order = share.argsort()
    rare = len(order) // 3
    arms: dict[str, float | Curve] = {}
    for arm in _ARMS:
        best = []
        for data in sets:
            plain = Recipe(
                data,
                model=partial(mlp, data.input_shape[0], data.num_classes, (64,)),
                loss=F.binary_cross_entropy_with_logits,
                epochs=lab.pick(smoke=1, laptop=30, full=100),
                batch_size=64,
                watch=(),
            )
            tried = [_judged(lab.train(recipe), tuned) for recipe in _trials(plain, arm)]
            best.append(max(tried, key=lambda judged: judged[0]))
        f1 = torch.cat([on_test for _, on_test, _ in best])[order]
        cost = Cost(seconds=sum(seconds for *_, seconds in best))
        name = f"{arm}, tuned" if tuned else arm
        arms[name] = Curve(f1.tolist(), value=f1[:rare].mean().item(), cost=cost, x_name="label, the rarest first", y_name="F1")
        arms[f"{name}, other labels"] = f1[rare:].mean().item()
    return arms


_NEEDS = tuple(f"comments-{language}" for language in _LANGUAGES)
_SCALED_DOWN = (
    "NLBSE'23 comments (every distinct sentence once, split at random 60:20:20 for each seed) instead of NLBSE'25; TF-IDF and a "
    "perceptron of 64 units, 30 epochs, instead of a fine-tuned RoBERTa; four trials an arm and language, chosen on the "
    "validation sentences."
)


@claim(
    "On comments of three languages (19 labels) the better of the two weightings raises the mean F1 of the rarest third of the "
    "labels over an unweighted loss, and lowers that of the others by less than a point.",
    expect=(
        Higher("weighted", than="unweighted"),
        Higher("weighted, other labels", than="unweighted, other labels", by=-0.01),
    ),
    reported=Reported(
        "NLBSE'25, fine-tuned RoBERTa-like networks: mean F1",
        {"weighted, all 19 labels": 0.726},
        where="README of the authors' code",
    ),
    scaled_down=_SCALED_DOWN,
    unit="mean F1 of the rarest third of the labels, or of the others",
    needs=_NEEDS,
)
def helps_rare_labels(lab: Lab) -> Measured:
    return _f1(lab, tuned=False)


@claim(
    "With a threshold for every label, chosen on validation sentences, weights bring no more: weighted and unweighted losses end "
    "within three points on the rarest third of the labels.",
    expect=Close("weighted, tuned", to="unweighted, tuned", within=0.03),
    scaled_down=_SCALED_DOWN + " The paper has one threshold of 0.5 and does not ask.",
    unit="mean F1 of the rarest third of the labels, or of the others",
    needs=_NEEDS,
)
def thresholds_do_as_much(lab: Lab) -> Measured:
    return {"unweighted": _f1(lab, tuned=False)["unweighted"], **_f1(lab, tuned=True)}


@claim(
    "On long-tailed photographs (the first class 50 times as frequent as the last) weights by the effective number raise the "
    "accuracy on the three rarest classes by more than 5 points, and cost less than a point over all classes.",
    expect=(
        Higher("effective number, rare classes", than="cross-entropy, rare classes", by=0.05),
        Higher("effective number", than="cross-entropy", by=-0.01),
    ),
    reported=Reported(
        "CIFAR-10, imbalance 50, ResNet-32: test accuracy, best of three losses with class-balanced weights (Cui et al.)",
        {"cross-entropy": 0.748, "effective number": 0.793},
        where="Table 2 of Cui et al.",
    ),
    scaled_down="A part of CIFAR-10 at 16x16 (2,240 photographs after thinning) and a ResNet-8 of 8 planes, with which plain "
    "cross-entropy fits three quarters of them; 15 epochs without augmentation, in batches of 32.",
    unit="test accuracy (all classes equally frequent)",
    needs=("cifar10-20k",),
)
def helps_rare_photographs(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="cifar10-20k", full="cifar10"))
    data = data.subset(*lab.pick(smoke=(500, 200), laptop=(8000, 2000), full=(None, None)))
    data = data.long_tail(50, seed=lab.seed).normalise()
    depth, width = lab.pick(smoke=(8, 4), laptop=(8, 8), full=(32, 16))
    full = lab.scale == "full"
    net = partial(cifar_resnet, depth, width=width, in_channels=data.input_shape[0])
    plain = Recipe(
        data,
        model=net if full else partial(half_size, net),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        augment=flip_and_crop if full else None,
        epochs=lab.pick(smoke=1, laptop=15, full=200),
        batch_size=lab.pick(smoke=64, laptop=32, full=128),
        watch=(),
    )
    runs = {
        "cross-entropy": lab.train(plain),
        "effective number": lab.train(class_weighted(plain, "effective_number")),
        "ranked": lab.train(class_weighted(plain, "ranked")),
    }
    said = {arm: trained.logits("test") for arm, trained in runs.items()}
    # What thresholds are for many labels: the classes' shares in training are taken out of the logits.
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    said["cross-entropy, shares taken out"] = said["cross-entropy"] - counts.log()
    labels = data.test.labels
    rare = torch.isin(labels, counts.argsort()[:3])
    arms: dict[str, float] = {}
    for arm, logits in said.items():
        right = (logits.argmax(dim=1) == labels).double()
        cost = runs[arm.removesuffix(", shares taken out")].cost
        arms[arm] = Score(right.mean().item(), cost)
        arms[f"{arm}, rare classes"] = Score(right[rare].mean().item(), cost)
    return arms
