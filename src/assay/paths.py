"""Where assay keeps things: downloaded data, trainings and the ledger.

``ASSAY_HOME`` names one folder for all of it. Without it, data and trainings lie in the user's cache folder (they can
be made again) and the ledger in the user's data folder (it cannot). ``ASSAY_LEDGER`` is a database URL, for those who
share a ledger between machines.

The environment is read at every call, so that a test or a notebook can point assay elsewhere at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def home() -> Path | None:
    """The folder that ``ASSAY_HOME`` names, or ``None`` where the user's own cache and data folders are used."""
    value = os.environ.get("ASSAY_HOME", "").strip()
    return Path(value).expanduser().absolute() if value else None


def data_dir() -> Path:
    """Folder of downloaded data sets; it is created when the first file is written."""
    return (home() or user_cache_path("assay", appauthor=False)) / "data"


def trained_dir() -> Path:
    """Folder of memoised trainings and other memoised work."""
    return (home() or user_cache_path("assay", appauthor=False)) / "trained"


def ledger_url() -> str:
    """SQLAlchemy URL of the ledger: ``ASSAY_LEDGER``, else a SQLite file. The folder of the file is made on the way."""
    value = os.environ.get("ASSAY_LEDGER", "").strip()
    if value:
        return value
    folder = home() or user_data_path("assay", appauthor=False)
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(folder / 'ledger.sqlite').as_posix()}"
