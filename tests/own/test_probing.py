"""Probes on anybody's network: every way to name one, that it is left alone, and what comes out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from assay import catalogue, cli
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.own import baselines, opening, probing
from assay.own.named import Named
from assay.own.offers import find, offers
from assay.own.opening import open_subject, subject_of
from assay.own.page import write_page
from assay.own.preparing import prepared
from assay.own.probing import look, parse, untouched
from assay.own.saved import save_run
from assay.own.suggesting import suggest
from assay.recipe import Recipe
from assay.train.loop import Trained, fit
from assay.view import Seen, View

PAPER = catalogue.find("integrated_gradients")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Baselines of two epochs."""
    plain = baselines.baseline
    monkeypatch.setattr(baselines, "baseline", lambda data: plain(data).replace(epochs=2))


@pytest.fixture
def images() -> Dataset:
    """Two classes of small grey images: a bright square above or below."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    inputs = 0.2 * torch.rand(60, 1, 8, 8, generator=rng)
    for image, label in zip(inputs, labels.tolist(), strict=True):
        image[0, 4 * label : 4 * label + 4, 2:6] += 0.7
    whole = Split(inputs, labels)
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 40), (40, 40), (40, 60))]
    return Dataset("squares", "classification", *parts, classes=("above", "below"))


def _trained(model: Callable[[], nn.Module], data: Dataset, epochs: int = 5) -> Trained:
    return fit(Recipe(data, model=model, epochs=epochs, batch_size=16, optimizer=partial(torch.optim.Adam, lr=1e-2)), seed=0)


def _program(model: nn.Module, example: Tensor, path: Path, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=shapes), path)
    return path


# ---------------------------------------------------------------------------------------------------- finding


def test_probes_are_found_without_importing_anything_heavy() -> None:
    assert {"integrated_gradients", "deepfool"} <= {offer.key for offer in offers()}
    assert all(offer.what.endswith(".") and offer.name for offer in offers())
    code = "import sys; from assay.own.offers import offers; offers(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("elr", "elr has no probe .*choose among .*deepfool"),
        ("deepfoul", "did you mean deepfool"),
        ("deepfool:robustness", "no probe 'robustness': it has smallest_push"),
    ],
)
def test_what_is_no_probe(name: str, words: str) -> None:
    with pytest.raises(AssayError, match=words):
        find(name)


def test_options_have_the_types_of_their_defaults() -> None:
    def some(
        view: View, steps: int = 5, rate: float = 0.1, norm: int = 2, name: str = "a", on: bool = True, at: Any = None
    ) -> Seen:
        return Seen()

    given = ["steps=7", "rate=2", "norm=inf", "name=b=c", "on=no", "at=3"]
    assert parse(some, given) == {"steps": 7, "rate": 2.0, "norm": float("inf"), "name": "b=c", "on": False, "at": 3}
    with pytest.raises(AssayError, match="did you mean steps"):
        parse(some, ["step=3"])
    with pytest.raises(AssayError, match="of the type int, and 'many' is not"):
        parse(some, ["steps=many"])


# ---------------------------------------------------------------------------------------------------- what comes out


def test_attributions_add_up_and_name_the_columns_that_decide(table: Dataset) -> None:
    looked = probing.probe("integrated_gradients", on=table, examples=12, settings=["steps=100"])
    assert len(looked.examples) == 12
    for example, shares in zip(looked.examples, looked.attributions["integrated gradients"], strict=True):
        assert float(shares.sum()) == pytest.approx(example.numbers["score above the baseline's"], abs=0.05)
    assert set(list(looked.columns("integrated gradients"))[:2]) == {"x0", "x1"}
    assert looked.accuracy is not None
    assert looked.accuracy > 0.9


def test_pushed_inputs_change_class(images: Dataset) -> None:
    subject = subject_of(_trained(partial(lenet, 1, 2, 8), images), images, "a LeNet")
    paper, push = find("deepfool")
    looked = look(paper, push, subject, {}, examples=6)
    assert looked.numbers["share that changed class"] == 1.0
    pushed = looked.others["pushed over the boundary"]
    said = [subject.classes[int(k)] for k in subject.model(pushed).argmax(dim=1)]
    assert all(now != example.said for now, example in zip(said, looked.examples, strict=True))
    sizes = [float(shares.norm()) for shares in looked.attributions["push"]]
    assert sizes == pytest.approx([example.numbers["size of the push"] for example in looked.examples], rel=1e-4)


def test_words_that_decide_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    filler = np.array(["film", "plot", "actor", "scene", "sound", "music", "story", "end"])
    texts, labels = [], []
    for number in range(120):
        words = rng.choice(filler, 6).tolist()
        words[rng.integers(6)] = "good" if number % 2 else "bad"
        texts.append(" ".join(words))
        labels.append(number % 2)
    whole = Split(tuple(texts), torch.tensor(labels))
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 80), (80, 80), (80, 120))]
    data = Dataset("reviews", "classification", *parts, classes=("no", "yes"))
    monkeypatch.setattr(baselines, "baseline", partial(_longer, baselines.baseline))
    looked = probing.probe("integrated_gradients", on=data, examples=5)
    assert looked.accuracy == 1.0
    for example, shares in zip(looked.examples, looked.attributions["integrated gradients"], strict=True):
        assert len(example.words) == len(shares) == 6
        assert example.words[int(shares.argmax())] in ("good", "bad")
        assert float(shares.sum()) == pytest.approx(example.numbers["score above the baseline's"], abs=0.05)


def _longer(plain: Callable[[Dataset], Recipe], data: Dataset) -> Recipe:
    return plain(data).replace(epochs=20)


def test_regression(table: Dataset) -> None:
    def numbers(split: Split) -> Split:
        assert isinstance(split.inputs, Tensor)
        return Split(split.inputs, split.inputs[:, 2] * 3)

    data = Dataset("numbers", "regression", numbers(table.train), numbers(table.valid), numbers(table.test))
    looked = probing.probe("integrated_gradients", on=data, examples=4)
    assert next(iter(looked.columns("integrated gradients"))) == "x2"
    assert looked.accuracy is None
    with pytest.raises(AssayError, match="for classifiers, and the network predicts a number"):
        probing.probe("deepfool", on=data, examples=4)


def test_another_class_can_be_asked_for(table: Dataset) -> None:
    said, right, above = (
        probing.probe("integrated_gradients", on=table, examples=8, explain=explain) for explain in ("said", "right", "above")
    )
    same = [example.said == "above" for example in said.examples]
    for one, other, equal in zip(said.attributions.values(), above.attributions.values(), [same], strict=True):
        assert [bool(torch.allclose(a, b)) for a, b in zip(one, other, strict=True)] == equal
    assert right.target == "the right class"
    with pytest.raises(AssayError, match="no class 'abov': name one as above"):
        probing.probe("integrated_gradients", on=table, explain="abov")


# ---------------------------------------------------------------------------------------------------- naming a network


def test_an_exported_program_is_the_network(images: Dataset, tmp_path: Path) -> None:
    model = _trained(partial(lenet, 1, 2, 8), images).model
    ours = look(PAPER, find("integrated_gradients")[1], _subject(model, images), {}, examples=7)
    for dynamic in (True, False):
        path = _program(model, images.test.inputs[:2], tmp_path / f"{dynamic}.pt2", dynamic)
        theirs = probing.probe("integrated_gradients", on=images, model=str(path), examples=7)
        for one, other in zip(ours.attributions.values(), theirs.attributions.values(), strict=True):
            assert torch.allclose(torch.stack(one), torch.stack(other), atol=1e-4)
        assert theirs.accuracy == ours.accuracy


def _subject(model: nn.Module, data: Dataset) -> opening.Subject:
    return opening._checked(model, opening._read(data, Named()), "a network", raw=False)


def test_images_are_brought_to_the_size_of_a_program(images: Dataset, tmp_path: Path) -> None:
    path = _program(lenet(3, 2, 16), torch.rand(2, 3, 16, 16), tmp_path / "colour.pt2")
    looked = probing.probe("integrated_gradients", on=images, model=str(path), examples=3)
    assert any("8x8 are brought to 16x16" in note for note in looked.notes)
    assert looked.attributions["integrated gradients"][0].shape == (1, 8, 8)


def test_a_probe_of_layers_says_that_a_program_has_none(images: Dataset, tmp_path: Path) -> None:
    path = _program(lenet(1, 2, 8), images.test.inputs[:2], tmp_path / "net.pt2")
    subject = open_subject(str(path), on=images)
    with pytest.raises(AssayError, match="looks into layers, which an exported program has not"):
        look(PAPER, _layers, subject, {})
    with pytest.raises(AssayError, match="cannot work on an exported program"):
        look(PAPER, _trains, subject, {})


def _layers(view: View) -> Seen:
    view.layer()
    return Seen()


def _trains(view: View) -> Seen:
    raise NotImplementedError("Calling train() is not supported yet.")


def test_programs_that_would_run_code_are_refused(table: Dataset, tmp_path: Path) -> None:
    good = _program(mlp(8, 2, (4,)), torch.rand(2, 8), tmp_path / "good.pt2")

    def changed(name: str, part: str, before: str, after: str) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as copy:
            for item in source.infolist():
                content = source.read(item)
                if item.filename.endswith(part):
                    assert before.encode() in content
                    content = content.replace(before.encode(), after.encode())
                copy.writestr(item, content)
        return path

    assert open_subject(str(good), on=table).inputs.shape[1:] == (8,)  # type: ignore[union-attr]
    pickled = changed("pickled.pt2", "weights_config.json", '"use_pickle": false', '"use_pickle": true')
    with pytest.raises(AssayError, match="would run code on being read"):
        open_subject(str(pickled), on=table)
    for formula in ("open('a', 'w')", "Symbol('a').__class__", "exit()", "Symbol.name"):
        assert opening._runs_code(formula)
    assert not opening._runs_code("Max(2, Symbol('s31', positive=True, integer=True)*3 - 1)")
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"no archive")
    with pytest.raises(AssayError, match="is no program of torch"):
        open_subject(str(broken), on=table)
    with pytest.raises(AssayError, match="There is no program"):
        open_subject(str(tmp_path / "none.pt2"), on=table)


def test_a_saved_run_brings_its_preparation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(50, 20, size=(120, 3)), columns=list("abc"))
    frame["place"] = rng.choice(["x", "y"], 120)
    frame.assign(label=np.where(frame.a > 50, "up", "down")).to_csv(tmp_path / "own.csv", index=False)
    from assay.own.reading import understand

    data, preparation = understand(tmp_path / "own.csv", "label")
    save_run(tmp_path / "run", fit(baselines.baseline(data).replace(epochs=20), 0), 0, preparation, {})
    frame[:20].to_csv(tmp_path / "new.csv", index=False)
    looked = probing.probe("integrated_gradients", on=tmp_path / "new.csv", model=str(tmp_path / "run"), examples=9)
    assert next(iter(looked.columns("integrated gradients"))) == "a"
    assert set(looked.features) == {"a", "b", "c", "place=x", "place=y"}
    assert all(example.right is None for example in looked.examples)
    known = probing.probe("deepfool", on=tmp_path / "own.csv", model=str(tmp_path / "run"), examples=9)
    assert known.accuracy is not None
    assert known.accuracy > 0.9
    with pytest.raises(AssayError, match="There is no run"):
        probing.probe("deepfool", on=tmp_path / "own.csv", model=str(tmp_path))


@pytest.mark.parametrize("model", [None, "pictured:good"])
def test_examples_are_known_by_their_files_and_rows(
    images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None
) -> None:
    """Whoever sees an odd example wants to open it."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("pictured.py").write_text("from torch import nn\ndef good(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n")
    plain = baselines.baseline
    monkeypatch.setattr(baselines, "baseline", lambda data: plain(data).replace(epochs=1))
    rng = np.random.default_rng(0)
    for number in range(40):
        file = tmp_path / "photos" / ("dark" if number % 2 else "light") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 100, (8, 8), dtype=np.uint8) + np.uint8(100 * (number % 2 == 0))).save(file)
    subject = open_subject(model, on="photos")
    assert isinstance(subject.inputs, torch.Tensor)
    for name, pixels, label in zip(subject.ids, subject.inputs, subject.labels, strict=True):  # type: ignore[arg-type]
        assert (tmp_path / "photos" / name).exists()
        assert name.startswith(subject.classes[int(label)])
        with Image.open(tmp_path / "photos" / name) as image:
            expected = torch.from_numpy(np.array(image)).double()
        assert torch.corrcoef(torch.stack([pixels[0].double().flatten(), expected.flatten()]))[0, 1] > 0.999
    frame = pd.DataFrame({"a": rng.normal(size=40), "b": rng.normal(size=40)})
    frame.assign(label=np.where(frame.a > 0, "up", "down")).to_csv("own.csv", index=False)
    subject = open_subject(None, on="own.csv")
    assert all(name.startswith("row ") for name in subject.ids)
    rows = [int(name.removeprefix("row ")) for name in subject.ids]
    lines = Path("own.csv").read_text().splitlines()
    assert [lines[row].split(",")[-1] for row in rows] == [subject.classes[int(one)] for one in subject.labels]  # type: ignore[union-attr]


def test_a_function_of_ones_own(images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
    from torch import nn
    def good(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    def many(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    def wide(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    def number(): return 3
    def fails(): raise ValueError("no weights")
    """
    Path("mine.py").write_text("\n".join(line[4:] for line in code.splitlines()))
    looked = probing.probe("integrated_gradients", on=images, model="mine:good", examples=4)
    assert looked.model == "mine:good"
    more = probing.probe("deepfool", on=images, model="mine:many", examples=4)
    assert all(example.right is None for example in more.examples)
    assert any("7 classes and the data have 2" in note for note in more.notes)
    for function, words in {
        "wide": r"does not take the examples of squares, images of the shape \(B, 1, 8, 8\); its first layer takes 3 channels",
        "number": "returned a int: it must return an nn.Module",
        "fails": "ValueError: no weights",
        "absent": "cannot be imported",
    }.items():
        with pytest.raises(AssayError, match=words):
            open_subject(f"mine:{function}", on=images)
    with pytest.raises(AssayError, match="is no network that can be opened"):
        open_subject("mine", on=images)


def test_columns_are_handed_over_scaled_or_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("linear.py").write_text("from torch import nn\ndef make(): return nn.Linear(3, 2)\n")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(50, 20, size=(60, 3)), columns=list("abc"))
    frame.assign(label=np.where(frame.a > 50, "up", "down")).to_csv("own.csv", index=False)
    scaled = open_subject("linear:make", on="own.csv", named=Named("label"))
    plain = open_subject("linear:make", on="own.csv", named=Named("label"), raw=True)
    assert isinstance(scaled.inputs, Tensor)
    assert isinstance(plain.inputs, Tensor)
    assert float(scaled.background.mean()) == pytest.approx(0, abs=1e-5)
    every = torch.tensor(frame.to_numpy(np.float32))
    assert all(bool(((every - row).abs().amax(dim=1) < 1e-3).any()) for row in plain.inputs)
    assert any("--raw" in note for note in scaled.notes)


@pytest.mark.parametrize("name", ["timm:resnet18", "transformers:vit"])
def test_families_that_are_not_installed_say_so(images: Dataset, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda package: None)
    with pytest.raises(AssayError, match="is not installed: `pip install"):
        open_subject(name, on=images)


def test_transformers_with_random_weights(images: Dataset, tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    config = library.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    library.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    looked = probing.probe("integrated_gradients", on=images, model=f"transformers:{tmp_path / 'vit'}", examples=3)
    assert looked.attributions["integrated gradients"][0].shape == (1, 8, 8)
    assert any("brought to 16x16" in note for note in looked.notes)
    with pytest.raises(AssayError, match="not on this machine, and nothing is downloaded"):
        open_subject("transformers:no/such-network", on=images)


def test_timm_with_random_weights(images: Dataset) -> None:
    pytest.importorskip("timm")
    looked = probing.probe("integrated_gradients", on=images, model="timm:resnet10t", examples=2, settings=["steps=4"])
    assert any("random ones" in note for note in looked.notes)
    with pytest.raises(AssayError, match="timm has no network 'resnet1x'"):
        open_subject("timm:resnet1x", on=images)


# ---------------------------------------------------------------------------------------------------- the network is left alone


def _leaves_traces(view: View) -> Seen:
    view.model.train()
    for parameter in view.model.parameters():
        parameter.requires_grad_(False)
    next(view.model.children()).register_forward_hook(lambda *_: None)
    torch.manual_seed(5)
    return Seen()


def test_modes_hooks_gradients_and_random_numbers_are_put_back(table: Dataset) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(), nn.Linear(4, 2))
    model[1].train()
    model[0].weight.requires_grad_(False)
    before = [module.training for module in model.modules()]
    subject = subject_of(_trained(partial(mlp, 8, 2, (4,)), table, 1), table, "a network")
    subject = opening.replace(subject, model=model.eval())
    model[1].train()
    torch.manual_seed(1)
    random = torch.get_rng_state()
    look(PAPER, _leaves_traces, subject, {}, examples=1)
    assert [module.training for module in model.modules()] == [False, False, True, False]
    assert before[2] is True
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_changed_weights_are_an_error_and_put_back() -> None:
    model = nn.Linear(2, 2)
    kept = model.weight.detach().clone()
    with pytest.raises(AssayError, match="changed 'weight' of the network"), untouched(model), torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(model.weight, kept)


class _Mixes(nn.Module):
    """Looks at the whole batch: no probe can say what an example did."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs - inputs.mean(dim=0))
        return logits


def test_networks_that_mix_a_batch_are_refused(table: Dataset) -> None:
    subject = opening.replace(subject_of(_trained(partial(mlp, 8, 2, (4,)), table, 1), table, "a mixer"), model=_Mixes())
    with pytest.raises(AssayError, match="a mixer says other things of an example when another stands beside it"):
        look(PAPER, find("integrated_gradients")[1], subject, {})


def _misshapen(view: View) -> Seen:
    return Seen(attributions={"odd": view.inputs[:, :3]})


def test_wrong_shapes_are_the_probes_fault(table: Dataset) -> None:
    subject = subject_of(_trained(partial(mlp, 8, 2, (4,)), table, 1), table, "a network")
    with pytest.raises(AssayError, match="mend the probe"):
        look(PAPER, _misshapen, subject, {})


# ---------------------------------------------------------------------------------------------------- showing


def _csv(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(80, 3)), columns=["a", "<b>x</b>", "c"])
    path = folder / "own.csv"
    frame.assign(label=np.where(frame.a > 0, "<script>alert(1)</script>", "down")).to_csv(path, index=False)
    return path


def test_command_prints_a_table_json_and_a_page(tmp_path: Path) -> None:
    path = _csv(tmp_path)
    machine = CliRunner().invoke(cli.app, ["probe", "integrated_gradients", "--on", str(path), "--examples", "3", "--json"])
    assert machine.exit_code == 0, machine.output
    found = json.loads(machine.stdout)
    assert len(found["examples"]) == 3
    assert len(found["examples"][0]["attributions"]["integrated gradients"]) == 3
    assert next(iter(found["columns"]["integrated gradients"])) == "a"
    out = tmp_path / "page"
    person = CliRunner().invoke(cli.app, ["probe", "deepfool", "--on", str(path), "--set", "norm=inf", "--out", str(out)])
    assert person.exit_code == 0, person.output
    assert "median size of the push" in person.stdout
    page = (out / "probe.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "<b>x</b>" not in page
    assert (out / "attributions.safetensors").is_file()
    listed = CliRunner().invoke(cli.app, ["probe"])
    assert "deepfool" in listed.stdout
    lost = CliRunner().invoke(cli.app, ["probe", "deepfool"])
    assert isinstance(lost.exception, AssayError)


def test_pages_of_images_series_and_texts(images: Dataset, tmp_path: Path) -> None:
    subject = subject_of(_trained(partial(lenet, 1, 2, 8), images, 1), images, "a LeNet")
    looked = look(*find("deepfool"), subject, {}, examples=2)
    page = write_page(looked, tmp_path / "images").read_text()
    assert page.count("data:image/png;base64,") == 2 * 3  # image, push, pushed image
    inputs = torch.randn(40, 1, 30, generator=torch.Generator().manual_seed(0))
    whole = Split(inputs, (inputs.mean(dim=(1, 2)) > 0).long())
    parts = [whole.take(torch.arange(*ends)) for ends in ((0, 30), (30, 30), (30, 40))]
    series = prepared(Dataset("waves", "classification", *parts, classes=("low", "high")))[0]
    looked = probing.probe("integrated_gradients", on=series, examples=2)
    assert looked.kind == "series"
    assert write_page(looked, tmp_path / "series").read_text().count("data:image/png;base64,") == 2


def test_recordings(tmp_path: Path) -> None:
    """Two notes: what speaks for one lies in the bands of that note."""
    from scipy.io import wavfile

    rng = np.random.default_rng(0)
    time = np.arange(8000) / 8000
    for number in range(40):
        note = ("low", 440) if number % 2 else ("high", 2000)
        place = tmp_path / "notes" / note[0] / f"{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.5 * np.sin(2 * np.pi * note[1] * time + rng.uniform(0, 6)) + 0.01 * rng.normal(size=8000)
        wavfile.write(place, 8000, (wave * 32000).astype(np.int16))
    looked = probing.probe("integrated_gradients", on=tmp_path / "notes", examples=2, settings=["steps=10"])
    assert looked.kind == "audio"
    assert write_page(looked, tmp_path / "page").read_text().count("data:image/png;base64,") == 4
    found = {one.name: one for one in suggest(tmp_path / "notes").findings}
    assert found["no-signal"].value == pytest.approx(1, abs=0.02)


def test_infinite_numbers_stay_json(table: Dataset) -> None:
    def endless(view: View) -> Seen:
        return Seen(numbers={"far": float("inf")}, each={"far": torch.full((len(view.inputs),), float("inf"))})

    subject = subject_of(_trained(partial(mlp, 8, 2, (4,)), table, 1), table, "a network")
    plain = look(PAPER, endless, subject, {}, examples=2).as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["numbers"] == {"far": None}


def test_terminal_shows_words_and_columns(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from assay import show
    from assay.own.looking import print_looked

    out = Console(record=True, width=120, file=io.StringIO())
    monkeypatch.setattr(show, "console", lambda: out)
    print_looked(probing.probe("integrated_gradients", on=table, examples=3))
    text = out.export_text()
    for words in ("network: baseline", "mean size by column", "x0", "score above the baseline's"):
        assert words in text
