"""Workers: units run in processes of their own, one thread each, watched by the process that started them.

A worker writes a finished unit into the ledger before it asks for the next, so that a kill at any moment loses nothing that
was finished. A unit that raises is recorded with its traceback; one that outlives its time limit, or whose process dies, is
recorded by the watcher and the worker is replaced. None of this stops the other units.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from assay.lab.ledger import PATIENCE, Ledger
from assay.lab.units import Unit, failed

#: ``watch(unit, moment, details)``; moments: "start", "progress" (fraction, note), "end" (status, seconds, error).
Watch = Callable[[Unit, str, dict[str, Any]], None]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    unit: Unit | None = None
    began: float = field(default_factory=time.monotonic)


def run_units(units: list[Unit], workers: int, ledger: Ledger, watch: Watch, time_limit: float | None = None) -> None:
    """Run all units on ``workers`` processes; returns when every one has its rows in the ledger.

    Args:
        units: what to run, in this order.
        workers: how many processes.
        ledger: where the rows go.
        watch: is told what happens.
        time_limit: seconds for each unit, instead of the claims' own.
    """
    waiting = list(reversed(units))
    pool: list[_Worker] = []
    try:
        pool += [_start(ledger.url) for _ in range(min(workers, len(units)))]
        for worker in pool:
            _give(worker, waiting, watch)
        while any(worker.unit for worker in pool):
            ready = wait([worker.pipe for worker in pool if worker.unit], timeout=0.5)
            for worker in [w for w in pool if w.pipe in ready]:
                _listen(worker, waiting, ledger, watch)
            for worker in pool:
                limit = time_limit or (worker.unit.time_limit if worker.unit else 0)
                if worker.unit and time.monotonic() - worker.began > limit:
                    _end(worker, "timeout", f"stopped after its time limit of {limit:.0f} s", ledger, watch)
            for worker in [w for w in pool if not w.process.is_alive() and not w.unit]:
                pool.remove(worker)
                if waiting:
                    fresh = _start(ledger.url)
                    pool.append(fresh)
                    _give(fresh, waiting, watch)
    finally:
        for worker in pool:
            if worker.unit is None and worker.process.is_alive():
                _tell_to_stop(worker)
            else:
                worker.process.kill()
        for worker in pool:
            worker.process.join(10)


def _start(url: str) -> _Worker:
    # A fork server imports torch once; every worker, also one that replaces a dead one, is then there in a moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "assay.lab.lab", "assay.lab.units"])
    ours, theirs = context.Pipe()
    with _inherited():
        process = context.Process(target=_work, args=(theirs, url), daemon=True)
        process.start()
    theirs.close()
    return _Worker(process, ours)


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextmanager
def _inherited() -> Iterator[None]:
    """What workers take over from their first moment on: one thread, leaving Ctrl-C to the watcher, and no script.

    Of the script that this process runs (pytest, Ray's own worker, the command ``assay``) they need nothing; a process that
    ``multiprocessing`` starts would import it, and all that it imports, once a unit.
    """
    script = vars(sys.modules["__main__"]).pop("__file__", None)
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        if script is not None:
            vars(sys.modules["__main__"])["__file__"] = script
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _give(worker: _Worker, waiting: list[Unit], watch: Watch) -> None:
    if waiting:
        worker.unit, worker.began = waiting.pop(), time.monotonic()
        watch(worker.unit, "start", {})
        with suppress(OSError):  # it died while idle: the next look at its pipe finds that out, and records it
            worker.pipe.send(worker.unit)


def _listen(worker: _Worker, waiting: list[Unit], ledger: Ledger, watch: Watch) -> None:
    assert worker.unit is not None
    try:
        moment, details = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(10)
        code = worker.process.exitcode
        why = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        _end(worker, "crashed", f"the worker's process died ({why})", ledger, watch)
        return
    if moment == "end":
        unit, worker.unit = worker.unit, None
        watch(unit, "end", details)
        _give(worker, waiting, watch)
    else:
        watch(worker.unit, moment, details)


def _end(worker: _Worker, status: str, error: str, ledger: Ledger, watch: Watch) -> None:
    """Record a unit whose worker cannot any more, and stop that worker."""
    unit, worker.unit = worker.unit, None
    assert unit is not None
    worker.process.kill()
    worker.process.join(10)
    seconds = time.monotonic() - worker.began
    # The worker may have been killed between writing its rows and saying so: what is done is done.
    done = ledger.done(unit.key, unit.claim, unit.scale, unit.device, unit.code)
    if set(unit.seeds) <= set(done):
        watch(unit, "end", {"status": "done", "seconds": seconds, "error": ""})
        return
    ledger.add(failed(unit, status, error, seconds))
    watch(unit, "end", {"status": status, "seconds": seconds, "error": error})


def _tell_to_stop(worker: _Worker) -> None:
    try:
        worker.pipe.send(None)
    except OSError:
        worker.process.kill()


# ------------------------------------------------------------------------------------------ in the worker's process


def _work(pipe: Connection, url: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the watcher's to handle
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    import torch

    from assay.lab.units import measure

    torch.set_num_threads(1)
    ledger = Ledger(url, patience=PATIENCE, keep=False)
    for unit in _tasks(pipe):
        rows = measure(unit, _Reporter(pipe))
        ledger.add(rows)
        worst = next((row for row in rows if row.status != "done"), rows[0])
        seconds = sum(row.seconds for row in rows)
        _say(pipe, "end", {"status": worst.status, "seconds": seconds, "error": worst.error})


def _tasks(pipe: Connection) -> Iterator[Unit]:
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        if unit is None:
            return
        yield unit


def _say(pipe: Connection, moment: str, details: dict[str, Any]) -> None:
    try:
        pipe.send((moment, details))
    except OSError:  # the watcher is gone: that is no fault of the unit, and must not be recorded as one
        os._exit(1)


class _Reporter:
    """Sends progress to the watcher, at most five times a second."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.last = 0.0

    def __call__(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last > 0.2:
            self.last = now
            _say(self.pipe, "progress", {"fraction": done / total if total else 0.0, "note": note})


def _die_with(parent: int) -> None:
    """A worker whose watcher was killed (its fork server ends with it) stops: the same units may be running again already."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
