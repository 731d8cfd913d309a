// Winograd F(2 x 2, 3 x 3) in one kernel: 16 multiplications for four outputs and a channel where the windows take 36,
// and nothing between x and y written to memory. numba_cpu/winograd_matrices.py tells the algorithm:
//
//     tile of y = A^T [ sum over c of  (G w[k, c] G^T) * (B^T patch[c] B) ] A      *: number by number, 16 products
//
// transform_filters does the filters first, into the workspace (winograd_filters.cuh). Then a block computes 64 filters
// for 32 tiles of 2 x 2 outputs, neighbours along a row and then the next row's:
//
//                                       32 tiles              a stage: 4 channels; 24 KB, in two buffers
//     x   4 x 4 patch   -- B^T . B -->  +--------+
//         of a tile and                 | tiles  |            patches: every second stage a thread loads one of its
//         a channel        64 filters   | 4 x 32 |            own, transforms it in registers, and stores 16 numbers,
//                          +-------+    +--------+            one for each product
//     packed -- 16 KB -->  |filters|    +========+
//                          |64 x 4 |    |  sums  |  x 16      a warp has 2 of the 16 products, a thread 8 x 8 sums of
//                          +-------+    |64 x 32 | products   each: 128 in registers
//                                       +========+
//                                           |                 at the end, 16 filters at a time, through shared memory
//                                           +-- A^T . A -->   bias, residual, activation, 2 x 2 outputs
//
// While a stage is multiplied the next one's filters and patches wait in registers; after it they go to the other
// buffer: one barrier for every 512 multiply-adds of a thread. Half the threads have the patches of the even stages and
// half those of the odd ones: so each of 256 has a whole patch, and its transform needs no other thread. The last stage
// comes first, then the others in pairs, an even one and the odd one behind it, whose channels may share sectors.
// Bytes and FLOPs: a stage is 131,072 multiply-adds, which stand for 294,912 of the direct way, on 16 KB of filters and
// 8 KB of patches. Tiles overlap, so three of four words of a patch are another's too: L1 has them, or L2 where they
// are another block's. Blocks of the same tiles are neighbours in the grid: x comes from memory once.
// Sectors beside the least, float32, counted in the emulator: 1.0 where filters, y, residual and splits are met,
// and x IN_PAIRS: where the pixels of a row lie side by side, an even number of them, padded by one, a lane loads its
// tile's own columns and has the two beside from the lanes beside, as in winograd_batched.cu. A warp asks for the 40
// sectors in which a channel's patches lie, where word by word it would be 128. That takes 4 loads of 64 bits, 8 of a
// warp's ends and 8 shuffles for 16 loads, and 6 to 15 instructions more in two stages. Other rows go word by word,
// 2.0: odd ones have no pairs that are aligned, and to load neighbours by neighbouring lanes and exchange them all
// would take 24 shuffles and more. So do 16-bit types and float64 (1.7). In pairs they meet whole sectors too, 1.0, but
// 16-bit types in loops 20 to 25 longer (multiply-adds 81 % instead of 82 to 83), float64 in one 30 longer (59 %
// instead of 62), and the words that are met twice lie in L1. Channels that lie side by side, 8 of them, are a sector,
// two stages', for 8 lanes: 1.0 (float64 too; 16-bit types 2.0, half a sector, of which the other half comes two stages
// later: at once, a thread would hold two patches, 16 registers more than there are), but 2.0 in the prologue, where
// half the lanes bring the last stage.
// Registers: 128 for sums, 32 for what is being multiplied, 16 + 16 for the next stage, the rest addresses: 236 to 255,
// no spills. So a multiprocessor holds one block, of 8 warps.
// Instructions: of 1,218 to 1,246 in two stages 1,024 multiply and add where the pixels of a row lie side by side; of
// 1,230 to 1,273 where the channels do, since columns are then no constant apart: 84 to 80 %.
// Bank conflicts: none, in loads and stores, as the emulator counts.
//     products   lanes as in register_tile.cuh, 8 of filters x 4 of tiles; a quarter of a warp reads 4 x 2 words of 128
//                bits
//     patches    NCHW: a warp stores one channel of 32 tiles. NHWC: half a warp stores four channels of 4 tiles; in
//                plain order four lanes would meet in a bank: tile_place turns channel c by 8 c
//     sums       a quarter of a warp stores 4 filters x 2 words of 128 bits; a warp loads 32 tiles of a filter (NCHW),
//                or 4 tiles of 8 filters (NHWC); sum_place turns each filter's row so that each of these meets 32 banks
// Small problems: where that is predicted to be faster, the channels are split among several blocks, as
// in implicit_gemm.cu; A^T . A is linear, so they write sums of outputs, a quarter of what the products would be.
// Rounding: as a plain sum's, with the transforms' (accuracy.py). NaN and infinity in x reach all outputs of the tiles
// that read them, not only those whose window does.
// The weight gradient, F(3 x 3, 2 x 2): 16 products for a tile of grad_y and a patch of x where 36 are due, summed over
// tiles instead of channels. Left for now, by these numbers. A block of 64 filters x 32 channels takes 4 tiles a stage;
// both operands are transformed as they come, some 200 instructions beside 512 multiply-adds of a thread (here 110), and
// its sums, one block's 128 registers a thread, are 16 / 9 of a plain gradient's for every split of the tiles. With this
// loop's assumed waiting of 2.0 that is predicted 1.32 to 1.40 times as fast as weight_grad.cu over VGG-16 and a U-Net
// (sm_80 and sm_90, 8 and 32 images; 0.6 times for layers of three channels), and 1.04 to 1.07 times over ResNet-50,
// where a third of the time is in such layers. With a waiting of 2.7 nothing is left, and with 1.5 it is 1.7 times: the
// guess decides. So first this kernel is to be measured, whose loop it shares.
// Limits: 3 x 3, stride 1, dilation 1. A group of few filters or few channels wastes most of a block.
// Never run on hardware.
// Sources: Winograd 1980; Lavin and Gray, CVPR 2016 (the algorithm). Yan, Wang and Chu, Optimizing Batched Winograd
// Convolution on GPUs, PPoPP 2020, and Castro, Andrade and Fraguela, openCNN, Mathematics 2021 (64 filters x 32 tiles
// in 256 threads, two products to a warp; they take 8 channels at once, in one buffer).
//
// float64: 32 filters x 16 tiles, 4 x 4 sums of each product to a thread, a patch of its own every fourth stage.
// Compiled with the constants of problem.cuh, winograd_filters.cuh and epilogue.cuh, -DADJACENT=CHANNELS where the
// channels of a pixel of x lie side by side in memory, PIXELS where the pixels of a row do, NONE elsewhere, -DIN_PAIRS,
// -DSPLIT, and -DSTORED, so many pixels of a row at once: of y and the residual, or of the splits' sums.

#include "epilogue.cuh"
#include "winograd_filters.cuh"

constexpr int THREADS = 256;
constexpr int SMALL = 64;  // threads of a block that adds splits
constexpr int DEPTH = 4;                               // channels of a stage
constexpr int EACH = 2 * VECTOR;                       // filters, and tiles, of a thread in each of its products
constexpr int FILTER_LANES = 8, TILE_LANES = 4;        // of a warp
constexpr int FILTERS = FILTER_LANES * EACH, TILES = TILE_LANES * EACH;
constexpr int OWN_PRODUCTS = PRODUCTS * 32 / THREADS;  // of a warp
constexpr int PHASES = THREADS / (DEPTH * TILES);      // stages from one patch of a thread to its next
// Of channels that lie side by side in x, how many go to neighbouring lanes: one sector, though of several stages.
constexpr int SIDE_BY_SIDE = 32 / sizeof(Element) < DEPTH * PHASES ? 32 / sizeof(Element) : DEPTH * PHASES;
constexpr int SLAB = PRODUCTS * DEPTH * FILTERS;       // transformed filters of a stage
constexpr int OWN_VECTORS = SLAB / VECTOR / THREADS;
constexpr int SLOTS = 2 * FILTER_LANES;                // filters whose sums pass through shared memory at once
static_assert(PHASES % 2 == 0 && PHASES * DEPTH * TILES == THREADS && OWN_VECTORS * VECTOR * THREADS == SLAB);

struct Tiling {
    int64 tiles;           // of all images
    int down, across;      // of one image
    int tile_blocks, filter_blocks;
    int stages, split;     // of all channels; of one split
};

struct Stage {
    Accumulator filters[PRODUCTS][DEPTH][FILTERS];
    Accumulator tiles[PRODUCTS][DEPTH][TILES];
};
union Memory {
    Stage stages[2];
    Accumulator sums[PRODUCTS][SLOTS][TILES];
};
alignas(16) __shared__ Memory memory;

__device__ __forceinline__ Vector& vector_at(Accumulator& first) { return reinterpret_cast<Vector&>(first); }
__device__ __forceinline__ const Vector& vector_at(const Accumulator& first)
{
    return reinterpret_cast<const Vector&>(first);
}

// The filter at a place of a stage: a lane's VECTOR neighbours there are FILTER_LANES filters apart.
__device__ __forceinline__ int filter_at(int place)
{
    constexpr int BLOCK = FILTER_LANES * VECTOR;
    return place / BLOCK * BLOCK + place % VECTOR * FILTER_LANES + place / VECTOR % FILTER_LANES;
}

// Where tile `tile` of a channel lies in a stage.
__device__ __forceinline__ int tile_place(int channel, int tile) { return tile ^ channel * (TILES / DEPTH); }

// Where it lies in the sums of a filter.
__device__ __forceinline__ int sum_place(int slot, int tile)
{
    return tile ^ VECTOR * ((slot & 3) << 1 | (slot >> 2 & 1));
}

struct Corner { int n, p, q; bool exists; };

// The image and the first row and column of y of a tile.
__device__ __forceinline__ Corner corner_of(const Tiling& tiling, Index tile)
{
    const bool exists = tile < tiling.tiles;
    const int q = tile % tiling.across * MINIMAL; tile /= tiling.across;
    return {(int)(tile / tiling.down), (int)(tile % tiling.down) * MINIMAL, q, exists};
}

// The inputs of a tile of one channel, which a thread transforms every PHASES stages.
struct Patch {
    Accumulator values[PATCH][PATCH];
    const Element* next;   // the first of those to fetch next
    unsigned inside;       // a bit for each: whether it lies in the image; IN_PAIRS: and this lane loads it
    int channel;           // of the group, to fetch next
    int place;             // in a stage's tiles

    // Of `inside`: one for both own columns; behind them, whether the lanes beside have the columns beside.
    static constexpr int LOADS = IN_PAIRS ? 3 : PATCH;
    static constexpr int bit_of(int r, int s) { return r * LOADS + (IN_PAIRS ? (s + 1) / 2 : s); }
    static constexpr unsigned FROM_LEFT = 1u << PATCH * LOADS, FROM_RIGHT = FROM_LEFT << 1;
    static constexpr unsigned FIRST_PHASE = 1u << 24;  // and of the lane's phase

    // Of the block's tiles, and of the channels of all phases.
    static __device__ __forceinline__ int own_tile()
    {
        return ADJACENT == CHANNELS ? threadIdx.x / SIDE_BY_SIDE % TILES : threadIdx.x % TILES;
    }
    static __device__ __forceinline__ int channel_of_all()
    {
        if constexpr (ADJACENT != CHANNELS) return threadIdx.x / TILES;
        return threadIdx.x % SIDE_BY_SIDE + threadIdx.x / (SIDE_BY_SIDE * TILES) * SIDE_BY_SIDE;
    }
    static __device__ __forceinline__ int own_channel() { return channel_of_all() % DEPTH; }
    __device__ __forceinline__ bool is_due(int phase) const { return inside & FIRST_PHASE << phase; }
    static __device__ __forceinline__ int phase() { return channel_of_all() / DEPTH; }

    __device__ __forceinline__ void start(const Element* __restrict__ x, const Problem& problem, const Tiling& tiling,
                                          Index first_tile, int group, int stage)
    {
        const Corner corner = corner_of(tiling, first_tile + own_tile());
        const int h = corner.p - problem.top, w = corner.q - problem.left;
        const bool leads = own_tile() == 0, ends = own_tile() == TILES - 1;
        inside = FIRST_PHASE << phase();
        #pragma unroll
        for (int r = 0; r < PATCH; ++r)
            #pragma unroll
            for (int s = 0; s < PATCH; ++s) {
                const bool loads = !IN_PAIRS || ((s > 0 || leads) && (s < PATCH - 1 || ends));
                if (loads && corner.exists && (unsigned)(h + r) < problem.H && (unsigned)(w + s) < problem.W)
                    inside |= 1u << bit_of(r, s);
            }
        if (IN_PAIRS && !leads && w >= 0) inside |= FROM_LEFT;
        if (IN_PAIRS && !ends && w + PATCH - 1 < problem.W) inside |= FROM_RIGHT;
        channel = stage * DEPTH + channel_of_all();
        place = own_channel() * TILES + tile_place(own_channel(), own_tile());
        keep(place);
        next = x + offset(problem.x, corner.exists ? corner.n : 0, group * problem.Cg + channel, h, w);
    }

    __device__ __forceinline__ void fetch(const Problem& problem)
    {
        const unsigned wanted = channel < problem.Cg ? inside : 0;
        if constexpr (ADJACENT == PIXELS) {
            fetch_pixels(wanted, problem.x.h);
        } else {
            const Element* at = next;
            #pragma unroll
            for (int r = 0; r < PATCH; ++r, at += problem.x.h - PATCH * problem.x.w)
                #pragma unroll
                for (int s = 0; s < PATCH; ++s, at += problem.x.w)
                    values[r][s] = wanted >> bit_of(r, s) & 1 ? widened(*at) : Accumulator(0);
        }
    }

    // To the channel so many stages on.
    __device__ __forceinline__ void turn(const Problem& problem, int stages)
    {
        channel += stages * DEPTH;
        next += stages * DEPTH * (int64)(ADJACENT == CHANNELS ? 1 : (Offset)problem.x.c);
    }

    // IN_PAIRS: the tile's own columns, as one vector, and of those beside what no lane beside has.
    __device__ __forceinline__ void fetch_pixels(unsigned wanted, Offset pitch)
    {
        Offset further = 0;
        #pragma unroll
        for (int r = 0; r < PATCH; ++r, further += pitch) {
            keep(further);  // or there are three ways to four rows, of more instructions each
            const Element* row = next + further;
            const auto loads = [&](int s) { return wanted >> bit_of(r, s) & 1; };
            #pragma unroll
            for (int s = 0; s < PATCH; s += IN_PAIRS ? PATCH - 1 : 1)
                values[r][s] = loads(s) ? widened(row[s]) : Accumulator(0);
            if constexpr (IN_PAIRS) {
                Several<MINIMAL> own = {};
                if (loads(1)) own = several<MINIMAL>(row + 1);
                #pragma unroll
                for (int s = 0; s < MINIMAL; ++s) values[r][1 + s] = widened(own.lane[s]);
            }
        }
    }

    // All lanes of a warp come here.
    __device__ __forceinline__ void transform()
    {
        #pragma unroll
        for (int r = 0; r < PATCH && IN_PAIRS; ++r) {
            const Accumulator left = __shfl_up_sync(~0u, values[r][MINIMAL], 1);
            const Accumulator right = __shfl_down_sync(~0u, values[r][1], 1);
            if (inside & FROM_LEFT) values[r][0] = left;
            if (inside & FROM_RIGHT) values[r][PATCH - 1] = right;
        }
        transform_input(values);
    }

    __device__ __forceinline__ void put(Stage& stage) const
    {
        Accumulator* own = &stage.tiles[0][0][0] + place;
        #pragma unroll
        for (int product = 0; product < PRODUCTS; ++product)
            own[product * DEPTH * TILES] = values[product / PATCH][product % PATCH];
    }
};

// A thread's share of a stage's filters, which lie in `packed` as they will in shared memory.
struct Share {
    Vector vectors[OWN_VECTORS];

    __device__ __forceinline__ void fetch(const Accumulator* __restrict__ own)
    {
        #pragma unroll
        for (int v = 0; v < OWN_VECTORS; ++v) vectors[v] = vector_at(own[v * THREADS * VECTOR]);
    }

    __device__ __forceinline__ void put(Stage& stage) const
    {
        Accumulator* own = &stage.filters[0][0][0] + threadIdx.x * VECTOR;
        #pragma unroll
        for (int v = 0; v < OWN_VECTORS; ++v) vector_at(own[v * THREADS * VECTOR]) = vectors[v];
    }
};

// What a thread multiplies: OWN_PRODUCTS of the products, in each EACH filters and EACH tiles.
struct Place {
    int product, filter_lane, tile_lane;

    __device__ __forceinline__ Place()
    {
        const int lane = threadIdx.x % 32;
        product = threadIdx.x / 32 * OWN_PRODUCTS;
        filter_lane = (lane & 1) | (lane >> 1 & 6);
        tile_lane = (lane >> 1 & 1) | (lane >> 3 & 2);
    }
};

using Sums = Accumulator[OWN_PRODUCTS][EACH][EACH];

__device__ __forceinline__ void multiply(Sums& sums, const Stage& stage, const Place& place)
{
    constexpr int TILE_BLOCK = TILE_LANES * VECTOR, FILTER_BLOCK = FILTER_LANES * VECTOR;
    #pragma unroll
    for (int channel = 0; channel < DEPTH; ++channel) {
        const int swizzle = tile_place(channel, 0);  // its high bit exchanges the blocks, the others the lanes
        const int tile = (place.tile_lane * VECTOR) ^ (swizzle % TILE_BLOCK);
        #pragma unroll
        for (int own = 0; own < OWN_PRODUCTS; ++own) {
            alignas(16) Accumulator a[EACH], b[EACH];
            const Accumulator* filters = stage.filters[place.product + own][channel] + place.filter_lane * VECTOR;
            const Accumulator* tiles = stage.tiles[place.product + own][channel] + tile;
            #pragma unroll
            for (int v = 0; v < 2; ++v) {
                vector_at(a[v * VECTOR]) = vector_at(filters[v * FILTER_BLOCK]);
                vector_at(b[v * VECTOR]) = vector_at(tiles[(v * TILE_BLOCK) ^ (swizzle / TILE_BLOCK * TILE_BLOCK)]);
            }
            #pragma unroll
            for (int i = 0; i < EACH; ++i)
                #pragma unroll
                for (int j = 0; j < EACH; ++j) sums[own][i][j] += a[i] * b[j];
        }
    }
}

// The sums of SLOTS filters, numbers 2 * round and 2 * round + 1 of each thread, into shared memory.
__device__ __forceinline__ void put_sums(const Sums& sums, int round, const Place& place)
{
    #pragma unroll
    for (int own = 0; own < OWN_PRODUCTS; ++own)
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int slot = i * FILTER_LANES + place.filter_lane;
            #pragma unroll
            for (int v = 0; v < 2; ++v) {
                const int tile = (v * TILE_LANES + place.tile_lane) * VECTOR;
                Vector vector;
                #pragma unroll
                for (int j = 0; j < VECTOR; ++j) vector.lane[j] = sums[own][2 * round + i][v * VECTOR + j];
                vector_at(memory.sums[place.product + own][slot][sum_place(slot, tile)]) = vector;
            }
        }
}

// Where an output lies in a split's part of `partial`: so that what a warp stores are neighbours.
__device__ __forceinline__ int64 partial_place(const Problem& problem, int n, int k, int p, int q)
{
    if constexpr (ADJACENT == CHANNELS) return (((int64)n * problem.P + p) * problem.Q + q) * problem.K + k;
    return (((int64)n * problem.K + k) * problem.P + p) * problem.Q + q;
}

struct alignas(STORED * sizeof(Accumulator)) Pixels { Accumulator lane[STORED]; };

// One tile's outputs of one filter, from shared memory to y, or to this split's part of `partial`.
__device__ __forceinline__ void finish(const Problem& problem, const Output& output, Accumulator* __restrict__ partial,
                                       const Corner& corner, int slot, int tile, int k)
{
    Accumulator sums[PATCH][PATCH], outputs[MINIMAL][MINIMAL];
    #pragma unroll
    for (int product = 0; product < PRODUCTS; ++product)
        sums[product / PATCH][product % PATCH] = memory.sums[product][slot][sum_place(slot, tile)];
    transform_output(outputs, sums);
    #pragma unroll
    for (int i = 0; i < MINIMAL; ++i)
        #pragma unroll
        for (int j = 0; j < MINIMAL; j += STORED)
            if (corner.p + i < problem.P && corner.q + j < problem.Q) {
                if constexpr (SPLIT) {
                    Pixels pixels;
                    #pragma unroll
                    for (int e = 0; e < STORED; ++e) pixels.lane[e] = outputs[i][j + e];
                    const int64 place = partial_place(problem, corner.n, k, corner.p + i, corner.q + j);
                    reinterpret_cast<Pixels&>(partial[place]) = pixels;
                } else {
                    store_pixels<STORED>(problem, output, corner.n, k, corner.p + i, corner.q + j, &outputs[i][j]);
                }
            }
}

// grid: groups * tile_blocks * filter_blocks and the splits, block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_winograd(const Element* __restrict__ x, const Accumulator* __restrict__ packed, Element* __restrict__ y,
                const Element* __restrict__ bias, const Element* __restrict__ residual,
                Accumulator* __restrict__ partial, Problem problem, Tiling tiling)
{
    unsigned block = blockIdx.x;
    const int first_filter = block % tiling.filter_blocks * FILTERS; block /= tiling.filter_blocks;
    const Index first_tile = (Index)(block % tiling.tile_blocks) * TILES;
    const int group = block / tiling.tile_blocks;
    const int stage = blockIdx.y * tiling.split;
    const int64 slab = ((int64)group * tiling.filter_blocks + first_filter / FILTERS) * tiling.stages + stage;
    packed += slab * SLAB + threadIdx.x * VECTOR;
    const int stages = min(tiling.split, tiling.stages - stage);
    partial += blockIdx.y * (int64)problem.N * problem.K * problem.P * problem.Q;

    const Place place;
    Patch patch;
    Share share;
    patch.start(x, problem, tiling, first_tile, group, stage + stages - PHASES);
    share.fetch(packed + (stages - 1) * (int64)SLAB);
    if (patch.is_due(PHASES - 1)) {
        patch.fetch(problem);
        patch.transform();
        patch.put(memory.stages[0]);
    }
    patch.turn(problem, PHASES - stages);
    share.put(memory.stages[0]);
    __syncthreads();

    Sums sums = {};
    for (int left = stages; left > 0; left -= PHASES) {
        patch.fetch(problem);
        patch.turn(problem, PHASES);
        #pragma unroll
        for (int phase = 0; phase < PHASES; ++phase, packed += SLAB) {
            share.fetch(packed);
            multiply(sums, memory.stages[phase % 2], place);
            Stage& next = memory.stages[(phase + 1) % 2];
            share.put(next);
            if (phase == 0) patch.transform();
            if (patch.is_due(phase)) patch.put(next);
            __syncthreads();
        }
    }

    constexpr int ROWS = THREADS / TILES, PAIRS = SLOTS / ROWS;
    const int tile = ADJACENT == CHANNELS ? threadIdx.x / FILTER_LANES % TILES : threadIdx.x % TILES;
    const Corner corner = corner_of(tiling, first_tile + tile);
    #pragma unroll
    for (int round = 0; round < EACH / 2; ++round) {
        if (round) __syncthreads();
        put_sums(sums, round, place);
        __syncthreads();
        #pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const int slot = pair * ROWS + (ADJACENT == CHANNELS ? threadIdx.x % FILTER_LANES
                           + threadIdx.x / (FILTER_LANES * TILES) * FILTER_LANES : threadIdx.x / TILES);
            const int k = first_filter + round * SLOTS + slot;
            if (corner.exists && k < problem.Kg)
                finish(problem, {y, bias, residual}, partial, corner, slot, tile, group * problem.Kg + k);
        }
    }
}

// Add what the splits left in `partial`, in their order, and finish. grid: over the outputs, one thread each.
extern "C" __global__ void __launch_bounds__(SMALL)
sum_splits(const Accumulator* __restrict__ partial, Element* __restrict__ y, const Element* __restrict__ bias,
           const Element* __restrict__ residual, Problem problem, int splits)
{
    const int64 outputs = (int64)problem.N * problem.K * problem.P * problem.Q;
    const int64 index = (int64)blockIdx.x * SMALL + threadIdx.x;
    if (index >= outputs) return;
    Accumulator sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * outputs + index];

    Index rest = index;
    int k = 0;
    if constexpr (ADJACENT == CHANNELS) { k = rest % problem.K; rest /= problem.K; }
    const int q = rest % problem.Q; rest /= problem.Q;
    const int p = rest % problem.P; rest /= problem.P;
    if constexpr (ADJACENT != CHANNELS) { k = rest % problem.K; rest /= problem.K; }
    store(problem, {y, bias, residual}, rest, k, p, q, sum);
}

// Transform w. grid: over groups * filter_blocks, the channels of their stages, CHUNK a block, and the places of their
// filters in a stage, WINDOWS a block; block: FILTER_THREADS.
static_assert(FILTERS % WINDOWS == 0 && PHASES * DEPTH % CHUNK == 0);
#if __CUDA_ARCH__ == 750  // threads of a multiprocessor
constexpr int AT_ONCE = 1024;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000 || __CUDA_ARCH__ == 1030
constexpr int AT_ONCE = 2048;
#else
constexpr int AT_ONCE = 1536;
#endif
extern "C" __global__ void __launch_bounds__(FILTER_THREADS, AT_ONCE / FILTER_THREADS)
transform_filters(const Element* __restrict__ w, Accumulator* __restrict__ packed, Problem problem, Tiling tiling)
{
    constexpr int ACROSS = FILTERS / WINDOWS;
    const int first_place = blockIdx.x % ACROSS * WINDOWS, chunks = tiling.stages * DEPTH / CHUNK;
    const int first_channel = blockIdx.x / ACROSS % chunks * CHUNK, block = blockIdx.x / ACROSS / chunks;
    const int first_filter = block % tiling.filter_blocks * FILTERS, group = block / tiling.filter_blocks;
    const int place = first_place + threadIdx.x % WINDOWS, brought = first_place + threadIdx.x / CHUNK;
    const int channel = first_channel + threadIdx.x / WINDOWS;

    Accumulator window[TAPS][TAPS], transformed[PATCH][PATCH];
    own_window(window, w, problem, group, first_filter + filter_at(place), first_filter + filter_at(brought),
               first_channel);
    transform_filter(transformed, window);
    packed += ((int64)block * tiling.stages + channel / DEPTH) * SLAB + channel % DEPTH * FILTERS + place;
    #pragma unroll
    for (int product = 0; product < PRODUCTS; ++product)
        packed[product * DEPTH * FILTERS] = transformed[product / PATCH][product % PATCH];
}
