"""``assay relabel``: people look at the labels that a model contradicts; what they say is kept, and the labels are mended.

This is the method of :mod:`assay.papers.labels.relabel` with people in the place of its annotator, in rounds that last as long as
they like: a model is trained on the labels as they are now, those that it contradicts out of fold are put into a queue, answers
come back, and the next queue is made with the mended labels. Nobody is asked again about what is settled.

    queue = make_queue("photos/", folder=Path("photos-relabel"))     # review.html, queue.csv
    mended = take_answers("photos/", [Path("answers.json")], folder=Path("photos-relabel"))     # answers.csv, labels.csv

Nothing of the data is written to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assay.data import Dataset
from assay.errors import AssayError
from assay.files import write_atomically
from assay.own.answers import Answer, Settled, Taken, add_answers, id_finder, load_answers, read_answers, settle
from assay.own.examples import Examples, Pool, all_examples
from assay.own.named import Named
from assay.own.review import Item, Questions
from assay.own.suspecting import SIMPLE, Suspects, require_method, suspects_among
from assay.own.unpacked import is_archive
from assay.own.writing import write_rows
from assay.papers.labels.relabel import suspicious
from assay.train.loop import Report

PAGE, QUEUE, ANSWERS, LABELS = "review.html", "queue.csv", "answers.csv", "labels.csv"
#: Examples on one page, if nobody says otherwise: an hour's work.
MOST = 500
#: A table of more bytes is not copied.
_LARGEST_COPY = 1 << 30


@dataclass
class Queue:
    """Examples that people are to look at.

    Args:
        questions: that they are asked.
        suspects: what they were chosen from.
        folder: where page and table are.
        settled: examples that people have decided on already.
        open: of these asked about before, those on which people differ.
    """

    questions: Questions
    suspects: Suspects
    folder: Path
    settled: int = 0
    open: int = 0

    @property
    def items(self) -> tuple[Item, ...]:
        """The most suspicious first."""
        return self.questions.items

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        share = self.suspects.expected(self.suspects.cut)
        return {
            "data": self.suspects.data,
            "folder": str(self.folder),
            "page": str(self.folder / PAGE),
            "queue": str(self.folder / QUEUE),
            "asked": len(self.items),
            "settled": self.settled,
            "open": self.open,
            "contradicted": self.suspects.contradicted,
            "cut": self.suspects.cut,
            "expected_at_cut": None if share is None else dict(zip(("share", "low", "high"), share, strict=True)),
            "notes": self.suspects.notes,
        }


@dataclass
class Mended:
    """What came of the answers.

    Args:
        taken: file -> what became of its answers.
        examples: how many there are.
        kept: labels that people confirmed.
        changed: id -> (label as it was, label as it is).
        majority: ids on which people differ, but most say the same.
        open: id -> person -> answer, where as many say another; such a label stays as it is.
        lost: answers about examples that have changed since or are not there any more: they are kept, but not applied.
        written: the files.
        notes: what a reader should know, without full stops.
    """

    taken: dict[str, Taken]
    examples: int
    kept: int = 0
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    majority: list[str] = field(default_factory=list)
    open: dict[str, Mapping[str, str]] = field(default_factory=dict)
    lost: int = 0
    written: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "examples": self.examples,
            "files": {
                name: {"new": len(one.new), "repeated": one.repeated, "problems": one.problems}
                for name, one in self.taken.items()
            },
            "kept": self.kept,
            "changed": {name: {"from": old, "to": new} for name, (old, new) in self.changed.items()},
            "majority": self.majority,
            "open": {name: dict(said) for name, said in self.open.items()},
            "not_applied": self.lost,
            "written": self.written,
            "notes": self.notes,
        }


# ---------------------------------------------------------------------------------------------------- asking


def make_queue(
    on: str | Path | Dataset,
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    folder: Path | None = None,
    method: str = SIMPLE,
    most: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    report: Report | None = None,
) -> Queue:
    """Choose the labels that people should look at, and write a page and a table of them.

    Args:
        on: as for :func:`assay.own.suspects`.
        named: columns that have a meaning.
        folder: where to; ``None`` is ``NAME-relabel`` in the present folder. Answers that lie there count.
        method: who doubts, as for :func:`assay.own.suspects`.
        most: examples to ask about; ``None`` is as far down as it is best to look, at most 500.
        seed: of folds and trainings.
        device: where networks are trained.
        report: is told how far the trainings are.

    Raises:
        AssayError: the data cannot be read, their target is a number, or the folder cannot be written.
    """
    require_method(method)
    if most is not None and most < 1:
        raise AssayError(f"--most {most} asks for nothing: give at least 1.")
    folder = data_folder(on, folder, "relabel")
    examples = _classified(all_examples(on, named))
    answered, _ = applied(examples, examples.data.classes, load_answers(folder / ANSWERS))
    settled = {place: one.label for place, one in answered.items() if one.label is not None}
    undecided = set(answered) - set(settled)
    examples = _relabelled(examples, settled)
    found = suspects_among(examples, method, seed, device, report)
    items = _items(examples, found, set(settled), undecided, most)
    questions = Questions("Relabel", examples, examples.data.classes, items)
    questions.write(folder / PAGE, folder / QUEUE)
    return Queue(questions, found, folder, len(settled), len(undecided))


def _items(examples: Examples, found: Suspects, settled: set[int], undecided: set[int], most: int | None) -> tuple[Item, ...]:
    """First what people differ on; then of the labels that the model contradicts (the paper's rule) the most suspicious."""
    assert found.probabilities is not None
    assert found.wrong is not None
    codes = pd.Index(found.classes).get_indexer(list(found.given))
    contradicted = set(suspicious(found.probabilities, codes).tolist())
    ranked = list(enumerate(found.places.tolist()))
    differ = [rank for rank, place in ranked if place in undecided]
    doubted = [rank for rank, place in ranked if rank in contradicted and place not in settled | undecided]
    if most is None:
        doubted = [rank for rank in doubted if rank < found.cut]
    chosen = [*differ, *doubted][: most or MOST]
    marked = examples.marks([int(found.places[rank]) for rank in chosen])
    items = []
    for rank, mark in zip(chosen, marked, strict=True):
        shares = found.probabilities[rank]
        best = np.argsort(-shares, kind="stable")[:3]
        items.append(
            Item(
                int(found.places[rank]),
                found.ids[rank],
                mark,
                found.given[rank],
                found.believed[rank],
                float(found.wrong[rank]),
                tuple((found.classes[k], float(shares[k])) for k in best),
            )
        )
    return tuple(items)


# ---------------------------------------------------------------------------------------------------- taking back


def take_answers(
    on: str | Path | Dataset,
    files: Sequence[Path],
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    folder: Path | None = None,
) -> Mended:
    """Keep the answers in these files, and write the labels that all answers come to.

    Args:
        on: the data that they are about.
        files: that came back, of one person or of several.
        named: columns that have a meaning.
        folder: of the queue; ``None`` is ``NAME-relabel`` in the present folder.

    Raises:
        AssayError: the data or a file cannot be read, or the folder cannot be written.
    """
    folder = data_folder(on, folder, "relabel")
    examples = _classified(all_examples(on, named))
    mended = Mended({}, len(examples))
    kept = keep_answers(examples, examples.data.classes, files, folder / ANSWERS, mended.taken)
    settled, mended.lost = applied(examples, examples.data.classes, kept)
    _weigh(mended, examples, settled)
    _write_labels(mended, examples, settled, folder / LABELS)
    _write_copy(mended, examples, settled, on, named, folder)
    return mended


def keep_answers(pool: Pool, classes: Sequence[str], files: Sequence[Path], store: Path, taken: dict[str, Taken]) -> list[Answer]:
    """Read files that came back, and add what is new to the answers that are kept.

    Args:
        pool: the examples that they are about.
        classes: that may be answered.
        files: all are read before anything is written.
        store: of the answers.
        taken: is told what became of each file.

    Returns:
        All answers.
    """
    find, place_of = id_finder(pool.ids), {name: place for place, name in enumerate(pool.ids)}
    kept = load_answers(store)
    read = [(path, read_answers(path, classes, find, taken.setdefault(str(path), Taken()))) for path in files]
    for path, found in read:
        bare = [one for one in found if not one.mark and one.id in place_of]
        marked = dict(zip([one.id for one in bare], pool.marks([place_of[one.id] for one in bare]), strict=True))
        found = [replace(one, mark=one.mark or marked.get(one.id, "")) for one in found]
        kept = add_answers(store, found, taken[str(path)])
    return kept


def _weigh(mended: Mended, examples: Examples, settled: Mapping[int, Settled]) -> None:
    labels, classes = examples.data.train.labels.tolist(), examples.data.classes
    for place, one in sorted(settled.items()):
        name, given = examples.ids[place], classes[labels[place]]
        if one.state == "majority":
            mended.majority.append(name)
        if one.label is None:
            mended.open[name] = one.said
        elif one.label == given:
            mended.kept += 1
        else:
            mended.changed[name] = (given, one.label)


def _write_labels(mended: Mended, examples: Examples, settled: Mapping[int, Settled], out: Path) -> None:
    """A row for every example: its label, what it was, and who said so."""
    labels, classes = examples.data.train.labels.tolist(), examples.data.classes
    rows = []
    for place, name in enumerate(examples.ids):
        given, one = classes[labels[place]], settled.get(place)
        label = given if one is None or one.label is None else one.label
        state = "" if one is None else "open" if one.label is None else "kept" if label == given else "changed"
        rows.append([name, label, given, state, "" if one is None else "; ".join(sorted(one.said))])
    write_rows(out, ("id", "label", "given", "state", "who"), iter([rows]))
    mended.written.append(str(out))


def _write_copy(
    mended: Mended, examples: Examples, settled: Mapping[int, Settled], on: str | Path | Dataset, named: Named, folder: Path
) -> None:
    """A table as it was, but for the labels that were changed."""
    path = Path(on) if isinstance(on, str | Path) else None
    if path is None or not path.is_file() or examples.called != "row" or named.series is not None:
        return
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet", ".pq"):
        return
    if path.stat().st_size > _LARGEST_COPY:
        mended.notes.append(f"{path} is too large to be copied, so that only {LABELS} is written")
        return
    target = examples.material.form.get("target") or examples.material.target.name
    changed = {int(examples.ids[place]): one.label for place, one in settled.items() if examples.ids[place] in mended.changed}
    out = folder / f"{path.stem}-relabelled{path.suffix}"
    if suffix in (".csv", ".tsv"):
        from assay.own.tables import write_like, written

        frame = written(path)
        column = _column(frame, target)
        frame.loc[list(changed), column] = list(changed.values())
        write_atomically(out, lambda temporary: write_like(path, frame, temporary))
    else:
        frame = pd.read_parquet(path)
        column = _column(frame, target)
        values = _as(pd.Series(list(changed.values()), dtype=object), frame[column])
        for row, value in zip(changed, values, strict=True):
            frame.iloc[row - 1, frame.columns.get_loc(column)] = value
        write_atomically(out, lambda temporary: frame.to_parquet(temporary))
    mended.written.append(str(out))


def _column(frame: pd.DataFrame, target: Any) -> Any:
    """The column of this name, which was read with its blanks made one."""
    return next(name for name in frame.columns if " ".join(str(name).split()) == target)


def _as(labels: pd.Series, like: pd.Series) -> list[Any]:
    """Names of classes as values of a column: numbers and truth values are what they were."""
    if pd.api.types.is_bool_dtype(like):
        return [label == "True" for label in labels]
    values = pd.to_numeric(labels).astype(like.dtype) if pd.api.types.is_numeric_dtype(like) and len(labels) else labels
    return list(values)


# ---------------------------------------------------------------------------------------------------- which example it is


def applied(pool: Pool, classes: Collection[str], answers: Sequence[Answer]) -> tuple[dict[int, Settled], int]:
    """What the answers come to for each place, and how many are about nothing that is there.

    An example that was moved (into the folder of its class, or up a few rows) is known by its mark.
    """
    place_of = {name: place for place, name in enumerate(pool.ids)}
    there = sorted({place_of[one.id] for one in answers if one.id in place_of})
    now = dict(zip(there, pool.marks(there), strict=True))
    elsewhere = [one for one in answers if one.mark and (one.id not in place_of or now[place_of[one.id]] != one.mark)]
    by_mark: dict[str, int] = {}
    if elsewhere:
        every = pool.marks(range(len(pool)))
        counts = Counter(every)
        by_mark = {mark: place for place, mark in enumerate(every) if counts[mark] == 1}
    moved, lost = [], 0
    for one in answers:
        place = place_of.get(one.id)
        if place is None or (one.mark and now[place] != one.mark):
            place = by_mark.get(one.mark)
        if place is None or one.answer not in classes:
            lost += 1
        else:
            moved.append(replace(one, id=str(place)))
    return {int(name): one for name, one in settle(moved).items()}, lost


def _relabelled(examples: Examples, labels: Mapping[int, str]) -> Examples:
    """With the labels at these places changed."""
    if not labels:
        return examples
    data = examples.data
    changed = data.train.labels.clone()
    names = {name: code for code, name in enumerate(data.classes)}
    for place, label in labels.items():
        changed[place] = names[label]
    return replace(examples, data=replace(data, train=replace(data.train, labels=changed)))


def _classified(examples: Examples) -> Examples:
    if examples.data.task != "classification":
        raise AssayError(
            f"The target of {examples.data.name} is a number, and people are asked for classes: mend the rows that "
            "`assay suspects` names."
        )
    return examples


def data_folder(on: str | Path | Dataset, folder: Path | None, what: str) -> Path:
    """Where questions and answers are: ``NAME-WHAT`` in the present folder if none is named, and never within the data."""
    if folder is None:
        path = Path(on.name if isinstance(on, Dataset) else on)
        name = path.name or path.resolve().name
        folder = Path(f"{Path(path.stem).stem if is_archive(path) else path.stem if path.is_file() else name}-{what}")
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{folder} is a file: name a folder with --out.")
    if isinstance(on, str | Path) and Path(on).is_dir() and folder.resolve().is_relative_to(Path(on).resolve()):
        raise AssayError(f"{folder} lies in the data, where nothing is to be written: name another folder with --out.")
    return folder
