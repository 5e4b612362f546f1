"""What learned augmentation has to beat: images shifted, zoomed, turned, sheared, mirrored and shaded at random."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from assay.errors import AssayError
from assay.recipe import Recipe, treatment
from assay.train.augment import in_turn, warp


def only_images(recipe: Recipe, what: str) -> None:
    """Refuse data that are no images, in a sentence that begins with ``what``."""
    inputs = recipe.data.train.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        raise AssayError(f"{what} makes images out of images, and {recipe.data.name!r} has none: take it for image folders.")


def traditional(
    images: Tensor,
    generator: torch.Generator,
    share: float = 0.5,
    shift: float = 0.1,
    zoom: float = 0.15,
    turn: float = 15.0,
    shear: float = 0.1,
    shade: float = 0.1,
) -> Tensor:
    """Traditional augmentation, for ``Recipe(augment=...)``: shifted, zoomed, turned, sheared, mirrored and shaded at random.

    Args:
        images: (B, C, H, W).
        generator: source of the random numbers, on the images' device.
        share: probability that an image is changed at all, anew in every epoch; half of them, as the paper doubles its set by one
            changed copy of each.
        shift: at most, as a share of the width.
        zoom: in or out at most, as a share.
        turn: at most, degrees; of oblong images too.
        shear: at most, as a share of the width over the height.
        shade: every channel is multiplied by 1 more or less this at most: its brightness, or its contrast where its mean is 0.

    Returns:
        (B, C, H, W); beyond the border its edge goes on. The paper does not tell its ranges: these are usual ones. Mirroring is
        always among the changes: it does not suit letters and most digits.
    """
    count, channels, height, width = images.shape

    def draw(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator, device=images.device, dtype=images.dtype) - 1

    angle, scale = torch.deg2rad(turn * draw(count)), 1 + zoom * draw(count)
    mirror = torch.where(draw(count) < 0, -1.0, 1.0).to(images.dtype)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    oblong = width / height  # both axes run from -1 to 1
    rows = torch.stack([mirror * cosine, mirror * (shear * draw(count) - sine / oblong), 2 * shift * draw(count)], dim=1)
    columns = torch.stack([sine * oblong, cosine, 2 * shift * draw(count)], dim=1)
    moved = warp(images, torch.stack([rows, columns], dim=1)) * (1 + shade * draw(count, channels, 1, 1))
    changed = (draw(count) + 1) / 2 < share
    return torch.where(changed[:, None, None, None], moved, images)


@treatment
def traditional_augmentation(recipe: Recipe, share: float = 0.5) -> Recipe:
    """Train with the traditional changes of half of the images, see :func:`traditional`; where the recipe augments, after that.

    Raises:
        AssayError: the data are no images.
    """
    only_images(recipe, "Traditional augmentation")
    changes = partial(traditional, share=share)
    return recipe.replace(augment=changes if recipe.augment is None else partial(in_turn, steps=(recipe.augment, changes)))
