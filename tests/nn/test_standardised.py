"""Standardised weights: gains by closed form and by samples, timm's layer as oracle, and copies for inference."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.standardised import WSConv2d, WSLinear, folded, standardise, variance_gain


def test_gains_by_closed_form() -> None:
    assert variance_gain(F.relu) == pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), abs=1e-12)
    assert variance_gain(F.selu) == pytest.approx(1, abs=1e-12)
    assert variance_gain(lambda x: 3 * x + 1) == pytest.approx(1 / 3, abs=1e-12)
    assert variance_gain(torch.square) == pytest.approx(2**-0.5, abs=1e-12)
    assert variance_gain(torch.sin) == pytest.approx(((1 - math.exp(-2)) / 2) ** -0.5, abs=1e-12)
    with pytest.raises(ValueError, match="no factor makes 1"):
        variance_gain(torch.ones_like)


@pytest.mark.parametrize("act", [F.relu, F.gelu, F.silu, F.relu6, torch.tanh, F.softplus])
def test_gains_by_samples(act: object) -> None:
    z = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (variance_gain(act) * act(z)).var().item() == pytest.approx(1, abs=5e-3)  # type: ignore[operator, arg-type]


def test_published_gains_are_estimates_of_ours(torchvision_operators: object) -> None:
    published = pytest.importorskip("timm.models.nfnet")._nonlin_gamma
    for name, act in (("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu), ("elu", F.elu), ("tanh", torch.tanh)):
        assert published[name] == pytest.approx(variance_gain(act), rel=1e-3)
        assert published[name] != pytest.approx(variance_gain(act), rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_equal_timms(torchvision_operators: object, groups: int) -> None:
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    theirs = layers.ScaledStdConv2d(6, 8, 3, stride=2, padding=1, groups=groups, gamma=1.7, eps=1e-5).double()
    ours = WSConv2d(6, 8, 3, 2, 1, groups=groups, gamma=1.7, eps=1e-5, guard="add").double()
    with torch.no_grad():
        theirs.weight.mul_(0.02).add_(0.3)  # so that the guard weighs something, and the mean much
        theirs.gain.normal_()
        ours.load_state_dict({name: p.flatten() if name == "gain" else p for name, p in theirs.state_dict().items()})
    images = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    for net in (theirs, ours):
        net(images).square().sum().backward()
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.gain.grad, theirs.gain.grad.flatten())


def official(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """The authors' formula, on a matrix with a row a unit."""
    mean, var = weight.mean(dim=1, keepdim=True), weight.var(dim=1, keepdim=True, correction=0)
    return (weight - mean) * gain[:, None] / (var * weight.shape[1]).clamp_min(eps).sqrt()


def test_rows_equal_the_papers_formula_and_the_guard_holds() -> None:
    torch.manual_seed(0)
    weight, gain = torch.randn(5, 40, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    weight[3] = 0.7  # no row to speak of
    weight[4] *= 1e-5  # below the floor
    found = standardise(weight, gain)
    torch.testing.assert_close(found, official(weight, gain), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[:3].norm(dim=1), gain[:3].abs())
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(5, dtype=torch.float64))
    assert found[3].abs().max() < 1e-9
    layer = WSLinear(40, 5, gamma=2.0).double()
    layer.load_state_dict({"weight": weight, "gain": gain, "bias": torch.arange(5.0)})
    x = torch.randn(3, 40, dtype=torch.float64)
    torch.testing.assert_close(layer(x), 2 * x @ official(weight, gain).T + torch.arange(5.0))


def test_variance_is_kept_and_the_mean_is_taken_out() -> None:
    torch.manual_seed(0)
    signals = F.relu(torch.randn(4000, 256))
    for layer in (WSLinear(256, 256, gamma=variance_gain(F.relu)), WSConv2d(256, 256, 1, gamma=variance_gain(F.relu))):
        out = layer(signals if isinstance(layer, WSLinear) else signals[:, :, None, None]).flatten(1)
        assert out.var(dim=0).mean().item() == pytest.approx(1, abs=0.02)
        assert out.mean(dim=0).square().mean().item() < 2e-3
    plain = nn.Linear(256, 256, bias=False)
    nn.init.kaiming_normal_(plain.weight)
    assert plain(signals).mean(dim=0).square().mean().item() > 0.2


def test_a_folded_copy_computes_the_same_with_plain_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(WSConv2d(3, 4, 3, padding=1, gamma=1.7), nn.ReLU(), nn.Flatten(), WSLinear(4 * 36, 5, bias=False))
    images = torch.randn(2, 3, 6, 6)
    before = copy.deepcopy(net.state_dict())
    copied = folded(net)
    assert [type(module) for module in copied] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]  # type: ignore[attr-defined]
    assert torch.equal(copied(images), net(images))
    assert set(copied.state_dict()) == {"0.weight", "0.bias", "3.weight"}
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())
    assert type(folded(net[0])) is nn.Conv2d
    twice = folded(nn.Sequential(net[0], nn.Sequential(net[0], net[0])))
    assert twice[0] is twice[1][1]  # type: ignore[index]
    assert type(twice[0]) is nn.Conv2d  # type: ignore[index]
    # Nothing is kept in the network itself: weights that change in whatever way are seen at once.
    net.eval()
    old = net(images)
    net[0].weight.data.copy_(torch.randn(4, 3, 3, 3))
    assert not torch.equal(net(images), old)
    assert torch.equal(copied(images), old)
