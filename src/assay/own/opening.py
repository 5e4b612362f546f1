"""A network and the examples that it is shown, out of the words that somebody gives: a saved run, a program, a name.

    subject = open_subject("model.pt2", on="photos/")

Nothing is unpickled, and nothing is downloaded: networks of timm and transformers come from what is on this machine.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import memory
from assay.nn.text import words
from assay.own import baselines
from assay.own.fresh import stream, together
from assay.own.material import lay_out, names, prepare
from assay.own.named import Named
from assay.own.preparing import Columns, Line, Preparation, prepared
from assay.own.reading import gather
from assay.own.saved import SavedRun, load_run, runs
from assay.train.loop import Report, Trained

_KINDS = "the folder of a saved run, a program (.pt2), MODULE:FUNCTION, timm:NAME or transformers:NAME"
#: Examples that a network is run on to say how often it is right.
_MOST_SCORED = 1000


@dataclass(frozen=True)
class Subject:
    """A network and the examples that it is shown.

    Args:
        what: the network, in a few words.
        source: the data, in a line.
        model: in evaluation mode: inputs -> logits (B, C) or numbers (B, 1).
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        inputs: (N, ...) float, or for texts the word ids of each, (1, L) int64, without padding.
        labels: (N,) or ``None`` where they are not known, or of other classes than the network's.
        ids: where each example stands: a file, a row, a place in the test split.
        background: (M, ...) other examples; none for texts.
        background_labels: (M,) or ``None``.
        classes: names of the outputs; empty for regression.
        features: names of a table's columns.
        words: for texts, the word at each id.
        embedding: for texts, the module that holds the word vectors.
        layered: whether its layers can be looked into.
        notes: what a reader should know, without full stops.
    """

    what: str
    source: str
    model: nn.Module
    kind: str
    inputs: Tensor | tuple[Tensor, ...]
    labels: Tensor | None
    ids: tuple[str, ...]
    background: Tensor
    background_labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    embedding: nn.Module | None = None
    layered: bool = True
    notes: tuple[str, ...] = field(default=())

    @torch.no_grad()
    def outputs(self, places: Sequence[int]) -> Tensor:
        """Logits (B, C), or numbers (B, 1), for the examples at these places."""
        if isinstance(self.inputs, Tensor):
            chosen = self.inputs[torch.tensor(list(places), dtype=torch.int64)]
            return torch.cat([self.model(part).float() for part in chosen.split(256)])
        return torch.cat([self.model(self.inputs[place]).float() for place in places])

    def accuracy(self) -> float | None:
        """Share of examples that are classified as their labels say; ``None`` where that cannot be told."""
        if self.labels is None or not self.classes or not len(self.labels):
            return None
        places = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))[:_MOST_SCORED]
        return float((self.outputs(places.tolist()).argmax(dim=1) == self.labels[places]).double().mean())


@dataclass(frozen=True)
class _Material:
    """Data as they were read, for networks that have their own ideas of how to prepare them."""

    data: Dataset
    preparation: Preparation
    kind: str
    #: where each test example stands
    ids: tuple[str, ...]


def open_subject(
    model: str | None,
    on: str | Path | Dataset,
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    raw: bool = False,
    seed: int = 0,
    device: str = "cpu",
    trusted: Collection[str] = (),
    report: Report | None = None,
) -> Subject:
    """Open a network and the examples to show it.

    Args:
        model: the folder of a saved run, a program of ``torch.export`` (.pt2), ``module:function`` (called without arguments,
            returns an ``nn.Module``), ``timm:NAME``, ``transformers:NAME``; ``None`` trains the baseline on the data first.
        on: a path that :func:`assay.own.read` understands, the name of a known data set, or a data set.
        named: columns of the data that have a meaning.
        raw: hand columns and series to a network of somebody's own as they stand in the file, not scaled.
        seed: of the baseline's training.
        device: where the baseline is trained.
        trusted: modules whose functions may be called to make the network of a saved run again.
        report: is told how far the baseline's training is.

    Raises:
        AssayError: there is no such network, or it does not take such examples.
    """
    if model is None:
        return _baseline(_read(on, named), seed, device, report)
    if Path(model).is_dir() or model in set(runs()):
        return _of_run(load_run(model, trusted), f"saved run {Path(model).name}", on)
    if Path(model).suffix == ".pt2":
        return _of_program(Path(model), on, named, raw)
    material = _read(on, named)
    scheme, _, name = model.partition(":")
    if scheme == "timm":
        return _checked(_timm(name, material), material, model, raw=raw)
    if scheme == "transformers":
        return _transformers(name, material)
    if name and not Path(model).exists():
        return _checked(_Found(imported(scheme, name)), material, model, raw=raw)
    raise AssayError(f"{model} is no network that can be opened: give {_KINDS}.")


# ---------------------------------------------------------------------------------------------------- data


def _read(on: str | Path | Dataset, named: Named) -> _Material:
    if isinstance(on, Dataset) or _is_known(on):
        data, preparation = prepared(on if isinstance(on, Dataset) else known(str(on)))
        ids = _numbered(len(data.test))
    else:
        found = lay_out(gather(Path(on), named), 0)
        data, preparation = prepare(found)
        every, called = names(found.material)
        ids = tuple(every[place] if called == "file" else f"{called} {every[place]}" for place in found.places["test"])
    return _Material(data, preparation, baselines.kind(data), ids)


def _numbered(count: int) -> tuple[str, ...]:
    """Where examples of a test split stand that has no files and rows."""
    return tuple(f"test {place}" for place in range(count))


def _is_known(on: str | Path) -> bool:
    from assay.data import available

    return not Path(on).exists() and str(on) in {row.name for row in available()}


def known(name: str) -> Dataset:
    """A data set of the catalogue, with a source that says how large it is.

    Raises:
        AssayError: there is no such file, and no such data set.
    """
    from assay.data import load

    if not _is_known(name):
        raise AssayError(f"There is no file {name}, and no data set of that name: check the path, or see `assay data`.")
    data = load(name)
    return replace(data, source=f"{name}: {data.task}; train {len(data.train)}, valid {len(data.valid)}, test {len(data.test)}")


def _as_in_the_file(material: _Material) -> _Material:
    """Undo the scaling of columns and series; gaps stay filled, categories stay columns of 0 and 1."""
    data = material.data
    splits = {part: getattr(data, part) for part in ("train", "valid", "test")}
    for step in reversed(material.preparation.steps):
        if isinstance(step, Columns):
            count = len(step.features) - len(step.numbers)
            line = Line((*step.mean, *[0.0] * count), (*step.scale, *[1.0] * count))
        elif isinstance(step, Line):
            line = step
        else:
            continue
        splits = {part: replace(split, inputs=_undone(line, split.inputs)) for part, split in splits.items()}
    return replace(material, data=replace(data, **splits))


def _undone(line: Line, inputs: Any) -> Tensor:
    shift, scale = (torch.tensor(values).view(1, -1, *[1] * (inputs.dim() - 2)) for values in (line.shift, line.scale))
    found: Tensor = inputs * scale + shift
    return found


# ---------------------------------------------------------------------------------------------------- the baseline


def _baseline(material: _Material, seed: int, device: str, report: Report | None) -> Subject:
    data = material.data
    recipe = baselines.baseline(data)
    trained = memory.train(recipe, seed, torch.device(device), report)
    return subject_of(
        trained,
        data,
        f"baseline, trained on these data ({recipe.epochs} epochs, {trained.seconds:.2g} s, seed {seed})",
        material.ids,
    )


def subject_of(trained: Trained, data: Dataset, what: str, ids: tuple[str, ...] = ()) -> Subject:
    """A network that was just trained on these data, with their test examples.

    Args:
        trained: by a recipe that started from ``data`` (whose texts it has made into word ids).
        data: as they were read.
        what: the network, in a few words.
        ids: where each test example stands; their numbers if left out.
    """
    seen = trained.recipe.data
    assert isinstance(seen.test.inputs, Tensor)
    assert isinstance(seen.train.inputs, Tensor)
    kind = baselines.kind(data)
    subject = Subject(
        what=what,
        source=data.source or data.name,
        model=trained.model.cpu().eval(),
        kind=kind,
        inputs=seen.test.inputs,
        labels=seen.test.labels,
        ids=ids or _numbered(len(seen.test)),
        background=seen.train.inputs,
        background_labels=seen.train.labels,
        classes=data.classes,
        features=data.features if kind == "table" else (),
    )
    if kind != "text":
        return subject
    assert isinstance(data.test.inputs, tuple)
    return _as_texts(subject, seen.test.inputs, [words(text) for text in data.test.inputs])


def _as_texts(subject: Subject, ids: Tensor, found: Sequence[Sequence[str]]) -> Subject:
    """Word ids (N, L) with padding as one tensor for each text, with its words."""
    lengths = (ids != 0).sum(dim=1).clamp_min(1).tolist()
    rows = tuple(row[:length].unsqueeze(0) for row, length in zip(ids, lengths, strict=True))
    said = tuple(tuple(text[:length]) or ("",) for text, length in zip(found, lengths, strict=True))
    embeddings = [module for module in subject.model.modules() if isinstance(module, nn.Embedding)]
    if len(embeddings) != 1:
        raise AssayError(f"The {subject.what} has {len(embeddings)} tables of word vectors: a probe needs one to start from.")
    none = torch.zeros(0, 1, embeddings[0].embedding_dim)
    return replace(
        subject, inputs=rows, words=said, embedding=embeddings[0], features=(), background=none, background_labels=None
    )


# ---------------------------------------------------------------------------------------------------- saved runs


def _of_run(run: SavedRun, what: str, on: str | Path | Dataset, layered: bool = True) -> Subject:
    """A run brings its own preparation: whatever is read goes to the network as its training data did."""
    notes: list[str] = []
    raw, labels, ids, source = _shown(run, on, notes)
    found = run.preparation(raw)
    step = next((step for step in run.preparation.steps if isinstance(step, Columns)), None)
    if labels is None:
        notes.append("the data have no right answers that the network knows")
    subject = Subject(
        what=what,
        source=source,
        model=run.model,
        kind=run.preparation.kind,
        inputs=found,
        labels=labels,
        ids=ids,
        background=found,
        background_labels=labels,
        classes=run.classes,
        features=step.features if step else (),
        layered=layered,
        notes=tuple(notes),
    )
    return _as_texts(subject, found, [words(one) for one in raw]) if subject.kind == "text" else subject


def _shown(run: SavedRun, on: str | Path | Dataset, notes: list[str]) -> tuple[Any, Tensor | None, tuple[str, ...], str]:
    """Examples before they are prepared, what is right, where each stands, and a line about them."""
    if isinstance(on, Dataset) or _is_known(on):
        data = on if isinstance(on, Dataset) else known(str(on))
        ids = _numbered(len(data.test))
        labels = data.test.labels if data.classes == run.classes else None
        return _framed(data.test.inputs, run.preparation), labels, ids, data.source or data.name
    pieces = list(stream(on, run.preparation, notes))
    raw = _joined([piece.inputs for piece in pieces])
    ids = tuple(f"row {one}" if one.isdigit() else one for piece in pieces for one in piece.ids)
    targets = [piece.target for piece in pieces if piece.target is not None]
    labels = None
    if len(targets) == len(pieces):
        labels = _labels(torch.from_numpy(np.concatenate([run.labels(target) for target in targets])), run.task)
    return raw, labels, ids, f"{on}: {len(ids)} examples"


def _joined(pieces: Sequence[Any]) -> Any:
    return pd.concat(list(pieces)) if isinstance(pieces[0], pd.DataFrame) else together(pieces)


def _labels(found: Tensor, task: str) -> Tensor | None:
    if bool(found.isnan().any()):
        return None
    return found.float() if task == "regression" else found.long()


def _framed(inputs: Any, preparation: Preparation) -> Any:
    """Inputs of a named data set as a preparation takes them: a table has columns with names."""
    if preparation.kind != "table":
        return inputs
    return pd.DataFrame(inputs.double().numpy(), columns=list(preparation.form["columns"]))


# ---------------------------------------------------------------------------------------------------- other networks


def _checked(model: nn.Module, material: _Material, name: str, raw: bool, layered: bool = True) -> Subject:
    """The network with the test examples, after it was seen to take them."""
    notes: list[str] = list(getattr(model, "notes", ()))
    if material.kind == "text":
        raise AssayError(
            f"{name} is shown texts, but its words are not known: give a saved run or transformers:NAME, which bring theirs."
        )
    if material.preparation.steps and raw:
        material = _as_in_the_file(material)
    elif material.preparation.steps:
        notes.append("columns and series are scaled to mean 0 and standard deviation 1; --raw hands them over as they are")
    data, kind = material.data, material.kind
    assert isinstance(data.test.inputs, Tensor)
    assert isinstance(data.train.inputs, Tensor)
    model.eval()
    few = data.test.inputs[:2]
    try:
        with torch.no_grad():
            outputs = model(few)
    except Exception as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AssayError(
            f"{name} does not take the examples of {data.name}, {kind} of the shape (B, {_shape(few)}){_wants(model)} "
            f"({why.rstrip('.')}): bring the data or the network into the other's shape."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(few):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise AssayError(f"{name} returns {got} for two examples, and a probe needs (2, C) logits or (2, 1) numbers.")
    count = outputs.shape[1]
    known = count == data.num_classes
    classes = data.classes
    if data.task == "regression" and not known:
        raise AssayError(
            f"{name} has {count} outputs, and the target of {data.name} is a number: give a network with one output."
        )
    if not known:
        classes = tuple(str(number) for number in range(count))
        notes.append(f"{name} has {count} classes and the data have {data.num_classes}, so that right answers are not known")
    return Subject(
        what=name,
        source=data.source or data.name,
        model=model,
        kind=kind,
        inputs=data.test.inputs,
        labels=data.test.labels if known else None,
        ids=material.ids,
        background=data.train.inputs,
        background_labels=data.train.labels if known else None,
        classes=classes,
        features=data.features if kind == "table" else (),
        layered=layered,
        notes=tuple(notes),
    )


def _shape(inputs: Tensor) -> str:
    return ", ".join(map(str, inputs.shape[1:]))


def _wants(model: nn.Module) -> str:
    """What the first layer takes, in words."""
    told = getattr(model, "wants", "")
    if told:
        return f"; it takes {told}"
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return f"; its first layer takes {module.in_channels} channels"
        if isinstance(module, nn.Linear):
            return f"; its first layer takes {module.in_features} numbers"
    return ""


class _Found(nn.Module):
    """Somebody's network, whose answer may be an object with ``logits``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.net(inputs)
        logits: Tensor = getattr(found, "logits", found)
        return logits


class _Fitted(_Found):
    """Images brought into the size, the channels and the scale that a network wants."""

    def __init__(
        self,
        net: nn.Module,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(net)
        self.channels, self.size = channels, size
        self.mean = nn.Buffer(torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)
        self.notes: tuple[str, ...] = ()
        self.wants = f"(B, {channels}, {size[0]}, {size[1]})"

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1 < self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        return super().forward((images - self.mean) / self.std)


# ---- torch.export


class _Program(nn.Module):
    """An exported program as a module: it has no modes, and one batch size if it was exported so.

    Args:
        call: the program's own module.
        batch: the number of examples that it takes at once; ``None`` if it takes any.
    """

    def __init__(self, call: nn.Module, batch: int | None, wants: str) -> None:
        super().__init__()
        self.call, self.batch, self.wants = call, batch, wants

    def train(self, mode: bool = True) -> _Program:
        return self  # what it does was fixed when it was exported

    def forward(self, inputs: Tensor) -> Tensor:
        if self.batch is None:
            whole: Tensor = self.call(inputs)
            return whole
        lacking = -len(inputs) % self.batch
        padded = torch.cat([inputs, inputs[-1:].expand(lacking, *inputs.shape[1:])]) if lacking else inputs
        return torch.cat([self.call(part) for part in padded.split(self.batch)])[: len(inputs)]


#: Sizes that depend on others are written as formulas, which are evaluated: numbers, names, signs, and calls of these alone.
_FORMULA = re.compile(r"(?:[\w\s()+\-*/%,<>=!&|~]|(?<=\d)\.(?=\d)|'\w+')*")
_CALLED = re.compile(r"([A-Za-z_]\w*)\s*\(")
_CALLS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|Abs|floor|ceiling|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|"
    r"Piecewise|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|PythonMod|PowByNatural|FloatPow|IntTrueDiv|"
    r"FloatTrueDiv|TruncToInt|CeilToInt|FloorToInt|RoundToInt|ToFloat|Where|Identity|LShift|RShift|"
    r"IsNonOverlappingAndDenseIndicator"
)


def _of_program(path: Path, on: str | Path | Dataset, named: Named, raw: bool) -> Subject:
    if not path.is_file():
        raise AssayError(f"There is no program {path}: save one with torch.export.save, or check the path.")
    _require_harmless(path)
    extra = {"run.json": ""}
    try:
        exported = torch.export.load(path, extra_files=extra)
        call = exported.module()
        wanted = set(exported.graph_signature.user_inputs)
        shapes = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in wanted]
    except Exception as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AssayError(f"{path} cannot be loaded as a program of torch.export ({why.rstrip('.')}): export it anew.") from error
    if len(shapes) != 1:
        raise AssayError(f"{path} takes {len(shapes)} inputs, and a probe gives it one: export a program of one tensor.")
    if not shapes[0].dtype.is_floating_point:
        raise AssayError(f"{path} takes word ids, through which no gradient goes: give the saved run that it was made from.")
    fixed = [size if isinstance(size, int) else None for size in shapes[0].shape]
    wants = "(" + ", ".join("B" if size is None or place == 0 else str(size) for place, size in enumerate(fixed)) + ")"
    model: nn.Module = _Program(call, fixed[0], wants)
    if extra["run.json"]:  # what assay exported knows how its examples are prepared
        facts = json.loads(extra["run.json"])
        preparation = Preparation.from_dict(facts["preparation"])
        run = SavedRun(path, model, facts["task"], tuple(facts["classes"]), preparation, facts)
        return _of_run(run, path.name, on, layered=False)
    material = _read(on, named)
    shape = material.data.input_shape
    if (
        material.kind == "images"
        and len(fixed) == 4
        and all(fixed[1:])
        and shape[0] in (1, fixed[1])
        and tuple(fixed[1:]) != shape
    ):
        _, channels, height, width = (size or 1 for size in fixed)
        model = fitted = _Fitted(model, channels, (height, width))
        fitted.notes = (f"images of {_by(shape)} are brought to {_by(fixed)}, which the program takes",)
    return _checked(model, material, path.name, raw=raw, layered=False)


def _by(shape: Sequence[int | None]) -> str:
    return f"{shape[-2]}x{shape[-1]}"


def _require_harmless(path: Path) -> None:
    """Refuse what would run code on being read: pickled parts, compiled libraries, formulas that are none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith("archive_format") for name in names):
                raise AssayError(f"{path} is in a layout of old that is read by pickle: save it anew with torch.export.save.")
            bad = next((name for name in names if "/aotinductor/" in name), None)
            for name in names:
                if name.endswith("_config.json"):
                    entries = json.loads(archive.read(name)).get("config", {})
                    bad = bad or next((key for key, entry in entries.items() if entry.get("use_pickle")), None)
                elif "/sample_inputs/" in name:
                    with archive.open(name) as stored:
                        torch.load(stored, weights_only=True)
                elif name.endswith(".json") and "/models/" in name:
                    bad = bad or next(filter(_runs_code, _formulas(json.loads(archive.read(name)))), None)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise AssayError(f"{path} is no program of torch.export, or broken ({error}): save it anew.") from error
    except (AttributeError, RuntimeError, TypeError) as error:
        raise AssayError(f"{path} has parts that only pickle can read ({type(error).__name__}): save it without them.") from error
    except Exception as error:
        if isinstance(error, AssayError):
            raise
        raise AssayError(f"{path} holds example inputs that only pickle can read: export it with tensors as inputs.") from error
    if bad is not None:
        raise AssayError(f"{path} has a part that would run code on being read ({bad}): export the plain network instead.")


def _runs_code(formula: str) -> bool:
    return "__" in formula or not _FORMULA.fullmatch(formula) or not all(map(_CALLS.fullmatch, _CALLED.findall(formula)))


def _formulas(plain: Any) -> Iterator[str]:
    if isinstance(plain, dict):
        for key, value in plain.items():
            if key == "expr_str" and isinstance(value, str):
                yield value
            else:
                yield from _formulas(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from _formulas(value)


# ---- module:function


def imported(module: str, function: str) -> nn.Module:
    """The network that a function of somebody's own makes; the current folder is searched as well.

    Raises:
        AssayError: there is no such function, it fails, or it makes something else.
    """
    here = os.getcwd()
    with _on_path(here):
        try:
            make: Callable[[], Any] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise AssayError(
                f"{module}:{function} cannot be imported ({error}): name a module that Python finds from {here}."
            ) from error
        try:
            made = make()
        except Exception as error:
            raise AssayError(
                f"{module}:{function}() failed ({type(error).__name__}: {error}): it must work without arguments."
            ) from error
    if not isinstance(made, nn.Module):
        raise AssayError(f"{module}:{function}() returned a {type(made).__name__}: it must return an nn.Module.")
    return made


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before


# ---- timm and transformers


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nothing is downloaded: what is not on this machine is not there."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    hub = sys.modules.get("huggingface_hub.constants")
    was = getattr(hub, "HF_HUB_OFFLINE", None)
    if hub is not None:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
        if hub is not None:
            hub.HF_HUB_OFFLINE = was  # type: ignore[attr-defined]


def _require(package: str) -> Any:
    if find_spec(package) is None:
        raise AssayError(f"{package} is not installed: `pip install {package}`, or give another network.")
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package built for another torch fails in its own ways
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AssayError(f"{package} is installed, but cannot be imported ({why.rstrip('.')}): install it anew.") from error


def _timm(name: str, material: _Material) -> nn.Module:
    if material.kind != "images":
        raise AssayError(f"timm:{name} is for images, and {material.data.name} holds {material.kind}: give a folder of images.")
    with _offline():
        timm = _require("timm")
        if name not in timm.list_models():
            near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
            raise AssayError(
                f"timm has no network {name!r}: " + (f"did you mean {', '.join(near)}?" if near else "see its list.")
            )
        notes = []
        try:
            net = timm.create_model(name, pretrained=True)
        except Exception:
            net = timm.create_model(name, pretrained=False)
            notes.append(f"the weights of timm:{name} are not on this machine, so it has random ones")
    wanted = timm.data.resolve_model_data_config(net)
    channels, height, width = wanted["input_size"]
    fitted = _Fitted(net, channels, (height, width), wanted["mean"], wanted["std"])
    shape = material.data.input_shape
    if shape[1:] != (height, width):
        notes.append(f"images of {shape[1]}x{shape[2]} are brought to {height}x{width}, which the network takes")
    fitted.notes = tuple(notes)
    return fitted


def _transformers(name: str, material: _Material) -> Subject:
    library = _require("transformers")
    if material.kind not in ("images", "text"):
        raise AssayError(f"transformers:{name} is for images or texts, and {material.data.name} holds {material.kind}.")
    images = material.kind == "images"
    kind = library.AutoModelForImageClassification if images else library.AutoModelForSequenceClassification
    local = {"local_files_only": True}
    notes = []
    with _offline():
        try:
            net, told = kind.from_pretrained(name, use_safetensors=True, output_loading_info=True, **local)
            if told["missing_keys"]:
                notes.append(
                    f"{len(told['missing_keys'])} weights are not in the files and are random ({min(told['missing_keys'])})"
                )
        except Exception:
            config = _config(library, name, local)
            try:
                net = kind.from_config(config)
            except ValueError as error:
                raise AssayError(f"transformers:{name} is no network that classifies {material.kind}: name another.") from error
            notes.append(f"the weights of transformers:{name} are not on this machine, so it has random ones")
        helper = _helper(library.AutoImageProcessor if images else library.AutoTokenizer, name, local)
    if images:
        size = _size(net.config, helper)
        mean, std = (getattr(helper, key, None) or [0.5] for key in ("image_mean", "image_std"))
        fitted = _Fitted(net, getattr(net.config, "num_channels", 3), size, mean, std)
        fitted.notes = (*notes, f"images are brought to {size[0]}x{size[1]}, which the network takes")
        return _checked(fitted, material, f"transformers:{name}", raw=False)
    if helper is None:
        raise AssayError(f"The tokens of transformers:{name} are not on this machine: give the folder where its files lie.")
    return _with_tokens(_Found(net.eval()), net.get_input_embeddings(), helper, material, f"transformers:{name}", notes)


def _config(library: Any, name: str, local: dict[str, Any]) -> Any:
    """The configuration of a network without its weights: from this machine, or the usual one of a family as ``vit``."""
    try:
        return library.AutoConfig.from_pretrained(name, **local)
    except Exception as error:
        if name in library.CONFIG_MAPPING:
            return library.AutoConfig.for_model(name)
        raise AssayError(
            f"transformers:{name} is not on this machine, and nothing is downloaded: give a folder, fetch it first, or name a "
            "family as vit or bert, which has random weights."
        ) from error


def _helper(kind: Any, name: str, local: dict[str, Any]) -> Any:
    try:
        return kind.from_pretrained(name, **local)
    except Exception:
        return None


def _size(config: Any, helper: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or getattr(helper, "size", None) or 224
    if isinstance(size, int):
        return size, size
    if hasattr(size, "get"):
        edge = size.get("shortest_edge") or size.get("height") or 224
        return int(size.get("height") or edge), int(size.get("width") or edge)
    height, width = size
    return int(height), int(width)


def _with_tokens(
    net: nn.Module, embedding: nn.Module, tokenizer: Any, material: _Material, name: str, notes: list[str], longest: int = 256
) -> Subject:
    data = material.data
    assert isinstance(data.test.inputs, tuple)
    rows = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in data.test.inputs]
    inputs = tuple(torch.tensor([row]) for row in rows)
    with torch.no_grad():
        count = net(inputs[0]).shape[1]
    known = count == data.num_classes
    if not known:
        notes.append(f"{name} has {count} classes and the data have {data.num_classes}, so that right answers are not known")
    width = next(embedding.parameters()).shape[1]
    return Subject(
        what=name,
        source=data.source or data.name,
        model=net,
        kind="text",
        inputs=inputs,
        labels=data.test.labels if known else None,
        ids=material.ids,
        background=torch.zeros(0, 1, width),
        classes=data.classes if known else tuple(str(number) for number in range(count)),
        words=tuple(tuple(tokenizer.convert_ids_to_tokens(row)) for row in rows),
        embedding=embedding,
        notes=tuple(notes),
    )


class FromVectors(nn.Module):
    """A network for one text that starts at its word vectors instead of its word ids.

    The vectors are laid behind the network's own table of vectors, and the network is given the ids of these places. So it
    may cut, pad and rearrange its ids as it likes, and padding stays what it was.

    Args:
        net: ids (B, L) -> outputs.
        embedding: the module of ``net`` that holds its word vectors.

    Shape: (B, L, D) variants of one text's vectors, without padding -> outputs (B, C).
    """

    def __init__(self, net: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.table = next(name for name, one in net.named_parameters() if one is embedding.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        known = self.net.get_parameter(self.table)
        ids = len(known) + torch.arange(vectors.shape[0] * vectors.shape[1]).view(vectors.shape[:2])
        longer = {self.table: torch.cat([known, vectors.flatten(0, 1)])}
        outputs: Tensor = torch.func.functional_call(self.net, longer, (ids,))
        return outputs
