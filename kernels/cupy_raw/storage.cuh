// The type that arrays have in memory, and the type that sums are kept in.
// Compiled with -DELEMENT=float16, bfloat16, float or double; 16-bit types are summed in float and rounded once.
//
// No header of CUDA is needed: float16 converts by its PTX instructions, bfloat16 is the upper half of a float.
// Both keep NaNs, infinities and their own denormals, and round to the nearest, ties to even.

#pragma once

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ __forceinline__ float widened(float16 value)
{
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

__device__ __forceinline__ float widened(bfloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }
__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ double widened(double value) { return value; }

__device__ __forceinline__ void round_to(float16& result, float value)
{
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
}

// sm_75 has no instruction for it. Adding just under half a step, and the last kept bit, rounds ties to even and lets
// the carry turn an overflow into infinity; only a NaN must be kept from becoming one.
__device__ __forceinline__ void round_to(bfloat16& result, float value)
{
    const unsigned bits = __float_as_uint(value);
    result.bits = value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

__device__ __forceinline__ void round_to(float& result, float value) { result = value; }
__device__ __forceinline__ void round_to(double& result, double value) { result = value; }

using Element = ELEMENT;
using Accumulator = decltype(widened(Element()));

// As much as one thread loads or stores at once: 128 bits.
constexpr int VECTOR = 16 / sizeof(Accumulator);
struct alignas(16) Vector { Accumulator lane[VECTOR]; };

// As many elements as lie side by side in memory and are loaded or stored at once, by 128 bits at most.
template <int COUNT> struct alignas(COUNT * sizeof(Element) < 16 ? COUNT * sizeof(Element) : 16) Several {
    Element lane[COUNT];
};
template <int COUNT> __device__ __forceinline__ const Several<COUNT>& several(const Element* first)
{
    return *reinterpret_cast<const Several<COUNT>*>(first);
}
