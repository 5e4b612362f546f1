"""What a person sees at the terminal of a trial and of predictions."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from assay.show import COLOURS, console

if TYPE_CHECKING:
    from pathlib import Path

    from assay.own.answers import Taken
    from assay.own.labelling import Labelled
    from assay.own.predicting import Predicted
    from assay.own.relabelling import Mended, Queue
    from assay.own.suspecting import Suspects
    from assay.own.trying import Trial


#: Suspects that a terminal shows; the file has all.
_SUSPECTS = 15


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
    other = [f"test {trial.other}"] if trial.beside else []
    for name in ("arm", trial.metric, "lowest", "highest", *other, "seeds", "a training"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    base = trial.price(BASELINE)
    for arm, scores in trial.arms.items():
        numbers = [f"{f(scores.values()):.4f}" if scores else "-" for f in (statistics.fmean, min, max)]
        numbers += [f"{statistics.fmean(trial.beside[arm].values()):.4f}" if arm in trial.beside else "-" for _ in other]
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


def print_suspects(found: Suspects, out: Path | None = None) -> None:
    """How many labels look wrong, the most suspicious ones, and how far down the list it is worth looking.

    Args:
        found: what was found.
        out: the file that all were written to.
    """
    to = console()
    to.print(escape(found.data), highlight=False)
    numbers = found.wrong is None
    if found.rate is not None:
        rate, low, high = (f"{100 * share:.1f} %" for share in found.rate)
        to.print(f"\nAbout [bold]{rate}[/] of the labels look wrong ({low} to {high}), to {escape(found.by)}.", highlight=False)
    else:
        to.print(f"\nTo {escape(found.by)}.", highlight=False)
    rows = found.rows(min(_SUSPECTS, found.contradicted))
    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(found.called, overflow="fold")
        for name in ("given", "expected" if numbers else "rather"):
            table.add_column(name, justify="right" if numbers else "left", overflow="fold")
        for name in ("deviations",) if numbers else ("log odds", "wrong", "of all so far"):
            table.add_column(name, justify="right")
        for name, given, other, score, *shares in rows:
            cells = (f"{100 * share:.0f} %" for share in shares if share is not None)
            table.add_row(*(escape(str(cell)) for cell in (name, given, other)), f"{score:.1f}", *cells)
        to.print(table)
    share = found.expected(found.cut)
    if share is not None:
        middle, low, high = (f"{100 * one:.0f} %" for one in share)
        to.print(
            f"Look at the first [bold]{found.cut}[/]: {middle} of them ought to be wrong ({low} to {high}).",
            highlight=False,
        )
    elif numbers and found.cut:
        to.print(f"The first [bold]{found.cut}[/] are far off: look for typing errors and mixed units.", highlight=False)
    else:
        to.print("Too few labels look wrong to tell them from the model's own mistakes.", highlight=False)
    for note in found.notes:
        to.print(f"[dim]note: {escape(note)}.[/]", highlight=False)
    where = f"written to {out}" if out is not None else "--out suspects.csv writes them"
    if found.contradicted:
        what = "far off" if numbers else "contradicted"
        to.print(f"{found.contradicted} of {len(found.ids)} are {what}; {escape(where)}.", highlight=False, soft_wrap=True)


def print_queue(queue: Queue) -> None:
    """What people are to be asked, where, and how the answers come back."""
    to = console()
    found = queue.as_dict()
    to.print(escape(found["data"]), highlight=False)
    before = f"; {queue.settled} are settled already" if queue.settled else ""
    before += f", {queue.open} open, since people differ" if queue.open else ""
    if not queue.items:
        to.print(
            f"There is nothing to ask: too few labels look wrong{before}; --most 50 asks about the most suspicious all the same.",
            highlight=False,
        )
        return
    to.print(f"\n[bold]{len(queue.items)}[/] labels to look at{before}.", highlight=False)
    share = found["expected_at_cut"]
    if share is not None:
        middle, low, high = (f"{100 * share[end]:.0f} %" for end in ("share", "low", "high"))
        to.print(f"Of the {found['cut']} most suspicious {middle} ought to be wrong ({low} to {high}).", highlight=False)
    for line in (f"page:  {found['page']}", f"table: {found['queue']} (write into the column answer)"):
        to.print(escape(line), highlight=False, soft_wrap=True)
    to.print("[dim]then the same command with --answers FILE, once for each file that came back[/]", highlight=False)
    for note in found["notes"]:
        to.print(f"[dim]note: {escape(note)}.[/]", highlight=False)


def print_mended(mended: Mended) -> None:
    """What became of the answers, what people differ on, and where the labels are."""
    to = console()
    _print_taken(mended.taken)
    asked = mended.kept + len(mended.changed)
    share = f" ({100 * len(mended.changed) / asked:.0f} % of those decided were wrong)" if asked else ""
    to.print(f"\n[bold]{len(mended.changed)}[/] labels changed, {mended.kept} confirmed{share}.", highlight=False)
    if mended.majority:
        to.print(escape(f"People differ on {len(mended.majority)}, most decided: {_few(mended.majority)}."), highlight=False)
    if mended.open:
        some = [f"{name} ({', '.join(f'{who}: {said}' for who, said in by.items())})" for name, by in mended.open.items()]
        to.print(
            f"[yellow]People differ on {len(mended.open)}, as many on either side[/]; these labels stay as they are and are "
            f"asked about again: {escape(_few(some))}.",
            highlight=False,
        )
    _print_lost(mended.lost)
    for note in mended.notes:
        to.print(f"[dim]note: {escape(note)}.[/]", highlight=False)
    for path in mended.written:
        to.print(escape(f"wrote {path}"), highlight=False, soft_wrap=True)


def print_labelled(found: Labelled) -> None:
    """The rounds so far, what is promised, and what comes next."""
    to = console()
    to.print(escape(found.data), highlight=False)
    _print_taken(found.taken)
    _print_lost(found.lost)
    if found.rounds:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("round", "open", "asked", "then positive", "then negative"):
            table.add_column(name, justify="right")
        for number, one in enumerate(found.rounds, start=1):
            table.add_row(str(number), *map(str, (one.open, one.asked, one.positives, one.negatives)))
        to.print(table)
    done = found.positives + found.negatives
    to.print(
        f"[bold]{done}[/] of {found.count} labelled, {found.positives} of them {escape(found.category)}, from {found.answered} "
        f"answers; the model decided {found.decided}.",
        highlight=False,
    )
    if found.decided:
        precision, _ = found.promised
        to.print(
            f"Promised: {100 * precision:.0f} % of the positives that it decided are right, and {100 * found.kept:.0f} % of all "
            "positives are not lost.",
            highlight=False,
        )
    for path in found.written:
        to.print(escape(f"wrote {path}"), highlight=False, soft_wrap=True)
    if found.ask:
        to.print(f"[bold]{found.ask}[/] questions come next: the same command with --answers FILE.", highlight=False)
    else:
        left = found.count - done
        to.print("Nothing is asked any more" + (f"; {left} are left without a label." if left else "."), highlight=False)


def _print_taken(taken: Mapping[str, Taken]) -> None:
    to = console()
    for name, one in taken.items():
        told = f"{len(one.new)} new answers" + (f", {one.repeated} known before" if one.repeated else "")
        to.print(escape(f"{name}: {told}"), highlight=False, soft_wrap=True)
        for problem in one.problems:
            to.print(f"  [red]{escape(problem)}[/]", highlight=False)


def _print_lost(lost: int) -> None:
    if lost:
        console().print(
            f"[yellow]{lost} answers are about examples that have changed since, or are gone[/]; they are kept but not applied.",
            highlight=False,
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
