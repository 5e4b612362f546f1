"""Serving: this machine alone, names instead of paths, what is recorded or run since, a clean end."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from assay import catalogue
from assay.errors import AssayError
from assay.lab import board
from assay.lab.ledger import Ledger, Row

if TYPE_CHECKING:
    from .conftest import Made

serve = pytest.importorskip("assay.atlas.serve")
pytest.importorskip("altair")


@contextmanager
def serving(following: Any = None) -> Iterator[int]:
    """A server in the background; gives its port."""
    with serve.server(0, following) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running.server_port
        finally:
            running.shutdown()
            thread.join()


def get(port: int, path: str, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request, its path sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host if host is not None else f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    try:
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.fixture
def following(made: Made) -> Any:
    """The site of the other tests, made when it is asked for."""
    from assay.atlas.build import Atlas

    elr = catalogue.find("elr")
    return serve.Following(lambda before: Atlas([elr, made.evil], live=True, before=before))


def test_pages_come_with_headers_that_keep_the_browser_here(following: Any) -> None:
    with serving(following) as port:
        status, headers, body = get(port, "/")
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert b"Is it true?" in body
        assert get(port, "/", method="HEAD")[2] == b""
        for path, kind in (("/atlas.css", "text/css"), ("/papers/elr.html?x=1", "text/html"), ("/live.json", "application/json")):
            status, headers, body = get(port, path)
            assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert get(port, "/", method="POST")[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../build.py",
        "/..%2fbuild.py",
        "/papers/../../../etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/papers/",
        "/%00",
        "/nothing",
    ],
)
def test_only_names_of_the_atlas_are_known(following: Any, path: str) -> None:
    with serving(following) as port:
        assert get(port, path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "", "127.0.0.1", "127.0.0.1.evil.example:{port}"])
def test_requests_that_name_another_host_get_nothing(following: Any, host: str) -> None:
    with serving(following) as port:
        status, _, body = get(port, "/live.json", host.format(port=port))
        assert status == 403
        assert b"runs" not in body
        assert get(port, "/live.json", f"localhost:{port}")[0] == 200


def test_it_listens_to_this_machine_alone(following: Any) -> None:
    with serve.server(0, following) as running:
        assert running.server_address[0] == "127.0.0.1"
        with pytest.raises(AssayError, match="choose another with --port"):
            serve.server(running.server_port, following)


def test_what_is_recorded_meanwhile_is_shown(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.atlas.build import Atlas

    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path))
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(serve.time, "monotonic", lambda: next(clock))
    following = serve.Following(lambda before: Atlas([catalogue.find("elr")], before=before))
    assert b"not recorded yet</dt>" not in following.page("papers/elr.html")
    assert b"Some CPU" not in following.page("papers/elr.html")
    (tmp_path / "elr.json").write_text((made.around / "evidence" / "elr.json").read_text())
    assert b"Some CPU" in following.page("papers/elr.html")


def test_live_tells_what_runs_and_what_is_finished(home: Path) -> None:
    assert serve.live() == {"runs": [], "finished": []}
    assert not (home / "ledger.sqlite").exists()  # looking makes nothing
    Ledger().add([Row("elr", "memorises_less", 0, "laptop", "cpu", "0", values={"ELR": 0.5}, curves={"ELR": {"y": [1]}})])
    Ledger().add([Row("gone", "claim", 1, "laptop", "cpu", "0", status="crashed", error="Traceback\n  line\nValueError: no")])
    mine = board.Board()
    unit = {"key": "elr", "claim": "memorises_less", "name": "elr:memorises_less seed 1", "fraction": 0.5, "note": "epoch 3"}
    mine.show({"began": "2026-01-01T00:00:00+00:00", "total": 5, "finished": 1, "counts": {}, "units": [unit]}, now=True)
    (board.folder() / "999999999.json").write_text("{}")  # a run that was killed
    (board.folder() / "1.json").write_text("{")
    state = json.loads(json.dumps(serve.live()))
    assert [run["units"] for run in state["runs"]] == [[unit]]
    crashed, done = state["finished"]
    assert (crashed["status"], crashed["error"], crashed["page"]) == ("crashed", "ValueError: no", None)
    assert (done["values"], done["page"]) == ({"ELR": 0.5}, "papers/elr.html")
    mine.close()
    assert serve.live()["runs"] == []


def test_a_damaged_ledger_is_one_sentence(following: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("no database")
    monkeypatch.setenv("ASSAY_LEDGER", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with serving(following) as port:
        status, headers, body = get(port, "/live.json")
        assert (status, headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
        assert body.startswith(b"The ledger ")


def test_ctrl_c_ends_it_without_a_word(home: Path) -> None:
    command = [sys.executable, "-m", "assay", "atlas", "serve", "--port", "0"]
    # A shell that runs the tests in the background lets them ignore Ctrl-C, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith("http://127.0.0.1:")
        running.send_signal(signal.SIGINT)
        assert running.wait(240) == 0
        assert running.stderr.read().strip() == ""


def test_unrecorded_results_come_from_the_ledger(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.atlas.unrecorded import unrecorded
    from assay.fingerprint import code_fingerprint

    monkeypatch.setenv("ASSAY_EVIDENCE", str(tmp_path / "none"))
    paper, name = catalogue.find("elr"), "resists_wrong_labels"
    assert unrecorded([paper]) == {}
    code = code_fingerprint(paper.module, name)

    def add(seed: int, scale: str = "laptop", code: str = code) -> None:
        values = {"cross-entropy": 0.6 + 0.01 * seed, "ELR": 0.9}
        Ledger().add([Row("elr", name, seed, scale, "cpu", code, values=values)])

    add(0, "smoke")
    add(0, code="of long ago")
    assert unrecorded([paper]) == {}
    add(0)
    assert unrecorded([paper])["elr"][name]["verdict"] == "inconclusive"
    for seed in (1, 2, 3):
        add(seed)
    found = unrecorded([paper])["elr"][name]
    assert (found["verdict"], found["seeds"]) == ("holds", 4)
