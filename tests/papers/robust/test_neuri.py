"""NeuRI: documented rules are learnt back, models are valid, bounds hold and notice, planted bugs are found and made small."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from assay.cli import app
from assay.errors import AssayError
from assay.lab import Lab
from assay.papers.robust import neuri
from assay.papers.robust.neuri import backends, fuzzing, toy
from assay.papers.robust.neuri.expressions import Pool, evaluate, fit, leaves, text
from assay.papers.robust.neuri.generating import Generator
from assay.papers.robust.neuri.knowledge import Knowledge, learn_all
from assay.papers.robust.neuri.learning import learn
from assay.papers.robust.neuri.minimising import minimise, reproducer, smaller
from assay.papers.robust.neuri.models import Input, Model, Node, without
from assay.papers.robust.neuri.operators import Operator, operators
from assay.papers.robust.neuri.rounding import INSIDE, excess, reference, step, unit_roundoff
from assay.papers.robust.neuri.sandbox import Sandbox

# The variance of one entry, which models come by, is no number; torch says so.
pytestmark = pytest.mark.filterwarnings("ignore:var\\(\\)")
BY_NAME = {one.name: one for one in operators().values()}


def key(start: str) -> str:
    (found,) = (one for one in operators() if one.startswith(start))
    return found


@pytest.fixture(scope="module")
def known() -> Knowledge:
    """Every eleventh operator, and those that tests name."""
    keys = list(operators())
    wanted = {key("x0 @ x1 (2, 2)"), key("torch.exp(x0) (2,)"), key("torch.relu(x0) (2,)"), key("x0.clamp(-0.5, 0.6) (2,)")}
    return learn_all([one for place, one in enumerate(keys) if place % 11 == 0 or one in wanted])


# ---- expressions


def test_equal_expressions_are_kept_once():
    rows = np.array([[a, b] for a in range(1, 5) for b in range(1, 5)])
    pool = Pool(("a", "b"), rows)
    pool.grow()
    assert len(np.unique(pool.values, axis=0)) == len(pool)
    texts = [text(pool.expression(place)) for place in range(len(pool))]
    assert {"(a + b)", "(b + a)"} & set(texts)
    assert not {"(a + b)", "(b + a)"} <= set(texts)
    for place in range(len(pool)):
        columns = {"a": rows[:, 0], "b": rows[:, 1]}
        np.testing.assert_array_equal(evaluate(pool.expression(place), columns), pool.values[place])


@pytest.mark.parametrize(
    ("formula", "most"),
    [("h // k", 2), ("(h - k) // s + 1", 4), ("(h + 2 * p - d * (k - 1) - 1) // s + 1", 12), ("(h - 1) * s - 2 * p + k", 9)],
)
def test_formulas_are_found_again(formula, most):
    generator = np.random.default_rng(0)
    names = ("n", "h", "k", "s", "p", "d")
    rows = generator.integers(1, 6, (200, len(names)))
    rows[:, 1] += 6
    columns = dict(zip(names, rows.T, strict=True))
    found = fit(names, [name for name in names if name in formula], rows, eval(formula, {}, columns))
    assert found is not None
    assert leaves(found) <= most
    fresh = dict(zip(names, generator.integers(1, 12, (6, 500)), strict=True))
    fresh["h"] = fresh["h"] + 40
    np.testing.assert_array_equal(evaluate(found, fresh), eval(formula, {}, fresh))


def test_what_is_no_function_of_the_symbols_is_not_found():
    rows = np.array([[1, 2]] * 20 + [[2, 3]] * 20)
    assert fit(("a", "b"), ["a"], rows, np.arange(40)) is None


# ---- rules


@pytest.mark.parametrize("name", list(neuri.DOCUMENTED))
def test_rules_say_what_the_documentation_says(name):
    rule, _ = learn(BY_NAME[name], seed=1)
    assert rule.trusted
    assert neuri.as_documented(rule, BY_NAME[name], seed=2)


def test_a_wrong_rule_is_not_as_documented():
    rule, _ = learn(BY_NAME["bmm"], seed=0)
    assert not neuri.as_documented(neuri.Rule(rule.operator, rule.symbols, rule.shape, (), recall=1.0), BY_NAME["bmm"], 0)
    turned = (rule.shape[0], rule.shape[2], rule.shape[1])
    wrong = neuri.Rule(rule.operator, rule.symbols, turned, rule.clauses, recall=1.0)
    assert not neuri.as_documented(wrong, BY_NAME["bmm"], 0)


def test_a_rule_without_one_of_its_conditions_is_not_as_documented():
    """Broadcasting of what is added, and a stride of 0, are documented too."""
    for name, words in (("addmm", "x0_0"), ("conv1d", "stride"), ("conv1d", "dilation")):
        rule, _ = learn(BY_NAME[name], seed=1)
        fewer = tuple(clause for clause in rule.clauses if words not in " or ".join(map(str, clause)))
        assert len(fewer) < len(rule.clauses)
        assert not neuri.as_documented(replace(rule, clauses=fewer), BY_NAME[name], seed=2)


@pytest.mark.parametrize(
    ("start", "valid", "invalid"),
    [
        ("x0 + x1 (2, 2)", [(3, 4, 3, 4), (3, 4, 1, 4), (1, 4, 3, 1)], [(3, 4, 2, 4), (3, 4, 4, 3)]),
        ("x0.reshape(a, b) (2,)", [(3, 4, 6, 2), (2, 2, 4, 1)], [(3, 4, 5, 2), (2, 2, 3, 1)]),
        ("x0.expand(a, b) (2,)", [(1, 3, 5, 3), (2, 1, 2, 4)], [(2, 3, 4, 3), (2, 3, 2, 6)]),
        ("torch.cat([x0, x1], 1) (2, 2)", [(3, 1, 3, 5)], [(3, 1, 2, 1)]),
    ],
)
def test_conditions(start, valid, invalid):
    rule, _ = learn(operators()[key(start)], seed=0)
    assert rule.accepts(np.array(valid)).all()
    assert not rule.accepts(np.array(invalid)).any()


def test_rules_survive_json(known):
    again = Knowledge.of_json(json.loads(json.dumps(known.as_json())))
    assert again.as_json() == known.as_json()
    assert known.trusted > 0.97


# ---- models


@pytest.mark.parametrize("kind", ["hybrid", "rules", "records"])
def test_models_run_with_the_shapes_that_the_rules_say(known, kind):
    make = Generator(known, seed=3, kind=kind, calls=6)
    models = [make() for _ in range(60)]
    good = [model for model in models if neuri._runs(model)]
    assert len(good) >= 58
    assert sum(len(model.nodes) == 6 for model in models) >= (50 if kind == "records" else 60)
    assert all(0 <= operand < len(m.inputs) + k for m in models for k, n in enumerate(m.nodes) for operand in n.operands)
    for model in good[:10]:
        again = Model.of_json(json.loads(str(model)))
        assert again == model
        for one, other in zip(model.function()(*model.tensors()), again.module()(*again.tensors()), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_models_without_rules_mostly_fail(known):
    make = Generator(known, seed=3, kind="random")
    assert sum(neuri._runs(make()) for _ in range(60)) < 40


def test_part_of_a_model():
    model = Model(
        (Input((2, 3)), Input((3,)), Input((5,))),
        (Node(key("x0 + x1 (2, 1)"), (0, 1)), Node(key("torch.exp(x0) (1,)"), (2,)), Node(key("torch.relu(x0) (2,)"), (3,))),
    )
    assert model.outputs == (4, 5)
    assert model.edges == {("add", "relu")}
    part = without(model, [2])
    assert part.source().splitlines()[1:] == ["    v2 = v0 + v1", "    v3 = torch.relu(v2)", "    return (v3,)"]
    assert all(len(one.nodes) < 3 or one.inputs != model.inputs for one in smaller(model))


# ---- rounding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bounds_hold_for_eager_results_and_are_not_far_above(known, dtype):
    make = Generator(known, seed=5, calls=4, dtype=dtype)
    ratios = []
    for _ in range(60):
        model = make()
        if neuri._runs(model):
            right = reference(model)
            if right.stable:
                ratios.append(excess(model.function()(*model.tensors()), right))
    assert len(ratios) > (15 if dtype == "float32" else 8)
    assert max(ratios) < 1
    assert np.median([one for one in ratios if one > 0]) > 0.01


def test_bound_of_a_dot_product_is_the_textbooks():
    """|error| <= gamma_n |a| |b| (Higham), n + a constant roundings here."""
    a, b = torch.randn(1, 50, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    node, unit = Node(key("x0 @ x1 (2, 2)"), (0, 1)), unit_roundoff("float32")
    value, bound = step(node, [a, b], [torch.zeros_like(a), torch.zeros_like(b)], unit)
    wanted = (100 + INSIDE) * unit * (2 * a.abs() @ b.abs() + value.abs())
    torch.testing.assert_close(bound, wanted)
    # Errors of the inputs come through with the other factor.
    _, moved = step(node, [a, b], [torch.full_like(a, 1e-3), torch.zeros_like(b)], 0.0)
    torch.testing.assert_close(moved, 1e-3 * b.abs().sum(dim=0, keepdim=True))


def test_a_small_mistake_is_beyond_the_bound(known):
    """A relative error of 1e-4 in one entry, 1,000 units in the last place, is noticed."""
    model = Model((Input((4, 4), 0.5, 1.5), Input((4, 4), 0.5, 1.5)), (Node(key("x0 @ x1 (2, 2)"), (0, 1)),), seed=1)
    right = reference(model)
    (result,) = model.function()(*model.tensors())
    assert excess((result,), right) < 0.5
    result = result.clone()
    result[1, 2] *= 1 + 1e-4
    assert excess((result,), right) > 5
    assert excess((result.t()[:2],), right) == float("inf")
    assert excess((result * float("nan"),), right) == float("inf")


def test_smallest_numbers_are_rounded_to_multiples_of_the_smallest():
    """exp(-17 ... -1) in float16, whose smallest number is 6e-8: what eager returns is right, and for small numbers coarse."""
    model = Model((Input((400,), -17.0, -1.0),), (Node(key("torch.exp(x0) (1,)"), (0,)),), dtype="float16")
    right = reference(model)
    assert right.stable
    assert excess(tuple(output.half() for output in right.outputs), right) < 1
    assert excess(model.function()(*model.tensors()), right) < 1


def test_meaningless_results_are_left_out():
    """1 / (x - x): a bound larger than the result."""
    twice = Node(key("x0 - x1 (1, 1)"), (0, 0))
    model = Model((Input((3,), 0.5, 1.5),), (twice, Node(key("torch.reciprocal(x0) (1,)"), (1,))))
    assert not reference(model).stable


# ---- backends, planted bugs, making smaller


def test_of_nothing_nothing_is_said() -> None:
    model = Model((Input((0, 3)),), (Node(key("torch.exp(x0) (2,)"), (0,)),))
    assert not reference(model).stable


def test_backends_agree_on_a_model(known):
    model = Model((Input((2, 3)), Input((3, 2))), (Node(key("x0 @ x1 (2, 2)"), (0, 1)), Node(key("torch.exp(x0) (2,)"), (2,))))
    right = reference(model)
    for name in ("eager", "fx", "trace", "export"):
        assert excess(backends.run(name, model, model.tensors()), right) < 1


def test_toy_compiler_without_bugs_is_right(known):
    make = Generator(known, seed=9)
    for _ in range(30):
        model = make()
        if neuri._runs(model):
            outputs, struck = toy.run(model, model.tensors(), [])
            assert not struck
            for one, other in zip(outputs, model.function()(*model.tensors()), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


RELU_CLAMP = Model(
    (Input((4, 3), 0.5, 1.5), Input((3, 2))),
    (
        Node(key("torch.exp(x0) (2,)"), (0,)),
        Node(key("torch.relu(x0) (2,)"), (2,)),
        Node(key("x0.clamp(-0.5, 0.6) (2,)"), (3,)),
        Node(key("x0 @ x1 (2, 2)"), (4, 1)),
    ),
)


def test_planted_bug_is_seen_and_its_model_made_small():
    bug = toy.BUGS[0]
    assert neuri._seen(RELU_CLAMP, toy.BUGS) == {bug.name}

    def still(model: Model) -> bool:
        return neuri._runs(model) and bug.name in neuri._seen(model, [bug])

    small = minimise(RELU_CLAMP, still, lambda: True)
    assert [node.op.name for node in small.nodes] == ["relu", "clamp"]
    assert sum(np.prod(one.shape) for one in small.inputs) == 1


def planted() -> dict[str, Model]:
    """For every planted bug a model that shows it."""

    def model(*nodes: tuple[str, tuple[int, ...], dict[str, int]], inputs: tuple[tuple[int, ...], ...]) -> Model:
        calls = tuple(Node(key(start), operands, tuple(more.items())) for start, operands, more in nodes)
        return Model(tuple(Input(shape, 0.5, 1.5) for shape in inputs), calls)

    none: dict[str, int] = {}
    pooling = {"kernel": 2, "stride": 1, "padding": 1}
    shown = [
        RELU_CLAMP,
        model(("torch.cat([x0, x1], 0) (2, 2)", (0, 1), none), ("x0 + x1 (2, 1)", (3, 2), none), inputs=((2, 3), (1, 3), (3,))),
        model(("x0.permute(1, 0)", (0,), none), ("x0 @ x1 (2, 2)", (2, 1), none), inputs=((2, 3), (2, 2))),
        model(("x0.flip(1) (2,)", (0,), none), ("torch.softmax(x0, 1) (2,)", (1,), none), inputs=((2, 3),)),
        model(
            ("x0.narrow(1, start, length) (2,)", (0,), {"start": 1, "length": 2}),
            ("x0.mean(dim=1, keepdim=False) (2,)", (1,), none),
            inputs=((2, 4),),
        ),
        model(
            ("x0.expand(a, b) (2,)", (0,), {"a": 3, "b": 4}),
            ("x0.sum(dim=1, keepdim=False) (2,)", (1,), none),
            inputs=((3, 1),),
        ),
        model(("x0 - x1 (2, 2)", (0, 1), none), ("torch.exp(x0) (2,)", (2,), none), inputs=((2, 3), (2, 3))),
        model(("-x0 (2,)", (0,), none), ("x0.amax(dim=1, keepdim=False) (2,)", (1,), none), inputs=((2, 3),)),
        model(("-x0 (3,)", (0,), none), ("F.max_pool1d", (1,), pooling | {"dilation": 1}), inputs=((1, 1, 4),)),
        model(("F.avg_pool2d", (0,), pooling), inputs=((1, 1, 4, 4),)),
    ]
    return {bug.name: one for bug, one in zip(toy.BUGS, shown, strict=True)}


def _value(model: Model, place: int) -> torch.Tensor:
    """An input, or the result of a call."""
    if place < len(model.inputs):
        return model.tensors()[place]
    part = without(model, [place - len(model.inputs)])
    return part.function()(*part.tensors())[0]


@pytest.mark.parametrize("bug", toy.BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_can_be_seen(bug: toy.Bug):
    model = planted()[bug.name]
    assert neuri._seen(model, toy.BUGS) == {bug.name}
    if bug.behind:  # it takes two calls: the last one alone is right
        last = model.nodes[-1]
        alone = {operand: place for place, operand in enumerate(dict.fromkeys(last.operands))}
        shapes = [tuple(_value(model, operand).shape) for operand in alone]
        node = replace(last, operands=tuple(alone[operand] for operand in last.operands))
        assert not neuri._seen(Model(tuple(Input(shape, 0.5, 1.5) for shape in shapes), (node,)), toy.BUGS)


def test_reproducer_runs_alone(tmp_path: Path):
    good = tmp_path / "good.py"
    good.write_text(reproducer(RELU_CLAMP, "fx", "nothing is wrong"))
    bad = tmp_path / "bad.py"
    bad.write_text(
        good.read_text()
        .replace("results = torch.fx", "results = [3 * one for one in torch.fx")
        .replace("(*tensors)\n    except", "(*tensors)]\n    except")
    )
    assert "assay" not in good.read_text()
    for place, code in ((good, 0), (bad, 1)):
        done = subprocess.run([sys.executable, "-I", place], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr


def test_sandbox_tells_what_took_the_process_down(monkeypatch: pytest.MonkeyPatch):
    """Stand-ins for torch: an operator that ends the process, one that does not end, one that raises when traced."""
    fine = Node(key("torch.relu(x0) (2,)"), (0,))
    with Sandbox(timeout=240) as sandbox:
        model = Model((Input((2, 2)),), (fine,))
        (same,) = sandbox.check(model, ["fx"])
        assert (same.kind, same.excess) == ("same", 0.0)
        (invalid,) = sandbox.check(Model((Input((2, 2)), Input((3, 2))), (Node(key("x0 @ x1 (2, 2)"), (0, 1)),)), ["fx"])
        assert invalid.kind == "invalid"
        assert sandbox.valid([model, model]) == 1
        assert sandbox._process is not None
        sandbox._process.kill()
        sandbox._process.wait()
        (again,) = sandbox.check(model, ["fx"])  # started again
        assert again.kind == "same"
        sandbox.timeout = 0.0
        (slow,) = sandbox.check(model, ["export"])
        assert slow.kind == "hangs"
        assert slow.differs


# ---- the command


def test_fuzz_says_what_it_cannot_do(home: Path):
    with pytest.raises(AssayError, match="no backend 'gpu'"):
        fuzzing.fuzz(1, backends=["gpu"])
    with pytest.raises(AssayError, match="no number format 'int8'"):
        fuzzing.fuzz(1, dtype="int8")


def test_fuzz_without_a_compiler_says_so(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(AssayError, match=r"no C\+\+ compiler"):
        fuzzing.fuzz(1, backends=["compile"])


def test_fuzz_command(home: Path, known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(fuzzing, "knowledge", lambda report: (known, 0.0))
    options = ["fuzz", "--seconds", "1", "--backends", "fx,trace", "--out", str(tmp_path / "found")]
    done = CliRunner().invoke(app, [*options, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["models"] > 0
    assert said["valid rate with rules"] > 0.95 > said["valid rate without"]
    assert said["differences"] == []
    assert set(said["backends"]) == {"fx", "trace"}


def test_fuzz_finds_minimises_and_writes(home: Path, known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With the buggy compiler in the place of a backend; candidates run in this process."""
    from assay.papers.robust.neuri import worker

    class Here(Sandbox):
        def check(self, model, names):
            rows = []
            worker.check(model, list(names), rows.append)
            return [fuzzing.Outcome(**row) for row in rows if "backend" in row]

        def valid(self, models):
            return 1.0

    some = [one for one in known.rules if operators()[one].name in ("relu", "clamp", "exp")]
    only = Knowledge({one: known.rules[one] for one in some}, {one: known.calls[one] for one in some})
    monkeypatch.setattr(fuzzing, "knowledge", lambda report: (only, 0.0))
    monkeypatch.setattr(fuzzing, "Sandbox", Here)
    ticks = count()  # a hundred to a second: as many models on a slow machine as on a fast one
    monkeypatch.setattr(fuzzing, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100))
    monkeypatch.setitem(backends.BACKENDS, "fx", lambda model, tensors: toy.run(model, tensors, toy.BUGS[:1])[0])
    report = fuzzing.fuzz(1.5, backends=["fx"], calls=5, out=tmp_path)
    assert report.differences
    first = report.differences[0]
    assert first.kind == "wrong"
    assert first.operators in (["relu", "clamp"], ["exp", "clamp"])
    assert Path(first.file).is_file()


def test_operators_do_what_their_names_say():
    """Keys are what rules are kept under: none twice, and every call can be written out with other names."""
    made = operators()
    assert len({(one.call, one.ranks) for one in made.values()}) == len(made)
    for one in made.values():
        assert isinstance(one, Operator)
        node = Node(one.key, tuple(range(len(one.ranks))), tuple((name, 1) for name, _, _ in one.attributes))
        source = Model(tuple(Input((2,) * rank) for rank in one.ranks), (node,)).source()
        assert not any(f"x{place}" in source for place in range(3)), source
        compile(source, "<source>", "exec")


def test_keyword_arguments_keep_their_names():
    node = Node(key("F.conv1d(x0, x1, stride"), (0, 1), (("stride", 2), ("padding", 1), ("dilation", 3)))
    model = Model((Input((1, 2, 9)), Input((3, 2, 2))), (node,))
    assert "F.conv1d(v0, v1, stride=2, padding=1, dilation=3)" in model.source()
    a, b = model.tensors()
    torch.testing.assert_close(model.function()(a, b)[0], F.conv1d(a, b, stride=2, padding=1, dilation=3))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the claims find the rules that the first of them learnt."""
    return tmp_path_factory.mktemp("trained")


@pytest.mark.parametrize("claim", [neuri.rules_make_models_valid, neuri.diversity_per_second, neuri.finds_planted_bugs])
def test_claims_at_smoke_scale(claim, kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: kept)
    arms = claim(Lab(scale="smoke"))
    assert {name for one in claim.expect for name in (one.arm, getattr(one, "than", one.arm))} <= set(arms)
