// One convolution as a kernel's argument; parameters.py fills it, field by field, and a test compares the two layouts.
//
// x: N x C x H x W, w: K x Cg x R x S, y and residual: N x K x P x Q, in logical order whatever their order in memory:
// strides count elements and may be negative or zero. Offsets are 64-bit, since a tensor may pass 2^31 elements.
// Compiled with -DR -DS -DSTRIDE_H -DSTRIDE_W -DDILATION_H -DDILATION_W, so that loops over the window unroll, and with
// -DINDEX=unsigned, or uint64 where there are 2^31 outputs or more: the type that numbers outputs.

#pragma once

#include "storage.cuh"

using int64 = long long;
using uint64 = unsigned long long;
using Index = INDEX;

struct Strides { int64 n, c, h, w; };  // of w: filter, channel, row, column of the window

struct Problem {
    Strides x, w, y, residual;
    int64 bias;
    int N, C, H, W, K, P, Q;
    int Cg, Kg, groups;  // channels and filters of one group
    int top, left;       // padding
    Accumulator slope;   // of leaky_relu
};

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ int64 offset(const Strides& strides, int n, int c, int h, int w)
{
    return n * strides.n + c * strides.c + h * strides.h + w * strides.w;
}
