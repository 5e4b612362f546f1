"""Sizes of networks against what can be counted by hand, and every configuration that a paper states against the network."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from assay import catalogue
from assay.nn.measure import Depth, activations, depth, macs, parameters

STATED = [(key, call) for key, paper in catalogue.papers().items() for call in catalogue.configurations(paper)]


@pytest.mark.parametrize(("key", "call"), STATED)
def test_configurations_are_as_stated(key: str, call: str) -> None:
    paper = catalogue.papers()[key]
    stated = catalogue.configurations(paper)[call]
    module = importlib.import_module(paper.module)
    assert module.CONFIGURATIONS[call] == stated  # the file is read without being run: both must say the same
    with torch.device("meta"):
        model = eval(call, vars(module))
    assert (parameters(model), macs(model, stated.input)) == (stated.parameters, stated.macs)
    assert activations(model, stated.input) == stated.activations
    assert (depth(model).layers, depth(model).sees if stated.sees else 0) == (stated.layers, stated.sees)


def test_activations_are_those_of_timms_tables() -> None:
    there = catalogue.configurations(catalogue.papers()["resnet"])
    millions = [round(there[f"resnet{depth}()"].activations / 1e6, 1) for depth in (18, 34, 50, 101, 152)]
    assert millions == [2.5, 3.7, 11.1, 16.2, 22.6]


def test_multiply_adds_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, padding=1, groups=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten())
    net.append(nn.Linear(8 * 3 * 3, 7))
    assert macs(net, (3, 10, 10)) == 25 * 8 * 27 + 9 * 8 * 2 * 9 + 72 * 7
    assert activations(net, (3, 10, 10)) == 25 * 8 + 9 * 8
    assert parameters(net) == 8 * 28 + 8 * 19 + 7 * 73
    net[0].weight.requires_grad_(False)
    assert parameters(net) == 8 + 8 * 19 + 7 * 73
    assert net.training
    assert net[0].weight.device.type == "cpu"


class Fork(nn.Module):
    """Two ways of unequal length that join."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, 3, dilation=2), nn.AvgPool2d(2))
        self.short = nn.MaxPool2d(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.long(x), self.short(x)
        return torch.cat([first, second[:, :, : first.shape[2], : first.shape[3]]], dim=1)


def test_receptive_field_is_where_gradients_come_from() -> None:
    net = Fork().double()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    images = torch.rand(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(net(images)[0, :, 5, 5].sum(), images)[0]
    second = torch.autograd.grad(net(images)[0, :, 5, 6].sum(), images)[0]
    columns, shifted = (g[0, 0].abs().sum(dim=0).nonzero().flatten() for g in (first, second))
    assert depth(net) == Depth(layers=2, sees=int(columns.max() - columns.min()) + 1, stride=int(shifted.max() - columns.max()))


def test_filters_that_are_not_square_reach_as_far_as_gradients() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, (1, 7), (1, 2)), nn.Conv2d(1, 1, (5, 1)), nn.Conv2d(1, 1, (1, 3))).double()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    images = torch.rand(1, 1, 40, 40, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(net(images)[0, 0, 5, 5].sum(), images)[0][0, 0].abs()
    high, wide = (int((slopes.sum(dim=axis) > 0).sum()) for axis in (1, 0))
    assert (high, wide) == (5, 11)
    assert depth(net) == Depth(layers=3, sees=11, stride=2)


class Doubled(nn.Linear):
    """A layer of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def test_layers_of_ones_own_count() -> None:
    assert depth(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Doubled(4, 2))).layers == 2
