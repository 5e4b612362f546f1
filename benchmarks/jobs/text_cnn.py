"""Training a TextCNN on film reviews: assay against skorch and a bare loop with Conv1d on padded sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from assay.data import Dataset, load
from assay.nn.text import encode

JOB = "training: TextCNN from random vectors, 2,000 sentences of MR, 2 epochs, batch 50"
WANTED = {"bare_loop": 1.5, "skorch": 1.5}
EPOCHS, BATCH, RATE = 2, 50, 1e-3


def _data() -> Dataset:
    return encode(load("mr").subset(train=2_000, seed=0))


def _tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    assert isinstance(data.train.inputs, Tensor)
    assert isinstance(data.test.inputs, Tensor)
    # As published: four zeros on both sides, and zeros up to the longest sentence of the set.
    return F.pad(data.train.inputs, (4, 4)), F.pad(data.test.inputs, (4, 4))


class Padded(nn.Module):
    """The network as people write it."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 300, padding_idx=0)
        nn.init.uniform_(self.embedding.weight[1:], -0.25, 0.25)
        self.filters = nn.ModuleList(nn.Conv1d(300, 100, width) for width in (3, 4, 5))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(300, 2)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.embedding(ids).transpose(1, 2)
        pooled = [F.relu(filters(vectors)).amax(dim=2) for filters in self.filters]
        logits: Tensor = self.head(self.dropout(torch.cat(pooled, dim=1)))
        return logits


def ours() -> Callable[[], float]:
    from assay.papers.text.text_cnn import MaxNorm, TextCNN
    from assay.recipe import Recipe
    from assay.train.loop import fit

    data = _data()
    recipe = Recipe(
        data,
        model=partial(TextCNN, len(data.features), 2),
        optimizer=partial(torch.optim.Adam, lr=RATE),
        hooks=(MaxNorm(),),
        epochs=EPOCHS,
        batch_size=BATCH,
        watch=(),
    )
    return lambda: float(fit(recipe, 0).accuracy())


def bare_loop() -> Callable[[], float]:
    data = _data()
    train, test = _tensors(data)

    def run() -> float:
        torch.manual_seed(0)
        net = Padded(len(data.features))
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            for ids, labels in DataLoader(TensorDataset(train, data.train.labels), batch_size=BATCH, shuffle=True):
                optimizer.zero_grad()
                F.cross_entropy(net(ids), labels).backward()
                optimizer.step()
        with torch.no_grad():
            return (net.eval()(test).argmax(1) == data.test.labels).double().mean().item()

    return run


def skorch() -> Callable[[], float]:
    from skorch import NeuralNetClassifier

    data = _data()
    train, test = _tensors(data)

    def run() -> float:
        torch.manual_seed(0)
        net = NeuralNetClassifier(
            partial(Padded, len(data.features)),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=RATE,
            max_epochs=EPOCHS,
            batch_size=BATCH,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
        )
        net.fit(train.numpy(), data.train.labels.numpy())
        return float((net.predict(test.numpy()) == data.test.labels.numpy()).mean())

    return run


def agree(ours: float, peer: float) -> str:
    """Other weights, but the same network: within six points after two epochs. What it is worth stands beside."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    assert abs(ours - peer) < 0.06, f"ours {ours}, peer {peer}"
    texts = load("mr").subset(train=2_000, seed=0)
    linear = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    linear.fit(texts.train.inputs, texts.train.labels.numpy())
    reached = linear.score(texts.test.inputs, texts.test.labels.numpy())
    return f"test accuracy: ours {ours:.3f}, peer {peer:.3f}, TF-IDF with logistic regression {reached:.3f}"
