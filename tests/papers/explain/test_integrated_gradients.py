"""Integrated gradients: closed forms, the paper's axioms and examples, and agreement with captum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import lenet, mlp
from assay.papers.explain import integrated_gradients as module
from assay.papers.explain.integrated_gradients import completeness_gap, integrated_gradients

RULES = ("gausslegendre", "trapezoid", "right")


class Function(nn.Module):
    """Any function of a batch as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def smooth() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


@pytest.mark.parametrize("rule", RULES)
def test_linear_function_gets_weight_times_difference(rule):
    weight, baseline = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]]), torch.tensor([0.3, -1.0, 2.0])
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    got = integrated_gradients(Function(lambda x: x @ weight.T), inputs, 1, baseline=baseline, steps=3, rule=rule)
    torch.testing.assert_close(got, weight[1] * (inputs - baseline))


@pytest.mark.parametrize(("rule", "gap"), [("gausslegendre", 1e-12), ("trapezoid", 1e-3), ("right", 5e-2)])
def test_completeness_on_a_smooth_network(rule, gap):
    model = smooth()
    inputs = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    attributions = integrated_gradients(model, inputs, target, rule=rule)
    missing = completeness_gap(model, attributions, inputs, target)
    assert missing.abs().max() < gap
    by_hand = model(inputs) - model(torch.zeros_like(inputs))
    torch.testing.assert_close(missing, attributions.sum(dim=1) - by_hand[torch.arange(8), target])


def test_right_rule_is_the_sum_of_the_paper():
    model, inputs, baseline = smooth(), torch.ones(1, 6, dtype=torch.float64), torch.full((6,), 0.2, dtype=torch.float64)
    total = torch.zeros(1, 6, dtype=torch.float64)
    for k in range(1, 8):
        at = (baseline + k / 7 * (inputs - baseline)).requires_grad_()
        total += torch.autograd.grad(model(at)[0, 2], at)[0]
    expected = (inputs - baseline) * total / 7
    torch.testing.assert_close(integrated_gradients(model, inputs, 2, baseline, steps=7, rule="right"), expected)


def test_saturated_score_gets_credit_that_the_gradient_denies():
    """The paper's counter-example: F(x) = 1 - relu(1 - x) is flat at x = 2, but rose by 1 on the way from 0."""
    model, inputs = Function(lambda x: 1 - F.relu(1 - x)), torch.tensor([[2.0]])
    assert module._gradient(model, inputs, torch.tensor([0])).item() == 0
    assert integrated_gradients(model, inputs, 0, steps=1000, rule="trapezoid").item() == pytest.approx(1, abs=2e-3)


def test_axioms():
    """A feature without influence gets nothing; exchangeable features get the same; attributions are linear in F."""
    inputs = torch.tensor([[1.5, 1.5, -0.7]])
    symmetric = Function(lambda x: (x[:, :1] * x[:, 1:2]).exp())
    first, second, ignored = integrated_gradients(symmetric, inputs, 0)[0].tolist()
    assert first == pytest.approx(second, rel=1e-5)
    assert first > 1
    assert ignored == 0
    other = Function(lambda x: x.sum(dim=1, keepdim=True).sin())
    both = Function(lambda x: 2 * symmetric(x) - 3 * other(x))
    parts = 2 * integrated_gradients(symmetric, inputs, 0) - 3 * integrated_gradients(other, inputs, 0)
    torch.testing.assert_close(integrated_gradients(both, inputs, 0), parts)


@pytest.mark.parametrize("rule", RULES)
def test_agrees_with_captum(rule):
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model, inputs = lenet(3, 7, 16).eval(), torch.rand(9, 3, 16, 16)
    target, baseline = torch.randint(7, (9,)), torch.rand(1, 3, 16, 16)
    method = rule if rule == "gausslegendre" else f"riemann_{rule}"
    steps = 20
    expected = attr.IntegratedGradients(model).attribute(
        inputs, baselines=baseline.expand_as(inputs), target=target, n_steps=steps, method=method
    )
    if rule == "trapezoid":
        expected = expected * steps / (steps - 1)  # captum's weights sum to (n - 1) / n instead of 1
    got = integrated_gradients(model, inputs, target, baseline, steps=steps, rule=rule)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert got.abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 4, 5, 1000])
def test_chunks_change_nothing(chunk):
    model, inputs = smooth(), torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = torch.arange(9) % 4
    expected = torch.cat([integrated_gradients(model, inputs[i : i + 1], int(target[i]), steps=11) for i in range(9)])
    torch.testing.assert_close(integrated_gradients(model, inputs, target, steps=11, chunk=chunk), expected)


def test_no_inputs():
    assert integrated_gradients(smooth(), torch.empty(0, 6, dtype=torch.float64), 0).shape == (0, 6)


class Viewing(nn.Module):
    """A network as many are written: ``view`` on feature maps, which fails in channels_last."""

    def __init__(self, flatten):
        super().__init__()
        self.convolution, self.head, self.flatten = nn.Conv2d(3, 4, 3), nn.Linear(144, 2), flatten

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.flatten(self.convolution(images).tanh()))


def test_network_that_views_its_feature_maps():
    torch.manual_seed(0)
    viewing = Viewing(lambda maps: maps.view(len(maps), -1))
    plain = Viewing(lambda maps: maps.flatten(1))
    plain.load_state_dict(viewing.state_dict())
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(integrated_gradients(viewing, images, 1), integrated_gradients(plain, images, 1))


def test_network_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 2))
    model[1].eval()
    model[4].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.rand(4, 2, 8, 8)

    def state():
        return (
            [module.training for module in model.modules()],
            [(p.requires_grad, p.grad, p.stride(), p.data_ptr()) for p in model.parameters()],
        )

    expected = state()
    with torch.no_grad():
        first = integrated_gradients(model, inputs, 0)
    torch.testing.assert_close(integrated_gradients(model, inputs, 0), first)  # dropout is off
    assert state() == expected
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not first.requires_grad
    assert inputs.grad is None
    with pytest.raises(RuntimeError):
        integrated_gradients(model, torch.rand(4, 5, 8, 8), 0)
    assert state() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "left"}, "rule must be"),
        ({"steps": 0}, "0 steps are too few"),
        ({"steps": 1, "rule": "trapezoid"}, "1 steps are too few"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"\(4,\) classes"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(smooth(), torch.zeros(4, 6, dtype=torch.float64), **{"target": 0, **arguments})


# ---- the controls of the claims


def stack(*layers: tuple[list, list]) -> nn.Sequential:
    """relu(W x + b), one after the other."""
    parts: list[nn.Module] = []
    for weight, bias in layers:
        parts += [module._linear(torch.tensor(weight), torch.tensor(bias)), nn.ReLU()]
    return nn.Sequential(*parts)


def test_example_of_the_paper():
    """Figure 7: two networks of the same function; only integrated gradients say the same about both."""
    f = stack(([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), ([[1.0, -1.0]], [-1.0]))  # relu(relu(x1) - 1 - relu(x2))
    g = stack(([[1.0, 0.0], [0.0, 1.0]], [-1.0, 0.0]), ([[1.0, -1.0]], [0.0]))  # relu(relu(x1 - 1) - relu(x2))
    inputs, target = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    assert f(inputs).item() == g(inputs).item() == 1
    expected = torch.tensor([[1.5, -0.5]])
    for network in (f, g):
        torch.testing.assert_close(integrated_gradients(network, inputs, target, steps=1000), expected, rtol=0, atol=5e-3)
    for method in (module._deeplift, module._lrp):
        torch.testing.assert_close(method(f, inputs, target), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(method(g, inputs, target), torch.tensor([[2.0, -1.0]]), rtol=0, atol=1e-5)


def test_deeplift_agrees_with_captum():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    network = nn.Sequential(*list(mlp(12, 5, (16, 16)))[1:])
    inputs, target = torch.rand(20, 12), torch.arange(20) % 5
    expected = attr.DeepLift(network).attribute(inputs, baselines=torch.zeros_like(inputs), target=target)
    torch.testing.assert_close(module._deeplift(network, inputs, target), expected, rtol=1e-4, atol=1e-6)


def test_rewrites_keep_the_function():
    torch.manual_seed(0)
    network = nn.Sequential(*list(mlp(12, 5, (16, 16)))[1:]).double()
    inputs = torch.rand(20, 12, dtype=torch.float64)
    rewrites = dict(module._rewrites(network, torch.Generator().manual_seed(0)))
    assert len(rewrites) == 4
    for rewritten in rewrites.values():
        torch.testing.assert_close(rewritten(inputs), network(inputs))


def test_lrp_conserves_relevance():
    torch.manual_seed(0)
    network = nn.Sequential(*list(mlp(12, 5, (16, 16)))[1:]).double()
    inputs, target = torch.rand(20, 12, dtype=torch.float64), torch.arange(20) % 5
    scores = network(inputs).gather(1, target[:, None]).squeeze(1)
    relevance = module._lrp(network, inputs, target, epsilon=1e-12).sum(dim=1)
    torch.testing.assert_close(relevance, scores, rtol=1e-6, atol=1e-6)
