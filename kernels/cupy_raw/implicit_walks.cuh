// How a block of the implicit product walks along d, stage by stage: which elements of x a thread fetches, from where,
// and to which place of the stage it brings them. One of three, after the problem and the arrays:
//
//     ChannelWalk    d = tap * channels + c. From stage to stage an offset grows by DEPTH channels (step); only at a new
//                    tap (turn) is the window looked at: whether it lies inside the image, and how far it is to there.
//                    TOGETHER == CHANNELS: these lie side by side; a thread takes CHUNK of a pixel as one load
//     TapWalk        d = c * R * S + tap, for few channels, which would not fill a stage
//     PixelWalk      TOGETHER == PIXELS, a 1x1 window: VECTOR pixels side by side as one load, as in any matrix product
//
// Each fetches into registers (fetch) and stores what it fetched (put), so that the product fits in between.

#pragma once

#include "cut_job.cuh"
#include "register_tile.cuh"

constexpr int TAPS = R * S;
constexpr int CHUNK = 4;  // channels that one thread takes at once where they lie side by side
constexpr bool IN_ORDER = TOGETHER == PIXELS;    // pixels lie in shared memory as they are numbered
constexpr bool SWAPPED = TOGETHER == CHANNELS;   // and in which rows their vectors' halves change places: see put

template <bool, class Then, class Else> struct Choice { using Type = Then; };
template <class Then, class Else> struct Choice<false, Then, Else> { using Type = Else; };

template <class Tile> __device__ __forceinline__ Accumulator* in_shared(Tile& tile, unsigned bytes)
{
    return reinterpret_cast<Accumulator*>(reinterpret_cast<char*>(&tile) + bytes);
}

struct Pixel { Offset n; int p, q; };
__device__ __forceinline__ Pixel pixel_at(Index m, const Problem& problem, const Cut& cut)
{
    const Divided row = divide(m, problem.Q, cut.by_q), image = divide(row.quotient, problem.P, cut.by_p);
    return {(Offset)image.quotient, image.rest, row.rest};
}

// A thread's part of a stage of pixels: OWN of them, ROWS of the DEPTH steps each.
constexpr int LANES = TOGETHER == CHANNELS ? THREADS / (DEPTH / CHUNK) : TILE_M < THREADS ? TILE_M : THREADS;
constexpr int OWN = TILE_M / LANES;
constexpr int ROWS = DEPTH * TILE_M / THREADS / OWN;
static_assert(OWN * LANES == TILE_M && ROWS * OWN * THREADS == DEPTH * TILE_M);
static_assert(TOGETHER != CHANNELS || ROWS == CHUNK);

// Which taps of a window lie inside the image, a bit each, for windows of up to 64 taps; its top left corner for others.
template <bool FEW = TAPS <= 64>
struct Inside {
    using Bits = Choice<TAPS <= 32, unsigned, uint64>::Type;
    Bits bits;

    __device__ __forceinline__ void start(const Problem& problem, int h, int w)
    {
        Bits row = 0;
        bits = 0;
        #pragma unroll
        for (int s = 0; s < S; ++s) row |= Bits((unsigned)(w + s * DILATION_W) < problem.W) << s;
        #pragma unroll
        for (int r = 0; r < R; ++r)
            if ((unsigned)(h + r * DILATION_H) < problem.H) bits |= row << r * S;
    }
    __device__ __forceinline__ bool contains(const Problem&, int tap) const { return bits >> tap & 1; }
};

template <>
struct Inside<false> {
    int h, w;

    __device__ __forceinline__ void start(const Problem&, int top, int left) { h = top; w = left; }
    __device__ __forceinline__ bool contains(const Problem& problem, int tap) const
    {
        return (unsigned)(h + tap / S * DILATION_H) < problem.H && (unsigned)(w + tap % S * DILATION_W) < problem.W;
    }
};

// What ChannelWalk and TapWalk have in common: the windows of a thread's pixels.
struct Windows {
    Inside<> window[OWN];       // all outside where there is no such pixel
    Offset at[OWN];             // ChannelWalk: of its element of the next stage's first step; TapWalk: of the window's corner
    Accumulator next[OWN][ROWS];

    static __device__ __forceinline__ int own_pixel(int j)
    {
        return (TOGETHER == CHANNELS ? own_thread() / (DEPTH / CHUNK) : own_thread() % LANES) + j * LANES;
    }
    static __device__ __forceinline__ int first_step()
    {
        return TOGETHER == CHANNELS ? own_thread() % (DEPTH / CHUNK) * CHUNK : own_thread() / LANES * ROWS;
    }

    __device__ __forceinline__ void open(const Problem& problem, const Cut& cut, Index first_pixel, int channel)
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const Index m = first_pixel + own_pixel(j);
            const bool exists = m < cut.pixels;
            const Pixel pixel = pixel_at(m, problem, cut);
            const int h = exists ? pixel.p * STRIDE_H - problem.top : FAR;
            const int w = pixel.q * STRIDE_W - problem.left;
            window[j].start(problem, h, w);
            at[j] = exists ? offset(problem.x, pixel.n, channel, h, w) : 0;
        }
    }

    // Where a thread's elements go, in bytes from the start of `pixels`.
    // Two lanes that hold a pixel's upper and lower channels store them DEPTH / 2 rows apart, in the same bank: so in the
    // lower half of the rows the halves of each VECTOR change places (SWAPPED), and 32 lanes meet 32 banks.
    static __device__ __forceinline__ unsigned place()
    {
        const int swap = SWAPPED && first_step() >= DEPTH / 2 ? VECTOR / 2 : 0;
        return (first_step() * TILE_M + (place_of<PIXEL_LANES>(own_pixel(0)) ^ swap)) * sizeof(Accumulator);
    }

    // In a block that several of a thread's pixels share, they differ in the bits that `place` may have changed: hence ^.
    __device__ __forceinline__ void put(unsigned place) const
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const int block = j * LANES / PIXEL_BLOCK * PIXEL_BLOCK;
            const unsigned in_block = j * LANES % PIXEL_BLOCK / PIXEL_LANES * sizeof(Accumulator);
            Accumulator* own = in_shared(pixels, place ^ in_block) + block;
            #pragma unroll
            for (int i = 0; i < ROWS; ++i) own[i * TILE_M] = next[j][i];
        }
    }
};

struct ChannelWalk : Windows {
    static constexpr bool TURNS = TAPS > 1;
    bool inside[OWN];
    int channel, tap;

    // Returns how many stages are left of the first tap.
    __device__ __forceinline__ int start(const Problem& problem, const Cut& cut, Index first_pixel, int group,
                                         int stage)
    {
        const int d = stage * DEPTH;
        tap = TURNS ? d / cut.channels : 0;
        channel = d - tap * cut.channels;
        open(problem, cut, first_pixel, group * problem.Cg + channel + first_step());
        #pragma unroll
        for (int j = 0; j < OWN; ++j) at[j] += offset(problem.x, 0, 0, tap / S * DILATION_H, tap % S * DILATION_W);
        look(problem);
        return (cut.channels - channel) / DEPTH;
    }

    __device__ __forceinline__ void look(const Problem& problem)
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) inside[j] = window[j].contains(problem, tap);
        if constexpr (TOGETHER == NONE && WHOLE) clear();
    }

    // What is outside is zero for a whole tap, since no fetch overwrites it.
    __device__ __forceinline__ void clear()
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j)
            #pragma unroll
            for (int i = 0; i < ROWS; ++i) next[j][i] = 0;
    }

    __device__ __forceinline__ void step(const Problem& problem)
    {
        channel += DEPTH;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) at[j] += TOGETHER == CHANNELS ? DEPTH : DEPTH * (Offset)problem.x.c;
    }

    // From past the last channels of one tap to the first of the next.
    __device__ __forceinline__ void turn(const Problem& problem, const Cut& cut)
    {
        Offset further = DILATION_W * (Offset)problem.x.w - cut.channels * (Offset)problem.x.c;
        if (++tap % S == 0) further += DILATION_H * (Offset)problem.x.h - S * DILATION_W * (Offset)problem.x.w;
        channel = 0;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) at[j] += further;
        look(problem);
    }

    __device__ __forceinline__ bool wanted(const Problem& problem, int j, int i) const
    {
        return inside[j] && (WHOLE || channel + first_step() + i < problem.Cg);
    }

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Problem& problem)
    {
        if constexpr (TOGETHER == NONE && !WHOLE) clear();
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            if constexpr (TOGETHER == CHANNELS) {
                Several<CHUNK> four = {};
                if (wanted(problem, j, 0)) four = *reinterpret_cast<const Several<CHUNK>*>(x + at[j]);
                #pragma unroll
                for (int i = 0; i < ROWS; ++i) next[j][i] = widened(four.lane[i]);
            } else {
                #pragma unroll
                for (int i = 0; i < ROWS; ++i)
                    if (wanted(problem, j, i)) next[j][i] = widened(x[at[j] + i * (Offset)problem.x.c]);
            }
        }
    }
};

struct TapWalk : Windows {
    static constexpr bool TURNS = false;
    int d;

    __device__ __forceinline__ int start(const Problem& problem, const Cut& cut, Index first_pixel, int group,
                                         int stage)
    {
        open(problem, cut, first_pixel, group * problem.Cg);
        d = stage * DEPTH;
        return cut.depth;
    }

    __device__ __forceinline__ void step(const Problem&) { d += DEPTH; }
    __device__ __forceinline__ void turn(const Problem&, const Cut&) {}

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Problem& problem)
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j)
            #pragma unroll
            for (int i = 0; i < ROWS; ++i) next[j][i] = element(x, problem, j, d + first_step() + i);
    }

    __device__ __forceinline__ Accumulator element(const Element* __restrict__ x, const Problem& problem, int j,
                                                   unsigned step) const
    {
        const int c = step / TAPS, tap = step % TAPS;
        if (c >= problem.Cg || !window[j].contains(problem, tap)) return 0;
        return widened(x[at[j] + offset(problem.x, 0, c, tap / S * DILATION_H, tap % S * DILATION_W)]);
    }
};

// Pixel m of an image lies m elements behind its first; so VECTOR of them are one load. None sticks out of the image.
struct PixelWalk {
    static constexpr bool TURNS = false;
    Offset at;
    bool exists;
    int channel;
    Share<TILE_M> next;

    __device__ __forceinline__ int start(const Problem& problem, const Cut& cut, Index first_pixel, int group,
                                         int stage)
    {
        const Index m = first_pixel + own_column<TILE_M>();
        exists = m < cut.pixels;
        channel = stage * DEPTH + own_row<TILE_M>();
        const Pixel pixel = pixel_at(exists ? m : 0, problem, cut);
        at = offset(problem.x, pixel.n, group * problem.Cg + channel, pixel.p, pixel.q);
        return cut.depth;
    }

    __device__ __forceinline__ void step(const Problem& problem)
    {
        channel += DEPTH;
        at += DEPTH * (Offset)problem.x.c;
    }
    __device__ __forceinline__ void turn(const Problem&, const Cut&) {}

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Problem& problem)
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_M>; ++v) {
            constexpr int APART = ROWS_APART<TILE_M>;
            Several<VECTOR> values = {};
            if (exists && (WHOLE || channel + v * APART < problem.Cg))
                values = *reinterpret_cast<const Several<VECTOR>*>(x + at + v * APART * (Offset)problem.x.c);
            #pragma unroll
            for (int e = 0; e < VECTOR; ++e) next.vectors[v].lane[e] = widened(values.lane[e]);
        }
    }

    static __device__ __forceinline__ unsigned place() { return own_thread() * sizeof(Vector); }
    __device__ __forceinline__ void put(unsigned place) const { next.put(in_shared(pixels, place)); }
};

using Walk = Choice<TOGETHER == PIXELS, PixelWalk, Choice<ORDER == 0, ChannelWalk, TapWalk>::Type>::Type;
