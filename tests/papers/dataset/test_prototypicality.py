"""The five scores against closed forms and loops, private gradients one example at a time, and cleanlab on wrong labels."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, rankdata, spearmanr
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.papers.architectures.wide_resnet import wide_resnet
from assay.papers.dataset import prototypicality
from assay.papers.dataset.prototypicality import (
    METRICS,
    ClippedGradient,
    Prototypicality,
    adversarial_distance,
    agreement,
    confidence,
    lowest_tenth_holds_wrong_labels,
    metrics_agree,
    noise_withstood,
    retention,
    typical_examples_for_small_sets,
    typicality,
    without_batch_norm,
    wrong_labels_are_memorised,
)
from assay.train.replicas import train_replicas
from assay.view import Collection


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).softmax(dim=-1)


# ---------------------------------------------------------------------------------------------------- scores


def test_distance_of_a_linear_classifier_is_that_of_its_nearest_boundary() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(7, 4).double(), torch.randn(30, 7, dtype=torch.float64)
    weight, logits = model.weight.detach(), model(inputs).detach()
    labels = logits.argmax(dim=1)
    labels[:5] = (labels[:5] + 1) % 4  # wrong for the network: nothing needs to be moved
    found = adversarial_distance(model, inputs, labels)
    for row in range(30):
        said = int(logits[row].argmax())
        others = [k for k in range(4) if k != said]
        nearest = min(float((logits[row, said] - logits[row, k]) / (weight[said] - weight[k]).norm()) for k in others)
        # DeepFool steps 1e-4 further than the boundary, and the whole move is made 2 % longer.
        assert float(found[row]) == pytest.approx(0 if row < 5 else 1.02 * (nearest + 1e-4), abs=1e-9)


def test_agreement_is_the_mean_jensen_shannon_divergence() -> None:
    said = probabilities(4, 9, 5)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    expected = [-np.mean([jensenshannon(said[i, n], said[j, n]) ** 2 for i, j in pairs]) for n in range(9)]
    np.testing.assert_allclose(agreement(said).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(agreement(said), agreement(said.flip(0)))
    assert agreement(said[:1].expand(3, -1, -1)).abs().max() == 0
    opposite = torch.eye(2, dtype=torch.float64).unsqueeze(1)  # two networks, each sure of another class
    assert agreement(opposite).item() == pytest.approx(-math.log(2))
    with pytest.raises(ValueError, match="2 or more"):
        agreement(said[:1])


def test_retention_is_both_divergences() -> None:
    before, after = probabilities(8, 4), probabilities(8, 4, seed=1)
    expected = [-(entropy(p, q) + entropy(q, p)) for p, q in zip(before.numpy(), after.numpy(), strict=True)]
    np.testing.assert_allclose(retention(before, after).numpy(), expected, atol=1e-12)
    assert retention(before, before).abs().max() == 0
    sure = torch.tensor([[1.0, 0.0]])
    assert retention(sure, sure.flip(1)).isfinite().all()


def test_confidence_and_noise_by_hand() -> None:
    said = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.2, 0.8]]])
    assert confidence(said).tolist() == pytest.approx([0.8, 0.7])
    labels = torch.tensor([0, 0, 1])
    right, wrong = [0.8, 0.2], [0.3, 0.7]
    levels = torch.tensor(
        [  # two levels of noise, two trainings at each, three examples
            [[right, right, right], [right, right, right]],
            [[right, right, wrong], [right, wrong, wrong]],
        ]
    )
    # The first is right at both, the second once of two at the larger noise, the third (labelled 1) at the larger only.
    assert noise_withstood(levels, labels).tolist() == pytest.approx([2 + 0.8, 1 + (3 * 0.8 + 0.3) / 4, 2 + (0.2 + 0.7) / 2])
    assert noise_withstood(levels, labels, share=0.5)[1].item() > 2


def test_equal_examples_get_equal_scores() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(6, 8)[[0, 1, 2, 0, 1, 2]]
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    models = [mlp(8, 2, (16,)).eval() for _ in range(3)]
    with torch.no_grad():
        said = torch.stack([model(inputs).softmax(dim=1) for model in models])
    scores = [adversarial_distance(models[0], inputs, labels), agreement(said), confidence(said), retention(said[0], said[1])]
    scores.append(noise_withstood(said.unsqueeze(1), labels))
    for score in scores:
        torch.testing.assert_close(score[:3], score[3:])


# ---------------------------------------------------------------------------------------------------- private gradients


def one_by_one(model: nn.Module, inputs: Tensor, labels: Tensor, clip: float) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for x, y in zip(inputs, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        norm = math.sqrt(sum(float(value.grad.square().sum()) for value in model.parameters()))
        for name, value in model.named_parameters():
            total[name] += value.grad * min(1.0, clip / norm) / len(inputs)
    return total


class Shared(nn.Module):
    """A linear layer that is used twice: an outer product is not the whole of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(inputs)))))


def pictures() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(("make", "cheap"), [(partial(mlp, 6, 3, (5, 4)), True), (Shared, False), (pictures, False)])
@pytest.mark.parametrize("clip", [math.inf, 0.3])
def test_gradients_are_cut_example_by_example(make: partial[nn.Module], cheap: bool, clip: float) -> None:
    torch.manual_seed(0)
    model, inputs, labels = make(), torch.randn(9, 6), torch.randint(3, (9,))
    gradient = ClippedGradient(model, inputs[:1], clip)
    assert (gradient.linear is not None) == cheap
    found = gradient({name: value.detach() for name, value in model.named_parameters()}, inputs, labels)
    for name, value in one_by_one(model, inputs, labels, clip).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    if clip == math.inf:  # without a bound and without noise it is SGD
        model.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        for name, value in model.named_parameters():
            torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-6)
    others = [make() for _ in range(3)]
    stacked, _ = stack_module_state(others)
    many = vmap(gradient)(stacked, inputs.expand(3, -1, -1), labels.expand(3, -1))
    for number, other in enumerate(others):
        for name, value in one_by_one(other, inputs, labels, clip).items():
            torch.testing.assert_close(many[name][number], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [partial(mlp, 6, 3, (5, 4)), pictures])
def test_clipped_gradient_is_that_of_opacus(make: partial[nn.Module]) -> None:
    opacus = pytest.importorskip("opacus.grad_sample")
    torch.manual_seed(0)
    model, inputs, labels = make(), torch.randn(9, 6), torch.randint(3, (9,))
    found = ClippedGradient(model, inputs[:1], 0.3)(dict(model.named_parameters()), inputs, labels)
    wrapped = opacus.GradSampleModule(model, loss_reduction="sum")
    F.cross_entropy(wrapped(inputs), labels, reduction="sum").backward()
    norms = torch.stack([value.grad_sample.flatten(1).norm(dim=1) for value in model.parameters()]).norm(dim=0)
    for name, value in model.named_parameters():
        mean = torch.einsum("b,b...->...", (0.3 / norms).clamp(max=1), value.grad_sample) / 9
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-6)


def test_many_examples_are_taken_in_parts() -> None:
    torch.manual_seed(0)
    model, inputs, labels = lenet(1, 3, 8), torch.randn(50, 1, 8, 8), torch.randint(3, (50,))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    assert sum(value.numel() for value in parameters.values()) * 50 > 1e6
    whole = ClippedGradient(model, inputs[:1], 0.5)(parameters, inputs, labels)
    parts = [
        ClippedGradient(model, inputs[:1], 0.5)(parameters, *part)
        for part in zip(inputs.split(25), labels.split(25), strict=True)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_batch_normalisation_is_refused_and_replaced() -> None:
    model = wide_resnet(10, 1, 10, 3)
    with pytest.raises(ValueError, match="mixes examples"):
        ClippedGradient(model, torch.zeros(1, 3, 8, 8))
    apart = without_batch_norm(model).train()
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the network itself is left alone
    assert not any(isinstance(module, nn.BatchNorm2d) for module in apart.modules())
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(apart(images)[:1], apart(images[:1]), rtol=1e-4, atol=1e-5)  # each example for itself
    flat = without_batch_norm(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    assert float(flat(torch.randn(3, 4)).detach().abs().min()) > 0
    ClippedGradient(apart, images[:1])(dict(apart.named_parameters()), images, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="above 0"):
        ClippedGradient(mlp(4, 2), torch.zeros(1, 4), clip=0)


# ---------------------------------------------------------------------------------------------------- all at once


@pytest.fixture(scope="module")
def flipped() -> tuple[np.ndarray, np.ndarray, np.ndarray, Prototypicality]:
    """700 digits, of which 5 % have another label, and their scores."""
    inputs, truth = load_digits(return_X_y=True)
    inputs, truth = (inputs[:700] / 16).astype(np.float32), truth[:700]
    rng = np.random.default_rng(0)
    wrong = np.zeros(700, dtype=bool)
    wrong[rng.choice(700, 35, replace=False)] = True
    labels = np.where(wrong, (truth + rng.integers(1, 10, 700)) % 10, truth)
    found = Prototypicality(
        partial(mlp, 64, 10, (64,)), n_models=3, epochs=25, ret_epochs=60, rate=3e-3, private_epochs=25, lot=128, seed=1
    )
    return inputs, labels, wrong, found.fit(inputs, labels)


def test_finds_wrong_labels_about_as_well_as_cleanlab(
    flipped: tuple[np.ndarray, np.ndarray, np.ndarray, Prototypicality],
) -> None:
    rank = pytest.importorskip("cleanlab.rank")
    _, labels, wrong, found = flipped
    theirs = rank.get_self_confidence_for_each_label(labels, found.probabilities_)
    np.testing.assert_allclose(found.probabilities_[np.arange(700), labels], theirs)
    precision = {name: average_precision_score(wrong, -found.ranks_[name]) for name in METRICS}
    cleanlab = average_precision_score(wrong, -theirs)
    assert cleanlab > 0.8
    assert precision["priv"] > cleanlab - 0.15
    assert precision["conf"] < 0.2  # it does not look at the label
    assert precision["ret"] > 0.3  # what was learnt by heart is forgotten
    assert average_precision_score(wrong, found.memorization()) > 0.5


def test_scores_ranks_and_lists_fit_together(flipped: tuple[np.ndarray, np.ndarray, np.ndarray, Prototypicality]) -> None:
    _, labels, wrong, found = flipped
    assert list(found.scores_) == list(METRICS)
    assert found.scores_.shape == found.ranks_.shape == (700, 5)
    ranks = np.stack([rankdata(found.scores_[name]) / 700 for name in METRICS], axis=1)
    np.testing.assert_allclose(found.ranks_, ranks)
    np.testing.assert_allclose(found.mean_rank_, ranks.mean(axis=1))
    np.testing.assert_allclose(found.correlation_, spearmanr(found.scores_).statistic)
    assert (found.scores_["adv"].to_numpy()[found.probabilities_.argmax(axis=1) != labels] < 1).mean() > 0.9
    typical = found.prototypes(4)
    assert {name: len(rows) for name, rows in typical.items()} == dict.fromkeys(range(10), 4)
    assert all((labels[rows] == name).all() and not wrong[rows].any() for name, rows in typical.items())
    assert found.mean_rank_[found.outliers(5)].max() <= np.sort(found.mean_rank_)[4]
    assert wrong[found.memorized(10)].mean() > 0.6


def test_same_seed_same_scores_and_some_metrics_only(table: Dataset) -> None:
    inputs, labels = table.train.inputs[:120], np.array(["a", "b"])[table.train.labels[:120]]
    scorer = Prototypicality(partial(mlp, 8, 2, (8,)), metrics=("conf", "adv"), n_models=2, folds=2, epochs=2)
    first, second = scorer.fit(inputs, labels).scores_, clone(scorer).fit(inputs.numpy(), labels).scores_
    assert list(first) == ["conf", "adv"]
    assert first.equals(second)
    assert not first.equals(clone(scorer).set_params(seed=1).fit(inputs, labels).scores_)
    assert set(scorer.fit(inputs, labels).prototypes(2)) == {"a", "b"}
    with pytest.raises(ValueError, match="priv is not among"):
        scorer.memorized()
    for wrong, said in (
        ({"metrics": ("entropy",)}, "no metric 'entropy'"),
        ({"metrics": ()}, "no metric"),
        ({"n_models": 1}, "two models"),
        ({"metrics": ("priv",), "noises": ()}, "a level of noise"),
        ({"metrics": ("priv",), "clip": math.inf}, "finite"),
        ({"make_model": partial(mlp, 8, 3)}, "3 outputs and y has 2 classes"),
    ):
        with pytest.raises(ValueError, match=said):
            clone(scorer).set_params(**wrong).fit(inputs, labels)


def test_ensemble_has_not_seen_what_it_speaks_of() -> None:
    """Labels are thrown: nobody can know them without having seen them, and in these epochs they are learnt by heart."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(240, 40, generator=generator), torch.randint(2, (240,), generator=generator)
    scorer = Prototypicality(partial(mlp, 40, 2, (128,)), ("conf",), n_models=2, folds=2, epochs=30, batch_size=16, rate=3e-3)
    found = scorer.fit(inputs, labels)
    said = found.probabilities_
    assert said is not None
    assert abs(float((said.argmax(axis=1) == labels.numpy()).mean()) - 0.5) < 0.12
    assert found.scores_["conf"].mean() > 0.8  # each sure of what it learnt


def test_private_noise_is_that_of_a_sum_of_cut_gradients(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[dict[str, object]] = []

    def watched(*given: object, **more: object) -> None:
        settings.append(more)
        train_replicas(*given, **more)

    monkeypatch.setattr(prototypicality, "train_replicas", watched)
    Prototypicality(
        partial(mlp, 8, 2, (4,)), ("priv",), noises=(4.0, 0.0), private_runs=2, private_epochs=1, lot=32, clip=0.5
    ).fit(table.train.inputs[:64], table.train.labels[:64])
    assert settings[0]["noise"] == [0, 0, 4 * 0.5 / 32, 4 * 0.5 / 32]  # of the mean over a lot
    assert settings[0]["gradient"].clip == 0.5


def test_probe_asks_for_no_class_without_examples(table: Dataset) -> None:
    inputs, labels = table.train.inputs[:80], table.train.labels[:80] * 2
    data = Collection(inputs, labels, partial(mlp, 8, 3, (8,)), "table", ("a", "rare", "b"))
    ranked = typicality(data, models=2, folds=2, steps=20)
    assert any("of class rare" in note for note in ranked.notes)
    assert all(values.shape == (80,) for values in ranked.each.values())
    assert float(ranked.each["conf"].min()) >= 0.5  # the likelier one of two


def test_rare_kinds_are_found_as_clusters() -> None:
    """One class has a small second kind far from the first, which private training gives up."""
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(300, 6, generator=generator) * 0.5
    labels = (torch.arange(300) % 2).long()
    usual[:, 0] += 4 * labels - 2
    rare = torch.randn(16, 6, generator=generator) * 0.2
    rare[:, 1] += 6
    rare[:, 0] += 3  # on the other class's side
    inputs, labels = torch.cat([usual, rare]), torch.cat([labels, torch.zeros(16, dtype=torch.int64)])
    found = Prototypicality(partial(mlp, 6, 2, (32,)), ("priv",), noises=(0, 4, 16), lot=64, private_epochs=10).fit(
        inputs, labels
    )
    clusters = found.submodes(min_size=5)
    assert [sorted(cluster) for cluster in clusters] == [list(range(300, 316))]


def test_probe_and_claims_at_smoke_scale(table: Dataset, home: object) -> None:
    data = Collection(table.train.inputs[:100], table.train.labels[:100], partial(mlp, 8, 2, (8,)), "table", ("a", "b"))
    ranked = typicality(data, models=2, folds=2, steps=20, shown=3)
    assert set(ranked.each) == {*METRICS, "mean rank", "memorised"}
    assert all(values.shape == (100,) for values in ranked.each.values())
    assert all(len(places) == 3 for places in ranked.lists.values())
    with pytest.raises(AssayError, match="target of these data is a number"):
        typicality(Collection(table.train.inputs, table.train.inputs[:, 0], partial(mlp, 8, 1), "table"))
    lab = Lab(scale="smoke")
    assert {"lowest of the ten", "mean of the ten"} < set(metrics_agree(lab))
    assert {"mean rank", "conf", "self-confidence"} < set(lowest_tenth_holds_wrong_labels(lab))
    assert {"priv", "memorised", "mean rank"} < set(wrong_labels_are_memorised(lab))
    assert {"most typical, 500", "least typical, 2500"} < set(typical_examples_for_small_sets(lab))


def test_functional_call_leaves_the_network_alone() -> None:
    torch.manual_seed(0)
    model = mlp(6, 3, (5,))
    before = [value.clone() for value in model.parameters()]
    gradient = ClippedGradient(model, torch.zeros(1, 6))
    gradient({name: value + 1 for name, value in model.named_parameters()}, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert functional_call(model, dict(model.named_parameters()), (torch.zeros(1, 6),)).shape == (1, 3)


def test_an_attack_that_gives_up_in_one_network_does_not_outweigh_a_mistake_of_another() -> None:
    distances = torch.tensor([[0.0, 1.0, 3.0, math.inf], [math.inf, 2.0, 4.0, math.inf]])
    assert prototypicality._mean_distance(distances).tolist() == [2.0, 1.5, 3.5, 3.5]
