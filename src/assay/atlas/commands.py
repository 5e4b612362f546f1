"""``assay atlas``: build the site, and look at it on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

atlas_app = typer.Typer(help="The atlas: a static site of all papers, claims and verdicts.", no_args_is_help=True)

FOLDER = Path("build/atlas")


@atlas_app.command("build")
def build_site(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the site.")] = FOLDER,
    address: Annotated[
        str, typer.Option(help="Where the site will be, e.g. `https://example.org/atlas/`, for the links of its feed.")
    ] = "",
    ledger: Annotated[
        bool, typer.Option(help="Show also what this machine has measured and nobody has recorded, and say that it is so.")
    ] = True,
) -> None:
    """Make the site out of catalogue, evidence and ledger; what did not change is left as it is.

    The folder can be put on any web server as it is: no page asks for anything outside of it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from assay import catalogue
    from assay.atlas.build import Atlas, build, check_address
    from assay.atlas.unrecorded import unrecorded

    check_address(address)
    console = Console(stderr=True)
    columns = (TextColumn("pages"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("[dim]{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading evidence", total=None)
        papers = list(catalogue.papers().values())
        atlas = Atlas(papers, unrecorded(papers) if ledger else {}, address)

        def tell(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, description=name)

        site = build(output, atlas, tell)
    print(f"{len(site.files)} files, {site.changed} of them new or changed: {site.folder / 'index.html'}")


@atlas_app.command("serve")
def serve_site(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 8000,
) -> None:
    """Show the atlas to this machine only, until Ctrl-C; its page "live" follows the runs of this machine."""
    from assay.atlas.build import check_installed
    from assay.atlas.serve import server

    check_installed()
    with server(port) as running:
        try:
            print(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C stops)", flush=True)
            running.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
