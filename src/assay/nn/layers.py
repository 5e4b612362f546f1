"""What hidden layers of any network give: their outputs in a forward pass, and the shapes of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

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


def hidden_blocks(model: nn.Module, example: Tensor, most: int = 8) -> list[str]:
    """Names of the modules that give what the main blocks of a network compute, in order, but for what its last layer sees.

    Main blocks are the parts with weights that follow one another: those of the network itself, or of its parts in turn where
    these are a ``Sequential``, as finely as there are no more than ``most``. A part with a ``forward`` of its own, as a residual
    block, stays whole. Where an activation, normalisation or pooling module follows, the output is taken behind it. For a
    LeNet these are its two convolutions with pooling and ReLU, for a residual network the stem and the stages but the last,
    for a perceptron its hidden layers but the last. The last hidden block is only taken where it is the only one.

    Args:
        model: any network; it is run once, and its mode and running statistics stay as they are.
        example: (1, ...) one input.
        most: how many at most; of more that follow one another on the coarsest level, every so many-th is taken.

    Raises:
        AssayError: the network has no hidden block that gives a tensor with a row for each example.
    """
    trace = _Trace(model, example)
    level = [""]
    while True:
        finer = trace.chain([part for name in level for part in trace.parts(name, whatever=len(level) <= 2)])
        if finer == level or (len(finer) > most + 2 and len(level) >= 4):
            break
        level = finer
    outputs = [trace.output(*pair) for pair in pairwise(level)]
    found = [name for name in outputs[:-1] if name is not None] or [name for name in outputs if name is not None]
    if not found:
        raise AssayError("The network has no hidden layer that gives a tensor with a row for each example: name the layers.")
    count = min(most, len(found))
    return [found[place * len(found) // count] for place in range(count)]


class _Trace:
    """Which modules ran in a forward pass, in the order in which they were done, and what they gave."""

    _rows = 3
    _follows = ("activation", "pooling", "batchnorm", "normalization")

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.modules = dict(model.named_modules())
        self.names: list[str] = []
        self.given: dict[str, Any] = {}

        def keep(name: str, _: nn.Module, __: Any, output: Any) -> None:
            self.names.append(name)
            self.given[name] = output

        modes = {module: module.training for module in model.modules()}
        handles = [module.register_forward_hook(partial(keep, name)) for name, module in self.modules.items()]
        model.eval()
        try:
            with torch.enable_grad():
                model(example.expand(self._rows, *example.shape[1:]))
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode

    def parts(self, name: str, whatever: bool) -> list[str]:
        """What a module consists of, if it is a ``Sequential`` or ``whatever`` it is; otherwise the module itself."""
        module = self.modules[name]
        if not whatever and type(module).forward is not nn.Sequential.forward:
            return [name]
        found = [f"{name}.{part}".lstrip(".") for part in _members(module)]
        weighty = [part for part in found if part in self.given and _has_weights(self.modules[part])]
        return sorted(weighty, key=self.names.index) or [name]

    def chain(self, names: list[str]) -> list[str]:
        """Those of the modules that follow one another: from the last one back, whatever goes into the one that was kept."""
        kept = names[-1:]
        for name in reversed(names[:-1]):
            if self._goes_into(name, kept[0]):
                kept.insert(0, name)
        return kept

    def output(self, name: str, following: str) -> str | None:
        """The module behind which the output of a block is taken; ``None`` if it gives nothing that could be used."""
        begin = self.names.index(name)
        inside = (place for place, one in enumerate(self.names) if one == following or one.startswith(f"{following}."))
        between = [
            one
            for one in self.names[begin + 1 : next(inside)]
            if type(self.modules[one]).__module__.rpartition(".")[2] in self._follows and self._goes_into(name, one)
        ]
        return next((one for one in (*reversed(between), name) if self._usable(one)), None)

    def _usable(self, name: str) -> bool:
        out = self.given[name]
        rows = isinstance(out, Tensor) and out.is_floating_point() and out.dim() > 1 and len(out) == self._rows
        return rows and self.names.count(name) == 1

    def _goes_into(self, name: str, other: str) -> bool:
        sources, target = _tensors(self.given[name]), [out for out in _tensors(self.given[other]) if out.requires_grad]
        sources = [out for out in sources if out.requires_grad]
        if not sources or not target:
            return False
        slopes = torch.autograd.grad([out.sum() for out in target], sources, retain_graph=True, allow_unused=True)
        return any(slope is not None for slope in slopes)


def _members(module: nn.Module) -> list[str]:
    """Names of the children of a module; of a list of modules, which is none itself, its members."""
    found = []
    for name, child in module.named_children():
        inner = _members(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [""]
        found += [f"{name}.{one}".rstrip(".") for one in inner]
    return found


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [one for part in output for one in _tensors(part)] if isinstance(output, list | tuple) else []
