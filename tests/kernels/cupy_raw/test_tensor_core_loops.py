"""The main loops of the tensor cores' kernels, as machine code: every pass, tile, type and way in which arrays lie.

A loop's share is what report.py calls its issue bound: of the time in which its instructions issue and shared memory
answers, how much the tensor cores multiply. It is 85 %, or what a tile of its size leaves by the bytes that it stores
and loads in shared memory. On sm_90, whose tensor cores are faster; sm_80 has 1.3 times as long for each
multiplication, and the same loops to a few instructions, of which those that find pixels anew in each stage, the weight
gradients', are held too. A way that gathers floats from whole stages of one tap has fewer instructions than one that
does not; from channels and filters that are no whole tiles, they are gathered into the largest alone.
"""

import pytest

from convlib import compiling, device, report
from convlib.kernels.cupy_raw import tensor_core, tensor_core_weight_grad
from convlib.kernels.cupy_raw.tensor_core_tile import chunk_of, depth_of, stages_held
from convlib.problem import make_problem, named_dtype
from tests.kernels.cupy_raw.tensor_core_cases import TYPES

BAR = 0.85
# Forward: x's channels, window and layout. Whole chunks of channels are copied; of 258 the last chunk is not whole; of
# 3, and of 2, taps are inner; of 11 x 11 they have no bits, of 31 x 31 they are runs.
FORWARD = {
    "copied": (256, 3, "NHWC"),
    "gathered": (256, 3, "NCHW"),
    "gathered_odd": (258, 3, "NCHW"),
    "taps": (3, 7, "NCHW"),
    "more_taps": (3, 11, "NCHW"),
    "runs": (1, 31, "NCHW"),
}
# Windows of more taps than there are bits take too many instructions at 128 x 32, as tensor_core.cu says; a weight
# gradient of three products, all gathered, a few.
LOW = {("float16", "more_taps", (128, 32)): 0.55, ("3xtf32", "taps_gathered", (64, 64)): 0.83}
# The smallest tiles of a weight gradient, of warps of 32 x 32, round and find pixels for few mma: they have so much of
# what shared memory leaves, and where floats are gathered so much, as tensor_core_weight_grad.cu says.
OF_SMALLEST = {80: (0.94, 0.78), 90: (1.0, 0.93)}
# Weight gradients: channels, filters, window, layout and maps. Of maps of 15 x 15 pixels do not lie in
# whole chunks.
WEIGHT_GRAD = {
    "channels": (256, 256, 3, "NHWC", (14, 14)),
    "pixels": (256, 256, 1, "NCHW", (16, 16)),
    "pixels_of_y": (256, 256, 3, "NCHW", (16, 16)),
    "channels_of_x": (256, 258, 3, "NHWC", (14, 14)),
    "gathered": (256, 256, 3, "NCHW", (15, 15)),
    "gathered_odd": (258, 258, 3, "NCHW", (15, 15)),
    "taps": (3, 256, 7, "NCHW", (16, 16)),
    "taps_channels": (3, 256, 7, "NHWC", (14, 14)),
    "taps_gathered": (3, 258, 7, "NCHW", (15, 15)),
}


def problem_of(way, type_, pass_):
    if pass_ == "forward":
        channels, window, layout = FORWARD[way]
        filters, (H, W) = 256, (14, 14)
    else:
        channels, filters, window, layout, (H, W) = WEIGHT_GRAD[way]
    channels = min(channels, 2) if channels == 3 and "tf32" in type_ else channels
    precision = TYPES[type_].get("precision")
    keywords = {"padding": window // 2, "layout": layout, "precision": precision, "pass_": pass_}
    x = (8, H, W, channels) if layout == "NHWC" else (8, channels, H, W)
    dtype = named_dtype("float32" if precision else type_)
    return make_problem(x, (filters, channels, window, window), dtype, **keywords)


def source_of(problem, way, tile, target):
    stages = stages_held(tile, device.emulator_of(target))
    if problem.pass_ == "forward":
        copied = way == "copied"
        lying = tensor_core.Lying(copied, copied, chunk_of(problem))
        return tensor_core.sources_of(problem, tensor_core.cut_of(problem, tile), stages, False, lying)[1]
    lying = tensor_core_weight_grad.lying_as_planned(problem)
    cut = tensor_core_weight_grad.cut_of(problem, tile, 4)
    return tensor_core_weight_grad.sources_of(problem, cut, stages, False, lying)[0]


def multiplied(problem, tile):
    """Instructions of a warp that multiply a stage."""
    blocks = tile.warp_rows * tile.warp_filters // (16 * 8)
    return blocks * 2 // tile.halves * (3 if problem.precision == "3xtf32" else 1)


def gathered(problem, way, tile):
    """Elements of rows, and of filters, that a thread loads one by one in a stage."""
    if problem.pass_ == "forward":
        rows, filters = way != "copied", False
    else:
        rows, filters = (lies == "NONE" for lies in tensor_core_weight_grad.lying_as_planned(problem)[:2])
    depth = depth_of(problem)
    return rows * tile.rows * depth // tile.threads, filters * tile.filters * depth // tile.threads


def beside_slots(problem, tile, target):
    if problem.pass_ == "forward":
        return tensor_core.beside_slots(problem, tensor_core.cut_of(problem, tile))
    cut = tensor_core_weight_grad.cut_of(problem, tile, 4)
    return tensor_core_weight_grad.beside_slots(problem, device.emulator_of(target), cut)


def by_shared_memory(problem, tile, target):
    """The share that it leaves: a stage is stored once and loaded by every warp, 128 bytes in a cycle."""
    multiply_adds = tile.rows * tile.filters * 32 * (3 if problem.precision == "3xtf32" else 1)
    multiplying = multiply_adds / (report.SCHEDULERS * report.MULTIPROCESSORS[target].mma)
    return min(1, multiplying / ((tile.stage_bytes + tile.matrix_bytes) / 128))


def loops():
    for type_ in ("float16", "tf32", "3xtf32"):
        for way in FORWARD:
            if type_ == "float16" or way not in ("gathered", "more_taps", "runs"):
                tiles = tensor_core.PRECISE_TILES if type_ == "3xtf32" else tensor_core.TILES
                yield from ((type_, "forward", way, tile) for tile in tiles)
    for type_ in ("float16", "tf32", "3xtf32"):
        for way in WEIGHT_GRAD:
            tiles = tensor_core_weight_grad.tiles_of(problem_of(way, type_, "weight_grad"))
            tiles = tiles if type_ == "float16" or way != "gathered_odd" else tiles[:1]
            yield from ((type_, "weight_grad", way, tile) for tile in tiles)
    yield ("bfloat16", "forward", "copied", tensor_core.TILES[0])


def loop_of(target, type_, pass_, way, tile):
    """The loop, and how many stages the compiler made one of."""
    problem = problem_of(way, type_, pass_)
    source = source_of(problem, way, tile, target)
    cubin = compiling.cuda_source_cubin(source, target)
    used = compiling.resources(cubin)[source.function]
    assert (used.stack, used.local) == (0, 0), f"spills registers: {used}"
    loop = report.Loop.of(compiling.sass(cubin), source.function)
    stages, rest = divmod(len(loop.tensor), multiplied(problem, tile))
    assert (stages, rest) in ((1, 0), (2, 0)), "of one stage, or of two where the compiler unrolls a short loop"
    return loop, stages


def on_targets():
    for loop in loops():
        yield (90, *loop)
        if loop[1] == "weight_grad" and loop[0] != "3xtf32":
            yield (80, *loop)


@pytest.mark.parametrize(("target", "type_", "pass_", "way", "tile"), list(on_targets()), ids=str)
def test_every_loop_keeps_the_tensor_cores_busy(target, type_, pass_, way, tile):
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
    pytest.importorskip("nvidia", reason="cuobjdump and nvdisasm are not installed (extra emulate)")
    problem, has = problem_of(way, type_, pass_), report.MULTIPROCESSORS[target]
    loop, stages = loop_of(target, type_, pass_, way, tile)
    assert loop.roots["BAR"] == stages, "one barrier per stage"
    assert loop.roots["LDG"] == sum(gathered(problem, way, tile)) * stages
    bar = LOW.get((type_, way, tile[:2]), min(BAR, by_shared_memory(problem, tile, target)))
    if type_ == "tf32" and pass_ == "weight_grad" and tile.warp_rows == 32:
        bar *= OF_SMALLEST[target][any(gathered(problem, way, tile))]
    assert loop.issue_bound(has) >= bar - 0.001
    if type_ == "float16" or (pass_, type_) == ("weight_grad", "tf32"):
        predicted = beside_slots(problem, tile, target) / tile.threads + multiplied(problem, tile)
        most = 1.15 if pass_ == "forward" else 1.2
        assert 0.8 < predicted * stages / loop.size < most, "predicted, of those counted"
    if way == "copied" and type_ != "3xtf32":
        assert loop.tensor_cycles(has) >= BAR * loop.size, "the tensor cores wait for instructions"


@pytest.mark.parametrize(("target", "shares"), [(80, (0.67, 0.67, 0.8)), (90, (0.51, 0.51, 0.61))])
def test_no_tile_but_small_ones_is_kept_from_85_percent_by_shared_memory(target, shares):
    problem = problem_of("copied", "float16", "forward")
    most = {tile[:2]: round(by_shared_memory(problem, tile, target), 2) for tile in tensor_core.TILES}
    small = (64, 64), (32, 64), (128, 32)
    assert {size: share for size, share in most.items() if share < BAR} == dict(zip(small, shares, strict=True))
