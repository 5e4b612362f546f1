"""A real PostgreSQL server in a temporary folder, reached through a Unix socket: for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def binaries() -> Path | None:
    """Where ``initdb`` and ``pg_ctl`` are: on the path, or where Debian puts them; the newest. ``None``: not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return there[-1].parent if there else None


class Server:
    """A running server.

    Args:
        folder: of the data and of the socket; it must belong to the user that the server runs as.
        options: further settings, as in ``{"fsync": "off"}``.
    """

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        bin_ = binaries()
        assert bin_ is not None
        self.folder = folder
        self._bin = bin_
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            entry = pwd.getpwnam("postgres")
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self._options = {"listen_addresses": "''", "unix_socket_directories": f"'{folder}'", **options}
        self._do("initdb", "-D", "data", "-U", "assay", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self._made = 0
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = " ".join(f"-c {name}={value}" for name, value in self._options.items())
        self._do("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash would: connections break, what was committed is kept."""
        self._do("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def url(self) -> str:
        """The URL of a fresh, empty database."""
        self._made += 1
        name = f"ledger{self._made}"
        self._do("createdb", "-h", str(self.folder), "-U", "assay", name)
        return f"postgresql+psycopg://assay@/{name}?host={self.folder}"

    def _do(self, name: str, *words: str) -> None:
        command = [str(self._bin / name), *words]
        # No pipes: the server would inherit them, and a reader of theirs would wait for as long as it runs.
        with (self.folder / "said").open("w+") as said:
            done = subprocess.run(command, cwd=self.folder, stdout=said, stderr=said, check=False, timeout=120, **self._user)
            said.seek(0)
            assert done.returncode == 0, f"{' '.join(command)}: {said.read()}"


@contextlib.contextmanager
def running(**options: str) -> Iterator[Server]:
    """A server for the time of a ``with`` block, without a trace afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="assay-postgres-"))  # short: the path of a Unix socket has 107 characters at most
    try:
        server = Server(folder, options)
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # a test may have left it stopped
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
