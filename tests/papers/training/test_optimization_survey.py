"""Starts against their variances, the signal against theory, isometry, and the claims at smoke scale."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.papers.training.gradient_noise import gradient_noise
from assay.papers.training.optimization_survey import (
    OPTIMIZERS,
    RATES,
    Start,
    _steps_to,
    adam,
    adam_is_easier_to_tune,
    adam_needs_fewer_steps_than_sgd,
    compare_optimizers,
    falling_rates_where_not_all_can_be_fitted,
    jacobian_singular_values,
    scale_on_data_,
    signal,
    signal_propagation,
    start,
    start_,
    starts_keep_the_signal,
    the_start_decides_how_deep,
    tuned_momentum_generalises_as_well,
    width_removes_bad_basins,
)
from assay.recipe import Recipe
from assay.train.loop import Loop, fit
from assay.view import View


@pytest.mark.parametrize(
    ("kind", "linear", "conv"),
    [
        ("naive", 1e-4, 1e-4),
        ("lecun", 1 / 400, 1 / (16 * 25)),
        ("xavier", 2 / 700, 2 / ((16 + 64) * 25)),
        ("he", 2 / 400, 2 / (16 * 25)),
    ],
)
def test_variances_of_the_starts(kind: str, linear: float, conv: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(16, 64, 5))
    start_(net, kind)  # type: ignore[arg-type]
    assert net[0].weight.var().item() == pytest.approx(linear, rel=0.05)
    assert net[1].weight.var().item() == pytest.approx(conv, rel=0.05)
    assert net[0].bias.abs().sum() == net[1].bias.abs().sum() == 0


def test_an_orthogonal_start_is_orthogonal_and_an_isometry_in_a_linear_network() -> None:
    torch.manual_seed(0)
    net = mlp(30, 30, (30, 30)).double()
    start_(net, "orthogonal")
    torch.testing.assert_close(net[1].weight.T @ net[1].weight, 2 * torch.eye(30, dtype=torch.float64))
    linear = nn.Sequential(*(nn.Linear(30, 30) for _ in range(10))).double()
    start_(linear, "orthogonal")
    values = jacobian_singular_values(linear, torch.randn(3, 30, dtype=torch.float64))
    torch.testing.assert_close(values, torch.full((3, 30), 2.0**5, dtype=torch.float64))


def test_singular_values_by_hand() -> None:
    """relu(W x) with two of three units alive: the rows that are alive, and a zero."""
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 5.0])))
    assert jacobian_singular_values(net, torch.tensor([[1.0, 1.0, -1.0]])).tolist() == [[3.0, 2.0, 0.0]]


def test_filters_may_lie_in_any_layout() -> None:
    for kind in ("orthogonal", "he"):
        nets = [nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)]
        for net in nets:
            torch.manual_seed(0)
            start_(net, kind)  # type: ignore[arg-type]
        assert torch.equal(nets[0].weight, nets[1].weight)
        assert nets[1].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [partial(mlp, 784, 10, (40, 30, 20)), lenet])
def test_scaled_on_data_every_layer_has_variance_one(make: partial) -> None:
    torch.manual_seed(0)
    net, images = make(), 3 * torch.randn(200, 1, 28, 28)
    start_(net, "lsuv", images)
    seen = signal_propagation(net, images, torch.zeros(200, dtype=torch.int64))
    assert len(seen.layers) == 4
    assert (seen.forward.square() - 1).abs().max() < 0.1
    nn.init.zeros_(net.get_parameter(f"{seen.layers[1]}.weight"))
    with pytest.raises(ValueError, match=seen.layers[1]):
        scale_on_data_(net, images)


@pytest.mark.parametrize(("kind", "factor"), [("lecun", 0.5**0.5), ("he", 1.0)])
def test_the_signal_grows_as_theory_says(kind: str, factor: float) -> None:
    """(c / 2)^(1/2) a layer for weights of variance c / n, forwards and backwards, in wide layers."""
    torch.manual_seed(0)
    net = mlp(1000, 10, (1000,) * 8)
    start_(net, kind)  # type: ignore[arg-type]
    seen = signal_propagation(net, torch.randn(64, 1000), torch.randint(10, (64,)))
    assert seen.growth() == (pytest.approx(factor, rel=0.03), pytest.approx(factor, rel=0.03))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_signal_by_hand() -> None:
    """Two linear layers 2x and 3x: outputs, and gradients of the mean output, by hand."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    for layer, weight in zip(net, (2.0, 3.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    x = torch.tensor([[1.0], [2.0], [4.0]])
    seen = signal_propagation(net, x, x, lambda outputs, labels: (outputs * labels).sum())
    torch.testing.assert_close(seen.forward, torch.stack([2 * x.std(), 6 * x.std()]))
    torch.testing.assert_close(seen.backward, torch.stack([3 * x.std(), x.std()]))
    with pytest.raises(ValueError, match="three layers"):
        seen.growth()


def test_steps_to_a_loss_by_hand() -> None:
    losses = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.1, 0.1], [0.9, 0.8, torch.nan]])
    assert _steps_to(losses, torch.tensor([20, 40, 60]), 0.3).tolist() == [50.0, 20.0, 60.0]


def test_optimizers_on_own_data_have_as_many_trials_each(table: Dataset) -> None:
    held = table.holdout(0.25, seed=0)
    splits = [(split.inputs, split.labels) for split in (held.train, held.valid, held.test)]
    found = compare_optimizers(partial(mlp, 8, 2, (16,)), *splits, steps=60, batch_size=32, seeds=(0, 1))
    assert {len(rates) for rates in RATES.values()} == {7}
    shown = found.table()
    assert set(shown.index) == set(OPTIMIZERS)
    assert shown["test"].min() > 0.8
    assert found.chosen("Adam", 0).at == (20.0, 40.0, 60.0)
    assert all(rate / other == pytest.approx(10**0.5, rel=0.02) for _, r in RATES.items() for other, rate in pairwise(r))


def test_starts_as_a_treatment(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=1, batch_size=32)
    for other in (gradient_noise, adam):
        for both in (start(other(plain)), other(start(plain))):
            assert any(isinstance(hook, Start) for hook in both.hooks)
    fitted, again, unlike = (fit(made, seed).model[1].weight for made, seed in ((start(plain), 0), (start(plain), 0), (plain, 0)))
    assert torch.equal(fitted, again)
    assert not torch.equal(fitted, unlike)
    assert adam(plain, lr=0.01).optimizer([fitted]).param_groups[0]["lr"] == 0.01
    with pytest.raises(AssayError, match="two starts"):
        start(start(plain))
    with pytest.raises(ValueError, match="kind"):
        start_(mlp(8, 2), "zeros")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs"):
        start_(mlp(8, 2), "lsuv")


def test_a_start_scales_on_examples_of_every_class_and_leaves_running_statistics_alone(table: Dataset) -> None:
    """Examples sorted by class, the second ten times as large: outputs over all of them have variance 1."""
    labels, order = table.train.labels.sort()
    inputs = table.train.inputs[order] * (1 + 9 * labels)[:, None]
    data = replace(table, train=Split(inputs, labels))
    loop = Loop(Recipe(data, model=_normalised, batch_size=32), 0, torch.device("cpu"))
    Start("lsuv", examples=len(labels) // 4).on_start(loop.run)
    net = loop.run.model
    assert net[0](inputs).var().item() == pytest.approx(1, abs=0.3)
    fresh = nn.BatchNorm1d(16)
    assert all(torch.equal(buffer, fresh.get_buffer(name)) for name, buffer in net[1].named_buffers())


def _normalised() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def test_a_comparison_that_cannot_be_fair_is_refused_before_it_begins() -> None:
    some, none = (torch.randn(40, 8), torch.arange(40) % 2), (torch.empty(0, 8), torch.empty(0, dtype=torch.int64))
    net, optimizers = partial(mlp, 8, 2, (4,)), {"Adam": torch.optim.Adam, "own": torch.optim.SGD}
    with pytest.raises(AssayError, match="no rates to try with 'own'"):
        compare_optimizers(net, some, some, some, optimizers)
    with pytest.raises(AssayError, match="equally many"):
        compare_optimizers(net, some, some, some, optimizers, {"Adam": (0.1, 0.2), "own": (0.1,)})
    for valid, test in ((none, some), (some, none)):
        with pytest.raises(AssayError, match="some of both"):
            compare_optimizers(net, some, valid, test)
    with pytest.raises(AssayError, match="multiple of 20"):
        compare_optimizers(net, some, some, some, steps=50)


def test_the_probe_names_every_layer(table: Dataset) -> None:
    torch.manual_seed(0)  # of an untrained network the curvature that is largest in magnitude may be below zero
    net = mlp(8, 2, (16, 16)).eval()
    inputs = table.test.inputs[:32]
    view = View(net, inputs, net(inputs).argmax(1), None, inputs, None, "table", table.classes)
    seen = signal(view)
    assert [name for name in seen.numbers if name.startswith("signal")] == ["signal at 1", "signal at 3", "signal at 5"]
    assert seen.numbers["largest curvature of the loss"] > 0


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert "lsuv" in starts_keep_the_signal(lab)
    assert len(the_start_decides_how_deep(lab)) == 10
    for claimed in (adam_needs_fewer_steps_than_sgd, tuned_momentum_generalises_as_well, adam_is_easier_to_tune):
        assert len(claimed(lab)) == 16
    assert len(falling_rates_where_not_all_can_be_fitted(lab)) == 6
    assert len(width_removes_bad_basins(lab)) == 12
