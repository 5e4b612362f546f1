"""Archives: unpacked once into the cache, with checks, and found again as long as the archive stays the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from assay.data.archives import ARCHIVES, unpack
from assay.errors import AssayError
from assay.own.folders import hidden
from assay.paths import data_dir, folder


def is_archive(path: Path) -> bool:
    """Is it something that :func:`content` unpacks?"""
    return path.name.lower().endswith(ARCHIVES)


def content(archive: Path) -> Path:
    """Where the content of an archive lies: its only file or folder, or the folder of all that is in it.

    Raises:
        AssayError: it is empty, or :func:`assay.data.archives.unpack` refuses it.
    """
    facts = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:16]
    shelf = folder(data_dir() / "unpacked")
    place = shelf / f"{archive.name}-{key}"
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            fresh = Path(tempfile.mkdtemp(prefix=".unpack-", dir=shelf))
            try:
                unpack(archive, fresh)
                os.replace(fresh, place)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    found = place
    while len(inside := [child for child in found.iterdir() if not hidden(child.name)]) == 1:
        (found,) = inside
        if found.is_file():
            return found
    if not inside:
        raise AssayError(f"{archive} is empty: pack what is to be read.")
    return found
