"""``assay try``: methods on people's own data, each against the same network without it.

Every arm has the same splits, the same seeds and the same budget of epochs. Seeds are interleaved: all arms of a seed, then
all arms of the next, so that whenever time is over the arms have the same seeds.
"""

from __future__ import annotations

import dataclasses
import statistics
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.data import Dataset, available, load
from assay.errors import AssayError
from assay.lab import memory
from assay.lab.verdict import Verdict, adjust, judge
from assay.own.baselines import baseline, reference, reference_name, reference_varies
from assay.own.budget import TimeIsOver, affordable, alarm, training_seconds
from assay.own.methods import DoesNotFit, Treatment, changes, every, find, there, treated, words
from assay.own.named import Named
from assay.own.preparing import Preparation, Unrepeatable, form_of, prepared
from assay.own.reading import understand
from assay.own.saved import save_run, usable_device
from assay.paper import Cost, Higher, Score
from assay.recipe import Recipe
from assay.train.loop import Trained

#: ``report(done, total, note)``: how many trainings are done.
Report = Callable[[float, float, str], None]
BASELINE = "baseline"
#: Of the budget, what a reference without a network may take for one seed, unless a training of the baseline takes longer.
_REFERENCE_SHARE = 0.2
#: A method whose first step takes so many seconds is slow.
_SLOW = 2.0
#: What classifiers are judged by: the share of right answers, or the mean of that share over the classes.
MEASURES = {"accuracy": "accuracy", "balanced": "balanced accuracy"}
#: From which ratio of the most to the least frequent class on the two measures are both shown.
_UNEQUAL = 2.0
#: Of the training examples, how many validate where the data come without.
_VALID = 0.1


@dataclass
class Trial:
    """What was found.

    Args:
        data: one line that says what was understood.
        metric: what the numbers are.
        wanted: seeds that were asked for.
        reference: name of the arm without a network.
        arms: arm -> seed -> test score with its price.
        valid: arm -> seed -> the same on the validation split, where there is one.
        by: what arms are judged by, a key of :data:`MEASURES`.
        beside: arm -> seed -> the other measure on the test split; filled where classes are so unequal that they differ.
        verdicts: method -> verdict on "above the baseline".
        refused: method -> why it does not fit.
        changed: method -> field of the recipe -> what the method made of it, in words.
        notes: what a reader should know besides.
        complete: whether everything was done before time was over.
        recipes: arm -> how its network is trained.
        preparation: what makes an example of these data into the input of the baseline's network.
        device: where it was trained.
        read: the data, before a recipe changed them.
    """

    data: str
    metric: str
    wanted: int
    reference: str
    arms: dict[str, dict[int, Score]] = field(default_factory=dict)
    valid: dict[str, dict[int, float]] = field(default_factory=dict)
    by: str = "accuracy"
    beside: dict[str, dict[int, float]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    changed: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = True
    recipes: dict[str, Recipe] = field(default_factory=dict, repr=False)
    preparation: Preparation = field(default_factory=lambda: Preparation({"kind": "unknown"}), repr=False)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    read: Dataset | None = field(default=None, repr=False)

    @property
    def other(self) -> str:
        """The measure that :attr:`beside` has."""
        return next(name for measure, name in MEASURES.items() if measure != self.by)

    def price(self, arm: str) -> float | None:
        """Median seconds of one training of an arm."""
        found = [score.cost.seconds for score in self.arms[arm].values() if score.cost.seconds is not None]
        return statistics.median(found) if found else None

    def q(self) -> dict[str, float]:
        """Method -> p-value corrected for the number of methods (Benjamini-Hochberg)."""
        return dict(zip(self.verdicts, adjust(verdict.p for verdict in self.verdicts.values()), strict=True))

    def ranked(self) -> list[tuple[str, int]]:
        """Arms with their best seeds, in the order in which their networks are worth keeping.

        By the mean on the *validation* split, and of an arm's seeds the best there; the test split has no say, so that the
        scores on it stay honest. Of equals the first comes first: the baseline before the methods. Without a validation split
        nothing is known but that the baseline is plain.
        """
        judged = [arm for arm in self.recipes if self.valid.get(arm)]
        if not judged:
            first = [(arm, min(self.arms[arm])) for arm in self.recipes if self.arms.get(arm)]
            return first[:1]
        order = sorted(judged, key=lambda arm: -statistics.fmean(self.valid[arm].values()))
        return [(arm, max(self.valid[arm], key=lambda seed: (self.valid[arm][seed], -seed))) for arm in order]

    def best(self) -> tuple[str, int] | None:
        """Arm and seed of the network that is best on validation (:meth:`ranked`); ``None`` where nothing was trained."""
        return next(iter(self.ranked()), None)

    def save(self, place: Path, **facts: Any) -> tuple[str, int]:
        """Keep the best network with its preprocessing and all that was found (:mod:`assay.own.saved`).

        Where it cannot be kept without pickle, or its inputs cannot be made again from new examples, the next best is, and a
        note says why.

        Args:
            place: a new or empty folder.
            **facts: what else to keep, as plain JSON values.

        Returns:
            Arm and seed of the network that was kept.

        Raises:
            AssayError: nothing was trained, or no network can be kept.
        """
        plain = self.recipes[BASELINE]
        for arm, seed in self.ranked():
            recipe = self.recipes[arm]
            trained = memory.train(recipe, seed, self.device)
            try:
                # The baseline may encode texts, and a method may scale images: both are in the history of the recipe's data.
                preparation = self.preparation.followed(self.read or plain.data, recipe.data)
                save_run(place, trained, seed, preparation, {"arm": arm, **self._facts(arm, recipe, plain), **facts})
            except Unrepeatable as error:
                self.notes.append(f"the network of {arm} is not kept, since {error}")
                continue
            return arm, seed
        raise AssayError("No network is kept: nothing was trained, or none can be made again from plain values.")

    def _facts(self, arm: str, recipe: Recipe, plain: Recipe) -> dict[str, Any]:
        return {
            "chosen": "best mean validation score over seeds, then the best seed" if self.valid.get(arm) else "no validation",
            "recipe": {
                entry.name: words(value)
                for entry in dataclasses.fields(Recipe)
                if (value := getattr(recipe, entry.name)) not in (None, ()) and entry.name != "data"
            },
            "changes": changes(plain, recipe),
            "trial": self.as_dict(),
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        q = self.q()
        chosen = self.best()
        return {
            "data": self.data,
            "metric": self.metric,
            "seeds": self.wanted,
            "complete": self.complete,
            "arms": {
                arm: {
                    "mean": statistics.fmean(scores.values()) if scores else None,
                    "values": {str(seed): float(score) for seed, score in scores.items()},
                    "valid": {str(seed): score for seed, score in self.valid.get(arm, {}).items()},
                    **({self.other: {str(seed): x for seed, x in self.beside[arm].items()}} if arm in self.beside else {}),
                    "seconds": self.price(arm),
                    "parameters": next((score.cost.parameters for score in scores.values()), None),
                }
                for arm, scores in self.arms.items()
            },
            "reference": self.reference,
            "verdicts": {
                method: {**verdict.as_dict(), "q": q[method], "controlled": verdict.verdict == "holds" and q[method] <= 0.05}
                for method, verdict in self.verdicts.items()
            },
            "changed": self.changed,
            "refused": self.refused,
            "best": None if chosen is None else {"arm": chosen[0], "seed": chosen[1]},
            "notes": self.notes,
        }


def try_(
    methods: Sequence[str],
    on: str | Path | Dataset,
    target: str | None = None,
    text: str | None = None,
    group: str | None = None,
    time: str | None = None,
    series: str | None = None,
    seeds: int = 5,
    budget: float | None = None,
    device: str = "cpu",
    report: Report | None = None,
    everything: bool = False,
    by: str = "accuracy",
    say: Callable[[str], None] | None = None,
) -> Trial:
    """Try methods on somebody's own data against the same network without them.

    Args:
        methods: keys of papers with a treatment; ``"a+b"`` is a, then b; ``"key:function"`` where a paper has several.
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set, which is used as it is.
        target: column to predict; see :func:`assay.own.read`.
        text: column that holds the texts.
        group: column whose equal values stay in one split.
        time: column by which to split; with ``series``, the order of its steps.
        series: column that says of which series a row is a step.
        seeds: trainings of every arm, with the seeds 0 to ``seeds - 1``.
        budget: seconds after which nothing more is trained; what is finished counts. Methods for which it is too short are
            refused beforehand, the dearest first. ``None`` has no end.
        device: where to train.
        report: is told how far it is.
        everything: try every treatment of the catalogue besides; those that do not fit stand in ``refused``.
        by: what classifiers are judged by and the best network is chosen by: ``"accuracy"``, or ``"balanced"``, the mean over the
            classes, in which rare classes count as much as frequent ones.
        say: is told, before anything is trained, the line of what was understood.

    Raises:
        AssayError: the data, a name or an option is wrong, or none of the methods fits the data.
    """
    end = None if budget is None else clock.monotonic() + budget
    if seeds < 1:
        raise AssayError(f"{seeds} seeds were asked for: give at least 1; a verdict needs 2, better 5.")
    if not methods and not everything:
        raise AssayError(f"No method was named: choose among {', '.join(there())}, or take --all.")
    if by not in MEASURES:
        raise AssayError(f"Nothing is judged by {by!r}: choose {' or '.join(MEASURES)}.")
    where = usable_device(device)
    more, absent = every() if everything else ([], {})
    treatments = {method: [find(name) for name in method.split("+")] for method in dict.fromkeys([*methods, *more])}
    data, preparation = _data(on, Named(target, text, group, time, series))
    if by != "accuracy" and data.task != "classification":
        raise AssayError(f"{data.name} has numbers to predict, which R² judges: leave out --by {by}.")
    plain = baseline(data)
    trial = Trial(
        data=data.source,
        metric=f"test {MEASURES[by]}" if data.task == "classification" else "test R²",
        by=by,
        wanted=seeds,
        reference=reference_name(data),
        refused=absent,
        recipes={BASELINE: plain},
        preparation=preparation,
        device=where,
        read=data,
    )
    if say is not None:
        say(trial.data)
    looked = _fit_on(trial, treatments, end, report)
    if len(trial.recipes) == 1:
        why = "; ".join(f"{method}: {reason}" for method, reason in trial.refused.items())
        raise AssayError(f"None of the methods fits {data.name} ({why}): take --all, which leaves out what does not fit.")
    if end is not None:
        _afford(trial, looked, end)
    _note(trial, data)
    trial.arms = {arm: {} for arm in (*trial.recipes, trial.reference)}
    _measure(trial, data, end, report)
    for method in list(trial.recipes)[1:]:
        trial.changed[method] = changes(plain, trial.recipes[method])
        trial.verdicts[method] = _judged(trial, method)
    return trial


def _judged(trial: Trial, method: str) -> Verdict:
    base = trial.arms[BASELINE]
    both = {seed: {BASELINE: base[seed], method: score} for seed, score in trial.arms[method].items()}
    verdict = judge((Higher(method, than=BASELINE),), both)
    if verdict.tests[0].method == "exact":
        trial.notes.append(
            f"{method} differs from the baseline by the same for all {len(both)} seeds, which a small test does by "
            "chance: take the verdict with caution, or test on more examples"
        )
    return verdict


# ---------------------------------------------------------------------------------------------------- measuring


def _fit_on(
    trial: Trial, treatments: Mapping[str, Sequence[Treatment]], end: float | None, report: Report | None
) -> dict[str, float]:
    """Put the methods on the baseline's recipe; those that do not fit are refused. Returns how long looking at each took."""
    plain, looked = trial.recipes[BASELINE], {}
    for method, chain in treatments.items():
        began = clock.monotonic()
        if end is not None and began > end and len(trial.recipes) > 1:
            trial.refused[method] = "time was over before it could be looked at"
            continue
        if report is not None:
            report(0, 1, f"does {method} fit?")
        try:
            trial.recipes[method] = treated(plain, chain, trial.device)
        except DoesNotFit as error:
            trial.refused[method] = str(error)
        looked[method] = clock.monotonic() - began
    return looked


def _afford(trial: Trial, looked: Mapping[str, float], end: float) -> None:
    """Leave out the methods for which there is no time, the dearest first."""
    needed = {}
    for arm, recipe in trial.recipes.items():
        # A training that is remembered costs nothing.
        new = sum(not memory.known(recipe, seed, trial.device) for seed in range(trial.wanted))
        steps = 4 if looked.get(arm, 0.0) < _SLOW else 1  # what is slow is timed well enough by one step
        needed[arm] = new / trial.wanted * training_seconds(recipe, trial.device, steps) if new else 0.0
    left = (end - clock.monotonic()) * (1 - _REFERENCE_SHARE)
    for arm, why in affordable(needed, trial.wanted, left, BASELINE).items():
        trial.refused[arm] = why
        del trial.recipes[arm]


def _measure(trial: Trial, data: Dataset, end: float | None, report: Report | None) -> None:
    """Fill the arms seed by seed; those that fail are refused."""
    progress = _Progress(trial, data, end, report)
    try:
        for seed in range(trial.wanted):
            progress.require_round(seed)
            for arm in list(trial.recipes):
                with progress.doing(arm, seed) as tell:
                    _train(trial, data, arm, seed, tell)
            if trial.reference in trial.arms:
                with progress.doing(trial.reference, seed):
                    _refer(trial, data, seed, end, progress)
    except TimeIsOver:
        trial.complete = False
        _level(trial)
        done = len(trial.arms[BASELINE])
        trial.notes.append(
            f"time was over after {done} of {trial.wanted} seeds; what is finished is kept, and the same command with more time "
            "goes on from there"
        )


def _train(trial: Trial, data: Dataset, arm: str, seed: int, tell: Callable[[float, float, str], None]) -> None:
    try:
        trained = memory.train(trial.recipes[arm], seed, trial.device, tell)
    except AssayError as error:
        if arm == BASELINE:
            raise
        trial.refused[arm] = str(error).rstrip(".")
        for table in (trial.arms, trial.valid, trial.beside, trial.recipes):
            table.pop(arm, None)
        return
    _score(trial, data, arm, seed, _predicted(trained, "test"), trained.cost)
    if len(data.valid):
        # What a method did to the validation examples (noise, scaling) is its own affair: labels are the data's.
        predicted = _predicted(trained, "valid")
        if len(predicted) == len(data.valid):
            trial.valid.setdefault(arm, {})[seed] = score(predicted, data.valid.labels, data.task, strict=False, by=trial.by)


def _score(trial: Trial, data: Dataset, arm: str, seed: int, predicted: Tensor, cost: Cost) -> None:
    """Enter what an arm's predictions on the test split are worth."""
    labels = data.test.labels
    trial.arms[arm][seed] = Score(score(predicted, labels, data.task, by=trial.by), cost)
    if data.task != "classification":
        return
    counts = labels.bincount()
    counts = counts[counts > 0]
    if counts.max() >= _UNEQUAL * counts.min():
        other = next(measure for measure in MEASURES if measure != trial.by)
        trial.beside.setdefault(arm, {})[seed] = score(predicted, labels, data.task, by=other)


def _predicted(trained: Trained, split: str) -> Tensor:
    outputs = trained.logits(split)
    return outputs.argmax(dim=1) if trained.recipe.data.task == "classification" else outputs.squeeze(1)


def _refer(trial: Trial, data: Dataset, seed: int, end: float | None, progress: _Progress) -> None:
    """The arm without a network, for a fifth of the budget at most; if that is too little, it is left out."""
    left = None if end is None else max(end - clock.monotonic(), 0.0)
    allowed = left if left is None else min(left, max(left * _REFERENCE_SHARE, progress.lasted.get(BASELINE, 0.0)))
    try:
        with alarm(allowed):
            kept = memory.remember(reference, data=data, seed=seed if reference_varies(data) else 0)
    except TimeIsOver:
        trial.refused[trial.reference] = f"it was not done after {allowed:.0f} s of the budget"
        del trial.arms[trial.reference]
        trial.valid.pop(trial.reference, None)
        return
    _score(trial, data, trial.reference, seed, kept["predicted"], Cost(seconds=float(kept["seconds"])))
    if len(data.valid):
        on_valid = score(kept["valid"], data.valid.labels, data.task, strict=False, by=trial.by)
        trial.valid.setdefault(trial.reference, {})[seed] = on_valid


class _Progress:
    """Tells how far it is, remembers how long arms last, and says when time is over."""

    def __init__(self, trial: Trial, data: Dataset, end: float | None, report: Report | None) -> None:
        self.trial, self.end, self.report = trial, end, report
        self.repeated = reference_varies(data)  # or it is done once, for the first seed
        self.done = 0
        self.lasted: dict[str, float] = {}  # seconds that an arm took for a seed, when it was really done

    def require_round(self, seed: int) -> None:
        """All arms of a seed must fit into what is left, as long as they took before; the first seed is tried anyway."""
        if self.end is None:
            return
        trial = self.trial
        new = [arm for arm, recipe in trial.recipes.items() if not memory.known(recipe, seed, trial.device)]
        new += [trial.reference] if self.repeated else []
        needed = sum(self.lasted.get(arm, 0.0) for arm in new)
        if clock.monotonic() + needed > self.end:
            raise TimeIsOver

    @contextmanager
    def doing(self, arm: str, seed: int) -> Iterator[Callable[[float, float, str], None]]:
        """Around one arm and seed; gives what a training reports to."""
        name = f"{arm}, seed {seed}"

        def tell(done: float, total: float, note: str) -> None:
            # The last report comes when the weights are ready: they are worth keeping even if time is over by now.
            if done < total:
                self.tell(done / total, f"{name}, {note}")

        self.tell(0, name)
        began = clock.monotonic()
        yield tell
        self.done += 1
        self.lasted[arm] = max(self.lasted.get(arm, 0.0), clock.monotonic() - began)

    def tell(self, fraction: float, note: str) -> None:
        """Pass on how far it is."""
        if self.end is not None and clock.monotonic() > self.end:
            raise TimeIsOver
        if self.report is not None:
            total = self.trial.wanted * len(self.trial.arms)
            self.report(self.done + fraction, total, note)


def _level(trial: Trial) -> None:
    """Leave to every arm the seeds that all arms have, where there are such."""
    common = set.intersection(*(set(scores) for scores in trial.arms.values()))
    if not common:
        return
    for arm in trial.arms:
        trial.arms[arm] = {seed: trial.arms[arm][seed] for seed in sorted(common)}
        for table in (trial.valid, trial.beside):
            if arm in table:
                table[arm] = {seed: table[arm][seed] for seed in sorted(common)}


def score(predicted: Tensor, labels: Tensor, task: str, strict: bool = True, by: str = "accuracy") -> float:
    """Share of right classes (``by="balanced"``: its mean over the classes that occur), or the coefficient of determination.

    ``strict`` refuses targets that are all the same.
    """
    if task == "classification":
        right = (predicted == labels).double()
        if by == "balanced":
            counts = labels.bincount()
            right = right / counts[labels] * (len(labels) / (counts > 0).sum())
        return right.mean().item()
    labels = labels.double()
    spread = (labels - labels.mean()).square().sum().item()
    if not spread and strict:
        raise AssayError(
            f"All {len(labels)} test targets are {labels[0]:g}, so R² says nothing: give more rows, or another target."
        )
    return 1 - (predicted.double() - labels).square().sum().item() / (spread or 1.0)


def _rarest(data: Dataset) -> tuple[int, int]:
    """Training examples of the most and of the least frequent class; (1, 1) for numbers."""
    if data.task != "classification":
        return 1, 1
    counts = data.train.labels.bincount()
    counts = counts[counts > 0]
    return int(counts.max()), int(counts.min())


def _note(trial: Trial, data: Dataset) -> None:
    if data.task == "classification" and len(data.test) < 100:
        trial.notes.append(f"one of the {len(data.test)} test examples is {100 / len(data.test):.1f} points of accuracy")
    largest, smallest = _rarest(data)
    if trial.by == "accuracy" and largest >= 4 * smallest:
        trial.notes.append(
            f"the most frequent class has {largest / smallest:.0f} times as many training examples as the rarest; --by balanced "
            "judges by all classes alike"
        )
    base = trial.recipes[BASELINE].epochs
    for method, recipe in trial.recipes.items():
        if recipe.epochs != base:
            trial.notes.append(f"{method} trains {recipe.epochs} epochs, the baseline {base}")


# ---------------------------------------------------------------------------------------------------- data


def _data(on: str | Path | Dataset, named: Named) -> tuple[Dataset, Preparation]:
    if isinstance(on, Dataset):
        data, preparation = on, Preparation(form_of(on.train.inputs))
    elif not Path(on).exists() and str(on) in {row.name for row in available()}:
        data, preparation = prepared(_validated(load(str(on))))
        line = f"{data.name}: {data.task}; train {len(data.train)}, valid {len(data.valid)}, test {len(data.test)}"
        data = dataclasses.replace(data, source=f"{line} (test as in the catalogue).")
    else:
        data, preparation = understand(on, **vars(named))
    return _validated(data), preparation


def _validated(data: Dataset) -> Dataset:
    """With a validation split, on which the best arm is chosen."""
    if len(data.valid) or round(_VALID * len(data.train)) < 1:
        return data
    return data.holdout(_VALID, seed=0)
