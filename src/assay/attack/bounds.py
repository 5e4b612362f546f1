"""Interval bounds: what no attack whatsoever can exceed.

A box around an input is pushed through a network. What comes out contains the outputs of every point of the box; if the
label's logit is the largest in all of it, no change of the input within the box makes the network say something else. The
bounds are easily too wide, never too narrow: "not certified" says nothing, "certified" says all.

    low, high = interval_bounds(model, images - 0.1, images + 0.1)
    certified(model, images, labels, eps=0.1, clip=(0, 1))

An :class:`Interval` takes the place of the tensor in the network's own ``forward``, whose functions (``F.conv2d``, ``relu``,
``+``, ``flatten`` ...) are looked up among the rules here, so that functional networks and residual connections need
nothing. Bounds are differentiable in the network's parameters, for training on them.

**Rounding.** With ``rounding=True`` every step is widened by what floating-point sums of that length can be off, whatever
their order (Higham, "Accuracy and Stability of Numerical Algorithms", sec. 3.1: n u / (1 - n u) of the sum of magnitudes; 8
units in the last place for functions as ``exp``). The bounds then hold for the network as it is computed, too, as long as
its convolutions are computed as sums of products (not by Winograd's or Fourier's method).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack.balls import CHUNK, Clip, clipped, require_sense
from assay.errors import AssayError

#: Entries of the differences of last-layer rows that are held at once.
_HELD = 4_000_000


class Interval:
    """All tensors between two: what stands for the input of a network whose outputs are to be bounded.

    Args:
        low: (B, ...) smallest values.
        high: (B, ...) largest values.
        rounding: widen every step by what floating-point numbers can be off.
    """

    def __init__(self, low: Tensor, high: Tensor, rounding: bool = False) -> None:
        self.low, self.high, self.rounding = low, high, rounding
        #: Of the output of a linear layer: its input, weight (K, F) and bias.
        self.made_by: tuple[Interval, Tensor, Tensor | None] | None = None

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Interval:
        return _apply(function.__name__, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):  # a network may ask whether its output has `logits`
            raise AttributeError(name)
        if name in _FACTS:
            return getattr(self.low, name)
        return lambda *args, **kwargs: _apply(name, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.low)

    def __add__(self, other: Any) -> Interval:
        return _apply("add", (self, other), {})

    def __radd__(self, other: Any) -> Interval:
        return _apply("add", (self, other), {})

    def __iadd__(self, other: Any) -> Interval:
        return _apply("add_", (self, other), {})

    def __sub__(self, other: Any) -> Interval:
        return _apply("sub", (self, other), {})

    def __rsub__(self, other: Any) -> Interval:
        return _apply("sub", (other, self), {})

    def __neg__(self) -> Interval:
        return _apply("neg", (self,), {})

    def __mul__(self, other: Any) -> Interval:
        return _apply("mul", (self, other), {})

    def __rmul__(self, other: Any) -> Interval:
        return _apply("mul", (self, other), {})

    def __truediv__(self, other: Any) -> Interval:
        return _apply("div", (self, other), {})

    def __getitem__(self, key: Any) -> Interval:
        return self._with(self.low[key], self.high[key])

    def __bool__(self) -> bool:
        raise Unbounded("a network that chooses its way by the values of its inputs has no interval bounds here")

    def _with(self, low: Tensor, high: Tensor) -> Interval:
        return Interval(low, high, self.rounding)

    def _widened(self, low: Tensor, high: Tensor, size: Tensor, terms: float) -> Interval:
        """Wider by the error of sums of ``terms`` numbers whose magnitudes add up to ``size``."""
        if not self.rounding:
            return self._with(low, high)
        by = _gamma(terms, low) * size
        return self._with(low - by, high + by)

    def _magnitude(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())


class Unbounded(AssayError):
    """A network, or a part of one, whose outputs interval bounds cannot enclose."""


def _gamma(terms: float, like: Tensor) -> float:
    # Twice the unit roundoff, as eps is, for the intervals' own arithmetic on top of the network's.
    unit = torch.finfo(like.dtype).eps
    return 2 * terms * unit / max(1 - terms * unit, 0.5)


#: What is known of an interval without bounding anything: that of its tensors.
_FACTS = {"shape", "dtype", "device", "ndim", "dim", "size", "is_cuda", "layout", "requires_grad", "numel", "is_floating_point"}


def _apply(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Interval:
    if name in _FACTS:  # torch.numel(x) and the like
        return getattr(args[0].low, name)(*args[1:], **kwargs)  # type: ignore[no-any-return]
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
    in_place = kwargs.pop("inplace", False) or (name.endswith("_") and not name.endswith("__"))
    rule = _RULES.get(name.rstrip("_").lstrip("_"))
    if rule is None:
        raise Unbounded(
            f"Interval bounds have no rule for {name}: they know affine layers, batch normalisation, pooling, activations, sums "
            "and changes of shape."
        )
    found = rule(*args, **kwargs)
    if in_place and isinstance(args[0], Interval):
        first = args[0]
        first.low, first.high, first.made_by = found.low, found.high, found.made_by
        return first
    return found


# ---------------------------------------------------------------------------------------------------- rules


def _affine(x: Interval, apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Tensor | None, terms: int) -> Interval:
    """Centre and radius: W m + b plus or minus |W| r.

    ``apply(values, weight)`` is the layer without its bias; ``terms`` how many products are summed for an output.
    """
    if isinstance(weight, Interval) or not isinstance(x, Interval):
        raise Unbounded("Interval bounds have no rule for products of two things that both depend on the input.")
    centre, radius = (x.high + x.low) / 2, (x.high - x.low) / 2
    middle, spread = apply(centre, weight), apply(radius, weight.abs())
    if bias is not None:
        middle = middle + bias.view(-1, *[1] * (middle.dim() - 2)) if apply is not F.linear else middle + bias
    found = x._with(middle - spread, middle + spread)
    if x.rounding:
        size = apply(centre.abs() + radius, weight.abs())
        if bias is not None:
            size = size + (bias.abs() if apply is F.linear else bias.abs().view(-1, *[1] * (middle.dim() - 2)))
        found = x._widened(found.low, found.high, size, terms + 4)
    return found


def _linear(x: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    found = _affine(x, F.linear, weight, bias, weight.shape[1])
    found.made_by = (x._with(x.low, x.high), weight, bias)  # as it is now: the network may change it in place
    return found


def _convolution(function: Callable[..., Tensor], transposed: bool = False) -> Callable[..., Interval]:
    def rule(x: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Interval:
        # Products of one output: (C_out, C_in / groups, ...), or transposed (C_in, C_out / groups, ...), of which all may meet.
        terms = weight[:, 0].numel() if transposed else weight[0].numel()
        return _affine(x, lambda values, filters: function(values, filters, None, *args, **kwargs), weight, bias, terms)

    return rule


def _batch_norm(
    x: Interval,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    if training or running_mean is None or running_var is None:
        raise Unbounded("Interval bounds need batch normalisation with the statistics of training, in evaluation mode.")
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    shape = (-1, *[1] * (x.low.dim() - 2))
    ends = x.low * scale.view(shape), x.high * scale.view(shape)
    low, high = (end + shift.view(shape) for end in (torch.minimum(*ends), torch.maximum(*ends)))
    # Both ways to compute it, (x - mean) * scale + bias and x * scale + shift, are sums of three products.
    offset = (running_mean * scale).abs() + (0 if bias is None else bias.abs())
    return x._widened(low, high, x._magnitude() * scale.abs().view(shape) + offset.view(shape), 8)


def _both(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """A function that does not mix values, or whose every output is the largest of some: low to low, high to high."""

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        return x._with(function(x.low, *args, **kwargs), function(x.high, *args, **kwargs))

    return rule


def _rising(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """A function that rises in every entry, computed with rounding errors."""

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        low, high = function(x.low, *args, **kwargs), function(x.high, *args, **kwargs)
        return x._widened(low, high, torch.maximum(low.abs(), high.abs()), 8)

    return rule


def _averaging(function: Callable[..., Tensor], terms: Callable[..., float]) -> Callable[..., Interval]:
    """Sums with weights that are not negative: low to low, high to high, and an error that grows with their number.

    ``terms(values, result, *args, **kwargs)`` says how many numbers are summed for one.
    """

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        low, high = function(x.low, *args, **kwargs), function(x.high, *args, **kwargs)
        if not x.rounding:
            return x._with(low, high)
        return x._widened(low, high, function(x._magnitude(), *args, **kwargs), terms(x.low, low, *args, **kwargs) + 4)

    return rule


def _reduced(values: Tensor, result: Tensor, *_: Any, **__: Any) -> float:
    return values.numel() / max(result.numel(), 1)


def _in_kernel(values: Tensor, result: Tensor, kernel_size: int | Sequence[int], *_: Any, **__: Any) -> float:
    sides = (kernel_size,) * (values.dim() - 2) if isinstance(kernel_size, int) else tuple(kernel_size)
    return math.prod(sides)


def _in_bin(values: Tensor, result: Tensor, *_: Any, **__: Any) -> float:
    return math.prod(-(-before // after) + 1 for before, after in zip(values.shape[2:], result.shape[2:], strict=True))


def _valley(function: Callable[..., Tensor], bottom: float) -> Callable[..., Interval]:
    """A function that falls up to ``bottom`` and rises behind it."""

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        ends = function(x.low, *args, **kwargs), function(x.high, *args, **kwargs)
        nearest = torch.minimum(torch.maximum(torch.full_like(x.low, bottom), x.low), x.high)
        low, high = function(nearest, *args, **kwargs), torch.maximum(*ends)
        return x._widened(low, high, torch.maximum(x._magnitude(), high.abs()), 8)

    return rule


def _gelu(x: Interval, approximate: str = "none") -> Interval:
    bottom = -0.7524614220710163 if approximate == "tanh" else -0.7517915246935645
    return _valley(F.gelu, bottom)(x, approximate=approximate)


def _leaky_relu(x: Interval, negative_slope: float = 0.01) -> Interval:
    if negative_slope < 0:
        raise Unbounded(
            f"Interval bounds have no rule for a leaky_relu with the slope {negative_slope}: it must not be negative."
        )
    return _rising(F.leaky_relu)(x, negative_slope)


def _prelu(x: Interval, weight: Tensor) -> Interval:
    if bool((weight < 0).any()):
        raise Unbounded("Interval bounds have no rule for a prelu with a negative slope.")
    return _rising(F.prelu)(x, weight)


def _elu(x: Interval, alpha: float = 1.0) -> Interval:
    if alpha < 0:
        raise Unbounded(f"Interval bounds have no rule for an elu with alpha {alpha}: it must not be negative.")
    return _rising(F.elu)(x, alpha)


def _dropout(x: Interval, p: float = 0.5, training: bool = False) -> Interval:
    if training:
        raise Unbounded("Interval bounds have no rule for dropout in training mode: call model.eval().")
    return x


def _ends(value: Any) -> tuple[Any, Any]:
    return (value.low, value.high) if isinstance(value, Interval) else (value, value)


def _made(like: Sequence[Any], low: Tensor, high: Tensor, size: Tensor) -> Interval:
    rounding = any(value.rounding for value in like if isinstance(value, Interval))
    return Interval(low, high, rounding)._widened(low, high, size, 2)


def _add(x: Any, other: Any, alpha: float = 1) -> Interval:
    if alpha != 1:
        other = _mul(other, alpha) if isinstance(other, Interval) else other * alpha
    (low, high), (more_low, more_high) = _ends(x), _ends(other)
    low, high = low + more_low, high + more_high
    return _made((x, other), low, high, torch.maximum(low.abs(), high.abs()))


def _sub(x: Any, other: Any, alpha: float = 1) -> Interval:
    return _add(x, _neg(other) if isinstance(other, Interval) else -other, alpha=alpha)


def _neg(x: Interval) -> Interval:
    return x._with(-x.high, -x.low)


def _mul(x: Any, other: Any) -> Interval:
    products = torch.stack([torch.as_tensor(one * two) for one in _ends(x) for two in _ends(other)])
    low, high = products.amin(dim=0), products.amax(dim=0)
    return _made((x, other), low, high, products.abs().amax(dim=0))


def _div(x: Any, other: Any) -> Interval:
    if isinstance(other, Interval):
        raise Unbounded("Interval bounds have no rule for a division by something that depends on the input.")
    ends = x.low / other, x.high / other
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    return _made((x,), low, high, torch.maximum(low.abs(), high.abs()))


def _joined(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    def rule(parts: Sequence[Any], *args: Any, **kwargs: Any) -> Interval:
        ends = [_ends(part) for part in parts]
        rounding = any(part.rounding for part in parts if isinstance(part, Interval))
        low, high = (function([end[side] for end in ends], *args, **kwargs) for side in (0, 1))
        return Interval(low, high, rounding)

    return rule


def _matmul(x: Any, other: Any) -> Interval:
    if isinstance(x, Interval) and isinstance(other, Tensor) and other.dim() == 2:
        return _linear(x, other.t())
    raise Unbounded("Interval bounds have no rule for products of two things that both depend on the input.")


def _pad(x: Interval, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Interval:
    return x._with(F.pad(x.low, pad, mode, value), F.pad(x.high, pad, mode, value))


def _interpolate(x: Interval, *args: Any, **kwargs: Any) -> Interval:
    if kwargs.get("mode", "nearest") == "bicubic" or kwargs.get("antialias"):
        raise Unbounded("Interval bounds have no rule for this interpolation, whose weights may be negative.")
    # Between neighbours, or over the bin that becomes one value.
    return _averaging(F.interpolate, lambda values, result, *_, **__: 8 + _in_bin(values, result))(x, *args, **kwargs)


def _max_pool(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    def rule(x: Interval, *args: Any, return_indices: bool = False, **kwargs: Any) -> Interval:
        if return_indices:
            raise Unbounded("Interval bounds have no rule for where the maximum of a pooling lies.")
        return _both(function)(x, *args, **kwargs)

    return rule


def _shape(name: str) -> Callable[..., Interval]:
    return _both(lambda values, *args, **kwargs: getattr(values, name)(*args, **kwargs))


_SHAPES = (
    *(
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "movedim",
        "t",
        "squeeze",
        "unsqueeze",
        "expand",
        "repeat",
    ),
    *("contiguous", "to", "float", "double", "clone", "narrow", "select", "roll", "flip"),
)
_RULES: dict[str, Callable[..., Interval]] = {
    **{name: _shape(name) for name in _SHAPES},
    "linear": _linear,
    "matmul": _matmul,
    **{f"conv{n}d": _convolution(getattr(F, f"conv{n}d")) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution(getattr(F, f"conv_transpose{n}d"), transposed=True) for n in (1, 2, 3)},
    "batch_norm": _batch_norm,
    **{f"max_pool{n}d": _max_pool(getattr(F, f"max_pool{n}d")) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _max_pool(getattr(F, f"adaptive_max_pool{n}d")) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _averaging(getattr(F, f"avg_pool{n}d"), _in_kernel) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _averaging(getattr(F, f"adaptive_avg_pool{n}d"), _in_bin) for n in (1, 2, 3)},
    "mean": _averaging(torch.mean, _reduced),
    "sum": _averaging(torch.sum, _reduced),
    "amax": _both(torch.amax),
    "amin": _both(torch.amin),
    "relu": _both(F.relu),
    "relu6": _both(F.relu6),
    "hardtanh": _both(F.hardtanh),
    "clamp": _both(torch.clamp),
    "clamp_min": _both(torch.clamp_min),
    "clamp_max": _both(torch.clamp_max),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "elu": _elu,
    "celu": _rising(F.celu),
    "selu": _rising(F.selu),
    "sigmoid": _rising(torch.sigmoid),
    "tanh": _rising(torch.tanh),
    "softplus": _rising(F.softplus),
    "softsign": _rising(F.softsign),
    "log_sigmoid": _rising(F.logsigmoid),
    "hardsigmoid": _rising(F.hardsigmoid),
    "exp": _rising(torch.exp),
    "gelu": _gelu,
    "silu": _valley(F.silu, -1.2784645427610738),
    "mish": _valley(F.mish, -1.1924564),
    "hardswish": _valley(F.hardswish, -1.5),
    "abs": _valley(torch.abs, 0.0),
    "square": _valley(torch.square, 0.0),
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "dropout2d": _dropout,
    "identity": lambda x: x,
    "add": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "true_divide": _div,
    "cat": _joined(torch.cat),
    "concat": _joined(torch.cat),
    "stack": _joined(torch.stack),
    "pad": _pad,
    "interpolate": _interpolate,
}


# ---------------------------------------------------------------------------------------------------- networks


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the modes that there were; gradients stay as they are."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _through(model: nn.Module, low: Tensor, high: Tensor, rounding: bool) -> Interval:
    if low.shape != high.shape or bool((low > high).any()):
        raise ValueError(f"low must lie below high, of one shape, not {tuple(low.shape)} and {tuple(high.shape)}")
    with evaluating(model):
        try:
            found: Any = model(Interval(low, high, rounding))
        except TypeError as error:  # a function of torch that takes no stand-in for a tensor
            raise Unbounded(
                f"Interval bounds do not get through this network: {str(error).splitlines()[0].rstrip('.')}."
            ) from error
    if not isinstance(found, Interval):
        raise Unbounded(f"Interval bounds need a network that returns one tensor, and this one returned {type(found).__name__}.")
    return found


def interval_bounds(model: nn.Module, low: Tensor, high: Tensor, *, rounding: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest and largest outputs of a network on a box of inputs, or wider.

    Args:
        model: in evaluation mode for as long as this takes; gradients flow to its parameters.
        low: (B, ...) smallest entries of the inputs.
        high: (B, ...) largest entries.
        rounding: widen the bounds by what floating-point arithmetic can be off.

    Returns:
        Two tensors of the output's shape, between which the outputs of all inputs of the box lie.

    Raises:
        AssayError: a function in the network for which there is no rule; the sentence names it.
    """
    found = _through(model, low, high, rounding)
    return found.low, found.high


def worst_margins(
    model: nn.Module, low: Tensor, high: Tensor, labels: Tensor, *, rounding: bool = False, elide: bool = True
) -> Tensor:
    """Upper bounds of every logit minus the label's over a box of inputs; 0 for the label itself.

    With shares of several classes as labels, it is the mean of the logits with these shares that is taken off.

    Where the network ends in a linear layer, the difference of two logits is bounded as one linear function of the layer's
    input, which is tighter than the difference of their bounds (elision of the last layer, Gowal et al. 2019).

    Args:
        model: maps inputs to logits (B, C).
        low: (B, ...) smallest entries of the inputs.
        high: (B, ...) largest entries.
        labels: (B,) int64, or (B, C) float shares of the classes that add up to 1.
        rounding: widen the bounds by what floating-point arithmetic can be off.
        elide: ``False`` takes the difference of the bounds also there, to see what is lost.

    Returns:
        (B, C). The logarithm of the sum of their exponentials is an upper bound of the cross-entropy in the box; where all but
        the label's are below 0, no input of the box is classified otherwise.

    Raises:
        AssayError: a function in the network for which there is no rule.
    """
    found = _through(model, low, high, rounding)
    if found.low.dim() != 2:
        raise Unbounded(f"Interval bounds need logits (B, C), and this network gives {tuple(found.low.shape)}.")
    shares = labels.to(found.dtype) if labels.is_floating_point() else F.one_hot(labels, found.shape[1]).to(found.dtype)
    if elide and found.made_by is not None and found.made_by[0].low.dim() == 2:
        worst = _elided(*found.made_by, shares)
    else:
        # z_j - sum_y s_y z_y, in which z_j itself stands with 1 - s_j.
        others = (shares * found.low).sum(dim=1, keepdim=True) - shares * found.low
        worst = (1 - shares) * found.high - others
        if rounding:
            worst = worst + _gamma(found.shape[1] + 4, worst) * (
                found._magnitude() + found._magnitude().amax(dim=1, keepdim=True)
            )
    return worst if labels.is_floating_point() else worst.scatter(1, labels.unsqueeze(1), 0.0)


def _elided(x: Interval, weight: Tensor, bias: Tensor | None, shares: Tensor) -> Tensor:
    """(W_j - W_y) m + |W_j - W_y| r + b_j - b_y, with W_y = sum_y s_y W_y where there are shares: (B, C)."""
    centre, radius = (x.high + x.low) / 2, (x.high - x.low) / 2
    parts = []
    for rows in torch.arange(len(shares), device=shares.device).split(max(1, _HELD // weight.numel())):
        own = shares[rows]
        difference = weight - (own @ weight).unsqueeze(1)  # (b, C, F)
        worst = torch.einsum("bcf,bf->bc", difference, centre[rows]) + torch.einsum("bcf,bf->bc", difference.abs(), radius[rows])
        if bias is not None:
            worst = worst + bias - (own @ bias).unsqueeze(1)
        if x.rounding:
            # The network computes two sums and compares them: both errors count, and the rounding of the difference.
            size = F.linear(centre[rows].abs() + radius[rows], weight.abs(), None if bias is None else bias.abs())
            both = size + (own * size).sum(dim=1, keepdim=True)
            worst = worst + _gamma(weight.shape[1] + weight.shape[0] + 6, worst) * both
        parts.append(worst)
    return torch.cat(parts)


@torch.no_grad()
def certified(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, clip: Clip = None, rounding: bool = True
) -> Tensor:
    """Which inputs are proved to keep their label whatever happens to them, as long as no entry changes by more than ``eps``.

    The ball of radius ``eps`` in L2 lies in this box, so that the proof is one for L2 as well.

    Args:
        model: maps inputs to logits (B, C).
        inputs: (B, ...) float, within ``clip``.
        labels: (B,) int64; an input that is classified otherwise is not certified.
        eps: largest change of an entry.
        clip: range of valid entries, as ``(0, 1)``: nothing is asked of inputs outside it.
        rounding: count floating-point errors in; without, bounds are those of exact arithmetic, computed in floating point.

    Returns:
        (B,) bool. ``False`` says only that the bounds were too wide.

    Raises:
        AssayError: a function in the network for which there is no rule; the sentence names it.
    """
    require_sense(inputs, eps, math.inf, clip)
    found = []
    for part, some in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
        low, high = part - eps, part + eps
        if rounding:  # outwards, so that all points an attack could compute are inside
            low, high = (
                torch.nextafter(low, torch.full_like(low, -math.inf)),
                torch.nextafter(high, torch.full_like(high, math.inf)),
            )
        worst = worst_margins(model, clipped(low, clip), clipped(high, clip), some, rounding=rounding)
        own = F.one_hot(some, worst.shape[1]).bool()
        found.append((worst.masked_fill(own, -math.inf) < 0).all(dim=1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool, device=inputs.device)
