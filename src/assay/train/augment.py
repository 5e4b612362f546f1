"""Augmentation of whole batches, each ``(inputs, generator) -> inputs`` for ``Recipe(augment=...)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


def flip_and_crop(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """The standard augmentation of small photographs: mirrored with probability 1/2, and shifted by up to ``pad`` pixels.

    Every image draws for itself. What comes in at the border is the image reflected, as in the wide residual networks' paper.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """
    count, _, height, width = images.shape
    device = images.device
    mirrored = torch.rand(count, generator=generator, device=device) < 0.5
    down, right = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) + down  # (B, H)
    columns = torch.arange(width, device=device) + right  # (B, W)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    every = torch.arange(count, device=device)[:, None, None]
    # Indexing on both sides of the slice puts the indexed axes first: (B, H, W, C).
    return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def in_turn(images: Tensor, generator: torch.Generator, steps: tuple[Callable[[Tensor, torch.Generator], Tensor], ...]) -> Tensor:
    """Several augmentations one after the other: ``augment=partial(in_turn, steps=(flip_and_crop, rand_augment))``."""
    for step in steps:
        images = step(images, generator)
    return images


def warp(images: Tensor, maps: Tensor, fill: Tensor | None = None) -> Tensor:
    """Every image through an affine map of its own, interpolated bilinearly.

    Args:
        images: (B, C, H, W).
        maps: (B, 2, 3): where in the input the pixel at (x, y, 1) of the output comes from, both from -1 to 1 over the picture.
        fill: what stands outside of the input, anything that broadcasts to the images; ``None`` continues the border.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)  # (B, H, W, 2)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved if fill is None else torch.where((grid.abs() <= 1).all(dim=3).unsqueeze(1), moved, fill)


def random_resized_crop(
    images: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirror: float = 0.5,
) -> Tensor:
    """The standard augmentation of large photographs: a random part of the picture, resized to the whole, maybe mirrored.

    Every image draws for itself, as torchvision's ``RandomResizedCrop`` does: an area and a ratio of width to height, and again
    if that part does not fit, up to ten times; then all of the picture.

    Args:
        images: (B, C, H, W).
        generator: of the random numbers.
        scale: smallest and largest area of the part, as shares of the picture.
        ratio: smallest and largest width over height; uniform on a logarithmic scale.
        mirror: how probable it is that left and right are exchanged.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """
    count, _, height, width = images.shape
    boxes = crop_boxes(count, height, width, generator, scale, ratio).to(images.dtype)
    top, left, tall, wide = boxes.unbind(dim=1)
    sign = torch.where(torch.rand(count, generator=generator, device=images.device) < mirror, -1.0, 1.0).to(images.dtype)
    maps = images.new_zeros(count, 2, 3)
    maps[:, 0, 0], maps[:, 0, 2] = sign * wide / width, (2 * left + wide) / width - 1
    maps[:, 1, 1], maps[:, 1, 2] = tall / height, (2 * top + tall) / height - 1
    return warp(images, maps)


def crop_boxes(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Parts of a picture as :func:`random_resized_crop` draws them: (count, 4) int64: top, left, height, width."""
    tries = torch.rand(4, count, 10, generator=generator, device=generator.device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[0])
    across = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * tries[1])
    wide, tall = (area * across).sqrt().round().long(), (area / across).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # of the tries that fit; where none does, that does not matter
    some = fits.any(dim=1)
    wide = torch.where(some, wide.gather(1, first).squeeze(1), width)
    tall = torch.where(some, tall.gather(1, first).squeeze(1), height)
    top = (tries[2, :, 0] * (height - tall + 1)).long()
    left = (tries[3, :, 0] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def deform(
    images: Tensor,
    generator: torch.Generator,
    translate: float = 0.05,
    rotate: float = 15.0,
    scale: float = 0.15,
    sigma: float = 6.0,
    alpha: float = 36.0,
) -> Tensor:
    """What a hand does to a digit: shifted, turned, stretched and bent elastically, each image anew, in one interpolation.

    The defaults are those of Ciresan et al. 2011 for digits of 29x29; for other sizes see :func:`elastic_for`.

    Args:
        images: (B, C, H, W). What comes in at the border continues the border.
        generator: of the random numbers.
        translate: largest shift either way, as a share of height and width.
        rotate: largest angle either way, in degrees.
        scale: largest change of height and of width, each drawn for itself, as a share.
        sigma: how smooth the elastic deformation is, in pixels: the standard deviation of the Gaussian.
        alpha: how strong it is, see :func:`elastic_fields`; 0 leaves it out.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """
    count, _, height, width = images.shape
    draws = torch.rand(5, count, generator=generator, device=images.device).mul_(2).sub_(1).to(images.dtype)
    angle = math.radians(rotate) * draws[0]
    across, down = 1 / (1 + scale * draws[1]), 1 / (1 + scale * draws[2])
    maps = torch.stack(
        [
            torch.stack([angle.cos() * across, -angle.sin() * down * (height / width), 2 * translate * draws[3]], dim=1),
            torch.stack([angle.sin() * across * (width / height), angle.cos() * down, 2 * translate * draws[4]], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    shifts = None if alpha == 0 else alpha * elastic_fields(count, height, width, generator, sigma).to(images.dtype)
    return displace(images, shifts, maps)


def displace(images: Tensor, shifts: Tensor | None, maps: Tensor | None = None) -> Tensor:
    """Every pixel from somewhere else, interpolated bilinearly; beyond the border the border goes on.

    Args:
        images: (B, C, H, W).
        shifts: (B, 2, H, W) how many pixels to the right and down of its own place each pixel comes from, after ``maps``.
        maps: (B, 2, 3) as :func:`warp` takes them; ``None`` is the identity.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """
    height, width = images.shape[2:]
    across, down = (torch.arange(1, 2 * side, 2, dtype=images.dtype, device=images.device) / side - 1 for side in (width, height))
    if maps is None:
        maps = torch.eye(2, 3, dtype=images.dtype, device=images.device).unsqueeze(0)
    # Line by line, from -1 to 1 over the picture: a tenth of the time that F.affine_grid takes for small pictures.
    x, y, one = (part[..., None, None] for part in maps.to(images.dtype).unbind(dim=2))  # (B, 2, 1, 1) each
    grid = x * across + (y * down[:, None] + one)  # (B, 2, H, W)
    if shifts is not None:
        grid = torch.addcmul(grid, shifts, images.new_tensor([2 / width, 2 / height]).view(2, 1, 1))
    grid = grid.expand(len(images), -1, -1, -1).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def elastic_fields(count: int, height: int, width: int, generator: torch.Generator, sigma: float = 6.0) -> Tensor:
    """Smooth random fields of displacements, before they are multiplied by their strength alpha (Simard et al. 2003).

    Noise that is uniform in (-1, 1) at every pixel, smoothed by a Gaussian whose weights sum to 1. The standard deviation is
    then about 0.163 / sigma: with sigma = 6 and alpha = 36 pixels move by one pixel or so. torchvision's ``ElasticTransform``
    moves half as far for the same alpha. Smoothing is what costs; so it is done once, for two large sheets of noise (one for each
    direction), and every field is a window into them at a place of its own, with a sign of its own.

    Args:
        count: B.
        height: of a field.
        width: of a field.
        generator: of the places and signs. The sheets are always the same.
        sigma: standard deviation of the Gaussian, in pixels.

    Returns:
        (B, 2, height, width) float32 on the generator's device: to the right, and down.
    """
    side = max(512, 8 * max(height, width))
    windows = _sheets(sigma, side, str(generator.device)).unfold(1, height, 1).unfold(2, width, 1)  # (2, ., ., height, width)
    top = torch.randint(windows.shape[1], (count, 2), generator=generator, device=generator.device)
    left = torch.randint(windows.shape[2], (count, 2), generator=generator, device=generator.device)
    signs = torch.randint(2, (count, 2, 1, 1), generator=generator, device=generator.device) * 2.0 - 1.0
    fields: Tensor = windows[torch.arange(2, device=generator.device), top, left]
    return fields * signs


@cache
def _sheets(sigma: float, side: int, device: str) -> Tensor:
    """Two sheets (2, side, side) of uniform noise smoothed on a torus, by the Gaussian's own Fourier transform."""
    noise = torch.rand(2, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    lines, columns = torch.fft.fftfreq(side, dtype=torch.float64), torch.fft.rfftfreq(side, dtype=torch.float64)
    gain = torch.exp(-2 * (math.pi * sigma) ** 2 * (lines[:, None] ** 2 + columns**2))
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * gain, s=(side, side))
    return smooth.float().to(device)


def elastic_for(height: int, width: int, sigma: float = 6.0, alpha: float = 36.0, of: int = 29) -> tuple[float, float]:
    """``sigma`` and ``alpha`` with which :func:`deform` bends a picture of this size as it bends one of ``of`` pixels.

    Smoothness grows with the picture. A displacement is about alpha / sigma, so that alpha grows with its square.
    """
    times = min(height, width) / of
    return sigma * times, alpha * times**2
