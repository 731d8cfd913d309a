"""What tensor cores compute: mma.sync on the fragments that the 32 lanes of a warp hold.

    D (16 x 8, float32) = A (16 x k) B (k x 8) + C        lane = 4 g + t, g = 0..7, t = 0..3

    register j of A       row g + 8 (j & 1)       its values: columns v t ... + v - 1, 4 v (j >> 1) further right
    register j of B       column g                its values: rows v t ... + v - 1, 4 v j further down
    register j of C, D    row g + 8 (j >> 1)      column 2 t + (j & 1)

v is how many values a 32-bit register holds: 2 of float16 or bfloat16 (the first in the low half), 1 of TF32.
Products are exact in float32 (11 bits times 11); they are added to C one after the other, k ascending, each sum
rounded to float32. A GPU adds several at once and cuts off bits, so its last places differ: compare by tolerance.
Of a TF32 operand the low 13 bits are ignored, as the hardware ignores them: a kernel that does not round with
cvt.rn.tf32 or cvt.rna.tf32 is truncated here too.
Source: NVIDIA, PTX ISA 9.0, "Matrix fragments for mma.m16n8k16", ".m16n8k8" and ".m16n8k4".
"""

from __future__ import annotations

import numpy as np
from numba import njit

M, N = 16, 8
DEPTHS = {  # k, by shape and operand type
    ("m16n8k16", "f16"): 16, ("m16n8k16", "bf16"): 16, ("m16n8k8", "f16"): 8, ("m16n8k8", "bf16"): 8,
    ("m16n8k8", "tf32"): 8, ("m16n8k4", "tf32"): 4,
}  # fmt: skip
VALUES_PER_REGISTER = {"f16": 2, "bf16": 2, "tf32": 1}
TF32_BITS = np.uint32(0xFFFFE000)

EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint32)
WIDENED = {  # the float32 of every 16-bit pattern
    "f16": EVERY_16_BITS.astype(np.uint16).view(np.float16).astype(np.float32),
    "bf16": (EVERY_16_BITS << np.uint32(16)).view(np.float32),
    "tf32": np.zeros(0, np.float32),
}


def multiply_adds(shape):
    """Of one mma instruction, all lanes together: m n k of "m16n8k16" and its like."""
    return M * N * int(shape.rpartition("k")[2])


class Warp:
    """The matrices of one warp, where `multiply` lays them out: A, B, the sums, and the bits of A and B."""

    def __init__(self, depth):
        a, b, sums = (np.zeros(shape, np.float32) for shape in ((M, depth), (depth, N), (M, N)))
        self.matrices = a, b, sums, a.view(np.uint32), b.view(np.uint32)


@njit(cache=True, _nrt=False)
def multiply(a, b, c, d, active, widened, nan, left, right, sums, left_bits, right_bits):
    """d = a b + c for every warp with an active lane; a, b, c, d: tuples of registers, one array of all lanes each."""
    depth = left.shape[1]
    values = M * depth // (32 * len(a))  # in a register
    for warp in range(0, active.shape[0], 32):
        working = False
        for lane in range(warp, warp + 32):
            working |= active[lane]
        if not working:
            continue
        for lane in range(32):
            g, t = lane >> 2, lane & 3
            for j in range(len(a)):
                word, row, column = a[j][warp + lane], g + 8 * (j & 1), values * (t + 4 * (j >> 1))
                if values == 2:
                    left[row, column] = widened[word & 0xFFFF]
                    left[row, column + 1] = widened[word >> 16]
                else:
                    left_bits[row, column] = word & TF32_BITS
            for j in range(len(b)):
                word, row = b[j][warp + lane], values * (t + 4 * j)
                if values == 2:
                    right[row, g] = widened[word & 0xFFFF]
                    right[row + 1, g] = widened[word >> 16]
                else:
                    right_bits[row, g] = word & TF32_BITS
            for j in range(len(c)):
                sums[g + 8 * (j >> 1), 2 * t + (j & 1)] = c[j][warp + lane]
        for m in range(M):
            for k in range(depth):
                for n in range(N):
                    sums[m, n] += left[m, k] * right[k, n]
        for lane in range(32):
            if active[warp + lane]:
                for j in range(len(d)):
                    value = sums[(lane >> 2) + 8 * (j >> 1), 2 * (lane & 3) + (j & 1)]
                    d[j][warp + lane] = value if value == value else nan
