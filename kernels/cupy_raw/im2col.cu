// im2col: every window of the input becomes a column of a matrix, so that the convolution is one matrix product.
//
//     x, one channel       columns, 2x2 window                      y = packed^T * columns     (gemm.cu)
//     a b c                r,s   one column per output
//     d e f                0,0   a b d e
//     g h i                0,1   b c e f
//                          1,0   d e g h
//                          1,1   e f h i
//
// `gather_columns` writes the columns of one slice of the outputs, `pack_weights` the filters beside them; both pad to
// the GEMM's tiles, so that only these two know of edges, strides and 16-bit types.
//
// Who computes what: one thread, one output pixel and CHANNELS_PER_THREAD channels: it reads their R * S pixels (the
// cache serves what neighbouring windows share) and writes them down R * S rows; a warp writes 128 bytes per row.
// What it costs: the matrix is R * S times as large as x and is written and read once, hence in slices.
// Limits: none on the problem. Even a 1x1 window is copied, where x itself could serve.
// Source: Chellapilla, Puri and Simard, High performance convolutional neural networks for document processing, 2006.
//
// Compiled with the constants of problem.cuh and gemm_layout.cuh.

#include "gemm_layout.cuh"

constexpr int THREADS = 256;
constexpr int TAPS = R * S;
constexpr int CHANNELS_PER_THREAD = 8;  // with channels last: one 32-byte sector of floats per pixel

// grid: x over the slice's padded pixels, y over channels (in steps of CHANNELS_PER_THREAD).
extern "C" __global__ void __launch_bounds__(THREADS)
gather_columns(const Element* __restrict__ x, Accumulator* __restrict__ columns, Problem problem, Slice slice)
{
    const int m = blockIdx.x * THREADS + threadIdx.x;
    if (m >= slice.padded) return;
    const bool wanted = m < slice.pixels;

    Index pixel = slice.first + m;
    const int q = pixel % problem.Q; pixel /= problem.Q;
    const int p = pixel % problem.P, n = pixel / problem.P;
    const int h0 = p * STRIDE_H - problem.top, w0 = q * STRIDE_W - problem.left;
    columns += place_of<PIXEL_LANES>(m);

    for (int chunk = blockIdx.y; chunk < ceil_div(problem.C, CHANNELS_PER_THREAD); chunk += gridDim.y)
        for (int c = chunk * CHANNELS_PER_THREAD; c < min((chunk + 1) * CHANNELS_PER_THREAD, problem.C); ++c) {
            const Element* corner = x + offset(problem.x, n, c, h0, w0);
            const int group = c / problem.Cg, first_row = c % problem.Cg * TAPS;
            Accumulator* column = columns + ((int64)group * slice.depth + first_row) * slice.padded;
            for (int r = 0; r < R; ++r)
                for (int s = 0; s < S; ++s) {
                    const bool inside = wanted && (unsigned)(h0 + r * DILATION_H) < problem.H
                                     && (unsigned)(w0 + s * DILATION_W) < problem.W;
                    const Offset at = offset(problem.x, 0, 0, r * DILATION_H, s * DILATION_W);
                    *column = inside ? widened(corner[at]) : Accumulator(0);
                    column += slice.padded;
                }
            if (c % problem.Cg == problem.Cg - 1)
                for (int row = first_row + TAPS; row < slice.depth; ++row, column += slice.padded) *column = 0;
        }
}

// grid: over groups * depth * filters, one thread each.
extern "C" __global__ void __launch_bounds__(THREADS)
pack_weights(const Element* __restrict__ w, Accumulator* __restrict__ packed, Problem problem, Slice slice)
{
    const int64 index = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (index >= (int64)problem.groups * slice.depth * slice.filters) return;
    const int k = index % slice.filters;
    const int64 row = index / slice.filters;
    const int tap = row % slice.depth, group = row / slice.depth;
    const bool inside = k < problem.Kg && tap < problem.Cg * TAPS;
    const Offset at = offset(problem.w, group * problem.Kg + k, tap / TAPS, tap % TAPS / S, tap % S);
    packed[row * slice.filters + place_of<FILTERS_APART>(k)] = inside ? widened(w[at]) : Accumulator(0);
}
