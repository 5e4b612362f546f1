"""Methods that follow the gradient, or change nothing but what happens at a ReLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.explain.backward import Back, Call, Given, Rule, Rules, backward, explained, like, scores


def gradient(model: nn.Module, inputs: Given, target: Tensor | int) -> Given:
    """How much the score of a class moves with each input: its gradient.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.

    Returns:
        Attributions of the inputs' shape; zeros for inputs of integers.
    """
    with explained(model, inputs) as leaves:
        return like(inputs, backward(scores(model(*leaves), target), leaves))


def input_x_gradient(model: nn.Module, inputs: Given, target: Tensor | int) -> Given:
    """The gradient times the input: what each input brings in, were the network linear.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.

    Returns:
        Attributions of the inputs' shape, in units of the score.
    """
    with explained(model, inputs) as leaves:
        found = backward(scores(model(*leaves), target), leaves)
        return like(inputs, [part * leaf.detach() for part, leaf in zip(found, leaves, strict=True)])


class Rectified(Rules):
    """ReLUs send back positive signals only: what a deconvnet does, and with ``guided`` guided backpropagation.

    With g the signal that comes and z what went into the ReLU: the gradient is g [z > 0], a deconvnet sends max(g, 0), guided
    backpropagation max(g, 0) [z > 0]. Everything else keeps its gradient, which for a max pooling goes where the maximum was
    ("switches").

    Args:
        guided: whether units that did not fire are shut too.
    """

    def __init__(self, guided: bool = False) -> None:
        super().__init__()
        self.guided = guided

    def rule(self, call: Call) -> Rule | None:
        """A ReLU's; None for anything else."""
        if not _rectifies(call):
            return None

        def rule(value: Tensor) -> tuple[Tensor, Back]:
            open_units = value > 0 if self.guided else None

            def back(coming: Tensor) -> tuple[Tensor]:
                signal = coming.clamp(min=0)
                return (signal if open_units is None else signal * open_units,)

            return value.clamp(min=0), back

        return rule


def _rectifies(call: Call) -> bool:
    """Is this call a ReLU, as a function of that name or as what is at least 0?"""
    if call.name == "relu":
        return True
    if call.name not in ("clamp", "clamp_min") or len(call.places) != 1:
        return False
    args, kwargs = call.arguments(*call.carriers)
    bounds = dict(zip(("min", "max"), args[1:], strict=False)) | kwargs
    return _is_zero(bounds.get("min")) and bounds.get("max") is None


def _is_zero(bound: Any) -> bool:
    return isinstance(bound, int | float) and bound == 0


def deconvnet(model: nn.Module, inputs: Given, target: Tensor | int) -> Given:
    """The score of a class projected back by a deconvnet: signals below zero are cut at every ReLU.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was. Without ReLUs
            this is the gradient.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.

    Returns:
        Attributions of the inputs' shape. They say more of the input than of the class (Nie et al. 2018).
    """
    with explained(model, inputs) as leaves:
        with Rectified():
            start = scores(model(*leaves), target)
        return like(inputs, backward(start, leaves))


def guided_backprop(model: nn.Module, inputs: Given, target: Tensor | int) -> Given:
    """The gradient with signals below zero cut at every ReLU (Springenberg et al. 2015).

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was. Without ReLUs
            this is the gradient.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.

    Returns:
        Attributions of the inputs' shape. They say more of the input than of the class (Adebayo et al. 2018).
    """
    with explained(model, inputs) as leaves:
        with Rectified(guided=True):
            start = scores(model(*leaves), target)
        return like(inputs, backward(start, leaves))


def grad_cam(
    model: nn.Module, inputs: Given, target: Tensor | int, *, layer: nn.Module | str, relu: bool = True, upsample: bool = True
) -> Tensor:
    """Where a layer's maps speak for a class: the maps, weighted by their mean gradients (Selvaraju et al. 2017).

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such.
        target: the class whose score is explained, one for all or (B,) int64.
        layer: a module of the network, or its name, that gives maps (B, K, ...); mostly the last convolution.
        relu: keep only what speaks for the class, as in the paper.
        upsample: linearly to the size of the (first) input.

    Returns:
        (B, 1, ...), one number for each place.

    Raises:
        AssayError: the network has no such layer, or it does not give maps, or it ran more than once.
    """
    with explained(model, inputs) as leaves:
        out, maps = run_to(model, leaves, layer)
        start = scores(out, target)
        (slopes,) = backward(start, [maps])
    weights = slopes.flatten(2).mean(dim=2).view(*slopes.shape[:2], *[1] * (slopes.dim() - 2))
    cam = (weights * maps.detach()).sum(dim=1, keepdim=True)
    cam = cam.clamp(min=0) if relu else cam
    size = leaves[0].shape[2:]
    if not upsample or cam.shape[2:] == size:
        return cam
    if len(size) != cam.dim() - 2:
        raise AssayError("The layer's maps have other dimensions than the inputs: ask for upsample=False.")
    return F.interpolate(cam, size=size, mode=("linear", "bilinear", "trilinear")[len(size) - 1], align_corners=False)


def run_to(model: nn.Module, leaves: tuple[Tensor, ...], layer: nn.Module | str) -> tuple[Tensor, Tensor]:
    """What the network gives, and the maps that a layer gives on the way, with their graphs.

    Args:
        model: the network.
        leaves: what it is called with.
        layer: a module of the network, or its name.

    Raises:
        AssayError: the network has no such layer, or it does not give maps (B, K, ...), or it ran more than once.
    """
    if isinstance(layer, str):
        modules: dict[str, nn.Module] = dict(model.named_modules())
        if layer not in modules:
            raise AssayError(f"The network has no layer {layer!r}; it has {', '.join(filter(None, modules)) or 'none'}.")
        layer = modules[layer]
    seen: list[Any] = []

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        seen.append(output)
        return output.clone() if isinstance(output, Tensor) else output  # what comes next may work in place

    handle = layer.register_forward_hook(keep)
    try:
        out = model(*leaves)
    finally:
        handle.remove()
    maps = seen[-1] if seen else None
    if len(seen) != 1 or not isinstance(maps, Tensor) or maps.dim() < 3 or len(maps) != len(leaves[0]):
        raise AssayError("The layer must run once and give maps (B, K, ...): choose a convolution.")
    return out, maps
