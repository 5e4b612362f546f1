"""What a person sees at the terminal of a trial and of predictions."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from assay.show import COLOURS, console

if TYPE_CHECKING:
    from assay.own.predicting import Predicted
    from assay.own.trying import Trial


def print_trial(trial: Trial, kept: tuple[str, int] | None = None, saved: Sequence[str] = ()) -> None:
    """A table of the arms with verdicts, and what a reader should know.

    Args:
        trial: what was found.
        kept: arm and seed of the network that was saved.
        saved: the folder of the run, and its report.
    """
    from assay.own.trying import BASELINE

    out = console()
    if not out.is_terminal:  # there it was printed before the trainings, beside the bar
        out.print(escape(trial.data), highlight=False, soft_wrap=True)
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
    for line in verdict_lines(trial):
        out.print(line, highlight=False)
    for method, why in trial.refused.items():
        out.print(f"[yellow]left out[/] {escape(method)}: {escape(why)}.", highlight=False)
    for note in trial.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)
    if saved and kept is not None:
        why = ", best on validation" if kept == trial.best() and trial.valid else ""
        said = f"saved {kept[0]}, seed {kept[1]}{why}: {saved[0]}"
        out.print(escape(said), highlight=False, soft_wrap=True)
        out.print(f"  [dim]assay predict {escape(shlex.quote(saved[0]))} --on NEW[/]", highlight=False, soft_wrap=True)
    if len(saved) > 1:
        out.print(escape(f"report: {saved[1]}"), highlight=False, soft_wrap=True)


def verdict_lines(trial: Trial) -> list[str]:
    """A line with markup for each method: verdict, difference, interval, p, and q where there are several."""
    q, lines = trial.q(), []
    for method, verdict in trial.verdicts.items():
        (test,) = verdict.tests
        line = f"[{COLOURS[verdict.verdict]}]{verdict.verdict}[/]  {escape(test.expectation)}"
        if verdict.seeds > 1:
            interval = f"[{test.low:+.4f}, {test.high:+.4f}]"
            line += escape(f": {test.effect:+.4f} {interval}, p = {test.p:.2g}")
            line += f", q = {q[method]:.2g}" if len(q) > 1 else ""
        if verdict.verdict == "holds" and q[method] > 0.05:
            line += f" [yellow](of {len(q)} methods, one may well do so by chance)[/]"
        line += f" [dim]({escape(test.note)})[/]" if test.note else ""
        if verdict.more_seeds:
            line += f"; about {verdict.more_seeds} more seed{'s' if verdict.more_seeds > 1 else ''} would decide"
        lines.append(line)
    return lines


def print_predicted(found: Predicted) -> None:
    """The first rows, how many there are, and the score where the truth was there."""
    out = console()
    if found.first and found.out is None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        names = list(found.first[0])[:8]
        for name in names:
            table.add_column(escape(name), justify="left" if name in ("id", "prediction") else "right")
        for row in found.first:
            table.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else escape(str(row[name])) for name in names))
        out.print(table)
    where = f", written to {found.out}" if found.out else "; --out predictions.csv writes them all"
    out.print(f"{found.count} predicted{escape(where)}", highlight=False)
    if found.score is not None:
        out.print(f"{found.metric} {found.score:.4f} on {found.scored} examples whose target is there", highlight=False)
    for note in found.notes:
        out.print(f"[dim]note: {escape(note)}.[/]", highlight=False)
