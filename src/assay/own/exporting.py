"""A saved network as a ``torch.export`` program, which runs without assay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.errors import AssayError
from assay.files import write_atomically
from assay.own.plainly import plainly
from assay.own.saved import SavedRun


def export_model(run: SavedRun, out: str | Path, on: str | Path | None = None) -> float:
    """Write the network as a ``torch.export`` program whose batch may have any size, with its preprocessing inside.

    The program takes prepared inputs (N, ...). It is run beside the network, with batches of other sizes than it was traced
    with, before it is written. ``run.json`` lies in the file as the extra file of that name:

        extra = {"run.json": ""}
        program = torch.export.load("model.pt2", extra_files=extra)

    Args:
        run: a saved network.
        out: a .pt2 file.
        on: examples to compare on; random ones of the right shape otherwise.

    Returns:
        The largest difference between the outputs of the two.

    Raises:
        AssayError: the network cannot be exported, or the program says something else than the network.
    """
    out = Path(out)
    if out.suffix != ".pt2":
        raise AssayError(f"{out} has another suffix than .pt2, by which torch.export's files are known: name such a file.")
    examples = _examples(run, on)
    model = run.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        with plainly():
            program = torch.export.export(model, (examples[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:
        why = str(error).strip().splitlines()
        raise AssayError(f"torch.export cannot follow the network ({why[0] if why else type(error).__name__}).") from error
    frozen, furthest = program.module(), 0.0
    with torch.no_grad():
        for size in (1, 2, len(examples)):
            ours, theirs = model(examples[:size]), frozen(examples[:size])
            furthest = max(furthest, float((ours - theirs).abs().max()))
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
                raise AssayError(f"The exported program differs from the network by {furthest:.2g} on {size} examples.")
    extra = {"run.json": json.dumps(run.facts, ensure_ascii=False)}
    write_atomically(out, lambda temporary: _save_program(program, temporary, extra))
    return furthest


def _examples(run: SavedRun, on: str | Path | None) -> Tensor:
    if on is not None:
        return run.inputs(on)[:64]
    shape, integers = run.facts["input"]["shape"], run.facts["input"]["integers"]
    generator = torch.Generator().manual_seed(0)
    if integers is not None:
        return torch.randint(1, max(2, integers), (7, *shape), generator=generator)  # 0 is padding: it only ever ends a text
    return torch.randn(7, *shape, generator=generator)


# ---------------------------------------------------------------------------------------------------- files


@contextmanager
def _named(temporary: Path) -> Iterator[Path]:
    """torch.export insists on the suffix; the file that is put in place has none."""
    named = temporary.with_name(f"{temporary.name}.pt2")
    try:
        yield named
        named.replace(temporary)
    finally:
        named.unlink(missing_ok=True)


def _save_program(program: Any, temporary: Path, extra: dict[str, str]) -> None:
    with _named(temporary) as path:
        torch.export.save(program, path, extra_files=extra)
