"""The job of gzip_knn on two cores, against the same code on one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JOB = "gzip k-NN, AG News, 1,000 training x 500 test texts of 240 bytes, k = 2, two cores"
WANTED = {"one_core": 1.8}


def _predict(n_jobs: int) -> Callable[[], Tensor]:
    from assay.data import load
    from assay.papers.text.gzip_knn import GzipKNN

    data = load("ag-news").subset(train=1_000, test=500, seed=0)
    train, tests = data.train.inputs, data.test.inputs
    assert isinstance(train, tuple)
    assert isinstance(tests, tuple)
    labels = data.train.labels.numpy()
    return lambda: torch.from_numpy(GzipKNN(k=2, n_jobs=n_jobs).fit(train, labels).predict(tests))


def ours() -> Callable[[], Tensor]:
    return _predict(2)


def one_core() -> Callable[[], Tensor]:
    return _predict(1)


def agree(ours: Tensor, peer: Tensor) -> None:
    assert torch.equal(ours, peer)
