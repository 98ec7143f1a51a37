"""Seeded permutations that never change: stable argsort of Philox's raw words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RANGES = 0
SLOTS = 1
WINDOWS = 2
SOURCES = 3
"""What is permuted: the top bits of the counter's third word; the lane fills the rest."""

_UPPER = np.uint64(0xFFFF_FFFF_0000_0000)
_LOWER = np.uint64(0x0000_0000_FFFF_FFFF)


def permutation(count: int, key: tuple[int, int], what: int, lane: int = 0, number: int = 0) -> NDArray[np.int64]:
    """A permutation of range(count), the same on every machine and numpy version. ``count`` < 2^32.

    Equal to ``np.argsort(words >> 32, kind="stable")`` over Philox words keyed by ``key`` = (seed, epoch). The position
    goes into the lower half of each word instead: sorting values in place is several times faster than an argsort.
    """
    words = _words(count, key, what, lane, number)
    words &= _UPPER
    words |= np.arange(count, dtype=np.uint64)
    words.sort()
    words &= _LOWER
    return words.view(np.int64)


def part_of_permutation(
    span: tuple[int, int], count: int, key: tuple[int, int], what: int, lane: int, number: int
) -> NDArray[np.int64]:
    """Entries ``[first, stop)`` of the `permutation`, without sorting all of it.

    Words are drawn from 0 to 2^64 alike, so where those entries lie is known within a few standard deviations of their
    rank (half the root of the count, at most); only these are sorted: 1.6 ms of 267,000 rows instead of 5.
    """
    words = _words(count, key, what, lane, number)
    first, stop = span
    spread = 4 * count**0.5 + 1
    low, high = (
        np.uint64(min(max(int(rank / count * 2**32), 0), 2**32 - 1) << 32) for rank in (first - spread, stop + spread)
    )
    places = np.flatnonzero((words >= low) & (words <= (high | _LOWER)))
    near = np.sort((words[places] & _UPPER) | places.astype(np.uint64))
    skipped = int(np.count_nonzero(words < low))
    if skipped > first or skipped + near.size < stop:
        return permutation(count, key, what, lane, number)[first:stop]
    return (near[first - skipped : stop - skipped] & _LOWER).view(np.int64)


def _words(count: int, key: tuple[int, int], what: int, lane: int, number: int) -> NDArray[np.uint64]:
    counter = np.array([0, 0, what << 56 | lane, number], np.uint64)
    words: NDArray[np.uint64] = np.random.Philox(key=np.array(key, np.uint64), counter=counter).random_raw(count)
    return words
