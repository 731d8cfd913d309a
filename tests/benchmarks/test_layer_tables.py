"""Layers are measured in a child: one that crashes or hangs costs a layer, one that cannot begin ends the stage."""

import sys
import time

import pytest

from benchmarks import layer_tables
from convlib.verification.children import OutOfTime

CASES = [["vgg16", "a"], ["vgg16", "b"], ["vgg16", "c"]]
CHILD = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
print(json.dumps({"about": {"driver": "580"}}), flush=True)
for suite, name in job["cases"]:
    print(json.dumps({"note": f"{name}: timing"}), flush=True)
    if name == "b":
        {fault}
    print(json.dumps({"case": [suite, name], "rows": [], "clocks": {}}), flush=True)
"""


def measured(monkeypatch, fault, deadline=60.0):
    monkeypatch.setattr(layer_tables, "CHILD", (sys.executable, "-c", CHILD.replace("{fault}", fault)))
    heard = []
    found = layer_tables.measured(CASES, False, time.monotonic() + deadline, heard.append)
    return [answer for answer in found if "about" not in answer], heard


def test_every_case_is_answered_in_one_child(monkeypatch):
    found, heard = measured(monkeypatch, "pass")
    assert [answer["case"] for answer in found] == CASES
    assert heard == ["a: timing", "b: timing", "c: timing"]


def test_a_crash_costs_one_case(monkeypatch):
    found, _ = measured(monkeypatch, "os.abort()")
    assert [answer["case"] for answer in found] == CASES
    assert found[1]["failed"] == "the process was killed by SIGABRT; last heard: b: timing"
    assert "failed" not in found[2]


def test_a_hang_costs_one_case(monkeypatch):
    monkeypatch.setattr(layer_tables, "LIMIT", 3.0)
    found, _ = measured(monkeypatch, "time.sleep(100)")
    assert found[1]["failed"] == "did not return within 3 s; last heard: b: timing"
    assert "failed" not in found[2]


def test_at_the_deadline_what_was_measured_is_kept(monkeypatch):
    monkeypatch.setattr(layer_tables, "CHILD", (sys.executable, "-c", CHILD.replace("{fault}", "time.sleep(100)")))
    found = layer_tables.measured(CASES, False, time.monotonic() + 5)
    assert "about" in next(found)
    assert next(found)["case"] == CASES[0]
    with pytest.raises(OutOfTime, match="b: timing"):
        next(found)


def test_a_child_that_cannot_begin_ends_the_stage(monkeypatch):
    monkeypatch.setattr(layer_tables, "CHILD", (sys.executable, "-c", "raise SystemExit('no CUDA driver')"))
    with pytest.raises(layer_tables.Broken, match="ended with exit code 1: no CUDA driver"):
        list(layer_tables.measured(CASES, False, time.monotonic() + 60))


def test_a_failed_case_is_a_row_that_says_why():
    row = layer_tables.failed_row("vgg16", "64x224x224-64-3x3", "the process was killed by SIGSEGV")
    assert not row.timed
    assert row.status == "the process was killed by SIGSEGV"
    assert row.count == 1
