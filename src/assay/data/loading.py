"""Load a named data set: once per process, and from a parsed copy after the first time on a machine."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from assay.data.dataset import Dataset
from assay.data.registry import find
from assay.paths import data_dir


def load(name: str) -> Dataset:
    """A data set by its name (``assay.data.available()`` lists them); what is not on this machine is fetched.

    The same object is returned every time in one process, so it costs memory once.

    Raises:
        AssayError: if there is no such name, or its files cannot be had or are not the right ones.
    """
    find(name)
    dataset = _load(name, str(data_dir()))
    dataset.require_unwritten()
    return dataset


@cache
def _load(name: str, folder: str) -> Dataset:
    """``folder`` is part of the key only: another data folder may hold other files."""
    entry = find(name)
    module, _, function = entry.loader.partition(":")
    dataset: Dataset = getattr(import_module(f"assay.data.{module}"), function)(entry)
    return dataset
