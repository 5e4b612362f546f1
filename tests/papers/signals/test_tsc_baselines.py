"""The three networks: published numbers of parameters, plain Conv1d twins, the identity of the map, and what users may do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.paper import Claim, Curve
from assay.papers.signals.tsc_baselines import (
    FCN,
    MLP,
    Plateau,
    ResNet,
    TimeSeriesClassifier,
    class_activation_map,
    every_second,
    fcn_is_strong,
    map_finds_what_decides,
    published,
    resnet_is_strong,
)

POOLED = pytest.mark.parametrize("kind", [FCN, ResNet])


def series(count: int = 6, channels: int = 2, length: int = 30) -> Tensor:
    return torch.randn(count, channels, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(kind: type[FCN] | type[ResNet], channels: int = 2) -> FCN | ResNet:
    """In double precision; statistics, scales and biases are not those of a fresh network."""
    torch.manual_seed(0)
    model = kind(channels, 3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d | nn.Linear):
            nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.mark.parametrize(
    ("model", "count"), [(FCN(1, 2), 264_962), (ResNet(1, 2), 504_258), (MLP(1, 2, 150), 577_502)], ids=["FCN", "ResNet", "MLP"]
)
def test_numbers_of_parameters(model: nn.Module, count: int) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def block(model: nn.Sequential, inputs: Tensor, training: bool) -> Tensor:
    """A row of convolutions as one would write it for series, with the weights of ours."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            inputs = F.conv1d(inputs, layer.weight.squeeze(2), layer.bias, padding="same")
        elif isinstance(layer, nn.BatchNorm2d):
            running = (None, None) if training else (layer.running_mean, layer.running_var)
            inputs = F.batch_norm(inputs, *running, layer.weight, layer.bias, training, eps=1e-3)
        elif isinstance(layer, nn.ReLU):
            inputs = inputs.relu()
    return inputs


def by_hand(model: FCN | ResNet, inputs: Tensor, training: bool) -> Tensor:
    if isinstance(model, FCN):
        maps = block(model.blocks, inputs, training)
    else:
        maps = inputs
        for part in model.blocks:
            maps = (block(part.convolutions, maps, training) + block(part.shortcut, maps, training)).relu()
    return F.linear(maps.mean(dim=2), model.head.weight, model.head.bias)


@POOLED
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_is_the_network_of_one_dimensional_convolutions(kind: type[FCN], training: bool, channels: int) -> None:
    model, inputs = network(kind, channels).train(training), series(channels=channels)
    gradients = []
    for logits in (by_hand(model, inputs, training), model(inputs)):
        model.zero_grad()
        F.cross_entropy(logits, torch.arange(6) % 3).backward()
        gradients.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_widths_of_the_convolutions() -> None:
    """A step of the map sees 3 + 2 + 1 steps before it and 4 + 2 + 1 behind it, and no further."""
    model = network(FCN, 1).eval()
    inputs = series(1, 1, 40).requires_grad_()
    model.features(inputs)[0, :, 20].sum().backward()
    assert inputs.grad[0, 0].nonzero().flatten().tolist() == list(range(14, 28))


@POOLED
def test_map_adds_up_to_the_score(kind: type[FCN]) -> None:
    model, inputs = network(kind).eval(), series()
    logits = model(inputs).detach()
    for label in range(3):
        found = class_activation_map(model, inputs, label)
        assert found.shape == (6, 30)
        torch.testing.assert_close(found.mean(dim=1) + model.head.bias[label], logits[:, label])
    mixed = class_activation_map(model, inputs, torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(mixed[2], class_activation_map(model, inputs, 2)[2])


@POOLED
def test_takes_any_length(kind: type[FCN]) -> None:
    model = kind(1, 2)
    assert model(torch.randn(4, 1, 9)).shape == model(torch.randn(4, 1, 50)).shape == (4, 2)


def test_perceptron_drops_its_inputs_too() -> None:
    model = MLP(1, 2, 40).train()
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.1, 0.2, 0.2, 0.3]
    ones = torch.ones(200, 1, 40)
    assert abs((model.layers[:2](ones) == 0).double().mean() - 0.1) < 0.02


def test_plateau_is_torchs() -> None:
    losses = [1.0, 0.9, 0.8999, 0.95, 0.9, 0.9, 0.8, 0.81, 0.82, 0.83, 0.84, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.2, 0.2, 0.2]
    rates = []
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, factor=0.5, patience=2, threshold=1e-4, threshold_mode="abs", min_lr=0.2
    )
    ours = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    hook, run = Plateau(patience=2, least=0.2), SimpleNamespace(memory={}, history={"train_loss": []}, optimizer=ours)
    for loss in losses:
        schedule.step(loss)
        run.history["train_loss"].append(loss)
        hook.after_epoch(run)
        rates.append((ours.param_groups[0]["lr"], theirs.param_groups[0]["lr"]))
    assert all(mine == other for mine, other in rates)
    assert [mine for mine, _ in rates][-1] == 0.2


def bumps(count: int, length: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise with a bump up ("hill") or down ("dale") somewhere; also where its middle is."""
    generator = np.random.default_rng(seed)
    labels = np.array(["dale", "hill"])[np.arange(count) % 2]
    middle = generator.integers(10, length - 10, count)
    shape = np.exp(-(((np.arange(length) - middle[:, None]) / 3) ** 2))
    return 0.2 * generator.normal(size=(count, length)) + np.where(labels == "hill", 2, -2)[:, None] * shape, labels, middle


@pytest.mark.parametrize("net", ["fcn", "resnet"])
def test_classifier_finds_bumps_wherever_they_are(net: str) -> None:
    X, y, _ = bumps(60)
    tests, truth, middle = bumps(40, seed=1)
    model = TimeSeriesClassifier(net, epochs=6, random_state=0).fit(X, y)
    assert model.score(tests, truth) > 0.9
    np.testing.assert_allclose(model.predict_proba(tests).sum(axis=1), 1, rtol=1e-5)
    highest = model.activation_map(tests, truth).argmax(axis=1)
    assert np.median(np.abs(highest - middle)) <= 4
    np.testing.assert_array_equal(model.activation_map(tests), model.activation_map(tests, model.predict(tests)))


def test_classifier_is_scikit_learns() -> None:
    X, y, _ = bumps(20)
    model = TimeSeriesClassifier("mlp", epochs=10, random_state=3).fit(X, y)
    assert model.score(X, y) > 0.9
    said = model.predict_proba(X)
    np.testing.assert_array_equal(clone(model).fit(X[:, None], y).predict_proba(X[:, None]), said)
    # One mean and one standard deviation for all series, those of the training set.
    assert model.mean_ == pytest.approx(X.mean(), abs=1e-6)
    np.testing.assert_allclose(clone(model).fit(5 + 10 * X, y).predict_proba(5 + 10 * X), said, atol=2e-3)
    with pytest.raises(ValueError, match="features"):
        model.predict(X[:, :30])


@pytest.mark.parametrize(
    ("settings", "X", "y", "message"),
    [
        ({"net": "lstm"}, np.zeros((4, 9)), [0, 1, 0, 1], "choose one of mlp, fcn, resnet"),
        ({}, np.zeros((4, 1, 1, 9)), [0, 1, 0, 1], "give series"),
        ({}, np.zeros((4, 9)), [0, 1, 0], "4 series but 3 labels"),
        ({}, np.zeros((4, 9)), [1, 1, 1, 1], "one class only"),
        ({}, np.full((4, 9), np.nan), [0, 1, 0, 1], "NaN"),
        ({}, np.zeros((4, 9)), [0.5, 1.2, 3.1, 2.2], "label type"),
    ],
)
def test_classifier_says_what_is_wrong(settings: dict, X: np.ndarray, y: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSeriesClassifier(epochs=1, **settings).fit(X, y)


def test_classifier_says_what_is_wrong_with_a_map() -> None:
    X, y, _ = bumps(20)
    with pytest.raises(ValueError, match="perceptron has no class activation map"):
        TimeSeriesClassifier("mlp", epochs=1).fit(X, y).activation_map(X)
    with pytest.raises(ValueError, match="'vale' is none of the classes"):
        TimeSeriesClassifier(epochs=1).fit(X, y).activation_map(X[:1], ["vale"])


def data(count: int) -> Dataset:
    X, y, _ = bumps(count)
    split = Split(torch.from_numpy(X).float().unsqueeze(1), torch.from_numpy((y == "hill").astype(np.int64)))
    return Dataset("bumps", "classification", split, split.take(torch.arange(0)), split, ("dale", "hill"))


def test_published_settings() -> None:
    recipe = published(data(40), "fcn")
    assert (recipe.epochs, recipe.batch_size) == (2000, 4)
    assert [published(data(count), "mlp").batch_size for count in (4, 50, 300)] == [1, 5, 16]
    assert published(data(40), "mlp").hooks[0] == Plateau(patience=200, least=0.1)
    momenta = [published(data(40), "resnet", epochs).model.keywords["bn_momentum"] for epochs in (None, 50)]
    assert momenta == [0.01, 0.1]


def test_every_second_step() -> None:
    whole = data(6)
    half = every_second(whole)
    torch.testing.assert_close(half.test.inputs[0, 0], whole.test.inputs[0, 0, ::2])
    assert half.fingerprint != whole.fingerprint


@pytest.mark.parametrize("claim", [fcn_is_strong, resnet_is_strong, map_finds_what_decides], ids=lambda claim: claim.name)
def test_claims_measure_what_they_expect(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(scale="smoke")
    try:
        for name in claim.needs:
            lab.data(name)
    except AssayError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: tmp_path)
    measured = claim(lab)
    for expected in claim.expect:
        assert {expected.arm, expected.than} <= measured.keys()
    for value in measured.values():
        assert 0 <= (value.number if isinstance(value, Curve) else value) <= 1
