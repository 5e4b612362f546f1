"""Guidance: a network that does not fit the data learns to see them, layer by layer, as one does that fits.

Deep perceptrons overfit pictures, deep convolutional networks without shortcuts do not train, and both have long been given
up for networks with a better inductive bias. Much of that bias can be handed over. A guide g, frozen, sees the same batch as
the network f in training, and f is asked to arrange the examples of the batch, in each of its layers, as a layer of g
does:

    L = CE(f(x), y) + w * sum over pairs of layers of (1 - CKA(f_l(x), g_k(x)))

CKA compares how far examples lie from each other and not the features themselves, so that layers of any width and kind can be
paired; layers are paired by their depth, the logits left out. The guide may be trained, and hands over what it has learnt.
But it may also be *untrained*, with random weights: then it hands over its architecture alone.

Source: Subramaniam, Mayo, Conwell, Poggio, Katz, Cheung and Barbu, "Training the Untrainable: Introducing Inductive Bias via
Representational Alignment", NeurIPS 2025. Where several layers of a guide fall on one of the network's, all of these pairs
count here; the authors' code keeps the last of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.nn.layers import watching
from assay.nn.similarity import linear_cka
from assay.paper import Curve, Higher, claim
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.signals.tsc_baselines import FCN
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

_KINDS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.LayerNorm,
    nn.MultiheadAttention,
    nn.RNNBase,
)


def layer_map(guide: int, target: int) -> tuple[int, ...]:
    """For every one of ``guide`` layers, in order, which of ``target`` layers it guides: as deep in its network."""
    step = (target - 1) / (guide - 1) if guide > 1 else 1.0
    return tuple(min(round(place * step), target - 1) for place in range(guide))


@torch.no_grad()
def hidden_layers(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the layers that can guide or be guided, in the order in which they work; the last one, the logits, left out.

    These are layers with weights (linear, convolutional, recurrent, attention, layer norm) and mean pooling over the whole
    picture, with the examples in the first dimension of their output.

    Args:
        model: any network; its mode stays as it is.
        example: (1, ...) one input.
    """
    modes = {module: module.training for module in model.modules()}
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if isinstance(module, _KINDS)}
    order: dict[str, None] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if len(_first(output)) == 2:
            order[names[module]] = None

    handles = [module.register_forward_hook(note) for module in names]
    try:
        model.eval()(torch.cat([example, example]))  # two examples tell their dimension from others of length one
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return tuple(order)[:-1]


def _first(output: Any) -> Tensor:
    """Recurrent and attention layers give more than one tensor; the first is what the next layer sees."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


class Guidance(nn.Module):
    """Cross-entropy plus agreement with a guide's layers.

        loss = Guidance(model, images[:1], guide)
        with watching(model, loss.watches) as layers:
            loss(model(images), labels, images, layers, epoch).backward()

    Args:
        model: the network in training; it is looked at for its layers, and not kept.
        example: (1, ...) one input.
        guide: a trained network, or a function that makes an untrained one; a copy of it is kept, frozen and in evaluation mode.
        weight: of the agreement, summed over the pairs of layers; the paper takes 1.
        epochs: for how long; 0 is to the end. The authors find that the first few hundred steps do much of it.
        target_layers: names of the guided layers, in order; all of :func:`hidden_layers` if empty.
        guide_layers: names of the guiding ones.

    Shape: logits (B, C) float, labels (B,) int64 or (B, C) float, inputs (B, ...), layers name -> (B, ...) for the names in
    ``watches``, epoch (how many are over) -> scalar. Batches should be large, some hundred examples: CKA is biased upwards where
    features outnumber them.

    Raises:
        ValueError: one of the networks has no hidden layer, or the weight is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        guide: nn.Module | Callable[[], nn.Module],
        weight: float = 1.0,
        epochs: int = 0,
        target_layers: Sequence[str] = (),
        guide_layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, not {weight}")
        self.guide = copy.deepcopy(guide) if isinstance(guide, nn.Module) else guide()
        self.guide.to(example.device).requires_grad_(False).eval()
        self.weight, self.epochs = weight, epochs
        theirs = tuple(guide_layers) or hidden_layers(self.guide, example)
        own = tuple(target_layers) or hidden_layers(model, example)
        if not theirs or not own:
            raise ValueError(f"the {'guide' if own else 'network'} has no hidden layer")
        self.pairs = tuple((own[at], name) for name, at in zip(theirs, layer_map(len(theirs), len(own)), strict=True))
        self.watches = tuple(dict.fromkeys(layer for layer, _ in self.pairs))

    def train(self, mode: bool = True) -> Guidance:
        """The guide stays in evaluation mode: its running statistics must not follow the batches."""
        super().train(mode)
        self.guide.eval()
        return self

    def agreement(self, inputs: Tensor, layers: Mapping[str, Tensor]) -> Tensor:
        """CKA of every pair of layers: (P,)."""
        with torch.no_grad(), watching(self.guide, [name for _, name in self.pairs]) as theirs:
            self.guide(inputs)
        return torch.stack([linear_cka(_first(layers[own]), _first(theirs[name])) for own, name in self.pairs])

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor, layers: Mapping[str, Tensor], epoch: int) -> Tensor:
        fit = F.cross_entropy(logits, labels)
        if (self.epochs and epoch >= self.epochs) or len(logits) < 2:
            return fit
        return fit + self.weight * (1 - self.agreement(inputs, layers)).sum()


@treatment
def guided(
    recipe: Recipe, guide: nn.Module | Callable[[], nn.Module] | None = None, weight: float = 1.0, epochs: int = 0
) -> Recipe:
    """Let a guide look over the network's shoulder.

    Args:
        recipe: how to train; its network keeps its architecture and, once trained, its price.
        guide: a trained network for the same inputs, or a function that makes an untrained one. ``None`` takes an untrained
            one whose architecture suits the data: a small residual network for images, convolutions in time for series.
        weight: as in :class:`Guidance`.
        epochs: as there.

    Raises:
        AssayError: there is no such guide for tables and texts, or the recipe predicts numbers.
    """
    made = _untrained(recipe.data) if guide is None else guide
    return with_loss(recipe, per_example(Guidance, guide=made, weight=weight, epochs=epochs))


def _untrained(data: Dataset) -> Callable[[], nn.Module]:
    shape = data.input_shape
    if len(shape) == 3:
        return partial(cifar_resnet, 8, in_channels=shape[0], num_classes=data.num_classes)
    if len(shape) == 2:
        return partial(FCN, shape[0], data.num_classes)
    raise AssayError(
        f"An untrained guide hands over what its architecture knows, and for inputs like those of {data.name!r} none is known to "
        "do so: name a guide, as guided(recipe, guide=network)."
    )


# -------------------------------------------------------------------------------------------------------- the claims


class _Distillation(nn.Module):
    """A control: the guide's answers instead of its layers (Hinton et al. 2015), CE + T^2 KL of softened predictions."""

    def __init__(self, guide: nn.Module, temperature: float = 4.0) -> None:
        super().__init__()
        self.guide = copy.deepcopy(guide).requires_grad_(False).eval()
        self.temperature = temperature

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = (self.guide(inputs) / self.temperature).softmax(dim=1)
        own = (logits / self.temperature).log_softmax(dim=1)
        return F.cross_entropy(logits, labels) + self.temperature**2 * F.kl_div(own, theirs, reduction="batchmean")


def _deep_perceptron(lab: Lab) -> Recipe:
    """Eight hidden layers on few digits: a network that soon knows its training set by heart."""
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="cifar10"))
    data = data.subset(*lab.pick(smoke=(200, 100), laptop=(1000, 1000), full=(None, None)), seed=lab.seed)
    data = data.normalise().holdout(0.1, seed=lab.seed)
    return Recipe(
        data,
        model=partial(mlp, math.prod(data.input_shape), 10, (lab.pick(smoke=32, laptop=256, full=1024),) * 8),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=20, full=100),
        batch_size=lab.pick(smoke=100, laptop=100, full=256),
        watch=("valid", "test"),
    )


def _convolutional(lab: Lab, plain: Recipe) -> Callable[[], nn.Module]:
    channels, size, _ = plain.data.input_shape
    return partial(cifar_resnet, 20) if lab.scale == "full" else partial(lenet, channels, 10, size)


def _curve(trained: Trained) -> Curve:
    return Curve(trained.history["test_accuracy"], cost=trained.cost, y_name="test accuracy")


def _chosen(lab: Lab, recipes: Iterable[Recipe]) -> Curve:
    return _curve(max((lab.train(recipe) for recipe in recipes), key=lambda trained: trained.history["valid_accuracy"][-1]))


_SCALED_DOWN = (
    "900 digits for 20 epochs (180 steps) in batches of 100, and a LeNet as the guide, instead of ImageNet and ResNet-18."
)


@claim(
    "A perceptron of eight hidden layers, guided by an untrained convolutional network, classifies more than a point more test "
    "digits correctly than without a guide, and more than with an untrained perceptron as the guide.",
    expect=(
        Higher("untrained convolutional guide", than="no guide", by=0.01),
        Higher("untrained convolutional guide", than="untrained perceptron as guide"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def untrained_guide_helps(lab: Lab) -> Measured:
    plain = _deep_perceptron(lab)
    architecture = _convolutional(lab, plain)
    # As many layers as the other guide: agreement is a sum over pairs, so that more of them would weigh more.
    depth = len(hidden_layers(architecture(), plain.data.train.inputs[:1]))  # type: ignore[arg-type]
    perceptron = partial(mlp, math.prod(plain.data.input_shape), 10, (256,) * depth)
    # The control may choose its remedy on held-out digits; the guided arms have nothing to choose.
    decaying = [plain.replace(optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=decay)) for decay in (0.1, 1.0)]
    return {
        "no guide": _curve(lab.train(plain)),
        "no guide, weight decay": _chosen(lab, decaying),
        "untrained convolutional guide": _curve(lab.train(guided(plain, architecture))),
        "untrained perceptron as guide": _curve(lab.train(guided(plain, perceptron))),
    }


@claim(
    "A perceptron of eight hidden layers classifies more test digits correctly when its convolutional guide was trained on the "
    "same few digits than when the guide is untrained; the guide's own training comes on top.",
    expect=Higher("trained guide", than="untrained guide"),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def trained_guide_helps_more(lab: Lab) -> Measured:
    plain = _deep_perceptron(lab)
    architecture = _convolutional(lab, plain)
    guide = lab.train(plain.replace(model=architecture))
    distilled = plain.replace(loss=per_example(_Distillation, guide=guide.model))
    return {
        "no guide": _curve(lab.train(plain)),
        "untrained guide": _curve(lab.train(guided(plain, architecture))),
        "trained guide": _curve(lab.train(guided(plain, guide.model))),
        "its answers alone (distillation)": _curve(lab.train(distilled)),
        "the guide itself": _curve(guide),
    }


@claim(
    "A convolutional network of 32 layers without shortcuts is more than 10 points more accurate when an untrained residual "
    "network of the same depth guides it.",
    expect=Higher("guided", than="no guide", by=0.10),
    scaled_down="8x8 digits, 32 layers of 8 to 32 planes and 14 epochs (168 steps), instead of ImageNet and ResNet-50.",
    unit="test accuracy after the last epoch",
)
def shortcuts_can_be_handed_over(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="digits", laptop="digits", full="cifar10"))
    if lab.scale == "smoke":
        data = data.subset(train=200, test=100)
    depth, width = lab.pick(smoke=(8, 4), laptop=(32, 8), full=(110, 16))
    residual = partial(cifar_resnet, depth, width=width, in_channels=data.input_shape[0])
    plain = Recipe(
        data.normalise(),
        model=partial(residual, residual=False),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=14, full=100),
    )
    return {
        "no guide": _curve(lab.train(plain)),
        "guided": _curve(lab.train(guided(plain, residual))),
        "with shortcuts": _curve(lab.train(plain.replace(model=residual))),
    }
