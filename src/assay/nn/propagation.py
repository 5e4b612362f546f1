"""Signal propagation plots: what a network does to the mean and the variance of its signals, block by block.

Whether a network can be trained is often decided before the first step: signals that double with every block drown whatever was
there before, and channels that have the same value for every input tell nothing. Two curves over the blocks show both, on noise
or on real inputs, and a third one how much each residual branch adds.

Source: Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets", ICLR
2021, section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    import pandas as pd


def signal_propagation(model: nn.Module, inputs: Tensor, batch_size: int = 128) -> pd.DataFrame:
    """Means and variances of the signals behind every residual block.

    A block ends where two things are added that were computed from the input. Its branch is what more layers with weights lie
    before; it is measured before constants or parameters scale it.

    Args:
        model: any network; it stays as it is. It runs in evaluation mode, except that batch normalisation normalises by the
            batch, as in training.
        inputs: (N, ...), N of at least 2: in the paper a thousand of pure noise, ``torch.randn(1000, 3, 224, 224)``, which are
            what a network is given whose inputs were standardised.
        batch_size: examples that are passed through at a time.

    Returns:
        One row a block, in order: ``block`` (the module in whose ``forward`` the addition stands), ``mu2`` (squared mean over
        examples and places of a channel, mean over channels), ``var`` (variance over examples and places, mean over channels),
        and ``res_var`` (the same for the residual branch). Of a network without additions one row a layer with weights, and
        ``res_var`` is nan. Channels are dimension 1.

    Raises:
        ValueError: there are fewer than two inputs, the network has no layers, or it goes other ways for other inputs.
    """
    import pandas as pd

    if len(inputs) < 2:
        raise ValueError(f"variances need two inputs or more, not {len(inputs)}")
    shadow = copy.deepcopy(model).eval()
    for module in shadow.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    watch = _Watch(shadow)
    passes = [watch.through(part) for part in inputs.tensor_split(math.ceil(len(inputs) / batch_size))]
    if not passes[0]:
        raise ValueError("this network has no layers with weights")
    if len({tuple(place.block for place in places) for places in passes}) > 1:
        raise ValueError("this network goes other ways for other inputs, so that its blocks cannot be compared")
    rows = []
    for places in zip(*passes, strict=True):
        mu2, var = _moments([place.signal for place in places])
        branches = [place.branch for place in places if place.branch is not None]
        rows.append((places[0].block, mu2, var, _moments(branches)[1] if branches else math.nan))
    return pd.DataFrame(rows, columns=["block", "mu2", "var", "res_var"])


@dataclass(frozen=True)
class _Sums:
    """Of some values by channel: how many, their sum, and the sum of their squares."""

    count: int
    total: Tensor
    squares: Tensor


def _sums(values: Tensor) -> _Sums:
    values = values.double()
    over = [place for place in range(values.dim()) if place != 1]
    return _Sums(values.numel() // values.shape[1], values.sum(dim=over), values.square().sum(dim=over))


def _moments(parts: list[_Sums]) -> tuple[float, float]:
    """Mean over the channels of their squared means, and of their variances."""
    count = sum(part.count for part in parts)
    mean = torch.stack([part.total for part in parts]).sum(dim=0) / count
    square = torch.stack([part.squares for part in parts]).sum(dim=0) / count
    return mean.square().mean().item(), (square - mean.square()).clamp_min(0).mean().item()


@dataclass(frozen=True)
class _Place:
    """Where a block ends: the module, its signal, and its branch."""

    block: str
    signal: _Sums
    branch: _Sums | None = None


@dataclass(frozen=True)
class _Known:
    """Of a tensor that was computed from the input: layers before it, and what it was before it was scaled."""

    layers: int
    unscaled: _Sums | None = None


_LAYERS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "bilinear"}
# What is within these is not seen: torch computes them in one piece. Their signals come first in what they return.
_LAYERS |= {"multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"}
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_SCALINGS = {"mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__"}


class _Watch(TorchFunctionMode):
    """Follows every tensor that comes of the input through whatever a network does, and notes additions and layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.within: list[str] = []  # names of the modules that are at work
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, name: str, module: nn.Module, given: Any) -> None:
        self.within.append(name)

    def _leave(self, module: nn.Module, given: Any, out: Any) -> None:
        self.within.pop()

    def through(self, inputs: Tensor) -> list[_Place]:
        """The blocks that these inputs pass through, or the layers if there are none."""
        self.known = WeakTensorKeyDictionary()
        self.known[inputs] = _Known(0)
        self.blocks: list[_Place] = []
        self.layers: list[_Place] = []
        with torch.no_grad(), self:
            self.model(inputs)
        return self.blocks or self.layers

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        given = list(_tensors((args, kwargs)))
        come = [x for x in given if x in self.known]
        layers = max((self.known[x].layers for x in come), default=0)
        # Before the function runs, since it may write into what it is given.
        branch = unscaled = None
        if name in _ADDITIONS and len(come) == 2 and self.known[come[0]].layers != self.known[come[1]].layers:
            deeper = max(come, key=lambda x: self.known[x].layers)
            branch = self.known[deeper].unscaled or _sums(deeper)
        elif name in _SCALINGS and len(come) == 1 and all(x is come[0] or x.numel() == 1 for x in given) and come[0].dim() > 1:
            unscaled = self.known[come[0]].unscaled or _sums(come[0])
        out = func(*args, **(kwargs or {}))
        if come:
            layer = name in _LAYERS
            for tensor in _tensors(out):
                self.known[tensor] = _Known(layers + layer, unscaled)
            block = next((one for one in reversed(self.within) if one), "")
            if branch is not None:
                self.blocks.append(_Place(block, _sums(out), branch))
            elif layer:
                self.layers.append(_Place(block, _sums(next(_tensors(out)))))
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
