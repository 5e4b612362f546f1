"""The page for mending labels in a real browser: by keys, by mouse, through a reload, out and back in, and with evil data."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from assay.data import load
from assay.own.named import Named
from assay.own.relabelling import PAGE, Queue, make_queue, take_answers

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_MISSING = [name for name in ("jinja2", "playwright", "axe_playwright_python") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)"),
]

EVIL = "</script><script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">&amp; {{ 7*7 }} \u2028"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


class Visitor:
    """Opens pages from files, in one profile; whatever a page complains of fails the test."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1100, "height": 800}, **options)
        self.wrong: list[str] = []

    def open(self, file: Path, **how: Any) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on(
            "request", lambda asked: None if asked.url.startswith(("data:", "file:", "blob:")) else self.wrong.append(asked.url)
        )
        page.goto(file.resolve().as_uri(), **how)
        return page


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    one = Visitor(browser)
    yield one
    one.context.close()
    assert not one.wrong


@pytest.fixture(autouse=True)
def _home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of another test, and a folder of this test's own to write into."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digits(tmp_path: Path) -> Queue:
    """Images of digits of which some lie in wrong folders: eight are asked about."""
    data = load("digits").subset(train=200, seed=0).flip_labels(0.1, seed=0)
    assert isinstance(data.train.inputs, torch.Tensor)
    pixels = (data.train.inputs[:, 0] * 255).round().to(torch.uint8).numpy()
    for number, (image, label) in enumerate(zip(pixels, data.train.labels.tolist(), strict=True)):
        place = tmp_path / "digits" / str(label) / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return make_queue(tmp_path / "digits", most=8)


def _progress(page: Page) -> str:
    return page.locator("#progress").inner_text()


def _download(page: Page, kind: str, to: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f"Download {kind}").click()
    waiting.value.save_as(to)
    return to


def test_by_keys_through_a_reload_and_back_into_the_labels(visitor: Visitor, digits: Queue, tmp_path: Path) -> None:
    page = visitor.open(digits.folder / PAGE)
    items = digits.items
    assert _progress(page) == "0 of 8 answered"
    assert page.locator("#given").inner_text() == items[0].given
    picture = "document.querySelector('#example img').naturalWidth"
    assert page.evaluate(picture) >= 64
    third = next(name for name in "0123456789" if name not in (items[2].given, items[2].believed))
    page.keyboard.press("k")
    page.keyboard.press("b")
    page.keyboard.press(third)  # classes of one letter have their own key
    page.keyboard.press("s")
    page.keyboard.press("o")
    page.keyboard.type(third)
    page.keyboard.press("Enter")
    assert _progress(page) == "4 of 8 answered, 1 skipped"
    page.reload()
    assert _progress(page) == "4 of 8 answered, 1 skipped"
    assert page.locator("#id").inner_text() == f"6 / 8: {items[5].id}"
    page.keyboard.press("z")
    assert page.locator("#said").inner_text() == f"you said: {third}"
    page.keyboard.press("k")  # thinks better of it
    page.close()
    page = visitor.open(digits.folder / PAGE)  # another day
    page.get_by_label("Your name").fill("Änne B.")
    page.get_by_label("Your name").press("k")  # typing is no answer
    page.get_by_label("Your name").press("Backspace")
    page.get_by_label("Your name").press("Enter")
    for _ in range(3):
        page.keyboard.press("b")
    assert page.locator("#end").is_visible()
    assert page.locator("#sum").inner_text() == "7 answered, 1 skipped, 0 not come to."
    page.get_by_role("button", name="go through the skipped ones").click()
    assert page.locator("#id").inner_text() == f"4 / 8: {items[3].id}"
    page.keyboard.press("b")
    assert page.locator("#sum").inner_text() == "8 answered, 0 skipped, 0 not come to."
    said = [items[0].given, items[1].believed, third, items[3].believed, items[4].given, *(item.believed for item in items[5:])]
    back = json.loads(_download(page, "JSON", tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [row["answer"] for row in back["answers"]] == said
    assert back["who"] == "Änne B."
    rows = list(csv.DictReader(_download(page, "CSV", tmp_path / "a.csv").open(encoding="utf-8-sig", newline="")))
    assert [(row["id"], row["answer"], row["who"]) for row in rows] == [
        (item.id, label, "Änne B.") for item, label in zip(items, said, strict=True)
    ]
    mended = take_answers(tmp_path / "digits", [tmp_path / "a.json", tmp_path / "a.csv"])
    assert (mended.taken[str(tmp_path / "a.csv")].repeated, mended.kept, len(mended.changed)) == (8, 2, 6)


def test_by_mouse_and_by_other_tabs(visitor: Visitor, digits: Queue) -> None:
    page = visitor.open(digits.folder / PAGE)
    page.get_by_role("button", name="keep").click()
    page.get_by_role("button", name="it is").click()
    page.get_by_role("list", name="classes").get_by_role("button", name=digits.items[2].given, exact=False).first.click()
    assert _progress(page) == "3 of 8 answered"
    page.get_by_role("button", name="back").click()
    assert page.locator("#classes button[aria-pressed=true]").count() == 1
    other = visitor.open(digits.folder / PAGE)
    assert _progress(other) == "3 of 8 answered"
    other.keyboard.press("s")
    page.wait_for_function("document.querySelector('#progress').textContent.includes('1 skipped')")
    # Who skips what was answered before does not lose the answer.
    page.keyboard.press("s")
    assert _progress(page) == "3 of 8 answered, 1 skipped"


def test_where_the_browser_keeps_nothing_it_is_said_and_nothing_is_lost(browser: Browser, digits: Queue, tmp_path: Path) -> None:
    visitor = Visitor(browser)
    visitor.context.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }")
    page = visitor.open(digits.folder / PAGE)
    assert "download your answers" in page.get_by_role("alert").inner_text()
    page.keyboard.press("k")
    page.keyboard.press("b")
    assert _progress(page) == "2 of 8 answered"
    assert len(json.loads(_download(page, "JSON", tmp_path / "a.json").read_text(encoding="utf-8"))["answers"]) == 2
    visitor.context.close()
    assert not visitor.wrong


def test_evil_data_are_shown_and_do_nothing(visitor: Visitor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["film", "plot", "actor", "scene", "sound"])
    texts = [f"{EVIL} {' '.join(rng.choice(words, 5))} {'good' if n % 2 else 'bad'} {n}" for n in range(80)]
    labels = [f"good {EVIL}" if n % 2 else "=bad" for n in range(80)]
    labels[10], labels[31] = labels[31], labels[10]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "evil.csv", index=False)
    queue = make_queue(tmp_path / "evil.csv", Named(target="label", text="text"), most=4)
    page = visitor.open(queue.folder / PAGE)
    place = queue.items[0].place
    shown = page.locator("#example p").evaluate("p => p.textContent")
    assert shown == texts[place].strip()
    assert page.locator("#given").evaluate("p => p.textContent") == queue.items[0].given
    assert page.title() == "Relabel evil.csv"
    assert page.locator("script").count() == 2
    page.keyboard.press("b")
    page.keyboard.press("1")  # these classes have no key of their own: the first is 1
    back = _download(page, "CSV", tmp_path / "a.csv")
    mended = take_answers(tmp_path / "evil.csv", [back], Named(target="label", text="text"))
    assert not mended.taken[str(back)].problems
    assert len(mended.changed) + mended.kept == 2
    # Even a script that got in would not run.
    with page.expect_console_message(lambda said: "Content Security Policy" in said.text):
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 1'}))"
        )
    assert page.title() == "Relabel evil.csv"
    assert any("Content Security Policy" in said for said in visitor.wrong)
    visitor.wrong.clear()


def test_rows_series_and_recordings_are_shown(visitor: Visitor, tmp_path: Path) -> None:
    from scipy.io import wavfile

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 3)).round(2), columns=["a", "b", "c"])
    frame["label"] = np.where(frame.a > 0, "up", "down")
    frame.loc[[3, 8], "label"] = np.where(frame.a[[3, 8]] > 0, "down", "up")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    queue = make_queue(tmp_path / "rows.csv", most=2)
    page = visitor.open(queue.folder / PAGE)
    cells = page.locator("#example tr").all_inner_texts()
    assert [cell.split() for cell in cells] == [[name, f"{frame[name][queue.items[0].place]:.10g}"] for name in ("a", "b", "c")]
    for number in range(40):
        label = "low" if number % 2 else "high"
        place = tmp_path / "calls" / ("high" if number == 1 else label) / f"{number:02d}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        wave = np.sin(2 * np.pi * (300 if label == "low" else 2000) * np.arange(4000) / 8000) + rng.normal(size=4000) / 10
        wavfile.write(place, 8000, (wave * 8000).astype(np.int16))
    queue = make_queue(tmp_path / "calls", most=1)
    page = visitor.open(queue.folder / PAGE)
    page.wait_for_function("document.querySelector('audio').duration > 0.4")
    assert queue.items[0].id == "high/01.wav"
    steps = pd.DataFrame(np.outer(np.where(np.arange(60) % 2, 1, -1), np.ones(9)) + rng.normal(size=(60, 9)) / 3)
    steps.columns = [f"t{number}" for number in range(9)]
    steps["label"] = np.where(np.arange(60) % 2, "up", "down")
    steps.loc[5, "label"] = "down"
    steps.to_csv(tmp_path / "steps.csv", index=False)
    page = visitor.open(make_queue(tmp_path / "steps.csv", most=1).folder / PAGE)
    assert page.evaluate("document.querySelector('#example img').naturalWidth") == 480


def test_many_classes_are_found_by_typing(visitor: Visitor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 2)) / 10, columns=["a", "b"])
    kinds = np.arange(300) % 30
    frame["a"] += kinds
    frame["label"] = [f"kind {kind}" for kind in kinds]
    frame.loc[7, "label"] = "kind 21"
    frame.to_csv(tmp_path / "own.csv", index=False)
    queue = make_queue(tmp_path / "own.csv", most=1)
    page = visitor.open(queue.folder / PAGE)
    page.keyboard.press("o")
    page.keyboard.type("kind 2")
    names = page.locator("#classes button").all_inner_texts()
    assert len(names) == 11
    assert all("kind 2" in name for name in names)
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    assert page.locator("#sum").inner_text() == "1 answered, 0 skipped, 0 not come to."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(browser: Browser, digits: Queue, scheme: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visitor = Visitor(browser, color_scheme=scheme, bypass_csp=True)  # the checker is a script, too
    page = visitor.open(digits.folder / PAGE)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    for _ in digits.items:
        page.keyboard.press("s")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    visitor.context.close()


def test_a_pool_is_asked_about_without_an_opinion(visitor: Visitor, tmp_path: Path) -> None:
    from assay.own.labelling import label_pool

    words = np.random.default_rng(0).choice(np.array(["film", "plot", "actor"]), (60, 5))
    pd.DataFrame({"text": [" ".join(row) + f" {n}" for n, row in enumerate(words)]}).to_csv(tmp_path / "pool.csv", index=False)
    found = label_pool(tmp_path / "pool.csv", "bag", batch=5, test_batch=5)
    page = visitor.open(found.folder / PAGE)
    assert page.title() == "Is it bag? pool.csv"
    assert not page.get_by_role("button", name="keep").is_visible()
    for letter in "kbyncs":  # the first two are no keys here
        page.keyboard.press(letter)
    assert _progress(page) == "3 of 10 answered, 1 skipped"
    back = _download(page, "JSON", tmp_path / "a.json")
    again = label_pool(tmp_path / "pool.csv", "bag", [back], batch=5, test_batch=5)
    assert (again.ask, again.positives, again.negatives, again.answered) == (7, 1, 1, 3)
