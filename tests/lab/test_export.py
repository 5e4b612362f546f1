"""Export: every number that was measured, once; tables that come back as they were; a tracking server that takes no double."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from assay import catalogue, cli
from assay.errors import AssayError
from assay.lab import export
from assay.lab.ledger import Ledger, Row
from assay.lab.units import claim_code

PAPER = catalogue.find("elr")
CLAIM = catalogue.claims(PAPER)["resists_wrong_labels"]
WHAT = [f"elr:{CLAIM.name}"]


def row(seed: int, **changes: object) -> Row:
    words: dict[str, object] = {
        "key": "elr",
        "claim": CLAIM.name,
        "seed": seed,
        "scale": "laptop",
        "device": "cpu",
        "code": claim_code(CLAIM),
        "values": {"cross-entropy": 0.1 + 0.2 + seed / 100, "ELR": 0.9 + seed / 1000},
        "costs": {"ELR": {"seconds": 1.5, "parameters": 61706}},
        "curves": {"ELR": {"x": [1.0, 2.0], "y": [0.5, None], "x_name": "epoch", "y_name": "accuracy"}},
        "machine": {"processor": "P", "cores": 2, "system": "Linux"},
        "versions": {"assay": "0.1", "scikit-learn": "1.9"},
        "seconds": 3.0,
        "finished": "2026-01-02T03:04:05+00:00",
    }
    return Row(**{**words, **changes})  # type: ignore[arg-type]


@pytest.fixture
def ledger(home: Path) -> Ledger:
    """Three seeds of now, one of other code, one that crashed twice."""
    ledger = Ledger()
    failed = {"values": {}, "curves": {}, "costs": {}}
    ledger.add([row(seed) for seed in range(3)])
    ledger.add([row(0, code="old", values={"ELR": 0.1}, curves={}), row(3, status="crashed", error="=boom", **failed)])
    ledger.add([row(3, status="crashed", error="=boom", **failed, seconds=4.0)])
    return ledger


def export_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["assay", "export", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code, exit_.value.code


def test_a_row_for_each_unit_and_arm(ledger: Ledger) -> None:
    table = export.table(export.units(WHAT, history=False))
    assert len(table) == 3 * 2
    one = table[(table.seed == 1) & (table.arm == "ELR")].iloc[0]
    assert (one.value, one.seconds, one.parameters) == (0.901, 1.5, 61706)
    assert (one.machine_cores, one.version_scikit_learn, one.finished) == (2, "1.9", "2026-01-02T03:04:05+00:00")
    assert set(table.verdict) == {"inconclusive"}  # the seed that crashed may be the one that contradicts
    assert table.current.all()
    assert table[table.arm == "cross-entropy"].parameters.isna().all()


def test_history_has_what_failed_and_other_code(ledger: Ledger) -> None:
    table = export.table(export.units(WHAT, history=True))
    assert len(table) == 3 * 2 + 1 + 2
    assert list(table[table.status == "crashed"].value.isna()) == [True, True]
    assert list(table[~table.current].verdict.isna()) == [True]


def test_the_long_table_has_every_number(ledger: Ledger) -> None:
    table = export.long_table(export.units(WHAT, history=False))
    assert table.quantity.value_counts().to_dict() == {"value": 6, "accuracy": 6, "seconds": 3, "parameters": 3}
    curve = table[(table.quantity == "accuracy") & (table.seed == 0)]
    assert curve.x.tolist() == [1.0, 2.0]
    assert curve.number.iloc[0] == 0.5
    assert curve.number.isna().iloc[1]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_comes_back_as_it_was(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"results.{kind}"
    export_command(monkeypatch, str(out), "--what", WHAT[0])
    # To the last bit:
    table = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert table.value.tolist() == [v for seed in range(3) for v in (0.1 + 0.2 + seed / 100, 0.9 + seed / 1000)]


def test_texts_that_look_like_formulas_are_none_in_csv(ledger: Ledger, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    ledger.add([row(9, values={"cross-entropy": 0.5, "ELR": 0.9, "-log p": -1.5, "=A1": -2.0})])
    table = export.table(export.units(WHAT, history=False))
    for name in ("out.csv", "out.parquet"):
        export.write(table, tmp_path / name)
    text = (tmp_path / "out.csv").read_text()
    assert ",'-log p," in text
    assert ",'=A1," in text
    assert ",-1.5," in text
    assert {"-log p", "=A1"} <= set(pd.read_parquet(tmp_path / "out.parquet").arm)


def test_other_files_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match=r"name a \.csv or \.parquet file"):
        export.write(export.table(export.units(WHAT, history=False)), tmp_path / "out.xlsx")


@pytest.mark.parametrize("words", [(), ("out.csv", "--to", "mlflow"), ("--to", "wandb"), ("out.csv", "--what", "nothing")])
def test_bad_input_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["assay", "export", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mlflow_gets_every_unit_once(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="only mlflow-skinny is installed, which has no store of its own")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    address = f"sqlite:///{tmp_path / 'mlflow.sqlite'}"
    words = ("--to", "mlflow", "--tracking-uri", address, "--what", WHAT[0])
    export_command(monkeypatch, *words)
    assert "added 3 runs, 0 were there" in capsys.readouterr().out
    client = mlflow.MlflowClient(tracking_uri=address)
    (experiment,) = [e for e in client.search_experiments() if e.name == "assay/elr"]
    runs = {run.data.params["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"0", "1", "2"}
    one = runs["1"]
    assert one.info.status == "FINISHED"
    assert one.data.metrics["cross-entropy/value"] == 0.1 + 0.2 + 0.01
    assert one.data.metrics["ELR/parameters"] == 61706
    assert one.data.tags["assay.verdict"] == "inconclusive"
    history = client.get_metric_history(one.info.run_id, "ELR/accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5)]

    export_command(monkeypatch, *words)  # a second time adds nothing
    assert "added 0 runs, 3 were there" in capsys.readouterr().out
    client.update_run(one.info.run_id, status="RUNNING")  # as an export that was killed leaves it
    ledger.add([row(3)])  # the seed that had crashed: the verdict of all changes
    export_command(monkeypatch, *words, "--history")
    runs_now = client.search_runs([experiment.experiment_id])
    assert sorted((run.data.params["seed"], run.info.status) for run in runs_now) == [
        ("0", "FINISHED"),
        ("0", "FINISHED"),
        ("1", "FINISHED"),
        ("2", "FINISHED"),
        ("3", "FAILED"),
        ("3", "FAILED"),
        ("3", "FINISHED"),
    ]
    current = [run for run in runs_now if run.data.tags["assay.code"] != "old" and run.info.status == "FINISHED"]
    assert {run.data.tags["assay.verdict"] for run in current} == {"holds"}
