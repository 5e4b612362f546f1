"""Methods of attribution side by side: what is ranked, what is said of them, on every kind of data."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from assay import catalogue, cli
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.own import baselines, explaining
from assay.own.explaining import CHANCE, Compared, compare, ways
from assay.own.looking import _EXPLAIN_OPTIONS, EXPLAIN
from assay.own.named import Named
from assay.own.opening import Subject, _checked, _read, open_subject
from assay.own.page import write_comparison
from assay.recipe import Recipe
from assay.train.loop import fit


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Baselines of two epochs."""
    plain = baselines.baseline
    monkeypatch.setattr(baselines, "baseline", lambda data: plain(data).replace(epochs=2))


def _split(inputs: Tensor, labels: Tensor) -> tuple[Split, Split, Split]:
    whole = Split(inputs, labels)
    third = len(labels) // 3
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 2 * third), (third, third), (2 * third, len(labels)))]
    return parts[0], parts[1], parts[2]


@pytest.fixture(scope="module")
def images() -> Dataset:
    """Three classes of small grey images: where is the bright square?"""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    inputs = 0.2 * torch.rand(90, 1, 8, 8, generator=rng)
    for image, label in zip(inputs, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.7
    return Dataset("<i>squares", "classification", *_split(inputs, labels), classes=("<b>left", "right", "below"))


@pytest.fixture(scope="module")
def network(images: Dataset) -> nn.Module:
    recipe = Recipe(images, model=partial(lenet, 1, 3, 8), epochs=6, batch_size=15, optimizer=partial(torch.optim.Adam, lr=1e-2))
    return fit(recipe, seed=0).model


def _subject(model: nn.Module, data: Dataset) -> Subject:
    return _checked(model, _read(data, Named()), "a network", raw=False)


@pytest.fixture(scope="module")
def compared(images: Dataset, network: nn.Module) -> Compared:
    return compare(_subject(network, images), {"steps": 8}, examples=15)


# ---------------------------------------------------------------------------------------------------- what is measured


def test_every_method_is_judged_and_the_best_comes_first(compared: Compared) -> None:
    assert {one.name for one in compared.methods} == {way.name for way in ways("images")}
    assert not compared.unfit
    found = [one.faithful for one in compared.methods]
    assert found == sorted(found, reverse=True)
    assert list(compared.looked.attributions) == [one.name for one in compared.methods]
    for one in compared.methods:
        assert one.faithful == pytest.approx(one.insertion - one.deletion, abs=1e-6)
        assert set(one.areas) == {"mean", "blur"}
        assert one.seconds > 0
        assert all(len(curve) == 9 for curves in one.curves.values() for curve in curves)
        assert len(one.shuffled) == 2
    assert compared.methods[0].best
    assert compared.chance.faithful < compared.methods[0].faithful - 0.1


def test_methods_that_share_out_the_score_are_measured_by_it(compared: Compared) -> None:
    gaps = {one.name: one.gap for one in compared.methods}
    assert gaps["integrated gradients"] is not None
    assert gaps["integrated gradients"] < 0.02
    assert gaps["DeepLIFT"] is not None
    assert gaps["DeepLIFT"] < 1e-3
    assert gaps["occlusion"] is None
    assert gaps["gradient size"] is None


def test_what_is_taken_is_better_than_chance_and_among_the_best(compared: Compared) -> None:
    taken = next(one for one in compared.methods if one.name == compared.take)
    assert taken.best
    assert taken.over_chance
    rivals = [one for one in compared.methods if one.best and one.over_chance and (one.alike or 0) <= explaining.ALIKE]
    lead = compared.methods[0].faithful - compared.chance.faithful
    rivals = [one for one in rivals if one.faithful - compared.chance.faithful >= explaining.KEPT * lead]
    assert taken.seconds == min(one.seconds for one in rivals)


def test_speed_is_no_reason_to_take_what_is_clearly_worse(compared: Compared) -> None:
    """Few examples do not tell a method from the best that has half of its lead: it is not taken for a tenth of a millisecond."""
    best = replace(compared.methods[0], faithful=0.5, p_best=1.0, p_chance=0.01, seconds=1e-3, shuffled={})
    half = replace(best, name="half", faithful=0.3, p_best=0.2, seconds=1e-4)
    close = replace(best, name="close", faithful=0.49, p_best=0.2, seconds=5e-4)
    chance = replace(compared.chance, faithful=0.0)
    assert replace(compared, methods=[best, half], chance=chance).take == best.name
    assert replace(compared, methods=[best, close, half], chance=chance).take == "close"


def test_a_method_that_shows_the_input_or_nothing_is_found_out(
    images: Dataset, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.rand(15, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    bad = (
        explaining.Way("the input", lambda model, inputs, target: inputs),
        explaining.Way("noise", lambda model, inputs, target: noise[: len(inputs)], "score"),
        explaining.Way("not finite", lambda model, inputs, target: inputs / 0),
    )
    monkeypatch.setattr(explaining, "ways", lambda kind, baseline=0.0: bad)
    found = compare(_subject(network, images), examples=15)
    judged = {one.name: one for one in found.methods}
    assert judged["the input"].alike == pytest.approx(1)
    assert any("the input says stays" in note or "the input and noise say stays" in note for note in found.looked.notes)
    assert not judged["noise"].over_chance
    assert judged["noise"].gap is not None
    assert judged["noise"].gap > 0.1
    assert found.unfit == {"not finite": "its attributions are not finite"}


def test_the_network_is_left_alone_and_the_same_comes_out_again(images: Dataset, network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one, other = (compare(_subject(network, images), {"methods": "LRP, occlusion"}, examples=6) for _ in range(2))
    assert {judged.name for judged in one.methods} == {"LRP", "occlusion"}
    assert [judged.curves for judged in one.methods] == [judged.curves for judged in other.methods]
    assert [judged.shuffled for judged in one.methods] == [judged.shuffled for judged in other.methods]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert any("6 examples can hardly tell" in note for note in one.looked.notes)


def test_examples_of_which_nothing_can_be_said_are_counted(images: Dataset) -> None:
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1) @ self.weight + torch.tensor([9.0, 0, 0])

    found = compare(_subject(Always(), images), {"methods": "gradient x input"}, examples=4)
    assert any("4 of 4 examples tell nothing" in note for note in found.looked.notes)
    assert found.take is None


# ---------------------------------------------------------------------------------------------------- kinds of data


def test_tables(table: Dataset) -> None:
    found = compare(open_subject(None, on=table), examples=12)
    assert "Grad-CAM" in found.unfit
    assert {"mean", "another row"} == set(found.chance.areas)
    best = found.methods[0]
    assert set(list(found.looked.columns(best.name))[:2]) == {"x0", "x1"}


def test_numbers_are_explained_too(table: Dataset) -> None:
    def numbers(split: Split) -> Split:
        assert isinstance(split.inputs, Tensor)
        return Split(split.inputs, split.inputs[:, 2] * 3)

    data = Dataset("numbers", "regression", numbers(table.train), numbers(table.valid), numbers(table.test))
    found = compare(open_subject(None, on=data), examples=8)
    assert found.score == "output"
    assert "gradient x input" in {one.name for one in found.methods}


def test_series(table: Dataset) -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    inputs = 0.3 * torch.randn(60, 1, 24, generator=rng)
    inputs[labels == 1, :, 8:14] += 2
    data = Dataset("waves", "classification", *_split(inputs, labels), classes=("flat", "bump"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(8, 2))
    found = compare(_subject(model, data), {"methods": "Grad-CAM, occlusion, LRP"}, examples=5)
    assert {one.name for one in found.methods} == {"Grad-CAM", "occlusion", "LRP"}
    assert all(shares.shape == (1, 24) for shares in found.looked.attributions["occlusion"])


def test_texts_are_judged_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    filler = ["film", "plot", "actor", "scene", "sound", "music", "story", "end"]
    texts = []
    for number in range(120):
        words = [filler[int(k)] for k in torch.randint(8, (6,), generator=rng)]
        words[int(torch.randint(6, (1,), generator=rng))] = "good" if number % 2 else "bad"
        texts.append(" ".join(words))
    whole = Split(tuple(texts), torch.arange(120) % 2)
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 80), (80, 80), (80, 120))]
    data = Dataset("reviews", "classification", *parts, classes=("no", "yes"))
    plain = baselines.baseline
    monkeypatch.setattr(baselines, "baseline", lambda data: plain(data).replace(epochs=15))
    found = compare(open_subject(None, on=data), {"steps": 6}, examples=8)
    names = {one.name for one in found.methods}
    assert {"integrated gradients", "occlusion", "gradient x input"} <= names
    for name in ("integrated gradients", "occlusion"):
        right = [
            example.words[int(shares.argmax())] in ("good", "bad")
            for example, shares in zip(found.looked.examples, found.looked.attributions[name], strict=True)
        ]
        assert sum(right) >= 7


def test_exported_programs(images: Dataset, network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(network, (images.test.inputs[:2],), dynamic_shapes=({0: batch},)), path)  # type: ignore[index]
    theirs = compare(open_subject(str(path), on=images), {"methods": "gradient x input, integrated gradients"}, examples=5)
    ours = compare(_subject(network, images), {"methods": "gradient x input, integrated gradients"}, examples=5)
    assert [one.name for one in theirs.methods] == [one.name for one in ours.methods]
    for one, other in zip(theirs.methods, ours.methods, strict=True):
        assert one.faithful == pytest.approx(other.faithful, abs=1e-4)


# ---------------------------------------------------------------------------------------------------- page, terminal, names


def test_on_a_narrow_screen_words_stay_whole(compared: Compared, tmp_path: Path) -> None:
    """A table that is too wide for a telephone is moved sideways, and not broken letter by letter."""
    text = write_comparison(compared, tmp_path).read_text(encoding="utf-8")
    assert re.search(r"table \{ display: block; overflow-x: auto;[^}]*overflow-wrap: normal", text)


def test_the_page_shows_the_methods_and_escapes_names(compared: Compared, tmp_path: Path) -> None:
    text = write_comparison(compared, tmp_path).read_text(encoding="utf-8")
    assert "<i>squares" not in text
    assert "&lt;b&gt;left" in text
    assert text.count("<figcaption>Grad-CAM</figcaption>") == 15
    assert text.count("<polyline") == 2 * 2 * (len(compared.methods) + 1)
    assert (tmp_path / "attributions.safetensors").exists()


def test_the_command(table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "open_subject", lambda *args: open_subject(None, on=table))
    settings = ["--set", "methods=gradient size,occlusion", "--examples", "9"]
    result = CliRunner().invoke(cli.app, ["probe", "explain", "--on", "table.csv", *settings, "--json", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert {one["method"] for one in plain["methods"]} == {"gradient size", "occlusion"}
    assert plain["chance"]["method"] == CHANCE
    assert Path(plain["page"]).exists()
    assert len(plain["examples"]) == 9
    shown = CliRunner().invoke(cli.app, ["probe", "explain", "--on", "table.csv", *settings])
    assert "occlusion" in shown.stdout
    assert "random order" in shown.stdout
    assert "explain" in CliRunner().invoke(cli.app, ["probe"]).stdout


def test_wrong_options_are_told_before_a_network_is_opened(table: Dataset) -> None:
    for settings, words in {
        "methods=saliency": "no method 'saliency' to compare: name some of gradient size",
        "steps=0": "at least 1 of each",
        "step=3": "did you mean steps",
    }.items():
        with pytest.raises(AssayError, match=words):
            explaining.explain(table, settings=[settings])
    with pytest.raises(AssayError, match="at least 1"):
        explaining.explain(table, examples=0)


def test_explain_is_no_paper_and_its_options_are_those_that_are_listed() -> None:
    import inspect

    assert EXPLAIN not in catalogue.papers()
    parameters = list(inspect.signature(explaining._Judge().explain).parameters.values())[1:]
    assert {one.name: repr(one.default) for one in parameters} == _EXPLAIN_OPTIONS


def test_a_network_on_which_nothing_works(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("no gradient goes through it.\nat line 7")

    monkeypatch.setattr(explaining, "ways", lambda kind, baseline=0.0: (explaining.Way("LRP", fails),))
    with pytest.raises(AssayError, match=r"no method works on this network: LRP: no gradient goes through it\.$"):
        compare(_subject(mlp(8, 2, (4,)), table), examples=3)
