"""Corruptions of images in pure torch, in five severities: what a test camera may do that the training camera did not.

The kinds and the idea of fixed severities follow Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", 2019; the strengths are our own, chosen for small images, and grow with severity.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.errors import AssayError


def corrupt_images(images: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt images in [0, 1]; the result is clamped to [0, 1].

    Args:
        images: (N, C, H, W) float.
        kind: a name of ``CORRUPTIONS``.
        severity: 1 to 5.
        generator: seeded alike, it draws the same noise at every severity, so that damage grows on every image.
    """
    if kind not in CORRUPTIONS:
        raise AssayError(f"There is no shift {kind!r}; choose one of {', '.join(CORRUPTIONS)}.")
    if severity not in (1, 2, 3, 4, 5):
        raise AssayError(f"The severity of a shift is {severity}; give a whole number from 1 to 5.")
    function, strengths = CORRUPTIONS[kind]
    return function(images, strengths[severity - 1], generator).clamp(0.0, 1.0)


def gaussian_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add independent normal noise to every value."""
    return images + std * torch.randn(images.shape, generator=generator, dtype=images.dtype)


def impulse_noise(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Turn a fraction of the pixels black or white."""
    n, _, h, w = images.shape
    chance = torch.rand((n, 1, h, w), generator=generator, dtype=images.dtype)
    colour = torch.rand((n, 1, h, w), generator=generator, dtype=images.dtype).round()
    return torch.where(chance < fraction, colour, images)


def blur(images: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur; ``width`` is its standard deviation as a fraction of the image's shorter side."""
    sigma = width * min(images.shape[-2:])
    radius = min(max(1, math.ceil(3 * sigma)), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def contrast(images: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Pull every pixel towards the mean of its image; ``kept`` is what is left of the difference."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + kept * (images - mean)


def brightness(images: Tensor, added: float, generator: torch.Generator) -> Tensor:
    """Add light; what goes above white is cut off."""
    return images + added


def pixelate(images: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Average over a coarser grid of cells; ``kept`` is the fraction of the rows and of the columns that stay apart."""

    def averaging(side: int) -> Tensor:  # (side, side), row i averages over the cell of i
        cells = max(1, round(side * kept))
        cell = torch.arange(side) * cells // side
        together = (cell[:, None] == cell).to(images.dtype)
        return together / together.sum(dim=1, keepdim=True)

    return averaging(images.shape[-2]) @ images @ averaging(images.shape[-1]).T


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn every image about its centre by ``degrees``, left or right at random; corners repeat the border."""
    side = torch.rand(len(images), generator=generator, dtype=images.dtype).round() * 2 - 1
    angle = side * math.radians(degrees)
    zero = torch.zeros_like(angle)
    h, w = images.shape[-2:]
    # Both axes of affine_grid run from -1 to 1, so that turning an oblong image needs its aspect ratio.
    rows = [angle.cos(), -angle.sin() * h / w, zero, angle.sin() * w / h, angle.cos(), zero]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def occlude(images: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """Cover a grey square at a random place; ``side`` is its length as a fraction of the image's."""
    n, _, h, w = images.shape
    centre = torch.rand((n, 2), generator=generator, dtype=images.dtype)
    rows = (torch.arange(h, dtype=images.dtype) + 0.5) / h
    columns = (torch.arange(w, dtype=images.dtype) + 0.5) / w
    covered = ((rows - centre[:, :1]).abs() < side / 2)[:, None, :, None]  # (N, 1, H, 1)
    covered = covered & ((columns - centre[:, 1:]).abs() < side / 2)[:, None, None, :]  # (N, 1, H, W)
    return torch.where(covered, torch.full_like(images, 0.5), images)


Corruption = Callable[[Tensor, float, torch.Generator], Tensor]

CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float, float, float]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.16, 0.25, 0.40, 0.60)),
    "impulse_noise": (impulse_noise, (0.03, 0.08, 0.15, 0.25, 0.40)),
    "blur": (blur, (0.02, 0.035, 0.05, 0.075, 0.10)),
    "contrast": (contrast, (0.60, 0.45, 0.30, 0.20, 0.10)),
    "brightness": (brightness, (0.10, 0.20, 0.35, 0.50, 0.65)),
    "pixelate": (pixelate, (0.75, 0.62, 0.50, 0.38, 0.25)),
    "rotate": (rotate, (10.0, 20.0, 30.0, 45.0, 60.0)),
    "occlude": (occlude, (0.20, 0.30, 0.40, 0.50, 0.60)),
}
