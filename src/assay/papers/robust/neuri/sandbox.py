"""A process of its own for candidates, with limits of time and memory: what takes it down does not take us down."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from assay.errors import AssayError
from assay.papers.robust.neuri.models import Model

#: Seconds in which a fresh process must be ready; importing torch takes some on a busy machine.
_START = 300.0


@dataclass(frozen=True)
class Outcome:
    """What one backend made of one model.

    Args:
        backend: its name; nothing where the model itself is ``invalid`` or ``unstable``.
        kind: ``same``, ``wrong`` (beyond rounding), ``refuses`` (raises), ``dies`` (takes the process down), ``hangs``.
        excess: largest error in units of its bound.
        message: what it said.
        seconds: that it took.
    """

    backend: str
    kind: str
    excess: float = 0.0
    message: str = ""
    seconds: float = 0.0

    @property
    def differs(self) -> bool:
        return self.kind in ("wrong", "refuses", "dies", "hangs")


class Sandbox:
    """Runs models in another process, which is started again when it died.

    Args:
        timeout: seconds that one backend may take for one model.
        memory: gigabytes that the process may take.
    """

    def __init__(self, timeout: float = 60.0, memory: float = 6.0) -> None:
        self.timeout, self.memory = timeout, memory
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._folder = tempfile.mkdtemp(prefix="assay-fuzz-")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def check(self, model: Model, backends: Sequence[str]) -> list[Outcome]:
        """What these backends make of the model, in order; the rest is left out after one that died or hung."""
        found = []
        running = "eager"
        self._send({"model": model.as_json(), "backends": list(backends)})
        while True:
            row = self._receive(self.timeout)
            if row is None:
                dead = self._process is not None and self._process.poll() is not None
                kind = "dies" if dead else "hangs"
                code = "" if self._process is None else f"exit code {self._process.poll()}"
                found.append(
                    Outcome(running, kind, float("inf"), code if dead else f"no answer in {self.timeout:g} s", self.timeout)
                )
                self._stop()
                return found
            if "done" in row:
                return found
            if "begins" in row:
                running = row["begins"]
            else:
                found.append(Outcome(**row))

    def valid(self, models: Sequence[Model]) -> float:
        """Share of the models that run eagerly; those that take the process down do not."""
        self._send({"valid": [model.as_json() for model in models]})
        row = self._receive(self.timeout)
        if row is None:
            self._stop()
            return float("nan")
        self._receive(self.timeout)
        runs: list[bool] = row["valid"]
        return sum(runs) / len(runs)

    # ---- the process

    def _send(self, job: dict[str, Any]) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def _start(self) -> None:
        self._stop()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": self._folder,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "assay.papers.robust.neuri.worker", str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        if self._receive(_START) is None:
            raise AssayError(f"The process that runs candidates did not start with {self.memory:g} GB of memory: give it more.")

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            return None
        row: dict[str, Any] = json.loads(line)
        return row

    def _stop(self) -> None:
        """End the process and whatever it started (compilers); it leads a session of its own."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process = None


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with suppress(ValueError):  # closed
        for line in process.stdout:
            lines.put(line)
    lines.put(None)
