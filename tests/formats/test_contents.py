from __future__ import annotations

import pytest
from msgspec.structs import replace

from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_SHARD_BYTES
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, MAX_SPLITS, Contents, Group, GroupShards, Split
from dhtdata.formats.index import MAX_ROWS, MAX_SHARDS
from dhtdata.formats.schema import Field
from tests.formats.samples import CONTENTS, named

SPLIT = CONTENTS.splits[0]


def test_contents_are_read_back() -> None:
    assert Contents.decode(CONTENTS.encode()) == CONTENTS


def test_rows_bytes_and_shards_are_counted_over_splits_and_groups() -> None:
    assert (CONTENTS.row_count, CONTENTS.byte_count, CONTENTS.shard_count) == (6_006, 4 * 99_000_003, 12)


def shards(count: int, indexes: int | None = None, size: int = 1) -> GroupShards:
    needed = -(-count // MAX_SHARDS) if indexes is None else indexes
    return GroupShards(indexes=tuple(named(str(i)) for i in range(needed)), shards=count, bytes=size)


def with_split(**changes: object) -> Contents:
    return replace(CONTENTS, splits=(replace(SPLIT, **changes),))


def with_shards(group: GroupShards) -> Contents:
    return with_split(groups=(group, group))


ALLOWED = {
    "as many shards as one index holds": with_shards(shards(MAX_SHARDS)),
    "one shard more, in a second index": with_shards(shards(MAX_SHARDS + 1)),
    "shards as large as can be": with_shards(shards(2, size=2 * MAX_SHARD_BYTES)),
    "as many rows as can be": with_split(rows=MAX_ROWS),
    "the longest split name": with_split(name="é" * 64),
    "as many splits as can be": replace(
        CONTENTS,
        splits=tuple(
            Split(name=str(i), rows=1, ranges=named("r"), groups=(shards(1), shards(1))) for i in range(MAX_SPLITS)
        ),
    ),
}
REFUSED = {
    "no columns": (replace(CONTENTS, columns=(), groups=()), "no columns"),
    "cutting of version 0": (replace(CONTENTS, cutting=0), "no version 0 of the cutting"),
    "a column in no group": (replace(CONTENTS, groups=(Group(columns=("id", "when")),)), "exactly one group"),
    "a column in two groups": (
        replace(CONTENTS, groups=(Group(columns=("id", "when")), Group(columns=("tags", "id")))),
        "exactly one group",
    ),
    "an unknown column": (
        replace(CONTENTS, groups=(Group(columns=("id", "when")), Group(columns=("tagz",)))),
        "exactly one group",
    ),
    "an empty group": (
        replace(CONTENTS, groups=(*CONTENTS.groups, Group(columns=()))),
        "no group is empty",
    ),
    "no split": (replace(CONTENTS, splits=()), "1 to 256 splits"),
    "two splits of one name": (replace(CONTENTS, splits=(SPLIT, SPLIT)), "names of their own"),
    "too many splits": (
        replace(CONTENTS, splits=tuple(replace(SPLIT, name=str(i)) for i in range(MAX_SPLITS + 1))),
        "1 to 256 splits",
    ),
    "a split without a name": (with_split(name=""), "is empty, too long"),
    "a split name that is too long": (with_split(name="x" * 65), "is empty, too long"),
    "a split name with a slash": (with_split(name="a/b"), "odd characters"),
    "a split name with a line break": (with_split(name="a\nb"), "odd characters"),
    "a split without rows": (with_split(rows=0), "has no rows"),
    "more rows than can be": (
        replace(CONTENTS, splits=(replace(SPLIT, rows=MAX_ROWS), CONTENTS.splits[1])),
        "more rows",
    ),
    "a split without one of the groups": (with_split(groups=(shards(1),)), "lists 1 groups of 2"),
    "a group without shards": (with_shards(shards(0)), "0 indexes"),
    "a group without bytes": (with_shards(shards(1, size=0)), "0 bytes"),
    "more bytes than its shards can hold": (with_shards(shards(1, size=MAX_SHARD_BYTES + 1)), "for 1 shards"),
    "an index too few": (with_shards(shards(MAX_SHARDS + 1, indexes=1)), "1 indexes"),
    "an index too many": (with_shards(shards(1, indexes=2)), "2 indexes"),
    "another version": (replace(CONTENTS, version=2), "upgrade dhtdata"),
    "too large an ext": (replace(CONTENTS, ext={str(i): "" for i in range(65)}), "ext has 65"),
    "too many bytes": (replace(CONTENTS, metadata={"x": "x" * MAX_CONTENTS_BYTES}), "fewer columns"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_lies_within_the_limits_is_read_back(case: str) -> None:
    assert Contents.decode(ALLOWED[case].encode()) == ALLOWED[case]


@pytest.mark.parametrize("case", REFUSED)
def test_what_lies_outside_is_refused_on_the_way_out(case: str) -> None:
    contents, complaint = REFUSED[case]
    with pytest.raises(FormatError, match=complaint):
        contents.encode()


def test_a_terabyte_of_many_columns_fits_the_limit() -> None:
    columns = tuple(Field(name=f"column {i}", type="float32") for i in range(1_000))
    groups = (Group(columns=tuple(field.name for field in columns)),)
    split = Split(name="train", rows=10**9, ranges=named("r"), groups=(shards(30_000, size=10**12),))
    contents = Contents(version=1, cutting=1, columns=columns, groups=groups, splits=(split,))
    assert len(contents.encode()) < MAX_CONTENTS_BYTES
