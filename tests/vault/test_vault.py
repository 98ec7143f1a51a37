"""Blocks fetched for loops that end, overlap or begin again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dhtdata.control.client import PeerClient
from dhtdata.control.protocol import Ensured
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.index import Index, ShardEntry
from dhtdata.store import Store
from dhtdata.tables.schema import stored_schema
from dhtdata.vault.crew import Crew
from dhtdata.vault.opened import OpenShard
from dhtdata.vault.shards import GroupShards
from dhtdata.vault.vault import Origin, Vault
from tests.mount.making import shard_of

PUBLISHER = bytes(32)


@dataclass
class Provider:
    """A peer of one shard, which it has once it is ``found``. ``asked``: somebody waits for it."""

    store: Store
    shard: bytes
    asked: threading.Event = field(default_factory=threading.Event)
    found: bool = False

    def ensure_blocks(self, contents: Digest, shard: Digest, *_: Any, ahead: bool) -> Ensured:
        self.asked.set()
        if not self.found:
            raise NotFoundError("nobody has it")
        self.store.put(self.shard)
        return Ensured(str(self.store.path_of(shard)), complete=True)

    def providers(self, contents: Digest) -> Iterable[Any]:
        return []


@dataclass(frozen=True)
class Scene:
    vault: Vault
    provider: Provider
    group: GroupShards

    def shard(self) -> OpenShard:
        return self.vault.shard(self.group, 0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    batch = pa.record_batch({"number": pa.array(range(10), pa.int64())})
    stored = stored_schema(batch.schema)
    encoded, table = shard_of([batch], stored)
    with Store.open(tmp_path / "store") as store:
        store.trust_publisher(PUBLISHER)
        entry = ShardEntry(Digest.of(encoded), store.put(table.encode()), table.row_count, table.shard_bytes)
        index = Index.build([entry])
        firsts = pa.array([0, 10]).to_numpy()
        group = GroupShards(stored, ("number",), (index,), firsts, (0,), entry.size, Digest(bytes(32)))
        provider = Provider(store, encoded)
        client: Any = provider

        def connect() -> PeerClient:
            return client  # type: ignore[no-any-return]

        origin = Origin(Digest(bytes(32)), "a dataset", PUBLISHER, lambda client: None)
        vault = Vault(store, origin, connect, timeout_s=60.0)
        yield Scene(vault, provider, group)
        vault.close()


def test_a_loop_gets_what_one_that_was_left_had_asked_for_in_vain(scene: Scene) -> None:
    shard = scene.shard()
    with scene.vault.fetching():
        (given_up,) = scene.vault.ask(shard, [1], ahead=True)
        assert scene.provider.asked.wait(10)
    scene.provider.found = True
    with scene.vault.fetching():
        scene.vault.ensure([(shard, [1])])
    assert scene.vault.batch(shard, 1).column("number").to_pylist() == list(range(10))
    assert given_up.done()


def test_a_loop_goes_on_waiting_when_another_one_ends(scene: Scene) -> None:
    shard = scene.shard()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(scene.vault.fetching())
        second.enter_context(scene.vault.fetching())
        (waiting,) = scene.vault.ask(shard, [1], ahead=True)
        assert scene.provider.asked.wait(10)
        first.close()
        scene.provider.found = True
        waiting.result(timeout=30)
    scene.vault.join()


def test_without_a_loop_rows_are_waited_for_too_after_one_was_left(scene: Scene) -> None:
    shard = scene.shard()
    with scene.vault.fetching():
        pass
    fetching = threading.Thread(target=scene.vault.ensure, args=([(shard, [1])],))
    fetching.start()
    assert scene.provider.asked.wait(10)
    scene.provider.found = True
    fetching.join(30)
    assert shard.complete


def test_a_closed_vault_waits_for_nothing(scene: Scene) -> None:
    shard = scene.shard()
    scene.vault.close()
    with pytest.raises(NotFoundError, match="not waited for any more"):
        scene.vault.ensure([(shard, [1])])


def test_a_closed_crew_refuses_what_nobody_would_do() -> None:
    crew = Crew(1, "test")
    done = threading.Event()
    assert crew.put(done.set) and done.wait(10)
    crew.close()
    assert not crew.put(done.clear)
    assert crew.submit(lambda: 5).result(timeout=0) == 5
    crew.join()
