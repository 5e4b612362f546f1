"""Augmentation: every image is one of the crops that it may be, and draws for itself."""

import pytest
import torch
from torch.nn import functional as F

from assay.train.augment import crop_boxes, flip_and_crop, in_turn, random_resized_crop


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


def test_crops_are_torchvisions(torchvision_operators: object) -> None:
    peer = pytest.importorskip("torchvision.transforms.functional")
    images = torch.rand(40, 2, 13, 9)
    out = random_resized_crop(images, torch.Generator().manual_seed(0), mirror=0.5)
    boxes = crop_boxes(40, 13, 9, torch.Generator().manual_seed(0)).tolist()
    mirrored = 0
    for image, mine, box in zip(images, out, boxes, strict=True):
        theirs = peer.resized_crop(image, *box, [13, 9], antialias=False)
        # torchvision's resize continues the border of the part, ours looks at the pixel beside it, where there is one.
        inner = (slice(None), slice(2, -2), slice(2, -2))
        apart = [(mine - version)[inner].abs().max().item() for version in (theirs, theirs.flip(2))]
        mirrored += apart[1] < apart[0]
    assert 10 < mirrored < 30


def test_boxes_have_the_areas_and_ratios_that_were_asked_for() -> None:
    top, left, tall, wide = crop_boxes(5000, 100, 100, torch.Generator().manual_seed(0), scale=(0.2, 0.5)).double().T
    area, ratio = tall * wide / 1e4, wide / tall
    assert 0.19 < area.min() < area.max() < 0.51
    assert 0.73 < ratio.min() < ratio.max() < 1.36
    assert abs(area.mean() - 0.35) < 0.01
    assert abs(ratio.log().mean()) < 0.01
    assert bool(((top + tall <= 100) & (left + wide <= 100)).all())
    assert top.min() == left.min() == 0
    assert crop_boxes(3, 2, 50, torch.Generator().manual_seed(0), scale=(0.9, 1.0)).tolist() == [[0, 0, 2, 50]] * 3


def test_steps_follow_one_another() -> None:
    steps = (lambda x, g: x + torch.rand(1, generator=g), lambda x, g: 2 * x)
    out = in_turn(torch.zeros(1), torch.Generator().manual_seed(0), steps)
    assert out == 2 * torch.rand(1, generator=torch.Generator().manual_seed(0))
