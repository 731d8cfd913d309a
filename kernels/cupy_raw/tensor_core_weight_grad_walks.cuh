// How the stages of tensor_core_weight_grad.cu are brought: a thread's columns and filters never change, so that where
// they lie is found once; its pixels move on, from stage to stage.
//
// Compiled with tensor_core_weight_grad.cu's constants.

#pragma once

#include "cut.cuh"
#include "tensor_core_taps.cuh"
#include "tensor_core_tile.cuh"

constexpr int DEPTH = 64 / sizeof(Element);  // pixels per stage

enum { NONE, CHANNELS, PIXELS };  // of which 16 bytes lie together in memory

constexpr int COLUMN_BYTES = DEPTH * TILE_M * sizeof(Element);
constexpr int STAGE_BYTES = COLUMN_BYTES + DEPTH * TILE_K * sizeof(Element);

constexpr int STEP_OF_COLUMNS = COLUMN_BYTES / STEPS;  // how far steps of CHANNELS and NONE lie apart
constexpr int STEP_OF_FILTERS = (STAGE_BYTES - COLUMN_BYTES) / STEPS;

// Floats that a thread gathers are rounded where it stores them, once for all warps that load them, if that is one
// instruction.
constexpr bool rounds_once(int together)
{
#if __CUDA_ARCH__ >= 900
    return sizeof(Element) == 4 && !PRECISE && together == NONE;
#else
    return false;
#endif
}

// So that an exclusive or with the place of a chunk in its row leaves the rest of an address alone.
alignas(1024) __shared__ unsigned char memory[STAGES * STAGE_BYTES];

// Where chunk `chunk` of pixel `row` lies, in a stage of WIDTH columns or filters.
__host__ __device__ constexpr int swizzle(int row) { return (row & 3) << 1 | (row >> 2 & 1); }
template <int WIDTH>
__device__ __forceinline__ int place_of(int row, int chunk)
{
    static_assert(WIDTH / CHUNK >= 8, "eight places in a row");
    return (row * (WIDTH / CHUNK) + (chunk ^ swizzle(row))) * 16;
}

// Where chunk `chunk` of the pixels of column or filter `row` lies, in a stage of PIXELS.
constexpr int PIXEL_CHUNKS = DEPTH / CHUNK;
__device__ __forceinline__ int place_of_pixels(int row, int chunk)
{
    return (row * PIXEL_CHUNKS + (chunk ^ row >> 1 & 3)) * 16;
}

struct Pixel {
    int n, p, q;
    bool exists;
};

// How the pixels of a split are numbered, and where it ends.
struct Pixels {
    const Problem& problem;
    Index next, end;  // of the stage to fetch next
    Divisor by_q, by_p;

    __device__ __forceinline__ bool exists(int i) const { return next + i < end; }

    __device__ __forceinline__ Pixel operator[](int i) const
    {
        const Divided row = divide(next + i, problem.Q, by_q), image = divide(row.quotient, problem.P, by_p);
        return {(int)image.quotient, image.rest, row.rest, exists(i)};
    }
};

// A thread's part of a stage of WIDTH columns or filters: OWN chunks. Where these lie TOGETHER in memory, neighbouring
// threads take neighbouring chunks, otherwise the same chunk of neighbouring pixels. Of CHANNELS eight threads, or
// more, take 128 bytes of a pixel, and the next 128 if there are; so few that a thread has few pixels, whose place is
// found anew in each stage.
constexpr int LANES_OF_PIXEL = THREADS / DEPTH > 8 ? THREADS / DEPTH : 8;
template <int WIDTH, int TOGETHER>
struct Share {
    static constexpr int CHUNKS = WIDTH / CHUNK, OWN = DEPTH * CHUNKS / THREADS;
    static constexpr int ACROSS = TOGETHER == CHANNELS ? LANES_OF_PIXEL : TOGETHER == PIXELS ? PIXEL_CHUNKS : DEPTH;
    static constexpr int APART = THREADS / ACROSS;
    static constexpr int OF_PIXEL = TOGETHER == CHANNELS ? CHUNKS / ACROSS : 1;  // chunks of CHANNELS, beside each other
    static_assert(OWN * THREADS == DEPTH * CHUNKS && APART * ACROSS == THREADS && OWN % OF_PIXEL == 0);

    uint4 held[OWN];

    static __device__ __forceinline__ int across() { return threadIdx.x % ACROSS; }
    static __device__ __forceinline__ int down(int j)
    {
        return (APART == 1 ? 0 : threadIdx.x / ACROSS) + j * APART;  // 0: what the compiler keeps once for a warp
    }

    // The pixel of number j, and its column or filter: the first of its chunk.
    static __device__ __forceinline__ int pixel(int j)
    {
        return TOGETHER == CHANNELS ? down(j / OF_PIXEL) : TOGETHER == PIXELS ? across() * CHUNK : across();
    }
    static __device__ __forceinline__ int element(int j)
    {
        if (TOGETHER == CHANNELS) return (across() + j % OF_PIXEL * ACROSS) * CHUNK;
        return TOGETHER == PIXELS ? down(j) : down(j) * CHUNK;
    }
    int first_place;  // of number 0, in a stage

    __device__ __forceinline__ void find_place()
    {
        first_place = TOGETHER == PIXELS ? place_of_pixels(down(0), across())
                                         : place_of<WIDTH>(pixel(0), element(0) / CHUNK);
        asm volatile("" : "+r"(first_place));  // or it is worked out anew in each stage
    }

    // Chunks of one pixel differ in bits that an exclusive or meets alone, and so do the swizzles of rows that lie a
    // power of two apart; of eight they are alike.
    __device__ __forceinline__ int place(int stage, int j) const
    {
        if constexpr (TOGETHER == NONE) return stage + first_place ^ j * APART * 16;
        static_assert(TOGETHER == NONE || APART % 8 == 0 || (TOGETHER == CHANNELS && (APART & APART - 1) == 0));
        const int row = j / OF_PIXEL * APART, turned = TOGETHER == CHANNELS ? swizzle(row) * 16 : 0;
        return (stage + first_place ^ turned) + (row * OF_PIXEL + j % OF_PIXEL) * ACROSS * 16;
    }

    // Bring number j, a chunk that lies together: into `stage` at once, by cp.async, or into a register.
    __device__ __forceinline__ void copy(int j, unsigned stage, const Element* from, bool wanted)
    {
#if __CUDA_ARCH__ >= 800
        copy_async(place(stage, j), from, wanted);
#else
        held[j] = wanted ? *reinterpret_cast<const uint4*>(from) : uint4{};
#endif
    }

    // Or one whose elements lie APART, of which there are COUNT. What is not wanted is dropped where two elements become a
    // word.
    template <int COUNT, Offset APART>
    __device__ __forceinline__ void gather(int j, const Element* from, bool wanted)
    {
        unsigned loaded[CHUNK], words[4];
        #pragma unroll
        for (int i = 0; i < CHUNK; ++i) loaded[i] = bits_of(from[(i < COUNT ? i : 0) * APART]);
        #pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = word_of(loaded + i * (CHUNK / 4), wanted);
        held[j] = reinterpret_cast<const uint4&>(words);
    }

    // `behind` the stage's beginning, so many bytes: what stores add to an address by themselves.
    __device__ __forceinline__ void put(int stage, int behind)
    {
        if constexpr (TOGETHER != NONE && __CUDA_ARCH__ >= 800) return;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            unsigned rest[4];
            if (rounds_once(TOGETHER)) round_matrices(reinterpret_cast<unsigned(&)[4]>(held[j]), rest);
            *reinterpret_cast<uint4*>(memory + behind + place(stage, j)) = held[j];
        }
    }
};

constexpr bool BITS_OF_TAPS = has_bits_of_taps(CHUNK - 1);  // taps inner
static_assert(!RUNS || (BITS_OF_TAPS && TAP_ROW % RUN_OF_TAPS == 0));

// The columns: windows of x, each thread's taps and channels the same for all pixels.
struct Columns : Share<TILE_M, X_TOGETHER> {
    static constexpr int COLUMNS = X_TOGETHER == CHANNELS ? OF_PIXEL : OWN;  // different ones of a pixel
    int h[COLUMNS], w[COLUMNS];  // of the tap, less the padding; far outside where there is no such column
    Offset corner[COLUMNS];      // its address, in the window of pixel 0
    int channel[COLUMNS];        // of the chunk's first element; taps inner: its column
    int first_tap[COLUMNS];      // taps inner: of the chunk
    int bottom, right;           // taps inner: of the image, from the window of pixel (0, 0)

    __device__ __forceinline__ void start(const Problem& problem, int first_column, int group)
    {
        find_place();
        const int channels = ceil_div(problem.Cg, CHUNK) * CHUNK;
        bottom = problem.H + problem.top, right = problem.W + problem.left;
        #pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const int d = first_column + element(j);
            if constexpr (TAPS_INNER) {
                h[j] = -problem.top, w[j] = -problem.left, channel[j] = d, first_tap[j] = d % TAPS;
                corner[j] = offset(problem.x, 0, group * problem.Cg, h[j], w[j]);
                continue;
            }
            const int tap = d / channels;  // PIXELS: there is one tap
            channel[j] = d % channels;
            const bool exists = tap < TAPS && channel[j] < problem.Cg;
            h[j] = exists ? tap / S * DILATION_H - problem.top : FAR;
            w[j] = tap % S * DILATION_W - problem.left;
            const int first = channel[j] - (channel[j] + CHUNK > problem.Cg ? X_DROPPED : 0);
            corner[j] = offset(problem.x, 0, group * problem.Cg + first, exists ? h[j] : 0, w[j]);
        }
    }

    static __device__ __forceinline__ bool contains(const Problem& problem, int h, int w)
    {
        return (unsigned)h < problem.H && (unsigned)w < problem.W;
    }

    __device__ __forceinline__ void fetch(unsigned stage, const Element* __restrict__ x, const Pixels& pixels,
                                          const Steps& steps)
    {
        const Problem& problem = pixels.problem;
        if constexpr (TAPS_INNER) {
            gather_taps(x, pixels[pixel(0)], problem, steps);
            return;
        }
        Pixel at;
        Offset own;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            if (j % COLUMNS == 0) {
                at = pixels[pixel(j)], own = offset(problem.x, at.n, 0, at.p * STRIDE_H, at.q * STRIDE_W);
                keep(own);  // or its parts are added anew to each column's
            }
            const int k = j % COLUMNS, top = at.p * STRIDE_H + h[k], left = at.q * STRIDE_W + w[k];
            const bool wanted = at.exists && contains(problem, top, left);
            Offset from = corner[k] + own;
            if constexpr (X_TOGETHER != NONE) {
                copy(j, stage, x + from, wanted);
            } else {
                from = wanted ? from : 0;  // what is outside is taken from the array's beginning
                keep(from);  // in 32 bits: one instruction chooses, and one adds it to the array's address
                this->template gather<CHUNK, X_APART>(j, x + from, wanted);
            }
        }
    }

    static __device__ __forceinline__ void add_element(unsigned (&words)[4], int e, int wanted, const Element* from)
    {
        words[e / (CHUNK / 4)] += load_if(wanted, from) << e % (CHUNK / 4) * 16;
    }

    // Taps inner: all chunks are of one pixel.
    __device__ __forceinline__ void gather_taps(const Element* __restrict__ x, const Pixel& at, const Problem& problem,
                                                const Steps& steps)
    {
        const int down = at.p * STRIDE_H, across = at.q * STRIDE_W;
        const int top = at.exists ? down + h[0] : FAR, left = across + w[0];
        const int until = at.exists ? bottom - down : 0;
        const uint64 taps =
            BITS_OF_TAPS ? taps_inside<CHUNK - 1>(problem.top - down, until, problem.left - across, right - across) : 0;
        const unsigned axes = BITS_OF_TAPS ? 0 : axes_inside(problem, top, left);
        const Element* window = x + (corner[0] + offset(problem.x, at.n, 0, down, across));  // of no pixel nobody loads
        asm volatile("" : "+l"(window));  // or its parts and a step are added anew, in 64 bits
        int first = channel[0] / (RUNS ? CHUNK : 2);
        if (!TABLE) asm volatile("" : "+r"(first));  // divide anew in each stage
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            unsigned words[4] = {};
            const unsigned of_chunk = taps >> first_tap[j];
            #pragma unroll
            for (int e = 0; RUNS && e < CHUNK; ++e) {
                const Element* run = window + first_of_run(steps, first + j * APART, e / RUN_OF_TAPS);
                add_element(words, e, of_chunk & 1 << e, run + e % RUN_OF_TAPS * DILATION_W * (int64)X_APART);
            }
            #pragma unroll
            for (int d = 0; !RUNS && d < CHUNK; d += 2) {
                const int pair = first + (j * APART * CHUNK + d) / 2;
                Step two[2];
                find_pair(two, steps.from[TABLE ? pair : 0], steps.bits[TABLE ? pair : 0], problem, 2u * pair);
                #pragma unroll
                for (int e = d; e < d + 2; ++e) {
                    const Step& step = two[e % 2];
                    const int wanted = BITS_OF_TAPS ? of_chunk & 1 << e : has_inside(problem, step, axes, top, left);
                    Offset from = step.from;
                    keep(from);  // in 32 bits: one instruction adds it to the window's address
                    add_element(words, e, wanted, window + from);
                }
            }
            held[j] = reinterpret_cast<const uint4&>(words);
        }
    }
};

// The filters: grad_y. Those behind a group's last are copied as zeros, or gathered as the last chunk again: nobody reads
// their sums.
struct Filters : Share<TILE_K, Y_TOGETHER> {
    int filter, last;  // of number 0, in its group; how many behind it the last chunk begins that is gathered
    Offset corner;     // its address in pixel 0

    __device__ __forceinline__ void start(const Problem& problem, int first_filter, int group)
    {
        find_place();
        filter = first_filter + element(0);
        if (Y_TOGETHER == NONE && !Y_WHOLE) {
            const int end = max(problem.Kg - CHUNK, 0);
            filter = min(filter, end), last = end - filter;
        }
        corner = offset(problem.y, 0, group * problem.Kg + filter, 0, 0);
        if (Y_TOGETHER == NONE) keep(corner);  // or it is worked out anew in each stage, and so is how many are left
        if (Y_TOGETHER == NONE && !Y_WHOLE) keep(last);
    }

    __device__ __forceinline__ void fetch(unsigned stage, const Element* __restrict__ grad_y, const Pixels& pixels)
    {
        Offset own;
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const bool exists = pixels.exists(pixel(j));
            if (j == 0 || (Y_TOGETHER == CHANNELS && j % OF_PIXEL == 0)) {
                own = corner + pixel_at(pixel(j), pixels);
                if (Y_TOGETHER == NONE) own = exists ? own : corner;
                keep(own);  // or its parts are added anew to each filter's
            }
            const int further = element(j) - element(0);
            if constexpr (Y_TOGETHER == NONE) {
                Offset from = own;
                if (!Y_WHOLE && j > 0) from += min(further, last) * (Offset)Y_APART;
                this->template gather<Y_COUNT, Y_APART>(
                    j, grad_y + from + (Y_WHOLE ? further * (int64)Y_APART : 0), exists);
            } else {
                const bool wanted = exists && (Y_WHOLE || filter + further < pixels.problem.Kg);
                copy(j, stage, grad_y + own + further * (int64)Y_APART, wanted);
            }
        }
    }

    // How far pixel `i` of a stage lies from pixel 0.
    static __device__ __forceinline__ Offset pixel_at(int i, const Pixels& pixels)
    {
        if (Y_EVEN) return (pixels.next + i) * (Offset)pixels.problem.y.w;
        const Pixel at = pixels[i];
        return offset(pixels.problem.y, at.n, 0, at.p, at.q);
    }
};
