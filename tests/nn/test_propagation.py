"""Signal propagation plots: chains whose moments are known, normalisation by hand, and the blocks of others' networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import lenet, mlp
from assay.nn.propagation import signal_propagation
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.architectures.wide_resnet import WideResNet


class Chain(nn.Module):
    """Branches that double their input and add 1, scaled by 3 and by a learnable half, beside the input itself."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(2, 2, 1) for _ in range(2))
        for conv in (self.one, self.two):
            nn.init.dirac_(conv.weight)
            conv.weight.data.mul_(2)
            nn.init.ones_(conv.bias)
        self.factor, self.inplace = nn.Parameter(torch.tensor(0.5)), inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.one(x)
        if self.inplace:
            out += x
        else:
            out = torch.add(x, out * self.factor, alpha=3)
        return out + self.two(out) * 0.1


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("batch_size", [1000, 7])
def test_moments_of_a_chain(inplace: bool, batch_size: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 2, 5, 5)
    net = Chain(inplace)
    seen = signal_propagation(net, inputs, batch_size)
    first = 3 * inputs + 1 if inplace else 4 * inputs + 1.5
    expected = [(first, 2 * inputs + 1), (1.2 * first + 0.1, 2 * first + 1)]
    assert len(seen) == 2
    for row, (signal, branch) in zip(seen.itertuples(), expected, strict=True):
        assert row.var == pytest.approx(signal.var(dim=(0, 2, 3), correction=0).mean().item(), rel=1e-5)
        assert row.mu2 == pytest.approx(signal.mean(dim=(0, 2, 3)).square().mean().item(), rel=1e-5)
        assert row.res_var == pytest.approx(branch.var(dim=(0, 2, 3), correction=0).mean().item(), rel=1e-5)


def test_batch_normalisation_normalises_by_the_batch_and_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    net = WideResNet(16, 1, in_channels=3, base=8).train()
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    inputs = 5 + 3 * torch.randn(32, 3, 12, 12)
    seen = signal_propagation(net, inputs)
    assert list(seen.block) == [f"groups.{group}.{block}" for group in range(3) for block in range(2)]
    assert net.training
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())
    x = net.stem(inputs)
    block = net.groups[0][0]
    out = block.conv2(
        F.relu(F.batch_norm(block.conv1(F.relu(F.batch_norm(x, None, None, training=True))), None, None, training=True))
    )
    assert seen.res_var[0] == pytest.approx(out.var(dim=(0, 2, 3), correction=0).mean().item(), rel=1e-3)
    assert seen["var"][0] == pytest.approx((x + out).var(dim=(0, 2, 3), correction=0).mean().item(), rel=1e-3)


def test_blocks_of_others() -> None:
    torchvision = pytest.importorskip("torchvision")
    seen = signal_propagation(torchvision.models.resnet18(), torch.randn(4, 3, 32, 32))
    assert list(seen.block) == [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    ours = signal_propagation(cifar_resnet(14, width=4), torch.randn(4, 3, 16, 16))
    assert list(ours.block) == [f"stages.{stage}.{block}" for stage in range(3) for block in range(2)]
    assert ours.res_var.notna().all()


def test_without_branches_layers_are_looked_at() -> None:
    seen = signal_propagation(lenet(), torch.randn(8, 1, 28, 28))
    assert list(seen.block) == ["conv1", "conv2", "hidden", "head"]
    assert all(math.isnan(value) for value in seen.res_var)
    rows = torch.randn(100, 6)
    net = mlp(6, 3, (5,))
    seen = signal_propagation(net, rows)
    assert seen["var"][0] == pytest.approx(net[1](rows).var(dim=0, correction=0).mean().item(), rel=1e-5)


class Recurrent(nn.Module):
    """Something recurrent or bilinear beside its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x, x) if isinstance(self.layer, nn.Bilinear) else self.layer(x)[0]
        return x + 0.5 * out


def test_layers_that_torch_computes_in_one_piece() -> None:
    torch.manual_seed(0)
    net, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).eval(), torch.randn(20, 5, 8)
    seen = signal_propagation(net, x)
    assert len(seen) == 2  # attention, and the two linear layers
    branch = net._sa_block(net.norm1(x), None, None)
    assert seen.res_var[0] == pytest.approx(branch.var(dim=(0, 2), correction=0).mean().item(), rel=1e-4)
    for layer in (
        nn.LSTM(8, 8, batch_first=True),
        nn.GRU(8, 8),
        nn.RNN(8, 8),
        nn.RNN(8, 8, nonlinearity="relu"),
        nn.Bilinear(8, 8, 8),
    ):
        assert signal_propagation(Recurrent(layer), x).res_var.notna().tolist() == [True]


class Looks(nn.Module):
    """What it does depends on what it sees; its answer is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for _ in range(1 + int(x.max() > 100)):
            x = x + self.layer(x).mul_(0.5)
        return {"logits": x}


def test_whatever_is_done_in_python_is_followed() -> None:
    torch.manual_seed(0)
    net, x = Looks(), torch.randn(60, 6)
    seen = signal_propagation(net, x)
    assert len(seen) == 1
    assert seen.res_var[0] == pytest.approx(net.layer(x).var(dim=0, correction=0).mean().item(), rel=1e-5)
    assert seen["var"][0] == pytest.approx((x + net.layer(x) / 2).var(dim=0, correction=0).mean().item(), rel=1e-5)
    assert len(signal_propagation(net, 200 + x)) == 2
    with pytest.raises(ValueError, match="other ways"):
        signal_propagation(net, torch.cat([x, 200 + x]), batch_size=60)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="two inputs"):
        signal_propagation(mlp(6, 3), torch.randn(1, 6))
    with pytest.raises(ValueError, match="no layers"):
        signal_propagation(nn.Sigmoid(), torch.randn(4, 6))
