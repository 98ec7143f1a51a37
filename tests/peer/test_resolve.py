from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from dhtdata.dht import DhtNode
from dhtdata.formats.addresses import Believed
from dhtdata.formats.ticket import Ticket
from dhtdata.peer.finder import Finder
from dhtdata.peer.known import Known
from dhtdata.peer.resolve import Resolver
from dhtdata.peer.swarms import Swarms
from dhtdata.signing import SigningKey
from dhtdata.store import Store
from dhtdata.transfer.swarm import NOBODY
from tests.peer.processes import settings_at
from tests.peer.worlds import World, make_world
from tests.transfer.swarming import node


def test_where_udp_is_blocked_a_ticket_is_resolved_over_http_meanwhile(
    tmp_path: Path,
) -> None:
    world = make_world()
    with Store.open(tmp_path / "giving") as giving, Store.open(tmp_path / "taking") as taking:
        world.publish(giving)
        asyncio.run(resolved_beside_the_dht(tmp_path, world, giving, taking))


async def resolved_beside_the_dht(folder: Path, world: World, giving: Store, taking: Store) -> None:
    async with node(giving) as giver, node(taking) as taker:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind((giver.address.ip, giver.address.port))  # takes datagrams and never answers
            believed = Believed()
            async with DhtNode.running(
                SigningKey.generate(), listen="127.0.0.1", port=0, client=True, folder=None, believed=believed
            ) as dht:
                finder = Finder(dht, taker.http, Known(folder, believed), believed)
                async with asyncio.TaskGroup() as group:
                    swarms = Swarms(group, taking, finder, taker.http, taker.remotes, taker.fetcher.wake, NOBODY)
                    resolver = Resolver(group, settings_at(folder), taking, taker.http, finder, taker.fetcher, swarms)
                    found = await resolver.resolve(Ticket(world.manifest, (giver.address,)))
                    assert found.contents == world.contents
                    assert finder.joining.locked()  # still knocking at the door of the DHT
                    for task in asyncio.all_tasks() - {asyncio.current_task()}:
                        if getattr(task.get_coro(), "__qualname__", "") in ("Swarm.run", "Resolver._join"):
                            task.cancel()
