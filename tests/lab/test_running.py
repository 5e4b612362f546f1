"""Running for real, in processes: what finishes is kept, what goes wrong is recorded, and the terminal says so clearly."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from toy import PAPER, assay_command, wait_for

from assay import cli
from assay.lab.ledger import Ledger


def test_from_run_to_recorded_verdict(papers: dict[str, str], tmp_path: Path) -> None:
    shown = assay_command(papers, "run", "dummy:quick", "--seeds", "3", "--workers", "2", check=0)
    assert "dummy:quick" in shown.stdout
    assert "holds" in shown.stdout
    assert "3/3" in shown.stderr
    again = assay_command(papers, "run", "dummy:quick", "--seeds", "3", "--json", check=0)
    (found,) = json.loads(again.stdout)
    assert found["verdict"] == "holds"
    assert found["arms"]["A"] == {"0": 1.0, "1": 1.01, "2": 1.02}
    assert "[1/" not in again.stderr  # nothing was left to run
    assay_command(papers, "record", "dummy", check=0)
    recorded = json.loads((tmp_path / "evidence" / "dummy.json").read_text())["claims"]["quick"]
    assert recorded["verdict"] == "holds"
    assert recorded["seeds"] == 3
    assert recorded["machine"]["cores"] >= 1
    assert "holds" in assay_command(papers, "verdicts", "dummy", check=0).stdout
    assert "1 holds" in assay_command(papers, "list", "labels", check=0).stdout
    shown = assay_command(papers, "show", "dummy", check=0).stdout
    assert "A lesson in a sentence." in shown
    assert "stale" not in shown
    module = tmp_path / "site" / "assay" / "papers" / "labels" / "dummy.py"
    module.write_text(PAPER.replace('"B": 0.5', '"B": 0.6'))
    assert "stale" in assay_command(papers, "show", "dummy", check=0).stdout
    assert "Nobody, Ann" in assay_command(papers, "cite", "dummy", check=0).stdout


def test_blocks_of_seeds_are_saved_seed_by_seed(papers: dict[str, str]) -> None:
    assay_command(papers, "run", "dummy:together", "--seeds", "2", check=0)
    assay_command(papers, "run", "dummy:together", "--seeds", "7", check=0)
    rows = Ledger(f"sqlite:///{papers['ASSAY_HOME']}/ledger.sqlite").rows(claim="together")
    assert sorted(row.seed for row in rows) == list(range(7))
    assert all(row.values == {"A": float(row.seed)} for row in rows)


def test_what_goes_wrong_is_recorded_and_stops_nothing_else(papers: dict[str, str]) -> None:
    done = assay_command(
        papers, "run", *(f"dummy:{name}" for name in ("crashes", "dies", "hangs", "quick")), "--seeds", "2", check=1
    )
    ledger = Ledger(f"sqlite:///{papers['ASSAY_HOME']}/ledger.sqlite")
    assert {(row.claim, row.seed, row.status) for row in ledger.rows()} == {
        ("crashes", 0, "done"),
        ("crashes", 1, "crashed"),
        ("dies", 0, "crashed"),
        ("dies", 1, "crashed"),
        ("hangs", 0, "timeout"),
        ("hangs", 1, "timeout"),
        ("quick", 0, "done"),
        ("quick", 1, "done"),
    }
    errors = {(row.claim, row.seed): row.error for row in ledger.rows()}
    assert "ZeroDivisionError: seed one" in errors["crashes", 1]
    assert "SIGKILL" in errors["dies", 0]
    assert "time limit of 1 s" in errors["hangs", 0]
    assert "ZeroDivisionError: seed one" in done.stderr
    again = assay_command(papers, "run", "dummy:crashes", "--seeds", "3", "--json", check=1)  # seed 1 is tried again
    assert again.stdout, again.stderr
    (found,) = json.loads(again.stdout)
    assert found["arms"]["A"] == {"0": 1.0, "2": 1.0}
    assert found["unfinished"] == {"1": "crashed"}
    assert found["verdict"] == "inconclusive"  # the seed that is missing may be the one that contradicts


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "el"), "did you mean elr"),
        (("run", "elr:resist"), "it has resists_wrong_labels"),
        (("run",), "Nothing was named"),
        (("run", "elr", "--seeds", "0"), "--seeds is 0"),
        (("run", "elr", "--scale", "huge"), "choose one of smoke, laptop, full"),
        (("run", "elr", "--device", "tpu"), "is no device: write cpu"),
        (("run", "elr", "--workers", "-1"), "--workers is -1"),
        (("show", "nothing-like-it"), "No paper is called"),
        (("list", "nonsense"), "There is no topic"),
        (("list", "--kind", "nonsense"), "There is no kind"),
        (("record", "elr"), "the ledger has nothing"),
        (("data", "fetch", "mnist5"), "mnist5k"),
        (("cache", "prune", "--to", "much"), "is no size"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["assay", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    shown = capsys.readouterr()
    assert said.lower() in shown.err.lower()
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_unit_that_refuses_says_why_and_ends_with_2(papers: dict[str, str]) -> None:
    done = assay_command(papers, "run", "dummy:refuses", "dummy:measures_nan", "--seeds", "1", check=2)
    assert "There is no such thing: take another." in done.stderr
    assert "which is no number" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_unreadable_ledger_is_one_sentence(papers: dict[str, str], home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "ledger.sqlite").write_bytes(b"no database " * 200)
    done = assay_command(papers, "run", "dummy:quick", check=2)
    assert done.stderr.count("\n") == 1
    assert "move it away" in done.stderr


def done_units(ledger: Path) -> list[tuple[str, int]]:
    """Claim and seed of every unit that a ledger has as done."""
    return [(row.claim, row.seed) for row in Ledger(f"sqlite:///{ledger}").rows(status="done")] if ledger.exists() else []


def test_kill_at_thirty_random_moments_loses_nothing_and_counts_nothing_twice(papers: dict[str, str]) -> None:
    """A run of 500 units is killed thirty times (its whole process group, as a machine that goes down would), then finished."""
    draw = random.Random(0)
    command = [
        sys.executable,
        "-m",
        "assay",
        "run",
        "dummy:quick",
        "dummy:remembers",
        "--seeds",
        "250",
        "--workers",
        "2",
        "--json",
    ]
    ledger_path = Path(papers["ASSAY_HOME"]) / "ledger.sqlite"
    finished: set[tuple[str, int]] = set()
    for number in range(30):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=papers, cwd="/", start_new_session=True, **quiet)
        deadline, most = time.monotonic() + draw.uniform(0.2, 4.0), draw.randint(3, 15)
        # Every third run may first finish something, so that a slow machine gets there too; none finishes so much that a fast
        # one is through before the last kill.
        while (new := len(done_units(ledger_path)) - len(finished)) < most and (
            time.monotonic() < deadline or (number % 3 == 2 and not new)
        ):
            assert process.poll() is None, "the run ended before it was killed: give it more to do"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = done_units(ledger_path)
        assert len(now) == len(set(now)), "something was counted twice"
        assert finished <= set(now), "something finished was lost"
        finished = set(now)
    assert finished
    done = subprocess.run(command, env=papers, cwd="/", capture_output=True, text=True, timeout=900, check=True)
    found = {result["claim"]: result for result in json.loads(done.stdout)}
    assert found["quick"]["seeds"] == found["remembers"]["seeds"] == 250
    assert found["remembers"]["arms"]["A"] == {str(seed): float(seed) for seed in range(250)}
    rows = Ledger(f"sqlite:///{ledger_path}").rows()
    assert {row.status for row in rows} == {"done"}
    assert len(rows) == 500


def test_ctrl_c_ends_cleanly(papers: dict[str, str], home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "assay", "run", "dummy:hangs", "--time-limit", "600", "--workers", "1"],
        env=papers,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background lets them ignore Ctrl-C, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(home / "hanging")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "what was finished is kept" in errors


def test_one_seed_is_shown_without_an_interval(papers: dict[str, str], home: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "assay", "run", "dummy:quick", "--seeds", "1", "--workers", "1"],
        env=papers,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert "1 seed\n" in shown.stdout
    assert "no interval from one seed" in " ".join(shown.stdout.split())
