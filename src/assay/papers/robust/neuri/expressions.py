"""Arithmetic over whole numbers: a bottom-up list of all small expressions, and a search for larger ones that fit.

An expression is a nested tuple, so that it can be written as JSON: a number, the name of a symbol, or ``(sign, left, right)``.
Two expressions that agree on all recorded calls cannot be told apart by them, so one of them, the smaller, is enough: that
is what keeps the list short (observational equivalence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Expression: TypeAlias = "int | str | tuple[str, Expression, Expression]"
Numbers: TypeAlias = NDArray[np.int64]

#: Left operands that are combined with all right ones at a time.
_ROWS = 256


def _quotient(a: Numbers, b: Numbers) -> Numbers:
    """Rounded down; 0 where the divisor is 0, so that every expression has a value everywhere."""
    return np.where(b == 0, 0, a // np.where(b == 0, 1, b))


def _remainder(a: Numbers, b: Numbers) -> Numbers:
    """With the divisor's sign; the dividend where the divisor is 0."""
    return np.where(b == 0, a, a % np.where(b == 0, 1, b))


SIGNS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "//": _quotient,
    "%": _remainder,
    "min": np.minimum,
    "max": np.maximum,
}
_SYMMETRIC = {"+", "*", "min", "max"}


def evaluate(expression: Expression, symbols: Mapping[str, Numbers]) -> Numbers:
    """The value for every row of the symbols."""
    if isinstance(expression, int):
        return np.full(len(next(iter(symbols.values()))), expression, dtype=np.int64)
    if isinstance(expression, str):
        return symbols[expression]
    sign, left, right = expression
    return SIGNS[sign](evaluate(left, symbols), evaluate(right, symbols))


def text(expression: Expression) -> str:
    """As people write it."""
    if not isinstance(expression, tuple):
        return str(expression)
    sign, left, right = expression
    a, b = text(left), text(right)
    return f"{sign}({a}, {b})" if sign in ("min", "max") else f"({a} {sign} {b})"


def leaves(expression: Expression) -> int:
    """How many numbers and symbols stand in it."""
    return 1 if not isinstance(expression, tuple) else leaves(expression[1]) + leaves(expression[2])


def from_json(value: object) -> Expression:
    """Lists back to tuples."""
    if isinstance(value, list):
        return (str(value[0]), from_json(value[1]), from_json(value[2]))
    assert isinstance(value, int | str)
    return value


@dataclass
class Pool:
    """All expressions up to a size that differ on some row, the smallest first.

    Args:
        symbols: their names.
        rows: (R, len(symbols)) values of the symbols.
        constants: numbers that may stand in expressions.
        signs: operations that may.
    """

    symbols: Sequence[str]
    rows: Numbers
    constants: Sequence[int] = (1, 2)
    signs: Sequence[str] = tuple(SIGNS)
    values: Numbers = field(init=False)  # (E, R)
    keys: Numbers = field(init=False)  # (E,) a linear hash of the values: that of a sum is the sum of the hashes
    sizes: list[int] = field(init=False)  # expressions with up to k leaves come before place sizes[k]
    _made: list[Expression | tuple[str, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(len(self.rows))
        self.weights = generator.integers(-(2**62), 2**62, size=len(self.rows), dtype=np.int64)
        self.values = np.empty((0, len(self.rows)), dtype=np.int64)
        self.keys = np.empty(0, dtype=np.int64)
        self._made, self.sizes = [], [0]
        ones = np.ones(len(self.rows), dtype=np.int64)
        first: list[tuple[Expression, Numbers]] = [(name, self.rows[:, k]) for k, name in enumerate(self.symbols)]
        first += [(number, number * ones) for number in self.constants]
        self._add([made for made, _ in first], np.stack([value for _, value in first]))
        self.sizes.append(len(self._made))

    def key(self, values: Numbers) -> Numbers:
        """The hash of (..., R) values, modulo 2^64."""
        with np.errstate(over="ignore"):
            return np.asarray((values * self.weights).sum(axis=-1))

    def grow(self, signs: Sequence[str] | None = None) -> None:
        """Add the expressions with one leaf more."""
        leaves_wanted = len(self.sizes)
        for left in range(1, leaves_wanted):
            right = leaves_wanted - left
            a, b = self._of_size(left), self._of_size(right)
            for sign in signs or self.signs:
                if sign in _SYMMETRIC and left < right:
                    continue
                for start in range(0, len(a), _ROWS):
                    some = a[start : start + _ROWS]
                    values = SIGNS[sign](self.values[some][:, None], self.values[b][None]).reshape(-1, len(self.rows))
                    self._add([(sign, int(one), int(other)) for one in some for other in b], values)
        self.sizes.append(len(self._made))

    def _of_size(self, size: int) -> NDArray[np.int64]:
        return np.arange(self.sizes[size - 1], self.sizes[size])

    def _add(self, made: Sequence[Expression | tuple[str, int, int]], values: Numbers) -> None:
        keys = self.key(values)
        _, first = np.unique(keys, return_index=True)
        fresh = np.sort(first[~np.isin(keys[first], self.keys)])
        self.values = np.concatenate([self.values, values[fresh]])
        self.keys = np.concatenate([self.keys, keys[fresh]])
        self._made += [made[place] for place in fresh]

    def __len__(self) -> int:
        return len(self._made)

    def expression(self, place: int) -> Expression:
        made = self._made[place]
        if isinstance(made, tuple):
            sign, left, right = made
            assert isinstance(left, int)
            assert isinstance(right, int)
            return (sign, self.expression(left), self.expression(right))
        return made

    def find(self, target: Numbers) -> int | None:
        """The smallest expression with these values (R,)."""
        places = np.flatnonzero(self.keys == self.key(target))
        return int(places[0]) if len(places) else None

    def sums(self, target: Numbers, rows: NDArray[np.bool_], most: int) -> Iterator[Expression]:
        """Expressions ``a``, ``a - b`` and ``a + b`` of the pool that have these values on ``rows``: meeting in the middle.

        Args:
            target: (R,).
            rows: (R,) which rows count.
            most: leaves of ``b``.
        """
        weights = np.where(rows, self.weights, 0)
        with np.errstate(over="ignore"):
            keys = (self.values * weights).sum(axis=1)
            wanted = (target * weights).sum()
        for place in np.flatnonzero(keys == wanted):
            yield self.expression(int(place))
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        others = np.arange(self.sizes[min(most, len(self.sizes) - 1)])
        for sign in ("-", "+"):
            with np.errstate(over="ignore"):
                partner = wanted + keys[others] if sign == "-" else wanted - keys[others]
            first = np.searchsorted(sorted_keys, partner)
            last = np.searchsorted(sorted_keys, partner, side="right")
            for other, low, high in zip(others, first, last, strict=True):
                for place in order[low : min(high, low + 4)]:  # more that agree on these rows are seldom of use
                    yield (sign, self.expression(int(place)), self.expression(int(other)))


def fit(symbols: Sequence[str], relevant: Sequence[str], rows: Numbers, target: Numbers) -> Expression | None:
    """The smallest expression of the symbols found that has the values ``target`` on all rows, or None.

    All symbols up to two leaves, the relevant ones up to four; then sums and differences of two of these, and quotients of
    such by a symbol, whose numerator shows on the rows where the symbol is 1.

    Args:
        symbols: names of the columns.
        relevant: those on which the target was seen to depend.
        rows: (R, len(symbols)).
        target: (R,).
    """
    columns = {name: rows[:, place] for place, name in enumerate(symbols)}

    def fits(expression: Expression) -> bool:
        return bool((evaluate(expression, columns) == target).all())

    if (target == target[0]).all():
        return int(target[0])
    # A search needs no more rows than tell expressions apart; what it finds is checked on all.
    few = np.random.default_rng(0).permutation(len(rows))[:48]
    whole = Pool(symbols, rows[few])
    for _ in range(2):
        place = whole.find(target[few])
        if place is not None and fits(whole.expression(place)):
            return whole.expression(place)
        if len(whole.sizes) == 2:
            whole.grow()
    if not relevant:
        return None
    near = [name for name in symbols if name in set(relevant)]
    pool = Pool(near, rows[few][:, [symbols.index(name) for name in near]])
    pool.grow()
    pool.grow()
    place = pool.find(target[few])
    if place is not None and fits(pool.expression(place)):
        return pool.expression(place)
    pool = Pool(near, pool.rows, signs=("+", "-", "*"))
    for _ in range(3):
        pool.grow()
    everywhere = np.ones(len(few), dtype=bool)
    for tried, found in enumerate(pool.sums(target[few], everywhere, most=3)):
        if fits(found):
            return found
        if tried > 200:
            break
    for name in near:
        ones = columns[name][few] == 1
        if ones.sum() < 4:
            continue
        for shift in (1, 0):
            for tried, numerator in enumerate(pool.sums(target[few] - shift, ones, most=3)):
                quotient: Expression = ("//", numerator, name)
                found = ("+", quotient, shift) if shift else quotient
                if fits(found):
                    return found
                if tried > 3000:
                    break
    return None
