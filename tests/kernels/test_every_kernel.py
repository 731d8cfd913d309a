"""Every listed kernel against the reference, through conv2d: adding a kernel to the list tests it here.

CPU kernels run as they are. GPU kernels run on a GPU where there is one; in Numba's simulator and in the PTX emulator
they have suites of their own (tests/kernels/numba_cuda, tests/convlib/emulator), on the same problems.
"""

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy, device, dispatch, operands, strided
from convlib.device import Device
from convlib.kernels import reference
from convlib.problem import make_problem
from convlib.verification.problems import SMALL, TINY, arrays_of, expected, logical_arrays

CPU_KERNELS = [name for name in dispatch.KERNELS if "cpu" in dispatch.FAMILIES[dispatch.family_of(name)].runs_on]


def forced(name):
    return {"backend": dispatch.family_of(name), "algorithm": dispatch.algorithm_of(name), "max_error": 1.0}


def why_not(name, case):
    return dispatch.kernel(name).why_not(case.problem(), device.cpu())


def of_pass(pass_):
    return [name for name in CPU_KERNELS if pass_ in dispatch.kernel(name).passes]


PAIRS = [(name, case) for name in of_pass("forward") for case in TINY + SMALL]
SERVED = [pair for pair in PAIRS if not why_not(*pair)]
REFUSED = [pair for pair in PAIRS if why_not(*pair)]


@pytest.mark.parametrize(("name", "case"), SERVED, ids=str)
def test_equals_the_reference(name, case):
    x, w, bias, residual, out = arrays_of(case)
    before = [None if a is None else a.copy() for a in (x, w, bias, residual)]

    y = convlib.conv2d(x, w, bias, residual=residual, out=out, **case.keywords, **forced(name))

    assert y is out
    assert_close(case, dispatch.algorithm_of(name), y, x, w, bias, residual)
    for array, copy in zip((x, w, bias, residual), before, strict=True):
        if array is not None:
            np.testing.assert_array_equal(array, copy, err_msg="an input was written")


@pytest.mark.parametrize(("name", "case"), SERVED, ids=str)
def test_gives_the_same_bits_twice_and_through_a_plan(name, case):
    x, w, bias, residual, _ = arrays_of(case, integers=False)
    call = {**case.keywords, **forced(name)}
    y = convlib.conv2d(x, w, bias, residual=residual, **call)
    np.testing.assert_array_equal(y, convlib.conv2d(x, w, bias, residual=residual, **call))
    plan = convlib.plan(x.shape, w, bias, residual=residual is not None, **call)
    np.testing.assert_array_equal(y, plan(x, residual=residual))


@pytest.mark.parametrize(("name", "case"), SERVED, ids=str)
def test_reads_nothing_before_it_is_written(name, case):
    """Packed weights and workspace begin as NaN in every type, and as -1 where offsets go."""
    kernel, problem, place = dispatch.kernel(name), case.problem(), device.cpu()
    x, w, bias, residual, out = arrays_of(case)
    x, w, bias, residual = logical_arrays(case, x, w, bias, residual)
    order = operands.FROM_LAYOUT[problem.layout]
    if hasattr(kernel, "pack"):
        packed = poisoned(kernel.packed_bytes(problem, place))
        kernel.pack(problem, place, w, packed)
        w = packed
    workspace = poisoned(kernel.workspace_bytes(problem, place))

    kernel.run(problem, place, x, w, out.transpose(order), bias, residual, workspace=workspace)

    assert_close(case, dispatch.algorithm_of(name), out, *arrays_of(case)[:4])


def poisoned(count):
    memory = strided.empty_aligned((count,), np.uint8)
    memory[:] = 255
    return memory


@pytest.mark.parametrize(("name", "case"), REFUSED, ids=str)
def test_refuses_in_words(name, case):
    x, w, bias, residual, out = arrays_of(case)
    with pytest.raises(convlib.UnsupportedError, match=name):
        convlib.conv2d(x, w, bias, residual=residual, out=out, **case.keywords, **forced(name))
    assert np.isnan(out.astype(np.float32)).all(), "a refused call wrote into out"


@pytest.mark.parametrize("case", [case for case in TINY + SMALL if not case.residual], ids=str)
@pytest.mark.parametrize("name", of_pass("weight_grad"))
def test_weight_grad_equals_the_reference_or_refuses(name, case):
    x, w, *_ = arrays_of(case)
    problem = case.problem("weight_grad")
    keywords = {k: v for k, v in case.keywords.items() if k != "activation"}
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(x.dtype)
    out, order = np.full(w.shape, np.nan).astype(x.dtype), operands.FROM_LAYOUT[problem.layout]

    if dispatch.kernel(name).why_not(problem, device.cpu()):
        with pytest.raises(convlib.UnsupportedError, match=name):
            convlib.conv2d_weight_grad(x, grad_y, w.shape, out=out, **keywords, **forced(name))
        assert np.isnan(out.astype(np.float32)).all(), "a refused call wrote into out"
        return
    convlib.conv2d_weight_grad(x, grad_y, w.shape, out=out, **keywords, **forced(name))

    x, grad_y = x.transpose(order), grad_y.transpose(order)
    exact, magnitude = reference.weight_grad(problem, x, grad_y), reference.weight_grad(problem, abs(x), abs(grad_y))
    got = operands.weights_view(out, keywords.get("weight_layout", "OIHW"), keywords.get("flip_kernel", False))
    assert_near(problem, dispatch.algorithm_of(name), got.astype(np.float64), exact, magnitude)


@pytest.mark.parametrize("case", [case for case in TINY + SMALL if not case.residual], ids=str)
@pytest.mark.parametrize("name", of_pass("input_grad"))
def test_input_grad_equals_the_reference_or_refuses(name, case):
    x, w, *_ = arrays_of(case)
    keywords = {k: v for k, v in case.keywords.items() if k != "activation"}
    problem = replace(case.problem(), pass_="input_grad", has_bias=False, activation=None)
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(x.dtype)
    out, order = np.full(x.shape, np.nan).astype(x.dtype), operands.FROM_LAYOUT[problem.layout]

    if dispatch.kernel(name).why_not(problem, device.cpu()):
        with pytest.raises(convlib.UnsupportedError, match=name):
            convlib.conv2d_input_grad(grad_y, w, x.shape, out=out, **keywords, **forced(name))
        assert np.isnan(out.astype(np.float32)).all(), "a refused call wrote into out"
        return
    convlib.conv2d_input_grad(grad_y, w, x.shape, out=out, **keywords, **forced(name))

    w = operands.weights_view(w, keywords.get("weight_layout", "OIHW"), keywords.get("flip_kernel", False))
    exact = reference.input_grad(problem, grad_y.transpose(order), w)
    np.testing.assert_array_equal(out.transpose(order).astype(float), exact.astype(x.dtype).astype(float))


@pytest.mark.parametrize("name", of_pass("weight_grad"))
def test_weight_grad_gives_the_same_bits_for_every_number_of_threads(name):
    random = np.random.default_rng(0)
    x, grad_y = (random.standard_normal(shape).astype(np.float32) for shape in ((5, 9, 12, 13), (5, 50, 12, 13)))
    problem = make_problem(x.shape, (50, 9, 3, 3), x.dtype, padding=1, pass_="weight_grad")
    results = []
    for threads in (1, 2, 3, 7):
        place = Device("cpu", threads=threads)
        workspace = np.full(dispatch.kernel(name).workspace_bytes(problem, place), 255, np.uint8)
        results.append(np.empty((50, 9, 3, 3), np.float32))
        dispatch.kernel(name).run(problem, place, x, grad_y, results[-1], workspace=workspace)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def assert_close(case, algorithm, y, x, w, bias, residual):
    problem = case.problem()
    exact, magnitude = expected(case, x, w, bias, residual)
    got = y.astype(np.float64)
    if problem.layout == "NHWC":
        got = got.transpose(0, 3, 1, 2)
    assert_near(problem, algorithm, got, exact, magnitude)


def assert_near(problem, algorithm, got, exact, magnitude):
    """Within the derived bound of the exact result; and exactly, where every sum of small integers is exact."""
    if accuracy.sums_plainly(algorithm) and problem.activation in (None, "relu", "relu6"):
        np.testing.assert_array_equal(got, exact.astype(problem.dtype).astype(np.float64))
    excess = np.abs(got - exact) - accuracy.elementwise(problem, algorithm, magnitude, exact)
    assert not np.any(np.isnan(got)), "an output was never written"
    assert excess.max() <= 0, (
        f"past the bound by {excess.max():.3g} at {np.unravel_index(excess.argmax(), excess.shape)}"
    )
