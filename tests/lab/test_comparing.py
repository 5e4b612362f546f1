"""Methods side by side: who wins, who cannot be told from the winner, and what is recorded is what was measured."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay import show
from assay.cli import app
from assay.comparisons import label_noise
from assay.data import load
from assay.errors import AssayError
from assay.lab import Lab, comparing, running
from assay.lab.comparing import Table

VALUES = {
    "easy": {
        "plain": [0.80, 0.82, 0.84],
        "better": [0.90, 0.925, 0.94],
        "as good": [0.89, 0.93, 0.93],
        "worse": [0.6, 0.63, 0.64],
    },
    "hard": {"plain": [0.50, 0.52, 0.51], "better": [0.48, 0.55, 0.5], "as good": [0.4, 0.41, 0.405], "worse": [0.3, 0.31, 0.29]},
}


def table() -> Table:
    values = {row: {arm: dict(enumerate(seeds)) for arm, seeds in arms.items()} for row, arms in VALUES.items()}
    seconds = {"easy": dict(zip(VALUES["easy"], (2.0, 4.0, 2.0, 2.0), strict=True))}
    seconds["hard"] = dict(zip(VALUES["hard"], (1.0, 3.0, 1.0, 1.0), strict=True))
    return Table("label_noise", "Which?", "All about it.", "plain", "accuracy", values, seconds, {"scale": "smoke"})


def test_ties_are_told_from_wins() -> None:
    found = table()
    assert found.best("easy") == ["better", "as good"]  # plain is 9 points lower in every seed
    assert found.best("hard") == ["plain", "better"]
    assert [found.wins(arm) for arm in found.arms] == ["1/2", "2/2", "1/2", "0/2"]


def test_gains_and_times_are_the_controls() -> None:
    found = table()
    assert found.gains("plain") == [0, 0]
    assert found.gains("better") == pytest.approx([2.765 / 3 - 0.82, 0])
    assert found.times("better") == 2.5


def test_a_method_may_not_be_there_for_a_task() -> None:
    found = table()
    del found.values["hard"]["better"], found.seconds["hard"]["better"]
    assert found.arms == ["plain", "better", "as good", "worse"]
    assert found.best("hard")[0] == "plain"
    assert found.wins("better") == "1/1"
    assert found.times("better") == 2
    assert len(found.gains("better")) == 1


def test_a_recorded_table_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    assert comparing.recorded("label_noise") is None
    place = comparing.record(table())
    again = comparing.recorded("label_noise")
    assert again == table()
    assert comparing.is_stale(again)  # it was not measured with any code
    place.write_text("{}")
    with pytest.raises(AssayError, match="record it again"):
        comparing.recorded("label_noise")


def test_what_is_known_of_methods_is_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    known = replace(table(), traits={arm: {"year": 1989.0 + n, "parameters": 9760.0} for n, arm in enumerate(VALUES["easy"])})
    comparing.record(known)
    assert comparing.recorded("label_noise") == known
    for values in known.values.values():
        values["another"] = values["plain"]  # more than twice as many methods as tasks: a line each
    known.traits["another"] = {"year": 2021.0, "parameters": 1.5e6}
    known.seconds = {row: seconds | {"another": 1.0} for row, seconds in known.seconds.items()}
    show.print_comparison(known)
    shown = next(line for line in capsys.readouterr().out.splitlines() if "another" in line)
    assert shown.split() == ["another", "2021", "1.5", "M", "0.820", "0.510", "0.75x"]


def test_all_of_a_topic_includes_the_comparison_of_its_methods(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def run(name: str, *others: object) -> Table:
        asked.append((name, *others[:2]))
        return table()

    monkeypatch.setattr(comparing, "run", run)
    monkeypatch.setattr(running, "run", lambda *what: ([], Counter()))
    monkeypatch.setattr(comparing, "is_stale", lambda found: False)
    found = CliRunner().invoke(app, ["run", "architectures", "--all", "--seeds", "2", "--scale", "smoke", "--json"])
    assert asked == [("architectures", 2, "smoke")]
    assert json.loads(found.stdout)[-1]["comparison"] == "label_noise"
    assert CliRunner().invoke(app, ["run", "architectures", "--scale", "smoke"]).exit_code == 0
    assert len(asked) == 1


def test_a_name_or_row_that_is_not_there_is_named() -> None:
    with pytest.raises(AssayError, match=r"there are .*label_noise"):
        comparing.recorded("label_noises")
    with pytest.raises(AssayError, match="MNIST sym 20%"):
        comparing.run("label_noise", rows=("no such",))


def test_the_command_measures_records_and_shows(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    told: list[str] = []
    found = comparing.run("label_noise", 2, "smoke", rows=("mnist sym 40",), tell=lambda done, total, note: told.append(note))
    assert len(told) == 2 * len(label_noise.ARMS)
    assert found.seeds == 2
    comparing.record(found)
    shown = CliRunner().invoke(app, ["compare", "label_noise", "--recorded", "--json"])
    assert json.loads(shown.stdout)["values"]["MNIST sym 40%"].keys() == label_noise.ARMS.keys()
    assert "MNIST sym 40%" in CliRunner().invoke(app, ["compare", "label_noise", "--recorded"]).stdout
    assert "label_noise" in CliRunner().invoke(app, ["compare"]).stdout


@pytest.mark.parametrize("name", label_noise.TASKS)
def test_labels_are_as_wrong_as_the_row_says(name: str) -> None:
    task = label_noise.TASKS[name]
    for data_set in (task.data, *(["cifar10h"] if task.noise == "human" else [])):
        try:
            load(data_set)
        except AssayError as error:
            pytest.skip(str(error))
    data = label_noise.plain(Lab(scale="smoke", seed=1), task).data
    assert data.train.clean_labels is not None
    share = (data.train.labels != data.train.clean_labels).double().mean().item()
    moved = len(label_noise._LIKE[task.data]) / data.num_classes if task.noise == "asymmetric" else 1.0
    assert share == pytest.approx(task.rate * moved, abs=0.09)
    assert (data.test.clean_labels is None) or bool((data.test.labels == data.test.clean_labels).all())
