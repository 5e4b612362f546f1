"""Look at data before training on them, and name what is worth trying, with the reason, the evidence and the time.

    advice = suggest("photos/")
    advice.findings; advice.suggestions

What was found is matched with what papers say they help against (the field ``helps`` of their entry in references.bib), so
that a new paper is suggested without a line here. A method is named only after a step of it has worked on these data.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay import catalogue
from assay.data import Dataset
from assay.data.dataset import stratified
from assay.errors import AssayError
from assay.lab import evidence
from assay.own import baselines, findings, methods, offers, probing, simple
from assay.own.findings import Finding, Near
from assay.own.material import lay_out, marks, place_of, prepare
from assay.own.named import Named
from assay.own.opening import known, subject_of
from assay.own.preparing import prepared
from assay.own.reading import gather
from assay.recipe import Recipe
from assay.train.loop import Report, Trained, fit

#: Examples that are looked at where something costs more than a glance; more are drawn from, and it is said.
MOST = 4000
#: Columns that are looked at one by one.
_MOST_COLUMNS = 200
#: Cosines above which two images or series are nearly the same (measured: of 3,000 MNIST digits, none are).
_ALIKE = {"images": 0.995, "series": 0.9995, "audio": 0.9995}
#: Steps by which the time of a training is measured, and of the baseline before a probe is tried on it.
_STEPS = 6
#: Trainings of every arm, as `assay try` has them by default.
_SEEDS = 5

_ORDER = {"act": 0, "look": 1, "fine": 2}


@dataclass(frozen=True)
class Suggestion:
    """A method or a probe that is worth trying.

    Args:
        key: of the paper.
        title: of the paper, with its year.
        kind: ``"treatment"``, ``"probe"``, or ``"estimator"`` for what is imported rather than tried by a command.
        need: the finding that it answers.
        reason: why, in a sentence without a full stop.
        seconds: that the command is expected to take; ``None`` where that is not known.
        command: what to run, or to import.
        evidence: of each recorded claim: name, statement, verdict, expectation, effect, low, high, stale.
    """

    key: str
    title: str
    kind: str
    need: str
    reason: str
    seconds: float | None
    command: str
    evidence: tuple[dict[str, Any], ...]


@dataclass
class Advice:
    """What was found, and what is worth trying.

    Args:
        data: one line that says what was understood.
        findings: the most severe first.
        suggestions: what is worth trying, in the order of the findings.
        unfit: key -> why a paper that helps against something found does not fit these data.
        ids: finding -> where the examples stand that it is about, worst first.
        notes: what a reader should know, without full stops.
    """

    data: str
    findings: list[Finding] = field(default_factory=list)
    suggestions: list[Suggestion] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def outstanding(self) -> list[Finding]:
        """Those that ask for something."""
        return [finding for finding in self.findings if finding.severity != "fine"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data,
            "findings": [
                {**_finite(asdict(finding)), "rows": list(finding.rows), "ids": self.ids.get(finding.name, [])}
                for finding in self.findings
            ],
            "suggestions": [asdict(suggestion) for suggestion in self.suggestions],
            "unfit": self.unfit,
            "notes": self.notes,
        }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class Ground:
    """Data as findings are made from them.

    Args:
        data: as networks take them.
        kind: ``"images"``, ``"series"``, ``"table"`` or ``"text"``.
        ids: where each training example stands.
        frame: for a table, the columns as they were read: the training rows, then those of the test.
        train_marks: (N,) equal numbers for equal training inputs.
        test_marks: (M,) the same for the test.
        groups: (N,) of training examples that belong together, or ``None``.
        drawn: whether the test was drawn at random.
    """

    data: Dataset
    kind: str
    ids: tuple[str, ...]
    frame: pd.DataFrame | None
    train_marks: NDArray[np.int64]
    test_marks: NDArray[np.int64]
    groups: NDArray[np.str_] | None = None
    drawn: bool = False


def suggest(
    on: str | Path | Dataset,
    target: str | None = None,
    text: str | None = None,
    group: str | None = None,
    time: str | None = None,
    series: str | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Advice:
    """Look at data, and say what is worth trying.

    Args:
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set.
        target: column to predict.
        text: column that holds the texts.
        group: column whose equal values stay in one split.
        time: column by which to split; with ``series``, the order of its steps.
        series: column that says of which series a row is a step.
        seed: of samples and folds.
        report: is told how far it is.

    Raises:
        AssayError: the data cannot be read.
    """
    named = Named(target, text, group, time, series)
    ground = _ground(on, named)
    advice = Advice(ground.data.source or ground.data.name)
    if len(ground.data.train) > MOST:
        advice.notes.append(f"{MOST} of the {len(ground.data.train)} training examples were looked at closely")
    examined = list(examine(ground, seed, report))
    advice.findings = sorted(examined, key=lambda finding: _ORDER[finding.severity])
    for finding in advice.findings:
        if finding.rows:
            advice.ids[finding.name] = [ground.ids[row] for row in finding.rows]
    name = on.name if isinstance(on, Dataset) else str(on)
    arguments = ["--on", name, *(word for key, value in named.given().items() for word in (f"--{key}", value))]
    _match(advice, ground, shlex.join(arguments), report)
    return advice


# ---------------------------------------------------------------------------------------------------- the data


def _ground(on: str | Path | Dataset, named: Named) -> Ground:
    if isinstance(on, Dataset) or not Path(on).exists():
        return _known(on if isinstance(on, Dataset) else known(str(on)))
    layout = lay_out(gather(Path(on), named), 0)
    data, _ = prepare(layout)
    material, places = layout.material, layout.places
    every = marks(material.inputs)
    rows = np.concatenate([places["train"], places["test"]])
    return Ground(
        data=data,
        kind=baselines.kind(data),
        ids=tuple(place_of(material, row) for row in places["train"]),
        frame=material.inputs.iloc[rows].reset_index(drop=True) if isinstance(material.inputs, pd.DataFrame) else None,
        train_marks=every[places["train"]],
        test_marks=every[places["test"]],
        groups=None if material.group is None else material.group[places["train"]],
        drawn=material.parts is None and material.time is None and material.group is None,
    )


def _known(data: Dataset) -> Ground:
    kind = baselines.kind(data)
    frame = None
    if kind == "table" and isinstance(data.train.inputs, Tensor) and isinstance(data.test.inputs, Tensor):
        width = data.train.inputs.shape[1]
        names = data.features if len(data.features) == width else tuple(f"x{number}" for number in range(width))
        values = torch.cat([data.train.inputs, data.test.inputs]).double().numpy()
        frame = pd.DataFrame(values, columns=list(names))
    return Ground(
        data=prepared(data)[0],
        kind=kind,
        ids=tuple(f"training example {number}" for number in range(len(data.train))),
        frame=frame,
        train_marks=marks(data.train.inputs),
        test_marks=marks(data.test.inputs),
    )


# ---------------------------------------------------------------------------------------------------- findings


def examine(ground: Ground, seed: int = 0, report: Report | None = None) -> Iterator[Finding]:
    """All findings that these data allow, in no order that matters."""
    data = ground.data
    steps: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("labels", lambda: _labels(ground, seed)),
        ("repeats", lambda: _repeats(ground, seed)),
        ("columns", lambda: _columns(ground, seed)),
        ("shift", lambda: _shift(ground, seed)),
    ]
    for number, (name, step) in enumerate(steps):
        if report is not None:
            report(number, len(steps) + 1, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn has much to say about small classes and constant columns
            yield from step()
    if data.task == "classification":
        yield findings.imbalance(data.train.labels.numpy(), data.classes)


def _labels(ground: Ground, seed: int) -> Iterator[Finding]:
    """Wrong labels, signal and size: all from predictions of a simple model that did not see what it predicts."""
    data = ground.data
    parameters = sum(p.numel() for p in baselines.baseline(data).model().parameters())
    rows = _sample(data, MOST, seed)
    labels = data.train.labels.numpy()[rows]
    vectors = simple.vectors(data.train.inputs, ground.kind, rows)
    groups = None if ground.groups is None else ground.groups[rows]
    if data.task == "regression":
        found = simple.predicted_numbers(vectors, labels, ground.kind, groups, seed)
        yield _in_training(findings.target_outliers(found.values, labels.astype(np.float64)), rows)
        yield findings.explained(found.values, labels.astype(np.float64), found.name)
        yield findings.few_examples(len(data.train), 0, parameters)
        return
    counts = np.bincount(labels, minlength=data.num_classes)
    kept = counts[labels] >= 3  # a class that is seen once or twice cannot be both learnt and tested
    rows, labels, vectors = rows[kept], labels[kept], vectors[kept]
    groups = None if groups is None else groups[kept]
    there, codes = np.unique(labels, return_inverse=True)
    names = [data.classes[k] for k in there]
    said = simple.predicted_classes(vectors, codes, ground.kind, groups, seed) if len(there) > 1 else None
    if said is None:
        yield findings.few_examples(len(data.train), data.num_classes, parameters)
        return
    half = simple.half_as_many(said.learner, vectors, codes, groups, seed)
    yield _in_training(findings.label_noise(said.values, codes, names, seed), rows)
    yield findings.signal(said.values, codes, said.name)
    whole = float((said.values.argmax(axis=1) == codes).mean())
    yield findings.few_examples(len(data.train), data.num_classes, parameters, half, whole)


def _in_training(finding: Finding, rows: NDArray[np.int64]) -> Finding:
    """Rows of a sample as positions in the training split."""
    return replace(finding, rows=tuple(int(rows[row]) for row in finding.rows))


def _repeats(ground: Ground, seed: int) -> Iterator[Finding]:
    train = ground.data.train
    chance = findings.repeats_by_chance(ground.frame.iloc[: len(train)]) if ground.frame is not None else 0.0
    near = _near(ground, seed) if ground.frame is None else None
    yield findings.repeats(ground.train_marks, ground.test_marks, train.labels.numpy(), near, chance)


def _near(ground: Ground, seed: int) -> Near:
    """Examples that are nearly the same but not quite, among a sample of training and test."""
    data = ground.data
    rows, others = _sample(data, MOST, seed), _drawn(len(data.test), MOST // 2, seed)
    if ground.kind == "text":
        texts = [data.train.inputs[row] for row in rows] + [data.test.inputs[row] for row in others]
        pairs = findings.near_texts([str(text) for text in texts], first=len(rows))
    else:
        vectors = np.concatenate([simple.pixels(data.train.inputs, rows), simple.pixels(data.test.inputs, others)])
        pairs = findings.near_repeats(vectors, _ALIKE[ground.kind], first=len(rows))
    every = np.concatenate([ground.train_marks[rows], ground.test_marks[others]])
    pairs = [(one, other) for one, other in pairs if every[one] != every[other]]
    within = tuple((int(rows[one]), int(rows[other])) for one, other in pairs if other < len(rows))
    return Near(within, len(pairs) - len(within), len(rows), max(len(others), 1))


def _columns(ground: Ground, seed: int) -> Iterator[Finding]:
    if ground.frame is None:
        return
    data, frame = ground.data, ground.frame
    yield findings.constant_columns(frame)
    yield findings.id_columns(frame)
    yield findings.missing(frame)
    rows = _sample(data, MOST // 2, seed)
    labels = data.train.labels.numpy()[rows]
    classifies = data.task == "classification"
    if classifies:
        kept = np.bincount(labels, minlength=data.num_classes)[labels] >= 3
        rows, labels = rows[kept], np.unique(labels[kept], return_inverse=True)[1]
    if len(labels) >= 10 and (not classifies or labels.max() > 0):
        yield findings.giveaways(frame.iloc[rows].iloc[:, :_MOST_COLUMNS], labels, classifies, seed)


def _shift(ground: Ground, seed: int) -> Iterator[Finding]:
    """Is the test unlike the training data? A test that was drawn at random is not."""
    data = ground.data
    if ground.drawn or len(data.test) < 20 or len(data.train) < 20:
        return
    train, test = _sample(data, MOST // 2, seed), _drawn(len(data.test), MOST // 2, seed)
    if isinstance(data.train.inputs, Tensor) and isinstance(data.test.inputs, Tensor):
        both: Any = torch.cat([data.train.inputs[train], data.test.inputs[test]])
    else:
        both = tuple(data.train.inputs[row] for row in train) + tuple(data.test.inputs[row] for row in test)
    is_test = np.arange(len(train) + len(test)) >= len(train)
    vectors = simple.vectors(both, ground.kind, np.arange(len(is_test)))
    found = simple.predicted_classes(vectors, is_test.astype(np.int64), ground.kind, None, seed)
    assert found is not None
    column = ""
    if ground.frame is not None:
        column = findings.most_moved(ground.frame.iloc[: len(data.train)], ground.frame.iloc[len(data.train) :])
    moved = None
    if data.task == "classification":
        moved = findings.moved_class(data.train.labels.numpy(), data.test.labels.numpy(), data.classes)
    yield findings.shift(found.values[:, 1], is_test, column, moved)


# ---------------------------------------------------------------------------------------------------- simple models


def _sample(data: Dataset, most: int, seed: int) -> NDArray[np.int64]:
    """Positions of at most so many training examples, each class in proportion."""
    count = min(most, len(data.train))
    positions: NDArray[np.int64] = stratified(data.train.labels, count, torch.Generator().manual_seed(seed)).numpy()
    return positions


def _drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    positions: NDArray[np.int64] = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].numpy()
    return positions


# ---------------------------------------------------------------------------------------------------- what is worth trying


def _match(advice: Advice, ground: Ground, arguments: str, report: Report | None) -> None:
    """Name the papers that help against what was found, and that fit."""
    wanted = [(finding, paper) for finding in advice.outstanding for paper in _helping(finding.name)]
    if not wanted:
        return
    if report is not None:
        report(4, 5, "methods")
    plain = baselines.baseline(ground.data)
    base, few = _seconds(plain), _few(plain)
    done: set[str] = set()
    for finding, paper in wanted:
        if paper.key in done:
            continue
        done.add(paper.key)
        try:
            kind, seconds, command = _tried(paper, ground, plain, base, few)
        except (AssayError, methods.DoesNotFit, ImportError) as error:
            advice.unfit[paper.key] = str(error).rstrip(".")
            continue
        reason = f"{catalogue.NEEDS[finding.name]}; {paper.summary.rstrip('.')}"
        command = f"{command} {arguments}" if command.startswith("assay ") else command
        title = f"{paper.title} ({paper.year})"
        advice.suggestions.append(
            Suggestion(paper.key, title, kind, finding.name, reason, seconds, command, tuple(_evidence(paper)))
        )


def _tried(paper: catalogue.Paper, ground: Ground, plain: Recipe, base: float, few: Trained) -> tuple[str, float | None, str]:
    """What a paper offers for these data, how long it will take, and the command, after a step of it has worked.

    Raises:
        DoesNotFit: it is for other data, or it refuses these.
    """
    if ground.kind not in paper.takes:
        raise methods.DoesNotFit(f"it is for {' and '.join(paper.takes)}")
    if paper.key in methods.there():
        treated = methods.treated(plain, [methods.find(paper.key)])
        return "treatment", _SEEDS * (base + _seconds(treated)), f"assay try {paper.key}"
    if any(offer.of_data for offer in offers.of_paper(paper)):
        if ground.data.task != "classification":
            raise methods.DoesNotFit("it is for classes, and the target of these data is a number")
        return "probe", None, f"assay probe {paper.key}"
    if offers.of_paper(paper):
        return "probe", base + _probed(few, ground.data, paper.key), f"assay probe {paper.key}"
    return "estimator", None, paper.api


def _helping(need: str) -> list[catalogue.Paper]:
    """Papers that say they help, those first whose claims held most often."""
    found = [paper for paper in catalogue.papers().values() if need in paper.helps]
    return sorted(found, key=lambda paper: -sum(e["verdict"] == "holds" for e in evidence.recorded(paper.key).values()))


def _few(plain: Recipe) -> Trained:
    """The baseline after a few steps: enough to see whether a probe works on it."""
    count = min(len(plain.data.train), _STEPS * plain.batch_size)
    return fit(plain.replace(data=plain.data.subset(train=count, seed=0), epochs=1, watch=()), seed=0)


def _seconds(recipe: Recipe) -> float:
    """What a whole training will take on a core of its own, from some steps of it."""
    count = min(len(recipe.data.train), max(_STEPS * recipe.batch_size, 2 * recipe.data.num_classes))
    few = recipe.replace(data=recipe.data.subset(train=count, seed=0), epochs=1, watch=())
    fit(few, seed=0)  # the first steps are slow: memory is found, kernels are chosen
    steps = math.ceil(count / recipe.batch_size)
    return fit(few, seed=0).seconds / steps * math.ceil(len(recipe.data.train) / recipe.batch_size) * recipe.epochs


def _probed(few: Trained, data: Dataset, key: str, examples: int = 2, usual: int = 16) -> float:
    """Seconds of a probe on the usual number of examples, from a few."""
    paper, function = offers.find(key)
    looked = probing.look(paper, function, subject_of(few, data, "baseline"), {}, examples)
    return looked.seconds / len(looked.examples) * usual


def _evidence(paper: catalogue.Paper) -> Iterator[dict[str, Any]]:
    for name, entry in evidence.recorded(paper.key).items():
        first = entry["tests"][0] if entry.get("tests") else {}
        yield {
            "claim": name,
            "statement": entry["statement"],
            "verdict": entry["verdict"],
            "expectation": first.get("expectation", ""),
            "effect": first.get("effect"),
            "low": first.get("low"),
            "high": first.get("high"),
            "stale": evidence.is_stale(paper, name, entry),
        }
