"""ELR against its closed-form gradient, its invariants, and its claims at smoke scale."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.elr import EarlyLearningRegularization, beats_early_stopping, elr, memorises_less, resists_wrong_labels
from assay.recipe import PerExample, Recipe
from assay.train.loop import fit


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (6,), generator=generator)
    return logits, labels, torch.tensor([3, 0, 7, 5, 1, 9])


def test_gradient_equals_the_closed_form() -> None:
    """dL/dz_c = [p_c - y_c + weight * p_c / (1 - <p, t>) * sum_k (t_k - t_c) p_k] / B, with t held fixed (lemma 1)."""
    logits, labels, index = batch()
    loss = EarlyLearningRegularization(10, 4, momentum=0.7, weight=3.0).double()
    for seed in (1, 2, 3):  # a few visits, so that the memory holds something
        loss(batch(seed)[0], labels, index)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, labels, index), logits)
    p, t, y = logits.detach().softmax(1), loss.targets[index], F.one_hot(labels, 4)
    against = (t * p).sum(1, keepdim=True) - t  # sum_k t_k p_k - t_c (the p_k sum to 1)
    expected = (p - y + 3.0 * p / (1 - (p * t).sum(1, keepdim=True)) * against) / 6
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-8)


def test_without_weight_it_is_cross_entropy() -> None:
    logits, labels, index = batch()
    loss = EarlyLearningRegularization(10, 4, weight=0.0).double()
    torch.testing.assert_close(loss(logits, labels, index), F.cross_entropy(logits, labels))


def test_memory_is_a_running_average_from_zero() -> None:
    """After m visits the remembered row sums to 1 - momentum^m, and equals the average written out."""
    loss = EarlyLearningRegularization(10, 4, momentum=0.7).double()
    _, labels, index = batch()
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for visit in range(1, 5):
        logits = batch(visit)[0]
        loss(logits, labels, index)
        expected = 0.7 * expected + 0.3 * logits.softmax(1)
        torch.testing.assert_close(loss.targets[index].sum(1), torch.full((6,), 1 - 0.7**visit, dtype=torch.float64))
        torch.testing.assert_close(loss.targets[index], expected, atol=1e-4, rtol=1e-3)  # the clamp moves it by 1e-4
    untouched = [i for i in range(10) if i not in index.tolist()]
    assert loss.targets[untouched].abs().sum() == 0


def test_the_present_prediction_enters_the_target_before_the_loss_is_taken() -> None:
    logits, labels, index = batch()
    loss = EarlyLearningRegularization(10, 4, momentum=0.7, weight=3.0).double()
    p = logits.softmax(1)
    expected = F.cross_entropy(logits, labels) + 3.0 * (1 - 0.3 * (p * p).sum(1)).log().mean()
    torch.testing.assert_close(loss(logits, labels, index), expected, atol=1e-3, rtol=1e-3)


def test_certain_predictions_stay_finite_and_repeated_examples_do_not_crash() -> None:
    loss = EarlyLearningRegularization(4, 3, momentum=0.0, weight=7.0)
    logits = torch.tensor([[100.0, 0, 0], [100.0, 0, 0]], requires_grad=True)
    value = loss(logits, torch.tensor([0, 1]), torch.tensor([2, 2]))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_memory_survives_saving_and_bad_settings_are_refused() -> None:
    logits, labels, index = batch()
    loss = EarlyLearningRegularization(10, 4)
    loss(logits.float(), labels, index)
    other = EarlyLearningRegularization(10, 4)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.targets, loss.targets)
    for wrong in ({"momentum": 1.0}, {"momentum": -0.1}, {"weight": -1.0}):
        with pytest.raises(ValueError, match="must"):
            EarlyLearningRegularization(10, 4, **wrong)


def test_treatment_changes_the_loss_and_nothing_else(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=10, batch_size=32)
    treated = elr(plain, momentum=0.9, weight=1.0)
    assert isinstance(treated.loss, PerExample)
    assert treated.replace(loss=plain.loss) == plain
    built = treated.loss.build(table)
    assert built.targets.shape == (400, 2)
    assert fit(treated, 0).accuracy() > 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stays_finite_in_every_precision(dtype: torch.dtype) -> None:
    loss = EarlyLearningRegularization(2, 3, momentum=0.5)
    logits = torch.tensor([[20.0, 0, 0]], dtype=dtype, requires_grad=True)
    for _ in range(60):
        value = loss(logits, torch.tensor([0]), torch.tensor([1]))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_looking_at_the_loss_in_evaluation_mode_moves_nothing() -> None:
    logits, labels, index = batch()
    loss = EarlyLearningRegularization(10, 4).double()
    loss(logits, labels, index)
    before = loss.targets.clone()
    loss.eval()(batch(1)[0], labels, index)
    assert torch.equal(loss.targets, before)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert len(beats_early_stopping(lab)) == 4
    assert set(resists_wrong_labels(lab)) == {"cross-entropy", "ELR"}
    shares = memorises_less(lab)
    assert all(0 <= share <= 1 for share in shares.values())
    assert len(shares) == 4
