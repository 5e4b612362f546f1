"""Guidance against its formula by hand, what must stay untouched, treatments on several kinds of data, and the claims."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.layers import watching
from assay.nn.text import BiLSTM
from assay.papers.labels.elr import elr
from assay.papers.training.untrainable_guidance import (
    Guidance,
    _Distillation,
    guided,
    hidden_layers,
    layer_map,
    shortcuts_can_be_handed_over,
    trained_guide_helps_more,
    untrained_guide_helps,
)
from assay.recipe import Recipe, per_example
from assay.train.loop import Loop, fit


def photographs(kind: str = "classification") -> Dataset:
    """Squares that are bright on one side."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(96, 1, 8, 8, generator=generator)
    labels = torch.arange(96) % 2
    images[labels == 1, :, :, :4] += 0.3
    split = Split(images, labels if kind == "classification" else labels.float())
    return Dataset("squares", kind, split, split.take(torch.arange(0)), split, ("left", "right"))


def cka(x: Tensor, y: Tensor) -> float:
    x, y = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    h = np.eye(len(x)) - 1 / len(x)
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_layers_are_paired_by_depth() -> None:
    assert layer_map(5, 5) == (0, 1, 2, 3, 4)
    assert layer_map(3, 6) == (0, 2, 5)  # 2.5 to the even number, as Python rounds
    assert layer_map(6, 3) == (0, 0, 1, 1, 2, 2)
    assert layer_map(1, 4) == (0,)
    assert layer_map(4, 1) == (0, 0, 0, 0)


def test_hidden_layers_in_the_order_in_which_they_work() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm, self.first = nn.Linear(5, 2), nn.LayerNorm(5), nn.Linear(4, 5)
            self.unused, self.dropout, self.batch_norm = nn.Linear(1, 1), nn.Dropout(), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.batch_norm(self.first(x))))
            return logits

    net = Backwards()
    net.dropout.eval()
    assert hidden_layers(net, torch.zeros(1, 4)) == ("first", "norm")
    assert net.batch_norm.num_batches_tracked == 0
    assert net.training
    assert not net.dropout.training
    assert not any(module._forward_hooks for module in net.modules())
    assert hidden_layers(lenet(1, 10, 8), torch.zeros(1, 1, 8, 8)) == ("conv1", "conv2", "hidden")
    reader = hidden_layers(BiLSTM(20, 2, dim=6, hidden=4), torch.ones(1, 5, dtype=torch.int64))
    assert reader[:2] == ("from_left", "from_right")
    assert "head" not in reader


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_by_hand(weight: float) -> None:
    data = photographs()
    images, labels = data.train.inputs[:20], data.train.labels[:20]
    torch.manual_seed(0)
    net, guide = mlp(64, 2, (16, 12, 8)), lenet(1, 2, 8)
    loss = Guidance(net, images[:1], guide, weight)
    assert loss.pairs == (("1", "conv1"), ("3", "conv2"), ("5", "hidden"))
    with watching(net, loss.watches) as layers, watching(guide, ["conv1", "conv2", "hidden"]) as theirs:
        logits = net(images)
        guide.eval()(images)
        value = loss(logits, labels, images, layers, 0)
    expected = sum(1 - cka(layers[own].detach(), theirs[name].detach()) for own, name in loss.pairs)
    assert value.item() == pytest.approx(F.cross_entropy(logits, labels).item() + weight * expected, abs=1e-5)
    soft = F.one_hot(labels, 2).float()
    torch.testing.assert_close(loss(logits, soft, images, layers, 0), value)


def test_the_guide_is_a_copy_that_nothing_moves() -> None:
    torch.manual_seed(0)
    data = photographs()
    guide = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    recipe = Recipe(data, partial(mlp, 64, 2, (16,)), loss=per_example(Guidance, guide=guide), epochs=2, batch_size=32)
    loop = Loop(recipe, 0, torch.device("cpu"))
    loop.loss.train()
    assert not any(module.training for module in loop.loss.guide.modules())
    loop.train(None, 1e9, None)
    kept = loop.loss.guide.state_dict()
    for state in (kept, guide.state_dict()):
        assert all(torch.equal(value, state[name]) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in loop.loss.parameters())
    assert all(parameter.requires_grad for parameter in guide.parameters())
    assert guide.training
    assert not any(module._forward_hooks for module in [*loop.model.modules(), *loop.loss.modules()])


def test_agreement_grows_in_training_and_only_where_it_is_asked_for() -> None:
    data = photographs()
    plain = Recipe(data, partial(mlp, 64, 2, (16, 12)), optimizer=partial(torch.optim.Adam, lr=3e-3), epochs=15, batch_size=96)
    torch.manual_seed(1)
    guide = lenet(1, 2, 8)
    images = data.train.inputs

    def agreement(recipe: Recipe) -> float:
        net = fit(recipe, 0).model
        loss = Guidance(net, images[:1], guide)
        with watching(net, loss.watches) as layers, torch.no_grad():
            net(images)
        return loss.agreement(images, layers).mean().item()

    assert agreement(guided(plain, guide)) > agreement(plain) + 0.05
    early = fit(guided(plain, guide, epochs=1), 0).history["train_loss"]
    whole = fit(guided(plain, guide), 0).history["train_loss"]
    assert early[0] == whole[0]
    assert early[1] < whole[1] - 0.1  # cross-entropy alone from the second epoch on
    assert fit(guided(plain, guide, weight=0.0), 0).history["train_loss"] == pytest.approx(fit(plain, 0).history["train_loss"])


def test_layers_can_be_named() -> None:
    data = photographs()
    net = mlp(64, 2, (16, 12, 8))
    loss = Guidance(net, data.train.inputs[:1], partial(lenet, 1, 2, 8), target_layers=("3",), guide_layers=("conv2", "hidden"))
    assert loss.pairs == (("3", "conv2"), ("3", "hidden"))
    assert loss.watches == ("3",)
    with pytest.raises(ValueError, match="the network has no hidden layer"):
        Guidance(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), data.train.inputs[:1], net)
    with pytest.raises(ValueError, match="the guide has no hidden layer"):
        Guidance(net, data.train.inputs[:1], nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    with pytest.raises(ValueError, match="weight"):
        Guidance(net, data.train.inputs[:1], net, weight=-1.0)


def test_treatment_on_images_series_tables_and_texts(table: Dataset) -> None:
    images = photographs()
    plain = Recipe(images, partial(mlp, 64, 2, (16,)), epochs=1, batch_size=48)
    assert guided(plain).replace(loss=plain.loss) == plain
    assert fit(guided(plain), 0).history["train_loss"] != fit(plain, 0).history["train_loss"]
    series = Dataset(
        "s", "classification", *(Split(s.inputs[:, 0], s.labels) for s in (images.train, images.valid, images.test)), ("a", "b")
    )
    of_series = Recipe(series, partial(mlp, 64, 2, (16,)), epochs=1, batch_size=48)
    assert np.isfinite(fit(guided(of_series), 0).history["train_loss"]).all()
    rows = Recipe(table, partial(mlp, 8, 2, (16,)), epochs=1)
    with pytest.raises(AssayError, match="name a guide"):
        guided(rows)
    assert np.isfinite(fit(guided(rows, partial(mlp, 8, 2, (64, 64))), 0).history["train_loss"]).all()
    ids = torch.randint(1, 20, (64, 5), generator=torch.Generator().manual_seed(0))
    texts = Split(ids, torch.arange(64) % 2)
    reading = Recipe(Dataset("t", "classification", texts, texts, texts, ("a", "b")), partial(BiLSTM, 20, 2, 6, 4), epochs=1)
    assert np.isfinite(fit(guided(reading, partial(BiLSTM, 20, 2, 8, 8)), 0).history["train_loss"]).all()
    with pytest.raises(AssayError, match="no classes"):
        guided(plain.replace(data=photographs("regression"), loss=F.mse_loss))


def test_treatment_composes_in_any_order() -> None:
    plain = Recipe(photographs(), partial(mlp, 64, 2, (16,)), epochs=3, batch_size=48)
    guide = lenet(1, 2, 8)
    losses = [fit(recipe, 0).history["train_loss"] for recipe in (elr(guided(plain, guide)), guided(elr(plain), guide))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for alone in (elr(plain), guided(plain, guide)):
        assert fit(alone, 0).history["train_loss"] != pytest.approx(losses[0], rel=1e-3)


def test_the_control_by_distillation_by_hand() -> None:
    data, guide = photographs(), lenet(1, 2, 8)
    images, labels = data.train.inputs[:10], data.train.labels[:10]
    logits = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, own = (guide.eval()(images) / 4).softmax(dim=1), (logits / 4).softmax(dim=1)
    expected = F.cross_entropy(logits, labels) + 16 * (theirs * (theirs / own).log()).sum() / 10
    torch.testing.assert_close(_Distillation(guide)(logits, labels, images), expected)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert {"no guide", "no guide, weight decay", "untrained convolutional guide"} < set(untrained_guide_helps(lab))
    assert {"trained guide", "its answers alone (distillation)"} < set(trained_guide_helps_more(lab))
    assert set(shortcuts_can_be_handed_over(lab)) == {"no guide", "guided", "with shortcuts"}
