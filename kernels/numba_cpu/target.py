"""What the processor Numba compiles for can do: vector width, registers, caches.

Everything here follows Numba's own target, so that NUMBA_CPU_NAME together with NUMBA_CPU_FEATURES lowers it (the
name alone does not take AVX-512 away); llvmlite's queries of the host ignore both variables.
"""

from functools import cache
from pathlib import Path

import numpy as np


@cache
def codegen():
    """Numba's code generator for this processor: the target machine and its features."""
    from numba.core.registry import cpu_target

    return cpu_target.target_context.codegen()


@cache
def description() -> tuple[str, str, str]:
    """(triple, processor, features): what compiled code depends on."""
    return tuple(map(str, codegen().magic_tuple()))


@cache
def features() -> frozenset[str]:
    """Names of the instruction sets that compiled code may use: {"avx2", "fma", ...}."""
    return frozenset(name[1:] for name in description()[2].split(",") if name.startswith("+"))


def architecture() -> str:
    """ "x86_64", "aarch64", ..."""
    name = description()[0].split("-")[0]
    return "aarch64" if name == "arm64" else name


@cache
def vector_bytes() -> int:
    """Width of a vector register: 64 with AVX-512, 32 with AVX2 and FMA, else 16 (SSE, NEON)."""
    if {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= features():
        return 64
    if {"avx2", "fma"} <= features():
        return 32
    return 16


@cache
def register_count() -> int:
    """How many vector registers there are."""
    return 32 if vector_bytes() == 64 or architecture() == "aarch64" else 16


def lanes(dtype) -> int:
    """Elements of `dtype` in one vector register."""
    return vector_bytes() // np.dtype(dtype).itemsize


@cache
def multiply_adds_per_cycle() -> int:
    """How many vector multiply-adds one core starts per cycle: 2, but 1 of 64 bytes on Zen 4, which does it in halves.

    Source: Fog, The microarchitecture of Intel, AMD and VIA CPUs, 2024.
    """
    return 1 if vector_bytes() == 64 and description()[1] == "znver4" else 2


def adds_beside() -> bool:
    """Has a core units that only add, beside those for multiply-adds? AMD's Zens have.

    Source: as multiply_adds_per_cycle.
    """
    return description()[1].startswith("znver")


def converts_float16() -> bool:
    """Does the processor convert float16 to and from float32 in vectors?"""
    return architecture() == "aarch64" or "f16c" in features() or vector_bytes() == 64


@cache
def cache_bytes(level: int) -> int:
    """Size of one core's data cache of that level, as Linux tells it; a common size where it does not."""
    units = {"K": 1 << 10, "M": 1 << 20}
    size = cache_fact(level, "size")
    if size[:-1].isdigit() and size[-1:] in units:
        return int(size[:-1]) * units[size[-1]]
    return {1: 32_768, 2: 524_288, 3: 16 << 20}[level]


@cache
def cache_ways(level: int) -> int:
    """How many lines of that cache one address may lie in, as Linux tells it; a common number where it does not."""
    ways = cache_fact(level, "ways_of_associativity")
    return int(ways) if ways.isdigit() and int(ways) else {1: 8, 2: 8, 3: 16}[level]


def cache_fact(level, name) -> str:
    """What Linux says of one core's data cache of that level; "" where it says nothing."""
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            found, kind, fact = ((entry / file).read_text().strip() for file in ("level", "type", name))
        except OSError:
            continue
        if found == str(level) and kind != "Instruction":
            return fact
    return ""
