"""Put a paper's probe on somebody's network and data, and hand back what it saw, example by example.

    looked = probe("integrated_gradients", on="photos/", model="photos-1")

How a paper offers a probe is told in :mod:`assay.view`.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay import catalogue, clock
from assay.data import Dataset
from assay.errors import AssayError
from assay.own.named import Named
from assay.own.offers import find, looks_at_data
from assay.own.opening import FromVectors, Subject, open_subject
from assay.train.loop import Report
from assay.view import Seen, View

Probe = Callable[..., Seen]


@dataclass
class Example:
    """One example that was looked at.

    Args:
        id: where it stands: a file, a row, a place in the test split.
        said: what the network says.
        right: what is right, where it is known.
        numbers: name -> what the probe found for it.
        words: of a text.
    """

    id: str
    said: str
    right: str | None
    numbers: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass
class Looked:
    """What a probe saw, with what it was put on.

    Args:
        probe: ``"key:function"``.
        what: what the probe does, in a line.
        paper: title and year of the paper, if it is of one.
        model: the network, in a few words.
        source: the data, in a line.
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        accuracy: share of examples that the network classifies as their labels say; ``None`` where that is not known.
        target: what the attributions are of.
        examples: those that were looked at.
        numbers: about the network.
        inputs: the examples as the network takes them; for texts ``None``.
        attributions: name -> one tensor for each example: of the input's shape, or one number a word.
        others: name -> (B, ...) other inputs that the probe made.
        features: names of a table's columns.
        notes: what a reader should know, without full stops.
        seconds: that the probe took.
    """

    probe: str
    what: str
    paper: str
    model: str
    source: str
    kind: str
    accuracy: float | None
    target: str
    examples: list[Example]
    numbers: dict[str, float]
    inputs: Tensor | None
    attributions: dict[str, list[Tensor]]
    others: dict[str, Tensor]
    features: tuple[str, ...]
    notes: list[str]
    seconds: float

    def columns(self, name: str) -> dict[str, float]:
        """Mean absolute attribution of each column of a table, largest first."""
        mean = torch.stack([one.abs() for one in self.attributions[name]]).mean(dim=0)
        pairs = zip(self.features, mean.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def summary(self) -> dict[str, tuple[float, float, float]]:
        """Name -> median, lowest and highest of what was found for each example."""
        found: dict[str, list[float]] = {}
        for example in self.examples:
            for name, value in example.numbers.items():
                found.setdefault(name, []).append(value)
        return {name: (statistics.median(values), min(values), max(values)) for name, values in found.items()}

    @staticmethod
    def strengths(shares: Tensor) -> list[float]:
        """Attributions as parts of the largest of their example: in [-1, 1]."""
        most = float(shares.abs().max()) if shares.numel() else 0.0
        scaled: list[float] = (shares / most).tolist() if most > 0 else [0.0] * shares.numel()
        return scaled

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Attributions of images and long series are left to the page: they are many."""
        shown = self.kind in ("table", "text")
        return {
            "probe": self.probe,
            "paper": self.paper,
            "model": self.model,
            "data": self.source,
            "kind": self.kind,
            "accuracy": self.accuracy,
            "target": self.target,
            "seconds": self.seconds,
            "numbers": {name: _plain(value) for name, value in self.numbers.items()},
            "examples": [
                {
                    "id": example.id,
                    "said": example.said,
                    "right": example.right,
                    "numbers": {name: _plain(value) for name, value in example.numbers.items()},
                    **({"words": list(example.words)} if example.words else {}),
                    **(
                        {"attributions": {name: found[place].tolist() for name, found in self.attributions.items()}}
                        if shown
                        else {}
                    ),
                }
                for place, example in enumerate(self.examples)
            ],
            "columns": {name: self.columns(name) for name in self.attributions} if self.kind == "table" else {},
            "notes": self.notes,
        }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------- options


def parse(function: Probe, settings: Sequence[str]) -> dict[str, Any]:
    """``["steps=100"]`` as arguments of a probe; the default of each option tells its type.

    Raises:
        AssayError: there is no such option, or the value is of another type.
    """
    known = dict(list(inspect.signature(function).parameters.items())[1:])
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}."
            raise AssayError(f"{function.__name__} has no option {setting!r} of the form NAME=VALUE: {hint}")
        try:
            options[name] = _value(value, known[name].default)
        except ValueError:
            kind = type(known[name].default).__name__
            raise AssayError(f"The option {name} of {function.__name__} is of the type {kind}, and {value!r} is not.") from None
    return options


def _value(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "yes", "no"):
            raise ValueError
        return text.lower() in ("true", "yes")
    if isinstance(default, float) or (isinstance(default, int) and text == "inf"):
        return float(text)
    if isinstance(default, int):
        return int(text)
    if default is None:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


# ---------------------------------------------------------------------------------------------------- looking


def probe(
    name: str,
    on: str | Path | Dataset,
    model: str | None = None,
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    examples: int = 16,
    seed: int = 0,
    explain: str = "said",
    raw: bool = False,
    device: str = "cpu",
    settings: Sequence[str] = (),
    trusted: Collection[str] = (),
    report: Report | None = None,
) -> Looked:
    """Put a probe on a network and examples.

    Args:
        name: key of a paper with a probe, or ``"key:function"``.
        on: the data; see :func:`assay.own.opening.open_subject`, also for the next two and ``raw``.
        model: the network; ``None`` trains the baseline on the data.
        named: columns of the data that have a meaning: what is right, the texts, the steps of a series.
        examples: how many are drawn and looked at.
        seed: of the draw, of the baseline's training and of what is random in the probe.
        explain: which output is looked at: ``"said"`` (the class that the network says), ``"right"`` (the label) or the
            name of a class.
        raw: hand columns and series to the network as they stand in the file.
        device: where the baseline is trained.
        settings: options of the probe, as ``"steps=100"``.
        trusted: modules whose functions may be called to make the network of a saved run again.
        report: is told how far a training is.

    Raises:
        AssayError: the probe, the network, the data or an option is wrong, or they do not fit together.
    """
    if examples < 1:
        raise AssayError(f"{examples} examples were asked for: give at least 1.")
    if looks_at_data(name):
        raise AssayError(f"{name} looks at data, and trains networks of its own: call assay.own.rank.")
    paper, function = find(name)
    options = parse(function, settings)
    subject = open_subject(model, on, named, raw, seed, device, trusted, report)
    return look(paper, function, subject, options, examples, seed, explain)


def look(
    paper: catalogue.Paper,
    function: Probe,
    subject: Subject,
    options: Mapping[str, Any],
    examples: int = 16,
    seed: int = 0,
    explain: str = "said",
) -> Looked:
    """Call a probe, and see to it that the network is afterwards what it was.

    Raises:
        AssayError: the probe does not work on such a network or such examples.
    """
    looked = see(function, subject, options, examples, seed, explain)
    return replace(looked, probe=f"{paper.key}:{function.__name__}", paper=f"{paper.title} ({paper.year})")


def see(
    function: Probe,
    subject: Subject,
    options: Mapping[str, Any],
    examples: int = 16,
    seed: int = 0,
    explain: str = "said",
) -> Looked:
    """:func:`look` for a probe that belongs to no paper: it has the function's name.

    Raises:
        AssayError: the probe does not work on such a network or such examples.
    """
    count = len(subject.ids)
    places = sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:examples].tolist())
    with untouched(subject.model):
        subject.model.eval()
        _require_apart(subject, places)
        outputs = subject.outputs(places)
        aim = _aim(subject, outputs, places, explain)
        accuracy = subject.accuracy()
        began = clock.seconds()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seen = _seen(function, subject, places, aim, options, seed)
        seconds = clock.seconds() - began
    found = [_example(subject, place, row) for place, row in zip(places, outputs, strict=True)]
    for label, values in seen.each.items():
        for example, value in zip(found, values.tolist(), strict=True):
            example.numbers[label] = float(value)
    chosen = subject.inputs[places] if isinstance(subject.inputs, Tensor) else None
    return Looked(
        probe=function.__name__,
        what=(inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " "),
        paper="",
        model=subject.what,
        source=subject.source,
        kind=subject.kind,
        accuracy=accuracy,
        target=_aimed(subject, explain),
        examples=found,
        numbers={label: float(value) for label, value in seen.numbers.items()},
        inputs=chosen,
        attributions=seen.attributions,
        others=seen.inputs,
        features=_named(subject),
        notes=[*subject.notes, *seen.notes],
        seconds=seconds,
    )


def _named(subject: Subject) -> tuple[str, ...]:
    if subject.kind != "table" or not isinstance(subject.inputs, Tensor):
        return ()
    width = subject.inputs.shape[1]
    return subject.features if len(subject.features) == width else tuple(f"x{number}" for number in range(width))


def _aim(subject: Subject, outputs: Tensor, places: Sequence[int], explain: str) -> Tensor:
    """The output to look at, for each example: (B,)."""
    if not subject.classes:
        return torch.zeros(len(places), dtype=torch.int64)
    if explain == "said":
        return outputs.argmax(dim=1)
    if explain == "right":
        if subject.labels is None:
            raise AssayError("The right answers are not known for this network, so they cannot be explained: leave --class out.")
        return subject.labels[list(places)].long()
    if explain not in subject.classes:
        near = difflib.get_close_matches(explain, subject.classes, n=3, cutoff=0.5) or list(subject.classes[:8])
        raise AssayError(f"The network has no class {explain!r}: name one as {', '.join(near)}, or said, or right.")
    return torch.full((len(places),), subject.classes.index(explain))


def _aimed(subject: Subject, explain: str) -> str:
    if not subject.classes:
        return "the number that the network predicts"
    return {"said": "the class that the network says", "right": "the right class"}.get(explain, f"the class {explain}")


def _example(subject: Subject, place: int, output: Tensor) -> Example:
    right = None if subject.labels is None else subject.labels[place].item()
    words = subject.words[place] if subject.words else ()
    if not subject.classes:
        return Example(subject.ids[place], f"{output.item():.4g}", None if right is None else f"{right:.4g}", words=words)
    said = subject.classes[int(output.argmax())]
    return Example(subject.ids[place], said, None if right is None else subject.classes[int(right)], words=words)


@dataclass
class _Gathered:
    """What was seen, with one tensor of attributions for each example, as long as it may be."""

    numbers: dict[str, float]
    each: dict[str, Tensor]
    attributions: dict[str, list[Tensor]]
    inputs: dict[str, Tensor]
    notes: list[str]


def _seen(
    function: Probe, subject: Subject, places: Sequence[int], aim: Tensor, options: Mapping[str, Any], seed: int
) -> _Gathered:
    labels = None if subject.labels is None else subject.labels[list(places)]

    def call(model: nn.Module, inputs: Tensor, rows: slice, features: tuple[str, ...]) -> Seen:
        view = View(
            model=model,
            inputs=inputs,
            target=aim[rows],
            labels=None if labels is None else labels[rows],
            background=subject.background,
            background_labels=subject.background_labels,
            kind=subject.kind,
            classes=subject.classes,
            features=features,
            seed=seed,
            layered=subject.layered,
        )
        seen = _called(function, view, options)
        _require_shapes(function, seen, inputs, subject.kind == "text")
        return seen

    if isinstance(subject.inputs, Tensor):
        seen = call(subject.model, subject.inputs[list(places)], slice(None), _named(subject))
        shape = subject.inputs.shape[1:]
        spread = {label: list(found.detach().expand(-1, *shape)) for label, found in seen.attributions.items()}
        return _Gathered(dict(seen.numbers), dict(seen.each), spread, dict(seen.inputs), list(seen.notes))
    parts = []
    for number, place in enumerate(places):
        ids = subject.inputs[place]
        assert subject.embedding is not None
        with torch.no_grad():
            vectors = subject.embedding(ids).detach().clone()
        model = FromVectors(subject.model, subject.embedding).eval()
        _require_same(model, vectors, subject.outputs([place]), subject.what)
        parts.append(call(model, vectors, slice(number, number + 1), subject.words[place]))
    return _merged(parts)


def _merged(parts: Sequence[Seen]) -> _Gathered:
    """Texts were looked at one by one: their numbers are averaged, their attributions summed up over each word's vector."""
    first = parts[0]
    return _Gathered(
        numbers={name: sum(part.numbers[name] for part in parts) / len(parts) for name in first.numbers},
        each={name: torch.cat([part.each[name] for part in parts]) for name in first.each},
        attributions={
            name: [found.detach().sum(dim=-1)[0] if (found := part.attributions[name]).dim() > 2 else found[0] for part in parts]
            for name in first.attributions
        },
        inputs={},  # vectors that are no word's: there is nothing to show
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _called(function: Probe, view: View, options: Mapping[str, Any]) -> Seen:
    name = function.__name__
    try:
        seen = function(view, **options)
    except Exception as error:
        if not view.layered and not isinstance(error, AssayError):
            raise AssayError(
                f"{name} cannot work on an exported program, which has no layers, modes or hooks ({_reason(error)}): give the "
                "network itself as MODULE:FUNCTION."
            ) from error
        raise AssayError(f"{name} does not work here: {_reason(error)}.") from error
    if not isinstance(seen, Seen):
        raise AssayError(f"{name} returned a {type(seen).__name__}, and a probe returns a Seen: mend the probe.")
    return seen


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _require_shapes(function: Probe, seen: Seen, inputs: Tensor, text: bool) -> None:
    for name, values in seen.each.items():
        if values.shape != (len(inputs),):
            raise AssayError(
                f"{function.__name__} gives {tuple(values.shape)} as {name!r} of {len(inputs)} examples: mend the probe."
            )
    for name, values in seen.attributions.items():
        short = text and values.shape == inputs.shape[:2]  # one number a word
        fits = values.dim() == inputs.dim() and all(a in (1, b) for a, b in zip(values.shape, inputs.shape, strict=True))
        if not (short or fits) or len(values) != len(inputs):
            raise AssayError(
                f"{function.__name__} gives {tuple(values.shape)} as {name!r} of inputs {tuple(inputs.shape)}: mend the probe."
            )


# ---------------------------------------------------------------------------------------------------- the network is left alone

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The network is afterwards what it was: modes, hooks, which parameters learn; a change of weights is an error.

    Raises:
        AssayError: the weights or buffers were changed; they are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    hooks = [(module, name, list(getattr(module, name))) for module in model.modules() for name in _HOOKS]
    learns = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    state = {name: value.detach().clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, keys in hooks:
            there = getattr(module, name)
            for key in [key for key in there if key not in keys]:
                del there[key]
        for parameter, wanted, gradient in learns:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
        now = model.state_dict()
        changed = [name for name, value in state.items() if not torch.equal(now[name], value)]
        with torch.no_grad():
            for name in changed:
                now[name].copy_(state[name])
    if changed:
        raise AssayError(f"The probe changed {changed[0]!r} of the network, which was put back: mend the probe.")


def _require_apart(subject: Subject, places: Sequence[int]) -> None:
    """What the network says of an example must not depend on the others of its batch: no probe could tell them apart."""
    if not isinstance(subject.inputs, Tensor) or len(places) < 2:
        return
    together = subject.outputs(places[:2])
    alone = torch.cat([subject.outputs([place]) for place in places[:2]])
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(together.abs().max()) + 1e-6, equal_nan=True):
        by = float((together - alone).abs().max())
        raise AssayError(
            f"{subject.what} says other things of an example when another stands beside it (by {by:.2g}): a network in "
            "evaluation mode must look at each on its own."
        )


def _require_same(model: nn.Module, vectors: Tensor, outputs: Tensor, what: str) -> None:
    try:
        with torch.no_grad():
            same = torch.allclose(model(vectors), outputs, rtol=1e-3, atol=1e-4)
    except (RuntimeError, IndexError, ValueError):
        same = False
    if not same:
        raise AssayError(f"{what} gets its word vectors not from its embedding alone, so that a probe cannot start from them.")
