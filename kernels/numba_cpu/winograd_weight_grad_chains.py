"""The tiles of the CPU weight gradient by Winograd, and the chains in which their products are summed.

Both follow from the problem alone, never from threads or caches: they decide about the result's bits, and its error.
"""

from math import ceil, log2

from .winograd_matrices import Axis, Tile

TILE = Tile(Axis(3, 4), Axis(3, 4))  # 3 x 3 results, the gradients, of windows of 4 x 4 numbers of grad_y
SIDE = 4  # of a tile of grad_y
CHAIN = 512  # tiles at most; of 256, transforming the sums back took 2 % of the time


def tiles_of(problem):
    """Rows of tiles and tiles in a row of grad_y, and tiles of all images."""
    rows, columns = ceil(problem.P / SIDE), ceil(problem.Q / SIDE)
    return rows, columns, problem.N * rows * columns


def chains_of(problem) -> int:
    """A power of two, so that parts of equal numbers of chains can be made."""
    return 2 ** ceil(log2(max(1, tiles_of(problem)[2] / CHAIN)))


def longest_chain(problem) -> int:
    """In tiles."""
    return ceil(tiles_of(problem)[2] / chains_of(problem))
