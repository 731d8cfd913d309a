// Implicit GEMM: the matrix product of im2col without the matrix. A block gathers the windows of its pixels straight
// into shared memory, stage by stage, and multiplies them there (register_tile.cuh draws the tile).
//
//     y[k, m] = sum over d of  packed[d, k] * x[window of m, d]          m = (n, p, q), d = a tap and a channel
//
//     ORDER 0, "channels inner": d = tap * channels + c        one stage = one tap, 8 channels
//         from stage to stage the address grows by 8 channels; only at a new tap are its row and column looked at,
//         and whether they lie inside the image
//     ORDER 1, "taps inner":     d = c * R * S + tap           for few channels, which would not fill a stage
//
// Who loads what: channels first in memory: 32 lanes take 32 neighbouring pixels of one channel, a warp's load is one
// line where the stride is 1. Channels last (TOGETHER): two lanes take one pixel's 8 channels, four each, as one load.
// Weights are packed first by pack_filters, in the order of d, interleaved as gemm_layout.cuh says, and padded with
// zeros, so their loads and stores are of 128 bits.
// Why it pays: im2col writes and reads R * S times the input through memory; here it comes from the caches, whence
// a tile of 128 x 128 takes one word for 64 multiply-adds.
// Small problems: where the tiles are fewer than the multiprocessors, SPLIT makes several blocks share one, each with
// its part of d; they write whole tiles of sums to the workspace and sum_splits adds them, always in the same order.
// Measured on an H200, float32, 15 layers of ResNet-50 at 32 images (results/nvidia-h200-2026-11-28): 22 to 42 TFLOP/s
// of the 63 its lanes do; 0.65 to 1.28 times as fast as the better of cuDNN and PyTorch without TF32, 1.05 in the mean.
// 1.0 to 1.9 times as fast as im2col, except for wide 1x1 with a stride (0.8), whose columns are a small copy.
// Limits: none on the problem.
// Source: Chetlur et al., cuDNN, 2014; the order of d and the incremental addresses: Thakkar et al., CUTLASS,
// implicit GEMM convolution, 2020.
//
// Compiled with problem.cuh's constants, -DTILE_K -DTILE_M, -DORDER, -DTOGETHER (1: channels lie side by side, four
// of them aligned), -DWHOLE (1: no stage ends amid the channels), -DSPLIT, -DACTIVATION.

#include "cut.cuh"
#include "epilogue.cuh"
#if __CUDA_ARCH__ >= 1200
#define MORE_REGISTERS (WIDE || ORDER == 1 || (TOGETHER && (SPLIT || sizeof(Element) == 2)))
#else
#define MORE_REGISTERS (WIDE || (TOGETHER && SPLIT))
#endif
#include "register_tile.cuh"

constexpr int TAPS = R * S;
constexpr int CHUNK = 4;  // channels that one thread takes at once where they lie side by side

// A thread's part of a stage of pixels: OWN of them, ROWS of the DEPTH steps each.
constexpr int LANES = TOGETHER ? THREADS / (DEPTH / CHUNK) : TILE_M < THREADS ? TILE_M : THREADS;
constexpr int OWN = TILE_M / LANES;
constexpr int ROWS = DEPTH * TILE_M / THREADS / OWN;
static_assert(OWN * LANES == TILE_M && ROWS * OWN * THREADS == DEPTH * TILE_M && (!TOGETHER || ROWS == CHUNK));

struct alignas(4 * sizeof(Element) < 16 ? 4 * sizeof(Element) : 16) Channels { Element lane[CHUNK]; };

// Where row d of the packed weights comes from.
struct Tap { int tap, channel; };
__device__ __forceinline__ Tap tap_of(int d, const Cut& cut)
{
    if constexpr (ORDER == 0) return {d / cut.channels, d % cut.channels};
    return {d % TAPS, d / TAPS};
}

// The windows of a thread's pixels, and how far the block has walked along d.
struct Walk {
    int h[OWN], w[OWN];    // top left of each window; far outside where there is no such pixel
    Offset corner[OWN];    // its address, for this thread's first step of a stage
    Offset at[OWN];        // of the next stage to fetch (ORDER 0)
    bool inside[OWN];
    int tap, channel, d;

    static __device__ __forceinline__ int own_pixel(int j)
    {
        return (TOGETHER ? threadIdx.x / (DEPTH / CHUNK) : threadIdx.x % LANES) + j * LANES;
    }
    static __device__ __forceinline__ int first_step()
    {
        return TOGETHER ? threadIdx.x % (DEPTH / CHUNK) * CHUNK : threadIdx.x / LANES * ROWS;
    }

    __device__ __forceinline__ void start(const Problem& problem, const Cut& cut, Index first_pixel, int group, int stage)
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            Index pixel = first_pixel + own_pixel(j);
            const bool exists = pixel < cut.pixels;
            const int q = pixel % problem.Q; pixel /= problem.Q;
            const int p = pixel % problem.P, n = pixel / problem.P;
            h[j] = exists ? p * STRIDE_H - problem.top : -0x40000000;
            w[j] = q * STRIDE_W - problem.left;
            corner[j] = offset(problem.x, n, group * problem.Cg, exists ? h[j] : 0, w[j]);
        }
        d = stage * DEPTH;
        if constexpr (ORDER == 0) {
            tap = d / cut.channels;
            channel = d % cut.channels;
            aim(problem);
        }
    }

    // Turn to the tap `tap`, channel `channel`.
    __device__ __forceinline__ void aim(const Problem& problem)
    {
        const int r = tap / S, s = tap % S;
        const Offset step = offset(problem.x, 0, channel + first_step(), r * DILATION_H, s * DILATION_W);
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            inside[j] = contains(problem, j, r, s);
            at[j] = corner[j] + step;
        }
    }

    __device__ __forceinline__ bool contains(const Problem& problem, int j, int r, int s) const
    {
        return (unsigned)(h[j] + r * DILATION_H) < problem.H && (unsigned)(w[j] + s * DILATION_W) < problem.W;
    }

    __device__ __forceinline__ void fetch(Accumulator (&next)[OWN][ROWS], const Element* __restrict__ x,
                                          const Problem& problem) const
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            if constexpr (TOGETHER) {
                Channels four = {};
                if (inside[j] && (WHOLE || channel + first_step() < problem.Cg))
                    four = *reinterpret_cast<const Channels*>(x + at[j]);
                #pragma unroll
                for (int i = 0; i < ROWS; ++i) next[j][i] = widened(four.lane[i]);
            } else {
                #pragma unroll
                for (int i = 0; i < ROWS; ++i) next[j][i] = element(x, problem, j, i);
            }
        }
    }

    __device__ __forceinline__ Accumulator element(const Element* __restrict__ x, const Problem& problem,
                                                   int j, int i) const
    {
        if constexpr (ORDER == 0) {
            const bool wanted = inside[j] && (WHOLE || channel + first_step() + i < problem.Cg);
            return wanted ? widened(x[at[j] + i * (Offset)problem.x.c]) : Accumulator(0);
        }
        const unsigned step = d + first_step() + i;
        const int c = step / TAPS, r = step % TAPS / S, s = step % S;
        const bool wanted = c < problem.Cg && contains(problem, j, r, s);
        return wanted ? widened(x[corner[j] + offset(problem.x, 0, c, r * DILATION_H, s * DILATION_W)])
                      : Accumulator(0);
    }

    static __device__ __forceinline__ void put(Accumulator (&tile)[DEPTH][TILE_M], const Accumulator (&next)[OWN][ROWS])
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j)
            #pragma unroll
            for (int i = 0; i < ROWS; ++i) tile[first_step() + i][place_of<PIXEL_LANES>(own_pixel(j))] = next[j][i];
    }

    __device__ __forceinline__ void advance(const Problem& problem, const Cut& cut)
    {
        d += DEPTH;
        if constexpr (ORDER == 0) {
            channel += DEPTH;
            if (channel < cut.channels) {
                #pragma unroll
                for (int j = 0; j < OWN; ++j) at[j] += DEPTH * (Offset)problem.x.c;
            } else {
                channel = 0;
                ++tap;
                aim(problem);
            }
        }
    }
};

// grid: groups * tiles_m * (filters / TILE_K) and the splits, block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_implicit_gemm(const Element* __restrict__ x, const Accumulator* __restrict__ packed, Element* __restrict__ y,
                     const Element* __restrict__ bias, const Element* __restrict__ residual,
                     Accumulator* __restrict__ partial, Problem problem, Cut cut)
{
    const int across_k = cut.filters / TILE_K;
    unsigned block = blockIdx.x;
    const int first_filter = block % across_k * TILE_K; block /= across_k;
    const Index first_pixel = (Index)(block % cut.tiles_m) * TILE_M; block /= cut.tiles_m;
    const int group = block;
    const int stage = blockIdx.y * cut.stages, end = min(stage + cut.stages, cut.depth / DEPTH);
    packed += ((int64)group * cut.depth + stage * DEPTH + own_row<TILE_K>()) * cut.filters
            + first_filter + own_column<TILE_K>();

    const Place place;
    Share<TILE_K> next_filters;
    Accumulator next_pixels[OWN][ROWS];
    Walk walk;
    walk.start(problem, cut, first_pixel, group, stage);
    next_filters.fetch(packed, cut.filters);
    walk.fetch(next_pixels, x, problem);
    next_filters.put(filters[0]);
    walk.put(pixels[0], next_pixels);
    __syncthreads();

    Accumulator sums[EACH][EACH] = {};
    int buffer = 0;
    for (int left = end - stage - 1; left > 0; --left) {
        packed += (int64)DEPTH * cut.filters;
        walk.advance(problem, cut);
        next_filters.fetch(packed, cut.filters);
        walk.fetch(next_pixels, x, problem);
        multiply_stage(sums, buffer, place);
        buffer ^= 1;
        next_filters.put(filters[buffer]);
        walk.put(pixels[buffer], next_pixels);
        __syncthreads();
    }
    multiply_stage(sums, buffer, place);

    if constexpr (SPLIT) {  // the tile's edges too: 64 conditions would cost more registers than there are
        const int filter = group * cut.filters + first_filter + place.filter(0);
        const int64 row = (int64)blockIdx.y * problem.groups * cut.filters + filter, pitch = (int64)cut.tiles_m * TILE_M;
        Accumulator* to = partial + row * pitch + first_pixel + place.pixel(0);
        #pragma unroll
        for (int i = 0; i < EACH; ++i, to += FILTER_LANES * pitch)
            #pragma unroll
            for (int j = 0; j < EACH; ++j) to[j * PIXEL_LANES] = sums[i][j];
        return;
    }
    #pragma unroll
    for (int j = 0; j < EACH; ++j) {
        Index pixel = first_pixel + place.pixel(j);
        if (pixel >= cut.pixels) continue;
        const int q = pixel % problem.Q; pixel /= problem.Q;
        const int p = pixel % problem.P, n = pixel / problem.P;
        #pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int k = first_filter + place.filter(i);
            if (k < problem.Kg) store(problem, {y, bias, residual}, n, group * problem.Kg + k, p, q, sums[i][j]);
        }
    }
}

// Write w in the order of d. grid: over groups * depth * filters, one thread each.
extern "C" __global__ void __launch_bounds__(256)
pack_filters(const Element* __restrict__ w, Accumulator* __restrict__ packed, Problem problem, Cut cut)
{
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    if (index >= (int64)problem.groups * cut.depth * cut.filters) return;
    const int k = index % cut.filters;
    const int64 row = index / cut.filters;
    const int group = row / cut.depth;
    const Tap from = tap_of(row % cut.depth, cut);
    const bool wanted = k < problem.Kg && from.channel < problem.Cg && from.tap < TAPS;
    const Offset at = offset(problem.w, group * problem.Kg + k, from.channel, from.tap / S, from.tap % S);
    packed[row * cut.filters + place_of<FILTER_LANES>(k)] = wanted ? widened(w[at]) : Accumulator(0);
}
