"""``assay fuzz``; nothing heavy is imported before it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.errors import AssayError

if TYPE_CHECKING:
    from assay.papers.robust.neuri.fuzzing import Report

_NAMES = "eager, fx, trace, export, decomposed, compile, onnx"


def fuzz(
    seconds: Annotated[float, typer.Option(help="How long to look; learning the rules comes before, once a torch version.")] = 60,
    backends: Annotated[str, typer.Option(help=f"Ways to run a model, out of {_NAMES}; `all` takes what is there.")] = "all",
    calls: Annotated[int, typer.Option(help="Calls of a model.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the models.")] = 0,
    dtype: Annotated[str, typer.Option(help="Number format: float32, bfloat16 or float16.")] = "float32",
    timeout: Annotated[float, typer.Option(help="Seconds that one way may take for one model.")] = 60,
    memory: Annotated[float, typer.Option(help="Gigabytes of the process that runs models.")] = 6,
    out: Annotated[Path, typer.Option(help="Folder for a file that shows each difference, without assay.")] = Path("fuzzed"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")] = False,
) -> None:
    """Look for bugs in the PyTorch that is installed: small random models that run differently compiled than eagerly.

    What every operator demands is learnt by calling it. Results are compared with double precision, and differ if no
    rounding of the number format explains how much. Exit code 1: differences were found; each has a file that shows it.
    """
    if seconds <= 0 or calls < 1 or timeout <= 0 or memory <= 0:
        raise AssayError("--seconds, --calls, --timeout and --memory must be positive.")

    from rich.console import Console
    from rich.markup import escape

    from assay.papers.robust.neuri.backends import BACKENDS
    from assay.papers.robust.neuri.fuzzing import fuzz as search

    names = tuple(BACKENDS) if backends == "all" else tuple(name.strip() for name in backends.split(","))
    with Console(stderr=True, quiet=as_json).status("starting") as status:

        def tell(done: float, total: float, note: str) -> None:
            share = f"{100 * done / total:.0f} %: " if total else ""
            status.update(f"{share}{escape(note)}")

        report = search(seconds, names, calls, seed, dtype, timeout, memory, out, tell)
    if as_json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_report(report)
    if report.differences:
        raise typer.Exit(1)


def print_report(report: Report) -> None:
    """Tables for people."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from assay.papers.robust.neuri.backends import WHAT
    from assay.papers.robust.neuri.operators import operators
    from assay.show import console

    console_ = console()
    every = len({one.name for one in operators().values()})
    console_.print(", ".join(f"{name} {version}" for name, version in report.versions.items()), highlight=False)
    learnt = "known from before" if not report.learning else f"learnt in {report.learning:.0f} s from {report.calls:,} calls"
    console_.print(
        f"rules of {report.operators} ways to call an operator, {learnt}; {100 * report.trusted:.0f} % are trusted\n"
        f"valid models: {100 * report.valid_with_rules:.0f} % with rules, {100 * report.valid_without:.0f} % without\n"
        f"{report.models} {'model' if report.models == 1 else 'models'} in {report.seconds:.0f} s "
        f"({report.models / max(report.seconds, 1e-9):.1f} a second), "
        f"{report.unstable} left out because rounding makes their results meaningless\n"
        f"{len(report.covered)} of {every} operators, {len(report.edges)} pairs of them",
        highlight=False,
    )
    table = Table("way to run", "models", "the same", "wrong", "raises", "dies or hangs", "error / bound", box=box.SIMPLE_HEAD)
    for name, one in report.backends.items():
        kinds = one.kinds
        table.add_row(
            f"[bold]{name}[/]",
            str(one.models),
            str(kinds["same"]),
            str(kinds["wrong"]),
            str(kinds["refuses"]),
            str(kinds["dies"] + kinds["hangs"]),
            f"{one.worst:.2f}" if one.models else "",
        )
    console_.print(table)
    console_.print(", ".join(f"{name}: {WHAT[name]}" for name in report.backends) + ".", style="dim", highlight=False)
    for name, why in report.missing.items():
        console_.print(f"[dim]{name} is not there: {escape(why)}[/]", highlight=False)
    if not report.differences:
        console_.print("[green]no differences beyond rounding[/]")
    for found in report.differences:
        console_.print(
            f"\n[red]{found.backend} {found.kind}[/] {escape(found.message)} "
            f"[dim](seen {found.seen}x; {found.calls} calls made {len(found.model.nodes)})[/]\n{escape(found.model.source())}",
            highlight=False,
        )
        if found.file:
            console_.print(f"[bold]python {escape(found.file)}[/]", highlight=False)
