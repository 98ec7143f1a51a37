"""Memory that workers and loops share: nothing that a loop holds is ever written to."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import dhtdata
from dhtdata.torch import DataLoader
from dhtdata.torch.arenas import ALIGNMENT, MAX_ARENAS, MIN_BYTES, Inbox, Outbox, Passed, open_passed


def sent(outbox: Outbox, size: int, filling: int) -> Passed:
    memory, passed = outbox.place(size)
    assert memory.numel() == size and memory.data_ptr() % ALIGNMENT == 0
    memory.fill_(filling)
    return passed


def held(passed: Passed, size: int) -> NDArray[np.uint8]:
    """As a tensor of a parcel refers to an arena: to a part of it."""
    array = open_passed(passed)
    assert array is not None
    return array[:size]


def test_an_arena_is_used_again_once_the_last_array_in_it_is_gone() -> None:
    inbox = Inbox()
    outbox = Outbox(inbox.number)
    first = sent(outbox, 100, 1)
    assert first.file is not None
    array = held(first, 100)
    part = array[10:20]
    del array
    second = sent(outbox, 100, 2)
    assert second.number != first.number
    assert part.tolist() == [1] * 10
    del part
    third = sent(outbox, 100, 3)
    assert (third.number, third.file) == (first.number, None)
    assert held(third, 100).tolist() == [3] * 100
    assert held(second, 100).tolist() == [2] * 100


def test_who_holds_more_than_there_are_arenas_gets_memory_that_is_used_once() -> None:
    inbox = Inbox()
    outbox = Outbox(inbox.number)
    everything = []
    for filling in range(2 * MAX_ARENAS):
        passed = sent(outbox, 50, filling)
        everything.append(held(passed, 50))
        assert (passed.number is None) == (filling >= MAX_ARENAS)
    assert [set(array.tolist()) for array in everything] == [{filling} for filling in range(2 * MAX_ARENAS)]


def test_arenas_that_are_too_small_are_replaced_and_forgotten() -> None:
    inbox = Inbox()
    outbox = Outbox(inbox.number)
    small = [sent(outbox, 10, filling) for filling in range(3)]
    arrays = [held(passed, 10) for passed in small]
    del arrays[1:]
    large = sent(outbox, 3 * MIN_BYTES, 9)
    assert set(large.dropped) == {passed.number for passed in small[1:]}
    assert set(held(large, 3 * MIN_BYTES).tolist()) == {9}
    assert arrays[0].tolist() == [0] * 10


def test_a_forked_process_keeps_what_its_parent_held() -> None:
    inbox = Inbox()
    outbox = Outbox(inbox.number)
    passed = sent(outbox, 100, 5)
    array = held(passed, 100)
    go, going = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        os._exit(0 if array.tolist() == [5] * 100 else 1)
    del array
    for filling in range(3 * MAX_ARENAS):
        held(sent(outbox, 100, filling), 100)
    os.write(going, b"!")
    _, status = os.waitpid(child, 0)
    os.close(go)
    os.close(going)
    assert os.waitstatus_to_exitcode(status) == 0
    assert passed.number not in outbox._arenas


def test_what_comes_for_an_iteration_that_was_given_up_disturbs_nobody() -> None:
    inbox = Inbox()
    outbox = Outbox(inbox.number)
    first, _ = sent(outbox, 10, 1), held(sent(outbox, 10, 2), 10)
    del inbox
    assert open_passed(first) is None


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3 * MIN_BYTES), st.integers(0, 20)), max_size=40),
    chance=st.randoms(use_true_random=False),
)
def test_nothing_that_is_held_changes_and_nothing_grows(steps: list[tuple[int, int]], chance: random.Random) -> None:
    inbox = Inbox()
    outbox = Outbox(inbox.number)
    known: list[tuple[NDArray[np.uint8], int]] = []
    for filling, (size, releases) in enumerate(steps):
        known.append((held(sent(outbox, size, filling), size), filling))
        for _ in range(min(releases, len(known))):
            known.pop(chance.randrange(len(known)))
        assert len(outbox._arenas) <= MAX_ARENAS and len(inbox._maps) <= MAX_ARENAS
        assert all((array == number).all() for array, number in known)


@pytest.mark.timeout(90)
@pytest.mark.slow_e2e
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_that_a_loop_keeps_stay_as_they_came(made: str, home: Path, persistent: bool) -> None:
    mounted = partial(dhtdata.mount, made, home=home, columns=["number", "vector"], batch_size=4, shuffle=True)
    expected = mounted(format="numpy")
    loader = DataLoader(mounted(), num_workers=2, persistent_workers=persistent)
    chance = random.Random(3)
    kept: list[tuple[torch.Tensor, NDArray[np.float32]]] = []
    for _ in range(4):
        for batch, right in zip(loader, expected, strict=True):
            if chance.random() < 0.3:
                kept.append((batch["vector"], right["vector"]))
        kept = chance.sample(kept, len(kept) // 2)
    assert len(kept) > 10
    assert all((tensor.numpy() == right).all() for tensor, right in kept)
