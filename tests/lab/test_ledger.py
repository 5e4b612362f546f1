"""The ledger: nothing lost, nothing counted twice, clear when it cannot be used; SQLite and PostgreSQL alike."""

import multiprocessing
import sqlite3
import threading
from pathlib import Path

import postgres_server
import pytest
import sqlalchemy as sa

from assay.errors import AssayError
from assay.lab import ledger as module
from assay.lab.ledger import Ledger, Row


def row(seed: int = 0, **changes: object) -> Row:
    return Row(**{"key": "k", "claim": "c", "seed": seed, "scale": "smoke", "device": "cpu", "code": "f", **changes})  # type: ignore[arg-type]


def test_gives_back_what_was_written(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    written = row(
        values={"a": 0.1 + 0.2}, curves={"a": {"x": [1.0], "y": [None]}}, costs={"a": {"seconds": 1.5}}, peak_bytes=2**40
    )
    ledger.add([written])
    assert Ledger(ledger_url).done("k", "c", "smoke", "cpu", "f") == {0: written}
    assert ledger.count_done() == 1


def test_a_done_unit_is_never_rewritten(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.add([row(values={"a": 1.0}), row(values={"a": 2.0})])
    ledger.add([row(values={"a": 3.0})])
    assert [r.values for r in ledger.rows()] == [{"a": 1.0}]


def test_failures_are_kept_beside_and_do_not_count(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.add([row(status="crashed", error="boom"), row(status="crashed", error="boom"), row(values={"a": 1.0})])
    assert len(ledger.rows(status="crashed")) == 2
    assert list(ledger.done("k", "c", "smoke", "cpu", "f")) == [0]
    assert ledger.count_done() == 1


def test_other_code_scale_or_device_is_another_unit(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.add([row(), row(code="g"), row(scale="laptop"), row(device="cuda")])
    assert len(ledger.rows(status="done")) == 4


def test_any_traceback_can_be_stored(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.add([row(status="crashed", error="a\0b \ud800 ü")])
    assert ledger.rows()[0].error == "a\\0b \\ud800 ü"


def _write(url: str, worker: int, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    ledger = Ledger(url, keep=worker % 2 == 0)  # all eight find no table at the same moment
    for i in range(25):
        ledger.add([row(seed=1000 * worker + i, values={"a": float(i)})])
        ledger.add([row(seed=i, claim="shared", values={"a": float(worker)})])  # all eight want to be the first


def test_eight_processes_make_it_and_write_at_once(ledger_url: str) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=_write, args=(ledger_url, worker, barrier)) for worker in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 8
    ledger = Ledger(ledger_url)
    assert len(ledger.rows(claim="c")) == 8 * 25
    assert sorted(r.seed for r in ledger.rows(claim="shared")) == list(range(25))


def test_a_ledger_of_before_the_second_index_gets_it(ledger_url: str) -> None:
    Ledger(ledger_url).add([row()])
    engine = sa.create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX by_claim"))
    assert Ledger(ledger_url).count_done() == 1
    assert {index["name"] for index in sa.inspect(engine).get_indexes("units")} == {"by_claim", "done_once"}
    engine.dispose()


@pytest.mark.parametrize("keep", [True, False])
def test_a_server_that_restarts_is_waited_for(postgres: postgres_server.Server, keep: bool) -> None:
    ledger = Ledger(postgres.url(), keep=keep)
    ledger.add([row(0)])
    postgres.stop()
    again = threading.Timer(0.5, postgres.start)
    again.start()
    try:
        ledger.add([row(1), row(2, status="crashed", error="boom")])
    finally:
        again.join()
    assert [(r.seed, r.status) for r in ledger.rows()] == [(0, "done"), (1, "done"), (2, "crashed")]


def test_a_row_that_arrived_although_the_answer_was_lost_is_not_written_again(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    failure = row(status="crashed", error="boom")
    write = module._Insertion(failure)
    ledger._ask(write)  # and now the connection breaks, so that nobody knows
    ledger._ask(write)
    assert len(ledger.rows()) == 1
    ledger.add([failure])  # the same again from somebody else is another failure
    assert len(ledger.rows()) == 2


def test_more_writers_than_the_server_takes_wait_for_each_other() -> None:
    pytest.importorskip("psycopg")
    if postgres_server.binaries() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with postgres_server.running(fsync="off", max_connections="6") as server:  # three of them are kept for superusers
        url = server.url()
        Ledger(url)

        def write(worker: int) -> None:
            ledger = Ledger(url, patience=60, keep=False)
            for i in range(5):
                ledger.add([row(100 * worker + i)])

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert Ledger(url).count_done() == 60


def test_a_url_without_its_driver_is_understood(postgres: postgres_server.Server) -> None:
    assert Ledger(postgres.url().replace("+psycopg", "")).count_done() == 0


def test_a_server_that_stays_away_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(AssayError, match=r"ledger .*cannot be used .*see that the server runs") as raised:
        Ledger(f"postgresql+psycopg://me:secret@/units?host={tmp_path}", patience=0.2)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unreadable_ledger_is_one_sentence(home: Path) -> None:
    home.mkdir()
    (home / "ledger.sqlite").write_bytes(b"this is no database, it is a sentence" * 100)
    with pytest.raises(AssayError, match=r"ledger .*ledger\.sqlite cannot be used .*move it away"):
        Ledger()


def test_says_what_it_has_and_what_came_last(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.add([row(0, curves={"a": {"y": [1.0]}}), row(1), row(2, status="crashed"), row(0, claim="other", scale="laptop")])
    found = ledger.measured()
    assert [one[:5] for one in found] == [("k", "c", "smoke", "cpu", "f"), ("k", "other", "laptop", "cpu", "f")]
    newest = found[0][5]
    ledger.add([row(3)])
    assert ledger.measured()[0][5] > newest  # somebody who remembers the number sees that there is more
    assert [(one.claim, one.seed, one.curves) for one in ledger.latest(2)] == [("c", 3, {}), ("other", 0, {})]


def test_looking_for_a_ledger_makes_none(home: Path) -> None:
    assert not module.exists()
    Ledger()
    assert module.exists()
    assert module.exists("postgresql+psycopg://somewhere/units")
    assert module.exists("nonsense")  # whoever opens it is told what is wrong


@pytest.mark.parametrize(
    "url", ["nonsense", "nodatabase://x", "mysql+pymysql://me:secret@there/units", "sqlite:////dev/null/x/ledger.sqlite"]
)
def test_an_impossible_url_is_one_sentence(url: str) -> None:
    with pytest.raises(AssayError, match=r"ASSAY_LEDGER|ASSAY_HOME") as raised:
        Ledger(url)
    assert "secret" not in str(raised.value)


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
