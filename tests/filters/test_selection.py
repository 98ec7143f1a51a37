from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, NotFoundError
from dhtdata.filters import SEGMENT_ROWS, Segments, Selection, SelectionWriter, kept_selection
from dhtdata.filters import kept as keeping
from dhtdata.filters.selection import open_selection, writing_selection

KEY = Digest.of(b"a filter")


def write(path: Path, ranges: list[int], kept: NDArray[np.bool_]) -> None:
    segments = Segments(ranges)
    with writing_selection(path, KEY, segments) as writer:
        put_all(writer, segments, kept)
        writer.commit()


def put_all(writer: SelectionWriter, segments: Segments, kept: NDArray[np.bool_]) -> None:
    for number, (first, count) in enumerate(zip(segments.firsts, segments.counts, strict=True)):
        writer.put(number, kept[first : first + count])


@st.composite
def masks(draw: st.DrawFn) -> tuple[list[int], NDArray[np.bool_]]:
    """Row ranges, some longer than a segment, and which rows are kept: all, none or some of each range."""
    ranges = draw(
        st.lists(st.integers(1, 20) | st.sampled_from([SEGMENT_ROWS, 2 * SEGMENT_ROWS + 7]), min_size=1, max_size=5)
    )
    parts = []
    for number, count in enumerate(ranges):
        share = draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
        parts.append(np.random.default_rng(number).random(count) < share)
    return ranges, np.concatenate(parts)


@given(made=masks(), seed=st.integers(0, 99))
def test_positions_lead_to_kept_rows_in_any_order(
    made: tuple[list[int], NDArray[np.bool_]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ranges, kept = made
    path = tmp_path_factory.mktemp("kept") / "some.rows"
    write(path, ranges, kept)
    found = open_selection(path, KEY, ranges)
    expected = np.flatnonzero(kept)
    assert found.count == expected.size and found.looked_at == kept.size
    assert found.rows(np.arange(found.count)).tolist() == expected.tolist()
    positions = np.random.default_rng(seed).permutation(found.count)[:500]
    assert found.rows(positions).tolist() == expected[positions].tolist()
    ends = np.cumsum(ranges)
    counts = [int(kept[end - count : end].sum()) for end, count in zip(ends, ranges, strict=True)]
    assert found.range_counts() == tuple(count for count in counts if count)
    if found.count:
        low, high = sorted(positions[[0, -1]].tolist())
        ((first, count),) = found.around(np.array([[low, high - low + 1]])).tolist()
        assert first <= expected[low] and expected[high] < first + count
    inside = np.zeros(kept.size, np.bool_)
    for first, count in found.spans().tolist():
        inside[first : first + count] = True
    assert not (kept & ~inside).any()


def test_whole_ranges_need_no_file() -> None:
    found = Selection.of_ranges([3, 70_000, 2], np.array([True, False, True]))
    assert found.rows(np.arange(5)).tolist() == [0, 1, 2, 70_003, 70_004]
    assert found.range_counts() == (3, 2)


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_beyond_the_ends_is_an_index_error(position: int) -> None:
    found = Selection.of_ranges([3], np.array([True]))
    with pytest.raises(IndexError, match="of 3 kept rows"):
        found.rows(np.array([position]))


def test_a_segment_is_read_anew_when_the_cache_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhtdata.filters.selection._CACHED_BYTES", 100)
    ranges, kept = [200] * 8, np.arange(1600) % 3 == 0
    write(tmp_path / "a.rows", ranges, kept)
    found = open_selection(tmp_path / "a.rows", KEY, ranges)
    expected = np.flatnonzero(kept)
    for seed in range(3):
        positions = np.random.default_rng(seed).permutation(expected.size)
        assert found.rows(positions).tolist() == expected[positions].tolist()


def test_every_damaged_byte_is_seen(tmp_path: Path) -> None:
    ranges, kept = [20, 30], np.arange(50) % 7 == 0
    path = tmp_path / "a.rows"
    write(path, ranges, kept)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(FormatError):
            open_selection(path, KEY, ranges)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            open_selection(path, KEY, ranges)
    path.write_bytes(whole)
    assert open_selection(path, KEY, ranges).count == 8
    for other_key, other_ranges in ((Digest.of(b"another"), ranges), (KEY, [50]), (KEY, [20, 31])):
        with pytest.raises(FormatError):
            open_selection(path, other_key, other_ranges)


def test_what_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing_selection(tmp_path / "a.rows", KEY, Segments([4])) as writer:
        writer.put(0, np.array([True, False, True, False]))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError):
        open_selection(tmp_path / "a.rows", KEY, [4])


def test_it_is_worked_out_once_and_again_after_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranges, kept = [20, 30], np.arange(50) % 7 == 0
    calls = []

    def work(writer: SelectionWriter) -> None:
        calls.append(1)
        put_all(writer, Segments(ranges), kept)

    for _ in range(2):
        assert kept_selection(tmp_path, KEY, ranges, work).count == 8
    assert len(calls) == 1
    path = tmp_path / keeping.FOLDER / f"{KEY}.rows"
    path.write_bytes(path.read_bytes()[:-1])
    assert kept_selection(tmp_path, KEY, ranges, work).count == 8
    assert len(calls) == 2 and "worked out again" in caplog.text


def test_results_used_longest_ago_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_FILES", 3)
    folder = tmp_path / keeping.FOLDER
    keys = [Digest.of(bytes([number])) for number in range(5)]
    for age, key in enumerate(keys):
        kept_selection(tmp_path, key, [4], lambda writer: writer.put(0, np.array([True, False, True, False])))
        os.utime(folder / f"{key}.rows", (age, age))
    assert {path.name for path in folder.glob("*.rows")} == {f"{key}.rows" for key in keys[2:]}
    monkeypatch.setattr(keeping, "MAX_BYTES", 1)
    kept_selection(tmp_path, keys[0], [4], lambda writer: None)
    assert [path.name for path in folder.glob("*.rows")] == [f"{keys[0]}.rows"]
