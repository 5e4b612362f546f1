"""Amplified labelling: label a large pool with few answers of people, who are asked again only about what is still unclear.

Somebody wants all photos of bedrooms out of millions that a search has found. Asking people about each is too dear, and a
classifier alone makes too many mistakes. So the two take turns, in rounds:

1. People answer about a random part of the pool that is still open: some answers to learn from, some to test on.
2. A classifier learns from all answers so far but those of this test, and scores the open pool.
3. The test says where its scores can be trusted: above ``high`` so many are positive that the promised precision is kept, and
   below ``low`` lie no more than the allowed part of the positives. What is above becomes positive, what is below negative.
4. What is between stays open, and the next round is about it alone: a harder problem, with people's answers where they matter.

The catch is in the test: the pool that is open changes with every round, and a test of an earlier round promises nothing about
it. (Whether that does harm in practice is one of the claims below.)

Each photo is shown to two people, and only what they agree on counts. (The paper also hides questions whose answers are known
among the others, and throws away what careless people said.) A small test is not believed at its word here: the lower end of
the interval of its precision (Wilson's) has to keep the promise, which takes some fifty positives in the test. The lower
threshold is believed: with n positives in the test, a round loses about one in n + 1 of the others even where it may lose none.

What the rounds promise adds up: where each loses one in a hundred of the positives, after eight 92 of 100 are left.

The promise is what the rounds are for. A classifier that asks where it is least sure and decides all the rest with one threshold
may well be right more often with as many answers; but it does not say how often, because such answers are no sample of the pool.

Source: Yu, Seff, Zhang, Song, Funkhouser and Xiao, "LSUN: Construction of a Large-scale Image Dataset using Deep Learning with
Humans in the Loop", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import check_random_state
from torch import Tensor

from assay.paper import Above, Below, Curve, Higher, claim

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

Places = NDArray[np.int64]
Scores = NDArray[np.float64]

#: ``ask(indices) -> answers``, each 1, 0, or -1 where people do not agree.
Ask = Callable[[Places], ArrayLike]


def wilson_low(hits: ArrayLike, count: ArrayLike, confidence: float) -> Scores:
    """What a share of ``hits`` among ``count`` is at least, one-sided, with this confidence."""
    hits, count = np.asarray(hits, dtype=np.float64), np.asarray(count, dtype=np.float64)
    z = float(norm.ppf(confidence))
    share = hits / count
    spread = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    found: Scores = (share + z**2 / (2 * count) - spread) / (1 + z**2 / count)
    return found


def thresholds(
    scores: ArrayLike, truth: ArrayLike, precision: float = 0.95, miss: float = 0.01, confidence: float | None = 0.95
) -> tuple[float, float]:
    """Where scores can be trusted, from a test.

    Args:
        scores: (N,) of a random part of the pool that is open.
        truth: (N,) 1 or 0, as people answered.
        precision: share of positives that is promised at and above ``high``.
        miss: share of the positives in the test that may lie below ``low``.
        confidence: one-sided, with which any one threshold keeps the promise of precision. The lowest of many is taken, so that
            the promise is kept somewhat less often; ``None`` believes the shares in the test as they are, as is always done with
            ``miss``.

    Returns:
        ``low`` and ``high``, with low <= high: scores below ``low`` are negative, from ``high`` on positive. Where the test
        allows no threshold it is minus or plus infinity.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order] == 1)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, np.int64)
    shares = hits[ends] / (ends + 1) if confidence is None else wilson_low(hits[ends], ends + 1, confidence)
    kept = ends[shares >= precision]
    high = float(ranked[kept[-1]]) if len(kept) else math.inf
    positive = np.sort(scores[truth == 1])
    low = float(positive[int(miss * len(positive))]) if len(positive) else -math.inf
    return min(low, high), high


@dataclass(frozen=True)
class Round:
    """What one round did.

    Args:
        open: examples without a label before it.
        asked: answers of people.
        low: threshold below which examples became negative.
        high: threshold from which on they became positive.
        positives: that the classifier decided.
        negatives: that the classifier decided.
    """

    open: int
    asked: int
    low: float
    high: float
    positives: int
    negatives: int


class AmplifiedLabeling(BaseEstimator):  # type: ignore[misc]
    """Label a pool for one category, in scikit-learn's terms.

    Args:
        estimator: classifier with ``predict_proba``; it is cloned for every round.
        ask: ``ask(indices) -> answers``: what people say of these examples (positions in the pool): 1, 0, or -1 where they do not
            agree. Nobody is asked about an example twice.
        precision: share of true positives that is promised for what becomes positive.
        miss: share of the positives in its test that a round may lose below its lower threshold.
        batch: answers a round to learn from.
        test_batch: answers a round to test on; 52 positives among them are the fewest that can prove a precision of 95 %.
        max_rounds: at most.
        finish: as few examples as this that are still open are left to people altogether; ``None`` is what a round would ask.
        confidence: with which the promise is to be kept in each round; see :func:`thresholds`.
        random_state: of the draws.

    Attributes:
        labels_: (N,) 1, -1, or 0 for what is still open at the end and for what people did not agree on.
        asked_: positions of the examples that people answered about, in order.
        rounds_: a :class:`Round` for each; the last one has no thresholds where people finished the rest.
        amplification_: labels for each example that people answered about.
    """

    def __init__(
        self,
        estimator: Any,
        ask: Ask,
        precision: float = 0.95,
        miss: float = 0.01,
        batch: int = 500,
        test_batch: int = 500,
        max_rounds: int = 8,
        finish: int | None = None,
        confidence: float | None = 0.95,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.estimator = estimator
        self.ask = ask
        self.precision = precision
        self.miss = miss
        self.batch = batch
        self.test_batch = test_batch
        self.max_rounds = max_rounds
        self.finish = finish
        self.confidence = confidence
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Self:
        """Label the pool.

        Args:
            X: (N, ...) an array or a sparse matrix.
            y: not looked at.

        Raises:
            ValueError: an answer is none of 1, 0 and -1.
        """
        count, random = X.shape[0], check_random_state(self.random_state)
        self.labels_ = np.zeros(count, dtype=np.int64)
        self.rounds_: list[Round] = []
        answers = np.full(count, -1, dtype=np.int64)
        asked: list[Places] = []
        open_ = np.arange(count)  # neither labelled nor asked about
        whole = self.batch + self.test_batch
        for _ in range(self.max_rounds):
            rest = len(open_) <= (whole if self.finish is None else self.finish)
            drawn = open_ if rest else random.permutation(open_)[:whole]
            asked.append(drawn)
            answers[drawn] = self._answers(drawn)
            self._settle(drawn, answers)
            if rest:
                self.rounds_.append(Round(len(open_), len(drawn), -math.inf, math.inf, 0, 0))
                open_ = open_[:0]
                break
            test = self._test(drawn, asked)
            learnt = np.setdiff1d(np.concatenate(asked), test)
            left = np.setdiff1d(open_, drawn)
            low, high, scores = self._judge(X, learnt[answers[learnt] >= 0], test[answers[test] >= 0], left, answers)
            positive, negative = left[scores >= high], left[scores < low]
            self.labels_[positive], self.labels_[negative] = 1, -1
            self.rounds_.append(Round(len(open_), len(drawn), low, high, len(positive), len(negative)))
            open_ = np.setdiff1d(left, np.concatenate([positive, negative]))
            if not len(open_):
                break
        self.asked_ = np.concatenate(asked) if asked else open_[:0]
        self.amplification_ = float((self.labels_ != 0).sum() / max(1, len(self.asked_)))
        return self

    def _test(self, drawn: Places, asked: list[Places]) -> Places:
        """The examples that this round is tested on: of those that were just drawn out of what is open, never earlier ones."""
        return drawn[self.batch :]

    def _answers(self, drawn: Places) -> Places:
        said = np.asarray(self.ask(drawn))
        if said.shape != drawn.shape or not np.isin(said, (-1, 0, 1)).all():
            raise ValueError(f"people were asked about {len(drawn)} examples, each 1, 0 or -1, and answered {said!r}")
        return said.astype(np.int64)

    def _settle(self, drawn: Places, answers: Places) -> None:
        """What people agree on is so."""
        self.labels_[drawn[answers[drawn] == 1]] = 1
        self.labels_[drawn[answers[drawn] == 0]] = -1

    def _judge(self, X: Any, learnt: Places, test: Places, left: Places, answers: Places) -> tuple[float, float, Scores]:
        """Thresholds, and the scores of what is left; nothing is decided where one class is all that people saw."""
        if len(np.unique(answers[learnt])) < 2 or not len(left):
            return -math.inf, math.inf, np.zeros(len(left))
        model = clone(self.estimator).fit(X[learnt], answers[learnt])
        low, high = thresholds(model.predict_proba(X[test])[:, 1], answers[test], self.precision, self.miss, self.confidence)
        scores: Scores = model.predict_proba(X[left])[:, 1]
        return low, high, scores


class SimulatedPeople:
    """People who know the truth and are mistaken now and then, each time anew; as many as ``votes`` see each example.

    Args:
        truth: (N,) 1 or 0.
        error: share of single answers that are wrong.
        votes: people who see an example; only what all of them say counts.
        random_state: of the mistakes.

    Attributes:
        answers: single answers that were given so far.
    """

    def __init__(self, truth: ArrayLike, error: float = 0.02, votes: int = 2, random_state: int = 0) -> None:
        self.truth = np.asarray(truth).astype(np.int64)
        self.error = error
        self.votes = votes
        self.answers = 0
        self._random = np.random.RandomState(random_state)

    def __call__(self, indices: Places) -> Places:
        wrong = self._random.rand(self.votes, len(indices)) < self.error
        said = np.where(wrong, 1 - self.truth[indices], self.truth[indices])
        self.answers += said.size
        return np.where((said == said[0]).all(axis=0), said[0], -1)


def quality(labels: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """Precision of what is labelled 1 (1 where nothing is), and recall: the share of the true 1 that are labelled so."""
    labels, truth = np.asarray(labels), np.asarray(truth)
    hits = float(((labels == 1) & (truth == 1)).sum())
    return hits / (labels == 1).sum() if (labels == 1).any() else 1.0, hits / max(1, int((truth == 1).sum()))


def kernel_classifier(components: int = 300, gamma: float = 1.0) -> Any:
    """Logistic regression on the similarities to some of the examples: learns in a second, scores a million in a minute.

    Args:
        components: examples that others are compared with (Nystroem's approximation).
        gamma: of the similarity exp(-gamma |x - z|^2 / D), where inputs have D columns of about unit variance.
    """
    return make_pipeline(
        FunctionTransformer(_unit_distances),
        Nystroem(gamma=gamma, n_components=components, random_state=0),
        LogisticRegression(C=10.0, max_iter=300),
    )


def _unit_distances(X: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = np.asarray(X) / math.sqrt(X.shape[1])
    return found


# -------------------------------------------------------------------------------------------------------- the claims


class _StaleTest(AmplifiedLabeling):
    """A control: every round is tested on the answers of the first one, which were drawn when everything was open."""

    def _test(self, drawn: Places, asked: list[Places]) -> Places:
        return asked[0][self.batch :]


def _features(images: Tensor, columns: int) -> dict[str, Tensor]:
    """Principal components (N, columns) of a pool, of unit variance on the whole; nobody's labels are needed for them."""
    flat = images.flatten(1).double().numpy()
    found = PCA(min(columns, *flat.shape), svd_solver="randomized", random_state=0).fit_transform(flat)
    return {"features": torch.from_numpy(found / found.std()).float()}


def _cascade(
    features: Tensor, truth: Tensor, seed: int, batch: int, test_batch: int, components: int, way: str = "cascade"
) -> dict[str, Tensor]:
    """Labels of a pool, who was asked, and the rounds, by one of the ways that the claims compare."""
    kinds: dict[str, dict[str, Any]] = {
        "cascade": {},
        "one round": {"max_rounds": 1, "finish": 0},
        "believed at its word": {"confidence": None},
        "stale test": {},
    }
    kind = _StaleTest if way == "stale test" else AmplifiedLabeling
    model = kind(
        kernel_classifier(components),
        SimulatedPeople(truth, random_state=seed),
        batch=batch,
        test_batch=test_batch,
        random_state=seed,
        **kinds[way],
    ).fit(features.numpy())
    return {
        "labels": torch.from_numpy(model.labels_),
        "asked": torch.from_numpy(model.asked_),
        "open": torch.tensor([one.open for one in model.rounds_]),
        "answers": torch.tensor([one.asked for one in model.rounds_]),
    }


def _classified(features: Tensor, truth: Tensor, seed: int, answers: int, components: int, unsure: bool) -> dict[str, Tensor]:
    """A control: as many answers, at random or in five steps where the classifier is least sure; then one threshold."""
    X, people, random = features.numpy(), SimulatedPeople(truth, random_state=seed), np.random.RandomState(seed)
    said = np.full(len(X), -2)  # not asked
    steps = 5 if unsure else 1
    for step in range(steps):
        count = answers // steps if step < steps - 1 else answers - (said > -2).sum()
        if step == 0:
            drawn = random.permutation(len(X))[:count]
        else:
            doubt = np.where(said == -2, np.abs(_scores(X, said, components) - 0.5), 2.0)
            drawn = np.argsort(doubt, kind="stable")[:count]
        said[drawn] = people(drawn)
    labels = np.where(_scores(X, said, components) >= 0.5, 1, -1)
    labels = np.where(said >= 0, np.where(said == 1, 1, -1), labels)
    return {"labels": torch.from_numpy(labels)}


def _scores(X: NDArray[Any], said: Places, components: int) -> Scores:
    known = np.flatnonzero(said >= 0)
    found: Scores = kernel_classifier(components).fit(X[known], said[known]).predict_proba(X)[:, 1]
    return found


class _Pools:
    """Pools of pictures, and what each way makes of them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        name = "mnist5k" if lab.scale == "smoke" else "fashion-mnist"
        data = lab.data(name)
        split = (data.subset(train=2000, seed=0) if lab.scale == "smoke" else data).train
        assert isinstance(split.inputs, Tensor)
        self.labels = split.labels
        columns = lab.pick(smoke=20, laptop=50, full=100)
        self.features = lab.remember(_features, images=split.inputs, columns=columns)["features"]
        # Dress, bag and ankle boot; all ten at full scale.
        self.categories = lab.pick(smoke=(0,), laptop=(3, 8, 9), full=tuple(range(10)))
        self.components = lab.pick(smoke=50, laptop=300, full=1000)
        self.sizes = {
            "batch": lab.pick(smoke=200, laptop=500, full=500),
            "test_batch": lab.pick(smoke=600, laptop=1000, full=1000),
        }

    def truth(self, category: int) -> Tensor:
        return (self.labels == category).long()

    def cascade(self, category: int, way: str, **sizes: int) -> dict[str, Tensor]:
        return self.lab.remember(
            _cascade,
            features=self.features,
            truth=self.truth(category),
            seed=self.lab.seed,
            components=self.components,
            way=way,
            **(self.sizes | sizes),
        )

    def classified(self, category: int, answers: int, unsure: bool) -> dict[str, Tensor]:
        return self.lab.remember(
            _classified,
            features=self.features,
            truth=self.truth(category),
            seed=self.lab.seed,
            answers=answers,
            components=self.components,
            unsure=unsure,
        )

    def decided(self, category: int, found: dict[str, Tensor]) -> float:
        """Precision of the positives that the classifier decided; 1 where it decided none."""
        alone = found["labels"].clone()
        alone[found["asked"]] = 0
        return quality(alone, self.truth(category))[0]


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / max(precision + recall, 1e-12)


_SCALED_DOWN = (
    "A pool of 60,000 pictures of clothes (Fashion-MNIST) for dress, bag and ankle boot, one in ten each, instead of millions of "
    "photos for 30 categories; a kernel classifier on 50 principal components instead of deep features; simulated people, two an "
    "example, who are wrong in 2% of their answers."
)


@claim(
    "From answers about fewer than a quarter of the pool the cascade labels more than 80% of it, with a precision above 95% and "
    "a recall above 90% (eight rounds that lose 1% each leave 92%), and with a better F1 than a classifier with one threshold "
    "gets from as many answers about random examples.",
    expect=(
        Below("cascade, asked", 0.25),
        Above("cascade, labelled", 0.80),
        Above("cascade, precision", 0.95),
        Above("cascade, recall", 0.90),
        Higher("cascade, F1", than="random answers and one threshold, F1"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="share, mean of the categories",
    needs=("fashion-mnist",),
)
def amplifies_labels(lab: Lab) -> Measured:
    pools = _Pools(lab)
    sums: dict[str, list[float]] = {}
    left: list[list[float]] = []
    for category in pools.categories:
        truth = pools.truth(category)
        found = pools.cascade(category, "cascade")
        asked = len(found["asked"])
        ways = {
            "cascade": found["labels"],
            "random answers and one threshold": pools.classified(category, asked, False)["labels"],
            # Promises nothing, and asks where it helps the classifier most.
            "answers where least sure and one threshold": pools.classified(category, asked, True)["labels"],
        }
        row = {"cascade, asked": asked / len(truth), "cascade, labelled": float((found["labels"] != 0).double().mean())}
        for way, labels in ways.items():
            precision, recall = quality(labels, truth)
            row |= {f"{way}, precision": precision, f"{way}, recall": recall, f"{way}, F1": _f1(precision, recall)}
        for arm, value in row.items():
            sums.setdefault(arm, []).append(value)
        left.append([*(found["open"].double() / len(truth)).tolist(), float((found["labels"] == 0).double().mean())])
    arms: dict[str, float | Curve] = {arm: float(np.mean(values)) for arm, values in sums.items()}
    longest = max(map(len, left))
    open_ = np.mean([one + [one[-1]] * (longest - len(one)) for one in left], axis=0)
    arms["open before each round"] = Curve(
        open_.tolist(), x=[float(n) for n in range(longest)], x_name="rounds", y_name="share of the pool"
    )
    return arms


@claim(
    "The rounds are what amplifies: the same number of answers in one round, with the same promise, labels a share of the pool "
    "that is more than 5 points smaller, and finds fewer of the positives.",
    expect=(
        Higher("cascade, labelled", than="one round, labelled", by=0.05),
        Higher("cascade, recall", than="one round, recall"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="share, mean of the categories",
    needs=("fashion-mnist",),
)
def rounds_beat_one(lab: Lab) -> Measured:
    pools = _Pools(lab)
    sums: dict[str, list[float]] = {}
    for category in pools.categories:
        many = pools.cascade(category, "cascade")
        asked = len(many["asked"])
        learnt = asked * pools.sizes["batch"] // sum(pools.sizes.values())  # the same shares to learn from and to test on
        once = pools.cascade(category, "one round", batch=learnt, test_batch=asked - learnt)
        for way, found in (("cascade", many), ("one round", once)):
            precision, recall = quality(found["labels"], pools.truth(category))
            row = {"labelled": float((found["labels"] != 0).double().mean()), "precision": precision, "recall": recall}
            for name, value in row.items():
                sums.setdefault(f"{way}, {name}", []).append(value)
    return {arm: float(np.mean(values)) for arm, values in sums.items()}


@claim(
    "Of the positives that the classifier decides more than 95% are right, as promised, because each round is tested on what is "
    "open then: tested on the answers of the first round instead, they are more than 5 points less often right.",
    expect=(Above("fresh tests", 0.95), Higher("fresh tests", than="the first test for all rounds", by=0.05)),
    scaled_down=_SCALED_DOWN,
    unit="precision of what the classifier decided, mean of the categories",
    needs=("fashion-mnist",),
)
def fresh_tests_keep_the_promise(lab: Lab) -> Measured:
    pools = _Pools(lab)
    ways = {
        "fresh tests": "cascade",
        "fresh tests, believed at their word": "believed at its word",
        "the first test for all rounds": "stale test",
    }
    return {
        arm: float(np.mean([pools.decided(category, pools.cascade(category, way)) for category in pools.categories]))
        for arm, way in ways.items()
    }
