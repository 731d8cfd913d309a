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
// Who computes what: transform_tiles, one thread a tile of 8 channels, one after the other; a warp's 32 tiles are
// neighbours, and so are the words that it writes to each of 36 rows. transform_products, one thread a tile of one
// filter; its neighbours are filters where the channels of y lie side by side, elsewhere tiles: gemm.cu writes
// `products` in that order.
// Sectors of a request, counted in the emulator (NCHW): 4, the least, wherever the transforms meet the workspace. A
// warp's loads of x lie four pixels apart and meet 15, its stores to y 16; its loads of w, filters apart, 32. The same
// sectors are met again by requests beside each, out of L1 or L2. Loads and stores of 128 bits would spare that.
// What it costs: a patch is 36 numbers for 16 new pixels, so columns are 2.25 times x and products 2.25 times y, each
// written once and read once. In exchange there are 9/16 of the multiplications of the fused kernel's F(2 x 2). That
// pays where channels and filters are enough to hide the moving; slices keep the workspace to 64 MiB and the filters.
// Bank conflicts: none but gemm.cu's, which has none; the transforms share nothing.
// Rounding: about three times that of F(2 x 2) (accuracy.py), with the points 0, +-sqrt(1/2), +-sqrt(2). NaN and
// infinity in x reach all outputs of the tiles that read them.
// Limits: 3 x 3, stride 1, dilation 1. Never run on hardware.
// Sources: Lavin and Gray, CVPR 2016; Barabasz et al., ACM TOMS 2020 (the points).
//
// Compiled with the constants of problem.cuh, winograd.cuh and epilogue.cuh, and -DTOGETHER=1 where the channels of a
// pixel of y lie side by side in memory.

#include "epilogue.cuh"
#include "gemm_layout.cuh"
#include "winograd.cuh"

constexpr int THREADS = 256;
constexpr int CHANNELS_PER_THREAD = 8;  // with channels last: one 32-byte sector of floats per pixel
static_assert(DEPTH % CHANNELS_PER_THREAD == 0, "rows are padded to whole chunks");

struct Corner { int n, p, q; };

// The image and the first row and column of y of a tile.
__device__ __forceinline__ Corner corner_of(const Problem& problem, int64 tile)
{
    const unsigned down = ceil_div(problem.P, MINIMAL), across = ceil_div(problem.Q, MINIMAL);
    Index rest = tile;
    const int q = rest % across * MINIMAL; rest /= across;
    return {(int)(rest / down), (int)(rest % down) * MINIMAL, q};
}

// grid: x over the slice's padded tiles, y over channels (in steps of CHANNELS_PER_THREAD).
extern "C" __global__ void __launch_bounds__(THREADS)
transform_tiles(const Element* __restrict__ x, Accumulator* __restrict__ columns, Problem problem, Slice slice)
{
    const int m = blockIdx.x * THREADS + threadIdx.x;
    if (m >= slice.padded) return;
    const bool exists = m < slice.pixels;
    const Corner corner = corner_of(problem, slice.first + (exists ? m : 0));
    const int h0 = corner.p - problem.top, w0 = corner.q - problem.left;
    columns += place_of<PIXEL_LANES>(m);
    const int64 plane = (int64)problem.groups * slice.depth * slice.padded;

    const int rows = problem.groups * slice.depth;
    for (int chunk = blockIdx.y; chunk < rows / CHANNELS_PER_THREAD; chunk += gridDim.y)
        for (int row = chunk * CHANNELS_PER_THREAD; row < (chunk + 1) * CHANNELS_PER_THREAD; ++row) {
            const int group = row / slice.depth, c = row % slice.depth;
            const bool wanted = exists && c < problem.Cg;
            const Offset first = offset(problem.x, corner.n, group * problem.Cg + c, h0, w0);
            Accumulator patch[PATCH][PATCH];
            #pragma unroll
            for (int r = 0; r < PATCH; ++r)
                #pragma unroll
                for (int s = 0; s < PATCH; ++s) {
                    const bool inside = wanted && (unsigned)(h0 + r) < problem.H && (unsigned)(w0 + s) < problem.W;
                    patch[r][s] = inside ? widened(x[first + offset(problem.x, 0, 0, r, s)]) : Accumulator(0);
                }
            transform_input(patch);
            Accumulator* column = columns + (int64)row * slice.padded;
            #pragma unroll
            for (int product = 0; product < PRODUCTS; ++product)
                column[product * plane] = patch[product / PATCH][product % PATCH];
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
        for (int j = 0; j < MINIMAL; ++j)
            if (corner.p + i < problem.P && corner.q + j < problem.Q)
                store(problem, {y, bias, residual}, corner.n, k, corner.p + i, corner.q + j, outputs[i][j]);
}

// grid: over groups * depth * filters, one thread each.
extern "C" __global__ void __launch_bounds__(THREADS)
transform_filters(const Element* __restrict__ w, Accumulator* __restrict__ packed, Problem problem, Slice slice)
{
    const int64 index = (int64)blockIdx.x * THREADS + threadIdx.x;
    const int64 rows = (int64)problem.groups * slice.depth;
    if (index >= rows * slice.filters) return;
    const int k = index % slice.filters, row = index / slice.filters;
    const int group = row / slice.depth, c = row % slice.depth;
    const bool exists = k < problem.Kg && c < problem.Cg;

    Accumulator window[TAPS][TAPS], transformed[PATCH][PATCH];
    #pragma unroll
    for (int r = 0; r < TAPS; ++r)
        #pragma unroll
        for (int s = 0; s < TAPS; ++s)
            window[r][s] = exists ? widened(w[offset(problem.w, group * problem.Kg + k, c, r, s)]) : Accumulator(0);
    transform_filter(transformed, window);
    packed += (int64)row * slice.filters + place_of<FILTER_LANES>(k);
    #pragma unroll
    for (int product = 0; product < PRODUCTS; ++product)
        packed[product * rows * slice.filters] = transformed[product / PATCH][product % PATCH];
}
