"""What `assay try` costs besides the trainings: does the method fit, remembering, scoring, verdicts, saving, the report."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

JOB = "assay try elr, table of 20,000 rows, 2 seeds, saved with its report: over the bare trainings (lower is better)"
WANTED = 1.05
SEEDS, ROWS, COLUMNS = 2, 20_000, 20


def rows(rounds: int) -> list[dict[str, Any]]:
    """The whole command, and what of it is reading, ``fit`` and the reference; each round in a fresh cache.

    Both are taken from the same run: two trainings one after the other differ by more than what is looked for. Processor time:
    all of it is done on one thread, and what else the machine does is no part of it.
    """
    import torch

    torch.set_num_threads(1)
    rounds = min(rounds, 3)
    whole, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = _table(Path(folder))
        with _fresh_home() as home:
            _command(path, home)  # the first would pay for imports
        for _ in range(rounds):
            with _fresh_home() as home, _stopwatch() as inside:
                began = time.process_time()
                _command(path, home)
                whole.append(time.process_time() - began)
                bare.append(sum(inside))
    return [
        {
            "job": JOB,
            "peer": "fit of the same recipes",
            "ours_s": statistics.median(whole),
            "peer_s": statistics.median(bare),
            "ratio": statistics.median(all_of_it / part for all_of_it, part in zip(whole, bare, strict=True)),
            "wanted": WANTED,
            "lower_is_better": True,
            "rounds": rounds,
        }
    ]


@contextmanager
def _stopwatch() -> Iterator[list[float]]:
    """Seconds of what one would have to do anyway: reading, the trainings of the arms, the reference."""
    from assay.lab import memory
    from assay.own import trying

    found: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            began = time.process_time()
            result = function(*arguments, **more)
            found.append(time.process_time() - began)
            return result

        return run

    with ExitStack() as stack:
        for module, name in ((trying, "understand"), (memory, "fit"), (memory, "remember")):
            stack.enter_context(patch.object(module, name, timed(getattr(module, name))))
        yield found


def _table(folder: Path) -> Path:
    import pandas as pd
    from sklearn.datasets import make_classification

    inputs, labels = make_classification(ROWS, COLUMNS, n_informative=10, flip_y=0.2, random_state=0)
    path = folder / "table.csv"
    pd.DataFrame(inputs, columns=[f"c{n}" for n in range(COLUMNS)]).assign(label=labels).to_csv(path, index=False)
    return path


def _command(path: Path, home: Path) -> None:
    from assay.own import try_
    from assay.own.report import write_report

    trial = try_(["elr"], on=path, target="label", seeds=SEEDS)
    trial.save(home / "run")
    write_report(home / "run")


@contextmanager
def _fresh_home() -> Iterator[Path]:
    """A cache of this round's own."""
    before = os.environ.get("ASSAY_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["ASSAY_HOME"] = home
        try:
            yield Path(home)
        finally:
            os.environ.pop("ASSAY_HOME")
            if before is not None:
                os.environ["ASSAY_HOME"] = before
