"""The report's pictures, each drawn twice: 1280 pixels wide for a screen, 400 for a telephone."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from convlib.report import Row as CodeRow

from .cases import FILTERS, gradient_of
from .ours import CONV2D, FAST_PLAN, PLAN, shown
from .results import PEERS, Results, accurate_peers, advantage, fastest, measured

WIDE, NARROW = 1280, 400
DPI = 100
OURS_COLOUR, LIGHT_COLOUR = "#0b5394", "#9fc5e8"
FLOOR_COLOUR = "#b45f06"
# Colours that people who confuse red and green can tell apart (Okabe and Ito), and a marker each besides.
PEER_STYLES = {
    "PyTorch NCHW": ("#d55e00", "o"),
    "PyTorch channels_last": ("#d55e00", "s"),
    "cuDNN NCHW heuristic": ("#009e73", "^"),
    "cuDNN NHWC heuristic": ("#009e73", "v"),
    "cuDNN NCHW best plan": ("#cc79a7", "^"),
    "cuDNN NHWC best plan": ("#cc79a7", "v"),
    "ONNX Runtime": ("#009e73", "^"),
    "OpenVINO": ("#cc79a7", "D"),
    "ncnn": ("#000000", "v"),
    "OpenCV dnn": ("#e69f00", "P"),
    "OpenCV filter2D": ("#e69f00", "P"),
    "MNN": ("#7f7f7f", "X"),
    "SciPy ndimage": ("#56b4e9", "<"),
    "SciPy oaconvolve": ("#56b4e9", ">"),
}
OTHER_STYLE = ("#7f7f7f", ".")
DRAWN_DTYPE = "float32"  # of the machine code; the CSV has all


def png(draw: Callable, width: int, mark: str | None = None) -> bytes:
    """The picture that `draw(width_in_inches, narrow)` makes, `width` pixels wide, with `mark` written across it."""
    narrow = width < 700
    settings = {"font.size": 7 if narrow else 10, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(settings):
        figure = draw(width / DPI, narrow)
        if mark:
            figure.text(
                0.5, 0.5, mark, ha="center", va="center", rotation=20, color="#b31d28", alpha=0.4, fontsize=width / 40
            )
        file = io.BytesIO()
        figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None})
        plt.close(figure)
    return file.getvalue()


def is_tf32(name: str) -> bool:
    """Products of 10 bits, several times as fast: their marks would squeeze all others into a corner."""
    return name.endswith(" TF32")


def speed(results: Results, suite: str) -> Callable:
    """Bars for ours, marks for the peers: GFLOP/s of each case."""
    cases = results.cases(suite)

    def draw(width, narrow):
        figure, axes = rows_figure(width, narrow, cases)
        at = np.arange(len(cases))
        bars = [(CONV2D, LIGHT_COLOUR, 0.8), (PLAN, OURS_COLOUR, 0.4)]
        if gradient_of(suite):
            bars = [(shown(suite), OURS_COLOUR, 0.8)]
        for name, colour, height in bars:
            axes.barh(at, [gflops(results, suite, case, name) for case in cases], height, color=colour, label=name)
        for name in results.candidates(suite):
            if name not in [bar[0] for bar in bars] and not is_tf32(name):
                colour, marker = PEER_STYLES.get(name, OTHER_STYLE)
                if name == FAST_PLAN:
                    colour, marker = OURS_COLOUR, "*"
                values = [gflops(results, suite, case, name) for case in cases]
                axes.plot(values, at, marker, color=colour, markersize=3 if narrow else 5, label=name)
        axes.set_xlabel("GFLOP/s, counted as direct convolution")
        axes.set_xlim(left=0)
        legend_above(figure, axes, 2 if narrow else 5)
        return figure

    return draw


def advantages(results: Results, suite: str) -> Callable:
    """How many times as long the fastest peer takes, on each case."""
    cases = results.cases(suite)
    pairs = [(CONV2D, "PyTorch", LIGHT_COLOUR), (PLAN, "accurate peers", OURS_COLOUR)]
    if suite == FILTERS:
        pairs = [(CONV2D, "OpenCV and SciPy", LIGHT_COLOUR), (PLAN, "accurate peers", OURS_COLOUR)]
    if gradient_of(suite):
        pairs = [(shown(suite), "PyTorch", OURS_COLOUR)]
    floor = 0.8 if suite == FILTERS or gradient_of(suite) else 0.9

    def draw(width, narrow):
        figure, axes = rows_figure(width, narrow, cases)
        for offset, (ours, against, colour) in zip((0.2, -0.2) if len(pairs) == 2 else (0,), pairs, strict=True):
            values = [case_advantage(results, suite, case, ours, against) for case in cases]
            at = np.arange(len(cases)) - offset
            label = f"{ours.removeprefix('convlib ')} against {against} (the fastest)"
            axes.barh(at, np.array(values) - 1, 0.38, left=1, color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axvline(1, color="black", linewidth=0.8)
        axes.axvline(
            floor, color=FLOOR_COLOUR, linewidth=0.8, linestyle=":", label=f"floor of any single case, {floor}"
        )
        axes.set_xlabel("peer's time / our time (right of 1: ours is faster)")
        legend_above(figure, axes, 1 if narrow else 3)
        return figure

    return draw


def roofline(results: Results) -> Callable:
    """Every case's plan and best accurate peer under the machine's limits."""
    peaks, threads = results.settings["peaks"], results.settings["threads"]
    compute, bandwidth = peaks["core_gflops"] * threads, peaks["bandwidth_gbs"]

    def draw(width, narrow):
        figure, axes = plt.subplots(figsize=(width, width * (1.0 if narrow else 0.5)), layout="constrained")
        x = np.geomspace(0.5, 1000, 200)
        axes.plot(
            x, np.minimum(compute, x * bandwidth), color="black", label="limit of a direct convolution from memory"
        )
        axes.plot(x, np.minimum(4 * compute, x * bandwidth), "--", color="black", label="limit of Winograd F(4x4, 3x3)")
        for colour, marker, label, pick in (
            ("#b7b7b7", "o", "fastest accurate peer", lambda rows: fastest(accurate_peers(rows))),
            (OURS_COLOUR, ".", PLAN, lambda rows: measured(rows).get(PLAN)),
        ):
            rows = [pick(results.of_case(suite, case)) for suite in results.suites() for case in results.cases(suite)]
            rows = [row for row in rows if row is not None]
            intensity = [2 * row.macs / row.bytes for row in rows]
            axes.plot(intensity, [row.gflops for row in rows], marker, color=colour, label=label)
        axes.set(xscale="log", yscale="log", ylabel="GFLOP/s, counted as direct convolution")
        axes.set_xlabel("FLOP per byte of x, w and y, each moved once")
        axes.legend(loc="lower right", frameon=False)
        return figure

    return draw


def predictions(lines: list[dict]) -> Callable:
    """Predicted over measured time of every kernel on every layer; on the line where both are the same."""
    kernels = list(dict.fromkeys(line["kernel"] for line in lines))

    def draw(width, narrow):
        figure, axes = plt.subplots(figsize=(width, width * (1.0 if narrow else 0.5)), layout="constrained")
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(kernels)))
        for kernel, colour, marker in zip(kernels, colours, "osD^vPX<>" * len(kernels), strict=False):
            own = [line for line in lines if line["kernel"] == kernel]
            measured_ms, predicted_ms = ([1e3 * line[name] for line in own] for name in ("measured_s", "predicted_s"))
            axes.plot(measured_ms, predicted_ms, marker, color=colour, label=kernel, markersize=4, alpha=0.8)
        ends = [1e3 * pick(line["measured_s"] for line in lines) for pick in (min, max)]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms")
        legend_above(figure, axes, 2 if narrow else 5)
        return figure

    return draw


def occupancy(rows: list[CodeRow]) -> Callable:
    """Of each function's main kernels: the share of a multiprocessor's warps that can be there at once."""
    return by_target(rows, "occupancy", "warps at once / most warps")


def multiply_share(rows: list[CodeRow]) -> Callable:
    """The multiply-adds among the instructions of each main loop."""
    return by_target(rows, "fma_share", "multiply-adds / instructions of the main loop")


def by_target(rows, field, label):
    """One line for each function that multiplies, one mark on it for each target."""
    rows = [row for row in rows if row.dtype == DRAWN_DTYPE and row.fma_share > 0]
    names = list(dict.fromkeys(code_name(row) for row in rows))
    targets = sorted({row.target for row in rows})

    def draw(width, narrow):
        figure, axes = rows_figure(width, narrow, names)
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(targets)))
        for target, colour, marker in zip(targets, colours, "osD^vPX", strict=False):
            of_target = [row for row in rows if row.target == target]
            places = [names.index(code_name(row)) for row in of_target]
            values = [getattr(row, field) for row in of_target]
            axes.plot(values, places, marker, color=colour, label=f"sm_{target}", markersize=5, alpha=0.8)
        axes.set(xlim=(0, 1.02), xlabel=label)
        legend_above(figure, axes, 4 if narrow else 7)
        return figure

    return draw


def code_name(row) -> str:
    family, _, kernel = row.kernel.partition(".")
    return f"{kernel}, {family}"


def filters(results: Results) -> Callable:
    """Milliseconds over the window's size, a panel for each image."""
    cases = results.cases(FILTERS)
    images = list(dict.fromkeys(case.rpartition("-")[0] for case in cases))

    def draw(width, narrow):
        columns = 1 if narrow else 2
        lines = -(-len(images) // columns)
        size = (width, lines * (2.6 if narrow else 3.2) + 0.8)
        figure, panels = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
        for axes, image in zip(panels.flat, images, strict=False):
            filter_panel(axes, results, image, [case for case in cases if case.rpartition("-")[0] == image])
        for axes in panels.flat[len(images) :]:
            axes.set_visible(False)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2 if narrow else 4, frameon=False)
        return figure

    return draw


def filter_panel(axes, results, image, cases):
    windows = [int(case.rpartition("x")[2]) for case in cases]
    for name in results.candidates(FILTERS):
        colour, marker = PEER_STYLES.get(name, (OURS_COLOUR if name == PLAN else LIGHT_COLOUR, "o"))
        rows = [measured(results.of_case(FILTERS, case)).get(name) for case in cases]
        values = [row.median_s * 1e3 if row else np.nan for row in rows]
        width = 2 if name in (CONV2D, PLAN) else 1
        axes.plot(windows, values, marker=marker, color=colour, label=name, linewidth=width, markersize=4)
    size, channels = image.split("-")
    axes.set_title(f"{size}, {channels} channel{'s' if channels != '1' else ''}", loc="left")
    axes.set(yscale="log", xlabel="window", ylabel="ms", xticks=windows)


def rows_figure(width, narrow, cases):
    """A figure with one labelled row for each case, the first on top."""
    row_inches = 0.26 if narrow else 0.36
    height = len(cases) * row_inches + (1.6 if narrow else 1.3)
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_yticks(np.arange(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def legend_above(figure, axes, columns):
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, frameon=False)


def gflops(results, suite, case, name) -> float:
    row = measured(results.of_case(suite, case)).get(name)
    return row.gflops if row else np.nan


def case_advantage(results, suite, case, ours, against) -> float:
    rows = results.of_case(suite, case)
    value = advantage(rows, ours, PEERS[against](rows))
    return np.nan if value is None else value
