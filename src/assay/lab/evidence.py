"""Evidence: verdicts recorded into the repository, ``evidence/<key>.json``, with all that they rest on.

The file holds every arm's value of every seed, the curves (mean over seeds and the seeds' range), intervals, prices,
machine, versions, date and the fingerprint of the code. Evidence whose code has changed since is *stale*, which is told
from the source files alone. Made by :mod:`assay.lab.results`; reading it needs neither torch nor a database.
"""

from __future__ import annotations

import json
import os
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
