"""Hooks: what else happens at the named moments of a training.

A hook is a frozen dataclass that overrides the moments it needs. Its settings are its fields, so that they are part of the
recipe's content; what it learns on the way it keeps as tensors in ``run.memory``, so that it is in the checkpoint.

Moments, in order: ``on_start`` (once, before the first step; not again after resuming), for an :class:`InputHook` then
``before_forward`` (the network has not seen the batch yet), ``before_loss`` (the batch has its logits), ``after_backward``
(gradients are complete), ``after_step`` (weights have moved), ``after_epoch``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from assay.data import Dataset


@dataclass
class Run:
    """The state of a training in progress, as hooks see it.

    ``inputs``, ``labels``, ``index`` (positions in the training split), ``logits`` and ``loss`` are those of the current part
    of a batch. A hook may replace ``logits`` and ``labels`` in ``before_loss``. Setting ``stop`` ends the training after the
    current epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    data: Dataset
    device: torch.device
    generator: torch.Generator
    steps_per_epoch: int
    epochs: int
    epoch: int = 0
    step: int = 0
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    labels: Tensor = field(default_factory=lambda: torch.empty(0))
    index: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    loss: Tensor = field(default_factory=lambda: torch.empty(0))
    memory: dict[str, Tensor] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    stop: bool = False


class Hook:
    """Does nothing at any moment; override those that are needed."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def before_loss(self, run: Run) -> None:
        """The logits of the batch are known, its loss is not yet."""

    def after_backward(self, run: Run) -> None:
        """The gradients of the whole batch are there; the weights have not moved."""

    def after_step(self, run: Run) -> None:
        """The weights have moved."""

    def after_epoch(self, run: Run) -> None:
        """An epoch is over and has been evaluated; ``run.history`` has its row."""


class InputHook(Hook):
    """A hook that changes what the network sees: mixtures of examples, other sizes, other examples."""

    def before_forward(self, run: Run) -> None:
        """The batch is there, augmented; the network has not seen it yet.

        ``run.inputs`` and ``run.labels`` may be replaced, labels also by (B, C) float shares of the classes. A hook that takes
        other examples, as many as there were or fewer (one at least), says in ``run.index`` which. Random numbers come from
        ``run.generator``.
        """


@dataclass(frozen=True)
class BestEpoch(Hook):
    """End a training with the weights of its best epoch.

    Of equally good epochs the last one counts: a few held-out examples are soon all right, and the earliest of such epochs
    would be that of a network which has hardly learnt.

    Args:
        by: name of a row of the history, as ``"valid_accuracy"`` (the recipe then watches ``valid``) or ``"train_loss"``.
        lowest: whether small values are good ones.
    """

    by: str = "valid_accuracy"
    lowest: bool = False

    def after_epoch(self, run: Run) -> None:
        """Keep the weights if they are the best so far; bring the best ones back at the end."""
        reached = run.history[self.by]
        if reached[-1] == (min if self.lowest else max)(reached):
            run.memory |= {f"best.{name}": value.clone() for name, value in run.model.state_dict().items()}
        if run.epoch == run.epochs or run.stop:
            run.model.load_state_dict({name: run.memory.pop(f"best.{name}") for name in run.model.state_dict()})
