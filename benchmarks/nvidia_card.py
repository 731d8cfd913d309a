"""What a GPU says of itself: name, driver, limits, its clocks while it is at work; from nvidia-smi, or from NVML."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec

# nvidia-smi's names; what a card or driver does not know it answers with "[N/A]".
FACTS = (
    "name", "driver_version", "vbios_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory",
    "persistence_mode", "compute_mode", "mig.mode.current", "ecc.mode.current",
)  # fmt: skip
CLOCKS = ("clocks.sm", "clocks.memory", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")


def unavailable() -> str | None:
    """Why the card cannot be asked; None where it can be."""
    if shutil.which("nvidia-smi") or find_spec("pynvml"):
        return None
    return "neither nvidia-smi nor pynvml is there"


def facts(index: int = 0) -> dict[str, str]:
    """The card's own name, driver and limits, with their units; empty where it cannot be asked."""
    return asked(FACTS, index)


def clocks(index: int = 0) -> dict[str, str]:
    """Its clocks, temperature and power now, and why the clocks are not higher; empty where it cannot be asked."""
    return asked(CLOCKS, index)


def asked(names, index) -> dict[str, str]:
    if shutil.which("nvidia-smi"):
        return from_nvidia_smi(names, index)
    return {name: value for name, value in from_nvml(index).items() if name in names} if find_spec("pynvml") else {}


def from_nvidia_smi(names, index) -> dict[str, str]:
    """Field by field of what it knows: one unknown name is an error for all of them."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {} if len(names) == 1 else {k: v for name in names for k, v in from_nvidia_smi((name,), index).items()}
    return dict(zip(names, (value.strip() for value in done.stdout.strip().split(","))))


def from_nvml(index) -> dict[str, str]:
    import pynvml

    pynvml.nvmlInit()
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        sm, memory = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
        name, driver = pynvml.nvmlDeviceGetName(card), pynvml.nvmlSystemGetDriverVersion()
        return {
            "name": name.decode() if isinstance(name, bytes) else name,
            "driver_version": driver.decode() if isinstance(driver, bytes) else driver,
            "clocks.max.sm": f"{pynvml.nvmlDeviceGetMaxClockInfo(card, sm)} MHz",
            "clocks.max.memory": f"{pynvml.nvmlDeviceGetMaxClockInfo(card, memory)} MHz",
            "clocks.sm": f"{pynvml.nvmlDeviceGetClockInfo(card, sm)} MHz",
            "clocks.memory": f"{pynvml.nvmlDeviceGetClockInfo(card, memory)} MHz",
            "temperature.gpu": str(pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)),
            "power.draw": f"{pynvml.nvmlDeviceGetPowerUsage(card) / 1e3:.1f} W",
        }
    finally:
        pynvml.nvmlShutdown()
