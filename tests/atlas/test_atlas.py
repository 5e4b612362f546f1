"""The atlas: complete, escaped, self-contained, the same bytes from the same inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import CliRunner

from assay import catalogue
from assay.atlas import build as building
from assay.atlas import figures, pages
from assay.atlas.build import Atlas, build
from assay.atlas.commands import atlas_app
from assay.errors import AssayError

if TYPE_CHECKING:
    from .conftest import Made

pytestmark = pytest.mark.skipif(
    any(find_spec(module) is None for module in ("altair", "vl_convert", "jinja2")), reason="the extra web is not installed"
)

Make = Callable[..., dict[str, Any]]
EVIL = "<script>alert('1')</script>&\""
VOID = {"meta", "link", "input", "br", "hr", "img", "wbr"}


@dataclass
class Parsed(HTMLParser):
    """What a page refers to; raises where tags do not match."""

    path: Path
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    scripts: int = 0
    handlers: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, (self.path, self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._look(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, (self.path, tag)
        assert self.open.pop() == tag, (self.path, tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in {"src", "href", "srcset", "xlink:href", "data", "action", "poster"}:
                self.loads.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)


def test_every_paper_has_a_page_and_stands_on_the_others(made: Made) -> None:
    assert {path.stem for path in (made.folder / "papers").iterdir()} == {paper.key for paper in made.shown}
    for name in ("index", "timeline", "verdicts"):
        links = Parsed(made.folder / f"{name}.html").links
        for paper in made.shown:
            assert any(link.startswith(f"papers/{paper.key}.html") for link in links), (name, paper.key)


def test_a_comparison_has_a_page_with_every_number(made: Made) -> None:
    page = Parsed(made.folder / "comparisons" / "label_noise.html")
    shown = "".join(page.words)
    for words in (EVIL, "0.501", "0.701", "2/2", "The code has changed since", "assay compare label_noise --seeds 3 --record"):
        assert words in shown, words
    assert "comparisons/label_noise.html" in Parsed(made.folder / "comparisons.html").links


def test_pages_parse_and_nothing_breaks_out(made: Made) -> None:
    for path in made.html():
        page = Parsed(path)
        assert page.scripts == 1, path  # the site's own
        assert not page.handlers
        assert len(page.ids) == len(set(page.ids)), path
        assert not [link for link in page.links if urlsplit(link).scheme not in ("", "https", "http")], path
    shown = "".join(Parsed(made.folder / "papers" / "evil.html").words)
    for words in (EVIL, "Statement <script>alert(1)</script>", "only a number", "# </code></pre><script>", "code <b>", "stale"):
        assert words in shown


def test_nothing_is_fetched_from_elsewhere(made: Made) -> None:
    for path in made.html():
        for load in Parsed(path).loads:
            address = urlsplit(load)
            assert (address.scheme, address.netloc) in {("", ""), ("data", "")}, (path, load)
        assert not re.search(r"url\(|<style|@import|src=\"http", path.read_text())
    assert not re.search(r"url\(|@import|https?:", (made.folder / "atlas.css").read_text())
    assert not re.search(r"fetch|XMLHttp|import\(|https?:", (made.folder / "atlas.js").read_text())
    assert not (made.folder / "live.js").exists()  # following runs is for the page that a server of this machine shows


def test_internal_links_resolve(made: Made) -> None:
    ids = {path.resolve(): set(Parsed(path).ids) for path in made.html()}
    for path in made.html():
        page = Parsed(path)
        for link in [*page.links, *page.loads]:
            address = urlsplit(link)
            if address.scheme:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path.resolve()
            assert target.is_file(), (path, link)
            assert not address.fragment or unquote(address.fragment) in ids[target], (path, link)


def test_a_page_shows_verdict_effect_price_and_command(made: Made) -> None:
    words = " ".join(" ".join(Parsed(made.folder / "papers" / "elr.html").words).split())
    for said in ("holds", "2 seeds", "+0.25 +0.14 to +0.36 (95 %)", "p = 0.018", "0.892", "6 s (×1.20)", "Table 1"):
        assert said in words, said
    for said in (
        "assay run some:claim --seeds 2",
        "Some CPU",
        "torch 2.13",
        "2026-01-02",
        "not recorded yet",
        "laptop scale, 2 seeds",
        "papers/labels/elr.py, lines",
        "EarlyLearningRegularization ( nn",
    ):
        assert said in words, said
    assert "stale" not in words
    assert "third 0.5" in words  # the paper's number of an arm that is not measured here
    assert "@inproceedings{elr" in words


def test_the_same_inputs_give_the_same_bytes(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "elsewhere"))  # nothing is cached there
    again = build(tmp_path / "site", Atlas(made.shown))
    assert again.changed == len(again.files)
    for name in again.files:
        assert (tmp_path / "site" / name).read_bytes() == (made.folder / name).read_bytes(), name


def test_what_is_unchanged_is_left_and_what_is_gone_is_removed(made: Made, tmp_path: Path) -> None:
    elr = catalogue.find("elr")
    assert build(tmp_path / "site", Atlas([elr, made.evil])).changed == 12
    assert build(tmp_path / "site", Atlas([elr, made.evil])).changed == 0
    (tmp_path / "precious").write_text("mine")
    listed = tmp_path / "site" / "atlas.json"
    listed.write_text(json.dumps({"files": [*json.loads(listed.read_text())["files"], "../precious"]}))
    build(tmp_path / "site", Atlas([elr]))
    assert not (tmp_path / "site" / "papers" / "evil.html").exists()
    assert (tmp_path / "site" / "papers" / "elr.html").exists()
    assert (tmp_path / "precious").exists()


def test_160_papers_fit_on_a_light_home_page(many: list[catalogue.Paper], tmp_path: Path) -> None:
    home = Atlas(many)["index.html"].encode()
    assert home.count(b"data-year=") == 160
    assert len(home) < 300_000


def test_a_page_whose_figures_are_kept_is_made_without_drawing_or_highlighting(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Atlas(made.shown)
    monkeypatch.setattr(figures, "_svg", lambda chart: pytest.fail("drawn again"))
    monkeypatch.setattr("pygments.highlight", lambda *words: pytest.fail("highlighted again"))
    for paper in made.shown:
        assert atlas[f"papers/{paper.key}.html"]


def test_claims_and_imports_point_at_their_lines(made: Made) -> None:
    elr = next(page for page in Atlas(made.shown).pages if page.paper.key == "elr")
    source = elr.paper.path.read_text().splitlines()
    [(name, link)] = elr.imports
    assert source[int(link.removeprefix("#L")) - 1].startswith(f"class {name}(")
    first = elr.claims[0]
    assert source[int(first.lines[0].removeprefix("#L")) - 1].startswith("@claim(")
    html = (made.folder / "papers" / "elr.html").read_text()
    assert f'href="{link}"' in html
    assert f'href="{first.lines[0]}"' in html


def test_figures_come_before_the_lesson(made: Made) -> None:
    html = (made.folder / "papers" / "evil.html").read_text()
    assert html.index("<figure>") < html.index('id="_idea"') < html.index('id="_source"')
    unmeasured = (made.folder / "papers" / "deepfool.html").read_text()
    assert unmeasured.index('id="_idea"') < unmeasured.index('class="claim"')  # nothing to see yet: the idea comes first
    assert "<dt>expected</dt><dd><code>Lower(&#39;DeepFool" in unmeasured


def test_what_this_machine_measured_is_shown_until_it_is_recorded(made: Made, entry: Make) -> None:
    elr = catalogue.find("elr")
    fresh = {"elr": {"memorises_less": entry("ELR", "cross-entropy", verdict="fails")}}
    atlas = Atlas([elr], fresh)
    claim = next(claim for claim in atlas.pages[0].claims if claim.name == "memorises_less")
    assert claim.state == "fails, not recorded yet"
    assert "measured on this machine, not recorded yet" in atlas["papers/elr.html"]
    assert "fails, not recorded yet" in atlas["index.html"]
    assert "memorises_less" not in atlas["feed.xml"]


def test_pages_with_the_same_evidence_are_taken_over(made: Made, entry: Make) -> None:
    first = Atlas(made.shown)
    second = Atlas(made.shown, {"elr": {"memorises_less": entry("ELR", "cross-entropy")}}, before=first)
    assert [one is two for one, two in zip(first.pages, second.pages, strict=True)] == [
        page.paper.key != "elr" for page in first.pages
    ]


def test_a_broken_off_build_leaves_nothing_unknown(made: Made, tmp_path: Path) -> None:
    elr = catalogue.find("elr")
    build(tmp_path / "site", Atlas([elr, made.evil]))
    broken = Atlas([elr])
    broken.files["index.html"] = lambda: pytest.fail("broken off")
    with pytest.raises(pytest.fail.Exception):
        build(tmp_path / "site", broken)
    build(tmp_path / "site", Atlas([elr]))
    assert {path.name for path in (tmp_path / "site" / "papers").iterdir()} == {"elr.html"}


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(AssayError, match="holds other things"):
        build(tmp_path, Atlas([]))
    with pytest.raises(AssayError, match="is a file"):
        build(tmp_path / "thesis.tex", Atlas([]))


def test_missing_extras_are_named_with_their_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    found = building.importlib.util.find_spec
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None if name == "altair" else found(name))
    with pytest.raises(AssayError, match=r'needs altair: .*pip install "assay\[web\]"'):
        Atlas([])


def test_an_empty_catalogue_is_a_site_too(tmp_path: Path, home: Path) -> None:
    assert "index.html" in build(tmp_path / "site", Atlas([])).files


def test_build_from_the_command_line(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "papers", lambda: {"elr": next(p for p in made.shown if p.key == "elr")})
    told = CliRunner().invoke(atlas_app, ["build", "--output", str(tmp_path / "site"), "--address", "https://example.org/a"])
    assert told.exit_code == 0
    assert "index.html" in told.output
    assert 'href="https://example.org/a/papers/' in (tmp_path / "site" / "feed.xml").read_text()
    with pytest.raises(AssayError, match="no address of a site"):
        CliRunner().invoke(atlas_app, ["build", "--address", "example.org"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("expectation", "arms"),
    [
        ("ELR above cross-entropy + 0.1", ("ELR", "cross-entropy")),
        ("ELR, memorised below 0.5 × cross-entropy, memorised − 0.3", ("ELR, memorised", "cross-entropy, memorised")),
        ("ELR within ±0.01 of cross-entropy", ("ELR", "cross-entropy")),
        ("rank correlation of ELR and cross-entropy above 0.5", ("ELR", "cross-entropy")),
        ("ELR below 0.05", ("ELR", None)),
    ],
)
def test_subject_and_control_are_read_from_the_expectation(entry: Make, expectation: str, arms: tuple[str, str | None]) -> None:
    names = ("cross-entropy", "ELR", "ELR, memorised", "cross-entropy, memorised")
    recorded = entry("ELR", "cross-entropy", arms={name: {"0": 1.0} for name in names})
    recorded["tests"][0]["expectation"] = expectation
    claim = pages.Claim("name", "Statement.", "", "holds", False, recorded)
    assert (claim.subject, claim.control) == arms


@pytest.mark.parametrize(("wanted", "ours", "gain"), [([0.1, None], 0.9, 50.0), ([None, -0.1], 0.3, 50.0)])
def test_gain_points_where_the_claim_wishes(entry: Make, wanted: list[float | None], ours: float, gain: float) -> None:
    recorded = entry("ELR", "cross-entropy", arms={"ELR": {"0": ours}, "cross-entropy": {"0": 0.6}})
    recorded["tests"][0]["wanted"] = wanted
    page = pages.Page(catalogue.find("elr"), (pages.Claim("name", "Statement.", "", "holds", False, recorded),))
    [priced] = pages.priced([page])
    assert priced.gain == pytest.approx(gain)
    assert priced.time == pytest.approx(1.2)


def test_points_in_no_order_are_dots(home: Path, entry: Make) -> None:
    """A line through a hundred unconnected numbers is a scribble; one through a smooth course stays a line."""
    places = [float(place) for place in range(60)]
    jumping = [(37 * place % 61) / 61 for place in range(60)]
    smooth = [place / 60 for place in range(60)]
    captions = []
    for ys in (jumping, smooth):
        seeds = {seed: {"x": [place + float(seed) for place in places], "y": ys} for seed in ("0", "1")}
        curves = {"a": {"x_name": "distance", "y_name": "", "seeds": seeds}}
        figure = pages.Claim("name", "Statement.", "", "holds", False, entry("a", "b", curves=curves)).figures[0]
        captions.append(figure.caption)
    assert captions == ["One dot for each point of 2 seeds.", "One line for each seed."]


def test_one_seed_has_no_interval(home: Path, entry: Make) -> None:
    test = entry("a", "b")["tests"][0] | {"low": None, "high": None, "note": "one seed cannot decide", "verdict": "inconclusive"}
    recorded = entry("a", "b", tests=[test], seeds=1, arms={"a": {"0": 0.7}, "b": {"0": 0.7}}, verdict="inconclusive")
    claim = pages.Claim("name", "Statement.", "", "inconclusive", False, recorded)
    assert claim.tests[0].strip is None
    assert claim.tests[0].interval == "no interval"
    assert "One dot" in claim.figures[0].caption


def test_lines_of_seeds_with_other_places_are_drawn_each(home: Path, entry: Make) -> None:
    seeds = {"0": {"x": [1.0, 2.0], "y": [0.1, None]}, "1": {"x": [1.5, 2.5], "y": [0.2, 0.3]}}
    curves = {"a": {"x_name": "seconds (logarithmic)", "y_name": "", "seeds": seeds}}
    recorded = entry("a", "b", curves=curves)
    lines, dots = pages.Claim("name", "Statement.", "", "holds", False, recorded).figures
    assert lines.caption == "One line for each seed."
    assert "var(--accent)" in lines.wide
    assert "ring" in dots.caption
    for svg in (lines.wide, lines.narrow, dots.wide):
        assert not re.search(r"#0000|https?:|font-family|clip-path", svg)


def test_labels_keep_their_order_and_distance() -> None:
    places = figures._apart({"a": 10.0, "b": 12.0, "c": 200.0, "d": 199.0}, dict.fromkeys("abcd", 18.0), 200.0)
    assert sorted(places, key=places.__getitem__) == ["a", "b", "d", "c"]
    assert places["b"] - places["a"] >= 18
    assert places["c"] - places["d"] >= 18
    assert places["c"] <= 200


def test_names_of_dots_stand_free() -> None:
    dots = [(100.0, 100.0, "first"), (108.0, 100.0, "second"), (300.0, 100.0, "third"), (104.0, 160.0, "first")]
    bars = [(310.0, 314.0, 50.0, 150.0)]
    found = {label: (across, down, side) for label, across, down, side in figures._free_labels(dots, 400, bars, near=1e9)}
    assert set(found) == {"first", "second", "third"}  # one name for two dots of it
    assert found["third"] == (290.0, 100.0, "right")  # ends beside its dot, the bar is on the other side
    narrow = figures._free_labels([(30.0, 50.0, "a longer name"), (38.0, 50.0, "b")], 90)
    assert ("b", 48.0, 50.0, "left") in narrow


def test_words_are_stressed_and_products_are_not() -> None:
    assert pages.inline("*Label smoothing*: **nothing** is 2 * 3 * 4 or a*b*c") == [
        ("stress", "Label smoothing"),
        ("text", ": "),
        ("stress", "nothing"),
        ("text", " is 2 * 3 * 4 or a*b*c"),
    ]


def test_docstrings_become_blocks() -> None:
    found = pages.blocks("Title.\n\nSome ``code`` and :func:`~a.b.name`::\n\n    x = 1\n\n    y = 2\n\n- one\n  more\n- two")
    assert [kind for kind, _ in found] == ["paragraph", "paragraph", "code", "list"]
    assert found[1][1] == [("text", "Some "), ("code", "code"), ("text", " and "), ("code", "name"), ("text", ":")]
    assert found[2][1] == ["x = 1\n\ny = 2"]
    assert found[3][1] == [[("text", "one more")], [("text", "two")]]


def test_many_authors_are_shortened() -> None:
    paper = replace(catalogue.find("elr"), authors=tuple(f"A{place}" for place in range(30)))
    assert pages.Page(paper, ()).authors.endswith("A6 and 23 others")


def test_effects_of_seeds_that_hardly_differ_are_not_written_out() -> None:
    from assay.atlas.pages import _standardised

    assert _standardised(-6_747_699.3) == "g < −1,000"
    assert _standardised(4_549_181.0) == "g > 1,000"
    assert _standardised(2.4) == "g = 2.4"
