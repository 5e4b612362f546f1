"""Looking at data: what is planted is found, and what the catalogue has against it is named with reason, time and evidence."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from assay import catalogue, cli
from assay.data import Dataset, load
from assay.errors import AssayError
from assay.own import simple, suggesting
from assay.own.named import Named
from assay.own.suggesting import Advice, suggest
from assay.recipe import Recipe


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    """Nothing of another test."""


def _frame(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Clean and easy: nothing to find."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(count, 4)), columns=list("abcd"))
    return frame.assign(label=np.where(frame.a + frame.b > 0, "up", "down"))


def _noisy() -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    """The same with a fifth of the labels wrong, and which these are."""
    frame = _frame()
    wrong = np.random.default_rng(1).permutation(400)[:80]
    frame.loc[wrong, "label"] = np.where(frame.label[wrong] == "up", "down", "up")
    return frame, wrong


def _write(frame: pd.DataFrame, folder: Path, name: str = "own.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def _severities(advice: Advice) -> dict[str, str]:
    return {finding.name: finding.severity for finding in advice.findings}


def test_nothing_stands_out_in_clean_data(tmp_path: Path) -> None:
    advice = suggest(_write(_frame(), tmp_path), "label")
    assert advice.outstanding == []
    assert advice.suggestions == []
    assert set(_severities(advice)) == set(catalogue.NEEDS) - {"shift"}  # the test was drawn at random
    shown = CliRunner().invoke(cli.app, ["suggest", "--on", str(tmp_path / "own.csv"), "--target", "label"])
    assert "Nothing stands out" in shown.stdout


def test_wrong_labels_lead_to_a_method_with_its_evidence(tmp_path: Path) -> None:
    frame, wrong = _noisy()
    path = _write(frame, tmp_path, "with space.csv")
    advice = suggest(path, "label")
    (noise,) = (finding for finding in advice.findings if finding.name == "label-noise")
    assert noise.severity == "act"
    assert noise.value == pytest.approx(0.2, abs=0.06)
    named = [int(text.removeprefix("row ")) - 1 for text in advice.ids["label-noise"]]
    assert np.isin(named[:30], wrong).mean() > 0.9
    (elr,) = (one for one in advice.suggestions if one.key == "elr")
    assert shlex.split(elr.command) == ["assay", "try", "elr", "--on", str(path), "--target", "label"]
    assert (elr.kind, elr.need) == ("treatment", "label-noise")
    assert elr.seconds > 0
    assert {claim["verdict"] for claim in elr.evidence} <= {"holds", "fails", "inconclusive"}
    assert any(claim["effect"] and claim["statement"] for claim in elr.evidence)


def test_columns_classes_and_repeats_are_found(tmp_path: Path) -> None:
    frame = _frame(600)
    rare = np.flatnonzero(frame.label == "up")[:280]
    frame = frame.drop(index=rare).reset_index(drop=True)
    frame["number"] = np.arange(len(frame)) + 1
    frame["answer"] = np.where(frame.label == "up", 1.5, -1.5) + 1e-3 * frame.c
    frame["flag"] = np.where(np.arange(len(frame)) == 7, "yes", "no")
    frame.loc[::4, "d"] = np.nan
    frame = pd.concat([frame, frame[:60]])
    found = _severities(suggest(_write(frame, tmp_path), "label"))
    expected = {"imbalance": "act", "giveaway": "act", "constant-columns": "look", "missing": "look", "duplicates": "act"}
    assert {name: found[name] for name in expected} == expected


def test_a_giveaway_leads_to_a_probe(tmp_path: Path) -> None:
    frame = _frame(200)
    path = _write(frame.assign(answer=np.where(frame.label == "up", 1.0, 0.0) + 0.01 * frame.c), tmp_path)
    advice = suggest(path, "label")
    assert {one.need for one in advice.suggestions} == {"giveaway"}
    one = next(one for one in advice.suggestions if one.key == "integrated_gradients")
    assert one.kind == "probe"
    assert one.command.startswith("assay probe integrated_gradients --on ")


def test_a_test_from_elsewhere_is_found(tmp_path: Path) -> None:
    frame = _frame()
    frame = frame.assign(day=np.arange(400), c=frame.c + np.arange(400) / 40)
    advice = suggest(_write(frame, tmp_path), "label", time="day")
    (moved,) = (finding for finding in advice.findings if finding.name == "shift")
    assert moved.severity == "act"
    assert "most by c" in moved.words
    assert {one.need for one in advice.suggestions} == {"shift"}


def test_images_are_named_by_their_files(tmp_path: Path) -> None:
    digits = load("digits").subset(train=300, seed=0)
    assert isinstance(digits.train.inputs, torch.Tensor)
    pixels = (digits.train.inputs[:, 0] * 255).round().to(torch.uint8).numpy()
    labels = digits.train.labels.numpy().copy()
    wrong = np.random.default_rng(0).permutation(300)[:60]
    labels[wrong] = (labels[wrong] + 1) % 10
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = tmp_path / "digits" / str(label) / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    ground = suggesting._ground(tmp_path / "digits", Named())
    found = {finding.name: finding for finding in suggesting.examine(ground)}
    named = [int(Path(ground.ids[row]).stem) for row in found["label-noise"].rows]
    assert found["label-noise"].severity == "act"
    assert np.isin(named[:20], wrong).mean() >= 0.9


def test_texts_and_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["film", "plot", "actor", "scene", "sound", "music", "story", "end", "light", "camera"])
    texts = [" ".join([*rng.choice(words, 9), "good" if number % 2 else "bad"]) for number in range(160)]
    texts[20:30] = [text + " again" for text in texts[40:50]]
    frame = pd.DataFrame({"text": texts, "label": np.arange(160) % 2})
    found = {one.name: one for one in suggesting.examine(suggesting._ground(_write(frame, tmp_path), Named()))}
    assert found["no-signal"].value > 0.95
    assert "nearly the same as one before" in found["duplicates"].words
    numbers = _frame(150).drop(columns="label")
    path = _write(numbers.assign(y=10 * numbers.a + 3), tmp_path, "numbers.csv")
    advice = suggest(path, "y")
    assert "imbalance" not in _severities(advice)
    assert all(one.key != "elr" for one in advice.suggestions)


def test_classes_seen_once_are_no_trouble(tmp_path: Path) -> None:
    frame = _frame(120)
    frame.loc[[5, 6], "label"] = ["once", "also once"]
    found = _severities(suggest(_write(frame, tmp_path), "label"))
    assert found["imbalance"] == "act"


def test_big_data_are_sampled_and_it_is_said(monkeypatch: pytest.MonkeyPatch, table: Dataset) -> None:
    monkeypatch.setattr(suggesting, "MOST", 150)
    seen: list[int] = []
    real = simple.predicted_classes

    def spy(vectors: Any, labels: Any, *rest: Any) -> Any:
        seen.append(len(labels))
        return real(vectors, labels, *rest)

    monkeypatch.setattr(simple, "predicted_classes", spy)
    noisy = table.flip_labels(0.2, seed=0)
    advice = suggest(noisy)
    assert max(seen) <= 150
    (noise,) = (finding for finding in advice.findings if finding.name == "label-noise")
    assert noisy.train.clean_labels is not None
    wrong = (noisy.train.labels != noisy.train.clean_labels).numpy()
    assert wrong[list(noise.rows[:15])].mean() > 0.8  # places in the whole training split, not in the sample
    assert any("150 of the 400 training examples" in note for note in advice.notes)


def test_a_paper_is_found_by_what_it_helps_against(monkeypatch: pytest.MonkeyPatch, table: Dataset) -> None:
    """No line of the code knows a paper by name."""
    papers = catalogue.papers()
    changed = {key: dataclasses.replace(paper, helps=()) for key, paper in papers.items()}
    changed["elr"] = dataclasses.replace(papers["elr"], helps=("imbalance",))
    changed["lecun1989"] = dataclasses.replace(papers["lecun1989"], helps=("imbalance",))
    changed["gzip_knn"] = dataclasses.replace(papers["gzip_knn"], helps=("imbalance",))
    changed["soft_decision_tree"] = dataclasses.replace(papers["soft_decision_tree"], helps=("imbalance",))
    monkeypatch.setattr(suggesting.catalogue, "papers", lambda: changed)
    skewed = table.long_tail(12, seed=0)
    advice = suggest(skewed)
    found = {one.key: one for one in advice.suggestions}
    assert {key: one.kind for key, one in found.items()} == {"elr": "treatment", "soft_decision_tree": "estimator"}
    assert found["soft_decision_tree"].command == papers["soft_decision_tree"].api
    assert found["soft_decision_tree"].seconds is None
    assert "shifts images" in advice.unfit["lecun1989"]
    assert advice.unfit["gzip_knn"] == "it is for text"


def test_an_unknown_need_is_refused() -> None:
    assert catalogue._names("elr", "helps against", " label-noise,  imbalance ", catalogue.NEEDS) == ("label-noise", "imbalance")
    with pytest.raises(AssayError, match="elr helps against 'label-nose', which is not known: did you mean label-noise"):
        catalogue._names("elr", "helps against", "label-nose", catalogue.NEEDS)
    assert all("helps" not in paper.bibtex for paper in catalogue.papers().values())


def test_the_expected_time_grows_with_the_work(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = suggesting.baselines.baseline(table).replace(epochs=4)
    seen: list[int] = []

    def fit(recipe: Recipe, seed: int) -> Any:
        """A second for each step, and two more for the first training: as if the clock on the wall went with the work."""
        steps = recipe.epochs * math.ceil(len(recipe.data.train) / recipe.batch_size)
        seen.append(steps)
        return SimpleNamespace(seconds=steps + 2.0 * (len(seen) == 1))

    monkeypatch.setattr(suggesting, "fit", fit)
    short, long = suggesting._seconds(recipe), suggesting._seconds(recipe.replace(epochs=400))
    assert max(seen) < 20  # a few steps tell
    assert short == 4 * math.ceil(len(table.train) / recipe.batch_size)
    assert long == 100 * short


def test_command_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(_noisy()[0], tmp_path)
    machine = CliRunner().invoke(cli.app, ["suggest", "--on", str(path), "--target", "label", "--json"])
    assert machine.exit_code == 0, machine.output
    found = json.loads(machine.stdout)
    assert set(found) == {"data", "findings", "suggestions", "unfit", "notes"}
    assert any(finding["name"] == "label-noise" and finding["ids"] for finding in found["findings"])

    from rich.console import Console

    from assay import show
    from assay.own.looking import print_advice

    out = Console(record=True, width=120, file=io.StringIO())
    monkeypatch.setattr(show, "console", lambda: out)
    print_advice(suggest(path, "label"))
    text = out.export_text()
    for words in ("label-noise", "worst first: row", "worth trying", "assay try elr --on"):
        assert words in text
    lost = CliRunner().invoke(cli.app, ["suggest", "--on", "nowhere.csv"])
    assert isinstance(lost.exception, AssayError)
