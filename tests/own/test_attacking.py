"""`assay probe robust`: the order of what it says, units of change, and that a network which hides its gradients is named."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from assay import cli
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.own import attacking, looking
from assay.own.attacking import robust
from assay.own.page import write_tested

QUICK = ("steps=8", "restarts=1", "queries=30")


def squares() -> Dataset:
    """Two classes of small grey images: a bright square above or below."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    inputs = 0.2 * torch.rand(60, 1, 8, 8, generator=rng)
    for image, label in zip(inputs, labels.tolist(), strict=True):
        image[0, 4 * label : 4 * label + 4, 2:6] += 0.7
    whole = Split(inputs, labels)
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 40), (40, 40), (40, 60))]
    return Dataset("squares", "classification", *parts, classes=("above", "below"))


def _learnt(model: nn.Module, data: Dataset) -> nn.Module:
    assert isinstance(data.train.inputs, Tensor)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.inputs), data.train.labels, label_smoothing=0.2).backward()  # not too sure
        optimizer.step()
    return model.eval()


def plain() -> nn.Module:
    """A small network that tells the squares apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _learnt(lenet(1, 2, 8), squares())


class Rounded(nn.Module):
    """The same behind inputs that are rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net((images * 8).round() / 8)
        return found


class Compared(Rounded):
    """The same behind inputs of which only is seen whether they are bright: no gradient leads back at all."""

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net((images > 0.5).float())
        return found


def unbounded() -> nn.Module:
    """A network whose last step interval bounds do not know."""
    return nn.Sequential(plain(), nn.LogSoftmax(dim=1))


def rows_of_a_table() -> nn.Module:
    """A small perceptron of eight columns that has learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mlp(8, 2, (8,)).eval()


@pytest.fixture(autouse=True)
def own_networks(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Networks that can be named as MODULE:FUNCTION."""
    here = types.ModuleType("attacked_networks")
    here.Compared = Compared
    here.plain, here.Rounded, here.unbounded, here.rows_of_a_table = plain, Rounded, unbounded, rows_of_a_table
    monkeypatch.setitem(sys.modules, "attacked_networks", here)


def test_every_order_that_must_hold_does() -> None:
    """Proved, worst, each attack, clean; and larger balls leave less."""
    tested = robust(squares(), "attacked_networks:plain", examples=20, settings=(*QUICK, "eps=0.001,0.05,0.3,1"))
    assert [row.eps for row in tested.rows] == [0.001, 0.05, 0.3, 1.0]
    for row in tested.rows:
        assert set(row.under) == {"PGD, cross-entropy", "PGD, margin", "Square", "DeepFool"}
        assert row.proved is not None
        assert row.proved <= row.worst <= min(row.under.values()) <= tested.clean
    for before, after in zip(tested.rows, tested.rows[1:], strict=False):
        assert after.worst <= before.worst
        assert all(after.under[attack] <= before.under[attack] for attack in before.under)
    assert tested.rows[0].proved == tested.clean == 1.0
    assert tested.rows[-1].worst == 0.0
    assert tested.masking == []
    assert "range of pixels, which is [0, 1]" in tested.range
    smallest = smallest_changes(tested)
    assert all(0 < size <= 1 for size in smallest)
    for row in tested.rows:
        assert sum(size > row.eps * (1 + 1e-6) for size in smallest) / 20 == pytest.approx(row.worst)


def test_l2_has_sizes_of_its_own() -> None:
    tested = robust(squares(), "attacked_networks:plain", examples=8, settings=(*QUICK, "norm=2", "eps=0.1,2"))
    assert tested.norm == 2
    assert tested.rows[0].worst >= tested.rows[1].worst
    assert any("cube around the ball" in note for note in tested.looked.notes)


def test_pixels_that_were_scaled_are_measured_in_their_range() -> None:
    """Shifted and stretched inputs before a network that undoes it: the same numbers as of the images themselves."""
    data = squares()
    splits = {part: Split(10 * getattr(data, part).inputs - 3, getattr(data, part).labels) for part in ("train", "valid", "test")}
    stretched = Dataset("stretched", "classification", **splits, classes=data.classes)
    low, high = stretched.train.inputs.min(), stretched.train.inputs.max()
    view = attacking.View(
        model=nn.Identity(),
        inputs=stretched.test.inputs,
        target=stretched.test.labels,
        labels=None,
        background=stretched.train.inputs,
        background_labels=None,
        kind="images",
        classes=data.classes,
    )
    model, units, clip, text = attacking._in_units(view)
    assert clip == (0.0, 1.0)
    assert units.min() >= 0
    assert units.max() <= 1
    torch.testing.assert_close(model(units), stretched.test.inputs)
    assert "from the smallest to the largest value" in text
    assert low < 0 < 1 < high


def test_columns_are_measured_in_their_deviations(table: Dataset) -> None:
    tested = robust(table, "attacked_networks:rows_of_a_table", examples=10, settings=(*QUICK, "eps=0.1,3"))
    assert "standard deviation of each column" in tested.range
    assert tested.rows[1].worst <= tested.rows[0].worst


def test_network_that_hides_its_gradients_is_named() -> None:
    tested = robust(squares(), "attacked_networks:Rounded", examples=20, settings=(*QUICK, "eps=0.3,0.5"))
    assert any("gradient is zero" in sign for sign in tested.masking)
    assert tested.rows[0].proved is None
    assert any("nothing is proved" in note and "round" in note for note in tested.looked.notes)


def smallest_changes(tested: attacking.Tested) -> list[float]:
    return [example.numbers["smallest change found"] for example in tested.looked.examples]


def test_network_without_any_gradient_is_attacked_by_square_and_named() -> None:
    tested = robust(squares(), "attacked_networks:Compared", examples=20, settings=("steps=3", "queries=200", "eps=0.1,0.45"))
    assert any("gradient is zero" in sign for sign in tested.masking)
    assert any("no rule for comparisons" in note for note in tested.looked.notes)
    assert any("DeepFool has nowhere to go" in note for note in tested.looked.notes)
    last = tested.rows[-1]
    assert last.worst == last.under["Square"] < tested.clean == last.under["DeepFool"]
    assert [after is None for after in tested.after] == [size == math.inf for size in smallest_changes(tested)]


def test_examples_are_shown_behind_the_smallest_change() -> None:
    """What the network is said to answer there is what it answers, and the change is as large as it is said to be."""
    data = squares()
    tested = robust(data, "attacked_networks:plain", examples=20, settings=(*QUICK, "eps=0.05,0.6"))
    changed, inputs = tested.looked.others["behind the smallest change found"], tested.looked.inputs
    assert inputs is not None
    sizes = torch.tensor(smallest_changes(tested))
    said = [data.classes[place] for place in plain()(changed).argmax(dim=1).tolist()]
    assert said == tested.after
    away = (changed - inputs).flatten(1).abs().amax(dim=1)
    assert (away > 0).all()
    assert (away <= sizes + 1e-6).all()


def test_what_cannot_be_bounded_is_attacked_all_the_same() -> None:
    tested = robust(squares(), "attacked_networks:unbounded", examples=5, settings=(*QUICK, "eps=0.5"))
    assert tested.rows[0].proved is None
    assert any("log_softmax" in note for note in tested.looked.notes)


def test_page_and_json(tmp_path: Path) -> None:
    tested = robust(squares(), "attacked_networks:plain", examples=4, settings=(*QUICK, "eps=0.05,0.4"))
    text = write_tested(tested, tmp_path).read_text()
    assert text.count("<polyline") == 6
    assert text.count("<polyline") == text.count('class="swatch"')
    assert "No sign of gradient masking" in text
    assert "0.05" in text
    sizes = [float(size) for size in re.findall(r"by ([0-9.]+) ·", text)]
    assert len(sizes) == 4
    assert sizes == sorted(sizes)
    saved = json.loads(json.dumps(tested.as_dict(), allow_nan=False))
    assert [ball["eps"] for ball in saved["balls"]] == [0.05, 0.4]
    assert saved["norm"] == "inf"
    assert [one["after"] for one in saved["examples"]] == tested.after
    looking.print_tested(tested)


def test_lines_keep_their_colours_and_names_are_escaped(tmp_path: Path) -> None:
    """Also where nothing can be proved; and classes with signs of HTML in their names stay words."""
    data = dataclasses.replace(squares(), classes=("<b>above</b>", "below & more"))
    settings = (*QUICK, "eps=8/255,0.6")
    colours = []
    for network in ("plain", "unbounded"):
        tested = robust(data, f"attacked_networks:{network}", examples=4, settings=settings)
        text = write_tested(tested, tmp_path).read_text()
        found = re.findall(r'stroke="(#\w+)".*<title>(.*)</title>', text)
        colours.append({name: colour for colour, name in found})
        assert "&lt;b&gt;above" in text
        assert "<b>above" not in text
        assert ">8/255<" in text
    assert set(colours[0]) - set(colours[1]) == {"proved"}
    assert colours[1].items() <= colours[0].items()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("eps=a",), "no list of sizes"),
        (("eps=0",), "no list of sizes"),
        (("norm=1",), "norm=inf or norm=2"),
        (("width=1",), "no option"),
    ],
)
def test_options_that_mean_nothing(settings, message):
    with pytest.raises(AssayError, match=message):
        robust(squares(), "attacked_networks:plain", settings=settings)


def test_command_knows_the_word() -> None:
    listed = CliRunner().invoke(cli.app, ["probe", "--json"])
    offered = {one["probe"]: one for one in json.loads(listed.output)}
    known = list(inspect.signature(attacking._Test().robust).parameters)[1:]
    assert list(offered["robust"]["options"]) == known
    refused = CliRunner().invoke(cli.app, ["probe", "robust", "--on", "digits", "--class", "right"])
    assert isinstance(refused.exception, AssayError)
    assert math.isinf(inspect.signature(attacking._Test().robust).parameters["norm"].default)
