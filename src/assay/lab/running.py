"""Running claims from the command line: what is missing is planned, run by workers and watched."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from assay import catalogue
from assay.data import available, fetch
from assay.errors import AssayError
from assay.lab.board import Board
from assay.lab.ledger import Ledger
from assay.lab.machine import now
from assay.lab.results import Result, result
from assay.lab.units import Unit, claim_code, plan
from assay.lab.workers import run_units
from assay.paper import Claim


def run(
    what: list[str],
    everything: bool,
    seeds: int,
    scale: str,
    workers: int,
    device: str,
    time_limit: float | None,
    quiet: bool,
    on: str = "here",
    gpu_share: float = 1.0,
) -> tuple[list[Result], Counter[str]]:
    """Run what is missing; returns the results of everything asked for and how the new units ended.

    ``on`` is ``"here"`` (processes of this machine) or names a Ray cluster, see :func:`assay.lab.cluster.run_on_ray`.
    """
    console = Console(stderr=True, quiet=quiet)
    check(what, everything, scale, workers, device, here=on == "here", seeds=seeds)
    chosen = _runnable(catalogue.select(what, everything), what, console)
    ledger = Ledger()
    units = plan(chosen, seeds, scale, device, ledger)
    watcher = _Watcher(console, units)
    if units:
        try:
            with watcher.progress:
                if on == "here":
                    run_units(units, workers or os.cpu_count() or 1, ledger, watcher, time_limit)
                else:
                    from assay.lab.cluster import run_on_ray

                    run_on_ray(units, on, workers, ledger, watcher, time_limit, gpu_share)
        finally:
            watcher.board.close()
        watcher.print_failures()
    found = [result(paper, claim, ledger, scale, device, claim_code(claim), seeds) for paper, claim in chosen]
    return [one for one in found if one is not None], watcher.counts


def results(what: list[str], everything: bool, scale: str, device: str) -> list[Result]:
    """What the ledger has for the present code, without running anything."""
    check(what, everything, scale, 0, device)
    ledger = Ledger()
    found = [result(p, c, ledger, scale, device, claim_code(c)) for p, c in catalogue.select(what, everything)]
    return [one for one in found if one is not None]


def check(
    what: list[str],
    everything: bool,
    scale: str,
    workers: int = 0,
    device: str = "cpu",
    here: bool = True,
    seeds: int = 1,
) -> None:
    """Refuse what no command over claims can do anything with; a device only matters where it is this machine that computes.

    Raises:
        AssayError: nothing was named, or the scale, the seeds, the workers or the device are impossible.
    """
    from assay.lab.lab import SCALES, parse_device

    if not what and not everything:
        raise AssayError("Nothing was named: give a paper's key, KEY:CLAIM, a topic, or --all; `assay list` shows them.")
    if scale not in SCALES:
        raise AssayError(f"--scale is {scale!r}: choose one of {', '.join(SCALES)}.")
    if seeds < 1:
        raise AssayError(f"--seeds is {seeds}; a verdict needs at least 2 seeds, a look at the numbers 1.")
    if workers < 0:
        raise AssayError(f"--workers is {workers}: give a number of processes, or 0 for one a core.")
    kind = parse_device(device)[0].type
    if kind not in ("cpu", "cuda", "mps"):
        raise AssayError(f"--device is {device!r}: choose cpu, cuda or mps, or 4xcuda for four a training.")
    if here and kind != "cpu" and not _torch_has(kind):
        raise AssayError(f"This machine has no {kind} device that torch can use: `assay doctor` says more; --device cpu works.")


def _torch_has(kind: str) -> bool:
    import torch

    return bool(torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available())


def _runnable(
    chosen: list[tuple[catalogue.Paper, Claim]], what: list[str], console: Console
) -> list[tuple[catalogue.Paper, Claim]]:
    """Leave out claims whose data are not here, and say so; a claim that was named itself is tried all the same."""
    here = {row.name for row in available() if row.here}
    kept = []
    for paper, claim in chosen:
        missing = [name for name in claim.needs if name not in here and not _from_mirror(name)]
        if missing and f"{paper.key}:{claim.name}" not in what:
            console.print(
                f"[yellow]skipped[/] {paper.key}:{claim.name}: it needs {', '.join(missing)} "
                f"(`assay data fetch {' '.join(missing)}` brings it)"
            )
        else:
            kept.append((paper, claim))
    return kept


def _from_mirror(name: str) -> bool:
    """Take a data set from the mirror, where one is named: that costs little. Other downloads are the person's to start."""
    if not os.environ.get("ASSAY_MIRROR"):
        return False
    try:
        fetch(name)
    except AssayError:
        return False
    return True


class _Watcher:
    """Shows what the workers do: bars on a terminal, a line for every finished unit elsewhere."""

    def __init__(self, console: Console, units: list[Unit]) -> None:
        self.console = console
        self.counts: Counter[str] = Counter()
        self.failures: list[tuple[Unit, str, str]] = []
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.whole = self.progress.add_task("units", total=len(units), note="")
        self.total = len(units)
        self.finished = 0
        self.bars: dict[Unit, TaskID] = {}
        self.fractions: dict[Unit, float] = {}
        self.notes: dict[Unit, str] = {}
        self.board = Board()
        self.began = now()

    def __call__(self, unit: Unit, moment: str, details: dict[str, Any]) -> None:
        if moment == "start":
            self.bars[unit] = self.progress.add_task(f"  {unit.name}", total=1.0, note="")
            self.fractions[unit], self.notes[unit] = 0.0, ""
        elif moment == "progress":
            self.fractions[unit] = min(details["fraction"], 1.0)
            self.notes[unit] = details["note"]
            self.progress.update(self.bars[unit], completed=round(self.fractions[unit], 3), note=details["note"])
        elif moment == "lost":
            self.fractions.pop(unit, None)
            self.notes.pop(unit, None)
            self.progress.remove_task(self.bars.pop(unit))
            self.counts["moved"] += 1
            self.console.print(f"[yellow]machine lost[/] {unit.name}: it is run again on another")
        else:
            self.finished += 1
            self.fractions.pop(unit, None)
            self.notes.pop(unit, None)
            self.progress.remove_task(self.bars.pop(unit))
            self.counts[details["status"]] += 1
            if details["status"] != "done":
                self.failures.append((unit, details["status"], details["error"]))
            if not self.console.is_terminal:
                self.console.print(f"[{self.finished}/{self.total}] {unit.name}: {details['status']}, {details['seconds']:.1f} s")
        self.progress.update(self.whole, completed=round(self.finished + sum(self.fractions.values()), 2))
        self.board.show(self._state(), now=moment != "progress")

    def _state(self) -> dict[str, Any]:
        units = [
            {"key": unit.key, "claim": unit.claim, "name": unit.name, "fraction": fraction, "note": self.notes[unit]}
            for unit, fraction in self.fractions.items()
        ]
        counts = dict(self.counts)
        return {"began": self.began, "total": self.total, "finished": self.finished, "counts": counts, "units": units}

    def print_failures(self) -> None:
        """Refusals in their one sentence; crashes with the end of their traceback (the ledger has all of it)."""
        for unit, status, error in self.failures:
            colour = "yellow" if status == "refused" else "red"
            text = error if status == "refused" else "\n".join(error.strip().splitlines()[-6:])
            self.console.print(f"[{colour}]{status}[/] {unit.name}: ", end="")
            self.console.print(text, markup=False, highlight=False)
