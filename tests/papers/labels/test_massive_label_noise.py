"""Dilution: closed-form rates, every pair once a pass, noise that must break learning, and the claims at smoke scale."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.massive_label_noise import (
    Dilution,
    confusable,
    confusable_noise_is_harder,
    dilute_labels,
    larger_batches_help_with_single_labels,
    larger_batches_recover,
    massive_label_noise,
    more_data_buys_noise,
    noise_elsewhere_harms_less,
    noise_rates,
    survives_dilution,
)
from assay.recipe import Recipe
from assay.train.hooks import Hook, Run
from assay.train.loop import fit


def test_rates_equal_the_closed_form() -> None:
    """Within four standard deviations of a binomial, for the true class and for every other one."""
    labels = torch.arange(10).repeat(2_000)
    found = dilute_labels(labels, 20, 10, torch.Generator().manual_seed(0))
    true, other = noise_rates(20, 10)
    assert (true, other) == pytest.approx((3 / 21, 2 / 21))
    assert true - other == pytest.approx(1 / 21)
    counts = F.one_hot(found, 10).sum(dim=1).double()  # (N, K)
    frequencies = torch.stack([counts[labels == k].mean(dim=0) / 21 for k in range(10)])
    expected = torch.full((10, 10), other).fill_diagonal_(true)
    bound = 4 * (expected * (1 - expected) / (2_000 * 21)).sqrt()
    assert ((frequencies - expected).abs() < bound).all()


def test_the_given_label_is_there_exactly_as_given() -> None:
    labels = torch.tensor([3, 1, 4, 1, 5])
    found = dilute_labels(labels, 7, 10, torch.Generator().manual_seed(0))
    assert found.shape == (5, 8)
    assert torch.equal(found[:, 0], labels)
    assert torch.equal(dilute_labels(labels, 0, 10, torch.Generator()), labels[:, None])
    assert torch.equal(dilute_labels(labels, 0, 10, torch.Generator(), torch.full((10, 10), 0.1)), labels[:, None])
    with pytest.raises(ValueError, match="negative"):
        dilute_labels(labels, -1, 10, torch.Generator())


def test_confusable_noise_goes_where_mistakes_go() -> None:
    confusion = torch.tensor([[90.0, 10.0, 0.0], [0.0, 50.0, 0.0], [4.0, 12.0, 84.0]])
    even = confusable(confusion, 0.0)
    torch.testing.assert_close(even, torch.full((3, 3), 1 / 3, dtype=torch.float64))
    all_of_it = confusable(confusion, 1.0)
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.25, 0.75, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(all_of_it, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(confusable(confusion, 0.4), 0.6 * even + 0.4 * all_of_it)
    labels = torch.zeros(500, dtype=torch.int64)
    # Half of the noise on one class: it outnumbers the true one once there are more than two noisy labels for each correct one.
    for alpha, most in ((1, 0), (6, 1)):
        found = dilute_labels(labels, alpha, 3, torch.Generator().manual_seed(0), confusable(confusion, 0.5))
        assert F.one_hot(found, 3).sum(dim=(0, 1)).argmax() == most
    with pytest.raises(ValueError, match="delta"):
        confusable(confusion, 1.5)


class Seen(Hook):
    """Keeps what labels every example was trained on."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def before_loss(self, run: Run) -> None:
        self.pairs += list(zip(run.index.tolist(), run.labels.tolist(), strict=True))


def test_a_pass_has_every_pair_once(table: Dataset) -> None:
    seen = Seen()
    fit(Recipe(table, model=partial(mlp, 8, 2, (4,)), hooks=(Dilution(3, seed=5), seen), epochs=4), seed=0)
    labels = dilute_labels(table.train.labels, 3, 2, torch.Generator().manual_seed(5))
    expected = sorted((i, label) for i, row in enumerate(labels.tolist()) for label in row)
    assert sorted(seen.pairs) == expected


def test_learns_under_dilution_and_not_without_the_correct_labels(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=30, batch_size=64)
    assert fit(plain.replace(hooks=(Dilution(4),)), 0).accuracy() > 0.8
    # One label in two would be right by chance; without the correct ones nothing tells the classes apart.
    assert abs(fit(plain.replace(hooks=(Dilution(4, keep=False),)), 0).accuracy() - 0.5) < 0.25


def test_treatment_enlarges_the_batches_and_nothing_else(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), batch_size=32)
    treated = massive_label_noise(plain, rate=0.4)  # two classes: a margin of 0.6 - 0.4
    assert treated.batch_size == 160
    assert treated.replace(batch_size=32) == plain
    assert massive_label_noise(plain, rate=0.49).batch_size == 400  # no more than there are
    assert massive_label_noise(plain.replace(batch_size=1000), rate=0.1).batch_size == 1000
    with pytest.raises(AssayError, match="nothing is left"):
        massive_label_noise(plain, rate=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Dilution(0, keep=False)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(larger_batches_recover(lab)) > {"alpha 10", "alpha 10, batches of 32"}
    assert set(larger_batches_help_with_single_labels(lab)) == {"plain", "larger batches"}


def test_claims_on_public_data_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    try:
        load("mnist"), load("fashion-mnist")
    except AssayError as error:
        pytest.skip(str(error))
    assert "LeNet, alpha 20" in survives_dilution(lab)
    assert set(more_data_buys_noise(lab)) == {"alpha 0", "alpha 5", "alpha 20"}
    assert "uniform" in confusable_noise_is_harder(lab)
    assert "on white noise" in noise_elsewhere_harms_less(lab)
