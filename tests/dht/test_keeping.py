"""Keeping the record table on disk while a node runs: in parts, and again after what could not be written."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from dhtdata.dht.holdings import Holdings
from dhtdata.dht.keeping import SAVED_AT_ONCE, RecordKeeper
from dhtdata.digest import Digest
from dhtdata.signing import SigningKey, substitute
from tests.dht.test_holdings import KEYS, OWN_ID, Clock, claim
from tests.simulation.signer import FastScheme


def record(number: int) -> bytes:
    """A claim under a key of its own, signed by a key of its own."""
    return claim(SigningKey(number.to_bytes(32, "big")), contents=Digest.of(number.to_bytes(4, "big")))


def holdings(count: int) -> Holdings:
    """So many claims by as many signers, put here by ourselves."""
    kept = Holdings(Clock(), OWN_ID)
    for number in range(count):
        assert kept.keep(record(number))
    return kept


async def reloaded(path: Path) -> int:
    """How many records a new node takes up from the file."""
    anew = Holdings(Clock(), OWN_ID)
    keeper = RecordKeeper(anew, path)
    await keeper.open()
    await keeper.restore()
    await keeper.close()
    return anew.record_count


def test_more_than_one_part_is_saved_and_comes_back(tmp_path: Path) -> None:
    async def story() -> None:
        with substitute(FastScheme()):
            count = SAVED_AT_ONCE + 50
            keeper = RecordKeeper(holdings(count), tmp_path / "records.sqlite")
            await keeper.open()
            await keeper.save()
            await keeper.close()
            assert await reloaded(tmp_path / "records.sqlite") == count

    asyncio.run(story())


def test_what_a_full_disk_refused_is_saved_once_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        kept = Holdings(Clock(), OWN_ID)
        assert kept.keep(claim(KEYS[0]))
        keeper = RecordKeeper(kept, tmp_path / "records.sqlite")
        await keeper.open()
        await keeper.save()
        archive = keeper._archive
        assert archive is not None and archive._connection is not None
        pages = archive._connection.execute("PRAGMA page_count").fetchone()[0]
        archive._connection.execute(f"PRAGMA max_page_count={pages}")
        with substitute(FastScheme()):
            for number in range(200):
                assert kept.keep(record(number))
            with caplog.at_level(logging.WARNING):
                await keeper.save()
                await keeper.save()
            assert len(caplog.records) == 1 and "cannot be kept on disk for now" in caplog.text
            archive._connection.execute("PRAGMA max_page_count=1000000")
            await keeper.save()
        await keeper.close()
        rows = RecordKeeper(Holdings(Clock(), OWN_ID), tmp_path / "records.sqlite")
        await rows.open()
        assert len(rows._rows) == 201
        await rows.close()

    asyncio.run(story())


def test_what_has_expired_is_dropped_in_parts(tmp_path: Path) -> None:
    async def story() -> None:
        with substitute(FastScheme()):
            clock = Clock()
            kept = Holdings(clock, OWN_ID)
            for number in range(2_500):
                assert kept.keep(record(number))
            assert kept.forget_expired(10) == 0
            clock.now_s += 10 * 86_400
            assert kept.forget_expired(10) == 10
            await RecordKeeper(kept, None).forget_expired()
            assert kept.record_count == 0

    asyncio.run(story())


def test_the_index_gives_memory_back_when_a_flood_has_expired() -> None:
    with substitute(FastScheme()):
        clock = Clock()
        kept = Holdings(clock, OWN_ID)
        for number in range(12_000):
            assert kept.keep(record(number))
        large = kept._by_key.__sizeof__()
        clock.now_s += 10 * 86_400
        kept.forget_expired()
        assert kept.key_count == 0 and kept._by_key.__sizeof__() < large / 4
