// Implicit GEMM: the matrix product of im2col without the matrix. A block gathers the windows of its pixels straight
// into shared memory, stage by stage, and multiplies them there (register_tile.cuh draws the tile).
//
//     y[k, m] = sum over d of  packed[d, k] * x[window of m, d]          m = (n, p, q), d = a tap and a channel
//
//                                 128 pixels                  of a stage, 8 steps of d:
//                               +------------+                from memory  2 * 8 * 128 words = 8 KiB
//                        8 of d |  windows   |                multiplied   8 * 128 * 128 = 131,072, 32 FLOP per byte
//                +----+         +============+                shared       16 KiB, both buffers
//    128 filters | packed       | 256 threads|                a thread     64 sums, 16 operands of this step and some
//                |    |         | 8 x 8 each |                             of the next, 8 words of the next stage
//                +----+         +============+
//
// implicit_walks.cuh says who fetches what: a pixel of several channels, four channels of a pixel (channels last), or
// four pixels of a channel (1x1, NCHW), these two by 128 bits. pack_filters.cu writes the weights in the order of d
// first, filters side by side and padded with zeros, so theirs are too; a plan has that done once. A single call packs
// none that lie in that order already, 1x1 and windows with channels last, but reads rows of them (implicit_filters.cuh).
// Four outputs that lie side by side in y leave as one store: filters (channels last), or pixels where they were loaded so.
// Small problems, and the last wave of others (waves.py draws it): SPLIT makes several blocks share a tile, each with its
// part of d; they write whole tiles of sums to the workspace and sum_splits adds them, always in the same order. There
// they lie as y does, filters inner or pixels, so that both kernels move whole sectors: of 64 x 14 x 14 outputs, channels
// last, sum_splits stores into 1,568 sectors; it was 6,272 when its lanes were neighbouring pixels. Where instead the block
// that comes last to a tile added them, 8 splits at a time with 16 loads of a thread under way, no launch followed, and the
// model said 2 to 5 % less at one image; but in the simulator named below 576x14x14-96-1x1 took 48,800 cycles instead of
// 34,300 and 64x7x7-512-3x3 68,300 instead of 54,300, launches counted: one block reads a tile's splits one after the other.
// Predicted for the layers of VGG-16, ResNet-50 and MobileNetV2 on 108 SMs: 61.8 ms together at 32 images, 65.7 with
// whole tiles only; 2.80 ms at one image, 12.2. Every layer fills its last wave or is split, on 108 and on 132 SMs, which
// takes them all 0.1 % longer at 32 images than the fastest cuts would, 1 to 2 % at one (python -m benchmarks waves).
// Where a product has few stages a further launch costs more than splits bring: there SLICES of a block share a tile,
// each with threads, buffers and stages of its own, and hand their sums to the first by way of shared memory
// (register_tile.cuh). There too a tile of 32 x 32, 8 x 4 sums a thread, may fill a wave: 3x224x224-32-3x3/2 and
// 32x112x112-16-1x1 at one image and 132 SMs are 392 blocks of it, in four slices, on 396 slots, predicted to be 0.03 and
// 0.02 faster than 98 of 32 x 128. Its loop has 256 multiply-adds among 315 to 341 instructions (75 to 82 %).
// Bank conflicts: none. Reads: register_tile.cuh. Neighbouring pixels come to neighbouring banks, and where two lanes
// hold one pixel's upper and lower channels, the halves of the lower rows' vectors change places (Windows::place).
//
// The loop, 128 x 128, has 512 multiply-adds among 564 to 580 instructions (88 to 91 % on sm_75, 80, 86, 89, 90), at
// most 128 registers and two blocks on a multiprocessor; on sm_100, and for channels last on sm_120, one: their
// compilers want up to 149 registers. What that took:
// - One copy of the loop's body. With another for the step to a new tap, the copies kept the sums in other registers
//   each, and 23 moves made up for it. So fetches come first and addresses move on after them, and `turn` stands
//   outside, between two runs of the same loop.
// - 32-bit offsets, widened at the load in one instruction; pointers take two to move on, and their sums more.
// - What is outside is zeroed once per tap where loads are of 32 bits: predicates do not change within a tap. Loads of
//   128 bits zero theirs each time: kept from stage to stage, four registers in a row had to be moved out of the way.
// - Nothing else kept: taps are bits of one word, and the block's place is worked out anew for the store.
// Small tiles have 602 (64 x 64) or 642 (32 x 64): their threads fetch 8 or 16 elements where the large one's fetch 4.
// Counted over whole launches of plans for sm_80, sums and padding included (results/emulated-2026-11-28): of the
// instructions, the problem's own multiply-adds are 83 to 89 % on all 15 3x3 layers of ResNet-50 and VGG-16 with 64
// channels or more at 32 images, 62 to 83 % at one, the least on 256 x 14 x 14; of single calls, which pack, 62 to 83 %.
// Measured on an H200, float32, 15 layers of ResNet-50 at 32 images (results/nvidia-h200-2026-11-28), with a loop of
// 602 instructions, before what is said above: 22 to 42 TFLOP/s of the 63 its lanes do; 0.65 to 1.28 times as fast as
// the better of cuDNN and PyTorch without TF32, 1.05 in the mean. This loop has not run on hardware yet.
// Simulated, one image of 64 x 56 x 56, 64 filters of 3 x 3, an RTX 2060 (results/simulated-sm75-2026-11-28): 0.60 of the
// cycles of CUTLASS's faster tile, 0.70 with packing and sums. Splits of 64 x 128 instead of 64 x 64 took 1.2 times as long.
// Limits: none on the problem.
// Source: Chetlur et al., cuDNN, 2014; the order of d, incremental addresses and predicates as bits: Thakkar et al.,
// CUTLASS, implicit GEMM convolution, 2020; division by multiplication: Granlund and Montgomery, PLDI 1994.
//
// Compiled with problem.cuh's constants, -DTILE_K -DTILE_M, -DORDER (0: channels inner, 1: taps inner), -DTOGETHER
// (what lies side by side in x, four of them aligned: CHANNELS, PIXELS or NONE), -DSTORED (and in y and the residual;
// CHANNEL: in y, not four of them), -DWHOLE (1: no stage ends amid the channels), -DSPLIT, -DSLICES, -DACTIVATION.

enum Together { NONE, CHANNELS, PIXELS, CHANNEL };

#include "epilogue.cuh"
#if __CUDA_ARCH__ >= 1200  // its compiler wants a few more than 128 for these, and would spill them
#define MORE_REGISTERS (WIDE || ORDER == 1 || TOGETHER == CHANNELS)
#else
#define MORE_REGISTERS WIDE
#endif
#include "implicit_filters.cuh"

// A thread's places in shared memory, in bytes; the other buffer is an exclusive or away.
struct Addresses {
    unsigned read_filter, read_pixel, write_filter, write_pixel;

    __device__ __forceinline__ explicit Addresses(const Place& place)
    {
        const unsigned of_filters = own_slice() * 2 * sizeof(filters[0]), of_pixels = own_slice() * 2 * sizeof(pixels[0]);
        read_filter = of_filters + (place.warp_filter + place.filter_lane * VECTOR) * sizeof(Accumulator);
        read_pixel = of_pixels + (place.warp_pixel + place.pixel_lane * VECTOR) * sizeof(Accumulator);
        write_filter = of_filters + Filters::place();
        write_pixel = of_pixels + Walk::place();
    }

    __device__ __forceinline__ void put(const Filters& next_filters, const Walk& walk)
    {
        next_filters.put(write_filter);
        walk.put(write_pixel);
        write_filter ^= sizeof(filters[0]);
        write_pixel ^= sizeof(pixels[0]);
    }

    __device__ __forceinline__ void multiply(Accumulator (&sums)[EACH][ACROSS])
    {
        multiply_stage<SWAPPED, WEIGHTS == AS_THEY_LIE>(sums, in_shared(filters, read_filter), in_shared(pixels, read_pixel));
        read_filter ^= sizeof(filters[0]);
        read_pixel ^= sizeof(pixels[0]);
    }
};
constexpr bool is_power_of_two(int n) { return (n & (n - 1)) == 0; }
static_assert(is_power_of_two(sizeof(filters[0])) && is_power_of_two(sizeof(pixels[0])), "for the exclusive or");

// Which filter, and which pixel, is a lane's number i of EACH. A VECTOR of filters lies side by side in shared memory as
// they are numbered, and one of pixels IN_ORDER; else gemm_layout.cuh interleaves them.
__device__ __forceinline__ int in_blocks(int lanes, int lane, int i)
{
    return i / VECTOR * lanes * VECTOR + lane * VECTOR + i % VECTOR;
}
__device__ __forceinline__ int filter_of(int lane, int i) { return in_blocks(FILTER_LANES, lane, i); }
__device__ __forceinline__ int pixel_of(int lane, int i)
{
    return IN_ORDER ? in_blocks(PIXEL_LANES, lane, i) : lane + i * PIXEL_LANES;
}

// How many outputs leave in one store: of so many filters and so many pixels, which lie side by side in y.
constexpr int FILTERS_AT_ONCE = STORED == CHANNELS ? VECTOR : 1, PIXELS_AT_ONCE = STORED == PIXELS ? VECTOR : 1;
constexpr int AT_ONCE = FILTERS_AT_ONCE * PIXELS_AT_ONCE;
static_assert(STORED != PIXELS || IN_ORDER);

__device__ __forceinline__ void add(Accumulator (&values)[AT_ONCE], const Element* residual)
{
    const Several<AT_ONCE> more = *reinterpret_cast<const Several<AT_ONCE>*>(residual);
    #pragma unroll
    for (int e = 0; e < AT_ONCE; ++e) values[e] += widened(more.lane[e]);
}

__device__ __forceinline__ void finish(Accumulator (&values)[AT_ONCE], Element* y, Accumulator slope)
{
    Several<AT_ONCE> outputs;
    #pragma unroll
    for (int e = 0; e < AT_ONCE; ++e) round_to(outputs.lane[e], activated(values[e], slope));
    *reinterpret_cast<Several<AT_ONCE>*>(y) = outputs;
}

// filter, m: this thread's first, within the group and of all pixels.
__device__ __forceinline__ void store_tile(Accumulator (&sums)[EACH][ACROSS], const Output& output, const Problem& problem,
                                           const Cut& cut, int group, int filter, Index m)
{
    const int k = group * problem.Kg + filter;
    if (output.bias)
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (filter + filter_of(0, i) < problem.Kg) {
                const Accumulator bias = widened(output.bias[(k + filter_of(0, i)) * (Offset)problem.bias]);
                #pragma unroll
                for (int j = 0; j < ACROSS; ++j) sums[i][j] += bias;
            }
    #pragma unroll
    for (int j = 0; j < ACROSS; j += PIXELS_AT_ONCE) {
        if (m + pixel_of(0, j) >= cut.pixels) continue;
        const Pixel pixel = pixel_at(m + pixel_of(0, j), problem, cut);
        Element* y = output.y + offset(problem.y, pixel.n, k, pixel.p, pixel.q);
        const Offset residual = output.residual ? offset(problem.residual, pixel.n, k, pixel.p, pixel.q) : 0;
        #pragma unroll
        for (int i = 0; i < EACH; i += FILTERS_AT_ONCE) {
            const int further = filter_of(0, i);
            if (filter + further >= problem.Kg) continue;
            Accumulator values[AT_ONCE];
            #pragma unroll
            for (int e = 0; e < AT_ONCE; ++e) values[e] = STORED == CHANNELS ? sums[i + e][j] : sums[i][j + e];
            if (output.residual) add(values, output.residual + residual + further * (Offset)problem.residual.c);
            finish(values, y + further * (Offset)problem.y.c, problem.slope);
        }
    }
}

// The sums of a split lie in `partial` as y does, a tile at a time: filters are inner, or pixels, these in the lanes' order.
constexpr bool FILTERS_INNER = STORED == CHANNELS || STORED == CHANNEL;
constexpr int IN_ROW = FILTERS_INNER ? TILE_K : TILE_M;

// first: of the tile's sums. Its edges too: all places of `partial` exist.
__device__ __forceinline__ void store_partial(const Accumulator (&sums)[EACH][ACROSS], const Place& place,
                                              Accumulator* first)
{
    const int filter = place.warp_filter + filter_of(place.filter_lane, 0);
    if (FILTERS_INNER) {
        first += (place.warp_pixel + pixel_of(place.pixel_lane, 0)) * TILE_K + filter;
        #pragma unroll
        for (int j = 0; j < ACROSS; ++j)
            #pragma unroll
            for (int i = 0; i < EACH; i += VECTOR) {
                Vector neighbours;
                #pragma unroll
                for (int e = 0; e < VECTOR; ++e) neighbours.lane[e] = sums[i + e][j];
                vector_at(first[pixel_of(0, j) * TILE_K + filter_of(0, i)]) = neighbours;
            }
    } else {
        first += filter * TILE_M + place.warp_pixel + place.pixel_lane * VECTOR;
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            #pragma unroll
            for (int v = 0; v < ACROSS / VECTOR; ++v)
                vector_at(first[filter_of(0, i) * TILE_M + v * PIXEL_BLOCK]) = vector_at(sums[i][v * VECTOR]);
    }
}

// grid: whole tiles and the splits of others, block: THREADS * SLICES.
extern "C" __global__ void __launch_bounds__(THREADS * SLICES, BLOCKS_PER_SM)
conv2d_implicit_gemm(const Element* __restrict__ x, const Weight* __restrict__ weights, Element* __restrict__ y,
                     const Element* __restrict__ bias, const Element* __restrict__ residual,
                     Accumulator* __restrict__ partial, Problem problem, Cut cut)
{
    const Job job(blockIdx.x, cut);
    const Tile first(job.tile, cut);
    const int stages = job.stages(cut, cut.depth / DEPTH) / SLICES;
    const int stage = job.first_stage(cut) + own_slice() * stages;
    int left = stages - 1;  // to fetch after the first

    const Place place;
    Addresses shared(place);
    Filters next_filters(problem, cut, first, stage);
    Walk walk;
    int in_tap = walk.start(problem, cut, first.first_pixel, first.group, stage);
    const auto fetch = [&] {
        next_filters.fetch(weights, problem, cut);
        walk.fetch(x, problem);
        walk.step(problem);
    };
    fetch();
    shared.put(next_filters, walk);
    __syncthreads();

    alignas(16) Accumulator sums[EACH][ACROSS] = {};
    #pragma unroll 1
    for (--in_tap;; in_tap = (unsigned)cut.channels / DEPTH) {
        in_tap = min(in_tap, left);
        left -= in_tap;
        #pragma unroll 1
        for (; in_tap > 0; --in_tap) {
            fetch();
            shared.multiply(sums);
            shared.put(next_filters, walk);
            __syncthreads();
        }
        if (!Walk::TURNS || left == 0) break;
        walk.turn(problem, cut);
    }
    shared.multiply(sums);
    if constexpr (SLICES > 1) {
        gather_slices(sums);
        if (own_slice() > 0) return;
    }

    const Job done(block_again(), cut);
    const Tile tile(done.tile, cut);
    if (SPLIT && done.split != Job::WHOLE_TILE) {
        store_partial(sums, place, partial + done.partial_tile(cut) * (TILE_K * TILE_M));
    } else {
        const int filter = place.warp_filter + filter_of(place.filter_lane, 0);
        const Index m = tile.first_pixel + place.warp_pixel + pixel_of(place.pixel_lane, 0);
        store_tile(sums, {y, bias, residual}, problem, cut, tile.group, tile.first_filter + filter, m);
    }
}

// VECTOR sums, added in their order over all splits.
__device__ __forceinline__ Vector added(const Accumulator* first, int64 apart, int splits)
{
    Vector sums = {};
    #pragma unroll 4
    for (int split = 0; split < splits; ++split, first += apart) {
        const Vector more = vector_at(*first);
        #pragma unroll
        for (int e = 0; e < VECTOR; ++e) sums.lane[e] += more.lane[e];
    }
    return sums;
}

// Finish and store what leaves at once. pixel, k: the first of them.
__device__ __forceinline__ void store_sums(Accumulator (&values)[AT_ONCE], const Output& output, const Problem& problem,
                                           const Pixel& pixel, int k)
{
    if (output.bias)
        #pragma unroll
        for (int e = 0; e < AT_ONCE; ++e)
            values[e] += widened(output.bias[(k + (STORED == CHANNELS ? e : 0)) * (Offset)problem.bias]);
    if (output.residual) add(values, output.residual + offset(problem.residual, pixel.n, k, pixel.p, pixel.q));
    finish(values, output.y + offset(problem.y, pixel.n, k, pixel.p, pixel.q), problem.slope);
}

// Add what the splits left in `partial`, and finish. Blocks are small, to be shared evenly: 15 splits of 32,768 sums on 30
// multiprocessors took 9,984 cycles in the simulator in 32 blocks of 256 threads, 7,749 in 128 of these.
// grid: over split_tiles * TILE_K * TILE_M / VECTOR, one thread each.
constexpr int SUMMING = 64;
extern "C" __global__ void __launch_bounds__(SUMMING)
sum_splits(const Accumulator* __restrict__ partial, Element* __restrict__ y, const Element* __restrict__ bias,
           const Element* __restrict__ residual, Problem problem, Cut cut, int splits)
{
    constexpr int OF_TILE = TILE_K * TILE_M / VECTOR, OF_ROW = IN_ROW / VECTOR;
    static_assert(OF_TILE % SUMMING == 0);
    const Index index = blockIdx.x * (Index)SUMMING + threadIdx.x;
    const Tile tile(cut.whole + (unsigned)(index / OF_TILE), cut);
    const int row = index % OF_TILE / OF_ROW, vector = index % OF_ROW;
    const int filter = tile.first_filter + (FILTERS_INNER ? vector * VECTOR : row);
    const auto pixel = [&](int e) {
        if (FILTERS_INNER) return tile.first_pixel + row;
        return tile.first_pixel + vector / PIXEL_LANES * PIXEL_BLOCK + pixel_of(vector % PIXEL_LANES, e);
    };
    if (filter >= problem.Kg || pixel(0) >= cut.pixels) return;
    const int k = tile.group * problem.Kg + filter;
    Vector sums = added(partial + (int64)index * VECTOR, (int64)cut.split_tiles * TILE_K * TILE_M, splits);
    #pragma unroll
    for (int e = 0; e < VECTOR; e += AT_ONCE) {
        if (FILTERS_INNER ? filter + e >= problem.Kg : pixel(e) >= cut.pixels) continue;
        const Pixel at = pixel_at(pixel(e), problem, cut);
        Accumulator values[AT_ONCE];
        #pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) values[i] = sums.lane[e + i];
        store_sums(values, {y, bias, residual}, problem, at, FILTERS_INNER ? k + e : k);
    }
}
