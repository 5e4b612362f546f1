"""The same change of every example, in all splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Split
from assay.errors import AssayError


def map_inputs(data: Dataset, change: Callable[[Tensor], Tensor], step: str) -> Dataset:
    """A data set whose inputs were changed, those of the test as those of the training.

    Args:
        data: with tensors as inputs.
        change: (N, ...) inputs -> (N, ...), without a look at other examples or at labels.
        step: the line for the history, e.g. ``"pad(29)"``: other changes need other lines.

    Raises:
        AssayError: the inputs are texts.
    """
    train = _changed(data, data.train, change, step)
    none = train.take(torch.arange(0))  # an empty split has the shape that the others have now
    valid, test = (_changed(data, split, change, step) if len(split) else none for split in (data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test, history=(*data.history, step))


def _changed(data: Dataset, split: Split, change: Callable[[Tensor], Tensor], step: str) -> Split:
    if not isinstance(split.inputs, Tensor):
        raise AssayError(f"{step} changes numbers, and {data.name!r} holds texts: give it images, series or a table.")
    return Split(change(split.inputs), split.labels, split.clean_labels)
