"""The training loop: one for every recipe.

Data stays in tensors on the device and a batch is one gather with shuffled indices; what does not fit is gathered from
where it lies (a memory-mapped file) and moved batch by batch. Convolutional networks run in channels_last. The same recipe
and seed give the same weights bit for bit on the same machine, also when the training was interrupted and resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay.clock import seconds
from assay.data import Split
from assay.errors import AssayError, Diverged
from assay.files import load_checkpoint, save_checkpoint
from assay.nn.ending import last_linear
from assay.nn.layers import watching
from assay.paper import Cost, Score
from assay.recipe import PerExample, Recipe
from assay.train.hooks import InputHook, Run

#: Training data up to this size are kept on the device; larger ones are streamed from where they lie.
RESIDENT_BYTES = 8 << 30

#: ``report(done, total, note)``, called after every epoch and about once a second.
Report = Callable[[float, float, str], None]

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


@dataclass
class Trained:
    """A trained network with the history and the price of its training.

    Attributes:
        recipe: how it was trained.
        model: the network, in evaluation mode.
        history: per epoch: ``train_loss``, ``train_accuracy``, and for every watched split ``<split>_loss`` and
            ``<split>_accuracy`` (accuracies for classification only).
        seconds: what the training took (:func:`assay.clock.seconds`), evaluation of the watched splits left out.
        parameters: trainable parameters.
        flops: floating-point operations of one forward pass of one example (0 where they cannot be counted).
        memory: what the hooks kept.
    """

    recipe: Recipe
    model: nn.Module
    history: dict[str, list[float]]
    seconds: float
    parameters: int
    flops: int
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """The price of this training."""
        return Cost(seconds=self.seconds, parameters=self.parameters, flops=self.flops or None)

    def logits(self, split: str = "test") -> Tensor:
        """Outputs for every example of ``"train"``, ``"valid"`` or ``"test"``, in order: (N, C) on the CPU."""
        return _outputs(self.model, getattr(self.recipe.data, split), _device_of(self.model)).cpu()

    def accuracy(self, split: str = "test") -> Score:
        """Fraction of the split that is classified as its labels say."""
        labels = getattr(self.recipe.data, split).labels
        return Score((self.logits(split).argmax(dim=1) == labels).double().mean().item(), self.cost)

    def loss(self, split: str = "test") -> float:
        """Mean loss on a split. Losses with memory per example have a value on training data only."""
        if isinstance(self.recipe.loss, PerExample):
            raise AssayError("This loss keeps memory for every training example, so it has no value on other data.")
        labels = getattr(self.recipe.data, split).labels
        return self.recipe.loss(self.logits(split), labels).item()


def fit(
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    report: Report | None = None,
) -> Trained:
    """Train.

    Args:
        recipe: what to do; one with several ``devices`` is trained by as many processes (:mod:`assay.train.devices`).
        seed: of the initial weights, the order of the examples, augmentation and dropout.
        device: where to; with several devices their kind.
        checkpoint: a file from which an interrupted training goes on and to which it saves itself; the caller removes it
            when the result is safe.
        checkpoint_seconds: time between two checkpoints.
        report: is told how far the training is.

    Raises:
        AssayError: the loss is not finite (the message names epoch and step), or the data are not tensors.
    """
    device = torch.device(device)
    if recipe.devices > 1:
        from assay.train.devices import fit_on_devices

        return fit_on_devices(recipe, seed, device, checkpoint, checkpoint_seconds, report)
    with seeded(seed, device):
        loop = Loop(recipe, seed, device)
        if checkpoint is not None and checkpoint.exists():
            loop.load_state(load_checkpoint(checkpoint))
        else:
            for hook in recipe.hooks:
                hook.on_start(loop.run)
        loop.train(checkpoint, checkpoint_seconds, report)
    example = loop.inputs.take(torch.zeros(1, dtype=torch.int64))
    return finished(recipe, loop.model.eval(), example, loop.run.history, loop.seconds, loop.run.memory)


def finished(
    recipe: Recipe, model: nn.Module, example: Tensor, history: dict[str, list[float]], seconds: float, memory: dict[str, Tensor]
) -> Trained:
    """What a training gives, with the network's size and the operations that one example takes."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Trained(recipe, model, history, seconds, parameters, count_flops(model, example), memory)


def with_weights(recipe: Recipe, seed: int, device: torch.device, weights: dict[str, Tensor]) -> nn.Module:
    """The recipe's network with weights that were trained before, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # the caller's random stream stays as it was
        torch.manual_seed(seed)  # what is random in a network and not in its state (a fixed projection) comes back the same
        model = recipe.model()
    model.load_state_dict(weights)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device).eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Everything random inside follows ``seed``; the caller's random state is left as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class _Inputs:
    """The inputs of a split, laid out once so that a batch is one gather."""

    def __init__(self, split: Split, device: torch.device, channels_last: bool) -> None:
        inputs = split.inputs
        if not isinstance(inputs, Tensor):
            raise AssayError("The data set holds texts; encode them as token ids (assay.nn.text) before training on them.")
        self.device = device
        self.channels_last = channels_last and inputs.dim() == 4
        self.resident = inputs.numel() * inputs.element_size() <= RESIDENT_BYTES
        if self.resident:
            inputs = inputs.to(device)
            if self.channels_last:
                # (N, H, W, C) in memory: a gather of rows is a batch in channels_last, with no copy afterwards.
                inputs = inputs.permute(0, 2, 3, 1).contiguous()
        self.inputs = inputs

    def take(self, index: Tensor) -> Tensor:
        """The examples ``index`` (B,), on the device."""
        if self.resident:
            batch = self.inputs.index_select(0, index.to(self.device))
            return batch.permute(0, 3, 1, 2) if self.channels_last else batch
        batch = self.inputs.index_select(0, index.to(self.inputs.device)).to(self.device)
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch


class Loop:
    """A training on one device; :mod:`assay.train.devices` overrides what several processes do together."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        data = recipe.data
        if not len(data.train):
            raise AssayError(f"The data set {data.name} has no training examples.")
        self.model = recipe.model().to(device)
        if device.type == "meta" or not any(p.requires_grad for p in self.model.parameters()):
            raise AssayError("The model has no trainable parameters.")
        channels_last = any(isinstance(m, nn.Conv2d) for m in self.model.modules())
        if channels_last and not self.sharded:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = self._distributed()
        self.inputs = _Inputs(data.train, device, channels_last)
        self.labels = data.train.labels.to(device)
        self.watched = {
            name: (getattr(data, name), _Inputs(getattr(data, name), device, channels_last))
            for name in recipe.watch
            if len(getattr(data, name))
        }
        self.loss: Any = recipe.loss
        self.wants: tuple[str, ...] = ()  # of the loss, besides logits and labels
        self.features = torch.empty(0)
        self.outputs: dict[str, Tensor] = {}  # of the layers that the loss watches, in the last forward pass
        self.layers = self.outputs  # the same for the whole batch, where several devices share it
        self.watching = ExitStack()
        self.input_hooks = [hook for hook in recipe.hooks if isinstance(hook, InputHook)]
        if isinstance(recipe.loss, PerExample):
            self.wants = recipe.loss.wants
            last = self._watched_layer() if "features" in self.wants else None
            example = self.inputs.take(torch.zeros(1, dtype=torch.int64))
            width = None if last is None else last.in_features
            self.loss = recipe.loss.build(data, width, self.model, example, recipe.epochs).to(device)
            self.outputs = self.watching.enter_context(watching(self.model, getattr(self.loss, "watches", ())))
            self.layers = self.outputs
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if isinstance(self.loss, nn.Module):
            parameters += [p for p in self.loss.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimizer = _optimizer(recipe, _groups(parameters, self.loss), device, fused=not self.sharded)
        count = len(data.train)
        steps = math.ceil(count / recipe.batch_size)
        self.scheduler = recipe.schedule(self.optimizer, steps * recipe.epochs) if recipe.schedule else None
        self.order_generator = torch.Generator().manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed + 1)
        self.run = Run(self.model, self.optimizer, data, device, generator, steps, recipe.epochs)
        self.order = torch.empty(0, dtype=torch.int64)
        self.at = 0  # the step within the epoch that comes next
        self.losses: list[Tensor] = []  # of the steps of this epoch, on the device
        self.predicted = torch.zeros(count, dtype=torch.int64, device=device)  # in the order of this epoch
        self.seconds = 0.0
        self.classifies = not self.labels.is_floating_point() and self.labels.dim() == 1

    def _watched_layer(self) -> nn.Linear:
        """The network's last linear layer; from now on what goes into it is kept."""
        found = last_linear(self.model)
        if found is None:
            raise AssayError("The loss asks for features, and the network has no linear layer that they could go into.")

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.features = given[0]

        self.watching.callback(found[1].register_forward_pre_hook(keep).remove)
        return found[1]

    #: Whether every process holds a part of the weights only.
    sharded = False

    def _distributed(self) -> Callable[[Tensor], Tensor]:
        """What turns a batch into its outputs: the network itself."""
        return self.model

    def _clock(self) -> float:
        return seconds(self.device)

    # ------------------------------------------------------------------------------------------------ training

    def train(self, checkpoint: Path | None, every: float, report: Report | None) -> None:
        run = self.run
        told = saved = time.perf_counter()
        while run.epoch < run.epochs and not run.stop:
            if self.at == 0:
                count = len(run.data.train)
                self.order = torch.randperm(count, generator=self.order_generator) if self.recipe.shuffle else torch.arange(count)
                self.order = self.order.to(self.device)
                self.model.train()
            began = self._clock()
            while self.at < run.steps_per_epoch:
                self._step()
                now = time.perf_counter()
                if report is not None and now - told > 1.0:
                    told = now
                    report(run.step, run.steps_per_epoch * run.epochs, f"epoch {run.epoch + 1}/{run.epochs}")
                if checkpoint is not None and self._due(now - saved, every):
                    self.seconds += self._clock() - began
                    self._save(checkpoint)
                    saved, began = time.perf_counter(), self._clock()
            self._finite()
            self.seconds += self._clock() - began
            self._end_epoch()
            if report is not None:
                report(run.step, run.steps_per_epoch * run.epochs, f"epoch {run.epoch}/{run.epochs}")
        self.watching.close()  # the network is somebody else's from here on

    def _step(self) -> None:
        recipe, run = self.recipe, self.run
        rows = self.order[self.at * recipe.batch_size : (self.at + 1) * recipe.batch_size]
        for parameter in self.parameters:  # what zero_grad does, without its bookkeeping, which small networks feel
            parameter.grad = None
        parts = rows.chunk(recipe.accumulate) if recipe.accumulate > 1 else (rows,)
        losses, at = [], self.at * recipe.batch_size
        for part in parts:
            share = len(part) / len(rows)
            run.index = part
            run.inputs = self.inputs.take(part)
            run.labels = self.labels.index_select(0, part)
            if recipe.augment is not None:
                run.inputs = recipe.augment(run.inputs, run.generator)
            for before in self.input_hooks:
                before.before_forward(run)
            with self._precision():
                run.logits = self.forward(run.inputs)
            run.logits = run.logits.float() if recipe.precision != "float32" else run.logits
            for hook in recipe.hooks:
                hook.before_loss(run)
            run.loss = self.loss(run.logits, run.labels, *map(self._more, self.wants))
            (run.loss if share == 1 else run.loss * share).backward()
            losses.append(run.loss.detach() if share == 1 else run.loss.detach() * share)
            if self.classifies:
                self._note_predicted(part, at)
                at += len(part)
        self.losses.append(losses[0] if len(losses) == 1 else torch.stack(losses).sum())
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm)
        for hook in recipe.hooks:
            hook.after_backward(run)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        run.step += 1
        self.at += 1
        for hook in recipe.hooks:
            hook.after_step(run)
        # On a CPU looking at the loss is free; on a GPU it would wait for the device, so it is looked at now and then.
        if self.device.type == "cpu":
            if not math.isfinite(self.losses[-1].item()):
                self._finite()
        elif self.at % 50 == 0:
            self._finite()

    def _note_predicted(self, part: Tensor, at: int) -> None:
        """Keep what was predicted for the rows ``part``, which begin at ``at`` of the epoch."""
        run, places = self.run, self.predicted[at : at + len(part)]
        if run.index is not part:  # a hook took other examples, perhaps fewer: they are what was predicted
            self.order[at : at + len(run.index)] = run.index
            places[len(run.index) :] = -1
        torch.argmax(run.logits.detach(), dim=1, out=places[: len(run.index)])

    def _more(self, name: str) -> Any:
        """What the loss asked for by this name."""
        half = self.recipe.precision != "float32"
        if name == "features":
            return self.features.float() if half else self.features
        if name == "layers":
            # A recurrent layer gives a tuple, which is passed on as it is.
            return {name: x.float() if half and isinstance(x, Tensor) else x for name, x in self.layers.items()}
        return getattr(self.run, name)

    def _finite(self) -> None:
        bad = (~torch.stack(self.losses).isfinite()).nonzero()
        if len(bad):
            at = int(bad[0])
            rate = self.optimizer.param_groups[0]["lr"]
            raise Diverged(
                f"The loss is not finite ({self.losses[at].item()}) at epoch {self.run.epoch + 1}, step {at + 1} "
                f"of {self.run.steps_per_epoch} (learning rate {rate:.3g}): lower the learning rate, or look at the data for "
                "outliers."
            )

    def _end_epoch(self) -> None:
        run = self.run
        self.model.eval()
        run.epoch += 1
        self.at = 0
        row = {"train_loss": torch.stack(self.losses).double().mean().item()}
        self.losses.clear()
        if self.classifies:
            right = self.predicted == self.labels[self.order]
            row["train_accuracy"] = right[self.predicted >= 0].double().mean().item()
        for name, (split, inputs) in self.watched.items():
            outputs = _outputs(self.model, split, self.device, inputs, self.forward)
            labels = split.labels.to(self.device)
            if not isinstance(self.recipe.loss, PerExample):
                row[f"{name}_loss"] = float(self.loss(outputs, labels).item())
            if self.classifies:
                row[f"{name}_accuracy"] = (outputs.argmax(dim=1) == labels).double().mean().item()
        for key, value in row.items():
            run.history.setdefault(key, []).append(value)
        for hook in self.recipe.hooks:
            hook.after_epoch(run)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    # ---------------------------------------------------------------------------------------------- checkpoint

    def _due(self, elapsed: float, every: float) -> bool:
        return elapsed > every

    def _save(self, checkpoint: Path) -> None:
        save_checkpoint(checkpoint, self.state())

    def weights(self) -> dict[str, Any]:
        """The states of the network and of its optimizer."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _load_weights(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        run = self.run
        return {
            **self.weights(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else {},
            "memory": run.memory,
            "history": run.history,
            "order": self.order,
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "predicted": self.predicted,
            "counts": {"epoch": run.epoch, "step": run.step, "at": self.at, "stop": run.stop, "seconds": self.seconds},
            "random": {
                "order": self.order_generator.get_state(),
                "run": run.generator.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.empty(0),
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        run, counts, random = self.run, state["counts"], state["random"]
        self._load_weights(state)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])
        run.memory = {name: value.to(self.device) for name, value in state["memory"].items()}
        run.history, run.epoch, run.step, run.stop = state["history"], counts["epoch"], counts["step"], counts["stop"]
        self.at, self.seconds = counts["at"], counts["seconds"]
        self.order = state["order"].to(self.device)
        self.losses = list(state["losses"].to(self.device))
        self.predicted.copy_(state["predicted"])
        self.order_generator.set_state(random["order"].cpu())
        run.generator.set_state(random["run"].cpu())
        torch.set_rng_state(random["torch"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"].cpu(), self.device)
        self.model.train()


def _optimizer(recipe: Recipe, parameters: list[Any], device: torch.device, fused: bool = True) -> torch.optim.Optimizer:
    """The recipe's optimizer; torch's own ones in their fused form, which does the same arithmetic in one pass."""
    made = recipe.optimizer
    kind, given = getattr(made, "func", made), getattr(made, "keywords", {})
    if fused and kind in _FUSED and not {"fused", "foreach", "differentiable"} & set(given) and device.type in ("cpu", "cuda"):
        return made(parameters, fused=True)
    return made(parameters)


def _groups(parameters: list[nn.Parameter], loss: Any) -> list[Any]:
    """The parameters as the optimizer gets them: those of losses that say ``decays = False`` without weight decay."""
    parts = loss.modules() if isinstance(loss, nn.Module) else ()
    spared = {id(p) for part in parts if not getattr(part, "decays", True) for p in part.parameters()}
    if not spared:
        return parameters
    rest = [p for p in parameters if id(p) not in spared]
    return [{"params": rest}, {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0}]


@torch.no_grad()
def _outputs(
    model: nn.Module,
    split: Split,
    device: torch.device,
    inputs: _Inputs | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Outputs of a network in evaluation mode for a whole split, in order."""
    if inputs is None:
        inputs = _Inputs(split, device, any(isinstance(m, nn.Conv2d) for m in model.modules()))
    was_training = model.training
    model.eval()
    rows = torch.arange(len(split)).split(chunk)
    out = torch.cat([(forward or model)(inputs.take(part)).float() for part in rows])
    model.train(was_training)
    return out


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def count_flops(model: nn.Module, example: Tensor) -> int:
    """Floating-point operations of one forward pass (torch's own counter), 0 where it cannot follow the network."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(example)
    except Exception:
        return 0
    return int(counter.get_total_flops())


__all__ = ["Loop", "Report", "Trained", "count_flops", "finished", "fit", "seeded", "with_weights"]
