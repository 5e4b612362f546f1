"""DP-SGD: gradients in which no example matters more than another (algorithm 1 of Abadi et al. 2016)."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class ClippedGradient:
    """The gradient of DP-SGD before the noise: each example's own is cut to a norm, and then the mean is taken.

    Where all parameters belong to linear layers that see (B, F), nothing needs to be stored for each example: the gradient
    of W is the outer product of what comes in and of the error that comes back, its norm the product of theirs, and the sum
    of the cut ones a single matrix product. Elsewhere the gradients of all examples are taken (``vmap`` of ``grad``).

    Args:
        model: without batch normalisation, for which no example has a gradient of its own: :func:`without_batch_norm`.
        example: (1, ...) one input.
        clip: largest norm of an example's gradient, ``math.inf`` for none.

    Called with parameters by name, inputs (B, ...) and labels (B,); ``vmap`` over networks works.
    """

    def __init__(self, model: nn.Module, example: Tensor, clip: float = 1.0) -> None:
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise ValueError("batch normalisation mixes examples, so that none has a gradient of its own: replace it first")
        if not clip > 0:
            raise ValueError(f"clip must be above 0, not {clip}")
        self.model, self.clip = model, clip
        self.linear = _linear_layers(model, example)

    def __call__(self, parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.linear is not None:
            return self._through_linear(self.linear, parameters, inputs, labels)
        # So many examples at a time that their gradients stay in the order of the cache.
        size = max(1, 4_000_000 // sum(value.numel() for value in parameters.values()))
        parts = [self._one_by_one(parameters, x, y) for x, y in zip(inputs.split(size), labels.split(size), strict=True)]
        return {name: sum((part[name] for part in parts[1:]), parts[0][name]) / len(labels) for name in parameters}

    def _one_by_one(self, parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.model, weights, (x.unsqueeze(0),)), y.unsqueeze(0))

        each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(parameters, inputs, labels)
        squares = sum(one.flatten(1).square().sum(dim=1) for one in each.values())
        return {name: torch.einsum("b,b...->...", self._scale(squares), one) for name, one in each.items()}

    def _through_linear(
        self, layers: dict[str, nn.Linear], parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        def loss(taps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            seen: dict[str, Tensor] = {}

            def tap(name: str, _: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
                seen[name] = given[0]
                return output + taps[name]  # zero: the gradient of a tap is the error at that output

            hooks = [layer.register_forward_hook(partial(tap, name)) for name, layer in layers.items()]
            try:
                logits = functional_call(self.model, parameters, (inputs,))
            finally:
                for hook in hooks:
                    hook.remove()
            return F.cross_entropy(logits, labels, reduction="sum"), seen

        taps = {name: inputs.new_zeros(len(inputs), layer.out_features) for name, layer in layers.items()}
        errors, seen = grad(loss, has_aux=True)(taps)
        length = {name: seen[name].square().sum(dim=1) + (layer.bias is not None) for name, layer in layers.items()}
        scale = self._scale(sum(errors[name].square().sum(dim=1) * length[name] for name in layers)) / len(labels)
        found = {}
        for name, layer in layers.items():
            cut = errors[name] * scale.unsqueeze(1)  # (B, out)
            found[f"{name}.weight"] = cut.t() @ seen[name]
            if layer.bias is not None:
                found[f"{name}.bias"] = cut.sum(dim=0)
        return {name: found[name] for name in parameters}

    def _scale(self, squares: Tensor | int) -> Tensor:
        norms = torch.as_tensor(squares).sqrt()
        return (self.clip / norms.clamp_min(1e-12)).clamp_max(1)


def _linear_layers(model: nn.Module, example: Tensor) -> dict[str, nn.Linear] | None:
    """The linear layers by name if they hold all parameters and each is called once with (B, F), else ``None``."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if {f"{name}.{inner}" for name, layer in layers.items() for inner, _ in layer.named_parameters()} != {
        name for name, _ in model.named_parameters()
    } or "" in layers:
        return None
    calls: list[int] = []
    hooks = [layer.register_forward_hook(lambda _, given, __: calls.append(given[0].dim())) for layer in layers.values()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return layers if calls == [2] * len(layers) else None


def without_batch_norm(model: nn.Module) -> nn.Module:
    """A copy in which group normalisation stands for every batch normalisation: groups of channels of one example."""
    if isinstance(model, _BatchNorm):
        channels = model.num_features
        # Two channels a group at least: one alone, of an input without further dimensions, would always come out as zero.
        groups = max(count for count in range(1, 33) if channels % count == 0 and (count == 1 or 2 * count <= channels))
        return nn.GroupNorm(groups, channels, affine=model.affine)
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, without_batch_norm(module))
    return model
