"""Read somebody's own data: one function that looks at what it is given and says what it understood."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path

from assay.data import Dataset
from assay.errors import AssayError
from assay.own.folders import hidden
from assay.own.material import Material, build
from assay.own.named import Named
from assay.own.preparing import Preparation

_KINDS = "a folder of images or wav files, .csv, .tsv, .parquet, .npz, .ts, or a saved Hugging Face dataset"


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
    suffix = path.suffix.lower()
    if suffix == ".npz":
        _only(path, "an .npz file", named, "group", "time")
        from assay.own.arrays import read_npz

        return read_npz(path, named.group, named.time)
    if suffix == ".ts":
        _only(path, "a .ts file", named)
        from assay.own.series import read_ts

        return read_ts(path)
    if suffix in (".csv", ".tsv", ".parquet", ".pq"):
        from assay.own.tables import read_table

        return read_table(path, named)
    raise AssayError(f"{path} is of no kind that can be read: give {_KINDS}.")


def _folder(path: Path, named: Named) -> Material:
    """A folder is what most of its files are."""
    from assay.own.hub import is_saved, read_saved

    if is_saved(path):
        return read_saved(path, named)
    from assay.own.audio import OTHER_SUFFIXES, read_audio
    from assay.own.audio import SUFFIXES as SOUNDS
    from assay.own.images import SUFFIXES, read_images

    found = Counter(file.suffix.lower() for file in path.rglob("*") if not hidden(file.name))
    images, sounds, others = (sum(found[suffix] for suffix in kind) for kind in (SUFFIXES, SOUNDS, OTHER_SUFFIXES))
    if others > images + sounds:
        most = max(OTHER_SUFFIXES, key=lambda suffix: found[suffix])
        raise AssayError(f"The recordings in {path} are {most} files, which are not read: convert them to .wav (ffmpeg does).")
    _only(path, "a folder of wav files" if sounds > images else "an image folder", named)
    return read_audio(path) if sounds > images else read_images(path)


def _only(path: Path, kind: str, named: Named, *allowed: str) -> None:
    refused = [option for option in named.given() if option not in allowed]
    if refused:
        raise AssayError(f"{path} is {kind}, which has no column for {' and '.join(refused)}: leave that out.")
