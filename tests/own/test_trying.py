"""Trying methods on people's own data: fair arms, composition, what does not fit, budgets, verdicts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import memory
from assay.own import methods, read, try_, trying
from assay.own.commands import duration, try_methods
from assay.own.printing import print_trial
from assay.recipe import Recipe, treatment
from assay.train.schedules import linear


@pytest.fixture
def data(tmp_path: Path, home: Path) -> Dataset:
    """Two classes that one number tells apart, with a third of the labels wrong."""
    return read(_csv(tmp_path), "label")


def _csv(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5))
    wrong = rng.random(200) < 0.3
    labels = np.where((inputs[:, 0] > 0) ^ wrong, "up", "down")
    path = folder / "own.csv"
    pd.DataFrame(inputs, columns=list("abcde")).assign(label=labels).to_csv(path, index=False)
    return path


@treatment
def smooth(recipe: Recipe) -> Recipe:
    return recipe.replace(loss=partial(F.cross_entropy, label_smoothing=0.2))


@treatment
def wrapped(recipe: Recipe) -> Recipe:
    return recipe.replace(loss=partial(_half, recipe.loss))


def _half(inner: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    return inner(logits, labels) / 2


@treatment
def straight(recipe: Recipe) -> Recipe:
    return recipe.replace(schedule=linear)


@treatment
def nothing(recipe: Recipe) -> Recipe:
    return recipe.replace()


@treatment
def broken(recipe: Recipe) -> Recipe:
    return recipe.replace(loss=_never)


def _never(logits: Tensor, labels: Tensor) -> Tensor:
    raise ValueError("this loss is for pictures")


@treatment
def cheats(recipe: Recipe) -> Recipe:
    test = recipe.data.test
    return recipe.replace(data=recipe.data._but("cheat", test=test.take(torch.arange(len(test) // 2))))


@treatment
def explodes(recipe: Recipe) -> Recipe:
    return recipe.replace(optimizer=partial(torch.optim.SGD, lr=1e38))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods above instead of papers, and a baseline of two epochs."""
    methods = {f.__name__: f for f in (smooth, wrapped, straight, nothing, broken, cheats, explodes)}
    monkeypatch.setattr(trying, "find", methods.__getitem__)
    plain = trying.baseline
    monkeypatch.setattr(trying, "baseline", lambda data: plain(data).replace(epochs=2))


def test_arms_differ_in_the_treatment_alone(known: None, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Recipe, int]] = []

    def spy(recipe: Recipe, seed: int, *rest: Any) -> Any:
        seen.append((recipe, seed))
        return real(recipe, seed, *rest)

    real = memory.train
    monkeypatch.setattr(memory, "train", spy)
    trial = try_(["smooth"], on=data, seeds=2)
    assert [seed for _, seed in seen] == [0, 0, 1, 1]
    plain, treated = seen[0][0], seen[1][0]
    assert treated == plain.replace(loss=treated.loss)
    assert treated.data is plain.data
    assert set(trial.arms) == {"baseline", "smooth", "gradient boosting"}
    assert all(set(scores) == {0, 1} for scores in trial.arms.values())


def test_scores_are_those_of_the_trained_networks(known: None, data: Dataset) -> None:
    trial = try_(["smooth"], on=data, seeds=1)
    recipe = trying.baseline(data)
    assert trial.arms["baseline"][0] == memory.train(recipe, 0, torch.device("cpu")).accuracy()
    assert trial.arms["smooth"][0] == memory.train(smooth(recipe), 0, torch.device("cpu")).accuracy()
    assert trial.price("baseline") is not None


def test_rare_classes_count_as_much_where_that_is_asked_for(known: None, tmp_path: Path, home: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(300) < 0.1, "rare", "usual")
    path = tmp_path / "rare.csv"
    pd.DataFrame(rng.normal(size=(300, 3)), columns=list("abc")).assign(label=labels).to_csv(path, index=False)
    data = read(path, "label")
    plain = try_(["smooth"], on=data, seeds=1)
    assert any("times as many training examples" in note for note in plain.notes)
    fair = try_(["smooth"], on=data, seeds=1, by="balanced")
    assert fair.metric == "test balanced accuracy"
    recipe = trying.baseline(data)
    said = memory.train(recipe, 0, torch.device("cpu")).logits("test").argmax(dim=1)
    expected = balanced_accuracy_score(data.test.labels, said)
    assert fair.arms["baseline"][0] == pytest.approx(expected)
    assert plain.beside["baseline"][0] == pytest.approx(expected)
    assert fair.beside["baseline"][0] == plain.arms["baseline"][0]
    assert fair.as_dict()["arms"]["baseline"]["accuracy"] == {"0": plain.arms["baseline"][0]}


def test_methods_compose_unless_one_undoes_the_other(known: None, data: Dataset) -> None:
    trial = try_(["smooth+straight", "smooth+wrapped", "wrapped+smooth"], on=data, seeds=1)
    assert set(trial.verdicts) == {"smooth+straight", "smooth+wrapped"}
    assert "smooth would undo what wrapped did to the loss" in trial.refused["wrapped+smooth"]
    plain = trying.baseline(data)
    both = methods.treated(plain, [smooth, wrapped])
    assert both.loss.args[0].keywords == {"label_smoothing": 0.2}  # type: ignore[union-attr]


def test_what_does_not_fit_says_why_and_the_others_go_on(known: None, data: Dataset) -> None:
    trial = try_(["smooth", "nothing", "broken", "cheats", "explodes"], on=data, seeds=2)
    assert set(trial.verdicts) == {"smooth"}
    assert trial.refused["broken"] == "this loss is for pictures"
    assert "changes nothing" in trial.refused["nothing"]
    assert "changes the test" in trial.refused["cheats"]
    assert "not finite" in trial.refused["explodes"]
    assert "explodes" not in trial.arms


def test_equal_differences_are_said(known: None, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "score", lambda predicted, labels, task, strict=True, by="accuracy": 0.75)
    trial = try_(["smooth"], on=data, seeds=3)
    assert any("with caution" in note for note in trial.notes)


def test_nothing_fits(known: None, data: Dataset) -> None:
    with pytest.raises(AssayError, match=r"None of the methods fits own\.csv .*for pictures"):
        try_(["broken"], on=data)


def test_time_is_over_at_once(known: None, data: Dataset) -> None:
    trial = try_(["smooth"], on=data, seeds=3, budget=-1.0)
    assert not trial.complete
    assert not any(trial.arms.values())
    assert trial.verdicts["smooth"].verdict == "inconclusive"
    json.dumps(trial.as_dict(), allow_nan=False)


def test_time_is_over_on_the_way_and_more_time_goes_on(known: None, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(trying.clock, "monotonic", lambda: next(ticks))
    short = try_(["smooth"], on=data, seeds=50, budget=60)
    done = len(short.arms["smooth"])
    assert 2 <= done < 50
    assert not short.complete
    assert short.verdicts["smooth"].seeds == done
    longer = try_(["smooth"], on=data, seeds=done)
    assert longer.complete
    assert longer.arms["smooth"] == short.arms["smooth"]


def test_a_real_method_on_a_real_file(tmp_path: Path, home: Path) -> None:
    path = _csv(tmp_path)
    trial = try_(["elr", "lecun1989"], on=path, target="label", seeds=2)
    assert set(trial.arms) == {"baseline", "elr", "gradient boosting"}
    assert "shifts images" in trial.refused["lecun1989"]
    assert "own.csv: 200 rows" in trial.data
    assert any("40 test examples is 2.5 points" in note for note in trial.notes)


def test_regression(known: None, tmp_path: Path, home: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(120, 3)), columns=list("abc"))
    path = tmp_path / "numbers.csv"
    frame.assign(y=frame.a * 100).to_csv(path, index=False)
    trial = try_(["straight", "smooth"], on=path, seeds=1)
    assert trial.metric == "test R²"
    assert trial.arms["gradient boosting"][0] > 0.5
    assert "smooth" in trial.refused


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (["elf"], {}, "No paper is called 'elf': did you mean elr"),
        (["deepfool"], {}, "deepfool has no treatment to try .*probe.*elr"),
        (["elr:other"], {}, "elr has no treatment 'other': it has elr"),
        ([], {}, "No method was named"),
        (["elr"], {"seeds": 0}, "0 seeds"),
        (["elr"], {"by": "beauty"}, "Nothing is judged by 'beauty': choose accuracy or balanced"),
        (["elr"], {"device": "abacus"}, "no device 'abacus'"),
        (["elr"], {"on": "nowhere.csv"}, "There is no nowhere.csv"),
    ],
)
def test_wrong_options_get_one_sentence(data: Dataset, methods: list[str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(AssayError, match=words) as caught:
        try_(methods, **{"on": data, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("45", 45), ("0.5", 0.5)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 parsecs", "m", "-5m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(AssayError, match="is no time"):
        duration(text)


def test_command_prints_json_and_tables(known: None, tmp_path: Path, home: Path) -> None:
    app = typer.Typer()
    app.command()(try_methods)
    arguments = ["smooth", "--with", "broken", "--on", str(_csv(tmp_path)), "--seeds", "2", "--budget", "5m"]
    machine = CliRunner().invoke(app, [*arguments, "--json"])
    assert machine.exit_code == 0, machine.output
    found = json.loads(machine.stdout)
    assert found["verdicts"]["smooth"]["seeds"] == 2
    assert found["refused"] == {"broken": "this loss is for pictures"}
    person = CliRunner().invoke(app, arguments)
    assert person.exit_code == 0, person.output
    wrong = CliRunner().invoke(app, ["--with", "smooth", "--on", "nowhere.csv"])
    assert isinstance(wrong.exception, AssayError)


def test_table_shows_every_arm(known: None, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from assay.own import printing

    out = Console(record=True, width=120, file=io.StringIO())
    monkeypatch.setattr(printing, "console", lambda: out)
    print_trial(try_(["smooth", "broken"], on=data, seeds=2))
    text = out.export_text()
    for words in ("baseline", "smooth above baseline", "gradient boosting", "left out broken"):
        assert words in text


# ---------------------------------------------------------------------------------------------------- everything, saving


def _invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(try_methods)
    return CliRunner().invoke(app, list(arguments))


def test_everything_that_fits_is_tried_with_q(known: None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trying, "every", lambda: (["smooth", "straight", "broken"], {"far": "it needs rdkit, which is not installed"})
    )
    said: list[str] = []
    trial = try_([], on=_csv(tmp_path), seeds=2, everything=True, say=said.append)
    assert set(trial.verdicts) == {"smooth", "straight"}
    assert trial.refused == {"far": "it needs rdkit, which is not installed", "broken": "this loss is for pictures"}
    assert said == [trial.data]
    p = {name: verdict.p for name, verdict in trial.verdicts.items()}
    lower, higher = sorted(p, key=p.__getitem__)
    assert trial.q()[lower] == pytest.approx(min(2 * p[lower], p[higher]))
    monkeypatch.setattr(trial, "q", lambda: {"smooth": 0.04, "straight": 0.06})
    controlled = {name: found["controlled"] for name, found in trial.as_dict()["verdicts"].items()}
    assert controlled == {name: trial.verdicts[name].verdict == "holds" and name == "smooth" for name in controlled}


def test_every_treatment_of_the_catalogue_has_a_name_that_is_found() -> None:
    names, absent = methods.every()
    assert "elr" in names
    assert len(names) == len(set(names))
    for name in names:
        assert callable(methods.find(name))
    assert all("not installed" in why for why in absent.values())


def test_the_best_network_and_a_report_are_saved_and_where_is_said(known: None, tmp_path: Path, home: Path) -> None:
    path = str(_csv(tmp_path))
    first = _invoke("smooth", "--on", path, "--seeds", "2")
    assert first.exit_code == 0, first.output
    assert str(home / "runs" / "own-1") in first.output
    again = _invoke("smooth", "--on", path, "--seeds", "2", "--json", "--out", str(tmp_path / "mine"))
    found = json.loads(again.stdout)
    assert found["saved"] == [str(tmp_path / "mine")]
    assert found["command"] == f"assay try smooth --on {path} --seeds 2"
    facts = json.loads((tmp_path / "mine" / "run.json").read_text())
    assert facts["command"] == found["command"]
    assert (facts["arm"], facts["seed"]) == (found["best"]["arm"], found["best"]["seed"])
    none = _invoke("smooth", "--on", path, "--seeds", "2", "--no-save", "--json")
    assert json.loads(none.stdout)["saved"] == []
    assert len(list((home / "runs").iterdir())) == 1


def test_without_the_extra_web_all_but_the_report_works(
    known: None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.own import report

    monkeypatch.setattr(report, "_NEEDED", {"no_such_module": "nosuch"})
    done = _invoke("smooth", "--on", str(_csv(tmp_path)), "--seeds", "2")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert 'The HTML report is left out, as it needs nosuch: `pip install "assay[web]"` brings it.' in text
    assert (home / "runs" / "own-1" / "model.safetensors").is_file()
    assert not (home / "runs" / "own-1" / "report.html").exists()


def test_a_folder_that_is_not_free_is_refused_before_anything_is_trained(known: None, tmp_path: Path, home: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = _invoke("smooth", "--on", str(_csv(tmp_path)), "--out", str(tmp_path))
    assert isinstance(done.exception, AssayError)
    assert "holds other things than a run" in str(done.exception)
    assert not home.exists()


@treatment
def spoilt(recipe: Recipe) -> Recipe:
    return recipe.replace(data=recipe.data._but("magic()", train=recipe.data.train))


def test_what_cannot_be_kept_says_why_and_the_next_best_is(
    known: None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "find", {"spoilt": spoilt}.__getitem__)
    order = [("spoilt", 0), ("baseline", 0)]
    monkeypatch.setattr(trying.Trial, "ranked", lambda trial: order)
    done = _invoke("spoilt", "--on", str(_csv(tmp_path)), "--seeds", "1")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "the network of spoilt is not kept, since what magic does to the inputs cannot be done again" in said
    assert "saved baseline, seed 0:" in said
    facts = json.loads((home / "runs" / "own-1" / "run.json").read_text())
    assert (facts["arm"], facts["trial"]["best"]["arm"]) == ("baseline", "spoilt")
    order.pop()
    none = _invoke("spoilt", "--on", str(_csv(tmp_path)), "--seeds", "1")
    assert "No network is kept" in " ".join(none.output.split())
    assert not (home / "runs" / "own-2").exists()


def test_a_known_data_set_gets_a_validation_split(known: None, home: Path) -> None:
    trial = try_(["smooth"], on="iris", seeds=1)
    assert "train 108, valid 12, test 30" in trial.data
    assert set(trial.valid) == {"baseline", "smooth", "gradient boosting"}


def test_stopping_is_no_crash(known: None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "train", stop)
    assert _invoke("smooth", "--on", str(_csv(tmp_path))).exit_code == 130
