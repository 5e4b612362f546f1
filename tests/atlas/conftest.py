"""A site to look at: the whole catalogue, and a paper that tries to break out of every field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from assay import catalogue
from assay.lab import evidence

EVIL = "<script>alert('1')</script>&\""
SOURCE = f'''"""Lesson {EVIL.replace('"', "'")}.

See ``{EVIL.replace('"', "'")}``:

- one
- two

    code <b>
"""
from assay.paper import Above, claim

@claim("Statement <script>alert(1)</script> of \\"it\\".", expect=Above("a", 0.5), scaled_down="{EVIL.replace('"', "'")}")
def first_claim(lab):
    return {{"a": 1}}  # </code></pre><script>alert(1)</script>
'''


def line(offset: float, x: list[float] | None = None) -> dict[str, Any]:
    x = x or [float(place) for place in range(1, 21)]
    mean = [offset + 0.01 * place for place in range(len(x))]
    names = {"x_name": EVIL, "y_name": "accuracy"}
    return {**names, "x": x, "mean": mean, "low": [y - 0.01 for y in mean], "high": [y + 0.02 for y in mean]}


def an_entry(*arms: str, **changes: Any) -> dict[str, Any]:
    """A claim's evidence."""
    method, control = arms[0], arms[1]
    test = {
        "expectation": f"{method} above {control} + 0.1",
        "effect": 0.25,
        "low": 0.14,
        "high": 0.36,
        "level": 0.95,
        "wanted": [0.1, None],
        "standardised": 3.1,
        "p": 0.0177,
        "verdict": "holds",
        "more_seeds": None,
        "method": "t",
        "note": "",
    }
    return {
        "verdict": "holds",
        "seeds": 2,
        "statement": "ignored",
        "unit": "test accuracy",
        "scaled_down": "",
        "scale": "laptop",
        "device": "cpu",
        "p": 0.0177,
        "tests": [test],
        "more_seeds": None,
        "arms": {arm: {"0": 0.9 - 0.2 * place, "1": 0.91 - 0.2 * place} for place, arm in enumerate(arms)},
        "price": {method: {"seconds": 6.0, "parameters": 1000}, control: {"seconds": 5.0, "flops": 2e6}},
        "curves": {},
        "reported": [{"what": "Somewhere", "values": {method: 0.892, "third": 0.5}, "where": "Table 1"}],
        "code": "0",
        "commit": "0123456789abcdef",
        "machine": {"processor": "Some CPU", "cores": 2, "system": "Linux"},
        "versions": {"torch": "2.13"},
        "date": "2026-01-02",
        "rerun": "assay run some:claim --seeds 2",
    } | changes


@pytest.fixture(scope="session")
def entry() -> Callable[..., dict[str, Any]]:
    """Makes a claim's evidence out of the names of its arms, the method's first, and what is to be different."""
    return an_entry


@dataclass
class Made:
    """The site, and what it shows."""

    folder: Path
    around: Path
    evil: catalogue.Paper
    shown: list[catalogue.Paper]

    def html(self) -> list[Path]:
        """All pages."""
        return sorted(self.folder.rglob("*.html"))


def a_comparison() -> dict[str, Any]:
    """Methods side by side, with names that try to break out."""
    arms = {"plain": 0.5, EVIL: 0.6, "third": 0.58, "fourth": 0.4}
    rows = {"first": 0.0, EVIL: 0.1}
    return {
        "title": EVIL,
        "about": f"{EVIL}\n\nMore of it: ``{EVIL}``.",
        "control": "plain",
        "unit": EVIL,
        "scale": "laptop",
        "recorded": "2026-01-01T00:00:00+00:00",
        "machine": {"processor": EVIL},
        "values": {
            row: {
                arm: {str(seed): value + more + 0.001 * seed for seed in range(3)}
                for arm, value in arms.items()
                if (row, arm) != ("first", "fourth")
            }
            for row, more in rows.items()
        },
        "seconds": {row: dict.fromkeys(arms, 2.0) for row in rows},
    }


def set_up(patch: pytest.MonkeyPatch, tmp: Path) -> None:
    """What the site was made with: no other person's cache, ledger or evidence."""
    patch.setenv("ASSAY_HOME", str(tmp / "home"))
    patch.delenv("ASSAY_LEDGER", raising=False)
    patch.setenv("ASSAY_EVIDENCE", str(tmp / "evidence"))
    patch.setattr(evidence, "is_stale", lambda paper, name, entry: paper.key == "evil")


@pytest.fixture
def made(site: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The site, and for this test the same surroundings that it was made in."""
    set_up(monkeypatch, site.around)
    return site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The whole catalogue and a paper that tries to break out of every field, with evidence of its own and of ELR's."""
    if any(find_spec(module) is None for module in ("altair", "vl_convert", "jinja2")):
        pytest.skip("the extra web is not installed")
    from assay.atlas.build import Atlas, build

    tmp = tmp_path_factory.mktemp("atlas")
    (tmp / "evil.py").write_text(SOURCE)
    (tmp / "evidence").mkdir()
    evil = catalogue.Paper(
        key="evil",
        topic=EVIL,
        title=EVIL,
        authors=(EVIL, "Second"),
        year=1999,
        link="javascript:alert(1)",
        kind=EVIL,
        summary=EVIL,
        api=EVIL,
        bibtex=EVIL,
        path=tmp / "evil.py",
    )
    curves = {EVIL: line(0.5), "control": line(0.2, [1.0, 10.0, 1000.0])}
    said = [{"what": EVIL, "values": {EVIL: 0.6}, "where": EVIL}]
    words = {"unit": EVIL, "rerun": EVIL, "machine": {"processor": EVIL}, "versions": {EVIL: EVIL}, "reported": said}
    wicked = an_entry(EVIL, "control", "only a number", curves=curves, commit=EVIL, device=EVIL, **words)
    for key, claims in (("evil", {"first_claim": wicked}), ("elr", {"resists_wrong_labels": an_entry("ELR", "cross-entropy")})):
        (tmp / "evidence" / f"{key}.json").write_text(json.dumps({"claims": claims}))
    (tmp / "evidence" / "comparisons").mkdir()
    (tmp / "evidence" / "comparisons" / "label_noise.json").write_text(json.dumps(a_comparison()))
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, tmp)
        shown = [*catalogue.papers().values(), evil]
        build(tmp / "site", Atlas(shown))
    return Made(tmp / "site", tmp, evil, shown)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[catalogue.Paper]:
    """As many papers as the catalogue is to have, 160, with verdicts and prices of every kind."""
    set_up(monkeypatch, tmp_path)
    (tmp_path / "evidence").mkdir()
    known, found = list(catalogue.papers().values()), []
    for place in range(160):
        paper = known[place % len(known)]
        year = 1989 + (37 * place) // 160
        paper = replace(paper, key=f"{paper.key}_{place}", title=f"{paper.title}, part {place}", year=year)
        claims = {}
        for number, text in enumerate(catalogue.claim_texts(paper)):
            verdict = ("holds", "fails", "inconclusive")[(place + number) % 3]
            arms = {"method": {"0": 0.5 + 0.011 * ((7 * place) % 31)}, "control": {"0": 0.6}}
            price = {"method": {"seconds": 1.0 + 0.9 * (place % 11)}, "control": {"seconds": 3.0}}
            claims[text.name] = an_entry("method", "control", arms=arms, price=price, verdict=verdict)
        if place % 8:
            (tmp_path / "evidence" / f"{paper.key}.json").write_text(json.dumps({"claims": claims}))
        found.append(paper)
    return found
