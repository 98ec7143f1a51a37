from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.formats.contents import Group
from dhtdata.tables.groups import SAMPLE_BYTES, GroupChooser


def chosen(table: pa.Table, inherited: list[list[str]] | None = None, rows: int = 1_000) -> list[list[str]]:
    groups = [Group(columns=tuple(names)) for names in inherited or []]
    chooser = GroupChooser(table.column_names, groups)
    for batch in table.to_batches(max_chunksize=rows):
        if chooser.needs_rows:
            chooser.push(batch)
    return [list(group.columns) for group in chooser.groups()]


def binaries(lengths: list[int]) -> pa.Array:
    return pa.array([bytes(length) for length in lengths], pa.binary())


# Mean of 1,020 bytes and 4 of the offset: exactly 1 KiB is wide, one byte less in all is not.
@pytest.mark.parametrize(("lengths", "wide"), [([1_020] * 10, True), ([1_020] * 9 + [1_019], False)])
def test_a_column_of_1_kib_a_value_has_its_own_group(lengths: list[int], wide: bool) -> None:
    table = pa.table({"a": np.arange(10), "image": binaries(lengths), "b": np.arange(10)})
    assert chosen(table) == ([["a", "b"], ["image"]] if wide else [["a", "image", "b"]])


def test_two_wide_columns_stand_alone() -> None:
    table = pa.table({"x": binaries([5_000]), "y": binaries([6_000]), "z": [1]})
    assert chosen(table) == [["x"], ["y"], ["z"]]


def test_groups_are_inherited_whatever_the_sizes_are_now() -> None:
    table = pa.table({"a": [1], "text": ["x" * 5_000], "image": binaries([0])})
    assert chosen(table, [["text", "a"], ["image"]]) == [["text", "a"], ["image"]]


def test_new_columns_form_new_groups_and_gone_ones_leave() -> None:
    table = pa.table({"new": [1], "a": [1], "wide": binaries([9_999]), "newer": [2]})
    assert chosen(table, [["a", "gone"], ["gone too"]]) == [["a"], ["new", "newer"], ["wide"]]


def test_an_empty_table_gets_one_group() -> None:
    assert chosen(pa.table({"a": pa.array([], pa.int8()), "b": pa.array([], pa.int8())})) == [["a", "b"]]


@settings(max_examples=15, deadline=None)
@given(batch_rows=st.integers(1, 80), late_from=st.integers(60, 66))
def test_only_the_first_64_mib_count_however_they_are_batched(batch_rows: int, late_from: int) -> None:
    mebibyte = bytes(1 << 20)
    late = [b"" if row < late_from else mebibyte for row in range(80)]
    table = pa.table({"early": [mebibyte] * 80, "late": late, "tag": pa.array([1] * 80, pa.int8())})
    rows = total = late_bytes = 0
    while total < SAMPLE_BYTES:
        late_bytes += 4 + len(late[rows])
        total += 4 + len(mebibyte) + 4 + len(late[rows]) + 1
        rows += 1
    wide = late_bytes / rows >= 1_024
    assert wide == (late_from < rows)
    expected = [["early"], ["late"], ["tag"]] if wide else [["early"], ["late", "tag"]]
    assert chosen(table, rows=batch_rows) == expected
