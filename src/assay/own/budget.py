"""How long trainings will take, which of them a budget of time allows, and an end that is kept."""

from __future__ import annotations

import math
import signal
import threading
import time as clock
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from assay.recipe import Recipe
from assay.train.loop import fit

#: Methods are left out until so many seeds of the others fit into the budget: fewer hardly ever decide.
FEWEST_SEEDS = 3


class TimeIsOver(Exception):
    """The budget is used up."""


def training_seconds(recipe: Recipe, device: torch.device, steps: int = 4) -> float:
    """About how long a training will take on the clock on the wall, judged by some steps of it."""
    data, size = recipe.data, recipe.batch_size
    count = min(len(data.train), steps * size)
    few = recipe.replace(data=data.subset(train=count, seed=0), epochs=1, watch=())
    began = clock.monotonic()
    fit(few, seed=0, device=device)
    one = (clock.monotonic() - began) / count
    # Looking at an example costs about a third of learning from it, which goes back and forth.
    return one * (recipe.epochs * len(data.train) + (len(data.valid) + len(data.test)) / 3)


def affordable(seconds: Mapping[str, float], seeds: int, left: float, base: str) -> dict[str, str]:
    """Which arms a budget does not allow, and why; the dearest go first, and one method always stays.

    Args:
        seconds: arm -> what a training will take.
        seeds: that are wanted; the arms that stay can do at least three, or all if fewer are wanted.
        left: seconds until the end.
        base: the arm that all others are compared with.

    Returns:
        Arm -> reason, without a full stop.
    """
    kept, refused = dict(seconds), {}
    fewest = min(seeds, FEWEST_SEEDS)
    while len(kept) > 2 and fewest * sum(kept.values()) > left:
        dearest = max((arm for arm in kept if arm != base), key=kept.__getitem__)
        needed = in_words(1.5 * fewest * sum(kept.values()))
        refused[dearest] = (
            f"a training takes about {in_words(kept.pop(dearest))}, too long for the budget: --budget {needed} would do"
        )
    return refused


def in_words(seconds: float) -> str:
    """``"45s"``, ``"10m"``, ``"1h30m"``, as ``--budget`` takes it."""
    if seconds < 90:
        return f"{math.ceil(seconds)}s"
    minutes = math.ceil(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{rest}m" if rest or not hours else "")


@contextmanager
def alarm(seconds: float | None) -> Iterator[None]:
    """Stop what is done inside after so many seconds, wherever Python is by then.

    For work that does not report how far it is, such as scikit-learn's. It needs the main thread and a system that has
    timers; elsewhere, and with ``None``, the work is done to its end.

    Raises:
        TimeIsOver: time was over before the work was done.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not possible:
        yield
        return

    def stop(*_: object) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
