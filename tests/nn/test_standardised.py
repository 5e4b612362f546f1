"""Standardised weights: gains by closed form and by samples, timm's layer as oracle, and copies for inference."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.standardised import Guard, WSConv2d, WSLinear, folded, standardise, variance_gain


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


def test_published_gains_are_estimates_of_ours() -> None:
    published = pytest.importorskip("timm.models.nfnet")._nonlin_gamma
    for name, act in (("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu), ("elu", F.elu), ("tanh", torch.tanh)):
        assert published[name] == pytest.approx(variance_gain(act), rel=1e-3)
        assert published[name] != pytest.approx(variance_gain(act), rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_equal_timms(groups: int) -> None:
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


@pytest.mark.parametrize("guard", ["floor", "add"])
def test_gradients_of_first_and_second_order_are_those_of_the_single_steps(guard: Guard) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([1.3, -0.4, 0.0, 2.0], dtype=torch.float64, requires_grad=True)

    def filters(weight: Tensor, gain: Tensor, eps: float) -> Tensor:
        return standardise(weight, gain, 1.7, eps, guard)

    for eps in (1e-4, float(weight[0].numel())):  # a guard that some filters feel
        assert torch.autograd.gradcheck(filters, (weight, gain, eps))
        assert torch.autograd.gradgradcheck(filters, (weight, gain, eps))
        assert torch.autograd.gradcheck(filters, (weight, gain, eps), check_forward_ad=True, check_backward_ad=False)
        laid_out = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
        assert torch.autograd.gradcheck(filters, (laid_out, gain, eps), check_forward_ad=True)


def test_gradients_of_every_example_at_once() -> None:
    torch.manual_seed(0)
    layer = WSConv2d(3, 4, 3)
    images = torch.randn(5, 3, 6, 6)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, image[None]).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), images)
    for name, parameter in layer.named_parameters():
        alone = [torch.autograd.grad(layer(image[None]).square().sum(), parameter)[0] for image in images]
        torch.testing.assert_close(together[name], torch.stack(alone))
    replicas = {name: torch.stack([parameter, parameter + 0.1]) for name, parameter in layer.named_parameters()}
    filters = torch.func.vmap(lambda weight, gain: standardise(weight, gain))(replicas["weight"], replicas["gain"])
    torch.testing.assert_close(filters[1], standardise(replicas["weight"][1], replicas["gain"][1]))
    gains = torch.func.vmap(lambda gain: standardise(layer.weight, gain))(replicas["gain"])
    torch.testing.assert_close(gains[1], standardise(layer.weight, replicas["gain"][1]))


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
