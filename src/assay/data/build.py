"""What loaders share: fixed splits, the facts of an entry, and parsed copies that load fast the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from assay.data.dataset import Dataset, Inputs, Split, stratified, tensor_bytes
from assay.data.registry import Entry
from assay.paths import data_dir

SPLIT_SEED = 20240  # of every fixed split that is our own; never changed, because fingerprints and evidence depend on it


def dataset(
    entry: Entry,
    train: Split,
    test: Split,
    valid: Split | None = None,
    classes: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
) -> Dataset:
    """A :class:`Dataset` with the facts of its entry; without ``valid``, that split is empty."""
    empty = train.take(torch.arange(0))
    return Dataset(
        entry.name,
        entry.task,
        train,
        empty if valid is None else valid,
        test,
        classes,
        entry.licence,
        entry.source,
        (),
        features,
    )


def own_split(inputs: Inputs, labels: Tensor, test: int) -> tuple[Split, Split]:
    """Train (shuffled) and test: ``test`` examples are drawn once and for all, each class in proportion."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    whole = Split(inputs, labels)
    held = stratified(labels, test, generator)
    stays = torch.ones(len(labels), dtype=torch.bool)
    stays[held] = False
    rest = stays.nonzero().flatten()
    return whole.take(rest[torch.randperm(len(rest), generator=generator)]), whole.take(held)


def parsed(kind: str, key: str, parse: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``parse`` returns, from a copy on disk if they were parsed before.

    Args:
        kind: name of the way to parse.
        key: everything the tensors depend on: hashes of the files, versions of packages.
        parse: the slow way.
    """
    place = data_dir() / "parsed" / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    try:
        return _read(place)
    except (OSError, SafetensorError, ValueError):
        pass  # not there yet, or spoilt: it can always be made again
    tensors = {label: tensor.contiguous() for label, tensor in parse().items()}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            fresh = place.with_suffix(".new")
            save_file(tensors, fresh, metadata={"digests": json.dumps({k: _digest(t) for k, t in tensors.items()})})
            fresh.replace(place)
    except OSError:
        pass  # a full or read-only disk costs the next load its speed, nothing else
    return tensors


def package_version(package: str) -> str:
    """Installed version of a distribution, for the key of :func:`parsed`."""
    return f"{package} {version(package)}"


def _read(place: Path) -> dict[str, Tensor]:
    with safe_open(place, framework="pt") as stored:
        digests = json.loads(stored.metadata()["digests"])
        tensors = {label: stored.get_tensor(label) for label in stored.keys()}  # noqa: SIM118 (it is no mapping)
    if {label: _digest(tensor) for label, tensor in tensors.items()} != digests:
        raise ValueError(f"{place} was changed")
    return tensors


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
