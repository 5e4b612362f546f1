"""The operators that models are made of: how each is called, what can be varied, and how rounding errors pass through it.

An operator here is one call with everything fixed but the tensors and some whole numbers: ``x0.sum(dim=1)`` of a tensor with
three dimensions is one, with ``dim=0`` another. What is left, sizes of the tensors and attributes, are its *symbols*, about
which rules are learnt. Nothing about shapes is written down here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations, product
from types import CodeType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

#: Sizes of dimensions that calls are tried with.
SIZES = (1, 6)

Rounding = Literal["moves", "each", "mixes", "kink"]


@dataclass(frozen=True)
class Operator:
    """One way to call one operator.

    Args:
        name: of the operator, for tables: ``"conv2d"``.
        call: an expression in the tensors ``x0, x1 ...``, the attributes, ``torch`` and ``F``.
        ranks: number of dimensions of each tensor.
        attributes: (name, least, most) of each whole number that calls are tried with.
        rounding: how errors of the inputs become errors of the output. ``"moves"``: entries are only moved, so that errors
            move along; ``"each"``: every output entry depends on one entry of each input, smoothly; ``"mixes"``: on several;
            ``"kink"``: not smooth, and ``error`` says what becomes of errors.
        error: for ``"kink"``: an expression in the bounds ``e0, e1 ...`` of the inputs' errors.
        centred: whether a mean or a maximum is taken off the inputs first: what is rounded then is as large as the largest
            entry, and not as the entry itself.
        inner: an expression in the tensors and attributes, how large numbers get inside the call where they then cancel;
            of a shape that broadcasts over the result.
    """

    name: str
    call: str
    ranks: tuple[int, ...]
    attributes: tuple[tuple[str, int, int], ...] = ()
    rounding: Rounding = "each"
    error: str = ""
    centred: bool = False
    inner: str = ""

    @property
    def key(self) -> str:
        """The call with the ranks, which tells operators apart."""
        return f"{self.call} {self.ranks}"

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Sizes ``x0_0, x0_1 ...`` of every tensor, then the attributes."""
        sizes = [f"x{tensor}_{dim}" for tensor, rank in enumerate(self.ranks) for dim in range(rank)]
        return (*sizes, *(name for name, _, _ in self.attributes))

    @cached_property
    def domains(self) -> tuple[tuple[int, int], ...]:
        """Least and most of each symbol."""
        return (*[SIZES] * sum(self.ranks), *((low, high) for _, low, high in self.attributes))

    @cached_property
    def code(self) -> CodeType:
        return compile(self.call, f"<{self.name}>", "eval")

    def split(self, values: tuple[int, ...]) -> tuple[list[tuple[int, ...]], dict[str, int]]:
        """Values of the symbols as shapes of the tensors and attributes."""
        shapes, place = [], 0
        for rank in self.ranks:
            shapes.append(values[place : place + rank])
            place += rank
        return shapes, {name: value for (name, _, _), value in zip(self.attributes, values[place:], strict=True)}

    def __call__(self, tensors: list[Tensor], attributes: dict[str, int]) -> Tensor:
        return _evaluated(self.code, "x", tensors, attributes)

    def inside(self, tensors: list[Tensor], result: Tensor, attributes: dict[str, int]) -> Tensor:
        """How large numbers get inside the call: the result, or ``inner`` where that is larger."""
        if not self.inner:
            return result.abs()
        return torch.maximum(result.abs(), _evaluated(self.inner, "x", tensors, attributes))

    def errors(self, bounds: list[Tensor], attributes: dict[str, int]) -> Tensor:
        """What becomes of errors where ``rounding`` is ``"moves"`` or ``"kink"``."""
        if self.rounding == "moves":
            return self(bounds, attributes)
        return _evaluated(self.error, "e", bounds, attributes)


def _evaluated(call: str | CodeType, letter: str, tensors: list[Tensor], attributes: dict[str, int]) -> Tensor:
    names: dict[str, Any] = {f"{letter}{place}": tensor for place, tensor in enumerate(tensors)}
    result: Tensor = eval(call, {"torch": torch, "F": F, **names, **attributes})
    return result


@cache
def operators() -> dict[str, Operator]:
    """All of them, by key.

    Left out are operators whose result jumps (rounding, comparisons, argmax, sorting with ties), is random or is not
    initialised: two right answers may differ there.
    """
    parts = (_of_each_entry(), _of_two(), _reductions(), _along_a_dimension(), _products(), _windows(), _moves())
    return {one.key: one for part in parts for one in part}


_EACH = {
    "sigmoid": "torch.sigmoid(x0)",
    "tanh": "torch.tanh(x0)",
    "exp": "torch.exp(x0)",
    "sin": "torch.sin(x0)",
    "cos": "torch.cos(x0)",
    "erf": "torch.erf(x0)",
    "softplus": "F.softplus(x0)",
    "silu": "F.silu(x0)",
    "elu": "F.elu(x0)",
    "logsigmoid": "F.logsigmoid(x0)",
    "square": "x0.square()",
    "sqrt": "torch.sqrt(x0)",
    "rsqrt": "torch.rsqrt(x0)",
    "log": "torch.log(x0)",
    "log1p": "torch.log1p(x0)",
    "reciprocal": "torch.reciprocal(x0)",
    "atan": "torch.atan(x0)",
    "scalar add": "x0 + 0.75",
    "scalar mul": "x0 * -1.5",
}
#: Slopes between -1 and 1: an error never grows.
_GENTLE = {
    "relu": "torch.relu(x0)",
    "abs": "x0.abs()",
    "neg": "-x0",
    "clamp": "x0.clamp(-0.5, 0.6)",
    "clamp min": "x0.clamp(min=-0.25)",
    "hardtanh": "F.hardtanh(x0)",
    "leaky relu": "F.leaky_relu(x0, 0.125)",
}


def _of_each_entry() -> Iterator[Operator]:
    for rank in (1, 2, 3, 4):
        for name, call in _EACH.items():
            yield Operator(name, call, (rank,))
        for name, call in _GENTLE.items():
            yield Operator(name, call, (rank,), rounding="kink", error="e0")
        # x (1 + erf(x / sqrt 2)) / 2: for x < 0 the sum in the brackets nearly cancels.
        yield Operator("gelu", "F.gelu(x0)", (rank,), inner="x0.abs()")


def _of_two() -> Iterator[Operator]:
    ranks = ((1, 1), (2, 2), (3, 3), (4, 4), (2, 1), (1, 2), (3, 1), (3, 2), (4, 1))
    for pair in ranks:
        for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
            yield Operator(name, f"x0 {sign} x1", pair)
        for name in ("maximum", "minimum"):
            yield Operator(name, f"torch.{name}(x0, x1)", pair, rounding="kink", error="torch.maximum(e0, e1)")
        yield Operator("lerp", "torch.lerp(x0, x1, 0.25)", pair)


def _reductions() -> Iterator[Operator]:
    for rank in (2, 3, 4):
        for dim, keep in product(range(rank), (False, True)):
            rest = f"dim={dim}, keepdim={keep}"
            yield Operator("sum", f"x0.sum({rest})", (rank,), rounding="mixes")
            yield Operator("mean", f"x0.mean({rest})", (rank,), rounding="mixes")
            yield Operator("amax", f"x0.amax({rest})", (rank,), rounding="kink", error=f"e0.amax({rest})")
            yield Operator("amin", f"x0.amin({rest})", (rank,), rounding="kink", error=f"e0.amax({rest})")
            if rank < 4:
                yield Operator("prod", f"x0.prod({rest})", (rank,), rounding="mixes")
                # The maximum is taken off and added again.
                call = f"torch.logsumexp(x0, {rest})"
                yield Operator("logsumexp", call, (rank,), rounding="mixes", centred=True, inner="x0.abs().amax()")
                yield Operator("var", f"x0.var({rest}, correction=0)", (rank,), rounding="mixes", centred=True)
                yield Operator("norm", f"torch.linalg.vector_norm(x0, {rest})", (rank,), rounding="mixes")


def _along_a_dimension() -> Iterator[Operator]:
    for rank in (1, 2, 3):
        for dim in range(rank):
            yield Operator("softmax", f"torch.softmax(x0, {dim})", (rank,), rounding="mixes", centred=True)
            call = f"torch.log_softmax(x0, {dim})"
            yield Operator("log softmax", call, (rank,), rounding="mixes", centred=True, inner="2 * x0.abs().amax()")
            yield Operator("cumsum", f"x0.cumsum({dim})", (rank,), rounding="mixes")
            yield Operator("glu", f"F.glu(x0, {dim})", (rank,), rounding="mixes")
    # Entries and their mean may be multiplied by 1 / the standard deviation before they are subtracted.
    scaled = "x0.abs().amax() * torch.rsqrt({}.var(-1, correction=0, keepdim=True) + 1e-5)"
    layer = f"{scaled.format('x0')} * x1.abs()"
    groups = scaled.format("x0.reshape(len(x0), groups, -1)")
    group = f"({groups}).repeat_interleave(x0.shape[1] // groups, 1).reshape(*x0.shape[:2], *[1] * (x0.dim() - 2))"
    for rank in (2, 3, 4):
        call = "F.layer_norm(x0, x1.shape, x1)"
        yield Operator("layer norm", call, (rank, 1), rounding="mixes", centred=True, inner=layer)
        call = "F.group_norm(x0, groups)"
        yield Operator("group norm", call, (rank,), (("groups", 0, 4),), rounding="mixes", centred=True, inner=group)
    yield Operator("prelu", "F.prelu(x0, x1)", (3, 1))


def _products() -> Iterator[Operator]:
    for pair in ((1, 2), (2, 1), (2, 2), (3, 2), (2, 3), (3, 3), (3, 1), (4, 4)):
        yield Operator("matmul", "x0 @ x1", pair, rounding="mixes")
    yield Operator("bmm", "torch.bmm(x0, x1)", (3, 3), rounding="mixes")
    yield Operator("addmm", "torch.addmm(x0, x1, x2)", (2, 2, 2), rounding="mixes")
    yield Operator("outer", "torch.outer(x0, x1)", (1, 1))
    yield Operator("einsum", "torch.einsum('ij,kj->ik', x0, x1)", (2, 2), rounding="mixes")
    for rank in (1, 2, 3):
        yield Operator("linear", "F.linear(x0, x1)", (rank, 2), rounding="mixes")
        yield Operator("linear with bias", "F.linear(x0, x1, x2)", (rank, 2, 1), rounding="mixes")
    moves = (("stride", 0, 3), ("padding", 0, 3), ("dilation", 0, 3))
    rest = "stride=stride, padding=padding, dilation=dilation"
    for dims in (1, 2):
        call = f"F.conv{dims}d(x0, x1, {rest})"
        yield Operator(f"conv{dims}d", call, (dims + 2, dims + 2), moves, rounding="mixes")
        call = f"F.conv{dims}d(x0, x1, None, {rest}, groups=groups)"
        yield Operator(f"grouped conv{dims}d", call, (dims + 2, dims + 2), (*moves, ("groups", 0, 4)), rounding="mixes")
        call = f"F.conv_transpose{dims}d(x0, x1, stride=stride, padding=padding, output_padding=extra)"
        extra = (*moves[:2], ("extra", 0, 2))
        yield Operator(f"conv_transpose{dims}d", call, (dims + 2, dims + 2), extra, rounding="mixes")


def _windows() -> Iterator[Operator]:
    moves = (("kernel", 0, 6), ("stride", 0, 3), ("padding", 0, 2))
    for dims in (1, 2):
        rank = (dims + 2,)
        call = f"F.avg_pool{dims}d(x0, kernel, stride, padding)"
        yield Operator(f"avg_pool{dims}d", call, rank, moves, rounding="mixes")
        rest = "kernel, stride, padding, dilation)"
        largest = f"F.max_pool{dims}d(e0, {rest}"
        more = (*moves, ("dilation", 0, 3))
        yield Operator(f"max_pool{dims}d", f"F.max_pool{dims}d(x0, {rest}", rank, more, rounding="kink", error=largest)
        call = f"F.adaptive_avg_pool{dims}d(x0, size)"
        yield Operator(f"adaptive_avg_pool{dims}d", call, rank, (("size", 0, 5),), rounding="mixes")
        call = "F.interpolate(x0, scale_factor=scale)"
        yield Operator("interpolate", call, rank, (("scale", 0, 3),), rounding="moves")
    yield Operator("pixel shuffle", "F.pixel_shuffle(x0, upscale)", (4,), (("upscale", 0, 3),), rounding="moves")


def _moves() -> Iterator[Operator]:
    def moves(name: str, call: str, *ranks: int, **attributes: tuple[int, int]) -> Operator:
        return Operator(name, call, ranks, tuple((key, *ends) for key, ends in attributes.items()), rounding="moves")

    for rank in (2, 3):
        for dim in range(rank):
            yield moves("cat", f"torch.cat([x0, x1], {dim})", rank, rank)
            yield moves("stack", f"torch.stack([x0, x1], {dim})", rank, rank)
            yield moves("narrow", f"x0.narrow({dim}, start, length)", rank, start=(-1, 4), length=(-1, 5))
            yield moves("select", f"x0.select({dim}, place)", rank, place=(-4, 5))
            yield moves("squeeze", f"x0.squeeze({dim})", rank)
            yield moves("unsqueeze", f"x0.unsqueeze({dim})", rank)
            yield moves("roll", f"x0.roll(shift, {dim})", rank, shift=(-2, 2))
            yield moves("flip", f"x0.flip({dim})", rank)
            yield moves("chunk", f"x0.chunk(parts, {dim})[0]", rank, parts=(0, 4))
            yield moves("unfold", f"x0.unfold({dim}, size, step)", rank, size=(-1, 5), step=(0, 3))
            yield moves("repeat interleave", f"x0.repeat_interleave(times, {dim})", rank, times=(0, 3))
        for order in permutations(range(rank)):
            if order != tuple(range(rank)):
                yield moves("permute", f"x0.permute{order}", rank)
        yield moves("tril", "x0.tril(k)", rank, k=(-2, 2))
        yield moves("pad", "F.pad(x0, (before, after))", rank, before=(-2, 3), after=(-2, 3))
        yield moves("diagonal", "x0.diagonal(offset)", rank, offset=(0, 3))
        yield moves("flatten", "x0.flatten(0, 1)", rank)
        yield moves("slice", "x0[:, start::step]", rank, start=(0, 4), step=(0, 3))
    yield moves("pad by reflection", "F.pad(x0, (before, after), mode='reflect')", 3, before=(0, 3), after=(0, 3))
    yield moves("reshape", "x0.reshape(a, b)", 1, a=(0, 6), b=(0, 6))
    yield moves("reshape", "x0.reshape(a, b)", 2, a=(0, 8), b=(0, 8))
    yield moves("reshape", "x0.reshape(a, b)", 3, a=(0, 12), b=(0, 12))
    yield moves("reshape", "x0.reshape(a, b, c)", 2, a=(0, 6), b=(0, 6), c=(0, 6))
    yield moves("expand", "x0.expand(a, b)", 1, a=(0, 6), b=(0, 6))
    yield moves("expand", "x0.expand(a, b)", 2, a=(0, 6), b=(0, 6))
    yield moves("expand", "x0.expand(a, b, c)", 3, a=(0, 6), b=(0, 6), c=(0, 6))
    yield moves("repeat", "x0.repeat(a, b)", 2, a=(-1, 3), b=(-1, 3))
    yield moves("cat of three", "torch.cat([x0, x1, x2], 1)", 2, 2, 2)
