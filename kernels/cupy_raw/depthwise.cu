// Depthwise convolution: each channel has a window of its own, or several (groups = C). Image filters are the same.
//
//     a block: some planes, or rows of one, staged as they lie in memory      a thread: ROWS outputs of one column
//     (staged_planes.cuh)
//                                                                                   s = 0   1   2
//         0 0 0 0 0 0 0 0 0 0 0 0 0                                               +---+---+---+
//         x x x x x x x x x x x x x   ---+                                        | x |   |   |  for each column s of
//         x x x x x x x x x x x x x      |  strip 0: threads 0 to Q - 1           | x |   |   |  the window: its R
//         x x x x x x x x x x x x x      |                                        | x |   |   |  weights in registers,
//         x x x x x x x x x x x x x   ---+                                        | : |   |   |  then down the strip;
//         x x x x x x x x x x x x x      |  strip 1: the next Q                   | x |   |   |  pixel i meets output o
//         x x x x x x x x x x x x x      |                                        +---+---+---+  with weight i - o
//
//     channels last: a block takes SIDE channels of some rows and columns; neighbouring threads, neighbouring channels
//
// Why it pays: x is read once and y written once, which is all that bounds a small window: 3x3 does 9 multiply-adds
// for 8 bytes. There is no sum over channels, so a block must not lose bytes at its edges: it takes whole rows where
// it can, several planes where they are small, and halo rows are few beside the rows of its strips. A pixel is loaded
// once from shared memory for each column of the window and serves up to R outputs: (ROWS - 1 + R) S loads for ROWS R
// S multiply-adds, 48 for 126 with 3x3 and 14 rows. Where side by side in y, the outputs go back through shared memory
// and leave by 128-bit stores, with residual and activation.
// A tile of MobileNetV2's 32 x 112 x 112, 3x3, 32 images, sm_80: 112 columns x 28 rows, 224 threads of 64 registers;
// 30 rows in (13.4 KB), 28 out (12.5 KB), 56,448 FLOPs. Counted by the emulator: 1.03 times the bytes of x and y in
// whole sectors (1.09 with channels last), 61 instructions for each output, nine of them multiply-adds; an A100 has
// issue slots for 110 in the time in which its memory moves 8 bytes. The layers
// of tests/kernels/cupy_raw/test_depthwise_emulated.py, 3x3 to 7x7 with stride 1 and 2, in both layouts: at most 1.2 times.
// Bank conflicts: lanes read neighbouring words, except where a warp runs from one strip or plane into the next (1.24
// wavefronts per load in the example; the launcher spaces planes so that they meet other banks) and with stride 2,
// where two lanes meet in a bank. It does not matter: 32 outputs take 5 wavefronts, 12 with stride 2, and an A100's
// memory 27 and 69 cycles for their bytes.
// Large windows are bound by multiply-adds, 70 % of all instructions, and their halos are as wide as a tile. So a block
// descends where the picture is large enough to give all multiprocessors one: it keeps the rows that the next step needs
// again, moves them up and stages only what follows, and each row of its strip of columns is staged once.
//
//     128 columns + halo, 32 rows at a time        step 0            step 1
//                                                  |  . . . . |  <-  |  kept: R - 1 rows, moved up
//                                                  |  kept    |      |  . . . . staged
//
// Counted by the emulator, a picture of 1080 x 1920 on 108 multiprocessors: 1.13 times the least bytes with 15x15, 1.27
// times with 31x31, predicted to take as long as tiles of one step, which would move 1.6 and 2.1 times; with 31x31 on 30
// multiprocessors, which want fewer blocks, 1.16 times, on 132 1.58 (results/emulated-sm80-2026-11-28). Whatever its
// schedule, a kernel whose blocks share nothing moves 1.2 times at most only if each has 76 x 76 outputs with 15x15, 164
// x 164 with 31x31: 84 blocks of a picture, 16 of 512 x 512. So tiles stay as small as keeps the multiprocessors busy
// (SLOWER in depthwise_tiles.py). What bounds it there is not memory: 1080 x 1920 outputs of 961 multiply-adds are 1,993
// million, 192 us of all lanes of 108 multiprocessors at 1.5 GHz, and a block issues 1.40 instructions for each; the
// least bytes, 16.6 MB, take an A100's memory 11 us, 1.58 times as many 17. fft is predicted to be 2 to 4 times as fast
// there, and chosen.
// Layers that move their bytes in less than a quarter of a launch lie in L2 as a whole, which brings halos again. There
// blocks that keep the multiprocessors busy may move more, if that is predicted to take no longer (busier in
// depthwise_tiles.py): 960 x 7 x 7, channels last, at one image in 3 rows a block: 180 blocks for 120, 1.04 us for 1.10,
// 1.43 times the bytes.
// Limits: one channel per group; a tile in 48 KB of shared memory. Never run on hardware.
// Source: Lu, Zhang and Wang, Optimizing depthwise separable convolution operations on GPUs, IEEE TPDS 33(1), 2022 (a
// column of pixels reused down its rows); Zhang, Franchetti and Low, High performance zero-memory overhead direct
// convolutions, ICML 2018.
//
// Compiled with problem.cuh's and staged_planes.cuh's constants, -DACTIVATION, -DROWS (a thread's outputs at once),
// -DTURNS (how often), -DFILTERS (of each channel, one after the other), -DSIDE_BY_SIDE (1: so lie a block's outputs),
// -DDESCENDS (1: a block takes several steps down, one plane and one filter at a time).

#include "depthwise_tile.cuh"

constexpr int TAPS = R * S;
constexpr int ROWS_READ = (ROWS - 1) * STRIDE_H + (R - 1) * DILATION_H + 1;  // by one thread
constexpr bool SLIDES = R <= 32 && ROWS_READ <= 128;
constexpr int UNROLL_S = TAPS * ROWS <= 512 ? S : 1;  // past these many multiply-adds code outgrows its cache

// Blocks of 256 threads that registers must leave room for: 64 each, 80, or 128.
constexpr int BLOCKS_PER_SM = VECTOR == 2 || TAPS > 25 ? 2 : STAGING == STRETCH && TAPS <= 9 ? 4 : 3;

// What a block computes: from row p and column q of its planes on.
struct Part {
    Plane first;
    int plane, planes, p, q;

    __device__ __forceinline__ Part(const Problem& problem, const Tile& tile)
        : first(blockIdx.x / tile.across_p * tile.planes, problem.C)
    {
        plane = blockIdx.x / tile.across_p * tile.planes;
        planes = min(tile.planes, tile.all_planes - plane);
        p = blockIdx.x % tile.across_p * tile.strips * ROWS * (DESCENDS ? tile.steps : 1);
        q = blockIdx.y * tile.columns;
    }

    // The channel of a plane of the block: at most one image ends among them.
    __device__ __forceinline__ int channel(const Problem& problem, int number, int c) const
    {
        const int channel = first.channel + c + (SIDE == 1 ? number : 0);
        return SEVERAL && SIDE == 1 && channel >= problem.C ? channel - problem.C : channel;
    }
};

// What a thread computes at once: a strip of one column, of channel c of SIDE of one of the block's planes.
struct Job {
    int plane, strip, column, c;
    bool exists;

    __device__ __forceinline__ Job(const Problem& problem, const Tile& tile, const Part& part, unsigned number)
    {
        c = number % SIDE;
        const int place = number / SIDE, row = tile.by_columns.of(place);
        column = place - row * tile.columns;
        plane = SEVERAL ? tile.by_strips.of(row) : 0;
        strip = row - plane * tile.strips;
        exists = (SEVERAL ? plane < part.planes : row < tile.strips) && part.q + column < problem.Q
              && part.first.channel + c < problem.C;
    }
};

// Weights of one filter of each channel, column by column: tap (r, s) of channel c lies at (s * R + r) * pitch + c.
__device__ __forceinline__ void stage_weights(const Problem& problem, const Element* __restrict__ w, const Tile& tile,
                                              const Part& part, int filter)
{
    const unsigned channels = part.planes * SIDE, pitch = tile.planes * SIDE | 1;  // odd: taps in neighbouring banks
    for (unsigned index = threadIdx.x; index < channels * TAPS; index += blockDim.x) {
        const int tap = index % TAPS, c = index / TAPS, channel = part.channel(problem, c / SIDE, c % SIDE);
        if (channel < problem.C)
            words[tile.weights_at + (tap % S * R + tap / S) * pitch + c] =
                widened(w[offset(problem.w, channel * problem.Kg + filter, 0, tap / S, tap % S)]);
    }
}

// A thread's ROWS sums: column by column of the window it slides down its strip, each pixel loaded once.
__device__ __forceinline__ void convolve(Accumulator (&sums)[ROWS], const Problem& problem, const Tile& tile,
                                         const Job& job, int q, int patch_at, int patch_w)
{
    const int pitch = tile.planes * SIDE | 1;
    const Accumulator* weights = words + tile.weights_at + job.plane * SIDE + job.c;
    const int first = patch_at + job.plane * tile.pitches.plane + job.c
                    + job.strip * ROWS * STRIDE_H * tile.pitches.row;
    #pragma unroll UNROLL_S
    for (int s = 0; s < S; ++s) {
        const int w = q * STRIDE_W - problem.left + s * DILATION_W;
        const bool inside = (unsigned)w < problem.W;
        const Accumulator* pixels = words + (inside ? first + (w - patch_w) * SIDE : 0);  // or the zero, at every row
        const int step = inside ? tile.pitches.row : 0;
        if constexpr (SLIDES) {
            Accumulator taps[R];
            #pragma unroll
            for (int r = 0; r < R; ++r) taps[r] = weights[(s * R + r) * pitch];
            #pragma unroll
            for (int i = 0; i < ROWS_READ; ++i) {
                const Accumulator pixel = pixels[i * step];
                #pragma unroll
                for (int o = 0; o < ROWS; ++o) {
                    const int row = i - o * STRIDE_H;
                    if (row >= 0 && row % DILATION_H == 0 && row / DILATION_H < R)
                        sums[o] += pixel * taps[row / DILATION_H];
                }
            }
        } else {
            #pragma unroll 1
            for (int r = 0; r < R; ++r) {
                const Accumulator tap = weights[(s * R + r) * pitch];
                #pragma unroll
                for (int o = 0; o < ROWS; ++o) sums[o] += pixels[(o * STRIDE_H + r * DILATION_H) * step] * tap;
            }
        }
    }
}

// grid: groups of planes * across_p, blocks along a row, filters; block: a thread for each strip of each column.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_PER_SM)
conv2d_depthwise(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y,
                 const Element* __restrict__ bias, const Element* __restrict__ residual, Problem problem, Tile tile)
{
    Part part(problem, tile);
    const Array image = {x, problem.x, problem.N, problem.C, problem.H, problem.W};
    const int left = STAGING == STRETCH || gridDim.y == 1 ? 0 : part.q * STRIDE_W - problem.left;
    const int height = (tile.strips * ROWS - 1) * STRIDE_H + (R - 1) * DILATION_H + 1;
    const int first = blockIdx.z * FILTERS, behind = FILTERS == 1 ? first + 1 : min(first + FILTERS, problem.Kg);
    #pragma unroll 1
    for (int step = 0;; ++step, part.p += tile.strips * ROWS) {
        const int kept = DESCENDS && step > 0 ? height - tile.strips * ROWS * STRIDE_H : 0;
        const Patch patch(image, part.plane, part.planes, part.p * STRIDE_H - problem.top, left, height, kept);
        const int at = stage(TILE_AT, image, patch, tile.pitches);

        const int rows = min(tile.strips * ROWS, problem.P - part.p);
        const int64 first_output = ((int64)part.plane * problem.P + part.p) * problem.Q * SIDE;  // where side by side
        const int outputs_at = tile.outputs_at + behind_boundary(y + first_output);
        #pragma unroll 1
        for (int filter = first; filter < behind; ++filter) {
            if (filter > first) __syncthreads();
            if (step == 0) stage_weights(problem, w, tile, part, filter);
            __syncthreads();
            #pragma unroll 1
            for (int turn = 0; turn < TURNS; ++turn) {
                const Job job(problem, tile, part, turn * blockDim.x + threadIdx.x);
                if (!job.exists) continue;
                const int k = part.channel(problem, job.plane, job.c) * problem.Kg + filter;
                const int row = job.strip * ROWS, q = part.q + job.column, exist = min(ROWS, rows - row);
                Accumulator sums[ROWS] = {};
                convolve(sums, problem, tile, job, q, at, patch.w);
                if constexpr (SIDE_BY_SIDE) {
                    const Accumulator addend = bias ? widened(bias[k * (Offset)problem.bias]) : Accumulator(0);
                    Accumulator* outputs
                        = words + outputs_at + ((job.plane * rows + row) * problem.Q + q) * SIDE + job.c;
                    #pragma unroll
                    for (int o = 0; o < ROWS; ++o)
                        if (o < exist) outputs[o * problem.Q * SIDE] = sums[o] + addend;
                } else {
                    const int n = Plane(part.plane + job.plane, problem.C).n;
                    #pragma unroll
                    for (int o = 0; o < ROWS; ++o)
                        if (o < exist) store(problem, {y, bias, residual}, n, k, part.p + row + o, q, sums[o]);
                }
            }
        }
        if constexpr (SIDE_BY_SIDE) {
            __syncthreads();
            const Output output = {y + first_output, nullptr, residual ? residual + first_output : nullptr};
            store_side_by_side(problem, output, part.planes * rows * problem.Q * SIDE, outputs_at);
        }
        if (!DESCENDS || step + 1 == tile.steps || part.p + tile.strips * ROWS >= problem.P) break;
        __syncthreads();
        move_up(at, image, patch, tile.pitches, tile.strips * ROWS * STRIDE_H);
        __syncthreads();
    }
}
