"""Comparisons: methods side by side on several tasks; who wins where, and who is as good as the winner.

A comparison is a module of :mod:`assay.comparisons`. Every cell of its table is one number for each seed. Trainings are
remembered, so that a killed run loses nothing and the same command goes on from there. What was measured is recorded into
``evidence/comparisons/NAME.json``, from which the atlas makes a page.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import assay
from assay.errors import AssayError
from assay.files import write_json
from assay.fingerprint import code_fingerprint
from assay.lab import evidence
from assay.lab.machine import commit, machine, now, versions

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Score

_FOLDER = Path(assay.__file__).parent / "comparisons"


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Args:
        title: the question, in a few words.
        rows: the tasks.
        arms: the methods.
        control: the arm that is no method.
        unit: what the numbers are; higher is better.
        measure: ``(lab, row, arm) -> Score``, for the lab's seed.
        fits: ``(row, arm)``: whether the method can be had for the task; the others have no number there.
        traits: ``arm -> {name: number}``, what is known of a method without training, e.g. its year and its parameters; every
            method has the same. Values are drawn against them.
    """

    title: str
    rows: tuple[str, ...]
    arms: tuple[str, ...]
    control: str
    unit: str
    measure: Callable[[Lab, str, str], Score]
    fits: Callable[[str, str], bool] = lambda row, arm: True
    traits: Callable[[str], Mapping[str, float]] = lambda arm: {}


@dataclass
class Table:
    """What was measured.

    Attributes:
        name: of the comparison.
        title: its question.
        about: what was compared, in paragraphs.
        control: the arm that is no method.
        unit: what the numbers are.
        values: row -> arm -> seed -> number.
        seconds: row -> arm -> median processor time of a training.
        facts: machine, versions, date, commit, code, scale.
        traits: arm -> name -> number, known without training.
    """

    name: str
    title: str
    about: str
    control: str
    unit: str
    values: dict[str, dict[str, dict[int, float]]]
    seconds: dict[str, dict[str, float]]
    facts: dict[str, Any] = field(default_factory=dict)
    traits: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(arm for arms in self.values.values() for arm in arms))

    @property
    def seeds(self) -> int:
        """Of the cell that has fewest."""
        return min(len(by_seed) for arms in self.values.values() for by_seed in arms.values())

    def mean(self, row: str, arm: str) -> float:
        """Over seeds."""
        return statistics.fmean(self.values[row][arm].values())

    def spread(self, row: str, arm: str) -> float:
        """Standard deviation over seeds."""
        return statistics.stdev(values) if len(values := list(self.values[row][arm].values())) > 1 else math.nan

    def best(self, row: str) -> list[str]:
        """The arm with the highest mean, and those that cannot be told from it.

        Told apart are arms whose paired difference over the same seeds has a 95 % interval (Student's t, Bonferroni's share
        for as many arms as there are) above zero.
        """
        first = max(self.values[row], key=lambda arm: self.mean(row, arm))
        return [arm for arm in self.values[row] if arm == first or not self._worse(row, arm, first)]

    def bests(self) -> dict[str, list[str]]:
        """Row -> :meth:`best`."""
        return {row: self.best(row) for row in self.values}

    @property
    def known(self) -> list[str]:
        """Names of what is known of the methods without training."""
        return list(next(iter(self.traits.values()), {}))

    def _worse(self, row: str, arm: str, first: str) -> bool:
        from scipy import stats

        one, other = self.values[row][first], self.values[row][arm]
        gaps = [one[seed] - other[seed] for seed in one if seed in other]
        if len(gaps) < 2:
            return False
        reach = stats.t.ppf(1 - 0.025 / (len(self.arms) - 1), len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
        return bool(statistics.fmean(gaps) > reach)

    def rows(self, arm: str) -> list[str]:
        """The tasks for which the method can be had."""
        return [row for row, arms in self.values.items() if arm in arms]

    def wins(self, arm: str) -> str:
        """In how many of its rows it is the best or cannot be told from it."""
        rows = self.rows(arm)
        return f"{sum(arm in self.best(row) for row in rows)}/{len(rows)}"

    def gains(self, arm: str) -> list[float]:
        """Differences from the control, row by row."""
        return [self.mean(row, arm) - self.mean(row, self.control) for row in self.rows(arm)]

    def times(self, arm: str) -> float:
        """Median over rows of the processor time in times the control's."""
        return statistics.median(self.seconds[row][arm] / self.seconds[row][self.control] for row in self.rows(arm))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "title": self.title,
            "about": self.about,
            "control": self.control,
            "unit": self.unit,
            **self.facts,
            "values": self.values,
            "seconds": self.seconds,
            **({"traits": self.traits} if self.traits else {}),
        }


def names() -> dict[str, str]:
    """Every comparison and the first line of what it says, read without importing it."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        if path.stem != "__init__":
            found[path.stem] = _about(path).splitlines()[0]
    return found


def _about(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem


def _known(name: str) -> str:
    if name not in names():
        raise AssayError(f"There is no comparison {name!r}; there are {', '.join(names())}.")
    return name


def _load(name: str) -> Comparison:
    comparison = importlib.import_module(f"assay.comparisons.{_known(name)}").COMPARISON
    assert isinstance(comparison, Comparison)
    return comparison


def _cell(name: str, row: str, arm: str, seed: int, scale: str, device: str) -> tuple[float, float]:
    import torch

    from assay.lab import Lab

    torch.set_num_threads(1)
    lab = Lab(seed=seed, scale=scale, device=device)
    try:
        score = _load(name).measure(lab, row, arm)
    finally:
        lab.close()
    return float(score), score.cost.seconds or math.nan


def run(
    name: str,
    seeds: int = 5,
    scale: str = "laptop",
    device: str = "cpu",
    workers: int = 1,
    rows: Sequence[str] = (),
    tell: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Table:
    """Measure every cell for every seed; what was trained before is not trained again.

    Args:
        name: of the comparison.
        seeds: 0 to N - 1.
        scale: as claims have it.
        device: where to train.
        workers: processes, one thread each.
        rows: parts of the names of the rows to measure; nothing means all.
        tell: ``tell(done, total, note)`` after every cell.

    Raises:
        AssayError: there is no such comparison or row.
    """
    comparison = _load(name)
    chosen = [row for row in comparison.rows if not rows or any(part.lower() in row.lower() for part in rows)]
    if not chosen:
        raise AssayError(f"No row of {name} has {' or '.join(rows)} in its name; there are: {'; '.join(comparison.rows)}.")
    arms = {row: [arm for arm in comparison.arms if comparison.fits(row, arm)] for row in chosen}
    cells = [(row, arm, seed) for seed in range(seeds) for row in chosen for arm in arms[row]]
    values: dict[str, dict[str, dict[int, float]]] = {row: {arm: {} for arm in arms[row]} for row in chosen}
    taken: dict[str, dict[str, list[float]]] = {row: {arm: [] for arm in arms[row]} for row in chosen}
    for done, ((row, arm, seed), (value, took)) in enumerate(_measured(name, cells, scale, device, workers), start=1):
        values[row][arm][seed] = value
        taken[row][arm].append(took)
        tell(done, len(cells), f"{row}: {arm}, seed {seed}")
    values = {row: {arm: dict(sorted(seen.items())) for arm, seen in by_arm.items()} for row, by_arm in values.items()}
    seconds = {row: {arm: statistics.median(took) for arm, took in by_arm.items()} for row, by_arm in taken.items()}
    facts = {
        "scale": scale,
        "device": device,
        "recorded": now(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "fingerprint": _fingerprint(name),
    }
    about = _about(_FOLDER / f"{name}.py")
    traits = {arm: dict(there) for arm in comparison.arms if (there := comparison.traits(arm))}
    return Table(name, comparison.title, about, comparison.control, comparison.unit, values, seconds, facts, traits)


@contextmanager
def shown() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, a line for every cell elsewhere; both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("[dim]{task.fields[note]}"), console=console, transient=True) as bars:
        task = bars.add_task("cells", note="")

        def tell(done: int, total: int, note: str) -> None:
            bars.update(task, completed=done, total=total, note=note)
            if not console.is_terminal:
                print(f"{done}/{total} {note}", file=sys.stderr, flush=True)

        yield tell


def _measured(
    name: str, cells: Sequence[tuple[str, str, int]], scale: str, device: str, workers: int
) -> Iterator[tuple[tuple[str, str, int], tuple[float, float]]]:
    if workers == 1:
        for cell in cells:
            yield cell, _cell(name, *cell, scale, device)
        return
    import multiprocessing

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            waiting = {pool.submit(_cell, name, *cell, scale, device): cell for cell in cells}
            for finished in as_completed(waiting):
                yield waiting[finished], finished.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fingerprint(name: str) -> str:
    return code_fingerprint(f"assay.comparisons.{name}", "measure")


def _place(name: str) -> Path:
    return evidence.folder() / "comparisons" / f"{name}.json"


def record(table: Table) -> Path:
    """Write a table into the repository."""
    place = _place(table.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, table.plain())
    return place


def recorded(name: str) -> Table | None:
    """What is recorded of a comparison; ``None`` where nothing is.

    Raises:
        AssayError: the file is damaged.
    """
    place = _place(_known(name))
    if not place.exists():
        return None
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
        kept = {key: facts.pop(key) for key in ("title", "about", "control", "unit", "values", "seconds")}
    except (OSError, ValueError, KeyError) as error:
        raise AssayError(f"{place} cannot be read ({error}): record it again with `assay compare {name} --record`.") from error
    values = {row: {arm: _by_seed(seeds) for arm, seeds in arms.items()} for row, arms in kept.pop("values").items()}
    return Table(name, values=values, traits=facts.pop("traits", {}), facts=facts, **kept)


def _by_seed(values: Mapping[str, float]) -> dict[int, float]:
    return {int(seed): value for seed, value in values.items()}


def is_stale(table: Table) -> bool:
    """Whether the code of the comparison is no longer what was measured."""
    return bool(table.facts.get("fingerprint") != _fingerprint(table.name))
