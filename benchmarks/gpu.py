"""The GPU's side: where arrays lie, how a block is timed, and the peers cuDNN and PyTorch CUDA.

Without a GPU the cuDNN graphs are built and looked at in tests/benchmarks/test_gpu.py; with one, `python -m benchmarks
gpu` runs it all.

cuDNN is called through NVIDIA's own front end (nvidia-cudnn-frontend) on CuPy arrays: NCHW and NHWC, with TF32 and
without, once with the plan its heuristic ranks first and once with the fastest of all its plans. With TF32 products
have 10 bits, so those candidates fall into the "fast" class and are never set beside float32.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

import numpy as np

import convlib
from convlib import device

from . import gate, nvidia_card
from .candidate import Candidate, CannotRun
from .cases import Case, Operands
from .gate import FAST_MAX_ERROR
from .ours import Place
from .peers import PyTorchGradient, symmetric_padding

TRIES_FOR_A_PLAN = 5
MOST_CAPTURED = 50  # calls in one graph


def unavailable() -> str | None:
    """Why nothing can be measured on a GPU here; None where one can be."""
    if find_spec("cupy") is None:
        return 'CuPy is not installed: python -m pip install -e ".[cuda13]"'
    return None if convlib.info()["gpus"] else "no CUDA device is visible"


def place() -> Place:
    """CuPy arrays on device 0."""
    import cupy

    return Place(device.gpu(0), cupy.asarray, lambda array: array, Launched)


@cache
def stream():
    """The stream that everything here runs on: a graph can only be captured from one that is not the default."""
    import cupy

    return cupy.cuda.Stream(non_blocking=True)


FMA_LOOP = """
extern "C" __global__ void multiply_add(float* y, float a, float b, int steps) {
    float sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = threadIdx.x + i;
    for (int step = 0; step < steps; ++step) {
        #pragma unroll
        for (int i = 0; i < 16; ++i) sums[i] = fmaf(sums[i], a, b);
    }
    float total = 0;
    for (int i = 0; i < 16; ++i) total += sums[i];
    y[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
"""
COPIED = 1 << 30  # bytes, twenty times the largest L2 cache


def peaks() -> dict:
    """What this GPU does at most, measured: multiply-adds in registers, and a copy in its memory."""
    return {"core_gflops": multiply_add_gflops(), "bandwidth_gbs": copy_gbs()}


def multiply_add_gflops() -> float:
    import cupy

    kernel, steps, threads = cupy.RawKernel(FMA_LOOP, "multiply_add"), 4096, 256
    blocks = 8 * device.gpu(0).sm_count
    y = cupy.empty(blocks * threads, cupy.float32)
    arguments = (y, np.float32(0.999), np.float32(1e-3), np.int32(steps))
    call = partial(kernel, (blocks,), (threads,), arguments)
    seconds = min(launched_block(call, 5) for _ in range(5))
    return blocks * threads * steps * 16 * 2 / seconds / 1e9


def copy_gbs() -> float:
    import cupy

    a = cupy.zeros(COPIED, cupy.uint8)
    call = partial(cupy.copyto, cupy.empty_like(a), a)
    seconds = min(launched_block(call, 5) for _ in range(5))
    return 2 * COPIED / seconds / 1e9


def driver() -> str:
    """The driver's version, clocks and power limit as the card has them, otherwise the CUDA that it supports."""
    import cupy

    found = nvidia_card.asked(("driver_version", "clocks.sm", "clocks.max.sm", "power.limit"), 0)
    return ", ".join(found.values()) or f"for CUDA {cupy.cuda.runtime.driverGetVersion() / 1000:g}"


def exact(case: Case, operands: Operands) -> np.ndarray:
    """The gate's float64 result, computed and kept on the GPU, where the answers are compared with it."""
    import cupy

    return gate.exact(case, operands, cupy.asarray)


def event_block(call: Callable, calls: int) -> float:
    """Seconds per call between two CUDA events around the replay of `calls` calls, captured as one graph.

    A replay leaves the host out: what Python and the driver take to launch is not the kernels' time.
    """
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    with stream() as current:
        replay = getattr(call, "captured", partial(captured, call))(min(calls, MOST_CAPTURED))
        replay()  # the first one uploads the graph
        repeats = max(calls // MOST_CAPTURED, 1)
        start.record(current)
        for _ in range(repeats):
            replay()
        end.record(current)
        end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3 / (repeats * min(calls, MOST_CAPTURED))


class Launched:
    """A call that takes memory from a pool each time: a graph of it would use what the pool has given to others since.

    It is timed launch by launch, so where its kernel is short its time is the host's.
    """

    def __init__(self, call):
        self.call = call

    def __call__(self):
        return self.call()

    def captured(self, calls):
        return lambda: [self.call() for _ in range(calls)]


def launched_block(call: Callable, calls: int) -> float:
    """Seconds per call between two CUDA events around `calls` launches."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record(stream())
    for _ in range(calls):
        call()
    end.record(stream())
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3 / calls


def captured(call: Callable, calls: int) -> Callable:
    """What launches a graph of `calls` calls."""
    call()
    stream().synchronize()
    stream().begin_capture()
    try:
        for _ in range(calls):
            call()
    finally:
        graph = stream().end_capture()
    return partial(graph.launch, stream())


def synchronised(call: Callable) -> Callable:
    """The call and the wait for its end, for timers that know the host's clock only."""
    import cupy

    def call_and_wait():
        call()
        cupy.cuda.get_current_stream().synchronize()

    return call_and_wait


def pytorch(case: Case, operands: Operands, channels_last: bool, tf32: bool) -> Candidate:
    """torch.nn.functional.conv2d on CUDA with cudnn.benchmark on, so that PyTorch searches its algorithms too."""
    import torch

    order = torch.channels_last if channels_last else torch.contiguous_format
    name = f"PyTorch {'channels_last' if channels_last else 'NCHW'}{' TF32' if tf32 else ''}"
    if case.problem.pass_ != "forward":
        arrays = operands.grad_y, operands.x, operands.w
        tensors = [torch.from_numpy(a).cuda().contiguous(memory_format=order) for a in arrays]
        torch.cuda.synchronize()
        call = PyTorchGradientCall(case.problem, tensors, tf32)
        return Candidate(name, call, call.output, FAST_MAX_ERROR)
    x, w = (torch.from_numpy(a).cuda().contiguous(memory_format=order) for a in (operands.x, operands.w))
    bias = None if operands.bias is None else torch.from_numpy(operands.bias).cuda()
    problem = case.problem
    parameters = (problem.stride, symmetric_padding(problem), problem.dilation, problem.groups)
    torch.cuda.synchronize()
    call = PyTorchCall(x, w, bias, parameters, tf32)
    return Candidate(name, call, call.output, FAST_MAX_ERROR)


class PyTorchCall:
    """One torch.conv2d; its graphs are PyTorch's own, whose allocator knows that it is being captured."""

    def __init__(self, x, w, bias, parameters, tf32):
        self.operands, self.parameters, self.tf32, self.y = (x, w, bias), parameters, tf32, None

    def __call__(self):
        import torch

        with torch.cuda.stream(torch.cuda.ExternalStream(stream().ptr)):
            self.compute()

    def compute(self):
        import torch

        cudnn_flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=self.tf32)
        with torch.no_grad(), cudnn_flags:
            self.y = torch.conv2d(*self.operands, *self.parameters)

    def output(self):
        import cupy

        stream().synchronize()
        return cupy.from_dlpack(self.y)

    def captured(self, calls):
        import torch

        self()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                self.compute()
        torch_stream = torch.cuda.ExternalStream(stream().ptr)

        def replay():
            with torch.cuda.stream(torch_stream):
                graph.replay()

        return replay


class PyTorchGradientCall(PyTorchCall):
    """One gradient by the operator that PyTorch's autograd calls."""

    def __init__(self, problem, tensors, tf32):
        self.gradient, self.tf32, self.y = PyTorchGradient(problem, tensors), tf32, None

    def compute(self):
        import torch

        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=self.tf32):
            self.gradient()
        self.y = self.gradient.result


def cudnn(case: Case, operands: Operands, channels_last: bool, tf32: bool, best_plan: bool) -> Candidate:
    """One cuDNN graph, convolution and bias, executed on CuPy arrays."""
    import cudnn as frontend
    import cupy

    graph, tensors = cudnn_graph(case, channels_last, tf32, cudnn_handle())
    graph.create_execution_plans([frontend.heur_mode.A, frontend.heur_mode.FALLBACK])
    try:
        graph.check_support()
        if not best_plan:
            graph.build_plans(frontend.build_plan_policy.HEURISTICS_CHOICE)
    except frontend.cudnnGraphNotSupportedError as reason:
        raise CannotRun(str(reason)) from reason
    values = {"x": operands.x, "w": operands.w, "bias": operands.bias, "grad_y": operands.grad_y}
    arrays = {name: in_order(value, channels_last) for name, value in values.items() if name in tensors}
    arrays["y"] = in_order(np.full(case.problem.operand_shapes[2], np.nan, np.float32), channels_last)
    bound = {tensors[name]: array for name, array in arrays.items()}
    if best_plan:
        call = fastest_plan(graph, bound)
    else:
        workspace = cupy.empty(max(graph.get_workspace_size(), 1), cupy.uint8)
        call = partial(graph.execute, bound, workspace, handle=cudnn_handle())
    name = cudnn_name(channels_last, tf32, best_plan)
    return Candidate(name, call, lambda: arrays["y"], FAST_MAX_ERROR)


def cudnn_name(channels_last: bool, tf32: bool, best_plan: bool) -> str:
    layout, kind = "NHWC" if channels_last else "NCHW", "best plan" if best_plan else "heuristic"
    return f"cuDNN {layout} {kind}{' TF32' if tf32 else ''}"


@cache
def cudnn_handle():
    import cudnn as frontend

    handle = frontend.create_handle()
    frontend.set_stream(handle=handle, stream=stream().ptr)
    return handle


def cudnn_graph(case: Case, channels_last: bool, tf32: bool, handle):
    """The graph of one case, and its tensors by name; sizes are always N C H W, the strides say the layout.

    "y" is its result, which for a gradient is that of x or w.
    """
    import cudnn as frontend

    problem, real = case.problem, frontend.data_type.FLOAT
    graph = frontend.pygraph(io_data_type=real, intermediate_data_type=real, compute_data_type=real, handle=handle)

    def tensor(name, shape):
        return graph.tensor(name=name, dim=list(shape), stride=strides(shape, channels_last), data_type=real)

    (top, bottom), (left, right) = problem.padding
    parameters = {
        "pre_padding": [top, left], "post_padding": [bottom, right], "stride": list(problem.stride),
        "dilation": list(problem.dilation), "name": "convolution",
    }  # fmt: skip
    if problem.pass_ == "input_grad":
        tensors = {"grad_y": tensor("grad_y", problem.y_shape), "w": tensor("w", problem.w_shape)}
        y = graph.conv_dgrad(loss=tensors["grad_y"], filter=tensors["w"], **parameters)
    elif problem.pass_ == "weight_grad":
        tensors = {"grad_y": tensor("grad_y", problem.y_shape), "x": tensor("x", problem.x_shape)}
        y = graph.conv_wgrad(loss=tensors["grad_y"], image=tensors["x"], **parameters)
    else:
        tensors = {"x": tensor("x", problem.x_shape), "w": tensor("w", problem.w_shape)}
        y = graph.conv_fprop(image=tensors["x"], weight=tensors["w"], **parameters)
    if problem.has_bias:
        tensors["bias"] = tensor("bias", (1, problem.K, 1, 1))
        y = graph.bias(name="add_bias", input=y, bias=tensors["bias"])
    y.set_output(True).set_data_type(real)
    shape = problem.operand_shapes[2]
    y.set_dim(list(shape)).set_stride(strides(shape, channels_last))
    if not tf32:  # float32 data on tensor cores means TF32
        graph.deselect_numeric_notes([frontend.numerical_note.TENSOR_CORE])
    return graph, tensors | {"y": y}


def strides(shape, channels_last: bool) -> list[int]:
    """Strides in elements of an (N, C, H, W) array, its memory in that order or in (N, H, W, C)."""
    _, C, H, W = shape
    return [C * H * W, 1, W * C, C] if channels_last else [C * H * W, H * W, W, 1]


def in_order(array: np.ndarray, channels_last: bool):
    """A CuPy array of the same values, its memory in N C H W or N H W C; a bias becomes (1, K, 1, 1)."""
    import cupy

    array = array.reshape(1, -1, 1, 1) if array.ndim == 1 else array
    if not channels_last:
        return cupy.asarray(array)
    return cupy.asarray(np.ascontiguousarray(array.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def fastest_plan(graph, bound) -> Callable:
    """The call of the plan that was fastest in a few tries, among all that could be built."""
    import cudnn as frontend
    import cupy

    timed = []
    for index in range(graph.get_execution_plan_count()):
        with contextlib.suppress(
            RuntimeError, frontend.cudnnGraphNotSupportedError
        ):  # ranked by the heuristic, but it cannot be built
            graph.build_plan_at_index(index)
            workspace = cupy.empty(max(graph.get_workspace_size_plan_at_index(index), 1), cupy.uint8)
            call = partial(graph.execute_plan_at_index, bound, workspace, index, cudnn_handle())
            call()
            timed.append((launched_block(call, TRIES_FOR_A_PLAN), index, call))
    if not timed:
        raise CannotRun("cuDNN has no plan for it")
    return min(timed, key=lambda entry: entry[:2])[2]


def makers() -> dict[str, Callable]:
    """The installed peers by name."""
    found = {}
    orders = [(channels_last, tf32) for tf32 in (False, True) for channels_last in (False, True)]
    if find_spec("cudnn") is not None:
        for channels_last, tf32 in orders:
            for best in (False, True):
                name = cudnn_name(channels_last, tf32, best)
                found[name] = partial(cudnn, channels_last=channels_last, tf32=tf32, best_plan=best)
    if find_spec("torch") is not None:
        for channels_last, tf32 in orders:
            name = f"PyTorch {'channels_last' if channels_last else 'NCHW'}{' TF32' if tf32 else ''}"
            found[name] = partial(pytorch, channels_last=channels_last, tf32=tf32)
    return found


def free_bytes() -> int:
    """What is left of the card's memory."""
    import cupy

    return cupy.cuda.runtime.memGetInfo()[0]


def give_memory_back() -> None:
    """What CuPy's and PyTorch's pools keep for later: neither can use what lies in the other's."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
