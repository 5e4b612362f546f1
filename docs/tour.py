"""Run every command of docs/tour.md for real and put what it printed below it.

    python docs/tour.py            # everything in a fresh folder, with an ASSAY_HOME of its own

A command stands behind "$ " in a block that is marked ``console``; what follows it up to the next command is its output.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOUR = Path(__file__).with_name("tour.md")
#: How bad input is answered is part of the tour.
REFUSED = (
    "assay try encouraging_loss --on tumours.csv --target diagnosis",
    "assay try encouraging_loss --on tumour.csv --target target",
)
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def answered(block: str, folder: Path, environment: dict[str, str]) -> str:
    """The block with what its commands print now."""
    lines = []
    for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        print(f"$ {command}", file=sys.stderr, flush=True)
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != (2 if command in REFUSED else 0):
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}")
        shown = done.stdout.replace(str(folder.resolve()), "~").replace(str(folder), "~")
        lines += [f"$ {command}", *(line.rstrip() for line in shown.strip("\n").splitlines())]
    return "```console\n" + "\n".join(lines) + "\n```"


def main() -> None:
    """Run the tour."""
    with tempfile.TemporaryDirectory(prefix="tour-") as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "ASSAY_HOME": str(folder / "home"),
            "COLUMNS": "110",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        text = TOUR.read_text(encoding="utf-8")
        TOUR.write_text(BLOCK.sub(lambda found: answered(found[1], folder, environment), text), encoding="utf-8")


if __name__ == "__main__":
    main()
