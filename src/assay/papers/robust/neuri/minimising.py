"""Making a model that shows a difference as small as possible, and a file that shows it without assay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from assay.papers.robust.neuri.models import Input, Model, Node, without
from assay.papers.robust.neuri.rounding import reference, unit_roundoff


def minimise(model: Model, still: Callable[[Model], bool], go_on: Callable[[], bool]) -> Model:
    """The smallest model found that still shows the difference.

    Args:
        model: shows it.
        still: whether another model does; asked of every candidate, so that invalid ones must be answered with no.
        go_on: asked before every candidate; there may be a limit of time.
    """
    shrinking = True
    while shrinking:
        shrinking = False
        for candidate in smaller(model):
            if not go_on():
                return model
            if still(candidate):
                model, shrinking = candidate, True
                break
    return model


def smaller(model: Model) -> Iterator[Model]:
    """Models with less in them: fewer outputs, a call replaced by an input, smaller sizes, attributes nearer to 0."""
    first, count = len(model.inputs), len(model.nodes)
    if len(model.outputs) > 1:
        yield from (without(model, [value - first]) for value in model.outputs)
    if count > 1:
        # From the front: what comes before a wrong result is most of the model.
        yield from filter(None, (_as_input(model, place) for place in range(count)))
        last = model.outputs[0] - first if len(model.outputs) == 1 else None
        if last is not None:
            for operand in model.nodes[last].operands:
                if operand >= first:
                    yield without(model, [operand - first])
    sizes = sorted({size for one in model.inputs for size in one.shape if size > 1}, reverse=True)
    for size in sizes:
        for new in dict.fromkeys((1, 2, size // 2, size - 1)):
            if 0 < new < size:
                shapes = [tuple(new if one == size else one for one in old.shape) for old in model.inputs]
                inputs = tuple(replace(old, shape=shape) for old, shape in zip(model.inputs, shapes, strict=True))
                yield replace(model, inputs=inputs)
                # Attributes that are sizes go along.
                yield replace(model, inputs=inputs, nodes=tuple(_renamed(node, size, new) for node in model.nodes))
    for place, node in enumerate(model.nodes):
        for number, (name, value) in enumerate(node.attributes):
            for new in (0, 1):
                if abs(new) < abs(value):
                    attributes = (*node.attributes[:number], (name, new), *node.attributes[number + 1 :])
                    changed = replace(node, attributes=attributes)
                    yield replace(model, nodes=(*model.nodes[:place], changed, *model.nodes[place + 1 :]))


def _renamed(node: Node, old: int, new: int) -> Node:
    return replace(node, attributes=tuple((name, new if value == old else value) for name, value in node.attributes))


def _as_input(model: Model, place: int) -> Model | None:
    """The model with the result of a call given as an input of its shape and range; None where that cannot be."""
    first = len(model.inputs)
    value = first + place
    if value in model.outputs:
        return None
    try:
        with torch.no_grad():
            (result,) = without(model, [place]).function()(*without(model, [place]).tensors())
    except Exception:
        return None
    low, high = float(result.min()), float(result.max())
    fresh = Input(tuple(result.shape), low, high if high > low else low + 1.0)
    # The new input stands behind the old ones: calls before the one that goes move up by one, those after it stay.
    moved = {old: old for old in range(first)}
    moved |= {first + k: first + k + (k < place) for k in range(len(model.nodes))}
    moved[value] = first
    nodes = tuple(
        replace(node, operands=tuple(moved[operand] for operand in node.operands))
        for number, node in enumerate(model.nodes)
        if number != place
    )
    changed = replace(model, inputs=(*model.inputs, fresh), nodes=nodes)
    return without(changed, [moved[output] - first - 1 for output in model.outputs])


_SCRIPTS = {
    "eager": "results = model(*tensors)",
    "fx": "results = torch.fx.symbolic_trace(Module())(*tensors)",
    "trace": "results = torch.jit.trace(Module(), tuple(tensors), check_trace=False)(*tensors)",
    "export": "results = torch.export.export(Module(), tuple(tensors)).module()(*tensors)",
    "decomposed": 'results = torch.compile(model, backend="aot_eager_decomp_partition", dynamic=False, fullgraph=True)(*tensors)',
    "compile": "results = torch.compile(model, dynamic=False, fullgraph=True)(*tensors)",
    "onnx": "results = torch.onnx.export(Module().eval(), tuple(tensors), dynamo=True, verbose=False)(*tensors)",
}


def reproducer(model: Model, backend: str, what: str) -> str:
    """A Python file that needs torch alone and shows the difference: exit code 1 if it is there, 0 if not."""
    right = reference(model)
    body = model.source().replace("model(", "forward(self, ", 1).replace("\n", "\n    ")
    ranges = ", ".join(f"({list(one.shape)}, {one.low!r}, {one.high!r})" for one in model.inputs)
    bounds = ", ".join(f"{[float(f'{bound:.3g}') for bound in one.flatten().tolist()]}" for one in right.bounds)
    return f'''"""{what}

The model runs eagerly in {model.dtype} and in float64. From float64, {model.dtype} may be off
(unit roundoff {unit_roundoff(model.dtype):.3g}) by BOUNDS, a bound for each entry of each output by running error
analysis, and no more.
"""

import sys

import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

print("torch", torch.__version__)
BOUNDS = [{bounds}]


{model.source()}


class Module(nn.Module):
    {body}


generator = torch.Generator().manual_seed({model.seed})
tensors = [
    (torch.rand(shape, generator=generator) * (high - low) + low).to(torch.{model.dtype})
    for shape, low, high in [{ranges}]
]
with torch.no_grad():
    right = model(*(tensor.double() for tensor in tensors))
    eager = model(*tensors)
    try:
        {_SCRIPTS[backend]}
    except Exception as error:
        print(f"{backend} raises {{type(error).__name__}}: {{error}}")
        sys.exit(1)
different = False
for place, (got, plain, exact, bound) in enumerate(zip(results, eager, right, BOUNDS)):
    if got.shape != exact.shape:
        print(f"output {{place}}: {backend} has the shape {{tuple(got.shape)}}, eager {{tuple(exact.shape)}}")
        different = True
        continue
    error, usual = ((one.double() - exact).abs().flatten() for one in (got, plain))
    bound = torch.tensor(bound, dtype=torch.float64)
    # 1 % for the digits of the bounds that are not printed; NaN is not below anything.
    wrong = ~(error <= 1.01 * bound)
    worst = (error - bound).argmax()
    print(
        f"output {{place}}: {{int(wrong.sum())}} of {{wrong.numel()}} entries are wrong; "
        f"the worst is off by {{error[worst]:.3g}}, eager by {{usual[worst]:.3g}}, and rounding explains {{bound[worst]:.3g}}"
    )
    different = different or bool(wrong.any())
sys.exit(1 if different else 0)
'''
