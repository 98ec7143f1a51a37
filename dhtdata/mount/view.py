"""One split and some of its columns, readable from any process: survives pickling and forking.

What is shared are values; store, maps, sockets and threads belong to one process id and are made when first needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.config import Settings
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.contents import Split
from dhtdata.formats.statistics import MAX_STATISTICS_BYTES, Statistics
from dhtdata.formats.ticket import Target
from dhtdata.gather.gatherer import Gatherer
from dhtdata.gather.parcels import Parcel, Reading
from dhtdata.mount.meter import Held, Meter
from dhtdata.mount.ranks import find_worker
from dhtdata.mount.resolve import Dataset, find_stored, find_with_peer, read_indexes
from dhtdata.order import Dealt, EpochOrder, Path, Pieces, Share, Steps
from dhtdata.signing import load_or_create_key
from dhtdata.store import Store
from dhtdata.tables.schema import to_arrow
from dhtdata.vault.horizon import Horizon, Needs
from dhtdata.vault.readahead import Readahead
from dhtdata.vault.shards import GroupShards, choose_columns, find_split, lay_out, needed_groups
from dhtdata.vault.vault import Origin, Vault

if TYPE_CHECKING:
    from dhtdata.control.client import PeerClient
    from dhtdata.filters import Selection

REMIND_S = 20.0
STORED_AHEAD_BYTES = 64_000_000
ROOT_KEY = "root.key"


@dataclass
class _Here:
    """What belongs to one process."""

    pid: int
    vault: Vault
    gatherer: Gatherer | None = None


class View:
    """Columns of a split. Make it with `open_view`."""

    def __init__(
        self,
        target: Target,
        settings: Settings,
        timeout_s: float,
        store: Store,
        client: PeerClient | None,
        dataset: Dataset,
        split: Split,
        columns: tuple[str, ...],
    ) -> None:
        self.dataset = dataset
        self.split = split
        whole = to_arrow(dataset.contents.columns, dataset.contents.metadata)
        self.schema = pa.schema([whole.field(name) for name in columns], whole.metadata)
        self.ranges: tuple[int, ...] = ()
        """Rows of the row ranges, as far as they are shown."""
        self.num_rows = split.rows
        self.filter_key = ""
        self.groups: list[GroupShards] = []
        self._target = target
        self._settings = settings
        self._timeout_s = timeout_s
        self._client = client
        self._complete = False
        self._store: Store | None = store
        self._here: _Here | None = None
        self.meter = Meter()
        self._selected: Selection | None = None

    @property
    def byte_count(self) -> int:
        """Bytes of all shards that hold these columns, in proportion to the rows that are shown."""
        return sum(group.byte_count for group in self.groups) * self.num_rows // self.split.rows

    @property
    def complete(self) -> bool:
        """Whether all of it was in the store when it was mounted."""
        return self._complete

    def selection(self) -> Selection | None:
        """Which rows are shown; None means all."""
        return self._selected

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split at these positions among the rows that are shown."""
        selection = self.selection()
        return positions if selection is None else selection.rows(positions)

    def gather(self, dealt: Dealt, reading: Reading, batched: bool) -> tuple[Parcel, Dealt]:
        """These rows of the split, in this order, once they are here: see `Reading.read`."""
        return reading.read(self.gatherer(), dealt, batched)

    def gatherer(self) -> Gatherer:
        """This process's."""
        here = self._process()
        if here.gatherer is None:
            waiting = partial(self.meter.stalled, _slot())
            here.gatherer = Gatherer(here.vault, self.groups, self.schema, self.split.rows, waiting)
        return here.gatherer

    def stored(self, cuts: Iterable[tuple[int, int]]) -> Iterator[pa.RecordBatch]:
        """Rows at positions ``[first, stop)``, for spans one after another, in stored types; fetched ahead."""
        steps = Steps(
            EpochOrder(Pieces(self.ranges), seed=0, epoch=0, shuffle=False),
            Share(),
            global_batch=1,
            remainder="uneven",
        )
        with self.reading_ahead(steps, STORED_AHEAD_BYTES) as ahead:
            for first, stop in cuts:
                if ahead is not None:
                    ahead.advance(stop)
                yield self.gatherer().stored(self.rows(np.arange(first, stop, dtype=np.int64)))
        if ahead is not None:  # all was read, so they end now: no thread may be left when somebody forks
            ahead.join()
            self._process().vault.join()

    @contextmanager
    def reading_ahead(self, path: Path, limit_bytes: int) -> Iterator[Readahead | None]:
        """Fetch ahead on ``path``; None if all shards were in the store when the dataset was mounted."""
        if self._complete:
            yield None
            return
        vault = self._process().vault
        with ExitStack() as ending:
            horizon = None
            if self.connect().cache_limit is not None:
                horizon = self._horizon(vault, path)
                ending.callback(horizon.close)
            ahead = Readahead(vault, self.groups, path, limit_bytes, horizon, self.selection())
            with vault.fetching(), ahead.running():
                yield ahead

    def held(self) -> Held:
        """What all processes waited for, and hold ahead of their loops."""
        return replace(self.meter.total(), stored=self._complete)

    def note(self, ahead: Readahead) -> None:
        """Tell those who look what is here ahead of the loop."""
        self.meter.hold(_slot(), ahead.held_bytes())

    def _horizon(self, vault: Vault, path: Path) -> Horizon:
        from dhtdata.control.reading import Reading

        columns = ",".join(self.schema.names)
        whose = f"{self.dataset.contents_digest} {self.split.name} {columns} {self.filter_key}"
        return Horizon(vault, Reading(self.connect()), whose, self.groups, path, self.selection())

    def look_ahead(self, needs: Needs, given: int | None, usual: int) -> int:
        """Bytes to read ahead, see `Needs.ahead`; the usual if nothing limits the store, or all is here or stays."""
        room = self.room()
        if room is None:
            return usual if given is None else given
        return needs.ahead(given, usual, *room)

    def room(self) -> tuple[int, int] | None:
        """Limit of the store, and how much of it never makes room; None if nothing here is ever dropped."""
        limit_bytes = self.connect().cache_limit if not self._complete else None
        store = self._open_store()
        if limit_bytes is None or any(
            entry.pinned and entry.digest == self.dataset.digest for entry in store.manifests()
        ):
            return None
        return limit_bytes, store.kept_bytes()

    @property
    def store_path(self) -> FilePath:
        return self._settings.store

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Fetch from several shards at once while inside."""
        with self._process().vault.fetching():
            yield

    def batches(self, group: GroupShards) -> Iterator[pa.RecordBatch]:
        """All rows of one group, block by block, mapped from disk."""
        vault = self._process().vault
        with vault.fetching():
            opened = [vault.shard(group, number) for number in range(len(group))]
            vault.ensure([(shard, range(1, len(shard.table.blocks) - 1)) for shard in opened])
        for shard in opened:
            for block in range(1, len(shard.table.blocks) - 1):
                yield vault.batch(shard, block)

    @contextmanager
    def beside(self, columns: Sequence[str]) -> Iterator[View]:
        """Other columns of the same split, all rows, to be laid out; they are closed afterwards."""
        arguments = (self._target, self._settings, self._timeout_s, self._open_store(), self._client)
        other = View(*arguments, self.dataset, self.split, tuple(columns))
        try:
            yield other
        finally:
            other.unmap()
            self._client, other._client, other._store = other._client, None, None

    def statistics(self) -> Statistics:
        digest = self.dataset.manifest.statistics
        store = self._open_store()
        if not store.has(digest):
            self._fetch([(digest, MAX_STATISTICS_BYTES)])
        return Statistics.decode(store.read(digest, limit_bytes=MAX_STATISTICS_BYTES))

    def close(self) -> None:
        """Unmap, close store and connection. What was handed out stays readable."""
        self.unmap()
        store, self._store = self._store, None
        if store is not None:
            store.close()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def unmap(self) -> None:
        """Close the shards that this process has open; they are opened again when they are read."""
        here, self._here = self._here, None
        if here is not None and here.pid == os.getpid():
            here.vault.close()

    def __del__(self) -> None:
        if (client := getattr(self, "_client", None)) is not None:
            client.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_here": None, "_store": None, "_selected": None}

    # Opening

    def load(self) -> None:
        """Find the rows, and see whether all their shards are here; otherwise a peer is started."""
        self.lay_out()
        self.show(self.selection())

    def lay_out(self) -> None:
        """Read ranges and indexes."""
        store, columns = self._open_store(), self.schema.names
        numbers = needed_groups(self.dataset.contents, columns)
        self.ranges, indexes = read_indexes(self.dataset, self.split, numbers, store, self._fetch)
        logical = to_arrow(self.dataset.contents.columns, {})
        self.groups = [
            lay_out(self.dataset.contents, self.split, number, columns, logical, of_group)
            for number, of_group in zip(numbers, indexes, strict=True)
        ]

    def show(self, selection: Selection | None) -> None:
        """Show these rows only."""
        if selection is not None:
            self._selected, self.ranges, self.num_rows = selection, selection.range_counts(), selection.count
        self._complete = self._holds_all(self._open_store())
        if not self._complete:
            self.connect()

    def _holds_all(self, store: Store) -> bool:
        """Whether every shard of these rows and columns is stored.

        One look is enough where nothing is: a terabyte to come.
        """
        spans = None if self._selected is None else self._selected.spans()
        needed = [[group.entry(number).digest for number in group.needed(spans)] for group in self.groups]
        if not all(store.has(digests[0]) for digests in needed):
            return False
        missing = set(store.missing_blobs(self.dataset.digest))
        return not missing or missing.isdisjoint(digest for digests in needed for digest in digests)

    def expect_stranger(self) -> None:
        """Most of what comes has to be checked: see `Vault.expect_stranger`."""
        self._process().vault.expect_stranger()

    def connect(self) -> PeerClient:
        """The peer of the store, started if none runs."""
        if self._client is None:
            from dhtdata.control.client import PeerClient

            self._client = PeerClient.connect(self._open_store(), self._settings, start=True)
            self._remind(self._client)
        return self._client

    def _remind(self, client: PeerClient) -> None:
        client.resolve(self._target, min(self._timeout_s, REMIND_S))

    def _fetch(self, blobs: list[tuple[Digest, int]]) -> None:
        self.connect().fetch_blobs(self.dataset.contents_digest, blobs, self._timeout_s)

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = Store.open(self._settings.store, cache_limit=self._settings.cache_limit)
        return self._store

    def _process(self) -> _Here:
        here = self._here
        if here is None or here.pid != os.getpid():
            dataset = self.dataset
            publisher = dataset.publisher or dataset.contents_digest
            origin = Origin(dataset.contents_digest, dataset.title, publisher, self._remind)
            vault = Vault(self._open_store(), origin, self.connect, self._timeout_s)
            here = self._here = _Here(os.getpid(), vault)
        return here


def _slot() -> int:
    """Where this process writes what it waited for: workers by number."""
    worker = find_worker()
    return 0 if worker is None else worker.number + 1


def open_view(
    target: Target,
    settings: Settings,
    split: str,
    columns: Sequence[str] | None,
    timeout_s: float,
    make: Callable[..., View] = View,
) -> View:
    """Find a dataset, in the store or by the peer, and read what is needed to find its rows.

    ``make`` takes the arguments of `View`.
    """
    with ExitStack() as opened:
        store = opened.enter_context(Store.open(settings.store, cache_limit=settings.cache_limit))
        client = None
        try:
            dataset = find_stored(target, store)
        except NotFoundError:
            from dhtdata.control.client import PeerClient

            client = opened.enter_context(PeerClient.connect(store, settings, start=True))
            dataset = find_with_peer(target, store, client, timeout_s)
        chosen = choose_columns(dataset.contents, columns)
        _trust_own(dataset, store, settings)
        view = make(target, settings, timeout_s, store, client, dataset, find_split(dataset.contents, split), chosen)
        if client is not None:
            opened.callback(view.unmap)
            view.expect_stranger()
        view.load()
        opened.pop_all()
        return view


def _trust_own(dataset: Dataset, store: Store, settings: Settings) -> None:
    """Shards that this user signed need no process of their own to be checked in."""
    path = settings.keys / ROOT_KEY
    publisher = dataset.publisher
    if publisher is not None and path.exists() and not store.trusts(publisher):
        if load_or_create_key(path).public == publisher:
            store.trust_publisher(publisher)
