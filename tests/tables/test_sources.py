from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from dhtdata.errors import ConfigError, FormatError
from dhtdata.tables.sources import agreed_schema, open_source

TABLE = pa.table(
    {
        "id": pa.array(range(500), pa.int64()),
        "score": [n / 7 for n in range(500)],
        "text": [f"row {n}, with a comma\nand a line" for n in range(500)],
        "flag": [n % 3 == 0 for n in range(500)],
    }
)


def read(source: Any, allow_missing: bool = False) -> pa.Table:
    opened = open_source(source, allow_missing=allow_missing)
    schema = agreed_schema([opened], allow_missing=allow_missing)
    rows = list(opened.rows(schema))
    expected = 0
    name = rows[0].name if rows else ""
    for part in rows:
        expected, name = (expected, name) if part.name == name else (0, part.name)
        assert part.first_row == expected
        assert part.batch.num_rows > 0
        expected += part.batch.num_rows
    return pa.Table.from_batches([part.batch for part in rows], schema)


def write_json(table: pa.Table) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())


def write_csv(table: pa.Table, delimiter: str = ",") -> bytes:
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink, pa.csv.WriteOptions(delimiter=delimiter))
    return bytes(sink.getvalue())


def write_ipc(table: pa.Table, stream: bool, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    opener = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opener(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=100)
    return bytes(sink.getvalue())


def write_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=120)
    return bytes(sink.getvalue())


def write_feather(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pa.feather.write_feather(table, sink, compression="lz4")
    return bytes(sink.getvalue())


FILES = {
    "rows.parquet": write_parquet(TABLE),
    "rows.pq": write_parquet(TABLE),
    "rows.csv": write_csv(TABLE),
    "rows.tsv": write_csv(TABLE, "\t"),
    "rows.csv.gz": gzip.compress(write_csv(TABLE)),
    "rows.csv.zst": zstandard.compress(write_csv(TABLE)),
    "rows.jsonl": write_json(TABLE),
    "rows.ndjson": write_json(TABLE),
    "rows.json": write_json(TABLE),
    "rows.jsonl.gz": gzip.compress(write_json(TABLE)),
    "ROWS.JSONL.ZST": zstandard.compress(write_json(TABLE.slice(0, 90)))
    + zstandard.compress(write_json(TABLE.slice(90))),
    "rows.arrow": write_ipc(TABLE, stream=False),
    "rows.ipc": write_ipc(TABLE, stream=True),
    "rows.arrows": write_ipc(TABLE, stream=True, compression="zstd"),
    "rows.feather": write_feather(TABLE),
    "no-extension-parquet": write_parquet(TABLE),
    "no-extension-arrow": write_ipc(TABLE, stream=False),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_its_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name).equals(TABLE)
    opened = open_source(str(tmp_path / name))
    assert opened.byte_count == len(FILES[name])
    assert [(source.name, source.bytes) for source in opened.files] == [(name, len(FILES[name]))]


# Files that are not what they seem

BROKEN = {
    "cut.parquet": FILES["rows.parquet"][:-40],
    "cut inside.parquet": FILES["rows.parquet"][:200] + FILES["rows.parquet"][400:],
    "text.parquet": b"id,score\n1,2\n",
    "cut.arrow": FILES["rows.arrow"][:-100],
    "cut.arrows": FILES["rows.ipc"][:3_000],
    "text.arrow": b"id,score\n1,2\n",
    "old.feather": b"FEA1" + bytes(100),
    "cut.csv.gz": FILES["rows.csv.gz"][:-30],
    "plain.csv.gz": FILES["rows.csv"],
    "cut.jsonl.zst": FILES["ROWS.JSONL.ZST"][:-30],
    "cut.jsonl": FILES["rows.jsonl"][:-20],
    "binary.jsonl": FILES["rows.parquet"],
    "array.json": b'[{"a": 1}]\n',
    "ragged.csv": b"a,b\n1,2\n3\n",
    "blank.csv": b"\n\n\n",
    "blank.jsonl": b"\n\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_a_next_step(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(FormatError) as raised:
        read(tmp_path / name)
    assert name in str(raised.value)
    assert any(step in str(raised.value) for step in ("make it again", "Mend the row", "convert it"))


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(ConfigError, match=r"rows\.csv is empty"):
        read(tmp_path / "rows.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.parquet does not exist: check the path"):
        read(tmp_path / "nothing.parquet")


def test_a_file_of_unknown_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG....")
    with pytest.raises(ConfigError, match=r"photo\.png is of no kind that can be read by its name: expected Parquet"):
        read(tmp_path / "photo.png")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a\n1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        # Root reads everything: become somebody else in a child.
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for folder in (tmp_path, *tmp_path.parents):
                    if not os.stat(folder).st_mode & 1:
                        os.chmod(folder, os.stat(folder).st_mode | 0o011)
                os.setuid(65_534)
                try:
                    read(path)
                except ConfigError as failure:
                    status = 0 if "rows.csv may not be read by this user: change its permissions" in str(failure) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return
    with pytest.raises(ConfigError, match=r"rows\.csv may not be read by this user: change its permissions"):
        read(path)


def test_a_file_that_vanishes_while_it_is_published_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a\n1\n")
    opened = open_source(tmp_path / "rows.csv")
    schema = agreed_schema([opened])
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(ConfigError, match=r"rows\.csv does not exist any more"):
        list(opened.rows(schema))


def test_column_names_must_be_unique(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_bytes(b"a,b,a\n1,2,3\n")
    pq.write_table(pa.Table.from_arrays([[1], [2]], names=["x", "x"]), tmp_path / "twice.parquet")
    for name, column in (("twice.csv", "a"), ("twice.parquet", "x")):
        with pytest.raises(ConfigError, match=f"{name} has two columns named '{column}': rename one"):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match="two columns named 'x'"):
        read(pa.Table.from_arrays([[1], [2]], names=["x", "x"]))


def test_odd_names_are_fine(tmp_path: Path) -> None:
    for name in ("sp ace.csv", "quo'te\".csv", "new\nline.csv", "ünï✓.csv", "[1].csv", "-rf.csv", "per%cent#?.csv"):
        (tmp_path / name).write_bytes(b"a\n1\n")
        assert read(tmp_path / name).to_pydict() == {"a": [1]}


# Globs and folders


def test_globs_take_files_in_order_and_skip_hidden_ones_and_links(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "c"):
        (tmp_path / f"{name}.csv").write_bytes(f"name\n{name}\n".encode())
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    opened = open_source(str(tmp_path / "*.csv"))
    assert [Path(reader.name).name for reader in opened.readers] == ["a.csv", "b.csv", "c.csv"]
    assert (opened.skipped_hidden, opened.skipped_links) == (1, 1)
    assert read([str(tmp_path / "[bc].csv"), tmp_path / "a.csv"]).column("name").to_pylist() == ["b", "c", "a"]


def test_globs_reach_into_folders(tmp_path: Path) -> None:
    for name in ("x/1.csv", "x/y/2.csv", ".cache/3.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"a\n1\n")
    opened = open_source(str(tmp_path / "**" / "*.csv"))
    assert (len(opened.readers), opened.skipped_hidden) == (2, 1)


@pytest.mark.parametrize("sources", [["a*.csv", "*1.csv"], ["a1.csv", "./a1.csv"], [".", "a1.csv"]])
def test_a_file_that_is_meant_twice_is_named(sources: list[str], tmp_path: Path) -> None:
    for name in ("a1.csv", "a2.csv", "b1.csv"):
        (tmp_path / name).write_text("a\n1\n")
    with pytest.raises(ConfigError, match="a1.csv is meant twice: .*name it once"):
        open_source([f"{tmp_path}/{source}" for source in sources])


def test_a_glob_without_a_match_is_named(tmp_path: Path) -> None:
    (tmp_path / ".only-hidden.csv").write_bytes(b"a\n1\n")
    with pytest.raises(ConfigError, match=r"no file matches '.*\*\.csv' \(hidden files"):
        read(str(tmp_path / "*.csv"))


def test_a_named_link_is_refused_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a\n1\n")
    (tmp_path / "link.csv").symlink_to("rows.csv")
    with pytest.raises(ConfigError, match=r"link\.csv is a symbolic link, which is not followed: name .*rows\.csv"):
        read(tmp_path / "link.csv")


def test_a_fifo_is_refused_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match=r"pipe\.csv is neither a file nor a folder"):
        read(tmp_path / "pipe.csv")


def test_a_folder_of_tables_of_one_kind_is_these_tables(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "2.csv").write_bytes(b"a\n2\n")
    (tmp_path / "1.csv").write_bytes(b"a\n1\n")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert read(tmp_path).to_pydict() == {"a": [1, 2]}


def make_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_a_folder_of_texts_is_one_row_a_file(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat/1.txt": "mïau".encode(), "cat/deep/2.txt": b"", "dog/1.py": b"wuff", "README": b"x"})
    (tmp_path / "dog" / "link").symlink_to("1.py")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"")
    opened = open_source(tmp_path)
    table = read(tmp_path)
    assert table.schema.names == ["path", "label", "size", "text"]
    assert table.to_pylist() == [
        {"path": "README", "label": None, "size": 1, "text": "x"},
        {"path": "cat/1.txt", "label": "cat", "size": 5, "text": "mïau"},
        {"path": "cat/deep/2.txt", "label": "cat", "size": 0, "text": ""},
        {"path": "dog/1.py", "label": "dog", "size": 4, "text": "wuff"},
    ]
    assert (opened.skipped_hidden, opened.skipped_links) == (1, 1)
    assert [source.name for source in opened.files] == ["README", "1.txt", "2.txt", "1.py"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"zero\0", "ü".encode()[:1]], ids=["not UTF-8", "zero byte", "cut"])
def test_one_file_that_is_no_text_makes_all_bytes(content: bytes, tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.txt": b"text", "b": content})
    assert read(tmp_path).column("bytes").to_pylist() == [b"text", content]


def test_a_folder_is_read_in_bounded_batches(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{n}.bin": bytes([n]) * (3 << 20) for n in range(9)})
    opened = open_source(tmp_path)
    batches = [rows.batch for rows in opened.rows(agreed_schema([opened]))]
    assert len(batches) == 3
    assert all(batch.nbytes < 12 << 20 for batch in batches)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    with pytest.raises(ConfigError, match="holds no files that could be published"):
        read(tmp_path)


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not UTF-8: rename it"):
        read(tmp_path)


# Schemas of several files


def test_columns_may_come_in_another_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": ["y"], "a": [2]}), tmp_path / "2.parquet")
    assert read(str(tmp_path / "*.parquet")).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def test_a_type_that_differs_is_named_with_both_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(ConfigError, match=r"column 'a' is int64 in .*1\.parquet, but string in .*2\.parquet"):
        read(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_missing_column_is_named_or_filled_with_nulls(swapped: bool, tmp_path: Path) -> None:
    tables = [pa.table({"a": [1], "b": ["x"]}), pa.table({"a": [2]})]
    for number, table in enumerate(reversed(tables) if swapped else tables):
        pq.write_table(table, tmp_path / f"{number}.parquet")
    lacks, has = ("0", "1") if swapped else ("1", "0")
    with pytest.raises(
        ConfigError, match=rf"{lacks}\.parquet lacks column 'b', which .*{has}\.parquet has.*--allow-missing"
    ):
        read(str(tmp_path / "*.parquet"))
    filled = read(str(tmp_path / "*.parquet"), allow_missing=True)
    assert sorted(filled.column("b").to_pylist(), key=str) == [None, "x"]


def test_a_column_that_may_not_be_null_becomes_nullable_when_it_is_filled(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("a", pa.int64()), pa.field("b", pa.int64(), nullable=False)])
    pq.write_table(pa.table({"a": [1], "b": [2]}, schema=schema), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [2]}), tmp_path / "2.parquet")
    filled = read(str(tmp_path / "*.parquet"), allow_missing=True)
    assert filled.schema.field("b").nullable
    assert filled.column("b").to_pylist() == [2, None]


def test_a_null_in_a_column_that_has_none_is_named() -> None:
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array([1, None])], schema=schema)
    with pytest.raises(ConfigError, match="column 'a' has a null"):
        read(pa.Table.from_batches([batch]))


def test_parquet_field_ids_and_unshared_metadata_are_left_out(tmp_path: Path) -> None:
    inner = pa.field("x", pa.list_(pa.field("element", pa.int8(), metadata={b"PARQUET:field_id": b"7"})))
    for number in (1, 2):
        field = pa.field("s", pa.struct([inner]), metadata={"PARQUET:field_id": str(number), "unit": "m"})
        schema = pa.schema([field], metadata={"same": "1", "own": str(number)})
        table = pa.table({"s": [{"x": [1]}]}, schema=schema)
        pq.write_table(table, tmp_path / f"{number}.parquet")
    schema = read(str(tmp_path / "*.parquet")).schema
    assert schema.metadata == {b"same": b"1"}
    assert schema.field("s").metadata == {b"unit": b"m"}
    assert schema.field("s").type.field(0).type.value_field.metadata is None


def test_guessed_types_widen_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b'{"a": null, "n": 1, "l": []}\n')
    (tmp_path / "2.jsonl").write_bytes(b'{"a": 5, "n": 1.5, "l": [1]}\n')
    assert read(str(tmp_path / "*.jsonl")).to_pydict() == {"a": [None, 5], "n": [1.0, 1.5], "l": [[], [1]]}


def test_guessed_types_yield_to_declared_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1], pa.int8())}), tmp_path / "2.parquet")
    (tmp_path / "1.csv").write_bytes(b"a\n7\n")
    both = read([tmp_path / "1.csv", tmp_path / "2.parquet"])
    assert both.schema.field("a").type == pa.int8()
    assert both.column("a").to_pylist() == [7, 1]


def test_guesses_that_cannot_be_brought_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_bytes(b"a\n7\n")
    (tmp_path / "2.csv").write_bytes(b"a\nx\n")
    with pytest.raises(ConfigError, match=r"column 'a' is int64 in .*1\.csv, but string in .*2\.csv"):
        read(str(tmp_path / "*.csv"))


# Text: what was guessed holds for the whole file


def filler(rows: int, value: str = "7") -> bytes:
    text = "x" * 1_000
    return f'{{"a": {value}, "t": "{text}"}}\n'.encode() * rows


def test_a_later_json_value_that_does_not_fit_is_named_with_its_row(tmp_path: Path) -> None:
    for bad, complaint in (
        (b'{"a": "word", "t": ""}', "field 'a' holds \"word\", where int64 is expected"),
        (b'{"a": 1.5, "t": ""}', "field 'a' holds 1.5, where int64 is expected"),
        (b'{"a": 1, "t": "", "new": 1}', "field 'new' does not occur in the rows before it"),
        (b'{"a": 1,', "not JSON"),
        (b"[1]", "expected an object, found a list"),
    ):
        (tmp_path / "rows.jsonl").write_bytes(filler(9_000) + b"\n" + bad + b"\n" + filler(10))
        with pytest.raises(FormatError) as raised:
            read(tmp_path / "rows.jsonl")
        assert "rows.jsonl" in str(raised.value)
        assert "row 9001: " + complaint in str(raised.value)


def test_csv_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_bytes("a,b\n1,caf\xe9\n".encode("latin-1"))
    with pytest.raises(FormatError, match="old.csv: column 'b' is not UTF-8: convert"):
        read(path)
    path.write_bytes("a,caf\xe9\n1,x\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="old.csv has a column whose name is not UTF-8: rename it, or convert"):
        read(path)


def test_a_later_csv_value_that_does_not_fit_is_named_with_its_row(tmp_path: Path) -> None:
    lines = b"a,t\n" + (b"7," + b"x" * 1_000 + b"\n") * 9_000
    (tmp_path / "rows.csv").write_bytes(lines + b"word,x\n")
    with pytest.raises(FormatError, match=r"rows\.csv cannot be read as CSV: In CSV column #0: Row #9002: .*'word'"):
        read(tmp_path / "rows.csv")


def test_a_column_without_a_value_at_first_is_looked_for_further_on_and_else_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(filler(6_000, "null") + filler(1, "5"))
    assert read(tmp_path / "rows.jsonl").schema.field("a").type == pa.int64()
    (tmp_path / "never.jsonl").write_bytes(filler(10, "null"))
    table = read(tmp_path / "never.jsonl")
    assert table.schema.field("a").type == pa.string()
    assert table.column("a").null_count == 10


def test_json_text_that_looks_like_a_time_stays_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(
        b'{"t": "2020-01-01 00:00:00", "l": ["2020-01-01"]}\n{"t": "soon", "l": []}\n'
    )
    assert read(tmp_path / "rows.jsonl").to_pydict() == {
        "t": ["2020-01-01 00:00:00", "soon"],
        "l": [["2020-01-01"], []],
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_longer_than_a_block_are_read(kind: str, tmp_path: Path) -> None:
    sizes = [10, 5 << 20, 20, 9 << 20, 30]
    table = pa.table({"n": list(range(5)), "text": ["y" * size for size in sizes]})
    (tmp_path / f"rows.{kind}").write_bytes(write_csv(table) if kind == "csv" else write_json(table))
    assert read(tmp_path / f"rows.{kind}").equals(table)


def test_a_file_with_a_header_only_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n")
    assert read(tmp_path / "rows.csv").num_rows == 0


# Arrow


def test_one_giant_record_batch_is_read_in_small_slices(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(400)), "blob": [random.Random(n).randbytes(400_000) for n in range(400)]})
    for stream in (False, True):
        path = tmp_path / f"{stream}.arrow"
        opener = pa.ipc.new_stream if stream else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, opener(file, table.schema) as writer:
            writer.write_table(table.slice(0, 3).combine_chunks())
            writer.write_table(table.slice(3).combine_chunks())
        opened = open_source(path)
        batches = [rows.batch for rows in opened.rows(agreed_schema([opened]))]
        assert max(batch.nbytes for batch in batches) <= 9 << 20
        assert pa.Table.from_batches(batches).equals(table)


def test_no_batch_of_a_long_stream_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.arrows"
    batch = pa.record_batch({"n": np.arange(1 << 20)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(path, batch.schema, options=options) as writer:
        for _ in range(30):
            writer.write_batch(batch)
    opened = open_source(path)
    places: list[object] = []
    real = pa.ipc.open_stream

    def noting(source: object) -> object:
        places.append(source)
        return real(source)

    monkeypatch.setattr(pa.ipc, "open_stream", noting)
    schema = agreed_schema([opened])
    places.clear()
    assert sum(rows.batch.num_rows for rows in opened.rows(schema)) == 30 << 20
    assert len(places) == 1


# Python objects


class Exporter:
    """Any object of another library that exports a stream."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def batches() -> Iterator[pa.RecordBatch]:
    yield from TABLE.to_batches(max_chunksize=77)


def dicts() -> Iterator[dict[str, Any]]:
    yield from TABLE.to_pylist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: TABLE.combine_chunks().to_batches()[0],
        lambda: Exporter(TABLE),
        lambda: pa.RecordBatchReader.from_batches(TABLE.schema, batches()),
        batches,
        dicts,
        lambda: TABLE.to_pylist(),
        lambda: iter([TABLE.slice(0, 9), TABLE.slice(9)]),
    ],
    ids=["table", "batch", "stream", "reader", "batches", "dicts", "list of dicts", "tables"],
)
def test_python_objects_give_their_rows(make: Any) -> None:
    assert read(make()).equals(TABLE)


def test_dicts_have_their_types_from_the_first_rows() -> None:
    assert read([{"a": None, "b": 1}, {"a": "x", "b": None}]).to_pydict() == {"a": [None, "x"], "b": [1, None]}
    with pytest.raises(ConfigError, match=r"row 1200: 'x' is no int64 \(column 'a'\)"):
        read({"a": n if n < 1_200 else "x"} for n in range(2_000))
    with pytest.raises(ConfigError, match="column 'a' has no one type"):
        read([{"a": 1}, {"a": "x"}])


_NOON = datetime(2026, 7, 1, 12, 0, 0, 5)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (1, 1.5),
        (1, Decimal("1.5")),
        (1, True),
        (True, 1),
        (np.float32(0.5), 0.1),
        ("x", b"x"),
        (b"x", "x"),
        (date(2026, 7, 1), _NOON),
        (_NOON, _NOON.replace(tzinfo=UTC)),
        (_NOON.replace(tzinfo=UTC), _NOON),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([{"a": 1}], [{"a": 1.5}]),
        ([1], [1.5]),
        ([1], {"a": 1}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_later_value_of_a_dict_is_never_changed_to_fit(first: Any, later: Any) -> None:
    with pytest.raises(ConfigError, match=r"row 1003: .* is no .* \(column 'a'\)"):
        read({"a": first if n != 1_003 else later} for n in range(1_010))


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        (1.5, 2, 2.0),
        (0.5, np.float32(0.25), 0.25),
        ({"a": 1, "b": 2}, {"b": 3}, {"a": None, "b": 3}),
        ([1.5], [2], [2.0]),
        ([1], [], []),
        (_NOON, None, None),
        (Decimal("10.5"), 2, Decimal("2.0")),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_later_value_that_the_type_covers_is_taken(first: Any, later: Any, expected: Any) -> None:
    found = read({"a": first if n != 1_003 else later} for n in range(1_500))["a"].to_pylist()
    assert found[1_003] == expected and found[:1_003] == [first] * 1_003


def test_arrays_of_more_dimensions_are_refused_with_what_to_give_instead() -> None:
    with pytest.raises(ConfigError, match="column 'a' has no one type: .*from_numpy_ndarray"):
        read([{"a": np.zeros((2, 2))}])
    assert read([{"a": np.zeros(2)}, {"a": np.zeros((2, 2)).tolist()[0]}]).to_pydict() == {"a": [[0.0, 0.0]] * 2}


@pytest.mark.parametrize(
    "values",
    [["x", b"x"], [date(2026, 7, 1), _NOON], [1.5, True], [_NOON, _NOON.replace(tzinfo=UTC)]],
    ids=["text", "date", "bool", "zone"],
)
def test_unlike_values_have_no_one_type(values: list[Any]) -> None:
    with pytest.raises(ConfigError, match="column 'a' has no one type: .* mixed"):
        read([{"a": value} for value in values])


def test_values_take_the_type_that_another_source_declares() -> None:
    declared = pa.schema([("f", pa.float32()), ("i", pa.int8()), ("t", pa.timestamp("s")), ("d", pa.date64())])
    table = pa.table({"f": [0.5], "i": [1], "t": [0], "d": [date(2026, 7, 1)]}, schema=declared)
    row = {"f": 0.1, "i": 2, "t": datetime(2026, 7, 1), "d": date(2026, 7, 2)}
    sources = [open_source(table), open_source([row])]
    (found,) = sources[1].rows(agreed_schema(sources))
    assert found.batch.schema == declared and found.batch.to_pylist() == [row | {"f": float(np.float32(0.1))}]
    for column, value in (("i", 300), ("t", _NOON)):
        sources = [open_source(table), open_source([row | {column: value}])]
        with pytest.raises(ConfigError, match=rf"row 0: .* is no .* \(column '{column}'\)"):
            list(sources[1].rows(agreed_schema(sources)))


def test_a_zero_byte_in_a_column_name_does_not_cut_it() -> None:
    assert read(pa.table({"a\0b": [1], "a": [2]})).column_names == ["a\0b", "a"]


def test_dicts_with_other_columns_are_named() -> None:
    with pytest.raises(ConfigError, match="row 1 lacks column 'b'.*allow_missing=True"):
        read([{"a": 1, "b": 2}, {"a": 2}])
    assert read([{"a": 1, "b": 2}, {"a": 2}], allow_missing=True).column("b").to_pylist() == [2, None]
    with pytest.raises(ConfigError, match="row 1500 has a column 'c' that the first rows do not have"):
        read(({"a": 1} if n < 1_500 else {"a": 1, "c": 2}) for n in range(1_501))


def test_record_batches_with_another_schema_are_named() -> None:
    other = pa.RecordBatch.from_pydict({"id": ["x"]})
    with pytest.raises(ConfigError, match="item 2 has another schema: column 'id' is string, not int64"):
        read(iter([pa.RecordBatch.from_pydict({"id": [1]}), other]))


def test_a_stream_that_breaks_off_is_reported() -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield TABLE.to_batches()[0]
        raise pa.ArrowInvalid("the cable was cut")

    with pytest.raises(ConfigError, match="broke off: .*the cable was cut"):
        read(pa.RecordBatchReader.from_batches(TABLE.schema, broken()))


@pytest.mark.parametrize("source", [5, None, {"a": [1]}, b"path", object()], ids=lambda source: type(source).__name__)
def test_other_objects_are_refused(source: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be published: give paths"):
        read(source)


@pytest.mark.parametrize("source", [[], iter([])], ids=["list", "iterator"])
def test_nothing_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError, match="is empty: there are no rows"):
        read(source)


def test_rows_that_are_no_dicts_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected rows as dicts from column name to value, found 5"):
        read([5, 6])
    with pytest.raises(ConfigError, match="row 1000 is a list, not a dict"):
        read([{"a": 1}] * 1_000 + [[1]])
