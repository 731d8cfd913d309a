// fault: none
// One warp fills, the other reads, and they meet at barrier 1: 64 threads come there from two places.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    asm volatile("bar.sync 1, 64;" ::: "memory");
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
