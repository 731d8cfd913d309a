// The inner half of a matrix product: a block's tile of filters x pixels, multiplied out of shared memory.
//
//                      pixels                       a block: TILE_K filters x TILE_M pixels of one group
//                     +-----+-----+                 a warp:  32 x 64, as 4 x 8 lanes (float64: 16 x 32)
//              DEPTH  | buf | next|  shared         a thread: 8 x 8 sums in registers (4 x 4), two VECTORs each way;
//                     +-----+-----+                           of a tile of 32 pixels one VECTOR of these
//     filters +-----+ +===========+
//     buf     |     | |   TILE_M  |
//     next    |     | |  x TILE_K |  registers
//             +-----+ +===========+
//
// While the block multiplies one stage of DEPTH steps, each thread holds its share of the next one in registers,
// fetched before, stored into the other buffer after: one barrier per stage, and the fetch hides behind DEPTH * 64
// multiply-adds. What is fetched, and from where, is the including file's part.
//
// Bank conflicts: none. A 128-bit load is served in halves of a warp where lanes i and i ^ 1, or i and i ^ 2, read the
// same address. So bit 1 of a lane's number tells its filters and bit 0 its pixels: both loads are then served in two
// passes, and 4 of them (8 passes) feed 64 multiply-adds. With the lanes in plain order the pixels' take four.
//
// Compiled with -DTILE_K -DTILE_M, multiples of a warp's. The including file may define MORE_REGISTERS: true where
// its fetches need them more than the multiprocessor needs a second block; ROW_PADDING, a multiple of VECTOR, where
// its stores would meet one bank; PIXEL_BUFFERS: more than two where what is fetched fills parts of two stages; and SLICES:
// so many times the threads of a tile multiply it, each slice its part of the steps out of buffers of its own, and
// `gather_slices` adds what they have.

#pragma once

#include "gemm_layout.cuh"

#ifndef MORE_REGISTERS
#define MORE_REGISTERS false
#endif
#ifndef ROW_PADDING
#define ROW_PADDING 0
#endif
#ifndef SLICES
#define SLICES 1
#endif
#ifndef PIXEL_BUFFERS
#define PIXEL_BUFFERS 2
#endif

constexpr int EACH = 2 * VECTOR;  // filters, and pixels, per thread ...
constexpr int ACROSS = TILE_M < PIXEL_LANES * EACH ? VECTOR : EACH;  // ... but of these half as many in a narrow tile
constexpr int WARPS_ACROSS = TILE_M / (PIXEL_LANES * ACROSS);
constexpr int THREADS = TILE_K / EACH * (TILE_M / ACROSS);  // of a slice
// Registers: 128 with 16 warps, 168 with 12 (a small block fetches more per thread), 255 with 8.
#if __CUDA_ARCH__ == 1000  // its compiler wants a few more than 128, and would spill them
constexpr bool SHORT_OF_128 = true;
#else
constexpr bool SHORT_OF_128 = MORE_REGISTERS;
#endif
constexpr int WARPS_PER_SM = THREADS == 256 ? SHORT_OF_128 ? 8 : 16 : WIDE && MORE_REGISTERS ? 8 : 12;
constexpr int BLOCKS_PER_SM = WARPS_PER_SM * 32 / (THREADS * SLICES);
constexpr int FILTER_BLOCK = FILTER_LANES * VECTOR, PIXEL_BLOCK = PIXEL_LANES * VECTOR;

alignas(16) __shared__ Accumulator filters[2 * SLICES][DEPTH][TILE_K + ROW_PADDING];
alignas(16) __shared__ Accumulator pixels[PIXEL_BUFFERS * SLICES][DEPTH][TILE_M + ROW_PADDING];

// Which slice a thread is of, and its number in there.
__device__ __forceinline__ unsigned own_slice() { return SLICES == 1 ? 0 : threadIdx.x / THREADS; }
__device__ __forceinline__ unsigned own_thread() { return SLICES == 1 ? threadIdx.x : threadIdx.x % THREADS; }

__device__ __forceinline__ Vector& vector_at(Accumulator& first) { return reinterpret_cast<Vector&>(first); }
__device__ __forceinline__ const Vector& vector_at(const Accumulator& first)
{
    return reinterpret_cast<const Vector&>(first);
}

// A thread's first VECTOR of a DEPTH x WIDTH tile, and how many rows below it lies its next one.
template <int WIDTH> __device__ __forceinline__ int own_row() { return own_thread() * VECTOR / WIDTH; }
template <int WIDTH> __device__ __forceinline__ int own_column() { return own_thread() * VECTOR % WIDTH; }
template <int WIDTH> constexpr int ROWS_APART = THREADS * VECTOR / WIDTH;
template <int WIDTH> constexpr int VECTORS_OF = DEPTH * WIDTH / VECTOR / THREADS;  // what a thread fetches per stage

// A thread's share of a stage of a matrix that lies in memory as gemm_layout.cuh has it.
template <int WIDTH>
struct Share {
    Vector vectors[VECTORS_OF<WIDTH>];

    // `own` is the thread's first element; rows are `pitch` apart.
    __device__ __forceinline__ void fetch(const Accumulator* __restrict__ own, int pitch)
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<WIDTH>; ++v)
            vectors[v] = vector_at(own[(int64)(v * ROWS_APART<WIDTH>) * pitch]);
    }

    __device__ __forceinline__ void put(Accumulator (&tile)[DEPTH][WIDTH]) const
    {
        put(&tile[own_row<WIDTH>()][own_column<WIDTH>()]);
    }

    __device__ __forceinline__ void put(Accumulator* own) const
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<WIDTH>; ++v) vector_at(own[v * ROWS_APART<WIDTH> * WIDTH]) = vectors[v];
    }
};

// Which of the block's filters and pixels a thread multiplies: number i of EACH lies LANES further than number i - 1.
struct Place {
    int filter_lane, pixel_lane, warp_filter, warp_pixel;

    __device__ __forceinline__ Place()
    {
        const int lane = threadIdx.x % 32, warp = own_thread() / 32;
        filter_lane = (lane >> 1 & 1) | (lane >> 3 & 2);
        pixel_lane = (lane & 1) | (lane >> 1 & 6);
        warp_filter = warp / WARPS_ACROSS * FILTER_LANES * EACH;
        warp_pixel = warp % WARPS_ACROSS * PIXEL_LANES * ACROSS;
    }

    __device__ __forceinline__ int filter(int i) const { return warp_filter + filter_lane + i * FILTER_LANES; }
    __device__ __forceinline__ int pixel(int j) const { return warp_pixel + pixel_lane + j * PIXEL_LANES; }
};

// Places of one row, a VECTOR from every BLOCK: the first of them is this lane's.
template <int BLOCK, int COUNT>
__device__ __forceinline__ void load(Accumulator (&values)[COUNT], const Accumulator* row)
{
    #pragma unroll
    for (int v = 0; v < COUNT / VECTOR; ++v) vector_at(values[v * VECTOR]) = vector_at(row[v * BLOCK]);
}

// `filter` and `pixel`: this lane's first of each, in the first row of a stage. SWAPPED: in the lower half of its rows
// the halves of every VECTOR of pixels have changed places; CROSSED: the two VECTORs of filters.
template <bool SWAPPED = false, bool CROSSED = false>
__device__ __forceinline__ void multiply_stage(Accumulator (&sums)[EACH][ACROSS], const Accumulator* filter,
                                               const Accumulator* pixel)
{
    #pragma unroll
    for (int step = 0; step < DEPTH; ++step) {
        const bool lower = step >= DEPTH / 2;
        const int swap = SWAPPED && lower ? VECTOR / 2 : 0, cross = CROSSED && lower ? VECTOR : 0;
        alignas(16) Accumulator a[EACH], b[ACROSS];
        load<FILTER_BLOCK>(a, filter + step * (TILE_K + ROW_PADDING));
        load<PIXEL_BLOCK>(b, pixel + step * (TILE_M + ROW_PADDING));
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            #pragma unroll
            for (int j = 0; j < ACROSS; ++j) sums[i][j] += a[i ^ cross] * b[j ^ swap];
    }
}

__device__ __forceinline__ void multiply_stage(Accumulator (&sums)[EACH][ACROSS], int buffer, const Place& place)
{
    multiply_stage(sums, &filters[buffer][0][place.warp_filter + place.filter_lane * VECTOR],
                   &pixels[buffer][0][place.warp_pixel + place.pixel_lane * VECTOR]);
}

// Add the sums of all slices, in their order, into those of the first, by way of `pixels`, as many rows at a time as fit.
__device__ __forceinline__ void gather_slices(Accumulator (&sums)[EACH][ACROSS])
{
    constexpr int ROUNDS = ceil_div(TILE_K * TILE_M * sizeof(Accumulator), sizeof(pixels)), ROWS = EACH / ROUNDS;
    constexpr int VECTORS = ACROSS / VECTOR;
    static_assert(SLICES == 1 || EACH % ROUNDS == 0);
    Accumulator* own = &pixels[0][0][0] + own_thread() * VECTOR;
    #pragma unroll
    for (unsigned slice = 1; slice < SLICES; ++slice)
        #pragma unroll
        for (int row = 0; row < EACH; row += ROWS) {
            __syncthreads();
            #pragma unroll
            for (int v = 0; v < ROWS * VECTORS; ++v) {
                Vector& mine = vector_at(sums[row + v / VECTORS][v % VECTORS * VECTOR]);
                if (own_slice() == slice) vector_at(own[v * THREADS * VECTOR]) = mine;
            }
            __syncthreads();
            #pragma unroll
            for (int v = 0; v < ROWS * VECTORS; ++v) {
                if (own_slice() > 0) break;
                const Vector more = vector_at(own[v * THREADS * VECTOR]);
                #pragma unroll
                for (int e = 0; e < VECTOR; ++e) sums[row + v / VECTORS][v % VECTORS * VECTOR + e] += more.lane[e];
            }
        }
}
