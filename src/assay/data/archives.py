"""Read single members of archives in memory, or unpack whole ones into a folder.

An archive with a name that leads outside it is refused, and so is one that would unpack to something else than plain files
and folders, or to more than a bound.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from assay.errors import AssayError

_LIMIT = 512 * 2**20  # bytes; no member that we read is larger

#: What the standard library raises of an archive that is broken, or of another kind than was said.
_SPOILT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)


def read_zip_member(archive: Path, member: str, limit: int = _LIMIT) -> bytes:
    """At most ``limit`` bytes of one member of a zip file (a wheel is one).

    Raises:
        AssayError: if it is no zip file, any of its names leads outside it, or it has no such member.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            _require_inside(archive, bundle.namelist())
            with bundle.open(member) as stream:
                return stream.read(limit)
    except KeyError:
        raise AssayError(f"{archive.name} has no member {member!r}; it is not the archive that was expected.") from None
    except (*_SPOILT, OSError, RuntimeError) as error:
        raise AssayError(f"{archive.name} is no readable zip file ({error}); remove it and fetch it again.") from error


def read_tar_members(archive: Path, members: Iterable[str], limit: int = _LIMIT) -> dict[str, bytes]:
    """Several members of a compressed tar file in one pass; links and devices are refused.

    Raises:
        AssayError: if it is no whole tar file, any of its names leads outside it, or a member is missing.
    """
    wanted = set(members)
    found: dict[str, bytes] = {}
    try:
        with _tar(archive) as bundle:
            for info in bundle:
                _require_inside(archive, [info.name])
                if info.name not in wanted:
                    continue
                stream = bundle.extractfile(info) if info.isreg() else None
                if stream is None or info.size > limit:
                    raise AssayError(f"{archive.name} holds {info.name!r} as something else than a plain file; fetch it again.")
                found[info.name] = stream.read()
    except (*_SPOILT, OSError) as error:
        raise AssayError(f"{archive.name} is no readable tar file ({error}); remove it and fetch it again.") from error
    if wanted - found.keys():
        raise AssayError(f"{archive.name} has no member {min(wanted - found.keys())!r}; it is not the archive that was expected.")
    return found


@dataclass(frozen=True)
class Bounds:
    """What an archive may unpack to.

    Args:
        size: bytes of all files together.
        files: how many.
        ratio: bytes for each byte of the archive, once there are more than ``harmless`` of them.
        harmless: bytes that no ratio is asked of.
    """

    size: int = 100 * 2**30
    files: int = 2_000_000
    ratio: float = 200.0
    harmless: int = 2**30


#: Suffixes of what :func:`unpack` reads; ``.gz`` is a single file.
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".gz")


def unpack(archive: Path, folder: Path, bounds: Bounds | None = None) -> int:
    """Unpack a zip file, a tar file or a single compressed file into a folder.

    Args:
        archive: its suffix (:data:`ARCHIVES`) tells what it is.
        folder: an empty folder; if something is wrong with the archive, part of it may lie there.
        bounds: what is too much.

    Returns:
        Bytes that were written.

    Raises:
        AssayError: it is broken, needs a password, holds links or devices or a name that leads out or occurs twice, or unpacks
            to more than the bounds or the disk allow.
    """
    bounds = bounds or Bounds()
    budget = _Budget(archive, bounds, shutil.disk_usage(folder).free)
    try:
        for name, stream in _members(archive):
            place = folder.joinpath(*PureWindowsPath(name).parts)
            if stream is None:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            budget.file()
            with place.open("xb") as out:
                while block := stream.read(2**20):
                    budget.add(len(block))
                    out.write(block)
    except FileExistsError as error:
        raise AssayError(f"{archive} holds the name {Path(str(error.filename)).name!r} twice: pack it anew.") from error
    except (*_SPOILT, gzip.BadGzipFile) as error:
        raise AssayError(f"{archive} is broken or of another kind than its name says ({error}): pack it anew.") from error
    return budget.size


class _Budget:
    def __init__(self, archive: Path, bounds: Bounds, free: int) -> None:
        self.archive, self.bounds = archive, bounds
        self.size = self.files = 0
        packed = archive.stat().st_size
        self.most = min(bounds.size, max(bounds.harmless, int(bounds.ratio * packed)))
        self.free = free

    def file(self) -> None:
        self.files += 1
        if self.files > self.bounds.files:
            raise AssayError(f"{self.archive} holds more than {self.bounds.files:,} files: give it in smaller parts.")

    def add(self, size: int) -> None:
        self.size += size
        if self.size > self.most:
            raise AssayError(
                f"{self.archive} unpacks to more than {self.most / 2**30:.3g} GB, which is suspiciously much for its size: "
                "unpack it yourself if you trust it, and name the folder."
            )
        if self.size > self.free - 2**28:
            raise AssayError(f"There is no room on the disk to unpack {self.archive}: free some, or set ASSAY_HOME elsewhere.")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names and contents in order; a folder has no content."""
    name = archive.name.lower()
    if name.endswith(".zip"):
        yield from _zip_members(archive)
    elif name.endswith(".gz") and not name.endswith(".tar.gz"):
        with gzip.open(archive) as stream:
            yield archive.name[:-3], cast(IO[bytes], stream)
    else:
        yield from _tar_members(archive)


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as bundle:
        _require_inside(archive, bundle.namelist())
        for info in bundle.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise AssayError(f"{archive} holds {info.filename!r}, a link or device: pack plain files alone.")
            if info.flag_bits & 1:
                raise AssayError(f"{archive} needs a password: unpack it yourself, and name the folder.")
            if info.is_dir():
                yield info.filename, None
            else:
                with bundle.open(info) as stream:
                    yield info.filename, stream


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with _tar(archive) as bundle:
        for info in bundle:
            _require_inside(archive, [info.name])
            if info.isdir():
                yield info.name, None
            elif info.isreg():
                stream = bundle.extractfile(info)
                assert stream is not None
                yield info.name, stream
            else:
                raise AssayError(f"{archive} holds {info.name!r}, a link or device: pack plain files alone.")


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """A tar file, compressed or not, to go through once from the front; whoever goes through it has to go to its end.

    ``tarfile`` alone takes an archive that was cut off for one that ends there, and does not look at checksums.
    """
    with ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(archive.open("rb"))
        head = stream.read(6)
        stream.seek(0)
        for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
            if head.startswith(magic):
                stream = cast(IO[bytes], stack.enter_context(opened(stream, "rb")))
        bundle = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        yield bundle
        source = cast(IO[bytes], bundle.fileobj)
        if source.tell() - bundle.offset < tarfile.BLOCKSIZE:  # the block of zeros was not seen that follows the last member
            raise tarfile.ReadError("it ends too early")
        while source.read(2**20):  # what pads it; a decompressor checks its sum at the end
            pass


def _require_inside(archive: Path, names: Iterable[str]) -> None:
    for name in names:
        outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or PureWindowsPath(name).drive
        if outside or ".." in PureWindowsPath(name).parts:
            raise AssayError(f"{archive.name} holds the name {name!r}, which leads outside the archive; do not use this file.")
