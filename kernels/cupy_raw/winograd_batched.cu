// Winograd F(4 x 4, 3 x 3) in steps: 36 multiplications for 16 outputs and a channel where the windows take 144, as 36
// matrix products between two transforms. numba_cpu/winograd_matrices.py tells the algorithm.
//
//     x  --transform_tiles-->  columns  --conv2d_gemm, 36 times-->  products  --transform_products-->  y
//        B^T patch B           36 x Cg x tiles    packed^T *        36 x Kg x tiles   A^T . A, bias, activation
//     w  --transform_filters-> packed, 36 x Cg x filters
//
// The products are im2col's, gemm.cu, with 36 times the groups: `columns` and `packed` lie as gemm_layout.cuh says, a
// row being a channel and a column a tile of 4 x 4 outputs. Only the transforms know of edges, strides, 16-bit types.
//
// Who computes what, so that a warp's loads and stores meet no more sectors than they must:
//     transform_tiles      PIXELS: a thread transforms the patches of one tile, one channel after the other; a warp's
//                          tiles are neighbours. Each loads the columns that are the tile's own, as vectors, and has
//                          the two beside from the lanes beside; the warp's first and last tile load one more each:
//
//                                  | lane 0 | lane 1 | ...
//                            row  .|. . . .|. . . .|.         patch of lane 1: its own four and a . of either side
//
//                          CHANNELS: a thread transforms two channels of one tile; four threads take 8 channels, a
//                          sector of floats, and a warp takes 8 tiles whose places in `columns` are neighbours. Of
//                          float64 one channel, for want of registers: of 4 tiles, whose columns fill a sector.
//                          NONE: one tile a thread, word by word: windows not padded by one, odd strides, odd channels.
//     transform_products   a thread has one tile of one filter. Its neighbours are filters where the channels of y lie
//                          side by side, elsewhere tiles: gemm.cu writes `products` in that order. A tile's row leaves,
//                          and the residual's comes, as vectors.
//     transform_filters    a thread transforms one window, which reaches it as winograd_filters.cuh tells.
// Sectors beside the least, float32, counted in the emulator: 1.0 where the transforms meet the workspace, w, y and,
// with channels last, x; 1.1 of x of 56 x 56, for the ends of warps, and 1.24 of 28 x 28, whose rows are 3.5 sectors.
// Rows that are no multiple of 16 bytes are loaded by 8 or 4: 2.6 of 14 x 14. Patches loaded word by word met 4.2, 4.7
// and 5.2, 8 with channels last, stores to y 4 to 5, w 8, and with channels last gemm.cu's stores 2. Four pixels
// of float64 are two vectors a sector apart from the next lane's: 2 of x and of y where the pixels lie side by side.
// What it costs: a patch is 36 numbers for 16 new pixels, so columns are 2.25 times x and products 2.25 times y, each
// written once and read once. In exchange there are 9/16 of the multiplications of the fused kernel's F(2 x 2). That
// pays where channels and filters are enough to hide the moving; slices keep the workspace to 64 MiB and the filters.
// Instructions of a warp, PTX, before and with this: of 56 x 56 x 16, padded, in and out, 68,260 and 234,024 to 58,762
// and 171,696, channels last 68,260 and 233,632 to 64,524 and 233,632; of 64 filters 9,952 to 12,512.
// Cycles on sm_75, simulated, 30 multiprocessors, one image of 64 x 56 x 56, 64 filters, before and with this: tiles
// 34,717 to 31,262 (43,839 when a row was handed over before the next was under way), channels last 87,850 to 15,481;
// products 23,898 to 21,167 and 56,543 to 45,333; filters 5,035 to 4,076.
// Registers: 64 to transform tiles, 128 (sm_100 158) with channels last, where a thread holds two patches; these, asked
// for two blocks, spill on sm_100 and 120. In float64 up to 128, which leaves room for two blocks, and 48 to 72 to
// transform filters.
// Bank conflicts: none: filters pass through shared memory as winograd_filters.cuh tells, products as register_tile.cuh
// does, and the other transforms have none of it.
// Rounding: about three times that of F(2 x 2) (accuracy.py), with the points 0, +-sqrt(1/2), +-sqrt(2). NaN and
// infinity in x reach all outputs of the tiles that read them.
// Limits: 3 x 3, stride 1, dilation 1. Never run on hardware.
// Sources: Lavin and Gray, CVPR 2016; Barabasz et al., ACM TOMS 2020 (the points).
//
// Compiled with the constants of problem.cuh, winograd.cuh and epilogue.cuh; -DADJACENT (CHANNELS: two of a pixel of x
// lie side by side and aligned; PIXELS: those of a row do, and rows are padded by one; NONE) and -DLOADED, so many
// pixels of a row at once; -DSTORED, so many of y and of the residual; -DTOGETHER=1 where the channels of y lie side by
// side; -DWEIGHTS, for winograd_filters.cuh.

#include "epilogue.cuh"
#include "gemm_layout.cuh"
#include "winograd_filters.cuh"

constexpr int THREADS = 256;
static_assert(DEPTH % CHUNK == 0, "rows are padded to whole chunks");
constexpr bool PAIRS = ADJACENT == CHANNELS && sizeof(Accumulator) == 4;
constexpr int AT_ONCE = PAIRS ? 2 : 1;  // patches of a thread, of channels side by side
constexpr int SHARING = ADJACENT == CHANNELS ? CHUNK / AT_ONCE : 1;  // threads that share a tile's chunk
// Blocks of transform_tiles that a multiprocessor's registers must leave room for: 64, 80, 128, or as many as it takes.
constexpr bool WORD_BY_WORD = ADJACENT == NONE && sizeof(Element) == 2;
constexpr int TILING_BLOCKS = PAIRS ? 1 : sizeof(Accumulator) == 8 ? 2 : WORD_BY_WORD ? 3 : 4;

struct Corner { int n, p, q; };

// The image and the first row and column of y of a tile.
__device__ __forceinline__ Corner corner_of(const Problem& problem, int64 tile)
{
    const unsigned down = ceil_div(problem.P, MINIMAL), across = ceil_div(problem.Q, MINIMAL);
    Index rest = tile;
    const int q = rest % across * MINIMAL; rest /= across;
    return {(int)(rest / down), (int)(rest % down) * MINIMAL, q};
}

using Patch = Accumulator[PATCH][PATCH];

// From `own` on, the tile's first own column in the patch's first row. first, last: no lane beside has the tile before,
// or behind; never both, as a slice that ends with a warp's first lane ends an image. All lanes of a warp come here.
__device__ __forceinline__ void fetch_pixels(Patch& patch, const Element* own, const Problem& problem,
                                             const Corner& corner, bool wanted, bool first, bool last)
{
    const bool before = corner.q > 0, behind = corner.q + MINIMAL < problem.W;  // are there columns of the image
    const bool alone = first ? before : last && behind;                         // which no lane has
    Accumulator further[PATCH];
    #pragma unroll
    for (int r = 0; r < PATCH; ++r, own += problem.x.h) {  // all rows are under way before the first is waited for
        const bool inside = wanted && (unsigned)(corner.p - problem.top + r) < problem.H;
        #pragma unroll
        for (int s = 0; s < MINIMAL; s += LOADED) {
            Several<LOADED> columns = {};
            if (inside && corner.q + s < problem.W) columns = several<LOADED>(own + s);
            #pragma unroll
            for (int e = 0; e < LOADED; ++e) patch[r][1 + s + e] = widened(columns.lane[e]);
        }
        further[r] = inside && alone ? widened(own[first ? -1 : MINIMAL]) : Accumulator(0);
    }
    #pragma unroll
    for (int r = 0; r < PATCH; ++r) {
        const Accumulator left = __shfl_up_sync(~0u, patch[r][MINIMAL], 1);
        const Accumulator right = __shfl_down_sync(~0u, patch[r][1], 1);
        patch[r][0] = first ? further[r] : before ? left : 0;
        patch[r][PATCH - 1] = last ? further[r] : behind ? right : 0;
    }
}

// From `corner` on, which may lie outside the image: h, w. Of channels that lie side by side, one patch each.
__device__ __forceinline__ void fetch_elements(Patch (&patches)[AT_ONCE], const Element* corner, const Problem& problem,
                                               int h, int w, bool wanted)
{
    #pragma unroll
    for (int r = 0; r < PATCH; ++r)
        #pragma unroll
        for (int s = 0; s < PATCH; ++s) {
            Several<AT_ONCE> channels = {};
            if (wanted && (unsigned)(h + r) < problem.H && (unsigned)(w + s) < problem.W)
                channels = several<AT_ONCE>(corner + offset(problem.x, 0, 0, r, s));
            #pragma unroll
            for (int e = 0; e < AT_ONCE; ++e) patches[e][r][s] = widened(channels.lane[e]);
        }
}

// grid: x over the slice's padded tiles, SHARING threads each, y over channels (in steps of CHUNK).
extern "C" __global__ void __launch_bounds__(THREADS, TILING_BLOCKS)
transform_tiles(const Element* __restrict__ x, Accumulator* __restrict__ columns, Problem problem, Slice slice)
{
    const int number = (blockIdx.x * THREADS + threadIdx.x) / SHARING;
    const int m = ADJACENT == CHANNELS ? number_at<PIXEL_LANES>(number) : number;
    const int lane = threadIdx.x % 32;
    if (number - lane / SHARING >= slice.padded) return;  // whole warps; of float64 half a warp may be left
    const bool exists = m < slice.pixels;
    const Corner corner = corner_of(problem, slice.first + (exists ? m : 0));
    const int h = corner.p - problem.top, w = corner.q - problem.left;
    const int64 plane = (int64)problem.groups * slice.depth * slice.padded;
    columns += place_of<PIXEL_LANES>(m);

    const int rows = problem.groups * slice.depth;
    for (int chunk = blockIdx.y; chunk < rows / CHUNK; chunk += gridDim.y)
        for (int i = 0; i < CHUNK / SHARING; i += AT_ONCE) {
            const int row = chunk * CHUNK + threadIdx.x % SHARING * AT_ONCE + i;
            const int group = row / slice.depth, c = row % slice.depth;
            const bool wanted = exists && c < problem.Cg;
            const Element* first = x + offset(problem.x, corner.n, group * problem.Cg + c, h, w);
            Patch patches[AT_ONCE];
            if constexpr (ADJACENT == PIXELS)
                fetch_pixels(patches[0], first + 1, problem, corner, wanted, lane == 0,
                             lane == 31 || (lane > 0 && m + 1 == slice.pixels));
            else
                fetch_elements(patches, first, problem, h, w, wanted);
            #pragma unroll
            for (int e = 0; e < AT_ONCE; ++e) {
                transform_input(patches[e]);
                Accumulator* column = columns + (int64)(row + e) * slice.padded;
                #pragma unroll
                for (int product = 0; product < PRODUCTS; ++product)
                    if (m < slice.padded) column[product * plane] = patches[e][product / PATCH][product % PATCH];
            }
        }
}

// grid: over the slice's tiles and all filters, one thread each.
extern "C" __global__ void __launch_bounds__(THREADS)
transform_products(const Accumulator* __restrict__ products, Element* __restrict__ y, const Element* __restrict__ bias,
                   const Element* __restrict__ residual, Problem problem, Slice slice)
{
    const int64 index = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (index >= (int64)problem.K * slice.pixels) return;
    const int k = TOGETHER ? index % problem.K : index / slice.pixels;
    const int m = TOGETHER ? index / problem.K : index % slice.pixels;
    const int64 plane = TOGETHER ? problem.K : (int64)problem.K * slice.padded;
    products += TOGETHER ? (int64)m * PRODUCTS * problem.K + k : (int64)k * slice.padded + m;

    Accumulator sums[PATCH][PATCH], outputs[MINIMAL][MINIMAL];
    #pragma unroll
    for (int product = 0; product < PRODUCTS; ++product)
        sums[product / PATCH][product % PATCH] = products[product * plane];
    transform_output(outputs, sums);
    const Corner corner = corner_of(problem, slice.first + m);
    #pragma unroll
    for (int i = 0; i < MINIMAL; ++i)
        #pragma unroll
        for (int j = 0; j < MINIMAL; j += STORED)
            if (corner.p + i < problem.P && corner.q + j < problem.Q)
                store_pixels<STORED>(problem, {y, bias, residual}, corner.n, k, corner.p + i, corner.q + j,
                                     &outputs[i][j]);
}

// grid: over filters, WINDOWS a block, and over groups * depth, CHUNK a block; block: FILTER_THREADS.
extern "C" __global__ void __launch_bounds__(FILTER_THREADS)
transform_filters(const Element* __restrict__ w, Accumulator* __restrict__ packed, Problem problem, Slice slice)
{
    const int across = slice.filters / WINDOWS, first_place = blockIdx.x % across * WINDOWS;
    const int first_row = blockIdx.x / across * CHUNK;
    const int place = first_place + threadIdx.x % WINDOWS, brought = first_place + threadIdx.x / CHUNK;

    Accumulator window[TAPS][TAPS], transformed[PATCH][PATCH];
    own_window(window, w, problem, first_row / slice.depth, number_at<FILTERS_APART>(place),
               number_at<FILTERS_APART>(brought), first_row % slice.depth);
    transform_filter(transformed, window);
    const int64 plane = (int64)problem.groups * slice.depth * slice.filters;
    packed += (int64)(first_row + threadIdx.x / WINDOWS) * slice.filters + place;
    #pragma unroll
    for (int product = 0; product < PRODUCTS; ++product)
        packed[product * plane] = transformed[product / PATCH][product % PATCH];
}
