"""Networks side by side end where they would have ended alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import lenet, mlp
from assay.train.replicas import side_by_side, train_replicas

INPUTS = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()


def networks(count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [mlp(6, 2, (5,)) for _ in range(count)]


def rows(count: int = 3) -> list[Tensor]:
    return [torch.randperm(60, generator=torch.Generator().manual_seed(k))[: 40 + k] for k in range(count)]


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.AdamW, lr=0.01, fused=True)]
)
@pytest.mark.parametrize("noise", [None, [0.0, 0.1, 1.0]])
def test_together_as_alone(optimizer: partial[torch.optim.Optimizer], noise: list[float] | None) -> None:
    found = []
    for together in (True, False):
        models = networks()
        train_replicas(models, INPUTS, LABELS, rows(), optimizer, 4, 8, [0, 1, 2], noise=noise, together=together)
        found.append(models)
    for one, other in zip(*found, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_one_replica_is_a_plain_training_loop() -> None:
    ours, theirs = networks(2)[1], networks(2)[1]
    train_replicas([ours], INPUTS, LABELS, [rows(1)[0]], partial(torch.optim.AdamW, lr=0.01, fused=True), 3, 8, [7])
    optimizer, stream = torch.optim.AdamW(theirs.parameters(), lr=0.01), torch.Generator().manual_seed(7)
    for _ in range(3):
        for batch in rows(1)[0][torch.randperm(40, generator=stream)].split(8):
            optimizer.zero_grad()
            F.cross_entropy(theirs(INPUTS[batch]), LABELS[batch]).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [True, False])
def test_noise_has_the_deviation_that_was_asked_for(together: bool) -> None:
    """With no gradient at all a step of SGD at rate 1 is the noise."""

    def still(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(value) for name, value in parameters.items()}

    torch.manual_seed(0)
    models = [mlp(6, 2, (500,)) for _ in range(3)]
    before = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in models]
    sgd = partial(torch.optim.SGD, lr=1.0)
    several = [0.0, 0.5, 2.0]
    train_replicas(models, INPUTS, LABELS, [torch.arange(60)] * 3, sgd, 1, 60, [0, 1, 2], still, several, together)
    moves = [nn.utils.parameters_to_vector(model.parameters()) - old for model, old in zip(models, before, strict=True)]
    assert [float(move.detach().std()) for move in moves] == pytest.approx(several, rel=0.05)


def test_each_learns_from_its_rows_alone() -> None:
    poisoned = INPUTS.clone()
    poisoned[:20] = float("nan")
    models = networks(2)
    train_replicas(
        models, poisoned, LABELS, [torch.arange(20, 60), torch.arange(60)], torch.optim.SGD, 1, 10, [0, 1], together=True
    )
    assert all(parameter.isfinite().all() for parameter in models[0].parameters())
    assert not all(parameter.isfinite().all() for parameter in models[1].parameters())


def test_batch_normalisation_and_convolutions_are_trained_one_by_one() -> None:
    normalised = [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    assert not side_by_side(normalised[0], torch.device("cuda"))
    assert not side_by_side(lenet(1, 2, 8), torch.device("cpu"))
    assert side_by_side(lenet(1, 2, 8), torch.device("cuda"))
    assert side_by_side(networks(1)[0], torch.device("cpu"))
    told: list[tuple[int, int]] = []
    train_replicas(
        normalised, INPUTS, LABELS, rows(2), torch.optim.SGD, 2, 10, [0, 1], report=lambda done, total: told.append((done, total))
    )
    means = [model[1].running_mean for model in normalised]
    assert all(float(mean.abs().sum()) > 0 for mean in means)
    assert not torch.equal(*means)
    assert told == [(step, 16) for step in range(1, 17)]
