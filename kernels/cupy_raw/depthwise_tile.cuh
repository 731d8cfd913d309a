// How planes are cut into blocks by depthwise.cu and depthwise_input_grad.cu; depthwise_tiles.py chooses, depthwise.py's
// tile_struct fills it.

#pragma once

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
