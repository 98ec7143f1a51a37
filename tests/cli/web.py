"""A plain web server with ranges, for static mirrors: what any real one does, and no more."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dhtdata.formats.addresses import Address


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, folder: Path, asked: list[str]) -> None:
        self._folder = folder
        self._asked = asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self._asked.append(path)
        file = self._folder / path.lstrip("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole = file.read_bytes()
        first, stop = 0, len(whole)
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, stop = int(begin), min(int(end) + 1, len(whole)) if end else len(whole)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(whole)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - first))
        self.end_headers()
        if body:
            self.wfile.write(whole[first:stop])

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path, secure: ssl.SSLContext | None = None) -> Iterator[tuple[Address, list[str]]]:
    """Its address and the paths that were asked for. ``secure``: over HTTPS."""
    asked: list[str] = []
    handler = partial(_Handler, folder=folder, asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if secure is not None:
            server.socket = secure.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_port), asked
        finally:
            server.shutdown()
            thread.join()
