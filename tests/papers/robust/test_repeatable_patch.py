"""Periods, gradients and what may be covered, exactly; attacks that must work; the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet
from assay.nn.detector import GridDetector
from assay.papers.robust.repeatable_patch import (
    apply_patch,
    area_explains_strength,
    attack_detector,
    hiding_pattern,
    object_scores,
    roughness,
    stretch,
    tile,
    tiles_beat_one_patch,
)
from assay.recipe import Recipe
from assay.recipes import detector_on
from assay.train.loop import fit
from assay.view import View


def points(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = 20 * torch.rand(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 10
    return x, y


def test_an_element_repeats() -> None:
    """A period further it is the same; at the middle of its pixels it is the pixel; on the seam it is the mean of both sides."""
    element = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, y = points()
    for across, down in ((4, 0), (0, 4), (-8, 12)):
        torch.testing.assert_close(tile(element, x + across, y + down), tile(element, x, y))
    row, column = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    rendered = tile(element, column.double() + 0.5, row.double() + 0.5)
    torch.testing.assert_close(rendered, element.repeat(1, 3, 3))
    seam = tile(element, torch.tensor([4.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(seam[:, 0], (element[:, 0, 3] + element[:, 0, 0]) / 2)


def test_the_gradient_of_an_element_is_the_sum_over_its_copies() -> None:
    element = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    weight = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    row, column = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    (gradient,) = torch.autograd.grad((tile(element, column.double() + 0.5, row.double() + 0.5) * weight).sum(), element)
    torch.testing.assert_close(gradient[0], weight.view(3, 3, 3, 3).sum(dim=(0, 2)))


def test_a_patch_is_stretched() -> None:
    patch = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(1))
    middle = (torch.arange(10) + 0.5) / 10
    shown = stretch(patch, middle.expand(10, 10), middle[:, None].expand(10, 10))
    torch.testing.assert_close(shown, F.interpolate(patch[None], size=(10, 10), mode="bilinear", align_corners=False)[0])


def test_roughness_goes_around_the_edge() -> None:
    assert float(roughness(torch.full((1, 4, 4), 0.3), tiled=True)) == 0
    ramp = torch.arange(4.0).expand(1, 4, 4) / 4
    assert float(roughness(ramp, tiled=True)) == pytest.approx((0.25 * 3 + 0.75) / 4 / 2)
    assert float(roughness(ramp, tiled=False)) == pytest.approx(0.25 / 2)


@pytest.mark.parametrize("tiled", [False, True])
def test_what_is_covered(tiled: bool) -> None:
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    boxes = torch.tensor([[[4.0, 6, 20, 26], [22, 2, 30, 10]], [[0, 0, 16, 16], [0, 0, 0, 0]]])
    white = torch.ones(1, 8, 8)
    assert torch.equal(apply_patch(images, boxes, white, 0.0, tiled), images)
    for area in (0.25, 1.0):
        changed = (apply_patch(images, boxes, white, area, tiled) != images)[:, 0]
        assert int(changed[1].sum()) == round(256 * area)
        assert int(changed[0].sum()) == round((320 + 64) * area)
    changed = (apply_patch(images, boxes, white, 1.0, tiled) != images)[:, 0]
    assert bool(changed[0, 6:26, 4:20].all())
    masks = torch.zeros(2, 2, 32, 32, dtype=torch.bool)
    masks[:, :, 8:10] = True
    part = (apply_patch(images, boxes, white, 1.0, tiled, masks) != images)[:, 0]
    assert torch.equal(part, changed & masks.any(dim=1))
    moved = apply_patch(images, boxes, white, 0.5, tiled, None, torch.Generator().manual_seed(0))
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_scores_of_objects() -> None:
    outputs = torch.full((1, 4 + 2, 4, 4), -9.0)
    outputs[0, 5, 1, 2] = 2.0  # the place at (20, 12)
    boxes = torch.tensor([[[10.0, 10, 30, 30], [0, 0, 10, 10], [0, 0, 0, 0]]])
    expected = torch.tensor([[torch.tensor(2.0).sigmoid(), torch.tensor(-9.0).sigmoid(), 0.0]])
    torch.testing.assert_close(object_scores(outputs, boxes), expected)


def squares() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 16, (128, 1, 2), generator=generator).float()
    targets = torch.cat([torch.zeros(128, 1, 1), corner, corner + 14], dim=2)
    images = 0.2 * torch.rand(128, 1, 32, 32, generator=generator)
    for image, (_, left, top, right, bottom) in zip(images, targets[:, 0].long().tolist(), strict=True):
        image[:, top:bottom, left:right] = 0.9
    split = Split(images, targets)
    return Dataset("squares", "detection", split, split.take(torch.arange(0)), split, ("a", "b"))


def test_an_attack_hides_more_than_it_covers() -> None:
    data = squares()
    model = fit(detector_on(data, epochs=20), 0).model
    images, boxes = data.test.inputs, data.test.labels[..., 1:]
    assert isinstance(images, torch.Tensor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    element, history = attack_detector(model, images, boxes, tiled=True, size=4, area=0.5, steps=40)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert history[-1] < history[0]
    assert 0 <= float(element.min()) <= float(element.max()) <= 1
    with torch.no_grad():
        plain, noise, attacked = (
            float(object_scores(model(shown), boxes).mean())
            for shown in (
                images,
                apply_patch(images, boxes, torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)), 0.5, True),
                apply_patch(images, boxes, element, 0.5, True),
            )
        )
    assert plain > 0.7
    assert attacked < noise - 0.02
    assert isinstance(model, GridDetector)


def test_probe_on_a_classifier() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    images = torch.rand(80, 1, 16, 16, generator=generator) * 0.3
    images[labels == 1, :, 6:10] += 0.6
    data = Dataset(
        "bars", "classification", Split(images, labels), Split(images[:0], labels[:0]), Split(images, labels), ("a", "b")
    )
    model = fit(Recipe(data, model=partial(lenet, 1, 2, 16), epochs=4, batch_size=16), 0).model
    view = View(model, images[:10], labels[:10], labels[:10], images, labels, "images", ("a", "b"))
    seen = hiding_pattern(view, element=4, area=0.5, steps=10)
    assert set(seen.inputs) == {"learnt element", "noise", "grey"}
    assert all(0 <= number <= 1 for number in seen.numbers.values())
    assert seen.numbers["share that keeps its class, learnt element"] <= seen.numbers["share that keeps its class, grey"]
    untouched = (seen.inputs["grey"] - images[:10]).abs()[:, :, :2]
    assert float(untouched.max()) < 1e-5


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    try:
        lab.data("cbsd68")
    except AssayError:
        pytest.skip("the photos are not here")
    arms = area_explains_strength(lab)
    assert {"patch", "element", "noise", "grey", "variance explained by area", "largest rise"} <= set(arms)
    assert {"element, whole object", "patch, a quarter", "free texture, whole object"} <= set(tiles_beat_one_patch(lab))
