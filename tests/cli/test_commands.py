"""Commands on one machine that knows nobody."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dhtdata.cli.output import SHORT_DIGITS
from dhtdata.digest import Digest
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.index import MAX_INDEX_BYTES, Index
from dhtdata.store import Store
from tests.cli.machine import Machine

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
ROWS = pa.table(
    {
        "id": pa.array(range(1_000), pa.int64()),
        "text": [f"row {number} [bold]not markup[/bold]" for number in range(1_000)],
        "kind": pa.array([("a", "b", None)[number % 3] for number in range(1_000)]).dictionary_encode(),
    }
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that has published one dataset in two splits."""
    made = Machine(tmp_path_factory.mktemp("m"), "one")
    pq.write_table(ROWS.slice(0, 900), made.work / "train.parquet")
    pq.write_table(ROWS.slice(900), made.work / "test.parquet")
    (made.work / "card.md").write_text("# Rows\nMade by *counting*.\n")
    yield made
    made.stop_private_peer()


@pytest.fixture(scope="module")
def published(machine: Machine) -> dict[str, Any]:
    document = machine.document(
        "publish",
        *("--split", "train=train.parquet", "--split", "test=test.parquet", "--name", "rows"),
        *("--licence", "CC0-1.0", "--card", "card.md", "--source-url", "https://example.org/rows"),
    )
    assert isinstance(document, dict)
    return document


def test_publish_says_what_it_made_and_that_nobody_can_fetch_it_yet(
    machine: Machine, published: dict[str, Any]
) -> None:
    assert published["rows"] == 1_000
    assert published["shards"] == published["new_shards"] == 2
    assert published["name"].startswith("dhtdata://") and published["name"].endswith("/rows@1")
    again = machine.run("publish", "--split", "train=train.parquet", "--split", "test=test.parquet", "--name", "other")
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1] == "Nobody can fetch this until a seed of this store runs: dhtdata seed other"
    assert "0 new" in again.out
    assert machine.run("rm", "other").code == 0


def test_publishing_the_same_again_makes_no_new_version(machine: Machine, published: dict[str, Any]) -> None:
    again = machine.document(
        "publish",
        *("--split", "train=train.parquet", "--split", "test=test.parquet", "--name", "rows"),
        *("--licence", "CC0-1.0", "--card", "card.md", "--source-url", "https://example.org/rows"),
    )
    assert (again["manifest"], again["sequence"], again["new_shards"]) == (published["manifest"], 1, 0)


def test_a_dry_run_tells_the_digests_and_stores_nothing(machine: Machine) -> None:
    before = machine.document("ls")
    tried = machine.document("publish", "train.parquet", "--name", "tried", "--dry-run")
    assert tried["rows"] == 900 and tried["dry_run"] is True
    assert machine.document("ls") == before


def test_ls_lists_what_is_here(machine: Machine, published: dict[str, Any]) -> None:
    [entry] = [entry for entry in machine.document("ls")["datasets"] if entry["name"] == "rows"]
    assert entry["manifest"] == published["manifest"]
    assert (entry["rows"], entry["pinned"], entry["seeded"]) == (1_000, True, False)
    assert entry["bytes_held"] == entry["bytes"] == published["bytes"]
    shown = machine.run("ls").out
    assert published["manifest"][:SHORT_DIGITS] in shown and "100%" in shown


def test_info_describes_schema_splits_statistics_and_card(machine: Machine, published: dict[str, Any]) -> None:
    document = machine.document("info", published["name"])
    assert [column["name"] for column in document["columns"]] == ["id", "text", "kind"]
    assert [(split["name"], split["rows"]) for split in document["splits"]] == [("train", 900), ("test", 100)]
    assert (document["licence"], document["source_url"]) == ("CC0-1.0", "https://example.org/rows")
    assert "counting" in document["card"]
    [numbers] = [column for column in document["statistics"]["splits"][0]["columns"] if column["name"] == "id"]
    assert (numbers["min"], numbers["max"]) == (0, 899)
    shown = machine.run("info", "rows").out
    for text in ("CC0-1.0", "dictionary", "900", "Made by counting", "Statistics of split train"):
        assert text in shown


def test_head_shows_the_first_rows_in_source_order(machine: Machine, published: dict[str, Any]) -> None:
    document = machine.document("head", "rows", "-n", "3", "--split", "test", "--columns", "text,id")
    assert document["rows"] == [{"text": ROWS["text"][number].as_py(), "id": number} for number in range(900, 903)]
    assert document["rows_total"] == 100
    assert "[bold]not markup[/bold]" in machine.run("head", "rows", "-n", "1").out


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_an_export_holds_the_same_rows(machine: Machine, published: dict[str, Any], tmp_path: Path, kind: str) -> None:
    done = machine.document("get", "rows", "--to", str(tmp_path), "--as", kind)
    assert [Path(name).name for name in done["files"]] == [
        f"train-00000-of-00001.{kind}",
        f"test-00000-of-00001.{kind}",
    ]
    read = pq.read_table if kind == "parquet" else lambda path: pa.ipc.open_file(path).read_all()
    tables = [read(name) for name in done["files"]]
    assert pa.concat_tables(tables).to_pydict() == ROWS.to_pydict()
    assert tables[0].schema.field("kind").type == ROWS.schema.field("kind").type
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(Path(name).name for name in done["files"])


def test_an_export_of_one_split_and_some_columns_is_just_that(
    machine: Machine, published: dict[str, Any], tmp_path: Path
) -> None:
    done = machine.document("get", "rows", "--split", "test", "--columns", "id", "--to", str(tmp_path))
    [name] = done["files"]
    assert pq.read_table(name).to_pydict() == {"id": list(range(900, 1_000))}


def test_a_split_or_column_that_does_not_exist_is_named(machine: Machine, published: dict[str, Any]) -> None:
    assert "'dev'" in machine.fails(2, "get", "rows", "--split", "dev")
    assert "'size'" in machine.fails(2, "head", "rows", "--columns", "size")


def test_pins_can_be_taken_and_given(machine: Machine, published: dict[str, Any]) -> None:
    def pinned() -> bool:
        [entry] = [entry for entry in machine.document("ls")["datasets"] if entry["name"] == "rows"]
        return bool(entry["pinned"])

    assert machine.document("unpin", "rows") == {"manifest": published["manifest"], "pinned": False}
    assert not pinned()
    assert machine.document("pin", published["manifest"][:10])["pinned"] is True
    assert pinned()


def test_a_dataset_without_its_block_tables_is_not_shown_as_whole(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "hurt")
    (machine.work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(100))))
    made = machine.document("publish", "rows.csv", "--name", "rows")
    assert "100%" in machine.run("ls").out
    with Store.open(machine.home / "store") as store:
        contents = Contents.decode(store.read(Digest.parse(made["contents"]), limit_bytes=MAX_CONTENTS_BYTES))
        index = Index.decode(store.read(contents.splits[0].groups[0].indexes[0], limit_bytes=MAX_INDEX_BYTES))
        store.path_of(index[0].table).unlink()
    assert machine.run("verify", "--no-repair").code != 0
    assert "shards only" in machine.run("ls").out


def test_verify_finds_damage_sets_it_aside_and_says_that_nobody_can_repair_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "hurt")
    (machine.work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(100))))
    machine.document("publish", "rows.csv", "--name", "rows")
    assert machine.document("verify")["damaged"] == []
    store = machine.home / "store"
    shard = max((path for path in (store / "blobs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    shard.chmod(0o600)
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    sentence = machine.fails(4, "verify", "--timeout", "2")
    assert shard.name in sentence and "nothing arrived for 2 s" in sentence
    assert not shard.exists()
    assert "nothing arrived for 2 s" in machine.fails(5, "verify", "rows", "--timeout", "2")
    machine.stop_private_peer()


def test_rm_and_gc_give_the_room_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "two")
    (machine.work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(100))))
    made = machine.document("publish", "rows.csv", "--name", "rows")
    assert machine.document("rm", "rows")["removed"] == made["manifest"]
    assert machine.document("ls")["datasets"] == []
    assert machine.document("gc")["freed_bytes"] >= made["bytes"]
    with Store.open(machine.home / "store") as store:
        assert not store.has(Digest.parse(made["manifest"]))


def test_a_mirror_is_whole_resumable_and_left_alone_when_complete(
    machine: Machine, published: dict[str, Any], tmp_path: Path
) -> None:
    first = machine.document("get", "rows", "--mirror", str(tmp_path))["mirror"]
    assert first["new"] == first["blobs"] > 5
    blobs = tmp_path / "v1" / "blobs"
    for path in blobs.iterdir():
        assert str(Digest.of_file(path)) == path.name
    max(blobs.iterdir(), key=lambda path: path.stat().st_size).unlink()
    assert machine.document("get", "rows", "--mirror", str(tmp_path))["mirror"]["new"] == 1
    assert (tmp_path / "v1" / "have" / published["contents"]).is_file()
    [record] = (tmp_path / "v1" / "names").rglob("rows")
    assert record.is_file()
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["Rows", "a b", "ä", "../up", "-x", "x" * 64, "a/b", "x\n"])
def test_an_odd_name_is_refused_with_what_is_allowed(machine: Machine, name: str) -> None:
    sentence = machine.fails(2, "publish", "train.parquet", f"--name={name}")
    assert "a-z 0-9 . _ -" in sentence


def test_asking_for_a_name_without_knowing_anybody_asks_for_a_ticket_at_once(machine: Machine) -> None:
    assert "ticket" in machine.fails(2, "get", "dhtdata://" + "a" * 52 + "/poems")
    assert "ticket" in machine.fails(2, "get", "0" * 64)


def test_a_damaged_ticket_is_told_from_something_else(machine: Machine) -> None:
    assert "copy it again" in machine.fails(3, "get", "dhtdata1" + "a" * 80)
    assert "copy it again" in machine.fails(3, "seed", "dhtdata1" + "a" * 80)
    assert "names no dataset" in machine.fails(3, "get", "What is this?")


def test_an_unknown_name_is_not_searched_for(machine: Machine) -> None:
    assert "dhtdata ls" in machine.fails(5, "info", "nothing-here")


def test_without_a_peer_status_peers_and_stop_say_so(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "quiet")
    for command in ("status", "peers", "stop"):
        assert "no peer runs" in machine.fails(5, command)


def test_a_file_where_the_store_should_be_is_a_store_error(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "blocked")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in machine.fails(7, "ls", "--store", str(tmp_path / "file"))


def test_output_that_nobody_reads_ends_quietly(machine: Machine, published: dict[str, Any]) -> None:
    with subprocess.Popen(
        ["sh", "-c", 'for i in 1 2 3; do "$@"; done; echo $? >&2', "sh", *machine.command(["info", "rows"])],
        cwd=machine.work,
        env=machine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        errors = child.stderr.read()
    assert errors.split() == ["141"]


def test_every_json_result_is_one_line(machine: Machine, published: dict[str, Any]) -> None:
    for arguments in (["ls"], ["doctor"], ["version"], ["verify"], ["info", "rows"], ["head", "rows"], ["gc"]):
        assert json.loads(json.dumps(machine.document(*arguments)))
