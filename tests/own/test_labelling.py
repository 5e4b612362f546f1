"""Labelling a pool with people: round after round through the files, as the procedure itself does it with somebody to call."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.data import load
from assay.errors import AssayError
from assay.own import labelling
from assay.own.examples import unlabelled
from assay.own.labelling import Labelled, label_pool
from assay.own.named import Named
from assay.papers.dataset.lsun import AmplifiedLabeling, quality

pytest.importorskip("jinja2")


@pytest.fixture(autouse=True)
def _home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of another test, and a folder of this test's own to write into."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Digits that lie about, in folders that say nothing; the name of each file ends with what it is."""
    digits = load("digits").train
    assert isinstance(digits.inputs, torch.Tensor)
    pixels = (digits.inputs[:1000, 0] * 255).round().to(torch.uint8).numpy()
    for number, (image, label) in enumerate(zip(pixels, digits.labels.tolist(), strict=False)):
        place = tmp_path / "pool" / str(number % 3) / f"{number:04d}-{label}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return tmp_path / "pool"


def _is_three(name: str) -> bool:
    return name.endswith("-3.png")


def _answer(folder: Path, to: Path, right: Callable[[str], bool], category: str) -> Path:
    with (folder / "queue.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with to.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"answer": category if right(row["id"]) else f"not {category}"} for row in rows)
    return to


def _through(path: Path, category: str, right: Callable[[str], bool], **options: object) -> tuple[Labelled, int]:
    """All rounds, with a person who knows; and how many there were."""
    found = label_pool(path, category, **options)  # type: ignore[arg-type]
    rounds = 0
    while found.ask:
        rounds += 1
        back = _answer(found.folder, Path(f"{rounds}.csv"), right, category)
        found = label_pool(path, category, [back], **options)  # type: ignore[arg-type]
    return found, rounds


def test_through_files_as_by_calls(pool: Path) -> None:
    found, rounds = _through(pool, "three", _is_three, batch=60, test_batch=100)
    assert rounds >= 3
    labels = pd.read_csv("pool-label-three/labels.csv", keep_default_na=False)
    ids = labels.id.tolist()
    truth = np.array([_is_three(name) for name in ids], dtype=int)
    said = labels.label.map({"three": 1, "not three": -1, "": 0}).to_numpy()
    read = unlabelled(pool)
    assert list(read.ids) == ids
    model = AmplifiedLabeling(
        labelling._estimator("images"), lambda places: truth[places], batch=60, test_batch=100, random_state=0
    ).fit(labelling._vectors(read))
    assert (model.labels_ == said).all()
    assert len(model.asked_) == found.answered < 800
    precision, recall = quality(said, truth)
    assert precision > 0.95
    assert recall > 0.9
    assert set(labels.by) <= {"people", "model", ""}
    assert (labels.by == "people").sum() == found.answered


def test_half_of_the_answers_ask_for_the_other_half(pool: Path) -> None:
    first = label_pool(pool, "three", batch=60, test_batch=100)
    back = _answer(first.folder, Path("a.csv"), _is_three, "three")
    lines = back.read_text(encoding="utf-8").splitlines(keepends=True)
    back.write_text("".join(lines[:81]), encoding="utf-8")
    second = label_pool(pool, "three", [back], batch=60, test_batch=100)
    assert (first.ask, second.ask, second.answered, second.rounds) == (160, 80, 80, [])
    assert (pd.read_csv(second.folder / "labels.csv").by == "people").sum() == 80


def test_people_who_differ_and_who_cannot_tell_leave_it_open(pool: Path) -> None:
    first = label_pool(pool, "three", batch=60, test_batch=100)
    with (first.folder / "queue.csv").open(encoding="utf-8-sig", newline="") as file:
        one, two, three, *_ = [row["id"] for row in csv.DictReader(file)]
    Path("anna.csv").write_text(f"id,answer\n{one},three\n{two},three\n{three},cannot tell\n", encoding="utf-8")
    Path("ben.csv").write_text(f"id,answer\n{one},not three\n{two},three\n", encoding="utf-8")
    second = label_pool(pool, "three", [Path("anna.csv"), Path("ben.csv")], batch=60, test_batch=100)
    assert (second.ask, second.positives, second.negatives) == (157, 1, 0)
    labels = pd.read_csv(second.folder / "labels.csv", keep_default_na=False).set_index("id").label
    assert labels[[one, two, three]].tolist() == ["", "three", ""]


def test_texts_and_tables_without_a_target(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = np.array(["film", "plot", "actor", "scene", "sound", "music"])
    texts = [" ".join([*random.choice(words, 6), "good" if n % 3 else "bad"]) for n in range(700)]
    frame = pd.DataFrame({"text": texts})
    frame.to_csv(tmp_path / "texts.csv", index=False)
    found, _ = _through(tmp_path / "texts.csv", "good one", lambda row: (int(row) - 1) % 3 > 0, batch=40, test_batch=100)
    labels = pd.read_csv("texts-label-good-one/labels.csv").label
    assert (labels == np.where(np.arange(700) % 3 > 0, "good one", "not good one")).mean() > 0.97
    assert found.answered <= 420
    rows = pd.DataFrame(random.normal(size=(200, 3)), columns=["a", "b", "c"]).assign(label="?")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = unlabelled(tmp_path / "rows.csv", Named(target="label"))
    assert (read.kind, len(read)) == ("table", 200)
    assert [name for name, _ in read.cells(0)] == ["a", "b", "c"]
    assert len(unlabelled("digits")) == 1437


def test_the_command_line_and_what_is_refused(pool: Path) -> None:
    run = CliRunner()
    small = ["label", "--on", str(pool), "--category", "three", "--batch", "50", "--test-batch", "50"]
    shown = run.invoke(cli.app, small, catch_exceptions=False).stdout
    assert "100 questions come next" in shown
    assert "pool-label-three/review.html" in shown
    back = _answer(Path("pool-label-three"), Path("a.csv"), _is_three, "three")
    said = json.loads(run.invoke(cli.app, [*small, "--answers", str(back), "--json"], catch_exceptions=False).stdout)
    assert (said["answered"], len(said["rounds"])) == (100, 1)
    assert "Promised" not in shown
    with pytest.raises(AssayError, match="lies in the data"):
        label_pool(pool, "three", folder=pool / "out")
    with pytest.raises(AssayError, match="Name what to look for"):
        label_pool(pool, " ")
    with pytest.raises(AssayError, match="shares between 0 and 1"):
        label_pool(pool, "three", precision=1.0)
