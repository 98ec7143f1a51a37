"""Ask many peers one question, until the first good answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from dhtdata.errors import FormatError, IntegrityError, NotFoundError, PeerError
from dhtdata.formats.records import Address

PARALLEL_ASKS = 4
MAX_ASKED = 256
EXPECTED_FAILURES = (PeerError, NotFoundError, IntegrityError, FormatError)

Source = AsyncGenerator[Address, None]
_T = TypeVar("_T")


class _Answered(Exception):
    """Ends the group: a good answer is there."""


class Search(Generic[_T]):
    """One question to the addresses that some sources yield, a few at a time, each address once.

    ``asked`` is who was asked and ``failures`` what they said, for the message when nobody had an answer.
    """

    def __init__(
        self, attempt: Callable[[Address], Awaitable[_T]], blame: Callable[[Address, Exception], None]
    ) -> None:
        self._attempt = attempt
        self._blame = blame
        self._answers: list[_T] = []
        self._slots = asyncio.Semaphore(PARALLEL_ASKS)
        self.asked: set[Address] = set()
        self.failures: list[str] = []

    async def first(self, sources: Sequence[Source]) -> _T:
        """The first good answer; NotFoundError once all sources ended and everybody was asked in vain."""
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(self._drain(source, group))
        except* _Answered:
            pass
        if not self._answers:
            raise NotFoundError("; ".join(self.failures[:3]) or "nobody to ask is known")
        return self._answers[0]

    async def _drain(self, source: Source, group: asyncio.TaskGroup) -> None:
        async with aclosing(source):
            async for address in source:
                if address not in self.asked and len(self.asked) < MAX_ASKED:
                    self.asked.add(address)
                    await self._slots.acquire()
                    group.create_task(self._ask(address))

    async def _ask(self, address: Address) -> None:
        try:
            self._answers.append(await self._attempt(address))
        except EXPECTED_FAILURES as failure:
            self.failures.append(str(failure))
            self._blame(address, failure)
        finally:
            self._slots.release()
        if self._answers:
            raise _Answered


async def each(addresses: Iterable[Address]) -> Source:
    """A source of addresses that are known already."""
    for address in addresses:
        yield address
