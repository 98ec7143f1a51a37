"""Proof of membership in HTTP: who holds a private network's secret can make the header, others get silence.

A request in a private network carries one header more::

    X-Dhtdata-Network: <unix seconds>-<32 hexadecimal digits>

The digits are `Network.code` of ``dhtdata http`` and, each after its length (4 bytes, big-endian), method, Host as sent
(the ``IP:PORT`` that was asked), path with query as sent, Range (empty if none) and the seconds. Rejected: no such
header or several, another form, another code, seconds more than `CLOCK_TOLERANCE_S` away from the server's clock.

Codes keep strangers out; they do not hide anything from who listens in on the wire, who may also repeat the very same
request until it is too old. In the public network there is no such header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dhtdata.formats.addresses import Address
from dhtdata.formats.records import CLOCK_TOLERANCE_S
from dhtdata.network import Network

HEADER = "X-Dhtdata-Network"
_DOMAIN = b"dhtdata http"
_FORM = re.compile(r"([0-9]{1,12})-([0-9a-f]{32})", re.ASCII)
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, as it stands on the wire. ``range``: the Range header, empty if there is none."""

    method: str
    host: str
    path: str
    range: str = ""

    def canonical(self, sent_s: int) -> bytes:
        """The bytes that the code vouches for."""
        # What a stranger sends need not be text: undecodable bytes come back as they were.
        parts = (self.method, self.host, self.path, self.range, str(sent_s))
        encoded = [part.encode("utf-8", "surrogateescape") for part in parts]
        return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in encoded)


def member_headers(network: Network, address: Address, path: str, now_s: float, span: str = "") -> dict[str, str]:
    """Headers that a GET of ``path`` at an address needs in this network: none in the public one.

    ``span`` is the Range header that goes with it. Host is among them: libraries leave out a port that is usual.
    """
    if network.secret is None:
        return {}
    sent_s = int(now_s)
    code = network.code(_DOMAIN, Asked("GET", str(address), path, span).canonical(sent_s))
    return {"Host": str(address), HEADER: f"{sent_s}-{code.hex()}"}


def member_asks(network: Network, asked: Asked, header: str, now_s: float) -> bool:
    """Whether a member of a private network asked this, lately."""
    match = _FORM.fullmatch(header)
    if match is None:
        return False
    sent_s = int(match[1])
    # The seconds as sent: 007 and 7 would be the same number, but not the same header.
    if str(sent_s) != match[1] or abs(now_s - sent_s) > CLOCK_TOLERANCE_S:
        return False
    return network.member_made(bytes.fromhex(match[2]), _DOMAIN, asked.canonical(sent_s))
