"""Fetching against a server on this machine: broken, wrong, tampered, two at once, compressed, inside archives, by pip."""

import gzip
import hashlib
import io
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from assay.data import files, registry
from assay.data.archives import read_tar_members, read_zip_member
from assay.data.files import fetch, fetch_file
from assay.data.images import cifar10, cifar10_20k, read_idx
from assay.data.registry import File
from assay.errors import AssayError

CONTENT = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    """Serves ``content`` by path and counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.promised = 0  # bytes that are announced and never sent
        self.gate = threading.Event()
        self.gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version: ClassVar[str] = "HTTP/1.0"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked[self.path] += 1
        self.server.gate.wait(20)
        body = self.server.content.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + self.server.promised))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def a_file(server: Server, content: bytes = CONTENT, path: str = "set/data.bin") -> File:
    server.content["/data.bin"] = content
    return File(path, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), (f"{server.url}/data.bin",))


def leftovers(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def test_a_file_is_fetched_once(server: Server, home: Path) -> None:
    file = a_file(server)
    place = fetch_file(file)
    assert place == home / "data" / "set" / "data.bin"
    assert place.read_bytes() == CONTENT
    assert fetch_file(file) == place
    assert server.asked["/data.bin"] == 1
    assert leftovers(home) == ["data.bin"]


def test_a_truncated_download_leaves_nothing(server: Server, home: Path) -> None:
    file = a_file(server, CONTENT[:1000])
    server.promised = len(CONTENT) - 1000
    with pytest.raises(AssayError, match=r"set/data\.bin could not be fetched"):
        fetch_file(file)
    assert leftovers(home) == []
    server.promised = 0
    server.content["/data.bin"] = CONTENT
    assert fetch_file(file).read_bytes() == CONTENT


def test_a_short_file_that_says_it_is_whole_is_refused(server: Server, home: Path) -> None:
    with pytest.raises(AssayError, match="sha256"):
        fetch_file(a_file(server, CONTENT[:1000]))
    assert leftovers(home) == []


def test_wrong_content_is_refused_with_its_hash(server: Server, home: Path) -> None:
    file = a_file(server, b"something else")
    with pytest.raises(AssayError) as caught:
        fetch_file(file)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert file.sha256 in str(caught.value)
    assert leftovers(home) == []


def test_a_tampered_file_is_refused_and_removed(server: Server, home: Path) -> None:
    file = a_file(server)
    place = fetch_file(file)
    changed = CONTENT[:-1] + b"!"
    place.write_bytes(changed)
    with pytest.raises(AssayError) as caught:
        fetch_file(file)
    assert hashlib.sha256(changed).hexdigest() in str(caught.value)
    assert not place.exists()
    assert fetch_file(file).read_bytes() == CONTENT


def test_the_next_address_is_tried(server: Server) -> None:
    good = a_file(server)
    server.content["/wrong.bin"] = b"wrong"
    urls = (f"{server.url}/missing.bin", f"{server.url}/wrong.bin", *good.urls)
    assert fetch_file(File(good.path, good.sha256, good.size, urls)).read_bytes() == CONTENT


def test_nobody_has_it(server: Server, home: Path) -> None:
    lost = File("set/data.bin", "0" * 64, 1, (f"{server.url}/missing.bin",))
    with pytest.raises(AssayError, match=r"the server answered 404\]; check the network, set ASSAY_MIRROR"):
        fetch_file(lost)
    with socket.socket() as closed:  # a port that is taken, so that no other gets it, and where nobody listens
        closed.bind(("127.0.0.1", 0))
        unheard = File("set/data.bin", "0" * 64, 1, (f"http://127.0.0.1:{closed.getsockname()[1]}/missing.bin",))
        with pytest.raises(AssayError, match="ConnectionError"):
            fetch_file(unheard)


PROCESS = """
import sys
from assay.data.files import fetch_file
from assay.data.registry import File
path, sha256, size, url = sys.argv[1:]
print("ready", flush=True)
print(fetch_file(File(path, sha256, int(size), (url,))))
"""


def test_two_processes_download_once(server: Server, home: Path) -> None:
    file = a_file(server)
    server.gate.clear()  # nobody is answered before both have started
    command = [sys.executable, "-c", PROCESS, file.path, file.sha256, str(file.size), file.urls[0]]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    server.gate.set()
    for process in running:
        shown, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert Path(shown.strip()).read_bytes() == CONTENT
    assert server.asked["/data.bin"] == 1


def test_a_mirror_folder_comes_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = a_file(server)
    mirror = tmp_path / "mirror"
    (mirror / "set").mkdir(parents=True)
    (mirror / "set" / "data.bin").write_bytes(CONTENT)
    monkeypatch.setenv("ASSAY_MIRROR", str(mirror))
    assert fetch_file(file).read_bytes() == CONTENT
    assert not server.asked


def test_a_wrong_mirror_falls_back_to_the_canonical_address(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_file(server)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.bin").write_bytes(b"old")
    monkeypatch.setenv("ASSAY_MIRROR", str(tmp_path))
    assert fetch_file(file).read_bytes() == CONTENT
    assert server.asked["/data.bin"] == 1


@pytest.mark.parametrize("by_url", [False, True])
@pytest.mark.parametrize("form", ["gz", "zip"])
def test_a_mirror_may_compress_and_pack(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, by_url: bool
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr("raw/data.bin", CONTENT)
    name, content = ("set/data.bin.gz", gzip.compress(CONTENT)) if form == "gz" else ("set/all.zip", packed.getvalue())
    if by_url:
        server.content[f"/{name}"] = content
        monkeypatch.setenv("ASSAY_MIRROR", f"{server.url}/")
    else:
        (tmp_path / "set").mkdir()
        (tmp_path / name).write_bytes(content)
        monkeypatch.setenv("ASSAY_MIRROR", str(tmp_path))
    file = File("set/data.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), (), ("set/all.zip!raw/data.bin",))
    assert fetch_file(file).read_bytes() == CONTENT


def test_a_compressed_file_that_never_ends_is_cut(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.bin.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    monkeypatch.setenv("ASSAY_MIRROR", str(tmp_path))
    written = []
    monkeypatch.setattr(files, "sha256_of", lambda place: written.append(place.stat().st_size) or "0")
    with pytest.raises(AssayError, match="could not be fetched"):
        fetch_file(File("set/data.bin", "1" * 64, 1000))
    assert written == [1001]
    assert leftovers(home) == []


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "C:\\evil.txt", "..\\evil.txt"])
def test_archives_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bundle:
        bundle.writestr("good.txt", "fine")
        bundle.writestr(name, "evil")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as bundle:
        for member in (name, "good.txt"):
            bundle.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(AssayError, match="leads outside"):
        read_zip_member(tmp_path / "bad.zip", "good.txt")
    with pytest.raises(AssayError, match="leads outside"):
        read_tar_members(tmp_path / "bad.tar.gz", ["good.txt"])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["bad.tar.gz", "bad.zip"]


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as bundle:
        link = tarfile.TarInfo("data.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    with pytest.raises(AssayError, match="something else than a plain file"):
        read_tar_members(tmp_path / "link.tar.gz", ["data.txt"])


def test_broken_archives_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"no archive at all")
    with pytest.raises(AssayError, match="no readable zip file"):
        read_zip_member(tmp_path / "broken", "x")
    with pytest.raises(AssayError, match="no readable tar file"):
        read_tar_members(tmp_path / "broken", ["x"])
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(AssayError, match="has no member 'x'"):
        read_zip_member(tmp_path / "empty.zip", "x")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(AssayError, match="has no member 'x'"):
        read_tar_members(tmp_path / "empty.tar", ["x"])


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x0d\x01", b"\x00\x00\x08\x01\x00\x00\x00\x03ab", b"\x00\x00\x08\x01\x00\x00\x00\x01ab"]
)
def test_idx_files_are_checked(content: bytes) -> None:
    with pytest.raises(AssayError, match="some-file"):
        read_idx(io.BytesIO(content), "some-file")


def test_idx_files_are_read() -> None:
    content = b"\x00\x00\x08\x02" + b"\x00\x00\x00\x02\x00\x00\x00\x03" + bytes(range(6))
    assert read_idx(io.BytesIO(content), "x").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_python_without_pip_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip")

    monkeypatch.setattr(files.subprocess, "run", no_pip)
    with pytest.raises(AssayError, match=r"this Python has no pip; `.*-m ensurepip` installs it"):
        fetch("nations")


def test_an_index_without_the_package_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(AssayError, match=r"pip says No matching distribution found for pykeen==1\.11\.1"):
        fetch("nations")


def test_pip_may_not_bring_something_else(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def other(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--dest") + 1], "pykeen-1.11.1-py3-none-any.whl").write_bytes(b"other")
        assert "download" in command
        assert "--no-deps" in command
        assert command[-1] == "pykeen==1.11.1"
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(files.subprocess, "run", other)
    with pytest.raises(AssayError, match=hashlib.sha256(b"other").hexdigest()):
        fetch("nations")
    assert leftovers(home) == []


def test_embedded_sets_need_no_files() -> None:
    assert fetch("digits") == []


def test_cifar_is_the_same_from_the_archive_and_from_the_small_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretended CIFAR-10: the first of each class in canonical order, whichever way it comes."""
    generator = np.random.default_rng(0)
    records = {}
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels = generator.permutation(np.arange(900) % 2).astype(np.uint8)
        pixels = np.repeat(generator.integers(0, 256, (900, 3), dtype=np.uint8), 1024, axis=1)
        records[name] = np.concatenate([labels[:, None], pixels], axis=1)
    mirror = tmp_path / "mirror" / "cifar10"
    mirror.mkdir(parents=True)
    archive, small = mirror / "cifar-10-binary.tar.gz", mirror / "cifar10-subset-20k-4k.npz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as bundle:
        for name, table in records.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = table.nbytes
            bundle.addfile(info, io.BytesIO(table.tobytes()))
    train = np.concatenate([records[f"data_batch_{i}.bin"] for i in range(1, 6)])
    arrays = {}
    for part, table, count in (("train", train, 2000), ("test", records["test_batch.bin"], 400)):
        seen: Counter[int] = Counter()
        chosen = []
        for position, label in enumerate(table[:, 0].tolist()):
            seen[label] += 1
            if seen[label] <= count:
                chosen.append(position)
        arrays[f"{part}_x"], arrays[f"{part}_y"] = table[chosen, 1:].reshape(-1, 3, 32, 32), table[chosen, 0]
    np.savez(small, **arrays)

    def pinned(place: Path) -> File:
        return File(f"cifar10/{place.name}", hashlib.sha256(place.read_bytes()).hexdigest(), place.stat().st_size)

    entry = replace(registry.REGISTRY["cifar10-20k"], files=(pinned(archive),), shortcut=pinned(small))
    monkeypatch.setenv("ASSAY_MIRROR", str(tmp_path / "mirror"))
    assert not registry.is_here(entry)
    short = cifar10_20k(entry)
    assert leftovers(home / "data" / "cifar10") == [small.name]
    assert registry.is_here(entry)
    (home / "data" / "cifar10" / small.name).unlink()
    small.unlink()
    derived = cifar10_20k(entry)
    assert short.fingerprint == derived.fingerprint
    assert torch.bincount(derived.train.labels).tolist() == [2000] * 2
    full = cifar10(replace(entry, shortcut=None))
    assert len(full.train) == 4_500
    assert full.train.inputs[0, :, 0, 0].mul(255).round().int().tolist() == train[0, [1, 1025, 2049]].tolist()


@pytest.mark.parametrize("form", ["gz", "zip"])
def test_a_mirror_whose_compressed_file_is_damaged_is_passed_over(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Also where the damage is in what was compressed, and head and length are as they should be."""
    file = replace(a_file(server), mirror=("set/all.zip!data.bin",))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("data.bin", CONTENT)
    name, content, head = ("data.bin.gz", gzip.compress(CONTENT), 10) if form == "gz" else ("all.zip", packed.getvalue(), 38)
    damaged = bytearray(content)
    damaged[head : head + 20] = b"\xff" * 20  # a kind of block that there is not
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(damaged)
    monkeypatch.setenv("ASSAY_MIRROR", str(tmp_path))
    assert fetch_file(file).read_bytes() == CONTENT
    assert server.asked["/data.bin"] == 1
