"""Deep supervision: torch's margin loss, exact invariants of the companions, every kind of data, the claims at smoke scale."""

import copy
from functools import partial

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.layers import watching
from assay.nn.text import BiLSTM
from assay.own.methods import treated
from assay.papers.labels.elr import elr
from assay.papers.signals.tsc_baselines import FCN
from assay.papers.training.deeply_supervised import (
    Companion,
    DeepSupervision,
    deep_tanh,
    deeply_supervised,
    helps_when_data_are_scarce,
    hidden_layers_are_more_linear,
    linear_accuracy,
    rescues_deep_plain_nets,
    squared_hinge,
)
from assay.papers.training.resnet_strikes_back import resnet_strikes_back
from assay.recipe import Recipe
from assay.train.loop import fit


def batch(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 4


def supervised(**settings: object) -> tuple[nn.Module, DeepSupervision]:
    torch.manual_seed(0)
    net = lenet(1, 4, 8)
    return net, DeepSupervision(net, torch.rand(1, 1, 8, 8), num_classes=4, epochs=10, **settings)


def values(net: nn.Module, loss: DeepSupervision, epoch: int = 0) -> Tensor:
    images, labels = batch()
    with watching(net, loss.watches) as layers:
        logits = net(images)
    return loss(logits, labels, layers, epoch)


def test_the_squared_hinge_is_torchs_but_for_the_number_of_classes() -> None:
    logits, labels = 2 * torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 5
    expected = nn.MultiMarginLoss(p=2)(logits, labels) * 5
    torch.testing.assert_close(squared_hinge(logits, labels), expected)
    one_hot = F.one_hot(labels, 5).float()
    torch.testing.assert_close(squared_hinge(logits, one_hot), expected)
    other = labels.roll(1)
    mixture = 0.7 * one_hot + 0.3 * F.one_hot(other, 5)
    torch.testing.assert_close(squared_hinge(logits, mixture), 0.7 * expected + 0.3 * squared_hinge(logits, other))
    assert squared_hinge(10 * one_hot, labels) == 0


@pytest.mark.parametrize("name", ["cross_entropy", "squared_hinge"])
def test_the_objective_by_hand(name: str) -> None:
    net, loss = supervised(weight=0.4, until=0.5, gamma=0.1, loss=name, pool=None)
    each = F.cross_entropy if name == "cross_entropy" else squared_hinge
    images, labels = batch()
    first = net.relu1(net.pool1(net.conv1(images)))
    second = net.relu2(net.pool2(net.conv2(first)))
    companions = [module.classifier(out.flatten(1)) for module, out in zip(loss.companions, (first, second), strict=True)]
    assert [module.classifier.in_features for module in loss.companions] == [16 * 16, 32 * 4]
    for epoch, weight in ((0, 0.4), (1, 0.32), (4, 0.08), (5, 0.0), (9, 0.0)):
        expected = each(net(images), labels) + weight * sum((each(logits, labels) - 0.1).relu() for logits in companions)
        torch.testing.assert_close(values(net, loss, epoch), expected)


def test_a_content_companion_says_nothing() -> None:
    net, loss = supervised(gamma=5.0)  # ln 4 is less
    values(net, loss).backward()
    assert all(p.grad is None or not p.grad.any() for p in loss.parameters())
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    F.cross_entropy(net(batch()[0]), batch()[1]).backward()
    assert all(torch.equal(p.grad, before) for p, before in zip(net.parameters(), gradients, strict=True))


def test_a_companion_teaches_its_own_layer_and_those_before() -> None:
    net, loss = supervised(layers=["relu1"])
    images, labels = batch()
    with watching(net, loss.watches) as layers:
        net(images)
    F.cross_entropy(loss.companions[0](layers["relu1"]), labels).backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"conv1.weight", "conv1.bias"}


def test_companions_of_every_shape() -> None:
    for shape, places in (
        ((1, 6), ()),
        ((1, 3, 9), (4,)),
        ((1, 3, 2), (2,)),
        ((1, 3, 7, 9), (4, 4)),
        ((1, 2, 5, 6, 3), (4, 4, 3)),
    ):
        companion = Companion(shape, 5)
        assert companion.places == places
        assert companion(torch.randn(7, *shape[1:])).shape == (7, 5)
    longer = Companion((1, 3, 9), 5)(torch.randn(7, 3, 21))  # pooling makes other lengths fit
    assert longer.shape == (7, 5)
    steps = Companion((1, 9, 6), 5, sequence=True)
    torch.testing.assert_close(steps(torch.ones(2, 3, 6)), steps(torch.ones(2, 30, 6)))


def dropping(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def test_without_weight_it_is_the_plain_training_bit_for_bit(table: Dataset) -> None:
    plain = Recipe(table, model=partial(dropping, 8), epochs=3, batch_size=64)
    bare, idle = fit(plain, 3), fit(deeply_supervised(plain, weight=0.0), 3)
    for name, value in bare.model.state_dict().items():
        assert torch.equal(value, idle.model.state_dict()[name]), name
    full = fit(deeply_supervised(plain), 3)
    assert list(full.model.state_dict()) == list(bare.model.state_dict())  # thrown away
    assert full.parameters == bare.parameters
    assert not any(module._forward_hooks for module in full.model.modules())
    assert not torch.equal(full.model[0].weight, bare.model[0].weight)


def test_companions_fade_over_the_training_that_begins(table: Dataset) -> None:
    """A number of epochs that is set after the treatment counts."""
    plain = Recipe(table, model=partial(dropping, 8), epochs=30, batch_size=64)
    late, early = deeply_supervised(plain).replace(epochs=3), deeply_supervised(plain.replace(epochs=3))
    assert torch.equal(fit(late, 3).model[0].weight, fit(early, 3).model[0].weight)


def test_trains_in_anybodys_loop() -> None:
    net, loss = supervised(loss="squared_hinge")
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.02)
    path = []
    for epoch in range(10):
        optimizer.zero_grad()
        found = values(net, loss, epoch)
        found.backward()
        optimizer.step()
        path.append(found.item())
    assert path[-1] < path[0]
    assert set(before) == set(net.state_dict())


def test_every_kind_of_data(table: Dataset) -> None:
    def recipe(inputs: Tensor, model: object) -> Recipe:
        split = Split(inputs, torch.arange(len(inputs)) % 2)
        return Recipe(
            Dataset("some", "classification", split, split, split, classes=("a", "b")), model=model, epochs=1, batch_size=16
        )

    for plain in (
        Recipe(table, model=partial(mlp, 8, 2, (16, 16)), epochs=1),
        recipe(torch.rand(32, 1, 8, 8), partial(lenet, 1, 2, 8)),
        recipe(torch.randint(1, 9, (32, 7)), partial(BiLSTM, 9, 2, 6, 5)),
        recipe(torch.rand(32, 2, 30), partial(FCN, 2, 2)),
    ):
        assert treated(plain, [deeply_supervised]).loss.wants == ("layers", "epoch")
        assert fit(deeply_supervised(plain), 0).history["train_loss"] != fit(plain, 0).history["train_loss"]
    shallow = recipe(torch.rand(32, 5), partial(nn.Linear, 5, 2))
    with pytest.raises(AssayError, match="no hidden layer"):
        fit(deeply_supervised(shallow), 0)
    numbers = Split(torch.randn(64, 3), torch.randn(64))
    with pytest.raises(AssayError, match="no classes"):
        deeply_supervised(
            Recipe(Dataset("n", "regression", numbers, numbers, numbers), model=partial(mlp, 3, 1), loss=F.mse_loss)
        )
    for wrong in ({"loss": "focal"}, {"weight": -1.0}, {"until": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            supervised(**wrong)


@pytest.mark.parametrize("other", [elr, resnet_strikes_back])
def test_composes_in_any_order(other: object, table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16, 16)), epochs=2, batch_size=100)
    hinge = partial(deeply_supervised, loss="squared_hinge")
    for ours in (deeply_supervised, hinge):
        losses = [
            fit(made, 0).history["train_loss"] for made in (other(ours(plain)), ours(other(plain)), other(plain), ours(plain))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert losses[0] != pytest.approx(losses[2], rel=1e-2)
        assert losses[0] != pytest.approx(losses[3], rel=1e-2)


def test_the_hard_network_starts_as_it_says() -> None:
    net = deep_tanh(1, 10, 8)
    convolutions = [module for module in net if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 8
    assert convolutions[3].weight.std().item() == pytest.approx(0.03, rel=0.1)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_linear_probe_is_the_svm_on_the_layer(table: Dataset) -> None:
    trained = fit(Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=5), 0)
    assert linear_accuracy(trained, "0", 0) > 0.95  # two half-spaces are linear as they are
    train, test = table.train, table.test
    with torch.no_grad():
        seen, new = (trained.model[1](split.inputs).relu().numpy() for split in (train, test))
    mean, std = seen.mean(axis=0), seen.std(axis=0)
    svm = LinearSVC(C=0.01, random_state=0).fit((seen - mean) / std, train.labels.numpy())
    assert linear_accuracy(trained, "2", 0) == pytest.approx(svm.score((new - mean) / std, test.labels.numpy()), abs=0.005)
    with torch.no_grad():  # a layer that gives the same for all examples tells nothing
        trained.model[1].weight.zero_()
    assert linear_accuracy(trained, "2", 0) < 0.7


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert {"gain, few", "supervised, few", "plain, many", "plain", "supervised"} < set(helps_when_data_are_scarce(lab))
    assert set(rescues_deep_plain_nets(lab)) == {"plain", "supervised", "gradient, plain", "gradient, supervised"}
    assert len(hidden_layers_are_more_linear(lab)) == 6
