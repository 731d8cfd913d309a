"""Each launcher hands its kernels what they declare: checked without a GPU, a compiler or CuPy."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest

from convlib import device, dispatch, strided
from convlib.kernels import launching
from convlib.kernels.cupy_raw import (
    cut,
    depthwise,
    depthwise_input_grad,
    depthwise_weight_grad,
    direct,
    im2col,
    implicit_gemm,
    parameters,
    tiled,
    weight_grad,
    weight_grad_direct,
    weight_grad_splits,
)
from convlib.problem import make_problem
from convlib.verification.problems import SMALL, TINY, arrays_of, logical_arrays
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import on_cpu
from tests.kernels.cupy_raw.against_reference import served

FORWARD = {"direct": direct, "tiled": tiled, "im2col": im2col, "implicit_gemm": implicit_gemm}
FORWARD["depthwise"] = depthwise
KERNELS = {**FORWARD, "weight_grad": weight_grad, "weight_grad_direct": weight_grad_direct}
KERNELS |= {"depthwise_input_grad": depthwise_input_grad, "depthwise_weight_grad": depthwise_weight_grad}
GPU = device.emulator_of(80)


def launches_of(kernel, case):
    problem = replace(case.problem(), pass_=kernel.passes[0])
    x, w, bias, residual, y = arrays_of(case)
    x, w, bias, residual = map(strided.as_storage, logical_arrays(case, x, w, bias, residual))
    order = (0, 3, 1, 2) if problem.layout == "NHWC" else (0, 1, 2, 3)
    y = strided.as_storage(y.transpose(order))
    workspace = np.zeros(dispatch.one_call_bytes(kernel, problem, GPU), np.uint8)
    operands = {"forward": (x, w, y, bias, residual), "input_grad": (y, w, x), "weight_grad": (x, y, w)}
    operands = operands[problem.pass_]
    with launching.recording() as launches:
        kernel.run(problem, GPU, *operands, workspace=workspace, stream=7)
    return launches


SERVED = served(FORWARD, TINY + SMALL) + served(KERNELS.keys() - FORWARD.keys(), TINY + SMALL, "weight_grad")


@pytest.mark.parametrize(("name", "case"), sorted(SERVED, key=str), ids=str)
def test_arguments_fit_the_parameters_that_the_kernel_declares(name, case):
    for launch in launches_of(KERNELS[name], case):
        declared = stand_in_cupy.declared_parameters(launch.kernel.text(), launch.kernel.function)
        assert len(launch.args) == len(declared)
        passed = launching.with_null_pointers(launch.args)
        for parameter, value, given in zip(declared, passed, launch.args, strict=True):
            stand_in_cupy.check_argument(parameter, value)
            check_type(parameter, given, case.problem())
        assert launch.shared_bytes == 0, "their shared memory is declared in the source"
        assert launch.stream == 7


def check_type(parameter, value, problem):
    """Element pointers point to elements, Accumulator pointers into the workspace, structs have their type."""
    if value is None:
        assert parameter.endswith(("bias", "residual", "partial"))
    elif "Weight*" in parameter:
        assert value.dtype in (np.uint8, problem.dtype), "packed, or as they lie"
        assert value.ctypes.data % 16 == 0
    elif "Element*" in parameter:
        assert value.dtype.itemsize == problem.dtype.itemsize
    elif "Accumulator*" in parameter:
        assert value.dtype == np.uint8
        assert value.ctypes.data % 16 == 0, "128-bit loads need aligned matrices"
    elif parameter.startswith("Problem"):
        assert value.dtype == parameters.problem_type(problem.accumulate)
    elif parameter.startswith("Cut"):
        assert value.dtype == cut.CUT
    elif parameter.startswith("Splits"):
        assert value.dtype == weight_grad_splits.SPLITS
    elif parameter.startswith("Steps"):
        assert value.dtype == weight_grad.STEPS
    elif parameter.startswith("Tile"):
        assert value.dtype in (depthwise.TILE, depthwise_weight_grad.TILE)
    elif parameter == "int splits":
        assert value.dtype == np.int32
    else:
        assert parameter.startswith("Slice")
        assert value.dtype == im2col.SLICE


@pytest.mark.parametrize("case", TINY + SMALL, ids=str)
def test_the_slices_of_im2col_cover_every_output_once_and_fit_the_workspace(case, monkeypatch):
    problem = case.problem()
    monkeypatch.setattr(im2col, "COLUMNS_BYTES", 1)  # as small as slices get
    im2col.matrices.cache_clear()
    sizes = im2col.matrices(problem, GPU)
    slices = [launch.args[-1] for launch in launches_of(im2col, case) if launch.kernel.function == "conv2d_gemm"]
    assert sum(int(part["pixels"]) for part in slices) == problem.N * problem.P * problem.Q
    assert [int(part["first"]) for part in slices] == [n * sizes.tile_m for n in range(len(slices))]
    assert all(int(part["padded"]) <= sizes.pixels for part in slices)


@pytest.mark.parametrize(("dtype", "count"), [("float32", 4), ("float64", 2), ("float16", 4)])
def test_the_matrix_product_stores_vectors_of_filters_only_where_all_of_them_are_aligned(dtype, count):
    def filters(group=12, residual=None, **lying):
        problem = make_problem((2, 6, 5, 4), (2 * group, 2, 3, 3), np.dtype(dtype), groups=2, layout="NHWC")
        return im2col.filters_at_once(problem, of_pixels(2 * group, **lying), residual)

    def of_pixels(channels=24, pitch=0, first=0):
        """Of 2 x 4 x 3 pixels, so many elements more than channels from one to the next."""
        pixels = strided.empty_aligned((2, 4, 3, first + channels + pitch), dtype)
        return pixels[..., first : first + channels].transpose(0, 3, 1, 2)

    assert filters() == filters(residual=of_pixels()) == filters(pitch=count) == filters(first=count) == count
    assert filters(group=count + 1) == filters(pitch=1) == filters(first=1, pitch=count - 1) == 1
    assert filters(residual=of_pixels(pitch=1)) == filters(residual=of_pixels(first=1, pitch=count - 1)) == 1
    assert filters(residual=np.empty((2, 24, 4, 3), dtype)) == 1


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_structs_lie_in_memory_as_the_kernels_declare_them(accumulate, tmp_path):
    if not on_cpu.available():
        pytest.skip("g++ is not installed")
    struct = parameters.problem_type(np.dtype(accumulate))
    lines = [offsets_of("Problem", struct), offsets_of("Slice", im2col.SLICE)]
    element = "float" if accumulate == "float32" else "double"
    program = tmp_path / "offsets.cpp"
    program.write_text(
        f'#include "{on_cpu.HERE / "cuda_on_cpu.h"}"\n#include <cstdio>\n#define asm(...)\n'
        f"#define ELEMENT {element}\n#define WIDE 0\n"
        f'#include "{launching.CUPY_RAW / "gemm_layout.cuh"}"\nint main() {{ {" ".join(lines)} }}\n'
    )
    subprocess.run(["g++", "-w", "-std=c++17", program, "-o", tmp_path / "offsets"], check=True)
    printed = subprocess.run([tmp_path / "offsets"], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(n) for layout in (struct, im2col.SLICE) for n in offsets_in(layout)]


@pytest.mark.parametrize(("kernel", "name", "layout"), [
    (depthwise, "Tile", depthwise.TILE), (depthwise_weight_grad, "Tile", depthwise_weight_grad.TILE),
    (weight_grad, "Steps", weight_grad.STEPS), (weight_grad, "Splits", weight_grad_splits.SPLITS),
], ids=["depthwise", "depthwise_weight_grad", "steps", "splits"])  # fmt: skip
def test_other_structs_lie_in_memory_as_their_kernels_declare_them(kernel, name, layout, tmp_path):
    if not on_cpu.available():
        pytest.skip("g++ is not installed")
    case = next(case for case in TINY if case.name == "depthwise")
    source = launches_of(kernel, case)[0].kernel
    on_cpu.write_sources(tmp_path, (*on_cpu.headers(), (source.file, source.text())))
    (tmp_path / "offsets.cpp").write_text(
        f'#include "{on_cpu.HERE / "cuda_on_cpu.h"}"\n#include <cstdio>\n#include "{source.file}"\n'
        f"int main() {{ {offsets_of(name, layout)} }}\n"
    )
    options = ["-w", "-std=c++17", *source.defines(), "offsets.cpp", "-o", "offsets"]
    subprocess.run(["g++", *options], check=True, cwd=tmp_path)
    printed = subprocess.run([tmp_path / "offsets"], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(n) for n in offsets_in(layout)]


def test_depthwise_kernels_refuse_other_groups_in_words():
    from convlib.problem import make_problem

    groups = make_problem((1, 8, 9, 9), (8, 2, 3, 3), np.float32, groups=4)
    assert depthwise.why_not(groups, GPU) == ["takes one channel per group (groups = C); this problem has 2"]
    filters = make_problem((1, 4, 9, 9), (8, 1, 3, 3), np.float32, groups=4, pass_="weight_grad")
    (reason,) = depthwise_weight_grad.why_not(filters, GPU)
    assert reason == "takes one channel and one filter per group, this problem has 1 and 2"
    huge = make_problem((1, 1, 400, 400), (1, 1, 129, 129), np.float32)
    assert depthwise.why_not(huge, GPU)[0].startswith("one tile must fit 49,152 bytes of shared memory; a 129 x 129")


def offsets_of(name, layout):
    fields = " ".join(f'printf("%zu ", offsetof({name}, {field}));' for field in layout.names)
    return f'{fields} printf("%zu ", sizeof({name}));'


def offsets_in(layout):
    return [*(layout.fields[name][1] for name in layout.names), layout.itemsize]


def test_arrays_past_2_to_the_31_elements_get_64_bit_offsets():
    case = next(case for case in TINY if case.name == "one_pixel")
    problem = case.problem()
    x, w, _, _, y = arrays_of(case)
    assert not parameters.is_wide(problem, x, w, y, None)
    far = np.lib.stride_tricks.as_strided(x, strides=(4 * 2**31, *x.strides[1:]))
    assert parameters.is_wide(problem, far, w, y, None)
    for kernel in FORWARD.values():
        with launching.recording() as launches:
            workspace = np.zeros(dispatch.one_call_bytes(kernel, problem, GPU), np.uint8)
            kernel.run(problem, GPU, far, w, y, None, None, workspace)
        reading_x = [launch for launch in launches if any(argument is far for argument in launch.args)]
        assert reading_x
        assert all(("WIDE", 1) in launch.kernel.constants for launch in reading_x)


def test_strides_between_elements_are_refused():
    packed = np.zeros((1, 1, 3, 3), np.dtype([("value", "f4"), ("byte", "u1")]))["value"]
    with pytest.raises(ValueError, match="x: strides that are multiples of its 4-byte elements needed, got"):
        parameters.element_strides("x", packed.strides, packed.itemsize)


@pytest.mark.parametrize("name", KERNELS)
def test_sizes_past_32_bits_are_refused_in_words(name):
    from convlib.problem import make_problem

    problem = make_problem((1, 1, 2**31 - 4, 8), (1, 1, 1, 1), np.float32, padding=4)
    assert "H with its padding: less than 2^31 needed, got 2,147,483,652" in KERNELS[name].why_not(problem, GPU)


@pytest.mark.parametrize("name", ["weight_grad", "weight_grad_direct", "depthwise_weight_grad"])
def test_gradients_sum_more_pixels_than_32_bits_number_and_refuse_as_many_weights_of_a_filter(name):
    from convlib.problem import make_problem

    kernel = KERNELS[name]
    pixels = make_problem((2, 1, 2**16, 2**14), (1, 1, 1, 1), np.float32, pass_="weight_grad")
    assert kernel.why_not(pixels, GPU) == []
    assert parameters.is_wide(pixels, *(np.broadcast_to(np.float32(1), pixels.x_shape) for _ in range(2)))
    if not name.startswith("depthwise"):
        weights = make_problem((1, 2**21, 32, 32), (1, 2**21, 32, 32), np.float32, pass_="weight_grad")
        assert "C / groups * R * S: less than 2^31 needed, got 2,147,483,648" in kernel.why_not(weights, GPU)


@pytest.mark.parametrize("name", ["depthwise", "depthwise_input_grad", "depthwise_weight_grad"])
def test_more_planes_than_32_bits_number_are_refused_in_words(name):
    from convlib.problem import make_problem

    pass_ = KERNELS[name].passes[0]
    problem = make_problem((2**16, 2**15, 1, 1), (2**15, 1, 1, 1), np.float32, groups=2**15, pass_=pass_)
    assert KERNELS[name].why_not(problem, GPU)[0] == "N * C: less than 2^31 needed, got 2,147,483,648"


def test_a_window_too_large_for_a_tile_is_refused_in_words():
    from convlib.problem import make_problem

    problem = make_problem((1, 1, 200, 200), (1, 1, 129, 129), np.float32)
    (reason,) = tiled.why_not(problem, GPU)
    assert reason.startswith("input and weights of one tile must fit 49,152 bytes of shared memory; a 129 x 129 window")


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_predicted_times_grow_with_the_problem(name, dtype):
    from convlib.problem import make_problem, named_dtype

    groups = 64 if name.startswith("depthwise") else 1
    seconds = [
        KERNELS[name].predicted_seconds(
            make_problem(
                (n, 64, 56, 56),
                (64, 64 // groups, 3, 3),
                named_dtype(dtype),
                groups=groups,
                pass_=KERNELS[name].passes[0],
            ),
            GPU,
        )
        for n in (1, 8, 64)
    ]
    assert 1e-6 < seconds[0] < seconds[1] < seconds[2] < 10
