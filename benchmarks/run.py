"""Time assay against what a user would pick instead: the same job, the same machine, the same run.

    python benchmarks/run.py [JOB ...] [--rounds 7] [--output benchmarks/results.json]

A job is a module in ``jobs/`` (see README.md). Every side runs in a process of its own on one thread, so that its peak memory
is its own; after a warm-up the sides take turns, and medians are compared. The ratio is the median over rounds of
peer time / our time: above 1 means that we are faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
JOBS = HERE / "jobs"


def load(name: str) -> ModuleType:
    """The module of a job."""
    sys.path.insert(0, str(JOBS))
    spec = importlib.util.spec_from_file_location(name, JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def side(name: str, which: str) -> None:
    """One side of a job, in its own process: does the job whenever told to on standard input, and says what it took."""
    import torch

    torch.set_num_threads(1)
    # Several peers import torchvision, whose own import fails beside a CPU build of torch for want of these two operators.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    job = load(name)
    # What a side prints belongs to the person; the answers to the watcher go through a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    do = getattr(job, which)()
    clock = time.process_time if getattr(job, "PROCESSOR_TIME", False) else time.perf_counter
    result: Any = None
    for line in sys.stdin:
        if line.strip() == "save":
            path = Path(os.environ["ASSAY_BENCH_SCRATCH"]) / f"{which}.pt"
            torch.save(result, path)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"path": str(path), "peak": peak}), file=answers, flush=True)
            return
        began = clock()
        result = do()
        print(json.dumps({"seconds": clock() - began}), file=answers, flush=True)


class Side:
    """A process that does one side of a job when asked."""

    def __init__(self, name: str, which: str, scratch: Path) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **one, "ASSAY_BENCH_SCRATCH": str(scratch)}
        command = [sys.executable, __file__, "--side", name, which]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, word: str) -> dict[str, Any]:
        """Send a word, wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a side of the benchmark died: {' '.join(self.process.args[2:])}")  # type: ignore[index]
        found: dict[str, Any] = json.loads(answer)
        return found


def compare(name: str, rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """Rows for one job: ours against each of its peers."""
    import torch

    torch.set_num_threads(1)  # what `agree` computes again is then what the sides computed
    job = load(name)
    if hasattr(job, "rows"):  # a job that measures whole commands itself
        return [_dated(row) for row in job.rows(rounds)]
    sides = {which: Side(name, which, scratch) for which in ("ours", *job.WANTED)}
    rounds = getattr(job, "ROUNDS", rounds)
    for one in sides.values():
        one.ask("warm")
    times: dict[str, list[float]] = {which: [] for which in sides}
    for _ in range(rounds):
        for which, one in sides.items():
            times[which].append(one.ask("go")["seconds"])
    saved = {which: one.ask("save") for which, one in sides.items()}
    results = {which: torch.load(found["path"], weights_only=True) for which, found in saved.items()}
    rows = []
    for peer, wanted in job.WANTED.items():
        note = job.agree(results["ours"], results[peer]) if hasattr(job, "agree") else None
        ratios = [theirs / ours for theirs, ours in zip(times[peer], times["ours"], strict=True)]
        rows.append(
            _dated(
                {
                    "job": job.JOB,
                    "peer": peer,
                    "ours_s": statistics.median(times["ours"]),
                    "peer_s": statistics.median(times[peer]),
                    "ratio": statistics.median(ratios),
                    "wanted": wanted,
                    "ours_mb": round(saved["ours"]["peak"] / 1e6),
                    "peer_mb": round(saved[peer]["peak"] / 1e6),
                    "rounds": rounds,
                    **({"note": note} if note else {}),
                }
            )
        )
    return rows


def _dated(row: dict[str, Any]) -> dict[str, Any]:
    short = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
    return {**short, "machine": _machine(), "date": datetime.now(UTC).date().isoformat()}


def _machine() -> str:
    from assay.lab.machine import machine

    return f"{machine()['processor']}, {machine()['cores']} cores, Python {platform.python_version()}"


def main() -> None:
    """Run jobs, print a table, keep it."""
    from rich.console import Console
    from rich.table import Table

    every = sorted(path.stem for path in JOBS.glob("*.py") if not path.stem.startswith("_"))
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("jobs", nargs="*", help=f"which; all if none is named: {', '.join(every)}")
    cli.add_argument("--rounds", type=int, default=7)
    cli.add_argument("--output", type=Path, default=HERE / "results.json")
    cli.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = cli.parse_args()
    if given.side:
        side(*given.side)
        return
    unknown = sorted(set(given.jobs) - set(every))
    if unknown:
        cli.error(f"no job is called {unknown[0]!r}: there are {', '.join(every)}")
    console = Console()
    kept = json.loads(given.output.read_text()) if given.output.exists() else []
    import tempfile

    for name in given.jobs or every:
        with tempfile.TemporaryDirectory() as scratch, console.status(name):
            rows = compare(name, given.rounds, Path(scratch))
        names = {(row["job"], row["peer"]) for row in rows}
        kept = [row for row in kept if (row["job"], row["peer"]) not in names] + rows
        given.output.write_text(json.dumps(kept, indent=1) + "\n")
    table = Table("job", "peer", "ours", "peer", "ratio", "wanted", "memory, ours / peer", "", box=None)
    for row in kept:
        met = row["ratio"] <= row["wanted"] if row.get("lower_is_better") else row["ratio"] >= row["wanted"]
        memory = f"{row['ours_mb']} / {row['peer_mb']} MB" if "ours_mb" in row else ""
        mark = "[green]met[/]" if met else "[red]missed[/]"
        table.add_row(
            row["job"],
            row["peer"],
            f"{row['ours_s']:.3g} s",
            f"{row['peer_s']:.3g} s",
            f"{row['ratio']:.3g}",
            f"{row['wanted']}",
            memory,
            mark,
        )
    console.print(table)


if __name__ == "__main__":
    main()
