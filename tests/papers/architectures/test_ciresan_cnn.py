"""Max-pooling networks: sizes by the paper's formula, an independent restatement, fixed first layers, claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet
from assay.nn.measure import macs, parameters
from assay.papers.architectures import ciresan_cnn as paper
from assay.papers.architectures.ciresan_cnn import (
    CiresanCNN,
    ContrastMaps,
    RandomlyConnected,
    ScaledTanh,
    line_for,
    max_pooling_net,
    mnist_net,
    random_filters,
)
from assay.recipe import Recipe
from assay.train.augment import deform, flip_and_crop
from assay.train.loop import fit


def test_the_activation_goes_through_one() -> None:
    ends = ScaledTanh()(torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([-1.0, 0.0, 1.0]), rtol=0, atol=5e-4)


def test_layers_have_the_published_numbers_of_weights() -> None:
    sizes = [parameters(layer) for layer in mnist_net() if parameters(layer)]
    assert sizes == [340, 20_040, 54_150, 1_510]


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("side", [11, 12, 13, 14])
def test_sides_follow_the_formula(side: int, skip: int) -> None:
    """M = floor((M - K) / (S + 1)) + 1: the neurons fit the maps whatever the rounding."""
    net = CiresanCNN(f"3C4S{skip}-MP2-2N", (1, side, side + 3))
    after = [(length - 4) // (skip + 1) + 1 for length in (side, side + 3)]
    assert net[0](torch.zeros(1, 1, side, side + 3)).shape[2:] == torch.Size(after)
    assert net(torch.zeros(5, 1, side, side + 3)).shape == (5, 2)


def test_outputs_are_those_of_the_layers_written_out() -> None:
    """The activation before the maximum, as the paper has it; weights as large as those of a trained network."""
    torch.manual_seed(0)
    net, images = CiresanCNN("6C4-MP2-8C5S1-7N-3N", (2, 17, 19)), torch.randn(4, 2, 17, 19)
    first, second, hidden, last = (layer for layer in net if parameters(layer))
    for layer in (first, second, hidden, last):
        layer.weight.data.mul_(6)

    def squash(x: torch.Tensor) -> torch.Tensor:
        return 1.7159 * (1 - 2 / (1 + torch.exp(2 * 0.6666 * x)))

    x = squash(F.conv2d(images, first.weight, first.bias))  # 14 x 16
    x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))  # 7 x 8
    patches = F.unfold(x, 5, stride=2).transpose(1, 2)  # (4, 4, 150)
    x = squash(patches @ second.weight.flatten(1).T + second.bias).transpose(1, 2).flatten(1)
    expected = squash(x @ hidden.weight.T + hidden.bias) @ last.weight.T + last.bias
    assert expected.std() > 0.1
    torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-4)


def test_maxima_that_do_not_fit_round_up() -> None:
    """The authors' network for CIFAR-10 ends with one pixel a map: without rounding up nothing would be left."""
    net = CiresanCNN("4C3-MP2-4C2-MP2-4C3-MP2-4C2-MP2-5N-10N", (3, 32, 32))
    assert next(layer for layer in net if isinstance(layer, nn.Linear)).in_features == 4


def test_random_connections_are_a_dense_convolution_with_zeros() -> None:
    torch.manual_seed(1)
    layer, x = RandomlyConnected(7, 5, 3, stride=2, sees=4), torch.randn(2, 7, 9, 8)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    expected = torch.stack(
        [
            sum(F.conv2d(x[:, [below]], layer.weight[place, [at]][None], stride=2)[:, 0] for at, below in enumerate(row))
            + layer.bias[place]
            for place, row in enumerate(layer.table.tolist())
        ],
        dim=1,
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    assert all(len(set(row)) == 4 for row in layer.table.tolist())
    assert len({tuple(row) for row in layer.table.tolist()}) > 1
    net = mnist_net(sees=0.5)
    assert parameters(net) == 76_040 - 40 * 10 * 25
    assert net(torch.rand(2, 1, 29, 29)).shape == (2, 10)


def test_first_weights_are_uniform_within_the_published_bound() -> None:
    torch.manual_seed(0)
    for parameter in mnist_net().parameters():
        assert parameter.abs().max() <= 0.05
        if parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.05)


def test_contrast_maps() -> None:
    layer = ContrastMaps(2, size=9)
    assert layer.hat.sum(dim=(2, 3)).abs().max() < 1e-6
    flat = layer(torch.full((1, 2, 12, 10), 0.7))
    torch.testing.assert_close(flat[:, :2], torch.full((1, 2, 12, 10), 0.7))
    assert flat[:, 2:].abs().max() < 1e-6
    dot = torch.zeros(1, 2, 15, 15)
    dot[0, 1, 7, 7] = 1.0
    seen = layer(dot)[0]
    assert seen.shape == (6, 15, 15)
    assert seen[3].argmax() == 7 * 15 + 7  # brighter than around
    assert seen[5, 7, 7] == 0
    assert seen[5].max() > 0  # around it: darker than the dot
    torch.testing.assert_close(layer(-dot)[0, 4:], seen[2:4])
    with pytest.raises(ValueError, match="odd number"):
        ContrastMaps(1, 8)
    for side, filters in ((48, 21), (28, 13), (8, 3)):  # 21 on the paper's 48
        assert paper._with_contrast("2N", (1, side, side))[0].hat.shape[2] == filters


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("20C4-MP2", "the classes last"),
        ("20C4-10N-MP2-10N", "'MP2' in"),
        ("20C-10N", "'20C' in"),
        ("20C4-20C4-MP9-20C2-10N", "nothing is left of 12x12"),
    ],
)
def test_lines_that_make_no_network_are_refused(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CiresanCNN(line, (1, 12, 12))
    with pytest.raises(ValueError, match="sees must be"):
        CiresanCNN("10N", sees=0)


@pytest.mark.parametrize(
    "net", [mnist_net(), mnist_net(sees=0.3), nn.Sequential(ContrastMaps(1), CiresanCNN("4C5-3N", (3, 29, 29)))]
)
def test_exports_and_compiles_in_one_graph(net: nn.Module) -> None:
    images = torch.randn(2, 1, 29, 29)
    torch.testing.assert_close(torch.export.export(net, (images,)).module()(images), net(images))
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(images), net(images))


def test_lines_for_pictures_of_any_size() -> None:
    assert line_for((1, 28, 28), 10) == "20C5-MP2-40C5-MP2-100N-10N"
    assert line_for((3, 8, 30), 2, maps=4) == "4C5-MP2-20N-2N"
    for side in (8, 9, 15, 33, 64):
        assert CiresanCNN(line_for((2, side, side + 1), 3, 2), (2, side, side + 1))(torch.zeros(1, 2, side, side + 1)).shape == (
            1,
            3,
        )
    net = paper.small()
    assert parameters(net) < 100_000
    assert macs(net, (1, 28, 28)) < 10_000_000


def images(side: int = 12, channels: int = 1) -> Dataset:
    whole = Split(torch.rand(60, channels, side, side), torch.arange(60) % 3)
    return Dataset("x", "classification", whole, whole, whole, ("a", "b", "c"))


def test_treatment_changes_the_network_and_deforms() -> None:
    plain = Recipe(images(), model=partial(lenet, 1, 3, 12), augment=flip_and_crop, epochs=1)
    treated = max_pooling_net(plain)
    assert treated.augment.keywords["steps"][0] is flip_and_crop
    assert treated.augment.keywords["steps"][1].func is deform
    assert treated == plain.replace(model=treated.model, augment=treated.augment)
    assert parameters(treated.model()) == pytest.approx(parameters(plain.model()), rel=0.1)
    assert fit(treated, 0).logits().shape == (60, 3)
    alone = max_pooling_net(plain, deformation=False, contrast=True)
    assert alone.augment is flip_and_crop
    assert isinstance(alone.model()[0], ContrastMaps)
    assert parameters(alone.model()) == pytest.approx(parameters(plain.model()), rel=0.1)
    with pytest.raises(AssayError, match="a max-pooling network already"):
        max_pooling_net(alone)
    with pytest.raises(AssayError, match="need 8x8 pixels"):
        max_pooling_net(plain.replace(data=images(7)))


def test_treatment_is_for_images_only(table: Dataset) -> None:
    with pytest.raises(AssayError, match="for classes of images"):
        max_pooling_net(Recipe(table, model=partial(nn.Linear, 8, 2)))


def test_random_filters_stay_as_they_are() -> None:
    torch.manual_seed(0)
    net = random_filters(partial(CiresanCNN, "30C5-MP2-40C5-MP2-9N", (1, 29, 29)), gain=1.0)
    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"7.weight", "7.bias"}
    assert net[0](torch.randn(8, 1, 29, 29)).std().item() == pytest.approx(1.0, rel=0.2)
    plain = random_filters(partial(CiresanCNN, "30C5-9N", (1, 9, 9)))
    assert plain[0].weight.abs().max() <= 0.05


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(paper.deeper_beats_shallower(lab)) == {"two stages", "one stage", "perceptron"}
    assert set(paper.learning_is_rapid(lab)) == {"one pass over 60,000", "after 3 passes", "after 17 passes"}
    single = paper._single_pass(lab)
    assert (single.epochs, single.schedule) == (1, None)
    assert len(single.data.train) == len(lab.data("digits").train)  # all of them, not the few of the other claims
    assert len(paper.deformations_matter(lab)) == 2
    assert len(paper.learnt_filters_beat_random_ones(lab)) == 3
    lines = [paper._LINES[arm] for arm in ("two stages", "one stage", "perceptron")]
    sizes = [parameters(CiresanCNN(line)) for line in lines]
    assert sizes[0] < min(sizes[1:])  # as the claim says
