"""Scratch memory: aligned, reused by the same thread, never shared, never hoarded."""

import threading

import numpy as np
import pytest

from convlib import workspace
from convlib.strided import empty_aligned
from convlib.workspace import KEPT_BYTES, aligned, scratch


@pytest.fixture(autouse=True)
def forget():
    workspace.held.__dict__.pop("memory", None)
    yield
    workspace.held.__dict__.pop("memory", None)


def address(memory):
    return memory.__array_interface__["data"][0]


@pytest.mark.parametrize("count", [0, 1, 63, 4096, 100_001])
def test_is_as_long_as_asked_and_aligned(count):
    with scratch(count) as memory:
        assert (memory.size, memory.dtype) == (count, np.uint8)
        assert address(memory) % 64 == 0


def test_is_reused_where_it_suffices():
    with scratch(10_000) as first:
        where = address(first)
    with scratch(5_000) as second:
        assert address(second) == where
    with scratch(20_000) as third:
        assert third.size == 20_000


def test_a_block_inside_a_block_has_memory_of_its_own():
    with scratch(5_000) as outer, scratch(5_000) as inner:
        assert not np.shares_memory(outer, inner)


def test_threads_share_nothing():
    with scratch(5_000) as mine:
        found = []

        def work():
            with scratch(5_000) as theirs:
                found.append(np.shares_memory(mine, theirs))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [False]


def test_large_memory_is_not_kept():
    with scratch(KEPT_BYTES + 1):
        pass
    assert getattr(workspace.held, "memory", None) is None
    with scratch(KEPT_BYTES):
        pass
    assert workspace.held.memory.size == KEPT_BYTES


def test_a_failure_inside_gives_it_back():
    def fail():
        with scratch(5_000):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert workspace.held.memory.size >= 5_000


def test_what_memory_has_no_room_for_is_named():
    with pytest.raises(MemoryError, match="^no room for 4,611,686,018,427,387,904 bytes of scratch memory; "):
        workspace.take(1 << 62)
    with pytest.raises(MemoryError, match=r" 4,611,686,018,427,387,904 bytes, an array of shape \(2305843.* uint16$"):
        empty_aligned((1 << 61,), np.uint16)


def test_aligned_rounds_up_to_64():
    assert [aligned(count) for count in (0, 1, 64, 65)] == [0, 64, 64, 128]
