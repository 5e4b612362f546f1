"""What `assay try` costs besides the trainings: does the method fit, remembering, scoring, verdicts, saving, the report."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOB = "assay try elr, table of 20,000 rows, 2 seeds, saved with its report: over the bare trainings (lower is better)"
WANTED = 1.05
SEEDS, ROWS, COLUMNS = 2, 20_000, 20


def rows(rounds: int) -> list[dict[str, Any]]:
    """The command beside reading, ``fit`` and the reference of the same recipes; each in a fresh cache, taking turns.

    Processor time: both sides run on one thread, and what else the machine does is no part of either.
    """
    import torch

    torch.set_num_threads(1)
    rounds = min(rounds, 3)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        path = _table(Path(folder))
        with _fresh_home() as home:
            _command(path, home)  # the first would pay for imports
        for _ in range(rounds):
            for side, function in (("ours", _command), ("peer", _by_hand)):
                with _fresh_home() as home:
                    began = time.process_time()
                    function(path, home)
                    times[side].append(time.process_time() - began)
    return [
        {
            "job": JOB,
            "peer": "fit of the same recipes",
            "ours_s": statistics.median(times["ours"]),
            "peer_s": statistics.median(times["peer"]),
            "ratio": statistics.median(ours / theirs for ours, theirs in zip(times["ours"], times["peer"], strict=True)),
            "wanted": WANTED,
            "lower_is_better": True,
            "rounds": rounds,
        }
    ]


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


def _by_hand(path: Path, home: Path) -> None:
    from assay.own import read
    from assay.own.baselines import baseline, reference
    from assay.own.methods import find
    from assay.train.loop import fit

    data = read(path, target="label")
    plain = baseline(data)
    for seed in range(SEEDS):
        for recipe in (plain, find("elr")(plain)):
            fit(recipe, seed).accuracy()
        reference(data, seed)


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
