"""Square Attack: its windows and patterns by hand, and as strong as foolbox's or torchattacks' with as many queries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from assay.attack import square
from assay.attack.square import _change_signs, _move_mass, _two_hills, _Windows
from assay.attack.worst import classified


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(*shape: int) -> _Windows:
    return _Windows(shape, torch.device("cpu"), seeded())


@pytest.mark.parametrize("norm", [2, math.inf])
def test_points_stay_in_ball_and_range(trained, norm):
    model, images, labels = trained
    eps = 0.1 if norm == math.inf else 1.0
    moved = square(model, images, labels, eps=eps, norm=norm, queries=60, clip=(0, 1), generator=seeded())
    assert ((moved - images).flatten(1).norm(p=norm, dim=1) <= eps + 1e-5).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert 0 < classified(model, moved, labels).double().mean() < 0.8
    again = square(model, images, labels, eps=eps, norm=norm, queries=60, clip=(0, 1), generator=seeded())
    assert torch.equal(again, moved)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_as_strong_as_torchattacks(trained, norm):
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = trained
    # The peer's first grid in L2 fits on sides that are multiples of five alone, so that there is a margin nobody looks at.
    images = nn.functional.pad(images, (1, 2, 1, 2))
    model = nn.Sequential(nn.ZeroPad2d((-1, -2, -1, -2)), model).eval()
    eps, queries = (0.07, 150) if norm == math.inf else (0.7, 150)
    attack = torchattacks.Square(model, norm="Linf" if norm == math.inf else "L2", eps=eps, n_queries=queries, seed=0)
    peer = classified(model, attack(images, labels), labels).double().mean().item()
    moved = square(model, images, labels, eps=eps, norm=norm, queries=queries, clip=(0, 1), generator=seeded())
    ours = classified(model, moved, labels).double().mean().item()
    assert 0.02 < peer < 0.9
    assert ours <= peer + 0.1  # three draws of both differ by as much among themselves


def test_asks_no_gradient_and_no_more_than_it_may(trained):
    model, images, labels = trained
    asked: list[int] = []

    class Counted(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            asked.append(len(inputs))
            return model((inputs > 0.5).to(inputs.dtype))

    moved = square(Counted(), images, labels, eps=0.3, queries=40, clip=(0, 1), generator=seeded())
    assert len(asked) <= 40 + 1
    assert asked[1:] == sorted(asked[1:], reverse=True)
    assert classified(Counted(), images, labels).double().mean() > classified(Counted(), moved, labels).double().mean() + 0.2


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("shape", [(20,), (2, 30)])
def test_tables_and_series(shape, norm):
    inputs = torch.randn(60, *shape, generator=seeded())
    direction = torch.randn(math.prod(shape), generator=seeded(1))

    class Half(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            score = inputs.flatten(1) @ direction
            return torch.stack([-score, score], dim=1)

    labels = Half()(inputs).argmax(dim=1)
    distance = (inputs.flatten(1) @ direction).abs() / direction.norm(p=2 if norm == 2 else 1)
    eps = distance.median().item() * 1.5
    moved = square(Half(), inputs, labels, eps=eps, norm=norm, queries=400, generator=seeded())
    stood = classified(Half(), moved, labels)
    assert stood[distance > eps * (1 + 1e-5)].all()  # nothing can fool those
    assert stood[distance < 0.3 * eps].double().mean() < 0.1


def test_windows_lie_inside_and_cover_their_share():
    for shape in ((3, 10, 14), (3, 40), (25,)):
        found = windows(*shape).places(200, 0.2)
        positions = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        assert found.min() >= 0
        assert found.max() < positions
        assert found.shape[1] / positions == pytest.approx(0.2, abs=0.03)
        assert all(len(set(row.tolist())) == len(row) for row in found)
    rows, columns = (found := windows(1, 10, 14).places(50, 0.2)) // 14, found % 14
    assert (rows.amax(dim=1) - rows.amin(dim=1)).tolist() == [4] * 50
    assert (columns.amax(dim=1) - columns.amin(dim=1)).tolist() == [4] * 50


def test_sign_windows_change_one_window_of_every_channel_to_one_sign():
    away = torch.zeros(30, 2, 100)
    moved = _change_signs(away, 0.1, windows(2, 10, 10), 0.16)
    changed = moved != 0
    assert changed.sum(dim=2).tolist() == [[16, 16]] * 30
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert moved[changed].abs().unique().tolist() == pytest.approx([0.1])
    assert all(len(moved[row, channel][changed[row, channel]].unique()) == 1 for row in range(30) for channel in range(2))


def test_mass_windows_fill_the_ball():
    away = 0.02 * torch.randn(30, 3, 144, generator=seeded())
    moved = _move_mass(away, 1.0, windows(3, 12, 12), 0.1)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.ones(30))
    emptied = (moved == 0).sum(dim=2)
    assert emptied.unique(dim=1).shape[1] == 1  # the same places of every channel
    assert emptied.max() == 16
    # Scaled to the ball as a whole: what lies in neither window keeps its proportions.
    ratio = moved / away
    for row in range(30):
        assert ((ratio[row] - ratio[row].median()).abs() < 1e-4).sum() >= 3 * (144 - 32)


def test_hills_are_opposite_and_highest_inside():
    hills = _two_hills(8, 8)
    torch.testing.assert_close(hills[:4], -hills[4:].flip(0))
    assert hills.norm() == pytest.approx(1.0)
    assert hills[:4].max() == hills[1:3, 3:5].max()
    assert (hills[:4] > 0).all()
    start = windows(2, 11, 13).start(5, 2, torch.float32)
    assert start.shape == (5, 2, 143)
    assert (start != 0).all()


@pytest.mark.parametrize(
    ("changes", "message"), [({"queries": 0}, "queries must be"), ({"share": 0}, "share in"), ({"norm": 1}, "norm must")]
)
def test_what_cannot_be_meant_is_refused(trained, changes, message):
    model, images, labels = trained
    with pytest.raises(ValueError, match=message):
        square(model, images, labels, **{"eps": 0.1, **changes})
    with pytest.raises(ValueError, match="square looks at"):
        square(model, images[None], labels, eps=0.1)


def test_no_inputs(trained):
    model, images, labels = trained
    assert square(model, images[:0], labels[:0], eps=0.1).shape == (0, 1, 12, 12)
