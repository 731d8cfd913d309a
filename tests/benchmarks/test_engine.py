"""The engine takes turns, pauses, stops at its budget, and compares neighbours. No test here measures real time."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from benchmarks import cores, engine


@dataclass(frozen=True)
class Fake:
    name: str
    seconds: float
    call: Callable = lambda: None


@pytest.fixture
def turns():
    """Records sleeps and blocks in order; a block's time is what its candidate's call returns."""
    seen = []

    def block(call, calls):
        name, seconds = call()
        seen.append((name, calls))
        return seconds

    return seen, block


def settings_with(seen, steady=(), **numbers):
    """Settings whose sleeps are recorded in `seen`. steady: what the first of them say of the machine."""
    answers = iter(steady)

    def settle():
        seen.append("sleep")
        return next(answers, True)

    return engine.Settings(settle=settle, **numbers)


def fake(name, seconds):
    return Fake(name, seconds, lambda: (name, seconds))


def test_every_round_measures_every_candidate_once_in_changing_order(turns):
    seen, block = turns
    settings = settings_with(seen, rounds=20, block_seconds=0.1)
    timings = engine.measure([fake("a", 0.001), fake("b", 0.002)], settings, block)
    timed = [turn for turn in seen if turn in (("a", 100), ("b", 50))]
    rounds = [tuple(timed[i : i + 2]) for i in range(0, 40, 2)]
    assert all(sorted(pair) == [("a", 100), ("b", 50)] for pair in rounds)
    assert len(set(rounds)) == 2
    assert timings["a"].seconds == (0.001,) * 20


def test_each_block_comes_after_a_pause_and_a_warm_up(turns):
    seen, block = turns
    engine.measure([fake("a", 0.001)], settings_with(seen, rounds=2, block_seconds=0.01), block)
    for position in (i for i, turn in enumerate(seen) if turn == ("a", 10)):
        before = seen[:position]
        assert before[-1] == ("a", 1)
        assert "sleep" in before
    assert seen.count("sleep") == 3  # and one after the last block


@pytest.mark.parametrize(
    ("steady", "blocks"),
    [((True, True), 1), ((False, True, True), 2), ((True, False, True, True), 3), ((True, False, False, False), 3)],
)
def test_a_block_beside_which_the_machine_was_not_itself_is_measured_again_twice_at_most(steady, blocks):
    seen, times = [], iter((1e-3, 1e-3, 1e-3, 1.0, 2.0, 3.0))  # three rough looks, then blocks

    def block(call, calls):
        seen.append(calls)
        return next(times)

    settings = settings_with(seen, steady, rounds=1, block_seconds=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "WARM_UP_SECONDS", 0.0)
        timings = engine.measure([fake("a", 0.001)], settings, block)
    assert seen.count(10) == blocks
    assert timings["a"].seconds == (float(blocks),)  # the last try counts


def test_slow_candidates_stop_at_their_budget(turns):
    seen, block = turns
    settings = settings_with(seen, rounds=9, most_seconds=5)
    timings = engine.measure([fake("slow", 3.0), fake("fast", 0.01)], settings, block)
    assert len(timings["slow"].seconds) == 2
    assert len(timings["fast"].seconds) == 9


def test_a_ratio_is_the_median_of_the_rounds_both_had():
    slower, faster = engine.Timing((2.0, 9.0, 4.0), 1), engine.Timing((1.0, 3.0, 1.0, 50.0), 1)
    assert engine.ratio(slower, faster) == 3.0


def test_median_and_percentiles():
    timing = engine.Timing((5.0, 1.0, 2.0, 3.0, 4.0, 6.0), 1)
    assert (timing.median, timing.percentile(20), timing.percentile(80)) == (3.5, 2.0, 5.0)


def test_a_host_block_is_the_median_of_its_calls(monkeypatch):
    clock = iter((0.0, 1.0, 2.0, 12.0))  # three calls: 1, 1 and 10 seconds
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    assert engine.host_block(lambda: None, 3) == 1.0


@pytest.mark.parametrize(("busy", "milliseconds"), [(0, 22), (3, 58), (1000, 202)])
def test_the_pause_lasts_until_no_thread_spins_and_no_longer_than_its_limit(monkeypatch, busy, milliseconds):
    """`busy`: how many looks, 12 ms each after the first 10, find the process's threads using a whole core."""
    clock, used, slept = [0.0], [0.0], []

    def sleep(seconds):
        used[0] += seconds if len(slept) <= busy else 0.0
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(engine.time, "sleep", sleep)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(engine.time, "process_time", lambda: used[0])
    engine.settle()
    assert clock[0] == pytest.approx(milliseconds / 1e3)


def test_a_thread_that_spins_is_heard_where_its_time_is_put_down_in_ticks(monkeypatch):
    """As a kernel at 250 Hz does it: nothing for one tick of 4 ms, and what it used in two at the next."""
    clock = [0.0]
    monkeypatch.setattr(engine.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(engine.time, "process_time", lambda: min(clock[0], 0.040) // 0.008 * 0.008)
    engine.settle()
    assert clock[0] > 0.040


def test_cores_are_slow_when_the_slowest_takes_1_4_times_the_least_that_was_seen(monkeypatch):
    """Twice the time, as when two virtual cores share one, is slow; noise is not; a faster look moves the measure."""
    found = iter([1.0, 1.2] * (cores.FIRST_LOOKS // 2) + [1.3, 1.9, 0.8, 1.3])
    monkeypatch.setattr(cores.Cores, "seconds", lambda self: next(found))
    monkeypatch.setattr(engine, "settle", lambda: True)
    both = cores.Cores(2)
    assert [both.settle() for _ in range(4)] == [True, False, True, False]
    assert both.share_slow == 0.5


def test_cores_multiply_on_as_many_threads_at_once_as_they_were_asked_for():
    both = cores.Cores(2)
    together = threading.Barrier(2, timeout=60)  # one thread alone would wait here
    both.runs = [together.wait] * 2
    assert both.seconds() < 60
