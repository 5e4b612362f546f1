"""RevealCancel: worked by hand, Shapley values of one unit, and the rescale rule where nothing cancels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.explain import deeplift
from assay.lab import Lab
from assay.papers.explain import deeplift as module
from assay.papers.explain.deeplift import contributions, erase_by_difference, reveal_cancel
from assay.view import View


def unit(weight: list[float], bias: float, f: nn.Module) -> nn.Module:
    layer = nn.Linear(len(weight), 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
        layer.bias.fill_(bias)
    return nn.Sequential(layer, f)


def test_one_unit_by_hand():
    """z from 1 to 3 by 2 + 4 - 1 - 3: dy+ = (6 + 3) / 2 = 4.5, dy- = (-1 - 4) / 2 = -2.5; each contribution takes its share."""
    found = reveal_cancel(unit([1, -2, -3, 4], 1, nn.ReLU()), torch.tensor([[-1.0, -1.0, 1.0, 1.0]]).double(), 0)
    expected = torch.tensor([[-1 * 2.5 / 4, 2 * 4.5 / 6, -3 * 2.5 / 4, 4 * 4.5 / 6]]).double()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("f", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU()])
def test_two_inputs_of_opposite_sign_have_their_shapley_values(f):
    torch.manual_seed(0)
    model = unit([1.5, -0.8], 0.3, f)
    inputs, start = torch.rand(20, 2).double() + 0.2, torch.rand(20, 2).double() - 0.9

    def value(members: set[int]) -> Tensor:
        return model(torch.stack([inputs[:, i] if i in members else start[:, i] for i in range(2)], dim=1)).squeeze(1)

    expected = torch.stack([(value({i}) - value(set()) + value({0, 1}) - value({1 - i})) / 2 for i in range(2)], dim=1)
    torch.testing.assert_close(reveal_cancel(model, inputs, 0, baseline=start), expected.detach())


def test_nothing_cancels_nothing_is_revealed():
    """Where all contributions to every unit have one sign, the rule is the rescale rule."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.abs_()
    inputs, target = torch.rand(5, 6).double(), torch.arange(5) % 3
    torch.testing.assert_close(reveal_cancel(model, inputs, target), deeplift(model, inputs, target))
    with torch.no_grad():
        model[2].weight[:, ::2] *= -1
    assert (reveal_cancel(model, inputs, target) - deeplift(model, inputs, target)).abs().max() > 1e-4


class Net(nn.Module):
    """Everything that the rules cover: normalisation, residual connections, means, maxima, scaling, several nonlinearities."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6 * 16, 12), nn.Linear(12, 4)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        nn.init.uniform_(self.norm.weight, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(0.5 - self.norm(self.first(x)) * 2).relu()
        x = F.relu(x - self.second(x))
        x = F.max_pool2d(F.avg_pool2d(x, 2), 2, stride=1, padding=1)[:, :, :4, :4]
        hidden = self.hidden(x.flatten(1)).view(-1, 3, 4).flatten(1).tanh().sigmoid()
        return self.head(hidden) + hidden.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("rescale", [False, True])
def test_contributions_sum_to_the_difference(rescale):
    model = Net().double().eval()
    inputs, start, target = torch.randn(5, 2, 8, 8).double(), torch.randn(5, 2, 8, 8).double(), torch.arange(5) % 4
    found = reveal_cancel(model, inputs, target, baseline=start, rescale_convolutions=rescale)
    gained = (model(inputs) - model(start)).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(found.flatten(1).sum(1), gained)
    plain = deeplift(model, inputs, target, baseline=start)
    assert (found - plain).abs().max() > 1e-4
    single = torch.cat([reveal_cancel(model, inputs[i : i + 1], target[i : i + 1], baseline=start[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(reveal_cancel(model, inputs, target, baseline=start), single)


def test_convolutions_may_be_left_to_the_rescale_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)).double()
    inputs, target = torch.randn(4, 4, 10).double(), torch.arange(4) % 3
    plain = deeplift(model, inputs, target)
    torch.testing.assert_close(reveal_cancel(model, inputs, target, rescale_convolutions=True), plain)
    assert (reveal_cancel(model, inputs, target) - plain).abs().max() > 1e-3


def one_by_one(model: nn.Sequential, x: Tensor, start: Tensor, target: int) -> Tensor:
    """The rules in loops over units, for one example and a stack of linear layers and ReLUs."""
    values, starts = [x], [start]
    for layer in model:
        values.append(layer(values[-1]))
        starts.append(layer(starts[-1]))
    more = less = F.one_hot(torch.tensor(target), len(values[-1])).double()
    for place in reversed(range(len(model))):
        layer, difference = model[place], values[place] - starts[place]
        if isinstance(layer, nn.ReLU):
            weight, into = model[place - 1].weight, values[place - 1] - starts[place - 1]
            up = [sum(max(w * d, 0.0) for w, d in zip(row, into, strict=True)) for row in weight.tolist()]
            down = [sum(min(w * d, 0.0) for w, d in zip(row, into, strict=True)) for row in weight.tolist()]
            factors = []
            for z, p, n in zip(starts[place].tolist(), up, down, strict=True):
                f = [max(z + a * float(p) + b * float(n), 0.0) for a, b in itertools.product((0, 1), (0, 1))]
                up_by, down_by = f[2] - f[0] + f[3] - f[1], f[1] - f[0] + f[3] - f[2]
                factors.append((up_by / 2 / (float(p) or 1), down_by / 2 / (float(n) or 1)))
            more = torch.stack([m * a for m, (a, _) in zip(more, factors, strict=True)])
            less = torch.stack([m * b for m, (_, b) in zip(less, factors, strict=True)])
        else:
            found = torch.zeros_like(difference)
            for j, row in enumerate(layer.weight.detach()):
                chosen = torch.where(row * difference > 0, more[j], less[j])
                found += row * torch.where(difference == 0, (more[j] + less[j]) / 2, chosen)
            more = less = found
    return more * (x - start)


def test_agrees_with_the_rules_unit_by_unit():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    inputs, start = torch.randn(4, 7).double(), torch.randn(4, 7).double()
    with torch.no_grad():
        expected = torch.stack([one_by_one(model, x, s, 1) for x, s in zip(inputs, start, strict=True)])
    torch.testing.assert_close(reveal_cancel(model, inputs, 1, baseline=start), expected)


def test_erasing_takes_the_largest_differences():
    inputs, one, other = (
        torch.ones(1, 1, 2, 3),
        torch.tensor([[[[5.0, 1, 0], [4, 3, 2]]]]),
        torch.tensor([[[[0.0, 2, 0], [3, 0, 0]]]]),
    )
    # differences: 5, -1, 0, 1, 3, 2
    assert erase_by_difference(inputs, one, other, most=3).flatten().tolist() == [0, 1, 1, 1, 0, 0]
    assert erase_by_difference(inputs, one, other, most=6).flatten().tolist() == [0, 1, 1, 0, 0, 0]


def test_what_has_no_rule_is_said():
    with pytest.raises(AssayError, match="no rule for softmax"):
        reveal_cancel(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), torch.rand(2, 3), 0)
    with pytest.raises(AssayError, match="does not fit"):
        reveal_cancel(nn.Linear(3, 2), torch.rand(2, 3), 0, baseline=torch.zeros(4, 3))


def test_probe():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(5, 4)
    view = View(network, inputs, network(inputs).argmax(1), None, inputs[:0], None, "table", ("a", "b", "c"))
    seen = contributions(view)
    assert set(seen.attributions) == {"RevealCancel", "rescale"}
    assert (seen.each["how far from the rescale rule"] > 0).any()


def test_claims_run(home):
    lab = Lab(scale="smoke")
    least = module.finds_min_interaction(lab)
    assert least["RevealCancel"] < 1e-5
    assert least["rescale"] == pytest.approx(0.5, abs=1e-4)
    assert set(module.erases_digits_better(lab)) == set(module._METHODS)
