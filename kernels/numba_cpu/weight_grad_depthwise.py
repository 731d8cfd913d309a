"""Weight gradient of depthwise layers, straight from x and grad_y: no panel, masks where a row ends, sums in registers.

    grad_w[c, r, s] = sum over n, p, q of  x[n, c, p stride - top + r, q stride - left + s] * grad_y[n, c, p, q]

    NCHW: lanes are columns, added at last              NHWC: lanes are channels
    for every part: some images, or a band of rows of one; for every channel (NCHW), or vector of channels (NHWC)
        for every few rows p .. p + 6, every step of columns (a vector of them, or one)
            7 vectors of grad_y
            for every row of x that they meet, 9 of them, every s: a vector of x, into the sums of up to 3 rows r
        R x S vectors of sums wait in the workspace
    then, for every channel: the parts' sums are added, in their order

Why beside weight_grad_pixels.py, which serves other layers of few channels: a group of one channel and filter shares
neither among others, so what it copies, x into padded rows and grad_y into vectors, is used nine times and no more;
here 34 loads serve 63 multiply-adds, and x and grad_y come once. With channels last nothing had lanes for such a layer.
Columns outside the map, and those behind the last output, are masked in x, so that nothing is multiplied that no output
has read: an infinity there makes no NaN.

A window of more taps than there are registers is taken some of its rows at a time. What is a part depends on the
problem only, so bits do not depend on threads.

Measured on two Zen 4 cores with AVX-512, 8 images, 3 x 3, microseconds; "before" is weight_grad_pixels.py, and with
channels last weight_grad_tasks.py, PyTorch has channels last (in NCHW it takes 195 to 17,000):

    channels x map, stride    NCHW (before)    NHWC (before)    PyTorch
      32 x 112                  473   (830)     508 (38,500)       539
      96 x 112, 2             1,617 (2,271)   1,644 (35,300)     3,089
     144 x 56                   583 (1,509)     693 (30,400)       775
     144 x 56, 2                308   (616)     266  (9,480)       276
     192 x 28                   183   (556)     222 (10,200)       230
     192 x 28, 2                109   (251)     128  (2,910)       121
     384 x 14                   107   (352)     143  (5,660)       147
     576 x 14, 2                125   (418)     105  (2,900)       115
     960 x 7                    113   (589)     126  (5,170)       126

What was learned there:
- Maps whose rows fill half a vector take two images at once: 14 x 14 with stride 2 126 instead of 153 microseconds.
- With channels last, fetching the next vector of channels, a line a pixel: 111 to 130 instead of 137 to 167. In NCHW,
  where planes lie close together, fetching the next plane cost a third of the time.
- Bands of whole tiles: with 3 and 4 rows instead of 7, a row at a time, 576 x 14 with channels last took 160, not 112.
- Columns in the outer loop, so that masks are made once: from memory 890 instead of 500 for 32 x 112.
- Lanes added in the task itself; vectors of sums in the workspace made 135 new pages in each call.
Source: the tile is direct_rows.py's turned round; depthwise layers are from Howard et al., MobileNets, 2017.
"""

import struct
from functools import lru_cache, partial
from math import ceil
from typing import NamedTuple

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target, weight_grad_pixels
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled, inlined
from .short_floats import as_numbers, lanes_for, stored_kind, vector_of
from .threads import two_round_loop
from .tracing import (
    Lanes,
    choose,
    constant,
    first_lanes,
    fma,
    lanes_between,
    load_lanes,
    loop,
    prefetch,
    select,
    shuffle,
    store,
    store_lanes,
    traced,
    zeros,
)
from .vectors import record_at
from .weight_grad_types import Types

MOST_ROWS = 8  # of outputs at once
CHAIN = 4_096  # products, about, that a lane adds one after the other
BAND_SHARE = 4  # of the L2 cache, for a band's rows of x with all channels, is one part in so many
MOST_PARTS = 256  # about, with channels last, whose vectors of sums all wait in the workspace
TASKS = 32  # at least, where there is enough to do
REGISTERS_BESIDE = {1: 3, 2: 7}  # sums and grad_y, by the stride: x, and what is shuffled

GEOMETRY = ("images", "groups_of_images", "band_rows", "bands", "blocks", "block_tasks", "add_tasks")
CALL_DEPTHWISE = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


class Tile(NamedTuple):
    """What is compiled for. rows: of outputs at once; taps_h: rows of the window at once; one_step: a vector holds a
    row of outputs; two_images: or two rows, of two images.
    """

    dtype_name: str
    last: bool
    taps_h: int
    S: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    rows: int
    one_step: bool
    two_images: bool


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for arrays whose columns, or whose channels, are neighbours? Many filters of a channel
    share what weight_grad_pixels.py copies.
    """
    if (
        problem.Cg != 1
        or weight_grad_pixels.tile_of(problem) != weight_grad_pixels.LONE_TILE
        or target.vector_bytes() < 32
    ):
        return False
    if problem.dtype != problem.accumulate and target.vector_bytes() < 64:
        return False  # AVX2 masks words of 32 and 64 bits only
    possible = problem.Kg == 1 if problem.layout == "NHWC" else problem.stride[1] <= 2
    return possible and taps_at_once(problem) > 0


def takes(problem, x, grad_y) -> bool:
    """Do these arrays' lanes lie in memory without gaps between their numbers?"""
    axis = 1 if problem.layout == "NHWC" else 3
    return x.strides[axis] == x.itemsize and grad_y.strides[axis] == grad_y.itemsize


def registers_for_sums(problem) -> int:
    gathers = problem.layout == "NCHW" and problem.stride[1] == 2
    return target.register_count() - REGISTERS_BESIDE[2 if gathers else 1]


def taps_at_once(problem) -> int:
    """Rows of the window whose sums fit the registers beside two vectors of grad_y, so many that none is left; or 0."""
    fitting = (registers_for_sums(problem) - 2) // problem.S
    return max((rows for rows in range(1, fitting + 1) if problem.R % rows == 0), default=0)


@lru_cache(maxsize=1024)
def tile_of(problem) -> Tile:
    """The tile of the rows that cost least, those that are left over being done one at a time."""
    last, taps_h, S = problem.layout == "NHWC", taps_at_once(problem), problem.S
    (step, _), (apart, _) = problem.stride, problem.dilation

    def cycles(rows):
        met = {t * step + r * apart for t in range(rows) for r in range(taps_h)}
        return max(rows * taps_h * S / target.multiply_adds_per_cycle(), 2 * (len(met) * S + rows)) + 4

    def all_rows(rows):
        return problem.P // rows * cycles(rows) + problem.P % rows * cycles(1)

    most = min(MOST_ROWS, registers_for_sums(problem) - taps_h * S, problem.P)
    rows = min(range(most, 0, -1), key=all_rows)
    L = lanes_for(problem.dtype.name)
    one_step, two_images = not last and problem.Q <= L, takes_two_images(problem)
    return Tile(problem.dtype.name, last, taps_h, S, *problem.stride, *problem.dilation, rows, one_step, two_images)


def takes_two_images(problem) -> bool:
    return problem.layout == "NCHW" and problem.N > 1 and lanes_for(problem.dtype.name) >= 2 * problem.Q


def sums_of_lanes(vectors):
    """The sum of the lanes of each, side by side; up to as many vectors as each has lanes, neighbours added first."""
    count = vectors[0].type.count
    for _ in range(count.bit_length() - 1):
        vectors = vectors if len(vectors) % 2 == 0 else [*vectors, zeros(vectors[0].type, vectors[0])]
        pairs = list(zip(vectors[::2], vectors[1::2]))
        vectors = [shuffle(a, b, range(0, 2 * count, 2)) + shuffle(a, b, range(1, 2 * count, 2)) for a, b in pairs]
    return vectors[0]


def band_function(tile):
    """The traced function for rows of some images: one channel's, or with channels last a vector of channels'."""
    V = vector_of(tile.dtype_name)
    stored = V.of(stored_kind(tile.dtype_name))
    L, item, item_of_sums, last = V.count, stored.item_bytes, V.item_bytes, tile.last
    taps_h, S, stride_w, dilation_w = tile.taps_h, tile.S, tile.stride_w, tile.dilation_w
    pairs = not last and stride_w == 2  # of loads, of which a vector is every other column
    half = Lanes(V.kind, L // 2)

    def read(at, masks, apart):
        """A vector for each mask, `apart` bytes apart; or one of two halves."""
        found = [load_lanes(Lanes(stored.kind, mask.type.count), at + apart * i, mask) for i, mask in enumerate(masks)]
        found = found if found[0].type.count == L else [shuffle(*found, range(L))]
        return [as_numbers(raw, tile.dtype_name) for raw in found]

    @traced(types.void)
    def add_band(
        images, rows, x, x_n, x_h, x_w, x_next, grad, grad_n, grad_p, grad_q, grad_next, H, W, Q, top, left, lanes,
        sums,
    ):  # fmt: skip
        """The sums of taps_h x S taps over `rows` rows of outputs of each image. x_next, grad_next: how far behind lies
        what the next call reads, which is fetched. top: where the rows begin, in rows of x above grad's. lanes:
        channels that there are.
        """
        steps = Q if last else (Q + (L - 1)) // L
        columns = sorted({s * dilation_w // 2 * 2 for s in range(S)}) if pairs else [s * dilation_w for s in range(S)]
        x_step, grad_step = (x_w * stride_w, grad_q) if last else (L * stride_w * item, L * item)

        def masks_of(j, second):
            """For grad_y, and for x at each of `columns`. second: is there a second image?"""
            if last:
                inside = [j * stride_w - left + column for column in columns]
                some = [select((at >= 0) & (at < W), lanes, 0) for at in inside]
                return [first_lanes(V, lanes)], [[first_lanes(V, count)] for count in some]

            def masks(V, count, each):
                """Of `count` vectors or halves: where there are outputs, of which each has so many lanes."""
                kept = (Q - j * L) * each
                beyond = [select(second, kept, 0) if tile.two_images else kept - L] * (count - 1)
                return [first_lanes(V, lanes) for lanes in (kept, *beyond)]

            first, further = j * (L * stride_w) - left, 0 if tile.two_images else L
            needed = masks(half if tile.two_images and not pairs else V, 1 + (tile.two_images or pairs), stride_w)
            of_x = [
                [lanes_between(mask.type, first + column + further * i, 0, W) & mask for i, mask in enumerate(needed)]
                for column in columns
            ]
            return masks(half if tile.two_images else V, 1 + tile.two_images, 1), of_x

        def x_row(at, masks):
            """The vectors of x that the taps of a row multiply; at: where column -left of the step lies."""
            apart = x_n if tile.two_images else stored.bytes
            found = [read(at + (x_w * c if last else c * item), some, apart) for c, some in zip(columns, masks)]
            if not pairs:
                return [vector for (vector,) in found]
            of_column, taps = dict(zip(columns, found)), [s * dilation_w for s in range(S)]
            return [shuffle(*of_column[tap // 2 * 2], range(tap % 2, 2 * L, 2)) for tap in taps]

        def add_tile(count, p, x_at, grad_at, masks, totals):
            """`count` rows of outputs from row p of the band on, a step of columns."""
            of_grad, of_x = masks
            factors = [read(grad_at + grad_p * t, of_grad, grad_n)[0] for t in range(count)]
            for t in range(count if last else 0):
                prefetch(grad_at + grad_p * t + grad_next)
            met = {}
            for t in range(count):
                for r in range(taps_h):
                    met.setdefault(t * tile.stride_h + r * tile.dilation_h, []).append((t, r))

            def add_row(i, totals):
                totals = [list(row) for row in totals]
                for column in columns[-stride_w:] if last else ():
                    prefetch(x_at + x_h * i + x_w * column + x_next)
                for s, column in enumerate(x_row(x_at + x_h * i, of_x)):
                    for t, r in met[i]:
                        totals[r][s] = fma(column, factors[t], totals[r][s])
                return totals

            for i in sorted(met):
                h = p * tile.stride_h - top + i
                totals = choose((h >= 0) & (h < H), partial(add_row, i, totals), lambda t=totals: t)
            return totals

        whole, images_at_once = rows // tile.rows, 1 + tile.two_images
        left_over = (whole * tile.rows, rows - whole * tile.rows)

        def of_images(i, totals):
            n = i * images_at_once
            x_image, grad_image = x + x_n * n - (x_w * left if last else left * item), grad + grad_n * n
            second, zero = n + 1 < images, constant(rows, 0)

            def add_tiles(count, first, tiles, totals):
                def add_step(i, j, masks, totals):
                    p = first + i * count
                    x_at = x_image + x_step * j + x_h * (p * tile.stride_h - top)
                    return add_tile(count, p, x_at, grad_image + grad_step * j + grad_p * p, masks, totals)

                def add_steps(i, totals):
                    return loop(steps, lambda j, totals: add_step(i, j, masks_of(j, second), totals), totals)

                def add_one(i, totals):
                    return add_step(i, zero, masks_of(zero, second), totals)

                return loop(tiles, add_one if tile.one_step else add_steps, totals)

            totals = add_tiles(tile.rows, zero, whole, totals)
            return add_tiles(1, *left_over, totals) if tile.rows > 1 else totals

        rounds = (images + (images_at_once - 1)) // images_at_once
        totals = loop(rounds, of_images, [[zeros(V, x)] * S for _ in range(taps_h)])
        found = [total for row in totals for total in row]
        if last:
            for i, total in enumerate(found):
                store(sums + V.bytes * i, total)
        else:
            for i in range(0, len(found), L):
                some = found[i : i + L]
                store_lanes(sums + item_of_sums * i, sums_of_lanes(some), first_lanes(V, constant(sums, len(some))))

    return add_band


def build(*constants):
    tile = Tile(*constants)
    t, L, last = Types(tile.dtype_name), lanes_for(tile.dtype_name), tile.last
    add_band = band_function(tile)
    apart = L * t.stored_item  # vectors of neighbouring channels in memory
    item, line = t.item, t.W * t.item if last else t.item  # line: a tap's sums
    read_sum, write, zero = t.read_sum, t.write, t.real(0)

    @inlined
    def sums_of(call, part, block):
        return call.workspace + (part * call.blocks + block) * call.R * call.S * line

    def add(call_address, index, worker):
        call = record_at(CALL_DEPTHWISE, call_address)
        block_task, part = index % call.block_tasks, index // call.block_tasks
        band, n = part % call.bands, part // call.bands * call.images
        p0 = band * call.band_rows
        begin, end = call.blocks * block_task // call.block_tasks, call.blocks * (block_task + 1) // call.block_tasks
        for block in range(begin, end):
            k = block * L if last else block
            c = k // call.Kg
            for r in range(0, call.R, tile.taps_h):
                add_band(
                    min(call.images, call.N - n), min(call.band_rows, call.P - p0),
                    call.x + n * call.x_n + c * call.x_c, call.x_n, call.x_h, call.x_w, apart if last else call.x_c,
                    call.residual + n * call.residual_n + k * call.residual_k + p0 * call.residual_p, call.residual_n,
                    call.residual_p, call.residual_q, apart if last else call.residual_k, call.H, call.W, call.Q,
                    call.top - r * call.dilation_h - p0 * call.stride_h, call.left, call.C - c,
                    sums_of(call, part, block) + r * call.S * line,
                )  # fmt: skip

    @inlined
    def store_tap(call, to, block, tap):
        """The parts' sums of a tap, of one channel or of a vector of them."""
        here, parts = sums_of(call, 0, block) + tap, call.groups_of_images * call.bands
        apart = sums_of(call, 1, block) - sums_of(call, 0, block)
        for lane in range(min(L, call.C - block * L) if last else 1):
            total = zero
            for part in range(parts):
                total += read_sum(here + part * apart + lane * item)
            write(to + lane * call.w_k, total)

    def add_parts(call_address, index, worker):
        call = record_at(CALL_DEPTHWISE, call_address)
        for block in range(call.blocks * index // call.add_tasks, call.blocks * (index + 1) // call.add_tasks):
            for r in range(call.R):
                for s in range(call.S):
                    tap = (r * call.S + s) * line
                    to = call.w + block * (L if last else 1) * call.w_k + r * call.w_r + s * call.w_s
                    store_tap(call, to, block, tap)

    return two_round_loop(add, add_parts)


# How a problem is cut.


@lru_cache(maxsize=1024)
def geometry(problem):
    """The numbers of GEOMETRY, and how many tasks there are before the sums are added."""
    L, last = lanes_for(problem.dtype.name), problem.layout == "NHWC"
    steps = problem.Q if last else ceil(problem.Q / L)
    row = problem.C * problem.W * problem.stride[0] * problem.dtype.itemsize if last else 1
    most = max(1, min(CHAIN // steps, target.cache_bytes(2) // BAND_SHARE // row))
    unit = tile_of(problem).rows
    rows = max(unit, most // unit * unit)
    bands = ceil(problem.P / rows)
    if last:
        images = ceil(problem.N * bands / MOST_PARTS)
    else:
        images = 1 if bands > 1 else max(1, min(CHAIN // (steps * problem.P), problem.N))
    groups = ceil(problem.N / images)
    blocks = ceil(problem.C / L) if last else problem.K
    block_tasks = max(1, min(blocks, ceil(TASKS / (groups * bands))))
    return (images, groups, rows, bands, blocks, block_tasks, min(blocks, TASKS)), groups * bands * block_tasks


def workspace_bytes(problem) -> int:
    (_, groups, _, bands, blocks, *_), _ = geometry(problem)
    lanes = lanes_for(problem.dtype.name) if problem.layout == "NHWC" else 1
    return groups * bands * blocks * problem.R * problem.S * lanes * problem.accumulate.itemsize


def cycles(problem) -> float:
    """Predicted, of multiplying."""
    (_, _, _, _, blocks, *_), _ = geometry(problem)
    steps = problem.Q if problem.layout == "NHWC" else ceil(problem.Q / lanes_for(problem.dtype.name))
    taps = problem.R * problem.S / target.multiply_adds_per_cycle()
    return 1.3 * blocks * ceil(problem.N / (1 + takes_two_images(problem))) * problem.P * steps * taps


@lru_cache(maxsize=1024)
def prepared(problem):
    """The record's fixed part, the compiled loop, the number of tasks that add sums and of those before them."""
    numbers, before = geometry(problem)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, *tile_of(problem)), numbers[-1], before
