"""Run compiled GPU kernels on a CPU, checked harder than a GPU would check them, and count what they do.

    parser.py        PTX text to instructions
    syntax.py        what it becomes: operands, instructions, variables, functions
    opcodes/         the table of instructions: what is known, and how each is bound
    dtypes.py        what NumPy has for the types of PTX
    arithmetic.py    what they compute, with the GPU's rounding
    tensor_cores.py  what mma computes: which lane holds which element, and the product
    machine.py       executing a launch: lanes, masks, divergence
    barriers.py      where lanes wait for others: barriers of blocks and warps
    registers.py     what operands stand for: arrays of registers, constants, addresses
    accesses.py      every access of memory, checked, counted and carried out
    memory.py        buffers with red zones, shared and local memory
    copies.py        cp.async: copies in flight, which arrive when they are waited for
    fences.py        fences and atomics: what one block knows of another's accesses
    checks.py        bounds, alignment, initialisation and races: the loops over lanes
    counters.py      instructions, bank conflicts, sectors, bytes
    arguments.py     from arrays and scalars to the kernel's parameters
    faults.py        faults and reports

Emulated is not measured: values, faults and counts are a GPU's, times are not.

>>> report = launch(ptx, "saxpy", 4, 256, (x, y, np.float32(2), np.int32(1000)))   # doctest: +SKIP
>>> report.faults, report.counters.cost_per_request("global")                      # doctest: +SKIP
([], 4.0)
"""

from __future__ import annotations

import contextlib
from functools import cache, lru_cache

import numpy as np

from . import arguments, checks, parser
from .faults import EmulationError, Fault, Report
from .machine import Machine
from .memory import GLOBAL_BASE, GlobalMemory, Tracked
from .syntax import PtxError, Refused

__all__ = ["EmulationError", "Fault", "PtxError", "Refused", "Report", "Watch", "launch", "launch_kernel", "watching"]

parse = lru_cache(maxsize=256)(parser.parse)


def launch(
    ptx: str,
    function: str | None,
    grid: int | tuple,
    block: int | tuple,
    args: tuple,
    shared_bytes: int = 0,
    *,
    checks: bool = True,
    counting: bool = True,
    blocks=None,
    abi: str = "cuda",
    tracked: tuple[Tracked, ...] = (),
) -> Report:
    """Execute a kernel of `ptx` on NumPy arrays and return what was found and counted.

    function: the kernel's name, or None for the only one. grid, block: 1 to 3 sizes, x first. args: NumPy arrays
    (any strides; passed as the address of their first element, only their own elements may be touched), NumPy
    scalars and structs (np.void), by value. shared_bytes: dynamic shared memory. checks: whether to look for bad
    accesses and races; without, only accesses outside all buffers are found. counting: whether to count. blocks:
    linear indices of the blocks to run, None for all. abi: "cuda", or "numba" for Numba's calling convention.
    tracked: arrays that are uninitialised until written (see `watching`).

    Raises PtxError for PTX that it does not know, Refused for an instruction; faults of the kernel are in the report.
    """
    module = parse(ptx)
    kernel = module.kernel(function)
    grid, block = three(grid), three(block)
    if np.prod(block) > kernel.most_threads:
        raise PtxError(f"{kernel.name}: at most {kernel.most_threads} threads (.maxntid), got a block of {block}")
    memory = GlobalMemory()
    for position, array in enumerate(arguments.arrays_in(args)):
        memory.add_array(f"array {position} ({array.dtype} {array.shape})", array)
    symbols, regions = {}, {}
    for variable in module.variables:
        if variable.space in ("global", "const"):
            regions[variable.name] = memory.add_variable(variable)
    machine = prepared(module, kernel, grid, block, args, shared_bytes, checks, counting, abi, memory, symbols, regions)
    for one in tracked:
        for region in memory.regions if checks else ():
            one.before(region, memory.space)
    report = machine.run(blocks)
    memory.copy_back()
    for one in tracked:
        for region in memory.regions if checks else ():
            one.after(region, memory.space)
    return report


def prepared(module, kernel, grid, block, args, shared_bytes, checked, counting, abi, memory, symbols, regions):
    """The machine for one launch, its memories laid out and filled."""
    machine = Machine(module, kernel, grid, block, memory, shared_bytes, checked, counting)
    for variable in module.variables:
        if variable.name in regions:
            start = regions[variable.name].start
            symbols[variable.name] = GLOBAL_BASE + start
            if variable.initial is not None:
                memory.space.bytes[start : start + variable.size] = np.frombuffer(variable.initial, np.uint8)
            if checked:
                memory.space.flags[start : start + variable.size] = checks.OWNED | checks.READY
    values = (arguments.raw_values if abi == "cuda" else arguments.numba_values)(args, memory.address)
    parameters, places = arguments.parameter_bytes(kernel, values)
    machine.bind(parameters, {**symbols, **places})
    return machine


def three(sizes):
    sizes = (sizes,) if isinstance(sizes, (int, np.integer)) else tuple(sizes)
    return tuple(int(size) for size in (*sizes, 1, 1)[:3])


class Watch:
    """What `watching` collects. reports: one per launch, in order."""

    def __init__(self, tracked=(), outputs=(), options=None, blocks=None, target=None):
        self.tracked, self.outputs, self.options = tracked, outputs, options or {}
        self.blocks, self.target = blocks, target
        self.reports: list[Report] = []

    @property
    def faults(self) -> list[Fault]:
        """The faults of all launches, and of the outputs as they are now."""
        return [fault for report in self.reports for fault in report.faults] + self.output_faults()

    def output_faults(self):
        found = []
        for output in self.outputs:
            for kind, wrong in (
                ("never written", ~output.elements_with(checks.WRITTEN)),
                ("written twice", output.elements_with(checks.AGAIN)),
            ):
                if wrong.any():
                    first = tuple(int(i) for i in np.unravel_index(np.argmax(wrong), wrong.shape))
                    message = f"{output.name}{list(first)} is the first of {np.count_nonzero(wrong):,}"
                    found.append(Fault(kind, message, 0, count=int(np.count_nonzero(wrong))))
        return found

    def raise_if_faulty(self) -> None:
        faults = self.faults
        if faults:
            kernels = ", ".join(dict.fromkeys(report.kernel for report in self.reports))
            raise EmulationError(f"{kernels}:\n" + "\n".join(f"  {fault}" for fault in faults))


watches: list[Watch] = []


@contextlib.contextmanager
def watching(*, outputs=(), scratch=(), checks=True, counting=True, blocks=None, target=None):
    """Collect the reports of all kernels launched inside, instead of raising at the first faulty one.

    outputs: arrays of which every element must be written, once, by these launches. scratch: arrays, workspace say,
    that hold nothing until a kernel writes them. blocks: a function from grid and block to the blocks to run.
    target: what to compile for (80 is sm_80) instead of what CONVLIB_EMULATE_TARGET says.

    >>> with watching(outputs=[y]) as watch:            # doctest: +SKIP
    ...     convlib.conv2d(x, w, out=y, backend="cupy_raw")
    >>> watch.raise_if_faulty()                         # doctest: +SKIP
    """
    outputs = tuple(Tracked(f"output {i}", array) for i, array in enumerate(outputs))
    tracked = outputs + tuple(Tracked(f"scratch {i}", array) for i, array in enumerate(scratch))
    watch = Watch(tracked, outputs, {"checks": checks, "counting": counting}, blocks, target)
    watches.append(watch)
    try:
        yield watch
    finally:
        watches.remove(watch)


def launch_kernel(kernel, grid, block, args, shared_bytes) -> None:
    """A launch as kernels/launching.py hands it over: compile for the emulated target, execute, check.

    Raises EmulationError if the kernel is at fault, unless somebody is `watching`.
    """
    from ..device import emulator
    from ..kernels.launching import CudaSource

    watch = watches[-1] if watches else Watch(options={"counting": False})
    major, minor = emulator().compute_capability
    target = watch.target or 10 * major + minor
    if isinstance(kernel, CudaSource):
        ptx, name, abi = ptx_of_source(kernel, target), kernel.function, "cuda"
    else:
        ptx, name, abi = ptx_of_numba(kernel, arguments.numba_types(args), target), None, "numba"
    report = launch(
        ptx, name, grid, block, args, shared_bytes, abi=abi, tracked=watch.tracked, **watch.options,
        blocks=watch.blocks(grid, block) if watch.blocks else None,
    )  # fmt: skip
    watch.reports.append(report)
    if not watches:
        report.raise_if_faulty()


@cache
def ptx_of_source(source, target):
    from ..compiling import cuda_source_ptx

    return cuda_source_ptx(source, target, lines=True)


@cache
def ptx_of_numba(kernel, signature, target):
    from ..compiling import numba_ptx

    return numba_ptx(kernel, signature, target)
