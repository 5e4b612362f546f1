"""Inception-v4 and Inception-ResNet: timm as oracle, exact identities of the residual block, and the claims at smoke scale."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError, Diverged
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.inception import mixed
from assay.nn.measure import macs, parameters
from assay.papers.architectures import inception_resnet as paper
from assay.papers.architectures.inception_resnet import (
    ResidualScale,
    dead_planes,
    inception_resnet_v2,
    inception_v4,
    load_pretrained,
    small,
    small_inception_resnet,
    steps_to,
)
from assay.recipe import Recipe


def timm_net(name: str) -> nn.Module:
    """With weights, running averages, scales and shifts that are not at their start, so that mixing them up would show."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -0.2), (module.running_var, 0.1), (module.weight, 0.6), (module.bias, -0.2)):
                assert value is not None
                value.data.copy_(torch.rand(value.shape, generator=generator) * 0.5 + low)
    return model


@pytest.mark.parametrize(("name", "make"), [("inception_v4", inception_v4), ("inception_resnet_v2", inception_resnet_v2)])
def test_outputs_equal_timms_with_its_weights(name: str, make: partial[nn.Sequential]) -> None:
    theirs = timm_net(name).eval()
    ours = load_pretrained(make(), theirs.state_dict()).eval()
    images = torch.randn(2, 3, 91, 107)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.02
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())
    other = make(num_classes=5)
    load_pretrained(other, theirs.state_dict(), head=False)
    with pytest.raises(AssayError, match=r"\(1000, 1536\) instead of \(5, 1536\)"):
        load_pretrained(other, theirs.state_dict())


def test_blocks_are_as_many_as_in_the_released_network() -> None:
    with torch.device("meta"):
        stages = inception_resnet_v2().get_submodule("stages")
    blocks = [[m for m in stage if isinstance(m, ResidualScale)] for stage in stages]  # type: ignore[attr-defined]
    assert [len(stage) for stage in blocks] == [10, 20, 10]
    assert [{block.scale for block in stage} for stage in blocks] == [{0.17}, {0.10}, {0.20, 1.0}]
    assert [isinstance(stage[-1].relu, nn.ReLU) for stage in blocks] == [True, True, False]
    with torch.device("meta"):
        other = inception_resnet_v2(scales=(0.1, 0.2, 0.3)).get_submodule("stages")
    assert [stage[1].scale for stage in other] == [0.1, 0.2, 0.3]  # type: ignore[attr-defined]


def test_a_block_is_its_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, 5)
    for scale in (0.0, 0.3, 1.0):
        block = ResidualScale(mixed("4 | 2 3k3", 6), 6, scale).eval()
        nn.init.normal_(block.expand.bias)
        branches = torch.cat([branch(x) for branch in block.branches], dim=1)
        weight, bias = block.expand.weight[:, :, 0, 0], block.expand.bias
        assert bias is not None
        residual = torch.einsum("oi,bihw->bohw", weight, branches) + bias[:, None, None]
        torch.testing.assert_close(block(x), (x + scale * residual).clamp_min(0))
        linear = ResidualScale(block.branches, 6, scale, activation=False).eval()
        linear.expand = block.expand
        torch.testing.assert_close(linear(x), x + scale * residual)
    assert torch.equal(ResidualScale(mixed("4", 6), 6, 0.0)(x), F.relu(x))


def test_pure_and_residual_networks_cost_the_same_and_start_alike() -> None:
    nets = []
    for residual in (True, False):
        torch.manual_seed(3)
        nets.append(small_inception_resnet(residual=residual, blocks=(1, 2)))
    filters = [[m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for net in nets]
    assert len(filters[0]) == len(filters[1])
    assert all(torch.equal(one, other) for one, other in zip(*filters, strict=True))
    assert macs(nets[0], (1, 28, 28)) == macs(nets[1], (1, 28, 28))
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in nets]
    assert norms[1] == norms[0] + 3  # one behind each block of the pure network, none on the expansion of a residual one
    assert parameters(small(10, 1)) < 100_000
    assert macs(small(10, 1), (1, 28, 28)) < 10_000_000


def test_filters_start_with_hes_variance_and_biases_with_zero() -> None:
    torch.manual_seed(0)
    net = small_inception_resnet(width=8.0, blocks=(1, 1))
    for block in (m for m in net.modules() if isinstance(m, ResidualScale)):
        assert block.expand.bias is not None
        assert not block.expand.bias.any()
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
            assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / conv.weight[0].numel()), rel=0.05)
    with torch.device("meta"):
        for big in (inception_v4(), inception_resnet_v2()):
            assert big.get_submodule("head.dropout").p == 0.2


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("size", "channels", "stride"), [(28, 1, 2), (7, 3, 2), (8, 1, 1), (3, 1, 1), (64, 3, 2)])
def test_small_networks_take_any_size(size: int, channels: int, stride: int, residual: bool) -> None:
    net = small_inception_resnet(7, channels, 0.5, (1, 1), residual, stride=stride, planes=20)
    assert net(torch.rand(2, channels, size, size)).shape == (2, 7)
    with pytest.raises(ValueError, match="stride must be 1 or 2"):
        small_inception_resnet(stride=3)


def test_dead_planes_are_counted() -> None:
    torch.manual_seed(0)
    net, images = small_inception_resnet(blocks=(0, 1), planes=8).eval(), torch.randn(20, 1, 28, 28)
    assert dead_planes(net, images) == 0
    last = net.get_submodule("stages.1.2")
    assert isinstance(last, ResidualScale)
    assert last.expand.bias is not None
    last.expand.bias.data[:2] = -1e6
    assert dead_planes(net, images) == 0.25
    last.expand.bias.data[3] = math.nan
    assert dead_planes(net, images) == 1


def test_when_a_level_is_reached() -> None:
    assert steps_to(0.6, [0.5, 0.7, 0.4], [10, 20, 30]) == pytest.approx(15)
    assert steps_to(0.25, [0.5, 0.7], [10, 20]) == pytest.approx(5)
    assert steps_to(0.8, [0.5, 0.7], [10, 20]) == math.inf


def pictures(task: str = "classification", size: int = 12) -> Dataset:
    inputs, labels = torch.rand(40, 1, size, size), torch.arange(40) % 3
    whole = Split(inputs, labels.float() if task == "regression" else labels)
    return Dataset("x", task, whole, whole, whole, () if task == "regression" else ("a", "b", "c"))


@pytest.mark.parametrize("size", [8, 28])
def test_treatment_keeps_the_size_and_all_else(size: int) -> None:
    plain = Recipe(pictures(size=size), model=partial(mlp, size * size, 3, (64,)))
    treated = paper.inception_resnet(plain, scale=0.2)
    assert treated == plain.replace(model=treated.model)
    net = treated.model()
    assert net(plain.data.train.inputs[:2]).shape == (2, 3)  # type: ignore[index]
    assert {block.scale for block in net.modules() if isinstance(block, ResidualScale)} == {0.2}
    assert parameters(net) == pytest.approx(parameters(plain.model()), rel=0.25)


def test_treatment_refuses_what_has_no_images_or_no_classes(table: Dataset) -> None:
    for data, net in ((table, partial(mlp, 8, 2)), (pictures("regression"), partial(mlp, 144, 1))):
        with pytest.raises(AssayError, match="Inception networks are for classes of images"):
            paper.inception_resnet(Recipe(data, model=net))
    with pytest.raises(AssayError, match="smaller than 3x3"):
        paper.inception_resnet(Recipe(pictures(size=2), model=partial(mlp, 4, 3)))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    for measure in (
        paper.residual_trains_faster,
        paper.residual_is_not_the_final_accuracy,
        paper.scaling_saves_wide_nets,
        paper.lower_rates_do_not_save_wide_nets,
    ):
        assert len(measure(lab)) == 2
    wide = paper.scaling_saves_wide_nets(lab) | paper.lower_rates_do_not_save_wide_nets(lab)
    assert {arm: tuple(curve.x) for arm, curve in wide.items()} == {  # type: ignore[union-attr]
        "scale 1": (0.2, 0.4),
        "scale 0.1": (0.2, 0.4),
        "scale 1, a tenth of the rate": pytest.approx((0.02, 0.04)),
    }


def test_a_training_that_diverges_counts_as_dead(home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(scale="smoke")

    def diverges(recipe: Recipe) -> None:
        raise Diverged("the loss is not finite")

    monkeypatch.setattr(lab, "train", diverges)
    assert {arm: curve.value for arm, curve in paper.scaling_saves_wide_nets(lab).items()} == {  # type: ignore[union-attr]
        "scale 1": 1.0,
        "scale 0.1": 1.0,
    }
