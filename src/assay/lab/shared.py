"""The shared cache: trainings and other remembered work in a place that several machines reach, behind the local disk.

``ASSAY_CACHE`` names a folder or any URL that fsspec opens (``file:///shared/assay``, ``s3://bucket/prefix``). What is not on
the local disk is looked for there; what is made is uploaded. Entries are the same safetensors files as on the local disk,
under the same fingerprints, with a digest of their content in the header, which is compared after every download.

Two machines that want the same training at the same moment: the first leaves a *claim* beside the place of the entry and
renews it every few seconds, the second waits for the entry. A claim that is not renewed belongs to nobody (its machine is
gone) and is taken over. All of this saves work and is not needed for being right: two that make the same entry make the same
content, and either may stand there.

A shared cache that fails in the middle of a run stops nothing: the training is done here, and a warning is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError
from assay.files import load_tensors, write_atomically
from assay.paths import folder, shared_cache_url, trained_dir

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger("assay.cache")

#: Seconds between two renewals of a claim, and after how many seconds without one it belongs to nobody.
BEAT, DEAD = 5.0, 20.0

#: Where an upload is seen whole or not at all, so that it needs no temporary name.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}


def shared_cache() -> SharedCache | None:
    """The cache that ``ASSAY_CACHE`` names, or ``None``.

    Raises:
        AssayError: what it names cannot be opened.
    """
    url = shared_cache_url()
    return SharedCache(url) if url else None


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of an entry with the digest of its content."""
    return {**facts, "digest": _digest(tensors, facts)}


def is_whole(path: Path) -> bool:
    """Whether an entry is what was once sealed."""
    try:
        tensors, facts = load_tensors(path)
    except AssayError:
        return False
    digest = facts.pop("digest", None)
    return bool(digest == _digest(tensors, facts))


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    import torch

    whole = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"\0{name}\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


class SharedCache:
    """One shared place.

    Args:
        url: of a folder: a path or what fsspec opens.

    Raises:
        AssayError: nothing can open such a URL.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        try:
            # Others write here too: what was listed a moment ago says nothing.
            self._files, self._root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            extra = "s3" if url.startswith("s3") else "cluster"
            raise AssayError(
                f"ASSAY_CACHE names {url}, for which a package is missing ({error}): `pip install 'assay[{extra}]'`."
            ) from error
        except (ValueError, OSError) as error:
            raise AssayError(f"ASSAY_CACHE names {url}, which cannot be opened ({error}): give a folder or a URL.") from error
        kinds = self._files.protocol if isinstance(self._files.protocol, (tuple, list)) else (self._files.protocol,)
        self._is_local = bool({"file", "local"} & set(kinds))
        self._is_object_store = bool(_OBJECT_STORES & set(kinds))

    def check(self) -> None:
        """Write something, read it, remove it.

        Raises:
            AssayError: one of these fails.
        """
        place = f"{self._root}/check-{uuid.uuid4().hex}"
        try:
            self._make_folder(place)
            self._files.pipe_file(place, b"assay")
            found = self._files.cat_file(place)
            self._files.rm_file(place)
        except Exception as error:  # every file system has its own
            why = " ".join(str(error).split())
            raise AssayError(f"The shared cache {self.url} cannot be used ({why}): mend ASSAY_CACHE or its rights.") from error
        if found != b"assay":
            raise AssayError(f"The shared cache {self.url} does not give back what was written: name another with ASSAY_CACHE.")

    @contextlib.contextmanager
    def turn(self, path: Path) -> Iterator[bool]:
        """For work that is not on the local disk: bring it, or let the caller make it while other machines wait.

        Args:
            path: where the entry is to be on the local disk. The caller holds the lock of that place.

        Yields:
            Whether the entry is now there. If not, the caller makes it, and it is uploaded at the end of the block.
        """
        if self.fetch(path):
            yield True
            return
        claim = _Claim(self, self._place(path, ".claim"))
        while not claim.take():
            claim.wait()
            if self.fetch(path):
                yield True
                return
        with claim.renewed():
            # Between our look and our claim another machine may have finished.
            if self.fetch(path):
                yield True
                return
            yield False
            if path.exists():
                self.store(path)

    def fetch(self, path: Path) -> bool:
        """Bring an entry onto the local disk; ``False`` if it is not there, or not whole."""
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        arrived = Path(name)
        try:
            self._files.get_file(self._place(path), name)
            if is_whole(arrived):
                arrived.chmod(0o644)
                arrived.replace(path)
                return True
            _LOG.warning("%s in the shared cache is damaged: it is made again", path.name)
        except FileNotFoundError:
            pass
        except Exception as error:  # every file system has its own
            _LOG.warning("the shared cache %s cannot be read: %s", self.url, error)
        finally:
            arrived.unlink(missing_ok=True)
        return False

    def store(self, path: Path) -> None:
        """Upload an entry; others see it whole or not at all."""
        place = self._place(path)
        try:
            if self._is_local:
                write_atomically(Path(place), lambda temporary: shutil.copyfile(path, temporary))
            elif self._is_object_store:
                self._files.put_file(str(path), place)
            else:
                self._make_folder(place)
                temporary = f"{place}.{uuid.uuid4().hex}"
                self._files.put_file(str(path), temporary)
                self._files.mv(temporary, place)
        except Exception as error:  # every file system has its own
            _LOG.warning("%s was not uploaded to the shared cache: %s", path.name, error)

    def _place(self, path: Path, suffix: str = ".safetensors") -> str:
        return f"{self._root}/{path.stem[:2]}/{path.stem}{suffix}"

    def _make_folder(self, place: str) -> None:
        if not self._is_object_store:
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)


class _Claim:
    """Says that somebody is making an entry. Clocks of machines are never compared: a claim lives while its text changes."""

    def __init__(self, cache: SharedCache, place: str) -> None:
        self._cache = cache
        self._files = cache._files
        self._place = place
        self._owner = _owner()

    def take(self) -> bool:
        """Make it ours if it is nobody's. Where that cannot be told, it is: work that is done twice does no harm."""
        try:
            self._cache._make_folder(self._place)
            if self._cache._is_local:
                # fsspec looks first and creates afterwards there, and two may pass in between.
                with Path(self._place).open("xb") as file:
                    file.write(self._text())
            else:
                self._files.pipe_file(self._place, self._text(), mode="create")
        except FileExistsError:
            # We hold the lock of the entry on this machine: whoever claimed it from here before was killed.
            return (self._read() or b"").startswith(self._owner.encode())
        except Exception as error:  # every file system has its own; many know no exclusive creation
            _LOG.debug("no claim at %s: %s", self._place, error)
        return True

    def wait(self) -> None:
        """Until the claim is gone. One that nobody renews any more is removed."""
        last, since, pause = self._read(), time.monotonic(), 0.2
        while last is not None:
            time.sleep(pause)
            pause = min(pause * 1.5, BEAT)
            now = self._read()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > DEAD:
                self._remove()
                return

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew it for the time of the block, then give it up."""
        over = threading.Event()
        thread = threading.Thread(target=self._renew, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._remove()

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(Exception):
                self._files.pipe_file(self._place, self._text())

    def _text(self) -> bytes:
        return f"{self._owner} {uuid.uuid4().hex}".encode()

    def _read(self) -> bytes | None:
        try:
            return bytes(self._files.cat_file(self._place))
        except Exception:  # gone, or not to be read: then nobody is waited for
            return None

    def _remove(self) -> None:
        with contextlib.suppress(Exception):
            self._files.rm_file(self._place)


def _owner() -> str:
    """A name for this machine's cache folder, the same for all of its processes."""
    path = folder(trained_dir()) / "owner"
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex, encoding="utf-8"))
    return path.read_text(encoding="utf-8")
