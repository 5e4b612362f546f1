"""Builds the site: a folder of HTML files, one style sheet and one small script, the same bytes from the same inputs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import catalogue
from assay.errors import AssayError
from assay.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
#: Lists what a build has written; by it a later build knows the folder for its own and removes pages that are no more.
LIST = "atlas.json"
_NEEDED = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2", "pygments": "pygments"}


@dataclass(frozen=True)
class Site:
    """What a build has made.

    Attributes:
        folder: where it is.
        files: its files, relative to the folder.
        changed: how many of them are new or other than before.
    """

    folder: Path
    files: tuple[str, ...]
    changed: int


def build(output: Path, papers: Iterable[catalogue.Paper] | None = None) -> Site:
    """Make the site out of the catalogue and the recorded evidence.

    Args:
        output: the folder; it is made where it does not exist. Files whose content stays the same are not touched.
        papers: those to show; ``None`` shows the whole catalogue.

    Raises:
        AssayError: the extra ``web`` is not installed, or the folder holds something else.
    """
    _check_installed()
    _check_folder(output)
    from assay.atlas import pages

    shown = [pages.page(paper) for paper in (catalogue.papers().values() if papers is None else papers)]
    render = _renderer(shown)
    files = {name: (HERE / "static" / name).read_text(encoding="utf-8") for name in ("atlas.css", "atlas.js")}
    files["index.html"] = render("home.html", root="", here="papers")
    files["verdicts.html"] = render("verdicts.html", root="", here="verdicts")
    files["timeline.html"] = render("timeline.html", root="", here="timeline")
    files["price.html"] = render("price.html", root="", here="price")
    for page in shown:
        files[page.href] = render("paper.html", root="../", here="", page=page)
    return _write(output, files)


def _check_installed() -> None:
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise AssayError(f'The atlas needs {", ".join(missing)}: install it with `pip install "assay[web]"`.')


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise AssayError(f"{output} is a file: name a folder with --output.")
    if output.is_dir() and any(output.iterdir()) and not (output / LIST).is_file():
        raise AssayError(f"{output} holds other things than an atlas: name an empty or a new folder with --output.")


def _renderer(shown: list[Any]) -> Any:
    environment = _environment()
    from assay.atlas import pages

    everything = {
        "pages": shown,
        "topics": pages.topics(shown),
        "counts": pages.count(shown),
        "by_year": pages.by_year,
        "timeline": pages.timeline,
        "priced": pages.priced,
        "price_figure": pages.price_figure,
        "filled": pages.filled,
    }
    return lambda template, **more: environment.get_template(template).render(everything | more)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawn"] = Markup  # for figures alone: their words were escaped when they were drawn
    return environment


def _write(output: Path, files: dict[str, str]) -> Site:
    """Write what differs, and remove what an earlier build wrote and this one does not."""
    before = _listed(output)
    files[LIST] = json.dumps({"files": sorted(files)}, indent=1) + "\n"
    changed = 0
    for name, text in files.items():
        path, content = output / name, text.encode()
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, partial(_put, content))
            changed += 1
    for name in before - set(files):
        path = (output / name).resolve()
        if path.is_relative_to(output.resolve()):  # the list lies in a folder that others may write to
            path.unlink(missing_ok=True)
    return Site(output, tuple(sorted(files)), changed)


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    path.chmod(0o644)  # a site is for everybody; a temporary file is for its owner alone


def _listed(output: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads((output / LIST).read_text(encoding="utf-8"))["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()
