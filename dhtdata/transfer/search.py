"""Ask many peers one question, until the first good answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from dhtdata.errors import FormatError, IntegrityError, NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.web_seeds import Provider

PARALLEL_ASKS = 4
MAX_LATE = 32
HEDGE_S = 0.25
MAX_ASKED = 256
EXPECTED_FAILURES = (PeerError, NotFoundError, IntegrityError, FormatError)

Source = AsyncGenerator[Address, None]
ProviderSource = AsyncGenerator[Provider, None]
_T = TypeVar("_T")
_P = TypeVar("_P", bound=Provider)


class Search(Generic[_T]):
    """One question to the providers that some sources yield, each provider once.

    The next is asked when the last has failed or is late, so that one good answer is not sent four times. Who is late
    keeps nobody else from being asked, up to `MAX_LATE`: a ticket may name many that are gone.

    ``asked`` is who was asked and ``failures`` what they said, for the message when nobody had an answer.
    """

    def __init__(
        self, attempt: Callable[[Provider], Awaitable[_T]], blame: Callable[[Provider, Exception], None]
    ) -> None:
        self._attempt = attempt
        self._blame = blame
        self._answers: list[_T] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(PARALLEL_ASKS)
        self._late = asyncio.Semaphore(MAX_LATE)
        self.asked: set[Provider] = set()
        self.failures: list[str] = []

    async def first(self, sources: Sequence[ProviderSource]) -> _T:
        """The first good answer; NotFoundError once all sources ended and everybody was asked in vain."""
        async with asyncio.TaskGroup() as group:
            for source in sources:
                self._start(group, self._drain(source, group))
        if not self._answers:
            raise NotFoundError("; ".join(self.failures[:3]) or "nobody to ask is known")
        return self._answers[0]

    async def _drain(self, source: ProviderSource, group: asyncio.TaskGroup) -> None:
        async with aclosing(source):
            async for provider in source:
                if provider not in self.asked and len(self.asked) < MAX_ASKED:
                    self.asked.add(provider)
                    async with self._slots:
                        await self._late.acquire()
                        asking = self._start(group, self._ask(provider))
                        await asyncio.wait([asking], timeout=HEDGE_S)

    async def _ask(self, provider: Provider) -> None:
        try:
            self._answers.append(await self._attempt(provider))
        except EXPECTED_FAILURES as failure:
            self.failures.append(str(failure))
            self._blame(provider, failure)
        finally:
            self._late.release()
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


async def each(providers: Iterable[_P]) -> AsyncGenerator[_P, None]:
    """A source of providers that are known already."""
    for provider in providers:
        yield provider
