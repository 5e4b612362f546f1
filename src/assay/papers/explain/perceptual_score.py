"""Perceptual score: how much of its input does a multi-modal model perceive?

A model that gets a picture and a question may answer from the question alone, and its accuracy does not say so. To find out,
the link between one modality and the rest is cut: every example gets that modality of another example, drawn at random, so
that what the model sees is still as natural as before but tells nothing about this example. The accuracy that is lost is
what the model owes to the modality:

    P = (A - E A_swapped) / Z

near 0 where the modality is ignored, and negative where it does harm. Z makes the number comparable: the room that a majority
vote leaves open (between tasks), or the model's own accuracy (between models). It is a mean over examples, so that it
splits exactly over any groups of them: types of question, classes, sources. The expectation is taken over several draws, since
one alone is noise.

Source: Gat, Schwartz and Schwing, "Perceptual Score: What Data Modalities Does Your Model Perceive?", NeurIPS 2021. Here every
example gets the modality of a *different* one (a random cycle through all of them), where a plain permutation would leave
one example in n with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import lenet
from assay.paper import Above, Below, Close, Correlates, Curve, Higher, Lower, claim
from assay.recipe import Recipe, probe
from assay.train.schedules import cosine
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained
    from assay.view import View

Normalise = Literal["task", "model", "none"]

# Examples that are shown to the model together.
_CHUNK = 512


@dataclass(frozen=True)
class Perceived:
    """What :func:`perceptual_score` found for n examples.

    Attributes:
        value: the score P, in units of ``scale``.
        std: standard deviation of P over the draws; that of the mean is smaller by the root of their number.
        accuracy: of the model on the examples as they are.
        swapped: mean accuracy with the modality of other examples.
        scale: Z, what the lost accuracy was divided by.
        per_sample: (n,) e_i, the score of each example, whose mean is ``value``.
        per_group: group -> (share of the examples, mean of e_i over them); the products sum up to ``value``.
    """

    value: float
    std: float
    accuracy: float
    swapped: float
    scale: float
    per_sample: Tensor
    per_group: Mapping[int, tuple[float, float]]


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is the label's, else 0: (n, C), (n,) -> (n,)."""
    return (logits.argmax(dim=1) == labels).to(logits.dtype)


@torch.no_grad()
def perceptual_score(
    model: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    modality: str | Collection[str],
    *,
    metric: Callable[[Tensor, Tensor], Tensor] = is_right,
    repeats: int = 10,
    normalise: Normalise = "task",
    groups: Tensor | None = None,
    others: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Perceived:
    """How much of its score a model owes to a modality, or to several together.

    Args:
        model: called as ``model(**inputs)`` with batches, returns logits (B, C), or whatever ``metric`` understands. A module
            has to be in evaluation mode: what it says of an example must not depend on its neighbours.
        inputs: name of the modality -> (n, ...); names are the model's.
        labels: (n,) what is right.
        modality: the name or names that are swapped. Several names are swapped together, from the same other example.
        metric: score of each example, ``(outputs, labels) -> (n,)``; accuracy by default.
        repeats: draws of other examples over which the mean is taken; five or more.
        normalise: ``"task"`` divides by 1 minus the accuracy of a majority vote (for 0 <= metric <= 1 and int64 labels),
            ``"model"`` by the model's own score, ``"none"`` leaves the difference as it is.
        groups: (n,) int64, a group for each example, for ``per_group``.
        others: modality -> (m, ...) where the swapped modalities are drawn from instead of from ``inputs``, with
            replacement: what is usual, if there are only few examples.
        generator: for the draws, on the CPU.

    Raises:
        ValueError: no such modality, fewer than two examples to swap between, no repeats, or nothing to divide by.
    """
    names = {modality} if isinstance(modality, str) else set(modality)
    count = len(labels)
    if not names or names - set(inputs):
        raise ValueError(f"the modality must be among {', '.join(inputs)}, not {', '.join(sorted(names)) or 'none'}")
    if repeats < 1 or (others is None and count < 2):
        raise ValueError("swapping takes at least one draw and two examples")
    itself = _scores(model, inputs, labels, metric)  # s_i
    drawn = []
    for _ in range(repeats):
        if others is None:
            order = torch.randperm(count, generator=generator)
            partner = torch.empty_like(order).index_copy_(0, order, order.roll(1))
            source = inputs
        else:
            source = others
            partner = torch.randint(len(next(iter(others.values()))), (count,), generator=generator)
        swapped = {name: source[name][partner.to(x.device)] if name in names else x for name, x in inputs.items()}
        drawn.append(_scores(model, swapped, labels, metric))
    lost = itself - torch.stack(drawn)  # (repeats, n)
    scale = _scale(normalise, itself, labels)
    per_sample = lost.mean(dim=0) / scale
    return Perceived(
        value=per_sample.mean().item(),
        std=(lost.mean(dim=1) / scale).std().item() if repeats > 1 else 0.0,
        accuracy=itself.mean().item(),
        swapped=torch.stack(drawn).mean().item(),
        scale=scale,
        per_sample=per_sample,
        per_group={} if groups is None else _split(per_sample, groups),
    )


def _scores(
    model: Callable[..., Tensor], inputs: Mapping[str, Tensor], labels: Tensor, metric: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The metric of every example, in double precision: (n,)."""
    parts = []
    for start in range(0, len(labels), _CHUNK):
        here = slice(start, start + _CHUNK)
        parts.append(metric(model(**{name: x[here] for name, x in inputs.items()}), labels[here]).double())
    return torch.cat(parts)


def _scale(normalise: str, scores: Tensor, labels: Tensor) -> float:
    """Z."""
    if normalise == "task":
        scale = 1 - int(labels.unique(return_counts=True)[1].max()) / len(labels)
    elif normalise == "model":
        scale = scores.mean().item()
    elif normalise == "none":
        scale = 1.0
    else:
        raise ValueError(f"normalise must be task, model or none, not {normalise!r}")
    if scale == 0:
        why = "all examples have one label" if normalise == "task" else "the model's own score is 0"
        raise ValueError(f"there is nothing to divide by with normalise={normalise!r}: {why}")
    return scale


def _split(per_sample: Tensor, groups: Tensor) -> dict[int, tuple[float, float]]:
    found = {}
    for group in groups.unique().tolist():
        inside = per_sample[groups == group]
        found[int(group)] = (len(inside) / len(per_sample), inside.mean().item())
    return found


@probe
def perceived(view: View, modalities: str = "", repeats: int = 20, normalise: Normalise = "task") -> Seen:
    """How much of its accuracy a classifier owes to each of its sources: columns of a table, channels of series or images.

    The source of every example is replaced by that of further examples, drawn at random, and what was right before and is
    no longer counts.

    Args:
        view: a classifier of tables, series or images with channels, and labelled examples.
        modalities: which columns or channels belong together, by name or number: "age,sex;income" makes two sources, and what
            is not named stays as it is. Without it every column or channel is a source of its own.
        repeats: draws over which the mean is taken.
        normalise: task divides by what a majority vote leaves open, model by the network's own accuracy, none by nothing.
    """
    view.only("table", "series", "images")
    view.classifier()
    labels = view.answers()
    names = view.features or tuple(f"channel {number}" for number in range(view.inputs.shape[1]))
    sources = _sources(modalities, names)
    if not modalities and len(names) < 2:
        raise AssayError("these examples have one channel, so that there are no sources to tell apart")
    generator = view.generator()
    found = {}
    for source, columns in sources.items():

        def joined(kept: Tensor, swapped: Tensor, columns: list[int] = columns) -> Tensor:
            whole = kept.clone()
            whole[:, columns] = swapped
            logits: Tensor = view.model(whole)
            return logits

        try:
            found[source] = perceptual_score(
                joined,
                {"kept": view.inputs, "swapped": view.inputs[:, columns]},
                labels,
                "swapped",
                repeats=repeats,
                normalise=normalise,
                others={"swapped": view.background[:, columns]} if len(view.background) else None,
                generator=generator,
            )
        except ValueError as error:
            raise AssayError(f"{error}: look at more examples with --examples, or --set normalise=none") from error
    return Seen(
        numbers={"accuracy": next(iter(found.values())).accuracy}
        | {f"score of {source}": one.value for source, one in found.items()},
        each={f"owed to {source}": one.per_sample for source, one in found.items()},
        notes=(f"a score is the accuracy lost by swapping, divided by {next(iter(found.values())).scale:.3g}",),
    )


def _sources(modalities: str, names: tuple[str, ...]) -> dict[str, list[int]]:
    """``"age,sex;income"`` -> name of the source -> its columns."""
    if not modalities:
        return {name: [number] for number, name in enumerate(names)}
    sources = {}
    for group in modalities.split(";"):
        columns = []
        for word in map(str.strip, group.split(",")):
            if word in names:
                columns.append(names.index(word))
            elif word.isdecimal() and int(word) < len(names):
                columns.append(int(word))
            else:
                raise AssayError(
                    f"there is no column or channel {word!r}: name some of {', '.join(names)}, or their numbers from 0"
                )
        sources[" + ".join(names[number] for number in columns)] = columns
    return sources


# ------------------------------------------------------------------------------------------------------------ claims

_PIXELS = 28 * 28


class PictureAndWord(nn.Module):
    """A LeNet sees the picture, a table of vectors the word, and a hidden layer both.

    Args:
        words: size of the vocabulary.
        num_classes: number of logits.
        width: length of what is kept of each modality.

    Shape: (B, 784 + words) -> (B, num_classes): a picture's pixels, then its word, one of ``words`` numbers being 1.
    """

    def __init__(self, words: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.picture = lenet(1, width)
        self.word = nn.Linear(words, width)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, both: Tensor) -> Tensor:
        picture = self.picture(both[:, :_PIXELS].view(-1, 1, 28, 28))
        logits: Tensor = self.head(torch.cat([picture, self.word(both[:, _PIXELS:])], dim=1))
        return logits


def _paired(split: Split, words: Tensor, labels: Tensor, count: int) -> Split:
    """Pictures with their words (N,) as one row of numbers each."""
    assert isinstance(split.inputs, Tensor)
    known = nn.functional.one_hot(words, count).to(split.inputs)
    return Split(torch.cat([split.inputs.flatten(1), known], dim=1), labels)


def _with_caption(data: Dataset, leak: float, seed: int) -> Dataset:
    """A caption for every picture: the word for its class with probability ``leak``, else any of the words."""
    generator = torch.Generator().manual_seed(seed)

    def captioned(split: Split) -> Split:
        told = torch.rand(len(split), generator=generator) < leak
        any_word = torch.randint(data.num_classes, (len(split),), generator=generator)
        return _paired(split, torch.where(told, split.labels, any_word), split.labels, data.num_classes)

    step = f"captions that tell the class with probability {leak:g}, seed {seed}"
    return replace(data, train=captioned(data.train), test=captioned(data.test), history=(*data.history, step))


def _with_number(data: Dataset, both: bool, copies: int, seed: int) -> Dataset:
    """A random digit as a word beside every picture; the label is the parity of the sum of both, or of the picture alone.

    Args:
        data: pictures of digits.
        both: whether the word counts.
        copies: how often a training picture occurs, each time with a word of its own.
        seed: of the words.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbered(split: Split) -> Split:
        words = torch.randint(10, (len(split),), generator=generator)
        return _paired(split, words, (split.labels + (words if both else 0)) % 2, 10)

    train = data.train.take(torch.arange(len(data.train)).repeat(copies))
    step = f"parity of the digit {'and a word' if both else 'beside a word'}, {copies} copies, seed {seed}"
    return replace(data, train=numbered(train), test=numbered(data.test), classes=("even", "odd"), history=(*data.history, step))


def _trained(lab: Lab, data: Dataset, epochs: int) -> Trained:
    words = data.input_shape[0] - _PIXELS
    return lab.train(
        Recipe(
            data,
            model=partial(PictureAndWord, words, data.num_classes),
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
            schedule=cosine,
            epochs=epochs,
            batch_size=64,
            watch=(),
        )
    )


def _score(lab: Lab, trained: Trained, modality: str, normalise: Normalise) -> Perceived:
    """The score on all test pictures."""
    test = trained.recipe.data.test
    assert isinstance(test.inputs, Tensor)
    both = test.inputs.to(lab.device)

    def model(picture: Tensor, word: Tensor) -> Tensor:
        logits: Tensor = trained.model(torch.cat([picture, word], dim=1))
        return logits

    return perceptual_score(
        model,
        {"picture": both[:, :_PIXELS], "word": both[:, _PIXELS:]},
        test.labels.to(lab.device),
        modality,
        repeats=lab.pick(smoke=3, laptop=10, full=20),
        normalise=normalise,
        generator=lab.generator(1),
    )


def _clothes(lab: Lab) -> Dataset:
    return lab.data("fashion-mnist").subset(
        train=lab.pick(smoke=300, laptop=2000, full=60_000), test=lab.pick(smoke=100, laptop=1500, full=10_000)
    )


_LEAKS = (0.0, 0.25, 0.5, 0.75, 1.0)


_LESS = "2,000 pictures of Fashion-MNIST, each with one word; a LeNet beside word vectors instead of VQA models."


def _against_leak(lab: Lab) -> dict[str, list[float]]:
    """Scores of both modalities, and accuracy, of networks whose captions tell the class ever more often."""
    found: dict[str, list[float]] = {"picture": [], "picture, of its own accuracy": [], "word": [], "accuracy": []}
    for leak in _LEAKS:
        trained = _trained(lab, _with_caption(_clothes(lab), leak, lab.seed), lab.pick(smoke=1, laptop=6, full=10))
        picture = _score(lab, trained, "picture", "task")
        found["picture"].append(picture.value)
        found["picture, of its own accuracy"].append((picture.accuracy - picture.swapped) / max(picture.accuracy, 1e-9))
        found["word"].append(_score(lab, trained, "word", "task").value)
        found["accuracy"].append(trained.accuracy())
    return found


@claim(
    "A network whose captions always tell the class scores less than a tenth on the picture of what one scores whose captions "
    "tell nothing, although its accuracy is more than five points higher.",
    expect=(
        Lower("picture, always told", than="picture, never told", times=0.1),
        Higher("accuracy, always told", than="accuracy, never told", by=0.05),
    ),
    scaled_down=_LESS,
    unit="perceptual score, task-normalised; accuracy",
    needs=("fashion-mnist",),
)
def shortcut_model_ignores_modality(lab: Lab) -> Measured:
    found = _against_leak(lab)
    return {
        f"{name}, {told} told": found[name][place]
        for name in ("picture", "accuracy", "word")
        for told, place in (("never", 0), ("always", -1))
    }


@claim(
    "The more often the caption tells the class, the lower the network scores on the picture, step by step.",
    expect=Correlates("picture", "share of captions that tell", above=0.95, sign=-1),
    scaled_down=_LESS,
    unit="perceptual score, task-normalised",
    needs=("fashion-mnist",),
)
def falls_as_captions_tell_more(lab: Lab) -> Measured:
    # The score in units of the network's own accuracy, the paper's other normaliser, is shown beside: with some leak the
    # accuracy rises too, so that the two need not move alike.
    lines = {name: Curve(y, _LEAKS, x_name="share of captions that tell") for name, y in _against_leak(lab).items()}
    return {**lines, "share of captions that tell": Curve(_LEAKS, _LEAKS, x_name="share of captions that tell")}


@claim(
    "Where the label is the parity of a digit in a picture and a digit in a word, both modalities score what a coin in the "
    "place of either costs: twice the accuracy minus one, within five points, and above 0.8. Where the picture alone counts, "
    "the word scores within two points of nothing.",
    expect=(
        Close("picture, both count", to="a coin in its place", within=0.05),
        Close("word, both count", to="a coin in its place", within=0.05),
        Above("picture, both count", 0.8),
        Above("word, both count", 0.8),
        Above("word, picture counts", -0.02),
        Below("word, picture counts", 0.02),
    ),
    scaled_down="MNIST 5k with words for the second digit, a LeNet; a closed form stands for the paper's real tasks.",
    unit="perceptual score, task-normalised",
)
def needed_modalities(lab: Lab) -> Measured:
    digits = lab.data("mnist5k")
    if lab.scale == "smoke":
        digits = digits.subset(train=200, test=100)
    epochs = lab.pick(smoke=1, laptop=6, full=20)
    joint = _trained(lab, _with_number(digits, True, lab.pick(smoke=1, laptop=2, full=10), lab.seed), epochs)
    alone = _trained(lab, _with_number(digits, False, 1, lab.seed), epochs)
    picture = _score(lab, joint, "picture", "task")
    return {
        "picture, both count": picture.value,
        "word, both count": _score(lab, joint, "word", "task").value,
        "a coin in its place": (picture.accuracy - 0.5) / picture.scale,
        "picture, picture counts": _score(lab, alone, "picture", "task").value,
        "word, picture counts": _score(lab, alone, "word", "task").value,
    }
