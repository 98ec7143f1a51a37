"""What a peer tells of transfers while they last: real seeds, real fetches."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhtdata.control import PeerClient
from dhtdata.control.protocol import Progress
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import Ticket
from dhtdata.peer.addresses import free_port
from dhtdata.peer.tally import CELLS, FULL
from dhtdata.store import Store
from tests.peer.processes import opened, seeding, settings_at, until
from tests.peer.worlds import World, make_world

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]


def _published(folder: Path, world: World) -> None:
    with Store.open(folder / "store") as store:
        world.publish(store)


def test_progress_tells_every_block_the_have_map_and_who_delivers(tmp_path: Path) -> None:
    world = make_world(31, shards=6, blocks=20, block_bytes=100_000)
    total, blocks = sum(len(shard.body) for shard in world.shards), sum(len(s.table.blocks) for s in world.shards)
    _published(tmp_path / "a", world)
    # A limit makes it last for some seconds, so that there is something to see.
    with (
        seeding(settings_at(tmp_path / "a")) as seed,
        opened(tmp_path / "b", down=total // 3) as (store, settings),
        PeerClient.connect(store, settings, start=True) as client,
    ):
        found = client.resolve(Ticket(world.manifest, (seed.address,)), 20)
        seen: list[Progress] = []
        client.fetch_dataset(found.manifest, on_progress=seen.append)
        last = seen[-1]
        assert (last.shards, last.bytes, last.fetched, last.blocks, last.blocks_total) == (
            6,
            total,
            total,
            blocks,
            blocks,
        )
        assert last.have == bytes([FULL] * CELLS) and last.reused == last.wasted == 0
        [provider] = last.traffic
        assert (provider.address, provider.share, provider.bytes) == (str(seed.address), 1.0, total)
        assert 0 < provider.latency_s < 5 and not provider.outstanding
        for before, after in zip(seen, seen[1:], strict=False):
            assert before.bytes <= after.bytes and before.blocks <= after.blocks and before.elapsed_s < after.elapsed_s
        half_way = [one for one in seen if 0 < one.bytes < total]
        assert any(one.rate_bytes_s > 0 and one.traffic[0].outstanding for one in half_way)
        assert any(0 < sum(one.have) < FULL * CELLS for one in half_way)
        assert all(one.bound_s is None or one.bound_s <= one.elapsed_s * 1.001 for one in seen)

        client.fetch_dataset(found.manifest, on_progress=seen.append)
        assert (seen[-1].bytes, seen[-1].fetched, seen[-1].blocks, seen[-1].bound_s) == (total, 0, 0, None)

        with Store.open(seed.settings.store) as held, PeerClient.connect(held, seed.settings, start=False) as serving:
            status = serving.status()
            [upload] = status.fetchers
            assert upload.address == "127.0.0.1" and upload.bytes == status.bytes_served >= total
            assert [entry.have for entry in status.datasets] == [bytes([FULL] * CELLS)]


def test_a_seed_is_not_listed_among_the_providers_that_it_knows(tmp_path: Path) -> None:
    world = make_world(32)
    _published(tmp_path / "a", world)
    _published(tmp_path / "b", world)
    # A ticket or a list of bootstrap peers that names all of a lab's seeds names this one too.
    own = Address("127.0.0.1", free_port("127.0.0.1"))
    with (
        seeding(settings_at(tmp_path / "a")) as first,
        seeding(settings_at(tmp_path / "b", bootstrap=(first.address, own), port=own.port)) as second,
        Store.open(second.settings.store) as held,
        PeerClient.connect(held, second.settings, start=False) as client,
    ):
        until(lambda: [one.address for one in client.providers(world.contents)] == [str(first.address)])
