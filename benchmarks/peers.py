"""Peers of a benchmark: machines with a store and an address of their own, datasets on them, and what fetching takes.

A machine is a folder and an address of the loopback network. A peer on it is a real process (`peer_process`), which
runs before any clock starts. The clock of `fetch` covers one ``fetch_dataset`` request, from the question to the answer
that all shards are in the store: verified, fsynced, renamed. Afterwards every shard's file is digested again by the
benchmark, so that a speed is never told of wrong bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import temporary_folder
from benchmarks.mortal import Worker, worker
from dhtdata import publish
from dhtdata.config import Settings, load_settings
from dhtdata.control import PeerClient
from dhtdata.control.protocol import Progress
from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.index import MAX_INDEX_BYTES, Index, ShardEntry
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store

MIB = 1 << 20
SHARD_BYTES = 32 * MIB
ROW_BYTES = 4_096
START_S = 30.0
RESOLVE_S = 60.0
_BATCH_ROWS = 4_096


@dataclass(frozen=True)
class Machine:
    """``options``: settings besides where it is, by the names of `dhtdata.config.Settings`.

    ``enter``: what to put before a command that shall run there (`benchmarks.namespaces`).
    """

    folder: Path
    ip: str
    options: Mapping[str, str | int] = field(default_factory=dict)
    enter: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := self.options.keys() - {each.name for each in fields(Settings)}:
            raise RuntimeError(f"this dhtdata has no setting {', '.join(sorted(unknown))}")

    @property
    def flags(self) -> dict[str, str | int]:
        return {"home": str(self.folder), "listen": self.ip, "port": 0, **self.options}

    @property
    def settings(self) -> Settings:
        return load_settings(self.flags, environment={})

    def store(self) -> Store:
        return Store.open(self.settings.store)

    @contextmanager
    def client(self) -> Iterator[PeerClient]:
        """A conversation with the peer that runs here."""
        with self.store() as store, PeerClient.connect(store, self.settings, start=False) as client:
            yield client


@dataclass(frozen=True)
class Dataset:
    """A published dataset: each shard once."""

    manifest: Digest
    contents: Digest
    shards: tuple[ShardEntry, ...]

    @property
    def byte_count(self) -> int:
        return sum(shard.size for shard in self.shards)


@dataclass(frozen=True)
class Peer:
    """A process that runs. ``address`` is where it listens (a seed)."""

    machine: Machine
    process: Worker
    address: Address | None

    def ticket(self, dataset: Dataset, at: Address | None = None) -> str:
        """A ticket that leads here, or to whoever stands in front."""
        where = at or self.address
        if where is None:
            raise RuntimeError("a private peer gives no tickets")
        return str(Ticket(dataset.manifest, (where,)))


@contextmanager
def world() -> Iterator[Path]:
    """A folder for machines; their peers' control sockets are in it too."""
    with temporary_folder() as folder:
        sockets = folder / "run"
        sockets.mkdir(mode=0o700)
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = str(sockets)
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before


@contextmanager
def seed(machine: Machine, *datasets: Dataset) -> Iterator[Peer]:
    """A seed that listens, and has taken up these datasets, until the block ends."""
    targets = [str(dataset.manifest) for dataset in datasets]
    arguments = ("seed", json.dumps(machine.flags), *targets)
    with worker("benchmarks.peer_process", *arguments, what="a seed", before=machine.enter) as process:
        address = Address.parse(process.hear(START_S)["addresses"][0])
        for _ in datasets:
            process.hear(START_S)
        yield Peer(machine, process, address)


@contextmanager
def private(machine: Machine) -> Iterator[Peer]:
    """A private peer, as a mount or ``dhtdata get`` starts one, until the block ends."""
    arguments = ("private", json.dumps(machine.flags))
    with worker("benchmarks.peer_process", *arguments, what="a private peer", before=machine.enter) as process:
        process.hear(START_S)
        yield Peer(machine, process, None)


def fetch(
    machine: Machine, ticket: str, dataset: Dataset, on_progress: Callable[[Progress], None] | None = None
) -> tuple[float, float]:
    """(seconds to find the version, seconds to have all shards) by the running peer. The bytes are verified after."""
    with machine.client() as client:
        started = time.perf_counter()
        resolved = client.resolve(ticket, RESOLVE_S)
        found = time.perf_counter()
        client.fetch_dataset(resolved.manifest, on_progress=on_progress)
        done = time.perf_counter()
    verify(machine, dataset)
    return found - started, done - found


def verify(machine: Machine, dataset: Dataset) -> None:
    """RuntimeError unless every shard is in the store and its file has the digest's bytes."""
    with machine.store() as store:
        for shard in dataset.shards:
            content = store.path_of(shard.digest).read_bytes()
            if len(content) != shard.size or Digest.of(content) != shard.digest:
                raise RuntimeError(f"shard {shard.digest} was fetched wrong")


def publish_random(machine: Machine, byte_count: int, seed: int, name: str = "random") -> Dataset:
    """About so many bytes that nothing compresses, as rows of 4 KiB, cut into shards as any publisher's are."""
    chance = np.random.default_rng(seed)
    schema = pa.schema([("value", pa.binary(ROW_BYTES))])

    def batches() -> Iterator[pa.RecordBatch]:
        left = max(byte_count // ROW_BYTES, 1)
        while left:
            rows = min(left, _BATCH_ROWS)
            left -= rows
            values = pa.FixedSizeBinaryArray.from_buffers(
                schema.field(0).type, rows, [None, pa.py_buffer(chance.bytes(rows * ROW_BYTES))]
            )
            yield pa.RecordBatch.from_arrays([values], schema=schema)

    return publish_rows(machine, pa.RecordBatchReader.from_batches(schema, batches()), name)


def publish_rows(machine: Machine, rows: object, name: str) -> Dataset:
    """Publish on a machine, without a peer."""
    published = publish(rows, name=name, settings=machine.settings)
    with machine.store() as store:
        return Dataset(published.manifest, published.contents, shards_of(store, published.contents))


def shards_of(store: Store, contents: Digest) -> tuple[ShardEntry, ...]:
    """Every shard once, in order."""
    listed = Contents.decode(store.read(contents, limit_bytes=MAX_CONTENTS_BYTES))
    indexes = [
        Index.decode(store.read(digest, limit_bytes=MAX_INDEX_BYTES))
        for split in listed.splits
        for group in split.groups
        for digest in group.indexes
    ]
    entries = [index[place] for index in indexes for place in range(len(index))]
    return tuple({entry.digest: entry for entry in entries}.values())


def only_through(machine: Machine, address: Address) -> None:
    """RuntimeError if the peer here has had a byte from anybody but this address: then a link was gone round."""
    with machine.client() as client:
        others = [each.address for each in client.status().traffic if each.address != str(address)]
    if others:
        raise RuntimeError(f"bytes came from {', '.join(others)}, past the link at {address}")
