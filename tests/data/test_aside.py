"""What is set aside is balanced, comes from the training split alone, and is gone from it."""

import pytest
import torch

from assay.data import Dataset, Split
from assay.data.aside import set_aside
from assay.errors import AssayError


def unequal() -> Dataset:
    labels = torch.tensor([0] * 40 + [1] * 5 + [2])
    split = Split(torch.arange(46.0)[:, None], labels)
    return Dataset("unequal", "classification", split, split.take(torch.arange(3)), split, ("a", "b", "c"))


def test_equally_many_of_each_class_are_taken_and_rare_ones_repeated() -> None:
    data = unequal()
    rest, dev = set_aside(data, 4, seed=0)
    assert torch.bincount(dev.labels).tolist() == [4, 4]  # the class with a single example gives none
    assert len(dev.inputs.unique()) == 5  # one of the rare class, four times
    assert torch.bincount(rest.train.labels).tolist() == [36, 4, 1]
    assert not set(rest.train.inputs.flatten().tolist()) & set(dev.inputs.flatten().tolist())
    assert (rest.valid, rest.test) == (data.valid, data.test)
    assert rest.history == ("set_aside(per_class=4, seed=0)",)


def test_the_seed_says_which() -> None:
    first, second, third = (set_aside(unequal(), 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first[1].inputs, second[1].inputs)
    assert first[0].fingerprint == second[0].fingerprint != third[0].fingerprint


def test_what_cannot_be_set_aside_is_refused() -> None:
    with pytest.raises(AssayError, match="at least 1"):
        set_aside(unequal(), 0, 0)
    split = Split(torch.rand(4, 2), torch.rand(4))
    with pytest.raises(AssayError, match="classes"):
        set_aside(Dataset("numbers", "regression", split, split, split), 1, 0)
    few = Split(torch.rand(2, 2), torch.tensor([0, 1]))
    with pytest.raises(AssayError, match="No class"):
        set_aside(Dataset("few", "classification", few, few, few, ("a", "b")), 1, 0)
