// Weight gradient as a matrix product whose inner dimension is the output pixel, windows gathered as it goes.
//
//     grad_w[k, d] = sum over m of  grad_y[k, m] * x[window of m, d]     m = (n, p, q), d = (c, r, s) of k's group
//
//                     columns d                     the block's tile, TILE_K filters x TILE_M columns, is multiplied as
//                    +---------+                    register_tile.cuh draws it: what it calls pixels are columns here
//     8 pixels m     |   x     |
//          +-----+   +=========+                    eight lanes take the eight pixels of a stage of one row, the other
//     k    | gy  |   | grad_w  |                    four of a warp take other filters or columns: with neighbouring
//          +-----+   +=========+                    pixels side by side in memory, a load meets one sector for each
//
// A thread's filters and columns never change, so their addresses and taps are worked out once; only its pixel moves
// on, by 8. weight_grad_walks.cuh says which those are, and tells three ways by -DTOGETHER: neighbouring threads take
// neighbouring PIXELS (NCHW), a thread a vector of CHANNELS (channels last), or NONE of it holds, as of few channels.
// Why it pays: there are few weights and many pixels. Tiles of weights alone would leave most of a GPU idle, so the
// pixels are split among blocks; each writes its tile of sums to the workspace, and finish_weight_grad adds the splits in
// their order: the same bits every time, without atomics.
// Bytes and FLOPs: a stage of 128 x 128 is 8 KB from memory for 131,072 multiply-adds, 32 FLOP a byte; of a split 64 KB
// of sums leave. Counted by the emulator, sectors beside the least: 1.0 of sums, and CHANNELS throughout; PIXELS 1.05 to
// 1.08 of loads under 3x3 on maps of 28 x 28 and more, as lanes at the ends of rows read nothing of a sector that others
// read (on 14 x 14 and 7 x 7, where channels begin amid a sector, 1.7); NONE 1.5 of x, whose taps begin amid a sector.
// Instructions, sm_75 to 120: of the loop's 598 to 614 at 128 x 128 PIXELS multiply and add 512 (83 to 86 %), with smaller
// tiles 80 to 84 %; CHANNELS 83 to 85 %, and 76 to 79 %; NONE 72 to 76 %, and 66 to 72 %.
// Of the 599 of PIXELS on sm_86, 32 load from shared memory, 16 from memory, addresses included, and 2 store; 13 find the
// next pixels, 7 test them and clear, 9 change buffers, 8 are the loop's and moves. 88 % would be 582. Stages of 16 pixels
// would halve the last 37, and want 8 more registers, of which there are none; grad_y's pixels as vectors, where maps are
// whole ones, would spare 4.
// Registers: up to 128 at 128 x 128, two blocks on a multiprocessor (sm_100: 130 of CHANNELS, 161 of NONE, one); 128 to
// 167 of smaller tiles, 12 warps (PIXELS of 64 x 64 on sm_75 10, by their 11 KB of shared memory).
// Bank conflicts: none, as the emulator counts: loads are register_tile.cuh's, and the walks say of their stores.
// Limits: none on the problem. A group of few filters or few columns wastes most of a tile: weight_grad_direct.cu.
// Never run on hardware.
// Source: Chetlur et al., cuDNN, 2014 (the gradient as an implicit product); Osama et al., Stream-K, PPoPP 2023, and
// CUTLASS's split-K before it (reduction in two steps).
//
// Compiled with problem.cuh's constants (y is grad_y, w is grad_w), -DTILE_K -DTILE_M, -DTOGETHER.

enum Together { NONE, CHANNELS, PIXELS };

#define MORE_REGISTERS WIDE
#define ROW_PADDING (TOGETHER == CHANNELS ? 0 : VECTOR)
#define PIXEL_BUFFERS (TOGETHER == PIXELS ? 3 : 2)
#include "weight_grad_walks.cuh"

// Write a thread's sums, a row of `pitch` for each filter; `to`: where the block's tile begins.
__device__ __forceinline__ void leave(const Accumulator (&sums)[EACH][EACH], int own_filter, int own_pixel,
                                      Accumulator* to, int pitch)
{
    if constexpr (TOGETHER != NONE) {
        to += (int64)own_filter * pitch + own_pixel;
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            #pragma unroll
            for (int v = 0; v < EACH / VECTOR; ++v)
                vector_at(to[(int64)(i / VECTOR * FILTER_BLOCK + i % VECTOR) * pitch + v * PIXEL_BLOCK]) =
                    vector_at(sums[i][v * VECTOR]);
    } else {
        const Place place;
        to += (int64)place.filter(0) * pitch + place.pixel(0);
        #pragma unroll
        for (int i = 0; i < EACH; ++i, to += (int64)FILTER_LANES * pitch)
            #pragma unroll
            for (int j = 0; j < EACH; ++j) to[j * PIXEL_LANES] = sums[i][j];
    }
}

// grid: groups * (columns / TILE_M) * (filters / TILE_K) and the splits, block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_weight_grad(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                   Accumulator* __restrict__ partial, Problem problem, Splits splits, Steps steps)
{
    const Place place;
    int own_filter = place.warp_filter + place.filter_lane * VECTOR;
    int own_pixel = place.warp_pixel + place.pixel_lane * VECTOR;
    if (TOGETHER != NONE) keep(own_filter), keep(own_pixel);  // else there are too few registers
    int buffer = 0, pixel_buffer = 0;  // which are multiplied next
    const auto multiply = [&](Accumulator (&sums)[EACH][ACROSS]) {
        multiply_stage(sums, &filters[buffer][0][own_filter], &pixels[pixel_buffer][0][own_pixel]);
    };
    const Own own(splits, blockIdx.y);
    Walk walk;
    walk.start(problem, Tile(blockIdx.x, splits));
    walk.prepare(x, grad_y, problem, steps, own);
    __syncthreads();

    alignas(16) Accumulator sums[EACH][EACH] = {};
    for (int left = own.stages - 1; left > 0; --left) {
        walk.fetch(x, grad_y, problem, steps, left);
        multiply(sums);
        buffer ^= 1;
        pixel_buffer = PIXEL_BUFFERS == 2 ? buffer : pixel_buffer == PIXEL_BUFFERS - 1 ? 0 : pixel_buffer + 1;
        walk.put(buffer);
        __syncthreads();
    }
    multiply(sums);

    const Tile tile(block_again(), splits);
    const int64 row = ((int64)blockIdx.y * problem.groups + tile.group) * splits.filters + tile.first_filter;
    leave(sums, own_filter, own_pixel, partial + row * splits.columns + tile.first_column, splits.columns);
}
