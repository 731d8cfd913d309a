"""Memory that conv2d takes beyond its arguments and its result: the peak of the resident set in a new process.

The process runs the case once for everything that stays (code, thread stacks), gives its scratch memory back, and runs
it again: what the peak then rises above is workspace and packed weights. Linux only: it reads and resets VmHWM.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .cases import Case

CHECKOUT = Path(__file__).parents[1]
MEASURE = """
import sys
from pathlib import Path
import numpy as np, convlib
from benchmarks import cases, ours
from convlib import workspace

def kilobytes(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])

suite, name = sys.argv[1:]
case = next(case for case in cases.cases(suite) if case.name == name)
candidate = ours.conv2d(case, cases.operands(case), ours.host())
candidate.call()
workspace.held.memory = None
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
candidate.call()
print(max(kilobytes("VmHWM") - before, 0) * 1024)
"""


def extra_bytes(case: Case) -> int:
    """Peak resident bytes of one conv2d call beyond what was there before it."""
    command = [sys.executable, "-c", MEASURE, case.suite, case.name]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed is given back
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
