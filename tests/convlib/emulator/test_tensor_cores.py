"""mma and ldmatrix against NumPy, element by element where the PTX ISA's tables put them."""

from __future__ import annotations

import numpy as np
import pytest

from convlib import emulator
from convlib.strided import empty_aligned
from tests.convlib.emulator.ptx import address, kernel

LANE = np.arange(32)
GROUP, IN_GROUP = LANE // 4, LANE % 4  # groupID and threadID_in_group of the tables
RANDOM = np.random.default_rng(0)

# (row, column) of element i of A and (k, column) of B, as the PTX ISA's tables say it
A_PLACES = {
    ("m16n8k16", 2): lambda i: (GROUP + 8 * (i in (2, 3, 6, 7)), IN_GROUP * 2 + (i & 1) + 8 * (i >= 4)),
    ("m16n8k8", 2): lambda i: (GROUP + 8 * (i >= 2), IN_GROUP * 2 + (i & 1)),
    ("m16n8k8", 1): lambda i: (GROUP + 8 * (i in (1, 3)), IN_GROUP + 4 * (i >= 2)),
    ("m16n8k4", 1): lambda i: (GROUP + 8 * (i == 1), IN_GROUP),
}
B_PLACES = {
    ("m16n8k16", 2): lambda i: (IN_GROUP * 2 + (i & 1) + 8 * (i >= 2), GROUP),
    ("m16n8k8", 2): lambda i: (IN_GROUP * 2 + i, GROUP),
    ("m16n8k8", 1): lambda i: (IN_GROUP + 4 * i, GROUP),
    ("m16n8k4", 1): lambda i: (IN_GROUP, GROUP),
}
SHAPES = [("m16n8k16", "f16"), ("m16n8k16", "bf16"), ("m16n8k8", "f16"), ("m16n8k8", "bf16"), ("m16n8k8", "tf32"),
          ("m16n8k4", "tf32")]  # fmt: skip


def c_place(i):
    return GROUP + 8 * (i >= 2), IN_GROUP * 2 + (i & 1)


def bits_of(values, type_):
    """float64 values as the bits of `type_`, cut off; and what those bits mean."""
    if type_ == "f16":
        half = values.astype(np.float16)
        return half.view(np.uint16), half.astype(float)
    whole = values.astype(np.float32).view(np.uint32)
    if type_ == "bf16":
        return (whole >> np.uint32(16)).astype(np.uint16), (whole & np.uint32(0xFFFF0000)).view(np.float32).astype(
            float
        )
    return whole, (whole & np.uint32(0xFFFFE000)).view(np.float32).astype(float)


def registers(matrix, place, per_register):
    """A fragment as the 32 lanes' registers (32 x count, uint32), from the bits of the matrix."""
    count = matrix.size // (32 * per_register)
    found = np.zeros((32, count), np.uint32)
    for i in range(count * per_register):
        shift = np.uint32(16 * (i % 2) if per_register == 2 else 0)
        found[:, i // per_register] |= matrix[place(i)].astype(np.uint32) << shift
    return found


def opcode(shape, type_):
    return f"mma.sync.aligned.{shape}.row.col.f32.{type_}.{type_}.f32"


def vector(letter, first, count):
    return "{" + ", ".join(f"%{letter}{i}" for i in range(first, first + count)) + "}"


def product(
    shape, type_, a, b, c, *, warps=1, threads=None, before="", guard="", behind="", addend="{%f1, %f2, %f3, %f4}"
):
    """d of one mma on the matrices in every warp, and the report; before, behind: what stands around it."""
    per_register = 1 if type_ == "tf32" else 2
    a = registers(a, A_PLACES[shape, per_register], per_register)
    b = registers(b, B_PLACES[shape, per_register], per_register)
    c = np.stack([c[c_place(i)] for i in range(4)], axis=1).astype(np.float32)
    d = np.zeros((32 * warps, 4), np.float32)
    loads, operands = [], []
    for number, (array, letter, first) in enumerate(((a, "r", 1), (b, "r", 11), (c, "f", 1))):
        count = array.shape[1]
        loads.append(f"{address(number, 4 * count)}")
        loads += [f"ld.global.b32 %{letter}{first + i}, [%d20+{4 * i}];" for i in range(count)]
        operands.append(vector(letter, first, count))
    operands[2] = addend
    body = f"""{" ".join(loads)} {before}
    {guard} {opcode(shape, type_)} {{%f1, %f2, %f3, %f4}}, {", ".join(operands)}; {behind}
    AFTER: {address(3, 16)} st.global.v4.f32 [%d20], {{%f1, %f2, %f3, %f4}};"""
    arrays = [aligned(np.tile(array, (warps, 1))) for array in (a, b, c)] + [aligned(d)]
    report = emulator.launch(kernel(body, 4), "k", 1, threads or 32 * warps, tuple(arrays))
    result = np.zeros((warps, 16, 8), np.float32)
    for i in range(4):
        result[(slice(None), *c_place(i))] = arrays[3].reshape(warps, 32, 4)[:, :, i]
    return result, report


def aligned(values):
    array = empty_aligned(values.shape, values.dtype)
    array[...] = values
    return array


def operands(shape, type_, values):
    k = int(shape.rpartition("k")[2])
    (a, exact_a), (b, exact_b) = bits_of(values((16, k)), type_), bits_of(values((k, 8)), type_)
    c = values((16, 8)).astype(np.float32)
    return (a, b, c), exact_a @ exact_b + c


@pytest.mark.parametrize(("shape", "type_"), SHAPES)
def test_products_of_integers_are_exact(shape, type_):
    arrays, exact = operands(shape, type_, lambda size: RANDOM.integers(-8, 9, size).astype(float))
    result, report = product(shape, type_, *arrays, warps=3)
    report.raise_if_faulty()
    np.testing.assert_array_equal(result, np.broadcast_to(exact, result.shape))
    assert report.counters.warps["mma"] == 3
    assert report.counters.mma_multiply_adds == 3 * 16 * 8 * int(shape.rpartition("k")[2])


@pytest.mark.parametrize(("shape", "type_"), SHAPES)
def test_products_of_random_numbers(shape, type_):
    """TF32 operands have all their 23 bits of mantissa here: `exact` leaves the low 13 out."""
    arrays, exact = operands(shape, type_, RANDOM.standard_normal)
    result, report = product(shape, type_, *arrays)
    report.raise_if_faulty()
    np.testing.assert_allclose(result[0], exact, rtol=0, atol=16 * 2.0**-23)


def test_every_float16_is_widened_exactly():
    """Denormals and infinities too; infinities of both signs make the GPU's NaN."""
    a, b = np.zeros((16, 16), np.uint16), np.zeros((16, 8), np.uint16)
    a[0, 0], a[1, 0], a[2, 0], a[3, 0], a[3, 1] = 0x0001, 0x83FF, 0x7C00, 0x7C00, 0xFC00
    b[:2, 0] = 0x3C00
    result, _ = product("m16n8k16", "f16", a, b, np.zeros((16, 8)))
    np.testing.assert_array_equal(result[0, :3, 0], [2.0**-24, -1023 * 2.0**-24, np.inf])
    assert result.view(np.uint32)[0, 3, 0] == 0x7FFFFFFF


def test_an_addend_may_be_a_constant():
    (a, b, c), exact = operands("m16n8k8", "f16", lambda size: RANDOM.integers(-8, 9, size).astype(float))
    result, _ = product("m16n8k8", "f16", a, b, c, addend="{0f3F800000, 0f3F800000, 0f3F800000, 0f3F800000}")
    np.testing.assert_array_equal(result[0], exact - c + 1)


# Whole warps

ONES = np.full((16, 8), 0x3C00, np.uint16), np.full((8, 8), 0x3C00, np.uint16), np.zeros((16, 8))


@pytest.mark.parametrize(("before", "guard"), [
    ("setp.lt.u32 %p1, %r20, 40; @!%p1 bra AFTER;", ""),
    ("setp.lt.u32 %p1, %r20, 40; @!%p1 exit;", ""),
    ("setp.lt.u32 %p1, %r20, 40;", "@%p1"),
], ids=["branch", "exit", "guard"])  # fmt: skip
def test_a_warp_that_does_not_come_as_a_whole_is_at_fault(before, guard):
    result, report = product("m16n8k8", "f16", *ONES, warps=2, before=before, guard=guard)
    assert (result[0] == 8).all()
    assert not result[1, GROUP[8:]].any()  # lanes that did not come got nothing
    (fault,) = report.faults
    assert fault.kind == "divergent warp"
    assert fault.text.startswith(f"{guard} mma".strip())
    assert "8 of a warp's 32 threads" in fault.message


@pytest.mark.parametrize("threads", [16, 48])
def test_a_block_that_ends_within_a_warp_is_at_fault(threads):
    _, report = product("m16n8k8", "f16", *ONES, warps=2, threads=threads)
    assert report.kinds() == {"divergent warp"}


@pytest.mark.parametrize(("before", "behind"), [
    ("setp.lt.u32 %p1, %r20, 40; @%p1 bra JOIN; mov.u32 %r9, 1; JOIN:", ""),
    ("setp.lt.u32 %p1, %r20, 32; @%p1 bra JOIN; mov.u32 %r9, 1; JOIN:", ""),
    ("setp.lt.u32 %p1, %r20, 40; @%p1 bra LATE; JOIN:", "bra AFTER; LATE: mov.u32 %r9, 1; bra JOIN;"),
], ids=["branch", "whole warps", "a branch that comes back"])  # fmt: skip
def test_a_warp_that_parted_and_met_again_is_whole(before, behind):
    result, report = product("m16n8k8", "f16", *ONES, warps=2, before=before, behind=behind)
    report.raise_if_faulty()
    assert (result == 8).all()
    assert report.counters.warps["mma"] == 2


def test_only_some_warps_of_a_block_may_come():
    result, report = product("m16n8k8", "f16", *ONES, warps=3, before="setp.lt.u32 %p1, %r20, 32; @!%p1 bra AFTER;")
    report.raise_if_faulty()
    assert (result[0] == 8).all()
    assert report.counters.warps["mma"] == 1


@pytest.mark.parametrize("instruction", [
    "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r1, %r2}, {%r1, %r2}, {%r3}, {%r1, %r2}",
    "mma.sync.aligned.m16n8k8.col.row.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
    "mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
    "mma.sync.aligned.m16n8k4.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
    "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1}, [%r2]",
    "ldmatrix.sync.aligned.m8n8.x1.b16 {%r1}, [%d2]",
    "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1, %r2}, [%r2]",
])  # fmt: skip
def test_refuses_shapes_and_types_that_it_does_not_know(instruction):
    with pytest.raises(emulator.PtxError):
        emulator.launch(kernel(f"{instruction};", 0), "k", 1, 32, ())


# ldmatrix

ROWS = 64  # of 16 bytes, filled by 64 threads
FILL = f"""
    .shared .align 128 .b8 tile[{16 * ROWS}];
    {address(0, 16)} ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d20];
    mov.u32 %r9, tile; mad.lo.u32 %r10, %r20, 16, %r9; st.shared.v4.b32 [%r10], {{%r1, %r2, %r3, %r4}};"""


def matrices(modifiers, rows, between="bar.sync 0;", count=4, target="sm_80", scale=16):
    """What each of two warps gets from ldmatrix when lane l gives the address of row rows[l]: 64 x count."""
    data = aligned(RANDOM.integers(0, 1 << 16, (ROWS, 8), np.uint16))
    out, places = aligned(np.zeros((64, count), np.uint32)), aligned(np.tile(rows, 2).astype(np.uint32))
    body = f"""{FILL} {between}
    {address(1, 4)} ld.global.u32 %r11, [%d20]; mad.lo.u32 %r12, %r11, {scale}, %r9;
    ldmatrix.sync.aligned.m8n8.{modifiers}.b16 {vector("r", 1, count)}, [%r12]; {address(2, 4 * count)}
    """ + " ".join(f"st.global.b32 [%d20+{4 * i}], %r{1 + i};" for i in range(count))
    text = kernel(body, 3).replace("sm_80", target)
    return data, out, emulator.launch(text, "k", 1, 64, (data, places, out))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_lanes_get_their_elements_of_each_matrix(count, transposed):
    rows = RANDOM.permutation(ROWS)[:32]
    data, out, report = matrices(f"x{count}{'.trans' * transposed}.shared", rows, count=count)
    report.raise_if_faulty()
    for i in range(count):
        matrix = data[rows[8 * i : 8 * i + 8]]
        matrix = matrix.T if transposed else matrix
        wanted = matrix[GROUP, 2 * IN_GROUP] | matrix[GROUP, 2 * IN_GROUP + 1].astype(np.uint32) << np.uint32(16)
        np.testing.assert_array_equal(out[:, i], np.tile(wanted, 2))


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (4, 4), (8, 8), (9, 1), (0, 1)])
def test_bank_conflicts_of_the_eight_rows_of_a_matrix(stride, wavefronts):
    rows = np.where(LANE < 8, stride * LANE, 0)
    _, _, report = matrices("x1.shared", np.minimum(rows, ROWS - 1), count=1)
    assert report.counters.cost_per_request("shared", kind="ldmatrix") == wavefronts
    assert report.counters.warps["ldmatrix"] == 2


def test_four_matrices_take_four_wavefronts_whatever_lies_between_them():
    _, _, report = matrices("x4.shared::cta", np.tile(np.arange(8), 4))
    assert report.counters.cost_per_request("shared", kind="ldmatrix") == 4


@pytest.mark.parametrize(("count", "lane", "target", "kinds"), [
    (4, 31, "sm_80", {"out of bounds"}), (1, 7, "sm_80", {"out of bounds"}), (2, 15, "sm_80", {"out of bounds"}),
    (1, 8, "sm_80", set()), (2, 16, "sm_90", set()), (1, 31, "sm_75", {"out of bounds"}),
])  # fmt: skip
def test_every_address_that_counts_is_checked(count, lane, target, kinds):
    """Those of lanes that give no row count too on sm_75, where they must be valid all the same."""
    _, _, report = matrices(f"x{count}.shared", np.where(lane == LANE, ROWS, LANE), count=count, target=target)
    assert report.kinds() == kinds


def test_a_row_must_be_aligned():
    _, _, report = matrices("x4.shared", 2 * LANE, scale=8)
    report.raise_if_faulty()
    _, _, report = matrices("x4.shared", LANE, scale=8)
    assert report.kinds() == {"misaligned"}


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize(("between", "kinds"), [
    ("", {"race: read after write"}), ("bar.sync 0;", set()), ("bar.warp.sync -1;", set()),
], ids=["nothing", "block", "warp"])  # fmt: skip
def test_rows_that_other_lanes_wrote_are_read_behind_a_barrier(between, kinds, trans):
    """Each warp reads the rows that its own lanes wrote: a row goes to other lanes than the one that wrote it."""
    data = aligned(RANDOM.integers(0, 1 << 16, (ROWS, 8), np.uint16))
    body = f"{FILL} {between} ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r1, %r2, %r3, %r4}}, [%r10];"
    assert emulator.launch(kernel(body, 1), "k", 1, 64, (data,)).kinds() == kinds


def test_rows_that_nobody_wrote_are_found():
    body = """.shared .align 16 .b8 tile[512]; mov.u32 %r9, tile; mad.lo.u32 %r9, %r20, 16, %r9;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r9];"""
    assert emulator.launch(kernel(body, 0), "k", 1, 32, ()).kinds() == {"uninitialised read"}


@pytest.mark.parametrize("target", [75, 80, 90])
def test_writing_over_rows_that_are_still_read_is_a_race(target):
    data = aligned(RANDOM.integers(0, 1 << 16, (ROWS, 8), np.uint16))
    read = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r10];"
    body = f"{FILL} bar.sync 0; {read} BETWEEN st.shared.v4.b32 [%r10], {{%r1, %r2, %r3, %r4}};"
    for between, kinds in (("", {"race: write after read"}), ("bar.sync 0;", set())):
        text = kernel(body.replace("BETWEEN", between), 1).replace("sm_80", f"sm_{target}")
        assert emulator.launch(text, "k", 1, 64, (data,)).kinds() == kinds
