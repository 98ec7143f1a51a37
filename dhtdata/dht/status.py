"""What a node tells of itself: values for display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhtdata.dht.clock import ClockWatch
from dhtdata.dht.holdings import Holdings
from dhtdata.dht.lookup import Step
from dhtdata.dht.overlay import Overlay
from dhtdata.dht.search import Found
from dhtdata.formats.addresses import Address
from dhtdata.network import Network


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A contact in the routing table: it answered or asked us ``seen_s_ago`` seconds ago."""

    id: bytes
    address: Address
    seen_s_ago: float


@dataclass(frozen=True, slots=True)
class Trace:
    """A look-up: every call it made, every record it found, and when the first one came (None: never)."""

    key: bytes
    steps: tuple[Step, ...]
    found: tuple[Found, ...]
    first_s: float | None
    took_s: float


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """For display. ``reached``: strangers reach us, so we serve others. ``clock_ahead_s``: by our contacts' clocks.

    ``families`` are IP versions; ``families_reached`` those in which strangers reach us.
    """

    id: bytes
    port: int
    network: str
    client: bool
    reached: bool
    families: tuple[int, ...]
    families_reached: tuple[int, ...]
    contacts: int
    nodes_estimated: int
    records_held: int
    keys_held: int
    requests_answered: int
    datagrams_refused: int
    answers_late: int
    strangers: int
    challenges: int
    over_rate: int
    other_versions: int
    calls: int
    calls_unanswered: int
    round_trip_s: float
    clock_ahead_s: float
    clock_witnesses: int
    clock_wrong: bool
    bootstrap_failures: tuple[str, ...]

    @classmethod
    def of(
        cls,
        overlays: Sequence[Overlay],
        holdings: Holdings,
        clock: ClockWatch,
        own_id: bytes,
        port: int,
        network: Network,
        client: bool,
    ) -> NodeStatus:
        counters = [overlay.protocol.counters for overlay in overlays]
        trips = [overlay.protocol.round_trips.smoothed_s for overlay in overlays if len(overlay.table)]
        return cls(
            id=own_id,
            port=port,
            network=network.fingerprint,
            client=client,
            reached=any(overlay.reachability.reached for overlay in overlays),
            families=tuple(overlay.version for overlay in overlays),
            families_reached=tuple(overlay.version for overlay in overlays if overlay.reachability.reached),
            contacts=sum(len(overlay.table) for overlay in overlays),
            nodes_estimated=max((each.asker.estimated_nodes() for each in overlays), default=1),
            records_held=holdings.record_count,
            keys_held=holdings.key_count,
            requests_answered=sum(each.answered_requests for each in counters),
            datagrams_refused=sum(each.refused_datagrams for each in counters),
            answers_late=sum(each.late_answers for each in counters),
            strangers=sum(each.strangers for each in counters),
            challenges=sum(each.challenges for each in counters),
            over_rate=sum(each.over_rate for each in counters),
            other_versions=sum(each.other_versions for each in counters),
            calls=sum(each.calls for each in counters),
            calls_unanswered=sum(each.unanswered for each in counters),
            round_trip_s=max(trips, default=0.0),
            clock_ahead_s=clock.ahead_s,
            clock_witnesses=clock.witnesses,
            clock_wrong=clock.wrong,
            bootstrap_failures=tuple(
                reason if str(address) in reason else f"{address}: {reason}"
                for overlay in overlays
                for address, reason in overlay.bootstrap_failures().items()
            ),
        )
