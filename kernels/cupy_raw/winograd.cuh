// Winograd's transforms of one tile: matrices times a small square of numbers, from both sides.
//
// The matrices come from numba_cpu/winograd_matrices.py, where they are derived, as constants of the compilation: so a
// zero costs nothing and a one no multiplication.
// Compiled with -DMINIMAL, the outputs of a tile each way, and -DINPUT_MATRIX -DFILTER_MATRIX -DOUTPUT_MATRIX, their
// rows in braces.

#pragma once

#include "problem.cuh"

constexpr int TAPS = 3;                    // each way
constexpr int PATCH = MINIMAL + TAPS - 1;  // inputs of a tile each way
constexpr int PRODUCTS = PATCH * PATCH;    // of a tile, a filter and a channel

template <int ROWS, int COLUMNS> struct Matrix { Accumulator at[ROWS][COLUMNS]; };

template <int ROWS, int COLUMNS>
__device__ __forceinline__ Accumulator row_times(const Matrix<ROWS, COLUMNS>& matrix, int row,
                                                 const Accumulator (&vector)[COLUMNS])
{
    Accumulator sum = 0;
    bool empty = true;
    #pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        const Accumulator factor = matrix.at[row][j];
        if (factor == 0) continue;
        const Accumulator term = factor == 1 ? vector[j] : factor == -1 ? -vector[j] : factor * vector[j];
        sum = empty ? term : sum + term;
        empty = false;
    }
    return sum;
}

// matrix * square * transposed matrix
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void transform(Accumulator (&result)[ROWS][ROWS], const Matrix<ROWS, COLUMNS>& matrix,
                                          const Accumulator (&square)[COLUMNS][COLUMNS])
{
    Accumulator half[ROWS][COLUMNS];
    #pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        Accumulator column[COLUMNS];
        #pragma unroll
        for (int i = 0; i < COLUMNS; ++i) column[i] = square[i][j];
        #pragma unroll
        for (int i = 0; i < ROWS; ++i) half[i][j] = row_times(matrix, i, column);
    }
    #pragma unroll
    for (int i = 0; i < ROWS; ++i)
        #pragma unroll
        for (int j = 0; j < ROWS; ++j) result[i][j] = row_times(matrix, j, half[i]);
}

__device__ __forceinline__ void transform_input(Accumulator (&patch)[PATCH][PATCH])
{
    constexpr Matrix<PATCH, PATCH> matrix = {{INPUT_MATRIX}};
    transform(patch, matrix, patch);
}

__device__ __forceinline__ void transform_filter(Accumulator (&result)[PATCH][PATCH],
                                                 const Accumulator (&window)[TAPS][TAPS])
{
    constexpr Matrix<PATCH, TAPS> matrix = {{FILTER_MATRIX}};
    transform(result, matrix, window);
}

__device__ __forceinline__ void transform_output(Accumulator (&result)[MINIMAL][MINIMAL],
                                                 const Accumulator (&sums)[PATCH][PATCH])
{
    constexpr Matrix<MINIMAL, PATCH> matrix = {{OUTPUT_MATRIX}};
    transform(result, matrix, sums);
}
