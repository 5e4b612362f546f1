"""A random sample of the rows of a text file of any size, in one pass and bounded memory.

Every row gets a random number, and those with the smallest numbers stay, as many as there is room for: a uniform sample
without replacement, as a reservoir gives it, but a block of rows at a time. Only rows that stay are ever parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.errors import AssayError

_BLOCK = 32 * 2**20
#: A row that is longer is none: its quotes are no quotes, or the file is no table.
_LONGEST = 16 * 2**20
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34
#: When there is no room any more, so large a share of it is kept.
_KEEP = 0.8


@dataclass(frozen=True)
class Sample:
    """Some rows of a file.

    Args:
        content: the header and the rows, as they stand in the file.
        rows: (N,) which they are, counted from 1, in ascending order; blank lines do not count.
        total: how many there are in the file.
    """

    content: bytes
    rows: NDArray[np.int64]
    total: int


@dataclass
class _Rows:
    """Rows in one piece of memory."""

    content: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    keys: NDArray[np.float64]
    numbers: NDArray[np.int64]

    def where(self, kept: NDArray[np.bool_]) -> _Rows:
        """Some of them, in memory of their own."""
        if kept.sum() > 0.05 * len(kept):
            content = self.content[np.repeat(kept, self.lengths)]
        else:  # a few slices are quicker than a mask
            ends = np.cumsum(self.lengths)
            slices = [self.content[ends[place] - self.lengths[place] : ends[place]] for place in np.flatnonzero(kept)]
            content = np.concatenate(slices) if slices else self.content[:0].copy()
        return _Rows(content, self.lengths[kept], self.keys[kept], self.numbers[kept])


def sample_lines(path: Path, room: int, seed: int = 0, progress: Callable[[int], None] | None = None) -> Sample:
    """Header and random rows of a CSV file in a one-byte encoding or UTF-8.

    Args:
        path: the file.
        room: bytes of rows that are kept at most.
        seed: the same file and seed give the same rows.
        progress: is told how many bytes are done.

    Raises:
        AssayError: a line has no end for too long.
    """
    generator = np.random.default_rng(seed)
    header: bytes | None = None
    kept: list[_Rows] = []
    size, total, done, limit = 0, 0, 0, 1.0
    for block, ends in _blocks(path):
        done += len(block)
        lengths = np.diff(ends, prepend=0)
        content = np.frombuffer(block, dtype=np.uint8)[: ends[-1] if len(ends) else 0]
        filled = ~_blank(content, ends, lengths)
        if header is None and filled.any():
            first = int(np.flatnonzero(filled)[0])
            header = block[ends[first] - lengths[first] : ends[first]]
            filled[first] = False
        numbers = total + np.cumsum(filled)
        total += int(filled.sum())
        keys = generator.random(len(lengths))
        found = _Rows(content, lengths, keys, numbers).where(filled & (keys < limit))
        kept.append(found)
        size += len(found.content)
        if size > room:
            limit = _limit(kept, int(_KEEP * room))
            kept = [rows.where(rows.keys < limit) for rows in kept]
            size = sum(len(rows.content) for rows in kept)
        if progress is not None:
            progress(done)
    chosen = b"".join([header or b"", *(rows.content.tobytes() for rows in kept)])
    return Sample(chosen, np.concatenate([rows.numbers for rows in kept] or [np.zeros(0, dtype=np.int64)]), total)


def _limit(kept: list[_Rows], room: int) -> float:
    """The largest key below which no more than ``room`` bytes of rows are left."""
    keys = np.concatenate([rows.keys for rows in kept])
    lengths = np.concatenate([rows.lengths for rows in kept])
    order = np.argsort(keys)
    there = int(np.searchsorted(np.cumsum(lengths[order]), room))
    return float(keys[order[min(max(1, there), len(order) - 1)]])


def _blank(content: NDArray[np.uint8], ends: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are empty lines."""
    blank: NDArray[np.bool_] = lengths == 1
    two = np.flatnonzero(lengths == 2)
    blank[two] = content[ends[two] - 2] == _RETURN
    return blank


def _blocks(path: Path) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
    """Pieces of the file that end where a row ends, and where in them rows end; a line break within quotes ends none."""
    rest = b""
    quoting = True
    with path.open("rb") as file:
        while True:
            read = file.read(_BLOCK)
            block = rest + read
            if not read and block and not block.endswith(b"\n"):
                block += b"\n"  # so that rows can be put together in any order
            ends = _ends(block, quoting)
            if not read and not len(ends) and block:  # a quote that is never closed
                quoting, ends = False, _ends(block, False)
            cut = int(ends[-1]) if len(ends) else 0
            rest = block[cut:]
            if len(rest) > _LONGEST:
                quoting, ends = False, _ends(block, False)
                cut = int(ends[-1]) if len(ends) else 0
                rest = block[cut:]
                if len(rest) > _LONGEST:
                    raise AssayError(f"{path} has a line of more than {_LONGEST // 2**20} MB: it is no table in text form.")
            if cut:
                yield block[:cut], ends
            if not read:
                if rest:
                    yield rest, _ends(rest, False)
                return


def _ends(block: bytes, quoting: bool) -> NDArray[np.int64]:
    """Positions behind the last byte of each row."""
    values = np.frombuffer(block, dtype=np.uint8)
    breaks = np.flatnonzero(values == _NEWLINE)
    if quoting and b'"' in block:
        quotes = np.flatnonzero(values == _QUOTE)
        breaks = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
    return breaks + 1
