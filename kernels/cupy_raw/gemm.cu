// The matrix product of im2col: y = activation(packed^T * columns + bias + residual), register-tiled,
// double-buffered: register_tile.cuh draws the tile.
//
// Why it pays: a step reads 8 + 8 words from shared memory, as four 128-bit loads, for 64 multiply-adds. A block reads
// each operand once per tile: 128 x 128 makes 64 multiply-adds per word from global memory. On sm_80, 512 of the 566
// instructions of the main loop multiply (90 %; 89 to 92 % from sm_75 to sm_120, 72 % in float64): beside them stand
// 32 loads from shared memory, 2 from global, 2 stores, all of 128 bits, and the barrier. 128 registers let two blocks
// of 256 threads share an SM (one on sm_100). A narrow tile, 64 x 32, 8 x 4 sums a thread, is for products that would
// leave SMs idle (winograd_batched.py): 256 of 312 multiply (82 %; 80 to 85).
// Limits: none of its own: both operands are padded to whole tiles (gemm_layout.cuh), only the store has edges.
// Source: Volkov and Demmel, Benchmarking GPUs to tune dense linear algebra, SC 2008; Nath, Tomov and Dongarra, An
// improved MAGMA GEMM for Fermi GPUs, 2010 (double buffering through registers).
//
// Stores: 8 neighbouring pixels of 4 filters, or with channels last 4 vectors of filters for each of 8 pixels, if filters
// come in fours (FILTER_RUN): whole sectors.
//
// Compiled with -DTILE_K -DTILE_M (multiples of a warp's), -DELEMENT, -DWIDE, -DACTIVATION, -DFILTER_RUN.

#include "epilogue.cuh"
#include "register_tile.cuh"

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

    const Place place;
    Share<TILE_K> next_filters;
    Share<TILE_M> next_pixels;
    next_filters.fetch(packed, slice.filters);
    next_pixels.fetch(columns, slice.padded);
    next_filters.put(filters[0]);
    next_pixels.put(pixels[0]);
    __syncthreads();

    Accumulator sums[EACH][ACROSS] = {};
    int buffer = 0;
    for (int step = DEPTH; step < slice.depth; step += DEPTH) {
        packed += (int64)DEPTH * slice.filters;
        columns += (int64)DEPTH * slice.padded;
        next_filters.fetch(packed, slice.filters);
        next_pixels.fetch(columns, slice.padded);
        multiply_stage(sums, buffer, place);
        buffer ^= 1;
        next_filters.put(filters[buffer]);
        next_pixels.put(pixels[buffer]);
        __syncthreads();
    }
    multiply_stage(sums, buffer, place);

    #pragma unroll
    for (int j = 0; j < ACROSS; ++j) {
        const int m = first_pixel + place.pixel(j);
        if (m >= slice.pixels) continue;
        Index output = slice.first + m;
        const int q = output % problem.Q; output /= problem.Q;
        const int p = output % problem.P, n = output / problem.P;
        #pragma unroll
        for (int i = 0; i < EACH; i += FILTER_RUN) {
            const int row = i / VECTOR * FILTER_BLOCK + place.filter_lane * VECTOR + i % VECTOR;
            const int k = first_filter + place.warp_filter + number_at<FILTERS_APART>(row);
            Accumulator run[FILTER_RUN];
            #pragma unroll
            for (int e = 0; e < FILTER_RUN; ++e) run[e] = sums[i + e][j];
            if (k >= problem.Kg) continue;
            store_filters<FILTER_RUN>(problem, {y, bias, residual}, n, group * problem.Kg + k, p, q, run);
        }
    }
}
