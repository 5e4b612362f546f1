"""Building models that are valid: calls are inserted whose rules hold, by solving for sizes and attributes.

A call can be put behind the model (it takes tensors that are there, or new inputs) or before it (its result takes the place of
an input). What the rules leave open is drawn many times at once, equations are solved for whatever stands alone in them, and
the first draw that meets all conditions is taken. Where an operator has no trusted rule, a recorded call is used as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from assay.papers.robust.neuri.expressions import Numbers, evaluate
from assay.papers.robust.neuri.knowledge import ENTRIES, Knowledge
from assay.papers.robust.neuri.learning import Rule
from assay.papers.robust.neuri.models import Input, Model, Node
from assay.papers.robust.neuri.operators import Operator, operators

Kind = Literal["hybrid", "rules", "records", "random"]

#: Draws of what a rule leaves open.
_DRAWS = 192


@dataclass
class Draft:
    """A model in the making: shapes of all its values; -1 where a size is not known."""

    inputs: list[tuple[int, ...]] = field(default_factory=list)
    nodes: list[tuple[str, list[tuple[str, int]], tuple[tuple[str, int], ...]]] = field(default_factory=list)
    shapes: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)  # input -> call that took its place

    def add_input(self, shape: tuple[int, ...]) -> tuple[str, int]:
        self.inputs.append(shape)
        self.shapes["input", len(self.inputs) - 1] = shape
        return "input", len(self.inputs) - 1

    def add_call(
        self, key: str, operands: list[tuple[str, int]], attributes: tuple[tuple[str, int], ...], shape: tuple[int, ...]
    ) -> int:
        self.nodes.append((key, operands, attributes))
        self.shapes["call", len(self.nodes) - 1] = shape
        return len(self.nodes) - 1

    def finished(self, generator: np.random.Generator, dtype: str) -> Model:
        """The model, with its calls in an order in which they can be made."""
        order: list[int] = []
        seen: set[int] = set()

        def visit(call: int) -> None:
            if call in seen:
                return
            seen.add(call)
            for operand in self.nodes[call][1]:
                kind, place = self._real(operand)
                if kind == "call":
                    visit(place)
            order.append(call)

        for call in range(len(self.nodes)):
            visit(call)
        used = sorted({self._real(o)[1] for c in order for o in self.nodes[c][1] if self._real(o)[0] == "input"})
        place_of = {("input", old): new for new, old in enumerate(used)}
        place_of |= {("call", call): len(used) + place for place, call in enumerate(order)}
        nodes = []
        for call in order:
            key, operands, attributes = self.nodes[call]
            nodes.append(Node(key, tuple(place_of[self._real(operand)] for operand in operands), attributes))
        inputs = [Input(self.inputs[old], *_range(generator)) for old in used]
        return Model(tuple(inputs), tuple(nodes), int(generator.integers(2**31)), dtype)

    def _real(self, value: tuple[str, int]) -> tuple[str, int]:
        kind, place = value
        return ("call", self.replaced[place]) if kind == "input" and place in self.replaced else value


class Generator:
    """Makes models.

    Args:
        knowledge: what was learnt.
        seed: of everything random.
        kind: ``"hybrid"``: rules where they are trusted, else recorded calls, both forwards and backwards; ``"rules"``: these
            alone; ``"records"``: recorded calls alone; ``"random"``: any tensor with the right number of dimensions and any
            attributes, as one would without knowing anything.
        calls: how many calls a model has.
        dtype: the number format of its inputs.
    """

    def __init__(
        self, knowledge: Knowledge, seed: int = 0, kind: Kind = "hybrid", calls: int = 8, dtype: str = "float32"
    ) -> None:
        self.knowledge, self.kind, self.calls, self.dtype = knowledge, kind, calls, dtype
        self.generator = np.random.default_rng(seed)
        self.ruled = [operators()[key] for key, rule in knowledge.rules.items() if rule.trusted]
        self.recorded = [operators()[key] for key, calls_ in knowledge.calls.items() if calls_]
        self.unruled = [one for one in self.recorded if not knowledge.rules[one.key].trusted]

    def __call__(self) -> Model:
        """One model."""
        draft = Draft()
        for _ in range(40 * self.calls):
            if len(draft.nodes) == self.calls:
                break
            self._insert(draft)
        return draft.finished(self.generator, self.dtype)

    def _insert(self, draft: Draft) -> bool:
        if self.kind == "random":
            return self._blindly(draft, self._any(self.recorded))
        if self.kind == "records":
            return self._recorded(draft, self._any(self.recorded))
        # As often as there are operators of the kind.
        if self.kind == "hybrid" and self.generator.random() * (len(self.ruled) + len(self.unruled)) < len(self.unruled):
            return self._recorded(draft, self._any(self.unruled))
        backwards = bool(draft.nodes) and self.generator.random() < 0.25
        return self._before(draft, self._any(self.ruled)) if backwards else self._behind(draft, self._any(self.ruled))

    def _any(self, among: list[Operator]) -> Operator:
        return among[int(self.generator.integers(len(among)))]

    def _values(self, draft: Draft, rank: int) -> list[tuple[str, int]]:
        return [value for value, shape in draft.shapes.items() if len(shape) == rank]

    # ---- by rules

    def _behind(self, draft: Draft, operator: Operator) -> bool:
        """Put a call behind tensors that are there; at least one of them, if there are any."""
        operands: list[tuple[str, int] | None] = []
        for rank in operator.ranks:
            there = self._values(draft, rank)
            take = there and self.generator.random() < 0.75
            operands.append(there[int(self.generator.integers(len(there)))] if take else None)
        if draft.nodes and not any(operand is not None for operand in operands):
            return False
        known: list[int | None] = []
        for operand, rank in zip(operands, operator.ranks, strict=True):
            known += [None] * rank if operand is None else list(draft.shapes[operand])
        found = self._solve(operator, [*known, *[None] * len(operator.attributes)], None)
        if found is None:
            return False
        row, shape = found
        shapes, attributes = operator.split(row)
        real = [draft.add_input(size) if operand is None else operand for operand, size in zip(operands, shapes, strict=True)]
        draft.add_call(operator.key, real, tuple(attributes.items()), shape)
        return True

    def _before(self, draft: Draft, operator: Operator) -> bool:
        """Let the result of a call on new inputs take the place of an input."""
        rank = len(self.knowledge.rules[operator.key].shape)
        free = [place for kind, place in self._values(draft, rank) if kind == "input" and place not in draft.replaced]
        if not free:
            return False
        place = free[int(self.generator.integers(len(free)))]
        found = self._solve(operator, [None] * len(operator.symbols), draft.inputs[place])
        if found is None:
            return False
        row, shape = found
        shapes, attributes = operator.split(row)
        operands = [draft.add_input(size) for size in shapes]
        draft.replaced[place] = draft.add_call(operator.key, operands, tuple(attributes.items()), shape)
        return True

    def _solve(
        self, operator: Operator, known: list[int | None], wanted: tuple[int, ...] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Values of the symbols that meet the rule, and the shape of the result; None if no draw does.

        Args:
            operator: with a trusted rule.
            known: value of each symbol, None where it is free.
            wanted: the shape that the result must have, if any will not do.
        """
        rule = self.knowledge.rules[operator.key]
        rows = np.empty((_DRAWS, len(known)), dtype=np.int64)
        free = [place for place, value in enumerate(known) if value is None]
        for place, (low, high) in enumerate(operator.domains):
            value = known[place]
            if value is not None:
                rows[:, place] = value
                continue
            rows[:, place] = self.generator.integers(low, high + 1, _DRAWS)
            others = list(wanted or ()) + [one for one in known if one is not None]
            if others:  # sizes often have to agree with some that are there
                copies = self.generator.random(_DRAWS) < 0.5
                rows[:, place] = np.where(copies, self.generator.choice(others, _DRAWS), rows[:, place])
        self._equations(rule, rows, {rule.symbols[place]: place for place in free}, wanted)
        sizes = rule.sizes(rows)
        good = rule.accepts(rows) & (sizes.prod(axis=1) <= ENTRIES) & (rows[:, : sum(operator.ranks)] > 0).all(axis=1)
        start = 0
        for rank in operator.ranks:
            good &= rows[:, start : start + rank].prod(axis=1) <= ENTRIES
            start += rank
        for place in range(sum(operator.ranks), len(known)):  # attributes stay where they were tried; sizes may be larger
            low, high = operator.domains[place]
            good &= (rows[:, place] >= low) & (rows[:, place] <= high)
        if wanted is not None:
            good &= (sizes == np.array(wanted)).all(axis=1)
        places = np.flatnonzero(good)
        if not len(places):
            return None
        chosen_row = int(places[0])
        return tuple(rows[chosen_row].tolist()), tuple(sizes[chosen_row].tolist())

    def _equations(self, rule: Rule, rows: Numbers, free: dict[str, int], wanted: tuple[int, ...] | None) -> None:
        """Set free symbols that stand alone on one side of an equation to the other side, in most of the draws."""
        sides = []
        for clause in rule.clauses:
            for literal in clause:
                inner = literal.expression
                if literal.sign == "==" and isinstance(inner, tuple) and inner[0] == "-":
                    sides += [(inner[1], inner[2]), (inner[2], inner[1])]
        if wanted is not None:
            sides += [(one, size) for one, size in zip(rule.shape, wanted, strict=True) if one is not None]
        for side, other in sides:
            if isinstance(side, str) and side in free:
                value = evaluate(other, rule.columns(rows))
                take = self.generator.random(len(rows)) < 0.8
                rows[:, free[side]] = np.where(take, value, rows[:, free[side]])

    # ---- by records, and blindly

    def _recorded(self, draft: Draft, operator: Operator) -> bool:
        """A recorded call whose shapes fit tensors that are there, new inputs for the rest."""
        calls, known = self.knowledge.calls[operator.key], set(draft.shapes.values())
        for place in self.generator.permutation(len(calls)):
            row, shape = calls[place]
            shapes, attributes = operator.split(row)
            if not draft.nodes or any(size in known for size in shapes):
                break
        else:
            return False
        operands: list[tuple[str, int] | None] = []
        for size in shapes:
            there = [value for value, other in draft.shapes.items() if other == size]
            operands.append(there[int(self.generator.integers(len(there)))] if there else None)
        real = [draft.add_input(size) if operand is None else operand for operand, size in zip(operands, shapes, strict=True)]
        draft.add_call(operator.key, real, tuple(attributes.items()), shape)
        return True

    def _blindly(self, draft: Draft, operator: Operator) -> bool:
        rank = len(self.knowledge.calls[operator.key][0][1])
        operands = []
        for wanted in operator.ranks:
            there = self._values(draft, wanted)
            if there and self.generator.random() < 0.75:
                operands.append(there[int(self.generator.integers(len(there)))])
            else:
                operands.append(draft.add_input(tuple(self.generator.integers(1, 7, wanted).tolist())))
        attributes = tuple((name, int(self.generator.integers(low, high + 1))) for name, low, high in operator.attributes)
        draft.add_call(operator.key, operands, attributes, (-1,) * rank)
        return True


def single(knowledge: Knowledge, operator: Operator, generator: np.random.Generator, dtype: str = "float32") -> Model:
    """One recorded call as a model of its own: testing operators one at a time."""
    calls = knowledge.calls[operator.key]
    row, _ = calls[int(generator.integers(len(calls)))]
    shapes, attributes = operator.split(row)
    inputs = tuple(Input(shape, *_range(generator)) for shape in shapes)
    node = Node(operator.key, tuple(range(len(shapes))), tuple(attributes.items()))
    return Model(inputs, (node,), int(generator.integers(2**31)), dtype)


def redrawn(model: Model, generator: np.random.Generator) -> Model:
    """The same calls with other entries, for models whose entries made no sense."""
    inputs = tuple(Input(one.shape, *_range(generator)) for one in model.inputs)
    return replace(model, inputs=inputs, seed=int(generator.integers(2**31)))


def _range(generator: np.random.Generator) -> tuple[float, float]:
    """Half of the inputs are positive, so that logarithms and quotients make sense somewhere."""
    return (0.5, 1.5) if generator.random() < 0.5 else (-1.0, 1.0)
