"""What was found about kernels, on disk: one file of JSON for each device, with its driver.

    {"device": {"name", "compute_capability", "driver"},
     "entries": {"cupy_raw.tiled forward float32": {...}, ...},
     "unfinished": null, or {"run": ..., "settings": ...} of a run of `verify` that was interrupted}

Files lie in platformdirs' state folder of the user; json_file.py says how they are shared and what damage does.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from platformdirs import user_state_path

import convlib

from .. import device
from ..device import Device
from ..dispatch import FAMILIES, family_of
from ..json_file import Format, JsonFile
from ..machine import processor_name
from .sources import digest


class RecordWarning(UserWarning):
    """A record of verified kernels could not be read or written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a kernel's pass in one dtype. since: seconds since 1970, when it was found so first.

    run: the run of `verify` that found it last. problems: how many were right; problem, fault: the first that was not.
    """

    since: float
    version: str
    digest: str
    run: str
    problems: int
    seconds: float
    problem: str | None = None
    fault: str | None = None

    @property
    def passed(self) -> bool:
        return self.fault is None

    def is_about(self, kernel: str) -> bool:
        """Whether it was found about this version of convlib and of the kernel."""
        return self.version == convlib.__version__ and self.digest == digest(kernel)


class Records(JsonFile):
    """The record of one device. folder: where records lie, the user's own place for them if it is not given."""

    def __init__(self, place: Device, folder: Path | None = None):
        about = identity(place)
        super().__init__((folder or usual_folder()) / file_name(about), FORMAT, {"device": about})

    def entries(self) -> dict[str, Entry]:
        """Everything on record, by "kernel pass dtype"."""
        return {key: Entry(**fields) for key, fields in self.read()["entries"].items()}

    def put(self, key: str, entry: Entry) -> None:
        """Record `entry`; it keeps the time since when, where the same had been found before."""

        def change(content):
            old = content["entries"].get(key)
            same = old and (old["digest"], old["fault"]) == (entry.digest, entry.fault)
            content["entries"][key] = asdict(replace(entry, since=old["since"]) if same else entry)

        self.change(change)

    def begin(self, settings: dict, restart: bool = False) -> str:
        """The name of the interrupted run with these settings, or of a new one."""
        unfinished = self.read()["unfinished"]
        if unfinished and unfinished["settings"] == settings and not restart:
            return unfinished["run"]
        run = uuid.uuid4().hex[:12]
        self.change(lambda content: content.update(unfinished={"run": run, "settings": settings}))
        return run

    def finish(self, run: str) -> None:
        """The run is complete: the next begins anew."""

        def change(content):
            if content["unfinished"] and content["unfinished"]["run"] == run:
                content["unfinished"] = None

        self.change(change)


def usual_folder() -> Path:
    return user_state_path("convlib") / "verified"


def found_of(kernels: Iterable[str], here: Iterable[Device] = ()) -> dict[str, tuple[str, ...]]:
    """What is on record of each kernel as it is now, in words, a line for each device; and where `here` nothing is."""
    contents = [FORMAT.read(path) for path in sorted(usual_folder().glob("*.json"))]
    found = {name: tuple(line for content in contents if (line := summary(content, name))) for name in kernels}
    for place in here:
        content = Records(place).read()
        for name in found:
            if place.kind in FAMILIES[family_of(name)].runs_on and not summary(content, name):
                found[name] += (f"unverified on {place.name}",)
    return found


def summary(content, kernel) -> str | None:
    entries = {key: Entry(**fields) for key, fields in content["entries"].items() if key.startswith(f"{kernel} ")}
    entries = {key: entry for key, entry in entries.items() if entry.is_about(kernel)}
    wrong = {key: entry for key, entry in entries.items() if not entry.passed}
    if not entries:
        return None
    rows = ", ".join(key.partition(" ")[2] for key in wrong or entries)
    state = "quarantined" if wrong else "verified"
    return f"{state} on {content['device']['name']} {since((wrong or entries).values())}: {rows}"


def since(entries) -> str:
    return f"since {datetime.date.fromtimestamp(max(entry.since for entry in entries))}"


def understood(content) -> dict:
    """The parts of a file's content that matter; raises what any wrong shape of it raises."""
    for fields in content["entries"].values():
        Entry(**fields)
    unfinished = content["unfinished"]
    if unfinished is not None:
        unfinished = {"run": str(unfinished["run"]), "settings": dict(unfinished["settings"])}
    return {"device": {"name": str(content["device"]["name"])}, "entries": content["entries"], "unfinished": unfinished}


def empty() -> dict:
    return {"device": {}, "entries": {}, "unfinished": None}


FORMAT = Format(understood, empty, RecordWarning)


def identity(place: Device) -> dict[str, str]:
    """What a device is known by: another driver, or another emulator, is another device."""
    if place.kind == "cpu":
        from ..kernels.numba_cpu import target

        return {"name": processor_name(), "compute_capability": target.description()[1], "driver": "none"}
    capability = ".".join(map(str, place.compute_capability))
    driver = emulator_digest() if place.kind == "emulator" else device.driver()
    return {"name": place.name, "compute_capability": capability, "driver": driver}


def emulator_digest() -> str:
    sources = sorted((Path(__file__).parents[1] / "emulator").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def file_name(identity) -> str:
    readable = re.sub(r"\W+", "-", identity["name"]).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}.json"
