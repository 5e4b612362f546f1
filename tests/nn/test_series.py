"""Controls of claims about series: warping against its definition and published errors, random convolutions on easy shapes."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.nn.series import (
    euclidean_neighbours,
    random_convolution_ridge,
    random_convolutions,
    warped_distances,
    warped_neighbours,
)


def warped(one: Tensor, other: Tensor) -> float:
    """The recursion as it is defined."""

    @cache
    def least(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return 0.0 if i == j else math.inf
        step = (one[:, i] - other[:, j]).square().sum().item()
        return step + min(least(i - 1, j), least(i, j - 1), least(i - 1, j - 1))

    return least(one.shape[1] - 1, other.shape[1] - 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_warping_is_its_definition(channels: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    one = torch.randn(channels, length, generator=generator, dtype=torch.float64)
    many = torch.randn(7, channels, length, generator=generator, dtype=torch.float64)
    expected = torch.tensor([warped(one, other) for other in many], dtype=torch.float64)
    torch.testing.assert_close(warped_distances(one, many), expected)
    assert warped_distances(many[2], many).argmin() == 2
    assert warped_distances(many[2], many)[2] == 0


def test_neighbours_err_as_published() -> None:
    """GunPoint: 13 of 150 are wrong by Euclidean distance and 14 by warping without a window, as the archive says."""
    try:
        data = load("gunpoint")
    except AssayError as error:
        pytest.skip(str(error))
    wrong = [(found(data)["predicted"] != data.test.labels).sum().item() for found in (euclidean_neighbours, warped_neighbours)]
    assert wrong == [13, 14]


def waves(count: int, channels: int = 1) -> Dataset:
    """Slow or fast waves with a random phase: every step looks alike in both classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    phase = 6.3 * torch.rand(count, channels, 1, generator=generator)
    speed = torch.where(labels == 1, 0.9, 0.5).view(-1, 1, 1)
    inputs = (torch.arange(50) * speed + phase).sin() + 0.3 * torch.randn(count, channels, 50, generator=generator)
    split = Split(inputs, labels)
    parts = [split.take(torch.arange(*ends)) for ends in ((0, 40), (0, 0), (40, count))]
    return Dataset("waves", "classification", *parts, classes=("slow", "fast"))


@pytest.mark.parametrize("channels", [1, 2])
def test_random_convolutions_tell_waves_apart(channels: int) -> None:
    data = waves(100, channels)
    found = random_convolution_ridge(data, seed=0, kernels=200)["predicted"]
    assert (found == data.test.labels).double().mean() > 0.95
    assert found.equal(random_convolution_ridge(data, seed=0, kernels=200)["predicted"])


def test_features_are_shares_that_do_not_depend_on_company() -> None:
    inputs = waves(100).test.inputs
    assert isinstance(inputs, Tensor)
    features = random_convolutions(inputs, inputs[:9], kernels=90, seed=1)
    assert features.shape[0] == 60
    assert features.shape[1] >= 90
    assert 0 <= features.min() < 0.1
    assert 0.9 < features.max() <= 1
    # Not one of the series that the thresholds are responses to: whether those lie above is a matter of rounding.
    torch.testing.assert_close(random_convolutions(inputs[40:41], inputs[:9], kernels=90, seed=1)[0], features[40])
    assert not features.equal(random_convolutions(inputs, inputs[:9], kernels=90, seed=2))


def test_the_level_of_a_series_does_not_count() -> None:
    """A kernel's weights sum to zero: only the first and last four responses, which see the padding, know the level."""
    generator = torch.Generator().manual_seed(0)
    series, others = torch.randn(5, 1, 200, generator=generator), torch.randn(9, 1, 200, generator=generator)
    plain, lifted = (random_convolutions(inputs, others, kernels=50, seed=0)[:, :10] for inputs in (series, series + 3))
    assert 0 < (plain - lifted).abs().max() <= 8 / 200 + 1e-6


def test_tables_are_refused() -> None:
    split = Split(torch.zeros(4, 3), torch.arange(4) % 2)
    table = Dataset("table", "classification", split, split, split, classes=("a", "b"))
    with pytest.raises(AssayError, match="series of equal length"):
        euclidean_neighbours(table)
