"""What there is to check: the devices, and for each of them one row for every kernel, pass and dtype."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import compiling, device, dispatch
from ..device import Device
from ..errors import UnsupportedError
from ..machine import visible_gpus
from ..problem import DTYPES
from . import problems

NO_GPU = "no GPU is visible; --emulate checks it without one"


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel's pass in one dtype."""

    kernel: str
    pass_: str
    dtype: str

    @property
    def key(self) -> str:
        return f"{self.kernel} {self.pass_} {self.dtype}"


def places(asked: str | None, emulate: bool) -> list[Device]:
    """The devices to check on: this CPU and the first GPU, or the emulator in its place; or only the one asked for.

    Raises ValueError where that is not here, and UnsupportedError where the emulator lacks a compiler.
    """
    if emulate:
        return emulated(asked)
    if asked in device.TARGETS:
        raise ValueError(f"--device: {asked} can only be emulated, with --emulate")
    return [device.named(asked)] if asked else [device.cpu(), *visible_gpus()[:1]]


def emulated(asked):
    if asked not in (None, *device.TARGETS):
        raise ValueError(f"--device: with --emulate one of {', '.join(device.TARGETS)} needed, got {asked!r}")
    try:
        compiling.needed("cuda.bindings.nvrtc", "nvidia-cuda-nvrtc", "cuda13")
        compiling.needed("numba.cuda", "numba-cuda", "cuda13")
    except ImportError as error:
        raise UnsupportedError(f"--emulate: {error}") from error
    target = int((asked or "sm_80").removeprefix("sm_"))
    return [*([] if asked else [device.cpu()]), device.emulator_of(target)]


def todo(names: Iterable[str], place: Device, extent: str) -> list[Row]:
    """The rows of those kernels of `names` that `place` can run."""
    return [
        Row(name, pass_, dtype)
        for name in names
        if not dispatch.family_reasons(dispatch.family_of(name), place)
        for pass_ in dispatch.kernel(name).passes
        for dtype in DTYPES
        if served(name, pass_, dtype, place, extent)
    ]


def served(name, pass_, dtype, place, extent) -> list[problems.Case]:
    """The problems that a row is held against: those of its device and extent that the kernel can run.

    extent: "full", "quick", or "two": of the quick ones the first of one image and the first of several. On a GPU and
    in the emulator "quick" is "two" but in float32: compilation, or execution, takes long enough.
    """
    why_not = dispatch.kernel(name).why_not
    cases = problems.cases_for(place.kind, dtype, extent)
    possible = [case for case in cases if not why_not(case.problem(pass_), place)]
    if extent == "full" or (extent == "quick" and (place.kind == "cpu" or dtype == "float32")):
        return possible
    one, several = ([case for case in possible if (case.problem().N > 1) is many] for many in (False, True))
    return one[:1] + several[:1]


def unchecked(names: Iterable[str], places: list[Device]) -> dict[str, str]:
    """Why kernels of `names` can be checked on none of `places`, by their name."""
    reasons = {}
    for name in names:
        lacks = [dispatch.family_reasons(dispatch.family_of(name), place) for place in places]
        if all(lacks):
            kinds = dispatch.FAMILIES[dispatch.family_of(name)].runs_on
            here = [why[0] for why, place in zip(lacks, places) if place.kind in kinds]
            reasons[name] = here[0] if here else NO_GPU if "cuda" in kinds else f"runs on {' or '.join(kinds)}"
    return reasons
