"""Augmentation: every image is one of the crops that it may be, and draws for itself."""

import math

import pytest
import torch
from torch.nn import functional as F

from assay.train import augment
from assay.train.augment import (
    crop_boxes,
    deform,
    displace,
    elastic_fields,
    elastic_for,
    flip_and_crop,
    in_turn,
    random_resized_crop,
    warp,
)


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


def test_crops_are_torchvisions() -> None:
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


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_smoothed_noise_is_scipys() -> None:
    """Uniform noise smoothed on a torus by a Gaussian; its spread is that of the closed form."""
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = (torch.rand(2, 512, 512, generator=generator(), dtype=torch.float64) * 2 - 1).numpy()
    sheets = augment._sheets(3.0, 512, "cpu")
    for sheet, raw in zip(sheets, noise, strict=True):
        expected = torch.from_numpy(ndimage.gaussian_filter(raw, 3.0, mode="wrap", truncate=8.0)).float()
        torch.testing.assert_close(sheet, expected, rtol=0, atol=1e-6)
    assert sheets.std().item() == pytest.approx(1 / (3.0 * math.sqrt(12 * math.pi)), rel=0.1)


def test_fields_are_windows_of_their_own() -> None:
    fields = elastic_fields(200, 20, 30, generator(), sigma=4.0)
    assert fields.shape == (200, 2, 20, 30)
    assert fields.std().item() == pytest.approx(0.163 / 4, rel=0.1)
    assert abs(float(fields.mean())) < 0.003
    flat = fields.flatten(2)
    assert len(flat.flatten(0, 1).unique(dim=0)) == 400  # no two alike, across and down included
    steps = (fields[..., 1:] - fields[..., :-1]).std() / fields.std()
    assert steps.item() == pytest.approx(math.sqrt(2 * (1 - math.exp(-1 / (4 * 16)))), rel=0.1)  # as smooth as the Gaussian says


def test_displaced_images_are_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images = torch.rand(3, 2, 17, 23, generator=generator(), dtype=torch.float64)
    shifts = 5 * torch.randn(3, 2, 17, 23, generator=generator(1), dtype=torch.float64)
    found = displace(images, shifts)
    rows, columns = torch.meshgrid(torch.arange(17), torch.arange(23), indexing="ij")
    for image, shift, moved in zip(images, shifts, found, strict=True):
        places = torch.stack([rows + shift[1], columns + shift[0]]).numpy()
        for channel, expected in zip(image, moved, strict=True):
            theirs = ndimage.map_coordinates(channel.numpy(), places, order=1, mode="nearest")
            torch.testing.assert_close(expected, torch.from_numpy(theirs), rtol=0, atol=1e-10)


def test_displacing_by_a_map_alone_is_warping() -> None:
    images, maps = torch.rand(4, 1, 12, 9, generator=generator()), torch.randn(4, 2, 3, generator=generator(1))
    torch.testing.assert_close(displace(images, None, maps), warp(images, maps), rtol=0, atol=1e-4)


def test_deforming_by_nothing_is_the_identity() -> None:
    images = torch.rand(5, 3, 14, 14, generator=generator())
    same = deform(images, generator(), translate=0, rotate=0, scale=0, alpha=0)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-5)
    bent = deform(images, generator(), translate=0, rotate=0, scale=0, alpha=30)
    assert (bent - images).abs().mean() > 0.05


def test_deformations_keep_to_their_bounds() -> None:
    """Of a picture whose pixels hold their own coordinates, what comes out says where it came from."""
    side = 41
    line = (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1
    picture = torch.stack(torch.meshgrid(line, line, indexing="xy")).expand(300, 2, side, side)  # x, y

    def corners(**strengths: float) -> torch.Tensor:
        """Where the inner part came from: (300, 2, ...), minus where it is."""
        nothing = {"translate": 0.0, "rotate": 0.0, "scale": 0.0, "alpha": 0.0}
        inner = slice(12, 29)
        return deform(picture, generator(), **{**nothing, **strengths})[:, :, inner, inner] - picture[:, :, inner, inner]

    shift = corners(translate=0.05)
    assert 0.095 < shift.abs().max() <= 0.1 + 1e-9  # a share of the picture, which is 2 wide
    assert (shift - shift[:, :, :1, :1]).abs().max() < 1e-9
    middle, inner = 8, picture[0, :, 12:29, 12:29]
    turned = corners(rotate=15.0) + inner
    angle = torch.atan2(turned[:, 1, middle, -1], turned[:, 0, middle, -1]).rad2deg()
    assert 14 < angle.max() <= 15 + 1e-6
    assert -15 - 1e-6 <= angle.min() < -14
    torch.testing.assert_close(turned.norm(dim=1), inner.norm(dim=0).expand(300, -1, -1), rtol=0, atol=1e-9)
    stretched = (corners(scale=0.15) + inner)[:, :, -1, -1] / inner[:, -1, -1]
    assert 1 / 1.15 - 1e-9 <= stretched.min() < 0.88
    assert 1.16 < stretched.max() <= 1 / 0.85 + 1e-9
    assert (stretched[:, 0] - stretched[:, 1]).abs().max() > 0.1  # each direction for itself


def test_a_larger_picture_is_bent_alike() -> None:
    sigma, alpha = elastic_for(58, 60)
    assert (sigma, alpha) == (12.0, 144.0)
    small = 36 * elastic_fields(400, 29, 29, generator(), 6.0) / 29
    large = alpha * elastic_fields(400, 58, 58, generator(), sigma) / 58
    assert large.std().item() == pytest.approx(small.std().item(), rel=0.15)
