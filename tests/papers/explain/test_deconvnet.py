"""Deconvnet: the way down by hand with unpooling, agreement with captum and zennit, templates of linear networks."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.explain import deconvnet, guided_backprop
from assay.lab import Lab
from assay.papers.explain import deconvnet as module
from assay.papers.explain.deconvnet import occlusion_sensitivity, project, top_activations, units
from assay.view import View


def by_hand(net: nn.Sequential, image: Tensor, channel: int | None) -> Tensor:
    """Unpool with the switches, rectify, filter with the transposed weights: conv, ReLU, pool, conv, ReLU."""
    first, _, pool, second, _ = net
    hidden = first(image).relu()
    pooled, switches = F.max_pool2d(hidden, pool.kernel_size, return_indices=True)
    top = second(pooled).relu()
    start = torch.zeros_like(top).flatten()
    kept = top[0] if channel is None else torch.where(torch.arange(top.shape[1])[:, None, None] == channel, top[0], 0)
    start[kept.flatten().argmax()] = kept.max()
    down = F.conv_transpose2d(start.view_as(top).clamp(min=0), second.weight, padding=second.padding)
    down = F.max_unpool2d(down, switches, pool.kernel_size, output_size=hidden.shape)
    return F.conv_transpose2d(down.clamp(min=0), first.weight, padding=first.padding)


@pytest.mark.parametrize("channel", [None, 0, 4])
def test_the_way_down_by_hand(channel):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()
    ).double()
    images = torch.randn(4, 3, 8, 8).double()
    found, _ = project(net, images, layer="4", channel=channel)
    for place in range(4):
        expected = by_hand(net, images[place : place + 1], channel)
        torch.testing.assert_close(found[place : place + 1], expected)
        assert expected.abs().max() > 1e-3


def test_a_linear_unit_shows_its_template():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 36, 2)).double()
    images = torch.randn(3, 1, 8, 8).double()
    found, unit = project(net, images, layer="0")
    for image, picture, place in zip(images, found, unit.tolist(), strict=True):
        channel, row, column = place // 36, place % 36 // 6, place % 6
        expected = torch.zeros(8, 8).double()
        value = (net[0].weight[channel, 0] * image[0, row : row + 3, column : column + 3]).sum()
        expected[row : row + 3, column : column + 3] = net[0].weight[channel, 0] * value
        torch.testing.assert_close(picture[0], expected.detach())


def test_agrees_with_zennit():
    pytest.importorskip("zennit")
    from zennit.attribution import Gradient
    from zennit.core import Composite
    from zennit.rules import ReLUDeconvNet, ReLUGuidedBackprop

    model, inputs = networks.cnn()
    target = torch.arange(len(inputs)) % 5
    ones = torch.eye(5).double()[target]

    def peer(rule: object, start: Tensor, kinds: type | tuple[type, ...]) -> Tensor:
        composite = Composite(module_map=lambda _, __, part: rule if isinstance(part, kinds) else None)
        with Gradient(model=model, composite=composite) as attributor:
            return attributor(inputs.clone(), start)[1]

    torch.testing.assert_close(deconvnet(model, inputs, target), peer(ReLUDeconvNet(), ones, nn.ReLU))
    torch.testing.assert_close(guided_backprop(model, inputs, target), peer(ReLUGuidedBackprop(), ones, nn.ReLU))


def test_top_activations_are_the_strongest():
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.randn(30, 1, 6, 6)
    positions, values = top_activations(net, images, "1", channel=2, k=5, chunk=7)
    strongest = net(images)[:, 2].flatten(1).amax(1)
    assert torch.equal(positions, strongest.argsort(descending=True)[:5])
    torch.testing.assert_close(values, strongest[positions])


def test_occlusion_finds_what_a_network_looks_at():
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = x[:, 0, :4, :4].mean(dim=(1, 2))
            return torch.stack([4 * bright, torch.zeros_like(bright)], dim=1)

    images = torch.ones(2, 3, 12, 12)
    falls = occlusion_sensitivity(Corner(), images, 0, size=4, stride=4, fill=0.0)
    assert falls.shape == (2, 1, 12, 12)
    expected = torch.zeros(12, 12)
    expected[:4, :4] = torch.tensor(4.0).sigmoid() - 0.5
    torch.testing.assert_close(falls[0, 0], expected)


def test_probe_and_refusals():
    model, inputs = networks.cnn()
    view = View(model, inputs, model(inputs).argmax(1), None, inputs[:0], None, "images", tuple("abcde"))
    seen = units(view, channel=1)
    assert seen.attributions["deconvnet"].shape == inputs.shape
    assert seen.attributions["occlusion"].shape == (6, 1, 12, 12)
    assert units(view).attributions["deconvnet"].abs().max() > 0
    with pytest.raises(AssayError, match="give maps"):
        project(model, inputs, layer="9")


def test_claims_run(home):
    lab = Lab(scale="smoke")
    for measure in (module.occlusion_finds_the_object, module.deep_layers_more_invariant, module.smaller_first_layer_stride):
        assert all(float(getattr(value, "number", value)) >= 0 for value in measure(lab).values())
