"""Series in the ``.ts`` format of the time-series archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own.limits import memory_bound
from assay.own.material import Material


def read_ts(path: Path) -> Material:
    """Series (N, C, L); with ``NAME_TRAIN.ts`` beside ``NAME_TEST.ts`` these are the training and test parts.

    Raises:
        AssayError: naming the first line that cannot be understood.
    """
    files = [path]
    for one, other in (("_TRAIN", "_TEST"), ("_TEST", "_TRAIN")):
        sibling = path.with_name(path.name.replace(one, other))
        if one in path.name and sibling.is_file():
            files = [path, sibling]
    if sum(file.stat().st_size for file in files) > memory_bound() // 8:
        raise AssayError(
            f"{path} is larger than {memory_bound() / 2**33:.3g} GB: give a part of it, or more memory (ASSAY_MEMORY)."
        )
    rows: list[list[NDArray[np.float64]]] = []
    labels: list[str] = []
    parts: list[str] = []
    tasks = set()
    for file in files:
        found, task = _lines(file, rows, labels)
        tasks.add(task)
        parts += ["test" if "_TEST" in file.name else "train"] * found
    notes: list[str] = []
    values, lengths = _stacked(path, rows)
    beyond = np.isinf(values)
    if beyond.any():
        notes.append(f"{beyond.sum()} infinite numbers taken as gaps")
        values[beyond] = np.nan
    longest = values.shape[2]
    if min(lengths) != longest:
        notes.append(f"series of {min(lengths)} to {longest} steps: short ones go on with their last value")
        gaps = sum(int((~np.isfinite(channel)).sum()) for row in rows for channel in row)
    else:
        gaps = int(np.isnan(values).sum())
    if gaps:
        notes.append(f"{gaps} gaps filled between their neighbours")
    return Material(
        name=path.name,
        what=f"series of {longest} steps" + (f" in {values.shape[1]} channels" if values.shape[1] > 1 else ""),
        inputs=filled(path, values),
        target=pd.Series(labels, dtype=object),
        parts=np.array(parts) if len(files) == 2 else None,
        notes=notes,
        task=tasks.pop() if len(tasks) == 1 else None,
    )


def read_series(path: Path) -> tuple[NDArray[np.float64], list[str] | None]:
    """The series (N, C, L) of one file, gaps (also those behind short ones) NaN, and their labels where it has them."""
    rows: list[list[NDArray[np.float64]]] = []
    labels: list[str] = []
    found, _ = _lines(path, rows, labels, need=False)
    return _stacked(path, rows)[0], labels if len(labels) == found else None


def _stacked(path: Path, rows: Sequence[Sequence[NDArray[np.float64]]]) -> tuple[NDArray[np.float64], list[int]]:
    """Series of one shape (N, C, L), NaN behind short ones, and how long each is."""
    channels = {len(row) for row in rows}
    if len(channels) != 1:
        raise AssayError(f"The series in {path} have {min(channels)} to {max(channels)} channels: give all as many.")
    lengths = [max(len(channel) for channel in row) for row in rows]
    values = np.full((len(rows), channels.pop(), max(lengths)), np.nan)
    for number, row in enumerate(rows):
        for channel, given in enumerate(row):
            values[number, channel, : len(given)] = given
    return values, lengths


def filled(path: Path, values: NDArray[np.float64]) -> torch.Tensor:
    """Gaps of (N, C, L) are filled along each series: straight lines inside, the nearest value at the ends."""
    flat = pd.DataFrame(values.reshape(-1, values.shape[-1]))
    whole = (
        flat.interpolate(axis=1, limit_direction="both").to_numpy(np.float32) if flat.isna().any(axis=None) else flat.to_numpy()
    )
    if not np.isfinite(whole).all():
        row = int(np.argwhere(~np.isfinite(whole))[0][0]) // values.shape[1]
        raise AssayError(f"Series {row + 1} of {path} has no finite value in one channel: remove it.")
    return torch.from_numpy(whole.reshape(values.shape).astype(np.float32))


def _lines(path: Path, rows: list[list[NDArray[np.float64]]], labels: list[str], need: bool = True) -> tuple[int, str | None]:
    """Add the series and labels of one file (which may have none unless they are needed).

    Returns:
        How many series there are, and the task that the head of the file tells.
    """
    found, data, labelled, task = 0, False, True, None
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not data:
            words = line.lower().split()
            if words[0] == "@timestamps" and words[1:2] == ["true"]:
                raise AssayError(f"{path} gives a time with each value (@timeStamps true), which is not read: give values alone.")
            if words[0] in ("@classlabel", "@targetlabel"):
                labelled = words[1:2] == ["true"]
                task = "classification" if words[0] == "@classlabel" else "regression"
            data = words[0] == "@data"
            continue
        if not labelled and need:
            raise AssayError(f"{path} has no labels (@classLabel or @targetLabel false): give a file that has them.")
        *channels, label = line.split(":") if labelled else [*line.split(":"), ""]
        try:
            rows.append([np.array(channel.replace("?", "nan").split(","), dtype=np.float64) for channel in channels])
        except ValueError:
            raise AssayError(f"Line {number} of {path} is no series of numbers: mend or remove it.") from None
        if not channels:
            raise AssayError(f"Line {number} of {path} has no label after a colon: mend or remove it.")
        if labelled:
            if not label.strip():
                raise AssayError(f"Line {number} of {path} has no label after its last colon: mend or remove it.")
            labels.append(label.strip())
        found += 1
    if not found:
        raise AssayError(f"{path} has no series after a line @data: give a .ts file of the time-series archives.")
    return found, task if labelled else None
