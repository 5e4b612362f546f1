"""Put a paper's probe on a data set itself, and hand back what it found of every example.

    ranking = rank("prototypicality", on="photos/")
    ranking.table(); ranking.typical("cats", 10); ranking.untypical("cats", 10)

Such a probe trains what networks it needs; they are made here, small ones, since it may need many. How a paper offers one is
told in :mod:`assay.view`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from assay import catalogue, clock
from assay.data import Dataset
from assay.data.dataset import stratified
from assay.errors import AssayError
from assay.nn import mlp
from assay.nn.small import ConvMax, ConvNet
from assay.nn.text import cooccurrence_vectors, token_ids, vocabulary
from assay.own import baselines
from assay.own.material import Material, lay_out, place_of, prepare
from assay.own.named import Named
from assay.own.offers import find, looks_at_data
from assay.own.opening import imported, known
from assay.own.preparing import prepared
from assay.own.probing import parse
from assay.own.reading import gather
from assay.train.loop import Report
from assay.view import Collection, Ranked

if TYPE_CHECKING:
    from assay.own.offers import DataProbe

#: Examples that are looked at, if nobody says how many.
MOST = 4000
#: Words of a text that are looked at, and of the vocabulary.
_LENGTH, _WORDS = 64, 5000
#: Columns of a row that are shown.
_COLUMNS = 8


@dataclass(frozen=True)
class Examples:
    """Examples as networks take them and as people know them.

    Args:
        inputs: (N, ...) float, as :class:`~assay.view.Collection` has them.
        labels: (N,) int64 classes or float numbers.
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        classes: names; empty where labels are numbers.
        ids: where each stands: a file, a row, a place in a known data set.
        read: what a person can read of each: a text, the columns of a row; empty for pictures.
        source: the data, in a line.
    """

    inputs: Tensor
    labels: Tensor
    kind: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    read: tuple[str, ...]
    source: str


@dataclass
class Ranking:
    """What a probe of a data set found, with what it was put on.

    Args:
        probe: ``"key:function"``.
        what: what the probe does, in a line.
        paper: title and year of the paper.
        network: what was trained, in a few words.
        examples: that were looked at.
        found: by the probe.
        notes: what a reader should know, without full stops.
        seconds: that it took.
    """

    probe: str
    what: str
    paper: str
    network: str
    examples: Examples
    found: Ranked
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def table(self) -> pd.DataFrame:
        """A row for each example: where it stands, its label, and all that was found of it."""
        labels = self.examples.labels.numpy()
        names = np.array(self.examples.classes, dtype=object)[labels] if self.examples.classes else labels
        frame = pd.DataFrame({"id": list(self.examples.ids), "label": names})
        return frame.assign(**{name: values.double().numpy() for name, values in self.found.each.items()})

    def typical(self, name: str, count: int) -> list[int]:
        """Positions of the most typical examples of a class, the most typical first."""
        return self._of(name)[::-1][:count]

    def untypical(self, name: str, count: int) -> list[int]:
        """Positions of the least typical examples of a class, the least typical first."""
        return self._of(name)[:count]

    def _of(self, name: str) -> list[int]:
        """Positions of a class, from the least to the most typical."""
        order = self.found.each[self.found.by].argsort(stable=True)
        found: list[int] = order[self.examples.labels[order] == self.examples.classes.index(name)].tolist()
        return found

    def label(self, place: int) -> str:
        """What the example at this place is labelled as."""
        label = self.examples.labels[place].item()
        return self.examples.classes[int(label)] if self.examples.classes else f"{label:.4g}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinite numbers become ``None``."""
        rows = [{name: _plain(value) for name, value in row.items()} for row in self.table().to_dict("records")]
        return {
            "probe": self.probe,
            "paper": self.paper,
            "network": self.network,
            "data": self.examples.source,
            "kind": self.examples.kind,
            "by": self.found.by,
            "numbers": {name: _plain(value) for name, value in self.found.numbers.items()},
            "lists": {title: [self.examples.ids[place] for place in rows.tolist()] for title, rows in self.found.lists.items()},
            "examples": rows,
            "notes": self.notes,
            "seconds": self.seconds,
        }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rank(
    name: str,
    on: str | Path | Dataset,
    model: str | None = None,
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    examples: int = MOST,
    seed: int = 0,
    device: str = "cpu",
    settings: Sequence[str] = (),
    report: Report | None = None,
) -> Ranking:
    """Put a probe of data sets on one.

    Args:
        name: key of a paper with such a probe, or ``"key:function"``.
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set.
        model: ``MODULE:FUNCTION`` that makes a fresh network whenever it is called; ``None`` takes a small one for such data.
        named: columns of the data that have a meaning.
        examples: how many are looked at; of more, so many are drawn, each class in proportion.
        seed: of the draw and of the probe.
        device: where to compute.
        settings: options of the probe, as ``"models=10"``.
        report: is told how far it is.

    Raises:
        AssayError: the probe, the data, the network or an option is wrong, or they do not fit together.
    """
    if examples < 1:
        raise AssayError(f"{examples} examples were asked for: give at least 1.")
    if not looks_at_data(name):
        raise AssayError(f"{name} is a probe of networks: call assay.own.probe.")
    paper, function = find(name)
    options = parse(function, settings)
    there = collect(on, named)
    return look_over(paper, function, there, model, options, examples, seed, device, report)  # type: ignore[arg-type]


def look_over(
    paper: catalogue.Paper,
    function: DataProbe,
    there: Examples,
    model: str | None,
    options: dict[str, Any],
    most: int = MOST,
    seed: int = 0,
    device: str = "cpu",
    report: Report | None = None,
) -> Ranking:
    """Call a probe of data sets, and see that what it gives is one number for each example.

    Raises:
        AssayError: the network does not take these examples, or the probe does not work on them.
    """
    notes = []
    if len(there.labels) > most:
        notes.append(f"{most:,} of {len(there.labels):,} examples were drawn and looked at; --examples takes more")
        there = _drawn(there, most, seed)
    make, network = _network(model, there)
    data = Collection(there.inputs, there.labels, make, there.kind, there.classes, seed, device, report)
    began = clock.seconds()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            found = function(data, **options)
        except (AssayError, ValueError) as error:
            raise AssayError(f"{function.__name__} does not work here: {str(error).rstrip('.')}.") from error
    for name, values in found.each.items():
        if values.shape != there.labels.shape:
            raise AssayError(
                f"{function.__name__} gives {tuple(values.shape)} as {name!r} of {len(there.labels)} examples: mend the probe."
            )
    return Ranking(
        probe=f"{paper.key}:{function.__name__}",
        what=(inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " "),
        paper=f"{paper.title} ({paper.year})",
        network=network,
        examples=there,
        found=found,
        notes=[*notes, *found.notes],
        seconds=clock.seconds() - began,
    )


# ---------------------------------------------------------------------------------------------------- the examples


def collect(on: str | Path | Dataset, named: Named) -> Examples:
    """All examples of somebody's data: what would train, validate and test.

    Raises:
        AssayError: they cannot be read, or are of no kind that there are networks for.
    """
    if isinstance(on, Dataset) or not Path(on).exists():
        raw = on if isinstance(on, Dataset) else known(str(on))
        ids = [f"{part} {number}" for part, split in raw._splits() for number in range(len(split))]
        return _examples(prepared(raw)[0], tuple(ids), _values(raw))
    layout = lay_out(gather(Path(on), named), 0)
    order = np.concatenate([layout.places[part] for part in ("train", "valid", "test")])
    material = layout.material
    return _examples(prepare(layout)[0], tuple(place_of(material, row) for row in order), _read(material, order))


def _examples(data: Dataset, ids: tuple[str, ...], read: tuple[str, ...]) -> Examples:
    kind = baselines.kind(data)
    splits = [split for _, split in data._splits() if len(split)]
    if kind == "text":
        inputs = _vectors([str(text) for split in splits for text in split.inputs])
    else:
        inputs = torch.cat([split.inputs for split in splits if isinstance(split.inputs, Tensor)])
    labels = torch.cat([split.labels for split in splits])
    return Examples(inputs, labels, kind, data.classes, ids, read, data.source or data.name)


def _vectors(texts: list[str]) -> Tensor:
    """Texts as series of word vectors (N, D, L), which know the texts but no labels."""
    words = vocabulary(texts, _WORDS)
    ids = token_ids(texts, words, _LENGTH)
    return cooccurrence_vectors(ids, len(words))[ids].transpose(1, 2).contiguous()


def _read(material: Material, order: NDArray[np.int64]) -> tuple[str, ...]:
    if isinstance(material.inputs, tuple):
        return tuple(str(material.inputs[row]) for row in order)
    return _rows(material.inputs.iloc[order]) if isinstance(material.inputs, pd.DataFrame) else ()


def _values(data: Dataset) -> tuple[str, ...]:
    splits = [split for _, split in data._splits() if len(split)]
    if isinstance(data.train.inputs, tuple):
        return tuple(str(text) for split in splits for text in split.inputs)
    if len(data.input_shape) != 1:
        return ()
    width = data.input_shape[0]
    names = data.features if len(data.features) == width else tuple(f"x{number}" for number in range(width))
    values = torch.cat([split.inputs for split in splits if isinstance(split.inputs, Tensor)])
    return _rows(pd.DataFrame(values.numpy(), columns=list(names)))


def _rows(frame: pd.DataFrame) -> tuple[str, ...]:
    """The first columns of each row, as ``age 41, job clerk``."""
    few = frame.iloc[:, :_COLUMNS]
    shown = [[f"{name} {_short(value)}" for value in few[name]] for name in few]
    more = f", and {frame.shape[1] - _COLUMNS} more" if frame.shape[1] > _COLUMNS else ""
    return tuple(", ".join(row) + more for row in zip(*shown, strict=True))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _drawn(there: Examples, most: int, seed: int) -> Examples:
    rows = stratified(there.labels, most, torch.Generator().manual_seed(seed))
    kept = rows.tolist()
    return Examples(
        there.inputs[rows],
        there.labels[rows],
        there.kind,
        there.classes,
        tuple(there.ids[row] for row in kept),
        tuple(there.read[row] for row in kept) if there.read else (),
        there.source,
    )


# ---------------------------------------------------------------------------------------------------- the network


def _network(model: str | None, there: Examples) -> tuple[Callable[[], nn.Module], str]:
    """A function that makes a network for these examples, and what to call it."""
    if model is None:
        return _small(there), "a small one for such data, trained anew for every question"
    module, colon, function = model.partition(":")
    if not colon or module in ("timm", "transformers") or Path(model).exists():
        raise AssayError(
            f"This probe trains networks of its own, and {model} is one that was trained: name MODULE:FUNCTION that makes a "
            "fresh one whenever it is called, or leave --model out."
        )
    make = partial(imported, module, function)
    with torch.no_grad():
        try:
            outputs = make().eval()(there.inputs[:2])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise AssayError(f"{model} does not take examples {tuple(there.inputs.shape[1:])}: {reason}.") from error
    wanted = max(1, len(there.classes))
    if outputs.shape != (min(2, len(there.inputs)), wanted):
        raise AssayError(f"{model} gives {tuple(outputs.shape)} for 2 examples: there are {wanted} classes.")
    return make, model


def _small(there: Examples) -> Callable[[], nn.Module]:
    """Quick to train, without batch normalisation: it is trained some thirty times."""
    shape, outputs = tuple(there.inputs.shape[1:]), max(1, len(there.classes))
    if there.kind == "images" and shape[1] == shape[2] and shape[1] % 4 == 0:
        return partial(ConvNet, shape[0], outputs, shape[1], (8, 16), 64)
    if there.kind in ("text", "audio"):
        return partial(ConvMax, shape[0], outputs)
    return partial(mlp, math.prod(shape), outputs, (128,))
