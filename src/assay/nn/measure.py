"""The size of a network: parameters, multiply-adds, layers, and how much of the picture one place of its last map sees."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one example, in evaluation mode; nothing is computed.

    The convention of most tables (torchvision's "GFLOPS", the papers' "FLOPs"): a multiplication and its addition count as
    one, and normalisation, activations, pooling and biases as none.

    Args:
        model: the network; it is left as it is.
        shape: of one example, e.g. ``(3, 224, 224)``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Depth:
    """What lies between the input and some place of a network, on the longest way.

    Attributes:
        layers: layers with weights, normalisation not counted.
        sees: height and width of the input's part that one place depends on (its receptive field), before global pooling.
        stride: how many input pixels lie between neighbouring places.
    """

    layers: int
    sees: int
    stride: int


def depth(model: nn.Module) -> Depth:
    """Layers and receptive field of a network, read from its graph of modules.

    Only modules count (``nn.Conv2d``, ``nn.MaxPool2d``, ``nn.AvgPool2d``, ``nn.Linear``); where ways join, the longest counts.
    Filters and strides are taken to be square.

    Raises:
        torch.fx.proxy.TraceError: the network looks at values to decide what to do.
    """
    graph = fx.symbolic_trace(model)
    found: dict[fx.Node, Depth] = {}
    for node in graph.graph.nodes:
        before = [found[source] for source in node.all_input_nodes]
        here = Depth(*(max((getattr(one, name) for one in before), default=least) for name, least in _START.items()))
        found[node] = _after(graph.get_submodule(node.target), here) if node.op == "call_module" else here
    return here


_START = {"layers": 0, "sees": 1, "stride": 1}


def _after(module: nn.Module, here: Depth) -> Depth:
    if isinstance(module, nn.Linear):
        return Depth(here.layers + 1, here.sees, here.stride)
    if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride = _side(module.kernel_size), _side(module.stride)
        spread = _side(getattr(module, "dilation", 1)) * (kernel - 1)
        return Depth(here.layers + isinstance(module, nn.Conv2d), here.sees + spread * here.stride, here.stride * stride)
    return here


def _side(size: Any) -> int:
    return int(max(size)) if isinstance(size, tuple) else int(size)


def nearest_width(make: Callable[[int], nn.Module], target: int, widths: Sequence[int]) -> int:
    """The width with which a network comes nearest to ``target`` parameters; nothing is computed.

    Args:
        make: ``make(width)`` makes the network; wider ones have more parameters.
        target: parameters.
        widths: what may be chosen, in ascending order.
    """

    def size(width: int) -> int:
        with torch.device("meta"):
            return parameters(make(width))

    at = bisect_left(widths, target, key=size)
    return min(widths[max(at - 1, 0) : at + 1], key=lambda width: abs(size(width) - target))


__all__ = ["Depth", "depth", "macs", "nearest_width", "parameters"]
