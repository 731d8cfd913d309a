"""ncu's counters: which kernels are worth them, what its CSV says, and that a refusal is told."""

import os
import time
from pathlib import Path

import pytest

from benchmarks import counters, nvidia_card
from benchmarks.ours import PLAN
from benchmarks.results import REHEARSED, Row
from convlib.verification.children import OutOfTime

CSV = """==PROF== Connected to process 42 (/usr/bin/python3)
==PROF== Disconnected from process 42
"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum","smsp__inst_executed.sum","dram__bytes.sum",\
"sm__inst_executed_pipe_tensor.sum"
"","","","","ns","inst","byte","inst"
"0","conv2d_pack(const float *, float *)","(256, 1, 1)","(9, 1, 1)","4,320","1,024","n/a","8"
"1","conv2d_gemm(const float *)","(256, 1, 1)","(128, 1, 1)","1,250,000","98304","4096","1,536"
"""


def row(kernel, seconds, count=1, candidate=PLAN, status="measured", case="a"):
    return Row("vgg16", case, count, 1, 1, candidate, True, kernel, status, median_s=seconds)


def test_the_csv_of_ncu_is_read():
    pack, gemm = counters.launches_in(CSV)
    assert (pack["function"], pack["grid"], pack["block"]) == ("conv2d_pack", "(9, 1, 1)", "(256, 1, 1)")
    assert pack["seconds"] == pytest.approx(4.32e-6)
    assert pack["warp_instructions"] == 1024
    assert pack["dram_bytes"] is None
    assert gemm["seconds"] == pytest.approx(1.25e-3)
    assert (pack["tensor_instructions"], gemm["tensor_instructions"]) == (8, 1536)
    assert gemm["registers"] is None


@pytest.mark.parametrize("text", ["", "==ERROR== No kernels were profiled\n", CSV.rpartition('"0"')[0]])
def test_no_launch_is_a_refusal(text):
    with pytest.raises(counters.Refused, match="ncu counted nothing"):
        counters.launches_in(text)


def test_each_chosen_kernel_is_counted_where_most_time_goes():
    rows = [
        row("k.a", 1.0, case="1"), row("k.a", 0.5, count=4, case="2"), row("k.b", 1.5),
        row("k.c", 9.0, candidate="k.c"), row("k.d", 9.0, status="refused"), row("k.e", 0.1, status=REHEARSED),
    ]  # fmt: skip
    assert [(one.kernel, one.case) for one in counters.worth_counting(rows)] == [
        ("k.a", "2"),
        ("k.b", "a"),
        ("k.e", "a"),
    ]


def program(tmp_path, monkeypatch, name, script):
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return path


def test_ncu_is_asked_for_its_counters_and_leaves_the_clocks_alone(tmp_path, monkeypatch):
    (tmp_path / "csv").write_text(CSV)
    program(tmp_path, monkeypatch, "ncu", f'echo "$CONVLIB_TRUST $@" > {tmp_path}/asked; cat {tmp_path}/csv')
    assert counters.unavailable() is None
    first, _ = counters.counted(row("cupy_raw.tiled", 1.0), time.monotonic() + 60, counters.ncu)
    assert (first["kernel"], first["case"], first["function"]) == ("cupy_raw.tiled", "a", "conv2d_pack")
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("all --clock-control none --profile-from-start off")
    assert asked.strip().endswith("-m benchmarks.counted cupy_raw.tiled vgg16 a")


def test_what_ncu_refuses_is_told(tmp_path, monkeypatch):
    said = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    program(tmp_path, monkeypatch, "ncu", f"echo '{said}'; exit 1")
    with pytest.raises(counters.Refused, match="exit code 1: ==ERROR== ERR_NVGPUCTRPERM"):
        counters.ncu(row("cupy_raw.tiled", 1.0), 60.0)
    program(tmp_path, monkeypatch, "ncu", "exec sleep 30")
    with pytest.raises(counters.Refused, match="did not return within 1 s"):
        counters.ncu(row("cupy_raw.tiled", 1.0), 1.0)


def test_no_counter_is_read_after_the_deadline():
    with pytest.raises(OutOfTime):
        counters.counted(row("cupy_raw.tiled", 1.0), time.monotonic() - 1, None)


SMI = """case "$2" in
  *mig.mode*,*|*,mig.mode*) echo 'Field "mig.mode.current" is not a valid field to query.'; exit 2;;
  *mig.mode*) echo 'Field "mig.mode.current" is not a valid field to query.'; exit 2;;
  *clocks.sm*) echo '1980 MHz, 2619 MHz, 41, 310.00 W, 0x0000000000000000';;
  *) echo "${2#--query-gpu=} of it";;
esac"""


def test_the_card_is_asked_field_by_field_where_it_does_not_know_them_all(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "nvidia-smi", SMI)
    assert nvidia_card.unavailable() is None
    assert nvidia_card.clocks()["clocks.memory"] == "2619 MHz"
    facts = nvidia_card.facts()
    assert facts["driver_version"] == "driver_version of it"
    assert "mig.mode.current" not in facts


def test_a_card_that_cannot_be_asked_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvidia_card, "find_spec", lambda package: None)
    assert nvidia_card.clocks() == {}
    assert Path(nvidia_card.unavailable()).name == "neither nvidia-smi nor pynvml is there"
