"""Integrated gradients: credit for a prediction, shared out to the inputs so that the shares add up.

The gradient at an input says what a tiny change there would do, which is little where the network is already sure: a
score that has saturated has no gradient, although something in the input brought it there. Integrated gradients walk
from a baseline, an input that says nothing (a black image), on a straight line to the input, average the gradients on
the way and multiply by the difference. By the fundamental theorem of calculus the attributions then sum to the
difference of the two scores (completeness), and because only gradients are used, two networks that compute the same
function get the same attributions, however they are wired.

A pixel that is equal to the baseline gets no credit: on a black baseline, black parts of an object stay unexplained.

Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017. Equation numbers are the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import mlp
from assay.nn.frozen import frozen
from assay.paper import Above, Below, Curve, Higher, Lower, claim
from assay.recipe import Recipe, probe
from assay.recipes import lenet_on
from assay.view import Seen

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View

Rule = Literal["gausslegendre", "trapezoid", "right"]


@probe
def integrated_gradients(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int,
    baseline: Tensor | float = 0.0,
    steps: int = 50,
    rule: Rule = "gausslegendre",
    chunk: int = 256,
) -> Tensor:
    """What each input feature contributed to a class score, relative to a baseline (eq. 1).

    The network is used in evaluation mode and left as it was found. Take logits, not probabilities: where a probability
    has saturated the integrand is almost everywhere zero, and many more steps are needed.

    Args:
        model: maps a batch of inputs to scores (B, C), each example on its own.
        inputs: (B, ...) float. For text, the embedded tokens; sum the result over the embedding dimension.
        target: the class whose score is explained, one for all or (B,) int64.
        baseline: the input that says nothing: a number or a tensor that broadcasts to ``inputs``. The paper uses black
            images and zero embeddings.
        steps: gradients an example; 20 to 300 in the paper. Look at :func:`completeness_gap` to see if it was enough.
        rule: how the integral is approximated. ``"right"`` is the paper's sum (eq. 3); ``"trapezoid"`` takes both ends in;
            ``"gausslegendre"`` is the most accurate for the same number of steps.
        chunk: examples in one pass through the network; what fits the cache is fastest on a CPU.

    Returns:
        Attributions of the inputs' shape, dtype and device, with their sign.

    Raises:
        ValueError: an unknown rule, too few steps, or ``target`` that has neither one class nor B.
    """
    alphas, weights = (torch.from_numpy(values).to(inputs) for values in _quadrature(rule, steps))
    inputs = inputs.detach()
    start = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device).detach().expand_as(inputs)
    classes = _classes(target, inputs)
    total = torch.zeros_like(inputs)
    with frozen(model, inputs):
        for first in range(0, len(inputs), chunk):
            block = slice(first, min(first + chunk, len(inputs)))
            size = block.stop - block.start
            at_once = max(1, chunk // size)  # steps in one pass
            for alpha, weight in zip(alphas.split(at_once), weights.split(at_once), strict=True):
                along = alpha.view(-1, *[1] * inputs.dim())  # (S, 1, 1, ...)
                path = torch.lerp(start[block], inputs[block], along).requires_grad_()  # (S, b, ...)
                scores = model(path.flatten(0, 1)).gather(1, classes[block].repeat(len(alpha)).unsqueeze(1))
                # The weights of the sum go in as output gradients, so that what comes back needs adding up only.
                share = weight.repeat_interleave(size).to(scores.dtype).unsqueeze(1)  # (S b, 1)
                (gradient,) = torch.autograd.grad(scores, path, share)
                total[block] += gradient.sum(dim=0)
    return total.mul_(inputs - start)


def completeness_gap(
    model: nn.Module, attributions: Tensor, inputs: Tensor, target: Tensor | int, baseline: Tensor | float = 0.0
) -> Tensor:
    """By how much attributions miss completeness: their sum minus F(input) - F(baseline) (proposition 1).

    The paper raises the number of steps until the gap is below 5 % of the score difference.

    Args:
        model: maps a batch of inputs to scores (B, C).
        attributions: of the inputs' shape, from :func:`integrated_gradients` or anything else.
        inputs: (B, ...) what was explained.
        target: the class, one for all or (B,).
        baseline: the baseline that the attributions are relative to.

    Returns:
        (B,), in units of the score.
    """
    return attributions.flatten(1).sum(dim=1) - _score_difference(model, inputs, target, baseline)


@torch.no_grad()
def _score_difference(model: nn.Module, inputs: Tensor, target: Tensor | int, baseline: Tensor | float) -> Tensor:
    """F(input) - F(baseline): (B,)."""
    start = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device).expand_as(inputs)
    classes = _classes(target, inputs).unsqueeze(1)
    differences = []
    with frozen(model, inputs), torch.no_grad():
        for one, none, target_class in zip(inputs.split(256), start.split(256), classes.split(256), strict=True):
            differences.append(model(one).gather(1, target_class) - model(none).gather(1, target_class))
    return torch.cat(differences).squeeze(1)


def _classes(target: Tensor | int, inputs: Tensor) -> Tensor:
    """The target of every example: (B,)."""
    classes = torch.as_tensor(target, device=inputs.device)
    if classes.dim() == 0:
        return classes.expand(len(inputs))
    if classes.shape != (len(inputs),):
        raise ValueError(f"target must be one class or ({len(inputs)},) classes, not {tuple(classes.shape)}")
    return classes


def _quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places on [0, 1] and weights that sum to 1: (steps,) each."""
    if steps < (2 if rule == "trapezoid" else 1):
        raise ValueError(f"{steps} steps are too few for the rule {rule!r}")
    if rule == "gausslegendre":
        places, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1], weights that sum to 2
        return (places + 1) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    if rule == "right":
        return np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps)
    raise ValueError(f"rule must be gausslegendre, trapezoid or right, not {rule!r}")


@probe
def credit(view: View, steps: int = 50, baseline: float = 0.0, rule: Rule = "gausslegendre") -> Seen:
    """What each input contributed to the score of a class, relative to an input that says nothing.

    Args:
        view: any network and examples.
        steps: gradients an example.
        baseline: what an input is that says nothing, in the units that the network takes: 0 is black in an image, the mean
            in a scaled column or series, no word in a text.
        rule: how the integral is approximated: gausslegendre, trapezoid or right.
    """
    attributions = integrated_gradients(view.model, view.inputs, view.target, baseline, steps, rule)
    gained = _score_difference(view.model, view.inputs, view.target, baseline)
    gap = completeness_gap(view.model, attributions, view.inputs, view.target, baseline)
    rough = bool((gap.abs() > 0.05 * gained.abs()).double().mean() > 0.5)
    return Seen(
        each={"score above the baseline's": gained, "missing in the sum": gap},
        attributions={"integrated gradients": attributions},
        notes=(f"the shares miss the score by more than 5 % for most examples: use more than {steps} steps",) * rough,
    )


# ------------------------------------------------------------------------------------------------------------ claims


def _gradient(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """The plain gradient of the class score, of the inputs' shape."""
    with frozen(model, inputs):
        leaf = inputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).gather(1, target.unsqueeze(1)).sum(), leaf)
    return gradient


def _digits(lab: Lab) -> Dataset:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    return data.subset(train=200, test=100) if lab.scale == "smoke" else data


def _explained(lab: Lab, recipe: Recipe, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, the first test inputs and the classes that it predicts for them."""
    trained = lab.train(recipe)
    inputs = recipe.data.test.inputs
    assert isinstance(inputs, Tensor)
    inputs = inputs[torch.randperm(len(inputs), generator=lab.generator())[:count]].to(lab.device)
    with torch.no_grad():
        return trained.model, inputs, trained.model(inputs).argmax(dim=1)


_LENET = "MNIST 5k and a LeNet instead of the paper's image, medical, text and molecule networks"
_NAMES: dict[Rule, str] = {"right": "right Riemann", "trapezoid": "trapezoid", "gausslegendre": "Gauss-Legendre"}


def _tanh_mlp() -> nn.Module:
    """30 measurements, two layers of 32 tanh units, 2 classes: a smooth function, unlike a network of ReLUs."""
    return nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))


@claim(
    "At 50 steps of any rule the attributions' sum misses the score difference by less than 5 % (median over test images), at "
    "most half of what the paper's sum misses at 5 steps, while gradient x input misses it by more than five times as much.",
    expect=(
        Below("right Riemann", 0.05),
        Below("trapezoid", 0.05),
        Below("Gauss-Legendre", 0.05),
        Lower("right Riemann", than="right Riemann, 5 steps", times=0.5),
        Higher("gradient x input", than="right Riemann", times=5),
        Below("right Riemann, tanh MLP", 0.05),
        Below("trapezoid, tanh MLP", 0.05),
        Below("Gauss-Legendre, tanh MLP", 0.05),
    ),
    scaled_down=f"{_LENET}; 50 images. A tanh network on 30 measurements of tumours shows the rules on a smooth function.",
    unit="median of |completeness gap| / |score difference| at 50 steps",
)
def completeness_with_steps(lab: Lab) -> Measured:
    digits = lenet_on(_digits(lab), epochs=lab.pick(smoke=1, laptop=8, full=8))
    tumours = Recipe(
        lab.data("breast-cancer").normalise(), model=_tanh_mlp, epochs=lab.pick(smoke=2, laptop=20, full=20), batch_size=32
    )
    count = lab.pick(smoke=4, laptop=50, full=1000)
    counts = lab.pick(smoke=(5, 50), laptop=(5, 10, 20, 50, 100), full=(5, 10, 20, 50, 100, 200, 300))
    arms: dict[str, float | Curve] = {}
    for recipe, suffix in ((digits, ""), (tumours, ", tanh MLP")):
        model, inputs, target = _explained(lab, recipe, count)
        scale = _score_difference(model, inputs, target, 0.0).abs()

        def miss(attributions: Tensor) -> float:
            gap = completeness_gap(model, attributions, inputs, target)  # noqa: B023 (called within the turn)
            return (gap.abs() / scale).median().item()  # noqa: B023

        for rule, name in _NAMES.items():
            misses = [miss(integrated_gradients(model, inputs, target, steps=n, rule=rule)) for n in counts]
            arms[name + suffix] = Curve(
                misses, x=counts, value=misses[counts.index(50)], x_name="steps", y_name="median relative gap"
            )
            arms[f"{name}{suffix}, 5 steps"] = misses[0]
        arms[f"gradient x input{suffix}"] = miss(_gradient(model, inputs, target) * inputs)
    return arms


def _deletion(lab: Lab, recipe: Recipe) -> Measured:
    """Probability of the predicted class while pixels are blackened, most important first; value: mean over the way."""
    model, images, target = _explained(lab, recipe, lab.pick(smoke=20, laptop=200, full=1000))
    gradient = _gradient(model, images, target)
    importance = {
        "integrated gradients": integrated_gradients(model, images, target),
        "gradient x input": gradient * images,
        "gradient magnitude": gradient.abs(),
        "pixel intensity": images,
        "random": torch.rand(images.shape, generator=lab.generator(1)).to(images),
    }
    fractions = np.linspace(0, 1, 29)
    arms: dict[str, float | Curve] = {}
    for arm, scores in importance.items():
        # rank 0 is the most important pixel of its image; all channels of a pixel go together
        rank = scores.sum(dim=1).flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view_as(images[:, :1])
        left = []
        with torch.no_grad():
            for fraction in fractions:
                kept = images * (rank >= round(fraction * rank[0].numel()))
                left.append(model(kept).softmax(dim=1).gather(1, target.unsqueeze(1)).mean().item())
        area = float(np.trapezoid(left, fractions))
        arms[arm] = Curve(
            left, x=fractions.tolist(), value=area, x_name="fraction deleted", y_name="predicted class's probability"
        )
    return arms


_FASTER = (
    Lower("integrated gradients", than="gradient magnitude"),
    Lower("integrated gradients", than="pixel intensity"),
    Lower("integrated gradients", than="random"),
)


@claim(
    "Blackening the pixels of MNIST digits in the order of integrated gradients lowers the predicted class's probability "
    "faster than in the order of gradient magnitude, of the pixels' own intensity, or in random order.",
    expect=_FASTER,
    scaled_down=f"{_LENET}; 200 images. The measure is the community's; the paper has no numbers.",
    unit="area under the deletion curve (lower is better)",
)
def ranks_features_better(lab: Lab) -> Measured:
    return _deletion(lab, lenet_on(_digits(lab), epochs=lab.pick(smoke=1, laptop=8, full=8)))


@claim(
    "Blackening the pixels of Fashion-MNIST clothes in the order of integrated gradients lowers the predicted class's "
    "probability faster than in the order of gradient magnitude, of the pixels' own intensity, or in random order.",
    expect=_FASTER,
    scaled_down="4,000 training images of Fashion-MNIST and a LeNet; 200 images. The measure is the community's.",
    unit="area under the deletion curve (lower is better)",
    needs=("fashion-mnist",),
)
def ranks_features_better_on_clothes(lab: Lab) -> Measured:
    clothes = lab.data("fashion-mnist")
    if lab.scale != "full":
        clothes = clothes.subset(train=lab.pick(smoke=640, laptop=4000, full=0), test=1000)
    return _deletion(lab, lenet_on(clothes, epochs=lab.pick(smoke=1, laptop=8, full=8)))


# Two methods that send relevance backwards layer by layer instead of following the gradient: what they say depends on
# how the function is written down. Both are for stacks of nn.Linear and nn.ReLU.


def _activations(network: nn.Sequential, inputs: Tensor) -> list[Tensor]:
    """What goes into every layer, and last what comes out."""
    values = [inputs]
    for layer in network:
        values.append(layer(values[-1]))
    return values


@torch.no_grad()
def _deeplift(network: nn.Sequential, inputs: Tensor, target: Tensor) -> Tensor:
    """DeepLIFT with the rescale rule, zero baseline: a ReLU's multiplier is change of output over change of input."""
    at, start = _activations(network, inputs), _activations(network, torch.zeros_like(inputs))
    multiplier = F.one_hot(target, at[-1].shape[1]).to(inputs)
    for position in range(len(network) - 1, -1, -1):
        layer = network[position]
        if isinstance(layer, nn.Linear):
            multiplier = multiplier @ layer.weight
        else:
            change = at[position] - start[position]
            slope = (at[position + 1] - start[position + 1]) / torch.where(change == 0, 1, change)
            multiplier = multiplier * slope
    return multiplier * inputs


@torch.no_grad()
def _lrp(network: nn.Sequential, inputs: Tensor, target: Tensor, epsilon: float = 1e-6) -> Tensor:
    """LRP-epsilon: a unit's relevance goes to its inputs in proportion to what each brought in.

    As in the paper's example, biases take no share, so that relevance is conserved from layer to layer.
    """
    values = _activations(network, inputs)
    relevance = values[-1] * F.one_hot(target, values[-1].shape[1])
    for position in range(len(network) - 1, -1, -1):
        layer = network[position]
        if isinstance(layer, nn.Linear):
            brought = values[position] @ layer.weight.T
            stable = brought + epsilon * torch.where(brought < 0, -1.0, 1.0)
            relevance = values[position] * ((relevance / stable) @ layer.weight)
    return relevance


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


@torch.no_grad()
def _rewrites(network: nn.Sequential, generator: torch.Generator) -> Iterator[tuple[str, nn.Sequential]]:
    """The same function written differently; ``network`` begins with Linear, ReLU, Linear and has inputs >= 0."""
    first, relu, second, *rest = network
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    weight, bias = first.weight, first.bias  # (H, D), (H,)
    units = len(weight)

    order = torch.randperm(units, generator=generator)
    permuted = _linear(weight[order], bias[order]), relu, _linear(second.weight[:, order], second.bias)
    yield "units permuted", nn.Sequential(*permuted, *rest)

    scale = 10 ** (2 * torch.rand(units, generator=generator).to(weight) - 1)  # 0.1 to 10: relu(s z) = s relu(z)
    scaled = _linear(weight * scale[:, None], bias * scale), relu, _linear(second.weight / scale, second.bias)
    yield "ReLUs rescaled", nn.Sequential(*scaled, *rest)

    turn, _ = torch.linalg.qr(torch.randn(units, units, generator=generator).to(weight))  # W = turn^T (turn W)
    yield "layer split in two", nn.Sequential(_linear(turn @ weight), _linear(turn.T, bias), relu, second, *rest)

    # relu(p + b - n) = relu(relu(p + b) - n) where n >= 0, the paper's example (fig. 7) for a whole layer: p and n are the
    # sums over its positive and its negative weights, both of which are >= 0 on inputs >= 0.
    parts = _linear(torch.cat([weight.clamp(min=0), (-weight).clamp(min=0)]), torch.cat([bias, torch.zeros_like(bias)]))
    same = torch.eye(units).to(weight)
    yield "ReLU nested", nn.Sequential(parts, relu, _linear(torch.cat([same, -same], dim=1)), relu, second, *rest)


@claim(
    "Four rewrites that leave an MLP's function unchanged (units permuted, ReLUs rescaled, a layer split in two, a ReLU "
    "nested in another) leave integrated gradients unchanged, while DeepLIFT and LRP change under the last of them.",
    expect=(Below("integrated gradients", 1e-6), Above("DeepLIFT rescale", 0.01), Above("LRP-epsilon", 0.01)),
    scaled_down="An MLP on MNIST 5k; the paper shows one pair of networks with two inputs (fig. 7).",
    unit="largest change over the rewrites, relative to the largest attribution",
)
def implementation_invariance(lab: Lab) -> Measured:
    recipe = Recipe(_digits(lab), model=partial(mlp, 784, 10, (64, 64)), epochs=lab.pick(smoke=1, laptop=10, full=10))
    model, images, target = _explained(lab, recipe, lab.pick(smoke=10, laptop=100, full=1000))
    # Double precision: what is left of the differences is then of the method and not of rounding.
    network = nn.Sequential(*[layer for layer in copy.deepcopy(model).double() if not isinstance(layer, nn.Flatten)])  # type: ignore[attr-defined]
    inputs = images.flatten(1).double()
    methods: dict[str, Callable[[nn.Sequential, Tensor, Tensor], Tensor]] = {
        "integrated gradients": integrated_gradients,
        "DeepLIFT rescale": _deeplift,
        "LRP-epsilon": _lrp,
        "gradient x input": lambda network, inputs, target: _gradient(network, inputs, target) * inputs,
    }
    rewrites = list(_rewrites(network, lab.generator(2)))
    arms: dict[str, float | Curve] = {}
    for arm, method in methods.items():
        original = method(network, inputs, target)
        largest = original.abs().amax(dim=1)
        changes = [
            ((method(rewritten, inputs, target) - original).abs().amax(dim=1) / largest).mean().item()
            for _, rewritten in rewrites
        ]
        names = ", ".join(f"{place} {name}" for place, (name, _) in enumerate(rewrites, start=1))
        arms[arm] = Curve(changes, value=max(changes), x_name=f"rewrite: {names}", y_name="relative change")
    return arms
