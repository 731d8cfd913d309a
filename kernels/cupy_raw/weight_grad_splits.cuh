// How a weight gradient's pixels are split among blocks, and what each leaves in the workspace.
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
