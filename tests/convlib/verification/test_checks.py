"""verify's checks: arrays cross to a GPU and back, stray writes are found, every kernel has its problems."""

import contextlib
import ctypes
import sys
import types

import numpy as np
import pytest

from convlib import device, dispatch, machine, strided
from convlib.device import Device
from convlib.kernels import launching
from convlib.kernels.numba_cpu import target
from convlib.kernels.numba_cpu.channel_pairs import multiplies_pairs
from convlib.problem import DTYPES
from convlib.verification import checks, problems, rows
from tests.kernels.cupy_raw import on_cpu


def stand_in_cupy():
    """The part of CuPy that carries bytes to a GPU and back, and makes arrays of addresses there."""

    def asarray(flat):
        memory = strided.empty_aligned(flat.shape, np.uint8)
        memory[:] = flat
        pointer = types.SimpleNamespace(ptr=problems.address(memory))
        return types.SimpleNamespace(data=pointer, get=memory.copy, memory=memory)

    def ndarray(shape, dtype, pointer, strides):
        start, size, _ = pointer.memory
        everything = np.frombuffer((ctypes.c_char * size).from_address(start), np.uint8)
        return np.ndarray(shape, dtype, everything, pointer.offset, strides)

    cupy = types.ModuleType("cupy")
    cupy.asarray, cupy.ndarray = asarray, ndarray
    cupy.cuda = types.SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(),
        UnownedMemory=lambda start, size, owner, index: (start, size, owner),
        MemoryPointer=lambda memory, offset: types.SimpleNamespace(memory=memory, offset=offset),
    )
    return cupy


@pytest.fixture
def gpu(monkeypatch):
    if not on_cpu.available():
        pytest.skip("g++ is not installed")
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy())
    monkeypatch.setattr(machine, "installed", lambda package: True)
    with on_cpu.kernels_on_cpu():
        yield Device("cuda", name="a stand-in", compute_capability=(8, 0), sm_count=108)


@pytest.mark.parametrize("name", ["cupy_raw.direct", "cupy_raw.implicit_gemm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_cross_to_a_gpu_and_back_with_their_guards(name, dtype, gpu):
    for case in problems.cases_for("cuda", dtype):
        if case.name in ("slices", "nhwc", "negative_strides"):
            checks.check(name, case, "forward", gpu)


@pytest.mark.parametrize(("argument", "at", "fault"), [
    (2, lambda y: np.lib.array_utils.byte_bounds(y)[1], "written beside the result: 0 bytes past its end"),
    (2, lambda y: np.lib.array_utils.byte_bounds(y)[0] - 1, "written beside the result: 1 bytes before"),
    (0, lambda x: np.lib.array_utils.byte_bounds(x)[0], "x was written: at byte 0"),
    (1, lambda w: np.lib.array_utils.byte_bounds(w)[1], "w was written: 0 bytes past its end"),
    (3, lambda bias: np.lib.array_utils.byte_bounds(bias)[0], "bias was written: at byte 0"),
])  # fmt: skip
def test_a_stray_write_on_a_gpu_is_found(argument, at, fault, gpu):
    def launch(kernel, grid, block, args, shared_bytes, stream):
        on_cpu.run_on_cpu(kernel, grid, block, args, shared_bytes, stream)
        ctypes.c_ubyte.from_address(at(args[argument])).value ^= 1

    case = next(case for case in problems.TINY if case.name == "3x3_same")
    with launching.through(launch), pytest.raises(checks.Fault, match=fault):
        checks.check("cupy_raw.direct", case, "forward", gpu)


@pytest.mark.parametrize(("name", "function", "role"), [
    ("cupy_raw.im2col", "pack_weights", "workspace"), ("cupy_raw.implicit_gemm", "pack_filters", "packed weights"),
])  # fmt: skip
def test_a_stray_write_beside_what_a_kernel_lays_aside_is_found(name, function, role, gpu):
    def launch(kernel, grid, block, args, shared_bytes, stream):
        on_cpu.run_on_cpu(kernel, grid, block, args, shared_bytes, stream)
        if kernel.function == function:
            ctypes.c_ubyte.from_address(problems.address(args[1]) - 5).value ^= 1

    case = next(case for case in problems.TINY if case.name == "3x3_same")
    with launching.through(launch), pytest.raises(checks.Fault, match=f"beside the {role}: 5 bytes before"):
        checks.check(name, case, "forward", gpu)


def test_packed_weights_that_run_changes_are_found(monkeypatch):
    """A plan packs once and runs again and again."""
    kernel = dispatch.kernel("numba_cpu.blocked")
    run = kernel.run

    def changing(problem, place, x, packed, *rest):
        run(problem, place, x, packed, *rest)
        packed[3] ^= 1

    monkeypatch.setattr(kernel, "run", changing)
    with pytest.raises(checks.Fault, match="packed weights was written: at byte 3"):
        checks.check("numba_cpu.blocked", problems.TINY[0], "forward", device.cpu())


@pytest.mark.parametrize("place", [device.cpu(), device.emulator_of(80), device.named("sm_90")], ids=str)
@pytest.mark.parametrize("extent", ["full", "quick", "two"])
def test_every_kernel_pass_and_dtype_has_problems_of_one_image_and_of_several(place, extent, monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda package: True)
    names = [name for name in dispatch.KERNELS if place.kind in dispatch.FAMILIES[dispatch.family_of(name)].runs_on]
    todo = rows.todo(names, place, extent)
    on_tensor_cores = ("cupy_raw.tensor_core", "cupy_raw.tensor_core_weight_grad")
    left_out = {(name, "float64") for name in on_tensor_cores}  # which tensor cores do not take
    in_full_precision = (
        "numba_cpu.grouped", "numba_cpu.input_grad", "numba_cpu.strassen", "numba_cpu.strassen_by_filters",
        "numba_cpu.strassen_twice",
        "numba_cpu.winograd_dilated",
    )  # fmt: skip
    left_out |= {(name, dtype) for name in in_full_precision for dtype in ("float16", "bfloat16")}
    dots = {"bfloat16"} if multiplies_pairs() else set()
    left_out |= {("numba_cpu.bfloat16_dot", dtype) for dtype in set(DTYPES) - dots}
    if target.vector_bytes() < 64:
        left_out |= {("numba_cpu.winograd_columns", dtype) for dtype in DTYPES}
    asked = {(n, p, dtype) for n in names for p in dispatch.kernel(n).passes for dtype in DTYPES}
    assert {(row.kernel, row.pass_, row.dtype) for row in todo} == {
        (n, p, d) for n, p, d in asked if (n, d) not in left_out
    }
    for row in todo:
        images = {case.problem().N for case in rows.served(row.kernel, row.pass_, row.dtype, place, extent)}
        assert 1 in images, row
        assert max(images) > 1, row


def test_quick_is_part_of_full():
    for kind in ("cpu", "cuda", "emulator"):
        full, quick = (problems.cases_for(kind, "float32", extent) for extent in ("full", "quick"))
        names = problems.QUICK_EMULATED if kind == "emulator" else problems.QUICK
        assert {case.name for case in quick} == set(names)
        assert all(case in full for case in quick)
