"""Array libraries: in without a copy, out in the caller's library, errors by name.

PyTorch and JAX are tested where they are installed; CuPy through a stand-in that has what arrays.py uses of it, and
for real, with Numba's device arrays, where there is a GPU; Numba's simulator in a process of its own.
"""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import convlib
from convlib import conv2d, device, dispatch, machine, plan, strided
from convlib.strided import CudaView

RANDOM = np.random.default_rng(0)
X, W, BIAS = (RANDOM.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 6, 9, 8), (4, 6, 3, 3), (4,)))
Y = conv2d(X, W, BIAS, padding=1)


@pytest.fixture
def given(monkeypatch):
    """The arguments that the kernel was run with."""
    seen = {}
    kernel = dispatch.kernel("numba_cpu.direct")
    run = kernel.run

    def watched(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
        seen.update(problem=problem, x=x, w=w, y=y, bias=bias, residual=residual)
        run(problem, device, x, w, y, bias, residual, workspace)

    monkeypatch.setattr(kernel, "run", watched)
    return seen


def address(array):
    return array.__array_interface__["data"][0]


# NumPy


def test_numpy_arrays_are_read_and_written_where_they_lie(given):
    y = conv2d(X, W, BIAS, padding=1, algorithm="direct")
    for name, array in (("x", X), ("w", W), ("bias", BIAS), ("y", y)):
        assert address(given[name]) == address(array), name


def test_results_lie_on_a_64_byte_boundary():
    for _ in range(20):
        assert address(conv2d(X, W)) % 64 == 0
    for shape in ((), (0,), (3, 0, 5), (7, 3)):
        array = strided.empty_aligned(shape, np.float64)
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, np.float64, True)


def test_memory_maps_are_arrays(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(conv2d(mapped, W, BIAS, padding=1), Y)


@pytest.mark.parametrize(
    ("shape", "strides", "apart"),
    [
        ((2, 3), (12, 4), True),
        ((2, 3), (24, 8), True),
        ((2, 4), (28, 8), True),  # every other element of rows of seven
        ((3, 2), (4, 12), True),
        ((2, 3), (-12, 4), True),
        ((2, 3), (8, 4), False),
        ((2, 3), (0, 4), False),
        ((1, 3), (0, 4), True),
        ((0, 3), (0, 0), True),
    ],
)
def test_overlap_within_an_array(shape, strides, apart):
    view = CudaView(1000, shape, strides, np.dtype(np.float32), None)
    assert strided.lies_apart(view) is apart


# PyTorch

torch_test = pytest.mark.skipif(not machine.installed("torch"), reason="PyTorch is not installed")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def tensors(torch, *copied, **to):
    return [torch.from_numpy(array.copy()).to(**to) for array in copied]


@torch_test
def test_torch_tensors_in_without_a_copy_and_a_tensor_out(torch, given):
    x, w, bias = tensors(torch, X, W, BIAS)
    y = conv2d(x, w, bias, padding=1, algorithm="direct")
    assert isinstance(y, torch.Tensor)
    for name, tensor in (("x", x), ("w", w), ("bias", bias), ("y", y)):
        assert address(given[name]) == tensor.data_ptr(), name
    np.testing.assert_array_equal(y.numpy(), Y)
    np.testing.assert_array_equal(y, torch.nn.functional.conv2d(x, w, bias, padding=1))
    np.testing.assert_array_equal(plan(tuple(x.shape), w, bias, padding=1)(x), Y)
    assert conv2d(x[0], w, bias, padding=1).shape == (4, 9, 8)


@torch_test
def test_torch_channels_last_in_channels_last_out(torch, given):
    x, w, bias = tensors(torch, X, W, BIAS)
    x = x.to(memory_format=torch.channels_last)
    y = conv2d(x, w, bias, padding=1, algorithm="direct")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    assert given["problem"].layout == "NHWC"
    np.testing.assert_array_equal(y, Y)
    planned = plan(tuple(x.shape), w, bias, padding=1)(x)
    assert planned.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(planned, Y)


@torch_test
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_torch_dtypes(torch, name):
    x, w, bias = tensors(torch, X, W, BIAS, dtype=getattr(torch, name))
    y = conv2d(x, w, bias, padding=1, algorithm="blocked")
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.double(), torch.from_numpy(Y.astype(np.float64)).to(x.dtype).double())


@torch_test
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_torch_pads_by_the_same_modes(torch, mode):
    x, w = tensors(torch, X, W)
    wanted = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (2, 1, 3, 0), mode=mode), w)
    np.testing.assert_array_equal(conv2d(x, w, padding=((3, 0), (2, 1)), padding_mode=mode), wanted)


@torch_test
def test_torch_same_padding_agrees_without_a_stride(torch):
    x, w = tensors(torch, X, RANDOM.integers(-4, 5, (4, 6, 4, 3)).astype(np.float32))
    np.testing.assert_array_equal(
        conv2d(x, w, padding="same", dilation=(1, 2)),
        torch.nn.functional.conv2d(x, w, padding="same", dilation=(1, 2)),
    )


@torch_test
def test_torch_slices_flips_and_out(torch):
    x, w, bias = tensors(torch, X, W, BIAS)
    slices = conv2d(x[:, :, ::2, 1::3], w[:, :, :2, :2])
    np.testing.assert_array_equal(slices, conv2d(X[:, :, ::2, 1::3], W[:, :, :2, :2]))
    np.testing.assert_array_equal(conv2d(x, w.flip(2, 3)), conv2d(X, W, flip_kernel=True))
    larger = torch.full((2, 4, 9, 16), torch.nan)
    out = larger[..., ::2]
    assert conv2d(x, w, bias, padding=1, out=out) is out
    np.testing.assert_array_equal(out, Y)
    assert larger[..., 1::2].isnan().all()
    with pytest.raises(ValueError, match="^out: elements that lie apart in memory needed"):
        conv2d(x, w, out=torch.zeros(7, 6).expand(2, 4, 7, 6))


@torch_test
def test_torch_refusals(torch):
    x, w = tensors(torch, X, W)
    leaf = w.clone().requires_grad_()
    with pytest.raises(
        TypeError, match="^w: requires grad, and convlib.conv2d does not record gradients; pass w.detach"
    ):
        conv2d(x, leaf)
    with torch.no_grad():
        np.testing.assert_array_equal(conv2d(x, leaf), conv2d(X, W))
    np.testing.assert_array_equal(conv2d(x, leaf.detach()), conv2d(X, W))
    for wrong, message in (
        (x.to_sparse(), "x: a dense tensor needed, got layout torch.sparse_coo"),
        (torch.empty(X.shape, dtype=torch.uint7), "x: dtype must be one of .*, got uint7"),
        (torch.zeros(1, 6, 5, 5, device="meta"), "x: a tensor on the CPU or on CUDA needed, got one on meta"),
        (
            x.to(torch.int32),
            "x: dtype must be one of float16, bfloat16, float32, float64, got int32",
        ),
        (torch.zeros(X.shape, dtype=torch.complex64).conj().imag, "x: a tensor in memory as it reads needed"),
    ):
        with pytest.raises(TypeError, match=f"^{message}"):
            conv2d(wrong, w)
    with pytest.raises(TypeError, match="^w: an array of torch needed, like x, got one of numpy$"):
        conv2d(x, W)
    with pytest.raises(TypeError, match="^bias: an array of numpy needed, like x, got one of torch$"):
        conv2d(X, W, torch.zeros(4))
    with pytest.raises(TypeError, match="^x: an array of torch needed, like the plan's weights, got one of numpy$"):
        plan(X.shape, w)(X)


# JAX

jax_test = pytest.mark.skipif(not machine.installed("jax"), reason="JAX is not installed")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="JAX is not installed")


@jax_test
def test_jax_arrays_in_without_a_copy_and_a_jax_array_out(jax, given):
    x, w, bias = (jax.numpy.asarray(array) for array in (X, W, BIAS))
    y = conv2d(x, w, bias, padding=1, algorithm="direct")
    assert isinstance(y, jax.Array)
    assert address(given["x"]) == x.unsafe_buffer_pointer()
    assert address(given["y"]) == y.unsafe_buffer_pointer()
    np.testing.assert_array_equal(y, Y)
    np.testing.assert_array_equal(plan(x.shape, w, bias, padding=1)(x), Y)
    assert conv2d(x[:0], w).shape == (0, 4, 7, 6)


@jax_test
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_jax_has_the_same_same(jax, stride):
    x, w = jax.numpy.asarray(X), jax.numpy.asarray(W)
    wanted = jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME")
    np.testing.assert_array_equal(conv2d(x, w, padding="same", stride=stride), wanted)


@jax_test
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_jax_short_floats(jax, name):
    x, w, bias = (jax.numpy.asarray(array, dtype=name) for array in (X, W, BIAS))
    y = conv2d(x, w, bias, padding=1)
    assert isinstance(y, jax.Array)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, jax.numpy.asarray(Y, dtype=name))


@jax_test
def test_jax_refusals(jax):
    x, w = jax.numpy.asarray(X), jax.numpy.asarray(W)
    with pytest.raises(TypeError, match="^out: JAX arrays are immutable"):
        conv2d(x, w, out=jax.numpy.zeros((2, 4, 7, 6)))
    with pytest.raises(TypeError, match="^x: a concrete array needed, got a JAX tracer"):
        jax.jit(conv2d)(x, w)
    with pytest.raises(TypeError, match="^w: an array of jax needed, like x, got one of numpy$"):
        conv2d(x, W)


# GPU arrays, through stand-ins: what a kernel would be given, and that nothing else is asked of a GPU


class StandIn:
    """What arrays.py uses of a cupy.ndarray: address, shape, strides, dtype, and that it lies on device 1."""

    def __init__(self, shape, dtype, memptr, strides=None):
        self.shape, self.dtype, self.data = tuple(shape), np.dtype(dtype), memptr
        self.strides = strides or np.empty(shape, dtype).strides
        self.device = SimpleNamespace(id=1)


def at(address):
    return SimpleNamespace(ptr=address)


@pytest.fixture
def cupy(monkeypatch):
    """A module that stands in for CuPy: every allocation has an address of its own; the current device is known."""
    module = ModuleType("cupy")
    module.current = [0]

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            module.current.append(self.index)

        def __exit__(self, *_):
            module.current.pop()

    def empty(shape, dtype):
        assert module.current[-1] == 1, "memory on another device than x"
        module.address += 1 << 20
        return StandIn(shape, dtype, at(module.address))

    module.address = 1 << 30
    module.ndarray, module.empty = StandIn, empty
    module.cuda = SimpleNamespace(
        Device=Device,
        get_current_stream=lambda index: SimpleNamespace(ptr=70 + index),
        UnownedMemory=lambda address, size, owner, index: (address, size, owner, index),
        MemoryPointer=lambda memory, offset: SimpleNamespace(ptr=memory[0] + offset, memory=memory),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "gpu", lambda index: device.Device("cuda", index, "stand-in", (8, 0), 108))
    monkeypatch.setattr(machine, "installed", lambda package: True)
    monkeypatch.setenv("CONVLIB_TRUST", "all")  # no kernel can be checked on it
    return module


@pytest.fixture
def launched(monkeypatch, cupy):
    """What cupy_raw.direct was run with, and the device that was current then."""
    seen = {}

    def run(problem, place, x, w, y, bias=None, residual=None, workspace=None, stream=None):
        seen.update(problem=problem, place=place, x=x, w=w, y=y, bias=bias, stream=stream, current=cupy.current[-1])

    monkeypatch.setattr(dispatch.kernel("cupy_raw.direct"), "run", run)
    return seen


RAW = {"backend": "cupy_raw", "algorithm": "direct"}


def test_cupy_arrays_reach_the_kernel_where_they_lie_on_the_current_stream(cupy, launched):
    x, w, bias = (StandIn(a.shape, a.dtype, at(n << 16), a.strides) for n, a in enumerate((X, W, BIAS), 1))
    y = conv2d(x, w, bias, padding=1, **RAW)
    assert isinstance(y, StandIn)
    assert (y.shape, y.dtype) == (Y.shape, Y.dtype)
    for name, array in (("x", x), ("w", w), ("bias", bias), ("y", y)):
        assert launched[name].data.ptr == array.data.ptr, name
        assert (launched[name].shape, launched[name].strides) == (array.shape, array.strides), name
    assert (launched["place"].kind, launched["place"].index) == ("cuda", 1)
    assert launched["stream"] == 71
    assert launched["current"] == 1
    assert cupy.current == [0]


def test_cupy_views_are_turned_by_address_and_strides_alone(cupy, launched):
    nhwc = np.empty((2, 9, 8, 6), np.float16)
    x = StandIn(nhwc.shape, nhwc.dtype, at(1 << 16), nhwc.strides)
    hwio = np.empty((3, 3, 6, 4), np.float16)
    w = StandIn(hwio.shape, hwio.dtype, at(2 << 16), hwio.strides)
    conv2d(x, w, layout="NHWC", weight_layout="HWIO", flip_kernel=True, **RAW)
    wanted = nhwc.transpose(0, 3, 1, 2)
    assert (launched["x"].shape, launched["x"].strides) == (wanted.shape, wanted.strides)
    assert launched["x"].dtype == np.uint16
    turned = hwio.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1]
    assert (launched["w"].shape, launched["w"].strides) == (turned.shape, turned.strides)
    assert launched["w"].data.ptr - (2 << 16) == address(turned) - address(hwio)
    start, size, _, index = launched["w"].data.memory
    assert (start, size, index) == (2 << 16, hwio.nbytes, 1)


def test_cupy_out_may_not_overlap_and_may_lie_beside(cupy, launched):
    x, w = StandIn(X.shape, X.dtype, at(1 << 16)), StandIn(W.shape, W.dtype, at(2 << 16))
    beside = StandIn(Y.shape, Y.dtype, at((1 << 16) + X.nbytes))
    assert conv2d(x, w, padding=1, out=beside, **RAW) is beside
    assert launched["y"].data.ptr == beside.data.ptr
    planned = plan(X.shape, w, padding=1, **RAW)
    assert planned(x, out=beside) is beside
    for name, array in (("x", x), ("w", w)):
        over = StandIn(Y.shape, Y.dtype, at(array.data.ptr + 4))
        with pytest.raises(ValueError, match=f"^out: memory apart from every input needed, but it overlaps {name}$"):
            conv2d(x, w, padding=1, out=over, **RAW)
        with pytest.raises(ValueError, match=f"^out: memory apart from every input needed, but it overlaps {name}$"):
            planned(x, out=over)


def test_arrays_on_two_devices_are_refused(cupy):
    x, w = StandIn(X.shape, X.dtype, at(1 << 16)), StandIn(W.shape, W.dtype, at(2 << 16))
    planned = plan(X.shape, w, **RAW)
    x.device = SimpleNamespace(id=0)
    with pytest.raises(ValueError, match="^w: an array on cuda:0 needed, like x, got one on cuda:1$"):
        conv2d(x, w)
    with pytest.raises(ValueError, match="^x: an array on cuda:1 needed, as planned, got one on cuda:0$"):
        planned(x)
    with pytest.raises(TypeError, match="^w: an array of cupy needed, like x, got one of numpy$"):
        conv2d(x, W)


SIMULATED = """
import numpy as np
from numba import cuda
import convlib

random = np.random.default_rng(0)
x, w = (random.integers(-4, 5, shape).astype(np.float32) for shape in ((1, 2, 4, 5), (3, 2, 3, 3)))
wanted = convlib.conv2d(x, w, padding=1, backend="numba_cpu", algorithm="direct")
d_x, d_w = cuda.to_device(x), cuda.to_device(w)
y = convlib.conv2d(d_x, d_w, padding=1)
assert hasattr(y, "copy_to_host"), type(y)
np.testing.assert_array_equal(y.copy_to_host(), wanted)
out = cuda.device_array(wanted.shape, np.float32)
assert convlib.conv2d(d_x, d_w, padding=1, algorithm="direct", out=out) is out
np.testing.assert_array_equal(out.copy_to_host(), wanted)
np.testing.assert_array_equal(convlib.plan(x.shape, d_w, padding=1)(d_x).copy_to_host(), wanted)
try:
    convlib.conv2d(d_x, w)
except TypeError as error:
    assert str(error) == "w: an array of numba needed, like x, got one of numpy", error
else:
    raise AssertionError("a mixture was taken")
print("done")
"""


def test_numba_device_arrays_in_the_simulator():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", SIMULATED], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "done", done.stderr


# On a GPU


def on_this_gpu(library):
    """X, W and BIAS as `library`'s arrays on this machine's GPU, and the way back."""
    if library == "cupy":
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        return [cupy.asarray(a) for a in (X, W, BIAS)], cupy.asnumpy
    if library == "numba":
        from numba import cuda

        return [cuda.to_device(a) for a in (X, W, BIAS)], lambda y: y.copy_to_host()
    if library == "jax":
        jax = pytest.importorskip("jax", reason="JAX is not installed")
        if jax.default_backend() != "gpu":
            pytest.skip("JAX sees no GPU")
        return [jax.numpy.asarray(a) for a in (X, W, BIAS)], np.asarray
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    return [torch.from_numpy(a).cuda() for a in (X, W, BIAS)], lambda y: y.cpu().numpy()


@pytest.mark.gpu
@pytest.mark.skipif(not convlib.info()["gpus"], reason="no GPU is visible")
@pytest.mark.parametrize("library", ["cupy", "numba", "torch", "jax"])
@pytest.mark.parametrize("backend", ["numba_cuda", "cupy_raw"])
def test_gpu_arrays_through_both_families(library, backend):
    (x, w, bias), to_host = on_this_gpu(library)
    y = conv2d(x, w, bias, padding=1, backend=backend)
    assert type(y) is type(x)
    np.testing.assert_array_equal(to_host(y), Y)
    np.testing.assert_array_equal(to_host(plan(X.shape, w, bias, padding=1, backend=backend)(x)), Y)
