from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dhtdata.errors import PeerError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.store import Store
from dhtdata.transfer import threads
from dhtdata.transfer.picker import Run
from dhtdata.transfer.threads import Cargo, Carrier
from tests.peer.worlds import make_world
from tests.transfer.swarming import run


@pytest.fixture
def cargo(tmp_path: Path) -> Cargo:
    shard = make_world(shards=1).shards[0]
    with Store.open(tmp_path / "store") as store:
        partial = store.partial(shard.digest, shard.table)
        length = shard.table.blocks[0].length
        run_of_one = Run(shard.digest, 0, 1, 0, length)
        return Cargo(
            Address("192.0.2.1", 1),
            run_of_one,
            partial,
            heard=lambda _: None,
            on_began=lambda: None,
            on_block=lambda *_: None,
        )


def test_what_the_limits_make_a_run_wait_does_not_count_as_slowness(
    cargo: Cargo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "deadline_s", lambda _: 0.0)

    async def main() -> None:
        with pytest.raises(PeerError, match="too long"):
            await Carrier._in_time(cargo, asyncio.get_running_loop().create_future())
        cargo.rested_s = 1_000.0
        work = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, work.set_result, None)
        await Carrier._in_time(cargo, work)

    run(main())


def test_who_is_stopped_does_not_go_on_after_a_rest(cargo: Cargo) -> None:
    cargo.stop()
    with pytest.raises(PeerError, match="given up"):
        cargo.rest(60.0)


def test_no_memory_for_a_block_is_said_with_what_to_do() -> None:
    with pytest.raises(StoreError, match="ulimit"):
        threads._memory(1 << 62)
