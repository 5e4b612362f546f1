"""Series in the rows of a table: a row is one step, and a column says of which series (what a database or a logger exports)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own.limits import drawn, memory_bound, sampled
from assay.own.material import Material
from assay.own.named import Named
from assay.own.series import filled
from assay.own.tables import as_groups, as_numbers, as_times, is_numeric, rows_with, some

#: Steps are taken as equally far apart if no distance is further from a multiple of the usual one than this share of it.
_UNEVEN = 0.1
#: A grid of equal steps may be so many times as long as the rows of the longest series; else the time is no clock.
_SPARSEST = 10
#: Bytes of memory at the peak for each value of an input: rows, series, their scaled copies, their splits.
_BYTES = 40


@dataclass(frozen=True)
class Steps:
    """Series as they lie in a table.

    Args:
        names: (N,) of the series, in the order of their first rows.
        first: (N,) positions of the first row of each.
        values: (N, C, L), NaN where there is no step.
        lengths: (N,) steps from the first to the last.
        step: usual distance of two steps in time; ``None`` where they are taken in order.
    """

    names: list[str]
    first: NDArray[np.int64]
    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    step: float | None


def read_long(path: Path, frame: pd.DataFrame, named: Named, notes: list[str]) -> Material:
    """Series (N, C, L) with one target each.

    Args:
        path: of the table, for messages.
        frame: its rows, indexed by row number, all with a target.
        named: the columns; ``series`` and ``target`` are among them.
        notes: what was repaired is added here.

    Raises:
        AssayError: a series has several targets, or there is no column of numbers.
    """
    assert named.series is not None
    frame = rows_with(frame, named.series, notes)
    if frame.empty:
        raise AssayError(f"{path} has no row with a value in column {named.series!r}: give every row the name of its series.")
    columns = _values(path, frame, named, notes)
    found = _steps(path, frame, named, columns, notes)
    kept = drawn(len(found.names), memory_bound() // (found.values[0].size * _BYTES))
    if len(kept) < len(found.names):
        notes.append(sampled(len(kept), len(found.names), "series"))
    _same_within(path, frame, named.series, str(named.target))
    if named.group is not None:
        _same_within(path, frame, named.series, named.group)
    shortest, longest = found.lengths[kept].min(), found.values.shape[2]
    if shortest < longest:
        notes.append(f"series of {shortest} to {longest} steps: short ones go on with their last value")
    inside = np.arange(longest) < found.lengths[kept, None]  # (N, L)
    gaps = int((np.isnan(found.values[kept]) & inside[:, None, :]).sum())
    if gaps:
        notes.append(f"{gaps} gaps filled between their neighbours")
    heads = frame.iloc[found.first[kept]]
    return Material(
        name=path.name,
        what=f"series of {longest} steps" + (f" in {len(columns)} channels ({some(columns)})" if len(columns) > 1 else ""),
        inputs=filled(path, found.values[kept]),
        target=heads[named.target],
        group=as_groups(heads[named.group]) if named.group else None,
        notes=notes,
        form={"target": named.target, "series": named.series, "time": named.time, "step": found.step, "values": columns},
    )


def _steps(
    path: Path, frame: pd.DataFrame, named: Named, columns: list[str], notes: list[str], known: float | None = None
) -> Steps:
    """Put the rows of each series in order, and on a grid of equal steps where the time tells one.

    Raises:
        AssayError: a row has no time, or a series no finite value in a column.
    """
    which, names = pd.factorize(frame[named.series].astype(str).str.strip())  # (R,), numbered as they first appear
    numbers = np.stack([as_numbers(frame[name]).to_numpy() for name in columns], axis=1)  # (R, C)
    first = np.unique(which, return_index=True)[1]
    if named.time is None:
        place, step = pd.Series(which).groupby(which).cumcount().to_numpy(), None
    else:
        place, step = _places(which, as_times(path, frame[named.time]), notes, known)
    lengths = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(lengths, which, place + 1)
    values = np.full((len(names), int(lengths.max()), len(columns)), np.nan)
    values[which[::-1], place[::-1]] = numbers[::-1]  # of two rows for one step the first stays
    hollow = np.argwhere(np.isnan(values).all(axis=1))
    if len(hollow):
        row, column = hollow[0]
        raise AssayError(
            f"Series {names[row]!r} of {path} has no finite number in column {columns[column]!r} "
            f"(from row {frame.index[first[row]]}): remove that series, or leave that column out."
        )
    return Steps([str(name) for name in names], first, values.transpose(0, 2, 1), lengths, step)


def _places(
    which: NDArray[np.int64], times: NDArray[np.float64], notes: list[str], known: float | None
) -> tuple[NDArray[np.int64], float | None]:
    """Which step of its series each row is, and how far apart the steps are (``None``: taken in order)."""
    order = np.lexsort((times, which))
    one, moment = which[order], times[order]
    same = one[1:] == one[:-1]
    apart = np.diff(moment)
    twice = same & (apart == 0)
    if twice.any():
        notes.append(f"{twice.sum()} rows with a time that their series has already left out")
    between = apart[same & (apart > 0)]
    starts = pd.Series(moment).groupby(one).transform("first").to_numpy()
    place = np.empty(len(which), dtype=np.int64)
    if len(between):
        step = known or float(np.median(between))
        multiples = between / step
        even = bool((np.abs(multiples - multiples.round()) <= _UNEVEN).all() and (multiples.round() >= 1).all())
        on_grid = ((moment - starts) / step).round()
        if even and on_grid.max() < _SPARSEST * np.bincount(which).max():
            place[order] = on_grid.astype(np.int64)
            return place, step
        notes.append("steps of unequal length taken one after the other")
    fresh = np.concatenate([[True], ~twice])  # a row with the time of the one before shares its step
    place[order] = pd.Series(fresh.astype(np.int64)).groupby(one).cumsum().to_numpy() - 1
    return place, None


def _values(path: Path, frame: pd.DataFrame, named: Named, notes: list[str]) -> list[str]:
    """Columns of numbers that are not named for something else."""
    others = [name for name in frame if name not in named.given().values()]
    columns = [name for name in others if frame[name].notna().any() and is_numeric(frame[name])]
    if not columns:
        raise AssayError(f"{path} has no column of numbers besides {', '.join(named.given().values())}: give the series some.")
    if len(columns) < len(others):
        notes.append(f"columns of words left out: {some([name for name in others if name not in columns])}")
    return columns


def _same_within(path: Path, frame: pd.DataFrame, series: str, column: str) -> None:
    names = frame[series].astype(str).str.strip()
    differs = frame[column].astype(str) != frame[column].astype(str).groupby(names).transform("first")
    if differs.any():
        row = frame.index[differs][0]
        raise AssayError(
            f"Series {names[row]!r} of {path} has several values in column {column!r} (row {row}: {frame[column][row]!r}): "
            "give all rows of a series the same."
        )


def new_series(path: Path, frame: pd.DataFrame, form: Mapping[str, Any], notes: list[str]) -> Steps:
    """Series of a further table, put in order as :func:`read_long` did with the first; ``form`` is what it left."""
    named = Named(series=form["series"], time=form["time"])
    frame = rows_with(frame, form["series"], notes)
    if frame.empty:
        raise AssayError(f"{path} has no row with a value in column {form['series']!r}: give every row the name of its series.")
    return _steps(path, frame, named, list(form["values"]), notes, form["step"])
