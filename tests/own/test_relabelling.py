"""Mending labels: whom to ask, what comes back from several people, and labels that are written without touching the data."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.data import load
from assay.errors import AssayError
from assay.own import read
from assay.own.answers import COLUMNS, Answer, Taken, add_answers, cell, load_answers, settle, uncell
from assay.own.named import Named
from assay.own.relabelling import ANSWERS, LABELS, QUEUE, Mended, Queue, make_queue, take_answers

pytest.importorskip("jinja2")


@pytest.fixture(autouse=True)
def _home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of another test, and a folder of this test's own to write into."""
    monkeypatch.chdir(tmp_path)


def _table(folder: Path, count: int = 200, wrong: int = 20, name: str = "own.csv") -> tuple[Path, pd.DataFrame, list[int]]:
    """A table in which some labels are wrong, its rows with the right ones, and the numbers of the wrong rows."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(count, 3)).round(3), columns=["a", "b", "c"])
    frame["label"] = np.where(frame.a + frame.b > 0, "up", "down")
    rows = np.sort(rng.permutation(count)[:wrong])
    noisy = frame.copy()
    noisy.loc[rows, "label"] = np.where(frame.label[rows] == "up", "down", "up")
    noisy.to_csv(folder / name, index=False)
    return folder / name, frame, (rows + 1).tolist()


def _photos(folder: Path, count: int = 200) -> tuple[Path, dict[str, str]]:
    """Images in folders of which some are wrong, and the true class of each."""
    digits = load("digits").subset(train=count, seed=0).flip_labels(0.1, seed=0)
    assert isinstance(digits.train.inputs, torch.Tensor)
    assert digits.train.clean_labels is not None
    pixels = (digits.train.inputs[:, 0] * 255).round().to(torch.uint8).numpy()
    true = {}
    for number, (image, label, right) in enumerate(
        zip(pixels, digits.train.labels.tolist(), digits.train.clean_labels.tolist(), strict=True)
    ):
        place = folder / "photos" / str(label) / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
        true[f"{label}/{number:03d}.png"] = str(right)
    return folder / "photos", true


def _fill(queue: Queue, answers: dict[str, str], to: Path, who: str = "") -> Path:
    """What a person makes of the table in a spreadsheet."""
    with (queue.folder / QUEUE).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with to.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"answer": answers.get(row["id"], ""), "who": who})
    return to


def _page(queue: Queue, answers: dict[str, str], to: Path, who: str, when: str = "2026-01-01T10:00:00.000Z") -> Path:
    """What the page's button gives."""
    rows = [
        {"id": item.id, "mark": item.mark, "answer": answers[item.id], "action": "other", "when": when}
        for item in queue.items
        if item.id in answers
    ]
    rows.append({"id": "skipped", "mark": "", "answer": None, "action": "skip", "when": when})
    to.write_text(
        json.dumps({"format": "assay-answers", "queue": queue.questions.key, "who": who, "answers": rows}), encoding="utf-8"
    )
    return to


def _answer(example: str, answer: str, who: str, when: str = "2026-01-01", mark: str = "") -> Answer:
    return Answer(example, mark, answer, who, when, "file.csv")


# ---------------------------------------------------------------------------------------------------- the whole way


def test_a_table_is_mended_in_rounds_and_stays_as_it_was(tmp_path: Path) -> None:
    path, right, wrong = _table(tmp_path)
    before = path.read_bytes()
    queue = make_queue(path, most=25)
    asked = [int(item.id) for item in queue.items]
    assert np.isin(asked, wrong).mean() > 0.7
    assert len(set(asked)) == len(asked)
    truth = {str(row): right.label[row - 1] for row in range(1, 201)}
    mended = take_answers(path, [_fill(queue, truth, tmp_path / "anna.csv")])
    assert set(map(int, mended.changed)) == set(asked) & set(wrong)
    assert mended.kept == len(asked) - len(mended.changed)
    copy = pd.read_csv("own-relabel/own-relabelled.csv")
    expected = pd.read_csv(path)
    for row in mended.changed:
        expected.loc[int(row) - 1, "label"] = truth[row]
    pd.testing.assert_frame_equal(copy, expected)
    labels = pd.read_csv(f"own-relabel/{LABELS}", keep_default_na=False)
    assert labels.label.tolist() == expected.label.tolist()
    assert set(labels.state) == {"", "kept", "changed"}
    assert path.read_bytes() == before
    again = make_queue(path)
    assert again.settled == len(asked)
    assert not {item.id for item in again.items} & {item.id for item in queue.items}
    assert again.questions.key != queue.questions.key


def test_images_are_known_by_their_content_when_they_are_moved(tmp_path: Path) -> None:
    photos, true = _photos(tmp_path)
    queue = make_queue(photos)
    mended = take_answers(photos, [_page(queue, true, tmp_path / "anna.json", "anna")])
    assert len(mended.changed) >= 10
    for name, (_, label) in mended.changed.items():  # as a person would, by hand
        (photos / name).rename(photos / label / Path(name).name)
    again = take_answers(photos, [tmp_path / "anna.json"])
    assert (again.changed, again.lost) == ({}, 0)
    assert again.kept == len(queue.items)
    name = next(iter(mended.changed))
    (photos / mended.changed[name][1] / Path(name).name).unlink()
    assert take_answers(photos, [tmp_path / "anna.json"]).lost == 1


def test_the_labels_are_read_as_data_again(tmp_path: Path) -> None:
    photos, true = _photos(tmp_path)
    queue = make_queue(photos)
    take_answers(photos, [_page(queue, true, tmp_path / "anna.json", "anna")])
    shutil.copy(f"photos-relabel/{LABELS}", photos / LABELS)
    data = read(photos / LABELS, "label")
    assert len(data.train) + len(data.valid) + len(data.test) == 200
    assert data.classes == tuple("0123456789")


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    path, _, _ = _table(tmp_path)
    frame = pd.read_csv(path)
    frame["label"] = (frame.label == "up").astype("int8")
    frame.to_parquet(tmp_path / "own.parquet", index=False)
    queue = make_queue(tmp_path / "own.parquet")
    mended = take_answers(
        tmp_path / "own.parquet", [_fill(queue, {queue.items[0].id: queue.items[0].believed}, tmp_path / "a.csv")]
    )
    copy = pd.read_parquet("own-relabel/own-relabelled.parquet")
    ((row, (_, label)),) = mended.changed.items()
    frame.loc[int(row) - 1, "label"] = int(label)
    pd.testing.assert_frame_equal(copy, frame)


def test_texts_with_other_separators_and_encodings_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["Fußball", "Tor", "Spiel", "Größe", "Maß", "Öl"])
    texts = [" ".join([*rng.choice(words, 5), "gut; sehr" if n % 2 else "schlecht"]) for n in range(80)]
    labels = ["gut" if n % 2 else "schlecht" for n in range(80)]
    labels[10], labels[31] = "gut", "schlecht"
    named = Named(target="label", text="text")
    path = tmp_path / "texte.csv"
    pd.DataFrame({"nr": [f"0{n}" for n in range(80)], "text": texts, "label": labels}).to_csv(
        path, index=False, sep=";", encoding="cp1252"
    )
    queue = make_queue(path, named, most=5)
    assert {"11", "32"} <= {item.id for item in queue.items}
    mended = take_answers(path, [_fill(queue, {"11": "schlecht", "32": "GUT "}, tmp_path / "a.csv")], named)
    assert mended.changed == {"11": ("gut", "schlecht"), "32": ("schlecht", "gut")}
    old, new = (file.read_bytes().splitlines() for file in (path, Path("texte-relabel/texte-relabelled.csv")))
    assert [place for place, (one, other) in enumerate(zip(old, new, strict=True)) if one != other] == [11, 32]


# ---------------------------------------------------------------------------------------------------- several people


def test_several_people_in_several_forms(tmp_path: Path) -> None:
    path, _, _ = _table(tmp_path)
    queue = make_queue(path, most=6)
    one, two, three, four, five, six = (item.id for item in queue.items)
    given = {item.id: item.given for item in queue.items}
    other = {name: "up" if label == "down" else "down" for name, label in given.items()}
    anna = _page(
        queue, {one: other[one], two: other[two], three: given[three], five: other[five]}, tmp_path / "anna.json", "anna"
    )
    ben = _fill(queue, {one: other[one], two: given[two], five: other[five], six: "sideways"}, tmp_path / "ben.csv")
    carl = _page(queue, {five: given[five]}, tmp_path / "carl.json", "carl")
    mended = take_answers(path, [anna, ben, carl])
    assert set(mended.changed) == {one, five}
    assert mended.kept == 1
    assert mended.majority == [five]
    assert mended.open == {two: {"anna": other[two], "ben": given[two]}}
    (problem,) = mended.taken[str(ben)].problems
    assert "'sideways'" in problem
    assert given[four] == dict(pd.read_csv(f"own-relabel/{LABELS}")[["id", "label"]].astype(str).to_numpy().tolist())[four]
    repeated = take_answers(path, [anna, ben, carl])
    assert [taken.repeated for taken in repeated.taken.values()] == [4, 3, 1]
    assert not any(taken.new for taken in repeated.taken.values())
    # What people differ on is asked first; what is settled is not asked again.
    again = make_queue(path, most=50)
    assert again.items[0].id == two
    assert not {one, three, five} & {item.id for item in again.items}
    assert again.open == 1
    # Anna thinks better of it: her last word counts.
    mended = take_answers(path, [_page(queue, {two: given[two]}, tmp_path / "late.json", "anna", "2026-01-02T10:00:00.000Z")])
    assert mended.open == {}
    kept = load_answers(Path("own-relabel") / ANSWERS)
    assert [one.answer for one in kept if (one.id, one.who) == (two, "anna")] == [other[two], given[two]]


def test_partly_filled_then_filled_further(tmp_path: Path) -> None:
    path, _, _ = _table(tmp_path)
    queue = make_queue(path, most=4)
    names = [item.id for item in queue.items]
    back = tmp_path / "anna.csv"
    _fill(queue, {names[0]: "up"}, back)
    take_answers(path, [back])
    _fill(queue, {names[0]: "up", names[1]: "down"}, back)
    taken = take_answers(path, [back]).taken[str(back)]
    assert (len(taken.new), taken.repeated) == (1, 1)
    _fill(queue, {names[0]: "down", names[1]: "down"}, back)
    later = back.stat().st_mtime + 60
    os.utime(back, (later, later))
    mended = take_answers(path, [back])
    assert {one.id: one.answer for one in load_answers(Path("own-relabel") / ANSWERS)} == {names[0]: "down", names[1]: "down"}
    assert len(mended.taken[str(back)].new) == 1


def test_rows_that_moved_are_found_and_changed_ones_are_not_touched(tmp_path: Path) -> None:
    path, _, _ = _table(tmp_path)
    queue = make_queue(path, most=3)
    answers = _fill(queue, {item.id: item.believed for item in queue.items}, tmp_path / "a.csv")
    take_answers(path, [answers])
    frame = pd.read_csv(path)
    moved = pd.concat([frame.iloc[100:], frame.iloc[:100]])
    first, second = int(queue.items[0].id) - 1, int(queue.items[1].id) - 1
    moved.loc[second, "a"] += 1  # is another example now
    moved.to_csv(path, index=False)
    mended = take_answers(path, [answers])
    where = moved.index.get_loc(first) + 1
    assert mended.changed[str(where)] == (queue.items[0].given, queue.items[0].believed)
    assert str(moved.index.get_loc(second) + 1) not in mended.changed
    assert mended.lost == 1


def test_what_a_spreadsheet_does_to_cells() -> None:
    for text in ("=1+1", "+x", "-x", "@me", "'quoted", "\tx"):
        assert cell(text) == f"'{text}"
        assert uncell(cell(text)) == text
    for text in ("plain", "-1", "+2.5", "1/3.png", ""):
        assert cell(text) == text
        assert uncell(text) == text
    assert uncell("'tis") == "'tis"


def test_formulas_and_markup_in_classes_and_texts_come_back(tmp_path: Path) -> None:
    names = {"up": "=cmd|' /C calc'!A0", "down": "<script>alert(1)</script>"}
    path, _, _ = _table(tmp_path)
    frame = pd.read_csv(path)
    frame["label"] = frame.label.map(names)
    frame.to_csv(path, index=False)
    queue = make_queue(path, most=5)
    text = (queue.folder / QUEUE).read_text(encoding="utf-8-sig")
    assert ",=cmd" not in text
    page = (queue.folder / "review.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    item = next(item for item in queue.items if item.given == names["down"])
    mended = take_answers(path, [_fill(queue, {item.id: cell(names["up"])}, tmp_path / "a.csv")])
    assert mended.changed == {item.id: (names["down"], names["up"])}
    assert pd.read_csv("own-relabel/own-relabelled.csv").label[int(item.id) - 1] == names["up"]


@pytest.mark.parametrize("name", ["null", "NA", "None"])
def test_a_class_called_nothing_is_a_class(tmp_path: Path, name: str) -> None:
    photos, _ = _photos(tmp_path, 100)
    (photos / "3").rename(photos / name)
    queue = make_queue(photos, most=4)
    mended = take_answers(photos, [_fill(queue, {item.id: name for item in queue.items}, tmp_path / "a.csv")])
    assert mended.kept + len(mended.changed) == len(queue.items)
    assert all(label == name for _, label in mended.changed.values())


def test_answers_are_weighed_by_hand() -> None:
    found = settle(
        [
            _answer("1", "a", "anna"),
            _answer("1", "b", "ben"),
            _answer("2", "a", "anna", "2026-01-02"),
            _answer("2", "b", "anna", "2026-01-01"),
            _answer("3", "a", "anna"),
            _answer("3", "a", "ben"),
            _answer("3", "b", "carl"),
        ]
    )
    assert {name: (one.label, one.state) for name, one in found.items()} == {
        "1": (None, "open"),
        "2": ("a", "agreed"),
        "3": ("a", "majority"),
    }


def test_many_give_answers_at_once_and_none_is_lost(tmp_path: Path) -> None:
    store = tmp_path / ANSWERS

    def give(person: int) -> None:
        for number in range(5):
            add_answers(store, [_answer(str(number), "a", f"person {person}")], Taken())

    people = [threading.Thread(target=give, args=(number,)) for number in range(6)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    kept = load_answers(store)
    assert len({(one.id, one.who) for one in kept}) == len(kept) == 30


# ---------------------------------------------------------------------------------------------------- refusals


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path, _, _ = _table(tmp_path)
    queue = make_queue(path, most=2)
    bad = tmp_path / "bad.json"
    bad.write_text("{", encoding="utf-8")
    with pytest.raises(AssayError, match="no readable JSON"):
        take_answers(path, [bad])
    bad.write_text('{"answers": []}', encoding="utf-8")
    with pytest.raises(AssayError, match="holds no answers of a page"):
        take_answers(path, [bad])
    with pytest.raises(AssayError, match="has no column answer"):
        take_answers(path, [_written(tmp_path / "b.csv", "id,said\n1,up\n")])
    with pytest.raises(AssayError, match="There is no file"):
        take_answers(path, [tmp_path / "c.csv"])
    mended = take_answers(path, [_written(tmp_path / "d.csv", "id,answer\n999,up\nx,up\n1.0,up\n")])
    assert "2 answers in d.csv are about examples that are not there: '999' (row 1), 'x' (row 2)" in _problems(mended)
    assert [one.id for one in load_answers(queue.folder / ANSWERS)] == ["1"]
    _written(queue.folder / ANSWERS, "nonsense\n")
    with pytest.raises(AssayError, match="not as assay wrote it"):
        make_queue(path)
    numbers = tmp_path / "numbers.csv"
    pd.DataFrame({"a": np.arange(50.0), "y": np.arange(50) * 1.5}).to_csv(numbers, index=False)
    with pytest.raises(AssayError, match="is a number"):
        make_queue(numbers, Named(target="y"))
    photos, _ = _photos(tmp_path, 60)
    with pytest.raises(AssayError, match="lies in the data"):
        make_queue(photos, folder=photos / "queue")
    with pytest.raises(AssayError, match="asks for nothing"):
        make_queue(path, most=0)


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _problems(mended: Mended) -> str:
    return " ".join(problem for taken in mended.taken.values() for problem in taken.problems)


def test_the_command_line(tmp_path: Path) -> None:
    path, _, _ = _table(tmp_path)
    run = CliRunner()
    first = run.invoke(cli.app, ["relabel", "--on", str(path)], catch_exceptions=False)
    assert "own-relabel/review.html" in first.stdout
    said = json.loads(run.invoke(cli.app, ["relabel", "--on", str(path), "--json"], catch_exceptions=False).stdout)
    assert said["asked"] > 5
    with (Path("own-relabel") / QUEUE).open(encoding="utf-8-sig", newline="") as file:
        (row, *_) = csv.DictReader(file)
    _written(tmp_path / "a.csv", f"id,answer\n{row['id']},{row['believed']}\n")
    _written(tmp_path / "b.csv", f"id,answer\n{row['id']},{row['given']}\n7,nonsense\n")
    both = ["relabel", "--on", str(path), "--answers", str(tmp_path / "a.csv"), "--answers", str(tmp_path / "b.csv")]
    second = run.invoke(cli.app, both, catch_exceptions=False)
    assert second.exit_code == 1  # not all was understood
    shown = " ".join(second.stdout.split())
    assert "People differ on 1, as many on either side" in shown
    assert "'nonsense' for 7 (row 2)" in shown
    said = json.loads(run.invoke(cli.app, [*both, "--json"], catch_exceptions=False).stdout)
    assert list(said["open"]) == [row["id"]]
    assert tuple(pd.read_csv(Path("own-relabel") / ANSWERS).columns) == COLUMNS
