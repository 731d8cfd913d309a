"""CUDA C compiled as on a user's GPU: layers to compile for, and what every kernel's machine code must keep to."""

import re

import pytest

from convlib import compiling
from convlib.problem import make_problem, named_dtype

# Whoever imports this file is skipped with it.
pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
pytest.importorskip("nvidia", reason="cuobjdump and nvdisasm are not installed (extra emulate)")

CASES = {
    "3x3": ((8, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    "3x3_stride_2": ((8, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2, "activation": "silu"}),
    "3x3_large": ((8, 64, 112, 112), (64, 64, 3, 3), {"padding": 1}),
    "3x3_large_stride_2": ((32, 64, 112, 112), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
    "7x7_stride_2": ((1, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2, "activation": "relu"}),
    "1x1": ((8, 256, 56, 56), (64, 256, 1, 1), {"layout": "NHWC"}),
    "depthwise": ((8, 32, 112, 112), (32, 1, 3, 3), {"padding": 1, "groups": 32, "activation": "relu6"}),
    "image_filter": ((1, 1, 512, 512), (1, 1, 15, 15), {"padding": 7}),
}


def problem_of(case, dtype="float32"):
    x, w, keywords = CASES[case]
    if keywords.get("layout") == "NHWC":
        x = (x[0], *x[2:], x[1])
    return make_problem(x, w, named_dtype(dtype), **keywords)


def check(source, target, dtype):
    ptx, cubin = compiling.through_nvrtc(source.text(), source.file, compiling.nvrtc_options(source, target))
    assert re.search(rf"^\.target sm_{target}$", ptx, re.M)
    assert f".entry {source.function}(" in ptx
    if dtype != "float64":
        assert ".f64" not in ptx, "float64 arithmetic in a float32 kernel"
    used = compiling.resources(cubin)[source.function]
    assert used.stack == 0, f"{source.function} spills registers: {used}"
    assert used.local == 0
    system = 1024 if target >= 90 else 0  # cuobjdump counts what the system keeps in each block
    assert used.shared <= 48 * 1024 + system


def loads(loop, opcode):
    """How many of `opcode` the loop has, by width in bits."""
    found = {}
    for name, count in loop.items():
        if name.partition(".")[0] == opcode:
            width = next((part for part in name.split(".") if part in ("64", "128")), "32")
            found[width] = found.get(width, 0) + count
    return found
