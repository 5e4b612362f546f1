"""The commands. Thin: each asks another module and prints what it says.

Nothing heavy is imported here: torch only comes in when something is run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.atlas.commands import atlas_app
from assay.errors import AssayError
from assay.fuzz import fuzz
from assay.own.commands import export_model, label, predict, relabel, suspects, try_methods
from assay.own.looking import probe_model, suggest_methods

if TYPE_CHECKING:
    from assay.lab.comparing import Table as Comparison
    from assay.lab.results import Result

app = typer.Typer(
    name="assay",
    help="Deep-learning papers as code that people can trust.\n\n"
    "Is it true? `assay run elr` re-runs a paper's claims on real data against a fair control and prints a verdict. "
    "`assay list` shows all papers, `assay show elr` explains one, `assay cite elr` prints its BibTeX entry.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Scale = Annotated[
    str, typer.Option(help="How large: `smoke` (does it run), `laptop` (the effect shows), `full` (as in the paper).")
]
Device = Annotated[
    str, typer.Option(help="Where to compute: `cpu`, `cuda`, `mps`; `4xcuda` trains every network on four devices at a time.")
]


def main() -> None:
    """Run the command line: exit code 0, 1 (a unit crashed) or 2 (usage or data)."""
    try:
        app()
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `assay list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"assay {installed('assay')}")
        raise typer.Exit


# ------------------------------------------------------------------------------------------------ reading


@app.command("list")
def list_papers(
    topic: Annotated[str | None, typer.Argument(help="Only this topic, e.g. `labels`.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: treatment, probe, estimator, model, dynamics or simulator.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the papers: what each is good for and what became of its claims."""
    from assay import catalogue, show

    chosen = list(catalogue.papers().values())
    for given, name in ((topic, "topic"), (kind, "kind")):
        there = sorted({getattr(paper, name) for paper in catalogue.papers().values()})
        if given is not None and given not in there:
            raise AssayError(f"There is no {name} {given!r}: choose one of {', '.join(there)}.")
        chosen = [paper for paper in chosen if given in (None, getattr(paper, name))]
    if as_json:
        _print_json([show.paper_dict(paper) for paper in chosen])
    else:
        show.print_papers(chosen)


@app.command("show")
def show_paper(
    key: Annotated[str, typer.Argument(help="A paper's key, as `assay list` prints it.")], as_json: Json = False
) -> None:
    """Explain one paper: the idea, how to import it, its claims and their last verdicts."""
    from assay import catalogue, show

    paper = catalogue.find(key)
    if as_json:
        _print_json(show.paper_dict(paper, whole=True))
    else:
        show.print_paper(paper)


@app.command()
def cite(keys: Annotated[list[str], typer.Argument(help="Keys of papers.")]) -> None:
    """Print BibTeX entries."""
    from assay import catalogue

    for key in keys:
        print(catalogue.find(key).bibtex)


# ------------------------------------------------------------------------------------------------ running


@app.command()
def run(
    what: Annotated[list[str] | None, typer.Argument(help="`KEY`, `KEY:CLAIM` or a topic; several are allowed.")] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Every claim of every paper; with a topic, its claims and the comparison of its methods."),
    ] = False,
    seeds: Annotated[int, typer.Option(help="How many seeds: 0 to N-1. Those that are done are not run again.")] = 5,
    scale: Scale = "laptop",
    workers: Annotated[int, typer.Option(help="Worker processes, one thread each; 0 means one a core.")] = 0,
    device: Device = "cpu",
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which a unit is stopped.")] = None,
    on: Annotated[
        str,
        typer.Option(
            help="Where: `here`, or a Ray cluster: `ray` starts one on this machine, `auto` joins the one that runs here, "
            "`HOST:PORT` or `ray://HOST:PORT` another."
        ),
    ] = "here",
    gpu_share: Annotated[float, typer.Option(help="On a cluster: the part of a GPU that a unit gets, e.g. 0.25.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Re-run claims on real data and print verdicts.

    A killed run loses nothing that was finished: the same command goes on from there.
    """
    from assay.lab import comparing, running

    named = what or []
    try:
        results, counts = running.run(named, everything, seeds, scale, workers, device, time_limit, as_json, on, gpu_share)
        tables = [
            _compared(name, seeds, scale, device, workers)
            for name in named
            if everything and on == "here" and name in comparing.names()
        ]
    except KeyboardInterrupt:
        print("assay: stopped; what was finished is kept, the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None
    _present(results, as_json, tables)
    if counts.get("crashed") or counts.get("timeout"):
        raise typer.Exit(1)
    if counts.get("refused"):
        raise typer.Exit(2)


app.command("try")(try_methods)
app.command("predict")(predict)
app.command("export-model")(export_model)
app.command("suggest")(suggest_methods)
app.command("probe")(probe_model)
app.command("suspects")(suspects)
app.command("relabel")(relabel)
app.command("label")(label)
app.command("fuzz")(fuzz)


@app.command()
def verdicts(
    what: Annotated[list[str] | None, typer.Argument(help="Keys or topics; nothing means all.")] = None,
    as_json: Json = False,
) -> None:
    """Show the recorded verdicts, corrected for the number of claims, and which evidence is stale."""
    from assay import catalogue, show

    chosen = {paper.key: paper for want in what or catalogue.papers() for paper in catalogue.named(want)}
    rows = show.verdict_rows(chosen.values())
    if as_json:
        _print_json(rows)
    else:
        show.print_verdicts(rows)


@app.command()
def compare(
    name: Annotated[str | None, typer.Argument(help="Of a comparison; without it they are listed.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds: 0 to N-1. Trainings that are done are not done again.")] = 5,
    scale: Scale = "laptop",
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Worker processes, one thread each; 0 means one a core.")] = 0,
    row: Annotated[list[str] | None, typer.Option(help="Only rows with this in their name; may be given several times.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the table into evidence/comparisons.")] = False,
    recorded: Annotated[bool, typer.Option("--recorded", help="Show what is recorded; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run methods side by side on several tasks: who wins where, and at what price?

    `assay compare label_noise --recorded` shows which method to take against wrong labels. A killed run loses nothing: the
    same command goes on from there.
    """
    from assay.lab import comparing
    from assay.show import print_comparison, print_comparisons

    if name is None:
        found = comparing.names()
        _print_json(found) if as_json else print_comparisons(found)
        return
    if recorded:
        table = comparing.recorded(name)
        if table is None:
            raise AssayError(f"Nothing is recorded of {name}: run it with `assay compare {name} --record`.")
    else:
        if record and row:
            raise AssayError("A table is recorded whole: leave --row out, or --record.")
        table = _compared(name, seeds, scale, device, workers, row or ())
    if as_json:
        _print_json(table.plain())
    else:
        print_comparison(table)
    if record and not recorded:
        print(f"recorded {comparing.record(table)}", file=sys.stderr)


def _compared(name: str, seeds: int, scale: str, device: str, workers: int, rows: Sequence[str] = ()) -> Comparison:
    from assay.lab import comparing

    with comparing.shown() as tell:
        return comparing.run(name, seeds, scale, device, workers or os.cpu_count() or 1, rows, tell)


@app.command()
def digest(
    since: Annotated[str | None, typer.Option(help="A date, e.g. `2026-01-31`; without it, the last seven days.")] = None,
    as_html: Annotated[bool, typer.Option("--html", help="Print a page of HTML, for a mail.")] = False,
    as_json: Json = False,
) -> None:
    """Tell the news: papers added, verdicts new or changed, evidence gone stale. Piped, it is Markdown.

    `assay digest | mail -s assay you@example.org` in a crontab makes a weekly letter of it.
    """
    from datetime import UTC, datetime, timedelta

    from assay import catalogue
    from assay import digest as news
    from assay.show import console

    first = (datetime.now(UTC) - timedelta(days=7)).date().isoformat() if since is None else news.day(since)
    found = news.news(catalogue.papers().values())
    text = news.markdown(found, first)
    if as_json:
        _print_json([news.as_dict(one) for one in found if one.when >= first])
    elif as_html:
        print(news.html(text))
    elif console().is_terminal:
        from rich.markdown import Markdown

        console().print(Markdown(text))
    else:
        print(text)


@app.command()
def cost(
    what: Annotated[list[str] | None, typer.Argument(help="`KEY`, `KEY:CLAIM` or a topic; several are allowed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every claim of every paper.")] = False,
    scale: Scale = "full",
    seeds: Annotated[int, typer.Option(help="Seeds that would be run.")] = 5,
    gpu: Annotated[str, typer.Option(help="Whose hours: `a100` or `h100`.")] = "a100",
    utilisation: Annotated[float, typer.Option(help="The fraction of its peak that is achieved.")] = 0.35,
    budget: Annotated[float, typer.Option(help="Seconds for which work besides the trainings is tried.")] = 5.0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/scale.md.")] = False,
    as_json: Json = False,
) -> None:
    """Count what claims cost at a scale, without training anything.

    Every recipe's network is built and the floating-point operations of one step are counted; docs/scale.md says how the rest
    is found and what the columns are.
    """
    from assay.lab.cost import count
    from assay.show import costs_markdown, print_costs

    found = count(what or [], everything, scale, seeds, gpu, utilisation, budget)
    if as_json:
        _print_json(found)
    elif markdown:
        print(costs_markdown(found))
    else:
        print_costs(found)


@app.command()
def record(
    what: Annotated[list[str] | None, typer.Argument(help="`KEY`, `KEY:CLAIM` or a topic.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that the ledger has.")] = False,
    scale: Scale = "laptop",
    device: Device = "cpu",
) -> None:
    """Write verdicts from the ledger into the repository, as `evidence/KEY.json`."""
    from assay.lab import results as ledger_results
    from assay.lab import running

    results = running.results(what or [], everything, scale, device)
    if not results:
        raise AssayError(f"The ledger has nothing of that at scale {scale} for the present code: `assay run` it first.")
    for path in ledger_results.record(results):
        print(f"recorded {path}")


@app.command()
def export(
    out: Annotated[Path | None, typer.Argument(help="A .csv or .parquet file.")] = None,
    what: Annotated[list[str] | None, typer.Option(help="`KEY`, `KEY:CLAIM` or a topic; may be repeated.")] = None,
    long: Annotated[
        bool, typer.Option("--long", help="A row for each number, curves among them, instead of one for each unit and arm.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Also what failed, and what was measured with other code than that of now.")
    ] = False,
    to: Annotated[str | None, typer.Option(help="`mlflow`: runs of a tracking server instead of a file.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="Of the MLflow server; without it MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Write what the ledger has as a table, or into an MLflow tracking server.

    A row holds the values of one arm for one seed, its price, machine, versions, code and date, and the verdict of its claim:
    `assay export results.csv --what elr`. Exporting to MLflow twice adds nothing: `assay export --to mlflow`.
    For a trained network see `assay export-model`.
    """
    from assay.lab import export as exporting

    if to not in (None, "mlflow"):
        raise AssayError(f"--to {to} is not known: it takes mlflow; a table is named instead, as in `assay export results.csv`.")
    if (out is None) == (to is None):
        raise AssayError("Say where to, once: `assay export results.csv`, `results.parquet`, or `assay export --to mlflow`.")
    if out is not None:
        exporting.require_kind(out)
    found = exporting.units(what or [], history)
    if not found:
        raise AssayError("The ledger has nothing of that for the present code: `assay run` it first, or ask for --history.")
    if out is not None:
        frame = exporting.long_table(found) if long else exporting.table(found)
        exporting.write(frame, out)
        print(f"wrote {len(frame)} rows of {len(found)} units to {out}")
        return
    from assay.lab import tracking
    from assay.show import console

    with console().status("exporting") as status:
        added, there = tracking.send(found, tracking_uri, lambda done, of: status.update(f"exporting: {done} of {of}"))
    print(f"added {added} runs, {there} were there")


# ------------------------------------------------------------------------------------------------ housekeeping

data_app = typer.Typer(help="Data sets: which there are, and fetching them.", no_args_is_help=False)
app.add_typer(data_app, name="data")


@data_app.callback(invoke_without_command=True)
def data(context: typer.Context, as_json: Json = False) -> None:
    """List the data sets with size, licence and whether they are here. `assay data fetch NAME` brings one."""
    if context.invoked_subcommand is None:
        from assay import show
        from assay.data import available

        if as_json:
            _print_json([show.data_dict(row) for row in available()])
        else:
            show.print_data(available())


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="Names of data sets.")]) -> None:
    """Bring data sets into the cache, checked against their hashes."""
    from assay.data import fetch
    from assay.show import console

    for name in names:
        with console().status(f"fetching {name}"):
            fetch(name)
        print(f"{name} is here")


@data_app.command("save")
def data_save(
    name: Annotated[str, typer.Argument(help="Name of a data set.")],
    to: Annotated[Path, typer.Argument(help="Where to: a folder for images, else a file.")],
    limit: Annotated[int | None, typer.Option(help="At most so many examples of each part.")] = None,
    wrong_labels: Annotated[
        float, typer.Option(help="Share of the training labels to make wrong, to see what finds them.")
    ] = 0.0,
) -> None:
    """Write a data set the way people keep their own (image folder, CSV, .npz), to try things on and to see the layout.

    The test examples go to a second place, called -new: data that nobody has trained on, for `assay predict`.
    """
    from assay.data import load
    from assay.data.saving import save_as_own

    data = load(name)
    if wrong_labels:
        data = data.flip_labels(wrong_labels, seed=0)
    for place, count in save_as_own(data, to, limit).items():
        print(f"{place}: {count} examples")


app.add_typer(atlas_app, name="atlas")

cache_app = typer.Typer(help="The cache of trainings: what is kept, and removing it.", no_args_is_help=False)
app.add_typer(cache_app, name="cache")


@cache_app.callback(invoke_without_command=True)
def cache(context: typer.Context, as_json: Json = False) -> None:
    """Show what is kept: trainings and other work, by content."""
    if context.invoked_subcommand is None:
        from assay import show
        from assay.lab import cache as kept

        entries = kept.entries()
        if as_json:
            _print_json([entry.as_dict() for entry in entries])
        else:
            show.print_cache(entries)


@cache_app.command("prune")
def cache_prune(
    older: Annotated[float | None, typer.Option(help="Only what was not used for this many days.")] = None,
    to: Annotated[str | None, typer.Option(help="Oldest first, until the cache has this size, e.g. `2GB`.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove trainings from the cache; they are made again when they are needed. The ledger is not touched."""
    from assay.lab import cache as kept

    doomed = kept.choose(older, to)
    size = sum(entry.bytes for entry in doomed)
    if not doomed:
        print("nothing to remove")
        return
    if not yes and not typer.confirm(f"Remove {len(doomed)} entries, {size / 1e6:.1f} MB?"):
        raise typer.Exit
    kept.remove(doomed)
    print(f"removed {len(doomed)} entries, {size / 1e6:.1f} MB")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what works on this machine and what does not: versions, devices, mirror, ledger, cache."""
    from assay import show
    from assay.lab import doctor as ward

    findings = ward.examine()
    if as_json:
        _print_json(findings)
    else:
        show.print_findings(findings)
    if any(finding["state"] == "broken" for finding in findings):
        raise typer.Exit(2)


def _present(results: list[Result], as_json: bool, tables: Sequence[Comparison] = ()) -> None:
    from assay import show
    from assay.lab.results import as_dict

    if as_json:
        claims = [{"paper": found.paper.key, "claim": found.claim.name, **as_dict(found)} for found in results]
        _print_json([*claims, *({"comparison": table.name, **table.plain()} for table in tables)])
    else:
        show.print_results(results)
        for table in tables:
            show.print_comparison(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
