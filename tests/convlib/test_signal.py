"""convolve2d and correlate2d: SciPy's own tests, SciPy's results for everything it takes, batches, exact integers."""

import itertools
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

import convlib
from convlib import accuracy, arrays, fourier, separable, signal
from convlib.problem import make_problem
from convlib.signal import convolve2d, correlate2d

scipy_signal = pytest.importorskip("scipy.signal", reason="SciPy is not installed (extra examples)")

FUNCTIONS = {
    "convolve2d": (convolve2d, scipy_signal.convolve2d),
    "correlate2d": (correlate2d, scipy_signal.correlate2d),
}

# SciPy's tests with our functions in place of SciPy's, but for two: test_invalid_dims wants images of three dimensions
# refused, which is what ours are for (test_refuses_by_the_name_of_the_argument has the rest of it), and
# test_large_array takes 6 GB.
SCIPY_OWN_TESTS = """
import os
import sys
from pathlib import Path
import pytest, scipy.signal
from scipy._lib import _array_api
import convlib.signal

calls = {"convolve2d": 0, "correlate2d": 0}

def in_place_of(name):
    ours, theirs = getattr(convlib.signal, name), getattr(scipy.signal, name)
    def counted(*arguments, **keywords):
        calls[name] += 1
        return ours(*arguments, **keywords)
    _array_api.xp_capabilities_table[counted] = _array_api.xp_capabilities_table[theirs]
    setattr(scipy.signal, name, counted)

for name in calls:
    in_place_of(name)
folder = Path(scipy.signal.__file__).parent
options = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider", "-rs", "-W", "ignore"]
chosen = "(TestConvolve2d or TestCorrelate2d) and not test_invalid_dims and not test_large_array"
code = pytest.main([*options, str(folder / "tests" / "test_signaltools.py"), "-k", chosen])
assert min(calls.values()) > 0, calls
sys.exit(code)
"""
LEFT_TO_NUMPY = (
    "dtypes do not match",
    "only integer tensors of a single element",
    "do not run with non-NumPy backends",
)


@pytest.mark.parametrize(
    "library",
    [
        "numpy",
        pytest.param("torch", marks=pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")),
    ],
)
def test_scipys_own_tests_pass(library):
    environment = dict(os.environ) if library == "numpy" else os.environ | {"SCIPY_ARRAY_API": f'["{library}"]'}
    command = [sys.executable, "-c", SCIPY_OWN_TESTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    for line in done.stdout.splitlines():
        assert "SKIPPED" not in line or (library == "torch" and any(reason in line for reason in LEFT_TO_NUMPY))


def numbers(shape, dtype, seed=0):
    """Any integers at all; floats that are standard normal."""
    random, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = random.standard_normal(shape)
    return (values + 1j * random.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def assert_equals(result, wanted):
    assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.kind in "iu":
        np.testing.assert_array_equal(result, wanted)
    else:
        scale = max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(result, wanted, rtol=0, atol=100 * np.finfo(wanted.dtype).eps * scale)


DTYPES = (
    "f4,f4",
    "f8,f8",
    "f4,f8",
    "c8,f4",
    "f8,c16",
    "c8,c16",
    "i8,i8",
    "u8,u8",
    "u1,i1",
    "u1,u1",
    "i4,f4",
    "?,i2",
    "u8,i1",
)
SHAPES = (((5, 6), (3, 2)), ((3, 4), (5, 7)), ((1, 4), (1, 21)), ((7, 3), (2, 9)), ((1, 1), (4, 4)), ((9, 8), (8, 8)))


@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_gives_what_scipy_gives(dtypes, name, boundary):
    ours, theirs = FUNCTIONS[name]
    for shapes, mode, fill in itertools.product(SHAPES, ("full", "same", "valid"), (0, 3)):
        in1, in2 = (numbers(shape, dtype, seed) for seed, (shape, dtype) in enumerate(zip(shapes, dtypes.split(","))))
        try:
            wanted = theirs(in1, in2, mode, boundary, fill)
        except ValueError:  # neither is the larger one
            with pytest.raises(ValueError, match="mode: 'valid' needs one of in1 and in2"):
                ours(in1, in2, mode, boundary, fill)
            continue
        assert_equals(ours(in1, in2, mode, boundary, fill), wanted)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_kernels_as_large_as_the_image_go_through_fourier_transforms(mode, dtype):
    in1, in2 = numbers((150, 170), dtype), numbers((150, 97), dtype, 1)
    exact = scipy_signal.fftconvolve(in1.astype("c16"), in2.astype("c16"), mode)
    result = convolve2d(in1, in2, mode, algorithm="fft")
    bound = 2 * 7 * np.finfo(dtype).eps / 2  # sums of two real convolutions, each within the contract
    assert np.linalg.norm(result - exact) <= bound * np.linalg.norm(exact)
    if mode != "valid":  # there one row of outputs is left, which is summed plainly
        assert chosen_for(in1, in2, mode) == "numba_cpu.fft"
        np.testing.assert_array_equal(convolve2d(in1, in2, mode), result)


def chosen_for(in1, in2, mode):
    """The kernel of a plain conv2d of these sizes."""
    rows, columns = (signal.padding_of(mode, taps, True) for taps in in2.shape)
    real = np.zeros(0, in1.dtype).real.dtype
    shapes = (1, 1, *in1.shape), (1, 1, *in2.shape)
    return convlib.explain(*shapes, dtype=real, padding=(rows, columns)).chosen


BATCHES = [
    ((), (3,)),
    ((3,), ()),
    ((3,), (3,)),
    ((2, 1), (1, 3)),
    ((2, 3), (3,)),
    ((1, 2, 4), (3, 1, 4)),
    ((3, 1, 2, 1), (3, 4, 1, 2)),
    ((0,), (1,)),
    ((2, 0), (2, 1)),
]


@pytest.mark.parametrize("dtype", ["f4", "c16", "i8"])
@pytest.mark.parametrize(("images", "kernels"), BATCHES, ids=str)
def test_leading_axes_broadcast_against_each_other(images, kernels, dtype):
    in1, in2 = numbers((*images, 7, 8), dtype), numbers((*kernels, 3, 4), dtype, 1)
    lead = np.broadcast_shapes(images, kernels)
    for name, (ours, theirs) in FUNCTIONS.items():
        result = ours(in1, in2, "same", "symm")
        assert result.shape == (*lead, 7, 8)
        assert result.dtype == in1.dtype
        for place in np.ndindex(lead):
            one, other = (np.broadcast_to(a, (*lead, *a.shape[-2:]))[place] for a in (in1, in2))
            assert_equals(np.ascontiguousarray(result[place]), theirs(one, other, "same", "symm")), name


@pytest.mark.parametrize("dtype", ["f4", "c8", "i8", "u1"])
def test_views_of_any_strides_are_read_and_not_written(dtype):
    in1, in2 = numbers((9, 22), dtype)[::2, ::-3], numbers((4, 6), dtype, 1).T
    before = in1.copy(), in2.copy()
    assert_equals(convolve2d(in1, in2, boundary="wrap"), scipy_signal.convolve2d(in1, in2, boundary="wrap"))
    np.testing.assert_array_equal(in1, before[0])
    np.testing.assert_array_equal(in2, before[1])


def test_integers_are_exact_where_floats_are_not():
    in1 = np.full((40, 40), 2**31 + 1, np.int64)
    in2 = np.full((30, 30), 3, np.int64)
    assert convolve2d(in1, in2, "valid")[0, 0] == 900 * 3 * (2**31 + 1)  # 53 bits would be enough
    in2[0, 0] = 2**62 - 1
    total = (2**31 + 1) * (2**62 - 1 + 899 * 3)
    assert convolve2d(in1, in2, "valid")[0, 0] == (total + 2**63) % 2**64 - 2**63
    large = np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)
    np.testing.assert_array_equal(convolve2d(large, large), scipy_signal.convolve2d(large, large))


# ---- other libraries ----


@pytest.mark.parametrize(
    "names", [("float32", "float32"), ("float32", "complex64"), ("complex128", "float64"), ("int64", "int16")]
)
def test_tensors_come_back_as_tensors(names):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    in1, in2 = (numbers(shape, name, seed) for seed, (name, shape) in enumerate(zip(names, ((2, 6, 7), (2, 3, 4)))))
    for function, _ in FUNCTIONS.values():
        for boundary in ("fill", "wrap"):
            result = function(torch.from_numpy(in1), torch.from_numpy(in2), "same", boundary, 2)
            assert isinstance(result, torch.Tensor)
            assert_equals(result.numpy(), function(in1, in2, "same", boundary, 2))


def test_tensors_promote_as_pytorch_does():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    result = convolve2d(torch.ones((3, 3), dtype=torch.int64), torch.ones((2, 2), dtype=torch.float32))
    assert result.dtype == torch.float32
    assert result[1, 1] == 4
    assert correlate2d(torch.ones((3, 3), dtype=torch.bfloat16), torch.ones((2, 2), dtype=torch.bfloat16))[1, 1] == 4


def test_conjugated_tensors_are_taken_as_they_read():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w = (torch.from_numpy(numbers((4, 5), "c16", seed)) for seed in (0, 1))
    torch.testing.assert_close(convolve2d(x.conj(), w), convolve2d(x, w.conj()).conj())


class Marked(np.ndarray):
    """A NumPy array that passes for one of CuPy's."""


class CuPyByNumPy(arrays.NumPy):
    """What signal.py asks of CuPy, on the CPU."""

    name = "cupy"

    @staticmethod
    def owns(array):
        return isinstance(array, Marked)

    @staticmethod
    def result(array, shape, channels_last):
        y, view = arrays.NumPy.result(array, shape, channels_last)
        return y.view(Marked), view


@pytest.fixture
def cupy(monkeypatch):
    def marked(function):
        return lambda *arguments: function(*arguments).view(Marked)

    names = {"stack": marked(np.stack), "empty": marked(np.empty)}
    names |= {"result_type": np.result_type, "complex64": np.complex64}
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(**names))
    monkeypatch.setattr(signal, "LIBRARIES", (arrays.NumPy, CuPyByNumPy))
    monkeypatch.setattr(arrays, "LIBRARIES", (CuPyByNumPy, arrays.NumPy))
    monkeypatch.setattr(arrays, "CuPy", CuPyByNumPy)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("c8", "c8"), ("f8", "c16"), ("i8", "u1")])
@pytest.mark.parametrize("boundary", ["fill", "symm"])
def test_cupys_arrays_stay_cupys(dtypes, boundary, cupy):
    in1, in2 = (numbers(shape, dtype, seed) for seed, (shape, dtype) in enumerate(zip(((3, 8, 7), (3, 3)), dtypes)))
    for function, _ in FUNCTIONS.values():
        result = function(in1.view(Marked), in2.view(Marked), "same", boundary, 1)
        assert type(result) is Marked
        assert_equals(np.asarray(result), function(in1, in2, "same", boundary, 1))
    with pytest.raises(TypeError, match="in2: an array of cupy needed, like in1, got one of numpy"):
        convolve2d(in1.view(Marked), in2)


# ---- separable kernels ----


@pytest.fixture
def passes(monkeypatch):
    """The kernels' shapes of every conv2d that signal.py called."""
    seen, conv2d = [], signal.conv2d
    monkeypatch.setattr(signal, "conv2d", lambda x, w, **keywords: seen.append(w.shape) or conv2d(x, w, **keywords))
    return seen


@pytest.fixture
def always_worthwhile(monkeypatch):
    monkeypatch.setattr(separable, "worthwhile", lambda *arguments: True)


def products(count, R, S, dtype="f4", seed=0):
    random = np.random.default_rng(seed)
    return np.einsum("kr,ks->krs", random.standard_normal((count, R)), random.standard_normal((count, S))).astype(dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_a_column_times_a_row_runs_as_two_passes(mode, name, dtype, passes, always_worthwhile):
    ours, theirs = FUNCTIONS[name]
    images, kernels = numbers((4, 30, 40), dtype), products(4, 7, 10, dtype)
    result = ours(images, kernels, mode)
    assert passes == [(4, 1, 7, 1), (4, 1, 1, 10)]
    for image, kernel, y in zip(images, kernels, result):
        exact = theirs(image.astype("f8"), kernel.astype("f8"), mode)
        assert np.linalg.norm(y - exact) <= 10 * np.finfo(dtype).eps * np.linalg.norm(exact)


def test_filters_of_one_image_run_as_two_passes_too(passes, always_worthwhile):
    image, kernels = numbers((30, 40), "f8"), products(3, 5, 6, "f8")
    result = convolve2d(image, kernels)
    assert passes == [(3, 1, 5, 1), (3, 1, 1, 6)]
    for kernel, y in zip(kernels, result):
        np.testing.assert_allclose(y, scipy_signal.convolve2d(image, kernel), atol=1e-12)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w.__setitem__((1, 2, 3), w[1, 2, 3] * (1 + 1e-5) + 1e-5),
        lambda w: w.__setitem__((0, 0, 0), np.nan),
        lambda w: w.__setitem__((0, 0, 0), np.inf),
    ],
)
def test_one_kernel_that_is_no_product_and_none_is_split(spoil, passes, always_worthwhile):
    kernels = products(2, 7, 8)
    spoil(kernels)
    convolve2d(numbers((2, 30, 40), "f4"), kernels)
    assert passes == [(2, 1, 7, 8)]


def test_what_is_nearly_a_product_is_none():
    """Every cross of a row and a column gives it to 16 roundings, and the best column and row leave too much over."""
    signs = np.random.default_rng(0).choice([-1, 1], (1, 9, 9))
    assert separable.decomposed(np.ones((1, 9, 9)), "f4") is not None
    assert separable.decomposed(1 + 1 * 2.0**-24 * signs, "f4") is not None
    assert separable.crosses((1 + 5 * 2.0**-24 * signs)[0], 16 * 2.0**-24 * 1.3)
    assert separable.decomposed(1 + 5 * 2.0**-24 * signs, "f4") is None


def test_products_rounded_to_their_dtype_count_and_what_is_left_over_is_within_the_rounding():
    for dtype in ("f4", "f8"):
        for seed in range(20):
            kernels = products(3, 9, 11, dtype, seed)
            columns, rows = separable.decomposed(kernels, dtype)
            left = np.linalg.norm(kernels - np.einsum("kr,ks->krs", columns.astype("f8"), rows.astype("f8")))
            assert left <= separable.ROUNDINGS * accuracy.UNIT_ROUNDOFF[np.dtype(dtype).name] * np.linalg.norm(kernels)
    assert separable.decomposed(np.zeros((1, 3, 4)), "f8")[0].shape == (1, 3)


def worthwhile(size, window, dtype="float32", max_error=accuracy.DEFAULT_MAX_ERROR):
    shapes = (1, 1, size, size), (1, 1, window, window)
    problem = make_problem(*shapes, dtype, padding=window // 2)
    return separable.worthwhile(problem, convlib.device.cpu(), max_error, None)


def test_a_kernel_is_split_only_where_that_is_predicted_to_be_faster_and_exact_enough():
    assert not worthwhile(512, 3)
    assert worthwhile(512, 21)
    assert not worthwhile(512, 21, max_error=5e-7)
    assert not worthwhile(512, 21, dtype="float16")
    assert not worthwhile(512, 21, dtype="float64", max_error=signal.PLAIN_SUMS_ONLY), "integers must stay exact"


def test_a_forced_algorithm_is_never_split(passes, always_worthwhile):
    convolve2d(np.ones((9, 9)), np.ones((3, 3)), algorithm="direct")
    assert passes == [(1, 1, 3, 3)]


# ---- on a GPU: whole transforms ----


@pytest.fixture
def by_whole_transforms(monkeypatch):
    monkeypatch.setattr(fourier, "chosen", lambda *arguments: True)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_whole_transforms_give_the_same(library, name, mode, dtype, by_whole_transforms):
    ours, theirs = FUNCTIONS[name]
    for sizes, kernels in (((3, 12, 9), (3, 5, 4)), ((12, 9), (2, 6, 9)), ((4, 11, 7), (1, 4, 4))):
        in1, in2 = numbers(sizes, dtype), numbers(kernels, dtype, 1)
        if library == "torch":
            torch = pytest.importorskip("torch", reason="torch is not installed")
            result = ours(torch.from_numpy(in1), torch.from_numpy(in2), mode).numpy()
        else:
            result = ours(in1, in2, mode)
        for place in np.ndindex(result.shape[:-2]):
            one, other = (np.broadcast_to(a, (*result.shape[:-2], *a.shape[-2:]))[place] for a in (in1, in2))
            assert_equals(np.ascontiguousarray(result[place]), theirs(one, other, mode))


def test_whole_transforms_are_for_large_windows_on_a_gpu():
    place = convlib.device.named("sm_90")
    options = {"algorithm": "auto", "backend": "auto", "max_error": accuracy.DEFAULT_MAX_ERROR, "workspace_limit": None}

    def chosen(window, on=place, dtype="float32", **changed):
        problem = make_problem((1, 1, 1080, 1920), (1, 1, window, window), dtype, padding=window // 2)
        return fourier.chosen(problem, on, options | changed)

    assert chosen(127)
    assert not chosen(3)
    assert chosen(3, algorithm="fft")
    assert not chosen(127, algorithm="tiled")
    assert not chosen(127, backend="cupy_raw")
    assert not chosen(127, max_error=1e-8)
    assert not chosen(127, workspace_limit=1 << 20)
    assert not chosen(127, dtype="float16")
    assert not chosen(127, on=convlib.device.cpu())


@pytest.mark.parametrize(("size", "wanted"), [(1, 1), (11, 12), (121, 125), (1206, 1215), (4097, 4116)])
def test_transforms_have_small_factors(size, wanted):
    assert fourier.smooth(size) == wanted


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, 4), ValueError, "in1: at least 2 dimensions, .* needed, got 0"),
        (([3], [4]), ValueError, "in1: at least 2 dimensions, .* needed, got 1"),
        (([[3]], [4]), ValueError, "in2: at least 2 dimensions, .* needed, got 1"),
        ((np.ones((0, 3)), [[1]]), ValueError, r"in1: at least one row and one column needed, got shape \(0, 3\)"),
        (([[1]], [[1]], "valids"), ValueError, "mode: one of 'full', 'same', 'valid' needed, got 'valids'"),
        (([[1]], [[1]], "full", "reflect"), ValueError, "boundary: one of 'fill', .* needed, got 'reflect'"),
        (([[1]], [[1]], "full", "fill", [1, 2]), ValueError, "fillvalue: `fillvalue` must be scalar .* got 2 of them"),
        (([[1]], [[1]], "full", "fill", 1j), ValueError, "fillvalue: could not cast .* int64, got one of complex128"),
        (([[1]], [[1]], "full", "fill", "1"), ValueError, "fillvalue: could not cast"),
        (
            (np.ones((2, 2, 2)), np.ones((3, 2, 2))),
            ValueError,
            r"in2: leading axes that broadcast against .* got \(3,\)",
        ),
        (([[True]], [[True]]), TypeError, "in1, in2: numbers needed .* got bool and bool"),
        (([[1]], np.ones((1, 1), object)), TypeError, "in2: dtype must be integer, .* got object"),
        ((np.ones((1, 1), "g"), [[1]]), TypeError, "in1: dtype must be integer, .* got float128"),
        (("image", [[1]]), TypeError, "in1: a NumPy, CuPy, .* array needed, got builtins.str"),
        (([[1]], None), TypeError, "in2: a NumPy, CuPy, .* array needed, got builtins.NoneType"),
    ],
)
def test_refuses_by_the_name_of_the_argument(arguments, error, message):
    for function, _ in FUNCTIONS.values():
        with pytest.raises(error, match=message):
            function(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"algorithm": "fourier"}, ValueError, "algorithm: one of 'auto', .* needed, got 'fourier'"),
        ({"backend": "scipy"}, ValueError, "backend: one of 'auto', .* needed, got 'scipy'"),
        ({"max_error": "none"}, TypeError, "max_error: a number needed, got 'none'"),
        ({"workspace_limit": -1}, ValueError, "workspace_limit: at least 0"),
    ],
)
def test_checks_what_conv2d_checks(options, error, message):
    for function, _ in FUNCTIONS.values():
        for dtype in (np.float32, np.int64, np.complex64):
            with pytest.raises(error, match=message):
                function(np.ones((9, 9), dtype), np.ones((3, 3), dtype), **options)


def test_refuses_a_mixture_of_libraries_and_those_it_does_not_serve():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match="in2: an array of torch needed, like in1, got one of numpy"):
        convolve2d(torch.ones((3, 3)), np.ones((2, 2), np.float32))
    with pytest.raises(TypeError, match=r"in1: requires grad, .* pass in1.detach\(\)"):
        convolve2d(torch.ones((3, 3), requires_grad=True), torch.ones((2, 2)))
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with pytest.raises(TypeError, match="in1: a NumPy or CuPy array or a PyTorch tensor needed, got one of jax"):
        convolve2d(jax.numpy.ones((3, 3)), jax.numpy.ones((2, 2)))


def test_a_forced_kernel_that_cannot_run_says_why():
    with pytest.raises(convlib.UnsupportedError, match="numba_cpu.winograd_f4: "):
        convolve2d(np.ones((5, 5)), np.ones((2, 2)), algorithm="winograd_f4")
