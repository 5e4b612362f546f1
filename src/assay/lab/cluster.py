"""Many machines: units as tasks of a Ray cluster.

A task runs its unit the way one machine's workers do (:mod:`assay.lab.workers`): in a process of its own, watched, with its
rows in the ledger before the task returns. What goes wrong with a claim is therefore recorded where it happened, and when
Ray says that a task failed, it was the machine: the unit goes elsewhere. A unit that was finished before its machine went
down is found in the ledger and not run again; the ledger's index lets nothing count twice.

Every machine has its own data sets and its own cache of trainings behind ``ASSAY_HOME``; they share the ledger
(``ASSAY_LEDGER``) and, if one is named, the cache of ``ASSAY_CACHE``. A machine whose code differs from that of the one that
started the run is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from assay.catalogue import find
from assay.errors import AssayError
from assay.fingerprint import code_fingerprint
from assay.lab.ledger import PATIENCE, Ledger
from assay.lab.machine import versions
from assay.lab.shared import shared_cache
from assay.lab.units import Unit, failed
from assay.lab.workers import Watch, run_units

#: How many machines a unit may lose before it is taken to be the cause (it may use up their memory).
MOVES = 5
#: Seconds between two looks at the progress of all units, and between two reports of one unit.
LOOK, REPORT = 0.5, 2.0
#: Bytes of Ray's store of objects on a cluster that we start: results lie in the ledger, next to nothing goes through it.
_STORE = 80 * 2**20


@dataclass(frozen=True)
class Terms:
    """What a task must know besides its unit.

    Attributes:
        ledger: URL of the database.
        node: the one machine that may run it, where the ledger is a file there; empty: any.
        versions: of assay and torch on the machine that started the run.
        environment: variables of that machine that hold everywhere.
        defaults: variables of that machine that hold where a machine has none of its own.
        time_limit: seconds, instead of the claim's own.
    """

    ledger: str
    node: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    time_limit: float | None = None


def run_on_ray(
    units: list[Unit],
    on: str,
    workers: int,
    ledger: Ledger,
    watch: Watch,
    time_limit: float | None = None,
    gpu_share: float = 1.0,
) -> None:
    """Run all units on a Ray cluster; returns when every one has its rows in the ledger.

    Args:
        units: what to run, in this order.
        on: ``"ray"`` starts a cluster on this machine, ``"auto"`` joins the one that runs here, ``"HOST:PORT"`` or
            ``"ray://HOST:PORT"`` another.
        workers: units at the same time; 0: as many as the cluster has cores (or GPUs) for.
        ledger: where the rows go; the machines must reach it.
        watch: is told what happens; besides its other moments, ``"lost"`` (error) when a machine went down with a unit.
        time_limit: seconds for each unit, instead of the claims' own.
        gpu_share: of one GPU, for a unit that computes on a GPU.

    Raises:
        AssayError: Ray is not installed, the cluster is not reached, the ledger cannot be shared, or a machine has other code.
    """
    place = shared_cache()
    if place is not None:
        place.check()
    with _joined(on, workers) as ray:
        terms = Terms(
            ledger=ledger.url,
            node=_only_node(ray, on, ledger),
            versions=_versions(),
            environment={"ASSAY_CACHE": place.url} if place else {},
            defaults={name: os.environ[name] for name in ("ASSAY_MIRROR",) if os.environ.get(name)},
            time_limit=time_limit,
        )
        _Run(ray, units, workers, ledger, watch, terms, gpu_share).finish()


def resources(device: str, gpu_share: float) -> dict[str, float]:
    """What Ray sets aside for a unit: a core for each device that it computes on, and its share of a GPU.

    Raises:
        AssayError: a share that Ray cannot give.
    """
    from assay.lab.lab import parse_device  # imports torch, which the process that watches a unit does not need

    kind, count = parse_device(device)
    if not (0 < gpu_share <= 1 or gpu_share == int(gpu_share) >= 1):
        raise AssayError(f"--gpu-share is {gpu_share}: give a part of one GPU, such as 0.25, or a whole number of them.")
    if kind.type != "cuda":
        return {"num_cpus": count}
    return {"num_cpus": count, "num_gpus": gpu_share if count == 1 else count}


# ------------------------------------------------------------------------------------------ on the machine that started it


@contextlib.contextmanager
def _joined(on: str, workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster for the time of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told about anybody's runs
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU keep their environment
    if on == "ray" and "RAY_AUTH_MODE" not in os.environ:
        # Nobody else on this machine may join. Without this, Ray leaves a token in the home folder, and clusters that are
        # started by hand later would ask for it.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise AssayError("--on needs Ray, which is not installed here: `pip install 'assay[cluster]'`.") from None
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # Ray prints there what it sees of machines
        try:
            if on == "ray":
                cores = workers or os.cpu_count() or 1
                ray.init(
                    "local",
                    num_cpus=cores,
                    include_dashboard=False,
                    object_store_memory=_STORE,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            elif on.startswith("ray://"):
                logging.getLogger("ray").setLevel("ERROR")
                ray.init(on)
            else:
                ray.init(on, **quiet)
        except Exception as error:  # a ConnectionError, a ValueError, a RuntimeError of versions: Ray has many
            why = " ".join(str(error).split())
            raise AssayError(
                f"The Ray cluster {on!r} is not reached ({why}): start it with `ray start`, or give --on ray for one of this "
                "machine's own."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _only_node(ray: Any, on: str, ledger: Ledger) -> str:
    """The one machine that can use the ledger, if it is a file; empty if all can."""
    if not ledger.is_file:
        return ""
    alive = [node for node in ray.nodes() if node["Alive"]]
    if on.startswith("ray://") or len(alive) != 1:
        raise AssayError(
            f"The ledger is a SQLite file ({ledger.place}), which several machines cannot share: name a database that all of "
            "them reach, as in ASSAY_LEDGER=postgresql+psycopg://USER:PASSWORD@HOST/NAME."
        )
    return str(alive[0]["NodeID"])


class _Run:
    """Units on their way through a cluster."""

    def __init__(
        self, ray: Any, units: list[Unit], workers: int, ledger: Ledger, watch: Watch, terms: Terms, gpu_share: float
    ) -> None:
        self.ray = ray
        self.waiting = list(reversed(units))
        self.workers = workers
        self.ledger = ledger
        self.watch = watch
        self.terms = terms
        self.gpu_share = gpu_share
        self.flying: dict[Any, Unit] = {}
        self.started: dict[Unit, float] = {}
        self.losses: Counter[Unit] = Counter()
        # No core is set aside for the board; if its machine goes down, Ray starts it again elsewhere.
        self.board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()
        self.task = ray.remote(_run_one)
        self.looked = self.room_known = float("-inf")
        self.room = 1

    def finish(self) -> None:
        """Until no unit is left. Whatever ends this early takes the units that are running along."""
        try:
            while self.waiting or self.flying:
                while self.waiting and len(self.flying) < self._room():
                    self._send(self.waiting.pop())
                ready, _ = self.ray.wait(list(self.flying), timeout=LOOK)
                self._look()
                for reference in ready:
                    self._take(reference)
        finally:
            for reference in self.flying:
                with contextlib.suppress(Exception):
                    self.ray.cancel(reference, force=True)

    def _room(self) -> int:
        """How many units may be on their way: twice what runs at once, so that nothing waits and a cluster can grow."""
        if self.workers:
            return self.workers
        if time.monotonic() - self.room_known > 5:
            self.room_known = time.monotonic()
            self.room = 2 * int(self.ray.cluster_resources().get("CPU", 1)) + 2
        return self.room

    def _send(self, unit: Unit) -> None:
        options = resources(unit.device, self.gpu_share)
        task = self.task.options(name=unit.name, max_retries=0, **options)  # we count the losses ourselves
        self.flying[task.remote(unit, self.terms, self.losses[unit], self.board)] = unit

    def _look(self) -> None:
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        with contextlib.suppress(Exception):  # the board's machine may just be going down: progress is no result
            on_their_way = set(self.flying.values())
            for (unit, attempt), (moment, details) in self.ray.get(self.board.take.remote(), timeout=5).items():
                if unit in on_their_way and attempt == self.losses[unit]:
                    self._show(unit, moment, details)

    def _show(self, unit: Unit, moment: str, details: dict[str, Any]) -> None:
        if unit not in self.started:
            self.started[unit] = time.monotonic()
            self.watch(unit, "start", {})
        if moment != "start":
            self.watch(unit, moment, details)

    def _take(self, reference: Any) -> None:
        unit = self.flying.pop(reference)
        try:
            self._end(unit, self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:  # our own code said no: it will everywhere
            if isinstance(error.cause, AssayError):
                raise AssayError(str(error.cause)) from None
            raise AssayError(
                f"A machine of the cluster cannot run assay ({' '.join(str(error.cause).split())}): install the same version "
                "of assay there as here."
            ) from error
        except self.ray.exceptions.RayError as error:
            self._lost(unit, " ".join(str(error).split()))

    def _lost(self, unit: Unit, why: str) -> None:
        self.losses[unit] += 1
        if self.losses[unit] <= MOVES:
            self._show(unit, "lost", {"error": why})
            self.started.pop(unit)
            self.waiting.append(unit)
            return
        seconds = time.monotonic() - self.started.get(unit, time.monotonic())
        error = f"{MOVES + 1} machines went down while they ran this unit; the last: {why}"
        self.ledger.add(failed(unit, "crashed", error, seconds))
        self._end(unit, {"status": "crashed", "seconds": seconds, "error": error})

    def _end(self, unit: Unit, details: dict[str, Any]) -> None:
        self._show(unit, "end", details)
        self.started.pop(unit)


class _Board:
    """The actor where units leave word of how far they are: the last word of each is enough."""

    def __init__(self) -> None:
        self.notes: dict[tuple[Unit, int], tuple[str, dict[str, Any]]] = {}

    def say(self, unit: Unit, attempt: int, moment: str, details: dict[str, Any]) -> None:
        """Leave word."""
        self.notes[unit, attempt] = (moment, details)

    def take(self) -> dict[tuple[Unit, int], tuple[str, dict[str, Any]]]:
        """What came in since the last look."""
        notes, self.notes = self.notes, {}
        return notes


# ------------------------------------------------------------------------------------------ on the machine that runs a unit


def _run_one(unit: Unit, terms: Terms, attempt: int, board: Any) -> dict[str, Any]:
    """One unit, in a process that is watched from here; its rows are in the ledger when this returns."""
    os.environ.update(terms.environment)
    for name, value in terms.defaults.items():
        os.environ.setdefault(name, value)
    _check_machine(unit, terms)
    ledger = Ledger(terms.ledger, patience=PATIENCE, keep=False)
    ended: dict[str, Any] = {}
    said = float("-inf")

    def watch(unit: Unit, moment: str, details: dict[str, Any]) -> None:
        nonlocal said
        if moment == "end":
            ended.update(details)
        elif moment == "start" or time.monotonic() - said > REPORT:
            said = time.monotonic()
            board.say.remote(unit, attempt, moment, details)

    if attempt and set(unit.seeds) <= set(ledger.done(unit.key, unit.claim, unit.scale, unit.device, unit.code)):
        return {"status": "done", "seconds": 0.0, "error": ""}  # the machine that went down had finished it
    run_units([unit], 1, ledger, watch, terms.time_limit)
    return ended


def _check_machine(unit: Unit, terms: Terms) -> None:
    """Refuse a machine that would measure something else.

    Raises:
        AssayError: says which machine, and what is other there.
    """
    import platform

    import ray

    here = platform.node()
    if terms.node and ray.get_runtime_context().get_node_id() != terms.node:
        raise AssayError(
            f"The machine {here} joined the cluster, and the ledger is a SQLite file elsewhere: name a database that all "
            "machines reach, as in ASSAY_LEDGER=postgresql+psycopg://USER:PASSWORD@HOST/NAME."
        )
    if _versions() != terms.versions:
        raise AssayError(
            f"The machine {here} has {_said(_versions())} and the run was started with {_said(terms.versions)}: install the "
            "same versions there."
        )
    try:
        code = code_fingerprint(find(unit.key).module, unit.claim)
    except AssayError:
        code = "none"
    if code != unit.code:
        raise AssayError(
            f"The machine {here} has other code of {unit.key}:{unit.claim} than the one that started the run: install the same "
            "version of assay there."
        )


def _versions() -> dict[str, str]:
    """Versions that must be the same everywhere; not the build of torch, which differs between processors."""
    found = versions()
    return {name: found[name].split("+")[0] for name in ("assay", "torch")}


def _said(found: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in found.items())
