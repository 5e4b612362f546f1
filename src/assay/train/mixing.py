"""Batches that are more than their examples: mixtures of two, and several copies of each, for ``Recipe(hooks=...)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional as F

from assay.errors import AssayError
from assay.train.hooks import InputHook, Run


def shares(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as shares of the classes: (B,) int64 -> (B, C) float32, 1 at the label; shares stay as they are."""
    return labels if labels.dim() == 2 else F.one_hot(labels, num_classes).float()


def mixed(inputs: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Mixup: ``share`` of every example, and the rest of its partner, the first's being the last, and so on.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Shape: inputs (B, ...) float, targets (B, C) float -> both again.
    """
    return torch.lerp(inputs.flip(0), inputs, share), torch.lerp(targets.flip(0), targets, share)


def pasted(inputs: Tensor, targets: Tensor, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """CutMix: a box of every image comes from its partner, and with it that share of the label.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.

    Args:
        inputs: (B, C, H, W).
        targets: (B, K) float.
        box: top, bottom, left, right.
    """
    top, bottom, left, right = box
    share = 1 - (bottom - top) * (right - left) / (inputs.shape[2] * inputs.shape[3])
    changed = inputs.clone()
    changed[:, :, top:bottom, left:right] = inputs[:, :, top:bottom, left:right].flip(0)
    return changed, torch.lerp(targets.flip(0), targets, share)


def mixup_cutmix(
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    mixup: float = 0.1,
    cutmix: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself in one of two ways, drawn for the whole batch; its partner is the batch upside down.

    Args:
        inputs: (B, ...) float. Only images (B, C, H, W) can be pasted; anything else is mixed.
        labels: (B,) int64, or (B, num_classes) float shares.
        num_classes: number of classes.
        generator: of the random numbers.
        mixup: alpha; the share is drawn from Beta(alpha, alpha). 0 leaves this way out.
        cutmix: the same for the part of the image that stays.

    Returns:
        The mixtures and their targets (B, num_classes), whose rows sum to 1.
    """
    targets = shares(labels, num_classes)
    ways = [alpha for alpha in (mixup, cutmix if inputs.dim() == 4 else 0.0) if alpha > 0]
    if not ways:
        return inputs, targets
    way, place, down, across = torch.rand(4, generator=generator, device=generator.device).tolist()
    alpha = ways[int(way * len(ways))]
    share = float(betaincinv(alpha, alpha, place))  # the inverse of Beta's distribution function
    if inputs.dim() == 4 and cutmix > 0 and (mixup <= 0 or way >= 0.5):
        height, width = inputs.shape[2:]
        return pasted(inputs, targets, _box(height, width, share, int(down * height), int(across * width)))
    return mixed(inputs, targets, share)


def _box(height: int, width: int, share: float, y: int, x: int) -> tuple[int, int, int, int]:
    """A box around (y, x) that leaves ``share`` of the picture, but for what of it lies outside."""
    side = math.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    return (
        max(y - tall // 2, 0),
        min(y + (tall + 1) // 2, height),
        max(x - wide // 2, 0),
        min(x + (wide + 1) // 2, width),
    )


@dataclass(frozen=True)
class Mixing(InputHook):
    """Every batch is mixed with itself by :func:`mixup_cutmix`; the loss gets shares of the classes.

    Args:
        mixup: alpha of mixup; 0 leaves it out.
        cutmix: alpha of CutMix, for images; 0 leaves it out.
    """

    mixup: float = 0.1
    cutmix: float = 1.0

    def before_forward(self, run: Run) -> None:
        """Mix the batch."""
        if not run.inputs.is_floating_point() or run.data.task != "classification":
            raise AssayError(f"Only numbers that have classes can be mixed, and {run.data.name!r} is something else.")
        run.inputs, run.labels = mixup_cutmix(
            run.inputs, run.labels, run.data.num_classes, run.generator, self.mixup, self.cutmix
        )


@dataclass(frozen=True)
class RepeatedAugmentation(InputHook):
    """A batch holds several copies of fewer examples, each augmented in its own way.

    The steps of an epoch stay as many, so that it sees only one in ``copies`` of the examples, others the next time.

    Args:
        augment: ``augment(inputs, generator) -> inputs``, which would otherwise be the recipe's.
        copies: of each example.

    Source: Hoffer et al., "Augment Your Batch", CVPR 2020; Berman et al., "MultiGrain", 2019.
    """

    augment: Callable[[Tensor, torch.Generator], Tensor]
    copies: int = 3

    def before_forward(self, run: Run) -> None:
        """Take the first examples of the batch again and again, until it is full."""
        count = len(run.inputs)
        rows = torch.arange(count, device=run.inputs.device) % math.ceil(count / self.copies)
        run.inputs = self.augment(run.inputs[rows], run.generator)
        run.labels, run.index = run.labels[rows], run.index[rows.to(run.index.device)]
