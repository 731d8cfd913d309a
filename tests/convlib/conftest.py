"""What every test of this folder begins with."""

import pytest

from convlib import gradients, operations


@pytest.fixture(autouse=True)
def no_call_is_remembered():
    """Of what other tests called: a call that came before goes past what a test puts in a kernel's place."""
    operations.known_calls.known.clear()
    gradients.known_calls.known.clear()
