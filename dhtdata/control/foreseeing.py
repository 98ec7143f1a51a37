"""Messages about what a running loop will read: see `dhtdata.store.foresight`, which keeps what they say."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from dhtdata.digest import DIGEST_BYTES, Digest
from dhtdata.errors import FormatError
from dhtdata.formats.codec import Format

_COUNT, _POSITION = "I", "q"


class Foresee(Format, frozen=True, tag="foresee"):
    """A loop is at ``position`` of an order, in which a row takes ``row_bytes``. Holds until the connection ends."""

    order: Digest
    position: int
    row_bytes: float


class Foreseen(Format, frozen=True, tag="foreseen"):
    """Positions at which the parts of the order begin that are known."""

    parts: tuple[int, ...]


class Learn(Format, frozen=True, tag="learn"):
    """What an order reads at the positions ``[first, stop)``: part of it for as long as somebody reads in it.

    ``shards`` are digests end to end, ``counts`` how many spans each has, ``spans`` their ends; numbers of this
    machine's own byte order.
    """

    order: Digest
    first: int
    stop: int
    shards: bytes
    counts: bytes
    spans: bytes

    def by_shard(self) -> Mapping[bytes, array[int]]:
        """Ends of its spans for each shard. FormatError if the lengths contradict each other."""
        try:
            counts, spans = array(_COUNT, self.counts), array(_POSITION, self.spans)
        except ValueError as failure:
            raise FormatError(f"numbers of shards and spans are cut off: {failure}") from failure
        if len(self.shards) != len(counts) * DIGEST_BYTES or 2 * sum(counts) != len(spans):
            raise FormatError(
                f"{len(self.shards)} bytes of digests, {len(counts)} counts and {len(spans)} ends of spans"
            )
        found: dict[bytes, array[int]] = {}
        place = 0
        for number, count in enumerate(counts):
            shard = self.shards[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            found[shard] = spans[place : place + 2 * count]
            place += 2 * count
        return found


def packed(order: Digest, first: int, stop: int, spans: Mapping[Digest, array[int]]) -> Learn:
    """The message that `Learn.by_shard` reads back."""
    ends: array[int] = array(_POSITION)
    for of_shard in spans.values():
        ends.extend(of_shard)
    return Learn(
        order=order,
        first=first,
        stop=stop,
        shards=b"".join(spans),
        counts=array(_COUNT, [len(of_shard) // 2 for of_shard in spans.values()]).tobytes(),
        spans=ends.tobytes(),
    )
