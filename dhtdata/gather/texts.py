"""Strings and binaries of gathered rows, made when they are handed out.

A parcel's worth of them, made at once, would be out of the processor's caches before the loop gets them; and those of a
worker are made when they are sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import StoreError


def _changed(failure: UnicodeDecodeError) -> StoreError:
    """It was checked when its shard was opened."""
    return StoreError(
        f"a string of a stored shard is no text any more ({failure}): somebody wrote into the store; run dhtdata verify"
    )


@dataclass(frozen=True)
class Texts(Sequence[Any]):
    """``str`` if ``text``, else ``bytes``: bytes ``[starts[i], stops[i])`` of ``memory``, None where in ``nulls``.

    ``maps`` keep the memory mapped. Pickled, it becomes a list.
    """

    starts: list[int]
    stops: list[int]
    nulls: frozenset[int]
    text: bool
    memory: memoryview
    maps: tuple[pa.Buffer, ...]

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, key: int) -> Any: ...

    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if not isinstance(key, slice):
            return self[key : key + 1 or None][0]
        spans = zip(self.starts[key], self.stops[key], strict=True)
        memory = self.memory
        made: list[Any]
        if self.text:
            try:
                made = [str(memory[start:stop], "utf-8") for start, stop in spans]
            except UnicodeDecodeError as failure:
                raise _changed(failure) from failure
        else:
            made = [memory[start:stop].tobytes() for start, stop in spans]
        if self.nulls:
            for at, row in enumerate(range(*key.indices(len(self)))):
                if row in self.nulls:
                    made[at] = None
        return made

    def __iter__(self) -> Iterator[Any]:
        memory, text, nulls = self.memory, self.text, self.nulls
        try:
            for row, (start, stop) in enumerate(zip(self.starts, self.stops, strict=True)):
                if nulls and row in nulls:
                    yield None
                elif text:
                    yield str(memory[start:stop], "utf-8")
                else:
                    yield memory[start:stop].tobytes()
        except UnicodeDecodeError as failure:
            raise _changed(failure) from failure

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self[:],)


@dataclass(frozen=True)
class Woven(Sequence[Any]):
    """Values of several columns as one, made when they are handed out: value i is ``parts[which[i]][at[i]]``.

    Each part's values are taken in order. Pickled, it becomes a list.
    """

    parts: tuple[Sequence[Any], ...]
    which: NDArray[np.uint16]
    at: NDArray[np.int64]

    def __len__(self) -> int:
        return self.which.size

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    @overload
    def __getitem__(self, key: int) -> Any: ...

    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if not isinstance(key, slice):
            return self.parts[self.which[key]][int(self.at[key])]
        which, at = self.which[key], self.at[key]
        made = np.empty(which.size, dtype=object)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(which == number)
            if mine.size:
                first = int(at[mine[0]])
                made[mine] = np.fromiter(part[first : first + mine.size], dtype=object, count=mine.size)
        values: list[Any] = made.tolist()
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self[:],)
