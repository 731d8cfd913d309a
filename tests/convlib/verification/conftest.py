"""What these tests share: a folder of its own for the records of each, and whether there are compilers."""

import pytest

from convlib.verification import records


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where this test's records lie."""
    monkeypatch.setattr(records, "user_state_path", lambda name: tmp_path / name)
    return tmp_path / "convlib" / "verified"


@pytest.fixture
def compilers():
    for module in ("cuda.bindings.nvrtc", "cupy"):
        pytest.importorskip(module, reason="the CUDA compilers are not installed (extra cuda13)")
