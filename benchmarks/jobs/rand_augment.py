"""RandAugment (m7, std 0.5) on a batch of photographs: assay on the tensor, timm image by image through Pillow and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JOB = "RandAugment, 256 images of 3 x 32 x 32"
WANTED = {"timm": 1.5}
PROCESSOR_TIME = True


def _images() -> Tensor:
    return torch.randint(256, (256, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def ours() -> Callable[[], Tensor]:
    from assay.train.rand_augment import rand_augment

    images, generator = _images().float() / 255, torch.Generator().manual_seed(0)
    return lambda: rand_augment(images, generator)


def timm() -> Callable[[], Tensor]:
    import numpy as np
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    bilinear = {"interpolation": Image.Resampling.BILINEAR, "img_mean": (128, 128, 128)}
    change = rand_augment_transform("rand-m7-mstd0.5-inc1", bilinear)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in _images()]

    def run() -> Tensor:
        arrays = np.stack([np.asarray(change(picture)) for picture in pictures])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    """As many images are left alone; how far the others are from what they were is alike."""
    images = _images().float() / 255
    apart = [(found - images).abs().mean(dim=(1, 2, 3)) for found in (ours, peer)]
    same = [float((one == 0).float().mean()) for one in apart]
    assert all(abs(share - 0.25) < 0.12 for share in same), same
    assert abs(apart[0].mean() - apart[1].mean()) < 0.05, apart
