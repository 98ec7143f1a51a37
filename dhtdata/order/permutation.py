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
    counter = np.array([0, 0, what << 56 | lane, number], np.uint64)
    words: NDArray[np.uint64] = np.random.Philox(key=np.array(key, np.uint64), counter=counter).random_raw(count)
    words &= _UPPER
    words |= np.arange(count, dtype=np.uint64)
    words.sort()
    words &= _LOWER
    return words.view(np.int64)
