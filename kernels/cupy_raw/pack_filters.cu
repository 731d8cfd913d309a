// The weights of an implicit GEMM in the order of its reduction, filters side by side, padded with zeros.
//
//     w[k, c, tap]  ->  packed[row, k]        row = tap * channels + c, or with taps inner c * R * S + tap
//
//              32 numbers                        16 filters            numbers: c and tap, the one that lies inner in w
//            +------------+                     +---------+            counted first; each has its row of `packed`
//         16 | a warp:    |   in registers   32 | as many |            a thread: 4 x 4 weights, loaded into the registers
//    filters | 8 x 4 lanes| -------------->     | stores, |            from which 4 of a row leave at once (float64: 2 x 2)
//            +------------+                     | 64 bytes|            a block: one warp, which goes through 64 filters
//                                               +---------+
//
// ALONG says how w lies: its filters are ROWS of numbers; or FILTERS lie side by side, four of them aligned; or as its
// strides have it (STRIDES). A thread's numbers are 8 apart, its neighbours' in between: so a load takes a sector of each
// of 4 filters, or 64 bytes of each of 8 numbers, and a store 64 bytes of each of 8 rows. Shared memory: none.
// Which row a number has is worked out once; then a thread walks along 64 filters. Where all of a warp's weights exist,
// nothing is asked: loads of ROWS differ in constants, stores too, and two instructions lead from filter to filter.
// Instructions for a weight and lane on sm_80: 2.8 of OIHW, 3.2 of OHWI, 2.4 of HWIO (512 x 512 x 3 x 3); a square of
// weights turned around in shared memory, one by one, took 45, 37 % of what a single call of 512x7x7-512-3x3 issued at
// one image; now 4 %.
// Loads of 128 bits save nothing: four numbers of a filter come in registers side by side, where a store wants
// four filters of a number, and it takes 16 moves to turn 4 x 4 of them: more than the 12 loads less.
// One warp a block: on 30 multiprocessors, simulated, 288 blocks took 21,843 cycles for 256 x 256 x 3 x 3 where 72 of four
// warps took 33,365. To walk along 32 filters only, in twice the blocks, took 17,145, but 3.8 instructions.
// Limits: none on the weights.
//
// Compiled with storage.cuh's and problem.cuh's constants, -DORDER (0: channels inner in `packed`, 1: taps inner),
// -DALONG, -DCHANNELS_INNER (1: they are numbered first).

#include "cut.cuh"

enum Along { STRIDES, ROWS, FILTERS };
constexpr int TAPS = R * S;
constexpr int NUMBER_LANES = 8, FILTER_LANES = 4, STEPS = 4, THREADS = 32;
constexpr int OF_WARP = NUMBER_LANES * VECTOR, OF_STEP = FILTER_LANES * VECTOR;  // numbers; filters
constexpr int AT_ONCE = ALONG == FILTERS ? VECTOR : 1;

// A number's channel and tap, and its row of `packed`.
struct Step {
    int c, tap;

    __device__ __forceinline__ Step(unsigned number, const Cut& cut)
    {
        tap = CHANNELS_INNER ? number / (unsigned)cut.channels : number % TAPS;
        c = CHANNELS_INNER ? number - tap * cut.channels : number / TAPS;
    }
    __device__ __forceinline__ int row(const Cut& cut) const
    {
        return ORDER == 1 ? c * TAPS + tap : tap * cut.channels + c;
    }
};

// Of a thread, number v of its VECTOR, and filter e of its VECTOR in each of STEPS.
struct Own {
    const Element* w;
    Offset from[ALONG == ROWS ? 1 : VECTOR];  // of a number, or of all: its first filter
    Accumulator* packed[VECTOR];
    bool exists[VECTOR], padded[VECTOR];  // in w; in `packed`

    // group, filter, first: of w's, of a group's and of a filter's numbers, the thread's first.
    __device__ __forceinline__ Own(const Element* w, Accumulator* all, int group, int filter, int first,
                                   const Problem& problem, const Cut& cut) : w(w)
    {
        const Offset of_filter = (group * problem.Kg + filter) * (Offset)problem.w.n;
        #pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const int number = first + v * NUMBER_LANES;
            const Step step(number, cut);
            if (ALONG != ROWS) from[v] = of_filter + offset(problem.w, 0, step.c, step.tap / S, step.tap % S);
            packed[v] = all + ((group * (Offset)cut.depth + step.row(cut)) * cut.filters + filter);
            padded[v] = number < cut.depth;
            exists[v] = padded[v] && step.c < problem.Cg;
        }
        if (ALONG == ROWS) from[0] = of_filter + first;
    }

    // filters: how many there are from this thread's first on, of w and of `packed`.
    template <bool WHOLE> __device__ __forceinline__ void copy(Offset apart, int filters, int padded_filters)
    {
        #pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int at = step * OF_STEP;
            if (!WHOLE && at >= padded_filters) return;
            Vector turned[VECTOR] = {};
            #pragma unroll
            for (int e = 0; e < VECTOR; e += AT_ONCE)
                #pragma unroll
                for (int v = 0; v < VECTOR; ++v)
                    if (WHOLE || (exists[v] && at + e < filters)) load(turned[v], e, v, (at + e) * apart);
            #pragma unroll
            for (int v = 0; v < VECTOR; ++v)
                if (WHOLE || padded[v]) *reinterpret_cast<Vector*>(packed[v] + at) = turned[v];
        }
    }

    __device__ __forceinline__ void load(Vector& turned, int e, int v, Offset further) const
    {
        const Element* first = ALONG == ROWS ? w + (from[0] + further) + v * NUMBER_LANES : w + (from[v] + further);
        const Several<AT_ONCE> weights = several<AT_ONCE>(first);
        #pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) turned.lane[e + i] = widened(weights.lane[i]);
    }
};

// grid: groups, over filters STEPS * OF_STEP a block, over depth OF_WARP; block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS)
pack_filters(const Element* __restrict__ w, Accumulator* __restrict__ packed, Problem problem, Cut cut)
{
    const int group = blockIdx.x, lane = threadIdx.x;
    const int filter = blockIdx.y * (STEPS * OF_STEP) + lane / NUMBER_LANES * VECTOR;
    const int of_warp = blockIdx.z * OF_WARP;
    Own own(w, packed, group, filter, of_warp + lane % NUMBER_LANES, problem, cut);
    const bool filters_exist = (blockIdx.y + 1) * (STEPS * OF_STEP) <= problem.Kg;
    const bool numbers_exist = cut.depth == problem.Cg * TAPS && of_warp + OF_WARP <= cut.depth;
    if (filters_exist && numbers_exist)
        own.copy<true>(problem.w.n, problem.Kg - filter, cut.filters - filter);
    else
        own.copy<false>(problem.w.n, problem.Kg - filter, cut.filters - filter);
}
