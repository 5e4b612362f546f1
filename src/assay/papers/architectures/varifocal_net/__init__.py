"""Varifocal networks: look at the whole, choose where to look closer, look again.

Chromosomes are told apart by bands that are small in the picture of a whole cell's worth of them, and each lies one way up or
the other. A varifocal network classifies such a picture as a person would. Its global half sees all of it and says what it is
and which way up; a small net on the same features proposes a square; the square is zoomed to full size by bilinear
interpolation, and the local half, a second network of the same kind, looks at that. Two perceptrons on the features of both
have the last word. It is trained in stages, each on what the ones before have learnt and left alone:

1. the global half, by cross-entropy on both questions;
2. the local half and the net that proposes squares: at first this is pulled towards the square that encloses the evidence, the
   places that spoke for the global half's answer; then it is left to the gradient that comes back through the zoom;
3. the two perceptrons, on features that no longer change.

Pictures come in cases with a known composition (a cell has two chromosomes of each type), so a fourth step labels a case as a
whole, each type as often as it must occur: :func:`assay.committee.dispatch`.

The two questions are independent given the features, so that the logit of a joint answer is the sum of both logits, and
cross-entropy on joint answers is the sum of both cross-entropies. Thus a joint label is all that a training loop must know.

Source: Qin, Wen, Zheng, Huang, Yang, Song, Zhu, Wu and Yang, "Varifocal-Net: A Chromosome Classification Approach using Deep
Convolutional Networks", IEEE Transactions on Medical Imaging 2019 (arXiv:1810.05943). Depth, target of the supervised phase
and lengths of the stages are chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from assay.committee import dispatch
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn.measure import nearest_width, parameters
from assay.paper import Configuration, Cost, Higher, Reported, Score, claim
from assay.papers.architectures.varifocal_net.networks import (
    Answers,
    FixedBox,
    Localiser,
    Look,
    Part,
    Pointer,
    VarifocalNet,
    enclosing_box,
    residual_trunk,
    separate,
    small,
    varifocal_net,
    zoom,
)
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.train.hooks import InputHook, Run
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

__all__ = [
    "CONFIGURATIONS",
    "Answers",
    "FixedBox",
    "Localiser",
    "Look",
    "Part",
    "Pointer",
    "PulledBoxes",
    "Stages",
    "VarifocalNet",
    "both_questions_at_once",
    "cases",
    "dispatch_helps",
    "dispatch_helps_where_cases_are_abnormal",
    "enclosing_box",
    "in_stages",
    "on_canvases",
    "paper_training",
    "residual_trunk",
    "second_look",
    "separate",
    "small",
    "staged",
    "varifocal",
    "varifocal_net",
    "zoom",
    "zoom_helps",
]

#: What the network with both looks is known to measure on images of the paper's size; it sees all of an image.
CONFIGURATIONS = {
    "varifocal_net()": Configuration((1, 256, 256), parameters=185_657, macs=240_160_576, layers=15, activations=1_712_128),
}


# ------------------------------------------------------------------------------------------------------- staged training


Shares = tuple[float, float, float]


def _ends(steps: int, shares: Shares) -> tuple[int, int]:
    """The steps at which the second and the third stage begin."""
    return round(shares[0] / sum(shares) * steps), round((shares[0] + shares[1]) / sum(shares) * steps)


def _found(model: nn.Module) -> tuple[str, VarifocalNet]:
    """The varifocal network in a model, which another method may have wrapped, and what stands before its parts' names."""
    for name, module in model.named_modules():
        if isinstance(module, VarifocalNet):
            return f"{name}." if name else "", module
    raise AssayError("This model holds no varifocal network any more, as another method took its place: leave one of them out.")


def _require_unwatched(model: nn.Module, own: tuple[str, ...]) -> None:
    """No part runs in every stage, so that nobody else can ask for the output of a layer in every step."""
    for name, module in model.named_modules():
        if name not in own and (module._forward_hooks or module._forward_pre_hooks):
            raise AssayError(
                f"Another method looks into the layer {name!r}, which does not run in every stage of a varifocal network: "
                "leave one of them out."
            )


@dataclass(frozen=True)
class Stages(InputHook):
    """Train the parts of a :class:`VarifocalNet` one after the other.

    Args:
        shares: of the steps, for the global half, the local half with the squares, and the answers from both.
        warm: share of the second stage in which squares are pulled towards the evidence.
    """

    shares: Shares = (0.4, 0.4, 0.2)
    warm: float = 0.5

    def before_forward(self, run: Run) -> None:
        """Whose turn it is.

        Raises:
            AssayError: another method looks into a layer, or freezes some.
        """
        before, net = _found(run.model)
        learning = torch.tensor(sum(parameter.requires_grad for parameter in net.parameters()))
        if run.step == 0:
            _require_unwatched(run.model, (f"{before}localiser", f"{before}pointer"))
            run.memory["stages.learning"] = learning
        elif not torch.equal(learning, run.memory["stages.learning"].cpu()):
            raise AssayError("Another method freezes layers, which the stages of a varifocal network do: leave one of them out.")
        second, third = _ends(run.steps_per_epoch * run.epochs, self.shares)
        part: Part = "global" if run.step < second else "local" if run.step < third else "both"
        if net.part != part or run.step == 0:
            net.learn(part)
        net.pulled = part == "local" and run.step < second + self.warm * (third - second)

    def after_epoch(self, run: Run) -> None:
        """When all is over the network answers with both halves."""
        if run.epoch == run.epochs:
            _found(run.model)[1].learn("both")


class PulledBoxes(nn.Module):
    """Cross-entropy, and in the first part of the second stage the distance of the squares from those around the evidence.

    Args:
        model: holds a :class:`VarifocalNet`; it is looked at, not kept as a part.
        weight: of the distance (smooth L1, quadratic up to a tenth of the image).

    Shape: logits (B, C), labels (B,), layers (name -> output) -> scalar.
    """

    def __init__(self, model: nn.Module, weight: float = 10.0) -> None:
        super().__init__()
        before, net = _found(model)
        self.watches = (f"{before}localiser", f"{before}pointer")
        self.weight = weight
        self._net = (net,)  # in a tuple: it is no part of the loss, and its weights are not the loss's

    def forward(self, logits: Tensor, labels: Tensor, layers: Mapping[str, Tensor]) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        if not self._net[0].pulled:
            return loss
        boxes, wanted = (layers[name] for name in self.watches)
        return loss + self.weight * F.smooth_l1_loss(boxes, wanted, beta=0.1)


def in_stages(optimizer: Optimizer, steps: int, schedule: Callable[[Optimizer, int], LRScheduler], shares: Shares) -> LRScheduler:
    """The schedule of the rate, once for each stage from its beginning to its end."""
    second, third = _ends(steps, shares)
    rate = optimizer.param_groups[0]["lr"]
    factors: list[float] = []
    for length in (second, third - second, steps - third):
        stage = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate, momentum=0.9)
        follows = schedule(stage, length) if length else None
        for _ in range(length):
            factors.append(stage.param_groups[0]["lr"] / rate)
            stage.step()
            assert follows is not None
            follows.step()
    return LambdaLR(optimizer, lambda step: factors[min(step, steps - 1)])


def staged(recipe: Recipe, shares: Shares = (0.4, 0.4, 0.2), warm: float = 0.5, weight: float = 10.0) -> Recipe:
    """The recipe of a varifocal network, trained in stages.

    Args:
        recipe: its model makes a :class:`VarifocalNet`.
        shares: as for :class:`Stages`.
        warm: as for :class:`Stages`.
        weight: as for :class:`PulledBoxes`.
    """
    schedule = None if recipe.schedule is None else partial(in_stages, schedule=recipe.schedule, shares=shares)
    timed = recipe.replace(hooks=(*recipe.hooks, Stages(shares, warm)), schedule=schedule)
    return with_loss(timed, per_example(PulledBoxes, weight=weight))


def paper_training(recipe: Recipe) -> Recipe:
    """In stages, as the network cannot be trained otherwise."""
    return staged(recipe)


@treatment
def varifocal(recipe: Recipe, shares: Shares = (0.4, 0.4, 0.2), warm: float = 0.5, weight: float = 10.0) -> Recipe:
    """A varifocal network in place of the recipe's, as wide as comes nearest to its number of parameters, trained in stages.

    Args:
        recipe: of a classifier of images.
        shares: of the training for the global half, the local half with the squares, and the answers from both.
        warm: share of the second stage in which squares are pulled towards the evidence.
        weight: how strongly.

    Raises:
        AssayError: the data are no images of at least 16 pixels or have no classes, or the recipe is staged already.
    """
    data = recipe.data
    if data.task != "classification" or len(data.input_shape) != 3 or min(data.input_shape[1:]) < 16:
        raise AssayError(f"There is nothing to zoom into in {data.name!r}: give images of at least 16 pixels with classes.")
    if any(isinstance(hook, Stages) for hook in recipe.hooks):
        raise AssayError("The network of this recipe is a varifocal one already: leave one of them out.")
    channels, height, width = data.input_shape
    make = partial(varifocal_net, data.num_classes, 1, channels, stride=2 if min(height, width) >= 48 else 1)
    with torch.device("meta"):
        target = parameters(recipe.model())
    best = nearest_width(lambda planes: make(width=planes), target, range(4, 132, 4))
    return staged(recipe.replace(model=partial(make, width=best)), shares, warm, weight)


# ---------------------------------------------------------------------------------------------------- claims

_DIGITS = (2, 3, 4, 5, 6, 7, 9)  # 0, 1 and 8 look the same upside down


def on_canvases(
    images: Tensor,
    seed: int,
    size: int = 48,
    sides: tuple[float, float] = (10.0, 24.0),
    strokes: int = 1,
) -> dict[str, Tensor]:
    """Paste each image at a random place, small or large, one way up or the other, among strokes that mean nothing.

    Args:
        images: (N, 1, h, w) bright on black.
        seed: of places, sizes, turns and strokes.
        size: pixels of a canvas's side.
        sides: shortest and longest side of an image on its canvas, in pixels.
        strokes: straight lines of 6 to 16 pixels on each canvas.

    Returns:
        ``images`` (N, 1, size, size), and ``turned`` (N,) int64: 1 where the image was turned by 180 degrees.
    """
    count, generator = len(images), torch.Generator().manual_seed(seed)
    side = sides[0] + (sides[1] - sides[0]) * torch.rand(count, generator=generator)
    centre = (side + (size - side) * torch.rand(2, count, generator=generator)) - side / 2
    turned = torch.randint(2, (count,), generator=generator)
    scale = (1 - 2 * turned) * size / side
    zero = torch.zeros(count)
    x, y = -scale * (2 * centre / size - 1)
    rows = torch.stack([scale, zero, x, zero, scale, y], dim=1).view(-1, 2, 3)
    pasted = []
    for some, row in zip(images.split(500), rows.split(500), strict=True):
        # Twice as fine and averaged: bilinear sampling alone would leave out every other pixel of a small image.
        grid = F.affine_grid(row, [len(row), 1, 2 * size, 2 * size], align_corners=False)
        pasted.append(F.avg_pool2d(F.grid_sample(some, grid, align_corners=False), 2))
    return {"images": torch.maximum(torch.cat(pasted), _strokes(count, size, strokes, generator)), "turned": turned}


def _strokes(count: int, size: int, number: int, generator: torch.Generator) -> Tensor:
    """Straight lines, soft at the edges: (N, 1, size, size)."""
    at = torch.arange(size) + 0.5
    canvas = torch.zeros(count, size, size)
    for _ in range(number):
        x, y, angle, length, light = torch.rand(5, count, 1, 1, generator=generator)
        across, down = torch.cos(2 * math.pi * angle), torch.sin(2 * math.pi * angle)
        right, below = at - size * x, at[:, None] - size * y
        along = (right * across + below * down).clamp(min=torch.zeros(1), max=6 + 10 * length)
        away = torch.hypot(right - along * across, below - along * down)
        canvas = torch.maximum(canvas, (0.5 + 0.5 * light) * (1.7 - away).clamp(0, 1))
    return canvas.unsqueeze(1)


def _canvases(lab: Lab, which: str = "both") -> Dataset:
    """Digits on canvases; a label tells the digit and whether it is upside down, or one of the two."""
    digits = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    known, copies = torch.tensor(_DIGITS), lab.pick(smoke=1, laptop=2, full=1)
    parts = []
    for place, split in enumerate((digits.train, digits.test)):
        assert isinstance(split.inputs, Tensor)
        rows = torch.isin(split.labels, known).nonzero().flatten()
        if lab.scale == "smoke":
            rows = rows[:: len(rows) // 140]
        rows = rows.repeat(copies)
        made = lab.remember(on_canvases, images=split.inputs[rows], seed=2 * lab.seed + place)
        types, turned = torch.searchsorted(known, split.labels[rows]), made["turned"]
        parts.append(Split(made["images"], {"both": 2 * types + turned, "type": types, "polarity": turned}[which]))
    classes = {
        "both": tuple(f"{digit} {way}" for digit in _DIGITS for way in ("upright", "upside down")),
        "type": tuple(map(str, _DIGITS)),
        "polarity": ("upright", "upside down"),
    }[which]
    history = (*digits.history, f"on_canvases({which}, seed={lab.seed})")
    return Dataset(
        name=f"{digits.name} on canvases",
        task="classification",
        train=parts[0],
        valid=parts[0].take(torch.arange(0)),
        test=parts[1],
        classes=classes,
        licence=digits.licence,
        source=digits.source,
        history=history,
    )


_WIDTH = 8


def _look(num_types: int, num_aux: int) -> Look:
    return Look(residual_trunk(1, _WIDTH), 4 * _WIDTH, num_types, num_aux)


def second_look(glance: Mapping[str, Tensor], box: float | None = None) -> VarifocalNet:
    """A varifocal network whose global half has learnt already; with ``box``, half a side, it always looks at the middle."""
    net = varifocal_net(len(_DIGITS), 2, width=_WIDTH)
    net.glance.load_state_dict(glance)
    if box is not None:
        net.localiser = FixedBox(box)
    return net


def _recipe(lab: Lab, data: Dataset, model: Callable[[], nn.Module], share: float = 1.0) -> Recipe:
    """All have one rate; ``share`` is that of the epochs, of which a stage has four."""
    return Recipe(
        data,
        model=model,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=round(4 * share), full=round(20 * share)),
        batch_size=25,
        watch=(),
    )


def _glance(lab: Lab) -> Trained:
    """The global half alone."""
    return lab.train(_recipe(lab, _canvases(lab), partial(_look, len(_DIGITS), 2)))


def _second(lab: Lab, box: float | None = None) -> Trained:
    """A second half on top of it, and the answers from both, in as many epochs again."""
    weights = {name: value.cpu() for name, value in _glance(lab).model.state_dict().items()}
    return lab.train(staged(_recipe(lab, _canvases(lab), partial(second_look, weights, box)), shares=(0.0, 0.75, 0.25)))


def _right(logits: Tensor, trained: Trained, seconds: float) -> dict[str, Score]:
    """How often the type and the polarity are right."""
    labels, cost = trained.recipe.data.test.labels, Cost(seconds=seconds, parameters=trained.parameters)
    answers = {"type": labels // 2, "polarity": labels % 2}
    said = dict(zip(answers, separate(logits, 2), strict=True))
    return {task: Score((said[task].argmax(dim=1) == right).double().mean().item(), cost) for task, right in answers.items()}


_SCALED_DOWN = (
    "Karyotypes are not public: digits (2 to 7 and 9, 10 to 24 pixels high, half of them upside down) on empty canvases of 48x48 "
    "with one stroke stand for chromosomes of 256x256; 5,600 canvases of 2,800 digits, trunks of 8 to 32 planes, four epochs for "
    "each half."
)


@claim(
    "A second look through a square that the network chooses itself tells types more than three points better than a second "
    "look, of the same cost, at the whole picture.",
    expect=Higher("zoom, type", than="no zoom, type", by=0.03),
    reported=Reported(
        "share of chromosomes whose type, and whose polarity, is right, before dispatch",
        {"zoom, type": 0.9805, "zoom, polarity": 0.9909},
        where="abstract of the first version",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
)
def zoom_helps(lab: Lab) -> Measured:
    # The control is the same network but for its squares. Two global networks averaged have neither its last perceptrons nor
    # its staged training, and would be a weaker one at the same cost.
    first = _glance(lab)
    arms = {f"one look, {task}": score for task, score in _right(first.logits(), first, first.seconds).items()}
    for name, box in (("no zoom", 0.5), ("zoom", None)):
        second = _second(lab, box)
        scores = _right(second.logits(), second, first.seconds + second.seconds)
        arms |= {f"{name}, {task}": score for task, score in scores.items()}
    return arms


@claim(
    "A network that learns type and polarity at once is at most a point worse in either than two networks of its kind that learn "
    "one of them each in half of the steps.",
    expect=(
        Higher("at once, type", than="apart, type", by=-0.01),
        Higher("at once, polarity", than="apart, polarity", by=-0.01),
    ),
    scaled_down=_SCALED_DOWN + " The global half alone.",
    unit="test accuracy",
)
def both_questions_at_once(lab: Lab) -> Measured:
    together = _glance(lab)
    arms = {f"at once, {task}": score for task, score in _right(together.logits(), together, together.seconds).items()}
    for task, answers in (("type", len(_DIGITS)), ("polarity", 2)):
        data = _canvases(lab, task)
        arms[f"apart, {task}"] = lab.train(_recipe(lab, data, partial(_look, answers, 1), share=0.5)).accuracy()
    return arms


def cases(labels: Tensor, count: int, each: int, spare: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw cases of ``each`` items of every class without putting any back: positions.

    Args:
        labels: (N,) int64 from 0 on.
        count: cases.
        each: items of every class.
        spare: items left over at least.
        generator: of the draw.

    Returns:
        (count, classes * each), and at least ``spare`` positions that are in no case.

    Raises:
        AssayError: a class has too few items.
    """
    order = torch.randperm(len(labels), generator=generator)
    members = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    if min(map(len, members)) < count * each or len(labels) < count * each * len(members) + spare:
        raise AssayError(
            f"{count} cases of {each} items of every class and {spare} more are too many for {len(labels)} examples."
        )
    inside = torch.stack([one[: count * each].view(count, each) for one in members], dim=1)
    return inside.flatten(1), torch.cat([one[count * each :] for one in members])


def _types(lab: Lab) -> dict[str, Tensor]:
    """Probabilities of the types of all test canvases, by the global half alone and by both."""
    second = _second(lab)
    said = {"global half": _glance(lab).logits(), "both halves": second.logits()}
    return {name: separate(logits, 2)[0].exp() for name, logits in said.items()}


@claim(
    "Knowing that a case holds two items of each of seven types, labels that are given to the case as a whole are more often "
    "right than the best of each item alone, and the gain is larger for the global half alone than for both halves.",
    expect=(
        Higher("both halves, dispatch", than="both halves, argmax"),
        Higher("gain, global half", than="gain, both halves"),
    ),
    reported=Reported(
        "accuracy of a patient's case: type, with dispatch", {"both halves, dispatch": 0.992}, where="abstract; before: not given"
    ),
    scaled_down=_SCALED_DOWN + " Cases of 14 instead of 46.",
    unit="share of items whose type is right",
)
def dispatch_helps(lab: Lab) -> Measured:
    labels = _canvases(lab).test.labels // 2
    rows, _ = cases(labels, lab.pick(smoke=4, laptop=80, full=250), 2, 0, lab.generator())
    arms: dict[str, float] = {}
    for name, probs in _types(lab).items():
        case, right = probs[rows], labels[rows]
        said = {
            "argmax": case.argmax(dim=2),
            "dispatch": dispatch(case, capacity=2),
            "greedy": dispatch(case, capacity=2, method="greedy"),
        }
        arms |= {f"{name}, {how}": (answer == right).double().mean().item() for how, answer in said.items()}
        arms[f"gain, {name}"] = arms[f"{name}, dispatch"] - arms[f"{name}, argmax"]
    return arms


@claim(
    "So they are where a tenth of the cases lack an item and a tenth hold one too many, if a place too many has its price.",
    expect=Higher("dispatch", than="argmax"),
    scaled_down=_SCALED_DOWN
    + " Cases of 14 instead of 46. The price is the logarithm of the odds against an extra item of a type.",
    unit="share of items whose type is right; of extra items also the share of cases in which their type is counted thrice",
)
def dispatch_helps_where_cases_are_abnormal(lab: Lab) -> Measured:
    labels = _canvases(lab).test.labels // 2
    count = lab.pick(smoke=5, laptop=80, full=250)
    few, kinds = max(1, count // 10), len(_DIGITS)
    rows, more = cases(labels, count, 2, few, lab.generator())
    extra = more[torch.randperm(len(more), generator=lab.generator(1))[:few], None]
    kept = torch.rand(few, 2 * kinds, generator=lab.generator(2)).argsort(dim=1)[:, 1:]
    groups = {
        "as it should be": rows[2 * few :],
        "one missing": rows[few : 2 * few].gather(1, kept),
        "one too many": torch.cat([rows[:few], extra], dim=1),
    }
    share = few / count
    price = math.log((1 - share) / (share / kinds))
    probs, found, right = _types(lab)["both halves"], {}, []
    for group, inside in groups.items():
        case = probs[inside]
        found[group] = {"argmax": case.argmax(dim=2), "dispatch": dispatch(case, capacity=2, margin=price)}
        right.append(labels[inside].flatten())
    arms = {}
    for how in ("argmax", "dispatch"):
        said = torch.cat([answers[how].flatten() for answers in found.values()])
        arms[how] = (said == torch.cat(right)).double().mean().item()
        thrice = (found["one too many"][how] == labels[extra]).sum(dim=1) == 3
        arms[f"extra noticed, {how}"] = thrice.double().mean().item()
    return arms
