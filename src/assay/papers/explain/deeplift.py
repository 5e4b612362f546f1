"""DeepLIFT's RevealCancel rule: what speaks for a unit and what speaks against it are told apart, so that neither hides another.

min(a, b) = a - relu(a - b): on the way to the ReLU, a and b cancel. The gradient, and DeepLIFT's rescale rule with it, then give
all credit to one of the two, whichever happens to be smaller. Here each unit keeps two parts of its difference from the
reference, the sum of the contributions above zero and of those below. At a nonlinearity f, each part counts for what it adds, on
average over adding it before and after the other (their Shapley values):

    dy+ = 1/2 [f(x0 + dx+) - f(x0)] + 1/2 [f(x0 + dx- + dx+) - f(x0 + dx-)],   and dy- likewise,

and has a multiplier of its own, m+ = dy+ / dx+ and m- = dy- / dx-. A weighted sum sends them back by the sign of each
contribution: an input whose contribution to a unit is above zero takes that unit's m+, another its m-. Contributions still sum to
the difference of the scores.

Input and reference go through the network as one doubled batch. The gradient of the reference's half is of no use otherwise: it
carries m- while that of the input's half carries m+.

Source: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation Differences", ICML 2017.
Section numbers are the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from assay.errors import AssayError
from assay.explain import deeplift, guided_backprop, input_x_gradient
from assay.explain.backward import ELEMENTWISE, MAXIMA, Back, Call, Rule, Rules, backward, explained, linked, scores, step
from assay.explain.differences import Largest, near, spread, winners
from assay.explain.relevance import WEIGHTED, Weighted
from assay.paper import Below, Curve, Higher, claim
from assay.papers.explain.integrated_gradients import integrated_gradients
from assay.recipe import Recipe, probe
from assay.train.schedules import cosine
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View


@probe
def reveal_cancel(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int,
    *,
    baseline: float | Tensor = 0.0,
    rescale_convolutions: bool = False,
) -> Tensor:
    """What each input contributed to a score, relative to a reference input (section 3.5.2).

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was. Made of weighted
            layers, additions, means, functions of one number, maxima and batch normalisation.
        inputs: (B, ...) float.
        target: the class whose score is explained, one for all or (B,) int64. Take logits.
        baseline: the reference: a number or a tensor (1, ...) or (B, ...); the paper's is a black image.
        rescale_convolutions: use the rescale rule behind convolutions, as the paper does for DNA; for digits it does not.

    Returns:
        Attributions of the inputs' shape, in units of the score; they sum to the score minus the reference's.

    Raises:
        AssayError: the network has a function that the rules do not cover, or the reference does not fit.
    """
    start = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device)
    try:
        start = start.expand_as(inputs)
    except RuntimeError:
        raise AssayError(f"The reference {tuple(start.shape)} does not fit inputs {tuple(inputs.shape)}.") from None
    twice = torch.cat([inputs.detach(), start.detach()])
    classes = torch.as_tensor(target, device=inputs.device).expand(len(inputs)).repeat(2)
    with explained(model, twice) as leaves:
        with _Parts(rescale_convolutions):
            out = scores(model(*leaves), classes)
        (found,) = backward(out, leaves)
    more, less = found.chunk(2)
    difference = inputs.detach() - start
    return torch.where(difference > 0, more, torch.where(difference < 0, less, (more + less) / 2)) * difference


class _Parts(Rules):
    """Multipliers for what is above and below zero in the difference of each unit.

    Every tensor has the input's rows and then the reference's; what goes back has m+ in the first half and m- in the second.

    Args:
        rescale_convolutions: whether parts are forgotten behind convolutions.
    """

    def __init__(self, rescale_convolutions: bool) -> None:
        super().__init__()
        self._forget = rescale_convolutions
        # what a function gave -> both parts of its difference, where they are not just the difference's own sign
        self._parts: Any = WeakTensorKeyDictionary()

    def moved(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What only moves values moves both parts too."""
        out = func(*args, **kwargs)
        known = self._parts.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if known is not None and isinstance(out, Tensor) and out.requires_grad:
            self._parts[out] = tuple(func(part, *args[1:], **kwargs) for part in known)
        return out

    def perform(self, call: Call) -> Any:
        """The call with its rule; the parts of what it gives are kept where they do not follow from the difference's sign."""
        if call.name in WEIGHTED and call.places == [0]:
            layer, (value,) = Weighted.of(call), call.carriers
            out = step(partial(_weighted, layer), value)
            if not (self._forget and WEIGHTED[call.name] == "convolution"):
                self._parts[out] = _twice(*_contributions(layer, _difference(value.detach())))
            return out
        if len(call.places) > 1 or call.in_place:
            return super().perform(call)
        if call.name == "batch_norm" or call.name in ("add", "sub", "neg", "mul") or (call.name == "div" and call.places == [0]):
            return self._scaled(call)
        return self._of_one_number(call) if call.name in ELEMENTWISE else super().perform(call)

    def _scaled(self, call: Call) -> Tensor:
        """y = s x + t, one input for each output: parts and multipliers change places where s is below zero."""
        (value,) = call.carriers
        scale = _slope(call, value)
        if scale.shape != call.run(value).shape:
            raise AssayError(f"RevealCancel has no rule for {call.name} that copies what it is applied to.")
        positive = scale >= 0

        def rule(value: Tensor) -> tuple[Tensor, Back]:
            return call.run(value), lambda coming: (torch.where(positive, coming, _swapped(coming)) * scale,)

        out: Tensor = step(rule, value)
        if value in self._parts:
            more, less = self._parts[value]
            self._parts[out] = (torch.where(positive, more, less) * scale, torch.where(positive, less, more) * scale)
        return out

    def _of_one_number(self, call: Call) -> Tensor:
        (value,) = call.carriers
        there, start = value.detach().chunk(2)
        # Without parts (at the inputs, behind a maximum or a sum of units) nothing can cancel that is not added up already.
        parts = self._parts.get(value)
        if parts is None:
            multipliers = (_rescaled(call, there, start),) * 2
        else:
            more, less = (part.chunk(2)[0] for part in parts)
            multipliers = _revealed(call, there, start, more, less)

        def rule(value: Tensor) -> tuple[Tensor, Back]:
            return call.run(value), lambda coming: (coming * torch.cat(multipliers),)

        out: Tensor = step(rule, value)
        if parts is not None:
            self._parts[out] = _twice(multipliers[0] * more, multipliers[1] * less)
        return out

    def rule(self, call: Call) -> Rule | None:
        """What mixes several numbers."""
        if call.in_place:
            raise AssayError(f"RevealCancel has no rule for {call.name} in place.")
        if call.name in MAXIMA and (largest := winners(call)):
            return partial(_largest, call, largest)
        if call.name in ("add", "sub", "mean", "sum") or "avg_pool" in call.name:
            return partial(_summed, call)
        raise AssayError(f"RevealCancel has no rule for {call.name}.")


def _twice(more: Tensor, less: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of the difference for both halves of a batch."""
    return torch.cat([more, more]), torch.cat([less, less])


def _swapped(coming: Tensor) -> Tensor:
    return torch.cat(coming.chunk(2)[::-1])


def _difference(value: Tensor) -> Tensor:
    there, start = value.chunk(2)
    return there - start


def _contributions(layer: Weighted, difference: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of contributions above and below zero to each unit of a weighted layer (section 3.5.1)."""
    signs = torch.cat([difference.clamp(min=0), difference.clamp(max=0)])
    up_up, down_up = layer.run(signs, layer.weight.clamp(min=0), None).chunk(2)
    up_down, down_down = layer.run(signs, layer.weight.clamp(max=0), None).chunk(2)
    return up_up + down_down, up_down + down_up


def _by_sign(difference: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """A multiplier for both halves: that of contributions of one sign, of the other, or half of each where there is none."""
    chosen = torch.where(difference > 0, above, torch.where(difference < 0, below, (above + below) / 2))
    return torch.cat([chosen, chosen])


def _weighted(layer: Weighted, value: Tensor) -> tuple[Tensor, Back]:
    difference = _difference(value)

    def back(coming: Tensor) -> tuple[Tensor]:
        gradients: list[Tensor] = []
        for weight in (layer.weight.clamp(min=0), layer.weight.clamp(max=0)):
            (leaf,), out = linked(lambda one: layer.run(one, weight, None), torch.zeros_like(value))  # noqa: B023
            gradients += torch.autograd.grad(out, leaf, coming)[0].chunk(2)
        more_up, less_up, more_down, less_down = gradients
        return (_by_sign(difference, more_up + less_down, more_down + less_up),)

    return layer.run(value, layer.weight, layer.bias), back


def _summed(call: Call, *values: Tensor) -> tuple[Tensor, Back]:
    """Sums with weights >= 0, or 1 and -1: a weighted layer that has no weights."""
    leaves, out = linked(call.run, *values)
    differences = [_difference(value) for value in values]

    def back(coming: Tensor) -> list[Tensor]:
        found = []
        for place, (leaf, difference) in enumerate(zip(leaves, differences, strict=True)):
            more, less = torch.autograd.grad(out, leaf, coming, retain_graph=True)[0].chunk(2)
            minus = call.name == "sub" and place == 1
            found.append(_by_sign(difference, *((less, more) if minus else (more, less))))
        return found

    return out.detach().clone(), back


def _slope(call: Call, value: Tensor) -> Tensor:
    """The derivative, entry by entry."""
    (leaf,), out = linked(call.run, value)
    return torch.autograd.grad(out, leaf, torch.ones_like(out))[0]


def _rescaled(call: Call, there: Tensor, start: Tensor) -> Tensor:
    """One multiplier for both parts."""
    same = near(there, start)
    multiplier = (call.run(there) - call.run(start)) / torch.where(same, 1, there - start)
    return torch.where(same, _slope(call, there), multiplier) if same.any() else multiplier


def _revealed(call: Call, there: Tensor, start: Tensor, more: Tensor, less: Tensor) -> tuple[Tensor, Tensor]:
    """Each part has what it adds, before the other and after it (section 3.5.2)."""
    whole, none, with_more, with_less = (call.run(one) for one in (there, start, start + more, start + less))
    found = []
    for part, added in ((more, with_more - none + whole - with_less), (less, with_less - none + whole - with_more)):
        nothing = part == 0
        multiplier = added / torch.where(nothing, 1, 2 * part)
        found.append(torch.where(nothing, _slope(call, start), multiplier) if nothing.any() else multiplier)
    return found[0], found[1]


def _largest(call: Call, largest: Largest, value: Tensor) -> tuple[Any, Back]:
    """The winner now has what is above the reference's winner, which rises and takes m+; that one has the rest and takes m-."""
    found, places = largest(value)
    (now, then), (won, won_then) = found.chunk(2), places.chunk(2)
    top = torch.maximum(now, then)
    difference, same = _difference(value), near(*value.chunk(2))

    def back(coming: Tensor, *_: Any) -> tuple[Tensor]:
        more, less = coming.reshape(found.shape).chunk(2)
        credit = spread(call, more * (top - then), won, difference.shape)
        credit = credit + spread(call, less * (now - top), won_then, difference.shape)
        slope = spread(call, (more + less) / 2, won, difference.shape)
        multiplier = torch.where(same, slope, credit / torch.where(same, 1, difference))
        return (torch.cat([multiplier, multiplier]),)

    return call.run(value), back


@probe
def contributions(view: View, baseline: float = 0.0) -> Seen:
    """What each input contributed to the score of a class, what speaks for a unit and what speaks against it told apart.

    Args:
        view: any network of weighted layers, sums, functions of one number and maxima, and examples.
        baseline: what an input is that says nothing, in the units that the network takes: 0 is black in an image, the mean in a
            scaled column or series, no word in a text.
    """
    found = reveal_cancel(view.model, view.inputs, view.target, baseline=baseline)
    plain = deeplift(view.model, view.inputs, view.target, baseline=baseline)
    away = (found - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1).clamp(min=1e-12)
    return Seen(
        each={"sum of contributions": found.flatten(1).sum(dim=1), "how far from the rescale rule": away},
        attributions={"RevealCancel": found, "rescale": plain},
    )


# ------------------------------------------------------------------------------------------------------------- claims


class _Least(nn.Module):
    """min(a, b) = a - relu(a - b), written in ReLUs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :1] - F.linear(inputs, inputs.new_tensor([[1.0, -1.0]])).relu()


@claim(
    "For min(a, b) written in ReLUs, RevealCancel gives both inputs half of the credit, while the rescale rule, gradient x input "
    "and integrated gradients give all of it to one.",
    expect=(
        Below("RevealCancel", 1e-5),
        Higher("rescale", than="RevealCancel", by=0.45),
        Higher("gradient x input", than="RevealCancel", by=0.45),
        Higher("integrated gradients", than="RevealCancel", by=0.45),
    ),
    scaled_down="A formula and 2,000 random inputs; the paper shows it by figure and by algebra.",
    unit="mean over inputs from (0, 1) of |share of a - 1/2|, reference (0, 0)",
)
def finds_min_interaction(lab: Lab) -> Measured:
    inputs = torch.rand(lab.pick(smoke=100, laptop=2000, full=10000), 2, generator=lab.generator()).to(lab.device)
    network = _Least()
    methods: dict[str, Callable[[nn.Module, Tensor, int], Tensor]] = {
        "RevealCancel": reveal_cancel,
        "rescale": deeplift,
        "gradient x input": input_x_gradient,
        "integrated gradients": integrated_gradients,
    }
    least = inputs.amin(dim=1)
    return {arm: (method(network, inputs, 0)[:, 0] / least - 0.5).abs().mean().item() for arm, method in methods.items()}


def _digit_net() -> nn.Module:
    """Two strided convolutions and a hidden layer."""
    layers = [nn.Conv2d(1, 32, 5, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * 5 * 5, 128), nn.ReLU(), nn.Linear(128, 10))


def erase_by_difference(inputs: Tensor, speaks_for: Tensor, speaks_for_other: Tensor, most: int = 157) -> Tensor:
    """Erase the pixels that speak most for one class rather than for another (section 4.1).

    Args:
        inputs: (B, ...), in which 0 is nothing.
        speaks_for: attributions of the one class, of the inputs' shape.
        speaks_for_other: those of the other class.
        most: entries to erase at most; the paper's is a fifth of 28 x 28. Where the difference is 0 or below, they stay.

    Returns:
        The inputs with zeros in these places.
    """
    difference = (speaks_for - speaks_for_other).flatten(1)
    rank = difference.argsort(dim=1, descending=True).argsort(dim=1)
    gone = (rank < most) & (difference > 0)
    return inputs * ~gone.view_as(inputs)


def _random(model: nn.Module, inputs: Tensor, target: int) -> Tensor:
    return torch.rand(inputs.shape, generator=torch.Generator().manual_seed(target)).to(inputs)


_PAIRS = ((8, 3), (8, 6), (9, 1), (4, 1))
_METHODS: dict[str, Callable[[nn.Module, Tensor, int], Tensor]] = {
    "RevealCancel": reveal_cancel,
    "rescale": deeplift,
    "integrated gradients": partial(integrated_gradients, steps=20),
    "gradient x input": input_x_gradient,
    "guided backprop x input": lambda model, inputs, target: guided_backprop(model, inputs, target) * inputs,
    "random": _random,
}


@claim(
    "Erasing the pixels that speak for one digit and against another, up to a fifth of the image, turns it towards the other "
    "more effectively by RevealCancel's scores than by those of the rescale rule, integrated gradients, gradient x input, guided "
    "backpropagation x input, or chance.",
    expect=(
        Higher("RevealCancel", than="rescale"),
        Higher("RevealCancel", than="integrated gradients"),
        Higher("RevealCancel", than="gradient x input"),
        Higher("RevealCancel", than="guided backprop x input"),
        Higher("RevealCancel", than="random"),
    ),
    scaled_down="MNIST 5k; the paper trains on all of MNIST and shows box plots. Two convolutions with stride 2, a hidden layer.",
    unit="fall of logit(digit) - logit(other), mean over test images and over the pairs 8-3, 8-6, 9-1 and 4-1",
)
def erases_digits_better(lab: Lab) -> Measured:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    data = data.subset(train=200, test=100) if lab.scale == "smoke" else data
    recipe = Recipe(
        data,
        model=_digit_net,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=8, full=10),
        batch_size=64,
    )
    model, test = lab.train(recipe).model, data.test
    assert isinstance(test.inputs, Tensor)
    falls: dict[str, list[float]] = {arm: [] for arm in _METHODS}
    for one, other in _PAIRS:
        images = test.inputs[test.labels == one][: lab.pick(smoke=5, laptop=100, full=1000)].to(lab.device)
        for arm, method in _METHODS.items():
            erased = erase_by_difference(images, method(model, images, one), method(model, images, other))
            with torch.no_grad():
                before, after = model(images), model(erased)
            odds = (before - after)[:, one] - (before - after)[:, other]
            falls[arm].append(odds.mean().item())
    return {
        arm: Curve(
            found, value=sum(found) / len(found), x_name="pair (1: 8-3, 2: 8-6, 3: 9-1, 4: 4-1)", y_name="fall of log-odds"
        )
        for arm, found in falls.items()
    }
