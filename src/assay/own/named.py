"""The columns that somebody names: what to predict, what to split by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """Names of columns.

    Args:
        target: what to predict.
        text: holds the texts to predict from.
        group: its equal values stay in one split.
        time: the latest rows are the test; with ``series``, the order of the steps of a series instead.
        series: says which series a row is a step of.
    """

    target: str | None = None
    text: str | None = None
    group: str | None = None
    time: str | None = None
    series: str | None = None

    def given(self) -> dict[str, str]:
        """Option -> column, for those that were named."""
        return {option: name for option, name in vars(self).items() if name is not None}
