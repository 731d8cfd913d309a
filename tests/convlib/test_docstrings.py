"""The examples in public docstrings are run as they stand."""

import doctest
from importlib import import_module

import pytest

from convlib import tuned_times

MODULES = (
    "convlib",
    "convlib.operations",
    "convlib.gradients",
    "convlib.plan",
    "convlib.explain",
    "convlib.layers",
    "convlib.device",
    "convlib.cupy_cudnn",
    "convlib.signal",
    "convlib.tuning",
)

NEEDING = {"convlib.torch": "torch", "convlib.jax": "jax", "convlib.onnx": "onnx", "convlib.dask": "dask"}


@pytest.mark.parametrize("name", [*MODULES, *NEEDING])
def test_examples_in_docstrings_give_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_times, "user_cache_path", lambda program: tmp_path / program)
    if name in NEEDING:
        pytest.importorskip(NEEDING[name], reason=f"{NEEDING[name]} is not installed")
    found = doctest.testmod(import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_every_public_function_with_arrays_shows_an_example():
    import convlib.signal

    for function in (
        convlib.conv2d,
        convlib.plan,
        convlib.explain,
        convlib.tune,
        convlib.signal.convolve2d,
        convlib.signal.correlate2d,
    ):
        assert ">>>" in function.__doc__
