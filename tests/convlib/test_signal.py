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
from convlib import arrays, signal
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


# Other libraries.


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


# Refusals.


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
    with pytest.raises(convlib.UnsupportedError, match="numba_cpu.winograd_f6: "):
        convolve2d(np.ones((5, 5)), np.ones((2, 2)), algorithm="winograd_f6")
