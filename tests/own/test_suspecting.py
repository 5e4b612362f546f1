"""Suspects: what is planted is found, first things first, and what the list says of itself is true."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from assay import cli
from assay.data import Dataset, load
from assay.errors import AssayError
from assay.own import doubting, suspecting
from assay.own.doubting import best_cut, chance_wrong, doubt, doubted, plant
from assay.own.examples import all_examples
from assay.own.suspecting import COLUMNS, Suspects, suspects


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    """Nothing of another test."""


def _wrong(data: Dataset, found: Suspects) -> np.ndarray[Any, Any]:
    assert data.train.clean_labels is not None
    wrong: np.ndarray[Any, Any] = (data.train.labels != data.train.clean_labels).numpy()[found.places]
    return wrong


# ---------------------------------------------------------------------------------------------------- arrays


def test_doubt_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]])
    expected = [np.log(0.201 / 0.701), np.log(0.501 / 0.101)]
    np.testing.assert_allclose(doubt(probabilities, np.array([0, 0])), expected)
    # All mistakes of a 2 are labelled 0, and half of those of a 1: then the second example is rather a 2.
    kinds = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [1.0, 0, 0]])
    expected = [np.log((0.1 * 2 + 1e-3) / 0.701), np.log((0.4 * 2 + 1e-3) / 0.101)]
    np.testing.assert_allclose(doubt(probabilities, np.array([0, 0]), kinds), expected)


def test_doubt_ranks_two_classes_as_another_implementation_does() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    rng = np.random.default_rng(0)
    share = rng.random((200, 1))
    probabilities, labels = np.concatenate([share, 1 - share], axis=1), rng.integers(0, 2, 200)
    theirs = rank.get_label_quality_scores(labels, probabilities, method="normalized_margin")
    assert (np.argsort(theirs) == np.argsort(-doubt(probabilities, labels))).all()


def test_a_chance_is_the_share_of_mistakes_at_that_doubt() -> None:
    """Two levels of doubt; of 1000 labels 100 are wrong, and 9 of 10 mistakes are at the high level."""
    doubts = np.repeat([0.0, 1.0], [850, 150])  # 10 and 90 of the mistakes
    planted = np.repeat([0.0, 1.0], [50, 450])
    chances = chance_wrong(doubts, planted, np.ones(500), 0.1)
    np.testing.assert_allclose(chances[[0, -1]], [10 / 850, 90 / 150], rtol=1e-6)
    assert chances.mean() == pytest.approx(0.1)
    assert (chance_wrong(doubts, planted, np.ones(500), 0.0) == 0).all()


def test_every_example_is_planted_as_every_other_class(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels = np.full((5, 4), 0.25), np.array([0, 1, 2, 3, 3])
    planted = plant(probabilities, labels)
    assert {*zip(planted.rows.tolist(), planted.labels.tolist(), strict=True)} == {
        (row, other) for row in range(5) for other in range(4) if other != labels[row]
    }
    monkeypatch.setattr(doubting, "_MOST", 24)
    few = plant(probabilities, labels)
    assert len(few.rows) == 6
    assert (few.labels != labels[few.rows]).all()


def test_the_best_cut_by_hand() -> None:
    # Expected F1 of the first 1, 2, 3, 4: 2 / 3, (2 * 1.8) / 4, (2 * 1.9) / 5, (2 * 2) / 6.
    assert best_cut(np.array([1.0, 0.8, 0.1, 0.1])) == 2
    assert best_cut(np.zeros(3)) == 0


def test_usual_mistakes_are_learnt_and_help() -> None:
    """One example of ten the model takes for any other class, more or less surely; people take k for k + 1 as often."""
    rng = np.random.default_rng(0)
    truth, sure, rows = rng.integers(0, 6, 3000), rng.uniform(0.5, 0.95, 3000), np.arange(3000)
    seen = np.where(rng.random(3000) < 0.1, truth + rng.integers(1, 6, 3000), truth) % 6
    probabilities = np.repeat((1 - sure[:, None]) / 5, 6, axis=1)
    probabilities[rows, seen] = sure
    wrong = rng.random(3000) < 0.1
    labels = np.where(wrong, (truth + 1) % 6, truth)
    found = doubted(probabilities, labels, plant(probabilities, labels), (0.1,))
    assert (found.kinds.argmax(axis=1) == (np.arange(6) + 1) % 6).all()
    better, plain = (average_precision_score(wrong, scores) for scores in (found.scores, doubt(probabilities, labels)))
    assert better > plain + 0.02


@pytest.mark.parametrize("kind", ["symmetric", "pairwise"])
def test_what_the_list_says_of_itself_is_true(kind: str) -> None:
    for seed in range(2):
        data = load("digits").flip_labels(0.1, seed=seed, kind=kind)
        found = suspects(data, seed=seed)
        wrong = _wrong(data, found)
        assert average_precision_score(wrong, found.scores) > 0.97
        share = found.expected(found.cut)
        assert share is not None
        assert share[1] <= share[0] <= share[2]
        assert wrong[: found.cut].mean() == pytest.approx(share[0], abs=0.12)
        assert wrong[: found.cut].sum() > 0.85 * wrong.sum()
        assert found.rate is not None
        assert found.rate[0] == pytest.approx(0.1, abs=0.03)


def test_nothing_is_suspected_in_clean_data() -> None:
    found = suspects(load("digits"))
    assert found.cut < 0.01 * len(found.ids)


# ---------------------------------------------------------------------------------------------------- people's data


def _photos(folder: Path, count: int = 300) -> tuple[Path, set[str]]:
    digits = load("digits").subset(train=count, seed=0).flip_labels(0.15, seed=0)
    assert isinstance(digits.train.inputs, torch.Tensor)
    assert digits.train.clean_labels is not None
    pixels = (digits.train.inputs[:, 0] * 255).round().to(torch.uint8).numpy()
    wrong = set()
    for number, (image, label, true) in enumerate(
        zip(pixels, digits.train.labels.tolist(), digits.train.clean_labels.tolist(), strict=True)
    ):
        place = folder / "digits" / str(label) / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
        if label != true:
            wrong.add(str(place.relative_to(folder / "digits")))
    return folder / "digits", wrong


def test_images_by_their_files_in_csv_parquet_and_json(tmp_path: Path) -> None:
    photos, wrong = _photos(tmp_path)
    out, parquet = tmp_path / "suspects.csv", tmp_path / "suspects.parquet"
    shown = CliRunner().invoke(cli.app, ["suspects", "--on", str(photos), "--out", str(out)], catch_exceptions=False)
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert list(rows[0]) == list(COLUMNS)
    assert sum(row["id"] in wrong for row in rows[:30]) >= 28
    assert all(row["id"].startswith(f"{row['given']}/") and row["believed"] != row["given"] for row in rows)
    shares = [float(row["expected_share"]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert rows[0]["id"] in shown.stdout
    assert "ought to be wrong" in " ".join(shown.stdout.split())
    arguments = ["suspects", "--on", str(photos), "--out", str(parquet), "--json"]
    said = json.loads(CliRunner().invoke(cli.app, arguments, catch_exceptions=False).stdout)
    assert [row["id"] for row in said["suspects"]] == [row["id"] for row in rows]
    assert said["cut"] <= len(rows)
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), pd.DataFrame(said["suspects"]))


def test_tables_texts_and_series_by_their_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 4)), columns=list("abcd"))
    right = np.where(frame.a > 0, "up", "down")
    wrong = rng.permutation(300)[:30]
    labels = right.copy()
    labels[wrong] = np.where(right[wrong] == "up", "down", "up")
    words = np.array(["film", "plot", "actor", "scene", "sound", "music"])
    texts = [" ".join([*rng.choice(words, 6), "good" if label == "up" else "bad"]) for label in right]
    steps = pd.DataFrame(np.outer(np.where(right == "up", 1, -1), np.ones(9)) + rng.normal(size=(300, 9)))
    steps.columns = [f"t{number}" for number in range(9)]
    for inputs in (frame, pd.DataFrame({"text": texts}), steps):
        path = tmp_path / "own.csv"
        inputs.assign(label=labels).to_csv(path, index=False)
        found = suspects(path)
        assert found.called == "row"
        rows = [int(name) - 1 for name in found.ids]
        assert np.isin(rows[:20], wrong).mean() >= 0.9
        assert set(found.given) == {"up", "down"}
        assert [labels[row] for row in rows] == list(found.given)


def test_rows_of_all_splits_are_looked_at_and_groups_stay_together(tmp_path: Path) -> None:
    frame = pd.DataFrame({"who": np.repeat(np.arange(40), 5), "label": np.repeat(np.arange(40) % 2, 5)})
    frame["x"] = np.random.default_rng(0).normal(size=200) + frame.who  # tells who it is, not the class
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    found = suspects(path, target="label", group="who")
    assert len(found.ids) == 200
    assert found.probabilities is not None
    assert (found.probabilities.argmax(axis=1) == (np.array(found.given) == "1")).mean() < 0.7


def test_classes_seen_once_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60)})
    frame["label"] = np.where(frame.a > 0, "up", "down")
    frame.loc[7, "label"] = "once"
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    found = suspects(path)
    assert "8" not in found.ids
    assert any("once" in note for note in found.notes)


def test_numbers_that_are_far_off_without_a_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=200), "b": rng.normal(size=200)})
    frame["y"] = frame.a * 3 + rng.normal(size=200)
    frame.loc[[20, 30], "y"] = [60.0, -40.0]
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    found = suspects(path, target="y")
    assert (found.ids[:2], found.cut, found.expected(2)) == (("21", "31"), 2, None)
    shown = CliRunner().invoke(cli.app, ["suspects", "--on", str(path), "--target", "y"], catch_exceptions=False)
    assert "far off" in shown.stdout
    assert [row["wrong"] for row in found.as_dict()["suspects"]] == [None, None]
    with pytest.raises(AssayError, match="is a number"):
        suspects(path, target="y", method="elr")


def test_a_network_that_resists(table: Dataset) -> None:
    noisy = table.flip_labels(0.15, seed=0)
    found = suspects(noisy, method="elr")
    wrong = _wrong(noisy, found)
    assert average_precision_score(wrong, found.scores) > 0.85
    share = found.expected(found.cut)
    assert share is not None
    assert wrong[: found.cut].mean() == pytest.approx(share[0], abs=0.2)
    assert found.cut > 30


def test_what_elr_remembers_is_what_is_believed(table: Dataset) -> None:
    """The hook's average is that of the loss itself, whose probabilities are kept away from 0 and 1."""
    from assay.own import baselines
    from assay.papers.labels.elr import EarlyLearningRegularization, elr
    from assay.train.loop import Loop

    recipe = elr(baselines.baseline(table)).replace(epochs=2, hooks=(suspecting.Believed(),))
    with torch.random.fork_rng():
        loop = Loop(recipe, 0, torch.device("cpu"))
        for hook in recipe.hooks:
            hook.on_start(loop.run)
        loop.train(None, 30.0, None)
    assert isinstance(loop.loss, EarlyLearningRegularization)
    torch.testing.assert_close(loop.run.memory["believed"], loop.loss.targets, atol=2e-4, rtol=0)


def test_methods_that_do_not_fit_are_refused(table: Dataset, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match=r"No paper is called .* Labels are doubted by"):
        suspects(table, method="nonsense")
    with pytest.raises(AssayError, match="has no treatment"):
        suspects(table, method="deepfool")
    shown = CliRunner().invoke(cli.app, ["suspects", "--on", "digits", "--out", str(tmp_path / "a.txt")])
    assert isinstance(shown.exception, AssayError)
    assert ".csv or .parquet" in str(shown.exception)


def test_ids_differ_and_nothing_is_held_out() -> None:
    data = load("digits")
    examples = all_examples(data)
    assert len(set(examples.ids)) == len(examples) == len(data.train)


def test_markup_in_names_is_shown_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=100)})
    frame["label"] = np.where(frame.a > 0, "[red]up[/]", "down")
    frame.loc[[3, 4, 5], "label"] = np.where(frame.a[[3, 4, 5]] > 0, "down", "[red]up[/]")
    frame.to_csv(tmp_path / "own.csv", index=False)
    shown = CliRunner().invoke(cli.app, ["suspects", "--on", str(tmp_path / "own.csv")], catch_exceptions=False)
    assert "[red]up[/]" in shown.stdout
