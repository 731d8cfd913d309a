// The second step of a weight gradient: add what each split of the pixels summed, always in the same order.
//
// Compiled with problem.cuh's constants (w is grad_w), and -DCHANNELS_INNER=n where columns are not as in grad_w, taps
// inner, but channels, padded to a multiple of n. -DX_DROPPED, -DY_DROPPED: the last chunk of a group's channels, or
// filters, ends with the last of them, and begins with so many of the chunk before, again. -DTAP_ROW: taps of a window's
// row, taps inner, with those that pad it.

#include "weight_grad_splits.cuh"

#ifndef CHANNELS_INNER
#define CHANNELS_INNER 0
#endif
#ifndef X_DROPPED
#define X_DROPPED 0
#define Y_DROPPED 0
#endif
#ifndef TAP_ROW
#define TAP_ROW S
#endif
constexpr int TAPS = R * S, CHUNK = 16 / sizeof(Element);

// Where number i of `count` lies.
template <int DROPPED>
__device__ __forceinline__ int place_of(int i, int count)
{
    return DROPPED > 0 && i >= count - (CHUNK - DROPPED) ? i + DROPPED : i;
}

// The column of weight d = (c, r, s) of a filter.
__device__ __forceinline__ int column_of(int d, int channels)
{
    if constexpr (CHANNELS_INNER == 0) return d / S * TAP_ROW + d % S;
    else return d % TAPS * (ceil_div(channels, CHANNELS_INNER) * CHANNELS_INNER)
                + place_of<X_DROPPED>(d / TAPS, channels);
}

// grid: over the weights, one thread each.
extern "C" __global__ void __launch_bounds__(256)
finish_weight_grad(const Accumulator* __restrict__ partial, Element* __restrict__ grad_w, Problem problem,
                   Splits splits)
{
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    const int columns = problem.Cg * TAPS;
    if (index >= (int64)problem.K * columns) return;
    const int d = index % columns, k = index / columns;
    const int64 row = (int64)(k / problem.Kg) * splits.filters + place_of<Y_DROPPED>(k % problem.Kg, problem.Kg);
    partial += row * splits.columns + column_of(d, problem.Cg);
    Accumulator sum = 0;
    for (int split = 0; split < splits.splits; ++split)
        sum += partial[(int64)split * problem.groups * splits.filters * splits.columns];
    round_to(grad_w[offset(problem.w, k, d / TAPS, d / S % R, d % S)], sum);
}
