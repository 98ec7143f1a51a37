"""Ask many peers one question, until the first good answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from dhtdata.errors import FormatError, IntegrityError, NotFoundError, PeerError
from dhtdata.formats.addresses import Address

PARALLEL_ASKS = 4
HEDGE_S = 0.25
MAX_ASKED = 256
EXPECTED_FAILURES = (PeerError, NotFoundError, IntegrityError, FormatError)

Source = AsyncGenerator[Address, None]
_T = TypeVar("_T")


class Search(Generic[_T]):
    """One question to the addresses that some sources yield, each address once.

    The next is asked when the last has failed or is late, so that one good answer is not sent four times.

    ``asked`` is who was asked and ``failures`` what they said, for the message when nobody had an answer.
    """

    def __init__(
        self, attempt: Callable[[Address], Awaitable[_T]], blame: Callable[[Address, Exception], None]
    ) -> None:
        self._attempt = attempt
        self._blame = blame
        self._answers: list[_T] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(PARALLEL_ASKS)
        self.asked: set[Address] = set()
        self.failures: list[str] = []

    async def first(self, sources: Sequence[Source]) -> _T:
        """The first good answer; NotFoundError once all sources ended and everybody was asked in vain."""
        async with asyncio.TaskGroup() as group:
            for source in sources:
                self._start(group, self._drain(source, group))
        if not self._answers:
            raise NotFoundError("; ".join(self.failures[:3]) or "nobody to ask is known")
        return self._answers[0]

    async def _drain(self, source: Source, group: asyncio.TaskGroup) -> None:
        async with aclosing(source):
            async for address in source:
                if address not in self.asked and len(self.asked) < MAX_ASKED:
                    self.asked.add(address)
                    await self._slots.acquire()
                    asking = self._start(group, self._ask(address))
                    await asyncio.wait([asking], timeout=HEDGE_S)

    async def _ask(self, address: Address) -> None:
        try:
            self._answers.append(await self._attempt(address))
        except EXPECTED_FAILURES as failure:
            self.failures.append(str(failure))
            self._blame(address, failure)
        finally:
            self._slots.release()
        if self._answers:
            self._end()

    def _start(self, group: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self) -> None:
        """Stop asking. Not by an exception: a group that ends with one forgets that it was cancelled from outside."""
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


async def each(addresses: Iterable[Address]) -> Source:
    """A source of addresses that are known already."""
    for address in addresses:
        yield address
