"""Where assay keeps things: downloaded data, trainings, saved runs and the ledger.

``ASSAY_HOME`` names one folder for all of it. Without it, data and trainings lie in the user's cache folder (they can
be made again); the ledger and saved runs in the user's data folder (they cannot). ``ASSAY_LEDGER`` is a database URL, for
those who share a ledger between machines.

The environment is read at every call, so that a test or a notebook can point assay elsewhere at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from assay.errors import AssayError


def home() -> Path | None:
    """The folder that ``ASSAY_HOME`` names, or ``None`` where the user's own cache and data folders are used."""
    value = os.environ.get("ASSAY_HOME", "").strip()
    return Path(value).expanduser().absolute() if value else None


def folder(path: Path) -> Path:
    """Make a folder, with those above it.

    Raises:
        AssayError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssayError(f"{path} cannot be made ({error.strerror}): set ASSAY_HOME to a folder that can be written.") from error
    return path


def data_dir() -> Path:
    """Folder of downloaded data sets; it is created when the first file is written."""
    return (home() or user_cache_path("assay", appauthor=False)) / "data"


def trained_dir() -> Path:
    """Folder of memoised trainings and other memoised work."""
    return (home() or user_cache_path("assay", appauthor=False)) / "trained"


def runs_dir() -> Path:
    """Folder of the networks that people keep."""
    return (home() or user_data_path("assay", appauthor=False)) / "runs"


def shared_cache_url() -> str | None:
    """Folder or URL of trainings that several machines share: ``ASSAY_CACHE``, or ``None``."""
    return os.environ.get("ASSAY_CACHE", "").strip() or None


def ledger_url() -> str:
    """SQLAlchemy URL of the ledger: ``ASSAY_LEDGER``, else a SQLite file. The folder of the file is made on the way."""
    value = os.environ.get("ASSAY_LEDGER", "").strip()
    if value:
        return value
    place = folder(home() or user_data_path("assay", appauthor=False))
    return f"sqlite:///{(place / 'ledger.sqlite').as_posix()}"
