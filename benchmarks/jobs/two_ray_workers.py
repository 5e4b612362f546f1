"""`assay run --on ray` of twelve units with two workers against one, each with a cluster of its own."""

from __future__ import annotations

from typing import Any

from _workers import two_against_one

JOB = "assay run --on ray, 12 units: 2 workers against 1"
WANTED = 1.6


def rows(rounds: int) -> list[dict[str, Any]]:
    """Start-up of the cluster and all."""
    return two_against_one(JOB, WANTED, 12, rounds, "--on", "ray")
