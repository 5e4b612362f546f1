"""Archives are unpacked once, read as what they hold, and refused when they would do harm."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from assay.data.archives import Bounds, read_tar_members, unpack
from assay.errors import AssayError
from assay.own import read
from assay.own.unpacked import content


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    """Every test has a cache of its own."""


def photos(folder: Path) -> Path:
    for number, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for place in range(8):
            Image.new("L", (8, 8), 100 * number + place).save(folder / name / f"{place}.png")
    return folder


def packed(folder: Path, name: str) -> Path:
    """The content of a folder in an archive beside it, below a folder of its name as most people pack."""
    archive = folder.parent / name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.mkdir(f"{folder.name}/")
            for path in files:
                bundle.write(path, path.relative_to(folder.parent))
            bundle.writestr("__MACOSX/._photos", "rubbish")
    else:
        with tarfile.open(archive, f"w:{name.rpartition('.')[2].replace('tar', '').replace('tgz', 'gz')}") as bundle:
            bundle.add(folder, folder.name)
    return archive


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz", "photos.tar.xz"])
def test_images_in_an_archive_are_those_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = photos(tmp_path / "photos")
    data = read(packed(folder, name))
    assert data.fingerprint == read(folder).fingerprint
    assert data.source.startswith(f"{name}: 16 grey images")


def test_it_is_unpacked_once_as_long_as_it_stays_the_same(tmp_path: Path) -> None:
    archive = packed(photos(tmp_path / "photos"), "photos.zip")
    place = content(archive)
    (place / "mark").touch()
    assert content(archive) == place
    assert (place / "mark").exists()
    with zipfile.ZipFile(archive, "a") as bundle:
        bundle.writestr("photos/c/0.png", b"")
    assert content(archive) != place


def test_a_table_alone_and_one_that_names_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    photos(folder / "files")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    frame = pd.DataFrame({"file": names, "age": np.arange(16) / 3})
    frame.to_csv(folder / "ages.csv", index=False)
    assert read(packed(folder, "set.zip"), "age").task == "regression"
    assert read(packed(folder, "set.zip"), "age").input_shape == (1, 8, 8)
    table = pd.DataFrame({"x": np.arange(40.0), "y": [0, 1] * 20}).to_csv(index=False)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    assert len(read(tmp_path / "a.csv.gz").test) == 8
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr("a.csv", table)
    assert len(read(tmp_path / "a.zip").test) == 8


def test_series_for_training_and_test_in_an_archive(tmp_path: Path) -> None:
    rows = "".join(f"1,2,{n}:{'up' if n % 2 else 'down'}\n" for n in range(12))
    with zipfile.ZipFile(tmp_path / "Move.zip", "w") as bundle:
        for part in ("TRAIN", "TEST"):
            bundle.writestr(f"Move_{part}.ts", f"@classLabel true up down\n@data\n{rows}")
    assert len(read(tmp_path / "Move.zip").test) == 12


# ---------------------------------------------------------------------------------------------------- what is refused


def _zip(*entries: tuple[str, bytes], mode: int = 0) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, text in entries:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                bundle.writestr(info, text, zipfile.ZIP_DEFLATED)
        return folder / "a.zip"

    return make


def _tar(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w") as bundle:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
            bundle.addfile(info, io.BytesIO(b"abc"))
        return folder / "a.tar"

    return make


def _password(folder: Path) -> Path:
    archive = _zip(("a.csv", b"x,y\n"))(folder)
    content = bytearray(archive.read_bytes())
    for head, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(head) + place] |= 1
    archive.write_bytes(content)
    return archive


def _cut(folder: Path) -> Path:
    archive = packed(photos(folder / "photos"), "a.tar.gz")
    archive.write_bytes(archive.read_bytes()[:500])
    return archive


def _damaged(folder: Path) -> Path:
    archive = _zip(("a.csv", b"x,y\n1,2\n" * 100))(folder)
    content = bytearray(archive.read_bytes())
    content[45] ^= 0xFF
    archive.write_bytes(content)
    return archive


def _named(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


HARM = [
    (_zip(("../evil.csv", b"x")), r"a\.zip holds the name '\.\./evil\.csv', which leads outside"),
    (_zip(("/etc/evil.csv", b"x")), r"leads outside"),
    (_zip(("C:\\evil.csv", b"x")), r"leads outside"),
    (_zip(("a\\..\\..\\evil.csv", b"x")), r"leads outside"),
    (_zip(("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), r"'link', a link or device"),
    (_zip(("a.csv", b"1"), ("a.csv", b"2")), r"holds the name 'a\.csv' twice"),
    (_tar("../evil.csv"), r"leads outside"),
    (_tar("link", tarfile.SYMTYPE, "/etc/passwd"), r"'link', a link or device"),
    (_tar("link", tarfile.LNKTYPE, "a.csv"), r"'link', a link or device"),
    (_tar("disk", tarfile.BLKTYPE), r"'disk', a link or device"),
    (_tar("pipe", tarfile.FIFOTYPE), r"'pipe', a link or device"),
    (_password, r"needs a password"),
    (_cut, r"a\.tar\.gz is broken or of another kind"),
    (_damaged, r"a\.zip is broken or of another kind"),
    (_named("a.zip", b"no archive"), r"a\.zip is broken or of another kind"),
    (_named("a.tar.gz", b"no archive"), r"a\.tar\.gz is broken or of another kind"),
    (_named("a.csv.gz", b"no archive"), r"a\.csv\.gz is broken or of another kind"),
    (_zip(), r"a\.zip is empty"),
    (_zip(("readme.txt", b"hello")), r"a\.zip is of no kind that can be read"),
    (_zip(("a.csv", b"x,y\n"), ("b.csv", b"x,y\n")), r"a\.zip holds several files \(a\.csv, b\.csv\): name one"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("make", "words"), HARM)
def test_harm_is_refused_in_one_sentence(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(AssayError, match=words) as caught:
        read(make(tmp_path / "in"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "home") not in str(caught.value)
    assert not list(tmp_path.rglob("evil.csv"))
    assert not list((tmp_path / "home").rglob(".unpack-*"))


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_a_tar_file_cut_off_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    """Also where its members happen to end, which the standard library takes for the end of the archive."""
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    with tarfile.open(whole, f"w:{kind}") as bundle:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = 700
            bundle.addfile(info, io.BytesIO(bytes([number + 1]) * info.size))
    content = whole.read_bytes()
    (tmp_path / "out").mkdir()
    assert unpack(whole, tmp_path / "out") == 3 * 700
    assert read_tar_members(whole, ["1.txt"])["1.txt"] == b"\x02" * 700
    needed = len(content) if kind else 3 * (512 + 1024) + 512  # after the block of zeros there is but padding
    for length in [*range(0, needed - 1, 1 if kind else 128), needed - 1]:
        cut.write_bytes(content[:length])
        folder = tmp_path / f"out{length}"
        folder.mkdir()
        with pytest.raises(AssayError, match=r"cut\.tar is broken or of another kind"):
            unpack(cut, folder)
        with pytest.raises(AssayError, match=r"cut\.tar is no readable tar file"):
            read_tar_members(cut, ["0.txt"])


def test_a_compressed_tar_file_with_a_wrong_sum_is_refused(tmp_path: Path) -> None:
    archive = packed(photos(tmp_path / "photos"), "a.tar.gz")
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1  # of the checksum
    archive.write_bytes(content)
    with pytest.raises(AssayError, match=r"a\.tar\.gz is broken or of another kind"):
        read(archive)


def test_bombs_are_not_unpacked(tmp_path: Path) -> None:
    archive = _zip(("zeros.csv", bytes(30 * 2**20)))(tmp_path)
    assert archive.stat().st_size < 2**16
    (tmp_path / "out").mkdir()
    with pytest.raises(AssayError, match="suspiciously much for its size"):
        unpack(archive, tmp_path / "out", Bounds(harmless=2**20))
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 20 * 2**20
    many = _zip(*((f"{number}.txt", b"") for number in range(11)))(tmp_path)
    (tmp_path / "more").mkdir()
    with pytest.raises(AssayError, match="more than 10 files"):
        unpack(many, tmp_path / "more", Bounds(files=10))
