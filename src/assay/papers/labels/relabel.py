"""Re-label: ask people again, but only where the model that was trained on the labels does not believe them.

Most wrong labels in a large data set cannot be found by hand, and most labels are right. So: train on what there is, let the
model predict its own training examples, and call those suspicious whose label it contradicts. They go back to a person, who
sees the example, the model's answer and the present label. Train again on the mended labels; two or three rounds.

The catch is in "its own training examples": a network that has learnt its labels by heart contradicts none of them. Then the
model has to be held back (few epochs, a small model), or the predictions have to come from models that were trained without
the example (cross-validation), which costs as many trainings as folds.

Source: Guo, "The Re-Label Method For Data-Centric Machine Learning", 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from assay.data import Dataset, Split
from assay.nn import mlp
from assay.paper import Above, Below, Higher, Lower, claim
from assay.recipe import Recipe
from assay.recipes import small_photos
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

Labels = NDArray[np.int64]

#: ``annotator(indices, predicted, current) -> labels``, each as long as ``indices``.
Annotator = Callable[[Labels, NDArray[Any], NDArray[Any]], ArrayLike]


def suspicious(probabilities: ArrayLike, labels: ArrayLike) -> Labels:
    """Examples whose label is not the most probable class, the most contradicted first.

    Args:
        probabilities: (N, K), of a model that was trained on the labels.
        labels: (N,) class numbers.

    Returns:
        Positions (M,), by falling difference between the probability of the predicted class and that of the label.
    """
    probs, given = np.asarray(probabilities), np.asarray(labels)
    gap = probs.max(axis=1) - probs[np.arange(len(given)), given]
    found = np.flatnonzero(gap > 0)
    return found[np.argsort(-gap[found], kind="stable")]


@dataclass(frozen=True)
class Round:
    """What one round did: examples asked about, labels that changed, and how many were suspicious."""

    asked: int
    changed: int
    suspicious: int


class ReLabel(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that has its training labels looked through, in scikit-learn's terms.

    Args:
        estimator: classifier with ``predict_proba``; it is cloned for every training.
        annotator: ``annotator(indices, predicted, current) -> labels``, all in the terms of ``y``: what a person says of the
            examples ``indices`` (positions in the X of this ``fit``: give no annotator of the whole to a part of the data), who
            sees the model's answers and the present labels.
        rounds: how often to train and ask; a last training comes after the last answers.
        budget: answers that may be asked for in all, spread evenly over the rounds; ``None`` asks about all that is suspicious.
        predictions: ``"in_sample"``, as in the paper, or ``"cross_val"``: by models that have not seen the example.
        folds: of the cross-validation.
        enough: asking stops when no more than this share of the examples is suspicious.
        random_state: of the folds.

    Nobody is asked about an example twice: what a person has confirmed stays, however the model sees it.

    Attributes:
        labels_: (N,) the labels after the last round.
        history_: a :class:`Round` for each.
        estimator_: trained on ``labels_``.
        classes_: (K,).
    """

    def __init__(
        self,
        estimator: Any,
        annotator: Annotator,
        rounds: int = 3,
        budget: int | None = None,
        predictions: Literal["in_sample", "cross_val"] = "in_sample",
        folds: int = 5,
        enough: float = 0.005,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.estimator = estimator
        self.annotator = annotator
        self.rounds = rounds
        self.budget = budget
        self.predictions = predictions
        self.folds = folds
        self.enough = enough
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Train, ask and train again.

        Args:
            X: what the estimator takes: an array (N, ...), or a list of N texts.
            y: (N,) the labels to look through.

        Raises:
            ValueError: the annotator gave a label that is none of the classes, or not one for each question.
        """
        if self.predictions not in ("in_sample", "cross_val"):
            raise ValueError(f"predictions must be 'in_sample' or 'cross_val', not {self.predictions!r}")
        self.classes_, current = np.unique(np.asarray(y), return_inverse=True)
        random = check_random_state(self.random_state)
        self.history_: list[Round] = []
        left = self.budget
        settled = np.zeros(len(current), dtype=bool)  # a person has looked at it
        for number in range(self.rounds):
            probabilities = self._probabilities(X, current, random)
            found = suspicious(probabilities, current)
            found = found[~settled[found]]
            share = None if left is None else -(-left // (self.rounds - number))
            asked = found[:share] if len(found) > self.enough * len(current) else found[:0]
            answers = self._answers(asked, probabilities.argmax(axis=1)[asked], current[asked])
            self.history_.append(Round(len(asked), int((answers != current[asked]).sum()), len(found)))
            current[asked], settled[asked] = answers, True
            if not len(asked):
                break
            left = None if left is None else left - len(asked)
        self.labels_ = self.classes_[current]
        self.estimator_ = clone(self.estimator).fit(X, self.labels_)
        return self

    def _probabilities(self, X: Any, current: Labels, random: np.random.RandomState) -> NDArray[np.float64]:
        """(N, K) for every training example; a class that no label has any more gets 0."""
        if self.predictions == "cross_val":
            folds = StratifiedKFold(self.folds, shuffle=True, random_state=random.randint(2**31 - 1))
            found = cross_val_predict(clone(self.estimator), X, current, cv=folds, method="predict_proba")
            present = np.unique(current)
        else:
            model = clone(self.estimator).fit(X, current)
            found, present = model.predict_proba(X), model.classes_
        whole = np.zeros((len(current), len(self.classes_)))
        whole[:, present] = found
        return whole

    def _answers(self, asked: Labels, predicted: Labels, current: Labels) -> Labels:
        if not len(asked):
            return current
        said = np.asarray(self.annotator(asked, self.classes_[predicted], self.classes_[current]))
        if said.shape != asked.shape or not np.isin(said, self.classes_).all():
            raise ValueError(f"the annotator was asked for {len(asked)} labels out of {list(self.classes_)} and gave {said!r}")
        return np.searchsorted(self.classes_, said)

    def predict(self, X: Any) -> NDArray[Any]:
        """The classes of new examples."""
        check_is_fitted(self)
        found: NDArray[Any] = self.estimator_.predict(X)
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (N, K) in the order of ``classes_``; a class that no label has any more gets 0."""
        check_is_fitted(self)
        found = self.estimator_.predict_proba(X)
        whole = np.zeros((len(found), len(self.classes_)))
        whole[:, np.searchsorted(self.classes_, self.estimator_.classes_)] = found
        return whole


class SimulatedAnnotator:
    """A person who knows the truth, but sometimes does not look: then they take the model's answer or leave the label as it is.

    Args:
        truth: (N,) true labels, of the examples that are asked about by position.
        error: share of answers that are taken over instead of looked up; a perfect person would flatter every method.
        random_state: of the errors.
    """

    def __init__(self, truth: ArrayLike, error: float = 0.05, random_state: int = 0) -> None:
        self.truth = np.asarray(truth)
        self.error = error
        self._random = np.random.RandomState(random_state)

    def __call__(self, indices: Labels, predicted: NDArray[Any], current: NDArray[Any]) -> NDArray[Any]:
        if len(indices) and indices.max() >= len(self.truth):
            raise ValueError(f"asked about example {indices.max()} with the truth of {len(self.truth)}")
        errs, believes = self._random.rand(2, len(indices))
        copied = np.where(believes < 0.5, predicted, current)
        return np.where(errs < self.error, copied, self.truth[indices])


# -------------------------------------------------------------------------------------------------------- the claims


def _classifier() -> Any:
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=1.0, max_iter=200))


def _mended(texts: tuple[str, ...], test_texts: tuple[str, ...], given: Tensor, truth: Tensor, seed: int) -> dict[str, Tensor]:
    """Wrong labels that are left, and predictions for the test texts, for every way to choose whom to ask about."""
    X, y, true = list(texts), given.numpy(), truth.numpy()
    found: dict[str, Tensor] = {}
    asked: list[int] = []
    for name in ("in_sample", "cross_val"):
        model = ReLabel(_classifier(), SimulatedAnnotator(true, random_state=seed), predictions=name, random_state=seed).fit(X, y)
        found[f"{name}.labels"] = torch.from_numpy(model.labels_)
        found[f"{name}.predicted"] = torch.from_numpy(model.predict(list(test_texts)))
        found[f"{name}.asked"] = torch.tensor([step.asked for step in model.history_])
        asked = asked or [step.asked for step in model.history_]
    random = np.random.RandomState(seed)
    labels, annotator = y.copy(), SimulatedAnnotator(true, random_state=seed)
    unsure, person = y.copy(), SimulatedAnnotator(true, random_state=seed)
    open_random, open_unsure = np.ones(len(y), dtype=bool), np.ones(len(y), dtype=bool)
    for count in filter(None, asked):  # as many questions in every round as the in-sample rule asked, nobody twice
        drawn = random.choice(np.flatnonzero(open_random), min(count, open_random.sum()), replace=False)
        predicted = _classifier().fit(X, labels).predict([X[place] for place in drawn])
        labels[drawn] = annotator(drawn, predicted, labels[drawn])
        open_random[drawn] = False
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        probabilities = cross_val_predict(_classifier(), X, unsure, cv=folds, method="predict_proba")
        doubt = np.where(open_unsure, 1 - probabilities[np.arange(len(y)), unsure], -1.0)
        least = np.argsort(-doubt, kind="stable")[:count]
        unsure[least] = person(least, probabilities.argmax(axis=1)[least], unsure[least])
        open_unsure[least] = False
    for name, final in (("random", labels), ("unsure", unsure), ("none", y)):
        found[f"{name}.labels"] = torch.from_numpy(final)
        found[f"{name}.predicted"] = torch.from_numpy(_classifier().fit(X, final).predict(list(test_texts)))
    return found


_ARMS = {
    "where the model disagrees": "in_sample",
    "where cross-validation disagrees": "cross_val",
    "where cross-validation doubts most": "unsure",
    "at random": "random",
    "nowhere": "none",
}


@claim(
    "With 20% of the labels of TREC's questions wrong and a person who does not look in one answer of twenty, asking again "
    "where the model disagrees leaves fewer wrong labels and a more accurate classifier than asking as often at random.",
    expect=(
        Lower("where the model disagrees, wrong labels left", than="at random, wrong labels left"),
        Higher("where the model disagrees", than="at random"),
    ),
    scaled_down="TREC, TF-IDF and logistic regression for the private data and fine-tuned BERT of the paper; a simulated person.",
    unit="test accuracy, or share of wrong training labels",
    needs=("trec",),
)
def beats_asking_at_random(lab: Lab) -> Measured:
    data = lab.data("trec")
    if lab.scale == "smoke":
        data = data.subset(train=300, test=100)
    noisy = data.flip_labels(0.2, seed=lab.seed)
    texts, truth = noisy.train.inputs, noisy.train.clean_labels
    assert truth is not None
    found = lab.remember(_mended, texts=texts, test_texts=data.test.inputs, given=noisy.train.labels, truth=truth, seed=lab.seed)
    arms: dict[str, float] = {}
    for arm, name in _ARMS.items():
        arms[arm] = (found[f"{name}.predicted"] == data.test.labels).double().mean().item()
        arms[f"{arm}, wrong labels left"] = (found[f"{name}.labels"] != truth).double().mean().item()
    for arm in list(_ARMS)[:2]:
        arms[f"{arm}, answers for each text"] = float(found[f"{_ARMS[arm]}.asked"].sum()) / len(truth)
    return arms


def _network(data: Dataset, epochs: int) -> Recipe:
    return Recipe(
        data,
        model=partial(mlp, 784, 10),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        schedule=cosine,
        epochs=epochs,
        watch=(),
    )


@claim(
    "A network that has learnt its labels by heart (20% of them wrong) contradicts fewer than a tenth of the wrong ones; held "
    "back to 5 epochs, or asked out of fold, it finds more than 70%, and most of what it contradicts is wrong indeed.",
    expect=(
        Below("by heart", 0.10),
        Above("5 epochs", 0.70),
        Above("by heart, out of fold", 0.70),
        Below("5 epochs, right ones among them", 0.5),
        Below("by heart, out of fold, right ones among them", 0.5),
    ),
    scaled_down="MNIST 5k and a perceptron (784-256-256-10), 100 epochs for learning by heart.",
    unit="share of the wrong labels that are suspicious",
)
def by_heart_finds_nothing(lab: Lab) -> Measured:
    data = lab.data("mnist5k")
    if lab.scale == "smoke":
        data = data.subset(train=500, test=200)
    data = data.flip_labels(0.2, seed=lab.seed)
    long = lab.pick(smoke=2, laptop=100, full=300)
    labels, truth = data.train.labels, data.train.clean_labels
    assert truth is not None
    wrong = labels != truth
    folds = StratifiedKFold(5, shuffle=True, random_state=lab.seed)
    out_of_fold = {epochs: torch.zeros(len(labels), 10) for epochs in (5, long)}
    for keep, left in folds.split(labels, labels):
        part = data.train.take(torch.from_numpy(keep))
        rest = data.train.take(torch.from_numpy(left))
        for epochs, found in out_of_fold.items():
            fold = _fold(data, part, rest, f"without fold {left[0]} of seed {lab.seed}")
            found[left] = lab.train(_network(fold, epochs)).logits("test").softmax(dim=1)
    arms: dict[str, float] = {}
    for name, epochs in (("by heart", long), ("5 epochs", 5)):
        trained = lab.train(_network(data, epochs))
        for arm, probs in ((name, trained.logits("train").softmax(dim=1)), (f"{name}, out of fold", out_of_fold[epochs])):
            found_wrong = np.zeros(len(labels), dtype=bool)
            found_wrong[suspicious(probs.double().numpy(), labels.numpy())] = True
            arms[arm] = float(found_wrong[wrong.numpy()].mean())
            arms[f"{arm}, right ones among them"] = float(1 - wrong.numpy()[found_wrong].mean()) if found_wrong.any() else 0.0
    return arms


def _fold(data: Dataset, train: Split, rest: Split, what: str) -> Dataset:
    return dataclasses.replace(data, train=train, test=rest, history=(*data.history, what))


@claim(
    "On photos, which the network can hardly tell apart yet, it is still worth asking where it disagrees out of fold: wrong "
    "labels are more frequent there than among all, by more than a quarter.",
    expect=Higher("among the suspicious", than="a quarter more than among all"),
    scaled_down="2,000 photos of CIFAR-10 at 16x16, a fifth of the labels wrong; a ResNet-8, 15 epochs, three folds.",
    unit="share of labels that are wrong",
    needs=("cifar10-20k",),
)
def worth_asking_on_photos(lab: Lab) -> Measured:
    train, epochs = lab.pick(smoke=(90, 1), laptop=(2_000, 15), full=(20_000, 60))
    data = lab.data("cifar10-20k").normalise().subset(train=train, test=100).flip_labels(0.2, seed=lab.seed)
    labels, truth = data.train.labels, data.train.clean_labels
    assert truth is not None
    probs = torch.zeros(len(labels), 10)
    for keep, left in StratifiedKFold(3, shuffle=True, random_state=lab.seed).split(labels, labels):
        part, rest = (data.train.take(torch.from_numpy(places)) for places in (keep, left))
        fold = _fold(data, part, rest, f"without fold {left[0]} of seed {lab.seed}")
        probs[left] = lab.train(small_photos(fold, epochs).replace(watch=())).logits("test").softmax(dim=1)
    wrong = (labels != truth).numpy()
    found = suspicious(probs.double().numpy(), labels.numpy())
    return {
        "among the suspicious": float(wrong[found].mean()),
        "a quarter more than among all": 1.25 * float(wrong.mean()),
        "of the wrong ones, suspicious": float(wrong[found].sum() / wrong.sum()),
    }
