"""Deep Taylor decomposition and its companions: the rules by hand, what must add up, captum, and the ascent's closed form."""

from __future__ import annotations

import itertools

import captum.attr
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch import Tensor, nn

from assay.errors import AssayError
from assay.lab import Lab
from assay.papers.explain import interpreting_dnns as module
from assay.papers.explain.interpreting_dnns import (
    Gaussian,
    continuity,
    deep_taylor,
    pooled_net,
    prototype,
    sensitivity,
    simple_taylor,
)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _net(*widths: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(widths):
        layers += [nn.Linear(one, other, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def _by_hand(net: nn.Sequential, inputs: Tensor, target: Tensor, box: tuple[float, float] | None) -> Tensor:
    """Unit by unit, with the matrices of what went from where to where."""
    weights = [layer.weight.detach() for layer in net if isinstance(layer, nn.Linear)]
    values = [inputs]
    for weight in weights[:-1]:
        values.append((values[-1] @ weight.T).clamp(min=0))
    score = values[-1] @ weights[-1].T
    relevance = torch.zeros_like(score).scatter(1, target[:, None], score.gather(1, target[:, None]))
    for number in range(len(weights) - 1, -1, -1):
        weight, value = weights[number], values[number]
        if number:
            sent = value[:, None, :] * weight.clamp(min=0)  # (B, K, J)
        elif box is None:
            sent = weight.square().expand(len(value), -1, -1)
        else:
            sent = value[:, None, :] * weight - box[0] * weight.clamp(min=0) - box[1] * weight.clamp(max=0)
        relevance = ((sent / sent.sum(dim=2, keepdim=True)).nan_to_num() * relevance[:, :, None]).sum(dim=1)
    return relevance


@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.5, 2.0), None])
def test_deep_taylor_is_that_of_the_matrices(box: tuple[float, float] | None) -> None:
    net, inputs = _net(7, 9, 8, 4), _random(6, 7)
    target = net(inputs).argmax(dim=1)
    found = deep_taylor(net, inputs, target, *(box or (None, None)))
    torch.testing.assert_close(found, _by_hand(net, inputs, target, box), rtol=1e-4, atol=1e-6)


def test_what_must_add_up() -> None:
    """Without biases deep Taylor relevances are none below zero and sum to the score; so do those of simple Taylor."""
    torch.manual_seed(0)
    net, images = pooled_net(1, 10, 12).double(), _random(5, 1, 12, 12)
    score, target = net(images).max(dim=1)
    deep = deep_taylor(net, images, target)
    assert (deep >= 0).all()
    torch.testing.assert_close(deep.flatten(1).sum(dim=1), score, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(simple_taylor(net, images, target).flatten(1).sum(dim=1), score)
    leaf = images.clone().requires_grad_()
    slope = torch.autograd.grad(net(leaf).gather(1, target[:, None]).sum(), leaf)[0]
    torch.testing.assert_close(sensitivity(net, images, target).sum(), slope.square().sum())


def test_hidden_rule_is_captums() -> None:
    """With inputs in [0, inf) the z-B rule without an upper bound's share is z-plus, which captum has for every layer."""
    net, inputs = _net(7, 9, 8, 4), _random(6, 7) + 0.1
    target = net(inputs).argmax(dim=1)
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)  # type: ignore[assignment]
    theirs = captum.attr.LRP(net).attribute(inputs, target=target)
    ours = module._tensor(module.lrp(net, inputs, target, rule=module.Z_PLUS))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_taylor_at_a_root() -> None:
    """For a linear score any root gives the same sum; the terms are weight times distance."""
    net, inputs = nn.Linear(3, 2).double(), _random(4, 3)
    weight = net.weight[1].detach()
    root = inputs - ((inputs @ weight + net.bias[1].detach()) / weight.square().sum())[:, None] * weight
    found = simple_taylor(net, inputs, 1, root)
    torch.testing.assert_close(found, weight * (inputs - root))
    torch.testing.assert_close(found.sum(dim=1), net(inputs)[:, 1].detach())


def test_inputs_outside_of_the_box_are_refused() -> None:
    with pytest.raises(AssayError, match="outside of low and high"):
        deep_taylor(_net(3, 2), -_random(1, 3), 0)
    with pytest.raises(AssayError, match="both low and high"):
        deep_taylor(_net(3, 2), _random(1, 3), 0, low=None)


def test_continuity_by_hand() -> None:
    """An explanation that moves with the image changes by twice its size; one that stays does not change at all."""
    image = torch.zeros(1, 1, 5, 9)
    image[0, 0, 2, 4] = 3
    net = pooled_net(1, 2, 8)
    target = torch.tensor([0])
    moves = continuity(lambda model, inputs, target: inputs, net, image, target)
    torch.testing.assert_close(moves, torch.tensor([2 / (3 * 2**0.5)]))  # ||x-x'||_1 / ||x-x'||_2 / ||x||_1 = 6 / sqrt(18) / 3
    assert continuity(lambda model, inputs, target: torch.ones_like(inputs), net, image, target).item() == 0
    doubled = continuity(lambda model, inputs, target: 7 * inputs, net, image, target)
    torch.testing.assert_close(doubled, moves)


def test_prototype_of_a_linear_model_has_a_closed_form() -> None:
    """Two classes with logits (w.x, 0): at the largest log p - s ||x||^2, 2 s x = (1 - p) w."""
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    net = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.stack([weight, torch.zeros_like(weight)]))
    found = prototype(net, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.float64), strength=0.1, steps=300, lr=0.03)
    p = net(found).softmax(dim=1)[0, 0]
    torch.testing.assert_close(2 * 0.1 * found[0], (1 - p).detach() * weight, rtol=1e-3, atol=1e-4)
    twice = prototype(net, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.float64), None, 0.1, lambda z: 2 * z, 300, 0.03)
    q = net(twice).softmax(dim=1)[0, 0]
    torch.testing.assert_close(
        0.1 * twice[0] / 2, (1 - q).detach() * weight, rtol=1e-3, atol=1e-4
    )  # 2 s z = (1 - q) 2 w, x = 2 z
    assert net.weight.requires_grad


def test_gaussian_is_that_of_torch() -> None:
    inputs = _random(200, 6) @ _random(6, 6, seed=1)
    density = Gaussian.fit(inputs, rank=3)
    covariance = density.directions @ torch.diag(density.variances - density.noise) @ density.directions.T
    whole = torch.distributions.MultivariateNormal(density.mean, covariance + density.noise * torch.eye(6, dtype=torch.float64))
    ours, theirs = density(inputs), whole.log_prob(inputs)
    torch.testing.assert_close(ours - ours[0], theirs - theirs[0])
    torch.testing.assert_close(inputs.mean(dim=0), density.mean)
    with pytest.raises(AssayError, match="lower rank"):
        Gaussian.fit(inputs, rank=6)


def test_the_probe_on_a_table_and_on_images() -> None:
    from assay.view import View

    torch.manual_seed(0)
    for model, inputs, kind in (
        (pooled_net(1, 3, 8), torch.rand(4, 1, 8, 8), "images"),
        (_net(5, 6, 3).float(), torch.randn(4, 5), "table"),
    ):
        target = model(inputs).argmax(dim=1)
        seen = module.decomposed(View(model, inputs, target, None, inputs[:0], None, kind, ("a", "b", "c")))
        assert set(seen.attributions) == {"sensitivity", "simple Taylor", "LRP, alpha 2 beta 1", "deep Taylor"}
        torch.testing.assert_close(seen.each["sum of deep Taylor"], seen.each["score"].detach(), rtol=1e-2, atol=1e-3)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    areas = module.deep_taylor_more_selective(lab)
    assert set(areas) == {*module._METHODS, "random"}
    assert all(curve.y[0] == 1 and abs(curve.y[-1]) < 1e-6 for curve in areas.values())  # without biases, black says nothing
    assert set(module.deep_taylor_more_continuous(lab)) == set(module._METHODS)
    assert set(module.density_keeps_prototypes_real(lab)) == {"L2 penalty", "density"}
