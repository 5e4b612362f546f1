"""Which labels are wrong, and how sure that is: functions of arrays.

A model's probabilities rank the labels by how much they are to be doubted (:func:`doubt`). How many of the most doubted are
wrong indeed is found by planting: examples are given wrong labels on purpose, and the doubt about these tells what the doubt
about real mistakes is like. With F the doubts about the labels as they are, P those about planted ones and r the share of wrong
labels, a label with doubt d is wrong with chance r P(d) / F(d).

People do not make any mistake alike: they confuse some classes, in one direction more than in the other. Which mistakes are
usual is estimated from the doubtful labels themselves, and then a usual mistake is doubted sooner than a strange one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Added to probabilities before their logarithm is taken: below it, all are as good as impossible.
_LEAST = 1e-3
#: How often the usual mistakes are estimated from the chances, and these from them.
_ROUNDS = 4
#: For each class, so many mistakes are taken to be of any kind before one is seen: for the chances, and for the ranking. Classes
#: that are merely hard to tell apart look like ones that people confuse, so that the ranking had better not believe all of it.
_ANY_KIND, _ANY_KIND_RANKED = 2.0, 20.0
_TRUST = 0.5
#: Probabilities of planted labels at most: with many examples and classes, some stand for all.
_MOST = 20_000_000


def doubt(probabilities: Floats, labels: Ints, kinds: Floats | None = None) -> Floats:
    """How much each label is to be doubted: the log odds of the best other class against it.

    Args:
        probabilities: (N, K), of a model that did not learn from the example, or resists learning it by heart.
        labels: (N,).
        kinds: (K, K) how often each class (row) is mistaken for each (column), rows sum to 1; ``None`` is all alike. Where
            they are all alike, above 0 the model contradicts the label.

    Returns:
        (N,).
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    others = probabilities.copy() if kinds is None else probabilities * kinds[:, labels].T * (classes - 1)
    others[rows, labels] = 0
    found: Floats = np.log(others.max(axis=1) + _LEAST) - np.log(probabilities[rows, labels] + _LEAST)
    return found


def believed(probabilities: Floats, labels: Ints) -> Ints:
    """The most probable class besides the label: (N,)."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    found: Ints = others.argmax(axis=1)
    return found


def chance_wrong(doubts: Floats, planted: Floats, weights: Floats, rate: float) -> Floats:
    """How probable it is that each label is wrong: rises with the doubt, and has the mean ``rate`` (but for what exceeds 1).

    Args:
        doubts: (N,) about the labels as they are.
        planted: (M,) about labels that were made wrong on purpose.
        weights: (M,) how often such a mistake occurs, up to a factor.
        rate: share of wrong labels.

    Returns:
        (N,) in [0, 1].
    """
    from sklearn.isotonic import IsotonicRegression

    count = len(doubts)
    if rate <= 0 or not weights.sum() > 0:
        return np.zeros(count)
    # Planted labels weigh as many as there are mistakes. Among all with a doubt d, a share of s = rP / (rP + F) is planted.
    weights = weights * (rate * count / weights.sum())
    curve = IsotonicRegression(y_min=0.0, y_max=0.5, out_of_bounds="clip")
    curve.fit(
        np.concatenate([doubts, planted]),
        np.concatenate([np.zeros(count), np.ones(len(planted))]),
        sample_weight=np.concatenate([np.ones(count), weights]),
    )
    share = curve.predict(doubts)
    found: Floats = np.clip(share / (1 - share), 0.0, 1.0)
    return found


@dataclass(frozen=True)
class Planted:
    """Labels that were made wrong on purpose.

    Args:
        rows: (M,) of which examples.
        labels: (M,) what they were labelled as.
        probabilities: (M, K) what a model says of them that treats them as it treats all others.
    """

    rows: Ints
    labels: Ints
    probabilities: Floats


@dataclass(frozen=True)
class Doubted:
    """What is to be thought of labels.

    Args:
        scores: (N,) how much each is to be doubted.
        chances: for each rate that was asked about, (N,) how probable it is that the label is wrong.
        kinds: (K, K) the usual mistakes: (true, given).
    """

    scores: Floats
    chances: tuple[Floats, ...]
    kinds: Floats


def plant(probabilities: Floats, labels: Ints, seed: int = 0) -> Planted:
    """Give every example every other class, where no example was seen by the model that predicts it.

    Then nothing has to be trained again: whatever an example is labelled, the prediction is the same.

    Args:
        probabilities: (N, K) out-of-fold.
        labels: (N,).
        seed: of those that stand for all, where there are very many.
    """
    count, classes = probabilities.shape
    most = max(_MOST // classes, 1)
    if count * (classes - 1) > most:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, count, most)
        wrong = (labels[rows] + rng.integers(1, classes, most)) % classes
    else:
        rows = np.repeat(np.arange(count), classes - 1)
        wrong = (labels[rows] + np.tile(np.arange(1, classes), count)) % classes
    return Planted(rows, wrong, probabilities[rows])


def doubted(probabilities: Floats, labels: Ints, planted: Planted, rates: Sequence[float]) -> Doubted:
    """Rank labels by how much they are to be doubted, and say how probable it is that each is wrong.

    Args:
        probabilities: (N, K); see :func:`doubt`.
        labels: (N,).
        planted: wrong labels to compare with.
        rates: shares of wrong labels; the usual mistakes are estimated with the first.
    """
    classes = probabilities.shape[1]
    plain, other = doubt(probabilities, labels), believed(probabilities, labels)
    about_planted = doubt(planted.probabilities, planted.labels)
    any_kind = (1 - np.eye(classes)) / (classes - 1)
    kinds, right, seen = any_kind, np.ones(len(labels)), np.zeros((classes, classes))
    for _ in range(_ROUNDS):
        chances = chance_wrong(plain, about_planted, _weights(planted, labels, kinds, right), rates[0])
        right = 1 - chances  # what is probably wrong already cannot be made wrong
        seen = np.zeros((classes, classes))
        np.add.at(seen, (other, labels), chances)
        kinds = _shares(seen + _ANY_KIND * any_kind)
    ranked = _TRUST * _shares(seen + _ANY_KIND_RANKED * any_kind) + (1 - _TRUST) * any_kind
    scores = doubt(probabilities, labels, ranked)
    about_planted = doubt(planted.probabilities, planted.labels, ranked)
    weights = _weights(planted, labels, kinds, right)
    return Doubted(scores, tuple(chance_wrong(scores, about_planted, weights, rate) for rate in rates), kinds)


def best_cut(chances: Floats) -> int:
    """How far down a list it is best to look, if no further: so many of the first that precision and recall together (F1) are
    expected to be highest.

    Args:
        chances: (N,) that each is wrong, falling.
    """
    total = float(chances.sum())
    if total <= 0:
        return 0
    expected = 2 * np.cumsum(chances) / (np.arange(1, len(chances) + 1) + total)
    return int(expected.argmax()) + 1


def _shares(counts: Floats) -> Floats:
    found: Floats = counts / counts.sum(axis=1, keepdims=True)
    return found


def _weights(planted: Planted, labels: Ints, kinds: Floats, right: Floats) -> Floats:
    found: Floats = kinds[labels[planted.rows], planted.labels] * right[planted.rows]
    return found
