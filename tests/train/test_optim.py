"""LAMB: timm step by step, the formula by hand, its invariants, and a training that is interrupted."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from assay.data import Dataset
from assay.nn import lenet, mlp
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.optim import Lamb, lamb, without_decay_of_vectors


def twins(dtype: torch.dtype = torch.float32, channels_last: bool = False) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 70), nn.Linear(70, 5)).to(dtype)
    nn.init.zeros_(net[3].bias)  # a length of 0
    if channels_last:
        net.to(memory_format=torch.channels_last)
    return net, copy.deepcopy(net)


def walk(
    ours: nn.Module, peer: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...], steps: int = 12, size: float = 1.0
) -> None:
    """The same gradients to both: some steps long, some short; the last layer's bias gets none of its own."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for p, q in zip(ours.parameters(), peer.parameters(), strict=True):
            noise = size * 10 ** (-step % 3) * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad = noise.clone()  # contiguous, also where the weights are in channels_last
            q.grad = noise.clone()
        ours[4].bias.grad = torch.zeros_like(ours[4].bias)
        peer[4].bias.grad = torch.zeros_like(peer[4].bias)
        for optimizer in optimizers:
            optimizer.step()


def same(ours: nn.Module, peer: nn.Module, rtol: float, atol: float) -> None:
    for p, q in zip(ours.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.0}, {"weight_decay": 0.0, "always_adapt": True}, {"max_grad_norm": None}]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_timm_step_by_step(settings: dict, channels_last: bool) -> None:
    peer_kind = pytest.importorskip("timm.optim").Lamb
    ours, peer = twins(channels_last=channels_last)
    start = copy.deepcopy(ours)
    optimizers = Lamb(ours.parameters(), lr=0.02, **settings), peer_kind(peer.parameters(), lr=0.02, **settings)
    for _ in range(5):
        walk(ours, peer, optimizers, steps=3, size=0.01)
        same(ours, peer, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):  # they went somewhere
        same(ours, start, rtol=1e-2, atol=1e-2)


def test_equals_timm_in_double_precision_and_groups() -> None:
    peer_kind = pytest.importorskip("timm.optim").Lamb
    ours, peer = twins(torch.float64)
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-8, "max_grad_norm": None}
    groups = [without_decay_of_vectors(net.parameters(), 0.1) for net in (ours, peer)]
    walk(ours, peer, (Lamb(groups[0], **settings), peer_kind(groups[1], **settings)))
    same(ours, peer, rtol=1e-11, atol=1e-13)


def by_hand(w: Tensor, gradients: list[Tensor], lr: float, decay: float, eps: float = 1e-6) -> Tensor:
    """Algorithm 2 of the paper in its own words."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + eps) + decay * w
        w = w - lr * w.norm() / r.norm() * r
    return w


def test_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(40, 30, generator=generator, dtype=torch.float64) for _ in range(6)]
    weights = nn.Parameter(start.clone())
    optimizer = Lamb([weights], lr=0.1, weight_decay=0.05, max_grad_norm=None)
    for gradient in gradients:
        weights.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weights.detach(), by_hand(start, gradients, 0.1, 0.05), rtol=1e-12, atol=1e-14)


def test_a_step_is_a_share_of_the_weights_whatever_the_gradient() -> None:
    """Each tensor moves by exactly lr of its own length; gradients 1000 times as long move it alike."""
    moved = []
    for size in (1.0, 1000.0):
        net, _ = twins()
        before = [p.detach().clone() for p in net.parameters()]
        for place, p in enumerate(net.parameters()):
            p.grad = size * torch.randn(p.shape, generator=torch.Generator().manual_seed(place))
        Lamb(net.parameters(), lr=0.01, eps=1e-30, always_adapt=True, max_grad_norm=None).step()
        for p, q in zip(net.parameters(), before, strict=True):
            if q.norm() > 0:
                assert (p - q).norm().item() == pytest.approx(0.01 * q.norm().item(), rel=1e-4)
        moved.append([p.detach().clone() for p in net.parameters()])
    for p, q in zip(*moved, strict=True):
        torch.testing.assert_close(p, q)


def test_the_gradient_of_all_groups_together_is_clipped() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
    first.grad, second.grad = torch.full((3,), 30.0), torch.full((4,), 40.0)
    length = torch.cat([first.grad, second.grad]).norm()
    Lamb([{"params": [first]}, {"params": [second], "weight_decay": 0.0}], max_grad_norm=2.0).step()
    torch.testing.assert_close(first.grad, torch.full((3,), 30.0) * 2 / length)
    torch.testing.assert_close(second.grad, torch.full((4,), 40.0) * 2 / length)


def test_a_parameter_that_comes_later_starts_as_if_it_were_first() -> None:
    early, late, alone = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    together, single = Lamb([early, late], lr=0.1, max_grad_norm=None), Lamb([alone], lr=0.1, max_grad_norm=None)
    for _ in range(5):
        early.grad = torch.randn(2, 2)
        together.step()
    assert torch.equal(late, torch.ones(2, 2))
    late.grad, alone.grad = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 2], [3, 4]])
    together.step()
    single.step()
    assert torch.equal(late, alone)


def test_goes_on_from_its_state() -> None:
    ours, peer = twins()
    first, second = Lamb(ours.parameters(), lr=0.02), Lamb(peer.parameters(), lr=0.02)
    walk(ours, peer, (first, second), steps=3)
    resumed = Lamb(peer.parameters(), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(second.state_dict()))
    walk(ours, peer, (first, resumed), steps=3)
    same(ours, peer, rtol=0, atol=0)


def test_settings() -> None:
    weights = nn.Parameter(torch.ones(2, 2))
    for wrong in ({"lr": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}, {"max_grad_norm": 0.0}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Lamb([weights], **wrong)
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        Lamb(table.parameters()).step()
    optimizer = Lamb([weights])
    assert optimizer.step() is None  # no gradient, no step
    assert torch.equal(weights, torch.ones(2, 2))
    assert optimizer.step(lambda: (weights * weights).sum().backward() or 7) == 7
    assert not torch.equal(weights, torch.ones(2, 2))


def test_vectors_have_no_decay() -> None:
    net = lenet()
    matrices, vectors = lamb(net.parameters(), lr=0.01, weight_decay=0.3, eps=1e-8).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert matrices["eps"] == vectors["eps"] == 1e-8
    assert {p.dim() for p in matrices["params"]} == {2, 4}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert len(without_decay_of_vectors([nn.Parameter(torch.ones(3))], 0.1)) == 1


def test_groups_keep_their_own_settings() -> None:
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    given = [{"params": list(body.parameters())}, {"params": list(head.parameters()), "weight_decay": 0.0, "lr": 1.0}]
    found = lamb(given, lr=0.01, weight_decay=0.3).param_groups
    assert [(len(group["params"]), group["weight_decay"], group["lr"]) for group in found] == [
        (1, 0.3, 0.01),
        (1, 0.0, 0.01),
        (2, 0.0, 1.0),
    ]


def test_trains_a_network(table: Dataset) -> None:
    recipe = Recipe(
        table, model=partial(mlp, 8, 2, (32,)), optimizer=partial(lamb, lr=0.02, weight_decay=0.01), epochs=20, batch_size=32
    )
    assert fit(recipe, 0).accuracy() > 0.95
