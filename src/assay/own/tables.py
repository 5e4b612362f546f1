"""Tables with a target column, texts in a column, and series that lie in the rows."""

from __future__ import annotations

import codecs
import difflib
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own.folders import in_column
from assay.own.limits import drawn, memory_bound, sampled
from assay.own.material import Material
from assay.own.named import Named
from assay.own.preparing import MOST_CATEGORIES, Inputs
from assay.own.sampling import sample_lines
from assay.own.series import filled

_USUAL_TARGETS = ("target", "label", "class", "y")
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "#N/A", "?"]
#: A column is numeric if at least this share of its values is; the others ("unknown") are gaps.
_MOSTLY = 0.8
_STEP = re.compile(r"(?:t|ts|time|step)?[_ ]?(\d+)", re.IGNORECASE)
_FEWEST_STEPS = 8
#: Bytes of memory for a number, for a word, and for each column that its categories get: as read, prepared and split.
_NUMBER, _WORD, _COLUMN = 24, 80, 12
_BLOCK = 1 << 20
_PARQUET = (".parquet", ".pq")


def read_table(path: Path, named: Named) -> Material:
    """Rows of a CSV, TSV or Parquet file, or the images, recordings or series that they stand for.

    Raises:
        AssayError: the file cannot be read, or a column is missing (the nearest names are given).
    """
    notes: list[str] = []
    if named.series is not None and path.stat().st_size > _room():
        frame = _some_series(path, named.series, notes)
    else:
        frame = read_rows(path, notes)
    frame.columns = [_one_line(name) for name in frame.columns]
    return understood(path, frame, named, notes)


def read_rows(path: Path, notes: list[str]) -> pd.DataFrame:
    """The rows of a CSV, TSV or Parquet file, numbered from 1: all, or as many as there is room for.

    Raises:
        AssayError: the file cannot be read.
    """
    frame = (_parquet if path.suffix.lower() in _PARQUET else _csv)(path, notes)
    frame.columns = [_one_line(name) for name in frame.columns]
    return frame


def understood(path: Path, frame: pd.DataFrame, named: Named, notes: list[str]) -> Material:
    """What the rows of a table stand for.

    Args:
        path: of the table, for messages.
        frame: its rows, indexed by row number.
        named: what the columns are for.
        notes: what was repaired so far.

    Raises:
        AssayError: a column is missing, or nothing can be learnt from what is there.
    """
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise AssayError(f"{path} has two columns called {twice[0]!r}: give each a name of its own.")
    named = replace(named, target=target_of(path, list(frame), named))
    assert named.target is not None
    frame = rows_with(frame, named.target, notes)
    if frame.empty:
        raise AssayError(f"{path} has no row with a value in column {named.target!r}: give it some.")
    if named.series is not None:
        from assay.own.long import read_long

        return read_long(path, frame, named, notes)
    beside = [name for option, name in named.given().items() if option != "text"]
    inputs = frame.drop(columns=beside)
    if inputs.columns.empty:
        raise AssayError(f"{path} has no column besides {', '.join(beside)}: there is nothing to predict from.")
    material = _from_files(path, frame, inputs, named, notes) if named.text is None else None
    return material or _from_columns(path, frame, inputs, named, notes)


def target_of(path: Path, columns: Sequence[str], named: Named) -> str:
    """The column to predict: the named one, or the only one that is called as targets usually are.

    Raises:
        AssayError: there is no such column, or any other that was named is not there.
    """
    usual = [name for name in columns if name.lower() in _USUAL_TARGETS]
    if named.target is None and len(usual) != 1:
        raise AssayError(f"Which column of {path} is to be predicted? Name it as target: {some(columns)}.")
    named = replace(named, target=named.target or usual[0])
    for option, name in named.given().items():
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {some(columns)}."
            raise AssayError(f"{path} has no column {name!r} for the {option}: {hint}")
    names = list(named.given().values())
    if len(set(names)) < len(names):
        raise AssayError(f"A column of {path} is named twice ({', '.join(names)}): {', '.join(named.given())} must differ.")
    if named.series is not None and named.text is not None:
        raise AssayError(f"{path} cannot be read as series and as texts at once: leave text or series out.")
    return str(named.target)


def _from_columns(path: Path, frame: pd.DataFrame, inputs: pd.DataFrame, named: Named, notes: list[str]) -> Material:
    """Texts, series whose steps are the columns, or rows of a table."""
    text = str(inputs.columns[0]) if named.text is None and is_text(inputs) else named.text
    form: dict[str, Any] = {"target": named.target}
    found: Inputs
    if text is not None:
        frame = rows_with(frame, text, notes)
        found, what = tuple(frame[text].astype(str).str.strip()), f"texts (column {text!r})"
        form["column"] = text
    elif _is_series(inputs):
        values = np.stack([as_numbers(inputs[name]).to_numpy() for name in inputs], axis=1)
        hollow = np.isnan(values).all(axis=1)
        if hollow.any():
            notes.append(f"{hollow.sum()} series without any number left out (first: row {inputs.index[hollow][0]})")
            values, frame = values[~hollow], frame[~hollow]
        gaps = int(np.isnan(values).sum())
        if gaps:
            notes.append(f"{gaps} gaps filled between their neighbours")
        found, what = filled(path, values[:, None, :]), f"series of {inputs.shape[1]} steps"
        form["columns"] = list(inputs)
    else:
        found, what = _within(cleaned(inputs, notes), notes), f"rows of {inputs.shape[1]} columns"
        frame = frame.loc[found.index]
        if found.columns.empty:
            raise AssayError(f"No column of {path} tells the rows apart ({'; '.join(notes)}): there is nothing to learn from.")
    return _with_splits(Material(path.name, what, found, frame[named.target], notes=notes, form=form), path, frame, named)


def _within(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """As many rows as there is room for when every category has a column of its own."""
    size = 1
    for name in frame:
        numbers = pd.api.types.is_numeric_dtype(frame[name])
        size += _NUMBER if numbers else _WORD + _COLUMN * min(MOST_CATEGORIES, frame[name].nunique())
    kept = drawn(len(frame), max(1, memory_bound() // (2 * size)))
    if len(kept) == len(frame):
        return frame
    notes.append(sampled(len(kept), len(frame), "rows"))
    return frame.iloc[kept]


def _from_files(path: Path, frame: pd.DataFrame, inputs: pd.DataFrame, named: Named, notes: list[str]) -> Material | None:
    """Images or recordings whose paths stand in a column; ``None`` where there is no such column."""
    from assay.own import audio, images

    def names(column: pd.Series, suffixes: set[str]) -> bool:
        there = column.dropna().astype(str).str.strip().str.lower()
        return len(there) > 0 and float(there.str.endswith(tuple(suffixes)).mean()) > _MOSTLY

    for suffixes, what in ((images.SUFFIXES, "images"), (audio.SUFFIXES, "wav files")):
        column = next((name for name in inputs if not is_numeric(inputs[name]) and names(inputs[name], suffixes)), None)
        if column is None:
            continue
        if inputs.shape[1] > 1:
            notes.append(f"columns beside the {what} left out: {some([name for name in inputs if name != column])}")
        there = rows_with(frame, column, notes)
        files = in_column(path, there[column], there[named.target])
        files.notes[:0] = notes
        if what == "images":
            files, pixels, described = images.pictures(files)
            material = Material(path.name, described, pixels, files.target, notes=files.notes)
        else:
            files, bands, described, sound = audio.recordings(files)
            material = Material(path.name, described, bands, files.target, notes=files.notes)
            material = replace(material, form=sound.as_form(), history=sound.history)
        material = replace(material, form={**material.form, "target": named.target}, files=files.places)
        return _with_splits(material, path, frame.loc[files.target.index], named)
    return None


def _with_splits(material: Material, path: Path, frame: pd.DataFrame, named: Named) -> Material:
    """With the columns by which the examples, the rows of ``frame``, are to be split."""
    return replace(
        material,
        group=as_groups(frame[named.group]) if named.group else None,
        time=as_times(path, frame[named.time]) if named.time else None,
    )


# ---------------------------------------------------------------------------------------------------- files


def need_pyarrow(path: Path) -> None:
    """Raise an :class:`AssayError` where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise AssayError(f"{path} needs pyarrow to be read: `pip install 'assay[arrow]'`, or save it as CSV.")


def _parquet(path: Path, notes: list[str]) -> pd.DataFrame:
    """The rows of a Parquet file, numbered from 1: all, or as many as there is room for."""
    with _opened_parquet(path) as file:
        count = file.metadata.num_rows
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        # Encoded columns may be much smaller than what becomes of them.
        size = max(sum(group.total_byte_size for group in groups), 8 * count * len(file.schema_arrow.names))
        kept = drawn(count, max(1, int(count * _room() / max(1, size))))
        columns = _flat(path, file, notes)
        if len(kept) == count:
            return file.read(columns).to_pandas().set_axis(pd.RangeIndex(1, count + 1))
        notes.append(sampled(len(kept), count, "rows"))
        pieces, begin = [], 0
        for batch in file.iter_batches(columns=columns):
            low, high = np.searchsorted(kept, (begin, begin + len(batch)))
            if high > low:
                pieces.append(batch.take(kept[low:high] - begin).to_pandas())
            begin += len(batch)
        return pd.concat(pieces).set_axis(pd.Index(kept + 1))


def _flat(path: Path, file: Any, notes: list[str]) -> list[str]:
    """Columns with one value in each row."""
    import pyarrow as pa

    schema = file.schema_arrow
    columns = [field.name for field in schema if not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type))]
    others = [name for name in schema.names if name not in columns]
    if others:
        notes.append(f"columns of lists or bytes left out: {some(others)}")
    return columns


@contextmanager
def _opened_parquet(path: Path) -> Iterator[Any]:
    need_pyarrow(path)
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, memory_map=True) as file:
            yield file
    except AssayError:
        raise
    except Exception as error:  # a damaged file fails in a dozen ways, also when it is made into a frame
        raise AssayError(
            f"{path} is no readable Parquet file ({type(error).__name__}): write it anew, or save it as CSV."
        ) from error


def _csv(path: Path, notes: list[str]) -> pd.DataFrame:
    """The rows of a text file, numbered from 1: all, or as many as there is room for."""
    dialect = _dialect(path, notes)
    frame: pd.DataFrame
    if path.stat().st_size <= _room():
        frame = _parsed(path, dialect, low_memory=False)
        frame.index = pd.RangeIndex(1, len(frame) + 1)
    elif dialect["encoding"] == "utf-16":
        raise AssayError(f"{path} is large and in UTF-16, of which no sample can be drawn: save it in UTF-8.")
    else:
        frame = _csv_sample(path, dialect, notes)
    numbered = [name for name in frame if str(name).startswith("Unnamed: ")]
    if numbered:
        notes.append(f"{len(numbered)} columns without a name left out")
    return frame.drop(columns=numbered)


def _csv_sample(path: Path, dialect: Mapping[str, Any], notes: list[str]) -> pd.DataFrame:
    sample = sample_lines(path, _room())
    try:
        frame: pd.DataFrame = _parsed(path, dialect, io.BytesIO(sample.content), low_memory=False)
    except AssayError as error:
        line = re.search(r"\bline (\d+)", str(error))
        place = int(line[1]) - 2 if line else len(sample.rows)
        if not 0 <= place < len(sample.rows):
            raise
        raise AssayError(str(error).replace(f"line {line[1] if line else 0}", f"row {sample.rows[place]}", 1)) from error
    notes.append(sampled(len(frame), sample.total, "rows"))
    # Where quotes were not what they seemed, rows cannot be told apart before they are parsed, so they are counted in the sample.
    return frame.set_axis(pd.Index(sample.rows) if len(frame) == len(sample.rows) else pd.RangeIndex(1, len(frame) + 1))


def _one_line(name: object) -> str:
    return " ".join(str(name).split())


def _room() -> int:
    """Bytes of a file that may be read: what becomes of them in memory is several times as large."""
    return memory_bound() // 8


def _some_series(path: Path, series: str, notes: list[str]) -> pd.DataFrame:
    """All rows of some series, wherever they lie in the file: those whose names have the smallest hashes."""
    kept: list[pd.DataFrame] = []
    size, limit = 0, 1.0
    for piece in frames(path, notes, 100_000, [series]):
        if series not in piece:
            return piece  # which column is missing is said by whoever needs it
        piece = piece[_share(piece[series]) < limit]
        kept.append(piece)
        size += int(piece.memory_usage(deep=True).sum())
        while size > 4 * _room():
            limit /= 2
            kept = [frame[_share(frame[series]) < limit] for frame in kept]
            size = sum(int(frame.memory_usage(deep=True).sum()) for frame in kept)
    if limit < 1:
        share = f"about one in {1 / limit:g} series"
        notes.append(f"{share}, drawn at random to stay within {memory_bound() / 2**30:.3g} GB (ASSAY_MEMORY)")
    return pd.concat(kept)


def _share(names: pd.Series) -> NDArray[np.float64]:
    """A number from 0 to 1 for each name, spread evenly and always the same."""
    words = names.astype(str).str.strip().to_numpy(dtype=object)
    found: NDArray[np.float64] = pd.util.hash_array(words, categorize=True) / 2.0**64
    return found


def written(path: Path) -> pd.DataFrame:
    """Every cell of a CSV or TSV file as it is written, in words; an empty one is ``""``. Rows are numbered from 1.

    Raises:
        AssayError: the file cannot be read.
    """
    with _reading(path):
        frame: pd.DataFrame = pd.read_csv(
            path,
            dtype=str,
            na_filter=False,
            skipinitialspace=True,
            index_col=False,
            encoding_errors="replace",
            **_dialect(path, []),
        )
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1))


def write_like(path: Path, frame: pd.DataFrame, to: Path) -> None:
    """Write rows as CSV with the separator and the encoding of another file."""
    dialect = _dialect(path, [])
    with path.open("rb") as file:
        marked = file.read(3) == codecs.BOM_UTF8
    encoding = "utf-8" if dialect["encoding"] == "utf-8-sig" and not marked else dialect["encoding"]
    frame.to_csv(to, index=False, sep=dialect["sep"], encoding=encoding)


def frames(path: Path, notes: list[str], chunk: int, words: Sequence[str]) -> Iterator[pd.DataFrame]:
    """A table in pieces of ``chunk`` rows, indexed by row number; the columns ``words`` are left as they are written.

    Raises:
        AssayError: the file cannot be read.
    """
    if path.suffix.lower() in _PARQUET:
        pieces = _batches(path, chunk, notes)
    else:
        dialect = _dialect(path, notes)
        names = _parsed(path, dialect, nrows=0).columns
        pieces = _pieces(path, _parsed(path, dialect, chunksize=chunk, dtype={n: str for n in names if _one_line(n) in words}))
    begin = 1
    for piece in pieces:
        piece.columns = [_one_line(name) for name in piece.columns]
        yield piece.set_axis(pd.RangeIndex(begin, begin + len(piece)))  # rows as people count them
        begin += len(piece)


def _batches(path: Path, chunk: int, notes: list[str]) -> Iterator[pd.DataFrame]:
    with _opened_parquet(path) as file:
        for batch in file.iter_batches(chunk, columns=_flat(path, file, notes)):
            yield batch.to_pandas()


def _pieces(path: Path, reader: Any) -> Iterator[pd.DataFrame]:
    with reader:
        while True:
            with _reading(path):
                piece = next(reader, None)
            if piece is None:
                return
            yield piece


def _dialect(path: Path, notes: list[str]) -> dict[str, Any]:
    """Encoding, separator and decimal point of a text file, as pandas' reader wants to be told."""
    encoding = _encoding(path, notes)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        content = file.read(100_000)
    header = re.split(r"[\r\n]", content.lstrip("\r\n "), maxsplit=1)[0]
    if not header:
        raise AssayError(f"{path} is empty: give it a line of column names and at least ten rows.")
    plain = re.sub(r'"[^"]*"', "", header)
    separator = max(",;\t|", key=plain.count)
    cells = [cell.strip().strip('"') for cell in plain.split(separator)]
    if all(re.fullmatch(r"[-+]?\d*[.,]\d+(e[-+]?\d+)?", cell, re.IGNORECASE) for cell in cells):
        raise AssayError(f"The first line of {path} holds numbers, not names: give it a line of column names.")
    twice = next((name for name in cells if name and cells.count(name) > 1), None)
    if twice is not None:
        notes.append(f"two columns called {twice!r}, of which the second is {twice + '.1'!r}")
    comma = separator == ";" and re.search(r"(^|;)\d+,\d+(;|$)", content, re.MULTILINE) is not None
    return {"encoding": encoding, "sep": separator, "decimal": "," if comma else "."}


def _parsed(path: Path, dialect: Mapping[str, Any], content: io.BytesIO | None = None, **more: Any) -> Any:
    with _reading(path):
        return pd.read_csv(
            path if content is None else content,
            skipinitialspace=True,
            keep_default_na=False,
            na_values=_MISSING,
            index_col=False,
            encoding_errors="replace",
            **dialect,
            **more,
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What pandas says about a file that it cannot read, as one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except pd.errors.ParserWarning as error:
        raise AssayError(
            f"The first line of {path} has fewer names than the rows have cells: give every column a name."
        ) from error
    except (pd.errors.ParserError, ValueError) as error:
        why = str(error).partition("C error: ")[2] or str(error)
        raise AssayError(f"{path} cannot be read as a table ({why.strip().rstrip('.')}): mend that line.") from error


def _encoding(path: Path, notes: list[str]) -> str:
    """UTF-8, UTF-16 with its mark, or else Windows-1252; the file is looked through piece by piece."""
    decoder, line = codecs.getincrementaldecoder("utf-8-sig")(), 1
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if line == 1 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return "utf-16"
            if b"\0" in block:
                line += block[: block.index(b"\0")].count(b"\n")
                raise AssayError(f"{path} is no text file (line {line} holds a zero byte): save the table as CSV in UTF-8.")
            try:
                decoder.decode(block, final=len(block) < _BLOCK)
            except UnicodeDecodeError as error:
                line += block[: error.start].count(b"\n")
                notes.append(f"not UTF-8 (line {line}), so read as Windows-1252")
                return "cp1252"
            line += block.count(b"\n")
    return "utf-8-sig"


# ---------------------------------------------------------------------------------------------------- columns


def rows_with(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """Rows that have something in a column; the others are noted."""
    there = frame[name].notna()
    if not pd.api.types.is_numeric_dtype(frame[name]):
        there &= frame[name].astype(str).str.strip() != ""
    if not there.all():
        notes.append(f"{(~there).sum()} rows without {name!r} left out (first: row {frame.index[~there][0]})")
    return frame[there]


def is_text(inputs: pd.DataFrame) -> bool:
    """One column of many different strings of several words."""
    if inputs.shape[1] != 1 or pd.api.types.is_numeric_dtype(inputs.iloc[:, 0]):
        return False
    values = inputs.iloc[:, 0].dropna().astype(str)
    return len(values) > 0 and values.nunique() > len(values) / 2 and float(values.str.contains(r"\s").mean()) > 0.5


def _is_series(inputs: pd.DataFrame) -> bool:
    """Columns called 0, 1, 2 ... or t0, t1, t2 ...: the steps of a series in each row."""
    steps = [_STEP.fullmatch(name) for name in inputs]
    if len(steps) < _FEWEST_STEPS or not all(steps):
        return False
    numbers = np.array([int(step[1]) for step in steps if step])
    return bool((np.diff(numbers) == 1).all()) and all(is_numeric(inputs[name]) for name in inputs)


def is_numeric(column: pd.Series) -> bool:
    """Are at least four of five values that are there numbers?"""
    there = column.notna()
    return bool(pd.to_numeric(column[there], errors="coerce").notna().mean() >= _MOSTLY)


def cleaned(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Columns of float64 (gaps are NaN) or of texts; what cannot help is left out, and what was done is noted."""
    columns: dict[str, pd.Series] = {}
    useless, names, mixed = [], [], []
    gaps = hollow = infinite = 0
    for name in frame:
        column = frame[name]
        there = column.notna()
        if (column[there].nunique() < 2 and there.all()) or not there.any():
            useless.append(name)
            continue
        if is_numeric(column):
            numbers = as_numbers(column)
            strange = there & pd.to_numeric(column, errors="coerce").isna()
            if strange.any():
                mixed.append(f"{strange.sum()} in {name!r} (first {column[strange].iloc[0]!r}, row {frame.index[strange][0]})")
            infinite += int((there & ~strange & numbers.isna()).sum())
            columns[name] = numbers
            gaps += int((~there).sum())
        else:
            words = column.astype(str).str.strip()
            if words.nunique() > max(50, len(words) / 2):
                names.append(name)
                continue
            columns[name] = as_words(column)
            hollow += int((~there).sum())
    if useless:
        notes.append(f"columns with one value left out: {some(useless)}")
    if names:
        notes.append(f"columns that name rows left out: {some(names)} (a text to learn from is named as text)")
    if mixed:
        notes.append(f"words among numbers taken as gaps: {'; '.join(mixed[:3])}")
    if infinite:
        notes.append(f"{infinite} infinite numbers taken as gaps")
    if gaps or mixed or infinite:
        notes.append("gaps in numbers filled with the training median")
    if hollow:
        notes.append("gaps in words a category of their own")
    return pd.DataFrame(columns, index=frame.index)


def as_numbers(column: pd.Series) -> pd.Series:
    """Numbers in float64; words, and what float32 cannot hold (which is as good as infinite), are gaps."""
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    return numbers.mask(numbers.abs() > float(np.finfo(np.float32).max))


def as_words(column: pd.Series) -> pd.Series:
    """Words without space around them; gaps are a word of their own."""
    return column.astype(str).str.strip().where(column.notna(), "(missing)").astype(object)


def as_groups(column: pd.Series) -> NDArray[np.str_]:
    """Names of groups; a row without one is a group of its own."""
    names = column.astype(str).to_numpy(dtype=object)
    alone = column.isna().to_numpy()
    names[alone] = [f"(row {row})" for row in column.index[alone]]
    return np.asarray(names, dtype=np.str_)


def as_times(path: Path, column: pd.Series) -> NDArray[np.float64]:
    """Numbers in the order of time, from numbers or dates.

    Raises:
        AssayError: naming the first row that has neither.
    """
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.isna().mean() > 0.5:
        moments = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
        numbers = moments.astype("int64").astype(np.float64).where(moments.notna())
    if numbers.isna().any():
        row = column.index[numbers.isna()][0]
        raise AssayError(f"Row {row} of {path} has no time in column {column.name!r} ({column[row]!r}): give a number or a date.")
    return np.asarray(numbers, dtype=np.float64)


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
