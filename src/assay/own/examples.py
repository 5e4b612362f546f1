"""All labelled examples of somebody's data together, for looking at each of them: nothing is held out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.data import Dataset
from assay.own import baselines
from assay.own.material import Layout, Material, lay_out, prepare
from assay.own.named import Named
from assay.own.opening import known
from assay.own.preparing import prepared
from assay.own.reading import gather


@dataclass(frozen=True)
class Examples:
    """Labelled examples and where each stands.

    Args:
        data: all of them as the training split, as networks take them.
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        ids: (N,) the file, or the number of the row: different for all.
        called: what an id is: ``"file"``, ``"row"`` or ``"example"``.
        material: as they were read; ``None`` for a known data set.
        groups: (N,) of examples that belong together, or ``None``.
    """

    data: Dataset
    kind: str
    ids: tuple[str, ...]
    called: str
    material: Material | None = None
    groups: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def all_examples(on: str | Path | Dataset, named: Named = Named()) -> Examples:  # noqa: B008 (it cannot be changed)
    """Read data without splitting them; of a known data set, the training examples.

    Args:
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set.
        named: columns that have a meaning.

    Raises:
        AssayError: the data cannot be read.
    """
    if isinstance(on, Dataset) or not Path(on).exists():
        data = on if isinstance(on, Dataset) else known(str(on))
        numbers = tuple(str(number) for number in range(len(data.train)))
        return Examples(prepared(data)[0], baselines.kind(data), numbers, "training example")
    found = lay_out(gather(Path(on), named), 0)
    material = found.material
    return of_layout(found, *names(material))


def of_layout(found: Layout, ids: tuple[str, ...], called: str) -> Examples:
    """The examples of a layout, whatever its splits are."""
    nothing = np.zeros(0, np.int64)
    places = {"train": np.arange(len(found.labels)), "valid": nothing, "test": nothing}
    data, _ = prepare(replace(found, places=places, how="nothing held out"))
    return Examples(data, baselines.kind(data), ids, called, found.material, found.material.group)


def names(material: Material) -> tuple[tuple[str, ...], str]:
    """A name for each example, no two alike, and what such a name is."""
    index = material.target.index
    ids = [str(label) for label in index]
    # A target with a name was a column of a table.
    number = "example" if material.target.name is None else "row"
    called = "file" if any(isinstance(label, str) for label in index) else number
    seen: Counter[str] = Counter()
    for place, name in enumerate(ids):
        seen[name] += 1
        if seen[name] > 1:
            ids[place] = f"{name} ({seen[name]})"
    return tuple(ids), called
