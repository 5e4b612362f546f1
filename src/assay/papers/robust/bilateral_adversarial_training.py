"""Bilateral adversarial training: one step is enough, if it goes to the right class and the label is moved as well.

Training on adversarial examples makes networks robust, but each takes many steps of gradient ascent. One full step (fast
gradient sign) is cheap and fails: the network learns to make that one step useless, without becoming robust (its gradient at
the example is masked, or gives the label away). Here the step starts from a random point of the ball, and goes *towards* one
class, the most confusing one, instead of away from the label:

    x0 = x + u,  u even in the ball;    MC = argmax over k != y of z_k(x0)
    x' = box( x0 - eps sign( grad CE(z(x0), MC) ) )

The other side of "bilateral" is the label. Of all labels that keep 1 - eps_y at the true class, one is sought that the network
finds hard: the gradient of cross-entropy with respect to a label's share of class k is v_k = -log p_k, and moving the label
along it, with as much as possible where it is least expected and least at the most confusing class,

    y'_k = eps_y / (K - 1) * (v_k - v_MC + gamma) / (mean over j != y of v_j - v_MC + gamma)     for k != y

with a small gamma, so that the most confusing class has hardly anything. Uniform predictions give label smoothing. The price is
two passes a step, where gradient ascent of seven steps takes eight.

Label smoothing, adversarial or not, makes gradients small, and gradient ascent of cross-entropy looks weaker than it is. So
the claims attack the margin as well, and compare with smoothing by as much.

Source: Wang and Zhang, "Bilateral Adversarial Training: Towards Fast Training of More Robust Models Against Adversarial
Attacks", ICCV 2019. v is taken at x', from the same pass that the training step needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack import fgsm, pgd, robust_accuracy
from assay.attack.balls import somewhere
from assay.attack.worst import CE, MARGIN
from assay.errors import AssayError
from assay.nn import ConvNet
from assay.nn.frozen import frozen
from assay.paper import Higher, Lower, Reported, Score, claim
from assay.recipe import Recipe, treatment, with_loss
from assay.train.hooks import InputHook, Run
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def towards_confusion(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step from a random point of the ball towards the most confusing class.

    Args:
        model: maps inputs to logits (B, K). It is used in evaluation mode and left as it was.
        inputs: (B, ...) float.
        labels: (B,) int64.
        eps: radius of the ball in the maximum norm and length of the step; a tensor broadcasts over the inputs (a radius for each
            channel).
        low: smallest valid entry.
        high: largest valid entry.
        generator: of the random starts.

    Returns:
        (B, ...) in the ball, and between ``low`` and ``high``.
    """
    inputs = inputs.detach()
    unit = somewhere(torch.zeros_like(inputs), 1.0, math.inf, generator)
    floor, ceiling = _clamped(inputs - eps, low, high), _clamped(inputs + eps, low, high)
    start = torch.minimum(torch.maximum(inputs + eps * unit, floor), ceiling)
    with frozen(model, inputs):
        leaf = start.requires_grad_()
        logits = model(leaf)
        confusing = most_confusing(logits, labels)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, confusing, reduction="sum"), leaf)
    return torch.minimum(torch.maximum(start.detach() - eps * gradient.sign(), floor), ceiling)


def _clamped(values: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return torch.maximum(torch.minimum(values, torch.as_tensor(high).to(values)), torch.as_tensor(low).to(values))


def most_confusing(logits: Tensor, labels: Tensor) -> Tensor:
    """The most probable of the wrong classes: (B, K), (B,) -> (B,) int64."""
    return logits.scatter(1, labels[:, None], -math.inf).argmax(dim=1)


def adversarial_labels(logits: Tensor, labels: Tensor, eps_y: float = 0.5, gamma: float = 0.01) -> Tensor:
    """Shares of the classes that are hard for a network, with ``1 - eps_y`` at the label.

    Args:
        logits: (B, K), K of at least 2; no gradient flows through them.
        labels: (B,) int64.
        eps_y: what all wrong classes get together, in [0, 1). The paper uses 0.5, and 0.9 for more.
        gamma: above 0: what keeps a little for the most confusing class (paper: 0.01).

    Returns:
        (B, K), rows that sum to 1.
    """
    if not 0 <= eps_y < 1:
        raise ValueError(f"eps_y must be in [0, 1), not {eps_y}")
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, not {gamma}")
    logits = logits.detach()
    surprise = -logits.log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))  # v: (B, K)
    right = F.one_hot(labels, logits.shape[1]).bool()
    least = surprise.masked_fill(right, math.inf).amin(dim=1, keepdim=True)  # v_MC
    # Divided by its sum over the wrong classes, which is what (K - 1) times the mean is.
    excess = (surprise - least + gamma).masked_fill(right, 0.0)
    return torch.where(right, 1 - eps_y, eps_y * excess / excess.sum(dim=1, keepdim=True))


@dataclass(frozen=True)
class BilateralAdversary:
    """Both sides for a training loop of one's own: ``x, y = adversary(model, x, y)``, then cross-entropy of x and y.

    Args:
        eps: radius of the ball around inputs, in the maximum norm.
        eps_y: what the wrong classes get of the label; 0 leaves labels as they are.
        gamma: what keeps a little for the most confusing class.
        clip: smallest and largest valid entry.
    """

    eps: float
    eps_y: float = 0.5
    gamma: float = 0.01
    clip: tuple[float, float] = (0.0, 1.0)

    def __call__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Other inputs (B, ...), and shares of the classes (B, K) for them."""
        moved = towards_confusion(model, inputs, labels, self.eps, *self.clip, generator=generator)
        with torch.no_grad():
            return moved, adversarial_labels(model(moved), labels, self.eps_y, self.gamma)


# ------------------------------------------------------------------------------------------------------ the treatment


@dataclass(frozen=True, eq=False)
class Bilateral(InputHook):
    """Every batch is moved towards its most confusing classes, and then its labels, by the logits that it has there.

    Labels that are shares of the classes already count as the largest of them, and give ``eps_y`` of what they are.

    Args:
        eps: (1, ...) radius for each channel or column, or a number.
        low: (1, ...) smallest valid entry, or a number.
        high: (1, ...) largest valid entry, or a number.
        eps_y: what the wrong classes get of the label; 0 leaves labels as they are.
        gamma: what keeps a little for the most confusing class.
    """

    eps: Tensor | float
    low: Tensor | float
    high: Tensor | float
    eps_y: float = 0.5
    gamma: float = 0.01

    def before_forward(self, run: Run) -> None:
        """Move the inputs."""
        eps, low, high = (torch.as_tensor(one, dtype=run.inputs.dtype).to(run.device) for one in (self.eps, self.low, self.high))
        run.inputs = towards_confusion(run.model, run.inputs, _largest(run.labels), eps, low, high, run.generator)

    def before_loss(self, run: Run) -> None:
        """Move the labels."""
        if self.eps_y:
            moved = adversarial_labels(run.logits, _largest(run.labels), self.eps_y, self.gamma)
            if run.labels.dim() == 2:
                wrong = moved.scatter(1, _largest(run.labels)[:, None], 0.0)
                moved = (1 - self.eps_y) * run.labels + wrong
            run.labels = moved


def _largest(labels: Tensor) -> Tensor:
    return labels.argmax(dim=1) if labels.dim() == 2 else labels


@treatment
def bilateral(recipe: Recipe, eps: float = 8 / 255, eps_y: float | None = None, gamma: float = 0.01) -> Recipe:
    """Train on inputs moved by one step towards the most confusing class, with labels moved likewise.

    Args:
        recipe: of a classification of images, series or rows of a table.
        eps: radius of the ball, as a share of the range of the channel or column in the training data (paper: 8/255).
        eps_y: what the wrong classes get of the label; 0 moves inputs only. ``None`` takes the paper's 0.5 for ten classes, and
            as large a part of (K - 1) / K for K of them: with 0.5, labels of two classes would say nothing.
        gamma: what keeps a little of it for the most confusing class.

    Raises:
        AssayError: there are no classes, inputs that cannot be moved, or an ``eps_y`` that leaves the label less than its even
            share.
    """
    inputs = recipe.data.train.inputs
    if recipe.data.task != "classification":
        raise AssayError(f"Bilateral training moves inputs towards wrong classes, and {recipe.data.name!r} has no classes.")
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise AssayError(f"Bilateral training moves inputs a little, and those of {recipe.data.name!r} are words: leave it out.")
    most = (recipe.data.num_classes - 1) / recipe.data.num_classes
    eps_y = 0.5 / 0.9 * most if eps_y is None else eps_y
    if not 0 <= eps_y <= most:
        raise AssayError(f"eps_y is {eps_y}: with {recipe.data.num_classes} classes take 0 to {most:.3g}, or labels say nothing.")
    dims = [0, *range(2, inputs.dim())]
    low, high = inputs.amin(dim=dims, keepdim=True), inputs.amax(dim=dims, keepdim=True)
    # After other hooks: what they mix is moved, and it is the last word on the labels.
    return recipe.replace(hooks=(*recipe.hooks, Bilateral(eps * (high - low), low, high, eps_y, gamma)))


# -------------------------------------------------------------------------------------------------------- the claims

_PLAIN, _FGSM, _PGD = "plain", "FGSM", "PGD-7"
_STEP, _SMOOTH, _BOTH = "towards confusion", "towards confusion, smoothed", "bilateral"
_EPS = {"digits": 0.2, "clothes": 0.1}


@dataclass(frozen=True)
class _Attacked(InputHook):
    """Training on the examples of an attack: the usual ways, as controls."""

    attack: Literal["fgsm", "pgd"]
    eps: float

    def before_forward(self, run: Run) -> None:
        """Attack the batch."""
        if self.attack == "fgsm":
            run.inputs = fgsm(run.model, run.inputs, run.labels, eps=self.eps, clip=(0.0, 1.0))
        else:
            run.inputs = pgd(
                run.model,
                run.inputs,
                run.labels,
                eps=self.eps,
                steps=7,
                step_size=self.eps / 4,
                clip=(0.0, 1.0),
                generator=run.generator,
                until_fooled=False,
            )


def _recipes(lab: Lab, kind: str) -> dict[str, Recipe]:
    full = lab.scale == "full"
    data = lab.data({"digits": "mnist" if full else "mnist5k", "clothes": "fashion-mnist"}[kind])
    if not full:
        data = data.subset(*lab.pick(smoke=(200, 100), laptop=(3_000, 1_000), full=(0, 0)))
    plain = Recipe(
        data,
        model=partial(ConvNet, 1, data.num_classes, 28, (8, 16), 64),
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=8, full=20),
        batch_size=32,
        watch=(),
    )
    eps = _EPS[kind]
    step = bilateral(plain, eps=eps, eps_y=0.0)
    return {
        _PLAIN: plain,
        _FGSM: plain.replace(hooks=(_Attacked("fgsm", eps),)),
        _PGD: plain.replace(hooks=(_Attacked("pgd", eps),)),
        _STEP: step,
        # As much off the true class as eps_y = 0.5 takes: a share s of the label spread over all K leaves s (K - 1) / K there.
        _SMOOTH: with_loss(step, partial(F.cross_entropy, label_smoothing=0.5 * data.num_classes / (data.num_classes - 1))),
        _BOTH: bilateral(plain, eps=eps),
    }


def _withstood(lab: Lab, arms: tuple[str, ...]) -> dict[str, float]:
    """Accuracy without and under attacks, and seconds of training, for each arm on digits and clothes."""
    found: dict[str, float] = {}
    count = lab.pick(smoke=20, laptop=300, full=1_000)
    for kind, eps in _EPS.items():
        recipes = _recipes(lab, kind)
        for arm in arms:
            if arm == _PGD and kind == "clothes" and lab.scale != "full":
                continue  # eight times as dear as plain training
            trained: Trained = lab.train(recipes[arm])
            test = trained.recipe.data.subset(test=count).test  # some of every class
            assert isinstance(test.inputs, Tensor)
            strong = robust_accuracy(
                trained.model,
                test.inputs[:count].to(lab.device),
                test.labels[:count].to(lab.device),
                eps=eps,
                steps=lab.pick(smoke=2, laptop=20, full=100),
                restarts=lab.pick(smoke=1, laptop=1, full=5),
                queries=lab.pick(smoke=0, laptop=0, full=5_000),
                clip=(0.0, 1.0),
                generator=lab.generator(4),
            )
            found[f"{arm}, {kind}"] = trained.accuracy()
            found[f"{arm}, {kind}: {CE}"] = Score(strong.under(CE), trained.cost)
            found[f"{arm}, {kind}: {MARGIN}"] = Score(strong.under(MARGIN), trained.cost)
            found[f"{arm}, {kind}: seconds"] = trained.seconds
    return found


_SCALED_DOWN = (
    "3,000 digits of MNIST 5k in a ball of 0.2 and 3,000 clothes of Fashion-MNIST in one of 0.1, and a small LeNet for 8 epochs, "
    "instead of CIFAR-10 and SVHN with a WRN-28-10 for some 200; 300 images attacked by 20 steps instead of 100."
)


@claim(
    "Training on one step from a random start towards the most confusing class withstands gradient ascent of 20 steps, of "
    "cross-entropy and of the margin, on more images than training on fast gradient signs, and is on digits within 10 points of "
    "training for as many epochs on 7 steps of gradient ascent, in less than half the time.",
    expect=(
        *(Higher(f"{_STEP}, {kind}: {attack}", than=f"{_FGSM}, {kind}: {attack}") for kind in _EPS for attack in (CE, MARGIN)),
        Higher(f"{_STEP}, digits: {MARGIN}", than=f"{_PGD}, digits: {MARGIN}", by=-0.10),
        Lower(f"{_STEP}, digits: seconds", than=f"{_PGD}, digits: seconds", times=0.5),
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy under the attack, or seconds",
    needs=("fashion-mnist",),
)
def one_step_is_enough(lab: Lab) -> Measured:
    return _withstood(lab, (_PLAIN, _FGSM, _PGD, _STEP))


@claim(
    "The adversarial label adds to the step: accuracy under gradient ascent of cross-entropy and of the margin is higher than "
    "with the label as it is, and than with a label that is smoothed by as much.",
    expect=tuple(
        Higher(f"{_BOTH}, {kind}: {attack}", than=f"{arm}, {kind}: {attack}")
        for kind in _EPS
        for arm in (_STEP, _SMOOTH)
        for attack in (CE, MARGIN)
    ),
    reported=Reported("CIFAR-10, WRN-28-10, eps 8/255, PGD of 100 steps: accuracy", {_BOTH: 0.637}, where="abstract"),
    scaled_down=_SCALED_DOWN + " The paper does not attack the margin.",
    unit="accuracy under the attack",
    needs=("fashion-mnist",),
)
def adversarial_label_adds(lab: Lab) -> Measured:
    return _withstood(lab, (_STEP, _SMOOTH, _BOTH))
