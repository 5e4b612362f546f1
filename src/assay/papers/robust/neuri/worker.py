"""The process that runs candidates: one line of JSON in for each, lines of JSON out; started by :mod:`.sandbox`."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from typing import IO, Any

import torch

from assay.papers.robust.neuri import backends
from assay.papers.robust.neuri.models import Model
from assay.papers.robust.neuri.rounding import excess, reference


def check(model: Model, names: list[str], say: Any) -> None:
    """Run a model by these backends and say what came out.

    ``say`` is told ``{"begins": name}`` before each, so that whoever waits knows what took the process down, and then
    ``{"backend", "kind", "excess", "message", "seconds"}`` with the kind ``same``, ``wrong`` or ``refuses``. A model that does
    not run eagerly is ``invalid``, one whose results rounding makes meaningless ``unstable``; then no backend is run.
    """
    tensors = model.tensors()
    try:
        with torch.no_grad():
            model.function()(*tensors)
            right = reference(model)
    except Exception as error:
        say({"backend": "", "kind": "invalid", "excess": 0.0, "message": _first_line(error), "seconds": 0.0})
        return
    if not right.stable:
        say({"backend": "", "kind": "unstable", "excess": 0.0, "message": "", "seconds": 0.0})
        return
    for name in names:
        say({"begins": name})
        began = time.perf_counter()
        kind, worst, message = "same", 0.0, ""
        try:
            worst = excess(backends.run(name, model, tensors), right)
            if worst > 1:
                kind, message = "wrong", "results differ by more than rounding"
        except Exception as error:
            kind, message = "refuses", _first_line(error)
        say({"backend": name, "kind": kind, "excess": worst, "message": message, "seconds": time.perf_counter() - began})


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    # Compilers wrap what went wrong: the cause is what one recognises it by.
    cause = error.__cause__
    inner = (
        f" <- {type(cause).__name__}: {str(cause).strip().splitlines()[0]}" if cause is not None and str(cause).strip() else ""
    )
    return f"{type(error).__name__}: {lines[0] if lines else ''}{inner}"[:300]


def _limit(gigabytes: float) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        most = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(gigabytes: float) -> None:
    # What libraries print must not come between the lines.
    out: IO[str] = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _limit(gigabytes)
    torch.set_num_threads(1)

    def say(row: dict[str, Any]) -> None:
        out.write(json.dumps(row) + "\n")
        out.flush()

    say({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        if "valid" in job:
            say({"valid": [_runs(Model.of_json(one)) for one in job["valid"]]})
        else:
            check(Model.of_json(job["model"]), job["backends"], say)
        say({"done": True})


def _runs(model: Model) -> bool:
    try:
        with torch.no_grad():
            model.function()(*model.tensors())
    except Exception:
        return False
    return True


if __name__ == "__main__":
    main(float(sys.argv[1]))
