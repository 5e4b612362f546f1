"""Guided complement entropy: a network that favours no wrong class is harder to push into one.

An attack needs a direction: the wrong class that is nearest. Cross-entropy looks at the probability of the right class g alone
and lets the others lie as they may. So let the others be alike. With c_j = p_j / (1 - p_g), the probabilities of the wrong
classes among themselves,

    L = p_g^alpha / log K * sum over j != g of c_j log c_j          (eq. 4)

is the negative entropy of the wrong classes, which is lowest where they are all alike, weighed by a power of the right class's
probability: this *guide* keeps early training, when p_g is small, from caring for the wrong classes first, and it is also what
raises p_g, since a larger weight makes a negative number lower. The loss is used alone, without cross-entropy. At its best,
p_g = 1 and c flat, it is -log(K - 1) / log K; with two classes there is one wrong class, and it is always 0.

Is it robustness, or does it only hide the gradient of cross-entropy that attacks climb? Flat wrong classes are what label
smoothing gives, too, and that is known for hiding gradients. So the claims also attack the margin, with restarts; attack with
Square, which needs no gradient; and compare with label smoothing.

Source: Chen, Liang, Chang, Pan, Chen, Wei and Juan, "Improving Adversarial Robustness via Guided Complement Entropy", ICCV
2019. The authors' code divides by 1 - p_g + 1e-7 and adds small numbers before logarithms; here c is the softmax of the wrong
logits, which is the same but exact, also where p_g is 1 to the last digit. (There, their term fades out; here it does not.)
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.attack import fgsm, robust_accuracy
from assay.attack.worst import CE, MARGIN, SQUARE, classified
from assay.errors import AssayError
from assay.nn import ConvNet
from assay.paper import Higher, Reported, Score, claim
from assay.recipe import Recipe, treatment, with_loss

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def guided_complement_entropy(logits: Tensor, labels: Tensor, alpha: float = 1 / 3) -> Tensor:
    """The negative entropy of the wrong classes, guided by the probability of the right one (eq. 4).

    Args:
        logits: (B, K) with K of at least 3; the loss is computed in float32 at least.
        labels: (B,) int64, or (B, K) float shares of the classes: the loss of every class counts by its share.
        alpha: power of the guide, above 0. The paper uses 1/3, and tries 1/2 to 1/6.

    Returns:
        A scalar, the mean over the batch, between -log(K - 1) / log K and 0.

    Raises:
        ValueError: fewer than three classes, or an ``alpha`` that is not positive.
    """
    classes = logits.shape[1]
    if classes < 3:
        raise ValueError(f"with {classes} classes there are no wrong ones to be alike: the loss is always 0")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    guide = (alpha * logits.log_softmax(dim=1)).exp()  # p_g^alpha, also where p_g is too small for a number: (B, K)
    if labels.dim() == 1:
        wrong = _complement(logits, F.one_hot(labels, classes).bool())
        return (guide.gather(1, labels[:, None]).squeeze(1) * wrong).mean() / math.log(classes)
    every = torch.eye(classes, dtype=torch.bool, device=logits.device)
    wrong = _complement(logits[:, None, :].expand(-1, classes, -1), every)  # (B, K): if that class were the right one
    return (labels * guide * wrong).sum(dim=1).mean() / math.log(classes)


def _complement(logits: Tensor, right: Tensor) -> Tensor:
    """Sum of c log c over the wrong classes, the last dimension; ``right`` (bool) marks the one that is not."""
    # Not minus infinity, of which the gradient would be undefined; e^-1e9 of a probability is none at all.
    log_c = logits.masked_fill(right, -1e9).log_softmax(dim=-1)
    return (log_c.exp() * log_c.masked_fill(right, 0.0)).sum(dim=-1)


@treatment
def guided_complement(recipe: Recipe, alpha: float = 1 / 3) -> Recipe:
    """Train with guided complement entropy instead of the recipe's cross-entropy.

    Raises:
        AssayError: the data have fewer than three classes.
    """
    if recipe.data.task == "classification" and recipe.data.num_classes < 3:
        raise AssayError(
            f"Guided complement entropy makes the wrong classes alike, and with the {recipe.data.num_classes} classes of "
            f"{recipe.data.name!r} there is only one of them: it needs three."
        )
    return with_loss(recipe, partial(guided_complement_entropy, alpha=alpha))


# -------------------------------------------------------------------------------------------------------- the claims

_PLAIN, _SMOOTH, _GUIDED = "cross-entropy", "label smoothing", "guided complement"
_DATA = {"mnist5k": "digits", "fashion-mnist": "clothes"}
# As the paper for digits; clothes, where 0.2 leaves nothing of any network here, at half of it.
_EPS = {"digits": 0.1, "clothes": 0.05}


def _runs(lab: Lab, name: str) -> dict[str, Trained]:
    """The same network with each loss, as the authors train it on MNIST: Adam, 1e-3, batches of 64."""
    data = lab.data("mnist" if lab.scale == "full" and name == "mnist5k" else name)
    if lab.scale != "full":
        train, test = lab.pick(smoke=(200, 100), laptop=(4_000, 1_000), full=(0, 0))
        data = data.subset(train=train, test=test)
    plain = Recipe(
        data,
        model=partial(ConvNet, 1, data.num_classes, 28, (6, 16), 120),
        optimizer=partial(torch.optim.Adam, lr=1e-3, betas=(0.9, 0.99)),
        epochs=lab.pick(smoke=1, laptop=10, full=20),
        batch_size=64,
        watch=(),
    )
    # Smoothing strong enough to flatten the wrong classes: with 0.1, as usual, it is a weak rival.
    smooth = with_loss(plain, partial(F.cross_entropy, label_smoothing=0.5))
    recipes = {_PLAIN: plain, _SMOOTH: smooth, _GUIDED: guided_complement(plain)}
    return {arm: lab.train(recipe) for arm, recipe in recipes.items()}


def _attacked(lab: Lab, name: str) -> dict[str, float]:
    """Accuracy of every arm without and under attacks, and the worst case over them for each image."""
    runs, eps, kind = _runs(lab, name), _EPS[_DATA[name]], _DATA[name]
    count = lab.pick(smoke=20, laptop=300, full=1_000)
    found: dict[str, float] = {}
    source = runs[_PLAIN].model
    for arm, trained in runs.items():
        model, test = trained.model, trained.recipe.data.subset(test=count).test  # some of every class
        assert isinstance(test.inputs, Tensor)
        images, labels = test.inputs[:count].to(lab.device), test.labels[:count].to(lab.device)
        found[f"{arm}, {kind}"] = trained.accuracy()
        for times in (1, 2):
            moved = fgsm(model, images, labels, eps=times * eps, clip=(0.0, 1.0))
            found[f"{arm}, {kind}: FGSM {times * eps:g}"] = _right(model, moved, labels)
        strong = robust_accuracy(
            model,
            images,
            labels,
            eps=eps,
            steps=lab.pick(smoke=2, laptop=20, full=100),
            restarts=lab.pick(smoke=1, laptop=2, full=5),
            queries=lab.pick(smoke=5, laptop=100, full=5_000),
            clip=(0.0, 1.0),
            generator=lab.generator(3),
        )
        for attack in (CE, MARGIN, SQUARE):
            found[f"{arm}, {kind}: {attack}"] = strong.under(attack)
        found[f"{arm}, {kind}: worst"] = Score(strong.worst, trained.cost)
        moved = fgsm(source, images, labels, eps=eps, clip=(0.0, 1.0))
        found[f"{arm}, {kind}: transfer"] = _right(model, moved, labels)
    return found


def _right(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    return classified(model, images, labels).double().mean().item()


def _both(lab: Lab) -> dict[str, float]:
    return {arm: value for name in _DATA for arm, value in _attacked(lab, name).items()}


_SCALED_DOWN = (
    "4,000 digits of MNIST 5k and 4,000 clothes of Fashion-MNIST for 10 epochs instead of 60,000 digits for 20 (and CIFAR-10 "
    "with a ResNet-56); 300 images are attacked, digits in a ball of 0.1, clothes of 0.05, by 20 steps of gradient ascent, twice."
)


@claim(
    "At equal training guided complement entropy is more accurate than cross-entropy under one gradient sign step and under "
    "gradient ascent of cross-entropy, on digits and on clothes, and loses less than a point without an attack.",
    expect=tuple(
        Higher(f"{_GUIDED}, {kind}{attack}", than=f"{_PLAIN}, {kind}{attack}", by=by)
        for kind in _DATA.values()
        for attack, by in (("", -0.01), (f": FGSM {_EPS[kind]:g}", 0.0), (f": {CE}", 0.0))
    ),
    reported=(
        Reported("MNIST, FGSM with eps 0.2: accuracy", {_PLAIN: 0.3888, _GUIDED: 0.6274}, where="the authors' README"),
        Reported("MNIST, PGD with eps 0.2: accuracy", {_PLAIN: 0.0158, _GUIDED: 0.0955}, where="the authors' README"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def more_robust_than_cross_entropy(lab: Lab) -> Measured:
    return _both(lab)


@claim(
    "The gain over cross-entropy is no hidden gradient: it is there under gradient ascent of the margin with restarts, under "
    "Square Attack, which needs no gradient, and in the worst case over all attacks for each image, on digits and on clothes.",
    expect=tuple(
        Higher(f"{_GUIDED}, {kind}: {attack}", than=f"{_PLAIN}, {kind}: {attack}")
        for kind in _DATA.values()
        for attack in (MARGIN, SQUARE, "worst")
    ),
    scaled_down=_SCALED_DOWN + " The paper attacks cross-entropy, and with C&W.",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def survives_margin_attack(lab: Lab) -> Measured:
    return _both(lab)


@claim(
    "It does more than label smoothing, which flattens the wrong classes too (half of the label spread over all): in the worst "
    "case over all attacks for each image it is more accurate, on digits and on clothes.",
    expect=tuple(Higher(f"{_GUIDED}, {kind}: worst", than=f"{_SMOOTH}, {kind}: worst") for kind in _DATA.values()),
    scaled_down=_SCALED_DOWN + " The paper does not compare with label smoothing.",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def more_than_label_smoothing(lab: Lab) -> Measured:
    return _both(lab)
