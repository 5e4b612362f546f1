"""What was learnt of all operators: rules, and calls that worked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.papers.robust.neuri.learning import Recorder, Rule, learn
from assay.papers.robust.neuri.operators import operators

#: Entries of any tensor of a model.
ENTRIES = 256
#: Calls that worked which are kept of each operator.
_KEPT = 24

#: (values of the symbols, shape of the result).
Call = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Knowledge:
    """Rules, and calls that worked, by the operator's key."""

    rules: Mapping[str, Rule]
    calls: Mapping[str, Sequence[Call]]

    @property
    def trusted(self) -> float:
        """Share of the operators whose rule is trusted."""
        return sum(rule.trusted for rule in self.rules.values()) / len(self.rules)

    def as_json(self) -> dict[str, Any]:
        return {"rules": [rule.as_json() for rule in self.rules.values()], "calls": dict(self.calls)}

    @classmethod
    def of_json(cls, plain: Mapping[str, Any]) -> Knowledge:
        rules = [Rule.of_json(one) for one in plain["rules"]]
        calls = {key: [(tuple(row), tuple(shape)) for row, shape in some] for key, some in plain["calls"].items()}
        return cls({rule.operator: rule for rule in rules}, calls)


def learn_all(
    keys: Sequence[str] | None = None, seed: int = 0, report: Callable[[int, int, str], None] | None = None
) -> Knowledge:
    """Learn about operators by calling them.

    Args:
        keys: which, all without it.
        seed: of the calls.
        report: told how many of how many are done, and which comes next.
    """
    chosen = list(operators() if keys is None else keys)
    rules, calls = {}, {}
    for place, key in enumerate(chosen):
        if report is not None:
            report(place, len(chosen), operators()[key].name)
        rules[key], recorder = learn(operators()[key], seed)
        calls[key] = _kept(recorder, len(rules[key].shape), seed)
    return Knowledge(rules, calls)


def _kept(recorder: Recorder, rank: int, seed: int) -> list[Call]:
    """Some of the calls that worked, small enough for a model."""
    good = [
        (row, shape)
        for row, shape in recorder.calls.items()
        if shape is not None
        and len(shape) == rank
        and max(np.prod(size) for size in (shape, *recorder.operator.split(row)[0])) <= ENTRIES
    ]
    order = np.random.default_rng(seed).permutation(len(good))[:_KEPT]
    return [good[place] for place in order]
