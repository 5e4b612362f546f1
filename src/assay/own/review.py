"""The page on which people mend labels: one file that needs nothing else and sends nothing anywhere.

Everything that is shown is data, put into the page as JSON and from there into text nodes. The page's own rules
(Content-Security-Policy) let no other script run and nothing be fetched, whatever stands in the data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from assay.errors import AssayError
from assay.files import write_atomically
from assay.own.answers import FORMAT, cell
from assay.own.examples import Pool
from assay.own.page import HERE, as_png, line, pixels, require_web, spectrogram
from assay.own.writing import write_rows

#: Pixels of the longer side of a picture, letters of a text, and bytes of all recordings together that a page holds.
_SIDE, _LETTERS, _SOUND = 480, 20_000, 64_000_000
#: Smaller pictures are enlarged to about so many pixels.
_SMALL = 280


@dataclass(frozen=True)
class Item:
    """One example that is asked about.

    Args:
        place: in the pool.
        id: the file, or the row.
        mark: of its content, by which it is known again.
        given: its label as it is now; ``None`` where it has none.
        believed: what a model takes it for; ``None`` where people are not to know.
        wrong: how probable it is that the label is wrong.
        shares: the most probable classes with their probabilities.
    """

    place: int
    id: str
    mark: str
    given: str | None = None
    believed: str | None = None
    wrong: float | None = None
    shares: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Questions:
    """What people are asked.

    Args:
        title: of the page.
        pool: the examples.
        classes: that may be answered.
        items: in the order in which they are asked.
        keys: key -> class; without, the page finds keys itself.
    """

    title: str
    pool: Pool
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Sixteen digits that stand for these questions: the page keeps its answers under them."""
        digest = hashlib.sha256("\0".join([self.title, *self.classes]).encode())
        for item in self.items:
            digest.update(f"\0{item.id}\0{item.mark}\0{item.given}".encode())
        return digest.hexdigest()[:16]

    def write(self, page: Path, table: Path) -> None:
        """Write them as a page, and as a table for spreadsheets in which people fill the column ``answer``.

        Raises:
            AssayError: jinja2 is missing, or a file cannot be written.
        """
        write_page(self, page)
        labelled = any(item.given is not None for item in self.items)
        opinion = ("given", "believed", "wrong") if labelled else ()
        rows = []
        for item in self.items:
            thought = [cell(item.given or ""), cell(item.believed or ""), None if item.wrong is None else round(item.wrong, 3)]
            rows.append([cell(item.id), *(thought if labelled else []), cell(self.pool.shown(item.place)), "", "", item.mark])
        write_rows(table, ("id", *opinion, "shown", "answer", "who", "mark"), iter([rows]), "utf-8-sig")


def write_page(questions: Questions, out: Path) -> None:
    """Write the page.

    Args:
        questions: what to ask.
        out: the file.

    Raises:
        AssayError: jinja2 is missing, or the file cannot be written.
    """
    try:
        require_web()
    except AssayError as error:
        raise AssayError('The page for reviewing needs jinja2: install it with `pip install "assay[web]"`.') from error
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    script, style = ((HERE / "templates" / f"review.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    text = environment.get_template("review.html").render(
        title=questions.title,
        name=questions.pool.material.name,
        content=_json(_content(questions)),
        script=script,
        style=style,
        hash=_hash,
    )
    write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))


def _content(questions: Questions) -> dict[str, Any]:
    """All that the page knows."""
    room = [_SOUND]
    return {
        "format": FORMAT,
        "queue": questions.key,
        "data": questions.pool.material.name,
        "classes": list(questions.classes),
        "keys": dict(questions.keys),
        "items": [
            {
                "id": item.id,
                "mark": item.mark,
                "given": item.given,
                "believed": item.believed,
                "shares": [[name, round(share, 3)] for name, share in item.shares],
                **_shown(questions.pool, item.place, room),
            }
            for item in questions.items
        ],
    }


def _shown(pool: Pool, place: int, room: list[int]) -> dict[str, Any]:
    """What a person sees of an example: ``text``, ``cells``, ``picture`` or ``sound``.

    Args:
        pool: the examples.
        place: which.
        room: bytes that are left for recordings; what is taken is taken off.
    """
    inputs, files = pool.material.inputs, pool.material.files
    if isinstance(inputs, tuple):
        text = inputs[place]
        return {"text": text[:_LETTERS] + ("…" if len(text) > _LETTERS else "")}
    if isinstance(inputs, pd.DataFrame):
        return {"cells": pool.cells(place)}
    file = None if files is None else files[place]
    if pool.kind == "images":
        return {"picture": (file and _picture(file)) or as_png(pixels(inputs[place]))}
    if pool.kind == "audio":
        found = {"picture": as_png(pixels(spectrogram(inputs[place])), wide=True)}
        size = 0 if file is None else file.stat().st_size
        if file is not None and size <= room[0]:
            room[0] -= size
            found["sound"] = "data:audio/wav;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
        return found
    return {"picture": as_png(line(inputs[place][0].double().numpy(), height=168, width=480), wide=True)}


def _picture(file: Path) -> str | None:
    """A picture as a data address, upright and not larger than it is looked at; ``None`` where it cannot be drawn."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            if opened.mode.startswith("I"):
                return None  # 16 bits: what the network sees is scaled already
            image: Image.Image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception:  # it could be read before, so the smaller picture is shown
        return None
    times = max(1, _SMALL // max(image.size))
    if times > 1:  # so that small ones are seen at all
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((_SIDE, _SIDE))
    stored = io.BytesIO()
    kind = "PNG" if times > 1 else "JPEG"
    image.save(stored, format=kind, quality=88)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stored.getvalue()).decode("ascii")


def _json(content: Any) -> str:
    """JSON that no text in it can end: within a script element, only ``<`` could."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _hash(text: str) -> str:
    """What a Content-Security-Policy knows a script or a style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
