"""Finds papers and their claims by reading files: nothing here imports torch, or a paper, until one is run."""

from __future__ import annotations

import ast
import difflib
import importlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from assay.errors import AssayError
from assay.paper import Claim, Configuration

ROOT = Path(__file__).parent / "papers"

#: What data may need help against; a paper's field ``helps`` names some of these, and `assay suggest` finds it by them.
NEEDS = {
    "label-noise": "some labels are wrong",
    "imbalance": "some classes are rare",
    "few-examples": "there are few examples",
    "duplicates": "examples occur again and again",
    "giveaway": "an input gives the answer away, so that a network may look at nothing else",
    "constant-columns": "columns tell nothing",
    "id-columns": "columns number the rows",
    "missing": "values are missing",
    "shift": "the test is unlike the training data",
    "no-signal": "the inputs tell nothing about the labels",
}

#: Kinds of data; a paper's field ``takes`` names those that it is for, and without the field it is for all.
KINDS = ("images", "audio", "series", "table", "text")


@dataclass(frozen=True)
class Paper:
    """The facts of one paper, as ``references.bib`` has them.

    Attributes:
        key: the paper's name here; also of its module.
        topic: the question that it answers; also the folder of its module.
        title: its title.
        authors: family names, in order.
        year: of publication.
        link: where to read it.
        kind: treatment, probe, estimator, model, dynamics or simulator.
        summary: what it is good for, in a sentence or two.
        api: the import line.
        bibtex: the entry to cite.
        path: the file (or the package's ``__init__.py``) that holds it.
        helps: what it helps against, out of :data:`NEEDS`.
        takes: kinds of data that it is for, out of :data:`KINDS`.
    """

    key: str
    topic: str
    title: str
    authors: tuple[str, ...]
    year: int
    link: str
    kind: str
    summary: str
    api: str
    bibtex: str
    path: Path
    helps: tuple[str, ...] = ()
    takes: tuple[str, ...] = KINDS

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return f"assay.papers.{self.topic}.{self.key}"


@dataclass(frozen=True)
class ClaimText:
    """A claim as its file says it, read without importing it."""

    name: str
    statement: str
    expect: str
    scaled_down: str


@cache
def papers() -> dict[str, Paper]:
    """All papers that have a module, by key, in the order of topics and then of years."""
    entries = _references()
    found = []
    for path in sorted([*ROOT.glob("*/*.py"), *ROOT.glob("*/*/__init__.py")]):
        key = path.parent.name if path.name == "__init__.py" else path.stem
        if path.name == "__init__.py" and path.parent.parent == ROOT:
            continue
        if key in entries:
            found.append(_paper(key, path, *entries[key]))
    return {paper.key: paper for paper in sorted(found, key=lambda paper: (paper.topic, paper.year, paper.key))}


def _references() -> dict[str, tuple[dict[str, str], str]]:
    """Key -> fields and text of every entry of the bibliography."""
    import bibtexparser

    logging.getLogger("bibtexparser").setLevel(logging.ERROR)
    library = bibtexparser.parse_string((ROOT / "references.bib").read_text(encoding="utf-8"))
    if library.failed_blocks:
        raise AssayError(f"references.bib cannot be read near line {library.failed_blocks[0].start_line}: mend the entry there.")
    return {entry.key: ({field.key: str(field.value) for field in entry.fields}, entry.raw) for entry in library.entries}


def _paper(key: str, path: Path, fields: dict[str, str], raw: str) -> Paper:
    topic = (path.parent.parent if path.name == "__init__.py" else path.parent).name
    authors = tuple(_family(name) for name in fields.get("author", "").replace("\n", " ").split(" and "))
    eprint = fields.get("eprint")
    link = fields.get("url") or (f"https://arxiv.org/abs/{eprint}" if eprint else "")
    ours = ("kind", "summary", "api", "helps", "takes")
    bibtex = "\n".join(line for line in raw.strip().splitlines() if line.split("=")[0].strip() not in ours)
    return Paper(
        key=key,
        topic=topic,
        title=" ".join(fields["title"].replace("{", "").replace("}", "").split()),
        authors=authors,
        year=int(fields["year"]),
        link=link,
        kind=fields.get("kind", ""),
        summary=" ".join(fields.get("summary", "").replace("\\%", "%").replace("\\&", "&").split()),
        api=fields.get("api", ""),
        bibtex=bibtex,
        path=path,
        helps=_names(key, "helps against", fields.get("helps", ""), NEEDS),
        takes=_names(key, "takes", fields.get("takes", ""), KINDS) or KINDS,
    )


def _names(key: str, does: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    """``label-noise, imbalance`` as a tuple of known names."""
    found = tuple(filter(None, (name.strip() for name in text.split(","))))
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}."
            raise AssayError(f"references.bib says that {key} {does} {name!r}, which is not known: {hint}")
    return found


def _family(name: str) -> str:
    """``LeCun, Yann`` or ``Yann LeCun`` -> ``LeCun``."""
    name = name.replace("{", "").replace("}", "").strip()
    return name.split(",")[0] if "," in name else name.split(" ")[-1]


def find(key: str) -> Paper:
    """The paper of this key.

    Raises:
        AssayError: there is none; the message names the nearest.
    """
    known = papers()
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`assay list` shows what there is."
    raise AssayError(f"No paper is called {key!r}: {hint}")


def files(paper: Paper) -> list[Path]:
    """The files that make up a paper: one, or those of its package."""
    return sorted(paper.path.parent.glob("*.py")) if paper.path.name == "__init__.py" else [paper.path]


def lesson(paper: Paper) -> str:
    """The paper's idea in words: the docstring of its module."""
    return ast.get_docstring(ast.parse(paper.path.read_text(encoding="utf-8"))) or ""


def claim_texts(paper: Paper) -> list[ClaimText]:
    """The claims of a paper, in order, read from its file."""
    found = []
    for path in files(paper):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        constants = {t.id: s.value for s in body if isinstance(s, ast.Assign) for t in s.targets if isinstance(t, ast.Name)}
        for node in body:
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == "claim":
                        words = {word.arg: word.value for word in decorator.keywords}
                        found.append(
                            ClaimText(
                                name=node.name,
                                statement=_text(decorator.args[0], constants),
                                expect=ast.unparse(words["expect"]) if "expect" in words else "",
                                scaled_down=_text(words["scaled_down"], constants) if "scaled_down" in words else "",
                            )
                        )
    return found


def configurations(paper: Paper) -> dict[str, Configuration]:
    """The standard networks of a paper, by the call that makes each, read from ``CONFIGURATIONS`` in its file."""
    found: dict[str, Configuration] = {}
    for path in files(paper):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "CONFIGURATIONS":
                assert isinstance(statement.value, ast.Dict)
                for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                    assert isinstance(key, ast.Constant)
                    assert isinstance(value, ast.Call)
                    numbers = [ast.literal_eval(argument) for argument in value.args]
                    named = {str(word.arg): ast.literal_eval(word.value) for word in value.keywords}
                    found[str(key.value)] = Configuration(*numbers, **named)
    return found


def _text(node: ast.expr, constants: dict[str, ast.expr]) -> str:
    """A text as its file says it, also where it is put together from texts that stand under a name in the same file."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in constants:
        return _text(constants[node.id], constants)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, constants) + _text(node.right, constants)
    return ast.unparse(node)


def claims(paper: Paper) -> dict[str, Claim]:
    """The claims of a paper by name, ready to run: this imports the paper."""
    module = importlib.import_module(paper.module)
    mine = [value for value in vars(module).values() if isinstance(value, Claim) and value.measure.__module__ == paper.module]
    return {claim.name: claim for claim in mine}  # a module keeps its definitions in their order


def named(want: str) -> list[Paper]:
    """The papers of a topic, or the one of this key."""
    return [paper for paper in papers().values() if paper.topic == want] or [find(want)]


def select(wanted: list[str], everything: bool = False) -> list[tuple[Paper, Claim]]:
    """Claims named as ``KEY`` (all of a paper, or of a topic) or ``KEY:CLAIM``; those of all papers where nothing is named.

    Raises:
        AssayError: a name is not known; the message names the nearest.
    """
    chosen: dict[tuple[str, str], tuple[Paper, Claim]] = {}
    for want in list(papers()) if everything and not wanted else wanted:
        key, _, name = want.partition(":")
        for paper in [find(key)] if name else named(key):
            there = claims(paper)
            if name and name not in there:
                near = difflib.get_close_matches(name, there, n=3, cutoff=0.3)
                raise AssayError(f"{key} has no claim {name!r}: it has {', '.join(near or there)}.")
            for claim in [there[name]] if name else there.values():
                chosen[paper.key, claim.name] = (paper, claim)
    return list(chosen.values())
