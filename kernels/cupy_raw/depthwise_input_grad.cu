// Input gradient of a strided depthwise convolution, every phase of the stride in one launch: grad_y is read once,
// grad_x written once.
//
//     grad_x[h, w] = sum over r, s of  grad_y[(h + top - r dilation) / stride, ...] * w[r, s]     where that divides
//
//     h + top = u stride + phase:  every tap r serves one phase, r dilation % stride, and finds its row of grad_y
//     r dilation / stride above u. Both are known when the kernel is compiled.
//
//     a thread:  ROWS u's of one v                       stride 2, 3 x 3:
//
//         grad_y  v-1  v             grad_x  . .             phase 0, 0 <- w[0, 0], w[0, 2], w[2, 0], w[2, 2]
//                +---+---+                  +---+            phase 0, 1 <- w[0, 1], w[2, 1]
//          u - 1 | g | g |                  |0 1|  2 x 2     phase 1, 0 <- w[1, 0], w[1, 2]
//          u     | g | g |                u |2 3|  of them   phase 1, 1 <- w[1, 1]
//          u + 1 | g | g |            u + 1 |   |
//                +---+---+                  +---+
//
// Why it pays: input_grad_phases.py makes a convolution of each phase. That is as few multiply-adds, but with stride 2
// grad_y is read four times and, channels first, every sector of grad_x is written twice, by halves: 12 words where
// there are 5. Here a block stages a patch of grad_y (staged_planes.cuh), keeps ROWS stride^2 sums in registers and
// sends its part of grad_x through shared memory, to leave by 128-bit stores where whole rows lie side by side.
// Counted by the emulator (tests/kernels/cupy_raw/test_depthwise_emulated.py), stride 2, 3x3 to 7x7, float32, sm_80,
// in whole sectors, over the bytes of grad_y, w and grad_x: 1.02 to 1.07 channels first and 1.07 to 1.13 channels last,
// where the phases move 2.5 to 2.8 and 1.9 to 2.1 times as much. With 3x3 a word of grad_y takes 18 FLOPs for the 20
// bytes that it and its part of grad_x are. Registers, sm_80: 54 to 95, by the window.
// Bank conflicts: as depthwise.cu; sums of neighbouring threads go stride words apart to shared memory, 2 to 2.7
// wavefronts a store.
// Limits: one channel and one filter per group, no bias, residual or activation, windows of at most 121 taps; a tile
// in 48 KB of shared memory. Never run on hardware.
// Source: as depthwise.cu; the phases: Vaidyanathan, Multirate Systems and Filter Banks, 1993, section 4.3.
//
// Compiled with problem.cuh's and staged_planes.cuh's constants (x is grad_x, y is grad_y), -DACTIVATION=IDENTITY, -DROWS
// (u's of a thread), -DTURNS (how often), -DSIDE_BY_SIDE (1: so a block's part of grad_x lies in memory).

#include "depthwise_tile.cuh"

constexpr int TAPS = R * S;
constexpr int REACH_H = (R - 1) * DILATION_H / STRIDE_H, REACH_W = (S - 1) * DILATION_W / STRIDE_W;  // behind u, v
constexpr int ROWS_READ = ROWS + REACH_H;
constexpr int BLOCKS_PER_SM = VECTOR == 2 ? 1 : 2;

// What a block computes: of its planes, the rows and columns of grad_x from h, w on.
struct Part {
    int plane, planes, u, v;               // the first
    int h, w, rows, width;

    __device__ __forceinline__ Part(const Problem& problem, const Tile& tile)
    {
        plane = blockIdx.x / tile.across_p * tile.planes;
        planes = min(tile.planes, tile.all_planes - plane);
        u = problem.top / STRIDE_H + blockIdx.x % tile.across_p * tile.strips * ROWS;
        v = problem.left / STRIDE_W + blockIdx.y * tile.columns;
        h = max(u * STRIDE_H - problem.top, 0);
        w = max(v * STRIDE_W - problem.left, 0);
        rows = min((u + tile.strips * ROWS) * STRIDE_H - problem.top, problem.H) - h;
        width = min((v + tile.columns) * STRIDE_W - problem.left, problem.W) - w;
    }
};

// What a thread computes at once: a strip of one v, of channel c of SIDE of one of the block's planes.
struct Job {
    int plane, u, v, strip, c;
    bool exists;

    __device__ __forceinline__ Job(const Problem& problem, const Tile& tile, const Part& part, unsigned number)
    {
        c = number % SIDE;
        const int place = number / SIDE, row = tile.by_columns.of(place);
        plane = SEVERAL ? tile.by_strips.of(row) : 0;
        strip = row - plane * tile.strips;
        u = part.u + strip * ROWS;
        v = part.v + place - row * tile.columns;
        exists = (SEVERAL ? plane < part.planes : row < tile.strips)
              && Plane(part.plane + plane, problem.C).channel + c < problem.C;
    }
};

// Weights, column by column: tap (r, s) of channel c lies at (s * R + r) * pitch + c.
__device__ __forceinline__ void stage_weights(const Problem& problem, const Element* __restrict__ w, const Tile& tile,
                                              const Part& part)
{
    const unsigned channels = part.planes * SIDE, pitch = tile.planes * SIDE | 1;  // odd: taps in neighbouring banks
    for (unsigned index = threadIdx.x; index < channels * TAPS; index += blockDim.x) {
        const int tap = index % TAPS, c = index / TAPS;
        const int channel = Plane(part.plane + c / SIDE, problem.C).channel + c % SIDE;
        if (channel < problem.C)
            words[tile.weights_at + (tap % S * R + tap / S) * pitch + c] =
                widened(w[offset(problem.w, channel, 0, tap / S, tap % S)]);
    }
}

using Sums = Accumulator[ROWS][STRIDE_H][STRIDE_W];

// A thread's sums: tap by tap of a row of the window it slides down its strip of grad_y.
__device__ __forceinline__ void convolve(Sums& sums, const Problem& problem, const Tile& tile, const Job& job,
                                         int patch_at, int patch_w)
{
    const int pitch = tile.planes * SIDE | 1;
    const Accumulator* weights = words + tile.weights_at + job.plane * SIDE + job.c;
    const int first = patch_at + job.plane * tile.pitches.plane + job.c + job.strip * ROWS * tile.pitches.row;
    #pragma unroll
    for (int s = 0; s < S; ++s) {
        const int q = job.v - s * DILATION_W / STRIDE_W;
        const bool inside = (unsigned)q < problem.Q;
        const Accumulator* pixels = words + (inside ? first + (q - patch_w) * SIDE : 0);  // or the zero, at every row
        const int step = inside ? tile.pitches.row : 0;
        Accumulator taps[R];
        #pragma unroll
        for (int r = 0; r < R; ++r) taps[r] = weights[(s * R + r) * pitch];
        #pragma unroll
        for (int i = 0; i < ROWS_READ; ++i) {
            const Accumulator pixel = pixels[i * step];
            #pragma unroll
            for (int r = 0; r < R; ++r) {
                const int o = i - REACH_H + r * DILATION_H / STRIDE_H;
                if (o >= 0 && o < ROWS)
                    sums[o][r * DILATION_H % STRIDE_H][s * DILATION_W % STRIDE_W] += pixel * taps[r];
            }
        }
    }
}

// Into shared memory, plane by plane as grad_x has them: the part's rows, columns and channels.
__device__ __forceinline__ void put_sums(const Sums& sums, const Problem& problem, const Part& part, const Job& job,
                                         int outputs_at)
{
    #pragma unroll
    for (int o = 0; o < ROWS; ++o)
        #pragma unroll
        for (int i = 0; i < STRIDE_H; ++i) {
            const int h = (job.u + o) * STRIDE_H + i - problem.top - part.h;
            if ((unsigned)h >= part.rows) continue;
            #pragma unroll
            for (int j = 0; j < STRIDE_W; ++j) {
                const int w = job.v * STRIDE_W + j - problem.left - part.w;
                if ((unsigned)w < part.width)
                    words[outputs_at + ((job.plane * part.rows + h) * part.width + w) * SIDE + job.c] = sums[o][i][j];
            }
        }
}

// One by one, whatever grad_x's strides; neighbouring threads neighbouring channels, then columns.
__device__ __forceinline__ void store_elements(Element* __restrict__ grad_x, const Problem& problem, const Part& part,
                                               int at)
{
    const unsigned count = part.planes * part.rows * part.width * SIDE;
    for (unsigned index = threadIdx.x; index < count; index += blockDim.x) {
        const unsigned pixel = index / SIDE, row = pixel / part.width;
        const int c = index % SIDE, w = part.w + pixel % part.width, h = part.h + row % part.rows;
        const Plane plane(part.plane + row / part.rows, problem.C);
        if (plane.channel + c < problem.C)
            round_to(grad_x[offset(problem.x, plane.n, plane.channel + c, h, w)], words[at + index]);
    }
}

// grid: groups of planes * across_p, blocks along a row; block: a thread for each strip of each v.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_PER_SM)
conv2d_depthwise_input_grad(const Element* __restrict__ grad_y, const Element* __restrict__ w,
                            Element* __restrict__ grad_x, Problem problem, Tile tile)
{
    const Part part(problem, tile);
    const Array image = {grad_y, problem.y, problem.N, problem.K, problem.P, problem.Q};
    const int left = STAGING == STRETCH || gridDim.y == 1 ? 0 : part.v - REACH_W;
    const Patch patch(image, part.plane, part.planes, part.u - REACH_H, left, tile.strips * ROWS + REACH_H);
    const int at = stage(TILE_AT, image, patch, tile.pitches);
    stage_weights(problem, w, tile, part);
    __syncthreads();

    const int64 first = ((int64)part.plane * problem.H + part.h) * problem.W * SIDE;  // where side by side
    const int outputs_at = tile.outputs_at + (SIDE_BY_SIDE ? behind_boundary(grad_x + first) : 0);
    #pragma unroll 1
    for (int turn = 0; turn < TURNS; ++turn) {
        const Job job(problem, tile, part, turn * blockDim.x + threadIdx.x);
        if (!job.exists) continue;
        Sums sums = {};
        convolve(sums, problem, tile, job, at, patch.w);
        put_sums(sums, problem, part, job, outputs_at);
    }
    __syncthreads();
    if constexpr (SIDE_BY_SIDE) {
        const Output output = {grad_x + first, nullptr, nullptr};
        store_side_by_side(problem, output, part.planes * part.rows * problem.W * SIDE, outputs_at);
    } else {
        store_elements(grad_x, problem, part, outputs_at);
    }
}
