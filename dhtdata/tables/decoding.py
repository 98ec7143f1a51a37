"""Slices of a batch that stay small once dictionaries and run ends are decoded.

A dictionary column of a million rows is 4 MB, and 100 GB decoded if its values are long. Weighed are dictionaries and
run ends that are columns or storage of an extension; deeper ones count as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from dhtdata.tables.canonical import plain
from dhtdata.tables.schema import stored_type
from dhtdata.tables.sizes import Sizes, value_bytes
from dhtdata.tables.sources.reading import BATCH_BYTES


def decodable(batch: pa.RecordBatch, target_bytes: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """The batch in slices of about ``target_bytes`` more than it has, decoded; itself if nothing is to be decoded."""
    encoded = [size for column in batch.columns if (size := _decoded_bytes(column)) is not None]
    if not encoded:
        yield batch
        return
    ends = np.cumsum(np.sum(encoded, axis=0))
    first = done = 0
    while first < batch.num_rows:
        end = max(first + 1, int(np.searchsorted(ends, done + target_bytes, side="right")))
        yield batch.slice(first, end - first)
        first, done = end, int(ends[end - 1])


def _decoded_bytes(array: pa.Array) -> Sizes | None:
    """Decoded bytes of every value; None if the array is not encoded."""
    if isinstance(array.type, pa.BaseExtensionType):
        return _decoded_bytes(array.storage)
    if isinstance(array.type, pa.DictionaryType):
        sizes = _plain_bytes(array.dictionary)
        places = array.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return sizes[places] if len(sizes) else np.zeros(len(array), np.int64)
    if isinstance(array.type, pa.RunEndEncodedType):
        ends = array.run_ends.to_numpy().astype(np.int64)
        rows = np.arange(array.offset, array.offset + len(array))
        return _plain_bytes(array.values)[np.searchsorted(ends, rows, side="right")]
    return None


def _plain_bytes(array: pa.Array) -> Sizes:
    return value_bytes(plain(array, stored_type(array.type)))
