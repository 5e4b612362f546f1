"""Named real data sets: :func:`load` one, see what is :func:`available`, corrupt it in a seeded and recorded way.

    from assay.data import load
    noisy = load("mnist5k").flip_labels(0.4, seed=0)

Listing what there is needs no torch, so the heavy modules are imported when one of their names is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.data.dataset import Dataset, Split
    from assay.data.files import fetch
    from assay.data.loading import load
    from assay.data.registry import available

__all__ = ["Dataset", "Split", "available", "fetch", "load"]

_WHERE = {"Dataset": "dataset", "Split": "dataset", "load": "loading", "fetch": "files", "available": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
