"""Where the time of a Winograd convolution goes: python -m benchmarks.winograd_stages

Drives the compiled stages of one thread from Python, in the order in which the kernel runs them, and prints per layer
the milliseconds of each and what the multiplications reach of the core's measured peak.
"""

import time

import numpy as np

from convlib import device
from convlib.kernels.numba_cpu import winograd, winograd_cuts
from convlib.kernels.numba_cpu.call import pack_call
from convlib.kernels.numba_cpu.compilation import compiled
from convlib.kernels.numba_cpu.microkernel import peak_gflops
from convlib.kernels.numba_cpu.winograd_input import build_input_stage
from convlib.kernels.numba_cpu.winograd_matrices import tile_of
from convlib.kernels.numba_cpu.winograd_multiply import build_multiply_stage, build_tile_lists
from convlib.kernels.numba_cpu.winograd_output import build_output_stage
from convlib.problem import make_problem
from convlib.strided import empty_aligned

LAYERS = (  # channels, filters, size, window, stride
    (64, 64, 224, (3, 3), 1),
    (128, 128, 112, (3, 3), 1),
    (256, 256, 56, (3, 3), 1),
    (512, 512, 28, (3, 3), 1),
    (512, 512, 14, (3, 3), 1),
    (64, 64, 56, (3, 3), 1),
    (128, 128, 28, (3, 3), 1),
    (128, 128, 56, (3, 3), 2),
    (256, 256, 28, (3, 3), 2),
    (3, 64, 224, (7, 7), 2),
    (64, 96, 35, (5, 5), 1),
    (128, 128, 17, (1, 7), 1),
)
STAGES = ("pack", "input", "multiply", "output")


def stage_seconds(m, problem):
    """Seconds of each of STAGES for one float32 call on one thread, random data."""
    place, random = device.cpu_with(1), np.random.default_rng(0)
    x, y = (empty_aligned(shape, np.float32) for shape in (problem.x_shape, problem.y_shape))
    x[...] = random.standard_normal(problem.x_shape)
    w = random.standard_normal(problem.w_shape).astype(np.float32)
    packed = empty_aligned((winograd.packed_bytes(m, problem, place),), np.uint8)
    workspace = empty_aligned((winograd.workspace_bytes(m, problem, place),), np.uint8)
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(stage, function, *arguments):
        start = time.perf_counter()
        function(*arguments)
        seconds[stage] += time.perf_counter() - start

    timed("pack", winograd.pack, m, problem, place, w, packed)
    fields, _, _ = winograd.prepared(m, problem, 1)
    call = pack_call(fields, x, packed, y, None, None, workspace)
    cut = winograd.cut(m, problem, 1)
    for strip in range(cut.strips):
        run_strip(cut, problem, call, packed.ctypes.data, workspace.ctypes.data, strip, timed)
    return seconds


def run_strip(cut, problem, call, weights, scratch, strip, timed):
    """What `winograd` in winograd_stages.py does for all filters of a problem without groups."""
    input_stage, output_stage = (compiled(build, "float32").call for build in (build_input_stage, build_output_stage))
    multiply_stage, tile_lists = (compiled(build, "float32").call for build in (build_multiply_stage, build_tile_lists))
    inputs, outputs = scratch + cut.inputs_at, scratch + cut.outputs_at
    timed("input", input_stage, call, scratch, 0, strip, inputs, 0, 0, 0)
    timed("multiply", tile_lists, call, strip, inputs + cut.tiles_at, 0, 0, 0, 0, 0)
    for panel in range(0, cut.panels, cut.chunk):
        end = min(panel + cut.chunk, cut.panels)
        timed("multiply", multiply_stage, call, weights, panel, end, strip, inputs, outputs, 0)
        first = panel * cut.panel
        filters = min(end * cut.panel, problem.K) - first
        timed("output", output_stage, call, scratch, strip, first, filters, outputs, 0, 0)


def report(m=4, rounds=5):
    """Print the table: medians over `rounds` calls."""
    peak = peak_gflops()
    print(f"F({m} x {m}), one thread, milliseconds; peak of one core {peak:.0f} GFLOP/s")
    print(f"{'layer':>24}" + "".join(f"{stage:>10}" for stage in STAGES) + "   multiply / peak")
    for C, K, size, (R, S), stride in LAYERS:
        padding = (R // 2, S // 2)
        problem = make_problem((1, C, size, size), (K, C, R, S), np.float32, padding=padding, stride=stride)
        if winograd.why_not(m, problem, device.cpu()):
            continue
        runs = [stage_seconds(m, problem) for _ in range(rounds)]
        seconds = {stage: float(np.median([run[stage] for run in runs])) for stage in STAGES}
        products = tile_of(m, problem).products * winograd_cuts.kept_share(m, problem)
        flops = 2 * products * C * K * winograd.cut(m, problem, 1).tiles
        row = "".join(f"{1e3 * seconds[stage]:10.2f}" for stage in STAGES)
        layer = f"{C}x{size}x{size}->{K} {R}x{S}/{stride}"
        print(f"{layer:>24}{row}{flops / seconds['multiply'] / 1e9 / peak:14.0%}")


if __name__ == "__main__":
    report()
