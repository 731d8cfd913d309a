"""ConvProblem: every parameter's spellings and every refusal, message included."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlib.problem import make_problem, same_padding

X, W = (2, 6, 9, 8), (4, 6, 3, 3)
LARGEST = 2**31 - 1


def problem(x=X, w=W, dtype="float32", **keywords):
    return make_problem(x, w, dtype, **keywords)


def test_letters_of_the_field():
    p = problem((2, 6, 9, 8), (4, 3, 3, 5), groups=2, stride=(2, 1), padding=((1, 2), (3, 0)), dilation=(2, 1))
    assert (p.N, p.C, p.H, p.W, p.K, p.R, p.S) == (2, 6, 9, 8, 4, 3, 5)
    assert (p.P, p.Q) == (4, 7)
    assert (p.Cg, p.Kg) == (3, 2)
    assert (p.x_shape, p.w_shape, p.y_shape) == ((2, 6, 9, 8), (4, 3, 3, 5), (2, 4, 4, 7))
    assert p.reduction == 3 * 3 * 5
    assert p.macs == 2 * 4 * 4 * 7 * p.reduction
    assert not p.depthwise
    assert problem((1, 4, 5, 5), (8, 1, 3, 3), groups=4).depthwise


def test_accumulates_in_float32_but_float64_in_float64():
    kept = {name: problem(dtype=name).accumulate.name for name in ("float16", "bfloat16", "float32", "float64")}
    assert kept == {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


def test_layouts_name_the_axes():
    wanted = problem((2, 6, 9, 8), (4, 6, 3, 5))
    channels_last = problem((2, 9, 8, 6), (4, 6, 3, 5), layout="NHWC")
    assert (channels_last.x_shape, channels_last.layout) == (wanted.x_shape, "NHWC")
    assert problem(w=(4, 3, 5, 6), weight_layout="OHWI") == wanted
    assert problem(w=(3, 5, 6, 4), weight_layout="HWIO") == wanted


@pytest.mark.parametrize(
    ("padding", "wanted"),
    [
        (1, ((1, 1), (1, 1))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        ([[1, 2], [3, 4]], ((1, 2), (3, 4))),
        (np.int8(2), ((2, 2), (2, 2))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (1, 1))),
    ],
    ids=str,
)
def test_spellings_of_padding(padding, wanted):
    assert problem(padding=padding).padding == wanted


def test_numpy_integers_and_lists_are_as_good_as_ints_and_tuples():
    spelled = problem(
        [2, 6, np.int64(9), 8], list(W), stride=np.int64(2), dilation=[np.uint8(1), 1], groups=np.int32(1)
    )
    assert spelled == problem(stride=2)
    for value in (spelled.H, *spelled.stride, *spelled.dilation, spelled.groups):
        assert type(value) is int


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_gives_one_output_per_stride_with_the_odd_element_at_the_end(size, window, stride, dilation):
    before, after = same_padding(size, window, stride, dilation)
    assert 0 <= after - before <= 1
    p = problem((1, 1, size, size), (1, 1, window, window), stride=stride, dilation=dilation, padding="same")
    assert p.P == p.Q == math.ceil(size / stride)


def test_same_is_tensorflows_for_the_usual_first_layer():
    # TensorFlow pads 224 with a 7 x 7 window and stride 2 by 2 before and 3 after; PyTorch's padding=3 differs.
    assert problem((1, 3, 224, 224), (8, 3, 7, 7), stride=2, padding="same").padding == ((2, 3), (2, 3))


def test_activations():
    assert problem().activation is None
    assert problem(activation="relu6").activation == "relu6"
    leaky = problem(activation=["leaky_relu", np.float32(0.25)])
    assert (leaky.activation, leaky.slope) == ("leaky_relu", 0.25)
    assert math.copysign(1, problem(activation=("leaky_relu", -0.0)).slope) == 1


PADDING = "padding: an int, a pair (rows, columns), two pairs ((top, bottom), (left, right)), 'valid' or 'same'"
ACTIVATION = "activation: one of None, 'relu', 'relu6', 'silu', (\"leaky_relu\", slope)"
ONE_OF = "dtype must be one of float16, bfloat16, float32, float64"
VALUE_ERRORS = {
    "x of 3 sizes": (
        {"x": (6, 9, 8)},
        "x: 4 dimensions needed (N, C, H, W), got 3: (6, 9, 8)",
    ),
    "x of 5 sizes": (
        {"x": (1, 2, 6, 9, 8)},
        "x: 4 dimensions needed (N, C, H, W), got 5: (1, 2, 6, 9, 8)",
    ),
    "w of 3 sizes": (
        {"w": (4, 6, 3)},
        "w: 4 dimensions needed (O, I, H, W), got 3: (4, 6, 3)",
    ),
    "no channels": ({"x": (2, 0, 9, 8), "w": (4, 0, 3, 3)}, "x: C must be at least 1, got shape (2, 0, 9, 8) in NCHW"),
    "no rows": ({"x": (2, 6, 0, 8)}, "x: H must be at least 1, got shape (2, 6, 0, 8) in NCHW"),
    "no columns": ({"x": (2, 9, 0, 6), "layout": "NHWC"}, "x: W must be at least 1, got shape (2, 9, 0, 6) in NHWC"),
    "negative batch": ({"x": (-1, 6, 9, 8)}, f"x's shape: at least 0 and at most {LARGEST} needed, got -1"),
    "no filters": ({"w": (0, 6, 3, 3)}, "w: every size must be at least 1, got shape (0, 6, 3, 3) in OIHW"),
    "empty window": ({"w": (4, 6, 0, 3)}, "w: every size must be at least 1, got shape (4, 6, 0, 3) in OIHW"),
    "stride 0": ({"stride": 0}, f"stride: at least 1 and at most {LARGEST} needed, got 0"),
    "stride past 32 bits": ({"stride": 2**31}, f"stride: at least 1 and at most {LARGEST} needed, got 2147483648"),
    "three strides": ({"stride": (1, 2, 3)}, "stride: an int or a pair (rows, columns) needed, got (1, 2, 3)"),
    "dilation 0": ({"dilation": (1, 0)}, f"dilation: at least 1 and at most {LARGEST} needed, got 0"),
    "negative padding": ({"padding": -1}, f"padding: at least 0 and at most {LARGEST} needed, got -1"),
    "negative padding in a pair": (
        {"padding": ((0, 0), (0, -2))},
        f"padding: at least 0 and at most {LARGEST} needed, got -2",
    ),
    "padding by an unknown name": ({"padding": "full"}, "padding: one of 'valid', 'same' needed, got 'full'"),
    "three paddings of columns": (
        {"padding": (1, (1, 2, 3))},
        "padding: of columns an int or a pair (left, right) needed, got (1, 2, 3)",
    ),
    "four paddings": ({"padding": (1, 1, 1, 1)}, f"{PADDING} needed, got (1, 1, 1, 1)"),
    "groups 0": ({"groups": 0}, f"groups: at least 1 and at most {LARGEST} needed, got 0"),
    "groups that do not divide C": ({"groups": 4}, "groups: must divide C = 6, got 4"),
    "groups that do not divide K": (
        {"w": (4, 2, 3, 3), "groups": 3},
        "groups: must divide K = 4 (the filters of w), got 3",
    ),
    "channels of w": (
        {"w": (4, 5, 3, 3)},
        "w: C / groups = 6 input channels needed (C = 6, groups = 1), got 5",
    ),
    "channels of w with groups": (
        {"groups": 2},
        "w: C / groups = 3 input channels needed (C = 6, groups = 2), got 6",
    ),
    "window taller than x": (
        {"w": (4, 6, 10, 3)},
        "w: its rows span 10 (with dilation 1), more than the 9 of x with its padding; add padding or use a smaller "
        "kernel",
    ),
    "dilated window wider than x": (
        {"dilation": 4, "padding": ((0, 0), (0, 0))},
        "w: its columns span 9 (with dilation 4), more than the 8 of x with its padding; add padding or use a smaller "
        "kernel",
    ),
    "layout": ({"layout": "CHWN"}, "layout: one of 'NCHW', 'NHWC' needed, got 'CHWN'"),
    "layout that is no name": ({"layout": ["NCHW"]}, "layout: one of 'NCHW', 'NHWC' needed, got ['NCHW']"),
    "weight_layout": ({"weight_layout": "IOHW"}, "weight_layout: one of 'OIHW', 'OHWI', 'HWIO' needed, got 'IOHW'"),
    "activation": (
        {"activation": "gelu"},
        f"{ACTIVATION} needed, got 'gelu'",
    ),
    "leaky_relu without slope": (
        {"activation": "leaky_relu"},
        'activation: leaky_relu needs its slope, as ("leaky_relu", 0.01)',
    ),
    "slope of another activation": (
        {"activation": ("relu", 0.1)},
        "activation: a pair must be (\"leaky_relu\", slope), got ('relu', 0.1)",
    ),
    "slope that is no number": (
        {"activation": ("leaky_relu", "0.1")},
        "activation: a pair must be (\"leaky_relu\", slope), got ('leaky_relu', '0.1')",
    ),
    "slope that is not finite": (
        {"activation": ("leaky_relu", math.nan)},
        "activation: a finite slope needed, got ('leaky_relu', nan)",
    ),
    "slope that is a bool": (
        {"activation": ("leaky_relu", True)},
        "activation: a finite slope needed, got ('leaky_relu', True)",
    ),
    "pass": ({"pass_": "backward"}, "pass_: one of 'forward', 'input_grad', 'weight_grad' needed, got 'backward'"),
    "result past 64-bit offsets": (
        {"padding": LARGEST},
        "padding: a result of at most 9223372036854775807 bytes needed, got N K P Q = (2, 4, 4294967301, 4294967300)",
    ),
}

TYPE_ERRORS = {
    "bool stride": ({"stride": True}, "stride: an int or a pair (rows, columns) needed, got True"),
    "bool in a pair": ({"stride": (True, 1)}, "stride: an int needed, got True"),
    "NumPy bool": ({"groups": np.True_}, f"groups: an int needed, got {np.True_!r}"),
    "float stride": ({"stride": 1.0}, "stride: an int or a pair (rows, columns) needed, got 1.0"),
    "float in a pair": ({"dilation": (1.0, 1)}, "dilation: an int needed, got 1.0"),
    "text": ({"stride": "2"}, "stride: an int or a pair (rows, columns) needed, got '2'"),
    "nothing": ({"padding": None}, f"{PADDING} needed, got None"),
    "an array": ({"stride": np.array([1, 2])}, "stride: an int or a pair (rows, columns) needed, got array([1, 2])"),
    "a set": ({"dilation": {1}}, "dilation: an int or a pair (rows, columns) needed, got {1}"),
    "groups as a pair": ({"groups": (1, 1)}, "groups: an int needed, got (1, 1)"),
    "a size that is no int": ({"x": (2, 6.0, 9, 8)}, "x's shape: an int needed, got 6.0"),
    "a size that is a bool": ({"w": (4, 6, True, 3)}, "w's shape: an int needed, got True"),
    "a shape that is none": ({"x": 9}, "x: a shape, as a tuple of ints, needed, got 9"),
    "integers": (
        {"dtype": np.int32},
        f"x: {ONE_OF}, got int32; convlib never converts inputs",
    ),
    "complex": (
        {"dtype": "complex64"},
        f"x: {ONE_OF}, got complex64; convlib never converts inputs",
    ),
    "no dtype": ({"dtype": "float31"}, "x: dtype must be one of float16, bfloat16, float32, float64, got float31"),
    "foreign byte order": (
        {"dtype": np.dtype(np.float32).newbyteorder()},
        f"x: native byte order needed, got {np.dtype(np.float32).newbyteorder().str}; "
        'use x.astype(x.dtype.newbyteorder("="))',
    ),
}


@pytest.mark.parametrize(("keywords", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_wrong_shapes_and_values(keywords, message):
    with pytest.raises(ValueError) as raised:
        problem(**keywords)
    assert str(raised.value) == message


@pytest.mark.parametrize(("keywords", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_wrong_types(keywords, message):
    with pytest.raises(TypeError) as raised:
        problem(**keywords)
    assert str(raised.value) == message


@pytest.mark.parametrize("wrong", [True, 1.0, np.True_])
def test_what_equals_a_good_value_is_refused_after_that_value_too(wrong):
    """1, 1.0 and True are one key to a cache: a check that only runs when the cache misses would let them pass."""
    problem(stride=1, padding=1, dilation=(1, 1), groups=1)
    for keywords in ({"stride": wrong}, {"padding": wrong}, {"dilation": (wrong, 1)}, {"groups": wrong}):
        with pytest.raises(TypeError, match=f"{next(iter(keywords))}: an int.*needed, got"):
            problem(**{"stride": 1, "padding": 1, "dilation": (1, 1), "groups": 1, **keywords})


def test_an_error_is_raised_again_the_second_time():
    for _ in range(2):
        with pytest.raises(ValueError, match="groups: must divide"):
            problem(groups=4)


def test_equal_problems_are_one_key():
    assert {problem(padding="same"), problem(padding=1), problem(padding=((1, 1), (1, 1)))} == {problem(padding=1)}


def test_reads_well():
    assert str(problem((1, 64, 56, 56), (128, 64, 3, 3), stride=2, padding="same")) == (
        "forward 1x64x56x56 -> 128, 3x3, stride (2, 2), padding (0, 1), (0, 1), dilation (1, 1), groups 1, "
        "float32, NCHW"
    )


NAMES = ("stride", "padding", "dilation", "groups", "layout", "weight_layout", "activation", "pass_")
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["same", "valid", "NHWC", "relu", "leaky_relu"]),
    st.lists(st.one_of(st.integers(-2, 4), st.booleans(), st.floats(), st.none()), max_size=4),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    st.just({}),
    st.just(np.ones(2)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(NAMES, anything),
    ),
    st.lists(st.integers(0, 7), max_size=5),
    st.lists(st.integers(0, 7), max_size=5),
)
def test_whatever_comes_is_taken_or_refused_by_name(keywords, x, w):
    try:
        p = make_problem(x, w, np.float32, **keywords)
    except (ValueError, TypeError) as error:
        assert str(error).partition(":")[0] in (*keywords, "x", "w", "x's shape", "w's shape"), error  # noqa: PT017
    else:
        assert min(p.C, p.H, p.W, p.K, p.R, p.S, p.P, p.Q) >= 1
