"""sigpy, whose CUDA branch lost cupy.cudnn, on convlib.cupy_cudnn: as on SciPy."""

from itertools import product

import numpy as np
import pytest

from convlib import (
    cupy_cudnn,
)


@pytest.fixture(scope="module")
def sigpy():
    """sigpy.conv as it is, which takes SciPy for NumPy arrays, and its CUDA branch on the stand-in."""
    pytest.importorskip("sigpy", reason="sigpy is not installed (extra examples)")
    import sigpy.conv

    from convlib.examples import mri

    return sigpy.conv, mri.sigpy_on_convlib()


def random_array(shape, dtype, seed):
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape)
    return (values + 1j * random.standard_normal(shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def check_close(got, wanted):
    """As near as two ways to sum come, of which SciPy's may be a Fourier transform: relative to the largest or 1."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    tolerance = 1e-5 if wanted.real.dtype == np.float32 else 2e-14  # sums of up to 2,000 products
    assert np.abs(got - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("multi_channel", [False, True])
@pytest.mark.parametrize("mode", ["full", "valid"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_sigpys_cuda_branch_equals_its_scipy_branch(sigpy, dtype, mode, multi_channel, dimensions):
    by_scipy, by_convlib = sigpy
    all_strides, windows = [None, (1, 1, 1), (2, 2, 2), (3, 1, 2)], [(3, 2, 4), (1, 1, 1)]
    for batch, strides, window in product([(), (2,), (2, 3)], all_strides, windows):
        data_shape = (*batch, *(3,) * multi_channel, *(8, 7, 6)[:dimensions])
        filt_shape = (*(2, 3) * multi_channel, *window[:dimensions])
        keywords = {"mode": mode, "multi_channel": multi_channel, "strides": strides and strides[:dimensions]}
        data, filt = random_array(data_shape, dtype, 0), random_array(filt_shape, dtype, 1)

        output = by_convlib.convolve(data, filt, **keywords)
        wanted = by_scipy.convolve(data, filt, **keywords)
        check_close(output, wanted)

        output = random_array(wanted.shape, dtype, 2)
        got = by_convlib.convolve_data_adjoint(output, filt, data_shape, **keywords)
        check_close(got, by_scipy.convolve_data_adjoint(output, filt, data_shape, **keywords))
        got = by_convlib.convolve_filter_adjoint(output, data, filt_shape, **keywords)
        check_close(got, by_scipy.convolve_filter_adjoint(output, data, filt_shape, **keywords))


def test_sigpys_cuda_branch_is_the_one_that_ran(sigpy, monkeypatch):
    monkeypatch.setattr(cupy_cudnn, "convolution_forward", lambda *a, **k: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        sigpy[1].convolve(np.ones((5, 5)), np.ones((2, 2)))
