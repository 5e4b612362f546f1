"""What every treatment costs: seconds of a training with it, in times those without, on images and on a table.

    python benchmarks/treatments.py          measures, prints the table of docs/trying.md, writes treatments.json
    python benchmarks/treatments.py elr ncr  measures these alone

Plain and treated trainings take turns, on one thread, in processor time; medians are compared. Building networks and evaluating
are left out. A treatment that changes the number or the size of steps is compared over the same number of epochs.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from assay.data import Dataset, Split
from assay.lab.machine import machine, now
from assay.nn import mlp
from assay.own import methods
from assay.own.methods import DoesNotFit
from assay.papers.architectures.wide_resnet import wide_resnet
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.schedules import cosine

ROUNDS = 3


def _data(name: str, count: int, *shape: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(count + 200, *shape, generator=generator), torch.arange(count + 200) % 10
    parts = [Split(inputs[rows], labels[rows]) for rows in (slice(count), slice(count, count + 100), slice(count + 100, None))]
    return Dataset(name, "classification", parts[0], parts[1], parts[2], tuple("0123456789"))


def _plain() -> dict[str, Recipe]:
    photos = Recipe(
        _data("images", 256, 3, 32, 32),
        model=partial(wide_resnet, 10, 2),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=cosine,
        epochs=3,
        batch_size=64,
        watch=(),
    )
    table = photos.replace(data=_data("table", 4_000, 20), model=partial(mlp, 20, 10), epochs=4)
    return {"images": photos, "table": table}


def _times(name: str, plain: Recipe) -> float | str:
    """Seconds with the treatment over those without, or why it does not fit."""
    try:
        treated = methods.treated(plain, [methods.find(name)])
    except DoesNotFit as why:
        return str(why)
    took: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * (ROUNDS + 1)):
        seconds = fit(treated if turn % 2 else plain, seed=0).seconds
        if turn > 1:  # the first of each warms up
            took[bool(turn % 2)].append(seconds)
    return statistics.median(took[True]) / statistics.median(took[False])


def main() -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or methods.every()[0]
    found = {}
    for name in names:
        found[name] = {kind: _times(name, plain) for kind, plain in _plain().items()}
        shown = {kind: f"{x:.2f}" if isinstance(x, float) else "-" for kind, x in found[name].items()}
        print(f"| `{name}` | {shown['images']} | {shown['table']} |", flush=True)
    if not sys.argv[1:]:
        whole = {"measured": now(), "machine": machine(), "torch": torch.__version__, "times": found}
        Path(__file__).with_suffix(".json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
