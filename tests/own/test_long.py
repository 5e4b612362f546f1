"""Series in the rows of a table: order, grid, gaps, unequal lengths, and further tables read alike."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from assay.data import Dataset
from assay.own import read
from assay.own.fresh import stream
from assay.own.named import Named
from assay.own.reading import gather, understand


def steps(count: int = 24, length: int = 12) -> pd.DataFrame:
    """Series with two channels and hourly steps; the class is the slope of the first."""
    rows = []
    for number in range(count):
        slope = 1 if number % 2 else -1
        for step in range(length):
            moment = pd.Timestamp("2021-05-01") + pd.Timedelta(hours=step, days=number)
            rows.append((f"s{number}", moment, slope * step + number * 0.01, number, "up" if slope > 0 else "down"))
    return pd.DataFrame(rows, columns=["sensor", "when", "level", "load", "label"])


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=0)


def write(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path, index=False)
    return path


def inputs(data: Dataset) -> torch.Tensor:
    return torch.cat([split.inputs for split in (data.train, data.valid, data.test)])  # type: ignore[misc]


def test_rows_become_series_whatever_their_order(tmp_path: Path) -> None:
    data = read(write(tmp_path / "a.csv", steps()), series="sensor", time="when")
    assert data.input_shape == (2, 12)
    assert data.classes == ("down", "up")
    assert "24 series of 12 steps in 2 channels (level, load)" in data.source
    slopes = data.train.inputs[:, 0, -1] - data.train.inputs[:, 0, 0]  # type: ignore[index]
    assert ((slopes > 0) == (data.train.labels == 1)).all()
    named = Named("label", series="sensor", time="when")
    one, other = (gather(write(tmp_path / "b.csv", frame), named) for frame in (steps(), shuffled(steps())))
    assert isinstance(one.inputs, torch.Tensor)
    assert isinstance(other.inputs, torch.Tensor)
    assert torch.equal(one.inputs[one.inputs[:, 1, 0].argsort()], other.inputs[other.inputs[:, 1, 0].argsort()])


def test_missing_steps_are_gaps_on_the_grid(tmp_path: Path) -> None:
    frame = steps().assign(load=0.5)
    frame.loc[frame.index % 12 == 1, "load"] = 0.0
    holed = frame.drop(index=[5, 6])  # of the series s0, whose level falls by 1 an hour
    data, preparation = understand(write(tmp_path / "a.csv", holed), series="sensor", time="when")
    assert "4 gaps filled between their neighbours" in data.source
    (piece,) = stream(tmp_path / "a.csv", preparation, [])
    torch.testing.assert_close(piece.inputs[0, 0], -torch.arange(12.0))  # type: ignore[index]


def test_unequal_lengths_and_repeated_times_are_said(tmp_path: Path) -> None:
    frame = steps()
    frame = pd.concat([frame.drop(index=range(8, 12)), frame.iloc[[20]].assign(level=1e6)])
    data = read(write(tmp_path / "a.csv", frame), series="sensor", time="when")
    assert "series of 8 to 12 steps: short ones go on with their last value" in data.source
    assert "1 rows with a time that their series has already left out" in data.source
    assert "gaps" not in data.source
    assert inputs(data).abs().max() < 10


def test_uneven_times_are_taken_in_order(tmp_path: Path) -> None:
    frame = steps()
    frame["when"] = frame.groupby("sensor").cumcount() ** 2
    data = read(write(tmp_path / "a.csv", shuffled(frame)), series="sensor", time="when")
    assert data.input_shape == (2, 12)
    assert "steps of unequal length taken one after the other" in data.source


def test_without_a_time_the_file_tells_the_order(tmp_path: Path) -> None:
    data = read(write(tmp_path / "a.csv", steps().drop(columns="when")), series="sensor")
    slopes = data.train.inputs[:, 0, -1] - data.train.inputs[:, 0, 0]  # type: ignore[index]
    assert ((slopes > 0) == (data.train.labels == 1)).all()


def test_numbers_are_predicted_and_groups_stay_together(tmp_path: Path) -> None:
    frame = steps()
    frame["label"] = frame["load"] * 1.5 + 0.25
    frame["room"] = "room" + (frame["load"] // 3).astype(str)
    data = read(write(tmp_path / "a.csv", frame), series="sensor", time="when", group="room")
    assert data.task == "regression"
    assert "whole groups" in data.source
    assert data.input_shape == (2, 12)
    rooms = [{int((label - 0.25) / 1.5) // 3 for label in split.labels.tolist()} for split in (data.train, data.test)]
    assert not rooms[0] & rooms[1]


def test_further_series_are_put_on_the_grid_of_the_first(tmp_path: Path) -> None:
    _, preparation = understand(write(tmp_path / "a.csv", steps()), series="sensor", time="when")
    new = steps(3, 20).drop(columns="label")
    new = new[new.index % 20 % 2 == 0]  # every other step only: the usual distance of these rows alone is two hours
    notes: list[str] = []
    (piece,) = stream(write(tmp_path / "new.csv", shuffled(new)), preparation, notes, 100)
    assert sorted(piece.ids) == ["s0", "s1", "s2"]
    assert piece.inputs.shape == (3, 2, 12)  # type: ignore[union-attr]
    row = piece.inputs[piece.ids.index("s1"), 0]  # type: ignore[index]
    torch.testing.assert_close(row[:11], torch.arange(11.0) + 0.01)
    assert any("cut to their first 12 steps" in note for note in notes)


def test_many_series_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.own.long.memory_bound", lambda: 20 * 1024)
    data = read(write(tmp_path / "a.csv", steps()), series="sensor", time="when")
    assert "21 of 24 series, drawn at random" in data.source


def test_from_a_large_file_whole_series_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", shuffled(steps(200)))
    monkeypatch.setenv("ASSAY_MEMORY", "64K")
    monkeypatch.setattr("assay.own.long.memory_bound", lambda: 2**30)
    data = read(path, series="sensor", time="when")
    assert "series, drawn at random to stay within" in data.source
    assert "gaps" not in data.source
    assert "steps of unequal" not in data.source
    assert data.input_shape == (2, 12)
    assert 10 <= len(inputs(data)) < 150
    assert read(path, series="sensor", time="when").fingerprint == data.fingerprint
