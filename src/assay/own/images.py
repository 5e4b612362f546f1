"""A folder of images with one subfolder for each class, or with train and test folders that hold those."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from assay.errors import AssayError
from assay.own.material import Material

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
#: Larger images are made smaller, to squares of at most so many pixels a side.
LARGEST = 64
#: Up to this share of unreadable files is left out (and said); more, and something is wrong with the folder.
_BROKEN = 0.05
_PARTS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


def read_images(folder: Path) -> Material:
    """Images (N, C, S, S) in [0, 1]: grey if all are, else RGB; S is the median side, a multiple of 4 of at most 64.

    Raises:
        AssayError: no images, no class folders, links that lead out, or more than a few unreadable files.
    """
    parts = {child.name: _PARTS[child.name.lower()] for child in _folders(folder) if child.name.lower() in _PARTS}
    split = "train" in parts.values() and len(set(parts.values())) > 1 and len(parts) == len(_folders(folder))
    files, classes, where = [], [], []
    for base, part in [(folder / name, part) for name, part in parts.items()] if split else [(folder, "")]:
        for child in _folders(base):
            found = image_files(child, folder)
            files += found
            classes += [child.name] * len(found)
            where += [part] * len(found)
    if not files:
        raise AssayError(_nothing(folder))
    notes = []
    if split and "test" not in where:
        where = ["test" if part == "valid" else part for part in where]
        notes.append("the validation folder is the test, as there is no other")
    loose = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir() if path.is_file())
    if loose:
        notes.append(f"{loose} images outside of the class folders left out")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside of Python's lock
        looked = list(pool.map(_look, files))
        broken = [path for path, seen in zip(files, looked, strict=True) if seen is None]
        good = [seen for seen in looked if seen is not None]
        _judge(folder, broken, len(files))
        size = min(LARGEST, max(8, 4 * round(statistics.median(min(side) for side, _ in good) / 4)))
        mode = "L" if all(grey for _, grey in good) else "RGB"
        pixels = list(pool.map(lambda path: _decode(path, (size, size), mode), files))
    kept = np.array([number for number, one in enumerate(pixels) if one is not None])
    broken = [path for path, one in zip(files, pixels, strict=True) if one is None]
    _judge(folder, broken, len(files))
    if broken:
        notes.append(f"{len(broken)} unreadable files left out ({', '.join(_short(p, folder) for p in broken[:3])})")
    sizes = {seen[0] for seen in good}
    if sizes != {(size, size)}:
        notes.append(f"all images brought to {size}x{size}")
    stacked = torch.from_numpy(np.stack([one for one in pixels if one is not None]))  # (N, S, S) or (N, S, S, 3)
    images = (stacked.unsqueeze(1) if stacked.dim() == 3 else stacked.permute(0, 3, 1, 2)).contiguous().float().div_(255)
    return Material(
        name=folder.name or str(folder),
        what=f"{'grey' if mode == 'L' else 'colour'} images",
        inputs=images,
        target=pd.Series(classes, dtype=object).iloc[kept],
        parts=np.array(where)[kept] if split else None,
        notes=notes,
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def image_files(folder: Path, root: Path | None = None) -> list[Path]:
    """Image files below ``folder``, in order; a link may lead elsewhere within ``root`` only (``None``: the folder itself)."""
    root = root or folder
    inside, found = root.resolve(), []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted([*folders, *names]):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise AssayError(f"{path} is a link that leads out of {root}: remove it, or copy there what it points to.")
        found += [Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
    if folder.is_symlink() and not folder.resolve().is_relative_to(inside):
        raise AssayError(f"{folder} is a link that leads out of {root}: remove it, or copy there what it points to.")
    return [path for path in found if not path.name.startswith(".")]


def _look(path: Path) -> tuple[tuple[int, int], bool] | None:
    """Size and whether it is grey, from the header; ``None`` for what is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size, image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    except Exception:
        return None


def decode(files: Sequence[Path], size: tuple[int, int], mode: str) -> list[NDArray[np.uint8] | None]:
    """Pixels (H, W) or (H, W, 3) of each file, brought to ``size`` (width, height); ``None`` where one is broken."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _decode(path, size, mode), files))


def _decode(path: Path, size: tuple[int, int], mode: str) -> NDArray[np.uint8] | None:
    """The first frame, upright, as (H, W) or (H, W, 3); ``None`` where the file is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if not opened.mode.startswith("I"):
                    opened.draft(mode, (2 * size[0], 2 * size[1]))  # JPEG decodes to about this size at once
                image: Image.Image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip instead of scaling
                    image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
                image = image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)
                if image.size != size:
                    image = image.resize(size, Image.Resampling.BILINEAR)
                return np.asarray(image, dtype=np.uint8)
    except Exception:
        return None


def _judge(folder: Path, broken: list[Path], count: int) -> None:
    if len(broken) > max(1, _BROKEN * count) or len(broken) == count:
        some = ", ".join(_short(path, folder) for path in broken[:3])
        raise AssayError(f"{len(broken)} of {count} images in {folder} cannot be read ({some}): replace or remove them.")


def _short(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


def _nothing(folder: Path) -> str:
    names = [path for path in folder.rglob("*") if path.is_file()]
    if not names:
        return f"The folder {folder} is empty: give it one subfolder of images for each class."
    if any(path.suffix.lower() in SUFFIXES for path in names):
        return f"The images in {folder} are in no class folders: put those of each class into a subfolder of its name."
    return f"The folder {folder} holds no images ({names[0].name}, ...): name the file to read, or give it class folders."
