"""The report stands alone: no request, nothing unescaped, all that was found in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from assay.errors import AssayError
from assay.own import report
from assay.own.report import write_report

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

EVIL = "<script>alert(1)</script>"


def facts(**trial: object) -> dict[str, object]:
    def verdict(kind: str, effect: float, q: float) -> dict[str, object]:
        test = {
            "expectation": "x",
            "effect": effect,
            "low": effect - 0.01,
            "high": effect + 0.01,
            "p": 0.01,
            "note": "",
            "level": 0.95,
        }
        found = {"verdict": kind, "seeds": 3, "more_seeds": 4 if kind == "inconclusive" else None, "tests": [test]}
        return {**found, "q": q, "controlled": kind == "holds" and q <= 0.05}

    def arm(mean: float, seconds: float) -> dict[str, object]:
        values = {"0": mean - 0.01, "1": mean, "2": mean + 0.01}
        return {"mean": mean, "values": values, "valid": values, "seconds": seconds, "parameters": 1234}

    found = {
        "data": f"{EVIL}.csv: 400 rows; classification",
        "metric": "test accuracy",
        "seeds": 3,
        "complete": True,
        "reference": "gradient boosting",
        "arms": {
            "baseline": arm(0.8, 2.0),
            "good": arm(0.9, 3.0),
            "bad": arm(0.7, 2.0),
            "open": arm(0.8, 2.0),
            "lucky": arm(0.82, 2.0),
        }
        | {"gradient boosting": {**arm(0.95, 0.1), "parameters": None}},
        "verdicts": {
            "good": verdict("holds", 0.1, 0.01),
            "bad": verdict("fails", -0.1, 1.0),
            "open": verdict("inconclusive", 0.0, 0.5),
            "lucky": verdict("holds", 0.02, 0.2),
        },
        "changed": {"good": {"loss": f"Loss({EVIL})"}},
        "refused": {"images-only": f"it needs {EVIL}"},
        "best": {"arm": "good", "seed": 1},
        "notes": [EVIL],
    }
    return {
        "made": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.13.0"},
        "machine": {"processor": "P", "cores": 2, "system": "Linux"},
        "arm": "good",
        "seed": 1,
        "chosen": "best mean validation score over seeds, then the best seed",
        "recipe": {"model": "mlp(3, 2)", "epochs": "7"},
        "command": f"assay try good --on '{EVIL}.csv'",
        "trial": found | trial,
    }


@pytest.fixture
def place(tmp_path: Path, home: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts()))
    return tmp_path / "run"


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def parsed(path: Path) -> _Parser:
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_it_stands_alone_and_is_escaped(place: Path) -> None:
    html = write_report(place).read_text(encoding="utf-8")
    page = parsed(place / "report.html")
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "onclick", "onload"} & attributes.keys()
        assert attributes.get("href") in (None, "data:,")
    assert not re.search(r"https?://|url\(|@import", html)
    assert page.text.count(EVIL) >= 5


def test_all_that_was_found_is_in_it(place: Path) -> None:
    write_report(place)
    text = " ".join(parsed(place / "report.html").text.split())
    for words in (
        "good helps on these data.",
        "bad does not help: worse than the baseline.",
        "Whether open and lucky help is not decided",
        "Gradient boosting, without any network, does as well or better: 0.9500.",
        "+0.1000, 95 % interval +0.0900 to +0.1100, p = 0.01, q = 0.01",
        "lucky: better than the baseline, but of 4 methods one may well look so by chance",
        "about 4 more seeds would decide",
        "3 s (×1.50)",
        "Kept is good, seed 1",
        "images-only was left out: it needs",
        "assay try good --on",
        "torch 2.13.0",
        "P, 2 cores, Linux",
    ):
        assert words in text, words


def test_figure_shows_every_seed(place: Path) -> None:
    write_report(place)
    html = (place / "report.html").read_text(encoding="utf-8")
    wide = html[html.index('<div class="wide">') : html.index('<div class="narrow">')]
    for arm in ("baseline", "good", "bad", "gradient boosting"):
        assert arm in wide
    assert wide.count("<path") >= 18  # a dot for each of three seeds of six arms
    assert "prefers-color-scheme: dark" in html


def test_nothing_finished(place: Path) -> None:
    empty = {"mean": None, "values": {}, "valid": {}, "seconds": None, "parameters": None}
    test = {
        "expectation": "x",
        "effect": None,
        "low": None,
        "high": None,
        "p": 1.0,
        "note": "no seed was measured",
        "level": 0.95,
    }
    verdict = {"verdict": "inconclusive", "seeds": 0, "more_seeds": None, "tests": [test], "q": 1.0, "controlled": False}
    plain = facts(arms={"baseline": empty, "good": empty, "gradient boosting": empty}, verdicts={"good": verdict}, complete=False)
    (place / "run.json").write_text(json.dumps(plain))
    write_report(place)
    assert "Time was over before everything was done." in parsed(place / "report.html").text


def test_what_is_missing_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssayError, match=r'left out, as it needs altair, .*pip install "assay\[web\]"'):
        write_report(place)
