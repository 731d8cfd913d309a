"""The example of many pairs: every way right, a wrong one told, its refusal."""

import re

import numpy as np
import pytest
from click.testing import CliRunner

from convlib.examples import pairs


def run(*arguments):
    return CliRunner().invoke(pairs.main, ["--pairs", "3", "--size", "16", "--window", "5", *arguments])


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_all_ways_agree_with_scipy_in_double_precision(dtype):
    result = run("--dtype", dtype)
    assert result.exit_code == 0, result.output
    first, *rest = result.output.splitlines()
    assert first == f"3 pairs of 16 x 16 with 5 x 5, {dtype}, mode full:"
    assert len(rest) == 3
    for line in rest:
        assert re.search(r"(one call|a loop) +[\d.]+ ms +[\d.]+ x   error [\d.]+e-\d\d$|error 0.0e\+00$", line)


def test_a_wrong_result_ends_in_code_1(monkeypatch):
    right = pairs.convolve2d

    def off_by_a_little(images, kernels):
        y = right(images, kernels)
        y[-1, -1, -1] += 1e-2
        return y

    monkeypatch.setattr(pairs, "convolve2d", off_by_a_little)
    result = run()
    assert result.exit_code == 1
    assert re.search("one call .* WRONG$", result.output, re.M)


def test_every_kernel_meets_its_own_image():
    images, kernels = pairs.random_pairs(3, 8, 3, "float64", 0)
    together = pairs.convolve2d(images, kernels)
    for image, kernel, y in zip(images, kernels, together, strict=True):
        np.testing.assert_allclose(pairs.convolve2d(image, kernel), y, rtol=1e-12, atol=1e-12)


def test_a_missing_package_is_one_line_and_code_2(monkeypatch):
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    result = run()
    assert result.exit_code == 2
    assert result.output == pairs.MISSING + "\n"
