// Windows of fewer channels than a chunk has, taps inner: step d of the reduction is of channel d / (R * S), tap
// d % (R * S). What it takes to load an element is found in two halves, which meet in three instructions:
//
//     step     how far from a window's first element; a bit for its row, one for its column    14 instructions
//     window   its first element; a bit for each of its rows and columns that lies inside      3 for each of them
//     element  x[window + step], where the window has all of the step's bits                   LOP3, IMAD.WIDE, LDG
//
// A thread that gathers several pixels finds a step once for all of them, and one that gathers several steps of a pixel
// its window.
//
// Compiled with problem.cuh's constants.

#pragma once

#include "problem.cuh"

// Keep what was worked out once from the compiler, which would do it anew in each stage; not in 64 bits, which want two
// registers each.
__device__ __forceinline__ void keep(int& distance) { asm volatile("" : "+r"(distance)); }
__device__ __forceinline__ void keep(int64&) {}

constexpr bool BITS_OF_AXES = R + S < 32;  // bit 31 is no window's

struct Step {
    int r, s;
    bool exists;
    unsigned bits;  // if BITS_OF_AXES
    Offset from;    // how far it lies from the first channel of a window's top left

    __device__ __forceinline__ void find(const Problem& problem, unsigned d)
    {
        const unsigned c = d / (R * S), tap = d % (R * S);
        r = tap / S, s = tap % S, exists = c < problem.Cg, bits = exists ? 1u << r | 1u << (R + s) : ~0u;
        from = offset(problem.x, 0, c, r * DILATION_H, s * DILATION_W);
    }
};

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

// An element's bits, or anything where it is not wanted: without a branch, and whatever the address is then.
__device__ __forceinline__ unsigned loaded_if(bool wanted, const Element* from)
{
    unsigned bits;
    const auto global = __cvta_generic_to_global(from);
    if constexpr (sizeof(Element) == 2)
        asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u16 %0, [%2]; }"
            : "=r"(bits) : "r"((int)wanted), "l"(global));
    else
        asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u32 %0, [%2]; }"
            : "=r"(bits) : "r"((int)wanted), "l"(global));
    return bits;
}

// Or zero there.
__device__ __forceinline__ unsigned load_if(bool wanted, const Element* from)
{
    unsigned bits = 0;
    const auto global = __cvta_generic_to_global(from);
    if constexpr (sizeof(Element) == 2)
        asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u16 %0, [%2]; }"
            : "+r"(bits) : "r"((int)wanted), "l"(global));
    else
        asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u32 %0, [%2]; }"
            : "+r"(bits) : "r"((int)wanted), "l"(global));
    return bits;
}
