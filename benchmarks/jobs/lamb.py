"""A step of LAMB on the weights of a ResNet-18 and of a small ResNet: assay against timm (both with many tensors at a time)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

JOB = "LAMB: 2 steps on a ResNet-18 (11.7M weights), 50 on a ResNet-8 (78k)"
WANTED = {"timm": 1.5}
PROCESSOR_TIME = True


def _job(kind: Callable[..., torch.optim.Optimizer]) -> Callable[[], list[Tensor]]:
    from assay.papers.architectures.resnet import cifar_resnet, resnet18

    torch.manual_seed(0)
    nets: list[tuple[nn.Module, int]] = [(resnet18(), 2), (cifar_resnet(8), 50)]
    optimizers = [(kind(net.parameters(), lr=1e-3, weight_decay=0.02), steps) for net, steps in nets]
    weights = [list(net.parameters()) for net, _ in nets]
    for p in (p for found in weights for p in found):
        p.grad = 1e-5 * torch.randn_like(p)

    def walk() -> list[Tensor]:
        for optimizer, steps in optimizers:
            for _ in range(steps):
                optimizer.step()
        return [p.detach() for found in weights for p in found]

    return walk


def ours() -> Callable[[], list[Tensor]]:
    from assay.train.optim import Lamb

    return _job(Lamb)


def timm() -> Callable[[], list[Tensor]]:
    from timm.optim import Lamb

    return _job(Lamb)


def agree(ours: list[Tensor], peer: list[Tensor]) -> None:
    """The same weights after the same steps."""
    for mine, theirs in zip(ours, peer, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
