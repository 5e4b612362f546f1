"""The search: models are made and compared until time is up; what differs is made small and written down."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.errors import AssayError
from assay.files import write_atomically
from assay.fingerprint import code_fingerprint
from assay.papers.robust.neuri.backends import BACKENDS, missing
from assay.papers.robust.neuri.generating import Generator, redrawn
from assay.papers.robust.neuri.knowledge import Knowledge, learn_all
from assay.papers.robust.neuri.minimising import minimise, reproducer
from assay.papers.robust.neuri.models import DTYPES, Input, Model, Node
from assay.papers.robust.neuri.operators import operators
from assay.papers.robust.neuri.sandbox import Outcome, Sandbox
from assay.paths import folder, trained_dir

#: Backends that take seconds for a model, and the most of the time that each gets beside fast ones.
SLOW = {"compile": 0.4, "onnx": 0.2}
#: Models by which generators are told apart that know rules and that do not.
_COMPARED = 200

_FIRST = Model((Input((2, 2)),), (Node("torch.exp(x0) (2,)", (0,)),))

Tell = Callable[[float, float, str], None]


@dataclass
class Tally:
    """What one backend did."""

    models: int = 0
    seconds: float = 0.0
    worst: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass
class Difference:
    """A backend and eager double precision disagree.

    Attributes:
        backend: which.
        kind: ``wrong``, ``refuses``, ``dies`` or ``hangs``.
        message: what it said.
        excess: error in units of its bound.
        model: the smallest model found.
        seen: how many models showed it.
        calls: how many calls the first of them had.
        file: the reproducer, where one was written.
    """

    backend: str
    kind: str
    message: str
    excess: float
    model: Model
    seen: int = 1
    calls: int = 0
    file: str = ""

    @property
    def operators(self) -> list[str]:
        return [node.op.name for node in self.model.nodes]


@dataclass
class Report:
    """What :func:`fuzz` saw."""

    seconds: float = 0.0
    learning: float = 0.0
    operators: int = 0
    calls: int = 0
    trusted: float = 0.0
    models: int = 0
    valid: int = 0
    unstable: int = 0
    valid_with_rules: float = 0.0
    valid_without: float = 0.0
    covered: set[str] = field(default_factory=set)
    edges: set[tuple[str, str]] = field(default_factory=set)
    backends: dict[str, Tally] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        names = {one.name for one in operators().values()}
        return {
            "seconds": self.seconds,
            "seconds of learning": self.learning,
            "ways to call an operator": self.operators,
            "calls made while learning": self.calls,
            "share with a trusted rule": self.trusted,
            "models": self.models,
            "models per second": self.models / max(self.seconds, 1e-9),
            "valid": self.valid,
            "dropped as unstable": self.unstable,
            "valid rate with rules": _number(self.valid_with_rules),
            "valid rate without": _number(self.valid_without),
            "operators covered": len(self.covered),
            "operators": len(names),
            "pairs of operators": len(self.edges),
            "backends": {
                name: {
                    "models": one.models,
                    "seconds": one.seconds,
                    "largest error in units of its bound": one.worst,
                    **one.kinds,
                }
                for name, one in self.backends.items()
            },
            "missing": self.missing,
            "versions": self.versions,
            "differences": [
                {
                    "backend": one.backend,
                    "kind": one.kind,
                    "message": one.message,
                    "error in units of its bound": _number(one.excess),
                    "operators": one.operators,
                    "seen": one.seen,
                    "source": one.model.source(),
                    "file": one.file,
                }
                for one in self.differences
            ],
        }


def _number(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if np.isfinite(value) else None


def knowledge(seed: int = 0, report: Callable[[int, int, str], None] | None = None) -> tuple[Knowledge, float]:
    """What is known of the installed version's operators, learnt once, and the seconds that learning took this time."""
    code = code_fingerprint("assay.papers.robust.neuri.knowledge", "learn_all")
    mark = hashlib.blake2b(f"{torch.__version__} {code} {seed}".encode(), digest_size=8).hexdigest()
    place = folder(trained_dir()) / f"operators-{mark}.json"
    if place.exists():
        return Knowledge.of_json(json.loads(place.read_text(encoding="utf-8"))), 0.0
    began = time.perf_counter()
    found = learn_all(seed=seed, report=report)
    text = json.dumps(found.as_json())
    write_atomically(place, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return found, time.perf_counter() - began


def fuzz(
    seconds: float = 60.0,
    backends: Sequence[str] = tuple(BACKENDS),
    calls: int = 8,
    seed: int = 0,
    dtype: str = "float32",
    timeout: float = 60.0,
    memory: float = 6.0,
    out: Path | None = None,
    tell: Tell | None = None,
) -> Report:
    """Look for differences between eager PyTorch and other ways to run a model, in the installed versions.

    Args:
        seconds: for making, comparing and minimising; learning the rules comes before and is done once a version.
        backends: names out of :data:`~.backends.BACKENDS`; those that are not there are named in the report.
        calls: of a model.
        seed: of the models.
        dtype: number format.
        timeout: seconds that one backend may take for one model.
        memory: gigabytes of the process that runs them.
        out: folder for reproducers.
        tell: ``tell(done, total, note)``.

    Raises:
        AssayError: no such backend or format, or none of the backends is there.
    """
    for name in backends:
        if name not in BACKENDS:
            raise AssayError(f"There is no backend {name!r}: choose among {', '.join(BACKENDS)}.")
    if dtype not in DTYPES:
        raise AssayError(f"There is no number format {dtype!r}: choose among {', '.join(DTYPES)}.")
    report = Report(missing={name: missing(name) for name in backends if missing(name)}, versions=_versions())
    there = [name for name in backends if name not in report.missing]
    if not there:
        raise AssayError(f"None of the backends is there: {'; '.join(report.missing.values())}.")
    note = tell or (lambda done, total, words: None)
    known, report.learning = knowledge(report=lambda done, total, name: note(done, total, f"learning about {name}"))
    report.operators, report.trusted = len(known.rules), known.trusted
    report.calls = sum(rule.calls for rule in known.rules.values())
    report.backends = {name: Tally() for name in there}
    with Sandbox(timeout, memory) as sandbox:
        for kind in ("hybrid", "random"):
            make = Generator(known, seed + 1, kind, calls, dtype)
            share = sandbox.valid([make() for _ in range(_COMPARED)])
            if kind == "hybrid":
                report.valid_with_rules = share
            else:
                report.valid_without = share
        slow = [name for name in there if name in SLOW]
        if slow:  # the first time they load much, and build what every model needs
            note(0, 0, f"getting {' and '.join(slow)} ready")
            sandbox.check(_FIRST, slow)
        _search(report, Generator(known, seed, "hybrid", calls, dtype), sandbox, seconds, seed, note)
    if out is not None:
        _write(report, out)
    return report


def _search(report: Report, make: Generator, sandbox: Sandbox, seconds: float, seed: int, note: Tell) -> None:
    """Fill the report until time is up."""
    generator = np.random.default_rng(seed)
    began = time.perf_counter()
    known: dict[tuple[str, ...], Difference] = {}

    # Where all are slow, they share the whole time.
    most = {name: SLOW[name] for name in report.backends if name in SLOW}
    if len(most) == len(report.backends):
        most = {name: share / sum(most.values()) for name, share in most.items()}

    def passed() -> float:
        return time.perf_counter() - began

    while passed() < seconds:
        note(passed(), seconds, f"{report.models} models, {len(report.differences)} differences")
        model = make()
        names = [name for name, one in report.backends.items() if one.seconds <= most.get(name, 1.0) * passed()]
        outcomes = sandbox.check(model, names)
        for _ in range(2):  # other entries may make sense where these did not
            if outcomes and outcomes[0].kind == "unstable":
                model = redrawn(model, generator)
                outcomes = sandbox.check(model, names)
        report.models += 1
        if outcomes and outcomes[0].kind == "invalid":
            continue
        report.valid += 1
        report.edges |= model.edges
        report.covered |= {node.op.name for node in model.nodes}
        if outcomes and outcomes[0].kind == "unstable":
            report.unstable += 1
            continue
        eager_is_wrong = any(one.backend == "eager" and one.kind == "wrong" for one in outcomes)
        for outcome in outcomes:
            # What dies before any backend is begun died eagerly.
            tally = report.backends.setdefault(outcome.backend, Tally())
            tally.models += 1
            tally.seconds += outcome.seconds
            tally.kinds[outcome.kind] += 1
            if outcome.kind == "same":
                tally.worst = max(tally.worst, outcome.excess)
            # Others are no worse for computing what eager computes.
            if outcome.differs and not (eager_is_wrong and outcome.kind == "wrong" and outcome.backend != "eager"):
                _difference(report, known, model, outcome, sandbox, lambda: passed() < seconds, note)
    report.seconds = passed()


def _difference(
    report: Report,
    known: dict[tuple[str, ...], Difference],
    model: Model,
    outcome: Outcome,
    sandbox: Sandbox,
    go_on: Callable[[], bool],
    note: Tell,
) -> None:
    """Count a difference that is known, or make a new one small and keep it."""
    mark: tuple[str, ...] = (outcome.backend, outcome.kind, _bare(outcome.message))
    if outcome.kind == "refuses" and mark in known:
        known[mark].seen += 1
        return
    note(0, 0, f"making a model smaller on which {outcome.backend} {_VERBS[outcome.kind]}")
    began = time.perf_counter()

    def still(candidate: Model) -> bool:
        found = sandbox.check(candidate, [outcome.backend])
        return any(one.kind == outcome.kind and _bare(one.message) == mark[2] for one in found)

    # A difference that is found late is made smaller too, for a while.
    small = minimise(model, still, lambda: go_on() or time.perf_counter() - began < 20)
    again = [one for one in sandbox.check(small, [outcome.backend]) if one.kind == outcome.kind]
    mark = mark if outcome.kind == "refuses" else (*mark, *sorted(node.op.name for node in small.nodes))
    if mark in known:
        known[mark].seen += 1
        return
    excess = again[0].excess if again else outcome.excess
    found = Difference(outcome.backend, outcome.kind, outcome.message, excess, small, calls=len(model.nodes))
    known[mark] = found
    report.differences.append(found)


_VERBS = {"wrong": "is wrong", "refuses": "raises an error", "dies": "dies", "hangs": "hangs"}


def _bare(message: str) -> str:
    """A message without what changes from model to model: numbers, names with numbers."""
    return re.sub(r"0x[0-9a-f]+|\b\w*\d\w*\b|[\[\](),.]", "", message).strip()[:160]


def _write(report: Report, out: Path) -> None:
    """A file for each difference."""
    folder(out)
    for number, one in enumerate(report.differences):
        words = "-".join(re.sub(r"\W+", "_", name) for name in one.operators[:3])
        place = out / f"{one.backend}-{one.kind}-{words or 'model'}-{number}.py"
        try:
            text = reproducer(one.model, one.backend, f"{one.backend} {_VERBS[one.kind]}: {one.message}")
        except Exception as error:
            raise AssayError(f"The reproducer {place} cannot be written ({error}).") from error
        place.write_text(text, encoding="utf-8")
        report.differences[number] = replace(one, file=str(place))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
