"""`assay run --on ray` with two workers against one, start-up of the cluster and all."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

JOB = "assay run --on ray, 12 units: 2 workers against 1"
WANTED = 1.6
CLAIM = "deepfool:smaller_than_fgsm"


def _run(workers: int) -> float:
    with tempfile.TemporaryDirectory() as home:
        words = ["run", CLAIM, "--seeds", "12", "--on", "ray", "--workers", str(workers), "--json"]
        began = time.perf_counter()
        environment = {**os.environ, "ASSAY_HOME": home}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, "-m", "assay", *words], env=environment, check=True, **quiet)
        return time.perf_counter() - began


def rows(rounds: int) -> list[dict[str, Any]]:
    """Whole commands, in turn, with an empty ledger, an empty cache and a cluster of their own each."""
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("this job needs two cores")
    pairs = [(_run(2), _run(1)) for _ in range(min(rounds, 2))]
    return [
        {
            "job": JOB,
            "peer": "one worker",
            "ours_s": statistics.median(two for two, _ in pairs),
            "peer_s": statistics.median(one for _, one in pairs),
            "ratio": statistics.median(one / two for two, one in pairs),
            "wanted": WANTED,
        }
    ]
