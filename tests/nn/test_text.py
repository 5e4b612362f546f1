"""The text front end: what becomes of words, and encoders that see the words of a text and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from assay.data import Dataset, Split
from assay.nn.text import BiLSTM, encode, piece_vectors, token_ids, vocabulary, words
from assay.recipe import Recipe
from assay.train.loop import fit

TEXTS = ("A good film, a good cast.", "Don't go!", "bad bad BAD", "")


def test_words() -> None:
    assert words("Don't stop: Größe 3.5 猫!") == ["don't", "stop", ":", "größe", "3", ".", "5", "猫", "!"]
    assert words("  \n ") == []


def test_vocabulary_is_ordered_by_frequency_then_alphabet() -> None:
    known = vocabulary(TEXTS)
    assert known == ("<pad>", "<unk>", "bad", "a", "good", "!", ",", ".", "cast", "don't", "film", "go")
    assert vocabulary(TEXTS, size=2) == ("<pad>", "<unk>", "bad", "a")
    assert vocabulary(reversed(TEXTS)) == known


def test_token_ids() -> None:
    known = vocabulary(TEXTS, size=3)  # bad, a, good
    assert token_ids(TEXTS, known, 5).tolist() == [[3, 4, 1, 1, 3], [1, 1, 1, 0, 0], [2, 2, 2, 0, 0], [0, 0, 0, 0, 0]]
    assert token_ids((), known, 5).shape == (0, 5)


def texts(split: tuple[str, ...]) -> Split:
    return Split(split, torch.arange(len(split)) % 2)


def reviews() -> Dataset:
    return Dataset("tiny", "classification", texts(TEXTS), texts(()), texts(("an unseen film",)), ("a", "b"))


def test_encoded_data_know_the_training_words_alone() -> None:
    data = encode(reviews(), length=4)
    assert data.features == vocabulary(TEXTS)
    assert isinstance(data.train.inputs, Tensor)
    assert data.train.inputs.equal(token_ids(TEXTS, vocabulary(TEXTS), 4))
    assert isinstance(data.test.inputs, Tensor)
    assert data.test.inputs.tolist() == [[1, 1, 10, 0]]
    assert data.history == ("encode(length=4, size=20000)",)
    assert data.fingerprint != encode(reviews(), length=5).fingerprint
    assert len(data.valid) == 0


def test_only_texts_can_be_encoded() -> None:
    data = encode(reviews())
    with pytest.raises(TypeError, match="only texts"):
        encode(data)


def test_neither_padding_nor_company_changes_the_answer() -> None:
    torch.manual_seed(0)
    model = BiLSTM(30, 3, dim=8, hidden=5).double().eval()
    ids = torch.randint(1, 30, (6, 12))
    for row, length in enumerate((12, 7, 1, 3, 0, 5)):
        ids[row, length:] = 0
    together = model(ids)
    assert together.isfinite().all()
    for row, length in enumerate((12, 7, 1, 3, 0, 5)):
        torch.testing.assert_close(model(ids[row : row + 1, : max(length, 1)])[0], together[row])
    torch.testing.assert_close(model(torch.nn.functional.pad(ids, (0, 9))), together)


def test_order_and_every_word_count() -> None:
    torch.manual_seed(0)
    model = BiLSTM(30, 3, dim=8, hidden=5).double().eval()
    ids = torch.arange(1, 9).unsqueeze(0)
    assert not torch.allclose(model(ids), model(ids.flip(1)))
    for place in range(8):
        changed = ids.clone()
        changed[0, place] = 20
        assert not torch.equal(model(ids), model(changed))


def test_bilstm_is_that_of_torch() -> None:
    """With equal weights the states are those of nn.LSTM(bidirectional=True) on packed sequences."""
    torch.manual_seed(0)
    model = BiLSTM(30, 2, dim=8, hidden=5).double().eval()
    peer = torch.nn.LSTM(8, 5, batch_first=True, bidirectional=True).double()
    for ours, suffix in ((model.from_left, ""), (model.from_right, "_reverse")):
        for name, weight in ours.named_parameters():
            getattr(peer, name + suffix).data.copy_(weight)
    lengths = torch.tensor([9, 4, 6])
    ids = torch.randint(1, 30, (3, 9)) * (torch.arange(9) < lengths.unsqueeze(1))
    packed = torch.nn.utils.rnn.pack_padded_sequence(model.embedding(ids), lengths, True, enforce_sorted=False)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(peer(packed)[0], batch_first=True)
    summary, weights = model.read(ids)
    torch.testing.assert_close((weights.unsqueeze(1) @ states).squeeze(1), summary)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert (weights[ids == 0] == 0).all()


def test_learns_from_words() -> None:
    good, bad = ("a fine warm film", "fine and warm"), ("a dull cold film", "dull and cold")
    train = tuple(f"{text} {n}" for n in range(10) for pair in zip(good, bad, strict=True) for text in pair)
    data = encode(replace(reviews(), train=texts(train), test=texts(("warm", "cold", "so fine", "so dull"))), length=8)
    recipe = Recipe(
        data,
        model=partial(BiLSTM, len(data.features), 2, dim=16),
        optimizer=partial(torch.optim.Adam, lr=5e-3),
        epochs=15,
        batch_size=8,
    )
    assert fit(recipe, seed=0).accuracy() == 1.0


def test_vectors_of_words_are_means_of_their_pieces() -> None:
    pieces = ("don", "'", "t", "un", "##believ", "##able", "##t", "un##", "unb")
    vectors = Split(torch.eye(9), torch.arange(9))
    table = Dataset("pieces", "vectors", vectors, vectors, vectors, features=pieces)
    found, there = piece_vectors(("<pad>", "don't", "Unbelievable", "unt", "unx", "猫"), table)
    assert there.tolist() == [False, True, False, True, False, False]
    torch.testing.assert_close(found[1], torch.eye(9)[[0, 1, 2]].mean(dim=0))
    # The longest piece is taken even where a shorter one would have led to an end: "unb" leaves "elievable".
    assert not found[[0, 2, 4, 5]].any()
    torch.testing.assert_close(found[3], torch.eye(9)[[3, 6]].mean(dim=0))
    shorter = replace(table, features=(*pieces[:8], "none"))
    torch.testing.assert_close(piece_vectors(("unbelievable",), shorter)[0][0], torch.eye(9)[[3, 4, 5]].mean(dim=0))
