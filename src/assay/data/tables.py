"""Tables whose files have no header: numbers as they stand, and one column of zeros and ones for each value of a quality."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from assay.data.build import dataset, own_split
from assay.data.dataset import Dataset, Split
from assay.data.files import fetch_entry
from assay.data.registry import Entry


def headless(entry: Entry) -> Dataset:
    """Rows of cells, the class last: one file (we split it), or train and test.

    The entry says which columns there are (``columns``), what parts cells (``separator``), and how classes are written
    (``labels``). A value that is missing ("?") is one more value of its quality.
    """
    parts = [_rows(place, entry["separator"]) for _, place in fetch_entry(entry)]
    everything = [row for part in parts for row in part]
    columns: list[list[float]] = []
    features: list[str] = []
    for name, cells in zip(entry["columns"], zip(*(row[:-1] for row in everything), strict=True), strict=True):
        try:
            columns.append([float(cell) for cell in cells])
            features.append(name)
        except ValueError:
            for value in sorted(set(cells)):
                columns.append([float(cell == value) for cell in cells])
                features.append(f"{name} = {'unknown' if value == '?' else value}")
    inputs = torch.tensor(columns).T.contiguous()
    labels = torch.tensor([entry["labels"].index(row[-1].rstrip(".")) for row in everything])
    if len(parts) == 1:
        train, test = own_split(inputs, labels, test=round(0.2 * len(labels)))
    else:
        first = len(parts[0])
        train, test = Split(inputs[:first].clone(), labels[:first].clone()), Split(inputs[first:].clone(), labels[first:].clone())
    return dataset(entry, train, test, classes=entry["classes"], features=tuple(features))


def _rows(place: Path, separator: str) -> list[list[str]]:
    lines = place.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    return [row for row in rows if len(row) > 1]  # a comment, or an empty last line
