"""Commands about people's own data, as plain functions; nothing heavy is imported before one is run."""

from __future__ import annotations

import json
import re
import statistics
from typing import TYPE_CHECKING, Annotated

import typer

from assay.errors import AssayError

if TYPE_CHECKING:
    from assay.own.trying import Trial


def try_methods(
    methods: Annotated[list[str], typer.Argument(help="Keys of papers; `a+b` puts both on at once.")],
    on: Annotated[str, typer.Option(help="Your data: image folder, .csv, .tsv, .parquet, .npz, .ts; or a known data set.")],
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    text: Annotated[str | None, typer.Option(help="Column that holds texts.")] = None,
    group: Annotated[str | None, typer.Option(help="Column whose equal values stay in one split.")] = None,
    time: Annotated[str | None, typer.Option(help="Column to split by: the latest rows are the test.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of every arm.")] = 5,
    budget: Annotated[str | None, typer.Option(help="Time after which nothing more is trained, e.g. 90s, 10m, 2h.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")] = False,
) -> None:
    """Try methods on your own data: the same network with and without them, and what one would use without networks.

    Every arm has the same splits and seeds; the verdict is about the difference to the baseline.
    """
    seconds = None if budget is None else duration(budget)

    from rich.console import Console
    from rich.markup import escape

    from assay.own.trying import try_

    with Console(stderr=True, quiet=as_json).status("reading") as status:
        trial = try_(
            methods,
            on=on,
            target=target,
            text=text,
            group=group,
            time=time,
            seeds=seeds,
            budget=seconds,
            device=device,
            report=lambda done, total, note: status.update(f"{done:.0f} of {total:.0f}: {escape(note)}"),
        )
    if as_json:
        print(json.dumps(trial.as_dict(), indent=2, ensure_ascii=False))
    else:
        print_trial(trial)


def duration(text: str) -> float:
    """``"90s"``, ``"10m"``, ``"2h"`` or ``"1h30m"`` in seconds; a bare number is in seconds.

    Raises:
        AssayError: it is none of these.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or match is None:
        raise AssayError(f"{text!r} is no time: write it like 90s, 10m or 1h30m.")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def print_trial(trial: Trial) -> None:
    """A table of the arms with verdicts, and what a reader should know."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from assay.own.trying import BASELINE
    from assay.show import COLOURS, console

    out = console()
    out.print(escape(trial.data), highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("arm", trial.metric, "lowest", "highest", "seeds", "a training"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    base = trial.price(BASELINE)
    for arm, scores in trial.arms.items():
        numbers = [f"{f(scores.values()):.4f}" if scores else "-" for f in (statistics.fmean, min, max)]
        seconds = trial.price(arm)
        price = "" if seconds is None else f"{seconds:.3g} s"
        if seconds is not None and base and arm in trial.verdicts:
            price += f" (x{seconds / base:.2f})"
        table.add_row(escape(arm), *numbers, str(len(scores)), price)
    out.print(table)
    q = trial.q()
    for method, verdict in trial.verdicts.items():
        (test,) = verdict.tests
        line = f"[{COLOURS[verdict.verdict]}]{verdict.verdict}[/]  {escape(test.expectation)}"
        if verdict.seeds > 1:
            interval = f"[{test.low:+.4f}, {test.high:+.4f}]"
            line += escape(f": {test.effect:+.4f} {interval}, p = {test.p:.2g}")
            line += f", q = {q[method]:.2g}" if len(q) > 1 else ""
        line += f" [dim]({escape(test.note)})[/]" if test.note else ""
        if verdict.more_seeds:
            line += f"; about {verdict.more_seeds} more seeds would decide"
        out.print(line, highlight=False)
    for method, why in trial.refused.items():
        out.print(f"[yellow]does not fit[/] {escape(method)}: {escape(why)}.", highlight=False)
    for note in trial.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)
