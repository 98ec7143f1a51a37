"""Mounting a stored dataset: what iterates, in which order, from where it resumes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dhtdata
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.store import Store
from tests.gather.test_columns import ALL_TYPES
from tests.mount.conftest import ROWS, sample_table
from tests.mount.making import Tamper, put_dataset
from tests.mount.swarm import peer_of


def numbers(dataset: Iterable[Any]) -> list[int]:
    """The column "number" of everything an iteration yields, padding left out."""
    found: list[int] = []
    for item in dataset:
        columns = item.to_pydict() if isinstance(item, pa.RecordBatch) else item
        values = np.atleast_1d(np.asarray(columns["number"]))
        valid = np.atleast_1d(np.asarray(columns.get("_valid", np.ones(len(values), bool))))
        found += values[valid].tolist()
    return found


@pytest.mark.parametrize("format", ["numpy", "torch", "arrow", "python"])
@pytest.mark.parametrize("batch_size", [None, 1, 64, 1000])
def test_an_epoch_in_source_order_yields_every_row(made: str, home: Path, format: str, batch_size: int | None) -> None:
    columns = ["number", "text", "vector"]
    with dhtdata.mount(made, home=home, format=format, batch_size=batch_size, columns=columns) as dataset:
        items = list(dataset)
        assert len(items) == len(dataset)
        if batch_size is None:
            assert [str(item["text"]) for item in items] == sample_table()["text"].to_pylist()
        else:
            assert numbers(dataset) == list(range(ROWS))


def test_columns_belong_together_in_a_shuffled_epoch(made: str, home: Path) -> None:
    table = sample_table()
    dataset = dhtdata.mount(made, home=home, batch_size=32, shuffle=True, shuffle_window=2)
    seen = []
    for batch in dataset:
        seen += batch["number"].tolist()
        rows = table.take(pa.array(batch["number"]))
        assert batch["text"].tolist() == rows["text"].to_pylist()
        assert batch["vector"].tolist() == rows["vector"].to_pylist()
        assert batch["label"].tolist() == rows["label"].to_pylist()
        assert batch["vector"].flags.writeable and batch["number"].flags.writeable
    assert seen != sorted(seen) and sorted(seen) == list(range(ROWS))


def test_formats_agree_on_a_shuffled_epoch(made: str, home: Path) -> None:
    def epoch(format: str) -> list[int]:
        return numbers(
            dhtdata.mount(made, home=home, batch_size=32, shuffle=True, seed=5, format=format, columns=["number"])
        )

    assert epoch("numpy") == epoch("arrow") == epoch("python") == epoch("torch")


def test_columns_come_in_the_order_asked_for_and_others_are_not_read(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=10, columns=["text", "number"])
    assert dataset.schema.names == ["text", "number"]
    assert list(next(iter(dataset))) == ["text", "number"]
    assert len(dhtdata.mount(made, home=home, columns=["text"])._view.groups) == 1


def test_every_arrow_type_comes_back_as_it_was_published(home: Path) -> None:
    with Store.open(home / "store") as store:
        arrays = {**ALL_TYPES, "dictionary": pa.array(["a", None, "b"]).dictionary_encode()}
        arrays["runs"] = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", None]))
        arrays["view"] = pa.array(["long enough to be out of line", None, ""], pa.string_view())
        arrays["tensor"] = pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [1, 2]),
            pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
        )
        table = pa.table(arrays).replace_schema_metadata({"made": "here"})
        digest = str(put_dataset(store, pa.concat_tables([table] * 9), block_rows=4))
    dataset = dhtdata.mount(digest, home=home, batch_size=5, format="arrow")
    whole = dataset.to_arrow()
    whole.validate(full=True)
    assert whole.schema.equals(table.schema, check_metadata=True)
    assert whole.to_pylist() == pa.concat_tables([table] * 9).to_pylist()
    batches = list(dataset)
    assert all(batch.schema == table.schema for batch in batches)
    assert [row for batch in batches for row in batch.to_pylist()] == whole.to_pylist()
    arrays = next(iter(dhtdata.mount(digest, home=home, batch_size=5)))
    assert arrays["tensor"].shape == (5, 1, 2) and arrays["dictionary"].tolist() == ["a", None, "b", "a", None]
    rows = list(dhtdata.mount(digest, home=home, format="python", shuffle=True))
    assert sorted(map(repr, rows)) == sorted(map(repr, whole.to_pylist()))


def test_padding_is_marked_and_every_rank_makes_equal_steps(made: str, home: Path) -> None:
    ranks = [dhtdata.mount(made, home=home, batch_size=16, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    batches = [list(dataset) for dataset in ranks]
    assert [len(of_rank) for of_rank in batches] == [len(dataset) for dataset in ranks] == [5, 5, 5]
    assert all(len(batch["number"]) == len(batch["_valid"]) == 16 for of_rank in batches for batch in of_rank)
    assert sorted(sum(map(numbers, batches), [])) == list(range(ROWS))


@pytest.mark.parametrize(("remainder", "total", "lengths"), [("drop", 192, [4, 4]), ("uneven", ROWS, [5, 5])])
def test_other_remainders_do_as_they_say(made: str, home: Path, remainder: str, total: int, lengths: list[int]) -> None:
    datasets = [
        dhtdata.mount(made, home=home, batch_size=24, rank=rank, world_size=2, remainder=remainder) for rank in range(2)
    ]
    assert [len(dataset) for dataset in datasets] == lengths
    seen = sum(map(numbers, datasets), [])
    assert len(seen) == len(set(seen)) == total
    assert "_valid" not in next(iter(datasets[0]))


def test_epochs_advance_by_themselves_or_as_told(made: str, home: Path) -> None:
    def open_dataset() -> dhtdata.StreamingDataset:
        return dhtdata.mount(made, home=home, batch_size=50, shuffle=True, columns=["number"])

    dataset = open_dataset()
    epochs = [numbers(dataset) for _ in range(3)]
    assert len(set(map(tuple, epochs))) == 3
    again = open_dataset()
    again.set_epoch(2)
    assert numbers(again) == epochs[2]
    again.set_epoch(np.int64(1))  # type: ignore[arg-type]
    assert numbers(again) == epochs[1]
    assert json.loads(json.dumps(again.state_dict()))["epoch"] == 2


@pytest.mark.parametrize("epoch", [1.5, True, "1", None, float("nan"), -1, 1 << 56])
def test_what_is_no_epoch_is_refused_and_harms_nothing(made: str, home: Path, epoch: Any) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=50, columns=["number"])
    with pytest.raises(ConfigError, match="epoch: "):
        dataset.set_epoch(epoch)
    assert len(numbers(dataset)) == ROWS


@pytest.mark.parametrize("stop", [0, 1, 4, 7, 8])
def test_an_interrupted_epoch_goes_on_at_another_world_size(made: str, home: Path, stop: int) -> None:
    mounted = partial(dhtdata.mount, made, home=home, shuffle=True, seed=3, columns=["number"])
    first = [mounted(batch_size=15, rank=rank, world_size=2) for rank in range(2)]
    seen: list[int] = []
    states = []
    for dataset in first:
        iterator = iter(dataset)
        for _ in range(stop):
            batch = next(iterator)
            seen += batch["number"][batch["_valid"]].tolist()
        states.append(dataset.state_dict())
    assert states[0] == states[1]
    saved = json.loads(json.dumps(states[0]))
    for rank in range(3):
        dataset = mounted(batch_size=10, rank=rank, world_size=3)
        dataset.load_state_dict(saved)
        assert dataset.state_dict() == saved | {"global_batch": 30}
        rest = numbers(dataset)
        seen += rest if stop < 8 else []
    assert sorted(seen) == list(range(ROWS))


def test_the_state_after_an_epoch_is_the_start_of_the_next(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=50, shuffle=True)
    last = {}
    for batch in dataset:
        assert batch["number"].size in (50, 30)
        last = dataset.state_dict()
    assert (last["epoch"], last["rows"]) == (1, 0) and last == dataset.state_dict()
    other = dhtdata.mount(made, home=home, batch_size=50, shuffle=True)
    other.load_state_dict(last)
    assert numbers(other) == numbers(dataset)


def test_a_state_of_another_dataset_is_refused(made: str, home: Path) -> None:
    with Store.open(home / "store") as store:
        other = str(put_dataset(store, sample_table(100), name="other"))
    state = dhtdata.mount(other, home=home).state_dict()
    with pytest.raises(ConfigError, match="another dataset"):
        dhtdata.mount(made, home=home).load_state_dict(state)


def test_a_state_of_more_lanes_than_memory_holds_is_refused(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, shuffle=True, seed=np.int64(3))  # type: ignore[arg-type]
    state = json.loads(json.dumps(dataset.state_dict()))
    with pytest.raises(ConfigError, match="the state is damaged: .* lanes"):
        dataset.load_state_dict(state | {"lanes": 10**9})
    dataset.load_state_dict(state)


_FAR = pa.array([1 << 30], pa.int32()).cast(pa.date32())


@pytest.mark.parametrize(
    ("column", "formats"),
    [
        (_FAR, ["python"]),
        (pa.array([1], pa.time64("ns")), ["python"]),
        (pa.ListArray.from_arrays([0, 1], pa.StructArray.from_arrays([_FAR], ["d"])), ["python", "numpy", "torch"]),
        (pa.MapArray.from_arrays([0, 1], ["k"], _FAR), ["python", "numpy", "torch"]),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), ["python", "numpy", "torch"]),
    ],
    ids=["date", "nanoseconds", "list", "map", "twin fields"],
)
def test_a_value_that_python_cannot_hold_is_named_by_its_column(
    home: Path, column: pa.Array, formats: list[str]
) -> None:
    table = pa.table({"fine": [1], "odd": column})
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, table))
    assert dhtdata.mount(digest, home=home).to_arrow().equals(table)
    for format in formats:
        for batch_size in (None, 1):
            dataset = dhtdata.mount(digest, home=home, format=format, batch_size=batch_size)
            with pytest.raises(ConfigError, match="column 'odd' of type .* holds what Python cannot .*columns"):
                list(dataset)
            with pytest.raises(ConfigError, match="column 'odd'"):
                dataset.map_style()[0]


def test_a_dataset_goes_on_in_another_process_by_pickle(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=50, shuffle=True, columns=["number"])
    next(iter(dataset))
    copy = pickle.loads(pickle.dumps(dataset))
    assert numbers(copy) == numbers(dataset)


def test_random_access_gives_rows_and_batches(made: str, home: Path) -> None:
    view = dhtdata.mount(made, home=home).map_style()
    assert len(view) == ROWS
    assert view[123]["text"] == "row 123" and view[-1]["number"] == ROWS - 1
    assert view[10:20]["number"].tolist() == list(range(10, 20))
    assert view[::100]["number"].tolist() == [0, 100, 200]
    assert view[[3, 1, 2, 1]]["text"].tolist() == ["row 3", "row 1", "row 2", "row 1"]
    assert view[np.array([-1, 0])]["number"].tolist() == [ROWS - 1, 0]
    assert [row["number"] for row in view.__getitems__([7, 5])] == [7, 5]
    assert pickle.loads(pickle.dumps(view))[5]["number"] == 5
    for beyond in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError, match=f"row {beyond} of {ROWS}"):
            view[beyond]
    with pytest.raises(IndexError, match=f"row {2**63} of"):
        view[np.array([2**63], np.uint64)]
    with pytest.raises(ConfigError, match="row number"):
        view["a"]  # type: ignore[index]
    with pytest.raises(ConfigError, match="no rows"):
        view[5:5]


def test_statistics_are_those_of_the_split(made: str, home: Path) -> None:
    assert dhtdata.mount(made, home=home).stats() == {}


def test_a_stored_dataset_is_read_without_peer_or_network(made: str, home: Path) -> None:
    code = (
        "import sys, dhtdata\n"
        f"dataset = dhtdata.mount({made!r}, home={str(home)!r}, batch_size=64)\n"
        "rows = sum(len(batch['number']) for batch in dataset)\n"
        "heavy = {'subprocess', 'asyncio', 'aiohttp', 'kademlia', 'typer', 'rich', 'torch'}\n"
        "heavy |= {'pyarrow.dataset', 'pyarrow.parquet', 'dhtdata.control.client'}\n"
        "print(rows, *sorted(heavy.intersection(sys.modules)))\n"
    )
    list(dhtdata.mount(made, home=home))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=15)
    assert done.stdout.split() == [str(ROWS)]
    assert not (home / "store" / "peer.log").exists()


def _publisher(store: Store, digest: str) -> bytes:
    from dhtdata.mount.resolve import find_stored

    dataset = find_stored(Digest.parse(digest), store)
    return dataset.publisher or dataset.contents_digest


def test_the_first_shard_of_a_stranger_is_checked_and_all_are_remembered(made: str, home: Path) -> None:
    with Store.open(home / "store") as store:
        publisher = _publisher(store, made)
        assert not store.trusts(publisher)
        dataset = dhtdata.mount(made, home=home, batch_size=64)
        assert numbers(dataset) == list(range(ROWS))
        assert store.trusts(publisher)
        for group in dataset._view.groups:
            assert all(store.is_checked(digest, group.schema_digest) for digest in group.digests())


def spoil_offsets(blocks: list[bytes]) -> None:
    """An offset of the first batch's strings points far beyond their bytes."""
    block = bytearray(blocks[1])
    at = block.rfind(b"\x05\x00\x00\x00\x0a\x00\x00\x00")
    assert at > 0
    block[at + 4 : at + 8] = b"\x00\x00\x00\x7f"
    blocks[1] = bytes(block)


def spoil_footer(blocks: list[bytes]) -> None:
    blocks[-1] = blocks[-1].replace(b"ARROW1", b"ARROW2")


def cut_a_batch_short(blocks: list[bytes]) -> None:
    blocks[1] = blocks[1][:-64]


@pytest.mark.parametrize("tamper", [spoil_offsets, spoil_footer, cut_a_batch_short])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_hostile_shard_is_refused_by_name_and_the_process_lives(home: Path, tamper: Tamper, trusted: bool) -> None:
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, sample_table(9).select(["text"]), name="trap", tamper=tamper))
        if trusted:
            store.trust_publisher(_publisher(store, digest))
    dataset = dhtdata.mount(digest, home=home, batch_size=4)
    with pytest.raises(FormatError, match=r"shard [0-9a-f]{64} of dataset trap .* is refused"):
        list(dataset)
    with Store.open(home / "store") as store:
        assert store.trusts(_publisher(store, digest)) is trusted


def test_a_name_means_the_only_dataset_that_has_it(made: str, home: Path) -> None:
    assert dhtdata.mount("made", home=home).num_rows == ROWS
    with Store.open(home / "store") as store:
        put_dataset(store, sample_table(50), name="made")
    with pytest.raises(ConfigError, match="2 datasets"):
        dhtdata.mount("made", home=home)


def test_splits_are_read_apart(home: Path) -> None:
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, {"train": sample_table(50), "test": sample_table(20)}))
    assert numbers(dhtdata.mount(digest, home=home, split="test")) == list(range(20))
    with pytest.raises(ConfigError, match="no split 'valid'.*train, test"):
        dhtdata.mount(digest, home=home, split="valid")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"columns": ["number", "nothing"]}, "no column 'nothing'"),
        ({"columns": "number"}, "expected a list"),
        ({"columns": []}, "at least one"),
        ({"columns": 5}, r"expected a list such as \['number'\], not a int"),
        ({"format": ["numpy"]}, "format: .*is none of"),
        ({"collate": {"vector": np.zeros(2)}}, "collate: .* is none of"),
        ({"batch_size": 10**12, "remainder": "pad"}, "batch_size: 1000000000000 rows are more than"),
        ({"columns": ["text", "text"]}, "only once"),
        ({"format": "pandas"}, "format: 'pandas'"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"shuffle_window": 0}, "shuffle_window"),
        ({"remainder": "keep"}, "remainder"),
        ({"rank": 1}, "give both"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"lanes": 0}, "lanes"),
        ({"lanes": 10**9}, "lanes: 1000000000 is not in 1 to 16384"),
        ({"batch_size": 1.5}, "batch_size: 1.5 is not a whole number"),
        ({"batch_size": True}, "batch_size: True is not"),
        ({"seed": "one"}, "seed: 'one' is not"),
        ({"seed": 1.5}, "seed: 1.5 is not"),
        ({"world_size": 2.0, "rank": 0}, "world_size: 2.0 is not"),
        ({"predownload": "many"}, "not a size"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5s"}, "timeout: '5s' is not a number of seconds"),
        ({"shuffle": "py1s"}, "shuffle: 'py1s' is neither True nor False"),
        ({"shuffle": 42}, "shuffle: 42 is neither"),
        ({"drop_last": True}, "no argument 'drop_last': use remainder=\"drop\""),
        ({"shuffle_seed": 1}, "no argument 'shuffle_seed': use seed"),
        ({"sheds": 1}, r"no argument 'sheds': see help"),
        ({"batch_size": 1000, "remainder": "drop"}, "smaller batch_size"),
        ({"cache_limit": "much"}, "not a size"),
    ],
)
def test_arguments_that_make_no_sense_are_named(made: str, home: Path, how: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        dhtdata.mount(made, home=home, **how)


@pytest.mark.parametrize("epoch", [-1, 1 << 56, "first", 1.5, True])
def test_an_epoch_that_makes_no_sense_is_named(made: str, home: Path, epoch: Any) -> None:
    with pytest.raises(ConfigError, match=f"epoch: {epoch!r} is not"):
        dhtdata.mount(made, home=home).set_epoch(epoch)


@pytest.mark.parametrize("how", [{"seed": "one"}, {"threads": 1.5}])
def test_a_mix_names_its_arguments_too(made: str, home: Path, how: dict[str, Any]) -> None:
    sources = [(dhtdata.mount(made, home=home, batch_size=4), 1) for _ in range(2)]
    with pytest.raises(ConfigError, match=f"{next(iter(how))}: .* is not a whole number"):
        dhtdata.Mix(sources, **how)


def test_an_unknown_name_is_told_with_the_store_and_a_torn_ticket_as_such(made: str, home: Path) -> None:
    with pytest.raises(NotFoundError, match=f"no dataset called 'nothing' is in the store {home / 'store'}"):
        dhtdata.mount("nothing", home=home)
    with pytest.raises(NotFoundError, match="ticket that was cut short"):
        dhtdata.mount("dhtdata1qsuwczdeojsxg43fooiz", home=home)


def test_a_column_that_collides_with_the_mark_of_padding_is_named(home: Path) -> None:
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, pa.table({"_valid": [1, 2, 3]})))
    assert len(dhtdata.mount(digest, home=home)) == 3
    with pytest.raises(ConfigError, match="_valid"):
        dhtdata.mount(digest, home=home, remainder="pad")


def test_what_is_no_target_is_a_format_error(home: Path) -> None:
    with pytest.raises(FormatError, match="names no dataset"):
        dhtdata.mount("No Such Thing!", home=home)


def test_a_corrupted_shard_is_noticed_before_a_row_of_it_is_seen(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=64)
    with Store.open(home / "store") as store:
        path = store.path_of(next(dataset._view.groups[0].digests()))
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with peer_of(home), pytest.raises((NotFoundError, ConfigError)):
        list(dhtdata.mount(made, home=home, batch_size=64, timeout=1))


def test_torchrun_variables_decide_the_rank(made: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    dataset = dhtdata.mount(made, home=home, batch_size=10, shuffle=True)
    assert dataset.state_dict()["global_batch"] == 40 and dataset.state_dict()["lanes"] == 2
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="WORLD_SIZE='many'"):
        dhtdata.mount(made, home=home)


def test_batches_outlive_the_dataset(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=ROWS, format="arrow")
    batch = next(iter(dataset))
    dataset.close()
    assert batch.column("number").to_pylist() == list(range(ROWS))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size": 4, "global_batch_size": 8}, "give one of them"),
        ({"global_batch_size": 50, "rank": 0, "world_size": 8}, "50 rows .* 8 ranks: 48 and 56 do"),
        ({"global_batch_size": 5, "rank": 0, "world_size": 8}, "the smallest that does is 8"),
        ({"global_batch_size": 0}, "0 rows"),
        ({"global_batch_size": 2.5}, "not a whole number"),
        ({"rank": 3, "world_size": 231, "remainder": "uneven"}, "230 rows, fewer than the 231 ranks"),
        ({"batch_size": 231, "remainder": "drop"}, "fewer than one global batch of 231"),
        ({"rank": 3, "world_size": 231, "remainder": "drop"}, "fewer than one global batch of 231"),
    ],
)
def test_sizes_that_leave_a_rank_without_work_are_refused(
    made: str, home: Path, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        dhtdata.mount(made, home=home, **arguments)


def test_with_more_ranks_or_larger_batches_than_rows_padding_keeps_all_ranks_in_step(made: str, home: Path) -> None:
    seen = []
    for rank in range(240):
        dataset = dhtdata.mount(made, home=home, columns=["number"], rank=rank, world_size=240, global_batch_size=480)
        (batch,) = dataset
        assert len(batch["number"]) == 2
        seen += batch["number"][batch["_valid"]].tolist()
    assert sorted(seen) == list(range(230))


def test_a_global_batch_is_dealt_to_the_ranks(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, global_batch_size=48, rank=1, world_size=3)
    assert dataset.batch_size == 16 and dataset.state_dict()["global_batch"] == 48
    assert next(iter(dataset))["number"].tolist() == list(range(16, 32))
