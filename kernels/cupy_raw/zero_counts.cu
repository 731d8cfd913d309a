// Zero into the counts of split tiles (last_split.cuh), where no launch packs weights and does it on its way.

#include "last_split.cuh"

// grid: over the counts, one thread each.
extern "C" __global__ void __launch_bounds__(256) zero_counts(unsigned* __restrict__ counts, int number)
{
    zero_counts_of(counts, number);
}
