"""The process in which layers are measured: python -m benchmarks.layer_child, started by layer_tables.py.

It reads one line of JSON, {"cases": [[suite, layer], ...], "rehearse": false}, and answers in lines of JSON:

    {"about": {"peaks": ..., "driver": ..., "card": ...}}              once, before the first case
    {"note": "resnet50:3x224x224-64-7x7/2: timing"}                    about to be done
    {"case": [suite, layer], "rows": [...], "clocks": {...}}           done

An error that is nobody's in a row ends it; the parent goes on with another one.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from convlib.verification.child import job_and_answers

from . import cases, engine, runner
from .bench import Bench

SETTINGS = engine.Settings(rounds=5, block_seconds=0.005, most_seconds=1.0, settle=engine.at_once)
BATCHES = (32, 16, 8, 4, 2, 1)
COPIES = 40  # of x, w and y: one for every candidate, and the float64 result


def main():
    job, say = job_and_answers()
    if job["rehearse"]:
        from . import rehearsal

        measure(rehearsal.bench(), job["cases"], say)
    else:
        from . import gpu

        with gpu.stream():
            measure(on_gpu(), job["cases"], say)


def on_gpu() -> Bench:
    from . import gpu, nvidia_card, ours

    place, peers = gpu.place(), gpu.makers()
    return Bench(
        about=lambda: {"peaks": gpu.peaks(), "driver": gpu.driver(), "card": nvidia_card.facts()},
        case=lambda case: cases.batch_of(case, images_for(case, gpu.free_bytes())),
        makers=lambda case: ours.makers(case, place) | ours.kernel_makers(case, place) | peers,
        block=gpu.event_block,
        clocks=nvidia_card.clocks,
        exact=gpu.exact,
        clean=gpu.give_memory_back,
    )


def images_for(case, free_bytes) -> int:
    """The largest batch of which every candidate's copy fits the card's memory; filters have one image."""
    if case.suite == cases.FILTERS:
        return 1
    fits = (N for N in BATCHES if COPIES * runner.least_bytes(cases.batch_of(case, N).problem) <= free_bytes)
    return next(fits, 1)


def measure(bench: Bench, wanted, say) -> None:
    say(about=bench.about())
    for suite, name in wanted:
        case = bench.case(next(case for case in cases.cases(suite) if case.name == name))
        rows = runner.run_case(
            case, bench.makers(case), SETTINGS, bench.block, lambda text: say(note=text), bench.exact
        )
        rows = [replace(row, status=bench.status) if row.timed else row for row in rows]
        say(case=[suite, name], rows=[asdict(row) for row in rows], clocks=bench.clocks())
        bench.clean()


if __name__ == "__main__":
    main()
