"""Every operation against Pillow's, through timm's functions; how often which is drawn; what is left alone."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from assay.train.rand_augment import _BY_NAME, COLOURS, GEOMETRIC, OPERATIONS, geometric, rand_augment

LEVELS = [0.0, 0.13, 0.5, 0.7, 0.99]


def photographs(count: int = 3, channels: int = 3) -> Tensor:
    """Smooth pictures with edges: (B, C, 24, 17) whole numbers from 0 to 255."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, channels, 5, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(small, size=(24, 17), mode="bicubic")
    smooth[:, :, 8:15, 3:9] = smooth[:, :, 8:15, 3:9] * 0.5
    return (smooth * 200 + 20).clamp(0, 255).round()


def pillow(image: Tensor) -> Image.Image:
    array = image.byte().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def back(image: Image.Image) -> Tensor:
    array = torch.from_numpy(np.array(image)).float()
    return array[None] if array.dim() == 2 else array.permute(2, 0, 1)


@pytest.fixture
def peer() -> object:
    return pytest.importorskip("timm.data.auto_augment")


TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def test_the_operations_are_timms(peer: object) -> None:
    assert set(TIMM.values()) == set(peer._RAND_INCREASING_TRANSFORMS)
    assert set(TIMM) == set(OPERATIONS)


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_pillows(
    peer: object, monkeypatch: pytest.MonkeyPatch, name: str, level: float, sign: float, channels: int
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)
    images = photographs(channels=channels)
    ours = _BY_NAME[name](images, torch.full((3,), level), torch.full((3,), sign))
    made = peer.LEVEL_TO_ARG[TIMM[name]]
    arguments = made(10 * level, {}) if made else ()
    for image, mine in zip(images, ours, strict=True):
        theirs = back(peer.NAME_TO_OP[TIMM[name]](pillow(image), *arguments))
        assert (mine - theirs).abs().max() <= 1.5  # Pillow rounds what it blends, and then rounds down


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.55, 1.0])
def test_movements_are_pillows(peer: object, monkeypatch: pytest.MonkeyPatch, place: int, strength: float) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.9 if strength < 0 else 0.1)
    name, images = TIMM[GEOMETRIC[place]], photographs()
    ours = geometric(images, torch.full((3,), place), torch.full((3,), strength), torch.full((1, 1, 1, 1), 128.0))
    (amount,) = peer.LEVEL_TO_ARG[name](10 * abs(strength), {})
    assert math.copysign(1, amount) == math.copysign(1, strength) or not amount
    for image, mine in zip(images, ours, strict=True):
        moved = peer.NAME_TO_OP[name](pillow(image), amount, fillcolor=(128,) * 3, resample=Image.Resampling.BILINEAR)
        difference = (mine - back(moved)).abs()
        # Whether a pixel on the very border is inside is a matter of rounding, and Pillow computes with 16 bits.
        assert (difference > 2.5).float().mean() < 0.03
        assert difference.median() <= 1


def test_draws_each_operation_as_often_and_leaves_the_rest_alone() -> None:
    images = photographs(1)[0].expand(3000, 3, 24, 17) / 255
    out = rand_augment(images, torch.Generator().manual_seed(0), layers=1)
    same = (out == images).flatten(1).all(dim=1)
    # Half of them; of the others an operation may happen to change nothing, which of these only autocontrast is close to.
    assert 0.45 < same.float().mean() < 0.56
    inverted = ((out - (1 - images)).abs().flatten(1).amax(dim=1) < 1e-5).float().mean()
    assert abs(inverted.item() - 0.5 / 15) < 0.012
    assert float(out.min()) >= -1e-5
    assert float(out.max()) <= 1 + 1e-5


def test_works_in_the_units_of_the_images() -> None:
    images = photographs() / 255
    low, high = torch.tensor([-2.0, -1.5, -1.0]), torch.tensor([2.0, 2.5, 1.0])
    scaled = low.view(3, 1, 1) + images * (high - low).view(3, 1, 1)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    plain = rand_augment(images, generators[0], layers=3, probability=1.0, fill=(0.1, 0.2, 0.3))
    other = rand_augment(
        scaled, generators[1], layers=3, probability=1.0, low=low.tolist(), high=high.tolist(), fill=(-1.6, -0.7, -0.4)
    )
    torch.testing.assert_close(low.view(3, 1, 1) + plain * (high - low).view(3, 1, 1), other, atol=0.03, rtol=0)


def test_magnitude_is_drawn_around_its_mean() -> None:
    """Brightness alone tells the level: 1.9 or 0.1 times as bright at level 10."""
    images = torch.full((4000, 1, 2, 2), 0.3)
    out = rand_augment(images, torch.Generator().manual_seed(0), magnitude=7.0, std=0.5, layers=1, probability=1.0, fill=(0.3,))
    ratio = (out / images)[:, 0, 0, 0]
    brighter = ratio[(ratio > 1.4) & (ratio < 1.85)]  # solarize_add adds more
    level = (brighter - 1) / 0.9 * 10
    assert abs(level.mean() - 7) < 0.15
    assert abs(level.std() - 0.5) < 0.12
