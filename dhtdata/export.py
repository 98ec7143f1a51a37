"""Export: a dataset's rows as ordinary Parquet or Arrow IPC files, in the order in which they were published.

``<split>-00000-of-00003.parquet`` and so on, about 256 MiB of shards each, so that any reader of such files takes them.
A file appears under its name when it is whole. Rows are read batch by batch: memory stays bounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dhtdata.config import Settings
from dhtdata.digest import Digest, random_id
from dhtdata.errors import ConfigError, StoreError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents, Split
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.mount import StreamingDataset, mount
from dhtdata.store import Store

FILE_BYTES = 256 << 20
BATCH_BYTES = 8 << 20
FORMATS = ("arrow", "parquet")

Report = Callable[[int, int], None]


def export(
    settings: Settings,
    manifest: Digest,
    folder: Path,
    kind: str,
    *,
    splits: Sequence[str],
    columns: Sequence[str],
    progress: Report | None = None,
) -> list[Path]:
    """Write the rows of these splits and columns; the files, in row order within each split.

    ConfigError names a column that the format cannot hold, StoreError a folder that cannot be written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"export as {kind!r}: choose {' or '.join(FORMATS)}")
    with Store.open(settings.store) as store:
        named = Manifest.decode(store.read(manifest, limit_bytes=MAX_MANIFEST_BYTES))
        contents = Contents.decode(store.read(named.contents, limit_bytes=MAX_CONTENTS_BYTES))
    chosen = [split for split in contents.splits if split.name in splits]
    total = sum(split.rows for split in chosen)
    written: list[Path] = []
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in chosen:
            with _opened(settings, manifest, split, columns) as dataset:
                for count, path in _write_split(dataset, split, folder, kind):
                    done += count
                    if progress is not None:
                        progress(done, total)
                    if path is not None:
                        written.append(path)
    except OSError as failure:
        raise StoreError(f"{folder} cannot be written: {failure}") from failure
    return written


@contextmanager
def _opened(settings: Settings, manifest: Digest, split: Split, columns: Sequence[str]) -> Iterator[StreamingDataset]:
    row_bytes = max(1, sum(group.bytes for group in split.groups) // split.rows)
    dataset = mount(
        str(manifest),
        split=split.name,
        columns=columns,
        batch_size=max(1, min(split.rows, BATCH_BYTES // row_bytes)),
        format="arrow",
        remainder="uneven",
        rank=0,
        world_size=1,
        settings=settings,
    )
    with dataset:
        yield dataset


def _write_split(dataset: StreamingDataset, split: Split, folder: Path, kind: str) -> Iterator[tuple[int, Path | None]]:
    """Write one split's files; yields (rows written, the file if it is whole now) as it goes."""
    file_count = -(-sum(group.bytes for group in split.groups) // FILE_BYTES)
    edges = [split.rows * number // file_count for number in range(file_count + 1)]
    batches = iter(dataset)
    left: pa.Table | None = None
    for number, (first, stop) in enumerate(pairwise(edges)):
        path = folder / f"{split.name}-{number:05}-of-{file_count:05}.{kind}"
        with _writing(path, kind, dataset.schema) as write:
            while first < stop:
                batch = left if left is not None else pa.Table.from_batches([next(batches)])
                piece = batch.slice(0, stop - first)
                left = batch.slice(piece.num_rows) if piece.num_rows < batch.num_rows else None
                write(piece)
                first += piece.num_rows
                yield piece.num_rows, None
        yield 0, path


@contextmanager
def _fitting(kind: str, schema: pa.Schema) -> Iterator[None]:
    """ConfigError that names a column whose type or values files of this kind cannot hold."""
    try:
        yield
    except (pa.ArrowException, OSError) as failure:
        if isinstance(failure, OSError) and failure.errno is not None:  # Parquet's own complaints have no number
            raise
        named = [f"column {field.name!r} of type {field.type}" for field in schema if not _fits(kind, field)]
        raise ConfigError(
            f"{named[0] if named else 'a value of these rows'} cannot be written as {kind} ({failure}): "
            "export as arrow, or leave the column out"
        ) from failure


def _fits(kind: str, field: pa.Field) -> bool:
    try:
        with _writer(pa.BufferOutputStream(), kind, pa.schema([field])):
            return True
    except (pa.ArrowException, OSError):
        return False


@contextmanager
def _writing(path: Path, kind: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A file that appears under its name at the end of the block, if that ends well."""
    temporary = path.with_name(f".{path.name}.{random_id(4).hex()}")
    try:
        with temporary.open("xb") as file:
            with _fitting(kind, schema), _writer(file, kind, schema) as writer:
                yield writer.write_table
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _writer(file: object, kind: str, schema: pa.Schema) -> pq.ParquetWriter | pa.ipc.RecordBatchFileWriter:
    if kind == "parquet":
        return pq.ParquetWriter(file, schema, compression="zstd")
    return pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(unify_dictionaries=True))
