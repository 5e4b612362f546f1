"""How fast does it converge? Every optimizer with a grid of rates of its own, all side by side, tuned alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.recipe import Recipe, treatment
from assay.train.compare import Trial, Trials
from assay.train.optim import Lamb
from assay.train.side_by_side import MakeOptimizer, MakeSchedule, train_side_by_side

Examples = tuple[Tensor, Tensor]  # inputs (N, ...), labels (N,)

#: name -> ``(parameters, lr=...) -> Optimizer``: torch's own, and LAMB.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "Nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "Adagrad": torch.optim.Adagrad,
    "RMSprop": torch.optim.RMSprop,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "LAMB": Lamb,
}


def _decades(least: float, count: int = 7) -> tuple[float, ...]:
    """Rates two to a factor of ten: 1e-3, 3.2e-3, 1e-2 ..."""
    return tuple(float(f"{least * 10 ** (place / 2):.2g}") for place in range(count))


#: Rates to try with each: three factors of ten around what people use.
RATES: dict[str, tuple[float, ...]] = {
    "SGD": _decades(1e-2),
    "momentum": _decades(1e-3),
    "Nesterov": _decades(1e-3),
    "Adagrad": _decades(1e-3),
    "RMSprop": _decades(1e-4),
    "Adam": _decades(1e-4),
    "AdamW": _decades(1e-4),
    "LAMB": _decades(1e-3),
}


def compare_optimizers(
    model: Callable[[], nn.Module],
    train: Examples,
    valid: Examples,
    test: Examples,
    optimizers: Mapping[str, Callable[..., torch.optim.Optimizer]] = OPTIMIZERS,
    rates: Mapping[str, Sequence[float]] = RATES,
    steps: int = 500,
    batch_size: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
    schedule: MakeSchedule | None = None,
) -> Trials:
    """Every optimizer with each of its rates, from the same weights on the same batches: who wins, with the rate tuned?

    Args:
        model: makes a classifier, on the device where the examples are; small ones gain most by being trained side by side.
        train: inputs (N, ...) and labels (N,), what the networks learn.
        valid: on which rates are chosen.
        test: on which the chosen ones are measured.
        optimizers: name -> ``(parameters, lr=...) -> Optimizer``: torch's or anybody's.
        rates: name -> learning rates, equally many for each.
        steps: optimizer steps, a multiple of 20.
        batch_size: examples a step.
        seeds: of weights and order; the spread over them is in the table.
        schedule: ``(optimizer, steps) -> LRScheduler`` for all; ``None`` keeps the rate.

    Raises:
        AssayError: an optimizer has no rates or another number of them, nothing is held out, or ``steps`` does not fit.
    """
    for name in optimizers:
        if not rates.get(name):
            raise AssayError(f"There are no rates to try with {name!r}: give rates={{{name!r}: (1e-3, 1e-2, ...), ...}}.")
    if len({len(rates[name]) for name in optimizers}) > 1:  # said before anything is trained
        raise AssayError("More trials find better settings: give every optimizer equally many rates.")
    if not len(valid[1]) or not len(test[1]):
        raise AssayError("Rates are chosen on held-out examples and measured on test examples: give some of both.")
    if steps < _LOOK or steps % _LOOK:
        raise AssayError(f"steps must be a multiple of {_LOOK}, not {steps}: the networks are looked at so often.")
    trials: list[Trial] = []
    names = [name for name in optimizers for _ in rates[name]]
    settings = [rate for name in optimizers for rate in rates[name]]
    for seed in seeds:
        makers = [partial(optimizers[name], lr=rate) for name, rate in zip(names, settings, strict=True)]
        seen = race([model] * len(makers), makers, train, valid, test, steps, batch_size, seed, [schedule] * len(makers))
        trials += trials_of(names, settings, seed, seen)
    return Trials(tuple(trials))


_LOOK = 20  # steps between two looks


def race(
    models: Sequence[Callable[[], nn.Module]],
    optimizers: Sequence[MakeOptimizer],
    train: Examples,
    valid: Examples,
    test: Examples,
    steps: int,
    batch_size: int,
    seed: int,
    schedules: Sequence[MakeSchedule | None] | None = None,
) -> dict[str, Tensor]:
    """Train R networks side by side, each from weights that ``seed`` draws, on batches that ``seed`` draws.

    Returns:
        ``steps`` (L,) and, at these, ``train_loss`` and ``valid_accuracy`` (R, L); ``price`` (R,) in seconds; at the end
        ``train_loss_end``, ``valid_end`` and ``test_end`` (R,): loss on all training examples, accuracies.
    """
    networks = []
    for make in models:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same numbers for every network
            networks.append(make())
    watch = {"valid": valid} if len(valid[0]) else {}
    looks = train_side_by_side(networks, optimizers, *train, steps, batch_size, seed, schedules, watch, _LOOK)
    ends: dict[str, list[float]] = {"train_loss_end": [], "valid_end": [], "test_end": []}
    with torch.no_grad():
        for network in networks:
            network.eval()
            ends["train_loss_end"].append(float(F.cross_entropy(network(train[0]), train[1])))
            for name, (inputs, labels) in (("valid_end", valid), ("test_end", test)):
                right = (network(inputs).argmax(dim=1) == labels).double()
                ends[name].append(float(right.mean()) if len(labels) else torch.nan)
    seen = {"steps": looks.steps, "train_loss": looks.train_loss, "price": looks.seconds}
    return {
        **seen,
        "valid_accuracy": looks.accuracy.get("valid", torch.empty(0)),
        **{k: torch.tensor(v) for k, v in ends.items()},
    }


def trials_of(names: Sequence[str], settings: Sequence[float], seed: int, seen: Mapping[str, Tensor]) -> list[Trial]:
    """What :func:`race` saw as trials: one a network, by the name of its arm and its setting. A diverged one is not finite."""
    at = tuple(seen["steps"].double().tolist())
    trials = []
    for row, (name, setting) in enumerate(zip(names, settings, strict=True)):
        sound = bool(seen["train_loss"][row].isfinite().all() and seen["train_loss_end"][row].isfinite())
        valid, test = (float(seen[key][row]) if sound else torch.nan for key in ("valid_end", "test_end"))
        curve = tuple(seen["valid_accuracy"][row].tolist())
        trials.append(Trial(name, setting, seed, valid, test, float(seen["price"][row]), curve, at))
    return trials


@treatment
def adam(recipe: Recipe, lr: float = 1e-3) -> Recipe:
    """Train with Adam at this rate instead of the recipe's optimizer; the schedule stays."""
    return recipe.replace(optimizer=partial(torch.optim.Adam, lr=lr))
