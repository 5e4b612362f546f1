"""A folder of images with one subfolder for each class, or with train and test folders that hold those; or named in a table."""

from __future__ import annotations

import io
import os
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from assay.own.folders import Files, in_class_folders
from assay.own.limits import drawn, memory_bound
from assay.own.material import Material

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
#: Larger images are made smaller, to squares of at most so many pixels a side.
LARGEST = 64
#: Bytes of memory at the peak for each value of an input: pixels, floats, their splits.
_BYTES = 16
#: Size and colour of a folder too large to be looked through are those of so many images.
_LOOKED = 2000


def read_images(folder: Path) -> Material:
    """Images (N, C, S, S) in [0, 1]: grey if all are, else RGB; S is the median side, a multiple of 4 of at most 64.

    Raises:
        AssayError: no images, no class folders, links that lead out, or more than a few unreadable files.
    """
    files, images, what = pictures(in_class_folders(folder, SUFFIXES, "images"))
    return Material(
        name=folder.name or str(folder),
        what=what,
        inputs=images,
        target=files.target,
        parts=files.parts,
        notes=files.notes,
        task="classification",
        files=files.places,
    )


def pictures(files: Files) -> tuple[Files, Tensor, str]:
    """Decode image files.

    Returns:
        The files that could be read, their images (N, C, S, S) in [0, 1], and what they are.

    Raises:
        AssayError: more than a few cannot be read.
    """
    if len(files) * LARGEST**2 * 3 * _BYTES > memory_bound():  # perhaps too many: a sample tells
        size, mode, _ = _format(files.take(drawn(len(files), _LOOKED)))
        files = files.within(memory_bound() // (size**2 * (1 if mode == "L" else 3) * _BYTES), "images")
    size, mode, alike = _format(files)
    pixels = decode(files.paths, (size, size), mode)
    good = files.without({place for place, one in enumerate(pixels) if one is None}, "images")
    if not alike:
        files.notes.append(f"all images brought to {size}x{size}")
    images = torch.stack([as_tensor(one) for one in pixels if one is not None])
    return good, images, f"{'grey' if mode == 'L' else 'colour'} images"


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (H, W) or (H, W, 3) as an image (C, H, W) in [0, 1]."""
    image = torch.from_numpy(pixels.copy())  # Pillow's memory cannot be written
    return (image.unsqueeze(0) if image.dim() == 2 else image.permute(2, 0, 1)).contiguous().float().div_(255)


def _format(files: Files) -> tuple[int, str, bool]:
    """Side and mode that suit these images, and whether all have that size already."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside of Python's lock
        looked = list(pool.map(_look, files.paths))
    good = [seen for seen in looked if seen is not None]
    files.refuse_many({place for place, seen in enumerate(looked) if seen is None}, "images")
    size = min(LARGEST, max(8, 4 * round(statistics.median(min(side) for side, _ in good) / 4)))
    mode = "L" if all(grey for _, grey in good) else "RGB"
    return size, mode, {seen[0] for seen in good} == {(size, size)}


def _look(path: Path | bytes) -> tuple[tuple[int, int], bool] | None:
    """Size and whether it is grey, from the header; ``None`` for what is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as image:
                return image.size, image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    except Exception:
        return None


def decode(files: Sequence[Path | bytes], size: tuple[int, int], mode: str) -> list[NDArray[np.uint8] | None]:
    """Pixels (H, W) or (H, W, 3) of each file, brought to ``size`` (width, height); ``None`` where one is broken."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _decode(path, size, mode), files))


def _decode(path: Path | bytes, size: tuple[int, int], mode: str) -> NDArray[np.uint8] | None:
    """The first frame, upright, as (H, W) or (H, W, 3); ``None`` where the file is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as opened:
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
