"""conv2d's arrays: inputs are never written, a result only where it lies, whatever the strides."""

import numpy as np

from convlib import conv2d
from tests.convlib.calls import BIAS, W, X, integers


def every_argument():
    """A call with every array, each a slice of a larger one whose rest is NaN."""
    residual = integers(2, 4, 9, 8, seed=3)
    arrays = []
    for array in (X, W, BIAS, residual, np.zeros_like(residual)):
        larger = np.full([2 * n + 3 for n in array.shape], np.nan, np.float32)
        window = larger[tuple(slice(1, 1 + 2 * n, 2) for n in array.shape)]
        window[...] = array
        arrays.append((larger, window))
    return arrays


def test_inputs_are_never_written_and_out_only_where_it_lies():
    arrays = every_argument()
    before = [larger.copy() for larger, _ in arrays]
    x, w, bias, residual, out = (window for _, window in arrays)
    assert conv2d(x, w, bias, residual=residual, padding=1, out=out) is out
    np.testing.assert_array_equal(out, conv2d(X, W, BIAS, residual=residual.copy(), padding=1))
    for (larger, _), copy in zip(arrays[:4], before[:4], strict=True):
        np.testing.assert_array_equal(larger, copy)
    larger, window = arrays[4]
    window[...] = 0
    np.testing.assert_array_equal(larger, before[4])


def test_read_only_and_reversed_inputs_and_subclasses():
    x = X.copy()
    x.flags.writeable = False
    y = conv2d(x, W)
    np.testing.assert_array_equal(y, conv2d(X, W))
    reversed_twice = np.ascontiguousarray(X[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(conv2d(reversed_twice, W), y)

    class Image(np.ndarray):
        pass

    assert type(conv2d(X.view(Image), W)) is np.ndarray


def test_same_call_same_bits():
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 33, 19, 21), (40, 33, 3, 3)))
    first = conv2d(x, w, padding=1)
    for _ in range(3):
        np.testing.assert_array_equal(conv2d(x, w, padding=1).view(np.uint32), first.view(np.uint32))
    np.testing.assert_array_equal(conv2d(x, w, padding=1, out=np.empty_like(first)), first)


def test_out_may_be_reversed_or_channels_last_in_memory():
    wanted = conv2d(X, W)
    channels_last = np.empty((2, 7, 6, 4), np.float32).transpose(0, 3, 1, 2)
    backwards = np.empty((2, 4, 7, 6), np.float32)[:, ::-1, ::-1, ::-1]
    for out in (channels_last, backwards):
        assert conv2d(X, W, out=out) is out
        np.testing.assert_array_equal(out, wanted)
