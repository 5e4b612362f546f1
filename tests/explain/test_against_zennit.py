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
def test_rules(name, network):
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


class _SumBlock(networks.Block):
    """The same block with its sum as a module, where zennit looks for it."""

    def __init__(self, width: int) -> None:
        from zennit.layer import Sum

        super().__init__(width)
        self.sum = Sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(self.sum(torch.stack([out, x], dim=-1)))


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("flat", "z-box")])
def test_rules_in_a_residual_network(name):
    """zennit merges normalisations into convolutions by a canonizer, and takes sums and means by the rules it is told."""
    rules = pytest.importorskip("zennit.rules")
    from zennit.attribution import Gradient
    from zennit.canonizers import NamedMergeBatchNorm
    from zennit.core import Composite
    from zennit.layer import Sum

    model, inputs = networks.resnet()
    inputs = inputs - inputs.mean()
    ours, peer, options = RULES[name]
    target = torch.arange(len(inputs)) % 5
    found = explain.lrp(model, inputs, target, rule=ours)

    twin = nn.Sequential(*[_SumBlock(6).double() if isinstance(part, networks.Block) else part for part in model]).eval()
    twin.load_state_dict(model.state_dict())

    def rule_of(_: object, __: str, part: nn.Module) -> object:
        if isinstance(part, nn.ReLU):
            return rules.Pass()
        if isinstance(part, nn.Linear | nn.Conv2d):
            return getattr(rules, peer)(**options)
        return rules.Norm(stabilizer=1e-9) if isinstance(part, Sum | nn.AvgPool2d | nn.AdaptiveAvgPool2d) else None

    with torch.no_grad():
        start = twin(inputs) * torch.eye(5).double()[target]
    pairs = [(["0"], "1"), *(([f"{block}.conv{k}"], f"{block}.norm{k}") for block in (3, 5) for k in (1, 2))]
    composite = Composite(module_map=rule_of, canonizers=[NamedMergeBatchNorm(pairs)])
    with Gradient(model=twin, composite=composite) as attributor:
        expected = attributor(inputs.clone(), start)[1]
    # Where a sum is nearly 0, as out of dead units, what keeps it away from 0 is seen; alpha-beta doubles it in every layer.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4 * float(expected.abs().max()))
