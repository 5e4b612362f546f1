"""Small pictures of decisions as SVG that needs nothing else: tiles with an image, what it stands for, and a bar.

A glass box shows one decision as a row of tiles: the example, then the parts that spoke for or against a class, each with
its vote. Bars to the right (blue) speak for, to the left (red) against.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE, _GAP, _TEXT = 84, 12, 15


@dataclass(frozen=True)
class Tile:
    """One picture of a row.

    Args:
        values: (H, W) grey or (H, W, 3) colours in [0, 1]; (D,) numbers of any size are drawn as a strip of columns.
        captions: lines below it.
        vote: length and sign of the bar below; ``None`` draws no bar.
    """

    values: NDArray[Any]
    captions: tuple[str, ...] = ()
    vote: float | None = None


def as_image(x: NDArray[Any], shape: tuple[int, ...] | None) -> NDArray[Any]:
    """One example (D,) as a picture.

    Args:
        x: (D,).
        shape: (H, W), (1, H, W) or (3, H, W) of images; ``None`` leaves a strip of columns.
    """
    if shape is None:
        return x
    image = x.reshape(shape)
    if image.ndim == 2:
        return image
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def short(text: str, most: int = 14) -> str:
    """A name that fits below a tile: the end of a longer one is left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def png(values: NDArray[Any]) -> str:
    """(H, W) or (H, W, 3) in [0, 1] as a data URI; what lies outside is cut off."""
    pixels = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # every row says first that it is not filtered
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(whole).decode()


def tiles(rows: Sequence[Sequence[Tile]], titles: Sequence[str] = ()) -> str:
    """Rows of tiles as one SVG, each row below its title.

    Args:
        rows: of tiles.
        titles: one line above every row; fewer are enough.
    """
    longest = max((abs(tile.vote) for row in rows for tile in row if tile.vote), default=1.0)
    parts, top = [], _GAP
    for number, row in enumerate(rows):
        if number < len(titles):
            parts.append(f'<text x="{_GAP}" y="{top + _TEXT - 3}" text-anchor="start">{escape(titles[number])}</text>')
            top += _TEXT + 4
        for place, tile in enumerate(row):
            parts.append(_tile(tile, _GAP + place * (_SIDE + _GAP), top, longest))
        lines = max((len(tile.captions) for tile in row), default=0)
        top += _SIDE + 14 + _TEXT * lines + _GAP
    width = _GAP + max([len(row) for row in rows] + [4]) * (_SIDE + _GAP)
    style = 'font-family="sans-serif" font-size="11" text-anchor="middle"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" {style}>{"".join(parts)}</svg>'


def _tile(tile: Tile, left: int, top: int, longest: float) -> str:
    values = np.asarray(tile.values, dtype=np.float64)
    if values.ndim == 1:  # a strip, from its smallest to its largest number
        low, high = values.min(), values.max()
        values = ((values - low) / (high - low if high > low else 1.0))[None]
    place = f'x="{left}" y="{top}" width="{_SIDE}" height="{_SIDE}"'
    drawn = (
        f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" href="{png(values)}"/>'
        f'<rect {place} fill="none" stroke="#bbb"/>'
    )
    middle, below = left + _SIDE / 2, top + _SIDE + 4
    if tile.vote is not None:
        length = abs(tile.vote) / longest * _SIDE / 2
        start, colour = (middle, "#2b6cb0") if tile.vote > 0 else (middle - length, "#d33")
        drawn += f'<rect x="{start:.1f}" y="{below}" width="{length:.1f}" height="6" fill="{colour}"/>'
        drawn += f'<path d="M{middle} {below - 1}v8" stroke="#666"/>'
    for number, line in enumerate(tile.captions):
        drawn += f'<text x="{middle}" y="{below + 8 + _TEXT * (number + 1) - 4}">{escape(line)}</text>'
    return drawn
