"""A preparation is learnt on training examples alone, computes what scikit-learn computes, and survives JSON to the last bit."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from assay.data import Dataset, Split, load
from assay.data.aside import set_aside
from assay.errors import AssayError
from assay.nn.text import encode
from assay.own.preparing import Columns, Line, Preparation, Tokens, fit, prepared


def frame(count: int = 300, kinds: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    found = pd.DataFrame({"size": rng.normal(7e3, 1 / 3, count), "weight": rng.random(count), "empty": np.nan, "same": 1.1})
    found.loc[rng.random(count) < 0.1, "weight"] = np.nan
    found["colour"] = np.array([f"kind {n}" for n in range(kinds)], dtype=object)[(rng.random(count) ** 2 * kinds).astype(int)]
    return found


def through_json(preparation: Preparation) -> Preparation:
    return Preparation.from_dict(json.loads(json.dumps(preparation.as_dict(), allow_nan=False)))


@pytest.mark.parametrize("kinds", [4, 80])
def test_columns_are_scikit_learns(kinds: int) -> None:
    train, test = frame(kinds=kinds)[:200], frame(kinds=kinds)[200:].copy()
    test.iloc[0, test.columns.get_loc("colour")] = "never seen"
    numbers = ["size", "weight", "empty", "same"]
    theirs = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=50, sparse_output=False), ["colour"]),
        verbose_feature_names_out=False,
    ).fit(train)
    ours = Columns.fit(train)
    for rows in (train, test):
        found, columns = ours(rows).numpy(), np.array(ours.features)
        marks = np.char.endswith(columns, " is missing")
        assert np.array_equal(found[:, ~marks], theirs.transform(rows).astype(np.float32))
        gaps = MissingIndicator(features="missing-only").fit(train[numbers])
        assert np.array_equal(found[:, marks], gaps.transform(rows[numbers]))
    expected = [
        name.replace("infrequent_sklearn", "(rare)").replace("colour_", "colour=") for name in theirs.get_feature_names_out()
    ]
    assert list(columns[~marks]) == expected


def test_a_way_through_json_changes_nothing() -> None:
    table, train = frame(kinds=80), np.arange(200)
    texts = ("a good film", "a bad one", "", "Überraschung \u2028 \U0001f642")
    series = torch.randn(40, 3, 11, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1 / 3
    for inputs, preparation in (
        (table, fit(table, train, {"target": "y"})),
        (texts, Preparation({"kind": "text"}, (Tokens(("<pad>", "<unk>", "a", "\U0001f642", "überraschung"), 4),))),
        (series, fit(series, np.arange(30), {}).then(Line.between(series, -1, 1))),
    ):
        again = through_json(preparation)
        assert again == preparation
        assert torch.equal(again(inputs), preparation(inputs))
    assert fit(table, train, {"target": "y"}).form["columns"]["colour"] == "word"


def test_only_training_examples_are_looked_at() -> None:
    table, train = frame(), np.arange(200)
    spoilt = table.copy()
    spoilt.loc[200:, "size"] = 1e9
    spoilt.loc[200:, "colour"] = "other"
    assert fit(table, train, {}) == fit(spoilt, train, {})


def test_what_was_done_to_a_data_set_is_done_to_new_examples() -> None:
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    parts = [Split(images[a:b], torch.arange(a, b) % 2) for a, b in ((0, 40), (40, 50), (50, 60))]
    data = Dataset("x", "classification", *parts, classes=("a", "b"))
    after = data.flip_labels(0.2, seed=3).subset(train=30, seed=1).rescale(-1, 1.25).long_tail(2.0, seed=0)
    after = set_aside(after, per_class=2, seed=5)[0].normalise()  # measured on what is left
    _, plain = prepared(data)
    found = through_json(plain.followed(data, after))
    assert torch.equal(found(data.test.inputs), after.test.inputs)
    assert len(found.steps) == 2
    with pytest.raises(AssayError, match="shift does to the inputs cannot be done again"):
        plain.followed(data, data.shift("blur", 3, seed=0))
    with pytest.raises(AssayError, match="was not made from"):
        plain.followed(after, data)
    lies = Dataset("x", "classification", *parts[:2], parts[1], classes=("a", "b"))
    with pytest.raises(AssayError, match="not those that its history tells"):
        plain.followed(data, lies)


def test_texts_are_encoded_as_for_training() -> None:
    texts = tuple(f"film number {n} was {'good' if n % 2 else 'bad'}" for n in range(30))
    whole = Split(texts, torch.arange(30) % 2)
    data = Dataset("x", "classification", whole, whole, whole, classes=("a", "b"))
    after = encode(data, length=6)
    _, plain = prepared(data)
    found = through_json(plain.followed(data, after))
    assert torch.equal(found(texts), after.test.inputs)  # type: ignore[arg-type]


def test_named_tables_are_scaled() -> None:
    raw = load("breast-cancer")
    data, preparation = prepared(raw)
    assert isinstance(data.train.inputs, torch.Tensor)
    torch.testing.assert_close(data.train.inputs.mean(dim=0), torch.zeros(30), atol=1e-5, rtol=0)
    rows = pd.DataFrame(raw.test.inputs.numpy(), columns=list(raw.features))  # type: ignore[union-attr]
    torch.testing.assert_close(preparation(rows), data.test.inputs)
    assert preparation.form["columns"]["mean radius"] == "number"


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"form": {}, "steps": [{"step": "os.system", "command": "ls"}]}, "a step 'os.system' that this version"),
        ({"steps": []}, "incomplete"),
        ({"form": {}, "steps": [{"step": "line", "shift": [1.0]}]}, "incomplete"),
    ],
)
def test_other_json_is_refused(plain: dict[str, object], words: str) -> None:
    with pytest.raises(AssayError, match=words):
        Preparation.from_dict(plain)
