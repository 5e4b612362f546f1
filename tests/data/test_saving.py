"""Named data sets written as people keep their own, and read back."""

from pathlib import Path

import pytest
import torch

from assay.data import Dataset, Split, load
from assay.data.saving import save_as_own
from assay.errors import AssayError
from assay.own.reading import read


def test_images_become_a_folder_that_reads_back_pixel_by_pixel(tmp_path: Path) -> None:
    digits = load("digits")
    places = save_as_own(digits, tmp_path / "photos", limit=100)
    assert {place.name: count for place, count in places.items()} == {"photos": 100, "photos-new": 100}
    back = read(tmp_path / "photos")
    assert back.classes == digits.classes
    whole = torch.cat([back.train.inputs, back.valid.inputs, back.test.inputs])
    kept = digits.subset(train=100, test=100).train.inputs.mul(255).round().div(255)
    assert whole.sum().item() == pytest.approx(kept.sum().item(), rel=1e-6)
    assert len(whole) == 100


def test_tables_and_texts_become_csv(tmp_path: Path, table: Dataset) -> None:
    (path, new) = save_as_own(table, tmp_path / "sub" / "patients.csv")
    assert (path.name, new.name) == ("patients.csv", "patients-new.csv")
    back = read(path)
    assert back.classes == ("above", "below")
    assert sum(map(len, (back.train, back.valid, back.test))) == 400
    words = Split(("good, really", 'so "bad"') * 10, torch.tensor([0, 1] * 10))
    texts = Dataset("reviews", "classification", words, words, words, classes=("good", "bad"))
    (path, _) = save_as_own(texts, tmp_path / "reviews")
    assert sorted(set(read(path, text="text").train.inputs)) == ["good, really", 'so "bad"']


def test_nothing_is_overwritten_and_other_kinds_are_refused(tmp_path: Path, table: Dataset) -> None:
    save_as_own(table, tmp_path / "a.csv")
    with pytest.raises(AssayError, match="there already"):
        save_as_own(table, tmp_path / "a.csv")
    shifted = load("digits").rescale(-1, 1)
    with pytest.raises(AssayError, match=r"not in \[0, 1\]"):
        save_as_own(shifted, tmp_path / "b")
