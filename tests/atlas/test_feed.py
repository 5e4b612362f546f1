"""The feed: valid Atom, the same identifiers whenever it is built, nothing that breaks out."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from assay import catalogue, digest

if TYPE_CHECKING:
    from .conftest import Made

building = pytest.importorskip("assay.atlas.build")
pytest.importorskip("altair")

ATOM = "{http://www.w3.org/2005/Atom}"
Make = Callable[..., dict[str, Any]]


def read(text: str) -> ET.Element:
    """A feed, after a look at what the standard (RFC 4287) asks for."""
    feed = ET.fromstring(text)
    assert feed.tag == f"{ATOM}feed"
    authors = feed.findall(f"{ATOM}author/{ATOM}name")
    assert [author.text for author in authors] == ["assay"]  # so that entries need none
    for node in [feed, *feed.findall(f"{ATOM}entry")]:
        for name in ("id", "title", "updated"):
            [only] = node.findall(f"{ATOM}{name}")
            assert (only.text or "").strip(), name
        assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", node.findtext(f"{ATOM}id", ""))
        for name in ("updated", "published"):
            for moment in node.findall(f"{ATOM}{name}"):
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", moment.text or "")
                datetime.fromisoformat(moment.text or "")
        links = [(link.get("rel"), link.get("type")) for link in node.findall(f"{ATOM}link")]
        assert links.count(("alternate", "text/html")) == 1
    for entry in feed.findall(f"{ATOM}entry"):
        [content] = entry.findall(f"{ATOM}content")
        assert content.get("type") == "html"
        assert len(content) == 0  # HTML is carried as text, escaped
    ids = [node.text for node in feed.iter(f"{ATOM}id")]
    assert len(ids) == len(set(ids))
    return feed


def test_it_is_valid_and_every_page_says_where_it_is(made: Made) -> None:
    feed = read((made.folder / "feed.xml").read_text(encoding="utf-8"))
    updated = feed.findtext(f"{ATOM}updated")
    assert updated == max(entry.findtext(f"{ATOM}updated", "") for entry in feed.findall(f"{ATOM}entry"))
    for path in made.html():
        root = "" if path.parent == made.folder else "../"
        assert (
            f'<link rel="alternate" type="application/atom+xml" title="assay: new papers and verdicts" href="{root}feed.xml">'
            in (path.read_text(encoding="utf-8"))
        )


def test_nothing_breaks_out(made: Made) -> None:
    feed = read((made.folder / "feed.xml").read_text(encoding="utf-8"))
    told = {entry.findtext(f"{ATOM}title", ""): entry.findtext(f"{ATOM}content", "") for entry in feed.findall(f"{ATOM}entry")}
    evil = "<script>alert('1')</script>&\""
    assert f"New: {evil}" in told
    for content in told.values():
        assert "<script" not in content
        assert "javascript:" not in content


def test_identifiers_are_for_ever(made: Made, entry: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(**address: str) -> list[str | None]:
        feed = read(building.Atlas([catalogue.find("elr")], **address)["feed.xml"])
        return [node.text for node in feed.findall(f"{ATOM}entry/{ATOM}id")]

    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    first = {"resists_wrong_labels": entry("ELR", "cross-entropy", recorded="2026-01-02T10:00:00+00:00")}
    (tmp_path / "elr.json").write_text(json.dumps({"claims": first}))
    before = ids()
    assert len(before) == 1
    assert ids(address="https://example.org/atlas") == before
    later = first | {"memorises_less": entry("ELR", "cross-entropy", recorded="2026-02-02T10:00:00+00:00")}
    (tmp_path / "elr.json").write_text(json.dumps({"claims": later}))
    assert ids()[1:] == before


def test_links_are_absolute_where_the_address_is_known(made: Made) -> None:
    feed = read(building.Atlas(made.shown, address="https://example.org/atlas")["feed.xml"])
    links = [(link.get("rel"), link.get("href") or "") for link in feed.iter(f"{ATOM}link")]
    assert ("self", "https://example.org/atlas/feed.xml") in links
    assert all(href.startswith("https://example.org/atlas/") for _, href in links)
    content = " ".join(node.text or "" for node in feed.iter(f"{ATOM}content"))
    assert set(re.findall(r'href="(https?://[^/"]+/[^/"]+/)', content)) == {"https://example.org/atlas/"}


def test_what_xml_cannot_hold_is_left_out(made: Made, entry: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    monkeypatch.setattr(digest.Judged, "measured", "a\x00b\x1bc")
    claims = {"resists_wrong_labels": entry("ELR", "cross-entropy")}
    (tmp_path / "elr.json").write_text(json.dumps({"claims": claims}))
    assert "abc" in ET.tostring(read(building.Atlas([catalogue.find("elr")])["feed.xml"]), "unicode")


def test_a_catalogue_without_evidence_has_an_empty_feed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    assert read(building.Atlas([catalogue.find("elr")])["feed.xml"]).findall(f"{ATOM}entry") == []
