"""Units: one claim, one seed (or one block of seeds), one scale; planning them and measuring one."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from assay.catalogue import Paper, claims, find
from assay.errors import AssayError
from assay.fingerprint import code_fingerprint
from assay.lab.ledger import Ledger, Row
from assay.lab.machine import commit, machine, peak_bytes, versions
from assay.paper import Claim, Curve, Score

#: Seconds that a unit may take at full scale, whatever its claim says of smaller ones.
FULL_LIMIT = 7 * 86400.0


@dataclass(frozen=True)
class Unit:
    """The grain of running, saving and resuming."""

    key: str
    claim: str
    seeds: tuple[int, ...]
    scale: str
    device: str
    code: str
    time_limit: float

    @property
    def name(self) -> str:
        """As shown to a person: ``elr:resists_wrong_labels seed 3``."""
        seeds = str(self.seeds[0]) if len(self.seeds) == 1 else f"{self.seeds[0]}-{self.seeds[-1]}"
        return f"{self.key}:{self.claim} seed {seeds}"


def claim_code(claim: Claim) -> str:
    """Fingerprint of a claim's code and of everything first-party that it refers to."""
    return code_fingerprint(claim.measure.__module__, claim.name)


def plan(chosen: list[tuple[Paper, Claim]], seeds: int, scale: str, device: str, ledger: Ledger) -> list[Unit]:
    """The units that are still to be run: seeds 0 to ``seeds - 1`` without those that the ledger has."""
    units = []
    for paper, claim in chosen:
        code = claim_code(claim)
        done = ledger.done(paper.key, claim.name, scale, device, code)
        missing = [seed for seed in range(seeds) if seed not in done]
        for start in range(0, len(missing), claim.block):
            block = tuple(missing[start : start + claim.block])
            limit = max(claim.time_limit, FULL_LIMIT) if scale == "full" else claim.time_limit
            units.append(Unit(paper.key, claim.name, block, scale, device, code, limit))
    # Seeds first, so that after a while there is something to see of every claim.
    return sorted(units, key=lambda unit: unit.seeds[0])


def measure(unit: Unit, report: Any = None) -> list[Row]:
    """Run one unit. Never raises: what goes wrong is in the rows."""
    from assay.lab.lab import Lab

    began = time.perf_counter()
    lab = None
    try:
        claim = claims(find(unit.key))[unit.claim]
        if claim_code(claim) != unit.code:
            raise AssayError(f"The code of {unit.key}:{unit.claim} was changed after the run began: run it again.")
        lab = Lab(scale=unit.scale, device=unit.device, seeds=unit.seeds, report=report)
        measured = claim(lab)
        by_seed = measured if claim.block > 1 else {unit.seeds[0]: measured}
        if set(by_seed) != set(unit.seeds):
            raise AssayError(f"{unit.key}:{unit.claim} was asked for seeds {unit.seeds} and returned {tuple(by_seed)}.")
        share = (time.perf_counter() - began) / len(unit.seeds)
        return [_row(unit, seed, seconds=share, **_numbers(unit, by_seed[seed])) for seed in unit.seeds]
    except AssayError as error:
        return failed(unit, "refused", str(error), time.perf_counter() - began)
    except Exception:
        return failed(unit, "crashed", traceback.format_exc(), time.perf_counter() - began)
    finally:
        if lab is not None:
            lab.close()


def failed(unit: Unit, status: str, error: str, seconds: float) -> list[Row]:
    """Rows for a unit that measured nothing, ``seconds`` after it began."""
    share = seconds / len(unit.seeds)
    return [_row(unit, seed, seconds=share, status=status, error=error) for seed in unit.seeds]


def _row(unit: Unit, seed: int, **found: Any) -> Row:
    return Row(
        key=unit.key,
        claim=unit.claim,
        seed=seed,
        scale=unit.scale,
        device=unit.device,
        code=unit.code,
        peak_bytes=peak_bytes(),
        machine=machine(),
        versions=versions(),
        commit=commit(),
        **found,
    )


def _numbers(unit: Unit, measured: Mapping[str, float | Curve]) -> dict[str, Any]:
    """What a claim returned, as the ledger keeps it."""
    values: dict[str, float] = {}
    curves: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    for arm, value in measured.items():
        number = value.number if isinstance(value, Curve) else float(value)
        if not math.isfinite(number):
            raise AssayError(
                f"{unit.key}:{unit.claim} measured {number} for {arm!r}, which is no number: nothing can be said of it."
            )
        values[arm] = number
        if isinstance(value, Curve):
            x = list(value.x) if value.x is not None else list(range(1, len(value.y) + 1))
            curves[arm] = {
                "x": [float(v) for v in x],
                "y": [_rounded(float(v)) for v in value.y],
                "x_name": value.x_name,
                "y_name": value.y_name,
            }
        if isinstance(value, (Curve, Score)):
            costs[arm] = {name: amount for name, amount in asdict(value.cost).items() if amount is not None}
    return {"values": values, "curves": curves, "costs": costs}


def _rounded(value: float) -> float | None:
    """Six significant digits are enough for a figure; a hole in a line is None."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
