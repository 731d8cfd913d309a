// Weight gradient of a depthwise convolution: x and grad_y are read once each, the sums stay in registers.
//
//     grad_w[c, r, s] = sum over n, p, q of  grad_y[n, c, p, q] * x[n, c, p stride - top + r dilation, ...]
//
//     a thread:  one column of ROWS of grad_y        for each tile of each image of the block's split:
//                                                        stage x with its halo, and grad_y (staged_planes.cuh)
//         grad_y   x: columns s = 0 1 2                  slide down: pixel i meets grad_y[o] for tap r = i - o
//         +---+    +---+---+---+                     then, once: add up the threads of one channel, pairwise in shared
//         | g |    | x | x | x |                     memory, always in the same order, and store R S sums
//         | g |    | x | x | x |                     R S sums per thread, in registers
//         +---+    | x | x | x |
//                  +---+---+---+
//
// Why it pays: weight_grad_direct.cu loads x once for each tap, this one once in all; a pixel from shared memory
// serves up to R taps. Images and tiles are split among blocks as far as the sums, which each split writes and
// finish_weight_grad.cu adds in their order, stay few beside what is read: the same bits every time, without atomics.
// Counted by the emulator on layers of MobileNetV2, EfficientNet and ConvNeXt, 3x3 to 7x7, at 16 images, sm_80, in whole
// sectors: at most 1.2 times the bytes of x and grad_y. Channels last that took wider tiles: 256 threads are 32 columns
// of 8 channels, too few beside a halo of 6. So there a thread takes up to four strips of a tile, one after the other,
// and grad_y, of which no two threads share a word, goes from memory to its registers, which leaves shared memory to
// x: 7x7 moves 1.19 instead of 1.38 times as much, 1.18 instead of 1.29 with stride 2. A tile costs a thread 2 R S ROWS
// FLOPs. 25 taps and fewer leave registers for two blocks of 256 threads, 49 for one; windows of more are taken in
// chunks, and x and grad_y read once for each.
// Bank conflicts: as depthwise.cu. Adding up, lanes meet neighbouring words; SHARES is odd, so storing does not
// either.
// Limits: one channel and one filter per group; a tile in 48 KB of shared memory. Never run on hardware.
// Source: as depthwise.cu for the tile; Harris, Optimizing parallel reduction in CUDA, 2007.
//
// Compiled with problem.cuh's and staged_planes.cuh's constants (y is grad_y, w is grad_w), -DROWS, -DTAPS_R -DTAPS_S
// (the taps of one block), -DTURNS (strips that a thread takes of a tile, one after the other, of one channel: then
// there is one plane, and SIDE divides the threads), -DGRAD_STAGED (0: each thread loads its own of grad_y).

#include "staged_planes.cuh"
#include "weight_grad_splits.cuh"

constexpr int CHUNKS_R = ceil_div(R, TAPS_R), CHUNKS_S = ceil_div(S, TAPS_S);
constexpr int TAPS = TAPS_R * TAPS_S;
constexpr int ROWS_READ = (ROWS - 1) * STRIDE_H + (TAPS_R - 1) * DILATION_H + 1;  // by one thread, in one tile
constexpr int MOST_THREADS = 256;
constexpr int SHARES = MOST_THREADS + 1;  // of one tap in shared memory; odd: neighbouring taps in neighbouring banks
constexpr int AT_ONCE_MOST = (SHARED_WORDS - TILE_AT) / SHARES;  // taps added up at once
constexpr int AT_ONCE = AT_ONCE_MOST < TAPS ? AT_ONCE_MOST : TAPS;
static_assert(AT_ONCE > 0);

constexpr int BLOCKS_PER_SM = VECTOR == 4 && TAPS <= 25 ? 2 : 1;  // at least, of 128 registers, or of 255

struct Tile {
    int planes, strips, columns;   // of a block; strips of ROWS rows
    int across_p, across_q;        // tiles of a plane
    int groups;                    // of planes of one image
    int items, each;               // images * tiles of a plane, and how many of them one split takes
    int grad_at;                   // where grad_y lies in `words`
    Divisor by_columns, by_strips;
    Pitches x, grad;
};

struct Part {
    int group, tap_r, tap_s;       // which planes; the first of the block's taps
    int planes;                    // how many
    int own, member, members, c;   // the thread's plane, its number among that plane's threads, its channel of SIDE

    __device__ __forceinline__ Part(const Problem& problem, const Tile& tile)
    {
        unsigned index = blockIdx.x;
        tap_s = index % CHUNKS_S * TAPS_S; index /= CHUNKS_S;
        tap_r = index % CHUNKS_R * TAPS_R; index /= CHUNKS_R;
        group = index;
        planes = min(tile.planes, ceil_div(problem.C, SIDE) - group * tile.planes);

        c = threadIdx.x % SIDE;
        members = TURNS > 1 ? blockDim.x / SIDE : tile.strips * tile.columns;
        const int place = threadIdx.x / SIDE;
        own = TURNS > 1 ? 0 : tile.by_strips.of(tile.by_columns.of(place));
        member = place - own * members;
    }
};

// What a thread takes at once of a tile: a strip of one column.
struct Job {
    int strip, column;
    bool exists;

    __device__ __forceinline__ Job(const Problem& problem, const Tile& tile, const Part& part, int turn)
    {
        const int place = (turn * blockDim.x + threadIdx.x) / SIDE, row = tile.by_columns.of(place);
        column = place - row * tile.columns;
        strip = row - part.own * tile.strips;
        exists = part.own < part.planes && strip < tile.strips
              && (part.group * tile.planes + part.own) * SIDE + part.c < problem.C;
    }
};

// One strip of grad_y: a column of ROWS. In a WHOLE one every row exists.
template <bool WHOLE>
__device__ __forceinline__ void fetch(Accumulator (&grads)[ROWS], const Problem& problem, const Tile& tile,
                                      const Part& part, const Job& job, int rows, int grad_at, const Element* grad_y)
{
    const Accumulator* staged = words + grad_at + part.own * tile.grad.plane + job.strip * ROWS * tile.grad.row
                              + job.column * SIDE + part.c;
    #pragma unroll
    for (int o = 0; o < ROWS; ++o)
        if (WHOLE || o < rows)
            grads[o] = GRAD_STAGED ? staged[o * tile.grad.row] : widened(grad_y[o * (Offset)problem.y.h]);
}

// Add the products of one strip of grad_y and the pixels under it.
template <bool WHOLE>
__device__ __forceinline__ void accumulate(Accumulator (&sums)[TAPS_R][TAPS_S], const Accumulator (&grads)[ROWS],
                                           const Problem& problem, const Tile& tile, const Part& part, const Job& job,
                                           int q, int rows, int patch_at, int patch_w)
{
    const int first = patch_at + part.own * tile.x.plane + job.strip * ROWS * STRIDE_H * tile.x.row + part.c;
    #pragma unroll
    for (int s = 0; s < TAPS_S; ++s) {
        const int w = q * STRIDE_W - problem.left + (part.tap_s + s) * DILATION_W;
        const bool inside = (unsigned)w < problem.W;
        const Accumulator* pixels = words + (inside ? first + (w - patch_w) * SIDE : 0);  // or the zero, at every row
        const int step = inside ? tile.x.row : 0;
        #pragma unroll
        for (int i = 0; i < ROWS_READ; ++i) {
            const Accumulator pixel = pixels[i * step];
            #pragma unroll
            for (int o = 0; o < ROWS; ++o) {
                const int row = i - o * STRIDE_H;
                if (row >= 0 && row % DILATION_H == 0 && row / DILATION_H < TAPS_R && (WHOLE || o < rows))
                    sums[row / DILATION_H][s] += pixel * grads[o];
            }
        }
    }
}

// Add up the sums of all threads of one channel, pairwise, always in the same order, and store them.
__device__ __forceinline__ void add_up(const Accumulator (&sums)[TAPS_R][TAPS_S], const Problem& problem,
                                       const Tile& tile, const Part& part, Accumulator* __restrict__ partial)
{
    int widest = 1;
    while (2 * widest < part.members) widest *= 2;
    Accumulator* shares = words + TILE_AT;
    #pragma unroll
    for (int first = 0; first < TAPS; first += AT_ONCE) {
        const int count = min(AT_ONCE, TAPS - first);
        __syncthreads();
        #pragma unroll
        for (int t = 0; t < AT_ONCE; ++t)
            if (first + t < TAPS) shares[t * SHARES + threadIdx.x] = sums[(first + t) / TAPS_S][(first + t) % TAPS_S];
        for (int half = widest; half > 0; half /= 2) {
            __syncthreads();
            if (part.own < tile.planes && part.member < half && part.member + half < part.members)
                for (int t = 0; t < count; ++t)
                    shares[t * SHARES + threadIdx.x] += shares[t * SHARES + threadIdx.x + half * SIDE];
        }
        __syncthreads();
        for (int index = threadIdx.x; index < part.planes * SIDE * count; index += blockDim.x) {
            const int t = index % count, place = index / count, own = place / SIDE, c = place % SIDE;
            const int channel = (part.group * tile.planes + own) * SIDE + c;
            const int r = part.tap_r + (first + t) / TAPS_S, s = part.tap_s + (first + t) % TAPS_S;
            if (channel < problem.C && r < R && s < S)
                partial[((int64)blockIdx.y * problem.K + channel) * (R * S) + r * S + s] =
                    shares[t * SHARES + own * part.members * SIDE + c];
        }
    }
}

// grid: groups of planes * chunks of taps, and the splits; block: a thread for each strip of each column.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, BLOCKS_PER_SM)
conv2d_depthwise_weight_grad(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                             Accumulator* __restrict__ partial, Problem problem, Tile tile)
{
    const Part part(problem, tile);
    const Array image = {x, problem.x, problem.N, problem.C, problem.H, problem.W};
    const Array grads = {grad_y, problem.y, problem.N, problem.K, problem.P, problem.Q};
    const int height = (tile.strips * ROWS - 1) * STRIDE_H + (TAPS_R - 1) * DILATION_H + 1;
    const int end = min((blockIdx.y + 1) * tile.each, tile.items);

    Accumulator sums[TAPS_R][TAPS_S] = {};
    for (int item = blockIdx.y * tile.each; item < end; ++item) {
        unsigned index = item;
        const int q = index % tile.across_q * tile.columns; index /= tile.across_q;
        const int p = index % tile.across_p * tile.strips * ROWS, n = index / tile.across_p;
        const int plane = n * ceil_div(problem.C, SIDE) + part.group * tile.planes;
        const int h = p * STRIDE_H - problem.top + part.tap_r * DILATION_H;
        const int w = tile.across_q == 1 ? 0 : q * STRIDE_W - problem.left + part.tap_s * DILATION_W;
        const Patch patch(image, plane, part.planes, h, w, height);
        __syncthreads();
        const int at = stage(TILE_AT, image, patch, tile.x);
        int grad_at = 0;
        if constexpr (GRAD_STAGED) {
            const Patch grad_patch(grads, plane, part.planes, p, q, min(tile.strips * ROWS, problem.P - p));
            grad_at = stage(tile.grad_at, grads, grad_patch, tile.grad);
        }
        __syncthreads();

        #pragma unroll 1
        for (int turn = 0; turn < TURNS; ++turn) {
            const Job job(problem, tile, part, turn);
            const int row = p + job.strip * ROWS, rows = problem.P - row, column = q + job.column;
            if (!job.exists || rows <= 0 || column >= problem.Q) continue;
            const Element* own = grad_y;
            if constexpr (!GRAD_STAGED) own += offset(problem.y, n, part.group * SIDE + part.c, row, column);
            Accumulator strip[ROWS];
            if (rows >= ROWS) {
                fetch<true>(strip, problem, tile, part, job, rows, grad_at, own);
                accumulate<true>(sums, strip, problem, tile, part, job, column, rows, at, w);
            } else {
                fetch<false>(strip, problem, tile, part, job, rows, grad_at, own);
                accumulate<false>(sums, strip, problem, tile, part, job, column, rows, at, w);
            }
        }
    }
    add_up(sums, problem, tile, part, partial);
}
