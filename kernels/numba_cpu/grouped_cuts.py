"""How grouped.py shares a problem out: what fills a vector, tiles of outputs, strips of rows, tasks; what it takes."""

from dataclasses import dataclass
from functools import lru_cache

from . import target
from .microkernel import CALL_SECONDS, CLOCK
from .threads import lines, worker_span
from .vectors import lanes

MOST_VECTORS = 3  # of filters that share a channel's load
MOST_AT_ONCE = {16: 2, 32: 4}  # blocks whose panels are filled together, with so many registers
MOST_COLUMNS = 16  # of outputs at once, which a transposed store takes together

CYCLES_PER_TASK = 500

# Cycles of the Zen 3 that microkernel.CLOCK is of, where kernels compare as on the Zen 5 that these were fitted to.
COPY_CYCLES = {"NHWC": 0.95, "NCHW": 0.8}  # of a number of x
STORE_CYCLES = {"NHWC": 0.4, "NCHW": 0.25}  # of a number of y
# Of a number of y, where lanes left empty keep vectors from being stored in NCHW; by multiply-adds started per cycle.
LANE_CYCLES = {1: 9.0, 2: 6.0}
PACK_CYCLES = 0.9  # of a weight
EFFICIENCY = {16: 0.62, 32: 0.92}  # of the core's multiply-adds, with so many registers
EFFICIENCY_OF_ONE = 0.78  # where one starts per cycle, beside other kernels' there

# NCHW on two Zen 4 cores with AVX-512, 3 x 3, 2 to 64 groups of 2 to 32 channels, maps of 7 to 112, strides 1 and 2: of
# 115 layers the fastest of all kernels, or one within 5 % of it, is chosen for 110 single calls and 110 plans (101 and
# 93 with the numbers that two multiply-adds per cycle have, here and in winograd_cuts and blocked_cuts).


@dataclass(frozen=True)
class Tile:
    """What is compiled for: rows x columns outputs times `vectors` vectors of filters.

    groups: side by side in a vector, each of Cg channels and Kg filters; 1 where a group fills vectors by itself, and
    Cg and Kg are known only when running. step, apart: columns of the panel from output to output and tap to tap.
    whole: no lane is left empty.
    """

    rows: int
    columns: int
    vectors: int
    groups: int
    Cg: int
    Kg: int
    S: int
    step: int
    apart: int
    whole: bool
    layout: str


def groups_side_by_side(problem) -> int:
    """How many groups' filters, and channels, one vector holds."""
    W = lanes(problem.accumulate)
    return max(1, min(W // max(problem.Kg, problem.Cg), problem.groups))


def vectors_and_parts(problem):
    """Vectors of filters of a tile, and how many such parts a block has."""
    total = -(-groups_side_by_side(problem) * problem.Kg // lanes(problem.accumulate))
    parts = -(-total // MOST_VECTORS)
    return -(-total // parts), parts


@dataclass(frozen=True)
class Cut:
    """bands: of rows, times block_tasks: ranges of blocks, make the tasks of an image. at_once: blocks whose panels are
    filled together, for one strip of a band after the other.
    """

    bands: int
    block_tasks: int
    strips: int
    at_once: int


@lru_cache(maxsize=1024)
def cut_of(problem, threads, packed) -> Cut:
    """The cut whose thread with most to do has least. packed: whether each task need not pack its weights first."""
    return min(possible_cuts(problem, threads), key=lambda cut: cut_cycles(problem, threads, packed, cut))


def possible_cuts(problem, threads):
    blocks = block_count(problem)
    few = sorted({1, 2, threads, 2 * threads, -(-threads // problem.N)})
    for bands in (n for n in few if n <= min(problem.P, 2 * threads)):
        for block_tasks in (n for n in few if n <= min(blocks, 2 * threads) and not shares_groups(problem, n)):
            if problem.layout == "NCHW":
                yield Cut(bands, block_tasks, strip_count(problem, bands, 1), 1)
            else:
                at_once = min(-(-blocks // block_tasks), most_at_once(problem))
                yield Cut(bands, block_tasks, strip_count(problem, bands, at_once), at_once)


def shares_groups(problem, block_tasks) -> bool:
    """Would two tasks write the same groups? The last block begins early enough to end with the groups, and what the
    block before it wrote is written again, which must be the same task's: two at once might add a residual twice.
    """
    overlapping = problem.groups % groups_side_by_side(problem) != 0
    blocks = block_count(problem)
    return overlapping and blocks - blocks * (block_tasks - 1) // block_tasks < 2 <= block_tasks


def most_at_once(problem) -> int:
    """Blocks of which the panels for one row of outputs fit half of the L2 cache, and no more than a few."""
    rows = (problem.R - 1) * problem.dilation[0] + problem.stride[0]
    fitting = target.cache_bytes(2) // 2 // (rows * row_bytes(problem))
    return max(1, min(fitting, MOST_AT_ONCE[target.register_count()]))


def strip_count(problem, bands, at_once) -> int:
    """Strips of a band whose panels stay in half of the L2 cache."""
    halo, rows = (problem.R - 1) * problem.dilation[0] + 1, -(-problem.P // bands)
    fitting = target.cache_bytes(2) // 2 // (at_once * row_bytes(problem)) - halo
    return -(-rows // max(1, min(rows, fitting // problem.stride[0] + 1)))


def cut_cycles(problem, threads, packed, cut) -> float:
    """Predicted, of the thread with most to do."""
    tasks = problem.N * cut.bands * cut.block_tasks
    rows, blocks = -(-problem.P // cut.bands), -(-block_count(problem) // cut.block_tasks)
    weights = 0 if packed else PACK_CYCLES * vector_filters(problem) * problem.reduction
    read = min(problem.H + 2, rows * problem.stride[0] + cut.strips * (problem.R - 1) * problem.dilation[0])
    multiply = tiles_cycles(problem, *tile_size(problem, rows // cut.strips)) * rows / problem.P
    multiply /= efficiency()
    copy = COPY_CYCLES[problem.layout] * read * problem.W * groups_side_by_side(problem) * problem.Cg
    return -(-tasks // threads) * (CYCLES_PER_TASK + blocks * (multiply + copy + weights))


def efficiency() -> float:
    return EFFICIENCY_OF_ONE if target.multiply_adds_per_cycle() == 1 else EFFICIENCY[target.register_count()]


def vector_filters(problem) -> int:
    """Filters of a block, filled up to whole vectors."""
    vectors, parts = vectors_and_parts(problem)
    return vectors * parts * lanes(problem.accumulate)


@lru_cache(maxsize=1024)
def tile_of(problem, threads, packed) -> Tile:
    cut, side_by_side = cut_of(problem, threads, packed), groups_side_by_side(problem)
    several = side_by_side > 1
    rows, columns = tile_size(problem, problem.P // cut.bands // cut.strips)
    return Tile(
        rows, columns, vectors_and_parts(problem)[0], side_by_side, problem.Cg if several else 0,
        problem.Kg if several else 0, problem.S, problem.stride[1], problem.dilation[1],
        fills_vectors(problem), problem.layout,
    )  # fmt: skip


def fills_vectors(problem) -> bool:
    """Is no lane of a block's vectors left empty?"""
    return vector_filters(problem) == groups_side_by_side(problem) * problem.Kg


def tile_size(problem, fewest_rows):
    """(rows, columns) of outputs whose sums fit the registers, beside a row of weights if there are enough.

    fewest_rows: of a strip.
    """
    vectors, _ = vectors_and_parts(problem)
    weights = min(problem.S * vectors, target.register_count() // 4)
    most = max(1, (target.register_count() - weights - 2) // vectors)
    sizes = [
        (rows, columns)
        for rows in (1, 2)
        for columns in range(1, min(MOST_COLUMNS, problem.Q, most // rows) + 1)
        if rows <= max(fewest_rows, 1)
    ]
    return min(sizes, key=lambda size: tiles_cycles(problem, *size))


def tiles_cycles(problem, rows, columns) -> float:
    """Predicted, of one block's outputs."""
    vectors, parts = vectors_and_parts(problem)
    multiply_adds = rows * columns * vectors * problem.S
    read = min(columns * problem.S, (columns - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1)
    loads = rows * read + problem.S * vectors
    waiting = 4.0 * problem.S  # each sum's chain of multiply-adds
    step = max(multiply_adds / target.multiply_adds_per_cycle() + 0.1 * loads, waiting)
    tiles = -(-problem.P // rows) * -(-problem.Q // columns) * parts
    return tiles * (step * problem.R * problem.Cg + 25.0 + 2.0 * rows * columns * vectors)


def block_count(problem) -> int:
    return -(-problem.groups // groups_side_by_side(problem))


def pitch(problem) -> int:
    """Bytes from pixel to pixel of a panel: whole vectors, where channels fill more than one."""
    W, channels = lanes(problem.accumulate), groups_side_by_side(problem) * problem.Cg
    return (channels if channels <= W else -(-channels // W) * W) * problem.accumulate.itemsize


def panel_columns(problem) -> int:
    return (problem.Q - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1


def row_bytes(problem) -> int:
    """With a line between rows, which would share lines of the L1 cache if they lay a power of two apart."""
    return lines(panel_columns(problem) * pitch(problem)) + 64


@lru_cache(maxsize=1024)
def geometry(problem, threads, packed):
    """The numbers of GEOMETRY, and how many tasks there are."""
    W, item, tile = lanes(problem.accumulate), problem.accumulate.itemsize, tile_of(problem, threads, packed)
    cut, blocks = cut_of(problem, threads, packed), block_count(problem)
    vectors, parts = vectors_and_parts(problem)
    band = -(-problem.P // cut.bands)
    strip = -(-band // cut.strips)
    panel_rows = (strip - 1) * problem.stride[0] + (problem.R - 1) * problem.dilation[0] + 1
    beyond = (W + 1) * pitch(problem) + target.vector_bytes()  # what filling the last row, and loading, runs over
    block_bytes = lines(panel_rows * row_bytes(problem) + beyond) + 64
    weights = 0 if packed else -(-blocks // cut.block_tasks) * vector_filters(problem) * problem.reduction * item
    scratch_at = lines(parts * vectors * W * item)
    weights_at = scratch_at + lines(tile.rows * tile.columns * vectors * W * item)
    panel_at = weights_at + weights
    side_by_side = groups_side_by_side(problem)
    numbers = (
        int(packed), cut.bands, cut.strips, cut.block_tasks, blocks, cut.at_once, parts, side_by_side * problem.Kg,
        side_by_side * problem.Cg, pitch(problem), panel_columns(problem), row_bytes(problem), block_bytes, scratch_at,
        weights_at, panel_at, worker_span(panel_at + cut.at_once * block_bytes),
    )  # fmt: skip
    return numbers, problem.N * cut.bands * cut.block_tasks


def seconds(problem, device, packed) -> float:
    threads = device.threads
    stored = problem.N * problem.K * problem.P * problem.Q / threads
    cycles = cut_cycles(problem, threads, packed, cut_of(problem, threads, packed))
    cycles += stored * STORE_CYCLES[problem.layout]
    if problem.layout == "NCHW" and not fills_vectors(problem):
        cycles += stored * LANE_CYCLES[target.multiply_adds_per_cycle()]
    return CALL_SECONDS + cycles / CLOCK
