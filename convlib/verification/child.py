"""The process in which kernels are checked: python -m convlib.verification.child, started by children.py.

It reads one line of JSON, {"device", "extent", "rows": [[kernel, pass, dtype], ...]}, and answers in lines of JSON:

    {"row": "cupy_raw.tiled forward float32", "problem": "3x3_same"}    about to be checked
    {"row": ..., "passed": 31}                                          all of them
    {"row": ..., "problem": "3x3_same", "fault": "a wrong value: ..."}

Every line restarts the parent's clock. After a fault the child ends: memory or the GPU's context may be damaged. Should
the parent die, it ends too.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import numpy as np

from .. import device, device_arrays, dispatch


def main():
    sys.exit(0 if work(*job_and_answers()) else 1)


def job_and_answers():
    """The job on standard input, and what writes an answer's facts; from here on this process ends with its parent."""
    answers = own_stdout()
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_the_parent, daemon=True).start()

    def say(**facts):
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    return job, say


def work(job, say) -> bool:
    """Check the rows of `job` up to the first fault; whether there was none."""
    from . import checks, rows

    place = device_called(job["device"])
    todo = [rows.Row(*row) for row in job["rows"]]
    if place.kind == "cuda":  # where another process may have the GPU for itself, no kernel is to blame
        with device_arrays.current(dispatch.family_of(todo[0].kernel), place):
            checks.on_gpu(np.zeros(1, np.uint8), place)
    for one in todo:
        row = one.key
        cases = rows.served(one.kernel, one.pass_, one.dtype, place, job["extent"])
        for case in cases:
            say(row=row, problem=case.name)
            try:
                checks.check(one.kernel, case, one.pass_, place)
            except Exception as error:  # whatever a kernel or its library raises is the kernel's fault here
                say(row=row, problem=case.name, fault=checks.told(error))
                return False
        say(row=row, passed=len(cases))
    return True


def device_called(text):
    return device.emulator() if text == "emulator" else device.named(text)


def own_stdout():
    """The pipe to the parent, for this file alone: what anybody else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def end_with_the_parent():
    """The parent never closes stdin: its end is the parent's. Not through sys.stdin: Python wants its lock at exit."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
