"""Serves the built site to this machine, with headers that keep the browser from asking anybody else for anything."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from assay.errors import AssayError


class _Handler(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for every request would bury the address."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of this folder on the loopback interface.

    Raises:
        AssayError: the port is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise AssayError(f"Port {port} cannot be opened ({error.strerror}): choose another with --port.") from error
