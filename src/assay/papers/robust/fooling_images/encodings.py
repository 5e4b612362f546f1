"""How an image is written down for evolution: pixel by pixel, or as a small network that paints it.

An encoding makes a population of genomes, varies them, and turns them into images in [0, 1]. Genomes are tuples of tensors with
the population in front, so that a generation is varied and painted in a few batched operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Genomes = tuple[Tensor, ...]


class Encoding(Protocol):
    """What evolution needs to know of a way to write images down."""

    def random(self, count: int, generator: torch.Generator) -> Genomes:
        """A first population."""

    def vary(self, parents: Genomes, others: Genomes, generator: torch.Generator) -> Genomes:
        """A child of every pair of parents."""

    def express(self, genomes: Genomes) -> Tensor:
        """The images (P, ...) in [0, 1]."""


def polynomial_mutation(values: Tensor, low: float, high: float, rate: float, eta: float, generator: torch.Generator) -> Tensor:
    """Deb's polynomial mutation: small changes mostly, with a density that falls as (1 - |change|)^eta.

    Args:
        values: in [low, high], any shape.
        low: smallest value.
        high: largest value.
        rate: how probable it is that a value changes.
        eta: the larger, the smaller the changes; they are shares of ``high - low``.
        generator: of the random numbers.
    """
    u = torch.rand(values.shape, generator=generator)
    power = 1 / (eta + 1)
    change = torch.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 * (1 - u)) ** power)
    moved = (values + change * (high - low)).clamp(low, high)
    return torch.where(torch.rand(values.shape, generator=generator) < rate, moved, values)


def binary_crossover(one: Tensor, other: Tensor, eta: float, generator: torch.Generator) -> Tensor:
    """Simulated binary crossover: a child around one of two parents, as far from it as the parents are from one another.

    Every value is crossed with probability 1/2 and else taken from the first parent. Children may lie outside of the parents.

    Args:
        one: (P, ...).
        other: (P, ...).
        eta: the larger, the nearer children are to their parents.
        generator: of the random numbers.
    """
    u = torch.rand(one.shape, generator=generator)
    spread = torch.where(u <= 0.5, 2 * u, 0.5 / (1 - u).clamp_min(1e-9)) ** (1 / (eta + 1))
    child = 0.5 * ((1 + spread) * one + (1 - spread) * other)
    return torch.where(torch.rand(one.shape, generator=generator) < 0.5, child, one)


def hsv_to_rgb(images: Tensor) -> Tensor:
    """Hue, saturation and value, each in [0, 1], to red, green and blue: (P, 3, H, W)."""
    hue, saturation, value = images.unbind(dim=1)
    parts = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        parts.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, dim=1)


def _coloured(values: Tensor) -> Tensor:
    """Pictures of three channels are written down as hue, saturation and value; all else as it is."""
    return hsv_to_rgb(values) if values.dim() == 4 and values.shape[1] == 3 else values


@dataclass(frozen=True)
class Direct:
    """One gene a pixel: images that look like noise.

    Args:
        shape: of one image, (C, H, W), or of any other input.
        mutation: how probable it is that a pixel changes (paper: 0.1).
        eta_mutation: 15 in the paper.
        crossover: share of the children that have two parents (paper: 0.5).
        eta_crossover: 10 in the paper.
    """

    shape: tuple[int, ...]
    mutation: float = 0.1
    eta_mutation: float = 15.0
    crossover: float = 0.5
    eta_crossover: float = 10.0

    def random(self, count: int, generator: torch.Generator) -> Genomes:
        """Every pixel evenly from [0, 1]."""
        return (torch.rand(count, *self.shape, generator=generator),)

    def vary(self, parents: Genomes, others: Genomes, generator: torch.Generator) -> Genomes:
        """Cross, then mutate."""
        (one,), (other,) = parents, others
        both = torch.rand(len(one), *[1] * len(self.shape), generator=generator) < self.crossover
        child = torch.where(both, binary_crossover(one, other, self.eta_crossover, generator).clamp(0, 1), one)
        return (polynomial_mutation(child, 0.0, 1.0, self.mutation, self.eta_mutation, generator),)

    def express(self, genomes: Genomes) -> Tensor:
        """The pixels themselves."""
        return _coloured(genomes[0])


#: Activations of a painting network, as numbers in its genome: sine, sigmoid, bell, line.
_SINE, _SIGMOID, _BELL, _LINE = range(4)
_INPUTS = 4  # x, y, distance from the centre, 1


@dataclass(frozen=True)
class Cppn:
    """A compositional pattern-producing network: what paints an image, as a function of where a pixel is.

    It begins as four inputs (x and y from -1 to 1, distance from the centre, 1) with a link to each output, one for each channel.
    Mutation adds and removes links and nodes; a new node comes into the middle of a link. Nodes have a depth between that of
    the inputs, 0, and of the outputs, 1, and links lead to larger depths only, so that there are no circles. Children have one
    parent. The absolute value of an output, at most 1, is the channel of the pixel.

    A genome: weights (P, T, T) and links (P, T, T) bool, both [to, from]; activations, depths and alive (P, T).

    Args:
        shape: (C, H, W).
        hidden: most nodes between inputs and outputs.
        add_link: how probable each mutation is, for a child.
        delete_link: the same.
        move_link: the same; its weight goes to another pair of nodes.
        add_node: the same.
        delete_node: the same; its links go with it.
        mutation: for each weight, within [-10, 10], and each activation.
        eta: of the weights' polynomial mutation.
    """

    shape: tuple[int, ...]
    hidden: int = 16
    add_link: float = 0.5
    delete_link: float = 0.3
    move_link: float = 0.5
    add_node: float = 0.5
    delete_node: float = 0.2
    mutation: float = 0.1
    eta: float = 15.0

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ValueError(f"a painting network paints images (C, H, W), not inputs of shape {self.shape}")

    def random(self, count: int, generator: torch.Generator) -> Genomes:
        """Inputs linked with outputs by weights evenly from [-10, 10]."""
        channels = self.shape[0]
        outputs = slice(_INPUTS, _INPUTS + channels)
        nodes = _INPUTS + channels + self.hidden
        links = torch.zeros(count, nodes, nodes, dtype=torch.bool)
        links[:, outputs, :_INPUTS] = True
        alive = torch.zeros(count, nodes, dtype=torch.bool)
        alive[:, : _INPUTS + channels] = True
        depths = torch.zeros(count, nodes, dtype=torch.float64)
        depths[:, outputs] = 1
        return (
            _weights((count, nodes, nodes), generator),
            links,
            torch.randint(4, (count, nodes), generator=generator),
            depths,
            alive,
        )

    def vary(self, parents: Genomes, others: Genomes, generator: torch.Generator) -> Genomes:
        """Mutate a copy of the first parent."""
        weights, links, kinds, depths, alive = (part.clone() for part in parents)
        every = torch.arange(len(weights))
        nodes = weights.shape[1]
        first = _INPUTS + self.shape[0]  # of the hidden ones

        def chance(probability: float) -> Tensor:
            return torch.rand(len(every), generator=generator) < probability

        def link(rows: Tensor, values: Tensor) -> None:
            free = (depths[:, :, None] > depths[:, None, :]) & alive[:, :, None] & alive[:, None, :] & ~links
            place, found = _any(free.flatten(1), generator)
            rows = rows & found
            to, source = place[rows] // nodes, place[rows] % nodes
            links[every[rows], to, source] = True
            weights[every[rows], to, source] = values[rows]

        def unlink(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            place, found = _any(links.flatten(1), generator)
            rows = rows & found
            links.flatten(1)[every[rows], place[rows]] = False
            return rows, place // nodes, place % nodes

        fresh = _weights((3, len(every)), generator)
        gone, _, _ = unlink(chance(self.delete_link))
        dead, there = _any(alive & (torch.arange(nodes) >= first), generator)
        gone = chance(self.delete_node) & there
        alive[every[gone], dead[gone]] = False
        depths[every[gone], dead[gone]] = 0
        links[every[gone], dead[gone]] = False
        links[every[gone], :, dead[gone]] = False
        moved, to, source = unlink(chance(self.move_link))
        link(moved, weights[every, to, source])
        slot, room = _any(~alive, generator)
        split, to, source = unlink(chance(self.add_node) & room)
        rows, new, to, source = every[split], slot[split], to[split], source[split]
        alive[rows, new] = True
        depths[rows, new] = (depths[rows, to] + depths[rows, source]) / 2
        links[rows, new, source] = links[rows, to, new] = True
        weights[rows, new, source] = weights[rows, to, source]
        weights[rows, to, new] = fresh[0, split]
        link(chance(self.add_link), fresh[1])
        weights = polynomial_mutation(weights, -10.0, 10.0, self.mutation, self.eta, generator)
        other = torch.randint(4, kinds.shape, generator=generator)
        kinds = torch.where(torch.rand(kinds.shape, generator=generator) < self.mutation, other, kinds)
        return weights, links, kinds, depths, alive

    def express(self, genomes: Genomes) -> Tensor:
        """Paint, node after node in the order of their depths, all pixels of all images at once."""
        weights, links, kinds, depths, alive = genomes
        channels, height, width = self.shape
        # Inputs and free places first (all at depth 0, in their order), outputs last.
        order = depths.argsort(dim=1, stable=True)
        wired = torch.where(links, weights, 0.0)
        wired = wired.gather(1, order[:, :, None].expand_as(wired)).gather(2, order[:, None, :].expand_as(wired))
        kinds = kinds.gather(1, order)
        nodes = weights.shape[1]
        values = weights.new_zeros(len(weights), nodes, height * width)
        values[:, :_INPUTS] = _grid(height, width)
        begin = _INPUTS + int((~alive).sum(dim=1).min())
        for node in range(begin, nodes):
            drive = torch.bmm(wired[:, node : node + 1, :node], values[:, :node]).squeeze(1)  # (P, H W)
            values[:, node] = _activated(drive, kinds[:, node])
        painted = values[:, -channels:].abs().clamp_max(1).view(-1, channels, height, width)
        return _coloured(painted)


def _grid(height: int, width: int) -> Tensor:
    """What a painting network is told of each pixel: (4, H W)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, (x**2 + y**2).sqrt(), torch.ones_like(x)]).flatten(1)


def _activated(drive: Tensor, kinds: Tensor) -> Tensor:
    """Each row through its own activation: (P, M), (P,) -> (P, M)."""
    found = torch.empty_like(drive)
    for kind in range(4):
        rows = (kinds == kind).nonzero().flatten()
        x = drive[rows]
        if kind == _SINE:
            x = x.sin()
        elif kind == _SIGMOID:
            x = 2 * x.sigmoid() - 1
        elif kind == _BELL:
            x = (-x.square()).exp()
        elif kind == _LINE:
            x = x.clamp(-3, 3) / 3
        found[rows] = x
    return found


def _weights(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 20 * torch.rand(shape, generator=generator) - 10


def _any(allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of the allowed places of every row, evenly, and whether there is one: (P, M) bool -> (P,), (P,) bool."""
    lots = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    highest, place = lots.max(dim=1)
    return place, highest >= 0
