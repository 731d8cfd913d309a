"""Both weight gradients of numba_cuda in Numba's simulator; test_in_simulator.py starts it."""

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import device, dispatch, operands
from convlib.kernels import reference
from convlib.kernels.numba_cuda import weight_grad, weight_grad_direct
from convlib.verification.problems import TINY, Case, arrays_of

SIMULATOR = device.simulator()
NAMES = [name for name in dispatch.KERNELS if name.startswith("numba_cuda.weight_grad")]
FEW = ("3x3_same", "asymmetric", "groups", "depthwise", "nhwc", "float16", "float64")
CASES = [case for case in TINY if not case.residual and any(word in case.name for word in FEW)]
PAST_A_TILE = Case("past_a_tile", (1, 33, 3, 5), (66, 33, 1, 2), {"stride": (1, 2), "padding": ((0, 0), (0, 1))})
# The simulator takes half a second for a block, of which weight_grad_direct has one for each filter and channel.
FEW_BLOCKS = [case for case in CASES if case.name in ("asymmetric_padding", "depthwise_float16", "nhwc_ohwi_groups")]
PAST = [
    Case("images_of_few_pixels", (9, 2, 2, 3), (3, 2, 2, 2)),
    Case("bfloat16_without_residual", (1, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}, dtype="bfloat16"),
    Case("window_in_chunks", (1, 1, 7, 20), (1, 1, 5, 17), {"padding": 2}),
]


def check(name, case):
    """Small integers, whose sums are exact; what is never written stays NaN."""
    problem, (x, w, *_) = case.problem(), arrays_of(case)
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(x.dtype)
    out = np.full(w.shape, np.nan).astype(x.dtype)
    keywords = {key: value for key, value in case.keywords.items() if key != "activation"}
    forced = {"backend": dispatch.family_of(name), "algorithm": dispatch.algorithm_of(name)}

    convlib.conv2d_weight_grad(x, grad_y, w.shape, out=out, **keywords, **forced)

    order = operands.FROM_LAYOUT[problem.layout]
    exact = reference.weight_grad(problem, x.transpose(order), grad_y.transpose(order))
    got = operands.weights_view(out, keywords.get("weight_layout", "OIHW"), keywords.get("flip_kernel", False))
    np.testing.assert_array_equal(got.astype(float), exact.astype(x.dtype).astype(float))


@pytest.mark.parametrize("case", [*CASES, PAST_A_TILE, *PAST], ids=str)
def test_the_product_equals_the_reference(case):
    check("numba_cuda.weight_grad", case)


@pytest.mark.parametrize("case", FEW_BLOCKS + PAST, ids=str)
def test_the_direct_sums_equal_the_reference(case):
    check("numba_cuda.weight_grad_direct", case)


@pytest.fixture
def several_splits(monkeypatch):
    most = lambda problem, device, cut: 1.0 / cut.splits  # noqa: E731
    monkeypatch.setattr(weight_grad, "FEWEST_STAGES", 1)
    monkeypatch.setattr(weight_grad, "seconds", most)
    monkeypatch.setattr(weight_grad_direct, "FEWEST_PIXELS", 20)
    for module in (weight_grad, weight_grad_direct):
        monkeypatch.setattr(module, "cut_for", module.cut_for.__wrapped__)


@pytest.mark.parametrize("name", NAMES)
def test_splits_of_the_pixels_are_added(name, several_splits):
    case = Case("splits", (2, 1, 7, 9), (2, 1, 3, 3), {"padding": 1})
    problem = replace(case.problem(), pass_="weight_grad")
    assert dispatch.kernel(name).cut_for(problem, SIMULATOR).splits > 2
    check(name, case)
