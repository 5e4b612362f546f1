"""Probes of data sets: what they are shown, what comes out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from assay import catalogue, cli
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn.small import ConvMax
from assay.nn.text import cooccurrence_vectors, token_ids, vocabulary
from assay.own.named import Named
from assay.own.offers import find, looks_at_data, offers
from assay.own.probing import probe
from assay.own.ranked_page import write_ranking
from assay.own.ranking import collect, look_over, rank
from assay.view import Collection, Ranked

QUICK = ["models=2", "folds=2", "steps=40"]


def brightness(data: Collection, scale: float = 1.0) -> Ranked:
    """How large the inputs are."""
    size = data.inputs.flatten(1).mean(dim=1) * scale
    return Ranked(each={"brightness": size}, by="brightness", lists={"darkest": size.argsort()[:3]}, notes=("a note",))


def images() -> Dataset:
    inputs = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = Split(inputs, (torch.arange(60) % 2).long())
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 40), (40, 45), (45, 60))]
    return Dataset("squares", "classification", *parts, classes=("odd <b>", "even"))


def test_probes_of_data_are_told_apart_by_their_first_parameter() -> None:
    assert {offer.key for offer in offers() if offer.of_data} == {"prototypicality", "errorless_training"}
    assert looks_at_data("prototypicality")
    assert not looks_at_data("deepfool")
    paper, function = find("prototypicality")
    assert (paper.key, function.__name__) == ("prototypicality", "typicality")
    with pytest.raises(AssayError, match="is a probe of networks"):
        rank("deepfool", images())
    with pytest.raises(AssayError, match="looks at data"):
        probe("prototypicality", images())


def test_every_example_is_shown_and_comes_out_in_order(tmp_path: Path) -> None:
    there = collect(images(), Named())
    assert there.kind == "images"
    assert there.ids[0] == "train 0"
    assert there.ids[-1] == "test 14"
    found = look_over(catalogue.find("prototypicality"), brightness, there, None, {})
    size = there.inputs.flatten(1).mean(dim=1)
    typical = found.typical("even", 40)
    assert typical == sorted(typical, key=lambda place: -float(size[place]))
    assert found.untypical("even", 40) == typical[::-1]
    assert {found.label(place) for place in typical} == {"even"}
    page, scores = write_ranking(found, tmp_path / "out")
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 * 2 * 10 + 3
    assert "odd &lt;b&gt;" in text
    table = pd.read_parquet(scores)
    assert list(table) == ["id", "label", "brightness"]
    assert np.allclose(table["brightness"], size)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["lists"]["darkest"] == [
        there.ids[place] for place in size.argsort()[:3].tolist()
    ]


def test_a_draw_is_in_proportion_and_said() -> None:
    found = look_over(catalogue.find("prototypicality"), brightness, collect(images(), Named()), None, {}, most=20)
    assert found.examples.labels.bincount().tolist() == [10, 10]
    assert found.notes[0].startswith("20 of 60 examples were drawn")


def test_what_is_refused(tmp_path: Path) -> None:
    there, paper = collect(images(), Named()), catalogue.find("prototypicality")
    with pytest.raises(AssayError, match=r"mend the probe\."):
        look_over(paper, lambda_of(torch.zeros(3)), there, None, {})
    with pytest.raises(AssayError, match="one that was trained"):
        look_over(paper, brightness, there, "photos-1", {})
    with pytest.raises(AssayError, match=r"gives \(2, 64\) for 2 examples: there are 2 classes"):
        look_over(paper, brightness, there, "torch.nn:Flatten", {})
    with pytest.raises(AssayError, match="at least 1"):
        rank("prototypicality", images(), examples=0)
    with pytest.raises(AssayError, match="has no option"):
        rank("prototypicality", images(), settings=["modells=3"])
    table = tmp_path / "t.csv"
    pd.DataFrame({"a": np.arange(40.0), "y": np.arange(40) * 1.5 + 0.1}).to_csv(table, index=False)
    with pytest.raises(AssayError, match="typicality does not work here: this probe is for classes"):
        rank("prototypicality", table)
    for option in (["--raw"], ["--class", "even"]):
        refused = CliRunner().invoke(cli.app, ["probe", "prototypicality", "--on", "digits", *option])
        assert isinstance(refused.exception, AssayError)
        assert "leave --raw, --class and --trust out" in str(refused.exception)


def lambda_of(values: torch.Tensor) -> object:
    def wrong(data: Collection) -> Ranked:
        return Ranked(each={"few": values}, by="few")

    return wrong


def test_a_table_from_the_command_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.array(["no", "yes"])
    frame = pd.DataFrame({"a": rng.normal(size=90), "b": rng.normal(size=90), "colour": rng.choice(["red", "<i>blue"], 90)})
    frame["y"] = names[(frame.a > 0).astype(int)]
    wrong = [3, 40, 77]
    frame.loc[wrong, "a"] = [2.5, -2.5, 3.0]
    frame.loc[wrong, "y"] = ["no", "yes", "no"]
    path, out = tmp_path / "t.csv", tmp_path / "page"
    frame.to_csv(path, index=False)
    command = ["probe", "prototypicality", "--on", str(path), *(word for one in QUICK for word in ("--set", one))]
    person = CliRunner().invoke(cli.app, [*command, "--out", str(out)])
    assert person.exit_code == 0, person.output
    assert "most typical" in person.stdout
    assert "row" in person.stdout
    assert "&lt;i&gt;blue" in (out / "ranking.html").read_text()
    scores = pd.read_parquet(out / "scores.parquet")
    assert list(scores) == ["id", "label", "adv", "ret", "agr", "conf", "priv", "mean rank", "memorised"]
    assert len(scores) == 90
    rows = scores.loc[scores["adv"] == 0, "id"]
    assert {f"row {place + 1}" for place in wrong} <= set(rows)
    machine = CliRunner().invoke(cli.app, [*command, "--examples", "60", "--json"])
    assert machine.exit_code == 0, machine.output
    assert len(json.loads(machine.stdout)["examples"]) == 60


def test_texts_lie_as_word_vectors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    filler = ["film", "plot", "actor", "scene", "sound", "music"]
    texts = [" ".join([*rng.choice(filler, 5), "good" if number % 2 else "bad"]) for number in range(80)]
    path = tmp_path / "texts.csv"
    pd.DataFrame({"text": texts, "y": ["fine" if number % 2 else "poor" for number in range(80)]}).to_csv(path, index=False)
    found = rank("prototypicality", path, named=Named(text="text", target="y"), settings=QUICK)
    assert found.examples.kind == "text"
    assert found.examples.inputs.dim() == 3
    assert set(found.examples.read) == set(texts)
    page, _ = write_ranking(found, tmp_path / "page")
    assert "good" in page.read_text()


def test_word_vectors_know_company_and_networks_know_padding() -> None:
    texts = ["the cat sat on the mat", "the dog sat on the mat", "a b", "c d"] * 5
    words = vocabulary(texts)
    ids = token_ids(texts, words, 8)
    vectors = cooccurrence_vectors(ids, len(words), dim=6)
    assert vectors[0].abs().sum() == 0
    place = {word: vectors[number] for number, word in enumerate(words)}
    alike = torch.cosine_similarity(place["cat"], place["dog"], dim=0)
    assert alike > 0.9
    assert alike > torch.cosine_similarity(place["cat"], place["b"], dim=0)
    assert torch.equal(vectors, cooccurrence_vectors(ids, len(words), dim=6))
    assert cooccurrence_vectors(torch.zeros(3, 4, dtype=torch.int64), 2).abs().sum() == 0
    torch.manual_seed(0)
    network = ConvMax(6, 3)
    series = vectors[ids].transpose(1, 2)
    longer = torch.cat([series, torch.zeros(len(series), 6, 5)], dim=2).requires_grad_()
    torch.testing.assert_close(network(series), network(longer))
    (gradient,) = torch.autograd.grad(network(longer).sum(), longer)
    assert gradient[:, :, 8:].abs().max() == 0
    assert isinstance(network.head, nn.Linear)
