"""A dilated problem's images sorted by size: where its sides are no multiples of the dilation, some are smaller.

    28 rows, dilation 18      rows 0 .. 9 and, 18 further, 18 .. 27 are 10 images of 2 rows; rows 10 .. 17 are 8 of 1

Images of one size are a part: the same x and y from their first pixel to their last, of which only so many images are
computed. An image of one row meets one row of the window, so its part's window has one, and no dilation; what is left
of 3 x 3 for single pixels is `blocked`'s, a 1x1. With images of 2 and 1, 16 products are 9, 3, 3 and 1.

A single call whose transformed weights would be many fresh pages (convlib's own scratch memory is kept up to a size)
takes the channels block by block, each added to the sums of those before.

Measured on two Zen 4 cores, plans, by size and as one part: 256 channels of 28 x 28 at dilation 18 in 1.4 and 1.9 ms,
512 -> 256 at 24 in 2.1 and 6.5, 256 of 33 x 33 at 24 in 1.7 and 3.3; held to AVX2 1.5 and 2.1, 2.6 and 6.8, 1.9 and
3.5. A single call of 2048 -> 256 channels of 33 x 33 at dilation 12 took 66 ms and takes 23 by blocks of channels, at 6
84 and 25.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import ceil, prod
from types import ModuleType

from ...problem import ConvProblem
from . import blocked, winograd, winograd_f2, winograd_f4
from .threads import lines
from .winograd_cuts import MOST_WORKSPACE

ALL = slice(None)
TILES = {4: winograd_f4, 2: winograd_f2}
CHANNELS = 16  # of a block, a multiple of these
# Of several parts each finds its caches full of another's numbers, and w, of which each takes a bit, far away (two
# Zen 4 cores, 256 to 512 channels of 28 x 28 to 65 x 65). Weights packed first: 0.87 to 0.9 of a single call's time.
PART_SECONDS = 10e-6  # to begin one
AMONG_OTHERS, PACKED_AMONG_OTHERS = 1.2, 6.0  # times as long as predicted take a part, and packing its weights


@dataclass(frozen=True, slots=True)
class SomeImages(ConvProblem):
    """A dilated problem of which only the first images, so many down and across, are computed."""

    images: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Stretch:
    """Images of one size, down or across: their pixels in x and y, and what they need of the window."""

    pixels: slice
    length: int
    images: int
    taps: slice
    dilation: int
    padding: tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Images of one size, of all channels or of some. pixels: rows and columns in x and y; taps: rows and columns of w.

    seconds: predicted, with packed weights; pack_seconds: what a single call takes longer; packs_first: whether that
    packs them. blocks: the part by blocks of channels, if a single call is to take it so.
    """

    problem: ConvProblem
    kernel: ModuleType
    pixels: tuple[slice, slice]
    taps: tuple[slice, slice]
    channels: slice
    packed_bytes: int
    workspace_bytes: int
    one_call_bytes: int
    packs_first: bool
    seconds: float
    pack_seconds: float
    blocks: tuple = ()

    def pack(self, device, w, packed):
        self.kernel.pack(self.problem, device, w[(ALL, self.channels, *self.taps)], packed)

    def run(self, device, x, w, y, bias, residual, workspace):
        """w: packed, or as it is, with `one_call_bytes` of workspace."""
        x, y = x[(ALL, ALL, *self.pixels)], y[(ALL, ALL, *self.pixels)]
        residual = None if residual is None else residual[(ALL, ALL, *self.pixels)]
        if w.ndim == 1 or not self.blocks:
            self.multiply(device, x, w, y, bias, residual, workspace)
            return
        count = sums_bytes(self.problem)
        sums = workspace[: y.size * y.itemsize].view(y.dtype).reshape(y.shape)
        for i, block in enumerate(self.blocks):  # never to where it reads from: neighbouring stores may overlap
            to = sums if (len(self.blocks) - i) % 2 == 0 else y
            block.multiply(device, x, w, to, None if i else bias, residual, workspace[count:])
            residual = to

    def multiply(self, device, x, w, y, bias, residual, workspace):
        if w.ndim > 1 and self.packs_first:
            self.pack(device, w, workspace[: self.packed_bytes])
            w, workspace = workspace[: self.packed_bytes], workspace[self.packed_bytes :]
        elif w.ndim > 1:
            w = w[(ALL, self.channels, *self.taps)]
        self.kernel.run(self.problem, device, x[:, self.channels], w, y, bias, residual, workspace)


def made_part(problem, kernel, device, packs_first, *where) -> Part:
    """packs_first: whether a single call packs the weights even where its kernel could do without."""
    packed, workspace = lines(kernel.packed_bytes(problem, device)), kernel.workspace_bytes(problem, device)
    needed, pack_seconds = None, blocked.seconds_to_pack
    if kernel is not blocked:
        needed, pack_seconds = kernel.one_call_bytes(problem, device), kernel.pack_seconds
    packs_first = packs_first or needed is None
    return Part(
        problem, kernel, *where, packed, workspace, packed + workspace if packs_first else needed, packs_first,
        kernel.predicted_seconds(problem, device), pack_seconds(problem, device),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def parts(problem, device, packed=True) -> tuple[Part, ...]:
    """All images as one part, or as parts of equal ones where that is predicted to be faster, for a plan (`packed`) or
    for a single call.
    """
    everything = [part_of(problem, (whole_axis(problem, 0), whole_axis(problem, 1)), device, packs_first=False)]
    by_size = [
        part_of(problem, (down, across), device, packs_first=True)
        for down in stretches(problem, 0)
        for across in stretches(problem, 1)
    ]
    return tuple(min(everything, by_size, key=lambda some: seconds(some, packed)))


def seconds(some, packed=True) -> float:
    if len(some) == 1:
        return some[0].seconds + (0.0 if packed else some[0].pack_seconds)
    run, pack = sum(part.seconds for part in some), sum(part.pack_seconds for part in some)
    return AMONG_OTHERS * run + len(some) * PART_SECONDS + (0.0 if packed else PACKED_AMONG_OTHERS * pack)


def whole_axis(problem, axis) -> Stretch:
    size, taps, outputs = ((problem.H, problem.R, problem.P), (problem.W, problem.S, problem.Q))[axis]
    dilation = problem.dilation[axis]
    return Stretch(ALL, size, min(dilation, outputs), slice(0, taps), dilation, problem.padding[axis])


def stretches(problem, axis) -> list[Stretch]:
    """Images of two sizes, if there are such and y is as large as x."""
    size, taps = ((problem.H, problem.R), (problem.W, problem.S))[axis]
    dilation, middle = problem.dilation[axis], taps // 2
    pixels, larger = divmod(size, dilation)
    even = taps % 2 == 1 and problem.padding[axis] == (middle * dilation, middle * dilation)
    if not (even and taps > 1 and dilation > 1 and pixels and larger):
        return [whole_axis(problem, axis)]

    def stretch(first, images, pixels):
        length, kept = (pixels - 1) * dilation + images, min(middle, pixels - 1)
        here, window = slice(first, first + length), slice(middle - kept, middle + kept + 1)
        if not kept:
            return Stretch(here, length, 1, window, 1, (0, 0))
        return Stretch(here, length, images, window, dilation, (kept * dilation, kept * dilation))

    return [stretch(0, larger, pixels + 1), stretch(larger, dilation - larger, pixels)]


def part_of(problem, both, device, packs_first) -> Part:
    """both: stretches, down and across."""
    down, across = both
    R, S = down.taps.stop - down.taps.start, across.taps.stop - across.taps.start
    changed = {
        "H": down.length, "W": across.length, "R": R, "S": S, "dilation": (down.dilation, across.dilation),
        "padding": (down.padding, across.padding),
    }  # fmt: skip
    part = replace(problem, **changed)
    pixels, taps = (down.pixels, across.pixels), (down.taps, across.taps)
    if (R, S) == (1, 1):
        return made_part(part, blocked, device, packs_first, pixels, taps, ALL)
    of_problem = {field.name: getattr(part, field.name) for field in fields(ConvProblem)}
    some = SomeImages(**of_problem, images=(down.images, across.images))
    kernel = TILES[tile_side(some, device)]
    return by_channels(made_part(some, kernel, device, packs_first, pixels, taps, ALL), device)


@lru_cache(maxsize=1024)
def tile_side(problem, device) -> int:
    """Of the output tiles: 4, or 2 where that is faster."""
    possible = [m for m in TILES if not winograd.why_not(m, undilated(problem), device)]
    return min(possible, key=lambda m: winograd.predicted_seconds(m, problem, device))


def undilated(problem):
    """A problem with the same window, which winograd.py can run if it can run this one's images."""
    return replace(problem, dilation=(1, 1))


def sums_bytes(problem) -> int:
    return lines(prod(problem.y_shape) * problem.dtype.itemsize)


def by_channels(part, device) -> Part:
    """With blocks of channels, if a single call would pack too much at once."""
    problem, packed = part.problem, part.packed_bytes
    if packed <= MOST_WORKSPACE or problem.groups > 1 or not part.packs_first:
        return part
    step = ceil(problem.C / ceil(packed / MOST_WORKSPACE) / CHANNELS) * CHANNELS
    blocks = []
    for first in range(0, problem.C, step):
        end, adds = min(first + step, problem.C), first > 0
        own = replace(
            problem, C=end - first, activation=problem.activation if end == problem.C else None,
            has_bias=problem.has_bias and not adds, has_residual=problem.has_residual or adds,
        )  # fmt: skip
        blocks.append(made_part(own, part.kernel, device, True, part.pixels, part.taps, slice(first, end)))
    count = sums_bytes(problem) + max(block.one_call_bytes for block in blocks)
    return replace(part, blocks=tuple(blocks), one_call_bytes=count)
