"""Mixes of mounted datasets: real shards in a real store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.order.mixing import BATCHINGS
from dhtdata.store import Store
from tests.mount.making import put_dataset

SIZES = {"sea": 230, "land": 95, "sky": 40}


def table_of(name: str, rows: int) -> pa.Table:
    return pa.table(
        {
            "number": pa.array(range(rows), pa.int64()),
            "text": [None if number % 11 == 0 else f"{name} {number}" for number in range(rows)],
            "label": pa.array([None if name == "sea" and row % 7 == 0 else row % 5 for row in range(rows)], pa.int8()),
            "words": pa.array([list(range(number % 4)) for number in range(rows)], pa.list_(pa.int32())),
            "place": [{"x": number / 2, "name": name} for number in range(rows)],
            "vector": pa.FixedSizeListArray.from_arrays(np.arange(rows * 3, dtype=np.float32), 3),
        }
    )


@dataclass(frozen=True)
class Shelf:
    """A store with a dataset for each of `SIZES`."""

    home: Path
    digests: Mapping[str, str]

    def mount(self, name: str, **options: Any) -> dhtdata.StreamingDataset:
        given: dict[str, Any] = {"batch_size": 10, "shuffle": True, "seed": 3, "columns": ["number", "text"]} | options
        return dhtdata.mount(self.digests[name], home=self.home, **given)

    def mix(self, weights: Mapping[str, float], *, mounted: Mapping[str, Any] | None = None, **options: Any) -> Any:
        return dhtdata.Mix([(self.mount(name, **(mounted or {})), w) for name, w in weights.items()], **options)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    home = tmp_path_factory.mktemp("home")
    with Store.open(home / "store") as store:
        digests = {
            name: str(put_dataset(store, table_of(name, rows), name=name, groups=[["number", "vector", "label"], rest]))
            for name, rows in SIZES.items()
            for rest in [["text", "words", "place"]]
        }
    return Shelf(home, digests)


TWO = {"sea": 0.7, "land": 0.3}
THREE = {"sea": 5, "land": 3, "sky": 2}
Row = tuple[int, int]


def rows_of(items: Iterable[Any], column: str = "origin") -> list[list[Row]]:
    """(source, row) of every batch, without padding."""
    made = []
    for item in items:
        columns = [np.atleast_1d(item[name]).tolist() for name in (column, "number")]
        valid = np.atleast_1d(item["_valid"]).tolist() if "_valid" in item else [True] * len(columns[0])
        made.append([(source, row) for source, row, kept in zip(*columns, valid, strict=True) if kept])
    return made


def flat(batches: Iterable[Sequence[Row]]) -> list[Row]:
    return [row for batch in batches for row in batch]


def stream_of(shelf: Shelf, name: str, epochs: int, **options: Any) -> list[int]:
    dataset = shelf.mount(name, **options)
    return [number for _ in range(epochs) for batch in dataset for number in batch["number"].tolist()]


@pytest.mark.parametrize("stop", ["first", "all"])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_every_source_goes_through_its_own_epochs_in_its_own_order(shelf: Shelf, batching: str, stop: str) -> None:
    mix = shelf.mix(THREE, batching=batching, stop=stop, source_column="origin")
    epochs = [flat(rows_of(mix)) for _ in range(4)]
    assert len({len(epoch) for epoch in epochs}) == 1 and len(epochs[0]) == mix.num_rows
    for source, (name, size) in enumerate(SIZES.items()):
        taken = [row for epoch in epochs for of_source, row in epoch if of_source == source]
        assert taken == stream_of(shelf, name, len(taken) // size + 1)[: len(taken)]
        in_first = [row for of_source, row in epochs[0] if of_source == source]
        assert len(in_first) <= size if stop == "first" else set(in_first) == set(range(size))


def test_a_stratified_batch_has_every_share(shelf: Shelf) -> None:
    mix = shelf.mix({"sea": 0.625, "land": 0.375}, batching="stratified", source_column="origin")
    counts = np.array([[source for source, _ in batch].count(1) for batch in rows_of(mix)][:-1])
    assert set(counts.tolist()) == {3, 4}
    assert (np.abs(np.cumsum(counts) - 3.75 * np.arange(1, counts.size + 1)) < 1).all()


def test_a_batch_per_source_has_one_source(shelf: Shelf) -> None:
    mix = shelf.mix(TWO, batching="per_source", source_column="origin")
    turns = [{source for source, _ in batch} for batch in rows_of(mix)]
    assert all(len(turn) == 1 for turn in turns) and len(turns) == len(mix)
    assert sum(turn == {1} for turn in turns[:20]) == 6


def test_a_random_mix_depends_on_seed_and_epoch(shelf: Shelf) -> None:
    mix = partial(shelf.mix, TWO, source_column="origin")
    first, second = (mix(seed=seed) for seed in (1, 2))
    epochs = [[source for source, _ in flat(rows_of(mixed))] for mixed in (first, first, second)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("format", ["numpy", "python", "arrow", "torch"])
def test_all_formats_have_the_same_rows(shelf: Shelf, format: str, batch_size: int | None, batching: str) -> None:
    columns = ["number", "text", "words", "place", "vector", *(["label"] if format != "torch" else [])]
    mounted: dict[str, Any] = {"format": format, "batch_size": batch_size, "columns": columns}
    items = list(shelf.mix(THREE, mounted=mounted, batching=batching, source_column="origin"))
    seen = 0
    for item in items:
        batch = item if batch_size else {name: [value] for name, value in item.items()}
        plain = {name: plainly(batch[name]) for name in [*columns, "origin"]}
        if isinstance(plain["place"], dict):
            plain["place"] = [
                {"x": x, "name": name} for x, name in zip(plain["place"]["x"], plain["place"]["name"], strict=True)
            ]
        for at, (source, number) in enumerate(zip(plain["origin"], plain["number"], strict=True)):
            expected = table_of(list(SIZES)[source], number + 1).to_pylist()[number]
            assert {name: plain[name][at] for name in columns} == {name: expected[name] for name in columns}
        seen += len(plain["number"])
    assert seen == shelf.mix(THREE, mounted=mounted, batching=batching).num_rows


def plainly(column: Any) -> Any:
    """As Python's values."""
    if isinstance(column, dict):
        return {name: plainly(child) for name, child in column.items()}
    if isinstance(column, pa.Array | pa.Scalar):
        return column.to_pylist() if isinstance(column, pa.Array) else column.as_py()
    if isinstance(column, list):
        return [plainly(value) for value in column]
    made = column.tolist() if hasattr(column, "tolist") else column
    return [plainly(value) for value in made] if isinstance(made, list) else made


def test_lists_are_padded_and_jagged_in_mixed_batches(shelf: Shelf) -> None:
    mounted: dict[str, Any] = {"columns": ["number", "words"], "collate": "padded"}
    for batch in shelf.mix(TWO, mounted=mounted):
        assert batch["words_lengths"].tolist() == (batch["number"] % 4).tolist()
        assert batch["words"].sum(axis=1).tolist() == [sum(range(number % 4)) for number in batch["number"].tolist()]
    mounted["collate"] = "jagged"
    for batch in shelf.mix(TWO, mounted=mounted):
        lengths = np.diff(batch["words"]["offsets"])
        assert lengths.tolist() == (batch["number"] % 4).tolist()
        assert batch["words"]["values"].tolist() == [word for n in batch["number"].tolist() for word in range(n % 4)]


# Where it stands


def crew_batches(
    shelf: Shelf,
    ranks: int,
    state: Mapping[str, Any] | None,
    count: int,
    weights: Mapping[str, float] = THREE,
    **options: Any,
) -> tuple[list[list[Row]], dict[str, Any]]:
    """The next ``count`` global batches of 24 rows, of all ranks together, and the state after them."""
    parts, states = [], []
    for rank in range(ranks):
        mounted: dict[str, Any] = {
            "batch_size": 24 // ranks,
            "rank": rank,
            "world_size": ranks,
            "lanes": options.get("lanes", 1),
        }
        chosen = {name: value for name, value in options.items() if name != "lanes"}
        mix = shelf.mix(weights, mounted=mounted, source_column="origin", **chosen)
        if state is not None:
            mix.load_state_dict(json.loads(json.dumps(state)))
        items = iter(mix)
        received = [item for _, item in zip(range(count), items, strict=False)]
        parts.append(rows_of(received))
        states.append(mix.state_dict())
    assert all(saved == states[0] for saved in states)
    return [flat(step) for step in zip(*parts, strict=True)], states[0]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_ranks_change_in_the_middle_of_an_epoch_and_batches_do_not(shelf: Shelf, batching: str, lanes: int) -> None:
    options: dict[str, Any] = {"batching": batching, "stop": "all", "lanes": lanes}
    expected, _ = crew_batches(shelf, 1, None, 10**6, **options)
    steps, state = crew_batches(shelf, 2, None, 3, **options)
    for ranks, count in ((8, 2), (3, 3)):
        more, state = crew_batches(shelf, ranks, state, count, **options)
        steps += more
    rest, state = crew_batches(shelf, 4, state, 10**6, **options | {"lanes": 3 - lanes})
    assert steps + rest == expected
    assert state["epoch"] == 1 and state["rows"] == 0


@pytest.mark.parametrize("batching", BATCHINGS)
def test_the_next_epoch_goes_on_with_the_lanes_of_the_state(shelf: Shelf, batching: str) -> None:
    options: dict[str, Any] = {"batching": batching, "lanes": 3}
    _, state = crew_batches(shelf, 1, None, 10**6, **options)
    second, _ = crew_batches(shelf, 1, state, 10**6, **options)
    resumed, _ = crew_batches(shelf, 2, state, 10**6, **options | {"lanes": 1})
    assert resumed == second
    mix = shelf.mix(THREE, mounted={"batch_size": 24}, batching=batching, source_column="origin")
    mix.load_state_dict(state)
    mix.set_epoch(1)
    assert rows_of(mix) == second


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_state_is_small_and_taken_after_every_step(shelf: Shelf, batching: str) -> None:
    mix = shelf.mix(THREE, batching=batching, source_column="origin")
    expected = rows_of(mix)
    mix.set_epoch(0)
    for done, _ in enumerate(mix, start=1):
        state = json.dumps(mix.state_dict())
        assert len(state) <= 1024 + 3 * 1024
        if done % 4 == 1 and done < len(expected):
            resumed = shelf.mix(THREE, batching=batching, source_column="origin")
            resumed.load_state_dict(json.loads(state))
            assert rows_of(resumed) == expected[done:]
    assert mix.state_dict()["epoch"] == 1


def test_another_global_batch_goes_on_with_the_rows_that_are_left(shelf: Shelf) -> None:
    whole = flat(rows_of(shelf.mix(TWO, source_column="origin")))
    mix = shelf.mix(TWO, source_column="origin")
    seen = flat(rows_of(item for _, item in zip(range(7), mix, strict=False)))
    other = shelf.mix(TWO, mounted={"batch_size": 16}, source_column="origin")
    other.load_state_dict(mix.state_dict())
    assert seen + flat(rows_of(other)) == whole


def changed(state: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as ``mix.stop``."""
    copy: dict[str, Any] = json.loads(json.dumps(state))
    *way, last = path.split(".")
    place: Any = copy
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("version", 9, "version 9"),
        ("mix.weights", [1, 1], r"weights=\[1, 1\], this mix has \[7, 3\]"),
        ("mix.batching", "stratified", "batching='stratified', this mix has 'random'"),
        ("mix.stop", "all", "stop='all', this mix has 'first'"),
        ("seed", 5, "seed=5, this mix has seed=0"),
        ("sources.1.contents", "ab" * 32, "source 1: the state belongs to another dataset"),
        ("sources.0.order.window", 2, "source 0: the state was saved with window=2"),
        ("sources.0.seed", 8, "source 0: the state was saved with seed=8"),
        ("sources.0.rows", 5, "stand where this mix never is"),
        ("sources.1.lanes", 2, "different lanes"),
        ("sources", [], "a mix of 0 sources, this one has 2"),
        ("sources", None, "damaged"),
        ("rows", -1, "damaged"),
        ("rows", 10**6, "consumed 1000000 rows, an epoch of this mix has"),
        ("mix", None, "not the state of a mix"),
    ],
)
def test_a_state_of_something_else_is_refused_by_what_differs(shelf: Shelf, path: str, value: Any, named: str) -> None:
    mix = shelf.mix(TWO)
    next(iter(mix))
    with pytest.raises(ConfigError, match=named):
        mix.load_state_dict(changed(mix.state_dict(), path, value))


def test_states_of_datasets_and_mixes_are_told_apart(shelf: Shelf) -> None:
    mix, dataset = shelf.mix(TWO), shelf.mount("sea")
    with pytest.raises(ConfigError, match="not the state of a mix"):
        mix.load_state_dict(dataset.state_dict())
    with pytest.raises(ConfigError, match="state of a mix"):
        dataset.load_state_dict(mix.state_dict())


def test_turns_of_batches_need_the_same_global_batch(shelf: Shelf) -> None:
    state = shelf.mix(TWO, batching="per_source").state_dict()
    other = shelf.mix(TWO, batching="per_source", mounted={"batch_size": 5})
    with pytest.raises(ConfigError, match="global batch of 10 rows, here it is 5"):
        other.load_state_dict(state)


# The last rows


@pytest.mark.parametrize("remainder", ["uneven", "drop", "pad", None])
def test_the_last_rows_follow_the_remainder_of_the_mix(shelf: Shelf, remainder: str | None) -> None:
    mix = shelf.mix({"sea": 2, "land": 1}, remainder=remainder, batching="stratified")
    batches = list(mix)
    assert mix.num_rows == 286  # 95 rows of the second source, and what lies before its next turn
    last = {"drop": [], "pad": [10]}.get(remainder or "uneven", [6])
    assert [len(batch["number"]) for batch in batches] == [10] * 28 + last and len(mix) == len(batches)
    assert all(("_valid" in batch) == (remainder == "pad") for batch in batches)
    if remainder == "pad":
        assert sum(int(batch["_valid"].sum()) for batch in batches) == 286


def test_ranks_pad_by_default(shelf: Shelf) -> None:
    lengths = []
    for rank in range(4):
        mix = shelf.mix(TWO, mounted={"rank": rank, "world_size": 4})
        batches = list(mix)
        assert all(len(batch["_valid"]) == 10 for batch in batches)
        lengths.append(len(batches))
        assert len(mix) == len(batches)
    assert len(set(lengths)) == 1


# Transforms


def upper(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "text": str(row["text"]).upper()}


def marked(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {**batch, "twice": batch["number"] * 2}


def failing(row: Mapping[str, Any]) -> dict[str, Any]:
    if int(row["number"]) == 7:
        raise ValueError("a seven")
    return dict(row)


def only_number(batch: Mapping[str, Any]) -> Any:
    return batch["number"]


@pytest.mark.parametrize("batching", ["random", "stratified"])
@pytest.mark.parametrize("format", ["numpy", "torch", "python"])
def test_a_transform_of_a_source_runs_on_its_rows_only(shelf: Shelf, batching: str, format: str) -> None:
    sea = shelf.mount("sea", transform=upper, transform_on="sample", format=format)
    land = shelf.mount("land", format=format)
    mix = dhtdata.Mix([(sea, 1), (land, 1)], batching=batching, transform=len_of_texts)
    seen = 0
    for batch in mix:
        assert set(batch) == {"number", "text", "count"} and batch["count"] == len(batch["number"])
        for number, text in zip(batch["number"], batch["text"], strict=True):
            known = {"None", None} if int(number) % 11 == 0 else {f"SEA {int(number)}", f"land {int(number)}"}
            assert text in known or (text == "NONE" and int(number) % 11 == 0)
        seen += len(batch["text"])
    assert seen == mix.num_rows


def len_of_texts(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {**batch, "count": len(batch["text"])}


def test_a_transform_on_samples_of_the_mix_follows_those_of_the_sources(shelf: Shelf) -> None:
    sea = shelf.mount("sea", transform=upper, transform_on="sample")
    mix = dhtdata.Mix(
        [(sea, 1), (shelf.mount("land"), 1)], transform=first_letter, transform_on="sample", source_column="origin"
    )
    with pytest.raises(ConfigError, match="KeyError: 'origin'.*of source 0 of the mix"):
        list(mix)  # the source's function did not hand the column on
    mix = dhtdata.Mix(
        [(shelf.mount("sea", transform=loud, transform_on="sample"), 1), (shelf.mount("land"), 1)],
        transform=first_letter, transform_on="sample", source_column="origin",
    )  # fmt: skip
    for batch in mix:
        assert {
            "SN"[number % 11 == 0] if source == 0 else "lN"[number % 11 == 0]
            for source, number in zip(batch["origin"].tolist(), batch["number"].tolist(), strict=True)
        } == set(batch["letter"])


def loud(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "text": str(row["text"]).upper()}


def first_letter(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "origin": row["origin"], "letter": str(row["text"])[0]}


def test_rows_without_batches_are_transformed_by_their_source(shelf: Shelf) -> None:
    mounted: dict[str, Any] = {"batch_size": None}
    sea = shelf.mount("sea", transform=upper, **mounted)
    for format in ("numpy", "arrow"):
        sea = shelf.mount("sea", transform=upper, format=format, **mounted)
        rows = list(dhtdata.Mix([(sea, 1), (shelf.mount("land", format=format, **mounted), 1)]))
        assert {str(row["text"])[0] for row in rows} == {"S", "l", "N"}


def test_batches_of_one_source_have_its_own_columns_and_transform(shelf: Shelf) -> None:
    sea = shelf.mount("sea", columns=["number", "vector"], transform=marked)
    land = shelf.mount("land", columns=["number", "text"], transform=upper, transform_on="sample")
    sky = shelf.mount("sky", columns=["place"], format="numpy")
    mix = dhtdata.Mix([(sea, 1), (land, 1), (sky, 1)], batching="per_source", source_column="origin")
    kinds = [frozenset(batch) for batch in mix]
    assert set(kinds[:3]) == {
        frozenset({"number", "vector", "twice", "origin"}),
        frozenset({"number", "text"}),
        frozenset({"place", "origin"}),
    }
    mix = dhtdata.Mix([(sea, 1), (land, 1)], batching="per_source", transform=only_number)
    assert all(isinstance(batch, np.ndarray) for batch in mix)


def test_rows_that_fail_are_named_with_their_source(shelf: Shelf) -> None:
    land = shelf.mount("land", transform=failing, transform_on="sample")
    with pytest.raises(ConfigError, match=r"ValueError: a seven \(row 7 of source 1 of the mix\)"):
        list(dhtdata.Mix([(shelf.mount("sea"), 1), (land, 1)]))
    with pytest.raises(ConfigError, match=r"ValueError: a seven \(row 7 of source 1 of split 'train'\)"):
        list(dhtdata.Mix([(shelf.mount("sea"), 1), (land, 1)], batching="per_source"))
    with pytest.raises(ConfigError, match=r"KeyError: 'gone' \(row.* of source \d, row.* of source \d of the mix\)"):
        list(shelf.mix(TWO, transform=lambda batch: batch["gone"]))


@pytest.mark.parametrize("batching", ["random", "per_source"])
@pytest.mark.parametrize("remainder", ["uneven", "pad"])
def test_rows_that_fail_are_skipped_where_their_source_says_so(shelf: Shelf, batching: str, remainder: str) -> None:
    mounted: dict[str, Any] = {"transform": failing, "transform_on": "sample", "on_error": "skip"}
    mix = shelf.mix(TWO, mounted=mounted, batching=batching, stop="all", remainder=remainder, source_column="origin")
    seen = flat(rows_of(mix))
    assert {number for source, number in seen if source == 1} == set(range(95)) - {7}
    expected = flat(rows_of(shelf.mix(TWO, batching=batching, stop="all", source_column="origin")))
    assert seen == [row for row in expected if row[1] != 7]


def test_the_mix_may_skip_what_its_own_transform_fails_on(shelf: Shelf) -> None:
    mix = shelf.mix(TWO, transform=failing, transform_on="sample", on_error="skip", source_column="origin")
    assert 7 not in {number for _, number in flat(rows_of(mix))}


# Filters, looks and mistakes


def test_a_filtered_source_gives_the_rows_that_its_filter_keeps(shelf: Shelf) -> None:
    sea = shelf.mount("sea", filter="number >= 100")
    mix = dhtdata.Mix([(sea, 1), (shelf.mount("land"), 1)], source_column="origin", stop="all")
    rows = flat(rows_of(mix))
    assert {row for source, row in rows if source == 0} == set(range(100, 230))
    state = mix.state_dict()
    assert state["sources"][0]["order"]["filter"]
    with pytest.raises(ConfigError, match="source 0: .*filter"):
        shelf.mix({"sea": 1, "land": 1}, stop="all").load_state_dict(state)


def test_a_mix_tells_what_it_is(shelf: Shelf) -> None:
    with shelf.mix(THREE, batching="stratified") as mix:
        assert mix.weights == (0.5, 0.3, 0.2) and len(mix.sources) == 3
        assert "0.5 of dataset sea" in repr(mix) and "stratified" in repr(mix)
        assert mix.batch_size == mix.rows_per_item == 10 and mix.format == "numpy"
        assert len(list(dhtdata.progress(mix))) == len(mix)
        assert mix.standing() == (1, 0)


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_change_nothing(shelf: Shelf, threads: int) -> None:
    expected = rows_of(shelf.mix(TWO, source_column="origin"))
    assert rows_of(shelf.mix(TWO, source_column="origin", threads=threads)) == expected
    assert rows_of(shelf.mix(TWO, source_column="origin", mounted={"threads": threads})) == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 11}, "source 1 is mounted with batch_size=11, others with 10"),
        ({"format": "torch"}, "source 1 is mounted with format='torch'"),
        ({"rank": 0, "world_size": 2, "batch_size": 10}, "source 1 is mounted with world_size=2"),
        ({"columns": ["number", "label"]}, "text is missing, label is added"),
        ({"transform": marked}, "source 1 .*transform on batches.*transform_on='sample'.*per_source"),
        ({"collate": {"text": "padded"}}, "source 1 is mounted with another collate"),
    ],
)
def test_sources_that_do_not_go_together_are_refused_by_what_differs(
    shelf: Shelf, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        dhtdata.Mix([(shelf.mount("sea"), 1), (shelf.mount("land", **changes), 1)])


def test_sources_with_other_lanes_are_refused(shelf: Shelf) -> None:
    with pytest.raises(ConfigError, match="source 1 is mounted with lanes=1, others with 4"):
        dhtdata.Mix([(shelf.mount("sea", lanes=4), 1), (shelf.mount("land"), 1)])
    dhtdata.Mix([(shelf.mount("sea", lanes=4), 1), (shelf.mount("land", shuffle=False), 1)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batching": "lucky"}, "batching: 'lucky' is none of random"),
        ({"stop": "never"}, "stop: 'never' is none of first"),
        ({"seed": -1}, "seed: -1"),
        ({"remainder": "keep"}, "remainder: 'keep'"),
        ({"source_column": "text"}, "column 'text' of source 0 collides with source_column"),
        ({"transform_on": "sample"}, "give transform, too"),
        ({"on_error": "ignore"}, "on_error: 'ignore'"),
        ({"transform": upper, "transform_on": "sample", "batching": "per_source"}, "mount the sources with it"),
    ],
)
def test_arguments_that_make_no_sense_are_named(shelf: Shelf, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        shelf.mix(TWO, **options)


def test_columns_of_other_types_are_named(shelf: Shelf, tmp_path: Path) -> None:
    with Store.open(shelf.home / "store") as store:
        table = pa.table({"number": pa.array([1.5, 2.5]), "text": pa.array(["a", "b"], pa.large_string())})
        other = str(put_dataset(store, table, name="other"))
        table = pa.table({"number": pa.array([1, 2]), "text": pa.array(["a", "b"], pa.large_string())})
        wide = str(put_dataset(store, table, name="wide"))
    mounted = partial(dhtdata.mount, home=shelf.home, batch_size=10)
    with pytest.raises(ConfigError, match="column 'number' is double in source 1, int64 in source 0"):
        dhtdata.Mix([(shelf.mount("sea"), 1), (mounted(other), 1)])
    texts = {text for batch in dhtdata.Mix([(shelf.mount("sea"), 9), (mounted(wide), 1)]) for text in batch["text"]}
    assert {"a", "b"} <= texts
    with pytest.raises(ConfigError, match="column 'text' is large_string in source 1, string in source 0"):
        dhtdata.Mix([(shelf.mount("sea", format="arrow"), 1), (mounted(wide, format="arrow"), 1)])


def test_what_is_no_source_is_refused(shelf: Shelf) -> None:
    sea = shelf.mount("sea")
    for sources, named in (
        ([(sea, 1)], "two or more sources, not 1"),
        ([sea, sea], "source 0 is .*expected"),
        ([(sea, 1), ("land", 1)], "source 1 is"),
        ([(sea, 1), (sea, "much")], "weight of source 1 is 'much'"),
        ([(sea, 1), (sea, 0)], "weight of source 1 is 0"),
    ):
        with pytest.raises(ConfigError, match=named):
            dhtdata.Mix(sources)  # type: ignore[arg-type]


def test_a_mix_that_gives_no_batch_is_refused(shelf: Shelf) -> None:
    with pytest.raises(ConfigError, match="fewer than one global batch of 1000"):
        shelf.mix(TWO, mounted={"batch_size": 1000, "remainder": "pad"}, remainder="drop")
    with pytest.raises(ConfigError, match="fewer than the 300 ranks"):
        mounted: dict[str, Any] = {"batch_size": 1, "rank": 0, "world_size": 300, "remainder": "pad"}
        shelf.mix({"sky": 1, "land": 1}, mounted=mounted, remainder="uneven")
