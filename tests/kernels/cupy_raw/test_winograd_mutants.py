"""Faults planted in the Winograd kernels, one at a time: each must turn one of their checks red.

A mutant is a line of a file written otherwise; its PTX is executed as the right kernel's is, with all checks of the
emulator: races, bounds, uninitialised reads, every output written once, the values, and bank conflicts. Left out are
changes that change nothing: where a tile does not exist, zeros are read whatever the conditions say.
"""

import re

import pytest

from convlib import compiling, device, emulator
from convlib.emulator.profile import profile
from convlib.kernels import launching
from convlib.kernels.cupy_raw import im2col, winograd_batched, winograd_fused
from convlib.problem import make_problem
from convlib.verification.problems import Case
from tests.kernels.cupy_raw import in_emulator

CASES = {
    "pixels": Case("pixels", (1, 9, 5, 7), (5, 9, 3, 3), {"padding": 1}, bias=True),
    "channels": Case("channels", (1, 7, 9, 26), (66, 13, 3, 3), {"groups": 2, "layout": "NHWC"}),
    "two splits": Case("splits", (2, 9, 15, 9), (66, 9, 3, 3), {"padding": 1}),
    "a short split": Case("short", (1, 21, 5, 7), (5, 21, 3, 3), {"padding": 1}),
    "two splits, channels last": Case("last", (1, 7, 9, 26), (66, 13, 3, 3), {"groups": 2, "layout": "NHWC"}),
    "slices": Case("slices", (1, 3, 50, 44), (5, 3, 3, 3), {"padding": ((2, 0), (0, 3))}),
    "slices of rows": Case("rows", (1, 3, 50, 44), (5, 3, 3, 3), {"padding": 1}),
    "fours of filters": Case("fours", (1, 7, 9, 20), (8, 10, 3, 3), {"groups": 2, "layout": "NHWC"}),
    "pairs of channels": Case("pairs", (1, 7, 9, 20), (6, 10, 3, 3), {"groups": 2, "layout": "NHWC"}),
}


def name_of(kernel):
    return kernel.__name__.rpartition(".")[2]


def check(kernel, what):
    if what == "lanes":
        check_lanes()
    elif what.startswith("banks"):
        check_banks(kernel, "NHWC" if "last" in what else "NCHW")
    else:
        in_emulator.check(kernel, name_of(kernel), CASES[what])


def check_banks(kernel, layout):
    """No access of shared memory takes more wavefronts than it must."""
    x = (1, 8, 9, 9) if layout == "NCHW" else (1, 9, 9, 8)
    problem = make_problem(x, (64, 8, 3, 3), "float32", padding=1, layout=layout)
    reports = profile(f"cupy_raw.{name_of(kernel)}", problem).reports
    shared = [access for report in reports for access in report.counters.traffic if access.space == "shared"]
    assert shared
    for access in shared:
        assert access.cost == access.requests * max(access.size // 4, 1), access


def check_lanes():
    """A 128-bit load takes half the passes where lanes i and i ^ 1, or i and i ^ 2, read the same; no counter tells."""
    text = launching.CudaSource("winograd_fused.cu", "conv2d_winograd").text()
    for role in ("filter", "tile"):
        (expression,) = re.findall(rf"\b{role}_lane = (.*);", text)
        place = [eval(expression, {"lane": lane}) for lane in range(32)]  # & | >> mean the same in both languages
        assert any(all(place[lane] == place[lane ^ bit] for lane in range(32)) for bit in (1, 2)), role


FUSED = {
    "the first stage without its barrier": (
        "pixels",
        "__syncthreads();\n\n    Sums sums = {};",
        "\n    Sums sums = {};",
    ),
    "a stage without its barrier": (
        "pixels",
        "if (patch.is_due(phase)) patch.put(next);\n            __syncthreads();",
        "if (patch.is_due(phase)) patch.put(next);",
    ),
    "sums overwritten without a barrier": ("pixels", "if (round) __syncthreads();", ""),
    "sums read without a barrier": (
        "pixels",
        "put_sums(sums, round, place);\n        __syncthreads();",
        "put_sums(sums, round, place);",
    ),
    "a row below the image": ("pixels", "(unsigned)(h + r) < problem.H", "(unsigned)(h + r) <= problem.H"),
    "a column beside the image": ("pixels", "(unsigned)(w + s) < problem.W", "(unsigned)(w + s) <= problem.W"),
    "a row above the image": ("pixels", "(unsigned)(h + r) < problem.H", "h + r < problem.H"),
    "a column before the image": ("pixels", "(unsigned)(w + s) < problem.W", "w + s < problem.W"),
    "a warp's first tile without the column before it": ("slices of rows", "(s > 0 || leads)", "s > 0"),
    "a warp's last tile without the column behind it": ("slices of rows", "(s < PATCH - 1 || ends)", "s < PATCH - 1"),
    "a column before the image from another row": ("slices of rows", "!leads && w >= 0", "!leads"),
    "a column behind the image from another row": ("slices of rows", "!ends && w + PATCH - 1 < problem.W", "!ends"),
    "a column from a lane that the warp has not": ("slices of rows", "!leads && w >= 0", "w >= 0"),
    "a channel past the group": ("pixels", "channel < problem.Cg ? inside : 0", "inside"),
    "a filter past the group stored": (
        "pixels",
        "if (corner.exists && k < problem.Kg)\n                finish",
        "if (corner.exists)\n                finish",
    ),
    "a tile past the last stored": (
        "pixels",
        "if (corner.exists && k < problem.Kg)\n                finish",
        "if (k < problem.Kg)\n                finish",
    ),
    "a row past y stored": (
        "pixels",
        "if (corner.p + i < problem.P && corner.q + j < problem.Q) {",
        "if (corner.q + j < problem.Q) {",
    ),
    "a column past y stored": (
        "pixels",
        "if (corner.p + i < problem.P && corner.q + j < problem.Q) {",
        "if (corner.p + i < problem.P) {",
    ),
    "sums past the last output": ("two splits", "if (index >= outputs) return;", ""),
    "first the first stage's filters": (
        "channels",
        "share.fetch(packed + (stages - 1) * (int64)SLAB);",
        "share.fetch(packed);",
    ),
    "filters before the last stage's": ("channels", "(stages - 1) * (int64)SLAB", "(stages - 2) * (int64)SLAB"),
    "first the first stages' patches": ("a short split", "group, stage + stages - PHASES);", "group, stage);"),
    "patches of the stages behind": ("pixels", "patch.turn(problem, PHASES - stages);", "patch.turn(problem, PHASES);"),
    "the other buffer multiplied": (
        "pixels",
        "multiply(sums, memory.stages[phase % 2], place);",
        "multiply(sums, memory.stages[(phase + 1) % 2], place);",
    ),
    "the buffer overwritten that is being multiplied": (
        "pixels",
        "Stage& next = memory.stages[(phase + 1) % 2];",
        "Stage& next = memory.stages[phase % 2];",
    ),
    "patches stored a stage late": (
        "pixels",
        "if (patch.is_due(phase)) patch.put(next);",
        "if (patch.is_due((phase + 1) % PHASES)) patch.put(next);",
    ),
    "all patches stored in the first stage": ("pixels", "if (patch.is_due(PHASES - 1)) {", "{"),
    "a sector's channels all of one stage": (
        "channels",
        "return channel_of_all() / DEPTH;",
        "return threadIdx.x / (DEPTH * TILES);",
    ),
    "tiles unturned": ("banks, channels last", "{ return tile ^ channel * (TILES / DEPTH); }", "{ return tile; }"),
    "tiles turned by a quarter": (
        "banks, channels last",
        "{ return tile ^ channel * (TILES / DEPTH); }",
        "{ return tile ^ channel * (TILES / DEPTH / 4); }",
    ),
    "sums unturned": ("banks", "return tile ^ VECTOR * ((slot & 3) << 1 | (slot >> 2 & 1));", "return tile;"),
    "sums turned by two bits": (
        "banks, channels last",
        "return tile ^ VECTOR * ((slot & 3) << 1 | (slot >> 2 & 1));",
        "return tile ^ VECTOR * ((slot & 3) << 1);",
    ),
    "lanes in plain order": (
        "lanes",
        "filter_lane = (lane & 1) | (lane >> 1 & 6);\n        tile_lane = (lane >> 1 & 1) | (lane >> 3 & 2);",
        "filter_lane = lane & 7;\n        tile_lane = lane >> 3;",
    ),
    "tiles read unturned": ("pixels", "const int swizzle = tile_place(channel, 0);", "const int swizzle = 0;"),
    "filters not interleaved": (
        "pixels",
        "return place / BLOCK * BLOCK + place % VECTOR * FILTER_LANES + place / VECTOR % FILTER_LANES;",
        "return place;",
    ),
    "filters of the first stage": ("pixels", "channel / DEPTH) * SLAB", "0) * SLAB"),
    "filters of the first block": (
        "two splits",
        "const int first_filter = block % tiling.filter_blocks * FILTERS, group",
        "const int first_filter = 0, group",
    ),
    "splits in one place": (
        "two splits",
        "partial += blockIdx.y * (int64)problem.N * problem.K * problem.P * problem.Q;",
        "",
    ),
    "a last split as long as the others": ("a short split", "min(tiling.split, tiling.stages - stage)", "tiling.split"),
    "every split from the first stage": (
        "two splits",
        "const int stage = blockIdx.y * tiling.split;",
        "const int stage = 0;",
    ),
    "partial sums in the other order": (
        "two splits, channels last",
        "if constexpr (ADJACENT == CHANNELS) return (((int64)n * problem.P + p)",
        "if constexpr (ADJACENT == NONE) return (((int64)n * problem.P + p)",
    ),
    "sums added in the other order": (
        "two splits, channels last",
        "if constexpr (ADJACENT == CHANNELS) { k = rest % problem.K; rest /= problem.K; }",
        "if constexpr (ADJACENT == NONE) { k = rest % problem.K; rest /= problem.K; }",
    ),
}

BATCHED = {
    "tiles past the last read": (
        "winograd_batched.cu",
        "pixels",
        "const bool exists = m < slice.pixels;",
        "const bool exists = true;",
    ),
    "a channel past the group": (
        "winograd_batched.cu",
        "pixels",
        "const bool wanted = exists && c < problem.Cg;",
        "const bool wanted = exists;",
    ),
    "a row below the image": (
        "winograd_batched.cu",
        "pixels",
        "corner.p - problem.top + r) < problem.H",
        "corner.p - problem.top + r) <= problem.H",
    ),
    "a column beside the image": (
        "winograd_batched.cu",
        "pixels",
        "corner.q + s < problem.W)",
        "corner.q + s <= problem.W)",
    ),
    "a row above the image": (
        "winograd_batched.cu",
        "pixels",
        "(unsigned)(corner.p - problem.top + r) < problem.H",
        "corner.p - problem.top + r < problem.H",
    ),
    "a column before the image": (
        "winograd_batched.cu",
        "pixels",
        "const bool before = corner.q > 0,",
        "const bool before = true,",
    ),
    "a column behind the image": (
        "winograd_batched.cu",
        "slices of rows",
        "behind = corner.q + MINIMAL < problem.W;",
        "behind = true;",
    ),
    "a warp's first tile without the column before it": (
        "winograd_batched.cu",
        "slices of rows",
        "first ? further[r] : before",
        "before",
    ),
    "a warp's last tile without the column behind it": (
        "winograd_batched.cu",
        "slices of rows",
        "last ? further[r] : behind",
        "behind",
    ),
    "elements beside the image": (
        "winograd_batched.cu",
        "slices",
        "(unsigned)(w + s) < problem.W",
        "(unsigned)(w + s) <= problem.W",
    ),
    "elements above the image": ("winograd_batched.cu", "slices", "(unsigned)(h + r) < problem.H", "h + r < problem.H"),
    "pairs of a chunk all the first": (
        "winograd_batched.cu",
        "pairs of channels",
        "threadIdx.x % SHARING * AT_ONCE + i",
        "i",
    ),
    "columns not interleaved": (
        "winograd_batched.cu",
        "pixels",
        "columns += place_of<PIXEL_LANES>(m);",
        "columns += m;",
    ),
    "planes of one group": (
        "winograd_batched.cu",
        "channels",
        "const int64 plane = (int64)problem.groups * slice.depth * slice.padded;",
        "const int64 plane = (int64)slice.depth * slice.padded;",
    ),
    "products past the last": (
        "winograd_batched.cu",
        "pixels",
        "if (index >= (int64)problem.K * slice.pixels) return;",
        "",
    ),
    "products by padded filters": (
        "winograd_batched.cu",
        "pixels",
        "const int k = TOGETHER ? index % problem.K : index / slice.pixels;",
        "const int k = TOGETHER ? index % problem.K : index / slice.padded;",
    ),
    "planes without their padding": (
        "winograd_batched.cu",
        "pixels",
        "const int64 plane = TOGETHER ? problem.K : (int64)problem.K * slice.padded;",
        "const int64 plane = TOGETHER ? problem.K : (int64)problem.K * slice.pixels;",
    ),
    "a row past y stored": (
        "winograd_batched.cu",
        "pixels",
        "if (corner.p + i < problem.P && corner.q + j < problem.Q)",
        "if (corner.q + j < problem.Q)",
    ),
    "a column past y stored": (
        "winograd_batched.cu",
        "pixels",
        "if (corner.p + i < problem.P && corner.q + j < problem.Q)",
        "if (corner.p + i < problem.P)",
    ),
    "products of the first slice": (
        "winograd_batched.cu",
        "slices",
        "const Corner corner = corner_of(problem, slice.first + m);",
        "const Corner corner = corner_of(problem, m);",
    ),
    "tiles of the first slice": (
        "winograd_batched.cu",
        "slices",
        "corner_of(problem, slice.first + (exists ? m : 0));",
        "corner_of(problem, exists ? m : 0);",
    ),
    "filters not interleaved": ("winograd_batched.cu", "pixels", "number_at<FILTERS_APART>(brought),", "brought,"),
    "filters interleaved that are one store": (
        "winograd_batched.cu",
        "fours of filters",
        "number_at<FILTERS_APART>(brought),",
        "number_at<FILTER_LANES>(brought),",
    ),
    "the first step without its barrier": (
        "gemm.cu",
        "pixels",
        "next_pixels.put(pixels[0]);\n    __syncthreads();",
        "next_pixels.put(pixels[0]);",
    ),
    "a step without its barrier": (
        "gemm.cu",
        "pixels",
        "next_pixels.put(pixels[buffer]);\n        __syncthreads();",
        "next_pixels.put(pixels[buffer]);",
    ),
    "one buffer for both": ("gemm.cu", "pixels", "        buffer ^= 1;\n", ""),
    "a tile past the last stored": ("gemm.cu", "pixels", "if (m >= slice.pixels) continue;", ""),
    "a filter past the group stored": ("gemm.cu", "pixels", "if (k >= problem.Kg) continue;", ""),
    "every group the first": ("gemm.cu", "pixels", "group * problem.Kg + k, p, q, run);", "k, p, q, run);"),
    "filters of a store one further": (
        "gemm.cu",
        "fours of filters",
        "run[e] = sums[i + e][j];",
        "run[e] = sums[i + (e ^ 1)][j];",
    ),
}

# Of winograd_filters.cuh, which both include.
FILTERS = {
    "windows without their barrier": ("pixels", "        __syncthreads();\n", ""),
    "windows unturned": ("banks", "windows[filter][number ^ filter / ALIKE * TURN]", "windows[filter][number]"),
    "windows turned by one": ("banks", "filter / ALIKE * TURN]", "filter / ALIKE]"),
    "weights of a filter past the group": (
        "pixels",
        "problem.Cg - first_channel, brought < problem.Kg);",
        "problem.Cg - first_channel, true);",
    ),
    "weights of a channel past the group": ("pixels", "i * CHUNK + lane < channels * OF_WINDOW", "true"),
    "every group's weights the first's": (
        "channels",
        "offset(problem.w, group * problem.Kg + brought,",
        "offset(problem.w, brought,",
    ),
}


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


@pytest.fixture
def plant(monkeypatch):
    """A function that writes `new` for the one `old` in a .cu file, for the emulator alone."""

    def planted(file, old, new):
        right, text_of = (launching.CUPY_RAW / file).read_text(), launching.CudaSource.text
        assert right.count(old) == 1, f"{file} has {right.count(old)} of {old!r}"
        wrong = right.replace(old, new)

        def text(source):
            return wrong if source.file == file else text_of(source).replace(f'#include "{file}"', wrong)

        monkeypatch.setattr(launching.CudaSource, "text", text)
        monkeypatch.setattr(emulator, "ptx_of_source", lambda source, target: compiling.cuda_source_ptx(source, target))

    return planted


@pytest.fixture
def cut(monkeypatch):
    """A function that cuts a check's problem as it wants: channels into splits, tiles into slices."""

    def cut_for(what):
        if "split" in what:
            split = lambda problem, _: winograd_fused.tiling_of(problem, 2)  # noqa: E731
            monkeypatch.setattr(winograd_fused, "tiling_for", split)
        if what.startswith("slices"):
            monkeypatch.setattr(winograd_batched, "WORKSPACE_BYTES", 1)
        forget()

    def forget():
        im2col.matrices.cache_clear()
        winograd_batched.matrices.cache_clear()

    yield cut_for
    forget()


@pytest.mark.parametrize("what", sorted({check for check, _, _ in FUSED.values()}))
def test_the_fused_kernel_passes(what, cut):
    cut(what)
    check(winograd_fused, what)


@pytest.mark.parametrize("what", sorted({check for _, check, _, _ in BATCHED.values()}))
def test_the_batched_kernels_pass(what, cut):
    cut(what)
    if what.startswith("slices"):
        problem = CASES[what].problem()
        tiles = winograd_batched.transformed(problem).W
        assert winograd_batched.matrices(problem, device.emulator()).pixels < tiles, "more than one slice"
    check(winograd_batched, what)


@pytest.mark.parametrize("mutant", FUSED)
def test_a_fault_in_the_fused_kernel_is_found(mutant, plant, cut):
    what, old, new = FUSED[mutant]
    plant("winograd_fused.cu", old, new)
    cut(what)
    with pytest.raises((emulator.EmulationError, AssertionError)):
        check(winograd_fused, what)


@pytest.mark.parametrize("mutant", BATCHED)
def test_a_fault_in_the_batched_kernels_is_found(mutant, plant, cut):
    file, what, old, new = BATCHED[mutant]
    plant(file, old, new)
    cut(what)
    with pytest.raises((emulator.EmulationError, AssertionError)):
        check(winograd_batched, what)


@pytest.mark.parametrize("kernel", [winograd_fused, winograd_batched], ids=name_of)
@pytest.mark.parametrize("mutant", FILTERS)
def test_a_fault_in_how_filters_are_brought_is_found(mutant, kernel, plant, cut):
    what, old, new = FILTERS[mutant]
    plant("winograd_filters.cuh", old, new)
    cut(what)
    with pytest.raises((emulator.EmulationError, AssertionError)):
        check(kernel, what)
