"""Memory by content: the same work is done once, whoever asks, and kept as safetensors under its fingerprint."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from assay import clock
from assay.data import Dataset
from assay.errors import AssayError
from assay.files import load_tensors, save_tensors
from assay.fingerprint import PROTOCOL, fingerprint
from assay.lab.machine import now
from assay.lab.shared import sealed, shared_cache
from assay.paths import folder, trained_dir
from assay.recipe import Recipe
from assay.train.loop import Report, Trained, fit, with_weights

_T = TypeVar("_T")


def recipe_fingerprint(recipe: Recipe, seed: int, device: torch.device) -> str:
    """The identity of a training: everything that its result depends on.

    Fields at their default stay out of it, so that a new field with a harmless default does not throw old trainings away;
    a change of what the loop computes raises ``assay.fingerprint.PROTOCOL`` instead. Several devices are part of it, for
    they add up in another order, normalise over other batches and drop out other units.
    """
    chosen = {}
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if field.name == "strategy" and recipe.devices == 1:
            continue  # of no consequence there
        if field.default is dataclasses.MISSING or value is not field.default:
            chosen[field.name] = value
    return fingerprint("training", PROTOCOL, torch.__version__, device.type, seed, chosen)


def known(recipe: Recipe, seed: int, device: torch.device) -> bool:
    """Is this training in the cache of this machine?"""
    return _path(recipe_fingerprint(recipe, seed, device)).exists()


def train(recipe: Recipe, seed: int, device: torch.device, report: Report | None = None) -> Trained:
    """Train, or take the same training from the cache; two processes that want the same training do it once."""

    def make(path: Path) -> Trained:
        checkpoint = path.with_suffix(".checkpoint")
        trained = fit(recipe, seed, device, checkpoint=checkpoint, report=report)
        tensors = {f"model.{name}": value for name, value in trained.model.state_dict().items()}
        tensors |= {f"memory.{name}": value for name, value in trained.memory.items()}
        facts = {
            "kind": "training",
            "what": f"{_name(recipe.model)} on {recipe.data.name}, {recipe.epochs} epochs",
            "seed": seed,
            "made": now(),
            "history": trained.history,
            "seconds": trained.seconds,
            "parameters": trained.parameters,
            "flops": trained.flops,
        }
        save_tensors(path, tensors, sealed(tensors, facts))
        checkpoint.unlink(missing_ok=True)
        return trained

    mark = recipe_fingerprint(recipe, seed, device)
    return _once(mark, make, lambda path: _restore(path, recipe, seed, device))


def _once(mark: str, make: Callable[[Path], _T], take: Callable[[Path], _T]) -> _T:
    """``make`` what is kept under ``mark``, or ``take`` it if this machine or the shared cache has it."""
    path = _path(mark)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return take(path)
        others = shared_cache()
        if others is None:
            return make(path)
        with others.turn(path) as is_here:
            return take(path) if is_here else make(path)


def _restore(path: Path, recipe: Recipe, seed: int, device: torch.device) -> Trained:
    tensors, facts = load_tensors(path)
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    memory = {name[7:]: value for name, value in tensors.items() if name.startswith("memory.")}
    return Trained(
        recipe=recipe,
        model=with_weights(recipe, seed, device, weights),
        history=facts["history"],
        seconds=facts["seconds"],
        parameters=facts["parameters"],
        flops=facts["flops"],
        memory=memory,
    )


def remember(function: Callable[..., dict[str, Tensor]], progress: Report | None = None, **arguments: Any) -> dict[str, Tensor]:
    """``function(**arguments)``, done once for the same code and the same arguments.

    Args:
        function: a top-level function that returns named tensors.
        progress: handed to ``function`` if it has a parameter of that name; no part of the identity.
        **arguments: numbers, texts, tensors, data sets, networks.

    Returns:
        What the function returned, with ``"seconds"``: a float64 scalar, the time that the work took when it was done.
    """

    def make(path: Path) -> dict[str, Tensor]:
        began = clock.seconds()
        extra = {"progress": progress} if "progress" in inspect.signature(function).parameters else {}
        result = function(**arguments, **extra)
        seconds = clock.seconds() - began
        wrong = [name for name, value in result.items() if not isinstance(value, Tensor)]
        if wrong:
            raise AssayError(f"{_name(function)} returned {wrong[0]!r}, which is no tensor: lab.remember keeps tensors only.")
        result = {**result, "seconds": torch.tensor(seconds, dtype=torch.float64)}
        given = ", ".join(f"{k}={_short(v)}" for k, v in arguments.items())
        facts = {"kind": "work", "what": f"{_name(function)}({given})", "made": now(), "seconds": seconds}
        save_tensors(path, result, sealed(result, facts))
        return result

    mark = fingerprint("remembered", PROTOCOL, torch.__version__, function, arguments)
    return _once(mark, make, lambda path: load_tensors(path)[0])


def _path(mark: str) -> Path:
    return folder(trained_dir() / mark[:2]) / f"{mark}.safetensors"


def _name(function: Any) -> str:
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _short(value: object) -> str:
    if isinstance(value, Dataset):
        return value.name
    text = repr(value)
    return text if len(text) <= 24 else f"<{type(value).__name__}>"
