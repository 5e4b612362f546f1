"""A data set as a value: it refuses nonsense, cannot be changed unnoticed, and its fingerprint is its content."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from assay.data import Dataset, Split
from assay.errors import AssayError


def toy(n: int = 60, classes: int = 3, name: str = "toy") -> Dataset:
    generator = torch.Generator().manual_seed(1)

    def split(count: int) -> Split:
        return Split(torch.rand((count, 1, 8, 8), generator=generator), torch.arange(count) % classes)

    return Dataset(name, "classification", split(n), split(0), split(30), tuple("abcdefghij"[:classes]))


def texts() -> Dataset:
    train = Split(("good film", "bad film", "fine", "dull"), torch.tensor([1, 0, 1, 0]))
    return Dataset("words", "classification", train, train.take(torch.arange(0)), train, ("no", "yes"))


def test_knows_its_shape() -> None:
    data = toy()
    assert (data.num_classes, data.input_shape, len(data.train), len(data.valid)) == (3, (1, 8, 8), 60, 0)
    assert texts().input_shape == ()


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_named_with_its_place(part: str, value: float) -> None:
    inputs = torch.zeros(4, 2)
    inputs[2, 1] = value
    bad, good = Split(inputs, torch.tensor([0, 1, 0, 1])), Split(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    splits = {name: bad if name == part else good for name in ("train", "valid", "test")}
    with pytest.raises(AssayError, match=rf"{part} inputs of 'mine' hold .*(nan|inf) at position 2 \(entry \(1,\)\)"):
        Dataset("mine", "classification", classes=("a", "b"), **splits)


def test_a_label_that_is_no_number_is_named_with_its_place() -> None:
    train = Split(torch.zeros(3, 2), torch.tensor([0.5, float("nan"), 1.0]))
    with pytest.raises(AssayError, match="train labels of 'mine' hold nan at position 1"):
        Dataset("mine", "regression", train, train, train)


def test_one_class_is_refused_by_name() -> None:
    train = Split(torch.zeros(3, 2), torch.ones(3, dtype=torch.int64))
    with pytest.raises(AssayError, match="All 3 training examples of 'mine' have the class 'cat'"):
        Dataset("mine", "classification", train, train, train, ("dog", "cat"))
    with pytest.raises(AssayError, match="needs the names of at least two"):
        Dataset("mine", "classification", train, train, train, ("dog",))


def test_labels_must_be_class_numbers() -> None:
    labels = torch.tensor([0, 2, 1])
    with pytest.raises(AssayError, match="train label at position 1 of 'mine' is 2"):
        Dataset("mine", "classification", *[Split(torch.zeros(3, 2), labels)] * 3, classes=("a", "b"))
    with pytest.raises(AssayError, match="int64 class numbers"):
        Dataset("mine", "classification", *[Split(torch.zeros(3, 2), labels.float())] * 3, classes=("a", "b"))


def test_lengths_and_kinds_of_inputs_are_checked() -> None:
    with pytest.raises(AssayError, match="4 inputs but 3 labels"):
        Split(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(AssayError, match="tuple of strings"):
        Split(["a", "b"], torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(AssayError, match="clean_labels"):
        Split(torch.zeros(4, 2), torch.zeros(4), torch.zeros(3))


def test_nothing_can_be_assigned() -> None:
    data = toy()
    with pytest.raises(AttributeError):
        data.train = data.test  # type: ignore[misc]
    with pytest.raises(AttributeError):
        data.train.labels = data.test.labels  # type: ignore[misc]


@pytest.mark.parametrize("what", ["inputs", "labels"])
def test_writing_into_a_tensor_is_noticed(what: str) -> None:
    data = toy()
    assert len(data.fingerprint) == 32
    getattr(data.train, what)[:2].zero_()  # through a view, as people do
    with pytest.raises(AssayError, match="wrote into the train tensors of data set 'toy'"):
        _ = data.fingerprint


def test_the_same_content_has_the_same_fingerprint() -> None:
    assert toy().fingerprint == toy().fingerprint
    assert toy().fingerprint == toy(name="another name").fingerprint
    assert texts().fingerprint == texts().fingerprint


def test_the_fingerprint_sees_every_part() -> None:
    base = toy()
    seen = {base.fingerprint, texts().fingerprint}
    for part in ("train", "test"):
        for what in ("inputs", "labels"):
            split: Split = getattr(base, part)
            changed = getattr(split, what).clone()
            changed.view(-1)[3] = 0.0 if what == "inputs" else 1
            parts = {"inputs": split.inputs, "labels": split.labels, what: changed}
            splits = {"train": base.train, "test": base.test, part: Split(**parts)}
            seen.add(Dataset("toy", base.task, valid=base.valid, classes=base.classes, **splits).fingerprint)
    seen.add(Dataset("toy", base.task, base.train, base.test, base.test, base.classes).fingerprint)
    seen.add(Dataset("toy", base.task, base.train, base.valid, base.test, ("x", "y", "z")).fingerprint)
    seen.add(Dataset("toy", "other", base.train, base.valid, base.test, base.classes).fingerprint)
    seen.add(replace(base, history=("something was done",)).fingerprint)
    assert len(seen) == 10


def test_texts_do_not_run_together() -> None:
    def of(*words: str) -> str:
        split = Split(words, torch.tensor([0, 1]))
        return Dataset("w", "classification", split, split, split, ("a", "b")).fingerprint

    assert of("ab", "c") != of("a", "bc")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_copy_is_the_same_value(copied) -> None:  # type: ignore[no-untyped-def]
    data = toy().flip_labels(0.2, seed=1)
    assert copied(data).fingerprint == data.fingerprint
    assert copied(data).history == data.history


def test_works_in_inference_mode() -> None:
    with torch.inference_mode():
        inside = toy().subset(train=10).fingerprint
    assert inside == toy().subset(train=10).fingerprint
