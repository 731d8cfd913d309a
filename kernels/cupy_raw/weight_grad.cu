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
// on, by 8. Which row a lane takes is number_at its place, and a row of the tile is VECTOR longer than its width:
// so the eight pixels of four rows meet 32 banks.
// Why it pays: there are few weights and many pixels. Tiles of weights alone would leave most of a GPU idle, so the
// pixels are split among blocks; each writes its tile of sums to the workspace, and finish_weight_grad adds the splits in
// their order: the same bits every time, without atomics.
// Counted by the emulator on VGG-16's conv3_1, sm_80: 71 % of the instructions multiply and add; no store into shared
// memory and no load from it meets a bank twice.
// Limits: none on the problem. A group of few filters or few columns wastes most of a tile: weight_grad_direct.cu.
// Never run on hardware.
// Source: Chetlur et al., cuDNN, 2014 (the gradient as an implicit product); Osama et al., Stream-K, PPoPP 2023, and
// CUTLASS's split-K before it (reduction in two steps).
//
// Compiled with problem.cuh's constants (y is grad_y, w is grad_w), -DTILE_K -DTILE_M.

#define MORE_REGISTERS WIDE
#define ROW_PADDING VECTOR
#include "register_tile.cuh"
#include "weight_grad_splits.cuh"

constexpr int TAPS = R * S;
constexpr int ROWS_AT_ONCE = THREADS / DEPTH;  // the others hold the other pixels of the stage
constexpr int OWN_FILTERS = TILE_K / ROWS_AT_ONCE, OWN_COLUMNS = TILE_M / ROWS_AT_ONCE;

struct Walk {
    int n, p, q;           // this thread's pixel of the stage to fetch next
    int filter;            // its first
    Offset column[OWN_COLUMNS];
    int h[OWN_COLUMNS], w[OWN_COLUMNS];  // of the taps; far outside where there is no such column

    __device__ __forceinline__ void start(const Problem& problem, int first_filter, int first_column, int group, Index m)
    {
        q = m % problem.Q; m /= problem.Q;
        p = m % problem.P; n = m / problem.P;
        const int place = threadIdx.x / DEPTH;
        filter = first_filter + number_at<FILTER_LANES>(place);
        #pragma unroll
        for (int j = 0; j < OWN_COLUMNS; ++j) {
            const int d = first_column + number_at<PIXEL_LANES>(place + j * ROWS_AT_ONCE), c = d / TAPS;
            h[j] = c < problem.Cg ? d % TAPS / S * DILATION_H - problem.top : FAR;
            w[j] = d % S * DILATION_W - problem.left;
            column[j] = offset(problem.x, 0, group * problem.Cg + c, c < problem.Cg ? h[j] : 0, w[j]);
        }
    }

    __device__ __forceinline__ void advance(const Problem& problem)
    {
        for (q += DEPTH; q >= problem.Q; q -= problem.Q)
            if (++p == problem.P) { p = 0; ++n; }
    }

    __device__ __forceinline__ void fetch_filters(Accumulator (&next)[OWN_FILTERS], const Element* __restrict__ grad_y,
                                                  const Problem& problem, int group) const
    {
        const Element* pixel = grad_y + offset(problem.y, n, group * problem.Kg + filter, p, q);
        #pragma unroll
        for (int i = 0; i < OWN_FILTERS; ++i) {
            constexpr int STEP = ROWS_AT_ONCE;
            const int further = number_at<FILTER_LANES>(i * STEP);
            const bool wanted = n < problem.N && filter + further < problem.Kg;
            next[i] = wanted ? widened(pixel[further * (Offset)problem.y.c]) : Accumulator(0);
        }
    }

    __device__ __forceinline__ void fetch_columns(Accumulator (&next)[OWN_COLUMNS], const Element* __restrict__ x,
                                                  const Problem& problem) const
    {
        const int top = p * STRIDE_H, left = q * STRIDE_W;
        const Offset window = offset(problem.x, n, 0, top, left);
        #pragma unroll
        for (int j = 0; j < OWN_COLUMNS; ++j) {
            const bool inside = (unsigned)(top + h[j]) < problem.H && (unsigned)(left + w[j]) < problem.W;
            next[j] = n < problem.N && inside ? widened(x[window + column[j]]) : Accumulator(0);
        }
    }
};

template <int OWN, int PITCH>
__device__ __forceinline__ void put(Accumulator (&tile)[DEPTH][PITCH], const Accumulator (&next)[OWN])
{
    #pragma unroll
    for (int i = 0; i < OWN; ++i) tile[threadIdx.x % DEPTH][threadIdx.x / DEPTH + i * ROWS_AT_ONCE] = next[i];
}

// grid: groups * (columns / TILE_M) * (filters / TILE_K) and the splits, block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_weight_grad(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                   Accumulator* __restrict__ partial, Problem problem, Splits splits)
{
    const int across_k = splits.filters / TILE_K, across_d = splits.columns / TILE_M;
    unsigned block = blockIdx.x;
    const int first_filter = block % across_k * TILE_K; block /= across_k;
    const int first_column = block % across_d * TILE_M;
    const int group = block / across_d;
    const int64 first = blockIdx.y * splits.pixels;

    const Place place;
    Walk walk;
    Accumulator next_filters[OWN_FILTERS], next_columns[OWN_COLUMNS];
    walk.start(problem, first_filter, first_column, group, first + threadIdx.x % DEPTH);
    walk.fetch_filters(next_filters, grad_y, problem, group);
    walk.fetch_columns(next_columns, x, problem);
    put(filters[0], next_filters);
    put(pixels[0], next_columns);
    __syncthreads();

    Accumulator sums[EACH][EACH] = {};
    int buffer = 0;
    for (int left = splits.stages_of(blockIdx.y, DEPTH) - 1; left > 0; --left) {
        walk.advance(problem);
        walk.fetch_filters(next_filters, grad_y, problem, group);
        walk.fetch_columns(next_columns, x, problem);
        multiply_stage(sums, buffer, place);
        buffer ^= 1;
        put(filters[buffer], next_filters);
        put(pixels[buffer], next_columns);
        __syncthreads();
    }
    multiply_stage(sums, buffer, place);

    const int filter = group * splits.filters + first_filter + place.filter(0);
    const int64 row = (int64)blockIdx.y * problem.groups * splits.filters + filter;
    Accumulator* to = partial + row * splits.columns + first_column + place.pixel(0);
    #pragma unroll
    for (int i = 0; i < EACH; ++i, to += (int64)FILTER_LANES * splits.columns)
        #pragma unroll
        for (int j = 0; j < EACH; ++j) to[j * PIXEL_LANES] = sums[i][j];
}
