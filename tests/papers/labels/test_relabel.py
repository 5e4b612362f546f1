"""Re-labelling: its bookkeeping, its invariants, agreement with cleanlab, and its claims at smoke scale."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from assay.errors import AssayError
from assay.lab import Lab
from assay.papers.labels.relabel import ReLabel, SimulatedAnnotator, beats_asking_at_random, by_heart_finds_nothing, suspicious


def noisy(
    rate: float = 0.2, count: int = 600, names: tuple[str, ...] = ("a", "b", "c")
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three clouds: inputs, given labels and true labels."""
    random = np.random.RandomState(0)
    truth = random.randint(3, size=count)
    X = random.normal(size=(count, 4)) + 3 * np.eye(3, 4)[truth]
    given = truth.copy()
    wrong = random.choice(count, round(rate * count), replace=False)
    given[wrong] = (truth[wrong] + random.randint(1, 3, size=len(wrong))) % 3
    return X, np.array(names)[given], np.array(names)[truth]


def test_suspicious_by_hand() -> None:
    probabilities = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.5, 0.5]]
    assert suspicious(probabilities, [0, 0, 0, 1]).tolist() == [2, 1]  # by the gap: 0.6, 0.2; a tie believes the label


def test_agrees_with_cleanlab_on_what_is_contradicted() -> None:
    filters = pytest.importorskip("cleanlab.filter")
    X, given, _ = noisy()
    labels = np.unique(given, return_inverse=True)[1]
    probabilities = cross_val_predict(LogisticRegression(), X, labels, cv=5, method="predict_proba")
    theirs = np.flatnonzero(filters.find_predicted_neq_given(labels, probabilities))
    assert sorted(suspicious(probabilities, labels)) == theirs.tolist()


@pytest.mark.parametrize("predictions", ["in_sample", "cross_val"])
def test_a_perfect_person_never_makes_it_worse_and_the_books_balance(predictions: str) -> None:
    X, given, truth = noisy()
    asked: list[int] = []

    def person(indices: np.ndarray, predicted: np.ndarray, current: np.ndarray) -> np.ndarray:
        assert (predicted != current).all()  # only what is contradicted is asked
        asked.extend(indices.tolist())
        return truth[indices]

    model = ReLabel(LogisticRegression(), person, rounds=4, predictions=predictions).fit(X, given)
    assert sum(step.asked for step in model.history_) == len(asked)
    assert sum(step.changed for step in model.history_) == (model.labels_ != given).sum()
    assert (model.labels_ != truth).sum() < 0.2 * (given != truth).sum()
    untouched = np.setdiff1d(np.arange(len(given)), asked)
    assert (model.labels_[untouched] == given[untouched]).all()
    assert model.score(X, truth) > 0.95
    assert model.predict_proba(X).shape == (600, 3)


def test_the_budget_is_kept_and_spent_on_the_most_contradicted() -> None:
    X, given, truth = noisy()
    model = ReLabel(LogisticRegression(), SimulatedAnnotator(truth, error=0), rounds=3, budget=40).fit(X, given)
    assert [step.asked for step in model.history_] == [14, 13, 13]
    assert sum(step.changed for step in model.history_) == 40  # what is most contradicted is wrong


def test_nobody_is_asked_twice_and_what_was_confirmed_stays() -> None:
    X, given, _ = noisy()
    asked: list[int] = []

    def confirms(indices: np.ndarray, predicted: np.ndarray, current: np.ndarray) -> np.ndarray:
        asked.extend(indices.tolist())
        return current

    model = ReLabel(LogisticRegression(), confirms, rounds=3).fit(X, given)
    assert len(asked) == len(set(asked)) > 0
    assert (model.labels_ == given).all()


def test_a_class_that_is_relabelled_away_keeps_its_column() -> None:
    X, given, _ = noisy()
    model = ReLabel(LogisticRegression(), lambda indices, *_: np.full(len(indices), "a"), rounds=1)
    given[given == "b"] = "a"
    given[0] = "b"  # the only one, and contradicted
    probabilities = model.fit(X, given).predict_proba(X)
    assert probabilities.shape == (600, 3)
    assert (probabilities[:, 1] == 0).all() == ("b" not in model.labels_)
    with pytest.raises(NotFittedError):
        ReLabel(LogisticRegression(), confirms_nothing).predict(X)


def confirms_nothing(*_: object) -> np.ndarray:
    raise AssertionError("nobody is to be asked")


def test_right_labels_and_a_model_that_has_them_by_heart_ask_nothing() -> None:
    X, given, truth = noisy()
    easy = X + 20 * np.eye(3, 4)[np.unique(truth, return_inverse=True)[1]]
    assert (ReLabel(LogisticRegression(), confirms_nothing).fit(easy, truth).labels_ == truth).all()
    by_heart = ReLabel(DecisionTreeClassifier(random_state=0), confirms_nothing).fit(X, given)
    assert (by_heart.labels_ == given).all()
    assert [step.asked for step in by_heart.history_] == [0]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probabilities = cross_val_predict(DecisionTreeClassifier(random_state=0), X, given, cv=folds, method="predict_proba")
    found = suspicious(probabilities, np.unique(given, return_inverse=True)[1])
    assert np.isin(np.flatnonzero(given != truth), found).mean() > 0.8


def test_a_person_who_errs_copies_what_they_see() -> None:
    truth = np.zeros(20_000, dtype=int)
    person = SimulatedAnnotator(truth, error=0.2, random_state=1)
    answers = person(np.arange(20_000), np.ones(20_000, dtype=int), np.full(20_000, 2))
    shares = np.bincount(answers, minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_it_is_an_estimator_and_says_what_is_wrong() -> None:
    X, given, truth = noisy(count=60)
    model = clone(ReLabel(LogisticRegression(), SimulatedAnnotator(truth), budget=5))
    assert model.get_params()["budget"] == 5
    with pytest.raises(ValueError, match="annotator"):
        ReLabel(LogisticRegression(), lambda indices, *_: np.full(len(indices), "z")).fit(X, given)
    with pytest.raises(ValueError, match="cross_val"):
        ReLabel(LogisticRegression(), SimulatedAnnotator(truth), predictions="both").fit(X, given)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(by_heart_finds_nothing(lab)) > {"by heart", "5 epochs", "by heart, out of fold"}
    try:
        lab.data("trec")
    except AssayError as error:
        pytest.skip(str(error))
    measured = beats_asking_at_random(lab)
    assert {"where the model disagrees", "at random", "nowhere, wrong labels left"} <= set(measured)
