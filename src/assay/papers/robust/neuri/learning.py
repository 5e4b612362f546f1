"""Learning what an operator demands of its arguments, and what shape it returns, by calling it.

Calls are made with small random sizes and attributes; those that work and those that raise are both kept. From them two
things are inferred: an expression for every size of the result, and a conjunction of conditions that all working calls meet
and the failing ones do not. Then the rule is doubted: calls that it lets through, and calls that break one condition and no
other, are made too, and what comes out otherwise than the rule says is learnt from again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from assay.papers.robust.neuri.expressions import Expression, Numbers, Pool, evaluate, fit, from_json, leaves, text
from assay.papers.robust.neuri.operators import Operator

#: Entries of a tensor; a call that would return more is not made, or counts as failing.
_MOST = 20_000

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Literal:
    """``expression == 0``, ``expression >= 0`` or ``expression > 0``.

    Args:
        expression: what is compared.
        sign: ``"=="``, ``">="`` or ``">"``.
    """

    expression: Expression
    sign: str

    def holds(self, columns: dict[str, Numbers]) -> Mask:
        value = evaluate(self.expression, columns)
        return np.asarray(value == 0 if self.sign == "==" else value >= 0 if self.sign == ">=" else value > 0)

    def __str__(self) -> str:
        inner = self.expression
        if self.sign == "==" and isinstance(inner, tuple) and inner[0] == "-":
            return f"{text(inner[1])} == {text(inner[2])}"
        return f"{text(inner)} {self.sign} 0"


#: At least one of them holds.
Clause = tuple[Literal, ...]


@dataclass(frozen=True)
class Records:
    """Calls of one operator.

    Args:
        rows: (R, symbols) int64, every one another.
        works: (R,) whether the call returned a tensor with the usual number of dimensions.
        shapes: (R, dimensions) sizes of what it returned; 0 where it failed.
    """

    rows: Numbers
    works: Mask
    shapes: Numbers


@dataclass(frozen=True)
class Rule:
    """What was inferred of one operator.

    Args:
        operator: its key.
        symbols: names of its sizes and attributes.
        shape: an expression for each size of the result; None where none was found.
        clauses: conditions, all of which must hold.
        precision: share of fresh calls let through that worked.
        recall: share of fresh calls that worked that were let through.
        right_shape: share of fresh calls that worked whose shape was as the rule says.
        calls: that were made.
    """

    operator: str
    symbols: tuple[str, ...]
    shape: tuple[Expression | None, ...]
    clauses: tuple[Clause, ...]
    precision: float = 0.0
    recall: float = 0.0
    right_shape: float = 0.0
    calls: int = 0

    def columns(self, rows: Numbers) -> dict[str, Numbers]:
        return {name: rows[:, place] for place, name in enumerate(self.symbols)}

    def sizes(self, rows: Numbers) -> Numbers:
        """(R, dimensions) of the result; -1 where nothing is known."""
        columns = self.columns(rows)
        unknown = np.full(len(rows), -1, dtype=np.int64)
        known = [unknown if one is None else evaluate(one, columns) for one in self.shape]
        return np.stack(known, axis=1) if known else np.empty((len(rows), 0), dtype=np.int64)

    def broken(self, rows: Numbers) -> Mask:
        """(clauses, R) which conditions do not hold; the last one asks that all sizes of the result are positive."""
        columns = self.columns(rows)
        found = [~np.logical_or.reduce([literal.holds(columns) for literal in clause]) for clause in self.clauses]
        positive = [evaluate(one, columns) > 0 for one in self.shape if one is not None]
        found.append(~np.logical_and.reduce(positive) if positive else np.zeros(len(rows), dtype=bool))
        return np.stack(found)

    def accepts(self, rows: Numbers) -> Mask:
        """(R,) whether all conditions hold."""
        return np.asarray(~self.broken(rows).any(axis=0))

    @property
    def trusted(self) -> bool:
        """Whether models may be built by it: fresh calls that it let through worked, with the shape it says."""
        return None not in self.shape and self.precision >= 0.98 and self.right_shape >= 0.98 and self.recall > 0

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The rule as people write it."""
        shape = ", ".join("?" if one is None else text(one) for one in self.shape)
        return (f"shape: ({shape})", *(" or ".join(map(str, clause)) for clause in self.clauses))

    def as_json(self) -> dict[str, Any]:
        clauses = [[(one.expression, one.sign) for one in clause] for clause in self.clauses]
        return {**vars(self), "clauses": clauses, "lines": self.lines}

    @classmethod
    def of_json(cls, plain: dict[str, Any]) -> Rule:
        shape = tuple(None if one is None else from_json(one) for one in plain["shape"])
        clauses = tuple(tuple(Literal(from_json(e), sign) for e, sign in clause) for clause in plain["clauses"])
        numbers = {name: plain[name] for name in ("precision", "recall", "right_shape", "calls")}
        return cls(plain["operator"], tuple(plain["symbols"]), shape, clauses, **numbers)


# ---------------------------------------------------------------------------------------------------- recording


class Recorder:
    """Calls an operator with chosen numbers and keeps what came out.

    Args:
        operator: what is called.
        generator: of the numbers.
    """

    def __init__(self, operator: Operator, generator: np.random.Generator) -> None:
        self.operator, self.generator = operator, generator
        self.calls: dict[tuple[int, ...], tuple[int, ...] | None] = {}

    def draw(self, count: int) -> Numbers:
        """(count, symbols): each number is random, or that of a symbol before it, since sizes often have to agree."""
        rows = np.empty((count, len(self.operator.symbols)), dtype=np.int64)
        for place, (low, high) in enumerate(self.operator.domains):
            rows[:, place] = self.generator.integers(low, high + 1, count)
            if place:
                other = rows[np.arange(count), self.generator.integers(0, place, count)]
                copies = (self.generator.random(count) < 0.4) & (other >= low) & (other <= high)
                rows[:, place] = np.where(copies, other, rows[:, place])
        return rows

    def neighbours(self, rows: Numbers) -> Numbers:
        """Every row with one of its numbers changed, by one or to any."""
        changed = rows.copy()
        place = self.generator.integers(0, rows.shape[1], len(rows))
        low, high = np.array(self.operator.domains, dtype=np.int64)[place].T
        here = np.arange(len(rows))
        step = self.generator.choice(np.array([-1, 1]), len(rows))
        anything = self.generator.integers(low, high + 1)
        new = np.where(self.generator.random(len(rows)) < 0.6, changed[here, place] + step, anything)
        changed[here, place] = np.clip(new, low, high)
        return changed

    def call(self, rows: Iterable[tuple[int, ...]]) -> None:
        """Make these calls, unless they were made."""
        for row in rows:
            if row not in self.calls:
                self.calls[row] = self._shape(row)

    def _shape(self, row: tuple[int, ...]) -> tuple[int, ...] | None:
        shapes, attributes = self.operator.split(row)
        try:
            with torch.no_grad():
                result = self.operator([torch.ones(shape) for shape in shapes], attributes)
        except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError, AssertionError):
            return None
        # Empty results are no use in a model, and many operators are not defined on them.
        shape = tuple(result.shape)
        return shape if 0 < result.numel() <= _MOST else None

    def working(self) -> list[tuple[int, ...]]:
        return [row for row, shape in self.calls.items() if shape is not None]

    def records(self) -> Records:
        """All calls so far. Calls whose result has another number of dimensions than most count as failing."""
        ranks = [len(shape) for shape in self.calls.values() if shape is not None]
        rank = max(set(ranks), key=ranks.count) if ranks else 0
        works = np.array([shape is not None and len(shape) == rank for shape in self.calls.values()], dtype=bool)
        shapes = [shape if good else (0,) * rank for shape, good in zip(self.calls.values(), works, strict=True)]
        return Records(
            np.array(list(self.calls), dtype=np.int64).reshape(len(self.calls), -1),
            works,
            np.array(shapes, dtype=np.int64).reshape(len(shapes), rank),
        )


def _tuples(rows: Numbers) -> list[tuple[int, ...]]:
    return [tuple(row) for row in rows.tolist()]


def record(operator: Operator, generator: np.random.Generator, count: int = 160) -> Recorder:
    """Random calls, and neighbours of those that worked: valid and invalid ones alike."""
    recorder = Recorder(operator, generator)
    for _ in range(8):
        recorder.call(_tuples(recorder.draw(count)))
        if len(recorder.working()) >= 20:
            break
        if recorder.working():  # few work: look around those
            recorder.call(_tuples(recorder.neighbours(np.array(recorder.working() * 8, dtype=np.int64)[: 2 * count])))
    good = recorder.working()
    if good:
        chosen = generator.integers(0, len(good), count)
        recorder.call(_tuples(recorder.neighbours(np.array(good, dtype=np.int64)[chosen])))
    return recorder


# ---------------------------------------------------------------------------------------------------- inference


def infer(operator: Operator, records: Records) -> Rule:
    """The rule that explains these calls."""
    good, bad = records.rows[records.works], records.rows[~records.works]
    symbols = operator.symbols
    shapes = records.shapes[records.works]
    found: list[Expression | None] = []
    for dim in range(shapes.shape[1]):
        target = shapes[:, dim]
        found.append(fit(symbols, _relevant(symbols, good, target), good, target))
    bare = Rule(operator.key, symbols, tuple(found), ())
    if len(good) and len(bad):
        bad = bad[bare.accepts(bad)]  # what has no positive size needs no further reason
    clauses = _conditions(symbols, good, bad) if len(good) and len(bad) else []
    return Rule(operator.key, symbols, tuple(found), tuple(clauses))


def _relevant(symbols: tuple[str, ...], rows: Numbers, target: Numbers) -> list[str]:
    """The symbols that changed the target when they alone were changed."""
    found = []
    for place, name in enumerate(symbols):
        rest = np.delete(rows, place, axis=1)
        order = np.lexsort(rest.T[::-1]) if rest.shape[1] else np.arange(len(rows))
        same = (rest[order][1:] == rest[order][:-1]).all(axis=1)
        if (same & (target[order][1:] != target[order][:-1])).any():
            found.append(name)
    return found


#: Rows among which conditions are searched; what is found is checked on all.
_GOOD, _BAD = 120, 200


def _conditions(symbols: tuple[str, ...], good: Numbers, bad: Numbers) -> list[Clause]:
    """Conditions that all good rows meet and bad rows do not."""
    generator = np.random.default_rng(len(good))
    some = good[generator.permutation(len(good))[:_GOOD]]
    against = bad[generator.permutation(len(bad))[:_BAD]]
    for _ in range(6):
        clauses = _search(symbols, some, against)
        columns = {name: good[:, place] for place, name in enumerate(symbols)}
        fails = [~np.logical_or.reduce([literal.holds(columns) for literal in clause]) for clause in clauses]
        if not any(one.any() for one in fails):
            break
        some = np.concatenate([some, good[np.logical_or.reduce(fails)][:30]])
    return [clause for clause, failing in zip(clauses, fails, strict=True) if not failing.any()]


def _search(symbols: tuple[str, ...], good: Numbers, bad: Numbers) -> list[Clause]:
    """Conditions that all of these good rows meet, chosen one after the other by how many bad rows they rule out."""
    rows = np.concatenate([good, bad])
    split = len(good)
    pool = Pool(symbols, rows)
    pool.grow()
    if len(symbols) <= 8:
        pool.grow(("+", "-", "*", "max"))
    candidates: list[tuple[Mask, int, Clause]] = []  # bad rows ruled out, leaves, the condition
    here, there = pool.values[:, :split], pool.values[:, split:]
    for sign, fine in (("==", here == 0), (">=", here >= 0), (">", here > 0)):
        wrong = there != 0 if sign == "==" else there < 0 if sign == ">=" else there <= 0
        for place in np.flatnonzero(fine.all(axis=1) & wrong.any(axis=1)):
            expression = pool.expression(int(place))
            candidates.append((wrong[place], leaves(expression), (Literal(expression, sign),)))
    # Two expressions that agree on all good rows and not on all bad ones.
    with np.errstate(over="ignore"):
        keys = (here * pool.weights[:split]).sum(axis=1)
    order = np.argsort(keys, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        first, *others = group[:12].tolist()
        for other in others:
            out = there[first] != there[other]
            if out.any():
                one, two = pool.expression(first), pool.expression(other)
                candidates.append((out, leaves(one) + leaves(two), (Literal(("-", one, two), "=="),)))
    everything = np.ones(len(bad), dtype=bool)
    if len(symbols) <= 8:
        candidates += _alternatives(symbols, good, bad, everything)
    chosen, left = _cover(candidates, everything)
    if left.any() and len(symbols) > 8:
        chosen += _cover(list(_alternatives(symbols, good, bad, left)), left)[0]
    return chosen


def _cover(candidates: list[tuple[Mask, int, Clause]], left: Mask) -> tuple[list[Clause], Mask]:
    """Greedily: the condition that rules out most of what is left, for its length."""
    if not candidates:
        return [], left
    out = np.stack([mask for mask, _, _ in candidates])
    sizes = np.array([size for _, size, _ in candidates])
    chosen = []
    while left.any():
        gain = (out & left).sum(axis=1) / sizes**1.5  # several simple reasons are better than one contrived one
        best = int(gain.argmax())
        if gain[best] == 0:
            break
        chosen.append(candidates[best][2])
        left = left & ~out[best]
    return chosen, left


def _alternatives(symbols: tuple[str, ...], good: Numbers, bad: Numbers, left: Mask) -> Iterable[tuple[Mask, int, Clause]]:
    """Two or three equations of which one must hold, as in broadcasting: equal sizes, or one of them 1."""
    simple: list[Literal] = [Literal(("-", name, 1), "==") for name in symbols]
    size = [1] * len(simple) + [2] * (len(symbols) * (len(symbols) - 1) // 2)
    simple += [Literal(("-", one, other), "==") for one, other in combinations(symbols, 2)]
    both = np.concatenate([good, bad[left]])
    columns = {name: both[:, place] for place, name in enumerate(symbols)}
    holds = np.stack([literal.holds(columns) for literal in simple])
    # As bits of a long integer: a disjunction is one operation.
    bits = [int.from_bytes(np.packbits(row).tobytes(), "big") for row in holds[:, : len(good)]]
    full = int.from_bytes(np.packbits(np.ones(len(good), dtype=bool)).tobytes(), "big")
    for count in (2, 3):
        if count == 3 and len(simple) > 60:
            return
        minimal: list[set[int]] = []
        for places in combinations(range(len(simple)), count):
            together = 0
            for place in places:
                together |= bits[place]
            if together == full and not any(known <= set(places) for known in minimal):
                minimal.append(set(places))
                out = np.zeros(len(bad), dtype=bool)
                out[left] = ~holds[list(places), len(good) :].any(axis=0)
                if out.any():
                    yield out, sum(size[place] for place in places), tuple(simple[place] for place in places)


def learn(operator: Operator, seed: int, rounds: int = 5) -> tuple[Rule, Recorder]:
    """Call, infer, doubt and infer again, then measure the rule on fresh calls.

    Args:
        operator: about which.
        seed: of all calls.
        rounds: of doubt, at most.

    Returns:
        the rule, and the calls that it was learnt from.
    """
    generator = np.random.default_rng([seed, *operator.key.encode()])
    recorder = record(operator, generator)
    rule = infer(operator, recorder.records())
    quiet = 0  # rounds without a surprise
    for _ in range(rounds):
        before = len(recorder.calls)
        recorder.call(_doubt(rule, recorder))
        now = recorder.records()
        new = Records(now.rows[before:], now.works[before:], now.shapes[before:])
        if len(new.rows) and _wrong(rule, new):
            rule, quiet = infer(operator, now), 0
        else:
            quiet += 1
        if quiet == 2:
            break
    return _measured(rule, recorder, operator, generator), recorder


def _doubt(rule: Rule, recorder: Recorder, count: int = 1500) -> list[tuple[int, ...]]:
    """Calls that would show the rule wrong: some that it lets through, and for each condition some that break it alone."""
    good = np.array(recorder.working(), dtype=np.int64)
    rows = recorder.draw(count)
    if len(good):
        near = recorder.neighbours(good[recorder.generator.integers(0, len(good), count)])
        rows = np.concatenate([rows, near])
    rows = np.unique(rows, axis=0)
    rows = rows[recorder.generator.permutation(len(rows))]
    broken = rule.broken(rows)
    chosen = [rows[~broken.any(axis=0)][:40]]
    alone = broken.sum(axis=0) == 1
    chosen += [rows[alone & one][:8] for one in broken]
    return _tuples(np.concatenate(chosen))


def _wrong(rule: Rule, records: Records) -> bool:
    """Whether a call came out otherwise than the rule says."""
    if (rule.accepts(records.rows) != records.works).any():
        return True
    works = records.works
    return records.shapes.shape[1] != len(rule.shape) or bool((rule.sizes(records.rows)[works] != records.shapes[works]).any())


def _measured(rule: Rule, recorder: Recorder, operator: Operator, generator: np.random.Generator) -> Rule:
    """The rule with its quality on calls that it was not learnt from."""
    made = set(recorder.calls)
    fresh = Recorder(operator, generator)
    good = np.array(recorder.working(), dtype=np.int64).reshape(-1, len(operator.symbols))
    rows = recorder.draw(150)
    if len(good):
        rows = np.concatenate([rows, recorder.neighbours(good[generator.integers(0, len(good), 150)])])
    fresh.call(row for row in _tuples(rows) if row not in made)
    if not fresh.working():  # so few possible calls that all were made
        fresh.calls |= recorder.calls
    seen = fresh.records()
    accepts = rule.accepts(seen.rows)
    works = seen.works
    same_rank = seen.shapes.shape[1] == len(rule.shape)
    right = (rule.sizes(seen.rows)[works] == seen.shapes[works]).all(axis=1) if same_rank else np.zeros(works.sum(), dtype=bool)
    return Rule(
        rule.operator,
        rule.symbols,
        rule.shape,
        rule.clauses,
        precision=float(works[accepts].mean()) if accepts.any() else 0.0,
        recall=float(accepts[works].mean()) if works.any() else 0.0,
        right_shape=float(right.mean()) if works.any() else 0.0,
        calls=len(recorder.calls),
    )
