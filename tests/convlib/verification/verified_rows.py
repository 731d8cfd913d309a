"""Rows to verify, with a planted fault or without, and a run over them."""

from convlib import device
from convlib.verification import runs
from convlib.verification.children import Settings
from convlib.verification.rows import Row
from tests.convlib.planted_child import planted_child

CPU_ROWS = [Row("numba_cpu.direct", "forward", dtype) for dtype in ("float32", "float64")]


def with_fault(fault, limit=120.0):
    return Settings("quick", limit=limit, command=planted_child(fault))


def run(todo, settings=None, **options):
    place = device.cpu()
    return [result for _, result in runs.verified({place: todo}, settings or Settings("quick"), **options)]
