"""Public image sets: MNIST, Fashion-MNIST, USPS, CIFAR-10 and sets made of them. Pixels are in [0, 1] unless said."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from assay.data.archives import read_tar_members, read_zip_member
from assay.data.build import SPLIT_SEED, dataset, parsed
from assay.data.dataset import Dataset, Split
from assay.data.files import fetch_entry
from assay.data.registry import Entry, find
from assay.errors import AssayError

_DIGITS = tuple("0123456789")


def idx(entry: Entry) -> Dataset:
    """Four idx files in the order train images, train labels, test images, test labels."""
    raw = _four_idx(entry)
    return dataset(entry, _split(raw, "train"), _split(raw, "test"), classes=entry["classes"])


def mnist16(entry: Entry) -> Dataset:
    """A random part of MNIST at 16x16 in [-1, 1], resized without antialiasing as in the reproduction."""
    raw = _four_idx(entry)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    splits = {}
    # The test digits are drawn first, so that sets with more training digits are tested on the same ones.
    for part in ("test", "train"):
        full = _split(raw, part)
        assert isinstance(full.inputs, Tensor)
        chosen = torch.randperm(len(full), generator=generator)[: entry[part]]
        small = F.interpolate(full.inputs[chosen], size=(16, 16), mode="bilinear", align_corners=False)
        splits[part] = Split(small * 2 - 1, full.labels[chosen])
    return dataset(entry, splits["train"], splits["test"], classes=_DIGITS)


def usps(entry: Entry) -> Dataset:
    """Images (N, 1, 16, 16) in [0, 1]."""
    import h5py  # only this set needs it

    ((_, place),) = fetch_entry(entry)
    splits = {}
    with h5py.File(place, "r") as stored:
        for part in ("train", "test"):
            pixels = torch.as_tensor(np.asarray(stored[part]["data"], dtype=np.float32))
            labels = torch.as_tensor(np.asarray(stored[part]["target"], dtype=np.int64))
            splits[part] = Split(pixels.view(-1, 1, 16, 16), labels)
    return dataset(entry, splits["train"], splits["test"], classes=entry["classes"])


def cifar10(entry: Entry) -> Dataset:
    """Images (N, 3, 32, 32) in [0, 1], from the binary version of the archive: nothing is unpickled."""
    ((file, place),) = fetch_entry(entry)
    raw = parsed("cifar10", file.sha256, lambda: _cifar10_archive(place))
    return dataset(entry, _split(raw, "train"), _split(raw, "test"), classes=entry["classes"])


def cifar10_20k(entry: Entry) -> Dataset:
    """The first 2,000 and 400 of each class in canonical order, from the small file or derived from the archive."""
    ((file, place),) = fetch_entry(entry)

    def parse() -> dict[str, Tensor]:
        if place.suffix == ".npz":
            with np.load(place, allow_pickle=False) as stored:
                names = {
                    "train_images": "train_x",
                    "train_labels": "train_y",
                    "test_images": "test_x",
                    "test_labels": "test_y",
                }
                return {ours: torch.as_tensor(stored[theirs].astype(np.uint8)) for ours, theirs in names.items()}
        full = _cifar10_archive(place)
        part = {}
        for name, count in (("train", 2000), ("test", 400)):
            chosen = first_of_each_class(full[f"{name}_labels"], count)
            part[f"{name}_images"], part[f"{name}_labels"] = (
                full[f"{name}_images"][chosen],
                full[f"{name}_labels"][chosen],
            )
        return part

    raw = parsed("cifar10-20k", file.sha256, parse)
    return dataset(entry, _split(raw, "train"), _split(raw, "test"), classes=entry["classes"])


def berkeley(entry: Entry) -> Dataset:
    """Photos (N, 3, 321, 481) in [0, 1]; labels (N,): the number of a photo. Upright ones are turned by a quarter."""
    found = fetch_entry(entry)

    def parse() -> dict[str, Tensor]:
        files = [place.read_bytes() for _, place in found]
        if found[0][1].suffix == ".zip":
            numbers = [Path(file.path).name for file in entry.files]
            files = [read_zip_member(found[0][1], number) for number in numbers]
        photos = []
        for content in files:
            pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))  # (H, W, 3)
            photos.append(torch.as_tensor(pixels if pixels.shape[1] > pixels.shape[0] else np.rot90(pixels).copy()))
        return {"photos": torch.stack(photos).permute(0, 3, 1, 2)}

    photos = parsed("berkeley", " ".join(file.sha256 for file in entry.files), parse)["photos"].float() / 255
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, valid, test = (Split(photos[part], part) for part in order.split([44, 12, 12]))
    return dataset(entry, train, test, valid)


def votes(entry: Entry) -> Dataset:
    """Inputs (N, K): how many people gave an image each label; labels (N,): what most of them say."""
    ((_, place),) = fetch_entry(entry)
    counts = torch.as_tensor(np.load(place, allow_pickle=False)).float()
    whole = Split(counts, counts.argmax(dim=1))
    return dataset(entry, whole, whole.take(torch.arange(0)), classes=entry["classes"])


def votes_4k(entry: Entry) -> Dataset:
    """The votes (N, K) on the test photos of ``cifar10-20k``, in their order."""
    ((_, place),) = fetch_entry(entry)
    counts = torch.as_tensor(np.load(place, allow_pickle=False)).float()[_test_places_of_20k()]
    whole = Split(counts, counts.argmax(dim=1))
    return dataset(entry, whole, whole.take(torch.arange(0)), classes=entry["classes"])


def _test_places_of_20k() -> Tensor:
    """Where the test photos of ``cifar10-20k`` stand in the test archive: (4000,) int64, ascending."""
    ((_, place),) = fetch_entry(find("cifar10-20k"))
    if place.suffix == ".npz":
        with np.load(place, allow_pickle=False) as stored:
            return torch.as_tensor(stored["test_index"].astype(np.int64))
    return first_of_each_class(_cifar10_archive(place)["test_labels"].long(), 400)


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Positions (K * count,) of the first ``count`` of every class of ``labels`` (N,), in ascending order."""
    chosen = [(labels == label).nonzero().flatten()[:count] for label in labels.unique().tolist()]
    return torch.cat(chosen).sort().values


def read_idx(stream: IO[bytes], name: str) -> Tensor:
    """One idx file of bytes: a magic number, the sizes, the values -> uint8 tensor of those sizes.

    Raises:
        AssayError: if it is something else or too short.
    """
    head = stream.read(4)
    if len(head) != 4 or head[:3] != b"\x00\x00\x08" or not 1 <= head[3] <= 4:
        raise AssayError(f"{name} is no idx file of bytes (it starts with {head.hex() or 'nothing'}); fetch it again.")
    sizes = np.frombuffer(stream.read(4 * head[3]), dtype=">u4").tolist()
    count = math.prod(sizes)
    content = bytearray(stream.read(count + 1))
    if len(sizes) != head[3] or len(content) != count:
        raise AssayError(f"{name} holds {len(content)} values where its head says {count}; fetch it again.")
    return torch.frombuffer(content, dtype=torch.uint8).view(sizes)


def _four_idx(entry: Entry) -> dict[str, Tensor]:
    places = fetch_entry(entry)

    def parse() -> dict[str, Tensor]:
        tensors = {}
        for name, (_, place) in zip(("train_images", "train_labels", "test_images", "test_labels"), places, strict=True):
            with gzip.open(place) as stream:
                values = read_idx(cast(IO[bytes], stream), place.name)
            tensors[name] = values.unsqueeze(1) if values.dim() == 3 else values  # (N, 1, H, W)
        return tensors

    return parsed("idx", " ".join(file.sha256 for file, _ in places), parse)


def _split(raw: Mapping[str, Tensor], part: str) -> Split:
    return Split(raw[f"{part}_images"].float().div_(255), raw[f"{part}_labels"].long())


def _cifar10_archive(place: Path) -> dict[str, Tensor]:
    folder = "cifar-10-batches-bin"
    train = [f"{folder}/data_batch_{number}.bin" for number in range(1, 6)]
    test = [f"{folder}/test_batch.bin"]
    members = read_tar_members(place, train + test)
    tensors = {}
    for part, names in (("train", train), ("test", test)):
        # A record is one byte of label and 3 x 1024 bytes of pixels.
        records = torch.frombuffer(bytearray(b"".join(members[name] for name in names)), dtype=torch.uint8).view(-1, 3073)
        tensors[f"{part}_images"] = records[:, 1:].reshape(-1, 3, 32, 32)
        tensors[f"{part}_labels"] = records[:, 0].clone()
    return tensors
