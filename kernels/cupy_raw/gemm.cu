// The matrix product of im2col: y = activation(packed^T * columns + bias + residual), register-tiled,
// double-buffered.
//
//                      columns                     a block: TILE_K filters x TILE_M pixels of one group
//                     +-----+-----+                a warp:  32 x 64, as 4 x 8 lanes (float64: 16 x 32)
//              DEPTH  | buf | next|  shared        a thread: 8 x 8 sums in registers (4 x 4), two VECTORs each way
//                     +-----+-----+
//     packed  +-----+ +===========+
//     buf     |     | |   TILE_M  |
//     next    |     | |  x TILE_K |  registers
//             +-----+ +===========+
//
// While the block multiplies one stage of DEPTH steps, each thread holds its share of the next one in registers,
// fetched before, stored into the other buffer after: one barrier per stage, and the fetch hides behind DEPTH * 64
// multiply-adds.
//
// Why it pays: a step reads 8 + 8 words from shared memory, as four 128-bit loads, for 64 multiply-adds. A block reads
// each operand once per tile: 128 x 128 makes 64 multiply-adds per word from global memory. On sm_80, 512 of the 566
// instructions of the main loop multiply (90 %; 89 to 92 % from sm_75 to sm_120, 72 % in float64): beside them stand
// 32 loads from shared memory, 2 from global, 2 stores, all of 128 bits, and the barrier. 128 registers let two blocks
// of 256 threads share an SM (one on sm_100).
// Bank conflicts: none. The 8 lanes along the pixels read 128 contiguous bytes, the 4 along the filters 64, and lanes
// with the same address are served together. Stores into the buffers are contiguous.
// Limits: none of its own: both operands are padded to whole tiles (gemm_layout.cuh), only the store has edges.
// Source: Volkov and Demmel, Benchmarking GPUs to tune dense linear algebra, SC 2008; Nath, Tomov and Dongarra, An
// improved MAGMA GEMM for Fermi GPUs, 2010 (double buffering through registers).
//
// Compiled with -DTILE_K -DTILE_M (multiples of a warp's), -DELEMENT, -DWIDE, -DACTIVATION.

#include "epilogue.cuh"
#include "gemm_layout.cuh"

constexpr int EACH = 2 * VECTOR;  // filters, and pixels, per thread
constexpr int WARPS_ACROSS = TILE_M / (PIXEL_LANES * EACH);
constexpr int THREADS = TILE_K / EACH * (TILE_M / EACH);
#if __CUDA_ARCH__ == 1000  // its compiler wants a few registers more than 128, and would spill them
constexpr int BLOCKS_PER_SM = THREADS == 256 ? 1 : 384 / THREADS;
#else
constexpr int BLOCKS_PER_SM = (THREADS == 256 ? 512 : 384) / THREADS;  // 128 or 168 registers: small blocks fetch more
#endif
constexpr int FILTER_BLOCK = FILTER_LANES * VECTOR, PIXEL_BLOCK = PIXEL_LANES * VECTOR;
constexpr int FILTER_VECTORS = DEPTH * TILE_K / VECTOR / THREADS;  // what a thread fetches per stage
constexpr int PIXEL_VECTORS = DEPTH * TILE_M / VECTOR / THREADS;

struct Stage { Vector filters[FILTER_VECTORS], pixels[PIXEL_VECTORS]; };

alignas(16) __shared__ Accumulator filters[2][DEPTH][TILE_K];
alignas(16) __shared__ Accumulator pixels[2][DEPTH][TILE_M];

__device__ __forceinline__ Vector& vector_at(Accumulator& first) { return reinterpret_cast<Vector&>(first); }
__device__ __forceinline__ const Vector& vector_at(const Accumulator& first)
{
    return reinterpret_cast<const Vector&>(first);
}

// A thread's first VECTOR of a DEPTH x WIDTH tile, and how many rows below it lies its next one.
template <int WIDTH> __device__ __forceinline__ int own_row() { return threadIdx.x * VECTOR / WIDTH; }
template <int WIDTH> __device__ __forceinline__ int own_column() { return threadIdx.x * VECTOR % WIDTH; }
template <int WIDTH> constexpr int ROWS_APART = THREADS * VECTOR / WIDTH;

// Fetch this thread's share of a tile whose rows are `pitch` apart; `own` is its first element.
template <int WIDTH, int VECTORS>
__device__ __forceinline__ void fetch(Vector (&share)[VECTORS], const Accumulator* __restrict__ own, int pitch)
{
    #pragma unroll
    for (int v = 0; v < VECTORS; ++v) share[v] = vector_at(own[(int64)(v * ROWS_APART<WIDTH>) * pitch]);
}

template <int WIDTH, int VECTORS>
__device__ __forceinline__ void put(Accumulator (&tile)[DEPTH][WIDTH], const Vector (&share)[VECTORS])
{
    #pragma unroll
    for (int v = 0; v < VECTORS; ++v)
        vector_at(tile[own_row<WIDTH>() + v * ROWS_APART<WIDTH>][own_column<WIDTH>()]) = share[v];
}

// EACH places of one row, a VECTOR from every BLOCK: the first of them is this lane's.
template <int BLOCK>
__device__ __forceinline__ void load(Accumulator (&values)[EACH], const Accumulator* row)
{
    #pragma unroll
    for (int v = 0; v < EACH / VECTOR; ++v) vector_at(values[v * VECTOR]) = vector_at(row[v * BLOCK]);
}

__device__ __forceinline__ void multiply_stage(Accumulator (&sums)[EACH][EACH], int buffer, int filter, int pixel)
{
    #pragma unroll
    for (int step = 0; step < DEPTH; ++step) {
        alignas(16) Accumulator a[EACH], b[EACH];
        load<FILTER_BLOCK>(a, &filters[buffer][step][filter]);
        load<PIXEL_BLOCK>(b, &pixels[buffer][step][pixel]);
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            #pragma unroll
            for (int j = 0; j < EACH; ++j) sums[i][j] += a[i] * b[j];
    }
}

// grid: groups * (padded pixels / TILE_M) * (padded filters / TILE_K), block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_gemm(const Accumulator* __restrict__ packed, const Accumulator* __restrict__ columns, Element* __restrict__ y,
            const Element* __restrict__ bias, const Element* __restrict__ residual, Problem problem, Slice slice)
{
    const int across_k = slice.filters / TILE_K, across_m = slice.padded / TILE_M;
    const int first_filter = blockIdx.x % across_k * TILE_K;
    const int first_pixel = blockIdx.x / across_k % across_m * TILE_M;
    const int group = blockIdx.x / across_k / across_m;
    const int64 first_row = (int64)group * slice.depth;
    packed += (first_row + own_row<TILE_K>()) * slice.filters + first_filter + own_column<TILE_K>();
    columns += (first_row + own_row<TILE_M>()) * slice.padded + first_pixel + own_column<TILE_M>();

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int filter_lane = lane / PIXEL_LANES, pixel_lane = lane % PIXEL_LANES;
    const int warp_filter = warp / WARPS_ACROSS * FILTER_LANES * EACH;
    const int warp_pixel = warp % WARPS_ACROSS * PIXEL_LANES * EACH;
    const int filter = warp_filter + filter_lane * VECTOR, pixel = warp_pixel + pixel_lane * VECTOR;

    Stage stage;
    fetch<TILE_K>(stage.filters, packed, slice.filters);
    fetch<TILE_M>(stage.pixels, columns, slice.padded);
    put(filters[0], stage.filters);
    put(pixels[0], stage.pixels);
    __syncthreads();

    Accumulator sums[EACH][EACH] = {};
    int buffer = 0;
    for (int step = DEPTH; step < slice.depth; step += DEPTH) {
        packed += (int64)DEPTH * slice.filters;
        columns += (int64)DEPTH * slice.padded;
        fetch<TILE_K>(stage.filters, packed, slice.filters);
        fetch<TILE_M>(stage.pixels, columns, slice.padded);
        multiply_stage(sums, buffer, filter, pixel);
        buffer ^= 1;
        put(filters[buffer], stage.filters);
        put(pixels[buffer], stage.pixels);
        __syncthreads();
    }
    multiply_stage(sums, buffer, filter, pixel);

    #pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int m = first_pixel + warp_pixel + pixel_lane + j * PIXEL_LANES;
        if (m >= slice.pixels) continue;
        Index output = slice.first + m;
        const int q = output % problem.Q; output /= problem.Q;
        const int p = output % problem.P, n = output / problem.P;
        #pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int k = first_filter + warp_filter + filter_lane + i * FILTER_LANES;
            if (k < problem.Kg) store(problem, {y, bias, residual}, n, group * problem.Kg + k, p, q, sums[i][j]);
        }
    }
}
