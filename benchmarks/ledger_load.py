"""Where the ledger becomes the bottleneck: many simulated workers write finished units into SQLite and PostgreSQL.

    python benchmarks/ledger_load.py [--workers 1 10 100 300 1000] [--seconds 8] [--output benchmarks/ledger_load.json]

A simulated worker is a thread that opens the ledger and adds rows just as a real one does (for PostgreSQL: a connection for
each row), in one of at most eight processes. *flat out*: every worker writes the next row at once, which finds the most that
the ledger takes. *paced*: a worker writes every ten, or every sixty, seconds on average, as if its units took that long, which
finds how long a write takes then. Besides, the time to compute all verdicts from a ledger of 100,000 units.

PostgreSQL (Debian's ``postgresql``) is started for this with its own settings: every commit on disk, 100 connections.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "lab"))
PROCESSES = 8
PACES = (0.0, 10.0, 60.0)  # seconds of a unit; 0: flat out


def example(key: str, claim: str, seed: int) -> Any:
    """A row of the size of real ones: three arms, two of them with a curve of 20 points (about 2.5 kB)."""
    from assay.lab.ledger import Row
    from assay.lab.machine import commit, machine, versions

    draw = random.Random(hash((key, claim, seed)))
    arms = {"method": draw.gauss(0.9, 0.02), "control": draw.gauss(0.85, 0.02), "another": draw.gauss(0.8, 0.02)}
    line = {
        "x": [float(i) for i in range(20)],
        "y": [round(draw.random(), 6) for _ in range(20)],
        "x_name": "epoch",
        "y_name": "y",
    }
    return Row(
        key=key,
        claim=claim,
        seed=seed,
        scale="laptop",
        device="cpu",
        code="0" * 32,
        values=arms,
        curves={"method": line, "control": line},
        costs={arm: {"seconds": draw.random(), "parameters": 61706, "flops": 833040} for arm in arms},
        seconds=1.0,
        peak_bytes=10**9,
        machine=machine(),
        versions=versions(),
        commit=commit(),
    )


@contextmanager
def sqlite() -> Iterator[str]:
    """A SQLite file on the disk of the temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/ledger.sqlite"


@contextmanager
def postgresql(**options: str) -> Iterator[str]:
    """A server with its own settings."""
    import postgres_server

    with postgres_server.running(**options) as server:
        yield server.url()


# ------------------------------------------------------------------------------------------------ writing


def measure(url: str, workers: int, seconds: float, pace: float) -> dict[str, Any]:
    """Let ``workers`` write for some seconds; ``pace`` 0: flat out."""
    from assay.lab.ledger import Ledger

    Ledger(url)
    processes = min(PROCESSES, workers)
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    ready, go = context.Barrier(processes + 1), context.Value("d", 0.0)
    shares = [workers // processes + (i < workers % processes) for i in range(processes)]
    crowd = [context.Process(target=_crowd, args=(url, i, n, seconds, pace, ready, go, told)) for i, n in enumerate(shares)]
    began = time.perf_counter()
    for process in crowd:
        process.start()
    ready.wait(600)  # every worker has opened the ledger
    opened = time.perf_counter() - began
    go.value = time.time() + 0.2
    ready.wait(600)
    answers = [told.get(timeout=600) for _ in crowd]
    for process in crowd:
        process.join(60)
    latencies = sorted(value for answer in answers for value in answer["latencies"])
    lasted = max(answer["last"] for answer in answers) - go.value
    return {
        "workers": workers,
        "pace_s": pace,
        "units": len(latencies),
        "units_per_s": len(latencies) / max(lasted, 1e-9),
        "p50_ms": 1000 * statistics.median(latencies or [math.nan]),
        "p99_ms": 1000 * latencies[int(0.99 * (len(latencies) - 1))] if latencies else math.nan,
        "errors": sum(answer["errors"] for answer in answers),
        "all_open_s": opened,
        "rows": Ledger(url).count_done(),
    }


def _crowd(url: str, number: int, workers: int, seconds: float, pace: float, ready: Any, go: Any, told: Any) -> None:
    """One process of simulated workers."""
    from assay.errors import AssayError
    from assay.lab.ledger import PATIENCE, Ledger

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384) if hard > 0 else soft, hard))
    latencies: list[float] = []
    errors: list[str] = []
    opened, start = threading.Semaphore(0), threading.Event()

    def worker(place: int) -> None:
        draw = random.Random(1000 * number + place)
        try:
            ledger = Ledger(url, patience=PATIENCE, keep=False)
        except AssayError as error:
            errors.append(str(error))
            opened.release()
            return
        opened.release()
        start.wait()
        end = go.value + seconds
        time.sleep(max(0.0, min(go.value + draw.uniform(0, pace), end) - time.time()))
        seed = 0
        while time.time() < end:
            row = example(f"paper{number}", f"claim{place}", seed)
            seed += 1
            began = time.perf_counter()
            try:
                ledger.add([row])
                latencies.append(time.perf_counter() - began)
            except AssayError as error:
                errors.append(str(error))
            if pace:
                time.sleep(min(draw.expovariate(1 / pace), max(0.0, end - time.time())))

    threads = [threading.Thread(target=worker, args=(place,)) for place in range(workers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        opened.acquire()
    ready.wait(600)
    ready.wait(600)
    start.set()
    for thread in threads:
        thread.join()
    if errors:
        print(errors[0], file=sys.stderr)
    told.put({"latencies": latencies, "errors": len(errors), "last": time.time()})


# ------------------------------------------------------------------------------------------------ reading


def verdicts(url: str, units: int = 100_000, seeds: int = 5) -> dict[str, Any]:
    """The time to judge every claim of a ledger with so many units."""
    from dataclasses import asdict

    from assay.catalogue import find
    from assay.lab import ledger as module
    from assay.lab.results import result
    from assay.paper import Claim, Higher

    ledger = module.Ledger(url)
    paper = find("elr")
    claims = units // seeds
    written = [asdict(example(paper.key, "claim0", seed)) for seed in range(seeds)]
    for start in range(0, claims, 500):
        block = [{**row, "claim": f"claim{i}"} for i in range(start, min(start + 500, claims)) for row in written]
        with ledger._engine.begin() as connection:
            connection.execute(module._units.insert(), block)
    expect = (Higher("method", than="control"),)
    began = time.perf_counter()
    for i in range(claims):
        claim = Claim(f"claim{i}", "The method is better.", measure=dict, expect=expect)
        found = result(paper, claim, ledger, "laptop", "cpu", "0" * 32)
        assert found is not None
        assert len(found.rows) == seeds
    return {"units": units, "claims": claims, "seeds": seeds, "all_verdicts_s": time.perf_counter() - began}


def main() -> None:
    """Measure, print, keep."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--workers", type=int, nargs="*", default=[1, 10, 100, 300, 1000])
    cli.add_argument("--seconds", type=float, default=8.0)
    cli.add_argument("--units", type=int, default=100_000, help="in the ledger whose verdicts are timed; 0 leaves it out")
    cli.add_argument("--output", type=Path, default=HERE / "ledger_load.json")
    given = cli.parse_args()
    from assay.lab.machine import machine

    kept: dict[str, Any] = {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": given.seconds,
        "writing": [],
        "reading": [],
    }
    for name, database in (("sqlite", sqlite), ("postgresql", postgresql)):
        for pace in PACES:
            for workers in given.workers:
                with database() as url:
                    seconds = max(given.seconds, 20.0) if pace else given.seconds
                    row = {"database": name, **measure(url, workers, seconds, pace)}
                kept["writing"].append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
                print(json.dumps(kept["writing"][-1]), flush=True)
                given.output.write_text(json.dumps(kept, indent=1) + "\n")
        if given.units:
            with database() as url:
                kept["reading"].append({"database": name, **verdicts(url, given.units)})
            print(json.dumps(kept["reading"][-1]), flush=True)
            given.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
