"""What a probe looks at, and what it saw.

A paper's probe is one function, ``(view, **options) -> Seen``:

    @probe
    def smallest_push(view: View, max_iter: int = 50) -> Seen:
        "How far each input must move before the network says something else."
        found = deepfool(view.model, view.inputs, max_iter=max_iter)
        return Seen(each={"size": found.perturbation.flatten(1).norm(dim=1)}, attributions={"push": found.perturbation})

``assay probe`` finds it, makes the view out of a model and a file, and shows what was seen. The method itself stays a plain
function of tensors. Options are whatever parameters follow the view; their defaults tell their types.

A probe of a data set is ``(data, **options) -> Ranked``: it looks at a :class:`Collection` instead of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from assay.errors import AssayError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class View:
    """A trained network and some examples before it.

    Texts come one at a time, as their word vectors; the network is then one that starts at word vectors, so that a probe
    which moves inputs or takes gradients needs to know nothing of texts. A word is taken out by a vector of zeros.

    Args:
        model: in evaluation mode: (B, ...) -> logits (B, C), or numbers (B, 1) for regression; each example on its own.
        inputs: (B, ...) float: images (B, C, H, W), series (B, C, L), audio (B, bands, L), tables (B, D), one text
            (1, L, D).
        target: (B,) int64, the output to look at: the class that the network says, or another that somebody asked for.
        labels: (B,) what is right: int64 classes or float numbers. Ask :meth:`answers` where they are needed.
        background: (M, ...) further examples of the same kind: what is usual. None (M = 0) for texts.
        background_labels: (M,) what is right for these.
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        classes: names of the outputs; empty for regression.
        features: names of the columns of a table, the words of a text, else empty.
        seed: for whatever is random; see :meth:`generator`.
        layered: whether the network is made of modules that can be hooked; an exported program is not.
    """

    model: nn.Module
    inputs: Tensor
    target: Tensor
    labels: Tensor | None
    background: Tensor
    background_labels: Tensor | None
    kind: str
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    seed: int = 0
    layered: bool = True

    def generator(self) -> torch.Generator:
        """Random numbers that follow the seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    def answers(self) -> Tensor:
        """The labels (B,).

        Raises:
            AssayError: there are none, or they are other classes than the network's.
        """
        if self.labels is None:
            raise AssayError("this probe compares with the right answers, and the data have none of the network's classes")
        return self.labels

    def classifier(self) -> int:
        """How many classes there are.

        Raises:
            AssayError: the network predicts a number.
        """
        if len(self.classes) < 2:
            raise AssayError("this probe is for classifiers, and the network predicts a number")
        return len(self.classes)

    def only(self, *kinds: str) -> None:
        """Say that a probe is for these kinds of examples.

        Raises:
            AssayError: the examples are of another.
        """
        if self.kind not in kinds:
            raise AssayError(f"this probe is for {' and '.join(kinds)}, and the examples are of the kind {self.kind}")

    def layer(self, name: str = "") -> nn.Module:
        """The module of that name, as ``named_modules`` has them; without a name the last convolution.

        Raises:
            AssayError: there is none, or the network has no modules.
        """
        from torch import nn

        if not self.layered:
            raise AssayError(
                "this probe looks into layers, which an exported program has not: give the network itself as MODULE:FUNCTION"
            )
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if name:
            if name not in modules:
                raise AssayError(f"the network has no layer {name!r}: it has {', '.join(filter(None, modules))}")
            return modules[name]
        convolutions = [module for module in modules.values() if isinstance(module, nn.Conv1d | nn.Conv2d)]
        if not convolutions:
            raise AssayError("the network has no convolution: name a layer with --set layer=NAME")
        return convolutions[-1]


@dataclass(frozen=True)
class Seen:
    """What a probe saw. Everything may be left out.

    Args:
        numbers: name -> a number about the network.
        each: name -> (B,) a number for each example.
        attributions: name -> (B, ...) a number for each input, with its sign; of the inputs' shape, or with 1 where all
            entries of a dimension share one, e.g. (B, 1, H, W).
        inputs: name -> (B, ...) other inputs of the same shape: adversarial examples, prototypes.
        notes: what a reader should know besides, each without a full stop.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, Tensor] = field(default_factory=dict)
    attributions: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collection:
    """A data set before a probe that looks at examples, and trains what networks it needs for that.

    The probe is told from one of networks by the name of its first parameter, ``data``.

    Args:
        inputs: (N, ...) float: images (N, C, H, W), series (N, C, L), audio (N, bands, L), tables (N, D), texts as series
            of word vectors (N, D, L) with zeros behind the last word.
        labels: (N,) what is held to be right: int64 classes or float numbers. Ask :meth:`answers`.
        make_model: makes a fresh network for such inputs: (B, ...) -> logits (B, C).
        kind: ``"images"``, ``"audio"``, ``"series"``, ``"table"`` or ``"text"``.
        classes: names of the outputs; empty for regression.
        seed: for whatever is random.
        device: where to compute.
        report: ``report(done, total, note)`` is told how far it is.
    """

    inputs: Tensor
    labels: Tensor
    make_model: Callable[[], nn.Module]
    kind: str
    classes: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"
    report: Callable[[float, float, str], None] | None = None

    def answers(self) -> Tensor:
        """The classes (N,) int64.

        Raises:
            AssayError: what is to be predicted is a number.
        """
        if len(self.classes) < 2:
            raise AssayError("this probe is for classes, and the target of these data is a number")
        return self.labels


@dataclass(frozen=True)
class Ranked:
    """What a probe of a data set found of its examples.

    Args:
        each: name -> (N,) a number for each example.
        by: the name in ``each`` by which examples are shown, large for the most typical.
        lists: title -> positions of examples worth a look, those most worth it first.
        numbers: name -> a number about the data.
        notes: what a reader should know besides, each without a full stop.
    """

    each: Mapping[str, Tensor]
    by: str
    lists: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
