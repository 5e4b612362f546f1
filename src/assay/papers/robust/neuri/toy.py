"""A small compiler with bugs on purpose: it says what an oracle is worth, since one knows what there is to be found.

The compiler traces a model with torch.fx and interprets the graph; each bug is a wrong lowering of a call, most of them only
behind a certain other call, as wrong rewrites are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from assay.papers.robust.neuri.models import Model

#: Makes the wrong result out of (the node, its arguments, what went into the call before it, the right result); None where the
#: bug does not strike.
Lowering = Callable[[fx.Node, tuple[Any, ...], dict[str, Any], "list[Any]", Tensor], "Tensor | None"]


@dataclass(frozen=True)
class Bug:
    """One wrong lowering.

    Args:
        name: in words.
        behind: names of calls of which one must give the first argument; empty where the call alone will do.
        at: names of the calls that are lowered wrongly.
        lower: makes the wrong result.
    """

    name: str
    behind: frozenset[str]
    at: frozenset[str]
    lower: Lowering


def _name(node: Any) -> str:
    """``relu`` for torch.relu, F.relu and the method alike."""
    if not isinstance(node, fx.Node):
        return ""
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "")


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, bugs: list[Bug]) -> None:
        super().__init__(module)
        self.bugs, self.struck = bugs, set[str]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op not in ("call_function", "call_method") or not isinstance(result, Tensor):
            return result
        name = _name(n)
        for bug in self.bugs:
            if name not in bug.at:
                continue
            for before in n.all_input_nodes if bug.behind else [n]:
                if bug.behind and _name(before) not in bug.behind:
                    continue
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                sources = [self.env.get(node) for node in before.all_input_nodes]
                wrong = bug.lower(n, args, kwargs, sources, result)
                if wrong is not None and wrong.shape == result.shape:
                    self.struck.add(bug.name)
                    return wrong
        return result


def run(model: Model, tensors: list[Tensor], bugs: list[Bug]) -> tuple[tuple[Tensor, ...], set[str]]:
    """The outputs of the model by the compiler with these bugs, and the names of the bugs that struck."""
    interpreter = _Interpreter(fx.symbolic_trace(model.module()), bugs)
    # Values are kept: a lowering looks at what went into the call before.
    interpreter.garbage_collect_values = False
    with torch.no_grad():
        outputs = interpreter.run(*tensors)
    return tuple(outputs), interpreter.struck


def _clamp_loses_its_top(n: fx.Node, args: Any, kwargs: Any, sources: list[Any], right: Tensor) -> Tensor | None:
    low = args[1] if len(args) > 1 else kwargs.get("min")
    if len(args) < 3 or low is None:
        return None
    result: Tensor = args[0].clamp(min=low)
    return result


def _broadcasts_the_first(n: fx.Node, args: Any, kwargs: Any, sources: list[Any], right: Tensor) -> Tensor | None:
    a, b = args
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape == b.shape:
        return None
    small = b if b.numel() < a.numel() else a
    large = a if small is b else b
    return large + small.flatten()[:1]


def _old_memory_order(n: fx.Node, args: Any, kwargs: Any, sources: list[Any], right: Tensor) -> Tensor | None:
    source = sources[0]
    if not isinstance(source, Tensor):
        return None
    changed = [source.reshape(one.shape) if isinstance(one, Tensor) and _permuted(one, source) else one for one in args]
    result: Tensor = changed[0] @ changed[1]
    return result


def _permuted(one: Tensor, source: Tensor) -> bool:
    return one.numel() == source.numel() and one.data_ptr() == source.data_ptr()


def _forgets_the_flip(n: fx.Node, args: Any, kwargs: Any, sources: list[Any], right: Tensor) -> Tensor | None:
    source = sources[0]
    function = torch.softmax if _name(n) == "softmax" else torch.log_softmax
    if not isinstance(source, Tensor) or source.shape != right.shape:
        return None
    return function(source, args[1])


def _divides_by_the_old_size(n: fx.Node, args: Any, kwargs: Any, sources: list[Any], right: Tensor) -> Tensor | None:
    source, dim = sources[0], kwargs.get("dim")
    if not isinstance(source, Tensor) or source.dim() != args[0].dim() or dim is None or not source.shape[dim]:
        return None
    share: float = args[0].shape[dim] / source.shape[dim]
    return right * share


def _expanded_counts_once(n: fx.Node, args: Any, kwargs: Any, sources: list[Any], right: Tensor) -> Tensor | None:
    source, dim = sources[0], kwargs.get("dim")
    if not isinstance(source, Tensor) or source.dim() != args[0].dim() or dim is None or not source.shape[dim]:
        return None
    share: float = args[0].shape[dim] / source.shape[dim]
    return right / share


_BEFORE_EXP = frozenset({"sub", "add"})

#: Ten of them: two that a single call shows, eight that need two.
BUGS = [
    Bug(
        "clamp behind what is positive drops its upper bound",
        frozenset({"relu", "abs", "sigmoid", "square", "exp", "softplus", "sqrt"}),
        frozenset({"clamp"}),
        _clamp_loses_its_top,
    ),
    Bug("add behind cat broadcasts one entry only", frozenset({"cat", "stack"}), frozenset({"add"}), _broadcasts_the_first),
    Bug("matmul behind permute reads memory in the old order", frozenset({"permute"}), frozenset({"matmul"}), _old_memory_order),
    Bug(
        "softmax behind flip is fused without the flip",
        frozenset({"flip"}),
        frozenset({"softmax", "log_softmax"}),
        _forgets_the_flip,
    ),
    Bug(
        "mean behind a slice divides by the old size",
        frozenset({"narrow", "getitem"}),
        frozenset({"mean"}),
        _divides_by_the_old_size,
    ),
    Bug("sum behind expand counts what was expanded once", frozenset({"expand"}), frozenset({"sum"}), _expanded_counts_once),
    Bug(
        "exp behind a sum becomes expm1",
        _BEFORE_EXP,
        frozenset({"exp"}),
        lambda n, args, kwargs, sources, right: torch.expm1(args[0]),
    ),
    Bug(
        "the largest of negated entries loses its sign",
        frozenset({"neg"}),
        frozenset({"amax", "amin"}),
        lambda n, args, kwargs, sources, right: -right,
    ),
    Bug(
        "max pooling pads with zeros",
        frozenset(),
        frozenset({"max_pool2d", "max_pool1d", "boolean_dispatch", "fn"}),
        lambda n, args, kwargs, sources, right: _pooled(*args, **kwargs),
    ),
    Bug(
        "average pooling leaves the padding out",
        frozenset(),
        frozenset({"avg_pool2d"}),
        lambda n, args, kwargs, sources, right: F.avg_pool2d(*args[:4], count_include_pad=False) if args[3] else None,  # type: ignore[misc]
    ),
]


def _pooled(inputs: Tensor, kernel_size: int, stride: int, padding: int, dilation: int, **_: Any) -> Tensor | None:
    if not padding:
        return None
    pool = F.max_pool2d if inputs.dim() == 4 else F.max_pool1d
    padded = F.pad(inputs, (padding,) * (2 * (inputs.dim() - 2)))
    result: Tensor = pool(padded, kernel_size, stride, 0, dilation)
    return result
