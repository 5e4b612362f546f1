"""Five replicas of the network of 1989, one example a step: assay against five runs of a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from assay.papers.architectures.lecun1989 import LeCun1989, time_travel

JOB = "LeCun 1989, SGD on single examples, 5 seeds, 1,000 presentations each"
WANTED = {"plain_pytorch": 10.0}
SEEDS = range(5)


def _job() -> tuple[Tensor, Tensor]:
    """The same images and labels on both sides."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1000, 1, 16, 16, generator=generator) * 2 - 1, torch.randint(10, (1000,), generator=generator)


def _networks() -> list[LeCun1989]:
    return [time_travel(0).model(torch.Generator().manual_seed(seed)) for seed in SEEDS]


def _weights(networks: list[LeCun1989]) -> Tensor:
    return torch.stack([parameters_to_vector(net.parameters()).detach() for net in networks])


def ours() -> Callable[[], Tensor]:
    from assay.papers.architectures.lecun1989 import train_replicas

    images, labels = _job()

    def train() -> Tensor:
        networks = _networks()
        train_replicas(networks, images, labels, time_travel(0), SEEDS, passes=1)
        return _weights(networks)

    return train


def plain_pytorch() -> Callable[[], Tensor]:
    images, labels = _job()
    targets = 2.0 * torch.nn.functional.one_hot(labels, 10) - 1.0

    def train() -> Tensor:
        networks = _networks()
        for net in networks:
            optimizer = torch.optim.SGD(net.parameters(), lr=0.03, fused=True)
            for image, target in zip(images.split(1), targets.split(1), strict=True):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(net(image), target).backward()
                optimizer.step()
        return _weights(networks)

    return train


def agree(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-4)
