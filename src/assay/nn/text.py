"""A text front end for small networks: words, a vocabulary that knows the training texts alone, vectors of words, an encoder.

    data = encode(lab.data("mr"))                                   # token ids (N, L), 0 for padding
    Recipe(data, model=partial(BiLSTM, len(data.features), data.num_classes))

The encoder looks at the words of a text only: what it returns for it depends neither on its padding nor on the other
texts of the batch. Convolutions over words are a paper's: :class:`assay.papers.text.text_cnn.TextCNN`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from assay.data import Dataset, Split

#: The first two ids of every vocabulary: what fills up a short text, and what stands for a word that was never seen.
SPECIAL = ("<pad>", "<unk>")

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks: ``"Don't stop!"`` gives ``["don't", "stop", "!"]``."""
    return _WORD.findall(text.lower())


def vocabulary(texts: Iterable[str], size: int = 20_000) -> tuple[str, ...]:
    """The ``size`` most frequent words (equally frequent ones in alphabetical order), behind :data:`SPECIAL`."""
    counts = Counter(word for text in texts for word in words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (*SPECIAL, *ranked[:size])


def token_ids(texts: Sequence[str], known: Sequence[str], length: int) -> Tensor:
    """Texts as positions in the vocabulary ``known``: (N, length) int64.

    Longer texts are cut, shorter ones filled up with 0; words outside the vocabulary are 1.
    """
    place = {word: number for number, word in enumerate(known)}
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        found = [place.get(word, 1) for word in words(text)[:length]]
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
    return ids


def encode(data: Dataset, length: int = 64, size: int = 20_000) -> Dataset:
    """A data set of texts as token ids; the vocabulary is that of its training split and stands in ``features``.

    Args:
        data: a data set whose inputs are strings.
        length: words of a text that are kept.
        size: words of the vocabulary, the two of :data:`SPECIAL` not counted.
    """
    known = vocabulary(_texts(data.train), size)

    def ids(split: Split) -> Split:
        return replace(split, inputs=token_ids(_texts(split), known, length))

    return replace(
        data,
        train=ids(data.train),
        valid=ids(data.valid),
        test=ids(data.test),
        features=known,
        history=(*data.history, f"encode(length={length}, size={size})"),
    )


def cooccurrence_vectors(ids: Tensor, count: int, dim: int = 50, window: int = 4) -> Tensor:
    """Vectors of words out of the texts alone, without labels: words that keep the same company get similar ones.

    The positive pointwise mutual information of words within ``window`` places of each other, decomposed to its ``dim`` largest
    directions, each weighted by the root of its singular value (Levy, Goldberg and Dagan 2015). Scaled to a mean square of 1.

    Args:
        ids: (N, L) int64 word ids, 0 for padding.
        count: words of the vocabulary.
        dim: length of a vector; fewer if there are not so many words.
        window: places to either side that count as company.

    Returns:
        (count, dim), zeros for padding and for words without company.
    """
    from scipy.sparse import coo_matrix
    from sklearn.utils.extmath import randomized_svd

    left, right = [], []
    for step in range(1, min(window, ids.shape[1] - 1) + 1):
        one, other = ids[:, :-step].flatten(), ids[:, step:].flatten()
        both = (one != 0) & (other != 0)
        left += [one[both], other[both]]
        right += [other[both], one[both]]
    vectors = torch.zeros(count, dim)
    rows, columns = (torch.cat(part).numpy() if part else np.empty(0, dtype=np.int64) for part in (left, right))
    pairs = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr().tocoo()
    often = np.asarray(pairs.sum(axis=1)).ravel()
    if pairs.nnz:
        gain = np.log(pairs.data * often.sum() / (often[pairs.row] * often[pairs.col]))
        table = coo_matrix((gain.clip(min=0), (pairs.row, pairs.col)), shape=pairs.shape).tocsr()
        size = min(dim, int((often > 0).sum()) - 1)
        if size > 0 and table.max() > 0:
            places, weights, _ = randomized_svd(table, size, random_state=0)
            found = torch.from_numpy(np.ascontiguousarray(places * np.sqrt(weights))).float()
            vectors[:, :size] = found / found[torch.from_numpy(often > 0)].square().mean().sqrt().clamp_min(1e-12)
    vectors[torch.from_numpy(often == 0)] = 0
    return vectors


def piece_vectors(known: Sequence[str], table: Dataset) -> tuple[Tensor, Tensor]:
    """Vectors of whole words out of a table of word pieces: a word's is the mean of its pieces'.

    Pieces are found as BERT finds them: a word falls apart at punctuation, and of what is left the longest piece of the
    table is taken from the left again and again; ``##`` marks pieces inside a word.

    Args:
        known: words.
        table: a data set of vectors (``lab.data("minilm-pieces")``): ``features`` names the pieces.

    Returns:
        vectors (len(known), D), zero where a word cannot be put together, and which could be, (len(known),) bool.
    """
    assert isinstance(table.train.inputs, Tensor)
    place = {piece: number for number, piece in enumerate(table.features)}
    vectors = torch.zeros(len(known), table.train.inputs.shape[1])
    found = torch.zeros(len(known), dtype=torch.bool)
    for number, word in enumerate(known):
        pieces = [place.get(piece) for part in _PART.findall(word.lower()) for piece in _pieces(part, place)]
        rows = [row for row in pieces if row is not None]
        if rows and len(rows) == len(pieces) and word not in SPECIAL:
            vectors[number] = table.train.inputs[rows].mean(dim=0)
            found[number] = True
    return vectors, found


_PART = re.compile(r"[^\W_]+|[^\w\s]|_")


def _pieces(part: str, place: Mapping[str, int]) -> list[str]:
    pieces: list[str] = []
    while part:
        mark = "##" if pieces else ""
        ends = [end for end in range(len(part), 0, -1) if mark + part[:end] in place]
        if not ends:
            return ["[no such piece]"]
        pieces.append(mark + part[: ends[0]])
        part = part[ends[0] :]
    return pieces


def _texts(split: Split) -> tuple[str, ...]:
    if isinstance(split.inputs, Tensor):
        raise TypeError("only texts can be encoded, and these inputs are a tensor")
    return split.inputs


def _present(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the columns in which the whole batch is padding; also say where words stand: two (B, L).

    A text without any word keeps its first place, so that there is something to look at.
    """
    present = ids != 0
    present[:, 0] = True
    longest = int(present.sum(dim=1).max())
    return ids[:, :longest], present[:, :longest]


def _word_vectors(words: int, dim: int) -> nn.Embedding:
    """Random word vectors as small as pre-trained ones (Kim 2014): torch's own start, 7 times as large, learns slower."""
    embedding = nn.Embedding(words, dim, padding_idx=0)
    nn.init.uniform_(embedding.weight[1:], -0.25, 0.25)
    return embedding


class Attention(nn.Module):
    """Additive attention that sums a sequence up: a weighted mean of its states.

    Args:
        features: length of a state.

    Shape: states (B, L, D) and where words stand (B, L) bool -> (B, D) mean state, (B, L) weights that sum to 1.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, features)
        self.score = nn.Linear(features, 1, bias=False)
        self.normalise = nn.Softmax(dim=-1)

    def forward(self, states: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(torch.tanh(self.hidden(states))).squeeze(-1)  # (B, L)
        weights = self.normalise(scores.masked_fill(~present, float("-inf")))
        return (weights.unsqueeze(1) @ states).squeeze(1), weights


class BiLSTM(nn.Module):
    """Two LSTMs read the text from both ends, attention sums their states up, one linear layer.

    Args:
        words: size of the vocabulary.
        num_classes: number of logits.
        dim: length of a word vector, learnt from random ones.
        hidden: units of each LSTM.
        dropout: of the word vectors and before the linear layer.

    Shape: token ids (B, L) int64 with 0 for padding -> (B, num_classes).
    """

    def __init__(self, words: int, num_classes: int, dim: int = 100, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = _word_vectors(words, dim)
        self.from_left = nn.LSTM(dim, hidden, batch_first=True)
        self.from_right = nn.LSTM(dim, hidden, batch_first=True)
        self.attention = Attention(2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, num_classes)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The summed-up text (B, 2 hidden) and the attention's weights (B, l), l <= L words of the longest text."""
        ids, present = _present(ids)
        vectors = self.dropout(self.embedding(ids))  # (B, l, dim)
        # Each text is turned around within its own length, so that the second LSTM does not start in the padding.
        place = torch.arange(ids.shape[1], device=ids.device)
        turned = torch.where(present, present.sum(dim=1, keepdim=True) - 1 - place, place).unsqueeze(-1)  # (B, l, 1)
        left, _ = self.from_left(vectors)
        right, _ = self.from_right(vectors.gather(1, turned.expand_as(vectors)))
        states = torch.cat([left, right.gather(1, turned.expand_as(right))], dim=2)
        summary, weights = self.attention(states, present)
        return summary, weights

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.read(ids)[0]))
        return logits
