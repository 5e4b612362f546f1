"""What loaders share: fixed splits, the facts of an entry, and parsed copies that load fast the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Inputs, Split, stratified, tensor_bytes
from assay.data.registry import Entry
from assay.errors import AssayError
from assay.files import load_tensors, save_tensors
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
    except AssayError:
        pass  # not there yet, or spoilt: it can always be made again
    tensors = {label: tensor.contiguous() for label, tensor in parse().items()}
    # A full or read-only disk costs the next load its speed, nothing else.
    with suppress(AssayError):
        save_tensors(place, tensors, {"digests": {label: _digest(tensor) for label, tensor in tensors.items()}})
    return tensors


def package_version(package: str) -> str:
    """Installed version of a distribution, for the key of :func:`parsed`."""
    return f"{package} {version(package)}"


def _read(place: Path) -> dict[str, Tensor]:
    tensors, facts = load_tensors(place)
    if {label: _digest(tensor) for label, tensor in tensors.items()} != facts.get("digests"):
        raise AssayError(f"{place} was changed: remove it, it will be made again.")
    return tensors


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
