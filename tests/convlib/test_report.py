"""The static report reads machine code rightly, and no kernel may lose what the committed baseline has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convlib import compiling, report
from convlib.emulator.profile import gpu_kernels
from tests.convlib.emulator.test_pipelined import SOURCE

for module, wheel in (("cuda.bindings.nvrtc", "NVRTC"), ("numba.cuda", "numba-cuda"), ("cupy", "CuPy")):
    pytest.importorskip(module, reason=f"{wheel} is not installed (extra cuda13)")
try:
    compiling.cuda_program("nvdisasm")
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

BASELINE = Path(__file__).parent / "report_baseline.csv"
GATED = (80, 120)  # one target of each compiler front end; the command compares all of them


@pytest.mark.parametrize("kernel", gpu_kernels())
def test_no_kernel_is_worse_than_the_baseline(kernel):
    """The baseline's own command is in its folder's history: python -m convlib report --csv report_baseline.csv."""
    rows = list(report.rows([kernel], GATED, ["float32"]))
    assert rows
    assert min(row.shared for row in rows) >= 0
    assert not report.losses(rows, report.read_csv(BASELINE))


# Of fused Winograd in float64: filters come in whole sectors by way of 72 bytes of shared memory a thread, more than
# these multiprocessors have for all their threads; splits are added by blocks of 64 threads, which are shared more
# evenly, and of which a multiprocessor of sm_86 holds 16.
FEWER_WARPS = {
    75: ["transform_filters float64 sm_75: 28 warps at once (limited by shared memory), were 32"],
    86: ["transform_filters float64 sm_86: 40 warps at once (limited by shared memory), were 48",
         "sum_splits float64 sm_86: 32 warps at once (limited by blocks), were 48"],
    89: ["transform_filters float64 sm_89: 40 warps at once (limited by shared memory), were 48"],
    120: ["transform_filters float64 sm_120: 40 warps at once (limited by shared memory), were 48"],
}  # fmt: skip


@pytest.mark.parametrize("target", compiling.TARGETS)
def test_fused_winograd_in_float64_is_worse_only_where_shared_memory_or_blocks_limit_it(target):
    rows = list(report.rows(["cupy_raw.winograd_fused"], [target], ["float64"]))
    assert rows
    found = report.losses(rows, report.read_csv(BASELINE))
    assert found == [f"cupy_raw.winograd_fused {what}" for what in FEWER_WARPS.get(target, [])]


def test_nothing_in_the_baseline_spills():
    assert not [row.key for row in report.read_csv(BASELINE) if row.stack]


ROW = report.Row("a.b", "f", "float32", 80, 256, 64, 0, 1024, 4, 32, 0.5, "registers", 100, 0.8, 0.1, 128.0, 32.0, 1.0,
                 0.3)  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [
    ({"stack": 8}, "8 bytes of stack"), ({"warps": 16}, "16 warps at once"), ({"fma_share": 0.7}, "fma_share"),
    ({"mma_share": 0.2}, "mma_share"),
    ({"issue_bound": 0.5}, "issue_bound"), ({"dtype": "float64"}, "not in the baseline"),
])  # fmt: skip
def test_a_loss_is_named(change, words):
    assert not report.losses([ROW], [ROW])
    (found,) = report.losses([dataclasses.replace(ROW, **change)], [ROW])
    assert words in found


def test_rows_survive_the_csv(tmp_path):
    report.write_csv(tmp_path / "rows.csv", [ROW])
    assert report.read_csv(tmp_path / "rows.csv") == [ROW]


@pytest.mark.parametrize(("target", "threads", "registers", "shared", "blocks", "limit"), [
    (80, 256, 32, 1024, 8, "threads"), (80, 256, 64, 1024, 4, "registers"), (80, 256, 65, 1024, 3, "registers"),
    (80, 64, 16, 0, 32, "threads"), (86, 64, 16, 1024, 16, "blocks"), (80, 128, 32, 49_152, 3, "shared memory"),
    (75, 1024, 64, 0, 1, "threads"), (86, 1024, 40, 0, 1, "threads"), (90, 128, 168, 33_000, 3, "registers"),
])  # fmt: skip
def test_occupancy(target, threads, registers, shared, blocks, limit):
    assert report.blocks_at_once(report.MULTIPROCESSORS[target], threads, registers, shared) == (blocks, limit)


SASS = """
.text.other:
        /*0000*/                   FFMA R1, R1, R1, R1 ;
.text.k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_1:
        /*0020*/                   LDS.64 R8, [R3] ;
        /*0030*/                   LDS R10, [R3+0x40] ;
        /*0040*/                   FFMA R4, R4, R8, R4 ;
        /*0050*/              @!P0 FFMA R5, R5, R8, R5 ;
        /*0060*/                   IADD3 R3, R3, 0x8, RZ ;
        /*0070*/               @P0 BRA `(.L_x_1) ;
        /*0080*/               @P1 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
"""


def test_the_main_loop_is_found_and_read():
    loop = report.Loop.of(SASS, "k")
    assert loop.size == 6
    assert loop.multiply_adds == 2
    assert loop.share(*report.INTEGER) == pytest.approx(1 / 6)
    assert loop.load_bits("LDS") == 48
    assert loop.load_bits("LDG") == 0
    assert loop.issue_bound(report.MULTIPROCESSORS[86]) == pytest.approx(2 / 6)
    assert loop.issue_bound(report.MULTIPROCESSORS[80]) == pytest.approx(4 / 6)


TENSOR_SASS = """
.text.k:
.L_x_0:
        /*0000*/                   LDSM.16.M88.4 R4, [R3] ;
        /*0010*/                   LDSM.16.MT88.2 R8, [R3+0x40] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R10], [R12.64], P1 ;
        /*0030*/                   HMMA.16816.F32.BF16 R20, R4, R8, R20 ;
        /*0040*/                   HMMA.16816.F32 R24, R4, R10, R24 ;
        /*0050*/                   HMMA.1688.F32 R28, R4, R10, R28 ;
        /*0060*/                   HMMA.1688.F32.TF32 R28, R4, R10, R28 ;
        /*0070*/                   HMMA.1684.F32.TF32 R28, R4, R10, R28 ;
        /*0080*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0090*/                   FFMA R4, R4, R8, R4 ;
        /*00a0*/               @P0 BRA `(.L_x_1) ;
"""


def test_tensor_cores_are_counted_and_bound_a_loop():
    """Of 16-bit multiply-adds 2,048 + 2,048 + 1,024, of TF32, at half the rate, 1,024 + 512: on sm_80 8,192 / 256."""
    loop = report.Loop.of(TENSOR_SASS, "k")
    assert loop.size == 9
    assert loop.share("HMMA") == pytest.approx(5 / 9)
    assert loop.multiply_adds == (2048 + 2048 + 1024 + 1024 + 512) / 32
    assert loop.load_bits("LDS", "LDSM") == (128 + 64) / 2
    assert loop.load_bits("LDG", "LDGSTS") == 128
    assert loop.wavefronts == 4 + 2 + 4
    assert loop.tensor_cycles(report.MULTIPROCESSORS[80]) == 32
    assert loop.tensor_cycles(report.MULTIPROCESSORS[90]) == pytest.approx(24.5, abs=0.01)
    assert loop.issue_bound(report.MULTIPROCESSORS[80]) == pytest.approx(32 / 40)  # four warps share shared memory
    assert report.Loop(loop.names[3:5]).issue_bound(report.MULTIPROCESSORS[80]) == 1
    slow = report.Loop([loop.names[3], *["IADD3"] * 15])
    assert slow.issue_bound(report.MULTIPROCESSORS[80]) == pytest.approx(8 / 16)
    assert slow.issue_bound(report.MULTIPROCESSORS[90]) == pytest.approx(6.126 / 16, abs=1e-3)


@pytest.mark.parametrize("target", [80, 90, 120])
@pytest.mark.parametrize(("options", "name"), [((), "HMMA.16816.F32"), (("-DBFLOAT16",), "HMMA.16816.F32.BF16")])
def test_the_assemblers_tensor_core_instructions_are_known(options, name, target):
    """The loop over k of the pipelined product: 2 steps of 2 x 4 products, 2 + 2 loads of four matrices in each."""
    options = ("--std=c++17", f"-arch=sm_{target}", *options)
    loop = report.Loop.of(compiling.sass(compiling.through_nvrtc(SOURCE, "product.cu", options)[1]), "product")
    assert loop.names.count(name) == 16
    assert loop.tensor == [(16 * 8 * 16, False)] * 16
    assert loop.load_bits("LDSM") == 128
    assert loop.load_bits("LDGSTS") == 128
    assert 0.2 < loop.issue_bound(report.MULTIPROCESSORS[target]) <= 1
