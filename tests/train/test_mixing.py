"""Mixtures and copies: timm's Mixup with the same draws, the distributions, what the loop makes of them."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from assay.data import Dataset
from assay.errors import AssayError
from assay.nn import mlp
from assay.recipe import Recipe
from assay.train.hooks import Hook, Run
from assay.train.loop import fit
from assay.train.losses import multi_label_loss
from assay.train.mixing import Mixing, RepeatedAugmentation, _box, mixed, mixup_cutmix, pasted, shares


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 11, 8, generator=generator), torch.randint(5, (count,), generator=generator)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.77, 0.999])
@pytest.mark.parametrize("at", [(0, 0), (5, 4), (10, 7)])
def test_equals_timm(monkeypatch: pytest.MonkeyPatch, share: float, at: tuple[int, int]) -> None:
    """The same share and the same centre of the box."""
    peer = pytest.importorskip("timm.data.mixup").Mixup
    places = iter(at)
    monkeypatch.setattr(np.random, "beta", lambda *_: share)
    monkeypatch.setattr(np.random, "randint", lambda *_, size=None: next(places))
    images, labels = batch()
    expected, targets = peer(mixup_alpha=0.1, cutmix_alpha=0, label_smoothing=0, num_classes=5)(images.clone(), labels)
    ours, own = mixed(images, shares(labels, 5), share)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(own, targets)

    expected, targets = peer(mixup_alpha=0, cutmix_alpha=1, label_smoothing=0, num_classes=5)(images.clone(), labels)
    ours, own = pasted(images, shares(labels, 5), _box(11, 8, share, *at))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(own, targets)


def test_shares_follow_beta_and_both_ways_are_as_frequent() -> None:
    """Images of 0 in the first half of the batch, of 1 in the other: what is mixed, and how much, can be read from them."""
    images = torch.cat([torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)])
    labels, generator = torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    ways = []
    for _ in range(2000):
        inputs, targets = mixup_cutmix(images, labels, 2, generator, mixup=0.4, cutmix=1.0)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(2))
        torch.testing.assert_close(inputs[0].mean(), targets[0, 1])  # as much of the label as of the image
        ways.append(bool(inputs[0].min() == inputs[0].max()))
    assert abs(np.mean(ways) - 0.5) < 0.05  # a box of nothing or of all looks smooth, too
    alone = [mixup_cutmix(images, labels, 2, generator, mixup=0.4, cutmix=0.0)[1][0, 0].item() for _ in range(2000)]
    assert stats.kstest(alone, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_boxes_are_as_large_as_their_share_says_and_lie_everywhere() -> None:
    """In the mean: a side s around a place drawn evenly keeps s - s^2 / 4 in the picture, and s^2 is uniform for alpha 1."""
    size, generator = 32, torch.Generator().manual_seed(0)
    images, labels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, size, size), torch.tensor([0, 1])
    changed = torch.zeros(size, size)
    for _ in range(2000):
        changed += mixup_cutmix(images, labels, 2, generator, mixup=0.0, cutmix=1.0)[0][0, 0] / 2000
    assert changed.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)  # E (s - s^2 / 4)^2
    assert (changed - changed.T).abs().max() < 0.05
    assert (changed - changed.flip(0, 1)).abs().max() < 0.1


def test_what_cannot_be_pasted_is_mixed_and_shares_are_mixed_again() -> None:
    rows, labels = torch.tensor([[0.0, 2.0], [1.0, 4.0]]), torch.tensor([0, 1])
    generator = torch.Generator().manual_seed(3)
    inputs, targets = mixup_cutmix(rows, labels, 3, generator, mixup=1.0, cutmix=1.0)
    torch.testing.assert_close(inputs, targets[:, :2] @ rows)
    again, twice = mixup_cutmix(inputs, targets, 3, generator, mixup=1.0)
    torch.testing.assert_close(again, twice[:, :2] @ rows)
    assert mixup_cutmix(rows, labels, 3, generator, mixup=0.0)[0] is rows


def test_mixing_in_a_training(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (32,)), loss=multi_label_loss, epochs=10, batch_size=50)
    trained = fit(plain.replace(hooks=(Mixing(mixup=0.4),)), seed=0)
    assert trained.accuracy() > 0.9
    assert trained.history["train_loss"] != fit(plain, seed=0).history["train_loss"]
    with pytest.raises(AssayError, match="Only numbers that have classes"):
        Mixing().before_forward(run_of(table, torch.ones(2, 3, dtype=torch.int64)))


def run_of(data: Dataset, inputs: Tensor) -> Run:
    model = mlp(8, 2)
    generator = torch.Generator().manual_seed(0)
    run = Run(model, torch.optim.SGD(model.parameters(), 0.1), data, torch.device("cpu"), generator, 1, 1)
    run.inputs, run.labels, run.index = inputs, torch.arange(len(inputs)) % 2, 10 * torch.arange(len(inputs))
    return run


def test_copies_are_augmented_each_in_its_own_way(table: Dataset) -> None:
    run = run_of(table, torch.arange(8.0)[:, None])
    RepeatedAugmentation(
        lambda inputs, generator: inputs + 0.5 * torch.rand(inputs.shape, generator=generator), 3
    ).before_forward(run)
    assert run.inputs.floor().flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(set(run.inputs.flatten().tolist())) == 8
    assert run.labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert run.index.tolist() == [0, 10, 20, 0, 10, 20, 0, 10]


class Seen(Hook):
    """Keeps which examples were trained on."""

    def before_loss(self, run: Run) -> None:
        assert torch.equal(run.labels, run.data.train.labels[run.index])
        run.memory["seen"] = torch.cat([run.memory.get("seen", run.index[:0]), run.index])


def untouched(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs


def test_an_epoch_sees_a_third_of_the_examples_and_is_scored_on_them(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (32,)), epochs=8, batch_size=40)
    trained = fit(plain.replace(hooks=(RepeatedAugmentation(untouched, 3), Seen()), epochs=1), seed=0)
    seen = trained.memory["seen"]
    assert len(seen) == 400
    assert len(seen.unique()) == 10 * 14
    longer = fit(plain.replace(hooks=(RepeatedAugmentation(untouched, 3),)), seed=0)
    assert longer.history["train_accuracy"][-1] > 0.9  # labels of the examples that were seen, not of those that were not


def test_the_loss_by_hand_and_against_timm() -> None:
    peer = pytest.importorskip("timm.loss").BinaryCrossEntropy
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(7, 5, generator=generator), torch.randint(5, (7,), generator=generator)
    one_hot = shares(labels, 5)
    reference = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(multi_label_loss(logits, labels), 5 * reference(logits, one_hot))  # a sum, not a mean
    timms = peer(smoothing=0.1, sum_classes=True)(logits, labels)
    torch.testing.assert_close(multi_label_loss(logits, labels, threshold=None, smoothing=0.1), timms)
    targets = mixed(logits, one_hot, 0.75)[1]
    timms = peer(target_threshold=0.2, sum_classes=True)(logits, targets)
    torch.testing.assert_close(multi_label_loss(logits, targets), timms)
    torch.testing.assert_close(multi_label_loss(logits, targets, threshold=None), peer(sum_classes=True)(logits, targets))
    both = ((one_hot + one_hot.flip(0)) > 0).float()  # each class of the mixture is there
    torch.testing.assert_close(multi_label_loss(logits, targets), 5 * reference(logits, both))


def test_binary_cross_entropy_is_never_less_than_cross_entropy() -> None:
    """So that their difference can be added to other losses."""
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0, 10.0):
        logits, labels = size * torch.randn(500, 7, generator=generator), torch.randint(7, (500,), generator=generator)
        for logit, label in zip(logits[:, None], labels[:, None], strict=True):
            assert multi_label_loss(logit, label) >= torch.nn.functional.cross_entropy(logit, label) - 1e-5
