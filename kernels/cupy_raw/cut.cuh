// How a product of filters and pixels is cut into blocks; implicit_gemm.py's cut_struct fills it.

#pragma once

#include "problem.cuh"

struct Cut {
    int64 pixels;          // N * P * Q
    int tiles_m;           // tiles along the pixels
    int filters, depth;    // padded
    int channels;          // of a group, padded, where they are inner
    int stages;            // of one split
};
