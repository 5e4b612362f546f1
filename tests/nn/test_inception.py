"""Blocks from lines of a table, by shapes, by hand, and against the sentence that the line says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.nn.convnet import ConvNorm
from assay.nn.inception import Mixed, chain, factorize, mixed


def kernels(module: nn.Module) -> list[tuple[int, int, tuple[int, ...], tuple[int, ...], int]]:
    """Planes in and out, kernel, padding and stride of every convolution."""
    return [
        (conv.in_channels, conv.out_channels, conv.kernel_size, conv.padding, conv.stride[0])
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d)
    ]


def test_words_say_what_is_made() -> None:
    net, planes = chain("4 6k3 8k5v 2k1x7 3k7x1- 5k3/2 4k1x3+3x1 avg max", 3)
    assert planes == 8
    assert kernels(net) == [
        (3, 4, (1, 1), (0, 0), 1),
        (4, 6, (3, 3), (1, 1), 1),
        (6, 8, (5, 5), (0, 0), 1),
        (8, 2, (1, 7), (0, 3), 1),
        (2, 3, (7, 1), (3, 0), 1),
        (3, 5, (3, 3), (0, 0), 2),
        (5, 4, (1, 3), (0, 1), 1),
        (5, 4, (3, 1), (1, 0), 1),
    ]
    active = [len(module) == 3 for module in net.modules() if isinstance(module, ConvNorm)]
    assert active == [True, True, True, True, False, True, True, True]
    assert all(module.eps == 1e-3 for module in net.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_block_puts_its_branches_together_in_order() -> None:
    torch.manual_seed(0)
    block = mixed("4 | 2 6k3 | avg 3", 5).eval()
    x = torch.randn(2, 5, 6, 7)
    out = block(x)
    assert block.planes == 13
    assert out.shape == (2, 13, 6, 7)
    for branch, part in zip(block, out.split([4, 6, 3], dim=1), strict=True):
        assert torch.equal(branch(x), part)
    reduced = mixed("4k3/2 | max", 5)
    assert (reduced.planes, reduced(x).shape) == (9, (2, 9, 2, 3))
    assert torch.equal(reduced(x)[:, 4:], F.max_pool2d(x, 3, 2))
    assert isinstance(mixed("4k1x3+3x1", 5)[0][0], Mixed)


@pytest.mark.parametrize("count_zeros", [True, False])
def test_means_at_the_border(count_zeros: bool) -> None:
    means = mixed("avg", 1, count_zeros=count_zeros)(torch.ones(1, 1, 4, 4))
    assert means[0, 0, 0, 0].item() == pytest.approx(4 / 9 if count_zeros else 1.0)
    assert means[0, 0, 1, 1].item() == pytest.approx(1.0)


def test_widths_and_what_means_nothing() -> None:
    assert [row[:2] for row in kernels(chain("8 16k3", 3, width=0.25)[0])] == [(3, 2), (2, 4)]
    assert chain("1", 3, width=0.1)[1] == 1
    for word in ("64k", "k3", "64k3/3", "maxi", "64k3x", "64 k3"):
        with pytest.raises(ValueError, match="is no layer"):
            chain(word, 3)


def test_taking_filters_apart() -> None:
    assert factorize("8 | 4 6k7 | 4 5k7 6k7 9k3/2 | max | avg 3") == (
        "8 | 4 4k1x7 6k7x1 | 4 4k1x7 5k7x1 5k1x7 6k7x1 9k3/2 | max | avg 3"
    )
    assert factorize("4 6k3", linear=True) == "4 4k1x3- 6k3x1"
    with pytest.raises(ValueError, match="first convolution of its branch"):
        factorize("6k3")


def test_filters_that_are_taken_apart_are_products() -> None:
    """A column times a row is a filter: without normalisation and ReLU both networks compute the same."""
    torch.manual_seed(0)
    row, column, x = torch.randn(1, 1, 1, 7), torch.randn(1, 1, 7, 1), torch.randn(1, 1, 12, 12)
    parts = [m for m in chain(factorize("1 1k7", linear=True), 1)[0].modules() if isinstance(m, nn.Conv2d)][1:]
    parts[0].weight.data, parts[1].weight.data = row, column
    torch.testing.assert_close(parts[1](parts[0](x)), F.conv2d(x, column * row, padding=3), atol=1e-5, rtol=1e-5)
