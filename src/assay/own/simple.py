"""Simple models of people's data: what they say of examples that they did not see, in seconds.

Of two models, whichever is better by cross-validation: logistic regression and a random forest for tables, logistic regression
on TF-IDF for texts, logistic regression and nearest neighbours on principal components for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from assay.nn.text import words

FOLDS = 5
#: Examples that nearest neighbours need: a fold, or one of two halves, must hold enough of them.
_FEWEST_NEIGHBOURS = 100


def pixels(inputs: Any, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Images of at most 16x16 and series of at most 64 steps, flat: (N, D)."""
    chosen: Tensor = inputs[torch.from_numpy(rows)]
    if chosen.dim() == 4 and max(chosen.shape[2:]) > 16:
        chosen = F.adaptive_avg_pool2d(chosen, 16)
    if chosen.dim() == 3 and chosen.shape[2] > 64:
        chosen = F.adaptive_avg_pool1d(chosen, 64)
    flat: NDArray[np.float64] = chosen.flatten(1).double().numpy()
    return flat


def vectors(inputs: Any, kind: str, rows: NDArray[np.int64]) -> Any:
    """What a simple model sees of the examples: a matrix of N rows, sparse for texts."""
    if kind == "text":
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [inputs[row] for row in rows]
        weigh = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000, tokenizer=words, token_pattern=None
        )
        try:
            return weigh.fit_transform(texts)
        except ValueError:  # no word occurs twice
            return weigh.set_params(min_df=1).fit_transform(texts)
    if kind == "audio":  # what sounds, whenever it does
        bands = inputs[torch.from_numpy(rows)].double()
        flat: NDArray[np.float64] = torch.cat([bands.mean(dim=2), bands.std(dim=2)], dim=1).numpy()
    else:
        flat = pixels(inputs, rows)
    if kind == "table":
        return flat
    from sklearn.decomposition import PCA

    if kind == "series":  # the level and the spread of a series, beside its shape
        flat = np.column_stack([flat, flat.mean(axis=1), flat.std(axis=1)])
    most = min(40, flat.shape[1], max(2, len(flat) // 5))  # few examples cannot tell many components from noise
    found: NDArray[np.float64] = PCA(most, random_state=0, svd_solver="randomized").fit_transform(flat)
    return found


def learners(kind: str, classifies: bool, seed: int) -> dict[str, Any]:
    """Name -> scikit-learn model, unfitted: two for each kind of data but texts.

    Args:
        kind: as :func:`assay.own.baselines.kind` says.
        classifies: classes or numbers.
        seed: of the forest.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler(with_mean=kind != "text")
    if not classifies:
        plain = {"ridge regression": make_pipeline(scaled, Ridge()) if kind != "text" else Ridge()}
        if kind == "table":
            return plain | {"a random forest": RandomForestRegressor(60, min_samples_leaf=3, random_state=seed)}
        return plain if kind == "text" else plain | {"nearest neighbours": KNeighborsRegressor(9, weights="distance")}
    logistic = LogisticRegression(C=1.0 if kind == "text" else 0.1, max_iter=300)
    plain = {"logistic regression": logistic if kind == "text" else make_pipeline(scaled, logistic)}
    if kind == "table":
        return plain | {"a random forest": RandomForestClassifier(60, min_samples_leaf=3, random_state=seed)}
    return plain if kind == "text" else plain | {"nearest neighbours": KNeighborsClassifier(15, weights="distance")}


def folds(
    labels: NDArray[Any], groups: NDArray[Any] | None, most: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training and held-out positions of at most ``most`` folds; classes in proportion, groups kept together.

    Args:
        labels: (N,) class numbers, or numbers to predict.
        groups: (N,) of examples that belong together, or ``None``.
        most: fewer folds are made where a class or the groups are fewer.
        seed: of the shuffling.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    classifies = np.issubdtype(labels.dtype, np.integer)
    if groups is not None and len(np.unique(groups)) >= 2:
        kind = StratifiedGroupKFold if classifies else GroupKFold
        splitter = kind(min(most, len(np.unique(groups))), shuffle=True, random_state=seed)
    elif classifies:
        splitter = StratifiedKFold(min(most, int(np.bincount(labels).min())), shuffle=True, random_state=seed)
    else:
        splitter = KFold(min(most, len(labels)), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels, groups))


@dataclass(frozen=True)
class Predictions:
    """What the better of two models says of examples that it did not see.

    Args:
        values: probabilities (N, K), or numbers (N,).
        name: of the model.
        learner: the model itself, unfitted.
    """

    values: NDArray[np.float64]
    name: str
    learner: Any


def predicted_classes(
    vectors: Any, labels: NDArray[np.int64], kind: str, groups: NDArray[Any] | None, seed: int
) -> Predictions | None:
    """Out-of-fold probabilities (N, K) of the model that is right more often; ``None`` where examples are too few for any.

    Args:
        vectors: N rows.
        labels: (N,) from 0 to K - 1, each of which occurs at least twice.
        kind: of the data.
        groups: (N,) or ``None``; see :func:`folds`.
        seed: of folds and forest.
    """
    from sklearn.model_selection import cross_val_predict

    best: tuple[float, Predictions] | None = None
    for name, learner in learners(kind, True, seed).items():
        if name == "nearest neighbours" and len(labels) < _FEWEST_NEIGHBOURS:
            continue
        found = cross_val_predict(learner, vectors, labels, cv=folds(labels, groups, FOLDS, seed), method="predict_proba")
        right = float((found.argmax(axis=1) == labels).mean())
        if best is None or right > best[0]:
            best = (right, Predictions(found, name, learner))
    return None if best is None else best[1]


def half_as_many(learner: Any, vectors: Any, labels: NDArray[np.int64], groups: NDArray[Any] | None, seed: int) -> float:
    """How often a model is right that has seen half of the examples."""
    from sklearn.model_selection import cross_val_predict

    half = cross_val_predict(learner, vectors, labels, cv=folds(labels, groups, 2, seed), method="predict")
    return float((half == labels).mean())


def predicted_numbers(vectors: Any, targets: NDArray[Any], kind: str, groups: NDArray[Any] | None, seed: int) -> Predictions:
    """Out-of-fold numbers (N,) of the model whose median error is smaller; arguments as for :func:`predicted_classes`."""
    from sklearn.model_selection import cross_val_predict

    best: tuple[float, Predictions] | None = None
    for name, learner in learners(kind, False, seed).items():
        if name == "nearest neighbours" and len(targets) < _FEWEST_NEIGHBOURS:
            continue
        found = cross_val_predict(learner, vectors, targets, cv=folds(targets, groups, FOLDS, seed))
        error = float(np.median(np.abs(found - targets)))
        if best is None or error < best[0]:
            best = (error, Predictions(found, name, learner))
    assert best is not None
    return best[1]
