"""Networks without normalisation: timm as oracle, predicted variances, SELU's fixed point, treatments, claims at smoke scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.measure import parameters
from assay.own.methods import treated
from assay.papers.architectures import nfnet as paper
from assay.papers.architectures.nfnet import (
    NFBlock,
    agc,
    authors,
    cifar_nf_resnet,
    exact,
    folded,
    load_pretrained,
    nf_resnet,
    nf_resnet50,
    nfnet,
    nfnet_f0,
    normalizer_free,
    selu_mlp,
    signal_propagation,
    timms,
)
from assay.papers.architectures.nfnet.networks import PadSame, Row
from assay.recipe import Recipe
from assay.train.clip import AdaptiveClipping
from assay.train.hooks import Hook
from assay.train.loop import fit
from assay.view import View

#: Parameters (millions) and multiply-adds (billions) of 2021b, Table 3, at its test sizes.
TABLE_3 = {
    0: (71.5, 12.38, 256),
    1: (132.6, 35.54, 320),
    2: (193.8, 62.59, 352),
    3: (254.9, 114.76, 416),
    4: (316.1, 215.24, 512),
    5: (377.2, 289.76, 544),
    6: (438.4, 377.28, 576),
}


@pytest.mark.parametrize("size", TABLE_3)
def test_sizes_are_the_published_ones(size: int) -> None:
    stated = paper.CONFIGURATIONS[f"nfnet_f{size}()"]  # which is what the network measures, by another test
    millions, billions, pixels = TABLE_3[size]
    assert stated.input == (3, pixels, pixels)
    assert stated.parameters / 1e6 == pytest.approx(millions, abs=0.06)
    assert stated.macs / 1e9 == pytest.approx(billions, abs=0.006)


def timm_net(name: str, spread: float = 1.0) -> nn.Module:
    """timm's network with weights, gains and biases that are nowhere at their start."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net: nn.Module = timm.create_model(name).eval()
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in net.named_parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
            if key.endswith("gain"):
                p.add_(0.8)
            elif p.dim() > 1:
                p.mul_((100 if key == "head.fc.weight" else 10) * p[0].numel() ** -0.5 * (1 if "fc" in key else spread))
    return net


@pytest.mark.parametrize(
    ("name", "make", "spread"),
    [
        ("nf_resnet50", nf_resnet50, 1.0),
        ("nfnet_f0", partial(nfnet_f0, style=timms("gelu")), 1.0),
        # timm adds something to the variance of the authors' filters, where the authors have a floor: with long filters both are
        # nothing.
        ("dm_nfnet_f0", nfnet_f0, 100.0),
    ],
)
def test_outputs_equal_timms_with_its_weights(name: str, make: object, spread: float) -> None:
    theirs = timm_net(name, spread)
    with torch.device("meta"):
        ours = make()  # type: ignore[operator]
    load_pretrained(ours.to_empty(device="cpu"), theirs.state_dict()).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    for size in (48, 57):
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            expected, found = theirs(images), ours(images)
            assert (folded(ours)(images) - found).abs().max() < 1e-5
        assert expected.std() > 0.3
        assert (found - expected).abs().max() <= 1e-4


def test_weights_from_files_and_for_other_classes(tmp_path: Path) -> None:
    theirs = pytest.importorskip("timm").create_model("nf_resnet26")
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    net = load_pretrained(nf_resnet(26), tmp_path / "own.pth")
    assert torch.equal(net.state_dict()["stages.1.0.branch.conv2.weight"], theirs.state_dict()["stages.1.0.conv2.weight"])
    tuned = nf_resnet(26, num_classes=5)
    before = tuned.head.fc.weight.clone()
    load_pretrained(tuned, tmp_path / "own.pth", head=False)
    assert torch.equal(tuned.head.fc.weight, before)
    assert torch.equal(tuned.stem.conv.weight, theirs.stem.conv.weight)
    with pytest.raises(AssayError, match="build the network that they are of"):
        load_pretrained(nf_resnet(50), theirs.state_dict())


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kernel", [3, 7])
def test_padding_is_tensorflows(size: int, kernel: int) -> None:
    padded = PadSame(kernel)(torch.ones(1, 1, size, size))
    out = F.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=2)
    assert out.shape[2] == math.ceil(size / 2)
    whole = max((math.ceil(size / 2) - 1) * 2 + kernel - size, 0)  # its rule; the smaller half stands before
    assert padded.shape[2] == size + whole
    assert (padded[0, 0, :, padded.shape[3] // 2] == 0).nonzero().flatten().tolist()[: whole // 2] == list(range(whole // 2))


def reference(block: NFBlock, x: Tensor, gain: float, beta: float, alpha: float) -> Tensor:
    """The block as the papers write it: factors on signals, filters by the formula for standard deviations."""

    def conv(layer: nn.Module, value: Tensor, **how: int) -> Tensor:
        weight = layer.weight.flatten(1)
        centred = weight - weight.mean(dim=1, keepdim=True)
        std = (weight.var(dim=1, keepdim=True, correction=0) * weight.shape[1]).sqrt()
        filters = (layer.gain[:, None] * centred / std).view_as(layer.weight)
        return F.conv2d(value, filters, layer.bias, **how)

    def act(value: Tensor) -> Tensor:
        return F.gelu(value) * gain

    parts = dict(block.branch.named_children())
    active = act(x) / beta
    beside = x
    if block.shortcut is not None:
        beside = conv(block.shortcut.conv, F.avg_pool2d(active, 2))
    out = conv(parts["conv1"], active)
    out = conv(parts["conv2"], F.pad(act(out), (0, 1, 0, 1)) if block.shortcut is not None else act(out), **_strides(block))
    assert block.skip_gain is not None
    return beside + alpha * block.skip_gain * conv(parts["conv3"], act(out))


def _strides(block: NFBlock) -> dict[str, int]:
    return {"stride": 2} if block.shortcut is not None else {"padding": 1}


@pytest.mark.parametrize("stride", [1, 2])
def test_factors_in_the_filters_are_factors_of_the_signals(stride: int) -> None:
    torch.manual_seed(0)
    style = authors("gelu", alpha=0.3)
    rows = (Row("conv1", 1, 4), Row("conv2", 3, 4), Row("conv3", 1, 8))
    block = NFBlock(8, 8, stride, rows, style, beta=1.7).double()
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x, style.gain, 1.7, 0.3), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("start", ["scalar", "gains"])
def test_branches_begin_at_nothing_and_learn(start: str) -> None:
    torch.manual_seed(0)
    net = cifar_nf_resnet(8, 4, style=replace(exact(), start=start))  # type: ignore[arg-type]
    images = torch.randn(4, 3, 8, 8)
    block = net.stages[0][0]
    assert torch.equal(block(net.stem(images)), net.stem(images))
    F.cross_entropy(net(images), torch.arange(4)).backward()
    learnt = block.skip_gain if start == "scalar" else block.branch.conv2.gain
    assert learnt.grad is not None
    assert learnt.grad.abs().max() > 0


def test_variances_are_as_predicted_without_zeros_at_the_edges() -> None:
    """1x1 filters see no edges, so arithmetic must be right to within what few planes allow."""
    torch.manual_seed(0)
    style = replace(exact(), start="full")
    blocks, variance = [], 1.0
    for _ in range(6):
        blocks.append(NFBlock(256, 256, 1, (Row("conv1", 1, 256), Row("conv2", 1, 256)), style, beta=variance**0.5))
        variance += 0.04
    seen = signal_propagation(nn.Sequential(*blocks), torch.randn(8, 256, 16, 16))
    for place, row in enumerate(seen.itertuples(), start=1):
        assert row.var == pytest.approx(1 + 0.04 * place, rel=0.03)
        assert row.res_var == pytest.approx(1, abs=0.06)
    plain = nn.Sequential(*(NFBlock(256, 256, 1, (Row("conv1", 1, 256), Row("conv2", 1, 256)), paper.PLAIN) for _ in range(6)))
    growth = signal_propagation(plain, torch.randn(8, 256, 16, 16))["var"].to_numpy()
    assert growth[-1] > 1.6**6


def test_predictions_begin_again_with_every_stage() -> None:
    net = nf_resnet(26, style=replace(exact(), gain=1.0))
    first = [[block.branch.conv1.gamma for block in stage] for stage in net.stages]
    assert first == [[1.0, pytest.approx(1.04**-0.5)]] + [[pytest.approx(1.08**-0.5), pytest.approx(1.04**-0.5)]] * 3


def test_dropping_paths_and_dropout_are_for_training() -> None:
    torch.manual_seed(0)
    net = nf_resnet(26, num_classes=3, width=8, drop_path=0.9, dropout=0.5, style=replace(exact(), start="full"))
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_selu_keeps_mean_and_variance() -> None:
    # The two constants from what they are for: mean 0 and variance 1 of selu(z), z ~ N(0, 1).
    below_1, below_2 = math.erfc(2**-0.5) / 2, math.erfc(2**0.5) / 2  # probability of z < -1, and of z < -2
    alpha = (2 * math.pi) ** -0.5 / (0.5 - math.exp(0.5) * below_1)
    scale = (0.5 + alpha**2 * (math.exp(2) * below_2 - 2 * math.exp(0.5) * below_1 + 0.5)) ** -0.5
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(nn.SELU()(x), scale * torch.where(x > 0, x, alpha * (x.exp() - 1)))
    torch.manual_seed(0)
    net = selu_mlp(64, 5, hidden=(512,) * 16)
    x = torch.randn(2000, 64)
    for layer in list(net)[:-1]:
        x = layer(x)
        if isinstance(layer, nn.SELU):
            assert abs(x.mean().item()) < 0.12
            assert x.var().item() == pytest.approx(1, abs=0.15)
    dropped = selu_mlp(64, 5, hidden=(512,), dropout=0.1).train()
    hidden = dropped[:-1](torch.randn(4000, 64))
    assert abs(hidden.mean().item()) < 0.05
    assert hidden.var().item() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (partial(nf_resnet, 18), "one of 26, 50"),
        (partial(nfnet, 7), "0 to 6"),
        (partial(cifar_nf_resnet, 9), "6n"),
        (partial(authors, "sine"), "one of relu, gelu, silu"),
    ],
)
def test_networks_that_are_not(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()  # type: ignore[operator]


def pictures() -> Recipe:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(64, 1, 12, 12, generator=generator), torch.arange(64) % 4
    inputs[:, 0] += labels.view(-1, 1, 1)
    split = Split(inputs, labels)
    data = Dataset("shades", "classification", split, split, split, tuple("abcd"))
    return Recipe(data, model=partial(lenet, 1, 4, 12), batch_size=32, epochs=1, watch=())


class Lengths(Hook):
    """Fails where a gradient is longer than allowed."""

    def after_backward(self, run: object) -> None:
        for parameter in run.model.conv1.parameters():  # type: ignore[attr-defined]
            units = parameter.flatten(1) if parameter.dim() > 1 else parameter[None]
            slopes = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[None]
            assert (slopes.norm(dim=1) <= 0.011 * units.norm(dim=1).clamp_min(1e-3)).all()


def test_clipping_as_a_treatment(table: Dataset) -> None:
    recipe = pictures()
    clipped = agc(recipe.replace(hooks=(Lengths(),)), clip=0.01)
    fit(clipped, seed=0)
    with pytest.raises(AssertionError):
        fit(recipe.replace(hooks=(Lengths(),)), seed=0)
    assert agc(Recipe(table, model=partial(mlp, 8, 2))).hooks == (AdaptiveClipping(0.16),)
    with pytest.raises(AssayError, match="already"):
        agc(clipped)


def test_networks_as_a_treatment(table: Dataset) -> None:
    recipe = pictures()
    changed = treated(recipe, [normalizer_free, agc])
    assert parameters(changed.model()) == pytest.approx(parameters(recipe.model()), rel=0.1)
    assert treated(recipe, [agc, normalizer_free]).hooks == changed.hooks
    with pytest.raises(AssayError, match="leave normalizer_free out"):
        normalizer_free(changed)
    with pytest.raises(AssayError, match="classes of images"):
        normalizer_free(Recipe(table, model=partial(mlp, 8, 2)))
    own = paper.paper_training(recipe.replace(model=partial(paper.small, 4), epochs=1))
    trained = fit(own, seed=0)
    assert trained.model(torch.randn(2, 1, 12, 12)).shape == (2, 4)
    groups = own.optimizer(trained.model.parameters()).param_groups
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in groups)
    assert {group["weight_decay"]: {min(p.dim(), 2) for p in group["params"]} for group in groups} == {2e-5: {2}, 0.0: {0, 1}}


def test_beside_a_tiny_network_no_shortcut_is_dead() -> None:
    recipe = pictures()
    tiny = normalizer_free(recipe.replace(model=partial(mlp, 144, 4, ()))).model()
    assert tiny.stem.conv.out_channels == 2
    images = recipe.data.train.inputs
    assert isinstance(images, Tensor)
    assert tiny.stages(tiny.stem(images)).std(dim=0).min() > 0  # branches begin at nothing: what passes went around


@pytest.mark.parametrize("make", [nf_resnet, partial(nfnet, 0)])
def test_later_blocks_are_dropped_more_often(make: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        blocks = [block for block in make(drop_path=0.4).modules() if isinstance(block, NFBlock)]
    rates = [sum(hook.rate for hook in block.branch._forward_hooks.values()) for block in blocks]  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.4 * place / len(blocks) for place in range(len(blocks))])


def test_probe_tells_of_every_block() -> None:
    torch.manual_seed(0)
    recipe = pictures()
    net = cifar_nf_resnet(8, 4, 4, 1).eval()
    inputs = recipe.data.test.inputs
    assert isinstance(inputs, Tensor)
    view = View(net, inputs[:2], torch.zeros(2, dtype=torch.int64), None, inputs[2:], None, "images", tuple("abcd"))
    seen = paper.signal_plot(view)
    assert len(seen.numbers) == 9
    expected = signal_propagation(net, inputs)["var"][0]
    assert seen.numbers["variance after stages.0.0"] == pytest.approx(expected, rel=1e-6)
    one = replace(view, background=inputs[:0], inputs=inputs[:1])
    with pytest.raises(AssayError, match="two inputs"):
        paper.signal_plot(one)
    with pytest.raises(AssayError, match="exported"):
        paper.signal_plot(replace(view, layered=False))


@pytest.mark.parametrize(
    ("claim", "arms"),
    [
        (paper.variance_explodes_without_norm, 4),
        (paper.standardised_weights_remove_the_mean, 4),
        (paper.trains_without_norm, 2),
        (paper.agc_reaches_batch_norm, 2),
        (paper.agc_allows_high_rates, 3),
    ],
)
def test_claims_at_smoke_scale(home: Path, claim: object, arms: int) -> None:
    assert len(claim(Lab(scale="smoke"))) == arms  # type: ignore[operator]
