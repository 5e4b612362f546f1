"""Read single members of archives in memory.

Nothing is unpacked to disk, and an archive with a name that leads outside it is refused.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from assay.errors import AssayError

_LIMIT = 512 * 2**20  # bytes; no member that we read is larger


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
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise AssayError(f"{archive.name} is no readable zip file ({error}); remove it and fetch it again.") from error


def read_tar_members(archive: Path, members: Iterable[str], limit: int = _LIMIT) -> dict[str, bytes]:
    """Several members of a compressed tar file in one pass; links and devices are refused.

    Raises:
        AssayError: if it is no tar file, any of its names leads outside it, or a member is missing.
    """
    wanted = set(members)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as bundle:
            for info in bundle:
                _require_inside(archive, [info.name])
                if info.name not in wanted:
                    continue
                stream = bundle.extractfile(info) if info.isreg() else None
                if stream is None or info.size > limit:
                    raise AssayError(f"{archive.name} holds {info.name!r} as something else than a plain file; fetch it again.")
                found[info.name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise AssayError(f"{archive.name} is no readable tar file ({error}); remove it and fetch it again.") from error
    if wanted - found.keys():
        raise AssayError(f"{archive.name} has no member {min(wanted - found.keys())!r}; it is not the archive that was expected.")
    return found


def _require_inside(archive: Path, names: Iterable[str]) -> None:
    for name in names:
        outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or PureWindowsPath(name).drive
        if outside or ".." in PureWindowsPath(name).parts:
            raise AssayError(f"{archive.name} holds the name {name!r}, which leads outside the archive; do not use this file.")
