"""Perceptual score: the exact expectation, scikit-learn's permutation importance, exact splits over groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.lab import Lab
from assay.papers.explain import perceptual_score as module
from assay.papers.explain.perceptual_score import perceived, perceptual_score
from assay.view import View


class Table(nn.Module):
    """A linear classifier of two modalities."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.first(first) + 2 * self.second(second)


@pytest.fixture(scope="module")
def task() -> tuple[Table, dict[str, Tensor], Tensor]:
    model, generator = Table().requires_grad_(False), torch.Generator().manual_seed(1)
    inputs = {"first": torch.randn(60, 3, generator=generator), "second": torch.randn(60, 2, generator=generator)}
    labels = model(**inputs).argmax(dim=1)
    wrong = torch.rand(60, generator=generator) < 0.15
    return model, inputs, torch.where(wrong, torch.randint(4, (60,), generator=generator), labels)


def score(task, modality="second", repeats=10, seed=0, **options):
    model, inputs, labels = task
    generator = torch.Generator().manual_seed(seed)
    return perceptual_score(model, inputs, labels, modality, repeats=repeats, generator=generator, **options)


def exact(task, modality: str) -> Tensor:
    """e_i with the mean over all other examples instead of draws, one pair at a time."""
    model, inputs, labels = task
    itself = (model(**inputs).argmax(dim=1) == labels).double()
    lost = torch.zeros(len(labels), dtype=torch.float64)
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        here = {name: x[i].expand(len(others), -1) for name, x in inputs.items()} | {modality: inputs[modality][others]}
        lost[i] = itself[i] - (model(**here).argmax(dim=1) == labels[i]).double().mean()
    return lost


@pytest.mark.parametrize("modality", ["first", "second"])
def test_mean_over_draws_is_the_expectation_over_other_examples(task, modality):
    expected = exact(task, modality)
    found = score(task, modality, repeats=1500, normalise="none")
    assert found.value == pytest.approx(expected.mean().item(), abs=6e-3)
    torch.testing.assert_close(found.per_sample, expected, rtol=0, atol=0.06)
    assert found.value == pytest.approx(found.accuracy - found.swapped)


def test_agrees_with_permutation_importance_of_a_group_of_columns(task):
    """scikit-learn permutes one column; given the number of a row as its column, that permutes all columns of the row."""
    from sklearn.inspection import permutation_importance

    model, inputs, labels = task

    class Estimator:
        def fit(self, X, y):
            return self

        def score(self, X, y):
            first, second = (torch.from_numpy(X[:, k].astype(np.int64)) for k in (0, 1))
            said = model(first=inputs["first"][first], second=inputs["second"][second]).argmax(dim=1)
            return (said.numpy() == y).mean()

    rows = np.stack([np.arange(60.0)] * 2, axis=1)
    peer = permutation_importance(Estimator(), rows, labels.numpy(), n_repeats=1000, random_state=0).importances_mean
    for place, modality in enumerate(("first", "second")):
        ours = score(task, modality, repeats=1000, normalise="none").value
        # Its permutation keeps one example of n in place, on average.
        assert peer[place] == pytest.approx(ours * 59 / 60, abs=8e-3)


def test_groups_sum_up_to_the_whole(task):
    groups = torch.arange(60) % 7 % 3
    found = score(task, groups=groups)
    assert set(found.per_group) == {0, 1, 2}
    assert sum(share for share, _ in found.per_group.values()) == pytest.approx(1)
    assert sum(share * value for share, value in found.per_group.values()) == pytest.approx(found.value)
    assert found.per_group[1][1] == pytest.approx(found.per_sample[groups == 1].mean().item())


def test_normalisers(task):
    _, _, labels = task
    raw, task_, model = (score(task, normalise=kind) for kind in ("none", "task", "model"))
    assert task_.value == pytest.approx(raw.value / (1 - labels.bincount().max().item() / 60))
    assert model.value == pytest.approx(raw.value / raw.accuracy)
    assert raw.std > 0


def test_what_is_never_read_scores_exactly_nothing(task):
    _, inputs, labels = task
    found = perceptual_score(lambda first, second: first @ torch.ones(3, 4), inputs, labels, "second", repeats=3)
    assert found.value == 0
    assert not found.per_sample.any()


def test_all_modalities_together_leave_chance():
    """The same other example brings them all: what is left is how often two examples share a label."""
    labels = torch.arange(90) % 3
    inputs, draws = {"a": torch.eye(3)[labels], "b": torch.rand(90, 3)}, torch.Generator().manual_seed(0)
    found = perceptual_score(lambda a, b: a + 0 * b, inputs, labels, ["a", "b"], repeats=400, normalise="none", generator=draws)
    assert found.accuracy == 1
    assert found.swapped == pytest.approx(29 / 89, abs=0.01)


def test_no_example_keeps_its_own():
    rows = torch.arange(8).float().unsqueeze(1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        found = perceptual_score(
            lambda a, b: (a == b).float(),
            {"a": rows, "b": rows},
            torch.zeros(8, dtype=torch.int64),
            "b",
            metric=lambda same, _: same.squeeze(1),
            repeats=1,
            normalise="model",
            generator=generator,
        )
        assert found.value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "third"}, "must be among first, second"),
        ({"repeats": 0}, "at least one draw"),
        ({"normalise": "share"}, "must be task"),
    ],
)
def test_what_cannot_be_meant_is_refused(task, change, message):
    with pytest.raises(ValueError, match=message):
        score(task, **change)


def table_view(**changes) -> View:
    torch.manual_seed(3)
    model = nn.Linear(3, 2).requires_grad_(False)
    model.weight[:] = torch.tensor([[3.0, 0.0, 0.3], [-3.0, 0.0, -0.3]])
    model.bias[:] = 0
    inputs = torch.randn(40, 3)
    labels = model(inputs).argmax(dim=1)
    view = {"model": model, "inputs": inputs, "target": labels, "labels": labels, "background": torch.randn(300, 3)}
    view |= {"background_labels": None, "kind": "table", "classes": ("no", "yes"), "features": ("age", "shoe", "pay")}
    return View(**(view | changes))


def test_probe_ranks_the_columns_of_a_table():
    seen = perceived(table_view())
    assert seen.numbers["score of age"] > 0.5 > seen.numbers["score of pay"] > 0
    assert seen.numbers["score of shoe"] == 0
    assert seen.each["owed to age"].shape == (40,)
    together = perceived(table_view(), modalities="age, 2")
    assert set(together.numbers) == {"accuracy", "score of age + pay"}
    assert perceived(table_view(background=torch.empty(0, 3))).numbers["score of age"] > 0.5


def test_probe_says_what_it_cannot_do():
    with pytest.raises(AssayError, match="no column or channel 'height'"):
        perceived(table_view(), modalities="age,height")
    with pytest.raises(AssayError, match="one channel"):
        perceived(table_view(kind="images", features=(), inputs=torch.rand(4, 1, 8, 8), labels=torch.zeros(4)))
    with pytest.raises(AssayError, match="--examples"):
        perceived(table_view(labels=torch.zeros(40, dtype=torch.int64)))


@pytest.mark.parametrize(
    "claim", [module.shortcut_model_ignores_modality, module.falls_as_captions_tell_more, module.needed_modalities]
)
def test_claims_run(claim, tmp_path, monkeypatch):
    lab = Lab(scale="smoke")
    try:
        for name in claim.needs:
            lab.data(name)
    except AssayError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: tmp_path)
    arms = claim(lab)
    names = {name for one in claim.expect for name in (one.arm, getattr(one, "than", getattr(one, "to", one.arm)))}
    assert names <= set(arms)
