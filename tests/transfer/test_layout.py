from __future__ import annotations

import pytest

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import Index, ShardEntry, encode_ranges
from dhtdata.formats.schema import Field
from dhtdata.transfer.layout import Layout, entries_of
from tests.transfer.swarming import NewStore


def _index(label: str, shards: int) -> Index:
    return Index.build(
        [
            ShardEntry(Digest.of(f"{label}{n}".encode()), Digest.of(f"table {label}{n}".encode()), 1, 10)
            for n in range(shards)
        ]
    )


INDEXES = {(split, group): _index(f"{split}/{group}/", 2 + split + group) for split in range(2) for group in range(2)}


def _contents() -> Contents:
    return Contents(
        version=1,
        cutting=1,
        columns=(Field(name="a", type="int64"), Field(name="b", type="int64"), Field(name="c", type="binary")),
        groups=(Group(columns=("a", "b")), Group(columns=("c",))),
        splits=tuple(
            Split(
                name=name,
                rows=10,
                ranges=Digest.of(encode_ranges([10])),
                groups=tuple(
                    GroupShards(indexes=(Digest.of(index.encode()),), shards=len(index), bytes=10 * len(index))
                    for index in (INDEXES[split, 0], INDEXES[split, 1])
                ),
            )
            for split, name in enumerate(("train", "test"))
        ),
    )


def test_ordinals_count_splits_groups_and_entries_in_order(new_store: NewStore) -> None:
    store = new_store("store")
    contents = store.put(_contents().encode())
    for index in INDEXES.values():
        store.put(index.encode())
    layout = Layout.load(store, contents)
    in_order = [shard for split in range(2) for group in range(2) for shard in INDEXES[split, group].digests()]
    assert layout.shard_count == len(in_order)
    assert [layout.ordinal(shard) for shard in in_order] == list(range(len(in_order)))
    assert layout.known() == {shard: ordinal for ordinal, shard in enumerate(in_order)}


def test_ordinals_are_right_with_only_some_indexes_here(new_store: NewStore) -> None:
    store = new_store("store")
    contents = store.put(_contents().encode())
    last = INDEXES[1, 1]
    store.put(last.encode())
    layout = Layout.load(store, contents)
    before = layout.shard_count - len(last)
    assert [layout.ordinal(shard) for shard in last.digests()] == list(range(before, layout.shard_count))
    first = INDEXES[0, 0].digests()[0]
    assert layout.ordinal(first) is None
    store.put(INDEXES[0, 0].encode())
    layout.place_stored(store)
    assert layout.ordinal(first) == 0


@pytest.mark.parametrize(
    ("splits", "columns", "chosen"),
    [
        ([], [], [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (["test"], [], [(1, 0), (1, 1)]),
        ([], ["b"], [(0, 0), (1, 0)]),
        (["train"], ["c", "a"], [(0, 0), (0, 1)]),
    ],
)
def test_only_the_indexes_of_splits_and_columns_are_chosen(
    new_store: NewStore, splits: list[str], columns: list[str], chosen: list[tuple[int, int]]
) -> None:
    store = new_store("store")
    layout = Layout(Digest.of(b"contents"), _contents())
    spans = layout.select(splits, columns)
    assert [span.digest for span in spans] == [Digest.of(INDEXES[key].encode()) for key in chosen]
    with pytest.raises(NotFoundError):
        list(entries_of(store, spans))
    for index in INDEXES.values():
        store.put(index.encode())
    assert [entry.digest for entry in entries_of(store, spans)] == [s for key in chosen for s in INDEXES[key].digests()]


def test_what_does_not_exist_is_named() -> None:
    layout = Layout(Digest.of(b"contents"), _contents())
    with pytest.raises(ConfigError, match="'valid'.*train, test"):
        layout.select(["valid"], [])
    with pytest.raises(ConfigError, match="'d'.*a, b, c"):
        layout.select([], ["d"])


def test_an_index_with_another_number_of_shards_is_refused(new_store: NewStore) -> None:
    store = new_store("store")
    wrong = _index("wrong", 9)
    digest = store.put(wrong.encode())
    split = _contents().splits[0]
    groups = (GroupShards(indexes=(digest,), shards=3, bytes=10), split.groups[1])
    damaged = Contents(
        version=1,
        cutting=1,
        columns=_contents().columns,
        groups=_contents().groups,
        splits=(Split(name="train", rows=10, ranges=split.ranges, groups=groups),),
    )
    with pytest.raises(FormatError, match="lists 9 shards"):
        Layout.load(store, store.put(damaged.encode()))
