"""What the ledger has, as runs of an MLflow tracking server, for those who keep their runs there.

One experiment for each paper (``assay/KEY``), one run for each unit: settings as parameters, values, prices and curves as
metrics, machine, code and verdict as tags. Every run carries what it is a copy of in the tag ``assay.unit``, so that exporting
twice adds nothing; one that was broken off in the middle is made anew. Verdicts change as seeds are added: their tags are
brought up to date.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from assay.errors import AssayError
from assay.lab.export import Unit

#: What one request to a server may hold.
_METRICS, _PARAMETERS = 1000, 100


def send(found: list[Unit], address: str | None, progress: Callable[[int, int], None] | None = None) -> tuple[int, int]:
    """Copy units into a tracking server.

    Args:
        found: what :func:`assay.lab.export.units` returns.
        address: tracking URI; ``None`` takes ``MLFLOW_TRACKING_URI`` or MLflow's own default.
        progress: is told how many are done, of how many.

    Returns:
        How many runs were added, and how many were there already.

    Raises:
        AssayError: MLflow is not installed, or the server does not take them.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise AssayError("--to mlflow needs MLflow: `pip install 'assay[mlflow]'`.") from None
    papers: dict[str, list[Unit]] = defaultdict(list)
    for unit in found:
        papers[unit.row.key].append(unit)
    added = done = 0
    try:
        client = MlflowClient(tracking_uri=address)
        for key, mine in papers.items():
            for is_new in _send_paper(client, key, mine):
                added, done = added + is_new, done + 1
                if progress:
                    progress(done, len(found))
    except MlflowException as error:
        why = " ".join(str(error).split())
        raise AssayError(f"The MLflow server {address or 'of MLFLOW_TRACKING_URI'} does not take the runs: {why}") from error
    return added, len(found) - added


def _send_paper(client: Any, key: str, mine: list[Unit]) -> Iterator[bool]:
    """Send a paper's units; yields for each whether it is new there."""
    name = f"assay/{key}"
    experiment = client.get_experiment_by_name(name)
    place = experiment.experiment_id if experiment else client.create_experiment(name)
    there = _runs(client, place)
    for unit in mine:
        run = there.get(_name(unit))
        if run is not None and run.info.status == "RUNNING":  # an export that was broken off
            client.delete_run(run.info.run_id)
            run = None
        if run is None:
            _send_unit(client, place, unit)
        elif unit.verdict and run.data.tags.get("assay.verdict") != unit.verdict.verdict:
            client.set_tag(run.info.run_id, "assay.verdict", unit.verdict.verdict)
        yield run is None


def _runs(client: Any, place: str) -> dict[str, Any]:
    """Name of a unit -> its run."""
    found: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_runs([place], max_results=1000, page_token=token)
        found |= {run.data.tags["assay.unit"]: run for run in page if "assay.unit" in run.data.tags}
        token = page.token
        if not token:
            return found


def _name(unit: Unit) -> str:
    """What the run is a copy of; a unit that failed several times has several."""
    row = unit.row
    whole = [row.key, row.claim, row.scale, row.device, row.seed, row.code, row.status]
    if row.status != "done":
        whole += [row.finished, hashlib.blake2b(row.error.encode(), digest_size=8).hexdigest(), row.seconds]
    return " ".join(str(part) for part in whole)


def _send_unit(client: Any, place: str, unit: Unit) -> None:
    from mlflow.entities import Metric, Param, RunTag

    row = unit.row
    end = int(datetime.fromisoformat(row.finished).timestamp() * 1000)
    parameters = {"paper": row.key, "claim": row.claim, "seed": row.seed, "scale": row.scale, "device": row.device}
    tags = {
        "mlflow.runName": f"{row.claim} seed {row.seed}",
        "mlflow.note.content": unit.claim.statement,
        "assay.unit": _name(unit),
        "assay.topic": unit.paper.topic,
        "assay.status": row.status,
        "assay.code": row.code,
        "assay.commit": row.commit,
        "assay.measured_in": unit.claim.unit,
        "assay.error": row.error[-4000:],
        **{f"assay.machine.{name}": value for name, value in row.machine.items()},
        **{f"assay.version.{name}": value for name, value in row.versions.items()},
        "assay.verdict": unit.verdict.verdict if unit.verdict else "",
    }
    numbers: list[tuple[str, float, int]] = [("unit_seconds", row.seconds, 0), ("peak_bytes", float(row.peak_bytes), 0)]
    for arm, value in row.values.items():
        numbers.append((f"{_allowed(arm)}/value", value, 0))
        numbers += [(f"{_allowed(arm)}/{name}", float(amount), 0) for name, amount in row.costs.get(arm, {}).items()]
        if arm in row.curves:
            line = row.curves[arm]
            steps = _steps(line["x"])
            points = zip(line["y"], steps, strict=True)
            numbers += [(f"{_allowed(arm)}/{_allowed(line['y_name'] or 'curve')}", y, x) for y, x in points if y is not None]
            tags[f"assay.axis.{_allowed(arm)}"] = json.dumps(line["x"])[:4000]
    metrics = [Metric(name, value, end, step) for name, value, step in numbers]
    first = {name: str(value) for name, value in tags.items() if str(value)}
    run = client.create_run(place, start_time=end - int(row.seconds * 1000), tags=first).info.run_id
    for start in range(0, len(metrics), _METRICS - _PARAMETERS):
        client.log_batch(run, metrics=metrics[start : start + _METRICS - _PARAMETERS])
    client.log_batch(run, params=[Param(name, str(value)) for name, value in parameters.items()], tags=[
        RunTag("assay.exported", str(int(time.time())))
    ])  # fmt: skip
    # Only now it is whole: until here it is RUNNING, and would be made anew.
    client.set_terminated(run, "FINISHED" if row.status == "done" else "FAILED", end_time=end)


def _steps(x: list[float]) -> list[int]:
    """Steps of a metric are whole numbers: the x of a curve where they are, else their order (x is in a tag)."""
    return [int(value) for value in x] if all(float(value).is_integer() for value in x) else list(range(len(x)))


def _allowed(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :]", "_", name).strip() or "_"
