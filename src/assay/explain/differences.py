"""DeepLIFT with the rescale rule: differences from a reference instead of slopes, for any network.

What goes back through a function are multipliers m with sum_i m_i (x_i - x0_i) = y - y0, where x0 and y0 are what the function
saw and gave on a reference input. So the attributions sum to the difference of the scores. Multipliers are

- the gradient for what is affine;
- (y - y0) / (x - x0) for functions of one number ("rescale");
- for a maximum, the winner now and the winner on the reference share the difference;
- for everything else (products of two hidden values, layer normalisation, softmax, attention, recurrent layers) the mean
  gradient on the straight line from x0 to x: exact for products, where it splits the mixed term evenly, and for normalisations,
  and by Gauss-Legendre quadrature otherwise.

Source: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation Differences", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as tree

from assay.errors import AssayError
from assay.explain.backward import (
    AFFINE,
    CARRIED,
    ELEMENTWISE,
    MAXIMA,
    PRODUCTS,
    Back,
    Call,
    Given,
    Rule,
    Rules,
    backward,
    explained,
    like,
    linked,
)
from assay.explain.backward import scores as scores_of
from assay.explain.normalising import Normalisation


def deeplift(
    model: nn.Module,
    inputs: Given,
    target: Tensor | int,
    *,
    baseline: float | Tensor | tuple[float | Tensor, ...] = 0.0,
    average: bool = False,
    points: int = 8,
) -> Given:
    """What each input contributed to a score, relative to a reference input (rescale rule).

    Take logits, not probabilities. A comparison inside the network (``torch.where(x > 0, ...)``) is taken as it is at the input.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.
        baseline: the reference: a number or a tensor (1, ...) or (B, ...); for several inputs a number for all or one of these
            for each.
        average: take each of the R examples in ``baseline`` (R, ...) as a reference for every input, and the mean of what they
            give; for several inputs they go together.
        points: gradients for the mean gradient of functions without a rule of their own, as softmax.

    Returns:
        Attributions of the inputs' shape, in units of the score. They sum to the score minus the reference's (with
        ``average`` to the score minus the mean of the references'), but for what the quadrature misses.

    Raises:
        AssayError: the reference does not fit the inputs.
    """
    with explained(model, inputs) as leaves:
        starts = references(leaves, baseline, average)
        total = [torch.zeros_like(leaf) for leaf in leaves]
        for reference in starts:
            multipliers = _multipliers(model, leaves, reference, target, points)
            for place, (m, leaf, start) in enumerate(zip(multipliers, leaves, reference, strict=True)):
                if leaf.is_floating_point():
                    total[place] = total[place] + m * (leaf.detach() - start)
        return like(inputs, [one / len(starts) for one in total])


def references(
    leaves: tuple[Tensor, ...], baseline: float | Tensor | tuple[float | Tensor, ...], average: bool
) -> list[tuple[Tensor, ...]]:
    """The references, each with one tensor (1, ...) or (B, ...) for every input."""
    given = baseline if isinstance(baseline, tuple) else (baseline,) * len(leaves)
    if len(given) != len(leaves):
        raise AssayError(f"There are {len(leaves)} inputs and {len(given)} references: give one for each.")
    fitting = []
    for leaf, start in zip(leaves, given, strict=True):
        if not leaf.is_floating_point():
            fitting.append(leaf)  # integers have no difference: they are the same in the reference
            continue
        start = torch.as_tensor(start, dtype=leaf.dtype, device=leaf.device).detach()
        rows = len(start) if start.dim() == leaf.dim() else 1
        try:
            fitting.append(start.expand(rows, *leaf.shape[1:]))
        except RuntimeError:
            rows = -1
        if rows < 0 or (not average and rows not in (1, len(leaf))):
            raise AssayError(f"The reference {tuple(start.shape)} does not fit inputs {tuple(leaf.shape)}.")
    floats = [start for leaf, start in zip(leaves, fitting, strict=True) if leaf.is_floating_point()]
    count = max(len(start) for start in floats) if average else 1
    if average and any(len(start) not in (1, count) for start in floats):
        raise AssayError("The references of several inputs go together: give equally many for each.")
    if not average:
        return [tuple(fitting)]
    return [
        tuple(
            start[place if len(start) > 1 else 0][None] if leaf.is_floating_point() else start
            for leaf, start in zip(leaves, fitting, strict=True)
        )
        for place in range(count)
    ]


def _multipliers(
    model: nn.Module, leaves: tuple[Tensor, ...], reference: tuple[Tensor, ...], target: Tensor | int, points: int
) -> list[Tensor]:
    # One reference for all is run as one example if the network lets it: most of the cost of a reference is saved.
    alone = all(len(start) == 1 for leaf, start in zip(leaves, reference, strict=True) if leaf.is_floating_point())
    alone = alone and all(leaf.is_floating_point() for leaf in leaves)
    try:
        if alone:
            return _with_reference(model, leaves, reference, target, points)
    except _Mismatch:
        pass
    whole = tuple(start.expand_as(leaf) for leaf, start in zip(leaves, reference, strict=True))
    return _with_reference(model, leaves, whole, target, points)


def _with_reference(
    model: nn.Module, leaves: tuple[Tensor, ...], reference: tuple[Tensor, ...], target: Tensor | int, points: int
) -> list[Tensor]:
    starts = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in reference]
    with Recorded() as recorded:
        model(*starts)
    with Rescaled(recorded.calls, points):
        start = scores_of(model(*leaves), target)
    return backward(start, leaves)


class _Mismatch(AssayError):
    """The reference took another way through the network than the inputs."""


#: name, carriers and output of a call on the reference
Reference = tuple[str, list[Tensor], Any]


class Recorded(Rules):
    """Keeps what the functions that need a rule saw and gave on a reference, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Reference] = []

    def rule(self, call: Call) -> Rule | None:
        """Nothing is changed."""
        if affine(call):
            return None

        def rule(*values: Tensor) -> tuple[Any, Back]:
            leaves, out = linked(call.run, *values)
            # Copies: what follows may work in place.
            self.calls.append((call.name, [v.clone() for v in values], tree.tree_map(lambda one: one.detach().clone(), out)))
            return tree.tree_map(lambda one: one.detach(), out), lambda *coming: [None] * len(leaves)

        return rule


class Rescaled(Rules):
    """Multipliers instead of gradients.

    Args:
        calls: what a :class:`Recorded` kept of the reference.
        points: of the quadrature.
    """

    def __init__(self, calls: list[Reference], points: int = 8) -> None:
        super().__init__()
        self._calls = iter(calls)
        self._points = points

    def reference(self, call: Call) -> tuple[list[Tensor], Any]:
        """Carriers and output of the same call on the reference."""
        name, starts, out = next(self._calls, ("", [], None))
        fits = len(starts) == len(call.places) and all(
            start.shape == value.shape or (start.dim() and start.shape[1:] == value.shape[1:] and len(start) == 1)
            for start, value in zip(starts, call.carriers, strict=False)
        )
        if name != call.name or not fits:
            raise _Mismatch(
                f"DeepLIFT compares input and reference step by step, but the network takes another way on the reference: "
                f"{name or 'nothing'} instead of {call.name}."
            )
        return starts, out

    def rule(self, call: Call) -> Rule | None:
        """A multiplier for whatever is not affine."""
        if affine(call):
            return None
        starts, out = self.reference(call)
        if call.name in ELEMENTWISE and len(call.places) == 1:
            return partial(_rescale, call, starts[0], out)
        if call.name in MAXIMA and (largest := winners(call)):
            return partial(_share, call, largest, starts[0], out)
        if (norm := Normalisation.of(call)) is not None:
            return partial(_normalise, call, norm, starts[0])
        count = 1 if call.name in PRODUCTS and len(call.places) == 2 else self._points
        return partial(_mean_gradient, call, starts, count)


def affine(call: Call) -> bool:
    """Is this call affine in the inputs?"""
    if call.name == "div":
        return call.places == [0]
    if call.name in ("add", "sub") or (call.name in CARRIED and len(call.places) == 1):
        return True
    if call.name == "instance_norm" and len(call.places) == 1:  # by the statistics of a training
        return Normalisation.of(call) is None
    return call.name in AFFINE and (len(call.places) == 1 or call.name in ("index_add", "scatter_add", "interpolate"))


def near(value: Tensor, start: Tensor) -> Tensor:
    """Where two values are the same but for rounding, so that their quotient says nothing."""
    tiny = 8 * torch.finfo(value.dtype).eps
    return (value - start).abs() <= tiny * torch.maximum(value.abs(), start.abs())


def _rescale(call: Call, start: Tensor, out_start: Tensor, value: Tensor) -> tuple[Tensor, Back]:
    out: Tensor = call.run(value)
    same = near(value, start)
    multiplier = (out - out_start) / torch.where(same, 1, value - start)
    if same.any():
        slope = value > 0 if call.name == "relu" else _slope(call, value)
        multiplier = torch.where(same, slope.to(value.dtype), multiplier)
    return out, lambda coming: (coming * multiplier,)


def _normalise(call: Call, norm: Normalisation, start: Tensor, value: Tensor) -> tuple[Tensor, Back]:
    end = value.clone()
    return call.run(value), lambda coming: (norm.mean_gradient(coming, start, end),)


def _slope(call: Call, value: Tensor) -> Tensor:
    (leaf,), out = linked(call.run, value)
    return torch.autograd.grad(out, leaf, torch.ones_like(out))[0]


def _mean_gradient(call: Call, starts: list[Tensor], count: int, *values: Tensor) -> tuple[Any, Back]:
    out = call.run(*values)
    places, weights = np.polynomial.legendre.leggauss(count)
    ends = [value.clone() for value in values]

    def back(*coming: Tensor) -> list[Tensor]:
        total = [torch.zeros_like(value) for value in values]
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            leaves, found = linked(call.run, *(torch.lerp(s, e, float(place)) for s, e in zip(starts, ends, strict=True)))
            pairs = [(o, c) for o, c in zip(tree.tree_leaves(found), coming, strict=True) if o.requires_grad]
            if not pairs:
                return total
            gradients = torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs], materialize_grads=True)
            total = [t + float(weight) * g for t, g in zip(total, gradients, strict=True)]
        return total

    return out, back


def _share(call: Call, largest: Largest, start: Tensor, out_start: Any, value: Tensor) -> tuple[Any, Back]:
    """With M the larger of y and y0, the winner now gets M - y0, the winner on the reference y - M; the same winner all."""
    out = call.run(value)
    (now, won), (then, won_then) = largest(value), largest(start)
    top = torch.maximum(now, then)
    gains, rest, won_then = top - then, now - top, won_then.expand_as(won)
    difference, same = value - start, near(value, start)

    def back(coming: Tensor, *_: Any) -> tuple[Tensor]:
        signal = coming.reshape(now.shape)
        credit = spread(call, signal * gains, won, difference.shape) + spread(call, signal * rest, won_then, difference.shape)
        slope = spread(call, signal, won, difference.shape)
        return (torch.where(same, slope, credit / torch.where(same, 1, difference)),)

    return out, back


#: From values to maxima and their positions in what each was taken from; both (..., P), what is taken from being flat.
Largest = Callable[[Tensor], tuple[Tensor, Tensor]]


def winners(call: Call) -> Largest | None:
    """The function of a call of one of :data:`~assay.explain.backward.MAXIMA`; None if it is not of one tensor."""
    if len(call.places) != 1:
        return None
    args, kwargs = call.arguments(*call.carriers)
    if "pool" in call.name:
        name = call.name.removesuffix("_with_indices")
        more = {key: given for key, given in kwargs.items() if key != "return_indices"}
        pool, spatial = getattr(F, name + "_with_indices"), int(name[-2])

        def pooled(value: Tensor) -> tuple[Tensor, Tensor]:
            out, places = pool(value, *args[1:], **more)
            return out.flatten(-spatial), places.flatten(-spatial)

        return pooled
    dims = _dims(call)
    if dims is None:
        return None

    def largest(value: Tensor) -> tuple[Tensor, Tensor]:
        rows = value.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
        out, places = rows.max(dim=-1, keepdim=True)
        return out, places

    return largest


def spread(call: Call, signal: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Signals (..., P) added up at their positions, in the shape of what the maxima were taken of."""
    lead = signal.shape[:-1]
    rows = signal.new_zeros(*lead, shape.numel() // lead.numel()).scatter_add_(-1, places, signal)
    dims = None if "pool" in call.name else _dims(call)
    if dims is None:
        return rows.reshape(shape)
    kept = [size for place, size in enumerate(shape) if place not in dims]
    return rows.reshape(*kept, *(shape[dim] for dim in dims)).movedim(tuple(range(-len(dims), 0)), dims)


def _dims(call: Call) -> tuple[int, ...] | None:
    """Over which dimensions ``max`` or ``amax`` is taken, counted from the front; None for all."""
    args, kwargs = call.arguments(*call.carriers)
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dims is None or isinstance(dims, Tensor):
        return None
    count = call.carriers[0].dim()
    return tuple(dim % count for dim in (dims if isinstance(dims, list | tuple) else (dims,)))
