from __future__ import annotations

import asyncio

import pytest

from dhtdata.errors import NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.web_seeds import Provider
from dhtdata.transfer import search
from dhtdata.transfer.search import MAX_LATE, Search, each
from tests.transfer.swarming import run

PEERS = [Address("192.0.2.1", 8_470 + number) for number in range(MAX_LATE + 10)]


@pytest.mark.parametrize("dead", [0, 1, 7, MAX_LATE - 1])
def test_however_many_do_not_answer_the_one_that_does_is_asked(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before it never answer; nobody waits for them."""
    monkeypatch.setattr(search, "HEDGE_S", 0.001)

    async def attempt(provider: Provider) -> str:
        if provider != PEERS[dead]:
            await asyncio.Event().wait()
        return "found"

    async def main() -> None:
        asked = Search(attempt, lambda *_: None)
        assert await asked.first([each(PEERS[: dead + 1])]) == "found"

    run(main())


def test_so_many_who_are_late_are_waited_for_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "HEDGE_S", 0.001)
    waiting: list[asyncio.Event] = []
    most = 0

    async def attempt(provider: Provider) -> str:
        nonlocal most
        waiting.append(asyncio.Event())
        most = max(most, len(waiting))
        event = waiting[-1]
        if len(waiting) == MAX_LATE:
            waiting[0].set()
        await event.wait()
        waiting.remove(event)
        for other in waiting:
            other.set()
        raise PeerError("no")

    async def main() -> None:
        blamed: list[Provider] = []
        asked = Search(attempt, lambda provider, _: blamed.append(provider))
        source = asyncio.create_task(asked.first([each(PEERS)]))
        while not source.done():
            await asyncio.sleep(0.002)
            if len(asked.asked) == len(PEERS):
                for event in waiting:
                    event.set()
        with pytest.raises(NotFoundError, match="no"):
            await source
        assert set(blamed) == set(PEERS)

    run(main())
    assert most == MAX_LATE
