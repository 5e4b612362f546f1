"""Setting a few examples of every class aside, for methods that steer a training by a small clean sample."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from assay.data.dataset import Dataset, Split
from assay.errors import AssayError


def set_aside(data: Dataset, per_class: int, seed: int) -> tuple[Dataset, Split]:
    """Take ``per_class`` training examples of every class out of the training split.

    A class with fewer than five times as many gives a fifth of what it has (at least one), and those are repeated until there are
    ``per_class``, so that what was set aside has equally many of each class; a class with one example gives none.

    Args:
        data: of a classification.
        per_class: at least 1.
        seed: which ones.

    Returns:
        The data without them, and they themselves.

    Raises:
        AssayError: the data are no classification, or no class has two examples.
    """
    if data.task != "classification":
        raise AssayError(f"set_aside is for classes, and {data.name!r} is a {data.task} data set; choose another data set.")
    if per_class < 1:
        raise AssayError(f"{per_class} examples of each class were to be set aside; give at least 1.")
    # The step's name is part of the seed: the order of another step with the same seed is another.
    digest = hashlib.blake2b(f"set_aside {seed}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    order = torch.randperm(len(data.train), generator=generator)
    chosen, taken = [], []
    for label in range(data.num_classes):
        members = order[data.train.labels[order] == label]
        own = members[: min(per_class, max(len(members) // 5, min(1, len(members) // 2)))]
        taken.append(own)
        if len(own):
            chosen.append(own[torch.arange(per_class) % len(own)])
    if not chosen:
        raise AssayError(f"No class of {data.name!r} has two training examples, so that none can be set aside.")
    stays = torch.ones(len(data.train), dtype=torch.bool)
    stays[torch.cat(taken)] = False
    line = f"set_aside(per_class={per_class}, seed={seed})"
    rest = replace(data, train=data.train.take(stays.nonzero().flatten()), history=(*data.history, line))
    return rest, data.train.take(torch.cat(chosen))
