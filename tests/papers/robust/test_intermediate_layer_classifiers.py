"""Classifiers on layers: what they see is what hooks see, they begin as the network ends, nothing is touched, and the claims."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.collapse import LastLayer, last_layer
from assay.papers.robust.intermediate_layer_classifiers import (
    LAST,
    IntermediateLayerClassifier,
    earlier_layers,
    earlier_layers_win_on_digits,
    earlier_layers_win_on_photos,
    earlier_layers_win_with_few_examples,
    last_layer_is_best_at_home,
    last_layer_is_more_sensitive,
    layer_features,
    layer_sensitivity,
)
from assay.view import View


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(6, 3, (16, 12, 8))


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    """Three clouds of points in six dimensions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    return torch.randn(90, 6, generator=generator) + 2 * torch.eye(3, 6)[labels], labels


def test_features_are_what_the_layers_give(net: nn.Sequential, points: tuple[Tensor, Tensor]) -> None:
    inputs, _ = points
    before = copy.deepcopy(net.state_dict())
    net.train()
    found = layer_features(net, inputs)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    values, by_hand = inputs, []
    for layer in net:
        values = layer(values)
        if isinstance(layer, nn.ReLU):
            by_hand.append(values)
    assert [value.shape[1] for value in found.values()] == [16, 12, 8]
    for value, hand in zip(found.values(), by_hand, strict=True):
        assert torch.allclose(value, hand, atol=1e-6)


def test_large_maps_are_averaged_down() -> None:
    torch.manual_seed(0)
    net, images = lenet(1, 10, 28), torch.rand(4, 1, 28, 28)
    found = layer_features(net, images, pool=2)
    first = next(iter(found.values()))
    whole = next(iter(layer_features(net, images, pool=100).values()))
    assert first.shape[1] < whole.shape[1]
    side = int((whole.shape[1] / (first.shape[1] / 4)) ** 0.5)
    assert torch.allclose(first.view(4, -1, 4).mean(dim=2), whole.view(4, -1, side * side).mean(dim=2), atol=1e-6)


def test_the_last_classifier_begins_as_the_network_ends(net: nn.Sequential, points: tuple[Tensor, Tensor]) -> None:
    inputs, labels = points
    found = IntermediateLayerClassifier(net, epochs=0).fit(inputs, labels)
    assert torch.allclose(found.decision_function(inputs, LAST), net(inputs), atol=1e-6)
    cold = IntermediateLayerClassifier(net, epochs=0, warm=False).fit(inputs, labels)
    assert not torch.allclose(cold.decision_function(inputs, LAST), net(inputs), atol=0.1)


def test_without_a_penalty_it_is_logistic_regression(net: nn.Sequential, points: tuple[Tensor, Tensor]) -> None:
    """Noisy labels, so that the optimum is finite: the same probabilities as scikit-learn's solver."""
    inputs, labels = points
    labels = torch.where(torch.arange(90) % 4 == 0, (labels + 1) % 3, labels)
    layers = layer_features(net, inputs)
    name = next(iter(layers))
    few = {name: layers[name][:, :4], LAST: layers[LAST]}
    fit = partial(IntermediateLayerClassifier, net, epochs=1500, learning_rate=0.02, penalty=0.0, batch_size=90)
    found = fit().fit_features(few, labels, few, labels, last_layer(net, inputs))
    # The classifier of the best epoch is kept; its loss cannot be below the optimum, and is close to it.
    peer = LogisticRegression(C=1e8, max_iter=5000).fit(few[name].numpy(), labels.numpy())
    probabilities = found.logits(few, name).softmax(dim=1).numpy()
    agree = (probabilities.argmax(1) == peer.predict(few[name].numpy())).mean()
    assert agree > 0.85
    loss = -np.log(probabilities[np.arange(90), labels]).mean()
    best = -np.log(peer.predict_proba(few[name].numpy())[np.arange(90), labels]).mean()
    assert best - 1e-6 <= loss < best + 0.1


@pytest.mark.parametrize(("factor", "silent"), [(1.3, True), (0.5, False), (-1.3, False)])
def test_a_penalty_above_the_slope_at_zero_silences_the_weights(factor: float, silent: bool) -> None:
    """CE + penalty |W| (not squared) is least at W = 0 just where the slope of CE there is no steeper than the penalty.

    Nine of ten examples are of class 0, so that a classifier without weights always says 0, and is right of the validation
    examples, which the feature says to be of class 1.
    """
    labels = (torch.arange(400) % 10 == 0).long()
    values = torch.where(labels == 1, 3.0, 0.0)[:, None]
    slope = torch.zeros(2, 1, requires_grad=True)
    F.cross_entropy(values @ slope.T + torch.tensor([0.9, 0.1]).log(), labels).backward()
    assert slope.grad is not None
    penalty = factor * slope.grad.norm().item()
    fit = partial(IntermediateLayerClassifier, nn.Identity(), epochs=300, learning_rate=0.02, batch_size=400)
    away = {LAST: torch.full((5, 1), 12.0)}
    head = LastLayer(values, torch.tensor([[-2.0], [2.0]]), torch.zeros(2), "head")
    found = fit(penalty=penalty).fit_features({LAST: values}, labels, away, torch.zeros(5, dtype=torch.int64), head)
    assert (found.scores_[LAST] == 1) == silent


def test_a_layer_that_keeps_what_the_last_has_lost_is_found(points: tuple[Tensor, Tensor]) -> None:
    """The network squashes the third class into the second before its last layer."""
    inputs, labels = points
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(6))
        net[0].bias.fill_(5.0)
        net[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]))
    found = IntermediateLayerClassifier(net, epochs=300, learning_rate=0.01).fit(inputs, labels, inputs, labels)
    assert found.best_layer_ == found.layers_[0]
    assert found.scores_[found.best_layer_] > found.scores_[LAST] + 0.1
    assert (found.predict(inputs) == labels).double().mean() == found.scores_[found.best_layer_]


def test_labels_without_sense_are_learnt_by_no_layer(net: nn.Sequential) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(900, 6, generator=generator), torch.randint(3, (900,), generator=generator)
    found = IntermediateLayerClassifier(net, epochs=10).fit(inputs[:300], labels[:300], inputs[300:], labels[300:])
    assert all(score < 0.41 for score in found.scores_.values())


def test_sensitivity_by_hand(points: tuple[Tensor, Tensor]) -> None:
    inputs, labels = points
    same = layer_sensitivity({"a": inputs}, labels, {"a": inputs}, {"a": inputs})
    assert same == {"a": 1.0}
    means = torch.stack([inputs[labels == k].mean(dim=0) for k in range(3)])
    there = layer_sensitivity({"a": inputs}, labels, {"a": inputs}, {"a": means})
    assert there["a"] < 1e-3


def test_names_that_are_not_there(net: nn.Sequential, points: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(AssayError, match="no layer 'nowhere'"):
        layer_features(net, points[0], ["nowhere"])
    with pytest.raises(AssayError, match="no linear layer"):
        layer_features(nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()), torch.zeros(2, 1, 9), ["0"])
    found = IntermediateLayerClassifier(net, epochs=1).fit(*points)
    with pytest.raises(AssayError, match="no classifier on a layer 'nowhere'"):
        found.predict(points[0], "nowhere")


def test_probe(net: nn.Sequential, points: tuple[Tensor, Tensor]) -> None:
    inputs, labels = points
    background = inputs.repeat(8, 1) + 0.1 * torch.randn(720, 6, generator=torch.Generator().manual_seed(1))
    view = View(net.eval(), inputs, labels, labels, background, labels.repeat(8), "table", ("a", "b", "c"))
    seen = earlier_layers(view)
    assert next(iter(seen.numbers)) == "the network itself"
    assert list(seen.numbers)[-1] == "layer last"
    assert len(seen.numbers) == 4
    assert max(seen.numbers.values()) > 0.8
    with pytest.raises(AssayError, match="fewer than 20"):
        earlier_layers(View(net, inputs, labels, labels, inputs[:5], labels[:5], "table", ("a", "b", "c")))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "claim",
    [
        earlier_layers_win_on_digits,
        last_layer_is_best_at_home,
        earlier_layers_win_with_few_examples,
        last_layer_is_more_sensitive,
    ],
)
def test_claims_run(claim: object) -> None:
    arms = claim(Lab(seed=0, scale="smoke"))  # type: ignore[operator]
    assert {expected.arm for expected in claim.expect} <= set(arms)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("home")
def test_photos_run() -> None:
    try:
        load("cifar10-20k")
    except AssayError as error:
        pytest.skip(str(error))
    arms = earlier_layers_win_on_photos(Lab(seed=0, scale="smoke"))
    assert {expected.arm for expected in earlier_layers_win_on_photos.expect} <= set(arms)  # type: ignore[union-attr]
