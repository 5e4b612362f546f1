"""Blocks and stages: shapes, names, initial weights; and weights that come under other names."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn.convnet import ConvNorm, Stage, imagenet_stem, stages
from assay.nn.initialise import he_normal
from assay.nn.weights import load_weights, read_weights


def test_conv_norm_is_its_three_parts() -> None:
    torch.manual_seed(0)
    layer = ConvNorm(4, 6, (1, 3), stride=2, groups=2, eps=0.5).eval()
    nn.init.uniform_(layer.norm.weight)
    x = torch.randn(2, 4, 7, 9)
    expected = F.relu(
        F.conv2d(x, layer.conv.weight, stride=2, padding=(0, 1), groups=2) * layer.norm.weight.view(-1, 1, 1) / 1.5**0.5
    )
    torch.testing.assert_close(layer(x), expected)
    assert [name for name, _ in layer.named_parameters()] == ["conv.weight", "norm.weight", "norm.bias"]
    assert bool((ConvNorm(4, 6, 3, active=False)(x) < 0).any())


def test_stages_follow_their_table() -> None:
    made: list[tuple[int, int, int]] = []

    def block(in_planes: int, planes: int, stride: int) -> nn.Module:
        made.append((in_planes, planes, stride))
        return ConvNorm(in_planes, planes, 3, stride)

    net = stages(block, 3, [Stage(8, 2), Stage(16, 1, stride=2), Stage(4, 2, stride=2)])
    assert made == [(3, 8, 1), (8, 8, 1), (8, 16, 2), (16, 4, 2), (4, 4, 1)]
    assert [len(stage) for stage in net] == [2, 1, 2]  # type: ignore[arg-type]
    assert net(torch.randn(2, 3, 12, 12)).shape == (2, 4, 3, 3)
    assert imagenet_stem(3, 8)(torch.randn(1, 3, 64, 48)).shape == (1, 8, 16, 12)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 32 * 9), ("fan_out", 128 * 9)])
def test_he_normal(mode: str, fan: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 128, 3), nn.Linear(5, 5))
    before = net[1].weight.clone()
    he_normal(net, mode)  # type: ignore[arg-type]
    assert net[0].weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert not net[0].bias.any()
    assert torch.equal(net[1].weight, before)


NAMES = ((r"^old\.", "0."), (r"^block(\d)\.", lambda found: f"{int(found[1]) + 1}."))


def theirs() -> dict[str, torch.Tensor]:
    return {
        "old.weight": torch.ones(2, 3),
        "old.bias": torch.ones(2),
        "block0.weight": torch.ones(1, 2),
        "block0.bias": torch.ones(1),
    }


def test_weights_find_their_places() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    load_weights(net, theirs(), NAMES)
    assert all(bool((value == 1).all()) and value.dtype == torch.float64 for value in net.state_dict().values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"old.bias": None}, r"lack '0\.bias' \(1 missing, 0 superfluous\)"),
        ({"more": torch.ones(1)}, "have 'more' besides"),
        ({"old.bias": torch.ones(3)}, r"'0\.bias' of the weights is \(3,\) instead of \(2,\)"),
        ({"0.bias": torch.ones(2)}, r"are called '0\.bias' here"),
    ],
)
def test_all_or_nothing(change: dict[str, torch.Tensor | None], words: str) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    changed = {name: value for name, value in (theirs() | change).items() if value is not None}
    with pytest.raises(AssayError, match=words):
        load_weights(net, changed, NAMES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    load_weights(net, theirs() | {"block0.bias": torch.ones(9)}, NAMES, leave=("1.",))
    assert bool((net[0].weight == 1).all())
    assert torch.equal(net[1].weight, before["1.weight"])


def test_weights_lie_in_checkpoints_and_behind_the_names_of_data_parallel(tmp_path: Path) -> None:
    parallel = {f"module.{name}": value for name, value in theirs().items()}
    for place, saved in enumerate((theirs(), {"model": theirs(), "epoch": 3}, {"state_dict": parallel}, parallel)):
        torch.save(saved, tmp_path / f"{place}.pth")
        assert set(read_weights(tmp_path / f"{place}.pth")) == set(theirs())


@pytest.mark.parametrize("saved", [[1, 2], {}, {"model": 3}, {1: torch.ones(2)}, nn.Linear(2, 2)])
def test_files_of_something_else_are_refused_in_one_sentence(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "odd.pth")
    with pytest.raises(AssayError, match=r"odd\.pth") as refused:
        load_weights(nn.Linear(2, 2), tmp_path / "odd.pth")
    assert "\n" not in str(refused.value)
    assert "\033" not in str(refused.value)
    assert "state" in str(refused.value)


def test_files_are_never_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": theirs()}, tmp_path / "good.pth")
    assert set(read_weights(tmp_path / "good.pth")) == set(theirs())
    torch.save(partial(print, "run"), tmp_path / "bad.pth")
    with pytest.raises(AssayError, match=re.escape("bad.pth")):
        read_weights(tmp_path / "bad.pth")
    with pytest.raises(AssayError, match="There is no file"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AssayError, match=r"broken\.safetensors"):
        read_weights(tmp_path / "broken.safetensors")
