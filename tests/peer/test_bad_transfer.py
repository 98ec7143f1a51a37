"""Fetches among providers, disks and clocks that go wrong: with real peers in processes of their own, each bounded."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dhtdata.config import Settings
from dhtdata.control import PeerClient
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import ProviderClaim, sign
from dhtdata.formats.ticket import Ticket
from dhtdata.peer.addresses import own_addresses
from dhtdata.signing import SigningKey
from dhtdata.store import Store
from dhtdata.transfer.answers import ProviderRecord
from tests.peer.hostile import Answer, Provider, honest, paced, providing, right_head
from tests.peer.processes import alive, kill, opened, seeding, settings_at, until
from tests.peer.worlds import World, make_world
from tests.transfer.evil import KINDS

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(90)]
SEARCH_S = 30.0


async def _drips(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(right_head(first, last))
    for byte in body:
        out.write(bytes([byte]))
        await out.drain()
        await asyncio.sleep(0.5)


async def _says_nothing(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    await out.wait_closed()


async def _two_lengths(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(right_head(first, last).replace(b"Content-Length", b"Content-Length: 1\r\nContent-Length") + body[::-1])


async def _continues(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    while True:
        out.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await out.drain()
        await asyncio.sleep(0.01)


async def _swapped(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(right_head(first, last) + body[1:] + body[:1])


async def _unasked(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write((right_head(first, last) + bytes(len(body))) * 2)


WAYS: dict[str, Answer] = {
    **KINDS,
    "drips": _drips,
    "says_nothing": _says_nothing,
    "two_lengths": _two_lengths,
    "continues": _continues,
    "swapped": _swapped,
    "unasked": _unasked,
}
# A ticket names eight addresses: seven liars of different kinds, and who delivers in the end.
COMPANIES = [sorted(WAYS)[start : start + 7] for start in range(0, len(WAYS), 7)]


@contextmanager
def _private_peer(folder: Path) -> Iterator[tuple[Store, PeerClient]]:
    with opened(folder) as (store, settings), PeerClient.connect(store, settings, start=True) as client:
        yield store, client


def _ticket(world: World, *providers: Provider) -> Ticket:
    return Ticket(world.manifest, tuple(provider.address for provider in providers))


def _spans_held(store: Store, world: World) -> list[tuple[Digest, int, int]]:
    """Blocks on disk, digested anew."""
    spans: list[tuple[Digest, int, int]] = []
    begun = store.partials()
    for shard in world.shards:
        if store.has(shard.digest):
            spans.append((shard.digest, 0, len(shard.body)))
        elif shard.digest in begun:
            partial = store.partial(shard.digest, shard.table)
            blocks = enumerate(shard.table.blocks)
            spans += [(shard.digest, b.offset, b.offset + b.length) for place, b in blocks if partial.has(place)]
    return spans


@pytest.mark.parametrize("company", COMPANIES, ids=["-".join(company[:2]) for company in COMPANIES])
def test_whatever_providers_answer_every_byte_comes_from_the_honest_one(tmp_path: Path, company: list[str]) -> None:
    world = make_world(40, shards=10, blocks=3, block_bytes=3_000)
    liars = [Provider(world, WAYS[way]) for way in company]
    one_honest = Provider(world, honest)
    with providing(*liars, one_honest), _private_peer(tmp_path) as (store, client):
        # First among themselves, so that each is asked; then there is somebody who delivers.
        found = client.resolve(_ticket(world, *liars), SEARCH_S)
        for shard in world.shards:
            with pytest.raises(NotFoundError):
                client.ensure_blocks(world.contents, shard.digest, Digest.of(shard.table.encode()), (), 0.5)
        until(lambda: all(liar.spans for liar in liars), 30)
        assert client.status().blocks_verified == 0
        client.resolve(_ticket(world, one_honest), SEARCH_S)
        client.fetch_dataset(found.manifest)
        assert world.held_by(store)
        delivered = {traffic.address: traffic.bytes for traffic in client.status().traffic if traffic.bytes}
        assert delivered == {str(one_honest.address): sum(len(shard.body) for shard in world.shards)}
        assert all(result.state == "ok" for result in store.scrub())


def _own_private_address() -> str:
    """An address of this machine that is neither loopback nor public."""
    for address in own_addresses("0.0.0.0", 1_024):
        ip = ipaddress.ip_address(address.ip)
        if ip.is_private and not ip.is_loopback:
            return address.ip
    pytest.skip("this machine has no private address to set a trap at")


class _Trap:
    """Counts who knocks, and lets nobody in."""

    def __init__(self, ip: str, port: int = 0) -> None:
        self._listener = socket.create_server((ip, port))
        self.address = Address(ip, self._listener.getsockname()[1])
        self.knocked = 0
        self._thread = threading.Thread(target=self._count, name="trap")
        self._thread.start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.knocked += 1
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def _claim(world: World, address: Address) -> ProviderRecord:
    claim = ProviderClaim(contents=world.contents, seed=True, sequence=1, expires=int(time.time()) + 3_600)
    return ProviderRecord(sign(claim, SigningKey.generate()).data, (address,))


def _traps(reach: str) -> tuple[_Trap, _Trap]:
    if reach == "private":
        ip = _own_private_address()
        return _Trap(ip), _Trap(ip)
    if reach == "loopback":
        return _Trap("127.0.0.1"), _Trap("127.0.0.1")
    try:
        # Addresses of this machine that nobody else uses.
        return _Trap("127.99.0.1", 1_023), _Trap("127.99.0.2", 1_023)
    except PermissionError:
        pytest.skip("only root may listen on ports of system services")


@pytest.mark.parametrize("reach", ["private", "system port", "loopback"])
def test_addresses_in_records_and_exchanges_are_dialled_only_where_the_peer_lives(tmp_path: Path, reach: str) -> None:
    """The third is the proof that the first two would be noticed: this peer lives on loopback."""
    world = make_world(41, shards=1)
    exchanged, recorded = _traps(reach)
    records = [_claim(world, recorded.address)]
    liar = Provider(world, WAYS["error"], exchange=[exchanged.address], records=records)
    try:
        with providing(liar), _private_peer(tmp_path) as (_, client):
            client.resolve(_ticket(world, liar), SEARCH_S)
            shard = world.shards[0]
            with pytest.raises(NotFoundError):
                client.ensure_blocks(world.contents, shard.digest, Digest.of(shard.table.encode()), (), 4)
            assert liar.spans
            knocked = [trap.knocked > 0 for trap in (exchanged, recorded)]
            assert knocked == [reach == "loopback"] * 2
    finally:
        for trap in (exchanged, recorded):
            trap.close()


def test_a_disk_that_fills_in_the_middle_ends_the_fetch_with_its_reason_and_nothing_is_lost(tmp_path: Path) -> None:
    """The peer's own limit for the size of a file stands for the disk: it can be lifted again."""
    world = make_world(42, shards=1, blocks=40, block_bytes=50_000)
    provider = Provider(world, paced(1_000_000))
    with providing(provider), _private_peer(tmp_path) as (store, client):
        found = client.resolve(_ticket(world, provider), SEARCH_S)
        pid = client.status().pid
        failures: list[DhtDataError] = []

        def fetch() -> None:
            try:
                client.fetch_dataset(found.manifest)
            except DhtDataError as failure:
                failures.append(failure)

        fetching = threading.Thread(target=fetch)
        fetching.start()
        until(lambda: client.status().blocks_verified > 3)
        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
        fetching.join(30)
        assert [type(failure) for failure in failures] == [StoreError]
        assert str(store.path) in str(failures[0])
        assert client.status().pid == pid
        assert client.status().traffic[0].avoided == ""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        client.fetch_dataset(found.manifest)
        assert world.held_by(store)


def test_a_store_deleted_underneath_a_fetch_ends_it_and_the_peer(tmp_path: Path) -> None:
    world = make_world(43, shards=4, blocks=40, block_bytes=50_000)
    provider = Provider(world, paced(200_000))
    with providing(provider), opened(tmp_path / "b") as (store, settings):
        with PeerClient.connect(store, settings, start=True) as starting:
            found = starting.resolve(_ticket(world, provider), SEARCH_S)
            pid = starting.status().pid
            with PeerClient.connect(store, settings, start=False) as client:

                def remove() -> None:
                    until(lambda: starting.status().blocks_verified > 3)
                    shutil.rmtree(settings.store)

                remover = threading.Thread(target=remove)
                remover.start()
                with pytest.raises((StoreError, NotFoundError, PeerError)):
                    client.fetch_dataset(found.manifest)
                remover.join(10)
        until(lambda: not alive(pid), 30)


@pytest.mark.parametrize("limit", ["--up", "--down", "--peer-up", "--peer-down"])
def test_a_limit_of_0_is_refused_with_what_to_write_instead(tmp_path: Path, limit: str) -> None:
    command = [
        sys.executable,
        "-m",
        "dhtdata",
        "seed",
        str(Digest.of(b"x")),
        limit,
        "0",
        "--store",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(
        [*command, "--home", str(tmp_path / "h")],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert "unlimited" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("jump_s", [1e9, -1e9])
def test_a_clock_that_jumps_in_the_middle_stops_no_fetch(tmp_path: Path, jump_s: float) -> None:
    world = make_world(44, shards=4, blocks=20, block_bytes=50_000)
    gate = tmp_path / "jumped"
    jumping = (
        "import os, time\nreal = time.time\n"
        f"time.time = lambda: real() + ({jump_s} if os.path.exists({str(gate)!r}) else 0)\n"
    )
    provider = Provider(world, paced(500_000))
    with providing(provider):
        ticket = str(_ticket(world, provider))
        with (
            seeding(settings_at(tmp_path / "b"), ticket, first=jumping),
            opened(tmp_path / "b") as (store, settings),
            PeerClient.connect(store, settings, start=False) as client,
        ):
            until(lambda: client.status().blocks_verified > 3)
            gate.touch()
            until(lambda: [held.state for held in client.status().datasets] == ["complete"], 40)
            assert world.held_by(store)
            assert [traffic.avoided for traffic in client.status().traffic] == [""]


def test_a_peer_killed_again_and_again_fetches_nothing_twice_that_it_had(tmp_path: Path) -> None:
    world, chance = make_world(45, shards=5, blocks=40, block_bytes=50_000), random.Random(45)
    provider = Provider(world, paced(400_000))
    held: list[tuple[Digest, int, int]] = []
    with providing(provider), opened(tmp_path) as (store, settings):
        for life in range(11):
            with PeerClient.connect(store, settings, start=True) as starting:
                found = starting.resolve(_ticket(world, provider), SEARCH_S)
                if life == 10:
                    provider.answer = honest
                    starting.fetch_dataset(found.manifest)
                else:
                    _kill_while_fetching(store, settings_at(tmp_path), found.manifest, chance.uniform(0, 0.6))
            again = [span for span in provider.spans if any(_overlap(span, other) for other in held)]
            assert again == []
            provider.spans.clear()
            held = _spans_held(store, world)
            assert life < 9 or held
        assert world.held_by(store)
        assert all(result.state == "ok" for result in store.scrub())


def _kill_while_fetching(store: Store, settings: Settings, manifest: Digest, after_s: float) -> None:
    # A client that starts no peer: else it would raise the one that was killed.
    with PeerClient.connect(store, settings, start=False) as client:
        pid = client.status().pid
        killer = threading.Timer(after_s, kill, (pid,))
        killer.start()
        with pytest.raises((NotFoundError, PeerError)):
            client.fetch_dataset(manifest)
        killer.join(10)


def _overlap(one: tuple[Digest, int, int], other: tuple[Digest, int, int]) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]
