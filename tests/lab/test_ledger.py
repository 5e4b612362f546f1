"""The ledger: nothing lost, nothing counted twice, clear when it cannot be used."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from assay.errors import AssayError
from assay.lab.ledger import Ledger, Row


def row(seed: int = 0, **changes: object) -> Row:
    return Row(**{"key": "k", "claim": "c", "seed": seed, "scale": "smoke", "device": "cpu", "code": "f", **changes})  # type: ignore[arg-type]


def test_gives_back_what_was_written(home: Path) -> None:
    ledger = Ledger()
    written = row(
        values={"a": 0.1 + 0.2}, curves={"a": {"x": [1.0], "y": [None]}}, costs={"a": {"seconds": 1.5}}, peak_bytes=2**40
    )
    ledger.add([written])
    assert Ledger().done("k", "c", "smoke", "cpu", "f") == {0: written}


def test_a_done_unit_is_never_rewritten(home: Path) -> None:
    ledger = Ledger()
    ledger.add([row(values={"a": 1.0}), row(values={"a": 2.0})])
    ledger.add([row(values={"a": 3.0})])
    assert [r.values for r in ledger.rows()] == [{"a": 1.0}]


def test_failures_are_kept_beside_and_do_not_count(home: Path) -> None:
    ledger = Ledger()
    ledger.add([row(status="crashed", error="boom"), row(status="crashed", error="boom"), row(values={"a": 1.0})])
    assert len(ledger.rows(status="crashed")) == 2
    assert list(ledger.done("k", "c", "smoke", "cpu", "f")) == [0]


def test_other_code_scale_or_device_is_another_unit(home: Path) -> None:
    ledger = Ledger()
    ledger.add([row(), row(code="g"), row(scale="laptop"), row(device="cuda")])
    assert len(ledger.rows(status="done")) == 4


def _write(url: str, worker: int, barrier: object) -> None:
    ledger = Ledger(url)
    barrier.wait()  # type: ignore[attr-defined]
    for i in range(25):
        ledger.add([row(seed=1000 * worker + i, values={"a": float(i)})])
        ledger.add([row(seed=i, claim="shared", values={"a": float(worker)})])  # all eight want to be the first


def test_eight_processes_write_at_once(home: Path) -> None:
    home.mkdir()
    url = f"sqlite:///{home / 'ledger.sqlite'}"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=_write, args=(url, worker, barrier)) for worker in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    ledger = Ledger(url)
    assert len(ledger.rows(claim="c")) == 8 * 25
    assert sorted(r.seed for r in ledger.rows(claim="shared")) == list(range(25))


def test_an_unreadable_ledger_is_one_sentence(home: Path) -> None:
    home.mkdir()
    (home / "ledger.sqlite").write_bytes(b"this is no database, it is a sentence" * 100)
    with pytest.raises(AssayError, match=r"ledger .*ledger\.sqlite cannot be used .*move it away"):
        Ledger()


@pytest.mark.parametrize("url", ["nonsense", "nodatabase://x", "sqlite:////dev/null/x/ledger.sqlite"])
def test_an_impossible_url_is_one_sentence(url: str) -> None:
    with pytest.raises(AssayError, match=r"ASSAY_LEDGER|ASSAY_HOME"):
        Ledger(url)


def test_survives_a_torn_write_ahead_log(home: Path) -> None:
    ledger = Ledger()
    ledger.add([row(seed=seed) for seed in range(5)])
    log = home / "ledger.sqlite-wal"
    assert log.exists()
    copy = home / "copy.sqlite"
    copy.write_bytes((home / "ledger.sqlite").read_bytes())
    (home / "copy.sqlite-wal").write_bytes(log.read_bytes()[:-100])  # as a power cut would leave it
    assert len(Ledger(f"sqlite:///{copy}").rows()) == 4
    assert sqlite3.connect(copy).execute("pragma integrity_check").fetchone() == ("ok",)
