"""Sparsemax against its definition, brute force, closed forms and entmax."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn.text import BiLSTM
from assay.paper import Claim, Curve
from assay.papers.sequence.sparsemax import (
    Sparsemax,
    attention_equally_good,
    attention_is_sparse,
    cross_tested,
    label_proportions,
    multilabel_as_good_as_softmax,
    multilabel_without_threshold,
    sparse_attention,
    sparsemax,
    sparsemax_loss,
)
from assay.recipe import Recipe

SIZES = [(7, 1), (7, 2), (50, 5), (40, 64), (9, 511), (9, 512), (9, 515), (5, 3001)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_sorting(scores: Tensor) -> Tensor:
    """Algorithm 1 of the paper, for (R, K)."""
    ordered = scores.sort(dim=1, descending=True).values
    place = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
    above = 1 + place * ordered > ordered.cumsum(dim=1)
    size = above.sum(dim=1, keepdim=True)
    tau = (ordered.cumsum(dim=1).gather(1, size - 1) - 1) / size
    return (scores - tau).clamp_min(0)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("scale", [0.001, 0.1, 1.0, 30.0])
def test_is_what_sorting_finds(shape: tuple[int, int], scale: float) -> None:
    scores = scale * normal(*shape)
    torch.testing.assert_close(sparsemax(scores), by_sorting(scores), atol=1e-12, rtol=0)
    narrow = scores.float()
    torch.testing.assert_close(sparsemax(narrow).double(), by_sorting(narrow.double()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SIZES)
def test_is_what_entmax_finds_forwards_and_backwards(shape: tuple[int, int]) -> None:
    entmax = pytest.importorskip("entmax")
    ours, theirs = (normal(*shape, dtype=torch.float32).requires_grad_() for _ in range(2))
    weight = normal(*shape, seed=1, dtype=torch.float32)
    out, peer = sparsemax(ours), entmax.sparsemax(theirs, dim=-1)
    torch.testing.assert_close(out, peer, atol=1e-6, rtol=0)
    (out * weight).sum().backward()
    (peer * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    labels = torch.arange(shape[0]) % shape[1]
    torch.testing.assert_close(
        sparsemax_loss(ours, labels, reduction="none"), entmax.sparsemax_loss(theirs, labels), atol=1e-6, rtol=1e-6
    )


def test_no_distribution_is_nearer() -> None:
    """Every support of five entries is tried: on each the nearest point is known, and the best of them is the answer."""
    for scores in normal(40, 5):
        best, distance = scores, float("inf")
        for size in range(1, 6):
            for support in itertools.combinations(range(5), size):
                on = list(support)
                point = torch.zeros(5, dtype=torch.float64)
                point[on] = scores[on] - (scores[on].sum() - 1) / size
                if (point >= 0).all() and (point - scores).norm() < distance:
                    best, distance = point, (point - scores).norm()
        torch.testing.assert_close(sparsemax(scores), best)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30))
def test_conditions_of_the_nearest_point(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    probs = sparsemax(scores)
    assert (probs >= 0).all()
    assert probs.sum().item() == pytest.approx(1, abs=1e-9)
    tau = (scores - probs)[probs > 0]
    assert (tau - tau[0]).abs().max() < 1e-9
    assert (scores[probs == 0] <= tau[0] + 1e-9).all()
    torch.testing.assert_close(sparsemax(scores + 7.5), probs)  # a constant changes nothing


def test_ties_share_alike() -> None:
    torch.testing.assert_close(sparsemax(torch.tensor([2.0, 2.0, 2.0, 0.0])), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    torch.testing.assert_close(sparsemax(torch.zeros(2, 2000)), torch.full((2, 2000), 1 / 2000))


def test_many_scores_of_which_all_are_in_the_support() -> None:
    scores = 1e-5 * normal(3, 2000)
    probs = sparsemax(scores)
    assert (probs > 0).all()
    torch.testing.assert_close(probs, by_sorting(scores), atol=1e-12, rtol=0)


def test_two_scores_are_a_clipped_line() -> None:
    t = torch.linspace(-3, 3, 61, dtype=torch.float64)
    probs = sparsemax(torch.stack([t, torch.zeros_like(t)], dim=1))
    torch.testing.assert_close(probs[:, 0], ((t + 1) / 2).clamp(0, 1))


def test_low_temperature_picks_the_largest() -> None:
    scores = normal(20, 8)
    torch.testing.assert_close(sparsemax(scores / 1e-6), torch.nn.functional.one_hot(scores.argmax(1), 8).double())


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_any_dimension(dim: int) -> None:
    scores = normal(3, 4, 5)
    torch.testing.assert_close(sparsemax(scores, dim).sum(dim), torch.ones_like(scores.sum(dim)))
    moved = sparsemax(scores.movedim(dim, -1)).movedim(-1, dim)
    torch.testing.assert_close(Sparsemax(dim)(scores), moved)
    assert scores.equal(normal(3, 4, 5))  # the scores are left alone


@pytest.mark.parametrize("size", [6, 700])
def test_masked_scores_get_nothing(size: int) -> None:
    scores = normal(4, size)
    mask = torch.arange(size) % 3 == 0
    masked = scores.masked_fill(mask, float("-inf")).requires_grad_()
    probs = sparsemax(masked)
    assert (probs[:, mask] == 0).all()
    torch.testing.assert_close(probs[:, ~mask], sparsemax(scores[:, ~mask]))
    probs.square().sum().backward()
    assert masked.grad is not None
    assert masked.grad.isfinite().all()


def test_what_is_no_number_stays_none_and_the_search_ends() -> None:
    scores = torch.tensor([[1.0, float("nan"), 0.0], [float("-inf")] * 3, [0.0, 0.5, -1.0]])
    probs = sparsemax(scores)
    assert probs[:2].isnan().all()
    torch.testing.assert_close(probs[2], torch.tensor([0.25, 0.75, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    scores = normal(20, 300).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        probs = sparsemax(scores)
    assert probs.dtype == dtype
    torch.testing.assert_close(probs, sparsemax(scores.float()).to(dtype))


@pytest.mark.parametrize("size", [1, 6, 520])
def test_derivatives(size: int) -> None:
    scores = normal(2, size, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(sparsemax, scores, check_forward_ad=True, fast_mode=size > 100)
    assert torch.autograd.gradgradcheck(sparsemax, scores, fast_mode=size > 100)


def test_jacobian_is_that_of_the_support() -> None:
    scores = normal(6)
    inside = (sparsemax(scores) > 0).double()
    expected = inside.diag() - torch.outer(inside, inside) / inside.sum()
    torch.testing.assert_close(torch.autograd.functional.jacobian(sparsemax, scores), expected)


def test_gradient_of_the_loss_is_the_difference_of_the_distributions() -> None:
    logits = normal(30, 7).requires_grad_()
    target = normal(30, 7, seed=1).softmax(dim=1)
    (gradient,) = torch.autograd.grad(sparsemax_loss(logits, target, reduction="sum"), logits)
    torch.testing.assert_close(gradient, sparsemax(logits.detach()) - target)
    few = normal(3, 5, seed=2).requires_grad_()
    for goal in (target[:3, :5] / target[:3, :5].sum(1, keepdim=True), torch.tensor([0, 4, 2])):
        assert torch.autograd.gradcheck(lambda z, q=goal: sparsemax_loss(z, q), few)
        assert torch.autograd.gradgradcheck(lambda z, q=goal: sparsemax_loss(z, q), few)


def test_loss_is_the_formula_of_the_paper() -> None:
    logits, target = normal(30, 7), normal(30, 7, seed=1).softmax(dim=1)
    for row, q, value in zip(logits, target, sparsemax_loss(logits, target, reduction="none"), strict=True):
        inside = sparsemax(row) > 0
        tau = (row[inside].sum() - 1) / inside.sum()
        expected = -q @ row + (row[inside].square() - tau**2).sum() / 2 + q.square().sum() / 2
        torch.testing.assert_close(value, expected)


def test_loss_is_zero_from_a_lead_of_one_on() -> None:
    label = torch.tensor([0])
    for lead, zero in ((0.99, False), (1.0, True), (4.0, True)):
        loss = sparsemax_loss(torch.tensor([[lead, 0.0, -0.5]], dtype=torch.float64), label).item()
        assert (loss == pytest.approx(0, abs=1e-12)) is zero


def test_two_classes_give_the_modified_huber_loss() -> None:
    lead = torch.linspace(-3, 3, 61, dtype=torch.float64)
    losses = sparsemax_loss(torch.stack([lead, torch.zeros_like(lead)], 1), torch.zeros(61, dtype=torch.int64), "none")
    huber = torch.where(lead >= 1, torch.zeros_like(lead), torch.where(lead <= -1, -lead, (lead - 1) ** 2 / 4))
    torch.testing.assert_close(losses, huber)


def test_loss_is_convex_and_never_negative() -> None:
    a, b, target = 3 * normal(200, 6), 3 * normal(200, 6, seed=1), normal(200, 6, seed=2).softmax(1)
    loss = partial(sparsemax_loss, target=target, reduction="none")
    for share in (0.25, 0.5, 0.75):
        assert (loss(share * a + (1 - share) * b) <= share * loss(a) + (1 - share) * loss(b) + 1e-12).all()
    assert (loss(a) >= 0).all()
    assert loss(1e4 * a.float()).isfinite().all()


def test_reductions() -> None:
    logits, labels = normal(2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, 1]])
    losses = sparsemax_loss(logits, labels, "none")
    assert losses.shape == (2, 3)
    torch.testing.assert_close(sparsemax_loss(logits, labels), losses.mean())
    torch.testing.assert_close(sparsemax_loss(logits, labels, "sum"), losses.sum())
    with pytest.raises(ValueError, match="mean, sum or none"):
        sparsemax_loss(logits, labels, "median")


def test_label_proportions() -> None:
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    expected = torch.tensor([[0.5, 0, 0.5, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(label_proportions(labels), expected)


def test_labels_at_the_minimum_are_the_support() -> None:
    """What the loss asks for, sparsemax says: the support is the set of right labels, with no threshold."""
    labels = torch.tensor([[1, 0, 1, 0, 1.0]])
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(sparsemax_loss(logits, label_proportions(labels)), logits)
        logits = (logits - 0.3 * gradient).detach().requires_grad_()
    assert ((sparsemax(logits) > 1e-9) == (labels > 0)).all()


def tiny(model: object) -> Recipe:
    def part(seed: int) -> Split:
        ids = torch.randint(1, 20, (12, 6), generator=torch.Generator().manual_seed(seed))
        return Split(ids, torch.arange(12) % 2)

    data = Dataset("tiny", "classification", part(0), part(1), part(2), ("a", "b"))
    return Recipe(data, model=model)  # type: ignore[arg-type]


def test_treatment_exchanges_the_softmax_and_nothing_else() -> None:
    plain = tiny(partial(BiLSTM, 20, 2, 8, 4))
    torch.manual_seed(0)
    before = plain.model()
    torch.manual_seed(0)
    after = sparse_attention(plain).model()
    torch.testing.assert_close(before.state_dict(), after.state_dict())
    assert isinstance(after, BiLSTM)
    assert isinstance(after.attention.normalise, Sparsemax)
    after.attention.normalise = nn.Softmax(dim=-1)
    assert plain.data.train.inputs is sparse_attention(plain).data.train.inputs
    ids = plain.data.train.inputs
    assert isinstance(ids, Tensor)
    torch.testing.assert_close(before.eval()(ids), after.eval()(ids))


def test_treatment_of_a_network_without_softmax_says_so() -> None:
    with pytest.raises(ValueError, match=r"Linear has no nn\.Softmax"):
        sparse_attention(tiny(partial(nn.Linear, 6, 2))).model()


@pytest.mark.parametrize("loss", ["sparsemax", "softmax", "logistic"])
def test_cross_testing_finds_what_can_be_found_and_no_more(loss: str) -> None:
    features = normal(300, 6, dtype=torch.float32)
    scores = features @ normal(6, 4, seed=1, dtype=torch.float32)
    labels = (scores > scores.amax(dim=1, keepdim=True) - 0.7).float()  # one to four, which a linear model can tell
    found = cross_tested(features, labels, loss, penalties=[1e-4, 1.0], folds=5, seed=0)
    assert 0.78 < found["tuned"] <= 1
    assert found["zero"] <= found["tuned"] + 0.02
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    everything = 2 * labels.sum() / (labels.numel() + labels.sum())  # F1 of saying every label
    assert cross_tested(features, shuffled, loss, [1e-4, 1.0], folds=5, seed=0)["tuned"] < everything + 0.05


@pytest.mark.parametrize(
    "claim",
    [attention_equally_good, attention_is_sparse, multilabel_as_good_as_softmax, multilabel_without_threshold],
    ids=lambda claim: claim.name,
)
def test_claims_measure_what_they_expect(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(scale="smoke")
    try:
        for name in claim.needs:
            lab.data(name)
    except AssayError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: tmp_path)
    measured = claim(lab)
    (expected,) = claim.expect
    assert {expected.arm, getattr(expected, "than", expected.arm), getattr(expected, "to", expected.arm)} <= measured.keys()
    for value in measured.values():
        assert 0 <= (value.number if isinstance(value, Curve) else value) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_that_of_the_same_numbers_in_float32(dtype):
    logits = (20 * torch.randn(4096, 50, generator=torch.Generator().manual_seed(0))).to(dtype)
    labels = torch.arange(4096) % 50
    loss = sparsemax_loss(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, sparsemax_loss(logits.float(), labels, reduction="sum"))
    assert (sparsemax_loss(logits, labels, reduction="none") >= -1e-4).all()


def test_targets_of_another_shape_are_refused():
    for target in (torch.zeros(3, 1, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="target has the shape"):
            sparsemax_loss(torch.zeros(3, 4), target)


def test_masked_classes_have_no_part_in_the_loss():
    logits = torch.tensor([[1.0, -torch.inf, 0.5]], requires_grad=True)
    loss = sparsemax_loss(logits, torch.tensor([0]))
    loss.backward()
    torch.testing.assert_close(loss, sparsemax_loss(torch.tensor([[1.0, 0.5]]), torch.tensor([0])))
    assert logits.grad.isfinite().all()


def test_forward_derivative_along_any_dimension():
    scores = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sparsemax(z, 1), scores, check_forward_ad=True)
