"""Scenes: real items on crops of real photos, with all that is known of them: boxes, masks, classes, backgrounds.

Detectors, explanations and stress tests are judged by where something is in a picture, and by what stands around it. Here both
are known exactly, and what stands around may be made to follow the class as strictly as one likes:

    clothes = load("fashion-mnist").holdout(0.1, seed=0)
    found = scenes(clothes, load("cbsd68"), size=48, objects=(1, 3), count=(3000, 500, 1000), seed=0)
    data = found.detection()  # a Dataset that the training loop takes, see assay.nn.detector

Items and photos of a split come from the same split of theirs, so that neither a test item nor a test background was ever
trained on. Settings are composed, objects and backgrounds are real.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data.dataset import Dataset, Split
from assay.errors import AssayError

#: An item's pixel belongs to it where it is brighter than this: the items' own backgrounds are black.
_INK = 0.05


@dataclass(frozen=True)
class Scenes:
    """N scenes with at most M objects each; where there are fewer, labels are -1, boxes and masks are zero.

    Attributes:
        images: (N, 1, S, S) in [0, 1].
        boxes: (N, M, 4) the tightest boxes of what is seen of the objects: left, top, right, bottom in pixels; a pixel is 1 wide.
        labels: (N, M) int64, classes of the objects, or -1.
        masks: (N, M, S, S) bool, the pixels that show the object.
        background: (N,) int64, the kind of background.
        photo: (N,) int64, position of the background's photo in its split.
        item: (N, M) int64, positions of the items in their split, or -1.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    background: Tensor
    photo: Tensor
    item: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def targets(self) -> Tensor:
        """(N, M, 5): class (-1: none), left, top, right, bottom of every object; what a detector learns from."""
        return torch.cat([self.labels.unsqueeze(2).to(self.boxes.dtype), self.boxes], dim=2)


@dataclass(frozen=True)
class SceneSplits:
    """Scenes to learn from, to choose by and to test on.

    Attributes:
        name: what they were made of.
        train: items of the training split on photos of the training split; ``valid`` and ``test`` likewise.
        classes: names of the items' classes.
        licence: of items and photos.
        history: how they were made.
    """

    name: str
    train: Scenes
    valid: Scenes
    test: Scenes
    classes: tuple[str, ...]
    licence: str
    history: tuple[str, ...]

    def detection(self) -> Dataset:
        """Task ``"detection"``: inputs (N, 1, S, S), labels (N, M, 5) float as :meth:`Scenes.targets` has them."""
        return self._dataset("detection", *(Split(one.images, one.targets()) for one in (self.train, self.valid, self.test)))

    def classification(self) -> Dataset:
        """Scenes of one object each, labelled by it: inputs (N, 1, S, S), labels (N,) int64.

        Raises:
            AssayError: there are scenes with several objects or none.
        """
        everyone = (self.train, self.valid, self.test)
        if any(one.labels.shape[1] != 1 or bool((one.labels < 0).any()) for one in everyone):
            raise AssayError("A scene with several objects has no single class: make scenes with objects=(1, 1).")
        return self._dataset("classification", *(Split(one.images, one.labels[:, 0]) for one in everyone))

    def _dataset(self, task: str, train: Split, valid: Split, test: Split) -> Dataset:
        return Dataset(self.name, task, train, valid, test, self.classes, self.licence, self.name, self.history)


def scenes(
    items: Dataset,
    photos: Dataset,
    *,
    size: int = 48,
    objects: tuple[int, int] = (1, 3),
    scale: tuple[float, float] = (0.3, 0.5),
    kinds: int = 1,
    correlation: float = 0.0,
    test_correlation: float = 0.0,
    overlap: float = 0.0,
    classes: tuple[int, ...] | None = None,
    count: tuple[int, int, int] = (3000, 500, 1000),
    seed: int = 0,
) -> SceneSplits:
    """Paste items on crops of photos.

    A background is a crop of a photo at half its size, in grey, maybe mirrored. With several ``kinds`` it is chosen by its
    roughness (mean difference of neighbouring pixels): kind 0 is the smoothest, as sky; the last is the roughest, as leaves.
    The bounds are quantiles of the training photos, with a gap between two kinds that is as wide as a kind.

    Args:
        items: bright items on black, (N, 1, h, w) in [0, 1] with classes, as fashion-mnist or mnist. Split ``valid`` must not be
            empty where scenes are asked of it (``items.holdout``).
        photos: (N, 3 or 1, H, W) in [0, 1] with their own splits, as cbsd68; at least twice as high and wide as a scene.
        size: S, height and width of a scene in pixels.
        objects: least and most objects of a scene; an object that finds no free place in 20 tries is left out, but for the first.
        scale: smallest and largest side of the item's frame, as shares of ``size``.
        kinds: how many kinds of background there are.
        correlation: probability that the background of a training or validation scene is its first object's own (class modulo
            ``kinds``); otherwise it is any, evenly. 1 gives the class away.
        test_correlation: the same for the test scenes; 0 makes class and background independent.
        overlap: largest intersection over union of two frames; what is pasted later hides what was there.
        classes: which of the items' classes are used; they are numbered anew in this order. ``None`` takes all.
        count: scenes to learn from, to choose by, to test on.
        seed: the same seed gives the same scenes.

    Raises:
        AssayError: the photos are too small, a split has nothing to make scenes of, or a number makes no sense.
    """
    _require(items, photos, size, objects, scale, kinds, (correlation, test_correlation), count)
    used = tuple(range(items.num_classes)) if classes is None else classes
    if len(used) < 2 or len(set(used)) < len(used) or not set(used) <= set(range(items.num_classes)):
        raise AssayError(f"classes={classes} must be two or more different numbers from 0 to {items.num_classes - 1}.")
    grey = {part: _grey(getattr(photos, part)) for part in ("train", "valid", "test")}
    bounds = _roughness_bounds(grey["train"], size, kinds) if kinds > 1 else None
    made = {}
    for place, part in enumerate(("train", "valid", "test")):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
        of, positions = _only(getattr(items, part), used)
        follows = test_correlation if part == "test" else correlation
        one = _compose(of, grey[part], size, objects, scale, bounds, follows, overlap, count[place], generator)
        made[part] = replace(one, item=torch.where(one.item >= 0, positions[one.item], -1))
    settings = (
        f"scenes(size={size}, objects={objects}, scale={scale}, kinds={kinds}, correlation={correlation}, "
        f"test_correlation={test_correlation}, overlap={overlap}, classes={classes}, count={count}, seed={seed})"
    )
    return SceneSplits(
        name=f"{items.name} on {photos.name}",
        train=made["train"],
        valid=made["valid"],
        test=made["test"],
        classes=tuple(items.classes[label] for label in used),
        licence=f"items: {items.licence}; photos: {photos.licence}",
        history=(*items.history, *photos.history, settings),
    )


def silhouettes(items: Tensor) -> Tensor:
    """The pixels of items on black, small holes filled: (N, 1, h, w) -> (N, 1, h, w) of 0 and 1."""
    ink = (items > _INK).to(items.dtype)
    # Closing: what is dark but within two pixels of the item on all sides belongs to it.
    padded = F.pad(ink, (2, 2, 2, 2))
    grown = F.max_pool2d(padded, 3, stride=1, padding=1)
    shrunk = -F.max_pool2d(-grown, 3, stride=1, padding=1)
    return shrunk[:, :, 2:-2, 2:-2]


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest boxes around masks: (..., H, W) bool -> (..., 4): left, top, right, bottom; zeros for empty masks."""
    height, width = masks.shape[-2:]
    rows, columns = masks.any(dim=-1), masks.any(dim=-2)  # (..., H), (..., W)
    edges = []
    for seen, length in ((columns, width), (rows, height)):
        at = torch.arange(length, device=masks.device)
        edges.append((seen.int().argmax(dim=-1), torch.where(seen, at + 1, 0).amax(dim=-1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1).float() * rows.any(dim=-1, keepdim=True)


# ------------------------------------------------------------------------------------------------------------ items


def _only(items: Split, classes: tuple[int, ...]) -> tuple[Split, Tensor]:
    """The items of these classes, which become 0, 1, ... in this order, and their positions."""
    is_one = items.labels[:, None] == torch.tensor(classes)  # (N, K)
    positions = is_one.any(dim=1).nonzero().flatten()
    return Split(items.take(positions).inputs, is_one[positions].int().argmax(dim=1)), positions


def _compose(
    items: Split,
    photos: Tensor,
    size: int,
    objects: tuple[int, int],
    scale: tuple[float, float],
    bounds: Tensor | None,
    correlation: float,
    overlap: float,
    count: int,
    generator: torch.Generator,
) -> Scenes:
    least, most = objects
    assert isinstance(items.inputs, Tensor)
    # Whole rounds through the items in random order, so that classes are as even as theirs.
    wanted = count * most
    rounds = -(-wanted // max(1, len(items)))
    order = torch.cat(
        [torch.randperm(len(items), generator=generator) for _ in range(rounds)] or [torch.zeros(0, dtype=torch.int64)]
    )
    chosen = order[:wanted].view(most, count).T  # (N, M): the first objects come from one round where that is long enough
    labels = items.labels[chosen]
    number = torch.randint(least, most + 1, (count, 1), generator=generator)
    frames, fits = _frames(count, most, size, scale, overlap, generator)  # (N, M, 4), (N, M)
    there = fits & (torch.arange(most) < number)

    kind, photo, canvas = _backgrounds(photos, labels[:, 0], size, bounds, correlation, generator)
    masks = torch.zeros(count, most, size, size, dtype=torch.bool)
    for place in range(most if count else 0):
        pictures = items.inputs[chosen[:, place]]
        shape, ink = _paste(silhouettes(pictures), pictures, frames[:, place], size)
        shape, ink = shape * there[:, place, None, None], ink * there[:, place, None, None]
        canvas = canvas * (1 - shape) + ink
        masks[:, :place] &= (shape < 0.5).unsqueeze(1)  # what comes later hides what was there
        masks[:, place] = shape >= 0.5
    seen = masks.flatten(2).any(dim=2)
    return Scenes(
        images=canvas.clamp(0, 1).unsqueeze(1),
        boxes=tight_boxes(masks),
        labels=torch.where(seen, labels, -1),
        masks=masks,
        background=kind,
        photo=photo,
        item=torch.where(seen, chosen, -1),
    )


def _frames(
    count: int, most: int, size: int, scale: tuple[float, float], overlap: float, generator: torch.Generator, tries: int = 20
) -> tuple[Tensor, Tensor]:
    """Where the items' frames go: (N, M, 4) in pixels, and whether a place was found (N, M)."""
    side = size * (scale[0] + (scale[1] - scale[0]) * torch.rand(count, most, generator=generator))
    corners = torch.rand(count, most, tries, 2, generator=generator) * (size - side)[:, :, None, None]
    frames = torch.zeros(count, most, 4)
    found = torch.zeros(count, most, dtype=torch.bool)
    every = torch.arange(count)
    for place in range(most):
        tried = torch.cat([corners[:, place], corners[:, place] + side[:, place, None, None]], dim=2)  # (N, tries, 4)
        free = torch.ones(count, tries, dtype=torch.bool)
        for other in range(place):
            taken = frames[:, other].unsqueeze(1)
            inner = (torch.minimum(tried[..., 2:], taken[..., 2:]) - torch.maximum(tried[..., :2], taken[..., :2])).clamp_min(0)
            both = inner.prod(dim=2)
            free &= both <= overlap * (side[:, place] ** 2 + side[:, other] ** 2).unsqueeze(1) / (1 + overlap)
        first = free.int().argmax(dim=1)
        frames[:, place], found[:, place] = tried[every, first], free.any(dim=1)
    return frames, found


def _paste(shape: Tensor, ink: Tensor, frames: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Items in their frames on an empty canvas: how much of a pixel they cover (N, S, S), and their light there."""
    left, top, right, bottom = (frames * 2 / size - 1).unbind(dim=1)
    zero = torch.zeros_like(left)
    rows = [
        2 / (right - left),
        zero,
        -(left + right) / (right - left),
        zero,
        2 / (bottom - top),
        -(top + bottom) / (bottom - top),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), [len(frames), 1, size, size], align_corners=False)
    both = F.grid_sample(torch.cat([shape, ink * shape], dim=1), grid, padding_mode="zeros", align_corners=False)
    return both[:, 0], both[:, 1]


# ------------------------------------------------------------------------------------------------------ backgrounds


def _grey(photos: Split) -> Tensor:
    """Photos in grey at half their size: (N, H / 2, W / 2)."""
    assert isinstance(photos.inputs, Tensor)
    return F.avg_pool2d(photos.inputs.mean(dim=1, keepdim=True), 2).squeeze(1)


def _crops(photos: Tensor, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops, maybe mirrored: (N, S, S), and the photos that they are from (N,)."""
    number, height, width = photos.shape
    photo = torch.randint(number, (count,), generator=generator)
    top = torch.randint(height - size + 1, (count, 1), generator=generator)
    left = torch.randint(width - size + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    along = torch.arange(size)
    columns = torch.where(mirrored, left + along.flip(0), left + along)
    rows = top + along
    return photos[photo[:, None, None], rows[:, :, None], columns[:, None, :]], photo


def roughness(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels: (N, H, W) -> (N,)."""
    across, down = images.diff(dim=2).abs().mean(dim=(1, 2)), images.diff(dim=1).abs().mean(dim=(1, 2))
    return (across + down) / 2


def _roughness_bounds(photos: Tensor, size: int, kinds: int) -> Tensor:
    """(kinds, 2): from where to where the roughness of each kind goes, from 4,000 crops that depend on no seed."""
    rough = roughness(_crops(photos, 4000, size, torch.Generator().manual_seed(0))[0])
    # 2 K - 1 equal parts, of which every second is a kind: without the gaps, crops near a bound would be of either.
    edges = rough.quantile(torch.linspace(0, 1, 2 * kinds))
    edges[0], edges[-1] = 0.0, torch.inf
    return torch.stack([edges[0::2], edges[1::2]], dim=1)


def _backgrounds(
    photos: Tensor, labels: Tensor, size: int, bounds: Tensor | None, correlation: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Kind (N,), photo (N,) and picture (N, S, S) of the backgrounds of scenes whose first objects have these labels (N,)."""
    count = len(labels)
    if bounds is None:
        canvas, photo = _crops(photos, count, size, generator)
        return torch.zeros_like(labels), photo, canvas
    kinds = len(bounds)
    own = torch.rand(count, generator=generator) < correlation
    kind = torch.where(own, labels % kinds, torch.randint(kinds, (count,), generator=generator))
    photo, canvas = torch.zeros_like(kind), torch.zeros(count, size, size)
    missing = torch.ones(count, dtype=torch.bool)
    for _ in range(50):  # each time crops for all that are missing; of a kind there are seldom fewer than one in ten
        for one in range(kinds):
            waiting = (missing & (kind == one)).nonzero().flatten()
            if not len(waiting):
                continue
            pictures, origins = _crops(photos, 2 * kinds * len(waiting) + 16, size, generator)
            rough = roughness(pictures)
            right = ((rough >= bounds[one, 0]) & (rough < bounds[one, 1])).nonzero().flatten()[: len(waiting)]
            filled = waiting[: len(right)]
            canvas[filled], photo[filled], missing[filled] = pictures[right], origins[right], False
        if not bool(missing.any()):
            return kind, photo, canvas
    raise AssayError(f"The photos have too few parts of the kind {int(kind[missing][0])} of {kinds}: ask for fewer kinds.")


def _require(
    items: Dataset,
    photos: Dataset,
    size: int,
    objects: tuple[int, int],
    scale: tuple[float, float],
    kinds: int,
    correlations: tuple[float, float],
    count: tuple[int, int, int],
) -> None:
    shape = items.input_shape
    if items.task != "classification" or len(shape) != 3 or shape[0] != 1:
        raise AssayError(f"Scenes are made of grey pictures with classes (N, 1, h, w), and {items.name!r} has none of these.")
    if len(photos.input_shape) != 3 or min(photos.input_shape[1:]) < 2 * size:
        raise AssayError(
            f"Photos for scenes of {size} pixels are at least {2 * size} high and wide; those of {photos.name!r} no."
        )
    if not 1 <= objects[0] <= objects[1]:
        raise AssayError(f"Scenes with objects={objects} cannot be made: give the least and the most, 1 or more.")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise AssayError(f"scale={scale} must be two shares of the scene's side, the smaller first.")
    if kinds < 1 or not all(0 <= value <= 1 for value in correlations):
        raise AssayError("Scenes need one kind of background at least, and correlations between 0 and 1.")
    for wanted, part in zip(count, ("train", "valid", "test"), strict=True):
        if wanted and not (len(getattr(items, part)) and len(getattr(photos, part))):
            raise AssayError(f"There is nothing to make {part} scenes of: hold items and photos out, or ask for none.")
