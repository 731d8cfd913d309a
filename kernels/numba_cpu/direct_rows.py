"""Depthwise convolution of small windows, straight from x to y: no panel, and masks only where a row has its ends.

    x row   . | x x x x x x x x x x x x x x x x x x x | .     loads that lie inside the row are plain ones; those at its
              [ load ][ load ][ load ][masked]                ends are masked, and lanes outside are zero: the padding
              with stride 2 two neighbours give a vector of even and one of odd columns; the tap after next is the same
              vector moved by one lane

    for every plane, or band of one, of a task
        for every few vectors of columns                          weights in registers, where they fit
            for every row of x, from top to bottom                a row of padding is left out
                multiply it into the sums of the output rows that it belongs to: 3 x 3 has 3 of them
                the oldest of these is done: clamp and store; the others move on to the next row

Dilated, every d-th row of outputs from the first on reads every d-th row of x, so do those from the second on, ...:
each such comb is a plane without dilation. Columns a dilation apart are loads as any others.

Every row is loaded once for all rows of outputs (three times for the taps of a row). What is more than a clamp, other
activations and residuals, is done to y afterwards, row by row, so that its code takes no registers here.

Why beside sliding_window.py's tile: copying a plane into a panel takes longer than its window. Measured on two Zen 5
cores beside PyTorch's faster form: MobileNetV2's depthwise layers 1.4 to 2.4 times as fast; held to AVX2 1.2 to 2.4.
What was learned there:
- Tiles of 4 to 7 rows, whose weights LLVM spilled to memory for every plane and whose first and last rows of x were
  read by two tiles, took 1.4 (56 x 56) to 1.9 times (28 x 28) as long.
- On small planes what surrounds the rows counts. Masks, limits and fields of the call are made once for all planes of a
  task, since stores to y keep the compiler from doing so: 7 x 7 takes 74 instead of 97 cycles a plane.
- With 8 tasks a thread the last ones were taken from the other thread's share in every call, and with them the lines of
  y in its cache: 2 tasks a thread take 1 to 3 microseconds less.
- A row of 16 lanes takes 7 to 8 cycles for 9 multiply-adds, loads masked or not: lines of the cache crossed, not masks.
- 7 x 7 of ConvNeXt, whose weights come from the L1 cache: 28 x 28 50 microseconds instead of 69, 56 x 56 84 instead of
  104. Longer windows' sums fill no registers: 49 x 1 took 3 times as long as through a panel.
- Dilated 3 x 3, 960 channels of 33 x 33: 90 to 100 microseconds for dilations of 2 to 12, through a panel 240 to 380.
- Strips down a large plane touch another page in every row, too many for the processor to fetch ahead: from memory that
  took two to three times as long as bands of a few rows, strip after strip. Two Zen 4 cores, 3840 x 2160: 3 x 3 1.8 ms
  instead of 4.3, 5 x 5 2.6 instead of 3.9 to 4.9, 7 x 7 5.0 instead of 12 to 14; 1920 x 1080, 7 x 7, 1.0 instead of
  1.6. 4 rows are as good for 3 x 3 and 5 x 5, 10 and more worse. So do many planes that together come from memory: 64
  channels of 300 x 300 take 0.8 of the time, under 5 x 5 0.76 to 0.88, 48 of 272 x 272 0.64 to 0.81; held to AVX2 0.53
  to 0.58, 0.39 to 0.42 and 0.46 to 0.66. Smaller maps gained nothing, 8 images of 144 channels of 56 x 56 took 1.45.
- 16-bit numbers are widened as they are loaded, once for each tap column, and take 1.0 to 1.4 times float32's time
  (held to AVX2 0.9 to 1.6, 2.0 on maps of 7 x 7). Through a panel they took 1.4 to 8 times (576 channels of 14 x 14,
  stride 2: 14 microseconds instead of 90). A branch at the end of each row between a clamp and silu cost a third of
  that, so which of them it is was made a constant.
It wants masked loads, so it serves processors with AVX2 and more; NCHW, rows contiguous.
Source: Zhang, Franchetti and Low, High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018.
"""

from functools import lru_cache, partial
from itertools import chain, pairwise

from . import target
from .blocked_cuts import from_memory
from .compilation import compiled
from .epilogue import activated, clamped, finished_before_rounding
from .planes import fields, most_tasks, planes_loop
from .short_floats import as_numbers, as_stored, part_of_row, stored_kind, vector_of
from .sliding_window import store_first
from .threads import worker_span
from .tracing import (
    broadcast,
    choose,
    constant,
    first_lanes,
    fma,
    lanes_between,
    load,
    load_lanes,
    loop,
    minimum,
    select,
    shuffle,
    store,
    when,
    zeros,
)
from .vectors import lanes

MOST_TAPS, LONGEST_SIDE = 25, 7  # of a window, one or the other: a row of x is written out for each tap
MOST_VECTORS = 4  # of a row of outputs computed at once
FEWEST_ROWS = 8  # of a band of a plane: those above and below it are read twice
FEW_ROWS = 6  # of a band of a large plane, whose every row is a stream from memory
LARGE = 2  # what a thread reads and writes of one, in sizes of the L2 cache
LARGE_FROM_MEMORY = 0.25  # the same of each of many planes that together come from memory
CYCLES_PER_PLANE = 40.0
WHOLE, CUT, OUTSIDE = "whole", "cut", "outside"  # what a load's lanes are: inside the row all, some, none


def serves(problem) -> bool:
    """Is this the faster way, for arrays whose rows are contiguous?"""
    if target.vector_bytes() < 32 or problem.layout != "NCHW":
        return False
    narrow = target.vector_bytes() < 64 and lanes(problem.accumulate) > 2 * problem.W
    if problem.dtype != problem.accumulate and narrow:
        return False  # rows of which AVX2 cannot read a part (short_floats.part_of_row)
    small = problem.R * problem.S <= MOST_TAPS or max(problem.R, problem.S) <= LONGEST_SIDE
    small = small and fewest_rows(problem) <= problem.P
    if problem.stride[1] == 2:  # the one load beyond a tile's has half as many columns of either kind as it has lanes
        small = small and lanes(problem.accumulate) + 2 >= problem.S
    return small and (problem.stride == (1, 1) or (problem.stride == (2, 2) and problem.dilation == (1, 1)))


def takes(x, y, residual) -> bool:
    """Do these arrays' rows lie in memory without gaps between their numbers?"""
    item = x.itemsize
    return x.strides[3] == y.strides[3] == item and (residual is None or residual.strides[3] == item)


def live_rows(R, stride) -> int:
    """How many output rows an input row belongs to."""
    return -(-R // stride)


def fewest_rows(problem) -> int:
    """Of a plane or a band of one: for every remainder by the dilation those that are not done before the last one."""
    return max(1, live_rows(problem.R, problem.stride[0]) - 1) * problem.dilation[0]


def weights_fit(R, S, stride, vectors) -> bool:
    """Do all weights stay in registers, beside the sums, a row of x, the bias and two limits?"""
    return R * S + registers_beside_weights(R, S, stride, vectors) <= target.register_count()


def registers_beside_weights(R, S, stride, vectors) -> int:
    row = vectors if stride == 1 else 2 * vectors + 2
    return live_rows(R, stride) * vectors + row + 3


@lru_cache(maxsize=1024)
def row_vectors(problem):
    """How many vectors of a row of outputs are computed at once."""
    R, S, stride = problem.R, problem.S, problem.stride[0]
    most = [
        v for v in range(1, MOST_VECTORS + 1) if registers_beside_weights(R, S, stride, v) < target.register_count()
    ]
    enough = -(-problem.Q // lanes(problem.accumulate))
    return min(most or [1], key=lambda vectors: row_cycles(problem, min(vectors, enough)))


def load_columns(S, stride, dilation, vectors, L):
    """Where each load of a row begins, in columns from the tile's first."""
    if stride == 1:
        return [s * dilation + v * L for s in range(S) for v in range(vectors)]
    return [h * L for h in range(2 * vectors + (S > 2))]


def row_loads(problem, vectors):
    """(what each load of a row is, whether one tile holds the whole row). A tile of a longer row may lie at either end
    of it: what is cut at one is cut.
    """
    L, (left, _), W = lanes(problem.accumulate), problem.padding[1], problem.W
    columns = load_columns(problem.S, problem.stride[1], problem.dilation[1], vectors, L)
    to_last = (problem.Q - vectors * L) * problem.stride[1]
    if to_last >= 0:
        return tuple(WHOLE if c >= left and to_last + c - left + L <= W else CUT for c in columns), False

    def kind(start):
        if start >= 0 and start + L <= W:
            return WHOLE
        return OUTSIDE if start >= W or start + L <= 0 else CUT

    return tuple(kind(c - left) for c in columns), True


def build(dtype_name, R, S, stride, dilation_h, dilation_w, vectors, finishes_first, kinds, whole_row):
    """finishes_first: whether the result is finished before it is stored, which takes registers, and not afterwards.
    kinds: what the loads of a row are (row_loads); whole_row: whether one tile holds the whole row.
    """
    V = vector_of(dtype_name)
    stored = V.of(stored_kind(dtype_name))
    L, item = V.count, stored.item_bytes
    starts = load_columns(S, stride, dilation_w, vectors, L)
    reach = max(starts) + L
    live = live_rows(R, stride)
    in_registers = weights_fit(R, S, stride, vectors)

    def number_at(address):
        return as_numbers(load(stored.scalar, address), dtype_name)

    def tap_columns(loads):
        """For each tap column the vectors that it multiplies, from a row's loads, which are made as they are needed."""
        if stride == 1:
            for _ in range(S):
                yield [next(loads) for _ in range(vectors)]
            return
        pairs = [(next(loads), next(loads)) for _ in range(vectors)]
        pairs += [(last, last) for last in loads]
        sorted_columns = [[shuffle(a, b, range(odd, 2 * L, 2)) for a, b in pairs] for odd in (0, 1)]
        for s in range(S):
            columns, moved = sorted_columns[s % 2], s // 2
            if moved == 0:
                yield columns[:vectors]
            else:
                yield [shuffle(a, b, range(moved, moved + L)) for a, b in pairwise(columns)]

    def part(column, W):
        """read(here), of a load of which a part lies in the row."""
        if stored.kind == "i16":
            return part_of_row(stored, column, W)
        mask = lanes_between(V, column, 0, W)
        return lambda here: load_lanes(stored, here, mask)

    def loads_of(row, kinds, parts):
        """The loads of a row whose first column, which may be padding, has the address `row`."""
        for start, kind, read in zip(starts, kinds, parts):
            here = row + start * item
            if kind == WHOLE:
                yield as_numbers(load(stored, here), dtype_name)
            elif kind == CUT:
                yield as_numbers(read(here), dtype_name)
            else:
                yield None if stride == 1 else zeros(V, row)

    def begin(shared):
        """In scratch: room for a zero, and for the weights."""
        p0, count, top, left = shared.p0, shared.rows, shared.top, shared.left
        H, W, Q = shared.H, shared.W, shared.Q
        no_bias, taps = shared.scratch, shared.scratch + V.bytes
        store(no_bias, zeros(V.scalar, shared.scratch))
        kept = Q - (vectors - 1) * L
        plain, ends = shared.plain, shared.limits(V)

        def parts_of(first_column, kinds):
            return [what == CUT and part(first_column + at, W) for at, what in zip(starts, kinds)]

        parts_of_row = whole_row and parts_of(constant(left, 0) - left, kinds)

        def is_cut(v):
            return whole_row and v == vectors - 1

        def put(to, v, total):
            number = as_stored(total, dtype_name)
            if is_cut(v):
                store_first(to, number, kept)
            else:
                store(to, number)

        def take(address, v):
            raw = load_lanes(stored, address, first_lanes(V, kept)) if is_cut(v) else load(stored, address)
            return as_numbers(raw, dtype_name)

        def plane(x, w, y, residual, bias):
            numbers = [[number_at(w + shared.w_r * r + shared.w_s * s) for s in range(S)] for r in range(R)]
            if in_registers:
                weights = [[broadcast(V, number) for number in row] for row in numbers]
            else:
                for i, number in enumerate(chain.from_iterable(numbers)):
                    store(taps + i * V.item_bytes, number)
            start = broadcast(V, number_at(select(shared.has_bias.differs(0), bias, no_bias)))

            def weight(r, s):
                if in_registers:
                    return weights[r][s]
                return broadcast(V, load(V.scalar, taps + (r * S + s) * V.item_bytes))

            def strip(q, kinds, parts):
                """Every dilation_h-th row, from the first on, from the second on, ...: there taps are neighbours."""
                if dilation_h == 1:
                    comb(q, kinds, parts, p0, count)
                else:
                    some = minimum(count, dilation_h)
                    loop(some, lambda i: comb(q, kinds, parts, p0 + i, (count - i + (dilation_h - 1)) // dilation_h))
                if not finishes_first:
                    with when(plain.equals(False)):
                        loop(count, lambda j: others(q, j))

            def comb(q, kinds, parts, first, count):
                """`count` rows of outputs, `first` and every dilation_h-th after it."""
                x_first = x + (q * stride - left) * item
                h_first, y_first = first * stride - top, y + shared.y_p * first + q * item

                def add_rows(j, sums):
                    """Add to the sums of rows j, j - 1, ... the taps of the x rows that row j reads first."""
                    for a in range(stride):
                        if any(total and a + stride * m < R for m, total in enumerate(sums)):
                            h = h_first + (j * stride + a) * dilation_h
                            sums = choose((h >= 0) & (h < H), partial(add_row, a, h, sums), partial(list, sums))
                    return sums

                def add_row(a, h, sums):
                    sums = list(sums)
                    for s, columns in enumerate(tap_columns(loads_of(x_first + shared.x_h * h, kinds, parts))):
                        for m, totals in enumerate(sums):
                            r = a + stride * m
                            if totals and r < R:
                                sums[m] = [
                                    total if c is None else fma(c, weight(r, s), total)
                                    for c, total in zip(columns, totals)
                                ]
                    return sums

                def finish(j, totals):
                    row = j * dilation_h
                    if finishes_first:
                        totals = other(totals, residual + shared.residual_p * (first + row) + q * item)
                    else:
                        totals = [clamped(total, ends) for total in totals]
                    for v, total in enumerate(totals):
                        put(y_first + shared.y_p * row + v * stored.bytes, v, total)

                def one_row(j, carried):
                    *carried, done = add_rows(j, [[start] * vectors, *carried])
                    finish(j - (live - 1), done)
                    return carried

                carried = []
                for j in range(live - 1):
                    carried = add_rows(constant(q, j), [[start] * vectors, *carried])
                carried = loop(count - (live - 1), lambda j, carried: one_row(j + (live - 1), carried), carried)
                for j in range(live - 1):
                    *carried, done = add_rows(count + j, [None] * (j + 1) + carried)[j + 1 :]
                    finish(count + j - (live - 1), done)

            def others(q, j):
                """What is not a clamp of the sums, from memory."""
                to, more = y + shared.y_p * (p0 + j) + q * item, residual + shared.residual_p * (p0 + j) + q * item
                for v in range(vectors):
                    there = to + v * stored.bytes
                    put(there, v, other([take(there, v)], more + v * stored.bytes, v)[0])

            def other(totals, more, first=0):
                """Of vectors `first`, ... of a row; more: where the residual of these lies."""

                def with_residual():
                    return [total + take(more + v * stored.bytes, first + v) for v, total in enumerate(totals)]

                totals = choose(shared.has_residual.differs(0), with_residual, lambda: totals)
                return activated(totals, shared.kind, shared.low, shared.high, shared.slope)

            def strip_of_long_rows(i):
                q = minimum(i * (vectors * L), Q - vectors * L)
                first = q * stride - left
                inside = (first >= 0) & (first + reach <= W)
                choose(
                    inside,
                    lambda: strip(q, (WHOLE,) * len(starts), [None] * len(starts)),
                    lambda: strip(q, kinds, parts_of(first, kinds)),
                )

            if whole_row:
                strip(constant(x, 0), kinds, parts_of_row)
            else:
                loop((Q + (vectors * L - 1)) // (vectors * L), strip_of_long_rows)

        return plane

    return planes_loop(begin)


def worker_bytes(problem) -> int:
    """A vector with a zero in it, and the weights of a window."""
    return worker_span(target.vector_bytes() + problem.R * problem.S * problem.accumulate.itemsize)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    vectors = row_vectors(problem)
    planes, tasks, large = problem.N * problem.K, most_tasks(threads), is_large(problem, threads)
    rows = max(FEW_ROWS if large else FEWEST_ROWS, fewest_rows(problem))
    wanted = problem.P if large else -(-tasks // planes)
    bands = max(1, min(wanted, problem.P // rows))
    tasks = min(planes * bands, tasks)
    loop = compiled(
        build, problem.dtype.name, problem.R, problem.S, problem.stride[0], *problem.dilation, vectors,
        finished_before_rounding(problem), *row_loads(problem, vectors),
    )  # fmt: skip
    return fields(problem, tasks, bands, worker_bytes(problem), 1 if large else None), loop, tasks


def is_large(problem, threads) -> bool:
    """Is a plane to be computed in bands of few rows, so that memory is read and written in few streams?"""
    plane = (problem.H * problem.W + problem.P * problem.Q) * problem.dtype.itemsize
    large = LARGE_FROM_MEMORY if from_memory(problem) else LARGE * threads
    return plane > large * target.cache_bytes(2)


def cycles(problem) -> float:
    """Of all planes."""
    plane = problem.P * row_cycles(problem, row_vectors(problem))
    return problem.N * problem.K * (CYCLES_PER_PLANE + plane)


def row_cycles(problem, vectors) -> float:
    """Of one row of outputs: loads, shuffles and multiply-adds, two a cycle each, and its stores."""
    strips, stride = -(-problem.Q // (vectors * lanes(problem.accumulate))), problem.stride[0]
    loads = stride * vectors * (problem.S if stride == 1 else 2 + problem.S / 2)
    if not weights_fit(problem.R, problem.S, stride, vectors):
        loads += problem.R * problem.S / 2
    multiply_adds = vectors * problem.R * problem.S / target.multiply_adds_per_cycle()
    return strips * (max(loads, multiply_adds) + vectors + 2)
