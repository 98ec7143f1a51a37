"""What the peer tells programs and monitors about its part in the DHT: status, a look-up hop by hop, a ping."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dhtdata.control.dht import DhtFound, DhtLookup, DhtPing, DhtPong, DhtStatus, DhtStep, DhtTrace
from dhtdata.dht import DhtNode, Found, Trace
from dhtdata.errors import ConfigError, FormatError, NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import NameRecord, PeerRecord, ProviderClaim, Record, ShardClaims
from dhtdata.peer.announcer import Announcer
from dhtdata.peer.finder import Finder

JOIN_S = 5.0
PING_S = 5.0
LONGEST_LOOKUP_S = 80.0
KEY_BYTES = 20
MAX_FAILURES = 64
MAX_TOLD = 1_024
_SHOWN_FAILURES = 4


@dataclass(frozen=True)
class DhtDesk:
    """``announcer`` is None in a private peer."""

    node: DhtNode
    finder: Finder
    announcer: Announcer | None

    def status(self) -> DhtStatus:
        seen = self.node.status()
        return DhtStatus(
            network=seen.network,
            node=seen.id.hex(),
            port=seen.port,
            client=seen.client,
            families=seen.families,
            families_reached=() if seen.client else seen.families_reached,
            seen_as=tuple(map(str, self.node.addresses())),
            contacts=seen.contacts,
            contacts_by_bits=_by_bits(shared_bits(seen.id, contact.id) for contact in self.node.nodes()),
            nodes_estimated=seen.nodes_estimated,
            records_held=seen.records_held,
            keys_held=seen.keys_held,
            requests_answered=seen.requests_answered,
            datagrams_refused=seen.datagrams_refused,
            answers_late=seen.answers_late,
            strangers=seen.strangers,
            over_rate=seen.over_rate,
            other_versions=seen.other_versions,
            calls=seen.calls,
            calls_unanswered=seen.calls_unanswered,
            round_trip_s=seen.round_trip_s,
            clock_ahead_s=seen.clock_ahead_s,
            clock_witnesses=seen.clock_witnesses,
            clock_wrong=seen.clock_wrong,
            shard_keys=self.announcer.shard_keys if self.announcer is not None else 0,
            shards_behind_s=self.announcer.behind_s if self.announcer is not None else 0.0,
            bootstrap_failures=seen.bootstrap_failures[:MAX_FAILURES],
        )

    async def lookup(self, request: DhtLookup) -> DhtTrace:
        """ConfigError if there is nobody to ask, NotFoundError if nobody known answers or it takes too long."""
        if len(request.key) != KEY_BYTES:
            raise FormatError(f"a key of the DHT has {KEY_BYTES} bytes, not {len(request.key)}")
        await self._enter([Address.parse(text) for text in request.through])
        try:
            async with asyncio.timeout(LONGEST_LOOKUP_S):
                trace = await self.node.trace(request.key)
        except TimeoutError as failure:
            raise NotFoundError(
                f"the look-up of {request.key.hex()} did not end within {LONGEST_LOOKUP_S:.0f} s: try again"
            ) from failure
        return _told(trace)

    async def ping(self, request: DhtPing) -> DhtPong:
        """PeerError says why nobody answers."""
        address = Address.parse(request.address)
        try:
            async with asyncio.timeout(PING_S):
                contact, client, took_s = await self.node.ping(address)
        except TimeoutError as failure:
            raise PeerError(unanswered(address)) from failure
        except PeerError as failure:
            if isinstance(failure.__cause__, TimeoutError):
                raise PeerError(unanswered(address)) from failure
            raise
        return DhtPong(
            address=str(address),
            node=contact.id.hex(),
            client=client,
            shared_bits=shared_bits(self.node.id, contact.id),
            took_s=took_s,
        )

    async def _enter(self, through: Sequence[Address]) -> None:
        """Meet who was named now, and everybody else known by address if the routing table is empty."""
        known = self.finder.known.everybody()
        entry = [*through, *(known if not self.finder.dht_size else ())]
        if entry:
            try:
                async with asyncio.timeout(JOIN_S):
                    await self.finder.join(entry)
            except TimeoutError:
                # Somebody else's join takes long: whoever answered until now is asked.
                pass
        if self.finder.dht_size or not self.node.client:
            return
        if not entry:
            raise ConfigError(
                "this peer knows nobody to ask: name a peer with --bootstrap IP:PORT or DHTDATA_BOOTSTRAP, "
                "or look up the target of a ticket (dhtdata1...)"
            )
        reasons = self.node.status().bootstrap_failures
        said = "; ".join(reasons[:_SHOWN_FAILURES]) + ("; ..." if len(reasons) > _SHOWN_FAILURES else "")
        raise NotFoundError(
            f"nobody is there to ask ({said}): wrong addresses, another network or a blocked UDP port; "
            "see dhtdata doctor, or try a fresh ticket"
        )


def gauges(status: DhtStatus) -> dict[str, float]:
    """For monitors: what the DHT part of a peer counts and measures."""
    return {
        "dht_reached": int(status.reached),
        "dht_contacts": status.contacts,
        "dht_nodes_estimated": status.nodes_estimated,
        "dht_records_held": status.records_held,
        "dht_keys_held": status.keys_held,
        "dht_requests_answered_total": status.requests_answered,
        "dht_datagrams_refused_total": status.datagrams_refused,
        "dht_answers_late_total": status.answers_late,
        "dht_strangers_total": status.strangers,
        "dht_over_rate_total": status.over_rate,
        "dht_other_versions_total": status.other_versions,
        "dht_calls_total": status.calls,
        "dht_calls_unanswered_total": status.calls_unanswered,
        "dht_round_trip_seconds": round(status.round_trip_s, 6),
        "dht_clock_ahead_seconds": round(status.clock_ahead_s, 1),
        "dht_shard_keys": status.shard_keys,
        "dht_shards_behind_seconds": round(status.shards_behind_s, 1),
    }


def unanswered(address: Address) -> str:
    """What silence may mean."""
    return f"{address} does not answer: wrong address, another network or a blocked port"


def shared_bits(one: bytes, other: bytes) -> int:
    """How many leading bits two identifiers share."""
    return 8 * len(one) - (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_length()


def _by_bits(shared: Iterable[int]) -> tuple[int, ...]:
    counts = Counter(shared)
    return tuple(counts[bits] for bits in range(max(counts, default=-1) + 1))


def _told(trace: Trace) -> DhtTrace:
    steps = (
        DhtStep(
            path=step.path,
            hop=step.hop,
            node=step.node.hex(),
            address=step.address,
            near_bits=step.near_bits,
            took_s=step.took_s,
            # Errors name the address, which stands beside them here.
            outcome=step.outcome.removeprefix(step.address).strip(),
            contacts=step.contacts,
            records=step.records,
        )
        for step in trace.steps
    )
    # A record is told again when more addresses of its signer turn up: the last telling has them all.
    newest = {(type(each.record.record), each.record.signer): each for each in trace.found}
    found = tuple(map(_found, newest.values()))[:MAX_TOLD]
    return DhtTrace(key=trace.key.hex(), steps=tuple(steps), found=found, first_s=trace.first_s, took_s=trace.took_s)


def _found(found: Found) -> DhtFound:
    record = found.record.record
    kind, says = _says(record)
    expires = record.expires if not isinstance(record, NameRecord) else record.fresh_until
    if isinstance(record, NameRecord) and record.voucher is not None:
        expires = max(expires, record.voucher.fresh_until)
    return DhtFound(
        kind=kind,
        signer=found.record.signer.hex(),
        sequence=record.sequence,
        expires=expires,
        says=says,
        addresses=tuple(map(str, found.addresses)),
    )


def _says(record: Record) -> tuple[str, str]:
    match record:
        case NameRecord():
            return "name", f"{record.target} is manifest {record.manifest}"
        case ProviderClaim():
            return "provider", "all" if record.seed else "part"
        case ShardClaims():
            return "shards", str(len(record.unpacked()))
        case PeerRecord():
            return "peer", ", ".join(str(wire.address()) for wire in record.addresses)
