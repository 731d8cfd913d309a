// What the products on tensor cores have in common: a warp's WARP_M x WARP_K sums, what is added to them, and the
// stages in shared memory from which that comes.
//
//                           filters: BLOCKS_K blocks of 8        a lane has four sums of each 16 x 8 block, and adds to
//                        +---+---+---                            them 32 bytes of the reduction at a time
//                        |   | b |
//                        +---+---+---
//     BLOCKS_M   +---+   +---+---+---
//     of 16      | a |   |   |   |        registers
//                +---+   +---+---+---
//
// A stage has 64 bytes of the reduction, two steps of 32. HALVES == 2: twice as many warps, of which one half takes
// each stage's first step and the other its second. Their tiles are as large, so that shared memory is read as seldom,
// and there are warps for every scheduler where few blocks come to a multiprocessor; what it costs is that the sums of
// one half go through shared memory to the other in the end. CUTLASS calls it sliced-K.
//
// Compiled with problem.cuh's constants, -DTILE_M -DTILE_K of a block, -DWARP_M -DWARP_K of a warp, -DHALVES, -DSTAGES,
// -DPRECISE (float32 in three products of TF32).
// Source: Thakkar et al., CUTLASS, "Efficient GEMM in CUDA" (multistage loop, sliced-K).

#pragma once

#include "problem.cuh"
#include "tensor_core.cuh"

constexpr int CHUNK = 16 / sizeof(Element);  // elements of 16 bytes
struct alignas(16) Chunk { Element lane[CHUNK]; };

constexpr int STEPS = 2;                     // of a stage
constexpr int WARPS_K = TILE_K / WARP_K, WARPS = TILE_M / WARP_M * WARPS_K;  // of each half
constexpr int THREADS = 32 * WARPS * HALVES;

constexpr int BLOCKS_M = WARP_M / 16, BLOCKS_K = WARP_K / 8;  // of a warp
// A thread has up to 255 registers with 8 warps on a multiprocessor, 168 with 12 and 128 with 16.
constexpr int NEED = BLOCKS_M * BLOCKS_K * (PRECISE ? 2 : 1);
constexpr int WARPS_PER_SM = NEED > 16 ? 8 : NEED > 8 ? 12 : 16;
constexpr int BLOCKS_PER_SM = WARPS_PER_SM / (WARPS * HALVES);

using Sums = Accumulator[BLOCKS_M][BLOCKS_K][4];

// Where a thread's warp stands: which of the halves it belongs to, and where its sums lie in the tile.
struct Warp {
    int number, half, m, k;

    __device__ __forceinline__ Warp()
    {
        const int all = threadIdx.x / 32;
        half = HALVES == 1 ? 0 : all / WARPS;
        number = HALVES == 1 ? all : all % WARPS;
        m = number / WARPS_K * WARP_M, k = number % WARPS_K * WARP_K;
    }
};

// Round a lane's floats of a, or b, to TF32, and in `rest` keep what that leaves; 16-bit types are as they should be.
template <int COUNT>
__device__ __forceinline__ void round_matrices(unsigned (&values)[COUNT], unsigned (&rest)[COUNT])
{
    if constexpr (sizeof(Element) == 4 && PRECISE) {
        #pragma unroll
        for (int i = 0; i < COUNT; ++i) split_tf32(values[i], rest[i]);
    } else if constexpr (sizeof(Element) == 4) {
        #pragma unroll
        for (int i = 0; i < COUNT; ++i) values[i] = to_tf32(__uint_as_float(values[i]));
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

// Multiply `count` stages. bring.fetch(place) begins to bring the next stage there, bring.put(place) stores what it
// brought into registers; multiply(place) takes the stage there. A place: in bytes, of STAGES in turn from `start` on.
//
// cp.async says when its bytes have come only by groups, in order: each turn waits until at most STAGES - 2 of them are
// under way, so that this stage's have come. The barrier after it makes everybody's visible, and says that nobody reads
// the stage of the turn before, which is filled next. SEVERAL: there may be more than one.
template <int STAGE_BYTES, bool SEVERAL = true, typename Bring, typename Multiply>
__device__ __forceinline__ void multiply_stages(int count, Bring& bring, const Multiply& multiply, int start = 0)
{
    const int last = start + (STAGES - 1) * STAGE_BYTES;
    #pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < count) {
            bring.fetch(start + stage * STAGE_BYTES);
            bring.put(start + stage * STAGE_BYTES);
        }
        commit_copies();
    }
    int now = start, next = last;
    for (int left = count; left > 0; --left) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        if (left >= STAGES) bring.fetch(next);
        commit_copies();
        multiply(now);
        if (SEVERAL) bring.put(next);  // of the last turns nobody reads it; to ask would take four instructions of each
        next = now;
        now = now == last ? start : now + STAGE_BYTES;
    }
}

// Add the second half's sums to the first's, a half of each warp's at a time: 8 KB of 64 x 64. A lane's 16 bytes lie
// beside its neighbour's.
__device__ __forceinline__ void add_halves(Sums& sums, const Warp& warp, unsigned char* memory)
{
    if constexpr (HALVES == 1) return;
    constexpr int AT_ONCE = BLOCKS_M > 1 ? BLOCKS_M / 2 : 1;
    const int own = warp.number * (AT_ONCE * BLOCKS_K * 32) + threadIdx.x % 32;
    float4* const passed = reinterpret_cast<float4*>(memory) + own;
    #pragma unroll
    for (int first = 0; first < BLOCKS_M; first += AT_ONCE) {
        __syncthreads();  // nobody multiplies any more, or adds what was passed before
        #pragma unroll
        for (int i = 0; i < AT_ONCE * BLOCKS_K; ++i)
            if (warp.half == 1)
                passed[i * 32] = reinterpret_cast<const float4&>(sums[first + i / BLOCKS_K][i % BLOCKS_K]);
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < AT_ONCE * BLOCKS_K; ++i)
            if (warp.half == 0) {
                const float4 more = passed[i * 32];
                Accumulator(&to)[4] = sums[first + i / BLOCKS_K][i % BLOCKS_K];
                to[0] += more.x, to[1] += more.y, to[2] += more.z, to[3] += more.w;
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
