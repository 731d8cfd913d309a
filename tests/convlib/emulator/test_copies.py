"""cp.async: what arrives, when it arrives, and what may be read or written before."""

from __future__ import annotations

import numpy as np
import pytest

from convlib import emulator
from convlib.emulator.machine import LANES_PER_BATCH
from convlib.strided import empty_aligned
from tests.convlib.emulator.ptx import address, kernel

T = np.arange(64)
RANDOM = np.random.default_rng(0)


def aligned(values):
    array = empty_aligned(values.shape, values.dtype)
    array[...] = values
    return array


def start(size=16, bytes_of_tile=None):
    """%r9: the tile; %r10: this thread's bytes in it; %d20: its bytes of p0."""
    total = bytes_of_tile or 64 * size
    return f""".shared .align 128 .b8 tile[{total}]; mov.u32 %r9, tile; mad.lo.u32 %r10, %r20, {size}, %r9;
    {address(0, size)}"""


def store(size, register="%r10"):
    """Bring the thread's bytes of the tile to p1."""
    count = size // 4
    names = ", ".join(f"%r{i}" for i in range(1, count + 1))
    value, width = ("{" + names + "}", f".v{count}") if count > 1 else (names, "")
    return f"ld.shared{width}.b32 {value}, [{register}]; {address(1, size)} st.global{width}.b32 [%d20], {value};"


COPY = "cp.async.cg.shared.global [%r10], [%d20], 16;"
WAIT = "cp.async.wait_all;"
NEIGHBOUR = "mov.u32 %r11, 63; sub.u32 %r11, %r11, %r20; mad.lo.u32 %r11, %r11, 16, %r9;"


def run(body, x, *more, threads=64, blocks=1, **options):
    """p0 is x, p1 as much room as x has; returns that and the report."""
    y = aligned(np.zeros_like(x))
    return y, emulator.launch(kernel(body, 2 + len(more)), "k", blocks, threads, (x, y, *more), **options)


def bytes_of(size):
    return aligned(RANDOM.integers(0, 256, (64, size), np.uint8))


@pytest.mark.parametrize(("opcode", "size"), [
    ("ca.shared.global", 4), ("ca.shared.global", 8), ("ca.shared.global", 16), ("cg.shared.global", 16),
    ("ca.shared::cta.global.L2::128B", 8), ("cg.shared.global.L2::256B", 16),
])  # fmt: skip
@pytest.mark.parametrize("checks", [True, False])
def test_bytes_arrive(opcode, size, checks):
    x = bytes_of(size)
    body = f"{start(size)} cp.async.{opcode} [%r10], [%d20], {size}; {WAIT} {store(size)}"
    y, report = run(body, x, checks=checks)
    report.raise_if_faulty()
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_what_the_source_does_not_give_becomes_zero(size):
    """Sizes of source from 0 to the whole copy, in a register; the bytes of x past them do not exist."""
    given = (T % (size + 1)).astype(np.uint32)
    x = bytes_of(size)
    body = f"""{start(size)} {address(2, 4).replace("%d20", "%d22").replace("%d21", "%d23")} ld.global.u32 %r12, [%d22];
    cp.async.ca.shared.global [%r10], [%d20], {size}, %r12; {WAIT} {store(size)}"""
    y, report = run(body, x, aligned(given))
    report.raise_if_faulty()
    np.testing.assert_array_equal(y, np.where(np.arange(size) < given[:, None], x, 0))


def test_a_source_size_may_be_a_constant_and_a_predicate_means_none():
    x = bytes_of(16)
    for operand, given in (("8", 8 + 0 * T), ("0", 0 * T), ("%p1", np.where(T < 20, 0, 16))):
        body = f"""{start()} setp.lt.u32 %p1, %r20, 20; cp.async.cg.shared.global [%r10], [%d20], 16, {operand};
        {WAIT} {store(16)}"""
        y, report = run(body, x)
        report.raise_if_faulty()
        np.testing.assert_array_equal(y, np.where(np.arange(16) < given[:, None], x, 0))


@pytest.mark.parametrize(("operand", "kinds"), [
    ("", {"out of bounds"}), (", 16", {"out of bounds"}), (", 9", {"out of bounds"}), (", 8", set()), (", 0", set()),
    (", 17", {"source size", "out of bounds"}),
])  # fmt: skip
def test_only_bytes_that_are_taken_must_exist(operand, kinds):
    """The last thread's source ends 8 bytes early."""
    x = aligned(np.zeros(64 * 16 - 8, np.uint8))
    assert run(f"{start()} cp.async.cg.shared.global [%r10], [%d20], 16{operand};", x)[1].kinds() == kinds


@pytest.mark.parametrize("operand", ["", ", 8"])
def test_a_source_that_does_not_exist_gives_zeros(operand):
    x = bytes_of(16)
    body = f"{start()} add.s64 %d20, %d20, {1 << 50}; cp.async.cg.shared.global [%r10], [%d20], 16{operand};"
    y, report = run(f"{body} {WAIT} {store(16)}", x)
    assert report.kinds() == {"out of bounds"}
    assert not y.any()


@pytest.mark.parametrize("operand", ["", ", 8", ", 0"])
@pytest.mark.parametrize("moved", ["add.s64 %d20, %d20, 8;", "add.u32 %r10, %r10, 8;"], ids=["source", "destination"])
def test_both_addresses_must_be_aligned(moved, operand):
    x = aligned(np.zeros(65 * 16, np.uint8))
    _, report = run(f"{start(16, 65 * 16)} {moved} cp.async.cg.shared.global [%r10], [%d20], 16{operand};", x)
    assert report.kinds() == {"misaligned"}
    assert report.faults[0].count == 64


def test_a_destination_past_the_end_is_found():
    x = bytes_of(16)
    assert run(f"{start(16, 63 * 16)} {COPY}", x)[1].kinds() == {"out of bounds"}


def test_a_source_that_nobody_wrote_is_found():
    x = bytes_of(16)
    tracked = emulator.Tracked("x", x)
    _, report = run(f"{start()} {COPY}", x, tracked=(tracked,))
    assert report.kinds() == {"uninitialised read"}


# When


@pytest.mark.parametrize(("between", "kinds"), [
    ("", {"copy in flight"}),
    ("cp.async.commit_group;", {"copy in flight"}),
    ("bar.sync 0;", {"copy in flight"}),
    ("cp.async.wait_group 0;", {"copy in flight"}),  # of nothing: the copy was never committed
    ("cp.async.commit_group; cp.async.wait_group 1;", {"copy in flight"}),
    ("cp.async.commit_group; cp.async.wait_group 0;", set()),
    ("cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;", set()),  # an empty group counts
    (WAIT, set()),
])  # fmt: skip
@pytest.mark.parametrize(
    "access", ["ld.shared.b32 %r1, [%r10];", "st.shared.b32 [%r10], %r1;", COPY.replace("cg", "ca")]
)
def test_the_issuing_thread_may_touch_the_bytes_once_it_has_waited(between, kinds, access):
    _, report = run(f"{start()} {COPY} {between} {access}", bytes_of(16))
    assert report.kinds() == kinds


@pytest.mark.parametrize(("between", "kinds"), [
    (WAIT, {"race: read after write"}),
    ("bar.sync 0;", {"copy in flight"}),
    (f"bar.sync 0; {WAIT}", {"race: read after write"}),
    (f"{WAIT} bar.sync 0;", set()),
    ("cp.async.commit_group; cp.async.wait_group 1; bar.sync 0;", {"copy in flight"}),
])  # fmt: skip
def test_other_threads_need_a_barrier_after_the_wait(between, kinds):
    x = bytes_of(16)
    y, report = run(f"{start()} {NEIGHBOUR} {COPY} {between} {store(16, '%r11')}", x)
    assert report.kinds() == kinds
    if not kinds:
        np.testing.assert_array_equal(y, x[::-1])


def test_a_warps_barrier_is_enough_for_its_lanes():
    swap = "xor.b32 %r11, %r20, 1; mad.lo.u32 %r11, %r11, 16, %r9;"
    for between, kinds in (("bar.warp.sync -1;", set()), ("", {"race: read after write"})):
        # the shuffle makes the check follow warps in either case
        body = f"{start()} {swap} shfl.sync.bfly.b32 %r12, %r20, 1, 31, -1; {COPY} {WAIT} {between} {store(16, '%r11')}"
        assert run(body, bytes_of(16))[1].kinds() == kinds


@pytest.mark.parametrize(("between", "kinds"), [("", {"race: write after read"}), ("bar.sync 0;", set())])
def test_a_copy_into_bytes_that_are_still_read_is_a_race(between, kinds):
    _, report = run(
        f"{start()} {NEIGHBOUR} {COPY} {WAIT} bar.sync 0; ld.shared.b32 %r1, [%r11]; {between} {COPY}", bytes_of(16)
    )
    assert report.kinds() == kinds


def test_two_copies_into_the_same_bytes_are_not_ordered():
    _, report = run(f"{start()} {COPY} cp.async.commit_group; {COPY} {WAIT}", bytes_of(16))
    assert report.kinds() == {"copy in flight"}
    assert run(f"{start()} {COPY} {WAIT} {COPY} {WAIT}", bytes_of(16))[1].kinds() == set()


def test_small_copies_side_by_side_do_not_race():
    """Each thread copies 4 bytes; every other thread reads 8, the narrowest access that is no copy."""
    x = bytes_of(4)
    body = f"""{start(4)} cp.async.ca.shared.global [%r10], [%d20], 4; {WAIT} bar.sync 0;
    and.b32 %r11, %r20, 1; setp.ne.u32 %p1, %r11, 0; @%p1 exit;
    ld.shared.b64 %d1, [%r10]; {address(1, 4)} st.global.b64 [%d20], %d1;"""
    y, report = run(body, x)
    report.raise_if_faulty()
    np.testing.assert_array_equal(y, x)


def test_the_message_names_the_thread_that_issued_the_copy():
    _, report = run(f"{start()} {NEIGHBOUR} {COPY} bar.sync 0; ld.shared.b32 %r1, [%r11];", bytes_of(16))
    (fault,) = report.faults
    assert fault.thread == (0, 0, 0)
    assert "tile + 1008, with block (0, 0, 0), thread (63, 0, 0) at PTX line" in fault.message


def test_groups_are_counted_thread_by_thread():
    """Threads under 20 commit after each of their two copies, the others once: for those, one group is both copies."""
    x = bytes_of(32)
    body = f"""{start(32)} setp.lt.u32 %p1, %r20, 20;
    cp.async.cg.shared.global [%r10], [%d20], 16; @%p1 cp.async.commit_group;
    cp.async.cg.shared.global [%r10+16], [%d20+16], 16; cp.async.commit_group;
    cp.async.wait_group 1; ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [%r10];"""
    _, report = run(body, x)
    (fault,) = report.faults
    assert (fault.kind, fault.count, fault.thread) == ("copy in flight", 44, (20, 0, 0))


def test_a_wait_is_for_the_threads_that_execute_it():
    body = f"""{start()} {COPY} cp.async.commit_group; setp.lt.u32 %p1, %r20, 20; @%p1 cp.async.wait_group 0;
    ld.shared.b32 %r1, [%r10];"""
    (fault,) = run(body, bytes_of(16))[1].faults
    assert (fault.kind, fault.count, fault.thread) == ("copy in flight", 44, (20, 0, 0))


def test_bytes_arrive_once():
    """Threads under 20 wait, and write over what came, before the others wait for the same copy."""
    x = bytes_of(4)
    body = f"""{start(4)} cp.async.ca.shared.global [%r10], [%d20], 4; cp.async.commit_group;
    setp.lt.u32 %p1, %r20, 20; @%p1 cp.async.wait_group 0; @%p1 st.shared.b32 [%r10], 9;
    cp.async.wait_group 0; {store(4)}"""
    y, report = run(body, x)
    report.raise_if_faulty()
    np.testing.assert_array_equal(y.view(np.uint32)[:20], 9)
    np.testing.assert_array_equal(y[20:], x[20:])


def test_the_source_is_read_when_it_is_waited_for():
    """A kernel that overwrites its source before it waits computes with what it wrote."""
    x = bytes_of(16)
    y, _ = run(f"{start()} {COPY} st.global.b32 [%d20], 7; {WAIT} {store(16)}", x)
    assert (y.view(np.uint32)[:, 0] == 7).all()


def test_bytes_in_flight_are_not_numbers():
    x = bytes_of(16)
    y, _ = run(f"{start()} {COPY} {store(16)}", x, checks=False)
    assert np.isnan(y.view(np.float32)).all()


def test_copies_that_nobody_waits_for_end_with_their_block():
    """The blocks of the first batch end with copies in flight, into bytes that the second one's write themselves."""
    first = LANES_PER_BATCH // 2 // 64
    x = aligned(np.full((128 * first, 4), 9, np.uint32))
    body = f"""{start()} setp.ge.u32 %p1, %r21, {first}; @%p1 bra SECOND; {COPY} exit;
    SECOND: st.shared.b32 [%r10], 7; cp.async.commit_group; cp.async.wait_group 0;
    ld.shared.b32 %r1, [%r10]; {address(1, 16)} st.global.b32 [%d20], %r1;"""
    y, report = run(body, x, blocks=2 * first)
    report.raise_if_faulty()
    assert (y[64 * first :, 0] == 7).all()


def test_the_threads_of_each_branch_wait_for_their_own_copies():
    x = bytes_of(16)
    body = f"""{start()} {COPY} setp.lt.u32 %p1, %r20, 20; @%p1 bra LOW; cp.async.commit_group;
    cp.async.wait_group 0; bra JOIN; LOW: cp.async.commit_group; cp.async.wait_group 1; JOIN:
    ld.shared.b32 %r1, [%r10];"""
    (fault,) = run(body, x)[1].faults
    assert (fault.kind, fault.count) == ("copy in flight", 20)


# Counted


@pytest.mark.parametrize(
    ("stride", "size", "wavefronts"), [(16, 16, 4), (32, 16, 8), (128, 16, 32), (4, 4, 1), (8, 4, 2)]
)
def test_traffic_is_counted_on_both_sides(stride, size, wavefronts):
    x = aligned(np.zeros((64, 32), np.uint8))
    body = f"""{start(stride)} cp.async.ca.shared.global [%r10], [%d21], {size};"""
    body = body.replace(address(0, stride), address(0, 32) + "mov.u64 %d21, %d20;")
    counters = run(body, x)[1].counters
    assert counters.cost_per_request("shared", size, "copy") == wavefronts
    assert counters.cost_per_request("global", size, "copy") == 32
    assert counters.warps["copy"] == 2
    assert counters.bytes_read == 64 * size


def test_a_copy_of_nothing_requests_no_sectors():
    body = f"{start()} setp.lt.u32 %p1, %r20, 2; selp.u32 %r12, 16, 0, %p1;"
    counters = run(f"{body} cp.async.cg.shared.global [%r10], [%d20], 16, %r12;", bytes_of(16))[1].counters
    (copied,) = [t for t in counters.traffic if t.space == "global" and t.kind == "copy"]
    assert (copied.requests, copied.cost, copied.lanes) == (1, 1, 2)


@pytest.mark.parametrize("instruction", [
    "cp.async.cg.shared.global [%r1], [%d1], 8", "cp.async.ca.shared.global [%r1], [%d1], 2",
    "cp.async.ca.shared.global [%r1], [%d1], %r2", "cp.async.ca.shared.global.L2::cache_hint [%r1], [%d1], 16, %d2",
    "cp.async.mbarrier.arrive.shared.b64 [%r1]", "cp.async.wait_group %r1",
    "cp.async.bulk.shared.global [%r1], [%d1], 16, [%r2]",
])  # fmt: skip
def test_refuses_other_copies(instruction):
    with pytest.raises(emulator.PtxError):
        emulator.launch(kernel(f"{instruction};", 0), "k", 1, 32, ())
