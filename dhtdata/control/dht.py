"""Messages about a peer's part in the DHT; how they travel, see `dhtdata.control.protocol`."""

from __future__ import annotations

from dhtdata.formats.codec import Format


class AskDht(Format, frozen=True, tag="ask_dht"):
    pass


class DhtLookup(Format, frozen=True, tag="dht_lookup"):
    """A look-up of a key of 20 bytes with everything it does. ``through``: addresses (``IP:PORT``) to enter by."""

    key: bytes
    through: tuple[str, ...] = ()


class DhtPing(Format, frozen=True, tag="dht_ping"):
    """``address`` is ``IP:PORT``."""

    address: str


class DhtStatus(Format, frozen=True, tag="dht_status"):
    """A peer's part in the DHT. Identifiers are hexadecimal; counts are since the peer started.

    ``client``: it only asks, by choice. ``families``: IP versions it speaks; ``families_reached``: those in which
    strangers reach it, so that it serves others. ``seen_as``: its addresses, as others see them.
    ``contacts_by_bits``: how many contacts share 0, 1, 2, ... leading bits with it.

    ``clock_ahead_s``: how far our clock is ahead of that of ``clock_witnesses`` other nodes (negative: behind);
    ``clock_wrong``: so far that they refuse what we sign. ``shards_behind_s``: how long shard claims are overdue.
    ``bootstrap_failures``: why nobody was met at addresses to enter by.
    """

    network: str
    node: str
    port: int
    client: bool
    families: tuple[int, ...]
    families_reached: tuple[int, ...]
    seen_as: tuple[str, ...]
    contacts: int
    contacts_by_bits: tuple[int, ...]
    nodes_estimated: int
    records_held: int
    keys_held: int
    requests_answered: int
    datagrams_refused: int
    answers_late: int
    strangers: int
    over_rate: int
    other_versions: int
    calls: int
    calls_unanswered: int
    round_trip_s: float
    clock_ahead_s: float
    clock_witnesses: int
    clock_wrong: bool
    shard_keys: int
    shards_behind_s: float
    bootstrap_failures: tuple[str, ...]

    @property
    def reached(self) -> bool:
        """Whether strangers reach it: only then it announces and serves."""
        return bool(self.families_reached)


class DhtStep(Format, frozen=True):
    """One call of a look-up: on which path, how many hops from what we knew ourselves, to whom.

    ``near_bits``: leading bits that the node shares with the target of its path. ``outcome``: ``answered``, or why
    not. ``contacts``: nodes that it named; ``records``: records that it sent.
    """

    path: int
    hop: int
    node: str
    address: str
    near_bits: int
    took_s: float
    outcome: str
    contacts: int
    records: int


class DhtFound(Format, frozen=True):
    """A verified record. ``kind``: name, peer, provider or shards. ``says``: its content in few words.

    Those are: which manifest the name means; the addresses; ``all`` or ``part`` of the contents; how many keys are
    claimed in one message. ``expires``: Unix seconds; a name is stale from then on. ``addresses``: where the signer can
    be reached.
    """

    kind: str
    signer: str
    sequence: int
    expires: int
    says: str
    addresses: tuple[str, ...]


class DhtTrace(Format, frozen=True, tag="dht_trace"):
    """What a look-up did and found. ``first_s``: when the first record came (None: never)."""

    key: str
    steps: tuple[DhtStep, ...]
    found: tuple[DhtFound, ...]
    first_s: float | None
    took_s: float


class DhtPong(Format, frozen=True, tag="dht_pong"):
    """Who answered. ``client``: a node that only asks. ``shared_bits``: leading bits it shares with our node."""

    address: str
    node: str
    client: bool
    shared_bits: int
    took_s: float
