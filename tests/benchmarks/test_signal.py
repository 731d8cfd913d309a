"""The benchmark of convlib.signal: all candidates compute the same, a wrong one gets no time, bars read as written."""

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import engine, gate, signal
from benchmarks.__main__ import main

pytest.importorskip("scipy.signal", reason="SciPy is not installed (extra peers)")

PAIRS = signal.Work("pairs", signal.normal((3, 20, 24)), signal.normal((3, 5, 6)), "full")
IMAGE = signal.Work("image", signal.normal((1, 60, 50)), signal.normal((1, 13, 13)), "same")
QUICK = engine.Settings(rounds=1, block_seconds=0.001, settle=engine.at_once)


@pytest.mark.parametrize("work", [PAIRS, IMAGE], ids=lambda work: work.name)
def test_every_candidate_computes_the_same(work):
    candidates = [signal.ours(work), *(make(work, 1) for make in signal.peers(work).values())]
    assert len(candidates) >= 3
    for candidate in candidates:
        assert gate.check(candidate, signal.exact(work)) < 1e-6


def test_a_wrong_answer_gets_no_time(monkeypatch):
    honest = signal.signal.convolve2d
    monkeypatch.setattr(signal.signal, "convolve2d", lambda *arguments: honest(*arguments)[..., ::-1])
    with pytest.raises(gate.GateError, match="against float64"):
        signal.measure(IMAGE, QUICK, 1)


def test_a_candidates_ratio_is_its_time_over_ours():
    found = {one.candidate: one for one in signal.measure(PAIRS, QUICK, 1)}
    ours = found.pop(signal.OURS)
    assert ours.ratio == 1
    for one in found.values():
        assert one.ratio == pytest.approx(one.median_s / ours.median_s)


def test_bars_take_the_fastest_peer_of_every_image():
    ratios = {"pairs": {"SciPy convolve2d": 30, "SciPy fftconvolve": 2}, "a": {"x": 4, "y": 8}, "b": {"x": 2, "y": 1}}
    found = [
        signal.Measured(work, candidate, 1.0, 0.0, ratio)
        for work, peers in ratios.items()
        for candidate, ratio in {signal.OURS: 1, **peers}.items()
    ]
    assert [bar.value for bar in signal.bars(found)] == pytest.approx([30, 2, 1, np.sqrt(4)])


def test_the_command_writes_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "works", lambda: [PAIRS, IMAGE])
    monkeypatch.setattr(signal, "SETTINGS", QUICK)
    done = CliRunner().invoke(main, ["signal", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "SciPy fftconvolve" in done.output
    assert "geometric mean" in done.output
    assert '"candidate": "convlib.signal"' in (tmp_path / "signal.json").read_text()
