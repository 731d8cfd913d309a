// fault: none
// Sums within a warp through shared memory, a barrier of the warp between any two steps.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    for (int step = 16; step > 0; step /= 2) {
        const float other = tile[threadIdx.x ^ step];
        __syncwarp();
        tile[threadIdx.x] += other;
        __syncwarp();
    }
    y[threadIdx.x] = tile[threadIdx.x];
}
