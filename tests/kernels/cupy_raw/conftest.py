"""What needs NVRTC, for tests that stand beside others which need none; they alone are skipped where it is missing."""

import pytest


@pytest.fixture
def through_nvrtc():
    from tests.kernels.cupy_raw import through_nvrtc  # skips who imports it

    return through_nvrtc


@pytest.fixture
def in_emulator(monkeypatch):
    """Launches go to the emulator: races, bounds, uninitialised reads and every output written once are checked."""
    from tests.kernels.cupy_raw import in_emulator

    monkeypatch.setenv("CONVLIB_EMULATE", "1")
    return in_emulator
