// How a product of filters and pixels is cut into blocks; cut.py's cut_struct fills it.

#pragma once

#include "problem.cuh"

// Division by a number that the launcher knew: n / d = 2 n * multiplier / 2^(32 + shift) for n < 2^31.
struct Divisor { unsigned multiplier; int shift; };
struct Divided { Index quotient; int rest; };
__device__ __forceinline__ Divided divide(Index n, int by, const Divisor& divisor)
{
    if constexpr (WIDE) return {n / by, (int)(n % by)};
    const unsigned quotient = __umulhi(2 * (unsigned)n, divisor.multiplier) >> divisor.shift;
    return {quotient, (int)(n - quotient * by)};
}

struct Cut {
    int64 pixels;          // N * P * Q
    int tiles_m;           // tiles along the pixels
    int filters, depth;    // padded
    int channels;          // of a group, padded, where they are inner
    int stages;            // of one split
    int whole, split_tiles, splits;  // tiles that are one block each; those behind them, of so many splits each
    Divisor by_q, by_p;
};
