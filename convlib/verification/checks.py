"""One kernel against one problem: the right values, the same bits twice, and nothing else written.

A kernel is run twice, with all that it has to write filled differently beforehand, every array between guards:

    result, workspace, packed weights    UNWRITTEN (NaN, -1) the first time, zeros the second
    afterwards                           the result is within its derived bound, and its bits are the same both times;
                                         inputs, and packed weights after packing, are as they were;
                                         so is every byte beside result, workspace and packed weights

An element never written, or computed from memory that nobody wrote, is a NaN the first time or has other bits the
second. In the emulator the accesses are checked one by one as well: bounds, races, reads of what nobody wrote.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .. import accuracy, device_arrays, dispatch, machine, operands, strided
from ..kernels import reference
from .problems import GUARD, UNWRITTEN, Placed, magnitude_of, placed

FILLINGS = (UNWRITTEN, 0)


class Fault(Exception):
    """What a kernel did wrong, in one line."""


def told(error) -> str:
    """A Fault, or whatever a kernel or its library raised, in one line."""
    return " ".join((str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}").split())


def check(name, case, pass_, place) -> None:
    """Hold the listed kernel `name` against `case` on the device `place`; raises Fault where it is wrong."""
    question = asked(case, pass_)
    first, second = (answer(name, question, place, filling) for filling in FILLINGS)
    check_values(question, dispatch.algorithm_of(name), first)
    check_same_bits(first, second)


# What is asked


@dataclass(frozen=True, slots=True)
class Question:
    """A problem with its arrays, in logical order and as kernels take them. exact, magnitude: see accuracy.elementwise.

    inputs: x, w, bias and residual, or x and grad_y, or grad_y and w; None where there is none.
    result: where the answer goes.
    """

    problem: object
    inputs: dict[str, Placed | None]
    result: Placed
    exact: np.ndarray
    magnitude: np.ndarray


def asked(case, pass_) -> Question:
    inputs, result = arrays_for(case, pass_)
    return Question(case.problem(pass_), inputs, result, *answers(case.in_float64(), pass_))


def arrays_for(case, pass_):
    """The inputs by name, and where the result goes, each laid out in memory as the case says."""
    problem = case.problem(pass_)
    random = np.random.default_rng(0)

    def image(shape, memory):
        order = operands.FROM_LAYOUT[problem.layout]
        return stored(random, shape, problem.dtype, memory, lambda array: array.transpose(order))

    def weights(memory):
        layout, flip = case.keywords.get("weight_layout", "OIHW"), case.keywords.get("flip_kernel", False)
        turn = lambda array: operands.weights_view(array, layout, flip)  # noqa: E731
        return stored(random, case.w, problem.dtype, memory, turn)

    x, y_shape = image(case.x, case.memory), operands.result_shape(problem, batched=True)
    if pass_ == "weight_grad":
        inputs = {"x": x, "grad_y": image(y_shape, case.memory), "bias": None, "residual": None}
        return inputs, weights(case.result_memory)
    if pass_ == "input_grad":
        inputs = {"grad_y": image(y_shape, case.memory), "w": weights(case.memory), "bias": None, "residual": None}
        return inputs, image(case.x, case.result_memory)
    bias = stored(random, problem.K, problem.dtype, "contiguous") if problem.has_bias else None
    residual = image(y_shape, case.residual_memory) if problem.has_residual else None
    inputs = {"x": x, "w": weights(case.memory), "bias": bias, "residual": residual}
    return inputs, image(y_shape, case.result_memory)


def stored(random, shape, dtype, memory, turn=lambda array: array) -> Placed:
    one = placed(values(random, shape).astype(dtype), memory)
    return replace(one, view=strided.as_storage(turn(one.view)))


def values(random, shape):
    """Numbers from 1/4 to 4 of either sign, of 8 bits: every dtype holds them, so one exact answer serves for all.

    Sums of their products are exact in float64 and round in float32, where another order gives other bits.
    """
    sizes = (1 + random.integers(0, 128, shape) / 128) * 2.0 ** random.integers(-2, 2, shape)
    return np.where(random.random(shape) < 0.5, -sizes, sizes)


@lru_cache(maxsize=256)
def answers(case, pass_):
    """The exact result and its magnitude, for a case in float64."""
    problem = case.problem(pass_)
    inputs = [None if one is None else one.view for one in arrays_for(case, pass_)[0].values()]
    if pass_ == "weight_grad":
        x, grad_y, *_ = inputs
        return reference.weight_grad(problem, x, grad_y), reference.weight_grad(problem, np.abs(x), np.abs(grad_y))
    if pass_ == "input_grad":
        grad_y, w, *_ = inputs
        return reference.input_grad(problem, grad_y, w), reference.input_grad(problem, np.abs(grad_y), np.abs(w))
    return reference.conv2d(problem, *inputs), magnitude_of(problem, *inputs)


# What is answered


def answer(name, question, place, filling) -> np.ndarray:
    """The result of one run, N K P Q or K C R S; raises Fault for anything else that the kernel wrote."""
    kernel, family, problem = dispatch.kernel(name), dispatch.family_of(name), question.problem
    with device_arrays.current(family, place):
        lent = {role: lend(one, family, place) for role, one in question.inputs.items() if one is not None}
        result = lend(refilled(question.result, filling), family, place)
        workspace = lend_scratch(kernel.workspace_bytes(problem, place), filling, family, place)
        _, second, _, _ = question.inputs
        packed = None
        if hasattr(kernel, "pack"):
            packed = packed_weights(kernel, problem, family, place, lent[second], filling)
        x, weights, bias, residual = (lent[role].array if role in lent else None for role in question.inputs)
        weights = weights if packed is None else packed.array
        scratch = None if workspace is None else workspace.array
        with watched(place, result.array, scratch, thorough=filling == UNWRITTEN):
            kernel.run(problem, place, x, weights, result.array, bias, residual, scratch)
        for role, loan in lent.items():
            check_untouched(role, loan)
        if packed is not None:
            check_untouched("packed weights", packed)
        for role, loan in (("the result", result), ("the workspace", workspace)):
            if loan is not None:
                check_beside(role, loan)
        return as_numbers(question.result.seen_in(result.read()), problem.dtype)


@dataclass(frozen=True, slots=True)
class Loan:
    """What a kernel is given. array: as it takes it; read: all bytes as they are by then; before: as they were."""

    lent: Placed
    array: object
    read: Callable[[], np.ndarray]

    @property
    def before(self) -> np.ndarray:
        return self.lent.flat


def lend(one, family, place) -> Loan:
    """A copy of `one` with its guards, on the CPU or on the GPU."""
    if place.kind != "cuda":
        memory = strided.empty_aligned(one.flat.shape, np.uint8)
        memory[:] = one.flat
        return Loan(one, one.seen_in(memory), lambda: memory)
    memory, start, read = on_gpu(one.flat, place)
    view = strided.CudaView(start + one.offset, one.view.shape, one.view.strides, one.view.dtype, memory)
    return Loan(one, device_arrays.for_family(view, family, place), read)


def on_gpu(flat, place):
    """Bytes in a GPU's memory: who keeps them, their address, and a function that waits and copies them back."""
    if machine.installed("cupy"):
        import cupy

        with cupy.cuda.Device(place.index):  # Numba's current GPU is none of CuPy's business
            memory = cupy.asarray(flat)
        return memory, memory.data.ptr, memory.get
    from numba import cuda

    memory = cuda.to_device(flat)
    return memory, memory.__cuda_array_interface__["data"][0], memory.copy_to_host


def lend_scratch(count, filling, family, place) -> Loan | None:
    """`count` bytes between guards; no array at all where a GPU kernel needs none, as in a call."""
    if not count and place.is_gpu:
        return None
    return lend(placed(np.full(count, filling, np.uint8)), family, place)


def packed_weights(kernel, problem, family, place, weights, filling) -> Loan:
    """The weights as `pack` leaves them. A plan uses them again and again, so `run` must not change them."""
    count = kernel.packed_bytes(problem, place)
    loan = lend_scratch(count, filling, family, place)
    kernel.pack(problem, place, weights.array, loan.array)
    check_beside("the packed weights", loan)
    flat = loan.read()
    return lend(Placed(flat, loan.lent.seen_in(flat)), family, place)


def refilled(one, filling) -> Placed:
    """The same place with each byte of its elements `filling`, all others as they are."""
    flat = np.where(one.beside(), one.flat, np.uint8(filling))
    aligned = strided.empty_aligned(flat.shape, np.uint8)
    aligned[:] = flat
    return Placed(aligned, one.seen_in(aligned))


@contextlib.contextmanager
def watched(place, result, scratch, thorough):
    """In the emulator: what it finds is a Fault. Not thorough: values only, which takes a third of the time."""
    if place.kind != "emulator":
        yield
        return
    from .. import emulator

    scratch = () if scratch is None else (scratch,)
    with emulator.watching(outputs=[result], scratch=scratch, checks=thorough, counting=False) as watch:
        yield
    faults = [fault for report in watch.reports for fault in report.faults]
    faults += watch.output_faults() if thorough else []
    if faults:
        more = f" (and {len(faults) - 1} other faults)" if len(faults) > 1 else ""
        raise Fault(f"{' '.join(str(replace(faults[0], text='')).split())}{more}")
    if not watch.reports:
        raise Fault("no kernel was launched")


def as_numbers(array, dtype):
    return array.view(dtype) if array.dtype != dtype else array


# What is held against it


def check_values(question, algorithm, y):
    got = y.astype(np.float64)
    missing = np.isnan(got)
    if missing.any():
        raise Fault(f"never written, or from memory that nobody wrote: {first_of(missing)} is NaN")
    error = np.abs(got - question.exact)
    bound = accuracy.elementwise(question.problem, algorithm, question.magnitude, question.exact)
    wrong = error > bound
    if wrong.any():
        at = np.unravel_index(wrong.argmax(), wrong.shape)
        raise Fault(
            f"a wrong value: {first_of(wrong)} is {got[at]:.9g}, {question.exact[at]:.9g} is right, "
            f"{bound[at]:.2g} is allowed between them"
        )


def check_same_bits(first, second):
    other = first.view(f"u{first.itemsize}") != second.view(f"u{second.itemsize}")
    if other.any():
        at = np.unravel_index(other.argmax(), other.shape)
        raise Fault(f"other bits the second time: {first_of(other)} was {first[at]!s}, then {second[at]!s}")


def check_untouched(role, loan):
    changed = loan.read() != loan.before
    if changed.any():
        raise Fault(f"{role} was written: {which_bytes(changed)}")


def check_beside(role, loan):
    changed = (loan.read() != loan.before) & loan.lent.beside()
    if changed.any():
        raise Fault(f"written beside {role}: {which_bytes(changed)}")


def first_of(wrong):
    at = [int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape)]
    return f"y{at}, the first of {np.count_nonzero(wrong):,} of {wrong.size:,},"


def which_bytes(changed):
    """Where the first changed byte lies: before the array, past its end, or between its first and last element."""
    first, end = int(changed.argmax()), changed.size - GUARD
    if first < GUARD:
        where = f"{GUARD - first:,} bytes before its first element"
    elif first >= end:
        where = f"{first - end:,} bytes past its end"
    else:
        where = f"at byte {first - GUARD:,}"
    return f"{where}, the first of {np.count_nonzero(changed):,}"
