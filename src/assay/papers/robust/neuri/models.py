"""Generated models: a list of calls, which is also a Python function."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.papers.robust.neuri.operators import Operator, operators

#: Number formats that models are run in.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Input:
    """A tensor that a model is given: entries drawn evenly between ``low`` and ``high``.

    Args:
        shape: its sizes.
        low: least value.
        high: largest value.
    """

    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Node:
    """One call.

    Args:
        operator: key of the operator.
        operands: places of its tensors among the values: inputs first, then earlier calls.
        attributes: name and value of each whole number.
    """

    operator: str
    operands: tuple[int, ...]
    attributes: tuple[tuple[str, int], ...] = ()

    @property
    def op(self) -> Operator:
        return operators()[self.operator]


@dataclass(frozen=True)
class Model:
    """A graph of calls. Values are numbered: the inputs from 0, then the results of the calls.

    Args:
        inputs: what it is given.
        nodes: the calls, in order.
        seed: of the inputs' entries.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    seed: int = 0
    dtype: str = "float32"

    @property
    def outputs(self) -> tuple[int, ...]:
        """Results that no other call takes."""
        taken = {operand for node in self.nodes for operand in node.operands}
        return tuple(place for place in range(len(self.inputs), len(self.inputs) + len(self.nodes)) if place not in taken)

    @property
    def edges(self) -> set[tuple[str, str]]:
        """Pairs of operators of which one takes the other's result."""
        first = len(self.inputs)
        return {
            (self.nodes[operand - first].op.name, node.op.name)
            for node in self.nodes
            for operand in node.operands
            if operand >= first
        }

    def tensors(self) -> list[Tensor]:
        """The inputs, always the same ones: numbers that the format has exactly."""
        generator = torch.Generator().manual_seed(self.seed)
        return [
            (torch.rand(one.shape, generator=generator) * (one.high - one.low) + one.low).to(DTYPES[self.dtype])
            for one in self.inputs
        ]

    def source(self, name: str = "model") -> str:
        """A Python function of the inputs that returns a tuple of the outputs."""
        arguments = ", ".join(f"v{place}" for place in range(len(self.inputs)))
        lines = [f"def {name}({arguments}):"]
        for place, node in enumerate(self.nodes, start=len(self.inputs)):
            names = {f"x{k}": f"v{operand}" for k, operand in enumerate(node.operands)}
            names |= {key: str(value) for key, value in node.attributes}
            call = re.sub(r"\b[A-Za-z_]\w*\b(?!\s*=[^=])", lambda found: names.get(found[0], found[0]), node.op.call)  # noqa: B023
            lines.append(f"    v{place} = {call}")
        lines.append(f"    return ({', '.join(f'v{place}' for place in self.outputs)},)")
        return "\n".join(lines)

    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The model as a function."""
        names: dict[str, Any] = {"torch": torch, "F": F}
        exec(compile(self.source(), "<model>", "exec"), names)
        function: Callable[..., tuple[Tensor, ...]] = names["model"]
        return function

    def module(self) -> nn.Module:
        """The model as a module without parameters."""
        names: dict[str, Any] = {"torch": torch, "F": F}
        exec(compile(self.source().replace("model(", "forward(self, ", 1), "<model>", "exec"), names)
        made: nn.Module = type("Generated", (nn.Module,), {"forward": names["forward"]})()
        return made

    def as_json(self) -> dict[str, Any]:
        return {
            "inputs": [(one.shape, one.low, one.high) for one in self.inputs],
            "nodes": [(one.operator, one.operands, one.attributes) for one in self.nodes],
            "seed": self.seed,
            "dtype": self.dtype,
        }

    @classmethod
    def of_json(cls, plain: Mapping[str, Any]) -> Model:
        inputs = tuple(Input(tuple(shape), low, high) for shape, low, high in plain["inputs"])
        nodes = tuple(Node(key, tuple(operands), tuple((a, b) for a, b in more)) for key, operands, more in plain["nodes"])
        return cls(inputs, nodes, plain["seed"], plain["dtype"])

    def __str__(self) -> str:
        return json.dumps(self.as_json())


def without(model: Model, keep: Iterable[int]) -> Model:
    """The model with only the calls ``keep`` (positions among its calls) and what they need, unused inputs left out."""
    first = len(model.inputs)
    needed: set[int] = set()
    waiting = [first + place for place in keep]
    while waiting:
        value = waiting.pop()
        if value not in needed:
            needed.add(value)
            if value >= first:
                waiting += model.nodes[value - first].operands
    order = sorted(needed)
    new = {old: place for place, old in enumerate(order)}
    inputs = tuple(model.inputs[old] for old in order if old < first)
    nodes = tuple(
        replace(model.nodes[old - first], operands=tuple(new[operand] for operand in model.nodes[old - first].operands))
        for old in order
        if old >= first
    )
    return replace(model, inputs=inputs, nodes=nodes)
