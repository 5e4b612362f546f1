"""What people said of examples: read from the files that come back, kept in one that only grows, and weighed.

Files come from several people, filled in partly, twice, or through a spreadsheet that has its own ideas of numbers. Whatever is
understood is kept; whatever is not is reported, and stays in the file that it came in, which nobody writes into.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from assay.errors import AssayError
from assay.files import write_atomically

#: Of a page's JSON.
FORMAT = "assay-answers"


@dataclass(frozen=True)
class Answer:
    """One thing that one person said.

    Args:
        id: of the example.
        mark: of its content, ``""`` where the person was not given one.
        answer: the class.
        who: the person.
        when: in UTC, as 2026-01-31T12:00:00+00:00: what somebody says later counts.
        file: the name of the file that it came in.
    """

    id: str
    mark: str
    answer: str
    who: str
    when: str
    file: str


COLUMNS = tuple(entry.name for entry in fields(Answer))


@dataclass
class Taken:
    """What became of a file of answers.

    Args:
        new: answers that were not known.
        repeated: how many were.
        problems: sentences about what was not understood.
    """

    new: list[Answer] = field(default_factory=list)
    repeated: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settled:
    """What the answers about one example come to.

    Args:
        label: the class that most people say; ``None`` where as many say another.
        said: person -> what they said last.
    """

    label: str | None
    said: Mapping[str, str]

    @property
    def state(self) -> Literal["agreed", "majority", "open"]:
        """Whether all say the same, most do, or it has to be decided."""
        if self.label is None:
            return "open"
        return "agreed" if len(set(self.said.values())) == 1 else "majority"


# ---------------------------------------------------------------------------------------------------- reading


def read_answers(path: Path, classes: Sequence[str], find: Callable[[str], str | None], taken: Taken) -> list[Answer]:
    """Read the answers in a file: JSON or CSV that a page gave, or a table that somebody filled in.

    Args:
        path: of the file. A table needs the columns ``id`` and ``answer``; ``mark``, ``who`` and ``when`` are looked at if they
            are there. Else the name of the file stands for the person and its date for the time.
        classes: that may be answered.
        find: what an id of the file is called in the data, ``None`` if there is none: then only an answer with a mark counts,
            by which an example that was moved is found.
        taken: what is not understood is told here.

    Raises:
        AssayError: it is no such file.
    """
    if not path.is_file():
        raise AssayError(f"There is no file {path}: name the answers that came back.")
    rows = _json(path) if path.suffix.lower() == ".json" else _table(path)
    moment = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    found, strange, unknown = [], [], []
    for number, row in enumerate(rows, start=1):
        said = str(row.get("answer") or "").strip()
        if not said:
            continue  # skipped, or not come to yet
        given = str(row.get("id") or "")
        mark = uncell(str(row.get("mark") or "").strip())
        known, label = find(given) or (given if mark else None), _class(said, classes)
        if known is None:
            unknown.append(f"{given!r} (row {number})")
        elif label is None:
            near = difflib.get_close_matches(said, classes, n=1)
            strange.append(f"{said!r} for {given} (row {number}{f'; {near[0]}?' if near else ''})")
        else:
            who = str(row.get("who") or "").strip() or path.stem
            found.append(Answer(known, mark, label, who, _moment(row.get("when")) or moment, path.name))
    if strange:
        taken.problems.append(
            f"{len(strange)} answers in {path.name} are none of the classes: {_some(strange)}; mend and give them again"
        )
    if unknown:
        taken.problems.append(f"{len(unknown)} answers in {path.name} are about examples that are not there: {_some(unknown)}")
    return found


def _json(path: Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise AssayError(f"{path} is no readable JSON ({error}): export it from the page again.") from error
    rows = content.get("answers") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or content.get("format") != FORMAT:
        raise AssayError(f"{path} holds no answers of a page of assay: give the file that its button wrote.")
    who = content.get("who")
    return [{"who": who, **row} if row.get("who") is None else row for row in rows]


def _table(path: Path) -> list[Mapping[str, Any]]:
    from assay.own.tables import written

    frame = written(path)
    frame.columns = [str(name).strip().lower() for name in frame.columns]
    missing = [name for name in ("id", "answer") if name not in frame]
    if missing:
        raise AssayError(f"{path} has no column {' or '.join(missing)}: give the queue with the answers filled in.")
    names = [name for name in ("id", "answer", "mark", "who", "when") if name in frame]
    return [dict(zip(names, row, strict=True)) for row in frame[names].itertuples(index=False)]


def _class(said: str, classes: Sequence[str]) -> str | None:
    """The class that is meant: as written, else without regard to case, else the same number (a spreadsheet writes 7 for 07)."""
    said = uncell(said)
    if said in classes:
        return said
    for same in (lambda one: one.strip().casefold(), _number):
        meant = [name for name in classes if same(name) is not None and same(name) == same(said)]
        if len(meant) == 1:
            return meant[0]
    return None


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def id_finder(ids: Iterable[str]) -> Callable[[str], str | None]:
    """Finds an id as it was written back: with other slashes, an apostrophe before it, or 12.0 for 12."""
    known = set(ids)

    def find(given: str) -> str | None:
        for form in (given, given.strip(), uncell(given.strip()), given.strip().replace("\\", "/")):
            if form in known:
                return form
        number = _number(given)
        whole = str(int(number)) if number is not None and number.is_integer() else None
        return whole if whole in known else None

    return find


def _moment(value: Any) -> str | None:
    """A time in UTC, ``None`` for what is none."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return found.isoformat(timespec="milliseconds")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------------------------------------------- spreadsheets


def cell(text: str) -> str:
    """A text as a spreadsheet may be given it: what it would take for a formula gets an apostrophe before it."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "'") and _number(text) is None else text


def uncell(text: str) -> str:
    """Undo :func:`cell`."""
    return text[1:] if text[:1] == "'" and cell(text[1:]) != text[1:] else text


# ---------------------------------------------------------------------------------------------------- keeping


def load_answers(store: Path) -> list[Answer]:
    """All answers that were kept so far; none where there is no such file.

    Raises:
        AssayError: somebody has changed the file so that it cannot be read any more.
    """
    if not store.exists():
        return []
    with store.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise AssayError(f"{store} is not as assay wrote it: bring back its columns {', '.join(COLUMNS)}.")
    return [Answer(*row) for row in rows[1:]]


def add_answers(store: Path, given: Sequence[Answer], taken: Taken) -> list[Answer]:
    """Append what is new to the answers that are kept; several may do so at once.

    An answer is known already if the person said it of the example at that time, or says now what they said last.

    Args:
        store: the file of the answers, made where there is none.
        given: answers of one file.
        taken: what became of them is told here.

    Returns:
        All answers.

    Raises:
        AssayError: the file cannot be read or written.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store.with_name(f".{store.name}.lock")):
        there = load_answers(store)
        known = {(one.id, one.answer, one.who, one.when) for one in there}
        last = {(one.id, one.who): one for one in sorted(there, key=lambda one: one.when)}
        fresh = []
        for one in sorted(given, key=lambda one: one.when):
            before = last.get((one.id, one.who))
            same = before is not None and before.answer == one.answer and before.mark in ("", one.mark)
            if same or (one.id, one.answer, one.who, one.when) in known:
                taken.repeated += 1
                continue
            fresh.append(one)
            known.add((one.id, one.answer, one.who, one.when))
            if before is None or one.when >= before.when:
                last[one.id, one.who] = one
        taken.new += fresh
        if fresh:
            write_atomically(store, lambda temporary: _write(temporary, [*there, *fresh]))
        return [*there, *fresh]


def _write(path: Path, answers: Sequence[Answer]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(one) for one in answers)


def settle(answers: Iterable[Answer]) -> dict[str, Settled]:
    """Weigh the answers about each example: of each person the last one counts, and of several people the majority."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for one in sorted(answers, key=lambda one: one.when):
        said[one.id][one.who] = one.answer
    found = {}
    for example, by in said.items():
        votes = Counter(by.values()).most_common(2)
        tie = len(votes) > 1 and votes[0][1] == votes[1][1]
        found[example] = Settled(None if tie else votes[0][0], by)
    return found
