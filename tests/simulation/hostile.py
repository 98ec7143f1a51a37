"""Hostile nodes: real `DhtNode`s that join, call and sign like any other, and answer as an attacker would.

So they stay valid whatever becomes of the wire format. Only what they answer is replaced, at one place (`_replace`).

- *Silent* ones answer pings, which is how they stay in tables, and let every question about nodes or records, and every
  record, fall.
- *Lying* ones name each other, nearest to what was asked, and twice as near nodes that they invent at addresses where
  nobody is; they know no records, and claim to keep all that they are given.

`keys_nearest` makes keys whose identifiers are nearer to a target than every honest node's (`FastScheme` makes trying
cheap; the difficulty of identifiers is 0 in simulations).
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from dhtdata.dht import DhtNode
from dhtdata.dht.envelope import CODED, COOKIE_END, HEADER_BYTES
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import FindNode, FindRecords, Store, nodes_fitting
from dhtdata.dht.routing import BUCKET_SIZE, Contact, identifier, number
from dhtdata.formats.addresses import Address
from dhtdata.signing import KEY_BYTES, SIGNATURE_BYTES, SigningKey
from tests.simulation.network import public_ip
from tests.simulation.swarm import PORT

_NOWHERE_SUBNET = 1 << 22


class _Unanswered(Exception):
    """Ends the handling of a request without a reply."""


class _Mute(asyncio.DatagramProtocol):
    """In front of a node's protocol: requests that it would rather not answer are forgotten."""

    def __init__(self, behind: asyncio.DatagramProtocol) -> None:
        self._behind = behind

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            self._behind.datagram_received(data, addr)
        except _Unanswered:
            pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._behind.connection_lost(exc)


def identifier_of(key: SigningKey) -> bytes:
    """The identifier of the node with this key, where identifiers cost no work."""
    return Identity.proven(key, 0).id


def keys_nearest(target: bytes, count: int, nearer_than: bytes, randomness: random.Random) -> list[SigningKey]:
    """Keys of nodes that are all nearer to the target than the node ``nearer_than``."""
    goal = number(target)
    limit = number(nearer_than) ^ goal
    found: list[SigningKey] = []
    while len(found) < count:
        key = SigningKey(randomness.randbytes(KEY_BYTES))
        if number(identifier_of(key)) ^ goal < limit:
            found.append(key)
    return found


def silence(node: DhtNode) -> None:
    """From now on the node answers nothing but pings and the like."""

    def unanswered(*_: Any) -> Any:
        raise _Unanswered

    _pretend(node)
    for protocol in _protocols(node):
        protocol.transport.protocol = _Mute(protocol)
        _replace(protocol, {FindNode: unanswered, FindRecords: unanswered, Store: unanswered})


def conspire(
    nodes: Sequence[DhtNode], contacts: Sequence[Contact], randomness: random.Random, invented: int = BUCKET_SIZE // 2
) -> None:
    """From now on these nodes, who are found at these contacts, lie, with so many invented nodes in every answer."""
    for node in nodes:
        _pretend(node)
        for protocol in _protocols(node):
            _replace(protocol, _lies(protocol, contacts, randomness, invented))


def quieten(node: DhtNode) -> None:
    """Stop the node's own upkeep: an attacker spends nothing on true tables."""
    for task in tuple(node._running):
        task.cancel()


def _lies(
    protocol: Any, contacts: Sequence[Contact], randomness: random.Random, invented: int
) -> dict[type, Callable[..., Any]]:
    def nearest(target: bytes) -> tuple[Any, ...]:
        goal = number(target)
        fellows = heapq.nsmallest(BUCKET_SIZE - invented, contacts, key=lambda each: each.long_id ^ goal)
        nearness = max(1, fellows[0].long_id ^ goal) if fellows else 1 << 100
        made_up = [_nobody(goal ^ randomness.randrange(nearness), randomness) for _ in range(invented)]
        return nodes_fitting([*made_up, *fellows])

    def nodes(sender: Contact, key: bytes, request: FindNode) -> Any:
        return _changed(protocol.rpc_find_node(sender, key, request), contacts=nearest(request.target))

    def records(sender: Contact, key: bytes, request: FindRecords) -> Any:
        told = protocol.rpc_find_records(sender, key, request)
        return _changed(told, contacts=nearest(request.target)[:8], records=(), more=False)

    def stored(sender: Contact, key: bytes, request: Store) -> Any:
        answer = protocol.rpc_store(sender, key, Store(records=()))
        return _changed(answer, kept=len(request.records))

    return {FindNode: nodes, FindRecords: records, Store: stored}


def _nobody(value: int, randomness: random.Random) -> Contact:
    return Contact(identifier(value), Address(public_ip(_NOWHERE_SUBNET + randomness.getrandbits(20)), PORT))


def _changed(reply: Any, **fields: Any) -> Any:
    return type(reply)(**{**{name: getattr(reply, name) for name in reply.__struct_fields__}, **fields})


def _pretend(node: DhtNode) -> None:
    """Say that we serve others, whether or not anybody reaches us."""
    for overlay in node.overlays:
        overlay.reachability.proven(math.inf)


def _protocols(node: DhtNode) -> list[Any]:
    return [overlay.protocol for overlay in node.overlays]


def _replace(protocol: Any, answers: dict[type, Callable[..., Any]]) -> None:
    protocol._rpcs.update(answers)


def resigned(datagram: bytes, key: SigningKey, to: bytes = b"") -> bytes:
    """The same datagram signed anew, whatever it says: what a hostile node can do to get past the signature.

    ``to``: whom the signature names.
    """
    signer, signature = COOKIE_END + 1, HEADER_BYTES - SIGNATURE_BYTES
    start = datagram[:signer] + key.public + datagram[signer + KEY_BYTES : signature]
    body = datagram[HEADER_BYTES:]
    return start + key.sign("dhtdata datagram", start[:2] + start[CODED:] + body + to) + body
