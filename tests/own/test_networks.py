"""The network for tables: its embeddings are embeddings, and its columns are found by their names."""

from __future__ import annotations

import torch
from torch import nn

from assay.data import Dataset, Split
from assay.nn import mlp
from assay.own.baselines import baseline
from assay.own.networks import TableNet, category_columns
from assay.train.loop import fit


def test_categories_are_found_by_their_names() -> None:
    names = ("size", "colour=red", "colour=blue", "place=x", "width is missing", "shape=a", "shape=b=c", "shape=(rare)")
    assert category_columns(names) == ((1, 3), (5, 8))
    assert category_columns(()) == ()


def test_it_is_embeddings_beside_the_numbers() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 5, (20,))
    other = torch.randint(0, 3, (20,))
    numbers = torch.randn(20, 2)
    hot = nn.functional.one_hot
    network = TableNet(10, 4, groups=((1, 6), (7, 10)), hidden=(8,))
    inputs = torch.cat([numbers[:, :1], hot(codes, 5), numbers[:, 1:], hot(other, 3)], dim=1)
    tables = [nn.Embedding.from_pretrained(layer.weight.t()) for layer in network.embeddings]  # type: ignore[operator]
    assert [table.embedding_dim for table in tables] == [3, 2]
    expected = network.perceptron(torch.cat([numbers, tables[0](codes), tables[1](other)], dim=1))
    torch.testing.assert_close(network(inputs), expected)
    # A word that was never seen is 0 in all columns, and so has the vector 0.
    inputs[:, 1:6] = 0
    expected = network.perceptron(torch.cat([numbers, torch.zeros(20, 3), tables[1](other)], dim=1))
    torch.testing.assert_close(network(inputs), expected)


def test_baseline_uses_it_where_there_are_categories() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 6, (240,), generator=generator)
    inputs = torch.cat([torch.randn(240, 1, generator=generator), nn.functional.one_hot(codes, 6)], dim=1)
    whole = Split(inputs, codes % 2)
    parts = [whole.take(torch.arange(begin, end)) for begin, end in ((0, 160), (160, 180), (180, 240))]
    features = ("size", *(f"kind={number}" for number in range(6)))
    data = Dataset("x", "classification", *parts, classes=("even", "odd"), features=features)
    recipe = baseline(data)
    assert isinstance(recipe.model(), TableNet)
    assert fit(recipe.replace(epochs=30), seed=0).accuracy() == 1.0
    plain = baseline(Dataset("x", "classification", *parts, classes=("even", "odd")))
    assert isinstance(plain.model(), type(mlp(1, 1)))
