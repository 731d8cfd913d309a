"""Weight gradient by Winograd, F(3 x 3, 4 x 4): for 3 x 3 layers, 36 matrix products over tiles instead of 144.

    grad_w[k, c, r, s] = sum over n, p, q of  x[n, c, p + r - top, q + s - left] * grad_y[n, k, p, q]

is a correlation with grad_y as the window, and 3 x 3 outputs. grad_y is cut into windows of 4 x 4; each, and the 6 x 6
numbers of x under it, are transformed (winograd_matrices.py), and then

    M[plane][c, k] = sum over tiles of  V[plane][tile, c] * U[plane][tile, k]        V = B^T x B     U = G grad_y G^T

    4 x 4 pixels, 9 taps: 144 multiplications per channel and filter become 36; A^T M A, once at the end, is 3 x 3 again

Where the forward pass adds up channels, this adds up tiles: the transform that is repaid by nothing there, of outputs,
all but vanishes here, and both that remain are repaid by a whole block of filters, or channels.

A task owns a block of channels and one of filters, of one part of all tiles:

    for every chain of up to 512 tiles
        for every strip of up to 64 of them
            x       -> transposed, a vector of channels for each pixel, 14 tiles of a row in L1 -> V      14 % of
            grad_y  -> likewise by filters                                                      -> U      12 % the
            for every plane: the micro-kernel, channels times filters, on sums that go on                 72 % time
        M transformed back, added to the 9 totals of each channel and filter                               2 %
    the totals, or after a second round the sum of all parts', transposed into grad_w

A lane is a channel of x and a filter of grad_y, from the first transposition to the last. So a row of tiles may end
anywhere, NHWC needs no transposition, and V and U lie as the micro-kernel reads them: V is its column of numbers, one
tile's channels after another's, U its vectors.

Bits and errors. Chains and parts follow from the problem alone, and M is summed tile after tile however a chain is cut
into strips or the channels and filters into blocks: the bits are the same for any number of threads. Chains begun anew
keep the error at 2e-6 on 8 images of 224 x 224 (25,088 tiles). A NaN or an infinity in x spoils its channel's taps, and
so in grad_y its filter's, where a plain sum spoils those that read it: `algorithm="weight_grad"`, or a max_error under
1e-7, asks for that.

Lessons, measured on two Zen 5 cores:
- Against `weight_grad` on 8 images, AVX-512: 64 -> 64 at 224 x 224 2.7 times as fast, 128 -> 128 at 112 x 112 3.2,
  256 -> 256 at 56 x 56 3.4, 512 -> 512 at 28 x 28 3.4, at 14 x 14 2.1, at 7 x 7 1.9; with AVX2 3.0, 3.5, 3.5, 3.6,
  2.4, 2.0.
- What is multiplied runs at the core's peak. A block's transforms are what costs: with blocks of 64 x 64, whose sums
  fit the L2 cache, 256 -> 256 at 56 x 56 took 24.4 ms, with 128 x 128, whose 2.4 MB of sums come from L3 for every
  strip, 20.4; with 192 x 192 22.
- Strips of 32 tiles instead of 64 cost 5 % there, with 128 nothing is gained.
- Spreading tiles over the lanes, as the forward pass does, would have left grad_y to be transposed after its transform,
  36 squares instead of 16; and small maps would leave lanes empty.
- The pixels of the piece after this one, fetched while this one is transposed: 3 % to 8 % from 56 x 56 on.
- On 14 x 14 and 7 x 7 tiles stick out (0.77 of their pixels exist), and there are few to repay the sums' way back.

Its parts: winograd_weight_grad_chains.py (tiles and chains), _cuts.py (blocks, strips, what they cost), _transforms.py
and _tasks.py.
Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, whose F(3 x 3, 2 x 2) for
gradients is this with smaller tiles; the points: Barabasz et al., ACM TOMS 2020; the blocking: Goto and van de Geijn,
ACM TOMS 2008.
"""

import struct
from functools import lru_cache

from . import target
from .call import problem_fields
from .compilation import compiled
from .job import weight_grad_job_of
from .vectors import lanes
from .winograd_weight_grad_cuts import CUTS, cuts, cycles
from .winograd_weight_grad_tasks import build_tasks

passes = ("weight_grad",)

CALL_SECONDS = 60e-6  # 20 more than weight_grad's: where there is so little to gain, plain sums are kept
# weight_grad.py predicts 60 GFLOP/s a thread, whatever the processor, where it reaches about so much of the peak, its
# copying included: what is counted here in cycles is told in its measure, for the two to be compared.
FLOPS, SHARE_OF_PEAK = 60e9, 0.7


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = []
    if device.kind != "cpu":
        reasons.append(f"runs on the CPU only, x is on {device}")
    if (problem.R, problem.S) != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 only, got {problem.stride}")
    if problem.dilation != (1, 1):
        reasons.append(f"dilation 1 only, got {problem.dilation}")
    return reasons


def workspace_bytes(problem, device):
    return cuts(problem, device.threads)[1]


def predicted_seconds(problem, device):
    cut = dict(zip(CUTS, cuts(problem, device.threads)[0], strict=True))
    counted = cycles(problem, device.threads, cut["row_block"], cut["vector_block"])
    flops = 2 * lanes(problem.accumulate) * target.multiply_adds_per_cycle()
    return CALL_SECONDS + counted * flops * SHARE_OF_PEAK / FLOPS


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: the record's fields, the compiled loop, and the tasks of both rounds."""
    numbers, _ = cuts(problem, threads)
    cut = dict(zip(CUTS, numbers, strict=True))
    fields = problem_fields(problem) + struct.pack(f"{len(CUTS)}q", *numbers)
    blocks = problem.groups * cut["row_tasks"] * cut["vector_tasks"]
    return fields, compiled(build_tasks, problem.dtype.name), cut["parts"] * blocks, blocks if cut["parts"] > 1 else 0


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, 3, 3), from x (N, C, H, W) and grad_y (N, K, P, Q)."""
    job(problem, device, x, grad_y, grad_w).run(x, grad_y, grad_w, workspace=workspace)


def job(problem, device, x, grad_y, grad_w, bias=None, residual=None):
    """`run` for arrays of these strides."""
    fields, loop, parts, blocks = prepared(problem, device.threads)
    return weight_grad_job_of(fields, loop, blocks, device.threads, x, grad_y, grad_w, parts)
