"""The shared cache: what one machine made, another takes; damage is noticed; trouble there stops nothing here."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab, cache, memory, shared
from assay.nn import mlp
from assay.recipe import Recipe


def count(folder: str, value: int, seconds: float = 0.0) -> dict[str, torch.Tensor]:
    """Leaves a file for every time that it is really done."""
    (Path(folder) / f"done-{os.getpid()}-{threading.get_ident()}-{len(os.listdir(folder))}").touch()
    time.sleep(seconds)
    return {"x": torch.arange(value), "none": torch.zeros(0, 3), "one": torch.tensor(2.5)}


def fails_once(folder: str) -> dict[str, torch.Tensor]:
    if not os.listdir(folder):
        (Path(folder) / "tried").touch()
        raise RuntimeError("no")
    return {"x": torch.ones(1)}


@pytest.fixture
def tally(tmp_path: Path) -> Path:
    folder = tmp_path / "tally"
    folder.mkdir()
    return folder


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """``machines(n)``: from now on we are machine n, with a disk of its own."""

    def be(number: int) -> None:
        monkeypatch.setenv("ASSAY_HOME", str(tmp_path / f"machine-{number}"))

    be(0)
    return be


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """A real S3 API on loopback with a bucket ``assay``: the environment that leads there."""
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="assay")
    yield environment
    running.stop()


@pytest.fixture
def bucket(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of the bucket."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return f"s3://assay{tmp_path}"


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shared cache of each kind, named in ASSAY_CACHE."""
    if request.param == "s3":
        url = request.getfixturevalue("bucket")
    else:
        url = {"folder": str(tmp_path / "shared"), "file": f"file://{tmp_path}/shared", "memory": f"memory://{tmp_path}"}[
            request.param
        ]
    monkeypatch.setenv("ASSAY_CACHE", url)
    return str(url)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared folder, named in ASSAY_CACHE."""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "shared"))
    return tmp_path / "shared"


def test_what_one_machine_made_another_takes(place: str, machines, table: Dataset, tally: Path) -> None:
    shared.SharedCache(place).check()
    recipe = Recipe(table, model=partial(mlp, 8, 2), epochs=2)
    first, work = Lab(seed=3).train(recipe), Lab().remember(count, folder=str(tally), value=5)
    machines(1)
    again, same = Lab(seed=3).train(recipe), Lab().remember(count, folder=str(tally), value=5)
    assert len(list(tally.iterdir())) == 1
    assert again.seconds == first.seconds  # it was not trained again
    assert again.history == first.history
    assert torch.equal(again.logits("test"), first.logits("test"))
    assert {name: value.tolist() for name, value in same.items()} == {name: value.tolist() for name, value in work.items()}
    assert len(cache.entries()) == 2  # now on this machine's disk, too


def test_nothing_but_entries_is_left_in_the_place(folder: Path, machines, tally: Path) -> None:
    Lab().remember(count, folder=str(tally), value=5)
    (entry,) = [path for path in folder.rglob("*") if path.is_file()]
    assert shared.is_whole(entry)


@pytest.mark.parametrize("how", ["cut", "changed", "facts"])
def test_damage_is_noticed_and_mended(folder: Path, machines, tally: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    Lab().remember(count, folder=str(tally), value=5)
    (entry,) = folder.rglob("*.safetensors")
    if how == "cut":
        entry.write_bytes(entry.read_bytes()[:-4])
    elif how == "changed":
        entry.write_bytes(entry.read_bytes()[:-1] + b"\7")
    else:  # whole tensors under another's facts
        save_file(load_file(entry), entry, {"facts": "{}"})
    machines(1)
    assert Lab().remember(count, folder=str(tally), value=5)["x"].tolist() == [0, 1, 2, 3, 4]
    assert len(list(tally.iterdir())) == 2
    assert "damaged" in caplog.text
    assert shared.is_whole(entry)


def _ask(home: str, folder: str, barrier: object) -> None:
    torch.set_num_threads(1)
    os.environ["ASSAY_HOME"] = home
    barrier.wait()  # type: ignore[attr-defined]
    memory.remember(count, folder=folder, value=5, seconds=1.0)


def test_machines_that_want_the_same_at_once_do_it_once(folder: Path, machines, tally: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_ask, args=(str(tmp_path / str(n)), str(tally), barrier)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(list(tally.iterdir())) == 1


def test_claims_on_s3(bucket: str, machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "DEAD", 0.3)
    place = shared.SharedCache(bucket)
    path = Path(os.environ["ASSAY_HOME"]) / f"{'a' * 32}.safetensors"
    path.parent.mkdir()
    claim = shared._Claim(place, place._place(path, ".claim"))
    assert claim.take()
    machines(1)
    assert not shared._Claim(place, claim._place).take()
    with place.turn(path) as is_here:  # the other machine does not renew it
        assert not is_here
        machines(2)
        assert not shared._Claim(place, claim._place).take()
    assert claim._read() is None


def test_a_claim_that_nobody_renews_is_taken_over(folder: Path, machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "DEAD", 0.6)
    monkeypatch.setattr(shared, "BEAT", 0.1)
    dead = shared._Claim(shared.SharedCache(str(folder)), f"{folder}/dead.claim")
    assert dead.take()
    dead.wait()
    assert not Path(dead._place).exists()


def test_a_claim_that_lives_is_waited_for(folder: Path, machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the renewals are in time, however busy this machine is: it goes on when there was one."""
    alive = shared._Claim(shared.SharedCache(str(folder)), f"{folder}/alive.claim")
    assert alive.take()
    clock = 0.0

    def sleep(_: float) -> None:
        nonlocal clock
        before = alive._read()
        while alive._read() == before:
            time.sleep(0.005)
        clock += shared.DEAD / 2

    monkeypatch.setattr(shared, "BEAT", 0.05)
    monkeypatch.setattr(shared, "time", SimpleNamespace(monotonic=lambda: clock, sleep=sleep))
    waiting = threading.Thread(target=alive.wait, daemon=True)
    with alive.renewed():
        waiting.start()
        until = time.monotonic() + 240
        while clock < 10 * shared.DEAD:
            assert waiting.is_alive(), "a claim that lives was taken for dead"
            assert time.monotonic() < until
            time.sleep(0.01)
        assert waiting.is_alive()
    waiting.join(240)
    assert not waiting.is_alive()


def test_a_claim_of_a_killed_process_of_this_machine_is_ours_at_once(folder: Path, machines) -> None:
    place = shared.SharedCache(str(folder))
    assert shared._Claim(place, f"{folder}/x.claim").take()
    assert shared._Claim(place, f"{folder}/x.claim").take()
    machines(1)
    assert not shared._Claim(place, f"{folder}/x.claim").take()


def test_what_fails_lets_others_try(folder: Path, machines, tally: Path) -> None:
    with pytest.raises(RuntimeError, match="no"):
        Lab().remember(fails_once, folder=str(tally))
    machines(1)
    assert Lab().remember(fails_once, folder=str(tally))["x"].tolist() == [1.0]


def test_a_place_that_fails_in_the_middle_stops_nothing(
    machines, tally: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ASSAY_CACHE", "/dev/null/shared")
    assert Lab().remember(count, folder=str(tally), value=5)["x"].tolist() == [0, 1, 2, 3, 4]
    assert "was not uploaded" in caplog.text
    with pytest.raises(AssayError, match="cannot be used"):
        shared.SharedCache("/dev/null/shared").check()


@pytest.mark.parametrize("url", ["nonsense://x", "chained::"])
def test_an_impossible_url_is_one_sentence(url: str, machines, tally: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", url)
    with pytest.raises(AssayError, match="ASSAY_CACHE names"):
        Lab().remember(count, folder=str(tally), value=5)
