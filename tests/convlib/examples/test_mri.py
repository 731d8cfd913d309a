"""The example on an MRI phantom: its picture, its comparison with SciPy, what calibration gains, its refusals."""

import re

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("sigpy", reason="sigpy is not installed (extra examples)")

from convlib import cupy_cudnn
from convlib.examples import mri


def run(tmp_path, *arguments):
    return CliRunner().invoke(mri.main, ["--output", str(tmp_path / "mri"), "--size", "64", "--coils", "4", *arguments])


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What one run, which had nothing to complain of, printed; beside its picture."""
    folder = tmp_path_factory.mktemp("mri")
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert (folder / "mri" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    return result.output


def test_draws_its_picture_and_finds_sigpys_branches_alike(output):
    assert "16 complex images of 64 x 64 under a window of 11 x 11:" in output
    for name in ("sigpy on convlib.cupy_cudnn", "sigpy on SciPy", "convlib.conv2d, window real"):
        assert re.search(rf"^  {name} +\d+ ms, error [\d.]+e-0[78] of [\d.e-]+ allowed$", output, re.M)


def test_smoothing_brings_sensitivities_and_slice_nearer_to_the_truth(output):
    for words in ("by single pixels, ([0-9.]+) smoothed", "of the sum of squares, ([0-9.]+) combined"):
        before, after = re.search(rf"([0-9.]+) (?:as root )?{words}", output).groups()
        assert float(after) < 0.8 * float(before)


def test_a_wrong_convolution_ends_in_code_1(tmp_path, monkeypatch):
    right = cupy_cudnn.convolution_forward

    def off_by_a_little(x, W, b, y, *rest, **keywords):
        right(x, W, b, y, *rest, **keywords)
        y[-1, ..., 20, 20] += np.float32(1e-4) * np.abs(y).max()

    monkeypatch.setattr(cupy_cudnn, "convolution_forward", off_by_a_little)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert re.search("sigpy on convlib.cupy_cudnn .* WRONG", result.output)


@pytest.mark.parametrize(("package", "name"), [("sigpy", "sigpy"), ("matplotlib", "Matplotlib")])
def test_a_missing_package_is_one_line_and_code_2(tmp_path, monkeypatch, package, name):
    found = mri.find_spec
    monkeypatch.setattr(mri, "find_spec", lambda wanted: None if wanted == package else found(wanted))
    result = run(tmp_path)
    assert result.exit_code == 2
    needed = f'the example needs {name}, which is not installed: python -m pip install "convlib-kernels[examples]"'
    assert result.output == needed + "\n"


def test_sigpy_itself_is_left_as_it_was():
    import sys

    import sigpy

    before = sys.modules.get("cupy"), sigpy.config.cudnn_enabled, sigpy.conv.backend
    mri.sigpy_on_convlib()
    assert (sys.modules.get("cupy"), sigpy.config.cudnn_enabled, sigpy.conv.backend) == before
    with pytest.raises(ImportError), mri.cudnn_at_hand(sigpy.config):
        raise ImportError
    assert (sys.modules.get("cupy"), sigpy.config.cudnn_enabled, sigpy.conv.backend) == before
