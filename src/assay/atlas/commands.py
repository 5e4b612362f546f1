"""``assay atlas``: build the site, and look at it on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

atlas_app = typer.Typer(help="The atlas: a static site of all papers, claims and verdicts.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the site.")]
FOLDER = Path("build/atlas")


@atlas_app.command("build")
def build_site(output: Output = FOLDER) -> None:
    """Make the site out of the catalogue and the recorded evidence; what did not change is left as it is."""
    from assay.atlas.build import build

    site = build(output)
    print(f"{len(site.files)} files, {site.changed} of them new or changed: {site.folder / 'index.html'}")


@atlas_app.command("serve")
def serve_site(
    output: Output = FOLDER,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 8000,
) -> None:
    """Build the site and serve it to this machine only, until Ctrl-C."""
    from assay.atlas.build import build
    from assay.atlas.serve import server

    build(output)
    with server(output, port) as running:
        print(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C stops)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()
