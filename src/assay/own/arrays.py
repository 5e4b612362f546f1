"""Arrays in an ``.npz`` file: ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.errors import AssayError
from assay.own.limits import memory_bound
from assay.own.material import Material
from assay.own.preparing import Inputs
from assay.own.tables import as_groups, as_numbers, as_times, cleaned


def read_npz(path: Path, group: str | None, time: str | None) -> Material:
    """Inputs (N, D), series (N, C, L), images (N, H, W) of whole numbers, (N, H, W, C) or (N, C, H, W), or N strings.

    Nothing in the file is executed: arrays of Python objects are refused.

    Raises:
        AssayError: it is no such file, or the arrays do not belong together.
    """
    arrays = _stored(path)
    parts = None
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        counts = [len(arrays[f"y_{part}"]) for part in ("train", "test")]
        parts = np.repeat(["train", "test"], counts)
        for name in ("x", "y"):
            pair = [arrays[f"{name}_train"], arrays[f"{name}_test"]]
            if pair[0].shape[1:] != pair[1].shape[1:]:
                raise AssayError(f"{path}: {name}_train and {name}_test have different shapes: save them alike.")
            arrays[name] = np.concatenate(pair)
    if not {"x", "y"} <= arrays.keys():
        raise AssayError(f"{path} holds {', '.join(arrays) or 'nothing'}: save the inputs as x and the labels as y.")
    x, y = arrays["x"], arrays["y"]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or x.ndim < 1 or len(x) != len(y):
        raise AssayError(f"{path}: x is {x.shape} and y is {y.shape}; give one label to each input.")
    notes: list[str] = []
    form: dict[str, Any] = {}
    extra = {name: arrays.get(name.lower()) for name in (group, time) if name}
    for name, array in extra.items():
        if array is None or array.shape != y.shape:
            raise AssayError(f"{path} has no array {name!r} with one entry for each input: it holds {', '.join(arrays)}.")
    inputs, what = _inputs(path, x, notes, form)
    return Material(
        name=path.name,
        what=what,
        inputs=inputs,
        target=pd.Series(y, index=np.arange(len(y))),
        parts=parts,
        group=as_groups(pd.Series(extra[group])) if group else None,
        time=as_times(path, pd.Series(extra[time], name=time)) if time else None,
        notes=notes,
        form=form,
    )


def new_inputs(path: Path, form: Mapping[str, Any], notes: list[str]) -> tuple[Inputs, pd.Series | None]:
    """Examples ``x`` for a network that was trained on examples of this form, and ``y`` if it is there.

    Raises:
        AssayError: they are of another kind or size.
    """
    arrays = _stored(path)
    if "x" not in arrays:
        raise AssayError(f"{path} holds {', '.join(arrays) or 'nothing'}: save the inputs as x.")
    x, kind = arrays["x"], form["kind"]
    inputs: Inputs
    if kind == "text" or x.dtype.kind == "U":
        inputs = tuple(x.tolist()) if x.ndim == 1 else ()
        wanted, right = "N strings", kind == "text" and x.dtype.kind == "U" and x.ndim == 1
    elif kind == "table":
        columns = list(form["columns"])
        wanted, right = f"(N, {len(columns)})", x.ndim == 2 and x.shape[1] == len(columns)
        inputs = pd.DataFrame(x, columns=columns).apply(as_numbers) if right else ()
    else:
        shape = [form[name] for name in ("channels", "height", "width", "steps") if name in form] or list(form.get("shape", []))
        values = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) if x.dtype.kind in "biuf" else torch.zeros(0)
        if kind == "images":
            values = _channels_first(values, shape[0])
            base, scale = form.get("pixels") or ([0.0, 255.0] if x.dtype == np.uint8 else [0.0, 1.0])
            values = (values - base) / scale
        inputs, wanted, right = values, f"(N, {', '.join(map(str, shape))})", list(values.shape[1:]) == shape
        if right and not bool(values.isfinite().all()):
            raise AssayError(f"{path}: x has values that are no finite numbers: fill or remove them.")
    if not right:
        raise AssayError(f"{path}: x is {x.dtype} {x.shape}, and the run was trained on {kind} {wanted}: give such.")
    y = arrays.get("y")
    if y is not None and (y.ndim != 1 or len(y) != len(x)):
        notes.append(f"y is {y.shape} and not one label an example, so it is left out")
        y = None
    return inputs, None if y is None else pd.Series(y)


def _stored(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > memory_bound() // 4:
            raise AssayError(
                f"{path} unpacks to {size / 2**30:.3g} GB, of which {memory_bound() / 2**32:.3g} GB may be read: "
                "save fewer examples, or give more memory (ASSAY_MEMORY)."
            )
        with np.load(path, allow_pickle=False) as stored:
            return {name.lower(): stored[name] for name in stored.files}
    except AssayError:
        raise
    except Exception as error:  # a spoilt archive fails in a dozen ways, from zlib's to NotImplementedError
        why = "it holds Python objects, which could run code" if "pickle" in str(error) else "it is no .npz file, or broken"
        raise AssayError(f"{path} is not read, since {why}: save plain arrays x and y with numpy.savez.") from error


def _channels_first(values: Tensor, *wanted: int) -> Tensor:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W), where C is one of those wanted."""
    if values.dim() == 3:
        return values.unsqueeze(1)
    if values.dim() == 4 and values.shape[3] in wanted and values.shape[1] not in wanted:
        return values.permute(0, 3, 1, 2).contiguous()
    return values


def _inputs(path: Path, x: NDArray[Any], notes: list[str], form: dict[str, Any]) -> tuple[Inputs, str]:
    if x.ndim == 1 and x.dtype.kind == "U":
        return tuple(x.tolist()), "texts"
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4):
        raise AssayError(
            f"{path}: x is {x.dtype} {x.shape}; give numbers (N, D), series (N, C, L), images (N, C, H, W) or N strings."
        )
    if x.ndim == 2:
        frame = pd.DataFrame(x, columns=[f"x{number}" for number in range(x.shape[1])])
        return cleaned(frame, notes), f"rows of {x.shape[1]} numbers"
    bad = ~np.isfinite(x)
    if bad.any():
        place = tuple(int(one) for one in np.argwhere(bad)[0])
        raise AssayError(f"{path}: x has {bad.sum()} values that are no finite numbers (first at {place}): fill or remove them.")
    images = x.ndim == 4 or x.dtype.kind in "biu"
    values = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if not images:
        return values, f"series of {x.shape[2]} steps"
    values = _channels_first(values, 1, 3, 4)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        base, scale = (0.0, 255.0) if low >= 0 and high <= 255 else (low, high - low)
        values = (values - base) / scale
        form["pixels"] = [base, scale]
        notes.append(f"pixels brought from [{low:g}, {high:g}] into [0, 1]")
    return values, f"images of {values.shape[2]}x{values.shape[3]}"
