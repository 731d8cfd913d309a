"""What a process remembers of choices, times and trust, forgotten."""

from convlib import choosing, dispatch, operations, transposed, trust, tuned_times


def forget():
    """As in a new process."""
    tuned_times.known.clear()
    trust.known.clear()
    trust.warned.clear()
    for cached in (
        tuned_times.file_of, trust.records_of, dispatch.algorithms, dispatch.candidates, choosing.settled_choice,
        operations.settled_before, transposed.faster_than_phases, transposed.fastest_phase,
    ):  # fmt: skip
        cached.cache_clear()
