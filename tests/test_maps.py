"""The maps of the package and of its kernels name every file that they are of, and none that is not there."""

import re
from pathlib import Path

import pytest

from convlib import dispatch

ROOT = Path(__file__).parents[1]


def test_every_kernel_has_its_row_and_no_other_has():
    rows = re.findall(r"^\| `(\w+)/(\w+)` \|", (ROOT / "kernels" / "README.md").read_text(), re.MULTILINE)
    assert sorted(map(".".join, rows)) == sorted(dispatch.KERNELS)


@pytest.mark.parametrize("folder", ["convlib", "kernels/numba_cpu"])
def test_every_file_can_be_found_and_no_other_is_named(folder):
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / folder / "README.md").read_text()))
    assert named == {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
