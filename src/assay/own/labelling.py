"""``assay label``: label a large pool for one category with few answers of people (the paper ``lsun``).

    found = label_pool("pool/", "bag")                                    # writes the questions of the first round
    found = label_pool("pool/", "bag", answers=[Path("anna.json")])       # takes them back, writes those of the next

The procedure is :class:`assay.papers.dataset.lsun.AmplifiedLabeling` with people to ask. It keeps no state but their answers:
each time it is done again from the beginning, with the same draws, until it asks about something that nobody has answered yet.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own import simple
from assay.own.answers import Taken
from assay.own.examples import Pool, unlabelled
from assay.own.named import Named
from assay.own.preparing import fit
from assay.own.relabelling import ANSWERS, LABELS, PAGE, QUEUE, applied, data_folder, keep_answers
from assay.own.review import Item, Questions
from assay.own.writing import write_rows
from assay.papers.dataset.lsun import AmplifiedLabeling, Round, kernel_classifier

UNSURE = "cannot tell"


@dataclass
class Labelled:
    """How far the labelling of a pool is.

    Args:
        data: one line about the pool.
        category: that is looked for.
        folder: where everything is written.
        count: examples in the pool.
        rounds: that are over.
        answered: examples that people have answered about.
        positives: examples of the category, so far.
        negatives: others, so far.
        decided: of both, what the model decided.
        ask: questions of the next round that nobody has answered; 0 when all is over.
        promised: share of right ones among the positives that the model decides, and share of positives that a round may lose.
        taken: file -> what became of its answers.
        lost: answers about nothing that is there.
        written: the files.
    """

    data: str
    category: str
    folder: Path
    count: int
    rounds: list[Round]
    answered: int
    positives: int
    negatives: int
    decided: int
    ask: int
    promised: tuple[float, float]
    taken: dict[str, Taken] = field(default_factory=dict)
    lost: int = 0
    written: list[str] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """Share of the positives that the rounds so far have not lost, if they lost no more than they may."""
        deciding = sum(math.isfinite(one.low) for one in self.rounds)
        return float((1 - self.promised[1]) ** deciding)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rounds = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(one).items()
            }
            for one in self.rounds
        ]
        plain = {name: getattr(self, name) for name in ("data", "category", "count", "answered", "positives", "negatives")}
        return plain | {
            "decided_by_model": self.decided,
            "ask": self.ask,
            "rounds": rounds,
            "promised_precision": self.promised[0],
            "promised_recall": self.kept,
            "files": {
                name: {"new": len(one.new), "repeated": one.repeated, "problems": one.problems}
                for name, one in self.taken.items()
            },
            "not_applied": self.lost,
            "written": self.written,
        }


class _NotAnswered(Exception):
    """Somebody has to be asked first."""

    def __init__(self, places: NDArray[np.int64]) -> None:
        super().__init__()
        self.places = places


def label_pool(
    on: str | Path,
    category: str,
    answers: Sequence[Path] = (),
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    folder: Path | None = None,
    batch: int = 200,
    test_batch: int = 300,
    precision: float = 0.95,
    miss: float = 0.01,
    max_rounds: int = 8,
    seed: int = 0,
) -> Labelled:
    """Go as far as the answers reach, and write the next questions and the labels so far.

    Args:
        on: what :func:`assay.own.examples.unlabelled` reads.
        category: what to look for, in a word or two.
        answers: files that came back.
        named: columns that have a meaning; a target is left out.
        folder: of questions, answers and labels; ``None`` is ``NAME-label-CATEGORY`` in the present folder.
        batch: questions of a round to learn from. These four and the seed have to stay the same from round to round.
        test_batch: questions of a round to test on; with fewer than 52 positives among them no precision of 95 % is proven.
        precision: promised for the positives that the model decides.
        miss: share of the positives that a round may lose.
        max_rounds: at most.
        seed: of the draws.

    Raises:
        AssayError: the pool or a file cannot be read, or the folder cannot be written.
    """
    category = " ".join(category.split())
    classes = (category, f"not {category}", UNSURE)
    if not category or category == UNSURE:
        raise AssayError("Name what to look for with --category, as `--category bag`.")
    if min(batch, test_batch) < 1 or not 0 < precision < 1 or not 0 <= miss < 1:
        raise AssayError(
            "A round needs questions to learn from and to test on, and shares between 0 and 1: see `assay label --help`."
        )
    slug = re.sub(r"\W+", "-", category).strip("-") or "category"
    folder = data_folder(on, folder, f"label-{slug}")
    pool = unlabelled(on, named)
    taken: dict[str, Taken] = {}
    kept = keep_answers(pool, classes, answers, folder / ANSWERS, taken)
    settled, lost = applied(pool, classes, kept)
    # What people do not agree on, or cannot tell, is left alone, as in the paper.
    meant = {category: 1, classes[1]: 0, UNSURE: -1, None: -1}
    known = {place: meant[one.label] for place, one in settled.items()}

    def ask(places: NDArray[np.int64]) -> NDArray[np.int64]:
        missing = np.array([place for place in places.tolist() if place not in known], dtype=np.int64)
        if len(missing):
            raise _NotAnswered(missing)
        return np.array([known[place] for place in places.tolist()], dtype=np.int64)

    model = AmplifiedLabeling(
        _estimator(pool.kind), ask, precision, miss, batch, test_batch, max_rounds=max_rounds, random_state=seed
    )
    asked: NDArray[np.int64] = np.zeros(0, np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few examples in the first rounds
            model.fit(_vectors(pool))
    except _NotAnswered as error:
        asked = error.places
    labels, by_people = model.labels_.copy(), np.zeros(len(pool), dtype=bool)
    for place, answer in known.items():  # also what has not been drawn yet
        labels[place], by_people[place] = {1: 1, 0: -1, -1: 0}[answer], True
    found = Labelled(
        data=f"{pool.material.name}: {len(pool)} {pool.material.what}",
        category=category,
        folder=folder,
        count=len(pool),
        rounds=model.rounds_,
        answered=len(known),
        positives=int((labels == 1).sum()),
        negatives=int((labels == -1).sum()),
        decided=int((labels[~by_people] != 0).sum()),
        ask=len(asked),
        promised=(precision, miss),
        taken=taken,
        lost=lost,
    )
    _write(found, pool, classes, labels, by_people, asked)
    return found


def _write(
    found: Labelled,
    pool: Pool,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    by_people: NDArray[np.bool_],
    asked: NDArray[np.int64],
) -> None:
    words = {1: classes[0], -1: classes[1], 0: ""}
    who = ["" if not label else "people" if person else "model" for label, person in zip(labels, by_people, strict=True)]
    rows = [[name, words[label], by] for name, label, by in zip(pool.ids, labels.tolist(), who, strict=True)]
    write_rows(found.folder / LABELS, ("id", "label", "by"), iter([rows]))
    places = asked.tolist()
    items = [Item(place, pool.ids[place], mark) for place, mark in zip(places, pool.marks(places), strict=True)]
    keys = dict(zip("ync", classes, strict=True))
    page, table = found.folder / PAGE, found.folder / QUEUE
    Questions(f"Is it {found.category}?", pool, classes, tuple(items), keys).write(page, table)
    found.written = [str(found.folder / LABELS), *([str(page), str(table)] if items else [])]


def _estimator(kind: str) -> Any:
    """What learns from answers about such data within seconds."""
    if kind == "text":
        return simple.learners(kind, True, 0)["logistic regression"]
    return simple.learners(kind, True, 0)["a random forest"] if kind == "table" else kernel_classifier()


def _vectors(pool: Pool) -> Any:
    """What the model sees of the pool: a matrix of N rows; of pictures, sounds and series with unit variance on the whole."""
    rows, material = np.arange(len(pool)), pool.material
    found = simple.vectors(fit(material.inputs, rows, material.form)(material.inputs), pool.kind, rows)
    return found if pool.kind in ("text", "table") else found / max(float(found.std()), 1e-12)
