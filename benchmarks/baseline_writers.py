"""MosaicML's MDSWriter and LitData's optimize on a Parquet file, run by the interpreter that has them installed.

``python baseline_writers.py mds|litdata SOURCE TARGET PROCESSES``: prints ``{"seconds": …, "rows": …}``. Every process
reads its own row groups and hands rows to the library as it wants them: a dict of Python and numpy values. Rows are
counted again from the libraries' own indexes before the time is printed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_BATCH_ROWS = 2_048
_MDS_COLUMNS = {
    "id": "int64",
    "label": "int32",
    "score": "float64",
    "weight": "float32",
    "seen": "int64",
    "title": "str",
    "text": "str",
    "tags": "ndarray:int16",
    "embedding": "ndarray:float32:256",
    "blob": "bytes",
}


def rows_of(source: str, groups: list[int]) -> Iterator[dict[str, Any]]:
    """Rows of some row groups, as cheaply as Python allows."""
    for batch in pq.ParquetFile(source).iter_batches(_BATCH_ROWS, groups, use_threads=False):
        count = batch.num_rows
        columns: dict[str, Any] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in ("embedding", "tags"):
                columns[name] = column.flatten().to_numpy().reshape(count, -1)
            elif name in ("text", "blob"):
                columns[name] = column.to_pylist()
            elif name == "title":
                columns[name] = column.fill_null("").to_pylist()
            elif name == "seen":
                columns[name] = column.cast("int64").to_numpy()
            else:
                columns[name] = (column.fill_null(0) if column.null_count else column).to_numpy()
        for row in range(count):
            yield {name: values[row] for name, values in columns.items()}


def groups_of(source: str, processes: int) -> list[list[int]]:
    count = pq.ParquetFile(source).num_row_groups
    return [list(range(first, count, processes)) for first in range(min(processes, count))]


def write_mds_part(source: str, target: str, groups: list[int]) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=target, columns=_MDS_COLUMNS, size_limit=32 << 20) as writer:
        for row in rows_of(source, groups):
            writer.write(row)


def write_mds(source: str, target: str, processes: int) -> None:
    from streaming.base.util import merge_index

    parts = [str(Path(target) / str(number)) for number in range(processes)]
    context = multiprocessing.get_context("fork")
    shares = groups_of(source, processes)
    workers = [
        context.Process(target=write_mds_part, args=(source, part, groups))
        for part, groups in zip(parts, shares, strict=False)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a writer of MDS ended with {worker.exitcode}")
    merge_index(target, keep_local=True)


class LitRows:
    """What litdata calls in its workers with one row group at a time."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, group: int) -> Iterator[dict[str, Any]]:
        yield from rows_of(self.source, [group])


def write_litdata(source: str, target: str, processes: int) -> None:
    from litdata import optimize

    optimize(
        fn=LitRows(source),
        inputs=list(range(pq.ParquetFile(source).num_row_groups)),
        output_dir=target,
        num_workers=processes,
        chunk_bytes=32 << 20,
    )


def sync_files(target: str, threads: int) -> None:
    """Make what was written durable, as the others in the comparison do: the libraries leave it to the system."""
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(_sync, (path for path in Path(target).rglob("*") if path.is_file())))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def count_rows(name: str, target: str) -> int:
    if name == "mds":
        index = json.loads((Path(target) / "index.json").read_text())
        return sum(int(shard["samples"]) for shard in index["shards"])
    index = json.loads((Path(target) / "index.json").read_text())
    return sum(int(chunk["chunk_size"]) for chunk in index["chunks"])


class Unneeded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision: MDS imports its data set classes before its writer, which needs none of them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return


def main() -> None:
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(Unneeded())
    name, source, target, processes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    if name == "mds":
        import streaming  # noqa: F401  (imports are not what is measured)
    else:
        import litdata  # noqa: F401
    started = time.perf_counter()
    (write_mds if name == "mds" else write_litdata)(source, target, processes)
    sync_files(target, processes)
    seconds = time.perf_counter() - started
    rows = count_rows(name, target)
    if rows != pq.ParquetFile(source).metadata.num_rows:
        raise RuntimeError(f"{name} wrote {rows} rows")
    print("\n" + json.dumps({"seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
