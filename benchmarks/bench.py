"""What measures layers for `python -m benchmarks gpu`: a GPU, or the stand-ins of a rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import cases, gate, results, runner


@dataclass(frozen=True)
class Bench:
    """What layer_child.py measures with. status: of every row that has a time.

    about: the facts of the card; case: the case as it is to be measured; makers: the candidates; block, exact: as
    runner takes them; clocks: the card's clocks now; clean: give memory back.
    """

    about: Callable[[], dict]
    case: Callable[[cases.Case], cases.Case]
    makers: Callable[[cases.Case], runner.Makers]
    block: Callable
    clocks: Callable[[], dict]
    exact: Callable = gate.exact
    clean: Callable[[], None] = lambda: None
    status: str = results.MEASURED
