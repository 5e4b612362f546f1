"""A recipe is one complete way to train; a treatment changes a recipe; a probe looks at what was trained."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.train.hooks import Hook

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from assay.data import Dataset


class Loss(Protocol):
    """``(logits (B, C), labels (B,)) -> scalar``."""

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor: ...


#: What a loss may ask for besides logits and labels, by the names of its parameters.
_MORE = ("index", "features", "epoch", "inputs", "layers")


@dataclass(frozen=True)
class PerExample:
    """A loss that keeps something, or sees more than logits and labels; made by :func:`per_example`."""

    kind: Callable[..., nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wants(self) -> tuple[str, ...]:
        """What it is called with besides logits and labels, in order."""
        return tuple(name for name in inspect.signature(getattr(self.kind, "forward", self.kind)).parameters if name in _MORE)

    def build(
        self,
        data: Dataset,
        feature_dim: int | None = None,
        model: nn.Module | None = None,
        example: Tensor | None = None,
        epochs: int | None = None,
    ) -> nn.Module:
        """The loss for this data set, with one row of memory an example.

        Args:
            data: what is trained on.
            feature_dim: width of the network's last hidden layer, for losses that ask for it.
            model: the network, for losses that ask for it.
            example: (1, ...) one input, for losses that ask for it.
            epochs: how many the training will have, for losses that ask for it and were not given a number of their own.
        """
        known: dict[str, Any] = {"num_examples": len(data.train), "num_classes": data.num_classes, "feature_dim": feature_dim}
        known |= {"model": model, "example": example, "epochs": epochs}
        wanted = inspect.signature(self.kind).parameters
        return self.kind(**{name: value for name, value in known.items() if name in wanted} | dict(self.arguments))


def per_example(kind: Callable[..., nn.Module], **arguments: Any) -> PerExample:
    """A loss with memory, or one that sees more than logits and labels, for ``Recipe(loss=...)``.

    ``kind`` is built with ``arguments`` and those of ``num_examples``, ``num_classes``, ``feature_dim``, ``model`` (the
    network), ``example`` ((1, ...), one input) and ``epochs`` (of the training that begins) that it asks for. It is called
    with ``(logits, labels, ...)`` and those of the following that its ``forward`` names:

    - ``index`` (B,) int64: positions in the training set;
    - ``features`` (B, F): what goes into the network's last linear layer;
    - ``epoch``: how many epochs are over;
    - ``inputs`` (B, ...): the batch as the network saw it;
    - ``layers``: name -> output of those modules of the network whose names stand in the loss's attribute ``watches``.

    If it has parameters of its own, they are trained beside the network's; with an attribute ``decays = False`` they are
    spared the optimizer's weight decay.
    """
    return PerExample(kind, arguments)


@dataclass(frozen=True)
class Corrected(PerExample):
    """Several losses at once, each as its correction to cross-entropy; made by :func:`with_loss`."""

    parts: tuple[Loss | PerExample, ...] = ()

    @property
    def wants(self) -> tuple[str, ...]:
        """What any of the losses asks for."""
        asked = {name for part in self.parts if isinstance(part, PerExample) for name in part.wants}
        return tuple(name for name in _MORE if name in asked)

    def build(
        self,
        data: Dataset,
        feature_dim: int | None = None,
        model: nn.Module | None = None,
        example: Tensor | None = None,
        epochs: int | None = None,
    ) -> nn.Module:
        """All the losses for this data set."""
        known = data, feature_dim, model, example, epochs
        built = [part.build(*known) if isinstance(part, PerExample) else part for part in self.parts]
        own = [part.wants if isinstance(part, PerExample) else () for part in self.parts]
        return _Sum(built, own, self.wants)


class _Sum(nn.Module):
    """``CE + sum_k (L_k - CE)``.

    Args:
        losses: functions or modules.
        own: what each of them asks for besides logits and labels.
        wants: what this one is called with, in order.
    """

    def __init__(self, losses: Sequence[Loss | nn.Module], own: Sequence[tuple[str, ...]], wants: tuple[str, ...]) -> None:
        super().__init__()
        self.losses, self.own, self.wants = tuple(losses), tuple(own), wants
        self.parts = nn.ModuleList(loss for loss in losses if isinstance(loss, nn.Module))
        self.watches = tuple(dict.fromkeys(name for loss in losses for name in getattr(loss, "watches", ())))

    def forward(self, logits: Tensor, labels: Tensor, *more: Any) -> Tensor:
        known = dict(zip(self.wants, more, strict=True))
        each = [loss(logits, labels, *(known[name] for name in own)) for loss, own in zip(self.losses, self.own, strict=True)]
        return _together(each, logits, labels)


def _sum_of_losses(logits: Tensor, labels: Tensor, losses: tuple[Loss, ...]) -> Tensor:
    return _together([loss(logits, labels) for loss in losses], logits, labels)


def _together(each: list[Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """``CE + sum_k (L_k - CE)``."""
    return torch.stack(each).sum() - (len(each) - 1) * F.cross_entropy(logits, labels)


def with_loss(recipe: Recipe, loss: Loss | PerExample) -> Recipe:
    """The recipe with a loss that a paper puts in the place of cross-entropy.

    Where the recipe has another loss in that place already, both are kept, each as its correction to cross-entropy:
    ``base + (loss - CE)``. The order in which losses come does not matter.

    Raises:
        AssayError: the recipe predicts numbers, not classes.
    """
    if recipe.data.task != "classification":
        name = getattr(getattr(loss, "func", getattr(loss, "kind", loss)), "__name__", "This loss")
        raise AssayError(f"{name} takes the place of cross-entropy, and {recipe.data.name!r} has no classes: leave it out.")
    if recipe.loss is F.cross_entropy:
        return recipe.replace(loss=loss)
    parts = (*parts_of(recipe.loss), loss)
    plain = tuple(part for part in parts if not isinstance(part, PerExample))
    if len(plain) == len(parts):
        return recipe.replace(loss=functools.partial(_sum_of_losses, losses=plain))
    return recipe.replace(loss=Corrected(_Sum, parts=parts))


def parts_of(loss: Loss | PerExample) -> tuple[Loss | PerExample, ...]:
    """The losses that :func:`with_loss` put together; one alone is its only part."""
    if isinstance(loss, Corrected):
        return loss.parts
    if isinstance(loss, functools.partial) and loss.func is _sum_of_losses:
        return tuple(loss.keywords["losses"])
    return (loss,)


_SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@dataclass(frozen=True)
class Recipe:
    """One complete way to train. Everything in it is a value or importable code, so that its content is its identity.

    Args:
        data: what to train and test on.
        model: makes the network: ``model()``; use ``functools.partial`` for its arguments.
        loss: ``(logits, labels) -> scalar``, or :func:`per_example`.
        optimizer: ``optimizer(parameters) -> Optimizer``.
        schedule: ``schedule(optimizer, steps) -> LRScheduler``, stepped after every optimizer step; ``None`` keeps the rate.
        augment: ``augment(inputs, generator) -> inputs`` on every training batch, on the device.
        hooks: what else happens at the named moments of a training (:mod:`assay.train.hooks`).
        epochs: passes over the training split.
        batch_size: examples in one optimizer step.
        accumulate: into how many parts a batch is cut, for batches that do not fit; the gradient is that of the whole.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast: weights stay float32).
        shuffle: draw a new order every epoch; ``False`` keeps the order of the data.
        clip_norm: bound of the gradient's norm; ``None`` leaves it.
        watch: splits that are evaluated after every epoch, for the curves (never for choosing anything).
        devices: how many devices share every batch; more than one needs the extra ``devices`` (:mod:`assay.train.devices`).
        strategy: how several devices share: ``"ddp"`` (each holds the whole network) or ``"fsdp"`` (each holds a part of it,
            for networks that do not fit on one).
    """

    data: Dataset
    model: Callable[[], nn.Module]
    loss: Loss | PerExample = F.cross_entropy
    optimizer: Callable[..., Optimizer] = _SGD
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    hooks: tuple[Hook, ...] = ()
    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    shuffle: bool = True
    clip_norm: float | None = None
    watch: tuple[str, ...] = ("test",)
    devices: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("devices", 1)):
            if getattr(self, name) < least:
                raise AssayError(f"Recipe.{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.accumulate > self.batch_size:
            raise AssayError(
                f"Recipe.accumulate is {self.accumulate} with a batch_size of {self.batch_size}: parts would be empty."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise AssayError(f"Recipe.precision is {self.precision!r}; it must be 'float32' or 'bfloat16'.")
        if self.strategy not in ("ddp", "fsdp"):
            raise AssayError(f"Recipe.strategy is {self.strategy!r}; it must be 'ddp' or 'fsdp'.")
        if self.devices > self.batch_size // self.accumulate:
            raise AssayError(
                f"Recipe.devices is {self.devices} with {self.batch_size // self.accumulate} examples at a time: some would have "
                "nothing to do; take a larger batch_size or fewer devices."
            )
        if self.devices > 1 and self.strategy == "fsdp" and self.hooks:
            raise AssayError("Recipe.hooks see whole weights, which no device has under strategy='fsdp'; use strategy='ddp'.")

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return dataclasses.replace(self, **changes)


_F = TypeVar("_F", bound=Callable[..., Any])


def treatment(function: _F) -> _F:
    """Mark ``function(recipe, ...) -> recipe`` as a paper's treatment, so that it can be found by name and composed."""
    function.__assay__ = "treatment"  # type: ignore[attr-defined]
    return function


def network_of_images(recipe: Recipe, what: str, key: str) -> nn.Module:
    """The network of a recipe for classes of images, on the meta device: what a treatment that replaces it has to look at.

    Args:
        recipe: whose network would be replaced.
        what: the treatment puts in its place, in the plural.
        key: of the treatment, which is to be left out where it does not fit.

    Raises:
        AssayError: the data are no images or no classes.
    """
    data = recipe.data
    if len(data.input_shape) != 3 or data.task != "classification":
        raise AssayError(f"{what} are for classes of images, and {data.name!r} has none: leave {key} out.")
    with torch.device("meta"):
        return recipe.model()


def probe(function: _F) -> _F:
    """Mark ``function(view, ...) -> Seen`` as a paper's probe, which `assay probe` finds by name (:mod:`assay.view`).

    A method of a paper that takes a model and tensors may carry the mark as well; it is not what the command calls.
    """
    function.__assay__ = "probe"  # type: ignore[attr-defined]
    return function
