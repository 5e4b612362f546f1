"""Findings against planted truth: flipped labels, thinned classes, copied rows, leaking columns, shifted tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from assay.data import load
from assay.own import findings
from assay.own.findings import (
    Near,
    auc_error,
    confident_joint,
    constant_columns,
    few_examples,
    giveaways,
    id_columns,
    imbalance,
    label_noise,
    missing,
    most_moved,
    moved_class,
    near_repeats,
    near_texts,
    noise_rate,
    repeats,
    repeats_by_chance,
    shift,
    signal,
    surest_error,
    target_outliers,
)
from assay.own.simple import predicted_classes, vectors


def _flipped(labels: np.ndarray[Any, Any], rate: float, classes: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(labels))[: round(rate * len(labels))]
    noisy = labels.copy()
    noisy[drawn] = (noisy[drawn] + rng.integers(1, classes, len(drawn))) % classes
    return noisy


def _predicted(name: str, rate: float, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    data = load(name)
    count = min(len(data.train), 1000)
    clean = data.train.labels.numpy()[:count]
    noisy = _flipped(clean, rate, data.num_classes, seed)
    kind = "table" if len(data.input_shape) == 1 else "images"
    found = predicted_classes(vectors(data.train.inputs, kind, np.arange(count)), noisy, kind, None, seed)
    assert found is not None
    return found.values, noisy, noisy != clean


# ---------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(("name", "within"), [("digits", 0.03), ("breast-cancer", 0.06)])
def test_the_estimate_of_flipped_labels_is_within_a_few_points(name: str, within: float) -> None:
    for seed in range(3 if name == "digits" else 2):
        probabilities, noisy, _ = _predicted(name, 0.2, seed)
        assert noise_rate(probabilities, noisy) == pytest.approx(0.2, abs=within)


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "wine"])
def test_clean_labels_give_no_alarm(name: str) -> None:
    for seed in range(3 if name == "digits" else 1):
        probabilities, labels, _ = _predicted(name, 0.0, seed)
        found = label_noise(probabilities, labels, [str(k) for k in range(10)])
        assert found.value < 0.03
        assert found.severity == "fine"


def test_wrong_labels_are_named_first() -> None:
    probabilities, noisy, wrong = _predicted("digits", 0.1, 0)
    found = label_noise(probabilities, noisy, [str(k) for k in range(10)])
    assert found.severity == "act"
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.1 <= found.high
    assert wrong[list(found.rows)].mean() > 0.9


def _overlapping(rate: float, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two classes that nobody could tell apart better than four times out of five; the true probabilities."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=4000) * 2
    chance = 1 / (1 + np.exp(-score))
    labels = (rng.random(4000) < chance).astype(np.int64)
    kept = chance * (1 - rate) + (1 - chance) * rate
    return np.column_stack([1 - kept, kept]), _flipped(labels, rate, 2, seed)


def test_hard_data_are_not_taken_for_wrong_labels() -> None:
    for rate in (0.0, 0.1, 0.2):
        probabilities, labels = _overlapping(rate, 0)
        every = 1 - np.trace(confident_joint(probabilities, labels))
        assert every > rate + 0.05  # what the joint alone would say
        assert noise_rate(probabilities, labels) == pytest.approx(rate, abs=0.05)


def test_the_joint_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Thresholds: class 0 (0.9 + 0.8 + 0.2) / 3 = 0.633, class 1 (0.9 + 0.7 + 0.4) / 3 = 0.667. The last example is above
    # neither and does not count; its row is scaled up to three all the same.
    assert np.allclose(confident_joint(probabilities, labels), np.array([[2, 1], [0, 3]]) / 6)


def test_the_joint_is_that_of_another_implementation() -> None:
    count = pytest.importorskip("cleanlab.count")
    probabilities, noisy, _ = _predicted("digits", 0.2, 1)
    theirs = count.estimate_joint(noisy, probabilities)
    ours = confident_joint(probabilities, noisy)
    assert np.trace(ours) == pytest.approx(np.trace(theirs), abs=0.01)
    assert np.abs(ours - theirs).max() < 0.005


def test_surest_error_looks_at_the_surest_of_each_class() -> None:
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 12 + [[0.1, 0.9]] * 4 + [[0.45, 0.55]] * 12)
    labels = np.array([0, 0, 0, 1] + [1] * 12 + [1] * 4 + [0] * 12)
    found, error = surest_error(probabilities, labels)
    assert found == pytest.approx(1 / 8)
    assert 0.05 < error < 0.2


def test_targets_far_off() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=500)
    targets = predicted + 0.1 * rng.normal(size=500)
    assert target_outliers(predicted, targets).severity == "fine"
    targets[[3, 50, 400]] *= 1000
    found = target_outliers(predicted, targets)
    assert found.severity == "look"
    assert set(found.rows) == {3, 50, 400}


def test_imbalance() -> None:
    even = imbalance(np.repeat([0, 1], 50), ["a", "b"])
    assert (even.value, even.severity) == (1.0, "fine")
    skewed = imbalance(np.repeat([0, 1, 2], [600, 300, 30]), ["a", "b", "c"])
    assert (skewed.value, skewed.severity) == (20.0, "act")
    assert "c 30" in skewed.words


def test_signal_or_none() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    blind = rng.dirichlet([5, 5], 400)
    assert signal(blind, labels, "guessing").severity == "act"
    seeing = np.where(np.eye(2)[labels] > 0, 0.7, 0.3)
    found = signal(seeing, labels, "a model")
    assert (found.severity, found.value) == ("fine", 1.0)


def test_few_examples_unless_they_are_enough() -> None:
    assert few_examples(30, 3, 1000).severity == "act"
    assert few_examples(30, 3, 1000, 0.98, 0.99).severity == "fine"
    assert few_examples(9000, 3, 1000, 0.80, 0.80).severity == "fine"
    growing = few_examples(9000, 3, 1000, 0.80, 0.85)
    assert growing.severity == "look"
    assert "0.800 to 0.850" in growing.words


# ---------------------------------------------------------------------------------------------------- repeats


def test_repeats_within_and_across() -> None:
    train = np.concatenate([np.arange(90), np.arange(10)])
    found = repeats(train, np.array([5, 200, 201, 202]), np.zeros(100, np.int64))
    assert found.value == pytest.approx(0.1)
    assert found.severity == "act"  # a quarter of the test is known
    assert set(found.rows) == set(range(90, 100))
    assert repeats(np.arange(100), np.arange(100, 150), np.zeros(100, np.int64)).severity == "fine"


def test_repeats_with_another_label_come_first() -> None:
    train = np.concatenate([np.arange(95), np.arange(5)])
    labels = np.zeros(100, np.int64)
    labels[97] = 1
    found = repeats(train, np.array([200]), labels)
    assert found.rows[0] == 97
    assert "1 of them with another label" in found.words


def test_columns_of_few_values_repeat_by_chance() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.integers(0, 3, 300), "b": rng.integers(0, 3, 300)})
    chance = repeats_by_chance(frame)
    assert chance > 0.9
    marks = frame.a.to_numpy() * 3 + frame.b.to_numpy()
    assert repeats(marks, marks[:0], np.zeros(300, np.int64), chance=chance).severity == "fine"


def test_nearly_the_same_images() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((1500, 64))
    images[1400] = 0.9 * images[10] + 0.05 + 0.001 * rng.normal(size=64)
    images[77] = 0.5  # without any variation: like nothing
    images[78] = 0.5
    assert near_repeats(images, 0.995) == [(10, 1400)]
    images[1300] = images[1400]
    assert near_repeats(images, 0.995, first=1200) == [(10, 1300), (10, 1400)]  # not with each other


def test_nearly_the_same_across_the_splits() -> None:
    marks = np.arange(100)
    found = repeats(marks, marks + 100, np.zeros(100, np.int64), Near(within=((3, 50),), across=2, train=100, test=100))
    assert found.severity == "look"
    assert found.rows == (50,)
    assert "1 more of 100 are nearly the same as one before, 2 of 100 in the test" in found.words


def test_nearly_the_same_texts() -> None:
    story = "the cat sat on the mat and looked at the moon for a very long time"
    texts = ["something else altogether is said in this one", story, "short", story + " today", "short"]
    assert near_texts(texts) == [(1, 3)]
    assert near_texts([*texts, story + " tomorrow"], first=3) == [(1, 3), (1, 5)]


# ---------------------------------------------------------------------------------------------------- columns


def test_columns() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "number": np.arange(200) + 1000,
            "shuffled": rng.permutation(200) * 7,
            "age": rng.integers(18, 80, 200),
            "weight": rng.normal(size=200),
            "flag": np.where(np.arange(200) == 3, "yes", "no"),
        }
    )
    ids = id_columns(frame)
    assert ids.value == 2
    assert "number, shuffled" in ids.words
    constant = constant_columns(frame)
    assert constant.value == 1
    assert "flag" in constant.words
    assert missing(frame).severity == "fine"
    gaps = frame.assign(age=frame.age.mask(rng.random(200) < 0.3), flag=frame.flag.where(rng.random(200) < 0.9, "(missing)"))
    found = missing(gaps)
    assert found.severity == "look"
    assert "age" in found.words
    assert found.value == pytest.approx((0.3 + 0.1) / 5, abs=0.02)


@pytest.mark.parametrize("classifies", [True, False])
def test_a_column_that_gives_the_answer_away(classifies: bool) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 400) if classifies else rng.normal(size=400)
    frame = pd.DataFrame(rng.normal(size=(400, 4)), columns=list("abcd"))
    frame["hint"] = target + 0.8 * rng.normal(size=400)
    assert giveaways(frame, target, classifies).severity == "fine"
    frame["answer"] = np.asarray(target, dtype=float) * 2 + 5
    found = giveaways(frame, target, classifies)
    assert found.severity == "act"
    assert found.words.startswith("answer nearly give")


def test_gaps_that_give_the_answer_away() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 300)
    frame = pd.DataFrame({"a": rng.normal(size=300), "measured later": np.where(target == 1, rng.normal(size=300), np.nan)})
    assert "measured later" in giveaways(frame, target, True).words


def test_no_column_of_real_data_gives_the_answer_away() -> None:
    for name in ("iris", "breast-cancer"):
        data = load(name)
        frame = pd.DataFrame(data.train.inputs.numpy(), columns=list(data.features))
        assert giveaways(frame, data.train.labels.numpy(), True).severity == "fine"


# ---------------------------------------------------------------------------------------------------- shift


def test_shift_is_seen_with_its_column() -> None:
    rng = np.random.default_rng(0)
    is_test = np.arange(600) >= 400
    assert shift(rng.normal(size=600), is_test).severity == "fine"
    found = shift(rng.normal(size=600) + 2 * is_test, is_test, "age (distance 0.80 of 1)")
    assert found.severity == "act"
    assert "age" in found.words
    before = pd.DataFrame({"age": rng.normal(size=300), "colour": rng.choice(["red", "blue"], 300)})
    after = before.assign(age=before.age + 1.5)
    assert most_moved(before, after).startswith("age")
    assert most_moved(before, before.assign(colour="green")).startswith("colour")


def test_classes_that_move() -> None:
    names = ["a", "b"]
    assert moved_class(np.repeat([0, 1], 100), np.repeat([0, 1], 50), names) is None
    assert moved_class(np.repeat([0, 1], [150, 50]), np.repeat([0, 1], 100), names) == {"a": (0.75, 0.5)}


def test_interval_of_the_auc_covers() -> None:
    """Nineteen of twenty intervals contain the true area."""
    from scipy.stats import norm
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth = norm.cdf(1 / np.sqrt(2))
    hit = []
    for _ in range(300):
        area = roc_auc_score(np.arange(120) >= 60, np.concatenate([rng.normal(size=60), rng.normal(1, 1, 60)]))
        hit.append(abs(area - truth) < 1.96 * auc_error(area, 60, 60))
    assert 0.91 < np.mean(hit) <= 0.99


def test_names_are_needs_of_the_catalogue() -> None:
    from assay.catalogue import NEEDS

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=50)})
    labels = np.repeat([0, 1], 25)
    found = [
        imbalance(labels, ["a", "b"]),
        few_examples(50, 2, 10),
        repeats(np.arange(50), np.arange(5), labels),
        constant_columns(frame),
        id_columns(frame),
        missing(frame),
        giveaways(frame, labels, True),
        shift(rng.normal(size=50), labels > 0),
        label_noise(np.full((50, 2), 0.5), labels, ["a", "b"]),
        signal(rng.dirichlet([1, 1], 50), labels, "guessing"),
        findings.explained(rng.normal(size=50), rng.normal(size=50), "guessing"),
        target_outliers(rng.normal(size=50), rng.normal(size=50)),
    ]
    assert {one.name for one in found} == set(NEEDS)
