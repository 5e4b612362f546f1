"""The atlas in a real browser: searched, filtered, opened, copied from, in the dark, on a phone, by keyboard, and by axe."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from assay import catalogue
from assay.lab.board import Board
from assay.lab.ledger import Ledger, Row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from .conftest import Made

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_MISSING = [name for name in ("altair", "vl_convert", "jinja2", "playwright", "axe_playwright_python") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)"),
]

PAGES = (
    *("index.html", "papers/elr.html", "papers/resnet.html", "papers/evil.html", "verdicts.html"),
    *("timeline.html", "price.html", "news.html", "live.html", "comparisons.html", "comparisons/label_noise.html"),
)
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@contextmanager
def serving(make: Callable[[Any], Any]) -> Iterator[str]:
    from assay.atlas.serve import Following, server

    with server(0, Following(make)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(site: Made) -> Iterator[str]:
    """Where the site of the other tests is served."""
    from assay.atlas.build import Atlas

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSAY_HOME", str(site.around / "home"))
        patch.delenv("ASSAY_LEDGER", raising=False)
        patch.setenv("ASSAY_EVIDENCE", str(site.around / "evidence"))
        with serving(lambda before: Atlas(site.shown, live=True, before=before)) as where:
            yield where


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Open]:
    """Opens a page; whatever a page complains of, or asks of somebody else, fails the test."""
    wrong: list[str] = []
    contexts = []

    def to(name: str = "", width: int = 1280, height: int = 900, where: str = address, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: None if _own(request.url, where) else wrong.append(f"asked for {request.url}"))
        page.goto(where + name)
        return page

    yield to
    for context in contexts:
        context.close()
    assert not wrong


def _own(url: str, where: str) -> bool:
    return url.startswith("data:") or urlsplit(url).netloc == urlsplit(where).netloc


def shown(page: Page) -> list[str]:
    """Titles of the papers that can be seen."""
    return page.locator(".papers .title:visible").all_inner_texts()


ELR = catalogue.find("elr")


def test_search_finds_titles_authors_and_claims(visit: Open) -> None:
    page = visit()
    everything = len(shown(page))
    assert everything == len(catalogue.papers()) + 1
    search = page.get_by_role("searchbox", name="search")
    for words in ("noisy labels", "Niles-Weed MEMORIZATION", "stopping early"):
        search.fill(words)
        assert ELR.title in shown(page)
        assert len(shown(page)) < everything
    search.fill("noisy memorization niles-weed")
    assert shown(page) == [ELR.title]
    assert page.locator(".topic:visible").count() == 1
    assert page.locator("[data-found]").inner_text() == f"1 of {everything} papers"
    assert page.url.endswith("?search=noisy+memorization+niles-weed")
    search.fill("nobody wrote this")
    assert shown(page) == []
    assert page.get_by_text("Nothing here answers to that").is_visible()
    page.get_by_role("button", name="show all").click()
    assert len(shown(page)) == everything


def test_filters_narrow_together_and_stay_in_the_address(visit: Open) -> None:
    page = visit()
    page.get_by_label("topic", exact=True).select_option("labels")
    page.get_by_label("kind", exact=True).select_option("treatment")
    page.get_by_label("verdict", exact=True).select_option("holds")
    page.get_by_label("year", exact=True).select_option(str(ELR.year))
    assert shown(page) == [ELR.title]
    page.reload()
    assert shown(page) == [ELR.title]
    page.get_by_label("verdict", exact=True).select_option("fails")
    assert shown(page) == []
    page.goto(page.url.split("?")[0] + "?verdict=nonsense")
    assert len(shown(page)) == len(catalogue.papers()) + 1


def test_numbers_of_the_matrix_lead_to_their_papers(visit: Open) -> None:
    page = visit("verdicts.html")
    page.locator("tr", has_text="labels").first.get_by_role("link", name="1", exact=True).click()
    page.wait_for_url("**/index.html?topic=labels&verdict=holds")
    assert shown(page) == [ELR.title]


def test_a_paper_is_opened_and_its_citation_copied(visit: Open) -> None:
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("link", name=ELR.title).click()
    page.wait_for_url("**/papers/elr.html")
    assert page.get_by_role("heading", level=1).inner_text() == ELR.title
    for button, text in (("_bibtex", ELR.bibtex), ("_api", ELR.api), ("_run", "assay run elr")):
        copy = page.locator(f"[data-copy={button}]")
        copy.click()
        page.wait_for_function("name => document.querySelector(`[data-copy=${name}]`).textContent == 'copied'", arg=button)
        assert page.evaluate("navigator.clipboard.readText()") == text


def test_links_to_code_show_their_lines(visit: Open) -> None:
    page = visit("papers/elr.html")
    page.locator("aside").get_by_role("link", name="EarlyLearningRegularization").click()
    line = page.locator(".code a:target")
    assert line.is_visible()
    words = line.evaluate("a => a.parentNode.textContent.split('\\n')[a.dataset.line - 1]")
    assert words.startswith("class EarlyLearningRegularization")
    beside = "document.querySelector('aside').getBoundingClientRect().bottom"
    assert page.evaluate(f"{beside} <= document.querySelector('.source').getBoundingClientRect().top")  # not over the code
    top = line.evaluate("a => a.getBoundingClientRect().top")
    assert 0 <= top <= 900


def test_figures_follow_light_and_dark(visit: Open) -> None:
    def brightness(scheme: str) -> list[float]:
        page = visit("papers/evil.html", color_scheme=scheme)
        parts = "body, figure .wide svg text, figure .wide svg path[stroke='var(--control)']"
        script = """(parts) => ['backgroundColor', 'color', 'fill', 'stroke'].map((name, place) => {
            const found = [document.body, document.body, ...document.querySelectorAll(parts)];
            const node = [found[0], found[1], document.querySelector('figure .wide svg text'),
                          document.querySelector("figure .wide svg [stroke='var(--accent)']")][place];
            return getComputedStyle(node)[name].match(/\\d+/g).slice(0, 3).reduce((sum, value) => sum + Number(value), 0) / 3;
        })"""
        found: list[float] = page.evaluate(script, parts)
        return found

    light, dark = brightness("light"), brightness("dark")
    assert light[0] > 200 > 100 > light[1]
    assert dark[0] < 50 < 200 < dark[1]
    assert light[2] < dark[2]  # letters of the figures
    assert light[3] < dark[3]  # and their lines


@pytest.mark.parametrize("width", [390, 768])
def test_nothing_scrolls_sideways(visit: Open, width: int) -> None:
    page = visit(width=width, height=844)
    root = page.url
    for name in PAGES:
        page.goto(root + name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.goto(root + "papers/evil.html")
    assert page.locator("figure .narrow svg").first.is_visible() == (width == 390)


def test_everything_is_reached_by_keyboard(visit: Open) -> None:
    page = visit()

    def focused() -> str:
        script = "document.activeElement.getAttribute('data-filter') ?? document.activeElement.textContent.trim()"
        return str(page.evaluate(script))

    page.keyboard.press("Tab")
    assert focused() == "Skip to the content"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    passed = []
    for _ in range(80):
        page.keyboard.press("Tab")
        passed.append(focused())
        if page.evaluate("document.activeElement.matches('[data-search]')"):
            page.keyboard.type("noisy niles-weed")
        if passed[-1] == ELR.title:
            break
    for name in ("topic", "kind", "verdict", "year", ELR.title):
        assert name in passed
    assert "papers" not in passed  # the navigation was skipped
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/elr.html")


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_axe_finds_nothing_serious(visit: Open, scheme: str, width: int) -> None:
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = visit(width=width, color_scheme=scheme)
    root = page.url
    for name in PAGES:
        page.goto(root + name)
        page.evaluate(axe)
        # What the colours are is all that differs in the dark; one page of code tells for all, and the shortest is quickest.
        options = {"resultTypes": ["violations"]} | ({"runOnly": ["color-contrast"]} if scheme == "dark" else {})
        parts = {} if name == "papers/evil.html" else {"exclude": [[".code"]]}
        found = page.evaluate("([parts, options]) => axe.run({include: [['html']], ...parts}, options)", [parts, options])
        serious = [
            (one["id"], one["impact"], [node["html"][:120] + " | " + node["failureSummary"] for node in one["nodes"][:3]])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious, (name, serious)


def test_the_live_page_follows_a_run(visit: Open) -> None:
    board = Board()
    unit = {
        "key": "elr",
        "claim": "memorises_less",
        "name": "elr:memorises_less seed 1",
        "fraction": 0.5,
        "note": "<b>3</b>",
    }
    state = {"began": "2026-01-01T00:00:00+00:00", "total": 4, "finished": 1, "counts": {}, "units": [unit]}
    board.show(state, now=True)
    try:
        page = visit("live.html")
        page.get_by_text("1 of 4 units").wait_for()
        assert page.get_by_text("<b>3</b>").is_visible()
        Ledger().add([Row("elr", "memorises_less", 0, "laptop", "cpu", "0", values={"ELR": 0.25}, seconds=3.21)])
        page.get_by_text("ELR 0.25").wait_for()
        assert page.get_by_text("3.21 s").is_visible()
        assert page.get_by_role("link", name="elr: memorises less").get_attribute("href") == "papers/elr.html#memorises_less"
    finally:
        board.close()
    page.get_by_text("Nothing is running").wait_for()


def test_160_papers_are_searched_at_once(visit: Open, many: list[catalogue.Paper]) -> None:
    from assay.atlas.build import Atlas

    with serving(lambda before: Atlas(many, before=before)) as where:
        page = visit(where=where)
        assert len(shown(page)) == 160
        page.get_by_role("searchbox", name="search").fill("memorization part 1")
        assert 0 < len(shown(page)) < 40
        assert all("Memorization" in title for title in shown(page))
        page.set_viewport_size({"width": 390, "height": 844})
        for name in ("index.html", "verdicts.html", "timeline.html", "price.html"):
            page.goto(where + name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
