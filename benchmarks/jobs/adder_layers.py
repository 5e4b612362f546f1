"""Adder layers of a ResNet-20 (one of each shape), forward: assay against the formulation that the paper and its code have.

That formulation cuts out all patches and holds the differences of every patch and every filter at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

JOB = "adder layers of a ResNet-20, forward, 8 examples of 32 x 32"
WANTED = {"all_at_once": 5.0}
PROCESSOR_TIME = True

#: (planes in, planes out, side, kernel, stride): the three stages, the two layers that halve the picture, their shortcuts.
SHAPES = (
    (16, 16, 32, 3, 1),
    (16, 32, 32, 3, 2),
    (16, 32, 32, 1, 2),
    (32, 32, 16, 3, 1),
    (32, 64, 16, 3, 2),
    (32, 64, 16, 1, 2),
    (64, 64, 8, 3, 1),
)

Result = list[Tensor]
Layer = Callable[[Tensor, Tensor, int, int], Tensor]


class AllAtOnce(torch.autograd.Function):
    """Filters (T, K) and patches (K, P) -> (T, P); every step is one line over (T, K, P) numbers."""

    @staticmethod
    def forward(ctx: Any, filters: Tensor, patches: Tensor) -> Tensor:
        ctx.save_for_backward(filters, patches)
        return -(patches[None] - filters[:, :, None]).abs().sum(dim=1)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        filters, patches = ctx.saved_tensors
        differences = patches[None] - filters[:, :, None]
        return (outer[:, None] * differences).sum(dim=2), -(outer[:, None] * differences.clamp(-1, 1)).sum(dim=0)


def layer_all_at_once(images: Tensor, filters: Tensor, stride: int, padding: int) -> Tensor:
    side = (images.shape[2] + 2 * padding - filters.shape[2]) // stride + 1
    patches = F.unfold(images, filters.shape[2], padding=padding, stride=stride)  # (B, K, L)
    out: Tensor = AllAtOnce.apply(filters.flatten(1), patches.transpose(0, 1).flatten(1))
    return out.view(len(filters), len(images), side, side).transpose(0, 1)


def _examples() -> list[tuple[Tensor, Tensor, int, int]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, c, side, side, generator=draw), torch.randn(t, c, k, k, generator=draw), stride, k // 2)
        for c, t, side, k, stride in SHAPES
    ]


def forward(layer: Layer) -> Callable[[], Result]:
    """The outputs of every layer."""
    examples = _examples()

    def run() -> Result:
        with torch.no_grad():
            return [layer(*example) for example in examples]

    return run


def forward_and_backward(layer: Layer) -> Callable[[], Result]:
    """The outputs of every layer, and the gradients of its images and filters."""
    examples = _examples()
    for images, filters, _, _ in examples:
        images.requires_grad_()
        filters.requires_grad_()

    def run() -> Result:
        found = []
        for images, filters, stride, padding in examples:
            out = layer(images, filters, stride, padding)
            found += [out.detach(), *torch.autograd.grad(out.square().sum() / 100, (images, filters))]
        return found

    return run


def ours() -> Callable[[], Result]:
    from assay.papers.compress.addernet import adder2d

    return forward(adder2d)


def all_at_once() -> Callable[[], Result]:
    return forward(layer_all_at_once)


def agree(ours: Result, peer: Result) -> None:
    for one, other in zip(ours, peer, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))
