from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Buffer, Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.formats.blocks import BlockTable
from dhtdata.store import Partial, Store
from tests.store.samples import Shard, files_under, shard


def fill(partial: Partial, sample: Shard) -> None:
    for position in partial.missing():
        partial.accept(position, sample.blocks[position])


@given(order=st.permutations(range(8)))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_shard_is_whole_whatever_the_order_of_its_blocks(tmp_path: Path, order: list[int]) -> None:
    sample = shard(1)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        for count, position in enumerate(order):
            assert not partial.complete
            partial.accept(position, sample.blocks[position])
            assert partial.missing() == sorted(set(range(8)) - set(order[: count + 1]))
        path = partial.finish()
        assert path.read_bytes() == sample.content
        assert store.path_of(sample.digest) == path
        assert store.partials() == []
        assert not files_under(tmp_path / "partial")
        store.gc(grace_s=0)


@given(held=st.sets(st.integers(0, 20)))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bitmap_has_one_bit_for_each_block_held(tmp_path: Path, held: set[int]) -> None:
    sample = shard(2, block_bytes=64, batches=19)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        for position in held:
            partial.accept(position, sample.blocks[position])
        assert int.from_bytes(partial.bitmap(), "little") == sum(1 << position for position in held)
        assert len(partial.bitmap()) == 3
        assert [position for position in range(21) if partial.has(position)] == sorted(held)
        assert partial.held_bytes == sum(len(sample.blocks[position]) for position in held)
        partial.remove()


@pytest.mark.parametrize("wrong", ["flipped", "short", "long", "empty", "other block"])
def test_wrong_bytes_are_blamed_and_never_written(tmp_path: Path, wrong: str) -> None:
    sample = shard(3)
    right = sample.blocks[2]
    content = {
        "flipped": bytes([right[0] ^ 1]) + right[1:],
        "short": right[:-1],
        "long": right + b"\0",
        "empty": b"",
        "other block": sample.blocks[3],
    }[wrong]
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        with pytest.raises(IntegrityError, match=r"10\.0\.0\.1:80.*block 2") as caught:
            partial.accept(2, content, culprit="10.0.0.1:80")
        assert caught.value.culprit == "10.0.0.1:80"
        assert not partial.has(2)
        assert not any(partial.path.read_bytes())


def test_filling_goes_on_where_a_crash_ended_it_even_if_nothing_was_noted(tmp_path: Path) -> None:
    sample = shard(4)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        partial.accept(3, sample.blocks[3])
        partial.accept(0, sample.blocks[0])
        del partial
    with Store.open(tmp_path) as store:
        assert store.partials() == [sample.digest]
        partial = store.partial(sample.digest, sample.table)
        assert partial.missing() == [1, 2, 4, 5, 6, 7]
        fill(partial, sample)
        assert partial.finish().read_bytes() == sample.content


def write_later(path: Path) -> None:
    """As if what was written was written a second later: file times go by ticks of some milliseconds."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_a_block_that_rotted_while_nobody_looked_is_missing_again(tmp_path: Path) -> None:
    sample = shard(5)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        partial.accept(3, sample.blocks[3])
        partial.accept(4, sample.blocks[4])
        path = partial.path
        del partial
        with path.open("r+b") as file:
            file.seek(sample.table.blocks[3].offset)
            file.write(b"rot")
        write_later(path)
        assert store.partial(sample.digest, sample.table).missing() == [0, 1, 2, 3, 5, 6, 7]


def test_rot_before_the_end_is_not_blamed_on_the_manifest(tmp_path: Path) -> None:
    sample = shard(6)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        fill(partial, sample)
        with partial.path.open("r+b") as file:
            file.seek(sample.table.blocks[3].offset)
            file.write(b"rot")
        with pytest.raises(NotFoundError, match="1 blocks changed on disk"):
            partial.finish()
        assert partial.missing() == [3]
        fill(partial, sample)
        assert partial.finish().read_bytes() == sample.content


def test_a_truncated_partial_is_made_whole_again(tmp_path: Path) -> None:
    sample = shard(7)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        fill(partial, sample)
        os.truncate(partial.path, 10)
        with pytest.raises(NotFoundError, match="changed on disk"):
            partial.finish()
        assert partial.missing() == list(range(8))
        fill(partial, sample)
        assert partial.finish().read_bytes() == sample.content


def test_a_shard_whose_blocks_match_and_whose_digest_does_not_condemns_the_manifest(tmp_path: Path) -> None:
    sample = shard(8)
    claimed = Digest.of(b"some other shard")
    with Store.open(tmp_path) as store:
        partial = store.partial(claimed, sample.table)
        fill(partial, sample)
        with pytest.raises(FormatError, match="manifest that names them is at fault"):
            partial.finish()
        assert not store.has(claimed)
        assert store.partials() == []
        assert not files_under(tmp_path / "partial")


def test_a_lying_block_table_does_not_disturb_the_right_one(tmp_path: Path) -> None:
    sample, lie = shard(9), shard(10)
    with Store.open(tmp_path) as store:
        wrong = store.partial(sample.digest, lie.table)
        right = store.partial(sample.digest, sample.table)
        fill(wrong, lie)
        fill(right, sample)
        with pytest.raises(FormatError):
            wrong.finish()
        assert right.finish().read_bytes() == sample.content


def test_an_unfinished_shard_says_how_many_blocks_it_misses(tmp_path: Path) -> None:
    sample = shard(11)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        partial.accept(0, sample.blocks[0])
        with pytest.raises(NotFoundError, match="misses 7 blocks"):
            partial.finish()


def test_two_stores_fill_one_shard_together(tmp_path: Path) -> None:
    sample = shard(12)
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        mine, theirs = store.partial(sample.digest, sample.table), other.partial(sample.digest, sample.table)
        fill(mine, sample)
        fill(theirs, sample)
        assert mine.finish() == theirs.finish()
        assert store.path_of(sample.digest).read_bytes() == sample.content
        assert other.partials() == []


def test_a_second_finish_while_the_first_was_elsewhere_keeps_one_blob(tmp_path: Path) -> None:
    sample = shard(13)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        fill(partial, sample)
        store.put(sample.content)
        assert partial.finish() == store.path_of(sample.digest)
        assert store.partials() == []
        assert not files_under(tmp_path / "partial")


def test_many_threads_fill_one_shard(tmp_path: Path) -> None:
    sample = shard(14, batches=60)
    with Store.open(tmp_path) as store:
        start = threading.Barrier(8)
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            try:
                start.wait()
                partial = store.partial(sample.digest, sample.table)
                for i in range(len(sample.blocks)):
                    position = (i * 7 + seed * 11) % len(sample.blocks)
                    partial.accept(position, sample.blocks[position])
                    if i % 20 == 0:
                        partial.save()
                partial.finish()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert store.read(sample.digest, limit_bytes=1 << 20) == sample.content
        assert store.partials() == []
        assert not files_under(tmp_path / "partial")


def test_what_is_verified_can_be_located_and_mapped_before_the_shard_is_whole(tmp_path: Path) -> None:
    sample = shard(15)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        partial.accept(4, sample.blocks[4])
        located = store.locate(sample.digest)
        assert located.partial is partial
        assert not located.complete
        assert located.size == len(sample.content)
        block = sample.table.blocks[4]
        with located.path.open("rb") as file:
            file.seek(block.offset)
            assert file.read(block.length) == sample.blocks[4]
            fill(partial, sample)
            partial.finish()
            file.seek(0)
            assert file.read() == sample.content, "the file keeps its inode when it becomes a blob"
        assert store.locate(sample.digest).complete


def test_the_fullest_of_two_partials_is_located(tmp_path: Path) -> None:
    sample = shard(16)
    coarse = Shard([sample.blocks[0], b"".join(sample.blocks[1:-1]), sample.blocks[-1]])
    with Store.open(tmp_path) as store:
        one, two = store.partial(sample.digest, sample.table), store.partial(sample.digest, coarse.table)
        one.accept(1, sample.blocks[1])
        two.accept(1, coarse.blocks[1])
        assert store.locate(sample.digest).partial is two
        assert store.partials() == [sample.digest]


def test_one_object_stands_for_a_partial_while_somebody_holds_it(tmp_path: Path) -> None:
    sample = shard(17)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        assert store.partial(sample.digest, sample.table) is partial


def test_a_partial_that_is_being_let_go_is_not_handed_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = shard(19)
    close, dying = os.close, -1
    opened: list[Partial] = []

    def closing(descriptor: int) -> None:
        close(descriptor)
        if descriptor == dying and not opened:  # what another thread may do while a descriptor is closed
            opened.append(store.partial(sample.digest, sample.table))

    with Store.open(tmp_path) as store:
        monkeypatch.setattr(os, "close", closing)
        partial = store.partial(sample.digest, sample.table)
        dying = partial._descriptor
        del partial
        opened[0].accept(0, sample.blocks[0])
        assert opened[0].has(0)


def test_a_partial_that_is_opened_again_is_digested_again_only_if_somebody_wrote_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, digested = shard(26), list[int]()
    digest, table = sample.digest, sample.table
    real = Digest.of

    def watched(content: Buffer) -> Digest:
        digested.append(len(memoryview(content)))
        return real(content)

    with Store.open(tmp_path) as store:
        partial = store.partial(digest, table)
        for position in (1, 4):
            partial.accept(position, sample.blocks[position])
        path = partial.path
        del partial
        monkeypatch.setattr(Digest, "of", watched)
        assert store.partial(digest, table).missing() == [0, 2, 3, 5, 6, 7]
        assert len(sample.blocks[4]) not in digested
        rotten = bytearray(path.read_bytes())
        rotten[table.blocks[4].offset] ^= 1
        path.write_bytes(rotten)
        write_later(path)
        assert store.partial(digest, table).missing() == [0, 2, 3, 4, 5, 6, 7]
        assert len(sample.blocks[4]) in digested


def test_a_partial_that_was_dropped_meanwhile_says_so(tmp_path: Path) -> None:
    sample = shard(18)
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        partial = store.partial(sample.digest, sample.table)
        fill(partial, sample)
        assert other.evict(1) == 0, "nobody takes a partial from under a process that fills it"
        other.partial(sample.digest, sample.table).remove()
        with pytest.raises(NotFoundError, match="dropped while it was filled"):
            partial.save()
        with pytest.raises(StoreError):
            partial.finish()
        fill(again := store.partial(sample.digest, sample.table), sample)
        assert again.finish().read_bytes() == sample.content


def test_a_file_without_a_row_is_swept_and_a_row_without_a_file_starts_anew(tmp_path: Path) -> None:
    sample = shard(19)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        partial.accept(0, sample.blocks[0])
        path = partial.path
        del partial
    stray = tmp_path / "partial" / "nobody knows"
    stray.write_bytes(b"x")
    path.unlink()
    with Store.open(tmp_path) as store:
        assert not stray.exists()
        assert store.partial(sample.digest, sample.table).missing() == list(range(8))


def test_a_failed_sync_drops_the_partial_rather_than_trust_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = shard(20)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        fill(partial, sample)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", _fails)
            with pytest.raises(StoreError, match="Input/output error"):
                partial.finish()
        assert store.partials() == []
        assert not store.has(sample.digest)
        fill(again := store.partial(sample.digest, sample.table), sample)
        assert again.finish().read_bytes() == sample.content


def _fails(descriptor: int) -> None:
    raise OSError(5, "Input/output error")


def test_a_block_that_is_all_zero_is_found_again(tmp_path: Path) -> None:
    sample = Shard([b"head", b"\0" * 20_000, b"foot"])
    with Store.open(tmp_path) as store:
        store.partial(sample.digest, sample.table).accept(1, sample.blocks[1])
        assert store.partial(sample.digest, sample.table).missing() == [0, 2]


def test_a_table_is_kept_with_its_partial(tmp_path: Path) -> None:
    sample = shard(21)
    with Store.open(tmp_path) as store:
        store.partial(sample.digest, sample.table).accept(2, sample.blocks[2])
    with Store.open(tmp_path) as store:
        located = store.locate(sample.digest)
        assert located.partial is not None
        assert isinstance(located.partial.table, BlockTable)
        assert located.partial.table == sample.table
        assert located.partial.has(2)


def test_a_second_store_on_a_shard_that_was_dropped_elsewhere_starts_it_anew(tmp_path: Path) -> None:
    sample = shard(22)
    with Store.open(tmp_path) as store:
        partial = store.partial(sample.digest, sample.table)
        partial.path.unlink()
        again = store.partial(sample.digest, sample.table)
        assert again is not partial
        again.accept(0, sample.blocks[0])
        assert again.path.exists()


def test_a_partial_whose_file_is_gone_is_garbage_like_any_other(tmp_path: Path) -> None:
    sample = shard(23)
    with Store.open(tmp_path) as store:
        store.partial(sample.digest, sample.table).path.unlink()
        assert store.evict(1) == len(sample.content)
        assert store.partials() == []


def test_a_disk_that_cannot_tell_holes_from_bytes_is_an_operators_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = shard(24)
    real = os.lseek

    def lseek(descriptor: int, offset: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(5, "Input/output error")
        return real(descriptor, offset, how)

    with Store.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr("os.lseek", lseek)
            with pytest.raises(StoreError, match="Input/output error"):
                store.partial(sample.digest, sample.table)
        assert store.partial(sample.digest, sample.table).missing() == list(range(8))


def test_a_partial_in_use_survives_an_eviction_that_had_chosen_it(tmp_path: Path) -> None:
    sample = shard(25)
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        store.partial(sample.digest, sample.table)
        census = store._room._census(0)
        partial = other.partial(sample.digest, sample.table)
        assert store._room._drop(census, census.evictable()) == 0
        assert partial.path.exists()
