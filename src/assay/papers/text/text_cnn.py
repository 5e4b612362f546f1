"""One convolution over word vectors: a strong and cheap classifier of sentences.

A sentence is a row of word vectors; filters that see three, four or five words in a row slide over it, and of each filter
only the largest response counts, so that it does not matter where in the sentence its phrase stands. One linear layer
reads these maxima. Most of what such a network must know is in the word vectors, and Kim compares four ways to come by them:
learn them from scratch (``rand``), take vectors that were learnt from much unlabelled text and leave them alone
(``static``), train these further (``nonstatic``), or look at both copies at once (``multichannel``).

Source: Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014. Equation numbers are the paper's. Its
published code lets stretches without any word take part in the maximum, where a filter answers with its bias; here only
stretches with at least one word count, and what a sentence gets depends neither on its padding nor on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.nn.text import encode, piece_vectors, token_ids, words
from assay.paper import Cost, Curve, Higher, Reported, claim
from assay.recipe import Recipe
from assay.train.hooks import BestEpoch, Hook, Run
from assay.train.loop import fit

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

Mode = Literal["rand", "static", "nonstatic", "multichannel"]
MODES = ("rand", "static", "nonstatic", "multichannel")


class TextCNN(nn.Module):
    """Word vectors, filters of several widths, the largest response of each, one linear layer.

    After every step of the optimizer call :meth:`constrain`, which bounds the weights of the last layer::

        optimizer.register_step_post_hook(lambda *_: model.constrain())

    Args:
        num_words: size of the vocabulary; word 0 is the padding and has the vector zero.
        num_classes: number of logits.
        dim: length of a word vector; that of ``vectors`` if there are any. Kim uses 300.
        widths: words that a filter sees.
        maps: filters of each width.
        mode: ``"rand"`` (vectors are random and trained), ``"static"`` (given and left alone), ``"nonstatic"`` (given and
            trained) or ``"multichannel"`` (both; every filter sees both copies and its two responses are added).
        vectors: (num_words, dim) given word vectors, for every mode but ``"rand"``.
        dropout: before the linear layer.
        max_norm: bound of the norm of a class's weights; ``None`` has no bound.

    Shape: token ids (B, L) int64, 0 behind the last word -> (B, num_classes).
    """

    given: Tensor | None  # (num_words, dim): the copy that is left alone

    def __init__(
        self,
        num_words: int,
        num_classes: int,
        dim: int = 300,
        widths: Sequence[int] = (3, 4, 5),
        maps: int = 100,
        mode: Mode = "rand",
        vectors: Tensor | None = None,
        dropout: float = 0.5,
        max_norm: float | None = 3.0,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
        if (vectors is None) != (mode == "rand"):
            raise ValueError(f"mode {mode!r} {'has no place for' if vectors is not None else 'needs'} given word vectors")
        if vectors is not None and (vectors.dim() != 2 or len(vectors) != num_words):
            raise ValueError(f"vectors are {tuple(vectors.shape)}; give one row for each of the {num_words} words")
        if vectors is not None:
            dim = vectors.shape[1]
            vectors = vectors.detach().float().clone()
            vectors[0] = 0
        self.mode, self.widths, self.max_norm = mode, tuple(widths), max_norm
        self.register_buffer("given", vectors if mode in ("static", "multichannel") else None)
        self.embedding = None if mode == "static" else nn.Embedding(num_words, dim, padding_idx=0)
        if self.embedding is not None:
            with torch.no_grad():
                if vectors is None:
                    self.embedding.weight[1:].uniform_(-0.25, 0.25)
                else:
                    self.embedding.weight.copy_(vectors)
        # Two-dimensional, on sentences as images one pixel high: the words' vectors then lie in memory as they are wanted.
        self.filters = nn.ModuleList(nn.Conv2d(dim, maps, (1, width)) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(maps * len(self.widths), num_classes)
        with torch.no_grad():  # the start that the published code has
            for parameter in (*self.filters.parameters(), *self.head.parameters()):
                parameter.zero_()
            for filters in self.filters:
                filters.weight.uniform_(-0.01, 0.01)  # type: ignore[operator]

    def pooled(self, ids: Tensor) -> Tensor:
        """The largest response of each filter in each sentence (eqs. 2 and 3): (B, L) -> (B, maps * widths)."""
        # All sentences in one row, with as much padding between two of them as the widest filter needs, and no more.
        gap = max(self.widths) - 1
        present = ids != 0
        present[:, 0] = True  # a sentence without any word is one word of padding
        keep = F.pad(present, (gap, 0), value=True)
        row = F.pad(F.pad(ids, (gap, 0))[keep], (0, gap))  # (S + gap,)
        lengths = keep.sum(dim=1)  # of the sentences with the gap before them
        starts = lengths.cumsum(0) - lengths
        image = self._vectors(row).t()[None, :, None, :]  # (1, dim, 1, S + gap), channels last in memory
        found = []
        for width, filters in zip(self.widths, self.filters, strict=True):
            seen = filters(image)[0, :, 0, : len(row) - gap].t()  # (S, maps): what is seen from each place on
            # From the first places of a gap on, a narrow filter sees padding only.
            blind = (starts.unsqueeze(1) + torch.arange(gap + 1 - width, device=ids.device)).flatten()
            seen = seen.index_fill(0, blind, -math.inf)
            found.append(torch.segment_reduce(seen.contiguous(), "max", lengths=lengths, axis=0, unsafe=True))
        return torch.cat(found, dim=1).relu()

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.pooled(ids)))
        return logits

    def _vectors(self, ids: Tensor) -> Tensor:
        """(S,) -> (S, dim)."""
        vectors = None if self.given is None else F.embedding(ids, self.given)
        if self.embedding is None:
            assert vectors is not None
            return vectors
        trained: Tensor = self.embedding(ids)
        # A filter is linear: the sum of its responses to two copies is its response to their sum.
        return trained if vectors is None else trained + vectors

    @torch.no_grad()
    def constrain(self) -> None:
        """Shorten the weights of every class whose norm is above ``max_norm`` to it (sec. 2.1)."""
        if self.max_norm is not None:
            norms = self.head.weight.norm(dim=1, keepdim=True)
            self.head.weight.mul_((self.max_norm / norms.clamp_min(1e-12)).clamp_max(1.0))


@dataclass(frozen=True)
class MaxNorm(Hook):
    """Bound the weights of a :class:`TextCNN`'s last layer after every step."""

    def after_step(self, run: Run) -> None:
        """Shorten what has become too long."""
        run.model.constrain()  # type: ignore[operator]


def filled(vectors: Tensor, found: Tensor, generator: torch.Generator) -> Tensor:
    """Word vectors in which words without one get a random vector, as variable as the others (sec. 3.1).

    Args:
        vectors: (V, D) given vectors; rows of words that have none are not looked at.
        found: (V,) bool, which words have one.
        generator: draws the vectors that are missing.
    """
    spread = vectors[found].std().item() if found.any() else 0.25 / math.sqrt(3)
    drawn = (torch.rand(vectors.shape, generator=generator) * 2 - 1) * (spread * math.sqrt(3))
    return torch.where(found.unsqueeze(1), vectors, drawn)


def published(data: Dataset, mode: Mode = "rand", vectors: Tensor | None = None, dim: int = 300, epochs: int = 25) -> Recipe:
    """Train as in the paper: Adadelta, batches of 50, dropout, bounded norms, the epoch that is best on ``valid``.

    Args:
        data: token ids (:func:`assay.nn.text.encode`) with some held-out examples in ``valid``.
        mode: how the network comes by its word vectors; see :class:`TextCNN`.
        vectors: (words, D) given vectors, one row for each word of ``data.features``.
        dim: length of a word vector in mode ``"rand"``.
        epochs: passes over the training set.
    """
    return Recipe(
        data,
        model=partial(TextCNN, len(data.features), data.num_classes, dim=dim, mode=mode, vectors=vectors),
        optimizer=partial(torch.optim.Adadelta, lr=1.0, rho=0.95, eps=1e-6),
        hooks=(MaxNorm(), BestEpoch()),
        epochs=epochs,
        batch_size=50,
        watch=("valid",),
    )


class TextCNNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The network as a scikit-learn classifier of texts, trained as in the paper.

    Args:
        vectors: word -> vector, as a dictionary or gensim's ``KeyedVectors``; ``None`` learns vectors from scratch.
        mode: ``"rand"``, ``"static"``, ``"nonstatic"`` or ``"multichannel"``; ``None`` takes ``"nonstatic"`` if there are
            ``vectors``, else ``"rand"``. See :class:`TextCNN`.
        dim: length of a word vector in mode ``"rand"``.
        epochs: passes over the training texts; those of the best epoch on a held-out tenth are kept.
        max_words: words of a text that are read.
        device: where to train.
        random_state: seed of the held-out tenth, the initial weights, the order of the texts and dropout.

    Attributes:
        classes_: (K,) labels.
        vocabulary_: the words that have a vector; all others are one unknown word.
        model_: the trained :class:`TextCNN`, in evaluation mode.
        history_: losses and accuracies of every epoch.
    """

    def __init__(
        self,
        vectors: Mapping[str, ArrayLike] | None = None,
        mode: Mode | None = None,
        dim: int = 300,
        epochs: int = 25,
        max_words: int = 256,
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.vectors = vectors
        self.mode = mode
        self.dim = dim
        self.epochs = epochs
        self.max_words = max_words
        self.device = device
        self.random_state = random_state

    def fit(self, X: Sequence[str], y: ArrayLike) -> TextCNNClassifier:
        """Train on N texts ``X`` with labels ``y`` (N,).

        Raises:
            ValueError: ``X`` is one string or holds something else than strings, too few texts, one class only, or a mode
                that does not go with ``vectors``.
        """
        texts, labels = _texts(X), column_or_1d(y, warn=True)
        check_classification_targets(labels)
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts but {len(labels)} labels")
        if len(texts) < 10:
            raise ValueError(f"{len(texts)} texts are too few: a tenth is held out to choose the epoch")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class only; there is nothing to tell apart")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        whole = Split(tuple(texts), torch.from_numpy(codes))
        none = whole.take(torch.arange(0))
        data = Dataset("X", "classification", whole, none, none, classes=tuple(map(str, self.classes_))).holdout(0.1, seed)
        longest = max(len(words(text)) for text in texts)
        data = encode(data, length=max(1, min(self.max_words, longest)), size=len(texts) * self.max_words)
        given = None if self.vectors is None else _looked_up(data.features, self.vectors, seed)
        mode = self.mode or ("rand" if given is None else "nonstatic")
        trained = fit(published(data, mode, given, self.dim, self.epochs), seed, self.device)
        self.vocabulary_, self._length = data.features, data.input_shape[0]
        self.model_, self.history_ = trained.model, trained.history
        return self

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of the classes: (N, K)."""
        check_is_fitted(self)
        ids = token_ids(_texts(X), self.vocabulary_, self._length)
        with torch.inference_mode():
            parts = [self.model_(part.to(self.device)).softmax(dim=1).cpu() for part in ids.split(512)]
        probabilities: NDArray[np.float32] = torch.cat(parts).numpy()
        return probabilities

    def predict(self, X: Sequence[str]) -> NDArray[Any]:
        """Labels (N,)."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


def _texts(X: Iterable[str]) -> list[str]:
    texts = [X] if isinstance(X, str) else list(X)
    if isinstance(X, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts must be a sequence of strings")
    return texts


def _looked_up(known: Sequence[str], vectors: Mapping[str, ArrayLike], seed: int) -> Tensor:
    """(len(known), D) vectors out of a mapping."""
    rows = {number: np.asarray(vectors[word], dtype=np.float32) for number, word in enumerate(known) if word in vectors}
    if not rows:
        raise ValueError("vectors has none of the words of the training texts; it should map lower-case words to vectors")
    found = torch.zeros(len(known), dtype=torch.bool)
    found[list(rows)] = True
    table = torch.zeros(len(known), len(next(iter(rows.values()))))
    table[found] = torch.from_numpy(np.stack([rows[number] for number in sorted(rows)]))
    return filled(table, found, torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------- claims

_SETS = {"MR": "mr", "TREC": "trec"}
_NEEDS = (*_SETS.values(), "minilm-pieces")
_SPREAD = 0.25 / math.sqrt(3)  # of uniform numbers between -0.25 and 0.25, with which the mode "rand" starts
_SCALED_DOWN = (
    "MR (one fixed split instead of ten folds) and TREC instead of seven sets, 2,000 training sentences of each; 8 epochs of "
    "Adam with rate 0.001 instead of 25 of Adadelta, for every mode. Word vectors are means of the input embeddings of MiniLM "
    "(384 numbers, centred, with the spread of the random ones) instead of word2vec. The vocabulary is that of the training "
    "texts, all in lower case. Linear models of TF-IDF and of the mean word vector, their penalty chosen on the held-out tenth "
    "that chooses a network's epoch, stand beside."
)
_REPORTED = [
    Reported(f"{name}: test accuracy", dict(zip(MODES, accuracies, strict=True)), where="Table 2")
    for name, accuracies in {"MR": (0.761, 0.810, 0.815, 0.811), "TREC": (0.912, 0.928, 0.936, 0.922)}.items()
]


def _data(lab: Lab, name: str) -> Dataset:
    """Sentences, a tenth of the training set held out to choose by."""
    data = lab.data(_SETS[name])
    data = data.subset(train=lab.pick(smoke=200, laptop=2_000, full=len(data.train)), seed=lab.seed)
    return data.subset(test=50).holdout(0.1, seed=lab.seed) if lab.scale == "smoke" else data.holdout(0.1, seed=lab.seed)


def pretrained(known: Sequence[str], table: Dataset, seed: int) -> Tensor:
    """(len(known), D) vectors of words out of a table of pieces, centred, as far apart as the random ones are."""
    vectors, found = piece_vectors(known, table)
    vectors = vectors - vectors[found].mean(dim=0)
    return filled(vectors / vectors[found].std() * _SPREAD, found, torch.Generator().manual_seed(seed))


def _network(lab: Lab, data: Dataset, mode: Mode, vectors: Tensor) -> Trained:
    epochs = lab.pick(smoke=1, laptop=8, full=25)
    recipe = published(data, mode, None if mode == "rand" else vectors, dim=vectors.shape[1], epochs=epochs)
    if lab.scale != "full":
        recipe = recipe.replace(optimizer=partial(torch.optim.Adam, lr=1e-3))
    return lab.train(recipe.replace(watch=("valid", "test")))


def _linear(data: Dataset, train: Any, valid: Any, test: Any) -> float:
    """Test accuracy of logistic regression on these features, its penalty chosen on ``valid``."""
    from sklearn.linear_model import LogisticRegression

    labels, held, truth = (split.labels.numpy() for split in (data.train, data.valid, data.test))
    models = [LogisticRegression(C=c, max_iter=2000).fit(train, labels) for c in (0.1, 1.0, 10.0, 100.0)]
    return float(max(models, key=lambda model: float(model.score(valid, held))).score(test, truth))


def _controls(data: Dataset, ids: Dataset, vectors: Tensor) -> dict[str, float]:
    """What a sceptic would use: linear models of word counts, and of the mean of the same word vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, tokenizer=words, token_pattern=None)
    counted = [tfidf.fit_transform(data.train.inputs), *(tfidf.transform(split.inputs) for split in (data.valid, data.test))]
    means = []
    for split in (ids.train, ids.valid, ids.test):
        assert isinstance(split.inputs, Tensor)
        present = (split.inputs != 0).sum(dim=1, keepdim=True).clamp_min(1)
        means.append((F.embedding_bag(split.inputs, vectors, mode="sum") / present / _SPREAD).numpy())
    return {
        "TF-IDF, logistic regression": _linear(data, *counted),
        "mean vector, logistic regression": _linear(data, *means),
    }


def _compare(lab: Lab, modes: Sequence[Mode]) -> dict[str, float | Curve]:
    """Mean test accuracy over the sets: of each mode, epoch by epoch (the chosen epochs count), and of the controls."""
    reached: dict[str, list[float]] = {}
    lines: dict[Mode, list[list[float]]] = {mode: [] for mode in modes}
    costs: dict[Mode, list[Cost]] = {mode: [] for mode in modes}
    for name in _SETS:
        data = _data(lab, name)
        ids = encode(data)
        vectors = pretrained(ids.features, lab.data("minilm-pieces"), lab.seed)
        for mode in modes:
            trained = _network(lab, ids, mode, vectors)
            reached.setdefault(mode, []).append(float(trained.accuracy()))
            lines[mode].append(trained.history["test_accuracy"])
            costs[mode].append(trained.cost)
        for arm, accuracy in _controls(data, ids, vectors).items():
            reached.setdefault(arm, []).append(accuracy)
    means: dict[str, float | Curve] = {arm: sum(accuracies) / len(accuracies) for arm, accuracies in reached.items()}
    for mode in modes:
        seconds, parameters = sum(c.seconds or 0.0 for c in costs[mode]), max(c.parameters or 0 for c in costs[mode])
        line = torch.tensor(lines[mode]).mean(dim=0).tolist()
        means[mode] = Curve(line, value=sum(reached[mode]) / len(_SETS), cost=Cost(seconds, parameters), y_name="test accuracy")
    return means


@claim(
    "On the same network and budget, averaged over reviews (MR) and questions (TREC), word vectors that were trained before and "
    "are left alone give a test accuracy more than one point above that of random vectors that are trained.",
    expect=Higher("static", than="rand", by=0.01),
    reported=_REPORTED,
    scaled_down=_SCALED_DOWN,
    unit="test accuracy, mean of MR and TREC",
    needs=_NEEDS,
)
def pretrained_vectors_help(lab: Lab) -> Measured:
    return _compare(lab, ("static", "rand"))


@claim(
    "Training such vectors further gives a higher test accuracy still, averaged over MR and TREC.",
    expect=Higher("nonstatic", than="static"),
    reported=_REPORTED,
    scaled_down=_SCALED_DOWN,
    unit="test accuracy, mean of MR and TREC",
    needs=_NEEDS,
)
def tuning_vectors_helps(lab: Lab) -> Measured:
    return _compare(lab, ("nonstatic", "static"))
