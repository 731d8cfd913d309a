"""Loads, stores, atomics, branches, barriers and warp instructions, in hand-written PTX with known results."""

from __future__ import annotations

import numpy as np
import pytest

from convlib import emulator
from convlib.strided import empty_aligned
from tests.convlib.emulator.ptx import HEADER, address, kernel


def run(body, *arrays, threads=64, blocks=1, registers="", shared_bytes=0, **options):
    text = kernel(body, len(arrays), registers)
    report = emulator.launch(text, "k", blocks, threads, arrays, shared_bytes, **options)
    report.raise_if_faulty()
    return report


def threads_result(body, dtype=np.uint32, threads=64, blocks=1, registers=""):
    """What the threads leave in %r1, stored in p0."""
    out = np.zeros(threads * blocks, dtype)
    run(f"{body} {address(0, 4)} st.global.b32 [%d20], %r1;", out, threads=threads, blocks=blocks, registers=registers)
    return out


T = np.arange(64, dtype=np.uint32)


@pytest.mark.parametrize(("width", "type_"), [
    ("", "u8"), ("", "b16"), ("", "f32"), ("", "b64"), (".v2", "b32"), (".v4", "f32"), (".v2", "f64"), (".v2", "b64"),
    (".v8", "b32"),
])  # fmt: skip
def test_loads_and_stores_of_every_width(width, type_):
    count, size = int(width[2:] or 1), emulator.syntax.SIZES[type_]
    letter = {"u8": "h", "b16": "h", "f32": "f", "b32": "r", "f64": "g", "b64": "d"}[type_]
    names = [f"%{letter}{i}" for i in range(count)]
    value = "{" + ", ".join(names) + "}" if count > 1 else names[0]
    x, y = empty_aligned((64 * count * size,), np.uint8), empty_aligned((64 * count * size,), np.uint8)
    x[:] = np.random.default_rng(0).integers(0, 256, x.size)
    load, store = f"ld.global.nc{width}.{type_} {value}, [%d20];", f"st.global{width}.{type_} [%d20], {value};"
    run(f"{address(0, size * count)} {load} {address(1, size * count)} {store}", x, y)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("type_", "wide"), [("u8", 200), ("s8", 2**32 - 56)])
def test_narrow_loads_extend_to_the_register(type_, wide):
    x, y = np.full(64, 200, np.uint8), np.zeros(64, np.uint32)
    run(f"{address(0, 1)} ldu.global.{type_} %r1, [%d20]; {address(1, 4)} st.global.b32 [%d20], %r1;", x, y)
    assert (y == wide).all()


def test_shared_memory_through_generic_addresses():
    body = f"""
    .shared .align 4 .b8 tile[256];
    mov.u64 %d1, tile; cvta.shared.u64 %d2, %d1;
    mul.wide.u32 %d3, %r20, 4; add.s64 %d4, %d2, %d3;
    st.u32 [%d4], %r20;
    bar.sync 0;
    sub.s64 %d5, %d2, %d3;
    ld.u32 %r1, [%d5+252];
    cvta.to.shared.u64 %d6, %d4; cvt.u32.u64 %r2, %d6; ld.shared.u32 %r3, [%r2]; mad.lo.u32 %r1, %r3, 1000, %r1;
    {address(0, 4)} st.global.b32 [%d20], %r1;"""
    out = np.zeros(64, np.uint32)
    run(body, out)
    np.testing.assert_array_equal(out, 63 - T + 1000 * T)


def test_local_memory_is_each_threads_own():
    body = """
    .local .align 8 .b8 depot[16];
    mov.u64 %d1, depot; cvta.local.u64 %d2, %d1;
    st.local.u32 [%d1+4], %r20; ld.u32 %r1, [%d2+4];"""
    np.testing.assert_array_equal(threads_result(body), T)


def test_variables_of_the_module_have_their_initial_values():
    text = f"""{HEADER}
.const .align 4 .f32 table[2] = {{0f3F800000, 0f40000000}};
.global .align 4 .u32 start = 7;
.global .align 1 .b8 bytes[4] = {{1, 2, 3}};
.visible .entry k(.param .u64 p0) {{
.reg .b32 %r<9>; .reg .b64 %d<9>; .reg .f32 %f<3>;
ld.param.u64 %d1, [p0]; ld.const.f32 %f1, [table+4]; ld.global.u32 %r1, [start]; ld.global.u8 %r2, [bytes+1];
st.global.f32 [%d1], %f1; st.global.u32 [%d1+4], %r1; st.global.u32 [%d1+8], %r2; ret; }}"""
    out = np.zeros(3, np.uint32)
    emulator.launch(text, "k", 1, 1, (out,)).raise_if_faulty()
    assert out.view(np.float32)[0] == 2
    assert out[1:].tolist() == [7, 2]


def test_structs_by_value_and_parameters_at_an_address():
    text = f"""{HEADER}
.visible .entry k(.param .u64 p0, .param .align 8 .b8 s[24]) {{
.reg .b32 %r<9>; .reg .b64 %d<9>;
mov.u32 %r1, %tid.x; ld.param.u64 %d1, [p0]; ld.param.u32 %r2, [s+16]; mov.b64 %d2, s;
mul.wide.u32 %d3, %r1, 8; add.s64 %d4, %d2, %d3; ld.param.u64 %d5, [%d4]; add.s64 %d6, %d1, %d3;
cvt.u64.u32 %d7, %r2; add.s64 %d5, %d5, %d7; st.global.u64 [%d6], %d5; ret; }}"""
    struct = np.array((11, 22, 33), np.dtype([("a", "i8"), ("b", "i8"), ("c", "i4")], align=True))[()]
    out = np.zeros(2, np.uint64)
    emulator.launch(text, "k", 1, 2, (out, struct)).raise_if_faulty()
    assert out.tolist() == [44, 55]


def test_an_argument_of_the_wrong_size_is_refused():
    with pytest.raises(emulator.PtxError, match="8 bytes"):
        emulator.launch(kernel("", 1), "k", 1, 1, (np.int32(1),))
    with pytest.raises(TypeError, match="argument 0"):
        emulator.launch(kernel("", 1), "k", 1, 1, (1.5,))
    with pytest.raises(emulator.PtxError, match="1 parameters needed, got 2"):
        emulator.launch(kernel("", 1), "k", 1, 1, (np.zeros(1), np.zeros(1)))


ATOMICS = {
    "add": (lambda v: sum(v), "u32"), "min": (min, "s32"), "max": (max, "u32"),
    "or": (lambda v: int(np.bitwise_or.reduce(v)), "b32"), "and": (lambda v: int(np.bitwise_and.reduce(v)), "b32"),
    "xor": (lambda v: int(np.bitwise_xor.reduce(v)), "b32"),
}  # fmt: skip


@pytest.mark.parametrize("instruction", ["red.global", "atom.global", "red", "atom.relaxed.gpu.global"])
@pytest.mark.parametrize("operation", ATOMICS)
def test_atomics_take_every_threads_value(instruction, operation):
    function, type_ = ATOMICS[operation]
    out = np.array([5], np.uint32)
    result = "%r2, " if instruction.startswith("atom") else ""
    run(f"ld.param.u64 %d1, [p0]; {instruction}.{operation}.{type_} {result}[%d1], %r23;", out, blocks=2)
    assert out[0] == function([5, *range(128)])


def test_atomics_return_what_was_there():
    out, old = np.zeros(1, np.uint32), np.zeros(64, np.uint32)
    body = f"ld.param.u64 %d1, [p0]; atom.global.add.u32 %r1, [%d1], 2; {address(1, 4)} st.global.b32 [%d20], %r1;"
    run(body, out, old)
    assert sorted(old.tolist()) == list(range(0, 128, 2))


@pytest.mark.parametrize(("instruction", "start", "wanted"), [
    ("atom.global.exch.b32 %r2, [%d1], 9", 5, 9), ("atom.global.cas.b32 %r2, [%d1], 5, 77", 5, 77),
    ("atom.global.cas.b32 %r2, [%d1], 6, 77", 5, 5), ("atom.global.inc.u32 %r2, [%d1], 9", 5, 6),
    ("atom.global.inc.u32 %r2, [%d1], 5", 5, 0), ("red.global.dec.u32 [%d1], 9", 0, 9),
    ("red.global.dec.u32 [%d1], 9", 5, 4),
])  # fmt: skip
def test_single_atomics(instruction, start, wanted):
    out = np.array([start], np.uint32)
    run(f"ld.param.u64 %d1, [p0]; {instruction};", out, threads=1)
    assert out[0] == wanted


def test_float_atomics_add():
    out = np.zeros(1, np.float32)
    run("ld.param.u64 %d1, [p0]; cvt.rn.f32.u32 %f1, %r20; red.global.add.f32 [%d1], %f1;", out)
    assert out[0] == 64 * 63 / 2


def test_lanes_that_part_meet_again():
    body = """
    mov.u32 %r1, 0; setp.lt.u32 %p1, %r20, 10; @%p1 bra LOW;
    add.u32 %r1, %r1, 100; bra JOIN;
    LOW: add.u32 %r1, %r1, 200;
    JOIN: add.u32 %r1, %r1, %r20;"""
    out = np.zeros(64, np.uint32)
    report = run(f"{body} {address(0, 4)} st.global.b32 [%d20], %r1;", out)
    np.testing.assert_array_equal(out, np.where(T < 10, 200, 100) + T)
    assert report.counters.warps["global"] == 2  # the store is executed once per warp: the lanes had met again


def test_loops_of_different_length():
    body = """
    mov.u32 %r1, 0; mov.u32 %r2, %r20;
    LOOP: setp.eq.u32 %p1, %r2, 0; @%p1 bra DONE;
    add.u32 %r1, %r1, %r2; sub.u32 %r2, %r2, 1; bra.uni LOOP;
    DONE:"""
    np.testing.assert_array_equal(threads_result(body), T * (T + 1) // 2)


def test_jumps_through_a_table():
    body = """
    and.b32 %r2, %r20, 3; mov.u32 %r1, 7;
    TABLE: .branchtargets ZERO, ONE, TWO, JOIN;
    brx.idx %r2, TABLE;
    ZERO: mov.u32 %r1, 10; bra JOIN;
    ONE: mov.u32 %r1, 11; bra JOIN;
    TWO: mov.u32 %r1, 12;
    JOIN:"""
    np.testing.assert_array_equal(threads_result(body), np.choose(T & 3, [10, 11, 12, 7]))


def test_lanes_that_exit_do_nothing_more():
    body = f"setp.gt.u32 %p1, %r20, 39; @%p1 exit; {address(0, 4)} st.global.b32 [%d20], 1;"
    out = np.zeros(64, np.uint32)
    run(body, out)
    np.testing.assert_array_equal(out, T < 40)


def test_guards_of_either_sign():
    body = "setp.lt.u32 %p1, %r20, 20; mov.u32 %r1, 0; @%p1 mov.u32 %r1, 1; @!%p1 add.u32 %r1, %r1, 2;"
    np.testing.assert_array_equal(threads_result(body), np.where(T < 20, 1, 2))


def test_scopes_of_inline_assembly_have_their_own_registers():
    body = """mov.u32 %r1, 5;
    { .reg .b32 %r1, low; mov.u32 low, 9; add.u32 %r1, low, 1; mov.u32 %r2, %r1; }
    add.u32 %r1, %r1, %r2;"""
    assert (threads_result(body) == 15).all()


def test_fences_and_hints_change_nothing():
    body = f"""membar.gl; membar.cta; fence.sc.cta; fence.acq_rel.gpu; nanosleep.u32 20; mov.u32 %r1, 3;
    {address(0, 4)} prefetch.global.L2 [%d20];"""
    assert (threads_result(body) == 3).all()


LANE = T % 32
SHUFFLES = {
    "up": (np.where(LANE >= 3, T - 3, T), 0x0), "down": (np.where(LANE + 3 <= 31, T + 3, T), 0x1F),
    "bfly": (T ^ 3, 0x1F), "idx": (T - LANE + 3, 0x1F),
}  # fmt: skip


@pytest.mark.parametrize("mode", SHUFFLES)
def test_shuffles(mode):
    wanted, clamp = SHUFFLES[mode]
    body = f"shfl.sync.{mode}.b32 %r1|%p1, %r20, 3, {clamp}, -1; @!%p1 add.u32 %r1, %r1, 1000;"
    outside = {"up": LANE < 3, "down": LANE + 3 > 31}.get(mode, np.zeros(64, bool))
    np.testing.assert_array_equal(threads_result(body), wanted + 1000 * outside)


def test_shuffles_within_segments_of_eight():
    body = "shfl.sync.down.b32 %r1, %r20, 1, 6175, -1;"  # 0x181f: segments of 8 lanes
    np.testing.assert_array_equal(threads_result(body), np.where(T % 8 < 7, T + 1, T))


def test_votes():
    warp = T // 32
    condition = "setp.lt.u32 %p1, %r20, 35;"
    ballot = threads_result(f"{condition} vote.sync.ballot.b32 %r1, %p1, -1;")
    np.testing.assert_array_equal(ballot, np.where(warp == 0, 0xFFFFFFFF, 0b111))
    for kind, wanted in (("all", warp == 0), ("any", warp >= 0), ("uni", warp == 0)):
        body = f"{condition} vote.sync.{kind}.pred %p2, %p1, -1; selp.u32 %r1, 1, 0, %p2;"
        np.testing.assert_array_equal(threads_result(body), wanted)


def test_votes_and_shuffles_among_the_lanes_of_a_branch():
    body = """
    mov.u32 %r1, 0; and.b32 %r2, %r20, 31; setp.ge.u32 %p1, %r2, 8; @%p1 bra DONE;
    activemask.b32 %r3; vote.sync.ballot.b32 %r4, %p1, 255; shfl.sync.bfly.b32 %r5, %r20, 1, 31, 255;
    bar.warp.sync 255;
    mad.lo.u32 %r1, %r3, 1000, %r5;
    DONE:"""
    np.testing.assert_array_equal(threads_result(body), np.where(LANE < 8, 255_000 + (T ^ 1), 0))


@pytest.mark.parametrize(("operation", "type_", "function"), [
    ("add", "u32", np.sum), ("min", "s32", np.min), ("max", "u32", np.max), ("or", "b32", np.bitwise_or.reduce),
])  # fmt: skip
def test_reductions_of_a_warp(operation, type_, function):
    wanted = np.repeat([function(T[:32]), function(T[32:])], 32)
    np.testing.assert_array_equal(threads_result(f"redux.sync.{operation}.{type_} %r1, %r20, -1;"), wanted)


def test_special_registers():
    for name, wanted in (("%laneid", LANE), ("%warpid", T // 32), ("%ntid.x", 64 + 0 * T), ("%nctaid.y", 1 + 0 * T),
                         ("%lanemask_lt", (1 << LANE.astype(np.int64)) - 1), ("%tid.y", 0 * T)):  # fmt: skip
        np.testing.assert_array_equal(threads_result(f"mov.u32 %r1, {name};"), wanted)


def test_grids_and_blocks_of_three_dimensions():
    body = f"""
    mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mov.u32 %r3, %ctaid.y; mov.u32 %r4, %ctaid.z; mov.u32 %r5, %nctaid.y;
    mad.lo.u32 %r6, %r4, %r5, %r3; mov.u32 %r8, %nctaid.x; mad.lo.u32 %r6, %r6, %r8, %r21;
    mad.lo.u32 %r7, %r2, 3, %r1; mad.lo.u32 %r7, %r7, 5, %r20;
    mad.lo.u32 %r23, %r6, 30, %r7;
    {address(0, 4)} st.global.b32 [%d20], %r23;"""
    out = np.zeros(30 * 12, np.uint32)
    text = kernel(body, 1)
    emulator.launch(text, "k", (2, 3, 2), (5, 3, 2), (out,)).raise_if_faulty()
    np.testing.assert_array_equal(out, np.arange(360))


def test_more_blocks_than_a_batch_holds():
    out = np.zeros(64 * 1000, np.uint32)
    run(f"{address(0, 4)} st.global.b32 [%d20], %r23;", out, blocks=1000)
    np.testing.assert_array_equal(out, np.arange(64_000))


def test_only_the_blocks_asked_for_are_run():
    out = np.zeros(64 * 10, np.uint32)
    report = run(f"{address(0, 4)} st.global.b32 [%d20], 1;", out, blocks=10)
    assert report.counters.blocks_run == 10
    out[:] = 0
    text = kernel(f"{address(0, 4)} st.global.b32 [%d20], 1;", 1)
    report = emulator.launch(text, "k", 10, 64, (out,), blocks=[2, 7])
    assert report.counters.blocks_run == 2
    assert np.flatnonzero(out.reshape(10, 64).all(axis=1)).tolist() == [2, 7]


# Counters


def test_bank_conflicts_are_counted():
    def wavefronts(stride, size=4):
        type_ = {4: "b32", 8: "v2.b32", 16: "v4.b32"}[size]
        value = {4: "%r1", 8: "{%r1, %r2}", 16: "{%r1, %r2, %r3, %r4}"}[size]
        body = f".shared .align 16 .b8 tile[16384]; mov.u32 %r9, tile; mad.lo.u32 %r9, %r20, {stride}, %r9;"
        return run(f"{body} st.shared.{type_} [%r9], {value};").counters.cost_per_request("shared")

    assert wavefronts(4) == 1
    assert wavefronts(8) == 2
    assert wavefronts(128) == 32
    assert wavefronts(132) == 1  # rows padded by one word
    assert wavefronts(8, size=8) == 2  # 256 bytes cannot come in one wavefront
    assert wavefronts(16, size=16) == 4
    assert wavefronts(32, size=16) == 8


def test_a_broadcast_is_one_wavefront():
    body = """.shared .align 16 .b8 tile[4]; mov.u32 %r9, tile;
    setp.eq.u32 %p1, %r20, 0; @%p1 st.shared.b32 [%r9], %r9; bar.sync 0;"""
    report = run(f"{body} ld.shared.b32 %r1, [%r9];")
    assert report.counters.cost_per_request("shared", kind="load") == 1


@pytest.mark.parametrize(("stride", "sectors"), [(4, 4), (8, 8), (32, 32), (0, 1), (128, 32)])
def test_sectors_are_counted(stride, sectors):
    x = empty_aligned((64 * 32,), np.uint32)
    body = f"""ld.param.u64 %d20, [p0]; mul.wide.u32 %d21, %r20, {stride}; add.s64 %d20, %d20, %d21;
    ld.global.b32 %r1, [%d20];"""
    report = run(body, x)
    assert report.counters.cost_per_request("global") == sectors
    assert report.counters.bytes_read == len({(t * stride) for t in range(64)}) * 4


def test_instructions_are_counted_by_class():
    body = """fma.rn.f32 %f1, %f2, %f3, %f1; fma.rn.f32 %f1, %f2, %f3, %f1; add.f32 %f1, %f1, %f2;
    setp.lt.u32 %p1, %r20, 8; @%p1 add.f32 %f1, %f1, %f1;"""
    counters = run(body, blocks=3).counters
    assert counters.warps["fma"] == 2 * 2 * 3
    assert counters.lanes["fma"] == 2 * 64 * 3
    assert counters.lanes["float"] == (64 + 8) * 3
    assert counters.warps["float"] == (2 + 1) * 3
    assert 0 < counters.ffma_share < 1


# Refusals


@pytest.mark.parametrize(("text", "message"), [
    ("hello", "not known at the top"),
    (".version 8.0\n", "no .target"),
    (HEADER + ".visible .entry k() { .reg .b33 %r<2>; ret; }", "b33"),
    (HEADER + ".visible .entry k() { ret }", "expected"),
    (HEADER + ".visible .entry k() { bra NOWHERE; }", "NOWHERE"),
    (HEADER + ".visible .entry k() { .reg .b32 %r<2>; mov.u32 %r1, nothing; }", "nothing"),
    (HEADER + ".visible .entry k() { .reg .b32 %r<2>; mov.u32 %r1, %clock; }", "%clock"),
    (HEADER + ".visible .entry k() { .reg .b32 %r<2>; .reg .b64 %d<2>; add.s64 %d1, %d1, %r1; }", "%r1 cannot be read"),
    (HEADER + ".visible .entry k() { .reg .b16 %h<2>; .reg .b32 %r<2>; add.s32 %h1, %r1, 1; }", "too narrow"),
    (HEADER + ".visible .entry k() { .reg .f32 %f<2>; add.f32 %f1, %f1, 0d3FF0000000000000; }", "f64"),
])  # fmt: skip
def test_refuses_ptx_it_does_not_understand(text, message):
    with pytest.raises(emulator.PtxError, match=message):
        emulator.launch(text, "k", 1, 1, ())


def test_refuses_more_threads_than_the_kernel_was_compiled_for():
    text = HEADER + ".visible .entry k() .maxntid 64, 1, 1 { ret; }"
    with pytest.raises(emulator.PtxError, match="at most 64 threads"):
        emulator.launch(text, "k", 1, 128, ())


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr("convlib.emulator.machine.MOST_SEGMENTS", 1000)
    with pytest.raises(RuntimeError, match="endless"):
        run("LOOP: bra LOOP;")
