"""What is new: papers added, verdicts new or changed, evidence gone stale.

Everything here is read from the evidence files, which say when each claim was recorded and what had been recorded before, so
that a wheel tells the same news as a checkout. A paper is news on the day of its first verdict: before that it has nothing to
say. Evidence has been stale since the code behind it was last changed; git knows when that was, or else the files do.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

from assay import catalogue
from assay.errors import AssayError
from assay.fingerprint import code_files
from assay.lab import evidence
from assay.numbers import signed

PAPER, VERDICT, CHANGED, STALE = "new paper", "new verdict", "changed verdict", "stale"


@dataclass(frozen=True)
class Judged:
    """A claim as it was recorded.

    Attributes:
        name: of the claim.
        statement: the claim.
        verdict: what was recorded.
        before: the verdict that this one replaces; empty if it is the first.
        entry: all that is recorded; empty if something newer has taken its place since.
    """

    name: str
    statement: str
    verdict: str
    before: str
    entry: Mapping[str, Any]

    @property
    def measured(self) -> str:
        """Effect, interval, seeds and price in words; empty where something newer has taken its place."""
        if not self.entry:
            return ""
        test = evidence.decisive(self.entry)
        words = []
        if test["effect"] is not None:
            words.append(f"effect {signed(test['effect'])}")
        if test["low"] is not None and test["high"] is not None:
            words.append(f"{100 * test['level']:.0f} % interval {signed(test['low'])} to {signed(test['high'])}")
        words.append(f"{self.entry['seeds']} seed{'s' if self.entry['seeds'] != 1 else ''}")
        times = evidence.times(self.entry)
        if times:
            words.append(f"{times:.2f} times the control’s time")
        return ", ".join(words)


@dataclass(frozen=True)
class News:
    """Something that happened.

    Attributes:
        when: date or time in UTC, ISO 8601.
        kind: ``new paper``, ``new verdict``, ``changed verdict`` or ``stale``.
        paper: which paper.
        claims: which claims; one where a verdict is new or has changed.
    """

    when: str
    kind: str
    paper: catalogue.Paper
    claims: tuple[Judged, ...]

    @property
    def day(self) -> str:
        """The date, ISO 8601."""
        return self.when[:10]

    @property
    def name(self) -> str:
        """A name that stays the same whenever the news are told again."""
        what = ":".join([self.paper.key, *(claim.name for claim in self.claims if self.kind != PAPER)])
        return f"{self.kind}/{what}/{self.when if self.kind != PAPER else ''}"

    @property
    def rerun(self) -> str:
        """The command that measures it again."""
        if self.kind == PAPER:
            return f"assay run {self.paper.key}"
        return " ".join(["assay run", *(f"{self.paper.key}:{claim.name}" for claim in self.claims)])


def news(papers: Iterable[catalogue.Paper]) -> list[News]:
    """All that has happened to these papers, newest first."""
    found = [one for paper in papers for one in _of_paper(paper)]
    order = (CHANGED, STALE, VERDICT, PAPER)
    found.sort(key=lambda one: (one.paper.year, one.paper.key, one.claims[0].name))
    return sorted(found, key=lambda one: (one.when, order.index(one.kind)), reverse=True)


def as_dict(one: News) -> dict[str, Any]:
    """News as JSON."""
    claims = [
        {"claim": claim.name, "statement": claim.statement, "verdict": claim.verdict, "before": claim.before or None}
        for claim in one.claims
    ]
    facts = {"paper": one.paper.key, "title": one.paper.title, "year": one.paper.year, "link": one.paper.link}
    return {"when": one.when, "kind": one.kind, **facts, "claims": claims}


def day(text: str) -> str:
    """A date that somebody typed.

    Raises:
        AssayError: it is none.
    """
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise AssayError(f"--since is {text!r}, which is no date: write it as 2026-01-31.") from None


def _of_paper(paper: catalogue.Paper) -> list[News]:
    entries = evidence.recorded(paper.key)
    steps: list[tuple[str, Judged]] = []
    stale: dict[str, list[Judged]] = {}
    for text in catalogue.claim_texts(paper):
        entry = entries.get(text.name)
        if entry is None:
            continue
        before = ""
        for earlier in [*entry.get("history", []), entry]:
            judged = Judged(text.name, text.statement, earlier["verdict"], before, entry if earlier is entry else {})
            if earlier["verdict"] != before:  # measured again and found the same is no news
                steps.append((earlier.get("recorded", earlier["date"]), judged))
            before = earlier["verdict"]
        if evidence.is_stale(paper, text.name, entry):
            judged = Judged(text.name, text.statement, entry["verdict"], entry["verdict"], {})
            stale.setdefault(_changed(paper, text.name), []).append(judged)
    found = [News(when, STALE, paper, tuple(judged)) for when, judged in stale.items()]
    if steps:
        first = min(when for when, _ in steps)
        found.append(News(first, PAPER, paper, tuple(judged for when, judged in steps if _opens(when, judged, first))))
        for when, judged in steps:
            if not _opens(when, judged, first):
                found.append(News(when, CHANGED if judged.before else VERDICT, paper, (judged,)))
    return found


def _opens(when: str, judged: Judged, first: str) -> bool:
    """Whether a verdict belongs to the news of its paper: the first of its claim, on the paper's first day."""
    return not judged.before and when[:10] == first[:10]


def _changed(paper: catalogue.Paper, claim: str) -> str:
    """When the code of a claim was last changed."""
    files = code_files(paper.module, claim) or catalogue.files(paper)
    return max(_commits().get(path.resolve(), "") or _modified(path) for path in files)


def _modified(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


@cache
def _commits() -> dict[Path, str]:
    """When each file of the checkout was last committed; without those that have been changed since, and empty outside of one."""
    package = Path(__file__).resolve().parent
    try:
        log = _git(package, "log", "--format=%x00%cd", "--date=format-local:%Y-%m-%dT%H:%M:%S+00:00", "--name-only", "--", ".")
        changed = _git(package, "diff", "--name-only", "HEAD", "--", ".")
        root = Path(_git(package, "rev-parse", "--show-toplevel").strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    dates: dict[Path, str] = {}
    for commit in log.split("\0")[1:]:
        when, _, names = commit.partition("\n")
        for name in names.split("\n"):
            dates.setdefault(root / name, when)
    for name in changed.split("\n"):
        dates.pop(root / name, None)
    return dates


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "-c", "core.quotePath=off", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "TZ": "UTC"},
    ).stdout


# ------------------------------------------------------------------------------------------------ as a mail


def markdown(found: Iterable[News], since: str) -> str:
    """The news since a date as a mail to read: new papers first, then what changed, then what has to be run again."""
    recent = [one for one in found if one.when >= since]
    kinds = {kind: [one for one in recent if one.kind == kind] for kind in (PAPER, VERDICT, CHANGED, STALE)}
    parts = [f"# assay: news since {spelt(since)}", _tally(kinds)]
    if kinds[PAPER]:
        parts += ["## New papers", *map(_paper_text, kinds[PAPER])]
    for kind, title in ((CHANGED, "Verdicts that changed"), (VERDICT, "More verdicts")):
        if kinds[kind]:
            parts += [f"## {title}", "\n".join(_claim_text(claim, one.paper) for one in kinds[kind] for claim in one.claims)]
    if kinds[STALE]:
        parts += ["## Gone stale", "The code behind these verdicts has changed since they were measured."]
        parts.append("\n".join(map(_stale_text, kinds[STALE])))
    return "\n\n".join(parts) + "\n"


def html(text: str) -> str:
    """A mail's Markdown as a page without any foreign markup, for programs that send HTML."""
    from markdown_it import MarkdownIt

    style = "max-width:40em;margin:2em auto;padding:0 1em;font:16px/1.55 Georgia,serif"
    body = MarkdownIt("js-default").render(text)  # this preset escapes HTML that stands in the text
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"></head>\n<body style="{style}">\n{body}</body></html>\n'


def _tally(kinds: Mapping[str, list[News]]) -> str:
    words = ((PAPER, "new paper"), (VERDICT, "further verdict"), (CHANGED, "changed verdict"), (STALE, "stale claim"))
    sizes = {kind: len(there) if kind == PAPER else sum(len(one.claims) for one in there) for kind, there in kinds.items()}
    counts = [f"{sizes[kind]} {word}{'s' if sizes[kind] != 1 else ''}" for kind, word in words if sizes[kind]]
    return f"{', '.join(counts)}." if counts else "Nothing is new."


def _paper_text(one: News) -> str:
    paper = one.paper
    title = f"[{_plain(paper.title)}]({paper.link})" if re.match(r"https?://[^\s()<>]+$", paper.link) else _plain(paper.title)
    names = _plain(", ".join(paper.authors[:3]) + (" and others" if len(paper.authors) > 3 else ""))
    verdicts = "\n".join(_claim_text(claim) for claim in one.claims)
    return f"### {title}\n\n{names}, {paper.year}. {_plain(paper.summary)}\n\n{verdicts}\n\n`{one.rerun}`"


def _claim_text(claim: Judged, paper: catalogue.Paper | None = None) -> str:
    where = f"{_plain(paper.key)}: " if paper else ""
    verdict = f"**{claim.verdict}**" + (f", was {claim.before}" if claim.before else "")
    return f"- {where}{verdict}: {_plain(claim.statement)}" + (f" *({_plain(claim.measured)})*" if claim.measured else "")


def _stale_text(one: News) -> str:
    claims = ", ".join(f"{_plain(claim.name.replace('_', ' '))} ({claim.verdict})" for claim in one.claims)
    return f"- {_plain(one.paper.key)}: {claims} `{one.rerun}`"


def _plain(text: str) -> str:
    """Text that stays text in Markdown, and stays readable where nobody renders it: underscores inside words mean nothing."""
    return re.sub(r"[\\`*\[\]<~]|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", " ".join(text.split()))


def spelt(when: str) -> str:
    """A date as people write it."""
    moment = date.fromisoformat(when)
    return f"{moment.day} {moment:%B %Y}"
