"""The lab: units of work, workers, the ledger, verdicts. Names are loaded when they are first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.lab.lab import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    if name == "Lab":
        from assay.lab.lab import Lab

        return Lab
    raise AttributeError(f"module 'assay.lab' has no attribute {name!r}")
