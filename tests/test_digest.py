"""News: what evidence files and the code behind them say has happened, told as a letter."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assay import catalogue, digest
from assay.cli import app
from assay.errors import AssayError
from assay.lab import evidence

ELR = catalogue.find("elr")
FIRST, SECOND, THIRD = [text.name for text in catalogue.claim_texts(ELR)][:3]


def entry(verdict: str, recorded: str | None, **more: Any) -> dict[str, Any]:
    test = {"expectation": "ELR above cross-entropy", "effect": 0.25, "low": 0.1, "high": 0.4, "level": 0.95}
    prices = {"ELR": {"seconds": 6.0}, "cross-entropy": {"seconds": 5.0}}
    facts = {
        "verdict": verdict,
        "seeds": 5,
        "scale": "laptop",
        "date": "2026-01-01",
        "price": prices,
        "arms": {a: {} for a in prices},
    }
    return {**facts, "tests": [test | {"verdict": verdict}], **({"recorded": recorded} if recorded else {}), **more}


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ELR's claims: one of the first day, one that changed later, one that came later and is stale."""
    history = [
        {"verdict": "holds", "recorded": "2026-01-02T03:00:00+00:00", "date": "2026-01-01"},
        {"verdict": "holds", "recorded": "2026-01-20T03:00:00+00:00", "date": "2026-01-19"},
    ]
    found = {
        FIRST: entry("holds", None, date="2026-01-02"),  # recorded before recordings had dates of their own
        SECOND: entry("fails", "2026-02-03T04:05:06+00:00", history=history),
        THIRD: entry("inconclusive", "2026-02-10T00:00:00+00:00"),
    }
    (tmp_path / "elr.json").write_text(json.dumps({"claims": found}))
    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    monkeypatch.setattr(evidence, "is_stale", lambda paper, name, entry: name == THIRD)
    monkeypatch.setattr(digest, "_changed", lambda paper, claim: "2026-03-01T00:00:00+00:00")
    return found


def test_news_are_what_changed_newest_first(claims: dict[str, Any]) -> None:
    told = [(one.day, one.kind, [claim.name for claim in one.claims]) for one in digest.news([ELR])]
    assert told == [
        ("2026-03-01", "stale", [THIRD]),
        ("2026-02-10", "new verdict", [THIRD]),
        ("2026-02-03", "changed verdict", [SECOND]),
        ("2026-01-02", "new paper", [FIRST, SECOND]),
    ]
    changed = digest.news([ELR])[2].claims[0]
    assert (changed.before, changed.verdict) == ("holds", "fails")
    assert changed.measured == "effect +0.25, 95 % interval +0.1 to +0.4, 5 seeds, 1.20 times the control’s time"
    assert digest.news([ELR])[3].claims[1].measured == ""  # its numbers have been replaced since


def test_what_went_stale_at_once_is_one_piece_of_news(claims: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "is_stale", lambda paper, name, entry: True)
    monkeypatch.setattr(digest, "_changed", lambda paper, claim: "2026-03-02" if claim == THIRD else "2026-03-01")
    alone, together = (one for one in digest.news([ELR]) if one.kind == "stale")
    assert ([claim.name for claim in alone.claims], alone.rerun) == ([THIRD], f"assay run elr:{THIRD}")
    assert [claim.name for claim in together.claims] == [FIRST, SECOND]
    assert together.rerun == f"assay run elr:{FIRST} elr:{SECOND}"
    assert "\n\n3 stale claims.\n" in digest.markdown([alone, together], "2026-03-01")


def test_names_stay_when_more_happens(claims: dict[str, Any], tmp_path: Path) -> None:
    before = {one.name for one in digest.news([ELR])}
    assert len(before) == 4
    again = entry("holds", "2026-04-01T00:00:00+00:00", history=[{"verdict": "holds", "date": "2026-01-02"}])
    (tmp_path / "elr.json").write_text(json.dumps({"claims": claims | {FIRST: again}}))
    assert {one.name for one in digest.news([ELR])} == before  # measured again with the same verdict: no news
    turned = again | {"verdict": "fails"}
    (tmp_path / "elr.json").write_text(json.dumps({"claims": claims | {FIRST: turned}}))
    assert {one.name for one in digest.news([ELR])} > before


def test_a_letter_tells_what_is_new_since_a_day(claims: dict[str, Any]) -> None:
    found = digest.news([ELR])
    letter = digest.markdown(found, "2026-02-03")
    assert letter.startswith("# assay: news since 3 February 2026\n\n1 further verdict, 1 changed verdict, 1 stale claim.\n")
    assert "- elr: **fails**, was holds: " in letter
    assert f"`assay run elr:{THIRD}`" in letter
    assert "New papers" not in letter
    whole = digest.markdown(found, "2026-01-01")
    assert f"### [{ELR.title}]({ELR.link})" in whole
    assert "`assay run elr`" in whole
    assert digest.markdown(found, "2026-03-02").endswith("Nothing is new.\n")


def test_words_of_a_paper_are_no_markup(claims: dict[str, Any]) -> None:
    title, link = "<script>*Bold* _it_ snake_case [x](http://y) ~~no~~", "javascript:alert(1)"
    evil = replace(ELR, title=title, summary="<img src=x>", link=link)
    page = digest.html(digest.markdown(digest.news([evil]), "2026-01-01"))
    assert "&lt;script&gt;*Bold* _it_ snake_case [x](http://y) ~~no~~" in page
    assert "&lt;img src=x&gt;" in page
    for markup in ("<script", "<img", "<em>Bold", "<em>it", "<s>", "javascript:", "<a "):
        assert markup not in page


def test_the_command_line_prints_markdown_html_or_json(claims: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "papers", lambda: {"elr": ELR})
    told = CliRunner().invoke(app, ["digest", "--since", "2026-02-01"])
    assert told.output.startswith("# assay: news since 1 February 2026")
    assert "<h1>" in CliRunner().invoke(app, ["digest", "--since", "2026-02-01", "--html"]).output
    found = json.loads(CliRunner().invoke(app, ["digest", "--since", "2026-02-01", "--json"]).output)
    assert [one["kind"] for one in found] == ["stale", "new verdict", "changed verdict"]
    assert found[2]["claims"][0] | {"statement": ""} == {"claim": SECOND, "statement": "", "verdict": "fails", "before": "holds"}
    assert "news since" in CliRunner().invoke(app, ["digest"]).output
    with pytest.raises(AssayError, match="is no date: write it as 2026-01-31"):
        CliRunner().invoke(app, ["digest", "--since", "yesterday"], catch_exceptions=False)


def test_evidence_is_stale_since_its_code_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest._commits.cache_clear()
    when = digest._changed(ELR, FIRST)
    assert len(when) == len("2026-03-01T00:00:00+00:00")
    monkeypatch.setattr(digest, "_commits", dict)
    files = digest.code_files(ELR.module, FIRST)
    assert ELR.path in files
    assert {"recipe.py", "small.py"} & {path.name for path in files}  # what the claim reaches, not its own file alone
    assert digest._changed(ELR, FIRST) == max(digest._modified(path) for path in files)


def test_git_tells_when_a_file_was_last_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str, day: str = "2026-01-05T12:00:00+02:00") -> None:
        for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"):
            monkeypatch.setenv(name, day)
        digest._git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words)

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook that runs the tests
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # nobody's signatures, hooks or templates
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git("init", "-q")
    package = tmp_path / "pkg"
    package.mkdir()
    for name in ("digest.py", "old.py", "müd.py", "dirty.py"):
        (package / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    (package / "müd.py").write_text("2")
    git("commit", "-qam", "two", day="2026-02-05T01:00:00+02:00")
    (package / "dirty.py").write_text("2")
    monkeypatch.setattr(digest, "__file__", str(package / "digest.py"))
    digest._commits.cache_clear()
    try:
        dates = {path.name: when for path, when in digest._commits().items()}
    finally:
        digest._commits.cache_clear()
    both = {"digest.py": "2026-01-05T10:00:00+00:00", "old.py": "2026-01-05T10:00:00+00:00"}
    assert dates == both | {"müd.py": "2026-02-04T23:00:00+00:00"}
