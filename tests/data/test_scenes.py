"""Scenes: what is known of them is what is in the picture, splits do not mix, and correlations are what was asked for."""

from dataclasses import replace

import pytest
import torch

from assay.data import Dataset, Split
from assay.data.scenes import SceneSplits, roughness, scenes, silhouettes, tight_boxes
from assay.errors import AssayError


def squares(count: int, value: float) -> Split:
    """Bright frames (class 0) and bars (class 1) on black."""
    images = torch.zeros(count, 1, 12, 12)
    images[0::2, :, 2:10, 2:10] = value
    images[1::2, :, 4:8, 1:11] = value
    return Split(images, torch.arange(count) % 2)


@pytest.fixture
def items() -> Dataset:
    parts = (squares(40, 1.0), squares(20, 0.9), squares(20, 0.8))
    return Dataset("shapes", "classification", *parts, ("square", "bar"))


@pytest.fixture
def photos() -> Dataset:
    """Left half smooth, right half noise; brightness tells the split."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number, level in ((4, 0.1), (2, 0.2), (3, 0.3)):
        pictures = torch.full((number, 3, 100, 200), level)
        pictures[..., 100:] += 0.2 * torch.rand(number, 1, 100, 100, generator=generator)
        parts.append(Split(pictures, torch.arange(number)))
    return Dataset("walls", "photos", *parts)


def make(items: Dataset, photos: Dataset, **changes: object) -> SceneSplits:
    settings = {"size": 32, "count": (60, 20, 40), "seed": 3} | changes
    return scenes(items, photos, **settings)  # type: ignore[arg-type]


def test_boxes_and_masks_are_where_the_light_is(items: Dataset, photos: Dataset) -> None:
    found = make(items, photos).train
    assert found.images.shape == (60, 1, 32, 32)
    inside = found.masks.any(dim=1)
    assert float(found.images[:, 0][inside].min()) > 0.45  # at least half of the item's light
    assert float(found.images[:, 0][~inside].max()) < 0.75  # less than half of it on the brightest wall
    for scene, one in found.masks.flatten(2).any(dim=2).nonzero().tolist():
        rows, columns = found.masks[scene, one].nonzero(as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.boxes[scene, one].tolist() == [int(edge) for edge in box]
    assert torch.equal(found.labels >= 0, found.masks.flatten(2).any(dim=2))
    assert bool((found.labels[:, 0] >= 0).all())
    assert torch.equal(found.labels[found.item >= 0], items.train.labels[found.item[found.item >= 0]])


def test_nothing_overlaps_unless_it_may(items: Dataset, photos: Dataset) -> None:
    apart = make(items, photos, objects=(3, 3), scale=(0.3, 0.4)).train
    assert int(apart.masks.sum(dim=1).max()) == 1
    assert int((apart.labels >= 0).sum()) > 150
    crowded = make(items, photos, objects=(3, 3), scale=(0.5, 0.6), overlap=0.5).train
    assert int(crowded.masks.sum(dim=1).max()) == 1  # what comes later hides what was there
    assert int((crowded.labels >= 0).sum()) == 180
    areas = crowded.masks[:, 0].flatten(1).sum(dim=1)
    assert int(areas.min()) < int(apart.masks[:, 0].flatten(1).sum(dim=1).max())


def test_splits_do_not_mix(items: Dataset, photos: Dataset) -> None:
    """Each split's photos and items have a brightness of their own."""
    made = make(items, photos, scale=(0.3, 0.3), objects=(1, 1))
    for part, wall, light in ((made.train, 0.1, 1.0), (made.valid, 0.2, 0.9), (made.test, 0.3, 0.8)):
        assert float(part.images.amin()) == pytest.approx(wall, abs=1e-5)
        assert float(part.images.amax()) == pytest.approx(light, abs=1e-5)


def test_the_same_seed_gives_the_same_scenes(items: Dataset, photos: Dataset) -> None:
    one, two, other = make(items, photos), make(items, photos), make(items, photos, seed=4)
    assert torch.equal(one.train.images, two.train.images)
    assert one.detection().fingerprint == two.detection().fingerprint != other.detection().fingerprint
    assert make(items, photos, count=(60, 0, 0)).detection().train.inputs.equal(one.train.images)


def test_backgrounds_follow_the_class_as_asked(items: Dataset, photos: Dataset) -> None:
    made = make(items, photos, kinds=2, correlation=1.0, objects=(1, 1), count=(200, 50, 400))
    assert torch.equal(made.train.background, made.train.labels[:, 0])
    assert torch.equal(made.valid.background, made.valid.labels[:, 0])
    agree = (made.test.background == made.test.labels[:, 0]).double().mean()
    assert 0.4 < float(agree) < 0.6
    # Left halves are smooth, so that the picture itself tells the kind.
    behind = made.train.images[:, 0].where(~made.train.masks.any(dim=1), 0.1)
    rough = roughness(behind)
    assert float(rough[made.train.background == 0].median()) < float(rough[made.train.background == 1].median()) / 2
    partly = make(items, photos, kinds=2, correlation=0.6, count=(1000, 0, 0)).train
    share = float((partly.background == partly.labels[:, 0]).double().mean())
    assert share == pytest.approx(0.8, abs=0.05)


def test_data_sets(items: Dataset, photos: Dataset) -> None:
    made = make(items, photos, objects=(1, 1))
    classes = made.classification()
    assert classes.num_classes == 2
    assert torch.equal(classes.test.labels, made.test.labels[:, 0])
    boxes = make(items, photos, objects=(1, 2)).detection()
    assert boxes.task == "detection"
    assert boxes.train.labels.shape == (60, 2, 5)
    assert "seed=3" in boxes.history[-1]
    with pytest.raises(AssayError, match="no single class"):
        make(items, photos, objects=(1, 2)).classification()


def test_classes_are_chosen_and_numbered_anew(photos: Dataset) -> None:
    three = squares(30, 1.0)
    items = Dataset("three", "classification", *[Split(three.inputs, torch.arange(30) % 3)] * 3, ("a", "b", "c"))
    made = make(items, photos, classes=(2, 0), objects=(1, 1))
    assert made.classes == ("c", "a")
    assert torch.equal(items.train.labels[made.train.item[:, 0]], torch.tensor([2, 0])[made.train.labels[:, 0]])
    assert set(made.train.labels.flatten().tolist()) == {0, 1}


def test_silhouettes_fill_small_holes() -> None:
    item = torch.zeros(1, 1, 9, 9)
    item[..., 2:7, 2:7] = 1
    item[..., 4, 4] = 0
    assert int(silhouettes(item).sum()) == 25
    assert torch.equal(tight_boxes(silhouettes(item)[0] > 0), torch.tensor([[2.0, 2, 7, 7]]))
    assert torch.equal(tight_boxes(torch.zeros(1, 9, 9, dtype=torch.bool)), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 64}, "at least 128"),
        ({"objects": (0, 2)}, "objects"),
        ({"scale": (0.5, 0.3)}, "scale"),
        ({"correlation": 1.5}, "correlations"),
        ({"classes": (0,)}, "classes"),
    ],
)
def test_what_makes_no_sense_is_refused(items: Dataset, photos: Dataset, changes: dict[str, object], says: str) -> None:
    with pytest.raises(AssayError, match=says):
        make(items, photos, **changes)
    with pytest.raises(AssayError, match="nothing to make valid"):
        make(replace(items, valid=items.valid.take(torch.arange(0))), photos)
