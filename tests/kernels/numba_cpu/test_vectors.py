"""The vectors that kernels are written in: each operation against NumPy, on sizes around one register."""

import numpy as np
import pytest
from numba import float32, float64, njit, types

from convlib.kernels.numba_cpu import short_floats, target, tracing
from convlib.kernels.numba_cpu.epilogue import exponential_of
from convlib.kernels.numba_cpu.tracing import Lanes, traced
from convlib.kernels.numba_cpu.vectors import (
    Vector,
    broadcast,
    first,
    fma,
    lanes,
    load,
    load_even,
    load_lanes,
    load_strided,
    select,
    store,
    store_lanes,
    sum_lanes,
)  # fmt: skip


def address(array):
    return array.ctypes.data


@pytest.mark.parametrize("real", [float32, float64], ids=str)
def test_a_loop_with_a_masked_tail_touches_nothing_past_its_end(real):
    dtype = np.dtype(str(real))
    width = lanes(dtype)
    V = Vector(real, width)

    @njit
    def add_scaled(x, y, n, factor):
        f = broadcast(V, factor)
        for i in range(0, n - width + 1, width):
            store(y, i, fma(load(V, x, i), f, load(V, y, i)))
        tail, i = first(V, n % width), n - n % width
        store_lanes(y, i, fma(load_lanes(V, x, i, tail), f, load_lanes(V, y, i, tail)), tail)

    for n in (0, 1, width - 1, width, width + 1, 3 * width - 1):
        x, y = np.arange(n, dtype=dtype), np.full(n + width, 5, dtype)
        add_scaled(address(x), address(y), n, 3)
        np.testing.assert_array_equal(y, np.append(5 + 3 * x, np.full(width, 5)))


def test_strided_loads_select_and_sums_equal_numpy():
    n = lanes(np.float32)
    V = Vector(float32, n)

    @njit
    def several(x, y):
        store(y, 0, load_strided(V, x, 1, 3))
        store(y, n, load_even(V, x, 1))
        a, b = load(V, x, 0), load(V, x, n)
        store(y, 2 * n, select(a < b * broadcast(V, 0.5), a, b - a))
        return sum_lanes(a)

    x = np.random.default_rng(0).integers(-9, 9, 4 * n).astype(np.float32)
    y = np.zeros(3 * n, np.float32)
    assert several(address(x), address(y)) == x[:n].sum()
    a, b = x[:n], x[n : 2 * n]
    np.testing.assert_array_equal(y[:n], x[1 : 1 + 3 * n : 3])
    np.testing.assert_array_equal(y[n : 2 * n], x[1 : 1 + 2 * n : 2])
    np.testing.assert_array_equal(y[2 * n :], np.where(a < b / 2, a, b - a))


def test_transposes_squares():
    V = Lanes("f32", lanes(np.float32))

    @traced(types.void)
    def transposed(x, y):
        rows = [tracing.load(V, x + V.bytes * i) for i in range(V.count)]
        for i, row in enumerate(tracing.transpose(rows)):
            tracing.store(y + V.bytes * i, row)

    x = np.random.default_rng(0).standard_normal((V.count, V.count)).astype(np.float32)
    y = np.empty_like(x)
    njit(lambda a, b: transposed(a, b))(address(x), address(y))
    np.testing.assert_array_equal(y, x.T)


@pytest.mark.parametrize("hardware", [True, False], ids=["hardware", "integers"])
def test_every_float16_widens_and_narrows_exactly(monkeypatch, hardware):
    if not hardware:
        monkeypatch.setattr(short_floats.target, "converts_float16", lambda: False)
    elif not short_floats.target.converts_float16():
        pytest.skip("this processor has no float16 conversion")
    widen, narrow = short_floats.number_functions("float16")

    @njit
    def convert(stored, numbers, again):
        for i in range(stored.size):
            numbers[i] = widen(stored[i])
            again[i] = narrow(numbers[i])

    stored = np.arange(65_536, dtype=np.uint16)
    numbers, again = np.empty(65_536, np.float32), np.empty(65_536, np.uint16)
    convert(stored, numbers, again)
    halves = stored.view(np.float16)
    np.testing.assert_array_equal(numbers, halves.astype(np.float32))
    finite = ~np.isnan(halves)
    np.testing.assert_array_equal(again[finite], stored[finite])
    assert np.isnan(again.view(np.float16)[~finite]).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("hardware", [True, False], ids=["hardware", "integers"])
def test_narrowing_rounds_to_nearest_even(monkeypatch, name, hardware):
    if not hardware:
        monkeypatch.setattr(short_floats.target, "converts_float16", lambda: False)
    short = np.dtype(np.float16) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    _, narrow = short_floats.number_functions(name)

    @njit
    def convert(numbers, stored):
        for i in range(stored.size):
            stored[i] = narrow(numbers[i])

    words = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (np.arange(65_536, dtype=np.uint32) << 16) | 0x8000
    numbers = np.concatenate([words, ties, ties >> 3, [0x477FEFFF, 0x477FF000]]).astype(np.uint32).view(np.float32)
    numbers = numbers[~np.isnan(numbers)]
    stored = np.empty(numbers.size, np.uint16)
    convert(numbers, stored)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(stored, numbers.astype(short).view(np.uint16))


def test_the_exponential_is_right_to_two_units_in_the_last_place():
    @njit
    def all_of(x, y):
        for i in range(x.size):
            y[i] = exponential_of(x[i])

    x = np.append(np.linspace(-700, 700, 10_001), [0.0, -np.inf, -745.0])
    y = np.empty_like(x)
    all_of(x, y)
    np.testing.assert_allclose(y[:-2], np.exp(x[:-2]), rtol=4.5e-16)
    np.testing.assert_array_equal(y[-2:], 0)


@pytest.mark.parametrize(("size", "ways", "known"), [("1280K", "20", (1280 << 10, 20)), ("2M", "16", (2 << 20, 16))])
def test_caches_are_as_linux_tells(monkeypatch, size, ways, known):
    told = {"size": size, "ways_of_associativity": ways}
    monkeypatch.setattr(target, "cache_fact", lambda level, name: told[name])
    assert (target.cache_bytes.__wrapped__(2), target.cache_ways.__wrapped__(2)) == known


@pytest.mark.parametrize(("size", "ways"), [("", ""), ("many", "0")])
def test_caches_are_common_ones_where_linux_tells_nothing(monkeypatch, size, ways):
    told = {"size": size, "ways_of_associativity": ways}
    monkeypatch.setattr(target, "cache_fact", lambda level, name: told[name])
    assert (target.cache_bytes.__wrapped__(2), target.cache_ways.__wrapped__(2)) == (512 << 10, 8)
