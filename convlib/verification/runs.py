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
    todo: dict[Device, list[Row]],
    settings: Settings,
    restart: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Device, Result]]:
    """Results of all rows, device by device, each put on record; `note` hears what is being checked.

    What an interrupted run with these settings had found is not checked again, unless kernels changed or for `restart`.
    """
    kind = {"extent": settings.extent, "sanitize": settings.sanitize}
    records = {place: Records(place) for place in todo}
    runs = {place: records[place].begin(kind, restart) for place in todo}
    for place, rows in todo.items():
        for result in on_device(rows, place, settings, records[place], runs[place], note):
            yield place, result
    for place, run in runs.items():
        records[place].finish(run)


def on_device(rows, place, settings, records, run, note) -> Iterator[Result]:
    found = records.entries()
    done = [row for row in rows if row.key in found and of_this_run(found[row.key], row, run)]
    for row in done:
        entry = found[row.key]
        yield Result(row, entry.problems, entry.seconds, entry.problem, entry.fault, before=True)
    for result in checked([row for row in rows if row not in done], place, settings, note):
        records.put(result.row.key, entry_of(result, run))
        yield result


def of_this_run(entry, row, run) -> bool:
    return entry.run == run and entry.is_about(row.kernel)


def entry_of(result, run) -> Entry:
    return Entry(
        since=time.time(), version=convlib.__version__, digest=digest(result.row.kernel), run=run,
        problems=result.problems, seconds=result.seconds, problem=result.problem, fault=result.fault,
    )  # fmt: skip
