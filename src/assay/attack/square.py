"""Square Attack: random search over windows, which asks a network for its logits and for no gradient.

Source: Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020 (algorithms 1 to 3). A network whose gradients are masked resists gradient attacks and not this one.

The paper's windows are squares of an image. Here series (B, C, L) have intervals, and tables (B, D), whose columns have no
neighbours, have random subsets of their columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack.balls import CHUNK, Clip, clipped, into_ball, require_sense
from assay.attack.gradient import margins
from assay.nn.frozen import frozen

# Shares of the queries after which windows are halved (the paper's schedule for 10,000 queries: 10, 50, 200, 500, 1000, ...).
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def square(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: float = math.inf,
    queries: int = 1000,
    share: float = 0.8,
    clip: Clip = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Look for an input of another class by changing windows at random and keeping what lowers the label's margin.

    An input is done as soon as the network says something else, and leaves the batch.

    Args:
        model: maps inputs to logits (B, C), or to anything that is largest for the class that it says.
        inputs: (B, C, H, W), (B, C, L) or (B, D) float, within ``clip``.
        labels: (B,) int64, what is right.
        eps: radius of the ball.
        norm: of the ball: ``math.inf`` or 2.
        queries: how often the network is asked about an input (the paper: up to 10,000).
        share: of the entries that the first windows cover; the paper takes 0.05 to 0.8, by data set.
        clip: range of valid entries, as ``(0, 1)``.
        generator: of all that is random.

    Returns:
        (B, ...) points of the ball.

    Raises:
        ValueError: an argument that cannot be meant.
    """
    require_sense(inputs, eps, norm, clip)
    if inputs.dim() not in (2, 3, 4):
        raise ValueError(f"square looks at (B, C, H, W), (B, C, L) or (B, D), not at {tuple(inputs.shape)}")
    if queries < 1 or not 0 < share <= 1:
        raise ValueError(f"queries must be at least 1 and share in (0, 1], not {queries} and {share}")
    inputs = inputs.detach()
    windows = _Windows(tuple(inputs.shape[1:]), inputs.device, generator)
    found = []
    with frozen(model, inputs), torch.no_grad():
        for part, some in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
            found.append(_search(model, part, some, eps, norm, queries, share, clip, windows))
    return torch.cat(found) if found else inputs.clone()


def _search(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    eps: float,
    norm: float,
    queries: int,
    share: float,
    clip: Clip,
    windows: _Windows,
) -> Tensor:
    best = inputs.clone()
    lead = margins(model(best), labels)  # (B,): to be raised above 0
    active = torch.nonzero(lead <= 0).squeeze(1)
    for query in range(queries):
        if not len(active):
            break
        centre = inputs[active]
        if not query:
            moved = centre + eps * _unit(windows.start(len(active), norm, inputs.dtype), norm).view_as(centre)
        else:
            covered = share / 2 ** sum(query > part * queries for part in _HALVINGS)
            away = (best[active] - centre).flatten(1).view(len(active), *windows.flat)
            step = _change_signs if norm == math.inf else _move_mass
            moved = centre + step(away, eps, windows, covered).view_as(centre)
        moved = clipped(moved, clip)
        if norm == 2:  # rounding alone can lead out of it
            moved = into_ball(moved, centre, eps, norm, clip)
        now = margins(model(moved), labels[active])
        better = (now > lead[active]) | torch.full_like(active, query == 0, dtype=torch.bool)  # windows change what is there
        best[active[better]], lead[active[better]] = moved[better], now[better]
        active = active[lead[active] <= 0]
    return best


def _change_signs(away: Tensor, eps: float, windows: _Windows, covered: float) -> Tensor:
    """Algorithm 2: a window of each channel is set to eps or -eps: (b, C, P)."""
    places = windows.places(len(away), covered)  # (b, k)
    signs = windows.signs(len(away), places.shape[1], away.dtype)
    return away.scatter(2, _channels(places, away), (eps * signs).expand(-1, away.shape[1], places.shape[1]))


def _move_mass(away: Tensor, eps: float, windows: _Windows, covered: float) -> Tensor:
    """Algorithm 3: one window is emptied, another gets its squares and what the ball still has room for: (b, C, P)."""
    places, pattern = windows.patterns(len(away), covered, away.dtype)  # (b, k), (b, C or 1, k)
    emptied = windows.places(len(away), covered, windows.least)
    squares = away.square()
    in_either = torch.zeros(len(away), away.shape[2], dtype=torch.bool, device=away.device)
    in_either = in_either.scatter(1, places, True).scatter(1, emptied, True)
    room = (eps**2 - squares.sum(dim=(1, 2))).clamp_min(0).view(-1, 1, 1)
    budget = (squares * in_either.unsqueeze(1)).sum(dim=2, keepdim=True) + room / away.shape[1]  # (b, C, 1), squared
    there = away.gather(2, _channels(places, away))  # (b, C, k)
    new = _unit_last(pattern + _unit_last(there)) * budget.sqrt()
    changed = away.scatter(2, _channels(emptied, away), 0.0).scatter(2, _channels(places, away), new)
    return eps * _unit(changed, 2)


def _channels(places: Tensor, away: Tensor) -> Tensor:
    return places.unsqueeze(1).expand(-1, away.shape[1], -1)


def _unit(away: Tensor, norm: float) -> Tensor:
    """Length 1 in L2; signs stay what they are."""
    if norm == math.inf:
        return away
    length: Tensor = away.flatten(1).norm(dim=1).clamp_min(1e-12)
    return away / length.view(-1, 1, 1)


def _unit_last(values: Tensor) -> Tensor:
    return F.normalize(values, dim=2)


@dataclass(frozen=True)
class _Windows:
    """Random windows of inputs, as positions in each channel: (b, k).

    Args:
        shape: (C, H, W), (C, L) or (D,).
        device: of the inputs.
        generator: of all that is random.
    """

    shape: tuple[int, ...]
    device: torch.device
    generator: torch.Generator | None

    @property
    def flat(self) -> tuple[int, int]:
        """Channels and positions: a table has one channel."""
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], math.prod(self.shape[1:]))

    @property
    def least(self) -> int:
        """The smallest side of a window in L2, whose pattern needs a hill and its opposite."""
        return 3 if len(self.shape) > 1 else 1

    def _random(self, *size: int) -> Tensor:
        device = self.device if self.generator is None else self.generator.device
        return torch.rand(size, generator=self.generator, device=device).to(self.device)

    def signs(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """One sign a channel (b, C, 1); in a table one a column (b, 1, k)."""
        size = (count, 1, width) if len(self.shape) == 1 else (count, self.shape[0], 1)
        return self._random(*size).round().mul_(2).sub_(1).to(dtype)

    def _side(self, covered: float, least: int = 1) -> int:
        """Length of an interval, or of the side of a square, that covers this share of a channel."""
        places = self.flat[1]
        if len(self.shape) == 3:
            side = max(round(math.sqrt(covered * places)), least)
            return min(side, *self.shape[1:])
        return min(max(round(covered * places), least), places)

    def places(self, count: int, covered: float, least: int = 1) -> Tensor:
        """A window for each of ``count`` inputs: (b, k)."""
        side = self._side(covered, least)
        if len(self.shape) == 1:
            return self._random(count, self.shape[0]).argsort(dim=1)[:, :side]
        steps = torch.arange(side, device=self.device)
        corners = [(self._random(count, 1) * (size - side + 1)).long().clamp_max(size - side) for size in self.shape[1:]]
        if len(self.shape) == 2:
            return corners[0] + steps
        rows, columns = (corner + steps for corner in corners)
        positions: Tensor = rows.unsqueeze(2) * self.shape[2] + columns.unsqueeze(1)
        return positions.flatten(1)

    def patterns(self, count: int, covered: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A window for each of ``count`` inputs (b, k), and what is put there in L2 (b, C or 1, k)."""
        places = self.places(count, covered, self.least)
        signs = self.signs(count, places.shape[1], dtype)
        if len(self.shape) == 1:
            return places, signs
        side = self._side(covered, self.least)
        if len(self.shape) == 2:
            return places, signs * _two_hills(side, 1).flatten().to(signs)
        pattern = _two_hills(side, side).to(signs)
        turned = self._random(count, 1, 1) < 0.5
        return places, signs * torch.where(turned, pattern.t().flatten(), pattern.flatten())

    def start(self, count: int, norm: float, dtype: torch.dtype) -> Tensor:
        """Where the search begins: (b, C, P).

        In the maximum norm stripes of one sign along the height (of a series: steps; of a table: columns), in L2 a grid of
        patterns.
        """
        channels, places = self.flat
        if norm == math.inf:
            across = self.shape[-1]
            signs = self._random(count, channels, 1, across).round().mul_(2).sub_(1).to(dtype)
            return signs.expand(-1, -1, places // across, -1).reshape(count, channels, places)
        if len(self.shape) == 1:
            return self.signs(count, places, dtype)
        height = self.shape[1] if len(self.shape) == 3 else 1
        width = self.shape[-1]
        tall, broad = max(height // 5, 1), max(width // 5, 1)
        tile = _two_hills(broad, tall).t().to(device=self.device, dtype=dtype)  # (tall, broad)
        down, over = -(-height // tall), -(-width // broad)
        signs = self._random(count, channels, down, over).round().mul_(2).sub_(1).to(dtype)
        tiles = signs[:, :, :, None, :, None] * tile[:, None, :]
        return tiles.flatten(4, 5).flatten(2, 3)[:, :, :height, :width].reshape(count, channels, places)


def _two_hills(height: int, width: int) -> Tensor:
    """A hill and, below it, its opposite, which both fall off towards their edges: (height, width), of length 1 (sec. 3.3)."""
    if height == 1:
        return torch.full((1, width), 1 / math.sqrt(width))
    upper = height // 2
    hills: Tensor = torch.cat([_hill(upper, width), -_hill(height - upper, width)])
    return F.normalize(hills.flatten(), dim=0).view_as(hills)


def _hill(height: int, width: int) -> Tensor:
    """Rectangles one in another, higher towards the middle: sum over k <= M of 1 / (n + 1 - k)^2, n rectangles (eq. 2)."""
    rings = max(height, width) // 2 + 1
    rows = torch.arange(height).unsqueeze(1) + 0.5 - height / 2
    columns = torch.arange(width).unsqueeze(0) + 0.5 - width / 2
    # How far inside: 0 at the outermost ring, as seen from the nearer edge of the larger side.
    depth = (rings - 1 - torch.maximum(rows.abs(), columns.abs()).floor()).clamp_min(0)
    weights: Tensor = torch.tensor([1.0 / (rings - k) ** 2 for k in range(rings)]).cumsum(0)
    return weights[depth.long()]
