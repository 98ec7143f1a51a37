"""Web seeds: base URLs of static mirrors (`dhtdata.mirror`), as users, manifests and tickets name them.

Below the base lies what a peer serves: ``<base>/v1/blobs/<digest>`` and the rest. Canonical text, at most 512
characters::

    https://host[:port]/prefix      http://…       file:///absolute/folder

Scheme and host in lower case (host names outside ASCII in their IDNA form), no port that is the scheme's own, no slash
at the end, escapes in upper case. Rejected: other schemes, user names and passwords, queries, fragments, control
characters, white space, empty or dotted path parts, IP addresses in any other form than their usual one
(``2130706433``, ``0177.0.0.1``, ``127.1``), ports outside 1 to 65535.

Who named a web seed decides how far it is believed. What the *user* named himself may be in his own networks, a folder,
and may redirect. What a manifest or a ticket names must be a global address on a port that web servers use (80, 443 or
1024 and above), else anybody could make readers knock at the services of their own machines. What its text shows is
refused here; a name is looked up only when it is dialled, and the address that is dialled is what is checked
(`dhtdata.transfer.dialling`).

In the ``ext`` of manifests and tickets the key ``web_seeds`` holds up to 8 of them, separated by spaces. Readers that
do not know the key ignore it, and readers that know it leave out what they do not understand.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin

from dhtdata.errors import FormatError
from dhtdata.formats.addresses import FIRST_PORT, Address, scope

EXT_KEY = "web_seeds"
MAX_WEB_SEEDS = 8
MAX_URL_CHARACTERS = 512
MAX_LOCATION_CHARACTERS = 4_096
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_FILE = "file"
_WEB = re.compile(r"(\[[^\[\]]*\]|[^/:\[\]]*)(?::([0-9]{1,5}))?(/.*)?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


@dataclass(frozen=True, slots=True)
class WebSeed:
    """The base URL of a mirror, canonical. ``named``: the user named it himself; it is the same seed either way."""

    url: str
    named: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if _canonical(self.url) != self.url:
            raise FormatError(f"web seed {self.url[:80]!r} is not in canonical form")
        if not self.named:
            _check_published(self.url)

    @classmethod
    def parse(cls, text: str, *, named: bool = False) -> WebSeed:
        """From a URL. FormatError says what is wrong with it."""
        return cls(_canonical(text), named)

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path | None:
        """The folder of a ``file://`` mirror; None for one on the web."""
        return Path(unquote(self.url.removeprefix("file://"))) if self.url.startswith("file:") else None


Provider = Address | WebSeed


@dataclass(frozen=True, slots=True)
class Hop:
    """One HTTP request on its way: where to connect and what to ask for there.

    ``trusted``: connect wherever the host leads; otherwise to global addresses only.
    """

    scheme: str
    host: str
    port: int
    target: str
    trusted: bool

    @property
    def url(self) -> str:
        return f"{self.scheme}://{_authority(self.scheme, self.host, self.port)}{self.target}"


def first_hop(seed: WebSeed, path: str) -> Hop:
    """The request for ``path`` (``/v1/…``) at a web seed that is not a folder."""
    parts = _parts(seed.url)
    return Hop(parts.scheme, parts.host, parts.port, parts.path + path, seed.named)


def next_hop(seed: WebSeed, hop: Hop, location: str) -> Hop:
    """Where a redirect leads. FormatError if it leads anywhere but to a place where it may.

    Only what the user named may redirect, and even that only within its own host (its port, or HTTPS) or to global
    addresses: who controls a public server must not lead readers into their own networks. HTTPS stays HTTPS.
    """
    if not seed.named:
        raise FormatError(f"{hop.url} redirects, which only web seeds that the user names may do (--web-seed)")
    if len(location) > MAX_LOCATION_CHARACTERS:
        raise FormatError(f"{hop.url} redirects to an address of {len(location)} characters")
    try:
        base, _, query = urljoin(hop.url, location).partition("#")[0].partition("?")
    except ValueError as failure:
        raise FormatError(f"{hop.url} redirects to a malformed address") from failure
    if query and not _printable(query):
        raise FormatError(f"{hop.url} redirects to a malformed address")
    parts = _split(base, MAX_LOCATION_CHARACTERS)
    if parts.scheme == _FILE or (hop.scheme == "https" and parts.scheme != "https"):
        raise FormatError(f"{hop.url} redirects to {parts.scheme}://, which is refused")
    home = _parts(seed.url)
    trusted = parts.host == home.host and parts.port in (home.port, _PORTS["https"])
    if not trusted:
        _check_global(parts, f"{hop.url} redirects to {parts.host}")
    return Hop(parts.scheme, parts.host, parts.port, (parts.path or "/") + (f"?{query}" if query else ""), trusted)


def port_allowed(port: int) -> bool:
    """Whether a stranger's web seed may be at this port: what web servers use, or what no system service does."""
    return port in _PORTS.values() or port >= FIRST_PORT


def to_ext(seeds: Iterable[WebSeed]) -> dict[str, str]:
    """The entry of an ``ext`` map. FormatError if there are too many, or any that only their user can reach."""
    urls = list(dict.fromkeys(seed.url for seed in seeds))
    if len(urls) > MAX_WEB_SEEDS:
        raise FormatError(f"{len(urls)} web seeds are named, at most {MAX_WEB_SEEDS} are allowed")
    for url in urls:
        _check_published(url)
    return {EXT_KEY: " ".join(urls)} if urls else {}


def from_ext(ext: Mapping[str, str]) -> tuple[WebSeed, ...]:
    """Web seeds of an ``ext`` map. What is malformed, or of a later version, is left out."""
    found: dict[WebSeed, None] = {}
    for text in ext.get(EXT_KEY, "").split(" ", MAX_WEB_SEEDS)[:MAX_WEB_SEEDS]:
        try:
            found[WebSeed.parse(text)] = None
        except FormatError:
            continue
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Parts:
    """``host`` is an IP literal without brackets, or a name; of a folder only ``path`` counts, its canonical URL."""

    scheme: str
    host: str
    port: int
    path: str


def _canonical(text: str) -> str:
    parts = _split(text, MAX_URL_CHARACTERS)
    if parts.scheme == _FILE:
        return parts.path
    _check_path(parts.path, text)
    path = _ESCAPE.sub(lambda escape: escape[0].upper(), parts.path.removesuffix("/"))
    return f"{parts.scheme}://{_authority(parts.scheme, parts.host, parts.port)}{path}"


@lru_cache(maxsize=1_024)
def _parts(url: str) -> _Parts:
    return _split(url, MAX_URL_CHARACTERS)


def _split(text: str, limit: int) -> _Parts:
    """Parts of a URL; the path of one on the web is as it was written."""
    shown = repr(text[:80])
    if len(text) > limit:
        raise FormatError(f"URL {shown}… has {len(text)} characters, at most {limit} are allowed")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in (*_PORTS, _FILE):
        raise FormatError(f"{shown} is no web seed: expected https://…, http://… or file:///absolute/folder")
    if scheme == _FILE:
        return _Parts(scheme, "", 0, _folder_url(rest, shown))
    if not text.isprintable() or " " in text or "\\" in text:
        raise FormatError(f"{shown} is no web seed: it has white space, a backslash or control characters")
    if "?" in rest or "#" in rest:
        raise FormatError(f"{shown} is no web seed: leave out what begins with ? or #")
    if "@" in rest.partition("/")[0]:
        raise FormatError(f"{scheme}://… is no web seed: user names and passwords do not belong into it")
    match = _WEB.fullmatch(rest)
    if match is None:
        raise FormatError(f"{shown} is no web seed: host or port is malformed")
    port = int(match[2]) if match[2] else _PORTS[scheme]
    if not 1 <= port <= 65_535:
        raise FormatError(f"{shown} is no web seed: ports are 1 to 65535")
    path = match[3] or ""
    if _PATH.fullmatch(path) is None:
        raise FormatError(f"{shown} is no web seed: write characters such as {_odd(path)!r} as %XX")
    return _Parts(scheme, _host(match[1], shown), port, path)


def _check_path(path: str, text: str) -> None:
    parts = path.removesuffix("/").split("/")[1:]
    if any(unquote(part) in ("", ".", "..") or not _printable(unquote(part)) for part in parts):
        raise FormatError(f"{text[:80]!r} is no web seed: its path has empty, dotted or unprintable parts")


def _folder_url(rest: str, shown: str) -> str:
    host, slash, path = rest.partition("/")
    name = unquote(slash + path)
    if host.lower() not in ("", "localhost") or not slash:
        raise FormatError(f"{shown} is no folder: write it as file:///absolute/folder")
    folder = PurePosixPath("/" + name.strip("/"))
    if not name.isprintable() or ".." in folder.parts or folder.parent == folder:
        raise FormatError(f"{shown} is no folder of a mirror: it is /, or has .. or control characters in it")
    return folder.as_uri()


def _host(text: str, shown: str) -> str:
    """Canonical: an IP literal without brackets, or a name in lower-case ASCII."""
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address("" if "%" in text else text[1:-1]))
        except ValueError as failure:
            raise FormatError(f"{shown} is no web seed: {text} is not an IPv6 address") from failure
    try:
        name = text.encode("idna").decode("ascii").lower() if not text.isascii() else text.lower()
    except UnicodeError as failure:
        raise FormatError(f"{shown} is no web seed: {text[:64]!r} is not a host name") from failure
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as failure:
            raise FormatError(
                f"{shown} is no web seed: write IP addresses like 192.0.2.7 or [2001:db8::7]"
            ) from failure
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise FormatError(f"{shown} is no web seed: {name[:64]!r} is not a host name")
    return name


def _authority(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port == _PORTS[scheme] else f"{shown}:{port}"


def _check_published(url: str) -> None:
    """FormatError for what only the user himself may name."""
    parts = _parts(url)
    if parts.scheme == _FILE:
        raise FormatError(f"web seed {url[:80]} is a folder, which only its own machine can read: name a web server")
    _check_global(parts, f"web seed {url[:80]}")


def _check_global(parts: _Parts, what: str) -> None:
    if not port_allowed(parts.port):
        raise FormatError(f"{what}, port {parts.port}: only ports 80, 443 and from {FIRST_PORT} on are asked")
    if ":" in parts.host or _NUMBER.fullmatch(parts.host.rpartition(".")[2]):
        if scope(parts.host) != "global":
            raise FormatError(f"{what} is not an address that everybody reaches")
    elif "." not in parts.host:
        raise FormatError(f"{what} is not a name that everybody can look up: write the whole host name")


def _printable(text: str) -> bool:
    return text.isprintable() and " " not in text


def _odd(path: str) -> str:
    return next((c for c in path if not c.isascii() or _PATH.fullmatch(c) is None), "%")
