"""IBP: the bounds by hand on a small network, the schedule, and what training on them changes."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack import pgd
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.elr import elr
from assay.papers.robust import ibp as module
from assay.papers.robust.ibp import IBPLoss, ibp, small_network, verified_accuracy, worst_logits
from assay.recipe import Recipe
from assay.train.loop import fit


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mlp(3, 4, hidden=(5,)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, generator=generator, dtype=torch.float64), torch.randint(4, (6,), generator=generator)


def by_hand(model: nn.Sequential, inputs: Tensor, label: int, low: Tensor, high: Tensor) -> Tensor:
    """Worst logits of one input with loops over entries: smallest and largest of every product, summed up."""
    first, last = model[1], model[3]
    ends = []
    for weights, bias in zip(first.weight, first.bias, strict=True):
        products = [sorted((w * l, w * h)) for w, l, h in zip(weights, low, high, strict=True)]
        ends.append([max(bias + sum(product[side] for product in products), torch.tensor(0.0)) for side in (0, 1)])
    worst = []
    for other in range(4):
        slopes = last.weight[other] - last.weight[label]
        worst.append(sum(max(w * l, w * h) for w, (l, h) in zip(slopes, ends, strict=True)) + last.bias[other] - last.bias[label])
    return torch.stack([torch.as_tensor(value) for value in worst])


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_worst_logits_by_hand(clip):
    model = network()
    inputs, labels = batch()
    found = worst_logits(model, inputs, labels, 0.2, clip)
    for row in range(6):
        low, high = inputs[row] - 0.2, inputs[row] + 0.2
        if clip:
            low, high = low.clamp(0, 1), high.clamp(0, 1)
        torch.testing.assert_close(found[row], by_hand(model, inputs[row], int(labels[row]), low, high))


def test_worst_loss_is_above_that_of_every_point():
    model = network()
    inputs, labels = batch()
    worst = F.cross_entropy(worst_logits(model, inputs, labels, 0.2), labels, reduction="none")
    corners = torch.tensor(list(itertools.product((-0.2, 0.2), repeat=3)), dtype=torch.float64)
    for corner in corners:
        assert (F.cross_entropy(model(inputs + corner), labels, reduction="none") <= worst + 1e-12).all()
    torch.testing.assert_close(
        F.cross_entropy(worst_logits(model, inputs, labels, 0.0), labels), F.cross_entropy(model(inputs), labels)
    )


def test_box_and_share_follow_straight_lines():
    """4 batches of 6 an epoch, 5 epochs: 20 steps, of which 4 warm up and 10 grow."""
    model = network()
    inputs, labels = batch()
    loss = IBPLoss(model, 24, 5, eps=0.3, kappa=0.5, warmup=0.2, ramp=0.5)
    assert not list(loss.parameters())
    values, grown = [], []
    for _ in range(20):
        grown.append(loss.grown())
        values.append(loss(model(inputs), labels, inputs).item())
    assert grown == pytest.approx([0.0] * 4 + [step / 10 for step in range(10)] + [1.0] * 6)
    fit = F.cross_entropy(model(inputs), labels).item()
    for share, value in zip(grown, values, strict=True):
        worst = F.cross_entropy(worst_logits(model, inputs, labels, 0.3 * share), labels).item()
        kappa = 1 - share / 2
        assert value == pytest.approx(kappa * fit + (1 - kappa) * worst)
    loss.eval()(model(inputs), labels, inputs)
    assert int(loss.seen) == 120


def test_box_of_full_size_from_the_start():
    inputs, labels = batch()
    loss = IBPLoss(network(), 24, 5, eps=0.3, warmup=0, ramp=0)
    assert loss.grown() == 1.0
    assert loss(network()(inputs), labels, inputs) > F.cross_entropy(network()(inputs), labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"eps": -1.0}, "eps must not"), ({"kappa": 2.0}, "kappa must be"), ({"warmup": 0.6, "ramp": 0.6}, "shares of one")],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        IBPLoss(network(), 24, 5, **changes)


def test_mixed_labels_are_bounded_too():
    """Of shares, the bound holds at every corner; shares of one class are that class."""
    model = network()
    inputs, labels = batch()
    shares = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares /= shares.sum(dim=1, keepdim=True)
    corners = torch.tensor(list(itertools.product((-0.2, 0.2), repeat=3)), dtype=torch.float64)
    loss = IBPLoss(model, 24, 5, eps=0.2, kappa=0, warmup=0, ramp=0)
    for one in range(6):
        bound = loss(model(inputs[[one]]), shares[[one]], inputs[[one]])
        found = [F.cross_entropy(model(inputs[[one]] + corner), shares[[one]]) for corner in corners]
        assert max(found) <= bound + 1e-12
    single = F.one_hot(labels, 4).double()
    torch.testing.assert_close(loss(model(inputs), single, inputs), loss(model(inputs), labels, inputs))


def rows(data: Dataset) -> Recipe:
    return Recipe(data, model=partial(mlp, 8, 2, (64, 64)), optimizer=partial(torch.optim.Adam, lr=1e-2), epochs=30, watch=())


def test_training_on_bounds_narrows_them(table):
    """What is proved rises far, is never more than what an attack leaves, and the treatment stands beside another."""
    inputs, labels = table.test.inputs, table.test.labels
    plain, provable = fit(rows(table), seed=0).model, fit(ibp(rows(table), eps=0.2), seed=0).model
    proved = [verified_accuracy(model, inputs, labels, 0.2) for model in (plain, provable)]
    assert proved[1] > proved[0] + 0.1
    moved = pgd(provable, inputs, labels, eps=0.2, loss="margin", generator=torch.Generator().manual_seed(0))
    assert proved[1] <= (provable(moved).argmax(dim=1) == labels).double().mean().item()
    both = fit(elr(ibp(rows(table), eps=0.2)), seed=0).model
    other = fit(ibp(elr(rows(table)), eps=0.2), seed=0).model
    assert verified_accuracy(both, inputs, labels, 0.2) > proved[0] + 0.05
    torch.testing.assert_close(both(inputs), other(inputs))


def test_schedule_is_as_long_as_the_training_that_begins(table: Dataset) -> None:
    """A number of epochs that is set after the treatment counts, alone and beside another loss."""
    inputs = table.test.inputs
    plain = rows(table)
    late, early = ibp(plain.replace(epochs=30)).replace(epochs=6), ibp(plain.replace(epochs=6))
    torch.testing.assert_close(fit(late, seed=0).model(inputs), fit(early, seed=0).model(inputs), rtol=0, atol=0)
    both = elr(ibp(plain)).replace(epochs=6)
    torch.testing.assert_close(fit(both, seed=0).model(inputs), fit(elr(early), seed=0).model(inputs), rtol=0, atol=0)


def test_boxes_end_where_pixels_end_and_columns_have_no_end(table: Dataset) -> None:
    """A box of pixels is clipped to the values that there are; words and numbers to predict are refused."""
    split = Split(torch.rand(12, 1, 4, 4) * 3 - 1, torch.arange(12) % 2)
    images = Dataset("pictures", "classification", split, split, split, ("a", "b"))
    loss = ibp(Recipe(images, model=partial(mlp, 16, 2)), eps=0.2).loss
    assert loss.arguments["clip"] == (split.inputs.min().item(), split.inputs.max().item())
    assert ibp(rows(table), eps=0.2).loss.arguments["clip"] is None
    words = Split(torch.randint(5, (12, 3)), split.labels)
    with pytest.raises(AssayError, match="words have none"):
        ibp(Recipe(Dataset("texts", "classification", words, words, words, ("a", "b")), model=partial(mlp, 3, 2)))
    numbers = Split(split.inputs, torch.rand(12))
    with pytest.raises(AssayError, match="has no classes"):
        ibp(Recipe(Dataset("numbers", "regression", numbers, numbers, numbers, ()), model=partial(mlp, 16, 1)))


def test_small_network_has_the_papers_shape():
    model = small_network()
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 272 + 8224 + 3200 * 100 + 100 + 1010
    assert [layer.stride for layer in model if isinstance(layer, nn.Conv2d)] == [(2, 2), (1, 1)]


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    three = module.proves_where_adversarial_training_does_not(lab)
    assert len(three) == 12
    for arm in ("cross-entropy", "adversarial training", "IBP"):
        curve = three[f"{arm}: proved"].y
        assert list(curve) == sorted(curve, reverse=True)
    assert set(module.box_must_grow(lab)) >= {"box that grows", "full box from the start"}
    found = module.elision_tightens(lab)
    assert found["with elision"] >= found["without"]
    assert found["share of bounds that elision widens"] == 0


def test_clothes_at_smoke_scale(home: object) -> None:
    try:
        Lab().data("fashion-mnist")
    except AssayError:
        pytest.skip("fashion-mnist is not here")
    assert len(module.proves_on_clothes(Lab(scale="smoke"))) == 12
