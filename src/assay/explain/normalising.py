"""Normalisations of each example by its own statistics: what they do to rows of numbers, and their mean gradient.

Layer, group, instance and root-mean-square normalisation are one function of rows u of n numbers each, which are centred (all
but the last): y = u / sqrt(mean(u^2) + eps), scaled and shifted afterwards. Where u is small the function is steep: from an
input of zeros to any other nearly all of its change happens at once, which no quadrature sees. On a straight line, though, the
mean of its gradient has a closed form.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.explain.backward import Call

NORMS = frozenset(["layer_norm", "group_norm", "instance_norm", "rms_norm"])


@dataclass(frozen=True)
class Normalisation:
    """What a call of one of :data:`NORMS` does.

    Args:
        groups: rows of each example, or 0 if the last dimensions are a row.
        shape: of weight and bias, so that they broadcast to the values.
        count: dimensions at the end that are a row, if ``groups`` is 0.
        weight: scales what is normalised.
        bias: is added at last.
        eps: is added to the mean square.
        centred: whether rows lose their mean first.
    """

    groups: int
    shape: torch.Size
    count: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centred: bool

    @classmethod
    def of(cls, call: Call) -> Normalisation | None:
        """That of a call; ``None`` where what scales depends on the inputs too, or statistics are those of a training."""
        if len(call.places) != 1 or call.name not in NORMS:
            return None
        args, kwargs = call.arguments(*call.carriers)
        signature = inspect.signature(getattr(F, call.name))
        bound = signature.bind(*args[: len(signature.parameters)], **kwargs)  # torch.layer_norm has further arguments
        bound.apply_defaults()
        given = bound.arguments
        if not given.get("use_input_stats", True):
            return None
        (value,) = call.carriers
        eps = torch.finfo(value.dtype).eps if given["eps"] is None else given["eps"]
        own = (given["weight"], given.get("bias"), eps, call.name != "rms_norm")
        if "normalized_shape" in given:
            return cls(0, torch.Size(given["normalized_shape"]), len(given["normalized_shape"]), *own)
        groups = given.get("num_groups", value.shape[1])
        return cls(groups, torch.Size([value.shape[1], *[1] * (value.dim() - 2)]), 0, *own)

    def rows(self, value: Tensor) -> Tensor:
        """(..., n)."""
        if self.groups:
            return value.reshape(len(value), self.groups, -1)
        return value.flatten(value.dim() - self.count)

    def centre(self, rows: Tensor) -> Tensor:
        """Rows without their means, where these are taken off."""
        return rows - rows.mean(dim=-1, keepdim=True) if self.centred else rows

    def with_spread_held(self, value: Tensor) -> Tensor:
        """The normalisation, through which gradients flow as if the spread were a constant."""
        rows = self.centre(self.rows(value))
        out = (rows * (rows.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt().detach()).view_as(value)
        out = out if self.weight is None else out * self.weight.view(self.shape)
        return out if self.bias is None else out + self.bias.view(self.shape)

    def mean_gradient(self, coming: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """What goes back out of the inputs: ``coming`` times the mean of the Jacobians between two inputs.

        On the line the rows are u(t) = r + s d, with d the whole way, r at right angles to it and s = t + const, so that
        q = mean(u^2) + eps = m + c s^2. The Jacobian q^(-1/2) - u u' q^(-3/2) / n then asks for four integrals over s.

        Args:
            coming: of the outputs' shape.
            start: where the line begins: of the inputs' shape, or one example for all.
            end: where it ends.

        Returns:
            Of the inputs' shape.
        """
        # Differences of nearly equal numbers are taken below: in double precision, where the device has it.
        wide = coming.dtype if coming.device.type == "mps" else torch.float64
        weighted = coming if self.weight is None else coming * self.weight.view(self.shape)
        g = self.rows(weighted.to(wide))
        first, last = (self.centre(self.rows(one.to(wide))) for one in (start, end))
        first = first.expand_as(last)

        def mean(product: Tensor) -> Tensor:
            return product.mean(dim=-1, keepdim=True)

        d = last - first
        c = mean(d * d)
        # On a way so short that those differences would be rounding, the middle stands for all of it.
        short = c <= torch.finfo(wide).eps ** (2 / 3) * (mean(last * last) + self.eps)
        middle = (first + last) / 2
        inverse = (mean(middle * middle) + self.eps).rsqrt()
        at_middle = inverse * self.centre(g) - inverse**3 * middle * mean(middle * g)

        c = torch.where(short, 1, c)  # not used then, but a number
        begin = mean(first * d) / c
        finish = begin + 1
        r = first - begin * d
        m = (mean(r * r) + self.eps).clamp_min(1e-30)
        root_first, root_last = (m + c * begin**2).sqrt(), (m + c * finish**2).sqrt()
        stretch = (c / m).sqrt()
        k = (torch.asinh(finish * stretch) - torch.asinh(begin * stretch)) / c.sqrt()  # the integral of q^(-1/2)
        ratio = finish / root_last - begin / root_first
        k0 = ratio / m  # of q^(-3/2)
        k1 = (1 / root_first - 1 / root_last) / c  # of s q^(-3/2)
        k2 = (k - ratio) / c  # of s^2 q^(-3/2)
        along, across = mean(d * g), mean(r * g)
        on_the_line = k * self.centre(g) - r * (k0 * across + k1 * along) - d * (k1 * across + k2 * along)
        return torch.where(short, at_middle, on_the_line).to(coming.dtype).view_as(end)
