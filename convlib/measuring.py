"""Which kernel is the fastest here, measured: for calls with tune=True, and for `tune`.

Kernels take turns, in blocks of calls after one to warm up, and their medians count. What is predicted to take
FAR times as long as the fastest is not tried, and what took SLOWER times as long in the first round drops out.
tuned_times.py keeps the times on disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from . import arrays, device_arrays, dispatch, machine, running, strided
from .device import Device
from .errors import UnsupportedError
from .problem import ConvProblem

ROUNDS, BLOCK_SECONDS, MOST_CALLS = 7, 2e-3, 50
FAR, SLOWER = 4.0, 1.5
one_at_a_time = threading.RLock()


def with_measured(candidates, problem, place, planned=False):
    """Candidates with what was measured of them on this machine."""
    if not measurable(place):
        return candidates
    from . import tuned_times  # which imports what `import convlib` should not

    times = tuned_times.of(problem, place, planned)
    return tuple(replace(c, measured=times.get(c.name)) if c.possible else c for c in candidates)


def fastest_first(names: list[str], problem: ConvProblem, place: Device, planned: bool) -> list[str]:
    """`names`, the fastest predicted first, with the fastest measured first; measured now where need be."""
    if not measurable(place):
        raise UnsupportedError(f"tune: only what runs on this machine's CPU or GPU can be measured, not {place}")
    from . import tuned_times  # which imports what `import convlib` should not

    with one_at_a_time:
        names = believed(names, problem, place)
        tried = worth_trying(names, problem, place, planned)
        times = tuned_times.of(problem, place, planned)
        if any(name not in times for name in tried):
            times = times | measured(tried, problem, place, planned)
            tuned_times.keep(times, problem, place, planned)
    return sorted(names, key=lambda name: times.get(name, float("inf")))


def fastest_way(
    names: tuple[str, ...], calls: Callable[[], dict[str, Callable[[], None]]], problem: ConvProblem, place: Device
) -> str:
    """Which of several ways to one result takes the least time; measured now where need be.

    names: of the kernels that each runs, `tuned_times.joined`; calls: makes what is measured, by these names.
    """
    from . import tuned_times  # which imports what `import convlib` should not

    with one_at_a_time:
        times = tuned_times.of(problem, place, False)
        if any(name not in times for name in names):
            times = times | in_turns(warmed_up(calls()), place)
            tuned_times.keep(times, problem, place, False)
    return min(names, key=times.get)


def warmed_up(calls):
    """The calls, each called once, so that its kernels are compiled."""
    for call in calls.values():
        call()
    return calls


def measurable(place):
    from . import trust  # which imports what `import convlib` should not

    return place.kind == "cpu" or (place.kind == "cuda" and trust.is_here(place))


def believed(names, problem, place):
    """Those that trust.py lets run here; all of them on a CPU."""
    if not place.is_gpu:
        return names
    from . import trust  # which imports what `import convlib` should not

    if trust.capturing(place):
        raise UnsupportedError("tune: nothing can be measured while a stream is captured; call it once before")
    kept = []
    for name in names:
        try:
            kept.append(trust.first_believed([name], problem, place))
        except UnsupportedError as error:
            refused = error
    if not kept:
        raise refused
    return kept


def worth_trying(names, problem, place, planned):
    held = dispatch.candidates(problem, place, float("inf"), None, planned)
    predicted = {c.name: c.seconds for c in held}
    least = min(predicted[name] for name in names)
    return [name for name in names if predicted[name] <= FAR * least]


def measured(names, problem, place, planned) -> dict[str, float]:
    """The median seconds of a call of each kernel."""
    return in_turns(warmed_up({name: prepared(name, problem, place, planned) for name in names}), place)


def in_turns(calls, place) -> dict[str, float]:
    """The median seconds of each call; of those that dropped out, what they took in their last round."""
    counts = {name: calls_in_a_block(call, place) for name, call in calls.items()}
    taken = {name: [] for name in calls}
    left = list(calls)
    for number in range(ROUNDS):
        for name in left:
            taken[name].append(block(calls[name], counts[name], place))
        if number == 0:
            most = SLOWER * min(taken[name][0] for name in left)
            left = [name for name in left if taken[name][0] <= most]
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def prepared(name, problem, place, planned) -> Callable[[], None]:
    """One call of a kernel on random numbers."""
    chosen = dispatch.as_chosen(name, problem, place, planned)
    call = running.Call(problem, place, None, *operands(problem, place), *additions(problem, place))
    return packed_before(chosen, call) if planned else partial(running.run_kernel, chosen, call)


def packed_before(chosen, call):
    """As plan.py has it."""
    family, place = chosen.family, call.device
    with device_arrays.current(family, place):
        views = (call.x, call.w, call.y, call.bias, call.residual)
        x, w, y, bias, residual = (device_arrays.for_family(view, family, place) for view in views)
        workspace = scratch(chosen.workspace_bytes, family, place)
        if chosen.packed_bytes:
            packed = scratch(chosen.packed_bytes, family, place)
            chosen.kernel.pack(call.problem, place, w, packed)
            w = packed

    def run():
        with device_arrays.current(family, place):
            chosen.kernel.run(call.problem, place, x, w, y, bias, residual, workspace)

    return run


def scratch(count, family, place):
    if place.kind == "cpu":
        return strided.empty_aligned((count,), np.uint8)
    return device_arrays.device_bytes(count, family, place, None) if count else None


def operands(problem, place):
    """A kernel's two operands and its result, images in the problem's layout, as views in logical order."""
    weights = 2 if problem.pass_ == "weight_grad" else 1
    return tuple(
        on_device(random(problem, shape), place) if number == weights else image(problem, shape, place)
        for number, shape in enumerate(problem.operand_shapes)
    )


def additions(problem, place):
    """The bias and the residual of a kernel's result, None where the problem has none."""
    shape = problem.operand_shapes[2]
    bias = on_device(random(problem, shape[1:2]), place) if problem.has_bias else None
    return bias, image(problem, shape, place) if problem.has_residual else None


def image(problem, shape, place):
    """(N, C, H, W), in memory as the problem's layout has it."""
    N, C, H, W = shape
    if problem.layout == "NCHW":
        return on_device(random(problem, shape), place)
    return on_device(random(problem, (N, H, W, C)), place).transpose((0, 3, 1, 2))


def random(problem, shape):
    numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
    return strided.as_storage(numbers.astype(problem.dtype))


def on_device(array, place):
    """On a GPU as whichever library is installed has it, seen as arrays.py sees arguments."""
    if place.kind == "cpu":
        return array
    if machine.installed("cupy"):
        import cupy

        with cupy.cuda.Device(place.index):
            return arrays.CuPy.view(cupy.asarray(array), "an operand")
    from numba import cuda

    with cuda.gpus[place.index]:
        return arrays.Numba.view(cuda.to_device(array), "an operand")


def calls_in_a_block(call, place):
    seconds = block(call, 1, place)
    return max(1, min(MOST_CALLS, round(BLOCK_SECONDS / seconds)))


def block(call, count, place) -> float:
    """Seconds for each of `count` calls: on a GPU between two events of its default stream."""
    if place.kind == "cpu":
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count
    start, end, between = events(place)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return between(start, end) * 1e-3 / count


def events(place):
    """Two events and what gives the milliseconds between them."""
    if machine.installed("cupy"):
        import cupy

        with cupy.cuda.Device(place.index):
            return cupy.cuda.Event(), cupy.cuda.Event(), cupy.cuda.get_elapsed_time
    from numba import cuda

    with cuda.gpus[place.index]:
        return cuda.event(), cuda.event(), cuda.event_elapsed_time
