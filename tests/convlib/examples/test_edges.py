"""The example on a photograph: its pictures, its checks, its refusals."""

import numpy as np
import pytest
from click.testing import CliRunner

import convlib
from convlib.examples import edges


def run(tmp_path, *arguments):
    return CliRunner().invoke(edges.main, ["--output", str(tmp_path), "--size", "32", *arguments])


@pytest.fixture
def shorter_network(monkeypatch):
    monkeypatch.setattr(edges, "NETWORK", (8, 8, "pool", 16))


def test_writes_its_pictures_and_finds_no_error(tmp_path, shorter_network):
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    for name in ("filters.png", "network.png", "worked_example.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "WRONG" not in result.output
    for line in (
        "correlation: [[37, 47], [67, 77]]",
        "convolution: [[23, 33], [53, 63]]",
        "y[0,0] = 1*1 + 2*2 + 4*3 + 5*4 = 37",
        "y[0,0] = 1*4 + 2*3 + 4*2 + 5*1 = 23",
    ):
        assert line in result.output


def test_a_wrong_convolution_ends_in_code_1(tmp_path, shorter_network, monkeypatch):
    right = convlib.conv2d

    def off_by_a_little(x, w, **keywords):
        y = right(x, w, **keywords)
        y[..., -1, -1] += np.float32(1e-3) * np.abs(y).max()
        return y

    monkeypatch.setattr(convlib, "conv2d", off_by_a_little)
    result = run(tmp_path)
    assert result.exit_code == 1, result.output
    assert "WRONG" in result.output


def test_a_backend_that_cannot_run_says_so_and_ends_in_code_2(tmp_path):
    result = run(tmp_path, "--backend", "cupy_raw")
    assert result.exit_code == 2
    assert "--backend cupy_raw: backend='cupy_raw' cannot run this problem on cpu:0" in result.output


def test_gabor_filters_ignore_plain_areas_and_orthogonal_ones_are_orthogonal():
    bank = edges.gabor_bank(16, 7)
    np.testing.assert_allclose(bank.sum((2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(bank.reshape(16, -1), axis=1), 1, rtol=1e-5)
    filters = edges.orthogonal_filters(8, 4, 3, np.random.default_rng(0)).reshape(8, -1)
    np.testing.assert_allclose(filters @ filters.T, 2 * np.eye(8), atol=1e-5)


def test_scipys_convolution_is_ours_on_integers():
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in ((1, 3, 9, 8), (4, 3, 5, 3)))
    np.testing.assert_array_equal(edges.scipy_conv2d(x, w), convlib.conv2d(x, w, padding="same"))
