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
//                straight to shared memory, zeros where the window leaves the image; eight threads take 128 bytes, and the
//                next 128, so that a pixel that is found serves several chunks
//     PIXELS     they do (channels first, P * Q in whole 16 bytes; of x where the window is 1x1 and meets every
//                pixel): 16 bytes of pixels of one filter or channel by cp.async
//     NONE       a thread gathers 16 bytes of channels of one pixel, 32 lanes 32 neighbouring pixels, while the block
//                multiplies, and stores them afterwards
// Tensor cores take pixels side by side, as PIXELS lie. Otherwise a row of a stage is a pixel, and ldmatrix transposes
// matrices of 16-bit types on their way to the registers; of floats a lane loads the words that it needs.
// d: taps, then channels, padded to 16 bytes of them. The last chunk ends with the last channel, and begins with
// X_DROPPED of the chunk before, whose sums nobody reads; so do filters that are gathered. Fewer channels than that:
// TAPS_INNER, d = (c * R + r) * TAP_ROW + s, see tensor_core_taps.cuh. Their steps lie in a table, an argument in
// constant memory, as in tensor_core.cu. A window's rows are padded to runs of four taps, 3 to 4 and 7 to 8, where that
// takes no more tiles: of 3 channels of 7 x 7 three of 64 columns, or two of 128, which 147 had taken as well as 168.
// Of a run one address is found, and its loads add constants; what lies inside of a pixel's window, half an instruction
// tells, by a bit for each tap: 2.7 instructions an element with its load, 3.8 where each address is found, and 22
// without a table. Windows of more taps than 64 bits hold with what neighbours of the last want, 57 in 16-bit types, go
// by rows and columns, 5.
// Stages, and waiting for them: as in tensor_core.cu. sm_75 has no cp.async: two stages, filled through registers.
// Bank conflicts: none. Chunk c of pixel r lies at place c ^ f of its row, f = 2 (r % 4) + r / 4 % 2. ldmatrix reads,
// and gathering lanes store, one chunk of eight pixels: eight values of f. Eight lanes that copy write eight chunks of
// one row. Words of floats: four pixels of 8 or 16 columns, or 8 filters, at once, hence pixels two places apart.
// PIXELS: rows of 64 bytes, as in tensor_core.cu.
// float32: both operands are rounded to TF32 in registers, from sm_90 on what is gathered before it is stored, once for
// all warps; PRECISE ("3xtf32") as in tensor_core.cu.
// Registers, of 128 x 128: 204 with copies only, 244 where all is gathered (128 of them sums), two blocks on a
// multiprocessor. Tiles, HALVES and what bounds the loop: as in tensor_core.cu. Instructions of the loop in float16 for
// 64 HMMA, or 32 in HALVES, which take 392 and 196 cycles of sm_90, and the tensor cores' share there; on sm_80 it is
// 100 % of all but 64 x 64.
//
//     block      halves   channels last   channels first: x gathered   both gathered       channels not a multiple of 8
//     128 x 128    1           184 100 %            244 100 %             271 100 %          274 100 %
//     128 x 128    2           105 100 %            148 100 %             159 100 %          160 100 %
//     128 x  64    2           140  87 %            194  87 %             207  87 %          208  87 %
//      64 x 128    2           127  87 %            153  87 %             189  87 %          192  87 %
//      64 x  64    2           181  77 %            201  77 %             231  77 %          234  77 %
//      64 x  64    2            61  51 %             92  51 %              94  51 %           94  51 %
//
// The last, for few tiles, has eight warps of 32 x 32, 8 HMMA of 49 cycles, 64 on sm_80 (67 %), for 96 of shared memory;
// the one before two of 64 x 64 (on sm_80 100 %), for 256: all stand where shared memory leaves them.
// Taps inner, of 7 x 7, with pixels of grad_y copied, channels, or a number of filters gathered that 8 does not divide;
// on sm_80 100 %, but the last, 67 %:
//
//     128 x 128    1           277 100 %            268 100 %             316 100 %
//     128 x 128    2           180 100 %            173 100 %             198  99 %
//     128 x  64    1           376  87 %            372  87 %             411  87 %
//      64 x 128    2           184  87 %            186  87 %             227  86 %
//      64 x  64    1           386  77 %            393  77 %             472  77 %
//      64 x  64    1           165  51 %            156  51 %             176  51 %    four warps of 32 x 32
//
// All of these stand where shared memory leaves them. While each tap's address was found by itself, the last column had
// 485, 245 and 567 instructions in the three tiles in between, 81, 80 and 69 %. x in shared memory, whence stages are
// made, would be loaded by 16 bits, 64 bytes in a cycle: 64 x 64 would end at 51 %.
// An element gathered by itself takes an instruction and a half: to load it, by a distance that is a constant, and to
// pair it; PRMT drops it, too, where its pixel is outside, as it takes any four of eight bytes, of which a 16-bit load
// leaves zeros. What is chosen is chosen in 32 bits: the compiler widens first, else, three instructions a chunk. An
// offset of a pixel is kept, or its parts are added to each column's; of grad_y whose pixels lie evenly (Y_EVEN) it is
// one product, and no division. Of grad_y all chunks of a thread are of one pixel, so that whether it exists is asked once;
// filters behind the last are gathered as the last chunk again, and where a tile has none (Y_WHOLE) all chunks lie a
// constant apart: 276 to 243 instructions at 64 x 64. cp.async of 8 or 4 bytes, where pixels lie side by side but not
// in whole 16, takes as many as to gather them, 268 and 302 of 281 at 128 x 128. Divisors take twice n, so that 1 is no
// exception, whose branch hides from the compiler that x's and grad_y's pixels are the same.
// TF32 has the same cycles, and words of floats to load and to round: on sm_90, of the same tiles,
//
//                      pixels    channels last    x gathered    both gathered    channels copied, filters gathered
//     128 x 128    1      228              254           274              286                                  288
//     128 x 128    2      130              144           161              160                                  169
//     128 x  64    2      142              165           205              206                                  186
//      64 x 128    2      136              147           167              190                                  199
//      64 x  64    2      148              180           211              230                                  230
//      64 x  64    2       79               84            98               92                                  103
//
// with the shares of float16, but 98 has 50 % and 103 48. On sm_80 96 % and more of all but that tile, which has 63 to
// 67 % where nothing is gathered, else 52 to 58. Channels last they were 426, 221, 273, 236, 281 and 113, 92 to 70 and
// 43 %. Of the 281: 32 less by rounding in one instruction (cvt.rna.tf32, all there is before sm_90, is one that looks
// for a NaN and one that adds; two floats may share the first, which gives that tile 4 points more, but then sentryward
// no longer proves that nothing races: whether to add hangs on values); 24 by addresses of shared memory that are kept,
// each with its bits of the swizzle, so that a load adds the stage, which is in a uniform register; 44 by pixels that
// serve several chunks. To load under a predicate what is dropped now spares nothing: zeros come first then. PRECISE:
// 100 % of the two larger tiles, 84 at least of 64 x 64.
// What was learned: where a lane points ldmatrix is worked out anew in each stage if the compiler may, 22 instructions.
// 128-bit loads of floats give four words that belong to four matrices, and to bring them into neighbouring registers took
// 200 moves; 64-bit loads, whose words are rows g and g + 8 of one, take none.
// Never run on hardware: values, races, copies and banks are the emulator's, times are predicted.
// Limits: float16 from sm_75 on, bfloat16 and float32, in TF32, from sm_80 on. Groups of few filters or channels waste
// most of a tile.
// Source: Thakkar et al., CUTLASS, implicit GEMM convolution, 2020 (weight gradient, stages, swizzle); NVIDIA, PTX ISA
// ("ldmatrix", .trans); Osama et al., Stream-K, PPoPP 2023 (reduction in two steps); Ootomo and Yokota, 2022, as in
// tensor_core.cu.
//
// Compiled with problem.cuh's constants (y is grad_y, w is grad_w), tensor_core_tile.cuh's, -DX_TOGETHER -DY_TOGETHER,
// -DX_DROPPED -DY_DROPPED (channels, or filters, that a group's last chunk repeats), -DY_COUNT (filters of a chunk,
// fewer where a group has fewer), -DY_WHOLE (no tile has filters behind the last), -DY_EVEN, -DX_APART (where NONE: how
// far they lie from each other, taps inner, neighbours of a row) -DY_APART (filters of grad_y), -DTAPS_INNER, and
// tensor_core_taps.cuh's.

#include "tensor_core_weight_grad_walks.cuh"
#include "weight_grad_splits.cuh"

// What a thread brings of a stage to a place in shared memory, for multiply_stages.
struct Bring {
    const Element* __restrict__ x;
    const Element* __restrict__ grad_y;
    const Steps& steps;
    Pixels pixels;
    Columns columns;
    Filters filters;

    __device__ __forceinline__ void fetch(int place)
    {
        const unsigned stage = shared_address(memory) + place;
        columns.fetch(stage, x, pixels, steps);
        filters.fetch(stage + COLUMN_BYTES, grad_y, pixels);
        pixels.next += DEPTH;
    }

    __device__ __forceinline__ void put(int place)
    {
        columns.put(place, 0);
        filters.put(place, COLUMN_BYTES);
    }
};

// Words of floats whose pixels do not lie side by side are loaded one by one, or two.
constexpr bool WORDS_OF_X = sizeof(Element) == 4 && X_TOGETHER != PIXELS;
constexpr bool WORDS_OF_Y = sizeof(Element) == 4 && Y_TOGETHER != PIXELS;

// Where a lane finds its part of a warp's first matrices in the first step of a stage that is the warp's, as shared
// memory is addressed: a load adds the stage to it by itself. Words have an address for each bit of the swizzle that
// they meet: 16 bytes on (and four pixels), of filters 32, and 64 to the next block of 16; further blocks lie 128 on.
// Three products and 64-bit offsets leave registers for the first alone.
struct Aim {
    static constexpr bool ALL_KEPT = !(PRECISE && WIDE);
    static constexpr int OF_COLUMNS = WORDS_OF_X && ALL_KEPT ? 4 : 1, OF_FILTERS = WORDS_OF_Y && ALL_KEPT ? 8 : 1;
    int columns[OF_COLUMNS], filters[OF_FILTERS];

    __device__ __forceinline__ explicit Aim(const Warp& warp)
    {
        const int warp_column = warp.m, warp_filter = warp.k;
        const int lane = threadIdx.x % 32, eight = lane / 8 % 2, sixteen = lane / 16, g = lane / 4, t = lane % 4;
        int column, filter;
        if constexpr (X_TOGETHER == PIXELS) column = place_of_pixels(warp_column + lane % 16, sixteen);
        else if constexpr (sizeof(Element) == 2)
            column = place_of<TILE_M>(sixteen * 8 + lane % 8, warp_column / CHUNK + eight);
        else column = place_of<TILE_M>(t, warp_column / CHUNK + g / 2) + g % 2 * 8;

        if constexpr (Y_TOGETHER == PIXELS) filter = place_of_pixels(warp_filter + sixteen * 8 + lane % 8, eight);
        else if constexpr (sizeof(Element) == 2)
            filter = place_of<TILE_K>(eight * 8 + lane % 8, warp_filter / CHUNK + sixteen);
        else filter = place_of<TILE_K>(t, warp_filter / CHUNK + g / 4) + g % 4 * 4;
        filter += COLUMN_BYTES;
        if constexpr (HALVES == 2) {  // as load_columns and load_filters find the second step
            column = X_TOGETHER == PIXELS ? column ^ warp.half * 32 : column + warp.half * STEP_OF_COLUMNS;
            filter = Y_TOGETHER == PIXELS ? filter ^ warp.half * 32 : filter + warp.half * STEP_OF_FILTERS;
        }
        #pragma unroll
        for (int i = 0; i < OF_COLUMNS; ++i)
            keep(columns[i] = shared_address(memory) + (column ^ turned<2>(i)));
        #pragma unroll
        for (int i = 0; i < OF_FILTERS; ++i)
            keep(filters[i] = shared_address(memory) + (filter ^ turned<4>(i)));
    }

    // The bits of the swizzle that word number i meets, of so many in a block.
    template <int OF_BLOCK> static __device__ __forceinline__ constexpr int turned(int i)
    {
        return i % OF_BLOCK * 16 ^ i / OF_BLOCK * 64;
    }
    __device__ __forceinline__ int word_of_columns(int i, int stage) const
    {
        return ALL_KEPT ? columns[i] + stage : columns[0] + stage ^ turned<2>(i);
    }
    __device__ __forceinline__ int word_of_filters(int i, int stage) const
    {
        return ALL_KEPT ? filters[i] + stage : filters[0] + stage ^ turned<4>(i);
    }
};

constexpr int BYTES_OF_16 = 16 * sizeof(Element), ROWS_OF_16 = 16 * PIXEL_CHUNKS * 16;

// Number i of the blocks of 16 columns, in a step of `stage`. Of PIXELS, the rows of a matrix are columns. Otherwise
// they are pixels, and matrices of 16-bit types are transposed on their way; no instruction transposes those of
// floats: a lane takes columns 2 g and 2 g + 1, as rows g and g + 8 of a, of pixels t and t + 4.
__device__ __forceinline__ void load_columns(unsigned (&a)[4], const Aim& aim, int stage, int i, int step)
{
    constexpr int PITCH = TILE_M * sizeof(Element);
    if constexpr (X_TOGETHER == PIXELS) {
        load_matrices(a, (stage + aim.columns[0] ^ step * 32) + i * ROWS_OF_16);
    } else if constexpr (sizeof(Element) == 2) {
        load_transposed(a, (stage + aim.columns[0] ^ i * BYTES_OF_16) + step * STEP_OF_COLUMNS);
    } else {
        const int word = i % 2 * 2;
        stage += i / 2 * 128 + step * STEP_OF_COLUMNS;
        load_words(a[0], a[1], aim.word_of_columns(word, stage));
        load_words(a[2], a[3], aim.word_of_columns(word + 1, stage + 4 * PITCH));
    }
}

// Number i of the pairs of blocks of 8 filters.
__device__ __forceinline__ void load_filters(unsigned (&b)[4], const Aim& aim, int stage, int i, int step)
{
    constexpr int PITCH = TILE_K * sizeof(Element);
    if constexpr (Y_TOGETHER == PIXELS) {
        load_matrices(b, (stage + aim.filters[0] ^ step * 32) + i * ROWS_OF_16);
    } else if constexpr (sizeof(Element) == 2) {
        load_transposed(b, (stage + aim.filters[0] ^ i * BYTES_OF_16) + step * STEP_OF_FILTERS);
    } else {
        const int word = i % 2 * 4;
        stage += i / 2 * 128 + step * STEP_OF_FILTERS;
        #pragma unroll
        for (int e = 0; e < 4; ++e) load_word(b[e], aim.word_of_filters(word + e, stage + e % 2 * 4 * PITCH));
    }
}

__device__ __forceinline__ void multiply_stage(Sums& sums, int stage, const Aim& aim)
{
    #pragma unroll
    for (int step = 0; step < STEPS / HALVES; ++step) {
        unsigned a[BLOCKS_M][4], a_rest[BLOCKS_M][4];
        #pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i) {
            load_columns(a[i], aim, stage, i, step);
            if (!rounds_once(X_TOGETHER)) round_matrices(a[i], a_rest[i]);
        }
        #pragma unroll
        for (int j = 0; j < BLOCKS_K; j += 2) {
            unsigned two[4];
            load_filters(two, aim, stage, j / 2, step);
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned b[2] = {two[half * 2], two[half * 2 + 1]}, b_rest[2];
                if (!rounds_once(Y_TOGETHER)) round_matrices(b, b_rest);
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
                               Divisor by_p, const __grid_constant__ Steps steps)
{
    const int across_k = splits.filters / TILE_K, across_m = splits.columns / TILE_M;
    unsigned block = blockIdx.x;
    const int first_filter = block % across_k * TILE_K; block /= across_k;
    const int first_column = block % across_m * TILE_M;
    const int group = block / across_m, count = splits.stages_of(blockIdx.y, DEPTH);

    Bring bring{x, grad_y, steps, {problem, (Index)(blockIdx.y * splits.pixels), (Index)splits.all_pixels, by_q, by_p}};
    bring.columns.start(problem, first_column, group);
    bring.filters.start(problem, first_filter, group);
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
