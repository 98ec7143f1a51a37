"""Shards as a mount sees them: opened when first read, checked before that, fetched by the peer if they are not here.

The vault asks the peer for blocks and maps the file in which they arrive; a block is read only after the peer said that
it is verified, or from a whole shard in the store, and after it has passed what `Trust` asks of it.

When nobody has what is missing, or there is no room for it yet, the vault waits, says so, and gives up after
``timeout_s``.

Files are looked at again now and then: a stored shard that was changed on disk is closed, so that it is opened anew,
which finds the change and fetches it again. Of a partial shard that was dropped and begun anew every block is read from
the file in which it arrived.

Threads exist inside `fetching` only, and nothing of this is shared with a forked process: no thread, no socket.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, IntegrityError, NotFoundError, PeerError, StoreError
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.index import ShardEntry
from dhtdata.store import NoRoomYet, Store
from dhtdata.vault.crew import Crew
from dhtdata.vault.opened import MappedFile, OpenShard
from dhtdata.vault.shards import GroupShards
from dhtdata.vault.trust import Trust

if TYPE_CHECKING:
    from dhtdata.control.client import PeerClient

FETCHERS = 8
OPEN_SHARDS = 256
ASK_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
LOOK_S = 0.5
"""A look at 256 files takes half a millisecond."""
_log = logging.getLogger("dhtdata")


_Job = Callable[[], None]
_A = TypeVar("_A")


class _GivenUp(NotFoundError):
    """Whoever asked has left: a loop that still needs it asks again."""


@dataclass(frozen=True)
class Origin:
    """Whose dataset it is: for messages, for trust, and for the peer. ``publisher`` is 32 bytes."""

    contents: Digest
    title: str
    publisher: bytes
    remind: Callable[[PeerClient], None]
    """Tell a new peer again where to look."""


class Vault:
    """The shards of one dataset that this process has open."""

    def __init__(self, store: Store, origin: Origin, connect: Callable[[], PeerClient], timeout_s: float) -> None:
        self._store = store
        self._origin = origin
        self._connect = connect
        self._timeout_s = timeout_s
        self._trust = Trust(store, origin.publisher, origin.title)
        self._client: PeerClient | None = None
        self._shards: OrderedDict[Digest, OpenShard] = OrderedDict()
        self._lock = threading.RLock()
        self._connecting = threading.Lock()
        self._opening: dict[Digest, threading.Lock] = {}
        self._crew: Crew | None = None
        self._closed_crew: Crew | None = None
        self._leaving = threading.Event()
        self._loops = 0
        self._alive: weakref.WeakSet[OpenShard] = weakref.WeakSet()
        self._looked_s = time.monotonic()
        self._closings = 0

    # Opening

    def shard(self, group: GroupShards, number: int) -> OpenShard:
        """The shard's block table, and its file if it is here. Asks the peer for the table if need be."""
        entry = group.entry(number)
        key = entry.digest
        with self._lock:
            if (opened := self._opened(key)) is not None:
                return opened
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            with self._lock:
                if (opened := self._opened(key)) is not None:
                    return opened
            table = self._table(entry)
            made = OpenShard(entry, group, table, np.array([block.first_row for block in table.blocks[1:]], np.int64))
            self._open_stored(made)
            with self._lock:
                self._shards[key] = made
                self._alive.add(made)
                self._opening.pop(key, None)
                while len(self._shards) > OPEN_SHARDS:
                    self._shards.popitem(last=False)
        return made

    def _opened(self, key: Digest) -> OpenShard | None:
        opened = self._shards.get(key)
        if opened is not None:
            self._shards.move_to_end(key)
        return opened

    def look(self) -> int:
        """How many shards were `closed` so far, after a look at the files every `LOOK_S`."""
        if time.monotonic() - self._looked_s > LOOK_S:
            with self._lock:
                self._looked_s = time.monotonic()
                whole = [(shard, shard.file) for shard in self._alive if shard.complete and shard.file is not None]
                changed = [shard for shard, file in whole if file.is_changed()]
                for shard in changed:
                    _log.warning("shard %s was changed on disk while it was read", shard.entry.digest)
                self._close([*changed, *(shard for shard, file in whole if file.is_replaced())])
        return self._closings

    def release(self, wanted: Collection[Digest]) -> None:
        """Close shards that the store has dropped, but for those ``wanted``: open ones take room on the disk."""
        with self._lock:
            self._close([shard for shard in self._alive if shard.entry.digest not in wanted and self._is_gone(shard)])

    def _is_gone(self, shard: OpenShard) -> bool:
        if shard.closed or shard.file is None:
            return False
        return not any(map(shard.file.is_at, (shard.file.path, self._store.place_of(shard.entry.digest))))

    def _close(self, shards: Iterable[OpenShard]) -> None:
        for shard in shards:
            self._closings += not shard.closed
            shard.closed = True
            if self._shards.get(shard.entry.digest) is shard:
                del self._shards[shard.entry.digest]

    def is_open(self, group: GroupShards, number: int) -> bool:
        """Whether `shard` answers at once."""
        return group.entry(number).digest in self._shards

    def is_complete(self, group: GroupShards, number: int) -> bool:
        """Whether the whole shard is in the store, without opening it."""
        digest = group.entry(number).digest
        opened = self._shards.get(digest)
        return opened.complete if opened is not None else self._stored(digest) is not None

    def expect_tables(self, shards: Iterable[tuple[GroupShards, int]]) -> None:
        """Have the block tables of these shards fetched in the background, those that are not here."""
        tables = [group.entry(number).table for group, number in shards if not self.is_open(group, number)]
        wanted = [(table, MAX_TABLE_BYTES) for table in tables if not self._store.has(table)]
        if wanted:
            self._submit(lambda: self._fetch_tables(wanted))

    def _fetch_tables(self, wanted: list[tuple[Digest, int]]) -> None:
        try:
            self._peer().fetch_blobs(self._origin.contents, wanted, ASK_S)
        except DhtDataError as failure:
            _log.debug("%s", failure)  # whoever opens a shard asks for its table again, and says why that fails

    def _table(self, entry: ShardEntry) -> BlockTable:
        try:
            encoded = self._store.read(entry.table, limit_bytes=MAX_TABLE_BYTES)
        except (NotFoundError, IntegrityError):
            wanted = [(entry.table, MAX_TABLE_BYTES)]
            self._persist(
                f"block table of shard {entry.digest}",
                lambda client, wait_s: client.fetch_blobs(self._origin.contents, wanted, wait_s),
            )
            encoded = self._store.read(entry.table, limit_bytes=MAX_TABLE_BYTES)
        with self._trust.blaming(entry):
            table = BlockTable.decode(encoded)
            if (table.row_count, table.shard_bytes) != (entry.rows, entry.size):
                raise FormatError(
                    f"its block table lists {table.row_count} rows and {table.shard_bytes} bytes, "
                    f"its index {entry.rows} and {entry.size}"
                )
        return table

    def _stored(self, digest: Digest) -> Path | None:
        try:
            return self._store.path_of(digest)
        except NotFoundError:
            return None
        except IntegrityError as failure:
            _log.warning("%s; it is fetched again", failure)
            return None

    def _open_stored(self, shard: OpenShard) -> bool:
        """Open and check the whole shard if the store has it."""
        path = self._stored(shard.entry.digest)
        if path is None:
            return False
        try:
            self._trust.check(shard, path)
            shard.file = MappedFile.open(path, shard.table, shard.group.stored, checked=True)
        except StoreError:
            if path.exists():
                raise
            return False  # evicted between the two lines: it is fetched again
        shard.complete = True
        return True

    def expect_stranger(self) -> None:
        """Be ready to check a stranger's blocks when the first one is here."""
        self._trust.expect_stranger()

    # Reading

    def batch(self, shard: OpenShard, block: int) -> pa.RecordBatch:
        """Rows of a block that `ensure` made sure of. FormatError names dataset and shard."""
        return self.opened(shard, block)[0]

    def opened(self, shard: OpenShard, block: int) -> tuple[pa.RecordBatch, pa.Buffer]:
        """The same, and the map in which they lie."""
        with self._trust.blaming(shard.entry):
            return shard.batch(block)

    # Fetching

    def ask(self, shard: OpenShard, blocks: Iterable[int], *, ahead: bool) -> list[Future[None]]:
        """Have blocks fetched in the background (at once without `fetching`); what to wait for.

        ``ahead`` of need: `NoRoomYet` if the cache limit is full of what is needed sooner.
        """
        with self._lock:
            missing = shard.missing(blocks)
            if not missing:
                return []
            waiting = {shard.asked[block] for block in missing if block in shard.asked}
            fresh = [block for block in missing if block not in shard.asked]
            if fresh:
                fresh += shard.envelope(fresh)
                done: Future[None] = Future()
                shard.asked |= dict.fromkeys(fresh, done)
                waiting.add(done)
        if fresh:
            self._submit(lambda: self._fetch(shard, fresh, done, ahead))
        return list(waiting)

    def ensure(self, wanted: Iterable[tuple[OpenShard, Iterable[int]]]) -> None:
        """Return when all these blocks can be read."""
        left = [(shard, list(blocks)) for shard, blocks in wanted]
        while left:
            asked = [(shard, blocks, self.ask(shard, blocks, ahead=False)) for shard, blocks in left]
            left = []
            for shard, blocks, futures in asked:
                if any(map(self._must_ask_again, futures)):
                    left.append((shard, blocks))

    def _must_ask_again(self, asked: Future[None]) -> bool:
        """Whether it found no room ahead of need, or the loop that asked for it has ended; raises any other failure."""
        if isinstance(asked.exception(), NoRoomYet | _GivenUp) and not self._leaving.is_set():
            return True
        asked.result()
        return False

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """While inside, blocks are fetched by threads, several shards at once. Loops that overlap share the threads."""
        with self._lock:
            self._loops += 1
            self._crew = self._crew or Crew(FETCHERS, "dhtdata-fetch")
        try:
            yield
        finally:
            with self._lock:
                self._loops -= 1
                if not self._loops and (crew := self._crew) is not None:
                    self._crew, self._closed_crew = None, crew
                    self._leave()
                    crew.close()

    def _leave(self) -> None:
        """End the waiting of all who wait now, not of those who ask afterwards."""
        leaving, self._leaving = self._leaving, threading.Event()
        leaving.set()

    def join(self) -> None:
        """Wait for threads that finish what they fetch after `fetching`."""
        if self._closed_crew is not None:
            self._closed_crew.join()
            self._closed_crew = None

    def close(self) -> None:
        """Give up waiting, unmap all shards."""
        with self._lock:
            self._leave()
            self._leaving.set()
            self._shards.clear()
        self._trust.close()

    def _submit(self, job: _Job) -> None:
        crew = self._crew
        if crew is None or not crew.put(job):
            job()

    def _fetch(self, shard: OpenShard, blocks: list[int], done: Future[None], ahead: bool) -> None:
        try:
            file = self._fetch_blocks(shard, blocks, ahead)
            with self._lock:
                shard.here |= dict.fromkeys(blocks, file)
                whole = not shard.complete and len(shard.here) == len(shard.table.blocks)
            if whole:  # from now on it is read as a stored shard: checked once, remembered for every process
                self._fetch_blocks(shard, list(range(len(shard.table.blocks))), ahead)
        except NoRoomYet as failure:  # nobody raises it; its frames would keep the shard mapped
            done.set_exception(failure.with_traceback(None))
        except BaseException as failure:  # it is raised where the blocks are waited for
            done.set_exception(failure)
        else:
            done.set_result(None)
        finally:
            with self._lock:
                for block in blocks:
                    shard.asked.pop(block, None)

    def _fetch_blocks(self, shard: OpenShard, blocks: list[int], ahead: bool) -> MappedFile:
        """The file in which these blocks are now."""
        entry = shard.entry
        whole = len(blocks) == len(shard.table.blocks)
        for _ in range(3):
            ensured = self._persist(
                f"{len(blocks)} blocks of shard {entry.digest}",
                lambda client, wait_s: client.ensure_blocks(
                    self._origin.contents, entry.digest, entry.table, () if whole else blocks, wait_s, ahead=ahead
                ),
                ahead=ahead,
            )
            if ensured.complete and self._open_stored(shard) and shard.file is not None:
                return shard.file
            path = Path(ensured.path)
            if not ensured.complete and (file := self._open_partial(shard, path, blocks)) is not None:
                return file
        raise StoreError(f"shard {entry.digest} is dropped as fast as it is fetched: raise the store's cache limit")

    def _open_partial(self, shard: OpenShard, path: Path, blocks: list[int]) -> MappedFile | None:
        """The partial file, mapped and (a stranger's) checked. None if it has gone meanwhile: ask again."""
        file = shard.file
        try:
            if file is None or not file.is_at(path):
                with self._trust.blaming(shard.entry):
                    file = MappedFile.open(path, shard.table, shard.group.stored)
            if not file.holds(blocks):
                return None
            self._trust.check_blocks(shard, path, blocks)
        except StoreError:
            if path.exists():
                raise
            return None
        shard.file = file
        return file

    def _persist(self, what: str, ask: Callable[[PeerClient, float], _A], *, ahead: bool = False) -> _A:
        """Ask the peer until it succeeds or the time is over."""
        leaving, deadline_s = self._leaving, time.monotonic() + self._timeout_s
        pause_s, told = FIRST_PAUSE_S, False
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return ask(self._peer(), max(min(left_s, ASK_S, self._timeout_s / 3), 0.1))
            except (NotFoundError, PeerError, NoRoomYet) as failure:
                if ahead and isinstance(failure, NoRoomYet):
                    raise
                if time.monotonic() + pause_s >= deadline_s:
                    raise self._late(what, failure) from failure
                if leaving.wait(pause_s):
                    raise _GivenUp(f"{what} of {self._origin.title} is not waited for any more: {failure}") from failure
                if not told:
                    _log.warning("waiting up to %.0f s for %s of %s: %s", left_s, what, self._origin.title, failure)
                    told = True
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                if not isinstance(failure, NoRoomYet):
                    self._remind()

    def _late(self, what: str, failure: DhtDataError) -> DhtDataError:
        late = f"{what} of {self._origin.title} did not arrive within {self._timeout_s:.0f} s: {failure}"
        if isinstance(failure, NoRoomYet):
            return StoreError(late)
        return NotFoundError(f"{late}. Asked: {self._asked()}")

    def _remind(self) -> None:
        try:
            self._origin.remind(self._peer())
        except DhtDataError as failure:
            _log.info("the peer does not find %s again: %s", self._origin.title, failure)

    def _asked(self) -> str:
        """The providers that the peer knows, for a message."""
        try:
            known = self._peer().providers(self._origin.contents)
        except DhtDataError as failure:
            return f"nobody known ({failure})"
        return ", ".join(provider.address for provider in known[:8]) or "nobody known"

    def _peer(self) -> PeerClient:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client
