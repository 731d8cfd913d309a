"""Every kernel held against the reference on the GPU: the visit's first stage, in brief, and its last, in full."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import convlib
from convlib import dispatch
from convlib.device import Device
from convlib.verification import rows, sources
from convlib.verification.children import Result, Settings
from convlib.verification.runs import verified

LIMIT = 120.0  # seconds for one problem, compilation included


def found(
    kernels: Iterable[str], place: Device, extent: str, deadline: float, note: Callable[[str], None]
) -> Iterator[dict]:
    """A dictionary for every kernel, pass and dtype that `place` runs, as soon as it is checked.

    Goes on where an earlier call was interrupted; raises OutOfTime at the deadline.
    """
    todo = {place: rows.todo(kernels, place, extent)}
    for _, result in verified(todo, Settings(extent, limit=LIMIT, deadline=deadline), note=note):
        yield described(result, extent)


def described(result: Result, extent: str) -> dict:
    row = result.row
    return {
        "kernel": row.kernel,
        "pass": row.pass_,
        "dtype": row.dtype,
        "extent": extent,
        "right": result.passed,
        "problems": result.problems,
        "seconds": round(result.seconds, 2),
        "problem": result.problem,
        "fault": result.fault,
        "version": convlib.__version__,
        "source": source_of(row.kernel),
    }


def merged(before: list[dict], now: dict) -> list[dict]:
    """`before` with `now` in the place of what was found before of the same row, unless that was more."""
    others = [one for one in before if any(one[key] != now[key] for key in ("kernel", "pass", "dtype"))]
    same = [one for one in before if one not in others and one["source"] == now["source"]]
    knew_more = now["extent"] == "quick" and now["right"] and any(one["extent"] == "full" for one in same)
    return before if knew_more else others + [now]


def gpu_kernels(place: Device) -> list[str]:
    """The listed kernels that are meant for `place`, whether or not what they need is installed."""
    return [name for name in dispatch.KERNELS if place.kind in dispatch.FAMILIES[dispatch.family_of(name)].runs_on]


@cache
def source_of(kernel: str) -> str:
    """The hash of the kernel's files: the same on every machine, whatever compiles it there."""
    texts = (path.name.encode() + b"\0" + path.read_bytes() for path in sorted(sources.files_of(kernel)))
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:12]
