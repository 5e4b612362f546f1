"""How far two right answers may lie apart: running error analysis.

Every number format has a unit roundoff u, the largest relative error of one rounded operation. A model is run once more in
double precision, and beside every tensor goes a bound of the error that the narrow format may have made in it so far:

    E(result) = |J| E(inputs) + k (u (|J| |inputs| + |result|) + least)

J is the Jacobian of the call at this place, so that the first term passes earlier errors on, as large as the call's condition
makes them, and the second adds its own: k roundings, as many as the entry has inputs (the sum of n products is exact for
inputs that are changed by n u, in whatever order it is summed up) and eight more for what goes on inside an elementary function
(a library is off by a few units in the last place; a compiler may also write one function by others). Very small numbers are
rounded to multiples of a smallest one, by at most half of it (``least``), however small they are. Calls that only move
entries move the bounds along and round nothing. Two backends may both be right and 2 E apart; from double precision none may
be farther than E.

The analysis is of first order. Where E is not small beside the result, the format says nothing about this result, and nothing
is compared (:data:`SMALL`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, jvp

from assay.papers.robust.neuri.models import DTYPES, Model, Node

#: Roundings inside an elementary function.
INSIDE = 8
#: A bound above this share of the result's largest entry says that the result is noise. What first order leaves out is of the
#: size of the bound times this share.
SMALL = 0.25
#: Entries of a call's inputs times entries of its result, up to which the Jacobian is written out.
_LARGEST = 1 << 22


@dataclass(frozen=True)
class Reference:
    """What a model returns in double precision, and how far off the narrow format may be.

    Attributes:
        outputs: one tensor for each output, float64.
        bounds: of the same shapes.
        stable: whether everything is finite and every bound small beside its result.
    """

    outputs: tuple[Tensor, ...]
    bounds: tuple[Tensor, ...]
    stable: bool


def unit_roundoff(dtype: str) -> float:
    """Half of the distance from 1 to the next larger number of the format."""
    return float(torch.finfo(DTYPES[dtype]).eps) / 2


def reference(model: Model) -> Reference:
    """Run in double precision, with the bounds.

    Raises:
        RuntimeError and others: what the calls raise where they are not valid.
    """
    unit = unit_roundoff(model.dtype)
    least = unit * float(torch.finfo(DTYPES[model.dtype]).smallest_normal)
    largest = float(torch.finfo(DTYPES[model.dtype]).max)
    values = [tensor.double() for tensor in model.tensors()]
    bounds = [torch.zeros_like(value) for value in values]
    stable = True
    for node in model.nodes:
        value, bound = step(node, [values[k] for k in node.operands], [bounds[k] for k in node.operands], unit, least)
        if not value.numel():  # of nothing there is nothing to compare
            return Reference((), (), False)
        values.append(value)
        bounds.append(bound)
        size = value.abs().max()
        # Written so that NaN is not stable either.
        fine = bool(size < largest / 16) and bool(bound.max() <= SMALL * size.clamp_min(unit))
        stable = stable and fine
        if not fine:
            break
    if not stable:
        return Reference((), (), False)
    return Reference(tuple(values[k] for k in model.outputs), tuple(bounds[k] for k in model.outputs), True)


def step(node: Node, inputs: list[Tensor], bounds: list[Tensor], unit: float, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """One call: its result and the bound of its error, float64.

    Args:
        node: the call.
        inputs: what it is given, float64.
        bounds: of the errors of these.
        unit: the format's unit roundoff.
        least: half of the distance between its smallest numbers, which is what rounding costs where the relative error is
            not small any more (in float16 below 6e-5).
    """
    operator, attributes = node.op, dict(node.attributes)
    inputs = [one.contiguous() for one in inputs]  # entries that share memory have no derivative of their own
    result = operator(inputs, attributes)
    if operator.rounding in ("moves", "kink"):
        bound = operator.errors(bounds, attributes)
        # Nothing is rounded, but other places of a kink may round to another side: a unit of the result.
        return result, bound if operator.rounding == "moves" else bound + unit * result.abs() + least
    inside = operator.inside(inputs, result, attributes)
    sizes = [one.abs().max().expand_as(one) if operator.centred else one.abs() for one in inputs]
    if operator.rounding == "each":
        roundings = float(INSIDE + len(inputs))
        moved = torch.zeros_like(result)
        for place, (bound, size) in enumerate(zip(bounds, sizes, strict=True)):
            changes = [torch.zeros_like(one) for one in inputs]
            changes[place] = bound + roundings * unit * size
            change: Tensor = jvp(lambda *them: operator(list(them), attributes), tuple(inputs), tuple(changes))[1]
            moved = moved + change.abs()
        return result, moved + roundings * (unit * inside + least)
    if sum(one.numel() for one in inputs) * result.numel() > _LARGEST:
        raise RuntimeError("the Jacobian of this call is too large to be written out")
    every = tuple(range(len(inputs)))
    jacobians = jacrev(lambda *them: operator(list(them), attributes), argnums=every)(*inputs)
    flat = [one.reshape(result.numel(), -1) for one in jacobians]
    counts = sum((one != 0).sum(dim=1) for one in flat)
    assert isinstance(counts, Tensor)
    roundings_each = (counts + INSIDE).to(result)
    total = roundings_each * (unit * inside.expand_as(result).flatten() + least)
    for one, bound, size in zip(flat, bounds, sizes, strict=True):
        total = total + one.abs() @ bound.flatten() + roundings_each * unit * (one.abs() @ size.flatten())
    return result, total.view_as(result)


def excess(results: tuple[Tensor, ...], against: Reference) -> float:
    """The largest error in units of its bound; above 1 no rounding explains it. Infinite for NaN or another shape."""
    worst = 0.0
    if len(results) != len(against.outputs):
        return float("inf")
    for got, right, bound in zip(results, against.outputs, against.bounds, strict=True):
        if got.shape != right.shape or not bool(torch.isfinite(got).all()):
            return float("inf")
        error = (got.detach().double() - right).abs()
        ratio = torch.where(error == 0, 0.0, error / bound)  # a bound of 0 is a result without roundings
        worst = max(worst, ratio.max().item())
    return worst
