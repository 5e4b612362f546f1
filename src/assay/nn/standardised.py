"""Layers with standardised weights: every filter is centred and has one length, whatever training makes of its weights.

Behind an activation all signals are positive, and a filter whose weights do not sum to 0 hands their common mean on: after a few
layers a channel has nearly the same value for all inputs. Batch normalisation takes that mean out of the signals. Scaled
weight standardisation takes it out of the weights, where it costs next to nothing and no example depends on the others:

    W'[o] = gamma * g[o] * (W[o] - mean(W[o])) / |W[o] - mean(W[o])|

|.| is the Euclidean length over the fan-in, g a learnable gain that starts at 1, and gamma makes up for what the activation
before the layer takes from the variance: with gamma = 1 / sqrt(Var act(z)) for z ~ N(0, 1), a layer that is given act(z)
returns variance 1 (:func:`variance_gain`).

Source: Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets", ICLR
2021, section 4.3; the length of a filter is sqrt(N) times the standard deviation that stands in the paper's equation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

#: How a filter of (nearly) equal weights is kept from being divided by 0; see :func:`standardise`.
Guard = Literal["floor", "add"]


def variance_gain(activation: Callable[[Tensor], Tensor]) -> float:
    """Factor that gives ``activation(z)``, z ~ N(0, 1), the variance 1: gamma, by quadrature to about 12 digits.

    ReLU: sqrt(2 / (1 - 1 / pi)) = 1.7128585504; GELU: 1.7009262434; SELU: 1. The constants in the authors' code are estimates
    from samples, up to 9 in 10,000 off.

    Args:
        activation: elementwise; kinks lie at whole numbers.

    Raises:
        ValueError: it is constant, or not finite.
    """
    nodes, weights = np.polynomial.legendre.leggauss(24)
    panels = np.arange(-12, 12)[:, None]  # of length 1, so that a kink is an end of two of them
    x = (panels + (nodes + 1) / 2).ravel()
    density = np.tile(weights / 2, len(panels)) * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    values = activation(torch.from_numpy(x)).double().numpy()
    variance = float(density @ (values - density @ values) ** 2)
    if not 1e-20 < variance < math.inf:
        raise ValueError(f"the activation has a variance of {variance}, which no factor makes 1")
    return 1 / math.sqrt(variance)


def standardise(weight: Tensor, gain: Tensor, gamma: float = 1.0, eps: float = 1e-4, guard: Guard = "floor") -> Tensor:
    """Weights with the mean 0 and the length ``gamma * gain`` for every output unit.

    Args:
        weight: (O, ...): one row or filter an output unit.
        gain: (O,).
        gamma: see :func:`variance_gain`.
        eps: of the guard. The authors' 1e-4.
        guard: ``"floor"``: the squared length is ``eps`` at least, as in the authors' code; ``"add"``: ``eps`` is added to the
            variance, as in timm, which matters to weights that were trained there.
    """
    floor = guard == "floor"
    if torch.compiler.is_compiling():  # it joins the single steps itself
        return _scaled(weight, gain, gamma, eps, floor)[0]
    standard: Tensor = _Standardise.apply(weight, gain, gamma, eps, floor)[0]  # type: ignore[no-untyped-call]
    return standard


def _scaled(weight: Tensor, gain: Tensor, gamma: float, eps: float, floor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised weights, the means of the filters, and the lengths that they were divided by."""
    centred, mean, length = _measured(weight, eps, floor)
    return centred * (gamma * gain.view_as(length) / length), mean, length


def _measured(weight: Tensor, eps: float, floor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Filters less their mean, the mean, and the length to divide by."""
    over = tuple(range(1, weight.dim()))
    mean = weight.mean(dim=over, keepdim=True)
    centred = weight - mean
    length = torch.linalg.vector_norm(centred, dim=over, keepdim=True)
    return centred, mean, length.clamp_min(math.sqrt(eps)) if floor else (length.square() + eps * weight[0].numel()).sqrt()


class _Standardise(torch.autograd.Function):
    """The way back keeps nothing but the weights and passes over them a third as often as the single steps would.

    With x = (W - mean) / length, the gradient is gamma * g / length * (G - mean(G) - x * <G, x>); on the floor, length is fixed.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, gain: Tensor, gamma: float, eps: float, floor: bool) -> tuple[Tensor, Tensor, Tensor]:
        return _scaled(weight, gain, gamma, eps, floor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float, bool], output: tuple[Tensor, ...]) -> None:
        weight, gain, ctx.gamma, ctx.eps, ctx.floor = inputs
        _, mean, length = output
        ctx.mark_non_differentiable(mean, length)
        ctx.save_for_backward(weight, gain, mean, length)
        ctx.save_for_forward(weight, gain, mean, length)

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        weight, gain, mean, length = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates this in turn: also by way of the mean and the length
            mean, length = _measured(weight, ctx.eps, ctx.floor)[1:]
        to_weight, along = _turned(ctx, weight, gain, mean, length, outer)
        return to_weight, ctx.gamma * along.flatten(), None, None, None

    @staticmethod
    def jvp(ctx: Any, d_weight: Tensor, d_gain: Tensor, *_: None) -> tuple[Tensor, None, None]:
        weight, gain, mean, length = ctx.saved_tensors
        by_gain = (weight - mean) * (ctx.gamma * d_gain.view_as(length) / length)
        return _turned(ctx, weight, gain, mean, length, d_weight)[0] + by_gain, None, None


def _turned(ctx: Any, weight: Tensor, gain: Tensor, mean: Tensor, length: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative by the weights (a symmetric matrix a filter) times ``outer``, and <outer, x>."""
    over = tuple(range(1, weight.dim()))
    total = outer.sum(dim=over, keepdim=True)
    along = ((outer * weight).sum(dim=over, keepdim=True) - mean * total) / length
    scale = ctx.gamma * gain.view_as(length) / length
    turn = scale * along / length
    if ctx.floor:
        turn = turn * (length > math.sqrt(ctx.eps))
    straight = torch.addcmul(mean * turn - scale * total / weight[0].numel(), outer, scale)
    if torch.is_grad_enabled():
        return straight.addcmul(weight, turn, value=-1), along
    return straight.addcmul_(weight, turn, value=-1), along


class WSConv2d(nn.Conv2d):
    """A 2-d convolution with standardised filters.

    Args:
        in_channels: as of ``nn.Conv2d``, like all that are not named below.
        out_channels: planes of the output.
        kernel_size: of the filters.
        stride: of the convolution.
        padding: zeros around the input.
        dilation: distance of the filters' points.
        groups: into how many groups the channels are cut that do not see one another. Filters of depthwise convolutions have
            few weights, and lose much of what they can do.
        bias: whether there is one; it starts at 0.
        gamma: length of a filter at the start; :func:`variance_gain` of the activation before it, if that is not scaled.
        eps: see :func:`standardise`.
        guard: see :func:`standardise`.

    Shape: as ``nn.Conv2d``. ``gain`` is (out_channels,) and starts at 1; weights start as N(0, 1 / fan-in).

    A filter of one weight (1x1 from one channel) is its own mean, and always 0: take a plain layer there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        gamma: float = 1.0,
        eps: float = 1e-4,
        guard: Guard = "floor",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.gamma, self.eps, self.guard = gamma, eps, guard
        self.gain = nn.Parameter(torch.ones(out_channels))

    def reset_parameters(self) -> None:
        """Draw the weights anew; torch calls it when the layer is made."""
        _lecun(self)

    def standardised(self) -> Tensor:
        """The filters that the layer convolves with, of the shape of ``weight``."""
        return standardise(self.weight, self.gain, self.gamma, self.eps, self.guard)

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self._conv_forward(x, self.standardised(), self.bias)
        return convolved


class WSLinear(nn.Linear):
    """A linear layer with standardised rows; arguments as of ``nn.Linear`` and :class:`WSConv2d`.

    Shape: (..., in_features) -> (..., out_features). ``gain`` is (out_features,).

    A row of one weight is its own mean, and always 0: take a plain layer there.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        gamma: float = 1.0,
        eps: float = 1e-4,
        guard: Guard = "floor",
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.gamma, self.eps, self.guard = gamma, eps, guard
        self.gain = nn.Parameter(torch.ones(out_features))

    def reset_parameters(self) -> None:
        """Draw the weights anew; torch calls it when the layer is made."""
        _lecun(self)

    def standardised(self) -> Tensor:
        """The rows that inputs are multiplied with, of the shape of ``weight``."""
        return standardise(self.weight, self.gain, self.gamma, self.eps, self.guard)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.standardised(), self.bias)


def lecun_normal_(weight: Tensor, gamma: float = 1.0) -> None:
    """Draw from N(0, gamma^2 / fan-in): inputs of mean 0 and variance 1 come out with variance gamma^2; ReLU's is 2 (He)."""
    if not weight.is_meta:  # where there is nothing to draw, and torch takes long over it
        nn.init.normal_(weight, std=gamma * weight[0].numel() ** -0.5)


def _lecun(layer: WSConv2d | WSLinear) -> None:
    lecun_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if "gain" in layer._parameters:  # not when torch's own constructor calls
        nn.init.ones_(layer.gain)


def folded(model: nn.Module) -> nn.Module:
    """A copy for inference with plain layers in place of standardised ones, whose weights are standardised once for all.

    It computes the same and is faster, since filters are no more standardised in every pass. What happens to the network
    afterwards does not reach the copy: make another.

    Args:
        model: any network; it stays as it is.
    """
    shadow = copy.deepcopy(model)
    plain: dict[nn.Module, nn.Module] = {
        module: _plain(module) for module in shadow.modules() if isinstance(module, WSConv2d | WSLinear)
    }
    for module in list(shadow.modules()):
        for name, child in list(module._modules.items()):  # a layer may stand in several places
            if isinstance(child, WSConv2d | WSLinear):
                setattr(module, name, plain[child])
    return plain.get(shadow, shadow)


def _plain(layer: WSConv2d | WSLinear) -> nn.Conv2d | nn.Linear:
    """The same layer (it is a copy already) as torch's own kind, with the weights that it used."""
    layer.weight = nn.Parameter(layer.standardised().detach(), requires_grad=layer.weight.requires_grad)
    del layer._parameters["gain"]
    kind = nn.Conv2d if isinstance(layer, WSConv2d) else nn.Linear
    plain: nn.Conv2d | nn.Linear = kind.__new__(kind)  # type: ignore[assignment]
    plain.__dict__.update(layer.__dict__)
    return plain
