"""The share of multiply-adds among all issued instructions: how machine code and emulator are brought together."""

import numpy as np
import pytest

from benchmarks import issued
from convlib import compiling, device
from convlib.problem import make_problem

pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed (extra cuda13)")
pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")

LOOP = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry f(.param .u64 p, .param .u32 n)
{
.reg .pred %p<2>;
.reg .b32 %r<4>;
.reg .f32 %f<3>;
.reg .b64 %rd<3>;
ld.param.u64 %rd1, [p];
ld.param.u32 %r1, [n];
cvta.to.global.u64 %rd2, %rd1;
mov.f32 %f1, 0f3F800000;
mov.u32 %r2, 0;
$L:
.pragma "nounroll";
fma.rn.f32 %f1, %f1, %f1, %f1;
add.u32 %r2, %r2, 1;
setp.lt.u32 %p1, %r2, %r1;
@%p1 bra $L;
st.global.f32 [%rd2], %f1;
ret;
}
"""


def test_a_loop_counts_as_often_as_the_emulator_ran_it():
    code = issued.code_of(LOOP, "f", 80)
    fma = next(n for n, line in enumerate(LOOP.splitlines(), 1) if line.startswith("fma"))
    (loop,) = [block for block in code if fma in block.lines]
    came = {}
    for times in (3, 7):
        from convlib import emulator

        y = np.zeros(1, np.float32)
        report = emulator.launch(LOOP, "f", 1, 32, (y, np.uint32(times)), checks=False)
        came[times] = loop.warps(report.counters.lines)
        others = sum(b.size * b.warps(report.counters.lines) for b in code if b is not loop)
        assert 4 <= others <= 20, "what stands outside runs once"
    assert came == {3: 3, 7: 7}
    assert 3 <= loop.size <= 5


def test_blocks_that_stand_for_others_stand_for_all():
    for grid in ((1, 1, 1), (5, 1, 1), (1568, 1, 1), (49, 8, 1), (7, 3, 2)):
        found = issued.representatives(grid)
        blocks = np.prod(grid)
        assert sum(len(indices) * weight for indices, weight in found) == blocks
        assert max(max(indices) for indices, _ in found) == blocks - 1


def test_packing_is_counted_as_if_all_its_blocks_ran_and_issues_three_instructions_a_weight():
    """Of 168 channels under 3x3 the last blocks have fewer numbers than the others."""
    problem = make_problem((1, 168, 7, 7), (512, 168, 3, 3), np.float32, padding=1)
    place = device.named("sm_80")
    w, packed = np.ones(problem.w_shape, np.float32), np.zeros(issued.implicit_gemm.packed_bytes(problem, place), "u1")
    with issued.launching.recording() as launches:
        issued.implicit_gemm.pack(problem, place, w, packed)
    (pack,) = launches
    assert pack.grid == (1, 8, 48)
    counted = issued.launched(pack, 80).issued
    assert counted == issued.issued_by(pack, 80, np.arange(8 * 48))
    assert counted <= 3 * w.size / 32


def cut_with(monkeypatch, problem, splits, whole):
    module = issued.implicit_gemm
    cut = module.cut_of(problem, module.tile_of(problem, (8, 8)), splits, whole)
    monkeypatch.setattr(issued.dispatch.kernel(issued.KERNEL), "cut_for", lambda problem, device: cut)
    return cut


def test_every_block_of_the_product_is_charged_for_its_own_stages(monkeypatch):
    problem = make_problem((32, 64, 14, 14), (100, 64, 3, 3), np.float32, padding=1)
    for splits, whole in ((1, 0), (5, 0), (5, 150)):
        cut = cut_with(monkeypatch, problem, splits, whole)
        blocks = list(issued.blocks_of_product(problem, cut))
        assert [number for number, *_ in blocks] == list(range(cut.blocks))
        assert sum(stages for _, _, stages, _ in blocks) == (cut.whole + cut.split_tiles) * cut.depth // 8


def test_short_runs_of_one_block_of_each_kind_count_what_all_do(monkeypatch):
    """Whole tiles, and split ones whose last split is shorter; pixels and filters that do not fill the last tile."""
    problem = make_problem((2, 16, 12, 12), (72, 16, 3, 3), np.float32, padding=1)
    place = device.named("sm_80")
    cut = cut_with(monkeypatch, problem, splits=4, whole=4)
    assert cut.stages * cut.splits > cut.depth // 8
    counted = issued.share(issued.KERNEL, problem, place)
    assert [launch.function for launch in counted.launches] == ["conv2d_implicit_gemm", "sum_splits"]
    x, y, bias, residual = issued.operands(problem)
    packed, workspace = (
        issued.strided.empty_aligned((count,), np.uint8) for count in (cut.packed_bytes, cut.partial_bytes)
    )
    with issued.launching.recording() as launches:
        issued.implicit_gemm.run(problem, place, x, packed, y, bias, residual, workspace)
    assert counted.launches[0].issued == issued.issued_by(launches[0], 80, np.arange(cut.blocks))
    assert counted.of_call < counted.of_plan
    assert 0.1 < counted.of_plan < 0.7, "72 of 128 filters"


def test_line_numbers_change_little_of_the_machine_code():
    problem = make_problem((2, 64, 24, 24), (128, 64, 3, 3), np.float32, padding=1)
    source = issued.dispatch.kernel(issued.KERNEL).sources(problem, device.named("sm_80"))[1]
    plain = compiling.sass(compiling.cuda_source_cubin(source, 80))
    ptx = compiling.cuda_source_ptx(source, 80)
    lined = compiling.sass(compiling.cubin_with_ptx_lines(ptx, 80))
    sizes = [len(issued.INSTRUCTION.findall(text)) for text in (plain, lined)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize("images", issued.BARS)
def test_all_layers_meet_their_bar(images):
    """Layers of as many outputs, filters and channels issue the same, with stride 2 too: of these one is counted."""
    layers = {(p.K, p.Cg, p.P * p.Q): (name, p) for name, p in issued.layers_of(issued.NETWORKS, images, "NCHW")}
    assert len(layers) == 12
    shares = {name: issued.share(issued.KERNEL, p, device.named("sm_80")).of_call for name, p in layers.values()}
    assert not {name: share for name, share in shares.items() if share < issued.BARS[images]}
