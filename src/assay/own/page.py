"""What a probe saw as one page with pictures, which needs nothing else: for a colleague, or for the wall."""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.files import save_tensors, write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment
    from torch import Tensor

    from assay.own.attacking import Tested
    from assay.own.explaining import Compared
    from assay.own.probing import Looked

HERE = Path(__file__).parent
PAGE, TENSORS = "probe.html", "attributions.safetensors"
#: Height and width of a picture on the page, in pixels.
_SIDE = 168
#: Columns of a table that are drawn.
_COLUMNS = 15


def templates() -> Environment:
    """Where pages about people's data are made from; what they show is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def require_web() -> None:
    """Say what is missing before anything long is done."""
    if importlib.util.find_spec("jinja2") is None:
        raise AssayError('A page with pictures needs jinja2: install it with `pip install "assay[web]"`, or leave --out out.')


def write_page(looked: Looked, folder: Path) -> Path:
    """Write ``probe.html``, and beside it ``attributions.safetensors`` with all numbers.

    Args:
        looked: what was seen.
        folder: where to; it is made if it is not there.

    Returns:
        The page.

    Raises:
        AssayError: jinja2 is missing, or the folder cannot be written.
    """
    return _write(looked, folder, "probe.html")


def write_comparison(compared: Compared, folder: Path) -> Path:
    """Write ``probe.html`` with the methods side by side, and all attributions beside it.

    Args:
        compared: what was measured.
        folder: where to; it is made if it is not there.

    Returns:
        The page.

    Raises:
        AssayError: jinja2 is missing, or the folder cannot be written.
    """
    from assay.own.explaining import ALIKE

    rows = [
        {
            "one": one,
            "curves": [(fill, _plot(*one.curves[fill], *_ends(compared, fill)), *one.areas[fill]) for fill in one.areas],
            "gap": "" if one.gap is None else f"{100 * one.gap:.1f} %",
            "alike": "" if one.alike is None else f"{one.alike:.2f}",
            "input_like": one.alike is not None and one.alike > ALIKE,
            "control": one is compared.chance,
        }
        for one in (*compared.methods, compared.chance)
    ]
    return _write(compared.looked, folder, "explain.html", compared=compared, rows=rows)


def _ends(compared: Compared, fill: str) -> tuple[float, float]:
    """The lowest and highest score of any curve with this fill: plots beside each other have one scale."""
    values = [v for one in (*compared.methods, compared.chance) for curve in one.curves[fill] for v in curve]
    return min(values), max(values)


def _plot(deletion: Sequence[float], insertion: Sequence[float], low: float, high: float) -> tuple[str, str]:
    """Points of two lines in a box of 100 by 40."""

    def points(curve: Sequence[float]) -> str:
        across, up = 100 / (len(curve) - 1), 40 / max(high - low, 1e-12)
        return " ".join(f"{number * across:.1f},{40 - (value - low) * up:.1f}" for number, value in enumerate(curve))

    return points(deletion), points(insertion)


#: Colours of the lines on a page about attacks, for light and dark paper: always the same for the same attack.
_PROVED, _WORST = "#0b9a7c", "#d83a3a"
_ATTACKS = ("#c9822b", "#1e88d8", "#9a6fd9", "#888888")
#: Examples that a page about attacks shows at once; the others are folded away.
_FIRST = 24


def write_tested(tested: Tested, folder: Path) -> Path:
    """Write ``probe.html`` with accuracy against the size of the change, and the examples and their numbers beside it.

    Args:
        tested: what was measured.
        folder: where to; it is made if it is not there.

    Returns:
        The page.

    Raises:
        AssayError: jinja2 is missing, or the folder cannot be written.
    """
    attacks = list(tested.rows[0].under)
    # The sizes stand evenly, since they mostly double; the first place is no change at all.
    places = [40 + 590 * number / len(tested.rows) for number in range(len(tested.rows) + 1)]

    def line(values: Sequence[float]) -> str:
        heights = [270 - 250 * value for value in (tested.clean, *values)]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))

    # The worst of all lies on one attack or another: a broad line under theirs.
    lines = [("worst of all", _WORST, 7.0, line([row.worst for row in tested.rows]))]
    for attack, colour in zip(attacks, itertools.cycle(_ATTACKS), strict=False):
        lines.append((attack, colour, 1.8, line([row.under[attack] for row in tested.rows])))
    if all(row.proved is not None for row in tested.rows):
        lines.append(("proved", _PROVED, 2.5, line([row.proved or 0.0 for row in tested.rows])))
    return _write(
        tested.looked,
        folder,
        "robust.html",
        tested=tested,
        norm="inf" if tested.norm == math.inf else "2",
        attacks=attacks,
        lines=lines,
        grid=[(270 - 250 * share / 4, f"{25 * share} %") for share in range(5)],
        ticks=list(zip(places, ["0", *(tested.written(row.eps) for row in tested.rows)], strict=True)),
        ranked=_most_easily_fooled(tested),
        first=_FIRST,
    )


def _most_easily_fooled(tested: Tested) -> list[tuple[int, str, str]]:
    """Places of the examples, those first that the smallest change fools; what becomes of each, and the size of the change.

    Those that nothing fooled come next, and those that are wrong without a change last.
    """
    found = []
    for place, (example, after) in enumerate(zip(tested.looked.examples, tested.after, strict=True)):
        size = example.numbers["smallest change found"]
        if after is not None:
            found.append((size, place, after, f"{size:.3g}"))
        elif size > 0:
            found.append((math.inf, place, "", "not fooled"))
        else:
            found.append((math.inf, place + len(tested.after), "", "wrong as it is"))
    return [(place % len(tested.after), after, text) for _, place, after, text in sorted(found)]


def _write(looked: Looked, folder: Path, template: str, **more: Any) -> Path:
    require_web()
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{folder} is a file: name a folder with --out.")
    text = (
        templates()
        .get_template(template)
        .render(
            **more,
            looked=looked,
            numbers=[(name, _number(value)) for name, value in looked.numbers.items()],
            summary=[(name, *map(_number, values)) for name, values in looked.summary().items()],
            columns={name: _bars(looked.columns(name)) for name in looked.attributions} if looked.kind == "table" else {},
            examples=[_example(looked, place) for place in range(len(looked.examples))],
        )
    )
    page = folder / PAGE
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    tensors = {
        f"{name}/{place}": one.contiguous() for name, found in looked.attributions.items() for place, one in enumerate(found)
    }
    if looked.inputs is not None:
        tensors["inputs"] = looked.inputs.contiguous()
    tensors |= {f"others/{name}": other.detach().contiguous() for name, other in looked.others.items()}
    save_tensors(folder / TENSORS, tensors, {"kind": "probe", "probe": looked.probe, "ids": [one.id for one in looked.examples]})
    return page


def _number(value: float) -> str:
    return f"{value + 0.0:.4g}" if math.isfinite(value) else "∞" if value > 0 else "−∞" if value < 0 else "–"


def _bars(columns: dict[str, float]) -> list[tuple[str, str, float]]:
    most = max(columns.values(), default=0.0) or 1.0
    return [(name, _number(value), 100 * value / most) for name, value in list(columns.items())[:_COLUMNS]]


def _example(looked: Looked, place: int) -> dict[str, Any]:
    """What the page shows of one example."""
    example = looked.examples[place]
    pictures: list[tuple[str, str]] = []
    words: list[tuple[str, list[tuple[str, str]]]] = []
    bars: list[tuple[str, list[tuple[str, str, float, float]]]] = []
    if looked.kind == "images" and looked.inputs is not None:
        image = pixels(looked.inputs[place])
        pictures.append(("as the network takes it", as_png(image)))
        for name, found in looked.attributions.items():
            pictures.append((name, as_png(heat(found[place], image))))
        for name, other in looked.others.items():
            pictures.append((name, as_png(pixels(other[place].detach()))))
    sound = looked.inputs[place] if looked.kind == "audio" and looked.inputs is not None else None
    if sound is not None and looked.attributions:
        pictures.append(("the spectrogram", as_png(pixels(spectrogram(sound)), wide=True)))
    for name, found in looked.attributions.items():
        if looked.kind == "text":
            strengths = looked.strengths(found[place])
            words.append((name, [(word, _ink(strength)) for word, strength in zip(example.words, strengths, strict=True)]))
        elif looked.kind == "table":
            bars.append((name, _signed(looked, found[place])))
        elif looked.kind == "series" and looked.inputs is not None:
            pictures.append((name, as_png(_strip(looked.inputs[place], found[place]), wide=True)))
        elif sound is not None:
            pictures.append((name, as_png(heat(spectrogram(found[place]), pixels(spectrogram(sound))), wide=True)))
    return {
        "id": example.id,
        "said": example.said,
        "right": example.right,
        "wrong": example.right is not None and example.right != example.said,
        "numbers": [(name, _number(value)) for name, value in example.numbers.items()],
        "pictures": pictures,
        "words": words,
        "bars": bars,
    }


# ---------------------------------------------------------------------------------------------------- pictures


def heat(attributions: Tensor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Attributions (C, H, W) as red (for) and blue (against) over the grey image: (H, W, 3).

    Channels are summed. The scale ends at the 99th percentile, so that one bright pixel does not leave the others white.
    """
    whole = attributions.detach().double().sum(dim=0).numpy()
    most = float(np.quantile(np.abs(whole), 0.99)) or float(np.abs(whole).max()) or 1.0
    strength = np.clip(whole / most, -1, 1)[..., None]
    grey = 255 - (255 - image.mean(axis=2, keepdims=True)) * 0.18  # pale, so that the colours stand out
    red, blue = np.array([200.0, 30.0, 30.0]), np.array([30.0, 70.0, 200.0])
    ink = np.where(strength > 0, red, blue)
    mixed = grey * (1 - np.abs(strength)) + ink * np.abs(strength)
    return np.asarray(mixed.round(), dtype=np.uint8)


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) as (H, W, 3) of whole numbers; what is not in [0, 1] is brought there."""
    values = image.detach().double()
    low, high = float(values.min()), float(values.max())
    if low < -0.5 or high > 1.5:
        values = (values - low) / max(high - low, 1e-12)
    shown = values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)
    return np.asarray((shown.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy(), dtype=np.uint8)


def spectrogram(bands: Tensor) -> Tensor:
    """(bands, L) as an image (1, H, W), low notes below, each value a square of three pixels."""
    return bands.detach().flip(0).repeat_interleave(3, dim=0).repeat_interleave(3, dim=1).unsqueeze(0)


def _strip(series: Tensor, attributions: Tensor) -> NDArray[np.uint8]:
    """A series (C, L) as a line over its attributions (C, L), the first channel: (H, L', 3)."""
    height, width = 84, max(336, min(2 * series.shape[1], 672))
    places = np.linspace(0, series.shape[1] - 1, width)
    steps = np.arange(series.shape[1])
    line = np.interp(places, steps, series[0].detach().double().numpy())
    shares = np.interp(places, steps, attributions.detach().double().sum(dim=0).numpy())
    most = float(np.abs(shares).max()) or 1.0
    strength = np.abs(shares / most)[None, :, None]
    ink = np.where((shares > 0)[None, :, None], np.array([220.0, 60.0, 60.0]), np.array([60.0, 100.0, 220.0]))
    picture = np.broadcast_to(255 * (1 - strength) + ink * strength, (height, width, 3)).copy()
    spread = max(float(np.ptp(line)), 1e-12)
    rows = ((line.max() - line) / spread * (height - 5)).round().astype(int) + 2
    for column in range(width):
        begin, end = sorted((rows[max(column - 1, 0)], rows[column]))
        picture[begin - 1 : end + 2, column] = 20
    return np.asarray(picture.round(), dtype=np.uint8)


def line(values: NDArray[np.float64], height: int = 84, width: int = 168) -> NDArray[np.uint8]:
    """A series as a line: (H, W, 3)."""
    found = np.interp(np.linspace(0, len(values) - 1, width), np.arange(len(values)), values)
    rows = ((found.max() - found) / max(float(np.ptp(found)), 1e-12) * (height - 5)).round().astype(int) + 2
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    for column in range(width):
        begin, end = sorted((rows[max(column - 1, 0)], rows[column]))
        picture[begin - 1 : end + 2, column] = 20
    return picture


def as_png(picture: NDArray[np.uint8], wide: bool = False) -> str:
    """As a data address; small pictures are enlarged without blurring their pixels."""
    from PIL import Image

    image = Image.fromarray(picture)
    if not wide:
        times = max(1, round(_SIDE / max(picture.shape[:2])))
        image = image.resize((picture.shape[1] * times, picture.shape[0] * times), Image.Resampling.NEAREST)
    stored = io.BytesIO()
    image.save(stored, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode("ascii")


def _ink(strength: float) -> str:
    """A background colour: red for, blue against, as strong as ``strength`` in [-1, 1]."""
    colour = "200 30 30" if strength > 0 else "30 70 200"
    return f"rgb({colour} / {abs(strength) * 0.6:.2f})"


def _signed(looked: Looked, shares: Tensor) -> list[tuple[str, str, float, float]]:
    """The largest columns of one row: name, number, and where its bar begins and how long it is, in per cent."""
    strengths = looked.strengths(shares)
    ranked = sorted(range(len(strengths)), key=lambda column: -abs(strengths[column]))[:_COLUMNS]
    found = []
    for column in ranked:
        length = 50 * abs(strengths[column])
        begin = 50.0 if strengths[column] > 0 else 50 - length
        found.append((looked.features[column], _number(float(shares[column])), begin, length))
    return found
