"""Predictions: streamed, scored where the truth is there, and one sentence for what is not of the form that is known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.errors import AssayError
from assay.nn import mlp
from assay.nn.text import SPECIAL, BiLSTM
from assay.own import predict
from assay.own.exporting import export_model
from assay.own.preparing import Columns, Line, Preparation, Tokens
from assay.own.saved import SavedRun, save_run
from assay.papers.signals.tsc_baselines import FCN
from assay.papers.text.text_cnn import TextCNN

NOISE = np.random.default_rng(0)


def _run(task: str, classes: tuple[str, ...], model: Any, preparation: Preparation) -> SavedRun:
    torch.manual_seed(0)
    return SavedRun(Path("nowhere"), model.eval(), task, classes, preparation, {})


@pytest.fixture
def rows() -> SavedRun:
    """A network on one column of numbers and one of words, which says "big" where the number is above 5."""
    columns = Columns(("size",), (5.0,), (5.0,), (1.0,), ("colour",), (("blue", "red"),), ((),))
    model = mlp(3, 2, ())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
        model[1].bias.zero_()
    form = {"kind": "table", "columns": {"size": "number", "colour": "word"}, "target": "label"}
    return _run("classification", ("small", "big"), model, Preparation(form, (columns,)))


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "new.csv", count: int = 25, **columns: Any) -> Path:
        frame = pd.DataFrame({"other": range(count), "size": np.linspace(0, 10, count), "colour": "red"})
        frame = frame.assign(**columns)
        frame = frame[[name for name in frame if name not in ("drop_size", "drop_colour")]]
        frame.drop(columns=[name[5:] for name in columns if name.startswith("drop_")]).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


def test_pieces_make_no_difference_and_the_target_is_not_needed(rows: SavedRun, table: Callable[..., Path]) -> None:
    path = table()
    whole = predict(rows, path, keep=None)
    assert (whole.count, whole.score) == (25, None)
    assert predict(rows, path, keep=None, chunk=4).first == whole.first
    assert [row["prediction"] for row in whole.first] == ["small"] * 13 + ["big"] * 12
    assert [row["id"] for row in whole.first][:2] == ["1", "2"]
    assert whole.first[0]["p(small)"] == pytest.approx(1 / (1 + np.exp(-10)))


def test_score_where_the_truth_is_there(rows: SavedRun, table: Callable[..., Path]) -> None:
    label = ["small"] * 12 + ["big"] * 11 + ["huge", ""]
    found = predict(rows, table(label=label), chunk=10)
    assert (found.score, found.scored) == (22 / 23, 23)
    assert any("2 examples have no target that is known" in note for note in found.notes)


def test_gaps_and_words_that_were_never_seen(rows: SavedRun, table: Callable[..., Path]) -> None:
    found = predict(rows, table(size=["", "unknown", *["7"] * 23], colour=["", "mauve", *["red"] * 23]), keep=None)
    assert found.first[0]["p(big)"] == found.first[1]["p(big)"] == 0.5  # filled with the median, no category
    assert found.notes == []
    strange = predict(rows, table(colour=[f"shade {n}" for n in range(25)]), chunk=10)
    assert strange.notes == ["no value of 'colour' was ever seen in training"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files(rows: SavedRun, table: Callable[..., Path], tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"said.{suffix}"
    found = predict(rows, table(), out, chunk=7)
    assert found.out == str(out)
    read = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert list(read.columns) == ["id", "prediction", "p(small)", "p(big)"]
    assert len(read) == 25
    np.testing.assert_allclose(read["p(small)"] + read["p(big)"], 1)
    with pytest.raises(AssayError, match="no kind that is written"):
        predict(rows, table(), tmp_path / "said.xlsx")


def test_a_file_that_fails_half_way_leaves_nothing(rows: SavedRun, table: Callable[..., Path], tmp_path: Path) -> None:
    path = table(size=["1"] * 20 + ["word"] * 5)
    with pytest.raises(AssayError, match=r"Column 'size' of .* holds words \('word', row 21\)"):
        predict(rows, path, tmp_path / "said.csv", chunk=20)
    assert not (tmp_path / "said.csv").exists()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"drop_size": 0, "Size": 1.0}, "lacks the columns 'size' .*is 'size' called 'Size' there"),
        ({"drop_size": 0, "drop_colour": 0}, "lacks the columns 'size', 'colour' that the run was trained on"),
        ({"size": "large"}, "Column 'size' of .* holds words .'large', row 1.*trained on numbers"),
    ],
)
def test_other_columns_get_one_sentence(rows: SavedRun, table: Callable[..., Path], columns: dict[str, Any], words: str) -> None:
    with pytest.raises(AssayError, match=words) as caught:
        predict(rows, table(**columns))
    assert "\n" not in str(caught.value)


def test_other_kinds_get_one_sentence(rows: SavedRun, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    (tmp_path / "empty.csv").write_text("size,colour\n")
    for name, words in (("photo.png", "is no table"), ("empty.csv", "holds no example"), ("none.csv", "There is no")):
        with pytest.raises(AssayError, match=words):
            predict(rows, tmp_path / name)
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 3)))
    with pytest.raises(AssayError, match=r"x is float64 \(4, 3\), and the run was trained on table \(N, 2\)"):
        predict(rows, tmp_path / "x.npz")


def test_images_of_other_sizes_in_folders_or_loose(tmp_path: Path) -> None:
    form = {"kind": "images", "channels": 1, "height": 6, "width": 8}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-torch.ones(48), torch.ones(48)]))  # type: ignore[operator]
        model[1].bias.copy_(torch.tensor([24.0, -24.0]))  # type: ignore[operator]
    run = _run("classification", ("dark", "light"), model, Preparation(form))
    for name, level in (("dark/a.png", 20), ("light/b.png", 230), ("light/c.png", 60), ("loose.png", 250)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (level,) * 3).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = predict(run, tmp_path, keep=None, chunk=2)
    said = {row["id"]: row["prediction"] for row in found.first}
    assert said == {"dark/a.png": "dark", "light/b.png": "light", "light/c.png": "dark", "loose.png": "light"}
    assert (found.score, found.scored) == (2 / 3, 3)
    assert any("1 unreadable images left out (broken.jpg)" in note for note in found.notes)
    one = predict(run, tmp_path / "light" / "b.png")
    assert (one.count, one.first[0]["prediction"], one.score) == (1, "light", None)


def test_texts_from_a_table_or_from_lines(tmp_path: Path) -> None:
    vocabulary = (*SPECIAL, "good", "bad")
    run = _run(
        "classification", ("no", "yes"), TextCNN(4, 2), Preparation({"kind": "text", "column": None}, (Tokens(vocabulary, 8),))
    )
    (tmp_path / "new.txt").write_text("a good one\nbad\n")
    pd.DataFrame({"id": [7, 8], "text": ["a good one", "bad"]}).to_csv(tmp_path / "new.csv", index=False)
    lines, column = (predict(run, tmp_path / name) for name in ("new.txt", "new.csv"))
    assert lines.first == column.first
    assert lines.count == 2


def test_series_keep_to_the_length_that_is_known(tmp_path: Path) -> None:
    form = {"kind": "series", "channels": 1, "steps": 4}
    run = _run("classification", ("a", "b"), FCN(1, 2), Preparation(form, (Line((0.0,), (1.0,)),)))
    (tmp_path / "new.ts").write_text("@classLabel false\n@data\n1,2,3\n1,?,3,3,9\n")
    found = predict(run, tmp_path / "new.ts")
    assert found.count == 2
    assert found.first[0]["p(a)"] == pytest.approx(found.first[1]["p(a)"])
    assert any("cut to their first 4 steps" in note for note in found.notes)
    (tmp_path / "two.ts").write_text("@data\n1,2,3:1,2,3:a\n")
    with pytest.raises(AssayError, match="have 2 channels, and the run was trained on 1"):
        predict(run, tmp_path / "two.ts")


def test_numbers(tmp_path: Path) -> None:
    columns = Columns(("x",), (0.0,), (0.0,), (1.0,))
    model = mlp(1, 1, ())
    with torch.no_grad():
        model[1].weight.fill_(2.0)
        model[1].bias.fill_(1.0)
    run = _run("regression", (), model, Preparation({"kind": "table", "columns": {"x": "number"}, "target": "y"}, (columns,)))
    x = np.arange(10.0)
    pd.DataFrame({"x": x, "y": 2 * x + 1}).to_csv(tmp_path / "new.csv", index=False)
    found = predict(run, tmp_path / "new.csv", chunk=3)
    assert found.metric == "R²"
    assert found.score == pytest.approx(1)
    assert found.first[1] == {"id": "2", "prediction": 3.0}


def test_commands(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, table: Callable[..., Path]) -> None:
    from assay.data import Dataset, Split
    from assay.recipe import Recipe
    from assay.train.loop import fit

    inputs = torch.randn(40, 3)
    whole = Split(inputs, (inputs[:, 0] > 0).long())
    data = Dataset("x", "classification", whole, whole, whole, classes=("small", "big"))
    columns = Columns(("size",), (5.0,), (5.0,), (1.0,), ("colour",), (("blue", "red"),), ((),))
    form = {"kind": "table", "columns": {"size": "number", "colour": "word"}, "target": "label"}
    trained = fit(Recipe(data, partial(mlp, 3, 2, ()), epochs=1, watch=()), 0)
    save_run(home / "runs" / "sizes-1", trained, 0, Preparation(form, (columns,)), {})
    runner, path = CliRunner(), table(label=["small"] * 25)
    person = runner.invoke(cli.app, ["predict", "sizes-1", "--on", str(path), "--out", str(tmp_path / "said.csv")])
    assert person.exit_code == 0, person.output
    assert "25 predicted, written to" in person.output.replace("\n", "")
    with (tmp_path / "said.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 25
    machine = runner.invoke(cli.app, ["predict", "sizes-1", "--on", str(path), "--json"])
    assert machine.exit_code == 0, machine.output
    found = json.loads(machine.stdout)
    assert len(found["first"]) == found["count"] == found["scored"] == 25
    exported = runner.invoke(cli.app, ["export-model", "sizes-1", str(tmp_path / "model.pt2")])
    assert exported.exit_code == 0, exported.output
    assert (tmp_path / "model.pt2").stat().st_size > 0


@pytest.mark.parametrize("network", [TextCNN(9, 2, dim=5, maps=4), BiLSTM(9, 2, dim=5, hidden=3)])
def test_programs_for_texts_of_all_lengths(network: torch.nn.Module, tmp_path: Path) -> None:
    run = _run("classification", ("no", "yes"), network, Preparation({"kind": "text"}, (Tokens(tuple("01abcdefg"), 6),)))
    for parameter in run.model.parameters():  # a network that has not learnt yet says the same to all
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        run.model.embedding.weight[0] = 0  # type: ignore[union-attr, index]
    run.facts = {"input": {"shape": [6], "integers": 9}}
    assert export_model(run, tmp_path / "model.pt2") < 1e-4
    ids = run.preparation(("", "a", "a b c d e f", "g g g g g g g g", "c d"))
    said = torch.export.load(tmp_path / "model.pt2").module()(ids)
    torch.testing.assert_close(said, run.outputs(ids))
    assert len(said.unique()) > 5


def test_a_program_that_says_otherwise_is_not_written(tmp_path: Path, rows: SavedRun) -> None:
    class Moody(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs * (1.0 if torch.compiler.is_exporting() else 2.0)

    rows.model = Moody()
    rows.facts = {"input": {"shape": [3], "integers": None}}
    with pytest.raises(AssayError, match="differs from the network by"):
        export_model(rows, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
