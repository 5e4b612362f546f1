"""Optimisation for deep learning: the start, the optimizer, the rate, and where it ends, each put to a fair comparison.

The survey sorts what makes a network trainable into three questions. Does the gradient arrive? Each layer multiplies the
signal by a factor; in a plain network of ReLUs with weights of variance c / n the standard deviation changes by (c / 2)^(1/2) a
layer, forwards and backwards, so that thirty layers with c = 1 leave 3e-5 of it. The remedies are starts with c = 2 (He),
orthogonal matrices (all singular values of the product stay alike), starts scaled on data (LSUV), and normalisation.
How fast does it converge? SGD, momentum, and adaptive methods, which give every weight a rate of its own; and how the rate
should fall. How good is the end? Wide networks have no bad basins: from any start they reach a training loss near zero.

Such advice is worth little without tuning: with default rates anything wins. So here every optimizer gets a grid of rates of
its own and the same number of trials, the rate is chosen on held-out data, and all trials of a grid are trained side by side
(:mod:`assay.train.side_by_side`), which costs little more than a few trainings:

    net = partial(mlp, 784, 10)
    found = compare_optimizers(net, (x, y), valid=(x2, y2), test=(x3, y3))
    print(found.table())

Sources: Sun, "Optimization for deep learning: theory and algorithms", 2019 (sections 4 to 6); He et al., ICCV 2015; Saxe,
McClelland and Ganguli, ICLR 2014 (orthogonal starts); Mishkin and Matas, "All you need is a good init", ICLR 2016 (LSUV).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import mlp
from assay.nn.landscape import loss_barrier
from assay.paper import Above, Below, Close, Cost, Curve, Higher, Lower, Score, claim
from assay.papers.training.optimization_survey.optimizers import (
    OPTIMIZERS,
    RATES,
    Examples,
    adam,
    compare_optimizers,
    race,
    trials_of,
)
from assay.papers.training.optimization_survey.starts import (
    Signal,
    Start,
    StartKind,
    jacobian_singular_values,
    scale_on_data_,
    signal,
    signal_propagation,
    start,
    start_,
)
from assay.train.compare import Trials
from assay.train.schedules import cosine, inverse_sqrt
from assay.train.side_by_side import MakeSchedule, train_side_by_side

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured

__all__ = [
    "OPTIMIZERS",
    "RATES",
    "Signal",
    "Start",
    "adam",
    "compare_optimizers",
    "jacobian_singular_values",
    "race",
    "scale_on_data_",
    "signal",
    "signal_propagation",
    "start",
    "start_",
]

# -------------------------------------------------------------------------------------------------------- the claims


def _net(in_features: int, hidden: tuple[int, ...], kind: StartKind = "he", norm: bool = False) -> nn.Sequential:
    """A perceptron of ReLUs for ten classes; with ``norm`` batch normalisation before every ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width, units in pairwise((in_features, *hidden)):
        layers += [nn.Linear(width, units), *([nn.BatchNorm1d(units)] if norm else []), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(hidden[-1], 10))
    start_(net, kind)
    return net


def _digits(lab: Lab) -> Dataset:
    return _small(lab, lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist")))


def _small(lab: Lab, data: Dataset) -> Dataset:
    """With a fifth of the training examples held out, on which every rate is chosen."""
    if lab.scale == "smoke":
        data = data.subset(train=300, test=100)
    return data.holdout(0.2, seed=lab.seed)


def _features(data: Dataset) -> int:
    return math.prod(data.input_shape)


def _splits(data: Dataset) -> list[Examples]:
    splits = []
    for split in (data.train, data.valid, data.test):
        assert isinstance(split.inputs, Tensor)
        splits.append((split.inputs, split.labels))
    return splits


def _race(lab: Lab, data: Dataset, models: Sequence[Callable[[], nn.Module]], steps: int, **more: object) -> dict[str, Tensor]:
    train, valid, test = _splits(data)
    given = {"train": train, "valid": valid, "test": test, "steps": steps, "batch_size": 64, "seed": lab.seed}
    return lab.remember(race, models=tuple(models), **{**given, **more})


_Name = TypeVar("_Name", bound=str)


def _grid(names: Iterable[_Name], rates: Mapping[_Name, Sequence[float]]) -> list[tuple[_Name, float]]:
    return [(name, rate) for name in names for rate in rates[name]]


_UNIT_ACCURACY = "test accuracy"
_STARTS: tuple[StartKind, ...] = ("naive", "lecun", "xavier", "he", "orthogonal")


@claim(
    "In a plain network of 50 layers of ReLUs the signal keeps its size within 5% a layer from He's start, an orthogonal one and "
    "one scaled on data, and loses 20 to 40% a layer from LeCun's or Xavier's.",
    expect=(
        Above("he", 0.95),
        Below("he", 1.05),
        Above("orthogonal", 0.95),
        Below("orthogonal", 1.05),
        Above("lsuv", 0.95),
        Below("lsuv", 1.05),
        Above("lecun", 0.6),
        Below("lecun", 0.8),
        Above("xavier", 0.6),
        Below("xavier", 0.8),
    ),
    scaled_down="64 units a layer; 256 digits of MNIST. The factor is the mean over 49 layers.",
    unit="factor of the signal's standard deviation a layer",
)
def starts_keep_the_signal(lab: Lab) -> Measured:
    inputs, labels = _splits(_digits(lab))[0]
    inputs, labels = inputs[:256], labels[:256]
    arms: dict[str, float | Curve] = {}
    for kind in (*_STARTS, "lsuv"):
        net = mlp(inputs[0].numel(), 10, (64,) * lab.pick(smoke=12, laptop=50, full=50))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lab.seed)
            start_(net, kind, inputs)
        seen = signal_propagation(net, inputs, labels)
        sizes = seen.forward.clamp_min(1e-38).log10()
        arms[kind] = Curve(sizes.tolist(), value=seen.growth()[0], x_name="layer", y_name="signal, as a power of ten")
    return arms


@claim(
    "A plain network of 30 layers of ReLUs learns from He's start and from an orthogonal one (test accuracy above 0.8) and not "
    "from LeCun's, Xavier's or small weights of one size (below 0.3), each with the best of three rates; with batch "
    "normalisation all of them end within 5 points of He's.",
    expect=(
        Above("he", 0.8),
        Above("orthogonal", 0.8),
        Below("naive", 0.3),
        Below("lecun", 0.3),
        Below("xavier", 0.3),
        Close("naive, batch norm", to="he, batch norm", within=0.05),
        Close("lecun, batch norm", to="he, batch norm", within=0.05),
        Close("xavier, batch norm", to="he, batch norm", within=0.05),
        Close("orthogonal, batch norm", to="he, batch norm", within=0.05),
    ),
    scaled_down="MNIST 5k and 64 units a layer; 600 steps of SGD with momentum in batches of 32; the rate is chosen on a "
    "held-out fifth.",
    unit=_UNIT_ACCURACY,
)
def the_start_decides_how_deep(lab: Lab) -> Measured:
    data = _digits(lab)
    depth, steps = lab.pick(smoke=(6, 20), laptop=(30, 600), full=(50, 3000))
    cells = _grid(_STARTS, dict.fromkeys(_STARTS, (0.003, 0.01, 0.03)))
    arms: dict[str, float | Curve] = {}
    for norm in (False, True):
        nets = [partial(_net, _features(data), (64,) * depth, kind, norm) for kind, _ in cells]
        makers = tuple(partial(torch.optim.SGD, lr=rate, momentum=0.9) for _, rate in cells)
        seen = _race(lab, data, nets, steps, optimizers=makers, batch_size=32)
        found = Trials(tuple(trials_of([kind for kind, _ in cells], [rate for _, rate in cells], lab.seed, seen)))
        for kind in found.arms:
            arms[f"{kind}, batch norm" if norm else kind] = _score(found, kind, lab.seed)
    return arms


def _score(found: Trials, arm: str, seed: int) -> Score:
    """Test quality of the chosen trial, at the price of all trials of the arm."""
    trials = found.of(arm, seed)
    cost = Cost(seconds=sum(trial.seconds for trial in trials))
    return Score(found.chosen(arm, seed).test, cost)


# One race of 8 optimizers x 7 rates for each task, which three claims look at.


def _tasks(lab: Lab) -> dict[str, Dataset]:
    """Digits and clothes; at smoke scale two sets that are always there."""
    if lab.scale == "smoke":
        return {"digits": _digits(lab), "clothes": _small(lab, lab.data("digits"))}
    clothes = lab.data("fashion-mnist")
    return {"digits": _digits(lab), "clothes": _small(lab, clothes.subset(4000, 2000) if lab.scale == "laptop" else clothes)}


def _optimizer_race(lab: Lab, data: Dataset) -> tuple[Trials, dict[str, Tensor]]:
    cells = _grid(OPTIMIZERS, RATES)
    nets = [partial(_net, _features(data), (64,))] * len(cells)
    makers = tuple(partial(OPTIMIZERS[name], lr=rate) for name, rate in cells)
    seen = _race(lab, data, nets, lab.pick(smoke=20, laptop=500, full=5000), optimizers=makers)
    trials = trials_of([name for name, _ in cells], [rate for _, rate in cells], lab.seed, seen)
    return Trials(tuple(trials)), seen


_RACE = (
    "MNIST 5k and 4,000 articles of Fashion-MNIST, a perceptron of 64 hidden units, 500 steps in batches of 64. Eight optimizers "
    "with seven rates each, two to a factor of ten; a fifth of the training examples is held out."
)
_TARGETS = {"digits": 0.1, "clothes": 0.4}


@claim(
    "Adam reaches a given training loss (0.1 on digits, 0.4 on clothes) in fewer steps than SGD without momentum, each with the "
    "best of its seven rates.",
    expect=(Lower("Adam, digits", than="SGD, digits"), Lower("Adam, clothes", than="SGD, clothes")),
    scaled_down=f"{_RACE} The loss is the mean over 20 steps; a run that does not get there counts with all its steps.",
    unit="steps until the training loss is reached",
)
def adam_needs_fewer_steps_than_sgd(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for task, data in _tasks(lab).items():
        found, seen = _optimizer_race(lab, data)
        needed = _steps_to(seen["train_loss"], seen["steps"], _TARGETS[task])
        place = 0
        for name in found.arms:
            rows = slice(place, place := place + len(RATES[name]))
            best = rows.start + int(needed[rows].argmin())
            losses, cost = seen["train_loss"][best].tolist(), Cost(seconds=float(seen["price"][rows].sum()))
            line = Curve(losses, seen["steps"].tolist(), float(needed[best]), cost, x_name="step", y_name="training loss")
            arms[f"{name}, {task}"] = line
    return arms


def _steps_to(losses: Tensor, steps: Tensor, target: float) -> Tensor:
    """When each line (R, L) first falls below the target, between two looks along a straight line; (R,)."""
    needed = torch.full((len(losses),), float(steps[-1]))
    for row, line in enumerate(losses.tolist()):
        before = None
        for at, value in zip(steps.tolist(), line, strict=True):
            if value < target:
                share = 1.0 if before is None else (before[1] - target) / (before[1] - value)
                needed[row] = at if before is None else before[0] + share * (at - before[0])
                break
            before = (at, value)
    return needed


@claim(
    "With the rate tuned, SGD with momentum is no worse on test data than Adam by more than half a point.",
    expect=(
        Higher("momentum, digits", than="Adam, digits", by=-0.005),
        Higher("momentum, clothes", than="Adam, clothes", by=-0.005),
    ),
    scaled_down=_RACE,
    unit=_UNIT_ACCURACY,
)
def tuned_momentum_generalises_as_well(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for task, data in _tasks(lab).items():
        found, _ = _optimizer_race(lab, data)
        for name in found.arms:
            best, score = found.chosen(name, lab.seed), _score(found, name, lab.seed)
            line = Curve(best.curve, best.at, float(score), score.cost, x_name="step", y_name="accuracy on held-out data")
            arms[f"{name}, {task}"] = line
    return arms


@claim(
    "Adam is easier to tune than SGD with momentum: the rates that come within a point of its best span a larger factor.",
    expect=(Higher("Adam, digits", than="momentum, digits"), Higher("Adam, clothes", than="momentum, clothes")),
    scaled_down=_RACE,
    unit="factors of ten that the rate may be off",
)
def adam_is_easier_to_tune(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for task, data in _tasks(lab).items():
        found, _ = _optimizer_race(lab, data)
        for name in found.arms:
            trials = found.of(name, lab.seed)
            powers = torch.tensor([trial.setting for trial in trials]).log10().tolist()
            reached = torch.tensor([trial.valid for trial in trials]).nan_to_num(0.0).tolist()
            wide = found.usable(name, lab.seed)
            x_name, y_name = "learning rate, as a power of ten", "accuracy on held-out data"
            arms[f"{name}, {task}"] = Curve(reached, powers, wide, x_name=x_name, y_name=y_name)
    return arms


_SCHEDULES: dict[str, MakeSchedule | None] = {"constant": None, "inverse root": inverse_sqrt, "cosine": cosine}


@claim(
    "Where a network can fit everything, SGD needs no falling rate: at a constant one it drives the training loss below 0.01. "
    "Where it cannot (8 hidden units, three of ten labels wrong) a rate that falls along a cosine ends at a lower training loss "
    "than a constant one. Each has the best of five rates.",
    expect=(Below("128 units, constant", 0.01), Lower("8 units, cosine", than="8 units, constant")),
    scaled_down="1,000 digits of MNIST 5k in batches of 64, 1,000 steps with 128 units and 4,000 with 8, which learn longer; the "
    "rate with the lowest training loss counts.",
    unit="training loss at the end",
)
def falling_rates_where_not_all_can_be_fitted(lab: Lab) -> Measured:
    digits = lab.data("mnist5k").subset(train=lab.pick(smoke=200, laptop=1000, full=4000), test=100, seed=lab.seed)
    cells = [(name, rate) for name in _SCHEDULES for rate in (0.03, 0.1, 0.3, 1.0, 3.0)]
    makers = tuple(partial(torch.optim.SGD, lr=rate) for _, rate in cells)
    falls = tuple(_SCHEDULES[name] for name, _ in cells)
    arms: dict[str, float | Curve] = {}
    for width, steps, data in (
        (128, lab.pick(smoke=20, laptop=1000, full=10_000), digits),
        (8, lab.pick(smoke=20, laptop=4000, full=100_000), digits.flip_labels(0.3, seed=lab.seed)),
    ):
        nets = [partial(_net, 784, (width,))] * len(cells)
        seen = _race(lab, data, nets, steps, optimizers=makers, schedules=falls)
        losses = seen["train_loss_end"].nan_to_num(torch.inf).view(len(_SCHEDULES), -1)
        for row, name in enumerate(_SCHEDULES):
            best = row * losses.shape[1] + int(losses[row].argmin())
            line, value = seen["train_loss"][best].tolist(), float(losses[row].min())
            cost = Cost(seconds=float(seen["price"].view_as(losses)[row].sum()))
            arms[f"{width} units, {name}"] = Curve(
                line, seen["steps"].tolist(), value, cost, x_name="step", y_name="training loss"
            )
    return arms


_WIDTHS = (4, 16, 64, 256)


def widths(data: Dataset, hidden: Sequence[int], starts: Sequence[int], steps: int, rate: float) -> dict[str, Tensor]:
    """Training loss (W, S) by width and start, and the barrier (W, S) between two ends from a common checkpoint at a tenth."""
    (inputs, labels), _, _ = _splits(data)
    losses, barriers = torch.empty(len(hidden), len(starts)), torch.empty(len(hidden), len(starts))
    early = steps // 10
    optimizer = partial(torch.optim.SGD, lr=rate)
    for row, width in enumerate(hidden):
        nets = []
        for seed in starts:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                nets.append(_net(inputs[0].numel(), (width,)))
        train_side_by_side(nets, [optimizer] * len(nets), inputs, labels, early, seeds=starts, look_every=early)
        pairs = [*nets, *(copy.deepcopy(net) for net in nets)]
        orders = [10_000 + seed for seed in (*starts, *(1000 + seed for seed in starts))]
        rest = steps - early
        train_side_by_side(pairs, [optimizer] * len(pairs), inputs, labels, rest, seeds=orders, look_every=rest)
        for column in range(len(starts)):
            first, second = pairs[column], pairs[column + len(starts)]
            losses[row, column] = F.cross_entropy(first(inputs), labels).detach()
            barriers[row, column] = loss_barrier(first, second, inputs, labels)
    return {"losses": losses, "barriers": barriers}


@claim(
    "Wide networks have no bad basins: with 256 hidden units SGD ends at a training loss below 0.02 from every start, with 4 it "
    "ends higher and, from start to start, more differently; and the barrier between two ends of a common beginning is lower "
    "with 256 units than with 4.",
    expect=(
        Below("loss, 256 units", 0.02),
        Lower("loss, 256 units", than="loss, 4 units"),
        Lower("spread, 256 units", than="spread, 4 units"),
        Lower("barrier, 256 units", than="barrier, 4 units"),
    ),
    scaled_down="1,000 digits of MNIST 5k, 600 steps of SGD at 0.3 in batches of 64, four starts; they part after a tenth.",
    unit="training loss at the end (mean and standard deviation over starts), and its rise on the line between two ends",
)
def width_removes_bad_basins(lab: Lab) -> Measured:
    data = lab.data("mnist5k").subset(train=lab.pick(smoke=200, laptop=1000, full=4000), test=100, seed=lab.seed)
    starts = tuple(lab.seed * 100 + start for start in range(lab.pick(smoke=2, laptop=4, full=10)))
    seen = lab.remember(
        widths, data=data, hidden=_WIDTHS, starts=starts, steps=lab.pick(smoke=20, laptop=600, full=6000), rate=0.3
    )
    arms: dict[str, float | Curve] = {}
    for row, width in enumerate(_WIDTHS):
        arms[f"loss, {width} units"] = float(seen["losses"][row].mean())
        arms[f"spread, {width} units"] = float(seen["losses"][row].std())
        arms[f"barrier, {width} units"] = float(seen["barriers"][row].mean())
    return arms
