"""Ticket: one pasteable string that leads to a dataset.

Text: ``dhtdata1`` followed by lower-case base32 (no padding) of payload ‖ 4 bytes of its BLAKE3 digest, so that a
mistyped or truncated ticket is recognised. Payload: canonical msgpack map with either a manifest digest or a
publisher's name (and optionally a sequence), up to 8 live addresses, and optionally the secret of a private network.
A ticket with a secret gives whoever reads it access to that network. Its ``ext`` may name web seeds
(`dhtdata.formats.web_seeds`), as many as fit.

At most 1,024 characters. Rejected: other prefixes, wrong checksum, other versions, neither or both targets.

`parse_target` reads whatever a user may paste where a dataset is asked for.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from dhtdata.digest import Digest, checksum
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address, AddressWire
from dhtdata.formats.codec import Format, check_ext, check_version, decode_msgpack, encode_msgpack
from dhtdata.formats.names import SCHEME, Name, check_name
from dhtdata.formats.web_seeds import WebSeed, from_ext, to_ext

VERSION = 1
PREFIX = "dhtdata1"
MAX_TICKET_CHARACTERS = 1_024
SECRET_BYTES = 32
_CHECKSUM_BYTES = 4


class _Wire(Format, frozen=True):
    version: int
    addresses: tuple[AddressWire, ...]
    manifest: Digest | None = None
    publisher: bytes | None = None
    name: str | None = None
    sequence: int | None = None
    secret: bytes | None = None
    ext: dict[str, str] = {}


@dataclass(frozen=True)
class Ticket:
    """Where to look (``addresses``, ``web_seeds``) and what for (``target``).

    ``secret``: of the private network it leads into.
    """

    target: Name | Digest
    addresses: tuple[Address, ...] = ()
    secret: bytes | None = field(default=None, repr=False)
    web_seeds: tuple[WebSeed, ...] = ()

    def __str__(self) -> str:
        name = self.target if isinstance(self.target, Name) else None
        wire = _Wire(
            version=VERSION,
            addresses=tuple(map(AddressWire.of, self.addresses)),
            manifest=None if isinstance(self.target, Name) else self.target,
            publisher=name.publisher if name else None,
            name=name.name if name else None,
            sequence=name.sequence if name else None,
            secret=self.secret,
            ext=to_ext(self.web_seeds),
        )
        payload = encode_msgpack(wire)
        text = PREFIX + base64.b32encode(payload + checksum(payload, _CHECKSUM_BYTES)).decode().lower().rstrip("=")
        if len(self.addresses) > MAX_ADDRESSES:
            raise FormatError(f"a ticket holds at most {MAX_ADDRESSES} addresses")
        if len(text) > MAX_TICKET_CHARACTERS:
            raise FormatError(
                f"a ticket has at most {MAX_TICKET_CHARACTERS} characters, this one {len(text)}: name fewer web seeds"
            )
        return text

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """FormatError says whether it is no ticket, damaged, or of a newer version."""
        if not text.startswith(PREFIX) or len(text) > MAX_TICKET_CHARACTERS:
            raise FormatError(f"{text[:40]!r} is not a ticket: it starts with {PREFIX}")
        body = text[len(PREFIX) :]
        try:
            data = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
        except ValueError as failure:
            raise FormatError("the ticket is damaged or cut short: copy it again, whole") from failure
        payload, check = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if body != body.lower() or len(data) <= _CHECKSUM_BYTES or checksum(payload, _CHECKSUM_BYTES) != check:
            raise FormatError("the ticket is damaged or cut short: copy it again, whole")
        wire = decode_msgpack(payload, _Wire, limit_bytes=MAX_TICKET_CHARACTERS, what="ticket")
        check_version(wire, VERSION, "ticket")
        check_ext(wire.ext, "ticket")
        if len(wire.addresses) > MAX_ADDRESSES or (wire.secret is not None and len(wire.secret) != SECRET_BYTES):
            raise FormatError("ticket: too many addresses or a malformed secret")
        addresses = tuple(address.address() for address in wire.addresses)
        return cls(_target(wire), addresses, wire.secret, from_ext(wire.ext))


def _target(wire: _Wire) -> Name | Digest:
    if wire.manifest is not None and wire.publisher is None and wire.name is None and wire.sequence is None:
        return wire.manifest
    if wire.manifest is None and wire.publisher is not None and wire.name is not None:
        check_name(wire.name)
        if len(wire.publisher) != 32 or (wire.sequence is not None and wire.sequence < 1):
            raise FormatError("ticket: malformed name")
        return Name(wire.publisher, wire.name, wire.sequence)
    raise FormatError("ticket: expected either a manifest digest or a publisher's name")


@dataclass(frozen=True, slots=True)
class LocalName:
    """A bare name: one that this user publishes, or the only one of that name in the store."""

    name: str


Target = Name | Digest | Ticket | LocalName


def parse_target(text: str) -> Target:
    """What a user pasted: a ticket, ``dhtdata://…``, a manifest digest, or a bare name. FormatError otherwise."""
    text = text.strip()
    if text.startswith(PREFIX) and len(text) > 63:
        return Ticket.parse(text)
    if text.startswith(SCHEME):
        return Name.parse(text)
    if len(text) == 64 and all(character in "0123456789abcdef" for character in text):
        return Digest.parse(text)
    try:
        check_name(text)
    except FormatError as failure:
        if text.startswith(PREFIX):
            raise FormatError("the ticket is damaged or cut short: copy it again, whole") from failure
        raise FormatError(
            f"{text[:80]!r} names no dataset: expected a ticket ({PREFIX}…), dhtdata://PUBLISHER/NAME, "
            "a manifest digest (64 hexadecimal digits) or a name that is in the store"
        ) from failure
    return LocalName(text)
