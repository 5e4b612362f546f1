"""The rules of LRP give what zennit gives, biases and inputs of both signs included."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from assay import explain

RULES = {
    "epsilon": (explain.Epsilon(0.05), "Epsilon", {"epsilon": 0.05}),
    "gamma": (explain.Gamma(0.3), "Gamma", {"gamma": 0.3}),
    "alpha-beta": (explain.AlphaBeta(2, 1), "AlphaBeta", {"alpha": 2.0, "beta": 1.0}),
    "z-plus": (explain.Z_PLUS, "ZPlus", {}),
    "flat": (explain.Flat(), "Flat", {}),
    "z-box": (explain.ZBox(-3, 3), "ZBox", {"low": -3.0, "high": 3.0}),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_rules(name, network, torchvision_operators):
    rules = pytest.importorskip("zennit.rules")
    from zennit.attribution import Gradient
    from zennit.core import Composite

    model, inputs = networks.ALL[network]()
    inputs = inputs - inputs.mean()
    ours, peer, options = RULES[name]
    first = next(part for part in model if isinstance(part, nn.Linear | nn.Conv2d))
    only_first = name in ("flat", "z-box")

    def rule_of(_: object, __: str, part: nn.Module) -> object:
        if isinstance(part, nn.ReLU | nn.Tanh):
            return rules.Pass()
        if not isinstance(part, nn.Linear | nn.Conv2d):
            return None
        return getattr(rules, peer)(**options) if not only_first or part is first else rules.Epsilon(1e-6)

    target = torch.arange(len(inputs)) % 5
    with torch.no_grad():
        start = model(inputs) * torch.eye(5).double()[target]
    with Gradient(model=model, composite=Composite(module_map=rule_of)) as attributor:
        expected = attributor(inputs.clone(), start)[1]
    rule = (lambda layer: ours if layer.index == 0 else explain.Epsilon()) if only_first else ours
    torch.testing.assert_close(explain.lrp(model, inputs, target, rule=rule), expected, rtol=1e-5, atol=1e-7)
