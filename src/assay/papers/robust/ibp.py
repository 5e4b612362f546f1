"""Interval bound propagation: train a network whose robustness can be proved.

Adversarial training shows a network the worst examples that an attack finds, and nobody knows what a better attack would
find. Here the network is trained on what no attack can exceed. The box of all inputs within eps of an example is pushed
through the network as two tensors, a lower and an upper bound of every activation: an affine layer maps the centre by W and
the radius by |W|, a monotone activation maps both ends. Out come the worst logits that any point of the box could have, and
their cross-entropy is an upper bound of the loss under every attack. The bounds are far too wide on an ordinary network;
trained on them, a network comes to have weights for which they are narrow. It costs about two further passes a step.

Source: Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann and Kohli, "Scalable Verified Training for
Provably Robust Image Classification", ICCV 2019 (arXiv:1810.12715). Sections are the preprint's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack import certified, pgd, robust_accuracy, worst_margins
from assay.attack.balls import Clip, clipped
from assay.attack.worst import MARGIN
from assay.errors import AssayError
from assay.paper import Below, Curve, Higher, Reported, claim
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.train.hooks import InputHook, Run
from assay.train.schedules import steps_at

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


class IBPLoss(nn.Module):
    """Cross-entropy, mixed with the cross-entropy of the worst logits in a box around every input (sec. 3).

    kappa CE(f(x), y) + (1 - kappa) CE(worst logits, y). Training starts with kappa = 1 and a box of size 0; then the box grows
    to ``eps`` while kappa falls to its end, both along straight lines (sec. 4).

    Args:
        model: the network that is trained; bounds go through it in evaluation mode, so that batch normalisation is bounded
            with its running statistics. It must be one that :func:`assay.attack.interval_bounds` gets through.
        num_examples: size of the training set, by which epochs are counted.
        epochs: length of the training.
        eps: half the side of the box at the end, in units of the inputs. The paper trains with somewhat more than it tests
            with: 0.33 on MNIST for 0.3.
        kappa: share of the plain cross-entropy at the end (paper: 1/2).
        warmup: share of the training before the box begins to grow (paper: 2,000 of 60,000 steps on MNIST).
        ramp: share of the training in which it grows (paper: 10,000 of 60,000 steps on MNIST).
        clip: smallest and largest valid input, as ``(0, 1)``: a box ends there.

    Shape: logits (B, C) float, labels (B,) int64 or (B, C) float shares of the classes, inputs (B, ...) that the logits are of
    -> scalar.

    How far the training is, in examples seen, is a buffer and moves in training mode only: ``loss.eval()`` looks at the loss
    without moving it on.
    """

    seen: Tensor

    def __init__(
        self,
        model: nn.Module,
        num_examples: int,
        epochs: int,
        eps: float = 0.1,
        kappa: float = 0.5,
        warmup: float = 1 / 30,
        ramp: float = 1 / 6,
        clip: Clip = None,
    ) -> None:
        super().__init__()
        if eps < 0:
            raise ValueError(f"eps must not be negative, not {eps}")
        if not 0 <= kappa <= 1:
            raise ValueError(f"kappa must be in [0, 1], not {kappa}")
        if warmup < 0 or ramp < 0 or warmup + ramp > 1:
            raise ValueError(f"warmup and ramp are shares of one training, not {warmup} and {ramp}")
        self._model = (model,)  # in a tuple: its parameters are the network's, not the loss's
        self.length = num_examples * epochs
        self.eps, self.kappa, self.warmup, self.ramp, self.clip = eps, kappa, warmup, ramp, clip
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def grown(self) -> float:
        """How much of its way from nothing to ``eps`` the box has grown: in [0, 1]."""
        done = int(self.seen) / self.length - self.warmup
        return min(max(done, 0.0) / self.ramp, 1.0) if self.ramp else float(done >= 0)

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        grown = self.grown()
        if self.training:
            self.seen += len(inputs)
        fit = F.cross_entropy(logits, labels)
        if not grown:
            return fit
        worst = worst_logits(self._model[0], inputs, labels, grown * self.eps, self.clip)
        kappa = 1 - grown * (1 - self.kappa)
        # Cross-entropy of the worst logits, since the label's own is 0.
        return kappa * fit + (1 - kappa) * worst.logsumexp(dim=1).mean()


def worst_logits(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, clip: Clip = None) -> Tensor:
    """Of every class, the most by which its logit can exceed the label's within ``eps`` of each input (sec. 3).

    The last linear layer is merged with the difference ("elision"), and 0 stands for the label: (B, C).

    Args:
        model: maps inputs to logits (B, C).
        inputs: (B, ...) float.
        labels: (B,) int64, or (B, C) float shares, whose mean logit is then taken off.
        eps: largest change of an entry.
        clip: smallest and largest valid input.
    """
    return worst_margins(model, clipped(inputs - eps, clip), clipped(inputs + eps, clip), labels)


def verified_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, clip: Clip = None) -> float:
    """Share of inputs that are classified as labelled whatever happens to them, no entry changing by more than ``eps``."""
    return certified(model, inputs, labels, eps=eps, clip=clip).double().mean().item()


@treatment
def ibp(recipe: Recipe, eps: float = 0.1, kappa: float = 0.5, warmup: float = 0.1, ramp: float = 0.5) -> Recipe:
    """Train for robustness that can be proved, against changes of every entry of the input by at most ``eps``.

    Warm-up and growth take larger shares than in the paper, whose trainings are much longer: it is the number of steps in
    which the box grows that must not be small.

    Args:
        recipe: a classifier of numbers: images, series, tables.
        eps: in units of the inputs as the network takes them.
        kappa: share of the plain cross-entropy at the end.
        warmup: share of the training before the box begins to grow.
        ramp: share of the training in which it grows.
    """
    inputs = recipe.data.train.inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise AssayError("IBP moves inputs by small amounts, and words have none: it is for images, series and tables.")
    # Pixels end somewhere; columns of a table need not.
    clip = (float(inputs.min()), float(inputs.max())) if inputs.dim() == 4 else None
    # The length is that of the training when it begins: another treatment may still change it.
    loss = per_example(IBPLoss, eps=eps, kappa=kappa, warmup=warmup, ramp=ramp, clip=clip)
    return with_loss(recipe, loss)


# ------------------------------------------------------------------------------------------------------------ claims


def small_network(in_channels: int = 1, num_classes: int = 10, size: int = 28, width: float = 1.0) -> nn.Sequential:
    """The paper's small network: convolutions of 16 and 32 planes (4x4, strides 2 and 1, no padding), 100 hidden units.

    Args:
        in_channels: channels of the input.
        num_classes: number of logits.
        size: height and width of the input.
        width: factor on planes and hidden units.
    """
    first, second, hidden = (round(width * units) for units in (16, 32, 100))
    side = (size - 4) // 2 + 1 - 3
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(first, second, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * side**2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


@dataclass(frozen=True)
class _Adversarial(InputHook):
    """Adversarial training (Madry et al. 2018): the batch is replaced by what projected gradient ascent makes of it."""

    eps: float
    steps: int

    def before_forward(self, run: Run) -> None:
        run.inputs = pgd(
            run.model,
            run.inputs,
            run.labels,
            eps=self.eps,
            steps=self.steps,
            clip=(0, 1),
            generator=run.generator,
            until_fooled=False,
        )


def _plain(lab: Lab, name: str) -> Recipe:
    data = lab.data(name)
    few = lab.pick(smoke=(300, 100), laptop=(3000, 1000), full=None)
    return Recipe(
        data if few is None else data.subset(train=few[0], test=few[1], seed=lab.seed),
        model=partial(small_network, width=lab.pick(smoke=0.25, laptop=0.5, full=1.0)),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=partial(steps_at, at=(2 / 3, 7 / 8), gamma=0.3),
        epochs=lab.pick(smoke=2, laptop=12, full=100),
        batch_size=lab.pick(smoke=50, laptop=50, full=100),
        watch=(),
    )


def _provable(lab: Lab, plain: Recipe, eps: float) -> Recipe:
    # Somewhat more than is tested with, as in the paper.
    return ibp(plain, eps=1.1 * eps, **lab.pick(smoke={}, laptop={}, full={"warmup": 1 / 30, "ramp": 1 / 6}))


def _test(lab: Lab, data: Dataset) -> tuple[Tensor, Tensor]:
    split = data.test
    assert isinstance(split.inputs, Tensor)
    return split.inputs.to(lab.device), split.labels.to(lab.device)


def _measure(lab: Lab, arm: str, trained: Trained, eps: float) -> dict[str, float | Curve]:
    """Clean, attacked and proved accuracy; the proved one by eps as a line."""
    inputs, labels = _test(lab, trained.recipe.data)
    few = slice(lab.pick(smoke=20, laptop=300, full=10_000))
    steps, queries = lab.pick(smoke=(5, 10), laptop=(20, 100), full=(200, 1000))
    found = robust_accuracy(
        trained.model,
        inputs[few],
        labels[few],
        eps=eps,
        steps=steps,
        restarts=1,
        queries=queries,
        clip=(0, 1),
        generator=lab.generator(),
    )
    sizes = [eps * tenth / 10 for tenth in range(0, 21, 2)]
    proved = [verified_accuracy(trained.model, inputs, labels, size, (0, 1)) for size in sizes]
    return {
        f"{arm}: proved": Curve(
            proved, x=sizes, value=proved[5], cost=trained.cost, x_name="eps", y_name="share of test images proved"
        ),
        f"{arm}: clean": trained.accuracy(),
        f"{arm}: PGD, margin": found.under(MARGIN),
        f"{arm}: strongest attack": found.worst,
    }


def _three(lab: Lab, name: str, eps: float) -> dict[str, float | Curve]:
    plain = _plain(lab, name)
    recipes = {
        "cross-entropy": plain,
        "adversarial training": plain.replace(hooks=(_Adversarial(eps, lab.pick(smoke=2, laptop=5, full=7)),)),
        "IBP": _provable(lab, plain, eps),
    }
    arms: dict[str, float | Curve] = {}
    for arm, recipe in recipes.items():
        arms |= _measure(lab, arm, lab.train(recipe), eps)
    return arms


_SCALED_DOWN = (
    "3,000 training images, 12 epochs of batches of 50 and the paper's small network at half its width instead of 60,000 images, "
    "100 epochs and large networks; attacks with 20 steps on 300 test images; the box grows over half of the training."
)


@claim(
    "On MNIST with eps 0.1, a network that is trained by IBP is proved right on 50 points more of the test images than the same "
    "network trained with cross-entropy or adversarially, by the same bounds, for at most five points of clean accuracy.",
    expect=(
        Higher("IBP: proved", than="cross-entropy: proved", by=0.5),
        Higher("IBP: proved", than="adversarial training: proved", by=0.5),
        Higher("IBP: clean", than="cross-entropy: clean", by=-0.05),
    ),
    reported=Reported(
        "MNIST, eps 0.1, medium network: accuracy",
        {"IBP: clean": 0.9894, "IBP: proved": 0.9708},
        "README of the authors' repository",
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy on test images",
)
def proves_where_adversarial_training_does_not(lab: Lab) -> Measured:
    return _three(lab, "mnist5k" if lab.scale != "full" else "mnist", 0.1)


@claim(
    "On Fashion-MNIST with eps 0.05, a network that is trained by IBP is proved right on 30 points more of the test images than "
    "the same network trained with cross-entropy or adversarially, and resists the strongest of three attacks as often as the "
    "adversarially trained one, or at most ten points less.",
    expect=(
        Higher("IBP: proved", than="cross-entropy: proved", by=0.3),
        Higher("IBP: proved", than="adversarial training: proved", by=0.3),
        Higher("IBP: strongest attack", than="adversarial training: strongest attack", by=-0.1),
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy on test images",
    needs=("fashion-mnist",),
)
def proves_on_clothes(lab: Lab) -> Measured:
    return _three(lab, "fashion-mnist", 0.05)


@claim(
    "The box must grow: with its full size and half the weight on the worst case from the first step on, IBP on MNIST with eps "
    "0.2 proves at least ten points fewer of the test images.",
    expect=Higher("box that grows", than="full box from the start", by=0.1),
    scaled_down=_SCALED_DOWN,
    unit="share of test images proved",
)
def box_must_grow(lab: Lab) -> Measured:
    eps = 0.2
    plain = _plain(lab, "mnist5k" if lab.scale != "full" else "mnist")
    runs = {
        "box that grows": lab.train(_provable(lab, plain, eps)),
        "full box from the start": lab.train(ibp(plain, eps=1.1 * eps, warmup=0, ramp=0)),
    }
    arms: dict[str, float | Curve] = {}
    for arm, trained in runs.items():
        inputs, labels = _test(lab, trained.recipe.data)
        arms[arm] = verified_accuracy(trained.model, inputs, labels, eps, (0, 1))
        arms[f"{arm}: clean"] = trained.accuracy()
    return arms


@claim(
    "On the network of the first claim, merging the last layer with the difference of two logits never makes a bound wider (by "
    "more than rounding), and proves at least one point more of the test images than the bounds of the logits themselves do.",
    expect=(
        Higher("with elision", than="without", by=0.01),
        Below("share of bounds that elision widens", 1e-6),
    ),
    scaled_down=_SCALED_DOWN,
    unit="share of test images proved",
)
def elision_tightens(lab: Lab) -> Measured:
    eps = 0.1
    trained = lab.train(_provable(lab, _plain(lab, "mnist5k" if lab.scale != "full" else "mnist"), eps))
    inputs, labels = _test(lab, trained.recipe.data)
    bounds = {}
    with torch.no_grad():
        for arm, elide in {"with elision": True, "without": False}.items():
            parts = [
                worst_margins(trained.model, (few - eps).clamp_min(0), (few + eps).clamp_max(1), some, elide=elide)
                for few, some in zip(inputs.split(500), labels.split(500), strict=True)
            ]
            bounds[arm] = torch.cat(parts)  # (N, C)
    others = ~F.one_hot(labels, bounds["without"].shape[1]).bool()
    arms: dict[str, float | Curve] = {}
    for arm, bound in bounds.items():
        arms[arm] = (bound.masked_fill(~others, -math.inf) < 0).all(dim=1).double().mean().item()
    wider = bounds["with elision"] > bounds["without"] + 1e-4
    arms["share of bounds that elision widens"] = wider[others].double().mean().item()
    return arms
