"""Tables with a target column, texts in a column, and series that lie in the rows."""

from __future__ import annotations

import codecs
import difflib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own.material import Material
from assay.own.series import filled

_USUAL_TARGETS = ("target", "label", "class", "y")
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "#N/A", "?"]
#: A column is numeric if at least this share of its values is; the others ("unknown") are gaps.
_MOSTLY = 0.8
_STEP = re.compile(r"(?:t|ts|time|step)?[_ ]?(\d+)", re.IGNORECASE)
_FEWEST_STEPS = 8
_BLOCK = 1 << 20


def read_table(path: Path, target: str | None, text: str | None, group: str | None, time: str | None) -> Material:
    """Rows of a CSV, TSV or Parquet file.

    Raises:
        AssayError: the file cannot be read, or a column is missing (the nearest names are given).
    """
    notes: list[str] = []
    frame = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path, notes)
    frame.columns = [str(name).strip() for name in frame.columns]
    frame.index = pd.RangeIndex(1, len(frame) + 1)  # rows as people count them
    if target is None:
        usual = [name for name in frame if name.lower() in _USUAL_TARGETS]
        if len(usual) != 1:
            raise AssayError(f"Which column of {path} is to be predicted? Name it as target: {_some(list(frame))}.")
        target = usual[0]
    for option, name in (("target", target), ("text", text), ("group", group), ("time", time)):
        if name is not None and name not in frame:
            near = difflib.get_close_matches(name, list(frame), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {_some(list(frame))}."
            raise AssayError(f"{path} has no column {name!r} for the {option}: {hint}")
    named = [name for name in (target, text, group, time) if name is not None]
    if len(set(named)) < len(named):
        raise AssayError(f"A column of {path} is named twice ({', '.join(named)}): target, text, group and time must differ.")
    frame = _rows_with(frame, target, notes)
    if frame.empty:
        raise AssayError(f"{path} has no row with a value in column {target!r}: give it some.")
    inputs = frame.drop(columns=[name for name in (target, group, time) if name is not None])
    if inputs.columns.empty:
        raise AssayError(f"{path} has no column besides {', '.join(named)}: there is nothing to predict from.")
    if text is None and _is_text(inputs):
        text = str(inputs.columns[0])
    found: pd.DataFrame | tuple[str, ...]
    if text is not None:
        frame = _rows_with(frame, text, notes)
        found, what = tuple(frame[text].astype(str).str.strip()), f"texts (column {text!r})"
    else:
        found, what = cleaned(inputs, notes), f"rows of {inputs.shape[1]} columns"
        if found.columns.empty:
            raise AssayError(f"No column of {path} tells the rows apart ({'; '.join(notes)}): there is nothing to learn from.")
    series = isinstance(found, pd.DataFrame) and _is_series(inputs)
    if series:
        values = inputs.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan).to_numpy(np.float64)
        tensor, what = filled(path, values[:, None, :]), f"series of {inputs.shape[1]} steps"
    form: dict[str, Any] = {"target": target}
    if text is not None:
        form["column"] = text
    elif series:
        form["columns"] = list(inputs)
    return Material(
        name=path.name,
        what=what,
        inputs=tensor if series else found,
        target=frame[target],
        group=as_groups(frame[group]) if group else None,
        time=as_times(path, frame[time]) if time else None,
        notes=notes,
        form=form,
    )


# ---------------------------------------------------------------------------------------------------- files


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise AssayError(f"{path} is a Parquet file, which needs pyarrow: `pip install pyarrow`, or save it as CSV.") from None
    except Exception as error:
        raise AssayError(
            f"{path} is no readable Parquet file ({type(error).__name__}): write it anew, or save it as CSV."
        ) from error


def _csv(path: Path, notes: list[str]) -> pd.DataFrame:
    frame: pd.DataFrame = _parsed(path, _dialect(path, notes), low_memory=False)
    numbered = [name for name in frame if str(name).startswith("Unnamed: ")]
    if numbered:
        notes.append(f"{len(numbered)} columns without a name left out")
    return frame.drop(columns=numbered)


def frames(path: Path, notes: list[str], chunk: int, words: Sequence[str]) -> Iterator[pd.DataFrame]:
    """A table in pieces of ``chunk`` rows, indexed by row number; the columns ``words`` are left as they are written.

    Raises:
        AssayError: the file cannot be read.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        whole = _parquet(path)
        pieces: Iterator[pd.DataFrame] = (whole.iloc[begin : begin + chunk] for begin in range(0, len(whole), chunk))
    else:
        dialect = _dialect(path, notes)
        names = _parsed(path, dialect, nrows=0).columns
        pieces = _pieces(path, _parsed(path, dialect, chunksize=chunk, dtype={n: str for n in names if n.strip() in words}))
    begin = 1
    for piece in pieces:
        piece.columns = [str(name).strip() for name in piece.columns]
        yield piece.set_axis(pd.RangeIndex(begin, begin + len(piece)))  # rows as people count them
        begin += len(piece)


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
    comma = separator == ";" and re.search(r"(^|;)\d+,\d+(;|$)", content, re.MULTILINE) is not None
    return {"encoding": encoding, "sep": separator, "decimal": "," if comma else "."}


def _parsed(path: Path, dialect: Mapping[str, Any], **more: Any) -> Any:
    with _reading(path):
        return pd.read_csv(
            path,
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


def _rows_with(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    there = frame[name].notna()
    if not pd.api.types.is_numeric_dtype(frame[name]):
        there &= frame[name].astype(str).str.strip() != ""
    if not there.all():
        notes.append(f"{(~there).sum()} rows without {name!r} left out (first: row {frame.index[~there][0]})")
    return frame[there]


def _is_text(inputs: pd.DataFrame) -> bool:
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
    return bool((np.diff(numbers) == 1).all()) and all(_is_numeric(inputs[name]) for name in inputs)


def _is_numeric(column: pd.Series) -> bool:
    there = column.notna()
    return bool(pd.to_numeric(column[there], errors="coerce").notna().mean() >= _MOSTLY)


def cleaned(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Columns of float64 (gaps are NaN) or of texts; what cannot help is left out, and what was done is noted."""
    columns: dict[str, pd.Series] = {}
    useless, names, mixed = [], [], []
    gaps = infinite = 0
    for name in frame:
        column = frame[name]
        there = column.notna()
        if (column[there].nunique() < 2 and there.all()) or not there.any():
            useless.append(name)
            continue
        if _is_numeric(column):
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
            gaps += int((~there).sum())
    if useless:
        notes.append(f"columns with one value left out: {_some(useless)}")
    if names:
        notes.append(f"columns that name rows left out: {_some(names)} (a text to learn from is named as text)")
    if mixed:
        notes.append(f"words among numbers taken as gaps: {'; '.join(mixed[:3])}")
    if infinite:
        notes.append(f"{infinite} infinite numbers taken as gaps")
    if gaps or mixed or infinite:
        notes.append("gaps in numbers filled with the training median, in words a category of their own")
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
    if numbers.isna().any():
        moments = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
        numbers = moments.astype("int64").astype(np.float64).where(moments.notna())
    if numbers.isna().any():
        row = column.index[numbers.isna()][0]
        raise AssayError(f"Row {row} of {path} has no time in column {column.name!r} ({column[row]!r}): give a number or a date.")
    return np.asarray(numbers, dtype=np.float64)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
