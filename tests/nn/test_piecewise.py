"""Networks as affine maps and pieces, against the network and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import lenet
from assay.nn.piecewise import chain, local_functions
from assay.own.networks import TableNet


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.leaky_relu(F.relu(self.one(x)) - 0.5, 0.2))


def convolution() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3)
    )
    net(torch.randn(20, 1, 6, 6))  # running statistics
    return net


NETS = {
    "functional": (Functional, (3,)),
    "hard": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Hardtanh(-0.5, 0.3), nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 2)),
        (3,),
    ),
    "convolution": (convolution, (1, 6, 6)),
    "table": (lambda: TableNet(6, 2, [(2, 5)], hidden=(8, 8)), (6,)),
}


@pytest.mark.parametrize("name", NETS)
def test_local_functions_are_the_networks_value_and_jacobian(name):
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().double().eval()
    inputs = torch.randn(30, *shape, dtype=torch.float64) * 2
    maps, shifts, nearest = local_functions(net, inputs.numpy())
    said = net(inputs).detach().numpy()
    flat = inputs.flatten(1).numpy()
    np.testing.assert_allclose(np.einsum("ncd,nd->nc", maps, flat) + shifts, said, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(net, inputs[:1]).reshape(said.shape[1], -1).numpy()
    np.testing.assert_allclose(maps[0], jacobian, atol=1e-12)
    # within the distance to the next hyperplane the function is the same, a little beyond it some network's is another
    random = np.random.default_rng(0).normal(size=flat.shape)
    inside = flat + 0.999 * nearest[:, None] * random / np.linalg.norm(random, axis=1, keepdims=True)
    moved = net(torch.from_numpy(inside).view(-1, *shape)).detach().numpy()
    np.testing.assert_allclose(np.einsum("ncd,nd->nc", maps, inside) + shifts, moved, atol=1e-12)


def test_the_distance_is_that_to_where_a_unit_switches():
    net = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        net[0].bias.fill_(-5.0)
    assert local_functions(net, [[0.0, 0.0], [3.0, 4.0]])[2] == pytest.approx([1.0, 4.0])


def test_the_network_is_left_as_it_was():
    net = convolution().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    chain(net, (1, 6, 6))
    assert net.training
    assert next(net.parameters()).dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Skip(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)) + torch.cat([x, x[:, :2]], dim=1))


class Branch(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x))) if x.sum() > 0 else self.two(self.one(x))


@pytest.mark.parametrize(
    ("make", "shape", "says"),
    [
        (lambda: lenet(size=8), (1, 8, 8), "not linear"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), (2,), "not linear"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (3,), "shape"),
        (Skip, (3,), "no row of layers"),
        (Branch, (3,), "followed"),
    ],
)
def test_what_is_no_chain_is_said(make, shape, says):
    with pytest.raises(ValueError, match=says):
        chain(make(), shape)
