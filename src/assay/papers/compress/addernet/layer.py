"""The adder layer: minus the L1 distance of patches from filters, in tiles that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Gradient = Literal["full", "sign"]
Pair = tuple[int, int]

# Numbers of a tile of differences: on a CPU half a megabyte, which stays in the cache; elsewhere what keeps the device busy.
_TILE, _TILE_ELSEWHERE = 1 << 17, 1 << 25
# Numbers of the patches that are cut out at once (but those of one example at least).
_PATCHES = 1 << 19
# On a core the distance of shorter patches is faster with torch.cdist, that of longer ones up to twice as fast without.
_SHORT = 48


def adder2d(
    images: Tensor,
    filters: Tensor,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    gradient: Gradient = "full",
) -> Tensor:
    """Minus the L1 distance of every patch from every filter: ``F.conv2d`` with additions alone (eq. 2).

    Args:
        images: (B, C, H, W). Half precision is computed in float32.
        filters: (T, C, h, w).
        stride: steps between patches.
        padding: zeros around the images; their distance from the filters counts.
        gradient: ``"full"``: differences for the filters, clipped differences for the images (eq. 5, 6); ``"sign"``: the
            derivative, for both.

    Shape: (B, C, H, W) -> (B, T, H', W'), in channels_last; all of it is at most 0.

    Raises:
        ValueError: there is no such gradient, or filters do not fit the images.
    """
    if gradient not in ("full", "sign"):
        raise ValueError(f"gradient must be 'full' or 'sign', not {gradient!r}")
    sides = tuple(side + 2 * zeros for side, zeros in zip(images.shape[2:], _pair(padding), strict=True))
    if images.shape[1] != filters.shape[1] or any(side < kernel for side, kernel in zip(sides, filters.shape[2:], strict=True)):
        raise ValueError(f"filters {tuple(filters.shape)} do not fit images {tuple(images.shape)} with padding {padding}")
    exact = torch.promote_types(torch.promote_types(images.dtype, filters.dtype), torch.float32)
    out: Tensor = _Adder.apply(images.to(exact), filters.to(exact), _pair(stride), _pair(padding), gradient)  # type: ignore[no-untyped-call]
    return out.to(images.dtype)


def _pair(size: int | Pair) -> Pair:
    return (size, size) if isinstance(size, int) else size


class _Adder(torch.autograd.Function):
    """Input and filters are all that is kept for the way back; patches are cut out again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, stride: Pair, padding: Pair, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(images, filters)
        ctx.stride, ctx.padding, ctx.gradient = stride, padding, gradient
        rows = _as_rows(filters)
        found = []
        for part in _parts(images, filters, stride):
            patches = _cut(_padded(images[part], padding), filters, stride)
            away = _distances(patches.flatten(3).flatten(0, 2), rows)
            found.append(away.view(*patches.shape[:3], len(rows)))
        return torch.cat(found).neg_().permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        images, filters = ctx.saved_tensors
        rows = _as_rows(filters)
        outer = outer.permute(0, 2, 3, 1)
        d_images = torch.empty_like(images.permute(0, 2, 3, 1)) if ctx.needs_input_grad[0] else None
        d_rows = torch.zeros_like(rows)
        for part in _parts(images, filters, ctx.stride):
            padded = _padded(images[part], ctx.padding)
            patches = _cut(padded, filters, ctx.stride)
            given, flat = outer[part].flatten(0, 2), patches.flatten(3).flatten(0, 2)
            d_patches = _backward(flat, rows, given, ctx.gradient, d_rows, wanted=d_images is not None)
            if d_images is not None and d_patches is not None:
                d_images[part] = _put_back(d_patches.view(patches.shape), padded, ctx.stride, ctx.padding)
        height, width = filters.shape[2:]
        d_filters = d_rows.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)
        return None if d_images is None else d_images.permute(0, 3, 1, 2), d_filters, None, None, None


def _as_rows(filters: Tensor) -> Tensor:
    """(T, C, h, w) -> (T, h w C), in the order of the patches."""
    return filters.permute(0, 2, 3, 1).flatten(1).contiguous()


def _parts(images: Tensor, filters: Tensor, stride: Pair) -> Iterator[slice]:
    """As many examples at a time as may have their patches in memory; all at once where a graph is made of it."""
    if torch.compiler.is_compiling() or images.device.type != "cpu":
        yield slice(None)
        return
    places = images.shape[2] * images.shape[3] // (stride[0] * stride[1])
    few = max(1, _PATCHES // (places * filters[0].numel()))
    for start in range(0, len(images) or 1, few):
        yield slice(start, start + few)


def _padded(images: Tensor, padding: Pair) -> Tensor:
    """(B, C, H, W) -> (B, H + 2 p, W + 2 q, C), channels next to each other in memory."""
    down, across = padding
    return F.pad(images.permute(0, 2, 3, 1), (0, 0, across, across, down, down)).contiguous()


def _cut(padded: Tensor, filters: Tensor, stride: Pair) -> Tensor:
    """All patches, as a view (B, H', W', h, w, C)."""
    height, width = filters.shape[2:]
    return padded.unfold(1, height, stride[0]).unfold(2, width, stride[1]).permute(0, 1, 2, 4, 5, 3)


def _put_back(d_patches: Tensor, padded: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of images from that of their patches: the adjoint of cutting and padding, (B, H, W, C)."""
    whole = torch.zeros_like(padded)
    _, rows, columns, height, width, _ = d_patches.shape
    for i in range(height):
        for j in range(width):
            down = slice(i, i + stride[0] * (rows - 1) + 1, stride[0])
            across = slice(j, j + stride[1] * (columns - 1) + 1, stride[1])
            whole[:, down, across] += d_patches[:, :, :, i, j]
    return whole[:, padding[0] : whole.shape[1] - padding[0], padding[1] : whole.shape[2] - padding[1]]


def _tiles(patches: Tensor, rows: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Which patches, which filters, and filters minus patches (p, t, K), in memory that the next tile takes again."""
    size = _TILE if patches.device.type == "cpu" else _TILE_ELSEWHERE
    some = min(len(rows), max(1, size // rows.shape[1]))
    few = max(1, size // (some * rows.shape[1]))
    memory = patches.new_empty(few * some * rows.shape[1])
    for start in range(0, len(patches), few):
        here = slice(start, start + few)
        for first in range(0, len(rows), some):
            these = slice(first, first + some)
            shape = (len(patches[here]), len(rows[these]), rows.shape[1])
            yield here, these, torch.sub(rows[these], patches[here].unsqueeze(1), out=memory[: math.prod(shape)].view(shape))


def _distances(patches: Tensor, rows: Tensor) -> Tensor:
    """The L1 distance of patches (P, K) from filters (T, K): (P, T)."""
    if torch.compiler.is_compiling() or patches.device.type != "cpu" or rows.shape[1] < _SHORT:
        return torch.cdist(patches, rows, p=1.0)
    found = patches.new_empty(len(patches), len(rows))
    for here, these, differences in _tiles(patches, rows):
        torch.sum(differences.abs_(), 2, out=found[here, these])
    return found


def _backward(patches: Tensor, rows: Tensor, given: Tensor, gradient: str, d_rows: Tensor, wanted: bool) -> Tensor | None:
    """The gradient of patches (P, K) where it is wanted; that of filters is added to ``d_rows``. ``given``: (P, T)."""
    if gradient == "full":  # sum_p g (x_p - w): a matrix product, no differences are needed (eq. 5)
        d_rows.addmm_(given.t(), patches).addcmul_(given.sum(0).unsqueeze(1), rows, value=-1)
        if not wanted:
            return None
    found = torch.zeros_like(patches)
    for here, these, differences in _tiles(patches, rows):
        if gradient == "full":
            differences.clamp_(-1, 1)  # HT, eq. 6 and 7
        else:
            differences.sign_()  # eq. 4
            d_rows[these] -= torch.bmm(given[here, these].t().unsqueeze(1), differences.transpose(0, 1)).squeeze(1)
        found[here].unsqueeze(1).baddbmm_(given[here, these].unsqueeze(1), differences)
    return found


class _LocalRate(torch.autograd.Function):
    """Filters as they are; their gradient on the way back times the layer's own rate (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, filters: Tensor, eta: float, adaptive: bool) -> Tensor:
        ctx.eta, ctx.adaptive = eta, adaptive
        return filters.view_as(filters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rate: float | Tensor = ctx.eta
        if ctx.adaptive:
            rate = ctx.eta * math.sqrt(gradient.numel()) / gradient.norm().clamp_min(1e-12)  # eq. 13
        return gradient * rate, None, None


class AdderConv2d(nn.Module):
    """A layer of filters that answers with minus the L1 distance; put batch normalisation behind it.

    With ``adaptive`` the gradient of the filters comes out with length ``eta * sqrt(k)`` after every backward pass, whatever the
    loss's factor: scaling the loss, or clipping gradients, says nothing to such a layer, and gradients of several passes add up
    after that. An optimizer's momentum and weight decay come later, as in the authors' code.

    Args:
        in_channels: C.
        out_channels: T, number of filters; they start from N(0, 1), whatever their size.
        kernel_size: height and width of the filters, or one number for both.
        stride: steps between patches.
        padding: zeros around the images.
        eta: the local rate. The authors' code has 0.2, the paper's text 0.1.
        gradient: ``"full"`` or ``"sign"``, as in :func:`adder2d`.
        adaptive: ``False`` multiplies the gradient by ``eta`` itself; 1 leaves it as it is.

    Shape: (B, C, H, W) -> (B, T, H', W') as with ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        eta: float = 0.2,
        gradient: Gradient = "full",
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        if eta <= 0:
            raise ValueError(f"eta must be above 0, not {eta}")
        if gradient not in ("full", "sign"):
            raise ValueError(f"gradient must be 'full' or 'sign', not {gradient!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = _pair(kernel_size), _pair(stride), _pair(padding)
        self.eta, self.gradient, self.adaptive = eta, gradient, adaptive
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *self.kernel_size))

    def forward(self, images: Tensor) -> Tensor:
        filters: Tensor = _LocalRate.apply(self.weight, self.eta, self.adaptive)  # type: ignore[no-untyped-call]
        return adder2d(images, filters, self.stride, self.padding, self.gradient)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        rate = f"eta={self.eta}" if self.adaptive else f"rate={self.eta}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, gradient={self.gradient!r}, {rate}"
        )
