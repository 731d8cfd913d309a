"""Two levels of Strassen: what holds beyond the shared problems, hardly any of which it takes."""

from pathlib import Path

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device, dispatch
from convlib.kernels import reference
from convlib.kernels.numba_cpu import (
    strassen_twice,
    strassen_twice_cuts,
    strassen_twice_sums,
    target,
    threads,
    tracing,
)
from convlib.problem import make_problem
from convlib.strided import empty_aligned

from .held_to import AVX2, INTELS_AVX512, run_held_to

# nothing left over but lone pixels; tiles left over; a quarter of the channels no whole number of vectors
PROBLEMS = {
    "14 x 14": ((1, 64, 14, 14), (64, 64, 1, 1), {}),
    "batch": ((2, 44, 23, 17), (32, 44, 1, 1), {}),
    "groups": ((1, 24, 12, 17), (128, 12, 1, 1), {"groups": 2}),
    "stride 2": ((1, 40, 28, 29), (32, 40, 1, 1), {"stride": 2}),
    "channels last": ((1, 40, 14, 14), (32, 40, 1, 1), {"layout": "NHWC"}),
}
# of calls with 16 registers: a quarter of the channels whole lines; with tiles left over, and a last range of fewer
CALLED = {
    "called, batch": ((2, 64, 23, 21), (48, 64, 1, 1), {}),
    "called, groups": ((1, 256, 12, 17), (128, 128, 1, 1), {"groups": 2}),
    "called, stride 2": ((1, 64, 28, 41), (32, 64, 1, 1), {"stride": 2}),
    "called, channels last": ((1, 64, 14, 23), (32, 64, 1, 1), {"layout": "NHWC"}),
}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def operands(name, has_residual, dtype=np.float32):
    """x, w, bias, residual, the problem, and the exact result, in logical order."""
    x_shape, w_shape, keywords = (PROBLEMS | CALLED)[name]
    x, w, bias = (normal(*shape).astype(dtype) for shape in (x_shape, w_shape, w_shape[:1]))
    shape = x.transpose(0, 2, 3, 1).shape if "layout" in keywords else x_shape
    problem = make_problem(shape, w_shape, dtype, has_bias=True, has_residual=has_residual, **keywords)
    residual = normal(problem.N, problem.K, problem.P, problem.Q).astype(dtype) if has_residual else None
    return x, w, bias, residual, problem, reference.conv2d(problem, x, w, bias, residual)


def computed(name, workers, has_residual=False, apart=1, packed=True, dtype=np.float32):
    """apart: how far y's pixels lie apart, in numbers."""
    x, w, bias, residual, problem, exact = operands(name, has_residual, dtype)
    place = device.cpu_with(workers)
    workspace = empty_aligned((strassen_twice.workspace_bytes(problem, place),), np.uint8)
    workspace[:] = 255  # NaN, wherever it is read before it is written
    assert packed or strassen_twice.reads_in_place(problem, w)
    if packed:
        memory = empty_aligned((strassen_twice.packed_bytes(problem, place),), np.uint8)
        memory[:] = 255
        strassen_twice.pack(problem, place, w, memory)
        w = memory
    y = np.full((*exact.shape, apart), np.nan, dtype)
    strassen_twice.run(problem, place, x, w, y[..., 0], bias, residual, workspace)
    assert np.isnan(y[..., 1:]).all()
    return y[..., 0]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("has_residual", "apart"), [(False, 1), (True, 1), (False, 2)])
def test_is_right_wherever_the_numbers_lie(name, has_residual, apart):
    *_, problem, exact = operands(name, has_residual)
    error = np.linalg.norm(computed(name, 2, has_residual, apart) - exact) / np.linalg.norm(exact)
    assert error < accuracy.norm_relative(problem, "strassen_twice")


@pytest.mark.parametrize("inner", [1, 4])
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("lone", [0, 1])
def test_a_channels_sums_do_not_lie_over_the_next_ones_whatever_the_vectors(inner, lanes, lone, monkeypatch):
    monkeypatch.setattr(strassen_twice_sums, "vector_type", lambda real: tracing.Lanes("f32", lanes))
    monkeypatch.setattr(strassen_twice_sums, "sums_made", lambda: inner)
    outer = 4 * 4
    needed = (outer + inner) * 3 * lanes * 4 + lone * (outer * threads.LINE + inner * 4)
    assert needed <= strassen_twice_sums.row_bytes(np.float32, lone) < needed + 2 * threads.LINE


@pytest.mark.parametrize("name", ["14 x 14", "batch"])
def test_the_bits_depend_neither_on_threads_nor_on_the_cut(name, monkeypatch):
    y = computed(name, 1)
    np.testing.assert_array_equal(y, computed(name, 3))
    forget_cuts()
    monkeypatch.setattr(strassen_twice_cuts, "FILTER_CUTS", (2,))
    np.testing.assert_array_equal(y, computed(name, 1))
    forget_cuts()


def forget_cuts():
    cuts = strassen_twice_cuts
    for cached in (cuts.best_cut, cuts.makes_rows, cuts.blocking, strassen_twice.prepared):
        cached.cache_clear()


@pytest.mark.skipif(target.register_count() != 16, reason="with more registers weights are packed")
@pytest.mark.parametrize("name", ["14 x 14", *CALLED])
@pytest.mark.parametrize(("has_residual", "apart", "dtype"), [(False, 1, np.float32), (True, 2, np.float64)])
def test_tasks_of_a_call_make_the_sums_that_plans_pack(name, has_residual, apart, dtype, monkeypatch):
    *_, problem, exact = operands(name, has_residual, dtype)
    y = computed(name, 2, has_residual, apart, dtype=dtype)
    assert np.linalg.norm(y - exact) < accuracy.norm_relative(problem, "strassen_twice") * np.linalg.norm(exact)
    for cut in ((1, 1), (1, 2), (2, 3)):
        forget_cuts()
        monkeypatch.setattr(strassen_twice_cuts, "possible_cuts", lambda problem, planned, cut=cut: [cut])
        monkeypatch.setattr(strassen_twice, "makes_rows", lambda problem: True)
        np.testing.assert_array_equal(y, computed(name, 3, has_residual, apart, packed=False, dtype=dtype))
    forget_cuts()


@pytest.mark.skipif(target.architecture() != "x86_64", reason="about instruction sets of x86-64")
@pytest.mark.skipif(target.register_count() == 16, reason="these tests ran with AVX2 already")
def test_calls_with_16_registers():
    """On a processor with AVX-512, where nothing else would see that code."""
    run_held_to(AVX2, [__file__], "of_a_call or chooses")


@pytest.mark.skipif(not target.adds_beside() or target.register_count() == 16, reason="these tests ran so already")
def test_four_sums_with_32_registers():
    """On a Zen with AVX-512, where nothing else would see that code: both kernels, as for an Intel processor."""
    files = [__file__, Path(__file__).with_name("test_strassen.py")]
    run_held_to(INTELS_AVX512, files, "wherever_the_numbers_lie or the_bits_depend")


def test_weights_that_lie_otherwise_are_packed_for_a_call():
    whole, part = (make_problem((1, C, 14, 14), (64, C, 1, 1), np.float32) for C in (64, 44))
    assert strassen_twice.reads_in_place(whole, normal(64, 64, 1, 1)) == (target.register_count() == 16)
    assert not strassen_twice.reads_in_place(whole, normal(64, 128, 1, 1)[:, ::2])
    assert not strassen_twice.reads_in_place(part, normal(64, 44, 1, 1))


@pytest.mark.skipif(target.register_count() != 16, reason="with more registers weights are packed")
@pytest.mark.parametrize(
    ("C", "size", "K", "chosen"),
    [(256, 14, 1024, True), (128, 28, 512, True), (1024, 14, 256, False), (64, 56, 256, False), (256, 56, 64, False)],
)
def test_a_call_with_16_registers_chooses_it_where_filters_are_more_than_channels(C, size, K, chosen, monkeypatch):
    monkeypatch.setattr(target, "cache_bytes", lambda level: {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}[level])
    problem = make_problem((1, C, size, size), (K, C, 1, 1), np.float32)
    forget_cuts()
    assert (choosing.choose(problem, device.cpu_with(2)) == "numba_cpu.strassen_twice") == chosen
    forget_cuts()


def test_the_weights_of_many_images_are_packed_once():
    one, many = (make_problem((N, 256, 14, 14), (512, 256, 1, 1), np.float32) for N in (1, 64))
    assert strassen_twice_cuts.makes_rows(one) == (target.register_count() == 16)
    assert not strassen_twice_cuts.makes_rows(many)


def test_a_batchs_tasks_are_predicted_once_for_all_that_are_alike(monkeypatch):
    seen, cycles = [], strassen_twice_cuts.group_cycles
    monkeypatch.setattr(strassen_twice_cuts, "group_cycles", lambda *of: seen.append(of) or cycles(*of))
    problem = make_problem((64, 64, 56, 56), (256, 64, 1, 1), np.float32)
    for planned in (True, False):
        strassen_twice_cuts.cut_cycles(problem, 2, (3, 2), planned)
        assert len(seen) <= 4
        seen.clear()


@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_activations(activation):
    x, w = normal(1, 32, 14, 14), normal(32, 32, 1, 1)
    y = convlib.conv2d(x, w, activation=activation, algorithm="strassen_twice")
    np.testing.assert_allclose(y, convlib.conv2d(x, w, activation=activation, algorithm="direct"), atol=1e-4)


@pytest.mark.parametrize("C", [4, 64, 256])
def test_the_error_keeps_to_the_contract(C):
    x, w = normal(1, C, 14, 14), normal(64, C, 1, 1)
    problem = make_problem(x.shape, w.shape, np.float32)
    y, exact = convlib.conv2d(x, w, algorithm="strassen_twice"), reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, "strassen_twice")
    assert 0.3 * bound < error < bound


@pytest.mark.parametrize(("C", "chosen"), [(4096, True), (8192, False)])
def test_is_left_where_its_error_may_pass_the_default(C, chosen):
    problem = make_problem((1, C, 28, 28), (64, C, 1, 1), np.float32)
    assert (accuracy.norm_relative(problem, "strassen_twice") < accuracy.DEFAULT_MAX_ERROR) == chosen


@pytest.mark.parametrize(
    ("shape", "called"),
    [
        ((1, 512, 28, 28, 256), False),
        ((1, 256, 14, 14, 1024), False),
        ((2, 512, 28, 28, 256), False),
        ((16, 512, 28, 28, 512), True),
    ],
)
def test_where_multiply_adds_are_few_a_cycle_plans_of_large_layers_choose_it_and_calls_of_the_largest(
    shape, called, monkeypatch
):
    N, C, H, W, K = shape
    monkeypatch.setattr(target, "multiply_adds_per_cycle", lambda: 1)
    forget_cuts()
    problem, place = make_problem((N, C, H, W), (K, C, 1, 1), np.float32), device.cpu_with(2)
    once, twice = (dispatch.kernel(f"numba_cpu.{name}") for name in ("strassen", "strassen_twice"))
    planned = {kernel: kernel.predicted_seconds(problem, place) for kernel in (once, twice)}
    single = {kernel: planned[kernel] + kernel.pack_seconds(problem, place) for kernel in (once, twice)}
    forget_cuts()
    assert planned[twice] < planned[once]
    assert strassen_twice_cuts.makes_rows(problem) or (single[twice] < single[once]) == called


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_packed_to_the_same_bits_wherever_they_lie(dtype):
    problem, place = make_problem((1, 152, 14, 14), (64, 152, 1, 1), dtype), device.cpu_with(2)
    w = normal(64, 152, 1, 1).astype(dtype)
    apart, rows = np.zeros((64, 152, 1, 2), dtype), np.zeros((64, 155, 1, 1), dtype)
    apart[..., :1], rows[:, 1:-2] = w, w
    packed = [np.full(strassen_twice.packed_bytes(problem, place), 255, np.uint8) for _ in range(3)]
    for memory, weights in zip(packed, (w, apart[..., :1], rows[:, 1:-2])):
        strassen_twice.pack(problem, place, weights, memory)
    assert np.isfinite(packed[0][strassen_twice_cuts.rows_bytes(problem) :].view(dtype)).all()
    np.testing.assert_array_equal(packed[0], packed[1])
    np.testing.assert_array_equal(packed[0], packed[2])


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "word"),
    [
        ((1, 64, 14, 14), (32, 64, 3, 3), {"padding": 1}, "window"),
        ((1, 62, 14, 14), (32, 62, 1, 1), {}, "quarters"),
        ((1, 64, 14, 14), (24, 64, 1, 1), {}, "filters"),
        ((1, 64, 7, 7), (32, 64, 1, 1), {}, "pixels"),
    ],
)
def test_says_what_it_cannot_quarter(x_shape, w_shape, keywords, word):
    problem = make_problem(x_shape, w_shape, np.float32, **keywords)
    assert any(word in reason for reason in strassen_twice.why_not(problem, device.cpu()))
