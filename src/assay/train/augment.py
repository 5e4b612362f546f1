"""Augmentation of whole batches, each ``(inputs, generator) -> inputs`` for ``Recipe(augment=...)``."""

from __future__ import annotations

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
