"""The cost model's constants, fitted to what GPUs measured: `python -m convlib calibrate`.

    results/*/results.json --> measurements: one kernel, one layer, one card, seconds --> kernels/gpu_cost.json

Per kernel: WAITING, the number for which predictions are least off. How far off: the mean of |log(predicted/measured)|
as a factor, so that twice as long and half as long are as bad; a case that another kernel does k times as fast weighs
1/k^2, since predictions are there to choose between kernels that come close. Per compute capability: the clock at which
multiply-adds in registers were issued, and the bandwidth of copying, both of one multiprocessor. What was measured on
the same card before, of the same layer, no longer counts. A rehearsal of `benchmarks gpu` is never read.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from . import dispatch, layers
from .device import Device
from .kernels import gpu_cost
from .machine import kernels_folder
from .problem import ConvProblem

PASSES = {"": "forward", "input-grad": "input_grad", "weight-grad": "weight_grad"}  # by what follows a suite's network
CARDS = {"NVIDIA H200": ((9, 0), 132)}  # of results that do not say: compute capability, multiprocessors
COARSE = [1.05**i for i in range(-5, 45)]  # 0.8 to 8
FINE = [1.01**i for i in range(-5, 6)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one kernel took for one problem on one card. weight: in the mean of errors."""

    kernel: str
    problem: ConvProblem
    place: Device
    seconds: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Fit:
    """One kernel's constant and how far predictions were off, as a factor, before and after."""

    kernel: str
    cases: int
    waiting_before: float
    waiting: float
    error_before: float
    error: float


# What was measured


def results_files(folder: Path) -> list[Path]:
    """Every results.json under `folder` that was measured on a GPU, the oldest first."""
    found = {path: json.loads(path.read_text())["settings"] for path in sorted(folder.rglob("results.json"))}
    measured = {path: settings for path, settings in found.items() if is_measured_on_gpu(settings)}
    return sorted(measured, key=lambda path: measured[path]["date"])


def is_measured_on_gpu(settings: dict) -> bool:
    return settings.get("device", "cpu").startswith("cuda") and not settings.get("rehearsal")


def measurements(files: Iterable[Path]) -> list[Measurement]:
    """What kernels took by themselves in these files; of the same case on the same card, what was measured last."""
    newest = {}
    for path in files:
        for one in measurements_in(json.loads(path.read_text())):
            newest[one.kernel, one.problem, one.place] = one
    return weighed(list(newest.values()))


def weighed(found: list[Measurement]) -> list[Measurement]:
    fastest = {}
    for one in found:
        case = one.problem, one.place
        fastest[case] = min(one.seconds, fastest.get(case, one.seconds))
    return [replace(one, weight=(fastest[one.problem, one.place] / one.seconds) ** 2) for one in found]


def measurements_in(content: dict) -> Iterator[Measurement]:
    """From the content of one results.json."""
    place = card(content["settings"])
    for row in content["rows"]:
        problem = problem_of(row["suite"], row["case"])
        by_itself = row["candidate"] == row["kernel"] and row["kernel"] in dispatch.KERNELS
        if by_itself and row["median_s"] and problem is not None:
            yield Measurement(row["kernel"], problem, place, row["median_s"])


def card(settings: dict) -> Device:
    """The card of a results.json's settings; raises ValueError for one of which the model knows nothing."""
    name = settings["device"].partition("(")[2].rstrip(")")
    if "gpu" in settings:
        facts = settings["gpu"]
        return Device("cuda", 0, name, tuple(facts["compute_capability"]), facts["sm_count"])
    if name not in CARDS:
        raise ValueError(f"results: settings.gpu needed, with compute_capability and sm_count of {name!r}")
    return Device("cuda", 0, name, *CARDS[name])


def problem_of(suite: str, case: str) -> ConvProblem | None:
    """The problem of a row of results: a layer, images in a batch before its name; None for what is no layer."""
    network, _, gradient = suite.partition("-")
    if network not in layers.networks() or gradient not in PASSES:
        return None
    images, name = batch_and_layer(case)
    found = next((layer.problem for layer in layers.layers(network) if layer.name == name), None)
    if found is None:
        return None
    pass_ = PASSES[gradient]
    return replace(found, N=images * found.N, pass_=pass_, has_bias=found.has_bias and pass_ == "forward")


def batch_and_layer(case: str) -> tuple[int, str]:
    """32x3x224x224-64-7x7/2 is 32 images of the layer 3x224x224-64-7x7/2; so is 32x8x..., which had 8 before."""
    sizes, dash, rest = case.partition("-")
    parts = sizes.split("x")
    return (int(parts[0]), "x".join(parts[-3:]) + dash + rest) if len(parts) > 3 else (1, case)


# What is fitted


def constants_from(files: Iterable[Path]) -> tuple[dict, list[Fit]]:
    """The content of gpu_cost.json that these results ask for, and how far predictions are off before and after."""
    files = list(files)
    return fitted_to(measurements(files), limits(files))


def fitted_to(found: list[Measurement], limits: dict) -> tuple[dict, list[Fit]]:
    """The same for measurements by whom they are had, and the `limits` of their cards."""
    old = gpu_cost.FITTED
    new = {name: old[name] | value for name, value in limits.items()} | {"waiting": dict(old["waiting"])}
    by_kernel = {name: [one for one in found if one.kernel == name] for name in dispatch.KERNELS}
    by_kernel = {name: ones for name, ones in by_kernel.items() if ones and hasattr(dispatch.kernel(name), "WAITING")}
    before = {name: (dispatch.kernel(name).WAITING, error(ones)) for name, ones in by_kernel.items()}
    fits = []
    with using(new):
        for name, ones in by_kernel.items():
            waiting, off = fitted(name, ones)
            new["waiting"][name] = waiting
            fits.append(Fit(name, len(ones), before[name][0], waiting, before[name][1], off))
    return new, fits


def limits(files: Iterable[Path]) -> dict[str, dict[str, float]]:
    """Clock and bandwidth of one multiprocessor by compute capability: the medians over the results."""
    found = {"clock": {}, "memory_per_sm": {}}
    for path in files:
        settings = json.loads(path.read_text())["settings"]
        for name, of_card in limits_of(card(settings), settings["peaks"]).items():
            for key, value in of_card.items():
                found[name].setdefault(key, []).append(value)
    return {name: {key: rounded(median(values)) for key, values in of.items()} for name, of in found.items()}


def limits_of(place: Device, peaks: dict) -> dict[str, dict[str, float]]:
    """Of one card, from what `benchmarks` measured as its peaks."""
    key, count = ".".join(map(str, place.compute_capability)), place.sm_count
    lanes = gpu_cost.FLOAT32_LANES.get(place.compute_capability, 128)
    clock, memory = peaks["core_gflops"] * 1e9 / (2 * lanes * count), peaks["bandwidth_gbs"] * 1e9 / count
    return {"clock": {key: clock}, "memory_per_sm": {key: memory}}


def fitted(name: str, ones: list[Measurement]) -> tuple[float, float]:
    """The WAITING for which predictions are least off, and how far they are off then."""

    def tried(waiting):
        with waiting_of(name, waiting):
            return error(ones)

    nearly = min(COARSE, key=tried)
    best = rounded(min((nearly * step for step in FINE), key=tried))
    return best, tried(best)


def error(ones: list[Measurement]) -> float:
    """How far predictions are off, as a factor: 1.2 is 20 % too much or too little."""
    off = [abs(math.log(predicted(one) / one.seconds)) for one in ones]
    return math.exp(fmean(off, [one.weight for one in ones]))


def predicted(one: Measurement) -> float:
    return dispatch.kernel(one.kernel).predicted_seconds(one.problem, one.place)


def rounded(value: float) -> float:
    """To three digits: no constant is known better."""
    return float(f"{value:.3g}")


@contextlib.contextmanager
def using(constants: dict):
    """Predict with these limits in here."""
    before = gpu_cost.CLOCKS, gpu_cost.MEMORY_PER_SM
    for name, value in (("CLOCKS", "clock"), ("MEMORY_PER_SM", "memory_per_sm")):
        measured = {tuple(map(int, key.split("."))): number for key, number in constants[value].items()}
        setattr(gpu_cost, name, getattr(gpu_cost, name) | measured)
    forget_cuts()
    try:
        yield
    finally:
        gpu_cost.CLOCKS, gpu_cost.MEMORY_PER_SM = before
        forget_cuts()


@contextlib.contextmanager
def waiting_of(name: str, waiting: float):
    """Predict the kernel with this WAITING in here."""
    module = dispatch.kernel(name)
    before, module.WAITING = module.WAITING, waiting
    forget_cuts([name])
    try:
        yield
    finally:
        module.WAITING = before
        forget_cuts([name])


def forget_cuts(names: Iterable[str] = dispatch.KERNELS) -> None:
    """A kernel's tiles are those predicted to be the fastest, and remembered."""
    for name in names:
        if dispatch.FAMILIES[dispatch.family_of(name)].runs_on != ("cpu",):
            for value in vars(dispatch.kernel(name)).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


# Where it is kept


def constants_file() -> Path:
    return kernels_folder() / "gpu_cost.json"


def write(constants: dict, fits: list[Fit], files: Iterable[Path], root: Path) -> bool:
    """Write gpu_cost.json with where its numbers come from; not where nothing changed. Whether it did."""
    if all(gpu_cost.FITTED[name] == constants[name] for name in ("clock", "memory_per_sm", "waiting")):
        return False
    names = [path.relative_to(root).parent.as_posix() for path in files]
    errors = {fit.kernel: {"cases": fit.cases, "before": round(fit.error_before, 3), "after": round(fit.error, 3)}
              for fit in fits}  # fmt: skip
    content = constants | {"fitted_to": names, "off_by_a_factor_of": errors}
    constants_file().write_text(json.dumps(content, indent=1) + "\n")
    return True
