// How a product of filters and pixels is cut into blocks; implicit_gemm.py's cut_struct fills it. Compiled with
// -DTILE_K -DTILE_M (filters and pixels of a tile) and -DSPLIT (some tiles are).

#pragma once

#include "problem.cuh"

// Division by a number that the launcher knew: n / d = n * multiplier / 2^(32 + shift) for n < 2^31.
struct Divisor { unsigned multiplier; int shift; };
struct Divided { Index quotient; int rest; };
__device__ __forceinline__ Divided divide(Index n, int by, const Divisor& divisor)
{
    if constexpr (WIDE) return {n / by, (int)(n % by)};
    const unsigned quotient = by == 1 ? n : (unsigned)((uint64)(unsigned)n * divisor.multiplier >> 32) >> divisor.shift;
    return {quotient, (int)(n - quotient * by)};
}

struct Cut {
    int64 pixels;          // N * P * Q
    int tiles_m;           // tiles along the pixels
    int filters, depth;    // padded
    int channels;          // of a group, padded, where they are inner
    int stages;            // of one split
    int whole, split_tiles;  // tiles that are one block each; those behind them, of one block for each split
    Divisor by_q, by_p;
};

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
