"""The loop whose clock jumps."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.simulation.clock import VirtualLoop, run


def test_hours_pass_in_no_time() -> None:
    async def story() -> float:
        await asyncio.sleep(24 * 3600)
        return asyncio.get_running_loop().time()

    before = time.monotonic()
    assert run(story()) == 24 * 3600
    assert time.monotonic() - before < 60


def test_timers_fire_in_order_of_time_then_of_creation() -> None:
    async def story() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[str] = []
        loop.call_later(2, seen.append, "late")
        loop.call_later(1, seen.append, "first")
        loop.deliver(1, seen.append, "second")
        loop.call_later(1, seen.append, "third")
        loop.call_soon(seen.append, "at once")
        await asyncio.sleep(3)
        return seen

    assert run(story()) == ["at once", "first", "second", "third", "late"]


def test_timeouts_and_cancelled_timers_behave_as_ever() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        loop.call_later(1, seen.append, "never").cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        assert loop.time() == 5 and seen == []

    run(story())


def test_cancelled_timers_do_not_pile_up() -> None:
    async def story() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(100_000):
            loop.call_later(1e9, print).cancel()
        await asyncio.sleep(1)
        return len(loop._timers)

    assert run(story()) < 5_000


def test_waiting_for_what_can_never_happen_is_an_error() -> None:
    async def story() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        run(story())


def test_threads_work_and_take_no_time() -> None:
    async def story() -> tuple[list[int], float]:
        numbers = await asyncio.gather(*(asyncio.to_thread(pow, 2, each) for each in range(20)))
        return numbers, asyncio.get_running_loop().time()

    assert run(story()) == ([1 << each for each in range(20)], 0.0)


def test_what_threads_return_arrives_in_the_order_in_which_they_started() -> None:
    async def story() -> list[str]:
        gate = threading.Event()
        seen: list[str] = []

        async def call(name: str, work: object) -> None:
            assert callable(work)
            await asyncio.to_thread(work)
            seen.append(name)

        async with asyncio.TaskGroup() as calls:
            calls.create_task(call("waits for the other", gate.wait))
            calls.create_task(call("is done first", gate.set))
        return seen

    assert run(story()) == ["waits for the other", "is done first"]


def test_time_stands_still_while_a_thread_works() -> None:
    async def story() -> list[str]:
        seen: list[str] = []
        asyncio.get_running_loop().call_later(1e-9, seen.append, "timer")
        await asyncio.to_thread(time.sleep, 0.05)
        seen.append("thread")
        await asyncio.sleep(1)
        return seen

    assert run(story()) == ["thread", "timer"]


def test_a_failure_in_a_thread_is_raised_where_it_is_awaited() -> None:
    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)

    run(story())


def test_a_thread_may_call_the_loop_and_wait_for_it() -> None:
    async def story() -> float:
        loop = asyncio.get_running_loop()

        async def answer() -> int:
            await asyncio.sleep(0)
            return 42

        def ask() -> int:
            return asyncio.run_coroutine_threadsafe(answer(), loop).result()

        return await asyncio.to_thread(ask)

    assert run(story()) == 42


def test_an_exception_in_a_delivery_is_told_and_the_loop_goes_on() -> None:
    async def story() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        told: list[str] = []
        loop.set_exception_handler(lambda _, context: told.append(type(context["exception"]).__name__))
        loop.deliver(1, divmod, 1, 0)
        await asyncio.sleep(2)
        return told

    assert run(story()) == ["ZeroDivisionError"]


def test_without_a_network_there_are_no_endpoints() -> None:
    async def story() -> None:
        with pytest.raises(NotImplementedError, match="simulated network"):
            await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, ("11.0.0.1", 1))

    run(story())
