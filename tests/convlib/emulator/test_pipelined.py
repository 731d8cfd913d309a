"""A pipelined product on tensor cores (pipelined/product.cu) is clean, and each fault planted in it is found.

The faults are those that such kernels really have: a wait that is missing or one too weak, a barrier, a swizzle on one
side only, addresses and sizes of copies, registers of a fragment in the wrong order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convlib import compiling, emulator
from convlib.emulator import profile
from convlib.emulator.memory import Tracked
from convlib.strided import empty_aligned

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")

SOURCE = (Path(__file__).parent / "pipelined" / "product.cu").read_text()
M, N, K = 100, 136, 152  # two blocks by three, five tiles of k, all of them cut off


def bfloat16(values):
    return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


STORED = {"f16": lambda values: values.astype(np.float16).view(np.uint16), "bf16": bfloat16}


def aligned(values):
    array = empty_aligned(values.shape, values.dtype)
    array[...] = values
    return array


def run(source, target=80, type_="f16", checks=True):
    """The report of product.cu on small integers, so that every sum is exact; whether the result is right."""
    options = ("--std=c++17", f"-arch=compute_{target}", "-lineinfo", *(["-DBFLOAT16"] if type_ == "bf16" else []))
    ptx = compiling.through_nvrtc(source, "product.cu", options)[0]
    random = np.random.default_rng(0)
    a, b = random.integers(-4, 5, (M, K)), random.integers(-4, 5, (K, N))
    c = np.full((M, N), np.nan, np.float32)
    arrays = aligned(STORED[type_](a)), aligned(STORED[type_](b)), c
    sizes = (np.int32(M), np.int32(N), np.int32(K))
    report = emulator.launch(
        ptx, "product", (-(-N // 64), -(-M // 64)), 128, (*arrays, *sizes), checks=checks, tracked=(Tracked("c", c),)
    )
    return report, np.array_equal(c, a @ b)


@pytest.mark.parametrize("type_", STORED)
@pytest.mark.parametrize("target", [80, 90, 120])
def test_the_right_kernel_is_clean(target, type_):
    report, right = run(SOURCE, target, type_)
    report.raise_if_faulty()
    assert right


def test_its_copies_and_fragments_meet_no_bank_conflicts():
    counters = run(SOURCE)[0].counters
    assert counters.cost_per_request("shared", kind="ldmatrix") == 4  # matrices of 8 rows of 16 bytes
    assert counters.cost_per_request("shared", kind="copy") == 4
    assert counters.cost_per_request("global", kind="copy") <= 16


def test_its_multiply_adds_are_counted():
    counters = run(SOURCE)[0].counters
    blocks, tiles = 6, 5
    assert counters.mma_multiply_adds == blocks * tiles * 64 * 64 * 32
    assert counters.warps["mma"] == counters.mma_multiply_adds // (16 * 8 * 16)
    assert counters.warps["copy"] == blocks * tiles * 4 * 4


def planted(*replacements):
    source = SOURCE
    for before, after in replacements:
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    return source


WAIT = 'asm volatile("cp.async.wait_group 1;" ::: "memory");'
NEXT_COPIES = SOURCE[SOURCE.index("        const int next") : SOURCE.index("    }\n\n    for (int i = 0; i < 2; ++i)")]
FAULTS = {
    "wait dropped": ({"copy in flight"}, (WAIT, "")),
    "one group too many left in flight": ({"copy in flight"}, ("wait_group 1", "wait_group 2")),
    "a stage too few": ({"copy in flight"}, ("tile % STAGES], *b_tile", "tile % 2], *b_tile")),
    "barrier dropped": ({"race: read after write", "race: write after read"}, ("__syncthreads();", "")),
    "next copies before the barrier": (
        {"race: write after read"}, (NEXT_COPIES, ""), (WAIT, f"{NEXT_COPIES}{WAIT.replace('1', '2')}"),
    ),
    "misaligned source": ({"misaligned"}, ("m * K + k : 0)", "m * K + k + 1 : 0)")),
    "misaligned destination": (
        {"misaligned", "uninitialised read"}, ("a_tile + place_a(row, chunk)", "a_tile + place_a(row, chunk) + 4"),
    ),
    "misaligned matrix row": ({"misaligned"}, ("2 * step + lane / 16);", "2 * step + lane / 16) + 4;")),
    "more source than copied": ({"source size"}, ("inside ? 16 : 0", "inside ? 32 : 0")),
    "source past the end": ({"out of bounds"}, ("inside ? m * K + k : 0), inside", "m * K + k), true")),
    "half a warp": ({"divergent warp"}, ("i < 2; ++i) {\n", "i < 2 && lane < 16; ++i) {\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(name):
    kinds, *replacements = FAULTS[name]
    report, _ = run(planted(*replacements))
    assert report.kinds() == kinds, report.listing()


WRONG_RESULTS = {
    "swizzle on one side only": ("+ place_b(16 * step", "+ 64 * (lane % 16) + 0 * place_b(16 * step"),
    "another swizzle": ("place_a(row, chunk), a +", "place_a(row, chunk ^ 1), a +"),
    "half of the source": ("inside ? 16 : 0", "inside ? 8 : 0"),
    "fragment rows swapped": ('"r"(a_parts[i][0]), "r"(a_parts[i][1])', '"r"(a_parts[i][1]), "r"(a_parts[i][0])'),
    "not transposed": ("x4.trans.shared", "x4.shared"),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_a_planted_mistake_gives_a_wrong_result(name):
    report, right = run(planted(WRONG_RESULTS[name]))
    assert not right
    report.raise_if_faulty()


@pytest.mark.parametrize("name", ["wait dropped", "one group too many left in flight"])
def test_a_missing_wait_gives_a_wrong_result_even_without_checks(name):
    report, right = run(planted(*FAULTS[name][1:]), checks=False)
    assert not report.faults
    assert not right


@pytest.mark.parametrize("matrix", ["a", "b"])
def test_without_a_swizzle_bank_conflicts_are_counted(matrix):
    before = {"a": "(chunk ^ (row >> 1 & 3))", "b": "(chunk ^ (row & 7))"}[matrix]
    report, right = run(planted((before, "chunk")))
    report.raise_if_faulty()
    assert right
    worst = max(t.cost / t.requests for t in report.counters.traffic if t.kind == "ldmatrix")
    assert worst == {"a": 4 * 4, "b": 4 * 8}[matrix]  # rows of 64 bytes: 4 in one bank; of 128 bytes: all 8


def test_a_profile_names_the_copies_and_the_products():
    text = "\n".join(profile.launch_lines(run(SOURCE)[0]))
    for words in ("multiply-adds of mma        3,932,160", "shared copy     of 128 bits", "4.00 wavefronts each"):
        assert words in text
