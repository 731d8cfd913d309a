// The second step of a weight gradient: what each split of the pixels summed lies in the workspace and is added here.
//
//     partial   splits x groups x filters x columns     filters: Kg, columns: Cg * R * S, up to whole tiles

#pragma once

#include "problem.cuh"

struct Splits {
    int64 pixels;         // of one split, a multiple of a stage's
    int64 all_pixels;     // N * P * Q
    int filters, columns; // padded
    int splits;

    __device__ __forceinline__ int stages_of(int split, int depth) const
    {
        const int64 left = all_pixels - split * pixels, own = left < pixels ? left : pixels;
        return (own + depth - 1) / depth;
    }
};

// grid: over the weights, one thread each.
extern "C" __global__ void __launch_bounds__(256)
finish_weight_grad(const Accumulator* __restrict__ partial, Element* __restrict__ grad_w, Problem problem,
                   Splits splits)
{
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    const int columns = problem.Cg * R * S;
    if (index >= (int64)problem.K * columns) return;
    const int d = index % columns, k = index / columns;
    const int64 row = (int64)(k / problem.Kg) * splits.filters + k % problem.Kg;
    partial += row * splits.columns + d;
    Accumulator sum = 0;
    for (int split = 0; split < splits.splits; ++split)
        sum += partial[(int64)split * problem.groups * splits.filters * splits.columns];
    round_to(grad_w[offset(problem.w, k, d / (R * S), d / S % R, d % S)], sum);
}
