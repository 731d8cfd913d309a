// How the stages of tensor_core.cu are brought: at which chunk of the reduction a thread is, which taps of its windows
// lie in the image, and where both lie in memory.
//
//     reduction   tap 0                       tap 1              a chunk: 16 bytes, some channels of one tap
//                 +----+----+----+----+----+  +----+----+ ...    a stage: 4 chunks, of one tap or several
//     Cg = 34     |  8 |  8 |  8 |  8 |xx 2|  |  8 |  8 |
//                 +----+----+----+----+----+  +----+----+ ...    DROPPED = 6: x is read again, and is zero here
//
// A tap's last chunk ends with its last channel. Had it begun where the one before ends, each of its elements would
// need a condition, 10 instructions in all instead of 2 to 3. The weights are zero there too, but zero times infinity
// is NaN. Fewer channels than a chunk has: taps inner, see tensor_core_taps.cuh.
// What the stages have in common is found once: a bit for each tap of a window that lies in the image, and how far it is
// from a tap to the next. A thread spends 8 instructions on a place in the reduction, and LONG_TAPS, where a tap has as
// many channels as a stage, one step takes it to its place in the next; 5 on each pixel's chunk; on an element of 16 bits
// a load, and half of one each to pack it and to drop what is outside.
//
// Compiled with tensor_core.cu's constants.

#pragma once

#include "cut.cuh"
#include "tensor_core_taps.cuh"
#include "tensor_core_tile.cuh"

constexpr int CHUNKS = 4;                         // of a row of a stage
constexpr int DEPTH = CHUNKS * CHUNK;             // reduction steps per stage

constexpr int PIXEL_BYTES = TILE_M * CHUNKS * 16, STAGE_BYTES = PIXEL_BYTES + TILE_K * CHUNKS * 16;

// A thread's part of a stage of pixels: OWN of them, COLUMNS chunks of each; a block has AT_ONCE pixels beside each
// other. What is gathered from a stage of one tap is found of a pixel's tap for all columns, so that these are one
// thread's; else of a step, or of where a chunk begins, for all pixels, so that a warp has one column, or as few as there
// are, where registers allow.
constexpr int FEWEST = THREADS / CHUNKS > 32 ? THREADS / CHUNKS : 32;
constexpr int MOST = TILE_M >= THREADS ? THREADS : THREADS % TILE_M == 0 ? TILE_M : FEWEST;
constexpr bool OF_A_COLUMN = FEWEST * CHUNKS % THREADS == 0 && (TAPS_INNER || (!ONE_TAP && TILE_M <= 4 * FEWEST));
constexpr int AT_ONCE = TOGETHER ? THREADS / CHUNKS : OF_A_COLUMN ? FEWEST : MOST;
constexpr int OWN = TILE_M / AT_ONCE, COLUMNS = TILE_M * CHUNKS / THREADS / OWN;
constexpr bool ALL_BRING_FILTERS = TILE_K * CHUNKS >= THREADS;  // or the first warps a chunk each, the rest none
constexpr int OWN_FILTERS = ALL_BRING_FILTERS ? TILE_K * CHUNKS / THREADS : 1;
static_assert(OWN * COLUMNS * THREADS == TILE_M * CHUNKS && THREADS % AT_ONCE == 0);
static_assert(!ALL_BRING_FILTERS || OWN_FILTERS * THREADS == TILE_K * CHUNKS);

// Taps inner: a bit for each tap of a window, if that can be, and in a loop, of 16-bit types: one stage alone, or four
// elements of a chunk, are no more than it takes to find them.
constexpr int AHEAD = COLUMNS * CHUNK - 1;
constexpr bool BITS_OF_TAPS = TAPS_INNER && !RUNS && sizeof(Element) == 2 && !ONE_STAGE && has_bits_of_taps(AHEAD);

constexpr bool POINTERS = !PRECISE || OWN <= 2;  // taps inner: or three products leave no registers for these

// Where chunk `column` of row `row` lies within a stage's pixels, or filters.
__device__ __forceinline__ int place_of(int row, int column) { return (row * CHUNKS + (column ^ row >> 1 & 3)) * 16; }

// Of small windows, the bits of the taps in the last column.
constexpr bool BITS = TAPS + CHUNKS <= 32;
constexpr unsigned last_column()
{
    unsigned bits = 0;
    for (int tap = S - 1; BITS && tap < TAPS; tap += S) bits |= 1u << tap;
    return bits;
}
constexpr unsigned LAST_COLUMN = last_column();

// Which chunk of the reduction: CHUNK channels of one tap (r, s) from `channel` on; taps inner: the steps from it on, as
// in_table tells them.
struct Spot {
    int channel, r, s;
    unsigned bit;              // among the taps, see Inside
    Offset step;               // how far it lies from the first channel of a window's top left
    Offset to_right, to_next;  // of that: from behind the last channel of a tap to its neighbour, to the next row
    int tap, left;             // if BITS_OF_TAPS: of the step, and how many steps there are from it on

    // As far as it goes at once passes the end of one tap at most.
    static constexpr int PART = ONE_TAP ? DEPTH : CHUNK;
    static constexpr int MOST_PARTS = LONG_TAPS ? CHUNKS : 1;

    __device__ __forceinline__ void start(const Problem& problem, const Cut& cut, int d)
    {
        const int tap = TAPS_INNER ? 0 : d / cut.channels;
        channel = TAPS_INNER ? in_table(d) : d % cut.channels, r = tap / S, s = tap % S, bit = 1u << tap % 32;
        step = offset(problem.x, 0, channel, r * DILATION_H, s * DILATION_W);
        to_right = offset(problem.x, 0, -cut.channels, 0, DILATION_W);
        to_next = offset(problem.x, 0, -cut.channels, DILATION_H, (1 - S) * DILATION_W);
        keep(to_right), keep(to_next);
        this->tap = d % TAPS, left = max(problem.Cg * TAPS - d, 0);
    }

    // If BITS_OF_TAPS: of a window's, those of the steps of a thread's columns, and none of those behind the last, which
    // are the first channel's again: their weights are zero, but zero times infinity is NaN.
    __device__ __forceinline__ unsigned wanted_of(uint64 bits) const
    {
        return (unsigned)(bits >> tap) & ~bits_above(left);
    }

    __device__ __forceinline__ void pass_taps()
    {
        const unsigned next = tap + DEPTH % TAPS;
        tap = min(next, next - TAPS);  // the one that is not negative
        left = max(left - DEPTH, 0);
    }

    __device__ __forceinline__ void advance(const Cut& cut, int parts = 1)
    {
        #pragma unroll
        for (int left = parts; left > 0; left -= MOST_PARTS) {
            const int further = (left < MOST_PARTS ? left : MOST_PARTS) * PART;
            channel += TAPS_INNER ? in_table(further) : further;
            if constexpr (TAPS_INNER) continue;
            const bool passed = channel >= cut.channels;
            const bool last = S == 1 || (BITS ? bit & LAST_COLUMN : s == S - 1);
            step += further * (Offset)X_APART;
            if (passed) step += last ? to_next : to_right;
            if (passed) channel -= cut.channels, bit += bit;
            r += passed && last, s = !passed ? s : last ? 0 : s + 1;
        }
    }
};

constexpr int IN_WORD = 4 / sizeof(Element);  // elements

// Which taps of a pixel's window lie in the image. Of small windows a bit for each, found once; chunks that pad the
// last stage are of up to three taps more, which lie outside. Taps inner, see taps_inside, or axes_inside.
struct Inside {
    int h, w;       // top left; h is far outside where there is no such pixel
    unsigned taps;  // if BITS
    uint64 bits;    // if BITS_OF_TAPS
    unsigned rows, columns;  // if RUNS

    __device__ __forceinline__ void start(const Problem& problem, int top, int left)
    {
        h = top, w = left, taps = TAPS_INNER && !BITS_OF_TAPS && !RUNS ? axes_inside(problem, h, w) : 0;
        rows = !RUNS || h == FAR ? 0 : steps_inside<DILATION_H>(-h, problem.H - h) & ~bits_above(R);
        columns = RUNS ? steps_inside<DILATION_W>(-w, problem.W - w) & ~bits_above(S) : 0;
        if constexpr (BITS_OF_TAPS) bits = h == FAR ? 0 : taps_inside<AHEAD>(-h, problem.H - h, -w, problem.W - w);
        #pragma unroll
        for (int tap = 0; BITS && !TAPS_INNER && tap < TAPS; ++tap)
            taps |= (unsigned)contains(problem, tap / S, tap % S) << tap;
    }

    __device__ __forceinline__ bool contains(const Problem& problem, int r, int s) const
    {
        return (unsigned)(h + r * DILATION_H) < problem.H && (unsigned)(w + s * DILATION_W) < problem.W;
    }

    __device__ __forceinline__ bool contains(const Problem& problem, const Spot& spot) const
    {
        return BITS ? taps & spot.bit : spot.r < R && contains(problem, spot.r, spot.s);
    }

    __device__ __forceinline__ bool contains(const Problem& problem, const Step& step) const
    {
        return has_inside(problem, step, taps, h, w);
    }
};

// The windows of a thread's pixels, and how far it has walked along the reduction.
struct Walk {
    Inside inside[OWN];
    Offset corner[OWN];    // address of each window's top left
    const Element* window[OWN];  // taps inner: the same as a pointer, see address_of
    Spot spot;             // of the thread's first column in the next stage to fetch
    int first_place;       // of its first chunk, in a stage
    uint4 held[OWN * COLUMNS];

    static __device__ __forceinline__ int own_pixel(int j)
    {
        return (TOGETHER ? threadIdx.x / CHUNKS : threadIdx.x % AT_ONCE) + j * AT_ONCE;
    }
    static __device__ __forceinline__ int own_column(int i)
    {
        return TOGETHER ? threadIdx.x % CHUNKS : threadIdx.x / AT_ONCE * COLUMNS + i;
    }
    // Its pixels lie a multiple of 8 rows apart, which are swizzled alike; its columns differ in their last bits.
    __device__ __forceinline__ int own_place(int stage, int j, int i) const
    {
        return (stage + first_place ^ i * 16) + j * AT_ONCE * CHUNKS * 16;
    }

    __device__ __forceinline__ void start(const Element* __restrict__ x, const Problem& problem, const Cut& cut,
                                          Index first_pixel, int group, int stage)
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            Index pixel = first_pixel + own_pixel(j);
            const bool exists = pixel < cut.pixels;
            const int q = pixel % problem.Q; pixel /= problem.Q;
            const int p = pixel % problem.P, n = pixel / problem.P;
            const int h = p * STRIDE_H - problem.top, w = q * STRIDE_W - problem.left;
            inside[j].start(problem, exists ? h : FAR, w);
            corner[j] = offset(problem.x, n, group * problem.Cg, h, w);
            if constexpr (TAPS_INNER && POINTERS) {
                window[j] = x + corner[j];
                asm volatile("" : "+l"(window[j]));
            }
        }
        spot.start(problem, cut, stage * DEPTH + own_column(0) * CHUNK);
        first_place = place_of(own_pixel(0), own_column(0));
        asm volatile("" : "+r"(first_place));  // or it is worked out anew in each stage
    }

    // Bring the next stage: into `stage` at once, by cp.async, or into registers, whence `put` takes it.
    __device__ __forceinline__ void fetch(unsigned stage, const Element* __restrict__ x, const Problem& problem,
                                          const Cut& cut, const Steps& steps)
    {
        if constexpr (TOGETHER) {
            #pragma unroll
            for (int j = 0; j < OWN; ++j) {
                const bool wanted = inside[j].contains(problem, spot);
                const Element* from = x + (corner[j] + spot.step);
#if __CUDA_ARCH__ >= 800
                copy_async(own_place(stage, j, 0), from, wanted);
#else
                held[j] = wanted ? *reinterpret_cast<const uint4*>(from) : uint4{};
#endif
            }
            spot.advance(cut, DEPTH / Spot::PART);
        } else {
            Window windows[OWN];
            unsigned wanted[OWN];
            if constexpr (BITS_OF_TAPS) {
                #pragma unroll
                for (int j = 0; j < OWN; ++j) wanted[j] = spot.wanted_of(inside[j].bits);
                spot.pass_taps();
            }
            #pragma unroll
            for (int i = 0; i < COLUMNS; ++i) {
                if constexpr (TAPS_INNER) {
                    gather_taps(i, x, problem, steps, wanted);
                } else {
                    #pragma unroll
                    for (int j = 0; j < OWN; ++j) {
                        if (i == 0 || !ONE_TAP) windows[j] = window_of(j, problem, cut);
                        held[j * COLUMNS + i] = gathered(windows[j], ONE_TAP ? i * CHUNK : 0, x);
                    }
                }
                if (!ONE_TAP && i < COLUMNS - 1) spot.advance(cut);
            }
            spot.advance(cut, ONE_TAP ? 1 : CHUNKS + 1 - COLUMNS);
        }
    }

    // A step of pixel j, in one instruction, and not in the four of a 64-bit sum of all: by a pointer, or, where three
    // products leave no registers for these, in two, by a sum in 32 bits.
    __device__ __forceinline__ const Element* address_of(int j, const Step& step, const Element* __restrict__ x) const
    {
        if constexpr (POINTERS) return window[j] + step.from;
        else if constexpr (WIDE) return x + (corner[j] + step.from);
        else return x + (int)((unsigned)corner[j] + (unsigned)step.from);
    }

    // Column i of all pixels, taps inner.
    __device__ __forceinline__ void gather_taps(int i, const Element* __restrict__ x, const Problem& problem,
                                                const Steps& steps, const unsigned (&wanted)[OWN])
    {
        #pragma unroll
        for (int j = 0; j < OWN; ++j) held[j * COLUMNS + i] = {};
        if constexpr (RUNS) return gather_run(i, x, steps);
        Step chunk[CHUNK];
        #pragma unroll
        for (int d = 0; d < CHUNK; d += 2) {
            const int at = spot.channel + in_table(d);
            Step two[2];
            find_pair(two, bytes_on<int2>(steps.from, at), bytes_on<uint2>(steps.bits, at), problem, at);
            chunk[d] = two[0], chunk[d + 1] = two[1];
        }
        #pragma unroll
        for (int j = 0; j < OWN; ++j)
            #pragma unroll
            for (int e = 0; e < CHUNK; ++e) {
                const Step& step = chunk[e];
                const int is_wanted =
                    BITS_OF_TAPS ? wanted[j] & 1u << (i * CHUNK + e) : inside[j].contains(problem, step);
                const unsigned bits = load_if(is_wanted, address_of(j, step, x));
                reinterpret_cast<unsigned(&)[4]>(held[j * COLUMNS + i])[e / IN_WORD] += bits << e % IN_WORD * 16;
            }
    }

    // The same of chunks that are runs of taps.
    __device__ __forceinline__ void gather_run(int i, const Element* __restrict__ x, const Steps& steps)
    {
        Step first;
        first.from = bytes_on<int>(steps.from, spot.channel);
        const unsigned place = bytes_on<unsigned>(steps.bits, spot.channel);
        #pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const unsigned wanted = inside[j].rows & 1u << place % 32 ? inside[j].columns >> place / 32 : 0;
            const Element* from = address_of(j, first, x);
            #pragma unroll
            for (int e = 0; e < CHUNK; ++e) {
                const unsigned bits = load_if(wanted & 1u << e, from + e * DILATION_W * (int64)X_APART);
                reinterpret_cast<unsigned(&)[4]>(held[j * COLUMNS + i])[e / IN_WORD] += bits << e % IN_WORD * 16;
            }
        }
    }

    // Where a pixel's channels lie from `spot` on. Loads need no conditions if what is outside is taken from x's first
    // window, and dropped afterwards. A group's last chunk ends with its last channel: it begins with DROPPED channels
    // of the chunk before, which are dropped too.
    struct Window {
        bool inside, last;
        Offset first;
    };

    __device__ __forceinline__ Window window_of(int j, const Problem& problem, const Cut& cut) const
    {
        const bool wanted = inside[j].contains(problem, spot);
        const bool last = DROPPED > 0 && spot.channel + CHUNK >= cut.channels;
        const Offset first = corner[j] + spot.step - (last ? DROPPED * (Offset)X_APART : 0);
        return {wanted, last, wanted ? first : 0};
    }

    // The chunk from channel `from` of the window on.
    static __device__ __forceinline__ uint4 gathered(const Window& window, int from, const Element* __restrict__ x)
    {
        Chunk chunk;
        #pragma unroll
        for (int i = 0; i < CHUNK; ++i) chunk.lane[i] = x[window.first + (from + i) * (Offset)X_APART];
        unsigned(&words)[4] = reinterpret_cast<unsigned(&)[4]>(chunk);
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bool kept = window.inside && !(window.last && (i + 1) * IN_WORD <= DROPPED);
            const bool second = i * IN_WORD < DROPPED && DROPPED < (i + 1) * IN_WORD;
            words[i] = kept ? words[i] : 0;
            if (second && window.last) words[i] &= 0xffff0000;
        }
        return reinterpret_cast<const uint4&>(chunk);
    }

    __device__ __forceinline__ void put(int stage) const
    {
        if constexpr (TOGETHER && __CUDA_ARCH__ >= 800) return;
        #pragma unroll
        for (int j = 0; j < OWN; ++j)
            #pragma unroll
            for (int i = 0; i < COLUMNS; ++i)
                store_shared(own_place(stage, j, i), held[j * COLUMNS + i]);
    }
};

// The packed weights of the block's filters, in the order in which they lie in a stage, but for the swizzle.
struct FilterWalk {
    const uint4* next;  // this thread's first chunk of the next stage to fetch
    int first_place;    // in a stage's filters
    uint4 held[OWN_FILTERS];

    __device__ __forceinline__ void start(const uint4* first)
    {
        next = first + threadIdx.x;
        first_place = place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
        asm volatile("" : "+r"(first_place));
    }

    static __device__ __forceinline__ bool brings() { return ALL_BRING_FILTERS || threadIdx.x < TILE_K * CHUNKS; }

    __device__ __forceinline__ void fetch(unsigned stage, int filters)
    {
        if (!brings()) return;
        #pragma unroll
        for (int j = 0; j < OWN_FILTERS; ++j)
#if __CUDA_ARCH__ >= 800
            copy_async(stage + first_place + j * THREADS * 16, next + j * THREADS, true);
#else
            held[j] = next[j * THREADS];
#endif
        next += filters * CHUNKS;
    }

    __device__ __forceinline__ void put(int stage) const
    {
        if constexpr (__CUDA_ARCH__ >= 800) return;
        if (!brings()) return;
        #pragma unroll
        for (int j = 0; j < OWN_FILTERS; ++j)
            store_shared(stage + first_place + j * THREADS * 16, held[j]);
    }
};
