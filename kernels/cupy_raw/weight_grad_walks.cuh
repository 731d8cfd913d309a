// How a block of weight_grad.cu walks along its pixels, 8 a stage: which elements of x and grad_y a thread fetches, and to
// which place of the stage it brings them. One of three, after the problem and the arrays:
//
//     PixelWalk      TOGETHER == PIXELS: d = (r, s, c). Eight lanes take neighbouring pixels, side by side in memory, each
//                    of 4 filters, and of 4 channels of one tap (in small tiles 8): one test of the window, one place
//                    in x, and stores of 128 bits. A row of a stage is VECTOR longer than its width, so that the lanes'
//                    vectors meet 32 banks
//     VectorWalk     TOGETHER == CHANNELS, where the channels of x and the filters of grad_y lie side by side: d = (r, s, c),
//                    and a row of the tile is a pixel's, as it lies in memory. A thread brings a VECTOR of it by one load
//                    and one store. Lane by lane each sector would be met by four or five loads
//     ElementWalk    d = (c, r, s), for channels and filters of any number. Eight lanes take neighbouring pixels, the
//                    others of a warp other filters and columns, element by element. Which a lane takes is number_at its
//                    place, and a row of the tile is VECTOR longer than its width: eight pixels of four rows meet 32 banks
//
// What eight pixels take of x may begin amid a sector, and would then meet two: two of three taps of a row do. So a run of
// PixelWalk's eight lanes begins where a sector does, ends one stage and begins the next:
//
//     of x               | 0 1 2 3 4 5 6 7 | 0 1 2 ...       | a sector begins. The left column of 3x3 under padding:
//     stored to pixel      1 2 3 4 5 6 7 | 0   1 2 ...       | a stage begins
//
// The stages of x are a ring of three: one is multiplied, two are filled. Stages end with the last pixel of the block, so
// that what is missing is missing from the first, and the loop asks for no pixel's existence but in x's last run.

#pragma once

#include "register_tile.cuh"
#include "weight_grad_splits.cuh"

constexpr int TAPS = R * S;

struct Tile {
    int first_filter, first_column, group;

    __device__ __forceinline__ Tile(unsigned block, const Splits& splits)
    {
        const int across_k = splits.filters / TILE_K, across_d = splits.columns / TILE_M;
        first_filter = block % across_k * TILE_K; block /= across_k;
        first_column = block % across_d * TILE_M;
        group = block / across_d;
    }
};

// The pixels of a block, and in how many stages.
struct Own {
    Offset begin, end;
    int stages;

    __device__ __forceinline__ Own(const Splits& splits, int split)
    {
        const int64 first = split * splits.pixels, last = first + splits.pixels;
        begin = first;
        end = last < splits.all_pixels ? last : splits.all_pixels;
        stages = splits.stages_of(split, DEPTH);
    }
};

// How far on from a pixel the one is that DEPTH pixels later comes; and what is further from the end of a row to the next,
// or of an image, than from pixel to pixel.
struct Steps {
    int64 filter, filter_image;              // in grad_y
    int64 column, column_row, column_image;  // in x
    int place, places;                       // pixels; of an image
    int h, w, height, width;                 // rows and columns of x; those that an image of pixels spans
};

struct Pixel {
    int n, p, q;

    __device__ __forceinline__ void start(const Problem& problem, Index m)
    {
        q = m % problem.Q; m /= problem.Q;
        p = m % problem.P; n = m / problem.P;
    }

    __device__ __forceinline__ void advance(const Problem& problem)
    {
        for (q += DEPTH; q >= problem.Q; q -= problem.Q)
            if (++p == problem.P) { p = 0; ++n; }
    }
};

// A column of the product: a tap and a channel of the group.
struct Column {
    int h, w;   // of the tap in the window of pixel (0, 0); far outside where there is no such column
    Offset at;  // from that pixel's image

    __device__ __forceinline__ void start(const Problem& problem, int group, int c, int tap)
    {
        const bool exists = c < problem.Cg && tap < TAPS;
        h = exists ? tap / S * DILATION_H - problem.top : FAR;
        w = tap % S * DILATION_W - problem.left;
        at = offset(problem.x, 0, group * problem.Cg + c, exists ? h : 0, w);
    }

    __device__ __forceinline__ bool is_inside(const Problem& problem, const Pixel& pixel) const
    {
        return pixel.n < problem.N && (unsigned)(pixel.p * STRIDE_H + h) < problem.H
            && (unsigned)(pixel.q * STRIDE_W + w) < problem.W;
    }
};

// Where the windows of a pixel begin, but for the columns.
__device__ __forceinline__ Offset window_of(const Problem& problem, const Pixel& pixel)
{
    return offset(problem.x, pixel.n, 0, pixel.p * STRIDE_H, pixel.q * STRIDE_W);
}

struct ElementWalk {
    static constexpr int ROWS_AT_ONCE = THREADS / DEPTH;  // the others hold the other pixels of the stage
    static constexpr int OWN_FILTERS = TILE_K / ROWS_AT_ONCE, OWN_COLUMNS = TILE_M / ROWS_AT_ONCE;

    Pixel pixel;                  // of the stage to fetch next
    int filter, first_of_group;   // of the group; the group's
    Column columns[OWN_COLUMNS];
    Accumulator next_filters[OWN_FILTERS], next_columns[OWN_COLUMNS];

    __device__ __forceinline__ void start(const Problem& problem, const Tile& tile)
    {
        const int place = threadIdx.x / DEPTH;
        filter = tile.first_filter + number_at<FILTER_LANES>(place);
        first_of_group = tile.group * problem.Kg;
        #pragma unroll
        for (int j = 0; j < OWN_COLUMNS; ++j) {
            const int d = tile.first_column + number_at<PIXEL_LANES>(place + j * ROWS_AT_ONCE);
            columns[j].start(problem, tile.group, d / TAPS, d % TAPS);
        }
    }

    // Bring the first stage.
    __device__ __forceinline__ void prepare(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                            const Problem& problem, const Steps&, const Own& own)
    {
        pixel.start(problem, own.begin + threadIdx.x % DEPTH);
        load(x, grad_y, problem);
        put(0);
    }

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                          const Problem& problem, const Steps&, int)
    {
        advance(problem);
        load(x, grad_y, problem);
    }

    __device__ __forceinline__ void advance(const Problem& problem) { pixel.advance(problem); }

    __device__ __forceinline__ void load(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                         const Problem& problem)
    {
        const Element* first = grad_y + offset(problem.y, pixel.n, first_of_group + filter, pixel.p, pixel.q);
        #pragma unroll
        for (int i = 0; i < OWN_FILTERS; ++i) {
            constexpr int STEP = ROWS_AT_ONCE;
            const int further = number_at<FILTER_LANES>(i * STEP);
            const bool wanted = pixel.n < problem.N && filter + further < problem.Kg;
            next_filters[i] = wanted ? widened(first[further * (Offset)problem.y.c]) : Accumulator(0);
        }
        const Offset window = window_of(problem, pixel);
        #pragma unroll
        for (int j = 0; j < OWN_COLUMNS; ++j)
            next_columns[j] =
                columns[j].is_inside(problem, pixel) ? widened(x[window + columns[j].at]) : Accumulator(0);
    }

    __device__ __forceinline__ void put(int buffer) const
    {
        put(filters[buffer], next_filters);
        put(pixels[buffer], next_columns);
    }

    template <int OWN, int PITCH>
    static __device__ __forceinline__ void put(Accumulator (&tile)[DEPTH][PITCH], const Accumulator (&next)[OWN])
    {
        #pragma unroll
        for (int i = 0; i < OWN; ++i) tile[threadIdx.x % DEPTH][threadIdx.x / DEPTH + i * ROWS_AT_ONCE] = next[i];
    }
};

struct VectorWalk {
    static constexpr bool ALIKE = TILE_K == TILE_M;  // then a thread's filters and columns are of the same pixels
    Pixel of_columns[VECTORS_OF<TILE_M>];  // of the stage to fetch next
    Pixel of_filters[ALIKE ? 1 : VECTORS_OF<TILE_K>];
    Offset filter;  // in the first image's first pixel
    bool exists;    // the filter, and the others of its VECTOR
    Column column;
    Share<TILE_K> next_filters;
    Share<TILE_M> next_columns;

    __device__ __forceinline__ void start(const Problem& problem, const Tile& tile)
    {
        const int k = tile.first_filter + own_column<TILE_K>(), d = tile.first_column + own_column<TILE_M>();
        exists = k < problem.Kg;
        filter = offset(problem.y, 0, tile.group * problem.Kg + k, 0, 0);
        column.start(problem, tile.group, d % problem.Cg, d / problem.Cg);
    }

    // Bring the first stage.
    __device__ __forceinline__ void prepare(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                            const Problem& problem, const Steps&, const Own& own)
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K> && !ALIKE; ++v)
            of_filters[v].start(problem, own.begin + own_row<TILE_K>() + v * ROWS_APART<TILE_K>);
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_M>; ++v)
            of_columns[v].start(problem, own.begin + own_row<TILE_M>() + v * ROWS_APART<TILE_M>);
        load(x, grad_y, problem);
        put(0);
    }

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                          const Problem& problem, const Steps&, int)
    {
        advance(problem);
        load(x, grad_y, problem);
    }

    __device__ __forceinline__ void advance(const Problem& problem)
    {
        #pragma unroll
        for (Pixel& pixel : of_columns) pixel.advance(problem);
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K> && !ALIKE; ++v) of_filters[v].advance(problem);
    }

    __device__ __forceinline__ void load(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                         const Problem& problem)
    {
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K>; ++v) {
            const Pixel& pixel = ALIKE ? of_columns[v] : of_filters[v];
            const Offset from = filter + offset(problem.y, pixel.n, 0, pixel.p, pixel.q);
            load(next_filters.vectors[v], grad_y + from, exists && pixel.n < problem.N);
        }
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_M>; ++v) {
            const Pixel& pixel = of_columns[v];
            const Offset from = column.at + window_of(problem, pixel);
            load(next_columns.vectors[v], x + from, column.is_inside(problem, pixel));
        }
    }

    static __device__ __forceinline__ void load(Vector& to, const Element* from, bool wanted)
    {
        Several<VECTOR> loaded = {};
        if (wanted) loaded = several<VECTOR>(from);
        #pragma unroll
        for (int e = 0; e < VECTOR; ++e) to.lane[e] = widened(loaded.lane[e]);
    }

    __device__ __forceinline__ void put(int buffer) const
    {
        next_filters.put(&filters[buffer][own_row<TILE_K>()][own_column<TILE_K>()]);
        next_columns.put(&pixels[buffer][own_row<TILE_M>()][own_column<TILE_M>()]);
    }
};

struct PixelWalk {
    static constexpr int FILTERS = VECTOR * VECTORS_OF<TILE_K>, COLUMNS = VECTOR * VECTORS_OF<TILE_M>;
    static constexpr int FILTERS_ROW = TILE_K + ROW_PADDING, ROW = TILE_M + ROW_PADDING;
    static constexpr int RING = PIXEL_BUFFERS * DEPTH * ROW;
    static constexpr int ALIGNED = 8;  // elements that are one sector, two, or half of one

    Offset filter;     // of grad_y: the thread's first filter in the pixel to fetch next
    int place;         // of that pixel in its image
    Offset column;     // of x: the thread's first channel in its tap of its pixel to fetch next
    int h, w;          // where that lies in its image
    int end_h, end_w;  // where it does not, as its pixel would be past the last row, or column, of these
    int behind;        // how many lanes of a run still fill the stage before
    int fewest_left;   // stages left to fetch, so that x's lane has another
    int filters_to;    // where in the first buffer filters go
    int to;            // where in the ring columns go
    Share<TILE_K> next_filters;
    Share<TILE_M> next_columns;

    __device__ __forceinline__ void start(const Problem& problem, const Tile& tile)
    {
        const int share = threadIdx.x / DEPTH, d = tile.first_column + share * COLUMNS;
        const int k = min(tile.first_filter + share * FILTERS, problem.Kg - FILTERS);  // of others no sum is read
        const int c = d % problem.Cg, tap = d / problem.Cg;
        filter = offset(problem.y, 0, tile.group * problem.Kg + k, 0, 0);
        h = tap < TAPS ? tap / S * DILATION_H - problem.top : FAR;
        w = tap % S * DILATION_W - problem.left;
        end_h = h + problem.P * STRIDE_H;
        end_w = w + problem.Q * STRIDE_W;
        const Offset in_image = offset(problem.x, 0, 0, tap < TAPS ? h : 0, w);
        column = in_image + offset(problem.x, 0, tile.group * problem.Cg + c, 0, 0);
        behind = (in_image & (ALIGNED - 1)) / STRIDE_W;
    }

    // Bring the first stage, and what the run after it brings of the second.
    __device__ __forceinline__ void prepare(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                            const Problem& problem, const Steps& steps, const Own& own)
    {
        const int lane = threadIdx.x % DEPTH, share = threadIdx.x / DEPTH;
        Offset m = own.end - own.stages * DEPTH + lane;
        const bool exists = m >= own.begin;
        open_filters(problem, exists ? m : m + DEPTH);
        filters_to = lane * FILTERS_ROW + share * FILTERS;
        keep(filters_to);
        load(next_filters, grad_y + filter, problem.y.c, exists);
        put_filters(0);
        if (exists) advance_filters(steps);

        m -= behind;
        open_columns(problem, exists_from(own.begin, m));
        to = (lane < behind ? PIXEL_BUFFERS * DEPTH + lane - behind : lane - behind) * ROW + share * COLUMNS;
        keep(to);  // else the compiler makes the first store one for each element
        fewest_left = lane < behind ? 1 : 2;
        #pragma unroll 1  // which spares registers
        for (int run = 0; run < 2; ++run, m += DEPTH) {
            load_columns(x, problem, own.begin <= m && m < own.end);
            put_columns();
            if (own.begin <= m) advance_columns(steps);
        }
    }

    // The first of m, m + DEPTH, ... that the split has.
    static __device__ __forceinline__ Offset exists_from(Offset begin, Offset m)
    {
        return m >= begin ? m : m + DEPTH >= begin ? m + DEPTH : m + 2 * DEPTH;
    }

    __device__ __forceinline__ void open_filters(const Problem& problem, Offset m)
    {
        const int pixels = problem.P * problem.Q;
        place = m % pixels;
        filter += m / pixels * (Offset)problem.y.n + place * (Offset)problem.y.w;
    }

    __device__ __forceinline__ void open_columns(const Problem& problem, Offset m)
    {
        const Offset row = m / problem.Q;
        const int p = row % problem.P, q = m % problem.Q;
        h += p * STRIDE_H;
        w += q * STRIDE_W;
        column += row / problem.P * (Offset)problem.x.n + offset(problem.x, 0, 0, p * STRIDE_H, q * STRIDE_W);
    }

    // In what follows `keep` makes a condition a predicate of additions; the compiler would select what to add.
    __device__ __forceinline__ void advance_filters(const Steps& steps)
    {
        filter += (Offset)steps.filter;
        place += steps.place;
        if (place >= steps.places) {
            keep(place -= steps.places);
            filter += (Offset)steps.filter_image;
        }
    }

    __device__ __forceinline__ void advance_columns(const Steps& steps)
    {
        column += (Offset)steps.column;
        w += steps.w;
        h += steps.h;
        if (w >= end_w) {
            keep(w -= steps.width);
            h += STRIDE_H;
            column += (Offset)steps.column_row;
        }
        if (h >= end_h) {
            keep(h -= steps.height);
            column += (Offset)steps.column_image;
        }
    }

    __device__ __forceinline__ void fetch(const Element* __restrict__ x, const Element* __restrict__ grad_y,
                                          const Problem& problem, const Steps& steps, int left)
    {
        load(next_filters, grad_y + filter, problem.y.c, true);
        load_columns(x, problem, left >= fewest_left);
        advance_filters(steps);
        advance_columns(steps);
    }

    __device__ __forceinline__ void load_columns(const Element* __restrict__ x, const Problem& problem, bool exists)
    {
        const bool inside = (unsigned)h < problem.H && (unsigned)w < problem.W;
        load(next_columns, x + column, problem.x.c, exists && inside);
    }

    // Addresses grow one by the other: each is one instruction then, not up to three.
    template <class Own>
    static __device__ __forceinline__ void load(Own& own, const Element* from, Offset apart, bool wanted)
    {
        own = {};
        if (!wanted) return;
        #pragma unroll
        for (int e = 0; e < (int)(sizeof(own) / sizeof(Accumulator)); ++e, from += apart)
            own.vectors[e / VECTOR].lane[e % VECTOR] = widened(*from);
    }

    __device__ __forceinline__ void put_filters(int buffer) const
    {
        Accumulator* to_filters = &filters[buffer][0][0] + filters_to;
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_K>; ++v) vector_at(to_filters[v * VECTOR]) = next_filters.vectors[v];
    }

    __device__ __forceinline__ void put_columns()
    {
        Accumulator* to_columns = &pixels[0][0][0] + to;
        #pragma unroll
        for (int v = 0; v < VECTORS_OF<TILE_M>; ++v) vector_at(to_columns[v * VECTOR]) = next_columns.vectors[v];
        keep(to += DEPTH * ROW);
        if (to >= RING) keep(to -= RING);
    }

    __device__ __forceinline__ void put(int buffer)
    {
        put_filters(buffer);
        put_columns();
    }
};

template <bool, class Then, class> struct Choice { using Type = Then; };
template <class Then, class Else> struct Choice<false, Then, Else> { using Type = Else; };
using Walk = Choice<TOGETHER == PIXELS, PixelWalk, Choice<TOGETHER == CHANNELS, VectorWalk, ElementWalk>::Type>::Type;

