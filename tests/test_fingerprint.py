"""Fingerprints differ when the work does, and only then."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from assay import fingerprint as marks
from assay.data import Dataset, load
from assay.errors import AssayError
from assay.lab.memory import recipe_fingerprint
from assay.nn import mlp
from assay.recipe import Recipe
from assay.train.schedules import cosine, linear

BASE = '''
"""A module of somebody's own."""
import math
import torch
from torch import nn
from torch.nn import functional as F

SCALE = 2.0


def helper(x):
    return x * SCALE


def loss(logits, labels):
    # what it does
    return F.cross_entropy(helper(logits), labels)


class Net(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x)


def unrelated():
    return math.pi
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a version of the module and import it afresh."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(text: str):
        (tmp_path / "theirs.py").write_text(text)
        sys.modules.pop("theirs", None)
        importlib.invalidate_caches()
        for cached in (marks._read, marks._origin, marks._first_party):
            cached.cache_clear()
        return importlib.import_module("theirs")

    yield make
    sys.modules.pop("theirs", None)
    for cached in (marks._read, marks._origin, marks._first_party):
        cached.cache_clear()


SAME = {
    "a comment": ("# what it does", "# what it really does"),
    "a docstring": ('"""Two layers."""', '"""Two layers, I say."""'),
    "layout": ("def helper(x):", "\n\n\ndef helper(\n    x,\n):"),
    "an annotation": ("def helper(x):", "def helper(x: torch.Tensor) -> torch.Tensor:"),
    "an unrelated function": ("return math.pi", "return math.e"),
}
OTHER = {
    "the loss": ("F.cross_entropy(helper(logits), labels)", "F.cross_entropy(helper(logits), labels, label_smoothing=0.1)"),
    "what the loss calls": ("return x * SCALE", "return x / SCALE"),
    "a constant it uses": ("SCALE = 2.0", "SCALE = 3.0"),
    "the network": ("nn.Linear(8, 2)", "nn.Linear(8, 2, bias=False)"),
}


def mark(module, data: Dataset) -> str:
    return recipe_fingerprint(Recipe(data, model=module.Net, loss=module.loss), 0, torch.device("cpu"))


@pytest.mark.parametrize("change", SAME)
def test_what_cannot_change_the_result_does_not_count(write, table: Dataset, change: str) -> None:
    before = mark(write(BASE), table)
    assert mark(write(BASE.replace(*SAME[change])), table) == before


@pytest.mark.parametrize("change", OTHER)
def test_what_can_change_the_result_counts(write, table: Dataset, change: str) -> None:
    before = mark(write(BASE), table)
    old, new = OTHER[change]
    assert old in BASE
    assert mark(write(BASE.replace(old, new)), table) != before


def test_every_field_of_a_recipe_counts(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2))
    variants = [
        plain,
        plain.replace(model=partial(mlp, 8, 2, (16,))),
        plain.replace(optimizer=partial(torch.optim.SGD, lr=0.1)),
        plain.replace(optimizer=partial(torch.optim.AdamW, lr=0.1)),
        plain.replace(schedule=cosine),
        plain.replace(schedule=linear),
        plain.replace(schedule=partial(linear, final=0.5)),
        plain.replace(epochs=11),
        plain.replace(batch_size=64),
        plain.replace(precision="bfloat16"),
        plain.replace(shuffle=False),
        plain.replace(data=table.flip_labels(0.2, seed=0)),
        plain.replace(data=table.flip_labels(0.2, seed=1)),
        plain.replace(data=table.flip_labels(0.3, seed=0)),
    ]
    marks_of = [recipe_fingerprint(recipe, 0, torch.device("cpu")) for recipe in variants]
    marks_of += [recipe_fingerprint(plain, 1, torch.device("cpu"))]
    assert len(set(marks_of)) == len(marks_of)


def test_another_torch_is_another_training(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2))
    before = recipe_fingerprint(plain, 0, torch.device("cpu"))
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert recipe_fingerprint(plain, 0, torch.device("cpu")) != before


def test_values_closures_and_lambdas() -> None:
    def scaled(factor: float):
        return lambda x: x * factor

    same = {marks.fingerprint(scaled(2.0)) for _ in range(2)}
    assert len(same) == 1
    assert marks.fingerprint(scaled(3.0)) not in same
    values = [1, 1.0, True, "1", None, (1,), [1], {"a": 1}, {"a": 2}, torch.ones(1), torch.ones(1, 1), torch.ones(2)]
    assert len({marks.fingerprint(value) for value in values}) == len(values)
    assert marks.fingerprint({"a": 1, "b": 2}) == marks.fingerprint({"b": 2, "a": 1})


def test_weights_of_a_network_count() -> None:
    torch.manual_seed(0)
    first, second = mlp(4, 2, (3,)), mlp(4, 2, (3,))
    assert marks.fingerprint(first) != marks.fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert marks.fingerprint(first) == marks.fingerprint(second)


def test_what_has_no_content_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(AssayError, match="cannot be fingerprinted"):
        marks.fingerprint(file)


def test_data_are_what_the_protocol_says() -> None:
    """If this changes, raise PROTOCOL: what was measured on these data would no longer be what the code gives."""
    digits = load("digits")
    made = [
        digits,
        digits.flip_labels(0.4, seed=1),
        digits.flip_labels(0.4, seed=1, kind="pairwise"),
        digits.subset(train=100, test=50, seed=2),
        digits.long_tail(10, seed=3),
        digits.holdout(0.2, seed=4),
        load("mnist5k"),
    ]
    assert [data.fingerprint[:8] for data in made] == PINNED


PINNED = ["82c40fc9", "7bcb627e", "57b6b413", "aa3203a2", "8dd0c938", "2f1c2889", "08e73a22"]

EXPRESSIVE = """
import torch
from torch import nn

TABLE = {}
TABLE.update(scale=2.0)

if hasattr(torch, "nothing of the kind"):
    def loss(logits, labels):
        return logits.sum()
else:
    def loss(logits, labels):
        return (logits * TABLE["scale"]).sum()


def pair():
    return lambda x: x + 1, lambda x: x + 2


def layer(size):
    class Local(nn.Module):
        def forward(self, x):
            return x * size

    return Local


def reads_a_constant():
    return lambda x: x * TABLE["scale"]
"""


@pytest.mark.parametrize("change", [("scale=2.0", "scale=3.0"), ("logits * TABLE", "logits + TABLE")])
def test_definitions_inside_statements_and_changes_of_tables_count(write, table: Dataset, change: tuple[str, str]) -> None:
    before = marks.fingerprint(write(EXPRESSIVE).loss)
    assert marks.fingerprint(write(EXPRESSIVE.replace(*change)).loss) != before


def test_lambdas_on_one_line_local_classes_and_constants_are_told_apart(write) -> None:
    module = write(EXPRESSIVE)
    assert len({marks.fingerprint(function) for function in module.pair()}) == 2
    assert marks.fingerprint(module.layer(1)) != marks.fingerprint(module.layer(2))
    before = marks.fingerprint(module.reads_a_constant())
    assert marks.fingerprint(write(EXPRESSIVE.replace("scale=2.0", "scale=3.0")).reads_a_constant()) != before


def test_settings_of_a_network_count_also_where_it_has_no_weights() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.TransformerEncoderLayer(8, 2, 8, activation=name) for name in ("relu", "gelu")]
    layers[1].load_state_dict(layers[0].state_dict())
    assert marks.fingerprint(layers[0]) != marks.fingerprint(layers[1])
    frozen = torch.nn.Linear(2, 2)
    before = marks.fingerprint(frozen)
    frozen.weight.requires_grad_(False)
    assert marks.fingerprint(frozen) != before


def test_what_a_claim_expects_counts_for_its_evidence_only(write) -> None:
    text = """
from assay.paper import Above, claim

LEVEL = Above("a", 0)

@claim("It is so.", expect=LEVEL)
def so(lab):
    return {"a": 1.0}
"""
    write(text)
    measured, judged = (marks.code_fingerprint("theirs", "so", expectations=both) for both in (False, True))
    write(text.replace('Above("a", 0)', 'Above("a", 2)'))
    assert marks.code_fingerprint("theirs", "so") == measured
    assert marks.code_fingerprint("theirs", "so", expectations=True) != judged


def test_the_words_of_a_claim_do_not_call_for_running_it_again(write) -> None:
    text = """
from assay.paper import Above, claim

@claim("It is so.", expect=Above("a", 0))
def so(lab):
    return {"a": 1.0}
"""
    write(text)
    before = marks.code_fingerprint("theirs", "so")
    write(text.replace("It is so.", "It is really so."))
    assert marks.code_fingerprint("theirs", "so") == before
    write(text.replace("1.0", "2.0"))
    assert marks.code_fingerprint("theirs", "so") != before
