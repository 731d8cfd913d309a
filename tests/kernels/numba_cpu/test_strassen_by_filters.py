"""Strassen's kernel for maps of few pixels: what holds beyond the shared problems, of which it takes few."""

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device, dispatch, operations
from convlib.kernels import reference
from convlib.kernels.numba_cpu import strassen, strassen_by_filters, strassen_by_filters_cuts, target
from convlib.problem import make_problem
from convlib.strided import empty_aligned

from .held_to import AVX2, SSE, run_held_to

# a pixel short of ten tiles, several blocks of channels; tiles of 4 pixels; several tall tiles; x's pixels apart;
# patches of which half of all depths end within a channel, and some of more columns than are copied at a time
PROBLEMS = {
    "7 x 7": ((1, 600, 7, 7), (128, 600, 1, 1), {}),
    "batch": ((2, 38, 5, 3), (128, 38, 1, 1), {}),
    "groups": ((1, 24, 4, 4), (256, 12, 1, 1), {"groups": 2}),
    "batch of groups": ((2, 40, 10, 10), (128, 20, 1, 1), {"groups": 2}),
    "stride 2": ((1, 20, 14, 13), (128, 20, 1, 1), {"stride": 2}),
    "patches": ((2, 10, 21, 26), (256, 5, 4, 4), {"stride": 4, "groups": 2}),
    "wide patches": ((1, 9, 15, 243), (128, 9, 2, 34), {"stride": (2, 34)}),
}


@pytest.fixture(params=["flat", "tall"], autouse=True)
def tiles(request, monkeypatch):
    """Either form of tile, whichever this processor would have."""
    cached = (
        strassen_by_filters_cuts.tile_of, strassen_by_filters_cuts.blocking, strassen_by_filters.prepared,
        dispatch.candidates, choosing.settled_choice, operations.settled_before,
    )  # fmt: skip
    monkeypatch.setattr(strassen_by_filters_cuts, "loads_are_free", lambda: request.param == "tall")
    forget(cached)
    yield
    forget(cached)


def forget(cached):
    for function in cached:
        function.cache_clear()
    operations.known_calls.known.clear()


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=dtype)


def operands(name, dtype=np.float32):
    """x, w, bias, residual, the problem, and the exact result."""
    x_shape, w_shape, keywords = PROBLEMS[name]
    x, w, bias = (normal(*shape, dtype=dtype) for shape in (x_shape, w_shape, w_shape[:1]))
    problem = make_problem(x_shape, w_shape, dtype, has_bias=True, has_residual=True, **keywords)
    residual = normal(problem.N, problem.K, problem.P, problem.Q, dtype=dtype)
    return x, w, bias, residual, problem, reference.conv2d(problem, x, w, bias, residual)


def computed(name, threads, apart=1, dtype=np.float32):
    """apart: how far x's, y's and the residual's pixels lie apart, in numbers."""
    x, w, bias, residual, problem, _ = operands(name, dtype)
    x = np.repeat(x[..., None], apart, axis=4)[..., 0]
    place = device.cpu_with(threads)
    packed = empty_aligned((strassen_by_filters.packed_bytes(problem, place),), np.uint8)
    workspace = empty_aligned((strassen_by_filters.workspace_bytes(problem, place),), np.uint8)
    packed[:], workspace[:] = 255, 255  # NaN, wherever it is read before it is written
    strassen_by_filters.pack(problem, place, w, packed)
    y = np.full((*residual.shape, apart), np.nan, dtype)
    strassen_by_filters.run(problem, place, x, packed, y[..., 0], bias, residual, workspace)
    assert np.isnan(y[..., 1:]).all()
    return y[..., 0]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("apart", "dtype"), [(1, np.float32), (2, np.float32), (1, np.float64)])
def test_is_right_wherever_the_numbers_lie(name, apart, dtype):
    *_, problem, exact = operands(name, dtype)
    error = np.linalg.norm(computed(name, 2, apart, dtype) - exact) / np.linalg.norm(exact)
    assert error < accuracy.norm_relative(problem, "strassen_by_filters")


@pytest.mark.skipif(target.architecture() != "x86_64", reason="about instruction sets of x86-64")
@pytest.mark.skipif(target.vector_bytes() < 64, reason="these tests ran with AVX2 already")
@pytest.mark.parametrize("processor", [AVX2, SSE], ids=["avx2", "sse"])
def test_tiles_may_be_higher_than_a_register_has_lanes(processor):
    """Four numbers of float64 or float32, or two, and tiles of five."""
    run_held_to(processor, [__file__], "wherever_the_numbers_lie and flat")


@pytest.mark.parametrize("kernel", [strassen, strassen_by_filters])
def test_weights_of_patches_are_packed_wherever_they_lie(kernel):
    w, place = normal(128, 5, 4, 4), device.cpu_with(2)
    problem = make_problem((1, 5, 40, 44), w.shape, np.float32, stride=4)
    flipped = w[:, :, ::-1, ::-1]

    def packed(weights):
        memory = empty_aligned((kernel.packed_bytes(problem, place),), np.uint8)
        memory[:] = 0  # also what lies between panels
        kernel.pack(problem, place, weights, memory)
        return memory

    np.testing.assert_array_equal(packed(flipped), packed(flipped.copy()))


def test_the_bits_do_not_depend_on_threads():
    y = computed("7 x 7", 1)
    np.testing.assert_array_equal(y, computed("7 x 7", 3))


def test_silu_is_made_of_sums_that_waited():
    x, w = normal(1, 40, 4, 4), normal(256, 40, 1, 1)
    problem = make_problem(x.shape, w.shape, np.float32, activation="silu")
    plan = convlib.plan(x.shape, w, activation="silu", algorithm="strassen_by_filters")
    np.testing.assert_allclose(plan(x), reference.conv2d(problem, x, w), atol=1e-4)


@pytest.mark.parametrize("C", [2, 64, 256])
def test_the_error_keeps_to_the_contract(C):
    x, w = normal(1, C, 4, 4), normal(256, C, 1, 1)
    problem = make_problem(x.shape, w.shape, np.float32)
    y, exact = convlib.conv2d(x, w, algorithm="strassen_by_filters"), reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, "strassen_by_filters")
    assert 0.3 * bound < error < bound


def test_plans_of_large_layers_on_small_maps_may_choose_it_and_calls_never_do():
    problem = make_problem((1, 512, 7, 7), (2048, 512, 1, 1), np.float32)
    place = device.cpu_with(2)
    names = [
        choosing.settled_choice(problem, place, "auto", "auto", 5e-6, None, planned, False).name
        for planned in (True, False)
    ]
    assert names[0] in ("numba_cpu.strassen_by_filters", "numba_cpu.strassen")  # the latter with vectors of 8
    assert names[1] == "numba_cpu.blocked"


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "word"),
    [
        ((1, 64, 7, 7), (256, 64, 3, 3), {"padding": 1}, "window"),
        ((1, 64, 14, 14), (256, 64, 2, 2), {"stride": 2, "padding": 1}, "padding"),
        ((1, 63, 7, 7), (256, 63, 1, 1), {}, "even"),
        ((1, 3, 21, 21), (256, 3, 3, 3), {"stride": 3}, "even"),
        ((1, 64, 7, 7), (250, 64, 1, 1), {}, "filters"),
        ((1, 7, 7, 64), (256, 64, 1, 1), {"layout": "NHWC"}, "NHWC"),
    ],
)
def test_says_what_it_cannot_take(x_shape, w_shape, keywords, word):
    problem = make_problem(x_shape, w_shape, np.float32, **keywords)
    assert any(word in reason for reason in strassen_by_filters.why_not(problem, device.cpu()))
