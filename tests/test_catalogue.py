"""The catalogue: complete, consistent, and read without importing torch."""

import subprocess
import sys

import pytest

from assay import catalogue
from assay.errors import AssayError
from assay.lab import evidence
from assay.paper import Claim

KINDS = {"treatment", "probe", "estimator", "model", "dynamics", "simulator"}


def test_every_module_has_its_entry_and_every_entry_its_module() -> None:
    modules = {path.stem for path in catalogue.ROOT.glob("*/*.py") if path.stem != "__init__"}
    modules |= {path.parent.name for path in catalogue.ROOT.glob("*/*/__init__.py")}
    assert set(catalogue.papers()) == modules == set(catalogue._references())


@pytest.mark.parametrize("key", catalogue.papers())
def test_facts_are_complete(key: str) -> None:
    paper = catalogue.papers()[key]
    assert paper.kind in KINDS
    assert paper.title
    assert paper.authors
    assert 1980 < paper.year < 2030
    assert paper.link.startswith("https://")
    assert paper.summary.endswith(".")
    assert paper.api.startswith("from assay.papers.")
    assert len(catalogue.lesson(paper)) > 300
    assert "summary" not in paper.bibtex
    exec(paper.api)  # the import line works


@pytest.mark.parametrize("key", catalogue.papers())
def test_claims_read_from_the_file_are_those_of_the_module(key: str) -> None:
    paper = catalogue.papers()[key]
    loaded = catalogue.claims(paper)
    texts = catalogue.claim_texts(paper)
    assert list(loaded) == [text.name for text in texts]
    assert texts
    for text in texts:
        claim = loaded[text.name]
        assert isinstance(claim, Claim)
        assert (text.statement, text.scaled_down) == (claim.statement, claim.scaled_down)
        assert claim.statement.endswith(".")
        assert claim.scaled_down
        assert claim.unit
        assert claim.expect


def test_recorded_evidence_is_of_claims_that_exist() -> None:
    for path in evidence.folder().glob("*.json"):
        names = {text.name for text in catalogue.claim_texts(catalogue.find(path.stem))}
        assert set(evidence.recorded(path.stem)) <= names


def test_reading_does_not_import_torch() -> None:
    code = (
        "import sys; from assay import cli, show, catalogue;"
        "from assay.data import available; available();"
        "[show.paper_dict(paper, whole=True) for paper in catalogue.papers().values()];"
        "show.verdict_rows(catalogue.papers().values());"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_select_by_paper_claim_and_topic() -> None:
    assert "memorises_less" in {claim.name for _, claim in catalogue.select(["elr"])}
    assert [claim.name for _, claim in catalogue.select(["elr:memorises_less", "elr:memorises_less"])] == ["memorises_less"]
    assert {paper.key for paper, _ in catalogue.select(["labels"])} >= {"elr"}
    with pytest.raises(AssayError, match="did you mean elr"):
        catalogue.select(["elrr"])
