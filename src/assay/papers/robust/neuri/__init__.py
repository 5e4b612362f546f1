"""NeuRI: finding bugs in a deep-learning library with valid random models, whose rules nobody wrote down.

A compiler for networks is wrong where two calls meet in a way that nobody tried. Random models would try it, but a random
model is mostly nonsense: sizes must match, channels must divide, windows must fit. Writing these rules down for every operator
is what fuzzers needed so far. Here they are learnt. Every operator is called with small random sizes and attributes; the
shapes that came out, and what failed, are the examples from which small programs are inferred: an expression for each size of
the result, and conditions that all working calls meet and failing ones do not. Models are put together by solving the rules,
and run eagerly and by whatever compiles; what differs is made small and written down as a file that anybody can run.

The parts, in the order of the data: :mod:`.operators` (calls, and how rounding passes through them), :mod:`.expressions`
(bottom-up enumeration without what observations cannot tell apart, and a search that meets in the middle for long formulas),
:mod:`.learning` (recording, inference, doubt), :mod:`.generating` (insertion behind and before, by rules or by records),
:mod:`.rounding` (how far two right answers may lie apart), :mod:`.backends`, :mod:`.sandbox` and :mod:`.worker` (processes
with limits), :mod:`.minimising` (smaller models, reproducers), :mod:`.fuzzing` (the search), :mod:`.toy` (a compiler with known
bugs). On the command line: ``assay fuzz --seconds 60``.

Source: Liu, Peng, Wang and Zhang, "NeuRI: Diversifying DNN Generation via Inductive Rule Inference", ESEC/FSE 2023. Unlike
there: calls are made at random instead of being recorded from a library's tests; every condition is doubted by calls that
break it alone; sizes are drawn many at a time instead of being asked of an SMT solver; and tolerances follow from the number
format by running error analysis instead of being two constants.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from assay.paper import Above, Cost, Curve, Higher, Reported, Score, claim
from assay.papers.robust.neuri import toy
from assay.papers.robust.neuri.generating import Generator, Kind, single
from assay.papers.robust.neuri.knowledge import Knowledge, learn_all
from assay.papers.robust.neuri.learning import Rule, infer, learn, record
from assay.papers.robust.neuri.models import Input, Model, Node
from assay.papers.robust.neuri.operators import Operator, operators
from assay.papers.robust.neuri.rounding import excess, reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from assay.lab import Lab
    from assay.paper import Measured

__all__ = [
    "Generator",
    "Input",
    "Knowledge",
    "Model",
    "Node",
    "Operator",
    "Rule",
    "excess",
    "infer",
    "learn",
    "learn_all",
    "operators",
    "record",
    "reference",
]


# ------------------------------------------------------------------------------------------------------------ claims


def learnt(keys: list[str], seed: int) -> dict[str, Tensor]:
    """What :func:`learn_all` finds, as bytes, so that claims share it."""
    text = json.dumps(learn_all(keys, seed).as_json()).encode()
    return {"json": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _known(lab: Lab) -> tuple[Knowledge, float]:
    """Rules of all operators (at smoke scale of every ninth), and the seconds that learning them took."""
    keys = list(operators())
    if lab.scale == "smoke":
        keys = keys[::9]
    found = lab.remember(learnt, keys=keys, seed=lab.seed)
    return Knowledge.of_json(json.loads(bytes(found["json"].tolist()))), found["seconds"].item()


#: What the documentation says of sizes and conditions: operator -> (expression in the symbols for each size, conditions).
_WINDOW = "(x0_{d} + 2 * padding - dilation * ({k} - 1) - 1) // stride + 1"
DOCUMENTED = {
    "conv1d": (("x0_0", "x1_0", _WINDOW.format(d=2, k="x1_2")), ("x0_1 == x1_1",)),
    "grouped conv2d": (
        ("x0_0", "x1_0", _WINDOW.format(d=2, k="x1_2"), _WINDOW.format(d=3, k="x1_3")),
        ("x0_1 == x1_1 * groups", "x1_0 % groups == 0"),
    ),
    "conv_transpose1d": (
        ("x0_0", "x1_1", "(x0_2 - 1) * stride - 2 * padding + x1_2 - 1 + extra + 1"),
        ("x0_1 == x1_0", "extra < stride"),
    ),
    "max_pool2d": (
        ("x0_0", "x0_1", _WINDOW.format(d=2, k="kernel"), _WINDOW.format(d=3, k="kernel")),
        ("padding <= kernel // 2", "kernel > 0"),
    ),
    "avg_pool1d": (("x0_0", "x0_1", "(x0_2 + 2 * padding - kernel) // stride + 1"), ("padding <= kernel // 2",)),
    "addmm": (
        ("x1_0", "x2_1"),
        ("x1_1 == x2_0", "(x0_0 == x1_0) | (x0_0 == 1)", "(x0_1 == x2_1) | (x0_1 == 1)"),
    ),
    "bmm": (("x0_0", "x0_1", "x1_2"), ("x0_0 == x1_0", "x0_2 == x1_1")),
    "outer": (("x0_0", "x1_0"), ()),
    "cat of three": (("x0_0", "x0_1 + x1_1 + x2_1"), ("x0_0 == x1_0", "x0_0 == x2_0")),
    "pixel shuffle": (("x0_0", "x0_1 // upscale ** 2", "x0_2 * upscale", "x0_3 * upscale"), ("x0_1 % upscale ** 2 == 0",)),
    "pad by reflection": (("x0_0", "x0_1", "x0_2 + before + after"), ("before < x0_2", "after < x0_2")),
    "repeat": (("x0_0 * a", "x0_1 * b"), ("a > 0", "b > 0")),
    # A subscript that is summed over may have the size 1 in one tensor.
    "einsum": (("x0_0", "x1_0"), ("(x0_1 == x1_1) | (x0_1 == 1) | (x1_1 == 1)",)),
}


def as_documented(rule: Rule, operator: Operator, seed: int, count: int = 2000) -> bool:
    """Whether the rule says of random arguments what the documentation says: the same shape, never yes where it says no, and
    hardly ever no to a call that worked."""
    shape, conditions = DOCUMENTED[operator.name]
    generator = np.random.default_rng(seed)
    rows = np.stack([generator.integers(low, high + 1, count) for low, high in operator.domains], axis=1)
    names = {name: rows[:, place] for place, name in enumerate(operator.symbols)}
    # These are positive wherever a call is valid; what else the documentation says is asked with 1 in the place of 0.
    positive = [name for name in names if name in ("stride", "dilation", "groups", "upscale")]
    safe = names | {name: np.where(names[name] == 0, 1, names[name]) for name in positive}
    accepted = rule.accepts(rows)
    sizes = np.stack([eval(one, {}, safe) for one in shape], axis=1)
    told = [eval(one, {}, safe) for one in conditions] + [names[name] > 0 for name in positive]
    holds = np.logical_and.reduce(told) if told else np.ones(count, dtype=bool)
    same = all(one is not None for one in rule.shape) and len(rule.shape) == len(shape)
    return bool(
        same
        and accepted.any()
        and rule.recall >= 0.95
        and holds[accepted].all()
        and (rule.sizes(rows)[accepted] == sizes[accepted]).all()
    )


def _runs(model: Model) -> bool:
    try:
        with torch.no_grad():
            model.function()(*model.tensors())
    except Exception:  # any error says that the model is invalid
        return False
    return True


_SMALLER = (
    "Shapes and attributes of 92 operators, 428 ways to call them, learnt by random calls, instead of thousands of interfaces "
    "recorded from the tests of PyTorch and TensorFlow."
)


@claim(
    "Of models of eight calls that are put together by learnt rules more than 95 % run, at least half of all models more than of "
    "those whose tensors have the right number of dimensions and nothing else; and of thirteen documented operators at least "
    "twelve have the shape and conditions that the documentation states.",
    expect=(
        Above("learnt rules", 0.95),
        Higher("learnt rules", than="no rules", by=0.5),
        Above("rules as documented", 0.9),
    ),
    scaled_down=_SMALLER,
    unit="share of the models that run; share of the documented rules",
)
def rules_make_models_valid(lab: Lab) -> Measured:
    known, seconds = _known(lab)
    count = lab.pick(smoke=30, laptop=400, full=5000)
    arms: dict[str, float | Curve] = {}
    for arm, kind in _KINDS.items():
        make = Generator(known, lab.seed, kind)
        # A model that could not be given all its calls is none of those that were asked for.
        share = sum(len(model.nodes) == make.calls and _runs(model) for model in (make() for _ in range(count))) / count
        arms[arm] = Score(share, Cost(seconds=seconds)) if kind == "rules" else share
    ops = operators()
    checked = [as_documented(rule, ops[key], lab.seed) for key, rule in known.rules.items() if ops[key].name in DOCUMENTED]
    arms["rules as documented"] = sum(checked) / max(len(checked), 1)
    return arms


_KINDS: dict[str, Kind] = {
    "learnt rules": "rules",
    "rules and records": "hybrid",
    "records alone": "records",
    "no rules": "random",
}


@claim(
    "Once rules are learnt, models by rules and records contain in the same time at least half as many pairs of operators again "
    "as models that are put together from recorded calls alone.",
    expect=Higher("rules and records", than="records alone", times=1.5),
    reported=Reported("branches covered, best fuzzer before = 1, PyTorch", {"rules and records": 1.15}, "abstract"),
    scaled_down=f"{_SMALLER} Pairs of operators instead of branches; two seconds instead of four hours. Nearly every "
    "operator has a trusted rule here, so that records hardly come in beside rules.",
    unit="pairs of operators, one taking the other's result, in models that run",
)
def diversity_per_second(lab: Lab) -> Measured:
    known, _ = _known(lab)
    budget = lab.pick(smoke=0.2, laptop=2.0, full=600.0)
    arms: dict[str, float | Curve] = {}
    for arm, kind in _KINDS.items():
        make, pairs = Generator(known, lab.seed, kind), set[tuple[str, str]]()
        times, counts = [0.0], [0.0]
        began = time.process_time()
        while times[-1] < budget:
            model = make()
            if _runs(model):
                pairs |= model.edges
            times.append(time.process_time() - began)
            counts.append(float(len(pairs)))
        every = max(1, len(times) // 40)
        arms[arm] = Curve(
            [*counts[::every], counts[-1]], [*times[::every], times[-1]], x_name="seconds", y_name="pairs of operators"
        )
    return arms


@claim(
    "In the same time, models of eight calls by rules find at least three more of ten bugs that were planted in a compiler than "
    "calls tested one at a time, and at least one more than models of eight calls without rules.",
    expect=(Higher("models", than="calls one at a time", by=3), Higher("models", than="models without rules", by=1)),
    scaled_down=f"{_SMALLER} Ten planted bugs in a small compiler instead of real ones; eight of the ten need two calls.",
    unit="planted bugs found",
)
def finds_planted_bugs(lab: Lab) -> Measured:
    known, _ = _known(lab)
    budget = lab.pick(smoke=0.3, laptop=5.0, full=120.0)
    generator = np.random.default_rng(lab.seed)
    ops = [operators()[key] for key, calls in known.calls.items() if calls]
    make = Generator(known, lab.seed, "hybrid")
    return {
        "models": _hunt(make, budget),
        "models without rules": _hunt(Generator(known, lab.seed, "random"), budget),
        "calls one at a time": _hunt(lambda: single(known, ops[int(generator.integers(len(ops)))], generator), budget),
    }


def _hunt(make: Callable[[], Model], budget: float) -> Curve:
    """Planted bugs that the oracle sees within so many seconds of processor time."""
    found: set[str] = set()
    times, counts = [0.0], [0.0]
    began = time.process_time()
    while times[-1] < budget:
        model = make()
        found |= _seen(model, [bug for bug in toy.BUGS if bug.name not in found])
        times.append(time.process_time() - began)
        counts.append(float(len(found)))
    every = max(1, len(times) // 40)
    return Curve([*counts[::every], counts[-1]], [*times[::every], times[-1]], x_name="seconds", y_name="planted bugs found")


def _seen(model: Model, bugs: list[toy.Bug]) -> set[str]:
    """Names of the bugs because of which the compiler's results are farther from the right ones than rounding explains; none
    for an invalid model."""
    tensors = model.tensors()
    try:
        with torch.no_grad():
            plain = model.function()(*tensors)
    except Exception:  # invalid; what the compiler raises is not caught, for it takes every valid model
        return set()
    compiled, struck = toy.run(model, tensors, bugs)
    if all(torch.equal(one, other) for one, other in zip(plain, compiled, strict=True)):
        return set()
    if not all(one.numel() for one in plain):
        return set()
    right = reference(model)
    if not right.stable:
        return set()
    # Each by itself: a compiler with one bug.
    return {bug.name for bug in bugs if bug.name in struck and excess(toy.run(model, tensors, [bug])[0], right) > 1}
