"""What peers tell of the DHT, made by hand, and a node of another version on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dhtdata.control.dht import DhtFound, DhtStatus, DhtStep, DhtTrace
from dhtdata.control.protocol import LimitsNow, PeerStatus
from dhtdata.dht.envelope import CALL_END, CODED, VERSION, notice
from dhtdata.formats.addresses import Address
from dhtdata.network import PUBLIC


def dht_status(**changes: Any) -> DhtStatus:
    """A healthy seed, but for the changes."""
    values: dict[str, Any] = {
        "network": "public",
        "node": "ab" * 20,
        "port": 8470,
        "client": False,
        "families": (4, 6),
        "families_reached": (4, 6),
        "seen_as": ("203.0.113.7:8470",),
        "contacts": 12,
        "contacts_by_bits": (6, 3, 0, 3),
        "nodes_estimated": 34,
        "records_held": 1_204,
        "keys_held": 310,
        "requests_answered": 5_000,
        "datagrams_refused": 0,
        "answers_late": 0,
        "strangers": 0,
        "over_rate": 0,
        "other_versions": 0,
        "calls": 431,
        "calls_unanswered": 3,
        "round_trip_s": 0.082,
        "clock_ahead_s": 0.4,
        "clock_witnesses": 12,
        "clock_wrong": False,
        "shard_keys": 900,
        "shards_behind_s": 0.0,
        "bootstrap_failures": (),
    }
    return DhtStatus(**(values | changes))


def peer_status(kind: str = "seed", **changes: Any) -> PeerStatus:
    """The status of a peer whose standing in the DHT is `dht_status` with these changes."""
    seen = dht_status(client=kind != "seed", **changes)
    return PeerStatus(
        version="1",
        pid=4711,
        kind=kind,
        store="/store",
        listen="::",
        port=seen.port,
        network=seen.network,
        node=seen.node,
        addresses=seen.seen_as,
        dht_contacts=seen.contacts,
        dht=seen,
        datasets=(),
        traffic=(),
        blocks_verified=0,
        bytes_fetched=0,
        bytes_served=0,
        requests_served=0,
        uptime_s=1.0,
        clients=0,
        limits=LimitsNow(up=50_000_000, down=None, peer_up=None, peer_down=None),
        uploads=3,
        uploads_waiting=1,
    )


def step(hop: int, near_bits: int, **changes: Any) -> DhtStep:
    values: dict[str, Any] = {
        "path": 0,
        "node": f"{hop:02x}{near_bits:02x}" * 10,
        "address": f"203.0.113.{near_bits}:{50_000 + hop}",
        "took_s": 0.0123,
        "outcome": "answered",
        "contacts": 20,
        "records": 0,
    }
    return DhtStep(hop=hop, near_bits=near_bits, **(values | changes))


def found(number: int, expires: int, **changes: Any) -> DhtFound:
    values: dict[str, Any] = {
        "kind": "provider",
        "signer": f"{number:02x}" * 32,
        "sequence": 1_795_748_166,
        "says": "all",
        "addresses": (f"203.0.113.{number}:8470",),
    }
    return DhtFound(expires=expires, **(values | changes))


def trace(steps: tuple[DhtStep, ...] = (), records: tuple[DhtFound, ...] = ()) -> DhtTrace:
    return DhtTrace(key="cd" * 20, steps=steps, found=records, first_s=0.031 if records else None, took_s=0.096)


@contextmanager
def of_another_version() -> Iterator[Address]:
    """A socket that answers every request as a node of the next version of the protocol would."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
        node.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", node.getsockname()[1])
        ended = b"end"

        def answer() -> None:
            while True:
                datagram, asker = node.recvfrom(2_000)
                if datagram == ended:
                    return
                node.sendto(bytes((VERSION + 1,)) + notice(PUBLIC, datagram[CODED:CALL_END])[1:], asker)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield address
        finally:
            node.sendto(ended, (address.ip, address.port))
            thread.join()
