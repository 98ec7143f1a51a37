"""What users would pick instead, one library a process: ``python -m benchmarks.loader_real.peer_loaders NAME``.

Run by the interpreter that has the libraries, and without dhtdata. ``NAME``: litdata, mosaic, huggingface, webdataset.
Writes rows as the library wants them, and serves (`stopwatch`) every way in which the library hands them out shuffled:

``batches*``  batches of the kind's size as columns: rows collated by torch's DataLoader, and rows read together where
              the library offers that (HF datasets by a list of indices or ``batch()``, WebDataset by ``batched``), as
              tensors where the kind's columns can be tensors. HF datasets' arrays become tensors by
              ``torch.from_numpy`` in one variant, which is faster than its own torch format.
``rows*``     single rows, as the library itself makes them.

A variant that ends in ``_2`` has 2 worker processes, which stay (``persistent_workers``).
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks.baseline_writers import Unneeded
from benchmarks.loader_real import rows as made
from benchmarks.loader_real.stopwatch import Order, Variant, serve

SHARD_BYTES = 64 << 20
SHUFFLED_ROWS = 2_000  # what buffers hold, in libraries that shuffle by a buffer
SHARDS = 4
Make = Callable[[int], Any]


def each_row(order: Order) -> Iterator[dict[str, Any]]:
    """Rows as dicts of numpy and Python values."""
    columns = made.arrays(order.table())
    names = made.COLUMNS[order.kind]
    for values in zip(*(columns[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def torch_loader(rows: Any, workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(rows, num_workers=workers, persistent_workers=workers > 0, **options)


# LitData


class LitRows:
    """What litdata calls in its worker: all rows, or for its loader of tokens nothing but tokens."""

    def __init__(self, order: Order, plain: bool) -> None:
        self.order, self.plain = order, plain

    def __call__(self, _: int) -> Iterator[Any]:
        for row in each_row(self.order):
            if self.plain:
                yield torch.from_numpy(row["tokens"].copy())
            else:
                yield {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


class AsRows:
    """A loader of bare tokens, in batches as columns."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for tokens in self.loader:
            yield {"tokens": tokens}


def litdata(order: Order) -> dict[str, tuple[Make, str | int | None]]:
    import litdata as lit

    batch = made.BATCH[order.kind]
    plain = {"rows": False} | ({"tokens": True} if order.kind == "tokens" else {})
    for name, only_tokens in plain.items():
        lit.optimize(
            fn=LitRows(order, only_tokens),
            inputs=[0],
            output_dir=str(order.folder / name),
            num_workers=1,
            chunk_bytes=SHARD_BYTES,
            start_method="fork",
            verbose=False,
            item_loader=lit.TokensLoader(block_size=made.WIDTH) if only_tokens else None,
        )

    def batches(workers: int) -> Any:
        data = lit.StreamingDataset(str(order.folder / "rows"), shuffle=True)
        return lit.StreamingDataLoader(data, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)

    def tokens(workers: int) -> Any:
        loader = lit.TokensLoader(block_size=made.WIDTH)
        data = lit.StreamingDataset(str(order.folder / "tokens"), shuffle=True, item_loader=loader)
        return AsRows(
            lit.StreamingDataLoader(data, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
        )

    def single(_: int) -> Any:
        return lit.StreamingDataset(str(order.folder / "rows"), shuffle=True)

    key = made.COLUMNS[order.kind][0]
    ways: dict[str, tuple[Make, str | int | None]] = {"batches": (batches, key), "rows": (single, None)}
    return ways | ({"batches_tokens": (tokens, key)} if order.kind == "tokens" else {})


# MosaicML Streaming


class ByNumber(Dataset[Any]):  # type: ignore[misc]  # torch is not typed here
    """A streamed dataset read by row number, so that torch deals the rows."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]


def mosaic(order: Order) -> dict[str, tuple[Make, str | int | None]]:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    types = {"tokens": f"ndarray:int32:{made.WIDTH}", "data": "bytes", "text": "str", "label": "int"}
    columns = {name: types.get(name, "float32") for name in made.COLUMNS[order.kind]}
    with MDSWriter(out=str(order.folder / "mds"), columns=columns, size_limit=SHARD_BYTES) as writer:
        for row in each_row(order):
            row = {name: int(value) if name == "label" else value for name, value in row.items()}
            writer.write(row)
    clean_stale_shared_memory()
    batch, key = made.BATCH[order.kind], made.COLUMNS[order.kind][0]

    def rows() -> Any:
        return StreamingDataset(local=str(order.folder / "mds"), batch_size=batch, shuffle=True, shuffle_seed=0)

    return {
        "batches": (lambda workers: torch_loader(rows(), workers, batch_size=batch), key),
        "batches_by_number": (
            lambda workers: torch_loader(ByNumber(rows()), workers, batch_size=batch, shuffle=True),
            key,
        ),
        "rows": (lambda _: rows(), None),
    }


# HF datasets


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) if value.dtype != object else list(value) for name, value in batch.items()}


def unlisted(batch: dict[str, Any]) -> dict[str, Any]:
    """Python's lists of numbers as tensors; objects as they are."""
    return {name: torch.tensor(value) if name == "label" else value for name, value in batch.items()}


class Shuffled:
    """Rows by number in a new order every epoch."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.epoch = rows, 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for number in np.random.default_rng(self.epoch).permutation(len(self.rows)).tolist():
            yield self.rows[number]


def huggingface(order: Order) -> dict[str, tuple[Make, str | int | None]]:
    import datasets

    datasets.disable_progress_bars()
    written = datasets.Dataset(order.table())
    written.save_to_disk(str(order.folder / "arrow"), num_shards=SHARDS)
    stored = datasets.load_from_disk(str(order.folder / "arrow"))
    batch, key = made.BATCH[order.kind], made.COLUMNS[order.kind][0]
    objects = order.kind in ("binary", "text")

    def map_rows(workers: int) -> Any:
        return torch_loader(stored.with_format("torch"), workers, batch_size=batch, shuffle=True)

    def map_lists(format: str | None, workers: int) -> Any:
        rows = stored.with_format(format)
        sampler = BatchSampler(RandomSampler(rows), batch, False)
        finish = {"numpy": tensors, None: unlisted}.get(format, same)
        return torch_loader(rows, workers, sampler=sampler, batch_size=None, collate_fn=finish)

    def iterable(format: str | None) -> Any:
        shuffled = stored.to_iterable_dataset(num_shards=SHARDS).with_format(format)
        return shuffled.shuffle(seed=0, buffer_size=SHUFFLED_ROWS)

    def iterable_rows(workers: int) -> Any:
        return torch_loader(iterable("torch"), workers, batch_size=batch)

    def iterable_lists(format: str | None, workers: int) -> Any:
        finish = {"numpy": tensors, None: unlisted}.get(format, same)
        return torch_loader(iterable(format).batch(batch), workers, batch_size=None, collate_fn=finish)

    fast: tuple[str | None, ...] = (None,) if objects else ("torch", "numpy")
    ways: dict[str, tuple[Make, str | int | None]] = {
        "batches_map": (map_rows, key),
        "batches_iterable": (iterable_rows, key),
    }
    for format in fast:
        ways[f"batches_map_lists_{format or 'python'}"] = (partial(map_lists, format), key)
        ways[f"batches_iterable_lists_{format or 'python'}"] = (partial(iterable_lists, format), key)
    if objects:
        ways["rows_map"] = (lambda _: Shuffled(stored), None)
        ways["rows_map_shuffled"] = (lambda _: stored.shuffle(seed=0), None)
        ways["rows_iterable"] = (lambda _: iterable(None), None)
    return ways


def same(item: Any) -> Any:
    return item


# WebDataset

_RECORD = np.dtype([(name, np.float32) for name in made.FLOATS] + [("label", np.int64)])


def web_floats(sample: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(np.frombuffer(sample["row.bin"], _RECORD)[0])


def web_tokens(sample: dict[str, Any]) -> tuple[Any, ...]:
    return (torch.frombuffer(bytearray(sample["tokens.bin"]), dtype=torch.int32),)


def web_binary(sample: dict[str, Any]) -> tuple[Any, ...]:
    return sample["data.bin"], int(sample["label.txt"])


def web_text(sample: dict[str, Any]) -> tuple[Any, ...]:
    return (sample["text.txt"].decode(),)


def web_parts(kind: str, row: dict[str, Any]) -> dict[str, bytes]:
    if kind == "tokens":
        return {"tokens.bin": row["tokens"].tobytes()}
    if kind == "binary":
        return {"data.bin": row["data"], "label.txt": str(row["label"]).encode()}
    if kind == "text":
        return {"text.txt": row["text"].encode()}
    return {"row.bin": np.array(tuple(row.values()), _RECORD).tobytes()}


def webdataset(order: Order) -> dict[str, tuple[Make, str | int | None]]:
    import webdataset as wds

    with wds.ShardWriter(
        str(order.folder / "%05d.tar"), maxsize=SHARD_BYTES, maxcount=-(-order.rows // SHARDS), verbose=0
    ) as writer:
        for number, row in enumerate(each_row(order)):
            writer.write({"__key__": f"{number:08d}", **web_parts(order.kind, row)})
    tars = sorted(glob.glob(str(order.folder / "*.tar")))
    record = {"tokens": web_tokens, "binary": web_binary, "text": web_text, "floats": web_floats}[order.kind]
    batch = made.BATCH[order.kind]

    def rows() -> Any:
        return wds.WebDataset(tars, shardshuffle=SHARDS, empty_check=False).shuffle(SHUFFLED_ROWS).map(record)

    def together(workers: int) -> Any:
        return torch_loader(
            rows().batched(batch, collation_fn=torch.utils.data.default_collate), workers, batch_size=None
        )

    return {
        "batches": (lambda workers: torch_loader(rows(), workers, batch_size=batch), 0),
        "batches_batched": (together, 0),
        "rows": (lambda _: rows(), None),
    }


MODULES = {"litdata": "litdata", "mosaic": "streaming", "huggingface": "datasets", "webdataset": "webdataset"}
LIBRARIES = {each.__name__: each for each in (litdata, mosaic, huggingface, webdataset)}


def prepare(name: str, order: Order) -> dict[str, Variant]:
    named = made.COLUMNS[order.kind] if name == "webdataset" else ()
    variants: dict[str, Variant] = {}
    for way, (make, key) in LIBRARIES[name](order).items():
        variants[way] = Variant(partial(make, 0), key, named)
        if way.startswith("batches"):
            variants[f"{way}_2"] = Variant(partial(make, 2), key, named)
    return variants


def main() -> None:
    warnings.filterwarnings("ignore")
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(Unneeded())
    importlib.import_module(MODULES[sys.argv[1]])
    serve(partial(prepare, sys.argv[1]))


if __name__ == "__main__":
    main()
