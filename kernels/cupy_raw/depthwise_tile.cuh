// How planes are cut into blocks by depthwise.cu and depthwise_input_grad.cu, and how their outputs leave where these lie
// side by side; depthwise_tiles.py chooses, depthwise.py's tile_struct fills it.

#pragma once

#include "epilogue.cuh"
#include "staged_planes.cuh"

struct Tile {
    int planes, strips, columns;           // of a block at a time; strips of ROWS rows of outputs, or of places u
    int steps;                             // how often, each time so many rows further down; a gradient's: 1
    int across_p;                          // blocks down a plane
    int all_planes;                        // N * ceil(C / SIDE)
    int outputs_at, weights_at;            // in `words`
    Divisor by_columns, by_strips;
    Pitches pitches;
};

// `count` outputs, side by side in y as in `words` from `at` on, 128 bits at a time. residual lies like y.
__device__ __forceinline__ void store_side_by_side(const Problem& problem, const Output& output, int count, int at)
{
    Element* y = output.y;
    const Element* residual = output.residual;
    const bool together = residual && behind_boundary(residual) == behind_boundary(y);
    const auto finished = [&](Accumulator sum, const Element& more) {
        return activated(residual ? sum + widened(more) : sum, problem.slope);
    };
    const int lead = (LOAD - behind_boundary(y)) % LOAD, vectors = count < lead ? 0 : (count - lead) / LOAD;
    for (int index = threadIdx.x; index < vectors; index += blockDim.x) {
        const int from = lead + index * LOAD;
        Pack added, results;
        if (together) added = load_pack(residual + from);
        #pragma unroll
        for (int i = 0; i < LOAD; ++i)
            if (residual && !together) added.lane[i] = residual[from + i];
        #pragma unroll
        for (int v = 0; v < LOAD; v += VECTOR) {
            const Vector sums = reinterpret_cast<const Vector&>(words[at + from + v]);
            #pragma unroll
            for (int i = 0; i < VECTOR; ++i) round_to(results.lane[v + i], finished(sums.lane[i], added.lane[v + i]));
        }
        *reinterpret_cast<Pack*>(y + from) = results;
    }

    // What lies before the first whole vector, and behind the last.
    const int i = edge_element(lead, vectors, count);
    if (i >= 0) round_to(y[i], finished(words[at + i], residual ? residual[i] : Element()));
}
