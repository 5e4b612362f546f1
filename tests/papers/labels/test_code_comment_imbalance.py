"""Class weights by hand and against scikit-learn and torch, thresholds by brute force, and the claims at smoke scale."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.code_comment_imbalance import (
    _judged,
    _trials,
    class_weighted,
    class_weights,
    f1_per_label,
    helps_rare_labels,
    helps_rare_photographs,
    of_mean_one,
    thresholds_do_as_much,
    tune_thresholds,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)
from assay.papers.labels.elr import elr
from assay.recipe import Recipe
from assay.train.loop import fit


@pytest.fixture
def uneven(table: Dataset) -> Dataset:
    """The half-spaces with 20 training examples of the second class beside all of the first."""
    split = table.train
    second = (split.labels == 1).nonzero().flatten()[:20]
    rows = torch.cat([(split.labels == 0).nonzero().flatten(), second]).sort().values
    return Dataset("uneven", "classification", split.take(rows), table.valid, table.test, table.classes)


def test_weights_by_hand() -> None:
    counts = torch.tensor([50, 10, 1])
    torch.testing.assert_close(class_weights(counts, 100, "ranked"), torch.tensor([1.0, 10.0, 50.0]).double())
    expected = torch.tensor([0.02, 0.1, 1.0]).double() / 1.12
    torch.testing.assert_close(class_weights(counts, 100, "inverse_frequency"), expected)
    effective = [sum(0.9**power for power in range(n)) for n in (50, 10, 1)]  # the geometric series itself
    expected = 1 / torch.tensor(effective, dtype=torch.float64)
    torch.testing.assert_close(class_weights(counts, 100, "effective_number", beta=0.9), expected)


def test_limits_of_the_effective_number() -> None:
    """No discount: plain inverse counts; nothing but the first example of a class counts: all weights are one."""
    counts = torch.tensor([500, 30, 2])
    near = of_mean_one(class_weights(counts, 532, "effective_number", beta=1 - 1e-9), counts)
    torch.testing.assert_close(near, of_mean_one(class_weights(counts, 532, "inverse_frequency"), counts), rtol=1e-5, atol=0)
    assert class_weights(counts, 532, "effective_number", beta=0.0).tolist() == [1, 1, 1]


def test_on_an_exponential_tail_ranked_is_inverse_frequency() -> None:
    """There the product of the k-th and the k-th last frequency is the same for all k."""
    counts = 2 ** torch.arange(9, -1, -1)
    ranked, inverse = (of_mean_one(class_weights(counts, 1023, scheme)) for scheme in ("ranked", "inverse_frequency"))
    torch.testing.assert_close(ranked, inverse)


@pytest.mark.parametrize("scheme", ["ranked", "inverse_frequency", "effective_number"])
def test_equally_frequent_labels_weigh_the_same_and_rarer_ones_more(scheme: str) -> None:
    assert of_mean_one(class_weights(torch.full((5,), 20), 60, scheme)).tolist() == pytest.approx([1] * 5)
    weights = class_weights(torch.tensor([7, 40, 7, 90, 3]), 200, scheme)
    assert weights[0] == weights[2]
    assert weights[3] < weights[1] < weights[0] < weights[4]


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    counts = torch.bincount(torch.from_numpy(labels))
    found = of_mean_one(class_weights(counts, 84, "inverse_frequency"), counts)
    np.testing.assert_allclose(found.numpy(), compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert (found * counts).sum().item() == pytest.approx(84)


def test_bad_settings_are_named() -> None:
    for counts in ([0, 3], [5, 11], []):
        with pytest.raises(ValueError, match="counts"):
            class_weights(torch.tensor(counts), 10)
    with pytest.raises(ValueError, match="beta"):
        class_weights(torch.tensor([1, 2]), 3, "effective_number", beta=1.0)
    with pytest.raises(ValueError, match="scheme"):
        class_weights(torch.tensor([1, 2]), 3, "reversed")


def batch(size: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(size, 4, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.05])).double()


def test_losses_by_hand() -> None:
    logits, targets = batch()
    weights = (0.5, 1.0, 2.0, 4.0)
    each = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log())
    expected = (each * torch.tensor(weights).double()).mean()
    torch.testing.assert_close(weighted_binary_cross_entropy(logits, targets, weights), expected)
    torch.testing.assert_close(
        weighted_binary_cross_entropy(logits, targets, (1.0,) * 4), nn.BCEWithLogitsLoss()(logits, targets)
    )
    labels = torch.arange(30) % 4
    single = weighted_cross_entropy(logits, labels, weights)
    own = -logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(single, (own * torch.tensor(weights).double()[labels]).mean())
    torch.testing.assert_close(weighted_cross_entropy(logits, F.one_hot(labels).double(), weights), single)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, (1.0,) * 4), F.cross_entropy(logits, labels))


def test_f1_is_scikit_learns() -> None:
    logits, targets = batch()
    for said in (logits > 0, logits > 1.5, logits > 9):
        expected = f1_score(targets.numpy(), said.numpy(), average=None, zero_division=0)
        np.testing.assert_allclose(f1_per_label(said, targets).numpy(), expected)


def test_thresholds_are_the_best_there_are() -> None:
    logits, targets = batch()
    logits = (logits * 2).round() / 2  # many equal values
    targets[:, 3] = 0
    found = tune_thresholds(logits, targets)
    reached = f1_per_label(logits > found, targets)
    cuts = torch.cat([logits.unique() - 1e-6, torch.tensor([torch.inf]).double()])
    best = torch.stack([f1_per_label(logits > cut, targets) for cut in cuts]).amax(dim=0)
    torch.testing.assert_close(reached, best)
    assert found[3] == torch.inf
    assert not (logits[:, None] == found).any()  # between values, never on one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thresholds_lie_between_neighbouring_numbers(dtype: torch.dtype) -> None:
    """Halfway between two neighbours, rounded, is one of them: an example would be on the wrong side."""
    ones = torch.ones(8, dtype=dtype)
    logits = torch.stack([ones, torch.nextafter(ones, 2 * ones), 1 - torch.finfo(dtype).eps * ones], dim=1).flatten()[:, None]
    logits = torch.cat([logits, torch.nextafter(logits, 9 * torch.ones_like(logits))], dim=1)
    for cut in (logits.unique()[:-1]).tolist():
        targets = (logits > cut).double()
        said = logits > tune_thresholds(logits, targets)
        assert torch.equal(said.double(), targets)


def test_adam_does_not_see_weights_in_a_linear_model() -> None:
    """Every label has parameters of its own there, and Adam divides the length of a gradient out."""
    _, targets = batch(60)
    inputs = torch.randn(60, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def trained(weights: tuple[float, ...], hidden: bool) -> Tensor:
        torch.manual_seed(0)
        net = (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)) if hidden else nn.Linear(5, 4)).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01, eps=1e-30)
        for _ in range(30):
            optimizer.zero_grad()
            weighted_binary_cross_entropy(net(inputs), targets, weights).backward()
            optimizer.step()
        return net(inputs).detach()

    even, uneven = (1.0, 1.0, 1.0, 1.0), (0.2, 0.4, 1.4, 2.0)
    torch.testing.assert_close(trained(even, hidden=False), trained(uneven, hidden=False))
    assert not torch.allclose(trained(even, hidden=True), trained(uneven, hidden=True), atol=1e-3)


def test_treatment_finds_more_of_the_rare_class(uneven: Dataset) -> None:
    plain = Recipe(uneven, model=partial(mlp, 8, 2, (16,)), epochs=5, batch_size=32)
    treated = class_weighted(plain, "inverse_frequency")
    assert treated.replace(loss=plain.loss) == plain
    counts = torch.bincount(uneven.train.labels)
    for scheme, beta in (("ranked", 0.999), ("effective_number", 0.9)):
        weights = class_weighted(plain, scheme, beta).loss.keywords["weights"]
        assert (torch.tensor(weights) * counts).sum() == pytest.approx(len(uneven.train))
        raw = class_weights(counts, len(uneven.train), scheme, beta)
        assert weights[1] / weights[0] == pytest.approx((raw[1] / raw[0]).item())
    rare = uneven.test.labels == 1
    found = [(fit(recipe, 0).logits().argmax(1) == 1)[rare].double().mean() for recipe in (plain, treated)]
    assert found[1] > found[0] + 0.1


@pytest.fixture
def several() -> Dataset:
    """Three labels an example, carried by 20, 10 and 4 of 40."""
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(40)[:, None] < torch.tensor([20, 10, 4])).float()
    split = Split(inputs, labels)
    return Dataset("several", "multilabel", split, split, split, ("a", "b", "c"))


def test_treatment_takes_examples_with_several_labels(several: Dataset) -> None:
    plain = Recipe(several, model=partial(mlp, 6, 3, (8,)), loss=F.binary_cross_entropy_with_logits, epochs=1)
    treated = class_weighted(plain, "inverse_frequency")
    wanted = torch.tensor([1 / 20, 1 / 10, 1 / 4]).double() / torch.tensor([1 / 20, 1 / 10, 1 / 4]).sum() * 3
    assert treated.loss.func is weighted_binary_cross_entropy
    assert treated.loss.keywords["weights"] == pytest.approx(wanted.tolist())
    assert fit(treated, 0).history["train_loss"] != fit(plain, 0).history["train_loss"]
    with pytest.raises(AssayError, match="binary_cross_entropy"):
        class_weighted(plain.replace(loss=F.cross_entropy))
    with pytest.raises(AssayError, match="binary_cross_entropy"):
        class_weighted(treated)  # weights on weights


def test_every_arm_has_as_many_trials_and_positives_as_much_weight_as_negatives(several: Dataset) -> None:
    plain = Recipe(several, model=partial(mlp, 6, 3, (8,)), loss=F.binary_cross_entropy_with_logits)
    trials = {arm: _trials(plain, arm) for arm in ("unweighted", "weighted", "positives weighted")}
    assert {len(recipes) for recipes in trials.values()} == {4}
    assert len({recipe.loss for recipe in trials["unweighted"]}) == 1
    zeros = torch.zeros(40, 3, requires_grad=True)
    trials["positives weighted"][0].loss(zeros, several.train.labels).backward()
    torch.testing.assert_close(zeros.grad.sum(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


def test_choices_see_the_validation_sentences_alone(several: Dataset) -> None:
    """Logits that are right on one split and wrong on the other tell which of them was asked."""
    labels = several.train.labels
    right = SimpleNamespace(valid=2 * labels - 1, test=1 - 2 * labels)
    trained = SimpleNamespace(recipe=SimpleNamespace(data=several), logits=lambda part: getattr(right, part), seconds=1.0)
    for tuned in (False, True):
        held_out, on_test, _ = _judged(trained, tuned)
        assert held_out == 1
        assert on_test.tolist() == [0, 0, 0]


def test_treatment_composes_in_any_order(uneven: Dataset) -> None:
    plain = Recipe(uneven, model=partial(mlp, 8, 2, (16,)), epochs=3, batch_size=32)
    losses = [fit(recipe, 0).history["train_loss"] for recipe in (elr(class_weighted(plain)), class_weighted(elr(plain)))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for alone in (class_weighted(plain), elr(plain)):
        assert fit(alone, 0).history["train_loss"] != pytest.approx(losses[0], rel=1e-3)


def test_treatment_refuses_what_it_cannot_do(table: Dataset, uneven: Dataset) -> None:
    recipe = partial(Recipe, model=partial(mlp, 8, 2, (16,)))
    numbers = Split(table.train.inputs, table.train.inputs[:, 0])
    regression = Dataset("numbers", "regression", numbers, numbers, numbers)
    with pytest.raises(AssayError, match="regression"):
        class_weighted(recipe(regression))
    third = Dataset("third", "classification", uneven.train, uneven.valid, uneven.test, ("below", "above", "beside"))
    with pytest.raises(AssayError, match="'beside'"):
        class_weighted(recipe(third))
    even = uneven.train.take(torch.cat([(uneven.train.labels == label).nonzero().flatten()[:20] for label in (0, 1)]))
    same = recipe(Dataset("even", "classification", even, uneven.valid, uneven.test, uneven.classes))
    assert class_weighted(same) is same


def test_claims_on_comments_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    try:
        arms = helps_rare_labels(lab)
    except AssayError as error:
        pytest.skip(f"no comments here: {error}")
    assert {"unweighted", "weighted", "positives weighted", "weighted, other labels"} <= set(arms)
    assert len(arms["weighted"].y) == 7
    for arm in ("unweighted", "weighted", "positives weighted"):  # two of seven labels are the rarest third
        assert arms[arm].number == pytest.approx(sum(arms[arm].y[:2]) / 2)
        assert arms[f"{arm}, other labels"] == pytest.approx(sum(arms[arm].y[2:]) / 5)
    assert {"unweighted", "unweighted, tuned", "weighted, tuned"} <= set(thresholds_do_as_much(lab))


def test_claim_on_photographs_at_smoke_scale(home: object) -> None:
    arms = helps_rare_photographs(Lab(scale="smoke"))
    assert {"cross-entropy, rare classes", "effective number", "cross-entropy, shares taken out"} <= set(arms)
