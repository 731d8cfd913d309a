"""Every layer beside cuDNN and PyTorch on the GPU: the visit's second stage.

Layers are measured in a process of its own (layer_child.py), since an illegal address poisons the CUDA context of
whoever launched it, and a kernel that never returns would take all the time there is: both cost one layer here.
"""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from convlib import layers
from convlib.verification.children import OutOfTime, Process

from . import cases
from .results import Row

CHILD = (sys.executable, "-m", "benchmarks.layer_child")
CHECKOUT = Path(__file__).parents[1]
LIMIT = 120.0  # seconds from one sign of life to the next: a first launch compiles


class Broken(Exception):
    """No layer can be measured here, and why."""


def all_cases() -> list[cases.Case]:
    """One layer of each kind first, then every layer of every network."""
    quick = cases.quick_cases()
    return quick + [case for name in layers.networks() for case in cases.cases(name) if case not in quick]


def measured(
    wanted: list[list[str]], rehearse: bool, deadline: float, note: Callable[[str], None] = lambda text: None
) -> Iterator[dict]:
    """What a child says of these cases (suite and layer), in their order; notes go to `note`.

    A case at which a child crashed or hung is {"case", "failed"}, and another child goes on with the next. Raises
    OutOfTime at the deadline, and Broken where a child ends before its first case.
    """
    left = list(wanted)
    while left:
        with tempfile.TemporaryDirectory() as folder:
            child = Process(CHILD, {"cases": left, "rehearse": rehearse}, Path(folder), environment())
            try:
                for answer in answers(child, deadline, note):
                    if "case" in answer:
                        left.remove(answer["case"])
                    yield answer
                    if not left:
                        return
            except Died as reason:
                yield {"case": left.pop(0), "failed": str(reason)}
            finally:
                child.kill()


class Died(Exception):
    """How a child ended in the middle of a case."""


def answers(child, deadline, note) -> Iterator[dict]:
    heard = None
    while True:
        left = max(deadline - time.monotonic(), 0)
        try:
            answer = child.answers.get(timeout=min(LIMIT, left))
        except queue.Empty:
            if left < LIMIT:
                raise OutOfTime(heard or "the layers") from None
            raise Died(f"did not return within {LIMIT:g} s; last heard: {heard}") from None
        if answer is None and heard is None:
            raise Broken(child.ending())
        if answer is None:
            raise Died(f"{child.ending()}; last heard: {heard}")
        if "note" in answer:
            heard = answer["note"]
            note(heard)
        else:
            heard = heard or "the card"
            yield answer


def environment() -> dict[str, str]:
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def failed_row(suite: str, name: str, reason: str) -> Row:
    """In the place of a case's rows where the process that measured it did not survive."""
    case = next(case for case in cases.cases(suite) if case.name == name)
    return Row(suite, name, case.count, case.problem.macs, 0, "the whole case", False, status=reason)
