"""Learned augmentation: parameter counts, pairs, the loss by hand, where gradients go; traditional changes; its claims."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.elr import elr
from assay.papers.training.neural_augmentation import (
    NeuralAugmentation,
    NeuralAugmenter,
    SmallNet,
    content_loss,
    digits_do_not_gain,
    gram,
    neural_augmentation,
    neural_beats_none,
    same_class_pairs,
    statistics_kept,
    style_loss,
    traditional,
    traditional_augmentation,
    traditional_is_as_good,
    two_classes,
)
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.mixing import Mixing


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return two_classes(load("digits16"), ("3", "8"), 24, seed=0)


def images(count: int = 12, channels: int = 3, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, size, size, generator=generator), torch.arange(count) % 2


def parameters(net: nn.Module) -> int:
    return sum(one.numel() for one in net.parameters())


def test_sizes_are_those_of_the_layers() -> None:
    convolutions = 6 * 16 * 9 + 16 + 3 * (16 * 16 * 9 + 16) + 16 * 3 * 9 + 3
    assert parameters(NeuralAugmenter(3)) == convolutions + 4 * 32
    net = SmallNet(3, 2, 64)
    assert parameters(net) == (27 * 16 + 16) + (144 * 32 + 32) + (288 * 32 + 32) + 2 * 80 + (2048 * 1024 + 1024) + 1024 * 2 + 2
    assert net.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    assert NeuralAugmenter(1, width=4, depth=3)(torch.zeros(2, 1, 9, 7), torch.zeros(2, 1, 9, 7)).shape == (2, 1, 9, 7)
    with pytest.raises(ValueError, match="two convolutions"):
        NeuralAugmenter(3, depth=1)


def test_partners_share_the_class_and_any_of_them_may_come() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([same_class_pairs(labels, generator) for _ in range(400)])
    assert (labels[drawn] == labels).all()
    assert (drawn[:, 3] == 3).all()  # the only one of its class
    assert (drawn[:, [0, 1, 2, 4, 5]] != torch.tensor([0, 1, 2, 4, 5])).all()
    assert (drawn[:, 0] == 2).double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_gram_matrices_by_hand() -> None:
    maps, _ = images()
    by_hand = torch.einsum("bchw,bdhw->bcd", maps, maps) / (3 * 8 * 8)
    torch.testing.assert_close(gram(maps), by_hand)
    assert style_loss([maps, maps[:, :2]], [maps, maps[:, :2]]).item() == 0
    moved = maps.roll(3, dims=3)  # style does not know where things are
    assert style_loss([maps], [moved]).item() == pytest.approx(0, abs=1e-9)
    assert content_loss(maps, moved) > 0.1
    other = maps.flip(0)
    expected = (gram(maps) - gram(other)).pow(2).sum() / len(maps)
    torch.testing.assert_close(style_loss([maps, maps], [other, other]), 2 * expected)


@pytest.mark.parametrize("auxiliary", ["none", "content", "style"])
def test_the_loss_by_hand(auxiliary: str) -> None:
    """Two images a class: partner and target are the other one, so that nothing is left to chance."""
    inputs, labels = images(4)
    torch.manual_seed(0)
    model = SmallNet(3, 2, 8, dropout=0.0)
    loss = NeuralAugmentation(model, inputs[:1], auxiliary)
    other = torch.tensor([2, 3, 0, 1])
    given = loss(model(inputs), labels, inputs)
    made = loss.augmenter(inputs, inputs[other])
    fit_ = (F.cross_entropy(model(inputs), labels) + F.cross_entropy(model(made), labels)) / 2
    if auxiliary == "none":
        expected = fit_
    elif auxiliary == "content":
        expected = 0.75 * fit_ + 0.25 * (made - inputs[other]).square().mean()
    else:
        total = torch.zeros(())
        one, two = made, inputs[other]
        for layer in model:
            one, two = layer(one), layer(two)
            if isinstance(layer, nn.Conv2d):
                total = total + (gram(one) - gram(two)).square().sum() / 4
        expected = 0.75 * fit_ + 0.25 * total
    torch.testing.assert_close(given, expected)
    with pytest.raises(ValueError, match="auxiliary"):
        NeuralAugmentation(model, inputs[:1], "sharpness")
    with pytest.raises(AssayError, match="convolutions"):
        NeuralAugmentation(nn.Flatten(), inputs[:1], "style")


def test_gradients_reach_the_augmenter_through_the_new_images_alone() -> None:
    inputs, labels = images()
    model = SmallNet(3, 2, 8)
    names = {name for name, _ in NeuralAugmentation(model, inputs[:1]).named_parameters()}
    assert all(name.startswith("augmenter.") for name in names)
    for share, auxiliary, moves in ((0.0, "none", False), (0.5, "none", True), (0.0, "content", True), (0.0, "style", True)):
        loss = NeuralAugmentation(model, inputs[:1], auxiliary, share=share)
        logits = model(inputs)
        loss(logits, labels, inputs).backward()
        lengths = [float(one.grad.norm()) for one in loss.parameters() if one.grad is not None]
        assert any(length > 0 for length in lengths) == moves
    plain = NeuralAugmentation(model, inputs[:1], share=0.0)
    torch.testing.assert_close(plain(logits, labels, inputs), F.cross_entropy(logits, labels))


def test_made_images_stay_out_of_the_running_statistics() -> None:
    inputs, labels = images()
    torch.manual_seed(0)
    model = SmallNet(3, 2, 8)
    loss = NeuralAugmentation(model, inputs[:1], "style")
    logits = model(inputs)
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss(logits, labels, 5 * inputs).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.track_running_stats for module in model if isinstance(module, nn.BatchNorm2d))
    with pytest.raises(RuntimeError), statistics_kept(model):
        raise RuntimeError
    model(inputs)
    assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_both_networks_learn_together() -> None:
    inputs, labels = images(16)
    torch.manual_seed(0)
    model = SmallNet(3, 2, 8)
    loss = NeuralAugmentation(model, inputs[:1])
    start = [one.detach().clone() for one in loss.parameters()]
    adam = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-3)
    seen = []
    for _ in range(30):
        adam.zero_grad()
        value = loss(model(inputs), labels, inputs)
        value.backward()
        adam.step()
        seen.append(value.item())
    assert seen[-1] < 0.5 * seen[0]
    assert all(not torch.equal(one, other) for one, other in zip(loss.parameters(), start, strict=True))


# ---------------------------------------------------------------------------------------------------- by hand


def test_traditional_changes_one_at_a_time() -> None:
    pictures, _ = images(200)
    generator = torch.Generator().manual_seed(0)
    still = {"shift": 0.0, "zoom": 0.0, "turn": 0.0, "shear": 0.0, "shade": 0.0}
    assert torch.equal(traditional(pictures, generator, share=0.0), pictures)
    mirrored = traditional(pictures, generator, share=1.0, **still)
    same = [torch.allclose(new, old, atol=1e-5) for new, old in zip(mirrored, pictures, strict=True)]
    flipped = [torch.allclose(new, old.flip(2), atol=1e-5) for new, old in zip(mirrored, pictures, strict=True)]
    assert all(one != other for one, other in zip(same, flipped, strict=True))
    assert sum(same) / 200 == pytest.approx(0.5, abs=0.12)
    shaded = traditional(pictures.abs(), generator, share=1.0, **{**still, "shade": 0.2})
    ratio = shaded.sum(dim=(2, 3)) / pictures.abs().sum(dim=(2, 3))
    assert 0.8 <= ratio.min() < 0.85
    assert 1.15 < ratio.max() <= 1.2
    half = traditional(pictures, generator)
    assert (half == pictures).flatten(1).all(dim=1).double().mean().item() == pytest.approx(0.5, abs=0.12)


def _centre(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 2): where the light is, in pixels from the middle, right and down."""
    places = torch.arange(33) - 16.0
    mass = pictures.sum(dim=(1, 2, 3))
    right = (pictures.sum(dim=(1, 2)) * places).sum(dim=1) / mass
    down = (pictures.sum(dim=(1, 3)) * places).sum(dim=1) / mass
    return torch.stack([right, down], dim=1)


def test_traditional_changes_move_a_spot_where_they_should() -> None:
    spot = torch.zeros(300, 1, 33, 33)
    spot[:, :, 15:18, 23:26] = 1  # 8 pixels right of the middle
    still = {"shift": 0.0, "zoom": 0.0, "turn": 0.0, "shear": 0.0, "shade": 0.0, "share": 1.0}

    def centre(**change: float) -> torch.Tensor:
        return _centre(traditional(spot, torch.Generator().manual_seed(1), **{**still, **change}))

    turned = centre(turn=30.0)
    angle = torch.rad2deg(torch.atan2(turned[:, 1], turned[:, 0].abs()))
    torch.testing.assert_close(turned.norm(dim=1), torch.full((300,), 8.0), atol=0.1, rtol=0)
    assert 28 < angle.max() < 31
    assert -31 < angle.min() < -28
    moved = centre(shift=0.1)
    assert (moved[:, 1].abs() <= 3.31).all()
    assert moved[:, 1].abs().max() > 3
    zoomed = centre(zoom=0.2)[:, 0].abs()
    assert zoomed.min() == pytest.approx(8 / 1.2, abs=0.1)
    assert zoomed.max() == pytest.approx(8 / 0.8, abs=0.2)
    torch.testing.assert_close(centre(shear=0.2)[:, 0].abs(), torch.full((300,), 8.0), atol=0.1, rtol=0)  # in the middle row


def test_turning_an_oblong_image_keeps_lengths() -> None:
    spot = torch.zeros(300, 1, 33, 65)
    spot[:, :, 15:18, 39:42] = 1  # 8 pixels right of the middle
    still = {"shift": 0.0, "zoom": 0.0, "shear": 0.0, "shade": 0.0, "share": 1.0}
    turned = traditional(spot, torch.Generator().manual_seed(1), turn=60.0, **still)
    mass = turned.sum(dim=(1, 2, 3))
    right = (turned.sum(dim=(1, 2)) * (torch.arange(65) - 32.0)).sum(dim=1) / mass
    down = (turned.sum(dim=(1, 3)) * (torch.arange(33) - 16.0)).sum(dim=1) / mass
    assert down.abs().max() > 6
    torch.testing.assert_close(torch.hypot(right, down), torch.full((300,), 8.0), atol=0.15, rtol=0)


# ---------------------------------------------------------------------------------------------------- in a recipe


def test_treatments_compose_and_leave_the_network_as_it_is(digits: Dataset) -> None:
    plain = Recipe(digits, model=partial(SmallNet, 1, 2, 16), epochs=2, batch_size=16, watch=())
    treated = neural_augmentation(plain)
    assert treated.replace(loss=plain.loss) == plain
    one = fit(treated, 0)
    assert set(one.model.state_dict()) == set(fit(plain, 0).model.state_dict())
    assert one.history["train_loss"] != fit(plain, 0).history["train_loss"]
    both, other = (fit(recipe, 0).history["train_loss"] for recipe in (elr(treated), neural_augmentation(elr(plain))))
    assert both == pytest.approx(other, rel=1e-5)
    assert both != pytest.approx(one.history["train_loss"], rel=1e-3)
    assert both != pytest.approx(fit(elr(plain), 0).history["train_loss"], rel=1e-3)
    twice = traditional_augmentation(traditional_augmentation(plain, share=0.0), share=1.0)
    assert fit(twice, 0).history == fit(plain.replace(augment=_after_a_look), 0).history


def _after_a_look(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return traditional(traditional(batch, generator, share=0.0), generator, share=1.0)


def test_what_does_not_fit_is_refused_in_a_sentence(table: Dataset, digits: Dataset) -> None:
    for treatment in (neural_augmentation, traditional_augmentation):
        with pytest.raises(AssayError, match="take it for image folders"):
            treatment(Recipe(table, model=partial(mlp, 8, 2)))
        words = Split(("some words", "others"), torch.tensor([0, 1]))
        texts = dataclasses.replace(table, train=words, test=words, valid=Split((), torch.empty(0).long()))
        with pytest.raises(AssayError, match="take it for image folders"):
            treatment(Recipe(texts, model=partial(mlp, 8, 2)))
    plain = Recipe(digits, model=partial(SmallNet, 1, 2, 16), epochs=1, batch_size=16, watch=())
    with pytest.raises(AssayError, match="one device"):
        neural_augmentation(plain.replace(devices=2))
    with pytest.raises(AssayError, match="mixtures"):
        fit(neural_augmentation(plain.replace(hooks=(Mixing(),))), 0)
    ages = [Split(part.inputs, part.labels.float()) for part in (digits.train, digits.valid, digits.test)]
    numbers = dataclasses.replace(digits, task="regression", classes=(), train=ages[0], valid=ages[1], test=ages[2])
    with pytest.raises(AssayError, match="no classes"):
        neural_augmentation(plain.replace(data=numbers))


def test_two_classes_share_no_image(digits: Dataset) -> None:
    assert digits.classes == ("3", "8")
    assert [torch.bincount(part.labels).tolist() for part in (digits.train, digits.valid)] == [[24, 24], [24, 24]]
    assert torch.bincount(digits.test.labels).tolist() == [452, 452]
    rows = torch.cat([part.inputs for part in (digits.train, digits.valid, digits.test)]).flatten(1)
    whole = load("digits16")
    known = torch.cat([whole.train.inputs, whole.test.inputs])[
        torch.isin(torch.cat([whole.train.labels, whole.test.labels]), torch.tensor([3, 8]))
    ]
    assert len(rows.unique(dim=0)) == len(known.flatten(1).unique(dim=0)) == 1000
    assert float(digits.train.inputs.mean()) == pytest.approx(0, abs=1e-5)
    other = two_classes(whole, ("3", "8"), 24, seed=1, pool=2)
    assert other.input_shape == (1, 8, 8)
    assert other.fingerprint != digits.fingerprint


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert {"cats and dogs, neural", "dogs and frogs, none"} < set(neural_beats_none(lab))
    assert {"traditional", "neural, best loss"} < set(traditional_is_as_good(lab))
    assert {"none", "neural", "neural, content"} < set(digits_do_not_gain(lab))
