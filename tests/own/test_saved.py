"""A saved run gives the same outputs after it was read again, for every kind of data, and nothing in it can run code."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from torch import nn

from assay.errors import AssayError
from assay.lab import memory
from assay.nn import mlp
from assay.own import factories, load_run, predict, try_, trying
from assay.own.exporting import export_model
from assay.own.factories import build, describe
from assay.own.saved import runs
from assay.papers.architectures.wide_resnet import WideResNet
from assay.recipe import Recipe, treatment

COUNT = 60
LABELS = np.arange(COUNT) % 2
NOISE = np.random.default_rng(0)


def table(folder: Path) -> Path:
    frame = pd.DataFrame({"size": LABELS + NOISE.normal(0, 0.1, COUNT), "colour": np.where(LABELS, "red", "green")})
    frame["code"] = [f"0{n % 3}" for n in range(COUNT)]  # "01" is no 1
    frame.loc[3, "size"] = np.nan
    frame.assign(label=np.where(LABELS, "yes", "no")).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def numbers(folder: Path) -> Path:
    x = NOISE.normal(size=COUNT)
    pd.DataFrame({"x": x, "z": NOISE.normal(size=COUNT), "y": 1000 + 50 * x}).to_csv(folder / "numbers.csv", index=False)
    return folder / "numbers.csv"


def texts(folder: Path) -> Path:
    said = [f"film number {n} was {'good' if n % 2 else 'bad'}" for n in range(COUNT)]
    pd.DataFrame({"review": said, "label": LABELS}).to_csv(folder / "texts.csv", index=False)
    return folder / "texts.csv"


def series(folder: Path) -> Path:
    rows = "".join(f"{n},2,{5 * (n % 2)},4:5,?,7,8:{'up' if n % 2 else 'down'}\n" for n in range(COUNT))
    (folder / "moves.ts").write_text(f"@classLabel true up down\n@data\n{rows}")
    return folder / "moves.ts"


def wide_series(folder: Path) -> Path:
    values = NOISE.normal(size=(COUNT, 9)) + LABELS[:, None]
    frame = pd.DataFrame(values, columns=[f"t{step}" for step in range(9)])
    frame.assign(label=LABELS).to_csv(folder / "wide.csv", index=False)
    return folder / "wide.csv"


def images(folder: Path) -> Path:
    for number in range(COUNT):
        place = folder / "photos" / ("dark" if number % 2 else "light")
        place.mkdir(parents=True, exist_ok=True)
        pixels = NOISE.integers(0, 100, (10, 12, 3)) + (0 if number % 2 else 150)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder / "photos"


def arrays(folder: Path) -> Path:
    pixels = NOISE.integers(0, 100, (COUNT, 8, 8, 1)) + 150 * LABELS[:, None, None, None]
    np.savez(folder / "arrays.npz", x=pixels.astype(np.uint8), y=LABELS)
    return folder / "arrays.npz"


def sounds(folder: Path) -> Path:
    time = np.arange(2000) / 8000
    for number in range(COUNT):
        place = folder / "sounds" / ("high" if number % 2 else "low")
        place.mkdir(parents=True, exist_ok=True)
        wave = np.sin(2 * np.pi * (1500 if number % 2 else 300) * NOISE.uniform(1, 1.5) * time)
        wavfile.write(place / f"{number}.wav", 8000, (20_000 * wave).astype(np.int16))
    return folder / "sounds"


def long_series(folder: Path) -> Path:
    rows = [(f"s{n}", step, step * (1 if n % 2 else -1) + n * 0.01, n % 2) for n in range(COUNT) for step in range(8)]
    frame = pd.DataFrame(rows, columns=["sensor", "when", "level", "label"])
    frame.sample(frac=1, random_state=0).to_csv(folder / "long.csv", index=False)
    return folder / "long.csv"


KINDS = [table, numbers, texts, series, wide_series, images, arrays, sounds, long_series]


@treatment
def shorter(recipe: Recipe) -> Recipe:
    return recipe.replace(batch_size=16)


@treatment
def rescaled(recipe: Recipe) -> Recipe:
    return recipe.replace(data=recipe.data.rescale(-1, 1))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    methods = {f.__name__: f for f in (shorter, rescaled)}
    monkeypatch.setattr(trying, "find", methods.__getitem__)
    plain = trying.baseline
    monkeypatch.setattr(trying, "baseline", lambda data: plain(data).replace(epochs=2))
    monkeypatch.setitem(globals(), "NOISE", np.random.default_rng(0))  # the same data whichever tests ran before


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_of_data_comes_back(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path)
    named = {"series": "sensor", "time": "when"} if make is long_series else {}
    trial = try_(["shorter"], on=path, seeds=1, **named)
    arm, _ = trial.save(tmp_path / "run")
    run = load_run(tmp_path / "run")
    trained = memory.train(trial.recipes[arm], 0, torch.device("cpu"))
    assert run.classes == trained.recipe.data.classes
    # Read again as if it were new: every row, in the order of the file, so the test rows are among them, bit for bit.
    inputs = run.inputs(path)
    assert len(inputs) == COUNT
    ours = {tuple(row.flatten().tolist()): out for row, out in zip(inputs, run.outputs(inputs), strict=True)}
    test = trained.recipe.data.test.inputs
    assert isinstance(test, torch.Tensor)
    for row, out in zip(test, trained.logits("test"), strict=True):
        torch.testing.assert_close(ours[tuple(row.flatten().tolist())], out, rtol=1e-4, atol=1e-4)
    found = predict(run, path, chunk=7)
    assert found.count == COUNT
    assert found.scored == COUNT
    for examples in (path, None):  # its own, and such as are drawn
        assert export_model(run, tmp_path / "model.pt2", on=examples) < 1e-3


def test_an_exported_program_runs_without_assay_and_knows_its_preprocessing(tmp_path: Path) -> None:
    path = table(tmp_path)
    try_(["shorter"], on=path, seeds=1).save(tmp_path / "run")
    run = load_run(tmp_path / "run")
    export_model(run, tmp_path / "model.pt2")
    extra = {"run.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    inputs = run.inputs(path)
    for size in (1, 5, COUNT):
        torch.testing.assert_close(program.module()(inputs[:size]), run.outputs(inputs[:size]))
    assert json.loads(extra["run.json"])["preparation"] == json.loads(json.dumps(run.preparation.as_dict()))
    with pytest.raises(AssayError, match=r"another suffix than \.pt2"):
        export_model(run, tmp_path / "model.onnx")


def test_what_a_method_did_to_the_inputs_is_done_to_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images(tmp_path)
    trial = try_(["rescaled"], on=path, seeds=1)
    monkeypatch.setattr(trial, "ranked", lambda: [("rescaled", 0)])
    assert trial.save(tmp_path / "run") == ("rescaled", 0)
    inputs = load_run(tmp_path / "run").inputs(path)
    assert inputs.min() < -0.9


def test_the_best_is_chosen_on_validation(tmp_path: Path) -> None:
    trial = try_(["shorter"], on=table(tmp_path), seeds=2)
    trial.valid = {"baseline": {0: 0.5, 1: 0.9}, "shorter": {0: 0.8, 1: 0.8}, "gradient boosting": {0: 1.0, 1: 1.0}}
    trial.arms["baseline"] = {seed: type(score)(1.0, score.cost) for seed, score in trial.arms["baseline"].items()}
    assert trial.best() == ("shorter", 0)
    trial.valid["baseline"] = {0: 0.7, 1: 0.9}
    assert trial.best() == ("baseline", 1)
    trial.valid = {}
    assert trial.best() == ("baseline", 0)


def test_runs_are_found_by_name_and_wrong_ones_are_refused(tmp_path: Path, home: Path) -> None:
    trial = try_(["shorter"], on=table(tmp_path), seeds=1)
    trial.save(home / "runs" / "table-1")
    assert load_run("table-1").task == "classification"
    assert list(runs()) == ["table-1"]
    with pytest.raises(AssayError, match=r"no run 'tabel-1'.*table-1"):
        load_run("tabel-1")
    with pytest.raises(AssayError, match="no device 'abacus'"):
        load_run("table-1", device="abacus")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(AssayError, match="holds other things than a run"):
        trial.save(tmp_path / "full")
    facts = home / "runs" / "table-1" / "run.json"
    plain = json.loads(facts.read_text())
    facts.write_text(json.dumps(plain | {"format": 99}))
    with pytest.raises(AssayError, match="a run of format 99"):
        load_run("table-1")
    facts.write_text("{")
    with pytest.raises(AssayError, match="cannot be read"):
        load_run("table-1")


# ---------------------------------------------------------------------------------------------------- factories


@pytest.mark.parametrize(
    "factory",
    [
        partial(mlp, 3, 2, (4, 5)),
        partial(WideResNet, 10, 2, 3, 1),
        partial(nn.Linear, 3, 2, bias=False),
        partial(nn.Sequential, nn.ReLU),
        nn.Identity,
    ],
)
def test_factories_survive_json(factory: Any) -> None:
    again = build(json.loads(json.dumps(describe(factory), allow_nan=False)))
    assert describe(again) == describe(factory)
    if isinstance(factory, partial):
        assert (again.func, again.args, again.keywords) == (factory.func, factory.args, factory.keywords)


@pytest.mark.parametrize("value", [(1, 2.5, None), [float("inf")], {"a": (True, "x")}, "text"])
def test_arguments_survive_json(value: Any) -> None:
    assert build(json.loads(json.dumps(describe(value), allow_nan=False))) == value


@pytest.mark.parametrize("value", [lambda: None, torch.zeros(2), nn.Linear(1, 1)])
def test_what_has_no_name_is_not_written(value: Any) -> None:
    with pytest.raises(AssayError, match="cannot be"):
        describe(value)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "assay.files:write_json",
        "assay.nn.small:nn",
        "assay.nn.text:re",
        "torch:load",
        "torch.nn.modules.module:OrderedDict",
        "assay.nnx:mlp",
    ],
)
def test_a_file_cannot_call_what_it_likes(name: str) -> None:
    with pytest.raises(AssayError, match="network is made by"):
        build({"call": name, "args": ["true"], "keywords": {}})


def test_own_modules_are_called_when_they_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text("from torch import nn\ndef net(width):\n    return nn.Linear(width, 2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = {"call": "mynets:net", "args": [3], "keywords": {}}
    with pytest.raises(AssayError, match="none of assay's own"):
        build(plain)
    assert build(plain, trusted=["mynets"])().in_features == 3
    assert factories.OPEN == ("assay.nn", "assay.own.networks", "assay.papers")
