"""Datagrams: the signed envelope around a message. Pure.

At most 1,200 bytes, so that a datagram crosses any path unfragmented::

    offset  size  field
    0       1     version (2)
    1       1     kind: 0 request, 1 reply, 2 challenge, 3 notice, 4 knock
    2       16    code of the network over bytes[0:2] ‖ bytes[18:] (constant in the public network)
    18      8     number of the call, chosen at random by who asks, repeated in whatever answers
    26      8     cookie: in a request the one that the receiver gave, in a reply or challenge a fresh one
    34      1     flags: 1 the sender is a client, 2 the signature names who is meant
    35      32    public key of the sender
    67      8     nonce of the sender's identifier (`identity`)
    75      64    Ed25519 signature over "dhtdata datagram" ‖ 0 ‖ bytes[0:2] ‖ bytes[18:75] ‖ body ‖ identifier of the
                  receiver, if the flags say so
    139     …     body (`messages`)

A knock and a challenge end after the cookie, a notice after the number of the call. Bytes 0 to 26 keep their meaning in
every later version, so that nodes of different versions can tell each other (a *notice* has the version of who sends
it).

What each field is for, checked in this order, the cheapest first:

- *size*, *version*, *code*: a stranger on a private network is dropped here, and gets no byte;
- *cookie*: the keyed digest of the address that the receiver saw (BEP 5's token, RFC 9000's address validation): who
  has none gets a challenge of 34 bytes, no more than it sent, so nobody's address can be used to flood somebody else
  (who knows that it has none *knocks*, with zeros for a cookie, rather than sign a request in vain);
- *signature*: because it covers the cookie, a request cannot be replayed from another address; because it covers the
  call, a reply belongs to one question; because it names the receiver, whom it was sent to cannot use it elsewhere.
  Only a ping to an address whose node is not known yet names nobody: it proves nothing about its sender but that
  somebody is there. (What no signature prevents: a machine between two nodes that forwards all that they send, unread,
  is taken by each for the other's address. It can then be silent, as any node can);
- *nonce*: the identifier follows from key and nonce, nobody can claim another's.

Rejected, as FormatError or IntegrityError and nothing else: other sizes and kinds, other versions, wrong signatures.

>>> from dhtdata.network import Network
>>> from dhtdata.signing import SigningKey
>>> who = Identity.client(SigningKey(bytes(32)))
>>> datagram = seal(Network(), who, Letter(REQUEST, bytes(8), bytes(8), True, b"body", to=bytes(20)))
>>> letter, key, identifier = unseal(datagram, bytes(20))
>>> (letter.body, letter.client, key == who.key.public, identifier == who.id)
(b'body', True, True, True)
"""

from __future__ import annotations

from dataclasses import dataclass

from dhtdata.dht.identity import NONCE_BYTES, Identity
from dhtdata.errors import FormatError
from dhtdata.formats.records import node_id
from dhtdata.network import CODE_BYTES, Network
from dhtdata.signing import KEY_BYTES, SIGNATURE_BYTES, verify

VERSION = 2
REQUEST, REPLY, CHALLENGE, NOTICE, KNOCK = 0, 1, 2, 3, 4
MAX_DATAGRAM_BYTES = 1_200
CALL_BYTES = 8
COOKIE_BYTES = 8
CODED = 2 + CODE_BYTES
CALL_END = CODED + CALL_BYTES
COOKIE_END = CALL_END + COOKIE_BYTES
_KEY = COOKIE_END + 1
_NONCE = _KEY + KEY_BYTES
_SIGNATURE = _NONCE + NONCE_BYTES
HEADER_BYTES = _SIGNATURE + SIGNATURE_BYTES
MAX_BODY_BYTES = MAX_DATAGRAM_BYTES - HEADER_BYTES
NO_COOKIE = bytes(COOKIE_BYTES)
_CLIENT, _ADDRESSED = 1, 2
_DOMAIN = "dhtdata datagram"


@dataclass(frozen=True, slots=True)
class Letter:
    """What a request or reply says besides who sends it. ``to``: who is meant, empty if whoever gets it."""

    kind: int
    call: bytes
    cookie: bytes
    client: bool
    body: bytes
    to: bytes = b""


def seal(network: Network, sender: Identity, letter: Letter) -> bytes:
    """The datagram. FormatError if it would be too large."""
    if len(letter.body) > MAX_BODY_BYTES:
        raise FormatError(f"body of {len(letter.body)} bytes, at most {MAX_BODY_BYTES} fit a datagram")
    start = bytes((VERSION, letter.kind))
    flags = (_CLIENT if letter.client else 0) | (_ADDRESSED if letter.to else 0)
    head = letter.call + letter.cookie + bytes((flags,)) + sender.key.public + sender.nonce
    rest = head + sender.key.sign(_DOMAIN, start + head + letter.body + letter.to) + letter.body
    return start + network.code(start, rest) + rest


def knock(network: Network, call: bytes) -> bytes:
    """Asks for a cookie: as long as the challenge that answers it."""
    start, rest = bytes((VERSION, KNOCK)), call + NO_COOKIE
    return start + network.code(start, rest) + rest


def challenge(network: Network, call: bytes, cookie: bytes) -> bytes:
    """The answer to a knock, or to a request from an address that is not proven."""
    start, rest = bytes((VERSION, CHALLENGE)), call + cookie
    return start + network.code(start, rest) + rest


def notice(network: Network, call: bytes) -> bytes:
    """The answer to a request of another version: the first byte says which one this node speaks."""
    start = bytes((VERSION, NOTICE))
    return start + network.code(start, call) + call


def of_network(network: Network, datagram: bytes) -> bool:
    """Whether a member of the network made the datagram (of whatever version)."""
    return network.member_made(datagram[2:CODED], datagram[:2], datagram[CODED:])


def unseal(datagram: bytes, own_id: bytes) -> tuple[Letter, bytes, bytes]:
    """Letter, public key and identifier of who sent it; size and signature are checked here, the network before.

    IntegrityError also if another than ``own_id`` is meant.
    """
    if not HEADER_BYTES < len(datagram) <= MAX_DATAGRAM_BYTES:
        raise FormatError(f"datagram of {len(datagram)} bytes, expected {HEADER_BYTES + 1} to {MAX_DATAGRAM_BYTES}")
    flags = datagram[COOKIE_END]
    if datagram[0] != VERSION or datagram[1] > REPLY or flags > _CLIENT | _ADDRESSED:
        raise FormatError(f"datagram of version {datagram[0]}, kind {datagram[1]} and flags {flags}: unknown")
    key = datagram[_KEY:_NONCE]
    body = datagram[HEADER_BYTES:]
    to = own_id if flags & _ADDRESSED else b""
    signed = datagram[:2] + datagram[CODED:_SIGNATURE] + body + to
    verify(key, datagram[_SIGNATURE:HEADER_BYTES], _DOMAIN, signed)
    call, cookie, client = datagram[CODED:CALL_END], datagram[CALL_END:COOKIE_END], bool(flags & _CLIENT)
    letter = Letter(datagram[1], call, cookie, client, body, to)
    return letter, key, node_id(key, datagram[_NONCE:_SIGNATURE])
