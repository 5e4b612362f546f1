"""Many machines: a real Ray cluster of two nodes, each with a disk of its own, a PostgreSQL ledger and a shared cache."""

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import postgres_server
import pytest
import toy
from toy import assay_command, wait_for

from assay.errors import AssayError
from assay.lab.cluster import MOVES, Terms, _joined, _Run, resources
from assay.lab.ledger import Ledger
from assay.lab.units import Unit

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed (pip install 'assay[cluster]')", allow_module_level=True)

#: Who does not know the token cannot use the cluster; Ray reads this when it is imported.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


class Machines:
    """A cluster of two nodes of one core each; the second can be killed and replaced."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.site = toy.site(folder / "site")
        self.homes = folder / "homes"
        self.stay = self.homes / "stay"
        self._settings = {
            "num_cpus": 1,
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
        }
        self._made = 0
        # Nodes take these with them: what a person sets on the machines of a cluster before `ray start`.
        self._environment = {"PYTHONPATH": str(self.site), "RAY_USAGE_STATS_ENABLED": "0"}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._settings, "env_vars": self._variables()})
        self.second = self._add()
        self.address = str(self._cluster.address)

    def _variables(self) -> dict[str, str]:
        self._made += 1
        return {**self._environment, "ASSAY_HOME": str(self.homes / str(self._made))}

    def _add(self) -> Any:
        return self._cluster.add_node(**self._settings, env_vars=self._variables())

    def kill(self) -> None:
        """The second node goes down in the middle of a unit, as when its power fails."""
        staying = self.homes / str(self._made) / "staying"
        staying.unlink(missing_ok=True)  # of a unit that came while the node before was being replaced, and is done
        self.stay.touch()
        wait_for(staying)
        self._cluster.remove_node(self.second, allow_graceful=False)

    def replace(self) -> None:
        """Another machine, with an empty disk, comes in its place; only then does the first go on."""
        self.second = self._add()
        self.stay.unlink()

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, postgres: postgres_server.Server) -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ASSAY_LEDGER", raising=False)
        patch.delenv("ASSAY_CACHE", raising=False)
        machines = Machines(tmp_path_factory.mktemp("cluster"))
        yield machines
        machines.shutdown()


@pytest.fixture
def terms(machines: Machines, postgres: postgres_server.Server, tmp_path: Path) -> dict[str, str]:
    """The environment of a person at a machine of the cluster: an empty ledger in PostgreSQL, an empty shared cache."""
    return {
        **os.environ,
        "PYTHONPATH": str(machines.site),
        "ASSAY_HOME": str(tmp_path / "home"),
        "ASSAY_LEDGER": postgres.url(),
        "ASSAY_CACHE": str(tmp_path / "shared"),
        "ASSAY_EVIDENCE": str(tmp_path / "evidence"),
        "COLUMNS": "120",
    }


def start(terms: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """A run in the background, in a process group of its own."""
    command = [sys.executable, "-m", "assay", "run", *words]
    return subprocess.Popen(
        command,
        env=terms,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background lets them ignore Ctrl-C, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def done_in(ledger: Ledger) -> set[tuple[str, int]]:
    """What is done; nothing may be there twice."""
    rows = [(row.claim, row.seed) for row in ledger.rows(status="done")]
    assert len(rows) == len(set(rows)), "something was counted twice"
    return set(rows)


def wait_until_done(ledger: Ledger, count: int, run: subprocess.Popen[str]) -> set[tuple[str, int]]:
    deadline = time.monotonic() + 240
    while len(finished := done_in(ledger)) < count:
        assert run.poll() is None, f"the run ended early: {run.communicate()}"
        assert time.monotonic() < deadline, f"only {len(finished)} of {count} came"
        time.sleep(0.05)
    return finished


def test_the_same_values_and_verdicts_as_on_one_machine(machines: Machines, terms: dict[str, str], tmp_path: Path) -> None:
    words = ("run", "dummy:quick", "elr:resists_wrong_labels", "--scale", "smoke", "--seeds", "3", "--json")
    here = {name: value for name, value in terms.items() if name not in ("ASSAY_LEDGER", "ASSAY_CACHE")}
    one = json.loads(assay_command({**here, "ASSAY_HOME": str(tmp_path / "one")}, *words, check=0).stdout)
    many = json.loads(assay_command(terms, *words, "--on", machines.address, check=0).stdout)
    told = ("seconds", "peak_bytes", "price", "date", "commit")  # of the run, not of its result
    for found in (*one, *many):
        assert found["seeds"] == 3
        for name in told:
            found.pop(name)
    assert many == one
    rows = Ledger(terms["ASSAY_LEDGER"]).rows()
    assert Counter((row.claim, row.status) for row in rows) == {("quick", "done"): 3, ("resists_wrong_labels", "done"): 3}
    # Nothing was trained on the machine that started the run, and both trainings of a seed are shared.
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert len(list((tmp_path / "shared").rglob("*.safetensors"))) == 6


def _kill_nodes(machines: Machines, terms: dict[str, str], kills: int, seeds: int) -> str:
    """Run two claims, kill the second node ``kills`` times in the middle; what is left of the story, for people."""
    ledger = Ledger(terms["ASSAY_LEDGER"])
    run = start(terms, "dummy:quick", "dummy:remembers", "--seeds", str(seeds), "--on", machines.address)
    finished: set[tuple[str, int]] = set()
    for kill in range(kills):
        wanted = max(len(finished) + 2, int(2 * seeds * (kill + 0.5) / (kills + 1)))
        wait_until_done(ledger, wanted, run)
        machines.kill()
        now = done_in(ledger)
        assert finished <= now, "something finished was lost"
        finished = now
        machines.replace()
    _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    rows = ledger.rows()
    assert Counter(row.status for row in rows) == {"done": 2 * seeds}
    assert done_in(ledger) == {(claim, seed) for claim in ("quick", "remembers") for seed in range(seeds)}
    assert all(row.values["A"] == float(row.seed) for row in rows if row.claim == "remembers")
    assert all(row.values == {"A": 1.0 + 0.01 * row.seed, "B": 0.5} for row in rows if row.claim == "quick")
    moved = said.count("machine lost")
    assert moved >= kills, said
    return f"{kills} kills, {2 * seeds} units, {moved} run again elsewhere, {len(rows)} rows, all done once"


def test_nodes_that_go_down_lose_nothing_and_nothing_counts_twice(machines: Machines, terms: dict[str, str]) -> None:
    _kill_nodes(machines, terms, kills=3, seeds=20)


@pytest.mark.slow
def test_ten_nodes_go_down(machines: Machines, terms: dict[str, str]) -> None:
    print(_kill_nodes(machines, terms, kills=10, seeds=60))


def test_a_killed_run_goes_on(machines: Machines, terms: dict[str, str]) -> None:
    ledger = Ledger(terms["ASSAY_LEDGER"])
    words = ("dummy:remembers", "--seeds", "12", "--on", machines.address)
    # The last four wait for the kill, however late it comes. Six are on their way at once: never only ones that wait.
    machines.stay.parent.mkdir(exist_ok=True)
    machines.stay.write_text("8")
    run = start(terms, *words)
    finished = wait_until_done(ledger, 4, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    machines.stay.unlink()
    again = start(terms, *words)
    _, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert finished < done_in(ledger)
    assert Counter((row.seed, row.status) for row in ledger.rows()) == {(seed, "done"): 1 for seed in range(12)}
    assert "/12]" not in said, "what was done was run again"


def test_what_goes_wrong_with_a_claim_is_recorded_once_and_not_retried(machines: Machines, terms: dict[str, str]) -> None:
    words = [f"dummy:{name}" for name in ("crashes", "dies", "hangs", "refuses", "quick")]
    done = assay_command(terms, "run", *words, "--seeds", "2", "--on", machines.address, check=1)
    rows = Ledger(terms["ASSAY_LEDGER"]).rows()
    assert {(row.claim, row.seed): row.status for row in rows} == {
        **{("crashes", 0): "done", ("crashes", 1): "crashed"},
        **{("dies", seed): "crashed" for seed in (0, 1)},
        **{("hangs", seed): "timeout" for seed in (0, 1)},
        **{("refuses", seed): "refused" for seed in (0, 1)},
        **{("quick", seed): "done" for seed in (0, 1)},
    }
    assert len(rows) == 10
    assert "machine lost" not in done.stderr
    assert "ZeroDivisionError: seed one" in done.stderr


def test_a_file_as_ledger_is_refused_on_several_machines(machines: Machines, terms: dict[str, str], tmp_path: Path) -> None:
    terms = {**terms, "ASSAY_LEDGER": f"sqlite:///{tmp_path / 'ledger.sqlite'}"}
    done = assay_command(terms, "run", "dummy:quick", "--on", machines.address, check=2)
    assert "several machines cannot share" in done.stderr
    assert "ASSAY_LEDGER=postgresql+psycopg://" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_with_other_code_is_refused(machines: Machines, terms: dict[str, str], tmp_path: Path) -> None:
    other = toy.site(tmp_path / "other") / "assay" / "papers" / "labels" / "dummy.py"
    other.write_text(toy.PAPER.replace('"B": 0.5', '"B": 0.6'))
    done = assay_command(
        {**terms, "PYTHONPATH": str(tmp_path / "other")}, "run", "dummy:quick", "--on", machines.address, check=2
    )
    assert "has other code of dummy:quick than the one that started the run" in done.stderr
    assert "Traceback" not in done.stderr
    assert Ledger(terms["ASSAY_LEDGER"]).rows() == []


def test_a_cluster_of_this_machine_alone_may_use_a_file(papers: dict[str, str], home: Path) -> None:
    papers = {name: value for name, value in papers.items() if not name.startswith("RAY_AUTH_")}
    done = assay_command(papers, "run", "dummy:quick", "--seeds", "3", "--on", "ray", "--workers", "2", "--json", check=0)
    (found,) = json.loads(done.stdout)
    assert found["arms"]["A"] == {"0": 1.0, "1": 1.01, "2": 1.02}
    assert len(Ledger(f"sqlite:///{home}/ledger.sqlite").rows(status="done")) == 3


def test_ctrl_c_ends_units_on_a_cluster(papers: dict[str, str], home: Path) -> None:
    run = start(papers, "dummy:hangs", "--seeds", "1", "--time-limit", "600", "--on", "ray", "--workers", "1")
    wait_for(home / "hanging")
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=240)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert "what was finished is kept" in said


def test_a_cluster_that_is_not_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find\nany running Ray instance.")

    monkeypatch.setattr(ray, "init", unreachable)
    with (
        pytest.raises(AssayError, match=r"'auto' is not reached \(Could not find any running Ray instance.\)"),
        _joined("auto", 0),
    ):
        pass


class Unlucky:
    """Stands in for Ray: every task's machine goes down, the first ``losses`` times."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, losses: int) -> None:
        self.losses = losses
        self.tasks = 0

    def remote(self, *_: Any) -> Any:
        if _ and isinstance(_[0], type | FunctionType):
            return self
        self.tasks += 1
        return self.tasks

    def options(self, **_: Any) -> Any:
        return self

    @property
    def take(self) -> Any:
        return self

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return references, []

    def get(self, reference: int, timeout: float = 0) -> dict[str, Any]:
        if timeout:
            return {}
        if self.losses:
            self.losses -= 1
            raise self.exceptions.RayError("the machine\nis gone")
        return {"status": "done", "seconds": 1.0, "error": ""}


@pytest.mark.parametrize(("losses", "status"), [(2, "done"), (MOVES, "done"), (MOVES + 1, "crashed")])
def test_a_unit_that_takes_too_many_machines_down_is_the_cause(tmp_path: Path, losses: int, status: str) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    unit = Unit("elr", "resists_wrong_labels", (0,), "smoke", "cpu", "f", 10.0)
    seen: list[str] = []
    moments = lambda unit, moment, details: seen.append(details.get("status", moment))  # noqa: E731
    _Run(Unlucky(losses), [unit], 1, ledger, moments, Terms(ledger.url), 1.0).finish()
    assert seen == ["start", "lost"] * min(losses, MOVES) + ["start", status]
    assert [(row.status, row.error) for row in ledger.rows()] == (
        [("crashed", f"{MOVES + 1} machines went down while they ran this unit; the last: the machine is gone")]
        if status == "crashed"
        else []  # the machine that finished it writes its row
    )


@pytest.mark.parametrize(
    ("device", "share", "wanted"),
    [
        ("cpu", 0.5, {"num_cpus": 1}),
        ("cuda", 0.25, {"num_cpus": 1, "num_gpus": 0.25}),
        ("4xcuda", 1.0, {"num_cpus": 4, "num_gpus": 4}),
    ],
)
def test_a_unit_gets_its_cores_and_its_part_of_a_gpu(device: str, share: float, wanted: dict[str, float]) -> None:
    assert resources(device, share) == wanted


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_an_impossible_share_is_one_sentence(share: float) -> None:
    with pytest.raises(AssayError, match="--gpu-share is"):
        resources("cuda", share)
