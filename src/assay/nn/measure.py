"""The size of a network: parameters, multiply-adds, activations, layers, and how much of the picture one place sees."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode


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


def activations(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Numbers that the convolutions of a network return for one example, in evaluation mode; nothing is computed.

    Memory traffic, and with it the time on an accelerator, follows these more closely than multiply-adds (Radosavovic et al.,
    "Designing Network Design Spaces", 2020, whose convention this is; timm's tables have it too).

    Args:
        model: the network; it is left as it is.
        shape: of one example, e.g. ``(3, 224, 224)``.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counted = 0

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal counted
        counted += output.numel()

    for module in shadow.modules():
        if _has_filters(module):
            module.register_forward_hook(count)
    with torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    return counted


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

    Only modules count (``nn.Linear``, ``nn.MaxPool2d``, ``nn.AvgPool2d``, ``nn.Conv2d`` and what works like it: a module whose
    own ``weight`` has four dimensions); where ways join, the longest counts. Of a part of the input that is no square the longer
    side is returned.

    Raises:
        torch.fx.proxy.TraceError: the network looks at values to decide what to do.
    """
    graph = fx.GraphModule(model, _Layers().trace(model))
    found: dict[fx.Node, tuple[Depth, Depth]] = {}  # along the height, along the width
    for node in graph.graph.nodes:
        before = [found[source] for source in node.all_input_nodes]
        here = (_longest([high for high, _ in before]), _longest([wide for _, wide in before]))
        if node.op == "call_module":
            module = graph.get_submodule(node.target)
            here = (_after(module, here[0], 0), _after(module, here[1], 1))
        found[node] = here
    return _longest(here)


def _longest(ways: Sequence[Depth]) -> Depth:
    return Depth(*(max((getattr(one, name) for one in ways), default=least) for name, least in _START.items()))


class _Layers(fx.Tracer):
    """Does not look into layers with filters and linear ones, whatever they compute there."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _has_filters(m) or isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def _has_filters(module: nn.Module) -> bool:
    """Whether a module is a convolution or works like one."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 4


_START = {"layers": 0, "sees": 1, "stride": 1}


def _after(module: nn.Module, here: Depth, axis: int) -> Depth:
    if isinstance(module, nn.Linear):
        return Depth(here.layers + 1, here.sees, here.stride)
    filters = _has_filters(module)
    if filters or isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride = _side(getattr(module, "kernel_size", 1), axis), _side(getattr(module, "stride", 1), axis)
        spread = _side(getattr(module, "dilation", 1), axis) * (kernel - 1)
        return Depth(here.layers + filters, here.sees + spread * here.stride, here.stride * stride)
    return here


def _side(size: Any, axis: int) -> int:
    return int(size[axis]) if isinstance(size, tuple) else int(size)


class _Unfilled(TorchFunctionMode):
    """Parameters on the meta device have no numbers, and to draw them all the same takes most of a network's making."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):  # of tensors, or of torch.nn.init
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def nearest_width(make: Callable[[int], nn.Module], target: int, widths: Sequence[int]) -> int:
    """The width with which a network comes nearest to ``target`` parameters; nothing is computed.

    Args:
        make: ``make(width)`` makes the network; wider ones have more parameters.
        target: parameters.
        widths: what may be chosen, in ascending order.
    """

    def size(width: int) -> int:
        with torch.device("meta"), _Unfilled():
            return parameters(make(width))

    at = bisect_left(widths, target, key=size)
    return min(widths[max(at - 1, 0) : at + 1], key=lambda width: abs(size(width) - target))


__all__ = ["Depth", "activations", "depth", "macs", "nearest_width", "parameters"]
