"""What runs are doing at this moment: each keeps a small file up to date, which ``assay atlas serve`` reads.

The ledger knows what is finished; which units are being measured, and how far they are, only the process knows that watches
them. The file is a convenience: where it cannot be written, the run goes on without it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from assay.paths import trained_dir

#: Seconds between two writings: nobody reads faster.
EVERY = 0.5


def folder() -> Path:
    """Where the files are."""
    return trained_dir().parent / "running"


class Board:
    """The file of this process's run; removed by :meth:`close`."""

    def __init__(self) -> None:
        self.path = folder() / f"{os.getpid()}.json"
        self.last = -EVERY

    def show(self, state: dict[str, Any], now: bool = False) -> None:
        """Put up a new state, at most every half second unless it has to be ``now``.

        Args:
            state: ``total`` and ``finished`` units, ``counts`` by status, ``began``, and ``units``: those being measured,
                each with ``key``, ``claim``, ``name``, ``fraction`` and ``note``.
            now: whether the state is worth a writing of its own.
        """
        if not now and time.monotonic() - self.last < EVERY:
            return
        self.last = time.monotonic()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(state | {"process": os.getpid()}), encoding="utf-8")
            fresh.replace(self.path)

    def close(self) -> None:
        """Take the file away."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def boards() -> list[dict[str, Any]]:
    """The states of all runs of this machine whose process is alive, oldest first."""
    found = []
    for path in folder().glob("*.json"):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            os.kill(int(path.stem), 0)
        except (OSError, ValueError):  # it ended in this moment, or was killed and left its file
            continue
        if isinstance(state, dict):
            found.append(state)
    return sorted(found, key=lambda state: str(state.get("began")))
