"""A network as affine maps with piecewise linear activations in between, and the linear function that it is around an input.

    net = chain(model, (4,))          # x -> W x + b, pieces, W x + b, pieces, ..., W x + b
    maps, shifts, nearest = local_functions(model, inputs)

All in float64, so that what is said of hyperplanes is said of the network and not of its rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import fx, nn
from torch.nn import functional as F

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pieces:
    """A piecewise linear activation: in region r, between knot r - 1 and knot r, it is ``slopes[r] * v + offsets[r]``."""

    knots: tuple[float, ...]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]


@dataclass(frozen=True)
class Chain:
    """A network as affine maps with an activation after each but the last: ``x -> W x + b``, pieces, ``W x + b``, ..."""

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    pieces: tuple[Pieces, ...]


def _leaky(slope: float) -> Pieces:
    return Pieces((0.0,), (slope, 1.0), (0.0, 0.0))


def _clipped(low: float, high: float) -> Pieces:
    return Pieces((low, high), (0.0, 1.0, 0.0), (low, 0.0, high))


#: Module -> its pieces.
_MODULES: dict[type[nn.Module], Callable[[Any], Pieces]] = {
    nn.ReLU: lambda module: _leaky(0.0),
    nn.LeakyReLU: lambda module: _leaky(module.negative_slope),
    nn.ReLU6: lambda module: _clipped(0.0, 6.0),
    nn.Hardtanh: lambda module: _clipped(module.min_val, module.max_val),
    nn.Hardsigmoid: lambda module: Pieces((-3.0, 3.0), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0)),
}


def _activation(graph: fx.GraphModule, node: fx.Node) -> Pieces | None:
    """What a node of the graph activates by, if it is a piecewise linear activation."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return _MODULES[type(module)](module) if type(module) in _MODULES else None
    if node.target in (F.relu, torch.relu, "relu"):
        return _leaky(0.0)
    if node.target is F.leaky_relu:
        slope = node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else 0.01)
        return _leaky(float(slope))  # type: ignore[arg-type]
    return None


def chain(model: nn.Module, shape: tuple[int, ...]) -> Chain:
    """A network as affine maps and activations, in float64 and evaluation mode.

    Linear layers, convolutions, average pooling, normalisation by running statistics and whatever else is affine between two
    activations becomes one matrix: it is run on the unit vectors.

    Args:
        model: layers in a row, with piecewise linear activations in between.
        shape: of one input.

    Raises:
        ValueError: the network is no such chain; the sentence names the place.
    """
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model).cpu().double().eval())
    except Exception as error:
        raise ValueError(f"the network's layers cannot be followed one by one ({type(error).__name__})") from error
    nodes = list(graph.graph.nodes)
    start = next(node for node in nodes if node.op == "placeholder")
    output = next(node for node in nodes if node.op == "output").args[0]
    weights, biases, pieces = [], [], []
    steps = [(node, active) for node in nodes if (active := _activation(graph, node))]
    for node, active in [*steps, (output, None)]:
        end = node.all_input_nodes[0] if active else node
        weight, bias, shape = _affine(_between(graph, start, end), shape, str(start))
        weights.append(weight)
        biases.append(bias)
        if active:
            pieces.append(active)
            start = node
    return Chain(tuple(weights), tuple(biases), tuple(pieces))


def _between(graph: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """The part of a network that computes ``end`` from ``start``."""
    part = fx.Graph()
    copies = {start: part.placeholder("inputs")}

    def take(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node.op == "placeholder" or _activation(graph, node):
                raise ValueError(f"{end.name} sees more than what follows {start.name}: the network is no row of layers")
            for one in node.all_input_nodes:
                take(one)
            copies[node] = part.node_copy(node, copies.__getitem__)
        return copies[node]

    part.output(take(end))
    return fx.GraphModule(graph, part)


@torch.no_grad()
def _affine(function: nn.Module, shape: tuple[int, ...], name: str) -> tuple[Floats, Floats, tuple[int, ...]]:
    """Weight (out, in) and bias (out,) of an affine function on inputs of this shape, and the shape of its output."""
    size = int(np.prod(shape))
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().view(-1, *shape)
    probes = torch.randn(3, size, generator=torch.Generator().manual_seed(0)).double().view(-1, *shape)
    try:
        images = function(basis)
        there = function(probes)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"the layers behind {name} do not take inputs of the shape {shape}") from error
    flat = images.flatten(1)
    weight, bias = (flat[1:] - flat[0]).T, flat[0]
    if not torch.allclose(probes.flatten(1) @ weight.T + bias, there.flatten(1), rtol=1e-6, atol=1e-8):
        raise ValueError(
            f"the layers behind {name} are not linear up to the next ReLU, leaky ReLU, ReLU6, hard tanh or hard sigmoid"
        )
    return weight.contiguous().numpy(), bias.numpy(), tuple(images.shape[1:])


def local_functions(model: nn.Module, inputs: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The linear function that a network is around each input, and how far around.

    Args:
        model: as for :func:`chain`.
        inputs: (N, ...).

    Returns:
        Maps (N, C, D), shifts (N, C), and (N,) the distance to the nearest hyperplane on which a unit changes its piece.
    """
    shaped = np.asarray(inputs, dtype=np.float64)
    rows = shaped.reshape(len(shaped), -1)
    net = chain(model, shaped.shape[1:])
    maps, shifts = np.eye(rows.shape[1])[None], np.zeros((1, rows.shape[1]))
    nearest = np.full(len(rows), np.inf)
    for weight, bias, pieces in zip(net.weights, net.biases, net.pieces, strict=False):
        before, before_bias = weight @ maps, shifts @ weight.T + bias
        value = np.einsum("nud,nd->nu", np.broadcast_to(before, (len(rows), *before.shape[1:])), rows) + before_bias
        slope = np.linalg.norm(before, axis=2).clip(1e-300)
        for knot in pieces.knots:
            nearest = np.minimum(nearest, (np.abs(value - knot) / slope).min(axis=1))
        region = np.sum([value > knot for knot in pieces.knots], axis=0)
        maps = np.asarray(pieces.slopes)[region][:, :, None] * before
        shifts = np.asarray(pieces.slopes)[region] * before_bias + np.asarray(pieces.offsets)[region]
    return net.weights[-1] @ maps, shifts @ net.weights[-1].T + net.biases[-1], nearest
