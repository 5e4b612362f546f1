"""A named data set written to disk the way people keep their own: an image folder, a CSV, arrays.

For trying things out, and to see how one's own data have to lie. The test examples go to a place of their own, as new data
that nobody has trained on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from assay.data.dataset import Dataset, Split
from assay.errors import AssayError
from assay.files import write_atomically
from assay.paths import folder


def save_as_own(data: Dataset, to: Path, limit: int | None = None) -> dict[Path, int]:
    """Write the training examples to ``to`` and the test examples beside it.

    Images become a folder with one subfolder of PNG files for each class, texts and tables a CSV, series an ``.npz``.

    Args:
        data: what to write; images have to lie in [0, 1].
        to: a folder for images, else a file; its ending is put right.
        limit: at most so many examples of each of the two parts, each class in proportion.

    Returns:
        The two places (``photos`` and ``photos-new``, ``patients.csv`` and ``patients-new.csv``) with the number of examples.

    Raises:
        AssayError: something lies there already, or the data are of a kind that people do not keep so.
    """
    images = isinstance(data.train.inputs, Tensor) and data.train.inputs.dim() == 4
    if data.task not in ("classification", "regression") or (images and not data.classes):
        raise AssayError(
            f"{data.name} is of the kind {data.task}, which has no form of one's own: choose images, a table or texts."
        )
    if limit is not None:
        data = data.subset(train=min(limit, len(data.train)), test=min(limit, len(data.test)))
    dims = data.train.inputs.dim() if isinstance(data.train.inputs, Tensor) else 0
    suffix = {0: ".csv", 2: ".csv", 3: ".npz", 4: ""}[dims]
    places = (to.with_name(to.stem + suffix), to.with_name(f"{to.stem}-new{suffix}"))
    there = [place for place in places if place.exists()]
    if there:
        raise AssayError(f"{there[0]} is there already: name another place, or remove it.")
    for place, split in zip(places, (data.train, data.test), strict=True):
        folder(place.parent)
        if dims == 4:
            _images(place, data, split)
        elif dims == 3:
            write_atomically(place, partial(_arrays, data, split))
        else:
            write_atomically(place, partial(_frame(data, split).to_csv, index=False))
    return {place: len(split) for place, split in zip(places, (data.train, data.test), strict=True)}


def _arrays(data: Dataset, split: Split, path: Path) -> None:
    assert isinstance(split.inputs, Tensor)
    with path.open("wb") as stream:  # given a path, numpy would put an ending of its own on it
        np.savez_compressed(stream, x=split.inputs.numpy(), y=_targets(data, split))


def _targets(data: Dataset, split: Split) -> NDArray[Any]:
    if not data.classes:
        return split.labels.numpy()
    names: NDArray[Any] = np.array(data.classes)[split.labels.numpy()]
    return names


def _frame(data: Dataset, split: Split) -> pd.DataFrame:
    if not isinstance(split.inputs, Tensor):
        return pd.DataFrame({"text": split.inputs, "label": _targets(data, split)})
    names = data.features or [f"x{number}" for number in range(split.inputs.shape[1])]
    return pd.DataFrame(split.inputs.numpy(), columns=list(names)).assign(target=_targets(data, split))


def _images(root: Path, data: Dataset, split: Split) -> None:
    from PIL import Image

    assert isinstance(split.inputs, Tensor)
    low, high = split.inputs.min().item(), split.inputs.max().item()
    if low < 0 or high > 1:
        raise AssayError(f"The images of {data.name} lie in [{low:.3g}, {high:.3g}], not in [0, 1]: choose another data set.")
    pixels = split.inputs.mul(255).round().byte().permute(0, 2, 3, 1).squeeze(-1).numpy()  # (N, H, W) or (N, H, W, 3)
    for name in data.classes:
        folder(root / name.replace("/", "-"))
    for number, (image, name) in enumerate(zip(pixels, _targets(data, split), strict=True)):
        Image.fromarray(image).save(root / str(name).replace("/", "-") / f"{number:06d}.png")
