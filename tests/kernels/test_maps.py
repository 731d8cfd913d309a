"""The maps of the kernels name every kernel and, on the CPU, every file."""

import re
from pathlib import Path

from convlib import dispatch

KERNELS = Path(__file__).parents[2] / "kernels"


def test_every_kernel_has_its_row_and_no_other_has():
    rows = re.findall(r"^\| `(\w+)/(\w+)` \|", (KERNELS / "README.md").read_text(), re.MULTILINE)
    assert sorted(map(".".join, rows)) == sorted(dispatch.KERNELS)


def test_every_file_of_the_cpu_can_be_found_and_no_other_is_named():
    named = set(re.findall(r"`(\w+\.py)`", (KERNELS / "numba_cpu" / "README.md").read_text()))
    assert named == {path.name for path in (KERNELS / "numba_cpu").glob("*.py")} - {"__init__.py"}
