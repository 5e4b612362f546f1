"""Datasets that ``save_to_disk`` wrote: splits, class names, images, recordings; what is broken or would lead out is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from assay.errors import AssayError
from assay.own import read

pa = pytest.importorskip("pyarrow")

LABEL = {"names": ["neg", "pos"], "_type": "ClassLabel"}
TEXT = {"dtype": "string", "_type": "Value"}


def save(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any], files: int = 1) -> Path:
    """What ``datasets`` writes for one ``Dataset``."""
    folder.mkdir(parents=True)
    table = pa.table(columns)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    size = -(-len(table) // files)
    for number, name in enumerate(names):
        piece = table.slice(number * size, size)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, piece.schema) as writer:
            writer.write_table(piece)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def texts(folder: Path, count: int = 40, **more: list[Any]) -> Path:
    words = [f"film number {n} was {'good' if n % 2 else 'bad'}" for n in range(count)]
    columns = {"sentence": words, "label": [n % 2 for n in range(count)], "idx": list(range(count)), **more}
    return save(folder, columns, {"sentence": TEXT, "label": LABEL, "idx": {"dtype": "int64", "_type": "Value"}}, 2)


def splits(folder: Path, make: Callable[[Path, int], Path], **counts: int) -> Path:
    for name, count in counts.items():
        make(folder / name, count)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(counts)}))
    return folder


def pictures(folder: Path, count: int = 40) -> Path:
    content = []
    for number in range(count):
        out = io.BytesIO()
        Image.new("L", (10, 12), 40 + 150 * (number % 2) + number % 7).save(out, "PNG")
        content.append({"bytes": out.getvalue(), "path": None})
    labels = [number % 2 for number in range(count)]
    return save(folder, {"image": content, "label": labels}, {"image": {"_type": "Image"}, "label": LABEL})


def test_texts_with_splits_and_class_names(tmp_path: Path) -> None:
    data = read(splits(tmp_path / "films", texts, train=30, test=12, unsupervised=9))
    assert isinstance(data.train.inputs, tuple)
    assert data.train.inputs[0].startswith("film number")
    assert data.classes == ("neg", "pos")
    assert (len(data.train), len(data.valid), len(data.test)) == (27, 3, 12)
    assert "splits left out: unsupervised" in data.source
    for text, label in zip(data.test.inputs, data.test.labels.tolist(), strict=True):
        assert ("good" in str(text)) == bool(label)


def test_all_three_splits_are_kept(tmp_path: Path) -> None:
    data = read(splits(tmp_path / "films", texts, train=30, validation=8, test=12))
    assert (len(data.train), len(data.valid), len(data.test)) == (30, 8, 12)
    assert "as found" in data.source


def test_hidden_labels_are_left_out(tmp_path: Path) -> None:
    data = read(texts(tmp_path / "films", label=[n % 2 for n in range(36)] + [-1, -1, None, 1]))
    assert "40 texts" not in data.source
    assert "3 rows without 'label' left out (first: row 37)" in data.source


def test_images(tmp_path: Path) -> None:
    data = read(splits(tmp_path / "shades", pictures, train=40, validation=10))
    assert data.input_shape == (1, 8, 8)
    assert "the validation split is the test" in data.source
    assert isinstance(data.test.inputs, torch.Tensor)
    assert ((data.test.inputs.mean(dim=(1, 2, 3)) > 0.5) == (data.test.labels == 1)).all()


def test_recordings_and_series(tmp_path: Path) -> None:
    content = []
    for number in range(20):
        out = io.BytesIO()
        wavfile.write(out, 8000, np.sin(np.arange(2000) * (0.1 + 0.4 * (number % 2))).astype(np.float32))
        content.append({"bytes": out.getvalue(), "path": "a.wav"})
    labels = [number % 2 for number in range(20)]
    data = read(save(tmp_path / "tones", {"audio": content, "label": labels}, {"audio": {"_type": "Audio"}, "label": LABEL}))
    assert data.input_shape == (64, 26)
    assert data.classes == ("neg", "pos")
    lists = np.random.default_rng(0).normal(size=(20, 15)).tolist()
    data = read(save(tmp_path / "waves", {"wave": lists, "y": [n / 7 for n in range(20)]}, {"wave": {}, "y": {}}))
    assert data.task == "regression"
    assert data.input_shape == (1, 15)


def test_columns_are_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"a": [None, *rng.normal(size=39).tolist()], "b": ["x", "y"] * 20, "price": rng.normal(size=40).tolist()}
    data = read(save(tmp_path / "prices", columns, {"a": {}, "b": {}, "price": {}}), target="price")
    assert data.task == "regression"
    assert data.features == ("a", "a is missing", "b=x", "b=y")


def test_many_rows_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = texts(tmp_path / "films", 400)
    monkeypatch.setenv("ASSAY_MEMORY", "32K")
    data = read(folder)
    assert "of 400 rows, drawn at random" in data.source
    assert 10 <= len(data.train) < 300


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _state(**state: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "state.json").write_text(json.dumps(state)) and None


def _truncate(folder: Path) -> None:
    file = folder / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:200])


def _code(folder: Path) -> None:
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"label": {"_type": "ClassLabel", "names": ["a"]}}}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("data-00001-of-00002.arrow"), r"data-00001-of-00002\.arrow is not there, which .*state\.json names"),
        (_truncate, r"data-00000-of-00002\.arrow is no arrow file, or broken"),
        (_state(_data_files=[{"filename": "../secret.arrow"}]), r"'\.\./secret\.arrow', which may lead out of the folder"),
        (_state(_data_files=[{"filename": "/etc/passwd"}]), r"may lead out of the folder"),
        (_state(), r"state\.json names no data files"),
        (lambda folder: (folder / "dataset_info.json").write_text("{"), r"dataset_info\.json is no JSON"),
        (lambda folder: (folder / "dataset_info.json").write_text("{}"), r"has no features"),
        (_code, r"Row 2 of .* has the class 1\.?0? in column 'label', of 1"),
    ],
)
def test_what_is_broken_gets_one_sentence(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    folder = texts(tmp_path / "films")
    spoil(folder)
    with pytest.raises(AssayError, match=words) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": [f"film {n} was {'good' if n % 2 else 'bad'}" for n in range(40)], "label": [n % 2 for n in range(40)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=whole.shuffle(seed=0), test=whole.select(range(10))).save_to_disk(tmp_path / "films")
    data = read(tmp_path / "films")
    assert data.classes == ("neg", "pos")
    assert len(data.test) == 10
