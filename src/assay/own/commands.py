"""Commands about people's own data, as plain functions; nothing heavy is imported before one is run."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.errors import AssayError

if TYPE_CHECKING:
    from rich.progress import Progress

    from assay.own.trying import Report, Trial

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
ON_HELP = "Folder of images or .wav, table, .npz, .ts, saved dataset, archive; or a known data set."
Target = Annotated[str | None, typer.Option(help="Column to predict.")]
Text = Annotated[str | None, typer.Option(help="Column that holds texts.")]
Group = Annotated[str | None, typer.Option(help="Column whose equal values stay in one split.")]
Time = Annotated[str | None, typer.Option(help="Column to split by: the latest are the test; with --series, its order.")]
Series = Annotated[str | None, typer.Option(help="Column that says of which series a row is a step, --time its order.")]
Run = Annotated[str, typer.Argument(help="A folder that `assay try` saved, or its name, e.g. `photos-1`.")]
Trust = Annotated[
    list[str] | None, typer.Option(help="Module of your own whose functions may be called to make the network again.")
]


def try_methods(
    methods: Annotated[list[str] | None, typer.Argument(help="Keys of papers; `a+b` puts both on at once.")] = None,
    on: Annotated[str, typer.Option(help=ON_HELP)] = "",
    more: Annotated[
        list[str] | None, typer.Option("--with", help="The same as a key in front; may be given several times.")
    ] = None,
    target: Target = None,
    text: Text = None,
    group: Group = None,
    time: Time = None,
    series: Series = None,
    everything: Annotated[bool, typer.Option("--all", help="Every method of the catalogue that fits.")] = False,
    seeds: Annotated[int, typer.Option(help="Trainings of every arm.")] = 5,
    by: Annotated[
        str, typer.Option(help="Judge by accuracy, or balanced: its mean over the classes, in which rare ones count as much.")
    ] = "accuracy",
    budget: Annotated[str | None, typer.Option(help="Time after which nothing more is trained, e.g. 90s, 10m, 2h.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, mps.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder for best network and report; else one among your runs.")] = None,
    save: Annotated[bool, typer.Option(help="Keep the best network, its preprocessing and a report.")] = True,
    as_json: Json = False,
) -> None:
    """Try methods on your own data: the same network with and without them, and what one would use without networks.

    Every arm has the same splits and seeds; the verdict is about the difference to the baseline on the test split. The network
    with the best validation score is kept with its preprocessing: `assay predict RUN --on NEW` uses it.

    Examples: `assay try elr --on photos/`, `assay try --all --on patients.csv --target outcome --budget 10m`.
    """
    began = clock.monotonic()
    methods = [*(methods or []), *(more or [])]
    seconds = None if budget is None else duration(budget)
    if not on:
        raise AssayError(
            "Name your data with --on: a folder of images or wav files, a table, an archive; or what `assay data` lists."
        )

    from assay.own.printing import print_trial
    from assay.own.saved import require_free
    from assay.own.trying import try_

    if out is not None:
        require_free(out)  # before hours are spent

    with _stoppable(), _progress(as_json) as (progress, report):
        trial = try_(
            methods,
            on=on,
            target=target,
            text=text,
            group=group,
            time=time,
            series=series,
            seeds=seeds,
            budget=None if seconds is None else seconds - (clock.monotonic() - began),  # what was imported took its time, too
            device=device,
            report=report,
            everything=everything,
            by=by,
            say=lambda line: progress.console.print(line, highlight=False, markup=False),
        )
    given = {
        "--on": on,
        "--target": target,
        "--text": text,
        "--group": group,
        "--time": time,
        "--series": series,
        "--seeds": str(seeds),
    }
    given |= {"--by": None if by == "accuracy" else by, "--budget": budget, "--device": None if device == "cpu" else device}
    words = ["assay", "try", *methods, *(["--all"] if everything else [])]
    command = shlex.join(words + [word for name, value in given.items() if value is not None for word in (name, value)])
    kept, saved = _keep(trial, out, on, command) if save else (None, [])
    if as_json:
        print(json.dumps({**trial.as_dict(), "command": command, "saved": saved[:1]}, indent=2, ensure_ascii=False))
    else:
        print_trial(trial, kept, saved)


def predict(
    run: Run,
    on: Annotated[str, typer.Option(help="New data of the same kind; a target column is not needed.")],
    out: Annotated[Path | None, typer.Option(help="A .csv or .parquet file with a row for each example.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps.")] = "cpu",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Predict for new examples with a network that `assay try` saved.

    They are read in pieces, whatever their number. Where the truth is there too (a target column, class folders), the
    score is reported.

    Examples: `assay predict photos-1 --on new/ --out predictions.csv`, `assay predict patients-2 --on june.csv`.
    """
    from rich.console import Console

    from assay.own.predicting import predict as said
    from assay.own.printing import print_predicted
    from assay.own.saved import load_run

    loaded = load_run(run, trust or (), device)
    with Console(stderr=True, quiet=as_json).status("predicting") as status:
        found = said(loaded, on, out, lambda done: status.update(f"{done} predicted"), None if as_json and not out else 5)
    if as_json:
        print(json.dumps(vars(found), indent=2, ensure_ascii=False))
    else:
        print_predicted(found)


def export_model(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The file to write, e.g. `model.pt2`.")],
    on: Annotated[str | None, typer.Option(help="Examples to compare network and program on.")] = None,
    trust: Trust = None,
) -> None:
    """Write a saved network as a `torch.export` program: no assay needed to run it, any batch size.

    It is compared with the network before it is written; the preprocessing lies in the file as `run.json`.

    Example: `assay export-model photos-1 photos.pt2`.
    """
    from assay.own.exporting import export_model as write
    from assay.own.saved import load_run

    furthest = write(load_run(run, trust or ()), out, on)
    print(f"wrote {out}; its outputs differ from the network's by at most {furthest:.1g}")


def suspects(
    on: Annotated[str, typer.Option(help=ON_HELP)],
    target: Target = None,
    text: Text = None,
    group: Group = None,
    time: Time = None,
    series: Series = None,
    method: Annotated[
        str,
        typer.Option(
            help="Who doubts: `out-of-fold` (simple models that have not seen the example), or a paper that resists wrong "
            "labels, as `elr` or `ncr`."
        ),
    ] = "out-of-fold",
    out: Annotated[Path | None, typer.Option(help="A .csv or .parquet file for the list.")] = None,
    seed: Annotated[int, typer.Option(help="Of folds and trainings.")] = 0,
    device: Annotated[str, typer.Option(help="Where networks are trained: cpu, cuda, mps.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Which of your examples carry a wrong label? The most suspicious first, with how many of them ought to be wrong.

    `assay relabel` makes a page of them on which labels are mended.

    Examples: `assay suspects --on photos/ --out suspects.csv`, `assay suspects --on reviews.csv --target stars --method elr`.
    """
    from assay.own.printing import print_suspects
    from assay.own.suspecting import suspects as find
    from assay.own.writing import require_table

    if out is not None:
        require_table(out)
    with _stoppable(), _progress(as_json) as (_, report):
        found = find(on, target, text, group, time, series, method, seed, device, report)
    if out is not None:
        found.write(out)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_suspects(found, out)


def relabel(
    on: Annotated[str, typer.Option(help=ON_HELP)],
    target: Target = None,
    text: Text = None,
    group: Group = None,
    time: Time = None,
    series: Series = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="Answers that came back, CSV or JSON; repeatable. Without it a queue is made.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of queue, answers and labels; else NAME-relabel here.")] = None,
    most: Annotated[int | None, typer.Option(help="Examples to ask about; else as far down as it is best to look.")] = None,
    method: Annotated[str, typer.Option(help="Who doubts, as for `assay suspects`.")] = "out-of-fold",
    seed: Annotated[int, typer.Option(help="Of folds and trainings.")] = 0,
    device: Annotated[str, typer.Option(help="Where networks are trained: cpu, cuda, mps.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Mend labels: a page of those that a model contradicts, for people to answer, and the labels that the answers come to.

    `assay relabel --on photos/` writes photos-relabel/review.html (works without a server, driven by keys) and queue.csv.
    `assay relabel --on photos/ --answers anna.json --answers ben.csv` keeps the answers and writes labels.csv, and of a table a
    corrected copy; your data stay as they are. Asked again without answers, it goes on from the mended labels.
    """
    from assay.own.named import Named
    from assay.own.printing import print_mended, print_queue
    from assay.own.relabelling import make_queue, take_answers

    named = Named(target, text, group, time, series)
    if answers:
        mended = take_answers(on, answers, named, out)
        if as_json:
            print(json.dumps(mended.as_dict(), indent=2, ensure_ascii=False))
        else:
            print_mended(mended)
        if any(taken.problems for taken in mended.taken.values()):
            raise typer.Exit(1)
        return
    with _stoppable(), _progress(as_json) as (_, report):
        queue = make_queue(on, named, out, method, most, seed, device, report)
    if as_json:
        print(json.dumps(queue.as_dict(), indent=2, ensure_ascii=False))
    else:
        print_queue(queue)


def label(
    on: Annotated[str, typer.Option(help="Folder of images or .wav in any folders, or a table, without labels.")],
    category: Annotated[str, typer.Option(help="What to look for, e.g. `bag`.")],
    answers: Annotated[list[Path] | None, typer.Option(help="Answers that came back, CSV or JSON; repeatable.")] = None,
    target: Annotated[str | None, typer.Option(help="Column that is left out, as it holds labels.")] = None,
    text: Text = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of questions, answers and labels; else NAME-label-CATEGORY here.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions of a round to learn from.")] = 200,
    test_batch: Annotated[int, typer.Option(help="Questions of a round to test on.")] = 300,
    precision: Annotated[float, typer.Option(help="Promised for the positives that the model decides.")] = 0.95,
    miss: Annotated[float, typer.Option(help="Share of the positives that a round may lose.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Label a large pool for one category with few answers: a model decides what a test shows it can be trusted with.

    Each run asks the questions of a round, on a page and in a table; give the answers back with --answers and the other options
    as they were, until nothing is asked any more. labels.csv has the labels so far.

    Example: `assay label --on pool/ --category bag`, then `assay label --on pool/ --category bag --answers anna.json`.
    """
    from assay.own.labelling import label_pool
    from assay.own.named import Named
    from assay.own.printing import print_labelled

    named = Named(target, text)
    found = label_pool(on, category, answers or (), named, out, batch, test_batch, precision, miss, seed=seed)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        print_labelled(found)
    if any(taken.problems for taken in found.taken.values()):
        raise typer.Exit(1)


def _keep(trial: Trial, out: Path | None, on: str, command: str) -> tuple[tuple[str, int] | None, list[str]]:
    """Save the best network and the report; what could not be done becomes a note. Returns which, and the paths."""
    from assay.own.report import write_report
    from assay.own.saved import REPORT, new_folder

    place = out or new_folder(re.sub(r"[^\w.-]+", "-", Path(on).stem or Path(on).resolve().name).strip("-.") or "run")
    try:
        kept = trial.save(place, command=command)
    except AssayError as error:
        trial.notes.append(str(error).rstrip("."))
        return None, []
    saved = [str(place)]
    try:
        write_report(place)
        saved.append(str(place / REPORT))
    except AssayError as error:
        trial.notes.append(str(error).rstrip("."))
    return kept, saved


@contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("assay: stopped; what was trained is kept, the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Progress, Report]]:
    """A bar with the time that is left; where there is no terminal, a line for each training."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    console = Console(stderr=True, quiet=quiet)
    progress = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=console, transient=True)
    told = 0
    with progress:
        bar = progress.add_task("reading", total=None)

        def report(done: float, total: float, note: str) -> None:
            nonlocal told
            progress.update(bar, completed=done, total=total, description=note.replace("[", "\\["))
            if not console.is_terminal and int(done) > told:
                told = int(done)
                console.print(f"{told} of {total:.0f} done; now {note}", highlight=False, markup=False)

        yield progress, report


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
