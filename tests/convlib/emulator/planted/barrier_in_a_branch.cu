// fault: divergent barrier
// Half of the block never comes to the barrier.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32) {
        __syncthreads();  // here
        y[threadIdx.x] = tile[63 - threadIdx.x];
    }
    else y[threadIdx.x] = x[threadIdx.x];
}
