"""What holds for every standard network: it can be exported and compiled whole, and works in other types and layouts."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from torch import Tensor, nn

from assay import catalogue
from assay.paper import Configuration

#: The smallest network of every function that makes some, e.g. of resnet18(), resnet34() and resnet50() the first.
SMALLEST: dict[tuple[str, str], str] = {}
for _key, _paper in catalogue.papers().items():
    for _call, _stated in sorted(catalogue.configurations(_paper).items(), key=lambda one: one[1].layers):
        SMALLEST.setdefault((_key, re.sub(r"[\d_]*\(.*| *\d+.*", "", _call)), _call)

NETWORKS = [(key, call) for (key, _), call in SMALLEST.items()]
#: Of these the numbers are looked at as well, on pictures that cost next to nothing.
LIGHT = 100_000_000
#: Whose units are drawn anew in every pass, so that no two passes agree.
DRAWN = {"neural_sampling_machine"}


def made(key: str, call: str, device: str) -> tuple[nn.Module, Configuration]:
    paper = catalogue.papers()[key]
    torch.manual_seed(0)
    with torch.device(device):
        net: nn.Module = eval(call, vars(importlib.import_module(paper.module)))
    return net.eval(), catalogue.configurations(paper)[call]


def images(stated: Configuration, device: str = "meta") -> Tensor:
    if device == "meta":
        return torch.empty(2, *stated.input, device=device)
    return torch.randn(2, *stated.input, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("key", "call"), NETWORKS)
def test_networks_are_exported_whole(key: str, call: str) -> None:
    net, stated = made(key, call, "meta")
    program = torch.export.export(net, (images(stated),))
    assert program.module()(images(stated)).shape == net(images(stated)).shape


@pytest.mark.parametrize(("key", "call"), NETWORKS)
def test_networks_are_compiled_without_graph_breaks(key: str, call: str) -> None:
    light = catalogue.configurations(catalogue.papers()[key])[call].macs <= LIGHT
    net, stated = made(key, call, "cpu" if light else "meta")
    batch = images(stated, "cpu" if light else "meta")
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert compiled(batch).shape == net(batch).shape
    torch._dynamo.reset()


@pytest.mark.parametrize(("key", "call"), [network for network in NETWORKS if network[0] not in DRAWN])
def test_layout_changes_nothing_and_half_of_the_bits_little(key: str, call: str) -> None:
    if catalogue.configurations(catalogue.papers()[key])[call].macs > LIGHT:
        pytest.skip("large: its kin for small pictures is looked at")
    net, stated = made(key, call, "cpu")
    batch = images(stated, "cpu")
    with torch.no_grad():
        plain = net.to(memory_format=torch.contiguous_format)(batch)  # type: ignore[call-overload]
        last = net.to(memory_format=torch.channels_last)(batch.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        half = net.to(torch.bfloat16)(batch.to(torch.bfloat16)).float()
    spread = float(plain.std())
    assert (last - plain).abs().max() <= 1e-4 * max(1.0, spread)
    assert half.isfinite().all()
    assert (half - plain).abs().max() <= 0.25 * spread + 0.05  # eight bits of mantissa, and tens of layers
