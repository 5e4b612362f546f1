"""All labelled examples of somebody's data together, for looking at each of them: nothing is held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.data import Dataset
from assay.own import audio, baselines, images
from assay.own.folders import Files, files_below, hidden, short
from assay.own.material import Material, lay_out, marks, names, prepare
from assay.own.named import Named
from assay.own.opening import known
from assay.own.preparing import Inputs, prepared
from assay.own.reading import gather
from assay.own.tables import read_rows, target_of, understood
from assay.own.unpacked import content, is_archive

#: What the target of examples without one is called.
_NOTHING = "(no label)"


@dataclass(frozen=True)
class Pool:
    """Examples and where each stands, with labels or without.

    Args:
        material: as they were read.
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        ids: (N,) the file, or the number of the row: different for all.
        called: what an id is: ``"file"``, ``"row"`` or ``"example"``.
    """

    material: Material
    kind: str
    ids: tuple[str, ...]
    called: str

    def __len__(self) -> int:
        return len(self.ids)

    def cells(self, place: int) -> list[tuple[str, str]]:
        """Column and value, in words, of one row of a table."""
        assert isinstance(self.material.inputs, pd.DataFrame)
        return [(str(name), _value(value)) for name, value in self.material.inputs.iloc[place].items()]

    def shown(self, place: int, letters: int = 300) -> str:
        """An example in a line of words; its name where it is a picture or a sound."""
        inputs = self.material.inputs
        if isinstance(inputs, tuple):
            words = inputs[place]
        elif isinstance(inputs, pd.DataFrame):
            words = ", ".join(f"{name} {value}" for name, value in self.cells(place))
        else:
            words = self.ids[place]
        words = " ".join(words.split())
        return words[:letters] + ("…" if len(words) > letters else "")

    def marks(self, places: Sequence[int]) -> list[str]:
        """What the content of these examples is known by: of a file its bytes, else what was read, without the label."""
        material, inputs = self.material, self.material.inputs
        if material.files is not None:
            files = [material.files[place] for place in places]
            return [f"f{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}" for file in files]
        if not places:
            return []
        if isinstance(inputs, Tensor):
            some: Any = inputs[torch.tensor(list(places))]
        elif isinstance(inputs, pd.DataFrame):
            some = inputs.iloc[list(places)]
        else:
            some = tuple(inputs[place] for place in places)
        return [f"m{number:016x}" for number in marks(some).view(np.uint64).tolist()]


@dataclass(frozen=True)
class Examples(Pool):
    """Labelled examples.

    Args:
        data: all of them as the training split, as networks take them.
        groups: (N,) of examples that belong together, or ``None``.
    """

    data: Dataset
    groups: NDArray[np.str_] | None = None


def _value(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.10g}"
    return str(value)


def all_examples(on: str | Path | Dataset, named: Named = Named()) -> Examples:  # noqa: B008 (it cannot be changed)
    """Read data without splitting them; of a known data set, the training examples.

    Args:
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set.
        named: columns that have a meaning.

    Raises:
        AssayError: the data cannot be read.
    """
    if isinstance(on, Dataset) or not Path(on).exists():
        return _known(on if isinstance(on, Dataset) else known(str(on)))
    found = lay_out(gather(Path(on), named), 0)
    nothing = np.zeros(0, np.int64)
    places = {"train": np.arange(len(found.labels)), "valid": nothing, "test": nothing}
    data, _ = prepare(replace(found, places=places, how="nothing held out"))
    return Examples(found.material, baselines.kind(data), *names(found.material), data, found.material.group)


def unlabelled(on: str | Path, named: Named = Named()) -> Pool:  # noqa: B008 (it cannot be changed)
    """Read examples that have no labels, or whose labels nobody is to look at.

    Args:
        on: a folder of images or wav files, in folders of any kind; a .csv, .tsv or .parquet table without a target; anything
            else that :func:`assay.own.read` understands, or the name of a known data set, whose labels are left out.
        named: columns that have a meaning; a target is left out of what is looked at.

    Raises:
        AssayError: the data cannot be read.
    """
    path = Path(on)
    if not path.exists():
        return _known(known(str(on)))
    if is_archive(path):
        path = content(path)
    files = [file for file in path.rglob("*") if file.suffix and not hidden(file.name)] if path.is_dir() else [path]
    found = Counter(file.suffix.lower() for file in files)
    pictures, sounds = (sum(found[suffix] for suffix in kind) for kind in (images.SUFFIXES, audio.SUFFIXES))
    if path.is_dir() and pictures + sounds and not (path / "dataset_info.json").exists():
        material = _loose(path, audio.SUFFIXES if sounds > pictures else images.SUFFIXES)
    elif path.suffix.lower() in (".csv", ".tsv", ".parquet", ".pq"):
        notes: list[str] = []
        frame = read_rows(path, notes)
        if named.target is not None:
            target_of(path, list(frame), named)  # that it is there
            frame = frame.drop(columns=named.target)
        material = understood(path, frame.assign(**{_NOTHING: "?"}), replace(named, target=_NOTHING), notes)
    else:
        material = gather(path, named)
    return Pool(material, kind_of(material), *names(material))


def _loose(folder: Path, suffixes: Collection[str]) -> Material:
    """Images or recordings, whatever folders they lie in."""
    paths = files_below(folder, suffixes)
    target = pd.Series(["?"] * len(paths), dtype=object, index=[short(path, folder) for path in paths])
    files = Files(folder, paths, target)
    name = folder.name or str(folder.resolve().name)
    if suffixes == images.SUFFIXES:
        files, pixels, what = images.pictures(files)
        return Material(name, what, pixels, files.target, notes=files.notes, files=files.places)
    files, bands, what, sound = audio.recordings(files)
    return Material(
        name, what, bands, files.target, notes=files.notes, form=sound.as_form(), history=sound.history, files=files.places
    )


def kind_of(material: Material) -> str:
    """``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``; see :func:`assay.own.baselines.kind`."""
    if isinstance(material.inputs, tuple):
        return "text"
    if isinstance(material.inputs, pd.DataFrame):
        return "table"
    if any(step.startswith("log_mel(") for step in material.history):
        return "audio"
    return {4: "images", 3: "series"}.get(material.inputs.dim(), "table")


def _known(data: Dataset) -> Examples:
    kind, inputs = baselines.kind(data), data.train.inputs
    shown: Inputs = inputs
    if kind == "table" and isinstance(inputs, Tensor):
        columns = data.features or tuple(f"x{number}" for number in range(inputs.shape[1]))
        shown = pd.DataFrame(inputs.double().numpy(), columns=list(columns))
    labels = data.train.labels.numpy()
    target = pd.Series([data.classes[k] for k in labels] if data.classes else labels)
    numbers = tuple(str(number) for number in range(len(labels)))
    return Examples(Material(data.name, "examples", shown, target), kind, numbers, "training example", prepared(data)[0])
