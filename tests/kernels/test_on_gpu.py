"""Every listed GPU kernel on this machine's GPU, against the reference: values, bits, and what lies around the result.

Arrays are CuPy's; bfloat16, which CuPy's arrays take but hardly compute with, crosses as PyTorch's where that is there.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import convlib
from convlib import accuracy, device, dispatch, operands
from convlib.input_grad_phases import phases
from convlib.problem import make_problem
from convlib.verification import checks
from convlib.verification.problems import LARGE, SMALL, TINY, arrays_of
from tests.kernels.test_every_kernel import assert_close, forced

GPUS = convlib.info()["gpus"]  # asked once: it looks for every package's version
HERE = device.gpu(0) if GPUS else device.named("sm_80")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no GPU is visible")]

GPU_KERNELS = [name for name in dispatch.KERNELS if "cuda" in dispatch.FAMILIES[dispatch.family_of(name)].runs_on]
BACKWARD = [name for name in GPU_KERNELS if "weight_grad" in dispatch.kernel(name).passes]
FORWARD = [name for name in GPU_KERNELS if "forward" in dispatch.kernel(name).passes]
GUARD = 64  # elements of NaN before and after the result


def on_gpu(array, dtype_name):
    """`array` on the GPU with the same strides, and its library's name."""
    import cupy

    if array is None:
        return None
    if dtype_name == "bfloat16":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).cuda().view(torch.bfloat16)
    if array.base is None or array.flags.c_contiguous:
        return cupy.asarray(array)
    first, last = np.lib.array_utils.byte_bounds(array)
    flat = cupy.empty(last - first, cupy.uint8)
    start = array.__array_interface__["data"][0] - first
    strided = cupy.ndarray(array.shape, array.dtype, flat.data + start, array.strides)
    if 0 in array.strides:
        strided[:1] = cupy.asarray(array[:1])
    else:
        strided[...] = cupy.asarray(np.ascontiguousarray(array))
    return strided


def to_host(array):
    if isinstance(array, np.ndarray) or array is None:
        return array
    if hasattr(array, "get"):
        return array.get()
    import ml_dtypes
    import torch

    if array.dtype is torch.bfloat16:
        return array.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return array.cpu().numpy()


def guarded(shape, dtype_name):
    """A result of NaN between two guards of NaN, and the flat array that it lies in."""
    import cupy

    size = int(np.prod(shape))
    if dtype_name == "bfloat16":
        import torch

        flat = torch.full((size + 2 * GUARD,), float("nan"), dtype=torch.bfloat16, device="cuda")
    else:
        flat = cupy.full(size + 2 * GUARD, np.nan, dtype_name)
    return flat[GUARD : GUARD + size].reshape(shape), flat


def serves(name, problem):
    return not dispatch.kernel(name).why_not(problem, HERE)


def served(cases):
    return [(name, case) for name in FORWARD for case in cases if serves(name, case.problem())]


@pytest.fixture(autouse=True)
def believed(monkeypatch):
    """These tests check each kernel themselves, the first answer too."""
    monkeypatch.setenv("CONVLIB_TRUST", "all")


@pytest.mark.parametrize(("name", "case"), served(TINY + SMALL), ids=str)
def test_passes_verification(name, case):
    checks.check(name, case, "forward", device.gpu(0))


def arguments(case, integers=True):
    x, w, bias, residual, out = arrays_of(case, integers=integers)
    return (x, w, bias, residual, out), [on_gpu(a, case.dtype) for a in (x, w, bias, residual)]


@pytest.mark.parametrize(("name", "case"), served(TINY + SMALL + LARGE), ids=str)
def test_equals_the_reference_and_writes_nothing_else(name, case):
    (x, w, bias, residual, out), (gx, gw, gb, gr) = arguments(case)
    y, flat = guarded(out.shape, case.dtype)

    result = convlib.conv2d(gx, gw, gb, residual=gr, out=y, **case.keywords, **forced(name))

    assert result is y
    assert_close(case, dispatch.algorithm_of(name), np.ascontiguousarray(to_host(y)), x, w, bias, residual)
    around = to_host(flat).astype(np.float32)
    assert np.isnan(around[:GUARD]).all(), "written before the result"
    assert np.isnan(around[-GUARD:]).all(), "written past the result"
    for given, before in zip((gx, gw, gb, gr), (x, w, bias, residual)):
        if given is not None:
            np.testing.assert_array_equal(to_host(given).astype(np.float64), before.astype(np.float64))


@pytest.mark.parametrize(("name", "case"), served(TINY + SMALL + LARGE), ids=str)
def test_gives_the_same_bits_twice_and_through_a_plan(name, case):
    _, (x, w, bias, residual) = arguments(case, integers=False)
    call = {**case.keywords, **forced(name)}
    plan = convlib.plan(tuple(x.shape), w, bias, residual=residual is not None, **call)
    results = [convlib.conv2d(x, w, bias, residual=residual, **call) for _ in range(3)]
    results.append(plan(x, residual=residual))
    first, *others = (to_host(y).view(np.uint8) for y in results)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("name", FORWARD)
def test_a_plan_can_be_captured_in_a_graph(name):
    """No allocation, no synchronisation, everything on the caller's stream: a replay then sees the new image."""
    import cupy

    case = next(case for case in LARGE + SMALL + TINY if serves(name, case.problem()) and not case.residual)
    _, (x, w, bias, _) = arguments(case)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        plan = convlib.plan(x.shape, w, bias, **case.keywords, **forced(name))
        y = plan(x)
        stream.synchronize()
        stream.begin_capture()
        plan(x, out=y)
        graph = stream.end_capture()
        x *= 2
        y[...] = np.nan
        graph.launch()
        stream.synchronize()
        wanted = plan(x)
    np.testing.assert_array_equal(y.get(), wanted.get())


def strided(stride):
    return replace(LARGE[7], keywords={"padding": 1, "stride": stride}, dtype="float32")


def strides_served():
    for name, stride in product(FORWARD, (1, 2)):
        parts = [phase.problem for phase in phases(strided(stride).problem()) if phase.problem]
        if all(serves(name, part) for part in parts):
            yield name, stride


@pytest.mark.parametrize(("name", "stride"), list(strides_served()))
def test_input_gradients_through_every_kernel(name, stride):
    case = strided(stride)
    x, w, *_ = arrays_of(case)
    problem = make_problem(case.x, case.w, np.dtype("float32"), padding=1, stride=stride)
    grad_y = np.random.default_rng(1).integers(-3, 4, problem.y_shape).astype(np.float32)
    got = convlib.conv2d_input_grad(
        on_gpu(grad_y, "float32"), on_gpu(w, "float32"), x.shape, **case.keywords, **forced(name)
    )
    exact, magnitude = (
        convlib.conv2d_input_grad(a.astype(float), b.astype(float), x.shape, **case.keywords, algorithm="direct")
        for a, b in ((grad_y, w), (abs(grad_y), abs(w)))
    )
    algorithm = dispatch.algorithm_of(name)
    if accuracy.sums_plainly(algorithm):
        np.testing.assert_array_equal(got.get(), exact)
    assert (abs(got.get() - exact) <= accuracy.elementwise(problem, algorithm, magnitude, exact)).all()


BACKWARD_SERVED = [
    (name, case)
    for name, case in product(BACKWARD, TINY + SMALL + LARGE)
    if not case.residual and serves(name, case.problem("weight_grad"))
]


@pytest.mark.parametrize(("name", "case"), BACKWARD_SERVED, ids=str)
def test_weight_gradients_equal_the_reference_with_the_same_bits(name, case):
    (x, w, *_), (gx, *_) = arguments(case)
    problem = case.problem()
    keywords = {key: value for key, value in case.keywords.items() if key != "activation"}
    shape = operands.result_shape(problem, True)
    grad_y = np.random.default_rng(1).integers(-3, 4, shape).astype(x.dtype)
    results = [
        to_host(convlib.conv2d_weight_grad(gx, on_gpu(grad_y, case.dtype), w.shape, **keywords, **forced(name)))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*(result.view(np.uint8) for result in results))
    keywords.pop("precision", None)  # which float64 has none of
    exact = convlib.conv2d_weight_grad(x.astype(float), grad_y.astype(float), w.shape, **keywords)
    np.testing.assert_array_equal(results[0].astype(float), exact.astype(x.dtype).astype(float))
