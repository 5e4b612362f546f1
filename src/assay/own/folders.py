"""Files in folders: one folder for each class, perhaps below train and test; or paths in a column of a table.

What is in the files is somebody else's business (:mod:`assay.own.images`, :mod:`assay.own.audio`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.own.limits import of_each_class, sampled

#: Up to this share of unreadable files is left out (and said); more, and something is wrong with the folder.
MOST_BROKEN = 0.05
_PARTS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Files:
    """Files with what is known about each.

    Args:
        root: the folder that all of them lie in.
        paths: where they are; or what is in them, where that is known already.
        target: (N,) the name of each one's class, or whatever a table says of it; the index says where each stands.
        parts: ``"train"``, ``"valid"`` or ``"test"`` for each, where they lie in such folders.
        notes: what was left out.
    """

    root: Path
    paths: Sequence[Path | bytes]
    target: pd.Series
    parts: NDArray[np.str_] | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, place: int) -> str:
        """How a message calls the file at ``place``."""
        path = self.paths[place]
        return f"row {self.target.index[place]}" if isinstance(path, bytes) else short(path, self.root)

    @property
    def places(self) -> tuple[Path, ...] | None:
        """Where each lies; ``None`` where only the content is known."""
        there = tuple(path for path in self.paths if isinstance(path, Path))
        return there if len(there) == len(self) else None

    def take(self, kept: NDArray[np.int64]) -> Files:
        """Those at ``kept``."""
        return replace(
            self,
            paths=[self.paths[place] for place in kept],
            target=self.target.iloc[kept],
            parts=None if self.parts is None else self.parts[kept],
        )

    def within(self, wanted: int, what: str) -> Files:
        """About ``wanted`` of them, each class in proportion, drawn at random; all if there are no more."""
        if len(self) <= wanted:
            return self
        few = self.take(of_each_class(self.target.astype(str).to_numpy(dtype=object), wanted))
        self.notes.append(sampled(len(few), len(self), what))
        return few

    def refuse_many(self, broken: Collection[int], what: str) -> None:
        """Raise an :class:`AssayError` if more than a few are broken."""
        if len(broken) > max(1, MOST_BROKEN * len(self)) or len(broken) == len(self):
            some = ", ".join(self.name(place) for place in sorted(broken)[:3])
            raise AssayError(
                f"{len(broken)} of {len(self)} {what} in {self.root} cannot be read ({some}): replace or remove them."
            )

    def without(self, broken: Collection[int], what: str) -> Files:
        """Those that could be read; the others are noted.

        Raises:
            AssayError: more than a few could not.
        """
        if not broken:
            return self
        self.refuse_many(broken, what)
        some = ", ".join(self.name(place) for place in sorted(broken)[:3])
        self.notes.append(f"{len(broken)} unreadable files left out ({some})")
        return self.take(np.array([place for place in range(len(self)) if place not in broken], dtype=np.int64))


def in_class_folders(folder: Path, suffixes: Collection[str], what: str) -> Files:
    """Files in the subfolders of ``folder``, whose names are the classes.

    Args:
        folder: where to look; if all of its folders are called train, valid or test, these are the splits.
        suffixes: of the files that count, in lower case.
        what: they are, in the plural.

    Raises:
        AssayError: there are none, they are in no class folders, or a link leads out of the folder.
    """
    parts = {child.name: part for child in subfolders(folder) if (part := part_of(child.name)) is not None}
    split = "train" in parts.values() and len(set(parts.values())) > 1 and len(parts) == len(subfolders(folder))
    paths, classes, where = [], [], []
    for base, part in [(folder / name, part) for name, part in parts.items()] if split else [(folder, "")]:
        for child in subfolders(base):
            found = files_below(child, suffixes, folder)
            paths += found
            classes += [child.name] * len(found)
            where += [part] * len(found)
    if not paths:
        raise AssayError(_nothing(folder, suffixes, what))
    notes: list[str] = []
    splits = parts_of(np.array(where), notes, "folder") if split else None
    loose = sum(path.suffix.lower() in suffixes and not path.name.startswith(".") for path in folder.iterdir() if path.is_file())
    if loose:
        notes.append(f"{loose} {what} outside of the class folders left out")
    target = pd.Series(classes, dtype=object, index=[short(path, folder) for path in paths])
    return Files(folder, paths, target, splits, notes)


def part_of(name: str) -> str | None:
    """``"train"``, ``"valid"`` or ``"test"``, if that is what a folder or split of this name is."""
    return _PARTS.get(name.lower())


def parts_of(where: NDArray[np.str_], notes: list[str], what: str) -> NDArray[np.str_]:
    """Parts (N,) as they are used: without a test, the validation part is it (and that is noted)."""
    if "test" in where:
        return where
    notes.append(f"the validation {what} is the test, as there is no other")
    return np.where(where == "valid", "test", where)


def in_column(table: Path, column: pd.Series, target: pd.Series) -> Files:
    """Files that a column of a table names, relative to the folder of the table; their target keeps the number of its row.

    Args:
        table: the file of the table, for messages.
        column: (N,) paths, indexed by row number.
        target: (N,) what is to be predicted.

    Raises:
        AssayError: a path leads out of the folder, or more than a few files are not there.
    """
    root = table.parent
    inside = root.resolve()
    paths = [root / str(name).strip().replace("\\", "/") for name in column]
    for row, path in zip(column.index, paths, strict=True):
        if not path.resolve().is_relative_to(inside):
            raise AssayError(f"Row {row} of {table} names {path}, which leads out of {root}: give paths within that folder.")
    there = np.array([path.is_file() for path in paths])
    notes: list[str] = []
    if not there.all():
        first = int(np.flatnonzero(~there)[0])
        missing = int((~there).sum())
        if missing > max(1, MOST_BROKEN * len(paths)) or missing == len(paths):
            raise AssayError(
                f"{missing} of {len(paths)} files that column {column.name!r} of {table} names are not there "
                f"(first: {column.iloc[first]!r}, row {column.index[first]}): put them there, or mend the column."
            )
        notes.append(f"{missing} rows whose file is not there left out (first: row {column.index[first]})")
    rows = np.flatnonzero(there)
    return Files(root, [paths[row] for row in rows], target.iloc[rows], None, notes)


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, in order, without hidden ones."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not hidden(child.name))


def hidden(name: str) -> bool:
    """Is it what an operating system leaves behind?"""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def files_below(folder: Path, suffixes: Collection[str], root: Path | None = None) -> list[Path]:
    """Files with these suffixes below ``folder``, in order; a link may lead elsewhere within ``root`` only.

    Args:
        folder: where to look.
        suffixes: in lower case, with the dot.
        root: ``None`` is the folder itself.

    Raises:
        AssayError: a link leads out.
    """
    root = root or folder
    inside, found = root.resolve(), []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted([*folders, *names]):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise AssayError(f"{path} is a link that leads out of {root}: remove it, or copy there what it points to.")
        found += [Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in suffixes and not hidden(name)]
    if folder.is_symlink() and not folder.resolve().is_relative_to(inside):
        raise AssayError(f"{folder} is a link that leads out of {root}: remove it, or copy there what it points to.")
    return found


def short(path: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _nothing(folder: Path, suffixes: Collection[str], what: str) -> str:
    names = [path for path in folder.rglob("*") if path.is_file()]
    if not names:
        return f"The folder {folder} is empty: give it one subfolder of images or recordings for each class."
    if any(path.suffix.lower() in suffixes for path in names):
        return f"The {what} in {folder} are in no class folders: put those of each class into a subfolder of its name."
    return f"The folder {folder} holds no {what} ({names[0].name}, ...): name the file to read, or give it class folders."
