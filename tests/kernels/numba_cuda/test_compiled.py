"""The Numba CUDA kernels compiled for every target, from the launches that their own launchers make: no GPU needed."""

import re
from dataclasses import replace

import numpy as np
import pytest

from convlib import compiling, device, operands, report, strided
from convlib.compiling import TARGETS
from convlib.kernels.launching import recording
from convlib.verification.problems import Case, arrays_of, logical_arrays
from tests.kernels.cupy_raw.machine_code import main_loop, multiply_share

pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed (extra cuda13)")
pytestmark = pytest.mark.skipif(device.simulating(), reason="Numba simulates CUDA in this process")

FORWARD, BACKWARD = ("direct", "tiled", "im2col", "implicit_gemm"), ("weight_grad", "weight_grad_direct")
KERNELS = FORWARD + BACKWARD
# Of the main loop; sm_90 and sm_100 have the least, 0.78, 0.86, 0.85 and 0.70 (with the gathering, in one loop).
MULTIPLY_SHARE = {"tiled": 0.75, "im2col": 0.85, "weight_grad": 0.84, "implicit_gemm": 0.69}
PRODUCT = {"tiled": 0, "im2col": -1, "weight_grad": 0, "implicit_gemm": 1}  # which launch; splits are added afterwards
TYPICAL = Case(
    "typical", (2, 64, 28, 28), (128, 64, 3, 3), {"padding": 1, "activation": "relu"}, bias=True, residual=True
)


def kernel_named(name):
    from convlib import dispatch

    return dispatch.kernel(f"numba_cuda.{name}")


def launches_of(name, case, target):
    """What the kernel's launcher starts for `case` on a device of that target; nothing runs."""
    problem, gpu = case.problem(), device.emulator_of(target)
    x, w, bias, residual, out = arrays_of(case)
    x, w, bias, residual = (strided.as_storage(view) for view in logical_arrays(case, x, w, bias, residual))
    y = strided.as_storage(out.transpose(operands.FROM_LAYOUT[problem.layout]))
    kernel = kernel_named(name)
    given = (x, w, y, bias, residual)
    if name in BACKWARD:
        problem, given = replace(problem, pass_="weight_grad"), (x, y, w)
    workspace = np.empty(kernel.workspace_bytes(problem, gpu), np.uint8)
    with recording() as launches:
        kernel.run(problem, gpu, *given, workspace=workspace)
    return launches


def signature_of(launch):
    from numba import typeof

    return tuple(typeof(arg) for arg in launch.args)


def assert_fits(launch, target):
    """Compiled for that target, in registers and static shared memory that a block of that size may have."""
    cubin = compiling.numba_cubin(launch.kernel, signature_of(launch), target)
    (found,) = compiling.resources(cubin).values()
    assert found.stack == 0, f"{found.stack} bytes of stack: registers spilled or arrays in local memory"
    assert found.local == 0
    assert found.shared <= 49_152
    threads = launch.block[0]
    assert -(-found.registers // 8) * 8 * threads <= 65_536
    return cubin


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_every_target_without_spills_or_double_precision(name, target):
    launches, cubins = launches_of(name, TYPICAL, target), []
    assert launches
    for launch in launches:
        ptx = compiling.numba_ptx(launch.kernel, signature_of(launch), target)
        assert f".target sm_{target}" in ptx
        assert ".f64" not in ptx
        assert ".local" not in ptx
        cubins.append(assert_fits(launch, target))
    if name in MULTIPLY_SHARE:
        product = cubins[PRODUCT[name]]
        loop = main_loop(compiling.sass(product))
        assert multiply_share(loop) >= MULTIPLY_SHARE[name], loop
        assert any(re.fullmatch(r"LDS(\.U)?\.128", opcode) for opcode in loop), "weights come one by one"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_every_type(name, dtype):
    case = Case("types", TYPICAL.x, TYPICAL.w, {"padding": 1, "activation": "silu"}, bias=True, dtype=dtype)
    for launch in launches_of(name, case, 75):
        cubin = assert_fits(launch, 75)
        if dtype != "float64":
            assert not re.search(r"\bD(ADD|MUL|FMA)\b", compiling.sass(cubin))


@pytest.mark.parametrize(
    ("window", "keywords"),
    [
        ((1, 1), {}),
        ((7, 7), {"stride": 2, "padding": 3}),
        ((11, 11), {"stride": 4}),
        ((3, 3), {"dilation": 6, "padding": 6}),
        ((15, 15), {"padding": 7}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["direct", "tiled", "implicit_gemm", *BACKWARD])  # im2col's product knows no window
def test_compiles_for_other_windows(name, window, keywords):
    case = Case("window", (1, 16, 56, 56), (64, 16, *window), keywords)
    for launch in launches_of(name, case, 80):
        assert_fits(launch, 80)


@pytest.mark.parametrize("target", [75, 90, 120])
@pytest.mark.parametrize("lanes", [(16, 16), (8, 8), (4, 16)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_tile_and_walk_of_the_implicit_product_compiles(lanes, layout, target, monkeypatch):
    implicit_gemm = kernel_named("implicit_gemm")
    for C, splits in ((3, 2), (20, 1), (64, 3)):
        x = (2, C, 28, 28) if layout == "NCHW" else (2, 28, 28, C)
        case = Case("walk", x, (130, C, 3, 3), {"layout": layout})
        cut = implicit_gemm.cut_of(case.problem(), implicit_gemm.tile_of(case.problem(), lanes), splits)
        monkeypatch.setattr(implicit_gemm, "cut_for", lambda problem, device, cut=cut: cut)
        _, *launches = launches_of("implicit_gemm", case, target)
        assert len(launches) == (1 if splits == 1 else 2), "the product, and what adds its parts"
        cubins = [assert_fits(launch, target) for launch in launches]
        for cubin in cubins:
            assert not re.search(r"\bD(ADD|MUL|FMA|SETP)\b", compiling.sass(cubin)), "mixed integers become float64"
        (product,) = compiling.resources(cubins[0]).values()
        has, threads = report.MULTIPROCESSORS[target], launches[0].block[0]
        assert report.blocks_at_once(has, threads, product.registers, shared=0)[0] >= cut.blocks_per_sm, product


def test_every_block_of_tiled_compiles(monkeypatch):
    tiled = kernel_named("tiled")
    monkeypatch.setattr(tiled, "plan_for", tiled.plan_for.__wrapped__)
    for block in tiled.BLOCKS:
        monkeypatch.setattr(tiled, "BLOCKS", (block,))
        (launch,) = launches_of("tiled", TYPICAL, 80)
        assert launch.block == (block.threads, 1, 1)
        assert_fits(launch, 80)
