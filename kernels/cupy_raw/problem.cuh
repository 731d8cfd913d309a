// One convolution as a kernel's argument; parameters.py fills it, field by field, and a test compares the two layouts.
//
// x: N x C x H x W, w: K x Cg x R x S, y and residual: N x K x P x Q, in logical order whatever their order in memory:
// strides count elements and may be negative or zero.
// Compiled with -DR -DS -DSTRIDE_H -DSTRIDE_W -DDILATION_H -DDILATION_W, so that loops over the window unroll, and
// with -DWIDE=1 where an array spans 2^31 elements or more. Everywhere else 32-bit offsets do, and cost fewer
// instructions.

#pragma once

#include "storage.cuh"

using int64 = long long;
using uint64 = unsigned long long;

template <bool> struct Wide { using Offset = int; using Index = unsigned; };
template <> struct Wide<true> { using Offset = int64; using Index = uint64; };
using Offset = Wide<WIDE>::Offset;  // of an element within its array
using Index = Wide<WIDE>::Index;    // numbers outputs, and those of the last block that are none

// Keep what was worked out once from the compiler, which would do it anew in each stage; not in 64 bits, which want two
// registers each.
__device__ __forceinline__ void keep(int& distance) { asm volatile("" : "+r"(distance)); }
__device__ __forceinline__ void keep(int64&) {}

// blockIdx.x, read anew: of blockIdx the compiler knows that it has worked out the tile already, and would keep that in
// registers throughout the loop.
__device__ __forceinline__ unsigned block_again()
{
    unsigned x;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    return x;
}

struct Strides { int64 n, c, h, w; };  // of w: filter, channel, row, column of the window

struct Problem {
    Strides x, w, y, residual;
    int64 bias;
    int N, C, H, W, K, P, Q;
    int Cg, Kg, groups;  // channels and filters of one group
    int top, left;       // padding
    Accumulator slope;   // of leaky_relu
};

// A row outside of every image, whatever is added to it: 2^31 or more as unsigned, and no overflow on the way.
constexpr int FAR = -0x7fffffff - 1;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ Offset offset(const Strides& strides, int n, int c, int h, int w)
{
    return n * (Offset)strides.n + c * (Offset)strides.c + h * (Offset)strides.h + w * (Offset)strides.w;
}
