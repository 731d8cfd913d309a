// The second step of a weight gradient: add what each split of the pixels summed, always in the same order.
//
// Compiled with problem.cuh's constants (w is grad_w).

#include "weight_grad_splits.cuh"

// grid: over the weights, one thread each.
extern "C" __global__ void __launch_bounds__(256)
finish_weight_grad(const Accumulator* __restrict__ partial, Element* __restrict__ grad_w, Problem problem,
                   Splits splits)
{
    const int64 index = (int64)blockIdx.x * 256 + threadIdx.x;
    const int columns = problem.Cg * R * S;
    if (index >= (int64)problem.K * columns) return;
    const int d = index % columns, k = index / columns;
    const int64 row = (int64)(k / problem.Kg) * splits.filters + k % problem.Kg;
    partial += row * splits.columns + d;
    Accumulator sum = 0;
    for (int split = 0; split < splits.splits; ++split)
        sum += partial[(int64)split * problem.groups * splits.filters * splits.columns];
    round_to(grad_w[offset(problem.w, k, d / (R * S), d / S % R, d % S)], sum);
}
