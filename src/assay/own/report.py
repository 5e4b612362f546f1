"""The report of a saved run: one HTML file that stands alone, made from what ``run.json`` says."""

from __future__ import annotations

import importlib.util
import json
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError
from assay.files import write_atomically
from assay.lab.verdict import judge
from assay.numbers import listed
from assay.own.page import templates
from assay.own.saved import FACTS, REPORT
from assay.own.trying import BASELINE, MEASURES
from assay.paper import Above
from assay.paths import runs_dir

if TYPE_CHECKING:
    from assay.atlas.figures import Figure

_NEEDED = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}


@dataclass(frozen=True)
class Strip:
    """Where zero, the interval's ends and the mean difference lie on a line from 0 to 100."""

    zero: float
    low: float
    high: float
    effect: float


@dataclass(frozen=True)
class Judged:
    """A method's verdict in words."""

    method: str
    verdict: str
    words: str
    numbers: str
    changed: str
    strip: Strip | None


@dataclass(frozen=True)
class Arm:
    """A row of the table."""

    name: str
    mean: str
    span: str
    valid: str
    other: str
    seeds: int
    price: str
    parameters: str
    kept: bool


def write_report(place: Path) -> Path:
    """Write ``report.html`` beside a run's other files, and return where it is.

    Raises:
        AssayError: the extra ``web`` is not installed.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise AssayError(f'The HTML report is left out, as it needs {", ".join(missing)}: `pip install "assay[web]"` brings it.')
    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    html = _render(facts, place)
    path = place / REPORT
    write_atomically(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return path


def _render(facts: Mapping[str, Any], place: Path) -> str:
    from markupsafe import Markup

    environment = templates()
    environment.filters["drawn"] = Markup  # for figures alone: their words were escaped when they were drawn
    trial = facts["trial"]
    html: str = environment.get_template("report.html").render(
        facts={"command": "", **facts},
        trial=trial,
        title=_title(trial),
        summary=_summary(trial),
        verdicts=[_judged(method, found, trial) for method, found in trial["verdicts"].items()],
        figure=_figure(trial, facts["arm"]),
        arms=[_arm(name, found, trial, facts["arm"]) for name, found in trial["arms"].items()],
        chosen=_chosen(facts),
        other=_other(trial) if any(_other(trial) in found for found in trial["arms"].values()) else "",
        place=shlex.quote(place.name if place.parent == runs_dir() else str(place)),
    )
    return html


# ---------------------------------------------------------------------------------------------------- words


def _title(trial: Mapping[str, Any]) -> str:
    methods = list(trial["verdicts"])
    what = listed(methods) if len(methods) <= 3 else f"{len(methods)} methods"
    return f"{what} on {trial['data'].partition(':')[0]}"


def _summary(trial: Mapping[str, Any]) -> list[str]:
    """What a hurried reader takes away."""
    verdicts = trial["verdicts"]
    helps = [method for method, found in verdicts.items() if found["controlled"]]
    same = [method for method, found in verdicts.items() if found["verdict"] == "fails" and found["tests"][0]["effect"] == 0]
    hurts = [method for method, found in verdicts.items() if found["verdict"] == "fails" and method not in same]
    open_ = [method for method in verdicts if method not in (*helps, *hurts, *same)]
    lines = []
    if helps:
        lines.append(f"{listed(helps)} {'help' if len(helps) > 1 else 'helps'} on these data.")
    if hurts:
        lines.append(f"{listed(hurts)} {'do' if len(hurts) > 1 else 'does'} not help: worse than the baseline.")
    if same:
        lines.append(f"{listed(same)} made no difference at all.")
    if open_:
        lines.append(f"Whether {listed(open_)} {'help' if len(open_) > 1 else 'helps'} is not decided by so many seeds.")
    means = {arm: found["mean"] for arm, found in trial["arms"].items() if found["mean"] is not None}
    without = means.pop(trial["reference"], None)
    if without is not None and means:
        best = max(means, key=means.__getitem__)
        if without >= means[best]:
            lines.append(f"{trial['reference'].capitalize()}, without any network, does as well or better: {without:.4f}.")
    if not trial["complete"]:
        lines.append("Time was over before everything was done.")
    return lines


def _judged(method: str, found: Mapping[str, Any], trial: Mapping[str, Any]) -> Judged:
    (test,) = found["tests"]
    said = {"holds": "better than the baseline", "fails": "worse than the baseline", "inconclusive": "not decided"}
    words = said[found["verdict"]] if found["verdict"] != "fails" or test["effect"] else "no difference at all"
    if found["verdict"] == "holds" and not found["controlled"]:
        words += f", but of {len(trial['verdicts'])} methods one may well look so by chance"
    if found["more_seeds"]:
        words += f"; about {found['more_seeds']} more seed{'s' if found['more_seeds'] > 1 else ''} would decide"
    if test["note"]:
        words += f" ({test['note']})"
    numbers, strip = "one seed has no interval", None
    if test["low"] is not None and test["high"] is not None and found["seeds"] > 1:
        numbers = f"{test['effect']:+.4f}, 95 % interval {test['low']:+.4f} to {test['high']:+.4f}, p = {test['p']:.2g}"
        numbers += f", q = {found['q']:.2g}" if len(trial["verdicts"]) > 1 else ""
        strip = _strip(test)
    changed = "; ".join(f"{name}: {value}" for name, value in trial["changed"].get(method, {}).items())
    return Judged(method, found["verdict"], words, numbers.replace("-", "−"), changed, strip)


def _strip(test: Mapping[str, Any]) -> Strip:
    ends = (0.0, test["low"], test["high"])
    room = 0.12 * (max(ends) - min(ends)) or 1.0
    left, width = min(ends) - room, max(ends) - min(ends) + 2 * room
    return Strip(*(round(100 * (value - left) / width, 2) for value in (*ends, test["effect"])))


def _arm(name: str, found: Mapping[str, Any], trial: Mapping[str, Any], kept: str) -> Arm:
    values, valid = list(found["values"].values()), list(found["valid"].values())
    base, seconds, size = trial["arms"][BASELINE]["seconds"], found["seconds"], found["parameters"]
    price = "" if seconds is None else f"{seconds:.3g} s"
    if price and base and name in trial["verdicts"]:
        price += f" (×{seconds / base:.2f})"
    return Arm(
        name=name,
        mean=f"{found['mean']:.4f}" if values else "",
        span=f"{min(values):.4f} to {max(values):.4f}" if values else "",
        valid=f"{statistics.fmean(valid):.4f}" if valid else "",
        other=f"{statistics.fmean(other):.4f}" if (other := [*found.get(_other(trial), {}).values()]) else "",
        seeds=len(values),
        price=price,
        parameters=f"{size:,}" if size else "",
        kept=name == kept,
    )


def _other(trial: Mapping[str, Any]) -> str:
    """The measure that stands beside the one the arms are judged by; in reports of old and of equal classes no arm has it."""
    return next(name for name in MEASURES.values() if trial["metric"] != f"test {name}")


def _chosen(facts: Mapping[str, Any]) -> str:
    if facts["chosen"] == "no validation":
        return "Without a validation split nothing can be chosen: the first baseline is kept."
    best = facts["trial"]["best"]
    first = "" if best is None or best["arm"] == facts["arm"] else " that can be kept"
    return (
        f"Kept is {facts['arm']}, seed {facts['seed']}: the arm{first} with the best mean on the validation split over seeds, "
        "and of its seeds the best there. The test split had no say in it."
    )


def _figure(trial: Mapping[str, Any], kept: str) -> Figure | None:
    from assay.atlas import figures

    arms = {arm: found["values"] for arm, found in trial["arms"].items() if found["values"]}
    if not arms:
        return None
    between = {}
    for arm, values in arms.items():
        if len(values) > 1 and max(values.values()) > min(values.values()):
            rows = {int(seed): {arm: float(value)} for seed, value in values.items()}
            (test,) = judge((Above(arm, 0.0),), rows).tests
            between[arm] = (test.low, test.high)
    return figures.of_trial(arms, kept, between, trial["metric"])
