"""Annealed gradient noise: shake every gradient a little, and less and less.

A deep network from a poor start sits on a plateau: gradients are tiny or, from weights that are all zero, exactly nothing
for all layers but the last. Adding independent Gaussian noise to every entry of every gradient moves such a network off its
plateau. The noise has to die away, or it would drown what is learnt later: its variance falls as a power of the step,

    sigma_t^2 = eta / (1 + t)^gamma,   gamma = 0.55,   eta one of 0.01, 0.3, 1        (eq. 1)

It is added after the gradients are clipped (clipping would otherwise take the noise for part of the gradient) and before the
optimizer sees them. Nothing else changes, so that it goes with any network and optimizer, at the price of one normal number
per weight and step.

Source: Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach and Martens, "Adding Gradient Noise Improves Learning for Very
Deep Networks", 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from assay.errors import AssayError
from assay.nn import mlp
from assay.paper import Above, Below, Close, Curve, Higher, claim
from assay.recipe import Recipe, treatment
from assay.train.hooks import Hook, Run

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

ETAS = (0.01, 0.3, 1.0)  # the paper's three; one is chosen on validation data


def noise_std(step: int, eta: float = 0.01, gamma: float = 0.55) -> float:
    """Standard deviation of the noise at a step, counted from 0 (eq. 1).

    Args:
        step: optimizer steps that lie behind.
        eta: variance of the noise at step 0, in units of the gradient squared. The paper tries 0.01, 0.3 and 1.
        gamma: how fast the variance falls; 0 keeps it. The paper uses 0.55.
    """
    return float((eta / (1 + step) ** gamma) ** 0.5)


@torch.no_grad()
def add_gradient_noise_(parameters: Iterable[nn.Parameter], std: float, generator: torch.Generator | None = None) -> None:
    """Add independent normal noise to every entry of the gradients, in place; parameters without a gradient stay as they are.

    Args:
        parameters: whose ``.grad`` is changed. All on one device.
        std: standard deviation of the noise; 0 changes nothing.
        generator: source of the noise, on the gradients' device; ``None`` takes torch's own.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not std or not gradients:
        return
    if any(gradient.is_sparse for gradient in gradients):
        raise ValueError("noise on every entry would make sparse gradients dense: train with Embedding(sparse=False)")
    sizes = [gradient.numel() for gradient in gradients]
    # One draw for all: a call of the random number generator costs more than the few numbers of a small layer.
    noise = torch.randn(sum(sizes), generator=generator, device=gradients[0].device).mul_(std)
    for gradient, part in zip(gradients, noise.split(sizes), strict=True):
        gradient.add_(part.view_as(gradient))


class GradientNoise:
    """Annealed noise for an optimizer: from now on every ``optimizer.step()`` first adds it to the gradients.

        noise = GradientNoise(optimizer, eta=0.01)
        loss.backward(); optimizer.step()      # as before

    Args:
        optimizer: a torch optimizer whose ``step()`` is called without a closure.
        eta: see :func:`noise_std`.
        gamma: see :func:`noise_std`.
        seed: the noise of step t depends on ``seed`` and t alone, so that a resumed training goes on as it would have.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> None:
        _check(eta, gamma)
        self.eta, self.gamma, self.seed, self.step = eta, gamma, seed, 0
        self._handle = optimizer.register_step_pre_hook(self._add)

    def _add(self, optimizer: torch.optim.Optimizer, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # Of what step() was given, the first is the optimizer itself.
        if any(value is not None for value in (*given[1:], *named.values())):
            raise ValueError("a closure computes its gradients after the noise would be added: call step() without one")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        generator = _stream(self.seed, self.step, parameters[0].device)
        add_gradient_noise_(parameters, noise_std(self.step, self.eta, self.gamma), generator)
        self.step += 1

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._handle.remove()

    def state_dict(self) -> dict[str, int]:
        """What has to be saved beside the optimizer's own state."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved state."""
        self.seed, self.step = state["seed"], state["step"]


def _stream(seed: int, step: int, device: torch.device) -> torch.Generator:
    # Far from the small numbers that people seed with: the noise of step 0 must not be the numbers of an initialisation.
    return torch.Generator(device).manual_seed((0x6E6F697365 + seed * 1_000_003 + step) % 2**63)


def _check(eta: float, gamma: float) -> None:
    if eta < 0 or gamma < 0:
        raise ValueError(f"eta and gamma must not be negative, not {eta} and {gamma}")


@dataclass(frozen=True)
class NoisyGradients(Hook):
    """The noise as a hook of the training loop, after its clipping."""

    eta: float = 0.01
    gamma: float = 0.55

    def __post_init__(self) -> None:
        _check(self.eta, self.gamma)

    def after_backward(self, run: Run) -> None:
        # A stream of its own: the order of the examples and the augmentation stay those of the training without noise.
        generator = _stream(run.generator.initial_seed(), run.step, run.device)
        add_gradient_noise_(run.model.parameters(), noise_std(run.step, self.eta, self.gamma), generator)


@treatment
def gradient_noise(recipe: Recipe, eta: float = 0.01, gamma: float = 0.55) -> Recipe:
    """Train with annealed noise on the gradients. The default is the gentlest of the paper's three; choose on validation data."""
    return recipe.replace(hooks=(*recipe.hooks, NoisyGradients(eta, gamma)))


# -------------------------------------------------------------------------------------------------------- the claims

WIDTH = 50


def deep_mlp(in_features: int, depth: int, start: str = "zero", scale: float = 0.1) -> nn.Sequential:
    """The paper's test bed: ``depth`` hidden layers of 50 ReLU units for ten classes, started in one of three ways.

    Args:
        in_features: pixels.
        depth: hidden layers.
        start: ``"zero"`` (all weights), ``"normal"`` (normal weights of standard deviation ``scale``), or ``"he"``.
        scale: of ``"normal"``; the paper's "simple" initialisation has 0.1.
    """
    net = mlp(in_features, 10, (WIDTH,) * depth)
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if start == "he":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.0 if start == "zero" else scale)
    return net


def _recipe(lab: Lab, depth: int, start: str, rate: float = 0.1, scale: float = 0.1) -> Recipe:
    """Plain SGD on nine tenths of the training digits; on the last tenth the strength of the noise is chosen."""
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    if lab.scale == "smoke":
        data = data.subset(train=500, test=200)
    return Recipe(
        data.holdout(0.1, seed=lab.seed),
        model=partial(deep_mlp, 784, lab.pick(smoke=min(depth, 5), laptop=depth, full=20), start, scale),
        optimizer=partial(torch.optim.SGD, lr=rate),
        epochs=lab.pick(smoke=1, laptop=100, full=60),
        batch_size=100,
        clip_norm=10.0,
        watch=("valid", "test"),
    )


def _chosen(lab: Lab, recipes: Iterable[Recipe]) -> Curve:
    """The training that ends with the highest accuracy on the held-out tenth, at the price of all; a diverged one has lost."""
    runs: list[Trained] = []
    for recipe in recipes:
        try:
            runs.append(lab.train(recipe))
        except AssayError as error:
            lost = error
    if not runs:
        raise lost
    best = max(runs, key=lambda trained: trained.history["valid_accuracy"][-1])
    cost = dataclasses.replace(best.cost, seconds=sum(trained.seconds for trained in runs))
    return Curve(best.history["test_accuracy"], cost=cost, y_name="test accuracy")


def _noisy(recipe: Recipe, etas: Iterable[float] = ETAS, gamma: float = 0.55) -> list[Recipe]:
    return [gradient_noise(recipe, eta, gamma) for eta in etas]


def _curve(trained: Trained) -> Curve:
    return Curve(trained.history["test_accuracy"], cost=trained.cost, y_name="test accuracy")


_DATA = "MNIST 5k for 100 epochs (3,600 steps) instead of MNIST"
_UNIT = "test accuracy after the last epoch"


@claim(
    "From weights that are all zero, SGD stays at chance (as it must: all gradients but those of the last bias are zero), and "
    "with gradient noise it classifies more than half of the test digits correctly (eta chosen on held-out data).",
    expect=(Above("gradient noise", 0.5), Below("no noise", 0.2)),
    scaled_down=f"{_DATA}; 5 hidden layers of 50 units instead of 20; rate 0.1.",
    unit=_UNIT,
)
def rescues_zero_weights(lab: Lab) -> Measured:
    plain = _recipe(lab, 5, "zero")
    return {
        "no noise": _curve(lab.train(plain)),
        "gradient noise": _chosen(lab, _noisy(plain)),
        "He initialisation, no noise": _curve(lab.train(_recipe(lab, 5, "he"))),
    }


@claim(
    "From weights that are all zero, noise on the gradients does more than the same noise given to the weights at once: the "
    "noise of the first hundred steps as an initialisation reaches a lower accuracy (each with its eta chosen on held-out "
    "data).",
    expect=Higher("gradient noise", than="noise in the initial weights"),
    scaled_down=f"{_DATA}; 5 hidden layers of 50 units; rate 0.1.",
    unit=_UNIT,
)
def more_than_noise_at_the_start(lab: Lab) -> Measured:
    rate = 0.1
    steps = range(100)
    starts = [
        _recipe(lab, 5, "normal", rate, scale=rate * sum(noise_std(step, eta) ** 2 for step in steps) ** 0.5) for eta in ETAS
    ]
    return {
        "noise in the initial weights": _chosen(lab, starts),
        "gradient noise": _chosen(lab, _noisy(_recipe(lab, 5, "zero", rate))),
        "He initialisation, no noise": _curve(lab.train(_recipe(lab, 5, "he"))),
    }


@claim(
    "From normal weights of standard deviation 0.1, too small for so deep a network, SGD with gradient noise ends with a higher "
    "accuracy than without: three etas at one rate against three rates, the best of each on held-out data.",
    expect=Higher("gradient noise", than="no noise"),
    scaled_down=f"{_DATA}; 12 hidden layers of 50 units instead of 20; rate 0.1, without noise also 0.03 and 0.3.",
    unit=_UNIT,
)
def helps_a_poor_start(lab: Lab) -> Measured:
    plain = _recipe(lab, 12, "normal")
    rates = [_recipe(lab, 12, "normal", rate) for rate in (0.03, 0.1, 0.3)]
    return {
        "no noise": _chosen(lab, rates),
        "no noise, rate 0.1": _curve(lab.train(plain)),
        "gradient noise": _chosen(lab, _noisy(plain)),
        "gradient noise, eta 0.01": _curve(lab.train(gradient_noise(plain))),
    }


@claim(
    "With He initialisation and a rate of 0.01, gradient noise of eta 0.01 neither helps nor hurts by more than 2 points.",
    expect=Close("gradient noise, eta 0.01", to="no noise", within=0.02),
    scaled_down=f"{_DATA}; 20 hidden layers of 50 units as in the paper. Larger etas are shown beside it.",
    unit=_UNIT,
)
def harmless_with_a_good_start(lab: Lab) -> Measured:
    plain = _recipe(lab, 20, "he", rate=0.01)
    noisy = {f"gradient noise, eta {eta:g}": _chosen(lab, [gradient_noise(plain, eta)]) for eta in ETAS}
    return {"no noise": _curve(lab.train(plain)), **noisy}


#: Over the steps of these claims, noise of constant variance has about 41 times the power of annealed noise of the same eta.
_CONSTANT = (*ETAS, *(eta / 41 for eta in ETAS))


@claim(
    "From weights that are all zero, noise that dies away ends with a higher accuracy than noise of constant variance, be that "
    "of the same variance at the start or of the same power in all (each with its eta chosen on held-out data).",
    expect=Higher("annealed noise", than="constant noise"),
    scaled_down=f"{_DATA}; 5 hidden layers of 50 units; rate 0.1. Six etas for the constant noise, three for the annealed.",
    unit=_UNIT,
)
def annealing_matters(lab: Lab) -> Measured:
    plain = _recipe(lab, 5, "zero")
    return {
        "constant noise": _chosen(lab, _noisy(plain, _CONSTANT, gamma=0.0)),
        "constant noise, same start": _chosen(lab, _noisy(plain, gamma=0.0)),
        "annealed noise": _chosen(lab, _noisy(plain)),
    }
