// Add what the splits of a product left in `partial`, splits x groups x filters x tiles_m * TILE_M, always in the same
// order, and finish. Filters and pixels are padded to whole tiles; tensor_core.cu writes them in their own order
// (implicit_gemm.cu in its lanes' order, and has a sum of its own).
//
// Compiled with -DTILE_M, and the constants of problem.cuh and epilogue.cuh.

#include "cut.cuh"
#include "epilogue.cuh"

// grid: over K * pixels, one thread each.
extern "C" __global__ void __launch_bounds__(256)
sum_splits(const Accumulator* __restrict__ partial, Element* __restrict__ y, const Element* __restrict__ bias,
           const Element* __restrict__ residual, Problem problem, Cut cut, int splits)
{
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    if (index >= problem.K * cut.pixels) return;
    Index pixel = index % cut.pixels;
    const int k = index / cut.pixels;
    const int64 row = (int64)(k / problem.Kg) * cut.filters + k % problem.Kg, pitch = (int64)cut.tiles_m * TILE_M;
    partial += row * pitch + pixel;
    Accumulator sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * problem.groups * cut.filters * pitch];
    const int q = pixel % problem.Q; pixel /= problem.Q;
    store(problem, {y, bias, residual}, pixel / problem.P, k, pixel % problem.P, q, sum);
}
