// What a block of the implicit product brings of the weights, stage by stage: WEIGHTS tells how they lie.
//
//     PACKED        as pack_filters.cu leaves them: rows of d, filters side by side, so a stage is DEPTH rows of the tile
//     AS_THEY_LIE   filters are rows of numbers, and these are in the order of d already. No launch packs them
//
// AS_THEY_LIE: a thread takes CHUNK numbers of a filter as one load, and turns them around on the way to shared memory, four
// stores for one: 1 % of the instructions of 128 x 128, where a launch that packs costs 3 us and writes all weights.
// Bank conflicts: none. Two lanes hold a filter's upper and lower CHUNK and store them DEPTH / 2 rows apart, in the same
// bank: so in the lower half of the rows the FILTER_BLOCKs change places in pairs, and 32 lanes meet 32 banks. A thread
// multiplies a VECTOR of each of the two, which multiply_stage then takes in the other order.

#pragma once

#include "implicit_walks.cuh"

enum Weights { PACKED, AS_THEY_LIE };
using Weight = Choice<WEIGHTS == AS_THEY_LIE, Element, Accumulator>::Type;

struct PackedFilters {
    Offset at;
    Share<TILE_K> next;

    __device__ __forceinline__ PackedFilters(const Problem&, const Cut& cut, const Tile& tile, int stage)
    {
        at = (tile.group * (Offset)cut.depth + stage * DEPTH + own_row<TILE_K>()) * cut.filters
           + tile.first_filter + own_column<TILE_K>();
    }

    // And on to the next stage.
    __device__ __forceinline__ void fetch(const Accumulator* __restrict__ packed, const Problem&, const Cut& cut)
    {
        next.fetch(packed + at, cut.filters);
        at += DEPTH * (Offset)cut.filters;
    }

    // In bytes from the start of `filters`.
    static __device__ __forceinline__ unsigned place() { return own_thread() * sizeof(Vector); }
    __device__ __forceinline__ void put(unsigned place) const { next.put(in_shared(filters, place)); }
};

struct FilterRows {
    static constexpr int LANES = THREADS / (DEPTH / CHUNK);  // filters at once
    static constexpr int OWN = TILE_K > LANES ? TILE_K / LANES : 1;  // of a thread
    Offset at;
    int step, exist;  // of the thread's filters, how many
    Several<CHUNK> next[OWN];

    static __device__ __forceinline__ int own_filter() { return own_thread() / (DEPTH / CHUNK); }
    static __device__ __forceinline__ int first_step() { return own_thread() % (DEPTH / CHUNK) * CHUNK; }

    __device__ __forceinline__ FilterRows(const Problem& problem, const Cut& cut, const Tile& tile, int stage)
    {
        const int filter = tile.first_filter + own_filter();
        step = stage * DEPTH + first_step();
        exist = ceil_div(max(problem.Kg - filter, 0), LANES);
        at = (tile.group * problem.Kg + filter) * (Offset)problem.w.n + step;
    }

    __device__ __forceinline__ void fetch(const Element* __restrict__ w, const Problem& problem, const Cut&)
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            next[j] = {};
            if (j < exist && (WHOLE || step < problem.Cg * TAPS))
                next[j] = *reinterpret_cast<const Several<CHUNK>*>(w + at + j * LANES * (Offset)problem.w.n);
        }
        step += DEPTH;
        at += DEPTH;
    }

    static __device__ __forceinline__ unsigned place()
    {
        const int swap = first_step() >= DEPTH / 2 ? FILTER_BLOCK : 0;
        return (first_step() * TILE_K + (own_filter() ^ swap)) * sizeof(Accumulator);
    }

    // In a pair of FILTER_BLOCKs that several of a thread's filters share, they differ in the bit that `place` may have
    // changed: hence ^.
    __device__ __forceinline__ void put(unsigned place) const
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const int further = j * LANES, in_pair = further % (2 * FILTER_BLOCK);
            Accumulator* own = in_shared(filters, place ^ in_pair * (unsigned)sizeof(Accumulator)) + (further - in_pair);
            #pragma unroll
            for (int i = 0; i < CHUNK; ++i) own[i * TILE_K] = widened(next[j].lane[i]);
        }
    }
};

using Filters = Choice<WEIGHTS == AS_THEY_LIE, FilterRows, PackedFilters>::Type;
static_assert(WEIGHTS != AS_THEY_LIE || FilterRows::OWN * FilterRows::LANES == TILE_K);
