"""The demo's model: next byte from the two before it, a real language model small enough for numpy.

Logits are the sum of a table indexed by the last byte and one indexed by a hashed pair of the last two; softmax
regression, trained with Adagrad on positions drawn from every text of a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BYTES = 256
PAIRS = 1 << 12
POSITIONS = 4_096
STEP = 0.5


class NextByte:
    """``step`` trains on a batch of texts and tells the mean loss in nats before the update (8 bits are 5.55)."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._tables = [np.zeros((size, BYTES), np.float32) for size in (BYTES, PAIRS)]
        self._squares = [np.full(table.shape, 1e-6, np.float32) for table in self._tables]

    def step(self, texts: list[str]) -> float:
        stream = np.frombuffer("\0\0".join(["", *texts]).encode("utf-8", "surrogatepass"), np.uint8)
        last = self._rng.integers(1, len(stream) - 1, size=min(POSITIONS, len(stream)))
        before, target = stream[last - 1].astype(np.int64), stream[last + 1]
        contexts = [stream[last].astype(np.int64), (stream[last] * np.int64(31) + before * 257) % PAIRS]
        logits = self._tables[0][contexts[0]] + self._tables[1][contexts[1]]
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        rows = np.arange(len(target))
        loss = float(-np.log(np.maximum(chances[rows, target], 1e-12)).mean())
        chances[rows, target] -= 1
        for table, squares, context in zip(self._tables, self._squares, contexts, strict=True):
            _descend(table, squares, context, chances)
        return loss


def _descend(
    table: NDArray[np.float32],
    squares: NDArray[np.float32],
    context: NDArray[np.int64],
    gradient: NDArray[np.float32],
) -> None:
    order = np.argsort(context, kind="stable")
    touched, first = np.unique(context[order], return_index=True)
    summed = np.add.reduceat(gradient[order], first, axis=0)
    squares[touched] += summed * summed
    table[touched] -= STEP * summed / np.sqrt(squares[touched])
