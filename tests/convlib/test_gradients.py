"""The gradients and the transposed convolution against the reference, exactly, on small integers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import convlib
from convlib import accuracy, device, transposed
from convlib.input_grad_phases import phases
from convlib.kernels import reference
from convlib.problem import make_problem

SHAPES = [
    ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    ((1, 2, 8, 9), (3, 2, 3, 2), {"stride": 2, "padding": 1}),
    ((1, 2, 9, 7), (3, 2, 2, 3), {"stride": (3, 2), "padding": ((2, 0), (1, 3))}),
    ((1, 2, 11, 10), (2, 2, 3, 3), {"stride": 2, "dilation": (2, 3), "padding": 3}),
    ((1, 2, 10, 10), (2, 2, 2, 2), {"stride": (2, 4), "dilation": (4, 2)}),
    ((2, 6, 6, 5), (4, 3, 3, 3), {"groups": 2, "padding": "same"}),
    ((2, 4, 7, 7), (8, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
    ((1, 1, 5, 5), (1, 1, 1, 1), {"stride": 3}),
    ((1, 3, 4, 4), (2, 3, 1, 1), {"padding": 2}),
]
IDS = [f"{x}_{w}_{k}".replace(" ", "") for x, w, k in SHAPES]
DTYPES = ["float32", "float64", "float16", "bfloat16"]


def integers(shape, dtype="float32", seed=0):
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def problem_of(x, w, keywords, dtype=np.float32):
    return make_problem(x, w, np.dtype(dtype), **keywords)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x", "w", "keywords"), SHAPES, ids=IDS)
def test_input_grad_is_exact(x, w, keywords, dtype):
    problem = problem_of(x, w, keywords)
    weights, grad_y = integers(w, dtype), integers(problem.y_shape, dtype, 1)
    out = np.full(x, np.nan).astype(weights.dtype)

    got = convlib.conv2d_input_grad(grad_y, weights, x, out=out, **keywords)

    assert got is out
    exact = reference.input_grad(problem, grad_y.astype(float), weights.astype(float))
    np.testing.assert_array_equal(got.astype(float), exact.astype(weights.dtype).astype(float))


@pytest.mark.parametrize(("x", "w", "keywords"), SHAPES, ids=IDS)
def test_phases_cover_every_input_once_and_multiply_no_more_than_forward(x, w, keywords):
    problem = problem_of(x, w, keywords)
    times = np.zeros(x[2:], int)
    for phase in phases(problem):
        times[phase.inputs] += 1
    np.testing.assert_array_equal(times, 1)
    multiplied = sum(phase.problem.macs for phase in phases(problem) if phase.problem)
    padding = 1 + sum(sum(p) for p in problem.padding)
    assert multiplied <= problem.macs * padding * 4  # borders: phases round up where the window hangs over the edge


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI", "HWIO"])
@pytest.mark.parametrize("flip_kernel", [False, True])
def test_input_grad_in_every_layout(layout, weight_layout, flip_kernel):
    keywords = {"stride": 2, "padding": ((1, 0), (2, 1)), "groups": 2}
    problem = problem_of((2, 4, 7, 8), (6, 2, 3, 2), keywords)
    weights, grad_y = integers(problem.w_shape), integers(problem.y_shape, seed=1)
    exact = reference.input_grad(problem, grad_y, weights[:, :, ::-1, ::-1] if flip_kernel else weights)

    order = [("NCHW".index(axis)) for axis in layout]
    stored = weights.transpose([("OIHW".index(axis)) for axis in weight_layout])
    got = convlib.conv2d_input_grad(
        grad_y.transpose(order), stored, tuple(problem.x_shape[a] for a in order), layout=layout,
        weight_layout=weight_layout, flip_kernel=flip_kernel, **keywords,
    )  # fmt: skip

    np.testing.assert_array_equal(got, exact.transpose(order))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_input_grad_folds_its_padding_back(mode):
    """The adjoint identity <conv(pad(x)), g> = <x, grad(g)> holds exactly on integers, for every basis vector x."""
    padding, shape = ((2, 1), (1, 3)), (1, 2, 4, 5)
    weights = integers((3, 2, 2, 3))
    x = np.eye(40, dtype=np.float32).reshape(40, 2, 4, 5)
    y = convlib.conv2d(x, weights, padding=padding, padding_mode=mode)
    grad_y = integers(y.shape[1:], seed=1)[None]

    got = convlib.conv2d_input_grad(grad_y, weights, shape, padding=padding, padding_mode=mode)

    np.testing.assert_array_equal(got.ravel(), (y * grad_y).sum(axis=(1, 2, 3)))


def test_input_grad_of_one_unbatched_image():
    weights, grad_y = integers((2, 1, 2, 2)), integers((2, 3, 3), seed=1)
    got = convlib.conv2d_input_grad(grad_y, weights, (1, 4, 4))
    np.testing.assert_array_equal(got, convlib.conv2d_input_grad(grad_y[None], weights, (1, 1, 4, 4))[0])


def test_empty_batches_give_empty_and_zero_gradients():
    weights = integers((2, 1, 2, 2))
    assert convlib.conv2d_input_grad(np.zeros((0, 2, 3, 3), np.float32), weights, (0, 1, 4, 4)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x", "w", "keywords"), SHAPES, ids=IDS)
def test_conv_transpose2d_is_the_adjoint_with_bias(x, w, keywords, dtype):
    problem = problem_of(x, w, keywords)
    if isinstance(keywords.get("padding"), str):
        keywords = keywords | {"padding": problem.padding}
    small = integers(problem.y_shape, dtype)
    weights, bias = integers(w, dtype, 1), integers(problem.C, dtype, 2)
    spare = tuple(
        n - convlib.conv_transpose2d(small, weights, **keywords).shape[2 + a]
        for a, n in enumerate((problem.H, problem.W))
    )

    got = convlib.conv_transpose2d(small, weights, bias, output_padding=spare, **keywords)

    exact = (
        reference.input_grad(problem, small.astype(float), weights.astype(float)) + bias.astype(float)[:, None, None]
    )
    np.testing.assert_array_equal(got.astype(float), exact.astype(weights.dtype).astype(float))


def test_conv_transpose2d_fuses_activation_and_residual_even_where_no_tap_meets():
    x, weights, bias = integers((1, 2, 2, 2)), integers((2, 3, 1, 1)), integers(3)
    residual = integers((1, 3, 4, 4), seed=3)
    got = convlib.conv_transpose2d(x, weights, bias, stride=3, activation="relu", residual=residual)
    plain = convlib.conv_transpose2d(x, weights, stride=3)
    np.testing.assert_array_equal(got, np.maximum(plain + bias[:, None, None] + residual, 0))


def test_conv_transpose2d_same_padding_multiplies_the_size_by_the_stride():
    assert convlib.conv_transpose2d(integers((1, 2, 5, 4)), integers((2, 3, 3, 3)), stride=2, padding="same").shape == (
        1, 3, 10, 8,
    )  # fmt: skip


def test_conv_transpose2d_refuses_an_output_padding_that_no_input_could_tell():
    with pytest.raises(ValueError, match=r"output_padding: less than stride or dilation needed, got 2 with stride 2"):
        convlib.conv_transpose2d(integers((1, 1, 3, 3)), integers((1, 1, 2, 2)), stride=2, output_padding=2)


def test_conv_transpose2d_refuses_padding_that_leaves_nothing():
    with pytest.raises(ValueError, match=r"padding: it leaves 0 rows of the result; at most 3 in all possible, got 4"):
        convlib.conv_transpose2d(integers((1, 1, 3, 3)), integers((1, 1, 2, 2)), padding=2)


def test_conv_transpose2d_refuses_weights_of_other_channels():
    with pytest.raises(ValueError, match=r"w: along O of OIHW it must have x's C = 2, got 3"):
        convlib.conv_transpose2d(integers((1, 2, 3, 3)), integers((3, 2, 2, 2)))


def test_grad_y_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"grad_y: shape \(1, 1, 2, 2\) needed, got \(1, 1, 3, 3\)"):
        convlib.conv2d_input_grad(integers((1, 1, 3, 3)), integers((1, 1, 2, 2)), (1, 1, 3, 3))


def test_errors_name_grad_y():
    with pytest.raises(TypeError, match="w: float32 needed, like grad_y, got float64"):
        convlib.conv2d_input_grad(integers((1, 1, 2, 2)), integers((1, 1, 2, 2), "float64"), (1, 1, 3, 3))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_grad_sums_everything_but_the_channels(layout, dtype):
    grad_y = integers((2, 3, 4, 5), dtype)
    axes, channels = ((0, 2, 3), 3) if layout == "NCHW" else ((0, 1, 2), 5)
    got = convlib.conv2d_bias_grad(grad_y, layout=layout)
    assert got.shape == (channels,)
    assert got.dtype == grad_y.dtype
    np.testing.assert_array_equal(got.astype(float), grad_y.astype(float).sum(axes))
    np.testing.assert_array_equal(convlib.conv2d_bias_grad(grad_y[0], layout=layout).shape, (channels,))


GPU = device.emulator_of(80)
ANY = transposed.Choice("cupy_raw", "auto", accuracy.DEFAULT_MAX_ERROR, None)
STRIDED = make_problem((8, 96, 56, 56), (96, 1, 3, 3), "float32", stride=2, padding=1, groups=96, pass_="input_grad")


def taken(problem, choice=ANY, place=GPU, outputs=None):
    chosen = transposed.chosen_for_all(problem, outputs or (problem.P, problem.Q), place, choice)
    return chosen and chosen.name


def test_one_kernel_takes_all_phases_where_it_is_predicted_to_be_faster():
    assert taken(STRIDED) == "cupy_raw.depthwise_input_grad"
    assert taken(replace(STRIDED, layout="NHWC")) == "cupy_raw.depthwise_input_grad"


@pytest.mark.parametrize(
    "problem",
    [replace(STRIDED, groups=1), replace(STRIDED, has_bias=True), replace(STRIDED, activation="relu")],
    ids=["one_group", "bias", "activation"],
)
def test_the_phases_remain_for_what_no_kernel_takes_at_once(problem):
    assert taken(problem) is None


def test_the_phases_remain_where_they_are_asked_for_and_on_a_cpu():
    assert taken(STRIDED, replace(ANY, algorithm="depthwise")) is None
    assert taken(replace(STRIDED, layout="NHWC"), replace(ANY, backend="auto"), device.cpu()) is None
    assert taken(STRIDED, outputs=(STRIDED.P - 1, STRIDED.Q)) is None


def test_a_forced_kernel_of_the_pass_says_why_it_cannot_run():
    forced = replace(ANY, algorithm="depthwise_input_grad")
    assert taken(STRIDED, forced) == "cupy_raw.depthwise_input_grad"
    with pytest.raises(convlib.UnsupportedError, match="adds no bias or residual and applies no activation"):
        taken(replace(STRIDED, has_bias=True), forced)
    with pytest.raises(convlib.UnsupportedError, match=r"28 x 28 outputs needed, got 27 x 28"):
        taken(STRIDED, forced, outputs=(27, 28))


# x, w, keywords, and whether one kernel of its own is to make the input gradient of float32 on the CPU
CHOSEN = {
    "strided": ((8, 64, 56, 56), (64, 64, 3, 3), {"stride": 2, "padding": 1}, True),
    "strided, channels last": ((8, 64, 56, 56), (64, 64, 3, 3), {"stride": 2, "padding": 1, "layout": "NHWC"}, False),
    "first layer": ((8, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}, True),
    "1x1": ((8, 256, 28, 28), (128, 256, 1, 1), {}, True),
    "3x3": ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, False),
    "depthwise": ((8, 64, 56, 56), (64, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 64}, True),
    "1x1, whose weights phases would gather": ((1, 2048, 7, 7), (512, 2048, 1, 1), {}, True),
    "strided, many weights": ((8, 512, 14, 14), (512, 512, 3, 3), {"stride": 2, "padding": 1}, True),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_one_kernel_or_phases_as_predicted(name):
    x, w, keywords, whole = CHOSEN[name]
    N, C, H, W = x
    shape = (N, H, W, C) if keywords.get("layout") == "NHWC" else x
    problem = make_problem(shape, w, np.float32, pass_="input_grad", **keywords)
    choice = transposed.Choice("auto", "auto", accuracy.DEFAULT_MAX_ERROR, None)
    chosen = transposed.chosen_for_all(problem, (problem.P, problem.Q), device.Device("cpu", threads=2), choice)
    assert (chosen and chosen.name) == ("numba_cpu.input_grad" if whole else None)


def test_a_forward_kernel_asked_for_makes_every_phase():
    problem = make_problem((2, 16, 14, 14), (16, 16, 3, 3), np.float32, pass_="input_grad", stride=2, padding=1)
    choice = transposed.Choice("auto", "blocked", accuracy.DEFAULT_MAX_ERROR, None)
    assert transposed.chosen_for_all(problem, (7, 7), device.Device("cpu", threads=2), choice) is None


def test_what_the_kernel_of_input_gradients_cannot_do_is_said():
    call = (integers((1, 2, 4, 4)), integers((2, 3, 3, 3)))
    residual = integers((1, 3, 9, 9))
    with pytest.raises(convlib.UnsupportedError, match="numba_cpu.input_grad: adds no residual"):
        convlib.conv_transpose2d(*call, residual=residual, stride=2, algorithm="input_grad")
    with pytest.raises(convlib.UnsupportedError, match="workspace_limit is 0"):
        convlib.conv2d_input_grad(*call, (1, 3, 9, 9), stride=2, algorithm="input_grad", workspace_limit=0)


def test_more_outputs_than_the_problem_has_go_by_phases():
    """output_padding beyond the stride: grad_y has fewer rows than the convolution's P."""
    x, w = integers((1, 2, 3, 3)), integers((2, 3, 2, 2), seed=1)
    got = convlib.conv_transpose2d(x, w, stride=2, dilation=4, output_padding=3)
    plain = convlib.conv_transpose2d(x, w, stride=2, dilation=4)
    np.testing.assert_array_equal(got[:, :, : plain.shape[2], : plain.shape[3]], plain)


CALLS = {
    "input_grad": lambda n, **wrong: convlib.conv2d_input_grad(
        integers((n, 2, 4, 4)), integers((2, 3, 3, 3)), (n, 3, 6, 6), **wrong
    ),
    "weight_grad": lambda n, **wrong: convlib.conv2d_weight_grad(
        integers((n, 3, 6, 6)), integers((n, 2, 4, 4)), (2, 3, 3, 3), **wrong
    ),
    "transposed": lambda n, **wrong: convlib.conv_transpose2d(integers((n, 2, 4, 4)), integers((2, 3, 3, 3)), **wrong),
}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"algorithm": 5}, ValueError), ({"algorithm": ["direct"]}, ValueError), ({"algorithm": "fourier"}, ValueError),
        ({"max_error": [1e-3]}, TypeError), ({"max_error": float("nan")}, ValueError),
        ({"workspace_limit": [1]}, TypeError), ({"workspace_limit": -1}, ValueError), ({"flip_kernel": 1}, TypeError),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_wrong_choices_are_named_whether_there_is_an_image_or_not(name, images, wrong, error):
    (argument,) = wrong
    with pytest.raises(error, match=f"^{argument}: "):
        CALLS[name](images, **wrong)


@pytest.mark.parametrize("name", CALLS)
def test_of_no_images_nothing_runs_but_what_cannot_run_is_refused(name):
    assert not CALLS[name](0).any()
    with pytest.raises(convlib.UnsupportedError, match="cupy_raw"):
        CALLS[name](0, backend="cupy_raw")


def test_errors_name_the_shapes_that_were_given():
    x, grad_y, w = integers((1, 3, 6, 6)), integers((1, 2, 4, 4)), integers((2, 3, 3, 3))
    with pytest.raises(ValueError, match="^weight_shape: every size must be at least 1"):
        convlib.conv2d_weight_grad(x, grad_y, (2, 0, 3, 3))
    with pytest.raises(ValueError, match="^weight_shape: its rows span 7 .* the 6 of x"):
        convlib.conv2d_weight_grad(x, grad_y, (2, 3, 7, 3))
    with pytest.raises(ValueError, match="^weight_shape: C / groups = 3 input channels needed"):
        convlib.conv2d_weight_grad(x, grad_y, (2, 4, 3, 3))
    with pytest.raises(ValueError, match="^input_shape: W must be at least 1"):
        convlib.conv2d_input_grad(grad_y, w, (1, 3, 6, 0))
    with pytest.raises(ValueError, match="^w: its rows span 3 .* the 2 of input_shape"):
        convlib.conv2d_input_grad(grad_y, w, (1, 3, 2, 6))
    with pytest.raises(ValueError, match="^x, w: sizes of at least 1 needed"):
        convlib.conv_transpose2d(grad_y, w[:, :0])


@pytest.mark.parametrize("dtype", [object, int, bool, "U4", np.longdouble])
def test_bias_grad_names_a_dtype_that_it_does_not_take(dtype):
    with pytest.raises(TypeError, match="^grad_y: dtype must be one of"):
        convlib.conv2d_bias_grad(np.zeros((1, 2, 3, 3), dtype))


def test_the_workspace_limit_counts_what_padding_takes():
    x, grad_y, w = integers((1, 3, 6, 6)), integers((1, 2, 6, 6)), integers((2, 3, 3, 3))
    padded, around = 3 * 8 * 8 * 4, {"padding": 1, "padding_mode": "reflect"}
    for count, call in (
        (padded, partial(convlib.conv2d_weight_grad, x, grad_y, (2, 3, 3, 3))),
        (3 * padded, partial(convlib.conv2d_input_grad, grad_y, w, (1, 3, 6, 6), algorithm="direct")),
    ):
        with pytest.raises(convlib.UnsupportedError, match=f"^workspace_limit: {count:,} bytes needed for the padded"):
            call(**around, workspace_limit=count - 1)
    np.testing.assert_array_equal(call(**around, workspace_limit=count), call(**around))
