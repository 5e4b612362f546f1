"""Growing the tree of a network: all paths at once, unit after unit, with a linear programme where room must be proved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from assay.nn.piecewise import Chain, Floats
from assay.papers.interpretable.nn_to_tree.tree import Ints, LinearTree


class Grower:
    """All paths at once, unit after unit.

    A path is the child of a node that is still to be made (``slot`` = 2 node + side), with the tests on its way. Points are
    carried along: a path in which a point lies needs no proof that there is room for it.
    """

    def __init__(self, size: int, low: Floats, high: Floats, prune: bool, margin: float, max_leaves: int) -> None:
        self.low, self.high, self.prune, self.margin, self.max_leaves = low, high, prune, margin, max_leaves
        # A point in no special place: the middle may lie on many hyperplanes at once, and would show room where there is none.
        random = np.random.default_rng(0)
        bounded = np.isfinite(low) & np.isfinite(high)
        inside = random.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 1.0))
        self.points = np.where(bounded, inside, np.clip(random.normal(size=size), low, high)).reshape(1, size)
        self.at = np.zeros(1, dtype=np.int64)  # the path of each point
        self.only_visited = False
        self.left_out = 0
        self.slot = np.array([-1])
        self.way = np.empty((1, 0), dtype=np.int64)  # (paths, tests) slots passed, -1 where there are fewer
        self.children: list[list[int]] = []
        self.weights: list[Floats] = []
        self.biases: list[float] = []

    def visit(self, points: Floats) -> None:
        """Build only what these points see."""
        self.points, self.at, self.only_visited = points, np.zeros(len(points), dtype=np.int64), True

    def grow(self, net: Chain) -> LinearTree:
        # What the input is mapped to before the first layer: itself.
        maps, shifts = np.eye(len(self.low))[None], np.zeros((1, len(self.low)))
        for weight, bias, pieces, after in zip(net.weights, net.biases, net.pieces, net.weights[1:], strict=False):
            before, before_bias = weight @ maps, shifts @ weight.T + bias  # What (paths, units, D), bhat (paths, units)
            self.origin = np.arange(len(self.slot))  # the path of each path at the layer's beginning
            self.region = np.zeros(before_bias.shape, dtype=np.int64)
            for unit in np.flatnonzero(after.any(axis=0)).tolist():  # those that the next layer listens to
                for below, knot in enumerate(pieces.knots):
                    asked = self.region[:, unit] == below
                    tests = before[self.origin, unit], before_bias[self.origin, unit] - knot
                    self._ask(unit, asked, *tests)
            slopes = np.asarray(pieces.slopes)[self.region]  # a (paths, units)
            maps = slopes[:, :, None] * before[self.origin]
            shifts = slopes * before_bias[self.origin] + np.asarray(pieces.offsets)[self.region]
        leaves = ~np.arange(len(self.slot))
        for slot, leaf in zip(self.slot.tolist(), leaves.tolist(), strict=True):
            if slot >= 0:
                self.children[slot // 2][slot % 2] = leaf
        return LinearTree(
            np.array(self.children, dtype=np.int64).reshape(-1, 2),
            np.array(self.weights).reshape(-1, len(self.low)),
            np.array(self.biases, dtype=np.float64),
            net.weights[-1] @ maps,
            shifts @ net.weights[-1].T + net.biases[-1],
            self.left_out,
        )

    def _ask(self, unit: int, asked: NDArray[np.bool_], weights: Floats, biases: Floats) -> None:
        """Let every path that is ``asked`` go on to those of its two children that there is room for."""
        holds = np.einsum("nd,nd->n", weights[self.at], self.points) + biases[self.at] > 0
        room = np.zeros((len(asked), 2), dtype=bool)
        room[self.at, holds.astype(np.int64)] = True
        if not self.only_visited:
            self._look_for_room(asked, room, weights, biases)
        split = np.flatnonzero(asked & room.all(axis=1))
        self.left_out += int(asked.sum()) - len(split)
        self.region[asked & ~room[:, 0], unit] += 1
        if not len(split):
            return
        if len(asked) + len(split) > self.max_leaves:
            raise ValueError(f"the tree has more than {self.max_leaves} leaves: build only what examples visit (visited_by)")
        nodes = len(self.children) + np.arange(len(split))
        for node, path in zip(nodes.tolist(), split.tolist(), strict=True):
            if self.slot[path] >= 0:
                self.children[self.slot[path] // 2][self.slot[path] % 2] = node
            self.children.append([0, 0])
            self.weights.append(weights[path])
            self.biases.append(float(biases[path]))
        # The path itself goes on where the test does not hold, a copy of it where it holds.
        holds = np.einsum("nd,nd->n", weights[self.at], self.points) + biases[self.at] > 0
        copy_of = np.full(len(asked), -1)
        copy_of[split] = len(asked) + np.arange(len(split))
        self.at = np.where(holds & (copy_of[self.at] >= 0), copy_of[self.at], self.at)
        self.slot[split] = 2 * nodes
        self.slot = np.concatenate([self.slot, 2 * nodes + 1])
        passed = np.full(len(asked), -1)
        passed[split] = 2 * nodes
        self.way = np.column_stack([self.way, passed])
        self.way = np.concatenate([self.way, self.way[split]])
        self.way[len(asked) :, -1] += 1
        self.origin = np.concatenate([self.origin, self.origin[split]])
        self.region = np.concatenate([self.region, self.region[split]])
        self.region[len(asked) :, unit] += 1

    def _look_for_room(self, asked: NDArray[np.bool_], room: NDArray[np.bool_], weights: Floats, biases: Floats) -> None:
        """Where no point shows that there is room on a side of the test, find the largest ball that fits there."""
        if not self.prune:
            room[asked] = True
            return
        unsure = asked & ~room.all(axis=1)
        constant = np.abs(weights).max(axis=1) < 1e-14  # such a test asks nothing of the input
        room[unsure & constant] = np.stack([biases <= 0, biases > 0], axis=1)[unsure & constant]
        for paths in _parts(np.flatnonzero(unsure & ~constant), 64):
            side = np.where(room[paths, 1], -1.0, 1.0)  # the side that is in question
            radius, centres = self._balls(paths, side[:, None] * weights[paths], side * biases[paths])
            found = radius > self.margin
            room[paths[found]] = True
            self.points = np.concatenate([self.points, centres[found]])
            self.at = np.concatenate([self.at, paths[found]])

    def _balls(self, paths: Ints, weights: Floats, biases: Floats) -> tuple[Floats, Floats]:
        """The largest ball (of radius 1 at most) with its centre in the box, inside each path's region and ``w @ x + b > 0``.

        All of them are one linear programme in blocks: each block has its own centre and radius, and the radii are added up.
        """
        count, size = weights.shape
        slots = self.way[paths]  # (paths, tests)
        block, place = np.nonzero(slots >= 0)
        passed = slots[block, place]
        sign = np.where(passed % 2 == 1, 1.0, -1.0)
        known_weights = np.array(self.weights).reshape(-1, size)[passed // 2] if len(passed) else np.empty((0, size))
        known_biases = np.array(self.biases)[passed // 2] if len(passed) else np.empty(0)
        rows = np.concatenate([sign[:, None] * known_weights, weights])
        offsets = np.concatenate([sign * known_biases, biases])
        block = np.concatenate([block, np.arange(count)])
        norms = np.linalg.norm(rows, axis=1)
        rows, offsets = rows / norms[:, None], offsets / norms
        number = np.arange(len(rows))
        # -w @ x + r <= b, with the variables x (size) and r of each block in a row
        matrix = coo_array(
            (
                np.concatenate([-rows.ravel(), np.ones(len(rows))]),
                (
                    np.concatenate([number.repeat(size), number]),
                    np.concatenate([(block[:, None] * (size + 1) + np.arange(size)).ravel(), block * (size + 1) + size]),
                ),
            ),
            shape=(len(rows), count * (size + 1)),
        ).tocsr()
        bounds = np.tile(np.column_stack([np.append(self.low, -np.inf), np.append(self.high, 1.0)]), (count, 1))
        objective = np.tile(np.append(np.zeros(size), -1.0), count)
        # HiGHS takes 1e-7 for zero unless told otherwise, which is more than the margin.
        exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        solved = linprog(objective, A_ub=matrix, b_ub=offsets, bounds=bounds, method="highs", options=exact)
        if solved.status != 0:
            raise ValueError(f"a linear programme was not solved: {solved.message}")
        found = solved.x.reshape(count, size + 1)
        return found[:, size], found[:, :size]


def _parts(places: Ints, size: int) -> list[Ints]:
    return [places[first : first + size] for first in range(0, len(places), size)]


def merged(tree: LinearTree) -> LinearTree:
    """The same tree where siblings with the same function are one leaf: their test asked for nothing."""
    flat = np.concatenate([tree.maps.reshape(tree.n_leaves, -1), tree.shifts], axis=1)
    digits = np.round(flat / max(float(np.abs(flat).max()), 1e-300), 12)
    _, first, same = np.unique(digits, axis=0, return_index=True, return_inverse=True)
    alike = first[same.reshape(-1)]  # the first leaf with the same function
    goes_to = np.arange(len(tree.children))  # what stands in the place of a node: itself, or a leaf
    for node in range(len(tree.children) - 1, -1, -1):  # children were made after their parents
        below = [~int(alike[~child]) if child < 0 else int(goes_to[child]) for child in tree.children[node]]
        tree.children[node] = below
        if below[0] == below[1] and below[0] < 0:
            goes_to[node] = below[0]
    kept = np.flatnonzero(goes_to == np.arange(len(goes_to)))
    if not len(kept):
        only = ~int(goes_to[0]) if len(goes_to) else 0
        return replace(
            tree,
            children=tree.children[:0],
            weights=tree.weights[:0],
            biases=tree.biases[:0],
            maps=tree.maps[[only]],
            shifts=tree.shifts[[only]],
        )
    number = np.full(len(goes_to), -1)
    number[kept] = np.arange(len(kept))
    children = tree.children[kept]
    leaf = children < 0
    functions = ~children[leaf]
    children[~leaf] = number[children[~leaf]]
    children[leaf] = ~np.arange(len(functions))  # every leaf has a place and a function of its own
    return replace(
        tree,
        children=children,
        weights=tree.weights[kept],
        biases=tree.biases[kept],
        maps=tree.maps[functions],
        shifts=tree.shifts[functions],
    )
