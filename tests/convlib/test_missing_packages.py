"""An adapter whose package is not installed says which it needs, and how to get it."""

import sys
from importlib import import_module

import pytest

HIDDEN = {"torch": "torch", "dask": "dask.array", "jax": "jax", "onnx": "onnx.reference.op_run", "keras": "keras"}


@pytest.mark.parametrize("adapter", HIDDEN)
def test_what_is_missing_is_named_with_how_to_install_it(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, HIDDEN[adapter], None)
    monkeypatch.delitem(sys.modules, f"convlib.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"^convlib.{adapter}: needs .*pip install") as raised:
        import_module(f"convlib.{adapter}")
    assert adapter in str(raised.value).partition("pip install")[2]
