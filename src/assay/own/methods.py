"""Papers' treatments by name: which there are, putting them on a recipe one after the other, and why one does not fit."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from assay import catalogue
from assay.data import Dataset
from assay.errors import AssayError
from assay.recipe import Corrected, PerExample, Recipe, parts_of
from assay.train.loop import fit

Treatment = Callable[[Recipe], Recipe]


class DoesNotFit(Exception):
    """Why a method cannot be put on this data; without a full stop."""


def there() -> list[str]:
    """Keys of the papers that have a treatment, found without importing them."""
    return [
        key
        for key, paper in catalogue.papers().items()
        if any("\n@treatment" in path.read_text(encoding="utf-8") for path in catalogue.files(paper))
    ]


def every() -> tuple[list[str], dict[str, str]]:
    """All treatments by name, and the papers whose code cannot be loaded here with the reason."""
    names, absent = [], {}
    for key in there():
        try:
            own = _treatments(key)
        except ImportError as error:
            absent[key] = f"it needs {error.name}, which is not installed"
            continue
        names += [key] if key in own or len(own) == 1 else [f"{key}:{label}" for label in own]
    return names, absent


def find(name: str) -> Treatment:
    """The treatment of a paper: ``"elr"``, or ``"key:function"`` where it has several.

    Raises:
        AssayError: there is no such paper, or it has no such treatment.
    """
    key, _, wanted = name.strip().partition(":")
    own = _treatments(key)
    if not own:
        kind = catalogue.find(key).kind
        raise AssayError(f"{key} has no treatment to try (it is of the kind {kind}): choose among {', '.join(there())}.")
    if not wanted and len(own) > 1 and key not in own:
        raise AssayError(f"{key} has several treatments: name one, as {' or '.join(f'{key}:{label}' for label in own)}.")
    wanted = wanted or (key if key in own else next(iter(own)))
    if wanted not in own:
        raise AssayError(f"{key} has no treatment {wanted!r}: it has {', '.join(own)}.")
    return own[wanted]


def _treatments(key: str) -> dict[str, Treatment]:
    paper = catalogue.find(key)
    members = vars(importlib.import_module(paper.module))
    return {
        label: value
        for label, value in members.items()
        if getattr(value, "__assay__", None) == "treatment" and value.__module__.startswith(paper.module)
    }


def treated(plain: Recipe, chain: Sequence[Treatment], device: torch.device | str = "cpu") -> Recipe:
    """Apply treatments one after the other, and see that a step of training works.

    Raises:
        DoesNotFit: one refuses, undoes another, changes nothing or changes the test, or the step fails.
    """
    recipe = plain
    changed: dict[str, str] = {}  # field -> the treatment that set it
    for treatment in chain:
        name = treatment.__name__
        try:
            after = treatment(recipe)
        except Exception as error:
            raise DoesNotFit(_reason(error)) from error
        for entry in dataclasses.fields(Recipe):
            before, now = getattr(recipe, entry.name), getattr(after, entry.name)
            if now is before or (not callable(now) and now == before):
                continue
            moved = entry.name == "augment" and _holds(after.hooks, before)  # to a hook that makes copies first
            if entry.name in changed and not moved and not _holds(now, before):
                raise DoesNotFit(f"{name} would undo what {changed[entry.name]} did to the {entry.name}")
            changed[entry.name] = name
        recipe = after
    if not changed:
        raise DoesNotFit("it changes nothing here")
    if not torch.equal(recipe.data.test.labels, plain.data.test.labels):
        raise DoesNotFit("it changes the test, so that it could not be compared")
    try:
        _one_step(recipe, device)
    except Exception as error:
        raise DoesNotFit(_reason(error)) from error
    return recipe


def _one_step(recipe: Recipe, device: torch.device | str) -> None:
    """Train on one batch, and look at the outputs: better to fail now than after an hour of baselines."""
    count = min(len(recipe.data.train), max(recipe.batch_size, 2 * recipe.data.num_classes))
    few = recipe.data.subset(train=count, seed=0)
    trained = fit(recipe.replace(data=few, epochs=1, watch=()), seed=0, device=device)
    inputs = few.train.inputs[:2]
    assert isinstance(inputs, torch.Tensor)  # or the training would have refused them
    with torch.no_grad():
        outputs = trained.model(inputs.to(device))
    if outputs.shape != (2, recipe.data.num_classes):
        raise AssayError(f"its network gives outputs {tuple(outputs.shape)} instead of (2, {recipe.data.num_classes})")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _holds(value: Any, part: Any) -> bool:
    """Is ``part`` still somewhere inside ``value``: wrapped in a partial, in a tuple, in a dataclass?"""
    if value is part or (isinstance(part, tuple) and not part):
        return True
    if callable(part) or isinstance(part, PerExample):
        kept = parts_of(part)
        if len(kept) > 1:  # losses that were put together
            return all(_holds(value, one) for one in kept)
    if isinstance(value, tuple):
        pieces = part if isinstance(part, tuple) else (part,)
        return all(any(_holds(one, piece) for one in value) for piece in pieces)
    if isinstance(value, functools.partial):
        # A partial of a partial is one: what was set before stands among its keywords.
        if isinstance(part, functools.partial) and value.func is part.func and value.args[: len(part.args)] == part.args:
            return all(value.keywords.get(name) is one for name, one in part.keywords.items())
        return any(_holds(one, part) for one in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, Dataset):
        return isinstance(part, Dataset) and value.history[: len(part.history)] == part.history
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds(getattr(value, entry.name), part) for entry in dataclasses.fields(value))
    return False


def changes(plain: Recipe, recipe: Recipe) -> dict[str, str]:
    """What a method changed, in words: field of the recipe -> its new value."""
    found = {}
    for entry in dataclasses.fields(Recipe):
        before, now = getattr(plain, entry.name), getattr(recipe, entry.name)
        if now is not before and (callable(now) or now != before):
            found[entry.name] = words(now, before)
    return found


def words(value: Any, besides: Any = None) -> str:
    """A value of a recipe as a person would write it."""
    if isinstance(value, Dataset):
        known = besides.history if isinstance(besides, Dataset) else ()
        return "; ".join(value.history[len(known) :]) or value.name
    if isinstance(value, Corrected):
        return " + ".join(words(part) for part in value.parts)
    if isinstance(value, PerExample):
        return words(functools.partial(value.kind, **value.arguments))
    if isinstance(value, functools.partial):
        given = [words(one) for one in value.args] + [f"{name}={words(one)}" for name, one in value.keywords.items()]
        return f"{words(value.func)}({', '.join(given)})"
    if isinstance(value, tuple | list):
        return ", ".join(words(one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={words(one)}" for key, one in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = [f"{f.name}={words(getattr(value, f.name))}" for f in dataclasses.fields(value) if f.repr and f.init]
        return f"{type(value).__name__}({', '.join(given)})"
    return str(getattr(value, "__name__", None) or (value if isinstance(value, str | int | float) else repr(value)))
