"""Does anything break a node that gets 1,000,000 mutated datagrams, half of them signed again after the mutation?

Every kind of request and reply, challenge, notice and knock, valid and with a good cookie, is mutated (quick: 30,000):
bits flipped, bytes replaced, cut, stretched, repeated and spliced with another datagram's, one to four times; half the
time only what the signature covers, and then it is signed anew, so that it gets to the decoder and beyond. Replies
answer calls that the node has really made and waits for. Most go to the function that the socket calls, with its rates
opened; each hundredth crosses a real socket. Senders have 5,000 addresses of 127.0.0.0/8 (quick: 500), so that what is
remembered of addresses is full early on.

From the first fifth to the end nothing may have been raised or reported to the event loop, and no task, contact,
outstanding call or record may have been added (what the corpus itself stores is sent unmutated first); memory may grow
by 4 MiB at most. Afterwards the node must answer, and look up what a friend announces.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.outsider import every_request, heard_out, outsider
from benchmarks.dht_real.process import rss_bytes
from benchmarks.dht_real.swarm import LOOPBACK, OPEN, address, open_rates, protocol, publish, running
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.dht import DhtNode, messages
from dhtdata.dht.envelope import (
    COOKIE_BYTES,
    COOKIE_END,
    HEADER_BYTES,
    MAX_DATAGRAM_BYTES,
    REPLY,
    REQUEST,
    Letter,
    challenge,
    knock,
    notice,
    seal,
)
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import (
    ContactWire,
    Introduced,
    Met,
    Nodes,
    Pong,
    Records,
    Reply,
    Request,
    Stored,
)
from dhtdata.digest import Digest
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.records import (
    PROVIDER_LIFETIME_S,
    SHARD_LIFETIME_S,
    Delegation,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    ShardClaims,
    sign,
)
from dhtdata.signing import SigningKey
from tests.simulation.hostile import resigned

SIGNERS = 4
CALLS_AT_ONCE = 64
BATCH = 256
OVER_A_SOCKET = 100
_FIRST_PORT = 10_000
_SETTLED = 0.2


@dataclass(frozen=True)
class State:
    """What must not grow."""

    tasks: int
    contacts: int
    records: int
    outstanding: int
    rss: int


@dataclass
class Outcome:
    """``at_start`` is the state after the first fifth."""

    sent: int = 0
    signed: int = 0
    raised: int = 0
    reported: list[dict[str, Any]] = field(default_factory=list)
    answered: int = 0
    at_start: State | None = None
    at_end: State | None = None
    alive: bool = False


class Mutator:
    """Valid datagrams, and what becomes of them."""

    def __init__(self, seed: int, addresses: int, victim: bytes) -> None:
        self.victim = victim
        self.randomness = random.Random(seed)
        self.identities = [Identity.client(SigningKey(self.randomness.randbytes(32))) for _ in range(SIGNERS)]
        self.addresses = [
            (f"127.{self.randomness.randrange(1, 255)}.{self.randomness.randrange(256)}.{position % 254 + 1}", port)
            for position, port in enumerate(range(_FIRST_PORT, _FIRST_PORT + addresses))
        ]
        self.requests = {who: self._requests(who) for who in self.identities}
        self.replies = self._replies()

    def _records(self, who: Identity) -> list[bytes]:
        now, key = int(time.time()), who.key
        delegation = Delegation(key.public, 1, key.public).signed(key)
        keys = sorted(self.randomness.randbytes(20) for _ in range(5))
        return [
            sign(each, key).data
            for each in (
                NameRecord(delegation, "name", 1, Digest.of(b"x"), now + 600),
                PeerRecord((AddressWire(bytes((127, 0, 0, 1)), 9_999),), now, now + SHARD_LIFETIME_S),
                ProviderClaim(Digest.of(b"x"), True, now, now + PROVIDER_LIFETIME_S),
                ProviderClaim(Digest.of(b"y"), True, now, 0),
                ShardClaims(b"".join(keys), now, now + SHARD_LIFETIME_S),
            )
        ]

    def _requests(self, who: Identity) -> list[bytes]:
        records = self._records(who)
        kinds: list[Request] = [*every_request(self.randomness, records[:2]).values()]
        kinds += list(every_request(self.randomness, records[2:]).values())
        return [messages.encode(request) for request in kinds]

    def _replies(self) -> list[bytes]:
        you, now, draw = bytes((127, 0, 0, 1)), int(time.time()), self.randomness
        contacts = tuple(ContactWire(draw.randbytes(20), bytes((127, 1, 2, n)), 9_000 + n) for n in range(20))
        records = tuple(self._records(self.identities[0])[:3])
        kinds: list[Reply] = [
            Pong(you, now),
            Nodes(you, now, contacts),
            Records(you, now, contacts[:8], records, True),
            Stored(you, now, 3),
            Introduced(you, now, True),
            Met(you, now),
        ]
        return [messages.encode(reply) for reply in kinds]

    def mutated(self, data: bytes, first: int = 0) -> bytes:
        """Changed one to four times, from this offset on."""
        draw = self.randomness
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
            if len(changed) <= first:
                break
            at = draw.randrange(first, len(changed))
            how = draw.randrange(8)
            if how < 2:
                changed[at] ^= 1 << draw.randrange(8)
            elif how < 4:
                changed[at] = draw.choice(_TELLING)
            elif how == 4:
                changed[at : at + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(1, 40))
            elif how == 5:
                del changed[at : draw.choice((at + 1, at + 20, len(changed)))]
            elif how == 6:
                changed[at:at] = changed[at : at + draw.randrange(1, 60)] * draw.randrange(1, 30)
            else:
                other = draw.choice(self.replies if draw.random() < 0.5 else self.requests[self.identities[0]])
                changed[at:] = other[draw.randrange(len(other)) :]
        return bytes(changed)

    def next(self, waiting: Sequence[Waiting], give: Callable[[str, int], bytes], fixed: Addr | None = None) -> Sent:
        """A mutated datagram, where it comes from (``fixed``: from there), and whether it was signed anew.

        ``waiting``: calls under way and who was asked; ``give`` makes cookies.
        """
        draw = self.randomness
        who = draw.choice(self.identities)
        anew = draw.random() < 0.5
        call, addr = draw.randbytes(8), fixed or draw.choice(self.addresses)
        if waiting and fixed is None and draw.random() < 0.4:
            call, addr = draw.choice(waiting)
            if not anew and draw.random() < 0.2:
                bare = draw.choice((challenge(OPEN, call, draw.randbytes(8)), notice(OPEN, call), knock(OPEN, call)))
                return self.mutated(bare), addr, False
            kind, body, cookie = REPLY, draw.choice(self.replies), draw.randbytes(COOKIE_BYTES)
        else:
            kind, body, cookie = REQUEST, draw.choice(self.requests[who]), give(*addr)
        if not anew:
            return self.mutated(seal(OPEN, who, Letter(kind, call, cookie, True, body, self.victim))), addr, False
        # The body, which may outgrow a datagram now, or else flags and nonce.
        bare = bytes((2, kind)) + OPEN.code() + call + cookie + b"\3" + who.key.public + bytes(8 + 64)
        whole = self.mutated(bare + body, HEADER_BYTES)
        if draw.random() < 0.1:
            whole = whole[:COOKIE_END] + draw.randbytes(1) + whole[COOKIE_END + 1 :]
        if len(whole) <= HEADER_BYTES or len(whole) > MAX_DATAGRAM_BYTES:
            whole = whole[:MAX_DATAGRAM_BYTES].ljust(HEADER_BYTES + 1, b"\0")
        return resigned(whole, who.key, self.victim if whole[COOKIE_END] & 2 else b""), addr, True


Addr = tuple[str, int]
Waiting = tuple[bytes, Addr]
Sent = tuple[bytes, Addr, bool]
_TELLING = (
    0x00,
    0x01,
    0x7F,
    0x80,
    0x8F,
    0x90,
    0x9F,
    0xA0,
    0xC0,
    0xC1,
    0xC4,
    0xC6,
    0xCB,
    0xCF,
    0xD3,
    0xD9,
    0xDD,
    0xDF,
    0xFF,
)
"""Bytes that begin values in msgpack, and borders of such."""


class Run:
    """One victim, and all that is sent to it."""

    def __init__(self, victim: DhtNode, mutator: Mutator) -> None:
        self.victim = victim
        self.mutator = mutator
        self.outcome = Outcome()
        self._side = protocol(victim)
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.outcome.reported.append(context))

    def give(self, ip: str, port: int) -> bytes:
        return self._side._cookies.give(ip, port, self._loop.time())

    def state(self) -> State:
        gc.collect()
        status = self.victim.status()
        # Of the calls under way, some are always just ending or beginning.
        outstanding = max(0, len(self._side._outstanding) - CALLS_AT_ONCE - 16)
        tasks = max(0, len(asyncio.all_tasks()) - CALLS_AT_ONCE)
        return State(tasks, status.contacts, status.records_held, outstanding, rss_bytes(os.getpid()))

    async def call_on(self, requests: Sequence[Request]) -> None:
        """Make calls all the time, to addresses where nobody is: mutated replies answer them."""
        draw = self.mutator.randomness
        while True:
            try:
                await self._side.call(Address(*draw.choice(self.mutator.addresses)), draw.choice(requests))
            except PeerError:
                continue

    async def send(self, count: int, friend: DhtNode) -> None:
        async with outsider(self.mutator.randomness) as sender:
            own = (LOOPBACK, sender.port)
            for who, bodies in self.mutator.requests.items():
                for body in bodies:
                    letter = Letter(REQUEST, bytes(8), self.give(*own), True, body)
                    sender.send(seal(OPEN, who, letter), (LOOPBACK, self.victim.port))
            while self.outcome.sent < count:
                self._batch(min(BATCH, count - self.outcome.sent))
                for _ in range(BATCH // OVER_A_SOCKET):
                    datagram, _, anew = self.mutator.next((), self.give, own)
                    sender.send(datagram, (LOOPBACK, self.victim.port))
                    self.outcome.sent += 1
                    self.outcome.signed += anew
                await heard_out(self.victim, friend)
                if self.outcome.at_start is None and self.outcome.sent >= _SETTLED * count:
                    self.outcome.at_start = self.state()

    def _batch(self, count: int) -> None:
        asked = [(call, (each.address.ip, each.address.port)) for call, each in self._side._outstanding.items()]
        received, outcome = self._side.datagram_received, self.outcome
        for _ in range(count):
            datagram, addr, anew = self.mutator.next(asked, self.give)
            try:
                received(datagram, addr)
            except Exception:
                outcome.raised += 1
                traceback.print_exc()
            outcome.sent += 1
            outcome.signed += anew


async def story(count: int, seed: int) -> Outcome:
    randomness = random.Random(seed)
    async with running(randomness) as victim, running(randomness) as friend:
        await friend.bootstrap([address(victim)])
        open_rates(victim)
        run = Run(victim, Mutator(seed, min(5_000, count // 60), victim.id))
        requests = list(every_request(randomness, [b"x" * 200]).values())
        before = victim.status().requests_answered
        callers = [asyncio.create_task(run.call_on(requests)) for _ in range(CALLS_AT_ONCE)]
        try:
            await run.send(count, friend)
            run.outcome.at_end = run.state()
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
        run.outcome.answered = victim.status().requests_answered - before
        run.outcome.alive = await answers_and_finds(victim, friend)
        return run.outcome


async def answers_and_finds(victim: DhtNode, friend: DhtNode) -> bool:
    """Whether the victim does what it is there for. PeerError if it does not even answer."""
    await friend.ping(address(victim))
    key = await publish(friend, "contents afterwards")
    async with aclosing(victim.find(key)) as finding:
        async for found in finding:
            if found.record.signer == friend.key.public and found.addresses == (address(friend),):
                return True
    return False


def measure(quick: bool, seed: int) -> Result:
    count = 30_000 if quick else 1_000_000
    started_s = time.perf_counter()
    outcome = asyncio.run(story(count, seed))
    took_s = time.perf_counter() - started_s
    start, end = outcome.at_start, outcome.at_end
    if start is None or end is None:
        raise RuntimeError("the run ended early")
    return Result(
        figures={
            "mutations": outcome.sent,
            "mutations_signed_anew_share": outcome.signed / outcome.sent,
            "mutations_answered": outcome.answered,
            "mutations_a_s": outcome.sent / took_s,
        },
        checks=[
            Check("mutations_unhandled", outcome.raised + len(outcome.reported), "==", 0),
            Check("mutations_tasks_more", max(0, end.tasks - start.tasks), "==", 0),
            Check("mutations_calls_left", end.outstanding, "==", 0),
            Check("mutations_contacts_more", max(0, end.contacts - start.contacts), "==", 0),
            Check("mutations_records_more", max(0, end.records - start.records), "==", 0),
            Check("mutations_process_grew_mib", (end.rss - start.rss) / (1 << 20), "<=", 4),
            Check("mutations_alive_afterwards", float(outcome.alive), "==", 1),
        ],
    )


if __name__ == "__main__":
    alone(measure)
