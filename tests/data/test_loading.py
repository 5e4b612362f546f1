"""Named data sets: the registry, everything embedded, public sets where a mirror is named, packages where they are cached."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.data import available, load
from assay.data.registry import REGISTRY, find, is_here
from assay.errors import AssayError

EMBEDDED = {
    "digits": (1437, 360, (1, 8, 8), 10),
    "mnist5k": (4000, 1000, (1, 28, 28), 10),
    "digits16": (4000, 1000, (1, 16, 16), 10),
    "breast-cancer": (455, 114, (30,), 2),
    "wine": (142, 36, (13,), 3),
    "iris": (120, 30, (4,), 3),
    "diabetes": (354, 88, (10,), 1),
}
PUBLIC = {
    "mnist": (60_000, 0, 10_000, 10),
    "fashion-mnist": (60_000, 0, 10_000, 10),
    "mnist16": (7_291, 0, 2_007, 10),
    "mnist16-50k": (50_000, 0, 2_007, 10),
    "usps": (7_291, 0, 2_007, 10),
    "cifar10-20k": (20_000, 0, 4_000, 10),
    "spoken-digits": (2_700, 0, 300, 10),
    "ag-news": (6_000, 0, 1_600, 4),
    "mr": (9_596, 0, 1_066, 2),
    "subj": (9_000, 0, 1_000, 2),
    "cr": (3_389, 0, 376, 2),
    "mpqa": (7_416, 0, 824, 2),
    "trec": (5_452, 0, 500, 6),
    "sst1": (8_544, 1_101, 2_210, 5),
    "sst2": (6_920, 872, 1_821, 2),
    "adult": (32_561, 0, 16_281, 2),
    "german-credit": (800, 0, 200, 2),
}

COMMENTS = {"comments-java": (1_334, 334, 7), "comments-python": (1_839, 460, 5), "comments-pharo": (1_296, 324, 7)}


def public(name: str):  # type: ignore[no-untyped-def]
    if not os.environ.get("ASSAY_MIRROR"):
        pytest.skip("public data sets are tested where ASSAY_MIRROR names a mirror")
    return load(name)


def packaged(name: str):  # type: ignore[no-untyped-def]
    if not is_here(find(name)) and os.environ.get("ASSAY_TEST_PIP") != "1":
        pytest.skip(f"{find(name).files[0].path} is not in the cache, and ASSAY_TEST_PIP=1 is not set")
    return load(name)


def test_listing_needs_no_torch() -> None:
    code = "import sys; from assay.data import available; available(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


def test_every_row_is_complete() -> None:
    rows = available()
    assert len({row.name for row in rows}) == len(rows) == len(REGISTRY)
    for row in rows:
        assert row.what
        assert row.licence
        assert row.tier in ("embedded", "package", "public")
        assert row.task in ("classification", "multilabel", "regression", "triples", "rating", "vectors", "votes", "photos")
        assert (row.size > 0) == (row.tier != "embedded")
    assert {row.name for row in rows if row.tier == "embedded" and row.here} == set(EMBEDDED)
    assert {row.name for row in rows if row.tier == "public"} == {
        *PUBLIC,
        *COMMENTS,
        "cifar10",
        "cifar10h",
        "cifar10h-4k",
        "cbsd68",
    }


def test_every_file_is_pinned() -> None:
    for entry in (REGISTRY).values():
        for file in entry.files:
            assert len(file.sha256) == 64
            assert file.urls
            assert not Path(file.path).is_absolute()
            assert all(url.startswith(("https://", "http://", "pip:")) for url in file.urls)
        assert entry.source


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AssayError, match="'fashion_minst'; did you mean fashion-mnist"):
        load("fashion_minst")
    with pytest.raises(AssayError, match="assay data"):
        load("qqqqqqqq")


def test_two_calls_give_one_object() -> None:
    assert load("wine") is load("wine")


def test_a_loaded_set_that_was_written_into_is_not_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path))  # a copy of its own, so that other tests keep theirs
    load("iris").train.inputs.mul_(2)
    with pytest.raises(AssayError, match="wrote into the train tensors of data set 'iris'"):
        load("iris")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name: str) -> None:
    train, test, shape, classes = EMBEDDED[name]
    data = load(name)
    assert (len(data.train), len(data.valid), len(data.test)) == (train, 0, test)
    assert (data.input_shape, data.num_classes) == (shape, classes)
    assert data.train.inputs.dtype == torch.float32
    assert data.history == ()
    assert data.licence
    assert data.source
    if data.task == "classification":
        share = [torch.bincount(split.labels, minlength=classes).double() / len(split) for split in (data.train, data.test)]
        assert float((share[0] - share[1]).abs().max()) < 0.02
    rows = {bytes(row.numpy().tobytes()) for row in data.train.inputs}
    repeated = sum(bytes(row.numpy().tobytes()) in rows for row in data.test.inputs)
    assert repeated <= (1 if name == "iris" else 0)  # Fisher's table holds two flowers twice


def test_ranges() -> None:
    for name, low, high in (("digits", 0.0, 1.0), ("mnist5k", 0.0, 1.0), ("digits16", -1.0, 1.0)):
        inputs = load(name).train.inputs
        assert float(inputs.min()) == low
        assert float(inputs.max()) == pytest.approx(high, abs=0.02)


def test_the_splits_never_change() -> None:
    """Evidence is recorded under these fingerprints; a change here makes every training of it another one."""
    expected = {"digits": "82c40fc94dba8b994544f9af20c62ee5", "wine": "87bb9cb3980f5235a465df5643e722ae"}
    assert {name: load(name).fingerprint for name in expected} == expected


def test_a_parsed_copy_that_was_spoilt_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.data.build import parsed

    monkeypatch.setenv("ASSAY_HOME", str(tmp_path))
    calls = []

    def parse() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"values": torch.arange(1000)}

    for _ in range(2):
        assert torch.equal(parsed("kind", "key", parse)["values"], torch.arange(1000))
    assert len(calls) == 1
    (place,) = (tmp_path / "data" / "parsed").glob("*.safetensors")
    content = bytearray(place.read_bytes())
    content[-5] ^= 1
    place.write_bytes(content)
    assert torch.equal(parsed("kind", "key", parse)["values"], torch.arange(1000))
    assert len(calls) == 2
    place.write_bytes(b"")
    parsed("kind", "key", parse)
    parsed("kind", "another key", parse)
    assert len(calls) == 4


@pytest.mark.parametrize("name", PUBLIC)
def test_public_sets(name: str) -> None:
    data = public(name)
    assert (len(data.train), len(data.valid), len(data.test), data.num_classes) == PUBLIC[name]
    assert set(data.train.labels.tolist()) == set(range(data.num_classes))
    if isinstance(data.train.inputs, tuple):
        assert all(isinstance(text, str) and text for text in data.train.inputs + data.test.inputs)
        if "our own" in data.source:
            assert not set(data.train.inputs) & set(data.test.inputs)


@pytest.mark.parametrize("name", COMMENTS)
def test_comments_have_several_labels_and_stand_on_one_side(name: str) -> None:
    data = public(name)
    assert (len(data.train), len(data.test), data.num_classes) == COMMENTS[name]
    sentences = [text.rpartition(" | ")[0] for split in (data.train, data.test) for text in split.inputs]
    assert len(set(sentences)) == len(sentences)
    labels = torch.cat([data.train.labels, data.test.labels])
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    assert int(labels.sum(dim=1).min()) == 1
    assert int(labels.sum(dim=1).max()) > 2


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion-mnist", 0.2860)])
def test_pixels_have_the_published_mean(name: str, mean: float) -> None:
    assert float(public(name).train.inputs.double().mean()) == pytest.approx(mean, abs=1e-4)


def test_cifar_has_its_published_counts() -> None:
    data = public("cifar10-20k")
    assert data.input_shape == (3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [2000] * 10
    assert torch.bincount(data.test.labels).tolist() == [400] * 10
    assert data.classes[int(data.train.labels[0])] == "frog"  # the first training image of the canonical order
    means = data.train.inputs.double().mean(dim=(0, 2, 3))
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=0.005)


def test_spoken_digits_lie_by_speaker_and_digit() -> None:
    data = public("spoken-digits")
    assert data.input_shape == (1, 8_000)
    assert torch.equal(data.train.labels, torch.arange(10).repeat_interleave(45).repeat(6))
    assert torch.equal(data.test.labels, torch.arange(10).repeat_interleave(5).repeat(6))
    waves = torch.cat([data.train.inputs, data.test.inputs])
    assert -1 <= float(waves.min()) < -0.9
    # Speakers differ in how loud they recorded: the order is theirs, or neighbours would differ as much as anybody.
    loud = data.train.inputs.square().mean(dim=(1, 2)).sqrt().log().view(6, 450)
    assert float(loud.std(dim=1).mean()) < 0.6 * float(loud.flatten().std())


def test_mnist16_sets_share_their_test_digits() -> None:
    small, large = public("mnist16"), public("mnist16-50k")
    assert torch.equal(small.test.inputs, large.test.inputs)
    assert float(small.train.inputs.min()) == -1.0


@pytest.mark.parametrize(
    ("name", "start", "answer"),
    [
        ("trec", "How far is it from Denver to Aspen", "number"),
        ("trec", "What county is Modesto", "location"),
        ("trec", "Who was Galileo", "human"),
        ("trec", "What does the abbreviation AIDS", "abbreviation"),
        ("subj", "smart and alert , thirteen conversations", "subjective"),
        ("mr", "simplistic , silly and tedious", "negative"),
        ("sst1", "no movement , no yuks", "negative"),
        ("sst2", "a stirring , funny and finally transporting", "positive"),
        ("cr", "weaknesses are minor", "negative"),
        ("mpqa", "complaining", "negative"),
        ("ag-news", "The Race is On: Second Private Team", "Sci/Tech"),
        ("movie-reviews", "interminably bleak", "negative"),
    ],
)
def test_class_names_are_the_right_way_round(name: str, start: str, answer: str) -> None:
    data = packaged(name) if name == "movie-reviews" else public(name)
    found = [
        data.classes[int(label)]
        for split in (data.train, data.test)
        for text, label in zip(split.inputs, split.labels, strict=True)
        if text.startswith(start)
    ]
    assert answer in found
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes"),
    [
        ("movie-reviews", (7_677, 0, 853), (), 2),
        ("imdb", (19_904, 0, 5_000), (), 2),
        ("keel-letter", (16_000, 0, 4_000), (16,), 26),
        ("keel-mushroom", (4_515, 0, 1_129), (98,), 2),
        ("keel-abalone19", (3_339, 0, 835), (10,), 2),
        ("gunpoint", (50, 0, 150), (1, 150), 2),
        ("osuleaf", (200, 0, 242), (1, 427), 6),
        ("italypowerdemand", (67, 0, 1_029), (1, 24), 2),
        ("basicmotions", (40, 0, 40), (6, 100), 4),
        ("umls", (5_216, 652, 661), (2,), 135),
        ("kinships", (8_544, 1_068, 1_074), (2,), 104),
        ("nations", (1_592, 199, 201), (2,), 14),
        ("ml-100k", (80_000, 10_000, 10_000), (2,), 1),
    ],
)
def test_packaged_sets(name: str, sizes: tuple[int, int, int], shape: tuple[int, ...], classes: int) -> None:
    data = packaged(name)
    assert (len(data.train), len(data.valid), len(data.test)) == sizes
    assert (data.input_shape, data.num_classes) == (shape, classes)


def test_every_packaged_table_and_series_loads() -> None:
    for name, entry in REGISTRY.items():
        if entry.loader in ("packaged:keel", "packaged:series"):
            data = packaged(name)
            assert len(data.features) == (data.input_shape[0] if entry.loader == "packaged:keel" else 0)


def test_triples_and_ratings() -> None:
    nations = packaged("nations")
    head, relation = nations.train.inputs[0].tolist()
    first = (nations.classes[head], nations.features[relation], nations.classes[int(nations.train.labels[0])])
    assert first == ("netherlands", "militaryalliance", "uk")
    films = packaged("ml-100k")
    everything = torch.cat([films.train.inputs, films.valid.inputs, films.test.inputs])
    assert everything.min(dim=0).values.tolist() == [0, 0]
    assert everything.max(dim=0).values.tolist() == [942, 1681]
    assert set(films.train.labels.tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_vectors_of_word_pieces() -> None:
    data = packaged("minilm-pieces")
    assert data.train.inputs.shape == (30_522, 384)
    assert len(data.features) == 30_522
    place = {piece: number for number, piece in enumerate(data.features)}
    vectors = torch.nn.functional.normalize(data.train.inputs, dim=1)
    good, great, table = (vectors[place[word]] for word in ("good", "great", "table"))
    assert good @ great > good @ table + 0.2


def test_photos_without_labels() -> None:
    data = public("cbsd68")
    assert data.train.inputs.shape == (44, 3, 321, 481)
    assert len(data.valid) == len(data.test) == 12
    numbers = torch.cat([split.labels for split in (data.train, data.valid, data.test)])
    assert sorted(numbers.tolist()) == list(range(68))
    assert 0.3 < float(data.train.inputs.mean()) < 0.6


def test_tables_without_a_header_have_the_published_counts() -> None:
    adult = public("adult")
    assert [int(split.labels.sum()) for split in (adult.train, adult.test)] == [7_841, 3_846]
    assert float(adult.train.inputs[:, adult.features.index("sex = Female")].sum()) == 10_771
    assert "occupation = unknown" in adult.features
    assert len(adult.features) == 6 + 102  # numbers, and values of qualities
    german = public("german-credit")
    assert int(german.train.labels.sum() + german.test.labels.sum()) == 300
