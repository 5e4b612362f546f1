"""The lab: what a claim may use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from assay.data import Dataset, load
from assay.errors import AssayError
from assay.lab import memory
from assay.recipe import Recipe
from assay.train.loop import Report, Trained

SCALES = ("smoke", "laptop", "full")

_T = TypeVar("_T")


def parse_device(text: torch.device | str) -> tuple[torch.device, int]:
    """``"cuda"`` -> that device and 1; ``"4xcuda"`` -> that kind of device and 4."""
    count, times, kind = str(text).partition("x")
    if not (times and count.isdecimal() and int(count)):
        count, kind = "1", str(text)
    try:
        return torch.device(kind), int(count)
    except RuntimeError:
        raise AssayError(f"{text!r} is no device: write cpu, cuda, cuda:1 or mps, or 4xcuda for four at a time.") from None


class Lab:
    """What a claim may use for one unit: its seed, its scale, data, training, memory.

    Args:
        seed: the unit's seed; with several ``seeds`` the first of them.
        scale: ``"smoke"`` (does it run at all, seconds), ``"laptop"`` (the effect is visible, up to two minutes a seed on
            one core) or ``"full"`` (the paper's setting).
        device: where to compute: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``"4xcuda"`` trains every recipe that leaves
            its ``devices`` open on four, and does everything else on the first.
        seeds: all seeds of a block, for claims whose replicas run faster together.
        report: ``report(done, total, note)`` is told how far the unit is.
    """

    def __init__(
        self,
        seed: int = 0,
        scale: str = "laptop",
        device: torch.device | str = "cpu",
        seeds: tuple[int, ...] | None = None,
        report: Report | None = None,
    ) -> None:
        if scale not in SCALES:
            raise AssayError(f"The scale {scale!r} is not known; choose one of {', '.join(SCALES)}.")
        self.seeds = seeds or (seed,)
        self.seed = self.seeds[0]
        self.scale = scale
        self.device, self.devices = parse_device(device)
        self._report = report

    def pick(self, *, smoke: _T, laptop: _T, full: _T) -> _T:
        """The value for this lab's scale."""
        return {"smoke": smoke, "laptop": laptop, "full": full}[self.scale]

    def data(self, name: str) -> Dataset:
        """A named data set, ready to use."""
        return load(name)

    def train(self, recipe: Recipe, seed: int | None = None) -> Trained:
        """Train with this lab's seed on its device; the same training is done once and then taken from the cache."""
        if recipe.devices == 1 and self.devices > 1:
            recipe = recipe.replace(devices=self.devices)
        return memory.train(recipe, self.seed if seed is None else seed, self.device, self.progress)

    def remember(self, function: Callable[..., dict[str, Tensor]], **arguments: Any) -> dict[str, Tensor]:
        """Do any other work once for the same code and arguments; see :func:`assay.lab.memory.remember`."""
        return memory.remember(function, self.progress, **arguments)

    def generator(self, offset: int = 0) -> torch.Generator:
        """A generator seeded with this lab's seed; other ``offset``, other stream."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + offset)

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Tell the person at the terminal how far the unit is."""
        if self._report is not None:
            self._report(done, total, note)

    @cached_property
    def scratch(self) -> Path:
        """A folder for this unit, removed when it is done."""
        return Path(tempfile.mkdtemp(prefix="assay-"))

    def close(self) -> None:
        """Remove the scratch folder."""
        if "scratch" in self.__dict__:
            shutil.rmtree(self.scratch, ignore_errors=True)
