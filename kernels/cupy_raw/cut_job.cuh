// Which tile of a cut a block computes, and what of it. Compiled with -DTILE_K -DTILE_M (filters and pixels of a tile) and
// -DSPLIT (some tiles are).

#pragma once

#include "cut.cuh"

// Where tile `number` begins: filters change first, then pixels, then groups.
struct Tile {
    Index first_pixel;
    int first_filter, group;

    __device__ __forceinline__ Tile(unsigned number, const Cut& cut)
    {
        const int across_k = cut.filters / TILE_K;
        const unsigned column = number / across_k;
        first_filter = (number - column * across_k) * TILE_K;
        group = column / cut.tiles_m;
        first_pixel = (Index)(column - group * cut.tiles_m) * TILE_M;
    }
};

// What a block computes: of a tile everything, or one of its splits. First come whole tiles, which fill waves, then the
// first split of each of the others, the second of each ...
struct Job {
    unsigned tile;
    int split;  // WHOLE_TILE: none

    static constexpr int WHOLE_TILE = -1;
    __device__ __forceinline__ Job(unsigned block, const Cut& cut) : tile(block), split(WHOLE_TILE)
    {
        if (!SPLIT || block < cut.whole) return;
        split = (block - cut.whole) / cut.split_tiles;
        tile = block - split * cut.split_tiles;
    }

    // The stages of it: all, or those of its split. blockIdx.y is zero, but if the compiler knew, it would make more
    // instructions of what is worked out from it in the loop.
    __device__ __forceinline__ int first_stage(const Cut& cut) const
    {
        return SPLIT ? max(split, 0) * cut.stages : blockIdx.y;
    }
    __device__ __forceinline__ int stages(const Cut& cut, int all) const
    {
        return SPLIT && split != WHOLE_TILE ? min(cut.stages, all - split * cut.stages) : all;
    }

    // Where its sums go among those of all splits: whole tiles of them, split by split.
    __device__ __forceinline__ int64 partial_tile(const Cut& cut) const
    {
        return (int64)split * cut.split_tiles + (tile - cut.whole);
    }
};
