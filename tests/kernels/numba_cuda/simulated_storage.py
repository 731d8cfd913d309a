"""Conversions and epilogue of the Numba CUDA kernels in Numba's simulator; test_in_simulator.py starts it."""

import math

import ml_dtypes
import numpy as np
import pytest

from convlib.kernels.numba_cuda import epilogue, storage

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("name", DTYPES)
def test_widens_every_16_bit_pattern(name):
    patterns = np.arange(65_536, dtype=np.uint16)
    widen = storage.widen(name)
    numbers = np.array([widen(pattern) for pattern in patterns], np.float32)
    np.testing.assert_array_equal(numbers, patterns.view(DTYPES[name]).astype(np.float32))


def floats_to_round(name):
    """Ties between neighbours, their own neighbours, denormals, the largest and what overflows."""
    short = np.arange(0, 0x7F80, 7, dtype=np.uint16).view(DTYPES[name]).astype(np.float64)
    short = short[np.isfinite(short)]
    ties = ((short[:-1] + short[1:]) / 2).astype(np.float32)
    around = [np.nextafter(ties, np.float32(side)) for side in (0, np.inf)]
    special = np.array([0, 1e-45, 65_504, 65_519.996, 65_520, 3.39e38, 3.4028235e38, np.inf, np.nan], np.float32)
    positive = np.concatenate([short.astype(np.float32), ties, *around, special])
    return np.concatenate([positive, -positive])


@pytest.mark.parametrize("name", DTYPES)
def test_narrows_to_nearest_even(name):
    numbers = floats_to_round(name)
    narrow = storage.narrow(name)
    rounded = np.array([narrow(number) for number in numbers], np.uint16).view(DTYPES[name])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded.astype(np.float32), numbers.astype(DTYPES[name]).astype(np.float32))
    zeros = numbers == 0
    np.testing.assert_array_equal(np.signbit(rounded[zeros].astype(np.float32)), np.signbit(numbers[zeros]))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001])
def test_narrowing_to_bfloat16_keeps_nan(bits):
    number = np.uint32(bits).view(np.float32)
    assert np.isnan(np.uint16(storage.narrow("bfloat16")(number)).view(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("activation", "values"),
    [
        (None, {-3: -3, 3: 3}),
        ("relu", {-3: 0, 3: 3, math.inf: math.inf}),
        ("relu6", {-3: 0, 3: 3, 7: 6}),
        ("leaky_relu", {-4: -1, 4: 4}),
        ("silu", {0: 0, 1: 1 / (1 + math.exp(-1)), -1: -1 / (1 + math.e), 1000: 1000, -1000: 0, math.inf: math.inf}),
    ],
)
def test_activates_and_keeps_nan(activation, values):
    finish = epilogue.finish("float32", activation, 0.25, False, False)
    for value, expected in values.items():
        assert finish(np.float32(value), None, None, 0, 0, 0, 0) == pytest.approx(expected, rel=2e-7)
    assert math.isnan(finish(np.float32(math.nan), None, None, 0, 0, 0, 0))
