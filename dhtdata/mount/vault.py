"""Shards as a mount sees them: opened when first read, checked before that, fetched by the peer if they are not here.

The vault asks the peer for blocks and maps the file in which they arrive; a block is read only after the peer said that
it is verified, or from a whole shard in the store. A whole shard is checked once (`check_shard`), and that is
remembered. Until one shard of a publisher has passed whole, every block of theirs is checked in a process of its own
(`Checker`) before this one reads it.

When nobody has what is missing, or there is no room for it yet, the vault waits, says so, and gives up after
``timeout_s``.

Files are looked at again now and then: a stored shard that was changed on disk is closed, so that it is opened anew,
which finds the change and fetches it again. Of a partial shard that was dropped and begun anew every block is read from
the file in which it arrived.

Threads exist inside `fetching` only, and nothing of this is shared with a forked process: no thread, no socket.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, IntegrityError, NotFoundError, PeerError, StoreError
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.index import ShardEntry
from dhtdata.mount.crew import Crew
from dhtdata.mount.shards import GroupShards
from dhtdata.store import NoRoomYet, Store
from dhtdata.tables.reader import ShardReader

if TYPE_CHECKING:
    from dhtdata.control.client import PeerClient
    from dhtdata.tables.check import Checker

FETCHERS = 4
OPEN_SHARDS = 256
ASK_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
LOOK_S = 0.5
"""A look at 256 files takes half a millisecond."""
_MARK_BYTES = 4
"""Blocks begin with a magic or a continuation marker (`dhtdata.tables.ipc`), never with zeros."""
_log = logging.getLogger("dhtdata")


@dataclass(frozen=True)
class Origin:
    """Whose dataset it is: for messages, for trust, and for the peer. ``publisher`` is 32 bytes."""

    contents: Digest
    title: str
    publisher: bytes
    remind: Callable[[PeerClient], None]
    """Tell a new peer again where to look."""


@dataclass(frozen=True)
class _File:
    """A shard's file as it was when it was mapped; pages of one that was unlinked stay readable."""

    path: Path
    reader: ShardReader
    status: os.stat_result

    def is_at(self, path: Path) -> bool:
        """Whether the file of this name is this one still."""
        status = _status(path)
        return status is not None and status.st_ino == self.status.st_ino

    def is_replaced(self) -> bool:
        """Whether another file has its name now: it was dropped, or set aside as damaged, and fetched again."""
        status = _status(self.path)
        return status is not None and status.st_ino != self.status.st_ino

    def is_changed(self) -> bool:
        """Whether somebody wrote into it, or cut it off."""
        status = _status(self.path)
        return status is not None and status.st_ino == self.status.st_ino and _times(status) != _times(self.status)

    def holds(self, blocks: Iterable[int]) -> bool:
        """Whether blocks were ever written: a partial shard may have been dropped and begun anew meanwhile."""
        return all(any(memoryview(self.reader.bytes_of(block))[:_MARK_BYTES]) for block in blocks)


@dataclass(eq=False)
class OpenShard:
    """One shard: ``file`` once it can be mapped, ``here`` where blocks may be read (all in ``file`` if ``complete``).

    ``asked`` are blocks on their way, ``foreseen`` those that a reader ahead has seen to. ``closed``: its file is not
    to be read any more; who keeps blocks of it opens the shard anew.
    """

    entry: ShardEntry
    group: GroupShards
    table: BlockTable
    firsts: NDArray[np.int64]
    file: _File | None = None
    complete: bool = False
    closed: bool = False
    here: dict[int, _File] = field(default_factory=dict)
    asked: dict[int, Future[None]] = field(default_factory=dict)
    foreseen: set[int] = field(default_factory=set)
    batches: dict[int, tuple[pa.RecordBatch, pa.Buffer]] = field(default_factory=dict)

    def missing(self, blocks: Iterable[int]) -> list[int]:
        return [] if self.complete else [block for block in blocks if block not in self.here]

    def envelope(self, fresh: list[int]) -> list[int]:
        """Schema and footer, if with ``fresh`` every other block is here or coming: then the shard becomes whole."""
        left = set(range(len(self.table.blocks))).difference(self.here, self.asked, fresh)
        return sorted(left) if left <= {0, len(self.table.blocks) - 1} else []

    def batch(self, block: int) -> tuple[pa.RecordBatch, pa.Buffer]:
        """Columns that were asked for of a block that is here, and the whole file that they lie in.

        Of that file, blocks that are not here must not be read.
        """
        opened = self.batches.get(block)
        if opened is None:
            file = self.file if self.complete else self.here.get(block)
            if file is None:
                raise StoreError(f"shard {self.entry.digest} was read before it was fetched")
            batch = file.reader.batch(block - 1).select(list(self.group.columns))
            opened = self.batches[block] = (batch, file.reader.mapped)
        return opened

    def blocks_with(self, rows: NDArray[np.int64]) -> list[int]:
        """Blocks that hold these ascending rows of the shard."""
        blocks = np.searchsorted(self.firsts, rows, "right")
        found: list[int] = blocks[np.append(True, blocks[1:] != blocks[:-1])].tolist()
        return found

    def blocks_of(self, first_row: int, stop_row: int) -> range:
        """Blocks that hold the shard's rows ``[first_row, stop_row)``."""
        first = int(np.searchsorted(self.firsts, first_row, "right")) - 1
        return range(first + 1, int(np.searchsorted(self.firsts, stop_row, "left")) + 1)


_Job = Callable[[], None]
_A = TypeVar("_A")


class Vault:
    """The shards of one dataset that this process has open."""

    def __init__(self, store: Store, origin: Origin, connect: Callable[[], PeerClient], timeout_s: float) -> None:
        self._store = store
        self._origin = origin
        self._connect = connect
        self._timeout_s = timeout_s
        self._client: PeerClient | None = None
        self._shards: OrderedDict[Digest, OpenShard] = OrderedDict()
        self._lock = threading.RLock()
        self._connecting = threading.Lock()
        self._checking = threading.Lock()
        self._opening: dict[Digest, threading.Lock] = {}
        self._trusted = False
        self._checker: Checker | None = None
        self._crew: Crew | None = None
        self._closed_crew: Crew | None = None
        self._leaving = threading.Event()
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
        with self._blaming(entry):
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
            self._check(shard, path)
            shard.file = self._map(shard, path, checked=True)
        except StoreError:
            if path.exists():
                raise
            return False  # evicted between the two lines: it is fetched again
        shard.complete = True
        return True

    def _map(self, shard: OpenShard, path: Path, *, checked: bool = False) -> _File:
        before = _status(path)
        reader = ShardReader(path, shard.table, shard.group.stored, checked=checked)
        if before is None or (after := _status(path)) is None or before.st_ino != after.st_ino:
            raise StoreError(f"{path} was replaced while it was opened: try again")
        return _File(path, reader, before)

    def _check(self, shard: OpenShard, path: Path) -> None:
        digest, schema = shard.entry.digest, shard.group.schema_digest
        if self._store.is_checked(digest, schema):
            return
        if not self._trusts():
            with self._checking:
                if not self._trusts():
                    with self._blaming(shard.entry):
                        self._stranger_checker().check(path, shard.table, shard.group.stored)
                    self._store.mark_checked(digest, schema)
                    self._store.trust_publisher(self._origin.publisher)
                    self._end_checker()
                    return
        from dhtdata.tables.check import check_shard

        with self._blaming(shard.entry):
            check_shard(path, shard.table, shard.group.stored)
        self._store.mark_checked(digest, schema)

    def expect_stranger(self) -> None:
        """Start the process that a stranger's blocks are checked in, so that it is ready when the first one is here."""
        if not self._trusts():
            with self._checking:
                self._stranger_checker()

    def _stranger_checker(self) -> Checker:
        from dhtdata.tables.check import Checker

        if self._checker is None:
            self._checker = Checker()
        return self._checker

    def _end_checker(self) -> None:
        checker, self._checker = self._checker, None
        if checker is not None:
            checker.close()

    def _pass(self, shard: OpenShard, path: Path, blocks: list[int]) -> None:
        """Check a stranger's blocks, so that this process may read them. StoreError if the file has gone meanwhile."""
        if self._trusts():
            return
        with self._checking, self._blaming(shard.entry):
            if not self._trusts():
                self._stranger_checker().check(path, shard.table, shard.group.stored, blocks)

    def _trusts(self) -> bool:
        self._trusted = self._trusted or self._store.trusts(self._origin.publisher)
        return self._trusted

    @contextmanager
    def _blaming(self, entry: ShardEntry) -> Iterator[None]:
        try:
            yield
        except FormatError as failure:
            raise FormatError(
                f"shard {entry.digest} of {self._origin.title} is refused: {failure}. Its publisher signed these "
                "bytes: do not use this dataset, and tell the publisher"
            ) from failure

    # Reading

    def batch(self, shard: OpenShard, block: int) -> pa.RecordBatch:
        """Rows of a block that `ensure` made sure of. FormatError names dataset and shard."""
        return self.opened(shard, block)[0]

    def opened(self, shard: OpenShard, block: int) -> tuple[pa.RecordBatch, pa.Buffer]:
        """The same, and the map in which they lie."""
        with self._blaming(shard.entry):
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
                if any(map(_lacked_room, futures)):
                    left.append((shard, blocks))

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """While inside, blocks are fetched by threads, several shards at once."""
        if self._crew is not None:
            yield
            return
        self._crew = crew = Crew(FETCHERS, "dhtdata-fetch")
        self._leaving.clear()
        try:
            yield
        finally:
            self._crew, self._closed_crew = None, crew
            self._leaving.set()
            crew.close()

    def join(self) -> None:
        """Wait for threads that finish what they fetch after `fetching`."""
        if self._closed_crew is not None:
            self._closed_crew.join()
            self._closed_crew = None

    def close(self) -> None:
        """Give up waiting, unmap all shards."""
        self._leaving.set()
        with self._lock:
            self._shards.clear()
        with self._checking:
            self._end_checker()

    def _submit(self, job: _Job) -> None:
        if self._crew is None:
            job()
        else:
            self._crew.put(job)

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

    def _fetch_blocks(self, shard: OpenShard, blocks: list[int], ahead: bool) -> _File:
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

    def _open_partial(self, shard: OpenShard, path: Path, blocks: list[int]) -> _File | None:
        """The partial file, mapped and (a stranger's) checked. None if it has gone meanwhile: ask again."""
        file = shard.file
        try:
            if file is None or not file.is_at(path):
                with self._blaming(shard.entry):
                    file = self._map(shard, path)
            if not file.holds(blocks):
                return None
            self._pass(shard, path, blocks)
        except StoreError:
            if path.exists():
                raise
            return None
        shard.file = file
        return file

    def _persist(self, what: str, ask: Callable[[PeerClient, float], _A], *, ahead: bool = False) -> _A:
        """Ask the peer until it succeeds or the time is over."""
        deadline_s = time.monotonic() + self._timeout_s
        pause_s, told = FIRST_PAUSE_S, False
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return ask(self._peer(), max(min(left_s, ASK_S, self._timeout_s / 3), 0.1))
            except (NotFoundError, PeerError, NoRoomYet) as failure:
                if ahead and isinstance(failure, NoRoomYet):
                    raise
                if time.monotonic() + pause_s >= deadline_s or self._leaving.wait(pause_s):
                    raise self._given_up(what, failure) from failure
                if not told:
                    _log.warning("waiting up to %.0f s for %s of %s: %s", left_s, what, self._origin.title, failure)
                    told = True
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                if not isinstance(failure, NoRoomYet):
                    self._remind()

    def _given_up(self, what: str, failure: DhtDataError) -> DhtDataError:
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


def _lacked_room(asked: Future[None]) -> bool:
    """Whether blocks that were asked for ahead of need found no room; raises any other failure."""
    if isinstance(asked.exception(), NoRoomYet):
        return True
    asked.result()
    return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StoreError(f"{path}: {failure.strerror}") from failure


def _times(status: os.stat_result) -> tuple[int, int]:
    return (status.st_size, status.st_mtime_ns)
