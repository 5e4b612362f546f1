"""Signal propagation plots: what a network does to the mean and the variance of its signals, block by block.

Whether a network can be trained is often decided before the first step: signals that double with every block drown whatever was
there before, and channels that have the same value for every input tell nothing. Two curves over the blocks show both, on noise
or on real inputs, and a third one how much each residual branch adds.

Source: Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets", ICLR
2021, section 3.
"""

from __future__ import annotations

import copy
import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    import pandas as pd


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def signal_propagation(model: nn.Module, inputs: Tensor, batch_size: int = 128) -> pd.DataFrame:
    """Means and variances of the signals behind every residual block.

    Blocks are found by the additions of the network's graph. The branch is what more layers with weights lie before; it is
    measured where it leaves its last module, before a constant or a learnable number scales it down.

    Args:
        model: any network that ``torch.fx`` can read; it stays as it is. It runs in evaluation mode, except that batch
            normalisation normalises by the batch, as in training.
        inputs: (N, ...), N of at least 2: in the paper a thousand of pure noise, ``torch.randn(1000, 3, 224, 224)``, which are
            what a network is given whose inputs were standardised.
        batch_size: examples that are passed through at a time.

    Returns:
        One row a block, in order: ``block`` (the module in which the addition stands), ``mu2`` (squared mean over examples and
        places of a channel, mean over channels), ``var`` (variance over examples and places, mean over channels), and
        ``res_var`` (the same for the residual branch). Of a network without additions one row a layer with weights, and
        ``res_var`` is nan. Channels are dimension 1.

    Raises:
        ValueError: there are fewer than two inputs, or the network cannot be read.
    """
    import pandas as pd

    if len(inputs) < 2:
        raise ValueError(f"variances need two inputs or more, not {len(inputs)}")
    shadow = copy.deepcopy(model).eval()
    for module in shadow.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    try:
        graph = fx.GraphModule(shadow, _Reader().trace(shadow))
    except Exception as error:  # whatever the network's own code makes of a stand-in for a tensor
        raise ValueError(f"torch.fx cannot read this network ({str(error).splitlines()[0]})") from error
    blocks = _blocks(graph)
    watched = {node for pair in blocks for node in pair if node is not None}
    walker = _Walker(graph, watched)
    with torch.no_grad():
        for part in inputs.tensor_split(math.ceil(len(inputs) / batch_size)):
            walker.run(part)
    rows = []
    for node, branch in blocks:
        mu2, var = walker.moments(node)
        rows.append((_where(node), mu2, var, math.nan if branch is None else walker.moments(branch)[1]))
    return pd.DataFrame(rows, columns=["block", "mu2", "var", "res_var"])


class _Reader(fx.Tracer):
    """Does not look into layers: a convolution that does something to its weights first is a convolution."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LAYERS) or super().is_leaf_module(m, module_qualified_name)


class _Walker(fx.Interpreter):
    """Runs a network and keeps sums of what some of its nodes give, at the moment when they give it."""

    def __init__(self, graph: fx.GraphModule, watched: set[fx.Node]) -> None:
        super().__init__(graph)
        self.watched = watched
        self.sums: dict[fx.Node, tuple[int, Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n in self.watched:
            values = out.detach().double()
            over = [place for place in range(values.dim()) if place != 1]
            seen, total, squares = self.sums.get(n, (0, torch.zeros(()), torch.zeros(())))
            seen += values.numel() // values.shape[1]
            self.sums[n] = (seen, total + values.sum(dim=over), squares + values.square().sum(dim=over))
        return out

    def moments(self, node: fx.Node) -> tuple[float, float]:
        """Mean over the channels of their squared means, and of their variances."""
        seen, total, squares = self.sums[node]
        mean = total / seen
        return mean.square().mean().item(), (squares / seen - mean.square()).clamp_min(0).mean().item()


def _blocks(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node | None]]:
    """The nodes that end a block, each with the node that ends its residual branch."""
    modules = dict(graph.named_modules())
    before: dict[fx.Node, int] = {}
    found: list[tuple[fx.Node, fx.Node | None]] = []
    layers: list[tuple[fx.Node, fx.Node | None]] = []
    for node in graph.graph.nodes:
        layer = node.op == "call_module" and isinstance(modules[str(node.target)], _LAYERS)
        before[node] = max((before[source] for source in node.all_input_nodes), default=0) + layer
        if layer:
            layers.append((node, None))
        if _adds(node):
            one, other = node.all_input_nodes
            if before[one] != before[other]:
                found.append((node, _unscaled(one if before[one] > before[other] else other)))
    return found or layers


def _unscaled(node: fx.Node) -> fx.Node:
    """What a branch was before it was multiplied by constants and parameters."""
    while node.op in ("call_function", "call_method") and "mul" in str(getattr(node.target, "__name__", node.target)):
        computed = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if len(computed) != 1:
            return node
        node = computed[0]
    return node


def _adds(node: fx.Node) -> bool:
    """Whether a node adds two things that were computed."""
    method = node.op == "call_method" and node.target in ("add", "add_")
    return (method or (node.op == "call_function" and node.target in _ADDITIONS)) and len(node.all_input_nodes) == 2


def _where(node: fx.Node) -> str:
    """Name of the innermost module in whose ``forward`` a node stands; the node's own where that is the network itself."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack), "") or node.name
