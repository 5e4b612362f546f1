"""Serves the atlas to this machine: pages are made when they are asked for, and show what has been recorded or run since.

The server listens on the loopback interface alone, answers only requests that name this machine (a page elsewhere that has its
own name point here gets nothing), and knows files by the names that the atlas gave them, never by paths. Its headers keep the
browser from asking anybody else for anything.
"""

from __future__ import annotations

import json
import mimetypes
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from assay import catalogue
from assay.atlas.build import Atlas
from assay.atlas.unrecorded import unrecorded
from assay.errors import AssayError
from assay.lab import board, evidence
from assay.lab.ledger import Ledger, Row, exists

LIVE = "live.json"
_HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Following:
    """An atlas that follows the evidence folder and the ledger.

    Args:
        make: makes an atlas; it is given the one before.
    """

    def __init__(self, make: Callable[[Atlas | None], Atlas] | None = None) -> None:
        self._make = make or _present
        self._lock = threading.Lock()
        self._atlas: Atlas | None = None
        self._seen: object = None
        self._looked = 0.0
        self._made: dict[str, bytes] = {}

    def page(self, name: str) -> bytes | None:
        """A file of the atlas as it is now; ``None`` if it has none of this name."""
        with self._lock:
            now = time.monotonic()
            if self._atlas is None or now - self._looked > 1:
                self._looked, seen = now, _inputs()
                if self._atlas is None or seen != self._seen:
                    self._atlas, self._seen, self._made = self._make(self._atlas), seen, {}
            if name not in self._atlas.files:
                return None
            if name not in self._made:
                self._made[name] = self._atlas[name].encode()
            return self._made[name]


def _present(before: Atlas | None) -> Atlas:
    papers = list(catalogue.papers().values())
    return Atlas(papers, unrecorded(papers), live=True, before=before)


def _inputs() -> object:
    """Something that is another whenever evidence or ledger have changed."""
    files = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in evidence.folder().glob("*.json")]
    return sorted(files), Ledger().measured() if exists() else []


def live() -> dict[str, Any]:
    """What is being measured, and what was finished last."""
    rows = Ledger().latest(60) if exists() else []
    return {"runs": board.boards(), "finished": [_finished(row) for row in rows]}


def _finished(row: Row) -> dict[str, Any]:
    page = f"papers/{row.key}.html" if row.key in catalogue.papers() else None
    last = row.error.strip().splitlines()[-1:] or [""]
    facts = {name: getattr(row, name) for name in ("key", "claim", "seed", "scale", "status", "values", "seconds", "finished")}
    return {**facts, "page": page, "error": last[0]}


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "assay"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        if self.headers.get("Host", "") not in {f"{host}:{self.server.server_port}" for host in _HOSTS}:
            self._send(HTTPStatus.FORBIDDEN, b"This server answers to this machine alone.\n", "text/plain", body)
            return
        name = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
        try:
            content = json.dumps(live()).encode() if name == LIVE else self.server.following.page(name)
        except AssayError as error:  # a damaged evidence file, a ledger that is no more: say so where somebody looks
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode(), "text/plain", body)
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, b"There is no such page.\n", "text/plain", body)
        else:
            self._send(HTTPStatus.OK, content, mimetypes.guess_type(name)[0] or "application/octet-stream", body)

    def _send(self, status: HTTPStatus, content: bytes, kind: str, body: bool) -> None:
        self.send_response(status)
        for header, value in _HEADERS.items():
            self.send_header(header, value)
        text = kind.startswith("text/") or kind.endswith(("xml", "json", "javascript"))
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for every request would bury the address."""


class _Server(ThreadingHTTPServer):
    def __init__(self, port: int, following: Following) -> None:
        self.following = following
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is nothing to report; anything else is."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(port: int, following: Following | None = None) -> ThreadingHTTPServer:
    """A server of the atlas on the loopback interface.

    Args:
        port: 0 takes a free one.
        following: what to serve; ``None`` takes the catalogue with all that is known of it.

    Raises:
        AssayError: the port is taken.
    """
    try:
        return _Server(port, following or Following())
    except OSError as error:
        raise AssayError(f"Port {port} cannot be opened ({error.strerror}): choose another with --port.") from error
