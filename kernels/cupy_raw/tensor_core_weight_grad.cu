// Weight gradient on tensor cores: the product of weight_grad.cu by the instructions of tensor_core.cu.
//
//     grad_w[k, d] = sum over m of  x[window of m, d] * grad_y[k, m]     m = (n, p, q), d = a tap and a channel
//
//                       filters k              a block: TILE_M columns d x TILE_K filters k of one group, summed over
//                      +-------+               one split of the pixels m; 4 or 8 warps
//           pixels m   |  gy   |               a warp:  up to 64 x 64, as 4 x 8 results of 16 x 8 in registers
//                      | stage |               a stage: 64 bytes of pixels of every column and filter, or 32 pixels
//          +-------+   +=======+               of a 16-bit type or 16 of float
//          | x's   |   | warp  |
// columns  | win-  |   | warp  |  registers    three stages of 16 KB at 128 x 128, up to four of the smaller tiles, in
//    d     | dows  |   | warp  |               shared memory at once; 16 KB from L2 for 1,048,576 FLOP of float16;
//          | stage |   | warp  |               a step of a warp: 8 ldmatrix (32 cycles of shared memory) for 32 mma
//          +-------+   +=======+
//
// Why it pays: there are few weights and many pixels. As in weight_grad.cu these are split among blocks, each writes
// its sums to the workspace (64 KB at 128 x 128), and finish_weight_grad.cu adds the splits in their order: the same
// bits every time, without atomics.
// Who loads what. A thread's columns never change, so taps, channels and addresses are worked out once; only its pixels
// move on, told apart by multiplications with what the launcher knows of P and Q. Of x and of grad_y each:
//     CHANNELS   they lie side by side (channels last): a thread copies 16 bytes of them of one pixel by cp.async,
//                straight to shared memory, zeros where the window leaves the image
//     PIXELS     they do (channels first, P * Q in whole 16 bytes; of x where the window is 1x1 and meets every
//                pixel): 16 bytes of pixels of one filter or channel by cp.async
//     NONE       a thread gathers 16 bytes of channels of one pixel, 32 lanes 32 neighbouring pixels, while the block
//                multiplies, and stores them afterwards
// Tensor cores take pixels side by side, as PIXELS lie. Otherwise a row of a stage is a pixel, and ldmatrix transposes
// matrices of 16-bit types on their way to the registers; of floats a lane loads the words that it needs.
// d: taps, then channels, padded to 16 bytes of them; fewer channels than that: TAPS_INNER, d = c * R * S + tap, where
// each element finds its tap by divisions, 24 instructions.
// Stages, and waiting for them: as in tensor_core.cu. sm_75 has no cp.async: two stages, filled through registers.
// Bank conflicts: none. Chunk c of pixel r lies at place c ^ f of its row, f = 2 (r % 4) + r / 4 % 2. ldmatrix reads,
// and gathering lanes store, one chunk of eight pixels: eight values of f. Eight lanes that copy write eight chunks of
// one row. Words of floats: four pixels of 8 or 16 columns, or 8 filters, at once, hence pixels two places apart.
// PIXELS: rows of 64 bytes, as in tensor_core.cu.
// float32: both operands are rounded to TF32 in registers; PRECISE ("3xtf32") as in tensor_core.cu.
// Registers, of 128 x 128: 195 with copies only, 250 where all is gathered (128 of them sums), two blocks on a
// multiprocessor. Tiles, HALVES and what bounds the loop: as in tensor_core.cu. Instructions of the loop in float16 for
// 64 HMMA, or 32 in HALVES, which take 392 and 196 cycles of sm_90, and the tensor cores' share there; on sm_80 it is
// 100 %, but for gathering at 128 x 64 and 64 x 128: 78 to 95 %.
//
//     block      halves   channels last   channels first: x gathered   channels not a multiple of 8: both gathered
//     128 x 128    1      236 to 240 100 %     330 to 331 100 %             419 to 421  94 %
//     128 x 128    2      133 to 134 100 %     213 to 214  92 %             252 to 254  78 %
//     128 x  64    2      211         87 %     286         69 %             325 to 327  60 %
//      64 x 128    2      199         87 %     225 to 226  87 %             319 to 321  61 %
//
// An element gathered by itself takes three instructions: to find it, to load it, and a half each to pair it and to
// drop it outside. 128 x 64 gathers 48 for its 32 HMMA, 176 instructions; 54 more are all that 85 % of 196 cycles
// allow, fewer than windows, stores and ldmatrix take. The launcher counts them and takes 128 x 128, at 94 %, where
// problems are large enough.
// TF32: 313 with copies of pixels, 444 with copies of channels, of which 128 round: 88 % on sm_90 at 128 x 128, 63 to
// 85 % in halves.
// What was learned: 128-bit loads of floats give four words that belong to four matrices, and to bring them into
// neighbouring registers took 200 moves; 64-bit loads, whose words are rows g and g + 8 of one, take none.
// No GPU has run it: values, races, copies and banks are the emulator's, times are predicted.
// Limits: float16 from sm_75 on, bfloat16 and float32, in TF32, from sm_80 on. Groups of few filters or channels waste
// most of a tile.
// Source: Thakkar et al., CUTLASS, implicit GEMM convolution, 2020 (weight gradient, stages, swizzle); NVIDIA, PTX ISA
// ("ldmatrix", .trans); Osama et al., Stream-K, PPoPP 2023 (reduction in two steps); Ootomo and Yokota, 2022, as in
// tensor_core.cu.
//
// Compiled with problem.cuh's constants (y is grad_y, w is grad_w), tensor_core_tile.cuh's, -DX_TOGETHER -DY_TOGETHER,
// -DX_WHOLE -DY_WHOLE (no chunk ends amid a group's channels, or filters), -DTAPS_INNER.

#include "cut.cuh"
#include "tensor_core_tile.cuh"
#include "weight_grad_splits.cuh"

constexpr int DEPTH = 64 / sizeof(Element);  // pixels per stage
constexpr int TAPS = R * S;

enum { NONE, CHANNELS, PIXELS };  // of which 16 bytes lie together in memory

constexpr int COLUMN_BYTES = DEPTH * TILE_M * sizeof(Element);
constexpr int STAGE_BYTES = COLUMN_BYTES + DEPTH * TILE_K * sizeof(Element);

constexpr int STEP_OF_COLUMNS = COLUMN_BYTES / STEPS;  // how far steps of CHANNELS and NONE lie apart
constexpr int STEP_OF_FILTERS = (STAGE_BYTES - COLUMN_BYTES) / STEPS;

// So that an exclusive or with the place of a chunk in its row leaves the rest of an address alone.
alignas(1024) __shared__ unsigned char memory[STAGES * STAGE_BYTES];

// Where chunk `chunk` of pixel `row` lies, in a stage of WIDTH columns or filters.
template <int WIDTH>
__device__ __forceinline__ int place_of(int row, int chunk)
{
    static_assert(WIDTH / CHUNK >= 8, "eight places in a row");
    const int swizzle = (row & 3) << 1 | (row >> 2 & 1);
    return (row * (WIDTH / CHUNK) + (chunk ^ swizzle)) * 16;
}

// Where chunk `chunk` of the pixels of column or filter `row` lies, in a stage of PIXELS.
constexpr int PIXEL_CHUNKS = DEPTH / CHUNK;
__device__ __forceinline__ int place_of_pixels(int row, int chunk)
{
    return (row * PIXEL_CHUNKS + (chunk ^ row >> 1 & 3)) * 16;
}

struct Pixel {
    int n, p, q;
    bool exists;
};

// How the pixels of a split are numbered, and where it ends.
struct Pixels {
    const Problem& problem;
    Index next, end;  // of the stage to fetch next
    Divisor by_q, by_p;

    __device__ __forceinline__ Pixel operator[](int i) const
    {
        const Divided row = divide(next + i, problem.Q, by_q), image = divide(row.quotient, problem.P, by_p);
        return {(int)image.quotient, image.rest, row.rest, next + i < end};
    }
};

// A thread's part of a stage of WIDTH columns or filters: OWN chunks. Where these lie TOGETHER in memory, neighbouring
// threads take neighbouring chunks, otherwise the same chunk of neighbouring pixels.
template <int WIDTH, int TOGETHER>
struct Share {
    static constexpr int CHUNKS = WIDTH / CHUNK, OWN = DEPTH * CHUNKS / THREADS;
    static constexpr int ACROSS = TOGETHER == CHANNELS ? CHUNKS : TOGETHER == PIXELS ? PIXEL_CHUNKS : DEPTH;
    static constexpr int APART = THREADS / ACROSS;
    static_assert(OWN * THREADS == DEPTH * CHUNKS && APART * ACROSS == THREADS);

    uint4 held[OWN];

    static __device__ __forceinline__ int across() { return threadIdx.x % ACROSS; }
    static __device__ __forceinline__ int down(int j) { return threadIdx.x / ACROSS + j * APART; }

    // The pixel of number j, and its column or filter: the first of its chunk.
    static __device__ __forceinline__ int pixel(int j)
    {
        return TOGETHER == CHANNELS ? down(j) : TOGETHER == PIXELS ? across() * CHUNK : across();
    }
    static __device__ __forceinline__ int element(int j)
    {
        return TOGETHER == CHANNELS ? across() * CHUNK : TOGETHER == PIXELS ? down(j) : down(j) * CHUNK;
    }
    int first_place;  // of number 0, in a stage

    __device__ __forceinline__ void find_place()
    {
        first_place = TOGETHER == PIXELS ? place_of_pixels(down(0), across())
                                         : place_of<WIDTH>(pixel(0), element(0) / CHUNK);
        asm volatile("" : "+r"(first_place));  // or it is worked out anew in each stage
    }

    // Chunks of one pixel differ in bits that an exclusive or meets alone. Rows are swizzled alike if they lie eight
    // apart; four apart they differ in the swizzle's lowest bit.
    __device__ __forceinline__ int place(int stage, int j) const
    {
        if constexpr (TOGETHER == NONE) return stage + first_place ^ j * APART * 16;
        static_assert(TOGETHER == NONE || APART % 8 == 0 || (TOGETHER == CHANNELS && APART == 4));
        return (stage + first_place ^ (APART == 4 ? j % 2 * 16 : 0)) + j * APART * ACROSS * 16;
    }

    // Bring number j, a chunk that lies together: into `stage` at once, by cp.async, or into a register.
    __device__ __forceinline__ void copy(int j, unsigned stage, const Element* from, bool wanted)
    {
#if __CUDA_ARCH__ >= 800
        copy_async(place(stage, j), from, wanted);
#else
        held[j] = wanted ? *reinterpret_cast<const uint4*>(from) : uint4{};
#endif
    }

    // Or one whose elements lie `apart`, of which the last is number `last`. Loads need no conditions if what is not
    // wanted is taken from the array's first element, and dropped afterwards.
    __device__ __forceinline__ void gather(int j, const Element* array, Offset from, Offset apart, int last,
                                           bool wanted)
    {
        from = wanted ? from : 0, apart = wanted ? apart : 0;
        Chunk chunk;
        #pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            const Element element = array[from + min(i, last) * apart];
            chunk.lane[i] = i <= last ? element : Element{};
        }
        held[j] = wanted ? reinterpret_cast<const uint4&>(chunk) : uint4{};
    }

    __device__ __forceinline__ void put(int stage) const
    {
        if constexpr (TOGETHER != NONE && __CUDA_ARCH__ >= 800) return;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) *reinterpret_cast<uint4*>(memory + place(stage, j)) = held[j];
    }
};

// The columns: windows of x, each thread's taps and channels the same for all pixels.
struct Columns : Share<TILE_M, X_TOGETHER> {
    static constexpr int COLUMNS = X_TOGETHER == CHANNELS ? 1 : OWN;  // different ones of a pixel
    int h[COLUMNS], w[COLUMNS];  // of the tap, less the padding; far outside where there is no such column
    Offset corner[COLUMNS];      // its address, in the window of pixel 0
    int channel[COLUMNS];        // of the chunk's first element; taps inner: its column

    __device__ __forceinline__ void start(const Problem& problem, int first_column, int group)
    {
        find_place();
        const int channels = ceil_div(problem.Cg, CHUNK) * CHUNK;
        #pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const int d = first_column + element(j);
            if constexpr (TAPS_INNER) {
                h[j] = -problem.top, w[j] = -problem.left, channel[j] = d;
                corner[j] = offset(problem.x, 0, group * problem.Cg, h[j], w[j]);
                continue;
            }
            const int tap = d / channels;  // PIXELS: there is one tap
            channel[j] = d % channels;
            const bool exists = tap < TAPS && channel[j] < problem.Cg;
            h[j] = exists ? tap / S * DILATION_H - problem.top : -0x40000000;
            w[j] = tap % S * DILATION_W - problem.left;
            corner[j] = offset(problem.x, 0, group * problem.Cg + channel[j], exists ? h[j] : 0, w[j]);
        }
    }

    static __device__ __forceinline__ bool contains(const Problem& problem, int h, int w)
    {
        return (unsigned)h < problem.H && (unsigned)w < problem.W;
    }

    __device__ __forceinline__ void fetch(unsigned stage, const Element* __restrict__ x, const Pixels& pixels)
    {
        const Problem& problem = pixels.problem;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const Pixel at = pixels[pixel(j)];
            const int k = COLUMNS == 1 ? 0 : j, top = at.p * STRIDE_H + h[k], left = at.q * STRIDE_W + w[k];
            const Offset from = corner[k] + offset(problem.x, at.n, 0, at.p * STRIDE_H, at.q * STRIDE_W);
            const bool wanted = at.exists && contains(problem, top, left);
            if constexpr (X_TOGETHER != NONE) copy(j, stage, x + from, wanted);
            else if constexpr (TAPS_INNER) held[j] = of_taps(x, from, channel[k], top, left, at.exists, problem);
            else gather(j, x, from, problem.x.c, X_WHOLE ? CHUNK - 1 : problem.Cg - 1 - channel[k], wanted);
        }
    }

    static __device__ __forceinline__ uint4 of_taps(const Element* __restrict__ x, Offset from, int first, int top,
                                                    int left, bool exists, const Problem& problem)
    {
        asm volatile("" : "+r"(first));  // divide anew in each stage: the registers do not hold what is found
        Chunk chunk;
        #pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            const unsigned d = first + i, c = d / TAPS, r = d % TAPS / S, s = d % S;
            const int down = r * DILATION_H, right = s * DILATION_W;
            const bool wanted = exists && c < problem.Cg && contains(problem, top + down, left + right);
            chunk.lane[i] = wanted ? x[from + offset(problem.x, 0, c, down, right)] : Element{};
        }
        return reinterpret_cast<const uint4&>(chunk);
    }
};

// The filters: grad_y.
struct Filters : Share<TILE_K, Y_TOGETHER> {
    int filter, group;  // the block's first, and its group's number

    __device__ __forceinline__ void start(int first_filter, int its_group)
    {
        find_place();
        filter = first_filter, group = its_group;
    }

    __device__ __forceinline__ void fetch(unsigned stage, const Element* __restrict__ grad_y, const Pixels& pixels)
    {
        const Problem& problem = pixels.problem;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const Pixel at = pixels[pixel(j)];
            const int k = filter + element(j);
            const Offset from = offset(problem.y, at.n, group * problem.Kg + k, at.p, at.q);
            const bool wanted = at.exists && k < problem.Kg;
            if constexpr (Y_TOGETHER != NONE) copy(j, stage, grad_y + from, wanted);
            else gather(j, grad_y, from, problem.y.c, Y_WHOLE ? CHUNK - 1 : problem.Kg - 1 - k, wanted);
        }
    }
};

// What a thread brings of a stage to a place in shared memory, for multiply_stages.
struct Bring {
    const Element* __restrict__ x;
    const Element* __restrict__ grad_y;
    Pixels pixels;
    Columns columns;
    Filters filters;

    __device__ __forceinline__ void fetch(int place)
    {
        const unsigned stage = shared_address(memory) + place;
        columns.fetch(stage, x, pixels);
        filters.fetch(stage + COLUMN_BYTES, grad_y, pixels);
        pixels.next += DEPTH;
    }

    __device__ __forceinline__ void put(int place) const
    {
        columns.put(place);
        filters.put(place + COLUMN_BYTES);
    }
};

// Where a lane finds its part of a warp's first matrices in the first step of a stage that is the warp's.
struct Aim {
    int columns, filters;

    __device__ __forceinline__ explicit Aim(const Warp& warp)
    {
        const int warp_column = warp.m, warp_filter = warp.k;
        const int lane = threadIdx.x % 32, eight = lane / 8 % 2, sixteen = lane / 16, g = lane / 4, t = lane % 4;
        if constexpr (X_TOGETHER == PIXELS) columns = place_of_pixels(warp_column + lane % 16, sixteen);
        else if constexpr (sizeof(Element) == 2)
            columns = place_of<TILE_M>(sixteen * 8 + lane % 8, warp_column / CHUNK + eight);
        else columns = place_of<TILE_M>(t, warp_column / CHUNK + g / 2) + g % 2 * 8;

        if constexpr (Y_TOGETHER == PIXELS) filters = place_of_pixels(warp_filter + sixteen * 8 + lane % 8, eight);
        else if constexpr (sizeof(Element) == 2)
            filters = place_of<TILE_K>(eight * 8 + lane % 8, warp_filter / CHUNK + sixteen);
        else filters = place_of<TILE_K>(t, warp_filter / CHUNK + g / 4) + g % 4 * 4;
        filters += COLUMN_BYTES;
        if constexpr (HALVES == 2) {  // as load_columns and load_filters find the second step
            columns = X_TOGETHER == PIXELS ? columns ^ warp.half * 32 : columns + warp.half * STEP_OF_COLUMNS;
            filters = Y_TOGETHER == PIXELS ? filters ^ warp.half * 32 : filters + warp.half * STEP_OF_FILTERS;
        }
    }
};

template <typename Word>
__device__ __forceinline__ Word at(int place) { return *reinterpret_cast<const Word*>(memory + place); }

constexpr int BYTES_OF_16 = 16 * sizeof(Element), ROWS_OF_16 = 16 * PIXEL_CHUNKS * 16;

// Number i of the blocks of 16 columns, in a step; `place`: of the first. Of PIXELS, the rows of a matrix are columns.
// Otherwise they are pixels, and matrices of 16-bit types are transposed on their way; no instruction transposes those
// of floats: a lane takes columns 2 g and 2 g + 1, as rows g and g + 8 of a, of pixels t and t + 4.
__device__ __forceinline__ void load_columns(unsigned (&a)[4], int place, int i, int step)
{
    constexpr int PITCH = TILE_M * sizeof(Element);
    if constexpr (X_TOGETHER == PIXELS) {
        load_matrices(a, shared_address(memory) + (place ^ step * 32) + i * ROWS_OF_16);
        return;
    }
    place = (place ^ i * BYTES_OF_16) + step * STEP_OF_COLUMNS;
    if constexpr (sizeof(Element) == 2) {
        load_transposed(a, shared_address(memory) + place);
    } else {
        const uint2 near = at<uint2>(place), far = at<uint2>((place ^ 16) + 4 * PITCH);
        a[0] = near.x, a[1] = near.y, a[2] = far.x, a[3] = far.y;
    }
}

// Number i of the pairs of blocks of 8 filters.
__device__ __forceinline__ void load_filters(unsigned (&b)[4], int place, int i, int step)
{
    constexpr int PITCH = TILE_K * sizeof(Element);
    if constexpr (Y_TOGETHER == PIXELS) {
        load_matrices(b, shared_address(memory) + (place ^ step * 32) + i * ROWS_OF_16);
        return;
    }
    place = (place ^ i * BYTES_OF_16) + step * STEP_OF_FILTERS;
    if constexpr (sizeof(Element) == 2) {
        load_transposed(b, shared_address(memory) + place);
    } else {
        #pragma unroll
        for (int e = 0; e < 4; ++e) b[e] = at<unsigned>((place ^ e / 2 * 32 ^ e % 2 * 16) + e % 2 * 4 * PITCH);
    }
}

__device__ __forceinline__ void multiply_stage(Sums& sums, int stage, const Aim& aim)
{
    #pragma unroll
    for (int step = 0; step < STEPS / HALVES; ++step) {
        unsigned a[BLOCKS_M][4], a_rest[BLOCKS_M][4];
        #pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i) {
            load_columns(a[i], stage + aim.columns, i, step);
            round_matrices(a[i], a_rest[i]);
        }
        #pragma unroll
        for (int j = 0; j < BLOCKS_K; j += 2) {
            unsigned two[4];
            load_filters(two, stage + aim.filters, j / 2, step);
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned b[2] = {two[half * 2], two[half * 2 + 1]}, b_rest[2];
                round_matrices(b, b_rest);
                multiply_blocks(sums, a, a_rest, b, b_rest, j + half);
            }
        }
    }
}

// Write the warp's sums, a row of `pitch` for each filter; `to`: where its first sum goes. Of floats rows g and g + 8
// of a are neighbours.
__device__ __forceinline__ void leave(const Sums& sums, Accumulator* to, int64 pitch)
{
    if constexpr (sizeof(Element) == 2 || X_TOGETHER == PIXELS) {
        leave_sums(sums, to, pitch);
    } else {
        to += threadIdx.x % 4 * 2 * pitch + threadIdx.x % 32 / 4 * 2;
        #pragma unroll
        for (int j = 0; j < BLOCKS_K; ++j, to += 8 * pitch)
            #pragma unroll
            for (int i = 0; i < BLOCKS_M; ++i)
                #pragma unroll
                for (int k = 0; k < 2; ++k)
                    *reinterpret_cast<float2*>(to + k * pitch + i * 16) = make_float2(sums[i][j][k], sums[i][j][k + 2]);
    }
}

// grid: groups * (columns / TILE_M) * (filters / TILE_K) and the splits, block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_tensor_core_weight_grad(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                               Accumulator* __restrict__ partial, Problem problem, Splits splits, Divisor by_q,
                               Divisor by_p)
{
    const int across_k = splits.filters / TILE_K, across_m = splits.columns / TILE_M;
    unsigned block = blockIdx.x;
    const int first_filter = block % across_k * TILE_K; block /= across_k;
    const int first_column = block % across_m * TILE_M;
    const int group = block / across_m, count = splits.stages_of(blockIdx.y, DEPTH);

    Bring bring{x, grad_y, {problem, (Index)(blockIdx.y * splits.pixels), (Index)splits.all_pixels, by_q, by_p}};
    bring.columns.start(problem, first_column, group);
    bring.filters.start(first_filter, group);
    const Warp warp;
    const Aim aim(warp);
    Sums sums = {};
    multiply_stages<STAGE_BYTES>(count, bring, [&](int stage) { multiply_stage(sums, stage, aim); });
    add_halves(sums, warp, memory);
    if (warp.half == 1) return;

    const int filter = group * splits.filters + first_filter + warp.k;
    const int64 row = (int64)blockIdx.y * problem.groups * splits.filters + filter;
    leave(sums, partial + row * splits.columns + first_column + warp.m, splits.columns);
}
