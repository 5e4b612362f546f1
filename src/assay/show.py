"""What a person sees at the terminal: tables, nothing else. No torch here."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from assay import catalogue
from assay.lab import comparing, evidence
from assay.numbers import size, trait

if TYPE_CHECKING:
    from assay.lab.cache import Entry
    from assay.lab.comparing import Table as Comparison
    from assay.lab.results import Result
    from assay.paper import Configuration

COLOURS = {
    "holds": "green",
    "fails": "red",
    "inconclusive": "yellow",
    "stale": "magenta",
    "works": "green",
    "absent": "yellow",
    "broken": "red",
}


#: What the columns of a paper's standard networks mean.
CONFIGURATION_TERMS = (
    "MACs: multiply-adds of one example; outputs: numbers that its convolutions return (activations); layers: those with "
    "weights, on the longest way; sees: side of the part of the picture that one place of the last map depends on (receptive "
    "field)."
)


@cache
def console() -> Console:
    """Where tables go."""
    return Console()


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _colour(word: str) -> str:
    return f"[{COLOURS.get(word, 'white')}]{word}[/]"


# ------------------------------------------------------------------------------------------------ papers


def paper_dict(paper: catalogue.Paper, whole: bool = False) -> dict[str, Any]:
    """A paper as JSON; with ``whole`` also its lesson and its claims with their recorded verdicts."""
    facts: dict[str, Any] = {
        "key": paper.key,
        "topic": paper.topic,
        "kind": paper.kind,
        "year": paper.year,
        "title": paper.title,
        "authors": list(paper.authors),
        "link": paper.link,
        "summary": paper.summary,
        "verdicts": {name: entry["verdict"] for name, entry in evidence.recorded(paper.key).items()},
    }
    if whole:
        entries = evidence.recorded(paper.key)
        facts |= {
            "api": paper.api,
            "lesson": catalogue.lesson(paper),
            "configurations": {call: dataclasses.asdict(one) for call, one in catalogue.configurations(paper).items()},
            "claims": [
                {
                    "name": text.name,
                    "statement": text.statement,
                    "expect": text.expect,
                    "scaled_down": text.scaled_down,
                    "stale": text.name in entries and evidence.is_stale(paper, text.name, entries[text.name]),
                    "evidence": entries.get(text.name),
                }
                for text in catalogue.claim_texts(paper)
            ],
        }
    return facts


def print_papers(papers: Iterable[catalogue.Paper]) -> None:
    """A line a paper, under its topic; the title gets what is left of the line, and a narrow terminal does without the kind."""
    wide = console().width >= 110
    rows = [(paper, *_counted(paper)) for paper in papers]
    names = ["  paper", "year", "verdicts", *(["kind"] if wide else []), "title"]
    widths = [2 + max((len(paper.key) for paper, *_ in rows), default=5), 4, max((len(text) for _, text, _ in rows), default=8)]
    widths += [max((len(paper.kind) for paper, *_ in rows), default=4)] if wide else []
    widths.append(max(20, console().width - sum(widths) - 2 * len(names)))
    table = _table(*names)
    for column, width in zip(table.columns, widths, strict=True):
        column.no_wrap, column.min_width, column.max_width, column.overflow = True, width, width, "ellipsis"
    for number, (paper, _, marks) in enumerate(rows):
        if not number or rows[number - 1][0].topic != paper.topic:
            table.add_row(f"[dim]{paper.topic}[/]")
        kind = [paper.kind] if wide else []
        table.add_row(f"  [bold]{paper.key}[/]", str(paper.year), marks, *kind, escape(paper.title))
    console().print(table)


def _counted(paper: catalogue.Paper) -> tuple[str, str]:
    """How many claims came out how, plain and coloured."""
    entries = evidence.recorded(paper.key).values()
    counts = {word: sum(entry["verdict"] == word for entry in entries) for word in ("holds", "fails", "inconclusive")}
    there = {word: count for word, count in counts.items() if count}
    plain = " ".join(f"{count} {word}" for word, count in there.items())
    marks = " ".join(f"[{COLOURS[word]}]{count} {word}[/]" for word, count in there.items())
    return plain or "none yet", marks or "[dim]none yet[/]"


def print_paper(paper: catalogue.Paper) -> None:
    """One paper at length."""
    out = console()
    out.print(f"[bold]{escape(paper.title)}[/]")
    out.print(f"{escape(', '.join(paper.authors))}, {paper.year}  [dim]{escape(paper.link)}[/]")
    out.print(f"[dim]{paper.topic} / {paper.kind}; key: {paper.key}[/]\n")
    for paragraph in catalogue.lesson(paper).split("\n\n"):
        out.print(Padding(escape(" ".join(paragraph.split())) + "\n", (0, 2)))
    if paper.api:
        out.print(f"[bold]use[/]\n  {escape(paper.api)}", highlight=False)
    _print_configurations(catalogue.configurations(paper))
    out.print("\n[bold]claims[/]")
    entries = evidence.recorded(paper.key)
    for text in catalogue.claim_texts(paper):
        entry = entries.get(text.name)
        mark = "[dim]not recorded[/]"
        if entry is not None:
            mark = _colour(entry["verdict"])
            if evidence.is_stale(paper, text.name, entry):
                mark += " " + _colour("stale")
        out.print(f"  [bold]{text.name}[/]  {mark}")
        out.print(Padding(escape(text.statement), (0, 4)))
        if entry is not None:
            for test in entry["tests"]:
                out.print(
                    Padding(
                        f"[dim]{escape(_test_text(test))}; {entry['seeds']} seeds, {entry['scale']}, {entry['date']}[/]",
                        (0, 4),
                    )
                )
        if text.scaled_down:
            out.print(Padding(f"[dim]scaled down: {escape(text.scaled_down)}[/]", (0, 4)))
    out.print(f"\nrun it: [bold]assay run {paper.key}[/]", highlight=False)


def _print_configurations(configurations: Mapping[str, Configuration]) -> None:
    """The standard networks of a paper, a line each."""
    if not configurations:
        return
    names = ("configuration", "input", "parameters", "MACs", "outputs", "layers", "sees")
    rows = []
    for call, one in configurations.items():
        counts = (f"{one.parameters:,}", size(one.macs), size(one.activations), str(one.layers), str(one.sees or "-"))
        rows.append((call, "x".join(map(str, one.input)), *counts))
    table = _table(*names, right=names[2:])
    # In a narrow terminal columns stand closer, and then calls are broken; numbers never are.
    call_width, *others = (max(map(len, column)) for column in zip(names, *rows, strict=True))
    apart = 2 if call_width + sum(others) + 2 * len(names) <= console().width else 1
    table.padding = (0, apart - 1, 0, 0)
    widths = [max(8, min(call_width, console().width - sum(others) - len(names) - 1)), *others]
    for column, width in zip(table.columns, widths, strict=True):
        column.min_width = column.max_width = width
    for row in rows:
        table.add_row(*row)
    console().print(table)
    sees = " -: the whole picture, or not stated." if any(not one.sees for one in configurations.values()) else ""
    console().print(Padding(f"[dim]{CONFIGURATION_TERMS}{sees}[/]", (0, 2)), highlight=False)


# ------------------------------------------------------------------------------------------------ results


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _test_text(test: Mapping[str, Any]) -> str:
    effect = f"{test['expectation']}: effect {test['effect']:+.4g}"
    if test["low"] is None or test["high"] is None:  # one seed tells nothing about the spread
        return f"{effect}, no interval from one seed"
    interval = f"[{test['low']:+.4g}, {test['high']:+.4g}] ({100 * test['level']:.0f} %)"
    return f"{effect} {interval}, p = {test['p']:.2g}"


def print_results(results: Sequence[Result]) -> None:
    """What a run found: paper's numbers beside ours, effect, interval, verdict, price."""
    out = console()
    if not results:
        out.print("Nothing is done yet.")
        return
    for found in results:
        claim = found.claim
        seeds = f"{len(found.rows)} seed" + "s" * (len(found.rows) != 1)
        out.print(f"\n[bold]{found.paper.key}:{claim.name}[/]  {_colour(found.verdict.verdict)}  [dim]{seeds}[/]")
        out.print(Padding(escape(claim.statement), (0, 2)))
        reported = {arm: (value, said) for said in claim.reported for arm, value in said.values.items()}
        table = _table(
            "arm",
            f"{claim.unit or 'value'}, mean",
            "lowest",
            "highest",
            "paper",
            "price",
            right=("lowest", "highest", "paper"),
        )
        table.columns[1].justify = "right"
        control = _control(found)
        for arm in found.arms:
            values = [row.values[arm] for row in found.rows.values()]
            said = _number(reported[arm][0]) if arm in reported else ""
            cells = [_number(v) for v in (found.mean(arm), min(values), max(values))]
            table.add_row(escape(arm), *cells, said, _price(found, arm, control))
        if claim.unit:
            out.print(Padding(f"[dim]in: {escape(claim.unit)}[/]", (0, 2)))
        out.print(Padding(table, (0, 2)))
        for said_once in claim.reported:
            out.print(Padding(f"[dim]paper: {escape(said_once.what)} ({escape(said_once.where)})[/]", (0, 2)))
        if found.unfinished:
            open_seeds = ", ".join(f"{seed} ({why})" for seed, why in found.unfinished.items())
            out.print(Padding(f"[red]without a measurement: seed {open_seeds}; with these open no claim holds[/]", (0, 2)))
        for test in found.verdict.as_dict()["tests"]:
            line = f"{_colour(test['verdict'])}  {escape(_test_text(test))}"
            if test.get("more_seeds"):
                line += f"; about {test['more_seeds']} more seeds would decide"
            if test.get("note"):
                line += f" [dim]({escape(test['note'])})[/]"
            out.print(Padding(line, (0, 2)))
        if claim.scaled_down:
            out.print(Padding(f"[dim]scaled down: {escape(claim.scaled_down)}[/]", (0, 2)))


def _control(found: Result) -> str | None:
    """The arm that prices are relative to: what the first expectation compares with."""
    first = found.claim.expect[0]
    return getattr(first, "than", None) or getattr(first, "to", None)


def _price(found: Result, arm: str, control: str | None) -> str:
    price = found.price(arm)
    parts = []
    if "seconds" in price:
        text = f"{price['seconds']:.3g} s"
        against = found.price(control).get("seconds") if control and control != arm else None
        if against:
            text += f" (x{price['seconds'] / against:.2f})"
        parts.append(text)
    if "parameters" in price:
        parts.append(f"{size(price['parameters'])} parameters")
    if "flops" in price:
        parts.append(size(price["flops"], "FLOP"))
    return ", ".join(parts)


def verdict_rows(papers: Iterable[catalogue.Paper]) -> list[dict[str, Any]]:
    """Every recorded claim of these papers, with p-values corrected (Benjamini-Hochberg) over all that are shown."""
    from assay.lab.verdict import adjust

    rows: list[dict[str, Any]] = []
    for paper in papers:
        entries = evidence.recorded(paper.key)
        for text in catalogue.claim_texts(paper):
            entry = entries.get(text.name)
            if entry is None:
                rows.append({"paper": paper.key, "topic": paper.topic, "claim": text.name, "verdict": "not recorded"})
                continue
            keep = ("verdict", "seeds", "scale", "p", "date", "tests", "rerun")
            stale = evidence.is_stale(paper, text.name, entry)
            rows.append(
                {
                    "paper": paper.key,
                    "topic": paper.topic,
                    "claim": text.name,
                    "stale": stale,
                    **{name: entry[name] for name in keep},
                }
            )
    tested = [row for row in rows if row.get("p") is not None]
    for row, q in zip(tested, adjust([row["p"] for row in tested]), strict=True):
        row["q"] = float(q)
    return rows


def print_verdicts(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a claim, under its paper; of several expectations the one that decides."""
    table = _table("claim", "verdict", "effect", "95 % interval", "q", right=("effect", "q"))
    for column, width in zip(table.columns, (18, 12, 9, 21, 6), strict=True):
        column.no_wrap, column.min_width, column.overflow = True, width, "ellipsis"
    table.columns[0].max_width = max(16, console().width - 64)
    for number, row in enumerate(rows):
        if not number or rows[number - 1]["paper"] != row["paper"]:
            table.add_row(f"[bold]{row['paper']}[/] [dim]{row['topic']}[/]")
        if "tests" not in row:
            table.add_row(f"  {row['claim']}", f"[dim]{row['verdict']}[/]")
            continue
        test = evidence.decisive(row)
        mark = _colour(row["verdict"]) + (" " + _colour("stale") if row["stale"] else "")
        interval = "" if test["low"] is None or test["high"] is None else f"{test['low']:+.3g} to {test['high']:+.3g}"
        q = f"{row['q']:.1g}" if row["verdict"] == "holds" else ""
        table.add_row(f"  {row['claim']}", mark, f"{test['effect']:+.3g}", interval, q)
    console().print(table)
    held = [row for row in rows if row["verdict"] == "holds"]
    doubtful = [row for row in held if row["q"] > 0.05]
    text = f"{len(held)} hold, {sum(r['verdict'] == 'fails' for r in rows)} fail, "
    text += f"{sum(r['verdict'] == 'inconclusive' for r in rows)} inconclusive, {sum(bool(r.get('stale')) for r in rows)} stale."
    text += " q is the p-value corrected for the number of claims (Benjamini-Hochberg)"
    text += f"; {len(doubtful)} of those that hold have q above 0.05." if doubtful else "; all that hold have q of at most 0.05."
    console().print(text, highlight=False)


def print_comparisons(found: Mapping[str, str]) -> None:
    """A line a comparison."""
    table = _table("comparison", "question")
    for name, question in found.items():
        table.add_row(f"[bold]{name}[/]", escape(question))
    console().print(table)


def print_comparison(found: Comparison) -> None:
    """A row a task, a column a method, or turned round where methods are many; the best of a task, and ties, are bold."""
    lines = _by_arm(found) if len(found.arms) > 2 * len(found.values) else _by_row(found)
    table = _table("", *lines[0][1:], right=lines[0][1:])
    table.title, table.columns[0].no_wrap = found.title, True
    for line in lines[1:]:
        if line:
            table.add_row(*line)
        else:
            table.add_section()
    console().print(table)
    stale = f" [{COLOURS['stale']}]stale[/]: the code has changed since." if comparing.is_stale(found) else ""
    console().print(f"{found.unit}, mean of {found.seeds} seeds, {found.facts['scale']} scale.{stale}", highlight=False)


def _cell(found: Comparison, row: str, arm: str, best: Sequence[str]) -> str:
    if arm not in found.values[row]:
        return ""
    mean = f"{found.mean(row, arm):.3f}"
    return f"[bold]{mean}[/]" if arm in best else mean


def _by_row(found: Comparison) -> list[list[str]]:
    """A line a task, and what follows from all of them; an empty list where a rule is drawn."""
    arms = found.arms
    return [
        ["", *arms],
        *([row, *(_cell(found, row, arm, best) for arm in arms)] for row, best in found.bests().items()),
        [],
        ["[dim]best, or a tie[/]", *map(found.wins, arms)],
        ["[dim]mean gain[/]", *(f"{statistics.fmean(found.gains(arm)):+.2f}" for arm in arms)],
        ["[dim]smallest gain[/]", *(f"{min(found.gains(arm)):+.2f}" for arm in arms)],
        ["[dim]time[/]", *(f"{found.times(arm):.2f}x" for arm in arms)],
    ]


def _by_arm(found: Comparison) -> list[list[str]]:
    """A line a method, with what is known of it without training."""
    bests = found.bests()
    return [
        ["", *found.known, *found.values, "time"],
        *(
            [
                arm,
                *(trait(name, found.traits[arm][name]) for name in found.known),
                *(_cell(found, row, arm, best) for row, best in bests.items()),
                f"{found.times(arm):.2f}x",
            ]
            for arm in found.arms
        ),
    ]


_COST_COLUMNS = ("paper", "claims", "asked", "once", "PFLOP", "GPU h", "bf16 h", "core h", "how")
_MACHINE_COLUMNS = ("machines", "float32 h", "bfloat16 h")


def print_costs(found: Mapping[str, Any]) -> None:
    """A line a paper, what was not seen, and how long all takes on so many machines."""
    out = console()
    table = _table(*_COST_COLUMNS, right=_COST_COLUMNS[1:-1])
    for column in table.columns:
        column.no_wrap = True
    for paper, *cells in _cost_rows(found):
        table.add_row(f"[bold]{paper}[/]", *cells)
    out.print(table)
    for text, claims in _not_seen(found).items():
        out.print(Padding(f"{escape(text)} [dim]({', '.join(claims)})[/]", (0, 2)))
    out.print(
        f"{found['scale']} scale, {found['seeds']} seeds. asked, once: trainings that claims ask for, and distinct ones; "
        f"core h: work without a network, on a core. Longest unit: {found['longest']['float32']['unit']}.",
        highlight=False,
    )
    times = _table(*_MACHINE_COLUMNS, right=_MACHINE_COLUMNS)
    for row in _machine_rows(found):
        times.add_row(*row)
    out.print(times)


def costs_markdown(found: Mapping[str, Any]) -> str:
    """The same as Markdown, for a page."""
    text = []
    for columns, rows in ((_COST_COLUMNS, _cost_rows(found)), (_MACHINE_COLUMNS, _machine_rows(found))):
        sides = ["---" if name in ("paper", "how") else "---:" for name in columns]
        text += ["\n".join("| " + " | ".join(row) + " |" for row in (columns, sides, *rows))]
    notes = "\n".join(f"- {why}: {', '.join(f'`{claim}`' for claim in claims)}" for why, claims in _not_seen(found).items())
    return "\n\n".join([text[0], *([notes] if notes else []), text[1]])


def _cost_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            row["paper"],
            f"{row['claims'] - row['uncounted']}/{row['claims']}",
            f"{row['trainings']}",
            f"{row['distinct']}",
            *(_amount(amount) for amount in (row["flops"] / 1e15, row["gpu_hours"], row["gpu_hours_bfloat16"])),
            _amount(row["other_core_hours"]),
            ", ".join(row["how"]),
        )
        for row in [*found["papers"], {"paper": "all", **found["total"]}]
    ]


def _machine_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(f"{row['machines']:,}", _amount(row["float32"]), _amount(row["bfloat16"])) for row in found["machines"]]


def _not_seen(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was not counted and why -> of which claims."""
    reasons: dict[str, list[str]] = {}
    for one in found["claims"]:
        for text in [f"not counted, {one['error']}"] if one["error"] else one["notes"]:
            reasons.setdefault(text.strip(), []).append(f"{one['paper']}:{one['claim']}")
    return reasons


def _amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}" if number >= 0.01 else "<0.01" if number else "0"


# ------------------------------------------------------------------------------------------------ housekeeping


def data_dict(row: Any) -> dict[str, Any]:
    """A data set of ``assay data --json``."""
    return {name: getattr(row, name) for name in ("name", "what", "task", "tier", "licence", "size", "here")}


def print_data(rows: Iterable[Any]) -> None:
    """A line a data set."""
    table = _table("name", "here", "size", "task", "tier", "licence", "what", right=("size",))
    for row in rows:
        size = f"{row.size / 1e6:.1f} MB" if row.size else "-"
        here = "[green]yes[/]" if row.here else "[dim]no[/]"
        table.add_row(f"[bold]{row.name}[/]", here, size, row.task, row.tier, escape(row.licence), escape(row.what))
    console().print(table)
    console().print(
        "`assay data fetch NAME` brings one; ASSAY_MIRROR names a folder or URL that is tried first.", highlight=False
    )


def print_cache(entries: Sequence[Entry]) -> None:
    """A line for each kept piece of work."""
    table = _table("fingerprint", "kind", "what", "took", "size", "made", right=("took", "size"))
    for entry in entries:
        table.add_row(
            entry.fingerprint[:10],
            entry.kind,
            escape(entry.what),
            f"{entry.seconds:.1f} s",
            f"{entry.bytes / 1e6:.1f} MB",
            entry.made[:16],
        )
    console().print(table)
    total = sum(entry.bytes for entry in entries) / 1e6
    saved = sum(entry.seconds for entry in entries) / 60
    console().print(
        f"{len(entries)} entries, {total:.1f} MB, {saved:.1f} minutes of work. `assay cache prune` removes.",
        highlight=False,
    )


def print_findings(findings: Iterable[Mapping[str, Any]]) -> None:
    """What the doctor found."""
    table = _table("part", "state", "details")
    for finding in findings:
        table.add_row(finding["part"], _colour(finding["state"]), escape(str(finding["details"])))
    console().print(table)
