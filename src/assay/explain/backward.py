"""Sending something other than the gradient backwards through a network, whatever the network is made of.

Deconvnet, guided backpropagation, DeepLIFT and layer-wise relevance propagation all walk the network backwards as the gradient
does, and differ from it at single functions: at a ReLU, at a weighted sum, at a maximum. Here such a method is a
:class:`Rules`: as long as it is entered, it sees every function of torch that is called on something that depends on the
explained inputs, and may put another backward step in its place. The forward values stay what they are.

Functions are caught, not modules. So ``nn.ReLU``, ``F.relu``, ``x.relu()`` and ``x.clamp(min=0)`` are the same to a rule, a
module may be used in several places, residual connections need nothing, and no hook is left on the network. TorchScript runs
past Python and cannot be caught; :func:`explained` refuses it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as tree

from assay.errors import AssayError
from assay.nn.frozen import frozen

Inputs = Tensor | tuple[Tensor, ...]
#: One tensor for one, a tuple for a tuple.
Given = TypeVar("Given", Tensor, tuple[Tensor, ...])

#: From what goes back into a function's outputs to what goes back out of its inputs.
Back = Callable[..., Sequence[Tensor | None]]
#: ``values -> (output, back)``: the forward values of a function, and its step backwards.
Rule = Callable[..., tuple[Any, Back]]

# ---------------------------------------------------------------------------------------- what functions are called

_OPERATORS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add", "__sub__": "sub", "__isub__": "sub", "__rsub__": "sub", "rsub": "sub",
    "subtract": "sub", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "multiply": "mul", "__truediv__": "div",
    "__itruediv__": "div", "__div__": "div", "true_divide": "div", "divide": "div", "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__pow__": "pow", "__ipow__": "pow", "__rpow__": "rpow", "__matmul__": "matmul", "__rmatmul__": "matmul",
    "__imatmul__": "matmul", "mm": "matmul", "bmm": "matmul", "mv": "matmul", "dot": "matmul", "__neg__": "neg", "__abs__": "abs",
    "absolute": "abs", "negative": "neg", "clip": "clamp", "_log_softmax": "log_softmax", "_softmax": "softmax",
    "special_expit": "sigmoid",
}  # fmt: skip
_IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Functions that only carry values from one place to another (or tell something about a tensor): their gradient carries back.
MOVES = _words("""
    __get__ __getitem__ __setitem__ __len__ size dim numel stride is_floating_point view view_as reshape reshape_as flatten
    unflatten squeeze unsqueeze permute transpose swapaxes swapdims t movedim moveaxis expand expand_as repeat repeat_interleave
    tile broadcast_to contiguous clone to float double half cpu cuda type_as cat concat concatenate stack hstack vstack chunk
    split split_with_sizes tensor_split unbind select narrow index_select index_copy gather scatter take
    take_along_dim roll flip pad constant_pad_nd unfold fold dropout dropout1d dropout2d dropout3d alpha_dropout pixel_shuffle
    feature_alpha_dropout pixel_unshuffle masked_fill masked_select where diagonal triu tril atleast_1d atleast_2d atleast_3d
    identity copy alias
""")
#: Functions whose results do not move with their inputs.
CONSTANT = _words("""
    new_tensor new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like rand_like randn_like detach item
    tolist argmax argmin argsort eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __bool__ __hash__ __repr__ isnan
    isinf isfinite any all bool int long type get_device nelement is_contiguous is_complex logical_and logical_or logical_not
    count_nonzero nonzero equal allclose
""")
#: Functions that are affine in what carries, as long as one argument does.
AFFINE = _words("""
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution batch_norm avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum nansum add sub neg mul div matmul addmm
    baddbmm addbmm einsum bilinear tensordot interpolate cumsum lerp outer inner addcmul index_add scatter_add diff
""")
#: Of these, the ones that are sums of products when two arguments carry.
PRODUCTS = _words("linear mul matmul einsum bilinear tensordot baddbmm addbmm addmm outer inner")
#: Functions of one number, each entry for itself.
ELEMENTWISE = _words("""
    relu relu6 leaky_relu rrelu elu selu celu gelu silu mish softplus sigmoid logsigmoid tanh hardtanh hardswish hardsigmoid
    hardshrink softshrink tanhshrink softsign threshold prelu exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square abs pow rpow
    rdiv sin cos tan asin acos atan arctan sinh cosh erf erfc clamp clamp_min clamp_max reciprocal logit sinc
""")
#: Functions that pick the largest of several values.
MAXIMA = _words("""
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax max
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
""")
#: Functions that carry one tensor on as a move does, and write something else into some of its places, or look up its rows.
CARRIED = _words("index_fill index_put masked_scatter embedding")
# Functions of torch's own that are written in Python out of others: they are entered.
_COMPOSED = frozenset({"multi_head_attention_forward"})
_BOTH = frozenset({"maximum", "minimum"})


@functools.cache
def _name(func: Any) -> tuple[str, bool]:
    """What a function is called, however it is written, and whether that name means in place."""
    name = getattr(func, "__name__", type(func).__name__).split(".")[0]  # operators of an exported program: "relu.default"
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return _OPERATORS.get(name, name.rstrip("_") if in_place else name), in_place


class Call:
    """One function being called on what depends on the explained inputs.

    Args:
        name: the function's, see :data:`MOVES` and the others: ``add`` for ``a + b``, ``a += b`` and ``torch.add(a, b)``.
        func: the function.
        leaves: its arguments, flat.
        spec: how the flat ones become arguments again.
    """

    def __init__(self, name: str, func: Callable[..., Any], leaves: list[Any], spec: tree.TreeSpec, in_place: bool) -> None:
        self.name, self.func, self._leaves, self._spec, self.in_place = name, func, leaves, spec, in_place
        #: positions of the tensors that depend on the inputs, among all arguments
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

    @property
    def carriers(self) -> list[Tensor]:
        """The tensors that depend on the inputs, in order."""
        return [self._leaves[place] for place in self.places]

    def run(self, *values: Tensor) -> Any:
        """The function with other values in the places of the carriers; nothing is changed in place."""
        args, kwargs = self.arguments(*values)
        if self.in_place:
            args = (args[0].clone(), *args[1:])
        return self.func(*args, **kwargs)

    def arguments(self, *values: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other values in the places of the carriers."""
        leaves = list(self._leaves)
        for place, value in zip(self.places, values, strict=True):
            leaves[place] = value
        args, kwargs = tree.tree_unflatten(leaves, self._spec)
        return args, kwargs


def linked(run: Callable[..., Any], *values: Tensor) -> tuple[list[Tensor], Any]:
    """Fresh leaves of those values, and the function of them with its graph."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        return leaves, run(*leaves)


class Rules(TorchFunctionMode):
    """Within the block, functions get the backward steps that :meth:`rule` gives them."""

    def rule(self, call: Call) -> Rule | None:
        """The rule for one call; None leaves it its gradient."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name, in_place = _name(func)
        if name in CONSTANT:
            return func(*args, **kwargs)
        if name in MOVES:
            return self.moved(func, args, kwargs)
        leaves, spec = tree.tree_flatten((args, kwargs))
        in_place = in_place or bool(kwargs.get("inplace"))
        call = Call(name, func, leaves, spec, in_place)
        if not call.places or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if name in _COMPOSED:
            with self:
                return _entered(func)(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            with self:
                return _attention(*args, **kwargs)
        if name in _BOTH and len(call.places) == 2:
            with self:  # max(a, b) = b + relu(a - b)
                first, second = call.carriers
                least = first - torch.relu(first - second)
                return least if name == "minimum" else first + second - least
        if (parts := _segments(call)) is not None:
            with self:
                return parts()
        if name == "batch_norm" and _mixes(call):
            raise AssayError("A batch normalisation without running statistics mixes examples: no single one can be explained.")
        return self.perform(call)

    def moved(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of one of :data:`MOVES`."""
        return func(*args, **kwargs)

    def perform(self, call: Call) -> Any:
        """The call, with its rule."""
        rule = self.rule(call)
        args, kwargs = call.arguments(*call.carriers)
        if rule is None:
            return call.func(*args, **kwargs)
        if call.in_place:
            args[0].copy_(step(rule, *(carrier.clone() for carrier in call.carriers)))
            return args[0]
        out = step(rule, *call.carriers)
        return torch.return_types.max(out) if call.name == "max" and isinstance(out, tuple) else out


def _mixes(call: Call) -> bool:
    args, kwargs = call.arguments(*call.carriers)
    return bool(kwargs.get("training", args[5] if len(args) > 5 else False))


def step(rule: Rule, *carriers: Tensor) -> Any:
    """The forward values of a rule, linked to what it is applied to by the rule's backward step."""
    return _Step.apply(rule, *carriers)  # type: ignore[no-untyped-call]


class _Step(torch.autograd.Function):
    """A function with its rule."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *values: Tensor) -> Any:
        out, ctx.back = rule(*values)
        ctx.mark_non_differentiable(*(one for one in tree.tree_leaves(out) if not one.is_floating_point()))
        return out

    @staticmethod
    def backward(ctx: Any, *coming: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.back(*coming))


@functools.cache
def _entered(func: types.FunctionType) -> types.FunctionType:
    """The same function of torch, but without its question whether somebody wants to catch it as a whole."""
    known = {**func.__globals__, "has_torch_function": lambda _: False}
    entered = types.FunctionType(func.__code__, known, func.__name__, func.__defaults__, func.__closure__)
    entered.__kwdefaults__ = func.__kwdefaults__
    return entered


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention (..., L, D) in its parts; dropout is off, for networks are explained in evaluation mode."""
    if enable_gqa:
        key, value = (one.repeat_interleave(query.size(-3) // one.size(-3), -3) for one in (key, value))
    scores = torch.matmul(query * (query.size(-1) ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.matmul(F.softmax(scores, dim=-1), value)


def _segments(call: Call) -> Callable[[], Tensor] | None:
    """A call of ``torch.segment_reduce`` for maxima, as one maximum for each segment; ``None`` for anything else."""
    if call.name != "segment_reduce" or len(call.places) != 1:
        return None
    args, kwargs = call.arguments(*call.carriers)
    lengths = kwargs.get("lengths")
    if (args[1] if len(args) > 1 else kwargs.get("reduce")) != "max" or lengths is None or lengths.dim() != 1:
        return None
    if kwargs.get("axis", 0) != 0 or kwargs.get("initial") is not None or not lengths.all():
        return None
    (values,) = call.carriers
    return lambda: torch.stack([part.amax(dim=0) for part in values.split(lengths.tolist())])


# ------------------------------------------------------------------------------------- what all methods have in common


class _Several(nn.Module):
    """A network of several inputs as one of positions, for :func:`assay.nn.frozen.frozen`."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.given = model, inputs

    def forward(self, places: Tensor) -> Any:
        return self.model(*(one[places] for one in self.given))


@contextmanager
def explained(model: nn.Module, inputs: Inputs) -> Iterator[tuple[Tensor, ...]]:
    """Within the block the network is in evaluation mode and its parameters take no gradient; yields leaves for the inputs.

    Leaves are copies that take gradients; tensors of integers (words, masks) stay as they are. Everything is put back
    afterwards, also after an error.

    Args:
        model: the network.
        inputs: what it is called with: one tensor (B, ...) or a tuple of several.

    Raises:
        AssayError: no input is of floating point, they are of different lengths, or a part of the network is TorchScript.
    """
    several = _tuple(inputs)
    if not any(one.is_floating_point() for one in several):
        raise AssayError(
            "Inputs of integers have no attributions: explain the network behind its embedding, with the vectors of the words."
        )
    if len({len(one) for one in several}) > 1:
        raise AssayError(f"The inputs have different numbers of examples: {', '.join(str(len(one)) for one in several)}.")
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise AssayError("A network in TorchScript cannot be explained by rules: give the network as it is in Python.")
    with frozen(_Several(model, several), torch.arange(len(several[0]), device=several[0].device)):
        yield tuple(one.detach().clone().requires_grad_() if one.is_floating_point() else one for one in several)


def _tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def like(inputs: Given, attributions: Sequence[Tensor]) -> Given:
    """One tensor for one input, a tuple for a tuple."""
    found: Any = tuple(attributions) if isinstance(inputs, tuple) else attributions[0]
    return found  # type: ignore[no-any-return]


def scores(output: Tensor, target: Tensor | int) -> Tensor:
    """The explained score of every example (B,).

    Args:
        output: (B, C), or (B,) for a network that predicts a number.
        target: one class for all, or (B,) int64.

    Raises:
        AssayError: the output has another shape, or there are neither one nor B classes.
    """
    if output.dim() == 1:
        output = output.unsqueeze(1)
    if output.dim() != 2:
        raise AssayError(f"The network gives {tuple(output.shape)}: scores (B, C) are needed.")
    classes = torch.as_tensor(target, device=output.device)
    if classes.dim() and classes.shape != output.shape[:1]:
        raise AssayError(f"The target must be one class or {len(output)}, one for each example, not {tuple(classes.shape)}.")
    return output.gather(1, classes.expand(len(output)).unsqueeze(1)).squeeze(1)


def backward(start: Tensor, leaves: Sequence[Tensor], signal: Tensor | None = None) -> list[Tensor]:
    """What arrives at every leaf: zeros where it has no influence, or is of integers.

    Args:
        start: where the way back begins.
        leaves: where it ends.
        signal: what is sent, of the shape of ``start``; None sends ones.
    """
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not start.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    signal = torch.ones_like(start) if signal is None else signal
    found = iter(torch.autograd.grad(start, wanted, signal, allow_unused=True, materialize_grads=True))
    return [next(found) if leaf.requires_grad else torch.zeros_like(leaf, dtype=start.dtype) for leaf in leaves]
