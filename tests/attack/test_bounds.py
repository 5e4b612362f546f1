"""Interval bounds: exact on what they ought to be exact on, never crossed by any point of a box, and named where they end."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack import Interval, certified, interval_bounds, pgd, worst_margins
from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.papers.architectures.resnet import cifar_resnet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corners(low: Tensor, high: Tensor) -> Tensor:
    """All corners of the boxes: (B, 2^D, D)."""
    picks = torch.tensor(list(itertools.product((0, 1), repeat=low.shape[1])), dtype=torch.bool)
    return torch.where(picks, high.unsqueeze(1), low.unsqueeze(1))


def test_affine_layer_is_exact():
    """The extremes of an affine map over a box are at corners."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(6, 4).double()
    centre = torch.randn(5, 6, dtype=torch.float64, generator=seeded())
    radius = torch.rand(5, 6, dtype=torch.float64, generator=seeded(1))
    low, high = interval_bounds(layer, centre - radius, centre + radius)
    found = layer(corners(centre - radius, centre + radius))
    torch.testing.assert_close(low, found.amin(dim=1))
    torch.testing.assert_close(high, found.amax(dim=1))


def test_differences_of_logits_are_exact_with_elision_and_wide_without():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(6, 4).double()
    low = torch.randn(5, 6, dtype=torch.float64, generator=seeded())
    high = low + 0.3
    labels = torch.tensor([0, 1, 2, 3, 0])
    logits = layer(corners(low, high))
    exact = (logits - logits.gather(2, labels.view(5, 1, 1).expand(-1, 64, 1))).amax(dim=1)
    torch.testing.assert_close(worst_margins(layer, low, high, labels), exact)
    wide = worst_margins(layer, low, high, labels, elide=False)
    assert (wide >= exact - 1e-12).all()
    assert (wide - exact).max() > 0.1
    shares = torch.rand(5, 4, dtype=torch.float64, generator=seeded(2)).softmax(dim=1)
    exact = (logits - (shares.unsqueeze(1) * logits).sum(dim=2, keepdim=True)).amax(dim=1)
    torch.testing.assert_close(worst_margins(layer, low, high, shares), exact)
    assert (worst_margins(layer, low, high, shares, elide=False) >= exact - 1e-12).all()


class Functional(nn.Module):
    """A residual network that calls functions instead of modules, in place where it may."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images - 0.5), inplace=True)
        shortcut = x
        y = self.norm(self.second(F.gelu(x)))
        y += 0.5 * shortcut
        y = torch.cat([F.avg_pool2d(y, 2), F.max_pool2d(y, 2)], dim=3).mean(dim=3)
        return self.head(torch.flatten(F.pad(y, (1, 1)), 1))


def activations() -> list[nn.Module]:
    kinds = [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.GELU]
    kinds += [nn.SiLU, nn.Mish, nn.Hardswish, nn.PReLU, nn.Identity, nn.LogSigmoid, nn.Softsign, nn.Hardsigmoid]
    return [kind() for kind in kinds] + [nn.GELU("tanh"), nn.LeakyReLU(0.3, inplace=True)]


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
            "perceptron": (mlp(8, 4, hidden=(16, 16)), (8,)),
            "LeNet": (lenet(1, 5, 8), (1, 8, 8)),
            "residual network": (cifar_resnet(8, num_classes=4, in_channels=2), (2, 8, 8)),
            "functional": (Functional(), (2, 8, 8)),
            "pooled": (
                nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
                (1, 7, 7),
            ),
            "series": (
                nn.Sequential(nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()),
                (2, 12),
            ),
            "upwards": (
                nn.Sequential(nn.ConvTranspose2d(1, 3, 3, stride=2), nn.Upsample(scale_factor=2), nn.Flatten()),
                (1, 4, 4),
            ),
        }
        for activation in activations():
            found[str(activation)] = (nn.Sequential(nn.Linear(6, 12), activation, nn.Linear(12, 3)), (6,))
        for model, _ in found.values():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                    module.weight.data.normal_()  # negative ones, too
    return found


@pytest.mark.parametrize("rounding", [False, True])
def test_no_point_of_the_box_is_outside(rounding):
    for name, (model, shape) in networks().items():
        model.eval()
        for radius in (0.0, 0.05, 0.7):
            centre = torch.randn(3, *shape, generator=seeded())
            low, high = interval_bounds(model, centre - radius, centre + radius, rounding=rounding)
            shares = torch.rand(100, 3, *shape, generator=seeded(1))
            shares[50:] = shares[50:].round()  # corners
            with torch.no_grad():
                outputs = model((centre + radius * (2 * shares - 1)).flatten(0, 1)).unflatten(0, (100, 3))
            slack = 0 if rounding else 1e-5 * (1 + outputs.abs().max())
            assert (outputs >= low - slack).all(), name
            assert (outputs <= high + slack).all(), name
            if radius == 0 and not rounding:  # a point: the network itself
                torch.testing.assert_close(low, outputs[0], rtol=0, atol=1e-5, msg=name)
            else:
                assert (high > low).any(), name


def test_rounding_costs_little(trained):
    model, images, labels = trained
    box = images - 0.01, images + 0.01
    plain, wide = (worst_margins(model, *box, labels, rounding=rounding) for rounding in (False, True))
    own = F.one_hot(labels, 8).bool()
    assert (wide[~own] > plain[~own]).all()
    assert ((wide - plain)[~own] / (plain[~own].abs().mean())).max() < 0.02


def test_elision_is_never_looser(trained):
    model, images, labels = trained
    tight, loose = (worst_margins(model, images - 0.02, images + 0.02, labels, elide=elide) for elide in (True, False))
    assert (tight <= loose + 1e-4).all()
    assert (tight < loose - 0.1).any()
    assert tight.gather(1, labels[:, None]).abs().max() == 0


def test_attacks_do_not_pass_the_bounds(trained):
    model, images, labels = trained
    for eps in (0.005, 0.02):
        worst = worst_margins(model, images - eps, images + eps, labels, rounding=True)
        moved = pgd(model, images, labels, eps=eps, loss="margin", until_fooled=False, generator=seeded())
        logits = model(moved).detach()
        assert (logits - logits.gather(1, labels[:, None]) <= worst).all()


def test_range_of_inputs_tightens(trained):
    model, images, labels = trained
    free, held = (certified(model, images, labels, eps=0.001, clip=clip).double().mean() for clip in (None, (0, 1)))
    assert 0 < free <= held < 1
    assert certified(model, images, labels, eps=0.0).equal(model(images).argmax(dim=1) == labels)


def test_bounds_can_be_trained_on(trained):
    model, images, labels = trained
    model.zero_grad()
    F.cross_entropy(worst_margins(model, images - 0.01, images + 0.01, labels), labels).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    model.zero_grad()


def test_network_is_left_in_its_mode():
    model = networks()["functional"][0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    interval_bounds(model, torch.zeros(2, 2, 8, 8), torch.ones(2, 2, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_interval_has_what_a_tensor_has_and_no_more():
    interval = Interval(torch.zeros(2, 3), torch.ones(2, 3))
    assert not hasattr(interval, "logits")
    assert interval.shape == (2, 3)
    assert interval.size(0) == interval.shape[0] == len(interval) == 2


class Choosing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


class Pair(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Softmax(dim=1), (4,), "no rule for softmax"),
        (nn.LayerNorm(4), (4,), "no rule for layer_norm"),
        (nn.MultiheadAttention(4, 1), (3, 4), "Interval bounds"),
        (nn.LSTM(4, 4), (3, 4), "Interval bounds"),
        (nn.LeakyReLU(-0.1), (4,), "must not be negative"),
        (nn.BatchNorm1d(4, track_running_stats=False), (4,), "statistics of training"),
        (Choosing(), (4,), "Interval bounds|interval bounds"),
        (Pair(), (4,), "returned tuple"),
    ],
)
def test_what_cannot_be_bounded_is_named(model, shape, message):
    inputs = torch.zeros(2, *shape)
    with pytest.raises(AssayError, match=message):
        interval_bounds(model, inputs, inputs + 1)


def test_low_must_be_below_high():
    with pytest.raises(ValueError, match="low must lie below high"):
        interval_bounds(nn.ReLU(), torch.ones(2, 3), torch.zeros(2, 3))
