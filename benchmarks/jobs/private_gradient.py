"""The clipped gradient of DP-SGD, example by example: assay against opacus."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.nn import mlp

JOB = "clipped gradient of DP-SGD, perceptron 784-128-10, lots of 256, 5 steps"
WANTED = {"opacus": 10.0, "opacus_ghost": 1.3}
PROCESSOR_TIME = True
_CLIP, _STEPS = 1.0, 5


def _material() -> tuple[torch.nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return mlp(784, 10, (128,)), torch.rand(256, 784), torch.randint(10, (256,))


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in gradients])


def ours() -> Callable[[], Tensor]:
    from assay.papers.dataset.prototypicality import ClippedGradient

    model, inputs, labels = _material()
    gradient = ClippedGradient(model, inputs[:1], _CLIP)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def run() -> Tensor:
        for _ in range(_STEPS):
            found = gradient(parameters, inputs, labels)
        return _flat(list(found.values()))

    return run


def opacus() -> Callable[[], Tensor]:
    """Gradients of all examples are stored, as its privacy engine does by default."""
    from opacus.grad_sample import GradSampleModule

    model, inputs, labels = _material()
    wrapped = GradSampleModule(model, loss_reduction="sum")

    def run() -> Tensor:
        for _ in range(_STEPS):
            wrapped.zero_grad()
            F.cross_entropy(wrapped(inputs), labels, reduction="sum").backward()
            each = [parameter.grad_sample for parameter in model.parameters()]
            norms = torch.stack([one.flatten(1).norm(dim=1) for one in each]).norm(dim=0)
            scale = (_CLIP / (norms + 1e-6)).clamp(max=1) / len(inputs)
            found = [torch.einsum("b,b...->...", scale, one) for one in each]
        return _flat(found)

    return run


def opacus_ghost() -> Callable[[], Tensor]:
    """Norms only are computed for each example; a second backward pass gives the gradient."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    model, inputs, labels = _material()
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=_CLIP, use_ghost_clipping=True, batch_first=True
    )

    def run() -> Tensor:
        for _ in range(_STEPS):
            wrapped.zero_grad()
            each = F.cross_entropy(wrapped(inputs), labels, reduction="none")
            each.sum().backward(retain_graph=True)
            scale = wrapped.get_clipping_coef()
            wrapped.zero_grad()
            wrapped.disable_hooks()
            (scale * each).sum().backward()
            wrapped.enable_hooks()
            found = [parameter.grad / len(inputs) for parameter in model.parameters()]
        return _flat(found)

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    """The same gradient."""
    torch.testing.assert_close(ours, peer, rtol=1e-3, atol=1e-6)
