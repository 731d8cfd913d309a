"""Which GPU kernel has been verified on which device: no answer of an unverified one is believed.

A kernel's pass in one dtype is, on one GPU with one driver (verification/records.py),

    verified       found right, by `python -m convlib verify` or before its first use
    unverified     not checked yet, or changed since
    quarantined    found wrong

CONVLIB_TRUST says what to do about it: "verify" (the default) checks an unverified kernel before its first use, and
with it those that would be chosen next, in a child process; "verified" uses verified kernels only and checks nothing;
"all" believes everything. CPU kernels, the simulator's and the emulator's are believed without a record.

It is asked where dispatch chooses, and that answer is cached: later calls of the same problem cost nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from . import machine
from .device import Device
from .errors import UnsupportedError
from .problem import ConvProblem, check_choice
from .verification import checks, children, runs
from .verification.children import Result, Settings
from .verification.records import Entry, Records, since
from .verification.rows import Row, served

POLICIES = ("verify", "all", "verified")
DISTRUSTED = ("cuda",)
TOGETHER = 3  # kernels checked at once: the chosen one and its likely successors
LIMIT = 120.0  # seconds for one of their two problems, compilation included
WAIT = 600.0  # seconds for another process that is checking

known: dict[Device, dict[str, Entry]] = {}
warned: set[tuple[str, Device]] = set()
one_thread = threading.RLock()


class QuarantineWarning(UserWarning):
    """A kernel was found wrong on this GPU, and another runs in its place."""


def first_believed(names: list[str], problem: ConvProblem, place: Device) -> str:
    """The first of `names`, the kernels that can run `problem`, that is verified; checked now where need be.

    Raises UnsupportedError if none is.
    """
    policy = asked_policy()
    if place.kind not in DISTRUSTED or policy == "all":
        return names[0]
    with one_thread:
        for number, name in enumerate(names):
            if policy == "verify" and entry_of(name, problem, place) is None:
                check(names[number:], problem, place)
            entry = entry_of(name, problem, place)
            if entry is not None and entry.passed:
                return name
            if entry is not None and len(names) > 1:
                warn_once(name, entry, place)
    reasons = [f"{name}: {state_of(entry_of(name, problem, place))}" for name in names]
    raise UnsupportedError("\n  ".join([f"no kernel that could run this problem is verified on {place}:", *reasons]))


def first_expected(names: list[str], problem: ConvProblem, place: Device) -> str | None:
    """What `first_believed` is going to say if every unverified kernel turns out to be right; nothing is checked."""
    if asked_policy() == "all":
        return names[0]
    refused = ("quarantined", "unverified") if asked_policy() == "verified" else ("quarantined",)
    return next((name for name in names if not (state(name, problem, place) or "").startswith(refused)), None)


def state(name: str, problem: ConvProblem, place: Device) -> str | None:
    """What is on record of a kernel; None where none is needed, or where `place` stands for a GPU that is not here."""
    if place.kind not in DISTRUSTED or not is_here(place):
        return None
    return state_of(entry_of(name, problem, place))


def state_of(entry: Entry | None) -> str:
    if entry is None:
        return "unverified"
    when = since([entry])
    return f"verified {when}" if entry.passed else f"quarantined {when}: {entry.problem}: {entry.fault}"


def is_here(place: Device) -> bool:
    return place.kind != "cuda" or place in machine.visible_gpus()


def asked_policy() -> str:
    policy = os.environ.get("CONVLIB_TRUST", "verify")
    check_choice("CONVLIB_TRUST", policy, POLICIES)
    return policy


def warn_once(name, entry, place):
    if (name, place) not in warned:
        warned.add((name, place))
        warnings.warn(
            f"{name} was found wrong on {place} ({entry.problem}: {entry.fault}), so another kernel runs in its place; "
            f"please report what `python -m convlib verify --kernel {name}` prints",
            QuarantineWarning,
            stacklevel=3,
        )


# What is known


@cache
def records_of(place) -> Records:
    return Records(place)


def entry_of(name, problem, place) -> Entry | None:
    """What is known of this very kernel."""
    if place not in known:
        read_again(place)
    entry = known[place].get(row_of(name, problem).key)
    return entry if entry is not None and entry.is_about(name) else None


def row_of(name, problem) -> Row:
    return Row(name, problem.pass_, problem.dtype.name)


def read_again(place):
    """Others' findings beside those of this process, which it may have been unable to write."""
    known.setdefault(place, {}).update(records_of(place).entries())


# Checking


def check(names, problem, place):
    """Find out about the first of `names`, and about others of which nothing is known. One process at a time does."""
    if capturing(place):
        raise UnsupportedError(
            f"{names[0]} is not verified on {place} yet and cannot be while a stream is captured: call it once before, "
            "run `python -m convlib verify`, or set CONVLIB_TRUST=all"
        )
    with one_process(records_of(place).path):
        read_again(place)
        if entry_of(names[0], problem, place) is not None:
            return
        unknown = [row_of(name, problem) for name in names if entry_of(name, problem, place) is None][:TOGETHER]
        listed = ", ".join(row.kernel for row in unknown)
        print(f"convlib: first use of {listed} in {problem.dtype} on {place}: checking", file=sys.stderr)
        for result in found(unknown, place):
            entry = runs.entry_of(result, run="first use")
            known[place][result.row.key] = entry
            records_of(place).put(result.row.key, entry)


@contextlib.contextmanager
def one_process(path):
    """Wait for another process that is checking; where no lock can be had, go on without."""
    lock = FileLock(f"{path}.checking.lock", timeout=WAIT)
    with contextlib.suppress(OSError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def found(rows, place):
    """Results from children; from this process where no child can be started or have the GPU."""
    try:
        if not is_python(sys.executable):
            raise OSError("this Python runs inside another program")
        for result in children.checked(rows, place, Settings("two", together=True, limit=LIMIT)):
            if result.problem == children.STARTING:
                raise OSError(result.fault)
            rows = [row for row in rows if row != result.row]
            yield result
    except OSError as error:
        print(f"convlib: no child process could do it ({error}); values are checked in this process", file=sys.stderr)
        yield from (found_here(row, place) for row in rows)


def is_python(program) -> bool:
    """Whether to start it is to start Python, and not a program that Python is embedded in."""
    return Path(program or "").name.lower().startswith(("python", "pypy"))


def found_here(row, place) -> Result:
    start, cases = time.monotonic(), served(row.kernel, row.pass_, row.dtype, place, "two")
    for right, case in enumerate(cases):
        try:
            checks.check(row.kernel, case, row.pass_, place)
        except Exception as error:  # whatever a kernel or its library raises
            return Result(row, right, time.monotonic() - start, case.name, checks.told(error))
    return Result(row, len(cases), time.monotonic() - start)


def capturing(place) -> bool:
    """Whether CuPy's or PyTorch's current stream on `place` is being captured into a graph."""
    if place.kind != "cuda":
        return False
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return True
    return cupy is not None and cupy.cuda.get_current_stream(place.index).is_capturing()
