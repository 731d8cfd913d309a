// The instructions of the tensor cores, as PTX: NVRTC comes without mma.h. A warp multiplies 16 pixels by 8 filters,
// 32 bytes of the reduction at a time: 16 steps of a 16-bit type, or 8 of float, rounded to TF32.
//
//     lane l, g = l / 4, t = l % 4:   a[0], a[1]   pixels g and g + 8, bytes 4 t .. 4 t + 3 of the first 16
//                                     a[2], a[3]   the same of the other 16
//                                     b[0], b[1]   filter g, bytes 4 t .. of the first 16, of the other 16
//                                     sums         (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
//
// ldmatrix brings four 8 x 16-byte matrices, their rows from the addresses of lanes 0-7, 8-15, 16-23 and 24-31, and
// spreads each as a register above; so floats are loaded as 16-bit types are.
// Source: NVIDIA, PTX ISA, "Matrix Fragments for mma.m16n8k16" and ".m16n8k8", "ldmatrix", "cp.async".

#pragma once

#include "storage.cuh"

__device__ __forceinline__ unsigned shared_address(const void* pointer) { return __cvta_generic_to_shared(pointer); }

__device__ __forceinline__ void store_shared(unsigned to, const uint4& chunk)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "r"(chunk.x), "r"(chunk.y), "r"(chunk.z), "r"(chunk.w) : "memory");
}

__device__ __forceinline__ void load_word(unsigned& to, unsigned from)
{
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(to) : "r"(from) : "memory");
}

__device__ __forceinline__ void load_words(unsigned& first, unsigned& second, unsigned from)
{
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(first), "=r"(second) : "r"(from) : "memory");
}

__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

// The first two, from the addresses of the first 16 lanes; sm_75 wants the others' to be good ones, too.
__device__ __forceinline__ void load_matrices(unsigned (&to)[2], unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1]) : "r"(row) : "memory");
}

// All four, each transposed: of 16-bit types, the rows are the reduction's steps.
__device__ __forceinline__ void load_transposed(unsigned (&to)[4], unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

// A float's nearest of 11 significant bits, as tensor cores take it; of ties, the even one, which sm_90 finds in one
// instruction, or the one away from zero, which takes two: a NaN must not carry into its sign.
__device__ __forceinline__ unsigned to_tf32(float value)
{
    unsigned result;
#if __CUDA_ARCH__ >= 900
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
#else
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
#endif
    return result;
}

// A float as the nearest TF32 number and what that leaves, exactly; of that, too, tensor cores look at the first 11
// bits alone, all but the last. Three instructions; with cvt.rna.tf32, which looks for NaNs, there would be nine. The
// rest of a NaN is one, whatever the carry makes of its number.
__device__ __forceinline__ void split_tf32(unsigned& value, unsigned& rest)
{
    const unsigned nearest = value + 0x1000 & 0xffffe000;
    rest = __float_as_uint(__uint_as_float(value) - __uint_as_float(nearest));
    value = nearest;
}

// A weight as tensor cores take it.
__device__ __forceinline__ float16 as_taken(float16 weight) { return weight; }
__device__ __forceinline__ bfloat16 as_taken(bfloat16 weight) { return weight; }
__device__ __forceinline__ float as_taken(float weight) { return __uint_as_float(to_tf32(weight)); }

// m16n8k8 of float16 is all that sm_75 has.
__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    #pragma unroll
    for (int half = 0; half < 2; ++half)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

#if __CUDA_ARCH__ >= 800

__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], float)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes from global to shared memory, past the registers and the L1 cache; zeros where they are not wanted.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool wanted = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most PENDING of this thread's latest groups of copies are still under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

#else  // sm_75: stages come by registers, and a barrier is all they need

__device__ __forceinline__ void copy_async(unsigned to, const void* from)
{
    store_shared(to, *reinterpret_cast<const uint4*>(from));
}

__device__ __forceinline__ void commit_copies() {}
template <int> __device__ __forceinline__ void wait_for_copies() {}

#endif
