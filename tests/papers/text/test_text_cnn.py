"""TextCNN: against window by window, against padded Conv1d as it is published, the four modes, and what a user may do wrong."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data.dataset import Dataset, Split
from assay.data.registry import find, is_here
from assay.lab import Lab
from assay.nn.text import encode
from assay.paper import Claim, Curve, Higher
from assay.papers.text.text_cnn import (
    MODES,
    TextCNN,
    TextCNNClassifier,
    filled,
    pretrained_vectors_help,
    published,
    tuning_vectors_helps,
)
from assay.train.loop import fit

WORDS = 30
LENGTHS = (12, 7, 1, 3, 0, 5)


def network(**settings: object) -> TextCNN:
    """Small, in double precision, with weights and biases that are not nothing."""
    torch.manual_seed(0)
    settings = {"dim": 8, "maps": 5, **settings}
    if settings.get("mode", "rand") != "rand":
        settings.setdefault("vectors", torch.randn(WORDS, 8))
    model = TextCNN(WORDS, 3, **settings).double().eval()
    for parameter in (*model.filters.parameters(), *model.head.parameters()):
        nn.init.normal_(parameter)
    return model


def sentences() -> Tensor:
    ids = torch.randint(1, WORDS, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
    return ids


def window_by_window(model: TextCNN, ids: Tensor) -> Tensor:
    """One sentence, eqs. 1 to 3 with loops: every window that holds a word or more, zeros where there is none."""
    length = max(1, int((ids != 0).sum()))
    vectors = model.embedding.weight[ids[:length]]
    pooled = []
    for width, filters in zip(model.widths, model.filters, strict=True):
        padded = F.pad(vectors, (0, 0, width - 1, width - 1))
        for kernel, bias in zip(filters.weight[:, :, 0], filters.bias, strict=True):  # (dim, width)
            responses = [(kernel.T * padded[at : at + width]).sum() + bias for at in range(length + width - 1)]
            pooled.append(max(0.0, max(response.item() for response in responses)))
    return model.head.weight @ torch.tensor(pooled, dtype=torch.float64) + model.head.bias


@pytest.mark.parametrize("widths", [(3, 4, 5), (1,), (2, 6)])
def test_every_window_with_a_word_counts_and_no_other(widths: tuple[int, ...]) -> None:
    model, ids = network(widths=widths, maps=12), sentences()
    expected = torch.stack([window_by_window(model, row) for row in ids])
    torch.testing.assert_close(model(ids), expected)


def test_one_filter_of_width_one_takes_a_maximum() -> None:
    """A filter that is a unit vector takes the largest component over the sentence."""
    model = network(widths=(1,), maps=1)
    nn.init.zeros_(model.filters[0].weight)
    nn.init.zeros_(model.filters[0].bias)
    model.filters[0].weight.data[0, 3] = 1
    ids = sentences()[:2]
    expected = torch.stack([model.embedding.weight[row[row != 0], 3].max().relu() for row in ids])
    torch.testing.assert_close(model.pooled(ids).squeeze(1), expected)


def test_agrees_with_a_padded_conv1d() -> None:
    """Without biases the published way, four zeros on both sides and zeros up to the longest, gives the same."""
    model, ids = network(), sentences()
    for filters in model.filters:
        nn.init.zeros_(filters.bias)
    image = model.embedding(F.pad(ids, (4, 4))).transpose(1, 2)  # (B, dim, L)
    pooled = [F.conv1d(image, filters.weight.squeeze(2)).amax(dim=2).relu() for filters in model.filters]
    torch.testing.assert_close(model(ids), model.head(torch.cat(pooled, dim=1)))


@pytest.mark.parametrize("mode", MODES)
def test_neither_padding_nor_company_changes_the_answer(mode: str) -> None:
    model, ids = network(mode=mode), sentences()
    together = model(ids)
    assert together.isfinite().all()
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(model(ids[row : row + 1, : max(length, 1)])[0], together[row])
    torch.testing.assert_close(model(F.pad(ids, (0, 9))), together)


def test_order_and_every_word_count() -> None:
    model, ids = network(maps=50), torch.arange(1, 9).unsqueeze(0)
    assert not torch.allclose(model(ids), model(ids.flip(1)))
    for place in range(8):
        changed = ids.clone()
        changed[0, place] = 20
        assert not torch.equal(model(ids), model(changed))


def test_numbers_of_parameters() -> None:
    model = TextCNN(1_000, 2, vectors=torch.zeros(1_000, 300), mode="static")
    assert sum(p.numel() for p in model.filters.parameters()) == 360_300
    assert sum(p.numel() for p in model.head.parameters()) == 602
    trained = {mode: sum(p.numel() for p in network(mode=mode).parameters()) for mode in MODES}
    assert trained["rand"] == trained["nonstatic"] == trained["multichannel"] == trained["static"] + WORDS * 8


def test_two_channels_are_one_with_the_sum() -> None:
    """Filters are linear: their responses to two copies add up to the response to the sum, gradients too."""
    both, ids = network(mode="multichannel"), sentences()
    one = network(mode="nonstatic")
    one.load_state_dict({name: value for name, value in both.state_dict().items() if name != "given"})
    torch.nn.init.normal_(both.embedding.weight)
    one.embedding.weight.data = both.embedding.weight.detach() + both.given
    for model in (both, one):
        F.cross_entropy(model(ids), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    torch.testing.assert_close(both(ids), one(ids))
    for ours, theirs in zip(both.parameters(), one.parameters(), strict=True):
        expected = theirs.grad.clone()
        if theirs is one.embedding.weight:
            expected[0] = 0
        torch.testing.assert_close(ours.grad, expected)
    untrained, static = network(mode="multichannel"), network(mode="static")
    static.load_state_dict({name: value for name, value in untrained.state_dict().items() if name in static.state_dict()})
    for filters in static.filters:
        filters.weight.data *= 2  # two equal copies are one seen through filters twice as strong
    torch.testing.assert_close(untrained(ids), static(ids))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_trained(mode: str) -> None:
    model, ids = network(mode=mode), sentences().clamp(max=9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adadelta(model.parameters())
    optimizer.register_step_post_hook(lambda *_: model.constrain())
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(ids), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        optimizer.step()
    after = model.state_dict()
    if mode in ("static", "multichannel"):
        assert torch.equal(after["given"], before["given"])
    if mode != "static":
        moved = (after["embedding.weight"] != before["embedding.weight"]).any(dim=1)
        assert moved.sum() >= 4
        assert set(moved.nonzero().flatten().tolist()) <= set(ids.flatten().tolist())
        assert (after["embedding.weight"][0] == 0).all()
    assert not torch.equal(after["filters.0.weight"], before["filters.0.weight"])
    assert (after["head.weight"].norm(dim=1) <= 3 + 1e-9).all()


def test_long_weights_are_shortened_to_the_bound_and_short_ones_left() -> None:
    model = network(max_norm=2.0)
    model.head.weight.data[0] *= 4 / model.head.weight.data[0].norm()
    model.head.weight.data[1] *= 1 / model.head.weight.data[1].norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.constrain()
    torch.testing.assert_close(model.head.weight[0], before["head.weight"][0] / 2)
    torch.testing.assert_close(model.head.weight[1], before["head.weight"][1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "head.weight")
    free = network(max_norm=None)
    free.head.weight.data *= 100
    free.constrain()
    assert free.head.weight.norm() > 100


def test_missing_vectors_are_as_variable_as_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, found = 0.3 * torch.randn(400, 50, generator=generator), torch.arange(400) < 200
    table = filled(vectors, found, generator)
    assert torch.equal(table[:200], vectors[:200])
    assert abs(table[200:].std() / table[:200].std() - 1) < 0.02
    assert table[200:].abs().max() <= table[:200].std() * math.sqrt(3) + 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "frozen"}, "choose one of rand, static"),
        ({"mode": "static"}, "needs given word vectors"),
        ({"mode": "rand", "vectors": torch.zeros(WORDS, 8)}, "has no place for"),
        ({"mode": "static", "vectors": torch.zeros(WORDS - 1, 8)}, "one row for each"),
    ],
)
def test_says_what_is_wrong(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextCNN(WORDS, 3, **settings)


GOOD, BAD = ("a fine warm film", "warm and fine", "so very warm"), ("a dull cold film", "cold and dull", "so very cold")
TEXTS = [f"{text} {n}" for n in range(12) for pair in zip(GOOD, BAD, strict=True) for text in pair]
LABELS = ["good", "bad"] * 36


def test_published_recipe_bounds_the_norms_and_keeps_the_best_epoch() -> None:
    codes = torch.tensor([label == "good" for label in LABELS]).long()
    split = Split(tuple(TEXTS), codes)
    data = encode(Dataset("films", "classification", split, split.take(torch.arange(0)), split, ("bad", "good")).holdout(0.2, 0))
    recipe = published(data, dim=12, epochs=6)
    tight = recipe.replace(model=partial(TextCNN, len(data.features), 2, dim=12, max_norm=0.05))
    trained = fit(tight, seed=0)
    assert (trained.model.head.weight.norm(dim=1) <= 0.05 + 1e-6).all()
    assert trained.accuracy("valid") == max(trained.history["valid_accuracy"])


def test_classifier() -> None:
    model = TextCNNClassifier(dim=16, epochs=12, random_state=0).fit(TEXTS, LABELS)
    assert model.predict(["warm", "cold and so dull", "fine"]).tolist() == ["good", "bad", "good"]
    np.testing.assert_allclose(model.predict_proba(TEXTS[:3]).sum(axis=1), 1, rtol=1e-5)
    assert model.score(TEXTS, LABELS) > 0.95
    again = clone(model).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert model.predict([""]).shape == (1,)


def test_classifier_looks_words_up() -> None:
    generator = np.random.default_rng(0)
    vectors = {word: generator.normal(size=16) for word in ("warm", "cold", "fine", "dull", "never", "said")}
    model = TextCNNClassifier(vectors, mode="static", epochs=12, random_state=0).fit(TEXTS, LABELS)
    assert model.predict(["so warm", "so cold"]).tolist() == ["good", "bad"]
    for word in ("warm", "cold", "fine", "dull"):
        np.testing.assert_array_equal(model.model_.given[model.vocabulary_.index(word)], np.float32(vectors[word]))
    assert model.model_.given[model.vocabulary_.index("film")].abs().max() > 0
    assert "never" not in model.vocabulary_
    assert TextCNNClassifier(vectors, epochs=1, random_state=0).fit(TEXTS, LABELS).model_.mode == "nonstatic"


@pytest.mark.parametrize(
    ("settings", "texts", "labels", "message"),
    [
        ({}, "one text", ["a"], "sequence of strings"),
        ({}, [b"bytes"], ["a"], "sequence of strings"),
        ({}, TEXTS, LABELS[:5], "72 texts but 5 labels"),
        ({}, TEXTS[:4], LABELS[:4], "too few"),
        ({}, TEXTS, ["a"] * 72, "one class only"),
        ({"vectors": {"unheard": [0.0]}}, TEXTS, LABELS, "none of the words"),
        ({"mode": "static"}, TEXTS, LABELS, "needs given word vectors"),
    ],
)
def test_classifier_says_what_is_wrong(settings: dict, texts: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextCNNClassifier(epochs=1, **settings).fit(texts, labels)


@pytest.mark.parametrize("claim", [pretrained_vectors_help, tuning_vectors_helps], ids=lambda claim: claim.name)
def test_claims_measure_what_they_expect(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(scale="smoke")
    if not all(is_here(find(name)) for name in claim.needs) and os.environ.get("ASSAY_TEST_PIP") != "1":
        pytest.skip("its data are not in the cache, and ASSAY_TEST_PIP=1 is not set: one of them takes 84 MB")
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: tmp_path)
    measured = claim(lab)
    for expected in claim.expect:
        assert isinstance(expected, Higher)
        assert {expected.arm, expected.than} <= measured.keys()
    for value in measured.values():
        assert 0 <= (value.number if isinstance(value, Curve) else value) <= 1
