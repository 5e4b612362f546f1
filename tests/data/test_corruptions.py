"""Corruptions: exact counts, the right distribution, seeds that matter, and a history that tells all of it."""

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from assay.data import Dataset, Split, load
from assay.data.dataset import stratified
from assay.data.shift import CORRUPTIONS
from assay.errors import AssayError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def many(n: int = 30_000, classes: int = 5) -> Dataset:
    train = Split(torch.zeros(n, 1), torch.arange(n) % classes)
    return Dataset("many", "classification", train, train.take(torch.arange(1000)), train, tuple("abcde"[:classes]))


STEPS = {
    "flip_labels": lambda d, seed: d.flip_labels(0.3, seed=seed),
    "include_true": lambda d, seed: d.flip_labels(0.3, seed=seed, include_true=True),
    "pairwise": lambda d, seed: d.flip_labels(0.3, seed=seed, kind="pairwise"),
    "asymmetric": lambda d, seed: d.flip_labels(0.3, seed=seed, kind="asymmetric", matrix=torch.full((10, 10), 0.1)),
    "subset": lambda d, seed: d.subset(train=100, test=50, seed=seed),
    "long_tail": lambda d, seed: d.long_tail(10, seed=seed),
    "shift": lambda d, seed: d.shift("gaussian_noise", 3, seed=seed),
    "rotate": lambda d, seed: d.shift("rotate", 3, seed=seed),
    "holdout": lambda d, seed: d.holdout(0.1, seed=seed),
}


@pytest.mark.parametrize("step", STEPS)
def test_same_seed_same_data_other_seed_other_data(digits: Dataset, step: str) -> None:
    one, again, other = STEPS[step](digits, 3), STEPS[step](digits, 3), STEPS[step](digits, 4)
    assert one.fingerprint == again.fingerprint
    assert len({digits.fingerprint, one.fingerprint, other.fingerprint}) == 3
    assert len(one.history) == 1
    assert "seed=3" in one.history[0]
    assert one.history != other.history
    different = [
        not torch.equal(getattr(getattr(one, part), what), getattr(getattr(other, part), what))
        for part in ("train", "test")
        for what in ("inputs", "labels")
        if getattr(getattr(one, part), what).shape == getattr(getattr(other, part), what).shape
    ]
    assert any(different)


def test_all_steps_have_fingerprints_of_their_own(digits: Dataset) -> None:
    everything = [step(digits, 3) for step in STEPS.values()] + [digits.normalise(), digits.rescale(-1, 1)]
    assert len({data.fingerprint for data in everything}) == len(everything)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_symmetric_noise_changes_exactly_that_many(digits: Dataset, rate: float) -> None:
    noisy = digits.holdout(0.2, seed=0).flip_labels(rate, seed=5)
    for split in (noisy.train, noisy.valid):
        assert split.clean_labels is not None
        assert int((split.labels != split.clean_labels).sum()) == round(rate * len(split))
    assert noisy.test.clean_labels is None
    assert torch.equal(noisy.test.labels, digits.test.labels)
    assert digits.train.clean_labels is None


def counts_of_change(clean: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(clean * classes + labels, minlength=classes**2).view(classes, classes)


def test_symmetric_noise_is_uniform_over_the_wrong_classes() -> None:
    noisy = many().flip_labels(0.5, seed=0).train
    assert noisy.clean_labels is not None
    table = counts_of_change(noisy.clean_labels, noisy.labels, 5)
    wrong = table[~torch.eye(5, dtype=torch.bool)]
    assert chisquare(wrong.numpy()).pvalue > 0.001


def test_symmetric_noise_with_the_true_class_leaves_some_right() -> None:
    noisy = many().flip_labels(0.5, seed=0, include_true=True).train
    assert noisy.clean_labels is not None
    changed = float((noisy.labels != noisy.clean_labels).double().mean())
    assert changed == pytest.approx(0.5 * 4 / 5, abs=0.01)


def test_pairwise_noise_goes_to_the_next_class() -> None:
    noisy = many().flip_labels(0.3, seed=0, kind="pairwise").train
    assert noisy.clean_labels is not None
    changed = noisy.labels != noisy.clean_labels
    assert int(changed.sum()) == 9000
    assert torch.equal(noisy.labels[changed], (noisy.clean_labels[changed] + 1) % 5)


def test_asymmetric_noise_follows_its_matrix() -> None:
    matrix = [[0.7, 0.3, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0.5, 0.25, 0.25], [0, 0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4, 0]]
    noisy = many().flip_labels(1.0, seed=0, kind="asymmetric", matrix=matrix)
    assert noisy.train.clean_labels is not None
    table = counts_of_change(noisy.train.clean_labels, noisy.train.labels, 5)
    expected = torch.tensor(matrix, dtype=torch.float64) * 6000
    assert bool((table[expected == 0] == 0).all())
    assert float(((table - expected).abs()).max()) < 4 * (6000 * 0.25) ** 0.5
    assert "0.25" in noisy.history[0]


def test_flipping_twice_keeps_the_first_truth(digits: Dataset) -> None:
    twice = digits.flip_labels(0.2, seed=0).flip_labels(0.2, seed=1)
    assert twice.train.clean_labels is not None
    assert torch.equal(twice.train.clean_labels, digits.train.labels)
    assert len(twice.history) == 2


def test_wrong_labels_do_not_come_first_in_a_training_with_the_same_seed(digits: Dataset) -> None:
    noisy = digits.flip_labels(0.4, seed=0).train
    assert noisy.clean_labels is not None
    order = torch.randperm(len(noisy), generator=torch.Generator().manual_seed(0))
    wrong_first_half = (noisy.labels != noisy.clean_labels)[order][: len(noisy) // 2].double().mean()
    assert float(wrong_first_half) == pytest.approx(0.4, abs=0.08)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rate": 1.2}, "from 0 to 1"),
        ({"rate": 0.2, "kind": "gaussian"}, "symmetric, pairwise or asymmetric"),
        ({"rate": 0.2, "kind": "asymmetric"}, "needs a matrix"),
        ({"rate": 0.2, "matrix": [[1.0]]}, "needs a matrix, and only"),
        ({"rate": 0.2, "kind": "pairwise", "include_true": True}, "belongs to symmetric"),
        ({"rate": 0.2, "kind": "asymmetric", "matrix": [[0.5, 0.5], [0.1, 0.8]]}, "rows that sum to 1"),
    ],
)
def test_nonsense_label_noise_is_refused(digits: Dataset, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(AssayError, match=sentence):
        digits.flip_labels(seed=0, **arguments)  # type: ignore[arg-type]


def test_numbers_have_no_labels_to_flip() -> None:
    for step in (lambda d: d.flip_labels(0.1, seed=0), lambda d: d.long_tail(10, seed=0)):
        with pytest.raises(AssayError, match="'diabetes' is a regression data set"):
            step(load("diabetes"))


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 997, 1437])
def test_stratified_drawing_is_in_proportion(digits: Dataset, count: int) -> None:
    labels = digits.train.labels
    drawn = stratified(labels, count, torch.Generator().manual_seed(0))
    assert len(drawn) == len(drawn.unique()) == count
    assert torch.equal(drawn, drawn.sort().values)
    share = torch.bincount(labels, minlength=10).double() * count / len(labels)
    assert float((torch.bincount(labels[drawn], minlength=10) - share).abs().max()) <= 1.0


def test_subset_keeps_order_and_refuses_too_many(digits: Dataset) -> None:
    small = digits.subset(train=100, seed=1)
    assert len(small.train) == 100
    assert len(small.test) == len(digits.test)
    rows = {tuple(row.flatten().tolist()): i for i, row in reversed(list(enumerate(digits.train.inputs)))}
    positions = [rows[tuple(row.flatten().tolist())] for row in small.train.inputs]
    assert positions == sorted(positions)
    with pytest.raises(AssayError, match="choose from 1 to 360"):
        digits.subset(test=361)


@pytest.mark.parametrize("ratio", [1.0, 5.0, 50.0])
def test_long_tail_is_exponential(ratio: float) -> None:
    data = load("mnist5k")
    counts = torch.bincount(data.long_tail(ratio, seed=0).train.labels, minlength=10)
    profile = 400 * ratio ** (-torch.arange(10, dtype=torch.float64) / 9)
    assert float((counts - profile).abs().max()) <= 0.5
    assert float(counts[0] / counts[-1]) == pytest.approx(ratio, rel=0.07)
    with pytest.raises(AssayError, match="1 or more"):
        data.long_tail(0.5, seed=0)


def test_holdout_moves_and_loses_nothing(digits: Dataset) -> None:
    held = digits.flip_labels(0.1, seed=0).holdout(0.25, seed=0)
    assert (len(held.train), len(held.valid)) == (1078, 359)
    both = torch.cat([held.train.inputs, held.valid.inputs]).flatten(1)
    assert torch.equal(both.sum(0), digits.train.inputs.flatten(1).sum(0))
    assert held.valid.clean_labels is not None
    again = held.holdout(0.5, seed=0)
    assert len(again.valid) == 359 + 539
    assert torch.equal(again.valid.inputs[:359], held.valid.inputs)
    for fraction in (0.0, 1.0, -0.1, 1e-6):
        with pytest.raises(AssayError, match="leaves one side empty"):
            digits.holdout(fraction, seed=0)


def test_holdout_of_texts() -> None:
    train = Split(tuple(f"text {i}" for i in range(20)), torch.arange(20) % 2)
    data = Dataset("t", "classification", train, train.take(torch.arange(0)), train, ("a", "b")).holdout(0.3, seed=0)
    assert sorted(data.train.inputs + data.valid.inputs) == sorted(train.inputs)
    assert len(data.holdout(0.5, seed=1).valid) == 13


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_normalise_measures_the_training_part(name: str) -> None:
    data = load(name)
    scaled = data.normalise()
    dims = [0, 2, 3] if name == "digits" else [0]
    assert torch.allclose(scaled.train.inputs.mean(dim=dims), torch.zeros(1), atol=1e-5)
    assert torch.allclose(scaled.train.inputs.std(dim=dims, correction=0), torch.ones(1), atol=1e-5)
    assert not torch.allclose(scaled.test.inputs.mean(dim=dims), torch.zeros(1), atol=1e-5)


def test_normalise_leaves_constant_columns_finite() -> None:
    train = Split(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), torch.tensor([0, 1]))
    data = Dataset("c", "classification", train, train.take(torch.arange(0)), train, ("a", "b")).normalise()
    assert torch.equal(data.train.inputs, torch.tensor([[0.0, -1.0], [0.0, 1.0]]))


def test_rescale(digits: Dataset) -> None:
    scaled = digits.rescale(-1, 1)
    assert torch.allclose(scaled.test.inputs, digits.test.inputs * 2 - 1, atol=1e-6)
    with pytest.raises(AssayError, match="smaller number first"):
        digits.rescale(1, -1)


def test_texts_have_no_scale() -> None:
    train = Split(("a", "b"), torch.tensor([0, 1]))
    data = Dataset("t", "classification", train, train, train, ("a", "b"))
    for step in (lambda: data.normalise(), lambda: data.rescale(0, 1), lambda: data.shift("blur", 1, seed=0)):
        with pytest.raises(AssayError, match="the inputs of 't' are texts"):
            step()
    with pytest.raises(AssayError, match="is for images"):
        load("wine").shift("blur", 1, seed=0)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_damage_grows_with_severity(name: str, kind: str) -> None:
    data = load(name).subset(test=100)
    damage = []
    for severity in range(1, 6):
        shifted = data.shift(kind, severity, seed=0)
        assert torch.equal(shifted.train.inputs, data.train.inputs)
        assert float(shifted.test.inputs.min()) >= 0
        assert float(shifted.test.inputs.max()) <= 1
        damage.append(float((shifted.test.inputs - data.test.inputs).square().mean()))
    assert damage[0] > 0
    assert damage == sorted(damage)
    assert len(set(damage)) == 5


def test_shift_means_the_same_on_rescaled_images(digits: Dataset) -> None:
    for kind in ("gaussian_noise", "contrast", "occlude"):
        plain = digits.shift(kind, 4, seed=2).rescale(-1, 1)
        scaled = digits.rescale(-1, 1).shift(kind, 4, seed=2)
        assert torch.allclose(plain.test.inputs, scaled.test.inputs, atol=1e-5)


def test_rotation_turns_about_the_centre() -> None:
    image = torch.zeros(1, 1, 9, 5)
    image[0, 0, 4, 2] = 1.0  # the centre stays where it is
    turned = CORRUPTIONS["rotate"][0](image, 90.0, torch.Generator().manual_seed(0))
    assert torch.allclose(turned, image, atol=1e-5)
    image[0, 0, 4, 2], image[0, 0, 2, 2] = 0.0, 1.0  # two pixels above it: goes two pixels to a side
    turned = CORRUPTIONS["rotate"][0](image, 90.0, torch.Generator().manual_seed(0))
    assert float(turned[0, 0, 4, [0, 4]].max()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("blur", 0), ("blur", 6)])
def test_unknown_shifts_are_refused(digits: Dataset, kind: str, severity: int) -> None:
    with pytest.raises(AssayError, match=r"choose one of|from 1 to 5"):
        digits.shift(kind, severity, seed=0)
