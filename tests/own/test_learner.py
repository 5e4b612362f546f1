"""The learners keep scikit-learn's contract, and are the training loop underneath."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from assay.data import Dataset, Split
from assay.nn import mlp
from assay.own import Learner, LearnerRegressor
from assay.papers.labels.elr import elr
from assay.recipe import Recipe
from assay.train.loop import fit

#: What does not hold, and why that is as it should be.
EXPECTED = {"check_methods_subset_invariance": "float32 products of other batch sizes differ in the last digit, more than 1e-7"}


#: What scikit-learn itself skips, unless it is asked to look into other array libraries.
SKIPPED = {"check_array_api_input"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("learner", [Learner(epochs=20), LearnerRegressor(epochs=20)])
def test_contract(learner: object) -> None:
    found = check_estimator(learner, on_fail=None, on_skip=None, expected_failed_checks=EXPECTED)
    assert len(found) > 45
    assert [(row["check_name"], row["exception"]) for row in found if row["status"] == "failed"] == []
    assert {row["check_name"] for row in found if row["status"] == "skipped"} <= SKIPPED


def test_docs_name_what_is_not_kept() -> None:
    said = (Path(__file__).parents[2] / "docs" / "trying.md").read_text(encoding="utf-8")
    assert all(name in said for name in {*EXPECTED, *SKIPPED})


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    x, y = make_blobs(150, centers=3, n_features=4, random_state=0)
    return x, np.array(["one", "two", "three"])[y]


def test_it_is_the_training_loop_underneath(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    recipe = partial(_small, epochs=3)
    learner = Learner(recipe, random_state=7).fit(x, y)
    classes, codes = np.unique(y, return_inverse=True)
    whole = Split(torch.tensor(x, dtype=torch.float32), torch.tensor(codes))
    none = whole.take(torch.arange(0))
    trained = fit(recipe(Dataset("x", "classification", whole, none, none, classes=tuple(classes))), seed=7)
    np.testing.assert_allclose(learner.predict_proba(x), trained.logits("train").double().softmax(dim=1).numpy(), atol=1e-6)
    assert learner.n_iter_ == 3
    assert learner.history_ == trained.history


def _small(data: Dataset, epochs: int) -> Recipe:
    return Recipe(data, model=partial(mlp, data.input_shape[0], data.num_classes, (8,)), epochs=epochs, batch_size=32, watch=())


def test_seeds(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    first, same, other = (Learner(epochs=1, random_state=seed).fit(x, y).predict_proba(x) for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_units_of_the_inputs_do_not_matter_to_the_plain_recipe(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    learner = Learner(epochs=5).fit(x * 0.01 + 1000, y)
    assert learner.score(x * 0.01 + 1000, y) > 0.9


def test_pipelines_grid_search_clones_and_pickles(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    pipeline = make_pipeline(MinMaxScaler(), Learner(epochs=4))
    assert cross_val_score(pipeline, x, y, cv=2).min() > 0.8
    grid = {"treatment": [None, elr], "epochs": [1, 2]}
    search = GridSearchCV(Learner(), grid, cv=2).fit(x, y)
    assert len(search.cv_results_["params"]) == 4
    copied = clone(search.best_estimator_)
    with pytest.raises(NotFittedError):
        copied.predict(x)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert np.array_equal(again.predict(x), search.predict(x))
    assert set(search.predict(x)) <= {"one", "two", "three"}


def test_a_recipe_of_ones_own_gets_the_new_data(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    digits = load_digits()
    whole = Split(torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target))
    data = Dataset("digits", "classification", whole, whole, whole, classes=tuple("0123456789"))
    recipe = Recipe(data, model=partial(mlp, 4, 3, (16,)), epochs=10)
    learner = clone(Learner(recipe)).fit(x, y)
    assert learner.score(x, y) > 0.9


def test_what_a_treatment_does_to_the_inputs_is_done_when_predicting(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    learner = Learner(treatment=_rescaled, epochs=8).fit(x, y)
    assert len(learner.preparation_.steps) == 2
    assert learner.score(x, y) > 0.9


def _rescaled(recipe: Recipe) -> Recipe:
    return recipe.replace(data=recipe.data.rescale(10, 30))


def test_order_and_number_of_examples_make_no_difference(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    learner = Learner(epochs=3).fit(x, y)
    order = np.random.default_rng(0).permutation(len(x))
    assert np.array_equal(learner.predict_proba(x[order]), learner.predict_proba(x)[order])
    alone = np.concatenate([learner.predict_proba(row[None]) for row in x])
    # All that is different is the last digit of float32, for which scikit-learn's own check has no room.
    np.testing.assert_allclose(alone, learner.predict_proba(x), atol=1e-5)


def test_frames(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = blobs
    frame = pd.DataFrame(x, columns=list("abcd"))
    learner = Learner(epochs=4).fit(frame, pd.Series(y))
    assert list(learner.feature_names_in_) == list("abcd")
    assert np.array_equal(learner.predict(frame), Learner(epochs=4).fit(x, y).predict(x))
    with pytest.raises(ValueError, match="feature names"):
        learner.predict(frame.rename(columns={"a": "z"}))


def test_joblib(blobs: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    x, y = blobs
    learner = Learner(treatment=elr, epochs=2).fit(x, y)
    joblib.dump(learner, tmp_path / "learner.joblib")
    assert np.array_equal(joblib.load(tmp_path / "learner.joblib").predict_proba(x), learner.predict_proba(x))


def test_images_and_texts() -> None:
    labels = np.arange(60) % 2
    bright = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32) * 0.5 + 0.5 * labels[:, None, None, None]
    assert Learner(epochs=4).fit(bright, labels).score(bright, labels) > 0.9
    texts = [f"number {n % 7} is {'good' if n % 2 else 'bad'}" for n in range(60)]
    learner = Learner(epochs=15).fit(texts, labels)
    assert list(learner.predict(["what a good number", "what a bad number"])) == [1, 0]
    with pytest.raises(ValueError, match="each text one label"):
        learner.fit(texts, labels[:-1])
    with pytest.raises(ValueError, match="trained on numbers"):
        Learner(epochs=1).fit(bright, labels).predict(texts)


def test_regressor_predicts_in_units_of_the_target() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    y = 1000 + 50 * x[:, 0]
    assert LearnerRegressor(epochs=30).fit(x, y).score(x, y) > 0.9
