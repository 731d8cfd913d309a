"""The example for each array library: what ran, what did not and why, and what a wrong result does."""

import numpy as np
import pytest
from click.testing import CliRunner

import convlib
from convlib.examples import array_libraries


def run(code=0):
    result = CliRunner().invoke(array_libraries.main)
    assert result.exit_code == code, result.output
    return {line[:14].strip(): line[15:] for line in result.output.splitlines()}


def test_every_library_has_run_or_says_why_not():
    lines = run()
    assert set(lines) == set(array_libraries.EXAMPLES)
    assert lines["NumPy"].startswith("numpy.ndarray (1, 8, 32, 32), ")
    for text in lines.values():
        assert text.startswith("not run: ") or text.endswith(" from SciPy")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(convlib, "info", lambda: {"gpus": []})
    pytest.importorskip("numba.cuda")
    with pytest.raises(array_libraries.NotHere, match="no GPU is visible"):
        array_libraries.numba()


def test_a_wrong_result_ends_in_code_1(monkeypatch):
    monkeypatch.setitem(array_libraries.EXAMPLES, "NumPy", lambda: np.zeros((1, 8, 32, 32), np.float32))
    assert run(code=1)["NumPy"].endswith("1.0e+00 from SciPy  WRONG")


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    def missing():
        import a_library_that_is_not_installed  # noqa: F401

    monkeypatch.setitem(array_libraries.EXAMPLES, "CuPy", missing)
    assert run()["CuPy"] == "not run: a_library_that_is_not_installed is not installed"
