"""Networks side by side against the same networks trained one after the other, by torch alone."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from assay.nn import mlp
from assay.train.schedules import cosine
from assay.train.side_by_side import train_side_by_side

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "nesterov, fused": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adam, fused": partial(torch.optim.Adam, lr=0.03, fused=True),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def examples(count: int = 96, features: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, features, generator=generator, dtype=torch.float64)
    return inputs, (inputs[:, 0] > inputs[:, 1]).long()


def alone(
    model: nn.Module, make: Callable[..., torch.optim.Optimizer], inputs: Tensor, labels: Tensor, steps: int, size: int, seed: int
) -> list[float]:
    """The same training by hand: a new order every epoch, a last batch that is not full left out."""
    optimizer = make(model.parameters())
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    losses = []
    for _ in range(steps):
        if not rows:
            order = torch.randperm(len(inputs), generator=generator)
            rows = [part for part in order.split(size) if len(part) == size]
        batch = rows.pop(0)
        loss = F.cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("own_orders", [False, True])
def test_each_network_is_trained_as_it_would_be_alone(own_orders: bool) -> None:
    """Nine optimizers at once, in double precision: weights and losses equal torch's own to 1e-7 after 20 steps."""
    inputs, labels = examples()
    torch.manual_seed(1)
    nets = [mlp(6, 2, (5,)).double() for _ in OPTIMIZERS]
    lone = copy.deepcopy(nets)
    seeds = list(range(len(nets))) if own_orders else 3
    size = 24 if own_orders else 20  # a divisor of the 96 examples, and none
    looks = train_side_by_side(
        nets, list(OPTIMIZERS.values()), inputs, labels, 20, size, seeds, [cosine] * len(nets), {"all": (inputs, labels)}, 5
    )
    for row, (net, make) in enumerate(zip(lone, OPTIMIZERS.values(), strict=True)):
        losses = alone(net, make, inputs, labels, 20, size, row if own_orders else 3)
        for mine, theirs in zip(nets[row].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=0)
        torch.testing.assert_close(looks.train_loss[row], torch.tensor(losses, dtype=torch.float64).view(4, 5).mean(1).float())
        end = F.cross_entropy(net(inputs), labels)
        assert looks.loss["all"][row, -1].item() == pytest.approx(end.item(), abs=1e-6)
        assert looks.accuracy["all"][row, -1].item() == pytest.approx((net(inputs).argmax(1) == labels).double().mean().item())
    assert looks.steps.tolist() == [5, 10, 15, 20]
    assert (looks.seconds > 0).all()


def test_batch_normalisation_keeps_statistics_of_its_own() -> None:
    inputs, labels = examples()

    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).double()

    torch.manual_seed(1)
    nets = [net(), net()]
    lone = copy.deepcopy(nets)
    makers = [partial(torch.optim.SGD, lr=rate) for rate in (0.05, 0.2)]
    train_side_by_side(nets, makers, inputs, labels, 10, 20, 3, [cosine] * 2, look_every=10)
    for mine, theirs, make in zip(nets, lone, makers, strict=True):
        alone(theirs, make, inputs, labels, 10, 20, 3)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value)


def test_a_network_that_diverges_disturbs_no_other() -> None:
    inputs, labels = examples()
    torch.manual_seed(1)
    nets = [mlp(6, 2, (5,)).double() for _ in range(2)]
    sound = copy.deepcopy(nets[0])
    makers = [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.SGD, lr=1e200)]
    looks = train_side_by_side(nets, makers, inputs, labels, 10, 20, look_every=5)
    train_side_by_side([sound], makers[:1], inputs, labels, 10, 20, look_every=5)
    assert not looks.train_loss[1, -1].isfinite()
    for mine, theirs in zip(nets[0].parameters(), sound.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_numbers_as_labels_and_what_does_not_fit() -> None:
    inputs, _ = examples()
    makers = [partial(torch.optim.SGD, lr=0.01)]

    def squared(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.squeeze(-1) - labels).square().mean()

    looks = train_side_by_side([nn.Linear(6, 1).double()], makers, inputs, inputs[:, 0], 40, 20, look_every=20, loss=squared)
    assert looks.train_loss[0, 1] < looks.train_loss[0, 0]
    net, labels = mlp(6, 2, (5,)).double(), (inputs[:, 0] > 0).long()
    with pytest.raises(ValueError, match="one optimizer"):
        train_side_by_side([net], [], inputs, labels, 10)
    with pytest.raises(ValueError, match="look_every"):
        train_side_by_side([net], makers, inputs, labels, 10, look_every=3)
    with pytest.raises(ValueError, match="batch_size"):
        train_side_by_side([net], makers, inputs, labels, 10, batch_size=97, look_every=5)
    with pytest.raises(ValueError, match="one seed"):
        train_side_by_side([net], makers, inputs, labels, 10, batch_size=9, seeds=[1, 2], look_every=5)
