"""The problems that every listed kernel is held against, by tests and by `python -m convlib verify`, and their data.

Sizes are odd, and lie under, on and past the tiles that kernels use. Arrays lie between guards, contiguous, as slices
of something larger, reversed, or repeated. Add a problem here and every kernel is held against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .. import operands
from ..kernels import reference
from ..problem import make_problem, named_dtype
from ..strided import empty_aligned

GUARD = 4096  # bytes before and after every array; a multiple of every alignment that a kernel may count on
UNWRITTEN = 0xFF  # what they and the gaps between elements are filled with: NaN in every dtype, -1 as an offset


@dataclass(frozen=True)
class Case:
    """A problem by its shapes and conv2d's own keywords, and how its arrays lie in memory."""

    name: str
    x: tuple
    w: tuple
    keywords: dict = field(default_factory=dict, hash=False)
    bias: bool = False
    residual: bool = False
    dtype: str = "float32"
    memory: str = "contiguous"

    def problem(self, pass_="forward"):
        """The ConvProblem; of a gradient, without what only a forward pass has: bias, residual and activation."""
        forward = pass_ == "forward"
        dropped = ("flip_kernel",) if forward else ("flip_kernel", "activation")
        return make_problem(
            self.x, self.w, named_dtype(self.dtype), pass_=pass_, has_bias=self.bias and forward,
            has_residual=self.residual and forward, **{k: v for k, v in self.keywords.items() if k not in dropped},
        )  # fmt: skip

    def in_float64(self):
        """The same question in float64, without a name, as one exact answer serves several."""
        keywords = {name: value for name, value in self.keywords.items() if name != "precision"}
        return replace(self, name="", dtype="float64", keywords=keywords)

    @property
    def result_memory(self):
        return "slices" if self.memory == "slices" else "contiguous"

    @property
    def residual_memory(self):
        """Otherwise than the result: a kernel that takes one's strides for the other's is found out."""
        return "sparse" if self.memory == "slices" else self.memory

    def __str__(self):
        return self.name


# Tiny, for Numba's simulator and the emulator too (about 1,000 threads a second in the simulator).
TINY = (
    Case("1x1", (1, 3, 5, 7), (4, 3, 1, 1)),
    Case("3x3_same", (2, 3, 6, 5), (5, 3, 3, 3), {"padding": "same"}, bias=True),
    Case("one_pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    Case("one_output", (1, 2, 3, 3), (2, 2, 3, 3)),
    Case("7x7_stride_2", (1, 2, 11, 9), (3, 2, 7, 7), {"stride": 2, "padding": 3}),
    Case("asymmetric_padding", (1, 2, 5, 6), (3, 2, 3, 2), {"padding": ((2, 0), (1, 3))}),
    Case("padding_wider_than_window", (1, 1, 3, 3), (2, 1, 2, 2), {"padding": ((3, 4), (0, 2))}),
    Case("stride_3_by_2", (1, 2, 9, 8), (3, 2, 2, 3), {"stride": (3, 2), "padding": 1}),
    Case("dilation", (1, 2, 9, 11), (2, 2, 3, 3), {"dilation": (2, 3), "padding": (2, 1)}),
    Case("dilation_and_stride", (1, 1, 12, 11), (2, 1, 3, 2), {"dilation": 2, "stride": 2, "padding": 1}),
    Case("groups", (1, 6, 5, 5), (4, 3, 3, 3), {"groups": 2, "padding": 1}, bias=True),
    Case("depthwise", (2, 5, 6, 7), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    Case("depthwise_one_image", (1, 3, 7, 6), (3, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    Case("depthwise_last_row_unread", (1, 16, 6, 6), (16, 1, 3, 3), {"groups": 16, "stride": 2}),
    Case("depthwise_float16", (1, 5, 9, 21), (5, 1, 3, 3), {"groups": 5, "padding": 1, "stride": 2}, dtype="float16"),
    Case("depthwise_stride_2_two_filters", (1, 3, 7, 7), (6, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    Case("depthwise_5x4", (1, 3, 7, 6), (3, 1, 5, 4), {"groups": 3, "padding": 2}, bias=True),
    Case("flipped", (1, 2, 5, 4), (2, 2, 3, 2), {"flip_kernel": True}),
    Case("slices", (1, 3, 5, 6), (2, 3, 3, 3), {"padding": 1}, bias=True, residual=True, memory="slices"),
    Case("negative_strides", (1, 2, 5, 6), (3, 2, 2, 3), memory="reversed"),
    Case("broadcast", (3, 2, 4, 4), (2, 2, 3, 3), memory="broadcast"),
    Case("nhwc", (2, 5, 4, 3), (4, 3, 3, 3), {"layout": "NHWC", "padding": 1}, bias=True, residual=True),
    Case("nhwc_ohwi_groups", (1, 5, 6, 4), (6, 2, 3, 2), {"layout": "NHWC", "weight_layout": "OHWI", "groups": 2}),
    Case("nhwc_rgb", (2, 6, 9, 3), (3, 1, 3, 3), {"layout": "NHWC", "padding": 1, "groups": 3}, bias=True),
    Case("hwio", (1, 3, 5, 5), (2, 3, 3, 4), {"weight_layout": "HWIO"}),
    Case("relu", (1, 2, 5, 5), (3, 2, 3, 3), {"activation": "relu"}, bias=True),
    Case("relu6_residual", (1, 2, 5, 5), (3, 2, 3, 3), {"activation": "relu6", "padding": 1}, residual=True),
    Case("leaky_relu", (1, 2, 5, 5), (3, 2, 3, 3), {"activation": ("leaky_relu", 0.25)}, bias=True),
    Case("silu", (1, 2, 5, 5), (3, 2, 3, 3), {"activation": "silu", "padding": 1}, bias=True, residual=True),
    Case("float64", (1, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}, bias=True, dtype="float64"),
    Case("float16", (1, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}, bias=True, residual=True, dtype="float16"),
    Case("bfloat16", (1, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}, bias=True, residual=True, dtype="bfloat16"),
    Case("in_runs", (2, 8, 5, 7), (16, 8, 3, 3), {"padding": 1}),
    Case("in_vectors", (2, 5, 7, 8), (12, 8, 3, 3), {"layout": "NHWC", "padding": 1}),
    Case("tf32", (2, 8, 6, 5), (9, 8, 3, 3), {"padding": 1, "precision": "tf32"}, bias=True),
    Case("3xtf32", (1, 6, 5, 20), (12, 20, 3, 2), {"layout": "NHWC", "precision": "3xtf32"}, residual=True),
)

NHWC = {"layout": "NHWC"}

# Larger, past every tile in every dimension; for compiled kernels on a CPU and for a GPU.
SMALL = (
    Case("many_channels", (1, 67, 13, 17), (71, 67, 3, 3), {"padding": 1}, bias=True),
    Case("many_filters_1x1", (2, 130, 9, 9), (133, 130, 1, 1)),
    Case("1x1_in_halves", (1, 22, 11, 13), (64, 22, 1, 1), {"activation": "relu"}, bias=True),
    Case("1x1_in_halves_groups", (2, 20, 21, 19), (128, 10, 1, 1), {"groups": 2, "stride": 2}, residual=True),
    Case("1x1_in_quarters", (1, 12, 13, 17), (32, 12, 1, 1), {"activation": "relu"}, bias=True),
    Case("1x1_in_quarters_stride_2", (2, 8, 29, 33), (32, 8, 1, 1), {"stride": 2}, residual=True),
    Case("patches_in_halves", (1, 6, 27, 23), (64, 6, 2, 2), {"stride": 2}, bias=True),
    Case("patches_of_3_rows", (2, 4, 37, 61), (96, 4, 3, 5), {"stride": (3, 5), "activation": "relu"}, residual=True),
    Case("wide_row", (1, 3, 3, 300), (5, 3, 3, 3), {"padding": 1}),
    Case("tall", (1, 2, 259, 5), (3, 2, 5, 3), {"padding": (2, 1)}),
    Case("first_layer", (2, 3, 33, 35), (17, 3, 7, 7), {"stride": 2, "padding": 3}, bias=True),
    Case(
        "first_layer_3x3", (2, 3, 14, 21), (9, 3, 3, 3), {"padding": ((2, 0), (1, 3)), "activation": "relu"}, bias=True
    ),
    Case("strided_1x1", (1, 40, 15, 15), (33, 40, 1, 1), {"stride": 2}),
    Case("strided_3x3", (2, 19, 21, 27), (35, 19, 3, 3), {"stride": 2, "padding": 1}, bias=True),
    Case("depthwise_wide", (2, 37, 29, 31), (37, 1, 3, 3), {"groups": 37, "padding": 1}, bias=True),
    Case("depthwise_5x5_stride_2", (1, 20, 30, 29), (20, 1, 5, 5), {"groups": 20, "stride": 2, "padding": 2}),
    Case("image_filter_15x15", (1, 1, 70, 81), (1, 1, 15, 15), {"padding": 7}),
    Case("image_filter_31x31", (1, 1, 50, 61), (1, 1, 31, 31), {"padding": "same"}),
    Case("nhwc_wide", (1, 21, 23, 35), (40, 35, 3, 3), {"layout": "NHWC", "padding": 1}, bias=True),
    Case("nhwc_first_layer", (2, 7, 11, 3), (32, 3, 3, 3), {**NHWC, "padding": ((2, 0), (1, 3))}, bias=True),
    Case("nhwc_two_filters", (1, 9, 37, 2), (4, 1, 3, 5), {**NHWC, "groups": 2, "padding": 2}, residual=True),
    Case("nhwc_5_dilated", (2, 13, 41, 5), (5, 1, 3, 3), {**NHWC, "groups": 5, "dilation": (2, 3)}, bias=True),
    Case("nhwc_5_asymmetric", (1, 13, 41, 5), (5, 1, 3, 3), {**NHWC, "groups": 5, "padding": ((2, 0), (1, 3))}),
    Case("nhwc_depthwise_20", (1, 9, 11, 20), (20, 1, 3, 3), {**NHWC, "groups": 20, "padding": 1}),
    Case("nhwc_rgb_slices", (2, 9, 30, 3), (3, 1, 3, 3), {**NHWC, "groups": 3}, memory="slices"),
    Case("nhwc_rgb_float16", (1, 9, 70, 3), (3, 1, 5, 5), {**NHWC, "groups": 3, "padding": 2}, dtype="float16"),
    Case("nhwc_rgb_bfloat16", (1, 9, 70, 3), (3, 1, 5, 5), {**NHWC, "groups": 3}, residual=True, dtype="bfloat16"),
    Case("nhwc_rgb_float64", (1, 9, 70, 3), (3, 1, 5, 5), {**NHWC, "groups": 3, "padding": 2}, dtype="float64"),
    Case("groups_wide", (2, 48, 14, 15), (64, 12, 3, 3), {"groups": 4, "padding": 1}, residual=True),
    Case("few_filters", (1, 64, 20, 21), (2, 64, 1, 1), bias=True),
    Case("batch", (9, 16, 7, 7), (24, 16, 3, 3), {"padding": 1, "activation": "relu"}, bias=True),
    Case("slices_wide", (2, 33, 18, 37), (34, 33, 3, 3), {"padding": 1}, residual=True, memory="slices"),
    Case("float64_wide", (1, 35, 14, 19), (37, 35, 3, 3), {"padding": 1}, dtype="float64"),
    Case("float16_wide", (1, 35, 14, 19), (37, 35, 3, 3), {"padding": 1}, dtype="float16"),
    Case("bfloat16_wide", (1, 35, 14, 19), (37, 35, 3, 3), {"padding": 1}, dtype="bfloat16"),
)

# Layers of known networks, for a GPU.
LARGE = (
    Case("resnet_3x3", (4, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, bias=True),
    Case("resnet_3x3_late", (8, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}, bias=True),
    Case("resnet_1x1_strided", (4, 256, 56, 56), (512, 256, 1, 1), {"stride": 2}),
    Case("resnet_first", (4, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}, bias=True),
    Case("vgg_3x3", (1, 128, 112, 112), (128, 128, 3, 3), {"padding": 1, "activation": "relu"}, bias=True),
    Case("vgg_3x3_nhwc", (1, 56, 56, 256), (256, 256, 3, 3), {"padding": 1, "layout": "NHWC"}, bias=True),
    Case("mobilenet_depthwise", (8, 96, 112, 112), (96, 1, 3, 3), {"padding": 1, "stride": 2, "groups": 96}),
    Case("float16_3x3", (2, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}, dtype="float16"),
    Case("float64_3x3", (2, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}, dtype="float64"),
)

# The emulator executes some million instructions a second: of the larger problems those that stick out of every tile.
PAST_EVERY_TILE = ("many_channels", "nhwc_wide", "groups_wide", "depthwise_wide")
MOST_TAPS = 200_000  # for which the reference takes a few seconds
# For --quick: one and two images, both layouts, groups, strides, and sizes under and past a tile.
QUICK = (
    "one_output", "3x3_same", "nhwc", "depthwise", "depthwise_one_image", "depthwise_stride_2_two_filters",
    "depthwise_5x4", "wide_row", "first_layer", "first_layer_3x3", "strided_3x3", "nhwc_wide", "groups_wide",
    "1x1_in_halves", "1x1_in_halves_groups", "dilation", "1x1_in_quarters", "1x1_in_quarters_stride_2",
    "nhwc_5_dilated", "tf32", "3xtf32",
)  # fmt: skip
QUICK_EMULATED = (
    "3x3_same", "nhwc", "depthwise", "depthwise_one_image", "depthwise_5x4", "groups", "tf32", "3xtf32",
)  # fmt: skip


def cases_for(kind, dtype, extent="full") -> list[Case]:
    """The problems that a kernel is verified on in `dtype` on a device of this kind. extent: "full" or "quick"."""
    cases = TINY + SMALL
    if kind == "cuda":
        cases += tuple(case for case in LARGE if math.prod(case.w) <= MOST_TAPS)
    if kind == "emulator":
        cases = tuple(case for case in cases if case in TINY or case.name in PAST_EVERY_TILE)
    if extent != "full":
        names = QUICK_EMULATED if kind == "emulator" else QUICK
        cases = tuple(case for case in cases if case.name in names)
    if dtype != "float32":
        cases = tuple(case for case in cases if "precision" not in case.keywords)
    return [replace(case, dtype=dtype) for case in cases if case.dtype in ("float32", dtype)]


def arrays_of(case, seed=0, integers=True):
    """x, w, bias, residual and a NaN-filled out for `case`, in the layouts its keywords name."""
    random = np.random.default_rng(seed)
    problem = case.problem()
    y_shape = operands.result_shape(problem, batched=True)
    dtype = problem.dtype

    def values(shape):
        if integers:  # then float32 sums are exact, and a test may ask for equality
            return random.integers(-3, 4, shape).astype(dtype)
        return random.standard_normal(shape).astype(dtype)

    x, w = (in_memory(values(shape), case.memory) for shape in (case.x, case.w))
    residual = in_memory(values(y_shape), case.residual_memory)
    out = in_memory(np.full(y_shape, np.nan).astype(dtype), case.result_memory)
    return x, w, values(problem.K) if case.bias else None, residual if case.residual else None, out


def in_memory(array, memory):
    """The same values laid out otherwise: as every second or third of a larger array, reversed, or by a zero stride."""
    return placed(array, memory).view


@dataclass(frozen=True, slots=True)
class Placed:
    """An array with the bytes around it. flat: all of them, on a 64-byte boundary; view: the array in them."""

    flat: np.ndarray
    view: np.ndarray

    @property
    def offset(self) -> int:
        """Where in `flat` the view's first element lies."""
        return address(self.view) - address(self.flat)

    def seen_in(self, flat) -> np.ndarray:
        """The same view of other bytes."""
        return np.ndarray(self.view.shape, self.view.dtype, flat, self.offset, self.view.strides)

    def beside(self) -> np.ndarray:
        """Which bytes of `flat` belong to no element of the view."""
        beside = np.ones(self.flat.size, bool)
        shape, strides = (*self.view.shape, self.view.itemsize), (*self.view.strides, 1)
        np.ndarray(shape, bool, beside, self.offset, strides)[...] = False
        return beside


def address(array) -> int:
    return array.__array_interface__["data"][0]


def placed(array, memory="contiguous") -> Placed:
    """A copy of `array` as `memory` says, between guards; what no element has is UNWRITTEN."""
    item, shape = array.itemsize, array.shape
    step = {"slices": 2, "sparse": 3}.get(memory)
    strides = strides_of([step * size + 3 for size in shape] if step else shape, item)
    if step:
        strides = [step * stride for stride in strides]
    elif memory == "reversed":
        strides = [*strides[:-2], *(-stride for stride in strides[-2:])]
    elif memory == "broadcast":
        strides, array = [0, *strides[1:]], array[:1]
    spans = [max(size - 1, 0) * stride for size, stride in zip(shape, strides)]
    before = -sum(span for span in spans if span < 0)
    flat = unwritten(GUARD + sum(map(abs, spans)) + item * (array.size > 0) + GUARD)
    view = np.ndarray(shape, array.dtype, flat, GUARD + before, strides)
    view[: len(array)] = array
    return Placed(flat, view)


def unwritten(count):
    """`count` bytes that nobody wrote."""
    flat = empty_aligned((count,), np.uint8)
    flat[:] = UNWRITTEN
    return flat


def strides_of(shape, item):
    """The strides in bytes of a C-contiguous array."""
    strides = [item]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return strides


def logical_arrays(case, x, w, bias, residual):
    """The arrays of `case` as the reference and the kernels take them: N C H W, K C R S, windows flipped if asked."""
    order = operands.FROM_LAYOUT[case.keywords.get("layout", "NCHW")]
    weight_layout = case.keywords.get("weight_layout", "OIHW")
    w = operands.weights_view(w, weight_layout, case.keywords.get("flip_kernel", False))
    return x.transpose(order), w, bias, None if residual is None else residual.transpose(order)


def expected(case, x, w, bias, residual, **options):
    """The reference's float64 answer, and the magnitude that its rounding bound is measured in; both N K P Q."""
    problem = case.problem()
    x, w, bias, residual = logical_arrays(case, x, w, bias, residual)
    return reference.conv2d(problem, x, w, bias, residual, **options), magnitude_of(problem, x, w, bias, residual)


def magnitude_of(problem, x, w, bias=None, residual=None):
    """|x| conv |w| + |bias| + |residual|, N K P Q."""
    sizes = (None if a is None else np.abs(reference.as_float64(problem, a)) for a in (x, w, bias, residual))
    linear = make_problem(
        problem.x_shape, problem.w_shape, np.dtype(np.float64), stride=problem.stride, padding=problem.padding,
        dilation=problem.dilation, groups=problem.groups, has_bias=problem.has_bias, has_residual=problem.has_residual,
    )  # fmt: skip
    return reference.conv2d(linear, *sizes)
