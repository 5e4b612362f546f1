"""What the pages of the atlas show, made ready for the templates: no HTML here but the highlighted source."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import textwrap
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup

from assay import catalogue
from assay.atlas import figures
from assay.atlas.figures import Figure
from assay.atlas.kept import kept
from assay.lab import evidence
from assay.lab.comparing import Table
from assay.numbers import duration, short, signed, size

VERDICTS = ("holds", "fails", "inconclusive", "not recorded")

#: Width of the strips that show intervals.
STRIP = 180

#: The topics are questions that people come with.
QUESTIONS = {
    "architectures": "Which network?",
    "training": "How to train it?",
    "labels": "My labels are wrong, few or unequal",
    "dataset": "Which examples to train on?",
    "dynamics": "What happens while it learns, and why does it generalise?",
    "explain": "Why did it say that?",
    "interpretable": "Can I have a model that one can read?",
    "robust": "When does it break?",
    "compress": "Can it be smaller and faster?",
    "search": "Can the architecture be found automatically?",
    "weights": "Networks that make or read weights",
    "represent": "Features without labels, transfer, metric learning",
    "adapt": "New classes from few examples, or without forgetting",
    "generate": "Images, text and formal languages out of networks",
    "text": "Classify and tag text",
    "retrieval": "Find documents, code, images, entities",
    "sequence": "Attention, state spaces, memory",
    "signals": "Sound, time series, sensors",
    "graph": "Knowledge graphs, molecules, fairness on graphs",
    "recommend": "Clicks and ratings",
    "decide": "Policies, auctions, routes, logic",
}


@dataclass(frozen=True)
class Arm:
    """A row of a claim's table."""

    name: str
    mean: str
    span: str
    paper: str
    time: str
    parameters: str
    flops: str
    is_subject: bool


def filled(arms: Iterable[Arm]) -> set[str]:
    """The columns in which at least one arm has something."""
    return {name for arm in arms for name, value in vars(arm).items() if value}


@dataclass(frozen=True)
class Interval:
    """Where effect, interval and wanted region lie on a strip that is :data:`STRIP` wide."""

    low: float
    high: float
    effect: float
    wanted: tuple[float, float]
    zero: float | None


@dataclass(frozen=True)
class Test:
    """A row of a claim's expectations."""

    expectation: str
    verdict: str
    effect: str
    interval: str
    p: str
    standardised: str
    note: str
    strip: Interval | None


@dataclass(frozen=True)
class Claim:
    """A claim with what is known of it.

    Attributes:
        name: its function's.
        statement: what it says.
        scaled_down: what is smaller than in the paper.
        verdict: one of :data:`VERDICTS`.
        stale: whether its code has changed since.
        entry: what is recorded, or else what this machine's ledger has; empty where it was never measured.
        recorded: whether the entry is evidence; if not, it is what this machine has measured.
        lines: link to its code on its paper's page, and what to call it.
        expect: what is expected, as its file says it.
    """

    name: str
    statement: str
    scaled_down: str
    verdict: str
    stale: bool
    entry: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = True
    lines: tuple[str, str] = ("", "")
    expect: str = ""

    @property
    def state(self) -> str:
        """The verdict, and what to know about it, in words."""
        return self.verdict + (", stale" if self.stale else "") + ("" if self.recorded else ", not recorded yet")

    @property
    def words(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")

    @property
    def subject(self) -> str | None:
        """The arm that the first expectation is about."""
        return evidence.compared(self.entry)[0]

    @property
    def control(self) -> str | None:
        """The arm that the first expectation compares with."""
        return evidence.compared(self.entry)[1]

    @property
    def took(self) -> str:
        """How long measuring it took, all seeds together."""
        return duration(self.entry["seconds"])

    @cached_property
    def figures(self) -> list[Figure]:
        """Drawn, or taken from the cache."""
        if not self.entry:
            return []
        return figures.of_claim(self.entry, self.subject, {arm: value for arm, (value, _) in self._reported().items()})

    def _reported(self) -> dict[str, tuple[float, str]]:
        found: dict[str, tuple[float, str]] = {}
        for said in self.entry["reported"]:
            for arm, value in said["values"].items():
                found.setdefault(arm, (value, said["where"]))
        return found

    @property
    def arms(self) -> list[Arm]:
        """The table: mean and range over seeds, the paper's number beside ours, price."""
        reported, rows = self._reported(), []
        for name, seeds in self.entry["arms"].items():
            values = list(seeds.values())
            low, high = short(min(values)), short(max(values))
            rows.append(
                Arm(
                    name=name,
                    mean=short(statistics.fmean(values)),
                    span=f"{low} to {high}" if len(values) > 1 and low != high else "",
                    paper=short(reported[name][0]) if name in reported else "",
                    time=_time(self.entry["price"], name, self.control),
                    parameters=_count(self.entry["price"], name, "parameters"),
                    flops=_count(self.entry["price"], name, "flops"),
                    is_subject=name == self.subject,
                )
            )
        return rows

    @property
    def tests(self) -> list[Test]:
        """The expectations, each with its effect and interval."""
        return [_test(test) for test in self.entry["tests"]]

    @property
    def others_said(self) -> list[str]:
        """What the paper reported, in words: numbers of arms that are not measured here included."""
        ours = self.entry["arms"]
        lines = []
        for said in self.entry["reported"]:
            rest = "; ".join(f"{arm} {short(value)}" for arm, value in said["values"].items() if arm not in ours)
            lines.append(f"{said['what']} ({said['where']})" + (f"; also {rest}" if rest else ""))
        return lines


@dataclass(frozen=True)
class Page:
    """A paper with its claims.

    Attributes:
        paper: its facts.
        claims: in the order of its file.
        entries: what is recorded of it.
        fresh: what this machine's ledger has beyond that.
    """

    paper: catalogue.Paper
    claims: tuple[Claim, ...]
    entries: Mapping[str, Any] = field(default_factory=dict)
    fresh: Mapping[str, Any] = field(default_factory=dict)

    def shows(self, paper: catalogue.Paper, entries: Mapping[str, Any], fresh: Mapping[str, Any]) -> bool:
        """Whether the page is about this, and nothing has come since."""
        return (self.paper, self.entries, self.fresh) == (paper, entries, fresh)

    @property
    def href(self) -> str:
        """Where its page is, from the site's root."""
        return f"papers/{self.paper.key}.html"

    @property
    def link(self) -> str:
        """The paper's address, where it is one that a browser may follow without running anything."""
        return self.paper.link if urlsplit(self.paper.link).scheme in ("http", "https") else ""

    @property
    def authors(self) -> str:
        """The authors, the first few of many."""
        names = list(self.paper.authors)
        if len(names) > 8:
            return ", ".join(names[:7]) + f" and {len(names) - 7} others"
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

    @property
    def configurations(self) -> list[tuple[str, str, str, str, str, str, str]]:
        """The standard networks: call, input, parameters, multiply-adds, activations, layers, receptive field."""
        return [
            (
                call,
                "×".join(map(str, one.input)),
                f"{one.parameters:,}",
                size(one.macs),
                size(one.activations),
                str(one.layers),
                str(one.sees or "–"),
            )
            for call, one in catalogue.configurations(self.paper).items()
        ]

    @cached_property
    def lesson(self) -> list[tuple[str, list[Any]]]:
        """The module's docstring: its title line first."""
        return blocks(catalogue.lesson(self.paper))

    @property
    def searched(self) -> str:
        """Words that the search on the home page finds besides those that are shown there, each once."""
        paper = self.paper
        said = " ".join([paper.key, *paper.authors, *(claim.statement for claim in self.claims)])
        shown = _words(f"{paper.title} {paper.summary}")
        return " ".join(word for word in dict.fromkeys(_words(said)) if len(word) > 2 and word not in shown)

    @property
    def verdicts(self) -> list[str]:
        """The verdicts that its claims have, each once."""
        return [word for word in VERDICTS if any(claim.verdict == word for claim in self.claims)]

    @property
    def sources(self) -> Iterator[tuple[str, str, Markup]]:
        """Name, prefix of the line anchors, and highlighted lines of every file."""
        for path, prefix in _files(self.paper):
            yield _file_name(path), prefix, highlight(path.read_text(encoding="utf-8"), prefix)

    @property
    def imports(self) -> list[tuple[str, str]]:
        """The names that its import line brings, and links to their code."""
        places = _places(self.paper)
        names = re.findall(r"\w+", self.paper.api.partition("import")[2])
        return [(name, places[name][0]) for name in names if name in places]


def _files(paper: catalogue.Paper) -> list[tuple[Path, str]]:
    """The files of a paper, and the prefix of each one's line anchors."""
    return [(path, "L" if place == 0 else f"{path.stem}-L") for place, path in enumerate(catalogue.files(paper))]


def _file_name(path: Path) -> str:
    return path.relative_to(catalogue.ROOT.parent).as_posix() if path.is_relative_to(catalogue.ROOT) else path.name


def _places(paper: catalogue.Paper) -> dict[str, tuple[str, str]]:
    """Top-level definition -> link to its first line, and its lines in words."""
    found = {}
    for path, prefix in _files(paper):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                first = node.lineno
            else:
                continue
            place = (f"#{prefix}{first}", f"{_file_name(path)}, lines {first} to {node.end_lineno}")
            found.update(dict.fromkeys(names, place))
    return found


def page(paper: catalogue.Paper, entries: Mapping[str, Any], fresh: Mapping[str, Any] | None = None) -> Page:
    """A paper with all that is known of it.

    Args:
        paper: its facts.
        entries: claim -> evidence.
        fresh: claim -> what this machine's ledger has, where there is no evidence or it is stale; it is shown instead.
    """
    fresh, places, claims = fresh or {}, _places(paper), []
    for text in catalogue.claim_texts(paper):
        entry = fresh.get(text.name) or entries.get(text.name, {})
        recorded = text.name not in fresh
        verdict = entry.get("verdict", "not recorded")
        stale = recorded and bool(entry) and evidence.is_stale(paper, text.name, entry)
        lines = places.get(text.name, ("", ""))
        claims.append(Claim(text.name, text.statement, text.scaled_down, verdict, stale, entry, recorded, lines, text.expect))
    return Page(paper, tuple(claims), entries, fresh)


# ------------------------------------------------------------------------------------------------ the whole


@dataclass(frozen=True)
class Topic:
    """A question with the papers that answer it."""

    name: str
    question: str
    pages: tuple[Page, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have which verdict."""
        return count(self.pages)


def count(pages: Iterable[Page]) -> dict[str, int]:
    """How many claims have which verdict."""
    words = [claim.verdict for page in pages for claim in page.claims]
    return {word: words.count(word) for word in VERDICTS}


def topics(pages: Sequence[Page]) -> list[Topic]:
    """The papers by topic, in the order of the questions."""
    order = list(QUESTIONS)
    names = sorted(
        {page.paper.topic for page in pages}, key=lambda name: (order.index(name) if name in QUESTIONS else len(order), name)
    )
    return [Topic(name, QUESTIONS.get(name, name), tuple(p for p in pages if p.paper.topic == name)) for name in names]


def by_year(pages: Sequence[Page]) -> list[tuple[int, list[Page]]]:
    """The papers by year, oldest first."""
    years = sorted({page.paper.year for page in pages})
    return [(year, sorted((p for p in pages if p.paper.year == year), key=lambda p: p.paper.title)) for year in years]


def timeline(pages: Sequence[Page]) -> Figure:
    """The figure above the timeline; it ends where the papers or the evidence do, so that it changes only with them."""
    dates = [claim.entry["date"] for page in pages for claim in page.claims if claim.entry]
    last = max([*(page.paper.year for page in pages), *(date.fromisoformat(day).year for day in dates)], default=1989)
    dots = [
        {
            "year": page.paper.year,
            "href": page.href,
            "judged": any(claim.entry for claim in page.claims),
            "title": f"{page.paper.title} ({year})",
        }
        for year, there in by_year(pages)
        for page in there
    ]
    return figures.years(dots, last)


@dataclass(frozen=True)
class Priced:
    """A claim whose method and control both have a price: what it brings, and what it takes."""

    page: Page
    claim: Claim
    time: float
    gain: float

    @property
    def times(self) -> str:
        """The ratio of times."""
        return f"× {self.time:.2f}"

    @property
    def percent(self) -> str:
        """The gain with its sign."""
        return f"{self.gain:+z.1f} %".replace("-", "−")


def priced(pages: Iterable[Page]) -> list[Priced]:
    """Claims that compare a method's arm with a control's where both took a known time, largest gain first."""
    found = []
    for page in pages:
        for claim in page.claims:
            method, control = claim.subject, claim.control
            price = claim.entry.get("price", {})
            if method is None or control is None or not price.get(control, {}).get("seconds"):
                continue
            ours, theirs = (statistics.fmean(claim.entry["arms"][arm].values()) for arm in (method, control))
            if "seconds" in price.get(method, {}) and theirs:
                sign = (
                    -1 if claim.entry["tests"][0]["wanted"][0] is None else 1
                )  # "as good as" has both ends, and wishes for no direction
                time = price[method]["seconds"] / price[control]["seconds"]
                if time > 0:
                    found.append(Priced(page, claim, time, sign * 100 * (ours - theirs) / abs(theirs)))
    return sorted(found, key=lambda one: (-one.gain, one.page.paper.key, one.claim.name))


def price_figure(found: Sequence[Priced]) -> Figure:
    """Effect against price."""
    points = [
        {
            "label": one.page.paper.key,
            "href": f"{one.page.href}#{one.claim.name}",
            "time": one.time,
            "gain": one.gain,
            "holds": one.claim.verdict == "holds",
            "title": f"{one.page.paper.key}, {one.claim.words}: {one.percent}, {one.times}",
        }
        for one in found
    ]
    return figures.prices(points)


# ------------------------------------------------------------------------------------------------ parts


def comparison_figure(table: Table) -> Figure:
    """Gains over the control, task by task; of methods of which more is known, what they reach against the first of it."""
    if table.traits:
        return trait_figures(table)[0]
    arms = [arm for arm in table.arms if arm != table.control]
    gains = {
        row: {arm: table.mean(row, arm) - table.mean(row, table.control) for arm in arms if arm in there}
        for row, there in table.values.items()
    }
    return figures.comparison(gains, table.bests(), table.control)


def trait_figures(table: Table) -> list[Figure]:
    """What methods reach, against each number that is known of them, and against the time that they took."""
    found = []
    for name in (*table.known, "seconds of a training, one core") if table.known else ():
        points = [
            {
                "x": table.traits[arm].get(name, table.seconds[row][arm]),
                "y": table.mean(row, arm),
                "low": min(by_seed.values()),
                "high": max(by_seed.values()),
                "label": arm,
                "row": row,
            }
            for row, arms in table.values.items()
            for arm, by_seed in arms.items()
        ]
        found.append(figures.against(points, name, table.unit, list(table.values)))
    return found


def _time(prices: Mapping[str, Mapping[str, float]], arm: str, control: str | None) -> str:
    """Seconds, and how many times those of the control."""
    seconds, against = (prices.get(name or "", {}).get("seconds") for name in (arm, control))
    if seconds is None:
        return ""
    return duration(seconds) + (f" (×{seconds / against:.2f})" if against and arm != control else "")


def _count(prices: Mapping[str, Mapping[str, float]], arm: str, what: str) -> str:
    count = prices.get(arm, {}).get(what)
    return "" if count is None else size(count)


def _test(test: Mapping[str, Any]) -> Test:
    low, high, effect = test["low"], test["high"], test["effect"]
    known = low is not None and high is not None
    note = test.get("note", "")
    if test.get("more_seeds"):
        more = f"about {test['more_seeds']} more seed{'s' if test['more_seeds'] > 1 else ''} would decide"
        note = f"{note}; {more}" if note else more
    p = test["p"]
    standardised = test.get("standardised")
    return Test(
        expectation=test["expectation"],
        verdict=test["verdict"],
        effect=signed(effect) if effect is not None else "not measured",
        interval=f"{signed(low)} to {signed(high)} ({100 * test['level']:.0f} %)" if known else "no interval",
        p=("p < 0.001" if p < 0.001 else f"p = {p:.2g}") if known else "",
        standardised=_standardised(standardised) if standardised is not None else "",
        note=note,
        strip=_strip(low, high, effect, test["wanted"]) if known else None,
    )


def _standardised(g: float) -> str:
    """An effect in deviations over seeds; of seeds that hardly differ, more digits would say nothing."""
    return f"g = {short(g, 3)}" if abs(g) < 1000 else "g > 1,000" if g > 0 else "g < −1,000"


def _strip(low: float, high: float, effect: float, wanted: Sequence[float | None]) -> Interval:
    ends = [low, high, *(end for end in wanted if end is not None)]
    left, right = min(ends), max(ends)
    if left <= 0 <= right or min(abs(left), abs(right)) < right - left:
        left, right = min(left, 0.0), max(right, 0.0)
    room = 0.12 * (right - left) or abs(left) or 1.0
    left, right = left - room, right + room

    def place(value: float) -> float:
        return round(STRIP * (value - left) / (right - left), 2)

    bounds = (place(wanted[0]) if wanted[0] is not None else 0.0, place(wanted[1]) if wanted[1] is not None else float(STRIP))
    return Interval(place(low), place(high), place(effect), bounds, place(0.0) if left < 0 < right else None)


# ------------------------------------------------------------------------------------------------ words and code

_INLINE = re.compile(
    r"``(.+?)``|:[a-z]+:`~?(?:[\w.]+\.)?(\w+)`|`([^`]+)`|(?<![\w*])(?P<stressed>\*{1,2}\w[^*]*\*{1,2})(?!\w)", re.DOTALL
)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s.,;:()\"]+", text.lower())


def inline(text: str) -> list[tuple[str, str]]:
    """A paragraph as pieces, ``("text" | "code" | "stress", words)``."""
    pieces, at = [], 0
    for found in _INLINE.finditer(text):
        pieces.append(("text", text[at : found.start()]))
        words = next(group for group in found.groups() if group)
        pieces.append(("stress", words.strip("*")) if found["stressed"] else ("code", words))
        at = found.end()
    return [(kind, words) for kind, words in [*pieces, ("text", text[at:])] if words]


def blocks(docstring: str) -> list[tuple[str, list[Any]]]:
    """A docstring as blocks: ``("paragraph", pieces)``, ``("list", [pieces, ...])`` and ``("code", [text])``."""
    found: list[tuple[str, list[Any]]] = []
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = block.splitlines()
        if all(line.startswith("    ") or line.startswith(">>>") for line in lines if line.strip()):
            if found and found[-1][0] == "code":
                found[-1][1][0] += f"\n\n{textwrap.dedent(block)}"
            else:
                found.append(("code", [textwrap.dedent(block)]))
            continue
        items: list[str] = []
        before = ""
        for line in lines:
            if re.match(r"\s*[-*] ", line):
                items.append(re.sub(r"^\s*[-*] ", "", line))
            elif items:
                items[-1] += " " + line.strip()
            else:
                before += " " + line.strip()
        if before.strip():
            found.append(("paragraph", inline(re.sub(r"::$", ":", before.strip()))))
        if items:
            found.append(("list", [inline(item) for item in items]))
    return found


def highlight(source: str, prefix: str) -> Markup:
    """Python with a class for each kind of token, and an anchor for each line."""
    what = f"{version('pygments')} {inspect.getsource(_highlighted)} {prefix}\0{source}"
    return Markup(kept(what, "html", lambda: _highlighted(source, prefix)))  # our own markup: _highlighted escapes


def _highlighted(source: str, prefix: str) -> str:
    from pygments import highlight as colour  # type: ignore[import-untyped]
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
    from pygments.lexers import PythonLexer  # type: ignore[import-untyped]

    lines = str(colour(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))).rstrip("\n").split("\n")
    link = Markup('<a id="{0}{1}" href="#{0}{1}" data-line="{1}" aria-label="line {1}" tabindex="-1"></a>')
    return Markup("\n").join(link.format(prefix, place) + Markup(line) for place, line in enumerate(lines, start=1))


def identity(name: str) -> str:
    """A name that a feed reader knows something by, for ever."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'assay/{name}')}"


def moment(when: str) -> str:
    """A date or a time in UTC as feeds write it."""
    return f"{when[:19]}Z" if len(when) > 10 else f"{when}T00:00:00Z"
