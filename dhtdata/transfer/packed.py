"""Packed shards at other peers (`dhtdata.formats.packed`): where their frames are, as far as somebody has asked.

Two peers' packed forms of one shard differ, so a seek table is good for the provider that sent it and for as long as
its ETag stands. It is asked for once for each provider and shard; who has no packed form of it is not asked again for a
while. `PackedForms` is called by the threads that fetch, and blocks.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from dhtdata.config import PackedPolicy
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.formats.packed import PackedTable, frame_bound, seek_table_bytes
from dhtdata.formats.web_seeds import Provider
from dhtdata.packing import unpack_into
from dhtdata.store import Partial
from dhtdata.transfer.wire import Connection, blob_path

MAX_KNOWN = 512
LACKING_S = 60.0
SLOW_BYTES_S = 40_000_000


class Welcome:
    """Whether packed blocks are welcome: ``never``, where they arrive sooner, or (``always``) wherever there are any.

    They arrive sooner where all that comes, from everybody together, is below `SLOW_BYTES_S`: a core unpacks 1,200 MB
    a second, and packs 265. A link counts as slow until it has carried twice that: while packed blocks come, what they
    take on the wire tells, not the rate at which blocks come out of it.
    """

    def __init__(self, policy: PackedPolicy = "auto") -> None:
        self._policy = policy
        self._slow = False

    def look(self, block_bytes_s: float, wire_bytes_s: float) -> bool:
        """By the measured rates of those who deliver (0: none was measured), and by what came in the last second."""
        if self._slow:
            self._slow = wire_bytes_s < 2 * SLOW_BYTES_S
        else:
            self._slow = 0 < block_bytes_s < SLOW_BYTES_S
        return self._policy == "always" or (self._policy != "never" and self._slow)


@dataclass(frozen=True, slots=True)
class PackedForm:
    """One provider's packed form of one shard; ``etag`` as it was sent, for ``If-Match``."""

    table: PackedTable
    etag: str


class PackedForms:
    """What is known of packed forms; the oldest knowledge is forgotten first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[tuple[Provider, Digest], PackedForm | float] = OrderedDict()

    def at(self, provider: Provider, partial: Partial, connection: Connection) -> PackedForm | None:
        """A provider's packed form of a shard, asked for if it is not known; None if it has none.

        IntegrityError if what it sends is no seek table of this shard; PeerError as of any request.
        """
        key = (provider, partial.digest)
        with self._lock:
            known = self._known.get(key)
        if isinstance(known, PackedForm):
            return known
        if known is not None and known > time.monotonic():
            return None
        form = _ask(provider, partial, connection)
        with self._lock:
            self._known[key] = time.monotonic() + LACKING_S if form is None else form
            self._known.move_to_end(key)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return form

    def forget(self, provider: Provider, shard: Digest) -> None:
        """Its packed form is another one now."""
        with self._lock:
            self._known.pop((provider, shard), None)


def packed_path(shard: Digest) -> str:
    return f"{blob_path(shard)}.zst"


def largest_frame(block_bytes: int) -> int:
    """Bytes that a block's frame may have: what is larger is no use of packing, and refused by `PackedTable`."""
    return frame_bound(block_bytes)


def unpack(provider: Provider, frame: memoryview, view: memoryview) -> None:
    """A frame into the memory of its block. IntegrityError if it is not one frame of exactly this many bytes."""
    try:
        unpack_into(frame, view)
    except FormatError as failure:
        raise IntegrityError(f"{provider} sent a malformed packed block: {failure}", str(provider)) from failure


def _ask(provider: Provider, partial: Partial, connection: Connection) -> PackedForm | None:
    try:
        tail = connection.tail(packed_path(partial.digest), seek_table_bytes(len(partial.table.blocks)))
    except NotFoundError:
        return None
    try:
        return PackedForm(PackedTable.parse(tail.body, tail.file_bytes, partial.table), tail.etag)
    except FormatError as failure:
        raise IntegrityError(
            f"{provider} sent a malformed seek table of shard {partial.digest}: {failure}", str(provider)
        ) from failure
