// Tensor cores: the implicit product of implicit_gemm.cu, its inner loop 16 x 8 x 16 multiply-adds to an instruction.
//
//     y[m, k] = sum over d of  x[window of m, d] * packed[k, d]         m = (n, p, q), d = a tap and a channel
//
//                     filters                  a block: TILE_M pixels x TILE_K filters of one group, 2 to 8 warps
//                 depth +-------+              a warp:  up to 64 x 64, as 4 x 8 results of 16 x 8 in registers
//                       | ..... |              a stage: 64 bytes of the reduction of every pixel and filter, that is
//            depth      | stage |                       32 steps of a 16-bit type or 16 of float
//          +-------+    +-------+              three stages of 16 KB at 128 x 128, four of the smaller tiles, in
//          | ..... |    +=======+              shared memory at once: one is multiplied, the others are on their way
//   pixels | ..... |    | warp  |
//          | stage |    | warp  |  registers   a stage of 128 x 128: 16 KB from L2 for 1,048,576 FLOP of float16;
//          +-------+    +=======+              a step of a warp: 8 ldmatrix (32 cycles of shared memory) for 32 mma
//
// d runs over taps, then channels, padded to chunks of 16 bytes: a chunk is some channels of one tap, and each of a
// stage's four finds its own tap, so that a stage may hold several and 40 channels cost no more than 40. Fewer
// channels than a chunk has: TAPS_INNER, d = c * R * S + tap.
// Who loads what. Channels last (TOGETHER): a thread copies chunks of its pixels by cp.async, straight to shared
// memory, zeros where the window leaves the image. Otherwise, and for channels first, a lane gathers the channels of a
// chunk one by one, 32 lanes 32 neighbouring pixels, while the block multiplies, and stores them afterwards as one
// chunk: the layout changes on the way. Weights are packed first by pack_filters, stage by stage in the order in which
// they are copied.
// Stages: tensor_core_tile.cuh tells them; one barrier each. sm_75 has no cp.async: two, filled through registers.
// Bank conflicts: none in the loop. Rows are 64 bytes, two to the 128 of all banks; chunk c of row r lies at place
// c ^ (r / 2 % 4) of its row, so that ldmatrix, which reads one chunk of eight rows at a time, meets eight different
// places, and eight threads that copy or store two rows, or one chunk of eight rows, do too.
// The way out: sums, with their biases, pass through shared memory, a slice of each warp's at a time, so that a thread
// stores 16 bytes of neighbours: filters, or pixels in NCHW. With warps of 64 without conflicts, else of two lanes.
// Small problems, and the last wave of others: SPLIT, as in implicit_gemm.cu, but the split of a tile that comes last adds
// them all (last_split.cuh), and no launch follows. Splits leave their sums as lanes have them, 16 bytes beside the
// neighbour's, so 512 of a warp at once; the last copies them to shared memory as stages are, some rows ahead of what it
// adds. Predicted for the layers of VGG-16, ResNet-50 and MobileNetV2, one image of float16, on sm_80 and sm_90: 663
// and 568 microseconds; 654 and 559 with 32 x 64 in warps of 32 x 32, which would wait for instructions a third of the
// time on sm_90. What is chosen to fill waves takes 3 and 4 % more than the fastest cuts would, 647 and 547; with a launch
// that adds instead, these would take 672 and 568, so that there is none.
// float32: rounded to TF32, 11 significant bits, the weights once by pack_filters, x in registers. PRECISE ("3xtf32")
// keeps what rounding leaves as a second TF32 number and adds the products that matter, the small ones first; tensor
// cores cut off where they add, so each eight steps are summed there from zero and added to the rest in float32. An
// infinity becomes NaN there: it leaves infinity minus infinity.
// Registers, of warps of 64 x 64: 190 to 244 in 16-bit types (128 of them sums), eight warps on a multiprocessor.
// What bounds the loop. An mma keeps the tensor core of a scheduler busy for 8 cycles on sm_80, 6.1 on sm_90. In that
// time shared memory, which the four share, has 2 and 1.5 wavefronts of 128 bytes for each warp; ldmatrix takes four,
// and so does the copy of 512 bytes. For a warp and a stage of float16, cycles and instructions, channels last and
// gathered, and the tensor cores' share of the time on sm_80 and sm_90:
//
//     block     halves  mma   on sm_80, sm_90   ldmatrix, copies: shared   instructions  gathered     share
//     128 x 128    1     64    512      392       16         8       384    137 to 140          200    100 %  100 %
//     128 x 128    2     32    256      196        8         4       192            85          118    100 %  100 %
//     128 x  64    1     64    512      392       16        12       448    153 to 154          270    100 %   87 %
//     128 x  64    2     32    256      196        8         6       224            94          155    100 %   87 %
//      64 x 128    2     32    256      196        8         6       224     88 to  89          122    100 %   87 %
//      96 x  96    2     36    288      221        9         6       240     96 to  97          146    100 %   92 %
//      64 x  64    1     16    128       98        8         4       192            69          101     67 %   51 %
//      32 x  64    2     16    128       98        6         6       192            70          102     67 %   51 %
//     128 x  32    2     32    256      196       10        10       320           110   225 to 227     80 %   61 %
//
// What counts is how often a byte of shared memory is multiplied. It grows with the warp's tile, which 255 registers
// end at 64 x 64, and with the block's: a tile of M x K stores M + K rows of 64 bytes in each stage and reads each at
// least once, in M + K cycles, in which sm_90 does 1,337 (M + K) of its 32 M K multiply-adds. So 64 x 64 ends at 77 %
// there (100 % on sm_80), 32 x 64 at 51 % (67 %) and 128 x 32 at 61 % (80 %) with any warps, and L2 has 47 of the 84 bytes
// a cycle that 64 x 64 would want. Tiles stand there: their warps, or those of a half, are as large as the tile, or as
// registers allow. HALVES make that possible with several warps, and double these where there are too few tiles to give
// each scheduler one, without loading more.
// All but 64 x 64, which has four warps of 32 x 32. It is for one image, where a multiprocessor has one block or two:
// of two warps, each as large as the tile, half the schedulers would have none. A stage alone takes what one warp
// waits, 128 cycles that nothing hides, and multiplies (128 is assumed, and the first thing to measure, see
// WAITING_CYCLES): of 64 x 64 on sm_80 128 in one of four warps, 256 in one
// of two. By issue alone four stand at 100 and 97 %. So one block takes 256 cycles a stage instead of 384, two take
// 384 either way (2 x 192 of shared memory); where there are more, L2 leaves 64 x 64 no more than 73 and 56 % with
// any warps, and 128 x 64 is faster. CUTLASS's generator and cuDNN's kernels give 64 x 64 four such warps too. With
// warps as large as the tile one image is predicted to take 669 and 573, without the three lowest tiles 739 and 629;
// 32 images as long. 128 x 32 is for up to 32 filters, of which 128 x 64 would waste half; 96 x 96 for sizes that it
// divides.
// Of up to four stages the loop is little, and nine tiles more fill waves. A reduction of one stage, ONE_STAGE, is no
// loop: without it the code is a fifth to a third shorter. Nothing splits it. Where it has more tiles than slots,
// STAYING, as many blocks as there are slots take one after the other, as CUTLASS's persistent kernels do: 3 channels
// of 224 x 224 for 32 images, 24 to 30 waves which would end at 4 to 76 %. Where it has fewer, tiles of 16 filters fill
// these, twelve warps each, or of 8, nine warps, each with one column of mma, for which ldmatrix brings two matrices:
// the input gradient of 144 channels of 28 x 28 from 32 filters, one image, in 0.97 of what another tile is predicted
// to take on sm_80, in 1.03 on sm_90, where no other fills. Where it fills beside others, it is predicted the fastest:
// 0.83 to 0.99 of theirs.
// Gathered, these are stages of one tap. With several taps, and chunks that end amid the channels, 128 x 128 takes 215
// instructions, 126 in halves, 128 x 64 346 and 170, 64 x 128 130, 96 x 96 154, 64 x 64 111, 32 x 64 127, 128 x 32 303:
// the shares stand. With taps inner an element takes 3.2 instructions, and a step 0.8 for all of a thread's pixels,
// beside the 60 that a stage takes anyhow: a step is looked up in a table that the launcher makes, and a bit for each
// tap of a window, in 64, tells what lies inside: 244 at 128 x 128, 137 in halves, 353 and 196 at 128 x 64, 144 at
// 64 x 128, 173 at 96 x 96, 120 at 64 x 64, 125 at 32 x 64, 310 at 128 x 32, with the shares of copies. Windows of more
// than 57 taps, or 49 where a thread brings two chunks of a pixel, have a row's and a column's bit of each step in the
// table, 3.8 and 1: of 11 x 11 256 at 128 x 128, 144 in halves, 397 and 210 at 128 x 64, 149 at 64 x 128, 184 at
// 96 x 96, 127 at 64 x 64, 140 at 32 x 64, with the same shares; but 353 at 128 x 32, 72 and 56 %, where 320 would do.
// There each of 64 elements takes an LOP3 of its bits, an address, a load, and half of one each to pack it and for the
// zero before it. Left so: the bits of the three rows that 16 steps meet, shifted together, would take 348 by the same
// count; five words of bits for each of four pixels 16 registers, of the 19 left, and a choice among them in each
// stage; rows padded to runs of four taps, whose address is found once, 305, but 13 stages instead of 12, and as much
// more of all else. Floats have these bits always: their chunks are too short for the others to pay. Where rows of such
// windows are whole chunks, or to pad them to these is a tenth at most, a chunk of 16-bit types is a run: one
// address, the row's bit and a shift of the columns' bits for all, 2.6 for each element: of 31 x 31 214 at 128 x 128,
// 122 in halves, 268 at 128 x 32, where the others would take 755 and stand at 26 %. The table is an argument, so that
// it lies in constant memory, which answers beside shared memory, one address for a warp. That LDC.64 costs no more
// than its issue is assumed, the second thing to measure. In shared memory the table took 128 of 576 cycles of a warp's
// stage at 128 x 64, which left 68 % on sm_90. Where it has no room, in 3.5 of the 4 KB of arguments, or windows need
// more than 31 bits, or offsets 64, a step takes 14.
// TF32 has the same cycles and an instruction more for each register of x, before sm_90 two. PRECISE,
// whose warps are of 64 x 32 and less, stands at 100 % where x is copied (424 to 426 instructions at 128 x 128).
// Gathered from several taps it does on sm_90 from 64 x 64 on, 128 x 32 at 95 %, 32 x 64 at 90 and 64 x 32 at 85; taps
// inner these three at 89, 92 and 85. The last two have HALVES of two warps of 32 x 32: four of 32 x 16 split more
// floats for as many sums, 172 instructions instead of 147 where x is copied, and stood at 65 to 75 % gathered.
// What was learned. Places in shared memory are worked out once and kept from the compiler, which holds them for
// cheap and works them out anew in each stage: 10 to 30 % of the instructions, 17 for ldmatrix alone. So are
// distances from tap to tap. Splitting floats by integer addition, not by cvt.rna.tf32, spares a third of PRECISE's
// instructions. How far channels lie apart is a constant, which a load adds by itself: chosen for each window, an
// element's address was an instruction, 233 instead of 200 at 128 x 128; a pointer that walks from channel to channel
// took two. Taps inner took 890 when a lane divided anew for each element of its pixel. Now four pixels share a step,
// a row's and a column's bit tell in one instruction what lies outside, and a predicate spares the load (488); a
// window's corner and a step, added to x in 64 bits, took four instructions, by a pointer to the window one (372); then
// steps came from the table.
// Sums that two branches leave, zero before they are added or kept, spill registers at 64 x 64; a mask does not.
// Never run on hardware: values, races, copies and banks are the emulator's, times are predicted.
// Limits: float16 from sm_75 on, bfloat16 and float32 from sm_80 on.
// Source: Thakkar et al., CUTLASS, implicit GEMM convolution, 2020 (stages, swizzle, multistage loop); NVIDIA, PTX ISA;
// three products: CUTLASS, 3xTF32; sums outside: Ootomo and Yokota, Recovering single precision accuracy from tensor
// cores while surpassing the FP32 theoretical peak performance, 2022.
//
// Compiled with problem.cuh's, epilogue.cuh's and tensor_core_tile.cuh's constants, -DTOGETHER (x's channels lie side
// by side in aligned chunks), -DX_APART (how far they lie apart, or the pixels of a row where taps are runs), -DTAPS_INNER,
// -DDROPPED (channels that a group's last chunk repeats), -DONE_TAP (no stage ends amid the channels), -DLONG_TAPS (a tap
// has as many as a stage, or more), -DALONG_FILTERS (y's filters lie side by side, not its pixels), -DRUN (how many a
// thread stores at once), -DSPLIT, -DONE_STAGE (the reduction has), -DSTAYING (a block takes tile after tile), and
// tensor_core_taps.cuh's.

#include "cut_job.cuh"
#include "epilogue.cuh"
#include "last_split.cuh"
#include "tensor_core_walks.cuh"

// The way out, see `finish`: a warp's sums leave in slices of 16 pixels or 16 filters, whichever lie apart in memory,
// or its 8 filters.
constexpr int SLICE = ALONG_FILTERS || BLOCKS_K > 1 ? 16 : 8;
constexpr int LENGTH = ALONG_FILTERS ? WARP_K : WARP_M;
constexpr int PITCH = LENGTH + (ALONG_FILTERS ? 8 : 4);
constexpr int SLICES_BYTES = WARPS * SLICE * PITCH * sizeof(Accumulator);

struct Place { Offset y, residual; };  // where filter 0 goes of a pixel, or of the first of RUN

constexpr int PIXELS_PER_PLACE = ALONG_FILTERS ? 1 : RUN, PLACES = TILE_M / PIXELS_PER_PLACE;
constexpr int EPILOGUE_BYTES = SLICES_BYTES + PLACES * sizeof(Place) + TILE_K * sizeof(Accumulator);
constexpr int MEMORY_BYTES = STAGES * STAGE_BYTES > EPILOGUE_BYTES ? STAGES * STAGE_BYTES : EPILOGUE_BYTES;
alignas(128) __shared__ unsigned char memory[MEMORY_BYTES];

// What a thread brings of a stage to a place in shared memory, for multiply_stages.
struct Bring {
    const Element* __restrict__ x;
    const Problem& problem;
    const Cut& cut;
    const Steps& steps;
    Walk pixels;
    FilterWalk filters;

    __device__ __forceinline__ void fetch(int place)
    {
        pixels.fetch(place, x, problem, cut, steps);
        filters.fetch(place + PIXEL_BYTES, cut.filters);
    }

    __device__ __forceinline__ void put(int place) const
    {
        pixels.put(place);
        filters.put(place + PIXEL_BYTES);
    }
};

constexpr int LOADED_K = BLOCKS_K > 1 ? 2 : 1;  // blocks of filters that one ldmatrix brings

// Where a lane points ldmatrix, within a stage: its row of the warp's first blocks, and its chunk of the warp's first
// step.
struct Aim {
    int pixels, filters;

    __device__ __forceinline__ explicit Aim(const Warp& warp)
    {
        const int lane = threadIdx.x % 32;
        pixels = place_of(warp.m + lane % 16, lane / 16 + warp.half * 2);
        const int second = LOADED_K > 1 ? lane / 16 * 8 : 0;
        filters = PIXEL_BYTES + place_of(warp.k + second + lane % 8, lane / 8 % 2 + warp.half * 2);
        asm volatile("" : "+r"(pixels), "+r"(filters));
    }
};

__device__ __forceinline__ void multiply_stage(Sums& sums, unsigned stage, const Aim& aim)
{
    #pragma unroll
    for (int step = 0; step < STEPS / HALVES; ++step) {
        unsigned a[BLOCKS_M][4], a_rest[BLOCKS_M][4];
        // Two columns further is the other bit of the swizzle's exclusive or.
        #pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i) {
            load_matrices(a[i], stage + (aim.pixels ^ step * 32) + i * 16 * CHUNKS * 16);
            round_matrices(a[i], a_rest[i]);
        }
        #pragma unroll
        for (int j = 0; j < BLOCKS_K; j += LOADED_K) {
            unsigned loaded[LOADED_K * 2];
            load_matrices(loaded, stage + (aim.filters ^ step * 32) + j * 8 * CHUNKS * 16);
            #pragma unroll
            for (int i = 0; i < LOADED_K; ++i) {
                unsigned b[2] = {loaded[i * 2], loaded[i * 2 + 1]}, b_rest[2];
                if constexpr (PRECISE) round_matrices(b, b_rest);  // else pack_filters did
                multiply_blocks(sums, a, a_rest, b, b_rest, j + i);
            }
        }
    }
}

// Where number `column` of a slice's row lies. The halves of runs of eight lie apart: lanes that load the same half of
// neighbouring runs meet all banks, and so do the two halves of a lane's sums.
__device__ __forceinline__ int place_in_row(int column)
{
    return RUN < 8 ? column : column / 8 * 4 + column % 4 + column / 4 % 2 * (LENGTH / 2 + 4);
}

using Slice = Accumulator[SLICE][PITCH];

// Put slice `number` of a warp's sums, and of the biases of its filters, into shared memory.
__device__ __forceinline__ void spread(Slice& slice, const Sums& sums, const Accumulator* biases, int number)
{
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    if constexpr (ALONG_FILTERS) {
        #pragma unroll
        for (int j = 0; j < BLOCKS_K; ++j) {
            const float2 bias = *reinterpret_cast<const float2*>(&biases[j * 8 + column]);
            #pragma unroll
            for (int half = 0; half < 2; ++half)
                *reinterpret_cast<float2*>(&slice[row + half * 8][place_in_row(j * 8 + column)]) =
                    make_float2(sums[number][j][half * 2] + bias.x, sums[number][j][half * 2 + 1] + bias.y);
        }
    } else {
        #pragma unroll
        for (int filter = 0; filter < SLICE / 4; ++filter) {  // a lane's, of the slice's
            const int k = filter / 2 * 8 + column + filter % 2;
            const Accumulator bias = biases[number * SLICE + k];
            #pragma unroll
            for (int i = 0; i < BLOCKS_M; ++i)
                #pragma unroll
                for (int half = 0; half < 2; ++half)
                    slice[k][place_in_row(i * 16 + half * 8 + row)] =
                        sums[i][number * (SLICE / 8) + filter / 2][half * 2 + filter % 2] + bias;
        }
    }
}

// The sums of splits, as lanes have them: 16 bytes of each 16 x 8 block of a warp beside its neighbour's. Halves have one
// set, the first half's. `partial`: of the tile's first split, or of a block's own; `apart`: from split to split.
constexpr int LANES = WARPS * 32;

__device__ __forceinline__ int64 own_place(const Warp& warp) { return (warp.number * 32 + threadIdx.x % 32) * 4; }

__device__ __forceinline__ void leave_split(const Sums& sums, const Warp& warp, Accumulator* partial)
{
    if (warp.half == 1) return;
    partial += own_place(warp);
    #pragma unroll
    for (int i = 0; i < BLOCKS_M; ++i)
        #pragma unroll
        for (int j = 0; j < BLOCKS_K; ++j)
            *reinterpret_cast<float4*>(partial + (i * BLOCKS_K + j) * LANES * 4) =
                reinterpret_cast<const float4&>(sums[i][j]);
}

// A row of a warp's blocks, of all warps, in shared memory, where as many lie as there is room for.
constexpr int ROW_BYTES = BLOCKS_K * LANES * 16, ROWS_HELD = MEMORY_BYTES / ROW_BYTES;
static_assert(!SPLIT || ROWS_HELD >= 2);

// Add the sums of all splits, row by row as the loop's stages come: the next are on their way while one is added. Nobody
// reads what another thread has copied, so that there is no barrier. Of two splits it is enough to add the other's to
// those in registers: a + b is b + a.
__device__ __forceinline__ void add_splits(Sums& sums, const Warp& warp, const Accumulator* partial, int own, int splits,
                                           int64 apart)
{
    if (warp.half == 1) return;
    const bool pair = splits == 2;
    const unsigned kept = pair ? ~0u : 0;  // as a mask: two branches would keep the sums in registers of their own each
    #pragma unroll
    for (int i = 0; i < BLOCKS_M * BLOCKS_K * 4; ++i) {
        Accumulator& sum = sums[i / 4 / BLOCKS_K][i / 4 % BLOCKS_K][i % 4];
        sum = __uint_as_float(__float_as_uint(sum) & kept);
    }
    splits = pair ? 1 : splits;

    const Accumulator* next = partial + own_place(warp) + (pair ? (1 - own) * apart : 0);
    int fetched = 0, place = own_place(warp) * sizeof(Accumulator), free = place;
    const int last = place + (ROWS_HELD - 1) * ROW_BYTES;
    const auto fetch = [&] {
        if (fetched < splits * BLOCKS_M) {
            #pragma unroll
            for (int j = 0; j < BLOCKS_K; ++j)
                copy_async(shared_address(memory) + free + j * LANES * 16, next + j * LANES * 4);
            next += BLOCKS_K * LANES * 4 + (++fetched % BLOCKS_M ? 0 : apart - TILE_M * TILE_K);
            free = free == last ? free - (ROWS_HELD - 1) * ROW_BYTES : free + ROW_BYTES;
        }
        commit_copies();
    };
    for (int row = 0; row < ROWS_HELD - 1; ++row) fetch();
    for (int split = 0; split < splits; ++split)
        #pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i) {
            fetch();
            wait_for_copies<ROWS_HELD - 1>();
            #pragma unroll
            for (int j = 0; j < BLOCKS_K; ++j) {
                const float4 more = *reinterpret_cast<const float4*>(memory + place + j * LANES * 16);
                Accumulator(&to)[4] = sums[i][j];
                to[0] += more.x, to[1] += more.y, to[2] += more.z, to[3] += more.w;
            }
            place = place == last ? place - (ROWS_HELD - 1) * ROW_BYTES : place + ROW_BYTES;
        }
}

struct alignas(RUN * sizeof(Element)) Run { Element lane[RUN]; };

// Finish RUN sums, neighbours in memory, of which `column` is the first of its row, and store them.
__device__ __forceinline__ void store_run(const Problem& problem, const Output& output, const Accumulator* row,
                                          int column, const Place& place, int k)
{
    alignas(16) Accumulator sums[RUN];
    if constexpr (RUN == 1) {
        sums[0] = row[place_in_row(column)];
    } else {
        #pragma unroll
        for (int i = 0; i < RUN; i += 4)
            *reinterpret_cast<float4*>(&sums[i]) = *reinterpret_cast<const float4*>(&row[place_in_row(column + i)]);
    }
    Run run;
    if (output.residual) {
        run = *reinterpret_cast<const Run*>(output.residual + place.residual + k * (Offset)problem.residual.c);
        #pragma unroll
        for (int i = 0; i < RUN; ++i) sums[i] += widened(run.lane[i]);
    }
    #pragma unroll
    for (int i = 0; i < RUN; ++i) round_to(run.lane[i], activated(sums[i], problem.slope));
    *reinterpret_cast<Run*>(output.y + place.y + k * (Offset)problem.y.c) = run;
}

// The block's sums to y, through shared memory, so that each thread stores RUN neighbours at once.
__device__ __forceinline__ void finish(const Problem& problem, const Cut& cut, const Output& output, const Sums& sums,
                                       Index first_pixel, int group, int first_filter, const Warp& warp)
{
    __syncthreads();  // nobody multiplies any more
    Place* const places = reinterpret_cast<Place*>(memory + SLICES_BYTES);
    Accumulator* const biases = reinterpret_cast<Accumulator*>(places + PLACES);
    for (int i = threadIdx.x; i < PLACES; i += THREADS) {
        Index pixel = first_pixel + i * PIXELS_PER_PLACE;
        const int q = pixel % problem.Q; pixel /= problem.Q;
        const int p = pixel % problem.P, n = pixel / problem.P;
        places[i] = {offset(problem.y, n, 0, p, q), offset(problem.residual, n, 0, p, q)};
    }
    for (int i = threadIdx.x; i < TILE_K; i += THREADS) {
        const int k = first_filter + i;
        const bool wanted = output.bias && k < problem.Kg;
        biases[i] = wanted ? widened(output.bias[(group * problem.Kg + k) * (Offset)problem.bias]) : Accumulator(0);
    }
    __syncthreads();
    if (warp.half == 1) return;  // its sums are the other half's now
    Slice& slice = reinterpret_cast<Slice*>(memory)[warp.number];
    constexpr int RUNS = LENGTH / RUN;
    #pragma unroll
    for (int number = 0; number < (ALONG_FILTERS ? WARP_M : WARP_K) / SLICE; ++number) {
        spread(slice, sums, biases + warp.k, number);
        __syncwarp();
        for (int i = threadIdx.x % 32; i < SLICE * RUNS; i += 32) {
            const int row = i / RUNS, column = i % RUNS * RUN;
            const int m = warp.m + (ALONG_FILTERS ? number * SLICE + row : column);
            const int k = first_filter + warp.k + (ALONG_FILTERS ? column : number * SLICE + row);
            if (first_pixel + m < cut.pixels && k < problem.Kg)
                store_run(problem, output, slice[row], column, places[m / PIXELS_PER_PLACE], group * problem.Kg + k);
        }
        __syncwarp();
    }
}

// One whole tile, or a split of one.
__device__ __forceinline__ void compute(const Job& job, const Element* __restrict__ x, const Element* __restrict__ packed,
                                        const Output& output, Accumulator* __restrict__ partial,
                                        unsigned* __restrict__ counts, const Problem& problem, const Cut& cut,
                                        const Steps& steps)
{
    const Tile begun(job.tile, cut);
    const int all = ONE_STAGE ? 1 : cut.depth / DEPTH, first = ONE_STAGE ? 0 : job.first_stage(cut);
    const int count = ONE_STAGE ? 1 : job.stages(cut, all);

    unsigned start = shared_address(memory);
    asm volatile("" : "+r"(start));
    Bring bring{x, problem, cut, steps};
    bring.pixels.start(x, problem, cut, begun.first_pixel, begun.group, first);
    bring.filters.start(reinterpret_cast<const uint4*>(packed)
                        + (((int64)begun.group * all + first) * cut.filters + begun.first_filter) * CHUNKS);
    const Warp warp;
    const Aim aim(warp);
    Sums sums = {};
    const auto multiply = [&](int stage) { multiply_stage(sums, stage, aim); };
    multiply_stages<STAGE_BYTES, !ONE_STAGE>(count, bring, multiply, start);
    add_halves(sums, warp, memory);

    const Job done(STAYING ? job.tile : block_again(), cut);
    const Tile tile(done.tile, cut);
    if (SPLIT && done.split != Job::WHOLE_TILE) {
        leave_split(sums, warp, partial + done.partial_tile(cut) * (TILE_K * TILE_M));
        const unsigned number = done.tile - cut.whole;
        if (!comes_last(counts + number, cut.splits, reinterpret_cast<bool&>(memory))) return;
        partial += (int64)number * (TILE_K * TILE_M);
        add_splits(sums, warp, partial, done.split, cut.splits, (int64)cut.split_tiles * (TILE_K * TILE_M));
    }
    finish(problem, cut, output, sums, tile.first_pixel, tile.group, tile.first_filter, warp);
}

// grid: whole tiles and the splits of others; STAYING: fewer than there are tiles. block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
conv2d_tensor_core(const Element* __restrict__ x, const Element* __restrict__ packed, Element* __restrict__ y,
                   const Element* __restrict__ bias, const Element* __restrict__ residual,
                   Accumulator* __restrict__ partial, unsigned* __restrict__ counts, Problem problem, Cut cut,
                   const __grid_constant__ Steps steps)
{
    for (unsigned block = blockIdx.x;;) {
        compute(Job(block, cut), x, packed, {y, bias, residual}, partial, counts, problem, cut, steps);
        block += gridDim.x;
        if (!STAYING || block >= cut.whole) return;
        __syncthreads();  // nobody reads sums any more where the next stages come
    }
}

// Write w stage by stage: CHUNKS chunks of each filter; and zero into the count of every split tile.
// grid: over groups * depth * filters, or the split tiles, one thread each.
extern "C" __global__ void __launch_bounds__(256)
pack_filters(const Element* __restrict__ w, Element* __restrict__ packed, unsigned* __restrict__ counts,
             Problem problem, Cut cut)
{
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    if (index < cut.split_tiles) counts[index] = 0;
    if (index >= (int64)problem.groups * cut.depth * cut.filters) return;
    const int k = index / DEPTH % cut.filters;
    const int64 stage = index / DEPTH / cut.filters;
    const int group = stage / (cut.depth / DEPTH), d = stage % (cut.depth / DEPTH) * DEPTH + index % DEPTH;
    const int tap = TAPS_INNER ? d % TAPS : d / cut.channels, c = TAPS_INNER ? d / TAPS : d % cut.channels;
    const int r = tap / TAP_ROW, s = tap % TAP_ROW;
    // A group's last chunk ends with its last channel, as Walk reads it.
    const int dropped = DROPPED > 0 && c >= cut.channels - CHUNK ? DROPPED : 0;
    const bool wanted = k < problem.Kg && c < problem.Cg + dropped && c % CHUNK >= dropped && tap < TAPS && s < S;
    const int channel = c - dropped;
    const Element weight = wanted ? w[offset(problem.w, group * problem.Kg + k, channel, r, s)] : Element{};
    packed[index] = PRECISE ? weight : as_taken(weight);
}
