"""What a probe of a data set found as one page: the most and the least typical examples of every class, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError
from assay.files import write_atomically
from assay.lab.export import write
from assay.own.page import as_png, line, pixels, spectrogram, templates

if TYPE_CHECKING:
    from torch import Tensor

    from assay.own.ranking import Ranking

PAGE, SCORES = "ranking.html", "scores.parquet"
#: Examples at either end of a class, and of each list.
_ENDS, _LISTED = 10, 20
#: Letters of a text that are shown.
_LETTERS = 280


def write_ranking(ranking: Ranking, folder: Path) -> tuple[Path, Path]:
    """Write ``ranking.html``, which needs nothing else, and ``scores.parquet`` with a row for each example.

    Args:
        ranking: what was found.
        folder: where to; it is made if it is not there.

    Returns:
        The page and the table.

    Raises:
        AssayError: the folder cannot be written, or pyarrow is missing.
    """
    if folder.exists() and not folder.is_dir():
        raise AssayError(f"{folder} is a file: name a folder with --out.")
    classes = ranking.examples.classes
    text = (
        templates()
        .get_template("ranking.html")
        .render(
            ranking=ranking,
            kind=ranking.examples.kind,
            classes=[
                (name, _cards(ranking, ranking.typical(name, _ENDS)), _cards(ranking, ranking.untypical(name, _ENDS)))
                for name in classes
            ],
            lists=[(title, _cards(ranking, places.tolist()[:_LISTED])) for title, places in ranking.found.lists.items()],
            numbers=[(name, _number(value)) for name, value in ranking.found.numbers.items()],
            scores=SCORES,
        )
    )
    page, table = folder / PAGE, folder / SCORES
    write(ranking.table(), table)
    write_atomically(page, lambda path: path.write_text(text, encoding="utf-8"))
    return page, table


def _cards(ranking: Ranking, places: Sequence[int]) -> list[dict[str, Any]]:
    """What is shown of each example: a picture or its words, where it stands, its label and scores."""
    examples = ranking.examples
    cards = []
    for place in places:
        words = examples.read[place] if examples.read else ""
        cards.append(
            {
                "id": examples.ids[place],
                "label": ranking.label(place),
                "words": words[:_LETTERS] + ("…" if len(words) > _LETTERS else ""),
                "picture": _picture(examples.kind, examples.inputs[place]),
                "scores": " · ".join(f"{name} {_number(float(values[place]))}" for name, values in ranking.found.each.items()),
            }
        )
    return cards


def _picture(kind: str, example: Tensor) -> str:
    if kind == "images":
        return as_png(pixels(example))
    if kind == "audio":
        return as_png(pixels(spectrogram(example)), wide=True)
    return as_png(line(example[0].double().numpy()), wide=True) if kind == "series" else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞" if value > 0 else "–"
