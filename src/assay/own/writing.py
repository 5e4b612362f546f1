"""Tables that are written for people: CSV and Parquet, complete or not there."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from assay.errors import AssayError
from assay.files import write_atomically


def require_table(out: Path) -> None:
    """Raise an :class:`AssayError` if the ending of a file is not that of a table that can be written."""
    if out.suffix.lower() not in (".csv", ".parquet", ".pq"):
        raise AssayError(f"{out} is of no kind that is written: name a .csv or .parquet file.")


def write_rows(out: Path, columns: Sequence[str], pieces: Iterator[Sequence[Sequence[Any]]], encoding: str = "utf-8") -> None:
    """Write rows that come in pieces.

    Args:
        out: a .csv or .parquet file.
        columns: their names.
        pieces: lists of rows.
        encoding: of a .csv file; a spreadsheet knows ``"utf-8-sig"``.

    Raises:
        AssayError: another ending, or the file cannot be written.
    """
    require_table(out)
    if out.suffix.lower() == ".csv":
        write_atomically(out, lambda temporary: _csv(temporary, columns, pieces, encoding))
    else:
        write_atomically(out, lambda temporary: _parquet(temporary, columns, pieces))


def _csv(path: Path, columns: Sequence[str], pieces: Iterator[Sequence[Sequence[Any]]], encoding: str) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for piece in pieces:
            writer.writerows(piece)


def _parquet(path: Path, columns: Sequence[str], pieces: Iterator[Sequence[Sequence[Any]]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise AssayError("A Parquet file needs pyarrow: `pip install 'assay[arrow]'`, or name a .csv file.") from None
    writer = None
    try:
        for piece in pieces:
            values = zip(*piece, strict=True) if piece else ([] for _ in columns)
            table = pa.table({name: list(column) for name, column in zip(columns, values, strict=True)})
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
