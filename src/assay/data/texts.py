"""Public text sets: inputs are tuples of strings, as they stand in the files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from assay.data.build import dataset, own_split
from assay.data.dataset import Dataset, Split
from assay.data.files import fetch_entry
from assay.data.registry import Entry
from assay.errors import AssayError


def ag_news(entry: Entry) -> Dataset:
    """Title and description, joined by a space; the classes of the file are 1 to 4."""
    ((_, place),) = fetch_entry(entry)
    rows = list(csv.reader(io.StringIO(place.read_text(encoding="utf-8"), newline="")))
    texts = tuple(f"{title} {description}".replace("\\", " ") for _, title, description in rows)
    labels = torch.tensor([int(row[0]) - 1 for row in rows])
    train, test = own_split(texts, labels, test=1600)
    return dataset(entry, train, test, classes=entry["classes"])


def sentences(entry: Entry) -> Dataset:
    """Lines of ``<class> <text>`` in latin-1: one file (we split it), train and test, or train, dev and test."""
    splits = [read_sentences(place) for _, place in fetch_entry(entry)]
    if len(splits) == 1:
        everything = without_repeats(splits[0])
        train, test = own_split(everything.inputs, everything.labels, test=round(0.1 * len(everything)))
        return dataset(entry, train, test, classes=entry["classes"])
    train, *valid, test = splits
    return dataset(entry, train, test, valid[0] if valid else None, classes=entry["classes"])


def comments(entry: Entry) -> Dataset:
    """Inputs: ``"<sentence> | <class>"``, every distinct sentence once with the first class that has it; labels (N, L).

    A row of the file is a sentence, a label and whether they belong together. The file splits every label on its own, so
    that a sentence may be training for one and test for another; where labels are learnt together that is no test.
    """
    ((_, place),) = fetch_entry(entry)
    rows = list(csv.DictReader(io.StringIO(place.read_text(encoding="utf-8"), newline="")))
    names = tuple(dict.fromkeys(row["category"] for row in rows))
    owners: dict[str, str] = {}
    given: dict[str, set[str]] = {}
    for row in rows:
        owners.setdefault(row["comment_sentence"], row["class"])
        having = given.setdefault(row["comment_sentence"], set())
        if row["instance_type"] == "1":
            having.add(row["category"])
    texts = tuple(f"{sentence} | {owner}" for sentence, owner in owners.items())
    labels = torch.tensor([[float(name in having) for name in names] for having in given.values()])
    train, test = own_split(texts, labels, test=round(0.2 * len(texts)))
    return dataset(entry, train, test, classes=names)


def without_repeats(split: Split) -> Split:
    """Every text once (its first label counts) and no empty one: a text on both sides of a split would be no test."""
    first = {text: position for position, text in reversed(list(enumerate(split.inputs))) if text}
    return split.take(torch.tensor(sorted(first.values())))


def read_sentences(place: Path) -> Split:
    """One file of ``<class> <text>`` lines.

    Raises:
        AssayError: naming the first line that is not like that.
    """
    texts, labels = [], []
    for number, line in enumerate(place.read_text(encoding="latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        label, _, text = line.partition(" ")
        if not label.isdigit():
            raise AssayError(f"Line {number} of {place} is not '<class> <text>'; remove the file and fetch it again.")
        labels.append(int(label))
        texts.append(text.strip())
    return Split(tuple(texts), torch.tensor(labels))
