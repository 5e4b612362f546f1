"""Judging attributions: does the network itself agree that these inputs matter, and do people?

The network is asked by taking inputs out in the order of their attributions (deletion), or putting them into an empty input
(insertion), and by shuffling its weights: an explanation of what it learnt must then change (sanity check). People are asked by
a mask of the object: is the strongest attribution on it (pointing game), how much of all that speaks for the class is (energy),
how well does the region above a threshold cover it (IoU).

All of it is for one tensor of inputs, example by example: nothing is averaged over the batch. Attributions have the inputs'
shape, or 1 where all entries of a dimension share one. Entries along ``channels`` belong to one place (the colours of a pixel,
the coordinates of a word's vector): their attributions are added up, and they come and go together.

What stands in the place of an input that was taken out decides as much as the order: black says as much as any
other colour, and a network never saw an image with grey holes. So compare methods under several fills before you call one better.

Sources: deletion and insertion, Petsiuk, Das and Saenko, "RISE", BMVC 2018; regions, Samek et al., "Evaluating the Visualization
of What a Deep Neural Network Has Learned", 2017; the pointing game, Zhang et al., "Top-Down Neural Attention by Excitation
Backprop", 2018; energy, Wang et al., "Score-CAM", 2020; the sanity check, Adebayo et al., "Sanity Checks for Saliency Maps",
NeurIPS 2018.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn.frozen import frozen

#: What replaces an input that was taken out; see :func:`filled`.
Fill = float | Tensor | Literal["mean", "blur", "noise"]
#: What is read off the network: the target's probability, or its output as it stands.
Score = Literal["probability", "output"]
#: ``(model, inputs, target) -> attributions``.
Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]


# ------------------------------------------------------------------------------------------------ places and what replaces them


def places(attributions: Tensor, inputs: Tensor, channels: int | None = 1) -> Tensor:
    """One number for each place: attributions summed over the channels.

    Args:
        attributions: of the inputs' shape, or with 1 where a dimension shares one.
        inputs: (B, ...).
        channels: the dimension whose entries belong together; ``None`` where each entry stands alone, as always in tables (B, D).

    Returns:
        (B, ...) of the inputs' shape without ``channels``.

    Raises:
        AssayError: the shapes do not fit together.
    """
    fits = attributions.dim() == inputs.dim() and all(
        have in (1, want) for have, want in zip(attributions.shape, inputs.shape, strict=True)
    )
    if not fits or len(attributions) != len(inputs):
        raise AssayError(
            f"Attributions {tuple(attributions.shape)} do not fit inputs {tuple(inputs.shape)}: give one number for each "
            "entry, or 1 in a dimension whose entries share one."
        )
    found = attributions.detach()
    if (dim := _channels(inputs, channels)) is None:
        return found.expand_as(inputs)
    shape = inputs.shape[:dim] + inputs.shape[dim + 1 :]
    return found.sum(dim=dim).expand(shape)


def _channels(inputs: Tensor, channels: int | None) -> int | None:
    """The dimension whose entries belong together, counted from the front."""
    if channels is None or inputs.dim() < 3:
        return None
    dim = channels % inputs.dim()
    if dim == 0:
        raise AssayError("channels=0 is the dimension of the examples: name the one whose entries belong together.")
    return dim


def filled(inputs: Tensor, fill: Fill, *, channels: int | None = 1, generator: torch.Generator | None = None) -> Tensor:
    """The inputs with everything taken out: what deletion ends with, and insertion begins with.

    Args:
        inputs: (B, ...).
        fill: a number or a tensor that broadcasts to ``inputs``; ``"mean"``, every channel's mean over the places of its example;
            ``"blur"``, the example under a Gaussian whose deviation is a tenth of its longest side; ``"noise"``, uniform between
            the smallest and the largest value of the example's channel.
        channels: see the module. In tables, where columns are not alike, mean and noise come from all the examples.
        generator: of the noise; by default one that always starts the same.

    Returns:
        (B, ...) of the inputs' shape and dtype.

    Raises:
        AssayError: there is no such fill, or nothing to blur over.
    """
    inputs = inputs.detach()
    if not isinstance(fill, str):
        return torch.as_tensor(fill, dtype=inputs.dtype, device=inputs.device).detach().expand_as(inputs)
    dim = _channels(inputs, channels)
    over = [0] if inputs.dim() < 3 else [d for d in range(1, inputs.dim()) if d != dim]
    if fill == "mean":
        return inputs.mean(dim=over, keepdim=True).expand_as(inputs)
    if fill == "noise":
        low, high = inputs.amin(dim=over, keepdim=True), inputs.amax(dim=over, keepdim=True)
        drawn = torch.rand(inputs.shape, generator=generator or torch.Generator().manual_seed(0)).to(inputs)
        return low + (high - low) * drawn
    if fill == "blur":
        if inputs.dim() < 3:
            raise AssayError("The columns of a table have no neighbours to blur over: fill with a number, mean or noise.")
        return _blurred(inputs, over)
    raise AssayError(f"There is no fill {fill!r}: give a number, a tensor, mean, blur or noise.")


def _blurred(inputs: Tensor, over: Sequence[int]) -> Tensor:
    """A Gaussian along each of these dimensions, the edge values continued outwards."""
    deviation = max(inputs.shape[dim] for dim in over) / 10
    reach = max(1, math.ceil(3 * deviation))
    steps = torch.arange(-reach, reach + 1, dtype=inputs.dtype, device=inputs.device)
    kernel = (-0.5 * (steps / deviation) ** 2).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for dim in over:
        lines = inputs.movedim(dim, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
        inputs = F.conv1d(padded, kernel).view(lines.shape).movedim(-1, dim)
    return inputs


# ------------------------------------------------------------------------------------------------ deletion and insertion


def deletion_curve(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int,
    attributions: Tensor,
    steps: int = 20,
    fill: Fill = 0.0,
    *,
    channels: int | None = 1,
    patch: int = 1,
    score: Score = "probability",
    chunk: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What the network says while places are taken out, those with the largest attributions first.

    A faithful attribution makes the score fall early: the smaller the :func:`area`, the better. Equal attributions go in random
    order, for any fixed order would favour a corner of the picture.

    Args:
        model: maps a batch of inputs to outputs (B, C), each example on its own. It is used in evaluation mode.
        inputs: (B, ...).
        target: the class whose score is followed, one for all or (B,) int64.
        attributions: of the inputs' shape, or with 1 where a dimension shares one. Large is important; give ``.abs()`` where the
            sign is not to count.
        steps: of equal size, from nothing taken out to everything.
        fill: what replaces a place; see :func:`filled`.
        channels: the dimension whose entries come and go together; ``None`` takes every entry by itself.
        patch: side of the squares (or length of the stretches) that are taken out as one, by the sum of their attributions.
        score: ``"probability"`` of the target, or its ``"output"`` as the network gives it, which also suits regression (C = 1).
        chunk: inputs in one pass through the network.
        generator: of the order among equals and of the noise; by default one that always starts the same.

    Returns:
        (B, steps + 1).

    Raises:
        AssayError: shapes, steps, patch or fill do not fit.
    """
    generator = generator or torch.Generator().manual_seed(0)
    nothing = filled(inputs, fill, channels=channels, generator=generator)
    return _curve(model, inputs.detach(), nothing, target, attributions, steps, channels, patch, score, chunk, generator)


def insertion_curve(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor | int,
    attributions: Tensor,
    steps: int = 20,
    fill: Fill = 0.0,
    *,
    channels: int | None = 1,
    patch: int = 1,
    score: Score = "probability",
    chunk: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What the network says while places are put into an empty input, those with the largest attributions first.

    A faithful attribution makes the score rise early: the larger the :func:`area`, the better. RISE begins with a blurred image
    (``fill="blur"``), whose sharp edges cannot be taken for evidence.

    Args and returns as for :func:`deletion_curve`.
    """
    generator = generator or torch.Generator().manual_seed(0)
    nothing = filled(inputs, fill, channels=channels, generator=generator)
    return _curve(model, nothing, inputs.detach(), target, attributions, steps, channels, patch, score, chunk, generator)


def _curve(
    model: nn.Module,
    begin: Tensor,
    end: Tensor,
    target: Tensor | int,
    attributions: Tensor,
    steps: int,
    channels: int | None,
    patch: int,
    score: Score,
    chunk: int,
    generator: torch.Generator,
) -> Tensor:
    """The score on the way from ``begin`` to ``end``, place by place: (B, steps + 1)."""
    if steps < 1 or patch < 1 or score not in ("probability", "output"):
        raise AssayError(
            f"A curve has at least 1 step, patches of at least 1 and the score probability or output, not {score!r}."
        )
    target = torch.as_tensor(target, device=begin.device)
    target = target.expand(len(begin)) if target.dim() == 0 else target
    if target.shape != (len(begin),):
        raise AssayError(f"The target is one class for each of the {len(begin)} inputs, not a tensor {tuple(target.shape)}.")
    importance = places(attributions, begin, channels)  # (B, ...)
    regions, count = _regions(importance.shape[1:], patch)
    regions = regions.to(begin.device)
    weight = importance.new_zeros(len(begin), count).index_add_(1, regions, importance.flatten(1))
    rank = _ranks(weight, generator)  # (B, R), 0 goes first
    levels = (torch.linspace(0, 1, steps + 1, dtype=torch.float64) * count).round().long().to(begin.device)
    dim = _channels(begin, channels)
    found = []
    with frozen(model, begin), torch.no_grad():
        for first in range(0, len(begin), chunk):
            block = slice(first, min(first + chunk, len(begin)))
            at_once = max(1, chunk // (block.stop - block.start))  # levels in one pass
            part = []
            for some in levels.split(at_once):
                gone = (rank[block] < some.view(-1, 1, 1))[..., regions].unflatten(2, importance.shape[1:])  # (S, b, ...)
                mixed = torch.where(gone if dim is None else gone.unsqueeze(dim + 1), end[block], begin[block])
                outputs = model(mixed.flatten(0, 1))
                outputs = outputs.softmax(dim=1) if score == "probability" else outputs
                part.append(outputs.gather(1, target[block].repeat(len(some)).unsqueeze(1)).view(len(some), -1))
            found.append(torch.cat(part).T)
    return torch.cat(found)


def _regions(shape: Sequence[int], patch: int) -> tuple[Tensor, int]:
    """The patch that each place lies in (N,), and how many there are; the last ones may be smaller."""
    number, count = torch.zeros(1, dtype=torch.int64), 1
    for side in shape:
        along = torch.arange(side) // patch
        number = (number.unsqueeze(-1) * (int(along[-1]) + 1) + along).flatten()
        count *= int(along[-1]) + 1
    return number, count


def _ranks(weight: Tensor, generator: torch.Generator) -> Tensor:
    """(B, R): 0 for the largest of a row; equal ones in random order."""
    mixed = torch.rand(weight.shape, generator=generator).argsort(dim=1).to(weight.device)
    order = mixed.gather(1, weight.gather(1, mixed).argsort(dim=1, descending=True, stable=True))
    count = torch.arange(weight.shape[1], device=weight.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, count)


def area(curve: Tensor) -> Tensor:
    """Mean height of curves (..., steps + 1) by the trapezoid rule: (...). In [0, 1] for probabilities."""
    return torch.trapezoid(curve, dim=-1) / (curve.shape[-1] - 1)


# ------------------------------------------------------------------------------------------------ against a mask


def pointing(attributions: Tensor, mask: Tensor, tolerance: float = 0.0) -> Tensor:
    """The pointing game: does the largest attribution lie on the object? Its mean over examples is the game's accuracy.

    Args:
        attributions: (B, C, ...) whose channels are summed up.
        mask: (B, ...) or (B, 1, ...) bool: the object.
        tolerance: distance in pixels by which it may miss; the game on photographs allows 15.

    Returns:
        (B,) bool. Where several places are largest, the share of them that lies on the object decides: more than a half. An
        attribution that is the same everywhere points nowhere, and misses.
    """
    strength, inside = _on(attributions, mask)
    if tolerance > 0:
        inside = _widened(inside, tolerance)
    strength, inside = strength.flatten(1), inside.flatten(1)
    largest = strength == strength.amax(dim=1, keepdim=True)
    hits = (largest & inside).sum(dim=1)
    return (2 * hits > largest.sum(dim=1)) & ~largest.all(dim=1)


def energy_inside(attributions: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive attributions that lies on the object.

    Args:
        attributions: (B, C, ...) whose channels are summed up; what is negative then does not count.
        mask: (B, ...) or (B, 1, ...) bool: the object.

    Returns:
        (B,) in [0, 1]; 0 where nothing is positive. What chance gives is the share of places that the mask covers.
    """
    strength, inside = _on(attributions, mask)
    strength = strength.clamp(min=0).flatten(1)
    return (strength * inside.flatten(1)).sum(dim=1) / strength.sum(dim=1).clamp(min=torch.finfo(strength.dtype).tiny)


def iou_curve(attributions: Tensor, mask: Tensor, thresholds: Tensor | int = 20) -> Tensor:
    """How well the region of strong attributions covers the object, whatever "strong" is.

    Args:
        attributions: (B, C, ...) whose channels are summed up.
        mask: (B, ...) or (B, 1, ...) bool: the object.
        thresholds: (T,) parts of the largest attribution of an example in (0, 1], or how many of them, evenly spaced up to 1.

    Returns:
        (B, T), intersection over union of the object and of all places with at least this part of the largest attribution; 0
        where no attribution is positive.
    """
    strength, inside = _on(attributions, mask)
    strength, inside = strength.flatten(1), inside.flatten(1)
    if isinstance(thresholds, int):
        thresholds = torch.linspace(0, 1, thresholds + 1)[1:]
    most = strength.amax(dim=1, keepdim=True)
    curve = []
    for threshold in thresholds.to(strength):
        strong = (strength >= threshold * most) & (strength > 0)
        union = (strong | inside).sum(dim=1)
        curve.append((strong & inside).sum(dim=1) / union.clamp(min=1))
    return torch.stack(curve, dim=1).to(strength.dtype)


def _on(attributions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attributions by place, and the mask, of one shape (B, ...)."""
    strength = attributions.detach().sum(dim=1)
    inside = mask.squeeze(1) if mask.dim() == attributions.dim() else mask
    if inside.shape != strength.shape:
        raise AssayError(
            f"A mask {tuple(mask.shape)} does not fit attributions {tuple(attributions.shape)}: one value for each place."
        )
    return strength, inside.bool().to(strength.device)


def _widened(mask: Tensor, distance: float) -> Tensor:
    """All places within ``distance`` of a mask (B, H, W), as the crow flies."""
    if mask.dim() != 3:
        raise AssayError(f"A tolerance is for images, with masks (B, H, W), not {tuple(mask.shape)}.")
    reach = math.floor(distance)
    steps = torch.arange(-reach, reach + 1, device=mask.device)
    disc = (steps[:, None] ** 2 + steps**2 <= distance**2).float()
    return F.conv2d(mask.float().unsqueeze(1), disc[None, None], padding=reach).squeeze(1) > 0.5


# ------------------------------------------------------------------------------------------------ shuffled weights


def cascade(model: nn.Module, generator: torch.Generator | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Destroy what a network has learnt, from its last layer to its first.

    The entries of each weight are shuffled: nothing that was learnt is left, but sizes stay, so that no layer dies or explodes.
    This works for every module, and for exported programs, whose parts have no ``reset_parameters``. Biases and running
    statistics are shuffled as well.

    Args:
        model: stays as it is.
        generator: of the shuffling; by default one that always starts the same.

    Yields:
        The name of a layer, and a copy of the network in which this layer and all behind it are shuffled. Layers come in reverse
        order of their definition. It is one copy, which goes on changing: use it before you take the next.
    """
    generator = generator or torch.Generator().manual_seed(0)
    shuffled = copy.deepcopy(model)
    layers: dict[str, list[Tensor]] = {}
    for name, tensor in [*shuffled.named_parameters(), *shuffled.named_buffers()]:
        layers.setdefault(name.rpartition(".")[0], []).append(tensor)
    own = {name.rpartition(".")[0] for name, _ in shuffled.named_parameters()}
    for name in reversed([name for name in layers if name in own]):
        with torch.no_grad():
            for tensor in layers[name]:
                if tensor.numel() > 1:
                    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                    tensor.copy_(tensor.flatten()[order].view_as(tensor))
        yield name, shuffled


def sanity_check(
    explain: Explain,
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    stages: int | None = None,
    channels: int | None = 1,
    absolute: bool = False,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """How much attributions still look the same when the network has forgotten what it learnt, layer by layer.

    Args:
        explain: ``(model, inputs, target) -> attributions``.
        model: the trained network; it stays as it is.
        inputs: (B, ...).
        target: (B,) int64.
        stages: how many layers are looked at, evenly spaced, the first layer of the network (all is shuffled) always among them;
            ``None`` looks at all. Layers in between are shuffled too.
        channels: see the module.
        absolute: compare sizes instead of signed attributions.
        generator: of the shuffling.

    Returns:
        Layer -> (B,) Spearman's rank correlation with the attributions of the trained network when this layer and all behind it
        are shuffled. Near 0 is well; near 1 says that the method shows the input, not what was learnt.
    """

    def looked(network: nn.Module) -> Tensor:
        found = places(explain(network, inputs, target), inputs, channels).flatten(1)
        return found.abs() if absolute else found

    trained = looked(model)
    total = len({name.rpartition(".")[0] for name, _ in model.named_parameters()})
    count = total if stages is None else min(stages, total)
    wanted = set((total - 1 - torch.linspace(0, total, count + 1)[:-1].floor().long()).tolist())  # the last one always
    found: dict[str, Tensor] = {}
    for number, (name, network) in enumerate(cascade(model, generator)):
        if number in wanted:
            found[name] = rank_correlation(trained, looked(network))
    return found


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of the rows of two tensors (B, N); equal values share their mean rank.

    Returns:
        (B,) in [-1, 1], in float64; 0 where a row is the same everywhere, which says nothing.
    """
    ranks = [_mean_ranks(values.detach().flatten(1)) for values in (first, second)]
    one, other = (values - values.mean(dim=1, keepdim=True) for values in ranks)
    sizes = one.norm(dim=1) * other.norm(dim=1)
    return torch.where(sizes > 0, (one * other).sum(dim=1) / sizes.clamp(min=1e-300), torch.zeros_like(sizes))


def _mean_ranks(values: Tensor) -> Tensor:
    """(B, N): how many of the row are smaller, and half of those that are equal."""
    ordered = values.sort(dim=1).values.contiguous()
    values = values.contiguous()
    below, up_to = (torch.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (below + up_to).double() / 2
