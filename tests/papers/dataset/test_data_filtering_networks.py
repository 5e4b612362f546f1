"""The contrastive loss against open_clip and loops, the filter against the truth, budgets that are kept, and the treatment."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.text import BiLSTM, encode
from assay.own.methods import treated
from assay.papers.dataset.data_filtering_networks import (
    DataFilter,
    Filter,
    TwoTower,
    clip_loss,
    corrupt_pairs,
    data_filtering_networks,
    filter_quality_is_not_accuracy,
    filtered_beats_all,
    top,
    train_pairs,
    zero_shot,
)
from assay.papers.labels.elr import elr
from assay.recipe import Recipe
from assay.train.hooks import InputHook, Run
from assay.train.loop import fit


def sides(count: int = 7, dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return F.normalize(u, dim=1).requires_grad_(), F.normalize(v, dim=1).requires_grad_()


# ---------------------------------------------------------------------------------------------------- the loss


def test_loss_and_gradients_are_those_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    u, v = sides()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    found, expected = clip_loss(u, v, scale), open_clip.ClipLoss()(u, v, scale)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, (u, v, scale)), torch.autograd.grad(expected, (u, v, scale)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1, 0, 3]])
def test_loss_by_hand(groups: list[int] | None) -> None:
    u, v = (side.detach().numpy() for side in sides())
    logits = 4.0 * u @ v.T
    total = 0.0
    for table in (logits, logits.T):
        for i in range(7):
            right = [j for j in range(7) if (j == i if groups is None else groups[i] == groups[j])]
            log_probs = table[i] - math.log(np.exp(table[i]).sum())
            total -= log_probs[right].mean() / 7 / 2
    given = None if groups is None else torch.tensor(groups)
    assert clip_loss(torch.tensor(u), torch.tensor(v), 4.0, given).item() == pytest.approx(total, abs=1e-12)


def test_loss_at_its_limits() -> None:
    u, v = sides()
    assert torch.allclose(clip_loss(u, v, 6.0, torch.arange(7)), clip_loss(u, v, 6.0))  # nobody says the same
    generator = torch.Generator().manual_seed(1)
    wide = [F.normalize(torch.randn(64, 4096, generator=generator), dim=1) for _ in range(2)]
    assert clip_loss(*wide, 1.0).item() == pytest.approx(math.log(64), abs=0.01)  # nothing is known at the start
    assert clip_loss(wide[0], wide[0], 100.0).item() < 1e-6
    alike = wide[0][:1].expand(8, -1)
    assert clip_loss(alike, alike, 100.0, torch.zeros(8)).item() == pytest.approx(math.log(8), abs=1e-5)


def test_temperature_starts_and_ends_where_clip_has_it() -> None:
    tower = TwoTower(nn.Linear(3, 2), nn.Linear(3, 2))
    assert tower.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        tower.log_scale.fill_(9.0)
    assert tower.scale.item() == pytest.approx(100)
    u, v = tower(torch.randn(4, 3), torch.randn(4, 3))
    torch.testing.assert_close(u.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(4))
    with pytest.raises(ValueError, match="at least"):
        TwoTower(nn.Linear(3, 2), nn.Linear(3, 2), temperature=0.001)


# ---------------------------------------------------------------------------------------------------- choosing


def test_top_keeps_as_many_as_asked_and_the_first_of_equals() -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    assert top(scores, 0.4).tolist() == [1, 3]
    assert top(scores, 0.6).tolist() == [0, 1, 3]
    assert top(scores, 0.8).tolist() == [0, 1, 2, 3]
    assert [len(top(torch.zeros(7), fraction)) for fraction in (0.1, 0.5, 1.0)] == [1, 4, 7]
    for wrong in (0.0, 1.1):
        with pytest.raises(ValueError, match="fraction"):
            top(scores, wrong)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_pairs_exchange_their_partners(rate: float) -> None:
    partner = corrupt_pairs(50, rate, seed=3)
    assert sorted(partner.tolist()) == list(range(50))  # every partner is still there once
    assert int((partner != torch.arange(50)).sum()) == round(rate * 50)
    assert torch.equal(partner, corrupt_pairs(50, rate, seed=3))


class Counting(nn.Module):
    """Counts how often each example comes by; its number stands in the last column."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.seen = torch.zeros(count, dtype=torch.int64)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += torch.bincount(inputs[:, -1].long(), minlength=len(self.seen))
        return self.layer(inputs[:, :4])


@pytest.mark.parametrize("count", [20, 64, 150])
def test_as_many_pairs_are_seen_however_many_there_are(count: int) -> None:
    u = torch.cat([torch.randn(count, 4), torch.arange(count).unsqueeze(1).float()], dim=1)
    tower = TwoTower(Counting(count), nn.Linear(4, 3))
    train_pairs(tower, u, torch.randn(count, 4), seen=640, batch_size=16)
    seen = tower.u_encoder.seen
    assert int(seen.sum()) == 640
    assert int(seen.max() - seen.min()) <= 1
    assert not tower.training


def planted(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs that fit: v is a rotation of u, and noise."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9)))[0]
    u = torch.randn(count, 6, generator=generator)
    return u, u @ turn + 0.2 * torch.randn(count, 6, generator=generator)


def test_filter_finds_the_pairs_that_fit() -> None:
    torch.manual_seed(0)
    u, v = planted(800, seed=1)
    partner = corrupt_pairs(800, 0.6, seed=0)
    fits = partner == torch.arange(800)
    found = DataFilter(TwoTower(mlp(6, 8, (32,)), mlp(6, 8, (32,))))
    found.fit(*planted(200, seed=2), seen=20_000, lr=3e-3, generator=torch.Generator().manual_seed(0))
    scores = found.score(u, v[partner])
    assert roc_auc_score(fits, scores) > 0.95
    kept = found.select(u, v[partner], fraction=0.3)
    assert len(kept) == 240
    assert fits[kept].double().mean() > 0.9
    assert scores[kept].min() >= scores[[row for row in range(800) if row not in set(kept.tolist())]].max()


def test_zero_shot_averages_the_prompts() -> None:
    class Identity(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    tower = TwoTower(Identity(), Identity())
    prompts = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 5.0], [-0.6, 0.8]]])  # two classes, two prompts each
    said = zero_shot(tower, torch.tensor([[1.0, 0.2], [0.1, 1.0], [-1.0, 0.3]]), prompts)
    assert said.tolist() == [0, 1, 1]


# ---------------------------------------------------------------------------------------------------- the treatment


def noisy(table: Dataset) -> Dataset:
    """Four of ten training labels are wrong; a held-out tenth can be trusted."""
    apart = table.holdout(0.2, seed=0)
    wrong = apart.flip_labels(0.4, seed=0)
    return dataclasses.replace(wrong, valid=apart.valid)


def test_treatment_keeps_what_fits_and_sees_as_many(table: Dataset) -> None:
    data = noisy(table)
    plain = Recipe(data, model=partial(mlp, 8, 2, (32,)), epochs=30, batch_size=32, optimizer=partial(torch.optim.Adam, lr=3e-3))
    method = data_filtering_networks(plain, fraction=0.5, effort=1.0)
    assert method.replace(hooks=()) == plain
    ours, theirs = fit(method, 0), fit(plain, 0)
    kept = ours.memory["filter.kept"]
    right = data.train.labels == data.train.clean_labels
    assert int(kept.sum()) == round(0.5 * len(data.train))
    assert right[kept].double().mean() > 0.9
    assert right[~kept].double().mean() < 0.4
    assert ours.accuracy() > theirs.accuracy() + 0.1


@dataclasses.dataclass(frozen=True)
class Watching(InputHook):
    """Keeps what the network is about to see."""

    seen: list[tuple[Tensor, Tensor, Tensor]] = dataclasses.field(default_factory=list, compare=False)

    def before_forward(self, run: Run) -> None:
        self.seen.append((run.inputs.clone(), run.labels.clone(), run.index.clone()))


@pytest.mark.parametrize(("fraction", "batch_size"), [(0.5, 40), (0.1, 4)])  # with the second most batches have no kept example
def test_batches_keep_their_size_and_hold_kept_examples_alone(table: Dataset, fraction: float, batch_size: int) -> None:
    data, watching = noisy(table), Watching()
    plain = Recipe(data, model=partial(mlp, 8, 2, (8,)), epochs=2, batch_size=batch_size, watch=(), hooks=(watching,))
    trained = fit(data_filtering_networks(plain, fraction), 0)
    assert len(watching.seen) == 2 * len(data.train) // batch_size
    kept = trained.memory["filter.kept"]
    for inputs, labels, index in watching.seen:
        assert len(index) == batch_size
        assert kept[index].all()
        assert torch.equal(inputs, data.train.inputs[index])
        assert torch.equal(labels, data.train.labels[index])
    shown = torch.cat([index for _, _, index in watching.seen]).unique()
    assert len(shown) > 0.9 * int(kept.sum())  # all of them, not a few favourites


def test_treatment_composes_and_refuses(table: Dataset) -> None:
    data = noisy(table)
    plain = Recipe(data, model=partial(mlp, 8, 2, (16,)), epochs=2, batch_size=32)
    one, other = elr(data_filtering_networks(plain)), data_filtering_networks(elr(plain))
    assert one == other
    assert one.hooks == (Filter(),)
    assert fit(one, 0).accuracy() > 0.5
    treated(plain, [data_filtering_networks, elr])
    with pytest.raises(AssayError, match="hold out two a class"):
        data_filtering_networks(plain.replace(data=table))
    with pytest.raises(AssayError, match="fraction in"):
        data_filtering_networks(plain, fraction=0)
    with pytest.raises(AssayError, match="keeps none of"):
        data_filtering_networks(plain, fraction=0.001)


def test_treatment_takes_texts() -> None:
    from assay.data import Split

    texts = tuple(f"{'good' if k % 2 else 'bad'} film {['plot', 'actor', 'scene', 'sound'][k % 4]}" for k in range(80))
    whole = Split(texts, torch.arange(80) % 2)
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 50), (50, 70), (70, 80))]
    data = encode(Dataset("films", "classification", *parts, classes=("bad", "good")), length=5)
    recipe = Recipe(data, model=partial(BiLSTM, len(data.features), 2, 8, 8), epochs=2, batch_size=16)
    assert int(fit(data_filtering_networks(recipe), 0).memory["filter.kept"].sum()) == 40


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(filtered_beats_all(lab)) == {
        "filter from clean pairs",
        "filter from the pool",
        "random subset",
        "truth known",
        "whole pool",
    }
    found = filter_quality_is_not_accuracy(lab)
    assert {"own, 1000 pairs half unfiltered", "induced, 300 clean pairs", "induced, 300 pairs 80% unfiltered"} < set(found)
