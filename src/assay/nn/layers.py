"""What hidden layers of any network give: their outputs in a forward pass, and the shapes of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from assay.errors import AssayError


@contextmanager
def watching(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block the outputs of these modules are kept: name -> output of the last forward pass.

    Args:
        model: any network.
        names: of modules, as ``model.named_modules()`` has them.

    Raises:
        AssayError: the network has no module of such a name.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[name] = output

    handles = []
    try:
        for name in names:
            if name not in modules:
                raise AssayError(f"The network has no layer {name!r}; it has {', '.join(filter(None, modules)) or 'none'}.")
            handles.append(modules[name].register_forward_hook(partial(keep, name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def output_shapes(model: nn.Module, example: Tensor, names: Iterable[str]) -> dict[str, torch.Size]:
    """Shapes of the outputs of these modules for one input; the network's mode and running statistics stay as they are.

    Args:
        model: any network.
        example: (B, ...) inputs.
        names: of modules, as ``model.named_modules()`` has them.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with watching(model, names) as outputs:
            model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: output.shape for name, output in outputs.items()}
