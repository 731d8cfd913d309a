"""conv2d on dask arrays: chunk by chunk the same as at once, and on a picture that its worker cannot hold."""

import numpy as np
import pytest

da = pytest.importorskip("dask.array", reason="dask is not installed: pip install dask")

import convlib  # noqa: E402
from convlib.dask import conv2d, moved  # noqa: E402

CASES = {
    "plain": ((2, 3, 20, 23), (4, 3, 3, 3), (1, 3, 7, 8), {}),
    "same": ((1, 2, 20, 23), (2, 2, 4, 3), (1, 1, 6, 9), {"padding": "same"}),
    "stride against the chunks": ((1, 2, 21, 26), (3, 2, 3, 3), (1, 2, 5, 7), {"stride": (2, 3), "padding": 1}),
    "padding of two sides": ((1, 1, 20, 20), (1, 1, 3, 3), (1, 1, 6, 6), {"padding": ((3, 0), (1, 2))}),
    "more padding than window": ((1, 1, 12, 12), (1, 1, 2, 2), (1, 1, 4, 4), {"padding": 3, "stride": 2}),
    "dilation": ((1, 1, 30, 31), (1, 1, 3, 3), (1, 1, 8, 8), {"dilation": (3, 2), "padding": 2}),
    "window larger than a chunk": ((1, 1, 30, 31), (1, 1, 9, 9), (1, 1, 4, 4), {"padding": 4}),
    "window as large as x": ((1, 1, 9, 9), (2, 1, 9, 9), (1, 1, 4, 4), {}),
    "depthwise, bias, relu": ((2, 4, 12, 12), (4, 1, 3, 3), (1, 2, 5, 5), {"groups": 4, "activation": "relu"}),
    "channels last": ((2, 20, 23, 3), (4, 3, 3, 3), (1, 7, 8, 2), {"layout": "NHWC", "padding": 1}),
    "one image": ((3, 20, 23), (4, 3, 3, 3), (3, 7, 8), {"padding": 1}),
    "reflect": ((1, 1, 20, 20), (1, 1, 3, 3), (1, 1, 6, 6), {"padding": 2, "padding_mode": "reflect"}),
    "replicate": ((1, 1, 20, 20), (1, 1, 3, 3), (1, 1, 6, 6), {"padding": 2, "padding_mode": "replicate"}),
    "circular": ((1, 1, 20, 20), (1, 1, 3, 3), (1, 1, 6, 6), {"padding": 2, "padding_mode": "circular"}),
}


def integers(shape, seed):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_chunk_by_chunk_is_the_same_as_at_once(name):
    shape, w_shape, chunks, keywords = CASES[name]
    x, w, bias = integers(shape, 0), integers(w_shape, 1), integers(w_shape[0], 2)
    keywords = keywords | {"max_error": 1e-9}  # plain sums, which are exact
    y = conv2d(da.from_array(x, chunks), w, bias, **keywords)
    wanted = convlib.conv2d(x, w, bias, **keywords)
    assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(y.compute(scheduler="synchronous"), wanted)


def test_chunks_stay_chunks():
    x = da.zeros((1, 3, 100, 100), chunks=(1, 3, 25, 50), dtype=np.float32)
    y = conv2d(x, np.zeros((8, 3, 3, 3), np.float32), padding=1, stride=2)
    assert y.chunks == ((1,), (8,), (13, 12, 13, 12), (25, 25))


@pytest.mark.parametrize(
    ("chunks", "step", "halo", "wanted"),
    [
        ((5, 5, 5), 1, 2, (5, 5, 5)),
        ((5, 5, 5), 2, 2, (4, 6, 5)),
        ((1, 5, 5, 1), 1, 2, (6, 6)),
        ((4, 4, 1), 1, 2, (4, 5)),
        ((2, 2), 4, 0, (4,)),
    ],
)
def test_chunks_move_to_the_stride_and_are_larger_than_the_halo(chunks, step, halo, wanted):
    assert moved(chunks, step, halo) == wanted


def test_what_is_no_dask_array_is_refused():
    with pytest.raises(TypeError, match="x: a dask array needed, got ndarray"):
        conv2d(integers((1, 1, 4, 4), 0), integers((1, 1, 2, 2), 1))


def test_errors_are_convlibs_and_come_before_anything_is_computed():
    x = da.zeros((1, 2, 4, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="w: C / groups = 2 input channels needed"):
        conv2d(x, integers((1, 3, 2, 2), 1))
    with pytest.raises(ValueError, match="padding: at most 3 needed for padding_mode='reflect' with H = 4, got 4"):
        conv2d(x, integers((1, 2, 2, 2), 1), padding=4, padding_mode="reflect")
    with pytest.raises(TypeError, match="w: float32 needed, like x, got float64; convlib never converts inputs"):
        conv2d(x, np.zeros((1, 2, 2, 2)))
    with pytest.raises(ValueError, match="algorithm: one of 'auto', .* needed, got 'fourier'"):
        conv2d(x, integers((1, 2, 2, 2), 1), algorithm="fourier")
    with pytest.raises(
        ValueError, match=r"x: chunks of known sizes needed, got .*; call x.compute_chunk_sizes\(\) first"
    ):
        conv2d(x[x[:, 0, 0, 0] > 0], integers((1, 2, 2, 2), 1))


SIZE, CHUNK, LIMIT = 20_000, 1_000, 800 << 20  # bytes: the picture has 1.6e9
MOST_SECONDS = 300


def ramp(block_info=None):
    """A chunk of the picture: (row + 2 column) % 8, so that every output is a small integer."""
    (_, _), (_, _), (top, bottom), (left, right) = block_info[None]["array-location"]
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    return ((rows[:, None] + 2 * columns) % 8).astype(np.float32)[None, None]


def test_a_picture_larger_than_its_workers_memory_is_convolved():
    distributed = pytest.importorskip("distributed", reason="distributed is not installed: pip install distributed")
    import dask

    shape = (1, 1, SIZE, SIZE)
    assert 4 * SIZE * SIZE > 1.9 * LIMIT
    tiles = (CHUNK,) * (SIZE // CHUNK)
    picture = da.map_blocks(ramp, chunks=((1,), (1,), tiles, tiles), dtype=np.float32, meta=np.empty((0,) * 4, "f4"))
    assert picture.shape == shape
    w = integers((1, 1, 5, 5), 1)
    nothing_on_disk = {f"distributed.worker.memory.{key}": False for key in ("target", "spill", "pause")}
    with (
        dask.config.set(nothing_on_disk),  # a worker past 95 % of its limit is ended, and the computation with it
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        y = conv2d(picture, w, padding=2)
        asked = client.compute([y.sum(dtype=np.float64), y[0, 0, 1_990:2_010, 3_990:4_010]])
        total, corner = (future.result(timeout=MOST_SECONDS) for future in asked)
        (limit,) = (worker["memory_limit"] for worker in client.scheduler_info()["workers"].values())
    assert limit == LIMIT

    rows, columns = np.arange(1_988, 2_012), np.arange(3_988, 4_012)
    around = ((rows[:, None] + 2 * columns) % 8).astype(np.float32)[None, None]
    np.testing.assert_array_equal(corner, convlib.conv2d(around, w)[0, 0])
    assert total == exact_total(w[0, 0])


def exact_total(window):
    """The sum of all outputs: each tap times the sum of the part of the picture that it meets."""
    counts = np.arange(8)
    total = 0.0
    for r, s in np.ndindex(window.shape):
        rows, columns = (
            np.bincount(factor * np.arange(max(0, t - 2), min(SIZE, SIZE + t - 2)) % 8, minlength=8)
            for factor, t in ((1, r), (2, s))
        )
        total += window[r, s] * (rows[:, None] * columns * ((counts[:, None] + counts) % 8)).sum()
    return total
