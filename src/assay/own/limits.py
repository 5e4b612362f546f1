"""How much memory people's own data may take: what is larger is read as a random sample, and that is said."""

from __future__ import annotations

import os
import re

import numpy as np
from numpy.typing import NDArray

from assay.errors import AssayError

#: The same on every machine, so that the same file gives the same sample everywhere.
USUAL = 4 * 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_bound() -> int:
    """Bytes that reading data may take at its peak: ``ASSAY_MEMORY`` (``500MB``, ``16GB``), or 4 GB.

    Raises:
        AssayError: the variable holds no size.
    """
    given = os.environ.get("ASSAY_MEMORY", "").strip()
    if not given:
        return USUAL
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", given, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise AssayError(f"ASSAY_MEMORY is {given!r}, which is no size: write it like 500MB or 16GB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def drawn(count: int, wanted: int, seed: int = 0) -> NDArray[np.int64]:
    """``wanted`` of ``count`` positions, drawn at random without replacement, in ascending order; all if there are no more."""
    if count <= wanted:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False, shuffle=False))


def of_each_class(classes: NDArray[np.object_], wanted: int, seed: int = 0) -> NDArray[np.int64]:
    """About ``wanted`` positions, each class in proportion but at least one of it, in ascending order."""
    if len(classes) <= wanted:
        return np.arange(len(classes))
    share, found = wanted / len(classes), []
    for number, name in enumerate(sorted(set(classes.tolist()), key=str)):
        members = np.flatnonzero(classes == name)
        found.append(members[drawn(len(members), max(1, int(share * len(members))), seed + number)])
    return np.sort(np.concatenate(found))


def sampled(kept: int, count: int, what: str) -> str:
    """The note that says so."""
    return f"{kept:,} of {count:,} {what}, drawn at random to stay within {memory_bound() / 2**30:.3g} GB (ASSAY_MEMORY)"
