"""Layer-wise relevance propagation: a score is handed back from layer to layer, each unit dividing what it got.

A unit z_k = sum_j a_j w_jk gives its relevance to those that fed it, in proportion to what each brought in; the rules differ in
how a small or mixed sum is treated. What passes between layers is relevance, and it is conserved but for what biases and
stabilisers keep.

Weighted layers (linear ones, convolutions) take the rule that is asked for, with a batch normalisation behind them merged in.
Other sums (additions, means, pooling, normalisation on its own, positional terms) use the epsilon rule with a tiny epsilon,
functions of one number pass relevance on, a maximum hands it to its winner. A product of two hidden values halves it, softmax
uses its first-order expansion, and normalisation layers take their statistics as constants: the rules of Achtibat et al. (2024)
for attention.

Sources: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation", PLoS
ONE 2015; Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019, whose section 10.2 has the rules; Achtibat et
al., "AttnLRP", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

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
    scores,
    step,
)
from assay.explain.normalising import NORMS, Normalisation


@dataclass(frozen=True)
class Term:
    """``f(value, weight, bias)``, one of the sums that a rule is made of; its share goes to the inputs times ``value``.

    Args:
        value: what takes the place of the inputs.
        weight: what takes the place of the weights.
        bias: what takes the place of the bias.
        sign: 1 or -1.
    """

    value: Tensor
    weight: Tensor
    bias: Tensor | None = None
    sign: float = 1.0


#: Terms that are one sum together, and the share of the relevance that they hand on: a number, or one for each output.
Part = tuple[list[Term], float | Tensor]


@dataclass(frozen=True)
class Epsilon:
    """R_j = sum_k a_j w_jk / (z_k + epsilon sign z_k) R_k; 0 is LRP-0.

    Args:
        epsilon: absorbs weak and contradictory relevance. In units of the sums.
    """

    epsilon: float = 1e-6


@dataclass(frozen=True)
class Gamma:
    """Like :class:`Epsilon` with what speaks for a unit strengthened: a_j w_jk counts 1 + gamma times if it has the sign of z_k.

    For inputs and sums >= 0 this is a_j (w_jk + gamma max(w_jk, 0)).

    Args:
        gamma: 0 is LRP-0, infinity is z-plus.
        epsilon: keeps sums away from zero.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def parts(self, a: Tensor, weight: Tensor, bias: Tensor | None, positive: Tensor) -> list[Part]:
        """One sum for outputs above zero, one for those below."""
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        found: list[Part] = []
        for up, down, edge, where in ((plus, minus, {"min": 0}, positive), (minus, plus, {"max": 0}, ~positive)):
            stronger = None if bias is None else bias + self.gamma * bias.clamp(**edge)
            terms = [Term(a.clamp(min=0), weight + self.gamma * up, stronger)]
            if (a < 0).any():
                terms.append(Term(a.clamp(max=0), weight + self.gamma * down))
            found.append((terms, where.to(a.dtype)))
        return found


@dataclass(frozen=True)
class AlphaBeta:
    """alpha times relevance in proportion to what speaks for a unit, minus beta times to what speaks against it.

    Args:
        alpha: 1 with beta 0 is the z-plus rule, 2 with beta 1 the other that is common.
        beta: alpha - 1, so that relevance is conserved.
        epsilon: keeps sums away from zero.

    Raises:
        AssayError: alpha - beta is not 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0:
            raise AssayError(f"alpha - beta must be 1 and beta >= 0, not {self.alpha} and {self.beta}.")

    def parts(self, a: Tensor, weight: Tensor, bias: Tensor | None, positive: Tensor) -> list[Part]:
        """One sum of what is above zero, and with beta one of what is below."""
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        mixed = bool((a < 0).any())
        found: list[Part] = []
        for same, other, edge, share in ((plus, minus, {"min": 0}, self.alpha), (minus, plus, {"max": 0}, -self.beta)):
            if share:
                terms = [Term(a.clamp(min=0), same, None if bias is None else bias.clamp(**edge))]
                found.append(([*terms, Term(a.clamp(max=0), other)] if mixed else terms, share))
        return found


@dataclass(frozen=True)
class ZBox:
    """For the first layer, whose inputs are bounded as pixels are: a_j w_jk - low max(w_jk, 0) - high min(w_jk, 0) (z-B).

    Args:
        low: the smallest that an input can be: a number, or a tensor that broadcasts to the inputs.
        high: the largest.
        epsilon: keeps sums away from zero.
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0
    epsilon: float = 1e-6

    def parts(self, a: Tensor, weight: Tensor, bias: Tensor | None, positive: Tensor) -> list[Part]:
        """One sum, in which every product is above zero."""
        low, high = (torch.as_tensor(edge).to(a).expand_as(a) for edge in (self.low, self.high))
        terms = [
            Term(a, weight, bias),
            Term(low, weight.clamp(min=0), None if bias is None else bias.clamp(min=0), -1.0),
            Term(high, weight.clamp(max=0), None if bias is None else bias.clamp(max=0), -1.0),
        ]
        return [(terms, 1.0)]


@dataclass(frozen=True)
class Flat:
    """Relevance spread evenly over everything that a unit sees, whatever was there: for a first layer."""

    epsilon: float = 1e-6

    def parts(self, a: Tensor, weight: Tensor, bias: Tensor | None, positive: Tensor) -> list[Part]:
        """One sum of ones."""
        return [([Term(torch.ones_like(a), torch.ones_like(weight))], 1.0)]


@dataclass(frozen=True)
class WSquare:
    """Relevance in proportion to the squared weights, whatever the input was: for a first layer whose inputs have no bounds."""

    epsilon: float = 1e-9

    def parts(self, a: Tensor, weight: Tensor, bias: Tensor | None, positive: Tensor) -> list[Part]:
        """One sum of squares."""
        return [([Term(torch.ones_like(a), weight.square())], 1.0)]


WeightedRule = Epsilon | Gamma | AlphaBeta | ZBox | Flat | WSquare

#: The z-plus rule.
Z_PLUS = AlphaBeta(1.0, 0.0)


@dataclass(frozen=True)
class Layer:
    """A weighted layer, as a composite sees it.

    Args:
        kind: ``"linear"`` or ``"convolution"``.
        index: how many weighted layers were called before it.
        count: how many are called in all.
    """

    kind: str
    index: int
    count: int

    @property
    def depth(self) -> float:
        """From 0 for the first to 1 for the last."""
        return self.index / max(1, self.count - 1)


Composite = Callable[[Layer], WeightedRule]


def layered(
    layer: Layer, *, first: WeightedRule = ZBox(), convolution: WeightedRule = Gamma(), linear: WeightedRule = Epsilon()
) -> WeightedRule:
    """The usual composite: one rule for the first layer, one for convolutions, one for linear layers.

    Change its parts with ``functools.partial``: ``lrp(..., rule=partial(layered, convolution=Z_PLUS))``.

    Args:
        layer: the layer that needs a rule.
        first: for the layer that sees the inputs; the default is for pixels from 0 to 1.
        convolution: for other convolutions.
        linear: for other linear layers.
    """
    if layer.index == 0:
        return first
    return convolution if layer.kind == "convolution" else linear


def lrp(model: nn.Module, inputs: Given, target: Tensor | int, *, rule: WeightedRule | Composite = Epsilon()) -> Given:
    """How much of a score each input is held to have brought in.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.
        rule: for weighted layers: one for all, or a function of the :class:`Layer`, as :func:`layered`.

    Returns:
        Relevances of the inputs' shape, in units of the score; zeros for inputs of integers.

    Raises:
        AssayError: relevance comes to a function for which there is no rule.
    """
    choose: Composite = (lambda _: rule) if isinstance(rule, WeightedRule) else rule
    with explained(model, inputs) as leaves:
        count = 0
        if not isinstance(rule, WeightedRule):
            counting = Relevance(lambda _: Epsilon(), 0)
            with counting:
                model(*(leaf[:1] for leaf in leaves))
            count = counting.met
        with Relevance(choose, count):
            start = scores(model(*leaves), target)
        return like(inputs, backward(start, leaves, start.detach()))


#: Functions of a weighted layer -> its kind.
WEIGHTED = {"linear": "linear"} | {name: "convolution" for d in "123" for name in (f"conv{d}d", f"conv_transpose{d}d")}
_SUMS_OF_SEVERAL = frozenset(["add", "sub", "lerp", "addcmul", "index_add", "scatter_add"])
_CHOICES = MAXIMA | {"maximum", "minimum", "topk", "sort", "kthvalue", "median"}
_TINY = 1e-9


class Relevance(Rules):
    """Functions hand back relevance instead of gradients.

    Args:
        choose: the rule for each weighted layer.
        count: how many weighted layers there are.
    """

    def __init__(self, choose: Composite, count: int) -> None:
        super().__init__()
        self._choose, self._count = choose, count
        self.met = 0
        # What weighted layers gave, in case that a batch normalisation follows: its rule is then that of both as one layer.
        self._given: MutableMapping[Tensor, tuple[Call, Weighted, WeightedRule, int]] = WeakTensorKeyDictionary()

    def perform(self, call: Call) -> Any:
        """A weighted layer is kept in mind, a batch normalisation behind it merged; anything else as always."""
        if call.name == "batch_norm":
            before = self._given.get(call.carriers[0])
            if before is not None and before[3] == call.carriers[0]._version:
                return self._merged(call, *before[:3])
        if call.name not in WEIGHTED or call.places != [0]:
            return super().perform(call)
        layer = Weighted.of(call)
        rule = self._choose(Layer(WEIGHTED[call.name], self.met, self._count))
        self.met += 1
        out = step(partial(_weighted, layer, rule), *call.carriers)
        if "transpose" not in call.name:
            self._given[out] = (call, layer, rule, out._version)
        return out

    def _merged(self, norm: Call, call: Call, layer: Weighted, rule: WeightedRule) -> Tensor:
        given = norm.carriers[0].detach()
        probe = given.new_zeros(2, given.shape[1], *[1] * (given.dim() - 2))
        probe[1] = 1
        shift, both = norm.run(probe).flatten(1)  # what becomes of 0 and of 1 in every channel
        merged: Tensor = step(partial(_weighted, layer.scaled(both - shift, shift), rule), *call.carriers)
        return merged

    def rule(self, call: Call) -> Rule | None:
        """The rule for everything but weighted layers."""
        name, several = call.name, len(call.places) > 1
        if name in ELEMENTWISE and not several:
            return partial(_pass, call)
        if name in PRODUCTS and several:
            return partial(_sum, call.run, 1 / len(call.places))
        if name == "div":
            return partial(_numerator, call) if 0 in call.places else partial(_pass, call)
        if name in _SUMS_OF_SEVERAL or (name in AFFINE and not several):
            return partial(_sum, call.run, 1.0)
        if name in NORMS and not several:
            norm = Normalisation.of(call)  # by the statistics of a training it is affine
            return partial(_sum, call.run if norm is None else norm.with_spread_held, 1.0)
        if name == "softmax":
            return partial(_softmax, call)
        passes = name in _CHOICES or (name in CARRIED and not several)
        return None if passes else partial(_unknown, call)


@dataclass(frozen=True)
class Weighted:
    """A weighted layer: ``run(inputs, weight, bias)`` with its strides and the like, and its own weight and bias."""

    run: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, call: Call) -> Weighted:
        """The layer of a call of ``linear`` or a convolution, which all begin with input, weight and bias."""
        args, kwargs = call.arguments(*call.carriers)
        more = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return cls(lambda a, weight, bias: call.func(a, weight, bias, *args[3:], **more), weight, bias)

    def scaled(self, scale: Tensor, shift: Tensor) -> Weighted:
        """The layer with its outputs scaled and shifted, one number (O,) for each channel."""
        weight = self.weight * scale.view(-1, *[1] * (self.weight.dim() - 1))
        return Weighted(self.run, weight, shift if self.bias is None else self.bias * scale + shift)


def _stable(z: Tensor, epsilon: float) -> Tensor:
    return z + torch.where(z < 0, -epsilon, epsilon)


def _weighted(layer: Weighted, rule: WeightedRule, a: Tensor) -> tuple[Tensor, Back]:
    if isinstance(rule, Epsilon):  # its sum is the layer's own: nothing needs computing twice
        return _sum(lambda value: layer.run(value, layer.weight, layer.bias), 1.0, a, epsilon=rule.epsilon)
    z = layer.run(a, layer.weight, layer.bias)
    kept, positive = a.clone(), z >= 0

    def back(coming: Tensor) -> list[Tensor]:
        total = torch.zeros_like(kept)
        for terms, share in rule.parts(kept, layer.weight, layer.bias, positive):
            relevance = coming * share
            if not relevance.any():
                continue
            with torch.enable_grad():
                leaves = [term.value.detach().requires_grad_() for term in terms]
                sums = [t.sign * layer.run(leaf, t.weight, t.bias) for t, leaf in zip(terms, leaves, strict=True)]
                whole = torch.stack(sums).sum(dim=0) if len(sums) > 1 else sums[0]
            found = torch.autograd.grad(whole, leaves, relevance / _stable(whole.detach(), rule.epsilon))
            for term, one in zip(terms, found, strict=True):
                total.addcmul_(term.value, one)
        return [total]

    return z, back


def _pass(call: Call, value: Tensor) -> tuple[Any, Back]:
    return call.run(value), lambda coming: (coming,)


def _unknown(call: Call, *values: Tensor) -> tuple[Any, Back]:
    def back(*coming: Tensor) -> list[Tensor]:
        # A way that no relevance takes (a statistic that is held constant) needs no rule.
        if any(bool(one.any()) for one in coming):
            raise AssayError(f"LRP has no rule for {call.name}, so relevance cannot be handed on through it.")
        return [torch.zeros_like(value) for value in values]

    return call.run(*values), back


def _sum(run: Callable[..., Tensor], share: float, *values: Tensor, epsilon: float = _TINY) -> tuple[Tensor, Back]:
    """Every argument in proportion to what it brought in."""
    leaves, z = linked(run, *values)
    out, kept = z.detach().clone(), [value.clone() for value in values]

    def back(coming: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(z, leaves, share * coming / _stable(z.detach(), epsilon))
        return [value * one for value, one in zip(kept, found, strict=True)]

    return out, back


def _numerator(call: Call, *values: Tensor) -> tuple[Tensor, Back]:
    """What is divided gets everything, what it is divided by is held constant."""
    out, back = _sum(lambda value: call.run(value, *values[1:]), 1.0, values[0])
    return out, lambda coming: [*back(coming), *[None] * (len(values) - 1)]


def _softmax(call: Call, value: Tensor) -> tuple[Tensor, Back]:
    args, kwargs = call.arguments(value)
    dim = kwargs["dim"] if "dim" in kwargs else args[1]
    out = call.run(value)
    shares, kept = out.clone(), torch.where(value.isfinite(), value, 0)  # what is masked takes no part

    def back(coming: Tensor) -> tuple[Tensor]:
        return (kept * (coming - shares * coming.sum(dim=dim, keepdim=True)),)

    return out, back
