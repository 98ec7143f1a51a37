"""Lists of any length in a batch: padded, jagged, or lists, as the mount says."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.gather import ragged
from dhtdata.gather.gatherer import Gatherer
from dhtdata.gather.ragged import Ragged
from dhtdata.store import Store
from dhtdata.torch import DataLoader
from tests.gather.tables import array_of
from tests.mount.making import put_dataset

ROWS = 230
RAGGED = ["tokens", "large", "pairs", "flags", "days", "halves", "text", "blob"]


@cache
def table() -> pa.Table:
    draw = np.random.Generator(np.random.Philox(3))

    def lists(kind: pa.DataType) -> pa.Array:
        """Null and empty lists, and no null items, which no padded tensor of integers could hold."""
        rows = array_of(draw, kind, ROWS, lambda row: 0.0).to_pylist()
        return pa.array([None if draw.random() < 0.1 else row for row in rows], kind)

    return pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "tokens": lists(pa.list_(pa.int32())),
            "large": lists(pa.large_list(pa.uint64())),
            "pairs": lists(pa.list_(pa.list_(pa.int16(), 2))),
            "flags": lists(pa.list_(pa.bool_())),
            "days": lists(pa.list_view(pa.date32())),
            "halves": array_of(draw, pa.list_(pa.float16()), ROWS, lambda row: 0.2 if row > 100 else 0.0),
            "text": lists(pa.string()),
            "blob": lists(pa.large_binary()),
            "holed": array_of(draw, pa.list_(pa.int32()), ROWS, lambda row: 0.2 if row > 100 else 0.0),
            "words": lists(pa.list_(pa.string())),
            "nested": lists(pa.list_(pa.list_(pa.int8()))),
            "struct": lists(pa.struct([("inside", pa.list_(pa.int8()))])),
            "vector": lists(pa.list_(pa.float32(), 3)),
        }
    )


def items_of(name: str, row: int) -> list[Any]:
    """What a row of a column holds; NaN, in both halves of a comparison, is told by `shown`."""
    value = table()[name][row].as_py()
    if isinstance(value, str | bytes):
        return list(value.encode() if isinstance(value, str) else value)
    if name == "days":
        return [day.toordinal() - datetime.date(1970, 1, 1).toordinal() for day in value or []]
    return list(value or [])


def shown(column: Any) -> Any:
    """Nested lists; days as numbers, NaN and masked items as None."""
    if isinstance(column, torch.Tensor):
        column = column.numpy()
    if column.dtype.kind == "M":
        column = column.view(np.int64)
    if column.dtype.kind == "f":
        column = np.ma.masked_invalid(column)
    return column.tolist()


def padded(name: str, rows: list[int], fill: Any = 0) -> list[Any]:
    kept = [items_of(name, row) for row in rows]
    longest = max(map(len, kept))
    blank = [fill, fill] if name == "pairs" else bool(fill) if name == "flags" else fill
    return [items + [blank] * (longest - len(items)) for items in kept]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home: Path) -> str:
    names = table().column_names
    with Store.open(home / "store") as store:
        return str(put_dataset(store, table(), groups=[names[::2], names[1::2]], block_rows=20))


@pytest.fixture
def mounted(made: str, home: Path) -> Callable[..., dhtdata.StreamingDataset]:
    def mount(**options: Any) -> dhtdata.StreamingDataset:
        return dhtdata.mount(made, home=home, **{"batch_size": 16, "shuffle": True, **options})

    return mount


Mounted = Callable[..., dhtdata.StreamingDataset]


@pytest.mark.parametrize("format", ["numpy", "torch"])
@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"rank": 1, "world_size": 3}], ids=["plain", "threads", "pad"])
def test_padded_columns_are_filled_up_to_the_longest_of_the_batch(
    mounted: Mounted, format: str, options: dict[str, Any]
) -> None:
    dataset = mounted(columns=["number", *RAGGED], collate=dict.fromkeys(RAGGED, "padded"), format=format, **options)
    for batch in dataset:
        rows = batch["number"].tolist()
        expected = ["number", *(member for name in RAGGED for member in (name, f"{name}_lengths"))]
        assert list(batch) == expected + (["_valid"] if dataset._loop.remainder == "pad" else [])
        for name in RAGGED:
            assert shown(batch[name]) == padded(name, rows), name
            assert batch[f"{name}_lengths"].tolist() == [len(items_of(name, row)) for row in rows]
        kinds = {name: str(batch[name].dtype).removeprefix("torch.") for name in ("tokens", "pairs", "text", "halves")}
        assert kinds == {"tokens": "int32", "pairs": "int16", "text": "uint8", "halves": "float16"}


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_jagged_columns_lie_end_to_end(mounted: Mounted, format: str) -> None:
    dataset = mounted(columns=["number", *RAGGED], collate=dict.fromkeys(RAGGED, "jagged"), format=format)
    for batch in dataset:
        rows = batch["number"].tolist()
        for name in RAGGED:
            kept = [items_of(name, row) for row in rows]
            jagged = batch[name]
            assert list(jagged) == ["values", "offsets", "longest"]
            assert shown(jagged["values"]) == sum(kept, [])
            assert jagged["offsets"].tolist() == [0, *np.cumsum([len(items) for items in kept]).tolist()]
            assert str(jagged["offsets"].dtype).endswith("int32")
            assert type(jagged["longest"]) is int and jagged["longest"] == max(map(len, kept))


def test_jagged_columns_make_nested_tensors(mounted: Mounted) -> None:
    batch = next(iter(mounted(columns=["tokens"], collate="jagged", format="torch")))["tokens"]
    nested = torch.nested.nested_tensor_from_jagged(batch["values"], batch["offsets"])
    cuts = batch["offsets"].tolist()
    assert [part.tolist() for part in nested.unbind()] == [
        batch["values"][start:stop].tolist() for start, stop in zip(cuts, cuts[1:], strict=False)
    ]


@pytest.mark.timeout(90)
@pytest.mark.slow_e2e
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_hand_over_the_same_shapes(mounted: Mounted, context: str) -> None:
    options: dict[str, Any] = {
        "columns": ["number", "tokens", "pairs", "text", "words"],
        "collate": {"tokens": "padded", "pairs": "jagged", "text": ("padded", 7)},
        "format": "torch",
    }
    alone = list(mounted(**options))
    handed = list(DataLoader(mounted(**options), num_workers=2, multiprocessing_context=context))
    assert len(alone) == len(handed) == 15
    for mine, theirs in zip(alone, handed, strict=True):
        assert list(mine) == list(theirs) and mine["words"] == theirs["words"]
        for name in ("number", "tokens", "tokens_lengths", "text"):
            assert torch.equal(mine[name], theirs[name])
        assert torch.equal(mine["pairs"]["values"], theirs["pairs"]["values"])
        assert mine["pairs"]["offsets"].tolist() == theirs["pairs"]["offsets"].tolist()
        assert mine["pairs"]["longest"] == theirs["pairs"]["longest"]
        theirs["tokens"] += 1


def test_lists_are_the_default_and_can_be_asked_for(mounted: Mounted) -> None:
    for options in ({}, {"collate": "list"}, {"collate": {"tokens": "list"}}):
        batch = next(iter(mounted(columns=["number", "tokens"], **options)))
        assert list(batch) == ["number", "tokens"] and batch["tokens"].dtype == object
        lists = [None if items is None else items.tolist() for items in batch["tokens"]]
        assert lists == [table()["tokens"][row].as_py() for row in batch["number"].tolist()]


def test_one_word_for_all_means_the_columns_that_it_fits(mounted: Mounted) -> None:
    batch = next(iter(mounted(collate="padded")))
    shaped = {name.removesuffix("_lengths") for name in batch if name.endswith("_lengths")}
    assert shaped == {"tokens", "large", "pairs", "flags", "days", "halves", "holed"}
    assert isinstance(batch["text"][0], str | None) and batch["vector"].shape == (16, 3)


@pytest.mark.parametrize(
    ("name", "fill"), [("tokens", -100), ("halves", float("nan")), ("halves", 0.5), ("flags", True), ("text", 255)]
)
def test_padding_is_filled_with_what_was_asked_for(mounted: Mounted, name: str, fill: Any) -> None:
    batch = next(iter(mounted(columns=["number", name], collate={name: ("padded", fill)})))
    told = None if fill != fill else fill
    assert shown(batch[name]) == padded(name, batch["number"].tolist(), told)


def test_null_items_are_masked_and_no_tensor_holds_them(mounted: Mounted) -> None:
    masked = 0
    for batch in mounted(columns=["number", "holed"], collate={"holed": ("padded", -1)}):
        assert shown(batch["holed"]) == padded("holed", batch["number"].tolist(), -1)
        if isinstance(batch["holed"], np.ma.MaskedArray):
            masked += 1
            batch["holed"][0, 0] = np.ma.masked  # its mask is writable
    assert masked
    for batch in mounted(columns=["number", "holed"], collate="jagged"):
        assert shown(batch["holed"]["values"]) == sum((items_of("holed", row) for row in batch["number"].tolist()), [])
    with pytest.raises(ConfigError, match="column 'holed' has nulls"):
        list(mounted(columns=["holed"], collate="padded", format="torch"))


def test_random_access_shapes_batches_and_leaves_rows(mounted: Mounted) -> None:
    view = mounted(columns=["tokens", "number"], collate="padded").map_style()
    rows = [5, 3, 5, 100]
    batch = view[rows]
    assert list(batch) == ["tokens", "tokens_lengths", "number"]
    assert batch["tokens"].tolist() == padded("tokens", rows)
    assert view[5]["tokens"].tolist() == items_of("tokens", 5)
    assert [row["number"] for row in view.__getitems__(rows)] == rows


def test_other_formats_of_an_iteration_have_what_was_published(mounted: Mounted) -> None:
    dataset = mounted(columns=["number", "tokens"], collate="padded", shuffle=False)
    batch = next(dataset.iter_arrow())
    assert (
        batch.schema.names == ["number", "tokens"] and batch["tokens"].to_pylist() == table()["tokens"][:16].to_pylist()
    )
    assert isinstance(next(iter(DataLoader(dataset)))["tokens_lengths"], torch.Tensor)


def tokenised(row: dict[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "codes": [ord(letter) for letter in row["text"] or ""]}


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_what_a_transform_makes_of_samples_is_shaped_too(mounted: Mounted, format: str) -> None:
    dataset = mounted(
        columns=["number", "text"],
        transform=tokenised,
        transform_on="sample",
        collate={"codes": ("padded", -1)},
        format=format,
        rank=0,
        world_size=2,
    )
    for batch in dataset:
        assert list(batch) == ["number", "codes", "codes_lengths", "_valid"]
        texts = [table()["text"][row].as_py() or "" for row in batch["number"].tolist()]
        longest = max(map(len, texts))
        assert batch["codes"].tolist() == [[*map(ord, text), *[-1] * (longest - len(text))] for text in texts]
        assert batch["codes_lengths"].tolist() == [len(text) for text in texts]
        assert isinstance(batch["codes"], torch.Tensor if format == "torch" else np.ndarray)


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        (lambda row: {"codes": 3}, "column 'codes' cannot be jagged: a row is a single value"),
        (lambda row: {"number": row["number"]}, "returns no dict with codes"),
        (lambda row: 3, "returns no dict with codes"),
    ],
)
def test_what_a_transform_makes_wrong_is_named(mounted: Mounted, transform: Callable[[Any], Any], named: str) -> None:
    dataset = mounted(columns=["number"], transform=transform, transform_on="sample", collate={"codes": "jagged"})
    with pytest.raises(ConfigError, match=named):
        list(dataset)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"collate": "stacked"}, "'stacked' is none of list, padded, jagged"),
        ({"collate": ("jagged", 3)}, "is none of"),
        ({"collate": {"tokens": 3}}, "3 is none of"),
        ({"collate": {"token": "padded"}}, "no column 'token': the chosen ones are number, tokens"),
        ({"collate": {"words": "padded"}}, "column 'words' of type list<.*string> cannot be padded: lists of numbers"),
        ({"collate": {"nested": "jagged"}}, "column 'nested' of type .* cannot be jagged"),
        ({"collate": {"struct": "padded"}}, "column 'struct' of type struct"),
        ({"collate": {"number": "padded"}}, "column 'number' of type int64"),
        ({"collate": {"vector": "padded"}}, "column 'vector' of type fixed_size_list"),
        ({"collate": "padded", "columns": ["number", "text"]}, "which have to be named in a dict"),
        ({"collate": {"text": ("padded", 300)}}, "300 is no value of uint8, of which column 'text' is made"),
        ({"collate": {"tokens": ("padded", float("nan"))}}, "nan is no value of int32"),
        ({"collate": {"tokens": ("padded", 0.5)}}, "0.5 is no value of int32"),
        ({"collate": {"tokens": ("padded", "x")}}, "'x' is no value of int32"),
        ({"collate": "padded", "batch_size": None}, "give batch_size"),
        ({"collate": "padded", "format": "arrow"}, "format='numpy' or 'torch', not 'arrow'"),
        ({"collate": "padded", "format": "python"}, "not 'python'"),
        ({"collate": "padded", "transform": tokenised, "transform_on": "sample"}, "give a dict"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_name(mounted: Mounted, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        mounted(**options)


def test_lengths_must_not_collide_with_a_column(home: Path) -> None:
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, pa.table({"a": [[1]], "a_lengths": [2]}), name="collision"))
    with pytest.raises(ConfigError, match="lengths of column 'a' would collide with column 'a_lengths'"):
        dhtdata.mount(digest, home=home, batch_size=1, collate="padded")
    assert dhtdata.mount(digest, home=home, batch_size=1, collate="padded", columns=["a"]).format == "numpy"


lists = st.lists(st.lists(st.integers(-9, 9), max_size=6), min_size=1, max_size=12)


@given(rows=lists, cuts=st.sets(st.integers(1, 11)), fill=st.integers(-5, 5))
def test_any_lists_cut_into_any_batches_keep_their_items(rows: list[list[int]], cuts: set[int], fill: int) -> None:
    column = Ragged.joined([np.array(row, np.int16) for row in rows])
    bounds = (0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows))
    spans = [rows[first:stop] for first, stop in zip(bounds, bounds[1:], strict=False)]
    longest = [max(map(len, span)) for span in spans]
    assert [piece.tolist() for piece in column.padded(bounds, fill).pieces] == [
        [row + [fill] * (most - len(row)) for row in span] for span, most in zip(spans, longest, strict=True)
    ]
    jagged = column.jagged(bounds)
    assert [piece.tolist() for piece in jagged["values"].pieces] == [sum(span, []) for span in spans]
    assert [np.diff(piece).tolist() for piece in jagged["offsets"].pieces] == [[*map(len, span)] for span in spans]
    assert jagged["longest"].pieces == longest


def test_nothing_is_copied_where_the_items_lie_as_they_should() -> None:
    column = Ragged.joined([np.arange(4), np.arange(4), np.arange(3)])
    same, mixed = column.padded((0, 2, 3), None).pieces
    assert np.shares_memory(same, column.values) and np.shares_memory(mixed, column.values)
    assert all(np.shares_memory(piece, column.values) for piece in column.jagged((0, 2, 3))["values"].pieces)


def test_items_that_offsets_cannot_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "MAX_ITEMS", 4)
    column = Ragged.joined([np.arange(3), np.arange(2)])
    assert len(column.jagged((0, 1, 2))["values"].pieces) == 2
    with pytest.raises(ConfigError, match="5 items end to end.*smaller batch_size"):
        column.jagged((0, 2))


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Calls of Python functions, and of C functions by Python code, while inside."""
    calls = [0]

    def count(frame: object, event: str, argument: object) -> None:
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("format", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["padded", "jagged"])
def test_no_row_costs_a_step_of_python(home: Path, format: str, kind: str) -> None:
    rows = 4_000
    lengths = np.arange(rows) % 5
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    big = pa.table(
        {
            "number": pa.array(range(rows)),
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(np.arange(lengths.sum(), dtype=np.int32))),
            "vector": pa.FixedSizeListArray.from_arrays(np.arange(rows * 3, dtype=np.float32), 3),
        }
    )
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, big, block_rows=rows, name="big"))
    view = dhtdata.mount(digest, home=home, batch_size=8, collate=kind, format=format).map_style()
    view[[0]]
    spent = []
    for count in (50, rows):
        chosen = np.random.Generator(np.random.Philox(1)).integers(0, rows, count)
        with counted_calls() as calls:
            batch = view[chosen]
        assert len(batch["number"]) == count
        spent.append(calls[0])
    assert spent[1] <= spent[0] + 20


def test_ragged_columns_are_asked_for_by_name(mounted: Mounted) -> None:
    dataset = mounted(columns=["number", "tokens"])
    next(iter(dataset))
    gatherer = dataset._view._process().gatherer
    assert isinstance(gatherer, Gatherer)
    found = gatherer.numpy(np.array([3, 1]), {"tokens"})
    assert isinstance(found["tokens"], Ragged) and found["tokens"].lengths.tolist() == [
        len(items_of("tokens", row)) for row in (3, 1)
    ]
