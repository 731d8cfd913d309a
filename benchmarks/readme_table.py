"""README's table of the cards on which each kernel has been verified, made from results/: python -m benchmarks cards.

A card's verdict on a kernel comes from verified.json, which `python -m benchmarks gpu` writes. Where there are layer
tables only, it says on how many layers the kernel's answer was right before it was timed, and that this is less.
"""

from __future__ import annotations

import json
from pathlib import Path

from convlib import calibration, dispatch

from .results import MEASURED

START, END = "<!-- cards: python -m benchmarks cards -->\n", "<!-- /cards -->\n"
NEVER = "on none"


def with_table(text: str, results: Path) -> str:
    """README's text with the table that `results` asks for between its two marks."""
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"README.md: the marks {START.strip()} and {END.strip()} needed")
    return before + START + table(results) + END + after


def table(results: Path) -> str:
    """A line for every GPU kernel that was on a card, a column for every card, and one line for all other kernels."""
    found = verdicts(results)
    cards = list(dict.fromkeys(card for of_card in found.values() for card in of_card))
    if not cards:
        return "No GPU kernel has been verified on any card yet.\n"
    lines = [["kernel", *cards], ["---"] * (1 + len(cards))]
    for kernel in dispatch.KERNELS:
        if kernel in found:
            lines.append([f"`{kernel}`", *(found[kernel].get(card, NEVER) for card in cards)])
    lines.append(["any other of `numba_cuda` and `cupy_raw`", *([NEVER] * len(cards))])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def verdicts(results: Path) -> dict[str, dict[str, str]]:
    """What is known by kernel and card; the newest folder's word is the last, and verification goes before layers."""
    found: dict[str, dict[str, str]] = {}
    for path in calibration.results_files(results):
        content = json.loads(path.read_text())
        card, day = calibration.card(content["settings"]).name, content["settings"]["date"][:10]
        for kernel, layers in right_layers(content["rows"]).items():
            found.setdefault(kernel, {})[card] = f"not verified; right on {layers} layers, {day}"
    for path in sorted(results.rglob("visit.json"), key=day_of):
        for kernel, (card, words) in verified_in(path).items():
            found.setdefault(kernel, {})[card] = words
    return found


def right_layers(rows: list[dict]) -> dict[str, int]:
    """On how many layers each kernel's answer passed the gate."""
    timed = [row for row in rows if row["status"] == MEASURED and row["kernel"] in dispatch.KERNELS]
    cases = {kernel: {(r["suite"], r["case"]) for r in timed if r["kernel"] == kernel} for kernel in dispatch.KERNELS}
    return {kernel: len(of_kernel) for kernel, of_kernel in cases.items() if of_kernel}


def verified_in(path: Path) -> dict[str, tuple[str, str]]:
    """The verdicts of one visit: kernel -> card, words. Nothing for a rehearsal."""
    visit, file = json.loads(path.read_text()), path.with_name("verified.json")
    if visit["rehearsal"] or not file.exists():
        return {}
    rows = json.loads(file.read_text())
    return {
        kernel: (visit["gpu"]["name"], words([row for row in rows if row["kernel"] == kernel], day_of(path)))
        for kernel in dict.fromkeys(row["kernel"] for row in rows)
    }


def words(rows: list[dict], day: str) -> str:
    """verified, or WRONG: of which passes and dtypes, on how many problems, and when."""
    wrong = [row for row in rows if not row["right"]]
    if wrong:
        return f"**wrong**: {', '.join(row['pass'] + ' ' + row['dtype'] for row in wrong)}, {day}"
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
    return f"verified in {dtypes}: {sum(row['problems'] for row in rows)} problems, {day}"


def day_of(path: Path) -> str:
    return json.loads(path.read_text())["date"][:10]
