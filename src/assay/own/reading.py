"""Read somebody's own data: one function that looks at what it is given and says what it understood."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import replace
from pathlib import Path

from assay.data import Dataset
from assay.errors import AssayError
from assay.own.folders import hidden, subfolders
from assay.own.material import Material, build
from assay.own.named import Named
from assay.own.preparing import Preparation
from assay.own.unpacked import content, is_archive

_KINDS = "a folder of images or wav files, .csv, .tsv, .parquet, .npz, .ts, a saved Hugging Face dataset, or an archive of these"

_TABLES = (".csv", ".tsv", ".parquet", ".pq")


def read(
    path: str | Path,
    target: str | None = None,
    text: str | None = None,
    group: str | None = None,
    time: str | None = None,
    series: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Read a folder of images or recordings, a table, texts, series or arrays as a data set with splits.

    What it is, is found from the path and the content: a folder with one subfolder of images or wav files for each
    class; a CSV, TSV or
    Parquet table; texts in a column of one; series that lie in the rows of one, or a ``.ts`` file; an ``.npz`` with ``x`` and
    ``y`` (or ``x_train``, ``y_train``, ``x_test``, ``y_test``). Of every 10 examples 7 train, 1 validates and 2 test.
    Gaps, scales and categories of a table are learnt on the training part alone. ``source`` of the data set says what was
    understood and what was repaired.

    Args:
        path: what to read.
        target: column to predict; its values tell classification from regression. May be left out where a column is called
            target, label, class or y, and where the layout tells (folders, ``.npz``, ``.ts``).
        text: column that holds the texts.
        group: column whose equal values stay in one split (patients, authors).
        time: column by which to split: the latest rows are the test. With ``series`` it is the order of the steps instead.
        series: column that says which series a row is a step of.
        seed: of the split.

    Raises:
        AssayError: one sentence that names the file, the place and the mend.
    """
    return understand(path, target, text, group, time, series, seed)[0]


def understand(
    path: str | Path,
    target: str | None = None,
    text: str | None = None,
    group: str | None = None,
    time: str | None = None,
    series: str | None = None,
    seed: int = 0,
) -> tuple[Dataset, Preparation]:
    """What :func:`read` returns, with how its examples were prepared, so that further ones can be made alike."""
    return build(gather(Path(path), Named(target, text, group, time, series)), seed)


def gather(path: Path, named: Named) -> Material:
    """Read without splitting."""
    try:
        return _gather(path, named)
    except OSError as error:
        raise AssayError(f"{path} cannot be read ({error.strerror or error}): mend its permissions, or name another.") from error


def _gather(path: Path, named: Named) -> Material:
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [], n=3)
        raise AssayError(f"There is no {path}: " + (f"did you mean {', '.join(near)}?" if near else "check the path."))
    if path.is_dir():
        return _folder(path, named)
    if is_archive(path):
        return _archive(path, named)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        _only(path, "an .npz file", named, "group", "time")
        from assay.own.arrays import read_npz

        return read_npz(path, named.group, named.time)
    if suffix == ".ts":
        _only(path, "a .ts file", named)
        from assay.own.series import read_ts

        return read_ts(path)
    if suffix in _TABLES:
        from assay.own.tables import read_table

        return read_table(path, named)
    raise AssayError(f"{path} is of no kind that can be read: give {_KINDS}.")


def _archive(path: Path, named: Named) -> Material:
    """What an archive holds; messages name the archive instead of a place in the cache."""
    inside = content(path)
    try:
        return replace(_gather(inside, named), name=path.name)
    except AssayError as error:
        raise AssayError(str(error).replace(str(inside), str(path))) from error


def _folder(path: Path, named: Named) -> Material:
    """A folder is what most of its files are; or what its only table says."""
    from assay.own.audio import OTHER_SUFFIXES, read_audio
    from assay.own.audio import SUFFIXES as SOUNDS
    from assay.own.hub import is_saved, read_saved
    from assay.own.images import SUFFIXES, read_images

    if is_saved(path):
        return read_saved(path, named)
    files = [file for file in path.rglob("*") if file.suffix and not hidden(file.name) and file.is_file()]
    found = Counter(file.suffix.lower() for file in files)
    images, sounds, others = (sum(found[suffix] for suffix in kind) for kind in (SUFFIXES, SOUNDS, OTHER_SUFFIXES))
    if others > images + sounds:
        most = max(OTHER_SUFFIXES, key=lambda suffix: found[suffix])
        raise AssayError(f"The recordings in {path} are {most} files, which are not read: convert them to .wav (ffmpeg does).")
    tables = [file for file in files if file.suffix.lower() in _TABLES and file.parent == path]
    if images + sounds and len(tables) == 1 and (named.target is not None or len(subfolders(path)) < 2):
        return _gather(tables[0], named)  # a table that names the files beside it
    if not images + sounds and (only := _only_file(path, files)) is not None:
        return _gather(only, named)
    _only(path, "a folder of wav files" if sounds > images else "an image folder", named)
    return read_audio(path) if sounds > images else read_images(path)


def _only_file(path: Path, files: list[Path]) -> Path | None:
    """The only data file among these; a .ts file for training and one for the test count as one."""
    found = sorted(file for file in files if file.suffix.lower() in (*_TABLES, ".npz", ".ts"))
    if len({file.with_name(file.name.replace("_TEST", "_TRAIN")) for file in found}) > 1:
        some = ", ".join(str(file.relative_to(path)) for file in found[:4])
        raise AssayError(f"The folder {path} holds several files ({some}{', ...' if len(found) > 4 else ''}): name one of them.")
    return found[0] if found else None


def _only(path: Path, kind: str, named: Named, *allowed: str) -> None:
    refused = [option for option in named.given() if option not in allowed]
    if refused:
        raise AssayError(f"{path} is {kind}, which has no column for {' and '.join(refused)}: leave that out.")
