"""An input gradient, or a transposed convolution, run: by one kernel for all of it, or phase by phase.

A kernel of the pass "input_grad" takes all phases of the stride at once. Else each phase is a forward problem
(input_grad_phases.py), on views of grad_y, w and grad_x, for whichever forward kernel suits it. Which of the two is
predicted, and measured where the caller asks for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from . import choosing, device_arrays, dispatch, measuring, running, strided
from .device import Device
from .errors import UnsupportedError
from .input_grad_phases import phases
from .padding_modes import NUMPY_PAD, check_padding_mode, input_bytes, limit_after, with_padding_inside
from .problem import ConvProblem
from .workspace import fresh_seconds

MORE_BY_PHASE = 1.1  # on batches of 1x1 layers, where predictions are nearly equal and input_grad takes 0.7 to 1.04
SCATTERED_BYTES = 12.5e9  # a second, as measured beside the CPU kernels' predictions
GATHERED_SECONDS = 1.6e-9  # a weight, of one thread: 0.7 to 1.2 beside SCATTERED_BYTES on two Zen 4 cores
PHASE_SECONDS = 30e-6  # a call of its own that packs first


@dataclass(frozen=True, slots=True)
class Choice:
    """What the caller said about which kernel to take."""

    backend: str
    algorithm: str
    max_error: float
    workspace_limit: int | None
    tune: bool = False


@dataclass(slots=True)
class Transposed:
    """An input gradient: grad_y (N, K, P, Q), w (K, C / groups, R, S), grad_x and residual (N, C, H, W)."""

    problem: ConvProblem
    device: Device
    stream: int | None
    grad_y: Any
    w: Any
    grad_x: Any
    bias: Any = None
    residual: Any = None


def checked(problem, device, backend, algorithm, max_error, workspace_limit, tune) -> Choice:
    """The Choice of what a caller said. Raises choosing.chosen's errors for what is wrong in it."""
    _, _, *asked = dispatch.checked_choice(problem, device, backend, algorithm, max_error, workspace_limit)
    return Choice(*asked, tune and problem.N > 0)


@dataclass(frozen=True, slots=True)
class Part:
    """What one kernel makes of an input gradient: which kernel, and its call within the gradient's.

    chosen: None where all that it makes is zero; then call_in gives the view of that.
    """

    chosen: dispatch.Chosen | None
    call_in: Callable[[Transposed], Any]

    def run(self, call: Transposed) -> None:
        self.run_by(partial(running.run_kernel, self.chosen), call)

    def run_by(self, launch: Callable[[running.Call], None], call: Transposed) -> None:
        part = self.call_in(call)
        if self.chosen is None:
            device_arrays.fill_zeros(part, call.device, call.stream)
        else:
            launch(part)

    def launch(self, call: Transposed) -> Callable[[Transposed], None]:
        """`run` for calls whose arrays have the strides of this one's, on the CPU, with its look-ups done."""
        launch = None if self.chosen is None else running.cpu_launch(self.chosen, self.call_in(call)).run
        return partial(self.run_by, launch)


def run_transposed(call: Transposed, choice: Choice) -> list[Part]:
    """An input gradient: through a kernel for all of it, or every phase through the forward kernel that suits it.

    Returns what it was made of, for `launched`.
    """
    parts = parts_of(call, choice)
    run_all(parts, call)
    return parts


def run_all(parts, call):
    for part in parts:
        part.run(call)


def launched(parts: list[Part], call: Transposed) -> Callable[[Transposed], None]:
    """`run_transposed` for calls whose arrays have the strides of this one's, on the CPU, with its look-ups done."""
    launches = [part.launch(call) for part in parts]

    def run(call):
        for launch in launches:
            launch(call)

    return run


def parts_of(call: Transposed, choice: Choice) -> list[Part]:
    problem, outputs = call.problem, tuple(call.grad_y.shape[2:])
    whole = chosen_for_all(problem, outputs, call.device, choice)
    if problem.N > 0:
        return phase_parts(call, choice) if whole is None else [Part(whole, whole_call)]
    if whole is None:  # nothing is left to do but to refuse what could not run
        for part in phase_problems(problem, outputs):
            chosen_by(choice, part, call.device)
    return []


def whole_call(call):
    operands = call.grad_y, call.w, call.grad_x, call.bias, call.residual
    return running.Call(call.problem, call.device, call.stream, *operands)


def phase_parts(call, choice):
    found, adds = [], call.bias is not None or call.residual is not None
    for phase in phases(call.problem, tuple(call.grad_y.shape[2:])):
        if phase.problem is None and not adds:  # every activation leaves zero as it is
            found.append(Part(None, partial(phase_inputs, phase)))
            continue
        forward = phase.problem or nothing(call.problem, phase)
        found.append(Part(chosen_for_phase(choice, forward, call.device), partial(phase_call, phase, forward)))
    return found


def phase_inputs(phase, call):
    return call.grad_x[(slice(None), slice(None), *phase.inputs)]


def phase_call(phase, forward, call):
    """The forward problem of a phase on the views of grad_y, w and grad_x that it convolves."""
    inputs = (slice(None), slice(None), *phase.inputs)
    residual = None if call.residual is None else call.residual[inputs]
    if phase.problem is None:
        zero = device_arrays.zero(call.grad_x.dtype, call.device, call.stream)
        source, weights = strided.broadcast(zero, forward.x_shape), strided.broadcast(zero, forward.w_shape)
    else:
        source = call.grad_y[(slice(None), slice(None), *phase.outputs)]
        weights = exchanged(call.w[(slice(None), slice(None), *phase.taps)], call.problem.groups, call.device)
        weights = strided.flipped(weights, (2, 3))
    return running.Call(forward, call.device, call.stream, source, weights, call.grad_x[inputs], call.bias, residual)


def chosen_for_all(problem, outputs, device, choice):
    """The kernel of the pass "input_grad" that takes all phases at once, asked for or predicted to be faster, or None.

    outputs: the rows and columns of grad_y; where they are fewer than the problem's P and Q, no such kernel knows.
    """
    if choice.algorithm.endswith("input_grad"):
        if outputs != (problem.P, problem.Q):
            raise UnsupportedError(
                f"algorithm={choice.algorithm!r}: {problem.P} x {problem.Q} outputs needed, got {outputs[0]} x "
                f"{outputs[1]}: output_padding exceeds the stride"
            )
        return chosen_by(choice, problem, device)
    if outputs != (problem.P, problem.Q):
        return None
    try:
        return chosen_by(choice, problem, device) if faster_than_phases(problem, device, choice) else None
    except UnsupportedError:  # it is not believed on this GPU
        return None


@lru_cache(maxsize=1024)
def faster_than_phases(problem, device, choice):
    whole = fastest_seconds(choice, problem, device)
    if whole == math.inf:
        return False
    by_phase = sum(fastest_phase(choice, part, device)[0] for part in phase_problems(problem))
    if device.kind == "cpu":
        by_phase = MORE_BY_PHASE * by_phase + scattered_seconds(problem)
    return measured_faster(problem, device, choice, whole, by_phase) if choice.tune else whole < by_phase


def phase_problems(problem, outputs=None):
    return [phase.problem for phase in phases(problem, outputs) if phase.problem is not None]


def measured_faster(problem, device, choice, *predicted):
    """Whether the fastest kernel for all phases takes less time than each phase through the fastest kernel for it.

    predicted: the seconds of either; far apart they count as they are.
    """
    from . import tuned_times  # which imports what `import convlib` should not

    if max(predicted) > measuring.FAR * min(predicted):
        return predicted[0] < predicted[1]
    whole = chosen_by(choice, problem, device)
    by_phase = tuned_times.joined(chosen_for_phase(choice, part, device).name for part in phase_problems(problem))

    def calls():
        arrays = *measuring.operands(problem, device), *measuring.additions(problem, device)
        call = Transposed(problem, device, None, *arrays)
        return {
            whole.name: partial(Part(whole, whole_call).run, call),
            by_phase: partial(run_all, phase_parts(call, choice), call),
        }

    return measuring.fastest_way((whole.name, by_phase), calls, problem, device) == whole.name


def scattered_seconds(problem):
    """What phases take beyond a forward problem, on the CPU: w comes with its filters side by side and each phase reads
    all of its lines; in NCHW each phase of a row of grad_x reads and writes its lines anew.
    """
    parts = len(phase_problems(problem))
    numbers = parts * math.prod(problem.w_shape)
    if problem.layout == "NCHW" and problem.stride[1] > 1:
        numbers += math.prod(problem.stride) * math.prod(problem.x_shape)
    return parts * PHASE_SECONDS + numbers * problem.dtype.itemsize / SCATTERED_BYTES


def fastest_seconds(choice, problem, device):
    return min((candidate.seconds for candidate in possible(choice, problem, device)), default=math.inf)


def possible(choice, problem, device):
    return dispatch.possible(
        problem, device, choice.backend, choice.algorithm, choice.max_error, choice.workspace_limit
    )


def chosen_for_phase(choice, part, device):
    """The forward kernel for one phase; on the CPU with what its weights' order costs."""
    _, name = fastest_phase(choice, part, device)
    if name is not None and device.kind == "cpu" and not choice.tune:
        choice = replace(choice, backend=dispatch.family_of(name), algorithm=dispatch.algorithm_of(name))
    return chosen_by(choice, part, device)


@lru_cache(maxsize=4096)
def fastest_phase(choice, part, device):
    """The least seconds that a forward kernel is predicted to take for one phase, and its name; None if none can."""
    timed = ((phase_seconds(c, part, device), c.name) for c in possible(choice, part, device))
    return min(timed, key=lambda one: one[0], default=(math.inf, None))


def phase_seconds(candidate, part, device):
    """A phase's weights do not lie in rows: who would take such as they lie has to gather them."""
    if device.kind != "cpu":
        return candidate.seconds
    kernel, gathered = dispatch.kernel(candidate.name), 0.0
    if hasattr(kernel, "reads_in_place") and not hasattr(kernel, "one_call_bytes"):
        gathered = GATHERED_SECONDS * part.K * part.reduction / device.threads
    return candidate.seconds + gathered + fresh_seconds(dispatch.touched_bytes(candidate, part, device))


def chosen_by(choice, problem, device):
    return choosing.chosen(
        problem, device, choice.backend, choice.algorithm, choice.max_error, choice.workspace_limit, tune=choice.tune
    )


def nothing(problem, phase):
    """A 1 x 1 convolution of zeros, for inputs that no tap meets: what is left is activation(bias + residual)."""
    rows, columns = (len(range(size)[part]) for size, part in zip((problem.H, problem.W), phase.inputs, strict=True))
    return replace(
        problem, C=problem.K, H=rows, W=columns, K=problem.C, R=1, S=1, stride=(1, 1), padding=((0, 0), (0, 0)),
        dilation=(1, 1), pass_="forward",
    )  # fmt: skip


def exchanged(w, groups, device):
    """w (K, C / groups, R, S) with inputs and outputs exchanged within each group: (C, K / groups, R, S).

    A view, except for groups of several channels and several filters, whose elements no four strides can reach.
    """
    if groups == 1:
        return w.transpose((1, 0, 2, 3))
    grouped = strided.split_first_axis(w, groups)
    return device_arrays.joined_first_axes(grouped.transpose((0, 2, 1, 3, 4)), device)


def run_folded(call: Transposed, padding_mode: str, choice: Choice) -> None:
    """The input gradient through a padding that copies: what the padding receives is added to where it came from."""
    problem = call.problem
    check_padding_mode(problem, padding_mode)
    inside = with_padding_inside(problem)
    sums = replace(inside, dtype=problem.accumulate)  # device_arrays.fold holds them twice
    count = input_bytes(inside) + 2 * input_bytes(sums)
    left = limit_after(choice.workspace_limit, count, "the padded gradient and its sums")
    choice = replace(choice, workspace_limit=left)
    padded = device_arrays.empty_on(inside.x_shape, call.grad_x.dtype, call.device, call.stream)
    run_transposed(replace(call, problem=inside, grad_x=padded), choice)
    device_arrays.fold(
        call.grad_x, padded, problem.padding, NUMPY_PAD[padding_mode], problem.dtype, call.device, call.stream
    )
