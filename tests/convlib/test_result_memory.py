"""Memory that results leave is used again, and never while anything still refers to it."""

import gc
import threading

import numpy as np
import pytest

import convlib
from convlib import result_memory
from convlib.result_memory import LEAST, result_array, waiting

SHAPE = (4, 64, 32, 32)  # 1 MB of float32


@pytest.fixture(autouse=True)
def nothing_waits():
    gc.collect()
    waiting.clear()


def address(array):
    return array.__array_interface__["data"][0]


def waiting_bytes():
    return sum(block.memory.size for block in waiting)


def test_a_result_gets_the_memory_that_one_of_nearly_its_size_left():
    first = result_array(SHAPE, np.float32)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    left = address(first)
    assert left % 64 == 0
    del first
    second = result_array((4, 63, 32, 32), np.float32)
    assert address(second) == left
    assert not waiting
    assert address(result_array((4, 32, 32, 32), np.float32)) != left


KEEPERS = {
    "a slice": lambda y: y[1:, 5],
    "a reversed one": lambda y: y[::-1, ::2],
    "a slice of a slice": lambda y: y[1][2:],
    "another shape": lambda y: y.reshape(-1, 16).T,
    "another dtype": lambda y: y.view(np.uint16),
    "windows": lambda y: np.lib.stride_tricks.sliding_window_view(y, (3, 3), axis=(2, 3)),
    "a memoryview": memoryview,
    "a buffer's array": lambda y: np.frombuffer(y, np.float32),
    "DLPack": np.from_dlpack,
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_what_still_reads_a_result_keeps_its_memory(keeper):
    y = result_array(SHAPE, np.float32)
    before = address(y)
    kept = KEEPERS[keeper](y)
    del y
    gc.collect()
    assert not waiting
    assert address(result_array(SHAPE, np.float32)) != before
    waiting.clear()
    del kept
    assert [address(block.memory) for block in waiting] == [before]


def test_a_tensor_over_a_result_keeps_its_memory():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    y = torch.from_numpy(result_array(SHAPE, np.float32))[1:]
    assert not waiting
    del y
    assert len(waiting) == 1


def test_a_jax_array_over_a_result_keeps_its_memory():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    y = convlib.conv2d(jax.numpy.ones((1, 8, 64, 64)), jax.numpy.ones((16, 8, 1, 1)))
    assert y.nbytes >= LEAST
    assert not waiting
    assert float(y.min()) == 8


def test_results_in_a_circle_come_back_when_it_is_collected():
    circle = [result_array(SHAPE, np.float32)]
    circle.append(circle)
    del circle
    assert not waiting
    gc.collect()
    assert len(waiting) == 1


@pytest.fixture
def collections_after():
    """Let garbage be collected after so many allocations, wherever the program then is."""
    before = gc.get_threshold()
    yield lambda allocations: gc.set_threshold(allocations, 1000, 1000)
    gc.set_threshold(*before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("allocations", range(1, 40))
def test_results_may_come_back_while_another_looks_for_memory(allocations, collections_after):
    held = [result_array((LEAST,), np.uint8) for _ in range(30)]
    held.clear()
    gc.collect()
    circle = [result_array((2 * LEAST,), np.uint8)]
    circle.append(circle)
    del circle
    collections_after(allocations)
    y = result_array((LEAST,), np.uint8)
    del y
    collections_after(10_000)
    gc.collect()
    assert waiting_bytes() == 32 * LEAST
    assert not result_memory.lent


def test_small_and_huge_results_are_the_c_librarys(monkeypatch):
    monkeypatch.setattr(result_memory, "MOST", 4 * LEAST)
    for count in (LEAST - 1, 4 * LEAST + 1):
        result_array((count,), np.uint8)
        assert not waiting
    for count in (LEAST, 4 * LEAST):
        result_array((count,), np.uint8)
        assert waiting


def test_no_more_waits_than_allowed_and_the_oldest_go_first(monkeypatch):
    monkeypatch.setattr(result_memory, "MOST", 5 << 20)
    held = [result_array((1 << 20,), np.uint8) for _ in range(9)]
    addresses = [address(y) for y in held]
    while held:
        del held[0]
        assert waiting_bytes() <= 5 << 20
    assert [address(block.memory) for block in waiting] == addresses[-5:]
    del held
    result_array((3 << 20,), np.uint8)
    assert waiting_bytes() == 5 << 20
    assert [address(block.memory) for block in waiting][:2] == addresses[-2:]


def test_the_share_of_a_small_machine_is_small(monkeypatch):
    monkeypatch.setattr(result_memory, "memory_bytes", lambda: 64 << 20)
    y = result_array((1 << 20,), np.uint8)
    del y
    assert waiting_bytes() == 1 << 20
    result_array(((1 << 20) + 1,), np.uint8)
    assert waiting_bytes() == 1 << 20


def test_calls_write_apart_while_results_live_and_there_again_after():
    x, w = np.ones((1, 4, 64, 64), np.float32), np.ones((16, 4, 1, 1), np.float32)
    planned = convlib.plan(x.shape, w)
    for call in (lambda x: convlib.conv2d(x, w), planned):
        for times in (1, 2):  # the second calls are known ones
            first, second = call(times * x), call(3 * x)
            assert not np.may_share_memory(first, second)
            assert (first == 4 * times).all()
            assert (second == 12).all()
        left = address(first)
        del first
        assert address(call(x)) == left
        assert (second == 12).all()
        del second


def test_threads_never_get_the_same_memory():
    wrong, done = [], threading.Event()

    def work(own):
        while not done.is_set():
            held = [result_array((LEAST + 97 * n,), np.uint8) for n in range(3)]
            for y in held:
                y[...] = own
            if any((y != own).any() for y in held):
                wrong.append(own)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(1, 5)]
    for thread in threads:
        thread.start()
    done.wait(0.5)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert not result_memory.lent
