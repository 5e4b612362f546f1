"""The same change in all splits."""

from __future__ import annotations

import pytest
import torch

from assay.data import Dataset, Split
from assay.data.mapped import map_inputs
from assay.errors import AssayError


def test_every_split_is_changed_and_the_history_says_so() -> None:
    whole = Split(torch.rand(6, 1, 4, 4), torch.arange(6) % 2, torch.zeros(6, dtype=torch.int64))
    none = whole.take(torch.arange(0))
    data = Dataset("x", "classification", whole, none, whole, ("a", "b"))
    found = map_inputs(data, lambda images: torch.cat([images, images], dim=3), "twice")
    assert found.history == ("twice",)
    assert [tuple(split.inputs.shape) for split in (found.train, found.valid, found.test)] == [
        (6, 1, 4, 8),
        (0, 1, 4, 8),
        (6, 1, 4, 8),
    ]
    torch.testing.assert_close(found.test.inputs[..., 4:], whole.inputs)
    assert found.train.clean_labels is whole.clean_labels
    assert found.fingerprint != data.fingerprint


def test_texts_are_refused() -> None:
    whole = Split(("one", "two"), torch.tensor([0, 1]))
    with pytest.raises(AssayError, match="pad changes numbers, and 'x' holds texts"):
        map_inputs(Dataset("x", "classification", whole, whole, whole, ("a", "b")), lambda images: images, "pad")
