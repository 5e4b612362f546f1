"""The pieces of a convolutional deep kernel machine: layers that take Gram matrices and give Gram matrices."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Inducing = Literal["none", "global", "local"]
Test = Literal["none", "global", "local", "image", "location"]


class GramState(NamedTuple):
    """What goes from layer to layer.

    The matrix [[ii, ti'], [ti, tt]], of which only the diagonal ``t`` of tt is known, is positive semidefinite in every layer.

    Args:
        ii: (P, P): inducing points with each other; definite wherever it has to be inverted.
        ti: (B, H, W, P), or (B, P) once space is averaged out: places with inducing points.
        t: (B, H, W) or (B,): places with themselves.
        penalty: (): dof times the divergences of all layers so far.
    """

    ii: Tensor
    ti: Tensor
    t: Tensor
    penalty: Tensor


def condition(state: GramState) -> tuple[Tensor, Tensor, Tensor]:
    """What the inducing points say about the places.

    Returns:
        R (P, P) with R' R the inverse of ii; z = ti R' (..., P), features whose inner products are the part of tt that the
        inducing points explain (Nystroem); what of t they leave open, t - |z|^2 (...).
    """
    root = torch.linalg.cholesky(state.ii)
    inverse = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype, device=root.device), upper=False)
    z = state.ti @ inverse.T
    return inverse, z, state.t - z.square().sum(dim=-1)


def divergence(factor: Tensor) -> Tensor:
    """KL( N(0, G) || N(0, K) ) for ``factor`` (P, P) = K^(-1/2) G^(1/2), any roots: -> ()."""
    log_det: Tensor = torch.linalg.slogdet(factor).logabsdet
    return 0.5 * (factor.square().sum() - len(factor)) - log_det


def _pooled(t: Tensor, size: int, stride: int) -> Tensor:
    """Mean of t (B, H, W) over the places of a filter, those beyond the border left out."""
    pooled: Tensor = F.avg_pool2d(t, size, stride, padding=size // 2, count_include_pad=False)
    return pooled


class Whitening(nn.Module):
    """Pixels standardised, decorrelated (ZCA) and standardised again; the identity before :meth:`fit_`.

    Args:
        in_shape: (C, H, W).
        floor: share of the mean eigenvalue that is added to all of them; 0.1 in the authors' code.

    Shape: (B, C, H, W) -> the same.
    """

    matrix: Tensor
    before: Tensor
    after: Tensor

    def __init__(self, in_shape: tuple[int, int, int], floor: float = 0.1) -> None:
        super().__init__()
        self.floor = floor
        channels = in_shape[0]
        start = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None].repeat(1, channels, 1, 1)
        self.register_buffer("before", start)  # (2, C, 1, 1): mean and deviation of every channel
        self.register_buffer("after", start.clone())
        self.register_buffer("matrix", torch.eye(math.prod(in_shape), dtype=torch.float64))

    @torch.no_grad()
    def fit_(self, images: Tensor) -> None:
        """Take means, deviations and the matrix from images (N, C, H, W)."""
        self.before.copy_(_moments(images))
        flat = ((images - self.before[0]) / self.before[1]).flatten(1)
        values, vectors = torch.linalg.eigh(flat.T @ flat)
        self.matrix.copy_(vectors * (values + self.floor * values.mean()).rsqrt() @ vectors.T)
        self.after.copy_(_moments((flat @ self.matrix).view_as(images)))

    def forward(self, images: Tensor) -> Tensor:
        flat = ((images - self.before[0]) / self.before[1]).flatten(1)
        return ((flat @ self.matrix).view_as(images) - self.after[0]) / self.after[1]


def _moments(images: Tensor) -> Tensor:
    """Mean and deviation of every channel, (2, C, 1, 1)."""
    return torch.stack([images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)).clamp_min(1e-12)])[:, :, None, None]


class PatchGram(nn.Module):
    """From images to inner products: the first state, of image patches with inducing patches, divided by a patch's numbers.

    Args:
        patches: (P, C, k, k) to start from, k odd; they are learnt.
        stride: of the places at which an image is looked at.

    Shape: (B, C, H, W) -> a state of (B, H / stride, W / stride) places.
    """

    def __init__(self, patches: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.patches = nn.Parameter(patches.clone())

    def forward(self, images: Tensor) -> GramState:
        flat, side = self.patches.flatten(1), self.patches.shape[-1]
        ti = F.conv2d(images, self.patches, stride=self.stride, padding=side // 2).movedim(1, -1)
        t = _pooled(images.square().mean(dim=1), side, self.stride)
        return GramState(flat @ flat.T / flat.shape[1], ti / flat.shape[1], t, images.new_zeros(()))


class _ArcCosine(torch.autograd.Function):
    """``(sqrt(i t - x^2) + (pi - theta) x) / pi``; its slopes are finite where those of the angle alone are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
        """x (..., P), i (P,), t (...) -> (..., P)."""
        high = (t[..., None] * i - x.square()).clamp_min_(0).sqrt_()  # sqrt(i t) sin(theta)
        rest = math.pi - torch.atan2(high, x)
        ctx.save_for_backward(high, rest, i, t)
        return (high + rest * x) / math.pi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d/dx = (pi - theta) / pi, and d/di = sqrt(i t) sin(theta) / (2 pi i)."""
        high, rest, i, t = ctx.saved_tensors
        high = high * slope / (2 * math.pi)
        return rest * slope / math.pi, high.flatten(0, -2).sum(dim=0) / i, high.sum(dim=-1) / t


def arc_cosine(x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    """The kernel of infinitely many ReLU units, 2 E[relu(u) relu(v)] for u, v normal with covariance x, variances i and t.

    Args:
        x: (..., P).
        i: (P,), positive.
        t: (...), positive.
    """
    kernel: Tensor = _ArcCosine.apply(x, i, t)  # type: ignore[no-untyped-call]
    return kernel


class ArcCosKernel(nn.Module):
    """The kernel of a ReLU layer with bias: weight * arc cosine + bias, both learnt.

    Args:
        weight: variance of the weights at the start.
        bias: variance of the biases at the start.
        jitter: what is added to variances, before and after, once as a share and once as it is, so that matrices can be inverted.
    """

    def __init__(self, weight: float = 1.0, bias: float = 0.1, jitter: float = 1e-4) -> None:
        super().__init__()
        self.jitter = jitter
        self.log_weight = nn.Parameter(torch.tensor(math.log(weight), dtype=torch.float64))
        self.log_bias = nn.Parameter(torch.tensor(math.log(bias), dtype=torch.float64))

    def forward(self, state: GramState) -> GramState:
        weight, bias = self.log_weight.exp(), self.log_bias.exp()
        ii, ti, t, penalty = _jittered(state, self.jitter)
        each = ii.diagonal()
        ii = weight * arc_cosine(ii, each, each) + bias
        ti = weight * arc_cosine(ti, each, t) + bias
        return _jittered(GramState(ii, ti, weight * t + bias, penalty), self.jitter)


def _jittered(state: GramState, jitter: float) -> GramState:
    return state._replace(
        ii=state.ii + torch.diag(jitter * (1 + state.ii.diagonal())),
        t=state.t + jitter * (1 + state.t),
    )


class ConvMix(nn.Module):
    """A convolution of infinitely many planes, for which new inducing points are weighted sums over nine times the old ones.

    Args:
        points: P before.
        new_points: P' after.
        size: of the filter, odd.
        stride: of the filter.

    Shape: (B, H, W) places -> (B, H / stride, W / stride).
    """

    def __init__(self, points: int, new_points: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        # Numbers of order one are what Adam moves; they enter divided by the root of P.
        self.weights = nn.Parameter(torch.randn(new_points, points, size, size, dtype=torch.float64))

    def forward(self, state: GramState) -> GramState:
        weights = self.weights / math.sqrt(self.weights.shape[1])
        # (B, H, W, P) lies in memory as channels_last wants it.
        ti = F.conv2d(state.ti.movedim(-1, 1), weights, stride=self.stride, padding=self.size // 2).movedim(1, -1)
        each = weights.flatten(2).permute(2, 0, 1)  # (places of the filter, P', P)
        ii = (each @ state.ii @ each.mT).mean(dim=0)
        return GramState(ii, ti / self.size**2, _pooled(state.t, self.size, self.stride), state.penalty)


class GramLayer(nn.Module):
    """Where representations are learnt: any Gram matrix G of the inducing points in place of the kernel's K.

    Places follow as a Gaussian process has it that knows its inducing points' values: with A = ti K^-1, the new ti is A G and
    the new t is diag(A G A') + t - diag(A ti').

    Args:
        points: P.
        dof: what leaving the kernel costs, times the divergence; 0 costs nothing. The paper's best are 0.01 and below.

    Before training, G has to be set to the first K by :meth:`pin_`.
    """

    def __init__(self, points: int, dof: float = 0.01) -> None:
        super().__init__()
        self.dof = dof
        self.factor = nn.Parameter(math.sqrt(points) * torch.eye(points, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def pin_(self, ii: Tensor) -> None:
        """Let G be ``ii`` (P, P): the layer then changes nothing, and costs nothing."""
        self.factor.copy_(math.sqrt(len(ii)) * torch.linalg.cholesky(ii))
        self.log_scale.zero_()

    def root(self) -> Tensor:
        """(P, P) whose product with its transpose is G."""
        return self.factor * (0.5 * self.log_scale).exp() / math.sqrt(len(self.factor))

    def forward(self, state: GramState) -> GramState:
        inverse, z, rest = condition(state)
        root = self.root()
        relative = inverse @ root
        y = z @ relative
        penalty = state.penalty + self.dof * divergence(relative)
        return GramState(root @ root.T, y @ root.T, y.square().sum(dim=-1) + rest, penalty)


class GramNorm(nn.Module):
    """Batch normalisation of Gram matrices: variances are divided by their mean, covariances by the roots, then scaled as learnt.

    Args:
        inducing: over what the variances of inducing points are averaged: ``"global"`` all of them, ``"local"`` each by itself,
            ``"none"`` not at all.
        test: the same for places: ``"global"`` the batch, ``"location"`` each place over the batch, ``"image"`` each image,
            ``"local"`` each by itself. After training, means over the batch are running averages of those that were seen.
        places: (H, W) of the state, which ``"location"`` needs to know; () where space is averaged out.
        momentum: how fast running averages move.
    """

    running: Tensor

    def __init__(
        self, inducing: Inducing = "global", test: Test = "global", places: tuple[int, ...] = (), momentum: float = 0.1
    ) -> None:
        super().__init__()
        for name, chosen, allowed in (("inducing", inducing, get_args(Inducing)), ("test", test, get_args(Test))):
            if chosen not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {chosen!r}")
        self.inducing, self.test, self.momentum = inducing, test, momentum
        self.log_inducing = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_test = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("running", torch.ones(places if test == "location" else (), dtype=torch.float64))

    def _mean(self, t: Tensor) -> Tensor:
        """By what t (B, ...) is divided, in a shape that broadcasts."""
        if self.test == "none":
            return torch.ones_like(self.running)
        if self.test == "local":
            return t
        if self.test == "image":
            return t.flatten(1).mean(dim=1).view(-1, *[1] * (t.dim() - 1)) if t.dim() > 1 else t
        if not self.training:
            return self.running
        mean = t.mean(dim=0) if self.test == "location" else t.mean()
        with torch.no_grad():
            self.running.lerp_(mean, self.momentum)
        return mean

    def forward(self, state: GramState) -> GramState:
        own = state.ii.diagonal()
        mean = {"none": torch.ones_like(own), "global": own.mean().expand_as(own), "local": own}[self.inducing]
        points = self.log_inducing.exp() * mean.rsqrt()  # (P,)
        places = self.log_test.exp() * self._mean(state.t).rsqrt()
        return GramState(
            points[:, None] * state.ii * points, places[..., None] * state.ti * points, places.square() * state.t, state.penalty
        )


class Residual(nn.Module):
    """Half of what goes around and half of what goes through: the kernel of a sum of two independent functions.

    Args:
        branch: of states.
        shortcut: of states.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, state: GramState) -> GramState:
        through, around = self.branch(state), self.shortcut(state)
        penalty = through.penalty + around.penalty - state.penalty
        return GramState((through.ii + around.ii) / 2, (through.ti + around.ti) / 2, (through.t + around.t) / 2, penalty)


class NystromGAP(nn.Module):
    """Global average over places. Their covariances are unknown; those that the inducing points explain are taken for all.

    Shape: (B, H, W) places -> (B,).
    """

    def forward(self, state: GramState) -> GramState:
        _, z, rest = condition(state)
        space = tuple(range(1, state.t.dim()))
        explained = z.mean(dim=space).square().sum(dim=-1)
        left = rest.mean(dim=space) / math.prod(state.t.shape[1:])
        return GramState(state.ii, state.ti.mean(dim=space), explained + left, state.penalty)


class Posterior(NamedTuple):
    """Gaussian functions of every class at the examples.

    Args:
        mean: (B, K).
        variance: (B,), the same for all classes.
        penalty: (): all divergences, weighted.
    """

    mean: Tensor
    variance: Tensor
    penalty: Tensor

    def samples(self, noise: Tensor) -> Tensor:
        """Logits (S, B, K) from standard normal noise (S, B, K) or (S, 1, K)."""
        return self.mean + self.variance.clamp_min(0).sqrt()[:, None] * noise


class GPOutput(nn.Module):
    """A sparse Gaussian process for each class: the values at the inducing points are normal, with a learnt mean and covariance.

    Its divergence from the prior is averaged over classes, as in the authors' code; the bound on the evidence has the sum.

    Args:
        points: P.
        num_classes: K.
    """

    def __init__(self, points: int, num_classes: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(points, num_classes, dtype=torch.float64))
        self.factor = nn.Parameter(torch.randn(points, points, dtype=torch.float64))

    def forward(self, state: GramState) -> Posterior:
        inverse, z, rest = condition(state)
        mean = inverse @ self.mean
        relative = inverse @ self.factor / math.sqrt(len(self.factor))
        price = divergence(relative) + 0.5 * mean.square().sum() / mean.shape[1]
        return Posterior(z @ mean, rest + (z @ relative).square().sum(dim=-1), state.penalty + price)
