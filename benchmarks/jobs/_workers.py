"""`assay run` with two workers against one, start-up and all."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

CLAIM = "deepfool:smaller_than_fgsm"


def _run(workers: int, seeds: int, words: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory() as home:
        given = ["run", CLAIM, "--seeds", str(seeds), *words, "--workers", str(workers), "--json"]
        began = time.perf_counter()
        environment = {**os.environ, "ASSAY_HOME": home}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, "-m", "assay", *given], env=environment, check=True, **quiet)
        return time.perf_counter() - began


def two_against_one(job: str, wanted: float, seeds: int, rounds: int, *words: str) -> list[dict[str, Any]]:
    """Whole commands, in turn, with an empty ledger and an empty cache each; ``words`` are further options of the command."""
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("this job needs two cores")
    pairs = [(_run(2, seeds, words), _run(1, seeds, words)) for _ in range(min(rounds, 2))]
    return [
        {
            "job": job,
            "peer": "one worker",
            "ours_s": statistics.median(two for two, _ in pairs),
            "peer_s": statistics.median(one for _, one in pairs),
            "ratio": statistics.median(one / two for two, one in pairs),
            "wanted": wanted,
        }
    ]
