"""The table of opcodes: what is refused, and that every row is used by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from convlib.emulator import Refused, launch, opcodes
from tests.convlib.emulator.ptx import kernel
from tests.convlib.emulator.test_floats import APPROXIMATIONS, FLOAT_PAIRS
from tests.convlib.emulator.test_integers import BITWISE, INTEGER_PAIRS, UNARY


@pytest.mark.parametrize(("instruction", "named"), [
    ("frobnicate.s32 %r1, %r2", "frobnicate"),
    ("add.rn.s32 %r1, %r2, %r3", "rn"),
    ("add.cc.u32 %r1, %r2, %r3", "cc"),
    ("fma.rn.relu.f32 %f1, %f2, %f3, %f4", "relu"),
    ("fma.rz.f64 %g1, %g2, %g3, %g4", "rz"),
    ("mul.wide.u64 %d1, %d2, %d3", "wide"),
    ("add.f16 %h1, %h2, %h3", "f16"),
    ("ld.global.v16.f32 %f1, [%d1]", "v16"),
    ("atom.global.add.noftz.f16 %h1, [%d1], %h2", "f16"),
    ("cvt.rs.f32.f64 %f1, %g1", "rs"),
    ("cvt.rz.tf32.f32 %r1, %f1", "tf32"),
    ("cvt.rna.f16.f32 %h1, %f1", "rna"),
    ("setp.lt.f16 %p1, %h1, %h2", "f16"),
])  # fmt: skip
def test_refuses_by_name_what_it_does_not_know(instruction, named):
    with pytest.raises(Refused, match=named):
        launch(kernel(f"{instruction};", 0), "k", 1, 32, ())


# Executed by the kernels of planted/ and, cvta, ld.param and such, by the kernel that every test here runs.
ELSEWHERE = {"bar", "barrier", "shfl", "vote", "activemask", "atom", "red", "trap", "bra", "cvta", "ret"}


def test_every_opcode_of_the_table_is_used_by_a_test():
    """An opcode nobody tests would be an opcode nobody can trust."""
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    untested = {row.root for row in opcodes.TABLE if f"{row.root}." not in texts and f"{row.root};" not in texts}
    untested -= set(INTEGER_PAIRS) | set(FLOAT_PAIRS) | set(BITWISE) | set(UNARY) | set(APPROXIMATIONS) | ELSEWHERE
    assert not untested
