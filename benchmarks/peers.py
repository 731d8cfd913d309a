"""The peers on a CPU, each set up as its own manual says is fastest, with weights given once before anything is timed.

A peer is a function (case, operands, threads) -> Candidate. It imports its package itself, so that whoever lacks one
can run the rest, and raises CannotRun, with the reason, for a case its interface does not have. What a peer's interface
allows to do once is done outside the timed call: conversion of the input into its own tensor, packed layout included,
and the allocation of the result. PyTorch alone packs the weights in each call: its float32 tensors offer nothing else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .candidate import Candidate, CannotRun
from .cases import FILTERS, Case, Operands, gradient_of
from .gate import FAST_MAX_ERROR

PYTORCH_FILTER_MACS = 500_000_000
PYTORCH = ("PyTorch NCHW", "PyTorch channels_last")


def pytorch(case: Case, operands: Operands, threads: int, channels_last: bool = False) -> Candidate:
    """torch.nn.functional.conv2d in inference mode (oneDNN), tensors in torch's own default order or channels_last."""
    import torch

    torch.set_num_threads(threads)
    order = torch.channels_last if channels_last else torch.contiguous_format
    x, w = (tensor_of(a).contiguous(memory_format=order) for a in (operands.x, operands.w))
    bias = None if operands.bias is None else tensor_of(operands.bias)
    if channels_last:
        x, w = in_channels_last(x), in_channels_last(w)
    padding = symmetric_padding(case.problem)
    parameters = (case.problem.stride, padding, case.problem.dilation, case.problem.groups)
    last = {}

    def call():
        with torch.inference_mode():
            last["y"] = torch.conv2d(x, w, bias, *parameters)

    return Candidate(PYTORCH[channels_last], call, lambda: array_of(last["y"]), FAST_MAX_ERROR)


def tensor_of(array):
    """The array as PyTorch's, of the same type; bfloat16, which only PyTorch has by itself, by its bits."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(tensor):
    """The tensor's numbers as NumPy's, bfloat16 as float32."""
    import torch

    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def pytorch_gradient(case: Case, operands: Operands, threads: int, channels_last: bool = False) -> Candidate:
    """The operator that PyTorch's autograd calls for a convolution, asked for one of its gradients."""
    import torch

    torch.set_num_threads(threads)
    order = torch.channels_last if channels_last else torch.contiguous_format
    arrays = operands.grad_y, operands.x, operands.w
    tensors = [tensor_of(a).contiguous(memory_format=order) for a in arrays]
    if channels_last:
        tensors = [in_channels_last(tensor) for tensor in tensors]
    call = PyTorchGradient(case.problem, tensors)
    return Candidate(PYTORCH[channels_last], call, lambda: array_of(call.result), FAST_MAX_ERROR)


class PyTorchGradient:
    """One call of torch.ops.aten.convolution_backward on grad_y, x and w; `result` is the gradient of the last."""

    def __init__(self, problem, tensors):
        parameters = (problem.stride, symmetric_padding(problem), problem.dilation)
        wanted = [problem.pass_ == name for name in ("input_grad", "weight_grad")]
        self.arguments = (*tensors, None, *map(list, parameters), False, [0, 0], problem.groups, [*wanted, False])
        self.which, self.result = wanted.index(True), None

    def __call__(self):
        import torch

        with torch.inference_mode():
            self.result = torch.ops.aten.convolution_backward(*self.arguments)[self.which]


def in_channels_last(tensor):
    """With channels_last strides even where sizes of 1 make torch believe that nothing needs to change."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def onnxruntime(case: Case, operands: Operands, threads: int) -> Candidate:
    """An InferenceSession with input and output bound to its own memory."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(onnx_model(case, operands), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    y = ort.OrtValue.ortvalue_from_shape_and_type(list(case.problem.y_shape), np.float32)
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(operands.x))
    binding.bind_ortvalue_output("y", y)
    return Candidate("ONNX Runtime", partial(session.run_with_iobinding, binding), y.numpy, FAST_MAX_ERROR)


def openvino(case: Case, operands: Operands, threads: int) -> Candidate:
    """A compiled model of one convolution in float32, one stream, results in memory of ours."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino_core().compile_model(openvino_core().read_model(onnx_model(case, operands)), "CPU", settings)
    request = compiled.create_infer_request()
    y = np.empty(case.problem.y_shape, np.float32)
    request.set_input_tensor(ov.Tensor(operands.x, shared_memory=True))
    request.set_output_tensor(ov.Tensor(y, shared_memory=True))

    def call():  # infer() would copy the result into a new array
        request.start_async()
        request.wait()

    return Candidate("OpenVINO", call, lambda: y, FAST_MAX_ERROR)


@cache
def openvino_core():
    import openvino as ov

    return ov.Core()


def ncnn(case: Case, operands: Operands, threads: int) -> Candidate:
    """A net of one convolution in float32; input and result stay in ncnn's own packed layout (8 or 16 channels)."""
    import ncnn

    problem = case.problem
    if problem.N != 1:
        raise CannotRun("ncnn computes one image at a time")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param_mem(ncnn_description(problem, operands.bias is not None))
    bias = b"" if operands.bias is None else operands.bias.tobytes()
    with temporary_file(bytes(4) + operands.w.tobytes() + bias) as path:  # 4 zero bytes: float32 weights follow
        net.load_model(path)
    image = ncnn.Mat(operands.x[0]).clone()
    if problem.C % ncnn_packing() == 0:
        image = ncnn.convert_packing(image, ncnn_packing(), net.opt)

    def extract(keep_packed):
        extractor = net.create_extractor()
        extractor.input("x", image)
        return extractor.extract("y", keep_packed)[1]

    return Candidate("ncnn", partial(extract, 1), lambda: np.array(extract(0))[None], FAST_MAX_ERROR)


@cache
def ncnn_packing() -> int:
    """How many channels ncnn keeps side by side on this processor."""
    from cpuinfo import get_cpu_info

    return 16 if "avx512f" in get_cpu_info().get("flags", ()) else 8


def ncnn_description(problem, has_bias: bool) -> str:
    """The net in ncnn's text format; the numbers before "=" are the parameters of its Convolution layer."""
    (top, bottom), (left, right) = problem.padding
    kind = "Convolution" if problem.groups == 1 else "ConvolutionDepthWise"
    groups = "" if problem.groups == 1 else f" 7={problem.groups}"
    return (
        "7767517\n2 2\nInput x 0 1 x\n"
        f"{kind} conv 1 1 x y 0={problem.K} 1={problem.S} 11={problem.R} "
        f"2={problem.dilation[1]} 12={problem.dilation[0]} "
        f"3={problem.stride[1]} 13={problem.stride[0]} 4={left} 14={top} 15={right} 16={bottom} 5={int(has_bias)} "
        f"6={problem.K * problem.Cg * problem.R * problem.S}{groups}\n"
    )


def opencv(case: Case, operands: Operands, threads: int) -> Candidate:
    """cv2.dnn on a network of one convolution; the input is set once."""
    import cv2

    cv2.setNumThreads(threads)
    network = cv2.dnn.readNetFromONNX(np.frombuffer(onnx_model(case, operands), np.uint8))
    network.setInput(operands.x)
    last = {}

    def call():
        last["y"] = network.forward()

    return Candidate("OpenCV dnn", call, lambda: last["y"], FAST_MAX_ERROR)


def mnn(case: Case, operands: Operands, threads: int) -> Candidate:
    """A module at precision "high"; its larger Winograd tiles cost accuracy, which the table shows."""
    with silence():
        from MNN import expr, nn

    settings = {"backend": 0, "numThread": threads, "precision": "high"}
    with temporary_file(onnx_model(case, operands)) as onnx_path, temporary_file(b"") as path, silence():
        mnn_convert(onnx_path, path)
        runtime = nn.create_runtime_manager((settings,))
        module = nn.load_module_from_file(path, ["x"], ["y"], runtime_manager=runtime)
    x = expr.const(operands.x, list(case.problem.x_shape), expr.NCHW)
    last = {}

    def call():
        last["y"] = module.forward(x)

    def output():
        return np.array(last["y"].read()).reshape(case.problem.y_shape)

    return Candidate("MNN", call, output, FAST_MAX_ERROR)


def mnn_convert(onnx_path: str, path: str) -> None:
    """MNN's converter from ONNX. Not by its command mnnconvert: that one installs a package to report its use."""
    from _tools import mnnconvert

    mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", onnx_path, "--MNNModel", path])


def opencv_filter2d(case: Case, operands: Operands, threads: int) -> Candidate:
    """cv2.filter2D on an image as OpenCV keeps it, (H, W) or (H, W, 3), with zeros outside."""
    import cv2

    cv2.setNumThreads(threads)
    image = np.ascontiguousarray(operands.x[0].transpose(1, 2, 0))
    y = np.empty_like(image)
    call = partial(cv2.filter2D, image, -1, operands.w[0, 0], y, borderType=cv2.BORDER_CONSTANT)
    return Candidate("OpenCV filter2D", call, lambda: y.transpose(2, 0, 1)[None], FAST_MAX_ERROR)


def scipy_correlate(case: Case, operands: Operands, threads: int) -> Candidate:
    """scipy.ndimage.correlate, channel by channel; it uses one thread."""
    from scipy import ndimage

    planes, y = operands.x[0], np.empty_like(operands.x[0])

    def call():
        for plane, result in zip(planes, y, strict=True):
            ndimage.correlate(plane, operands.w[0, 0], result, mode="constant")

    return Candidate("SciPy ndimage", call, lambda: y[None], FAST_MAX_ERROR)


def scipy_oaconvolve(case: Case, operands: Operands, threads: int) -> Candidate:
    """scipy.signal.oaconvolve (overlap-add by FFT), channel by channel, on the filter turned by 180 degrees."""
    from scipy import fft, signal

    planes, kernel = operands.x[0], operands.w[0, 0, ::-1, ::-1]
    last = {}

    def call():
        with fft.set_workers(threads):
            last["y"] = [signal.oaconvolve(plane, kernel, mode="same") for plane in planes]

    return Candidate("SciPy oaconvolve", call, lambda: np.stack(last["y"])[None], FAST_MAX_ERROR)


def pytorch_filter(case: Case, operands: Operands, threads: int, channels_last: bool = False) -> Candidate:
    """PyTorch on an image filter, where it computes 0.1 to 0.3 GFLOP/s on large windows."""
    if case.problem.macs > PYTORCH_FILTER_MACS:
        raise CannotRun("a call would take from five seconds to minutes at the 0.2 GFLOP/s of the smaller filters")
    return pytorch(case, operands, threads, channels_last)


# name -> (the package it needs, how a candidate is made)
LAYER_PEERS = {
    PYTORCH[0]: ("torch", pytorch),
    PYTORCH[1]: ("torch", partial(pytorch, channels_last=True)),
    "ONNX Runtime": ("onnxruntime", onnxruntime),
    "OpenVINO": ("openvino", openvino),
    "ncnn": ("ncnn", ncnn),
    "OpenCV dnn": ("cv2", opencv),
    "MNN": ("MNN", mnn),
}
FILTER_PEERS = {
    "OpenCV filter2D": ("cv2", opencv_filter2d),
    "SciPy ndimage": ("scipy", scipy_correlate),
    "SciPy oaconvolve": ("scipy", scipy_oaconvolve),
    PYTORCH[0]: ("torch", pytorch_filter),
    PYTORCH[1]: ("torch", partial(pytorch_filter, channels_last=True)),
}
GRADIENT_PEERS = {
    PYTORCH[0]: ("torch", pytorch_gradient),
    PYTORCH[1]: ("torch", partial(pytorch_gradient, channels_last=True)),
}
NEED_ONNX = ("onnxruntime", "openvino", "cv2", "MNN")


def of_suite(suite: str) -> dict:
    if gradient_of(suite):
        return GRADIENT_PEERS
    return FILTER_PEERS if suite == FILTERS else LAYER_PEERS


def makers(suite: str, threads: int, dtype: str = "float32") -> dict[str, Callable]:
    """The installed peers of a suite, by name; of another dtype than float32 those that take it."""
    return {
        name: partial(make, threads=threads)
        for name, (_, make) in of_suite(suite).items()
        if name not in missing(suite) and (dtype == "float32" or name in PYTORCH)
    }


def missing(suite: str) -> dict[str, str]:
    """The peers that cannot be measured here, with the package each lacks."""
    found = {}
    for name, (package, _) in of_suite(suite).items():
        needed = (package, "onnx") if suite != FILTERS and package in NEED_ONNX else (package,)
        lacking = [module for module in needed if find_spec(module) is None]
        if lacking:
            found[name] = " and ".join(lacking)
    return found


def symmetric_padding(problem) -> tuple[int, int]:
    (top, bottom), (left, right) = problem.padding
    if top != bottom or left != right:
        raise CannotRun("its padding is the same on both sides")
    return top, left


def onnx_model(case: Case, operands: Operands) -> bytes:
    """An ONNX model of the case's one convolution, weights inside; x in, y out, NCHW."""
    import onnx
    from onnx import helper, numpy_helper

    problem = case.problem
    weights = {"w": operands.w} | ({} if operands.bias is None else {"bias": operands.bias})
    (top, bottom), (left, right) = problem.padding
    node = helper.make_node(
        "Conv", ["x", *weights], ["y"], group=problem.groups, pads=[top, left, bottom, right],
        strides=problem.stride, dilations=problem.dilation, kernel_shape=[problem.R, problem.S],
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, problem.x_shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, problem.y_shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    versions = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8}  # read by every peer of recent years
    return helper.make_model(graph, **versions).SerializeToString()


@contextlib.contextmanager
def temporary_file(content: bytes):
    """The path of a file with `content`, for interfaces that read files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(content)
        yield str(path)


@contextlib.contextmanager
def silence():
    """Drop what C++ code prints to stdout: a converter's chatter would tear the progress bar."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
