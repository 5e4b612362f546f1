"""Builds the site: a folder of HTML files, one style sheet and one small script, the same bytes from the same inputs."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from assay import catalogue, digest
from assay.errors import AssayError
from assay.files import write_atomically
from assay.lab import comparing, evidence
from assay.numbers import trait

if TYPE_CHECKING:
    from jinja2 import Environment

    from assay.atlas.pages import Page

HERE = Path(__file__).parent
#: Lists what a build has written; by it a later build knows the folder for its own and removes pages that are no more.
LIST = "atlas.json"
#: How many news the feed and the page of news tell.
MOST_NEWS = 60
_NEEDED = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2", "pygments": "pygments"}
#: XML cannot hold these at all, not even escaped.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class Atlas:
    """The files of the site by name, each made when it is asked for.

    Args:
        papers: those to show; ``None`` shows the whole catalogue.
        unrecorded: key -> claim -> result, for claims that have no evidence that is up to date.
        address: where the site will be, for the links of its feed; without one they are relative.
        live: whether it is served by :mod:`assay.atlas.serve`, which can also say what is being run.
        before: an earlier atlas; pages of papers whose evidence is the same are taken from it.

    Raises:
        AssayError: the extra ``web`` is not installed.
    """

    def __init__(
        self,
        papers: Iterable[catalogue.Paper] | None = None,
        unrecorded: Mapping[str, Mapping[str, Any]] | None = None,
        address: str = "",
        live: bool = False,
        before: Atlas | None = None,
    ) -> None:
        check_installed()
        from assay.atlas import pages

        self._papers = list(catalogue.papers().values() if papers is None else papers)
        self._address = address if not address or address.endswith("/") else f"{address}/"
        self._live = live
        known = {page.paper.key: page for page in before.pages} if before else {}
        self.pages: list[Page] = []
        for paper in self._papers:
            entries, fresh = evidence.recorded(paper.key), (unrecorded or {}).get(paper.key, {})
            old = known.get(paper.key)
            same = old is not None and old.shows(paper, entries, fresh)
            self.pages.append(old if old is not None and same else pages.page(paper, entries, fresh))
        self.files = self._files()

    def _files(self) -> dict[str, Callable[[], str]]:
        statics = ["atlas.css", "atlas.js", *(["live.js"] if self._live else [])]
        files: dict[str, Callable[[], str]] = {
            name: partial((HERE / "static" / name).read_text, encoding="utf-8") for name in statics
        }
        tabs = ["papers", "verdicts", "comparisons", "timeline", "price", "news", *(["live"] if self._live else [])]
        for tab in tabs:
            name = "index" if tab == "papers" else tab
            template = "home.html" if tab == "papers" else f"{tab}.html"
            files[f"{name}.html"] = partial(self._render, template, root="", here=tab)
        files["feed.xml"] = self._feed
        for table in self._comparisons:
            name = f"comparisons/{table.name}.html"
            files[name] = partial(self._render, "comparison.html", root="../", here="", table=table)
        for page in self.pages:
            files[page.href] = partial(self._render, "paper.html", root="../", here="", page=page)
        return files

    def __getitem__(self, name: str) -> str:
        return self.files[name]()

    @cached_property
    def _news(self) -> list[digest.News]:
        return digest.news(self._papers)[:MOST_NEWS]

    @cached_property
    def _comparisons(self) -> list[comparing.Table]:
        return [table for name in comparing.names() if (table := comparing.recorded(name)) is not None]

    def _feed(self) -> str:
        return _UNPRINTABLE.sub("", self._render("feed.xml", root=self._address, here=""))

    @cached_property
    def _everything(self) -> dict[str, Any]:
        from assay.atlas import pages

        return {
            "pages": self.pages,
            "topics": pages.topics(self.pages),
            "counts": pages.count(self.pages),
            "by_year": pages.by_year,
            "timeline": pages.timeline,
            "priced": pages.priced,
            "price_figure": pages.price_figure,
            "comparisons": self._comparisons,
            "comparison_figure": pages.comparison_figure,
            "trait_figures": pages.trait_figures,
            "trait": trait,
            "is_stale": comparing.is_stale,
            "blocks": pages.blocks,
            "filled": pages.filled,
            "identity": pages.identity,
            "moment": pages.moment,
            "spelt": digest.spelt,
            "live": self._live,
            "address": self._address,
        }

    @cached_property
    def _environment(self) -> Environment:
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

    def _render(self, template: str, **more: Any) -> str:
        if template in ("news.html", "feed.xml"):  # telling stale evidence's age costs a moment: only where it is shown
            more["news"] = self._news
        return self._environment.get_template(template).render(self._everything | more)


def check_installed() -> None:
    """Refuse to begin without what the atlas is made with.

    Raises:
        AssayError: a package is missing.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise AssayError(f'The atlas needs {", ".join(missing)}: install it with `pip install "assay[web]"`.')


def check_address(address: str) -> None:
    """Refuse what cannot be the address of a site.

    Raises:
        AssayError: it is no web address.
    """
    parts = urlsplit(address)
    if address and (parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment):
        raise AssayError(f"--address is {address!r}, which is no address of a site: write it as https://example.org/atlas/.")


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


def build(output: Path, atlas: Atlas, tell: Callable[[int, int, str], None] = lambda done, total, name: None) -> Site:
    """Write the site into a folder.

    Args:
        output: the folder; it is made where it does not exist. Files whose content stays the same are not touched, and files
            of an earlier build that are no more are removed.
        atlas: what to write.
        tell: is told before each file how many are done, of how many, and which comes next.

    Raises:
        AssayError: the folder holds something else.
    """
    _check_folder(output)
    before = _listed(output)
    names = sorted(atlas.files)
    # First what is there and what will be: a build that is broken off leaves nothing behind that the next one does not know.
    _put(output, LIST, _listing({*before, *names}))
    changed = 0
    for done, name in enumerate(names):
        tell(done, len(names), name)
        changed += _put(output, name, atlas[name])
    for name in before - set(names):
        path = (output / name).resolve()
        if path.is_relative_to(output.resolve()):  # the list lies in a folder that others may write to
            path.unlink(missing_ok=True)
    _put(output, LIST, _listing(names))
    return Site(output, tuple(names), changed)


def _listing(names: Iterable[str]) -> str:
    return json.dumps({"files": sorted(names)}, indent=1) + "\n"


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise AssayError(f"{output} is a file: name a folder with --output.")
    if output.is_dir() and any(output.iterdir()) and not (output / LIST).is_file():
        raise AssayError(f"{output} holds other things than an atlas: name an empty or a new folder with --output.")


def _put(output: Path, name: str, text: str) -> int:
    """Write a file if it is new or other than before: 1, else 0."""
    path, content = output / name, text.encode()
    if path.is_file() and path.read_bytes() == content:
        return 0
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return 1


def _listed(output: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads((output / LIST).read_text(encoding="utf-8"))["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()
