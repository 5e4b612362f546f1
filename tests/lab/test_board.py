"""What a run is doing, for whoever looks: written now and then, gone with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from assay.lab import board, running
from assay.lab.units import Unit

UNIT = Unit("elr", "memorises_less", (3,), "smoke", "cpu", "0", 60.0)


def test_it_is_written_now_and_then(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EVERY", 3600.0)  # no machine is so slow that the second state is due
    mine = board.Board()
    mine.show({"finished": 1}, now=True)
    mine.show({"finished": 2})
    assert board.boards()[0]["finished"] == 1
    mine.show({"finished": 3}, now=True)
    assert board.boards()[0]["finished"] == 3
    mine.close()
    assert board.boards() == []


def test_a_run_that_was_killed_is_not_shown(home: Path) -> None:
    board.folder().mkdir(parents=True)
    (board.folder() / "999999999.json").write_text("{}")
    (board.folder() / "1.json").write_text("{")
    assert board.boards() == []


def test_a_run_goes_on_where_the_board_cannot_be_written(home: Path) -> None:
    board.folder().parent.mkdir(parents=True)
    board.folder().write_text("a file where the folder should be")
    board.Board().show({}, now=True)
    assert board.boards() == []


def test_the_watcher_puts_up_what_it_is_told(home: Path) -> None:
    watcher = running._Watcher(Console(quiet=True), [UNIT, UNIT])
    watcher(UNIT, "start", {})
    [state] = board.boards()
    assert (state["total"], state["finished"]) == (2, 0)
    shown = {"key": "elr", "claim": "memorises_less", "name": "elr:memorises_less seed 3", "fraction": 0.0, "note": ""}
    assert state["units"] == [shown]
    watcher(UNIT, "progress", {"fraction": 0.5, "note": "epoch 2"})
    assert watcher._state()["units"] == [shown | {"fraction": 0.5, "note": "epoch 2"}]
    watcher(UNIT, "end", {"status": "done", "seconds": 1.0, "error": ""})
    [state] = board.boards()
    assert (state["finished"], state["units"], state["counts"]) == (1, [], {"done": 1})
    watcher.board.close()
