"""Trees that people read: the conditions on the way to a leaf, and a picture of the tree with one example's way marked.

A tree is an array ``children`` (inner nodes, 2): where the test of a node does not hold the first entry goes on, where it holds
the second. An entry from 0 on is an inner node, a negative one the leaf ``~entry``; the root is node 0, or leaf 0 where there is
no test. :func:`cart` brings scikit-learn's trees into this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.drawing import short


@dataclass(frozen=True)
class Split:
    """One condition: a feature is above a threshold, or it is not."""

    feature: int
    threshold: float
    above: bool

    def words(self, features: Sequence[str] = ()) -> str:
        """The condition as people write it: ``alcohol > 12.8``."""
        name = features[self.feature] if len(features) else f"x{self.feature}"
        return f"{name} {'>' if self.above else '<='} {self.threshold:.4g}"


@dataclass(frozen=True)
class Cart:
    """A grown tree with one feature in each test.

    Args:
        children: (inner, 2), see the module.
        feature: (inner,) what a node tests.
        threshold: (inner,) the test holds where the feature is above it.
        leaves: (leaves,) scikit-learn's number of each leaf, as its ``apply`` gives it.
    """

    children: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    leaves: NDArray[np.int64]

    def ways(self) -> list[list[Split]]:
        """The conditions on the way to each leaf, from the root down; a feature may come several times."""
        found: list[list[Split]] = [[] for _ in self.leaves]
        open_ways: list[tuple[int, list[Split]]] = [(0 if len(self.children) else ~0, [])]
        while open_ways:
            node, way = open_ways.pop()
            if node < 0:
                found[~node] = way
                continue
            for above in (False, True):
                split = Split(int(self.feature[node]), float(self.threshold[node]), above)
                open_ways.append((int(self.children[node, int(above)]), [*way, split]))
        return found

    def nodes(self, leaf: int) -> list[int]:
        """The inner nodes on the way to a leaf, from the root down."""
        above = {int(child): node for node, pair in enumerate(self.children) for child in pair}
        way, here = [], ~leaf
        while here in above:
            here = above[here]
            way.append(here)
        return way[::-1]


def cart(tree: Any) -> Cart:
    """A fitted scikit-learn tree (its attribute ``tree_``) in the form of this module."""
    is_inner = tree.children_left >= 0
    inner, leaves = np.flatnonzero(is_inner), np.flatnonzero(~is_inner)
    number = np.empty(tree.node_count, dtype=np.int64)
    number[inner], number[leaves] = np.arange(len(inner)), ~np.arange(len(leaves))
    children = np.stack([number[tree.children_left[inner]], number[tree.children_right[inner]]], axis=1)
    return Cart(children, tree.feature[inner].astype(np.int64), tree.threshold[inner].astype(np.float64), leaves)


def shortest(way: Sequence[Split]) -> list[Split]:
    """The same region with no condition that another one of the same feature implies."""
    bounds: dict[tuple[int, bool], Split] = {}
    for split in way:
        known = bounds.get((split.feature, split.above))
        tighter = known is None or (split.threshold > known.threshold) == split.above
        if tighter:
            bounds[split.feature, split.above] = split
    return list(bounds.values())


def picture(
    children: NDArray[np.int64],
    tests: Sequence[str],
    leaves: Sequence[str],
    way: Sequence[int] = (),
    leaf: int | None = None,
    levels: int = 5,
) -> str:
    """A tree as an SVG: where a test holds one goes to the right. What lies deeper than ``levels`` tests is only counted.

    Args:
        children: (inner, 2), see the module.
        tests: what stands at every inner node.
        leaves: what stands at every leaf.
        way: inner nodes that are marked.
        leaf: the leaf that is marked.
        levels: tests drawn from the root down; the marked way is drawn to its end.
    """
    marked = {*way, *(() if leaf is None else (~leaf,))}
    below = _leaves_below(children)
    cell, height = 132, 74
    places: dict[int, tuple[float, int]] = {}
    cut: set[int] = set()
    taken = 0

    def place(node: int, level: int) -> float:
        nonlocal taken
        if node >= 0 and level >= levels and node not in marked:
            cut.add(node)
        if node < 0 or node in cut:
            x = taken + 0.5
            taken += 1
        else:
            x = (place(int(children[node, 0]), level + 1) + place(int(children[node, 1]), level + 1)) / 2
        places[node] = (x, level)
        return x

    place(0 if len(children) else ~0, 0)
    lines, boxes = [], []
    for node, (across, level) in places.items():
        x, y = across * cell, 28 + height * level
        if node < 0:
            boxes.append(_box(x, y, leaves[~node], node in marked, rounded=True))
        elif node in cut:
            boxes.append(f'<text x="{x}" y="{y + 5}" fill="#777">… {below[node]} leaves</text>')
        else:
            boxes.append(_box(x, y, tests[node], node in marked, rounded=False))
            for child, answer in zip(children[node].tolist(), ("no", "yes"), strict=True):
                over, under = places[child][0] * cell, 28 + height * (level + 1)
                on_way = node in marked and child in marked
                stroke = '"#d33" stroke-width="3"' if on_way else '"#999" stroke-width="1"'
                lines.append(f'<path d="M{x} {y + 14}L{over} {under - 14}" stroke={stroke}/>')
                lines.append(f'<text x="{(x + over) / 2}" y="{(y + under) / 2 + 4}" fill="#777">{answer}</text>')
    deepest = max(level for _, level in places.values())
    size = f'width="{max(taken, 1) * cell}" height="{56 + height * deepest}"'
    style = 'font-family="sans-serif" font-size="12" text-anchor="middle"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(lines + boxes)}</svg>'


def _box(x: float, y: float, text: str, marked: bool, rounded: bool) -> str:
    # What a long test compares is cut, never what it is compared with.
    place = max(text.rfind(" > "), text.rfind(" <= "))
    parts = [text] if len(text) <= 20 or place < 0 else [text[:place], text[place + 1 :]]
    stroke = '"#d33" stroke-width="2"' if marked else '"#999"'
    shape = f'<rect x="{x - 64}" y="{y - 14}" width="128" height="28" rx="{14 if rounded else 2}" fill="#fff" stroke={stroke}/>'
    size, first = ("", y + 5) if len(parts) == 1 else (' font-size="11"', y - 2)
    words = "".join(
        f'<text x="{x}" y="{first + 12 * row}" fill="#222"{size}>{escape(short(part, 20))}</text>'
        for row, part in enumerate(parts)
    )
    return f"<g><title>{escape(text)}</title>{shape}{words}</g>"


def _leaves_below(children: NDArray[np.int64]) -> dict[int, int]:
    """Inner node -> leaves below it; a child's number is larger than its parent's in no particular order, so go by depth."""
    order, stack = [], [0] if len(children) else []
    while stack:
        node = stack.pop()
        order.append(node)
        stack += [int(child) for child in children[node] if child >= 0]
    below: dict[int, int] = {}
    for node in reversed(order):  # children before their parents
        below[node] = sum(1 if child < 0 else below[int(child)] for child in children[node])
    return below
