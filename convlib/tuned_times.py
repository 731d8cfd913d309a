"""What measuring.py measured, on disk: a file for each processor and its number of threads, or GPU and driver.

    {"device": {"name", "compute_capability", "driver"}, "threads": 2, "version": "0.1.0",
     "entries": {"ConvProblem(...)": {"numba_cpu.blocked": {"seconds": 0.00012, "digest": "..."}, ...}, ...}}

The digest is of the kernel's files and compilers: a kernel that changed is measured again. An input gradient made phase
by phase is "numba_cpu.blocked + numba_cpu.direct", its kernels in their order. Files lie in platformdirs'
cache folder of the user; json_file.py says how processes share them and what damage does.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from platformdirs import user_cache_path

import convlib

from . import dispatch
from .device import Device
from .json_file import Format, JsonFile
from .problem import ConvProblem
from .verification.records import file_name, identity
from .verification.sources import digest

TOGETHER = " + "

known: dict[tuple[Device, str], dict[str, float]] = {}


class TuningWarning(UserWarning):
    """Measured times could not be read or written."""


def of(problem: ConvProblem, place: Device, planned: bool) -> dict[str, float]:
    """Seconds of a call by kernel: what this process knows, else what is on disk of the kernels as they are now."""
    key = (place, key_of(problem, planned))
    if key not in known:
        entry = file_of(place).read()["entries"].get(key[1], {})
        known[key] = {n: e["seconds"] for n, e in entry.items() if listed(n) and e["digest"] == digest_of(n)}
    return known[key]


def joined(names: Iterable[str]) -> str:
    """What several kernels are together, in the order in which they run."""
    return TOGETHER.join(names)


def listed(name):
    """Whether every kernel of `name`, which may be several, is one still."""
    return all(part in dispatch.KERNELS for part in name.split(TOGETHER))


def digest_of(name):
    """Of every kernel of `name`."""
    return "".join(digest(part) for part in dict.fromkeys(name.split(TOGETHER)))


def keep(times: dict[str, float], problem: ConvProblem, place: Device, planned: bool) -> None:
    key = key_of(problem, planned)
    known[place, key] = times
    entry = {name: {"seconds": seconds, "digest": digest_of(name)} for name, seconds in times.items()}
    file_of(place).change(lambda content: content["entries"].update({key: entry}))


def key_of(problem, planned):
    return f"{problem!r}{' planned' if planned else ''}"


@cache
def file_of(place) -> JsonFile:
    about = {"device": identity(place), "threads": place.threads, "version": convlib.__version__}
    name = file_name({"name": about["device"]["name"], **about})
    return JsonFile(user_cache_path("convlib") / "tuned" / name, FORMAT, about)


def understood(content) -> dict:
    return {"entries": {str(problem): understood_entry(entry) for problem, entry in content["entries"].items()}}


def understood_entry(entry):
    return {
        str(name): {"seconds": float(times["seconds"]), "digest": str(times["digest"])} for name, times in entry.items()
    }


FORMAT = Format(understood, lambda: {"entries": {}}, TuningWarning)
