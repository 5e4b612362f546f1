"""What the cache of trainings holds, and removing some of it."""

from __future__ import annotations

import json
import re
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay.errors import AssayError
from assay.paths import trained_dir


@dataclass(frozen=True)
class Entry:
    """One kept piece of work."""

    fingerprint: str
    kind: str
    what: str
    made: str
    seconds: float
    bytes: int
    used: float
    path: Path

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "path": str(self.path)}


def entries() -> list[Entry]:
    """Everything that is kept, newest use first, unfinished trainings among it. Reads the files' headers only."""
    found = []
    whole = list(trained_dir().glob("*/*.safetensors"))
    begun = [path for path in trained_dir().glob("*/*.checkpoint") if path.with_suffix(".safetensors") not in whole]
    for path in [*whole, *begun]:
        status = path.stat()
        facts = _facts(path) if path in whole else {"kind": "unfinished", "what": "a training that was interrupted"}
        found.append(
            Entry(
                fingerprint=path.stem,
                kind=facts.get("kind", "unreadable"),
                what=facts.get("what", ""),
                made=facts.get("made", ""),
                seconds=float(facts.get("seconds", 0.0)),
                bytes=status.st_size,
                used=max(status.st_atime, status.st_mtime),
                path=path,
            )
        )
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def _facts(path: Path) -> dict[str, Any]:
    """The facts in the header of a safetensors file (eight bytes of length, then JSON), without loading a tensor."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        facts: dict[str, Any] = json.loads(header["__metadata__"]["facts"])
    except (OSError, ValueError, KeyError, struct.error):
        return {}
    return facts


def choose(older: float | None, to: str | None) -> list[Entry]:
    """The entries that a pruning would remove: all, those unused for ``older`` days, or the oldest beyond the size ``to``."""
    there = entries()
    if older is not None:
        there = [entry for entry in there if time.time() - entry.used > older * 86400]
    if to is not None:
        limit, kept, doomed = _size(to), 0, []
        for entry in there:
            kept += entry.bytes
            if kept > limit:
                doomed.append(entry)
        return doomed
    return there


def _size(text: str) -> float:
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if not match:
        raise AssayError(f"{text!r} is no size: write it like 500MB or 2GB.")
    power = " kmgt".index(match[2].lower() or " ")
    return float(match[1]) * float(1000**power)


def remove(doomed: list[Entry]) -> None:
    """Remove entries, with their locks and checkpoints."""
    for entry in doomed:
        for suffix in (".safetensors", ".checkpoint", ".lock"):
            path = entry.path.with_suffix(suffix)
            path.unlink(missing_ok=True)
