// What happens to a finished sum: y = activation(sum + bias + residual), rounded once, at the store.
// Compiled with -DACTIVATION=IDENTITY, RELU, RELU6, SILU or LEAKY_RELU. bias and residual are null where absent.

#pragma once

#include "problem.cuh"

enum Activation { IDENTITY, RELU, RELU6, SILU, LEAKY_RELU };

__device__ __forceinline__ float exponential(float value) { return expf(value); }
__device__ __forceinline__ double exponential(double value) { return exp(value); }

// Comparisons are written so that a NaN fails them and is returned: fmax would lose it.
__device__ __forceinline__ Accumulator activated(Accumulator value, Accumulator slope)
{
    constexpr Accumulator zero = 0, six = 6, one = 1;
    if constexpr (ACTIVATION == RELU) return value < zero ? zero : value;
    if constexpr (ACTIVATION == RELU6) return value < zero ? zero : value > six ? six : value;
    if constexpr (ACTIVATION == SILU) return value / (one + exponential(-value));
    if constexpr (ACTIVATION == LEAKY_RELU) return value < zero ? value * slope : value;
    return value;
}

struct Output {
    Element* y;
    const Element* bias;
    const Element* residual;
};

// COUNT sums that lie side by side in y and in the residual; their biases so far apart.
template <int COUNT>
__device__ __forceinline__ void store_several(const Problem& problem, const Output& output, int n, int k, int p, int q,
                                              const Accumulator* sums, Offset bias_step)
{
    Several<COUNT> more, results;
    if (output.residual) more = several<COUNT>(output.residual + offset(problem.residual, n, k, p, q));
    #pragma unroll
    for (int e = 0; e < COUNT; ++e) {
        Accumulator sum = sums[e];
        if (output.bias) sum += widened(output.bias[k * (Offset)problem.bias + e * bias_step]);
        if (output.residual) sum += widened(more.lane[e]);
        round_to(results.lane[e], activated(sum, problem.slope));
    }
    *reinterpret_cast<Several<COUNT>*>(output.y + offset(problem.y, n, k, p, q)) = results;
}

// The sums of COUNT filters of a pixel, which lie side by side in y and in the residual. k: the first of them.
template <int COUNT>
__device__ __forceinline__ void store_filters(const Problem& problem, const Output& output, int n, int k, int p, int q,
                                              const Accumulator* sums)
{
    store_several<COUNT>(problem, output, n, k, p, q, sums, problem.bias);
}

// The sums of COUNT pixels of a row, which lie side by side in y and in the residual. p, q: the first of them.
template <int COUNT>
__device__ __forceinline__ void store_pixels(const Problem& problem, const Output& output, int n, int k, int p, int q,
                                             const Accumulator* sums)
{
    store_several<COUNT>(problem, output, n, k, p, q, sums, 0);
}

__device__ __forceinline__ void store(const Problem& problem, const Output& output, int n, int k, int p, int q,
                                      Accumulator sum)
{
    store_several<1>(problem, output, n, k, p, q, &sum, 0);
}
