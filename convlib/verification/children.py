"""The children that check rows: a process for each kernel, or one, with a time limit, and another after each fault."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ..device import Device
from .rows import Row

CHILD = (sys.executable, "-P", "-m", "convlib.verification.child")
SANITIZER = ("compute-sanitizer", "--error-exitcode=99")
STARTING = "before its first problem"


class OutOfTime(Exception):
    """The settings' deadline passed while a row was being checked; nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row. problems: how many were right; problem, fault: the first that was not, None if all were.

    before: whether an interrupted run had found it.
    """

    row: Row
    problems: int
    seconds: float
    problem: str | None = None
    fault: str | None = None
    before: bool = False

    @property
    def passed(self) -> bool:
        return self.fault is None


@dataclass(frozen=True, slots=True)
class Settings:
    """limit: the most seconds from one sign of life of a child to its next, compilation included.

    together: one process for several kernels, which starts sooner than several. deadline: when all must end, as
    time.monotonic() counts. command: what starts a child, CHILD if it is not given.
    """

    extent: str = "full"
    sanitize: bool = False
    together: bool = False
    limit: float = 300.0
    deadline: float = math.inf
    command: tuple[str, ...] | None = None


def checked(
    rows: list[Row], place: Device, settings: Settings, note: Callable[[str], None] = lambda text: None
) -> Iterator[Result]:
    """Results of `rows` in their order, as a rule each kernel in its own process. `note` hears what is being checked.

    A child that crashes, hangs or finds a fault costs one row; another goes on with the next. Under the sanitizer every
    row has its own, since only its exit code says what it found. Raises OutOfTime at the settings' deadline.
    """
    settings = replace(settings, sanitize=settings.sanitize and place.kind == "cuda")
    for _, of_kernel in groupby(rows, key=lambda row: settings.together or row.kernel):
        left = list(of_kernel)
        while left:
            for result in from_child(left[:1] if settings.sanitize else tuple(left), place, settings, note):
                left.remove(result.row)
                yield result


def from_child(rows, place, settings, note) -> Iterator[Result]:
    """Results up to the first fault, at least one."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(rows, place, settings, Path(folder))
        try:
            for row in rows:
                result = child.result(row, note)
                if result.passed and settings.sanitize:
                    result = replace(result, fault=child.complaint(), problem="one of them")
                yield result
                if not result.passed:
                    return
        finally:
            child.kill()


class Process:
    """A process that is given one line of JSON and answers in lines of JSON; how it ended, where it ended too early."""

    def __init__(self, command, job, folder, environment):
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        self.answers = queue.Queue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()
        with contextlib.suppress(BrokenPipeError):  # then `ending` says why
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def listen(self):
        with self.process.stdout:
            for line in self.process.stdout:
                with contextlib.suppress(ValueError):  # half a line, of a child that was killed while it wrote
                    self.answers.put(json.loads(line))
        self.answers.put(None)

    def ending(self) -> str:
        """How the process ended before it had said all, with the last line it wrote."""
        code = self.process.wait()
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the process {how}" + (f": {lines[-1].strip()}" if lines else "")

    def kill(self):
        """End it and what it started, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        self.listener.join()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Child(Process):
    """A process that checks rows (child.py)."""

    def __init__(self, rows, place, settings, folder):
        self.limit, self.deadline = settings.limit, settings.deadline
        self.log = folder / "sanitizer"
        sanitizer = (*SANITIZER, f"--log-file={self.log}") if settings.sanitize else ()
        job = {"device": name_for_child(place), "extent": settings.extent}
        job["rows"] = [[row.kernel, row.pass_, row.dtype] for row in rows]
        super().__init__([*sanitizer, *(settings.command or CHILD)], job, folder, environment(place))

    def result(self, row, note) -> Result:
        """What it says of `row`, or what its silence says."""
        start, right, problem = time.monotonic(), 0, None
        while True:
            left = max(self.deadline - time.monotonic(), 0)
            try:
                answer = self.answers.get(timeout=min(self.limit, left))
            except queue.Empty:
                if left < self.limit:
                    raise OutOfTime(f"{row.key}: {problem or STARTING}") from None
                fault = f"did not return within {self.limit:g} s"
                return Result(row, right, time.monotonic() - start, problem or STARTING, fault)
            if answer is None:
                return Result(row, right, time.monotonic() - start, problem or STARTING, self.ending())
            if answer["row"] != row.key:
                raise RuntimeError(f"{row.key} was awaited, the child answered about {answer['row']}")
            if "passed" in answer:
                return Result(row, answer["passed"], time.monotonic() - start)
            if "fault" in answer:
                return Result(row, right, time.monotonic() - start, problem, answer["fault"])
            right += problem is not None
            problem = answer["problem"]
            note(f"{row.key}: {problem}")

    def complaint(self) -> str | None:
        """What the sanitizer has to say once the child is done; None if nothing."""
        code = self.process.wait()
        if code == 0:
            return None
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        found = [line.strip("= ") for line in lines if "ERROR SUMMARY" not in line and line.strip("= ")]
        return f"{SANITIZER[0]}, exit code {code}: {'; '.join(found[:3])}"


def environment(place):
    """The child's: convlib from where this one is, and the emulator where it is to run there."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {"PYTHONPATH": os.pathsep.join(paths), "CONVLIB_EMULATE": "0"}
    if place.kind == "emulator":
        major, minor = place.compute_capability
        added |= {"CONVLIB_EMULATE": "1", "CONVLIB_EMULATE_TARGET": str(10 * major + minor)}
    return os.environ | added


def name_for_child(place) -> str:
    """As child.py reads it."""
    return f"cuda:{place.index}" if place.kind == "cuda" else place.kind
