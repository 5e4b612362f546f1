"""Does the gradient arrive? Starts that keep the signal at its size, and measurements that show where it dies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn.landscape import top_hessian_eigenvalue
from assay.nn.layers import watching
from assay.recipe import Recipe, probe, treatment
from assay.train.hooks import Hook, Run
from assay.view import Seen, View

Loss = Callable[[Tensor, Tensor], Tensor]
StartKind = Literal["naive", "lecun", "xavier", "he", "orthogonal", "lsuv"]


@torch.no_grad()
def start_(model: nn.Module, kind: StartKind, inputs: Tensor | None = None) -> None:
    """Draw new weights for every linear layer and convolution, in place; biases become 0.

    Args:
        model: any network; other layers stay as they are.
        kind: the variance for n inputs and m outputs of a layer: ``"naive"`` 1e-4 whatever the layer, ``"lecun"`` 1 / n,
            ``"xavier"`` 2 / (n + m), ``"he"`` 2 / n; ``"orthogonal"``: a random orthogonal matrix times 2^(1/2); ``"lsuv"``:
            an orthogonal one scaled on data (:func:`scale_on_data_`).
        inputs: (B, ...) a batch on which ``"lsuv"`` scales.

    Raises:
        ValueError: the kind is not known, or ``"lsuv"`` has no inputs.
    """
    draw: dict[str, Callable[[Tensor], object]] = {
        "naive": partial(nn.init.normal_, std=0.01),
        "lecun": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
        "xavier": nn.init.xavier_normal_,
        "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
        "orthogonal": partial(nn.init.orthogonal_, gain=2**0.5),
        "lsuv": nn.init.orthogonal_,
    }
    if kind not in draw:
        raise ValueError(f"kind must be one of {', '.join(draw)}, not {kind!r}")
    for _, layer in _weighted(model):
        fresh = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device=layer.weight.device)  # in torch's usual layout
        draw[kind](fresh)
        layer.weight.copy_(fresh)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if kind == "lsuv":
        if inputs is None:
            raise ValueError("lsuv scales on data: give it inputs")
        scale_on_data_(model, inputs)


_Weighted = nn.Linear | nn.Conv1d | nn.Conv2d


def _weighted(model: nn.Module) -> list[tuple[str, _Weighted]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, get_args(_Weighted))]


@torch.no_grad()
def scale_on_data_(model: nn.Module, inputs: Tensor, tolerance: float = 0.1, max_iter: int = 10) -> None:
    """Divide the weights of each layer by the standard deviation of its outputs, from the first to the last (LSUV, algorithm 1).

    Args:
        model: its linear layers and convolutions are scaled in place; biases should be 0. It runs in the mode in which it is
            given: in training mode running statistics move with every pass.
        inputs: (B, ...) a batch of the data; the paper takes some hundreds of images.
        tolerance: a layer is left when the variance of its outputs is so close to 1.
        max_iter: most rounds for a layer. One is enough unless it is used several times.

    Raises:
        ValueError: a layer has the same output for every input.
    """
    layers = dict(_weighted(model))
    with watching(model, layers) as outputs:
        model(inputs)
        for name in list(outputs):  # in the order of the forward pass
            for _ in range(max_iter):
                variance = outputs[name].var()
                if not variance > 0:
                    raise ValueError(f"the layer {name!r} has the same output for every input, so it cannot be scaled")
                if abs(variance - 1) < tolerance:
                    break
                layers[name].weight /= variance.sqrt()
                model(inputs)


@dataclass(frozen=True)
class Signal:
    """How large a signal is on its way through a network.

    Attributes:
        layers: names of the layers with weights, in the order of the forward pass.
        forward: (L,) standard deviation of each layer's outputs.
        backward: (L,) standard deviation of the loss's gradient with respect to them.
    """

    layers: tuple[str, ...]
    forward: Tensor
    backward: Tensor

    def growth(self) -> tuple[float, float]:
        """Mean factor a layer, of the signal on its way forwards and of the gradient on its way backwards; 1 is right.

        The last layer, which is another kind of layer, is left out. A signal of exactly 0 gives 0.
        """
        if len(self.layers) < 3:
            raise ValueError("needs at least three layers")
        steps = len(self.layers) - 2
        return (
            float((self.forward[-2] / self.forward[0]).nan_to_num() ** (1 / steps)),
            float((self.backward[0] / self.backward[-2]).nan_to_num() ** (1 / steps)),
        )


def signal_propagation(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss = F.cross_entropy) -> Signal:
    """Measure the signal and the gradient at every layer with weights (section 4.1); gradients of the weights stay as they are.

    Args:
        model: any network of modules, in the mode in which it is given.
        inputs: (B, ...).
        labels: (B,) as the loss takes them.
        loss: ``(outputs, labels) -> scalar``.
    """
    with torch.enable_grad(), watching(model, [name for name, _ in _weighted(model)]) as outputs:
        value = loss(model(inputs.detach().requires_grad_(inputs.is_floating_point())), labels)
        gradients = torch.autograd.grad(value, list(outputs.values()))
    return Signal(
        layers=tuple(outputs),
        forward=torch.stack([output.detach().std() for output in outputs.values()]),
        backward=torch.stack([gradient.std() for gradient in gradients]),
    )


def jacobian_singular_values(model: nn.Module, inputs: Tensor) -> Tensor:
    """Singular values of the outputs' derivative with respect to the input, the largest first; all 1 is *dynamical isometry*.

    Shape: inputs (B, ...) with D numbers each, outputs (B, C) -> (B, min(C, D)). The network must treat each example on its own.
    """
    state = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    def one(example: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, state, (example[None],))
        return outputs.flatten()

    jacobians: Tensor = vmap(jacrev(one))(inputs)  # (B, C, ...)
    values: Tensor = torch.linalg.svdvals(jacobians.flatten(2))
    return values


@dataclass(frozen=True)
class Start(Hook):
    """New weights before the first step; ``"lsuv"`` scales them on so many ``examples``."""

    kind: StartKind = "lsuv"
    examples: int = 256

    def on_start(self, run: Run) -> None:
        """Draw them, and scale them on examples from all over the training set, which may be sorted by class."""
        inputs = run.data.train.inputs
        assert isinstance(inputs, Tensor)  # or the training would have refused them
        inputs = inputs[:: max(1, len(inputs) // self.examples)][: self.examples]
        statistics = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            # torch.nn.init draws on the CPU for a network there; a stream of its own leaves all others as they were.
            torch.manual_seed(run.generator.initial_seed() + 0x5374617274)
            start_(run.model, self.kind, inputs.to(run.device))
        for name, buffer in run.model.named_buffers():
            buffer.copy_(statistics[name])  # what the passes of the scaling left in them is none of the training


@treatment
def start(recipe: Recipe, kind: StartKind = "lsuv") -> Recipe:
    """Begin from other weights: those of :func:`start_`. For networks that are trained from scratch."""
    if any(isinstance(hook, Start) for hook in recipe.hooks):
        raise AssayError("This recipe draws its weights anew already: two starts cannot both be the first.")
    return recipe.replace(hooks=(Start(kind), *recipe.hooks))


@probe
def signal(view: View) -> Seen:
    """Whether signal and gradient keep their size through a network's layers, and how sharp the minimum is.

    Args:
        view: a classifier and examples.
    """
    view.classifier()
    view.layer(next(iter(name for name, _ in _weighted(view.model)), ""))  # says so where there are no layers to look at
    labels = view.target if view.labels is None else view.labels
    seen = signal_propagation(view.model, view.inputs, labels)
    numbers = {f"signal at {name}": float(value) for name, value in zip(seen.layers, seen.forward, strict=True)}
    numbers |= {f"gradient at {name}": float(value) for name, value in zip(seen.layers, seen.backward, strict=True)}
    numbers["largest curvature of the loss"] = top_hessian_eigenvalue(view.model, view.inputs, labels, generator=view.generator())
    return Seen(numbers=numbers, notes=("standard deviations over examples and units, of the layers' outputs and gradients",))
