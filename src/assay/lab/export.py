"""What the ledger has, as a table: for notebooks, spreadsheets, statistics elsewhere.

One row for each unit and arm, with everything that it rests on and the verdict of its claim; or, *long*, one row for each
number, the points of the curves among them. In CSV, a text that a spreadsheet would take for a formula (it begins with
``=``, ``+``, ``-`` or ``@``, as an arm ``-log p`` does) gets an apostrophe before it; numbers never do, and Parquet keeps every
text as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import catalogue
from assay.errors import AssayError
from assay.files import write_atomically
from assay.lab.ledger import Ledger, Row
from assay.lab.results import result
from assay.lab.units import claim_code
from assay.lab.verdict import Verdict
from assay.paper import Claim

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Unit:
    """One row of the ledger, with what is said of its claim.

    Attributes:
        paper, claim: whose it is.
        row: what was measured.
        current: whether it was measured with the code of now.
        verdict: of the claim at this scale on this device with that code; ``None`` for other code than that of now.
    """

    paper: catalogue.Paper
    claim: Claim
    row: Row
    current: bool
    verdict: Verdict | None


def units(what: list[str], history: bool, ledger: Ledger | None = None) -> list[Unit]:
    """Everything that the ledger has of the chosen claims.

    Args:
        what: ``KEY``, ``KEY:CLAIM`` or topics; empty means all.
        history: also what failed, and what was measured with other code than that of now.
        ledger: which; ``None`` opens the usual one.
    """
    ledger = ledger or Ledger()
    found = []
    for paper, claim in catalogue.select(what, everything=not what):
        code = claim_code(claim)
        verdicts: dict[tuple[str, str], Verdict | None] = {}
        for row in ledger.rows(key=paper.key, claim=claim.name):
            current = row.code == code
            if not history and not (current and row.status == "done"):
                continue
            setting = (row.scale, row.device)
            if current and setting not in verdicts:
                judged = result(paper, claim, ledger, *setting, code)
                verdicts[setting] = judged.verdict if judged else None
            found.append(Unit(paper, claim, row, current, verdicts.get(setting) if current else None))
    return found


def table(found: list[Unit]) -> pd.DataFrame:
    """One row for each unit and arm; a unit that failed has one row without an arm."""
    return _frame([row for unit in found for row in _arms(unit)])


def long_table(found: list[Unit]) -> pd.DataFrame:
    """One row for each number: ``quantity`` says which (``value``, a price, or the name of a curve's axis), ``x`` where."""
    return _frame([row for unit in found for row in _numbers(unit)])


def require_kind(out: Path) -> None:
    """Refuse a file that is neither ``.csv`` nor ``.parquet``, before anything is read for it."""
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise AssayError(f"{out} is of no kind that is written: name a .csv or .parquet file; papers are named with --what.")


def write(frame: pd.DataFrame, out: Path) -> None:
    """Write a table as what its name ends in.

    Raises:
        AssayError: neither ``.csv`` nor ``.parquet``, or pyarrow is missing.
    """
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda path: _without_formulas(frame).to_csv(path, index=False),
        ".parquet": lambda path: frame.to_parquet(path, index=False, engine="pyarrow"),
    }
    require_kind(out)
    try:
        write_atomically(out, writers[out.suffix.lower()])
    except ImportError as error:
        raise AssayError(f"{out} needs pyarrow: `pip install 'assay[arrow]'`, or name a .csv file.") from error


def _arms(unit: Unit) -> Iterator[dict[str, Any]]:
    measured: dict[Any, Any] = dict(unit.row.values) or {None: None}
    for arm, value in measured.items():
        yield {**_identity(unit, arm), "value": value, **_prices(unit, arm), **_origin(unit)}


def _numbers(unit: Unit) -> Iterator[dict[str, Any]]:
    for arm, value in unit.row.values.items():
        common = {**_identity(unit, arm), **_origin(unit)}
        numbers = {"value": value, **_prices(unit, arm)}
        for quantity, number in numbers.items():
            if number is not None:
                yield {**common, "quantity": quantity, "x_name": None, "x": None, "number": float(number)}
        line = unit.row.curves.get(arm)
        if line is None:
            continue
        for x, y in zip(line["x"], line["y"], strict=True):
            yield {**common, "quantity": line["y_name"] or "curve", "x_name": line["x_name"], "x": x, "number": y}


def _identity(unit: Unit, arm: str | None) -> dict[str, Any]:
    row = unit.row
    return {
        "paper": row.key,
        "topic": unit.paper.topic,
        "claim": row.claim,
        "scale": row.scale,
        "device": row.device,
        "seed": row.seed,
        "arm": arm,
        "unit": unit.claim.unit,
    }


def _prices(unit: Unit, arm: str | None) -> dict[str, Any]:
    cost: Mapping[str, Any] = unit.row.costs.get(arm, {}) if arm else {}
    return {name: cost.get(name) for name in ("seconds", "parameters", "flops", "bytes")}


def _origin(unit: Unit) -> dict[str, Any]:
    row = unit.row
    return {
        "status": row.status,
        "error": row.error or None,
        "unit_seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "finished": row.finished,
        "code": row.code,
        "current": unit.current,
        "commit": row.commit or None,
        **{f"machine_{name}": row.machine.get(name) for name in ("processor", "cores", "system")},
        **{f"version_{name.replace('-', '_')}": version for name, version in row.versions.items()},
        "verdict": unit.verdict.verdict if unit.verdict else None,
        "verdict_p": unit.verdict.p if unit.verdict else None,
        "verdict_seeds": unit.verdict.seeds if unit.verdict else None,
    }


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows)
    whole = [name for name in ("parameters", "flops", "bytes", "machine_cores", "verdict_seeds") if name in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))  # an integer also where some are missing


def _without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    texts = frame.select_dtypes(include=["object", "string"]).columns
    return frame.assign(**{name: frame[name].map(_harmless) for name in texts})


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
