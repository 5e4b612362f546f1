"""Augmentation of whole batches, each ``(inputs, generator) -> inputs`` for ``Recipe(augment=...)``."""

from __future__ import annotations

import math
from collections.abc import Callable

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
