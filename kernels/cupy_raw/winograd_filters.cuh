// How the blocks that transform filters come to their windows: 16 filters of 8 channels, a window to a thread.
//
// In w a filter is a row of numbers; in the workspace neighbours are filters. So that both are met by whole sectors the
// windows pass through shared memory: 8 threads bring the numbers of one filter, 9 sectors of floats, and the 16 filters
// are those whose places in the workspace are side by side, two sectors: a warp stores these of two channels at once.
// Bank conflicts: none. A row of 72 numbers begins 8 banks behind the row before it; as many filters as fill all banks
// have their numbers in order, and the next ones in another order of every 8, so that 16 filters times the two channels
// of a warp (of float64 the one of half a warp), whose numbers are 9 or 1 apart, meet 32 banks.
// Sectors: the least, where 8 channels of a filter begin with a sector; loaded window by window 8 times that, or 4 times
// of float64. Cycles on sm_75, simulated, 30 multiprocessors, window by window and with this, of 64 x 64 and 128 x 128
// windows: F(2 x 2) 2,770 to 2,836 and 7,956 to 5,453, F(4 x 4) 5,035 to 4,076 and 9,911 (so in blocks of 32 filters) to
// 8,408. Blocks of 8 filters take 0.87 to 0.95 of these cycles, but too few fit on a multiprocessor of sm_86, which holds
// 16. When each number was put before the next was under way, they took 4,288 instead of 2,486.
// Compiled with -DWEIGHTS: ROWS where a filter's windows lie one after the other, CHANNELS where their channels lie side
// by side, NONE elsewhere: then each thread loads its window as it lies.

#pragma once

#include "winograd.cuh"

enum Lying { NONE, PIXELS, CHANNELS, ROWS };

constexpr int CHUNK = 8;    // channels: one 32-byte sector of floats where they lie side by side
constexpr int WINDOWS = 16;  // filters of a block
constexpr int FILTER_THREADS = WINDOWS * CHUNK, OF_WINDOW = TAPS * TAPS;
__shared__ Accumulator windows[WINDOWS][CHUNK * OF_WINDOW];

__device__ __forceinline__ Accumulator& window_number(int filter, int number)
{
    constexpr int ALIKE = 16 / sizeof(Accumulator), TURN = 8 * ALIKE / WINDOWS;
    return windows[filter][number ^ filter / ALIKE * TURN];
}

// Of CHUNK channels, `channels` of which exist. own: the thread's filter. ROWS: numbers are windows, channel by
// channel; CHANNELS: channels, tap by tap.
__device__ __forceinline__ void bring_windows(const Element* own, const Problem& problem, int channels, bool exists)
{
    const int lane = threadIdx.x % CHUNK;
    Accumulator numbers[OF_WINDOW];
    #pragma unroll
    for (int i = 0; i < OF_WINDOW; ++i) {  // all are under way before the first is waited for
        const bool wanted = exists && (WEIGHTS == ROWS ? i * CHUNK + lane < channels * OF_WINDOW : lane < channels);
        const Offset further = WEIGHTS == ROWS ? i * CHUNK : offset(problem.w, 0, 0, i / TAPS, i % TAPS);
        numbers[i] = wanted ? widened(own[lane + further]) : Accumulator(0);
    }
    #pragma unroll
    for (int i = 0; i < OF_WINDOW; ++i) window_number(threadIdx.x / CHUNK, i * CHUNK + lane) = numbers[i];
}

// This thread's window: of filter number threadIdx.x % WINDOWS of the block's, which is the group's filter k, and of
// channel threadIdx.x / WINDOWS. brought: the group's filter that is number threadIdx.x / CHUNK.
__device__ __forceinline__ void own_window(Accumulator (&window)[TAPS][TAPS], const Element* __restrict__ w,
                                           const Problem& problem, int group, int k, int brought, int first_channel)
{
    const int filter = threadIdx.x % WINDOWS, channel = threadIdx.x / WINDOWS;
    if constexpr (WEIGHTS == NONE) {
        const int c = first_channel + channel;
        const bool exists = k < problem.Kg && c < problem.Cg;
        #pragma unroll
        for (int r = 0; r < TAPS; ++r)
            #pragma unroll
            for (int s = 0; s < TAPS; ++s)
                window[r][s] = exists ? widened(w[offset(problem.w, group * problem.Kg + k, c, r, s)]) : Accumulator(0);
    } else {
        const Element* own = w + offset(problem.w, group * problem.Kg + brought, first_channel, 0, 0);
        bring_windows(own, problem, problem.Cg - first_channel, brought < problem.Kg);
        __syncthreads();
        #pragma unroll
        for (int tap = 0; tap < OF_WINDOW; ++tap)
            window[tap / TAPS][tap % TAPS] =
                window_number(filter, WEIGHTS == ROWS ? channel * OF_WINDOW + tap : tap * CHUNK + channel);
    }
}
