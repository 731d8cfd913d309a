"""The kernel for groups of few channels: what holds beyond the shared problems of test_every_kernel."""

import numpy as np
import pytest

from convlib import dispatch
from convlib.device import Device
from convlib.kernels import reference
from convlib.kernels.numba_cpu import grouped, grouped_cuts, target
from convlib.problem import make_problem
from convlib.strided import empty_aligned

from .guarded_pages import before_a_guard

# x, w in NCHW and OIHW. Five groups of 4: the last block of a vector's groups overlaps the one before.
PROBLEMS = {
    "rows longer than a tile": ("NCHW", (2, 20, 9, 19), (20, 4, 3, 3), {"padding": 1, "groups": 5}),
    "overlapping blocks": ("NHWC", (1, 20, 9, 19), (20, 4, 3, 3), {"padding": 1, "groups": 5, "stride": 2}),
    "several vectors": ("NHWC", (1, 34, 7, 7), (80, 17, 3, 2), {"padding": 2, "groups": 2, "dilation": (2, 1)}),
    "lanes left empty": ("NCHW", (1, 6, 5, 7), (9, 2, 1, 3), {"groups": 3, "padding": (1, 0)}),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_reference_exactly(name):
    """If nothing is rounded; of weights packed and not. Nothing is read behind x or w nor written around y."""
    layout, x_shape, w_shape, keywords = PROBLEMS[name]
    order = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
    problem = make_problem(
        tuple(x_shape[axis] for axis in order), w_shape, np.dtype(np.float32), layout=layout, has_bias=True,
        has_residual=True, activation="relu", **keywords,
    )  # fmt: skip
    random = np.random.default_rng(0)

    def in_memory(shape):
        numbers = random.integers(-3, 4, tuple(shape[axis] for axis in order)).astype(np.float32)
        return before_a_guard(numbers).transpose(np.argsort(order))

    x, residual = in_memory(problem.x_shape), in_memory(problem.y_shape)
    w, bias = (before_a_guard(random.integers(-3, 4, shape).astype(np.float32)) for shape in (w_shape, w_shape[:1]))
    exact = reference.conv2d(problem, x, w, bias, residual)

    device = Device("cpu", threads=2)
    packed = empty_aligned((grouped.packed_bytes(problem, device),), np.uint8)
    grouped.pack(problem, device, w, packed)
    for weights, count in ((packed, grouped.workspace_bytes), (w, grouped.one_call_bytes)):
        workspace = empty_aligned((count(problem, device),), np.uint8)
        workspace[:] = 255  # NaN, wherever it is read before it is written
        shape = tuple(problem.y_shape[axis] for axis in order)
        wider = np.full((*shape[:-1], shape[-1] + 2), np.nan, np.float32)
        y = wider[..., :-2].transpose(np.argsort(order))
        grouped.run(problem, device, x, weights, y, bias, residual, workspace)
        np.testing.assert_array_equal(y, exact)
        assert np.isnan(wider[..., -2:]).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("groups", [3, 5, 9, 13])
def test_no_two_tasks_write_the_same_group(groups, layout):
    """Or one might add the residual to what the other has finished."""
    shape = (1, 4 * groups, 14, 14) if layout == "NCHW" else (1, 14, 14, 4 * groups)
    problem = make_problem(shape, (4 * groups, 4, 3, 3), np.dtype(np.float32), padding=1, groups=groups, layout=layout)
    together, blocks = grouped_cuts.groups_side_by_side(problem), grouped_cuts.block_count(problem)
    for tasks in {cut.block_tasks for n in (2, 16) for cut in grouped_cuts.possible_cuts(problem, n)}:
        written = []
        for task in range(tasks):
            mine = range(blocks * task // tasks, blocks * (task + 1) // tasks)
            firsts = [min(block * together, groups - together) for block in mine]
            written += {group for first in firsts for group in range(first, first + together)}
        assert sorted(written) == list(range(groups)), tasks


def test_is_chosen_for_the_first_layers_of_resnext():
    """Four channels a group, channels last, where vectors hold two groups; with four, NCHW and more channels too, where
    at most Winograd down the columns, for rows of a vector and more, comes before or next. Sixteen are Winograd's with
    channels last, whose lanes they fill, and in NCHW where one multiply-add starts per cycle.
    """
    sizes = [(128, 56, "NHWC")] if target.vector_bytes() > 16 else []
    if target.vector_bytes() == 64:
        sizes += [(128, 56, "NCHW"), (256, 28, "NHWC"), (256, 28, "NCHW"), (512, 14, "NHWC")]
        sizes += [(512, 14, "NCHW")] if target.multiply_adds_per_cycle() == 2 else []
    for channels, size, layout in sizes:
        x_shape = (1, channels, size, size) if layout == "NCHW" else (1, size, size, channels)
        weights = (channels, channels // 32, 3, 3)
        problem = make_problem(x_shape, weights, np.dtype(np.float32), padding=1, groups=32, layout=layout)
        for planned in (False, True):
            names = dispatch.ranked(problem, Device("cpu", threads=2), "auto", "auto", 5e-6, None, planned)
            first = {"numba_cpu.grouped"}
            if layout == "NCHW" and size > 16:
                first |= {"numba_cpu.winograd_columns"}
            if layout == "NHWC" and size == 14:
                first = {"numba_cpu.winograd_f4"}
            assert set(names[: len(first)]) == first, (channels, layout, planned)


@pytest.mark.skipif(target.multiply_adds_per_cycle() == 2 or target.vector_bytes() < 64, reason="measured on a Zen 4")
@pytest.mark.parametrize(
    ("channels", "size", "groups", "stride", "chosen"),
    [(24, 112, 3, 2, "blocked"), (48, 28, 3, 1, "winograd_f4"), (512, 14, 32, 1, "winograd_f4"),
     (96, 28, 8, 1, "winograd_f4"), (12, 112, 6, 2, "blocked"), (512, 28, 32, 2, "grouped"),
     (96, 112, 8, 1, "winograd_f4")],
)  # fmt: skip
def test_others_are_chosen_where_they_are_faster(channels, size, groups, stride, chosen):
    problem = make_problem(
        (1, channels, size, size), (channels, channels // groups, 3, 3), np.dtype(np.float32), padding=1, stride=stride,
        groups=groups,
    )  # fmt: skip
    for planned in (False, True):
        names = dispatch.ranked(problem, Device("cpu", threads=2), "auto", "auto", 5e-6, None, planned)
        assert names[0] == f"numba_cpu.{chosen}"
