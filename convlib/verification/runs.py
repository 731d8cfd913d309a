"""A run of `verify`: every result on record at once, so that one that was interrupted goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import convlib

from ..device import Device
from .children import Result, Settings, checked
from .records import Entry, Records
from .rows import Row
from .sources import digest


def verified(
    rows: list[Row],
    place: Device,
    settings: Settings,
    records: Records,
    restart: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """As `checked`, every result put on record; first those that an interrupted run with these settings had found."""
    run = records.begin({"quick": settings.quick, "sanitize": settings.sanitize}, restart)
    found = {key: entry for key, entry in records.entries().items() if entry.run == run}
    done = [row for row in rows if row.key in found and found[row.key].is_about(row.kernel)]
    for row in done:
        entry = found[row.key]
        yield Result(row, entry.problems, entry.seconds, entry.problem, entry.fault, before=True)
    for result in checked([row for row in rows if row not in done], place, settings, note):
        records.put(result.row.key, entry_of(result, run))
        yield result
    records.finish(run)


def entry_of(result, run) -> Entry:
    return Entry(
        since=time.time(), version=convlib.__version__, digest=digest(result.row.kernel), run=run,
        problems=result.problems, seconds=result.seconds, problem=result.problem, fault=result.fault,
    )  # fmt: skip
