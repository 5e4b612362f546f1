"""assay: deep-learning papers as code that people can trust. Names are loaded when they are first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.own import Learner, LearnerRegressor
    from assay.recipe import Recipe

__all__ = ["Learner", "LearnerRegressor", "Recipe"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("assay.recipe" if name == "Recipe" else "assay.own"), name)
