"""Which probes there are: read from the papers' files, so that listing them imports nothing heavy."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assay import catalogue
from assay.errors import AssayError

if TYPE_CHECKING:
    from assay.view import Ranked, Seen

    Probe = Callable[..., Seen]
    DataProbe = Callable[..., Ranked]

_MARKED = re.compile(r"^@probe\ndef (\w+)\(\s*(?:view|data)\b", re.MULTILINE)


@dataclass(frozen=True)
class Offer:
    """A probe that a paper has.

    Args:
        key: the paper's key.
        function: its name in the paper's module.
        name: what to call it: the key, or ``"key:function"`` where the paper has several.
        what: one line.
        options: name -> default, as the source has it.
        of_data: whether it looks at a data set instead of a network: its first parameter is called ``data``.
    """

    key: str
    function: str
    name: str
    what: str
    options: Mapping[str, str]
    of_data: bool = False


def offers() -> list[Offer]:
    """The probes that there are."""
    return [offer for paper in catalogue.papers().values() for offer in of_paper(paper)]


def of_paper(paper: catalogue.Paper) -> list[Offer]:
    """The probes of one paper: its functions with the mark ``@probe`` whose first parameter is the view, or data."""
    nodes: list[ast.FunctionDef] = []
    for path in catalogue.files(paper):
        text = path.read_text(encoding="utf-8")
        names = set(_MARKED.findall(text))
        if names:
            nodes += [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name in names]
    return [_offer(paper.key, node, len(nodes) > 1) for node in nodes]


def _offer(key: str, node: ast.FunctionDef, several: bool) -> Offer:
    positional, keywords = node.args.args[1:], node.args.kwonlyargs
    defaults = [*node.args.defaults, *node.args.kw_defaults]
    given = [argument.arg for argument in (*positional, *keywords)]
    options = {name: ast.unparse(default) if default else "?" for name, default in zip(given, defaults, strict=True)}
    what = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    of_data = node.args.args[0].arg == "data"
    return Offer(key, node.name, f"{key}:{node.name}" if several else key, what, options, of_data)


def looks_at_data(name: str) -> bool:
    """Does the probe of this name look at a data set, and train networks of its own for that?

    Raises:
        AssayError: there is no such probe.
    """
    paper, function = _chosen(name)
    return any(offer.of_data for offer in of_paper(paper) if offer.function == function)


def find(name: str) -> tuple[catalogue.Paper, Probe]:
    """A paper's probe: ``"deepfool"``, or ``"key:function"`` where the paper has several.

    Raises:
        AssayError: there is no such paper, or it has no such probe.
    """
    paper, function = _chosen(name)
    found: Probe = getattr(importlib.import_module(paper.module), function)
    return paper, found


def _chosen(name: str) -> tuple[catalogue.Paper, str]:
    key, _, wanted = name.strip().partition(":")
    paper = catalogue.find(key)
    there = [offer.function for offer in of_paper(paper)]
    if not there:
        known = ", ".join(dict.fromkeys(offer.key for offer in offers()))
        raise AssayError(f"{key} has no probe (it is of the kind {paper.kind}): choose among {known}.")
    if not wanted and len(there) > 1:
        raise AssayError(f"{key} has several probes: name one, as {' or '.join(f'{key}:{one}' for one in there)}.")
    if wanted and wanted not in there:
        raise AssayError(f"{key} has no probe {wanted!r}: it has {', '.join(there)}.")
    return paper, wanted or there[0]
