"""One clean method for each way of changing a training that the survey sorts out: hooks and schedules on the one trainer.

All of them go by the share of the training that is over, so that they mean the same at every length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from assay.errors import AssayError
from assay.recipe import Recipe, treatment, with_loss
from assay.train.hooks import BestEpoch, Hook, InputHook, Run
from assay.train.schedules import linear, one_cycle


def _done(run: Run) -> float:
    """Share of the training that lies behind, in [0, 1)."""
    return run.step / (run.steps_per_epoch * run.epochs)


def _last(run: Run) -> bool:
    return run.epoch == run.epochs or run.stop


def _share(name: str, value: float, open_left: bool = False) -> None:
    if not (value > 0 if open_left else value >= 0) or not value <= 1:
        raise ValueError(f"{name} must be in {'(' if open_left else '['}0, 1], not {value}")


# ---------------------------------------------------------------------------------- data, restricted: smaller examples


def size_at(done: float, size: int, smallest: float = 0.5, until: float = 0.6, multiple: int = 4) -> int:
    """Height or width when a share ``done`` of the training is over: from ``smallest`` of it along a line to all at ``until``.

    Args:
        done: in [0, 1].
        size: of the whole example.
        smallest: where to begin, as a share of the size.
        until: when the whole size is reached, as a share of the training.
        multiple: sizes are rounded to multiples of it, which convolutions and pooling like; the whole size stays as it is.
    """
    share = smallest + (1 - smallest) * min(1.0, done / until if until else 1.0)
    return size if share >= 1 else min(size, max(multiple, round(share * size / multiple) * multiple))


@dataclass(frozen=True)
class ProgressiveResizing(InputHook):
    """Images or series enter small and grow to their size; see :func:`size_at`."""

    smallest: float = 0.5
    until: float = 0.6
    multiple: int = 4

    def __post_init__(self) -> None:
        _share("smallest", self.smallest, open_left=True)
        _share("until", self.until)

    def before_forward(self, run: Run) -> None:
        """Shrink the batch."""
        run.inputs = self.resized(run.inputs, _done(run))

    def resized(self, inputs: Tensor, done: float) -> Tensor:
        """(B, C, H, W) or (B, C, L), as large as it is when a share ``done`` of the training is over."""
        sizes = [size_at(done, size, self.smallest, self.until, self.multiple) for size in inputs.shape[2:]]
        if sizes == list(inputs.shape[2:]):
            return inputs
        return F.interpolate(inputs, size=sizes, mode="bilinear" if inputs.dim() == 4 else "linear", align_corners=False)


@treatment
def progressive_resizing(recipe: Recipe, smallest: float = 0.5, until: float = 0.6) -> Recipe:
    """Train on small images (or coarse series) first, on whole ones for the last part; for networks that take any size."""
    inputs = recipe.data.train.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() not in (3, 4):
        raise AssayError(f"{recipe.data.name!r} has neither images nor series, and nothing else has a size that could grow.")
    hook = ProgressiveResizing(smallest, until)
    model = recipe.model().eval()
    try:
        with torch.no_grad():
            model(hook.resized(inputs[:1], 0.0))
    except RuntimeError:
        raise AssayError(
            "The network takes examples of one size only: give it a mean over the picture before its last layer."
        ) from None
    return recipe.replace(hooks=(*recipe.hooks, hook))


# ------------------------------------------------------------------------------------ data, removed: fewer of the examples


@dataclass(frozen=True)
class SelectiveBackprop(InputHook):
    """Every batch is looked at; gradients are taken of those examples that the network finds hard."""

    beta: float = 2.0

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, not {self.beta}")

    def on_start(self, run: Run) -> None:
        """Refuse several devices, which might choose differently."""
        _one_device("Selective back-propagation")

    def before_forward(self, run: Run) -> None:
        """Keep the hard ones."""
        if self.beta == 0:
            return
        was_training = run.model.training
        run.model.eval()  # no dropout, and running statistics stay as they are
        with torch.no_grad():
            losses = F.cross_entropy(run.model(run.inputs).float(), run.labels, reduction="none")
        run.model.train(was_training)
        _keep(run, chosen(losses, self.beta, run.generator))


def chosen(losses: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """Which examples get a gradient: (B,) bool, each with probability CDF(loss)^beta (Jiang et al. 2019, eq. 2).

    The distribution of losses is that of the batch itself, the rank r of B counting as (r - 1/2) / B, so that a share of
    about 1 / (beta + 1) is kept. At least one is.
    """
    ranks = losses.argsort().argsort()
    level = (ranks + 0.5) / len(losses)
    keep = torch.rand(len(losses), generator=generator, device=losses.device) < level**beta
    keep[losses.argmax()] |= not keep.any()
    return keep


def _keep(run: Run, keep: Tensor) -> None:
    run.inputs, run.labels, run.index = run.inputs[keep], run.labels[keep], run.index[keep]


def _one_device(name: str) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise AssayError(f"{name} chooses examples by outputs, which devices may round differently: train on one device.")


@treatment
def selective_backprop(recipe: Recipe, beta: float = 2.0) -> Recipe:
    """Take gradients of hard examples only, about 1 / (beta + 1) of each batch; a forward pass for all chooses them.

    The paper ranks a loss among those of the last batches and gathers what it keeps until a batch is full, so that it takes
    fewer steps; here the ranks are those within the batch, and there are as many steps as before on fewer examples each.
    """
    _require_classes(recipe, "Selective back-propagation")
    # Before all other hooks, so that what they prepare for the batch fits what is left of it.
    return recipe.replace(hooks=(SelectiveBackprop(beta), *recipe.hooks))


def _require_classes(recipe: Recipe, name: str) -> None:
    if recipe.data.task != "classification":
        raise AssayError(f"{name} tells hard examples by their cross-entropy, and {recipe.data.name!r} has no classes.")


@dataclass(frozen=True)
class DataPruning(InputHook):
    """After some epochs the examples that the network has learnt best are left out for good."""

    share: float = 0.3
    after: float = 0.25

    def __post_init__(self) -> None:
        _share("share", self.share)
        _share("after", self.after)

    def on_start(self, run: Run) -> None:
        """Refuse several devices, which might choose differently."""
        _one_device("Data pruning")

    def before_forward(self, run: Run) -> None:
        """Leave out what has been pruned; prune when it is time. Within a step, so that its price is counted."""
        if self.share == 0 or _done(run) < self.after:
            return
        if "pruning.keep" not in run.memory:
            scores = el2n(run.model, run)
            keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
            keep[scores.argsort()[: int(self.share * len(scores))]] = False
            run.memory["pruning.keep"] = keep
        keep = run.memory["pruning.keep"][run.index]
        keep[0] |= not keep.any()  # a batch must not be empty
        _keep(run, keep)


@torch.no_grad()
def el2n(model: nn.Module, run: Run, chunk: int = 1024) -> Tensor:
    """Length of the error vector, ||softmax(logits) - one-hot||, for all training examples (N,) (Paul et al. 2021, def. 2.2)."""
    inputs, labels = run.data.train.inputs, run.data.train.labels
    assert isinstance(inputs, Tensor)  # or the training would have refused them
    was_training = model.training
    model.eval()
    probs = torch.cat([model(part.to(run.device)).float().softmax(dim=1) for part in inputs.split(chunk)])  # (N, C)
    model.train(was_training)
    lengths: Tensor = (probs - F.one_hot(labels.to(run.device), probs.shape[1])).norm(dim=1)
    return lengths


@treatment
def data_pruning(recipe: Recipe, share: float = 0.3, after: float = 0.25) -> Recipe:
    """Drop the easiest ``share`` of the training examples (by EL2N) once ``after`` of the training is over.

    The paper scores with ten networks trained for the purpose; here the network in training scores once, at the price of one
    forward pass over the data. There are as many steps as before, on smaller batches.
    """
    _require_classes(recipe, "Data pruning")
    return recipe.replace(hooks=(DataPruning(share, after), *recipe.hooks))  # first, as for selective_backprop


# -------------------------------------------------------------------------------------- function, removed: fewer gradients


@dataclass(frozen=True)
class LayerFreezing(InputHook):
    """The first layers stop learning one after the other, so that gradients need not go down to them."""

    share: float = 0.67
    begin: float = 0.3
    end: float = 0.7

    def __post_init__(self) -> None:
        for name in ("share", "begin", "end"):
            _share(name, getattr(self, name))
        if self.begin > self.end:
            raise ValueError(f"begin must not come after end, not {self.begin} and {self.end}")

    def before_forward(self, run: Run) -> None:
        """Freeze what is due. Every step, so that a resumed training is as it was."""
        count, done = 0, _done(run)
        blocks = _blocks(run.model)
        last = min(int(self.share * len(blocks)), len(blocks) - 1)  # the last layer always learns
        while count < last and done >= self.begin + (self.end - self.begin) * count / max(1, last - 1):
            for parameter in blocks[count]:
                parameter.requires_grad_(False)
            count += 1

    def after_epoch(self, run: Run) -> None:
        """Leave a network that can be trained on."""
        if _last(run):
            for block in _blocks(run.model):
                for parameter in block:
                    parameter.requires_grad_(True)


def _blocks(model: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters by layer, in the order in which the network has them; a layer's normalisation belongs to it."""
    blocks: list[list[nn.Parameter]] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        if blocks and all(parameter.dim() == 1 for parameter in own):
            blocks[-1] += own
        else:
            blocks.append(own)
    return blocks


@treatment
def layer_freezing(recipe: Recipe, share: float = 0.67, begin: float = 0.3, end: float = 0.7) -> Recipe:
    """Freeze the first ``share`` of the layers, one after the other between ``begin`` and ``end`` of the training.

    FreezeOut lets the rate of each layer fall to 0 along a cosine before it is frozen; here a layer keeps the common rate until
    then. The running statistics of a frozen layer's normalisation go on following the data.
    """
    if any(not parameter.requires_grad for parameter in recipe.model().parameters()):
        raise AssayError("The network has frozen weights already, which layer freezing would thaw at the end.")
    return recipe.replace(hooks=(*recipe.hooks, LayerFreezing(share, begin, end)))


# ------------------------------------------------------------------------------- function, retrofitted: averaged weights


@dataclass(frozen=True)
class AveragedWeights(Hook):
    """The network ends with an exponential average of its weights (and running statistics) over the last steps.

    The history tells of the weights in training; the average takes their place after the last epoch.
    """

    half_life: float = 0.02

    def __post_init__(self) -> None:
        _share("half_life", self.half_life, open_left=True)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Move the average."""
        state = {name: value for name, value in run.model.state_dict().items() if value.is_floating_point()}
        if "average." + next(iter(state)) not in run.memory:
            run.memory |= {f"average.{name}": value.clone() for name, value in state.items()}
            return
        decay = 0.5 ** (1 / max(1.0, self.half_life * run.steps_per_epoch * run.epochs))
        get_ema_multi_avg_fn(decay)([run.memory[f"average.{name}"] for name in state], list(state.values()), 0)

    def after_epoch(self, run: Run) -> None:
        """Put it in the network's place at the end."""
        if _last(run):
            names = [name for name in run.memory if name.startswith("average.")]
            run.model.load_state_dict({name[8:]: run.memory.pop(name) for name in names}, strict=False)


@treatment
def averaged_weights(recipe: Recipe, half_life: float = 0.02) -> Recipe:
    """End with an average of the weights, in which a step counts half after ``half_life`` of the training, one step at least."""
    if any(isinstance(hook, BestEpoch) for hook in recipe.hooks):
        raise AssayError("This recipe ends with the weights of its best epoch; it cannot end with averaged ones too.")
    return recipe.replace(hooks=(*recipe.hooks, AveragedWeights(half_life)))


# -------------------------------------------------------------------------------------------------------- optimisation


def budgeted(recipe: Recipe) -> Recipe:
    """Let the learning rate fall along a line and reach 0 exactly when the budget ends (Li, Yumer and Ramanan 2020)."""
    return recipe.replace(schedule=linear)


@treatment
def superconvergence(recipe: Recipe, warmup: float = 0.3) -> Recipe:
    """One cycle: the rate rises for ``warmup`` of the training, then falls to almost 0; momentum does the opposite (Smith)."""
    return recipe.replace(schedule=partial(one_cycle, warmup=warmup))


@treatment
def label_smoothing(recipe: Recipe, smoothing: float = 0.1) -> Recipe:
    """Train towards 1 - smoothing for the right class, the rest spread over all."""
    return with_loss(recipe, partial(F.cross_entropy, label_smoothing=smoothing))
