"""Recording: what was recorded before is not forgotten, and recording twice is recording once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assay import catalogue
from assay.lab import results
from assay.lab.ledger import Ledger, Row
from assay.lab.units import claim_code

PAPER = catalogue.find("elr")
CLAIM = catalogue.claims(PAPER)["resists_wrong_labels"]


def measured(ledger: Ledger) -> list[results.Result]:
    found = results.result(PAPER, CLAIM, ledger, "laptop", "cpu", claim_code(CLAIM))
    assert found is not None
    return [found]


def test_history_grows_with_what_changes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    days = iter(["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"])
    monkeypatch.setattr(results, "now", lambda: next(days))
    ledger = Ledger()

    def record(*seeds: int) -> dict[str, object]:
        for seed in seeds:
            values = {"cross-entropy": 0.6 + 0.01 * seed, "ELR": 0.9}
            ledger.add(
                [Row(PAPER.key, CLAIM.name, seed, "laptop", "cpu", claim_code(CLAIM), values=values, finished="2025-12-31")]
            )
        [path] = results.record(measured(ledger))
        entry: dict[str, object] = json.loads(path.read_text())["claims"][CLAIM.name]
        return entry

    first = record(0)
    assert (first["verdict"], first["recorded"], first["history"]) == ("inconclusive", "2026-01-01T00:00:00+00:00", [])
    assert record() == first  # nothing was measured since
    third = record(1, 2)
    assert (third["verdict"], third["recorded"]) == ("holds", "2026-01-03T00:00:00+00:00")
    remembered = {name: first[name] for name in ("recorded", "verdict", "seeds", "scale", "date", "commit", "fingerprint")}
    assert third["history"] == [remembered]


def test_evidence_from_before_recordings_had_dates_keeps_its_own(home: Path) -> None:
    old = {"verdict": "fails", "seeds": 2, "date": "2026-01-05", "arms": {}, "fingerprint": "a"}
    again = results._dated({**old, "verdict": "holds"}, old, "2026-02-01T00:00:00+00:00")
    assert again["history"] == [
        {"recorded": "2026-01-05", "verdict": "fails", "seeds": 2, "date": "2026-01-05", "fingerprint": "a"}
    ]
    assert results._dated(dict(old), old, "2026-02-01T00:00:00+00:00")["recorded"] == "2026-01-05"


def test_a_line_is_of_the_seeds_that_have_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    ledger = Ledger()
    for seed in range(3):
        line = {"x": [1.0, 2.0], "y": [0.5, 0.6 + 0.1 * seed], "x_name": "epoch", "y_name": "accuracy"}
        curves = {} if seed == 0 else {"ELR": line}  # the training of seed 0 diverged
        values = {"cross-entropy": 0.6, "ELR": 0.1 if seed == 0 else 0.9}
        ledger.add([Row(PAPER.key, CLAIM.name, seed, "laptop", "cpu", claim_code(CLAIM), values=values, curves=curves)])
    [path] = results.record(measured(ledger))
    drawn = json.loads(path.read_text())["claims"][CLAIM.name]["curves"]["ELR"]
    assert (drawn["mean"], drawn["low"], drawn["high"]) == ([0.5, 0.75], [0.5, 0.7], [0.5, 0.8])
