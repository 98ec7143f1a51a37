"""Does a node keep, or a search believe, what is forged, replayed, expired or too large?

10,000 of each kind (quick: 500) reach a real node as datagrams with good cookies and, unless that is the forgery, good
signatures, by the function that its socket calls; its rates are opened, so that no limit hides a mistake:

| kind | what |
|---|---|
| forged | one bit of a record is flipped, of any kind of record |
| forged_datagram | one bit of a datagram that stores a good record is flipped, after the cookie |
| older | good records of signers of whom the node has a higher sequence, names too |
| of_others | good records in datagrams that others sign and send |
| elsewhere | PeerRecords of the sender that lead to another IP |
| datagram_from_elsewhere | a good datagram, from another address than the cookie was given to |
| datagram_to_another | a good datagram for another node, from the very address |
| expired | claims and PeerRecords that are over, or claim to live for too long |
| oversized | records of more than 1,000 bytes with a good signature, datagrams of more than 1,200 |

Accepted is what the node holds afterwards and did not before. A search is given the records of all kinds but the
replayed ones, which are no forgery to a reader: accepted is what it tells. Good records are stored the same way, else
nothing would be proven.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.swarm import address, open_rates, protocol, running
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.dht import DhtNode, messages
from dhtdata.dht.envelope import CALL_BYTES, COOKIE_END, MAX_DATAGRAM_BYTES, REQUEST, Letter, seal
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import Store
from dhtdata.dht.rules import keys_of
from dhtdata.dht.search import Findings
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import AddressWire
from dhtdata.formats.codec import encode_msgpack
from dhtdata.formats.records import (
    CLOCK_TOLERANCE_S,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    PROVIDER_LIFETIME_S,
    SHARD_LIFETIME_S,
    VERSION,
    Delegation,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    Record,
    ShardClaims,
    decode,
    sign,
)
from dhtdata.network import PUBLIC
from dhtdata.signing import SigningKey

SIGNERS = 100
AT_ONCE = 200
_PORT = 20_000
_NEWEST = 1_000_000
_KINDS: tuple[type[Record], ...] = (NameRecord, PeerRecord, ProviderClaim, ShardClaims)


@dataclass(frozen=True)
class Sender:
    """Somebody with a key and an address of its own."""

    identity: Identity
    ip: str
    port: int

    @property
    def key(self) -> SigningKey:
        return self.identity.key


class Forger:
    """Makes records and datagrams for a node."""

    def __init__(self, node: DhtNode, seed: int) -> None:
        self.node = node
        self.randomness = random.Random(seed)
        self.senders = [
            Sender(
                Identity.client(SigningKey(self.randomness.randbytes(32))),
                f"127.{self.randomness.randrange(1, 255)}.{self.randomness.randrange(256)}.{position % 250 + 1}",
                _PORT + position,
            )
            for position in range(SIGNERS)
        ]

    def sender(self) -> Sender:
        return self.randomness.choice(self.senders)

    def record(
        self, kind: type[Record], sender: Sender, sequence: int, label: bytes = b"", expires: int | None = None
    ) -> Record:
        """A record that differs from all others unless ``label`` says what it is about."""
        label = label or self.randomness.randbytes(32)
        now = int(time.time())
        if kind is NameRecord:
            root = sender.key
            delegation = Delegation(root=root.public, number=1, release=root.public).signed(root)
            name = f"name-{Digest.of(label).hex()[:16]}"
            return NameRecord(delegation, name, sequence, Digest.of(self.randomness.randbytes(8)), now + 600)
        if kind is PeerRecord:
            wire = AddressWire(ip=bytes(map(int, sender.ip.split("."))), port=sender.port)
            return PeerRecord((wire,), sequence, now + SHARD_LIFETIME_S if expires is None else expires)
        if kind is ProviderClaim:
            over = now + PROVIDER_LIFETIME_S if expires is None else expires
            return ProviderClaim(Digest.of(label), True, sequence, over)
        return ShardClaims(Digest.of(label)[:20], sequence, now + SHARD_LIFETIME_S if expires is None else expires)

    def datagram(self, records: tuple[bytes, ...], sender: Sender, node: DhtNode | None = None) -> bytes:
        """A good one that asks the node to keep these."""
        cookie = protocol(node or self.node)._cookies.give(sender.ip, sender.port, asyncio.get_running_loop().time())
        body = messages.encode(Store(records=records))
        letter = Letter(REQUEST, self.randomness.randbytes(CALL_BYTES), cookie, True, body)
        return seal(PUBLIC, sender.identity, letter)

    def flipped(self, data: bytes, first: int = 0) -> bytes:
        changed = bytearray(data)
        changed[self.randomness.randrange(first, len(data))] ^= 1 << self.randomness.randrange(8)
        return bytes(changed)

    def oversized(self, sender: Sender) -> bytes:
        """A record of a few bytes more than allowed, with a good signature, which `sign` would refuse to make."""
        claim = self.record(ProviderClaim, sender, 1)
        head = bytes((3, VERSION)) + sender.key.public
        bare = HEADER_BYTES + len(encode_msgpack(claim))
        padding = "x" * (MAX_RECORD_BYTES - bare + self.randomness.randrange(1, 30))
        payload = encode_msgpack({**_fields(claim), "ext": {"x": padding}})
        return head + sender.key.sign("dhtdata record", head + payload) + payload


def _fields(claim: Record) -> dict[str, object]:
    return {name: getattr(claim, name) for name in claim.__struct_fields__}


Sent = tuple[bytes, tuple[str, int]]
Made = tuple[bytes, Sender]


def forged(forger: Forger) -> Made:
    sender = forger.sender()
    kind = forger.randomness.choice(_KINDS)
    return forger.flipped(sign(forger.record(kind, sender, 1), sender.key).data), sender


def older(forger: Forger) -> Made:
    """See `newest`."""
    position = forger.randomness.randrange(SIGNERS)
    kind = _KINDS[position % len(_KINDS)]
    sequence = forger.randomness.randrange(1, _NEWEST)
    sender = forger.senders[position]
    return sign(forger.record(kind, sender, sequence, bytes((position,))), sender.key).data, sender


def newest(forger: Forger, position: int) -> Made:
    """What the node has of each signer before `older` comes."""
    sender = forger.senders[position]
    kind = _KINDS[position % len(_KINDS)]
    return sign(forger.record(kind, sender, _NEWEST, bytes((position,))), sender.key).data, sender


def of_others(forger: Forger) -> Made:
    owner, sender = forger.randomness.sample(forger.senders, 2)
    kind = forger.randomness.choice(_KINDS[1:])
    return sign(forger.record(kind, owner, 1), owner.key).data, sender


def elsewhere(forger: Forger) -> Made:
    owner, sender = forger.randomness.sample(forger.senders, 2)
    return sign(forger.record(PeerRecord, owner, 2 * _NEWEST), sender.key).data, sender


def expired(forger: Forger) -> Made:
    sender = forger.sender()
    kind = forger.randomness.choice(_KINDS[1:])
    lifetime_s = PROVIDER_LIFETIME_S if kind is ProviderClaim else SHARD_LIFETIME_S
    off_s = CLOCK_TOLERANCE_S + forger.randomness.randrange(5, 1_000_000)
    now = int(time.time())
    expires = now - off_s if forger.randomness.random() < 0.5 else now + lifetime_s + off_s
    return sign(forger.record(kind, sender, 2 * _NEWEST, expires=max(1, expires)), sender.key).data, sender


def oversized(forger: Forger) -> Made:
    sender = forger.sender()
    return forger.oversized(sender), sender


RECORDS: dict[str, Callable[[Forger], Made]] = {
    "forged": forged,
    "older": older,
    "of_others": of_others,
    "elsewhere": elsewhere,
    "expired": expired,
    "oversized": oversized,
}
UNBELIEVABLE = ("forged", "expired", "oversized")


def good(forger: Forger) -> Made:
    sender = forger.sender()
    kind = forger.randomness.choice((ProviderClaim, ShardClaims, NameRecord))
    return sign(forger.record(kind, sender, 1), sender.key).data, sender


def forged_datagrams(forger: Forger, count: int) -> Iterator[Sent]:
    for _ in range(count):
        data, sender = good(forger)
        yield forger.flipped(forger.datagram((data,), sender), COOKIE_END), (sender.ip, sender.port)


def from_elsewhere(forger: Forger, count: int) -> Iterator[Sent]:
    for _ in range(count):
        data, sender = good(forger)
        other = forger.sender()
        if other is not sender:
            yield forger.datagram((data,), sender), (other.ip, other.port)


def to_another(forger: Forger, count: int, other: DhtNode) -> Iterator[Sent]:
    for _ in range(count):
        data, sender = good(forger)
        yield forger.datagram((data,), sender, other), (sender.ip, sender.port)


def too_long(forger: Forger, count: int) -> Iterator[Sent]:
    for _ in range(count):
        data, sender = good(forger)
        datagram = forger.datagram((data,), sender)
        longer = MAX_DATAGRAM_BYTES - len(datagram) + forger.randomness.randrange(1, 300)
        yield datagram + bytes(longer), (sender.ip, sender.port)


def stored(forger: Forger, makers: Iterator[Made]) -> Iterator[Sent]:
    for data, sender in makers:
        yield forger.datagram((data,), sender), (sender.ip, sender.port)


def held(node: DhtNode) -> set[bytes]:
    return {data for _, records in node._holdings for data in records}


async def accepted(node: DhtNode, sent: Iterator[Sent]) -> int:
    """How many records more the node holds after these datagrams."""
    before, received = held(node), protocol(node).datagram_received
    for position, (datagram, addr) in enumerate(sent):
        received(datagram, addr)
        if position % AT_ONCE == 0:
            await asyncio.sleep(0)
    return len(held(node) - before)


def believed(forger: Forger, made: Iterator[Made]) -> int:
    """How many records a search for the very key tells of."""
    told = 0
    for data, _ in made:
        key = forger.randomness.randbytes(20)
        try:
            key = keys_of(decode(data))[0]
        except (FormatError, IntegrityError):
            pass  # it belongs nowhere: ask for anything
        told += len(Findings(key, time.time()).take(b"holder", [data]))
    return told


async def story(count: int, seed: int) -> tuple[dict[str, int], int]:
    """(accepted by kind, believed by searches)."""
    randomness = random.Random(seed)
    async with running(randomness, network=PUBLIC) as node, running(randomness) as other:
        await other.bootstrap([address(node)])
        open_rates(node)
        open_rates(other)
        forger = Forger(node, seed)
        if await accepted(node, stored(forger, (good(forger) for _ in range(SIGNERS)))) < SIGNERS:
            raise RuntimeError("good records are not kept: nothing is proven")
        if await accepted(node, stored(forger, (newest(forger, each) for each in range(SIGNERS)))) < SIGNERS:
            raise RuntimeError("good records are not kept: nothing is proven")
        kept = {
            name: await accepted(node, stored(forger, (make(forger) for _ in range(count))))
            for name, make in RECORDS.items()
        }
        kept["forged_datagram"] = await accepted(node, forged_datagrams(forger, count))
        kept["datagram_from_elsewhere"] = await accepted(node, from_elsewhere(forger, count))
        kept["datagram_to_another"] = await accepted(node, to_another(forger, count, other))
        kept["oversized"] += await accepted(node, too_long(forger, count))
        told = sum(believed(forger, (RECORDS[name](forger) for _ in range(count))) for name in UNBELIEVABLE)
        if believed(forger, (good(forger) for _ in range(SIGNERS))) < SIGNERS:
            raise RuntimeError("a search does not tell of good records: nothing is proven")
        return kept, told


def measure(quick: bool, seed: int) -> Result:
    count = 500 if quick else 10_000
    kept, told = asyncio.run(story(count, seed))
    return Result(
        figures={"forgeries_of_each_kind": count, **{f"forgeries_kept_{name}": each for name, each in kept.items()}},
        checks=[
            Check("forgeries_accepted", sum(kept.values()), "==", 0),
            Check("forgeries_believed", told, "==", 0),
        ],
    )


if __name__ == "__main__":
    alone(measure)
