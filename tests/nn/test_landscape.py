"""Curvature against the Hessian written out, and barriers of networks whose loss is known on the whole line."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from assay.nn import mlp
from assay.nn.landscape import loss_barrier, top_hessian_eigenvalue


def test_the_largest_eigenvalue_is_that_of_the_dense_hessian() -> None:
    """A network of 47 weights in double precision, at its start and after some training."""
    torch.manual_seed(0)
    net = mlp(4, 3, (5,)).double()
    inputs, labels = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    names, shapes = zip(*((name, p.shape) for name, p in net.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(net, weights, (inputs,)), labels)

    for _ in range(2):
        flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        values = torch.linalg.eigvalsh(hessian(loss)(flat))
        largest = values[values.abs().argmax()].item()
        found = top_hessian_eigenvalue(
            net, inputs, labels, max_iter=2000, tolerance=1e-10, generator=torch.Generator().manual_seed(1)
        )
        assert found == pytest.approx(largest, rel=1e-4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
        net.zero_grad()


def test_curvature_of_a_known_bowl_and_of_a_plane() -> None:
    """Squared error of a linear layer without bias: the Hessian is 2 / N times X^T X; a loss linear in the weights has none."""
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()

    def squared(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.squeeze(1) - labels).square().mean()

    expected = torch.linalg.eigvalsh(2 / 20 * inputs.T @ inputs).max().item()
    found = top_hessian_eigenvalue(net, inputs, inputs[:, 0], squared, max_iter=1000, tolerance=1e-12)
    assert found == pytest.approx(expected, rel=1e-6)
    negative = top_hessian_eigenvalue(net, inputs, inputs[:, 0], lambda o, y: -squared(o, y), max_iter=1000, tolerance=1e-12)
    assert negative == pytest.approx(-expected, rel=1e-6)
    flat = nn.Sequential(net, nn.Linear(1, 1).double().requires_grad_(False))
    assert top_hessian_eigenvalue(flat, inputs, inputs[:, 0], lambda o, y: (o.squeeze(1) * y).mean()) == 0.0


def test_the_barrier_of_a_double_well() -> None:
    """The loss (w^2 - 1)^2 has minima at -1 and 1 and rises by 1 between them; on one side of a bowl there is no barrier."""
    left, right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(left.weight, -1.0)
    nn.init.constant_(right.weight, 1.0)
    one = torch.ones(1, 1)

    def wells(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.square() - 1).square().mean()

    assert loss_barrier(left, right, one, one, wells) == pytest.approx(1.0)
    assert loss_barrier(left, right, one, one, lambda o, y: o.square().mean()) == 0.0
    assert loss_barrier(left, copy.deepcopy(left), one, one, wells) == 0.0
    # The ends' own heights do not count: from loss 9 at w = 2 to loss 0 at w = 1 the line lies above the loss.
    nn.init.constant_(left.weight, 2.0)
    assert loss_barrier(left, right, one, one, wells) == 0.0
