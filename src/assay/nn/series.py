"""Classifiers of series that need no training by gradients: the standing controls of every claim about series."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data import Dataset
from assay.errors import AssayError

#: ``report(done, total, note)``.
Report = Callable[[float, float, str], None]

_KERNEL = 9  # weights of a random kernel


def euclidean_neighbours(data: Dataset) -> dict[str, Tensor]:
    """``predicted`` (M,): for every test series the label of the nearest training series."""
    train, tests = _series(data)
    nearest = torch.cdist(tests.flatten(1).double(), train.flatten(1).double()).argmin(dim=1)
    return {"predicted": data.train.labels[nearest]}


def warped_distances(series: Tensor, others: Tensor) -> Tensor:
    """Dynamic time warping without a window, between one series and many: (C, L), (N, C, L) -> (N,).

    The least sum of squared differences over all monotone alignments, channels warped together; its square root is what
    is usually called the distance.
    """
    length = series.shape[1]
    one, many = series.unsqueeze(2), others.permute(1, 2, 0).flip(1).contiguous()  # (C, L, 1), (C, L, N) from the end
    # Cells of the table with equal i + j depend on the two diagonals before only; row i + 1 stands for step i of the series.
    table = [torch.full((length + 1, len(others)), torch.inf, dtype=others.dtype) for _ in range(3)]
    before, last, now = table
    before[0] = 0
    for diagonal in range(2 * length - 1):
        low, high = max(0, diagonal - length + 1), min(length, diagonal + 1)
        from_end = length - 1 - diagonal
        cost = (one[:, low:high] - many[:, low + from_end : high + from_end]).square().sum(dim=0)  # (high - low, N)
        best = torch.minimum(torch.minimum(last[low:high], last[low + 1 : high + 1]), before[low:high])
        now.fill_(torch.inf)
        now[low + 1 : high + 1] = cost.add_(best)
        before, last, now = last, now, before
    return last[length]


def warped_neighbours(data: Dataset, progress: Report | None = None) -> dict[str, Tensor]:
    """``predicted`` (M,): for every test series the label of the training series nearest under dynamic time warping."""
    train, tests = _series(data)
    found = []
    for number, series in enumerate(tests, start=1):
        found.append(warped_distances(series, train).argmin())
        if progress is not None:
            progress(number, len(tests), f"warping {data.name}")
    return {"predicted": data.train.labels[torch.stack(found)]}


def random_convolutions(series: Tensor, fit_on: Tensor, kernels: int, seed: int) -> Tensor:
    """Features of random dilated kernels: the share of each response that lies above a threshold.

    As in ROCKET (Dempster, Petitjean and Webb 2020) and its successors, made simple: normal weights with mean zero,
    dilations that are powers of two, and thresholds that are quantiles of a kernel's responses to training series.

    Args:
        series: (N, C, L).
        fit_on: (M, C, L) training series, from which the thresholds are taken.
        kernels: about how many; every dilation gets as many.
        seed: of the kernels and thresholds.

    Returns:
        (N, kernels) in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    channels, length = series.shape[1:]
    exponents = range(max(0, int(np.log2(max(1, (length - 1) / (_KERNEL - 1))))) + 1)
    features = []
    for exponent in exponents:
        count = -(-kernels // len(exponents))
        weights = torch.randn(count, channels, _KERNEL, generator=generator)
        weights -= weights.mean(dim=2, keepdim=True)
        share = torch.rand(count, generator=generator)
        chosen = torch.randint(len(fit_on), (count,), generator=generator)
        # One training series a kernel: the threshold is a random quantile of the response to it.
        own = F.conv1d(fit_on[chosen].flatten(0, 1).unsqueeze(0), weights, None, 1, "same", 2**exponent, count).squeeze(0)
        place = (share * length).long().clamp_max(length - 1)
        thresholds = own.sort(dim=1).values.gather(1, place.unsqueeze(1))  # (count, 1)
        for part in series.split(64):
            response = F.conv1d(part, weights, None, 1, "same", 2**exponent)  # (n, count, L)
            features.append((exponent, (response > thresholds).float().mean(dim=2)))
    return torch.cat([torch.cat([block for at, block in features if at == exponent]) for exponent in exponents], dim=1)


def random_convolution_ridge(data: Dataset, seed: int, kernels: int = 2_000) -> dict[str, Tensor]:
    """``predicted`` (M,): a ridge classifier on :func:`random_convolutions`, its penalty chosen by leave-one-out."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, tests = _series(data)
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 10)))
    model.fit(random_convolutions(train, train, kernels, seed).numpy(), data.train.labels.numpy())
    return {"predicted": torch.from_numpy(model.predict(random_convolutions(tests, train, kernels, seed).numpy()))}


def _series(data: Dataset) -> tuple[Tensor, Tensor]:
    """Training and test series: (N, C, L), (M, C, L)."""
    train, tests = data.train.inputs, data.test.inputs
    if not isinstance(train, Tensor) or not isinstance(tests, Tensor) or train.dim() != 3:
        raise AssayError(f"{data.name} does not consist of series of equal length: give inputs (N, C, L).")
    return train, tests
