"""What a saved network says about new examples: streamed from file to file, scored where the truth is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.own.fresh import CHUNK, Fresh, stream
from assay.own.saved import SavedRun
from assay.own.writing import write_rows

#: ``progress(done)``: examples so far.
Progress = Callable[[int], None]


@dataclass
class Predicted:
    """What was predicted.

    Args:
        count: examples.
        out: the file with a row for each, if one was asked for.
        first: the first rows, as they stand in the file.
        metric: ``"accuracy"`` or ``"R²"``.
        score: on the examples whose truth was there; ``None`` where there was none.
        scored: how many these are.
        notes: what was left out or is uncertain.
    """

    count: int = 0
    out: str | None = None
    first: list[dict[str, Any]] = field(default_factory=list)
    metric: str = "accuracy"
    score: float | None = None
    scored: int = 0
    notes: list[str] = field(default_factory=list)


def predict(
    run: SavedRun,
    on: str | Path,
    out: str | Path | None = None,
    progress: Progress | None = None,
    keep: int | None = 5,
    chunk: int = CHUNK,
) -> Predicted:
    """Predict for new examples, a piece at a time.

    Args:
        run: a saved network.
        on: what :func:`assay.own.fresh.stream` reads.
        out: a .csv or .parquet file for ``id``, ``prediction`` and, for classes, ``p(CLASS)`` of each; ``None`` writes none.
        progress: is told how many examples are done.
        keep: how many rows to return besides; ``None`` returns all.
        chunk: examples in memory at a time.

    Raises:
        AssayError: the examples are not of the form that the network knows, or the file cannot be written.
    """
    found = Predicted(metric="accuracy" if run.task == "classification" else "R²", out=None if out is None else str(out))
    truth: list[tuple[Tensor, Tensor]] = []
    rows = _rows(run, on, found, truth, progress, keep, chunk)
    if out is None:
        for _ in rows:
            pass
    else:
        write_rows(Path(out), _columns(run), rows)
    _judge(found, run.task, truth)
    return found


def _columns(run: SavedRun) -> list[str]:
    return ["id", "prediction", *(f"p({name})" for name in run.classes)]


def _rows(
    run: SavedRun,
    on: str | Path,
    found: Predicted,
    truth: list[tuple[Tensor, Tensor]],
    progress: Progress | None,
    keep: int | None,
    chunk: int,
) -> Iterator[list[list[Any]]]:
    """Pieces of rows; on the way, what was asked for besides is noted in ``found`` and ``truth``."""
    names, columns = np.array(run.classes, dtype=object), _columns(run)
    for piece in stream(on, run.preparation, found.notes, chunk):
        outputs = run.outputs(run.preparation(piece.inputs)).double()
        if run.task == "classification":
            shares, places = outputs.softmax(dim=1), outputs.argmax(dim=1)
            said = [list(row) for row in zip(piece.ids, names[places.numpy()], *shares.T.tolist(), strict=True)]
        else:
            places = outputs.squeeze(1)
            said = [list(row) for row in zip(piece.ids, places.tolist(), strict=True)]
        _compare(run, piece, places, truth)
        room = len(said) if keep is None else max(0, keep - len(found.first))
        found.first += [dict(zip(columns, row, strict=True)) for row in said[:room]]
        found.count += len(piece)
        if progress is not None:
            progress(found.count)
        yield said


def _compare(run: SavedRun, piece: Fresh, predicted: Tensor, truth: list[tuple[Tensor, Tensor]]) -> None:
    if piece.target is None:
        return
    labels = torch.from_numpy(run.labels(piece.target))
    known = labels.isfinite()
    truth.append((predicted[known].double(), labels[known]))


def _judge(found: Predicted, task: str, truth: Sequence[tuple[Tensor, Tensor]]) -> None:
    from assay.own.trying import score

    said, labels = (torch.cat(parts) for parts in zip(*truth, strict=True)) if truth else (torch.empty(0), torch.empty(0))
    if not len(labels):
        return
    if task == "regression" and labels.unique().numel() < 2:
        found.notes.append("the targets are all the same, so there is no R² of them")
        return
    found.score, found.scored = score(said, labels, task), len(labels)
    if len(labels) < found.count:
        found.notes.append(f"{found.count - len(labels)} examples have no target that is known, and are not in the score")
