// Direct convolution: one thread, one output; the definition, straight from global memory.
//
//     y[n,k,p,q]  <-  sum over c, r, s of  x[n, c, h, w] * w[k, c, r, s]      h = p * STRIDE_H - top  + r * DILATION_H
//                                                                             w = q * STRIDE_W - left + s * DILATION_W
//
// Why it is here: it is what the other kernels are read against, and it serves every problem.
// What it costs: two loads per multiply-add. Neighbouring threads compute neighbouring outputs (along q where images
// lie plane by plane, along k where channels lie last), so that each load of a warp touches few lines, and the
// first-level cache serves what neighbours share; yet the load units, 32 lanes per cycle and SM, cap it at a quarter
// of the multiply-adds the SM could do, and in practice at less.
// Limits: none. 2^31 - 1 blocks of 256 outputs are more than any memory holds.
// Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, section 2.
//
// Compiled with -DCHANNELS_LAST=1 where y lies N P Q K in memory, 0 where it lies N K P Q, and problem.cuh's
// constants.

#include "epilogue.cuh"

constexpr int THREADS = 256;

struct Place { int n, k, p, q; };

// The output numbered `index` in y's order in memory.
__device__ __forceinline__ Place output_number(const Problem& problem, Index index)
{
    Place at;
    if (CHANNELS_LAST) { at.k = index % problem.K; index /= problem.K; }
    at.q = index % problem.Q; index /= problem.Q;
    at.p = index % problem.P; index /= problem.P;
    if (!CHANNELS_LAST) { at.k = index % problem.K; index /= problem.K; }
    at.n = index;
    return at;
}

// grid: ceil(N * K * P * Q / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
conv2d_direct(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y,
              const Element* __restrict__ bias, const Element* __restrict__ residual, Problem problem)
{
    const Index index = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (index >= (Index)problem.N * problem.K * problem.P * problem.Q) return;
    const Place at = output_number(problem, index);

    const int h0 = at.p * STRIDE_H - problem.top, w0 = at.q * STRIDE_W - problem.left;
    const Element* image = x + offset(problem.x, at.n, at.k / problem.Kg * problem.Cg, h0, w0);
    const Element* filter = w + offset(problem.w, at.k, 0, 0, 0);

    Accumulator sum = 0;
    for (int c = 0; c < problem.Cg; ++c) {
        for (int r = 0; r < R; ++r) {
            if ((unsigned)(h0 + r * DILATION_H) >= problem.H) continue;
            for (int s = 0; s < S; ++s) {
                if ((unsigned)(w0 + s * DILATION_W) >= problem.W) continue;
                sum += widened(image[offset(problem.x, 0, 0, r * DILATION_H, s * DILATION_W)])
                     * widened(filter[offset(problem.w, 0, 0, r, s)]);
            }
        }
        image += problem.x.c;
        filter += problem.w.c;
    }
    store(problem, {y, bias, residual}, at.n, at.k, at.p, at.q, sum);
}
