"""What was read but not split yet, and how it becomes a data set: task, splits, preprocessing, one line that says it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.data import Dataset, Split
from assay.data.dataset import stratified
from assay.errors import AssayError
from assay.own.preparing import Columns, Inputs, Line, Preparation, fit

#: Whole numbers with at most so many distinct values are classes; others are quantities.
MOST_NUMBERED_CLASSES = 20
#: Shares of the examples that test and validate, where nobody else has split them.
TEST, VALID = 0.2, 0.1
_FEWEST = 10

Positions = NDArray[np.int64]


@dataclass
class Material:
    """Examples as they were found.

    Args:
        name: of the file or folder, for messages.
        what: what one example is, in the plural, e.g. ``"images of 32x32"``.
        inputs: images (N, C, H, W) in [0, 1], series (N, C, L), texts, or the columns of a table.
        target: N classes (anything that is no number) or numbers, none of them missing.
        parts: ``"train"``, ``"valid"`` or ``"test"`` for each example, where the source has splits of its own.
        group: examples of one group stay in one split.
        time: numbers by which the examples are split: the test is the latest part.
        notes: what was repaired on the way.
        form: what one must know to read further examples alike and the inputs do not tell; see
            :func:`assay.own.preparing.form_of`.
        history: what was done to the inputs while they were read, as lines of a data set's history.
        task: ``"classification"`` or ``"regression"`` where the source says so; else the target tells.
        files: where each example lies, where each is a file of its own.
    """

    name: str
    what: str
    inputs: Inputs
    target: pd.Series
    parts: NDArray[np.str_] | None = None
    group: NDArray[np.str_] | None = None
    time: NDArray[np.float64] | None = None
    notes: list[str] = field(default_factory=list)
    form: dict[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    task: str | None = None
    files: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.time is not None:
            raise AssayError(f"{self.name} cannot be split by group and in time at once: give only one of the two.")
        if self.parts is not None and (self.group is not None or self.time is not None):
            raise AssayError(f"{self.name} is already split into training and test: leave group and time out.")


@dataclass(frozen=True)
class Layout:
    """Material whose labels are understood and which is split.

    Args:
        material: the examples that are used.
        task: ``"classification"`` or ``"regression"``.
        classes: their names; empty for regression.
        labels: (N,) int64 classes or float32 numbers.
        places: ``"train"``, ``"valid"`` and ``"test"`` -> positions in the material.
        how: how it was split, in words.
        notes: what was repaired on the way.
    """

    material: Material
    task: str
    classes: tuple[str, ...]
    labels: Tensor
    places: dict[str, Positions]
    how: str
    notes: list[str]


def lay_out(material: Material, seed: int) -> Layout:
    """Understand the labels, and split.

    Raises:
        AssayError: too few examples, one class only, or no way to split.
    """
    notes = list(material.notes)
    kept, task, classes, labels = _labels(material, notes)
    material = _take(material, kept)
    if len(labels) < _FEWEST:
        raise AssayError(f"{material.name} has {len(labels)} usable examples: give at least {_FEWEST} to train and test on.")
    places, how = _split(material, labels, seed)
    return Layout(material, task, classes, labels, places, how, notes)


def build(material: Material, seed: int) -> tuple[Dataset, Preparation]:
    """Split, prepare with what the training part alone tells, and say what was understood (in ``source``).

    Args:
        material: what was read.
        seed: of the split.

    Raises:
        AssayError: too few examples, one class only, or no way to split.
    """
    return prepare(lay_out(material, seed))


def prepare(found: Layout) -> tuple[Dataset, Preparation]:
    """The data set that a layout makes, and how its inputs were prepared."""
    material, task, classes, labels, places, notes = (
        found.material,
        found.task,
        found.classes,
        found.labels,
        found.places,
        list(found.notes),
    )
    _say_repeats(material, places, notes)
    if task == "classification":
        _say_absent(classes, labels, places, notes)
    preparation = fit(material.inputs, places["train"], material.form)
    whole = Split(preparation(material.inputs), labels)
    splits = {part: whole.take(torch.from_numpy(positions)) for part, positions in places.items()}
    sizes = ", ".join(f"{part} {len(split)}" for part, split in splits.items())
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    goal = f"{task}, {len(classes)} classes ({shown})" if classes else f"{task} of {material.target.name or 'numbers'}"
    line = f"{material.name}: {len(labels)} {material.what}; {goal}; {sizes} ({found.how})"
    data = Dataset(
        name=material.name,
        task=task,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        classes=classes,
        licence="your own",
        history=(*material.history, *("normalise()" for step in preparation.steps if isinstance(step, Line))),
        source=" ".join("; ".join([line, *notes]).split()) + ".",  # names of classes may hold line breaks
        features=next((step.features for step in preparation.steps if isinstance(step, Columns)), ()),
    )
    return data, preparation


# ---------------------------------------------------------------------------------------------------- labels


def _labels(material: Material, notes: list[str]) -> tuple[Positions, str, tuple[str, ...], Tensor]:
    """Which examples have a usable target, the task, the classes and the labels (N,)."""
    target, everything = material.target, np.arange(len(material.target))
    if target.empty:
        raise AssayError(f"{material.name} holds no examples: give at least {_FEWEST} to train and test on.")
    numbers = pd.to_numeric(target, errors="coerce").to_numpy(np.float64) if target.dtype != bool else None
    where = f"column {target.name!r} of {material.name}" if target.name else material.name
    if numbers is not None:
        finite = np.abs(numbers) <= np.finfo(np.float32).max  # what float32 cannot hold is as good as infinite
        distinct = np.unique(numbers[finite])
        whole = bool((distinct == distinct.round()).all())
        # A few words among many numbers ("unknown") are gaps; a few numbers among words are classes of that name.
        quantity = finite.mean() > 0.8 and not (whole and len(distinct) <= MOST_NUMBERED_CLASSES)
        if material.task == "regression" and not finite.any():
            raise AssayError(f"No target in {where} is a finite number (first {target.iloc[0]!r}): give numbers to predict.")
        if quantity if material.task is None else material.task == "regression":
            if not finite.all():
                first = int(np.flatnonzero(~finite)[0])
                notes.append(
                    f"{(~finite).sum()} rows left out, whose target is no finite number (first {target.iloc[first]!r}, "
                    f"row {target.index[first]})"
                )
            if np.ptp(distinct) == 0:
                raise AssayError(f"All targets in {where} are {distinct[0]:g}: there is nothing to learn.")
            return everything[finite], "regression", (), torch.from_numpy(numbers[finite].astype(np.float32))
        if finite.all() and whole:
            names = [str(int(value)) for value in distinct]
            return everything, *_classes(where, names, np.searchsorted(distinct, numbers))
    codes, found = pd.factorize(target.astype(str).str.strip(), sort=True)
    return everything, *_classes(where, list(found), codes)


def _classes(where: str, names: Sequence[str], codes: NDArray[np.int64]) -> tuple[str, tuple[str, ...], Tensor]:
    if len(names) < 2:
        raise AssayError(f"All examples in {where} have the class {names[0]!r}: give examples of two or more classes.")
    if len(names) > 50 and len(names) > len(codes) / 2:
        raise AssayError(
            f"The target in {where} has {len(names)} distinct values in {len(codes)} rows, so it names rows rather than classes: "
            "choose another target."
        )
    return "classification", tuple(names), torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64))


def _take(material: Material, kept: Positions) -> Material:
    """The examples at ``kept``."""
    if len(kept) == len(material.target):
        return material
    inputs = material.inputs
    if isinstance(inputs, pd.DataFrame):
        inputs = inputs.iloc[kept]
    elif isinstance(inputs, Tensor):
        inputs = inputs[torch.from_numpy(kept)]
    else:
        inputs = tuple(inputs[place] for place in kept)
    return replace(
        material,
        inputs=inputs,
        target=material.target.iloc[kept],
        parts=None if material.parts is None else material.parts[kept],
        group=None if material.group is None else material.group[kept],
        time=None if material.time is None else material.time[kept],
        files=None if material.files is None else tuple(material.files[place] for place in kept),
    )


def place_of(material: Material, row: int) -> str:
    """Where an example stands, as a person would look for it: a file, a row of the table."""
    label = material.target.index[row]
    if isinstance(label, str):
        return label
    return f"{'example' if material.target.name is None else 'row'} {label}"  # what has a name was a column of a table


# ---------------------------------------------------------------------------------------------------- splits


def _split(material: Material, labels: Tensor, seed: int) -> tuple[dict[str, Positions], str]:
    """Positions of the three splits, and how they were found."""
    count = len(labels)
    if material.parts is not None:
        found = {part: np.flatnonzero(material.parts == part) for part in ("train", "valid", "test")}
        if not len(found["valid"]):
            found["train"], found["valid"] = _drawn(found["train"], labels, round(VALID * len(found["train"])), seed)
            return found, "training and test as found"
        return found, "as found"
    if material.time is not None:
        ends = np.quantile(material.time, [1 - TEST - VALID, 1 - TEST], method="lower")
        # Examples of one moment stay together, so that the test lies wholly after the training.
        part = np.searchsorted(ends, material.time, side="left")
        places = {name: np.flatnonzero(part == number) for number, name in enumerate(("train", "valid", "test"))}
        if not len(places["train"]) or not len(places["test"]):
            raise AssayError(f"{material.name} has too few distinct times to be split in time: leave time out.")
        return places, "in time, the latest are the test"
    if material.group is not None:
        return _grouped(material.name, material.group, labels, seed), f"whole groups, seed {seed}"
    rest, test = _drawn(np.arange(count), labels, round(TEST * count), seed)
    train, valid = _drawn(rest, labels, round(VALID * count), seed)
    how = "at random" if labels.is_floating_point() else "stratified"
    return {"train": train, "valid": valid, "test": test}, f"{how}, seed {seed}"


def _drawn(places: Positions, labels: Tensor, count: int, seed: int) -> tuple[Positions, Positions]:
    """What stays and ``count`` that are drawn, each class in proportion."""
    generator = torch.Generator().manual_seed(seed)
    drawn = stratified(labels[torch.from_numpy(places)], count, generator).numpy()
    return np.delete(places, drawn), places[drawn]


def _grouped(name: str, group: NDArray[np.str_], labels: Tensor, seed: int) -> dict[str, Positions]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = len(np.unique(group))
    if groups < 3:
        raise AssayError(f"{name} has {groups} groups: splitting by group needs at least 3, better 10.")
    kind = GroupKFold if labels.is_floating_point() else StratifiedGroupKFold

    def part(places: Positions, share: float) -> tuple[Positions, Positions]:
        folds = max(2, min(round(1 / share), len(np.unique(group[places]))))
        splitter = kind(folds, shuffle=True, random_state=seed)
        try:
            stays, drawn = next(splitter.split(places, labels.numpy()[places], group[places]))
        except ValueError:  # no class has as many members as there are folds
            splitter = GroupKFold(folds, shuffle=True, random_state=seed)
            stays, drawn = next(splitter.split(places, None, group[places]))
        return places[stays], places[drawn]

    rest, test = part(np.arange(len(labels)), TEST)
    train, valid = part(rest, VALID / (1 - TEST))
    return {"train": train, "valid": valid, "test": test}


def _say_absent(classes: Sequence[str], labels: Tensor, places: dict[str, Positions], notes: list[str]) -> None:
    for part in ("train", "test"):
        if not len(places[part]):
            continue
        counts = np.bincount(labels.numpy()[places[part]], minlength=len(classes))
        absent = [name for name, count in zip(classes, counts, strict=True) if not count]
        if absent:
            some = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            notes.append(f"{len(absent)} classes have no {part} example ({some})")


def _say_repeats(material: Material, places: dict[str, Positions], notes: list[str]) -> None:
    every = marks(material.inputs)
    seen = np.isin(every[places["test"]], every[places["train"]])
    if seen.any():
        notes.append(f"{seen.sum()} of {len(seen)} test examples also occur in training, so the test is easier than it looks")


def marks(inputs: Inputs) -> NDArray[np.int64]:
    """A number for each example, the same where the content is the same."""
    if isinstance(inputs, pd.DataFrame):
        hashes: NDArray[np.int64] = pd.util.hash_pandas_object(inputs, index=False).to_numpy().view(np.int64)
        return hashes
    if isinstance(inputs, tuple):
        hashes = pd.util.hash_array(np.array(inputs, dtype=object)).view(np.int64)
        return hashes
    flat = inputs.flatten(1).contiguous().view(torch.int32)
    # Whole numbers wrap around, so that the sum is exact whatever the order; a sum of floats would depend on it.
    weights = torch.randint(-(2**62), 2**62, (flat.shape[1],), generator=torch.Generator().manual_seed(0))
    return torch.cat([(rows.long() * weights).sum(dim=1) for rows in flat.split(1024)]).numpy()


def names(material: Material) -> tuple[tuple[str, ...], str]:
    """A name for each example, no two alike, and what such a name is."""
    index = material.target.index
    ids = [str(label) for label in index]
    # A target with a name was a column of a table.
    number = "example" if material.target.name is None else "row"
    called = "file" if any(isinstance(label, str) for label in index) else number
    seen: Counter[str] = Counter()
    for place, name in enumerate(ids):
        seen[name] += 1
        if seen[name] > 1:
            ids[place] = f"{name} ({seen[name]})"
    return tuple(ids), called
