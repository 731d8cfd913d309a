"""From a case to its rows: what passes is timed, what does not is told, and one failure stops nobody else."""

import pytest

from benchmarks import cases, engine, gate, peers, runner
from benchmarks.candidate import Candidate, CannotRun
from convlib.problem import make_problem

CASE = cases.Case("any", "small", make_problem((1, 2, 5, 5), (3, 2, 3, 3), "float32"))
SETTINGS = engine.Settings(rounds=2, block_seconds=1e-4)


def right(case, operands, seconds=0.0, ours=False):
    y = gate.exact(case, operands)
    return Candidate("right", lambda: runner.time.sleep(seconds), lambda: y, 5e-6, ours)


def wrong(case, operands):
    return Candidate("wrong", lambda: None, lambda: gate.exact(case, operands) + 1, 1e-3)


def refusing(case, operands):
    raise CannotRun("not this one")


def broken(case, operands):
    raise IndexError("list index out of range\nmore lines")


def rows_of(**makers):
    return {row.candidate: row for row in runner.run_case(CASE, makers, SETTINGS, engine.host_block, lambda text: None)}


def test_only_right_answers_get_a_time():
    rows = rows_of(right=right, wrong=wrong)
    assert rows["right"].median_s > 0
    assert rows["right"].error_class == "accurate"
    assert rows["wrong"].median_s is None
    assert "against float64" in rows["wrong"].status


def test_refusals_and_failures_are_told_and_stop_nobody():
    rows = rows_of(refusing=refusing, broken=broken, right=right)
    assert rows["refusing"].status == "not this one"
    assert rows["broken"].status == "IndexError: list index out of range"
    assert rows["right"].status == "measured"


def test_a_peer_that_is_right_but_slow_is_not_waited_for(monkeypatch):
    settings = engine.Settings(rounds=1, block_seconds=1e-4, most_seconds=0.01)
    makers = {"slow": lambda case, operands: right(case, operands, seconds=0.02)}
    (row,) = runner.run_case(CASE, makers, settings, engine.host_block, lambda text: None)
    assert row.status == "right, but slow: one call took over 0.01 s"


def test_ours_is_timed_however_slow():
    settings = engine.Settings(rounds=1, block_seconds=1e-4, most_seconds=0.01)
    makers = {"right": lambda case, operands: right(case, operands, seconds=0.02, ours=True)}
    (row,) = runner.run_case(CASE, makers, settings, engine.host_block, lambda text: None)
    assert row.status == "measured"


def test_pytorch_is_not_asked_for_filters_that_take_it_minutes():
    case = cases.filter_case("2160p", 1, 31)
    with pytest.raises(CannotRun, match="minutes"):
        peers.pytorch_filter(case, None, 1)
