"""Layers of noisy threshold units, linear and convolutional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError

Noise = Literal["bernoulli", "gaussian"]


class Units(nn.Module):
    """What linear and convolutional layers of threshold units share; ``weighted`` is the map without bias."""

    weight: Tensor
    bias: Tensor | None

    def become(self, noise: Noise, p: float, sigma: float, per_synapse: bool, real_inputs: bool) -> None:
        """Set what the noise is, and the gains to 1."""
        if noise not in ("bernoulli", "gaussian"):
            raise AssayError(f"The noise of a sampling machine is 'bernoulli' or 'gaussian', not {noise!r}.")
        if not 0 < p < 1 or sigma <= 0:
            raise AssayError(f"Noise with p={p} and sigma={sigma} is none: give p between 0 and 1, and sigma above 0.")
        self.noise, self.p, self.per_synapse, self.real_inputs = noise, p, per_synapse, real_inputs
        self.sigma = math.sqrt(p * (1 - p)) if noise == "bernoulli" else sigma  # the deviation of xi
        self.mean = p if noise == "bernoulli" else 1.0
        self.gain = nn.Parameter(torch.ones_like(self.weight.flatten(1)[:, 0].detach()))  # beta, one for each unit
        self.stream = 0  # tells the noise of this layer from that of the others, where it is repeatable
        self.draw: int | None = None  # which repeatable noise; None: fresh noise from torch's generator

    def weighted(self, z: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def padded(self, z: Tensor) -> Tensor:
        """Inputs with whatever stands around them."""
        return z

    def across(self, numbers: Tensor) -> Tensor:
        """(units,) in a shape that meets the layer's output."""
        return numbers

    def argument(self, z: Tensor) -> Tensor:
        """What the error function of the law is taken of, beta w . z / ||w|| + b / (s ||w||); of the output's shape."""
        return self._argument(*self._clean(self._inputs(z)))

    def prob(self, z: Tensor) -> Tensor:
        """How probably each unit fires, given its inputs; of the output's shape."""
        return 0.5 * (1 + torch.erf(self.argument(z)))

    def forward(self, x: Tensor) -> Tensor:
        z = self._inputs(x)
        clean, length = self._clean(z)
        expected = torch.erf(self._argument(clean, length))  # 2P - 1
        with torch.no_grad():
            if self.per_synapse:
                fires = 2 * self._uniform(expected) - 1 < expected
            else:
                more = self.across(math.sqrt(2) * self.sigma * self.gain - self.mean)  # a
                u = self.weighted(self._drawn(z) * z, self.weight) + more * clean
                fires = u >= 0 if self.bias is None else u + self.across(self.bias) >= 0
            state = 2 * fires.to(expected.dtype) - 1
        return state + (expected - expected.detach())  # the value of the state, the gradient of what was expected

    def _inputs(self, x: Tensor) -> Tensor:
        if self.real_inputs:
            return self.padded(x)
        return self.padded(sign(x))

    def _clean(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The sum without noise, and what its deviation is in proportion to: ||w||, where all inputs are -1 or 1."""
        clean = self.weighted(z, self.weight)
        if self.real_inputs:
            return clean, self.weighted(z.square(), self.weight.square()).clamp_min(_LEAST).sqrt()
        return clean, self.across(self.weight.flatten(1).square().sum(dim=1).clamp_min(_LEAST).sqrt())

    def _argument(self, clean: Tensor, length: Tensor) -> Tensor:
        signal = self.across(self.gain) * clean
        if self.bias is not None:
            signal = signal + self.across(self.bias) / (math.sqrt(2) * self.sigma)
        return signal / length

    def _drawn(self, z: Tensor) -> Tensor:
        """xi, for each input."""
        if self.noise == "gaussian":
            if self.draw is None:
                return 1 + self.sigma * torch.randn_like(z)
            return 1 + self.sigma * math.sqrt(2) * torch.erfinv(2 * self._uniform(z) - 1)
        return torch.empty_like(z).bernoulli_(self.p) if self.draw is None else (self._uniform(z) < self.p).to(z.dtype)

    def _uniform(self, like: Tensor) -> Tensor:
        """Numbers in (0, 1): fresh ones, or those of a repeatable draw, which are the same for all examples of a batch."""
        if self.draw is None:
            return torch.rand_like(like)
        return repeatable_uniform(like.shape[1:], self.stream, self.draw, like.device).to(like.dtype)


_LEAST = 1e-24  # of a squared length: a unit without weights has no direction, and a finite gradient


def sign(x: Tensor) -> Tensor:
    """1 where ``x`` is not negative, else -1; the gradient passes as if nothing had happened."""
    return 2 * (x.detach() >= 0).to(x.dtype) - 1 + (x - x.detach())


def repeatable_uniform(shape: Sequence[int], stream: int, draw: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers in (0, 1) that are a function of their place, the stream and the draw; they need no generator's state.

    So a network can average over noise and still say the same of an example whenever and beside whichever others it comes,
    also as an exported program. Made by the permutation of O'Neill's PCG (RXS M XS, 32 bits).
    """
    count = math.prod(shape)
    x = torch.arange(count, device=device) + (stream * 1_000_003 + draw) * 2_654_435_761 % 2**32
    for _ in range(2):  # twice, so that neighbouring places and draws have nothing in common
        x = (x * 747_796_405 + 2_891_336_453) & 0xFFFFFFFF
        x = (((x >> ((x >> 28) + 4)) ^ x) * 277_803_737) & 0xFFFFFFFF
        x = (x >> 22) ^ x
    return ((x >> 8).to(torch.float32) + 0.5).div(2**24).view(1, *shape)


class NSMLinear(Units, nn.Linear):  # type: ignore[misc]  # torch's annotations differ from layer to layer
    """A layer of noisy threshold units.

    Args:
        in_features: inputs.
        out_features: units.
        bias: whether units have a bias, to which no noise is added.
        noise: ``"bernoulli"``, synapses let through or do not, or ``"gaussian"``, normal noise around 1.
        p: probability that a synapse lets through.
        sigma: deviation of normal noise.
        per_synapse: noise for every synapse, so that units are independent given their inputs; each is then drawn by the law,
            which for Bernoulli noise supposes some fifty inputs. Otherwise units share the noise of an input.
        real_inputs: take the inputs as they are, numbers of any size (for the first layer); otherwise their signs. The length
            of w is then that of (w_j z_j), for which scale cancels as well.

    Shape: (..., in_features) -> (..., out_features), -1 or 1; the gradient is that of 2P - 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        noise: Noise = "bernoulli",
        p: float = 0.5,
        sigma: float = 1.0,
        per_synapse: bool = False,
        real_inputs: bool = False,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias)
        self.become(noise, p, sigma, per_synapse, real_inputs)

    def weighted(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.linear(z, weight)


class NSMConv2d(Units, nn.Conv2d):
    """A convolution of noisy threshold units.

    Args:
        in_channels: planes of the input.
        out_channels: planes of the output, each with one gain.
        kernel_size: as for ``nn.Conv2d``.
        stride: as for ``nn.Conv2d``.
        padding: rows and columns of units that are off (-1), or of zeros around ``real_inputs``.
        dilation: as for ``nn.Conv2d``.
        groups: as for ``nn.Conv2d``.
        bias: and what follows as for :class:`NSMLinear`.

    Shape: (B, in_channels, H, W) -> (B, out_channels, H', W'), -1 or 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        noise: Noise = "bernoulli",
        p: float = 0.5,
        sigma: float = 1.0,
        per_synapse: bool = False,
        real_inputs: bool = False,
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.become(noise, p, sigma, per_synapse, real_inputs)

    def weighted(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(z, weight, None, self.stride, 0, self.dilation, self.groups)

    def padded(self, z: Tensor) -> Tensor:
        around = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":  # a layer that was an nn.Conv2d before: its border is its inputs, again
            return F.pad(z, around, self.padding_mode)
        return F.pad(z, around, value=0.0 if self.real_inputs else -1.0) if any(around) else z

    def across(self, numbers: Tensor) -> Tensor:
        return numbers.view(-1, 1, 1)
