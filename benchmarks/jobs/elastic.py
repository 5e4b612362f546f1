"""Elastic deformation of a batch of digits: windows into noise that was smoothed once, against smoothing for every image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JOB = "elastic deformation, 256 digits of 29 x 29, sigma 6"
WANTED = {"torchvision": 50.0, "scipy": 10.0}
PROCESSOR_TIME = True
SIGMA, ALPHA = 6.0, 36.0


def _images() -> Tensor:
    return torch.rand(256, 1, 29, 29, generator=torch.Generator().manual_seed(0))


def ours() -> Callable[[], Tensor]:
    from assay.train.augment import displace, elastic_fields

    images, generator = _images(), torch.Generator().manual_seed(0)
    return lambda: displace(images, ALPHA * elastic_fields(256, 29, 29, generator, SIGMA))


def torchvision() -> Callable[[], Tensor]:
    """Image by image, for it deforms all images of a batch alike; it moves half as far for the same alpha."""
    from torchvision.transforms.v2 import ElasticTransform

    change, images = ElasticTransform(alpha=2 * ALPHA, sigma=SIGMA), _images()
    return lambda: torch.stack([change(image) for image in images])


def scipy() -> Callable[[], Tensor]:
    """As in many a notebook."""
    import numpy as np
    from scipy.ndimage import gaussian_filter, map_coordinates

    images, draw = _images().numpy(), np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(29), np.arange(29), indexing="ij")

    def one(image: np.ndarray) -> np.ndarray:
        down, right = (ALPHA * gaussian_filter(draw.uniform(-1, 1, image.shape), SIGMA, mode="wrap") for _ in range(2))
        return map_coordinates(image, [rows + down, columns + right], order=1, mode="nearest")

    return lambda: torch.from_numpy(np.stack([one(image[0]) for image in images]))[:, None]


def agree(ours: Tensor, peer: Tensor) -> None:
    """How far the images are from what they were is alike; torchvision fills borders with black."""
    apart = [(found - _images()).abs().mean().item() for found in (ours, peer)]
    assert abs(apart[0] - apart[1]) < 0.2 * apart[1], apart
