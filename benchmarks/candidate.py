"""What is timed: a name, a call, and its answer as a NumPy array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case.

    call: what is timed; output: the answer of the last call as (N, K, P, Q), not timed; max_error: the largest
    norm-relative error with which it may be timed at all; ours: whether it is convlib's; kernel: which of our kernels.
    """

    name: str
    call: Callable[[], object]
    output: Callable[[], np.ndarray]
    max_error: float
    ours: bool = False
    kernel: str = ""


class CannotRun(Exception):
    """This peer cannot run this case; the message says why."""
