"""``assay suggest`` and ``assay probe``, as plain functions; nothing heavy is imported before one is run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from assay.errors import AssayError
from assay.own.commands import ON_HELP, Group, Json, Series, Target, Text, Time, Trust

if TYPE_CHECKING:
    from assay.own.attacking import Tested
    from assay.own.explaining import Compared
    from assay.own.named import Named
    from assay.own.probing import Looked
    from assay.own.ranking import Ranking
    from assay.own.suggesting import Advice

#: What a probe, a comparison of methods, an attack or a ranking of examples comes back with.
_Found = TypeVar("_Found", "Looked", "Compared", "Tested", "Ranking")
#: Columns, words and examples that a terminal shows; the page and the JSON have all.
_SHOWN = 10
#: What stands in the place of a paper's key to compare methods of attribution.
EXPLAIN = "explain"
_EXPLAINS = "All methods of attribution side by side, ranked: which one suits this network and these data?"
_EXPLAIN_OPTIONS = {"methods": "''", "steps": "10", "stages": "2", "baseline": "0.0"}
#: What stands in the place of a paper's key to attack a network.
ROBUST = "robust"
_ROBUSTS = "Attacks side by side for growing changes, what is proved, and signs of gradient masking."
_ROBUST_OPTIONS = {"eps": "''", "norm": "inf", "steps": "20", "restarts": "2", "queries": "200"}
#: Words in the place of a paper's key -> what they do, and their options.
_WORDS = {EXPLAIN: (_EXPLAINS, _EXPLAIN_OPTIONS), ROBUST: (_ROBUSTS, _ROBUST_OPTIONS)}
#: Claims that are shown of each paper; how the others ended is counted.
_CLAIMS = 2


def suggest_methods(
    on: Annotated[str, typer.Option(help=ON_HELP)],
    target: Target = None,
    text: Text = None,
    group: Group = None,
    time: Time = None,
    series: Series = None,
    seed: Annotated[int, typer.Option(help="Of samples and folds.")] = 0,
    as_json: Json = False,
) -> None:
    """Look at your data before training on them, and name the methods and probes worth trying.

    Wrong labels, rare classes, repeats, columns that give the answer away, a test unlike the training data, size, gaps: each
    with how sure it is. Then what the catalogue has against what was found, with its evidence, the time it would take and the
    command. "Nothing stands out" is a good answer.
    """
    from rich.console import Console

    from assay.own.suggesting import suggest

    with Console(stderr=True, quiet=as_json).status("reading") as status:
        advice = suggest(
            on, target, text, group, time, series, seed, lambda done, total, note: status.update(f"looking at {note}")
        )
    if as_json:
        print(json.dumps(advice.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_advice(advice)


def probe_model(
    probe: Annotated[
        str | None,
        typer.Argument(
            help="Key of a paper with a probe; or `explain`, which compares methods of attribution, or `robust`, which attacks; "
            "without one, the probes are listed."
        ),
    ] = None,
    on: Annotated[str | None, typer.Option(help=ON_HELP)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A saved run, a program of torch.export (.pt2), MODULE:FUNCTION that returns a network, timm:NAME or "
            "transformers:NAME. Without it the baseline is trained on the data."
        ),
    ] = None,
    target: Target = None,
    text: Text = None,
    group: Group = None,
    time: Time = None,
    series: Series = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help="How many examples are drawn and looked at: 16; 100 that are attacked; 4,000 where data are looked at."
        ),
    ] = None,
    of: Annotated[str, typer.Option("--class", help="Look at what was `said`, what is `right`, or this class.")] = "said",
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, an option of the probe; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw, of the baseline, and of what is random in the probe.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Hand columns to your network as they stand in the file.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for a page with pictures and for the attributions.")] = None,
    device: Annotated[str, typer.Option(help="Where the baseline is trained: cpu, cuda, mps.")] = "cpu",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Put a paper's probe on a network and your data: what it looks at, how easily it is fooled.

    Some probes look at the data themselves, and train networks of their own for that: how typical is each example? For these,
    --model is MODULE:FUNCTION that makes a fresh network, or left out.

    `assay probe explain` puts all methods of attribution on the network and ranks them: by what the network says when what they
    name is taken away or put in, whether they add up, whether they notice that the weights were shuffled, and by time.

    `assay probe robust` attacks a classifier with changes of growing size: accuracy under gradient attacks, DeepFool and Square,
    under the worst of them, and what interval bounds prove.

    `assay probe` alone lists the probes.
    """
    if probe is None:
        _list_probes(as_json)
        return
    if on is None:
        raise AssayError("Which data is the network to be shown? Name them with --on.")
    if out is not None:
        from assay.own.page import require_web

        require_web()

    from rich.console import Console
    from rich.markup import escape

    from assay.own.named import Named
    from assay.own.offers import looks_at_data

    columns = Named(target, text, group, time, series)
    if probe == EXPLAIN:
        _compare(on, model, columns, examples, settings or [], seed, of, raw, out, device, trust or [], as_json)
        return
    if probe == ROBUST:
        if of != "said":
            raise AssayError("robust attacks what is right, not one class: leave --class out.")
        _attack(on, model, columns, examples, settings or [], seed, raw, out, device, trust or [], as_json)
        return
    if looks_at_data(probe):
        if raw or of != "said" or trust:
            raise AssayError(f"{probe} looks at data, not at what a network says: leave --raw, --class and --trust out.")
        _rank(probe, on, model, columns, examples, settings or [], seed, out, device, as_json)
        return

    from assay.own import probing

    with Console(stderr=True, quiet=as_json).status("opening the network") as status:
        looked = probing.probe(
            probe,
            on,
            model,
            columns,
            16 if examples is None else examples,
            seed,
            of,
            raw,
            device,
            settings or (),
            trust or (),
            lambda done, total, note: status.update(f"training the baseline: {escape(note)}"),
        )
    files = {}
    if out is not None:
        from assay.own.page import write_page

        files["page"] = write_page(looked, out)
    _show(looked, print_looked, files, as_json)


def _compare(
    on: str,
    model: str | None,
    named: Named,
    examples: int | None,
    settings: list[str],
    seed: int,
    of: str,
    raw: bool,
    out: Path | None,
    device: str,
    trust: list[str],
    as_json: bool,
) -> None:
    """Methods of attribution side by side: a table at the terminal, a page and all attributions in a folder."""
    from rich.console import Console
    from rich.markup import escape

    from assay.own import explaining

    def tell(done: float, total: float, note: str) -> None:
        status.update(escape(note))

    with Console(stderr=True, quiet=as_json).status("opening the network") as status:
        count = 16 if examples is None else examples
        compared = explaining.explain(on, model, named, count, seed, of, raw, device, settings, trust, tell)
    files = {}
    if out is not None:
        from assay.own.page import write_comparison

        files["page"] = write_comparison(compared, out)
    _show(compared, print_compared, files, as_json)


def _attack(
    on: str,
    model: str | None,
    named: Named,
    examples: int | None,
    settings: list[str],
    seed: int,
    raw: bool,
    out: Path | None,
    device: str,
    trust: list[str],
    as_json: bool,
) -> None:
    """Attacks on one network: a table at the terminal, a page with the curves in a folder."""
    from rich.console import Console
    from rich.markup import escape

    from assay.own import attacking

    with Console(stderr=True, quiet=as_json).status("opening the network") as status:
        count = 100 if examples is None else examples
        tested = attacking.robust(
            on, model, named, count, seed, raw, device, settings, trust, lambda done, total, note: status.update(escape(note))
        )
    files = {}
    if out is not None:
        from assay.own.page import write_tested

        files["page"] = write_tested(tested, out)
    _show(tested, print_tested, files, as_json)


def _rank(
    probe: str,
    on: str,
    model: str | None,
    named: Named,
    examples: int | None,
    settings: list[str],
    seed: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """A probe of a data set: a table at the terminal, a page and all scores in a folder."""
    from rich.console import Console
    from rich.markup import escape

    from assay.own import ranking

    def tell(done: float, total: float, note: str) -> None:
        status.update(f"{escape(note)}: {100 * done / total:.0f} % of all")

    with Console(stderr=True, quiet=as_json).status("reading") as status:
        most = ranking.MOST if examples is None else examples
        found = ranking.rank(probe, on, model, named, most, seed, device, settings, tell)
    files = {}
    if out is not None:
        from assay.own.ranked_page import write_ranking

        files["page"], files["scores"] = write_ranking(found, out)
    _show(found, print_ranking, files, as_json)


def _show(found: _Found, print_table: Callable[[_Found], None], files: Mapping[str, Path], as_json: bool) -> None:
    """What was found, as JSON with the files that were written, or as a table with a line for each of them."""
    if as_json:
        plain = found.as_dict() | {name: str(path) for name, path in files.items()}
        print(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False))
        return
    print_table(found)
    for name, path in files.items():
        print(f"{'pictures' if name == 'page' else name}: {path}")


# ---------------------------------------------------------------------------------------------------- suggest


def print_advice(advice: Advice) -> None:
    """What was found, then what is worth trying."""
    from rich.markup import escape
    from rich.padding import Padding

    from assay.catalogue import NEEDS
    from assay.show import COLOURS, console

    out = console()
    marks = {"act": "[red]act[/]  ", "look": "[yellow]look[/] "}
    out.print(escape(advice.data), highlight=False)
    out.print()
    for finding in advice.outstanding:
        out.print(f"{marks[finding.severity]} [bold]{finding.name}[/]: {escape(finding.words)}.", highlight=False)
        ids = advice.ids.get(finding.name, [])
        if ids:
            more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
            out.print(Padding(f"[dim]worst first: {escape(', '.join(ids[:_SHOWN]))}{more}[/]", (0, 0, 0, 6)), highlight=False)
        if finding.advice:
            out.print(Padding(f"{escape(finding.advice)}.", (0, 0, 0, 6)), highlight=False)
    fine = [finding for finding in advice.findings if finding.severity == "fine"]
    if fine:
        out.print("[green]fine[/]  " + ", ".join(finding.name for finding in fine), highlight=False)
        for finding in fine:
            out.print(Padding(f"[dim]{finding.name}: {escape(finding.words)}[/]", (0, 0, 0, 6)), highlight=False)
    out.print()
    if not advice.outstanding:
        out.print("Nothing stands out: train the baseline, and look elsewhere for what is to be gained.", highlight=False)
    elif not advice.suggestions:
        out.print("Nothing in the catalogue is made for what was found here.", highlight=False)
    else:
        out.print("[bold]worth trying[/]")
    for one in advice.suggestions:
        out.print(
            f"\n  [bold]{one.key}[/]  {escape(one.title)}\n    because {NEEDS[one.need]}{_time(one.seconds)}\n"
            f"    [bold]{escape(one.command)}[/]",
            highlight=False,
        )
        for claim in one.evidence[:_CLAIMS]:
            verdict = "stale" if claim["stale"] else claim["verdict"]
            effect = "" if claim["effect"] is None else f" ({claim['expectation']}: {claim['effect']:+.3g}"
            if claim["low"] is not None and claim["high"] is not None:
                effect += f", {claim['low']:+.3g} to {claim['high']:+.3g}"
            effect += ")" if effect else ""
            out.print(
                Padding(f"[{COLOURS[verdict]}]{verdict}[/] {escape(claim['statement'])}[dim]{escape(effect)}[/]", (0, 0, 0, 6)),
                highlight=False,
            )
        if len(one.evidence) > _CLAIMS:
            rest = Counter(claim["verdict"] for claim in one.evidence[_CLAIMS:])
            counts = ", ".join(f"{count} {verdict}" for verdict, count in rest.items())
            out.print(f"      [dim]and {len(one.evidence) - _CLAIMS} more claims ({counts}): assay show {one.key}[/]")
        if not one.evidence:
            out.print("      [dim]no evidence is recorded yet[/]")
    for key, why in advice.unfit.items():
        out.print(f"[dim]does not fit: {escape(key)}: {escape(why)}.[/]", highlight=False)
    for note in advice.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)


def _time(seconds: float | None) -> str:
    from assay.own.budget import in_words

    return "" if seconds is None else f"; takes about {in_words(seconds)}"


# ---------------------------------------------------------------------------------------------------- probe


def _list_probes(as_json: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from assay.own.offers import offers
    from assay.show import console

    there = offers()
    if as_json:
        plain = [{"probe": one.name, "what": one.what, "options": dict(one.options)} for one in there]
        plain += [{"probe": word, "what": what, "options": dict(given)} for word, (what, given) in _WORDS.items()]
        print(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    table = Table("probe", "what", "options", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for one in there:
        options = ", ".join(f"{name}={default}" for name, default in one.options.items())
        table.add_row(f"[bold]{escape(one.name)}[/]", escape(one.what), escape(options))
    for word, (what, given) in _WORDS.items():
        table.add_row(f"[bold]{word}[/]", what, ", ".join(f"{name}={default}" for name, default in given.items()))
    console().print(table)


def print_looked(looked: Looked) -> None:
    """Numbers in a table, then what can be shown of the attributions without pictures."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from assay.show import console

    out = console()
    out.print(f"[bold]{escape(looked.probe)}[/]  {escape(looked.what)}\n[dim]{escape(looked.paper)}[/]", highlight=False)
    right = "" if looked.accuracy is None else f"; right on {100 * looked.accuracy:.1f} %"
    out.print(f"network: {escape(looked.model)}{right}\ndata: {escape(looked.source)}", highlight=False)
    rows = looked.summary()
    if rows or looked.numbers:
        table = Table("", "median", "lowest", "highest", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, value in looked.numbers.items():
            table.add_row(escape(name), f"{value:.4g}", "", "")
        for name, (middle, low, high) in rows.items():
            table.add_row(f"{escape(name)} [dim](each of {len(looked.examples)})[/]", *(f"{v:.4g}" for v in (middle, low, high)))
        out.print(table)
    for name in looked.attributions:
        _print_attributions(looked, name)
    for note in looked.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)


def _print_attributions(looked: Looked, name: str) -> None:
    from rich.markup import escape
    from rich.text import Text as Coloured

    from assay.show import console

    out = console()
    if looked.kind == "table":
        found = looked.columns(name)
        most = max(found.values(), default=0.0) or 1.0
        width = max(len(column) for column in list(found)[:_SHOWN])
        out.print(f"[bold]{escape(name)}[/] of {looked.target}, mean size by column", highlight=False)
        for column, value in list(found.items())[:_SHOWN]:
            out.print(f"  {escape(column):<{width}}  {value:9.4g}  [cyan]{'█' * round(30 * value / most)}[/]", highlight=False)
        if len(found) > _SHOWN:
            out.print(f"  [dim]and {len(found) - _SHOWN} more columns[/]")
    elif looked.kind == "text":
        out.print(f"[bold]{escape(name)}[/] of {looked.target}: [red]for[/] and [blue]against[/]", highlight=False)
        for example, shares in list(zip(looked.examples, looked.attributions[name], strict=True))[:_SHOWN]:
            line = Coloured(f"  {example.said}: ", style="bold")
            for word, strength in zip(example.words, looked.strengths(shares), strict=True):
                line.append(word + " ", style=_ink(strength))
            out.print(line)
    else:
        out.print(f"[bold]{escape(name)}[/] of {looked.target}: [dim]pictures with --out FOLDER[/]", highlight=False)


def _ink(strength: float) -> str:
    """Red for, blue against, as strong as it is: ``strength`` in [-1, 1]."""
    level = round(255 * (1 - min(1.0, abs(strength))))
    paper = f"rgb(255,{level},{level})" if strength > 0 else f"rgb({level},{level},255)"
    return f"black on {paper}" if abs(strength) > 0.15 else ""


def print_tested(tested: Tested) -> None:
    """A row for each size of change, the smallest first: what is proved, what is left; then signs of masking."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from assay.show import console

    out, looked = console(), tested.looked
    right = "" if looked.accuracy is None else f"; right on {100 * looked.accuracy:.1f} %"
    out.print(f"[bold]{ROBUST}[/]  {escape(looked.what)}", highlight=False)
    out.print(f"network: {escape(looked.model)}{right}\ndata: {escape(looked.source)}", highlight=False)
    norm = "largest change of one entry" if tested.norm == float("inf") else "L2 norm"
    out.print(f"{len(looked.examples)} examples; {escape(tested.range)}; norm: {norm}", highlight=False)
    attacks = list(tested.rows[0].under)
    table = Table("eps", "proved", "worst", *attacks, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    share = "{:.1f} %".format
    table.add_row("[dim]0[/]", "", f"[dim]{share(100 * tested.clean)}[/]", *[""] * len(attacks))
    for row in tested.rows:
        proved = "–" if row.proved is None else share(100 * row.proved)
        table.add_row(
            tested.written(row.eps), proved, f"[bold]{share(100 * row.worst)}[/]", *(share(100 * row.under[a]) for a in attacks)
        )
    out.print(table)
    for name, value in looked.numbers.items():
        out.print(f"{escape(name)}: {value:.4g}", highlight=False)
    for sign in tested.masking:
        out.print(f"[red]masked gradients[/]: {escape(sign)}.", highlight=False)
    if not tested.masking:
        out.print(f"no sign of gradient masking at eps {tested.written(tested.checked)}", highlight=False)
    for note in looked.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)


def print_compared(compared: Compared) -> None:
    """A row for each method, the best first; then which to take, and what does not work here."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from assay.own.explaining import ALIKE, CHANCE
    from assay.show import console

    out, looked = console(), compared.looked
    right = "" if looked.accuracy is None else f"; right on {100 * looked.accuracy:.1f} %"
    out.print(f"[bold]{EXPLAIN}[/]  {escape(looked.what)}", highlight=False)
    out.print(f"network: {escape(looked.model)}{right}\ndata: {escape(looked.source)}", highlight=False)
    table = Table("method", "faithful", "out", "in", "missing", "shuffled", "ms", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for one in (*compared.methods, compared.chance):
        faithful = f"{one.faithful:.3f}"
        if one.name == CHANCE:
            name, faithful = f"[dim]{one.name}[/]", f"[dim]{faithful}[/]"
        else:
            name = f"[bold]{escape(one.name)}[/]" if one.name == compared.take else escape(one.name)
            faithful = f"[green]{faithful}[/]" if one.best and one.over_chance else faithful
            faithful = faithful if one.over_chance else f"[red]{faithful}[/]"
        areas = (f"{one.deletion:.3f}", f"{one.insertion:.3f}")
        gap = "" if one.gap is None else f"{100 * one.gap:.1f} %"
        alike = "" if one.alike is None else f"{one.alike:.2f}"
        if one.alike is not None and one.alike > ALIKE:
            alike = f"[yellow]{alike}[/]"
        table.add_row(name, faithful, *areas, gap, alike, "" if one.name == CHANCE else f"{1000 * one.seconds:.1f}")
    out.print(table)
    out.print(
        f"[dim]out, in: area under the {compared.score} of {looked.target} while what matters most is taken out (small is good) "
        f"or put in (large is good), {' or '.join(compared.chance.areas)} in its place; faithful: in minus out, [/]"
        "[green]green[/][dim] where it cannot be told from the best, [/][red]red[/][dim] where it is no better than random "
        "order; missing: median part of the score that the sum lacks; shuffled: how much stays when all weights are "
        "shuffled; ms: for one example.[/]",
        highlight=False,
    )
    words = f"take [bold]{escape(compared.take)}[/]" if compared.take else "no method is better than random order here"
    out.print(f"{words} [dim](of {len(looked.examples)} examples)[/]", highlight=False)
    for name, why in compared.unfit.items():
        out.print(f"[dim]does not fit: {escape(name)}: {escape(why)}.[/]", highlight=False)
    for note in looked.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)


def print_ranking(ranking: Ranking) -> None:
    """The most and the least typical of each class, and the lists, by where they stand."""
    from rich import box
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    from assay.show import console

    out, few = console(), 3
    out.print(f"[bold]{escape(ranking.probe)}[/]  {escape(ranking.what)}\n[dim]{escape(ranking.paper)}[/]", highlight=False)
    out.print(f"network: {escape(ranking.network)}\ndata: {escape(ranking.examples.source)}", highlight=False)
    table = Table("class", "most typical", "least typical", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ranking.examples.classes[:_SHOWN]:
        ends = (ranking.typical(name, few), ranking.untypical(name, few))
        table.add_row(escape(name), *(escape(", ".join(ranking.examples.ids[place] for place in places)) for places in ends))
    out.print(table)
    more = len(ranking.examples.classes) - _SHOWN
    if more > 0:
        out.print(f"[dim]and {more} more classes[/]")
    for title, places in ranking.found.lists.items():
        out.print(f"[bold]{escape(title)}[/]", highlight=False)
        for place in places.tolist()[:_SHOWN]:
            words = ranking.examples.read[place] if ranking.examples.read else ""
            line = f"{ranking.examples.ids[place]}  labelled {ranking.label(place)}" + (f"  {words[:100]}" if words else "")
            out.print(Padding(escape(line), (0, 2)), highlight=False)
    if ranking.found.numbers:
        out.print("[bold]numbers[/]")
        for name, value in ranking.found.numbers.items():
            out.print(f"  {escape(name)}  {value:.3g}", highlight=False)
    for note in ranking.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)
