"""Bring the files of a data set onto this machine: from a mirror, from the canonical address, or through pip.

A file is written beside its place, its sha256 is compared, and only then it is moved there, under a lock: nobody ever
sees a broken file, and two processes that want the same one download it once.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from assay.data.archives import read_zip_member
from assay.data.registry import Entry, File, find
from assay.errors import AssayError
from assay.paths import data_dir

_LOG = logging.getLogger("assay.data")
_TIMEOUT = 30  # seconds without a byte before an address is given up


def fetch(name: str) -> list[Path]:
    """Make a data set be on this machine and say where its files are (none for embedded sets)."""
    return [place for _, place in fetch_entry(find(name))]


def fetch_entry(entry: Entry) -> list[tuple[File, Path]]:
    """The files of an entry with their verified places; the shortcut instead of them where one is at hand."""
    short = entry.shortcut
    if short is not None and not all((data_dir() / file.path).is_file() for file in entry.files):
        place = _obtain(short, or_none=True)
        if place is not None:
            return [(short, place)]
    return [(file, fetch_file(file)) for file in entry.files]


def fetch_file(file: File) -> Path:
    """The verified place of one file, which is fetched if it is not there.

    Raises:
        AssayError: if the file on this machine is not the one it should be (it is removed), or nobody has it.
    """
    place = _obtain(file, or_none=False)
    assert place is not None
    return place


def _obtain(file: File, *, or_none: bool) -> Path | None:
    place = data_dir() / file.path
    if place.is_file():
        _require_untouched(file, place)
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if place.is_file():  # somebody else fetched it while we waited
                _require_untouched(file, place)
                return place
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=place.parent) as folder:
                failures = []
                for way in _ways(file):
                    arrived = Path(folder) / "arrived"
                    _LOG.info("Fetching %s (%.1f MB) from %s", file.path, file.size / 1e6, way)
                    try:
                        _bring(way, arrived, file)
                    except _NotThere as reason:
                        failures.append(f"{way}: {reason}")
                        continue
                    found = sha256_of(arrived)
                    if found == file.sha256:
                        os.replace(arrived, place)
                        return place
                    failures.append(f"{way}: its sha256 is {found} instead of {file.sha256}, so it was thrown away")
    except OSError as error:
        raise AssayError(f"{place} cannot be written ({error}); set ASSAY_HOME to a folder that can.") from error
    if or_none:
        return None
    raise AssayError(
        f"{file.path} could not be fetched [{'; '.join(failures) or 'no address is known'}]; "
        f"check the network, set ASSAY_MIRROR to a folder or URL that has it, or put the file at {place}."
    )


class _NotThere(Exception):
    """One way to a file did not lead to it; the text says why."""


def _ways(file: File) -> Iterator[str]:
    mirror = os.environ.get("ASSAY_MIRROR", "").strip()
    if mirror:
        # A compressed file inside a mirror is the exception, so the plain name is tried first.
        names = dict.fromkeys([file.path, *file.mirror, f"{file.path}.gz"])
        yield from (f"{mirror.rstrip('/')}/{name}" for name in names)
    yield from file.urls


def _bring(way: str, arrived: Path, file: File) -> None:
    """Write what is at ``way`` to ``arrived``: a path or URL, perhaps with ``!member``, or ``pip:NAME==VERSION``."""
    if way.startswith("pip:"):
        _bring_by_pip(way.removeprefix("pip:"), arrived)
        return
    container, _, member = way.partition("!")
    plain = not member and container.endswith(Path(file.path).name)
    target = arrived if plain else arrived.with_name("container")
    if urlsplit(container).scheme in ("http", "https"):
        _download(container, target)
    elif Path(container).is_file():
        shutil.copyfile(container, target)
    else:
        raise _NotThere("no such file")
    if plain:
        return
    try:
        # One byte more than expected is enough to see that it is wrong; a bomb is never unpacked.
        if member:
            content = read_zip_member(target, member, limit=file.size + 1)
        else:
            with gzip.open(target) as stream:
                content = stream.read(file.size + 1)
    except (OSError, EOFError, zlib.error, AssayError) as error:
        raise _NotThere(str(error)) from error
    arrived.write_bytes(content)


def _download(url: str, target: Path) -> None:
    import pooch
    import requests

    try:
        pooch.HTTPDownloader(progressbar=False, timeout=_TIMEOUT)(url, str(target), None)
    except requests.RequestException as error:
        target.unlink(missing_ok=True)
        answer = getattr(error.response, "status_code", None)
        raise _NotThere(f"the server answered {answer}" if answer else f"{type(error).__name__}") from error


def _bring_by_pip(requirement: str, arrived: Path) -> None:
    """Let the user's own pip fetch an archive, with their index, proxy and certificates; nothing is installed."""
    with tempfile.TemporaryDirectory(prefix="assay-pip-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += [
            "--ignore-requires-python",
            "--disable-pip-version-check",
            "--no-input",
            "--dest",
            folder,
            requirement,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _NotThere(f"pip did not finish ({type(error).__name__})") from error
        archives = list(Path(folder).glob("*.whl"))
        if done.returncode or len(archives) != 1:
            if "No module named pip" in done.stderr:
                raise _NotThere(f"this Python has no pip; `{Path(sys.executable).name} -m ensurepip` installs it")
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise _NotThere(f"pip says {lines[-1].removeprefix('ERROR: ') if lines else 'nothing'}")
        shutil.copyfile(archives[0], arrived)


def sha256_of(place: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_untouched(file: File, place: Path) -> None:
    found = sha256_of(place)
    if found != file.sha256:
        place.unlink(missing_ok=True)
        raise AssayError(
            f"{place} was changed (its sha256 is {found} instead of {file.sha256}) and has been removed; "
            "run again to fetch it anew."
        )
