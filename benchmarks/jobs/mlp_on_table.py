"""A small perceptron on a table of 20,000 rows: where the overhead of loading item by item shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import _training
import torch
from sklearn.datasets import make_classification

from assay.data import Dataset, Split
from assay.nn import mlp

JOB = "training: MLP 20-64-64-2, table of 20,000 rows, 2 epochs, batch 128"
WANTED = {"skorch": 3.0, "lightning": 3.0}
agree = _training.agree
model = partial(mlp, 20, 2, (64, 64))


def table() -> Dataset:
    """A made-up table: only its size matters here."""
    inputs, labels = make_classification(24_000, 20, n_informative=10, class_sep=1.5, random_state=0)
    x, y = torch.from_numpy(inputs).float(), torch.from_numpy(labels).long()
    train, test = Split(x[:20_000], y[:20_000]), Split(x[20_000:], y[20_000:])
    return Dataset("table", "classification", train, Split(x[:0], y[:0]), test, ("0", "1"))


def ours() -> Callable[[], float]:
    return _training.assay(table(), model)


def skorch() -> Callable[[], float]:
    return _training.skorch(table(), model)


def lightning() -> Callable[[], float]:
    return _training.lightning(table(), model)
