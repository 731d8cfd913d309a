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
// TOGETHER == CHANNELS, where the channels of x and the filters of grad_y lie side by side: d = (r, s, c), and a row of
// the tile is a pixel's, as it lies in memory. A thread brings a VECTOR of it by one load and one store, and its sums
// leave as vectors. Lane by lane, as above, each sector would be met by four or five loads.
// Why it pays: there are few weights and many pixels. Tiles of weights alone would leave most of a GPU idle, so the
// pixels are split among blocks; each writes its tile of sums to the workspace, and finish_weight_grad adds the splits in
// their order: the same bits every time, without atomics.
// Bytes and FLOPs: a stage of 128 x 128 is 8 KB from memory for 131,072 multiply-adds, 32 FLOP a byte; of a split 64 KB
// of sums leave. Counted by the emulator, sectors beside the least: 1.0 of grad_y and of sums, 1.5 of x under 3x3, whose
// eight pixels begin amid a sector; CHANNELS 1.0 throughout.
// Instructions, sm_75 to 120: of the loop's 670 to 715 at 128 x 128 multiply and add 512 (72 to 76 %), with smaller
// tiles 67 to 71 %; CHANNELS 595 to 613 (84 to 86 %), and 77 to 79 %.
// Registers: up to 128 at 128 x 128, two blocks on a multiprocessor (sm_100: 159, and 130 of CHANNELS, one); 129 to 167
// of smaller tiles, 12 warps.
// Bank conflicts: none, as the emulator counts: eight pixels of four rows are stored as said above, vectors of CHANNELS
// side by side, and loads are register_tile.cuh's.
// Limits: none on the problem. A group of few filters or few columns wastes most of a tile: weight_grad_direct.cu.
// Never run on hardware.
// Source: Chetlur et al., cuDNN, 2014 (the gradient as an implicit product); Osama et al., Stream-K, PPoPP 2023, and
// CUTLASS's split-K before it (reduction in two steps).
//
// Compiled with problem.cuh's constants (y is grad_y, w is grad_w), -DTILE_K -DTILE_M, -DTOGETHER (CHANNELS or NONE).

enum Together { NONE, CHANNELS };

#define MORE_REGISTERS WIDE
#define ROW_PADDING (TOGETHER == CHANNELS ? 0 : VECTOR)
#include "register_tile.cuh"
#include "weight_grad_splits.cuh"

constexpr int TAPS = R * S;

struct Pixel {
    int n, p, q;

    __device__ __forceinline__ void start(const Problem& problem, Index m)
    {
        q = m % problem.Q; m /= problem.Q;
        p = m % problem.P; n = m / problem.P;
    }

    __device__ __forceinline__ void advance(const Problem& problem)
    {
        for (q += DEPTH; q >= problem.Q; q -= problem.Q)
            if (++p == problem.P) { p = 0; ++n; }
    }
};

// A column of the product: a tap and a channel of the group.
struct Column {
    int h, w;   // of the tap in the window of pixel (0, 0); far outside where there is no such column
    Offset at;  // from that pixel's image

    __device__ __forceinline__ void start(const Problem& problem, int group, int c, int tap)
    {
        const bool exists = c < problem.Cg && tap < TAPS;
        h = exists ? tap / S * DILATION_H - problem.top : FAR;
        w = tap % S * DILATION_W - problem.left;
        at = offset(problem.x, 0, group * problem.Cg + c, exists ? h : 0, w);
    }

    __device__ __forceinline__ bool is_inside(const Problem& problem, const Pixel& pixel) const
    {
        return pixel.n < problem.N && (unsigned)(pixel.p * STRIDE_H + h) < problem.H
            && (unsigned)(pixel.q * STRIDE_W + w) < problem.W;
    }
};

// Where the windows of a pixel begin, but for the columns.
__device__ __forceinline__ Offset window_of(const Problem& problem, const Pixel& pixel)
{
    return offset(problem.x, pixel.n, 0, pixel.p * STRIDE_H, pixel.q * STRIDE_W);
}

struct ElementWalk {
    static constexpr int ROWS_AT_ONCE = THREADS / DEPTH;  // the others hold the other pixels of the stage
    static constexpr int OWN_FILTERS = TILE_K / ROWS_AT_ONCE, OWN_COLUMNS = TILE_M / ROWS_AT_ONCE;

    Pixel pixel;                  // of the stage to fetch next
    int filter, first_of_group;   // of the group; the group's
    Column columns[OWN_COLUMNS];
    Accumulator next_filters[OWN_FILTERS], next_columns[OWN_COLUMNS];

    __device__ __forceinline__ void start(const Problem& problem, int first_filter, int first_column, int group,
                                          Index m)
    {
        pixel.start(problem, m + threadIdx.x % DEPTH);
        const int place = threadIdx.x / DEPTH;
        filter = first_filter + number_at<FILTER_LANES>(place);
        first_of_group = group * problem.Kg;
        #pragma unroll
        for (int j = 0; j < OWN_COLUMNS; ++j) {
            const int d = first_column + number_at<PIXEL_LANES>(place + j * ROWS_AT_ONCE);
            columns[j].start(problem, group, d / TAPS, d % TAPS);
        }
    }

    __device__ __forceinline__ void advance(const Problem& problem) { pixel.advance(problem); }

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                          const Problem& problem)
    {
        const Element* first = grad_y + offset(problem.y, pixel.n, first_of_group + filter, pixel.p, pixel.q);
        #pragma unroll
        for (int i = 0; i < OWN_FILTERS; ++i) {
            constexpr int STEP = ROWS_AT_ONCE;
            const int further = number_at<FILTER_LANES>(i * STEP);
            const bool wanted = pixel.n < problem.N && filter + further < problem.Kg;
            next_filters[i] = wanted ? widened(first[further * (Offset)problem.y.c]) : Accumulator(0);
        }
        const Offset window = window_of(problem, pixel);
        #pragma unroll
        for (int j = 0; j < OWN_COLUMNS; ++j)
            next_columns[j] =
                columns[j].is_inside(problem, pixel) ? widened(x[window + columns[j].at]) : Accumulator(0);
    }

    __device__ __forceinline__ void put(int buffer) const
    {
        put(filters[buffer], next_filters);
        put(pixels[buffer], next_columns);
    }

    template <int OWN, int PITCH>
    static __device__ __forceinline__ void put(Accumulator (&tile)[DEPTH][PITCH], const Accumulator (&next)[OWN])
    {
        #pragma unroll
        for (int i = 0; i < OWN; ++i) tile[threadIdx.x % DEPTH][threadIdx.x / DEPTH + i * ROWS_AT_ONCE] = next[i];
    }
};

struct VectorWalk {
    static constexpr bool ALIKE = TILE_K == TILE_M;  // then a thread's filters and columns are of the same pixels
    Pixel of_columns[VECTORS_OF<TILE_M>];  // of the stage to fetch next
    Pixel of_filters[ALIKE ? 1 : VECTORS_OF<TILE_K>];
    Offset filter;  // in the first image's first pixel
    bool exists;    // the filter, and the others of its VECTOR
    Column column;
    Share<TILE_K> next_filters;
    Share<TILE_M> next_columns;

    __device__ __forceinline__ void start(const Problem& problem, int first_filter, int first_column, int group,
                                          Index m)
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K> && !ALIKE; ++v)
            of_filters[v].start(problem, m + own_row<TILE_K>() + v * ROWS_APART<TILE_K>);
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_M>; ++v)
            of_columns[v].start(problem, m + own_row<TILE_M>() + v * ROWS_APART<TILE_M>);
        const int k = first_filter + own_column<TILE_K>(), d = first_column + own_column<TILE_M>();
        exists = k < problem.Kg;
        filter = offset(problem.y, 0, group * problem.Kg + k, 0, 0);
        column.start(problem, group, d % problem.Cg, d / problem.Cg);
    }

    __device__ __forceinline__ void advance(const Problem& problem)
    {
        #pragma unroll
        for (Pixel& pixel : of_columns) pixel.advance(problem);
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K> && !ALIKE; ++v) of_filters[v].advance(problem);
    }

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                          const Problem& problem)
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K>; ++v) {
            const Pixel& pixel = ALIKE ? of_columns[v] : of_filters[v];
            const Offset from = filter + offset(problem.y, pixel.n, 0, pixel.p, pixel.q);
            load(next_filters.vectors[v], grad_y + from, exists && pixel.n < problem.N);
        }
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_M>; ++v) {
            const Pixel& pixel = of_columns[v];
            const Offset from = column.at + window_of(problem, pixel);
            load(next_columns.vectors[v], x + from, column.is_inside(problem, pixel));
        }
    }

    static __device__ __forceinline__ void load(Vector& to, const Element* from, bool wanted)
    {
        Several<VECTOR> loaded = {};
        if (wanted) loaded = several<VECTOR>(from);
        #pragma unroll
        for (int e = 0; e < VECTOR; ++e) to.lane[e] = widened(loaded.lane[e]);
    }

    __device__ __forceinline__ void put(int buffer) const
    {
        next_filters.put(&filters[buffer][own_row<TILE_K>()][own_column<TILE_K>()]);
        next_columns.put(&pixels[buffer][own_row<TILE_M>()][own_column<TILE_M>()]);
    }
};

template <bool, class Then, class> struct Choice { using Type = Then; };
template <class Then, class Else> struct Choice<false, Then, Else> { using Type = Else; };
using Walk = Choice<TOGETHER == CHANNELS, VectorWalk, ElementWalk>::Type;

// Write a thread's sums, a row of `pitch` for each filter; `to`: where the block's tile begins.
__device__ __forceinline__ void leave(const Accumulator (&sums)[EACH][EACH], const Place& place, Accumulator* to,
                                      int pitch)
{
    if constexpr (TOGETHER == CHANNELS) {
        to += (int64)(place.warp_filter + place.filter_lane * VECTOR) * pitch;
        to += place.warp_pixel + place.pixel_lane * VECTOR;
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            #pragma unroll
            for (int v = 0; v < EACH / VECTOR; ++v)
                vector_at(to[(int64)(i / VECTOR * FILTER_BLOCK + i % VECTOR) * pitch + v * PIXEL_BLOCK]) =
                    vector_at(sums[i][v * VECTOR]);
    } else {
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
                   Accumulator* __restrict__ partial, Problem problem, Splits splits)
{
    const int across_k = splits.filters / TILE_K, across_d = splits.columns / TILE_M;
    unsigned block = blockIdx.x;
    const int first_filter = block % across_k * TILE_K; block /= across_k;
    const int first_column = block % across_d * TILE_M;
    const int group = block / across_d;

    const Place place;
    int own_filter = place.warp_filter + place.filter_lane * VECTOR;
    int own_pixel = place.warp_pixel + place.pixel_lane * VECTOR;
    if (TOGETHER == CHANNELS) keep(own_filter), keep(own_pixel);  // else there are too few registers
    const auto multiply = [&](Accumulator (&sums)[EACH][ACROSS], int buffer) {
        multiply_stage(sums, &filters[buffer][0][own_filter], &pixels[buffer][0][own_pixel]);
    };
    Walk walk;
    walk.start(problem, first_filter, first_column, group, blockIdx.y * splits.pixels);
    walk.fetch(x, grad_y, problem);
    walk.put(0);
    __syncthreads();

    alignas(16) Accumulator sums[EACH][EACH] = {};
    int buffer = 0;
    for (int left = splits.stages_of(blockIdx.y, DEPTH) - 1; left > 0; --left) {
        walk.advance(problem);
        walk.fetch(x, grad_y, problem);
        multiply(sums, buffer);
        buffer ^= 1;
        walk.put(buffer);
        __syncthreads();
    }
    multiply(sums, buffer);

    const int64 row = (int64)blockIdx.y * problem.groups * splits.filters + group * splits.filters + first_filter;
    leave(sums, place, partial + row * splits.columns + first_column, splits.columns);
}
