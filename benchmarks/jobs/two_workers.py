"""`assay run` of ten units with two workers against one."""

from __future__ import annotations

from typing import Any

from _workers import two_against_one

JOB = "assay run, 10 units: 2 workers against 1"
WANTED = 1.7


def rows(rounds: int) -> list[dict[str, Any]]:
    """Start-up and all."""
    return two_against_one(JOB, WANTED, 10, rounds)
