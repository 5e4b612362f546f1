"""Augmentation: every image is one of the crops that it may be, and draws for itself."""

import torch
from torch.nn import functional as F

from assay.train.augment import flip_and_crop


def test_every_image_is_a_mirrored_or_plain_crop_of_its_own() -> None:
    images = torch.rand(400, 2, 6, 5)
    out = flip_and_crop(images, torch.Generator().manual_seed(0), pad=2)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    ways = {}
    for down in range(5):
        for right in range(5):
            crop = padded[:, :, down : down + 6, right : right + 5]
            ways[down, right, False], ways[down, right, True] = crop, crop.flip(3)
    found = [[way for way, crop in ways.items() if torch.equal(crop[i], out[i])] for i in range(400)]
    assert all(found)
    assert len({way for each in found for way in each}) == 50


def test_follows_its_generator() -> None:
    images = torch.rand(8, 1, 6, 6)
    first, again, other = (flip_and_crop(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
