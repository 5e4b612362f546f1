"""A decision tree with linear tests and linear leaves: what it says, why, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.nn.piecewise import Floats
from assay.trees import picture

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Test:
    """One test on the way of an input: whether ``weights @ x + bias > 0``, and whether it held."""

    node: int
    weights: Floats
    bias: float
    holds: bool

    def words(self, features: Sequence[str] = (), terms: int = 3) -> str:
        """The inequality as people write it; with one input solved for it, else the ``terms`` largest weights."""
        sign = ">" if self.holds else "<="
        if len(self.weights) == 1:
            turned = sign if self.weights[0] > 0 else {">": "<", "<=": ">="}[sign]
            return f"{features[0] if len(features) else 'x'} {turned} {-self.bias / self.weights[0]:.3g}"
        largest = np.argsort(-np.abs(self.weights))[:terms]
        parts = [f"{self.weights[k]:+.2g} {features[k] if len(features) else f'x{k}'}" for k in largest]
        more = " ..." if len(self.weights) > terms else ""
        return f"{' '.join(parts)}{more} {sign} {-self.bias:.2g}"


@dataclass(frozen=True)
class Explanation:
    """Why the network says what it says of one input: the tests that were asked, and the linear function that they lead to."""

    tests: tuple[Test, ...]
    leaf: int
    weights: Floats  # (C, D)
    bias: Floats  # (C,)


@dataclass(frozen=True)
class LinearTree:
    """A decision tree with linear tests and linear leaves; made by :func:`to_tree`.

    Args:
        children: (inner, 2) where to go if the test does not hold, and if it does (:mod:`assay.trees`).
        weights: (inner, D) and
        biases: (inner,) of the tests ``w @ x + b > 0``.
        maps: (leaves, C, D) and
        shifts: (leaves, C) of the linear functions.
        left_out: branches that were not grown, because no input takes them (or no example, where only their ways are built).
    """

    children: Ints
    weights: Floats
    biases: Floats
    maps: Floats
    shifts: Floats
    left_out: int = 0

    @property
    def n_leaves(self) -> int:
        """Leaves of the tree."""
        return len(self.maps)

    @property
    def stored(self) -> int:
        """Numbers to keep, as the paper counts: a test is divided by one of its weights, so that D are left of D + 1."""
        return self.weights.size + self.maps.size + self.shifts.size

    def apply(self, X: ArrayLike) -> Ints:
        """The leaf (N,) of each input (N, ...)."""
        return self._descend(X)[0]

    def tests(self, X: ArrayLike) -> Ints:
        """How many tests each input is asked: (N,)."""
        return self._descend(X)[1]

    def predict(self, X: ArrayLike) -> Floats:
        """The network's outputs: (N, ...) -> (N, C)."""
        rows, leaf = self._rows(X), self.apply(X)
        found = np.empty((len(rows), self.maps.shape[1]))
        for one in np.unique(leaf):  # one product for each leaf; the maps are not copied for every row
            here = leaf == one
            found[here] = rows[here] @ self.maps[one].T + self.shifts[one]
        return found

    def operations(self, X: ArrayLike) -> float:
        """Multiplications and additions an input, on average, as the paper counts: 2 (D - 1) a test, 2 D an output."""
        return float(2 * (self.weights.shape[1] - 1) * self.tests(X).mean() + 2 * self.maps.shape[1] * self.maps.shape[2])

    def explain(self, x: ArrayLike) -> Explanation:
        """The tests that one input is asked, from the root down, and the linear function of its leaf."""
        row = np.asarray(x, dtype=np.float64).reshape(-1)
        node, asked = (0 if len(self.children) else ~0), []
        while node >= 0:
            holds = bool(self.weights[node] @ row + self.biases[node] > 0)
            asked.append(Test(node, self.weights[node], float(self.biases[node]), holds))
            node = int(self.children[node, int(holds)])
        return Explanation(tuple(asked), ~node, self.maps[~node], self.shifts[~node])

    def picture(self, features: Sequence[str] = (), example: ArrayLike | None = None, levels: int = 5) -> str:
        """The tree as an SVG, with the way of one input marked."""
        tests = [
            Test(node, weights, float(bias), True).words(features, terms=2)
            for node, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True))
        ]
        seen = None if example is None else self.explain(example)
        leaves = [self._leaf(number, features) for number in range(self.n_leaves)]
        way = [] if seen is None else [test.node for test in seen.tests]
        return picture(self.children, tests, leaves, way, None if seen is None else seen.leaf, levels)

    def _leaf(self, number: int, features: Sequence[str]) -> str:
        if self.maps.shape[1:] == (1, 1):
            name = features[0] if len(features) else "x"
            return f"{self.maps[number, 0, 0]:.3g} {name} {self.shifts[number, 0]:+.3g}"
        return f"leaf {number}"

    def _rows(self, X: ArrayLike) -> Floats:
        rows = np.asarray(X, dtype=np.float64)
        rows = rows.reshape(len(rows), -1)
        if rows.shape[1] != self.maps.shape[2]:
            raise ValueError(f"the tree was made for inputs of {self.maps.shape[2]} numbers, and these have {rows.shape[1]}")
        return rows

    def _descend(self, X: ArrayLike) -> tuple[Ints, Ints]:
        rows = self._rows(X)
        node = np.full(len(rows), 0 if len(self.children) else ~0, dtype=np.int64)
        count = np.zeros(len(rows), dtype=np.int64)
        walking = np.flatnonzero(node >= 0)
        while len(walking):
            here = node[walking]
            holds = np.einsum("nd,nd->n", self.weights[here], rows[walking]) + self.biases[here] > 0
            node[walking] = self.children[here, holds.astype(np.int64)]
            count[walking] += 1
            walking = walking[node[walking] >= 0]
        return ~node, count
