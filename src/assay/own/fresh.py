"""New examples for a network that is trained already: read in pieces, in the form that it knows, without needing a target."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from assay.errors import AssayError
from assay.own.folders import files_below
from assay.own.preparing import Columns, Inputs, Preparation

#: Examples that are in memory at a time.
CHUNK = 1024
#: A column of numbers may hold so large a share of words, which are taken as gaps; as when training data are read.
_MOST_WORDS = 0.2


@dataclass
class Fresh:
    """Some examples as they were read.

    Args:
        ids: for each, the file or the row that it came from.
        inputs: as a :class:`~assay.own.preparing.Preparation` takes them.
        target: what was found in the target column (or as the name of the folder), if there is one.
    """

    ids: list[str]
    inputs: Inputs
    target: pd.Series | None = None

    def __len__(self) -> int:
        return len(self.ids)


#: ``reader(path, preparation, notes, chunk)``
Reader = Callable[[Path, Preparation, list[str], int], Iterator[Fresh]]


def stream(path: str | Path, preparation: Preparation, notes: list[str], chunk: int = CHUNK) -> Iterator[Fresh]:
    """Read new examples piece by piece.

    Args:
        path: a folder of images or wav files (in class folders or not), or one of them; a .csv, .tsv or .parquet table; an
            .npz with ``x``; a .ts file; a .txt file with a text in each line: of the kind that the preparation knows.
        preparation: of the network that the examples are for.
        notes: what was left out or taken for something else is added here.
        chunk: examples in a piece.

    Raises:
        AssayError: it cannot be read, or is not of that kind: a column is missing or of another type, another size.
    """
    path = Path(path)
    if not path.exists():
        raise AssayError(f"There is no {path}: check the path.")
    reader = _reader(path, preparation)
    try:
        found = False
        for piece in reader(path, preparation, notes, chunk):
            if len(piece):
                found = True
                yield piece
    except OSError as error:
        raise AssayError(f"{path} cannot be read ({error.strerror or error}): mend its permissions, or name another.") from error
    if not found:
        raise AssayError(f"{path} holds no example that could be read: give a file or folder that has some.")


def _reader(path: Path, preparation: Preparation) -> Reader:
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix == ".npz" and preparation.kind in ("table", "text", "images", "series", "numbers"):
        return _arrays
    readers = {"images": _images, "audio": _audio, "table": _tables, "text": _texts, "series": _series}
    if preparation.kind not in readers:
        raise AssayError(f"The run was trained on {preparation.kind}, of which new ones are read from .npz files only: give one.")
    return readers[preparation.kind]


# ---------------------------------------------------------------------------------------------------- images and audio


def _images(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    from assay.own.images import SUFFIXES, as_tensor, decode

    form = preparation.form
    mode, size = "L" if form["channels"] == 1 else "RGB", (form["width"], form["height"])

    def read(files: Sequence[Path]) -> list[Tensor | None]:
        return [None if pixels is None else as_tensor(pixels) for pixels in decode(files, size, mode)]

    return _files(path, SUFFIXES, "image", read, notes, chunk)


def _audio(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    from assay.own.audio import SUFFIXES, Sound, spectrograms

    sound = Sound.from_form(preparation.form)
    return _files(path, SUFFIXES, "wav file", lambda files: spectrograms(files, sound), notes, chunk)


def _files(
    path: Path,
    suffixes: Collection[str],
    what: str,
    read: Callable[[Sequence[Path]], list[Tensor | None]],
    notes: list[str],
    chunk: int,
) -> Iterator[Fresh]:
    """Examples of one file each: ``read`` makes them tensors, ``None`` where one is broken."""
    if path.is_file() and path.suffix.lower() not in suffixes:
        raise AssayError(f"{path} is no {what}, and the run was trained on {what}s: give one, or a folder of them.")
    root = path if path.is_dir() else path.parent
    files = files_below(path, suffixes) if path.is_dir() else [path]
    if not files:
        raise AssayError(f"The folder {path} holds no {what}s: name the folder that does.")
    names = [str(file.relative_to(root)) for file in files]
    # What lies in folders is taken as sorted into classes; what lies loose has none.
    folders = [file.parent.name if file.parent != root else None for file in files]
    broken = []
    for begin in range(0, len(files), chunk):
        found = read(files[begin : begin + chunk])
        there = [place for place, one in enumerate(found, start=begin) if one is not None]
        broken += [names[place] for place in range(begin, begin + len(found)) if found[place - begin] is None]
        if not there:
            continue
        target = pd.Series([folders[place] for place in there], dtype=object)
        inputs = torch.stack([one for one in found if one is not None])
        yield Fresh([names[place] for place in there], inputs, target if target.notna().any() else None)
    if broken:
        notes.append(f"{len(broken)} unreadable {what}s left out ({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''})")


# ---------------------------------------------------------------------------------------------------- tables


def _tables(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    columns: Mapping[str, str] = preparation.form["columns"]
    known = {
        name: {*words, *rare}
        for step in preparation.steps
        if isinstance(step, Columns)
        for name, words, rare in zip(step.words, step.categories, step.rare, strict=True)
    }
    strange = set(known)  # columns of which no word was seen in training, so far
    for frame in _frames(path, preparation, notes, chunk, [name for name, kind in columns.items() if kind == "word"]):
        _require(path, frame, list(columns))
        found = {name: _column(path, frame[name], kind, preparation) for name, kind in columns.items()}
        strange -= {name for name in strange if found[name].isin(known[name]).any()}
        yield Fresh([str(row) for row in frame.index], pd.DataFrame(found, index=frame.index), _target(frame, preparation))
    if strange:
        notes.append(f"no value of {', '.join(map(repr, sorted(strange)))} was ever seen in training")


def _texts(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for begin in range(0, len(lines), chunk):
            piece = lines[begin : begin + chunk]
            yield Fresh([str(begin + place) for place in range(1, len(piece) + 1)], tuple(piece))
        return
    name = preparation.form.get("column")
    for frame in _frames(path, preparation, notes, chunk, [name or "text"]):
        if name is None:  # a named data set: its texts were never in a column
            name = "text" if "text" in frame or frame.shape[1] > 1 else str(frame.columns[0])
        _require(path, frame, [name])
        texts = frame[name].fillna("").astype(str).str.strip()
        yield Fresh([str(row) for row in frame.index], tuple(texts), _target(frame, preparation))


def _series(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    from assay.own.series import filled, read_series

    form = preparation.form
    if path.suffix.lower() == ".ts":
        values, labels = read_series(path)
        inputs = filled(path, _of_length(path, values, form, notes))
        target = None if labels is None else pd.Series(labels, dtype=object)
        for begin in range(0, len(inputs), chunk):
            piece = inputs[begin : begin + chunk]
            ids = [str(begin + place) for place in range(1, len(piece) + 1)]
            yield Fresh(ids, piece, None if target is None else target.iloc[begin : begin + chunk])
        return
    if "series" in form:
        yield from _long(path, preparation, notes, chunk)
        return
    columns = form.get("columns")
    if columns is None:
        raise AssayError(f"{path} is not read, since the run was trained on series from {_source(form)}: give such a file.")
    for frame in _frames(path, preparation, notes, chunk, []):
        _require(path, frame, columns)
        numbers = pd.DataFrame({name: _column(path, frame[name], "number", preparation) for name in columns})
        yield Fresh([str(r) for r in frame.index], filled(path, numbers.to_numpy()[:, None, :]), _target(frame, preparation))


def _long(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    """The steps of a series may lie anywhere in the file, so it is read as a whole."""
    from assay.own.long import new_series
    from assay.own.series import filled

    form = preparation.form
    frame = pd.concat(list(_frames(path, preparation, notes, 100_000, [form["series"]])))
    _require(path, frame, [name for name in (form["series"], form["time"], *form["values"]) if name is not None])
    found = new_series(path, frame, form, notes)
    inputs = filled(path, _of_length(path, found.values, form, notes))
    target = _target(frame, preparation)
    for begin in range(0, len(inputs), chunk):
        part = slice(begin, begin + chunk)
        yield Fresh(found.names[part], inputs[part], None if target is None else target.iloc[found.first[part]])


def _source(form: Mapping[str, Any]) -> str:
    return f"a .ts or .npz file ({form['channels']} channels of {form['steps']} steps)"


def _of_length(path: Path, values: np.ndarray[Any, Any], form: Mapping[str, Any], notes: list[str]) -> np.ndarray[Any, Any]:
    """Series (N, C, L) with as many steps as the network was trained on; what lacks is a gap."""
    channels, steps = form["channels"], form["steps"]
    if values.shape[1] != channels:
        raise AssayError(f"The series in {path} have {values.shape[1]} channels, and the run was trained on {channels}.")
    if values.shape[2] > steps:
        notes.append(f"series are cut to their first {steps} steps, as in training")
    whole = np.full((len(values), channels, steps), np.nan)
    whole[:, :, : min(steps, values.shape[2])] = values[:, :, :steps]
    return whole


# ---------------------------------------------------------------------------------------------------- columns


def _frames(path: Path, preparation: Preparation, notes: list[str], chunk: int, words: Sequence[str]) -> Iterator[pd.DataFrame]:
    from assay.own.tables import frames

    if path.is_dir() or path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq"):
        raise AssayError(f"{path} is no table, and the run was trained on one: give a .csv, .tsv or .parquet file.")
    target = preparation.form.get("target")
    yield from frames(path, notes, chunk, [*words, target] if target and target not in words else words)


def _require(path: Path, frame: pd.DataFrame, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in frame]
    if missing:
        near = difflib.get_close_matches(missing[0], [name for name in frame if name not in wanted], n=2, cutoff=0.5)
        some = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        hint = f" (is {missing[0]!r} called {' or '.join(map(repr, near))} there?)" if near else ""
        raise AssayError(f"{path} lacks the columns {some} that the run was trained on{hint}: add them.")


def _column(path: Path, column: pd.Series, kind: str, preparation: Preparation) -> pd.Series:
    from assay.own.tables import as_numbers, as_words

    there = column.notna()
    if kind == "number":
        numbers = as_numbers(column)
        strange = there & pd.to_numeric(column, errors="coerce").isna()
        if strange.sum() > _MOST_WORDS * there.sum():
            raise AssayError(
                f"Column {column.name!r} of {path} holds words ({column[strange].iloc[0]!r}, row {column.index[strange][0]}), "
                "and the run was trained on numbers there: mend the column."
            )
        return numbers
    return as_words(column)


def _target(frame: pd.DataFrame, preparation: Preparation) -> pd.Series | None:
    found: pd.Series | None = frame.get(preparation.form.get("target"))
    return found


# ---------------------------------------------------------------------------------------------------- arrays


def _arrays(path: Path, preparation: Preparation, notes: list[str], chunk: int) -> Iterator[Fresh]:
    from assay.own.arrays import new_inputs

    inputs, target = new_inputs(path, preparation.form, notes)
    for begin in range(0, len(inputs), chunk):
        piece: Inputs = inputs.iloc[begin : begin + chunk] if isinstance(inputs, pd.DataFrame) else inputs[begin : begin + chunk]
        ids = [str(begin + place) for place in range(len(piece))]
        yield Fresh(ids, piece, None if target is None else target.iloc[begin : begin + chunk])


def together(pieces: Sequence[Any]) -> Any:
    """Prepared pieces as one tensor, or one tuple of texts."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(list(pieces))
    return tuple(one for piece in pieces for one in piece)
