"""Does a method help on this data, and at what price? The same splits, seeds and epochs for every arm, and a verdict.

The split is drawn once: the verdict is about what happens on this test when a training is repeated with other seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import statistics
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay import catalogue
from assay.data import Dataset, available, load
from assay.errors import AssayError
from assay.lab import memory
from assay.lab.verdict import Verdict, adjust, judge
from assay.own.baselines import baseline, reference, reference_name
from assay.own.reading import read
from assay.paper import Cost, Higher, Score
from assay.recipe import Recipe
from assay.train.loop import fit

#: ``report(done, total, note)``: how many trainings are done.
Report = Callable[[float, float, str], None]
Treatment = Callable[[Recipe], Recipe]
BASELINE = "baseline"


@dataclass
class Trial:
    """What was found.

    Args:
        data: one line that says what was understood.
        metric: what the numbers are.
        wanted: seeds that were asked for.
        reference: name of the arm without a network.
        arms: arm -> seed -> score with its price.
        verdicts: method -> verdict on "above the baseline".
        refused: method -> why it does not fit.
        notes: what a reader should know besides.
        complete: whether everything was done before time was over.
    """

    data: str
    metric: str
    wanted: int
    reference: str
    arms: dict[str, dict[int, Score]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    def price(self, arm: str) -> float | None:
        """Median seconds of one training of an arm."""
        found = [score.cost.seconds for score in self.arms[arm].values() if score.cost.seconds is not None]
        return statistics.median(found) if found else None

    def q(self) -> dict[str, float]:
        """Method -> p-value corrected for the number of methods (Benjamini-Hochberg)."""
        return dict(zip(self.verdicts, adjust(verdict.p for verdict in self.verdicts.values()), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        q = self.q()
        return {
            "data": self.data,
            "metric": self.metric,
            "seeds": self.wanted,
            "complete": self.complete,
            "arms": {
                arm: {
                    "mean": statistics.fmean(scores.values()) if scores else None,
                    "values": {str(seed): float(score) for seed, score in scores.items()},
                    "seconds": self.price(arm),
                    "parameters": next((score.cost.parameters for score in scores.values()), None),
                }
                for arm, scores in self.arms.items()
            },
            "reference": self.reference,
            "verdicts": {method: {**verdict.as_dict(), "q": q[method]} for method, verdict in self.verdicts.items()},
            "refused": self.refused,
            "notes": self.notes,
        }


class _TimeIsOver(Exception):
    pass


def try_(
    methods: Sequence[str],
    on: str | Path | Dataset,
    target: str | None = None,
    text: str | None = None,
    group: str | None = None,
    time: str | None = None,
    seeds: int = 5,
    budget: float | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> Trial:
    """Try methods on somebody's own data against the same network without them.

    Args:
        methods: keys of papers with a treatment; ``"a+b"`` is a, then b; ``"key:function"`` where a paper has several.
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set.
        target: column to predict; see :func:`assay.own.read`.
        text: column that holds the texts.
        group: column whose equal values stay in one split.
        time: column by which to split.
        seeds: trainings of every arm, with the seeds 0 to ``seeds - 1``.
        budget: seconds after which nothing more is trained; what is finished counts. ``None`` has no end.
        device: where to train.
        report: is told how far it is.

    Raises:
        AssayError: the data, a name or an option is wrong, or none of the methods fits the data.
    """
    end = None if budget is None else clock.monotonic() + budget
    if seeds < 1:
        raise AssayError(f"{seeds} seeds were asked for: give at least 1; a verdict needs 2, better 5.")
    if not methods:
        raise AssayError(f"No method was named: choose among {', '.join(there())}.")
    where = _device(device)
    treatments = {method: [find(name) for name in method.split("+")] for method in dict.fromkeys(methods)}
    data = on if isinstance(on, Dataset) else _data(on, target, text, group, time)
    plain = baseline(data)
    classifies = data.task == "classification"
    trial = Trial(data.source, "test accuracy" if classifies else "test R²", seeds, reference_name(data))
    recipes = {BASELINE: plain}
    for method, chain in treatments.items():
        try:
            recipes[method] = _treated(plain, chain)
        except _DoesNotFit as error:
            trial.refused[method] = str(error)
    if len(recipes) == 1:
        why = "; ".join(f"{method}: {reason}" for method, reason in trial.refused.items())
        raise AssayError(f"None of the methods fits {data.name} ({why}): choose among {', '.join(there())}.")
    _note(trial, data, recipes)
    trial.arms = {arm: {} for arm in (*recipes, trial.reference)}
    try:
        _measure(trial, data, recipes, where, end, report)
    except _TimeIsOver:
        trial.complete = False
        trial.notes.append(
            "time was over before all was done; what is finished is kept, and the same command with more time goes on from there"
        )
    for method in list(recipes)[1:]:
        if method in trial.arms:
            both = {seed: {BASELINE: trial.arms[BASELINE][seed], method: score} for seed, score in trial.arms[method].items()}
            trial.verdicts[method] = judge((Higher(method, than=BASELINE),), both)
            if trial.verdicts[method].tests[0].method == "exact":
                trial.notes.append(
                    f"{method} differs from the baseline by the same for all {len(both)} seeds, which a small test does by "
                    "chance: take the verdict with caution, or test on more examples"
                )
    return trial


def _measure(
    trial: Trial, data: Dataset, recipes: Mapping[str, Recipe], device: torch.device, end: float | None, report: Report | None
) -> None:
    """Fill the arms seed by seed, so that whenever time is over, the arms have the same seeds."""
    total = trial.wanted * len(trial.arms)
    done = 0

    def tell(fraction: float, note: str) -> None:
        if end is not None and clock.monotonic() > end:
            raise _TimeIsOver
        if report is not None:
            report(done + fraction, total, note)

    for seed in range(trial.wanted):
        tell(0, f"{trial.reference}, seed {seed}")
        kept = memory.remember(reference, data=data, seed=seed)
        score = _score(kept["predicted"], data.test.labels, data.task)
        trial.arms[trial.reference][seed] = Score(score, Cost(seconds=float(kept["seconds"])))
        done += 1
        for arm, recipe in recipes.items():
            if arm not in trial.arms:
                continue
            tell(0, f"{arm}, seed {seed}")
            told = functools.partial(_tell_training, tell, f"{arm}, seed {seed}")
            try:
                trained = memory.train(recipe, seed, device, told)
            except AssayError as error:
                if arm == BASELINE:
                    raise
                trial.refused[arm] = str(error).rstrip(".")
                del trial.arms[arm]
                continue
            outputs = trained.logits("test")
            predicted = outputs.argmax(dim=1) if data.task == "classification" else outputs.squeeze(1)
            trial.arms[arm][seed] = Score(_score(predicted, data.test.labels, data.task), trained.cost)
            done += 1


def _tell_training(tell: Callable[[float, str], None], name: str, done: float, total: float, note: str) -> None:
    # The last report comes when the weights are ready: they are worth keeping even if time is over by now.
    if done < total:
        tell(done / total, f"{name}, {note}")


def _score(predicted: Tensor, labels: Tensor, task: str) -> float:
    """Share of right classes, or the coefficient of determination."""
    if task == "classification":
        return (predicted == labels).double().mean().item()
    labels = labels.double()
    spread = (labels - labels.mean()).square().sum().item()
    if not spread:
        raise AssayError(
            f"All {len(labels)} test targets are {labels[0]:g}, so R² says nothing: give more rows, or another target."
        )
    return 1 - (predicted.double() - labels).square().sum().item() / spread


def _note(trial: Trial, data: Dataset, recipes: Mapping[str, Recipe]) -> None:
    if data.task == "classification" and len(data.test) < 100:
        trial.notes.append(f"one of the {len(data.test)} test examples is {100 / len(data.test):.1f} points of accuracy")
    for method, recipe in recipes.items():
        if recipe.epochs != recipes[BASELINE].epochs:
            trial.notes.append(f"{method} trains {recipe.epochs} epochs, the baseline {recipes[BASELINE].epochs}")


def _data(on: str | Path, target: str | None, text: str | None, group: str | None, time: str | None) -> Dataset:
    if not Path(on).exists() and str(on) in {row.name for row in available()}:
        data = load(str(on))
        line = f"{data.name}: {data.task}; train {len(data.train)}, valid {len(data.valid)}, test {len(data.test)}"
        return dataclasses.replace(data, source=f"{line} (as in the catalogue).")
    return read(on, target, text, group, time)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise AssayError(
            f"This machine has no device {name!r} that torch can use: `assay doctor` says more; cpu works."
        ) from None
    return device


# ---------------------------------------------------------------------------------------------------- methods


class _DoesNotFit(Exception):
    """Why a method cannot be put on this data; without a full stop."""


def there() -> list[str]:
    """Keys of the papers that have a treatment, found without importing them."""
    return [
        key
        for key, paper in catalogue.papers().items()
        if any("\n@treatment" in path.read_text(encoding="utf-8") for path in catalogue.files(paper))
    ]


def find(name: str) -> Treatment:
    """The treatment of a paper: ``"elr"``, or ``"key:function"`` where it has several.

    Raises:
        AssayError: there is no such paper, or it has no such treatment.
    """
    key, _, wanted = name.strip().partition(":")
    paper = catalogue.find(key)
    members = vars(importlib.import_module(paper.module))
    own = {
        label: value
        for label, value in members.items()
        if getattr(value, "__assay__", None) == "treatment" and value.__module__.startswith(paper.module)
    }
    if not own:
        raise AssayError(f"{key} has no treatment to try (it is of the kind {paper.kind}): choose among {', '.join(there())}.")
    if not wanted and len(own) > 1 and key not in own:
        raise AssayError(f"{key} has several treatments: name one, as {' or '.join(f'{key}:{label}' for label in own)}.")
    wanted = wanted or (key if key in own else next(iter(own)))
    if wanted not in own:
        raise AssayError(f"{key} has no treatment {wanted!r}: it has {', '.join(own)}.")
    treatment: Treatment = own[wanted]
    return treatment


def _treated(plain: Recipe, chain: Sequence[Treatment]) -> Recipe:
    """Apply treatments one after the other, and see that a step of training works."""
    recipe = plain
    changed: dict[str, str] = {}  # field -> the treatment that set it
    for treatment in chain:
        name = treatment.__name__
        try:
            after = treatment(recipe)
        except Exception as error:
            raise _DoesNotFit(_reason(error)) from error
        for entry in dataclasses.fields(Recipe):
            before, now = getattr(recipe, entry.name), getattr(after, entry.name)
            if now is before or (not callable(now) and now == before):
                continue
            if entry.name in changed and not _holds(now, before):
                raise _DoesNotFit(f"{name} would undo what {changed[entry.name]} did to the {entry.name}")
            changed[entry.name] = name
        recipe = after
    if not changed:
        raise _DoesNotFit("it changes nothing here")
    if not torch.equal(recipe.data.test.labels, plain.data.test.labels):
        raise _DoesNotFit("it changes the test, so that it could not be compared")
    try:
        _one_step(recipe)
    except Exception as error:
        raise _DoesNotFit(_reason(error)) from error
    return recipe


def _one_step(recipe: Recipe) -> None:
    """Train on one batch, and look at the outputs: better to fail now than after an hour of baselines."""
    count = min(len(recipe.data.train), max(recipe.batch_size, 2 * recipe.data.num_classes))
    few = recipe.data.subset(train=count, seed=0)
    trained = fit(recipe.replace(data=few, epochs=1, watch=()), seed=0)
    with torch.no_grad():
        outputs = trained.model(few.train.inputs[:2])
    if outputs.shape != (2, recipe.data.num_classes):
        raise AssayError(f"its network gives outputs {tuple(outputs.shape)} instead of (2, {recipe.data.num_classes})")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _holds(value: Any, part: Any) -> bool:
    """Is ``part`` still somewhere inside ``value``: wrapped in a partial, in a tuple, in a dataclass?"""
    if value is part or (isinstance(part, tuple) and not part):
        return True
    if isinstance(value, tuple):
        pieces = part if isinstance(part, tuple) else (part,)
        return all(any(_holds(one, piece) for one in value) for piece in pieces)
    if isinstance(value, functools.partial):
        return any(_holds(one, part) for one in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, Dataset):
        return isinstance(part, Dataset) and value.history[: len(part.history)] == part.history
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds(getattr(value, entry.name), part) for entry in dataclasses.fields(value))
    return False
