"""``assay suspects``: which of somebody's examples carry a wrong label, the most suspicious first.

    found = suspects("photos/")
    found.rows(); found.cut, found.expected(found.cut)

Whatever predicts the examples must not have learnt their labels by heart: it has not seen them (out of fold), or it is trained
with a method that resists. The list says of every beginning of itself how many of its labels ought to be wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import memory
from assay.own import baselines, findings, methods, simple
from assay.own.doubting import Floats, Ints, Planted, believed, best_cut, doubted, plant
from assay.own.examples import Examples, all_examples
from assay.own.named import Named
from assay.own.saved import usable_device
from assay.own.writing import write_rows
from assay.train.hooks import Hook, Run
from assay.train.loop import Report

#: How the labels are doubted, if not by a paper with a treatment.
SIMPLE = "out-of-fold"
#: A class of which fewer examples are there cannot be both learnt and looked at.
_FEWEST = 3
#: Of the labels, so many are made wrong on purpose where a method has to be trained to see what it makes of them.
_PLANTED = 0.05
#: Added to the seed of these: with the seed alone they might fall on the very examples that somebody made wrong with it.
_SOWN = 7919
#: How slowly the remembered predictions move, as in early-learning regularisation.
_MOMENTUM = 0.7

COLUMNS = ("id", "given", "believed", "score", "wrong", "expected_share")


@dataclass(frozen=True)
class Opinion:
    """What a model thinks of labels.

    Args:
        probabilities: (N, K).
        by: the model, in words.
        rate: estimated share of wrong labels, and the ends of its interval.
        planted: labels that were made wrong on purpose, to compare with.
    """

    probabilities: Floats
    by: str
    rate: tuple[float, float, float]
    planted: Planted


@dataclass
class Suspects:
    """All examples that were looked at, the most suspicious first.

    Args:
        data: one line that says what was understood.
        method: how the labels were doubted.
        by: the model, in words.
        called: what an id is: ``"file"``, ``"row"`` or ``"example"``.
        places: (N,) positions among all examples, the most suspicious first.
        ids: of these.
        given: their labels.
        believed: what the model takes them for.
        scores: (N,) log odds against the label (for numbers: robust deviations).
        against: (N,) whether the model contradicts the label.
        wrong: (N,) how probable it is that the label is wrong; ``None`` for numbers.
        rate: estimated share of wrong labels with its interval; ``None`` for numbers.
        ends: ``wrong`` at both ends of the interval.
        probabilities: (N, K), of the classes.
        classes: names, in the order of the probabilities.
        cut: so many, from the first on, are worth looking at (:func:`assay.own.doubting.best_cut`).
        notes: what a reader should know, without full stops.
    """

    data: str
    method: str
    by: str
    called: str
    places: Ints
    ids: tuple[str, ...]
    given: tuple[str, ...]
    believed: tuple[str, ...]
    scores: Floats
    against: NDArray[np.bool_]
    cut: int
    wrong: Floats | None = None
    rate: tuple[float, float, float] | None = None
    ends: tuple[Floats, Floats] | None = None
    probabilities: Floats | None = None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def contradicted(self) -> int:
        """How many labels the model contradicts."""
        return int(self.against.sum())

    def expected(self, count: int) -> tuple[float, float, float] | None:
        """Share of wrong labels among the first ``count``, and where it lies if the rate errs; ``None`` for numbers."""
        if self.wrong is None or self.ends is None or count < 1:
            return None
        middle, low, high = (float(chances[:count].mean()) for chances in (self.wrong, *self.ends))
        return middle, min(low, middle), max(high, middle)

    def rows(self, count: int | None = None) -> list[list[Any]]:
        """The list, the most suspicious first, as :data:`COLUMNS`.

        Args:
            count: the first so many; ``None`` is as many as the model contradicts.
        """
        count = max(self.cut, self.contradicted) if count is None else min(count, len(self.ids))
        wrong: Sequence[Any] = [None] * count
        shares: Sequence[Any] = wrong
        if self.wrong is not None:
            wrong = self.wrong[:count].tolist()
            shares = (np.cumsum(self.wrong[:count]) / np.arange(1, count + 1)).tolist()
        columns = (self.ids[:count], self.given[:count], self.believed[:count], self.scores[:count].tolist(), wrong, shares)
        return [list(row) for row in zip(*columns, strict=True)]

    def write(self, out: Path) -> None:
        """Write the list as a .csv or .parquet file.

        Raises:
            AssayError: another ending, or the file cannot be written.
        """
        write_rows(out, COLUMNS, iter([self.rows()]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rate = None if self.rate is None else dict(zip(("value", "low", "high"), self.rate, strict=True))
        share = self.expected(self.cut)
        return {
            "data": self.data,
            "method": self.method,
            "by": self.by,
            "examples": len(self.ids),
            "contradicted": self.contradicted,
            "wrong_labels": rate,
            "cut": self.cut,
            "expected_at_cut": None if share is None else dict(zip(("share", "low", "high"), share, strict=True)),
            "suspects": [dict(zip(COLUMNS, row, strict=True)) for row in self.rows()],
            "notes": self.notes,
        }


def suspects(
    on: str | Path | Dataset,
    target: str | None = None,
    text: str | None = None,
    group: str | None = None,
    time: str | None = None,
    series: str | None = None,
    method: str = SIMPLE,
    seed: int = 0,
    device: str = "cpu",
    report: Report | None = None,
) -> Suspects:
    """Rank the examples by how much their labels are to be doubted.

    Args:
        on: a path that :func:`assay.own.read` understands, the name of a known data set (its training examples), or a data set.
        target: column to look at; the other columns are as for :func:`assay.own.read`.
        text: column that holds the texts.
        group: column whose equal values stay in one fold.
        time: with ``series``, the order of its steps.
        series: column that says of which series a row is a step.
        method: who doubts: ``"out-of-fold"`` (simple models that have not seen the example: seconds), or a paper with a
            treatment that resists wrong labels, as ``"elr"`` or ``"ncr"``: what its network believed of its training examples
            on the way (two trainings).
        seed: of folds, trainings and planted labels.
        device: where networks are trained.
        report: is told how far the trainings are.

    Raises:
        AssayError: the data cannot be read, there is no such method, or nothing can be said of these data.
    """
    require_method(method)
    return suspects_among(all_examples(on, Named(target, text, group, time, series)), method, seed, device, report)


def require_method(method: str) -> None:
    """Raise an :class:`AssayError` if there is no such method."""
    if method == SIMPLE:
        return
    try:
        for name in method.split("+"):
            methods.find(name)
    except AssayError as error:
        raise AssayError(f"{error} Labels are doubted by {SIMPLE}, or by a paper such as elr.") from error


def suspects_among(
    examples: Examples, method: str = SIMPLE, seed: int = 0, device: str = "cpu", report: Report | None = None
) -> Suspects:
    """:func:`suspects` among examples that were read already."""
    data = examples.data
    if data.task == "regression":
        return _numbers(examples, method, seed)
    labels = data.train.labels.numpy()
    counts = np.bincount(labels, minlength=data.num_classes)
    rows = np.flatnonzero(counts[labels] >= _FEWEST)
    there, codes = np.unique(labels[rows], return_inverse=True)
    if len(there) < 2:
        raise AssayError(
            f"{data.name} has no two classes of {_FEWEST} examples or more: there is nothing to compare labels with."
        )
    classes = tuple(data.classes[k] for k in there)
    opinion = _opinion(examples, rows, codes, classes, method, seed, device, report)
    thought = doubted(opinion.probabilities, codes, opinion.planted, opinion.rate)
    order = np.argsort(-thought.scores, kind="stable")
    chances, *ends = (one[order] for one in thought.chances)
    other = believed(opinion.probabilities, codes)
    found = Suspects(
        data=data.source or data.name,
        method=method,
        by=opinion.by,
        called=examples.called,
        places=rows[order],
        ids=tuple(examples.ids[row] for row in rows[order]),
        given=tuple(classes[k] for k in codes[order]),
        believed=tuple(classes[k] for k in other[order]),
        scores=thought.scores[order],
        against=(opinion.probabilities.argmax(axis=1) != codes)[order],
        cut=best_cut(chances),
        wrong=chances,
        rate=opinion.rate,
        ends=(ends[0], ends[1]),
        probabilities=opinion.probabilities[order],
        classes=classes,
    )
    if len(rows) < len(labels):
        found.notes.append(
            f"{len(labels) - len(rows)} examples of classes with fewer than {_FEWEST} were not looked at "
            f"({', '.join(name for name, count in zip(data.classes, counts, strict=True) if 0 < count < _FEWEST)})"
        )
    right = float((opinion.probabilities.argmax(axis=1) == codes).mean())
    if right < 0.8 and opinion.rate[0] < (1 - right) / 2:
        found.notes.append(
            f"the model agrees with {100 * right:.0f} % of the labels only, and most of what it contradicts is probably its own "
            "fault: expect the shares to be too high"
        )
    return found


# ---------------------------------------------------------------------------------------------------- who doubts


def _opinion(
    examples: Examples,
    rows: Ints,
    codes: Ints,
    classes: tuple[str, ...],
    method: str,
    seed: int,
    device: str,
    report: Report | None,
) -> Opinion:
    """What the method thinks of the examples at ``rows``, whose labels are ``codes`` (N,) among ``classes``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn has much to say about small classes and constant columns
        plain = _simple(examples, rows, codes, seed)
    if method == SIMPLE:
        return plain
    train = replace(examples.data.train.take(torch.from_numpy(rows)), labels=torch.from_numpy(codes), clean_labels=None)
    data = replace(examples.data, train=train, classes=classes)
    return _resisting(data, plain.rate, method, seed, usable_device(device), report)


def _simple(examples: Examples, rows: Ints, codes: Ints, seed: int) -> Opinion:
    vectors = simple.vectors(examples.data.train.inputs, examples.kind, rows)
    groups = None if examples.groups is None else examples.groups[rows]
    said = simple.predicted_classes(vectors, codes, examples.kind, groups, seed)
    if said is None:
        raise AssayError(f"{examples.data.name} has too few examples for any model: give at least {_FEWEST} of each class.")
    rate = findings.noise_interval(said.values, codes, seed)
    return Opinion(said.values, f"{said.name}, out of fold", rate, plant(said.values, codes, seed))


@dataclass(frozen=True)
class Believed(Hook):
    """Keeps a running average of the predictions for every training example, as ``believed`` (N, K) in the memory.

    Args:
        momentum: how slowly it moves, in [0, 1).
    """

    momentum: float = _MOMENTUM

    def on_start(self, run: Run) -> None:
        """Nothing is said or believed yet."""
        run.memory["believed"] = torch.zeros(len(run.data.train), run.data.num_classes, device=run.device)
        run.memory["said"] = torch.full_like(run.memory["believed"], torch.nan)

    def before_loss(self, run: Run) -> None:
        """Keep what the network says of this batch: one operation, since beside a small network each is felt."""
        run.memory["said"].index_copy_(0, run.index, run.logits.detach().float())

    def after_epoch(self, run: Run) -> None:
        """Move towards what was said; examples that no batch had stay where they are."""
        said, believed = run.memory["said"], run.memory["believed"]
        seen = ~said.isnan().any(dim=1, keepdim=True)
        believed.copy_(torch.where(seen, said.softmax(dim=1).lerp(believed, self.momentum), believed))
        said.fill_(torch.nan)


def _resisting(
    data: Dataset, rate: tuple[float, float, float], key: str, seed: int, device: torch.device, report: Report | None
) -> Opinion:
    """What a network believed of its training examples while a treatment kept it from learning them by heart.

    It has seen their labels. So what it does to wrong ones is found by a second training, in which some are planted; and how
    many are wrong is left to the simple models, which have not seen them.
    """
    codes = data.train.labels.numpy()
    probabilities = _beliefs(data, key, seed, device, _shifted(report, 0, 2))
    sown = data.flip_labels(_PLANTED, seed=_SOWN + seed)
    wrong = sown.train.labels.numpy()
    rows = np.flatnonzero(wrong != codes)
    if not len(rows):
        raise AssayError(f"{data.name} has {len(codes)} examples, too few for {key}: take --method {SIMPLE}.")
    planted = Planted(rows, wrong[rows], _beliefs(sown, key, seed, device, _shifted(report, 1, 2))[rows])
    return Opinion(probabilities, f"a network trained with {key}, on the way", rate, planted)


def _beliefs(data: Dataset, key: str, seed: int, device: torch.device, report: Report | None) -> Floats:
    plain = baselines.baseline(data)
    try:
        recipe = methods.treated(plain, [methods.find(name) for name in key.split("+")], device)
    except methods.DoesNotFit as error:
        raise AssayError(f"{key} does not fit {data.name} ({error}): take --method {SIMPLE}.") from error
    if not torch.equal(recipe.data.train.labels, plain.data.train.labels):
        raise AssayError(
            f"{key} changes which examples are trained on or their labels, so that nothing is known of each: take elr."
        )
    trained = memory.train(recipe.replace(hooks=(*recipe.hooks, Believed())), seed, device, report)
    kept = trained.memory["believed"].double().cpu()
    found: Floats = (kept / kept.sum(dim=1, keepdim=True).clamp_min(1e-12)).numpy()  # it began with nothing, not with 1 / K
    return found


def _shifted(report: Report | None, done: int, of: int) -> Report | None:
    """Tells of one training among several."""
    if report is None:
        return None
    return lambda at, total, note: report(done + at / max(total, 1), of, f"training {done + 1} of {of}, {note}")


# ---------------------------------------------------------------------------------------------------- numbers


def _numbers(examples: Examples, method: str, seed: int) -> Suspects:
    """Of numbers nothing is known about usual mistakes: those that are far from what a model says are listed."""
    if method != SIMPLE:
        raise AssayError(f"The target of {examples.data.name} is a number, which only --method {SIMPLE} looks at: take that.")
    data = examples.data
    targets = data.train.labels.double().numpy()
    vectors = simple.vectors(data.train.inputs, examples.kind, np.arange(len(targets)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = simple.predicted_numbers(vectors, targets, examples.kind, examples.groups, seed)
    far = findings.deviations(said.values, targets)
    order = np.argsort(-far, kind="stable")
    return Suspects(
        data=data.source or data.name,
        method=method,
        by=f"{said.name}, out of fold",
        called=examples.called,
        places=order,
        ids=tuple(examples.ids[row] for row in order),
        given=tuple(f"{value:.6g}" for value in targets[order]),
        believed=tuple(f"{value:.6g}" for value in said.values[order]),
        scores=far[order],
        against=far[order] > findings.FAR,
        cut=int((far > findings.FAR).sum()),
        notes=["of numbers it is not known which mistakes are usual, so no share of wrong ones is expected"],
    )
