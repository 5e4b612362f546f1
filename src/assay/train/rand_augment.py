"""RandAugment on whole batches: a few random operations for every image, all of one strength.

Fifteen operations, out of which every image draws for itself: five that move pixels, ten that change colours. What they do is
what Pillow's do on 8-bit images, but for rounding; how strong they are at which magnitude is timm's "increasing" table
(``rand-m7-mstd0.5-inc1``), in which larger magnitudes are stronger for all of them.

Source: Cubuk, Zoph, Shlens and Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.train.augment import warp

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = (
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
OPERATIONS = GEOMETRIC + COLOURS


def rand_augment(
    images: Tensor,
    generator: torch.Generator,
    magnitude: float = 7.0,
    std: float = 0.5,
    layers: int = 2,
    probability: float = 0.5,
    low: float | Sequence[float] = 0.0,
    high: float | Sequence[float] = 1.0,
    fill: Sequence[float] | None = None,
) -> Tensor:
    """Some operations on every image.

    Args:
        images: (B, C, H, W).
        generator: of the random numbers.
        magnitude: mean strength, 0 to 10.
        std: standard deviation of the strength, which is drawn anew for every operation.
        layers: operations that every image draws, the same one maybe again.
        probability: with which a drawn operation is done.
        low: what black is in these images, one number or one a channel.
        high: what white is.
        fill: colour of what comes in at the border, one number a channel in the units of the images; middle grey by default.

    Returns:
        (B, C, H, W); an image that nothing was done to is the same to the last bit.
    """
    count, device = len(images), images.device
    black, white = _colour(low, images), _colour(high, images)
    scale = (white - black) / 255
    outside = (_colour(fill, images) - black) / scale if fill is not None else images.new_full((1, 1, 1, 1), 128.0)
    found = (images - black) / scale
    touched = torch.zeros(count, dtype=torch.bool, device=device)
    for _ in range(layers):
        drawn = torch.randint(len(OPERATIONS), (count,), generator=generator, device=device)
        done = torch.rand(count, generator=generator, device=device) < probability
        level = (magnitude + std * torch.randn(count, generator=generator, device=device)).clamp(0, 10) / 10
        sign = torch.where(torch.rand(count, generator=generator, device=device) < 0.5, -1.0, 1.0)
        found = _apply(found, torch.where(done, drawn, len(OPERATIONS)), level.to(images.dtype), sign.to(images.dtype), outside)
        touched |= done
    return torch.where(touched[:, None, None, None], found * scale + black, images)


def _colour(value: float | Sequence[float], images: Tensor) -> Tensor:
    """A colour that broadcasts to the images."""
    return torch.as_tensor(value, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)


def _apply(images: Tensor, drawn: Tensor, level: Tensor, sign: Tensor, outside: Tensor) -> Tensor:
    """For each image the operation that it drew; whoever drew a number behind the last is left alone."""
    counts = torch.bincount(drawn, minlength=len(OPERATIONS) + 1).tolist()
    rows = dict(zip((*OPERATIONS, "none"), drawn.argsort().split(counts), strict=True))
    changed = images.clone()
    moved = torch.cat([rows[name] for name in GEOMETRIC])
    if len(moved):
        changed[moved] = geometric(images[moved], drawn[moved], level[moved] * sign[moved], outside)
    for name in COLOURS:
        chosen = rows[name]
        if len(chosen):
            changed[chosen] = _BY_NAME[name](images[chosen], level[chosen], sign[chosen])
    return changed


def geometric(images: Tensor, which: Tensor, strength: Tensor, outside: Tensor) -> Tensor:
    """Rotate by up to 30 degrees, shear by up to 0.3 or shift by up to 0.45 of the picture, all in one interpolation.

    Args:
        images: (B, C, H, W).
        which: (B,) positions in :data:`GEOMETRIC`.
        strength: (B,) from -1 to 1.
        outside: what comes in at the border.
    """
    height, width = images.shape[2:]
    tall, flat = height / width, width / height
    angle = torch.where(which == 0, -math.radians(30) * strength, 0.0)
    across, down, right, below = (
        torch.where(which == place, share * strength, 0.0) for place, share in enumerate((0.3, 0.3, 0.9, 0.9), start=1)
    )
    maps = torch.stack(
        [
            torch.stack([angle.cos(), (angle.sin() + across) * tall, across * tall + right], dim=1),
            torch.stack([(down - angle.sin()) * flat, angle.cos(), down * flat + below], dim=1),
        ],
        dim=1,
    )
    return warp(images, maps, outside)


# Colours: images (B, C, H, W) from 0 to 255, level (B,) from 0 to 1, sign (B,) of -1 and 1.


def _autocontrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low).clamp_min(1e-6)), images)


def _equalize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Every channel such that its histogram is as flat as possible: by a table of 256 numbers for each."""
    count, channels, height, width = images.shape
    values = images.round().clamp(0, 255).long().flatten(2)  # (B, C, P)
    histogram = values.new_zeros(count, channels, 256).scatter_add_(2, values, torch.ones_like(values))
    last = histogram.gather(2, values.amax(dim=2, keepdim=True))  # how often the largest value occurs
    step = (height * width - last) // 255
    before = histogram.cumsum(dim=2) - histogram
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, values).to(images.dtype).reshape(images.shape)


def _invert(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return 255 - images


def _posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keep the four leading bits, down to one at the full level."""
    step = _each(2.0 ** (4 + (4 * level).floor().clamp_max(3)))
    return (images.round() / step).floor() * step


def _solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return torch.where(images.round() < _each(256 - (256 * level).floor()), images, 255 - images)


def _solarize_add(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return torch.where(images.round() < 128, (images + _each((110 * level).floor())).clamp_max(255), images)


def _color(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blend(_grey(images), images, level, sign)


def _contrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blend((_grey(images).mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor(), images, level, sign)


def _brightness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, level, sign)


def _sharpness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    channels = images.shape[1]
    kernel = images.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = images.clone()  # the border stays as it is
    if min(images.shape[2:]) > 2:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    return _blend(smooth, images, level, sign)


def _each(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W): brightness as television has it for three channels, the mean for others."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _blend(base: Tensor, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """From the base towards the images and beyond: by 1 at level 0, by 0.1 or 1.9 at level 1."""
    factor = _each((1 + 0.9 * level * sign).clamp_min(0.1))
    return (base + factor * (images - base)).clamp(0, 255)


_BY_NAME: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = dict(
    zip(
        COLOURS,
        (
            _autocontrast,
            _equalize,
            _invert,
            _posterize,
            _solarize,
            _solarize_add,
            _color,
            _contrast,
            _brightness,
            _sharpness,
        ),
        strict=True,
    )
)


def colours_of(images: Tensor) -> dict[str, Any]:
    """Black, white and the mean colour of a data set, as :func:`rand_augment` takes them: ``low``, ``high``, ``fill``.

    Args:
        images: (N, C, H, W). If all lies within 0 and 1, these are black and white; otherwise the extremes of each channel are.
    """
    low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
    if bool((low >= 0).all()) and bool((high <= 1).all()):
        low, high = torch.zeros_like(low), torch.ones_like(high)
    flat = high <= low  # a channel that is the same everywhere
    high = torch.where(flat, low + 1, high)
    return {"low": tuple(low.tolist()), "high": tuple(high.tolist()), "fill": tuple(images.mean(dim=(0, 2, 3)).tolist())}
