"""Curves and other measures of attributions: closed forms on linear networks, cases by hand, and scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.errors import AssayError
from assay.explain.curves import (
    area,
    cascade,
    deletion_curve,
    energy_inside,
    filled,
    insertion_curve,
    iou_curve,
    places,
    pointing,
    rank_correlation,
    sanity_check,
)
from assay.nn import mlp


class Weighted(nn.Module):
    """One output, the weighted sum of the inputs: what is taken out of it is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * self.weight).flatten(1).sum(dim=1, keepdim=True)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ curves


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 3)])
def test_deletion_of_a_linear_function_takes_its_largest_terms(shape: tuple[int, ...]) -> None:
    """Of w.x, deletion by the terms w_i x_i leaves what is left of their sorted sum; insertion has the same terms."""
    weight, inputs, target = _random(*shape), _random(4, *shape, seed=1), torch.zeros(4, dtype=torch.int64)
    terms = weight * inputs
    by_place = (terms if len(shape) == 1 else terms.sum(dim=1)).flatten(1).sort(dim=1, descending=True).values
    count = by_place.shape[1]
    gone = torch.cat([torch.zeros(4, 1), by_place.cumsum(dim=1)], dim=1)
    deleted = deletion_curve(Weighted(weight), inputs, target, terms, steps=count, score="output")
    inserted = insertion_curve(Weighted(weight), inputs, target, terms, steps=count, score="output")
    torch.testing.assert_close(deleted, gone[:, -1:] - gone)
    torch.testing.assert_close(inserted, gone)
    torch.testing.assert_close(deletion_curve(Weighted(weight), inputs, 0, terms, steps=count, score="output"), deleted)
    assert bool((area(deleted) <= area(deletion_curve(Weighted(weight), inputs, target, -terms, count, score="output"))).all())


def test_channels_of_a_pixel_go_together_unless_told_otherwise() -> None:
    inputs, target = torch.tensor([[[[1.0, 2.0]], [[4.0, 8.0]]]]), torch.tensor([0])  # 1 x 2 pixels of 2 colours
    model, attributions = Weighted(torch.ones(2, 1, 2)), torch.tensor([[[[9.0, 0.0]], [[-5.0, 3.0]]]])
    together = deletion_curve(model, inputs, target, attributions, 2, score="output")
    apart = deletion_curve(model, inputs, target, attributions, 4, score="output", channels=None)
    assert together.tolist() == [[15, 10, 0]]
    assert apart.tolist() == [[15, 14, 6, 4, 0]]
    words = deletion_curve(model, inputs, target, attributions, 2, score="output", channels=-1)  # the last holds a word's vector
    assert words.tolist() == [[15, 12, 0]]


def test_patches_go_as_one_by_their_sum() -> None:
    inputs = torch.arange(15.0).view(1, 1, 3, 5)
    attributions = torch.zeros(1, 1, 3, 5)
    attributions[0, 0, 2, 4] = 3  # the patch of one pixel in the corner
    attributions[0, 0, 0, 2:4] = attributions[0, 0, 1, 2:4] = 1  # four ones are more
    attributions[0, 0, :, :2] = -1
    curve = deletion_curve(Weighted(torch.ones(1, 3, 5)), inputs, torch.tensor([0]), attributions, 6, score="output", patch=2)
    assert curve[0, :3].tolist() == [105, 105 - (2 + 3 + 7 + 8), 105 - 20 - 14]
    assert curve[0, -1] == 0
    assert curve[0, -2] == 0 + 1 + 5 + 6  # four times -1 goes last


def test_equal_attributions_favour_no_corner() -> None:
    inputs, target = torch.ones(400, 10), torch.zeros(400, dtype=torch.int64)
    curve = deletion_curve(Weighted(torch.arange(10.0)), inputs, target, torch.zeros(400, 10), 10, score="output")
    torch.testing.assert_close(curve.mean(dim=0), torch.linspace(45, 0, 11), atol=1.5, rtol=0)
    again = deletion_curve(Weighted(torch.arange(10.0)), inputs, target, torch.zeros(400, 10), 10, score="output")
    torch.testing.assert_close(curve, again, rtol=0, atol=0)


def test_probabilities_ends_and_chunks() -> None:
    model, inputs, target = mlp(12, 3, (8,)), _random(9, 12), torch.arange(9) % 3
    attributions = _random(9, 12, seed=2)
    deleted = deletion_curve(model, inputs, target, attributions, 5, 0.3)
    inserted = insertion_curve(model, inputs, target, attributions, 5, 0.3)
    with torch.no_grad():
        whole = model(inputs).softmax(dim=1).gather(1, target[:, None]).squeeze(1)
        none = model(torch.full_like(inputs, 0.3)).softmax(dim=1).gather(1, target[:, None]).squeeze(1)
    for curve, begin, end in ((deleted, whole, none), (inserted, none, whole)):
        torch.testing.assert_close(curve[:, 0], begin)
        torch.testing.assert_close(curve[:, -1], end)
    torch.testing.assert_close(deletion_curve(model, inputs, target, attributions, 5, 0.3, chunk=2), deleted)
    # Deleting by an order is inserting by the opposite one, backwards.
    torch.testing.assert_close(
        insertion_curve(model, inputs, target, -attributions, 4, 0.3).flip(1),
        deletion_curve(model, inputs, target, attributions, 4, 0.3),
    )


def test_area_is_the_mean_height() -> None:
    torch.testing.assert_close(area(torch.tensor([[1.0, 1, 1], [1, 0.5, 0], [1, 0, 0]])), torch.tensor([1, 0.5, 0.25]))


def test_fills() -> None:
    images, table = _random(2, 3, 20, 12), _random(6, 4)
    assert filled(images, 0.5).unique().tolist() == [0.5]
    torch.testing.assert_close(filled(images, "mean")[1, 2, 4, 5], images[1, 2].mean())
    torch.testing.assert_close(filled(table, "mean")[3], table.mean(dim=0))
    noise = filled(images, "noise")
    assert bool((noise[1, 2] >= images[1, 2].min()).all())
    assert bool((noise[1, 2] <= images[1, 2].max()).all())
    torch.testing.assert_close(noise, filled(images, "noise"), rtol=0, atol=0)
    expected = images.double().numpy()
    for axis in (2, 3):
        expected = gaussian_filter1d(expected, 2, axis, mode="nearest", truncate=3)
    torch.testing.assert_close(filled(images.double(), "blur"), torch.from_numpy(expected))
    words = _random(1, 6, 4)
    torch.testing.assert_close(filled(words, "mean", channels=2)[0, 0], words[0].mean(dim=0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attributions": torch.zeros(2, 5)}, "do not fit inputs"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "one class for each of the 2 inputs"),
        ({"fill": "blur"}, "no neighbours"),
        ({"fill": "grey"}, "no fill 'grey'"),
        ({"steps": 0}, "at least 1 step"),
        ({"score": "logit"}, "not 'logit'"),
    ],
)
def test_what_does_not_fit_is_said(change: dict, words: str) -> None:
    given = {"inputs": torch.zeros(2, 4), "target": torch.zeros(2, dtype=torch.int64), "attributions": torch.zeros(2, 4)} | change
    with pytest.raises(AssayError, match=words):
        deletion_curve(Weighted(torch.ones(4)), **given)


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    deletion_curve(model, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------ masks


def test_pointing_game() -> None:
    mask = torch.zeros(5, 6, 6, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    shares = torch.zeros(5, 2, 6, 6)
    shares[0, :, 1, 2] = 1  # on it
    shares[1, :, 3, 3] = 1  # next to a corner: 1.41 away
    shares[2, 0, 5, 5], shares[2, 1, 5, 5], shares[2, :, 1, 1] = 3, -3, 1  # channels cancel
    shares[3, :, 1, 1] = shares[3, :, 4, 4] = 1  # half of the largest
    assert pointing(shares, mask).tolist() == [True, False, True, False, False]  # the last points nowhere
    assert pointing(shares, mask.unsqueeze(1), tolerance=1).tolist() == [True, False, True, False, False]
    assert pointing(shares, mask, tolerance=1.5).tolist() == [True, True, True, False, False]


def test_tolerance_is_a_distance() -> None:
    mask = _random(1, 25, 25) > 2.2
    distance = torch.from_numpy(distance_transform_edt(~mask[0].numpy()))
    for row, column in ((3, 4), (12, 20), (24, 0), (9, 9)):
        share = torch.zeros(1, 1, 25, 25)
        share[0, 0, row, column] = 1
        for tolerance in (2.0, 4.3):
            assert bool(pointing(share, mask, tolerance)) == bool(distance[row, column] <= tolerance)


def test_energy_and_iou_by_hand() -> None:
    mask = torch.tensor([[[True, True], [False, False]]]).expand(2, 2, 2)
    shares = torch.tensor([[[[4.0, 1.0], [3.0, -7.0]]], [[[-1.0, 0.0], [-2.0, 0.0]]]])
    torch.testing.assert_close(energy_inside(shares, mask), torch.tensor([5 / 8, 0.0]))
    thresholds = torch.tensor([0.2, 0.25, 0.5, 0.75, 1.0])
    expected = torch.tensor([[2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 2], [0.0] * 5])
    torch.testing.assert_close(iou_curve(shares, mask, thresholds), expected)
    assert iou_curve(shares, mask, 4).shape == (2, 4)
    with pytest.raises(AssayError, match="A mask"):
        energy_inside(shares, torch.ones(2, 3, 2))


def test_the_mask_itself_is_the_best_attribution() -> None:
    mask = _random(3, 8, 8) > 0
    assert pointing(mask.float().unsqueeze(1), mask).all()
    torch.testing.assert_close(energy_inside(mask.float().unsqueeze(1), mask), torch.ones(3))
    torch.testing.assert_close(iou_curve(mask.float().unsqueeze(1), mask), torch.ones(3, 20))


# ------------------------------------------------------------------------------------------------ shuffled weights


def test_rank_correlation_is_that_of_scipy() -> None:
    first, second = _random(5, 40), _random(5, 40, seed=1)
    first[1] = first[1].round()  # many equal values
    second[2], second[3] = first[2].exp(), -first[3]
    expected = [spearmanr(one.numpy(), other.numpy()).statistic for one, other in zip(first, second, strict=True)]
    torch.testing.assert_close(rank_correlation(first, second), torch.tensor(expected, dtype=torch.float64))
    assert rank_correlation(torch.ones(1, 4), _random(1, 4)).item() == 0


def test_cascade_shuffles_from_the_end_and_keeps_sizes() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for name, network in cascade(model):
        changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
        seen.append((name, {key.partition(".")[0] for key in changed}))
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value.flatten().sort().values, before[key].flatten().sort().values, rtol=0, atol=0)
    assert [name for name, _ in seen] == ["3", "1", "0"]
    assert seen[0][1] == {"3"}
    assert seen[-1][1] >= {"3", "0"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sanity_check_tells_what_looks_at_the_network_from_what_does_not() -> None:
    torch.manual_seed(0)
    model, inputs, target = mlp(200, 4, (40, 40)), _random(12, 200), torch.arange(12) % 4

    def gradient(network: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        leaf = inputs.clone().requires_grad_()
        return torch.autograd.grad(network(leaf).gather(1, target[:, None]).sum(), leaf)[0]

    looks = sanity_check(gradient, model, inputs, target)
    blind = sanity_check(lambda network, inputs, target: inputs, model, inputs, target)
    assert list(looks) == list(blind) == [name for name, _ in cascade(model)]
    assert list(looks.values())[-1].abs().mean() < 0.2
    assert all(found.abs().mean() < 0.8 for found in looks.values())
    assert all(torch.allclose(found, torch.ones_like(found)) for found in blind.values())
    assert list(sanity_check(gradient, model, inputs, target, stages=2))[-1] == list(looks)[-1]
    assert len(sanity_check(gradient, model, inputs, target, stages=2)) == 2


def test_places_of_attributions_that_share_a_channel() -> None:
    inputs = torch.zeros(2, 3, 4, 5)
    assert places(torch.ones(2, 1, 4, 5), inputs).shape == (2, 4, 5)
    assert places(torch.ones(2, 3, 1, 1), inputs).unique().item() == 3
    assert places(torch.ones(2, 7), torch.zeros(2, 7)).shape == (2, 7)
    assert math.prod(places(torch.ones(2, 3, 4, 5), inputs, None).shape) == 120
