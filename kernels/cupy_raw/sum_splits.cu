// Add what the splits of a product left in `partial`, TILE_K x TILE_M sums of every split tile, split by split, always in
// the same order, and finish. tensor_core.cu writes filters and pixels in their own order (implicit_gemm.cu in its lanes'
// order, and has a sum of its own), and inner whichever lie side by side in y.
//
// Compiled with the constants of cut.cuh, problem.cuh and epilogue.cuh, and -DALONG_FILTERS (1: these are inner).

#include "cut_job.cuh"
#include "epilogue.cuh"

// grid: over split_tiles * TILE_K * TILE_M, one thread each.
extern "C" __global__ void __launch_bounds__(256)
sum_splits(const Accumulator* __restrict__ partial, Element* __restrict__ y, const Element* __restrict__ bias,
           const Element* __restrict__ residual, Problem problem, Cut cut, int splits)
{
    static_assert(TILE_K * TILE_M % 256 == 0, "no block has threads to spare");
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    const Tile tile(cut.whole + (unsigned)(index / (TILE_K * TILE_M)), cut);
    constexpr int IN_ROW = ALONG_FILTERS ? TILE_K : TILE_M;
    const int row = index % (TILE_K * TILE_M) / IN_ROW, column = index % IN_ROW;
    const int filter = tile.first_filter + (ALONG_FILTERS ? column : row);
    const Index m = tile.first_pixel + (ALONG_FILTERS ? row : column);
    if (filter >= problem.Kg || m >= cut.pixels) return;
    partial += index;
    Accumulator sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * (int64)cut.split_tiles * TILE_K * TILE_M];
    const Index line = m / problem.Q;
    const int q = m % problem.Q, p = line % problem.P;
    store(problem, {y, bias, residual}, line / problem.P, tile.group * problem.Kg + filter, p, q, sum);
}
