"""Virtual time: an event loop whose clock jumps to the next event, so that hours pass in seconds, always the same.

`VirtualLoop` is asyncio's own loop (`asyncio.BaseEventLoop`: tasks, futures and handles are the real ones) with its
inner step replaced. There are no sockets, so nothing is ever polled. What is ready runs first; then, with threads under
way, all of them are waited for; then the clock moves to the next timer. So in virtual time a thread takes none at all,
and what threads return arrives in the order in which they were started, however they raced: simulations that call
`asyncio.to_thread` repeat exactly. The price: a thread must never wait for something that only happens *later*. What
can never go on, because nothing is ready, no thread runs and no timer waits, is a RuntimeError and not a silent hang.

Speed is the point. Timers are kept as tuples, which compare without running Python (the stock loop's compare in
Python), and `VirtualLoop.deliver` schedules a plain call without a handle, a context or a way to cancel it.

`asyncio.open_connection` and the like raise NotImplementedError. Datagram endpoints are opened by whoever simulates the
network (`VirtualLoop.datagrams`), so programs that call ``create_datagram_endpoint`` run as they are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_Timer = tuple[float, int, Any, tuple[Any, ...] | None]
OpenTransport = Callable[[Callable[[], asyncio.DatagramProtocol], str, int], Awaitable[asyncio.DatagramTransport]]
"""Opens a transport on an IP address and port for the protocol that it makes."""

_FEW = 1_000


class VirtualLoop(asyncio.BaseEventLoop):
    """``events`` counts timers and deliveries so far. ``datagrams`` opens simulated datagram endpoints."""

    # Owned by BaseEventLoop, which has no types for them.
    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self.datagrams: OpenTransport | None = None
        self._now_s = 0.0
        self._timers: list[_Timer] = []
        self._sequence = 0
        self._cancelled_timers = 0
        self._threads: deque[tuple[concurrent.futures.Future[Any], asyncio.Future[Any]]] = deque()
        self._news_from_threads = threading.Event()
        self._executor: concurrent.futures.Executor | None = None

    def time(self) -> float:
        return self._now_s

    def deliver(self, delay_s: float, function: Callable[..., object], *args: Any) -> None:
        """Call the function after the delay: ``call_later`` without a handle, at a fraction of its cost."""
        self._sequence += 1
        heappush(self._timers, (self._now_s + delay_s, self._sequence, function, args))

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_closed():
            raise RuntimeError("this loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self.is_closed():
            raise RuntimeError("this loop is closed")
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        handle._scheduled = True  # type: ignore[attr-defined]  # how a handle knows to tell `_timer_handle_cancelled`
        self._sequence += 1
        heappush(self._timers, (when, self._sequence, handle, None))
        return handle

    def run_in_executor(  # type: ignore[override]  # BaseEventLoop calls it a coroutine where it returns a future
        self, executor: concurrent.futures.Executor | None, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        executor = executor or self._executor
        if executor is None:
            executor = self._executor = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="simulated")
        running = executor.submit(func, *args)
        waiting: asyncio.Future[_T] = self.create_future()
        self._threads.append((running, waiting))
        running.add_done_callback(lambda _: self._news_from_threads.set())
        return waiting

    def set_default_executor(self, executor: Any) -> None:
        self._executor = executor

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncio's
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    async def create_datagram_endpoint(  # type: ignore[override]  # of its many options only these make sense here
        self,
        protocol_factory: Callable[[], asyncio.DatagramProtocol],
        local_addr: tuple[str, int] | None = None,
        **options: Any,
    ) -> tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]:
        """An endpoint in the simulated network. OSError if the address is in use there."""
        if self.datagrams is None or local_addr is None or options:
            raise NotImplementedError("a simulated endpoint needs a simulated network, a local address and no options")
        made: list[asyncio.DatagramProtocol] = []

        def make() -> asyncio.DatagramProtocol:
            made.append(protocol_factory())
            return made[0]

        transport = await self.datagrams(make, *local_addr)
        return transport, made[0]

    def close(self) -> None:
        super().close()
        self._timers.clear()
        self._threads.clear()

    # What BaseEventLoop expects of the loops derived from it.

    def _run_once(self) -> None:
        """Everything that is ready, and then one timer after the other until somebody stops the loop."""
        ready, timers = self._ready, self._timers
        while not self._stopping:
            while ready:
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    if not handle._cancelled:
                        handle._run()
                if self._stopping:
                    return
            if self._threads:
                self._settle_threads()
            elif timers:
                when, _, what, args = heappop(timers)
                if when > self._now_s:
                    self._now_s = when
                if args is not None:
                    self.events += 1
                    self._call(what, args)
                elif what._cancelled:
                    self._cancelled_timers -= 1
                else:
                    self.events += 1
                    what._scheduled = False
                    what._run()
            elif ready:
                continue
            else:
                raise RuntimeError("deadlock: nothing is left to happen, and somebody waits")

    def _call(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            function(*args)
        except Exception as failure:
            self.call_exception_handler({"message": f"exception in {function!r}", "exception": failure})

    def _settle_threads(self) -> None:
        """Wait for all threads, or until one of them calls the loop, and pass on what they returned, in order."""
        while self._threads and not self._ready:
            if all(running.done() for running, _ in self._threads):
                for running, waiting in self._threads:
                    _pass_on(running, waiting)
                self._threads.clear()
                return
            self._news_from_threads.wait()
            self._news_from_threads.clear()

    def _write_to_self(self) -> None:
        self._news_from_threads.set()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are left to surface, unless most are: a long simulation must not keep them all."""
        self._cancelled_timers += 1
        if self._cancelled_timers > _FEW and 2 * self._cancelled_timers > len(self._timers):
            # In place: `_run_once` holds on to the list.
            self._timers[:] = [each for each in self._timers if each[3] is not None or not each[2]._cancelled]
            heapify(self._timers)
            self._cancelled_timers = 0

    def _process_events(self, event_list: object) -> None:
        """Without a selector there are none."""


def _pass_on(running: concurrent.futures.Future[_T], waiting: asyncio.Future[_T]) -> None:
    if waiting.done():  # cancelled by whoever waited
        return
    if running.cancelled():
        waiting.cancel()
    elif (failure := running.exception()) is not None:
        waiting.set_exception(failure)
    else:
        waiting.set_result(running.result())


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end on a virtual clock, which starts at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
