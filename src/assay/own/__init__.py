"""People's own data: read it, try methods on it, and train on it the way scikit-learn does.

    from assay.own import read, try_, Learner
    trial = try_(["elr"], on="photos/", seeds=5)

Names are loaded when they are first used, so that the command line stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.own.attacking import Tested, robust
    from assay.own.baselines import baseline
    from assay.own.explaining import Compared, explain
    from assay.own.exporting import export_model
    from assay.own.learner import Learner, LearnerRegressor
    from assay.own.predicting import predict
    from assay.own.probing import Looked, probe
    from assay.own.ranking import Ranking, rank
    from assay.own.reading import read
    from assay.own.saved import SavedRun, load_run
    from assay.own.suggesting import Advice, suggest
    from assay.own.suspecting import Suspects, suspects
    from assay.own.trying import Trial, try_

__all__ = [
    "Advice",
    "Compared",
    "Learner",
    "LearnerRegressor",
    "Looked",
    "Ranking",
    "SavedRun",
    "Suspects",
    "Tested",
    "Trial",
    "baseline",
    "explain",
    "export_model",
    "load_run",
    "predict",
    "probe",
    "rank",
    "read",
    "robust",
    "suggest",
    "suspects",
    "try_",
]

_WHERE = {
    "Advice": "suggesting",
    "Compared": "explaining",
    "Learner": "learner",
    "LearnerRegressor": "learner",
    "Looked": "probing",
    "Ranking": "ranking",
    "SavedRun": "saved",
    "Suspects": "suspecting",
    "Tested": "attacking",
    "Trial": "trying",
    "baseline": "baselines",
    "explain": "explaining",
    "export_model": "exporting",
    "load_run": "saved",
    "predict": "predicting",
    "probe": "probing",
    "rank": "ranking",
    "read": "reading",
    "robust": "attacking",
    "suggest": "suggesting",
    "suspects": "suspecting",
    "try_": "trying",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
