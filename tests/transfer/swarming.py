"""Real servers and fetchers in one event loop: what the tests of transfer share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name
from dhtdata.network import PUBLIC, Network
from dhtdata.store import Store
from dhtdata.transfer.answers import ProviderRecord
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.rates import Limits
from dhtdata.transfer.search import each
from dhtdata.transfer.server import BlobServer
from dhtdata.transfer.swarm import Fetching, Swarm
from dhtdata.transfer.threads import Carrier

_T = TypeVar("_T")
DEADLINE_S = 15.0
NewStore = Callable[[str], Store]


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a test's coroutine; a hang fails with a traceback."""

    async def bounded() -> _T:
        async with asyncio.timeout(DEADLINE_S):
            return await main

    return asyncio.run(bounded())


@dataclass
class Table:
    """A directory out of dictionaries."""

    addresses: dict[Digest, Sequence[Address]] = field(default_factory=dict)
    records: dict[Digest, list[ProviderRecord]] = field(default_factory=dict)
    names: dict[Name, bytes] = field(default_factory=dict)
    swarms: dict[Digest, Swarm] = field(default_factory=dict)

    def peers(self, contents: Digest) -> Sequence[Address]:
        swarm = self.swarms.get(contents)
        return [*self.addresses.get(contents, ()), *(swarm.known() if swarm is not None else ())]

    def asked(self, contents: Digest, address: Address) -> None:
        if (swarm := self.swarms.get(contents)) is not None:
            swarm.asked_by(address)

    async def lookup(self, digest: Digest) -> list[ProviderRecord]:
        return self.records.get(digest, [])

    async def name(self, name: Name) -> bytes:
        if name not in self.names:
            raise NotFoundError(f"{name} is not known")
        return self.names[name]

    async def metrics(self) -> dict[str, float]:
        return {"datasets": 1}

    async def page(self) -> str:
        return "a peer\n"


@dataclass
class Node:
    """One peer without DHT and control socket."""

    store: Store
    http: HttpClient
    holdings: Holdings
    remotes: Remotes
    fetcher: Fetcher
    server: BlobServer
    address: Address
    group: asyncio.TaskGroup
    directory: Table

    def swarm(self, contents: Digest, *providers: Address) -> Swarm:
        """A swarm that knows these providers, and whoever they tell of."""

        swarm = Swarm(
            contents,
            self.http,
            self.remotes,
            discover=lambda _: each(()),
            guard=_not(self.address),
            changed=self.fetcher.wake,
            own=Fetching(self.holdings.key, self.address.port),
        )
        self.directory.swarms[contents] = swarm
        swarm.add(providers, "test", trusted=True)
        self.group.create_task(swarm.run())
        return swarm

    async def place(self, swarm: Swarm) -> None:
        swarm.layout = await asyncio.to_thread(Layout.load, self.store, swarm.contents)


def _not(own: Address) -> Callable[[Address], bool]:
    return lambda address: address != own


@asynccontextmanager
async def node(store: Store, network: Network = PUBLIC, limits: Limits | None = None) -> AsyncIterator[Node]:
    holdings = Holdings(store)
    remotes = Remotes()
    server = BlobServer(holdings, network, limits)
    server.directory = directory = Table()
    async with (
        AsyncExitStack() as exits,
        HttpClient.running(network) as http,
        server.running("127.0.0.1", 0) as port,
    ):
        carrier = exits.enter_context(Carrier.running(network))
        fetcher = Fetcher(store, http, carrier, remotes, holdings)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(fetcher.run())
            made = Node(store, http, holdings, remotes, fetcher, server, Address("127.0.0.1", port), group, directory)
            try:
                yield made
            finally:
                running.cancel()
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    if getattr(task.get_coro(), "__qualname__", "") == "Swarm.run":
                        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task does; the test's deadline bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
