"""Sets of blocks of one shard as bit masks: bit ``p`` is block ``p``, and -1 is "every block".

A question about a whole shard is then a handful of operations on integers, whether it has 32 blocks or 4,096. The bit
order is the have-map's: ``int.from_bytes(bitmap, "little")``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

_DIGITS = 4


class Copies:
    """How many hold each block, up to 15: the binary digits of the counts, a mask for each digit."""

    def __init__(self) -> None:
        self._digits = [0] * _DIGITS

    def add(self, mask: int) -> None:
        """One more holds these."""
        digits = self._digits
        for place in range(_DIGITS):
            if not mask:
                return
            digits[place], mask = digits[place] ^ mask, digits[place] & mask
        for place in range(_DIGITS):
            digits[place] |= mask

    @property
    def any(self) -> int:
        """Blocks that at least one holds."""
        together = 0
        for digit in self._digits:
            together |= digit
        return together

    def of(self, position: int) -> int:
        return sum((digit >> position & 1) << place for place, digit in enumerate(self._digits))

    def rarest(self, among: int) -> tuple[int, int]:
        """(count, those ``among`` these that this few hold); ``among`` must not be empty."""
        count = 0
        for place in reversed(range(_DIGITS)):
            fewer = among & ~self._digits[place]
            if fewer:
                among = fewer
            else:
                count += 1 << place
        return count, among


def mask_of(positions: Iterable[int], length: int) -> int:
    """The mask of these positions, all below ``length``."""
    bitmap = bytearray((length + 7) // 8)
    for position in positions:
        bitmap[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(bitmap, "little")


def any_of(mask: int, chance: random.Random) -> int:
    """One position of a mask that is not empty, each as likely."""
    wanted = chance.randrange(mask.bit_count())
    first, length = 0, mask.bit_length()
    while length > 1:
        half = length // 2
        low = mask & ((1 << half) - 1)
        if (below := low.bit_count()) > wanted:
            mask, length = low, half
        else:
            mask, first, length, wanted = mask >> half, first + half, length - half, wanted - below
    return first
