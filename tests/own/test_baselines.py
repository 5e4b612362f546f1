"""Baselines learn what is easy to learn, for every kind of data, and so do the references without a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.own.baselines import baseline, kind, reference
from assay.train.loop import fit


def dataset(inputs: Tensor | tuple[str, ...], labels: Tensor) -> Dataset:
    whole = Split(inputs, labels)
    parts = [whole.take(torch.arange(begin, end)) for begin, end in ((0, 160), (160, 180), (180, 240))]
    if labels.is_floating_point():
        return Dataset("x", "regression", *parts)
    return Dataset("x", "classification", *parts, classes=("no", "yes"))


LABELS = torch.arange(240) % 2
NOISE = torch.Generator()


@pytest.fixture(autouse=True)
def _noise() -> None:
    """The same data whichever tests ran before."""
    NOISE.manual_seed(0)


def _shaped(*shape: int) -> Tensor:
    return torch.rand(240, *shape, generator=NOISE) * 0.5 + 0.5 * LABELS.view(-1, *[1] * len(shape))


def _texts() -> tuple[str, ...]:
    return tuple(f"thing {n % 7} is {'fine and good' if n % 2 else 'bad'} number {n % 11}" for n in range(240))


TASKS = {
    "table": lambda: dataset(_shaped(6), LABELS),
    "series": lambda: dataset(_shaped(2, 20), LABELS),
    "images": lambda: dataset(_shaped(1, 10, 10), LABELS),
    "text": lambda: dataset(_texts(), LABELS),
}


@pytest.mark.parametrize("name", TASKS)
def test_easy_classes_are_learnt(name: str) -> None:
    data = TASKS[name]()
    assert kind(data) == name
    recipe = baseline(data)
    trained = fit(recipe.replace(epochs=4), seed=0)
    assert trained.accuracy() > 0.95
    assert (reference(data, seed=0)["predicted"] == data.test.labels).double().mean() > 0.95


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_numbers_are_learnt_in_their_units(scale: float) -> None:
    inputs = torch.randn(240, 4, generator=NOISE)
    data = dataset(inputs, (inputs[:, 0] * 3 + 7) * scale)
    recipe = baseline(data)
    outputs = fit(recipe.replace(epochs=20), seed=0).logits().squeeze(1)
    labels = data.test.labels
    assert (outputs - labels).square().mean() < 0.05 * labels.var()
    predicted = reference(data, seed=0)["predicted"]
    assert (predicted - labels).square().mean() < 0.2 * labels.var()


def test_reference_learns_from_the_training_part_alone() -> None:
    data = TASKS["table"]()
    other = Dataset("x", data.task, data.train, data.valid, data.test.take(torch.arange(10)), classes=data.classes)
    assert torch.equal(reference(data, 0)["predicted"][:10], reference(other, 0)["predicted"])


def test_other_tasks_are_refused() -> None:
    pairs = Split(torch.zeros(4, 2, dtype=torch.int64), torch.arange(4))
    with pytest.raises(AssayError, match="triples data set"):
        baseline(Dataset("x", "triples", pairs, pairs, pairs, classes=("a", "b", "c", "d")))
