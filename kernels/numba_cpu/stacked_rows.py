"""Depthwise convolution of maps so narrow that several rows of theirs fit one vector: two of 7 x 7 into 16 lanes.

    y        [ rows 0 and 1 ][ rows 2 and 3 ][ rows 4 and 5 ][ row 6 ]         each a vector of 14 sums
    x        a load begins at any row and tap column; lanes that would come from a neighbouring row are masked:

    tap s = 0   [ . a b c d e f . h i j k l m ]          x rows   a b c d e f g
    tap s = 1   [ a b c d e f g h i j k l m n ]                   h i j k l m n
    tap s = 2   [ b c d e f g . i j k l m n . ]

With stride 2 a shuffle of two rows, the one after next to each other, takes the place of a load: 14 x 14 to 7 x 7.

The plane is written out: for every row that a load may begin at and every tap column, the vector is made once and
multiplied into all sums that it belongs to. Sizes are constants, so rows of padding cost nothing and masks are known.

Measured on two Zen 5 cores, cycles a plane on one of them: 3 x 3 on 7 x 7 50, direct_rows.py 74, since it fills 7 of 16
lanes; 14 x 14 to 7 x 7 with stride 2 53 instead of 93; 5 x 5 on 7 x 7 95 instead of 172.
Where weights are too many for registers but all sums are not, tap columns are the outer loop: a column of weights is
kept while it is wanted. 5 x 5 on 14 x 14 takes 21 microseconds instead of 28 so (672 channels), 7 x 7 22 instead of 27.
Of maps of which a row fills a vector the plane is written out as well, for its rows of padding: two threads take 33
microseconds instead of 39 for 672 channels of 14 x 14 under 5 x 5, 26 instead of 36 for 384 under 7 x 7.
It wants maps whose rows follow each other without a gap, NCHW, for 16-bit types AVX-512; with stride 1 as many columns
of outputs as of inputs, with stride 2 rows of x no longer than a vector.
Source: as direct_rows.py, Zhang, Franchetti and Low 2018.
"""

from functools import cache, lru_cache
from itertools import accumulate, product

from . import target
from .compilation import compiled
from .epilogue import activated, clamped, finished_before_rounding
from .planes import fields, masks, most_tasks, planes_loop
from .short_floats import as_numbers, as_stored, stored_kind, vector_of
from .threads import worker_span
from .tracing import (
    broadcast,
    choose,
    constant,
    constant_mask,
    fma,
    hidden,
    load,
    load_lanes,
    select,
    shuffle,
    store,
    store_lanes,
    when,
    zeros,
)
from .vectors import lanes

MOST_MULTIPLY_ADDS = 200  # of one plane: it is written out
MOST_OF_ONE_ROW = 700
CYCLES_PER_PLANE = 15.0


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for maps without gaps between their rows?"""
    if not masks(problem) or problem.layout != "NCHW":
        return False
    if problem.stride == (1, 1):
        fits = problem.Q == problem.W
    else:
        fits = problem.stride == (2, 2) and problem.dilation == (1, 1) and lanes(problem.accumulate) >= problem.W
    most = MOST_MULTIPLY_ADDS if stacked(problem) > 1 else MOST_OF_ONE_ROW
    return fits and stacked(problem) > 0 and multiply_adds(problem) <= most


def stacked(problem) -> int:
    """How many rows of outputs one vector holds; with stride 2 no more than two, which one shuffle can sort."""
    fitting = lanes(problem.accumulate) // problem.Q
    return fitting if problem.stride == (1, 1) else min(fitting, 2)


def multiply_adds(problem) -> int:
    """Of one plane, in vectors."""
    return -(-problem.P // stacked(problem)) * problem.R * problem.S


def takes(x, y, residual) -> bool:
    """Do these arrays' maps lie in memory without gaps?"""
    return without_gaps(x) and without_gaps(y) and (residual is None or without_gaps(residual))


def without_gaps(maps) -> bool:
    return maps.strides[2:] == (maps.shape[3] * maps.itemsize, maps.itemsize)


def build(dtype_name, R, S, stride, dilation_h, dilation_w, rows, H, W, P, Q, top, left, finishes_first):
    """finishes_first: whether the result is finished before it is stored, which takes registers, and not afterwards."""
    V = vector_of(dtype_name)
    stored = V.of(stored_kind(dtype_name))
    L, item = V.count, stored.item_bytes
    units, step = -(-P // rows), rows * stride
    in_registers = R * S + -(-R // step) + 2 * stride + 4 <= target.register_count()
    by_columns = not in_registers and units + R + 3 <= target.register_count()

    def place_of(lane, h, s):
        """The row and column of x that a lane of the vector at row h and tap column s is; None outside the plane."""
        row, column = h + lane // Q * stride, lane % Q * stride + s * dilation_w - left
        return (row, column) if lane < rows * Q and 0 <= row < H and 0 <= column < W else None

    def take(address, wanted=None):
        """The vector at `address`, or those of its lanes that are wanted."""
        if wanted is None:
            return as_numbers(load(stored, address), dtype_name)
        return as_numbers(load_lanes(stored, address, constant_mask(V, address, wanted)), dtype_name)

    def neighbours(x, h, s):
        first, wanted = h * W + s * dilation_w - left, [place_of(lane, h, s) for lane in range(L)]
        whole = all(wanted[: rows * Q]) and first >= 0 and first + L <= H * W
        return take(x + first * item, None if whole else wanted)

    def whole_row(x, h):
        if not 0 <= h < H:
            return zeros(V, x)
        return take(x + h * W * item, None if h * W + L <= H * W else [lane < W for lane in range(L)])

    def every_second(x, h, s):
        places = [place_of(lane, h, s) for lane in range(L)]
        order = [(row - h) // stride * L + column for row, column in (place or (h, 0) for place in places)]
        picked = shuffle(whole_row(x, h), whole_row(x, h + stride), order)
        return picked if all(places[: rows * Q]) else select(constant_mask(V, x, places), picked, zeros(V, x))

    column_at = neighbours if stride == 1 else every_second

    def put(y, u, total):
        """A vector's last lanes may write where the next one will, but not beyond the plane."""
        first, number = u * rows * Q, as_stored(total, dtype_name)
        if first + L <= P * Q:
            store(y + first * item, number)
        else:
            store_lanes(y + first * item, number, constant_mask(V, y, kept_lanes(u)))

    def kept_lanes(u):
        return [lane < min(rows, P - u * rows) * Q for lane in range(L)]

    def tap_row(h, u):
        """Which row of taps multiplies the vector at row h for the sums u; None where none does."""
        r, between = divmod(h + top - step * u, dilation_h)
        return r if not between and 0 <= r < R else None

    def vectors_of_x():
        """(row, tap column, {sums: tap row}) of each vector of x, row by row or tap column by tap column."""
        heights, columns = range(-top, step * (units - 1) + (R - 1) * dilation_h + 1 - top), range(S)
        places = [(h, s) for s in columns for h in heights] if by_columns else product(heights, columns)
        for h, s in places:
            reached = {u: tap_row(h, u) for u in range(units) if tap_row(h, u) is not None}
            if reached and any(place_of(lane, h, s) for lane in range(L)):
                yield h, s, reached

    def when_done(vectors):
        """For each vector of sums which vector of x is its last, and not before its predecessor's: see `put`."""
        last = {u: i for i, (_, _, reached) in enumerate(vectors) for u in reached}
        return list(accumulate((last.get(u, -1) for u in range(units)), max))

    def begin(shared):
        """In scratch: room for the weights of a window, and a zero behind them."""
        taps = shared.scratch
        no_bias = taps + R * S * V.item_bytes
        store(no_bias, zeros(V.scalar, no_bias))
        plain, ends = shared.plain, shared.limits(V)
        in_order = shared.w_s.equals(item) & shared.w_r.equals(S * item)

        def plane(x, w, y, residual, bias):
            start = broadcast(V, number_at(select(shared.has_bias.differs(0), bias, no_bias)))
            weight = weights_in_memory(w) if not in_registers and not by_columns else weights_in_registers(w)
            vectors, sums = list(vectors_of_x()), dict.fromkeys(range(units), start)
            done = when_done(vectors)

            def finish_those_of(i):
                for u in range(units):
                    if done[u] == i:
                        finish(y, residual, u, sums.pop(u))

            finish_those_of(-1)
            for i, (h, s, reached) in enumerate(vectors):
                column = column_at(x, h, s)
                for u, r in reached.items():
                    sums[u] = fma(column, weight(r, s), sums[u])
                finish_those_of(i)

            if not finishes_first:
                with when(plain.equals(False)):
                    for u in range(units):
                        finish_stored(y, residual, u)

        def number_at(address):
            return as_numbers(load(stored.scalar, address), dtype_name)

        def weights_in_registers(w):
            """Placed where each is wanted first, and kept."""

            @cache
            def weight(r, s):
                return broadcast(V, number_at(w + shared.w_r * r + shared.w_s * s))

            return weight

        def weights_in_memory(w):
            placed = in_order if stored == V else constant(in_order, False)
            with when(placed.equals(False)):
                for r in range(R):
                    for s in range(S):
                        store(taps + (r * S + s) * V.item_bytes, number_at(w + shared.w_r * r + shared.w_s * s))
            table = select(placed, w, taps)
            return lambda r, s: broadcast(V, load(V.scalar, hidden(table) + (r * S + s) * V.item_bytes))

        def finish(y, residual, u, total):
            put(y, u, other(total, residual, u) if finishes_first else clamped(total, ends))

        def finish_stored(y, residual, u):
            """Writes no lane of the next vector, which has been stored already."""
            here, kept = y + u * rows * Q * item, kept_lanes(u)
            total = other(take(here, kept), residual, u)
            store_lanes(here, as_stored(total, dtype_name), constant_mask(V, y, kept))

        def other(total, residual, u):
            """What is not a clamp of the sums."""
            more = residual + u * rows * Q * item
            total = choose(shared.has_residual.differs(0), lambda: [total + take(more, kept_lanes(u))], lambda: [total])
            return activated(total, shared.kind, shared.low, shared.high, shared.slope)[0]

        return plane

    return planes_loop(begin)


def worker_bytes(problem) -> int:
    return worker_span((problem.R * problem.S + 1) * problem.accumulate.itemsize)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    tasks = min(problem.N * problem.K, most_tasks(threads))
    (top, _), (left, _) = problem.padding
    loop = compiled(
        build, problem.dtype.name, problem.R, problem.S, problem.stride[0], *problem.dilation, stacked(problem),
        problem.H, problem.W, problem.P, problem.Q, top, left, finished_before_rounding(problem),
    )  # fmt: skip
    return fields(problem, tasks, 1, worker_bytes(problem)), loop, tasks


def cycles(problem) -> float:
    """Of all planes: two multiply-adds a cycle, or one load or shuffle."""
    loads = (problem.H + problem.R) * problem.S // problem.stride[0]
    busy = max(multiply_adds(problem) / target.multiply_adds_per_cycle(), loads)
    return problem.N * problem.K * (CYCLES_PER_PLANE + busy)
