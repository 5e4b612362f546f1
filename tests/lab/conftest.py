"""Databases that the lab's tests run against."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
import toy


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A real PostgreSQL server, or a visible skip where Debian's ``postgresql`` (or another's) is not installed."""
    pytest.importorskip("psycopg")
    if postgres_server.binaries() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    # The machine does not go down in a test; what the process may lose when it is killed is the same without fsync.
    with postgres_server.running(fsync="off") as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    server: postgres_server.Server = request.getfixturevalue("postgres")
    return server.url()


@pytest.fixture
def papers(home: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which assay has the toy paper beside its own."""
    site = str(toy.site(tmp_path / "site"))
    return {**os.environ, "PYTHONPATH": site, "ASSAY_EVIDENCE": str(tmp_path / "evidence"), "COLUMNS": "120"}
