"""Adder layers: distances and gradients written out, the authors' networks by their counts, and the claims at smoke scale."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import ConvNet, lenet, mlp
from assay.nn.measure import macs, parameters
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.architectures.wide_resnet import wide_resnet
from assay.papers.compress import addernet as paper
from assay.papers.compress.addernet import AdderConv2d, Operations, adder2d, adder_resnet, layer, operations, small, to_adder
from assay.recipe import Recipe
from assay.train.loop import fit

SHAPES = [  # planes in and out, height, width, kernel, stride, padding
    (3, 5, 7, 7, (3, 3), (1, 1), (1, 1)),
    (2, 4, 9, 6, (3, 2), (2, 1), (0, 1)),
    (6, 3, 5, 5, (1, 1), (2, 2), (0, 0)),
    (8, 4, 6, 6, (3, 3), (3, 3), (2, 2)),  # rows and columns that no patch covers; longer than the bound of short patches
]


def examples(shape: tuple[int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]]) -> tuple[Tensor, Tensor]:
    c, t, height, width, kernel, _, _ = shape
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(3, c, height, width, generator=draw, dtype=torch.float64)
    return images, torch.randn(t, c, *kernel, generator=draw, dtype=torch.float64)


def written_out(images: Tensor, filters: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Equation 2, place by place."""
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    height, width = filters.shape[2:]
    rows = range(0, padded.shape[2] - height + 1, stride[0])
    columns = range(0, padded.shape[3] - width + 1, stride[1])
    places = [
        -(padded[:, None, :, i : i + height, j : j + width] - filters[None]).abs().sum(dim=(2, 3, 4))
        for i, j in itertools.product(rows, columns)
    ]
    return torch.stack(places, dim=2).unflatten(2, (len(rows), len(columns)))


@pytest.fixture(params=["one tile", "tiny tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything in one tile, and with tiles and parts that have an end too short."""
    if request.param == "tiny tiles":
        monkeypatch.setattr(layer, "_TILE", 100)
        monkeypatch.setattr(layer, "_PATCHES", 500)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("shape", SHAPES)
def test_signs_are_the_derivative_of_the_distance(shape: tuple) -> None:  # type: ignore[type-arg]
    images, filters = (one.requires_grad_() for one in examples(shape))
    stride, padding = shape[-2:]
    ours, expected = adder2d(images, filters, stride, padding, "sign"), written_out(images, filters, stride, padding)
    torch.testing.assert_close(ours, expected)
    assert (ours <= 0).all()
    outer = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(ours, (images, filters), outer), torch.autograd.grad(expected, (images, filters), outer), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("shape", SHAPES)
def test_full_gradients_are_those_of_a_square_and_of_hubers_loss(shape: tuple) -> None:  # type: ignore[type-arg]
    """x - w is the slope of -(x - w)^2 / 2 in w, and clipped w - x that of minus Huber's loss in x: autograd knows both."""
    images, filters = (one.requires_grad_() for one in examples(shape))
    stride, padding = shape[-2:]
    ours = adder2d(images, filters, stride, padding)
    torch.testing.assert_close(ours, written_out(images, filters, stride, padding))
    outer = torch.randn_like(ours)
    d_images, d_filters = torch.autograd.grad(ours, (images, filters), outer)
    patches = F.unfold(images, filters.shape[2:], padding=padding, stride=stride).unsqueeze(1)  # (B, 1, K, L)
    rows = filters.flatten(1)[None, :, :, None].expand(len(images), -1, -1, patches.shape[3])
    wide = patches.expand_as(rows)
    square = -F.mse_loss(wide, rows, reduction="none").sum(dim=2) / 2
    huber = -F.huber_loss(wide, rows, reduction="none").sum(dim=2)
    torch.testing.assert_close(d_filters, torch.autograd.grad(square, filters, outer.flatten(2))[0])
    torch.testing.assert_close(d_images, torch.autograd.grad(huber, images, outer.flatten(2), retain_graph=True)[0])


def test_distances_are_those_of_cdist_in_single_precision() -> None:
    images, filters = torch.randn(4, 16, 8, 8), torch.randn(8, 16, 3, 3)
    patches = F.unfold(images, 3, padding=1).transpose(1, 2)
    expected = -torch.cdist(patches, filters.flatten(1), p=1.0).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(adder2d(images, filters, padding=1), expected, atol=1e-3, rtol=1e-5)
    assert adder2d(images, filters).is_contiguous(memory_format=torch.channels_last)
    half = adder2d(images.bfloat16(), filters.bfloat16(), padding=1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=1.0, rtol=0.01)
    assert adder2d(images[:0], filters).shape == (0, 8, 6, 6)


def test_what_cannot_be_meant_is_refused() -> None:
    images, filters = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 5)
    with pytest.raises(ValueError, match="do not fit"):
        adder2d(images, filters)
    with pytest.raises(ValueError, match="do not fit"):
        adder2d(images[:, :1], filters, padding=1)
    with pytest.raises(ValueError, match="gradient"):
        adder2d(images, filters, padding=1, gradient="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradient"):
        AdderConv2d(1, 1, 3, gradient="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eta"):
        AdderConv2d(1, 1, 3, eta=0.0)


def test_the_local_rate_sets_the_length_of_a_gradient() -> None:
    layer = AdderConv2d(3, 4, 3, padding=1)
    images = torch.randn(5, 3, 6, 6)
    for factor in (1.0, 1e-4):
        layer.weight.grad = None
        (factor * layer(images).square().sum()).backward()
        assert layer.weight.grad.norm().item() == pytest.approx(0.2 * (4 * 27) ** 0.5, rel=1e-5)
    fixed = AdderConv2d(3, 4, 3, padding=1, adaptive=False, eta=100.0)
    fixed.weight.data = layer.weight.data
    fixed(images).square().sum().backward()
    (plain,) = torch.autograd.grad(adder2d(images, layer.weight, padding=1).square().sum(), layer.weight)
    torch.testing.assert_close(fixed.weight.grad, 100 * plain)
    torch.testing.assert_close(layer.weight.grad / layer.weight.grad.norm(), plain / plain.norm())
    dead = AdderConv2d(3, 4, 3)
    (0 * dead(images)).sum().backward()
    assert not dead.weight.grad.any()


def test_gradients_through_a_network_are_those_of_one_with_all_differences_at_once() -> None:
    """What the layer before gets, with strides and shortcuts on the way."""
    torch.manual_seed(0)
    model = adder_resnet(8, width=4).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters())))

    ours = gradients()
    for module in model.modules():
        if isinstance(module, AdderConv2d):
            module.forward = partial(_all_at_once, module)  # type: ignore[method-assign]
    for one, other in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def _all_at_once(layer: AdderConv2d, images: Tensor) -> Tensor:
    """The same values and gradients out of autograd: the distance, with slopes of the square and of Huber's loss put in."""
    patches = F.unfold(images, layer.kernel_size, padding=layer.padding, stride=layer.stride).unsqueeze(1)  # (B, 1, K, L)
    filters = layer.weight.flatten(1)[None, :, :, None]  # (1, T, K, 1)
    rows, wide = torch.broadcast_tensors(filters, patches)
    value = -(rows - wide).abs().sum(dim=2).detach()
    for_filters = -F.mse_loss(rows, wide.detach(), reduction="none").sum(dim=2) / 2
    for_images = -F.huber_loss(wide, rows.detach(), reduction="none").sum(dim=2)
    out = value + (for_filters - for_filters.detach()) + (for_images - for_images.detach())
    layer.weight.register_hook(lambda g: 0.2 * g.numel() ** 0.5 / g.norm() * g)
    side = (images.shape[2] + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
    return out.unflatten(2, (side, side))


def test_counts_of_the_authors_networks() -> None:
    """272,484 and 25,559,032 parameters; a ResNet-20 computes nearly twice its multiply-adds as additions (Table 2: 82.34 M)."""
    with torch.device("meta"):
        counts = [parameters(make()) for make in (paper.adder_resnet20, paper.adder_resnet50)]
    assert counts == [272_484, 25_559_032]
    shape = (3, 32, 32)
    ordinary, ours = operations(cifar_resnet(20, "B"), shape), operations(paper.adder_resnet20(), shape)
    first_and_last = 3 * 16 * 9 * 32 * 32 + 64 * 10
    assert ours.multiplications == first_and_last
    assert ours.additions - first_and_last == 2 * (ordinary.multiplications - first_and_last)
    assert ours.picojoules() / ordinary.picojoules() == pytest.approx(0.9 * 2 / 4.6, abs=0.01)
    assert Operations(2, 3).picojoules(0.2, 0.03) == pytest.approx(0.49)
    assert parameters(small()) < 100_000


def test_a_network_is_converted_but_for_its_first_and_last_layer() -> None:
    torch.manual_seed(0)
    net = to_adder(cifar_resnet(8, "B"), eta=0.5, gradient="sign")
    kinds = [type(module) for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear, AdderConv2d))]
    assert kinds == [nn.Conv2d, *[AdderConv2d] * 8, nn.Linear]
    assert {(m.eta, m.gradient) for m in net.modules() if isinstance(m, AdderConv2d)} == {(0.5, "sign")}
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == 9  # none was added
    assert macs(net, (3, 8, 8)) == 3 * 16 * 9 * 64 + 640
    # Without batch normalisation behind a convolution one is put there; what normalises something else does not count.
    lenet_like = to_adder(ConvNet(1, 10, 8))
    assert [type(module) for module in lenet_like.conv2] == [AdderConv2d, nn.BatchNorm2d]
    wide = to_adder(wide_resnet(10, 1))
    assert isinstance(wide.groups[0][0].conv1, AdderConv2d)
    assert isinstance(wide.groups[0][0].conv2[1], nn.BatchNorm2d)
    assert lenet_like(torch.randn(2, 1, 8, 8)).shape == wide(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    grouped, same = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same")
    for net in (mlp(4, 2), nn.Sequential(nn.Conv2d(1, 4, 3), grouped, same, nn.Conv2d(4, 2, 1))):
        with pytest.raises(AssayError, match="has none"):
            to_adder(net)


def test_a_layer_that_stands_in_several_places_is_converted_once_and_stays_shared() -> None:
    twice = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), twice, nn.ReLU(), nn.Sequential(twice, nn.BatchNorm2d(4), twice), nn.Conv2d(4, 2, 1))
    to_adder(net)
    inside = net.get_submodule("3")
    assert isinstance(inside, nn.Sequential)
    assert isinstance(inside[0], AdderConv2d)
    assert isinstance(inside[1], nn.BatchNorm2d)
    assert net[1] is inside[2]  # no normalisation followed in either place
    assert net.get_submodule("1.0") is inside[0]
    assert sum(isinstance(module, AdderConv2d) for module in net.modules()) == 1
    assert not any(module is twice for module in net.modules())
    assert net(torch.randn(2, 1, 6, 6)).shape == (2, 2, 6, 6)


def test_a_batch_of_any_size_goes_through_an_exported_network() -> None:
    net = small().eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(net, (torch.randn(3, 1, 28, 28),), dynamic_shapes=({0: batch[0]},))
    images = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), net(images), atol=1e-4, rtol=1e-4)


def test_a_compiled_network_learns_the_same() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 3, 3), AdderConv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(2, 1, 7, 7)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(layer(images)[0].sum(), list(layer.parameters()))
    for one, other in zip(torch.autograd.grad(compiled(images)[0].sum(), list(layer.parameters())), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    torch._dynamo.reset()


def test_the_treatment_trains_and_refuses_rows(digits: Dataset, table: Dataset) -> None:
    recipe = Recipe(digits, partial(lenet, 1, 10, 8), epochs=2)
    treated = paper.addernet(recipe)
    trained = fit(treated, seed=0)
    assert any(isinstance(module, AdderConv2d) for module in trained.model.modules())
    assert trained.history["train_loss"][1] < trained.history["train_loss"][0]
    with pytest.raises(AssayError, match="has none"):
        paper.addernet(Recipe(table, partial(mlp, 8, 2)))
    with pytest.raises(AssayError, match="has none"):
        paper.addernet(treated)
    with pytest.raises(AssayError, match="eta=0"):
        paper.addernet(recipe, eta=0)


@pytest.fixture
def digits() -> Dataset:
    from assay.data import load

    return load("digits").subset(train=200, test=50)


CLAIMS = (
    paper.close_to_convolutions,
    paper.differences_instead_of_signs,
    paper.one_rate_is_not_enough,
    paper.one_larger_rate_is_not_enough,
    paper.small_and_unequal_gradients,
)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert [len(claim(lab)) for claim in CLAIMS] == [2, 3, 2, 2, 4]
