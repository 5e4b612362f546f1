"""Drop path (stochastic depth) for any residual network: while it trains, whole branches are left out at random.

Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from assay.errors import AssayError

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def with_drop_path(make: Callable[[], nn.Module], rate: float) -> nn.Module:
    """A residual network whose branches are dropped while it trains: example by example, deeper ones more often.

    Args:
        make: makes the network.
        rate: how probable it is that an example goes without the last branch; it rises linearly from 0 at the first one.

    Returns:
        The network itself, with the same weights by the same names; in evaluation mode it computes what it did.

    Raises:
        AssayError: it has no residual branches.
    """
    model = make()
    names = residual_branches(model)
    if not names:
        raise AssayError("Drop path is for residual networks, and this network has no branch that is added to a shortcut.")
    for place, name in enumerate(names):
        model.get_submodule(name).register_forward_hook(DropPath(rate * place / max(1, len(names) - 1)))
    return model


class DropPath:
    """A forward hook: in training, the output of a module is 0 for some examples, and longer for the others to make up for it.

    Args:
        rate: how probable 0 is, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), not {rate}")
        self.rate = rate

    def __call__(self, module: nn.Module, given: Any, output: Tensor) -> Tensor:
        if not module.training or not self.rate:
            return output
        kept = output.new_empty(len(output), *[1] * (output.dim() - 1)).bernoulli_(1 - self.rate)
        return output * (kept / (1 - self.rate))


def residual_branches(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs are added to a shortcut, in the order in which they come.

    Of two things that are added, the branch is what more layers with weights lie before. The network is read, not run; one that
    looks at values to decide what to do cannot be read, and none are found.
    """
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception:  # whatever the network's own code makes of a stand-in for a tensor
        return []
    modules = dict(model.named_modules())
    layers: dict[fx.Node, int] = {}
    found = []
    for node in nodes:
        here = node.op == "call_module" and isinstance(modules[node.target], _LAYERS)
        layers[node] = max((layers[source] for source in node.all_input_nodes), default=0) + here
        added = (node.op == "call_function" and node.target in _ADDITIONS) or (node.op, node.target) == ("call_method", "add")
        both = node.all_input_nodes
        if added and len(both) == 2 and layers[both[0]] != layers[both[1]]:
            branch = max(both, key=layers.__getitem__)
            if branch.op == "call_module" and len(branch.users) == 1:
                found.append(branch.target)
    return found
