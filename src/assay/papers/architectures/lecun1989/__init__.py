"""The first convolutional network trained end to end on a real task, and what thirty-three years of habits add to it.

In 1989 a network of 9,760 weights read the digits of American zip codes and missed 5 % of them. Its ideas are today's:
planes of units that share their weights, strides, and gradients through every layer. Rebuilt in 2022, it was then taken
up a ladder, one modern habit a step (cross-entropy, AdamW, shifted images, ReLU with dropout), and the error fell by
more than half with not one weight added. The rungs are the reproduction's: from AdamW on, each also trains for more passes.

What differs from a convolution of today: every unit has a bias of its own, the frame around a layer is -1 (background),
planes of the second layer see only some of the first, and one example makes one step, always in the same order.

Sources: LeCun et al., "Backpropagation Applied to Handwritten Zip Code Recognition", Neural Computation 1(4), 1989;
Karpathy, "Deep Neural Nets: 33 years ago and 33 years from now", 2022, whose reproduction settles what the paper leaves
open: plain SGD for a diagonal second-order step, blocks for the unpublished wiring, 2.4 / sqrt(fan-in) for the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.paper import Below, Configuration, Cost, Curve, Higher, Lower, Reported, claim
from assay.papers.architectures.lecun1989.replicas import draws, train_replicas
from assay.recipe import Recipe, treatment
from assay.train.schedules import linear

if TYPE_CHECKING:
    from assay.data import Dataset, Split
    from assay.lab import Lab

__all__ = ["LeCun1989", "Stage", "draws", "modern_habits", "shift_by_pixels", "time_travel", "train_replicas"]


class UnitBiasConv(nn.Module):
    """A 5x5 convolution with stride 2 whose units share weights but not biases; the frame around its input is -1.

    Args:
        reads: for each group of output planes the input planes that it sees; the groups are equally large.
        planes: output planes.
        size: height and width of the output.

    Shape: (N, C, 2 size, 2 size) -> (N, planes, size, size).
    """

    def __init__(self, reads: Sequence[Sequence[int]], planes: int, size: int) -> None:
        super().__init__()
        self.reads = tuple(tuple(group) for group in reads)
        self.weight = nn.Parameter(torch.empty(planes, len(self.reads[0]), 5, 5))
        self.bias = nn.Parameter(torch.empty(planes, size, size))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (2, 2, 2, 2), value=-1.0)
        seen = x[:, [plane for group in self.reads for plane in group]]
        return F.conv2d(seen, self.weight, stride=2, groups=len(self.reads)) + self.bias


class LeCun1989(nn.Module):
    """The network of 1989: 1,256 units, 64,660 connections, 9,760 parameters.

    Args:
        activation: of the hidden layers, ``"tanh"`` (1989) or ``"relu"``.
        head: ``"tanh"`` for outputs in (-1, 1) (1989), ``"linear"`` for logits.
        dropout: probability with which a unit of H2 is dropped on its way to H3; 1989: 0.
        generator: of the initial weights; the global one by default.

    Shape: (N, 1, 16, 16) in [-1, 1] -> (N, 10).
    """

    def __init__(
        self,
        activation: Literal["tanh", "relu"] = "tanh",
        head: Literal["tanh", "linear"] = "tanh",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.head = activation, head
        self.h1 = UnitBiasConv([[0]], planes=12, size=8)
        a, b, c = range(4), range(4, 8), range(8, 12)
        self.h2 = UnitBiasConv([[*a, *b], [*b, *c], [*a, *c]], planes=12, size=4)
        self.dropout = nn.Dropout(dropout)
        self.h3 = nn.Linear(192, 30)
        self.output = nn.Linear(30, 10)
        for layer in (self.h1, self.h2, self.h3, self.output):
            bound = 2.4 / math.sqrt(layer.weight[0].numel())  # weight[0] is one unit's: its fan-in
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        if head == "tanh":
            nn.init.constant_(self.output.bias, -1.0)  # nine targets of ten are -1

    def forward(self, images: Tensor) -> Tensor:
        squash = torch.tanh if self.activation == "tanh" else torch.relu
        x = squash(self.h1(images))  # (N, 12, 8, 8)
        x = squash(self.h2(x))  # (N, 12, 4, 4)
        x = squash(self.h3(self.dropout(x.flatten(1))))  # (N, 30)
        x = self.output(x)
        return torch.tanh(x) if self.head == "tanh" else x


#: The network by its numbers (its multiply-adds are the connections but for those of the biases).
CONFIGURATIONS = {"LeCun1989()": Configuration((1, 16, 16), parameters=9760, macs=63_660, layers=4, activations=960)}


@dataclass(frozen=True)
class Stage:
    """One rung of the ladder from 1989 to 2022: all that is needed to train there. Batch size 1, fixed order throughout.

    Args:
        name: what the rung adds.
        passes: passes over the training set.
        optimizer: plain SGD, or AdamW with torch's defaults (weight decay 0.01, betas 0.9 and 0.999).
        rates: learning rate in the first and in the last pass, with a straight line between them.
        activation: of the hidden layers.
        head: ``"tanh"`` trains on targets of -1 and 1 with the squared error, ``"linear"`` with cross-entropy.
        shift: images are shifted by up to so many pixels either way (circularly), anew at every presentation.
        dropout: probability with which a unit of H2 is dropped.
    """

    name: str
    passes: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    rates: tuple[float, float] = (0.03, 0.03)
    activation: Literal["tanh", "relu"] = "tanh"
    head: Literal["tanh", "linear"] = "tanh"
    shift: Literal[0, 1] = 0
    dropout: float = 0.0

    def model(self, generator: torch.Generator | None = None) -> LeCun1989:
        """A fresh network of this rung."""
        return LeCun1989(self.activation, self.head, self.dropout, generator)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean squared distance to targets of -1 and 1, or cross-entropy: (N, 10), (N,) -> scalar."""
        if self.head == "linear":
            return F.cross_entropy(outputs, labels)
        return F.mse_loss(outputs, 2.0 * F.one_hot(labels, 10) - 1.0)

    def rate(self, done: int, passes: int | None = None) -> float:
        """The learning rate after ``done`` passes of ``passes``."""
        first, last = self.rates
        return first + (last - first) * done / max(1, (self.passes if passes is None else passes) - 1)

    def make_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """torch's optimizer for this rung, at the first pass's rate."""
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        return kind(net.parameters(), lr=self.rates[0])


_BASE = Stage("1989 recipe", passes=23)
_CROSS_ENTROPY = replace(_BASE, name="+ cross-entropy", head="linear", rates=(0.01, 0.01))
_ADAMW = replace(_CROSS_ENTROPY, name="+ AdamW", optimizer="adamw", rates=(3e-4, 1e-4), passes=46)
_SHIFTS = replace(_ADAMW, name="+ shifted images", shift=1, passes=60)
_MODERN = replace(_SHIFTS, name="modern recipe", activation="relu", dropout=0.25, passes=80)
_LADDER = (_BASE, _CROSS_ENTROPY, _ADAMW, _SHIFTS, _MODERN)


def time_travel(stage: int) -> Stage:
    """Rung 0 (1989) to 4 (2022: ReLU and dropout) of the ladder; each keeps what the ones below it brought."""
    if not 0 <= stage < len(_LADDER):
        raise ValueError(f"the ladder has the rungs 0 to {len(_LADDER) - 1}, not {stage}")
    return _LADDER[stage]


# ---------------------------------------------------------------------------------------------------- on your own images


def shift_by_pixels(images: Tensor, generator: torch.Generator, pixels: int = 1) -> Tensor:
    """Each image of (N, C, H, W) shifted circularly by its own -pixels..pixels rows and columns."""
    count, _, height, width = images.shape
    dy, dx = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator, device=images.device)
    rows = (torch.arange(height, device=images.device) - dy) % height  # (N, H)
    columns = (torch.arange(width, device=images.device) - dx) % width  # (N, W)
    every = torch.arange(count, device=images.device)[:, None, None]
    # Indexing on both sides of the slice puts the indexed axes first: (N, H, W, C).
    return images[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@treatment
def modern_habits(recipe: Recipe, rate: float = 3e-4, pixels: int = 1) -> Recipe:
    """Rungs 1 to 3 for any image classifier: cross-entropy, AdamW whose rate falls to a third, shifted images.

    Rung 4, ReLU and dropout, changes the network and is left to the recipe's own. The network's outputs must be logits:
    ``LeCun1989(head="linear")``, not its tanh outputs of 1989.

    Args:
        recipe: what to modernise; its data must be images.
        rate: AdamW's first learning rate. The reproduction uses 3e-4 with one example a step; larger batches bear more.
        pixels: largest shift, in pixels. The reproduction uses 1, on images of 16x16.
    """
    if len(recipe.data.input_shape) != 3:
        raise AssayError(f"modern_habits shifts images, but the inputs of {recipe.data.name!r} are none: give it images.")
    return recipe.replace(
        loss=F.cross_entropy,
        optimizer=partial(torch.optim.AdamW, lr=rate),
        schedule=partial(linear, final=1 / 3),
        augment=partial(shift_by_pixels, pixels=pixels),
    )


# ---------------------------------------------------------------------------------------------------- claims


def climb(
    data: Dataset,
    stage: Stage,
    seeds: tuple[int, ...],
    watch: tuple[int, ...],
    progress: Callable[[float, float, str], None] | None = None,
) -> dict[str, Tensor]:
    """Train one network a seed for ``watch[-1]`` passes, all together.

    Returns:
        The fraction missed: ``test_error`` (S, len(watch)) after each watched pass, ``train_error`` (S,) at the end.
    """
    nets = [stage.model(torch.Generator().manual_seed(seed)) for seed in seeds]
    test_errors = []

    def look(done: int) -> None:
        if done in watch:
            test_errors.append(_errors(nets, data.test))
        if progress is not None:
            progress(done, watch[-1], f"{stage.name}, {len(data.train)} digits: pass {done} of {watch[-1]}")

    inputs = data.train.inputs
    assert isinstance(inputs, Tensor)  # images, not texts
    train_replicas(nets, inputs, data.train.labels, stage, seeds, passes=watch[-1], after_pass=look)
    return {"test_error": torch.stack(test_errors, dim=1), "train_error": _errors(nets, data.train)}


@torch.no_grad()
def _errors(nets: Sequence[LeCun1989], split: Split) -> Tensor:
    """Fraction of a split that each network misses: (S,) float64."""
    assert isinstance(split.inputs, Tensor)
    parts = split.inputs.split(250)
    classes = torch.stack([torch.cat([net.eval()(part).argmax(dim=1) for part in parts]) for net in nets])
    return (classes != split.labels).double().mean(dim=1)


def _passes(lab: Lab, rung: int) -> int:
    own = time_travel(rung).passes
    return lab.pick(smoke=max(1, own // 20), laptop=own, full=own)


def _climbed(lab: Lab, data: Dataset, rung: int, passes: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Which passes were watched, and what :func:`climb` returned for this block's seeds."""
    watch = tuple(sorted({*range(passes, 0, -max(1, passes // 12)), _passes(lab, rung)}))
    return watch, lab.remember(climb, data=data, stage=time_travel(rung), seeds=lab.seeds, watch=watch)


def _curves(lab: Lab, data: Dataset, rung: int, passes: int | None = None) -> dict[int, Curve]:
    """Test error against passes, one curve a seed."""
    watch, result = _climbed(lab, data, rung, _passes(lab, rung) if passes is None else passes)
    cost = Cost(float(result["seconds"]) / len(lab.seeds), parameters=9760, flops=2 * 63_660)
    return {
        seed: Curve(row.tolist(), watch, cost=cost, x_name="passes over the training set", y_name="test error")
        for seed, row in zip(lab.seeds, result["test_error"], strict=True)
    }


def _by_seed(arms: dict[str, dict[int, Curve]]) -> dict[int, dict[str, float | Curve]]:
    seeds = next(iter(arms.values()))
    return {seed: {arm: curves[seed] for arm, curves in arms.items()} for seed in seeds}


def _ladder(lab: Lab, data: Dataset) -> dict[int, dict[str, float | Curve]]:
    """Test error of the five rungs, and of 1989's with as many passes as the last one."""
    steps = {time_travel(rung).name: _curves(lab, data, rung) for rung in range(5)}
    return _by_seed({**steps, "1989 recipe, 80 passes": _curves(lab, data, 0, passes=_passes(lab, 4))})


def _digits(lab: Lab, name: str) -> Dataset:
    """16x16 digits in [-1, 1]: few on a laptop, all at full scale."""
    data = lab.data(name)
    if name == "usps":
        data = data.rescale(-1, 1)
    train = lab.pick(smoke=100, laptop=2000, full=len(data.train))
    return data.subset(train=train, test=lab.pick(smoke=200, laptop=len(data.test), full=len(data.test)))


_REPRODUCED = {
    "1989 recipe": 0.0409,
    "+ cross-entropy": 0.0438,
    "+ AdamW": 0.0359,
    "+ shifted images": 0.0219,
    "modern recipe": 0.0159,
}
_REPRODUCTION = Reported(
    "reproduction, 7,291 MNIST digits of 16x16: test error", _REPRODUCED, "lecun1989-repro, repro.py and modern.py"
)
_PAPER = Reported("1989 paper, 7,291 zip-code digits: test error", {"1989 recipe": 0.05}, "results after 23 passes")
_HALVED = (
    Lower("modern recipe", than="1989 recipe", times=0.6),
    Lower("modern recipe", than="1989 recipe, 80 passes", times=0.6),
)
_FEWER = "2,000 training digits instead of 7,291; all passes, one example a step, as reported."


@claim(
    "With the same 9,760 parameters the modern recipe has at most 0.6 times the test error of the recipe of 1989, "
    "also when that is given as many passes.",
    expect=_HALVED,
    reported=(_REPRODUCTION, _PAPER),
    scaled_down=_FEWER,
    unit="test error",
    block=5,
)
def ladder_halves_error(lab: Lab) -> dict[int, dict[str, float | Curve]]:
    return _ladder(lab, _digits(lab, "digits16"))


@claim(
    "On digits of the full MNIST, as in the reproduction, the modern recipe has at most 0.6 times the test error of 1989's.",
    expect=_HALVED,
    reported=_REPRODUCTION,
    scaled_down=_FEWER,
    unit="test error",
    block=5,
    needs=("mnist16",),
)
def ladder_halves_error_mnist16(lab: Lab) -> dict[int, dict[str, float | Curve]]:
    return _ladder(lab, _digits(lab, "mnist16"))


@claim(
    "On the zip-code digits of 1989 themselves the modern recipe has at most 0.6 times the test error of 1989's.",
    expect=_HALVED,
    reported=(_PAPER, _REPRODUCTION),
    scaled_down=_FEWER,
    unit="test error",
    block=5,
    needs=("usps",),
)
def ladder_halves_error_usps(lab: Lab) -> dict[int, dict[str, float | Curve]]:
    return _ladder(lab, _digits(lab, "usps"))


@claim(
    "Cross-entropy in place of the squared error fits every training digit but takes no more than 0.5 points off the "
    "test error; of all rungs, each with the passes that the reproduction gives it, the shifted images take off most.",
    expect=(
        Below("training error with cross-entropy", 0.001),
        Higher("+ cross-entropy", than="1989 recipe", by=-0.005),
        Higher("gain of shifted images", than="gain of cross-entropy"),
        Higher("gain of shifted images", than="gain of AdamW"),
        Higher("gain of shifted images", than="gain of ReLU and dropout"),
    ),
    reported=_REPRODUCTION,
    scaled_down=_FEWER,
    unit="error",
    block=5,
)
def loss_swap_only_fits(lab: Lab) -> dict[int, dict[str, float | Curve]]:
    data = _digits(lab, "digits16")
    arms = _ladder(lab, data)
    _, fitted = _climbed(lab, data, 1, _passes(lab, 1))
    for curves, missed in zip(arms.values(), fitted["train_error"].tolist(), strict=True):
        error = {name: curve.number for name, curve in curves.items() if isinstance(curve, Curve)}
        names = [time_travel(rung).name for rung in range(5)]
        for rung, label in enumerate(("cross-entropy", "AdamW", "shifted images", "ReLU and dropout"), start=1):
            curves[f"gain of {label}"] = error[names[rung - 1]] - error[names[rung]]
        curves["training error with cross-entropy"] = missed
    return arms


def _more_data(lab: Lab, few: Dataset, more: Dataset) -> dict[int, dict[str, float | Curve]]:
    # As many passes for the old recipe on more digits as for the modern one: in the reproduction it had 100 and 80.
    base, fed, modern = _curves(lab, few, 0), _curves(lab, more, 0, passes=_passes(lab, 4)), _curves(lab, few, 4)
    return _by_seed({"1989 recipe": base, "1989 recipe, more digits": fed, "modern recipe": modern})


_MORE = Reported(
    "reproduction, MNIST digits, 50,000 instead of 7,291: test error",
    {"1989 recipe": 0.0409, "1989 recipe, more digits": 0.0274, "modern recipe": 0.0159},
    "repro.py, modern.py; with more digits 100 passes, as the blog post says",
)


@claim(
    "Four times as many training digits, and as many passes, take less off the test error of the 1989 recipe than the modern "
    "recipe does.",
    expect=Lower("modern recipe", than="1989 recipe, more digits"),
    reported=_MORE,
    scaled_down="1,000 and 4,000 training digits instead of 7,291 and 50,000.",
    unit="test error",
    block=5,
)
def more_data_less_than_recipe(lab: Lab) -> dict[int, dict[str, float | Curve]]:
    data = lab.data("digits16")
    few, more = lab.pick(smoke=(100, 200), laptop=(1000, 4000), full=(1000, 4000))
    test = lab.pick(smoke=200, laptop=1000, full=1000)
    return _more_data(lab, data.subset(train=few, test=test), data.subset(train=more, test=test))


@claim(
    "Seven times as many training digits, and as many passes, take less off the test error of the 1989 recipe than the modern "
    "recipe does.",
    expect=Lower("modern recipe", than="1989 recipe, more digits"),
    reported=_MORE,
    scaled_down="2,000 and 14,000 digits of the full MNIST instead of 7,291 and 50,000.",
    unit="test error",
    block=5,
    needs=("mnist16", "mnist16-50k"),
)
def more_data_less_than_recipe_mnist16(lab: Lab) -> dict[int, dict[str, float | Curve]]:
    few = _digits(lab, "mnist16")
    more = lab.data("mnist16-50k")
    size = lab.pick(smoke=200, laptop=14_000, full=len(more.train))
    return _more_data(lab, few, more.subset(train=size, test=len(few.test)))
