"""Learned example weights: which training examples lower the loss on a few clean ones, found by looking one step ahead.

Training examples are not worth the same: some are of a rare class, some have wrong labels. Suppose that a few clean, balanced
examples are at hand (the dev set; ten of each class will do). Then the weight of a training example can be learnt like any
parameter: take the step that the optimizer would make, look at the dev loss there, and follow its gradient in the weights.

With delta_i the step that the optimizer would make for example i alone, in each batch

    theta'(w) = theta + sum_i w_i delta_i                                     one step ahead
    G_i       = d L_dev(theta'(w)) / d w_i = <grad L_dev(theta'), delta_i>
    w_i      <- max(w_i / decay - G_i, 1e-5)

and the real step is made on sum_i w_i l_i, the weights of the batch divided by their sum. Weights are remembered from epoch to
epoch; starting each batch from w = 0 and forgetting gives the method of Ren et al. (2018).

The authors' code makes a copy of the network and a step for every example of the batch. None of that is needed. A step of SGD is
a linear function of the gradient, delta_i = c + D g_i, with a constant c (momentum, weight decay) and a diagonal D. So

    theta'(w) = theta + (sum_i w_i) c + D grad(sum_i w_i l_i)     one backward pass
    G_i       = <v, c> + <D v, g_i>,    v = grad L_dev(theta')    one backward pass on the dev set

and <D v, g_i> is the derivative of the loss l_i in the direction D v: forward-mode differentiation gives it for the whole batch
at the price of about two forward passes, without any example's own gradient. With Adam, D divides by the root of the second
moment; it is held at its present value here, where the authors' code lets each example change it by its share.

All looks ahead are in evaluation mode: no dropout, batch normalisation by running statistics, so that the loss of an example
depends on nothing but itself. The paper's other half, a learned augmentation of texts by BERT, is not here.

Source: Hu, Tan, Salakhutdinov, Mitchell and Xing, "Learning Data Manipulation for Augmentation and Weighting", NeurIPS 2019, and
its published code, which has the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.data.aside import set_aside
from assay.errors import AssayError
from assay.nn import mlp
from assay.paper import Curve, Higher, Lower, Reported, Score, claim
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.recipe import Recipe, treatment
from assay.train.hooks import BestEpoch, Hook, InputHook, Run
from assay.train.losses import balanced_cross_entropy, inverse_frequencies

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

#: ``(logits (B, C), labels) -> (B,)``.
ExampleLoss = Callable[[Tensor, Tensor], Tensor]

_CROSS_ENTROPY: ExampleLoss = partial(F.cross_entropy, reduction="none")
Tensors = dict[str, Tensor]


def step_response(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors] | None:
    """How the optimizer's next step depends on the gradient: step = constant + scale * gradient, for each parameter by name.

    Args:
        model: whose trainable parameters the optimizer holds.
        optimizer: SGD, Adam or AdamW. Adam's second moment is held at its present value.

    Returns:
        Constants and scales; ``None`` before Adam's first step, when it has no second moment.

    Raises:
        ValueError: the optimizer is another one, or does not hold a parameter.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    constants, scales = {}, {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter not in groups:
            raise ValueError(f"the optimizer does not hold the parameter {name!r}")
        group, state, value = groups[parameter], optimizer.state.get(parameter, {}), parameter.detach()
        if group.get("maximize"):
            raise ValueError("the optimizer maximises, and weights are learnt for losses that are made small")
        if isinstance(optimizer, torch.optim.SGD):
            constants[name], scales[name] = _sgd(group, state, value)
        elif isinstance(optimizer, torch.optim.Adam):  # AdamW is one of its kinds
            if "exp_avg_sq" not in state:
                return None
            constants[name], scales[name] = _adam(group, state, value, isinstance(optimizer, torch.optim.AdamW))
        else:
            raise ValueError(f"weights look one step of SGD, Adam or AdamW ahead, not of {type(optimizer).__name__}")
    return constants, scales


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], value: Tensor) -> tuple[Tensor, Tensor]:
    rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
    buffer = state.get("momentum_buffer")
    # Buffer after the step: momentum * buffer + fresh * (gradient + decay * value). The first gradient enters it whole.
    fresh = 1.0 if buffer is None else 1.0 - group["dampening"]
    old = torch.zeros_like(value) if buffer is None else momentum * buffer
    if group["nesterov"]:  # moves by gradient + momentum * buffer
        old, fresh = momentum * old, 1.0 + momentum * fresh
    return -rate * (old + fresh * decay * value), torch.full_like(value, -rate * fresh)


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], value: Tensor, decoupled: bool) -> tuple[Tensor, Tensor]:
    (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
    done = float(state["step"])
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"] / (1 - beta2**done)
    scale = -rate / (1 - beta1 ** (done + 1)) / (second.sqrt() + group["eps"])
    if decoupled or group.get("decoupled_weight_decay"):
        return scale * beta1 * state["exp_avg"] - rate * decay * value, scale * (1 - beta1)
    return scale * (beta1 * state["exp_avg"] + (1 - beta1) * decay * value), scale * (1 - beta1)


def directional_derivatives(
    model: nn.Module, inputs: Tensor, labels: Tensor, direction: Tensors, loss: ExampleLoss = _CROSS_ENTROPY
) -> Tensor:
    """The derivative of every example's loss when the parameters move in one direction: <direction, g_i>, (B,).

    By forward-mode differentiation. Where an operation of the network has no forward derivative (some LSTMs, fused attention,
    ``segment_reduce``), it is the central difference of two forward passes in double precision, which agrees to about 8 digits.

    Args:
        model: in evaluation mode, so that examples do not depend on one another.
        inputs: (B, ...).
        labels: (B,) int64, or (B, C) float.
        direction: for each parameter that moves, a tensor of its shape.
        loss: of each example.
    """
    try:
        with torch.no_grad(), forward_ad.dual_level():
            parameters = {name: value.detach() for name, value in model.named_parameters()}
            moving = {name: forward_ad.make_dual(parameters[name], way) for name, way in direction.items()}
            values = loss(functional_call(model, parameters | moving, (inputs,)), labels)
            derivative = forward_ad.unpack_dual(values).tangent
    except NotImplementedError:
        return _central_difference(model, inputs, labels, direction, loss)
    return torch.zeros_like(values) if derivative is None else derivative


@torch.no_grad()
def _central_difference(model: nn.Module, inputs: Tensor, labels: Tensor, direction: Tensors, loss: ExampleLoss) -> Tensor:
    def wide(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    state = {name: wide(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    way = {name: wide(value) for name, value in direction.items()}
    length = math.sqrt(sum(float(value.square().sum()) for value in way.values()))
    if not length:
        return inputs.new_zeros(len(inputs), dtype=torch.get_default_dtype())
    size = 1e-6 * math.sqrt(sum(float(state[name].square().sum()) for name in way) + 1.0) / length

    def losses(far: float) -> Tensor:
        moved = state | {name: state[name] + far * value for name, value in way.items()}
        return loss(functional_call(model, moved, (wide(inputs),)), wide(labels))

    return ((losses(size) - losses(-size)) / (2 * size)).to(next(iter(direction.values())).dtype)


def lookahead_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    weights: Tensor,
    dev_inputs: Tensor,
    dev_labels: Tensor,
    loss: ExampleLoss = _CROSS_ENTROPY,
) -> Tensor | None:
    """G: how the dev loss after the optimizer's next step depends on the weight of each example of the batch.

    Args:
        model: maps inputs to logits. It is left as it was, its batch statistics and mode too.
        optimizer: of its parameters; SGD, Adam or AdamW. It takes no step.
        inputs: (B, ...).
        labels: (B,) int64, or (B, C) float.
        weights: (B,), w.
        dev_inputs: (M, ...) the clean examples.
        dev_labels: (M,) int64.
        loss: of each example.

    Returns:
        (B,), or ``None`` before Adam's first step.
    """
    response = step_response(model, optimizer)
    if response is None:
        return None
    constants, scales = response
    parameters = dict(model.named_parameters())
    moving = {name: parameters[name] for name in constants}
    with _evaluating(model), torch.enable_grad():
        total = (weights.detach() * loss(model(inputs), labels)).sum()
        gradients = torch.autograd.grad(total, list(moving.values()), allow_unused=True)
        ahead = {}
        for (name, value), gradient in zip(moving.items(), gradients, strict=True):
            step = weights.sum() * constants[name]
            step = step if gradient is None else step + scales[name] * gradient
            ahead[name] = (value.detach() + step).requires_grad_()
        dev = loss(functional_call(model, ahead, (dev_inputs,)), dev_labels).mean()
        found = torch.autograd.grad(dev, list(ahead.values()), allow_unused=True)
        slopes = {name: slope for name, slope in zip(ahead, found, strict=True) if slope is not None}
        shared = torch.stack([(slope * constants[name]).sum() for name, slope in slopes.items()]).sum()
        direction = {name: slope * scales[name] for name, slope in slopes.items()}
        return shared + directional_derivatives(model, inputs, labels, direction, loss).detach()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the block lasts; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


Norm = Literal["linear", "softmax"]


def normalised(weights: Tensor, norm: Norm = "linear", temperature: float = 1.0) -> Tensor:
    """Weights of a batch that sum to 1: (B,) -> (B,).

    Args:
        weights: as learnt.
        norm: ``"linear"`` divides by their sum, negative ones being 0 (all 0 where none is positive); ``"softmax"``.
        temperature: of the softmax.
    """
    if norm == "softmax":
        return (weights / temperature).softmax(dim=0)
    positive = weights.clamp_min(0)
    total = positive.sum()
    return torch.where(total > 1e-8, positive / total.clamp_min(1e-8), torch.zeros_like(positive))


class LearnedWeighting(nn.Module):
    """One weight for each training example, learnt beside the network.

        weights = weighting(model, optimizer, inputs, labels, index, dev_inputs, dev_labels)
        optimizer.zero_grad()
        (weights * F.cross_entropy(model(inputs), labels, reduction="none")).sum().backward()
        optimizer.step()

    Args:
        num_examples: size of the training set.
        w_init: weight that an example starts with. The authors use 1 for images, 0 for texts.
        w_decay: what a weight is divided by before every update; 2 for images and 10 for texts in the authors' scripts.
        norm: of a batch, as for :func:`normalised`: ``"linear"`` for unequal classes, ``"softmax"`` for few examples in the
            authors' scripts.
        temperature: of the softmax; 10 for images in the authors' scripts.
        remember: ``False`` starts every batch from 0, and is learning to reweight (Ren et al. 2018).
        loss: of each example, for training and dev examples.

    Shape: inputs (B, ...), labels (B,), index (B,) positions in the training set, dev inputs (M, ...), dev labels (M,) ->
    (B,) weights that sum to 1, without gradient.

    ``weights`` (N,) is a buffer: it is saved in the ``state_dict``.

    A look ahead is as long as the single steps of the whole batch, one after the other, times their weights. The authors' rate is
    0.001 in batches of 20. At rates that are large for a single example, all the more with batch normalisation, whose running
    statistics lag behind, the dev loss so far ahead says little, and weights grow without end: take smaller ones.
    """

    weights: Tensor

    def __init__(
        self,
        num_examples: int,
        w_init: float = 1.0,
        w_decay: float = 2.0,
        norm: Norm = "linear",
        temperature: float = 1.0,
        remember: bool = True,
        loss: ExampleLoss = _CROSS_ENTROPY,
    ) -> None:
        super().__init__()
        if w_decay < 1:
            raise ValueError(f"w_decay must be at least 1, not {w_decay}: weights would grow without end")
        if norm not in ("linear", "softmax") or temperature <= 0:
            raise ValueError(f"norm must be linear or softmax, and temperature positive, not {norm!r} and {temperature}")
        self.w_decay, self.norm, self.temperature, self.remember, self.loss = w_decay, norm, temperature, remember, loss
        self.register_buffer("weights", torch.full((num_examples,), w_init))

    def forward(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: Tensor,
        labels: Tensor,
        index: Tensor,
        dev_inputs: Tensor,
        dev_labels: Tensor,
    ) -> Tensor:
        before = self.weights[index] if self.remember else torch.zeros_like(self.weights[index])
        gradient = lookahead_gradient(model, optimizer, inputs, labels, before, dev_inputs, dev_labels, self.loss)
        if gradient is None:  # nothing is known yet
            return torch.full_like(before, 1 / len(before))
        gradient = gradient.where(gradient.isfinite(), 0.0)  # too far ahead to see anything
        learnt = (before / self.w_decay - gradient).clamp_min(1e-5) if self.remember else -gradient
        now = learnt.to(before)
        self.weights[index] = now
        return normalised(now, self.norm, self.temperature)


@dataclass(frozen=True)
class WeighExamples(InputHook):
    """Learn a weight for each training example and train with it; ``run.memory["example weights"]`` (N,) keeps them.

    Args:
        inputs: (M, ...) of the dev set.
        labels: (M,) of the dev set.
        w_init, w_decay, norm, temperature, remember, loss: as for :class:`LearnedWeighting`.

    The loss itself is not touched, whatever it is: the gradient that it sends into the logits of an example is multiplied by the
    example's share, so that the mean over a batch becomes the weighted sum.

    Raises:
        AssayError: while training: the optimizer is not SGD, Adam or AdamW, or a later hook puts other inputs in the place of
            those that were weighed.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    w_init: float = 1.0
    w_decay: float = 2.0
    norm: Norm = "linear"
    temperature: float = 1.0
    remember: bool = True
    loss: ExampleLoss = field(default=_CROSS_ENTROPY, repr=False)

    def on_start(self, run: Run) -> None:
        """All examples start alike."""
        _require_known(run.optimizer)
        run.memory["example weights"] = torch.full((len(run.data.train),), self.w_init, device=run.device)

    def before_forward(self, run: Run) -> None:
        """Learn the weights of the batch: before the network sees it, since losses may watch what goes through its layers."""
        weighting = LearnedWeighting(1, self.w_init, self.w_decay, self.norm, self.temperature, self.remember, self.loss)
        weighting.weights = run.memory["example weights"]
        dev = self.inputs.to(run.device), self.labels.to(run.device)
        run.memory["example weights, batch"] = weighting(run.model, run.optimizer, run.inputs, run.labels, run.index, *dev)
        run.memory["example weights, inputs"] = run.inputs

    def before_loss(self, run: Run) -> None:
        """Let the logits pass gradients on by the weights."""
        if run.memory.pop("example weights, inputs") is not run.inputs:
            raise AssayError(
                "Another method changes the batch after its examples were weighed (it mixes, chooses or resizes them): put "
                "learned_weighting behind it."
            )
        times = (run.memory["example weights, batch"] * len(run.logits)).to(run.logits.dtype).unsqueeze(1)
        held = run.logits.detach()
        run.logits = held + times * (run.logits - held)  # the same numbers, with scaled gradients


def _require_known(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam):
        raise AssayError(
            f"Example weights look a step of SGD, Adam or AdamW ahead, and this recipe has {type(optimizer).__name__}."
        )


@treatment
def learned_weighting(
    recipe: Recipe,
    per_class: int = 10,
    w_init: float = 1.0,
    w_decay: float = 2.0,
    norm: Norm = "linear",
    temperature: float = 1.0,
    remember: bool = True,
    seed: int = 0,
) -> Recipe:
    """Weigh training examples by what they do for a few of each class, which are taken out of the training set.

    Every step also takes all the examples that were set aside through the network, which is dear where classes are many. Methods
    that change batches (mix, choose or resize examples) come before this one.

    Args:
        recipe: of a classifier, trained with SGD, Adam or AdamW. Cross-entropy (smoothed or not) is also what is looked ahead
            with; beside any other loss it is plain cross-entropy.
        per_class: examples of each class to set aside (:func:`assay.data.aside.set_aside`). They must have right labels.
        w_init: as for :class:`LearnedWeighting`, and so the next four.
        w_decay: what a weight is divided by before every update.
        norm: how the weights of a batch are made to sum to 1.
        temperature: of the softmax.
        remember: ``False`` is learning to reweight.
        seed: which examples are set aside.

    Raises:
        AssayError: there are no classes, or the optimizer is another one.
    """
    if recipe.data.task != "classification":
        raise AssayError(f"Example weights are learnt for classes, and {recipe.data.name!r} has none: leave this method out.")
    _require_known(recipe.optimizer([nn.Parameter(torch.zeros(1))]))
    data, dev = set_aside(recipe.data, per_class, seed)
    return weighed_by(recipe.replace(data=data), dev, w_init, w_decay, norm, temperature, remember)


def weighed_by(
    recipe: Recipe,
    dev: Split,
    w_init: float = 1.0,
    w_decay: float = 2.0,
    norm: Norm = "linear",
    temperature: float = 1.0,
    remember: bool = True,
) -> Recipe:
    """The recipe with weights that are learnt on examples which are at hand besides the training set."""
    if not isinstance(dev.inputs, Tensor):
        raise AssayError("The examples that weights are learnt on are texts; encode them as token ids (assay.nn.text) first.")
    made = recipe.loss
    smooth = isinstance(made, partial) and made.func is F.cross_entropy
    loss = partial(F.cross_entropy, reduction="none", **made.keywords) if isinstance(made, partial) and smooth else _CROSS_ENTROPY
    hook = WeighExamples(dev.inputs, dev.labels, w_init, w_decay, norm, temperature, remember, loss)
    return recipe.replace(hooks=(*recipe.hooks, hook))


# -------------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class _Few:
    """A training set of two unequal classes or of some wrong labels, and a few clean examples of each class.

    Args:
        train: without the clean examples.
        dev: them.
    """

    train: Dataset
    dev: Split

    @property
    def both(self) -> Dataset:
        """What a method may train on that does not steer by the dev set: everything."""
        return self._of(torch.cat([_tensor(self.train.train), _tensor(self.dev)]), [self.train.train, self.dev], "dev added")

    @property
    def dev_alone(self) -> Dataset:
        """The clean examples as a training set."""
        return self._of(_tensor(self.dev), [self.dev], "dev alone")

    def _of(self, inputs: Tensor, parts: list[Split], step: str) -> Dataset:
        train = Split(inputs, torch.cat([part.labels for part in parts]))
        return replace(self.train, train=train, history=(*self.train.history, step))


def _tensor(split: Split) -> Tensor:
    assert isinstance(split.inputs, Tensor)
    return split.inputs


def _pair(data: Dataset, rare: int, frequent: int, counts: tuple[int, int], dev: int, seed: int) -> _Few:
    """Two classes of a data set, as 0 and 1: so many training examples of each, and ``dev`` of each besides."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train), generator=generator)
    members = [order[data.train.labels[order] == label] for label in (rare, frequent)]

    def split(part: Split, chosen: list[Tensor]) -> Split:
        return Split(_tensor(part)[torch.cat(chosen)], torch.arange(2).repeat_interleave(torch.tensor([len(c) for c in chosen])))

    held = split(data.train, [own[:dev] for own in members])
    train = split(data.train, [own[dev : dev + count] for own, count in zip(members, counts, strict=True)])
    test = split(data.test, [(data.test.labels == label).nonzero().flatten() for label in (rare, frequent)])
    step = f"pair(rare={rare}, frequent={frequent}, counts={counts}, dev={dev}, seed={seed})"
    classes = (data.classes[rare], data.classes[frequent])
    none = train.take(torch.arange(0))
    return _Few(replace(data, train=train, valid=none, test=test, classes=classes, history=(*data.history, step)), held)


def _by_class(trained: Trained) -> float:
    """Test accuracy, the mean of both classes'."""
    test = trained.recipe.data.test
    right = (trained.logits("test").argmax(dim=1) == test.labels).double()
    return torch.stack([right[test.labels == label].mean() for label in test.labels.unique()]).mean().item()


def _imbalanced(
    lab: Lab, few: _Few, plain: Recipe, rates: tuple[float, ...], seed: int, names: tuple[str, ...]
) -> dict[str, Score]:
    """Balanced accuracy of each arm at the rate and the epoch that are best on the dev set; all do as many steps.

    The dev set steers the weights besides. So there are controls that make more of it too: they train on it (and are then right
    on it at every rate, of which they get the first).
    """
    plain = plain.replace(data=replace(few.train, valid=few.dev), hooks=(BestEpoch("valid_accuracy"),), watch=("valid",))
    added = plain.replace(data=replace(few.both, valid=few.dev))
    weights = inverse_frequencies(added.data.train.labels, 2)
    steps = plain.epochs * math.ceil(len(few.train.train) / plain.batch_size)
    alone = replace(few.dev_alone, valid=few.dev)
    arms = {
        "unweighted": plain,
        "unweighted, dev added": added,
        "classes balanced, dev added": added.replace(loss=partial(balanced_cross_entropy, weights=weights)),
        "dev set alone": plain.replace(data=alone, epochs=steps // math.ceil(len(few.dev) / plain.batch_size)),
        "Ren et al.": weighed_by(plain, few.dev, remember=False),
        "learned weights": weighed_by(plain, few.dev),
    }
    found = {}
    for name in names:
        trials = [lab.train(arms[name].replace(optimizer=_sgd_at(rate, plain)), seed=seed) for rate in rates]
        best = max(trials, key=lambda trained: max(trained.history["valid_accuracy"]))
        found[name] = Score(_by_class(best), best.cost)
    return found


def _sgd_at(rate: float, recipe: Recipe) -> partial[torch.optim.SGD]:
    assert isinstance(recipe.optimizer, partial)
    return partial(torch.optim.SGD, **{**recipe.optimizer.keywords, "lr": rate})


_COUNTS = (20, 1000)
_TWO_RATES = "Every arm has the better of two rates by its accuracy on the dev set; its best epoch there counts, as in the paper."
_REPORTED = Reported(
    "CIFAR-10, two classes with 20 and 1,000 images, 10 of each in the dev set, pretrained ResNet-34, mean of 30 runs: accuracy",
    {"unweighted": 0.7065, "Ren et al.": 0.7668, "learned weights": 0.7908},
    where="the authors' published logs",
)


@claim(
    "With 20 images of one digit and 1,000 of another, and 10 of each as a dev set, learned weights are more accurate on both "
    "classes (their mean) than unweighted training by more than 5 points, also if that has the dev set in its training set, and "
    "at most a point worse than weights by class counts.",
    expect=(
        Higher("learned weights", than="unweighted", by=0.05),
        Higher("learned weights", than="unweighted, dev added", by=0.05),
        Higher("learned weights", than="classes balanced, dev added", by=-0.01),
    ),
    reported=_REPORTED,
    scaled_down="Fours and nines of MNIST and a perceptron with 64 hidden units instead of photos and a pretrained ResNet-34. "
    + _TWO_RATES,
    unit="test accuracy, mean over classes",
    needs=("mnist",),
)
def helps_with_unequal_classes(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist", full="mnist"))
    counts = lab.pick(smoke=(5, 50), laptop=_COUNTS, full=_COUNTS)
    controls = ("unweighted", "unweighted, dev added", "classes balanced, dev added", "dev set alone", "Ren et al.")
    names = (*controls, "learned weights")
    few = _pair(data, 4, 9, counts, dev=10, seed=lab.seed)
    rates = lab.pick(smoke=(0.03,), laptop=(0.03, 0.01), full=(0.03, 0.01))
    return _imbalanced(lab, few, _perceptron(few.train, lab.pick(smoke=1, laptop=15, full=15)), rates, lab.seed, names)


def _perceptron(data: Dataset, epochs: int) -> Recipe:
    """The authors' batches, momentum and decay; ten times their rate or more, for a network that starts from nothing."""
    return Recipe(
        data,
        model=partial(mlp, 784, data.num_classes, (64,)),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.01),
        epochs=epochs,
        batch_size=20,
        watch=(),
    )


@claim(
    "The same with photos and a residual network: with 20 airplanes, 1,000 cars and 10 of each as a dev set, learned weights are "
    "more accurate on both classes (their mean) than unweighted training by more than 5 points, also if that has the dev set in "
    "its training set.",
    expect=(
        Higher("learned weights", than="unweighted", by=0.05),
        Higher("learned weights", than="unweighted, dev added", by=0.05),
    ),
    reported=_REPORTED,
    scaled_down="Images of 16x16 and a residual network of 8 layers and 8, 16 and 32 planes that starts from nothing, 8 epochs, "
    "instead of a pretrained ResNet-34 and 15. " + _TWO_RATES,
    unit="test accuracy, mean over classes",
    needs=("cifar10-20k",),
)
def helps_with_unequal_photos(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="digits", laptop="cifar10-20k", full="cifar10"))
    few = _pair(data, 0, 1, lab.pick(smoke=(5, 35), laptop=_COUNTS, full=_COUNTS), dev=10, seed=lab.seed)
    full = lab.scale == "full"
    net = partial(cifar_resnet, 32 if full else 8, width=16 if full else 8, num_classes=2, in_channels=data.input_shape[0])
    plain = Recipe(
        few.train,
        model=net if full else partial(half_size, net),
        # Decay as small as usual: at the authors' 0.01 unweighted training says the frequent class whatever it sees.
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        epochs=lab.pick(smoke=1, laptop=8, full=15),
        batch_size=20,
        watch=(),
    )
    names = ("unweighted", "unweighted, dev added", "learned weights")
    return _imbalanced(lab, few, plain, lab.pick(smoke=(0.05,), laptop=(0.05, 0.005), full=(0.05, 0.001)), lab.seed, names)


@dataclass(frozen=True)
class _MeanWeights(Hook):
    """Keeps the mean weight of rightly and of wrongly labelled examples after every epoch."""

    def after_epoch(self, run: Run) -> None:
        train = run.data.train
        assert train.clean_labels is not None
        wrong = (train.labels != train.clean_labels).to(run.device)
        weights = run.memory["example weights"]
        now = torch.stack([weights[~wrong].mean(), weights[wrong].mean()])[None]
        run.memory["mean weights"] = torch.cat([run.memory.get("mean weights", now[:0]), now])


@claim(
    "With 30% of the training labels wrong and 10 clean examples of each class as a dev set, the mean learned weight of wrongly "
    "labelled examples ends below half of that of the others.",
    expect=Lower("wrong labels", than="right labels", times=0.5),
    scaled_down="1,000 digits of MNIST 5k and a perceptron with 64 hidden units, 15 epochs.",
    unit="mean weight of an example, or test accuracy",
)
def wrong_labels_lose_weight(lab: Lab) -> Measured:
    data = lab.data("mnist5k").subset(train=lab.pick(smoke=300, laptop=1100, full=4000), seed=lab.seed)
    rest, dev = set_aside(data, per_class=10, seed=lab.seed)
    few = _Few(rest.flip_labels(0.3, seed=lab.seed), dev)
    plain = _perceptron(few.train, lab.pick(smoke=2, laptop=15, full=15))
    weighed = weighed_by(plain, dev)
    learned = lab.train(weighed.replace(hooks=(*weighed.hooks, _MeanWeights())))
    unweighted = lab.train(plain.replace(data=few.both))
    right, wrong = learned.memory["mean weights"].T.tolist()
    return {
        "right labels": Curve(right, cost=learned.cost, y_name="mean weight"),
        "wrong labels": Curve(wrong, cost=learned.cost, y_name="mean weight"),
        "learned weights: accuracy": learned.accuracy(),
        "unweighted: accuracy": unweighted.accuracy(),
    }
