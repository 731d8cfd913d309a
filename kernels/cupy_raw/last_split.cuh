// Splits of a tile that add their sums in the same launch: each leaves its own in memory, and the block that comes last
// adds them all, in their order, whichever it is. So the same call gives the same bits, and nobody waits for anybody.
//
//     split 0   sums --> memory   count 0 -> 1   done               a block: its threads write, one barrier; then one
//     split 2   sums --> memory   count 1 -> 2   done               thread, between two fences, counts; another barrier
//     split 1   sums --> memory   count 2 -> 0   reads 0, 1, 2      tells all of them whether theirs is the last
//
// The fences and barriers order what the others wrote before what the last one reads: a barrier, then the thread's
// fence and its count release it; their count, read by the last one's, its fence and its barrier acquire it. A count
// begins at zero, which pack_filters writes behind the weights, and atomicInc leaves it there for the next call.
// What it costs the last block: four answers of L2, one after the other (of its writes, its fence, its count, the first
// sums that it reads), 0.7 us, and the bytes that it brings alone, 16 KB of a split of 64 x 64 in 0.23 us, if it asks for
// the next before the last have come: see tensor_core.cu. A launch that adds them takes 3 us after this one's end, so that
// it pays from 10 such splits on. If the block waits for each row of sums by itself, a split takes 0.9 us.
// Source: NVIDIA, CUDA samples, threadFenceReduction; PTX ISA, "Memory consistency model"; Osama et al., Stream-K, PPoPP
// 2023, whose last block waits for the others instead.

#pragma once

#include "storage.cuh"

// Whether this block is the last of `splits` to come to `count`; if so, all its threads see what the others' wrote.
// flag: shared memory that nobody reads any more, then or behind.
__device__ __forceinline__ bool comes_last(unsigned* count, unsigned splits, bool& flag)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        flag = atomicInc(count, splits - 1) == splits - 1;
        __threadfence();
    }
    __syncthreads();
    const bool last = flag;
    __syncthreads();
    return last;
}
