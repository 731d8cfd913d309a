// The workspace between im2col.cu, which writes it, and gemm.cu, which reads it: two matrices, padded with zeros to
// whole tiles, in the type sums are kept in.
//
//     packed    groups x depth x filters     depth:   Cg * R * S, in this order, up to a multiple of DEPTH
//     columns   groups x depth x pixels      filters: Kg up to a multiple of TILE_K; pixels: a slice of the N * P * Q
//                                            outputs, up to a multiple of TILE_M
//
// Neighbours are interleaved: a thread of the GEMM loads VECTOR places with one 128-bit load, while the lane beside it
// should hold the next pixel, so that their stores meet in one sector. Of LANES * VECTOR neighbours, number x lies at
//
//     x:      0  1  2  3  4  5  6  7  8  9 ...     (LANES = 8, VECTOR = 4)
//     place:  0  4  8 12 16 20 24 28  1  5 ...
//
// Filters only unless -DFILTER_RUN says that so many of them are one store, a thread's VECTOR: then they lie in order.

#pragma once

#include "problem.cuh"

constexpr int DEPTH = 8;                           // reduction steps per stage of the GEMM
constexpr int PIXEL_LANES = 8, FILTER_LANES = 4;   // a warp of the GEMM
#ifndef FILTER_RUN
#define FILTER_RUN 1
#endif
constexpr int FILTERS_APART = FILTER_RUN > 1 ? 1 : FILTER_LANES;  // of `packed`, those at neighbouring places

template <int LANES>
__device__ __forceinline__ int place_of(int x)
{
    constexpr int BLOCK = LANES * VECTOR;
    return x / BLOCK * BLOCK + x % LANES * VECTOR + x / LANES % VECTOR;
}

// And which number lies at a place.
template <int LANES>
__host__ __device__ constexpr int number_at(int place)
{
    constexpr int BLOCK = LANES * VECTOR;
    return place / BLOCK * BLOCK + place % VECTOR * LANES + place / VECTOR % LANES;
}

struct Slice {
    int64 first;         // of all N * P * Q outputs, the first pixel of this slice
    int pixels, padded;  // how many it has; the pitch of `columns`
    int depth, filters;  // padded
};
