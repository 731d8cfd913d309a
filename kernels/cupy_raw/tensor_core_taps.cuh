// Windows of fewer channels than a chunk has, taps inner: step d of the reduction is of channel d / (R * S), tap
// d % (R * S). What it takes to load an element is found in two halves, which meet in three instructions:
//
//     step     how far from a window's first element; a bit for its row, one for its column    14 instructions, or 1
//     window   its first element; a bit for each of its rows and columns that lies inside      3 for each of them
//     element  x[window + step], where the window has all of the step's bits                   LOP3, IMAD.WIDE, LDG
//
// A thread that gathers several pixels finds a step once for all of them, and one that gathers several steps of a pixel
// its window; steps that the launcher found, see Steps, are looked up.
//
// Rows of a window may be padded, to TAP_ROW taps, which lie outside of every image. Of whole runs, RUN_OF_TAPS taps a
// constant apart in memory, the first is found, and a load adds the constant by itself. Of a run that is a chunk, in
// windows that have no bits of taps, the table has the row and, five bits on, the column of the first, and its bits are
// the window's columns from there on, if the window has the row.
//
// Compiled with problem.cuh's constants, -DTABLE_STEPS (that the launcher's table has; 0: none), -DTAP_ROW (S, or more)
// and -DRUN_OF_TAPS (that the table has one step for).

#pragma once

#include "problem.cuh"

constexpr bool BITS_OF_AXES = R + S < 32;  // bit 31 is no window's
constexpr int TAPS = R * TAP_ROW;

struct Step {
    int r, s;
    bool exists;
    unsigned bits;  // if BITS_OF_AXES
    Offset from;    // how far it lies from the first channel of a window's top left

    __device__ __forceinline__ void find(const Problem& problem, unsigned d)
    {
        const unsigned c = d / TAPS, tap = d % TAPS;
        r = tap / TAP_ROW, s = tap % TAP_ROW, exists = c < problem.Cg && s < S;
        bits = exists ? 1u << r | 1u << (R + s) : ~0u;
        from = offset(problem.x, 0, c, r * DILATION_H, s * DILATION_W);
    }
};

// All steps of the reduction as the launcher found them, an argument of the kernel: a warp, whose lanes want the same
// two, has their distances by one instruction from constant memory, and their bits by another.
constexpr bool TABLE = TABLE_STEPS > 0;
constexpr int PAIRS = TABLE ? TABLE_STEPS / 2 : 1;
struct Steps { int2 from[PAIRS]; uint2 bits[PAIRS]; };

// How far run number `run` of a chunk lies: of 16 bits it has two, of floats one.
constexpr bool RUNS = RUN_OF_TAPS > 1;
__device__ __forceinline__ int first_of_run(const Steps& steps, int chunk, int run)
{
    if constexpr (sizeof(Element) == 4) return reinterpret_cast<const int*>(steps.from)[chunk];
    const int2 two = steps.from[chunk];
    return run == 0 ? two.x : two.y;
}

// Step d, an even one, and the one behind it; from, bits: what the table has of them.
__device__ __forceinline__ void find_pair(Step (&two)[2], const int2& from, const uint2& bits, const Problem& problem,
                                          unsigned d)
{
    if constexpr (TABLE) {
        const int2 froms = from;
        const uint2 both = bits;
        two[0].from = froms.x, two[1].from = froms.y, two[0].bits = both.x, two[1].bits = both.y;
    } else {
        two[0].find(problem, d), two[1].find(problem, d + 1);
    }
}

// What lies so many bytes on, as constant memory is addressed: an index would be scaled by three instructions.
template <typename Found>
__device__ __forceinline__ const Found& bytes_on(const void* first, int bytes)
{
    return *reinterpret_cast<const Found*>(reinterpret_cast<const char*>(first) + bytes);
}

// A number of steps, of whole chunks, as a walk counts them: by bytes of the table, or as they are.
constexpr int in_table(int steps) { return TABLE ? steps * (int)sizeof(int) / RUN_OF_TAPS : steps; }

// Which rows and columns lie in the image, of the window whose top left is (h, w).
__device__ __forceinline__ unsigned axes_inside(const Problem& problem, int h, int w)
{
    unsigned bits = 0;
    #pragma unroll
    for (int r = 0; BITS_OF_AXES && r < R; ++r) bits |= (unsigned)((unsigned)(h + r * DILATION_H) < problem.H) << r;
    #pragma unroll
    for (int s = 0; BITS_OF_AXES && s < S; ++s)
        bits |= (unsigned)((unsigned)(w + s * DILATION_W) < problem.W) << (R + s);
    return bits;
}

// The same in a bit for each tap, and behind the last the first again, so that neighbours tell of the steps of a chunk,
// or of so many AHEAD of the first, wherever it begins: R2P makes predicates of seven bits, where bits of axes take an
// instruction for each step.
constexpr bool has_bits_of_taps(int ahead) { return TABLE && TAPS + ahead <= 64; }
constexpr uint64 every(int distance, int end)
{
    uint64 bits = 0;
    for (int i = 0; i < end && i < 64; i += distance) bits |= 1ull << i;
    return bits;
}

// How many steps along an axis lie before `from`, were there no last one.
template <int DILATION>
__device__ __forceinline__ int before(int from) { return ceil_div(max(from, 0), DILATION); }

// Bits `from` and above; of 32 and more none, where C++ leaves it open.
__device__ __forceinline__ unsigned bits_above(int from)
{
    unsigned bits;
    asm("shl.b32 %0, %1, %2;" : "=r"(bits) : "r"(~0u), "r"(from));
    return bits;
}

// A bit for each of 32 steps along an axis that lies in the image, which begins and ends so far from the first.
template <int DILATION>
__device__ __forceinline__ unsigned steps_inside(int begin, int end)
{
    return bits_above(before<DILATION>(begin)) & ~bits_above(before<DILATION>(end));
}

// From a window's top left, how far down the image begins and ends, and how far to the right.
template <int AHEAD>
__device__ __forceinline__ uint64 taps_inside(int top, int bottom, int left, int right)
{
    const unsigned columns = steps_inside<DILATION_W>(left, right) & (1u << S) - 1;
    const int above = min(before<DILATION_H>(top), R) * TAP_ROW, until = min(before<DILATION_H>(bottom), R) * TAP_ROW;
    return (columns * every(TAP_ROW, TAPS) & ~0ull << above & ~(~0ull << until)) * every(TAPS, TAPS + AHEAD);
}

// Whether a step of it does; `inside`: as axes_inside says.
__device__ __forceinline__ bool has_inside(const Problem& problem, const Step& step, unsigned inside, int h, int w)
{
    if constexpr (BITS_OF_AXES) return (step.bits & ~inside) == 0;
    return step.exists && (unsigned)(h + step.r * DILATION_H) < problem.H
           && (unsigned)(w + step.s * DILATION_W) < problem.W;
}

__device__ __forceinline__ unsigned bits_of(const Element& element)
{
    if constexpr (sizeof(Element) == 2) return reinterpret_cast<const unsigned short&>(element);
    else return reinterpret_cast<const unsigned&>(element);
}

// A word of one element, or of two, each with zeros above its bits; zero if it is not wanted. The same instruction
// does both: it takes any four of eight bytes.
__device__ __forceinline__ unsigned word_of(const unsigned* elements, bool wanted)
{
    if constexpr (sizeof(Element) == 2) return __byte_perm(elements[0], elements[1], wanted ? 0x5410 : 0x2222);
    else return wanted ? elements[0] : 0;
}

// An element's bits, or zero where it is not wanted: without a branch, and whatever the address is then.
__device__ __forceinline__ unsigned load_if(int wanted, const Element* from)
{
    unsigned bits = 0;
    const auto global = __cvta_generic_to_global(from);
    if constexpr (sizeof(Element) == 2)
        asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u16 %0, [%2]; }"
            : "+r"(bits) : "r"(wanted), "l"(global));
    else
        asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u32 %0, [%2]; }"
            : "+r"(bits) : "r"(wanted), "l"(global));
    return bits;
}
