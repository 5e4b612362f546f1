"""The detector against torchmetrics (COCO's average precision), brute force, and its own invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.nn.detector import (
    COCO_THRESHOLDS,
    STRIDE,
    Detections,
    GridDetector,
    assign,
    average_precision,
    detect,
    detection_loss,
    generalised_iou,
    matches,
    paired_iou,
    places,
    predicted_boxes,
    recall,
    suppress,
)
from assay.recipes import detector_on
from assay.train.loop import fit


def some_boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    corner = 30 * torch.rand(*shape, 2, generator=generator)
    return torch.cat([corner, corner + 4 + 14 * torch.rand(*shape, 2, generator=generator)], dim=-1)


def random_case(
    seed: int, pictures: int = 12, objects: int = 4, most: int = 9, num_classes: int = 3
) -> tuple[Detections, Tensor, Tensor]:
    """Objects, and detections that are mostly near one of them; scores and overlaps with ties."""
    generator = torch.Generator().manual_seed(seed)
    boxes = some_boxes((pictures, objects), generator)
    labels = torch.randint(-1, num_classes, (pictures, objects), generator=generator)
    which = torch.randint(objects, (pictures, most), generator=generator)
    near = boxes.gather(1, which[..., None].expand(-1, -1, 4)) + torch.randn(pictures, most, 4, generator=generator)
    near[..., 2:] = torch.maximum(near[..., 2:], near[..., :2] + 1)
    scores = (torch.rand(pictures, most, generator=generator) * 20).round().div(20).clamp_min(0.05)
    found = labels.gather(1, which)
    found = torch.where(found < 0, torch.randint(num_classes, found.shape, generator=generator), found)
    gone = torch.rand(pictures, most, generator=generator) < 0.2
    scores, order = torch.where(gone, 0.0, scores).sort(dim=1, descending=True, stable=True)
    found = torch.where(gone, -1, found).gather(1, order)
    return Detections(near.gather(1, order[..., None].expand(-1, -1, 4)), scores, found), boxes, labels


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    pytest.importorskip("pycocotools")
    detection = pytest.importorskip("torchmetrics.detection")
    found, boxes, labels = random_case(seed)
    # Its own thresholds are rounded to single precision, so that a recall of exactly 0.2 falls short of the 0.2.
    metric = detection.MeanAveragePrecision(
        iou_thresholds=list(COCO_THRESHOLDS), rec_thresholds=np.linspace(0, 1, 101).tolist(), class_metrics=True
    )
    metric.update(
        [
            {"boxes": found.boxes[n][there], "scores": found.scores[n][there], "labels": found.labels[n][there]}
            for n, there in enumerate(found.there)
        ],
        [{"boxes": boxes[n][labels[n] >= 0], "labels": labels[n][labels[n] >= 0]} for n in range(len(boxes))],
    )
    theirs, ours = metric.compute(), average_precision(found, boxes, labels, 3)
    assert float(ours.nanmean()) == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert float(ours[0].nanmean()) == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert float(ours[5].nanmean()) == pytest.approx(float(theirs["map_75"]), abs=1e-6)
    torch.testing.assert_close(ours.mean(dim=0).float(), theirs["map_per_class"], atol=1e-6, rtol=0)
    assert 0.05 < float(ours.nanmean()) < 0.95


def brute_force(found: Detections, boxes: Tensor, labels: Tensor, one: int, threshold: float) -> float:
    """Average precision of a class from its definition, with loops."""
    rows = []
    for n in range(len(boxes)):
        taken: set[int] = set()
        for d in range(found.scores.shape[1]):
            if int(found.labels[n, d]) != one:
                continue
            best, which = threshold, -1
            for m in range(boxes.shape[1]):
                overlap = float(paired_iou(found.boxes[n, d].double(), boxes[n, m].double()))
                if int(labels[n, m]) == one and m not in taken and overlap >= best:
                    best, which = overlap, m
            taken |= {which} - {-1}
            rows.append((float(found.scores[n, d]), which >= 0))
    rows.sort(key=lambda row: -row[0])
    objects, hits, points = int((labels == one).sum()), 0, []
    for place, (_, hit) in enumerate(rows, start=1):
        hits += hit
        points.append((hits / objects, hits / place))
    levels = np.linspace(0, 1, 101).tolist()
    return sum(max((precision for reach, precision in points if reach >= level), default=0.0) for level in levels) / 101


@pytest.mark.parametrize("seed", [10, 11])
def test_average_precision_is_its_definition(seed: int) -> None:
    found, boxes, labels = random_case(seed, pictures=6)
    ours = average_precision(found, boxes, labels, 3, (0.5, 0.75))
    for row, threshold in enumerate((0.5, 0.75)):
        for one in range(3):
            assert float(ours[row, one]) == pytest.approx(brute_force(found, boxes, labels, one, threshold), abs=1e-9)


def test_average_precision_at_its_ends() -> None:
    _, boxes, labels = random_case(0)
    order = (labels >= 0).int().argsort(dim=1, descending=True, stable=True)
    exact = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    perfect = Detections(exact, (labels >= 0).float().gather(1, order), labels.gather(1, order))
    torch.testing.assert_close(average_precision(perfect, boxes, labels, 3), torch.ones(10, 3, dtype=torch.float64))
    assert recall(perfect, boxes, labels) == 1.0
    nothing = Detections(exact, torch.zeros_like(perfect.scores), torch.full_like(labels, -1))
    assert float(average_precision(nothing, boxes, labels, 3).sum()) == 0
    assert average_precision(perfect, boxes, labels, 4)[:, 3].isnan().all()
    assert recall(nothing, boxes, labels) == 0.0


def test_each_object_is_found_once_by_the_surest() -> None:
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    found = Detections(box.expand(1, 3, 4), torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[1, 0, 0]]))
    assert matches(found, box, torch.tensor([[0]]), (0.5,)).tolist() == [[[-1, 0, -1]]]
    assert matches(found, box, torch.tensor([[0]]), (0.5,), classes=False).tolist() == [[[0, -1, -1]]]


def test_overlaps() -> None:
    one, two, far = torch.tensor([0.0, 0, 4, 4]), torch.tensor([2.0, 0, 6, 4]), torch.tensor([8.0, 0, 12, 4])
    assert float(paired_iou(one, two)) == pytest.approx(8 / 24)
    assert float(generalised_iou(one, two)) == pytest.approx(8 / 24)
    assert float(generalised_iou(one, far)) == pytest.approx(-(48 - 32) / 48)
    assert float(paired_iou(one, one)) == pytest.approx(1)
    assert float(paired_iou(one, torch.zeros(4))) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_suppression_is_greedy(seed: int) -> None:
    found, _, _ = random_case(seed, num_classes=2)
    kept = suppress(found.boxes, found.labels, found.there, 0.4)
    for n in range(len(kept)):
        expected: list[int] = []
        for d in range(kept.shape[1]):
            rivals = [e for e in expected if found.labels[n, e] == found.labels[n, d]]
            free = all(float(paired_iou(found.boxes[n, e], found.boxes[n, d])) <= 0.4 for e in rivals)
            expected += [d] if bool(found.there[n, d]) and free else []
        assert kept[n].nonzero().flatten().tolist() == expected


def test_what_is_learnt_is_what_is_read() -> None:
    """Outputs that say exactly the targets have no loss for boxes, and are read back as the targets."""
    targets = torch.tensor(
        [[[1, 5, 4, 21, 24], [0, 26, 20, 44, 40]], [[2, 10, 12, 30, 30], [-1, 0, 0, 0, 0]]], dtype=torch.float32
    )
    seen = assign(targets, 6, 6)
    assert [(seen[0] == one).sum().item() for one in (0, 1)] == [4, 4]
    assert not (seen[1] == 1).any()
    outputs = torch.full((2, 4 + 3, 6, 6), -20.0)
    outputs[:, :4] = 0
    at = places(6, 6)
    for n, row, column in (seen >= 0).nonzero().tolist():
        one = targets[n, seen[n, row, column]]
        reach = torch.cat([at[row, column] - one[1:3], one[3:] - at[row, column]])
        outputs[n, :4, row, column] = (reach / STRIDE).log()
        outputs[n, 4 + int(one[0]), row, column] = 20.0
    torch.testing.assert_close(predicted_boxes(outputs)[seen >= 0], targets[(seen >= 0).nonzero()[:, 0], seen[seen >= 0], 1:])
    assert float(detection_loss(outputs, targets)) == pytest.approx(0, abs=1e-4)
    found = detect(outputs)
    assert average_precision(found, targets[..., 1:], targets[..., 0].long(), 3).min() == 1
    assert int(found.there.sum()) == 3


def test_of_two_objects_a_place_sees_the_smaller() -> None:
    targets = torch.tensor([[[0, 0, 0, 40, 40], [1, 14, 14, 26, 26]]], dtype=torch.float32)
    assert set(assign(targets, 6, 6)[assign(targets, 6, 6) >= 0].tolist()) == {1}


def test_loss_by_hand() -> None:
    targets = torch.tensor([[[1, 0, 0, 16, 16]]], dtype=torch.float32)
    outputs = torch.zeros(1, 6, 2, 2, requires_grad=True)
    # Of the four places around (8, 8) all see the object; each box reaches 8 to all sides of its place.
    loss = detection_loss(outputs, targets)
    classes = 8 * math.log(2) / 4
    overlap = generalised_iou(predicted_boxes(outputs).reshape(4, 4), targets[0, :, 1:].expand(4, 4))
    assert loss.item() == pytest.approx(classes + (1 - overlap).mean().item(), abs=1e-6)
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_pictures_without_objects_have_a_loss() -> None:
    targets = torch.full((2, 1, 5), -1.0)
    outputs = torch.zeros(2, 6, 3, 3)
    expected = F.binary_cross_entropy_with_logits(outputs[:, 4:], torch.zeros(2, 2, 3, 3), reduction="sum")
    torch.testing.assert_close(detection_loss(outputs, targets), expected)


def test_it_learns_through_the_training_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (96, 1, 1), generator=generator).float()
    corner = torch.randint(0, 16, (96, 1, 2), generator=generator).float()
    targets = torch.cat([labels, corner, corner + torch.where(labels == 0, 8.0, 14.0)], dim=2)
    images = torch.zeros(96, 1, 32, 32)
    for image, (_, left, top, right, bottom) in zip(images, targets[:, 0].long().tolist(), strict=True):
        image[:, top:bottom, left:right] = 1
    data = Dataset(
        "blocks", "detection", Split(images, targets), Split(images[:0], targets[:0]), Split(images, targets), ("a", "b")
    )
    trained = fit(detector_on(data, epochs=25).replace(watch=("test",)), 0)
    found = detect(trained.logits("test"))
    quality = average_precision(found, targets[..., 1:], targets[..., 0].long(), 2)
    assert float(quality[0].nanmean()) > 0.9
    assert trained.history["test_loss"][-1] < trained.history["test_loss"][0] / 4
    assert trained.loss("test") == pytest.approx(trained.history["test_loss"][-1], rel=1e-4)
    assert trained.parameters == sum(p.numel() for p in GridDetector(2).parameters())
