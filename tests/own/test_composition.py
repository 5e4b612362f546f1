"""Every pair of treatments, on images and on a table: both still have their effect, or one says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import combinations

import pytest
import torch

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import ConvNet, mlp
from assay.own import methods
from assay.own.methods import DoesNotFit
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.schedules import cosine


def _data(shape: tuple[int, ...], kind: str, size: float = 1.0) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    inputs = size * torch.rand(48, *shape, generator=generator)
    labels = torch.arange(48) % 3
    inputs[:, 0] += 0.3 * labels.view(-1, *[1] * (len(shape) - 1))
    cut = [slice(0, 32), slice(32, 40), slice(40, 48)]
    train, valid, test = (Split(inputs[part], labels[part]) for part in cut)
    return Dataset(kind, "classification", train, valid, test, ("a", "b", "c"))


def images() -> Recipe:
    return Recipe(
        _data((3, 32, 32), "images"),
        model=partial(ConvNet, 3, 3, 32, (4, 8), 16),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=cosine,
        epochs=2,
        batch_size=16,
        watch=(),
    )


def rows() -> Recipe:
    return images().replace(data=_data((6,), "table", 4.0), model=partial(mlp, 6, 3, (16,)), epochs=6)


#: AMSGrad is Adam as long as second moments grow, as they do in the few steps here while branches that begin at 0 come alive.
NOT_YET = ("adam_convergence", "nfnet:normalizer_free")

PLAIN: dict[str, Callable[[], Recipe]] = {"images": images, "table": rows}


def _end(recipe: Recipe) -> list[float]:
    """Where a few steps lead: outputs for the test examples."""
    return [round(value, 6) for value in fit(recipe, seed=0).logits("test").flatten().tolist()]


@cache
def _alone(kind: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """What every treatment does alone, and why some do not fit."""
    ends, refused = {}, {}
    names, absent = methods.every()
    assert not absent
    for name in names:
        try:
            ends[name] = _end(methods.treated(PLAIN[kind](), [methods.find(name)]))
        except DoesNotFit as why:
            refused[name] = str(why)
    return ends, refused


@pytest.mark.parametrize("kind", PLAIN)
def test_every_treatment_does_something_or_says_why_not(kind: str) -> None:
    ends, refused = _alone(kind)
    plain = _end(PLAIN[kind]())
    assert not {name for name, end in ends.items() if end == plain}
    for name, why in refused.items():
        assert len(why.split()) >= 4, (name, why)
        assert "Error" not in why, (name, why)


@pytest.mark.parametrize("kind", PLAIN)
def test_every_pair_keeps_both_effects_or_says_why_not(kind: str) -> None:
    ends, _ = _alone(kind)
    composed, refused, silent = set(), {}, set()
    for one, other in combinations(ends, 2):
        try:
            both = methods.treated(PLAIN[kind](), [methods.find(one), methods.find(other)])
        except DoesNotFit as why:
            refused[one, other] = str(why)
            continue
        try:
            end = _end(both)
        except AssayError as why:  # later than in the first step; `assay try` leaves such an arm out with this sentence, too
            refused[one, other] = str(why)
            continue
        composed.add(frozenset((one, other)))
        silent |= {(other, one)} if end == ends[one] else set()
        silent |= {(one, other)} if end == ends[other] else set()
    silent -= {NOT_YET}
    assert not silent, f"the first of each has no effect beside the second: {sorted(silent)}"
    assert all(len(why.split()) >= 4 for why in refused.values()), refused
    wanted = {"elr", "ncr", "encouraging_loss", "gradient_noise", "massive_label_noise"}
    assert {frozenset(pair) for pair in combinations(wanted, 2)} <= composed
