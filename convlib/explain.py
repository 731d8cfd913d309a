"""explain, kernels and info: what there is, what would run, and why the rest would not."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from . import accuracy, arrays, choosing, complex_numbers, device, dispatch, measuring
from .complex_numbers import PARTS
from .device import Device
from .errors import UnsupportedError
from .machine import installed_version, kernels_folder, processor_name, visible_gpus
from .operands import check_flag, check_operands, device_for
from .padding_modes import padded_before
from .padding_taps import without_padding_taps
from .problem import (
    COMPLEX_DTYPES,
    PADDING_MODES,
    ConvProblem,
    Padding,
    Pair,
    batched_shape,
    check_choice,
    checked_dtype,
    make_problem,
    named_dtype,
)

PACKAGES = ("numpy", "numba", "llvmlite", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "ml_dtypes", "torch", "jax")


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """A listed kernel: its name, idea and file.

    found: on which devices `python -m convlib verify` or a first use found it right or wrong, and since when; and on
    which GPU of this machine neither has been.
    """

    name: str
    family: str
    algorithm: str
    idea: str
    file: str
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every listed kernel held against one problem; `chosen` is the name of the one that would run, or None.

    complex_dtype: the result's, where x, w or both are complex: then `problem` is the real call that serves them.
    workspace_limit: what kernels may take, without what blocks of complex numbers and a padding_mode take before them.
    """

    problem: ConvProblem
    device: Device
    candidates: tuple[dispatch.Candidate, ...]
    chosen: str | None
    complex_dtype: str | None = None
    workspace_limit: int | None = None

    @property
    def heading(self) -> str:
        """What is explained, in two lines, or three for complex numbers."""
        lines = [f"{self.problem}", f"on {self.device}"]
        if self.complex_dtype:
            lines.append(f"for {self.complex_dtype}: real and imaginary parts are blocks of images and of filters")
        return "\n".join(lines)

    def verdict(self, candidate) -> str:
        trust = f", {candidate.trust}" if candidate.trust else ""
        if candidate.name == self.chosen:
            return f"chosen{trust}"
        if not candidate.possible:
            return "; ".join(candidate.reasons)
        return f"possible{trust}"

    def __str__(self) -> str:
        lines = [self.heading]
        for c in self.candidates:
            lines.append(f"  {c.name:32}  {self.verdict(c):9} {c.numbers}".rstrip())
        return "\n".join(lines)


def explain(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    dtype: Any = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    activation: str | tuple[str, float] | None = None,
    residual: Any = None,
    algorithm: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    on: Device | str | None = None,
) -> Explanation:
    """Hold every listed kernel against a convolution: chosen, possible (with its time), or why not.

    Times are predicted, unless `tune` has measured them on this machine; what a call without tune=True would choose
    is told either way. Behind a time stand the norm-relative error that the kernel keeps to on standard normal data,
    the rounding of a 16-bit result included, and its scratch memory, packed weights included.

    x, w: arrays, or their shapes: then `dtype` says of what, without it the array beside a shape does, or it is
    float32; and `on` where, as "cpu", "cuda:0", "sm_90" or a Device; this CPU if it is not given. An array's own dtype
    may differ from `dtype` where one of the two is complex. bias, residual: the arrays, or whether there is one. The
    other arguments and the errors are conv2d's; where no kernel can run, `chosen` is None instead of an error.

    >>> explain((1, 64, 56, 56), (64, 64, 3, 3), padding=1).chosen is not None
    True
    """
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_flag("flip_kernel", flip_kernel)
    on = device.named(on, "on") if isinstance(on, str) else on
    dtypes, place = dtypes_and_place(x, w, dtype, on, backend)
    has_bias, has_residual = is_given("bias", bias), is_given("residual", residual)
    dtype, complex_dtype = dtypes[0], complex_numbers.dtype_of(*dtypes)
    if complex_dtype:
        dtype = PARTS[complex_dtype]
        complex_numbers.check_no_activation(activation)
        has_bias = has_residual = False  # they are added to what the kernel makes
    problem = make_problem(
        batched_shape(shape_of(x))[0], shape_of(w), dtype, stride=stride, padding=padding, dilation=dilation,
        groups=groups, layout=layout, weight_layout=weight_layout, activation=activation, has_bias=has_bias,
        has_residual=has_residual, precision=precision,
    )  # fmt: skip
    if complex_dtype:
        problem, workspace_limit = complex_numbers.in_blocks(problem, *dtypes, workspace_limit)
    elif layout == "NCHW" and lies_channels_last(x):
        problem = replace(problem, layout="NHWC")
    problem, left = padded_before(problem, padding_mode, workspace_limit)
    problem, _ = without_padding_taps(problem, algorithm)
    asked = dispatch.checked_choice(problem, place, backend, algorithm, max_error, left)
    try:
        chosen = choosing.choose(*asked)
    except UnsupportedError:
        chosen = None
    *_, max_error, left = asked
    candidates = dispatch.candidates(problem, place, max_error, left)
    candidates = measuring.with_measured(with_trust(candidates, problem, place), problem, place)
    return Explanation(problem, place, candidates, chosen, complex_dtype, left)


def is_given(name, array) -> bool:
    """Whether there is such an array: it is here, or said to be."""
    if array is not None and not isinstance(array, bool):
        arrays.library_of(array, name)
    return array is not None and array is not False


def lies_channels_last(x) -> bool:
    """Whether x is an array for which conv2d runs in NHWC though its axes are in NCHW."""
    return not isinstance(x, (tuple, list)) and arrays.library_of(x, "x").channels_last(x)


def with_trust(candidates, problem, place):
    """Candidates on a GPU with what is on record of them there."""
    if not place.is_gpu:
        return candidates
    from . import trust  # which imports what `import convlib` should not

    return tuple(replace(c, trust=trust.state(c.name, problem, place)) if c.possible else c for c in candidates)


def dtypes_and_place(x, w, dtype, on, backend):
    """Of what types x and w and where: as the arrays are, or as the caller said where x or w is only a shape."""
    own = {name: a_dtype(name, array) for name, array in (("x", x), ("w", w)) if not isinstance(array, (tuple, list))}
    given = None if dtype is None else explained_dtype(dtype)
    for name, has in own.items():
        beside_a_shape = len(own) == 1 and given is not None and "c" in (given.kind, has.kind)
        if given is not None and given != has and not beside_a_shape:
            raise TypeError(f"dtype: {has}, as {name} has it, or none needed, got {given}")
    of_shapes = next(iter(own.values()), np.dtype(np.float32)) if given is None else given
    dtypes = [own.get(name, of_shapes) for name in ("x", "w")]
    if "x" not in own:
        return [explained_dtype(each, name) for name, each in zip(("x", "w"), dtypes)], on or device.cpu()
    library = arrays.library_of(x, "x")
    if "w" in own:
        any_complex = arrays.is_complex(library, x) or arrays.is_complex(library, w)
        check_operands(library, x, None if any_complex else checked_dtype(dtypes[0]), w=w)
    return dtypes, on or device_for(library, x, backend)


def a_dtype(name, array):
    return arrays.library_of(array, name).dtype(array, name)


def explained_dtype(dtype, name="dtype"):
    dtype = named_dtype(dtype, name) if isinstance(dtype, str) else np.dtype(dtype)
    return dtype if dtype.name in COMPLEX_DTYPES else checked_dtype(dtype, name)


def shape_of(array):
    return array if isinstance(array, (tuple, list)) else array.shape


def kernels() -> tuple[KernelFacts, ...]:
    """Every listed kernel with the first line of its account and what is on record.

    Reads files and imports no kernel; where there is a driver for GPUs, it imports a library to ask for their names.

    >>> kernels()[0].name
    'numba_cpu.direct'
    """
    from .verification import records

    found = records.found_of(dispatch.KERNELS, visible_gpus())
    return tuple(replace(kernel_facts(name), found=found[name]) for name in dispatch.KERNELS)


@cache
def kernel_facts(name):
    import ast

    path = kernels_folder() / (name.replace(".", "/") + ".py")
    account = ast.get_docstring(ast.parse(path.read_text())) or ""
    idea = account.partition("\n\n")[0].replace("\n", " ")
    return KernelFacts(name, dispatch.family_of(name), dispatch.algorithm_of(name), idea, str(path))


def info() -> dict[str, Any]:
    """What this machine offers: versions, processor, threads, GPUs and the kernel families that can run.

    >>> info()["families"]["numba_cpu"]
    'ready'
    """
    gpus = visible_gpus()
    return {
        "convlib": installed_version("convlib-kernels") or "a checkout",
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := installed_version(name))},
        "processor": processor_name(),
        "threads": device.cpu().threads,
        "gpus": [str(gpu) for gpu in gpus],
        "families": {name: family_state(name, gpus) for name in dispatch.FAMILIES},
    }


def family_state(name, gpus):
    place = device.cpu() if "cpu" in dispatch.FAMILIES[name].runs_on else (gpus[0] if gpus else None)
    if place is None:
        return "no GPU is visible"
    return "; ".join(dispatch.family_reasons(name, place)) or "ready"
