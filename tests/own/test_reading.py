"""Reading people's own data: what is understood, what is repaired and said, and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from assay.data import Dataset
from assay.errors import AssayError
from assay.own import read


def table(count: int = 60, seed: int = 0) -> pd.DataFrame:
    """A number, a number with gaps, a colour and a species that follows from the first."""
    rng = np.random.default_rng(seed)
    length = rng.normal(size=count)
    width = rng.normal(size=count)
    width[::7] = np.nan
    colour = rng.choice(["red", "green", "blue"], count)
    return pd.DataFrame({"length": length, "width": width, "colour": colour, "species": np.where(length > 0, "a", "b")})


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    def write(frame: pd.DataFrame, name: str = "flowers.csv") -> Path:
        path = tmp_path / name
        frame.to_csv(path, index=False)
        return path

    return write


def images(folder: Path, count: int = 12, size: tuple[int, int] = (20, 16), mode: str = "RGB", classes: str = "ab") -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8) + np.uint8(120 * number)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{place}.png")
    return folder


def whole(data: Dataset) -> int:
    return len(data.train) + len(data.valid) + len(data.test)


# ---------------------------------------------------------------------------------------------------- tables


def test_table_is_split_in_proportion_and_scaled_on_training_rows_alone(csv: Callable[..., Path]) -> None:
    data = read(csv(table(200)), target="species")
    assert (len(data.train), len(data.valid), len(data.test)) == (140, 20, 40)
    assert data.classes == ("a", "b")
    assert data.task == "classification"
    assert data.features == ("length", "width", "width is missing", "colour=blue", "colour=green", "colour=red")
    assert isinstance(data.train.inputs, torch.Tensor)
    assert isinstance(data.test.inputs, torch.Tensor)
    torch.testing.assert_close(data.train.inputs[:, 0].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train.inputs[:, 0].std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert abs(data.test.inputs[:, 0].mean()) > 1e-3
    shares = [split.labels.double().mean().item() for split in (data.train, data.valid, data.test)]
    assert max(shares) - min(shares) < 0.05
    assert "200 rows" in data.source
    assert "training median" in data.source


def test_same_seed_same_split_other_seed_other_split(csv: Callable[..., Path]) -> None:
    path = csv(table())
    assert read(path, "species").fingerprint == read(path, "species").fingerprint
    assert read(path, "species").fingerprint != read(path, "species", seed=1).fingerprint


def test_gaps_are_filled_with_what_training_rows_tell(csv: Callable[..., Path]) -> None:
    frame = table(100)
    before = read(csv(frame), "species")
    test_row = np.flatnonzero(~frame["width"].isna())[0]
    frame.loc[test_row, "width"] = 1e6
    after = read(csv(frame, "other.csv"), "species")
    # Wherever the outlier went, training inputs changed only if it was a training row.
    assert isinstance(after.train.inputs, torch.Tensor)
    moved = not torch.equal(before.train.inputs[:, 1], after.train.inputs[:, 1])  # type: ignore[index]
    assert moved == bool((after.train.inputs[:, 1].abs() > 5).any())


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (np.linspace(0, 1, 60), "regression", ()),
        (np.arange(60), "regression", ()),
        (np.arange(60) % 3, "classification", ("0", "1", "2")),
        (np.arange(60) % 2 == 0, "classification", ("False", "True")),
    ],
)
def test_target_tells_the_task(csv: Callable[..., Path], values: object, task: str, classes: tuple[str, ...]) -> None:
    data = read(csv(table().assign(species=values)), "species")
    assert (data.task, data.classes) == (task, classes)
    assert data.train.labels.is_floating_point() == (task == "regression")


def test_groups_stay_together(csv: Callable[..., Path]) -> None:
    frame = table(120).assign(patient=np.arange(120) // 4)
    frame["length"] = frame["patient"] + 0.0  # the number survives scaling as a mark of the group
    data = read(csv(frame), "species", group="patient")
    marks = [set(split.inputs[:, 0].tolist()) for split in (data.train, data.valid, data.test)]  # type: ignore[index]
    assert all(marks)
    assert not (marks[0] & marks[1])
    assert not (marks[0] & marks[2])
    assert not (marks[1] & marks[2])
    assert whole(data) == 120
    assert "patient" not in data.features
    assert "whole groups" in data.source


def test_time_puts_the_latest_rows_into_the_test(csv: Callable[..., Path]) -> None:
    frame = table(100)
    days = np.random.default_rng(1).permutation(100)
    frame["day"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(days, unit="D")
    frame["length"] = days + 0.0
    data = read(csv(frame), "species", time="day")
    train, valid, test = (split.inputs[:, 0] for split in (data.train, data.valid, data.test))  # type: ignore[index]
    assert train.max() < valid.min()
    assert valid.max() < test.min()
    assert len(data.test) == 20 or len(data.test) == 19


def test_repairs_are_said(csv: Callable[..., Path]) -> None:
    frame = table(100).astype({"length": object})
    frame.loc[4, "length"] = "unknown"
    frame.loc[5, "length"] = np.inf
    frame.loc[6, "species"] = None
    frame["row"] = [f"id{number}" for number in range(100)]
    frame["same"] = 3
    data = read(csv(pd.concat([frame, frame])), "species")
    for part in (
        "'unknown', row 5",
        "2 rows without 'species' left out (first: row 7)",
        "infinite numbers",
        "one value left out: same",
        "test examples also occur in training",
    ):
        assert part in data.source
    assert whole(data) == 198


def test_other_encodings_and_european_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{place},5;Köln;{'ja' if place % 2 else 'nein'}\n" for place in range(30))
    path = tmp_path / "export.csv"
    path.write_bytes(("Größe;Ort;Klasse\n" + rows).encode("cp1252"))
    data = read(path, "Klasse")
    assert data.features == ("Größe",)
    assert "Windows-1252" in data.source
    assert "Ort" in data.source
    path.write_bytes(("Größe;Ort;Klasse\n" + rows).encode("utf-16"))
    assert read(path, "Klasse").features == ("Größe",)


def test_usual_name_of_target_is_found(csv: Callable[..., Path]) -> None:
    assert read(csv(table().rename(columns={"species": "Label"}))).classes == ("a", "b")


# ---------------------------------------------------------------------------------------------------- other kinds


def test_texts(csv: Callable[..., Path]) -> None:
    frame = pd.DataFrame({"review": [f"film number {n} was {'good' if n % 2 else 'bad'}" for n in range(40)], "y": [0, 1] * 20})
    for data in (read(csv(frame)), read(csv(frame), text="review", target="y")):
        assert isinstance(data.train.inputs, tuple)
        assert data.train.inputs[0].startswith("film number")
        assert data.classes == ("0", "1")


def test_wide_series(csv: Callable[..., Path]) -> None:
    values = np.cumsum(np.random.default_rng(0).normal(size=(40, 12)), axis=1)
    frame = pd.DataFrame(values, columns=[f"t{step}" for step in range(12)]).assign(label=np.arange(40) % 2)
    frame.loc[3, "t4"] = np.nan
    data = read(csv(frame), "label")
    assert data.input_shape == (1, 12)
    assert "series of 12 steps" in data.source
    assert "normalise()" in data.history


def test_ts_files_with_their_own_split(tmp_path: Path) -> None:
    for part, count in (("TRAIN", 20), ("TEST", 12)):
        rows = "".join(f"1,2,{n}{',4' if n % 3 else ''}:5,?,7:{'up' if n % 2 else 'down'}\n" for n in range(count))
        (tmp_path / f"Move_{part}.ts").write_text(f"# words\n@problemName Move\n@classLabel true up down\n@data\n{rows}")
    data = read(tmp_path / "Move_TRAIN.ts")
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 12)
    assert data.input_shape == (2, 4)
    assert "3 to 4 steps" in data.source
    assert "gaps filled" in data.source


def test_the_head_of_a_ts_file_tells_the_task(tmp_path: Path) -> None:
    rows = "".join(f"1,2,{n},inf:{n % 30}\n" for n in range(60))
    for head, task in (("@targetLabel true", "regression"), ("@classLabel true", "classification")):
        (tmp_path / "a.ts").write_text(f"{head}\n@data\n{rows}")
        data = read(tmp_path / "a.ts")
        assert data.task == task
        assert "60 infinite numbers taken as gaps" in data.source
    assert data.classes == tuple(str(number) for number in range(30))


def test_table_of_images(tmp_path: Path) -> None:
    images(tmp_path / "photos", 20)
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    frame = pd.DataFrame({"file": [str(path.relative_to(tmp_path)) for path in paths]})
    frame["age"] = [20.5 + int(path.stem) for path in paths]
    frame["person"] = [f"p{int(path.stem) // 2}" for path in paths]
    frame.loc[3, "file"] = None
    frame.loc[4, "file"] = "photos/a/nothing.png"
    frame.to_csv(tmp_path / "ages.csv", index=False)
    data = read(tmp_path / "ages.csv", "age", group="person")
    assert data.task == "regression"
    assert data.input_shape == (3, 16, 16)
    assert whole(data) == 38
    for part in ("38 colour images", "1 rows without 'file' left out (first: row 4)", "not there left out (first: row 5)"):
        assert part in data.source
    by_hand = {20.5 + int(path.stem): np.asarray(Image.open(path).convert("RGB").resize((16, 16), 2)) for path in paths[20:]}
    for image, age in zip(data.test.inputs, data.test.labels.tolist(), strict=True):
        assert isinstance(image, torch.Tensor)
        if image.mean() > 0.5:  # of class b
            np.testing.assert_allclose(image.permute(1, 2, 0) * 255, by_hand[age], atol=1e-3)
    classes = read(tmp_path / "ages.csv", "person")
    assert classes.task == "classification"
    assert "columns beside the images left out: age" in classes.source


def test_table_of_recordings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        wavfile.write(tmp_path / f"{number}.wav", 8000, rng.normal(size=2000).astype(np.float32) * number / 40)
    frame = pd.DataFrame({"path": [f"./{number}.wav" for number in range(20)], "loudness": np.arange(20) / 7})
    frame.to_csv(tmp_path / "loudness.csv", index=False)
    data = read(tmp_path / "loudness.csv", "loudness")
    assert data.task == "regression"
    assert data.input_shape == (64, 26)
    assert data.history[0].startswith("log_mel(rate=8000")


def test_many_images_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "photos", 40, classes="abc")
    monkeypatch.setenv("ASSAY_MEMORY", f"{30 * 16 * 16 * 3 * 16 / 1024}K")
    data = read(tmp_path / "photos")
    assert "30 of 120 images, drawn at random" in data.source
    counts = sum(torch.bincount(split.labels, minlength=3) for split in (data.train, data.valid, data.test))
    assert counts.tolist() == [10, 10, 10]  # type: ignore[union-attr]
    assert read(tmp_path / "photos").fingerprint == data.fingerprint


def test_image_folder(tmp_path: Path) -> None:
    data = read(images(tmp_path / "photos"))
    assert data.input_shape == (3, 16, 16)
    assert whole(data) == 24
    assert data.classes == ("a", "b")
    assert isinstance(data.train.inputs, torch.Tensor)
    bright = data.train.inputs.mean(dim=(1, 2, 3))
    assert data.train.inputs.min() >= 0
    assert data.train.inputs.max() <= 1
    assert bright[data.train.labels == 1].min() > bright[data.train.labels == 0].max()
    assert "brought to 16x16" in data.source


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    images(tmp_path / "photos" / "train", mode="L")
    images(tmp_path / "photos" / "val", count=5, mode="L")
    data = read(tmp_path / "photos")
    assert data.input_shape[0] == 1
    assert len(data.test) == 10
    assert len(data.train) + len(data.valid) == 24


def test_few_broken_images_are_left_out_and_many_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "photos")
    good = (folder / "a" / "0.png").read_bytes()
    (folder / "a" / "0.png").write_bytes(good[: len(good) // 2])
    data = read(folder)
    assert whole(data) == 23
    assert "a/0.png" in data.source
    (folder / "b" / "1.png").write_bytes(b"no image")
    with pytest.raises(AssayError, match=r"2 of 24 images .*cannot be read .*a/0\.png, b/1\.png"):
        read(folder)


def test_sixteen_bit_images_are_scaled(tmp_path: Path) -> None:
    for name, value in (("a", 60000), ("b", 200)):
        (tmp_path / "x" / name).mkdir(parents=True)
        for place in range(8):
            Image.fromarray(np.full((8, 8), value, dtype=np.uint16)).save(tmp_path / "x" / name / f"{place}.png")
    data = read(tmp_path / "x")
    assert isinstance(data.train.inputs, torch.Tensor)
    torch.testing.assert_close(data.train.inputs.max().item(), 60000 / 65535, atol=0.01, rtol=0)


def test_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    path = tmp_path / "a.npz"
    for x, shape in (
        (rng.normal(size=(40, 5)), (5,)),
        (rng.normal(size=(40, 2, 30)), (2, 30)),
        (rng.integers(0, 256, (40, 9, 9), dtype=np.uint8), (1, 9, 9)),
        (rng.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8), (3, 9, 9)),
    ):
        np.savez(path, x=x, y=y)
        data = read(path)
        assert data.input_shape == shape
        assert isinstance(data.train.inputs, torch.Tensor)
        if len(shape) == 3:
            assert data.train.inputs.max() == 1
    np.savez(path, x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    assert len(read(path).test) == 10
