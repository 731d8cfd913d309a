// What the products on tensor cores have in common: a warp's WARP_M x WARP_K sums, and what is added to them.
//
//                           filters: BLOCKS_K blocks of 8        a lane has four sums of each 16 x 8 block, and adds to
//                        +---+---+---                            them 32 bytes of the reduction at a time
//                        |   | b |
//                        +---+---+---
//     BLOCKS_M   +---+   +---+---+---
//     of 16      | a |   |   |   |        registers
//                +---+   +---+---+---
//
// Compiled with problem.cuh's constants, -DWARP_M -DWARP_K, -DPRECISE (float32 in three products of TF32).

#pragma once

#include "problem.cuh"
#include "tensor_core.cuh"

constexpr int CHUNK = 16 / sizeof(Element);  // elements of 16 bytes
struct alignas(16) Chunk { Element lane[CHUNK]; };

constexpr int BLOCKS_M = WARP_M / 16, BLOCKS_K = WARP_K / 8;  // of a warp
// A thread has up to 255 registers with 8 warps on a multiprocessor, 168 with 12 and 128 with 16.
constexpr int NEED = BLOCKS_M * BLOCKS_K * (PRECISE ? 2 : 1);
constexpr int WARPS_PER_SM = NEED > 16 ? 8 : NEED > 8 ? 12 : 16;

using Sums = Accumulator[BLOCKS_M][BLOCKS_K][4];

// Round floats to TF32, and in `rest` keep what that leaves, rounded too; 16-bit types are as they should be.
template <int COUNT>
__device__ __forceinline__ void round_matrices(unsigned (&values)[COUNT], unsigned (&rest)[COUNT])
{
    if constexpr (sizeof(Element) == 4)
        #pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const float value = __uint_as_float(values[i]);
            values[i] = to_tf32(value);
            if constexpr (PRECISE) rest[i] = to_tf32(value - __uint_as_float(values[i]));
        }
}

// Add the products of every block of a with one of b.
__device__ __forceinline__ void multiply_blocks(Sums& sums, const unsigned (&a)[BLOCKS_M][4],
                                                const unsigned (&a_rest)[BLOCKS_M][4], const unsigned (&b)[2],
                                                const unsigned (&b_rest)[2], int j)
{
    #pragma unroll
    for (int i = 0; i < BLOCKS_M; ++i) {
        if constexpr (PRECISE) {
            float products[4] = {};
            multiply(products, a_rest[i], b, Element());
            multiply(products, a[i], b_rest, Element());
            multiply(products, a[i], b, Element());
            #pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] += products[e];
        } else {
            multiply(sums[i][j], a[i], b, Element());
        }
    }
}

// Write the warp's sums as they are, a row of `pitch` for each filter; `to`: where its first sum goes.
__device__ __forceinline__ void leave_sums(const Sums& sums, Accumulator* to, int64 pitch)
{
    const int lane = threadIdx.x % 32;
    to += lane % 4 * 2 * pitch + lane / 4;
    #pragma unroll
    for (int j = 0; j < BLOCKS_K; ++j, to += 8 * pitch)
        #pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i)
            #pragma unroll
            for (int e = 0; e < 4; ++e) to[e % 2 * pitch + i * 16 + e / 2 * 8] = sums[i][j][e];
}

// The same with a row for each pixel, filters side by side.
__device__ __forceinline__ void leave_sums_along_filters(const Sums& sums, Accumulator* to, int64 pitch)
{
    const int lane = threadIdx.x % 32;
    to += lane / 4 * pitch + lane % 4 * 2;
    #pragma unroll
    for (int i = 0; i < BLOCKS_M; ++i)
        #pragma unroll
        for (int half = 0; half < 2; ++half, to += 8 * pitch)
            #pragma unroll
            for (int j = 0; j < BLOCKS_K; ++j)
                *reinterpret_cast<float2*>(&to[j * 8]) = make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
}
