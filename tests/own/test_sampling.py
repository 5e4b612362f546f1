"""Rows of files that do not fit: uniform, the same every time, numbered as in the file, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.errors import AssayError
from assay.own import read, sampling
from assay.own.sampling import sample_lines


def table(folder: Path, count: int = 5000) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=count).round(3)
    frame = pd.DataFrame(
        {"row": np.arange(1, count + 1), "x": x, "word": rng.choice(["a", "b"], count), "y": (x > 0).astype(int)}
    )
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def test_all_rows_if_there_is_room(tmp_path: Path) -> None:
    path = table(tmp_path, 50)
    sample = sample_lines(path, 10**6)
    assert sample.content == path.read_bytes()
    assert sample.total == 50
    assert sample.rows.tolist() == list(range(1, 51))


@pytest.mark.parametrize("block", [100, 1000, 10**6])
def test_rows_are_numbered_and_stay_within_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", block)
    path = table(tmp_path)
    lines = path.read_text().splitlines()
    sample = sample_lines(path, 4000)
    found = sample.content.decode().splitlines()
    assert found[0] == lines[0]
    assert found[1:] == [lines[row] for row in sample.rows]
    assert sample.total == 5000
    assert 2500 < len(sample.content) <= 4000 + len(lines[0])
    assert (np.diff(sample.rows) > 0).all()


@pytest.mark.parametrize("block", [200, 3000])
def test_every_row_is_as_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", block)
    path = table(tmp_path, 400)
    chosen = np.zeros(400)
    for seed in range(300):
        chosen[sample_lines(path, 1500, seed).rows - 1] += 1
    share = chosen.sum() / 300 / 400
    by_quarter = chosen.reshape(4, 100).mean(axis=1) / 300
    # The standard error of a quarter's mean is about sqrt(0.2 * 0.8 / 300 / 100) = 0.0023.
    np.testing.assert_allclose(by_quarter, share, atol=0.012)
    assert (chosen > 0).all()


def test_line_breaks_in_quotes_and_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", 50)
    rows = "".join(f'{n},"first line\nsecond, ""quoted"" line {n}"\r\n' + "\r\n" * (n % 3 == 0) for n in range(1, 200))
    (tmp_path / "a.csv").write_bytes(("n,text\r\n" + rows).encode())
    sample = sample_lines(tmp_path / "a.csv", 3000)
    assert sample.total == 199
    (tmp_path / "b.csv").write_bytes(sample.content)
    frame = pd.read_csv(tmp_path / "b.csv")
    assert frame["n"].tolist() == sample.rows.tolist()
    assert (frame["text"] == [f'first line\nsecond, "quoted" line {n}' for n in frame["n"]]).all()


def test_a_quote_that_is_none_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", 500)
    monkeypatch.setattr(sampling, "_LONGEST", 2000)
    rows = "".join(f"{n},{5 if n != 70 else '5'}{chr(34) if n == 70 else ''} wide\n" for n in range(1, 500))
    (tmp_path / "a.csv").write_text("n,text\n" + rows)
    sample = sample_lines(tmp_path / "a.csv", 1000)
    assert sample.total == 499


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=300), room=st.integers(1, 200))
def test_any_bytes_are_cut_into_rows(tmp_path: Path, content: bytes, room: int) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    sample = sample_lines(tmp_path / "a.csv", room)
    assert len(sample.rows) <= sample.total
    assert len(sample.content) <= max(room, 1) + len(content)


def test_a_large_table_is_a_sample_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path)
    monkeypatch.setenv("ASSAY_MEMORY", "160KB")
    data = read(path, "y")
    assert "of 5,000 rows, drawn at random to stay within" in data.source
    count = len(data.train) + len(data.valid) + len(data.test)
    assert 400 < count < 1200
    assert read(path, "y").fingerprint == data.fingerprint
    monkeypatch.setenv("ASSAY_MEMORY", "1G")
    assert "drawn" not in read(path, "y").source


def test_a_large_parquet_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.read_csv(table(tmp_path))
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=700)
    monkeypatch.setenv("ASSAY_MEMORY", "300KB")
    data = read(tmp_path / "a.parquet", "y")
    assert "of 5,000 rows, drawn at random" in data.source
    assert 300 < len(data.train) < 3000


def test_many_categories_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"c{n}": rng.integers(0, 40, 2000).astype(str) + np.array("x") for n in range(6)})
    frame.assign(y=np.arange(2000) % 2).to_csv(tmp_path / "a.csv", index=False)
    monkeypatch.setenv("ASSAY_MEMORY", "2MB")
    assert "of 2,000 rows, drawn at random" in read(tmp_path / "a.csv").source


def test_errors_name_the_row_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, 1000)
    row = int(sample_lines(path, 8000).rows[3])
    lines = path.read_text().splitlines()
    lines[row] += ",7"
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("ASSAY_MEMORY", f"{8 * 8000 / 1024}K")
    with pytest.raises(AssayError, match=rf"cannot be read as a table \(Expected 4 fields in row {row}, saw 5\)"):
        read(path, "y")


def test_large_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((100, 100)), y=np.arange(100) % 2)
    monkeypatch.setenv("ASSAY_MEMORY", "100KB")
    with pytest.raises(AssayError, match=r"a\.npz unpacks to .* save fewer examples"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("words", ["much", "-3GB", "0", "3 parsecs"])
def test_what_is_no_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("ASSAY_MEMORY", words)
    with pytest.raises(AssayError, match="which is no size: write it like 500MB"):
        read(table(tmp_path, 20), "y")
