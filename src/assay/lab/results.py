"""Results: what the ledger says of a claim, judged; printed by the command line and recorded as evidence."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from assay.catalogue import Paper
from assay.files import write_json
from assay.fingerprint import code_fingerprint
from assay.lab.evidence import folder, recorded
from assay.lab.ledger import Ledger, Row
from assay.lab.machine import now
from assay.lab.verdict import Verdict, judge
from assay.paper import Claim, Curve


@dataclass(frozen=True)
class Result:
    """One claim with what the ledger says of it.

    Attributes:
        paper: the paper.
        claim: the claim.
        rows: seed -> what was measured.
        unfinished: seed -> why it has no measurement (a training that diverged, a crash, a time limit).
        verdict: what follows; with unfinished seeds at best inconclusive, since those left out may be those that contradict.
    """

    paper: Paper
    claim: Claim
    rows: Mapping[int, Row]
    unfinished: Mapping[int, str]
    verdict: Verdict

    def mean(self, arm: str) -> float:
        """Mean of an arm over seeds."""
        return statistics.fmean(row.values[arm] for row in self.rows.values())

    @property
    def arms(self) -> list[str]:
        """The arms, as the claim returns them."""
        return list(next(iter(self.rows.values())).values)

    def price(self, arm: str) -> dict[str, float]:
        """Median price of an arm over seeds; empty where it was not measured."""
        costs = [row.costs.get(arm, {}) for row in self.rows.values()]
        return {
            name: statistics.median(cost[name] for cost in costs)
            for name in ("seconds", "parameters", "flops", "bytes")
            if all(name in cost for cost in costs)
        }


def result(
    paper: Paper, claim: Claim, ledger: Ledger, scale: str, device: str, code: str, seeds: int | None = None
) -> Result | None:
    """What the ledger says of a claim for its present code; ``None`` where nothing is done yet."""
    tried = ledger.rows(key=paper.key, claim=claim.name, scale=scale, device=device, code=code)
    tried = [row for row in tried if seeds is None or row.seed < seeds]
    rows = {row.seed: row for row in sorted(tried, key=lambda row: row.seed) if row.status == "done"}
    if not rows:
        return None
    unfinished = {row.seed: row.status for row in tried if row.seed not in rows}
    verdict = judge(claim.expect, {seed: _arms(row) for seed, row in rows.items()})
    if unfinished and verdict.verdict == "holds":
        verdict = replace(verdict, verdict="inconclusive")
    return Result(paper, claim, rows, unfinished, verdict)


def _arms(row: Row) -> dict[str, float | Curve]:
    arms: dict[str, float | Curve] = dict(row.values)
    for arm, line in row.curves.items():
        y = [math.nan if value is None else value for value in line["y"]]
        arms[arm] = Curve(y, line["x"], value=row.values[arm])
    return arms


def as_dict(found: Result) -> dict[str, Any]:
    """A result as JSON: for ``--json`` and for the evidence file."""
    claim, rows = found.claim, found.rows
    first = next(iter(rows.values()))
    seconds = sum(row.seconds for row in rows.values())
    return {
        "verdict": found.verdict.verdict,
        "seeds": len(rows),
        "statement": claim.statement,
        "unit": claim.unit,
        "scaled_down": claim.scaled_down,
        "scale": first.scale,
        "device": first.device,
        **{name: value for name, value in found.verdict.as_dict().items() if name not in ("verdict", "seeds")},
        "arms": {arm: {str(seed): row.values[arm] for seed, row in rows.items()} for arm in found.arms},
        "price": {arm: found.price(arm) for arm in found.arms if found.price(arm)},
        "curves": _curves(rows),
        "reported": [asdict(reported) for reported in claim.reported],
        "seconds": round(seconds, 1),
        "peak_bytes": max(row.peak_bytes for row in rows.values()),
        "unfinished": {str(seed): why for seed, why in found.unfinished.items()},
        "code": first.code,
        "fingerprint": code_fingerprint(found.paper.module, claim.name, expectations=True),
        "commit": first.commit,
        "machine": dict(first.machine),
        "other_machines": _others(rows),
        "versions": dict(first.versions),
        "date": max(row.finished for row in rows.values())[:10],
        "rerun": f"assay run {found.paper.key}:{claim.name} --scale {first.scale} --seeds {max(rows) + 1}",
    }


def _others(rows: Mapping[int, Row]) -> list[Mapping[str, Any]]:
    """Machines besides that of the first row, if the seeds were measured on several."""
    return list({json.dumps(row.machine, sort_keys=True): row.machine for row in rows.values()}.values())[1:]


def _curves(rows: Mapping[int, Row]) -> dict[str, Any]:
    """Arm -> its line over seeds: mean, lowest and highest; where seeds have different x, every seed's own line.

    Seeds in which an arm has no line, since its training diverged, say, are not part of it.
    """
    lines: dict[str, Any] = {}
    for arm in dict.fromkeys(arm for row in rows.values() for arm in row.curves):
        there = {seed: row.curves[arm] for seed, row in rows.items() if arm in row.curves}
        found = list(there.values())
        names = {"x_name": found[0]["x_name"], "y_name": found[0]["y_name"]}
        if all(line["x"] == found[0]["x"] for line in found):
            columns = [
                [value for value in column if value is not None] for column in zip(*(line["y"] for line in found), strict=True)
            ]
            lines[arm] = {
                **names,
                "x": found[0]["x"],
                "mean": [_short(statistics.fmean(column)) if column else None for column in columns],
                "low": [_short(min(column)) if column else None for column in columns],
                "high": [_short(max(column)) if column else None for column in columns],
            }
        else:
            lines[arm] = {
                **names,
                "seeds": {str(seed): {"x": line["x"], "y": line["y"]} for seed, line in there.items()},
            }
    return lines


def _short(value: float) -> float:
    return float(f"{value:.5g}")


#: What of an earlier record stays in the file, newest last, when a claim is recorded again.
_REMEMBERED = ("recorded", "verdict", "seeds", "scale", "date", "commit", "fingerprint")


def record(results: list[Result]) -> list[Path]:
    """Write results into the evidence folder, a file a paper; claims that are not among them stay as they were recorded.

    Every claim also keeps when it was recorded and, under ``history``, what had been recorded before.
    """
    written = []
    for key in dict.fromkeys(found.paper.key for found in results):
        before, today = recorded(key), now()
        mine = {found.claim.name: as_dict(found) for found in results if found.paper.key == key}
        claims = before | {name: _dated(entry, before.get(name), today) for name, entry in mine.items()}
        path = folder() / f"{key}.json"
        write_json(path, {"paper": key, "recorded": today[:10], "claims": dict(sorted(claims.items()))})
        written.append(path)
    return written


def _dated(entry: dict[str, Any], before: Mapping[str, Any] | None, today: str) -> dict[str, Any]:
    """An entry with its date of recording and its history; what was measured before is recorded once, however often."""
    if before is None:
        return {**entry, "recorded": today, "history": []}
    earlier = list(before.get("history", []))
    if all(before.get(name) == entry[name] for name in ("verdict", "arms", "fingerprint")):
        return {**entry, "recorded": before.get("recorded", before["date"]), "history": earlier}
    kept = {"recorded": before.get("recorded", before["date"])}
    kept |= {name: before[name] for name in _REMEMBERED if name in before}
    return {**entry, "recorded": today, "history": [*earlier, kept]}
