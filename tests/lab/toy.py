"""A toy paper and what tests that run assay for real need: an installation that has it, commands, waiting."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import assay

#: A paper made for these tests: quick claims that hold, fail, crash, hang, die or need data.
BIB = """
@article{dummy,
  title = {A Paper Made for Tests},
  author = {Nobody, Ann and Somebody, Bo},
  year = {2020},
  eprint = {2001.00001},
  kind = {probe},
  summary = {It measures nothing.},
  api = {from assay.papers.labels.dummy import nothing},
}
"""
PAPER = '''
"""A lesson in a sentence."""

import os
import signal
import time
from pathlib import Path

from assay.errors import AssayError
from assay.paper import Above, Higher, claim


def stay(seed: int):
    """Units stay where they are, and leave word there, as long as a test wants it: all, or those from a seed on."""
    home = Path(os.environ["ASSAY_HOME"])
    while (word := home.parent / "stay").exists():
        try:
            if seed < int(word.read_text() or 0):
                break
        except FileNotFoundError:
            break
        home.mkdir(parents=True, exist_ok=True)
        (home / "staying").touch()
        time.sleep(0.02)


def work(seconds: float, seed: int):
    import torch

    time.sleep(seconds)
    return {"x": torch.tensor(float(seed))}


@claim("A beats B.", expect=Higher("A", than="B"), unit="points")
def quick(lab):
    lab.progress(lab.seed % 2, 2, "half")
    stay(lab.seed)
    time.sleep(0.05)
    return {"A": 1.0 + 0.01 * lab.seed, "B": 0.5}


@claim("It remembers.", expect=Above("A", -1))
def remembers(lab):
    stay(lab.seed)
    return {"A": float(lab.remember(work, seconds=0.2, seed=lab.seed)["x"])}


@claim("All seeds together.", expect=Above("A", -1), block=3)
def together(lab):
    assert len(lab.seeds) in (1, 2, 3)
    return {seed: {"A": float(seed)} for seed in lab.seeds}


@claim("It crashes for seed 1.", expect=Above("A", 0))
def crashes(lab):
    if lab.seed == 1:
        raise ZeroDivisionError("seed one")
    return {"A": 1.0}


@claim("It refuses.", expect=Above("A", 0))
def refuses(lab):
    raise AssayError("There is no such thing: take another.")


@claim("Its process dies.", expect=Above("A", 0))
def dies(lab):
    os.kill(os.getpid(), signal.SIGKILL)


@claim("It hangs.", expect=Above("A", 0), time_limit=1.0)
def hangs(lab):
    (Path(os.environ["ASSAY_HOME"]) / "hanging").touch()
    time.sleep(3600)


@claim("It measures no number.", expect=Above("A", 0))
def measures_nan(lab):
    return {"A": float("nan")}
'''


def site(folder: Path) -> Path:
    """A folder for PYTHONPATH in which assay has the paper above beside its own (a copy of the package's tree, by links)."""
    source = Path(assay.__file__).parent
    package = folder / "assay"
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = package / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (package / "papers" / "labels" / "dummy.py").write_text(PAPER)
    bib = package / "papers" / "references.bib"
    text = bib.read_text()
    bib.unlink()
    bib.write_text(text + BIB)
    return folder


def assay_command(environment: dict[str, str], *words: str, check: int | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "assay", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        check=False,
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    return done


def wait_for(path: Path, seconds: float = 240) -> None:
    """Until the file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
