"""The peer of one store: DHT node, HTTP server, fetcher, announcer and control socket in one task group.

A *seed* listens on one port for UDP and TCP, announces and serves what the store has pinned. A *private* peer was
started by a mount or a command: it looks up and fetches on ports of its own, serves nobody, announces nothing, and ends
a minute after the last program that used it.

A store has one peer: whoever runs holds ``peer.lock``. A seed that finds a private peer asks it to hand over; it holds
the election lock meanwhile, so that the programs that lose their peer wait for the new one instead of starting another.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dhtdata.config import RATES, Settings
from dhtdata.control.client import RELEASE, answers, ask_running, socket_path
from dhtdata.control.lock import ELECTION_LOCK, PEER_LOCK, FileLock
from dhtdata.control.protocol import PROTOCOL, HandOver, PeerStatus, Seeded, Welcome
from dhtdata.control.spawn import ELECTION_S
from dhtdata.dht import DhtNode
from dhtdata.errors import ConfigError, DhtDataError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address, Believed
from dhtdata.formats.ticket import Target
from dhtdata.network import Network, network_of_store
from dhtdata.peer.addresses import free_port, own_addresses
from dhtdata.peer.announcer import Announcer
from dhtdata.peer.control_server import ControlServer
from dhtdata.peer.desk import Desk
from dhtdata.peer.dht_desk import DhtDesk
from dhtdata.peer.ensuring import Ensuring
from dhtdata.peer.figures import Figures
from dhtdata.peer.finder import Finder
from dhtdata.peer.known import Known
from dhtdata.peer.resolve import Resolver
from dhtdata.peer.seeder import Seeder
from dhtdata.peer.swarms import Swarms
from dhtdata.signing import load_or_create_key
from dhtdata.store import Store
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.packer import Packer
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.rates import Limits, Rates
from dhtdata.transfer.server import BlobServer
from dhtdata.transfer.swarm import NOBODY, Fetching
from dhtdata.transfer.threads import Carrier

LINGER_S = 60.0
HAND_OVER_S = 15.0
REMEMBER_EVERY_S = 60.0
JOIN_S = 60.0
STORE_THREADS = 16
"""The default, six on two cores, were all busy with shards that were synced, and the next shard waited to be begun."""
STORE_S = 10.0
_NODE_KEY = "node.key"


class AlreadyRunning(ConfigError):
    """Another peer of this store runs, which stays."""


class _Stopped(Exception):
    """Ends the peer's task group."""


@contextmanager
def only_peer(settings: Settings, store_id: bytes, *, seed: bool, elect: bool) -> Iterator[FileLock]:
    """Be the store's peer until the block ends. Yields the election lock, to be released once the peer answers.

    ``elect``: take the election lock here; otherwise whoever started this process holds it. `AlreadyRunning` if a seed
    runs already, or if this is a private peer and any other one answers.
    """
    with FileLock(settings.store / ELECTION_LOCK) as election, FileLock(settings.store / PEER_LOCK) as lock:
        if elect and not election.acquire(ELECTION_S):
            raise PeerError(f"somebody else has been starting a peer of {settings.store} for {ELECTION_S:.0f} s")
        if not lock.try_acquire():
            if seed:
                _ask_to_hand_over(store_id)
            elif answers(store_id):
                raise AlreadyRunning(f"another peer of {settings.store} was faster")
            # Whoever holds the lock is about to end.
            if not lock.acquire(HAND_OVER_S):
                raise ConfigError(f"the peer of {settings.store} does not end: run dhtdata stop, then try again")
        yield election


def _ask_to_hand_over(store_id: bytes) -> None:
    try:
        ask_running(store_id, HandOver(), HAND_OVER_S)
    except NotFoundError:
        # It is ending already: its lock will be free in a moment.
        return
    except ConfigError as refusal:
        raise AlreadyRunning(str(refusal)) from refusal


@dataclass(frozen=True)
class Events:
    """What whoever runs a peer wants to hear of. Called on the event loop: be quick."""

    on_listening: Callable[[PeerStatus], None] = lambda _: None
    on_seeded: Callable[[Seeded], None] = lambda _: None


async def run_peer(settings: Settings, store: Store, *, seed: bool, targets: Sequence[Target], events: Events) -> None:
    """Run until a signal, a `Stop` or (private) until nobody has needed it for `LINGER_S`.

    ConfigError if the port is in use or the network's file is wrong; whatever error ends the seeding of a target.
    """
    # What was loaded until now stays: to look through all of it again and again took 5% of a busy peer's time.
    gc.freeze()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store"))
    stop = asyncio.Event()
    empty = not await asyncio.to_thread(store.manifests)
    network = await asyncio.to_thread(network_of_store, store.path, settings.network, empty=empty)
    packer = Packer(store, settings.packed)
    holdings = Holdings(store, packer)
    limits = Limits(Rates(**{name: getattr(settings, name) for name in RATES}))
    front = BlobServer(holdings, network, limits)
    control = ControlServer(store.id, _welcome(store, seed=seed), network.fingerprint)
    failures: list[DhtDataError] = []
    believed = Believed()
    async with (
        AsyncExitStack() as exits,
        HttpClient.running(network, settings.listen) as http,
        _node(settings, store, network, believed, seed=seed) as node,
        _server(front, settings.listen, node.port, seed=seed),
        control.running(await asyncio.to_thread(socket_path, store.id)),
    ):
        carrier = exits.enter_context(Carrier.running(network, settings.listen, limits))
        believed.live_at(await asyncio.to_thread(own_addresses, settings.listen, node.port))
        known, finder = await _acquaintances(settings, store, node, http, believed)
        remotes = Remotes()
        fetcher = Fetcher(store, http, carrier, remotes, holdings, settings.packed, spreads=seed)
        own = Fetching(holdings.key, node.port) if seed else NOBODY
        try:
            with _signals(stop):
                async with asyncio.TaskGroup() as group:
                    swarms = Swarms(group, store, finder, http, remotes, fetcher.wake, own)
                    resolver = Resolver(group, settings, store, http, finder, fetcher, swarms)
                    seeder = announcer = None
                    if seed:
                        announcer = Announcer(node, store)
                        seeder = Seeder(group, store, fetcher, swarms, resolver, announcer, known, packer)
                    desk = Desk(
                        release=RELEASE,
                        settings=settings,
                        store=store,
                        node=node,
                        dht=DhtDesk(node, finder, announcer),
                        resolver=resolver,
                        fetcher=fetcher,
                        swarms=swarms,
                        ensuring=Ensuring(store, fetcher, swarms),
                        remotes=remotes,
                        seeder=seeder,
                        served=front.served,
                        uploads=front.uploads,
                        limits=limits,
                        figures=Figures(fetcher, remotes, holdings, front.served, limits),
                        addresses=own_addresses(settings.listen, node.port) if seed else (),
                        port=node.port,
                        clients=lambda: control.clients,
                        stop=stop,
                    )
                    front.directory = desk
                    group.create_task(fetcher.run())
                    group.create_task(_join(finder))
                    group.create_task(_remember(remotes, known))
                    group.create_task(_watch_store(store, stop, failures))
                    if seeder is not None and announcer is not None:
                        group.create_task(announcer.sweep())
                        group.create_task(packer.run())
                        group.create_task(seeder.follow_all())
                        group.create_task(seeder.watch_pins())
                        group.create_task(_seed_all(desk, seeder, targets, events, failures))
                    else:
                        group.create_task(_end_when_unused(control, stop))
                    await control.serve(group, desk.handle, desk.greet)
                    events.on_listening(await desk.status())
                    await stop.wait()
                    if announcer is not None:
                        await announcer.withdraw_all()
                    raise _Stopped
        except* _Stopped:
            pass
        except* StoreError as lost:
            # Somebody met it before `_watch_store` did.
            failures += _leaves(lost)
        await _save(known)
    if failures:
        raise failures[0]


def _welcome(store: Store, *, seed: bool) -> Welcome:
    return Welcome(
        protocol=PROTOCOL,
        version=RELEASE,
        pid=os.getpid(),
        kind="seed" if seed else "private",
        cache_limit=store.cache_limit,
    )


def _leaves(group: BaseExceptionGroup[StoreError]) -> list[DhtDataError]:
    """The single errors of a group that may hold groups."""
    return [
        leaf for one in group.exceptions for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


@asynccontextmanager
async def _node(
    settings: Settings, store: Store, network: Network, believed: Believed, *, seed: bool
) -> AsyncIterator[DhtNode]:
    """The DHT node: on the seed's own port, or any for a private peer."""
    key = await asyncio.to_thread(load_or_create_key, store.path / _NODE_KEY)
    port = 0
    if seed:
        port = settings.port or await asyncio.to_thread(free_port, settings.listen)
    async with DhtNode.running(
        key,
        listen=settings.listen,
        port=port,
        client=not seed,
        folder=store.path,
        network=network,
        believed=believed,
    ) as node:
        yield node


@asynccontextmanager
async def _server(front: BlobServer, listen: str, port: int, *, seed: bool) -> AsyncIterator[None]:
    """The HTTP server of a seed, on the same port as its DHT node; a private peer has none."""
    if not seed:
        yield
        return
    async with front.running(listen, port):
        yield


async def _acquaintances(
    settings: Settings, store: Store, node: DhtNode, http: HttpClient, believed: Believed
) -> tuple[Known, Finder]:
    known = Known(store.path, believed)
    await asyncio.to_thread(known.load)
    known.trust(settings.bootstrap)
    known.name_web_seeds(settings.web_seeds)
    return known, Finder(node, http, known, believed)


async def _seed_all(
    desk: Desk, seeder: Seeder, targets: Sequence[Target], events: Events, failures: list[DhtDataError]
) -> None:
    """Take up what is pinned and what was asked for; a target that cannot be found ends the peer with its error."""
    try:
        await seeder.keep_pinned()
        for target in targets:
            events.on_seeded(await desk.seed(target))
    except DhtDataError as failure:
        failures.append(failure)
        desk.stop.set()


async def _end_when_unused(control: ControlServer, stop: asyncio.Event) -> None:
    await control.wait_unused(LINGER_S)
    stop.set()


async def _watch_store(store: Store, stop: asyncio.Event, failures: list[DhtDataError]) -> None:
    """End when the store's folder is removed or replaced: nobody finds this peer then, but it holds its port."""
    lock = store.path / PEER_LOCK
    ours = await asyncio.to_thread(_identity, lock)
    while await asyncio.to_thread(_identity, lock) == ours:
        try:
            async with asyncio.timeout(STORE_S):
                await stop.wait()
            return
        except TimeoutError:
            continue
    failures.append(StoreError(f"{store.path} was removed or replaced while its peer ran: start the peer again"))
    stop.set()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino)


async def _join(finder: Finder) -> None:
    """Enter the DHT through everybody known. The node itself goes on asking while it knows nobody."""
    try:
        async with asyncio.timeout(JOIN_S):
            await finder.join(finder.known.everybody())
    except TimeoutError:
        # Nobody there yet: tickets and retries of the node follow.
        return


async def _remember(remotes: Remotes, known: Known) -> None:
    """Note who serves well, now and then."""
    while True:
        await asyncio.sleep(REMEMBER_EVERY_S)
        for remote in remotes.everybody():
            if isinstance(remote.provider, Address) and remote.blocks and remotes.usable(remote.provider):
                known.remember(remote.provider)
        await _save(known)


async def _save(known: Known) -> None:
    try:
        await asyncio.to_thread(known.save)
    except StoreError:
        # A full disk: what is remembered is a convenience, the next save may do.
        return


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT end the peer in order."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
