from __future__ import annotations

import bz2
import gzip
import inspect
import lzma
import os
import pickle
import shutil
import statistics
import string
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from assay.data.dataset import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.paper import Claim, Curve, Higher
from assay.papers.text.gzip_knn import (
    GzipKNN,
    expected_accuracy,
    few_shot_beats_untrained_nets,
    gzip_length,
    nearest_two,
    optimistic_accuracy,
    published_rule_inflates,
)

TRAIN = (
    "the cat sat on the mat and looked at the dog",
    "dogs and cats are animals that live with people",
    "stocks fell sharply on wall street on monday",
    "the central bank raised interest rates again",
    "shares of the bank rose after the report on rates",
    "a dog barked at the cat in the garden",
)
LABELS = ("pets", "pets", "money", "money", "money", "pets")
TESTS = ("the bank cut interest rates on monday", "my cat and my dog sat in the garden", "", "Größe, naïve café – 猫と犬")


def the_papers_way(train: Sequence[str], tests: Sequence[str]) -> np.ndarray:
    """All distances (M, N), every compression done anew, as the published code does it."""
    rows = []
    for x in tests:
        cx = len(gzip.compress(x.encode("utf-8")))
        row = []
        for y in train:
            cy = len(gzip.compress(y.encode("utf-8")))
            cxy = len(gzip.compress((x + " " + y).encode("utf-8")))
            row.append((cxy - min(cx, cy)) / max(cx, cy))
        rows.append(row)
    return np.array(rows)


def by_vote(distances: np.ndarray, labels: Sequence[str], k: int) -> list[str]:
    """The label with the most votes; between equals, the one that comes first."""
    said = []
    for row in distances:
        near = [labels[i] for i in sorted(range(len(row)), key=lambda i: (row[i], i))[:k]]
        said.append(max(near, key=lambda label: (near.count(label), -near.index(label))))
    return said


words = st.sampled_from(["the", "bank", "cat", "dog", "rates", "rose", "of", "Größe", "猫", "1,5"])
texts = st.one_of(st.lists(words, max_size=60).map(" ".join), st.text(max_size=80))


@settings(max_examples=40, deadline=None)
@given(
    train=st.lists(texts, min_size=2, max_size=8),
    tests=st.lists(texts, min_size=1, max_size=3),
    k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@example(train=["same words", "same words", "other"], tests=["same words"], k=2, seed=0)
def test_neighbours_and_labels_are_those_of_the_plain_algorithm(train: list[str], tests: list[str], k: int, seed: int) -> None:
    k = min(k, len(train))
    labels = [LABELS[i] for i in np.random.default_rng(seed).integers(0, 4, len(train))]
    model = GzipKNN(k=k).fit(train, labels)
    plain = the_papers_way(train, tests)
    distances, positions = model.kneighbors(tests)
    order = np.argsort(plain, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_array_equal(distances, np.take_along_axis(plain, order, axis=1))  # bit for bit
    assert model.predict(tests).tolist() == by_vote(plain, labels, k)


def test_real_texts() -> None:
    """English as people write it: what the standard library says about itself."""
    named = [
        (module.__name__, f"{name}: {inspect.getdoc(thing)}"[:400])
        for module in (shutil, textwrap, statistics, string)
        for name, thing in sorted(vars(module).items())
        if inspect.isroutine(thing) and inspect.getdoc(thing)
    ]
    labels, texts = zip(*named, strict=True)
    assert len(set(texts)) > 60
    model = GzipKNN().fit(texts[::2], labels[::2])
    plain = the_papers_way(texts[::2], texts[1::2])
    assert model.predict(texts[1::2]).tolist() == by_vote(plain, labels[::2], 2)
    np.testing.assert_array_equal(model.kneighbors(texts[1::2])[0], np.sort(plain, axis=1)[:, :2])


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=3000), st.lists(words, max_size=9000).map(lambda x: " ".join(x).encode())))
@example(b"")
@example(b"a" * 100_000)
def test_gzip_length_is_the_length_that_gzip_writes(data: bytes) -> None:
    assert gzip_length(data) == len(gzip.compress(data))


def test_two_jobs_find_what_one_finds() -> None:
    """In a process of its own: jobs are forked, and other tests leave threads behind that a fork must not copy."""
    code = "from test_gzip_knn import same_with_two_jobs; same_with_two_jobs()"
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    subprocess.run([sys.executable, "-c", code], env=place, check=True, timeout=240)


def same_with_two_jobs() -> None:
    tests = TRAIN[:3] + TESTS
    one, two = (GzipKNN(k=3, n_jobs=n).fit(TRAIN, LABELS).kneighbors(tests) for n in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.parametrize(("name", "function"), [("bz2", bz2.compress), ("lzma", lzma.compress), ("gzip", gzip.compress)])
def test_a_compressor_by_name_is_the_function(name: str, function: object) -> None:
    named = GzipKNN(compressor=name).fit(TRAIN, LABELS)  # type: ignore[arg-type]
    given_ = GzipKNN(compressor=lambda data: len(function(data))).fit(TRAIN, LABELS)  # type: ignore[operator]
    for a, b in zip(named.kneighbors(TESTS), given_.kneighbors(TESTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_text_is_compressed_before_the_training_text() -> None:
    """C(xy) and C(yx) differ by a byte now and then; the order is the published one."""
    rng = np.random.default_rng(0)
    train = [" ".join(rng.choice(TRAIN[0].split() + TRAIN[3].split(), 30)) for _ in range(30)]
    turned = np.array([[len(gzip.compress(f"{y} {x}".encode())) for y in train] for x in train])
    assert (turned != turned.T).any()
    distances, positions = GzipKNN(k=30).fit(train, [0, 1] * 15).kneighbors(train[:5])
    plain = the_papers_way(train, train[:5])
    np.testing.assert_array_equal(distances, np.take_along_axis(plain, positions, axis=1))


def test_ncd_is_that_of_npc_gzip() -> None:
    knn_classifier = pytest.importorskip("npc_gzip.knn_classifier")
    compressor = pytest.importorskip("npc_gzip.compressors.gzip_compressor").GZipCompressor()
    # npc_gzip puts the training text first: let it see one of our training texts as a query at a time.
    model = GzipKNN(k=1)
    for number, text in enumerate(TRAIN):
        peer = knn_classifier.KnnClassifier(
            compressor, training_inputs=list(TESTS), training_labels=[0] * len(TESTS), distance_metric="ncd"
        )
        one, joint = peer._compress_sample(text)
        theirs = peer._calculate_distance(one, joint)
        ours = model.fit([text], ["x"]).kneighbors(TESTS)[0][:, 0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, err_msg=str(number))


def test_other_distances() -> None:
    x, y = TESTS[0], TRAIN[0]
    cx, cy, cxy = (len(gzip.compress(text.encode())) for text in (x, y, f"{x} {y}"))
    for name, value in (("cdm", cxy / (cx + cy)), ("clm", 1 - (cx + cy - cxy) / cxy)):
        distances, _ = GzipKNN(k=1, distance=name).fit([y], [0]).kneighbors([x])  # type: ignore[arg-type]
        assert distances[0, 0] == value


def test_a_text_is_near_to_itself_but_not_at_zero() -> None:
    distances, positions = GzipKNN(k=1).fit(TRAIN, LABELS).kneighbors(TRAIN)
    assert positions[:, 0].tolist() == list(range(len(TRAIN)))
    assert (distances > 0).all()
    assert (distances < 0.25).all()


def test_ties() -> None:
    votes = np.array([["a", "b"], ["a", "a"], ["b", "a"], ["b", "c"]])
    truth = np.array(["b", "a", "b", "a"])
    assert optimistic_accuracy(votes, truth) == 3 / 4
    assert expected_accuracy(votes, truth) == (0.5 + 1 + 0.5 + 0) / 4
    assert optimistic_accuracy(votes[:, :1], truth) == expected_accuracy(votes[:, :1], truth) == 2 / 4
    three = np.array([["a", "b", "b"], ["a", "b", "c"]])
    assert optimistic_accuracy(three, np.array(["a", "c"])) == 1 / 2
    assert expected_accuracy(three, np.array(["a", "c"])) == pytest.approx(1 / 6)


def test_random_ties_are_seeded_and_only_among_equals() -> None:
    train, labels = ["apple pie"] * 2 + ["zzzzzzzzzz qqqqq"], ["a", "b", "c"]
    queries = ["apple pie"] * 200
    lot = GzipKNN(k=2, tie="random", random_state=3).fit(train, labels)
    said = lot.predict(queries)
    assert set(said) == {"a", "b"}
    assert 60 < (said == "a").sum() < 140
    np.testing.assert_array_equal(said, lot.predict(queries))
    assert set(GzipKNN(k=2).fit(train, labels).predict(queries)) == {"a"}


def test_works_with_scikit_learn() -> None:
    model = GzipKNN(k=3, tie="random")
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(GzipKNN(), {"k": [1, 3]}, cv=2).fit(list(TRAIN), list(LABELS))
    assert search.best_params_["k"] in (1, 3)
    fitted = GzipKNN().fit(TRAIN, LABELS)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(TESTS), fitted.predict(TESTS))
    assert fitted.score(list(TESTS[:2]), ["money", "pets"]) == 1.0


@pytest.mark.parametrize(
    ("settings_", "train", "labels", "message"),
    [
        ({"k": 7}, TRAIN, LABELS, "k is 7"),
        ({"k": 0}, TRAIN, LABELS, "k is 0"),
        ({}, (), (), "0 training texts"),
        ({}, TRAIN, LABELS[:3], "6 texts but 3 labels"),
        ({"distance": "cosine"}, TRAIN, LABELS, "ncd, cdm, clm"),
        ({"tie": "any"}, TRAIN, LABELS, "nearest, random"),
        ({"compressor": "zip"}, TRAIN, LABELS, "gzip, bz2, lzma"),
        ({}, "one string", LABELS, "sequence of strings"),
        ({}, [b"bytes"], ["x"], "sequence of strings"),
    ],
)
def test_says_what_is_wrong(settings_: dict, train: Sequence[str], labels: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GzipKNN(**settings_).fit(train, labels)


def test_no_queries() -> None:
    distances, positions = GzipKNN().fit(TRAIN, LABELS).kneighbors([])
    assert distances.shape == positions.shape == (0, 2)


def test_nearest_two_of_a_data_set() -> None:
    def split(texts: Sequence[str]) -> Split:
        return Split(tuple(texts), torch.arange(len(texts)) % 2)

    many = TESTS * 8  # more than are done at a time
    data = Dataset("tiny", "classification", split(TRAIN), split(()), split(many), ("a", "b"))
    told: list[float] = []
    positions = nearest_two(data, progress=lambda done, total, note: told.append(done / total))["positions"]
    np.testing.assert_array_equal(positions.numpy(), GzipKNN().fit(TRAIN, LABELS).kneighbors(many)[1])
    assert told[-1] == 1.0


@pytest.mark.parametrize("claim", [published_rule_inflates, few_shot_beats_untrained_nets], ids=lambda claim: claim.name)
def test_claims_measure_what_they_expect(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(scale="smoke")
    try:
        for name in claim.needs:
            lab.data(name)
    except AssayError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: tmp_path)
    measured = claim(lab)
    for expected in claim.expect:
        assert isinstance(expected, Higher)
        assert {expected.arm, expected.than} <= measured.keys()
    for value in measured.values():
        assert 0 <= (value.number if isinstance(value, Curve) else value) <= 1


def test_generators_of_texts_and_compressors_of_ones_own():
    texts, labels = ["aaaa bbbb", "cccc dddd", "aaaa cccc", "bbbb dddd"], [0, 1, 0, 1]
    plain = GzipKNN(k=1).fit(texts, labels).predict(texts)
    assert GzipKNN(k=1).fit((t for t in texts), labels).predict(t for t in texts).tolist() == plain.tolist()
    own = GzipKNN(k=1, compressor=lambda data: gzip_length(data), n_jobs=2).fit(texts, labels)
    assert own.predict(texts).tolist() == plain.tolist()
