"""Evidence: verdicts recorded into the repository, ``evidence/<key>.json``, with all that they rest on.

The file holds every arm's value of every seed, the curves (mean over seeds and the seeds' range), intervals, prices,
machine, versions, date and the fingerprint of the code; and when it was recorded, and what had been recorded before
(``history``). Evidence whose code has changed since is *stale*, which is told from the source files alone. Made by
:mod:`assay.lab.results`; reading it needs neither torch nor a database.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.catalogue import Paper
from assay.errors import AssayError
from assay.fingerprint import code_fingerprint


def folder() -> Path:
    """Where evidence is: ``ASSAY_EVIDENCE``, the checkout that assay runs from, or what was installed with the package."""
    if "ASSAY_EVIDENCE" in os.environ:
        return Path(os.environ["ASSAY_EVIDENCE"])
    package = Path(__file__).parents[1]
    checkout = package.parents[1] / "evidence"
    return checkout if checkout.is_dir() and (package.parents[1] / "pyproject.toml").exists() else package / "evidence"


def recorded(key: str) -> dict[str, Any]:
    """Claim -> what is recorded of it; empty for a paper without evidence.

    Raises:
        AssayError: the file is damaged.
    """
    path = folder() / f"{key}.json"
    try:
        claims: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["claims"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise AssayError(f"{path} cannot be read ({error}): restore it, or record it again with `assay record {key}`.") from error
    return claims


def is_stale(paper: Paper, name: str, entry: Mapping[str, Any]) -> bool:
    """Whether the code of a claim, or what it expects, is no longer what the evidence was measured and judged with."""
    return code_fingerprint(paper.module, name, expectations=True) != entry.get("fingerprint")


def compared(entry: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Method and control of the first expectation, as its words name them: ``ELR above cross-entropy + 0.1``."""
    if not entry:
        return None, None
    words = entry["tests"][0]["expectation"].removeprefix("rank correlation of ")
    arms = sorted(entry["arms"], key=len, reverse=True)  # the longest first: one arm's name may begin another's
    method = next((arm for arm in arms if re.match(rf"{re.escape(arm)} (above|below|within|and) ", words)), None)
    rest = words.removeprefix(method or "")
    control = next((arm for arm in arms if arm != method and re.search(rf"(?<=[ ]){re.escape(arm)}(?= |$)", rest)), None)
    return method, control


def times(entry: Mapping[str, Any]) -> float | None:
    """How many times the control's time the method takes; ``None`` where one of the two is not known."""
    method, control = (entry.get("price", {}).get(arm or "", {}).get("seconds") for arm in compared(entry))
    return method / control if method and control else None


def decisive(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of several expectations the one that decides: the first with the claim's own verdict."""
    tests: list[Mapping[str, Any]] = entry["tests"]
    return next((test for test in tests if test["verdict"] == entry["verdict"]), tests[-1])
