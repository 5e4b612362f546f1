"""What this machine's ledger has of claims without evidence that is up to date: somebody's own runs, before they are recorded."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from assay import catalogue
from assay.errors import AssayError
from assay.fingerprint import code_fingerprint
from assay.lab import evidence

#: Scales by how much they say; a smoke run only shows that the code runs.
_SCALES = ("full", "laptop")


def unrecorded(papers: Iterable[catalogue.Paper]) -> dict[str, dict[str, Any]]:
    """Key -> claim -> result in the shape of evidence, of the present code, where there is no evidence or it is stale."""
    from assay.lab.ledger import Ledger, exists

    if not exists():
        return {}
    there: dict[tuple[str, str], list[tuple[str, str, str, int]]] = {}
    for key, claim, scale, device, code, last in Ledger().measured():
        if scale in _SCALES:
            there.setdefault((key, claim), []).append((scale, device, code, last))
    found: dict[str, dict[str, Any]] = {}
    for paper in papers:
        mine = {claim: runs for (key, claim), runs in there.items() if key == paper.key}
        entries = evidence.recorded(paper.key) if mine else {}
        for claim, runs in mine.items():
            code = code_fingerprint(paper.module, claim)
            present = [run for run in runs if run[2] == code]
            up_to_date = claim in entries and not evidence.is_stale(paper, claim, entries[claim])
            if present and not up_to_date:
                scale, device, _, last = min(present, key=lambda run: (_SCALES.index(run[0]), run[1] != "cpu", run[1]))
                entry = _result(paper.key, claim, scale, device, code, last)
                if entry is not None:
                    found.setdefault(paper.key, {})[claim] = entry
    return found


@cache
def _result(key: str, name: str, scale: str, device: str, code: str, last: int) -> dict[str, Any] | None:
    """Judge what is there; kept until the ledger has more of it (``last`` is its newest row)."""
    from assay.lab.ledger import Ledger
    from assay.lab.results import as_dict, result

    paper = catalogue.find(key)
    try:
        claim = catalogue.claims(paper).get(name)
        found = claim and result(paper, claim, Ledger(), scale, device, code)
    except (AssayError, ImportError):  # arms that changed their names, an extra that is not installed: nothing to show yet
        return None
    return as_dict(found) if found else None
