"""Ranges of blobs, read by threads: the shortest way from a socket to memory that somebody else verifies.

A `Connection` belongs to one thread at a time and blocks; any thread may `abort` it, which wakes the one that waits.
The standard library's ``http.client`` reads straight into the caller's memory and lets go of the GIL while it waits and
copies. Deadlines are the caller's: the socket's own timeout only ends a wait in which not one byte came.

Every answer is checked before a byte of its body is read: status 206, exactly the range asked, its exact length, no
compression, no other transfer coding, no redirect. What a server may do wrong ends as one of four errors:

| error | when |
|---|---|
| NotFoundError | 404 or 416: not there (now) |
| Busy | 429 or 503 with ``Retry-After``: ask again in ``retry_s`` |
| Changed | 412: what an ETag named is not there any more |
| PeerError | refused, timed out, cut off, or an answer to another question |

Why not aiohttp here: its stream hands over many small copies on the event loop; a client of it reached 0.35 to 0.5 of
what raw sockets with verification reach, threads over plain sockets 0.83 to 0.93 (2 cores, loopback).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from threading import Lock

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.web_seeds import MAX_REDIRECTS, REDIRECTS, Hop, WebSeed, first_hop, next_hop
from dhtdata.network import Network
from dhtdata.transfer.dialling import dial
from dhtdata.transfer.membership import member_headers

SILENCE_S = 10.0
MAX_RETRY_S = 60.0
_MAX_REASON = 80
_SHORT_BODY_BYTES = 4_096
_WAKE_BYTES = 64 << 10
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", re.ASCII)


class Busy(PeerError):
    """The provider has too much to do: it did nothing wrong. ``retry_s``: when to ask it again."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Changed(PeerError):
    """The bytes behind an ETag are not there any more."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a file, the size of all of it, and its ETag as it was sent."""

    body: bytes
    file_bytes: int
    etag: str


class Connection:
    """A keep-alive connection to one provider. Use from one thread at a time; `abort` from any."""

    def __init__(self, provider: Address | WebSeed, network: Network, source_ip: str = "::") -> None:
        self._provider = provider
        self._network = network
        self._source_ip = source_ip
        self._http: http.client.HTTPConnection | None = None
        self._there: tuple[str, str, int, bool] | None = None
        self._response: http.client.HTTPResponse | None = None
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._aborted = False
        self._left = 0
        self._wakes_at = 1
        self._ahead = b""
        self.used_s = time.monotonic()

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the last answer was read to its end."""
        alive = self._http is not None and self._http.sock is not None
        return alive and self._response is None and not self._aborted

    def open(self, path: str, first: int, length: int, headers: Mapping[str, str] | None = None) -> None:
        """Ask for bytes ``[first, first + length)`` of a path and check the head of the answer."""
        response = self._answer(path, f"bytes={first}-{first + length - 1}", headers or {})
        self._check(response, path, (first, length))
        self._begin(response, length)

    def tail(self, path: str, length: int) -> Tail:
        """The last ``length`` bytes of a file, or all of it if it is smaller."""
        response = self._answer(path, f"bytes=-{length}", {})
        self._check(response, path, (None, length))
        first, last, file_bytes = _content_range(response.getheader("Content-Range", ""))
        body = bytearray(last + 1 - first)
        self._begin(response, len(body))
        self.read_into(memoryview(body))
        return Tail(bytes(body), file_bytes, response.getheader("ETag", ""))

    def _begin(self, response: http.client.HTTPResponse, length: int) -> None:
        """Wait for the first byte of the body."""
        self._response, self._left, self._ahead = response, length, b""
        plain = self._http.sock if self._http is not None else None
        if plain is None or isinstance(plain, ssl.SSLSocket) or response.fp is None:
            return
        try:
            self._ahead = response.fp.read1(min(len(response.fp.peek()), length))
            # From here on the system's own deadlines: with Python's, every read would be two calls.
            plain.settimeout(None)
        except (OSError, ValueError) as failure:
            self.close()
            raise PeerError(f"{self._provider}: broke off ({_reason(failure)})") from failure

    def _answer(self, path: str, span: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        fields = {"Range": span, "Accept-Encoding": "identity", "User-Agent": "dhtdata", **headers}
        if isinstance(self._provider, WebSeed):
            return self._ask_web(self._provider, path, fields)
        hop = Hop("http", self._provider.ip, self._provider.port, path, trusted=True)
        fields |= member_headers(self._network, self._provider, path, time.time(), span)
        return self._ask(hop, fields)

    def _ask_web(self, seed: WebSeed, path: str, fields: Mapping[str, str]) -> http.client.HTTPResponse:
        """From a web seed; redirects are followed as far as `next_hop` lets them."""
        hop = first_hop(seed, path)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(hop, fields)
            if response.status not in REDIRECTS:
                return response
            location = response.getheader("Location", "")
            self.close()
            try:
                hop = next_hop(seed, hop, location)
            except FormatError as failure:
                raise PeerError(str(failure)) from failure
        raise PeerError(f"{seed.url}{path}: more than {MAX_REDIRECTS} redirects")

    def _ask(self, hop: Hop, fields: Mapping[str, str]) -> http.client.HTTPResponse:
        there = (hop.scheme, hop.host, hop.port, hop.trusted)
        if not self.reusable or there != self._there:
            self.close()
        fresh = self._http is None
        try:
            return self._request(hop, fields)
        except (http.client.RemoteDisconnected, ConnectionError) as failure:
            self.close()
            if fresh or self._aborted:
                raise PeerError(f"{self._provider}: no answer ({_reason(failure)})") from failure
            # An idle connection may have been closed by the other side at any time: one new try.
            return self._ask(hop, fields)
        except (OSError, http.client.HTTPException, ValueError) as failure:
            self.close()
            raise PeerError(f"{self._provider}: no answer ({_reason(failure)})") from failure

    def _request(self, hop: Hop, fields: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._http is None:
            self._http, self._wakes_at = self._connected(hop), 1
            self._there = (hop.scheme, hop.host, hop.port, hop.trusted)
        # The system's deadlines look like the end of the stream to whoever reads lines.
        self._http.sock.settimeout(SILENCE_S)
        self._http.putrequest("GET", hop.target, skip_accept_encoding=True, skip_host="Host" in fields)
        for name, value in fields.items():
            self._http.putheader(name, value)
        self._http.endheaders()
        self._wake_at(self._http.sock, 1)
        return self._http.getresponse()

    def _connected(self, hop: Hop) -> http.client.HTTPConnection:
        plain = dial(hop.host, hop.port, trusted=hop.trusted, source_ip=self._source_ip, made=self._watch)
        made: http.client.HTTPConnection
        try:
            plain.settimeout(SILENCE_S)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(SILENCE_S))
            if hop.scheme == "https":
                made = http.client.HTTPSConnection(hop.host, hop.port, timeout=SILENCE_S)
                # It takes the descriptor over: from the handshake on this is the socket to shut.
                made.sock = secured = _tls().wrap_socket(plain, server_hostname=hop.host, do_handshake_on_connect=False)
                plain = secured
                self._watch(secured)
                secured.do_handshake()
            else:
                made = http.client.HTTPConnection(hop.host, hop.port, timeout=SILENCE_S)
                made.sock = plain
        except BaseException:
            plain.close()
            raise
        # Else it would connect anew by itself, past what is checked here.
        made.auto_open = 0
        return made

    def _watch(self, plain: socket.socket) -> None:
        """This is the socket to shut, from its making on."""
        with self._lock:
            self._socket = plain
            if self._aborted:
                plain.close()

    def read_into(self, view: memoryview) -> None:
        """Exactly ``len(view)`` bytes of the body. PeerError if they do not come."""
        response = self._response
        if response is None or len(view) > self._left:
            raise ValueError(f"{len(view)} bytes of an answer that has {self._left} left")
        filled = 0
        try:
            while filled < len(view):
                count = self._receive(response, view[filled:], self._left - filled)
                if not count:
                    raise PeerError(f"{self._provider}: the answer broke off {self._left - filled} bytes early")
                filled += count
        except (OSError, http.client.HTTPException, ValueError) as failure:
            self.close()
            raise PeerError(f"{self._provider}: broke off ({_reason(failure)})") from failure
        except PeerError:
            self.close()
            raise
        self._left -= filled
        if not self._left:
            response.close()
            self._response = None
            self.used_s = time.monotonic()

    def _receive(self, response: http.client.HTTPResponse, view: memoryview, left: int) -> int:
        """Some bytes of the body, of which so many are left. 0 at its end."""
        if self._ahead:
            # What came with the head.
            some, self._ahead = self._ahead[: len(view)], self._ahead[len(view) :]
            view[: len(some)] = some
            return len(some)
        plain = self._http.sock if self._http is not None else None
        if plain is None or isinstance(plain, ssl.SSLSocket):
            return response.readinto(view)
        # As much as fits, in one call: each call more is one more change of threads.
        wake_bytes = min(_WAKE_BYTES, len(view))
        ahead = left - wake_bytes
        self._wake_at(plain, wake_bytes if ahead > 0 else 1)
        return plain.recv_into(view, min(len(view), ahead) if ahead > 0 else len(view), socket.MSG_WAITALL)

    def _wake_at(self, plain: socket.socket, byte_count: int) -> None:
        """Sleep until so many bytes are there (`socket(7)`, SO_RCVLOWAT): else every packet of 1,500 bytes wakes us.

        Only as long as at least that many will come after what is read: the kernel counts what was not read yet.
        """
        if byte_count != self._wakes_at and not isinstance(plain, ssl.SSLSocket):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, byte_count)
            self._wakes_at = byte_count

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        if self._http is not None:
            self._http.close()
            self._http = None
        with self._lock:
            self._socket = None

    def abort(self) -> None:
        """Make whoever waits on this connection stop waiting, now; for good."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                try:
                    # Not TLS's own, which would take its state from the thread that reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:
                    # Not connected yet or closed by the other side: nobody waits on it.
                    return

    def _check(self, response: http.client.HTTPResponse, path: str, span: tuple[int | None, int]) -> None:
        """Whether this is the answer; ``span`` as (first byte, or None for a tail, and length)."""
        try:
            self._judge(response, path, *span)
        except NotFoundError:
            # Reading its short body saves a connection.
            if not _read_away(response):
                self.close()
            raise
        except PeerError:
            response.close()
            self.close()
            raise

    def _judge(self, response: http.client.HTTPResponse, path: str, first: int | None, length: int) -> None:
        where = f"{self._provider.url}{path}"
        if response.status in (404, 416):
            raise NotFoundError(f"{where}: not there")
        if response.status == 412:
            raise Changed(f"{where}: other bytes than before")
        if response.status in (429, 503):
            raise Busy(f"{where}: busy (status {response.status})", _retry_s(response.getheader("Retry-After", "")))
        echoed = response.getheader("Content-Range", "")
        start, last, file_bytes = _content_range(echoed)
        asked = first if first is not None else max(file_bytes - length, 0)
        expected = length if first is not None else file_bytes - asked
        if response.status != 206 or start != asked or last + 1 - start != expected or not 0 < expected <= length:
            raise PeerError(f"{where}: asked for {length} bytes, got status {response.status}, range {echoed[:64]!r}")
        if response.getheader("Content-Encoding", "identity") != "identity":
            raise PeerError(f"{where}: a compressed body, which was not asked for")
        if response.chunked or response.getheader("Transfer-Encoding") is not None:
            raise PeerError(f"{where}: a transfer coding, which no range needs")
        lengths = response.headers.get_all("Content-Length", [])
        if len(set(lengths)) != 1 or response.length != expected:
            raise PeerError(f"{where}: announces {lengths} bytes for a range of {expected}")


def _read_away(response: http.client.HTTPResponse) -> bool:
    """Read a body that nobody wants, if it is short and all of it comes."""
    try:
        short = response.length is not None and response.length <= _SHORT_BODY_BYTES
        return short and len(response.read(_SHORT_BODY_BYTES)) <= _SHORT_BODY_BYTES and not response.length
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        response.close()


@cache
def _tls() -> ssl.SSLContext:
    """The system's certificates; made once, since that takes a while."""
    return ssl.create_default_context()


def _timeval(seconds: float) -> bytes:
    """``struct timeval``."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def blob_path(digest: Digest) -> str:
    return f"/v1/blobs/{digest}"


def _content_range(text: str) -> tuple[int, int, int]:
    """(first, last, bytes of the file); zeros, which no range has, if it says no such thing."""
    match = _RANGE.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else (0, -1, 0)


def _retry_s(text: str) -> float:
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1
    return float(min(max(seconds, 1), MAX_RETRY_S))


def _reason(failure: Exception) -> str:
    return (str(failure) or type(failure).__name__)[:_MAX_REASON]
