"""What a score loses when a part of the input is covered."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.explain.backward import Given, explained, like, scores

Sizes = int | tuple[int, ...]


def occlusion(
    model: nn.Module,
    inputs: Given,
    target: Tensor | int,
    *,
    window: Sizes | tuple[Sizes, ...],
    stride: Sizes | tuple[Sizes, ...] | None = None,
    fill: float | Tensor | tuple[float | Tensor, ...] = 0.0,
    chunk: int = 256,
) -> Given:
    """By how much the score of a class falls when a window over a place is covered: the mean over all windows that cover it.

    A window goes over all channels of a place. Windows begin at 0, stride, 2 stride, ... and the last ones are cut at the
    edge; places that no window covers get 0. Copies of all examples with all windows go through the network in chunks.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such, which are covered one at a time. Features of a table (B, D) are places, of anything
            else (B, C, ...) the dimensions behind C are.
        target: the class whose score is explained, one for all or (B,) int64.
        window: its size, one for all dimensions of places or one for each; for several inputs a tuple with one for each input.
        stride: from one window to the next; the same as ``window`` if left out.
        fill: what covers: a number, or a tensor that broadcasts to the inputs; one for all, or one for each input.
        chunk: examples in one pass through the network.

    Returns:
        Attributions of the inputs' shape, in units of the score; zeros for inputs of integers.

    Raises:
        AssayError: a window or stride that does not fit the inputs.
    """
    several = isinstance(inputs, tuple)
    count = len(inputs) if several else 1
    windows, strides, fills = (_for_each(given, count, several) for given in (window, window if stride is None else stride, fill))
    with explained(model, inputs) as leaves, torch.no_grad():
        given = tuple(leaf.detach() for leaf in leaves)
        whole = torch.cat([scores(model(*(one[s] for one in given)), _part(target, s)) for s in _slices(len(given[0]), chunk)])
        found = []
        for place, one in enumerate(given):
            if not one.is_floating_point():
                found.append(torch.zeros_like(one, dtype=whole.dtype))
                continue
            masks = _masks(one, windows[place], strides[place])  # (W, *places)
            cover = torch.as_tensor(fills[place]).to(one).expand_as(one)
            falls = whole - _covered(model, given, place, masks, cover, target, chunk)  # (W, B)
            flat = masks.flatten(1).to(falls.dtype)
            mean = falls.T @ flat / flat.sum(dim=0).clamp(min=1)
            channels = one.dim() - masks.dim()
            found.append(mean.view(len(one), *[1] * channels, *masks.shape[1:]).expand_as(one).clone())
        return like(inputs, found)


def _for_each(given: Any, count: int, several: bool) -> Any:
    """One for each of several inputs."""
    return given if several and isinstance(given, tuple) and len(given) == count else (given,) * count


def _slices(count: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, count)) for first in range(0, count, chunk)]


def _part(target: Tensor | int, which: slice | Tensor) -> Tensor | int:
    return target[which] if isinstance(target, Tensor) and target.dim() else target


def _masks(values: Tensor, window: Sizes, stride: Sizes) -> Tensor:
    """One row of places for each window: True where it covers."""
    places = values.shape[1:] if values.dim() == 2 else values.shape[2:]
    sizes, steps = ((one,) * len(places) if isinstance(one, int) else one for one in (window, stride))
    if len(sizes) != len(places) or len(steps) != len(places) or min(*sizes, *steps, 1) < 1:
        raise AssayError(
            f"A window {window} with stride {stride} does not fit places {tuple(places)}: give a size above 0 for each."
        )
    starts = [range(0, max(0, size - width) + step, step) for size, width, step in zip(places, sizes, steps, strict=True)]
    masks = torch.zeros(len(list(itertools.product(*starts))), *places, dtype=torch.bool, device=values.device)
    for mask, corner in zip(masks, itertools.product(*starts), strict=True):
        mask[tuple(slice(first, first + width) for first, width in zip(corner, sizes, strict=True))] = True
    return masks


def _covered(
    model: nn.Module, given: tuple[Tensor, ...], place: int, masks: Tensor, cover: Tensor, target: Tensor | int, chunk: int
) -> Tensor:
    """The score of every example under every window: (W, B)."""
    count = len(given[0])
    pairs = torch.arange(len(masks) * count, device=cover.device)
    found = []
    for some in pairs.split(chunk):
        example, which = some % count, some // count
        copies = [one[example] for one in given]
        hidden = masks[which].view(len(some), *[1] * (cover.dim() - masks.dim()), *masks.shape[1:])
        copies[place] = torch.where(hidden, cover[example], copies[place])
        found.append(scores(model(*copies), _part(target, example)))
    return torch.cat(found).view(len(masks), count)
