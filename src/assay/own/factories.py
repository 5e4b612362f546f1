"""How a network is made, as JSON: importable functions and classes with plain arguments. Nothing is pickled.

    {"call": "assay.papers.architectures.wide_resnet:WideResNet", "args": [10, 2, 3, 1]}

Reading calls only what is defined in the modules of networks (:data:`OPEN`) or in modules that the reader names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from assay.errors import AssayError
from assay.own.preparing import Unrepeatable

#: Modules (and what lies below them) whose functions and classes a file may name.
OPEN = ("assay.nn", "assay.own.networks", "assay.papers")


def describe(value: object) -> Any:
    """A model factory, or an argument of one, as plain JSON values.

    Raises:
        Unrepeatable: it has no such form: a lambda, an inner function, a tensor, a network that was made already.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [describe(one) for one in value]}
    if isinstance(value, Mapping):
        return {"dict": [[describe(key), describe(one)] for key, one in value.items()]}
    if isinstance(value, functools.partial):
        arguments = {name: describe(one) for name, one in value.keywords.items()}
        return {"call": _name(value.func), "args": [describe(one) for one in value.args], "keywords": arguments}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {entry.name: describe(getattr(value, entry.name)) for entry in dataclasses.fields(value) if entry.init}
        return {"make": _name(type(value)), "keywords": fields}
    if inspect.isfunction(value) or inspect.isclass(value):
        return {"name": _name(value)}
    raise Unrepeatable(f"its network is made with a {type(value).__name__}, which cannot be written as JSON")


def _name(value: Any) -> str:
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if not name.isidentifier() or getattr(importlib.import_module(module), name, None) is not value:
        raise Unrepeatable(f"its network is made by {name or value!r}, which cannot be imported by that name")
    return f"{module}:{name}"


def build(plain: Any, trusted: Collection[str] = ()) -> Any:
    """What :func:`describe` described.

    Args:
        plain: JSON values.
        trusted: further modules whose functions and classes may be called.

    Raises:
        AssayError: it names something that may not be called, or is not there any more.
    """
    if isinstance(plain, list):
        raise AssayError("A model factory holds a bare list: it was not written by assay.")
    if not isinstance(plain, dict):
        return plain
    if "float" in plain:
        return float(plain["float"])
    if "list" in plain or "tuple" in plain:
        kind = list if "list" in plain else tuple
        return kind(build(one, trusted) for one in next(iter(plain.values())))
    if "dict" in plain:
        return {build(key, trusted): build(one, trusted) for key, one in plain["dict"]}
    keywords = {name: build(one, trusted) for name, one in plain.get("keywords", {}).items()}
    if "call" in plain:
        return functools.partial(_find(plain["call"], trusted), *(build(one, trusted) for one in plain["args"]), **keywords)
    if "make" in plain:
        return _find(plain["make"], trusted)(**keywords)
    if "name" in plain:
        return _find(plain["name"], trusted)
    raise AssayError(f"A model factory holds {sorted(plain)}: it was not written by this version of assay.")


def _find(name: str, trusted: Collection[str]) -> Any:
    """An importable function or class, if it is one of those that may be called."""
    module, _, wanted = name.partition(":")
    layer = module == "torch.nn" or module.startswith("torch.nn.modules.")
    if not layer and not any(module == root or module.startswith(f"{root}.") for root in (*OPEN, *trusted)):
        raise AssayError(
            f"The run's network is made by {name}, which is none of assay's own: name its module as trusted if you trust it."
        )
    try:
        found = getattr(importlib.import_module(module), wanted)
    except (ImportError, AttributeError) as error:
        raise AssayError(
            f"The run's network is made by {name}, which is not there ({error}): install what it came from."
        ) from error
    # Whatever a module has merely imported is not its own: os.system must not be reached through somebody's import.
    own = (inspect.isfunction(found) or inspect.isclass(found)) and found.__module__ == module
    if not own or (layer and not (inspect.isclass(found) and issubclass(found, nn.Module))):
        raise AssayError(f"The run's network is made by {name}, which is no function or class of that module.")
    return found
