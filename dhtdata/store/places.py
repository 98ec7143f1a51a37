"""Where the blocks of whole shards are: so that a block which another shard holds is copied, not fetched.

Versions of a dataset share most of their blocks, and so do datasets that were made of the same rows. A row of 20 bytes
a block: the first 8 bytes of its digest, the shard, the offset. That is a hint, no proof: what is copied is verified
like what comes from a stranger, so rows may be stale.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.formats.blocks import Block, BlockTable
from dhtdata.store.index import Database

_AT_ONCE = 500
_MAX_PLACES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A block may be in this shard at this offset. ``wanted``: its position among the blocks that were asked about."""

    wanted: int
    shard: Digest
    offset: int


class Places:
    """The blocks of one store's whole shards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, shard: Digest, table: BlockTable) -> None:
        """This shard is whole, and these are its blocks."""
        with self._database.writing() as connection:
            note(connection, shard, table)

    def find(self, blocks: Sequence[Block]) -> list[Place]:
        """Where these blocks may be, by shard and offset; a few places each."""
        wanted: dict[int, list[int]] = {}
        for position, block in enumerate(blocks):
            wanted.setdefault(_short(block.digest), []).append(position)
        found: list[Place] = []
        shorts = list(wanted)
        with self._database.reading() as connection:
            for first in range(0, len(shorts), _AT_ONCE):
                some = shorts[first : first + _AT_ONCE]
                seen: dict[int, int] = {}
                marks = ",".join("?" * len(some))
                rows = connection.execute(
                    "SELECT block, placed.shard, start FROM places, placed WHERE placed.id = places.shard "
                    f"AND block IN ({marks})",
                    some,
                )
                for short, shard, start in rows:
                    seen[short] = seen.get(short, 0) + 1
                    if seen[short] <= _MAX_PLACES:
                        found += [Place(position, Digest(shard), start) for position in wanted[short]]
        return sorted(found, key=lambda place: (place.shard, place.offset))


def note(connection: sqlite3.Connection, shard: Digest, table: BlockTable) -> None:
    """`Places.note` within somebody's transaction."""
    connection.execute("INSERT INTO placed(shard) VALUES(?) ON CONFLICT DO NOTHING", (shard,))
    number = connection.execute("SELECT id FROM placed WHERE shard = ?", (shard,)).fetchone()[0]
    connection.executemany(
        "INSERT INTO places VALUES(?, ?, ?) ON CONFLICT DO NOTHING",
        ((_short(block.digest), number, block.offset) for block in table.blocks),
    )


def forget(connection: sqlite3.Connection, shard: bytes) -> None:
    """This shard is gone."""
    row = connection.execute("SELECT id FROM placed WHERE shard = ?", (shard,)).fetchone()
    if row is not None:
        connection.execute("DELETE FROM places WHERE shard = ?", row)
        connection.execute("DELETE FROM placed WHERE id = ?", row)


def _short(digest: Digest) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)
