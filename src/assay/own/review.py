"""The page on which people mend labels: one file that needs nothing else and sends nothing anywhere.

Everything that is shown is data, put into the page as JSON and from there into text nodes. The page's own rules
(Content-Security-Policy) let no other script run and nothing be fetched, whatever stands in the data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from assay.errors import AssayError
from assay.files import write_atomically
from assay.own.answers import FORMAT
from assay.own.page import HERE, as_png, line, pixels, require_web, spectrogram

if TYPE_CHECKING:
    from assay.own.examples import Examples
    from assay.own.relabelling import Queue

#: Pixels of the longer side of a picture, letters of a text, and bytes of all recordings together that a page holds.
_SIDE, _LETTERS, _SOUND = 480, 20_000, 64_000_000
#: Smaller pictures are enlarged to about so many pixels.
_SMALL = 280


def write_page(queue: Queue, out: Path) -> None:
    """Write the page of a queue.

    Args:
        queue: what to ask.
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
        name=queue.examples.data.name, content=_json(_content(queue)), script=script, style=style, hash=_hash
    )
    write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))


def _content(queue: Queue) -> dict[str, Any]:
    """All that the page knows."""
    room = [_SOUND]
    return {
        "format": FORMAT,
        "queue": queue.key,
        "data": queue.examples.data.name,
        "classes": list(queue.examples.data.classes),
        "items": [
            {
                "id": item.id,
                "mark": item.mark,
                "given": item.given,
                "believed": item.believed,
                "wrong": round(item.wrong, 3),
                "shares": [[name, round(share, 3)] for name, share in item.shares],
                **_shown(queue.examples, item.place, room),
            }
            for item in queue.items
        ],
    }


def _shown(examples: Examples, place: int, room: list[int]) -> dict[str, Any]:
    """What a person sees of an example: ``text``, ``cells``, ``picture`` or ``sound``.

    Args:
        examples: all.
        place: which.
        room: bytes that are left for recordings; what is taken is taken off.
    """
    from assay.own.relabelling import cells

    material = examples.material
    inputs = examples.data.train.inputs if material is None else material.inputs
    if isinstance(inputs, tuple):
        text = inputs[place]
        return {"text": text[:_LETTERS] + ("…" if len(text) > _LETTERS else "")}
    if examples.kind == "table":
        return {"cells": cells(examples, place)}
    assert isinstance(inputs, torch.Tensor)
    file = None if material is None or material.files is None else material.files[place]
    if examples.kind == "images":
        return {"picture": (file and _picture(file)) or as_png(pixels(inputs[place]))}
    if examples.kind == "audio":
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
