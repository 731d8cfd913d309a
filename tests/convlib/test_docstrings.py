"""The examples in public docstrings are run as they stand."""

import doctest
from importlib import import_module

import pytest

import convlib
from convlib import tuned_times

MODULES = (
    "convlib",
    "convlib.operations",
    "convlib.gradients",
    "convlib.plan",
    "convlib.explain",
    "convlib.problem",
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


NO_EXAMPLE = {
    "UnsupportedError",  # an error
    "kernels",  # the package of kernels; convlib.explain has the function of that name, with its example
}


@pytest.mark.parametrize("name", sorted({*convlib.__all__} - NO_EXAMPLE))
def test_every_public_name_shows_an_example(name):
    assert ">>>" in getattr(convlib, name).__doc__


@pytest.mark.parametrize("name", ["convolve2d", "correlate2d"])
def test_scipys_functions_show_an_example(name):
    assert ">>>" in getattr(import_module("convlib.signal"), name).__doc__
