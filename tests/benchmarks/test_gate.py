"""The gate's float64 results are the definition's, and it lets nothing else through."""

import numpy as np
import pytest

from benchmarks import cases, gate
from benchmarks.candidate import Candidate
from convlib.kernels import reference
from convlib.problem import make_problem

PROBLEMS = {
    "stride, padding, dilation": ((2, 3, 11, 9), (4, 3, 3, 2), {"stride": 2, "padding": (2, 1), "dilation": (1, 2)}),
    "asymmetric padding": ((1, 2, 5, 6), (3, 2, 3, 2), {"padding": ((2, 0), (1, 3))}),
    "groups": ((1, 6, 5, 5), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((1, 5, 8, 7), (5, 1, 3, 3), {"groups": 5, "stride": 2, "padding": 1}),
    "bias": ((1, 3, 6, 5), (4, 3, 1, 1), {"has_bias": True}),
    "large filter, even": ((1, 1, 19, 23), (1, 1, 8, 9), {"padding": (4, 3)}),
    "large filter, three channels": ((2, 3, 17, 16), (3, 1, 11, 13), {"groups": 3, "padding": ((5, 0), (1, 6))}),
}


def case_of(name):
    x, w, keywords = PROBLEMS[name]
    return cases.Case("filters" if "filter" in name else "any", name, make_problem(x, w, "float32", **keywords))


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_results_are_the_definition(name):
    case = case_of(name)
    operands = cases.operands(case)
    wanted = reference.conv2d(case.problem, operands.x, operands.w, operands.bias)
    np.testing.assert_allclose(gate.exact(case, operands), wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("pass_", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("name", [name for name in PROBLEMS if "filter" not in name])
def test_exact_gradients_are_the_definition(name, pass_):
    x, w, keywords = PROBLEMS[name]
    case = cases.Case("any-" + pass_.replace("_", "-"), name, make_problem(x, w, "float32", pass_=pass_, **keywords))
    operands = cases.operands(case)
    first, second = (operands.grad_y, operands.w) if pass_ == "input_grad" else (operands.x, operands.grad_y)
    wanted = getattr(reference, pass_)(case.problem, first, second)
    np.testing.assert_allclose(gate.exact(case, operands), wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


def test_both_ways_to_an_exact_result_are_taken():
    ways = {gate.is_large_filter(case_of(name).problem) for name in PROBLEMS}
    assert ways == {True, False}


def answering(y, max_error=5e-6):
    return Candidate("some", lambda: None, lambda: y, max_error)


def test_right_answers_pass_with_their_error():
    wanted = np.arange(1.0, 13).reshape(1, 2, 2, 3)
    assert gate.check(answering(wanted * (1 + 1e-6)), wanted) == pytest.approx(1e-6)


@pytest.mark.parametrize("fault", ["one pixel", "shape", "NaN", "transposed", "zero"])
def test_wrong_answers_do_not_pass(fault):
    wanted = np.random.default_rng(0).standard_normal((1, 8, 20, 20))
    y = wanted.astype(np.float32)
    if fault == "one pixel":
        y[0, 3, 7, 7] += 1e-2
    elif fault == "shape":
        y = y[:, :, :, 1:]
    elif fault == "NaN":
        y[0, 0, 0, 0] = np.nan
    elif fault == "transposed":
        y = y.transpose(0, 1, 3, 2)
    else:
        y[:] = 0
    with pytest.raises(gate.GateError, match="against float64"):
        gate.check(answering(y), wanted)


def test_classes_part_at_their_bounds():
    assert [gate.error_class(e) for e in (5e-6, 6e-6, 1e-3, 2e-3)] == ["accurate", "fast", "fast", "wrong"]
    assert [gate.error_class(e, 2**-8) for e in (3.9e-3, 4e-3, 4.8e-3, 5e-3)] == ["accurate", "fast", "fast", "wrong"]


def test_results_of_16_bits_may_have_their_rounding_and_no_more():
    wanted = np.random.default_rng(0).standard_normal((1, 8, 20, 20))
    rounded = wanted.astype(np.float16)
    assert gate.check(answering(rounded), wanted, 2**-11) == pytest.approx(2.1e-4, rel=0.1)
    with pytest.raises(gate.GateError, match="at most 5e-06 allowed"):
        gate.check(answering(rounded), wanted)
    with pytest.raises(gate.GateError, match="at most 5e-04 allowed"):
        gate.check(answering(rounded * np.float16(1.001)), wanted, 2**-11)


def test_operands_are_the_same_each_time_and_one_filter_serves_every_channel():
    case = cases.filter_case("512", 3, 5)
    first, second = cases.operands(case), cases.operands(case)
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.w, np.repeat(second.w[:1], 3, axis=0))
    assert first.x.std() == pytest.approx(1, rel=0.01)
