// Weight gradient, directly: a block for each filter, channel and few taps, its threads share the pixels.
//
//     grad_w[k, c, r, s] = sum over n, p, q of  grad_y[n, k, p, q] * x[n, c, p stride - top + r dilation, ...]
//
// A thread takes every 256th output pixel, loads grad_y once and x for each tap, and keeps TAPS_AT_ONCE sums in
// registers. Then the threads' sums are added pairwise in shared memory, halving their number each time, always in the
// same order. Where weights are few, the pixels are split among blocks too, and finish_weight_grad adds the splits.
// Why so: with few filters and channels per group, as in depthwise layers, the tile of weight_grad.cu would be nearly
// empty. One load per multiply-add is the price; neighbouring pixels side by side in memory make it a cheap one.
// Limits: none on the problem. Never run on hardware.
// Source: the definition; Harris, Optimizing Parallel Reduction in CUDA, 2007 (sequential addressing).
//
// Compiled with problem.cuh's constants (y is grad_y, w is grad_w).

#include "weight_grad_splits.cuh"

constexpr int THREADS = 256;
constexpr int TAPS = R * S;
constexpr int MOST_TAPS = 128 / sizeof(Accumulator);  // 32 KB of shared memory
constexpr int CHUNKS = ceil_div(TAPS, MOST_TAPS), TAPS_AT_ONCE = ceil_div(TAPS, CHUNKS);

// grid: K * Cg * CHUNKS and the splits, block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS)
conv2d_weight_grad_direct(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                          Accumulator* __restrict__ partial, Problem problem, Splits splits)
{
    __shared__ Accumulator shares[TAPS_AT_ONCE][THREADS];
    const int first_tap = blockIdx.x % CHUNKS * TAPS_AT_ONCE;
    const int c = blockIdx.x / CHUNKS % problem.Cg, k = blockIdx.x / CHUNKS / problem.Cg;
    const int channel = k / problem.Kg * problem.Cg + c;
    const int64 first = blockIdx.y * splits.pixels, behind = first + splits.pixels;
    const int64 end = behind < splits.all_pixels ? behind : splits.all_pixels;

    Accumulator sums[TAPS_AT_ONCE] = {};
    for (int64 m = first + threadIdx.x; m < end; m += THREADS) {
        Index pixel = m;
        const int q = pixel % problem.Q; pixel /= problem.Q;
        const int p = pixel % problem.P, n = pixel / problem.P;
        const Accumulator factor = widened(grad_y[offset(problem.y, n, k, p, q)]);
        const int top = p * STRIDE_H - problem.top, left = q * STRIDE_W - problem.left;
        #pragma unroll
        for (int t = 0; t < TAPS_AT_ONCE; ++t) {
            const int tap = first_tap + t, h = top + tap / S * DILATION_H, w = left + tap % S * DILATION_W;
            if (tap < TAPS && (unsigned)h < problem.H && (unsigned)w < problem.W)
                sums[t] += factor * widened(x[offset(problem.x, n, channel, h, w)]);
        }
    }

    #pragma unroll
    for (int t = 0; t < TAPS_AT_ONCE; ++t) shares[t][threadIdx.x] = sums[t];
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < TAPS_AT_ONCE * half; i += THREADS)
            shares[i / half][i % half] += shares[i / half][i % half + half];
    }
    __syncthreads();
    const int tap = first_tap + threadIdx.x;
    if (threadIdx.x < TAPS_AT_ONCE && tap < TAPS)
        partial[((int64)blockIdx.y * problem.K + k) * problem.Cg * TAPS + c * TAPS + tap] = shares[threadIdx.x][0];
}
