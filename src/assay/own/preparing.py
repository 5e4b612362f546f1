"""What happens to an example between its file and the network: learnt on the training part alone, kept as plain JSON.

A :class:`Preparation` is a form (how new examples must look when they are read) and steps, one after the other. A step is
a frozen dataclass whose fields are numbers, texts and tuples of them, so that it goes to JSON and back unchanged, and a
function of all that it is given. What a step computes after a round trip is the same to the last bit.

A new kind of step is a class like those below and a line in :data:`STEPS`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.data import Dataset, Split
from assay.data.aside import set_aside
from assay.data.dataset import channel_scale
from assay.errors import AssayError
from assay.nn.text import encode, token_ids

#: Examples as they are read: images (N, C, H, W) in [0, 1], series (N, C, L), texts, or the columns of a table.
Inputs: TypeAlias = Tensor | tuple[str, ...] | pd.DataFrame

#: A category of its own has at most so many columns; the rarest ones share the last.
MOST_CATEGORIES = 50
#: What the column of the rare ones is called.
RARE = "(rare)"


class Unrepeatable(AssayError):
    """Something cannot be done again from plain values. Without a full stop: it becomes part of a sentence."""


class Step(Protocol):
    """One step of a preparation: a frozen dataclass of plain values."""

    def __call__(self, inputs: Any, /) -> Any: ...


# ---------------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Columns:
    """Columns of a table: numbers with gaps filled and scaled, then where gaps were, then a column of 0 and 1 for each category.

    Args:
        numbers: names of the numeric columns.
        fill: what stands for a gap: the training median.
        mean: training mean, gaps filled.
        scale: training standard deviation; 1 where there is none.
        words: names of the columns of words.
        categories: for each of these, the words that have a column of their own.
        rare: for each of these, the words that share one column, where also those go that were never seen. Without any,
            a word that was never seen is 0 in all columns.
        gaps: numeric columns with gaps in training, each of which gets a column that is 1 where there is one.

    Shape: a frame of N rows -> (N, D) float32.
    """

    numbers: tuple[str, ...] = ()
    fill: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    rare: tuple[tuple[str, ...], ...] = ()
    gaps: tuple[str, ...] = ()

    @classmethod
    def fit(cls, frame: pd.DataFrame) -> Self:
        """Learn medians, scales and categories from training rows."""
        from sklearn.impute import SimpleImputer
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        numbers = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name])]
        words = [name for name in frame if name not in numbers]
        learnt: dict[str, Any] = {"numbers": tuple(numbers), "words": tuple(words)}
        if numbers:
            imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(frame[numbers])
            scaler = StandardScaler().fit(imputer.transform(frame[numbers]))
            learnt |= {
                "fill": tuple(imputer.statistics_.tolist()),
                "mean": tuple(scaler.mean_.tolist()),
                "scale": tuple(scaler.scale_.tolist()),
                "gaps": tuple(name for name in numbers if frame[name].isna().any()),
            }
        if words:
            encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES).fit(frame[words])
            rare = [tuple(map(str, () if few is None else few)) for few in encoder.infrequent_categories_]
            every = [tuple(map(str, found)) for found in encoder.categories_]
            learnt["rare"] = tuple(rare)
            learnt["categories"] = tuple(
                tuple(word for word in found if word not in set(few)) for found, few in zip(every, rare, strict=True)
            )
        return cls(**learnt)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the D columns; ``COLUMN=WORD`` for those of categories."""
        names = [*self.numbers, *(f"{name} is missing" for name in self.gaps)]
        for name, known, few in zip(self.words, self.categories, self.rare, strict=True):
            names += [f"{name}={word}" for word in known] + ([f"{name}={RARE}"] if few else [])
        return tuple(names)

    def __call__(self, frame: pd.DataFrame) -> Tensor:
        out = np.zeros((len(frame), len(self.features)), dtype=np.float32)
        for place, name in enumerate(self.numbers):
            values = frame[name].to_numpy(np.float64)
            values = np.where(np.isnan(values), self.fill[place], values)
            out[:, place] = (values - self.mean[place]) / self.scale[place]
        begin = len(self.numbers)
        for name in self.gaps:
            out[:, begin] = frame[name].isna()
            begin += 1
        for name, known, few in zip(self.words, self.categories, self.rare, strict=True):
            places = pd.Index(known, dtype=object).get_indexer(frame[name].astype(object))
            there = places >= 0
            out[np.flatnonzero(there), begin + places[there]] = 1
            if few:
                out[~there, begin + len(known)] = 1
            begin += len(known) + bool(few)
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Line:
    """One straight line for each channel or column: ``(inputs - shift) / scale``.

    Args:
        shift: one number, or one a channel.
        scale: as many.

    Shape: (N, C, ...) -> the same.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def standard(cls, train: Tensor) -> Self:
        """Mean 0 and standard deviation 1 for each channel of the training inputs (N, C, ...)."""
        mean, std = channel_scale(train)
        return cls(tuple(mean.float().tolist()), tuple(std.float().tolist()))

    @classmethod
    def between(cls, train: Tensor, low: float, high: float) -> Self:
        """The smallest training value becomes ``low``, the largest ``high``."""
        smallest, largest = (value.double() for value in train.aminmax())
        std = (largest - smallest) / (high - low)
        return cls(((smallest - low * std).float().item(),), (std.float().item(),))

    def __call__(self, inputs: Tensor) -> Tensor:
        shift, scale = (torch.tensor(values).view(1, -1, *[1] * (inputs.dim() - 2)) for values in (self.shift, self.scale))
        return (inputs - shift) / scale


@dataclass(frozen=True)
class Tokens:
    """Texts as positions of their words in a vocabulary.

    Args:
        vocabulary: the words, in order; the first two stand for padding and for words that are not in it.
        length: words of a text that are kept.

    Shape: N texts -> (N, length) int64.
    """

    vocabulary: tuple[str, ...]
    length: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return token_ids(texts, self.vocabulary, self.length)


#: Name in the JSON -> class.
STEPS: dict[str, type[Any]] = {"columns": Columns, "line": Line, "tokens": Tokens}


# ---------------------------------------------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Preparation:
    """How examples are read and made into the input of a network.

    Args:
        form: how new examples must look when they are read, as plain JSON values; ``form["kind"]`` is ``"table"``,
            ``"text"``, ``"images"``, ``"series"``, ... (:func:`form_of` says what else there is).
        steps: what is done to them, in order.
    """

    form: Mapping[str, Any]
    steps: tuple[Step, ...] = ()

    @property
    def kind(self) -> str:
        """What the examples are: ``"table"``, ``"text"``, ``"images"``, ``"series"``, ..."""
        return str(self.form["kind"])

    def __call__(self, inputs: Inputs) -> Any:
        """All steps: examples as they are read -> the tensor that the network takes (texts stay texts without a step)."""
        found: Any = inputs
        for step in self.steps:
            found = step(found)
        return found

    def then(self, *steps: Step) -> Preparation:
        """The same with further steps."""
        return replace(self, steps=(*self.steps, *steps))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = {kind: name for name, kind in STEPS.items()}
        steps = [{"step": names[type(step)], **vars(step)} for step in self.steps]
        return {"form": dict(self.form), "steps": steps}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preparation:
        """What :meth:`as_dict` gave, also after a way through JSON.

        Raises:
            AssayError: it is no such thing, or it has a step that this version does not know.
        """
        try:
            steps = []
            for entry in plain["steps"]:
                if entry["step"] not in STEPS:
                    raise AssayError(f"A preparation has a step {entry['step']!r} that this version of assay does not know.")
                steps.append(STEPS[entry["step"]](**{name: _tuples(value) for name, value in entry.items() if name != "step"}))
            return cls(dict(plain["form"]), tuple(steps))
        except (KeyError, TypeError) as error:
            raise AssayError(f"A preparation cannot be read ({error!r}): it is incomplete, or no preparation.") from error

    # ------------------------------------------------------------------------------------------------ data sets

    def followed(self, before: Dataset, after: Dataset) -> Preparation:
        """With what was done to the inputs of ``before`` to make ``after``, found by doing what its history says again.

        Raises:
            Unrepeatable: the history does not tell it, or doing it again gives other test inputs.
        """
        if after.history[: len(before.history)] != before.history:
            raise Unrepeatable(f"{after.name} was not made from the data as they were read, so new examples cannot be made alike")
        data, found = before, self
        for line in after.history[len(before.history) :]:
            name, arguments = _call(line)
            if name == "encode":
                found = found.then(Tokens(after.features, after.input_shape[0]))
                data = encode(data, **arguments)
                continue
            if name == "set_aside":
                data = set_aside(data, **arguments)[0]
                continue
            if name not in ("normalise", "rescale", "flip_labels", "subset", "long_tail", "holdout"):
                raise Unrepeatable(f"what {line.partition('(')[0]} does to the inputs cannot be done again to new examples")
            train = data.train.inputs
            if isinstance(train, Tensor) and name == "normalise":
                found = found.then(Line.standard(train))
            elif isinstance(train, Tensor) and name == "rescale":
                found = found.then(Line.between(train, **arguments))
            data = getattr(data, name)(**arguments)
        ours, theirs = Preparation(self.form, found.steps[len(self.steps) :])(before.test.inputs), after.test.inputs
        same = torch.equal(ours, theirs) if isinstance(ours, Tensor) and isinstance(theirs, Tensor) else ours == theirs
        if not same:
            raise Unrepeatable("its inputs are not those that its history tells, so new examples cannot be made alike")
        return found


def _call(line: str) -> tuple[str, dict[str, Any]]:
    """A line of a history, ``"rescale(low=-1, high=1)"``, as a name and its arguments."""
    try:
        call = ast.parse(line, mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        return call.func.id, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        return line, {}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------- fitting


def form_of(inputs: Inputs) -> dict[str, Any]:
    """The form that inputs tell themselves; a reader adds what they do not.

    ``table``: ``columns`` (name -> ``"number"`` or ``"word"``). ``text``: ``column`` (or ``None``). ``images``: ``channels``,
    ``height``, ``width``. ``series``: ``channels``, ``steps``. ``audio``: what :class:`assay.own.audio.Sound` says. Where the
    file had a target column, ``target`` is its name.
    """
    if isinstance(inputs, pd.DataFrame):
        kinds = {str(name): "number" if pd.api.types.is_numeric_dtype(inputs[name]) else "word" for name in inputs}
        return {"kind": "table", "columns": kinds}
    if isinstance(inputs, tuple):
        return {"kind": "text", "column": None}
    if inputs.dim() == 4:
        return {"kind": "images"} | dict(zip(("channels", "height", "width"), inputs.shape[1:], strict=True))
    if inputs.dim() == 3:
        return {"kind": "series"} | dict(zip(("channels", "steps"), inputs.shape[1:], strict=True))
    return {"kind": "numbers", "shape": list(inputs.shape[1:])}


def fit(inputs: Inputs, train: NDArray[np.int64], form: Mapping[str, Any]) -> Preparation:
    """Learn how to prepare from the training examples.

    Args:
        inputs: all examples as they were read.
        train: positions of the training examples.
        form: what the reader knows and the inputs do not tell.
    """
    found = Preparation(form_of(inputs) | dict(form))
    if isinstance(inputs, pd.DataFrame):
        return found.then(Columns.fit(inputs.iloc[train]))
    if found.kind in ("series", "audio") and isinstance(inputs, Tensor):
        return found.then(Line.standard(inputs[torch.from_numpy(train)]))
    return found


def prepared(data: Dataset) -> tuple[Dataset, Preparation]:
    """A data set that was not read from somebody's file: its tables and series are scaled as those of files are."""
    inputs = data.train.inputs
    found = Preparation(form_of(inputs))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() not in (2, 3):
        return data, found
    if inputs.dim() == 3:
        after = data.normalise()
        return after, found.followed(data, after)
    names = data.features if len(data.features) == inputs.shape[1] else [f"x{number}" for number in range(inputs.shape[1])]

    def frame(split: Split) -> pd.DataFrame:
        assert isinstance(split.inputs, Tensor)
        return pd.DataFrame(split.inputs.double().numpy(), columns=list(names))

    train = frame(data.train)
    found = fit(train, np.arange(len(train)), {})
    splits = {part: Split(found(frame(split)), split.labels, split.clean_labels) for part, split in data._splits()}
    return data._but("standardise()", **splits), found
