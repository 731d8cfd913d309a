"""A second opinion on races: SentryWard proves the PTX of tiny launches free of them, in every schedule.

The emulator sees the schedule it runs; SentryWard reasons about all of them, on launches of a few blocks. It says
nothing about bounds. Its exit code is always 0, so the verdict is read from its report; controls with a barrier
removed must not pass. Source: SentryWard 0.1.1, static verifier for PTX (PyPI, Apache-2.0).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from convlib import compiling, device, dispatch, strided
from convlib.emulator import arguments, parse
from convlib.emulator.profile import gpu_kernels, short
from convlib.kernels import launching
from convlib.verification.problems import Case, arrays_of, logical_arrays
from tests.convlib.emulator import test_pipelined as pipelined

api = pytest.importorskip("sentryward.api", reason="SentryWard is not installed (extra emulate)")
for module, wheel in (("cuda.bindings.nvrtc", "NVRTC"), ("numba.cuda", "numba-cuda"), ("cupy", "CuPy")):
    pytest.importorskip(module, reason=f"{wheel} is not installed (extra cuda13)")

TARGET = 80
# What SentryWard 0.1.1 cannot decide: a branch that hangs on a loaded value or an array's alignment, an address that
# comes of a table among the arguments. The emulator's check stands alone there.
UNDECIDED = {
    ("cupy_raw.tensor_core", "conv2d_tensor_core"): "dynamic_address_overlap_unresolved",
    ("numba_cuda.im2col", "im2col_product"): "control_predicate_not_static",
    ("cupy_raw.depthwise", "conv2d_depthwise"): "control_predicate_not_static",
    ("cupy_raw.depthwise_input_grad", "conv2d_depthwise_input_grad"): "control_predicate_not_static",
    ("cupy_raw.depthwise_weight_grad", "conv2d_depthwise_weight_grad"): "control_predicate_not_static",
}
FEW = Case("few_channels", (1, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}, bias=True)
MANY = Case(
    "many_channels", (1, 20, 3, 4), (4, 20, 3, 3), bias=True
)  # another order in the implicit product, in splits

DEPTHWISE = Case("depthwise", (1, 3, 5, 6), (3, 1, 3, 3), {"padding": 1, "groups": 3})  # for kernels of nothing else


def launches_of(name, case=FEW):
    module, place = dispatch.kernel(name), device.emulator_of(TARGET)
    if module.why_not(replace(case.problem(), pass_=module.passes[0]), place):
        case = DEPTHWISE
    problem = replace(case.problem(), pass_=module.passes[0])
    x, w, bias, residual, out = arrays_of(case)
    x, w, bias, residual = logical_arrays(case, x, w, bias, residual)
    operands = {"forward": (x, w, out, bias, residual), "input_grad": (out, w, x), "weight_grad": (x, out, w)}
    operands = operands[problem.pass_]
    workspace = strided.empty_aligned((dispatch.one_call_bytes(module, problem, place),), np.uint8)
    with launching.recording() as launches:
        module.run(problem, place, *operands, workspace=workspace if workspace.size else None)
    return launches


def ptx_of(launch):
    if isinstance(launch.kernel, launching.CudaSource):
        return compiling.cuda_source_ptx(launch.kernel, TARGET), launch.kernel.function
    return compiling.numba_ptx(launch.kernel, arguments.numba_types(launch.args), TARGET), None


def configuration(launch, function, raw):
    """What SentryWard wants to know of a launch: its sizes, each pointer as an object of its own, every other value."""
    objects, declarations, values = {}, [], []

    def address_of(array):
        address = array.__array_interface__["data"][0]
        objects.setdefault(address, f"array{len(objects)}")
        return address

    given = (arguments.raw_values if raw else arguments.numba_values)(launch.args, address_of)
    for parameter, data in zip(function.parameters, given, strict=True):
        number = int.from_bytes(data, "little")
        if parameter.size == 8 and number in objects:
            pointer = {"parameter": parameter.name, "type": "pointer", "space": "global", "object": objects[number]}
            declarations.append(pointer)
        elif parameter.size <= 8:
            values.append({"parameter": parameter.name, "type": f"u{8 * parameter.size}", "value": number})
        else:
            words = np.frombuffer(data, np.uint32)
            values += [{"parameter": parameter.name, "offset": 4 * i, "type": "u32", "value": int(word)}
                       for i, word in enumerate(words)]  # fmt: skip
    sizes = {
        "grid_dim": list(launch.grid),
        "block_dim": list(launch.block),
        "dynamic_shared_bytes": launch.shared_bytes,
    }
    return {
        "schema": "spverify.kernel-input/v1", "entry": function.name, "launch": sizes, "declarations": declarations,
        "arguments": values,
    }  # fmt: skip


def verdict(ptx, configured, folder):
    (folder / "kernel.ptx").write_text(without_bit_fields(ptx))
    (folder / "input.json").write_text(json.dumps(configured))
    report = api.verify(folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=240)
    return report["result"], report["diagnostics"]


def without_bit_fields(ptx):
    """Write `bfi`, which SentryWard 0.1.1 does not read, as the shifts and masks it stands for."""
    if "bfi.b32" not in ptx:
        return ptx
    ptx = re.sub(r"(\.reg \.b32)(\s+%r<)", r"\1 %kept, %put;\n\1\2", ptx)
    return re.sub(r"bfi\.b32\s+(%r\d+), (%r\d+), (%r\d+), (\d+), (\d+);", bit_field_insert, ptx)


def bit_field_insert(found):
    into, source, base, first, count = found.groups()
    mask = ((1 << int(count)) - 1) << int(first) & 0xFFFFFFFF
    return (
        f"shl.b32 %put, {source}, {first}; and.b32 %put, %put, {mask}; "
        f"and.b32 %kept, {base}, {mask ^ 0xFFFFFFFF}; or.b32 {into}, %put, %kept;"
    )


@pytest.mark.parametrize("case", [FEW, MANY], ids=str)
@pytest.mark.parametrize("name", gpu_kernels())
def test_every_kernel_is_proved_free_of_races(name, case, tmp_path):
    for launch in launches_of(name, case):
        ptx, function_name = ptx_of(launch)
        function = parse(ptx).kernel(function_name)
        found, diagnostics = verdict(ptx, configuration(launch, function, function_name is not None), tmp_path)
        undecided = UNDECIDED.get((name, short(function.name)))
        if undecided:
            assert (found, diagnostics[0]["code"]) == ("unsupported", undecided)
            continue
        assert found == "race_free", f"{function.name}: {found}, {diagnostics}"


# The matrix product of cupy_raw.winograd_batched is im2col's; its filters pass through shared memory.
LAUNCH_WITH_BARRIERS = {
    "numba_cuda.tiled": 0,
    "numba_cuda.implicit_gemm": 1,
    "numba_cuda.weight_grad": 0,
    "numba_cuda.weight_grad_direct": 0,
    "cupy_raw.tiled": 0,
    "cupy_raw.im2col": 2,
    "cupy_raw.implicit_gemm": 1,
    "cupy_raw.winograd_fused": 1,
    "cupy_raw.winograd_batched": 0,
    "cupy_raw.weight_grad": 0,
    "cupy_raw.weight_grad_direct": 0,
}


@pytest.mark.parametrize("name", LAUNCH_WITH_BARRIERS)
def test_a_removed_barrier_is_not_proved(name, tmp_path):
    launch = launches_of(name)[LAUNCH_WITH_BARRIERS[name]]
    ptx, function_name = ptx_of(launch)
    function = parse(ptx).kernel(function_name)
    configured = configuration(launch, function, function_name is not None)
    racy = "\n".join(line for line in ptx.splitlines() if not line.strip().startswith("bar.sync"))
    assert racy != ptx
    assert verdict(racy, configured, tmp_path)[0] == "potential_race"


def verdict_of_pipelined(source, folder):
    """On the product of test_pipelined.py: one block, five tiles of k in three stages."""
    ptx = compiling.through_nvrtc(source, "product.cu", ("--std=c++17", f"-arch=compute_{TARGET}"))[0]
    M, N, K = 64, 64, 160
    arrays_given = np.zeros((M, K), np.uint16), np.zeros((K, N), np.uint16), np.zeros((M, N), np.float32)
    args = (*arrays_given, np.int32(M), np.int32(N), np.int32(K))
    launch = launching.Launch(None, (1, 1, 1), (128, 1, 1), args, 0, None)
    return verdict(ptx, configuration(launch, parse(ptx).kernel("product"), True), folder)[0]


def test_asynchronous_copies_are_proved_free_of_races(tmp_path):
    assert verdict_of_pipelined(pipelined.SOURCE, tmp_path) == "race_free"


@pytest.mark.parametrize("name", [
    "wait dropped", "one group too many left in flight", "a stage too few", "barrier dropped",
    "next copies before the barrier",
])  # fmt: skip
def test_the_races_of_asynchronous_copies_are_not_proved(name, tmp_path):
    assert verdict_of_pipelined(pipelined.planted(*pipelined.FAULTS[name][1:]), tmp_path) == "potential_race"
