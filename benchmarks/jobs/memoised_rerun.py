"""A claim that was run before: what it costs to ask again when its trainings are in the cache."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

JOB = "a claim asked again, its trainings remembered: share of the first run (lower is better)"
WANTED = 0.01


def rows(rounds: int) -> list[dict[str, Any]]:
    """First and second run of ELR's first claim, in a fresh cache each round (the data stay where they are)."""
    import torch

    from assay.data import load
    from assay.lab import Lab
    from assay.papers.labels.elr import resists_wrong_labels

    torch.set_num_threads(1)
    load("mnist5k")
    first, again = [], []
    for _ in range(min(rounds, 3)):
        with tempfile.TemporaryDirectory() as home:
            before = os.environ.get("ASSAY_HOME")
            os.environ["ASSAY_HOME"] = home
            for times in (first, again):
                began = time.perf_counter()
                resists_wrong_labels(Lab(seed=0, scale="laptop"))
                times.append(time.perf_counter() - began)
            os.environ.pop("ASSAY_HOME")
            if before is not None:
                os.environ["ASSAY_HOME"] = before
    return [
        {
            "job": JOB,
            "peer": "first run",
            "ours_s": statistics.median(again),
            "peer_s": statistics.median(first),
            "ratio": statistics.median(a / f for a, f in zip(again, first, strict=True)),
            "wanted": WANTED,
            "lower_is_better": True,
        }
    ]
