"""Repeatable patches: how much of a detector's failure is the pattern, and how much is simply what it covers?

Patterns can be made that hide an object from a detector when they are put on it. Attacks are compared by what is left of the
recall, but they cover different areas, and whatever covers an object hides it a little. So compare at the same area and place,
with plain grey and plain noise beside the attacks. And if area is what counts, a pattern should come in any area: instead of
one patch, learn a small element that repeats without seams, and let it cover whatever there is to cover.

    patch     p x p pixels, stretched over a region of each object
    element   e x e pixels, repeated at its own size over the region, at any phase (dx, dy)

Both are learnt alike: they are pasted on many objects, moved, turned and lit at random, and descend on

    mean over objects of the highest score of any place on the object + smooth * roughness of the pattern

(Thys et al. 2019, without the term for printable colours: nothing is printed here). An element's roughness is measured around its
edges too. This is for testing a detector of one's own; patterns fit the network that they were made for.

Source: Niederhut, "Area is all you need: repeatable elements make stronger adversarial attacks", 2023. Its text was not at hand;
what is here is the usual pipeline for patches, with repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data.scenes import scenes
from assay.nn.detector import detect, matches, places
from assay.nn.frozen import frozen
from assay.paper import Above, Below, Curve, Higher, Lower, claim
from assay.recipe import probe
from assay.recipes import detector_on
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.data.scenes import Scenes, SceneSplits
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


# --------------------------------------------------------------------------------------------------------- patterns


def tile(element: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A repeated element, looked up at any points: it goes on forever, and interpolates over its seams.

    Args:
        element: (C, e, e).
        x: (...) pixels to the right of the element's left edge.
        y: (...) pixels down from its top.

    Returns:
        (C, ...).
    """
    side = element.shape[-1]
    # A frame of what comes next in each direction; a period later the same points are looked up again.
    framed = F.pad(element[None], (1, 1, 1, 1), mode="circular")
    return _look_up(framed, x % side + 1, y % side + 1)


def stretch(patch: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A patch, looked up at points (x, y) of which it fills the unit square: (C, p, p), (...), (...) -> (C, ...)."""
    side = patch.shape[-1]
    return _look_up(patch[None], x * side, y * side)


def _look_up(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of (1, C, s, s) at points in pixels: (C, ...). A pixel's middle lies at one half."""
    grid = torch.stack([x, y], dim=-1).view(1, 1, -1, 2) * 2 / picture.shape[-1] - 1
    values = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values.view(picture.shape[1], *x.shape)


def roughness(pattern: Tensor, tiled: bool) -> Tensor:
    """Mean absolute difference of neighbouring pixels (C, s, s) -> scalar; of an element's opposite edges too."""
    if tiled:
        return ((pattern - pattern.roll(1, 1)).abs().mean() + (pattern - pattern.roll(1, 2)).abs().mean()) / 2
    return (pattern.diff(dim=1).abs().mean() + pattern.diff(dim=2).abs().mean()) / 2


def apply_patch(
    images: Tensor,
    boxes: Tensor,
    pattern: Tensor,
    area: float = 0.4,
    tiled: bool = False,
    masks: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Put a pattern on every object.

    Args:
        images: (B, C, H, W) in [0, 1].
        boxes: (B, M, 4) left, top, right, bottom in pixels; empty where there is no object.
        pattern: (C, s, s) in [0, 1].
        area: share of each box that is covered, around its middle and in its shape.
        tiled: whether the pattern repeats at its own size, or is stretched over the region.
        masks: (B, M, H, W) bool; nothing but these pixels is covered, so that the background and neighbours stay.
        generator: where given, the pattern is turned by up to 20 degrees, shifted (tiled: to any phase) and lit at random.

    Returns:
        (B, C, H, W) in [0, 1]; gradients flow to the pattern and the images.
    """
    height, width = images.shape[2:]
    for place in range(boxes.shape[1]):
        left, top, right, bottom = boxes[:, place, :, None, None].unbind(dim=1)  # (B, 1, 1)
        wide, tall = (right - left).clamp_min(1e-6), (bottom - top).clamp_min(1e-6)
        x = torch.arange(width, device=images.device) + 0.5 - (left + right) / 2  # from the middle of the box
        y = (torch.arange(height, device=images.device) + 0.5)[:, None] - (top + bottom) / 2
        x, y = x.expand(-1, height, -1), y.expand(-1, -1, width)
        side = math.sqrt(area)
        covered = (x.abs() < side * wide / 2) & (y.abs() < side * tall / 2) & (right > left)
        if masks is not None:
            covered = covered & masks[:, place]
        draws = torch.rand(5, len(images), 1, 1, generator=generator) if generator else torch.full((5, 1, 1, 1), 0.5)
        angle, shift_x, shift_y, light, contrast = draws.to(images) * 2 - 1
        angle = angle * math.radians(20)
        x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
        if tiled:
            period = pattern.shape[-1]
            texture = tile(pattern, x + shift_x * period / 2, y + shift_y * period / 2)
        else:
            reach = side if side else 1.0
            texture = stretch(pattern, x / (reach * wide) + 0.5 + 0.05 * shift_x, y / (reach * tall) + 0.5 + 0.05 * shift_y)
        texture = (0.5 + (texture - 0.5) * (1 + 0.2 * contrast) + 0.1 * light).clamp(0, 1)  # (C, B, H, W)
        images = torch.where(covered.unsqueeze(1), texture.transpose(0, 1), images)
    return images


# ----------------------------------------------------------------------------------------------------------- attack


def learn_pattern(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    tiled: bool,
    steps: int = 150,
    rate: float = 0.03,
    smooth: float = 0.1,
) -> tuple[Tensor, list[float]]:
    """Descend on an objective with a pattern whose pixels stay in [0, 1] (Adam).

    Args:
        objective: ``pattern (C, s, s) -> scalar``; each call may look at other examples.
        start: (C, s, s), the pattern to begin with.
        tiled: whether it repeats, which its roughness depends on.
        steps: of Adam.
        rate: of Adam, in units of the pixel range.
        smooth: weight of the roughness.

    Returns:
        The pattern, and the objective at every step.
    """
    pattern = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([pattern], lr=rate)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = objective(pattern)
        (value + smooth * roughness(pattern, tiled)).backward()
        optimizer.step()
        with torch.no_grad():
            pattern.clamp_(0, 1)
        history.append(value.item())
    return pattern.detach(), history


def object_scores(outputs: Tensor, boxes: Tensor) -> Tensor:
    """The highest score of any class at any place on each object.

    Args:
        outputs: (B, 4 + K, h, w) of :class:`assay.nn.detector.GridDetector`.
        boxes: (B, M, 4).

    Returns:
        (B, M); 0 for boxes that hold no place.
    """
    at = places(*outputs.shape[2:]).to(outputs)[None, None]  # (1, 1, h, w, 2)
    low, high = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
    on = ((at >= low) & (at < high)).all(dim=4)  # (B, M, h, w)
    scores = outputs[:, 4:].amax(dim=1).sigmoid()[:, None]  # (B, 1, h, w)
    best: Tensor = (scores * on).flatten(2).amax(dim=2)
    return best


def attack_detector(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    *,
    tiled: bool,
    size: int,
    area: float,
    masks: Tensor | None = None,
    steps: int = 150,
    batch: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[float]]:
    """Learn one pattern that hides objects of many images from a detector.

    Args:
        model: images -> (B, 4 + K, h, w) as :class:`assay.nn.detector.GridDetector` gives; it is left as it was.
        images: (N, C, H, W) in [0, 1].
        boxes: (N, M, 4), empty where there is no object.
        tiled: an element that repeats, or a patch.
        size: side of the pattern in pixels.
        area: share of each box that is covered.
        masks: (N, M, H, W) bool, the objects' pixels.
        steps: of Adam.
        batch: images in a step.
        generator: of the start, the images of a step, and how the pattern is moved.

    Returns:
        (C, size, size), and the mean score of the objects at every step.
    """
    generator = generator or torch.Generator().manual_seed(0)
    start = torch.rand(images.shape[1], size, size, generator=generator).to(images)

    def objective(pattern: Tensor) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=generator)
        part = None if masks is None else masks[rows]
        shown = apply_patch(images[rows], boxes[rows], pattern, area, tiled, part, generator)
        there = boxes[rows, :, 2] > boxes[rows, :, 0]
        return object_scores(model(shown), boxes[rows])[there].mean()

    with frozen(model, images[:2]):
        return learn_pattern(objective, start, tiled, steps)


@probe
def hiding_pattern(view: View, element: int = 8, area: float = 0.25, steps: int = 60) -> Seen:
    """How many pictures keep their class with a repeated element, plain grey or plain noise over their middle.

    The element is learnt on the background examples, against the class that the network says.

    Args:
        view: a classifier of images.
        element: side of the element in pixels.
        area: share of the picture that is covered, around its middle.
        steps: of learning.
    """
    view.only("images")
    view.classifier()
    generator, inputs = view.generator(), view.inputs
    known = view.background if len(view.background) else inputs
    low, high = known.amin(dim=(0, 2, 3), keepdim=True), known.amax(dim=(0, 2, 3), keepdim=True)
    scale = (high - low).clamp_min(1e-12)

    def shown(images: Tensor, pattern: Tensor, moved: torch.Generator | None = None) -> Tensor:
        whole = images.new_tensor([0, 0, images.shape[3], images.shape[2]]).expand(len(images), 1, 4)
        return apply_patch((images - low) / scale, whole, pattern, area, True, None, moved) * scale + low

    with torch.no_grad():
        said = torch.cat([view.model(part).argmax(dim=1) for part in known.split(256)])

    def objective(pattern: Tensor) -> Tensor:
        rows = torch.randint(len(known), (min(32, len(known)),), generator=generator)
        logits: Tensor = view.model(shown(known[rows], pattern, generator))
        return logits.softmax(dim=1).gather(1, said[rows, None]).mean()

    start = torch.rand(inputs.shape[1], element, element, generator=generator).to(inputs)
    with frozen(view.model, inputs):
        learnt, _ = learn_pattern(objective, start, True, steps)
    numbers, pictures = {}, {}
    with torch.no_grad():
        before = view.model(inputs).argmax(dim=1)
        for name, pattern in {"learnt element": learnt, "noise": start, "grey": torch.full_like(start, 0.5)}.items():
            pictures[name] = shown(inputs, pattern)
            numbers[f"share that keeps its class, {name}"] = (
                (view.model(pictures[name]).argmax(dim=1) == before).double().mean().item()
            )
    return Seen(numbers=numbers, inputs=pictures, notes=(f"{area:.0%} of each picture is covered",))


# ----------------------------------------------------------------------------------------------------------- claims

#: T-shirt, trousers, sneaker, bag, boot; see detection_calibration, whose claims share the detector.
_CLOTHES = (0, 1, 7, 8, 9)
_AREAS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
#: A box with this score or more is a detection.
_SURE = 0.3
_SCALED_DOWN = (
    "A detector of 60,000 weights on scenes of 48x48 pixels (clothes of Fashion-MNIST on photos) instead of YOLOv2 and YOLOv3 on "
    "INRIA Person; 150 steps of attack; only pixels of the object are covered; an object counts as found whatever its class."
)


def _scenes(lab: Lab) -> SceneSplits:
    count = lab.pick(smoke=(96, 48, 64), laptop=(4000, 500, 1000), full=(20_000, 2_000, 5_000))
    items = lab.data(lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="fashion-mnist")).holdout(0.1, seed=0)
    return scenes(items, lab.data("cbsd68"), objects=(1, 2), scale=(0.35, 0.55), classes=_CLOTHES, count=count, seed=lab.seed)


def _detector(lab: Lab, made: SceneSplits) -> Trained:
    return lab.train(detector_on(made.detection(), epochs=lab.pick(smoke=2, laptop=8, full=20)))


def _attack(lab: Lab, made: SceneSplits, tiled: bool, size: int, area: float) -> Tensor:
    """A pattern learnt on training scenes."""
    model, part = _detector(lab, made).model, made.train
    found = lab.remember(
        _learnt,
        model=model,
        images=part.images[:1000],
        boxes=part.boxes[:1000],
        masks=part.masks[:1000],
        tiled=tiled,
        size=size,
        area=area,
        steps=lab.pick(smoke=2, laptop=150, full=500),
        seed=lab.seed,
    )
    return found["pattern"]


def _learnt(
    model: nn.Module, images: Tensor, boxes: Tensor, masks: Tensor, tiled: bool, size: int, area: float, steps: int, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pattern, history = attack_detector(
        model, images, boxes, tiled=tiled, size=size, area=area, masks=masks, steps=steps, generator=generator
    )
    return {"pattern": pattern, "history": torch.tensor(history)}


@torch.no_grad()
def _found(model: nn.Module, part: Scenes, pattern: Tensor | None, area: float, tiled: bool) -> float:
    """Share of the objects that are still found (IoU 0.5, any class), the pattern lying still."""
    shown = part.images if pattern is None else apply_patch(part.images, part.boxes, pattern, area, tiled, part.masks)
    found = detect(torch.cat([model(batch) for batch in shown.split(250)]), threshold=_SURE)
    hits = (matches(found, part.boxes, part.labels, (0.5,), classes=False) >= 0).sum()
    return int(hits) / int((part.labels >= 0).sum())


@claim(
    "How much of an object is covered says more about a detector's recall than what covers it: over a learnt patch, a learnt "
    "element, grey and noise at seven areas, the loss of recall has a rank correlation with the area above 0.8, area explains "
    "more of its variance than the pattern does, and no curve of recall rises by more than 0.03 from one area to the next.",
    expect=(
        Above("rank correlation of area and loss of recall", 0.8),
        Higher("variance explained by area", than="variance explained by pattern"),
        Below("largest rise", 0.03),
        Above("nothing covered", 0.8),
    ),
    scaled_down=_SCALED_DOWN,
    unit="recall of test objects",
    needs=("fashion-mnist", "cbsd68"),
)
def area_explains_strength(lab: Lab) -> Measured:
    made = _scenes(lab)
    model = _detector(lab, made).model
    noise = torch.rand(1, 8, 8, generator=lab.generator(2))
    patterns = {
        "patch": (_attack(lab, made, False, 16, 0.4), False),
        "element": (_attack(lab, made, True, 8, 1.0), True),
        "noise": (noise, True),
        "grey": (torch.full((1, 8, 8), 0.5), True),
    }
    areas = lab.pick(smoke=(0.2, 1.0), laptop=_AREAS, full=_AREAS)
    nothing = _found(model, made.test, None, 0.0, False)
    recall = {
        name: [_found(model, made.test, pattern, area, tiled) for area in areas] for name, (pattern, tiled) in patterns.items()
    }
    table = torch.tensor(list(recall.values()), dtype=torch.float64)  # (patterns, areas)
    whole = table.var(correction=0)
    lost = (nothing - table).flatten().tolist()
    curves = {
        name: Curve([nothing, *line], x=[0, *areas], x_name="share of the box", y_name="recall") for name, line in recall.items()
    }
    return {
        **curves,
        "nothing covered": nothing,
        "rank correlation of area and loss of recall": float(spearmanr(list(areas) * len(recall), lost).statistic),
        "variance explained by area": float(table.mean(dim=0).var(correction=0) / whole),
        "variance explained by pattern": float(table.mean(dim=1).var(correction=0) / whole),
        "largest rise": float(torch.cat([torch.full((len(table), 1), nothing), table], dim=1).diff(dim=1).max()),
    }


@claim(
    "A small element repeated over the whole object hides more objects than one learnt patch on a quarter of its box (recall "
    "lower by more than 0.1), hides more than noise or grey over the whole object, and at most 5 points fewer than a learnt "
    "texture over the whole object with nine times as many pixels.",
    expect=(
        Lower("element, whole object", than="patch, a quarter", by=0.1),
        Lower("element, whole object", than="noise, whole object"),
        Lower("element, whole object", than="grey, whole object"),
        Lower("element, whole object", than="free texture, whole object", by=-0.05),
    ),
    scaled_down=_SCALED_DOWN,
    unit="recall of test objects",
    needs=("fashion-mnist", "cbsd68"),
)
def tiles_beat_one_patch(lab: Lab) -> Measured:
    made = _scenes(lab)
    found = partial(_found, _detector(lab, made).model, made.test)
    noise = torch.rand(1, 8, 8, generator=lab.generator(2))
    return {
        "nothing covered": found(None, 0.0, False),
        "element, whole object": found(_attack(lab, made, True, 8, 1.0), 1.0, True),
        "free texture, whole object": found(_attack(lab, made, False, 24, 1.0), 1.0, False),
        "patch, a quarter": found(_attack(lab, made, False, 16, 0.25), 0.25, False),
        "noise, whole object": found(noise, 1.0, True),
        "grey, whole object": found(torch.full((1, 8, 8), 0.5), 1.0, True),
        "noise, a quarter": found(noise, 0.25, True),
    }
