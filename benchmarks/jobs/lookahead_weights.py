"""The gradient of the dev loss one step ahead in the weights of a batch: forward mode against other exact ways to it.

``per_example`` makes every example's gradient with torch.func; ``copies`` is what the authors' code does: a copy of the network
and a step of the optimizer for each example.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

JOB = "lookahead gradient of 32 example weights, 20 dev examples, LeNet, SGD with momentum"
WANTED = {"per_example": 1.3, "copies": 2.5}
PROCESSOR_TIME = True

Scene = tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor, Tensor, Tensor, Tensor]


def _scene() -> Scene:
    from assay.nn import lenet

    torch.manual_seed(0)
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, dev = torch.rand(32, 1, 28, 28), torch.rand(20, 1, 28, 28)
    labels, answers = torch.randint(10, (32,)), torch.randint(10, (20,))
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, inputs, labels, torch.rand(32), dev, answers


def ours() -> Callable[[], Tensor | None]:
    from assay.papers.labels.learning_data_manipulation import lookahead_gradient

    model, optimizer, *batch = _scene()
    return lambda: lookahead_gradient(model, optimizer, *batch)


def _through(steps: dict[str, Tensor], scene: Scene) -> Tensor:
    """From the step of every example (B, ...) to the gradient."""
    model, _, _, _, weights, dev, answers = scene
    ahead = {
        name: (value.detach() + torch.tensordot(weights, steps[name], dims=1)).requires_grad_()
        for name, value in model.named_parameters()
    }
    loss = F.cross_entropy(functional_call(model, ahead, (dev,)), answers)
    slopes = torch.autograd.grad(loss, list(ahead.values()))
    each = [steps[name].flatten(1) @ slope.flatten() for name, slope in zip(ahead, slopes, strict=True)]
    return torch.stack(each).sum(dim=0)


def per_example() -> Callable[[], Tensor]:
    scene = _scene()
    model, optimizer, inputs, labels = scene[:4]
    group = optimizer.param_groups[0]

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    def run() -> Tensor:
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        gradients = vmap(grad(loss), (None, 0, 0))(parameters, inputs, labels)
        steps = {
            name: -group["lr"] * (group["momentum"] * optimizer.state[value]["momentum_buffer"] + gradients[name])
            for name, value in model.named_parameters()
        }
        return _through(steps, scene)

    return run


def copies() -> Callable[[], Tensor]:
    scene = _scene()
    model, optimizer, inputs, labels = scene[:4]

    def run() -> Tensor:
        other = copy.deepcopy(model)
        alone = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
        found: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
        for image, label in zip(inputs.split(1), labels.split(1), strict=True):
            other.load_state_dict(model.state_dict())
            alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            alone.zero_grad()
            F.cross_entropy(other(image), label).backward()
            alone.step()
            for (name, now), then in zip(other.named_parameters(), model.parameters(), strict=True):
                found[name].append((now - then).detach())
        return _through({name: torch.stack(steps) for name, steps in found.items()}, scene)

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(ours, peer, rtol=1e-3, atol=1e-6)
