"""A Hugging Face dataset that ``save_to_disk`` wrote: arrow files with their features, read with pyarrow alone.

Its own splits are respected and the names of a ``ClassLabel`` are the classes. The files are mapped into memory, so what is
not needed is not read; nothing in them is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own import audio, images
from assay.own.folders import Files, part_of, parts_of
from assay.own.limits import drawn, memory_bound, sampled
from assay.own.material import Material
from assay.own.named import Named
from assay.own.tables import is_text, need_pyarrow, some, target_of, understood

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows become several times as large when they are decoded.
_TIMES = 6


def is_saved(folder: Path) -> bool:
    """Did ``save_to_disk`` write this folder?"""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_saved(folder: Path, named: Named) -> Material:
    """A ``Dataset`` or ``DatasetDict`` of texts, images, recordings, series in lists, or plain columns.

    Args:
        folder: that was given to ``save_to_disk``.
        named: columns; the target may be left out where one is called label, and the text where only one column has any.

    Raises:
        AssayError: a file is missing or broken, or nothing in it can be learnt from.
    """
    notes: list[str] = []
    table, features, where = _splits(folder, notes)
    kept = drawn(len(table), max(1, int(len(table) * memory_bound() / (_TIMES * max(1, table.nbytes)))))
    if len(kept) < len(table):
        notes.append(sampled(len(kept), len(table), "rows"))
        table, where = table.take(kept), where[kept]
    target = target_of(folder, table.column_names, named)
    media = {name: kind for name, kind in _kinds(features).items() if kind in ("Image", "Audio") and name != target}
    plain = _frame(folder, table.drop_columns(list(media)), features, notes)
    parts = parts_of(where, notes, "split") if len(set(where)) > 1 else None
    named = replace(named, target=target)
    if media and named.text is None:
        material = _media(folder, table, plain, media, named, notes)
    else:
        material = _lists(folder, plain, named, notes) or _rows(folder, plain, named, notes)
    if parts is not None:
        material = replace(material, parts=parts[material.target.index.to_numpy() - 1])
    task = "classification" if _kinds(features).get(target) == "ClassLabel" else None
    return replace(material, name=folder.name, task=task)


# ---------------------------------------------------------------------------------------------------- files


def _splits(folder: Path, notes: list[str]) -> tuple[pa.Table, Mapping[str, Any], NDArray[np.str_]]:
    """All rows, their features, and the split of each (``""`` where there is only one)."""
    need_pyarrow(folder)
    import pyarrow as pa

    if not (folder / "dataset_dict.json").is_file():
        table, features = _split(folder)
        return table, features, np.full(len(table), "")
    names = _json(folder / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names:
        raise AssayError(f"{folder / 'dataset_dict.json'} names no splits: save the dataset anew.")
    known = [name for name in names if part_of(str(name)) is not None]
    if len(known) < len(names) and known:
        notes.append(f"splits left out: {some([str(name) for name in names if name not in known])}")
    chosen = known or names[:1]
    found = [_split(folder / _plain(folder, name)) for name in chosen]
    features = found[0][1]
    if any(other != features for _, other in found):
        raise AssayError(f"The splits {', '.join(chosen)} of {folder} have different features: save them alike.")
    where = np.repeat([part_of(str(name)) or "" for name in chosen], [len(table) for table, _ in found])
    return pa.concat_tables([table for table, _ in found]), features, where


def _split(folder: Path) -> tuple[pa.Table, Mapping[str, Any]]:
    """Rows of one ``Dataset``, mapped into memory, and its features."""
    import pyarrow as pa

    state, features = _json(folder / "state.json"), _json(folder / "dataset_info.json").get("features")
    try:
        files = [folder / _plain(folder, entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise AssayError(f"{folder / 'state.json'} names no data files: save the dataset anew.") from error
    if not isinstance(features, dict) or not files:
        raise AssayError(f"{folder / 'dataset_info.json'} has no features, or there are no rows: save the dataset anew.")
    tables = []
    for file in files:
        try:
            with pa.memory_map(str(file)) as source:
                tables.append(pa.ipc.open_stream(source).read_all())
        except FileNotFoundError:
            raise AssayError(f"{file} is not there, which {folder / 'state.json'} names: copy the whole folder.") from None
        except pa.ArrowException as error:
            raise AssayError(f"{file} is no arrow file, or broken ({type(error).__name__}): save the dataset anew.") from error
    schema = tables[0].schema.remove_metadata()
    return pa.concat_tables([table.cast(schema) for table in tables]), features


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AssayError(f"{path} is not there: copy the whole folder that save_to_disk wrote.") from None
    except ValueError as error:
        raise AssayError(f"{path} is no JSON ({error}): save the dataset anew.") from error
    if not isinstance(found, dict):
        raise AssayError(f"{path} holds no JSON object: save the dataset anew.")
    return found


def _plain(folder: Path, name: object) -> str:
    """A name that stays in the folder."""
    if not isinstance(name, str) or len(PurePath(name.replace("\\", "/")).parts) != 1 or name in (".", ".."):
        raise AssayError(f"{folder} names the file {name!r}, which may lead out of the folder: save the dataset anew.")
    return name


# ---------------------------------------------------------------------------------------------------- columns


def _kinds(features: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(feature.get("_type", "")) for name, feature in features.items() if isinstance(feature, dict)}


def _frame(folder: Path, table: pa.Table, features: Mapping[str, Any], notes: list[str]) -> pd.DataFrame:
    """Columns with one value or a list of numbers in each row; class labels by name."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    left_out = []
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            columns[name] = pd.Series(table[name].to_pylist(), dtype=object)
        elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
            left_out.append(name)
        else:
            columns[name] = table[name].to_pandas()
        if _kinds(features).get(name) == "ClassLabel" and name in columns:
            columns[name] = _named(folder, name, columns[name], features[name].get("names"))
    if left_out:
        if len(columns) < 2:
            raise AssayError(f"{folder} has only columns of a kind that is not read beside its target: {some(left_out)}.")
        notes.append(f"columns of a kind that is not read left out: {some(left_out)}")
    return pd.DataFrame(columns).set_axis(pd.RangeIndex(1, len(table) + 1))


def _named(folder: Path, name: str, codes: pd.Series, names: object) -> pd.Series:
    if not isinstance(names, list):
        raise AssayError(f"The classes of column {name!r} of {folder} have no names: save the dataset anew.")
    there = codes.notna() & (codes != -1)  # -1 is how a hidden label is written
    wrong = there & ~codes.isin(range(len(names)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0]) + 1
        raise AssayError(f"Row {row} of {folder} has the class {codes[row - 1]} in column {name!r}, of {len(names)}: mend it.")
    return codes.where(there).map(lambda code: str(names[int(code)]), na_action="ignore").astype(object)


def _media(
    folder: Path, table: pa.Table, plain: pd.DataFrame, media: Mapping[str, str], named: Named, notes: list[str]
) -> Material:
    """Images or recordings whose bytes stand in a column."""
    name, kind = next(iter(media.items()))
    assert named.target is not None
    beside = [other for other in (*plain, *media) if other not in (name, named.target)]
    if beside:
        notes.append(f"columns beside {name!r} left out: {some(beside)}")
    content = table[name].combine_chunks().to_pylist()
    there = np.flatnonzero([bool(one and one.get("bytes")) for one in content])
    away = next((row for row, one in enumerate(content, start=1) if one and not one.get("bytes") and one.get("path")), None)
    if away is not None:
        raise AssayError(f"Row {away} of {folder} holds a path instead of the content of {name!r}: save it with embedded files.")
    if len(there) < len(content):
        notes.append(f"{len(content) - len(there)} rows without {name!r} left out")
    labelled = there[plain[named.target].notna().to_numpy()[there]]
    if len(labelled) < len(there):
        notes.append(f"{len(there) - len(labelled)} rows without {named.target!r} left out")
    if not len(labelled):
        raise AssayError(f"{folder} has no row with both {name!r} and {named.target!r}: give it some.")
    files = Files(folder, [content[row]["bytes"] for row in labelled], plain[named.target].iloc[labelled], None, notes)
    if kind == "Image":
        files, pixels, what = images.pictures(files)
        return Material(folder.name, what, pixels, files.target, notes=files.notes, form={"target": named.target})
    files, bands, what, sound = audio.recordings(files)
    form = {**sound.as_form(), "target": named.target}
    return Material(folder.name, what, bands, files.target, notes=files.notes, form=form, history=sound.history)


def _rows(folder: Path, plain: pd.DataFrame, named: Named, notes: list[str]) -> Material:
    """Texts, if only one column has any and none was named; else what a table's rows are."""
    words = [name for name in plain if name not in named.given().values() and is_text(plain[[name]])]
    if named.text is None and len(words) == 1:
        named = replace(named, text=words[0])
    return understood(folder, plain, named, notes)


def _lists(folder: Path, plain: pd.DataFrame, named: Named, notes: list[str]) -> Material | None:
    """Series that stand as lists of numbers in one column; ``None`` where there is no such column."""
    lists = [name for name in plain if plain[name].map(lambda one: isinstance(one, list)).any()]
    if not lists or named.text is not None:
        return None
    assert named.target is not None
    name = lists[0]
    if len(plain.columns) > 2:
        notes.append(f"columns beside {name!r} left out: {some([o for o in plain if o not in (name, named.target)])}")
    plain = plain[plain[name].notna() & plain[named.target].notna()]
    lengths = plain[name].map(len)
    if plain.empty or lengths.min() != lengths.max():
        raise AssayError(f"The lists in column {name!r} of {folder} are of several lengths: bring them to one.")
    values = torch.tensor(np.array(plain[name].tolist(), dtype=np.float32)).unsqueeze(1)
    if not bool(values.isfinite().all()):
        row = plain.index[int((~values.isfinite()).nonzero()[0, 0])]
        raise AssayError(f"Row {row} of {folder} holds a number in {name!r} that is not finite: mend or remove it.")
    what = f"series of {values.shape[2]} steps"
    return Material(folder.name, what, values, plain[named.target], notes=notes, form={"target": named.target})
