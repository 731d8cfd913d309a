// Tiled convolution: a block stages its input with the halo, and its weights, in shared memory; each thread keeps
// ROWS x FILTERS outputs in registers.
//
//     a warp's outputs, COLUMNS = 32, ROWS = 4        the staged input of one channel, 3x3
//     lane  0   1   2  ...  31                         . . . . . . . . .      . halo   # under the outputs
//         +---+---+---+---+---+                        . # # # # # # # .
//     row |   |   |   |   |   | 4 rows, and each       . # # # # # # # .      (rows + 2) x (COLUMNS + 2)
//         |   |   |   |   |   | of them for FILTERS    . # # # # # # # .
//         |   |   |   |   |   | filters                . # # # # # # # .
//         +---+---+---+---+---+                        . . . . . . . . .
//
// A block has WARPS_P warps down the rows and WARPS_K across the filters, and walks over the channels of its group,
// CHANNELS at a time: stage, barrier, multiply, barrier. With fewer COLUMNS than 32, a warp's other lanes take the
// ROWS below: images are often narrower than a warp.
//
// Why it pays: a pixel is read from global memory once per block and used R * S * TILE_K times, a weight once and used
// TILE_P * TILE_Q times. From shared memory, 3x3 and 4 x 8 outputs per thread take 18 words of x (6 rows, 3 columns;
// the compiler keeps what rows share) and 18 vectors of w for 288 multiply-adds: on sm_80 these are 288 of the 332
// instructions of the loop over channels (87 %; 85 % with stride 2), in 91 registers. Staging takes 30 to 40
// instructions per word, so that of a whole stage, 8 channels of 3x3, two thirds multiply. With 2 x 8 outputs 144 of
// 181 multiply (80 %; 78 % with stride 2); the launcher takes such tiles for small maps only: 8 images of 256 channels,
// 14 x 14, make 512 blocks of them that fill 73 % of the 108 multiprocessors of an A100 with useful work, 4 x 8 outputs
// 64 to 256 blocks that fill 45 to 60 %. That is counted, and predicted to be a fifth faster; it was not measured.
// Bank conflicts: no read has any. Columns are stored by their remainder modulo the stride, so lanes read neighbouring
// words whatever STRIDE_W and the dilation are, and the rows' pitch sends the lanes of the next rows to the banks that
// the first left free. All lanes of a warp read the same weights. Storing the weights: 8 lanes walk along c, r, s,
// where they are contiguous, 4 along the filters; the pitch of TILE_K + VECTOR keeps these 32 stores apart. Storing
// pixels, a warp that runs from one row into the next takes two turns.
// Limits: both tiles in 48 KB (the launcher picks a tile that fits, or refuses). With channels last, stores are not
// coalesced: a lane's FILTERS neighbours are written one by one.
// Source: Kirk and Hwu, Programming Massively Parallel Processors, chapter 7 (the halo); Volkov and Demmel,
// Benchmarking GPUs to tune dense linear algebra, SC 2008 (several outputs per thread).
//
// Compiled with problem.cuh's constants, and -DCOLUMNS -DROWS -DFILTERS -DWARPS_P -DWARPS_K -DCHANNELS
// -DCHANNELS_LAST.

#include "epilogue.cuh"

constexpr int LANE_ROWS = 32 / COLUMNS;
constexpr int THREADS = 32 * WARPS_P * WARPS_K;
constexpr int TILE_P = WARPS_P * LANE_ROWS * ROWS, TILE_Q = COLUMNS, TILE_K = WARPS_K * FILTERS;

constexpr int HEIGHT = (TILE_P - 1) * STRIDE_H + (R - 1) * DILATION_H + 1;  // of the staged input
constexpr int WIDTH = (TILE_Q - 1) * STRIDE_W + (S - 1) * DILATION_W + 1;
constexpr int PHASE = ceil_div(WIDTH, STRIDE_W);  // columns with one remainder modulo the stride

// A row of banks holds BANKS words of a sum's type, and serves BANKS lanes at once: PHASE_ROWS rows of COLUMNS lanes.
constexpr int BANKS = 128 / sizeof(Accumulator), PHASE_ROWS = BANKS / COLUMNS;

// Whether rows of lanes that are served at once, ROWS * STRIDE_H staged rows apart, fall into different banks.
constexpr bool free_of_conflicts(int pitch)
{
    for (int apart = 1; apart < PHASE_ROWS; ++apart) {
        const int shift = apart * ROWS * STRIDE_H * pitch % BANKS;
        if (shift < COLUMNS || shift > BANKS - COLUMNS) return false;
    }
    return true;
}

constexpr int row_pitch()
{
    for (int pitch = PHASE * STRIDE_W; pitch < PHASE * STRIDE_W + BANKS; ++pitch)
        if (free_of_conflicts(pitch)) return pitch;
    return PHASE * STRIDE_W;  // no pitch helps where ROWS * STRIDE_H is a multiple of BANKS
}

constexpr int PITCH = row_pitch();
// With channels last, 8 lanes stage the channels of one pixel: planes start 4 banks apart, for 4 pixels each.
constexpr int PLANE = HEIGHT * PITCH + (CHANNELS_LAST ? (36 - HEIGHT * PITCH % 32) % 32 : 0);
constexpr int TAPS = R * S;
constexpr int FILTER_PITCH = TILE_K % (2 * VECTOR) ? TILE_K : TILE_K + VECTOR;

// Unrolled rows share what they read. Past these many multiply-adds the code would outgrow the instruction cache.
constexpr int UNROLL_R = R * ROWS * FILTERS <= 512 ? R : 1, UNROLL_S = TAPS * ROWS * FILTERS <= 1024 ? S : 1;

__shared__ Accumulator pixels[CHANNELS][PLANE];
alignas(16) __shared__ Accumulator weights[CHANNELS * TAPS][FILTER_PITCH];

struct Tile { int n, group, k, p, q; };  // first filter within its group, first output row and column

__device__ __forceinline__ Tile tile_number(const Problem& problem, unsigned index)
{
    const int across_k = ceil_div(problem.Kg, TILE_K);
    const int across_p = ceil_div(problem.P, TILE_P), across_q = ceil_div(problem.Q, TILE_Q);
    Tile tile;
    tile.k = index % across_k * TILE_K; index /= across_k;  // blocks that share their input run together
    tile.q = index % across_q * TILE_Q; index /= across_q;
    tile.p = index % across_p * TILE_P; index /= across_p;
    tile.group = index % problem.groups;
    tile.n = index / problem.groups;
    return tile;
}

// Stage `channels` planes of input, zeros outside the image. Lanes walk along what is contiguous in memory.
__device__ __forceinline__ void stage_pixels(const Problem& problem, const Element* __restrict__ x, const Tile& tile,
                                             int first_channel, int channels)
{
    const int h0 = tile.p * STRIDE_H - problem.top, w0 = tile.q * STRIDE_W - problem.left;
    const Element* corner = x + offset(problem.x, tile.n, tile.group * problem.Cg + first_channel, h0, w0);
    for (int e = threadIdx.x; e < CHANNELS * HEIGHT * WIDTH; e += THREADS) {
        const int c = CHANNELS_LAST ? e % CHANNELS : e / (HEIGHT * WIDTH);
        const int pixel = CHANNELS_LAST ? e / CHANNELS : e % (HEIGHT * WIDTH);
        const int i = pixel / WIDTH, j = pixel % WIDTH;
        if (c >= channels) continue;
        const bool inside = (unsigned)(h0 + i) < problem.H && (unsigned)(w0 + j) < problem.W;
        const Accumulator value = inside ? widened(corner[offset(problem.x, 0, c, i, j)]) : Accumulator(0);
        pixels[c][i * PITCH + j % STRIDE_W * PHASE + j / STRIDE_W] = value;
    }
}

// Stage the weights of `channels` channels for TILE_K filters, zeros past the group's last filter.
__device__ __forceinline__ void stage_weights(const Problem& problem, const Element* __restrict__ w, const Tile& tile,
                                              int first_channel, int channels)
{
    const Element* corner = w + offset(problem.w, tile.group * problem.Kg + tile.k, first_channel, 0, 0);
    for (unsigned e = threadIdx.x; e < ceil_div(CHANNELS * TAPS, 8) * 8 * TILE_K; e += THREADS) {
        const unsigned tap = e % 8 + e / (8 * TILE_K) * 8, k = e / 8 % TILE_K;
        const int c = tap / TAPS, r = tap % TAPS / S, s = tap % S;
        if (c >= channels) continue;
        const bool inside = tile.k + k < problem.Kg;
        weights[tap][k] = inside ? widened(corner[offset(problem.w, k, c, r, s)]) : Accumulator(0);
    }
}

// FILTERS neighbouring weights, by 128-bit loads where they fill some.
__device__ __forceinline__ void load_filters(Accumulator (&filters)[FILTERS], const Accumulator* from)
{
    if constexpr (FILTERS % VECTOR == 0) {
        for (int j = 0; j < FILTERS; j += VECTOR)
            reinterpret_cast<Vector&>(filters[j]) = reinterpret_cast<const Vector&>(from[j]);
    } else {
        for (int j = 0; j < FILTERS; ++j) filters[j] = from[j];
    }
}

// grid: N * groups * ceil(P / TILE_P) * ceil(Q / TILE_Q) * ceil(Kg / TILE_K), block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
conv2d_tiled(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y,
             const Element* __restrict__ bias, const Element* __restrict__ residual, Problem problem)
{
    const Tile tile = tile_number(problem, blockIdx.x);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int column = lane % COLUMNS;
    const int row = (warp % WARPS_P * LANE_ROWS + lane / COLUMNS) * ROWS;
    const int filter = warp / WARPS_P * FILTERS;

    Accumulator sums[ROWS][FILTERS] = {};
    for (int first = 0; first < problem.Cg; first += CHANNELS) {
        const int channels = min(CHANNELS, problem.Cg - first);
        stage_pixels(problem, x, tile, first, channels);
        stage_weights(problem, w, tile, first, channels);
        __syncthreads();

        for (int c = 0; c < channels; ++c) {
            const Accumulator* corner = &pixels[c][row * STRIDE_H * PITCH + column];
            #pragma unroll UNROLL_S
            for (int s = 0; s < S; ++s) {
                const int place = s * DILATION_W % STRIDE_W * PHASE + s * DILATION_W / STRIDE_W;
                #pragma unroll UNROLL_R
                for (int r = 0; r < R; ++r) {
                    Accumulator pixel[ROWS];
                    alignas(16) Accumulator filters[FILTERS];
                    #pragma unroll
                    for (int i = 0; i < ROWS; ++i)
                        pixel[i] = corner[(i * STRIDE_H + r * DILATION_H) * PITCH + place];
                    load_filters(filters, &weights[c * TAPS + r * S + s][filter]);
                    #pragma unroll
                    for (int i = 0; i < ROWS; ++i)
                        #pragma unroll
                        for (int j = 0; j < FILTERS; ++j) sums[i][j] += pixel[i] * filters[j];
                }
            }
        }
        __syncthreads();
    }

    #pragma unroll
    for (int i = 0; i < ROWS; ++i)
        #pragma unroll
        for (int j = 0; j < FILTERS; ++j) {
            const int p = tile.p + row + i, q = tile.q + column, k = tile.k + filter + j;
            if (p < problem.P && q < problem.Q && k < problem.Kg)
                store(problem, {y, bias, residual}, tile.n, tile.group * problem.Kg + k, p, q, sums[i][j]);
        }
}
