"""A grid of optimizers and learning rates: all side by side, against one after the other by torch alone."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from assay.data import load
from assay.nn import mlp
from assay.train.side_by_side import train_side_by_side

JOB = "28 trainings (4 optimizers, 7 rates) of a perceptron 64-32-10 on the digits, 200 steps of 64"
WANTED = {"one_after_the_other": 2.0}
PROCESSOR_TIME = True

STEPS, BATCH = 200, 64
MAKERS = [
    partial(kind, lr=10 ** (-place / 2), **more)
    for kind, more in (
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {}),
    )
    for place in range(2, 9)
]


def _networks() -> list[nn.Module]:
    networks: list[nn.Module] = []
    for _ in MAKERS:
        torch.manual_seed(0)
        networks.append(mlp(64, 10, (32,)))
    return networks


def _ends(networks: list[nn.Module]) -> torch.Tensor:
    return torch.stack([torch.nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks])


def ours() -> Callable[[], torch.Tensor]:
    train = load("digits").train

    def run() -> torch.Tensor:
        networks = _networks()
        train_side_by_side(networks, MAKERS, train.inputs, train.labels, STEPS, BATCH, seeds=1, look_every=STEPS)
        return _ends(networks)

    return run


def one_after_the_other() -> Callable[[], torch.Tensor]:
    train = load("digits").train

    def run() -> torch.Tensor:
        networks = _networks()
        for network, make in zip(networks, MAKERS, strict=True):
            optimizer = make(network.parameters())
            generator = torch.Generator().manual_seed(1)
            rows: list[torch.Tensor] = []
            for _ in range(STEPS):
                if not rows:
                    order = torch.randperm(len(train), generator=generator)
                    rows = [part for part in order.split(BATCH) if len(part) == BATCH]
                batch = rows.pop(0)
                optimizer.zero_grad()
                F.cross_entropy(network(train.inputs[batch]), train.labels[batch]).backward()
                optimizer.step()
        return _ends(networks)

    return run


def agree(ours: torch.Tensor, peer: torch.Tensor) -> None:
    # Two hundred steps of single precision, sums in another order.
    torch.testing.assert_close(ours, peer, atol=5e-3, rtol=5e-3)
